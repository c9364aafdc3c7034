#![allow(clippy::unwrap_used)]

use std::path::Path;

use oci_spec::runtime::{
    LinuxMemory as OciMemory, LinuxNamespaceType, MemoryPolicyModeType, PosixRlimitType,
};

use super::*;
use crate::proto::nri::v1alpha1::*;

fn text(value: &str) -> Option<OptionalString> {
    Some(OptionalString { value: value.to_owned() })
}

fn adjusted(wanted: &ContainerAdjustment) -> Spec {
    let mut spec = Spec::default();
    adjust(&mut spec, wanted, &Registry::default()).unwrap();
    spec
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..Default::default() }
}

#[test]
fn nothing_wanted_changes_nothing() {
    let mut before = Spec::default();
    before.set_annotations(Some(Default::default()));
    assert_eq!(adjusted(&ContainerAdjustment::default()), before);
}

#[test]
fn the_process() {
    let hook = Hook { path: "/bin/hook".into(), args: vec!["hook".into()], ..Default::default() };
    let hooks = Hooks { create_runtime: vec![hook.clone()], poststop: vec![hook], ..Default::default() };
    let variable = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let mut spec = Spec::default();
    spec.process_mut().as_mut().unwrap().set_env(Some(vec!["A=1".into(), "B=2".into(), "C".into()]));
    spec.set_annotations(Some([("gone".to_owned(), "1".to_owned())].into()));
    let wanted = ContainerAdjustment {
        annotations: [("-gone".to_owned(), String::new()), ("new".to_owned(), "2".to_owned())].into(),
        env: vec![variable("-A", ""), variable("B", "3"), variable("D", "4=5")],
        args: vec!["run".into()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 8 }],
        hooks: Some(hooks),
        ..linux(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: 500 }),
            io_priority: Some(LinuxIoPriority { class: 2, priority: 3 }),
            scheduler: Some(LinuxScheduler { policy: 4, nice: 5, flags: vec![0], ..Default::default() }),
            ..Default::default()
        })
    };
    adjust(&mut spec, &wanted, &Registry::default()).unwrap();
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!((annotations.len(), annotations["new"].as_str()), (1, "2"));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.env().as_ref().unwrap(), &["B=3", "C", "D=4=5"]);
    assert_eq!(process.args().as_ref().unwrap(), &["run"]);
    // The one that was there is replaced.
    let limits: Vec<_> = process.rlimits().iter().flatten().map(|l| (l.typ(), l.hard(), l.soft())).collect();
    assert_eq!(limits, [(PosixRlimitType::RlimitNofile, 9, 8)]);
    assert_eq!(process.oom_score_adj(), Some(500));
    assert_eq!(process.io_priority().as_ref().unwrap().priority(), 3);
    assert_eq!(words::of(process.scheduler().as_ref().unwrap().policy()), "SCHED_BATCH");
    let hooks = spec.hooks().as_ref().unwrap();
    assert_eq!(hooks.create_runtime().as_ref().unwrap()[0].path(), Path::new("/bin/hook"));
    assert!(hooks.poststop().is_some() && hooks.poststart().is_none());
}

