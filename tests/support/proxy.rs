//! A proxy before a real registry, which does to chosen requests what networks and load balancers do.
//!
//! One request a connection: it is read, decided upon, and passed on byte by byte, with its length, to the registry behind.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::read_head;
use super::netns::Netns;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Through,
    /// So many bytes of its body get through, then both connections are cut.
    Cut(u64),
    /// The proxy answers in the registry's place; it never hears of it.
    Answer(u16),
}

/// The proxy. Ends when dropped.
pub(crate) struct Proxy {
    pub(crate) host: String,
    requests: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens on a free port of `netns`' loopback, before `upstream` (`host:port`). `decide` is given `METHOD path` and how many
    /// requests of that method came before.
    pub(crate) fn start(
        netns: &Netns,
        upstream: &str,
        decide: impl Fn(&str, usize) -> Way + Send + Sync + 'static,
    ) -> Self {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::<String>::new()));
        let (flag, seen, netns, upstream) =
            (ended.clone(), requests.clone(), netns.clone(), upstream.to_owned());
        let decide = Arc::new(decide);
        std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let (seen, netns, upstream, decide) =
                    (seen.clone(), netns.clone(), upstream.clone(), decide.clone());
                std::thread::spawn(move || serve(client, &netns, &upstream, &seen, &*decide));
            }
        });
        Self { host, requests, ended }
    }

    /// How many requests began so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.starts_with(start)).count()
    }

    /// All of them.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn serve(
    client: TcpStream,
    netns: &Netns,
    upstream: &str,
    seen: &Mutex<Vec<String>>,
    decide: &(impl Fn(&str, usize) -> Way + ?Sized),
) {
    let _ = client.set_nonblocking(false);
    let Ok(mut answer) = client.try_clone() else { return };
    let mut reader = BufReader::new(client);
    let Ok((first, headers)) = read_head(&mut reader) else { return };
    let Some((request, _)) = first.rsplit_once(' ') else { return };
    let length: u64 = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let before = {
        let mut seen = seen.lock().unwrap();
        let method = request.split(' ').next().unwrap_or_default();
        let before = seen.iter().filter(|one| one.split(' ').next() == Some(method)).count();
        seen.push(request.to_owned());
        before
    };
    let way = decide(request, before);
    if let Way::Answer(status) = way {
        // All is taken: closing with bytes unread would reset the connection.
        let _ = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink());
        let head = format!("HTTP/1.1 {status} Test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let _ = answer.write_all(head.as_bytes());
        return;
    }
    let Ok(mut registry) = netns.run(|| TcpStream::connect(upstream)) else { return };
    let mut head = format!("{first}\r\n");
    for (name, value) in headers.iter().filter(|(name, _)| *name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    if registry.write_all(head.as_bytes()).is_err() {
        return;
    }
    let sent = if let Way::Cut(bytes) = way { bytes.min(length) } else { length };
    let _ = std::io::copy(&mut reader.by_ref().take(sent), &mut registry);
    if let Way::Cut(_) = way {
        let _ = registry.shutdown(Shutdown::Both);
        let _ = answer.shutdown(Shutdown::Both);
        return;
    }
    let _ = std::io::copy(&mut registry, &mut answer);
}
