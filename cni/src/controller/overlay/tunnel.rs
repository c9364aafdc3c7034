//! The tunnel's peers: who of the other hosts may talk through it, and what they are told of this end.

use std::{collections::BTreeMap, net::SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    controller::Inner,
    driver::tunnel,
    error::{Error, Result},
    link::{
        self,
        wireguard::{Key, Peer, Wireguard},
    },
    model::NetworkDriver,
    overlay::{Plane, UnderlayState, records::TunnelRecord},
    worker::Kernel,
};

impl Inner {
    /// Makes the tunnel have the other hosts as peers, and removes it when no encrypted network is left. Returns what the others
    /// have to know of it. Not to be called while a network is being made.
    pub(in crate::controller) fn sync_tunnel(&self, kernel: &mut Kernel) -> Result<Option<TunnelRecord>> {
        let Some(plane) = &self.overlay else { return Ok(None) };
        let name = tunnel::name(&self.prefix);
        let failed = |doing: &str| Error::kernel(format!("{doing} WireGuard device {name:?}"));
        let found = link::find(&mut kernel.route, &name).map_err(failed("looking up"))?;
        if found.is_none_or(|link| link.kind != "wireguard") {
            // It is made with the first network that needs it.
            return Ok(None);
        }
        if !self.is_encrypting() {
            tracing::info!(device = name, "no encrypted network is left: removing the tunnel");
            return link::delete(&mut kernel.route, &name).map_err(failed("deleting")).map(|()| None);
        }
        let UnderlayState::Known(underlay) = plane.underlay.lock().clone() else { return Ok(None) };
        let mut wireguard = Wireguard::open().map_err(failed("asking for"))?;
        let device = wireguard.device(&name).map_err(failed("reading"))?;
        // Nothing is heard of the others yet: who is there from before stays.
        if plane.view.lock().revision != 0 {
            let changed =
                wireguard.align(&name, &device.peers, &peers(plane)).map_err(failed("writing to"))?;
            if changed > 0 {
                tracing::info!(device = name, changed, "the tunnel's peers changed");
            }
        }
        Ok(device.public_key.map(|key| TunnelRecord {
            public_key: STANDARD.encode(key),
            port: device.port,
            address: underlay.tunnel,
        }))
    }

    fn is_encrypting(&self) -> bool {
        let networks = self.networks.read();
        networks.values().any(
            |active| matches!(&active.network.driver, NetworkDriver::Overlay(options) if options.encrypted),
        )
    }

    /// Index of the tunnel's device.
    pub(super) fn tunnel_index(&self, kernel: &mut Kernel) -> Result<u32> {
        let name = tunnel::name(&self.prefix);
        let failed = || Error::kernel(format!("looking up WireGuard device {name:?}"));
        let found = link::find(&mut kernel.route, &name).map_err(failed())?;
        found.map(|link| link.index).ok_or_else(|| failed()(nix::errno::Errno::ENODEV.into()))
    }

    /// Removes the tunnel.
    pub(in crate::controller) fn remove_tunnel(&self, kernel: &mut Kernel) -> Result<()> {
        let name = tunnel::name(&self.prefix);
        let failed = |doing: &str| Error::kernel(format!("{doing} WireGuard device {name:?}"));
        match link::find(&mut kernel.route, &name).map_err(failed("looking up"))? {
            Some(link) if link.kind == "wireguard" => {
                link::delete(&mut kernel.route, &name).map_err(failed("deleting"))
            }
            _ => Ok(()),
        }
    }
}

/// The other hosts' ends, as they told them.
fn peers(plane: &Plane) -> BTreeMap<Key, Peer> {
    let view = plane.view.lock();
    let others = view.hosts.iter().filter(|(host, _)| **host != plane.host);
    let peer = |record: &TunnelRecord, address| {
        let key: Key = STANDARD.decode(&record.public_key).ok()?.try_into().ok()?;
        Some((key, Peer { endpoint: SocketAddr::new(address, record.port), address: record.address }))
    };
    others.filter_map(|(_, host)| peer(host.value.tunnel.as_ref()?, host.value.address)).collect()
}
