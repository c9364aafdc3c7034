//! Containers: create, start, stop, remove, status, list, and what their configuration says.

use std::time::{Duration, Instant};

use k8s_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ImageSpec, ListContainersRequest, Mount,
    NamespaceMode,
};
use libtest_mimic::Trial;
use serde_json::json;
use tonic::Code;

use crate::support::image::{Image, Layer, Packing};
use crate::support::spec::{ContainerOptions, script};
use crate::support::world::assert_code;
use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        life_of_a_container,
        command_and_arguments,
        environment_and_directory,
        exit_codes_and_reasons,
        stop_sends_the_images_signal,
        stop_right_after_the_start,
        stop_kills_after_the_grace_period,
        stop_kills_everything_in_the_cgroup,
        start_needs_a_created_container,
        remove_ends_a_running_container,
        removing_a_pod_removes_its_containers,
        list_filters,
        status_carries_what_was_asked,
        bind_mounts,
        terminal,
        standard_input_is_empty,
        image_volumes,
        images_as_volumes,
        read_only_root,
        the_writable_layer_is_the_containers_own,
    ]
}

async fn life_of_a_container(world: &mut World) {
    let pod = world.pod("life");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let config =
        script("main", &image, "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    let id = world.create(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(id.len(), 64, "{id}");
    let status = world.status(&id).await.unwrap();
    assert_eq!(status.state, i32::from(ContainerState::ContainerCreated));
    assert_eq!((status.started_at, status.finished_at, status.exit_code), (0, 0, 0));

    world.start_container(&id).await.unwrap();
    let status = world.status(&id).await.unwrap();
    assert_eq!(status.state, i32::from(ContainerState::ContainerRunning));
    assert!(status.started_at >= status.created_at);
    wait_for_log(world, &pod, &config, "up\n").await;

    world.stop_container(&id, 10).await.unwrap();
    let status = world.status(&id).await.unwrap();
    assert_eq!(status.state, i32::from(ContainerState::ContainerExited));
    assert_eq!(status.exit_code, 7);
    assert_eq!(status.reason, "Error");
    assert!(status.finished_at >= status.started_at);
    assert_eq!(world.log_text(&pod, &config), "up\nbye\n");
    world.stop_container(&id, 10).await.unwrap();

    world.remove_container(&id).await.unwrap();
    assert_code(world.status(&id).await, Code::NotFound);
    world.remove_container(&id).await.unwrap();
}

/// Waits until the container's output begins with `text`.
pub(crate) async fn wait_for_log(
    world: &World,
    pod: &k8s_cri::v1::PodSandboxConfig,
    config: &k8s_cri::v1::ContainerConfig,
    text: &str,
) {
    let deadline = within(10);
    while !world.log_text(pod, config).starts_with(text) {
        assert!(Instant::now() < deadline, "no {text:?} in {:?}", world.log_text(pod, config));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn command_and_arguments(world: &mut World) {
    let image = world.image("entry").await;
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&[], &[], "entry cmd\n"),
        (&[], &["a", "b c"], "entry a b c\n"),
        (&["echo", "own"], &[], "own\n"),
        (&["echo"], &["$HOME", "x"], "$HOME x\n"),
    ];
    for (command, arguments, expected) in cases {
        let pod = world.pod("words");
        let mut config = container("main", &image, command);
        config.args = arguments.iter().map(|&word| word.to_owned()).collect();
        let (output, status) = world.output_of(&pod, &config).await;
        assert_eq!(output, expected, "{command:?} {arguments:?}");
        assert_eq!(status.exit_code, 0);
    }
}

async fn environment_and_directory(world: &mut World) {
    let image = world.image("entry").await;
    let mut config = script("main", &image, "echo $FROM $KEEP $NEW $HOSTNAME; pwd");
    config.env("FROM", "pod");
    config.env("NEW", "new");
    let pod = world.pod("host-name");
    let (output, _) = world.output_of(&pod, &config).await;
    assert_eq!(output, "pod image new host-name\n/work\n");
    config.working_dir = "/made/by/the/runtime".to_owned();
    let (output, _) = world.output_of(&world.pod("host-name"), &config).await;
    assert!(output.ends_with("/made/by/the/runtime\n"), "{output}");
}

async fn exit_codes_and_reasons(world: &mut World) {
    let image = world.image("busybox").await;
    for (line, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 3", 3, "Error"), ("kill -9 $$; sleep 9", 137, "Error")]
    {
        // A shell as PID 1 is not killed by its own signals: it runs below another.
        let line = format!("sh -c '{line}'; exit $?");
        let (_, status) = world.output_of(&world.pod("exit"), &script("main", &image, &line)).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{line}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0);
    }
}

async fn stop_sends_the_images_signal(world: &mut World) {
    let image = world.image("signals").await;
    let pod = world.pod("signal");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = script(
        "main",
        &image,
        "trap 'exit 5' USR1; trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done",
    );
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    wait_for_log(world, &pod, &config, "up").await;
    world.stop_container(&id, 10).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().exit_code, 5);
}

