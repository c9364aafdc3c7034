//! Writes frames to the client.

use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frame::{self, PAYLOAD_MAX, kind};
use crate::streaming::link::{Activity, CHUNK, Frame};

/// Every header block we send holds no header. As a zlib stream of stored blocks it needs no compressor: the stream's head
/// (RFC 1950, no dictionary), then a block (RFC 1951, 3.2.4) of four zero bytes, and an empty one: readers
/// hand out what they have only there, as that is how zlib flushes.
const ZLIB_HEAD: [u8; 2] = [0x78, 0x01];
const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Writes what is queued until the session closes, or the client is gone.
pub(super) async fn run(
    io: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Frame>,
    activity: Activity,
    gone: CancellationToken,
) {
    let mut io = BufWriter::with_capacity(CHUNK + 64, io);
    let mut first_block = true;
    while let Some(frame) = queue.recv().await {
        let close = matches!(frame, Frame::Close { .. });
        let data = matches!(frame, Frame::Data { .. });
        let written = async {
            write(&mut io, frame, &mut first_block).await?;
            if queue.is_empty() || close { io.flush().await } else { Ok(()) }
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "writing to a SPDY client");
            gone.cancel();
            return;
        }
        // Pings are no traffic: a forgotten client sends them for ever.
        if data {
            activity.touch();
        }
        if close {
            break;
        }
    }
    let _ = io.shutdown().await;
}

async fn write(
    io: &mut (impl AsyncWrite + Unpin),
    frame: Frame,
    first_block: &mut bool,
) -> std::io::Result<()> {
    let control = match frame {
        Frame::Data { channel, data } => {
            for part in data.chunks(PAYLOAD_MAX) {
                io.write_all(&frame::data_head(channel, false, part.len())).await?;
                io.write_all(part).await?;
            }
            return Ok(());
        }
        Frame::End { channel } => frame::data_head(channel, true, 0).to_vec(),
        Frame::Reply { channel } => {
            let head: &[u8] = if std::mem::take(first_block) { &ZLIB_HEAD } else { &[] };
            frame::control(kind::SYN_REPLY, &[channel], &[head, &NO_HEADERS].concat())
        }
        Frame::Reset { channel, reason } => frame::control(kind::RST_STREAM, &[channel, reason], &[]),
        Frame::Ping(id) => frame::control(kind::PING, &[id], &[]),
        Frame::Close { failed } => frame::control(kind::GOAWAY, &[0, u32::from(failed)], &[]),
    };
    io.write_all(&control).await
}