#[test]
fn devices_namespaces_and_the_rest() {
    let device = |path: &str| LinuxDevice {
        path: path.into(),
        r#type: "b".into(),
        major: 7,
        minor: 1,
        ..Default::default()
    };
    let namespace = |kind: &str, path: &str| LinuxNamespace { r#type: kind.into(), path: path.into() };
    let call = LinuxSyscall {
        names: vec!["mount".into()],
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: Some(OptionalUInt32 { value: 38 }),
        args: vec![LinuxSeccompArg { index: 1, value: 2, value_two: 0, op: "SCMP_CMP_EQ".into() }],
    };
    let spec = adjusted(&linux(LinuxContainerAdjustment {
        devices: vec![device("/dev/loop1"), device("-/dev/loop1"), device("/dev/loop2")],
        cgroups_path: "/elsewhere".into(),
        namespaces: vec![namespace("-uts", ""), namespace("network", "/run/n"), namespace("cgroup", "")],
        sysctl: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        net_devices: [("eth9".to_owned(), LinuxNetDevice { name: "fast0".into() })].into(),
        seccomp_policy: Some(LinuxSeccomp {
            default_action: "SCMP_ACT_ALLOW".into(),
            architectures: vec!["SCMP_ARCH_X86_64".into()],
            syscalls: vec![call],
            ..Default::default()
        }),
        rdt: Some(LinuxRdt { clos_id: text("gold"), ..Default::default() }),
        memory_policy: Some(LinuxMemoryPolicy { mode: 2, nodes: "0".into(), flags: vec![0] }),
        ..Default::default()
    }));
    let linux = spec.linux().as_ref().unwrap();
    let devices: Vec<_> = linux.devices().iter().flatten().map(|d| d.path().clone()).collect();
    assert_eq!(devices, [Path::new("/dev/loop2")]);
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    assert_eq!(rules.last().unwrap().access().as_deref(), Some("rwm"));
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/elsewhere")));
    let namespaces: Vec<_> = linux.namespaces().iter().flatten().collect();
    let find = |typ| namespaces.iter().find(|namespace| namespace.typ() == typ);
    assert!(find(LinuxNamespaceType::Uts).is_none());
    assert_eq!(find(LinuxNamespaceType::Network).unwrap().path().as_deref(), Some(Path::new("/run/n")));
    assert!(find(LinuxNamespaceType::Cgroup).is_some());
    assert_eq!(linux.sysctl().as_ref().unwrap()["kernel.shm_rmid_forced"], "1");
    assert_eq!(linux.net_devices().as_ref().unwrap()["eth9"].name().as_deref(), Some("fast0"));
    let seccomp = linux.seccomp().as_ref().unwrap();
    assert_eq!(seccomp.syscalls().as_ref().unwrap()[0].errno_ret(), Some(38));
    assert_eq!(linux.intel_rdt().as_ref().unwrap().clos_id().as_deref(), Some("gold"));
    assert_eq!(linux.memory_policy().as_ref().unwrap().mode(), MemoryPolicyModeType::MpolBind);
}

#[test]
fn limits() {
    let mut spec = Spec::default();
    let mut memory = OciMemory::default();
    memory.set_limit(Some(100)).set_swap(Some(150));
    spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap().set_memory(Some(memory));
    let number = |value| Some(OptionalInt64 { value });
    let wanted = LinuxResources {
        memory: Some(LinuxMemory { limit: number(200), reservation: number(50), ..Default::default() }),
        cpu: Some(LinuxCpu {
            shares: Some(OptionalUInt64 { value: 512 }),
            quota: number(5000),
            period: Some(OptionalUInt64 { value: 10_000 }),
            cpus: "0".into(),
            ..Default::default()
        }),
        hugepage_limits: vec![
            HugepageLimit { page_size: "2MB".into(), limit: 1 },
            HugepageLimit { page_size: "2MB".into(), limit: 2 },
        ],
        unified: [("memory.high".to_owned(), "9".to_owned())].into(),
        pids: Some(LinuxPids { limit: 33 }),
        blockio_class: text(""),
        rdt_class: text("silver"),
        ..Default::default()
    };
    let wanted = linux(LinuxContainerAdjustment { resources: Some(wanted), ..Default::default() });
    adjust(&mut spec, &wanted, &Registry::default()).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    let resources = linux.resources().as_ref().unwrap();
    let memory = resources.memory().unwrap();
    // The sum with swap follows, for it can't be below.
    assert_eq!((memory.limit(), memory.swap(), memory.reservation()), (Some(200), Some(200), Some(50)));
    let cpu = resources.cpu().as_ref().unwrap();
    assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(5000), Some(10_000)));
    assert_eq!((cpu.cpus().as_deref(), resources.pids().unwrap().limit()), (Some("0"), 33));
    let pages = resources.hugepage_limits().as_ref().unwrap();
    assert_eq!((pages.len(), pages[0].limit()), (1, 2));
    assert_eq!(resources.unified().as_ref().unwrap()["memory.high"], "9");
    assert_eq!(linux.intel_rdt().as_ref().unwrap().clos_id().as_deref(), Some("silver"));
}

#[test]
fn mounts_replace_leave_and_come_in_order() {
    let mount = |destination: &str, options: &[&str]| Mount {
        destination: destination.into(),
        r#type: "bind".into(),
        source: "/proc".into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let spec = adjusted(&ContainerAdjustment {
        mounts: vec![mount("/a/b/c", &[]), mount("-/sys", &[]), mount("/proc", &["ro"]), mount("/a", &[])],
        ..Default::default()
    });
    let destinations: Vec<_> =
        spec.mounts().iter().flatten().map(|m| m.destination().display().to_string()).collect();
    assert!(!destinations.contains(&"/sys".to_owned()), "{destinations:?}");
    assert_eq!(destinations.iter().filter(|d| *d == "/proc").count(), 1);
    let place = |path: &str| destinations.iter().position(|d| d == path).unwrap();
    assert!(place("/a") < place("/a/b/c"));
    let proc = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/proc")).unwrap();
    assert_eq!(proc.options().as_ref().unwrap(), &["ro"]);
}

#[test]
fn what_can_not_be_is_refused_by_name() {
    let refused = |wanted: ContainerAdjustment, part: &str| {
        let error = adjust(&mut Spec::default(), &wanted, &Registry::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    let limit = PosixRlimit { r#type: "RLIMIT_NONE".into(), ..Default::default() };
    refused(ContainerAdjustment { rlimits: vec![limit], ..Default::default() }, "RLIMIT_NONE");
    let device = CdiDevice { name: "v/c=d".into() };
    refused(ContainerAdjustment { cdi_devices: vec![device], ..Default::default() }, "v/c=d");
    let score = Some(OptionalInt { value: 5000 });
    refused(linux(LinuxContainerAdjustment { oom_score_adj: score, ..Default::default() }), "5000");
    let namespace = LinuxNamespace { r#type: "nonsense".into(), ..Default::default() };
    refused(
        linux(LinuxContainerAdjustment { namespaces: vec![namespace], ..Default::default() }),
        "nonsense",
    );
    let resources = Some(LinuxResources { blockio_class: text("fast"), ..Default::default() });
    refused(linux(LinuxContainerAdjustment { resources, ..Default::default() }), "\"fast\"");
    let scheduler = Some(LinuxScheduler { policy: 99, ..Default::default() });
    refused(linux(LinuxContainerAdjustment { scheduler, ..Default::default() }), "99");
    let seccomp_policy = Some(LinuxSeccomp { default_action: "X".into(), ..Default::default() });
    refused(linux(LinuxContainerAdjustment { seccomp_policy, ..Default::default() }), "\"X\"");
}
