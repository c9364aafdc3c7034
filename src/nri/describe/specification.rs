//! An OCI runtime specification in NRI's words.

use oci_spec::runtime as oci;

use super::super::words;
use crate::proto::nri::v1alpha1::*;

/// All that the specification says of a container.
pub(super) fn container(spec: &oci::Spec) -> Container {
    let mut out = Container {
        annotations: spec.annotations().clone().unwrap_or_default(),
        mounts: spec.mounts().iter().flatten().map(mount).collect(),
        hooks: spec.hooks().as_ref().map(hooks),
        linux: spec.linux().as_ref().map(linux),
        ..Default::default()
    };
    let Some(process) = spec.process() else { return out };
    out.args = process.args().clone().unwrap_or_default();
    out.env = process.env().clone().unwrap_or_default();
    out.rlimits = process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| PosixRlimit { r#type: words::of(&limit.typ()), hard: limit.hard(), soft: limit.soft() })
        .collect();
    let user = process.user();
    out.user = Some(User {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
    });
    let linux = out.linux.get_or_insert_default();
    linux.oom_score_adj = process.oom_score_adj().map(|value| OptionalInt { value: value.into() });
    linux.io_priority = process.io_priority().as_ref().map(|priority| LinuxIoPriority {
        class: IoPrioClass::from_str_name(&words::of(&priority.class())).unwrap_or_default().into(),
        priority: i32::try_from(priority.priority()).unwrap_or_default(),
    });
    linux.scheduler = process.scheduler().as_ref().map(scheduler);
    out
}

fn mount(mount: &oci::Mount) -> Mount {
    Mount {
        destination: mount.destination().display().to_string(),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

fn hooks(hooks: &oci::Hooks) -> Hooks {
    let list = |hooks: &Option<Vec<oci::Hook>>| hooks.iter().flatten().map(hook).collect();
    #[allow(deprecated)]
    Hooks {
        prestart: list(hooks.prestart()),
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook(hook: &oci::Hook) -> Hook {
    Hook {
        path: hook.path().display().to_string(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| OptionalInt { value }),
    }
}

fn linux(linux: &oci::Linux) -> LinuxContainer {
    LinuxContainer {
        namespaces: linux
            .namespaces()
            .iter()
            .flatten()
            .map(|namespace| LinuxNamespace {
                r#type: words::of(&namespace.typ()),
                path: namespace.path().as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            })
            .collect(),
        devices: linux.devices().iter().flatten().map(device).collect(),
        resources: linux.resources().as_ref().map(resources),
        cgroups_path: linux.cgroups_path().as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        seccomp_policy: linux.seccomp().as_ref().map(seccomp),
        sysctl: linux.sysctl().clone().unwrap_or_default(),
        net_devices: linux
            .net_devices()
            .iter()
            .flatten()
            .map(|(host, device)| {
                (host.clone(), LinuxNetDevice { name: device.name().clone().unwrap_or_default() })
            })
            .collect(),
        rdt: linux.intel_rdt().as_ref().map(|rdt| LinuxRdt {
            clos_id: rdt.clos_id().clone().map(|value| OptionalString { value }),
            schemata: rdt.schemata().clone().map(|value| OptionalRepeatedString { value }),
            enable_monitoring: rdt.enable_monitoring().map(|value| OptionalBool { value }),
            remove: false,
        }),
        ..Default::default()
    }
}

fn device(device: &oci::LinuxDevice) -> LinuxDevice {
    LinuxDevice {
        path: device.path().display().to_string(),
        r#type: words::of(&device.typ()),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
        uid: device.uid().map(|value| OptionalUInt32 { value }),
        gid: device.gid().map(|value| OptionalUInt32 { value }),
    }
}

fn resources(resources: &oci::LinuxResources) -> LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let yes = |value: Option<bool>| value.map(|value| OptionalBool { value });
    LinuxResources {
        memory: resources.memory().as_ref().map(|memory| LinuxMemory {
            limit: signed(memory.limit()),
            reservation: signed(memory.reservation()),
            swap: signed(memory.swap()),
            kernel_tcp: signed(memory.kernel_tcp()),
            swappiness: unsigned(memory.swappiness()),
            disable_oom_killer: yes(memory.disable_oom_killer()),
            use_hierarchy: yes(memory.use_hierarchy()),
            ..Default::default()
        }),
        cpu: resources.cpu().as_ref().map(|cpu| LinuxCpu {
            shares: unsigned(cpu.shares()),
            quota: signed(cpu.quota()),
            period: unsigned(cpu.period()),
            realtime_runtime: signed(cpu.realtime_runtime()),
            realtime_period: unsigned(cpu.realtime_period()),
            cpus: cpu.cpus().clone().unwrap_or_default(),
            mems: cpu.mems().clone().unwrap_or_default(),
        }),
        hugepage_limits: resources
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or(u64::MAX),
            })
            .collect(),
        unified: resources.unified().clone().unwrap_or_default(),
        devices: resources
            .devices()
            .iter()
            .flatten()
            .map(|rule| LinuxDeviceCgroup {
                allow: rule.allow(),
                r#type: rule.typ().as_ref().map(words::of).unwrap_or_default(),
                major: signed(rule.major()),
                minor: signed(rule.minor()),
                access: rule.access().clone().unwrap_or_default(),
            })
            .collect(),
        pids: resources.pids().as_ref().map(|pids| LinuxPids { limit: pids.limit() }),
        ..Default::default()
    }
}

fn seccomp(filter: &oci::LinuxSeccomp) -> LinuxSeccomp {
    LinuxSeccomp {
        default_action: words::of(&filter.default_action()),
        default_errno: filter.default_errno_ret().map(|value| OptionalUInt32 { value }),
        architectures: filter.architectures().iter().flatten().map(words::of).collect(),
        flags: filter.flags().iter().flatten().map(words::of).collect(),
        listener_path: filter.listener_path().as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        listener_metadata: filter.listener_metadata().clone().unwrap_or_default(),
        syscalls: filter.syscalls().iter().flatten().map(syscall).collect(),
    }
}

fn syscall(call: &oci::LinuxSyscall) -> LinuxSyscall {
    LinuxSyscall {
        names: call.names().clone(),
        action: words::of(&call.action()),
        errno_ret: call.errno_ret().map(|value| OptionalUInt32 { value }),
        args: call
            .args()
            .iter()
            .flatten()
            .map(|arg| LinuxSeccompArg {
                index: u32::try_from(arg.index()).unwrap_or(u32::MAX),
                value: arg.value(),
                value_two: arg.value_two().unwrap_or_default(),
                op: words::of(&arg.op()),
            })
            .collect(),
    }
}

fn scheduler(scheduler: &oci::Scheduler) -> LinuxScheduler {
    let flags = scheduler.flags().iter().flatten();
    LinuxScheduler {
        policy: LinuxSchedulerPolicy::from_str_name(&words::of(scheduler.policy()))
            .unwrap_or_default()
            .into(),
        nice: scheduler.nice().unwrap_or_default(),
        priority: scheduler.priority().unwrap_or_default(),
        flags: flags
            .filter_map(|flag| words::SCHEDULER_FLAGS.iter().position(|known| known == flag))
            .filter_map(|number| i32::try_from(number).ok())
            .collect(),
        runtime: scheduler.runtime().unwrap_or_default(),
        deadline: scheduler.deadline().unwrap_or_default(),
        period: scheduler.period().unwrap_or_default(),
    }
}
