//! What is Linux's own.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{self as oci, Linux, Process};

use super::super::removal::unmarked;
use super::super::words;
use super::{Error, resources};
use crate::proto::nri::v1alpha1::{
    IoPrioClass, LinuxContainerAdjustment, LinuxDevice, LinuxMemoryPolicy, LinuxNamespace, LinuxScheduler,
    LinuxSchedulerPolicy, LinuxSeccomp, LinuxSyscall, MpolFlag, MpolMode,
};

/// Everything about the process.
pub(super) fn process(process: &mut Process, wanted: &LinuxContainerAdjustment) -> Result<(), Error> {
    if let Some(score) = wanted.oom_score_adj {
        let value = || Error::Value { field: "oom_score_adj", value: score.value.to_string() };
        let score = i32::try_from(score.value).ok().filter(|v| (-1000..=1000).contains(v));
        process.set_oom_score_adj(Some(score.ok_or_else(value)?));
    }
    if let Some(priority) = wanted.io_priority {
        let class = number::<IoPrioClass>("io_priority.class", priority.class)?;
        process.set_io_priority(match class {
            IoPrioClass::IoprioClassNone => None,
            class => {
                let class: oci::IOPriorityClass = word("io_priority.class", class.as_str_name())?;
                let out = oci::LinuxIOPriorityBuilder::default().class(class);
                out.priority(priority.priority).build().ok()
            }
        });
    }
    if let Some(wanted) = &wanted.scheduler {
        process.set_scheduler(scheduler(wanted)?);
    }
    Ok(())
}

/// Everything else.
pub(super) fn linux(linux: &mut Linux, wanted: &LinuxContainerAdjustment) -> Result<(), Error> {
    for device in &wanted.devices {
        add_device(linux, device)?;
    }
    if let Some(path) = resources::cgroups_path(&wanted.cgroups_path) {
        linux.set_cgroups_path(Some(path));
    }
    if let Some(policy) = &wanted.seccomp_policy {
        linux.set_seccomp(Some(seccomp(policy)?));
    }
    for namespace in &wanted.namespaces {
        set_namespace(linux, namespace)?;
    }
    let sysctl = linux.sysctl_mut().get_or_insert_default();
    for name in wanted.sysctl.keys().filter_map(|name| unmarked(name)) {
        sysctl.remove(name);
    }
    sysctl.extend(wanted.sysctl.clone().into_iter().filter(|(name, _)| unmarked(name).is_none()));
    let empty = sysctl.is_empty();
    if empty {
        linux.set_sysctl(None);
    }
    for (host, device) in &wanted.net_devices {
        let devices = linux.net_devices_mut().get_or_insert_default();
        if let Some(host) = unmarked(host) {
            if !wanted.net_devices.contains_key(host) {
                devices.remove(host);
            }
            continue;
        }
        let mut out = oci::LinuxNetDevice::default();
        out.set_name((!device.name.is_empty()).then(|| device.name.clone()));
        devices.insert(host.clone(), out);
    }
    if let Some(policy) = &wanted.memory_policy {
        linux.set_memory_policy(Some(memory_policy(policy)?));
    }
    let class = wanted.resources.as_ref().and_then(|resources| resources.rdt_class.as_ref());
    resources::rdt(linux.intel_rdt_mut(), class.map(|class| class.value.as_str()), wanted.rdt.as_ref());
    match &wanted.resources {
        Some(wanted) => resources::adjust(linux.resources_mut().get_or_insert_default(), wanted),
        None => Ok(()),
    }
}

/// The node, and the rule that lets the container use it (read and write; for a block device also mknod, as NRI has it).
fn add_device(linux: &mut Linux, wanted: &LinuxDevice) -> Result<(), Error> {
    let path = unmarked(&wanted.path);
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|old| old.path() != Path::new(path.unwrap_or(&wanted.path)));
    if path.is_some() {
        return Ok(());
    }
    let typ = word("devices[].type", &wanted.r#type)?;
    let mut device = oci::LinuxDevice::default();
    device
        .set_path(PathBuf::from(&wanted.path))
        .set_typ(typ)
        .set_major(wanted.major)
        .set_minor(wanted.minor)
        .set_file_mode(wanted.file_mode.map(|mode| mode.value))
        .set_uid(wanted.uid.map(|uid| uid.value))
        .set_gid(wanted.gid.map(|gid| gid.value));
    devices.push(device);
    let access = if typ == oci::LinuxDeviceType::B { "rwm" } else { "rw" };
    let mut rule = oci::LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(typ))
        .set_major(Some(wanted.major))
        .set_minor(Some(wanted.minor))
        .set_access(Some(access.to_owned()));
    let resources = linux.resources_mut().get_or_insert_default();
    resources.devices_mut().get_or_insert_default().push(rule);
    Ok(())
}

