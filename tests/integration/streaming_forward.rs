//! Forwarded ports: the servers are threads of the test in the pod's network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_cri::v1::{NamespaceMode, PodSandboxConfig};
use libtest_mimic::Trial;
use nix::sched::{CloneFlags, setns};

use crate::support::spec::PodOptions;
use crate::support::streaming::Forward;
use crate::support::streaming::forward::Pipe;
use crate::support::{World, patience};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        both_families,
        on_the_hosts_network,
        refused_ports,
        many_connections,
        large_transfers,
        half_closed_connections,
        who_breaks_off_ends_the_connection,
        a_stuck_connection_does_not_hold_up_others,
        a_stuck_connection_does_not_hold_up_what_is_opened_behind_it,
        malformed_pairs,
    ]
}

/// Serves connections to `address`, each by `serve` on a thread of its own, in the pod's network namespace (`None`: the
/// daemon's). Ends with the test program.
pub(crate) fn server(
    world: &World,
    pod: Option<&str>,
    address: &str,
    serve: impl Fn(TcpStream) + Clone + Send + 'static,
) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = match pod {
        Some(pod) => {
            let path: PathBuf = world.daemon.state.join("pods").join(pod).join("ns/net");
            std::thread::spawn(move || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                TcpListener::bind(address).unwrap()
            })
            .join()
            .unwrap()
        }
        None => world.netns.run(|| TcpListener::bind(address)).unwrap(),
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// Sends back what comes.
pub(crate) fn echo(stream: TcpStream) {
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let _ = std::io::copy(&mut reader, &mut writer);
    let _ = writer.shutdown(Shutdown::Write);
}

/// Says hello, and how much came.
fn greet(name: &'static str) -> impl Fn(TcpStream) + Clone {
    move |mut stream: TcpStream| {
        stream.write_all(format!("hello from {name}\n").as_bytes()).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = stream.write_all(format!("{} bytes\n", all.len()).as_bytes());
    }
}

async fn greeted(mut pipe: Pipe, name: &str) {
    pipe.output.until(&format!("hello from {name}\n")).await;
    pipe.input.write(b"12345").await.unwrap();
    pipe.input.close().await;
    assert_eq!(pipe.output.rest().await, b"5 bytes\n");
    assert_eq!(String::from_utf8(pipe.error.rest().await).unwrap(), "");
}

async fn both_families(world: &mut World) {
    let pod = world.run_pod(&world.pod("families")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", greet("v4"));
    server(world, Some(&pod), "[::1]:6000", greet("v6"));
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        greeted(forward.connect(4000).await, "v4").await;
        greeted(forward.connect(6000).await, "v6").await;
        greeted(forward.connect(4000).await, "v4").await;
    }
}

async fn on_the_hosts_network(world: &mut World) {
    let mut config: PodSandboxConfig = world.pod("host");
    config.security().namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
    let pod = world.run_pod(&config).await.unwrap();
    // The daemon's own namespace is the host's.
    server(world, None, "127.0.0.1:4000", greet("host"));
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        greeted(forward.connect(4000).await, "host").await;
    }
}

async fn refused_ports(world: &mut World) {
    let pod = world.run_pod(&world.pod("refused")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", greet("v4"));
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        for _ in 0..3 {
            let mut pipe = forward.connect(4999).await;
            let message = String::from_utf8(pipe.error.rest().await).unwrap();
            assert!(message.contains("4999") && message.contains("refused"), "{message}");
            assert_eq!(pipe.output.rest().await, b"");
            // The connection is good for others.
            greeted(forward.connect(4000).await, "v4").await;
        }
    }
}

async fn many_connections(world: &mut World) {
    let pod = world.run_pod(&world.pod("many")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", echo);
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let mut pipes = Vec::new();
        for _ in 0..300 {
            pipes.push(forward.connect(4000).await);
        }
        // All are open; then each says something of its own.
        let talks = pipes.into_iter().enumerate().map(|(number, mut pipe)| async move {
            let said = format!("this is {number}.");
            pipe.input.write(said.as_bytes()).await.unwrap();
            assert_eq!(pipe.output.until(".").await, said);
            pipe.input.close().await;
            assert_eq!(pipe.output.rest().await, b"");
        });
        futures::future::join_all(talks).await;
    }
}

