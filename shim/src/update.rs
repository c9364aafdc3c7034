//! Changes the resources of a running container, in a forked child.
//!
//! The cgroup is found by its directories, so that it works for every runtime and naming; libcgroups writes the values.

use std::path::{Path, PathBuf};

use libcgroups::common::{CgroupManager, ControllerOpt};
use oci_spec::runtime::LinuxResources;

use crate::job::Reporter;
use crate::status::{Code, Failure};
use crate::systemd;

/// Applies `resources`, an OCI LinuxResources as JSON.
pub(crate) fn run(pid: i32, cgroups: &[PathBuf], resources: &[u8], reporter: &Reporter) {
    match apply(pid, cgroups, resources) {
        Ok(()) => {
            cgroups.iter().for_each(|directory| systemd::tell_limits(directory));
            reporter.done();
        }
        Err(failure) => reporter.failed(&failure),
    }
}

pub(crate) fn apply(pid: i32, cgroups: &[PathBuf], resources: &[u8]) -> Result<(), Failure> {
    let resources: LinuxResources = serde_json::from_slice(resources)
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("resources: {error}")))?;
    let directory =
        cgroups.first().ok_or_else(|| Failure::internal("the container has no cgroup of its own"))?;
    let (root, relative) = split(directory, pid)?;
    let options = ControllerOpt {
        resources: &resources,
        freezer_state: None,
        oom_score_adj: None,
        disable_oom_killer: false,
    };
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::doing("updating the container's resources", error)
    };
    if directory.join("cgroup.controllers").exists() {
        libcgroups::v2::manager::Manager::new(root, relative)
            .map_err(|error| failed(&error))?
            .apply(&options)
            .map_err(|error| failed(&error))
    } else {
        libcgroups::v1::manager::Manager::new(&relative)
            .map_err(|error| failed(&error))?
            .apply(&options)
            .map_err(|error| failed(&error))
    }
}

/// The hierarchy's mount point, and the path below it as the process' membership names it.
fn split(directory: &Path, pid: i32) -> Result<(PathBuf, PathBuf), Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(|error| Failure::doing("reading the container's cgroup", &error))?;
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .filter(|path| *path != "/")
        .find_map(|path| {
            let relative = path.trim_start_matches('/');
            let root = directory.to_str()?.strip_suffix(relative)?;
            Some((PathBuf::from(root), PathBuf::from(path)))
        })
        .ok_or_else(|| Failure::internal("the container's cgroup has moved"))
}
