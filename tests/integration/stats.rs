//! Statistics, metrics and new limits.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, LinuxContainerResources,
    ListContainerStatsRequest, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest,
    ListPodSandboxStatsRequest, PodSandboxStats, PodSandboxStatsRequest, UInt64Value,
    UpdateContainerResourcesRequest,
};
use libtest_mimic::Trial;
use tonic::{Code, Status};

use crate::support::http;
use crate::support::measure;
use crate::support::runtime::Options;
use crate::support::spec::{ContainerOptions, script};
use crate::support::world::assert_code;
use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let mut list = trials![
        a_container_that_works,
        a_pod_and_its_network,
        ended_ones_have_a_layer_only,
        filters_and_unknown_ids,
        metrics_match_their_descriptors,
        new_limits,
        new_limits_before_the_start,
    ];
    // The promise is for a release build: BERTH_MEASURE=1 BERTH_BIN_DIR=target/release cargo test --test integration scrape
    if std::env::var_os("BERTH_MEASURE").is_some() {
        let long = Options { limit: 600, ..Options::default() };
        list.extend(trials![options = long; a_scrape_of_200_containers]);
    }
    list
}

/// What the daemon spends on one answer, from nothing fresh.
async fn a_scrape_of_200_containers(world: &mut World) {
    const PODS: usize = 20;
    const EACH: usize = 10;
    const TURNS: u32 = 25;
    /// Longer than figures are kept.
    const APART: Duration = Duration::from_millis(1_100);
    let image = world.image("busybox").await;
    let starting = futures::stream::iter(0..PODS).map(async |number| {
        let pod = world.pod(&format!("pod-{number}"));
        let pod_id = world.run_pod(&pod).await.unwrap();
        for number in 0..EACH {
            let config = container(&format!("c{number}"), &image, &["sleep", "100000"]);
            world.launch(&pod_id, &pod, &config).await.unwrap();
        }
    });
    starting.buffer_unordered(4).collect::<Vec<()>>().await;
    let daemon = world.daemon.pid();
    let mut client = world.runtime().max_decoding_message_size(64 << 20);
    let mut spent = [(); 2].map(|()| Vec::new());
    for turn in 0..=TURNS {
        for (which, spent) in spent.iter_mut().enumerate() {
            tokio::time::sleep(APART).await;
            let before = measure::time_on_cpu(daemon);
            if which == 0 {
                let request = ListContainerStatsRequest::default();
                let stats = client.list_container_stats(request).await.unwrap().into_inner().stats;
                assert_eq!(stats.len(), PODS * EACH);
            } else {
                let request = ListPodSandboxMetricsRequest::default();
                client.list_pod_sandbox_metrics(request).await.unwrap();
            }
            // The first turn opens the files.
            if turn > 0 {
                spent.push((measure::time_on_cpu(daemon) - before).as_secs_f64() * 1e3);
            }
        }
    }
    let medians = spent.map(|spent| measure::median(&spent));
    println!("200 containers: statistics {:.2} ms, metrics {:.2} ms of CPU", medians[0], medians[1]);
    assert!(medians.iter().all(|spent| *spent < 20.0), "{medians:?} ms");
}

async fn stats(world: &World, id: &str) -> Result<ContainerStats, Status> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    Ok(world.runtime().container_stats(request).await?.into_inner().stats.unwrap())
}

async fn pod_stats(world: &World, id: &str) -> Result<PodSandboxStats, Status> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    Ok(world.runtime().pod_sandbox_stats(request).await?.into_inner().stats.unwrap())
}

async fn list(world: &World, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let request = ListContainerStatsRequest { filter };
    world.runtime().list_container_stats(request).await.unwrap().into_inner().stats
}

fn value(value: &Option<UInt64Value>) -> u64 {
    value.as_ref().expect("a value that is not set").value
}

