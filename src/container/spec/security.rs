//! What holds a process back besides namespaces and capabilities: a read-only root, masked and read-only paths, no new
//! privileges, AppArmor, SELinux. A privileged container has none of them but the read-only root and the label of its files.

use oci_spec::runtime::{Linux, Process};

use super::{Error, SpecInput};
use crate::proto::runtime::v1::security_profile::ProfileType;
use crate::proto::runtime::v1::{LinuxContainerSecurityContext, SecurityProfile};
use crate::selinux::Labels;

/// Files of /proc and /sys that tell of, or reach, the host (the set of Docker and containerd).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sets the fields of process and linux; capabilities and seccomp have files of their own.
pub(super) fn apply(input: &SpecInput<'_>, process: &mut Process, linux: &mut Linux) -> Result<(), Error> {
    let none = LinuxContainerSecurityContext::default();
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref()).unwrap_or(&none);
    process.set_no_new_privileges(Some(context.no_new_privs));
    process.set_apparmor_profile(apparmor(input, context)?);
    let labels = selinux(input, context)?;
    process.set_selinux_label(labels.process);
    linux.set_mount_label(labels.files);

    let silent = context.masked_paths.is_empty() && context.readonly_paths.is_empty();
    let (masked, read_only) = if context.privileged {
        (Vec::new(), Vec::new())
    } else if silent && context.namespace_options.is_none() {
        // The kubelet always sends namespace options, and empty lists with them for `procMount: Unmasked`. Who
        // sends neither did not think of it, and gets what is safe.
        (default_masked_paths(), default_readonly_paths())
    } else {
        (paths("masked_paths", &context.masked_paths)?, paths("readonly_paths", &context.readonly_paths)?)
    };
    linux.set_masked_paths(Some(masked)).set_readonly_paths(Some(read_only));
    Ok(())
}

/// The paths that nobody sees by default.
pub fn default_masked_paths() -> Vec<String> {
    MASKED.iter().map(ToString::to_string).collect()
}

/// The paths under /proc that are read-only by default.
pub fn default_readonly_paths() -> Vec<String> {
    READ_ONLY.iter().map(ToString::to_string).collect()
}

fn paths(field: &'static str, list: &[String]) -> Result<Vec<String>, Error> {
    match list.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
        Some(path) => Err(Error::invalid(field, path, "must be absolute")),
        None => Ok(list.to_vec()),
    }
}

fn apparmor(input: &SpecInput<'_>, context: &LinuxContainerSecurityContext) -> Result<Option<String>, Error> {
    const FIELD: &str = "linux.security_context.apparmor";
    #[allow(deprecated)]
    let old = context.apparmor_profile.as_str();
    let (kind, name) = match &context.apparmor {
        Some(profile) => profile_of(FIELD, profile)?,
        None => match old {
            "" | "runtime/default" => (ProfileType::RuntimeDefault, ""),
            "unconfined" => (ProfileType::Unconfined, ""),
            other => match other.strip_prefix("localhost/") {
                Some(name) => (ProfileType::Localhost, name),
                None => {
                    return Err(Error::invalid(
                        "linux.security_context.apparmor_profile",
                        other,
                        "must be runtime/default, unconfined or localhost/<name>",
                    ));
                }
            },
        },
    };
    let refuse = |reason| Error::SecurityModule { field: FIELD, value: name.to_owned(), reason };
    if context.privileged {
        return Ok(None);
    }
    match kind {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault if input.host.apparmor => Ok(input.host.apparmor_default.clone()),
        ProfileType::RuntimeDefault => Ok(None),
        ProfileType::Localhost if name.is_empty() => Err(refuse("localhost_ref is missing")),
        ProfileType::Localhost if !input.host.apparmor => Err(refuse("AppArmor is not on on this host")),
        ProfileType::Localhost if !crate::apparmor::is_loaded(name) => {
            Err(refuse("no such profile is loaded on this host"))
        }
        ProfileType::Localhost => Ok(Some(name.to_owned())),
    }
}

/// The kind of a profile, and the file or name it refers to.
pub(super) fn profile_of<'a>(
    field: &'static str,
    profile: &'a SecurityProfile,
) -> Result<(ProfileType, &'a str), Error> {
    let kind = ProfileType::try_from(profile.profile_type)
        .map_err(|_| Error::invalid(field, profile.profile_type.to_string(), "no such kind of profile"))?;
    let name = profile.localhost_ref.as_str();
    // The kubelet sends a file's path here, older ones with the prefix of the annotation.
    Ok((kind, name.strip_prefix("localhost/").unwrap_or(name)))
}

