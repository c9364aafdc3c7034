//! Capabilities: the default set, what the container adds and drops, and what the machine can give at all.
//!
//! The default is the set that Docker and containerd give. The bounding, effective and permitted sets are the same; the
//! inheritable set stays empty (CVE-2022-24769), the ambient set holds `add_ambient_capabilities` only, which are then
//! inheritable too, because the kernel demands that.

use std::collections::{BTreeSet, HashSet};

use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::{Error, SpecInput};

/// All capabilities in the kernel's order: the index is the number.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container has when it says nothing.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The capabilities of a bit mask as `/proc/<pid>/status` shows it.
pub(super) fn from_bits(bits: u64) -> Vec<Capability> {
    ALL.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1).map(|(_, c)| *c).collect()
}

/// The container's capabilities, and the names of those that were asked for but can't be given on this machine.
pub(super) fn build(input: &SpecInput<'_>) -> Result<(LinuxCapabilities, Vec<String>), Error> {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let asked = context.and_then(|c| c.capabilities.as_ref());
    let (add, drop, add_ambient): (&[String], &[String], &[String]) = match asked {
        Some(c) => (&c.add_capabilities, &c.drop_capabilities, &c.add_ambient_capabilities),
        None => (&[], &[], &[]),
    };

    let mut set: BTreeSet<usize> = DEFAULT.iter().filter_map(number).collect();
    let mut ambient = BTreeSet::new();
    if context.is_some_and(|c| c.privileged) {
        // A privileged container has everything; what it adds or drops is not looked at, as in containerd.
        set = (0..ALL.len()).filter(|n| input.host.capabilities.contains(&ALL[*n])).collect();
    } else {
        // ALL goes first on either side, so that `drop: [ALL], add: [CHOWN]` leaves CHOWN, and `add: [ALL],
        // drop: [CHOWN]` leaves everything but CHOWN.
        if add.iter().any(|name| is_all(name)) {
            set = (0..ALL.len()).filter(|n| input.host.capabilities.contains(&ALL[*n])).collect();
        }
        if drop.iter().any(|name| is_all(name)) {
            set.clear();
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set.insert(parse("linux.security_context.capabilities.add_capabilities", name)?);
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.remove(&parse("linux.security_context.capabilities.drop_capabilities", name)?);
        }
        for name in add_ambient {
            if is_all(name) {
                ambient.extend(set.iter().copied());
            } else {
                ambient.insert(parse("linux.security_context.capabilities.add_ambient_capabilities", name)?);
            }
        }
        set.extend(&ambient);
    }

    let available = |n: &usize| input.host.capabilities.contains(&ALL[*n]);
    let missing = set.iter().filter(|n| !available(n)).map(|n| format!("CAP_{}", ALL[*n])).collect();
    let given: HashSet<Capability> = set.iter().filter(|n| available(n)).map(|n| ALL[*n]).collect();
    let ambient: HashSet<Capability> = ambient.iter().filter(|n| available(n)).map(|n| ALL[*n]).collect();

    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(given.clone()))
        .set_effective(Some(given.clone()))
        .set_permitted(Some(given))
        .set_inheritable(Some(ambient.clone()))
        .set_ambient(Some(ambient));
    Ok((capabilities, missing))
}

fn number(capability: &Capability) -> Option<usize> {
    ALL.iter().position(|c| c == capability)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// Kubernetes writes `NET_ADMIN`, others `CAP_NET_ADMIN`; both are meant whatever the case.
fn parse(field: &'static str, name: &str) -> Result<usize, Error> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .position(|c| c.to_string() == bare)
        .ok_or_else(|| Error::invalid(field, name, "no such capability"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1 as cri;

    fn names(set: &Option<HashSet<Capability>>) -> Vec<String> {
        let mut names: Vec<_> = set.iter().flatten().map(ToString::to_string).collect();
        names.sort();
        names
    }

    fn with(add: &[&str], drop: &[&str], ambient: &[&str], privileged: bool) -> Fixture {
        let strings = |v: &[&str]| v.iter().map(ToString::to_string).collect();
        let mut fixture = Fixture::new();
        let context = fixture.context();
        context.privileged = privileged;
        context.capabilities = Some(cri::Capability {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            add_ambient_capabilities: strings(ambient),
        });
        fixture
    }

    #[test]
    fn table_is_in_kernel_order() {
        assert_eq!(ALL[21], Capability::SysAdmin);
        assert_eq!(ALL[24], Capability::SysResource);
        assert_eq!(ALL[40], Capability::CheckpointRestore);
        assert_eq!(from_bits(1 << 12 | 1), vec![Capability::Chown, Capability::NetAdmin]);
    }

    #[test]
    fn sets() {
        let all = ALL.len() - 1; // the fixture's machine has no SYS_RESOURCE
        for (add, drop, ambient, privileged, count, has, has_not) in [
            (vec![], vec![], vec![], false, 14, "KILL", "SYS_ADMIN"),
            (vec!["net_admin"], vec![], vec![], false, 15, "NET_ADMIN", "SYS_ADMIN"),
            (vec!["CAP_NET_ADMIN"], vec!["KILL"], vec![], false, 14, "NET_ADMIN", "KILL"),
            (vec![], vec!["ALL"], vec![], false, 0, "", "KILL"),
            (vec!["KILL"], vec!["all"], vec![], false, 1, "KILL", "CHOWN"),
            (vec!["ALL"], vec![], vec![], false, all, "SYS_ADMIN", "SYS_RESOURCE"),
            (vec!["ALL"], vec!["SYS_ADMIN"], vec![], false, all - 1, "BPF", "SYS_ADMIN"),
            (vec![], vec!["ALL"], vec!["NET_RAW"], false, 1, "NET_RAW", "KILL"),
            (vec![], vec!["ALL"], vec![], true, all, "SYS_ADMIN", "SYS_RESOURCE"),
        ] {
            let fixture = with(&add, &drop, &ambient, privileged);
            let (set, _) = build(&fixture.input()).unwrap();
            let bounding = names(set.bounding());
            assert_eq!(bounding.len(), count, "{add:?} {drop:?} {ambient:?} {privileged}: {bounding:?}");
            assert!(has.is_empty() || bounding.iter().any(|n| n == has), "{has} of {bounding:?}");
            assert!(!bounding.iter().any(|n| n == has_not), "{has_not} of {bounding:?}");
            assert_eq!(names(set.effective()), bounding);
            assert_eq!(names(set.permitted()), bounding);
            assert_eq!(names(set.ambient()), ambient);
            assert_eq!(names(set.inheritable()), ambient);
        }
    }

    #[test]
    fn what_the_machine_lacks_is_told() {
        let (set, missing) = build(&with(&["SYS_RESOURCE"], &[], &[], false).input()).unwrap();
        assert_eq!(missing, ["CAP_SYS_RESOURCE"]);
        assert_eq!(names(set.bounding()).len(), 14);
    }

    #[test]
    fn unknown_names_are_refused() {
        for fixture in [
            with(&["FLY"], &[], &[], false),
            with(&[], &["FLY"], &[], false),
            with(&[], &[], &["FLY"], false),
        ] {
            let error = build(&fixture.input()).unwrap_err().to_string();
            assert!(error.contains("\"FLY\""), "{error}");
        }
    }
}
