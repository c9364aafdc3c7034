//! What the daemon itself knows of its node.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth::node::check::Finding;
use berth::proto::berth::v1::{
    AddressPool, Hang, HealthRequest, HealthResponse, LeftoversRequest, LeftoversResponse, ListPoolsRequest,
    Work,
};
use berth::proto::runtime::v1::{
    CgroupDriver, RuntimeCondition, RuntimeConfigRequest, StatusRequest, VersionRequest,
};
use tonic::{Response, Status};

use crate::client::Client;

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looking for leftovers waits until no network is being changed.
const LONG: Duration = Duration::from_secs(60);
/// A step that takes longer is worth a look.
const SLOW: u64 = 60_000;
/// Leases of a hundred addresses from which on a pool is nearly full.
const NEARLY: u128 = 90;
/// Things of one kind that are named.
const NAMED: usize = 5;

const DAEMON: &str = "daemon";
const VERSIONS: &str = "versions";

/// Findings, and the daemon's cgroup driver.
pub(super) async fn all(client: &mut Client) -> (Vec<Finding>, Option<&'static str>) {
    let mut findings = Vec::new();
    let version = ask(client.runtime.version(VersionRequest { version: String::new() }), PATIENCE).await;
    let (name, version) = match version {
        Ok(version) => (version.runtime_name, version.runtime_version),
        Err(why) => return (vec![silent(&why)], None),
    };
    findings.push(Finding::ok(DAEMON, format!("{name} {version} answers")));
    match ask(client.runtime.status(StatusRequest { verbose: false }), PATIENCE).await {
        Ok(status) => findings.extend(status.status.unwrap_or_default().conditions.iter().map(condition)),
        Err(why) => findings.push(silent(&why)),
    }
    let config = ask(client.runtime.runtime_config(RuntimeConfigRequest {}), PATIENCE).await;
    let driver = config.ok().and_then(|config| config.linux).map(|linux| match linux.cgroup_driver() {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    });
    if name != "berth" {
        findings.push(Finding::warning(
            DAEMON,
            format!("it is {name}"),
            "name berthd's socket with --address",
        ));
        return (findings, driver);
    }
    match ask(client.debug.health(HealthRequest {}), PATIENCE).await {
        Ok(health) => findings.extend(progress(&health)),
        Err(why) => findings.push(silent(&why)),
    }
    match ask(client.networks.list_pools(ListPoolsRequest {}), PATIENCE).await {
        Ok(pools) => findings.push(addresses(&pools.pools)),
        Err(why) => findings.push(silent(&why)),
    }
    match ask(client.debug.leftovers(LeftoversRequest {}), LONG).await {
        Ok(left) => {
            findings.push(firewall(&left));
            findings.push(leftovers(&left));
            findings.push(versions(&version, &left).await);
        }
        Err(why) => findings.push(silent(&why)),
    }
    (findings, driver)
}

async fn ask<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
    patience: Duration,
) -> Result<T, String> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
    }
}

fn silent(why: &str) -> Finding {
    let advice = "journalctl -u berth; if it says nothing: `berth debug health`, then systemctl restart berth (containers go on)";
    Finding::wrong(DAEMON, why, advice)
}

fn condition(condition: &RuntimeCondition) -> Finding {
    let check = if condition.r#type == "NetworkReady" { "network" } else { "runtime" };
    if condition.status {
        Finding::ok(check, "ready")
    } else {
        let found = format!("not ready: {} {}", condition.reason, condition.message);
        Finding::wrong(
            check,
            found.trim(),
            "no pod starts until that is put right; `berth info` shows it as well",
        )
    }
}

fn at(work: &Work) -> String {
    format!("{} at {} of {} for {} s", work.operation, work.stage, work.object, work.milliseconds / 1000)
}