/// 24 MiB both ways at once over four connections, unharmed.
async fn large_transfers(world: &mut World) {
    const LENGTH: usize = 24 << 20;
    let pod = world.run_pod(&world.pod("large")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", echo);
    let data: Vec<u8> = (0..LENGTH).map(|index| (index % 253).to_le_bytes()[0]).collect();
    for tunnel in [false, true] {
        let begin = Instant::now();
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let mut pipes = Vec::new();
        for _ in 0..4 {
            pipes.push(forward.connect(4000).await);
        }
        let transfers = pipes.into_iter().map(|mut pipe| {
            let data = &data;
            async move {
                let sending = async {
                    pipe.input.write(data).await.unwrap();
                    pipe.input.close().await;
                };
                let ((), received) = tokio::join!(sending, pipe.output.rest());
                assert!(received == *data, "{} of {LENGTH} bytes came back, or others", received.len());
            }
        });
        futures::future::join_all(transfers).await;
        println!("tunnel {tunnel}: {} MiB both ways in {:?}", 4 * (LENGTH >> 20), begin.elapsed());
    }
}

async fn half_closed_connections(world: &mut World) {
    let pod = world.run_pod(&world.pod("half")).await.unwrap();
    // The server ends its direction at once and counts on.
    let (sender, counted) = std::sync::mpsc::channel();
    server(world, Some(&pod), "127.0.0.1:4000", move |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all.len()).unwrap();
    });
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let mut pipe = forward.connect(4000).await;
        assert_eq!(pipe.output.rest().await, b"");
        pipe.input.write(&[b'x'; 100_000]).await.unwrap();
        pipe.input.close().await;
        assert_eq!(counted.recv_timeout(Duration::from_secs(10)).unwrap(), 100_000);
        // A client that resets its stream ends the connection in the pod.
        drop(pipe);
        let pipe = forward.connect(4000).await;
        pipe.input.write(b"123").await.unwrap();
        pipe.input.reset().await;
        drop(pipe);
        assert!(counted.recv_timeout(Duration::from_secs(10)).unwrap() <= 3);
        // And so does one that goes.
        let pipe = forward.connect(4000).await;
        pipe.input.write(b"12345").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop((pipe, forward));
        assert_eq!(counted.recv_timeout(Duration::from_secs(10)).unwrap(), 5);
    }
}

/// A pod that sends without end and does not mind that its client has said all: it goes on until the client gives the stream up.
async fn who_breaks_off_ends_the_connection(world: &mut World) {
    let pod = world.run_pod(&world.pod("endless")).await.unwrap();
    let (sender, mut broken) = tokio::sync::mpsc::unbounded_channel();
    server(world, Some(&pod), "127.0.0.1:4000", move |mut stream| {
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
        sender.send(()).unwrap();
    });
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let mut pipe = forward.connect(4000).await;
        pipe.input.close().await;
        // More than lies in sockets and queues: it goes on after the client's end.
        let mut taken = 0;
        while taken < 8 << 20 {
            taken += pipe.output.next().await.unwrap().len();
        }
        pipe.input.reset().await;
        // The client reads on, as one that serves other connections does.
        let Pipe { input: _input, mut output, mut error } = pipe;
        let draining = tokio::spawn(async move { while output.next().await.is_some() {} });
        let ended = tokio::time::timeout(patience(20), async {
            assert_eq!(error.rest().await, b"");
            broken.recv().await.unwrap();
        });
        ended.await.expect("the error stream ends, and so does the pod's connection");
        draining.abort();
    }
}

