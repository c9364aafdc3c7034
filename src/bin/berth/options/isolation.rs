//! How far a container is from the host: namespaces it shares, devices, kernel parameters, profiles.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::security_profile::ProfileType;
use berth::proto::runtime::v1::{CdiDevice, Device, SeLinuxOption, SecurityProfile};
use clap::{Args, ValueEnum};

/// Options of `run`, in the words of Docker's.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Isolation {
    /// Device of the host, or one by its CDI name
    #[arg(long, value_name = "PATH[:PATH][:rwm]|VENDOR/CLASS=NAME")]
    pub device: Vec<String>,
    /// Kernel parameter of the pod's namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<String>,
    /// Whose processes it sees (else its own)
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub pid: Option<Shared>,
    /// Whose shared memory and message queues it has (else its own)
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub ipc: Option<Shared>,
    /// Further group of its user, by number
    #[arg(long, value_name = "GID")]
    pub group_add: Vec<u32>,
    /// no-new-privileges, seccomp=PROFILE, apparmor=PROFILE, label=type:TYPE or systempaths=unconfined, where PROFILE is unconfined
    /// or a file (seccomp) or a loaded profile (apparmor)
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
}

/// With whom a namespace is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shared {
    /// The host's
    Host,
}

/// They are all in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Isolated {
    pub devices: Vec<Device>,
    pub cdi_devices: Vec<CdiDevice>,
    pub sysctls: HashMap<String, String>,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub groups: Vec<i64>,
    pub no_new_privileges: bool,
    /// `None`: the usual one.
    pub seccomp: Option<SecurityProfile>,
    pub apparmor: Option<SecurityProfile>,
    pub selinux: Option<SeLinuxOption>,
    /// Nothing of `/proc` and `/sys` is hidden or read-only.
    pub bare_system_paths: bool,
}

impl Isolation {
    /// Reads them. Relative files are of the directory `here`.
    pub(crate) fn read(&self, here: &Path) -> Result<Isolated> {
        let mut isolated = Isolated {
            host_pid: self.pid == Some(Shared::Host),
            host_ipc: self.ipc == Some(Shared::Host),
            groups: self.group_add.iter().map(|group| i64::from(*group)).collect(),
            ..Isolated::default()
        };
        for text in &self.device {
            // Only names have a class: paths have no equals sign in front of their first colon.
            match text.starts_with('/') {
                true => isolated.devices.push(device(text)?),
                false if text.contains('/') && text.contains('=') => {
                    isolated.cdi_devices.push(CdiDevice { name: text.clone() });
                }
                false => {
                    bail!("--device {text}: write a path from /, or a CDI name such as vendor.com/gpu=0")
                }
            }
        }
        for text in &self.sysctl {
            match text.split_once('=') {
                Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                    isolated.sysctls.insert(name.trim().to_owned(), value.trim().to_owned());
                }
                _ => bail!("--sysctl {text}: write NAME=VALUE, as in net.core.somaxconn=1024"),
            }
        }
        for text in &self.security_opt {
            isolated.option(text, here).with_context(|| format!("--security-opt {text}"))?;
        }
        Ok(isolated)
    }
}

impl Isolated {
    /// Reads one `--security-opt`. Docker writes `=` and, formerly, `:`.
    fn option(&mut self, text: &str, here: &Path) -> Result<()> {
        let (name, value) = match text.find(['=', ':']) {
            Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
            None => (text, ""),
        };
        match (name, value) {
            ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
            ("no-new-privileges", "false") => self.no_new_privileges = false,
            ("seccomp", "unconfined") => self.seccomp = Some(profile(ProfileType::Unconfined, "")),
            ("seccomp", "builtin") => self.seccomp = Some(profile(ProfileType::RuntimeDefault, "")),
            ("seccomp", file) if !file.is_empty() => {
                // The daemon reads it: said here already when it is not there.
                let path = std::fs::canonicalize(here.join(file)).context("looking for the profile")?;
                self.seccomp = Some(profile(ProfileType::Localhost, &path.to_string_lossy()));
            }
            ("apparmor", "unconfined") => self.apparmor = Some(profile(ProfileType::Unconfined, "")),
            ("apparmor", "runtime/default") => {
                self.apparmor = Some(profile(ProfileType::RuntimeDefault, ""));
            }
            ("apparmor", loaded) if !loaded.is_empty() => {
                self.apparmor = Some(profile(ProfileType::Localhost, loaded));
            }
            ("label", part) => {
                let label = self.selinux.get_or_insert_default();
                match part.split_once(':') {
                    Some(("user", user)) => user.clone_into(&mut label.user),
                    Some(("role", role)) => role.clone_into(&mut label.role),
                    Some(("type", kind)) => kind.clone_into(&mut label.r#type),
                    Some(("level", level)) => level.clone_into(&mut label.level),
                    _ => bail!("which part? write label=user:, role:, type: or level: and its value"),
                }
            }
            ("systempaths", "unconfined") => self.bare_system_paths = true,
            _ => bail!("write no-new-privileges, seccomp=, apparmor=, label= or systempaths=unconfined"),
        }
        Ok(())
    }
}

fn profile(kind: ProfileType, of_host: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), localhost_ref: of_host.to_owned() }
}

