//! A whole connection against a client that writes frames by hand.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::frame::{self, kind};
use super::headers::tests::{Packer, raw};
use super::*;
use crate::streaming::link;

struct Peer {
    io: DuplexStream,
    packer: Packer,
    link: Link,
    streams: mpsc::Receiver<Stream>,
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Control(u16, Vec<u8>),
    Data(u32, bool, Vec<u8>),
    End,
}

impl Peer {
    fn new() -> Self {
        let (io, theirs) = tokio::io::duplex(1 << 20);
        let (link, streams) = serve(theirs, link::Peer::default(), Stuck::IsReset);
        Self { io, packer: Packer::new(), link, streams }
    }

    async fn control(&mut self, kind: u16, words: &[u32], tail: &[u8]) {
        self.io.write_all(&frame::control(kind, words, tail)).await.unwrap();
    }

    async fn open(&mut self, id: u32, streamtype: &str) {
        let block = self.packer.pack(&raw(&[("streamtype", streamtype)]));
        self.control(kind::SYN_STREAM, &[id, 0], &[&[0, 0][..], &block].concat()).await;
    }

    async fn data(&mut self, id: u32, fin: bool, data: &[u8]) {
        self.io.write_all(&frame::data_head(id, fin, data.len())).await.unwrap();
        self.io.write_all(data).await.unwrap();
    }

    async fn got(&mut self) -> Got {
        let mut head = [0; 8];
        if self.io.read_exact(&mut head).await.is_err() {
            return Got::End;
        }
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        match frame::Head::parse(head).unwrap() {
            frame::Head::Control { kind, .. } => Got::Control(kind, payload),
            frame::Head::Data { stream, fin, .. } => Got::Data(stream, fin, payload),
        }
    }

    async fn thrown_out(self) {
        tokio::time::timeout(Duration::from_secs(5), self.link.gone.cancelled()).await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_from_its_opening_to_its_end() {
    let mut peer = Peer::new();
    peer.open(1, "error").await;
    assert!(matches!(peer.got().await, Got::Control(kind::SYN_REPLY, _)));
    peer.open(3, "stdin").await;
    let Got::Control(kind::SYN_REPLY, reply) = peer.got().await else { panic!() };
    assert_eq!(reply[..4], 3u32.to_be_bytes());
    let error = peer.streams.recv().await.unwrap();
    let mut stdin = peer.streams.recv().await.unwrap();
    assert_eq!((error.id, error.headers.get("streamtype")), (1, "error"));
    peer.data(3, false, &vec![7; 100_000]).await;
    peer.data(3, true, b"end").await;
    let mut seen = Vec::new();
    while let Some(data) = stdin.input.recv().await {
        seen.extend_from_slice(&data);
    }
    assert_eq!((seen.len(), &seen[100_000..]), (100_003, &b"end"[..]));
    error.output.send("oops".into()).await.unwrap();
    error.output.finish().await;
    assert_eq!(peer.got().await, Got::Data(1, false, b"oops".to_vec()));
    assert_eq!(peer.got().await, Got::Data(1, true, Vec::new()));
    drop(stdin);
    assert!(matches!(peer.got().await, Got::Control(kind::RST_STREAM, _)));
    peer.control(kind::PING, &[9], &[]).await;
    assert_eq!(peer.got().await, Got::Control(kind::PING, 9u32.to_be_bytes().to_vec()));
}

/// Our header blocks are one zlib stream, as any SPDY client reads it.
#[tokio::test]
async fn replies_hold_no_header() {
    let mut peer = Peer::new();
    let mut expander = headers::Expander::new();
    for id in [1, 3, 5] {
        peer.open(id, "data").await;
        let Got::Control(kind::SYN_REPLY, reply) = peer.got().await else { panic!() };
        assert_eq!(expander.read(&reply[4..]).unwrap(), Headers::default());
    }
}

#[tokio::test]
async fn a_reset_is_seen_of_a_client_that_has_said_all() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let mut said_all = peer.streams.recv().await.unwrap();
    peer.data(1, true, b"bye").await;
    assert_eq!(said_all.input.recv().await.unwrap(), "bye");
    assert!(said_all.input.recv().await.is_none());
    assert!(!said_all.output.reset.is_cancelled());
    peer.open(3, "data").await;
    let not_read = peer.streams.recv().await.unwrap();
    drop(not_read.input);
    peer.data(3, false, b"nobody takes it").await;
    for (id, output) in [(1, said_all.output), (3, not_read.output)] {
        peer.control(kind::RST_STREAM, &[id, 5], &[]).await;
        tokio::time::timeout(Duration::from_secs(5), output.reset.cancelled()).await.unwrap();
    }
    assert!(!peer.link.gone.is_cancelled());
}

#[tokio::test]
async fn a_reset_is_seen() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let mut stream = peer.streams.recv().await.unwrap();
    peer.control(kind::RST_STREAM, &[1, 5], &[]).await;
    stream.output.reset.cancelled().await;
    assert!(stream.input.recv().await.is_none());
    assert!(stream.output.send("x".into()).await.is_err());
    // Data for a stream that is gone is not an error, and its place is free.
    peer.data(1, false, b"late").await;
    assert!(!peer.link.gone.is_cancelled());
}