/// A process that has no handler yet, as the first of its namespace, does not hear a signal; it is asked again when it has one.
async fn stop_right_after_the_start(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("early");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let late = "echo up; sleep 1; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let config = script("main", &image, late);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    wait_for_log(world, &pod, &config, "up").await;
    world.stop_container(&id, 90).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().exit_code, 7);
}

async fn stop_kills_after_the_grace_period(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("deaf").await;
    let start = Instant::now();
    world.stop_container(&id, 1).await.unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!(world.status(&id).await.unwrap().exit_code, 137);
}

/// Without a PID namespace of its own nothing but the cgroup holds a container's processes together.
async fn stop_kills_everything_in_the_cgroup(world: &mut World) {
    let mut pod = world.pod("family");
    let security = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Node.into();
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let line = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 77; done' & done; \
                echo up; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let mut config = script("main", &image, line);
    config.security().namespace_options.as_mut().unwrap().pid = NamespaceMode::Node.into();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    wait_for_log(world, &pod, &config, "up").await;
    world.stop_container(&id, 10).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerExited));
    world.remove_container(&id).await.unwrap();
    // The rest of the proof is the leak check: no process in the world's cgroups.
}

async fn start_needs_a_created_container(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("twice").await;
    world.start_container(&id).await.unwrap_err();
    world.stop_container(&id, 0).await.unwrap();
    world.start_container(&id).await.unwrap_err();
    assert_code(world.start_container(&"f".repeat(64)).await, Code::NotFound);
}

async fn remove_ends_a_running_container(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("remove").await;
    world.remove_container(&id).await.unwrap();
    assert_code(world.status(&id).await, Code::NotFound);
    assert!(world.list_containers().await.unwrap().is_empty());
}

async fn removing_a_pod_removes_its_containers(world: &mut World) {
    let (pod_id, running) = world.pod_with_sleeper("cascade").await;
    world.remove_pod(&pod_id).await.unwrap();
    assert_code(world.status(&running).await, Code::NotFound);
    world.no_leaks();
}

async fn list_filters(world: &mut World) {
    let (pod_a, a) = world.pod_with_sleeper("a").await;
    let pod = world.pod("b");
    let pod_b = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("other", &image, &["true"]);
    config.labels.insert("kind".into(), "other".into());
    let b = world.create(&pod_b, &pod, &config).await.unwrap();
    let list = async |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter) };
        let items = world.runtime().list_containers(request).await.unwrap().into_inner().containers;
        items.into_iter().map(|item| item.id).collect::<Vec<_>>()
    };
    assert_eq!(list(ContainerFilter::default()).await.len(), 2);
    assert_eq!(list(ContainerFilter { id: a[..10].into(), ..Default::default() }).await, [a.as_str()]);
    let of_pod = |id: &str| ContainerFilter { pod_sandbox_id: id.into(), ..Default::default() };
    assert_eq!(list(of_pod(&pod_a)).await, [a.as_str()]);
    assert_eq!(list(of_pod(&pod_b[..10])).await, [b.as_str()]);
    let state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(list(state(ContainerState::ContainerRunning)).await, [a]);
    assert_eq!(list(state(ContainerState::ContainerCreated)).await, [b.as_str()]);
    assert!(list(state(ContainerState::ContainerExited)).await.is_empty());
    let label =
        ContainerFilter { label_selector: [("kind".into(), "other".into())].into(), ..Default::default() };
    assert_eq!(list(label).await, [b]);
}

async fn status_carries_what_was_asked(world: &mut World) {
    let pod = world.pod("status");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "1000"]);
    config.labels.insert("a".into(), "b".into());
    config.annotations.insert("c".into(), "d".into());
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let status = world.status(&id[..20]).await.unwrap();
    assert_eq!(status.id, id);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.log_path, format!("{}/main.log", pod.log_directory));
    let known = world.image_status(&image).await.unwrap().unwrap();
    assert!(known.repo_digests.contains(&status.image_ref) || known.id == status.image_ref, "{status:?}");
    assert_eq!(status.image.unwrap().image, image);
    if world.is_berth() {
        assert_eq!(status.image_id, known.id);
    }
}

