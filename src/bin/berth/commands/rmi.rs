//! `berth rmi`.

use anyhow::{Context, Result, bail};
use berth::image::Reference;
use berth::proto::berth::v1::UntagRequest;
use berth::proto::runtime::v1::{Container, Image, RemoveImageRequest};
use clap::Args;
use tonic::Code;

use crate::client::{self, Client};
use crate::failure::{self, Answer, Refusal};
use crate::names::container_name;
use crate::output;

/// Options of `rmi`.
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Names, ids, or unique prefixes of ids; of an image with several tags, a tag takes off just that
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also when containers were made of it, and no error when it is not there
    #[arg(short, long)]
    force: bool,
}

impl Rmi {
    /// Removes one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.images {
            match self.remove(&mut client, name).await.with_context(|| format!("removing image {name}")) {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }

    async fn remove(&self, client: &mut Client, name: &str) -> Result<()> {
        // The CRI takes the removal of what is not there for a success, and does not ask who uses it.
        if self.untag(client, name).await? {
            return Ok(());
        }
        if !self.force {
            let Some(image) = client.image(name).await? else {
                bail!("no such image: `berth images` lists them");
            };
            if let Some(user) = user_of(&image, &client.containers().await?) {
                bail!("container {} was made of it: remove that first, or use --force", container_name(user));
            }
        }
        client
            .images
            .remove_image(RemoveImageRequest { image: Some(client::image_spec(name)) })
            .await
            .answer()?;
        Ok(())
    }

    /// Takes off a tag of an image that has others. `false`: it is none of those, the image itself is meant.
    async fn untag(&self, client: &mut Client, name: &str) -> Result<bool> {
        let Some(reference) = name.parse::<Reference>().ok() else { return Ok(false) };
        match client.transfer.untag(UntagRequest { reference: reference.to_string() }).await.answer() {
            Ok(_) => Ok(true),
            Err(Refusal {
                code: Code::NotFound | Code::FailedPrecondition | Code::Unimplemented | Code::InvalidArgument,
                ..
            }) => Ok(false),
            Err(refusal) => Err(refusal.into()),
        }
    }
}

fn user_of<'a>(image: &Image, containers: &'a [Container]) -> Option<&'a Container> {
    containers.iter().find(|container| {
        container.image_id == image.id
            || container.image_ref == image.id
            || image.repo_digests.contains(&container.image_ref)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_id_or_digest() {
        let image =
            Image { id: "sha256:1".into(), repo_digests: vec!["a@sha256:2".into()], ..Image::default() };
        let by = |image_id: &str, image_ref: &str| Container {
            image_id: image_id.into(),
            image_ref: image_ref.into(),
            ..Container::default()
        };
        assert!(user_of(&image, &[by("sha256:1", "")]).is_some());
        assert!(user_of(&image, &[by("", "a@sha256:2")]).is_some());
        assert!(user_of(&image, &[by("sha256:9", "b@sha256:2"), by("", "")]).is_none());
    }
}