#[tokio::test]
async fn streams_have_a_bound() {
    let mut peer = Peer::new();
    let mut held = Vec::new();
    for index in 0..=u32::try_from(STREAMS_MAX).unwrap() {
        peer.open(2 * index + 1, "data").await;
        if let Got::Control(kind::RST_STREAM, payload) = peer.got().await {
            assert_eq!(held.len(), STREAMS_MAX);
            assert_eq!(payload[4..], 3u32.to_be_bytes());
            return;
        }
        held.push(peer.streams.recv().await.unwrap());
    }
    panic!("no stream was refused");
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let frames: Vec<Vec<u8>> = vec![
        frame::control(99, &[1], &[]),
        frame::control(kind::PING, &[], &[]),
        frame::control(kind::SYN_STREAM, &[1], &[]),
        frame::control(kind::SYN_STREAM, &[1, 0], b"\0\0not compressed"),
        frame::control(kind::SYN_STREAM, &[2, 0], b"\0\0x"),
        frame::control(kind::RST_STREAM, &[], b"ab"),
        frame::control(kind::HEADERS, &[1], b"junk"),
        frame::data_head(0, false, 3).to_vec(),
        // Longer than any control frame may be; nothing of it needs to come.
        vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        b"\x80\x02\0\x01\0\0\0\0".to_vec(),
    ];
    for bytes in frames {
        let mut peer = Peer::new();
        peer.io.write_all(&bytes).await.unwrap();
        peer.thrown_out().await;
    }
}

#[tokio::test]
async fn stream_ids_grow() {
    let mut peer = Peer::new();
    peer.open(3, "data").await;
    peer.open(1, "data").await;
    peer.thrown_out().await;
}

#[tokio::test]
async fn a_client_that_stops_in_a_frame_is_let_go() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let _stream = peer.streams.recv().await.unwrap();
    peer.io.write_all(&frame::data_head(1, false, 100)).await.unwrap();
    peer.io.write_all(b"only so much").await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), peer.link.gone.cancelled()).await.unwrap();
}

#[tokio::test]
async fn random_bytes_do_no_harm() {
    let mut seed = 1u64;
    for _ in 0..200 {
        let mut peer = Peer::new();
        let mut bytes = vec![0u8; 400];
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = seed.to_be_bytes()[0];
        }
        // Half of them begin as control frames of the right version.
        if seed & 1 << 40 == 0 {
            let kind = bytes[3] % 10;
            bytes[..4].copy_from_slice(&[0x80, 3, 0, kind]);
        }
        let _ = peer.io.write_all(&bytes).await;
        let _ = peer.io.shutdown().await;
        tokio::time::timeout(Duration::from_secs(5), peer.link.gone.cancelled()).await.unwrap();
    }
}

/// There is no telling the client to hold back one stream: one that nobody reads is given up for the sake of others.
#[tokio::test]
async fn a_stuck_stream_is_reset_when_there_are_others() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    peer.open(3, "data").await;
    let stuck = peer.streams.recv().await.unwrap();
    let mut other = peer.streams.recv().await.unwrap();
    for _ in 0..12 {
        peer.data(1, false, &[0; 32 << 10]).await;
    }
    peer.data(3, false, b"after").await;
    assert_eq!(other.input.recv().await.unwrap(), "after");
    assert!(stuck.output.reset.is_cancelled());
    assert!(!peer.link.gone.is_cancelled());
    loop {
        match peer.got().await {
            Got::Control(kind::RST_STREAM, payload) => break assert_eq!(payload, [0, 0, 0, 1, 0, 0, 0, 7]),
            Got::Control(kind::SYN_REPLY, _) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The client may open a stream behind data that nobody takes.
#[tokio::test]
async fn a_stream_behind_a_stuck_one_is_seen() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let stuck = peer.streams.recv().await.unwrap();
    for _ in 0..9 {
        peer.data(1, false, &[0; 32 << 10]).await;
    }
    peer.open(3, "data").await;
    peer.data(3, false, b"seen").await;
    let mut other = peer.streams.recv().await.unwrap();
    assert_eq!(other.input.recv().await.unwrap(), "seen");
    // What it was given is with it still.
    assert!(!stuck.output.reset.is_cancelled());
    let mut input = stuck.input;
    let mut length = 0;
    while length < 9 * (32 << 10) {
        length += input.recv().await.unwrap().len();
    }
}

/// There may be others behind it, which can't be seen.
#[tokio::test]
async fn a_lone_stream_that_nobody_reads_is_given_up_in_the_end() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let stuck = peer.streams.recv().await.unwrap();
    let flooding = async {
        for _ in 0..12 {
            peer.data(1, false, &[0; 32 << 10]).await;
        }
        peer.open(3, "data").await;
        peer.streams.recv().await.unwrap()
    };
    assert_eq!(flooding.await.id, 3);
    assert!(stuck.output.reset.is_cancelled());
    assert!(!peer.link.gone.is_cancelled());
}

/// A lone stream waits: its reader may be slow.
#[tokio::test]
async fn a_lone_stream_waits_for_its_reader() {
    let mut peer = Peer::new();
    peer.open(1, "data").await;
    let mut slow = peer.streams.recv().await.unwrap();
    for _ in 0..12 {
        peer.data(1, false, &[0; 32 << 10]).await;
    }
    peer.data(1, true, b"end").await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    let mut length = 0;
    while let Some(data) = slow.input.recv().await {
        length += data.len();
    }
    assert_eq!(length, 12 * (32 << 10) + 3);
}
