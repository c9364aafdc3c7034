//! The places that an installation writes to, and no others: what a manifest says of any other path is not believed.

use super::root::HostPath;
use super::{CURRENT, Error, VERSIONS, containerd, kubelet};

/// The programs of a version.
pub(crate) const PROGRAMS: &[&str] = &["berthd", "berth", "berth-shim", "berth-cni"];
/// The shim by the name that containerd looks for.
pub(crate) const CONTAINERD_SHIM: &str = "containerd-shim-berth-v1";
/// The names that our CNI plugin is called by.
pub(crate) const PLUGINS: &[&str] =
    &["berth-bridge", "berth-macvlan", "berth-ipvlan", "berth-overlay", "berth-ipam"];

/// The configuration that an installation was given.
pub(crate) const DROP_IN: &str = "/etc/berth/conf.d/10-node.toml";
/// systemd's unit.
pub(crate) const UNIT_PATH: &str = "/etc/systemd/system/berth.service";
/// What starts it with the machine.
pub(crate) const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/berth.service";
/// crictl's configuration.
pub(crate) const CRICTL: &str = "/etc/crictl.yaml";
/// The daemon's unit.
pub(crate) const SERVICE: &str = "berth.service";
/// The directory of saved files.
pub(crate) const BACKUP: &str = "/opt/berth/backup";

/// Checks a version's name: it becomes a directory's.
///
/// # Errors
/// When it is none.
pub(crate) fn version(text: &str) -> Result<(), Error> {
    let plain = |char: char| char.is_ascii_alphanumeric() || "._+-".contains(char);
    let named = text.chars().any(|char| char.is_ascii_alphanumeric());
    if named && text.len() <= 64 && text.chars().all(plain) && !text.starts_with('.') {
        Ok(())
    } else {
        Err(Error::Version(text.chars().take(200).collect()))
    }
}

/// Whether an installation of any version writes to this path.
pub(crate) fn is_ours(path: &HostPath) -> bool {
    let fixed = [
        CURRENT,
        DROP_IN,
        UNIT_PATH,
        WANTS,
        CRICTL,
        kubelet::DROP_IN,
        containerd::CONFIG,
        containerd::DROP_IN,
        BACKUP,
        VERSIONS,
    ];
    let links = PROGRAMS.iter().chain([&CONTAINERD_SHIM]).map(|name| format!("/usr/local/bin/{name}"));
    let plugins = PLUGINS.iter().map(|name| format!("/opt/cni/bin/{name}"));
    let mut known = fixed.iter().map(ToString::to_string).chain(links).chain(plugins);
    if path.parent() == BACKUP {
        return path.name().len() == 64 && path.name().bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    if let Some(rest) = path.as_str().strip_prefix(VERSIONS).and_then(|rest| rest.strip_prefix('/')) {
        let mut parts = rest.split('/');
        let named = parts.next().is_some_and(|name| version(name).is_ok());
        let program = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) | (Some("bin"), None, _) => true,
            (Some("bin"), Some(name), None) => PROGRAMS.contains(&name) || name == CONTAINERD_SHIM,
            _ => false,
        };
        return named && program;
    }
    known.any(|place| place == path.as_str() || place.starts_with(&format!("{path}/")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_names_of_directories() {
        for good in ["0.1.0", "1.0.0-rc.1+deb12", "v2"] {
            assert!(version(good).is_ok(), "{good}");
        }
        for wrong in ["", ".", "..", "-", "../x", "a/b", ".hidden", "a b", &"9".repeat(65)] {
            assert!(version(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_our_places_are_ours() {
        let ours = |path: &str| is_ours(&HostPath::try_from(path).unwrap());
        for path in [
            "/opt",
            "/opt/berth",
            "/opt/berth/current",
            "/opt/berth/versions/0.1.0",
            "/opt/berth/versions/0.1.0/bin/berthd",
            "/etc/systemd/system/kubelet.service.d",
            "/etc/crictl.yaml",
            "/usr/local/bin/berth",
        ] {
            assert!(ours(path), "{path}");
        }
        for path in [
            "/etc/passwd",
            "/usr/local/bin/other",
            "/opt/berth/versions/0.1.0/bin/passwd",
            "/opt/berth/versions/0.1.0/etc",
            "/opt/berth/backup/passwd",
            "/opt/berthx",
            "/root",
        ] {
            assert!(!ours(path), "{path}");
        }
    }
}
