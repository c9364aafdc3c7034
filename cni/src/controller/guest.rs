//! Guests: sandboxes of other runtimes, which a CNI plugin joins to networks that only a daemon that runs can keep (overlays).
//!
//! They are their runtime's to make and to delete. Records and kernel are held against each other as for everybody, and a
//! guest whose namespace is pinned nowhere any more is gone with it.

use std::collections::HashSet;

use super::Controller;
use crate::{
    error::{Error, Result},
    model::{Endpoint, EndpointOptions, GuestSpec, Sandbox},
    names::check_name,
    netns,
    store::{self, commit},
};

/// What guests' ids begin with, so that none is another sandbox's.
const PREFIX: &str = "cni-";

impl Controller {
    /// Joins a guest to a network. Again with the same options is fine.
    ///
    /// # Errors
    /// As [`Controller::join`]; after an error nothing is left of a guest that was not there before. No namespace is pinned at
    /// the path.
    pub async fn attach(
        &self,
        guest: GuestSpec,
        network: &str,
        options: EndpointOptions,
    ) -> Result<Endpoint> {
        let id = sandbox_id(&guest.id);
        check_name("attachment", &id)?;
        check_name("owner", &guest.owner)?;
        if !netns::is_pinned(&guest.netns) {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no network namespace is there");
            return Err(Error::Netns { path: guest.netns, source });
        }
        let sandbox = id.clone();
        self.change("creating a network sandbox", id.clone(), move |inner, _| {
            let tx = inner.store.write()?;
            match store::sandbox(&tx, &sandbox)? {
                Some(present) if present.netns == guest.netns => return Ok(()),
                Some(present) => return Err(Error::SandboxExists { id: sandbox, netns: present.netns }),
                None => {}
            }
            let record = Sandbox {
                id: sandbox,
                netns: guest.netns,
                endpoints: Vec::new(),
                naming: None,
                guest: Some(guest.owner),
            };
            store::put_sandbox(&tx, &record)?;
            commit(tx)
        })
        .await??;
        let joined = self.join(&id, network, options).await;
        if joined.is_err() && self.endpoints(&id).is_empty() {
            for error in self.delete_sandbox(&id).await.err().into_iter().flatten() {
                tracing::warn!(sandbox = id, %error, "undoing a failed attachment");
            }
        }
        joined
    }

    /// Takes a guest out of all networks and forgets it; its interfaces are gone when this returns. One that is not there is
    /// detached already.
    ///
    /// # Errors
    /// Everything that could not be undone; it can be tried again.
    pub async fn detach(&self, guest: &str) -> Result<(), Vec<Error>> {
        let id = sandbox_id(guest);
        let mut errors = Vec::new();
        for endpoint in self.endpoints(&id) {
            errors.extend(self.leave(&id, &endpoint.network).await.err().into_iter().flatten());
        }
        errors.extend(self.delete_sandbox(&id).await.err().into_iter().flatten());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Holds a guest's endpoint against the kernel and returns it when they agree.
    ///
    /// # Errors
    /// As [`Controller::verify`].
    pub async fn verify_guest(&self, guest: &str, network: &str) -> Result<Endpoint> {
        self.verify(&sandbox_id(guest), network).await
    }

    /// Detaches an owner's guests from a network, but for those that are `valid`. Returns the ids of those that were.
    ///
    /// # Errors
    /// The store failed. What could not be detached is the second of what is returned.
    pub async fn collect_guests(
        &self,
        owner: &str,
        network: &str,
        valid: &HashSet<String>,
    ) -> Result<(Vec<String>, Vec<Error>)> {
        let (mut detached, mut errors) = (Vec::new(), Vec::new());
        for sandbox in self.sandboxes()? {
            let Some(id) = sandbox.id.strip_prefix(PREFIX).filter(|id| !valid.contains(*id)) else {
                continue;
            };
            let here = sandbox.endpoints.iter().any(|endpoint| endpoint.network == network);
            if sandbox.guest.as_deref() != Some(owner) || !here {
                continue;
            }
            match self.detach(id).await {
                Ok(()) => detached.push(id.to_owned()),
                Err(left) => errors.extend(left),
            }
        }
        Ok((detached, errors))
    }
}

fn sandbox_id(guest: &str) -> String {
    format!("{PREFIX}{guest}")
}

/// Whether a sandbox is to stay: `live` are those of this daemon.
pub(super) fn is_live(sandbox: &Sandbox, live: &HashSet<String>) -> bool {
    live.contains(&sandbox.id) || sandbox.guest.is_some() && netns::is_pinned(&sandbox.netns)
}
