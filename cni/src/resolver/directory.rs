//! Who is called what on which network.
//!
//! Entries belong to owners: a sandbox of this host by its id, and endpoints elsewhere by whatever key their source uses; a key of
//! another source begins with that source's name and a slash, so that sources never touch each other's entries:
//!
//! ```text
//! directory.replace("blue", "etcd/", vec![("etcd/node-2/3f…".to_owned(), Named { names, addresses, ports })]);
//! ```
//!
//! Whoever tells other hosts of this one's endpoints finds them in [`Directory::entries`], and hears of changes by
//! [`Directory::subscribe`].

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::NamedPort;
use crate::model::Protocol;

/// More names of one owner are a mistake.
const MORE_MAX: usize = 256;

/// An endpoint as it is found by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The first is what its addresses lead back to.
    pub names: Vec<String>,
    /// Its addresses on this network.
    pub addresses: Vec<IpAddr>,
    /// Ports that can be asked for.
    pub ports: Vec<NamedPort>,
}

type Owner = Arc<str>;

#[derive(Debug, Default)]
struct Zone {
    entries: HashMap<Owner, Arc<Named>>,
    /// In lower case, and for each owner again.
    names: HashMap<String, Vec<Owner>>,
    listed: HashMap<Owner, Vec<String>>,
    addresses: HashMap<IpAddr, Owner>,
}

impl Zone {
    fn put(&mut self, owner: Owner, entry: Named, more: &[String]) {
        self.remove(&owner);
        let mut listed: Vec<_> =
            entry.names.iter().chain(more).map(|name| name.to_ascii_lowercase()).collect();
        listed.sort_unstable();
        listed.dedup();
        for name in &listed {
            self.names.entry(name.clone()).or_default().push(Arc::clone(&owner));
        }
        self.listed.insert(Arc::clone(&owner), listed);
        for address in &entry.addresses {
            // Of two who claim an address the later one is right: it is reused.
            self.addresses.insert(*address, Arc::clone(&owner));
        }
        self.entries.insert(owner, Arc::new(entry));
    }

