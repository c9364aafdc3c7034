//! Images through the CRI: pull, status, list, remove, and what lands in the root file system.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_cri::v1::{ImageFilter, ImageFsInfoRequest, ListImagesRequest, RemoveImageRequest};
use libtest_mimic::Trial;
use serde_json::json;

use crate::support::World;
use crate::support::fault::{FaultRegistry, Reply, serve_image};
use crate::support::image::{Blob, Image, Layer, Packing, many_layers};
use crate::support::spec::script;
use crate::support::world::image_spec;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        by_tag_by_digest_by_id,
        list_and_filter,
        removal,
        packings_and_media_types,
        layers_on_layers,
        an_index_chooses_the_platform,
        one_transfer_for_many_pulls,
        an_interrupted_pull_goes_on,
        file_system_usage,
        survives_a_restart,
        killed_while_pulling,
        in_use_by_a_container,
    ]
}

async fn remove(world: &World, reference: &str) {
    let request = RemoveImageRequest { image: Some(image_spec(reference)) };
    world.images().remove_image(request).await.unwrap();
}

async fn by_tag_by_digest_by_id(world: &mut World) {
    let image = Image::busybox(json!({"Cmd": ["true"], "Labels": {"test": "by"}}));
    let reference = world.registry.push("test/by", "1", &image);
    let digest = format!("{}/test/by@{}", world.registry.host(), image.manifest().digest);
    assert!(world.image_status(&reference).await.unwrap().is_none());
    let pulled = world.pull(&reference).await.unwrap();
    assert_eq!(pulled, world.pull(&reference).await.unwrap(), "a stable reference");
    let status = world.image_status(&reference).await.unwrap().unwrap();
    assert_eq!(status.id, image.id());
    assert_eq!(status.repo_tags, [reference.as_str()]);
    assert_eq!(status.repo_digests, [digest.as_str()]);
    assert!(status.size > 100_000);
    for name in [&pulled, &digest, &image.id(), &image.id()["sha256:".len()..].to_owned()] {
        let other = world.image_status(name).await.unwrap();
        assert_eq!(other.as_ref(), Some(&status), "{name}");
    }
    remove(world, &reference).await;
    assert!(world.image_status(&reference).await.unwrap().is_none());
    world.pull(&digest).await.unwrap();
    let status = world.image_status(&digest).await.unwrap().unwrap();
    assert!(status.repo_tags.is_empty(), "{status:?}");
}

async fn list_and_filter(world: &mut World) {
    let busybox = world.image("busybox").await;
    let users = world.image("users").await;
    let images = world.list_images().await.unwrap();
    let mut tags: Vec<String> = images.iter().flat_map(|image| image.repo_tags.clone()).collect();
    tags.retain(|tag| !tag.contains("pause"));
    tags.sort();
    assert_eq!(tags, [busybox, users.clone()]);
    let of_users = images.iter().find(|image| image.repo_tags.contains(&users)).unwrap();
    assert_eq!(of_users.username, "web");
    let request = ListImagesRequest { filter: Some(ImageFilter { image: Some(image_spec(&users)) }) };
    let images = world.images().list_images(request).await.unwrap().into_inner().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, [users]);
}

async fn removal(world: &mut World) {
    let image = Image::busybox(json!({"Cmd": ["true"], "Labels": {"test": "removal"}}));
    let one = world.registry.push("test/removal", "1", &image);
    let two = world.registry.push("test/removal", "2", &image);
    world.pull(&one).await.unwrap();
    world.pull(&two).await.unwrap();
    assert_eq!(world.image_status(&image.id()).await.unwrap().unwrap().repo_tags.len(), 2);
    // "Remove the image": all of its references go with it when it is named by its id.
    remove(world, &image.id()).await;
    assert!(world.image_status(&one).await.unwrap().is_none());
    assert!(world.image_status(&two).await.unwrap().is_none());
    remove(world, &one).await;
    remove(world, &image.id()).await;
}

