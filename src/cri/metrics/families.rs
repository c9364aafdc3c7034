//! Which metrics there are: names, kinds and labels as cAdvisor has them, so that dashboards stay what they are (KEP-2371).

use crate::proto::runtime::v1::{MetricDescriptor, MetricType};

/// Labels that all have, in this order.
pub(super) const COMMON: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric: one name, a series for each set of labels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Labels beside the common ones.
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

/// Descriptors of all of them.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let keys = |family: &Family| COMMON.iter().chain(family.labels).map(|key| (*key).to_owned()).collect();
    ALL.iter()
        .map(|family| MetricDescriptor {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            label_keys: keys(family),
        })
        .collect()
}

macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            pub(super) const $constant: Family =
                Family { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };
        )*
        const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    CPU_USER Counter "container_cpu_user_seconds_total" [] "Processor time in user mode, in seconds.";
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" [] "Processor time in kernel mode, in seconds.";
    CPU_USAGE Counter "container_cpu_usage_seconds_total" [] "Processor time, in seconds.";
    CPU_PERIODS Counter "container_cpu_cfs_periods_total" [] "Enforcement periods of the quota that have passed.";
    CPU_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" [] "Enforcement periods in which it was throttled.";
    CPU_THROTTLED Counter "container_cpu_cfs_throttled_seconds_total" [] "Time it was throttled, in seconds.";

    MEMORY_CACHE Gauge "container_memory_cache" [] "Page cache, in bytes.";
    MEMORY_RSS Gauge "container_memory_rss" [] "Anonymous memory, in bytes.";
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" [] "Memory that the kernel holds for it, in bytes.";
    MEMORY_MAPPED Gauge "container_memory_mapped_file" [] "Files mapped to memory, in bytes.";
    MEMORY_SWAP Gauge "container_memory_swap" [] "Memory swapped out, in bytes.";
    MEMORY_FAILCNT Counter "container_memory_failcnt" [] "Times the memory limit was hit.";
    MEMORY_USAGE Gauge "container_memory_usage_bytes" [] "All memory charged to it, in bytes.";
    MEMORY_MAX_USAGE Gauge "container_memory_max_usage_bytes" [] "Highest memory usage recorded, in bytes.";
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" [] "Memory in use that can't be had back at once, in bytes.";
    MEMORY_ACTIVE_FILE Gauge "container_memory_total_active_file_bytes" [] "Page cache in active use, in bytes.";
    MEMORY_INACTIVE_FILE Gauge "container_memory_total_inactive_file_bytes" [] "Page cache not in active use, in bytes.";
    MEMORY_FAILURES Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults.";

    NETWORK_RX_BYTES Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NETWORK_RX_PACKETS Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    NETWORK_RX_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"] "Packets dropped while receiving.";
    NETWORK_RX_ERRORS Counter "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    NETWORK_TX_BYTES Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NETWORK_TX_PACKETS Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    NETWORK_TX_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped while sending.";
    NETWORK_TX_ERRORS Counter "container_network_transmit_errors_total" ["interface"] "Errors while sending.";

    FS_INODES_FREE Gauge "container_fs_inodes_free" ["device"] "Inodes that are free.";
    FS_INODES Gauge "container_fs_inodes_total" ["device"] "Inodes in all.";
    FS_LIMIT Gauge "container_fs_limit_bytes" ["device"] "Size of the file system of its writable layer, in bytes.";
    FS_USAGE Gauge "container_fs_usage_bytes" ["device"] "Bytes its writable layer takes.";
    FS_READ_BYTES Counter "container_fs_reads_bytes_total" ["device"] "Bytes read.";
    FS_READS Counter "container_fs_reads_total" ["device"] "Reads completed.";
    FS_WRITE_BYTES Counter "container_fs_writes_bytes_total" ["device"] "Bytes written.";
    FS_WRITES Counter "container_fs_writes_total" ["device"] "Writes completed.";
    BLKIO Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes by device and operation.";

    PROCESSES Gauge "container_processes" [] "Processes.";
    THREADS Gauge "container_threads" [] "Threads.";
    THREADS_MAX Gauge "container_threads_max" [] "Threads it may have; 0 for no limit.";
    DESCRIPTORS Gauge "container_file_descriptors" [] "Open file descriptors.";
    SOCKETS Gauge "container_sockets" [] "Open sockets.";
    ULIMITS Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of its first process.";

    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" [] "Enforcement period of the quota, in microseconds.";
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" [] "Processor time in a period, in microseconds.";
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" [] "Share of the processor.";
    SPEC_MEMORY Gauge "container_spec_memory_limit_bytes" [] "Memory limit, in bytes; 0 for none.";
    SPEC_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory kept for it, in bytes; 0 for none.";
    SPEC_SWAP Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap, in bytes; 0 for none.";

    HUGETLB Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use, in bytes.";
    HUGETLB_MAX Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Highest usage of huge pages recorded, in bytes.";

    PRESSURE_CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" [] "Time some tasks waited for the processor, in seconds.";
    PRESSURE_CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" [] "Time all tasks waited for the processor, in seconds.";
    PRESSURE_MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" [] "Time some tasks waited for memory, in seconds.";
    PRESSURE_MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" [] "Time all tasks waited for memory, in seconds.";
    PRESSURE_IO_WAITING Counter "container_pressure_io_waiting_seconds_total" [] "Time some tasks waited for input or output, in seconds.";
    PRESSURE_IO_STALLED Counter "container_pressure_io_stalled_seconds_total" [] "Time all tasks waited for input or output, in seconds.";

    LAST_SEEN Gauge "container_last_seen" [] "When it was last looked at, in seconds since the Unix epoch.";
    START_TIME Gauge "container_start_time_seconds" [] "When it was started, in seconds since the Unix epoch.";
    OOM_EVENTS Counter "container_oom_events_total" [] "Processes killed for want of memory.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_told_apart_and_explained() {
        let descriptors = descriptors();
        let names: HashSet<_> = descriptors.iter().map(|descriptor| &descriptor.name).collect();
        assert_eq!(names.len(), descriptors.len());
        assert_eq!(descriptors.len(), 58);
        for descriptor in &descriptors {
            assert!(descriptor.name.starts_with("container_") && !descriptor.help.is_empty());
            assert!(descriptor.label_keys.starts_with(&COMMON.map(str::to_owned)));
        }
    }
}