fn progress(health: &HealthResponse) -> Vec<Finding> {
    const CHECK: &str = "progress";
    let hang = |hang: &Hang| {
        let place = hang.work.as_ref().map(|work| format!(", in {}", at(work))).unwrap_or_default();
        let found = format!("{} stands still for {} s{place}", hang.part, hang.milliseconds / 1000);
        Finding::wrong(
            CHECK,
            found,
            "a disk or the kernel does not answer: dmesg; systemd restarts the daemon by itself",
        )
    };
    if !health.hangs.is_empty() {
        return health.hangs.iter().map(hang).collect();
    }
    let slow: Vec<String> =
        health.under_way.iter().filter(|work| work.milliseconds > SLOW).take(NAMED).map(at).collect();
    if slow.is_empty() {
        vec![Finding::ok(CHECK, format!("{} operations under way", health.under_way.len()))]
    } else {
        let advice =
            "other pods are not held up by it; look at what it works on: a registry, a mount, a hung process";
        vec![Finding::warning(CHECK, slow.join("; "), advice)]
    }
}

fn addresses(pools: &[AddressPool]) -> Finding {
    const CHECK: &str = "addresses";
    let name = |(pool, size, leased): &(&AddressPool, u128, u128)| {
        format!("{leased} of {size} of {} ({})", pool.network, pool.subnet)
    };
    let known: Vec<_> = pools
        .iter()
        .map(|pool| (pool, size(pool), pool.leases.len() as u128))
        .filter(|(_, size, _)| *size > 0)
        .collect();
    let full: Vec<String> = known.iter().filter(|(_, size, leased)| leased >= size).map(name).collect();
    let nearly: Vec<String> =
        known.iter().filter(|(_, size, leased)| leased * 100 >= size * NEARLY).map(name).collect();
    if !full.is_empty() {
        let advice = "no pod can join there: `berth network ipam ls -a` says who has them, `ipam gc` frees those that nobody \
                      owns; else give the network another subnet";
        Finding::wrong(CHECK, full.join("; "), advice)
    } else if !nearly.is_empty() {
        Finding::warning(
            CHECK,
            nearly.join("; "),
            "`berth network ipam ls -a` says who has them; plan for a larger subnet",
        )
    } else {
        Finding::ok(CHECK, format!("{} pools, none of them nearly full", pools.len()))
    }
}

/// Addresses that a pool gives out by itself: its range without the gateway and what a subnet keeps for itself. Of IPv6 there is
/// no end.
fn size(pool: &AddressPool) -> u128 {
    let (Ok(IpAddr::V4(first)), Ok(IpAddr::V4(last))) = (pool.first.parse(), pool.last.parse()) else {
        return 0;
    };
    let subnet: Option<ipnetwork::Ipv4Network> = pool.subnet.parse().ok();
    let mut withheld: Vec<std::net::Ipv4Addr> = pool.gateway.parse().into_iter().collect();
    withheld.extend(subnet.into_iter().flat_map(|subnet| [subnet.network(), subnet.broadcast()]));
    withheld.sort_unstable();
    withheld.dedup();
    let withheld = withheld.iter().filter(|address| (first..=last).contains(*address)).count();
    let all = u128::from(u32::from(last)).saturating_sub(u128::from(u32::from(first))) + 1;
    all.saturating_sub(withheld as u128)
}

fn firewall(left: &LeftoversResponse) -> Finding {
    const CHECK: &str = "firewall";
    let table = &left.table;
    let advice = "somebody flushes rules that are not his: look for `nft flush ruleset` and firewall services; the daemon restores \
                  its own within a minute";
    if left.table_missing {
        Finding::wrong(CHECK, format!("the nftables table {table} is gone"), advice)
    } else if left.missing_elements + left.surplus_elements > 0 {
        let found = format!(
            "table {table} lacks {} elements and has {} too many",
            left.missing_elements, left.surplus_elements
        );
        Finding::wrong(CHECK, found, advice)
    } else {
        Finding::ok(CHECK, format!("table {table} is as recorded"))
    }
}

