//! Devices by name: what a CDI file says is in the container.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_cri::v1::CdiDevice;
use libtest_mimic::Trial;
use tonic::Code;

use crate::support::spec::script;
use crate::support::world::assert_code;
use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_device_is_in_the_container,
        every_hook_runs,
        unknown_devices_are_named,
        other_runtimes_get_them_too
    ]
}

fn write(world: &World, file: &str, text: &str) {
    let path = world.run.join("cdi").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn device(name: &str) -> CdiDevice {
    CdiDevice { name: name.to_owned() }
}

const GPU: &str = r#"
cdiVersion: "0.7.0"
kind: vendor.test/gpu
containerEdits:
  env: [DRIVER=1]
devices:
  - name: "0"
    containerEdits:
      env: [GPU=zero]
      additionalGids: [4242]
      deviceNodes:
        - {path: /dev/vendor/gpu0, hostPath: /dev/zero, permissions: r}
      mounts:
        - {hostPath: /usr/share, containerPath: /vendor/share, options: [ro, nosuid]}
  - name: "1"
    containerEdits:
      env: [GPU=one]
"#;

async fn check(world: &mut World, handler: &str) {
    if !world.is_berth() {
        return;
    }
    write(world, "etc/gpu.yaml", GPU);
    let image = world.image("busybox").await;
    let pod = world.pod("gpu");
    let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.cdi_devices = vec![device("vendor.test/gpu=0")];
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "echo $DRIVER $GPU; id -G").await, "1 zero\n0 2001 4242");
    assert_eq!(world.sh(&id, "head -c 4 /dev/vendor/gpu0 | wc -c").await, "4");
    world.sh(&id, "test -d /vendor/share && ! touch /vendor/share/x 2>/dev/null").await;

    // By annotation, and from a file that comes later and overrides.
    write(
        world,
        "run/gpu.json",
        r#"{"cdiVersion":"0.6.0","kind":"vendor.test/gpu","devices":[
        {"name":"1","containerEdits":{"env":["GPU=other"]}}]}"#,
    );
    let mut config = script("second", &image, "echo $GPU; sleep 10000");
    config.annotations.insert("cdi.k8s.io/vendor_x".into(), "vendor.test/gpu=1".into());
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "echo $GPU").await, "other");
}

async fn a_device_is_in_the_container(world: &mut World) {
    check(world, "").await;
}

async fn other_runtimes_get_them_too(world: &mut World) {
    check(world, "runc").await;
}

async fn every_hook_runs(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let place: PathBuf = world.run.join("hooks");
    std::fs::create_dir_all(&place).unwrap();
    let log = place.join("log");
    let hook = |name: &str| {
        format!(
            r#"{{"hookName":"{name}","path":"/bin/sh","args":["sh","-c","cat > /dev/null; echo {name} >> {}"]}}"#,
            log.display()
        )
    };
    let names = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let hooks: Vec<_> = names.iter().map(|name| hook(name)).collect();
    let mount = format!(r#"{{"hostPath":"{0}","containerPath":"{0}"}}"#, place.display());
    write(
        world,
        "etc/hooks.json",
        &format!(
            r#"{{"cdiVersion":"0.6.0","kind":"vendor.test/hooks","devices":[{{"name":"all","containerEdits":
               {{"hooks":[{}],"mounts":[{mount}]}}}}]}}"#,
            hooks.join(",")
        ),
    );
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.cdi_devices = vec![device("vendor.test/hooks=all")];
    let pod = world.pod("hooks");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let ran = || std::fs::read_to_string(&log).unwrap_or_default();
    // The container's own process runs startContainer when it has been let go: beside poststart.
    let deadline = within(10);
    while ran().lines().count() < 5 {
        assert!(Instant::now() < deadline, "{}", ran());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begun: Vec<_> = ran().lines().map(str::to_owned).collect();
    assert_eq!(begun[..3], names[..3]);
    assert!(begun.contains(&"startContainer".to_owned()) && begun.contains(&"poststart".to_owned()));
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    assert_eq!(ran().lines().last(), Some("poststop"));
    assert_eq!(ran().lines().count(), 6);
}

async fn unknown_devices_are_named(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    write(world, "etc/broken.json", "{");
    let image = world.image("busybox").await;
    let pod = world.pod("unknown");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.cdi_devices = vec![device("vendor.test/gpu=7")];
    let message = assert_code(world.create(&pod_id, &pod, &config).await, Code::NotFound);
    for part in ["vendor.test/gpu=7", "cdi/etc", "cdi/run", "broken.json"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    config.cdi_devices = vec![device("gpu")];
    assert_code(world.create(&pod_id, &pod, &config).await, Code::InvalidArgument);
    assert!(world.list_containers().await.unwrap().is_empty());
    // Seen without a restart.
    write(world, "etc/broken.json", &GPU_SEVEN.replace('\n', ""));
    config.cdi_devices = vec![device("vendor.test/gpu=7")];
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "echo $GPU").await, "seven");
}

const GPU_SEVEN: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.test/gpu",
"devices":[{"name":"7","containerEdits":{"env":["GPU=seven"]}}]}"#;
