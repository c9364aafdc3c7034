//! Everything that can be wrong with what comes in: the error names it, and nothing is left behind.

use std::time::{Duration, Instant};

use k8s_cri::v1::{
    ContainerState, CreateContainerRequest, Mount, PodSandboxConfig, Protocol, RunPodSandboxRequest,
};
use libtest_mimic::Trial;
use serde_json::json;
use tonic::Code;

use crate::images::plain_http;
use crate::support::fault::{FaultRegistry, Reply, serve_image};
use crate::support::image::{Image, Layer, Packing, many_layers};
use crate::support::runtime::Options;
use crate::support::spec::{PodOptions, script};
use crate::support::world::assert_code;
use crate::support::{World, container};
use crate::{network, trials};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        unknown_image,
        wrong_digest,
        truncated_blob,
        registry_errors,
        a_registry_that_hangs,
        no_manifest_for_this_platform,
        hostile_layers,
        garbage_for_a_manifest,
        unknown_handler_pod_container,
        missing_metadata,
        host_port_taken,
        missing_mount_source,
        command_not_found,
        working_directory_is_a_file,
        missing_log_directory,
        bad_references,
        impossible_configuration,
    ];
    let small = Options { subnets: vec!["10.85.0.0/29".into()], ..Options::default() };
    trials.extend(trials!(options = small.clone(); address_pool_exhausted));
    let impatient = Options {
        images: "progress_timeout = \"2s\"
"
        .to_owned(),
        ..Options::default()
    };
    trials.extend(trials!(options = impatient.clone(); a_transfer_that_stalls));
    trials
}

async fn unknown_image(world: &mut World) {
    let reference = world.reference("no-such-image");
    let error = world.pull(&reference).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    assert!(error.message().contains("no-such-image"), "{error:?}");
    let pod = world.pod("unknown");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let error = world.create(&pod_id, &pod, &container("main", &reference, &["true"])).await.unwrap_err();
    assert!(error.message().contains("no-such-image"), "{error:?}");
    assert!(world.image_status(&reference).await.unwrap().is_none());
}

async fn wrong_digest(world: &mut World) {
    let mut image = many_layers(2, 1, 3);
    image.forge_layer_digest(1);
    let forged = image.blobs()[1].digest.clone();
    let registry = FaultRegistry::start(&world.netns, move |request| serve_image(&image, request));
    plain_http(world, &registry);
    let error = world.pull(&format!("{}/forged/image:1", registry.host)).await.unwrap_err();
    assert!(error.message().contains(&forged), "{error:?}");
    assert!(
        world
            .list_images()
            .await
            .unwrap()
            .iter()
            .all(|image| image.repo_tags.is_empty() || !image.repo_tags[0].contains("forged"))
    );
}

async fn truncated_blob(world: &mut World) {
    let image = many_layers(1, 2, 4);
    let layer = image.blobs()[0].clone();
    let registry = FaultRegistry::start(&world.netns, move |request| {
        if request.path.ends_with(&layer.digest) {
            Reply::Cut(layer.bytes.clone(), layer.bytes.len() / 3)
        } else {
            serve_image(&image, request)
        }
    });
    plain_http(world, &registry);
    let reference = format!("{}/cut/image:1", registry.host);
    let call = tokio::time::timeout(Duration::from_secs(90), world.pull(&reference));
    call.await.expect("an end").unwrap_err();
    assert!(world.image_status(&reference).await.unwrap().is_none());
}

async fn registry_errors(world: &mut World) {
    for (status, codes) in [
        (401, [Code::Unauthenticated, Code::PermissionDenied]),
        (403, [Code::PermissionDenied, Code::Unauthenticated]),
        (404, [Code::NotFound, Code::NotFound]),
        (429, [Code::ResourceExhausted, Code::Unavailable]),
        (500, [Code::Unavailable, Code::Internal]),
    ] {
        let registry = FaultRegistry::start(&world.netns, move |_| Reply::status(status));
        plain_http(world, &registry);
        let reference = format!("{}/bad/image:1", registry.host);
        let call = tokio::time::timeout(Duration::from_secs(60), world.pull(&reference));
        let error = call.await.expect("an end").unwrap_err();
        assert!(error.message().contains(&registry.host), "{status}: {error:?}");
        if world.is_berth() {
            assert!(codes.contains(&error.code()), "{status}: {error:?}");
            assert!(error.message().contains(&status.to_string()), "{status}: {error:?}");
        }
    }
}