async fn bind_mounts(world: &mut World) {
    let source = world.run.join("source");
    std::fs::create_dir_all(source.join("deep")).unwrap();
    std::fs::write(source.join("file"), "content\n").unwrap();
    let image = world.image("busybox").await;
    let mount = |target: &str, source: &std::path::Path, readonly| Mount {
        container_path: target.into(),
        host_path: source.to_str().unwrap().into(),
        readonly,
        ..Default::default()
    };
    let line = "cat /rw/file; echo new > /rw/deep/made; cat /one; touch /ro/x 2>/dev/null || echo refused; \
                grep -c ' /ro ' /proc/mounts";
    let mut config = script("main", &image, line);
    config.mounts = vec![
        mount("/rw", &source, false),
        mount("/ro", &source, true),
        mount("/one", &source.join("file"), true),
    ];
    let (output, _) = world.output_of(&world.pod("mounts"), &config).await;
    assert_eq!(output, "content\ncontent\nrefused\n1\n");
    assert_eq!(std::fs::read_to_string(source.join("deep/made")).unwrap(), "new\n");
}

async fn terminal(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = script("main", &image, "test -t 0 && test -t 1 && test -t 2 && tty; stty size");
    config.tty = true;
    config.stdin = true;
    let (output, status) = world.output_of(&world.pod("tty"), &config).await;
    assert!(output.starts_with("/dev/pts/0"), "{output:?}");
    assert_eq!(status.exit_code, 0);
}

async fn standard_input_is_empty(world: &mut World) {
    let image = world.image("busybox").await;
    let (output, status) = world.output_of(&world.pod("stdin"), &script("main", &image, "wc -c")).await;
    assert_eq!((output.trim(), status.exit_code), ("0", 0));
}

async fn image_volumes(world: &mut World) {
    let image = world.image("volume").await;
    let mut config = script("main", &image, "echo kept > /data/file && cat /data/file");
    config.security().readonly_rootfs = true;
    let (output, status) = world.output_of(&world.pod("volume"), &config).await;
    assert_eq!((output.as_str(), status.exit_code), ("kept\n", 0));
}

/// Of one layer and of many, on any kernel, by any runtime.
async fn images_as_volumes(world: &mut World) {
    let mut model = Image::new(json!({}));
    for number in 0..20 {
        let layer =
            Layer::new().file(&format!("part-{number}"), 0o644, b"x").file("last", 0o644, &[b'a' + number]);
        model = model.layer(layer, Packing::Gzip);
    }
    world.registry.push("test/model", "1", &model);
    let (model, one) = (world.image("model").await, world.image("web").await);
    let volume = |path: &str, image: &str| Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        ..Default::default()
    };
    let line = "ls /many | wc -l; cat /many/last /many/part-0; echo; touch /many/x 2>/dev/null || echo refused; \
                test -x /one/bin/busybox && ! touch /one/x 2>/dev/null && grep -c ' /many overlay ro' /proc/mounts";
    let image = world.image("busybox").await;
    for handler in ["", "runc", "crun"] {
        let pod = world.pod("model");
        let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
        let mut config = script("main", &image, line);
        config.mounts = vec![volume("/many", &model), volume("/one", &one)];
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        assert_eq!(world.wait_exit(&id).await.exit_code, 0);
        assert_eq!(world.log_text(&pod, &config), "21\ntx\nrefused\n1\n", "{handler:?}");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.lines().any(|line| line.contains(" overlay ") && line.contains(&id)), "{table}");
    }
}

async fn read_only_root(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config =
        script("main", &image, "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo ok");
    config.security().readonly_rootfs = true;
    let (output, _) = world.output_of(&world.pod("readonly"), &config).await;
    assert_eq!(output, "refused\nok\n");
}

async fn the_writable_layer_is_the_containers_own(world: &mut World) {
    let image = world.image("busybox").await;
    let line = "ls /mark 2>/dev/null; echo x > /mark; rm /www/index.html; ls /www";
    for _ in 0..2 {
        let (output, status) = world.output_of(&world.pod("layer"), &script("main", &image, line)).await;
        assert_eq!((output.as_str(), status.exit_code), ("", 0));
    }
}