async fn packings_and_media_types(world: &mut World) {
    let layer = || Layer::new().file("packed", 0o644, b"unpacked\n");
    let base = || Image::busybox(json!({"Cmd": ["cat", "/packed"]}));
    let images = [
        ("plain", base().layer(layer(), Packing::Plain)),
        ("gzip", base().layer(layer(), Packing::Gzip)),
        ("zstd", base().layer(layer(), Packing::Zstd)),
        ("docker", base().layer(layer(), Packing::Gzip).docker()),
    ];
    for (name, image) in images {
        let reference = world.registry.push(&format!("test/{name}"), "1", &image);
        world.pull(&reference).await.unwrap();
        let config = crate::support::container("main", &reference, &[]);
        let (output, _) = world.output_of(&world.pod(name), &config).await;
        assert_eq!(output, "unpacked\n", "{name}");
    }
}

async fn layers_on_layers(world: &mut World) {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let image = Image::busybox(json!({"Cmd": ["sh"]}))
        .layer(
            Layer::new()
                .directory("gone/", 0o755)
                .file("gone/file", 0o644, b"x")
                .directory("opaque/", 0o755)
                .file("opaque/old", 0o644, b"x")
                .file("replaced", 0o644, b"old")
                .owned_file("setuid", 0o4755, 12, 34, b"x")
                .file(&long, 0o600, b"long\n")
                .symlink("absolute", "/www/index.html"),
            Packing::Gzip,
        )
        .layer(
            Layer::new()
                .file(".wh.gone", 0o644, b"")
                .directory("opaque/", 0o700)
                .file("opaque/.wh..wh..opq", 0o644, b"")
                .file("opaque/new", 0o644, b"x")
                .file("replaced", 0o644, b"new")
                .hard_link("linked", "replaced"),
            Packing::Gzip,
        );
    let reference = world.registry.push("test/layers", "1", &image);
    world.pull(&reference).await.unwrap();
    let line = format!(
        "ls -d /gone 2>/dev/null; ls /opaque; cat /replaced; echo; stat -c '%a %h' /replaced /linked; \
         stat -c '%a %u %g %Y' /setuid; cat /{long} /absolute; stat -c %a /opaque"
    );
    let (output, status) = world.output_of(&world.pod("layers"), &script("main", &reference, &line)).await;
    assert_eq!(status.exit_code, 0);
    assert_eq!(output, "new\nnew\n644 2\n644 2\n4755 12 34 1700000000\nlong\nIt works.\n700\n");
}

async fn an_index_chooses_the_platform(world: &mut World) {
    let own = Image::busybox(json!({"Cmd": ["echo", "own"]}));
    let other = Image::busybox(json!({"Cmd": ["echo", "other"]})).architecture("s390x");
    let name = "test/index";
    world.registry.push(name, "own", &own);
    world.registry.push(name, "other", &other);
    let entry = |image: &Image, architecture: &str| {
        let mut descriptor = image.manifest().descriptor();
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    };
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&other, "s390x"), entry(&own, architecture)]
    });
    let index = Blob::new("application/vnd.oci.image.index.v1+json", serde_json::to_vec(&index).unwrap());
    let path = format!("/v2/{name}/manifests/1");
    let headers = [("Content-Type", index.media_type.as_str())];
    let put = world.registry.request("PUT", &path, &headers, &index.bytes).unwrap();
    assert_eq!(put.status, 201, "{}", put.text());
    let reference = format!("{}/{name}:1", world.registry.host());
    world.pull(&reference).await.unwrap();
    let status = world.image_status(&reference).await.unwrap().unwrap();
    assert_eq!(status.id, own.id());
    assert_eq!(status.repo_digests, [format!("{}/{name}@{}", world.registry.host(), index.digest)]);
}

