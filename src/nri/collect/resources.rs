//! Limits: who owns which, and laying some over others.

use super::super::owners::{Conflict, Owners};
use crate::proto::nri::v1alpha1::{Field, LinuxCpu, LinuxMemory, LinuxResources};

/// Takes all fields that are set.
pub(super) fn claim(
    owners: &mut Owners,
    id: &str,
    plugin: &str,
    wanted: &LinuxResources,
) -> Result<(), Conflict> {
    let none = (LinuxMemory::default(), LinuxCpu::default());
    let (memory, cpu) = (wanted.memory.as_ref().unwrap_or(&none.0), wanted.cpu.as_ref().unwrap_or(&none.1));
    for (set, field) in [
        (memory.limit.is_some(), Field::MemLimit),
        (memory.reservation.is_some(), Field::MemReservation),
        (memory.swap.is_some(), Field::MemSwapLimit),
        (memory.kernel.is_some(), Field::MemKernelLimit),
        (memory.kernel_tcp.is_some(), Field::MemTcpLimit),
        (memory.swappiness.is_some(), Field::MemSwappiness),
        (memory.disable_oom_killer.is_some(), Field::MemDisableOomKiller),
        (memory.use_hierarchy.is_some(), Field::MemUseHierarchy),
        (cpu.shares.is_some(), Field::CpuShares),
        (cpu.quota.is_some(), Field::CpuQuota),
        (cpu.period.is_some(), Field::CpuPeriod),
        (cpu.realtime_runtime.is_some(), Field::CpuRealtimeRuntime),
        (cpu.realtime_period.is_some(), Field::CpuRealtimePeriod),
        (!cpu.cpus.is_empty(), Field::CpuSetCpUs),
        (!cpu.mems.is_empty(), Field::CpuSetMems),
        (wanted.pids.is_some(), Field::PidsLimit),
        (wanted.blockio_class.is_some(), Field::BlockioClass),
        (wanted.rdt_class.is_some(), Field::RdtClass),
    ] {
        if set {
            owners.claim(id, field, plugin)?;
        }
    }
    for limit in &wanted.hugepage_limits {
        owners.claim_entry(id, Field::HugepageLimits, &limit.page_size, plugin)?;
    }
    for name in wanted.unified.keys() {
        owners.claim_entry(id, Field::CgroupsUnified, name, plugin)?;
    }
    Ok(())
}

/// Lays what is set over `into`.
pub(super) fn overlay(wanted: &LinuxResources, into: &mut LinuxResources) {
    macro_rules! set {
        ($from:expr, $into:expr; $($field:ident),*) => {
            $(if $from.$field.is_some() {
                $into.$field.clone_from(&$from.$field);
            })*
        };
    }
    if let Some(memory) = &wanted.memory {
        let into = into.memory.get_or_insert_default();
        set!(memory, into; limit, reservation, swap, kernel, kernel_tcp, swappiness, disable_oom_killer,
            use_hierarchy);
    }
    if let Some(cpu) = &wanted.cpu {
        let into = into.cpu.get_or_insert_default();
        set!(cpu, into; shares, quota, period, realtime_runtime, realtime_period);
        for (from, into) in [(&cpu.cpus, &mut into.cpus), (&cpu.mems, &mut into.mems)] {
            if !from.is_empty() {
                into.clone_from(from);
            }
        }
    }
    set!(wanted, into; pids, blockio_class, rdt_class);
    for limit in &wanted.hugepage_limits {
        into.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        into.hugepage_limits.push(limit.clone());
    }
    into.unified.extend(wanted.unified.clone());
    into.devices.extend_from_slice(&wanted.devices);
}