/// The labels of process and mounts. Without SELinux on the host they mean nothing.
fn selinux(input: &SpecInput<'_>, context: &LinuxContainerSecurityContext) -> Result<Labels, Error> {
    let Some(host) = &input.host.selinux else { return Ok(Labels::default()) };
    let pod = input.pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let pod = pod.and_then(|context| context.selinux_options.as_ref());
    Ok(host.labels(input.pod_id, pod, context.selinux_options.as_ref(), context.privileged)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::error::{Classify, Kind};
    use crate::proto::runtime::v1::SeLinuxOption;

    fn applied(fixture: &Fixture) -> Result<(Process, Linux), Error> {
        let (mut process, mut linux) = (Process::default(), Linux::default());
        apply(&fixture.input(), &mut process, &mut linux).map(|()| (process, linux))
    }

    #[test]
    fn paths_are_as_given_and_privileged_clears_them() {
        let mut fixture = Fixture::new();
        fixture.context().masked_paths = vec!["/proc/x".into()];
        fixture.context().readonly_paths = vec!["/proc/y".into()];
        fixture.context().no_new_privs = true;
        let (process, linux) = applied(&fixture).unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        assert_eq!(linux.masked_paths().as_deref(), Some(&["/proc/x".to_owned()][..]));
        assert_eq!(linux.readonly_paths().as_deref(), Some(&["/proc/y".to_owned()][..]));
        fixture.context().privileged = true;
        let (_, linux) = applied(&fixture).unwrap();
        assert_eq!(
            (linux.masked_paths().as_deref(), linux.readonly_paths().as_deref()),
            (Some(&[][..]), Some(&[][..]))
        );
        fixture.context().privileged = false;
        fixture.context().masked_paths = vec!["proc".into()];
        assert!(applied(&fixture).is_err());
    }

    #[test]
    fn nothing_said_is_safe_and_unmasked_is_possible() {
        let mut fixture = Fixture::new();
        fixture.context().namespace_options = None;
        let masked = |fixture: &Fixture| applied(fixture).unwrap().1.masked_paths().clone().unwrap();
        assert_eq!(masked(&fixture), default_masked_paths());
        fixture.context().namespace_options = Some(Default::default());
        assert!(masked(&fixture).is_empty());
    }

    #[test]
    fn app_armor() {
        let profile = |kind: ProfileType, name: &str| {
            Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.into() })
        };
        for (on, old, new, want) in [
            (false, "", None, Ok(None)),
            (false, "runtime/default", None, Ok(None)),
            (false, "", profile(ProfileType::RuntimeDefault, ""), Ok(None)),
            (false, "unconfined", None, Ok(None)),
            (false, "localhost/x", None, Err("not on")),
            (false, "", profile(ProfileType::Localhost, "x"), Err("not on")),
            (false, "", profile(ProfileType::Localhost, ""), Err("missing")),
            (false, "odd", None, Err("must be")),
            (true, "", None, Ok(Some("berth-default"))),
            (true, "", profile(ProfileType::Unconfined, ""), Ok(None)),
            (true, "localhost/berth-no-such", None, Err("loaded")),
        ] {
            let mut fixture = Fixture::new();
            fixture.host.apparmor = on;
            fixture.host.apparmor_default = Some("berth-default".into());
            fixture.context().apparmor = new;
            #[allow(deprecated)]
            {
                fixture.context().apparmor_profile = old.into();
            }
            match (applied(&fixture), want) {
                (Ok((process, _)), Ok(want)) => assert_eq!(process.apparmor_profile().as_deref(), want),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (got, want) => panic!("{got:?} is not {want:?}"),
            }
        }
    }

    #[test]
    fn se_linux() {
        let directory = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new();
        fixture.context().selinux_options =
            Some(SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() });
        assert_eq!(applied(&fixture).unwrap().0.selinux_label(), &None);
        fixture.host.selinux = Some(crate::selinux::of_test(directory.path(), false));
        let (process, linux) = applied(&fixture).unwrap();
        assert_eq!(process.selinux_label().as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
        assert_eq!(linux.mount_label().as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        // Its files are labelled all the same: volumes are shared with containers that are not privileged.
        fixture.context().privileged = true;
        let (process, linux) = applied(&fixture).unwrap();
        assert_eq!(process.selinux_label(), &None);
        assert!(linux.mount_label().is_some());
        fixture.host.selinux = Some(crate::selinux::of_test(directory.path(), true));
        let error = applied(&fixture).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("selinux_options"), "{error}");
    }

    #[test]
    fn default_paths() {
        assert!(default_masked_paths().contains(&"/proc/kcore".to_owned()));
        assert!(default_readonly_paths().contains(&"/proc/sys".to_owned()));
    }
}
