//! The facts of the machine that a specification depends on, so that building one can be tested on any.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use oci_spec::runtime::Capability;

use super::capabilities;
use crate::cgroup::Mode;
use crate::selinux::SeLinux;

/// The facts of the machine that a specification depends on. Detected once at start.
#[derive(Clone, Debug)]
pub struct Host {
    /// The capabilities that a container can be given: known to the kernel and in our own bounding set.
    pub capabilities: Vec<Capability>,
    /// Which cgroup hierarchy the machine has.
    pub cgroup: Mode,
    /// Huge pages can be limited.
    pub hugetlb: bool,
    /// Swap can be limited.
    pub swap: bool,
    /// AppArmor is on.
    pub apparmor: bool,
    /// The name of the loaded AppArmor profile that `RuntimeDefault` means.
    pub apparmor_default: Option<String>,
    /// SELinux, where it is on and labels are wanted.
    pub selinux: Option<SeLinux>,
    /// Why pods can't have user namespaces here; `None`: they can.
    pub no_user_namespaces: Option<String>,
    /// Our own `oom_score_adj`.
    pub oom_score_adj: i32,
    /// We may go below our own `oom_score_adj` and above our own hard limits (CAP_SYS_RESOURCE).
    pub may_exceed: bool,
    /// Our own hard resource limits, by the OCI name.
    pub rlimits: HashMap<String, u64>,
    /// Where the host's devices are.
    pub dev: std::path::PathBuf,
}

impl Host {
    /// Looks at this machine and this process.
    pub fn detect() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = |name: &str| -> u64 {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .unwrap_or(0)
        };
        // A capability in the bounding set that we don't hold can't be handed on either.
        let bounding = set("CapBnd") & set("CapPrm");
        let cgroup = Mode::detect();
        Self {
            capabilities: capabilities::from_bits(bounding),
            hugetlb: cgroup.has_controller("hugetlb"),
            swap: has_swap_accounting(cgroup),
            cgroup,
            apparmor: crate::apparmor::is_on(),
            apparmor_default: None,
            selinux: SeLinux::detect(),
            // Found out by trying, elsewhere.
            no_user_namespaces: None,
            oom_score_adj: read_trimmed("/proc/self/oom_score_adj").and_then(|v| v.parse().ok()).unwrap_or(0),
            may_exceed: capabilities::from_bits(set("CapEff")).contains(&Capability::SysResource),
            rlimits: own_rlimits(),
            dev: "/dev".into(),
        }
    }
}

fn has_swap_accounting(mode: Mode) -> bool {
    match mode {
        Mode::Unified => {
            // The root cgroup has no memory.swap.max; a child of it has. Our own cgroup tells.
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
            own.is_empty() || Path::new("/sys/fs/cgroup").join(own).join("memory.swap.max").exists()
        }
        Mode::Legacy | Mode::Hybrid => {
            Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
        }
    }
}

/// Parses `/proc/self/limits`: name in columns of fixed width, then soft and hard limit.
fn own_rlimits() -> HashMap<String, u64> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "RLIMIT_CPU"),
        ("Max file size", "RLIMIT_FSIZE"),
        ("Max data size", "RLIMIT_DATA"),
        ("Max stack size", "RLIMIT_STACK"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max resident set", "RLIMIT_RSS"),
        ("Max processes", "RLIMIT_NPROC"),
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
        ("Max address space", "RLIMIT_AS"),
        ("Max file locks", "RLIMIT_LOCKS"),
        ("Max pending signals", "RLIMIT_SIGPENDING"),
        ("Max msgqueue size", "RLIMIT_MSGQUEUE"),
        ("Max nice priority", "RLIMIT_NICE"),
        ("Max realtime priority", "RLIMIT_RTPRIO"),
        ("Max realtime timeout", "RLIMIT_RTTIME"),
    ];
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mut limits = HashMap::new();
    for (label, name) in NAMES {
        let Some(rest) = text.lines().find_map(|line| line.strip_prefix(label)) else { continue };
        let hard = match rest.split_whitespace().nth(1) {
            Some("unlimited") => u64::MAX,
            Some(number) => number.parse().unwrap_or(u64::MAX),
            None => continue,
        };
        limits.insert(name.to_owned(), hard);
    }
    limits
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
