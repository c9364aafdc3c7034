//! Names of sandboxes on the networks that people made.

use std::sync::Arc;

use super::{Controller, Inner};
use crate::{
    error::{Error, Result},
    model::{NetworkDriver, Sandbox},
    resolver::{Directory, NameCounts, Naming},
    store::{self, commit},
};

impl Controller {
    /// Says what a sandbox is called on the networks with names that it joins or has joined, and whom it asks for others. It is
    /// kept with the sandbox; naming it again the same way is free.
    ///
    /// # Errors
    /// A name that is none, or too many; there is no such sandbox; its resolver can't be started.
    pub async fn name_sandbox(&self, sandbox: &str, naming: Naming) -> Result<()> {
        naming.check()?;
        let id = sandbox.to_owned();
        self.change("naming a sandbox", id.clone(), move |inner, _| inner.name_sandbox(&id, naming)).await?
    }

    /// Gives a sandbox more names, in place of those given before. They are not kept: say them again after a restart.
    pub fn name_more(&self, sandbox: &str, names: &[String]) {
        self.inner.resolvers.directory().name_more(sandbox, names);
    }

    /// Whether endpoints of a network have names: of those that people made, not of the built-in ones.
    #[must_use]
    pub fn has_names(&self, network: &str) -> bool {
        self.inner.has_names(network)
    }

    /// Whether a sandbox has a resolver of its own, at [`ADDRESS`](crate::resolver::ADDRESS).
    #[must_use]
    pub fn has_resolver(&self, sandbox: &str) -> bool {
        self.inner.resolvers.serves(sandbox)
    }

    /// Where names come from: for those who know of endpoints on other hosts.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(self.inner.resolvers.directory())
    }

    /// How questions for names were answered.
    #[must_use]
    pub fn name_counts(&self) -> NameCounts {
        self.inner.resolvers.counts()
    }
}

impl Inner {
    fn name_sandbox(&self, id: &str, naming: Naming) -> Result<()> {
        let sandbox = self.keep_naming(id, naming)?;
        self.align_names(&sandbox)
    }

    /// No transaction is left open by it: what follows talks to the kernel.
    fn keep_naming(&self, id: &str, naming: Naming) -> Result<Sandbox> {
        let tx = self.store.write()?;
        let mut sandbox = store::sandbox(&tx, id)?.ok_or_else(|| Error::SandboxNotFound(id.to_owned()))?;
        if sandbox.naming.as_ref() != Some(&naming) {
            sandbox.naming = Some(naming);
            store::put_sandbox(&tx, &sandbox)?;
            commit(tx)?;
        }
        Ok(sandbox)
    }

    /// Makes directory and resolver be what a sandbox's record says.
    pub(super) fn align_names(&self, sandbox: &Sandbox) -> Result<()> {
        if self.resolvers.align(sandbox, |network| self.has_names(network))? {
            tracing::debug!(sandbox = sandbox.id, "a resolver serves the sandbox");
        }
        Ok(())
    }

    fn has_names(&self, network: &str) -> bool {
        self.active(network).is_ok_and(|active| {
            !self.is_built_in(&active.network)
                && !matches!(active.network.driver, NetworkDriver::Addresses(_))
        })
    }
}
