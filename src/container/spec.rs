//! Builds the OCI runtime specification of a container from the CRI's messages.
//!
//! [`build`] is a function of its input and of a few files it reads (the image's `/etc/passwd`, a seccomp profile, device
//! nodes, the mount table): it changes nothing, so a failed or retried create has nothing to undo. Each concern has a
//! file of its own and decides alone; this one puts their parts together in the order in which they need each other:
//!
//! ```text
//! user ─┐
//! process ─┤                     capabilities ──► seccomp
//! mounts ─┼──► Spec ◄── linux: namespaces, resources, devices, security
//! annotations ─┘
//! ```
//!
//! Where the CRI leaves something open, containerd's behaviour is followed, and where it is silent about a mistake, the
//! mistake is an error that names the field and the value.

mod annotations;
mod capabilities;
mod devices;
mod error;
mod etc_files;
mod host;
mod input;
pub(crate) mod layers;
mod mountinfo;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod security;
pub mod signal;
mod sysctls;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod user;
mod userns;

use oci_spec::runtime::{Linux, Process, Root, Spec, User as OciUser};

pub use self::error::{Error, ProfileError};
pub use self::etc_files::{
    check_hostname, hostname, render_hostname, render_hosts, render_own_resolver, render_resolv_conf,
    without_loopback,
};
pub use self::host::Host;
pub use self::input::{HandlerOptions, NamespacePaths, PodFiles, Rlimit, SeccompDefault, SpecInput, Volume};
pub(crate) use self::mountinfo::mounted_below;
pub(crate) use self::mounts::destination;
pub use self::namespaces::{check_pod, host_ipc, host_network, host_pid, shares_pid};
pub use self::resources::cap_oom_score_adj;
pub use self::seccomp::runtime_default;
pub use self::security::{default_masked_paths, default_readonly_paths};
pub use self::signal::stop_signal;
pub use self::sysctls::{Scope, Sysctl, sysctls};
pub use self::user::User;
pub use self::userns::{IdMaps, check_user_namespace, user_namespace};

/// The version of the OCI runtime specification that we write. Nothing newer is used.
pub(crate) const OCI_VERSION: &str = "1.1.0";

/// What [`build`] found out.
#[derive(Clone, Debug)]
pub struct Built {
    /// The specification, ready to be written as the bundle's `config.json`.
    pub spec: Spec,
    /// Whom the process runs as, for the container's status.
    pub user: User,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// What was asked for and left out or changed because this machine has not got it: to be logged once.
    pub notes: Vec<String>,
}

/// Builds a container's specification.
///
/// It looks at paths of the host that the caller names, and a path on a dead network file system can hang: call it
/// where blocking is allowed and bounded, not on an async worker.
pub fn build(input: &SpecInput<'_>) -> Result<Built, Error> {
    let mut notes = Vec::new();
    let user = user::resolve(input)?;
    let stop_signal = stop_signal(input.container, input.image)?;

    let mut process = Process::default();
    process::build(input, &mut process)?;
    let mut identity = OciUser::default();
    identity.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
    process.set_user(identity).set_oom_score_adj(resources::oom_score_adj(input, &mut notes)?);

    let mut linux = Linux::default();
    security::apply(input, &mut process, &mut linux)?;
    let (capabilities, missing) = capabilities::build(input)?;
    if !missing.is_empty() {
        notes.push(format!("capabilities this machine can't give: {}", missing.join(", ")));
    }
    let bounding = capabilities.bounding().clone().unwrap_or_default();
    linux.set_seccomp(seccomp::build(input, &bounding)?);
    process.set_capabilities(Some(capabilities));

    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let maps = userns::of_container(input.pod, context.and_then(|c| c.namespace_options.as_ref()))?;
    if let Some(maps) = &maps {
        userns::check_user(maps, &user)?;
    }
    let mut mounts = mounts::build(input, maps.as_ref(), linux.mount_label().as_deref())?;
    let mut devices = devices::build(input)?;
    if maps.is_some() {
        // Root of a user namespace makes no device nodes.
        mounts.add(devices.binds());
    }
    let mut resources = resources::build(input, &mut notes)?;
    resources.set_devices(Some(devices.rules));
    linux
        .set_namespaces(Some(namespaces::build(input)?))
        .set_resources(Some(resources))
        .set_devices((!devices.nodes.is_empty()).then_some(devices.nodes))
        .set_rootfs_propagation(mounts.rootfs_propagation.map(str::to_owned))
        .set_cgroups_path(Some(input.cgroups_path.into()))
        .set_uid_mappings(maps.as_ref().map(|maps| maps.uids.clone()))
        .set_gid_mappings(maps.as_ref().map(|maps| maps.gids.clone()));

    let mut root = Root::default();
    root.set_path(input.rootfs.to_path_buf()).set_readonly(Some(context.is_some_and(|c| c.readonly_rootfs)));

    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_mounts(Some(mounts.list))
        .set_annotations(Some(annotations::build(input)))
        // The name belongs to the pod's UTS namespace, which has it already.
        .set_hostname(None)
        .set_linux(Some(linux));
    Ok(Built { spec, user, stop_signal, notes })
}

/// Whether what is below `path` on the host propagates as a container's mount needs: shared, or at least a slave.
///
/// # Errors
/// [`Error::Propagation`] with what to do about it.
pub(crate) fn check_propagation(path: &std::path::Path, shared: bool) -> Result<(), Error> {
    let need = if shared { mountinfo::Need::Shared } else { mountinfo::Need::SharedOrSlave };
    mountinfo::check(&mut None, path, need)
}

/// Whether the container is privileged.
fn privileged(input: &SpecInput<'_>) -> bool {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.is_some_and(|c| c.privileged)
}
