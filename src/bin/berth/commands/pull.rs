//! `berth pull`.

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::berth::v1::PullRequest;
use berth::proto::berth::v1::pull_response::Event;
use berth::proto::runtime::v1::{AuthConfig, Image, PullImageRequest};
use clap::Args;
use tonic::Code;

use crate::client::{self, Client};
use crate::credentials;
use crate::failure::{self, Answer, Refusal};
use crate::output;
use crate::progress;

/// Options of `pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Images, as in nginx, docker.io/library/nginx:1.29 or registry:5000/app@sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Print nothing but the images' references
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    source: Source,
}

/// Where and what to pull, for `pull` and `run`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Source {
    /// Credentials for the registry, instead of those of `berth login` (better given in the environment: command lines are visible to all)
    #[arg(long, env = "BERTH_CREDS", hide_env_values = true, value_name = "USER:PASSWORD")]
    creds: Option<String>,
    /// Platform, as in linux/arm64/v8, where it is not this machine's
    #[arg(long, value_name = "OS/ARCHITECTURE[/VARIANT]", default_value = "", hide_default_value = true)]
    platform: String,
}

impl Pull {
    /// Pulls one after the other; the layers of each in parallel.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        self.source.given()?;
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for image in &self.images {
            match self.pull(&mut client, image).await {
                Ok(pulled) => output::print_line(&reference(&pulled))?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }

    async fn pull(&self, client: &mut Client, image: &str) -> Result<Image> {
        let auth = self.source.auth(image).await?;
        fetch(client, image, auth, &self.source.platform, self.quiet).await
    }
}

impl Source {
    /// One with these credentials and this machine's platform.
    pub(crate) fn with(creds: Option<String>) -> Self {
        Self { creds, ..Self::default() }
    }

    /// The credentials for an image's registry as the CRI passes them: those given, else those that `login` kept.
    pub(crate) async fn auth(&self, image: &str) -> Result<Option<AuthConfig>> {
        match self.given()? {
            Some(auth) => Ok(Some(auth)),
            None => credentials::of_image(image).await,
        }
    }

    fn given(&self) -> Result<Option<AuthConfig>> {
        let Some(creds) = self.creds.as_deref().filter(|creds| !creds.is_empty()) else { return Ok(None) };
        match creds.split_once(':') {
            Some((username, password)) if !username.is_empty() => Ok(Some(AuthConfig {
                username: username.to_owned(),
                password: password.to_owned(),
                ..AuthConfig::default()
            })),
            // Not quoted: it may be a secret.
            _ => bail!("--creds takes USER:PASSWORD"),
        }
    }

    /// The platform asked for; empty: the machine's.
    pub(crate) fn platform(&self) -> &str {
        &self.platform
    }
}

/// Pulls an image and shows how far it is.
pub(crate) async fn fetch(
    client: &mut Client,
    image: &str,
    auth: Option<AuthConfig>,
    platform: &str,
    quiet: bool,
) -> Result<Image> {
    let context = || format!("pulling {image}");
    let request =
        PullRequest { reference: image.to_owned(), auth: auth.clone(), platform: platform.to_owned() };
    let events = match client.transfer.pull(request).await.answer() {
        Ok(events) => events,
        // Another CRI runtime, without Berth's own API: pulls all the same, without showing how far it is.
        Err(Refusal { code: Code::Unimplemented, .. }) if platform.is_empty() => {
            return fetch_by_cri(client, image, auth).await.with_context(context);
        }
        Err(refusal) => return Err(refusal).with_context(context),
    };
    let outcome = progress::follow(events, quiet, |message| match message.event {
        Some(Event::Layer(layer)) => progress::Event::Layer(layer),
        Some(Event::Image(image)) => progress::Event::Done(image),
        None => progress::Event::Unknown,
    });
    let pulled = outcome
        .await
        .map_err(Refusal::from)
        .map_err(|refusal| credentials::advise(refusal, image))
        .with_context(context)?;
    pulled.ok_or_else(|| anyhow!("the daemon ended without an image")).with_context(context)
}

async fn fetch_by_cri(client: &mut Client, image: &str, auth: Option<AuthConfig>) -> Result<Image> {
    let request = PullImageRequest { image: Some(client::image_spec(image)), auth, sandbox_config: None };
    let pulled = client.images.pull_image(request).await.answer()?.image_ref;
    client.image(&pulled).await?.ok_or_else(|| anyhow!("{pulled} was pulled, and is gone again"))
}

/// The best name of an image: with digest, so that it means the same tomorrow.
pub(crate) fn reference(image: &Image) -> String {
    image.repo_digests.first().or(image.repo_tags.first()).unwrap_or(&image.id).clone()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn auth(creds: &str) -> Result<Option<AuthConfig>> {
        Source { creds: Some(creds.into()), ..Source::default() }.given()
    }

    #[test]
    fn credentials() {
        let given = auth("me:a:b").unwrap().unwrap();
        assert_eq!((given.username.as_str(), given.password.as_str()), ("me", "a:b"));
        assert!(auth("").unwrap().is_none());
        for wrong in ["secret", ":secret"] {
            assert!(!auth(wrong).unwrap_err().to_string().contains("secret"));
        }
    }

    #[test]
    fn references_prefer_digests() {
        let mut image = Image { id: "sha256:1".into(), ..Image::default() };
        assert_eq!(reference(&image), "sha256:1");
        image.repo_tags.push("a:1".into());
        assert_eq!(reference(&image), "a:1");
        image.repo_digests.push("a@sha256:2".into());
        assert_eq!(reference(&image), "a@sha256:2");
    }
}
