//! Writes readings as metrics. Values are whole numbers in the CRI, so seconds are whole seconds.
//!
//! The kubelet takes the common labels for granted in this order: `container`, `id` (the cgroup), `image`, `name` (the
//! container's id), `namespace`, `pod`. What belongs to the pod as a whole, its network, goes by `container="POD"`.

mod families;

use crate::cgroup::usage::{Detail, Pressure, Usage};
use crate::container::ContainerState;
use crate::pod::PodSnapshot;
use crate::proto::runtime::v1::{
    ContainerMetrics, LinuxContainerResources, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value,
};
use crate::stats::{ContainerReading, Disk, PodReading, Processes, Stats};

use families::{Family, *};

const SECOND: u64 = 1_000_000_000;

/// All metrics that [`pod`] may give.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    families::descriptors()
}

/// The metrics of a pod and of its running containers.
pub(crate) fn pod(stats: &Stats, reading: &PodReading, disk: &Disk) -> PodSandboxMetrics {
    PodSandboxMetrics {
        pod_sandbox_id: reading.pod.id.clone(),
        metrics: network(reading),
        container_metrics: reading
            .containers
            .iter()
            .filter_map(|container| container_metrics(stats, &reading.pod, container, disk))
            .collect(),
    }
}

/// Metrics of one pod or container.
struct Series {
    at: i64,
    common: [String; COMMON.len()],
    metrics: Vec<Metric>,
}

impl Series {
    fn push(&mut self, family: Family, value: u64) {
        self.labelled(family, &[], value);
    }

