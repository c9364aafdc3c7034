//! Berth and Debian's containerd (runc, CNI plugins bridge, host-local and portmap) side by side: how long each
//! call of a pod's life takes, what daemon and shims weigh with 1 and with 50 pods, what 50 idle pods cost, and what
//! their figures do.
//!
//! `make bench`, or `cargo bench --bench lifecycle`. Rounds alternate between the two, so that what else goes
//! on meets both. `BERTH_BENCH_ROUNDS` (20), `BERTH_BENCH_PODS` (50) and `BERTH_BENCH_RUNTIMES`
//! (`berth,containerd`) change the run.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/support.rs"]
#[allow(dead_code, reason = "the tests use other parts of it")]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_cri::v1::{
    ListContainerStatsRequest, ListPodSandboxMetricsRequest, RemoveImageRequest, VersionRequest,
};
use support::image::many_layers;
use support::runtime::{Options, Runtime};
use support::spec::script;
use support::world::image_spec;
use support::{World, measure};

/// What one runtime showed: all values of every measurement, in the order of the table.
type Values = BTreeMap<&'static str, Vec<f64>>;

/// A row of the table: name, unit, and the ratio to containerd that Berth promises.
struct Row(&'static str, &'static str, Option<f64>);

const ROWS: [Row; 22] = [
    Row("RunPodSandbox", "ms", None),
    Row("CreateContainer", "ms", None),
    Row("StartContainer", "ms", None),
    Row("start: Run + Create + Start", "ms", Some(0.25)),
    Row("ExecSync", "ms", Some(1.0 / 3.0)),
    Row("StopContainer", "ms", None),
    Row("StopPodSandbox", "ms", None),
    Row("RemoveContainer", "ms", None),
    Row("RemovePodSandbox", "ms", None),
    Row("end: StopC + StopP + RemoveP", "ms", Some(0.25)),
    Row("pull of 50 MB in 5 layers", "ms", Some(0.5)),
    Row("daemon, 1 pod (PSS)", "MB", None),
    Row("shim, 1 pod (PSS)", "MB", None),
    Row("start of 50 pods, 8 at once", "pods/s", None),
    Row("daemon, 50 pods (PSS)", "MB", None),
    Row("one shim of 50 (PSS)", "MB", None),
    Row("daemon and shims, 50 pods", "MB", Some(0.25)),
    Row("idle, 50 pods", "ms CPU/s", None),
    Row("statistics, one container of 50", "\u{b5}s CPU", None),
    Row("metrics, one container of 50", "\u{b5}s CPU", None),
    Row("CPU of daemon per pod started", "ms", None),
    Row("end of 50 pods, 8 at once", "pods/s", None),
];

