//! The tunnel that encrypted overlays go through: one WireGuard device of the host for all of them.
//!
//! ```text
//!   vxlan (of one network) ── wg-… (fe80::…/64) ── UDP ── underlay
//! ```
//!
//! Its address is link-local, made of the host's id. Two things follow that an address of another kind would not give: packets of
//! an encrypted network's VXLAN device can't take another way when the tunnel is down or gone, and what comes in by another
//! interface is not for it, even with the right VNI. The device's key is in the kernel only: a device that is made anew has
//! another, and the agent tells the others of it. Who may send through it is the agent's matter as well.

use std::io;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::{
    error::{Error, Result},
    link::{
        self,
        wireguard::{self, Wireguard},
    },
    netlink::{Messages, Socket},
    overlay::Underlay,
    sysctl,
};

const KIND: &str = "wireguard";
const NO_DRIVER: Error = Error::NoDriver { kind: KIND, feature: "WireGuard" };

/// Name of the device.
pub(crate) fn name(prefix: &str) -> String {
    format!("wg-{prefix}")
}

fn failed(doing: &str, name: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    Error::kernel(format!("{doing} WireGuard device {name:?}"))
}

/// Refuses on a kernel that can't make such a device.
pub(crate) fn probe(socket: &mut Socket) -> Result<()> {
    match link::has_kind(socket, KIND) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NO_DRIVER),
        Err(error) => Err(Error::kernel("looking for WireGuard")(error)),
    }
}

/// Makes the device, or what is missing of it; returns its index. A device that can't be brought into service is not left.
pub(super) fn ensure(socket: &mut Socket, prefix: &str, underlay: &Underlay) -> Result<u32> {
    let name = name(prefix);
    let found = link::find(socket, &name).map_err(failed("looking up", &name))?;
    if let Some(present) = &found
        && present.kind != KIND
    {
        let reason = format!("an interface of that name exists and is a {:?}", present.kind);
        return Err(Error::invalid("tunnel", &name, reason));
    }
    if found.is_none() {
        match wireguard::create(socket, &name, underlay.tunnel_mtu()) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Err(NO_DRIVER),
            made => made.map_err(failed("creating", &name))?,
        }
    }
    let served = serve(socket, &name, underlay);
    if served.is_err() && found.is_none() {
        let _ = link::delete(socket, &name);
    }
    served
}

fn serve(socket: &mut Socket, name: &str, underlay: &Underlay) -> Result<u32> {
    let port = underlay.tunnel_port;
    let configure = || -> io::Result<()> {
        let mut wireguard = Wireguard::open()?;
        let present = wireguard.device(name)?;
        if present.public_key.is_none() || present.port != port {
            let key = present.public_key.is_none().then(new_key).transpose()?;
            wireguard.configure(name, port, key.as_ref())?;
        }
        Ok(())
    };
    configure().map_err(|error| refused(error, name, port))?;
    // Hosts may have turned IPv6 off for all interfaces; nobody but us is on this one.
    sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    let link = link::find(socket, name).map_err(failed("looking up", name))?;
    let link = link.ok_or_else(|| failed("looking up", name)(Errno::ENODEV.into()))?;
    let address = IpNetwork::new(underlay.tunnel.into(), 64)
        .map_err(|error| Error::invalid("tunnel", underlay.tunnel, error.to_string()))?;
    let mut messages = Messages::new();
    link::add_address(&mut messages, link.index, address);
    link::set_up(&mut messages, link.index);
    let replies = socket.exchange(messages).map_err(failed("configuring", name))?;
    let [addressed, up] = &replies[..] else { return Err(failed("configuring", name)(Errno::EIO.into())) };
    addressed.accept(&[Errno::EEXIST]).map_err(failed("giving its IPv6 address to", name))?;
    // The port is taken when it goes up.
    up.accept(&[]).map_err(|error| refused(error, name, port))?;
    Ok(link.index)
}

fn refused(error: io::Error, name: &str, port: u16) -> Error {
    if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) {
        return Error::TunnelPort { port };
    }
    failed("configuring", name)(error)
}

fn new_key() -> io::Result<wireguard::Key> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    Ok(key)
}
