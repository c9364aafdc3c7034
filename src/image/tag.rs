//! Names of images that are here.

use std::sync::Arc;

use super::error::blocking;
use super::reference::Target;
use super::registry::Purpose;
use super::{Credentials, Error, Image, Images, Reference};

impl Images {
    /// Gives the image that `source` means the name `target`, which another image may lose by that.
    pub async fn tag(&self, source: &str, target: &str) -> Result<Arc<Image>, Error> {
        let image = self.get(source).ok_or_else(|| Error::NotFound(source.to_owned()))?;
        let reference: Reference = target.parse()?;
        if let Target::Digest(_) = reference.target() {
            let problem = "a digest names what it names: give a tag";
            return Err(Error::Name { reference: target.to_owned(), doing: "made a tag", problem });
        }
        let mut image = Image::clone(&image);
        image.repo_tags.push(reference.to_string());
        self.commit(image).await
    }

    /// Takes a tag off an image that has others.
    pub async fn untag(&self, name: &str) -> Result<(), Error> {
        let reference = name.parse::<Reference>()?.to_string();
        let (store, tag) = (Arc::clone(&self.0.store), reference.clone());
        match blocking(move || Ok(store.untag(&tag)?)).await? {
            Some(true) => Ok(()),
            Some(false) => Err(Error::LastTag(reference)),
            None => Err(Error::NotFound(reference)),
        }
    }

    /// Asks the registry `host` whether it takes these credentials.
    pub async fn check_credentials(&self, host: &str, credentials: Option<Credentials>) -> Result<(), Error> {
        // Sessions are of a repository; its name is not asked for.
        let reference: Reference = format!("{host}/login").parse()?;
        if reference.host() != host {
            let problem = "it is no registry's host, as in docker.io or registry.example:5000";
            return Err(Error::Name { reference: host.to_owned(), doing: "logged in to", problem });
        }
        Ok(self.session(&reference, credentials, Purpose::Login).await?.check().await?)
    }
}