    fn labelled(&mut self, family: Family, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(Metric {
            name: family.name.to_owned(),
            timestamp: self.at,
            metric_type: family.kind.into(),
            label_values: self.common.iter().cloned().chain(labels).collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

fn common(pod: &PodSnapshot, container: &str, cgroup: &str, image: &str, id: &str) -> [String; 6] {
    let metadata = pod.config.metadata.as_ref();
    let of_pod = |part: fn(&crate::proto::runtime::v1::PodSandboxMetadata) -> &String| {
        metadata.map(part).cloned().unwrap_or_default()
    };
    [
        container.to_owned(),
        cgroup.to_owned(),
        image.to_owned(),
        id.to_owned(),
        of_pod(|metadata| &metadata.namespace),
        of_pod(|metadata| &metadata.name),
    ]
}

fn network(reading: &PodReading) -> Vec<Metric> {
    let pod = &reading.pod;
    let cgroup = pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let mut series =
        Series { at: reading.at, common: common(pod, "POD", cgroup, "", &pod.id), metrics: Vec::new() };
    for traffic in &reading.traffic {
        let (received, sent, interface) = (traffic.received, traffic.sent, traffic.interface.as_str());
        for (family, value) in [
            (NETWORK_RX_BYTES, received.bytes),
            (NETWORK_RX_PACKETS, received.packets),
            (NETWORK_RX_DROPPED, received.dropped),
            (NETWORK_RX_ERRORS, received.errors),
            (NETWORK_TX_BYTES, sent.bytes),
            (NETWORK_TX_PACKETS, sent.packets),
            (NETWORK_TX_DROPPED, sent.dropped),
            (NETWORK_TX_ERRORS, sent.errors),
        ] {
            series.labelled(family, &[interface], value);
        }
    }
    series.metrics
}

fn container_metrics(
    stats: &Stats,
    pod: &PodSnapshot,
    reading: &ContainerReading,
    disk: &Disk,
) -> Option<ContainerMetrics> {
    let sample = reading.sample.as_deref()?;
    let container = &reading.container;
    let config = &container.config;
    let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    let labels = common(pod, name, &container.cgroups_path, &container.image_ref, &container.id);
    let mut series = Series { at: sample.at, common: labels, metrics: Vec::with_capacity(64) };
    used(&mut series, &sample.usage);
    if let Some((detail, processes)) = &sample.detail {
        detailed(&mut series, &sample.usage, detail, *processes);
        devices(&mut series, stats, detail);
    }
    for (family, value) in [
        (FS_INODES_FREE, disk.inodes_free),
        (FS_INODES, disk.inodes),
        (FS_LIMIT, disk.bytes),
        (FS_USAGE, reading.layer.unwrap_or_default().bytes),
    ] {
        series.labelled(family, &[&disk.device], value);
    }
    let none = LinuxContainerResources::default();
    spec(&mut series, config.linux.as_ref().and_then(|linux| linux.resources.as_ref()).unwrap_or(&none));
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0) / SECOND;
    series.push(LAST_SEEN, seconds(sample.at));
    if let ContainerState::Running { started_at, .. } = container.state {
        series.push(START_TIME, seconds(started_at));
    }
    Some(ContainerMetrics { container_id: container.id.clone(), metrics: series.metrics })
}

fn used(series: &mut Series, usage: &Usage) {
    series.push(CPU_USAGE, usage.cpu_nanoseconds.unwrap_or(0) / SECOND);
    if let Some(memory) = &usage.memory {
        for (family, value) in [
            (MEMORY_CACHE, memory.cache),
            (MEMORY_RSS, memory.rss),
            (MEMORY_MAPPED, memory.mapped_file),
            (MEMORY_SWAP, memory.swap.unwrap_or(0)),
            (MEMORY_USAGE, memory.usage),
            (MEMORY_WORKING_SET, memory.working_set()),
            (MEMORY_ACTIVE_FILE, memory.active_file),
            (MEMORY_INACTIVE_FILE, memory.inactive_file),
        ] {
            series.push(family, value);
        }
        // What is read counts everything below the cgroup: there is one figure for both scopes.
        for scope in ["container", "hierarchy"] {
            series.labelled(MEMORY_FAILURES, &["pgfault", scope], memory.page_faults);
            series.labelled(MEMORY_FAILURES, &["pgmajfault", scope], memory.major_page_faults);
        }
    }
    series.push(THREADS, usage.tasks.unwrap_or(0));
    pressure(series, usage.cpu_pressure, PRESSURE_CPU_WAITING, PRESSURE_CPU_STALLED);
    pressure(series, usage.memory_pressure, PRESSURE_MEMORY_WAITING, PRESSURE_MEMORY_STALLED);
    pressure(series, usage.io_pressure, PRESSURE_IO_WAITING, PRESSURE_IO_STALLED);
}

fn pressure(series: &mut Series, pressure: Option<Pressure>, waiting: Family, stalled: Family) {
    if let Some(pressure) = pressure {
        series.push(waiting, pressure.some.total_microseconds / 1_000_000);
        series.push(stalled, pressure.full.total_microseconds / 1_000_000);
    }
}

fn detailed(series: &mut Series, usage: &Usage, detail: &Detail, processes: Processes) {
    let kernel = usage.memory.as_ref().and_then(|memory| memory.kernel).unwrap_or(detail.kernel_memory);
    for (family, value) in [
        (CPU_USER, detail.cpu_user_nanoseconds / SECOND),
        (CPU_SYSTEM, detail.cpu_system_nanoseconds / SECOND),
        (CPU_PERIODS, detail.periods),
        (CPU_THROTTLED_PERIODS, detail.throttled_periods),
        (CPU_THROTTLED, detail.throttled_nanoseconds / SECOND),
        (MEMORY_KERNEL, kernel),
        (MEMORY_FAILCNT, detail.memory_limit_hits),
        (MEMORY_MAX_USAGE, detail.memory_peak),
        (SPEC_RESERVATION, detail.memory_reservation.unwrap_or(0)),
        (OOM_EVENTS, detail.oom_kills),
        (PROCESSES, u64::try_from(detail.processes.len()).unwrap_or(u64::MAX)),
        (THREADS_MAX, detail.tasks_limit.unwrap_or(0)),
        (DESCRIPTORS, processes.descriptors),
        (SOCKETS, processes.sockets),
    ] {
        series.push(family, value);
    }
    if let Some(limit) = processes.descriptor_limit {
        series.labelled(ULIMITS, &["max_open_files"], limit);
    }
    for (size, pages) in &detail.huge_pages {
        series.labelled(HUGETLB, &[size], pages.usage);
        series.labelled(HUGETLB_MAX, &[size], pages.peak);
    }
}

fn devices(series: &mut Series, stats: &Stats, detail: &Detail) {
    for device in &detail.devices {
        let name = stats.device((device.major, device.minor));
        for (family, value) in [
            (FS_READ_BYTES, device.read_bytes),
            (FS_READS, device.reads),
            (FS_WRITE_BYTES, device.write_bytes),
            (FS_WRITES, device.writes),
        ] {
            series.labelled(family, &[&name], value);
        }
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        for (operation, value) in [("Read", device.read_bytes), ("Write", device.write_bytes)] {
            series.labelled(BLKIO, &[&name, &major, &minor, operation], value);
        }
    }
}

/// What it was given, the latest update considered.
fn spec(series: &mut Series, resources: &LinuxContainerResources) {
    // The kernel's own figures, where none is set.
    const PERIOD: i64 = 100_000;
    const SHARES: i64 = 1024;
    let or = |value: i64, default: i64| u64::try_from(if value > 0 { value } else { default }).unwrap_or(0);
    series.push(SPEC_CPU_PERIOD, or(resources.cpu_period, PERIOD));
    series.push(SPEC_CPU_SHARES, or(resources.cpu_shares, SHARES));
    series.push(SPEC_MEMORY, or(resources.memory_limit_in_bytes, 0));
    series.push(SPEC_SWAP, or(resources.memory_swap_limit_in_bytes, 0));
    if resources.cpu_quota > 0 {
        series.push(SPEC_CPU_QUOTA, or(resources.cpu_quota, 0));
    }
}
