//! Writes readings as metrics, straight into what goes over the wire. Values are whole numbers in the CRI, so seconds are whole seconds.
//!
//! The kubelet takes the common labels for granted in this order: `container`, `id` (the cgroup), `image`, `name` (the
//! container's id), `namespace`, `pod`. What belongs to the pod as a whole, its network, goes by `container="POD"`.

mod families;

use crate::cgroup::usage::{Detail, Pressure, Usage};
use crate::container::ContainerState;
use crate::pod::PodSnapshot;
use crate::proto::metrics::{
    PodSandboxMetrics, bytes_field, field_length, length_field, message_field, number_field,
    number_field_length,
};
use crate::proto::runtime::v1::{LinuxContainerResources, MetricDescriptor};
use crate::stats::{ContainerReading, Disk, PodReading, Processes, Sample, Stats};

use families::{Family, *};

const SECOND: u64 = 1_000_000_000;

/// All metrics that [`pod`] may give.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    families::descriptors()
}

/// Field numbers of the messages that are written here.
mod field {
    /// `PodSandboxMetrics`
    pub(super) mod pod {
        pub(crate) const ID: u32 = 1;
        pub(crate) const METRICS: u32 = 2;
        pub(crate) const CONTAINERS: u32 = 3;
    }
    /// `ContainerMetrics`
    pub(super) mod container {
        pub(crate) const ID: u32 = 1;
        pub(crate) const METRICS: u32 = 2;
    }
    /// `Metric`
    pub(super) mod metric {
        pub(crate) const NAME: u32 = 1;
        pub(crate) const TIMESTAMP: u32 = 2;
        pub(crate) const KIND: u32 = 3;
        pub(crate) const LABEL: u32 = 4;
        pub(crate) const VALUE: u32 = 5;
    }
    /// `UInt64Value`
    pub(super) const VALUE: u32 = 1;
}

/// The metrics of a pod and of its running containers.
pub(crate) fn pod(stats: &Stats, reading: &PodReading, disk: &Disk) -> PodSandboxMetrics {
    /// Some sixty metrics, most of each its labels. Room that is not used is no memory.
    const CONTAINER: usize = 32 << 10;
    let mut out = Vec::with_capacity((1 + reading.containers.len()) * CONTAINER);
    bytes_field(&mut out, field::pod::ID, reading.pod.id.as_bytes());
    network(&mut out, reading);
    for container in &reading.containers {
        if let Some(sample) = container.sample.as_deref() {
            message_field(&mut out, field::pod::CONTAINERS, |out| {
                container_metrics(out, stats, &reading.pod, container, sample, disk);
            });
        }
    }
    PodSandboxMetrics::written(out)
}

/// Metrics of one pod or container, as `Metric` messages in a field of their own.
struct Series<'a> {
    out: &'a mut Vec<u8>,
    /// The field they are.
    field: u32,
    at: u64,
    /// The common labels as they are written.
    common: Vec<u8>,
}

impl<'a> Series<'a> {
    fn new(out: &'a mut Vec<u8>, field: u32, at: i64, common: [&str; COMMON.len()]) -> Self {
        let mut written = Vec::new();
        common.iter().for_each(|label| bytes_field(&mut written, field::metric::LABEL, label.as_bytes()));
        Self { out, field, at: u64::try_from(at).unwrap_or(0), common: written }
    }

    fn push(&mut self, family: Family, value: u64) {
        self.labelled(family, &[], value);
    }

    fn labelled(&mut self, family: Family, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let kind = u64::try_from(i32::from(family.kind)).unwrap_or(0);
        let length = field_length(family.name.len())
            + number_field_length(self.at)
            + number_field_length(kind)
            + self.common.len()
            + labels.iter().map(|label| field_length(label.len())).sum::<usize>()
            + field_length(number_field_length(value));
        let out = &mut *self.out;
        length_field(out, self.field, length);
        bytes_field(out, field::metric::NAME, family.name.as_bytes());
        number_field(out, field::metric::TIMESTAMP, self.at);
        number_field(out, field::metric::KIND, kind);
        out.extend_from_slice(&self.common);
        labels.iter().for_each(|label| bytes_field(out, field::metric::LABEL, label.as_bytes()));
        // A value is a message: zero is there, too.
        length_field(out, field::metric::VALUE, number_field_length(value));
        number_field(out, field::VALUE, value);
    }
}

fn common<'a>(
    pod: &'a PodSnapshot,
    container: &'a str,
    cgroup: &'a str,
    image: &'a str,
    id: &'a str,
) -> [&'a str; COMMON.len()] {
    let metadata = pod.config.metadata.as_ref();
    let (namespace, name) =
        metadata.map_or(("", ""), |metadata| (metadata.namespace.as_str(), metadata.name.as_str()));
    [container, cgroup, image, id, namespace, name]
}

fn network(out: &mut Vec<u8>, reading: &PodReading) {
    let pod = &reading.pod;
    let cgroup = pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let labels = common(pod, "POD", cgroup, "", &pod.id);
    let mut series = Series::new(out, field::pod::METRICS, reading.at, labels);
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
}

fn container_metrics(
    out: &mut Vec<u8>,
    stats: &Stats,
    pod: &PodSnapshot,
    reading: &ContainerReading,
    sample: &Sample,
    disk: &Disk,
) {
    let container = &reading.container;
    let config = &container.config;
    let name = config.metadata.as_ref().map_or("", |metadata| &metadata.name);
    let labels = common(pod, name, &container.cgroups_path, &container.image_ref, &container.id);
    bytes_field(out, field::container::ID, container.id.as_bytes());
    let mut series = Series::new(out, field::container::METRICS, sample.at, labels);
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
}

fn used(series: &mut Series<'_>, usage: &Usage) {
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

fn pressure(series: &mut Series<'_>, pressure: Option<Pressure>, waiting: Family, stalled: Family) {
    if let Some(pressure) = pressure {
        series.push(waiting, pressure.some.total_microseconds / 1_000_000);
        series.push(stalled, pressure.full.total_microseconds / 1_000_000);
    }
}

fn detailed(series: &mut Series<'_>, usage: &Usage, detail: &Detail, processes: Processes) {
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

fn devices(series: &mut Series<'_>, stats: &Stats, detail: &Detail) {
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
fn spec(series: &mut Series<'_>, resources: &LinuxContainerResources) {
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
