//! What layers may hold, and what they may not.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "image_support/support.rs"]
mod support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use berth::image::{Digest, Error, Images, Limits, Options, unpack};
use support::*;

/// Pulls an image of these archives.
async fn pull(tars: &[Vec<u8>]) -> (tempfile::TempDir, Images, Result<Vec<PathBuf>, Error>) {
    pull_with(tars, Limits::default()).await
}

async fn pull_with(
    tars: &[Vec<u8>],
    limits: Limits,
) -> (tempfile::TempDir, Images, Result<Vec<PathBuf>, Error>) {
    let server = Hostile::start(|_| None).await;
    server.put("app", "1", &image(tars));
    let root = root();
    let images = Images::open(Options { limits, ..options(root.path()) }).unwrap();
    let result = match images.pull(request(&format!("{}/app:1", server.host))).await {
        Ok(image) => images.lower_dirs(&image).await,
        Err(error) => Err(error),
    };
    (root, images, result)
}

fn xattr(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let count = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(count);
    Some(value)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_layer_can_hold() {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(140));
    let gnu_long = "g".repeat(200);
    let mut tar = Tar::default();
    tar.dir("./", 0o755)
        .dir("bin/", 0o755)
        .raw(b'0', "bin/su", "", 0o4755, (0, 0), b"setuid")
        .link("bin/su2", "bin/su")
        .symlink("lib", "usr/lib")
        .dir("usr/lib/", 0o755)
        .file("lib/inside", b"through a link that stays inside")
        .symlink("absolute", "/etc/passwd")
        .link("link-to-link", "absolute")
        .raw(b'3', "null", "", 0o666, (1, 3), b"")
        .raw(b'4', "disk", "", 0o660, (8, 1), b"")
        .raw(b'6', "pipe", "", 0o600, (0, 0), b"")
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"12.5"),
            ("uid", b"100000"),
            ("gid", b"2097153"),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .file("short", b"pax")
        .raw(b'L', "././@LongLink", "", 0, (0, 0), format!("{gnu_long}\0").as_bytes())
        .file("ggg", b"gnu")
        .file("twice", b"first")
        .file("twice", b"second")
        .dir("becomes-file/sub/", 0o755)
        .file("becomes-file", b"x")
        .dir("late/", 0o700)
        .file("late/file", b"x");
    let (_root, _images, result) = pull(&[tar.finish()]).await;
    let top = result.unwrap().remove(0);
    let stat = |name: &str| std::fs::symlink_metadata(top.join(name)).unwrap();
    assert_eq!(stat("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(stat("bin/su").ino(), stat("bin/su2").ino());
    assert_eq!(std::fs::read(top.join("usr/lib/inside")).unwrap(), b"through a link that stays inside");
    assert_eq!(std::fs::read_link(top.join("absolute")).unwrap(), PathBuf::from("/etc/passwd"));
    assert_eq!(stat("absolute").ino(), stat("link-to-link").ino());
    assert!(stat("null").file_type().is_char_device());
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("null").mode() & 0o7777, 0o666);
    assert!(stat("disk").file_type().is_block_device());
    assert!(stat("pipe").file_type().is_fifo());
    let file = stat(&long);
    assert_eq!(
        (file.uid(), file.gid(), file.mtime(), file.mtime_nsec()),
        (100_000, 2_097_153, 12, 500_000_000)
    );
    assert_eq!(xattr(&top.join(&long), "user.note").unwrap(), b"hello");
    assert_eq!(xattr(&top.join(&long), "security.capability").unwrap(), capability);
    assert_eq!(xattr(&top.join(&long), "trusted.overlay.redirect"), None);
    assert_eq!(std::fs::read(top.join(&gnu_long)).unwrap(), b"gnu");
    assert_eq!(std::fs::read(top.join("twice")).unwrap(), b"second");
    assert!(stat("becomes-file").is_file());
    assert_eq!((stat("late").mode() & 0o7777, stat("late").mtime()), (0o700, 1_000_000_000));
}

