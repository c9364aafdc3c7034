//! Netlink, synchronous: messages go out in one write, answers are read until each has its acknowledgement.
//!
//! The kernel works on a request within the `send` call, so there is nothing to wait for asynchronously: a socket on a worker
//! thread costs two system calls a batch. Receiving has a deadline all the same.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use netlink_packet_core::Emitable;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// `nlmsghdr.nlmsg_flags`
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

const HEADER: usize = 16;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const DEADLINE_SECONDS: i64 = 10;
/// A dump that the kernel calls interrupted, or a busy subsystem, is asked again so often.
const DUMP_ATTEMPTS: usize = 8;

// === Messages ===

/// Messages that go out in one write.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Messages {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(1024), starts: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a message whose payload `fill` writes.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; HEADER]);
        let mut payload = Attributes { bytes: std::mem::take(&mut self.bytes) };
        fill(&mut payload);
        self.bytes = payload.bytes;
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds a message of the typed crate.
    pub(crate) fn push_typed(&mut self, kind: u16, flags: u16, message: &impl Emitable) {
        self.push(kind, flags, |out| {
            let start = out.bytes.len();
            out.bytes.resize(start + message.buffer_len(), 0);
            message.emit(&mut out.bytes[start..]);
        });
    }
}

/// Writes headers and attributes.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// A number in network order, as all of nf_tables has them.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// Walks the attributes of a received payload; stops at what is not well-formed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A received number in the host's order.
pub(crate) fn native_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?))
}

/// A received zero-terminated name.
pub(crate) fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

// === Socket ===

/// What came back for one message.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The kernel's verdict; `None` is success.
    pub(crate) error: Option<Errno>,
    /// Payloads of the messages it answered with.
    pub(crate) payloads: Vec<Vec<u8>>,
}

impl Reply {
    /// Success, or one of the errors that mean "is so already".
    pub(crate) fn accept(&self, fine: &[Errno]) -> io::Result<()> {
        match self.error {
            Some(error) if !fine.contains(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    pub(crate) fn generic() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkGeneric)
    }

    /// A socket that hears what anybody does to nf_tables.
    pub(crate) fn nftables_events() -> io::Result<Self> {
        /// `NFNLGRP_NFTABLES`, as a bit of the groups to be bound to.
        const GROUP: u32 = 1 << 6;
        let socket = Self::open(SockProtocol::NetlinkNetFilter)?;
        bind(socket.fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(socket)
    }

    /// Waits for events and hands them out: type and payload. Nothing for some seconds is an error of kind `TimedOut`.
    pub(crate) fn listen(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.receive(|_, kind, _, payload| each(kind, payload))
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(DEADLINE_SECONDS))?;
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(DEADLINE_SECONDS))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// Makes room for large batches; without the privilege the default stays.
    pub(crate) fn enlarge(&self, bytes: usize) {
        let _ = setsockopt(&self.fd, sockopt::SndBufForce, &bytes);
        let _ = setsockopt(&self.fd, sockopt::RcvBufForce, &bytes);
    }

    /// Sends messages, each of which asks for an acknowledgement, and collects one reply for each.
    pub(crate) fn exchange(&mut self, mut messages: Messages) -> io::Result<Vec<Reply>> {
        let first = self.number(&mut messages, flags::REQUEST | flags::ACK);
        self.send(&messages)?;
        let mut replies: Vec<Reply> = messages.starts.iter().map(|_| Reply::default()).collect();
        let mut missing = replies.len();
        while missing > 0 {
            self.receive(|sequence, kind, _, payload| {
                let Some(reply) = index(first, sequence).and_then(|index| replies.get_mut(index)) else {
                    return;
                };
                if kind == MESSAGE_ERROR {
                    reply.error = errno(payload);
                    missing = missing.saturating_sub(1);
                } else {
                    reply.payloads.push(payload.to_vec());
                }
            })?;
        }
        Ok(replies)
    }

    /// Sends one message and expects success.
    pub(crate) fn call(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Attributes),
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut messages = Messages::new();
        messages.push(kind, flags, fill);
        let mut replies = self.exchange(messages)?;
        let reply = replies.pop().unwrap_or_default();
        reply.accept(&[])?;
        Ok(reply.payloads)
    }

