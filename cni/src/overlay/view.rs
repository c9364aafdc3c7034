//! What all hosts have said, as this host has heard it: a plain value that events change and that answers where an address is.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{
    allocation::Allocation,
    records::{EndpointRecord, HostRecord, Key, Keys, NetworkRecord},
};

/// A value with the revision it was written at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versioned<T> {
    pub(crate) value: T,
    pub(crate) revision: i64,
    /// What it ends with; 0: it stays.
    pub(crate) lease: i64,
}

/// Where an address of a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) mac: [u8; 6],
    /// The other host's underlay address.
    pub(crate) vtep: IpAddr,
}

/// Host and sandbox of an endpoint.
type Owner = (String, String);

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Everything before this revision has been heard, and of the revision itself at least a part.
    pub(crate) revision: i64,
    /// The last change that was heard, by which etcd's history is known again.
    pub(crate) last: Option<Last>,
    pub(crate) networks: BTreeMap<String, Versioned<NetworkRecord>>,
    pub(crate) allocations: BTreeMap<u32, Versioned<Allocation>>,
    pub(crate) hosts: BTreeMap<String, Versioned<HostRecord>>,
    pub(crate) endpoints: BTreeMap<u32, BTreeMap<Owner, Versioned<EndpointRecord>>>,
}

/// A key with its value, or without one when it was deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) revision: i64,
    pub(crate) lease: i64,
}

/// A change that was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Last {
    pub(crate) key: String,
    pub(crate) revision: i64,
    pub(crate) deleted: bool,
}

/// What a message of a watch says beside its events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// It is the answer to the request.
    pub(crate) created: bool,
    /// Revision of its last event.
    pub(crate) last: Option<i64>,
    /// Revision that etcd is at.
    pub(crate) etcd: i64,
}

/// Where all addresses of a network are that are not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    pub(crate) by_address: BTreeMap<IpAddr, Peer>,
    /// Records that lost against a later one of the same address.
    pub(crate) stale: usize,
}

impl View {
    /// Takes a change in. What can't be read is as if it were not there: a record from a later version must not end this one.
    pub(crate) fn apply(&mut self, keys: &Keys, change: Change<'_>) {
        let Some(key) = keys.parse(change.key) else { return };
        match key {
            Key::Network(name) => put(&mut self.networks, name.to_owned(), change),
            Key::Allocation(vni) => put(&mut self.allocations, vni, change),
            Key::Host(host) => put(&mut self.hosts, host.to_owned(), change),
            Key::Endpoint { vni, host, sandbox } => {
                let endpoints = self.endpoints.entry(vni).or_default();
                put(endpoints, (host.to_owned(), sandbox.to_owned()), change);
                if endpoints.is_empty() {
                    self.endpoints.remove(&vni);
                }
            }
            Key::Vni(_) => {}
        }
    }

    /// Takes in what etcd told, not what this host has written itself.
    pub(crate) fn hear(&mut self, keys: &Keys, change: Change<'_>) {
        self.apply(keys, change);
        if self.last.as_ref().is_none_or(|last| last.revision <= change.revision) {
            let (key, deleted) = (change.key.to_owned(), change.value.is_none());
            self.last = Some(Last { key, revision: change.revision, deleted });
        }
    }

    /// Takes note of how far a watch has come. What was written before etcd's own revision may be still to come: the answer to
    /// the request names it before any event, and to a watcher that catches up events come in parts, each of which names it.
    /// Only a message without events says that there is nothing more ("progress").
    pub(crate) fn heard(&mut self, heard: Heard) {
        let upto = match heard {
            Heard { last: Some(last), .. } => last,
            Heard { created: true, .. } => return,
            Heard { etcd, .. } => etcd,
        };
        self.revision = self.revision.max(upto);
    }