fn main() {
    // `cargo test --benches` builds and runs benchmarks too; only `cargo bench` means to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    support::sandbox::run(|name| {
        support::world::prepare(name);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(compare());
        0
    });
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn compare() {
    let rounds = number("BERTH_BENCH_ROUNDS", 20).clamp(1, 1000);
    let pods = number("BERTH_BENCH_PODS", 50).clamp(1, 500);
    let wanted = std::env::var("BERTH_BENCH_RUNTIMES").unwrap_or_else(|_| "berth,containerd".into());
    let mut worlds = Vec::new();
    for runtime in [Runtime::Berth, Runtime::Containerd] {
        let name = format!("{runtime:?}").to_lowercase();
        if wanted.split(',').any(|wanted| wanted == name) {
            let mut world = World::new(runtime, &Options::default());
            world.daemon.spawn();
            world.ready().await;
            for image in ["busybox", "pause"] {
                world.image(image).await;
            }
            worlds.push((world, Values::new()));
        }
    }
    let large = many_layers(5, 50, 99);
    worlds[0].0.registry.push("bench/large", "1", &large);

    for round in 0..=rounds {
        for (world, values) in &mut worlds {
            let measured = life(world, round).await;
            // The first round warms up.
            if round > 0 {
                for (name, milliseconds) in measured {
                    values.entry(name).or_default().push(milliseconds);
                }
            }
        }
    }
    for _ in 0..rounds.div_ceil(4) {
        for (world, values) in &mut worlds {
            let took = pull(world).await;
            values.entry("pull of 50 MB in 5 layers").or_default().push(took);
        }
    }
    for (world, values) in &mut worlds {
        weigh_one(world, values).await;
        crowd(world, pods, values).await;
    }
    print(&worlds, rounds, pods).await;
    for (world, _) in worlds {
        world.finish().await;
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, f64) {
    let start = Instant::now();
    let value = work.await;
    (value, start.elapsed().as_secs_f64() * 1000.0)
}

/// One pod from its start to its end.
async fn life(world: &World, round: usize) -> Vec<(&'static str, f64)> {
    let pod = world.pod(&format!("bench-{round}"));
    let image = world.reference("busybox");
    let (pod_id, run) = timed(world.run_pod(&pod)).await;
    let pod_id = pod_id.unwrap();
    let config = script("main", &image, "trap 'exit 0' TERM; sleep 100000 & wait");
    let (id, create) = timed(world.create(&pod_id, &pod, &config)).await;
    let id = id.unwrap();
    let (started, start) = timed(world.start_container(&id)).await;
    started.unwrap();
    let mut measured = vec![
        ("RunPodSandbox", run),
        ("CreateContainer", create),
        ("StartContainer", start),
        ("start: Run + Create + Start", run + create + start),
    ];
    for _ in 0..3 {
        let (answer, exec) = timed(world.exec_sync(&id, &["true"], 10)).await;
        assert_eq!(answer.unwrap().exit_code, 0);
        measured.push(("ExecSync", exec));
    }
    let (stopped, stop) = timed(world.stop_container(&id, 10)).await;
    stopped.unwrap();
    let (removed, remove) = timed(world.remove_container(&id)).await;
    removed.unwrap();
    let (stopped, stop_pod) = timed(world.stop_pod(&pod_id)).await;
    stopped.unwrap();
    let (removed, remove_pod) = timed(world.remove_pod(&pod_id)).await;
    removed.unwrap();
    measured.extend([
        ("StopContainer", stop),
        ("StopPodSandbox", stop_pod),
        ("RemoveContainer", remove),
        ("RemovePodSandbox", remove_pod),
        ("end: StopC + StopP + RemoveP", stop + stop_pod + remove_pod),
    ]);
    measured
}

/// Pulls the large image, and removes it again.
async fn pull(world: &World) -> f64 {
    let reference = format!("{}/bench/large:1", world.registry.host());
    let (pulled, took) = timed(world.pull(&reference)).await;
    pulled.unwrap();
    let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
    world.images().remove_image(request).await.unwrap();
    took
}

fn shim_name(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Berth => "berth-shim",
        Runtime::Containerd => "containerd-shim-runc-v2",
    }
}

#[allow(clippy::cast_precision_loss, reason = "sizes in KiB are far below 2^52")]
fn megabytes(kib: usize) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "a small count")]
fn count(number: usize) -> f64 {
    number as f64
}

async fn weigh_one(world: &World, values: &mut Values) {
    let (pod_id, _) = world.pod_with_sleeper("one").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (_, shims) = measure::proportional_memory(shim_name(world.daemon.runtime), &world.run);
    values.entry("daemon, 1 pod (PSS)").or_default().push(megabytes(measure::pss(world.daemon.pid())));
    values.entry("shim, 1 pod (PSS)").or_default().push(megabytes(shims));
    world.remove_pod(&pod_id).await.unwrap();
}

