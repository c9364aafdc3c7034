//! What the kubelet is told, held against what Berth does.

use serde_json::Value;

use super::{Error, Finding, HostRoot, LIMIT, Setup};
use crate::node::HostPath;

/// Where kubeadm and others put its configuration.
const CONFIGURATION: &str = "/var/lib/kubelet/config.yaml";
const DRIVER: &str = "kubelet's cgroup driver";
const ENDPOINT: &str = "kubelet's runtime";

pub(super) fn all(root: &HostRoot, setup: &Setup) -> Result<Vec<Finding>, Error> {
    let Some(content) = root.read(&HostPath::try_from(CONFIGURATION)?, LIMIT)? else {
        return Ok(vec![Finding::ok("kubelet", format!("no {CONFIGURATION}"))]);
    };
    let text = String::from_utf8_lossy(&content);
    let settings: Value = match serde_saphyr::from_str(&text) {
        Ok(settings) => settings,
        Err(error) => {
            let found = format!("{CONFIGURATION} can't be read: {error}");
            return Ok(vec![Finding::wrong(
                "kubelet",
                found,
                "the kubelet does not start with it: put it right",
            )]);
        }
    };
    let mut findings = vec![driver(&settings, setup)];
    let switched = root.look(&HostPath::try_from(crate::node::kubelet::DROP_IN)?)?.is_some();
    findings.push(endpoint(&settings, setup, switched));
    Ok(findings)
}

/// KEP-4033: since 1.34 the kubelet asks the runtime; one that does not get an answer, and older ones, take their own setting.
fn driver(settings: &Value, setup: &Setup) -> Finding {
    // The default of KubeletConfiguration is cgroupfs; kubeadm writes systemd.
    let theirs = settings.get("cgroupDriver").and_then(Value::as_str).unwrap_or("cgroupfs");
    match setup.cgroup_driver {
        Some(ours) if ours != theirs => Finding::warning(
            DRIVER,
            format!("{theirs} in {CONFIGURATION}, and {ours} here"),
            format!(
                "kubelets before 1.34 start no pod so: set cgroupDriver: {ours} there, or cgroup.driver = {theirs:?} in \
                 Berth's configuration"
            ),
        ),
        Some(ours) => Finding::ok(DRIVER, format!("{ours} on both sides")),
        None => Finding::ok(DRIVER, format!("{theirs}; Berth's is known when the daemon answers")),
    }
}

fn endpoint(settings: &Value, setup: &Setup, switched: bool) -> Finding {
    let ours = setup.address.display().to_string();
    let theirs = settings.get("containerRuntimeEndpoint").and_then(Value::as_str).unwrap_or_default();
    let theirs = theirs.strip_prefix("unix://").unwrap_or(theirs);
    if switched {
        Finding::ok(ENDPOINT, "switched to Berth by a drop-in of its unit")
    } else if theirs == ours {
        Finding::ok(ENDPOINT, ours)
    } else {
        let theirs = if theirs.is_empty() { "as its command line says" } else { theirs };
        Finding::ok(ENDPOINT, format!("{theirs}: Berth is not this node's runtime"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::check::Level;
    use super::*;

    fn setup() -> Setup {
        Setup {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            address: "/run/berth/berth.sock".into(),
            builtin_network: true,
            cgroup_driver: Some("systemd"),
        }
    }

    fn findings(configuration: Option<&str>) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = configuration {
            std::fs::create_dir_all(dir.path().join("var/lib/kubelet")).unwrap();
            std::fs::write(dir.path().join("var/lib/kubelet/config.yaml"), text).unwrap();
        }
        all(&HostRoot::open(dir.path()).unwrap(), &setup()).unwrap()
    }

    #[test]
    fn two_drivers_are_a_warning() {
        let levels = |text| findings(Some(text)).iter().map(|one| one.level).collect::<Vec<_>>();
        assert_eq!(
            levels("cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/berth/berth.sock\n"),
            [Level::Ok, Level::Ok]
        );
        assert_eq!(levels("kind: KubeletConfiguration\n")[0], Level::Warning, "the default is cgroupfs");
        assert_eq!(findings(Some("a: [")).len(), 1);
        assert_eq!(findings(Some("a: ["))[0].level, Level::Wrong);
        assert_eq!(findings(None)[0].level, Level::Ok);
    }

    #[test]
    fn another_runtime_is_named() {
        let found =
            findings(Some("cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n"));
        assert!(found[1].found.contains("/run/crio/crio.sock"), "{found:?}");
    }
}
