//! The socket that other shims publish their events to: beside the daemon's own, with `.ttrpc` behind its name.
//!
//! Containerd's shims refuse to start when nobody listens there (`TTRPC_ADDRESS`). What they tell is known already: how a
//! container ends, our own shim beside it waits for. So every event is taken and answered, and that is all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Shims at once: one a pod, where they are many one a container.
const CONNECTIONS_MAX: usize = 4096;
/// Longest event, as ttrpc has it.
const MESSAGE_MAX: u32 = 4 << 20;
/// Length, stream, type and flags of a ttrpc message.
const HEADER: usize = 10;
const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;

/// Where shims publish events to, for a daemon that listens on `address`.
pub fn address(address: &Path) -> PathBuf {
    let mut name = address.as_os_str().to_owned();
    name.push(".ttrpc");
    name.into()
}

/// Takes events for ever.
pub async fn take(listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = serve(stream).await {
                        tracing::debug!(%error, "a shim's events");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a shim's events");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut header = [0; HEADER];
    while reader.read(&mut header[..1]).await? > 0 {
        reader.read_exact(&mut header[1..]).await?;
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        if length > MESSAGE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an event of more than 4 MiB"));
        }
        let taken =
            tokio::io::copy(&mut (&mut reader).take(u64::from(length)), &mut tokio::io::sink()).await?;
        if taken < u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if header[8] == TYPE_REQUEST {
            // An answer without a status and with an empty message in it has no bytes.
            let [a, b, c, d] = [header[4], header[5], header[6], header[7]];
            writer.write_all(&[0, 0, 0, 0, a, b, c, d, TYPE_RESPONSE, 0]).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use containerd_shim_protos::api::ForwardRequest;
    use containerd_shim_protos::shim_async::EventsClient;
    use ttrpc::asynchronous::Client;
    use ttrpc::context;

    use super::*;

    #[tokio::test]
    async fn a_shim_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = address(&directory.path().join("berth.sock"));
        assert!(path.to_string_lossy().ends_with("berth.sock.ttrpc"));
        let taking = tokio::spawn(take(UnixListener::bind(&path).unwrap()));
        let client = EventsClient::new(Client::connect(&format!("unix://{}", path.display())).await.unwrap());
        for _ in 0..3 {
            let context = context::with_duration(std::time::Duration::from_secs(10));
            client.forward(context, &ForwardRequest::default()).await.unwrap();
        }
        // One that breaks the rules ends alone.
        let mut rude = UnixStream::connect(&path).await.unwrap();
        rude.write_all(&[0xff; HEADER]).await.unwrap();
        assert_eq!(rude.read(&mut [0; 1]).await.unwrap(), 0);
        let context = context::with_duration(std::time::Duration::from_secs(10));
        client.forward(context, &ForwardRequest::default()).await.unwrap();
        taking.abort();
    }
}
