//! What hosts have to agree on, as transactions in etcd: each compares what it was decided on, and is tried again when somebody
//! was faster.

use std::{collections::HashSet, net::IpAddr};

use super::block_of;
use crate::{
    address::overlap,
    error::{Error, Result},
    ipam::Block,
    model::{OverlayOptions, SubnetOptions},
    overlay::{
        EtcdError, Plane,
        allocation::{Allocation, block_prefix},
        etcd::{self, Etcd},
        records::{Key, NetworkRecord},
        view::{Change, Versioned},
    },
    store::{decode, encode},
};

/// VNIs that are chosen begin here, as Docker's do: what fits into a VLAN's id is left to people.
const FIRST_VNI: u32 = 4_097;
/// A transaction that others were faster than is tried so often.
const ATTEMPTS: usize = 16;

/// Writes a network's record, with a VNI; returns it and the revision.
pub(super) async fn define(plane: &Plane, record: NetworkRecord) -> Result<(NetworkRecord, i64)> {
    Box::pin(write(plane, record, Allocation::new)).await
}

/// Writes the record of a network that etcd has lost, of which this host has rights; the revision.
pub(in crate::controller) async fn redefine(
    plane: &Plane,
    record: NetworkRecord,
    rights: &[Block],
) -> Result<i64> {
    let written = write(plane, record, |revision| Allocation::found_again(revision, rights));
    Box::pin(written).await.map(|(_, revision)| revision)
}

async fn write(
    plane: &Plane,
    mut record: NetworkRecord,
    allocation: impl Fn(i64) -> Allocation,
) -> Result<(NetworkRecord, i64)> {
    let what = || format!("making network {:?}", record.name);
    let (what, chosen) = (what(), record.vni);
    let etcd = plane.session_soon().await.map_err(Error::etcd(&what))?.etcd;
    let keys = &plane.keys;
    for _ in 0..ATTEMPTS {
        let mut others: Vec<NetworkRecord> = Vec::new();
        let prefix = keys.networks();
        let listed = etcd.list(&prefix, |change| {
            let value = change.value.and_then(|bytes| serde_json::from_slice(bytes).ok());
            others.extend(value);
        });
        let revision = listed.await.map_err(Error::etcd(&what))?;
        record.vni = check(&record, chosen, &others)?;
        let vni = record.vni;
        let (name_key, vni_key) = (keys.network(&record.name), keys.vni(vni));
        let (value, allocation) = (encode(&name_key, &record)?, encode(&name_key, &allocation(revision))?);
        let compares = vec![
            etcd::absent(&name_key),
            etcd::absent(&vni_key),
            // No network was made since: neither its subnet nor its VNI was looked at.
            etcd::none_since(&keys.networks(), revision),
        ];
        let writes = vec![
            etcd::put(&name_key, value.clone()),
            etcd::put(&vni_key, record.name.clone().into_bytes()),
            etcd::put(&keys.allocation(vni), allocation),
        ];
        let answer = etcd.commit(&what, compares, writes).await.map_err(Error::etcd(&what))?;
        if answer.succeeded() {
            let revision = answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
            return Ok((record, revision));
        }
    }
    Err(Error::etcd(&what)(EtcdError::Contended { action: "writing its record".to_owned() }))
}

/// Holds a new network against those there are; returns its VNI.
fn check(record: &NetworkRecord, chosen: u32, others: &[NetworkRecord]) -> Result<u32> {
    if others.iter().any(|other| other.name == record.name) {
        return Err(Error::NetworkTaken(record.name.clone()));
    }
    for other in others {
        for (ours, theirs) in
            record.subnets.iter().flat_map(|ours| other.subnets.iter().map(move |t| (ours, t)))
        {
            if overlap(ours.subnet, theirs.subnet) {
                return Err(Error::PoolOverlap {
                    subnet: ours.subnet,
                    network: record.name.clone(),
                    other: theirs.subnet,
                    other_network: other.name.clone(),
                });
            }
        }
    }
    let taken: HashSet<u32> = others.iter().map(|other| other.vni).collect();
    if chosen == 0 {
        return Ok((FIRST_VNI..).find(|vni| !taken.contains(vni)).unwrap_or(FIRST_VNI));
    }
    match others.iter().find(|other| other.vni == chosen) {
        Some(other) => Err(Error::VniTaken { vni: chosen, network: other.name.clone() }),
        None => Ok(chosen),
    }
}

