#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, Record, RecordType, rdata},
};

use super::{
    Directory, Named, Naming, Server, View, answer,
    cache::Cache,
    servers, upstream,
    wire::{self, Question, Received},
};

fn question(name: &str, kind: RecordType) -> Question {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    match wire::receive(&message.to_vec().unwrap()) {
        Received::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

/// xorshift64*: the same bytes every time.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Random bytes, and questions with some bytes changed, come to an answer or to nothing; never to a panic or an endless loop.
#[test]
fn any_bytes_are_taken() {
    let directory = Directory::default();
    let entry =
        Named { names: vec!["pod".into()], addresses: vec!["10.0.0.2".parse().unwrap()], ports: Vec::new() };
    directory.put("net", "owner", entry);
    let view = View {
        networks: vec!["net".into()],
        subnets: vec!["10.0.0.0/24".parse().unwrap()],
        ..View::default()
    };
    let seeds = [
        question("pod.net", RecordType::A).bytes,
        question("_http._tcp.pod", RecordType::SRV).bytes,
        question("2.0.0.10.in-addr.arpa", RecordType::PTR).bytes,
    ];
    let mut random = random();
    let (mut questions, mut answers) = (0, 0);
    for round in 0..100_000_usize {
        let mut bytes = match seeds.get(round % 4) {
            Some(seed) => seed.clone(),
            None => (0..random() % 80).map(|_| u8::try_from(random() >> 56).unwrap()).collect(),
        };
        for _ in 0..random() % 5 {
            let at = usize::try_from(random() >> 33).unwrap() % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = u8::try_from(random() >> 56).unwrap();
            }
        }
        bytes.truncate(bytes.len() - usize::try_from(random() % 3).unwrap().min(bytes.len()));
        match wire::receive(&bytes) {
            Received::Question(question) => {
                questions += 1;
                if let Some(reply) = answer::local(&directory, &view, &question) {
                    answers += 1;
                    let encoded = wire::encode(&reply, question.limit(false));
                    assert!(
                        !encoded.is_empty() && encoded.len() <= question.limit(false).max(bytes.len() + 64)
                    );
                }
                // The same bytes as an answer from upstream.
                wire::answers(&bytes, &question, 1);
            }
            Received::Refused(answer) => assert_eq!(answer.len(), 12),
            Received::Nothing => {}
        }
    }
    assert!(questions > 10_000 && answers > 1_000, "{questions} questions, {answers} answers");
}

fn upstream_answer(question: &Question, ttl: u32) -> Vec<u8> {
    let mut reply = question.reply(hickory_proto::op::ResponseCode::NoError);
    let name = reply.queries[0].name.clone();
    reply.add_answer(Record::from_rdata(name, ttl, RData::A(rdata::A("192.0.2.1".parse().unwrap()))));
    reply.to_vec().unwrap()
}

#[test]
fn answers_are_kept_as_long_as_they_hold_and_not_without_bound() {
    let (cache, now) = (Cache::default(), Instant::now());
    let asked_from = |netns: &str, server: &str, on_host: bool| View {
        upstream: Arc::from([Server { address: server.parse().unwrap(), on_host }]),
        netns: netns.into(),
        ..View::default()
    };
    let view = |netns: &str, server: &str| asked_from(netns, server, false);
    let upstream = view("one", "192.0.2.53");
    let other = view("one", "192.0.2.54");
    let asked = question("a.example", RecordType::A);
    cache.put(&upstream, &asked, &upstream_answer(&asked, 30), now);
    let later = cache.get(&upstream, &asked, now + Duration::from_secs(10)).unwrap();
    assert_eq!(later.answers[0].ttl, 20);
    assert!(cache.get(&upstream, &asked, now + Duration::from_secs(31)).is_none());
    assert!(cache.get(&other, &asked, now).is_none(), "other servers, other answers");
    assert!(cache.get(&upstream, &question("a.example", RecordType::AAAA), now).is_none());
    assert!(
        cache.get(&view("two", "192.0.2.53"), &asked, now).is_none(),
        "another sandbox, another way there"
    );
    cache.put(&asked_from("one", "127.0.0.53", true), &asked, &upstream_answer(&asked, 30), now);
    assert!(
        cache.get(&asked_from("two", "127.0.0.53", true), &asked, now).is_some(),
        "the host's own server"
    );
    assert!(cache.get(&view("two", "127.0.0.53"), &asked, now).is_none(), "a server of that address inside");
    cache.put(&view("one", "127.0.0.1"), &asked, &upstream_answer(&asked, 30), now);
    assert!(cache.get(&view("two", "127.0.0.1"), &asked, now).is_none(), "each sandbox has a loopback");
    for number in 0..5_000 {
        let asked = question(&format!("n{number}.example"), RecordType::A);
        cache.put(&upstream, &asked, &upstream_answer(&asked, 30), now);
    }
    assert_eq!(cache.len(), 2_048);
    assert!(cache.get(&upstream, &question("n4999.example", RecordType::A), now).is_some());
    assert!(cache.get(&upstream, &question("n0.example", RecordType::A), now).is_none());
}

#[test]
fn an_address_that_is_reused_leads_to_its_new_owner() {
    let directory = Directory::default();
    let entry = |name: &str| Named {
        names: vec![name.into()],
        addresses: vec!["10.0.0.2".parse().unwrap()],
        ports: Vec::new(),
    };
    let networks = ["net".to_owned()];
    let name = || directory.name_of(&networks, "10.0.0.2".parse().unwrap()).map(|(_, name)| name);
    directory.put("net", "old", entry("old"));
    directory.put("net", "new", entry("new"));
    assert_eq!(name().as_deref(), Some("new"));
    directory.remove("net", "old");
    assert_eq!(name().as_deref(), Some("new"));
    directory.remove("net", "new");
    assert_eq!(name(), None);
    assert!(directory.find(&networks, "new").is_none());
}

#[test]
fn servers_of_a_resolver_configuration() {
    let text = "# nameserver 192.0.2.9\nsearch a\n nameserver 192.0.2.1\nnameserver\tfd00::1 x\nnameserverx 192.0.2.2\n\
                nameserver fe80::1%eth0\nnameserver no\nnameserver";
    let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.0.2.1", "fd00::1"]);
}

#[test]
fn loopback_is_the_hosts_unless_servers_were_named_for_the_sandbox() {
    let servers = ["127.0.0.1", "::1", "0.0.0.0", "::ffff:127.0.0.11", "127.0.0.11", "192.0.2.53"];
    let asked = |own_upstream: bool, outside: bool, wanted: &[&str]| -> Vec<String> {
        let naming = Naming {
            upstream: wanted.iter().map(|server| server.parse().unwrap()).collect(),
            own_upstream,
            ..Naming::default()
        };
        let place = |server: &Server| if server.on_host { "host" } else { "inside" };
        upstream(&naming, outside)
            .iter()
            .map(|server| format!("{} {}", server.address, place(server)))
            .collect()
    };
    assert_eq!(asked(false, true, &servers), ["127.0.0.1 host", "::1 host", "0.0.0.0 host"]);
    assert_eq!(
        asked(false, true, &servers[3..]),
        ["127.0.0.11 host", "127.0.0.11 host", "192.0.2.53 inside"]
    );
    assert_eq!(asked(false, false, &servers), [""; 0], "nothing leaves, also not by the host");
    assert_eq!(asked(true, true, &servers), ["127.0.0.1 inside", "::1 inside", "0.0.0.0 inside"]);
    assert_eq!(asked(true, true, &servers[3..]), ["192.0.2.53 inside"], "never itself");
    assert_eq!(asked(true, false, &servers[2..]), ["0.0.0.0 inside"], "its own server leads nowhere");
}
