//! Writes readings as CRI statistics.

use crate::cgroup::usage::{Memory, Pressure, Stall};
use crate::proto::runtime::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use crate::stats::{ContainerReading, PodReading, Sample, Stats};

/// The statistics of a container. One that does not run has those of its writable layer.
pub(crate) fn container(stats: &Stats, reading: &ContainerReading) -> ContainerStats {
    let config = &reading.container.config;
    let sample = reading.sample.as_deref();
    // Not walked yet: what was true when it was made.
    let layer = reading
        .layer
        .unwrap_or(crate::stats::LayerUsage { at: reading.container.created_at, ..Default::default() });
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: reading.container.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        cpu: sample.and_then(cpu),
        memory: sample.and_then(memory),
        writable_layer: Some(FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(FilesystemIdentifier { mountpoint: stats.filesystem().display().to_string() }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
        swap: sample.and_then(swap),
        io: sample.and_then(io),
    }
}

/// The statistics of a pod.
pub(crate) fn pod(stats: &Stats, reading: &PodReading) -> PodSandboxStats {
    let config = &reading.pod.config;
    let sample = reading.sample.as_deref();
    let processes =
        reading.containers.iter().filter_map(|container| container.sample.as_deref()?.usage.tasks).sum();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: reading.pod.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: sample.and_then(cpu),
            memory: sample.and_then(memory),
            network: network(reading),
            process: Some(ProcessUsage { timestamp: reading.at, process_count: value(processes) }),
            containers: reading.containers.iter().map(|reading| container(stats, reading)).collect(),
            io: sample.and_then(io),
        }),
        windows: None,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the proto's form of a number that is there")]
fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(sample: &Sample) -> Option<CpuUsage> {
    Some(CpuUsage {
        timestamp: sample.at,
        usage_core_nano_seconds: value(sample.usage.cpu_nanoseconds?),
        usage_nano_cores: sample.nano_cores.and_then(value),
        psi: sample.usage.cpu_pressure.map(psi),
    })
}

fn memory(sample: &Sample) -> Option<MemoryUsage> {
    let memory = sample.usage.memory.as_ref()?;
    Some(MemoryUsage {
        timestamp: sample.at,
        working_set_bytes: value(memory.working_set()),
        // Without a limit nothing can be said: it is the node's.
        available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(memory.working_set()))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: sample.usage.memory_pressure.map(psi),
    })
}

fn swap(sample: &Sample) -> Option<SwapUsage> {
    let Memory { swap, swap_limit, .. } = sample.usage.memory.as_ref()?;
    let swap = (*swap)?;
    Some(SwapUsage {
        timestamp: sample.at,
        swap_available_bytes: swap_limit.and_then(|limit| value(limit.saturating_sub(swap))),
        swap_usage_bytes: value(swap),
    })
}

/// Nothing but pressure, and so nothing on v1.
fn io(sample: &Sample) -> Option<IoUsage> {
    let pressure = sample.usage.io_pressure?;
    Some(IoUsage { timestamp: sample.at, psi: Some(psi(pressure)) })
}

/// The kernel counts microseconds, the CRI nanoseconds.
fn psi(pressure: Pressure) -> PsiStats {
    let data = |stall: Stall| PsiData {
        total: stall.total_microseconds.saturating_mul(1000),
        avg10: stall.average_10,
        avg60: stall.average_60,
        avg300: stall.average_300,
    };
    PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn network(reading: &PodReading) -> Option<NetworkUsage> {
    // On the host's network what a pod sends can't be told from what others do.
    reading.pod.netns.as_ref()?;
    let interfaces: Vec<_> = reading
        .traffic
        .iter()
        .map(|traffic| NetworkInterfaceUsage {
            name: traffic.interface.clone(),
            rx_bytes: value(traffic.received.bytes),
            rx_errors: value(traffic.received.errors),
            tx_bytes: value(traffic.sent.bytes),
            tx_errors: value(traffic.sent.errors),
        })
        .collect();
    let default = interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first());
    Some(NetworkUsage { timestamp: reading.at, default_interface: default.cloned(), interfaces })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cgroup::usage::Usage;
    use crate::cri::fixtures;
    use crate::stats::Depth;

    #[tokio::test]
    async fn counters_carry_the_time_they_were_read_at() {
        let directory = tempfile::tempdir().unwrap();
        let rooms = fixtures::rooms(directory.path());
        let wanted = || vec![std::sync::Arc::new(fixtures::pod("aabb", "web"))];
        let at = async || {
            let readings = rooms.stats.pods(wanted(), Depth::Usage).await;
            pod(&rooms.stats, readings.first().unwrap()).linux.unwrap().network.unwrap().timestamp
        };
        // Asked again within a second: the same counters, and so the same time.
        loop {
            let begin = std::time::Instant::now();
            let times = (at().await, at().await);
            if begin.elapsed() < std::time::Duration::from_millis(900) {
                assert!(times.0 > 0);
                return assert_eq!(times.0, times.1);
            }
            // A busy machine; what is kept is too old by then.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }

    #[test]
    fn limits_leave_room_and_none_says_nothing() {
        let mut sample = Sample {
            at: 5,
            usage: Usage {
                cpu_nanoseconds: Some(7),
                memory: Some(Memory {
                    usage: 100,
                    inactive_file: 30,
                    limit: Some(1000),
                    swap: Some(4),
                    ..Default::default()
                }),
                io_pressure: Some(Pressure {
                    full: Stall { total_microseconds: 3, ..Default::default() },
                    ..Default::default()
                }),
                ..Default::default()
            },
            nano_cores: None,
            detail: None,
        };
        let found = memory(&sample).unwrap();
        assert_eq!((found.working_set_bytes, found.available_bytes), (value(70), value(930)));
        assert_eq!(cpu(&sample).unwrap().usage_nano_cores, None);
        assert_eq!(io(&sample).unwrap().psi.unwrap().full.unwrap().total, 3000);
        let found = swap(&sample).unwrap();
        assert_eq!((found.swap_usage_bytes, found.swap_available_bytes), (value(4), None));
        sample.usage.memory.as_mut().unwrap().limit = None;
        assert_eq!(memory(&sample).unwrap().available_bytes, None);
    }
}
