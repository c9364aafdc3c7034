//! The Container Network Model (CNM) on one host: sandboxes, endpoints, networks, drivers and address management.
//!
//! ```text
//!   Controller ── records first (store, redb) ── then the kernel (worker threads, netlink)
//!       │
//!       ├─ ipam      which address: pools, leases, reuse as late as possible
//!       ├─ driver    how a sandbox is attached: bridge, overlay, macvlan, host, none
//!       ├─ resolver  names of endpoints, a DNS server in each sandbox that has some
//!       ├─ firewall  nftables: static chains, an endpoint is set elements
//!       └─ overlay   networks across hosts: what they tell each other through etcd
//! ```
//!
//! A **sandbox** is one network stack (a network namespace that somebody else made and pinned), an **endpoint** joins a
//! sandbox to a **network**. Everything is crash-only: what is about to be made is recorded first, every step can be redone
//! and undone any number of times, and [`Controller::reconcile`] holds the records against the kernel.
//!
//! The crate executes no program and knows nothing of pods.

pub mod controller;
pub mod definition;
pub mod driver;
pub mod error;
pub mod ipam;
pub mod model;
pub mod overlay;
pub mod resolver;

mod address;
mod conntrack;
mod firewall;
mod link;
mod names;
mod naming;
mod netlink;
mod netns;
mod nft;
mod ports;
mod protocol;
mod store;
mod sysctl;
mod worker;

pub use controller::{
    Audit, Controller, HeldBlock, NetworkStatus, Options, PoolStatus, PoolUse, Reclaimed, Report,
};
pub use definition::NetworkRequest;
pub use error::{Error, Kind, Result};
pub use model::{
    Bandwidth, BridgeOptions, Endpoint, EndpointOptions, Flow, GuestSpec, Network, OverlayOptions,
    PortMapping, Protocol, Sandbox, SandboxSpec, Traffic,
};
pub use resolver::{Directory, NameCounts, Named, NamedPort, Naming};
pub use store::commits;
