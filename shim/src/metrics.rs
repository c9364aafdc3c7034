//! Figures of the container's cgroup, as containerd's `Stats` call gives them: `io.containerd.cgroups.v1.Metrics` or the same of v2.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};

use crate::cgroup;

/// Reads the figures; those that the kernel does not keep here are left out.
pub(crate) fn read(directories: &[PathBuf]) -> Any {
    if cgroup::unified() {
        let metrics = directories.first().map(|directory| unified(directory)).unwrap_or_default();
        any("io.containerd.cgroups.v2.Metrics", &metrics)
    } else {
        any("io.containerd.cgroups.v1.Metrics", &legacy(directories))
    }
}

fn any(name: &str, metrics: &impl Message) -> Any {
    Any {
        type_url: name.to_owned(),
        value: metrics.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A number; `max` is no limit.
fn number(path: &Path) -> Option<u64> {
    match text(path).trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

/// The value of a key in a file of lines `key value`.
fn value(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|digits| digits.trim().parse().ok())
        .unwrap_or(0)
}

fn unified(directory: &Path) -> v2::Metrics {
    let file = |name: &str| directory.join(name);
    let (cpu, memory, events) =
        (text(&file("cpu.stat")), text(&file("memory.stat")), text(&file("memory.events")));
    let io = text(&file("io.stat"));
    let entries = io.lines().filter_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let of = |key: &str| {
            rest.split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
                .unwrap_or(0)
        };
        Some(v2::IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: of("rbytes"),
            wbytes: of("wbytes"),
            rios: of("rios"),
            wios: of("wios"),
            ..Default::default()
        })
    });
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: number(&file("pids.current")).unwrap_or(0),
            limit: number(&file("pids.max")).unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: value(&cpu, "usage_usec"),
            user_usec: value(&cpu, "user_usec"),
            system_usec: value(&cpu, "system_usec"),
            nr_periods: value(&cpu, "nr_periods"),
            nr_throttled: value(&cpu, "nr_throttled"),
            throttled_usec: value(&cpu, "throttled_usec"),
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: value(&memory, "anon"),
            file: value(&memory, "file"),
            kernel_stack: value(&memory, "kernel_stack"),
            slab: value(&memory, "slab"),
            sock: value(&memory, "sock"),
            shmem: value(&memory, "shmem"),
            file_mapped: value(&memory, "file_mapped"),
            file_dirty: value(&memory, "file_dirty"),
            file_writeback: value(&memory, "file_writeback"),
            inactive_anon: value(&memory, "inactive_anon"),
            active_anon: value(&memory, "active_anon"),
            inactive_file: value(&memory, "inactive_file"),
            active_file: value(&memory, "active_file"),
            unevictable: value(&memory, "unevictable"),
            slab_reclaimable: value(&memory, "slab_reclaimable"),
            slab_unreclaimable: value(&memory, "slab_unreclaimable"),
            pgfault: value(&memory, "pgfault"),
            pgmajfault: value(&memory, "pgmajfault"),
            usage: number(&file("memory.current")).unwrap_or(0),
            usage_limit: number(&file("memory.max")).unwrap_or(0),
            swap_usage: number(&file("memory.swap.current")).unwrap_or(0),
            swap_limit: number(&file("memory.swap.max")).unwrap_or(0),
            ..Default::default()
        }),
        io: MessageField::some(v2::IOStat { usage: entries.collect(), ..Default::default() }),
        memory_events: MessageField::some(v2::MemoryEvents {
            low: value(&events, "low"),
            high: value(&events, "high"),
            max: value(&events, "max"),
            oom: value(&events, "oom"),
            oom_kill: value(&events, "oom_kill"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn legacy(directories: &[PathBuf]) -> v1::Metrics {
    let file = |name: &str| cgroup::with_file(directories, name).unwrap_or_default();
    let plain = |name: &str| number(&file(name)).unwrap_or(0);
    let (stat, cpu, throttled) =
        (text(&file("memory.stat")), text(&file("cpuacct.usage_percpu")), text(&file("cpu.stat")));
    let oom = text(&file("memory.oom_control"));
    let entry = |prefix: &str| v1::MemoryEntry {
        limit: plain(&format!("{prefix}.limit_in_bytes")),
        usage: plain(&format!("{prefix}.usage_in_bytes")),
        max: plain(&format!("{prefix}.max_usage_in_bytes")),
        failcnt: plain(&format!("{prefix}.failcnt")),
        ..Default::default()
    };
    let blkio = |name: &str| {
        let text = text(&file(name));
        let entries = text.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = words.next()?.split_once(':')?;
            let (op, value) = (words.next()?, words.next()?);
            Some(v1::BlkIOEntry {
                op: op.to_owned(),
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                value: value.parse().ok()?,
                ..Default::default()
            })
        });
        entries.collect::<Vec<_>>()
    };
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: plain("pids.current"),
            // No limit is 0 in these figures.
            limit: number(&file("pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or(0),
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: plain("cpuacct.usage"),
                kernel: plain("cpuacct.usage_sys"),
                user: plain("cpuacct.usage_user"),
                per_cpu: cpu.split_whitespace().filter_map(|digits| digits.parse().ok()).collect(),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: value(&throttled, "nr_periods"),
                throttled_periods: value(&throttled, "nr_throttled"),
                throttled_time: value(&throttled, "throttled_time"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache: value(&stat, "cache"),
            rss: value(&stat, "rss"),
            mapped_file: value(&stat, "mapped_file"),
            dirty: value(&stat, "dirty"),
            writeback: value(&stat, "writeback"),
            pg_pg_in: value(&stat, "pgpgin"),
            pg_pg_out: value(&stat, "pgpgout"),
            pg_fault: value(&stat, "pgfault"),
            pg_maj_fault: value(&stat, "pgmajfault"),
            inactive_anon: value(&stat, "inactive_anon"),
            active_anon: value(&stat, "active_anon"),
            inactive_file: value(&stat, "inactive_file"),
            active_file: value(&stat, "active_file"),
            unevictable: value(&stat, "unevictable"),
            hierarchical_memory_limit: value(&stat, "hierarchical_memory_limit"),
            hierarchical_swap_limit: value(&stat, "hierarchical_memsw_limit"),
            total_cache: value(&stat, "total_cache"),
            total_rss: value(&stat, "total_rss"),
            total_mapped_file: value(&stat, "total_mapped_file"),
            total_pg_fault: value(&stat, "total_pgfault"),
            total_pg_maj_fault: value(&stat, "total_pgmajfault"),
            total_inactive_anon: value(&stat, "total_inactive_anon"),
            total_active_anon: value(&stat, "total_active_anon"),
            total_inactive_file: value(&stat, "total_inactive_file"),
            total_active_file: value(&stat, "total_active_file"),
            total_unevictable: value(&stat, "total_unevictable"),
            usage: MessageField::some(entry("memory")),
            swap: MessageField::some(entry("memory.memsw")),
            kernel: MessageField::some(entry("memory.kmem")),
            ..Default::default()
        }),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: blkio("blkio.throttle.io_service_bytes_recursive"),
            io_serviced_recursive: blkio("blkio.throttle.io_serviced_recursive"),
            ..Default::default()
        }),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill_disable: value(&oom, "oom_kill_disable"),
            under_oom: value(&oom, "under_oom"),
            oom_kill: value(&oom, "oom_kill"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn files_of_both_versions_are_understood() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_periods 3\n");
        write("memory.stat", "anon 11\nanon_thp 12\nfile 13\n");
        write("memory.current", "14\n");
        write("memory.max", "max\n");
        write("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
        write("pids.current", "2\n");
        write("memory.events", "low 0\noom 1\noom_kill 1\n");
        let metrics = unified(directory.path());
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.anon, metrics.memory.usage), (7, 11, 14));
        assert_eq!((metrics.memory.usage_limit, metrics.io.usage[0].wbytes), (u64::MAX, 2));
        assert_eq!((metrics.pids.current, metrics.memory_events.oom_kill), (2, 1));

        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("cpuacct.usage", "9\n");
        write("cpuacct.usage_percpu", "4 5 \n");
        write("memory.usage_in_bytes", "21\n");
        write("memory.stat", "cache 3\nrss 4\ntotal_rss 5\n");
        write("blkio.throttle.io_service_bytes_recursive", "8:0 Read 6\nTotal 6\n");
        let metrics = legacy(&[directory.path().to_owned()]);
        assert_eq!((metrics.cpu.usage.total, &metrics.cpu.usage.per_cpu[..]), (9, &[4, 5][..]));
        assert_eq!((metrics.memory.usage.usage, metrics.memory.rss, metrics.memory.total_rss), (21, 4, 5));
        assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 1);
    }
}