/// kaniko writes an entry `/` into each layer, and a slash before the targets of hard links; other builders write names so.
#[tokio::test(flavor = "multi_thread")]
async fn names_with_a_slash_count_from_the_layer() {
    let mut tar = Tar::default();
    tar.dir("/", 0o755)
        .dir("usr/bin/", 0o755)
        .file("usr/bin/perlbug", b"one")
        .link("usr/bin/perlthanks", "/usr/bin/perlbug")
        .file("/opt/app", b"two")
        .file("opt/x/../app2", b"three")
        .file("/opt/.wh.gone", b"");
    let (_root, _images, result) = pull(&[tar.finish()]).await;
    let top = result.unwrap().remove(0);
    let stat = |name: &str| std::fs::symlink_metadata(top.join(name)).unwrap();
    assert_eq!(stat("usr/bin/perlbug").ino(), stat("usr/bin/perlthanks").ino());
    assert_eq!(std::fs::read(top.join("opt/app")).unwrap(), b"two");
    assert_eq!(std::fs::read(top.join("opt/app2")).unwrap(), b"three");
    assert!(stat("opt/gone").file_type().is_char_device());
    assert_eq!(std::fs::metadata(&top).unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_become_what_overlayfs_knows() {
    let mut tar = Tar::default();
    tar.dir("a/", 0o755)
        .file("a/.wh.gone", b"")
        .dir("b/", 0o755)
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"x")
        .file(".wh..wh.plnk", b"")
        .file("c/.wh.both", b"")
        .dir("c/both/", 0o755)
        .file("d/kept", b"x")
        .file("d/.wh.kept", b"");
    let (_root, _images, result) = pull(&[simple("etc/x", b"x"), tar.finish()]).await;
    let top = result.unwrap().remove(0);
    let gone = std::fs::symlink_metadata(top.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(xattr(&top.join("b"), "trusted.overlay.opaque").unwrap(), b"y");
    assert!(top.join("b/new").is_file());
    assert_eq!(xattr(&top.join("c/both"), "trusted.overlay.opaque").unwrap(), b"y");
    assert!(top.join("d/kept").is_file(), "what the layer brings itself stays");
    assert!(!top.join(".wh..wh.plnk").exists() && !top.join(".wh.plnk").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_without_an_entry_look_like_those_below() {
    let lower = Tar::default().dir("tmp/", 0o1777).raw(b'5', "home/", "", 0o750, (0, 0), b"").finish();
    let upper = Tar::default().file("tmp/x", b"1").file("home/new/y", b"2").finish();
    let (_root, _images, result) = pull(&[lower, simple("etc/x", b""), upper]).await;
    let top = result.unwrap().remove(0);
    let mode = |name: &str| std::fs::metadata(top.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("home"), mode("home/new")), (0o1777, 0o750, 0o755));
    assert_eq!(std::fs::metadata(top.join("tmp")).unwrap().mtime(), 1_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_have_holes() {
    // Form 1.0: the map is in front of the data.
    let mut data = b"2\n0\n4\n1048576\n4\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"headtail");
    let mut tar = Tar::default();
    tar.pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"2097152"),
    ])
    .file("GNUSparseFile.0/sparse", &data)
    .pax(&[("GNU.sparse.size", b"8192"), ("GNU.sparse.map", b"4096,2")])
    .file("old", b"xy")
    .file("after", b"z");
    let (_root, _images, result) = pull(&[tar.finish()]).await;
    let top = result.unwrap().remove(0);
    let bytes = std::fs::read(top.join("sparse")).unwrap();
    assert_eq!(bytes.len(), 2_097_152);
    assert_eq!((&bytes[..4], &bytes[1_048_576..1_048_580]), (&b"head"[..], &b"tail"[..]));
    assert!(std::fs::metadata(top.join("sparse")).unwrap().blocks() < 100);
    let old = std::fs::read(top.join("old")).unwrap();
    assert_eq!((old.len(), &old[4096..4098]), (8192, &b"xy"[..]));
    assert_eq!(std::fs::read(top.join("after")).unwrap(), b"z");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packing_is_unpacked() {
    let tar = simple("etc/a", b"content");
    let (first, second) = tar.split_at(700);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
    for (kind, blob) in [
        (LAYER, members),
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstd),
        ("application/vnd.oci.image.layer.v1.tar", tar.clone()),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip(&tar)),
    ] {
        let server = Hostile::start(|_| None).await;
        server.put("app", "1", &packed(&[(kind, blob, Digest::of(&tar))]));
        let root = root();
        let images = open(root.path());
        let image = images.pull(request(&format!("{}/app:1", server.host))).await.expect(kind);
        assert_eq!(std::fs::read(top(&images, &image).await.join("etc/a")).unwrap(), b"content", "{kind}");
    }
}

/// As the container will see them: the layer is the root, and nothing is above it.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed_inside_the_layer() {
    let outside = root();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let out = outside.path().to_str().unwrap().to_owned();
    let inside = out.trim_start_matches('/').to_owned();
    let up = format!("../../../../../../../..{out}");
    let tar = || Tar::default();
    let made = format!("{inside}/victim");
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("as Debian has it", tar().symlink("var/run", "/run").file("var/run/x", b"good").finish(), "run/x"),
        (
            "there already",
            tar().dir("run/", 0o755).symlink("r", "/run").file("r/x", b"good").finish(),
            "run/x",
        ),
        ("absolute", tar().symlink("a", &out).file("a/victim", b"good").finish(), &made),
        ("upwards", tar().symlink("a", &up).file("a/victim", b"good").finish(), &made),
        (
            "directory",
            tar().symlink("a", &out).dir("a/victim/", 0o700).file("a/victim/x", b"good").finish(),
            "a/victim/x",
        ),
        ("chain", tar().symlink("a", "b").symlink("b", &out).file("a/victim", b"good").finish(), &made),
        ("relative", tar().symlink("a/b/c", "../d").file("a/b/c/e", b"good").finish(), "a/d/e"),
        (
            "by a link",
            tar()
                .dir("x/y/", 0o755)
                .symlink("l", "x/y")
                .symlink("x/y/m", "../z")
                .file("l/m/f", b"good")
                .finish(),
            "x/z/f",
        ),
        ("hard link", tar().file("f", b"good").symlink("a", "/n").link("a/g", "f").finish(), "n/g"),
        (
            "replaced directory",
            tar()
                .dir("a/", 0o755)
                .file("a/x", b"")
                .raw(b'2', "a", &out, 0o777, (0, 0), b"")
                .file("a/victim", b"good")
                .finish(),
            &made,
        ),
    ];
    for (case, layer, place) in cases {
        let (_root, _images, result) = pull(&[layer]).await;
        let top = result.expect(case).remove(0);
        let file = within(&top, place);
        assert_eq!(std::fs::read(&file).expect(case), b"good", "{case}: {}", file.display());
    }
    // Whiteouts go the same way.
    let hides = tar().symlink("a", &out).file("a/.wh.victim", b"").finish();
    let (_root, _images, result) = pull(&[simple("etc/fine", b""), hides]).await;
    let top = result.unwrap().remove(0);
    assert!(std::fs::symlink_metadata(top.join(&made)).unwrap().file_type().is_char_device());
    let opaque = tar().symlink("a", &out).file("a/.wh..wh..opq", b"").finish();
    let (_root, _images, result) = pull(&[simple("etc/fine", b""), opaque]).await;
    let top = result.unwrap().remove(0);
    assert_eq!(xattr(&top.join(&inside), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    // Directories made on the way look like those below.
    let below = Tar::default().dir("run/", 0o1777).finish();
    let (_root, _images, result) =
        pull(&[below, tar().symlink("var/run", "/run").file("var/run/x", b"").finish()]).await;
    let top = result.unwrap().remove(0);
    assert_eq!(std::fs::metadata(top.join("run")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(xattr(outside.path(), "trusted.overlay.opaque"), None);
}

/// `name` below `top`, where its first part may be an absolute link.
fn within(top: &Path, name: &str) -> PathBuf {
    let (first, rest) = name.split_once('/').unwrap_or((name, ""));
    match std::fs::read_link(top.join(first)) {
        Ok(target) => top.join(target.strip_prefix("/").unwrap_or(&target)).join(rest),
        Err(_) => top.join(name),
    }
}

/// Refused, naming entry and layer; nothing left behind, nothing outside touched.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_are_refused() {
    let outside = root();
    let target = outside.path().join("victim");
    std::fs::write(&target, "untouched").unwrap();
    let out = outside.path().to_str().unwrap().to_owned();
    let tar = || Tar::default();
    let long = "a/".repeat(2100);
    let deep = "a/".repeat(600);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute parent", tar().file(&format!("/../..{out}/victim"), b"evil").finish(), "'..'"),
        ("parent", tar().file("a/../../victim", b"evil").finish(), "'..'"),
        ("hard link out", tar().link("a", &format!("{out}/victim")).finish(), "target"),
        ("hard link up", tar().link("a", "../../victim").finish(), "target"),
        ("hard link through link", tar().symlink("a", &out).link("b", "a/victim").finish(), "target"),
        ("hard link to root", tar().link("b", ".").finish(), "target"),
        ("hard link to nothing", tar().link("b", "missing").finish(), "target"),
        ("loop", tar().symlink("a", "b").symlink("b", "a").file("a/x", b"").finish(), "symbolic"),
        (
            "loop to be made",
            tar().symlink("a", "b/c").symlink("b", "a").file("a/x", b"").finish(),
            "symbolic",
        ),
        (
            "file on the way",
            tar().symlink("a", "/f").file("f", b"").file("a/x", b"").finish(),
            "entry \"a/x\"",
        ),
        ("root is a file", tar().file("./", b"").symlink(".", "/etc").finish(), "root of the layer"),
        ("empty whiteout", tar().file(".wh.", b"").finish(), "not one of a file"),
        ("dots whiteout", tar().file("a/.wh...", b"").finish(), "not one of a file"),
        ("device", tar().raw(b'3', "dev", "", 0o666, (5000, 1), b"").finish(), "out of range"),
        ("long name", tar().pax(&[("path", long.as_bytes())]).file("x", b"").finish(), "not one of a file"),
        ("deep name", tar().pax(&[("path", deep.as_bytes())]).file("x", b"").finish(), "not one of a file"),
        ("zero in name", tar().pax(&[("path", b"a\0b")]).file("x", b"").finish(), "not one of a file"),
        ("unknown type", tar().raw(b'V', "x", "", 0, (0, 0), b"").finish(), "not supported"),
        (
            "sparse lie",
            tar()
                .pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"9,99")])
                .file("x", &[0; 99])
                .finish(),
            "sparse",
        ),
        (
            "pax of 2 MiB",
            tar().pax(&[("comment", &vec![b'x'; 2 << 20])]).file("x", b"").finish(),
            "described by",
        ),
        ("no tar", noise(4096, 7), "broken"),
        ("cut short", tar().file("x", &[1; 5000]).finish()[..2048].to_vec(), "ends within"),
    ];
    for (case, layer, words) in cases {
        let blob = Digest::of(&gzip(&layer));
        let (root, images, result) = pull(&[simple("etc/fine", b""), layer]).await;
        let error = result.expect_err(case);
        assert!(matches!(error, Error::Layer { .. }), "{case}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&blob.to_string()), "{case}: names the layer: {text}");
        let all = chain(&error);
        assert!(all.contains(words), "{case}: {all}");
        assert!(images.list().is_empty(), "{case}");
        assert_eq!(std::fs::read(&target).unwrap(), b"untouched", "{case}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{case}");
        assert_eq!(std::fs::metadata(&target).unwrap().nlink(), 1, "{case}");
        assert_eq!(xattr(outside.path(), "trusted.overlay.opaque"), None, "{case}");
        // The other layer's thread may be at its end yet; what came of it may be continued.
        for _ in 0..100 {
            if !left_over(root.path()).iter().any(|name| name.starts_with('.')) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let left = left_over(root.path());
        assert!(!left.iter().any(|name| name.starts_with('.') || *name == blob.hex()), "{case}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_end_a_pull() {
    let limits = Limits {
        layer_bytes: 4 << 20,
        layer_entries: 100,
        decompression_ratio: 50,
        ratio_from: 1 << 20,
        compressed_bytes: 3 << 20,
    };
    let many = (0..101).fold(Tar::default(), |mut tar, n| {
        tar.file(&format!("f{n}"), b"");
        tar
    });
    let exceeded = |error: Error| match error {
        Error::Layer { source: unpack::Error::Limit(_), .. } | Error::LayerSize { .. } => (),
        other => panic!("{other:?}"),
    };
    for (case, tar) in [
        ("entries", many.finish()),
        (
            "bytes",
            Tar::default().file("x", &noise(5 << 20, 3)[..2 << 20]).file("y", &vec![7; 3 << 20]).finish(),
        ),
        ("ratio", Tar::default().file("x", &vec![0; 3 << 20]).finish()),
        ("compressed", Tar::default().file("x", &noise(4 << 20, 5)).finish()),
    ] {
        let (root, _images, result) = pull_with(&[tar], limits).await;
        exceeded(result.expect_err(case));
        assert_eq!(left_over(root.path()), Vec::<String>::new(), "{case}");
    }
    pull_with(&[simple("etc/a", b"fine")], limits).await.2.unwrap();
}
