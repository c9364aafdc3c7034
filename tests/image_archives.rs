//! Archives in and out, what survives a power loss, speed.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

#[path = "image_support/support.rs"]
mod support;

use std::process::Command;
use std::time::Instant;

use berth::image::{Digest, Images, Options};
use support::*;

async fn pulled(
    root: &std::path::Path,
    tars: &[Vec<u8>],
) -> (Hostile, Images, std::sync::Arc<berth::image::Image>) {
    let server = Hostile::start(|_| None).await;
    server.put("team/app", "1", &image(tars));
    let images = open(root);
    let image = images.pull(request(&format!("{}/team/app:1", server.host))).await.unwrap();
    (server, images, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_out_comes_in_again_and_others_read_it() {
    let root = root();
    let (_server, images, image) = pulled(root.path(), &[simple("etc/a", b"1"), simple("etc/b", b"2")]).await;
    let archive = root.path().join("archive.tar");
    let file = tokio::fs::File::create(&archive).await.unwrap();
    images.export(&[image.repo_tags[0].clone()], file).await.unwrap();

    let other = support::root();
    let copy = open(other.path());
    let found = copy.import(tokio::fs::File::open(&archive).await.unwrap()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].id, &found[0].repo_tags), (&image.id, &image.repo_tags));
    assert_eq!(std::fs::read(top(&copy, &found[0]).await.join("etc/b")).unwrap(), b"2");
    assert_eq!(left_over(other.path()), Vec::<String>::new());

    // skopeo reads it in both ways, and the store itself as a layout.
    let layout = format!("oci:{}:{}", root.path().join("images").display(), image.repo_tags[0]);
    for source in [
        format!("oci-archive:{}", archive.display()),
        format!("docker-archive:{}", archive.display()),
        layout,
    ] {
        let output = Command::new("skopeo").args(["inspect", "--config", &source]).output().unwrap();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1000:1000"), "{source}");
    }

    // And what skopeo writes in docker's old form comes in.
    let old = root.path().join("old.tar");
    let target = format!("docker-archive:{}:example.test/renamed:2", old.display());
    let output = Command::new("skopeo")
        .args(["copy", "--insecure-policy", &format!("oci-archive:{}", archive.display()), &target])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = copy.import(tokio::fs::File::open(&old).await.unwrap()).await.unwrap();
    assert_eq!(found[0].id, image.id, "the configuration is the same");
    assert!(found[0].repo_tags.contains(&"example.test/renamed:2".to_owned()));
    assert!(open(other.path()).get("example.test/renamed:2").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_are_none_or_lie_are_refused() {
    let blob = format!("blobs/sha256/{}", Digest::of(b"right").hex());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":5}}]}}"#,
        Digest::of(b"absent")
    );
    let docker = br#"[{"Config":"../../etc/passwd","RepoTags":null,"Layers":["/etc/shadow"]}]"#;
    for (case, bytes, words) in [
        ("noise", noise(9000, 1), "broken"),
        ("empty", Vec::new(), "no image"),
        ("other files", Tar::default().file("a", b"b").finish(), "no image"),
        ("damaged", Tar::default().file(&blob, b"wrong").finish(), "damaged"),
        ("missing", Tar::default().file("index.json", index.as_bytes()).finish(), "lacks"),
        ("outside", Tar::default().file("manifest.json", docker).finish(), "lacks"),
        ("no json", Tar::default().file("manifest.json", b"{").finish(), "not readable"),
    ] {
        let root = root();
        let images = open(root.path());
        let error = images.import(std::io::Cursor::new(bytes)).await.expect_err(case);
        assert!(chain(&error).contains(words), "{case}: {}", chain(&error));
        assert_eq!(left_over(root.path()), Vec::<String>::new(), "{case}");
        assert!(images.list().is_empty());
    }
}

/// Platforms side by side in a layout's own index: the name is that of the image for this machine, whichever comes last.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_under_one_name_ours_is_taken() {
    let tar = simple("etc/a", b"1");
    let layers = [(LAYER, gzip(&tar), Digest::of(&tar))];
    let (ours, other) = (made_for("amd64", &layers), made_for("s390x", &layers));
    let entry = |made: &Made, architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": Digest::of(&made.manifest), "size": made.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
            "annotations": {"io.containerd.image.name": "example.test/app:1"}})
    };
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [entry(&ours, "amd64"), entry(&other, "s390x")]});
    let mut archive = Tar::default();
    archive.file("index.json", index.to_string().as_bytes());
    for made in [&ours, &other] {
        for blob in made.blobs.iter().chain([&made.config, &made.manifest]) {
            archive.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
        }
    }
    let root = root();
    let images = open(root.path());
    let found = images.import(std::io::Cursor::new(archive.finish())).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(images.get("example.test/app:1").unwrap().id, ours.id());
    assert_eq!(images.list().len(), 1);
}

