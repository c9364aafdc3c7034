//! Berth: a Kubernetes-compatible CRI runtime service.

pub mod api;
pub mod apparmor;
pub mod cdi;
pub mod cgroup;
pub mod cni;
pub mod config;
pub mod container;
pub mod cri;
pub mod error;
pub mod events;
pub mod id;
pub mod image;
pub mod meter;
pub mod node;
pub mod nri;
pub mod pod;
pub mod proto;
pub mod recovery;
pub mod server;
pub mod shim;
pub mod stats;
pub mod store;
pub mod streaming;
pub mod sys;
pub mod telemetry;
pub mod volume;
