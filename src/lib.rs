//! Berth: a Kubernetes-compatible CRI runtime service.

pub mod proto;
