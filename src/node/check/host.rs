//! What is on the host: space, ports, others' files in the same places, services.

use super::{Finding, HostRoot, Mode};
use crate::node::manifest::Manifest;
use crate::node::{Error, HostPath, kubelet};

/// Bytes that programs of two versions take, with room.
const PROGRAMS: u64 = 200 << 20;
/// Bytes below which no image of any size fits.
const IMAGES_FLOOR: u64 = 1 << 30;
/// Bytes below which the kubelet soon collects images.
const IMAGES: u64 = 10 << 30;
/// Where the daemon's numbers are served unless the configuration says otherwise.
const METRICS_PORT: u16 = 9477;

pub(super) fn all(root: &HostRoot, mode: Mode) -> Result<Vec<Finding>, Error> {
    // A manifest that can't be read is a finding of its own, below.
    let manifest = Manifest::load(root);
    let installed = matches!(&manifest, Ok(Some(_)));
    let mut findings = vec![space(root, "/opt/berth", "space for programs", PROGRAMS, 0)?];
    if let Err(error) = manifest {
        findings.push(Finding::missing("installation", error.to_string(), "see the message"));
    }
    if mode == Mode::Node {
        findings.push(space(root, "/var/lib/berth", "space for images", IMAGES_FLOOR, IMAGES)?);
        findings.push(port(root, installed));
        findings.push(unit(root)?);
        findings.push(match kubelet::drop_in(root) {
            Ok(_) => Finding::ok("kubelet", "its unit is there"),
            Err(error) => Finding::warning("kubelet", "no unit", error.to_string()),
        });
    } else {
        findings.push(containerd(root)?);
    }
    findings.push(programs(root)?);
    findings.extend(standing(root)?);
    Ok(findings)
}

/// What does not depend on how Berth is put there.
pub(super) fn standing(root: &HostRoot) -> Result<Vec<Finding>, Error> {
    let mut findings = vec![cni(root)?];
    findings.push(match crate::node::systemd::Systemd::at(root) {
        Some(_) => Finding::ok("systemd", "runs"),
        None => Finding::warning(
            "systemd",
            "does not run",
            "services are not told: start berthd by the service manager that is there",
        ),
    });
    Ok(findings)
}

fn path(text: &str) -> Result<HostPath, Error> {
    HostPath::try_from(text)
}

fn space(root: &HostRoot, at: &str, check: &'static str, floor: u64, wanted: u64) -> Result<Finding, Error> {
    let (free, _) = root.space(&path(at)?)?;
    let gib = |bytes: u64| format!("{}.{} GiB", bytes >> 30, ((bytes % (1 << 30)) * 10) >> 30);
    let found = format!("{} free for {at}", gib(free));
    Ok(if free < floor {
        Finding::missing(check, found, format!("make room: {} at least", gib(floor)))
    } else if free < wanted {
        Finding::warning(check, found, format!("{} and more is usual", gib(wanted)))
    } else {
        Finding::ok(check, found)
    })
}

/// Whether somebody else listens where the daemon would. The host's own view, also from a pod's network.
fn port(root: &HostRoot, installed: bool) -> Finding {
    const LISTEN: &str = "0A";
    let tables = ["proc/1/net/tcp", "proc/1/net/tcp6"].map(|table| root.path().join(table));
    let listens = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok()).any(|text| {
        text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().and_then(|local| local.rsplit(':').next()).unwrap_or_default();
            let state = fields.nth(1);
            u16::from_str_radix(local, 16) == Ok(METRICS_PORT) && state == Some(LISTEN)
        })
    });
    if listens && !installed {
        let advice = "if it is not berthd, give the daemon another [metrics] address";
        Finding::warning("port 9477", "somebody listens there", advice)
    } else {
        Finding::ok("port 9477", if listens { "the daemon listens" } else { "free" })
    }
}

/// A package's unit of the same name would be hidden by ours.
fn unit(root: &HostRoot) -> Result<Finding, Error> {
    for directory in ["/usr/lib/systemd/system", "/lib/systemd/system"] {
        let unit = format!("{directory}/berth.service");
        if root.look(&path(&unit)?)?.is_some() {
            let advice = "a package installed Berth already: remove it first, or stay with it";
            return Ok(Finding::warning("unit", format!("{unit} is there"), advice));
        }
    }
    Ok(Finding::ok("unit", "no other berth.service"))
}

fn containerd(root: &HostRoot) -> Result<Finding, Error> {
    for program in ["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd"] {
        if root.look(&path(program)?)?.is_some() {
            return Ok(Finding::ok("containerd", program));
        }
    }
    let advice = "without it install with --mode node, or with --no-switch";
    Ok(Finding::warning("containerd", "not in its usual places", advice))
}

fn cni(root: &HostRoot) -> Result<Finding, Error> {
    let mut names = root.names(&path("/etc/cni/net.d")?)?;
    names.retain(|name| {
        !name.starts_with('.')
            && [".conflist", ".conf", ".json"].iter().any(|extension| name.ends_with(extension))
    });
    Ok(match names.as_slice() {
        [] => Finding::ok("CNI", "none in /etc/cni/net.d: pods join the built-in network"),
        [one] => Finding::ok("CNI", format!("{one}: pods join that network (network.mode = \"auto\")")),
        [first, ..] => Finding::warning(
            "CNI",
            format!("{} in /etc/cni/net.d", names.join(", ")),
            format!("only the first, {first}, is used: remove those that nobody needs"),
        ),
    })
}

/// Programs of ours that somebody else put there are found first.
fn programs(root: &HostRoot) -> Result<Finding, Error> {
    use crate::node::root::Found;
    for directory in ["/usr/local/bin", "/usr/bin"] {
        let program = format!("{directory}/berthd");
        let ours = |found: &Found| matches!(found, Found::Link(to) if to.starts_with(crate::node::HOME));
        if root.look(&path(&program)?)?.is_some_and(|found| !ours(&found)) {
            let advice = "it stays, and is what a shell finds: remove it, unless both are wanted";
            return Ok(Finding::warning("other copies", format!("{program} is there"), advice));
        }
    }
    Ok(Finding::ok("other copies", "none"))
}