/// A server that takes nothing, and a client that takes nothing: the other connections of the session go on.
async fn a_stuck_connection_does_not_hold_up_others(world: &mut World) {
    let pod = world.run_pod(&world.pod("stuck")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", echo);
    server(world, Some(&pod), "127.0.0.1:4001", |stream| {
        // Reads nothing, for longer than the test lasts.
        std::thread::sleep(Duration::from_secs(100));
        drop(stream);
    });
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let stuck = forward.connect(4001).await;
        // Before the flood: a connection that is opened behind it is only seen when it has passed.
        let mut pipe = forward.connect(4000).await;
        pipe.input.write(b"there").await.unwrap();
        pipe.output.until("there").await;
        let flooding = tokio::spawn({
            let input = stuck.input.clone();
            async move {
                for _ in 0..200 {
                    // 20 MiB: more than sockets and buffers hold.
                    input.write(&vec![b'x'; 100 << 10]).await.unwrap();
                }
            }
        });
        for round in 0..40 {
            let said = format!("round {round}.");
            pipe.input.write(said.as_bytes()).await.unwrap();
            pipe.output.until(&said).await;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        tokio::time::timeout(Duration::from_secs(60), flooding)
            .await
            .expect("it is taken or dropped")
            .unwrap();
        pipe.input.write(b"after.").await.unwrap();
        pipe.output.until("after.").await;
    }
}

/// A connection that nobody reads, alone in its session: what is opened behind its data is served, and none of it is lost.
async fn a_stuck_connection_does_not_hold_up_what_is_opened_behind_it(world: &mut World) {
    // More than sockets and a stream's own room hold, less than all that it can get.
    const LENGTH: usize = 12 << 20;
    let pod = world.run_pod(&world.pod("behind")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", echo);
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let (sender, counted) = std::sync::mpsc::channel();
    server(world, Some(&pod), "127.0.0.1:4001", move |mut stream| {
        let _ = gate.lock().unwrap().recv();
        let _ = sender.send(std::io::copy(&mut stream, &mut std::io::sink()).unwrap());
    });
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let stuck = forward.connect(4001).await;
        let flood = vec![b'x'; LENGTH];
        tokio::time::timeout(patience(60), stuck.input.write(&flood)).await.expect("it is read").unwrap();
        let mut pipe = forward.connect(4000).await;
        pipe.input.write(b"behind.").await.unwrap();
        assert_eq!(pipe.output.until("behind.").await, "behind.");
        go.send(()).unwrap();
        stuck.input.close().await;
        let count = tokio::task::block_in_place(|| counted.recv_timeout(patience(60)));
        assert_eq!(count.unwrap(), LENGTH as u64);
    }
}

async fn malformed_pairs(world: &mut World) {
    let pod = world.run_pod(&world.pod("pairs")).await.unwrap();
    server(world, Some(&pod), "127.0.0.1:4000", greet("v4"));
    let mut forward = Forward::open(world, &pod, false).await;
    for headers in [
        &[("streamtype", "data"), ("requestID", "a")][..],
        &[("streamtype", "data"), ("port", "0"), ("requestID", "b")],
        &[("streamtype", "data"), ("port", "70000"), ("requestID", "c")],
        &[("streamtype", "nonsense"), ("port", "4000"), ("requestID", "d")],
        &[],
    ] {
        let (_, mut output) = forward.spdy.open(headers).await;
        let said = output.rest().await;
        assert!(!said.is_empty(), "{headers:?}");
    }
    // Two of a kind: the second is refused, the first still waits for its other half.
    let headers = [("streamtype", "error"), ("port", "4000"), ("requestID", "twice")];
    let (_, mut first) = forward.spdy.open(&headers).await;
    let (_, mut second) = forward.spdy.open(&headers).await;
    assert!(!second.rest().await.is_empty());
    assert!(
        tokio::time::timeout(Duration::from_millis(200), first.next()).await.is_ok_and(|end| end.is_none())
    );
    greeted(forward.connect(4000).await, "v4").await;
    // As the first clients did it: no request ids, the data stream right after the error stream.
    let (input, error) = forward.spdy.open(&[("streamtype", "error"), ("port", "4000")]).await;
    input.close().await;
    let (input, output) = forward.spdy.open(&[("streamtype", "data"), ("port", "4000")]).await;
    greeted(Pipe { input, output, error }, "v4").await;
}
