//! Being attached to a container: the streams of its own process, as its shim passes them on.
//!
//! The connection begins as ttrpc with one call, `Attach` or `AttachInput`. After the answer it carries plain input to the
//! shim, and frames from it: a byte for the kind, the length in three bytes, the data.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::error::Error;
use super::socket;

/// How long the shim may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer to the call, and longest frame: the shim reads 16 KiB at a time.
const LONGEST: usize = 64 << 10;

/// Something the container printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    Stdout(Bytes),
    Stderr(Bytes),
    /// So many bytes were not passed on, as we read too slowly.
    Skipped(u64),
}

/// What the container prints.
#[derive(Debug)]
pub(crate) struct Screen(BufReader<OwnedReadHalf>);

/// What the container reads. Shutting it down ends our input.
pub(crate) type Keyboard = OwnedWriteHalf;

/// Attaches to the container whose shim listens in `bundle`; with `input` what is written to the keyboard goes to it.
///
/// # Errors
/// [`Error::Gone`] when nobody listens, [`Error::Refused`] with the shim's reason.
pub(crate) async fn attach(id: &str, bundle: &Path, input: bool) -> Result<(Screen, Keyboard), Error> {
    let method = if input { "AttachInput" } else { "Attach" };
    let gone = |source| Error::Gone { id: id.to_owned(), source };
    let stream = socket::connect(bundle).and_then(UnixStream::from_std).map_err(gone)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(4096, reader);
    let calling = async {
        writer.write_all(&request(method)).await?;
        let mut head = [0; 10];
        reader.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let mut answer = vec![0; bounded(length)?];
        reader.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let lost = |reason: String| Error::Lost { id: id.to_owned(), call: "Attach", reason };
    let answer = tokio::time::timeout(ANSWER, calling)
        .await
        .map_err(|_| Error::TimedOut { id: id.to_owned(), call: "Attach", limit: ANSWER })?
        .map_err(|error: io::Error| lost(error.to_string()))?;
    let answer = Response::parse_from_bytes(&answer).map_err(|error| lost(error.to_string()))?;
    match answer.status.into_option() {
        Some(status) if status.code.value() != 0 => {
            Err(Error::Refused { call: "Attach", code: status.code.value(), message: status.message })
        }
        _ => Ok((Screen(reader), writer)),
    }
}

/// A ttrpc request without a message: length, stream 1, type 1 (request), no flags.
fn request(method: &str) -> Vec<u8> {
    let request =
        Request { service: "berth.shim.v1.Shim".to_owned(), method: method.to_owned(), ..Default::default() };
    let payload = request.write_to_bytes().unwrap_or_default();
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[..], &1u32.to_be_bytes(), &[1, 0], &payload].concat()
}

fn bounded(length: u32) -> io::Result<usize> {
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= LONGEST)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Screen {
    /// The next thing printed; `None` when the container has ended.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Printed>> {
        let mut head = [0; 4];
        if self.0.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut head[1..]).await?;
        let length = bounded(u32::from_be_bytes([0, head[1], head[2], head[3]]))?;
        let mut data = BytesMut::zeroed(length);
        self.0.read_exact(&mut data).await?;
        let data = data.freeze();
        Ok(Some(match head[0] {
            1 => Printed::Stdout(data),
            2 => Printed::Stderr(data),
            3 => Printed::Skipped(data.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }))
    }
}
