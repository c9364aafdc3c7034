//! Messages as they come and go: what is looked at before anything is decoded, and what fits.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};

/// RFC 1035, 4.2.1: what every client takes over UDP.
const UDP_MIN: u16 = 512;
/// What we send at most over UDP, and take from upstream: the loopback's and most paths' limit is larger.
pub(super) const UDP_MAX: u16 = 4_096;
const HEADER: usize = 12;

/// A well-formed question.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) message: Message,
    /// As it came.
    pub(super) bytes: Vec<u8>,
}

/// What is to be done with bytes that a client sent.
#[derive(Debug)]
pub(super) enum Received {
    Question(Box<Question>),
    /// Not a question that can be answered; the answer says so.
    Refused(Vec<u8>),
    /// Not even that: answering would only help whoever forges it.
    Nothing,
}

pub(super) fn receive(bytes: &[u8]) -> Received {
    let Some(header) = bytes.get(..HEADER) else { return Received::Nothing };
    let is_response = header[2] & 0x80 != 0;
    if is_response {
        return Received::Nothing;
    }
    let code = u16::from(header[2] >> 3 & 0x0f);
    if code != 0 {
        return Received::Refused(error(header, ResponseCode::NotImp));
    }
    // Counts come first: a decoder makes room for what they promise.
    let counts = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if counts(4) != 1 || counts(6) != 0 || counts(8) != 0 || counts(10) > 4 {
        return Received::Refused(error(header, ResponseCode::FormErr));
    }
    match Message::from_vec(bytes) {
        Ok(message) if message.queries.len() == 1 && !question_bytes(bytes).is_empty() => {
            Received::Question(Box::new(Question { message, bytes: bytes.to_vec() }))
        }
        _ => Received::Refused(error(header, ResponseCode::FormErr)),
    }
}

/// An answer that is only a header.
fn error(header: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut message =
        Message::new(u16::from_be_bytes([header[0], header[1]]), MessageType::Response, OpCode::Query);
    message.metadata.op_code = OpCode::from_u8(header[2] >> 3 & 0x0f);
    message.metadata.recursion_desired = header[2] & 1 != 0;
    message.metadata.response_code = code;
    message.to_vec().unwrap_or_default()
}

impl Question {
    /// An empty answer to it.
    pub(super) fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = Message::response(self.message.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = self.message.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.checking_disabled = self.message.metadata.checking_disabled;
        reply.metadata.response_code = code;
        reply.queries.clone_from(&self.message.queries);
        if let Some(edns) = &self.message.edns {
            let mut ours = hickory_proto::op::Edns::new();
            ours.set_max_payload(UDP_MAX).set_version(0).set_dnssec_ok(edns.flags().dnssec_ok);
            reply.set_edns(ours);
        }
        reply
    }

    /// How many bytes its sender takes.
    pub(super) fn limit(&self, stream: bool) -> usize {
        if stream {
            return usize::from(u16::MAX);
        }
        let said = self.message.edns.as_ref().map_or(UDP_MIN, hickory_proto::op::Edns::max_payload);
        usize::from(said.clamp(UDP_MIN, UDP_MAX))
    }
}

/// The bytes of an answer; one that is too long says so and leaves the rest to TCP.
pub(super) fn encode(reply: &Message, limit: usize) -> Vec<u8> {
    let encoded = reply.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    encoded.or_else(|| reply.truncate().to_vec().ok()).unwrap_or_default()
}

/// The same for bytes that came from elsewhere.
pub(super) fn fit(bytes: Vec<u8>, limit: usize) -> Vec<u8> {
    if bytes.len() <= limit {
        return bytes;
    }
    Message::from_vec(&bytes).ok().and_then(|message| message.truncate().to_vec().ok()).unwrap_or_default()
}

/// Whether bytes answer a question that was sent under `id`: the same question comes back with it.
pub(super) fn answers(bytes: &[u8], question: &Question, id: u16) -> bool {
    let Some(header) = bytes.get(..HEADER) else { return false };
    // A name that is asked for is never compressed: the first question ends where it ends in ours.
    let asked = question_bytes(&question.bytes);
    let echoed = bytes.get(HEADER..HEADER + asked.len());
    header[..2] == id.to_be_bytes()
        && header[2] & 0x80 != 0
        && u16::from_be_bytes([header[4], header[5]]) == 1
        && echoed.is_some_and(|echoed| echoed.eq_ignore_ascii_case(asked))
}

/// Name, type and class of the first question; nothing when the name is not written out.
fn question_bytes(bytes: &[u8]) -> &[u8] {
    const LABEL_MAX: u8 = 63;
    let mut end = HEADER;
    while let Some(length) = bytes.get(end).copied().filter(|length| *length != 0) {
        if length > LABEL_MAX {
            return &[];
        }
        end += usize::from(length) + 1;
    }
    bytes.get(HEADER..end + 5).unwrap_or_default()
}