    /// An nf_tables transaction: all of it happens or nothing. Only the last message asks for an acknowledgement (a large
    /// batch's acknowledgements would not fit the receive buffer); errors come in any case, and before it.
    pub(crate) fn transaction(&mut self, mut messages: Messages) -> Result<(), (Option<usize>, io::Error)> {
        let first = self.number(&mut messages, flags::REQUEST);
        // begin, operations…, end: the last operation is the one before the end.
        let Some(last) = messages.len().checked_sub(2) else { return Ok(()) };
        let at = messages.starts[last] + 6;
        messages.bytes[at] |= u8::try_from(flags::ACK).unwrap_or_default();
        self.send(&messages).map_err(|error| (None, error))?;
        let (count, mut failure, mut done) = (messages.len(), None, false);
        while !done {
            self.receive(|sequence, kind, _, payload| {
                let Some(index) = index(first, sequence).filter(|index| *index < count) else { return };
                if kind != MESSAGE_ERROR {
                    return;
                }
                if let Some(error) = errno(payload) {
                    failure.get_or_insert((index, error));
                }
                // An error on the frame itself is all that comes.
                done |= index >= last || index == 0;
            })
            .map_err(|error| (None, error))?;
        }
        failure.map_or(Ok(()), |(index, error)| Err((Some(index), error.into())))
    }

    /// Asks for a list. Interrupted and refused-as-busy dumps are asked again.
    pub(crate) fn dump(&mut self, kind: u16, fill: impl Fn(&mut Attributes)) -> io::Result<Vec<Vec<u8>>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.dump_once(kind, &fill) {
                Err(error)
                    if attempt < DUMP_ATTEMPTS
                        && matches!(
                            error.raw_os_error().map(Errno::from_raw),
                            Some(Errno::EINTR | Errno::EBUSY | Errno::EAGAIN)
                        ) => {}
                other => return other,
            }
        }
    }

    fn dump_once(&mut self, kind: u16, fill: impl Fn(&mut Attributes)) -> io::Result<Vec<Vec<u8>>> {
        let mut messages = Messages::new();
        messages.push(kind, flags::DUMP, fill);
        let first = self.number(&mut messages, flags::REQUEST);
        self.send(&messages)?;
        let (mut found, mut done, mut failure) = (Vec::new(), false, None);
        while !done {
            self.receive(|sequence, kind, flags, payload| {
                if sequence != first {
                    return;
                }
                if flags & flags::DUMP_INTERRUPTED != 0 {
                    failure = Some(Errno::EINTR);
                }
                match kind {
                    MESSAGE_DONE | MESSAGE_ERROR => {
                        failure = failure.or(errno(payload));
                        done = true;
                    }
                    _ => found.push(payload.to_vec()),
                }
            })?;
        }
        failure.map_or(Ok(found), |error| Err(error.into()))
    }

    /// Numbers the messages and adds flags; returns the first number.
    fn number(&mut self, messages: &mut Messages, flags: u16) -> u32 {
        let first = self.sequence.wrapping_add(1);
        for start in &messages.starts {
            self.sequence = self.sequence.wrapping_add(1);
            let at = start + 8;
            messages.bytes[at..at + 4].copy_from_slice(&self.sequence.to_ne_bytes());
            let old = u16::from_ne_bytes([messages.bytes[start + 6], messages.bytes[start + 7]]);
            messages.bytes[start + 6..start + 8].copy_from_slice(&(old | flags).to_ne_bytes());
        }
        first
    }

    fn send(&self, messages: &Messages) -> io::Result<()> {
        loop {
            match send(self.fd.as_fd().as_raw_fd(), &messages.bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads one datagram and hands out its messages: sequence, type, flags, payload.
    fn receive(&mut self, mut each: impl FnMut(u32, u16, u16, &[u8])) -> io::Result<()> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        };
        let mut rest = &self.buffer[..length];
        while let Some(header) = rest.get(..HEADER) {
            let length =
                native_u32(header).and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
            let Some(payload) = rest.get(HEADER..length) else { break };
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let flags = u16::from_ne_bytes([header[6], header[7]]);
            each(native_u32(&header[8..]).unwrap_or_default(), kind, flags, payload);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

fn index(first: u32, sequence: u32) -> Option<usize> {
    usize::try_from(sequence.wrapping_sub(first)).ok()
}

fn errno(payload: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(payload.get(0..4)?.try_into().ok()?);
    (code != 0).then(|| Errno::from_raw(code.saturating_neg()))
}