async fn a_container_that_works(world: &mut World) {
    let pod = world.pod("works");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config =
        script("main", &image, "dd if=/dev/zero of=/written bs=1024 count=3000; while :; do :; done");
    config.resources().memory_limit_in_bytes = 64 << 20;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    // Writable layers are counted behind the calls, half a minute apart.
    let deadline = within(90);
    let found = loop {
        let found = stats(world, &id).await.unwrap();
        if value(&found.writable_layer.as_ref().unwrap().used_bytes) >= 3_000_000 {
            break found;
        }
        assert!(Instant::now() < deadline, "the writable layer was not counted: {found:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let layer = found.writable_layer.unwrap();
    assert!(value(&layer.used_bytes) < 8_000_000 && value(&layer.inodes_used) >= 2, "{layer:?}");
    assert!(!layer.fs_id.unwrap().mountpoint.is_empty() && layer.timestamp > 0);
    let cpu = found.cpu.unwrap();
    assert!(value(&cpu.usage_core_nano_seconds) > 1_000_000, "{cpu:?}");
    assert!(value(&cpu.usage_nano_cores) > 1_000_000, "it is at work: {cpu:?}");
    let memory = found.memory.unwrap();
    let (used, free) = (value(&memory.working_set_bytes), value(&memory.available_bytes));
    assert_eq!(used + free, 64 << 20);
    assert!(used <= value(&memory.usage_bytes) && value(&memory.page_faults) > 0);
    assert_eq!(found.attributes.unwrap().metadata.unwrap().name, "main");
}

async fn a_pod_and_its_network(world: &mut World) {
    let pod = world.pod("net");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let config =
        script("web", &image, "mkdir -p /w; head -c 500000 /dev/zero > /w/file; httpd -f -p 80 -h /w");
    world.launch(&pod_id, &pod, &config).await.unwrap();
    let address = world.address(&pod_id).await;
    let deadline = within(20);
    loop {
        // The client is on the host's side: what it downloads is what the pod sends.
        let _ = world.netns.run(|| http::get((address.as_str(), 80), "/file"));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let linux = pod_stats(world, &pod_id).await.unwrap().linux.unwrap();
        let network = linux.network.unwrap();
        let eth0 = network.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        if value(&eth0.tx_bytes) > 500_000 {
            assert!((100..400_000).contains(&value(&eth0.rx_bytes)), "{eth0:?}");
            assert_eq!(value(&linux.process.unwrap().process_count), 1);
            assert!(value(&linux.memory.unwrap().usage_bytes) > 0);
            assert_eq!(linux.containers.len(), 1);
            break;
        }
        assert!(Instant::now() < deadline, "the pod sent nothing: {eth0:?}");
    }
    world.stop_pod(&pod_id).await.unwrap();
    assert_code(pod_stats(world, &pod_id).await, Code::Unavailable);
}

async fn ended_ones_have_a_layer_only(world: &mut World) {
    let pod = world.pod("ended");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &script("main", &image, "exit 0")).await.unwrap();
    world.wait_exit(&id).await;
    let found = stats(world, &id).await.unwrap();
    assert!(found.cpu.is_none() && found.memory.is_none() && found.writable_layer.is_some());
    assert_eq!(list(world, None).await.len(), 1);
}

async fn filters_and_unknown_ids(world: &mut World) {
    let (first_pod, first) = world.pod_with_sleeper("first").await;
    let (second_pod, second) = world.pod_with_sleeper("second").await;
    let ids = |stats: Vec<ContainerStats>| {
        let mut ids: Vec<_> = stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
        ids.sort();
        ids
    };
    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!(ids(list(world, None).await), both);
    let filter = |change: fn(&mut ContainerStatsFilter, &str), text: &str| {
        let mut filter = ContainerStatsFilter::default();
        change(&mut filter, text);
        Some(filter)
    };
    assert_eq!(ids(list(world, filter(|f, t| f.id = t.into(), &first)).await), std::slice::from_ref(&first));
    assert_eq!(ids(list(world, filter(|f, t| f.pod_sandbox_id = t.into(), &second_pod)).await), [second]);
    let unknown = filter(|f, t| f.label_selector = HashMap::from([(t.into(), "x".into())]), "nobody");
    assert_eq!(ids(list(world, unknown).await), [""; 0]);
    let request = ListPodSandboxStatsRequest { filter: None };
    let pods = world.runtime().list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
    let pods: Vec<_> = pods.into_iter().map(|pod| pod.attributes.unwrap().id).collect();
    assert_eq!(pods, [first_pod, second_pod]);
    assert_code(stats(world, "feed").await, Code::NotFound);
    assert_code(pod_stats(world, "feed").await, Code::NotFound);
    assert_code(stats(world, "").await, Code::InvalidArgument);
}

async fn metrics_match_their_descriptors(world: &mut World) {
    let (pod_id, id) = world.pod_with_sleeper("metrics").await;
    let request = ListMetricDescriptorsRequest {};
    let descriptors =
        world.runtime().list_metric_descriptors(request).await.unwrap().into_inner().descriptors;
    let descriptors: BTreeMap<_, _> = descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
    assert!(descriptors.len() > 49);
    let request = ListPodSandboxMetricsRequest {};
    let pods = world.runtime().list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0].pod_sandbox_id.as_str(), pods[0].container_metrics.len()), (pod_id.as_str(), 1));
    let of_container = &pods[0].container_metrics[0];
    assert_eq!(of_container.container_id, id);
    let mut series = std::collections::BTreeSet::new();
    for metric in pods[0].metrics.iter().chain(&of_container.metrics) {
        let keys =
            descriptors.get(&metric.name).unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(keys.len(), metric.label_values.len(), "{}", metric.name);
        assert!(series.insert((metric.name.clone(), metric.label_values.clone())), "twice: {metric:?}");
    }
    let named = |name: &str| of_container.metrics.iter().find(|metric| metric.name == name).unwrap();
    let threads = named("container_threads");
    assert_eq!(value(&threads.value), 1);
    assert_eq!(threads.label_values[0], "sleeper");
    assert_eq!(threads.label_values[5], "metrics");
    assert!(value(&named("container_memory_usage_bytes").value) > 0);
}

