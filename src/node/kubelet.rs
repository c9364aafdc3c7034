//! The kubelet's way to its runtime: a drop-in for its unit that starts what the unit starts, with our socket at the end.
//!
//! The last of several flags of one name holds, and flags win over the kubelet's configuration file: so the endpoint is
//! switched without a change to any file that kubeadm or a person keeps, and switched back by removing one.

use super::root::{HostPath, HostRoot};
use super::{ENDPOINT, Error};

/// The drop-in. It sorts after kubeadm's.
pub(crate) const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/99-berth.conf";
/// Where units are looked for, the first wins (systemd.unit(5)).
const UNITS: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const UNIT: &str = "kubelet.service";
/// Bytes of the largest unit that is read.
const LIMIT: u64 = 1 << 20;

/// The drop-in's text, from the units that the host has now.
pub(crate) fn drop_in(root: &HostRoot) -> Result<String, Error> {
    let start = command(root)?.ok_or(Error::NoKubelet)?;
    Ok(format!(
        "# Written by `berth node install`; `berth node uninstall` switches back by removing it.\n\
         # The command is kubelet.service's own of that day; install again after it was changed.\n\
         [Unit]\nWants=berth.service\nAfter=berth.service\n\n\
         [Service]\nExecStart=\nExecStart={start} --container-runtime-endpoint={ENDPOINT} \
         --image-service-endpoint={ENDPOINT}\n"
    ))
}

/// The command that the kubelet's unit and its drop-ins, ours aside, come to.
fn command(root: &HostRoot) -> Result<Option<String>, Error> {
    let mut command = None;
    for directory in UNITS {
        if let Some(text) = read(root, &format!("{directory}/{UNIT}"))? {
            apply(&text, &mut command);
            break;
        }
    }
    let mut names: Vec<(String, &str)> = Vec::new();
    for directory in UNITS {
        for name in root.names(&HostPath::try_from(format!("{directory}/{UNIT}.d"))?)? {
            if name.ends_with(".conf") && !names.iter().any(|(known, _)| *known == name) {
                names.push((name, directory));
            }
        }
    }
    names.sort();
    for (name, directory) in names {
        let path = format!("{directory}/{UNIT}.d/{name}");
        if path != DROP_IN
            && let Some(text) = read(root, &path)?
        {
            apply(&text, &mut command);
        }
    }
    Ok(command)
}

fn read(root: &HostRoot, path: &str) -> Result<Option<String>, Error> {
    // A unit may be a link to /dev/null, which masks it.
    let path = HostPath::try_from(path)?;
    match root.read(&path, LIMIT) {
        Ok(content) => Ok(content.map(|content| String::from_utf8_lossy(&content).into_owned())),
        Err(Error::Host { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes over what a file says of `ExecStart`: an empty one clears those before (systemd.service(5)).
fn apply(text: &str, command: &mut Option<String>) {
    let joined = text.replace("\\\n", " ");
    let mut service = false;
    for line in joined.lines().map(str::trim) {
        if line.starts_with('[') {
            service = line == "[Service]";
        } else if service
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == "ExecStart"
        {
            let value = value.trim();
            *command = (!value.is_empty()).then(|| value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_command_of_unit_and_drop_ins_holds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let root = HostRoot::open(dir.path()).unwrap();
        assert!(matches!(drop_in(&root), Err(Error::NoKubelet)));
        write(
            "usr/lib/systemd/system/kubelet.service",
            "[Unit]\nExecStart=no\n[Service]\nExecStart=/usr/bin/kubelet\n",
        );
        assert!(drop_in(&root).unwrap().contains("\nExecStart=/usr/bin/kubelet --container-runtime"));
        write(
            "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
            "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS \\\n  $KUBELET_EXTRA_ARGS\n",
        );
        write("etc/systemd/system/kubelet.service.d/99-berth.conf", "[Service]\nExecStart=\n");
        let text = drop_in(&root).unwrap();
        let start = text.lines().rfind(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            start.split_whitespace().collect::<Vec<_>>(),
            [
                "ExecStart=/usr/bin/kubelet",
                "$KUBELET_CONFIG_ARGS",
                "$KUBELET_EXTRA_ARGS",
                "--container-runtime-endpoint=unix:///run/berth/berth.sock",
                "--image-service-endpoint=unix:///run/berth/berth.sock"
            ]
        );
    }
}
