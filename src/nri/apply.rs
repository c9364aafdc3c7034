//! A specification, changed as the plugins want it.

mod linux;
mod mounts;
mod resources;

use oci_spec::runtime::{self as oci, Process, Spec};

use super::removal::unmarked;
use super::words;
use crate::cdi::{self, Registry};
use crate::container::spec;
use crate::proto::nri::v1alpha1::{ContainerAdjustment, Hook, Hooks, KeyValue, PosixRlimit};

/// Why a specification can't be changed so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A value that the OCI runtime specification does not know.
    #[error("{field}: no such value: {value:?}")]
    Value {
        /// Which field.
        field: &'static str,
        /// The value.
        value: String,
    },
    /// Classes are names for settings that stand in a configuration of the runtime's; we have none.
    #[error("block I/O class {0:?}: no classes are configured here; set limits by `unified` instead")]
    BlockIoClass(String),
    /// A mount of the host that does not propagate.
    #[error(transparent)]
    Propagation(#[from] spec::Error),
    /// A CDI device.
    #[error(transparent)]
    Cdi(#[from] cdi::Error),
}

/// Changes `spec`. Reads the mount table and CDI's directories: where blocking is allowed.
pub(super) fn adjust(spec: &mut Spec, wanted: &ContainerAdjustment, devices: &Registry) -> Result<(), Error> {
    let annotations = spec.annotations_mut().get_or_insert_default();
    for key in wanted.annotations.keys().filter_map(|key| unmarked(key)) {
        annotations.remove(key);
    }
    for (key, value) in wanted.annotations.iter().filter(|(key, _)| unmarked(key).is_none()) {
        annotations.insert(key.clone(), value.clone());
    }
    if let Some(wanted) = &wanted.hooks {
        hooks(spec.hooks_mut().get_or_insert_default(), wanted);
    }
    let process = spec.process_mut().get_or_insert_default();
    environment(process, &wanted.env);
    if !wanted.args.is_empty() {
        process.set_args(Some(wanted.args.clone()));
    }
    rlimits(process, &wanted.rlimits)?;
    if !wanted.cdi_devices.is_empty() {
        devices.inject(spec, wanted.cdi_devices.iter().map(|device| device.name.as_str()))?;
    }
    if let Some(wanted) = &wanted.linux {
        linux::process(spec.process_mut().get_or_insert_default(), wanted)?;
        linux::linux(spec.linux_mut().get_or_insert_default(), wanted)?;
    }
    mounts::adjust(spec, &wanted.mounts)
}

fn environment(process: &mut Process, wanted: &[KeyValue]) {
    let env = process.env_mut().get_or_insert_default();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in wanted {
        if let Some(removed) = unmarked(&variable.key) {
            env.retain(|old| name(old) != removed);
            continue;
        }
        let text = format!("{}={}", variable.key, variable.value);
        match env.iter_mut().find(|old| name(old) == variable.key) {
            Some(old) => *old = text,
            None => env.push(text),
        }
    }
}

fn rlimits(process: &mut Process, wanted: &[PosixRlimit]) -> Result<(), Error> {
    for limit in wanted {
        let value = || Error::Value { field: "rlimits[].type", value: limit.r#type.clone() };
        let typ = words::parse(&limit.r#type).ok_or_else(value)?;
        let rlimit = oci::PosixRlimitBuilder::default().typ(typ).hard(limit.hard).soft(limit.soft);
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        rlimits.retain(|old| old.typ() != typ);
        rlimits.push(rlimit.build().map_err(|_| value())?);
        process.set_rlimits(Some(rlimits));
    }
    Ok(())
}

fn hooks(into: &mut oci::Hooks, wanted: &Hooks) {
    let append = |into: &mut Option<Vec<oci::Hook>>, hooks: &[Hook]| {
        if !hooks.is_empty() {
            into.get_or_insert_default().extend(hooks.iter().map(hook));
        }
    };
    #[allow(deprecated)]
    append(into.prestart_mut(), &wanted.prestart);
    append(into.create_runtime_mut(), &wanted.create_runtime);
    append(into.create_container_mut(), &wanted.create_container);
    append(into.start_container_mut(), &wanted.start_container);
    append(into.poststart_mut(), &wanted.poststart);
    append(into.poststop_mut(), &wanted.poststop);
}

fn hook(hook: &Hook) -> oci::Hook {
    let mut out = oci::Hook::default();
    out.set_path((&hook.path).into())
        .set_args((!hook.args.is_empty()).then(|| hook.args.clone()))
        .set_env((!hook.env.is_empty()).then(|| hook.env.clone()))
        .set_timeout(hook.timeout.map(|timeout| timeout.value));
    out
}

#[cfg(test)]
mod tests;
