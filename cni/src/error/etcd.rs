//! What can go wrong between this host and etcd.

use std::{io, path::PathBuf, time::Duration};

/// Why etcd could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// There is no connection.
    #[error("etcd at {endpoints} is not reached: {reason}")]
    Unreachable {
        /// All servers that were tried.
        endpoints: String,
        /// What is wrong.
        reason: String,
    },
    /// No answer in time.
    #[error("{action}: etcd at {endpoints} did not answer within {limit:?}")]
    TimedOut {
        /// What was asked.
        action: String,
        /// All servers that were tried.
        endpoints: String,
        /// `network.etcd.timeout`.
        limit: Duration,
    },
    /// An answer that says no.
    #[error("{action}: etcd at {endpoints}: {source}")]
    Refused {
        /// What was asked.
        action: String,
        /// All servers that were tried.
        endpoints: String,
        /// The client's error.
        source: Box<etcd_client::Error>,
    },
    /// A certificate or key can't be read.
    #[error("reading {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others changed the same value again and again.
    #[error("{action}: other hosts changed it meanwhile, again and again; try later")]
    Contended {
        /// What was tried.
        action: String,
    },
    /// Two hosts with one identity.
    #[error(
        "host {host} is registered with address {other}, not {ours}: was this host's root directory copied? (It is taken over when that registration ends)"
    )]
    HostTaken {
        /// The host's id.
        host: String,
        /// Who has it.
        other: std::net::IpAddr,
        /// This host.
        ours: std::net::IpAddr,
    },
}