fn set_namespace(linux: &mut Linux, wanted: &LinuxNamespace) -> Result<(), Error> {
    let kind = unmarked(&wanted.r#type);
    let typ: oci::LinuxNamespaceType = word("namespaces[].type", kind.unwrap_or(&wanted.r#type))?;
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.retain(|old| old.typ() != typ);
    if kind.is_none() {
        let mut namespace = oci::LinuxNamespace::default();
        namespace.set_typ(typ).set_path((!wanted.path.is_empty()).then(|| PathBuf::from(&wanted.path)));
        namespaces.push(namespace);
    }
    Ok(())
}

fn scheduler(wanted: &LinuxScheduler) -> Result<Option<oci::Scheduler>, Error> {
    let policy = number::<LinuxSchedulerPolicy>("scheduler.policy", wanted.policy)?;
    if policy == LinuxSchedulerPolicy::SchedNone {
        return Ok(None);
    }
    let mut flags = Vec::new();
    for flag in &wanted.flags {
        let value = || Error::Value { field: "scheduler.flags", value: flag.to_string() };
        let known = usize::try_from(*flag).ok().and_then(|number| words::SCHEDULER_FLAGS.get(number));
        flags.push(*known.ok_or_else(value)?);
    }
    let mut out = oci::Scheduler::default();
    out.set_policy(word("scheduler.policy", policy.as_str_name())?)
        .set_nice((wanted.nice != 0).then_some(wanted.nice))
        .set_priority((wanted.priority != 0).then_some(wanted.priority))
        .set_flags((!flags.is_empty()).then_some(flags))
        .set_runtime((wanted.runtime != 0).then_some(wanted.runtime))
        .set_deadline((wanted.deadline != 0).then_some(wanted.deadline))
        .set_period((wanted.period != 0).then_some(wanted.period));
    Ok(Some(out))
}

fn memory_policy(wanted: &LinuxMemoryPolicy) -> Result<oci::LinuxMemoryPolicy, Error> {
    let mode = number::<MpolMode>("memory_policy.mode", wanted.mode)?;
    let mut flags = Vec::new();
    for flag in &wanted.flags {
        let flag = number::<MpolFlag>("memory_policy.flags", *flag)?;
        flags.push(word("memory_policy.flags", flag.as_str_name())?);
    }
    let mut out = oci::LinuxMemoryPolicy::default();
    out.set_mode(word("memory_policy.mode", mode.as_str_name())?)
        .set_nodes((!wanted.nodes.is_empty()).then(|| wanted.nodes.clone()))
        .set_flags((!flags.is_empty()).then_some(flags));
    Ok(out)
}

fn seccomp(wanted: &LinuxSeccomp) -> Result<oci::LinuxSeccomp, Error> {
    let mut out = oci::LinuxSeccomp::default();
    let architectures: Result<Vec<_>, _> =
        wanted.architectures.iter().map(|name| word("seccomp_policy.architectures", name)).collect();
    let flags: Result<Vec<_>, _> =
        wanted.flags.iter().map(|name| word("seccomp_policy.flags", name)).collect();
    let syscalls: Result<Vec<_>, _> = wanted.syscalls.iter().map(syscall).collect();
    out.set_default_action(word("seccomp_policy.default_action", &wanted.default_action)?)
        .set_default_errno_ret(wanted.default_errno.map(|errno| errno.value))
        .set_architectures(some(architectures?))
        .set_flags(some(flags?))
        .set_listener_path((!wanted.listener_path.is_empty()).then(|| (&wanted.listener_path).into()))
        .set_listener_metadata(
            (!wanted.listener_metadata.is_empty()).then(|| wanted.listener_metadata.clone()),
        )
        .set_syscalls(some(syscalls?));
    Ok(out)
}

fn syscall(wanted: &LinuxSyscall) -> Result<oci::LinuxSyscall, Error> {
    let mut args = Vec::new();
    for wanted in &wanted.args {
        let value =
            || Error::Value { field: "seccomp_policy.syscalls[].args[]", value: format!("{wanted:?}") };
        let mut arg = oci::LinuxSeccompArgBuilder::default()
            .index(usize::try_from(wanted.index).map_err(|_| value())?)
            .value(wanted.value)
            .op(word::<oci::LinuxSeccompOperator>("seccomp_policy.syscalls[].args[].op", &wanted.op)?);
        if wanted.value_two != 0 {
            arg = arg.value_two(wanted.value_two);
        }
        args.push(arg.build().map_err(|_| value())?);
    }
    let mut out = oci::LinuxSyscall::default();
    out.set_names(wanted.names.clone())
        .set_action(word("seccomp_policy.syscalls[].action", &wanted.action)?)
        .set_errno_ret(wanted.errno_ret.map(|errno| errno.value))
        .set_args(some(args));
    Ok(out)
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn word<T: serde::de::DeserializeOwned>(field: &'static str, word: &str) -> Result<T, Error> {
    words::parse(word).ok_or_else(|| Error::Value { field, value: word.to_owned() })
}

fn number<T: TryFrom<i32>>(field: &'static str, number: i32) -> Result<T, Error> {
    T::try_from(number).map_err(|_| Error::Value { field, value: number.to_string() })
}
