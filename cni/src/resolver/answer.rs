//! What this host knows itself: names of the sandbox's networks, and what their addresses lead back to.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};

use super::{Directory, Named, View, directory::Found, wire::Question};
use crate::model::Protocol;

/// Clients may keep an answer so long, in seconds: containers come and go.
const TTL: u32 = 5;
/// More would not fit most answers; who asks again gets others.
const ANSWERS_MAX: usize = 64;

/// The answer, or `None` when others are to be asked.
pub(super) fn local(directory: &Directory, view: &View, question: &Question) -> Option<Message> {
    let query = question.message.queries.first()?;
    if !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) {
        return Some(question.reply(ResponseCode::Refused));
    }
    let name = text(&query.name)?;
    match query.query_type {
        RecordType::PTR => pointer(directory, view, question, query),
        RecordType::SRV => service(directory, view, question, query, &name),
        kind => {
            let found = directory.find(&view.networks, &name)?;
            let mut reply = known(question);
            let wanted = |address: &IpAddr| match kind {
                RecordType::A => address.is_ipv4(),
                RecordType::AAAA => address.is_ipv6(),
                RecordType::ANY => true,
                // It exists, and has nothing of that kind.
                _ => false,
            };
            let addresses = found.addresses().filter(wanted).take(ANSWERS_MAX);
            reply.answers.extend(addresses.map(|address| record(&query.name, address.into())));
            Some(reply)
        }
    }
}

fn pointer(directory: &Directory, view: &View, question: &Question, query: &Query) -> Option<Message> {
    let address = reverse(&query.name)?;
    if let Some((network, name)) = directory.name_of(&view.networks, address) {
        let mut reply = known(question);
        let target = absolute(&format!("{name}.{network}"))?;
        reply.answers.push(record(&query.name, RData::PTR(rdata::PTR(target))));
        return Some(reply);
    }
    // Nobody else has these addresses, nor has to know who is asked for.
    let ours = view.subnets.iter().any(|subnet| subnet.contains(address));
    ours.then(|| question.reply(ResponseCode::NXDomain))
}

/// `_PORT._PROTOCOL.NAME` (RFC 2782).
fn service(
    directory: &Directory,
    view: &View,
    question: &Question,
    query: &Query,
    name: &str,
) -> Option<Message> {
    let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, name) = rest.split_once('.')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let found = directory.find(&view.networks, name)?;
    let mut reply = known(question);
    for (entry, number) in found.ports(port, protocol).into_iter().take(ANSWERS_MAX) {
        let Some(target) = own_name(&found, entry) else { continue };
        let service = rdata::SRV::new(0, 0, number, target.clone());
        reply.answers.push(record(&query.name, RData::SRV(service)));
        reply.additionals.extend(entry.addresses.iter().map(|address| record(&target, (*address).into())));
    }
    Some(reply)
}

/// A name that only this endpoint has: the last of its own is as good as any, unless others share it.
fn own_name(found: &Found, entry: &Named) -> Option<Name> {
    let shared = |name: &&String| {
        let has = |(_, other): &&(_, std::sync::Arc<Named>)| {
            other.names.iter().any(|n| n.eq_ignore_ascii_case(name))
        };
        found.entries.iter().filter(has).count() > 1
    };
    let name = entry.names.iter().find(|name| !shared(name)).or(entry.names.first())?;
    absolute(&format!("{name}.{}", found.network))
}

fn known(question: &Question) -> Message {
    let mut reply = question.reply(ResponseCode::NoError);
    reply.metadata.authoritative = true;
    reply
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// A name as our names are written: lower case, without the last dot. `None` for what none of ours can be.
fn text(name: &Name) -> Option<String> {
    let labels: Option<Vec<&str>> = name
        .iter()
        .map(|label| std::str::from_utf8(label).ok().filter(|label| !label.contains('.')))
        .collect();
    Some(labels?.join(".").to_ascii_lowercase()).filter(|text| !text.is_empty())
}

fn absolute(text: &str) -> Option<Name> {
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()
}

/// The address of a whole reverse name.
fn reverse(name: &Name) -> Option<IpAddr> {
    let labels = usize::from(name.num_labels());
    let address = name.parse_arpa_name().ok()?;
    let whole = if address.addr().is_ipv4() { 4 + 2 } else { 32 + 2 };
    (labels == whole).then(|| address.addr())
}
