//! Whether an endpoint is in the kernel what its record says.

use super::Inner;
use crate::{
    error::{Error, Result},
    link,
    model::{Endpoint, Sandbox},
    netlink::Socket,
    netns,
    worker::Kernel,
};

impl Inner {
    /// Returns the endpoint as recorded when the kernel agrees: the interface with its MAC and addresses, and the host's side.
    pub(super) fn verify(&self, kernel: &mut Kernel, id: &str, network: &str) -> Result<Endpoint> {
        let sandbox = self.store.sandbox(id)?.ok_or_else(|| Error::SandboxNotFound(id.to_owned()))?;
        let endpoint = sandbox.endpoints.iter().find(|endpoint| endpoint.network == network).cloned();
        let differs = |what: String| Error::NotAttached {
            sandbox: id.to_owned(),
            network: network.to_owned(),
            reason: what,
        };
        let endpoint = endpoint.ok_or_else(|| differs("it has not joined".to_owned()))?;
        if !endpoint.has_link() {
            return Ok(endpoint);
        }
        if let Some(name) = &endpoint.host_interface {
            let found =
                link::find(&mut kernel.route, name).map_err(Error::kernel(format!("looking up {name}")))?;
            if found.and_then(|link| link.master).is_none() {
                return Err(differs(format!("{name} is no port of a bridge of the host")));
            }
        }
        look_inside(&sandbox, &endpoint)?.map_or(Ok(endpoint), |what| Err(differs(what)))
    }
}

/// What is wrong in the sandbox, if anything.
fn look_inside(sandbox: &Sandbox, endpoint: &Endpoint) -> Result<Option<String>> {
    let netns = netns::open(&sandbox.netns)?;
    netns::within(&sandbox.netns, &netns, || {
        let look = || {
            let mut inside = Socket::route()?;
            let Some(found) = link::find(&mut inside, &endpoint.interface)? else {
                return Ok(Some(format!("there is no interface {:?}", endpoint.interface)));
            };
            if endpoint.mac.is_some_and(|mac| found.mac != mac) {
                return Ok(Some(format!("interface {:?} has another MAC", endpoint.interface)));
            }
            let present = link::addresses(&mut inside, found.index)?;
            let missing = endpoint.addresses.iter().find(|address| !present.contains(address));
            Ok(missing.map(|address| format!("interface {:?} lacks {address}", endpoint.interface)))
        };
        look().map_err(Error::kernel(format!("looking into {}", sandbox.netns.display())))
    })
}
