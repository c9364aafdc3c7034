//! Fifty pods on one node.

use std::collections::HashSet;

use futures::StreamExt;
use libtest_mimic::Trial;

use crate::support::{World, container};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![fifty_pods]
}

const PODS: usize = 50;

async fn fifty_pods(world: &mut World) {
    let image = world.image("busybox").await;
    let world = &*world;
    let image = image.as_str();
    let started: Vec<(String, String)> = futures::stream::iter(0..PODS)
        .map(async |number| {
            let pod = world.pod(&format!("pod-{number}"));
            let pod_id = world.run_pod(&pod).await.unwrap();
            let config = container("main", image, &["sleep", "100000"]);
            let id = world.launch(&pod_id, &pod, &config).await.unwrap();
            (pod_id, id)
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut addresses = HashSet::new();
    for (pod_id, _) in &started {
        assert!(addresses.insert(world.address(pod_id).await));
    }
    assert_eq!(world.list_pods().await.unwrap().len(), PODS);
    let containers = world.list_containers().await.unwrap();
    assert_eq!(containers.len(), PODS);
    assert!(containers.iter().all(|container| container.state == 1), "all run");
    for (_, id) in started.iter().step_by(7) {
        assert_eq!(world.sh(id, "echo here").await, "here");
    }
    if world.is_berth() {
        let (count, kib) = crate::support::measure::proportional_memory("berth-shim", &world.run);
        // Where a command was executed, a process may wait for the next one.
        let executed = started.iter().step_by(7).count();
        assert!((PODS..=PODS + executed).contains(&count), "one shim a container, not {count}");
        // The promise (1 MiB) is for the release build, and `make bench` shows it; this is a debug build.
        assert!(kib / PODS < 8 * 1024, "{} KiB a shim", kib / PODS);
    }
    let removals = futures::stream::iter(&started)
        .map(async |(pod_id, _)| {
            world.stop_pod(pod_id).await?;
            world.remove_pod(pod_id).await
        })
        .buffer_unordered(8)
        .collect::<Vec<_>>()
        .await;
    assert!(removals.iter().all(Result::is_ok), "{removals:?}");
    world.no_leaks();
}
