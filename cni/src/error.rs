//! What can go wrong, and how a caller should take it.

use std::{io, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;

use crate::protocol::Protocol;

mod etcd;

pub use etcd::EtcdError;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error: what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense, whatever the state.
    InvalidArgument,
    /// The sandbox, network or endpoint is not there.
    NotFound,
    /// It is there already, and differs.
    AlreadyExists,
    /// The state of the host or of the records does not allow it.
    FailedPrecondition,
    /// A pool is full.
    ResourceExhausted,
    /// Somebody who has to be asked is not there now.
    Unavailable,
    /// It took too long; it may still happen.
    DeadlineExceeded,
    /// The kernel or the store refused.
    Internal,
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}

/// An error of a network operation: what was tried, on what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// {what} {value:?} is not valid: {reason}
    #[error("{what} {value:?} is not valid: {reason}")]
    Invalid {
        /// The option or parameter.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why it can't be.
        reason: String,
    },
    /// No such network.
    #[error("network {0:?} does not exist")]
    NetworkNotFound(String),
    /// No such sandbox.
    #[error("network sandbox {0:?} does not exist")]
    SandboxNotFound(String),
    /// A network of that name with other options.
    #[error("network {0:?} exists already with other options")]
    NetworkExists(String),
    /// A network of that name.
    #[error("network {0:?} exists already")]
    NetworkTaken(String),
    /// A sandbox of that id on another namespace.
    #[error("network sandbox {id:?} exists already on {netns}")]
    SandboxExists {
        /// The sandbox.
        id: String,
        /// Where it is.
        netns: PathBuf,
    },
    /// The sandbox joined that network already, with other options.
    #[error("sandbox {sandbox:?} has joined network {network:?} already with other options")]
    EndpointExists {
        /// The sandbox.
        sandbox: String,
        /// The network.
        network: String,
    },
    /// A network with endpoints is not deleted.
    #[error("network {network:?} is in use by {endpoints} endpoints, {first:?} among them")]
    NetworkInUse {
        /// The network.
        network: String,
        /// How many.
        endpoints: usize,
        /// One of the sandboxes.
        first: String,
    },
    /// The namespace can't be entered.
    #[error("entering network namespace {path}: {source}")]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interface name is taken by something that is not ours.
    #[error("interface {interface:?} exists already in {netns}")]
    InterfaceTaken {
        /// The name.
        interface: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// Two pools share addresses.
    #[error("subnet {subnet} of network {network:?} overlaps {other} of network {other_network:?}")]
    PoolOverlap {
        /// The new pool.
        subnet: IpNetwork,
        /// Its network.
        network: String,
        /// The existing pool.
        other: IpNetwork,
        /// Its network.
        other_network: String,
    },
    /// A subnet's gateway is somebody's already.
    #[error("subnet {subnet} can't be used: its gateway {gateway} is that of {holder}; remove that first")]
    GatewayTaken {
        /// The new pool.
        subnet: IpNetwork,
        /// Its gateway.
        gateway: IpAddr,
        /// Who has the address.
        holder: String,
    },
    /// No address left.
    #[error("no free address in {subnet} of network {network:?}: all {size} are leased")]
    PoolExhausted {
        /// The pool.
        subnet: IpNetwork,
        /// Its network.
        network: String,
        /// How many leases it has.
        size: u64,
    },
    /// A static address that another sandbox has.
    #[error("address {address} is leased to sandbox {sandbox:?}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        sandbox: String,
    },
    /// A host port that somebody has.
    #[error("host port {host}:{port}/{protocol} is taken by {holder}")]
    PortTaken {
        /// Protocol.
        protocol: Protocol,
        /// Host address.
        host: IpAddr,
        /// Port.
        port: u16,
        /// Who has it.
        holder: String,
    },
    /// The kernel refused a netlink request.
    #[error("{action}: {source}")]
    Kernel {
        /// What was tried on what.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The record store failed.
    #[error("network records, {action}: {source}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// What the store said.
        source: Box<redb::Error>,
    },
    /// A record can't be read.
    #[error("network record {key:?}: {source}")]
    Record {
        /// Which.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The kernel does not have what the record says.
    #[error("sandbox {sandbox:?} is not attached to network {network:?} as recorded: {reason}")]
    NotAttached {
        /// The sandbox.
        sandbox: String,
        /// The network.
        network: String,
        /// What differs.
        reason: String,
    },
    /// The parent interface is not there.
    #[error("parent interface {0:?} does not exist on this host")]
    ParentMissing(String),
    /// The parent interface has another user that excludes us.
    #[error("parent interface {0:?} is in use in a way that admits no other endpoint")]
    ParentBusy(String),
    /// The kernel was built without it.
    #[error("this kernel has no {feature} (link kind {kind:?}): load its module, or use another driver")]
    NoDriver {
        /// Link kind.
        kind: &'static str,
        /// What it is, for people.
        feature: &'static str,
    },
    /// Overlay networks are kept in etcd, and none is configured.
    #[error(
        "overlay networks span hosts and are kept in etcd: set network.store = \"etcd\" and network.etcd.endpoints"
    )]
    NoControlPlane,
    /// etcd could not be asked for what is needed.
    #[error("{what}: {source}")]
    Etcd {
        /// What was needed.
        what: String,
        /// Why it can't be had.
        source: Box<EtcdError>,
    },
    /// The VNI is another network's.
    #[error("VNI {vni} is network {network:?}'s: name another with --opt vni=, or none to have one chosen")]
    VniTaken {
        /// The identifier.
        vni: u32,
        /// Who has it.
        network: String,
    },
    /// An interface of this host has the VNI.
    #[error("VNI {vni} on UDP port {port} is in use by another interface of this host")]
    VniInUse {
        /// The identifier.
        vni: u32,
        /// VXLAN's port.
        port: u16,
    },
    /// The tunnel's port is somebody else's.
    #[error(
        "UDP port {port}, for WireGuard between hosts, is in use on this host: set network.overlay.wireguard_port"
    )]
    TunnelPort {
        /// The port.
        port: u16,
    },
    /// The network is made, but can't be on this host.
    #[error("network {network:?} can't be on this host: {reason}")]
    NotHere {
        /// The network.
        network: String,
        /// Why not.
        reason: String,
    },
    /// The underlay can't be told.
    #[error("this host has no address for VXLAN ({0}): set network.overlay.address to one of its own")]
    NoUnderlay(String),
    /// The address has to be claimed first.
    #[error("address {address} of network {network:?} is outside of the blocks that this host holds")]
    AddressElsewhere {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
    },
    /// Another host gives the address out.
    #[error(
        "address {address} of network {network:?} is host {host}'s: it is in that host's block, or claimed by it"
    )]
    AddressHeld {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// Who has it.
        host: String,
    },
    /// A host's addresses are its own for as long as it lives.
    #[error(
        "host {host} is alive: its addresses are not taken from it; stop berthd there and wait for its lease to end"
    )]
    HostAlive {
        /// The host's name, or its id.
        host: String,
    },
    /// Nobody of that id has addresses.
    #[error("no host {0:?} has addresses: berth network ipam blocks lists those that have")]
    HostNotFound(String),
    /// No block is left for this host.
    #[error("no block of {subnet} of network {network:?} is left for this host: all {blocks} are given out")]
    NoBlock {
        /// The subnet.
        subnet: IpNetwork,
        /// The network.
        network: String,
        /// How many there are.
        blocks: usize,
    },
    /// Pods of other hosts are on the network.
    #[error(
        "network {network:?} is in use on other hosts: {endpoints} endpoints, one of them on host {host}"
    )]
    NetworkInUseElsewhere {
        /// The network.
        network: String,
        /// How many.
        endpoints: usize,
        /// One of the hosts.
        host: String,
    },
    /// The network is part of the daemon.
    #[error("network {0:?} is built in: it is neither made nor removed")]
    BuiltIn(String),
    /// It took too long.
    #[error("{0} took too long; it may still be under way")]
    Deadline(&'static str),
    /// The worker threads are gone.
    #[error("network workers have ended while {0}")]
    Stopped(&'static str),
}

/// No space, no inodes, no quota.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Error {
    /// How the caller should take it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::NetworkNotFound(_) | Self::SandboxNotFound(_) | Self::HostNotFound(_) => Kind::NotFound,
            Self::NetworkExists(_)
            | Self::NetworkTaken(_)
            | Self::SandboxExists { .. }
            | Self::EndpointExists { .. } => Kind::AlreadyExists,
            Self::NetworkInUse { .. }
            | Self::Netns { .. }
            | Self::InterfaceTaken { .. }
            | Self::PoolOverlap { .. }
            | Self::AddressTaken { .. }
            | Self::GatewayTaken { .. }
            | Self::PortTaken { .. }
            | Self::NotAttached { .. }
            | Self::ParentMissing(_)
            | Self::ParentBusy(_)
            | Self::NoDriver { .. }
            | Self::NoControlPlane
            | Self::VniTaken { .. }
            | Self::VniInUse { .. }
            | Self::TunnelPort { .. }
            | Self::NotHere { .. }
            | Self::NoUnderlay(_)
            | Self::AddressElsewhere { .. }
            | Self::AddressHeld { .. }
            | Self::HostAlive { .. }
            | Self::NetworkInUseElsewhere { .. }
            | Self::BuiltIn(_) => Kind::FailedPrecondition,
            Self::PoolExhausted { .. } | Self::NoBlock { .. } => Kind::ResourceExhausted,
            Self::Etcd { .. } => Kind::Unavailable,
            Self::Deadline(_) => Kind::DeadlineExceeded,
            Self::File { source, .. } if is_exhausted(source) => Kind::ResourceExhausted,
            Self::Store { source, .. } if matches!(&**source, redb::Error::Io(error) if is_exhausted(error)) => {
                Kind::ResourceExhausted
            }
            Self::Kernel { .. }
            | Self::File { .. }
            | Self::Store { .. }
            | Self::Record { .. }
            | Self::Stopped(_) => Kind::Internal,
        }
    }

    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }

    pub(crate) fn etcd(what: impl Into<String>) -> impl FnOnce(EtcdError) -> Self {
        let what = what.into();
        move |source| Self::Etcd { what, source: Box::new(source) }
    }

    pub(crate) fn invalid(what: &'static str, value: impl ToString, reason: impl Into<String>) -> Self {
        Self::Invalid { what, value: value.to_string(), reason: reason.into() }
    }
}
