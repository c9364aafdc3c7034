//! An attach session: a client at the streams of a container's own process.

use std::io::ErrorKind;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::client::{Client, Wants};
use super::link::Cut;
use super::resize::Sizes;
use super::status::Outcome;
use crate::error::chain;
use crate::pod::Pods;
use crate::shim::{self, Keyboard, Printed, Screen, Shim};

/// A container to attach to.
#[derive(Clone, Debug)]
pub(super) struct Attach {
    pub(super) container: String,
    pub(super) wants: Wants,
}

/// The container's side of a session.
#[derive(Debug)]
pub(super) struct Ends {
    container: String,
    shim: Shim,
    screen: Screen,
    keyboard: Keyboard,
}

/// Attaches to the container.
pub(super) async fn ends(pods: &Pods, attach: &Attach) -> Result<Ends, Outcome> {
    let id = &attach.container;
    let found = pods.container(id);
    let Some((container, shim)) =
        found.and_then(|(_, container)| container.shim.clone().map(|shim| (container, shim)))
    else {
        return Err(Outcome::Failed(format!("container {id} is not running")));
    };
    match shim::attach(id, &container.bundle, attach.wants.stdin).await {
        Ok((screen, keyboard)) => Ok(Ends { container: id.clone(), shim, screen, keyboard }),
        Err(error) => Err(Outcome::Failed(chain(&error))),
    }
}

/// Serves the client until the container ends, or the client goes: of that the container notices nothing, unless its input
/// was to end with its first client.
pub(super) async fn run(ends: Ends, client: &mut Client) -> Outcome {
    let Ends { container: id, shim, screen, keyboard } = ends;
    client.greet().await;
    let (stdin, resize) = (client.stdin.take(), client.resize.take());
    let inputs = async {
        tokio::join!(feed(stdin, keyboard), size(&shim, resize));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = show(screen, client, &id) => outcome,
        () = inputs => Outcome::Success,
        () = client.link.gone.cancelled() => match client.link.cut.get() {
            Some(cut @ Cut::Stops) => Outcome::Cut(format!(
                "{cut}: the session ends, and the container runs on; attach again when berthd is back"
            )),
            Some(cut @ Cut::Idle(_)) => {
                Outcome::Cut(format!("{cut}: the session ends, and the container runs on; attach again"))
            }
            None => Outcome::Success,
        },
    }
}

async fn show(mut screen: Screen, client: &Client, id: &str) -> Outcome {
    loop {
        let (output, data) = match screen.next().await {
            Ok(Some(Printed::Stdout(data))) => (&client.stdout, data),
            Ok(Some(Printed::Stderr(data))) => (&client.stderr, data),
            Ok(Some(Printed::Skipped(bytes))) => {
                tracing::info!(
                    container = id,
                    bytes,
                    "an attached client reads too slowly and missed output"
                );
                continue;
            }
            Ok(None) => return Outcome::Success,
            // The shim ended, and what this client was too slow to read went with it.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                return Outcome::Success;
            }
            Err(error) => {
                return Outcome::Failed(format!("reading from the shim of container {id}: {error}"));
            }
        };
        if let Some(output) = output
            && output.send(data).await.is_err()
        {
            return Outcome::Success;
        }
    }
}

/// The keyboard stays open for as long as the client does not end its input.
async fn feed(stdin: Option<mpsc::Receiver<Bytes>>, mut keyboard: Keyboard) {
    let Some(mut stdin) = stdin else {
        // Dropping it would do as well, but says the same: this client types nothing.
        let _ = keyboard.shutdown().await;
        return;
    };
    while let Some(data) = stdin.recv().await {
        if keyboard.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = keyboard.shutdown().await;
}

async fn size(shim: &Shim, resize: Option<mpsc::Receiver<Bytes>>) {
    let Some(resize) = resize else { return };
    let mut sizes = Sizes::new(resize);
    while let Some(size) = sizes.next().await {
        if let Err(error) = shim.resize("", size.width, size.height).await {
            tracing::debug!(%error, "resizing the terminal of a container");
        }
    }
}