/// Nothing comes: the call can be cancelled, and other pulls are not held up.
async fn a_registry_that_hangs(world: &mut World) {
    let registry = FaultRegistry::start(&world.netns, |_| Reply::Hang);
    plain_http(world, &registry);
    let reference = format!("{}/slow/image:1", registry.host);
    let (slow, fast) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(3), world.pull(&reference)),
        tokio::time::timeout(Duration::from_secs(3), world.image("busybox"))
    );
    assert!(slow.is_err(), "still hanging");
    fast.expect("not held up");
}

async fn a_transfer_that_stalls(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let image = many_layers(1, 2, 5);
    let layer = image.blobs()[0].clone();
    let registry = FaultRegistry::start(&world.netns, move |request| {
        if request.path.ends_with(&layer.digest) {
            Reply::Stall(layer.bytes.clone(), layer.bytes.len() / 3)
        } else {
            serve_image(&image, request)
        }
    });
    plain_http(world, &registry);
    let start = Instant::now();
    let reference = format!("{}/stall/image:1", registry.host);
    let call = tokio::time::timeout(Duration::from_secs(60), world.pull(&reference));
    let error = call.await.expect("an end").unwrap_err();
    assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Unavailable), "{error:?}");
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

async fn no_manifest_for_this_platform(world: &mut World) {
    let image = Image::busybox(json!({})).architecture("s390x");
    world.registry.push("test/foreign", "s390x", &image);
    let mut entry = image.manifest().descriptor();
    entry["platform"] = json!({"architecture": "s390x", "os": "linux"});
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]
    });
    let headers = [("Content-Type", "application/vnd.oci.image.index.v1+json")];
    let body = serde_json::to_vec(&index).unwrap();
    world.registry.request("PUT", "/v2/test/foreign/manifests/1", &headers, &body).unwrap();
    let reference = world.reference("foreign");
    let error = world.pull(&reference).await.unwrap_err();
    if world.is_berth() {
        assert!(error.message().contains("linux/"), "{error:?}");
    }
    assert!(world.image_status(&reference).await.unwrap().is_none());
}

async fn hostile_layers(world: &mut World) {
    use tar::EntryType::{Link, Regular, Symlink};
    let outside = world.disk.join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    let up = format!("{}{}/up", "../".repeat(12), outside.display());
    let directory = outside.to_str().unwrap().as_bytes();
    let secret = outside.join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let bad = b"written\n".as_slice();
    let cases = [
        ("parent-name", Layer::new().raw(Regular, up.as_bytes(), None, bad)),
        ("dotted-name", Layer::new().raw(Regular, b"a/../../../../../../../../../x", None, bad)),
        ("hard-link-out", Layer::new().raw(Link, b"taken", Some(secret.to_str().unwrap().as_bytes()), b"")),
    ];
    // Links are followed as the container will see them: inside.
    let harmless = [
        (
            "through-link",
            Layer::new().raw(Symlink, b"door", Some(directory), b"").raw(Regular, b"door/in", None, bad),
        ),
        (
            "through-relative-link",
            Layer::new()
                .raw(Symlink, b"door", Some(&[b"../../../../../../../../..", directory].concat()), b"")
                .raw(Regular, b"door/in", None, bad),
        ),
    ];
    let cases =
        cases.into_iter().map(|case| (case, true)).chain(harmless.into_iter().map(|case| (case, false)));
    for ((name, layer), refused) in cases {
        let image = Image::busybox(json!({"Cmd": ["true"]})).layer(layer, Packing::Plain);
        let reference = world.registry.push(&format!("hostile/{name}"), "1", &image);
        let answer = world.pull(&reference).await;
        if !refused {
            answer.expect(name);
        } else if world.is_berth() {
            let error = answer.expect_err(name);
            assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error:?}");
            assert!(world.image_status(&reference).await.unwrap().is_none(), "{name}");
        }
        let found: Vec<_> = std::fs::read_dir(&outside).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(found, ["secret"], "{name}: written outside");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1, "{name}: linked from outside");
    }
}