    fn remove(&mut self, owner: &str) {
        let Some(entry) = self.entries.remove(owner) else { return };
        for name in self.listed.remove(owner).unwrap_or_default() {
            if let Some(owners) = self.names.get_mut(&name) {
                owners.retain(|other| **other != *owner);
                if owners.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        for address in &entry.addresses {
            if self.addresses.get(address).is_some_and(|holder| **holder == *owner) {
                self.addresses.remove(address);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    zones: HashMap<String, Zone>,
    /// Names that come and go while the owner stays: those of its containers.
    more: HashMap<String, Vec<String>>,
}

/// The names of all networks.
#[derive(Debug, Default)]
pub struct Directory {
    tables: RwLock<Tables>,
    /// Which of several addresses comes first.
    turn: AtomicUsize,
    /// Counts changes.
    version: watch::Sender<u64>,
}

impl Directory {
    /// Tells of changes, for those who tell other hosts. The number means nothing.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Who is on a network, by owner, with all names.
    #[must_use]
    pub fn entries(&self, network: &str) -> Vec<(String, Named)> {
        let tables = self.tables.read();
        let Some(zone) = tables.zones.get(network) else { return Vec::new() };
        let whole = |(owner, entry): (&Owner, &Arc<Named>)| {
            let more = tables.more.get(&**owner).map(Vec::as_slice).unwrap_or_default();
            let names = entry.names.iter().chain(more).cloned().collect();
            (owner.to_string(), Named { names, ..(**entry).clone() })
        };
        zone.entries.iter().map(whole).collect()
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Enters an endpoint, or what is new of it.
    pub fn put(&self, network: &str, owner: &str, entry: Named) {
        let mut tables = self.tables.write();
        let Tables { zones, more } = &mut *tables;
        let more = more.get(owner).map(Vec::as_slice).unwrap_or_default();
        let zone = zones.entry(network.to_owned()).or_default();
        if zone.entries.get(owner).is_none_or(|present| **present != entry) {
            zone.put(owner.into(), entry, more);
            drop(tables);
            self.changed();
        }
    }

    /// Takes an endpoint out.
    pub fn remove(&self, network: &str, owner: &str) {
        let mut tables = self.tables.write();
        if let Some(zone) = tables.zones.get_mut(network) {
            zone.remove(owner);
            if zone.entries.is_empty() {
                tables.zones.remove(network);
            }
        }
        drop(tables);
        self.changed();
    }

    /// Enters what a source knows of a network now, and takes out what it knew before: all owners that begin with `source`.
    pub fn replace(&self, network: &str, source: &str, entries: Vec<(String, Named)>) {
        let mut tables = self.tables.write();
        let Tables { zones, more } = &mut *tables;
        let zone = zones.entry(network.to_owned()).or_default();
        let gone: Vec<Owner> =
            zone.entries.keys().filter(|owner| owner.starts_with(source)).cloned().collect();
        for owner in gone {
            if !entries.iter().any(|(current, _)| **current == *owner) {
                zone.remove(&owner);
            }
        }
        for (owner, entry) in entries {
            if zone.entries.get(owner.as_str()).is_none_or(|present| **present != entry) {
                let more = more.get(&owner).map(Vec::as_slice).unwrap_or_default();
                zone.put(owner.into(), entry, more);
            }
        }
        if zone.entries.is_empty() {
            zones.remove(network);
        }
        drop(tables);
        self.changed();
    }

    /// Takes an owner out of all networks but these.
    pub(crate) fn keep(&self, owner: &str, networks: &[&str]) {
        let mut tables = self.tables.write();
        let mut changed = false;
        for (_, zone) in tables.zones.iter_mut().filter(|(name, _)| !networks.contains(&name.as_str())) {
            changed |= zone.entries.contains_key(owner);
            zone.remove(owner);
        }
        tables.zones.retain(|_, zone| !zone.entries.is_empty());
        drop(tables);
        if changed {
            self.changed();
        }
    }

    /// Gives an owner more names on all its networks, in place of those given before.
    pub(crate) fn name_more(&self, owner: &str, names: &[String]) {
        let names = &names[..names.len().min(MORE_MAX)];
        if self.tables.read().more.get(owner).map(Vec::as_slice).unwrap_or_default() == names {
            return;
        }
        let mut tables = self.tables.write();
        let Tables { zones, more } = &mut *tables;
        for zone in zones.values_mut() {
            if let Some(entry) = zone.entries.get(owner).map(|entry| (**entry).clone()) {
                zone.put(owner.into(), entry, names);
            }
        }
        if names.is_empty() {
            more.remove(owner);
        } else {
            more.insert(owner.to_owned(), names.to_vec());
        }
        drop(tables);
        self.changed();
    }

    /// Who has a name: `NAME` on the first of the networks that knows it, or `NAME.NETWORK`. In turns: who was first is last the
    /// next time.
    pub(crate) fn find(&self, networks: &[String], name: &str) -> Option<Found> {
        let tables = self.tables.read();
        let on = |network: &String, name: &str| {
            let zone = tables.zones.get(network)?;
            let owners = zone.names.get(name)?;
            let entries =
                owners.iter().filter_map(|owner| Some((Arc::clone(owner), zone.entries.get(owner)?.clone())));
            Some(Found { network: network.clone(), entries: entries.collect() })
        };
        let bare = || networks.iter().find_map(|network| on(network, name));
        let qualified = || {
            networks.iter().find_map(|network| {
                let suffix = network.to_ascii_lowercase();
                on(network, name.strip_suffix(&suffix)?.strip_suffix('.')?)
            })
        };
        let mut found = bare().or_else(qualified)?;
        let length = found.entries.len().max(1);
        found.entries.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % length);
        Some(found)
    }

    /// Network and name of an address.
    pub(crate) fn name_of(&self, networks: &[String], address: IpAddr) -> Option<(String, String)> {
        let tables = self.tables.read();
        networks.iter().find_map(|network| {
            let zone = tables.zones.get(network)?;
            let entry = zone.entries.get(zone.addresses.get(&address)?)?;
            Some((network.clone(), entry.names.first()?.clone()))
        })
    }
}

/// Who has a name on a network.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) network: String,
    pub(crate) entries: Vec<(Owner, Arc<Named>)>,
}

impl Found {
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.entries.iter().flat_map(|(_, entry)| entry.addresses.iter().copied())
    }

    /// Those who serve a port, with its number. A number stands for itself where the port is declared.
    pub(crate) fn ports(&self, name: &str, protocol: Protocol) -> Vec<(&Named, u16)> {
        let wanted = |port: &&NamedPort| port.protocol == protocol && port.name.eq_ignore_ascii_case(name);
        let port = |entry: &Named| entry.ports.iter().find(wanted).map(|port| port.port);
        self.entries.iter().filter_map(|(_, entry)| Some((&**entry, port(entry)?))).collect()
    }
}
