//! Registries that refuse, break, hang, lie; tokens; mirrors; shared and cancelled work.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "image_support/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use berth::error::{Classify as _, Kind};
use berth::image::{Credentials, Digest, Images, Options, Platform, PullRequest, registry};
use support::*;

fn large(seed: u64) -> Made {
    image(&[Tar::default().file("big", &noise(6 << 20, seed)).finish()])
}

fn blob(made: &Made) -> Digest {
    Digest::of(&made.blobs[0])
}

fn quick(root: &std::path::Path) -> Images {
    Images::open(Options { progress_timeout: Duration::from_secs(1), ..options(root) }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_kinds_and_say_who() {
    for (status, kind, words) in [
        (401, Kind::Unauthenticated, "credentials"),
        (403, Kind::PermissionDenied, "does not allow"),
        (404, Kind::NotFound, "does not have"),
        (429, Kind::Unavailable, "too many requests"),
        (500, Kind::Unavailable, "500"),
        (418, Kind::Unavailable, "418"),
    ] {
        let body = r#"{"errors":[{"code":"X","message":"because"}]}"#;
        let server = Hostile::start(move |_| Some(Answer::new(status, body))).await;
        let root = root();
        let error = open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = chain(&error);
        assert!(text.contains(words) && text.contains(&server.host) && text.contains("because"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_failures_are_tried_again_but_not_for_ever() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let server = Hostile::start(move |seen| {
        let first = seen.path.contains("/manifests/") && count.fetch_add(1, Ordering::SeqCst) < 2;
        first.then(|| Answer::new(503, "").with("retry-after", "0"))
    })
    .await;
    server.put("a", "1", &image(&[simple("etc/a", b"1")]));
    let root = root();
    open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap();
    assert_eq!(tries.load(Ordering::SeqCst), 3);

    let server = Hostile::start(|_| Some(Answer::new(429, "").with("retry-after", "3600"))).await;
    let begin = Instant::now();
    let error = open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap_err();
    assert!(chain(&error).contains("3600"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5) && server.seen().len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_reached_is_unavailable() {
    let root = root();
    let error = open(root.path()).pull(request(&format!("127.0.0.1:{}/a:1", free_port()))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_and_trickling_end_by_lack_of_progress() {
    let made = large(1);
    let layer = format!("/blobs/{}", blob(&made));
    let part = |part: &str| part.to_owned();
    for (case, part, hang, drip) in [
        ("manifest", part("/manifests/"), Some(0), None),
        ("config", format!("/blobs/{}", Digest::of(&made.config)), Some(0), None),
        ("blob", layer.clone(), Some(0), None),
        ("middle", layer.clone(), Some(1000), None),
        ("trickle", layer.clone(), None, Some((1, Duration::from_millis(300)))),
        ("trickling manifest", part("/manifests/"), None, Some((1, Duration::from_millis(300)))),
    ] {
        let server = Hostile::start(move |seen| {
            seen.path.contains(&part).then(|| Answer { hang, drip, ..Answer::new(200, vec![1; 1 << 20]) })
        })
        .await;
        server.put("a", "1", &made);
        let root = root();
        let begin = Instant::now();
        let error = quick(root.path()).pull(request(&format!("{}/a:1", server.host))).await.expect_err(case);
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{case}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(8), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_trickles_is_not_read_to_its_end() {
    let drip = Some((1, Duration::from_millis(300)));
    let server = Hostile::start(move |_| Some(Answer { drip, ..Answer::new(404, vec![b' '; 8000]) })).await;
    let root = root();
    let name = format!("{}/a:1", server.host);
    let images = open(root.path());
    let pull = tokio::time::timeout(Duration::from_secs(60), images.pull(request(&name)));
    assert_eq!(pull.await.expect("an end").unwrap_err().kind(), Kind::NotFound);
}

/// Each connection moves a byte and breaks: all of them together are too slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_at_each_byte_is_given_up() {
    let made = large(12);
    let (content, path) = (made.blobs[0].clone(), format!("/blobs/{}", blob(&made)));
    let server = Hostile::start(move |seen| {
        seen.path.contains(&path).then(|| Answer { cut: Some(1), ..ranged(seen, &content) })
    })
    .await;
    server.put("a", "1", &made);
    let root = root();
    let name = format!("{}/a:1", server.host);
    let images = quick(root.path());
    let pull = tokio::time::timeout(Duration::from_secs(60), images.pull(request(&name)));
    assert_eq!(pull.await.expect("an end").unwrap_err().kind(), Kind::DeadlineExceeded);
}

/// What was kept of a layer does not fit on the disk: that is said, not that the layer is broken.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_called_so() {
    let made = large(13);
    let server = Hostile::start(|_| None).await;
    server.put("a", "1", &made);
    let root = root();
    let images = open(root.path());
    let ingest = root.path().join("images/ingest").join(blob(&made).hex());
    std::os::unix::fs::symlink("/dev/full", &ingest).unwrap();
    let error = images.pull(request(&format!("{}/a:1", server.host))).await.unwrap_err();
    assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert!(std::fs::symlink_metadata(&ingest).is_err(), "what was kept gives its space back");
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_no_number_holds_are_refused() {
    let made = image(&[simple("etc/a", b"1"), simple("etc/b", b"2")]);
    let mut manifest: serde_json::Value = serde_json::from_slice(&made.manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["size"] = u64::MAX.into();
    }
    let server = Hostile::start(|_| None).await;
    server.put("a", "1", &made);
    server.put_manifest("a", "2", MANIFEST, manifest.to_string().as_bytes());
    let root = root();
    let error = open(root.path()).pull(request(&format!("{}/a:2", server.host))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_never_becomes_visible() {
    let made = large(2);
    let mut flipped = made.blobs[0].clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut middle = made.blobs[0].clone();
    middle[3 << 20] ^= 0x55;
    let longer = [made.blobs[0].clone(), vec![0; 100]].concat();
    let config_path = format!("/blobs/{}", Digest::of(&made.config));
    let blob_path = format!("/blobs/{}", blob(&made));
    let mut config = made.config.clone();
    config[10] ^= 1;
    for (case, path, content) in [
        ("last byte", blob_path.clone(), flipped),
        ("middle", blob_path.clone(), middle),
        ("longer", blob_path, longer),
        ("config", config_path, config),
        ("manifest", format!("/manifests/{}", Digest::of(&made.manifest)), b"{}".to_vec()),
    ] {
        let answer = content.clone();
        let server =
            Hostile::start(move |seen| seen.path.contains(&path).then(|| Answer::new(200, answer.clone())))
                .await;
        server.put("a", "1", &made);
        let root = root();
        let images = open(root.path());
        let name = match case {
            "manifest" => format!("{}/a@{}", server.host, Digest::of(&made.manifest)),
            _ => format!("{}/a:1", server.host),
        };
        let error = images.pull(request(&name)).await.expect_err(case);
        let text = chain(&error);
        assert!(text.contains("digest") || text.contains("more than"), "{case}: {text}");
        assert!(images.list().is_empty());
        let blobs: Vec<_> = std::fs::read_dir(root.path().join("images/blobs/sha256")).unwrap().collect();
        assert!(blobs.len() <= 2, "{case}: only what was right is kept");
        assert!(!left_over(root.path()).iter().any(|name| name.starts_with('.')), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_diff_id_is_refused() {
    let tar = simple("etc/a", b"1");
    let made = packed(&[(LAYER, gzip(&tar), Digest::of(b"something else"))]);
    let server = Hostile::start(|_| None).await;
    server.put("a", "1", &made);
    let root = root();
    let error = open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap_err();
    assert!(chain(&error).contains("diff id"), "{error}");
    assert_eq!(left_over(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_from_where_it_broke() {
    let made = large(3);
    let content = made.blobs[0].clone();
    let path = format!("/blobs/{}", blob(&made));
    let tries = Arc::new(AtomicUsize::new(0));
    let (count, wanted) = (Arc::clone(&tries), path.clone());
    let server = Hostile::start(move |seen| {
        let first = seen.path.contains(&wanted) && count.fetch_add(1, Ordering::SeqCst) < 2;
        first.then(|| Answer { cut: Some(2 << 20), ..ranged(seen, &content) })
    })
    .await;
    server.put("a", "1", &made);
    let root = root();
    open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap();
    let ranges: Vec<Option<String>> = server
        .seen()
        .iter()
        .filter(|seen| seen.path.contains(&path))
        .map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, [None, Some("bytes=2097152-".into()), Some("bytes=4194304-".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_pull_resumes_in_another_life_also_without_ranges() {
    for knows_ranges in [true, false] {
        let made = large(4);
        let path = format!("/blobs/{}", blob(&made));
        let content = made.blobs[0].clone();
        let broken = Arc::new(AtomicUsize::new(1));
        let (state, wanted) = (Arc::clone(&broken), path.clone());
        let server = Hostile::start(move |seen| {
            if !seen.path.contains(&wanted) {
                return None;
            }
            match state.load(Ordering::SeqCst) {
                1 => Some(Answer { hang: Some(3 << 20), ..Answer::new(200, content.clone()) }),
                _ if knows_ranges => None,
                _ => Some(Answer::new(200, content.clone())),
            }
        })
        .await;
        server.put("a", "1", &made);
        let root = root();
        let name = format!("{}/a:1", server.host);
        quick(root.path()).pull(request(&name)).await.unwrap_err();
        let partial = root.path().join("images/ingest").join(blob(&made).hex());
        assert_eq!(std::fs::metadata(&partial).unwrap().len(), 3 << 20);
        broken.store(0, Ordering::SeqCst);
        let images = open(root.path());
        images.pull(request(&name)).await.unwrap();
        let last = server.seen().into_iter().rfind(|seen| seen.path.contains(&path)).unwrap();
        assert_eq!(last.header("range"), Some("bytes=3145728-"));
        assert!(!partial.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_partial_is_thrown_away_and_fetched_again() {
    let made = large(5);
    let server = Hostile::start(|_| None).await;
    server.put("a", "1", &made);
    let root = root();
    let images = open(root.path());
    std::fs::write(root.path().join("images/ingest").join(blob(&made).hex()), vec![9; 1 << 20]).unwrap();
    images.pull(request(&format!("{}/a:1", server.host))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_blob_fails_after_some_tries() {
    let made = large(6);
    let path = format!("/blobs/{}", blob(&made));
    let short = made.blobs[0][..1 << 20].to_vec();
    let server =
        Hostile::start(move |seen| seen.path.contains(&path).then(|| Answer::new(200, short.clone()))).await;
    server.put("a", "1", &made);
    let root = root();
    let error = open(root.path()).pull(request(&format!("{}/a:1", server.host))).await.unwrap_err();
    assert!(matches!(error, berth::image::Error::Registry(registry::Error::Truncated { .. })), "{error}");
    assert!(server.seen().len() < 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_share_every_transfer() {
    let shared = Tar::default().file("big", &noise(4 << 20, 7)).finish();
    let one = image(&[shared.clone(), simple("etc/a", b"1")]);
    let two = image(&[shared.clone(), simple("etc/a", b"2")]);
    // The same content on another base, so as another layer.
    let three = image(&[simple("etc/a", b"3"), shared]);
    let server = Hostile::start(|_| None).await;
    server.put("one", "1", &one);
    server.put("two", "1", &two);
    server.put("three", "1", &three);
    let root = root();
    let images = open(root.path());
    let pull = |name: &str| {
        let (images, request) = (images.clone(), request(&format!("{}/{name}:1", server.host)));
        tokio::spawn(async move { images.pull(request).await })
    };
    for task in [pull("one"), pull("one"), pull("two"), pull("three"), pull("one")] {
        task.await.unwrap().unwrap();
    }
    for made in [&one, &two, &three] {
        for content in made.blobs.iter().chain([&made.config]) {
            assert_eq!(server.count(&format!("/blobs/{}", Digest::of(content))), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_stops_and_hands_over() {
    let made = large(8);
    let path = format!("/blobs/{}", blob(&made));
    let (content, wanted) = (made.blobs[0].clone(), path.clone());
    let slow = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&slow);
    let server = Hostile::start(move |seen| {
        let slow = seen.path.contains(&wanted) && state.load(Ordering::SeqCst) == 1;
        slow.then(|| Answer {
            drip: Some((64 << 10, Duration::from_millis(50))),
            ..Answer::new(200, content.clone())
        })
    })
    .await;
    server.put("a", "1", &made);
    let root = root();
    let images = open(root.path());
    let pull = || {
        let (images, request) = (images.clone(), request(&format!("{}/a:1", server.host)));
        tokio::spawn(async move { images.pull(request).await })
    };
    let first = pull();
    while server.count(&path) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = pull();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.count(&path), 1, "the second waits for the first");
    slow.store(0, Ordering::SeqCst);
    first.abort();
    second.await.unwrap().unwrap();
    let seen: Vec<_> = server.seen().into_iter().filter(|seen| seen.path.contains(&path)).collect();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].header("range").is_some(), "the second goes on from what the first left");

    // With nobody left the connection closes and the work directory goes.
    slow.store(1, Ordering::SeqCst);
    let other = root_with(&server).await;
    for _ in 0..100 {
        if left_over(other.path()).iter().all(|name| !name.starts_with('.')) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the work goes on: {:?}", left_over(other.path()));
}

/// Begins a pull in a fresh root and gives it up.
async fn root_with(server: &Hostile) -> tempfile::TempDir {
    let root = root();
    let images = open(root.path());
    let name = format!("{}/a:1", server.host);
    let task = tokio::spawn(async move { images.pull(request(&name)).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(left_over(root.path()).iter().any(|name| name.starts_with('.')), "it is under way");
    task.abort();
    root
}

// === tokens ===

/// A registry that takes tokens only, with its token server.
async fn token_registry(expires: bool) -> Hostile {
    let made = image(&[simple("etc/a", b"1"), simple("etc/b", b"2")]);
    let issued = Arc::new(AtomicUsize::new(0));
    let server = Hostile::start(move |seen| {
        if seen.path.starts_with("/token") {
            let basic = seen.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=");
            let refresh = seen.method == "POST"
                && seen.body.contains("grant_type=refresh_token")
                && seen.body.contains("refresh_token=identity")
                && seen.body.contains("scope=repository%3Aa%3Apull");
            let anonymous =
                seen.header("authorization").is_none() && seen.path.contains("scope=repository%3Apublic");
            if !(basic || refresh || anonymous) {
                return Some(Answer::new(401, "{}"));
            }
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(Answer::new(200, format!(r#"{{"token":"t{number}"}}"#)));
        }
        let number = issued.load(Ordering::SeqCst);
        let shown = seen.header("authorization").unwrap_or_default().to_owned();
        // The first token lasts for the manifest only.
        let stale = expires && shown == "Bearer t1" && seen.path.contains("/blobs/");
        let good = shown == "Bearer ready" || (number > 0 && shown.starts_with("Bearer t") && !stale);
        if good {
            return None;
        }
        let path = seen.path.split('/').nth(2).unwrap_or_default();
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"reg\",scope=\"repository:{path}:pull\"",
            seen.header("host").unwrap_or_default()
        );
        Some(Answer::new(401, "{}").with("www-authenticate", &challenge))
    })
    .await;
    server.put("a", "1", &made);
    server.put("public", "1", &made);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_for_every_kind_of_credentials() {
    let server = token_registry(false).await;
    let none = Credentials::default;
    for (case, name, credentials, good) in [
        ("anonymous", "public", None, true),
        ("anonymous, private", "a", None, false),
        (
            "password",
            "a",
            Some(Credentials { username: "user".into(), password: "secret".into(), ..none() }),
            true,
        ),
        ("auth", "a", Some(Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..none() }), true),
        ("identity", "a", Some(Credentials { identity_token: "identity".into(), ..none() }), true),
        (
            "identity as password",
            "a",
            Some(Credentials { username: "<token>".into(), password: "identity".into(), ..none() }),
            true,
        ),
        ("ready", "a", Some(Credentials { registry_token: "ready".into(), ..none() }), true),
        ("wrong ready", "a", Some(Credentials { registry_token: "wrong".into(), ..none() }), false),
        ("wrong", "a", Some(Credentials { username: "user".into(), password: "no".into(), ..none() }), false),
        (
            "for another host",
            "a",
            Some(Credentials {
                username: "user".into(),
                password: "secret".into(),
                server_address: "other.test".into(),
                ..none()
            }),
            false,
        ),
    ] {
        let root = root();
        let before = server.count("/token");
        let request = PullRequest { auth: credentials, ..request(&format!("{}/{name}:1", server.host)) };
        let result = open(root.path()).pull(request).await;
        assert_eq!(result.is_ok(), good, "{case}: {result:?}");
        if let Err(error) = result {
            assert_eq!(error.kind(), Kind::Unauthenticated, "{case}: {error}");
            assert!(!format!("{error:?} {error}").contains("secret"), "{case}");
        } else if case != "ready" {
            assert_eq!(server.count("/token") - before, 1, "{case}: one token serves the whole pull");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_is_renewed() {
    let server = token_registry(true).await;
    let root = root();
    let credentials = Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..Credentials::default() };
    let request = PullRequest { auth: Some(credentials), ..request(&format!("{}/a:1", server.host)) };
    open(root.path()).pull(request).await.unwrap();
    assert_eq!(server.count("/token"), 2);
}

/// A token server that is busy, and then sends us elsewhere: what is secret stays with it.
#[tokio::test(flavor = "multi_thread")]
async fn token_servers_are_asked_again_and_followed() {
    let elsewhere = Hostile::start(|_| Some(Answer::new(200, r#"{"access_token":"t"}"#))).await;
    let to = elsewhere.host.clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let server = Hostile::start(move |seen| {
        if seen.path.starts_with("/token") {
            return Some(match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Answer::new(503, "").with("retry-after", "0"),
                _ => Answer::new(307, "").with("location", &format!("http://{to}{}", seen.path)),
            });
        }
        if seen.header("authorization") == Some("Bearer t") {
            return None;
        }
        let host = seen.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
        Some(Answer::new(401, "{}").with("www-authenticate", &challenge))
    })
    .await;
    server.put("a", "1", &image(&[simple("etc/a", b"1")]));
    let name = format!("{}/a:1", server.host);
    let with = |credentials| PullRequest { auth: Some(credentials), ..request(&name) };
    let root = root();
    let images = open(root.path());
    let password = Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..Credentials::default() };
    images.pull(with(password)).await.unwrap();
    let asked: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|seen| seen.header("authorization").is_some()));
    assert_eq!(elsewhere.seen().len(), 1);
    assert!(elsewhere.seen()[0].header("authorization").is_none());
    let wanted = "service=reg&scope=repository%3Aa%3Apull";
    assert!(elsewhere.seen()[0].path.ends_with(wanted), "{}", elsewhere.seen()[0].path);

    // A refresh token is the request itself: it goes nowhere else.
    images.remove(&name).await.unwrap();
    let identity = Credentials { identity_token: "identity".into(), ..Credentials::default() };
    images.pull(with(identity)).await.unwrap_err();
    assert_eq!(elsewhere.seen().len(), 1);
}

// === hosts ===

/// A mirror that takes connections and does not answer is waited for once in a pull.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_stands_still_is_left_alone() {
    let mirror = Hostile::start(|_| Some(Answer { hang: Some(0), ..Answer::new(200, vec![1; 100]) })).await;
    let upstream = Hostile::start(|_| None).await;
    let made = image(&[simple("etc/a", b"1"), simple("etc/b", b"2"), simple("etc/c", b"3")]);
    upstream.put("library/app", "1", &made);
    let gone = free_port();
    let config = hosts_file(
        "docker.io",
        &format!(
            "server = \"http://{}\"\n[host.\"http://127.0.0.1:{gone}\"]\n[host.\"http://{}\"]\n",
            upstream.host, mirror.host
        ),
    );
    let root = root();
    let options = Options {
        config_path: vec![config.path().to_owned()],
        progress_timeout: Duration::from_secs(1),
        ..options(root.path())
    };
    let images = Images::open(options).unwrap();
    images.pull(request("app:1")).await.unwrap();
    assert_eq!(mirror.seen().len(), 1, "{:?}", mirror.seen());
}

fn hosts_file(name: &str, text: &str) -> tempfile::TempDir {
    let root = root();
    let directory = root.path().join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order_and_told_for_whom() {
    let made = image(&[simple("etc/a", b"1")]);
    let broken = Hostile::start(|_| Some(Answer::new(404, ""))).await;
    let mirror = Hostile::start(|_| None).await;
    mirror.put("library/app", "1", &made);
    let upstream = Hostile::start(|_| None).await;
    upstream.put("library/app", "1", &made);
    let file = |mirror_line: &str| {
        format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n{mirror_line}\n[host.\"http://{}\".header]\nx-key = \"k\"\n",
            upstream.host, broken.host, mirror.host, mirror.host
        )
    };
    let config = hosts_file("docker.io", &file(""));
    let root = root();
    let images =
        Images::open(Options { config_path: vec![config.path().to_owned()], ..options(root.path()) })
            .unwrap();
    let image = images.pull(request("app:1")).await.unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/app:1"]);
    assert!(broken.seen()[0].path.ends_with("?ns=docker.io"), "{:?}", broken.seen()[0].path);
    assert!(
        mirror
            .seen()
            .iter()
            .all(|seen| seen.header("x-key") == Some("k") && seen.path.contains("ns=docker.io"))
    );
    assert_eq!(upstream.seen().len(), 0);

    // The file is read again for each pull: this mirror may only give content now.
    images.remove("app:1").await.unwrap();
    images.sweep().await.unwrap();
    std::fs::write(config.path().join("docker.io/hosts.toml"), file("capabilities = [\"pull\"]")).unwrap();
    images.pull(request("app:1")).await.unwrap();
    assert_eq!(upstream.count("/manifests/1"), 1);
    assert_eq!(upstream.count("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_secrets() {
    let made = image(&[simple("etc/a", b"1")]);
    let storage = Hostile::start(|_| None).await;
    storage.put("a", "1", &made);
    let to = storage.host.clone();
    let server = Hostile::start(move |seen| {
        if seen.header("authorization").is_none() {
            return Some(Answer::new(401, "").with("www-authenticate", "Basic realm=\"x\""));
        }
        seen.path
            .contains("/blobs/")
            .then(|| Answer::new(307, "").with("location", &format!("http://{to}{}?signature=1", seen.path)))
    })
    .await;
    server.put("a", "1", &made);
    let root = root();
    let credentials = Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..Credentials::default() };
    let request = PullRequest { auth: Some(credentials), ..request(&format!("{}/a:1", server.host)) };
    open(root.path()).pull(request).await.unwrap();
    assert_eq!(storage.seen().len(), 2);
    assert!(storage.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

/// Where a redirect leads to may ask for credentials, and say where they are to be sent: it gets none.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_redirect_leads_gets_no_credentials() {
    let made = image(&[simple("etc/a", b"1")]);
    let storage = Hostile::start(|seen| {
        let host = seen.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
        Some(match seen.path.starts_with("/token") {
            true => Answer::new(200, r#"{"token":"t"}"#),
            false => Answer::new(401, "").with("www-authenticate", &challenge),
        })
    })
    .await;
    let to = storage.host.clone();
    let server = Hostile::start(move |seen| {
        seen.path
            .contains("/blobs/")
            .then(|| Answer::new(307, "").with("location", &format!("http://{to}{}", seen.path)))
    })
    .await;
    server.put("a", "1", &made);
    let root = root();
    let credentials = Credentials { auth: "dXNlcjpzZWNyZXQ=".into(), ..Credentials::default() };
    let request = PullRequest { auth: Some(credentials), ..request(&format!("{}/a:1", server.host)) };
    let error = open(root.path()).pull(request).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    assert!(storage.count("/blobs/") > 0);
    assert_eq!(storage.count("/token"), 0, "{:?}", storage.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn https_with_an_authority_of_our_own() {
    let certificates = root();
    let at = |name: &str| certificates.path().join(name);
    let status = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=berth test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(at("key.pem"))
        .arg("-out")
        .arg(at("cert.pem"))
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let http = format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        at("cert.pem").display(),
        at("key.pem").display()
    );
    let registry = RealRegistry::start_http("", &http);
    registry.push("app", "1", &image(&[simple("etc/a", b"1")]), None).await;
    let name = registry.host.clone();
    let server = format!("server = \"https://{name}\"\n");
    for (case, extra, good) in [
        ("unknown authority", String::new(), false),
        ("skip_verify", "skip_verify = true\n".to_owned(), true),
        ("ca", format!("ca = \"{}\"\n", at("cert.pem").display()), true),
    ] {
        let config = hosts_file(&name, &format!("{server}{extra}"));
        let root = root();
        let images =
            Images::open(Options { config_path: vec![config.path().to_owned()], ..options(root.path()) })
                .unwrap();
        let result = images.pull(request(&format!("{name}/app:1"))).await;
        assert_eq!(result.is_ok(), good, "{case}: {result:?}");
    }
    // Certificates beside, as Docker has it.
    let beside = root();
    let directory = beside.path().join(&name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::copy(at("cert.pem"), directory.join("ca.crt")).unwrap();
    let root = root();
    let images =
        Images::open(Options { config_path: vec![beside.path().to_owned()], ..options(root.path()) })
            .unwrap();
    images.pull(request(&format!("{name}/app:1"))).await.unwrap();
}

// === documents ===

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_manifest_for_this_machine() {
    let tar = simple("etc/a", b"1");
    let layers = [(LAYER, gzip(&tar), Digest::of(&tar))];
    let (ours, other) = (made_for("amd64", &layers), made_for("s390x", &layers));
    let entry = |made: &Made, architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": Digest::of(&made.manifest), "size": made.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
            .to_string()
            .into_bytes()
    };
    let server = Hostile::start(|_| None).await;
    server.put("a", "ours", &ours);
    server.put("a", "other", &other);
    let both = index(vec![entry(&other, "s390x"), entry(&ours, "amd64")]);
    server.put_manifest("a", "both", INDEX, &both);
    server.put_manifest("a", "strange", INDEX, &index(vec![entry(&other, "s390x")]));
    let root = root();
    let images = open(root.path());
    let image = images.pull(request(&format!("{}/a:both", server.host))).await.unwrap();
    assert_eq!(image.id, ours.id());
    assert_eq!(image.repo_digests, [format!("{}/a@{}", server.host, Digest::of(&both))]);
    assert_eq!(open(root.path()).get(&image.repo_digests[0]).unwrap().id, image.id);
    // Unchanged: one HEAD and nothing else.
    let before = server.seen().len();
    images.pull(request(&format!("{}/a:both", server.host))).await.unwrap();
    assert_eq!(server.seen().len(), before + 1);
    assert_eq!(server.seen().last().unwrap().method, "HEAD");
    // Pulled for another machine, the name is that image's until it is pulled for this one.
    let platform = Platform { os: "linux".into(), architecture: "s390x".into(), variant: String::new() };
    let name = format!("{}/a:both", server.host);
    let foreign = PullRequest { platform: Some(platform), ..request(&name) };
    assert_eq!(images.pull(foreign).await.unwrap().id, other.id());
    assert_eq!(images.pull(request(&name)).await.unwrap().id, ours.id());
    for name in ["strange", "other"] {
        let error = images.pull(request(&format!("{}/a:{name}", server.host))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(chain(&error).contains("s390x"), "{error}");
    }
}