async fn garbage_for_a_manifest(world: &mut World) {
    for body in ["", "{", "[]", "{\"schemaVersion\":1}", "{\"schemaVersion\":2,\"layers\":[{}]}", "<html>"] {
        let registry = FaultRegistry::start(&world.netns, move |_| {
            let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
            Reply::Full(200, vec![("Content-Type".into(), kind)], body.as_bytes().to_vec())
        });
        plain_http(world, &registry);
        let reference = format!("{}/garbage/image:1", registry.host);
        let call = tokio::time::timeout(Duration::from_secs(30), world.pull(&reference));
        call.await.expect("an end").expect_err(body);
    }
}

async fn unknown_handler_pod_container(world: &mut World) {
    let error = world.run_pod_with(&world.pod("handler"), "nonesuch").await.unwrap_err();
    assert!(error.message().contains("nonesuch"), "{error:?}");
    let unknown = "1".repeat(64);
    let image = world.image("busybox").await;
    let pod = world.pod("none");
    let config = container("main", &image, &["true"]);
    assert_code(world.create(&unknown, &pod, &config).await, Code::NotFound);
    assert_code(world.pod_status(&unknown).await, Code::NotFound);
    assert_code(world.status(&unknown).await, Code::NotFound);
    assert_code(world.start_container(&unknown).await, Code::NotFound);
    let stopped = world.run_pod(&pod).await.unwrap();
    world.stop_pod(&stopped).await.unwrap();
    world.create(&stopped, &pod, &config).await.expect_err("in a stopped pod");
}

async fn missing_metadata(world: &mut World) {
    let run = async |config: Option<PodSandboxConfig>| {
        let request = RunPodSandboxRequest { config, runtime_handler: String::new() };
        world.runtime().run_pod_sandbox(request).await.unwrap_err()
    };
    let mut nameless = world.pod("nameless");
    nameless.metadata.as_mut().unwrap().name = String::new();
    let errors = [run(None).await, run(Some(PodSandboxConfig::default())).await, run(Some(nameless)).await];
    let pod = world.pod("there");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let create = async |config| {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.clone(),
            config,
            sandbox_config: Some(pod.clone()),
        };
        world.runtime().create_container(request).await.unwrap_err()
    };
    let image = world.image("busybox").await;
    let mut anonymous = container("x", &image, &["true"]);
    anonymous.metadata = None;
    let mut pictureless = container("x", &image, &["true"]);
    pictureless.image = None;
    let more = [create(None).await, create(Some(anonymous)).await, create(Some(pictureless)).await];
    if world.is_berth() {
        for error in errors.into_iter().chain(more) {
            assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        }
    }
}

async fn address_pool_exhausted(world: &mut World) {
    // A /29 holds five pods beside network, gateway and broadcast.
    let mut ids = Vec::new();
    let error = loop {
        match world.run_pod(&world.pod(&format!("pod-{}", ids.len()))).await {
            Ok(id) => ids.push(id),
            Err(error) => break error,
        }
        assert!(ids.len() < 8, "more pods than addresses");
    };
    assert_eq!(ids.len(), 5);
    if world.is_berth() {
        assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
        assert!(error.message().contains("10.85.0.0/29"), "{error:?}");
    }
    assert_eq!(world.list_pods().await.unwrap().iter().filter(|pod| pod.state == 0).count(), 5);
    world.remove_pod(&ids[2]).await.unwrap();
    world.run_pod(&world.pod("after")).await.unwrap();
}

async fn host_port_taken(world: &mut World) {
    let mut first = world.pod("first");
    first.publish(Protocol::Tcp, 18090, 80);
    let owner = network::web(world, &first).await;
    if !world.is_berth() {
        return; // the portmap plugin checks nothing
    }
    let mut second = world.pod("second");
    second.publish(Protocol::Tcp, 18090, 81);
    let error = world.run_pod(&second).await.unwrap_err();
    assert!(error.message().contains("18090"), "{error:?}");
    assert_eq!(world.fetch("127.0.0.1:18090").text(), "It works.\n");
    world.remove_pod(&owner).await.unwrap();
    world.run_pod(&second).await.unwrap();
}

async fn missing_mount_source(world: &mut World) {
    let pod = world.pod("mount");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["true"]);
    let path = world.run.join("no/such/source");
    config.mounts = vec![Mount {
        container_path: "/mnt".into(),
        host_path: path.to_str().unwrap().into(),
        ..Default::default()
    }];
    if world.is_berth() {
        let error = match world.create(&pod_id, &pod, &config).await {
            Ok(id) => world.start_container(&id).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(error.message().contains(path.to_str().unwrap()), "{error:?}");
        assert!(!path.exists());
    }
}