async fn one_transfer_for_many_pulls(world: &mut World) {
    let image = many_layers(3, 3, 7);
    let layer = image.blobs()[1].digest.clone();
    let served = image.clone();
    let registry = FaultRegistry::start(&world.netns, move |request| {
        if request.path.contains("/blobs/") {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        serve_image(&served, request)
    });
    plain_http(world, &registry);
    let references: Vec<String> = (0..8).map(|number| format!("{}/many/{number}:1", registry.host)).collect();
    let same = vec![references[0].clone(); 8];
    for answer in futures::future::join_all(same.iter().map(|reference| world.pull(reference))).await {
        answer.unwrap();
    }
    assert_eq!(registry.count(&format!("GET /v2/many/0/blobs/{layer}")), 1);
}

/// Tells the daemon to speak plain HTTP with this registry.
pub(crate) fn plain_http(world: &World, registry: &FaultRegistry) {
    let directory = world.daemon.certs.join(&registry.host);
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!("server = \"http://{}\"\n", registry.host);
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

async fn an_interrupted_pull_goes_on(world: &mut World) {
    if !world.is_berth() {
        return; // containerd resumes by range, but our small server does not answer ranges the way it wants
    }
    let image = many_layers(2, 8, 11);
    let layer = image.blobs()[0].clone();
    let count = Arc::new(AtomicUsize::new(0));
    let (served, seen) = (image.clone(), count.clone());
    let half = layer.bytes.len() / 2;
    let registry = FaultRegistry::start(&world.netns, move |request| {
        if !request.path.ends_with(&layer.digest) {
            return serve_image(&served, request);
        }
        if seen.fetch_add(1, Ordering::SeqCst) == 0 {
            return Reply::Cut(layer.bytes.clone(), half);
        }
        match request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok())
        {
            Some(from) => {
                let last = layer.bytes.len() - 1;
                let range = format!("bytes {from}-{last}/{}", layer.bytes.len());
                Reply::Full(206, vec![("Content-Range".into(), range)], layer.bytes[from..].to_vec())
            }
            None => serve_image(&served, request),
        }
    });
    plain_http(world, &registry);
    let reference = format!("{}/cut/image:1", registry.host);
    // Whether one call tries again by itself or the kubelet's next one does: the transfer goes on.
    if world.pull(&reference).await.is_err() {
        world.pull(&reference).await.unwrap();
    }
    assert!(count.load(Ordering::SeqCst) >= 2);
    assert!(world.image_status(&reference).await.unwrap().is_some());
}

async fn file_system_usage(world: &mut World) {
    let usage = async || {
        let info = world.images().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        info.image_filesystems[0].clone()
    };
    let deadline = crate::support::within(20);
    let before = usage().await.used_bytes.map_or(0, |bytes| bytes.value);
    world.image("busybox").await;
    loop {
        let now = usage().await;
        let mount = now.fs_id.as_ref().unwrap().mountpoint.clone();
        assert!(now.timestamp > 0);
        assert!(world.daemon.root.starts_with(&mount) || mount.starts_with('/'), "{mount}");
        if now.used_bytes.unwrap().value > before + 1_000_000 && now.inodes_used.unwrap().value > 100 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the usage does not grow");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn survives_a_restart(world: &mut World) {
    let reference = world.image("users").await;
    let before = world.image_status(&reference).await.unwrap();
    world.crash_and_restart().await;
    assert_eq!(world.image_status(&reference).await.unwrap(), before);
    let (output, _) =
        world.output_of(&world.pod("again"), &script("main", &reference, "cat /www/index.html")).await;
    assert_eq!(output, "It works.\n");
}

/// After a SIGKILL in the middle of a pull no image is half there, and the next pull gets it right.
async fn killed_while_pulling(world: &mut World) {
    for (number, moment) in [5, 60, 150, 300, 600].into_iter().enumerate() {
        let layer =
            |name: &str| Layer::new().file(name, 0o644, &crate::support::image::noise(2_000_000, moment));
        let image = Image::busybox(json!({"Cmd": ["sh"]}))
            .layer(layer("one"), Packing::Gzip)
            .layer(layer("two"), Packing::Zstd);
        let registry = FaultRegistry::start(&world.netns, move |request| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            serve_image(&image, request)
        });
        plain_http(world, &registry);
        let reference = format!("{}/killed/{number}:1", registry.host);
        crate::restart::killed_during(world, moment, world.pull(&reference)).await;
        world.crash_and_restart().await;
        if world.image_status(&reference).await.unwrap().is_none() {
            world.pull(&reference).await.unwrap();
        }
        let line = "cmp /one /two && wc -c < /one && cat /www/index.html";
        let (output, _) = world.output_of(&world.pod("whole"), &script("main", &reference, line)).await;
        assert_eq!(output, "2000000\nIt works.\n");
    }
}

/// Removing an image does not pull the floor from under a container that runs from it.
async fn in_use_by_a_container(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("user").await;
    let reference = world.reference("busybox");
    let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
    let _ = world.images().remove_image(request).await;
    assert_eq!(world.sh(&id, "cat /www/index.html; ls /bin/busybox").await, "It works.\n/bin/busybox");
}
