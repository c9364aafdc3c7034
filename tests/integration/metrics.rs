//! What those see who watch the daemon: numbers, and whether it can work.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use libtest_mimic::Trial;

use crate::support::World;
use crate::support::spec::{ContainerOptions, script};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![numbers_follow_what_happens, probes, a_container_out_of_memory_is_counted]
}

impl World {
    /// Status and body of a request to the listener.
    pub(crate) fn observe(&self, request: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.run.join("metrics.sock")).unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// A metric's value now; none when it is not there.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (status, body) = self.observe("GET /metrics");
        assert_eq!(status, 200);
        let line =
            body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

async fn numbers_follow_what_happens(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    assert_eq!(world.metric("berth_pods{state=\"ready\"}"), Some(0.0));
    let (pod, container) = world.pod_with_sleeper("measured").await;
    for (name, value) in [
        ("berth_pods{state=\"ready\"}", 1.0),
        ("berth_containers{state=\"running\"}", 1.0),
        ("berth_network_endpoints{network=\"bridge\"}", 1.0),
        ("berth_images", 1.0),
        ("berth_cri_operations_total{operation=\"run_pod_sandbox\"}", 1.0),
        ("berth_cri_image_pulls_total{result=\"success\"}", 1.0),
        ("berth_cri_image_pulls_in_progress", 0.0),
        ("berth_cri_sandbox_create_seconds_count", 1.0),
        ("berth_cri_sandbox_create_namespaces_seconds_count", 1.0),
        ("berth_cri_sandbox_create_network_seconds_count", 1.0),
        ("berth_cri_container_create_rootfs_seconds_count", 1.0),
        ("berth_cri_container_create_shim_seconds_count", 1.0),
        ("berth_cri_container_runtime_create_seconds_count", 1.0),
        ("berth_cri_container_start_seconds_count", 1.0),
        ("berth_cri_stage_errors_total{stage=\"container_start\"}", 0.0),
        ("berth_ready", 1.0),
        ("berth_hanging{part=\"store\"}", 0.0),
        ("berth_streaming_sessions{kind=\"exec\"}", 0.0),
        ("berth_recovery_actions_total{action=\"failed\"}", 0.0),
        ("berth_store_errors_total{store=\"pods\"}", 0.0),
        ("berth_store_errors_total{store=\"images\"}", 0.0),
    ] {
        assert_eq!(world.metric(name), Some(value), "{name}");
    }
    assert!(world.metric("berth_network_addresses_leased{network=\"bridge\"}").unwrap() >= 1.0);
    assert!(world.metric("berth_cri_image_pulls_bytes_total").unwrap() > 1000.0);
    assert!(world.metric("berth_store_commit_seconds_count{store=\"pods\"}").unwrap() >= 2.0);
    // The pull of one image wrote the index and a record for each layer.
    for store in ["images", "layers"] {
        let written = world.metric(&format!("berth_store_commit_seconds_count{{store=\"{store}\"}}"));
        assert!(written.unwrap() >= 1.0, "{store}");
    }
    assert!(world.metric("berth_network_store_commits_total").unwrap() >= 2.0);
    assert!(world.metric("berth_network_store_commit_seconds_total").unwrap() > 0.0);
    assert!(world.metric("process_resident_memory_bytes").unwrap() > 1e6);
    world.exec_sync(&container, &["false"], 5).await.unwrap();
    world.stop_container("nobody-has-this-id", 0).await.unwrap();
    world.status("nobody-has-this-id").await.unwrap_err();
    let errors = "berth_cri_operations_errors_total{code=\"NotFound\",operation=\"container_status\"}";
    assert_eq!(world.metric(errors), Some(1.0));
    world.stop_pod(&pod).await.unwrap();
    assert_eq!(world.metric("berth_pods{state=\"notready\"}"), Some(1.0));
    assert_eq!(world.metric("berth_network_endpoints{network=\"bridge\"}"), Some(0.0));
    assert_eq!(world.metric("berth_cri_sandbox_delete_network_seconds_count"), Some(1.0));
    world.remove_pod(&pod).await.unwrap();
    assert_eq!(world.metric("berth_pods{state=\"notready\"}"), Some(0.0));
    world.no_leaks();
}

async fn probes(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let mode = std::fs::metadata(world.run.join("metrics.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(world.observe("GET /healthz"), (200, "ok\n".to_owned()));
    assert_eq!(world.observe("GET /readyz").0, 200);
    assert_eq!(world.observe("GET /etc/passwd").0, 404);
    assert_eq!(world.observe("POST /metrics").0, 405);
    // Who says nothing keeps nobody else waiting.
    let silent: Vec<_> =
        (0..20).map(|_| UnixStream::connect(world.run.join("metrics.sock")).unwrap()).collect();
    assert_eq!(world.observe("GET /healthz").0, 200);
    drop(silent);
    // The socket that a killed daemon leaves is taken over.
    world.crash_and_restart().await;
    assert_eq!(world.observe("GET /healthz").0, 200);
}

async fn a_container_out_of_memory_is_counted(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let image = world.image("busybox").await;
    let mut config = script("hungry", &image, "x=a; while true; do x=$x$x; done");
    config.resources().memory_limit_in_bytes = 16 << 20;
    let pod_config = world.pod("hungry");
    let pod = world.run_pod(&pod_config).await.unwrap();
    let container = world.launch(&pod, &pod_config, &config).await.unwrap();
    assert_eq!(world.wait_exit(&container).await.reason, "OOMKilled");
    assert_eq!(world.metric("berth_cri_containers_oom_count_total"), Some(1.0));
    world.remove_pod(&pod).await.unwrap();
    world.no_leaks();
}
