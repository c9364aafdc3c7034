//! Changing a container's limits while it is there.
//!
//! The cgroup is written by the daemon itself, for whichever runtime made it: limits are files. The specification in the
//! bundle is written anew for those who read it (verbose status, debuggers). Where systemd makes the cgroups, the shim tells it.

use std::path::Path;
use std::sync::Arc;

use super::create::Creation;
use super::error::Error;
use super::snapshot::Layout;
use super::tools::Tools;
use crate::cgroup::{self, Cgroup, Driver, Mode};
use crate::proto::berth::v1::ContainerRecord;
use crate::proto::runtime::v1::{LinuxContainerConfig, LinuxContainerResources};
use crate::shim::Shim;

/// Writes what is set of `resources` to the container's cgroup. One that is being created gets it when it is there; one
/// that has ended has none any more, and that is fine.
///
/// # Errors
/// [`Error::Limits`] with what the kernel refused.
pub(crate) async fn update(
    tools: &Arc<Tools>,
    record: &ContainerRecord,
    creation: Option<Creation>,
    layout: Layout,
    resources: LinuxContainerResources,
) -> Result<(), Error> {
    if let Some(creation) = creation {
        // A creation that failed is StartContainer's to tell.
        let _ = creation.await;
    }
    let cgroup = Cgroup::new(tools.host.cgroup, Path::new(&record.cgroups_path));
    let bundle = layout.bundle.clone();
    let there = tokio::task::spawn_blocking(move || {
        let there = cgroup.exists();
        if there {
            cgroup::update(&cgroup, &resources).map_err(Error::Limits)?;
        }
        let config = layout.bundle.join("config.json");
        if let Err(error) = rewrite(&config, &resources) {
            tracing::debug!(error = crate::error::chain(&error), "writing the specification anew");
        }
        Ok::<_, Error>(there)
    })
    .await
    .map_err(|_| Error::Interrupted("changing a container's limits"))??;
    if there && tools.naming.driver() == Driver::Systemd && tools.host.cgroup == Mode::Unified {
        tell_systemd(&record.id, &bundle).await;
    }
    Ok(())
}

/// systemd writes the limits that it knows when it writes a cgroup anew: it is told of new ones. They are in force whatever comes of it.
async fn tell_systemd(id: &str, bundle: &Path) {
    if Shim::calls_another(bundle) {
        return;
    }
    let told = match Shim::connect(id, bundle) {
        Ok(shim) => shim.limits_changed().await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::warn!(container = id, error = crate::error::chain(&error), "telling systemd of new limits");
    }
}

/// Puts new limits in the place of old ones, in the CRI's own words: what is not set stays.
pub(crate) fn merge(into: &mut Option<LinuxContainerConfig>, change: &LinuxContainerResources) {
    let resources = into.get_or_insert_default().resources.get_or_insert_default();
    merge_resources(resources, change);
}

/// The same for resources alone.
pub(crate) fn merge_resources(resources: &mut LinuxContainerResources, change: &LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    let text = |old: &mut String, new: &str| {
        if !new.is_empty() {
            new.clone_into(old);
        }
    };
    number(&mut resources.cpu_period, change.cpu_period);
    number(&mut resources.cpu_quota, change.cpu_quota);
    number(&mut resources.cpu_shares, change.cpu_shares);
    number(&mut resources.memory_limit_in_bytes, change.memory_limit_in_bytes);
    number(&mut resources.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes);
    number(&mut resources.oom_score_adj, change.oom_score_adj);
    text(&mut resources.cpuset_cpus, &change.cpuset_cpus);
    text(&mut resources.cpuset_mems, &change.cpuset_mems);
    for limit in &change.hugepage_limits {
        match resources.hugepage_limits.iter_mut().find(|old| old.page_size == limit.page_size) {
            Some(old) => old.limit = limit.limit,
            None => resources.hugepage_limits.push(limit.clone()),
        }
    }
    resources.unified.extend(change.unified.clone());
}

/// Changes `linux.resources` of the specification. Other parts of the file stay byte for byte what they mean.
fn rewrite(path: &Path, change: &LinuxContainerResources) -> Result<(), Error> {
    let failed = |action| move |source| Error::Path { action, path: path.to_owned(), source };
    let json = |action| move |source| Error::Json { action, path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(failed("reading"))?;
    let mut spec: serde_json::Value = serde_json::from_slice(&bytes).map_err(json("reading"))?;
    let resources = &mut spec["linux"]["resources"];
    for (section, key, value) in [
        ("cpu", "shares", change.cpu_shares),
        ("cpu", "quota", change.cpu_quota),
        ("cpu", "period", change.cpu_period),
        ("memory", "limit", change.memory_limit_in_bytes),
        ("memory", "swap", change.memory_swap_limit_in_bytes),
    ] {
        if value != 0 {
            resources[section][key] = value.into();
        }
    }
    for (key, value) in [("cpus", &change.cpuset_cpus), ("mems", &change.cpuset_mems)] {
        if !value.is_empty() {
            resources["cpu"][key] = value.as_str().into();
        }
    }
    for (name, value) in &change.unified {
        match (name.as_str(), value.trim().parse::<i64>()) {
            ("pids.max", Ok(limit)) => resources["pids"]["limit"] = limit.into(),
            ("pids.max", Err(_)) => resources["pids"]["limit"] = (-1).into(),
            _ => resources["unified"][name] = value.as_str().into(),
        }
    }
    let bytes = serde_json::to_vec(&spec).map_err(json("writing"))?;
    let temporary = path.with_extension("json.new");
    std::fs::write(&temporary, bytes).map_err(failed("writing"))?;
    std::fs::rename(&temporary, path).map_err(failed("replacing"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::runtime::v1::HugepageLimit;

    #[test]
    fn what_is_not_set_stays() {
        let page = |size: &str, limit| HugepageLimit { page_size: size.into(), limit };
        let mut linux = Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_shares: 512,
                memory_limit_in_bytes: 1 << 20,
                cpuset_cpus: "0".into(),
                hugepage_limits: vec![page("2MB", 1)],
                unified: [("memory.high".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        let change = LinuxContainerResources {
            cpu_quota: 5000,
            memory_limit_in_bytes: 2 << 20,
            hugepage_limits: vec![page("2MB", 2), page("1GB", 3)],
            unified: [("memory.low".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        merge(&mut linux, &change);
        let resources = linux.unwrap().resources.unwrap();
        assert_eq!((resources.cpu_shares, resources.cpu_quota), (512, 5000));
        assert_eq!((resources.memory_limit_in_bytes, resources.cpuset_cpus.as_str()), (2 << 20, "0"));
        assert_eq!(resources.hugepage_limits, [page("2MB", 2), page("1GB", 3)]);
        assert_eq!(resources.unified.len(), 2);
        let mut none = None;
        merge(&mut none, &change);
        assert_eq!(none.unwrap().resources.unwrap().cpu_quota, 5000);
    }

    #[test]
    fn the_specification_follows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"ociVersion":"1.2.0","linux":{"resources":{"cpu":{"shares":2}}}}"#)
            .unwrap();
        let change = LinuxContainerResources {
            cpu_quota: 5000,
            cpuset_cpus: "0-1".into(),
            unified: [("pids.max".to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        rewrite(&path, &change).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(spec["ociVersion"], "1.2.0");
        assert_eq!(
            spec["linux"]["resources"],
            serde_json::json!({
                "cpu": {"shares": 2, "quota": 5000, "cpus": "0-1"},
                "pids": {"limit": -1},
            })
        );
    }
}