    /// Endpoints of other hosts that are there.
    pub(crate) fn remote<'a>(
        &'a self,
        vni: u32,
        own: &'a str,
    ) -> impl Iterator<Item = (&'a Owner, &'a Versioned<EndpointRecord>, &'a HostRecord)> {
        self.endpoints.get(&vni).into_iter().flatten().filter_map(move |(owner, endpoint)| {
            let host = self.hosts.get(&owner.0).filter(|_| owner.0 != own)?;
            Some((owner, endpoint, &host.value))
        })
    }

    /// Where the addresses of a network are; `local` are those on this host with their epochs. Those of an `encrypted` one are
    /// at the tunnel's addresses, and nowhere without.
    pub(crate) fn peers(&self, vni: u32, own: &str, local: &HashMap<IpAddr, u64>, encrypted: bool) -> Peers {
        let mut best: BTreeMap<IpAddr, ((u64, i64), Peer)> = BTreeMap::new();
        let mut stale = 0;
        for (_, endpoint, host) in self.remote(vni, own) {
            let tunnel = host.tunnel.as_ref().map(|tunnel| IpAddr::from(tunnel.address));
            let Some(vtep) = (if encrypted { tunnel } else { Some(host.address) }) else { continue };
            for record in &endpoint.value.addresses {
                let rank = (record.epoch, endpoint.revision);
                let peer = Peer { mac: endpoint.value.mac, vtep };
                if local.get(&record.address).is_some_and(|epoch| *epoch >= record.epoch) {
                    stale += 1;
                    continue;
                }
                match best.get(&record.address) {
                    Some((other, _)) if *other >= rank => stale += 1,
                    Some(_) => {
                        stale += 1;
                        best.insert(record.address, (rank, peer));
                    }
                    None => {
                        best.insert(record.address, (rank, peer));
                    }
                }
            }
        }
        Peers { by_address: best.into_iter().map(|(address, (_, peer))| (address, peer)).collect(), stale }
    }
}