fn leftovers(left: &LeftoversResponse) -> Finding {
    const CHECK: &str = "leftovers";
    if left.leftovers.is_empty() {
        return Finding::ok(CHECK, "none");
    }
    let mut names: Vec<String> =
        left.leftovers.iter().take(NAMED).map(|one| format!("{} {}", one.kind, one.what)).collect();
    if left.leftovers.len() > NAMED {
        names.push(format!("and {} more (`berth debug leftovers`)", left.leftovers.len() - NAMED));
    }
    let advice = "systemctl restart berth removes them (containers go on), `berth network ipam gc` those of networks; remove what \
                  is left then by hand, it belongs to no pod";
    Finding::wrong(CHECK, names.join("; "), advice)
}

/// Client, daemon and shim are of one version, but for shims that were there before an upgrade.
async fn versions(daemon: &str, left: &LeftoversResponse) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let shim = shim_version(Path::new(&left.shim_program)).await;
    let versions =
        format!("berth {own}, berthd {daemon}, berth-shim {}", shim.as_deref().unwrap_or("unknown"));
    let differ = daemon != own || shim.as_deref().is_some_and(|shim| shim != daemon);
    let former = match left.former_shims {
        0 => String::new(),
        some => {
            format!("; {some} of {} shims run an earlier program, until their containers end", left.shims)
        }
    };
    let found = format!("{versions}{former}");
    if differ {
        let advice = "the programs of one installation belong together: install all of one version, then systemctl restart berth";
        Finding::warning(VERSIONS, found, advice)
    } else {
        Finding::ok(VERSIONS, found)
    }
}

/// The last word of the first line that the program prints.
async fn shim_version(program: &Path) -> Option<String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next()?.split_whitespace().last().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth::node::check::Level;
    use berth::proto::berth::v1::{Lease, Leftover};

    use super::*;

    fn pool(leases: usize) -> AddressPool {
        AddressPool {
            network: "bridge".into(),
            subnet: "10.85.0.0/28".into(),
            first: "10.85.0.1".into(),
            last: "10.85.0.14".into(),
            gateway: "10.85.0.1".into(),
            leases: vec![Lease::default(); leases],
        }
    }

    #[test]
    fn full_pools_are_wrong() {
        assert_eq!(size(&pool(0)), 13);
        assert_eq!(addresses(&[pool(3)]).level, Level::Ok);
        assert_eq!(addresses(&[pool(12)]).level, Level::Warning);
        let full = addresses(&[pool(1), pool(13)]);
        assert_eq!(full.level, Level::Wrong);
        assert!(full.found.contains("13 of 13 of bridge"), "{full:?}");
    }

    #[test]
    fn rules_and_leftovers_are_judged() {
        let mut left = LeftoversResponse { table: "berth".into(), ..Default::default() };
        assert_eq!((firewall(&left).level, leftovers(&left).level), (Level::Ok, Level::Ok));
        left.missing_elements = 1;
        assert_eq!(firewall(&left).level, Level::Wrong);
        left.table_missing = true;
        assert!(firewall(&left).found.contains("gone"));
        left.leftovers = vec![Leftover { kind: "cgroup".into(), what: "/berth/x".into() }; 7];
        let found = leftovers(&left).found;
        assert!(found.contains("cgroup /berth/x") && found.contains("and 2 more"), "{found}");
    }

    #[test]
    fn a_hang_names_its_stage() {
        let work = Work {
            kind: "write".into(),
            operation: "write_record".into(),
            stage: "pods".into(),
            object: "/x".into(),
            milliseconds: 31_000,
        };
        let hang = Hang { part: "store".into(), milliseconds: 31_000, work: Some(work.clone()) };
        let findings = progress(&HealthResponse { hangs: vec![hang], ..Default::default() });
        assert_eq!(findings[0].found, "store stands still for 31 s, in write_record at pods of /x for 31 s");
        let slow = Work { milliseconds: 61_000, ..work };
        assert_eq!(
            progress(&HealthResponse { under_way: vec![slow], ..Default::default() })[0].level,
            Level::Warning
        );
    }

    #[tokio::test]
    async fn a_program_says_its_version() {
        assert_eq!(shim_version(Path::new("/nonexistent")).await, None);
    }
}
