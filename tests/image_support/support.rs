//! What the image tests share: images made in memory, a real registry, and a server that misbehaves on demand.

#![allow(dead_code, missing_docs, unreachable_pub, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth::image::{Digest, Images, Options, PullRequest};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A directory that goes with the test.
pub fn root() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("berth-image-test-").tempdir_in("/run").unwrap()
}

pub fn options(root: &Path) -> Options {
    Options { progress_timeout: Duration::from_secs(10), ..Options::new(root) }
}

pub fn open(root: &Path) -> Images {
    Images::open(options(root)).unwrap()
}

pub fn request(reference: &str) -> PullRequest {
    PullRequest { reference: reference.to_owned(), ..PullRequest::default() }
}

/// Tar entries in raw form, so that hostile ones can be written too.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn raw(
        &mut self,
        kind: u8,
        name: &str,
        link: &str,
        mode: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> &mut Self {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(name.len() <= 100 && link.len() <= 100);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, format!("{:011o}\0", 1_000_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", device.0).as_bytes());
        put(337, format!("{:07o}\0", device.1).as_bytes());
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().div_ceil(512) * 512, 0);
        self
    }
    pub fn file(&mut self, name: &str, data: &[u8]) -> &mut Self {
        self.raw(b'0', name, "", 0o644, (0, 0), data)
    }
    pub fn dir(&mut self, name: &str, mode: u32) -> &mut Self {
        self.raw(b'5', name, "", mode, (0, 0), b"")
    }
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name, target, 0o777, (0, 0), b"")
    }
    pub fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name, target, 0o644, (0, 0), b"")
    }
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = 3 + key.len() + value.len();
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', "pax", "", 0o644, (0, 0), &data)
    }
    pub fn finish(&self) -> Vec<u8> {
        let mut all = self.0.clone();
        all.resize(all.len() + 1024, 0);
        all
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same at each run.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An image with everything a registry would be asked for.
#[derive(Clone, Debug)]
pub struct Made {
    pub blobs: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Made {
    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }
}

/// An image of these archives, each gzipped.
pub fn image(tars: &[Vec<u8>]) -> Made {
    packed(&tars.iter().map(|tar| (LAYER, gzip(tar), Digest::of(tar))).collect::<Vec<_>>())
}

/// An image of these layers: media type, content, diff id.
pub fn packed(layers: &[(&str, Vec<u8>, Digest)]) -> Made {
    made_for("amd64", layers)
}

pub fn made_for(architecture: &str, layers: &[(&str, Vec<u8>, Digest)]) -> Made {
    let diff_ids: Vec<String> = layers.iter().map(|(_, _, diff)| diff.to_string()).collect();
    let config = json!({"architecture": architecture, "os": "linux",
        "config": {"User": "1000:1000", "Cmd": ["/bin/sh"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(kind, blob, _)| json!({"mediaType": kind, "digest": Digest::of(blob), "size": blob.len()}))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": descriptors})
    .to_string()
    .into_bytes();
    Made { blobs: layers.iter().map(|(_, blob, _)| blob.clone()).collect(), config, manifest }
}

/// A simple layer with one file.
pub fn simple(name: &str, content: &[u8]) -> Vec<u8> {
    Tar::default().dir("etc/", 0o755).file(name, content).finish()
}

// === a real registry ===

/// docker-registry on a port of its own.
pub struct RealRegistry {
    child: Child,
    _directory: tempfile::TempDir,
    pub host: String,
    pub tls: bool,
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl RealRegistry {
    pub fn start(extra: &str) -> Self {
        Self::start_http(extra, "")
    }

    /// `extra` are further sections, `http` further lines of the http section.
    pub fn start_http(extra: &str, http: &str) -> Self {
        let directory = root();
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{extra}",
            directory.path().join("data").display()
        );
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Self { child, _directory: directory, host: format!("127.0.0.1:{port}"), tls: http.contains("tls") }
    }

    /// Puts an image in.
    pub async fn push(&self, path: &str, tag: &str, made: &Made, auth: Option<(&str, &str)>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
        let scheme = if self.tls { "https" } else { "http" };
        let base = format!("{scheme}://{}/v2/{path}", self.host);
        let with = |request: reqwest::RequestBuilder| match auth {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        for blob in made.blobs.iter().chain([&made.config]) {
            let response = with(client.post(format!("{base}/blobs/uploads/"))).send().await.unwrap();
            assert_eq!(response.status().as_u16(), 202);
            let location = response.headers()["location"].to_str().unwrap().to_owned();
            let mark = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{mark}digest={}", Digest::of(blob));
            let url = if url.starts_with('/') { format!("{scheme}://{}{url}", self.host) } else { url };
            let response = with(client.put(url).body(blob.clone())).send().await.unwrap();
            assert_eq!(response.status().as_u16(), 201);
        }
        let put = client.put(format!("{base}/manifests/{tag}")).header("content-type", MANIFEST);
        let response = with(put.body(made.manifest.clone())).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 201, "{}", response.text().await.unwrap());
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === a registry that misbehaves ===

/// A request as the server sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body, whatever its length says.
    pub cut: Option<usize>,
    /// Stop sending after so many bytes and keep the connection.
    pub hang: Option<usize>,
    /// Pause between pieces of so many bytes.
    pub drip: Option<(usize, Duration)>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, hang: None, drip: None }
    }
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Seen) -> Option<Answer> + Send + Sync;
type Content = HashMap<String, (String, Vec<u8>)>;

/// Serves images from memory; a handler may answer first.
pub struct Hostile {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    content: Arc<Mutex<Content>>,
    /// Connections that are open.
    pub open: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Hostile {
    pub async fn start(handler: impl Fn(&Seen) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let handler: Arc<Handler> = Arc::new(handler);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let content: Arc<Mutex<Content>> = Arc::default();
        let open = Arc::new(AtomicUsize::new(0));
        let task = {
            let (seen, content, open) = (Arc::clone(&seen), Arc::clone(&content), Arc::clone(&open));
            tokio::spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (handler, seen) = (Arc::clone(&handler), Arc::clone(&seen));
                    let (content, open) = (Arc::clone(&content), Arc::clone(&open));
                    connections.spawn(async move {
                        open.fetch_add(1, Ordering::SeqCst);
                        let _ = connection(stream, &handler, &seen, &content).await;
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            })
        };
        Self { host, seen, content, open, task }
    }

    pub fn put(&self, path: &str, tag: &str, made: &Made) {
        let mut content = self.content.lock();
        let mut add = |path: String, kind: &str, bytes: &[u8]| {
            content.insert(path, (kind.to_owned(), bytes.to_vec()));
        };
        for blob in made.blobs.iter().chain([&made.config]) {
            add(format!("/v2/{path}/blobs/{}", Digest::of(blob)), "application/octet-stream", blob);
        }
        for target in [tag.to_owned(), Digest::of(&made.manifest).to_string()] {
            add(format!("/v2/{path}/manifests/{target}"), MANIFEST, &made.manifest);
        }
    }

    pub fn put_manifest(&self, path: &str, target: &str, kind: &str, bytes: &[u8]) {
        for target in [target.to_owned(), Digest::of(bytes).to_string()] {
            let key = format!("/v2/{path}/manifests/{target}");
            self.content.lock().insert(key, (kind.to_owned(), bytes.to_vec()));
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// How often something was asked for whose path has this in it.
    pub fn count(&self, part: &str) -> usize {
        self.seen.lock().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(
    mut stream: TcpStream,
    handler: &Arc<Handler>,
    seen: &Mutex<Vec<Seen>>,
    content: &Mutex<Content>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await? {
                0 => return Ok(()),
                count => buffer.extend_from_slice(&piece[..count]),
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length: usize = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await? {
                0 => return Ok(()),
                count => buffer.extend_from_slice(&piece[..count]),
            }
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        let request = Seen {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        seen.lock().push(request.clone());
        let answer = handler(&request).unwrap_or_else(|| {
            let path = request.path.split('?').next().unwrap_or_default();
            match content.lock().get(path) {
                None => Answer::new(
                    404,
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ),
                Some((kind, bytes)) => {
                    let answer = ranged(&request, bytes).with("content-type", kind);
                    answer.with("docker-content-digest", &Digest::of(bytes).to_string())
                }
            }
        });
        if !send(&mut stream, &request, &answer).await? {
            return Ok(());
        }
    }
}

/// Content with ranges, as a good registry has it.
pub fn ranged(request: &Seen, bytes: &[u8]) -> Answer {
    let from = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="))
        .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
    match from {
        Some(from) if from < bytes.len() => Answer::new(206, &bytes[from..])
            .with("content-range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        _ => Answer::new(200, bytes),
    }
}

/// Sends; says whether the connection goes on.
async fn send(stream: &mut TcpStream, request: &Seen, answer: &Answer) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    if let Some(cut) = answer.cut {
        stream.write_all(&answer.body[..cut.min(answer.body.len())]).await?;
        stream.flush().await?;
        return Ok(false);
    }
    if let Some(hang) = answer.hang {
        stream.write_all(&answer.body[..hang.min(answer.body.len())]).await?;
        stream.flush().await?;
        // Until the client goes.
        let mut byte = [0];
        let _ = stream.read(&mut byte).await;
        return Ok(false);
    }
    if let Some((size, pause)) = answer.drip {
        for piece in answer.body.chunks(size) {
            stream.write_all(piece).await?;
            tokio::time::sleep(pause).await;
        }
        return Ok(true);
    }
    stream.write_all(&answer.body).await?;
    Ok(true)
}

/// The file system of an image's top layer.
pub async fn top(images: &Images, image: &berth::image::Image) -> PathBuf {
    images.lower_dirs(image).await.unwrap().remove(0)
}

/// Names of everything that is not a finished layer in the layers' directory, and of what is being taken in.
pub fn left_over(root: &Path) -> Vec<String> {
    let list = |path: PathBuf| {
        std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let mut names: Vec<String> =
        list(root.join("layers")).into_iter().filter(|name| name.starts_with('.')).collect();
    names.extend(list(root.join("images/ingest")));
    names
}

/// An error with all its causes, as the CRI's clients see it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
