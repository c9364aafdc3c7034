//! Changes the limits of a cgroup that is in use. A zero in the CRI means "leave as it is".

use std::path::Path;

use super::Mode;
use super::dir::{Cgroup, Error, read, write};
use crate::proto::runtime::v1::LinuxContainerResources;

/// Applies what is set of the resources: cpu, cpuset, memory, swap, pids and, on v2, the unified map.
pub fn update(cgroup: &Cgroup, resources: &LinuxContainerResources) -> Result<(), Error> {
    if !cgroup.exists() {
        return Err(Error::NotFound { path: cgroup.path().to_path_buf() });
    }
    for (field, value) in [("cpu_shares", resources.cpu_shares), ("cpu_period", resources.cpu_period)] {
        if value < 0 {
            return Err(Error::Invalid { field, value: value.to_string(), reason: "is negative" });
        }
    }
    if let Some(name) = resources.unified.keys().find(|name| !is_limit(name)) {
        let reason = "is not a limit of cgroup v2";
        return Err(Error::Invalid { field: "unified", value: name.clone(), reason });
    }
    let cpuset = cgroup.directory("cpuset");
    for (file, value) in [("cpuset.cpus", &resources.cpuset_cpus), ("cpuset.mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            write(&cpuset.join(file), value)?;
        }
    }
    hugepages(cgroup, resources)?;
    match cgroup.mode() {
        Mode::Unified => {
            cpu_v2(&cgroup.directory("cpu"), resources)?;
            memory_v2(&cgroup.directory("memory"), resources)?;
            for (name, value) in &resources.unified {
                write(&cgroup.directory("").join(name), value)?;
            }
        }
        Mode::Legacy | Mode::Hybrid => {
            cpu_v1(&cgroup.directory("cpu"), resources)?;
            memory_v1(&cgroup.directory("memory"), resources)?;
            if let Some(limit) = resources.unified.get("pids.max") {
                write(&cgroup.directory("pids").join("pids.max"), limit)?;
            }
        }
    }
    Ok(())
}

/// The kubelet names every size with every container: sizes and controllers that this machine lacks are passed over.
fn hugepages(cgroup: &Cgroup, resources: &LinuxContainerResources) -> Result<(), Error> {
    for huge in &resources.hugepage_limits {
        let size = huge.page_size.as_str();
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if digits.is_none_or(|d| d.is_empty() || !d.bytes().all(|b| b.is_ascii_digit())) {
            let (value, reason) = (size.to_owned(), "is not like 2MB");
            return Err(Error::Invalid { field: "hugepage_limits[].page_size", value, reason });
        }
        let limit = if cgroup.mode() == Mode::Unified { "max" } else { "limit_in_bytes" };
        let file = cgroup.directory("hugetlb").join(format!("hugetlb.{size}.{limit}"));
        if file.exists() {
            write(&file, &huge.limit.to_string())?;
        }
    }
    Ok(())
}

fn cpu_v1(directory: &Path, resources: &LinuxContainerResources) -> Result<(), Error> {
    if resources.cpu_shares != 0 {
        write(&directory.join("cpu.shares"), &resources.cpu_shares.to_string())?;
    }
    let quota = (resources.cpu_quota != 0).then(|| resources.cpu_quota.max(-1).to_string());
    let period = (resources.cpu_period != 0).then(|| resources.cpu_period.to_string());
    let (quota_file, period_file) = (directory.join("cpu.cfs_quota_us"), directory.join("cpu.cfs_period_us"));
    // The kernel holds quota/period against the parent's at each write: without a quota every period is good.
    if let (Some(_), Some(_)) = (&quota, &period) {
        write(&quota_file, "-1")?;
    }
    if let Some(period) = period {
        write(&period_file, &period)?;
    }
    if let Some(quota) = quota {
        write(&quota_file, &quota)?;
    }
    Ok(())
}

fn cpu_v2(directory: &Path, resources: &LinuxContainerResources) -> Result<(), Error> {
    if resources.cpu_shares != 0 {
        write(&directory.join("cpu.weight"), &weight(resources.cpu_shares).to_string())?;
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        let file = directory.join("cpu.max");
        let now = read(&file)?;
        let mut now = now.split_whitespace();
        let quota = match resources.cpu_quota {
            0 => now.next().unwrap_or("max").to_owned(),
            quota if quota < 0 => "max".to_owned(),
            quota => quota.to_string(),
        };
        let period = match resources.cpu_period {
            0 => now.last().unwrap_or("100000").to_owned(),
            period => period.to_string(),
        };
        write(&file, &format!("{quota} {period}"))?;
    }
    Ok(())
}

/// From shares, 2 to 262144, to weight, 1 to 10000, on a straight line (KEP-2254), as runtimes have done since v2.
pub(super) fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// On v1 memory+swap may never be below memory: a raise raises the sum first, a cut cuts memory first.
fn memory_v1(directory: &Path, resources: &LinuxContainerResources) -> Result<(), Error> {
    let (limit_file, sum_file) =
        (directory.join("memory.limit_in_bytes"), directory.join("memory.memsw.limit_in_bytes"));
    let limit = resources.memory_limit_in_bytes;
    let mut sum = resources.memory_swap_limit_in_bytes;
    if !sum_file.exists() {
        sum = 0;
    }
    let now = |file: &Path| -> Result<i64, Error> {
        // "No limit" reads as the largest number of whole pages.
        Ok(read(file)?.trim().parse().unwrap_or(i64::MAX))
    };
    let amount = |value: i64| if value < 0 { i64::MAX } else { value };
    if sum == 0 && limit != 0 && sum_file.exists() {
        let old = now(&sum_file)?;
        // Nothing said of swap: who had none stays without, and an old sum that is in the way grows with the limit.
        if amount(limit) > old || old == now(&limit_file)? {
            sum = limit;
        }
    }
    let raise = sum != 0 && amount(sum) > now(&sum_file)?;
    if raise {
        write(&sum_file, &sum.to_string())?;
    }
    if limit != 0 {
        write(&limit_file, &limit.to_string())?;
    }
    if sum != 0 && !raise {
        write(&sum_file, &sum.to_string())?;
    }
    Ok(())
}

/// On v2 swap is apart: the CRI's sum less the memory.
fn memory_v2(directory: &Path, resources: &LinuxContainerResources) -> Result<(), Error> {
    let text = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    let limit = resources.memory_limit_in_bytes;
    let sum = resources.memory_swap_limit_in_bytes;
    let swap_file = directory.join("memory.swap.max");
    if sum != 0 && swap_file.exists() {
        let memory = match limit {
            0 => read(&directory.join("memory.max"))?.trim().parse().unwrap_or(-1),
            limit => limit,
        };
        let swap = match (sum, memory) {
            (sum, _) if sum < 0 => "max".to_owned(),
            (_, memory) if memory < 0 => "0".to_owned(),
            (sum, memory) if sum < memory => {
                let reason = "is below the memory limit, which it includes";
                return Err(Error::Invalid {
                    field: "memory_swap_limit_in_bytes",
                    value: sum.to_string(),
                    reason,
                });
            }
            (sum, memory) => (sum - memory).to_string(),
        };
        write(&swap_file, &swap)?;
    }
    if limit != 0 {
        write(&directory.join("memory.max"), &text(limit))?;
    }
    Ok(())
}

/// The files of a controller that are limits or protections, and no path.
fn is_limit(name: &str) -> bool {
    let controller = name.split('.').next().unwrap_or_default();
    matches!(controller, "cpu" | "cpuset" | "io" | "memory" | "pids" | "hugetlb" | "rdma" | "misc")
        && name.contains('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
