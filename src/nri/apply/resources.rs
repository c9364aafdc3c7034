//! Limits.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxHugepageLimit, LinuxIntelRdt, LinuxPids, LinuxResources as Oci,
};

use super::super::words;
use super::Error;
use crate::proto::nri::v1alpha1::{LinuxCpu, LinuxMemory, LinuxRdt, LinuxResources};

pub(super) fn adjust(into: &mut Oci, wanted: &LinuxResources) -> Result<(), Error> {
    if let Some(wanted) = &wanted.cpu {
        cpu(into, wanted);
    }
    if let Some(wanted) = &wanted.memory {
        memory(into, wanted);
    }
    for wanted in &wanted.hugepage_limits {
        let mut limit = LinuxHugepageLimit::default();
        limit
            .set_page_size(wanted.page_size.clone())
            .set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
        let limits = into.hugepage_limits_mut().get_or_insert_default();
        limits.retain(|old| old.page_size() != limit.page_size());
        limits.push(limit);
    }
    if !wanted.unified.is_empty() {
        into.unified_mut().get_or_insert_default().extend(wanted.unified.clone());
    }
    if let Some(wanted) = wanted.pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(wanted.limit);
        into.set_pids(Some(pids));
    }
    for wanted in &wanted.devices {
        let value = || Error::Value { field: "resources.devices[].type", value: wanted.r#type.clone() };
        let typ = match wanted.r#type.as_str() {
            "" => None,
            word => Some(words::parse(word).ok_or_else(value)?),
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(wanted.allow)
            .set_typ(typ)
            .set_major(wanted.major.map(|major| major.value))
            .set_minor(wanted.minor.map(|minor| minor.value))
            .set_access((!wanted.access.is_empty()).then(|| wanted.access.clone()));
        into.devices_mut().get_or_insert_default().push(rule);
    }
    match wanted.blockio_class.as_ref().map(|class| class.value.as_str()) {
        None => {}
        Some("") => {
            into.set_block_io(None);
        }
        Some(class) => return Err(Error::BlockIoClass(class.to_owned())),
    }
    Ok(())
}

fn cpu(into: &mut Oci, wanted: &LinuxCpu) {
    let mut cpu = into.cpu().clone().unwrap_or_default();
    if let Some(shares) = wanted.shares {
        cpu.set_shares(Some(shares.value));
    }
    if let Some(quota) = wanted.quota {
        cpu.set_quota(Some(quota.value));
    }
    if let Some(period) = wanted.period {
        cpu.set_period(Some(period.value));
    }
    if let Some(runtime) = wanted.realtime_runtime {
        cpu.set_realtime_runtime(Some(runtime.value));
    }
    if let Some(period) = wanted.realtime_period {
        cpu.set_realtime_period(Some(period.value));
    }
    if !wanted.cpus.is_empty() {
        cpu.set_cpus(Some(wanted.cpus.clone()));
    }
    if !wanted.mems.is_empty() {
        cpu.set_mems(Some(wanted.mems.clone()));
    }
    into.set_cpu(Some(cpu));
}

fn memory(into: &mut Oci, wanted: &LinuxMemory) {
    let mut memory = (*into.memory()).unwrap_or_default();
    if let Some(limit) = wanted.limit.map(|limit| limit.value).filter(|limit| *limit != 0) {
        memory.set_limit(Some(limit));
        // The sum with swap can't be below it.
        if memory.swap().is_some_and(|swap| swap >= 0 && swap < limit) {
            memory.set_swap(Some(limit));
        }
    }
    if let Some(swap) = wanted.swap {
        memory.set_swap(Some(swap.value));
    }
    if let Some(reservation) = wanted.reservation {
        memory.set_reservation(Some(reservation.value));
    }
    if let Some(tcp) = wanted.kernel_tcp {
        memory.set_kernel_tcp(Some(tcp.value));
    }
    if let Some(swappiness) = wanted.swappiness {
        memory.set_swappiness(Some(swappiness.value));
    }
    if let Some(disable) = wanted.disable_oom_killer {
        memory.set_disable_oom_killer(Some(disable.value));
    }
    if let Some(hierarchy) = wanted.use_hierarchy {
        memory.set_use_hierarchy(Some(hierarchy.value));
    }
    into.set_memory(Some(memory));
}

/// Cache and memory bandwidth: by class first, then by single settings.
pub(super) fn rdt(into: &mut Option<LinuxIntelRdt>, class: Option<&str>, wanted: Option<&LinuxRdt>) {
    match class {
        None => {}
        Some("") => *into = None,
        Some(class) => {
            let mut rdt = LinuxIntelRdt::default();
            rdt.set_clos_id(Some(class.to_owned()));
            *into = Some(rdt);
        }
    }
    let Some(wanted) = wanted else { return };
    if wanted.remove {
        *into = None;
    }
    if let Some(clos) = &wanted.clos_id {
        into.get_or_insert_default().set_clos_id(Some(clos.value.clone()));
    }
    if let Some(schemata) = &wanted.schemata {
        into.get_or_insert_default().set_schemata(Some(schemata.value.clone()));
    }
    if let Some(monitoring) = wanted.enable_monitoring {
        into.get_or_insert_default().set_enable_monitoring(Some(monitoring.value));
    }
}

/// The container's place in the hierarchy, as it stands in the specification.
pub(super) fn cgroups_path(path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| PathBuf::from(path))
}
