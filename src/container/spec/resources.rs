//! Resources: from the CRI's words to the OCI's. A zero in the CRI means "not set".

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use super::{Error, Host, SpecInput};
use crate::cgroup::Mode;
use crate::proto::runtime::v1::LinuxContainerResources;

/// The container's resources without its devices. Notes tell what was left out on this machine.
pub(super) fn build(input: &SpecInput<'_>, notes: &mut Vec<String>) -> Result<LinuxResources, Error> {
    let none = LinuxContainerResources::default();
    let asked = input.container.linux.as_ref().and_then(|l| l.resources.as_ref()).unwrap_or(&none);
    let host = input.host;
    let mut resources = LinuxResources::default();
    resources.set_cpu(cpu(asked)?).set_memory(memory(asked, host, notes)?);
    resources.set_hugepage_limits(hugepages(asked, host, notes)?);
    let mut pids = input.handler.pids_limit;

    if !asked.unified.is_empty() {
        if let Some(name) = asked.unified.keys().find(|name| !is_cgroup_file(name)) {
            return Err(Error::invalid(
                "linux.resources.unified",
                name,
                "is not the name of a cgroup v2 file",
            ));
        }
        if let Some(limit) = asked.unified.get("pids.max") {
            pids = Some(parse_pids(limit)?);
        }
        if host.cgroup == Mode::Unified {
            let unified: HashMap<String, String> = asked
                .unified
                .iter()
                .filter(|(k, _)| *k != "pids.max")
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            resources.set_unified((!unified.is_empty()).then_some(unified));
        } else if asked.unified.keys().any(|name| name != "pids.max") {
            notes.push("linux.resources.unified has no effect on cgroup v1".to_owned());
        }
    }
    if let Some(limit) = pids.filter(|limit| *limit != 0) {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

fn cpu(asked: &LinuxContainerResources) -> Result<Option<LinuxCpu>, Error> {
    let mut cpu = LinuxCpu::default();
    let count = |field, value: i64| {
        u64::try_from(value).map_err(|_| Error::invalid(field, value.to_string(), "is negative"))
    };
    let shares = count("linux.resources.cpu_shares", asked.cpu_shares)?;
    let period = count("linux.resources.cpu_period", asked.cpu_period)?;
    cpu.set_shares((shares != 0).then_some(shares))
        .set_period((period != 0).then_some(period))
        // -1 is "no limit", which undoes one.
        .set_quota((asked.cpu_quota != 0).then_some(asked.cpu_quota.max(-1)))
        .set_cpus(cpuset("linux.resources.cpuset_cpus", &asked.cpuset_cpus)?)
        .set_mems(cpuset("linux.resources.cpuset_mems", &asked.cpuset_mems)?);
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

/// Cpuset(7), "List format": `0-3,7`. Checked here because the kernel's EINVAL would name nothing.
fn cpuset(field: &'static str, text: &str) -> Result<Option<String>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => {
            matches!((from.parse::<u32>(), to.parse::<u32>()), (Ok(from), Ok(to)) if from <= to)
        }
        None => part.parse::<u32>().is_ok(),
    };
    if text.split(',').all(|part| range(part.trim())) {
        Ok(Some(text.to_owned()))
    } else {
        Err(Error::invalid(field, text, "is not a list such as 0-3,7"))
    }
}

fn memory(
    asked: &LinuxContainerResources,
    host: &Host,
    notes: &mut Vec<String>,
) -> Result<Option<LinuxMemory>, Error> {
    const SWAP: &str = "linux.resources.memory_swap_limit_in_bytes";
    let limit = asked.memory_limit_in_bytes;
    let swap = asked.memory_swap_limit_in_bytes;
    for (field, value) in [("linux.resources.memory_limit_in_bytes", limit), (SWAP, swap)] {
        if value < -1 {
            return Err(Error::invalid(field, value.to_string(), "is negative"));
        }
    }
    if swap > 0 && limit > swap {
        return Err(Error::invalid(SWAP, swap.to_string(), "is below the memory limit, which it includes"));
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit((limit != 0).then_some(limit));
    if swap == 0 && limit > 0 && host.swap {
        // Who limits memory and says nothing of swap gets none, as containerd and CRI-O have it.
        memory.set_swap(Some(limit));
    }
    if swap != 0 {
        if host.swap {
            memory.set_swap(Some(swap));
        } else {
            notes.push(format!("{SWAP} has no effect: this kernel does not account swap"));
        }
    }
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

fn hugepages(
    asked: &LinuxContainerResources,
    host: &Host,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<LinuxHugepageLimit>>, Error> {
    let mut limits = Vec::new();
    for limit in &asked.hugepage_limits {
        let size = limit.page_size.as_str();
        let digits = size.strip_suffix("KB").or(size.strip_suffix("MB")).or(size.strip_suffix("GB"));
        if digits.is_none_or(|d| d.is_empty() || !d.bytes().all(|b| b.is_ascii_digit())) {
            return Err(Error::invalid(
                "linux.resources.hugepage_limits[].page_size",
                size,
                "is not like 2MB",
            ));
        }
        let mut huge = LinuxHugepageLimit::default();
        huge.set_page_size(size.to_owned()).set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
        limits.push(huge);
    }
    if !host.hugetlb && !limits.is_empty() {
        // The kubelet sends a limit of 0 for every size to every container: a kernel without the controller must
        // not fail them all.
        notes.push("linux.resources.hugepage_limits have no effect: no hugetlb controller".to_owned());
        return Ok(None);
    }
    Ok((!limits.is_empty()).then_some(limits))
}

fn parse_pids(text: &str) -> Result<i64, Error> {
    match text.trim() {
        "max" => Ok(-1),
        number => number.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(|| {
            Error::invalid("linux.resources.unified pids.max", text, "must be a number or max")
        }),
    }
}

/// A file's name and no path: it is joined with the cgroup's directory by whoever applies it.
fn is_cgroup_file(name: &str) -> bool {
    name.contains('.')
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.contains("..")
        && !matches!(
            name,
            "cgroup.procs" | "cgroup.threads" | "cgroup.kill" | "cgroup.freeze" | "cgroup.type"
        )
}

/// The `oom_score_adj` of the process. Without CAP_SYS_RESOURCE the kernel refuses to go below our own: then ours is
/// taken, and a note says so.
pub(super) fn oom_score_adj(input: &SpecInput<'_>, notes: &mut Vec<String>) -> Result<Option<i32>, Error> {
    // Who says nothing gets 0: ours, which a service manager may have made next to untouchable, is not for containers.
    let asked = input.container.linux.as_ref().and_then(|l| l.resources.as_ref());
    let asked = asked.map_or(0, |resources| resources.oom_score_adj);
    let value = i32::try_from(asked).ok().filter(|v| (-1000..=1000).contains(v)).ok_or_else(|| {
        let reason = "must be from -1000 to 1000";
        Error::invalid("linux.resources.oom_score_adj", asked.to_string(), reason)
    })?;
    let (value, note) = cap_oom_score_adj(input.host, value);
    notes.extend(note);
    Ok(Some(value))
}

/// The nearest `oom_score_adj` that this process may set, and what to report when it is not the one wanted.
pub fn cap_oom_score_adj(host: &Host, wanted: i32) -> (i32, Option<String>) {
    if host.may_exceed || wanted >= host.oom_score_adj {
        return (wanted, None);
    }
    let own = host.oom_score_adj;
    (
        own,
        Some(format!(
            "oom_score_adj {wanted} became {own}: without CAP_SYS_RESOURCE none below our own can be set"
        )),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::HugepageLimit;

    fn fixture(change: impl FnOnce(&mut LinuxContainerResources)) -> Fixture {
        let mut fixture = Fixture::new();
        change(fixture.resources());
        fixture
    }

    fn built(fixture: &Fixture) -> LinuxResources {
        build(&fixture.input(), &mut Vec::new()).unwrap()
    }

    #[test]
    fn nothing_asked() {
        assert_eq!(built(&fixture(|_| {})), LinuxResources::default());
    }

    #[test]
    fn cpu_and_memory() {
        let resources = built(&fixture(|r| {
            r.cpu_shares = 512;
            r.cpu_period = 100_000;
            r.cpu_quota = -7;
            r.cpuset_cpus = "0-1,3".into();
            r.memory_limit_in_bytes = 1 << 20;
            r.memory_swap_limit_in_bytes = 1 << 20;
        }));
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.period(), cpu.quota()), (Some(512), Some(100_000), Some(-1)));
        assert_eq!((cpu.cpus().as_deref(), cpu.mems().as_deref()), (Some("0-1,3"), None));
        let memory = resources.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(1 << 20), Some(1 << 20)));
    }

    #[test]
    fn who_says_nothing_of_swap_gets_none() {
        let mut fixture = fixture(|r| r.memory_limit_in_bytes = 1 << 20);
        fixture.host.swap = true;
        let swap = |fixture: &Fixture| built(fixture).memory().as_ref().unwrap().swap();
        assert_eq!(swap(&fixture), Some(1 << 20));
        fixture.resources().memory_swap_limit_in_bytes = -1;
        assert_eq!(swap(&fixture), Some(-1));
        fixture.resources().memory_swap_limit_in_bytes = 0;
        fixture.host.swap = false;
        assert_eq!(swap(&fixture), None);
    }

    #[test]
    fn what_the_machine_lacks_is_told() {
        let mut fixture = fixture(|r| {
            r.memory_swap_limit_in_bytes = 5;
            r.hugepage_limits = vec![HugepageLimit { page_size: "2MB".into(), limit: u64::MAX }];
            r.unified.insert("memory.high".into(), "1".into());
        });
        let mut notes = Vec::new();
        fixture.host.swap = false;
        fixture.host.hugetlb = false;
        fixture.host.cgroup = Mode::Hybrid;
        assert_eq!(build(&fixture.input(), &mut notes).unwrap(), LinuxResources::default());
        assert_eq!(notes.len(), 3, "{notes:?}");
        fixture.host.hugetlb = true;
        let resources = built(&fixture);
        assert_eq!(resources.hugepage_limits().as_ref().unwrap()[0].limit(), i64::MAX);
    }

    #[test]
    fn pids() {
        for (unified, default, want) in [
            (None, None, None),
            (None, Some(100), Some(100)),
            (Some("50"), Some(100), Some(50)),
            (Some("max"), Some(100), Some(-1)),
        ] {
            let mut fixture = fixture(|r| {
                r.unified.extend(unified.map(|v: &str| ("pids.max".to_owned(), v.to_owned())));
            });
            fixture.handler.pids_limit = default;
            assert_eq!(built(&fixture).pids().as_ref().map(LinuxPids::limit), want);
        }
    }

    #[test]
    fn unified_on_v2() {
        let mut fixture = fixture(|r| {
            r.unified.insert("memory.high".into(), "1".into());
            r.unified.insert("pids.max".into(), "5".into());
        });
        fixture.host.cgroup = Mode::Unified;
        let resources = built(&fixture);
        assert_eq!(resources.unified().as_ref().unwrap().len(), 1);
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 5);
    }

    #[test]
    fn refused() {
        for change in [
            (|r| r.cpu_shares = -1) as fn(&mut LinuxContainerResources),
            |r| r.cpu_period = -1,
            |r| r.memory_limit_in_bytes = -2,
            |r| {
                r.memory_limit_in_bytes = 10;
                r.memory_swap_limit_in_bytes = 9;
            },
            |r| r.cpuset_cpus = "3-1".into(),
            |r| r.cpuset_mems = "x".into(),
            |r| r.hugepage_limits = vec![HugepageLimit { page_size: "2".into(), limit: 1 }],
            |r| drop(r.unified.insert("../memory.high".into(), "1".into())),
            |r| drop(r.unified.insert("cgroup.procs".into(), "1".into())),
            |r| drop(r.unified.insert("a..b".into(), "1".into())),
            |r| drop(r.unified.insert("pids.max".into(), "0".into())),
        ] {
            let fixture = fixture(change);
            assert!(build(&fixture.input(), &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn out_of_memory_score() {
        let mut fixture = fixture(|r| r.oom_score_adj = -998);
        let mut notes = Vec::new();
        assert_eq!(oom_score_adj(&fixture.input(), &mut notes).unwrap(), Some(0));
        assert_eq!(notes.len(), 1);
        fixture.host.may_exceed = true;
        assert_eq!(oom_score_adj(&fixture.input(), &mut notes).unwrap(), Some(-998));
        fixture.resources().oom_score_adj = 1001;
        assert!(oom_score_adj(&fixture.input(), &mut notes).is_err());
        fixture = Fixture::new();
        (fixture.host.may_exceed, fixture.host.oom_score_adj) = (true, -999);
        assert_eq!(oom_score_adj(&fixture.input(), &mut notes).unwrap(), Some(0), "not that of the daemon");
    }
}
