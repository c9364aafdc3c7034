//! Pulling from a real registry, keeping, removing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "image_support/support.rs"]
mod support;

use std::os::unix::fs::MetadataExt as _;

use berth::image::{Credentials, Error, Images, Options, PullRequest};
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_kept_found_and_removed() {
    let registry = RealRegistry::start("");
    let made = image(&[simple("etc/a", b"one"), simple("etc/b", b"two"), simple("etc/a", b"three")]);
    registry.push("team/app", "v1", &made, None).await;
    let root = root();
    let images = open(root.path());
    images.sweep().await.unwrap();
    let name = format!("{}/team/app:v1", registry.host);
    let image = images.pull(request(&name)).await.unwrap();
    assert_eq!(image.id, made.id());
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    let by_digest = format!("{}/team/app@{}", registry.host, berth::image::Digest::of(&made.manifest));
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
    assert_eq!(image.user().uid, Some(1000));
    let sizes = made.blobs.iter().map(Vec::len).sum::<usize>() + made.config.len() + made.manifest.len();
    assert_eq!(image.size, sizes as u64);
    let dirs = images.lower_dirs(&image).await.unwrap();
    assert_eq!(dirs.len(), 3);
    assert_eq!(std::fs::read(dirs[0].join("etc/a")).unwrap(), b"three");
    assert_eq!(std::fs::read(dirs[2].join("etc/a")).unwrap(), b"one");
    assert_eq!(std::fs::metadata(dirs[0].join("etc/a")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::metadata(dirs[0].join("etc")).unwrap().mtime(), 1_000_000_000);
    let usage = images.fs_info();
    assert!(usage.used_bytes >= 3 * 4096 && usage.inodes_used >= 9, "{usage:?}");

    for way in [image.id.as_str(), &image.id[7..], &image.id[7..20], &name, &by_digest] {
        assert_eq!(images.get(way).expect(way).id, image.id);
    }
    assert!(images.get("nothing").is_none());

    // Another life.
    drop(images);
    let images = open(root.path());
    let again = images.get(&name).unwrap();
    assert_eq!(
        (&again.id, &again.repo_tags, &again.repo_digests),
        (&image.id, &image.repo_tags, &image.repo_digests)
    );
    assert_eq!(images.lower_dirs(&again).await.unwrap(), dirs);
    assert_eq!(images.fs_info().used_bytes, usage.used_bytes);

    // Held layers outlive the image, and go when they are let go.
    let hold = images.hold_chains(&again.chain);
    images.sweep().await.unwrap();
    images.remove(&by_digest).await.unwrap();
    assert!(images.list().is_empty());
    assert!(dirs.iter().all(|dir| dir.is_dir()));
    drop(hold);
    images.sweep().await.unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()));
    assert_eq!(images.fs_info().used_bytes, 0);
    images.remove(&name).await.expect("removing what is gone succeeds");
    assert_eq!(left_over(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_the_old_image_keeps_its_digest() {
    let registry = RealRegistry::start("");
    let root = root();
    let images = open(root.path());
    let name = format!("{}/app", registry.host);
    registry.push("app", "latest", &image(&[simple("etc/a", b"1")]), None).await;
    let old = images.pull(request(&name)).await.unwrap();
    registry.push("app", "latest", &image(&[simple("etc/a", b"2")]), None).await;
    let new = images.pull(request(&name)).await.unwrap();
    assert_ne!(old.id, new.id);
    let old = images.get(&old.id).unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(old.repo_digests.len(), 1);
    assert_eq!(images.get(&format!("{name}:latest")).unwrap().id, new.id);
    assert_eq!(open(root.path()).list().len(), 2);
    // By digest the old one comes again, and the tag stays where it is.
    images.remove(&old.id).await.unwrap();
    let again = images.pull(request(&old.repo_digests[0])).await.unwrap();
    assert_eq!(again.id, old.id);
    assert!(again.repo_tags.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_images_say_so() {
    let registry = RealRegistry::start("");
    registry.push("infra/agent", "1", &image(&[simple("etc/a", b"1")]), None).await;
    registry.push("app", "1", &image(&[simple("etc/a", b"2")]), None).await;
    let root = root();
    let pinned = vec![format!("{}/infra/*", registry.host)];
    let images = Images::open(Options { pinned, ..options(root.path()) }).unwrap();
    assert!(images.pull(request(&format!("{}/infra/agent:1", registry.host))).await.unwrap().pinned);
    assert!(!images.pull(request(&format!("{}/app:1", registry.host))).await.unwrap().pinned);
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_of_a_real_registry() {
    let directory = root();
    let file = directory.path().join("htpasswd");
    let output = std::process::Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output().unwrap();
    std::fs::write(&file, output.stdout).unwrap();
    let registry =
        RealRegistry::start(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()));
    registry.push("private", "1", &image(&[simple("etc/a", b"1")]), Some(("user", "secret"))).await;
    let root = root();
    let images = open(root.path());
    let name = format!("{}/private:1", registry.host);
    let with = |username: &str, password: &str| PullRequest {
        auth: Some(Credentials {
            username: username.into(),
            password: password.into(),
            ..Credentials::default()
        }),
        ..request(&name)
    };
    for refused in [request(&name), with("user", "wrong")] {
        let error = images.pull(refused).await.unwrap_err();
        assert!(
            matches!(error, Error::Registry(berth::image::registry::Error::Unauthorized { .. })),
            "{error}"
        );
    }
    images.pull(with("user", "secret")).await.unwrap();
    // What is here already is not given to those whom the registry would not give it.
    images.pull(request(&name)).await.unwrap_err();
}