/// Deletes a network's records, unless somebody is on it.
pub(super) async fn undefine(plane: &Plane, name: &str, vni: u32) -> Result<()> {
    let what = format!("removing network {name:?}");
    let session = plane.session_soon().await.map_err(Error::etcd(&what))?;
    let keys = &plane.keys;
    let compares = vec![
        etcd::absent(&keys.endpoints(vni)).with_prefix(),
        // A network of the same name that was made since has another VNI.
        etcd::is(&keys.vni(vni), name),
    ];
    let writes = vec![
        etcd::delete(&keys.network(name)),
        etcd::delete(&keys.vni(vni)),
        etcd::delete(&keys.allocation(vni)),
    ];
    let answer = session.etcd.commit(&what, compares, writes).await.map_err(Error::etcd(&what))?;
    if answer.succeeded() {
        plane.created.lock().remove(name);
        let revision = answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        let mut view = plane.view.lock();
        for key in [keys.network(name), keys.allocation(vni)] {
            view.apply(keys, Change { key: &key, value: None, revision, lease: 0 });
        }
        return Ok(());
    }
    let (mut endpoints, mut holder) = (0, String::new());
    let prefix = keys.endpoints(vni);
    let listed = session.etcd.list(&prefix, |change| {
        endpoints += 1;
        if let Some(Key::Endpoint { host, .. }) = keys.parse(change.key) {
            host.clone_into(&mut holder);
        }
    });
    listed.await.map_err(Error::etcd(&what))?;
    if endpoints == 0 {
        // It was removed already.
        return Ok(());
    }
    let view = plane.view.lock();
    let host = view.hosts.get(&holder).map_or(holder, |record| record.value.name.clone());
    Err(Error::NetworkInUseElsewhere { network: name.to_owned(), endpoints, host })
}

/// The ids of the hosts whose leases live.
async fn alive(plane: &Plane, etcd: &Etcd) -> Result<HashSet<String>, EtcdError> {
    let mut alive = HashSet::new();
    let prefix = format!("{}hosts/", plane.keys.all());
    etcd.list(&prefix, |change| {
        if let Some(Key::Host(host)) = plane.keys.parse(change.key) {
            alive.insert(host.to_owned());
        }
    })
    .await?;
    Ok(alive)
}

/// Changes a network's allocation; `change` may be called again with a newer one, and `None` leaves all as it is. Only hosts that are
/// gone lose something by it.
async fn change<T>(
    plane: &Plane,
    what: &str,
    network: (&str, u32),
    change: impl FnMut(&mut Allocation, &HashSet<String>) -> Result<Option<T>>,
) -> Result<Option<T>> {
    // Boxed, as it is part of every join.
    Box::pin(change_for(plane, what, network, true, change)).await
}

/// The same, where those that live may lose as well unless they are `spared`.
async fn change_for<T>(
    plane: &Plane,
    what: &str,
    (network, vni): (&str, u32),
    spared: bool,
    mut change: impl FnMut(&mut Allocation, &HashSet<String>) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let etcd = plane.session_soon().await.map_err(Error::etcd(what))?.etcd;
    let key = plane.keys.allocation(vni);
    for _ in 0..ATTEMPTS {
        let alive = alive(plane, &etcd).await.map_err(Error::etcd(what))?;
        let (found, _) = etcd.get(&key).await.map_err(Error::etcd(what))?;
        let found = found.ok_or_else(|| Error::NetworkNotFound(network.to_owned()))?;
        let mut allocation: Allocation = decode(&key, &found.value)?;
        let before = allocation.clone();
        let Some(result) = change(&mut allocation, &alive)? else { return Ok(None) };
        let mut compares = vec![etcd::unchanged(&key, found.revision)];
        if spared {
            // Who lost something must be gone still when it is lost.
            let losers = losers(&before, &allocation, &plane.host);
            compares.extend(losers.map(|host| etcd::absent(&plane.keys.host(&host))));
        }
        let value = encode(&key, &allocation)?;
        let writes = vec![etcd::put(&key, value)];
        let answer = etcd.commit(what, compares, writes).await.map_err(Error::etcd(what))?;
        if answer.succeeded() {
            let revision = answer.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
            let mut view = plane.view.lock();
            let newer = view.allocations.get(&vni).is_none_or(|known| known.revision < revision);
            if newer {
                view.allocations.insert(vni, Versioned { value: allocation, revision, lease: 0 });
            }
            return Ok(Some(result));
        }
    }
    Err(Error::etcd(what)(EtcdError::Contended { action: "changing its allocation".to_owned() }))
}