/// Many pods: how fast they start, what they weigh, what they cost when idle, how fast they go.
async fn crowd(world: &World, pods: usize, values: &mut Values) {
    let image = world.reference("busybox");
    let image = image.as_str();
    let daemon = world.daemon.pid();
    let cpu = measure::time_on_cpu(daemon);
    let start = Instant::now();
    let ids: Vec<String> = futures::stream::iter(0..pods)
        .map(async |number| {
            let pod = world.pod(&format!("crowd-{number}"));
            let pod_id = world.run_pod(&pod).await.unwrap();
            let config = script("main", image, "trap 'exit 0' TERM; sleep 100000 & wait");
            world.launch(&pod_id, &pod, &config).await.unwrap();
            pod_id
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut put = |name, value| values.entry(name).or_default().push(value);
    put("start of 50 pods, 8 at once", count(pods) / start.elapsed().as_secs_f64());
    let used = measure::time_on_cpu(daemon).saturating_sub(cpu);
    put("CPU of daemon per pod started", used.as_secs_f64() * 1000.0 / count(pods));

    tokio::time::sleep(Duration::from_secs(5)).await;
    let name = shim_name(world.daemon.runtime);
    let (shims, weight) = measure::proportional_memory(name, &world.run);
    let own = measure::pss(daemon);
    put("daemon, 50 pods (PSS)", megabytes(own));
    put("one shim of 50 (PSS)", megabytes(weight) / count(shims.max(1)));
    put("daemon and shims, 50 pods", megabytes(own + weight));

    let idle = Duration::from_secs(10);
    let mut pids = measure::pids_of(name, &world.run);
    pids.push(daemon);
    let total = || pids.iter().map(|&pid| measure::time_on_cpu(pid)).sum::<Duration>();
    let before = total();
    tokio::time::sleep(idle).await;
    let used = total().saturating_sub(before);
    put("idle, 50 pods", used.as_secs_f64() * 1000.0 / idle.as_secs_f64());

    for (name, used) in scrape(world).await {
        put(name, used.as_secs_f64() * 1e6 / count(pods));
    }

    let start = Instant::now();
    futures::stream::iter(&ids)
        .map(async |id| {
            world.stop_pod(id).await.unwrap();
            world.remove_pod(id).await.unwrap();
        })
        .buffer_unordered(8)
        .collect::<Vec<()>>()
        .await;
    put("end of 50 pods, 8 at once", count(pods) / start.elapsed().as_secs_f64());
}

/// What the daemon uses for the figures of all containers, asked as the kubelet does it. Each is asked some times: what it
/// keeps open, and what it looks at now and then only, is part of it.
async fn scrape(world: &World) -> Vec<(&'static str, Duration)> {
    /// Longer than figures are kept.
    const APART: Duration = Duration::from_millis(1_100);
    const TURNS: u32 = 8;
    let daemon = world.daemon.pid();
    let mut client = world.runtime().max_decoding_message_size(64 << 20);
    let (mut statistics, mut metrics) = (Duration::ZERO, Some(Duration::ZERO));
    for turn in 0..=TURNS {
        tokio::time::sleep(APART).await;
        let before = measure::time_on_cpu(daemon);
        client.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
        let asked = measure::time_on_cpu(daemon);
        tokio::time::sleep(APART).await;
        let next = measure::time_on_cpu(daemon);
        let answer = client.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()).await;
        let used = measure::time_on_cpu(daemon).saturating_sub(next);
        // The first turn warms up.
        if turn > 0 {
            statistics += asked.saturating_sub(before);
            // containerd has it since 2.1.
            metrics = metrics.filter(|_| answer.is_ok()).map(|sum| sum + used);
        }
    }
    let mut found = vec![("statistics, one container of 50", statistics / TURNS)];
    found.extend(metrics.map(|sum| ("metrics, one container of 50", sum / TURNS)));
    found
}

async fn print(worlds: &[(World, Values)], rounds: usize, pods: usize) {
    println!("\nMedians of {rounds} rounds; {pods} pods where it says 50.\n");
    let mut head = format!("| {:30} | {:8} |", "", "unit");
    for (world, _) in worlds {
        let version = world.runtime().version(VersionRequest::default()).await.unwrap().into_inner();
        let version = version.runtime_version.split(['~', '+']).next().unwrap_or_default().to_owned();
        head.push_str(&format!(" {:>18} |", format!("{:?} {version}", world.daemon.runtime)));
    }
    println!("{head} {:>6} | {:>6} |", "ratio", "goal");
    println!(
        "| {} | {} |{} -----: | -----: |",
        "-".repeat(30),
        "-".repeat(8),
        " -----------------: |".repeat(worlds.len())
    );
    for Row(name, unit, goal) in ROWS {
        let medians: Vec<f64> = worlds
            .iter()
            .map(|(_, values)| values.get(name).map_or(f64::NAN, |values| measure::median(values)))
            .collect();
        let mut line = format!("| {name:30} | {unit:8} |");
        for median in &medians {
            line.push_str(&format!(" {median:>18.2} |"));
        }
        let ratio = match medians[..] {
            [berth, other] => format!("{:.2}", berth / other),
            _ => String::new(),
        };
        let goal = goal.map(|goal| format!("{goal:.2}")).unwrap_or_default();
        println!("{line} {ratio:>6} | {goal:>6} |");
    }
    println!();
}
