//! Records held against the kernel, with nothing changed.

use std::collections::HashSet;

use super::{Controller, Inner, guest::is_live};
use crate::{
    error::{Error, Result},
    link,
    worker::Kernel,
};

/// What reconciliation would put right. Everything empty: records and kernel agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Sandboxes that are on record and not live.
    pub stale_sandboxes: Vec<String>,
    /// Interfaces named as only we name them, which no endpoint owns.
    pub unowned_links: Vec<String>,
    /// Endpoints whose host interface is gone or no port of our bridge, as sandbox and network.
    pub detached_endpoints: Vec<(String, String)>,
    /// Whether the firewall's table is missing.
    pub table_missing: bool,
    /// Elements that the firewall's sets lack.
    pub missing_elements: usize,
    /// Elements that they have and nobody owns.
    pub surplus_elements: usize,
}

impl Controller {
    /// Name of the firewall's table.
    #[must_use]
    pub fn table(&self) -> &str {
        self.inner.firewall.table()
    }

    /// Holds records and kernel against each other and changes nothing. Waits until no change is under way; the live sandboxes
    /// are asked for then.
    ///
    /// # Errors
    /// The store failed; the kernel refused to tell.
    pub async fn audit(&self, live: impl FnOnce() -> HashSet<String> + Send + 'static) -> Result<Audit> {
        self.alone("looking at networks", move |inner, kernel| inner.audit(kernel, &live())).await?
    }
}

impl Inner {
    fn audit(&self, kernel: &mut Kernel, live: &HashSet<String>) -> Result<Audit> {
        let mut audit = Audit::default();
        let sandboxes = self.store.sandboxes()?;
        let stale = sandboxes.iter().filter(|sandbox| !is_live(sandbox, live));
        audit.stale_sandboxes = stale.map(|sandbox| sandbox.id.clone()).collect();
        match self.firewall.difference(&mut kernel.filter, &self.desired_elements()?)? {
            Some((missing, surplus)) => {
                audit.missing_elements = missing.len();
                audit.surplus_elements = surplus.len();
            }
            None => audit.table_missing = true,
        }
        let links = link::list(&mut kernel.route).map_err(Error::kernel("listing interfaces"))?;
        let mut owned = HashSet::new();
        for sandbox in &sandboxes {
            for endpoint in &sandbox.endpoints {
                let Some(name) = endpoint.host_interface.as_deref() else { continue };
                owned.insert(name);
                let found = links.iter().find(|link| link.name == name);
                if found.and_then(|link| link.master).is_none() {
                    audit.detached_endpoints.push((sandbox.id.clone(), endpoint.network.clone()));
                }
            }
        }
        let unowned = links.iter().filter(|link| self.is_ours(link) && !owned.contains(link.name.as_str()));
        audit.unowned_links = unowned.map(|link| link.name.clone()).collect();
        Ok(audit)
    }
}
