//! Answers of upstream servers, as long as they said. Bounded: the oldest makes room.
//!
//! A question leaves by the asker's own namespace, where others than the server can answer it: whoever is privileged in the
//! sandbox, or may send raw packets, which is usual. So its answer is kept for that sandbox alone. Servers on the host's loopback
//! are asked by the host itself, and what they answer is kept for all who ask them; one on a sandbox's own loopback is another one
//! in each sandbox.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use parking_lot::Mutex;

use super::{Server, View, wire::Question};

const ENTRIES_MAX: usize = 2_048;
/// A larger answer is not kept.
const BYTES_MAX: usize = 2_048;
/// However long a server says.
const TTL_MAX: u32 = 3_600;
/// For "there is no such name" (RFC 2308).
const NEGATIVE_TTL_MAX: u32 = 60;

/// Who was asked what, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Where the asker's namespace is pinned; `None`: all of the servers are the host's.
    asker: Option<PathBuf>,
    upstream: Arc<[Server]>,
    name: Name,
    kind: RecordType,
    class: DNSClass,
    /// DNSSEC records wanted, checking disabled, recursion desired: other answers.
    flags: (bool, bool, bool),
}

impl Key {
    fn of(view: &View, question: &Question) -> Option<Self> {
        let message = &question.message;
        let query = message.queries.first()?;
        let dnssec = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        // Options may make the answer one for this client only (RFC 7871).
        let plain = message.edns.as_ref().is_none_or(|edns| edns.options().options.is_empty());
        let outside = view.upstream.iter().any(|server| !server.on_host);
        plain.then(|| Self {
            asker: outside.then(|| view.netns.clone()),
            upstream: Arc::clone(&view.upstream),
            name: query.name.to_lowercase(),
            kind: query.query_type,
            class: query.query_class,
            flags: (dnssec, message.metadata.checking_disabled, message.metadata.recursion_desired),
        })
    }
}

#[derive(Debug)]
struct Kept {
    /// As it came: decoded it is many times as large.
    bytes: Box<[u8]>,
    since: Instant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Entries {
    kept: HashMap<Key, Kept>,
    /// By age; each key once.
    order: VecDeque<Key>,
}

#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Entries>);

impl Cache {
    /// An answer that still holds, with what is left of its time.
    pub(super) fn get(&self, view: &View, question: &Question, now: Instant) -> Option<Message> {
        let key = Key::of(view, question)?;
        let (bytes, since) = {
            let entries = self.0.lock();
            let kept = entries.kept.get(&key).filter(|kept| kept.until > now)?;
            (kept.bytes.clone(), kept.since)
        };
        let age = u32::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(u32::MAX);
        let kept = Message::from_vec(&bytes).ok()?;
        let mut reply = question.reply(kept.metadata.response_code);
        reply.metadata.authentic_data = kept.metadata.authentic_data;
        (reply.answers, reply.authorities, reply.additionals) =
            (kept.answers, kept.authorities, kept.additionals);
        for record in reply.answers.iter_mut().chain(&mut reply.authorities).chain(&mut reply.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(reply)
    }

    /// Keeps an answer if it may be kept.
    pub(super) fn put(&self, view: &View, question: &Question, bytes: &[u8], now: Instant) {
        if bytes.len() > BYTES_MAX {
            return;
        }
        let (Some(key), Ok(message)) = (Key::of(view, question), Message::from_vec(bytes)) else {
            return;
        };
        let Some(ttl) = lifetime(&message).filter(|ttl| *ttl > 0) else { return };
        let kept = Kept { bytes: bytes.into(), since: now, until: now + Duration::from_secs(ttl.into()) };
        let mut entries = self.0.lock();
        if entries.kept.insert(key.clone(), kept).is_none() {
            entries.order.push_back(key);
        }
        while entries.order.len() > ENTRIES_MAX {
            if let Some(oldest) = entries.order.pop_front() {
                entries.kept.remove(&oldest);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().kept.len()
    }
}

/// Seconds an answer holds; `None` for one that is not to be kept.
fn lifetime(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let positive = !message.answers.is_empty();
    match message.metadata.response_code {
        ResponseCode::NoError if positive => {
            Some(message.answers.iter().map(|record| record.ttl).min()?.min(TTL_MAX))
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa.map(|ttl| ttl.min(NEGATIVE_TTL_MAX))
        }
        _ => None,
    }
}