/// `/dev/a`, `/dev/a:/dev/b`, `/dev/a:rw`, `/dev/a:/dev/b:r`.
fn device(text: &str) -> Result<Device> {
    const ALL: &str = "rwm";
    let is_path = |part: &&str| part.starts_with('/') && part.len() > 1;
    let allows =
        |part: &&str| !part.is_empty() && part.bytes().all(|letter| ALL.as_bytes().contains(&letter));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, seen, permissions) = match parts.as_slice() {
        [host] => (*host, *host, ALL),
        [host, seen] if is_path(seen) => (*host, *seen, ALL),
        [host, permissions] if allows(permissions) => (*host, *host, *permissions),
        [host, seen, permissions] if is_path(seen) && allows(permissions) => (*host, *seen, *permissions),
        _ => bail!(
            "--device {text}: write PATH, PATH:PATH or PATH:PATH:rwm, with a letter for read, write and mknod"
        ),
    };
    Ok(Device {
        host_path: host.to_owned(),
        container_path: seen.to_owned(),
        permissions: permissions.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(options: &Isolation) -> Result<Isolated> {
        options.read(Path::new("/"))
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_by_path_and_by_name() {
        let options = Isolation {
            device: texts(&[
                "/dev/fuse",
                "/dev/a:/dev/b",
                "/dev/a:r",
                "/dev/a:/dev/b:rw",
                "vendor.com/gpu=0",
            ]),
            ..Isolation::default()
        };
        let read = read(&options).unwrap();
        let seen: Vec<_> = read
            .devices
            .iter()
            .map(|device| format!("{} {} {}", device.host_path, device.container_path, device.permissions))
            .collect();
        let expected =
            ["/dev/fuse /dev/fuse rwm", "/dev/a /dev/b rwm", "/dev/a /dev/a r", "/dev/a /dev/b rw"];
        assert_eq!(seen, expected);
        assert_eq!(read.cdi_devices, [CdiDevice { name: "vendor.com/gpu=0".into() }]);
    }

    #[test]
    fn security_options_of_docker() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let options = Isolation {
            security_opt: texts(&[
                "no-new-privileges",
                &format!("seccomp={path}"),
                "apparmor:unconfined",
                "label=type:spc_t",
                "label=level:s0:c1,c2",
                "systempaths=unconfined",
            ]),
            ..Isolation::default()
        };
        let isolated = read(&options).unwrap();
        assert!(isolated.no_new_privileges && isolated.bare_system_paths);
        let real = std::fs::canonicalize(path).unwrap();
        assert_eq!(isolated.seccomp.unwrap(), profile(ProfileType::Localhost, real.to_str().unwrap()));
        assert_eq!(isolated.apparmor.unwrap(), profile(ProfileType::Unconfined, ""));
        let label = isolated.selinux.unwrap();
        assert_eq!((label.r#type.as_str(), label.level.as_str()), ("spc_t", "s0:c1,c2"));
    }

    #[test]
    fn mistakes_are_named() {
        let with = |device: &[&str], sysctl: &[&str], option: &[&str]| Isolation {
            device: texts(device),
            sysctl: texts(sysctl),
            security_opt: texts(option),
            ..Isolation::default()
        };
        for (options, word) in [
            (with(&["fuse"], &[], &[]), "--device fuse"),
            (with(&["/dev/a:x"], &[], &[]), "mknod"),
            (with(&["/dev/a:/dev/b:"], &[], &[]), "mknod"),
            (with(&[], &["net.a"], &[]), "--sysctl net.a"),
            (with(&[], &["=1"], &[]), "--sysctl =1"),
            (with(&[], &[], &["seccomp=/no/such"]), "looking for the profile"),
            (with(&[], &[], &["seccomp="]), "write no-new"),
            (with(&[], &[], &["label=disable"]), "which part"),
            (with(&[], &[], &["something"]), "--security-opt something"),
        ] {
            let error = format!("{:#}", read(&options).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