fn put<K: Ord, V: serde::de::DeserializeOwned>(
    into: &mut BTreeMap<K, Versioned<V>>,
    key: K,
    change: Change<'_>,
) {
    let value = change.value.and_then(|bytes| match serde_json::from_slice(bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(key = change.key, %error, "a record in etcd can't be read; it is left out");
            None
        }
    });
    match value {
        Some(value) => {
            into.insert(key, Versioned { value, revision: change.revision, lease: change.lease });
        }
        None => {
            into.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::overlay::records::{AddressRecord, Names};

    fn host(view: &mut View, id: &str, address: &str, revision: i64) {
        let record =
            HostRecord { name: id.into(), address: address.parse().unwrap(), epoch: revision, tunnel: None };
        let key = format!("/berth/overlay/hosts/{id}");
        change(view, &key, Some(serde_json::to_vec(&record).unwrap()), revision);
    }

    fn endpoint(view: &mut View, host: &str, sandbox: &str, address: &str, epoch: u64, revision: i64) {
        let record = EndpointRecord {
            addresses: vec![AddressRecord { address: address.parse().unwrap(), epoch }],
            mac: [2, 0, 0, 0, 0, u8::try_from(epoch).unwrap()],
            names: Names::default(),
            aliases: Vec::new(),
            known_as: Vec::new(),
            ports: Vec::new(),
        };
        let key = format!("/berth/overlay/endpoints/7/{host}/{sandbox}");
        change(view, &key, Some(serde_json::to_vec(&record).unwrap()), revision);
    }

    fn change(view: &mut View, key: &str, value: Option<Vec<u8>>, revision: i64) {
        view.apply(&Keys::new("/berth"), Change { key, value: value.as_deref(), revision, lease: 0 });
    }

    fn where_is(view: &View, address: &str) -> Option<String> {
        let peers = view.peers(7, "own", &HashMap::new(), false);
        peers.by_address.get(&address.parse::<IpAddr>().unwrap()).map(|peer| peer.vtep.to_string())
    }

    #[test]
    fn the_later_right_to_an_address_wins_in_whatever_order_records_come() {
        let records = [("a", "old", 3, 10), ("b", "new", 8, 11)];
        for order in [[0, 1], [1, 0]] {
            let mut view = View::default();
            host(&mut view, "a", "192.0.2.1", 1);
            host(&mut view, "b", "192.0.2.2", 2);
            // A host that comes back writes its old record again, at a later revision.
            for (at, index) in (10..).zip(order) {
                let (host, sandbox, epoch, _) = records[index];
                endpoint(&mut view, host, sandbox, "10.0.0.5", epoch, at);
            }
            assert_eq!(where_is(&view, "10.0.0.5").unwrap(), "192.0.2.2");
            assert_eq!(view.peers(7, "own", &HashMap::new(), false).stale, 1);
            let local = HashMap::from([("10.0.0.5".parse().unwrap(), 9)]);
            assert!(view.peers(7, "own", &local, false).by_address.is_empty());
            let local = HashMap::from([("10.0.0.5".parse().unwrap(), 4)]);
            assert_eq!(view.peers(7, "own", &local, false).by_address.len(), 1, "lost to another host");
        }
    }

    #[test]
    fn endpoints_of_a_host_that_is_gone_are_nowhere() {
        let mut view = View::default();
        host(&mut view, "a", "192.0.2.1", 1);
        endpoint(&mut view, "a", "pod", "10.0.0.5", 3, 2);
        assert!(where_is(&view, "10.0.0.5").is_some());
        change(&mut view, "/berth/overlay/hosts/a", None, 3);
        assert_eq!(where_is(&view, "10.0.0.5"), None);
        host(&mut view, "a", "192.0.2.9", 4);
        assert_eq!(where_is(&view, "10.0.0.5").unwrap(), "192.0.2.9");
        change(&mut view, "/berth/overlay/endpoints/7/a/pod", None, 5);
        assert!(view.endpoints.is_empty());
    }

    #[test]
    fn a_watch_that_catches_up_has_heard_what_it_has_heard() {
        let mut view = View { revision: 10, ..View::default() };
        let mut after = |created, last| {
            view.heard(Heard { created, last, etcd: 5_000 });
            view.revision
        };
        assert_eq!(after(true, None), 10, "asked, and nothing came yet");
        assert_eq!(after(false, Some(1_010)), 1_010, "a part");
        assert_eq!(after(false, Some(900)), 1_010, "never back");
        assert_eq!(after(false, Some(5_000)), 5_000);
        let mut view = View { revision: 10, ..View::default() };
        view.heard(Heard { created: false, last: None, etcd: 5_000 });
        assert_eq!(view.revision, 5_000, "nothing was written that concerns us");
        // What this host has written itself says nothing of what others wrote before it.
        host(&mut view, "a", "192.0.2.1", 6_000);
        assert_eq!(view.revision, 5_000);
    }

    #[test]
    fn the_last_change_is_remembered_whatever_it_was() {
        let keys = Keys::new("/berth");
        let mut view = View::default();
        let mut heard = |key: &str, value: Option<&[u8]>, revision| {
            view.hear(&keys, Change { key, value, revision, lease: 0 });
            let last = view.last.clone().unwrap();
            (last.key, last.revision, last.deleted)
        };
        // A list comes by its keys, not by their revisions.
        assert_eq!(
            heard("/berth/overlay/hosts/a", Some(b"{}"), 7),
            ("/berth/overlay/hosts/a".into(), 7, false)
        );
        assert_eq!(heard("/berth/overlay/hosts/b", Some(b"{}"), 5).1, 7);
        assert_eq!(heard("/berth/overlay/hosts/b", None, 8), ("/berth/overlay/hosts/b".into(), 8, true));
        // What this host wrote may not be all that happened until then.
        host(&mut view, "c", "192.0.2.1", 9);
        assert_eq!(view.last.unwrap().revision, 8);
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let mut view = View::default();
        change(&mut view, "/berth/overlay/hosts/a", Some(b"{".to_vec()), 3);
        change(&mut view, "/berth/overlay/moon/a", Some(b"{}".to_vec()), 3);
        assert_eq!(view, View::default());
    }
}