async fn update(world: &World, id: &str, resources: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(resources),
        ..Default::default()
    };
    world.runtime().update_container_resources(request).await.map(drop)
}

async fn resources(world: &World, id: &str) -> LinuxContainerResources {
    world.status(id).await.unwrap().resources.unwrap().linux.unwrap()
}

async fn new_limits(world: &mut World) {
    let pod = world.pod("limits");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.resources().memory_limit_in_bytes = 32 << 20;
    config.resources().cpu_shares = 512;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let memory = |bytes| LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    let file = |files: &[&str]| super::resources::cgroup_file(world, &id, files);
    for bytes in [64 << 20, 16 << 20] {
        update(world, &id, memory(bytes)).await.unwrap();
        assert_eq!(file(&["memory.max", "memory.limit_in_bytes"]), bytes.to_string());
    }
    let cpu = LinuxContainerResources {
        cpu_quota: 30_000,
        cpu_period: 100_000,
        unified: HashMap::from([("pids.max".to_owned(), "77".to_owned())]),
        ..Default::default()
    };
    update(world, &id, cpu).await.unwrap();
    assert!(matches!(file(&["cpu.max", "cpu.cfs_quota_us"]).as_str(), "30000 100000" | "30000"));
    assert_eq!(file(&["pids.max"]), "77");
    // Refused as a whole: what is shown stays.
    let bad = LinuxContainerResources { cpuset_cpus: "900".into(), ..Default::default() };
    assert!(update(world, &id, bad).await.is_err());
    world.crash_and_restart().await;
    let shown = resources(world, &id).await;
    assert_eq!((shown.memory_limit_in_bytes, shown.cpu_quota, shown.cpu_shares), (16 << 20, 30_000, 512));
    assert_eq!((shown.cpuset_cpus.as_str(), shown.unified["pids.max"].as_str()), ("", "77"));
    assert_code(update(world, "feed", memory(1 << 20)).await, Code::NotFound);
}

async fn new_limits_before_the_start(world: &mut World) {
    let pod = world.pod("early");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.resources().memory_limit_in_bytes = 32 << 20;
    let id = world.create(&pod_id, &pod, &config).await.unwrap();
    let more = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
    update(world, &id, more).await.unwrap();
    world.start_container(&id).await.unwrap();
    let limit = super::resources::cgroup_file(world, &id, &["memory.max", "memory.limit_in_bytes"]);
    assert_eq!(limit, (48 << 20).to_string());
    assert_eq!(resources(world, &id).await.memory_limit_in_bytes, 48 << 20);
}
