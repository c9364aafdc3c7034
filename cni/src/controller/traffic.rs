//! What sandboxes have sent and received: one list of the host's links serves all of them.
//!
//! The host's side of a pair counts the same packets from the other end, so what it received the sandbox has sent: no
//! namespace is entered. Only a sandbox with interfaces that don't show there (macvlan, ipvlan, those of CNI plugins) is
//! looked into. On the host's stack there are no figures of one's own.

use std::collections::HashMap;
use std::io;

use super::Controller;
use crate::driver::limits::intermediate_name;
use crate::error::{Error, Result};
use crate::link;
use crate::model::{Endpoint, Sandbox, Traffic};
use crate::netlink::Socket;
use crate::netns;

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
                let of = |endpoint: &Endpoint| {
                    let (received, sent) = *links.get(endpoint.host_interface.as_deref()?)?;
                    // The ends are swapped.
                    Some(Traffic { interface: endpoint.interface.clone(), received: sent, sent: received })
                };
                let all = sandboxes.into_iter().map(|sandbox| {
                    let interfaces = if shows(&sandbox) {
                        sandbox.endpoints.iter().filter_map(of).collect()
                    } else {
                        // One that is just going has none.
                        inside(&sandbox).unwrap_or_default()
                    };
                    (sandbox.id, interfaces)
                });
                Ok(all.collect())
            })
            .await?
    }
}

/// Whether all that a sandbox has shows among the host's links.
fn shows(sandbox: &Sandbox) -> bool {
    !sandbox.endpoints.is_empty() && sandbox.endpoints.iter().all(|endpoint| endpoint.host_interface.is_some())
        // On the host's own stack nothing is the sandbox's.
        || sandbox.endpoints.iter().any(|endpoint| endpoint.interface.is_empty())
}

/// Counters as the sandbox itself has them, without loopback and what limits are set on.
fn inside(sandbox: &Sandbox) -> Result<Vec<Traffic>> {
    let netns = netns::open(&sandbox.netns)?;
    let limited = sandbox.endpoints.iter().filter(|endpoint| endpoint.bandwidth.ingress.is_some());
    let ours: Vec<_> = limited.map(|endpoint| intermediate_name(&endpoint.interface)).collect();
    let links = netns::within(&sandbox.netns, &netns, || {
        let list = || link::counters(&mut Socket::route()?);
        list().map_err(Error::kernel(format!("listing interfaces of {}", sandbox.netns.display())))
    })?;
    let mut all: Vec<_> = links
        .into_iter()
        .filter(|(name, _)| name != "lo" && !ours.contains(name))
        .map(|(interface, (received, sent))| Traffic { interface, received, sent })
        .collect();
    all.sort_by(|one, other| one.interface.cmp(&other.interface));
    Ok(all)
}
