//! Clients of the streaming server that break its protocols: they are thrown out, what they held is freed, and nobody else
//! notices.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::measure::anonymous;
use crate::support::runtime::Options;
use crate::support::streaming::spdy::{Spdy, block, control, syn_stream};
use crate::support::streaming::{ALL, BoxIo, OUTPUT, Session, Wire, spdy_headers, upgrade};
use crate::support::{World, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let mut list = trials![
        malformed_spdy,
        header_bombs,
        too_many_streams,
        malformed_websocket,
        malformed_requests,
        stopped_in_the_middle_of_a_frame,
    ];
    let options = Options { streaming: "idle_timeout = \"2s\"".to_owned(), ..Options::default() };
    list.extend(trials![options = options; streams_that_are_never_opened]);
    list
}

/// A connection upgraded to SPDY for a command that does not end.
async fn spdy(world: &World, id: &str) -> BoxIo {
    let url = world.exec_url(id, &["sleep", "4321"], OUTPUT).await.unwrap();
    upgrade(world.dial(&url), &url, &spdy_headers("v4.channel.k8s.io")).await.unwrap().0
}

/// The same with all its streams opened.
async fn session(world: &World, id: &str) -> Spdy {
    let mut spdy = Spdy::new(spdy(world, id).await);
    for kind in ["error", "stdout", "stderr"] {
        drop(spdy.open(&[("streamtype", kind)]).await);
    }
    spdy
}

async fn serves(world: &World, id: &str) {
    for wire in [Wire::SPDY, Wire::V5] {
        let ended = Session::exec(world, wire, id, &["echo", "fine"], OUTPUT).await.end().await;
        assert_eq!(ended.stdout, "fine\n");
    }
    super::streaming_exec::gone(world, id, "[s]leep 4321").await;
}

async fn closed(what: &str, closing: impl Future<Output = ()>) {
    let closing = tokio::time::timeout(crate::support::patience(15), closing).await;
    assert!(closing.is_ok(), "{what}: the connection stays");
}

async fn malformed_spdy(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("spdy").await;
    let opened = |id: u32| syn_stream(id, b"");
    let cases: [(&str, Vec<u8>); 12] = [
        ("another version", vec![0x80, 2, 0, 1, 0, 0, 0, 0]),
        ("an unknown control frame", control(77, b"")),
        ("a control frame of 16 MiB", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("data for stream 0", vec![0, 0, 0, 0, 0, 0, 0, 1, b'x']),
        ("a short SYN_STREAM", control(1, &[0, 0, 0, 7])),
        ("an even stream", opened(8)),
        ("a stream that was there", opened(1)),
        ("a stream of no headers", opened(9)),
        ("junk for headers", syn_stream(9, b"this is no zlib stream")),
        ("a unidirectional stream", {
            let mut frame = opened(9);
            frame[4] = 2;
            frame
        }),
        ("a short RST_STREAM", control(3, b"12")),
        ("a short PING", control(6, b"1")),
    ];
    for (what, bytes) in cases {
        let session = session(world, &id).await;
        session.raw(&bytes).await.unwrap();
        closed(what, session.closed()).await;
    }
    // What means nothing harms nobody.
    let session = session(world, &id).await;
    for harmless in [
        control(4, b"settings"),
        control(9, &[0; 8]),
        control(6, &[0, 0, 0, 1]),
        vec![0, 0, 0, 99, 1, 0, 0, 0],
    ] {
        session.raw(&harmless).await.unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_millis(500), session.closed()).await.is_err());
    drop(session);
    // Streams that nobody asked for.
    let mut session = Spdy::new(spdy(world, &id).await);
    drop(session.open(&[("streamtype", "stdin")]).await);
    closed("an unasked stream", session.closed()).await;
    serves(world, &id).await;
}

