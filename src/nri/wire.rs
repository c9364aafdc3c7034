//! What is on the wire: ttrpc messages in the frames of a multiplexer.
//!
//! One unix socket carries two connections. Each frame has a header of 8 bytes, connection id and length, big-endian
//! (nri, pkg/net/multiplex). A connection carries ttrpc: a header of 10 bytes (length, stream id, type, flags) and a
//! protobuf message (ttrpc, PROTOCOL.md).
//!
//! Plugins in Go read a frame at a time through a buffer of 4096 bytes, and can't take a larger one unless they are asking
//! for exactly the rest of a message. And they give up when 256 frames wait. So a message is written as Go's own buffered
//! writer would cut it: up to 4096 bytes, then all the rest at once.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Connection on which plugins answer.
pub(super) const PLUGIN: u32 = 1;
/// Connection on which the runtime answers.
pub(super) const RUNTIME: u32 = 2;

/// The largest ttrpc message.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
const MESSAGE_HEADER: usize = 10;
const FRAME_HEADER: usize = 8;
const FIRST_FRAME: usize = 4096;

/// A ttrpc request.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

/// A ttrpc response: a status that is not OK, or a payload.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) payload: Vec<u8>,
}

/// gRPC's numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request = 1,
    Response = 2,
}

/// A message as it came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) connection: u32,
    pub(super) stream: u32,
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The plugin closed the connection, or the socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A frame that can't be one.
    #[error("a frame of {0} bytes is larger than any message")]
    Frame(u32),
    /// A message that is too large.
    #[error("a message of {0} bytes is larger than {MAX_MESSAGE}")]
    TooLarge(u32),
    /// A message of a type that NRI does not use.
    #[error("a ttrpc message of type {0}")]
    Type(u8),
}

/// Writes a message in frames.
///
/// # Errors
/// [`Error::TooLarge`].
pub(super) fn encode(connection: u32, stream: u32, kind: Kind, body: &[u8]) -> Result<Vec<u8>, Error> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > MAX_MESSAGE {
        return Err(Error::TooLarge(length));
    }
    let mut message = Vec::with_capacity(MESSAGE_HEADER + body.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&stream.to_be_bytes());
    message.push(kind as u8);
    message.push(0);
    message.extend_from_slice(body);
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME));
    let mut out = Vec::with_capacity(message.len() + 2 * FRAME_HEADER);
    for frame in [first, rest].into_iter().filter(|frame| !frame.is_empty()) {
        out.extend_from_slice(&connection.to_be_bytes());
        out.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(frame);
    }
    Ok(out)
}

/// Reads messages. Holds at most one unfinished message a connection.
#[derive(Debug)]
pub(super) struct Reader<R> {
    stream: R,
    /// What has come of the connections' next messages.
    partial: [Vec<u8>; 2],
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, partial: [Vec::new(), Vec::new()] }
    }

    /// The next message. Not to be cut off and called again.
    pub(super) async fn next(&mut self) -> Result<Message, Error> {
        loop {
            for (partial, connection) in self.partial.iter_mut().zip([PLUGIN, RUNTIME]) {
                if let Some(message) = take(partial, connection)? {
                    return Ok(message);
                }
            }
            let connection = self.stream.read_u32().await?;
            let length = self.stream.read_u32().await?;
            let size = usize::try_from(length).unwrap_or(usize::MAX);
            if size > MESSAGE_HEADER + MAX_MESSAGE {
                return Err(Error::Frame(length));
            }
            let mut frame = vec![0; size];
            self.stream.read_exact(&mut frame).await?;
            match connection {
                PLUGIN => self.partial[0].append(&mut frame),
                RUNTIME => self.partial[1].append(&mut frame),
                // As the multiplexer's other end does it: nobody has opened such a connection.
                _ => {}
            }
        }
    }
}

/// Takes a whole message from what has come.
fn take(partial: &mut Vec<u8>, connection: u32) -> Result<Option<Message>, Error> {
    let Some((header, rest)) = partial.split_first_chunk::<MESSAGE_HEADER>() else { return Ok(None) };
    let [a, b, c, d, e, f, g, h, kind, _flags] = *header;
    let (length, stream) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MAX_MESSAGE {
        return Err(Error::TooLarge(length));
    }
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Response,
        other => return Err(Error::Type(other)),
    };
    if rest.len() < size {
        return Ok(None);
    }
    let body = rest[..size].to_vec();
    partial.drain(..MESSAGE_HEADER + size);
    Ok(Some(Message { connection, stream, kind, body }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn read(bytes: &[u8]) -> Result<Message, Error> {
        Reader::new(bytes).next().await
    }

    #[tokio::test]
    async fn messages_come_back_as_they_went() {
        for size in [0, 1, 4085, 4086, 4087, 100_000, MAX_MESSAGE] {
            let body: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let bytes = encode(RUNTIME, 7, Kind::Response, &body).unwrap();
            let message = read(&bytes).await.unwrap();
            assert_eq!((message.connection, message.stream, message.kind), (RUNTIME, 7, Kind::Response));
            assert_eq!(message.body, body);
        }
    }

    #[test]
    fn frames_are_cut_as_gos_reader_needs_them() {
        let frames = |size: usize| {
            let bytes = encode(PLUGIN, 1, Kind::Request, &vec![0; size]).unwrap();
            let (mut at, mut lengths) = (0, Vec::new());
            while at < bytes.len() {
                let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap());
                lengths.push(length);
                at += 8 + usize::try_from(length).unwrap();
            }
            lengths
        };
        assert_eq!(frames(0), [10]);
        assert_eq!(frames(4086), [4096]);
        assert_eq!(frames(4087), [4096, 1]);
        assert_eq!(frames(1 << 20), [4096, 10 + (1 << 20) - 4096]);
        assert!(encode(PLUGIN, 1, Kind::Request, &vec![0; MAX_MESSAGE + 1]).is_err());
    }

    #[tokio::test]
    async fn connections_are_told_apart() {
        let one = encode(PLUGIN, 1, Kind::Response, &[1; 5000]).unwrap();
        let two = encode(RUNTIME, 3, Kind::Request, &[2; 10]).unwrap();
        // Two frames of the first, with the second's in between, and one of a connection that nobody knows.
        let unknown = [0, 0, 0, 9, 0, 0, 0, 2, 7, 7];
        let bytes = [&one[..4104], &two, &unknown, &one[4104..]].concat();
        let mut reader = Reader::new(bytes.as_slice());
        assert_eq!(reader.next().await.unwrap().body, [2; 10]);
        assert_eq!(reader.next().await.unwrap().body, [1; 5000]);
        assert!(matches!(reader.next().await, Err(Error::Io(_))));
    }

    #[tokio::test]
    async fn nonsense_is_an_error_and_not_an_allocation() {
        let frame = |length: u32, body: &[u8]| [&1_u32.to_be_bytes(), &length.to_be_bytes(), body].concat();
        assert!(matches!(read(&frame(u32::MAX, b"")).await, Err(Error::Frame(u32::MAX))));
        let header = [0xff, 0, 0, 0, 0, 0, 0, 1, 1, 0];
        assert!(matches!(read(&frame(10, &header)).await, Err(Error::TooLarge(_))));
        let header = [0, 0, 0, 0, 0, 0, 0, 1, 3, 0];
        assert!(matches!(read(&frame(10, &header)).await, Err(Error::Type(3))));
        assert!(matches!(read(&frame(10, b"short")).await, Err(Error::Io(_))));
    }
}
