//! Limits, from the CRI's words and back. A zero in the CRI means "not set".

use crate::proto::nri::v1alpha1::{
    HugepageLimit, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, OptionalInt64, OptionalUInt64,
};
use crate::proto::runtime::v1::{self as cri, LinuxContainerResources};

/// How the CRI carries a limit of processes: as the cgroup v2 file of that name, which is done on v1 too.
const PIDS: &str = "pids.max";

pub(in crate::nri) fn from_cri(resources: &LinuxContainerResources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt64 { value });
    let unsigned =
        |value: i64| u64::try_from(value).ok().filter(|v| *v != 0).map(|value| OptionalUInt64 { value });
    let mut unified = resources.unified.clone();
    let pids = unified.remove(PIDS).map(|limit| LinuxPids { limit: limit.trim().parse().unwrap_or(-1) });
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(resources.memory_limit_in_bytes),
            swap: signed(resources.memory_swap_limit_in_bytes),
            ..Default::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(resources.cpu_shares),
            quota: signed(resources.cpu_quota),
            period: unsigned(resources.cpu_period),
            cpus: resources.cpuset_cpus.clone(),
            mems: resources.cpuset_mems.clone(),
            ..Default::default()
        }),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified,
        pids,
        ..Default::default()
    }
}

/// The limits in the CRI's words, and what of them the CRI has no words for.
pub(in crate::nri) fn to_cri(resources: &LinuxResources) -> (LinuxContainerResources, Vec<&'static str>) {
    let memory = resources.memory.unwrap_or_default();
    let cpu = resources.cpu.clone().unwrap_or_default();
    let unsigned =
        |value: Option<OptionalUInt64>| value.map_or(0, |v| i64::try_from(v.value).unwrap_or(i64::MAX));
    let signed = |value: Option<OptionalInt64>| value.map_or(0, |v| v.value);
    let mut unified = resources.unified.clone();
    if let Some(pids) = resources.pids {
        let limit = if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() };
        unified.insert(PIDS.to_owned(), limit);
    }
    let lost = [
        ("memory.reservation", memory.reservation.is_some()),
        ("memory.kernel", memory.kernel.is_some()),
        ("memory.kernel_tcp", memory.kernel_tcp.is_some()),
        ("memory.swappiness", memory.swappiness.is_some()),
        ("memory.disable_oom_killer", memory.disable_oom_killer.is_some()),
        ("memory.use_hierarchy", memory.use_hierarchy.is_some()),
        ("cpu.realtime_runtime", cpu.realtime_runtime.is_some()),
        ("cpu.realtime_period", cpu.realtime_period.is_some()),
        ("blockio_class", resources.blockio_class.is_some()),
        ("rdt_class", resources.rdt_class.is_some()),
        ("devices", !resources.devices.is_empty()),
    ];
    let cri = LinuxContainerResources {
        cpu_period: unsigned(cpu.period),
        cpu_quota: signed(cpu.quota),
        cpu_shares: unsigned(cpu.shares),
        memory_limit_in_bytes: signed(memory.limit),
        memory_swap_limit_in_bytes: signed(memory.swap),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| cri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified,
        ..Default::default()
    };
    (cri, lost.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let asked = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 2 << 20,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 7 }],
            unified: [("pids.max", "5"), ("memory.high", "9")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let (back, lost) = to_cri(&from_cri(&asked));
        assert_eq!(back, asked);
        assert!(lost.is_empty());
        let nothing = from_cri(&LinuxContainerResources::default());
        assert!(nothing.cpu.unwrap_or_default().shares.is_none());
    }

    #[test]
    fn what_the_cri_can_not_say_is_named() {
        let memory = LinuxMemory { reservation: Some(OptionalInt64 { value: 1 }), ..Default::default() };
        let (_, lost) = to_cri(&LinuxResources { memory: Some(memory), ..Default::default() });
        assert_eq!(lost, ["memory.reservation"]);
    }
}
