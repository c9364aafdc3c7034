//! ttrpc framing: one connection of the shim, to a client, or to a server that the shim itself calls.
//!
//! A frame is a 10-byte header (length and stream id as big-endian `u32`, type, flags) and a protobuf message: `Request` from
//! the client, `Response` from the server (containerd/ttrpc, PROTOCOL.md). Reads and writes never block; what can't be written
//! yet waits in a bounded buffer, and a peer that does not read is dropped.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

const HEADER: usize = 10;
/// The longest message, as containerd has it.
const MESSAGE_MAX: usize = 4 << 20;
/// Answers that may wait for a client to read them.
const BACKLOG_MAX: usize = 8 << 20;
const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;

/// A client.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Never used twice in the life of the shim.
    pub(crate) id: u64,
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The stream the answer goes to, or the question came on.
    pub(crate) stream: u32,
    /// Whether it is a `Response`.
    pub(crate) is_answer: bool,
    /// The encoded `Request` or `Response`.
    pub(crate) payload: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(id: u64, socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { id, socket, input: Vec::new(), output: Vec::new() })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Gives the connection up for another use, with what the client has not read yet.
    pub(crate) fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.socket, self.output)
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there; an error or the end of the stream means that the connection is over.
    pub(crate) fn read(&mut self) -> io::Result<Vec<Frame>> {
        let mut buffer = [0_u8; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    if count < buffer.len() || self.input.len() > MESSAGE_MAX {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.frames()
    }

    fn frames(&mut self) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let mut used = 0;
        while let Some(header) = self.input.get(used..used + HEADER) {
            let word = |at: usize| {
                let mut bytes = [0_u8; 4];
                bytes.copy_from_slice(&header[at..at + 4]);
                u32::from_be_bytes(bytes)
            };
            let (length, stream, kind) = (usize::try_from(word(0)).unwrap_or(usize::MAX), word(4), header[8]);
            if length > MESSAGE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "message of more than 4 MiB"));
            }
            let Some(payload) = self.input.get(used + HEADER..used + HEADER + length) else { break };
            // Streaming frames are not part of the Task service; a client that sends them gets no answer.
            if kind == TYPE_REQUEST || kind == TYPE_RESPONSE {
                frames.push(Frame { stream, is_answer: kind == TYPE_RESPONSE, payload: payload.to_vec() });
            }
            used += HEADER + length;
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(frames)
    }

    /// Sends an encoded `Response`, now as far as it goes, the rest when the client reads.
    pub(crate) fn send(&mut self, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.queue(stream, TYPE_RESPONSE, payload)
    }

    /// Sends an encoded `Request` in the same way.
    pub(crate) fn ask(&mut self, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.queue(stream, TYPE_REQUEST, payload)
    }

    fn queue(&mut self, stream: u32, kind: u8, payload: &[u8]) -> io::Result<()> {
        if self.output.len() + payload.len() > BACKLOG_MAX {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the peer does not read"));
        }
        self.output.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(&[kind, 0]);
        self.output.extend_from_slice(payload);
        self.flush()
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        Ok(())
    }
}