/// Other hosts that have less than before.
fn losers(before: &Allocation, after: &Allocation, own: &str) -> impl Iterator<Item = String> {
    let blocks = before.blocks.iter().filter(|(block, holder)| after.blocks.get(*block) != Some(*holder));
    let claims = before.claims.iter().filter(|(claim, holder)| after.claims.get(*claim) != Some(*holder));
    let fresh = after.claims.iter().filter(|(claim, _)| !before.claims.contains_key(*claim));
    let around = fresh.filter_map(|(claim, _)| before.block_of(*claim).map(|(_, holder)| holder));
    let all = blocks.map(|(_, holder)| holder).chain(claims.map(|(_, holder)| holder)).chain(around);
    let hosts: HashSet<String> = all.map(|holder| holder.host.clone()).filter(|host| host != own).collect();
    hosts.into_iter()
}

pub(super) async fn grant(
    plane: &Plane,
    network: &str,
    options: &OverlayOptions,
    subnet: &SubnetOptions,
) -> Result<Block> {
    let what = format!("asking for a block of {} of network {network:?}", subnet.subnet);
    let prefix = block_prefix(subnet.subnet, options.block);
    let granted = change(plane, &what, (network, options.vni), |allocation, alive| {
        let granted = allocation.grant(subnet, prefix, &plane.host, |host| alive.contains(host));
        let none = || Error::NoBlock {
            subnet: subnet.subnet,
            network: network.to_owned(),
            blocks: allocation.blocks.len(),
        };
        granted.map(Some).ok_or_else(none)
    });
    let Some((block, epoch)) = granted.await? else {
        return Err(Error::NetworkNotFound(network.to_owned()));
    };
    tracing::info!(network, %block, epoch, "block of addresses granted");
    Ok(block_of(block, epoch))
}

pub(super) async fn claim(plane: &Plane, network: &str, vni: u32, address: IpAddr) -> Result<u64> {
    let what = format!("claiming {address} of network {network:?}");
    let claimed = change(plane, &what, (network, vni), |allocation, alive| {
        let claimed = allocation.claim(address, &plane.host, |host| alive.contains(host));
        claimed.map(Some).map_err(|holder| {
            let view = plane.view.lock();
            let host = view.hosts.get(&holder.host).map_or(holder.host, |record| record.value.name.clone());
            Error::AddressHeld { address, network: network.to_owned(), host }
        })
    });
    claimed.await?.ok_or_else(|| Error::NetworkNotFound(network.to_owned()))
}

/// Gives a claim back in etcd.
pub(in crate::controller) async fn unclaim(
    plane: &Plane,
    network: &str,
    vni: u32,
    address: IpAddr,
) -> Result<()> {
    let what = format!("giving {address} of network {network:?} back");
    let changed = change(plane, &what, (network, vni), |allocation, _| {
        Ok(allocation.release_claim(address, &plane.host).then_some(()))
    });
    match changed.await {
        Ok(_) | Err(Error::NetworkNotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts back rights of this host that etcd has lost; how many. Who got the same addresses since, by an earlier right, loses them.
pub(in crate::controller) async fn restore(
    plane: &Plane,
    network: &str,
    vni: u32,
    rights: &[Block],
) -> Result<usize> {
    let what = format!("putting this host's addresses of network {network:?} back");
    let restored = change_for(plane, &what, (network, vni), false, |allocation, _| {
        let restored = allocation.restore(&plane.host, rights);
        Ok((restored > 0).then_some(restored))
    });
    match Box::pin(restored).await {
        Ok(restored) => Ok(restored.unwrap_or_default()),
        Err(Error::NetworkNotFound(_)) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Takes a host's blocks and claims of a network from it; how many. `None`: it had none. Refused while its lease lives, which the
/// transaction holds against as well.
pub(super) async fn reclaim(
    plane: &Plane,
    network: &str,
    vni: u32,
    host: &str,
) -> Result<Option<(usize, usize)>> {
    let what = format!("reclaiming the addresses of host {host} on network {network:?}");
    change(plane, &what, (network, vni), |allocation, alive| {
        if alive.contains(host) {
            let view = plane.view.lock();
            let name = view.hosts.get(host).map(|record| record.value.name.clone());
            return Err(Error::HostAlive { host: name.unwrap_or_else(|| host.to_owned()) });
        }
        let freed = allocation.forget(host);
        Ok((freed != (0, 0)).then_some(freed))
    })
    .await
}
