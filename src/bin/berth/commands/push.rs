//! `berth push`.

use anyhow::{Context, Result, anyhow};
use berth::proto::berth::v1::push_response::Event;
use berth::proto::berth::v1::{PushRequest, PushedImage};
use clap::Args;

use crate::client::Client;
use crate::commands::pull::Source;
use crate::credentials;
use crate::failure::{self, Answer, Refusal};
use crate::output;
use crate::progress;

/// Options of `push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Names of images that are here, as in registry:5000/app:1 (see `berth tag`)
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Print nothing but the images' references
    #[arg(short, long)]
    quiet: bool,
    /// Credentials for the registry, instead of those of `berth login` (better given in the environment: command lines are visible to all)
    #[arg(long, env = "BERTH_CREDS", hide_env_values = true, value_name = "USER:PASSWORD")]
    creds: Option<String>,
}

impl Push {
    /// Pushes one after the other; the layers of each in parallel.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let source = Source::with(self.creds.clone());
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for image in &self.images {
            match send(&mut client, image, &source, self.quiet)
                .await
                .with_context(|| format!("pushing {image}"))
            {
                Ok(pushed) => output::print_line(&reference(&pushed))?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }
}

async fn send(client: &mut Client, image: &str, source: &Source, quiet: bool) -> Result<PushedImage> {
    let request = PushRequest { reference: image.to_owned(), auth: source.auth(image).await? };
    let events = client.transfer.push(request).await.answer()?;
    let outcome = progress::follow(events, quiet, |message| match message.event {
        Some(Event::Layer(layer)) => progress::Event::Layer(layer),
        Some(Event::Pushed(image)) => progress::Event::Done(image),
        None => progress::Event::Unknown,
    });
    let pushed =
        outcome.await.map_err(Refusal::from).map_err(|refusal| credentials::advise(refusal, image))?;
    pushed.ok_or_else(|| anyhow!("the daemon ended without saying what it pushed"))
}

/// The name without its tag, with the digest: it means the same tomorrow.
fn reference(pushed: &PushedImage) -> String {
    let name = pushed.reference.split('@').next().unwrap_or_default();
    let bare = match name.rsplit_once(':') {
        Some((bare, tag)) if !tag.contains('/') => bare,
        _ => name,
    };
    format!("{bare}@{}", pushed.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_named_by_digest() {
        let of = |name: &str| {
            reference(&PushedImage { reference: name.into(), digest: "sha256:1".into(), platforms: 1 })
        };
        assert_eq!(of("host:5000/a/b:1.2"), "host:5000/a/b@sha256:1");
        assert_eq!(of("host:5000/a/b@sha256:1"), "host:5000/a/b@sha256:1");
        assert_eq!(of("docker.io/library/a:latest"), "docker.io/library/a@sha256:1");
    }
}