async fn working_directory_is_a_file(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("directory");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["true"]);
    config.working_dir = "/etc/passwd".into();
    let error = match world.create(&pod_id, &pod, &config).await {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("/etc/passwd"), "{error:?}");
    assert!(error.message().contains("working directory") || !world.is_berth(), "{error:?}");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
}

async fn command_not_found(world: &mut World) {
    let image = world.image("busybox").await;
    for command in ["/no/such/command", "not-in-path", "/bin/not-executable", "/etc"] {
        let pod = world.pod("command");
        let pod_id = world.run_pod(&pod).await.unwrap();
        let config = container("main", &image, &[command]);
        let id = match world.create(&pod_id, &pod, &config).await {
            Ok(id) => id,
            Err(error) => {
                assert!(error.message().contains(command), "{error:?}");
                continue;
            }
        };
        let error = world.start_container(&id).await.unwrap_err();
        assert!(error.message().contains(command), "{error:?}");
        if world.is_berth() {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        }
        let status = world.status(&id).await.unwrap();
        assert_eq!(status.state, i32::from(ContainerState::ContainerExited), "{status:?}");
        assert_ne!(status.exit_code, 0);
        if world.is_berth() {
            assert_eq!(status.reason, "ContainerCannotRun");
            assert!(status.exit_code == 127 || status.exit_code == 126 || status.exit_code == 128);
            assert!(status.message.contains(command), "{status:?}");
        }
    }
}

async fn missing_log_directory(world: &mut World) {
    let mut pod = world.pod("logless");
    pod.log_directory = world.run.join("never/made").to_str().unwrap().to_owned();
    let image = world.image("busybox").await;
    // Either the runtime makes the directory (containerd does), or it says which one is missing.
    let config = script("main", &image, "echo hello");
    let pod_id = match world.run_pod(&pod).await {
        Ok(id) => id,
        Err(error) => return assert!(error.message().contains("never/made"), "{error:?}"),
    };
    match world.create(&pod_id, &pod, &config).await {
        Ok(id) => match world.start_container(&id).await {
            Ok(()) => {
                world.wait_exit(&id).await;
                assert_eq!(world.log_text(&pod, &config), "hello\n");
            }
            Err(error) => assert!(error.message().contains("never/made"), "{error:?}"),
        },
        Err(error) => assert!(error.message().contains("never/made"), "{error:?}"),
    }
}

async fn bad_references(world: &mut World) {
    let long = format!("127.0.0.1:5000/{}:1", "x".repeat(5000));
    for reference in
        ["", "127.0.0.1:5000/UPPER/case:1", "a b", "127.0.0.1:5000/x@sha256:123", "-", "a:b:c", "..", &long]
    {
        let error = world.pull(reference).await.expect_err(reference);
        if world.is_berth() {
            assert_eq!(error.code(), Code::InvalidArgument, "{reference}: {error:?}");
        }
    }
    let request = k8s_cri::v1::PullImageRequest::default();
    world.images().pull_image(request).await.unwrap_err();
}

async fn impossible_configuration(world: &mut World) {
    let pod = world.pod("impossible");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let attempt = async |change: fn(&mut k8s_cri::v1::ContainerConfig)| {
        let mut config = container("main", &image, &["true"]);
        change(&mut config);
        match world.create(&pod_id, &pod, &config).await {
            Ok(id) => {
                let answer = world.start_container(&id).await;
                world.remove_container(&id).await.unwrap();
                answer.unwrap_err()
            }
            Err(error) => error,
        }
    };
    use crate::support::spec::ContainerOptions;
    let error = attempt(|config| config.security().run_as_username = "nobody-here".into()).await;
    assert!(error.message().contains("nobody-here"), "{error:?}");
    let error = attempt(|config| config.resources().cpuset_cpus = "99999".into()).await;
    assert!(!error.message().is_empty(), "{error:?}");
    if world.is_berth() {
        let error = attempt(|config| {
            config.security().capabilities = Some(k8s_cri::v1::Capability {
                add_capabilities: vec!["NO_SUCH_CAPABILITY".into()],
                ..Default::default()
            });
        })
        .await;
        assert!(error.message().contains("NO_SUCH_CAPABILITY"), "{error:?}");
    }
}
