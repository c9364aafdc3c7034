//! A registry that misbehaves on request: an HTTP server whose every answer the test decides.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::read_head;
use super::image::Image;
use super::netns::Netns;

/// What came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// What goes out.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Status, headers, body.
    Full(u16, Vec<(String, String)>, Vec<u8>),
    /// Announces the whole body, sends so many bytes of it, closes.
    Cut(Vec<u8>, usize),
    /// Announces the whole body, sends so many bytes of it, then nothing.
    Stall(Vec<u8>, usize),
    /// Accepts, reads, never answers.
    Hang,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self::Full(status, Vec::new(), br#"{"errors":[{"code":"TEST","message":"as the test asks"}]}"#.into())
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server. Ends when dropped.
pub(crate) struct FaultRegistry {
    pub(crate) host: String,
    /// Every request so far: `METHOD path`.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl FaultRegistry {
    /// Listens on a free port of `netns`' loopback.
    pub(crate) fn start(netns: &Netns, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let (flag, seen) = (ended.clone(), requests.clone());
        std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (handler, flag, seen) = (handler.clone(), flag.clone(), seen.clone());
                        std::thread::spawn(move || serve(stream, &*handler, &flag, &seen));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { host, requests, ended }
    }

    /// How many requests matched.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn serve(stream: TcpStream, handler: &Handler, ended: &AtomicBool, seen: &Mutex<Vec<String>>) {
    let _ = stream.set_nonblocking(false);
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    let Ok((first, headers)) = read_head(&mut reader) else { return };
    let mut words = first.split(' ');
    let request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
        headers,
    };
    if request.method.is_empty() {
        return;
    }
    seen.lock().unwrap().push(format!("{} {}", request.method, request.path));
    // What is sent is taken: closing with bytes unread would reset the connection.
    let length = request.headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let _ = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink());
    let hang = || {
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let head = |status: u16, headers: &[(String, String)], length: usize| {
        let mut head = format!("HTTP/1.1 {status} Test\r\nConnection: close\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    };
    match handler(&request) {
        Reply::Full(status, headers, body) => {
            let _ = writer.write_all(head(status, &headers, body.len()).as_bytes());
            if request.method != "HEAD" {
                let _ = writer.write_all(&body);
            }
        }
        Reply::Cut(body, length) => {
            let _ = writer.write_all(head(200, &[], body.len()).as_bytes());
            let _ = writer.write_all(&body[..length]);
        }
        Reply::Stall(body, length) => {
            let _ = writer.write_all(head(200, &[], body.len()).as_bytes());
            let _ = writer.write_all(&body[..length]);
            hang();
        }
        Reply::Hang => hang(),
    }
}

/// Answers as a registry does that holds this one image, under every name and tag.
pub(crate) fn serve_image(image: &Image, request: &Request) -> Reply {
    let ok = |media_type: &str, digest: &str, bytes: &[u8]| {
        Reply::Full(
            200,
            vec![
                ("Content-Type".to_owned(), media_type.to_owned()),
                ("Docker-Content-Digest".to_owned(), digest.to_owned()),
            ],
            bytes.to_vec(),
        )
    };
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/v2/" || path == "/v2" {
        return ok("application/json", "", b"{}");
    }
    if path.contains("/manifests/") {
        let manifest = image.manifest();
        return ok(&manifest.media_type, &manifest.digest, &manifest.bytes);
    }
    if let Some((_, digest)) = path.split_once("/blobs/") {
        if let Some(blob) = image.blobs().into_iter().find(|blob| blob.digest == digest) {
            return ok("application/octet-stream", &blob.digest, &blob.bytes);
        }
        if let Some(blob) = image.layers_under(digest) {
            return ok("application/octet-stream", digest, &blob);
        }
    }
    Reply::status(404)
}
