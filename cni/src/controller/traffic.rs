//! What sandboxes have sent and received: one list of the host's links serves all of them.
//!
//! The host's side of a pair counts the same packets from the other end, so what it received the sandbox has sent. No
//! namespace is entered. Endpoints without a host's side (`host`, `none`) have no figures.

use std::collections::HashMap;
use std::io;

use super::Controller;
use crate::error::{Error, Result};
use crate::link;

/// Counters of one interface of a sandbox, as the sandbox sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Name in the sandbox.
    pub interface: String,
    /// What came in.
    pub received: Flow,
    /// What went out.
    pub sent: Flow,
}

/// Counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

impl Controller {
    /// Counters of all sandboxes' interfaces, by sandbox id, in the order they were joined.
    ///
    /// # Errors
    /// The store failed or the kernel refuses.
    pub async fn traffic(&self) -> Result<HashMap<String, Vec<Traffic>>> {
        let inner = std::sync::Arc::clone(&self.inner);
        self.workers
            .run("reading interface counters", move |kernel| {
                let sandboxes = inner.store.sandboxes()?;
                let failed = |source: io::Error| Error::kernel("listing interfaces".to_owned())(source);
                let links = link::counters(&mut kernel.route).map_err(failed)?;
                let of = |endpoint: &crate::model::Endpoint| {
                    let (received, sent) = *links.get(endpoint.host_interface.as_deref()?)?;
                    // The ends are swapped.
                    Some(Traffic { interface: endpoint.interface.clone(), received: sent, sent: received })
                };
                let all = sandboxes.into_iter().map(|sandbox| {
                    let interfaces = sandbox.endpoints.iter().filter_map(of).collect();
                    (sandbox.id, interfaces)
                });
                Ok(all.collect())
            })
            .await?
    }
}
