//! A device's edits, carried out.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{
    Hook as OciHook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice,
    Mount as OciMount, Spec,
};

use super::file::{DeviceNode, Edits, Hook, HookName, IntelRdt, Mount};
use super::{Error, Name};

/// Changes `spec` as `edits` say. `name` and `file` are for messages.
pub(super) fn apply(spec: &mut Spec, edits: &Edits, name: &Name, file: &Path) -> Result<(), Error> {
    let wrong = |what: String, reason: String| Error::Edit {
        name: name.to_string(),
        file: file.to_owned(),
        what,
        reason,
    };
    for variable in &edits.env {
        let Some((key, _)) = variable.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(wrong(format!("env {variable:?}"), "is not NAME=VALUE".to_owned()));
        };
        set_variable(spec, key, variable);
    }
    for node in &edits.device_nodes {
        add_node(spec, node)
            .map_err(|reason| wrong(format!("deviceNodes {}", node.path.display()), reason))?;
    }
    for device in &edits.net_devices {
        if device.host_interface_name.is_empty() || device.name.is_empty() {
            return Err(wrong("netDevices".to_owned(), "a name is empty".to_owned()));
        }
        let mut out = LinuxNetDevice::default();
        out.set_name(Some(device.name.clone()));
        let linux = spec.linux_mut().get_or_insert_default();
        linux.net_devices_mut().get_or_insert_default().insert(device.host_interface_name.clone(), out);
    }
    for mount in &edits.mounts {
        add_mount(spec, mount).map_err(|reason| {
            wrong(format!("mounts {}", mount.container_path.display()), reason.to_owned())
        })?;
    }
    for hook in &edits.hooks {
        if !hook.path.is_absolute() {
            return Err(wrong(format!("hooks {}", hook.path.display()), "is not absolute".to_owned()));
        }
        add_hook(spec.hooks_mut().get_or_insert_default(), hook);
    }
    if let Some(rdt) = &edits.intel_rdt {
        spec.linux_mut().get_or_insert_default().set_intel_rdt(Some(intel_rdt(rdt)));
    }
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        let process = spec.process_mut().get_or_insert_default();
        let groups = process.user_mut().additional_gids_mut().get_or_insert_default();
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    Ok(())
}

fn set_variable(spec: &mut Spec, key: &str, variable: &str) {
    let env = spec.process_mut().get_or_insert_default().env_mut().get_or_insert_default();
    match env.iter_mut().find(|old| old.split('=').next() == Some(key)) {
        Some(old) => variable.clone_into(old),
        None => env.push(variable.to_owned()),
    }
}

/// Adds the node, and a rule that lets the container use it. What the file does not say is taken from the host's node.
fn add_node(spec: &mut Spec, node: &DeviceNode) -> Result<(), String> {
    if !node.path.is_absolute() {
        return Err("is not absolute".to_owned());
    }
    let (typ, major, minor) = identity(node)?;
    let access = match node.permissions.as_deref() {
        None | Some("") => "rwm",
        Some("none") => "",
        Some(access) if access.bytes().all(|byte| b"rwm".contains(&byte)) => access,
        Some(other) => return Err(format!("permissions {other:?} are not of the letters r, w, m")),
    };
    // Who runs in the container can use what is given to it.
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = user.unwrap_or_default();
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(Some(node.file_mode.unwrap_or(0o666) & 0o7777))
        .set_uid(node.uid.or((uid != 0).then_some(uid)))
        .set_gid(node.gid.or((gid != 0).then_some(gid)));
    let linux = spec.linux_mut().get_or_insert_default();
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|old| old.path() != &node.path);
    devices.push(device);
    if typ != LinuxDeviceType::P && !access.is_empty() {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(typ))
            .set_major(Some(major))
            .set_minor(Some(minor))
            .set_access(Some(access.to_owned()));
        let resources = linux.resources_mut().get_or_insert_default();
        resources.devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

/// Type and numbers of a node.
fn identity(node: &DeviceNode) -> Result<(LinuxDeviceType, i64, i64), String> {
    let said = match node.r#type.as_deref() {
        None | Some("") => None,
        Some("b") => Some(LinuxDeviceType::B),
        Some("c" | "u") => Some(LinuxDeviceType::C),
        Some("p") => Some(LinuxDeviceType::P),
        Some(other) => return Err(format!("type {other:?} is none of b, c, u, p")),
    };
    match (said, node.major) {
        (Some(LinuxDeviceType::P), _) => return Ok((LinuxDeviceType::P, 0, 0)),
        (Some(typ), Some(major)) => return Ok((typ, major, node.minor.unwrap_or(0))),
        _ => {}
    }
    let source = node.host_path.as_deref().unwrap_or(&node.path);
    let found = fs::metadata(source).map_err(|error| format!("{}: {error}", source.display()))?;
    let kind = found.file_type();
    let typ = if kind.is_block_device() {
        LinuxDeviceType::B
    } else if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_fifo() {
        LinuxDeviceType::P
    } else {
        return Err(format!("{} is no device", source.display()));
    };
    if said.is_some_and(|said| said != typ) {
        return Err(format!("{} is of another type", source.display()));
    }
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    Ok((typ, node.major.unwrap_or(major.into()), node.minor.unwrap_or(minor.into())))
}

fn add_mount(spec: &mut Spec, mount: &Mount) -> Result<(), &'static str> {
    if !mount.container_path.is_absolute() {
        return Err("containerPath is not absolute");
    }
    if mount.host_path.as_os_str().is_empty() {
        return Err("hostPath is empty");
    }
    let mut options = mount.options.clone();
    let bind = mount.r#type.is_empty() || mount.r#type == "bind";
    if bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".to_owned());
    }
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    let mut out = OciMount::default();
    out.set_destination(mount.container_path.clone())
        .set_source(Some(mount.host_path.clone()))
        .set_typ(Some(kind.to_owned()))
        .set_options(Some(options));
    let mounts = spec.mounts_mut().get_or_insert_default();
    mounts.retain(|old| old.destination() != &mount.container_path);
    mounts.push(out);
    // What lies in another comes after it.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(())
}

fn add_hook(hooks: &mut Hooks, hook: &Hook) {
    let mut out = OciHook::default();
    out.set_path(hook.path.clone())
        .set_args((!hook.args.is_empty()).then(|| hook.args.clone()))
        .set_env((!hook.env.is_empty()).then(|| hook.env.clone()))
        .set_timeout(hook.timeout);
    #[allow(deprecated)]
    let list = match hook.hook_name {
        HookName::Prestart => hooks.prestart_mut(),
        HookName::CreateRuntime => hooks.create_runtime_mut(),
        HookName::CreateContainer => hooks.create_container_mut(),
        HookName::StartContainer => hooks.start_container_mut(),
        HookName::Poststart => hooks.poststart_mut(),
        HookName::Poststop => hooks.poststop_mut(),
    };
    list.get_or_insert_default().push(out);
}

fn intel_rdt(wanted: &IntelRdt) -> LinuxIntelRdt {
    let mut out = LinuxIntelRdt::default();
    let mut schemata = wanted.schemata.clone().unwrap_or_default();
    schemata.extend(wanted.l3_cache_schema.clone());
    out.set_clos_id(wanted.clos_id.clone())
        .set_mem_bw_schema(wanted.mem_bw_schema.clone())
        .set_schemata((!schemata.is_empty()).then_some(schemata))
        .set_enable_monitoring(wanted.enable_monitoring)
        .set_enable_cmt(wanted.enable_cmt)
        .set_enable_mbm(wanted.enable_mbm);
    out
}