/// A layer that is not known to have reached the disk before the power went is made again from its content.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_layers_are_made_again() {
    let root = root();
    let (server, images, image) = pulled(root.path(), &[simple("etc/a", b"1"), simple("etc/b", b"2")]).await;
    drop(images);
    // As if the power had gone before the sync: another boot, and an empty file.
    for entry in std::fs::read_dir(root.path().join("layers")).unwrap() {
        let directory = entry.unwrap().path();
        let record = directory.join("layer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        json["unsynced_boot"] = "another boot".into();
        std::fs::write(&record, json.to_string()).unwrap();
        for name in ["etc/a", "etc/b"] {
            let file = directory.join("fs").join(name);
            if file.exists() {
                std::fs::write(file, "").unwrap();
            }
        }
    }
    let before = server.seen().len();
    let images = open(root.path());
    let again = images.get(&image.id).expect("the image itself is there");
    let dirs = images.lower_dirs(&again).await.unwrap();
    assert_eq!(std::fs::read(dirs[0].join("etc/b")).unwrap(), b"2");
    assert_eq!(std::fs::read(dirs[1].join("etc/a")).unwrap(), b"1");
    assert_eq!(server.seen().len(), before, "nothing is fetched for it");
    drop(images);

    // When its content is torn as well, the next pull fetches that.
    std::fs::remove_dir_all(root.path().join("layers")).unwrap();
    let torn = root.path().join("images/blobs/sha256").join(image.manifest.layers[0].digest.hex());
    let size = std::fs::metadata(&torn).unwrap().len();
    std::fs::write(&torn, vec![0; size as usize]).unwrap();
    let images = open(root.path());
    let again = images.get(&image.id).unwrap();
    images.lower_dirs(&again).await.unwrap_err();
    let again = images.pull(request(&image.repo_tags[0])).await.unwrap();
    assert_eq!(std::fs::read(images.lower_dirs(&again).await.unwrap()[1].join("etc/a")).unwrap(), b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_marked_once_they_are_on_disk() {
    let root = root();
    let (_server, images, image) = pulled(root.path(), &[simple("etc/a", b"1")]).await;
    let record = images.chain_dirs(&image.chain).unwrap()[0].parent().unwrap().join("layer.json");
    for _ in 0..400 {
        if std::fs::read_to_string(&record).unwrap().contains("\"unsynced_boot\":null") {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{}", std::fs::read_to_string(&record).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_unpacked_layers_can_be_let_go() {
    let server = Hostile::start(|_| None).await;
    server.put("a", "1", &image(&[simple("etc/a", b"1")]));
    let root = root();
    let images = Images::open(Options { discard_unpacked_layers: true, ..options(root.path()) }).unwrap();
    images.sweep().await.unwrap();
    let image = images.pull(request(&format!("{}/a:1", server.host))).await.unwrap();
    let blob = root.path().join("images/blobs/sha256").join(image.manifest.layers[0].digest.hex());
    for _ in 0..400 {
        if !blob.exists() {
            drop(images);
            assert_eq!(open(root.path()).list().len(), 1);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the content is still there");
}

/// A damaged index entry does not keep the rest from opening; half-made layers go.
#[tokio::test(flavor = "multi_thread")]
async fn opening_copes_with_what_a_crash_leaves() {
    let root = root();
    let (_server, images, image) = pulled(root.path(), &[simple("etc/a", b"1")]).await;
    drop(images);
    std::fs::create_dir_all(root.path().join("layers/.work-1-1/fs/etc")).unwrap();
    std::fs::create_dir_all(root.path().join("layers/0123456789ab/fs")).unwrap();
    let manifest = root.path().join("images/blobs/sha256").join(image.descriptor.digest.hex());
    let bytes = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, b"torn").unwrap();
    let images = open(root.path());
    assert!(images.list().is_empty());
    assert!(
        !root.path().join("layers/.work-1-1").exists() && !root.path().join("layers/0123456789ab").exists()
    );
    drop(images);
    std::fs::write(&manifest, bytes).unwrap();
    assert_eq!(open(root.path()).list().len(), 1);
}

/// Not a test of speed (machines differ), but prints it: `--nocapture --ignored`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn fifty_megabytes_in_five_layers() {
    let registry = RealRegistry::start("");
    let layers: Vec<Vec<u8>> = (0..5u64)
        .map(|layer| {
            let mut tar = Tar::default();
            for file in 0..300 {
                // Half of it compresses well.
                let mut content = noise(32 << 10, layer * 1000 + file + 1);
                content.resize(64 << 10, b'x');
                tar.file(&format!("usr/share/{layer}/file-{file}"), &content);
            }
            tar.finish()
        })
        .collect();
    let made = image(&layers);
    println!("{} bytes compressed", made.blobs.iter().map(Vec::len).sum::<usize>());
    registry.push("big", "1", &made, None).await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let root = root();
        let images = open(root.path());
        let begin = Instant::now();
        images.pull(request(&format!("{}/big:1", registry.host))).await.unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    println!("pull: median {:?}, all {times:?}", times[2]);
}