async fn header_bombs(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("bomb").await;
    serves(world, &id).await;
    let before = anonymous(world.daemon.pid());
    for _ in 0..20 {
        let mut session = session(world, &id).await;
        // 4 MiB of zeros in some KiB.
        let bomb = session.pack(&vec![0; 4 << 20]);
        assert!(bomb.len() < 64 << 10);
        session.raw(&syn_stream(99, &bomb)).await.unwrap();
        closed("a bomb", session.closed()).await;
        let mut session = self::session(world, &id).await;
        let many: Vec<_> = (0..100).map(|number| format!("name-{number}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "value")).collect();
        let packed = session.pack(&block(&many));
        session.raw(&syn_stream(99, &packed)).await.unwrap();
        closed("a hundred headers", session.closed()).await;
    }
    let after = anonymous(world.daemon.pid());
    assert!(after < before + (16 << 10), "{before} KiB before, {after} KiB after");
    serves(world, &id).await;
}

/// More streams than there may be: those are refused, and memory has a bound.
async fn too_many_streams(world: &mut World) {
    let (pod, id) = world.pod_with_sleeper("streams").await;
    let before = anonymous(world.daemon.pid());
    let mut forward = crate::support::streaming::Forward::open(world, &pod, false).await;
    let opening = async {
        for number in 0..10_000 {
            let request = number.to_string();
            let headers = [("streamtype", "data"), ("port", "4000"), ("requestID", request.as_str())];
            drop(forward.spdy.open(&headers).await);
        }
    };
    // Whether it takes them, refuses them, or ends the connection: it does not grow, and others are served.
    let _ = tokio::time::timeout(Duration::from_secs(20), opening).await;
    let after = anonymous(world.daemon.pid());
    assert!(after < before + (32 << 10), "{before} KiB before, {after} KiB after");
    serves(world, &id).await;
}

/// The bytes after the upgrade to WebSocket, by hand.
async fn websocket(world: &World, id: &str, protocol: &str) -> BoxIo {
    let url = world.exec_url(id, &["sh", "-c", "cat >/dev/null; sleep 4321"], ALL).await.unwrap();
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    upgrade(world.dial(&url), &url, &headers).await.unwrap().0
}

async fn malformed_websocket(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("websocket").await;
    // Of a client every frame is masked; a mask of zeros changes nothing.
    let frame = |first: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).unwrap();
        [&[first, 0x80 | length, 0, 0, 0, 0], data].concat()
    };
    let long = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    let cases: [(&str, &str, Vec<u8>); 9] = [
        ("an endless frame", "v5.channel.k8s.io", long(1 << 60)),
        ("a frame of a negative length", "v5.channel.k8s.io", long(u64::MAX)),
        ("a frame of 5 MiB", "v5.channel.k8s.io", [long(5 << 20), vec![0; 5 << 20]].concat()),
        ("a message of 5 MiB in pieces", "v5.channel.k8s.io", {
            let piece = |first| {
                [&[first, 0xff][..], &(1u64 << 20).to_be_bytes(), &[0; 4], &vec![0; 1 << 20]].concat()
            };
            [piece(0x02), piece(0), piece(0), piece(0), piece(0)].concat()
        }),
        ("a frame without a mask", "v5.channel.k8s.io", vec![0x82, 2, 0, b'x']),
        ("an unknown opcode", "v5.channel.k8s.io", frame(0x83, b"\0x")),
        ("a close of no channel", "v5.channel.k8s.io", frame(0x82, b"\xff")),
        ("a close of channel 99", "v5.channel.k8s.io", frame(0x82, b"\xff\x63")),
        ("no base64", "v4.base64.channel.k8s.io", frame(0x81, b"0!!!")),
    ];
    let before = anonymous(world.daemon.pid());
    for (what, protocol, bytes) in cases {
        let mut io = websocket(world, &id, protocol).await;
        // It need not take all.
        let _ = tokio::time::timeout(Duration::from_secs(2), io.write_all(&bytes)).await;
        let ending = async {
            let mut sink = Vec::new();
            let _ = io.read_to_end(&mut sink).await;
        };
        closed(what, ending).await;
    }
    // Channels that nobody reads, and empty messages, mean nothing.
    let mut io = websocket(world, &id, "v5.channel.k8s.io").await;
    for harmless in
        [frame(0x82, b""), frame(0x82, b"\x09nobody"), frame(0x89, b"ping"), frame(0x82, b"\x01out")]
    {
        io.write_all(&harmless).await.unwrap();
    }
    io.write_all(&frame(0x82, b"\0x")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(io);
    serves(world, &id).await;
    let after = anonymous(world.daemon.pid());
    assert!(after < before + (24 << 10), "{before} KiB before, {after} KiB after");
}

async fn malformed_requests(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("http").await;
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let long = "x".repeat(40 << 10);
    for request in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"),
        "\0\0\0\0".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "GET /exec/%00 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "GET //////// HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let mut io = world.dial(&url);
        let _ = io.write_all(request.as_bytes()).await;
        let ending = async {
            let mut answer = Vec::new();
            let _ = io.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{:?}", String::from_utf8_lossy(&answer));
        };
        // What is no request to the end is waited for, but not for long.
        let _ = tokio::time::timeout(Duration::from_secs(2), ending).await;
    }
    // WebSocket without a key, of another version.
    for headers in [
        &[("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")][..],
        &[
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "8"),
            ("Sec-WebSocket-Key", "x"),
        ],
        &[("Connection", "close"), ("Upgrade", "SPDY/3.1")],
        &[("Connection", "Upgrade")],
    ] {
        let url = world.exec_url(&id, &["sleep", "4321"], OUTPUT).await.unwrap();
        let answer = upgrade(world.dial(&url), &url, headers).await.err().expect("no upgrade");
        assert_eq!(answer.status, 400, "{headers:?}: {}", answer.text());
    }
    serves(world, &id).await;
}

/// Half a minute, and what waits for the rest of a frame is ended.
async fn stopped_in_the_middle_of_a_frame(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("half").await;
    let begin = Instant::now();
    let halves = [
        vec![0x80],
        vec![0x80, 3, 0, 1, 0, 0, 0, 40],
        [vec![0x80, 3, 0, 1, 0, 0, 0, 40], vec![0; 20]].concat(),
        vec![0, 0, 0, 1, 0, 0, 1, 0, b'x'],
    ];
    let ends = halves.into_iter().map(async |half| {
        let session = session(world, &id).await;
        session.raw(&half).await.unwrap();
        session.closed().await;
    });
    let waiting = tokio::time::timeout(crate::support::patience(50), futures::future::join_all(ends)).await;
    assert!(waiting.is_ok(), "they stay");
    assert!(begin.elapsed() > Duration::from_secs(15), "{:?}: slow clients need time", begin.elapsed());
    serves(world, &id).await;
}

/// A client that upgrades and then says nothing.
async fn streams_that_are_never_opened(world: &mut World) {
    let (pod, id) = world.pod_with_sleeper("silent").await;
    let mut ios = vec![spdy(world, &id).await];
    let url = world.forward_url(&pod).await.unwrap();
    ios.push(upgrade(world.dial(&url), &url, &spdy_headers("portforward.k8s.io")).await.unwrap().0);
    // Half a WebSocket frame is no traffic either.
    let mut half = websocket(world, &id, "v5.channel.k8s.io").await;
    half.write_all(&[0x82, 0xff, 0, 0]).await.unwrap();
    ios.push(half);
    let deadline = within(45);
    for mut io in ios {
        let mut sink = Vec::new();
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(tokio::time::timeout(left, io.read_to_end(&mut sink)).await.is_ok(), "it stays");
    }
    serves(world, &id).await;
}
