//! Small clients of the streaming server: SPDY and WebSocket, for commands and for forwarded ports.
//!
//! Nothing is read ahead of the test: a test that does not read its [`Output`] is a slow client.

pub(crate) mod api_server;
pub(crate) mod forward;
pub(crate) mod session;
pub(crate) mod spdy;

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use url::Url;

use super::World;
use super::http::Answer as HttpAnswer;
use super::world::Answer;

#[allow(unused_imports, reason = "the benchmark opens no sessions")]
pub(crate) use forward::Forward;
#[allow(unused_imports, reason = "the benchmark opens no sessions")]
pub(crate) use session::{Session, Wire};

/// A connection, whatever it goes over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub(crate) type BoxIo = Box<dyn Io>;

/// Which streams a test asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// Output and errors.
pub(crate) const OUTPUT: Streams = Streams { stdin: false, stdout: true, stderr: true, tty: false };
/// Input, output and errors.
pub(crate) const ALL: Streams = Streams { stdin: true, ..OUTPUT };
/// A terminal with input.
pub(crate) const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

impl World {
    /// The URL of an Exec.
    pub(crate) async fn exec_url(&self, id: &str, command: &[&str], streams: Streams) -> Answer<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecRequest { container_id: id.to_owned(), cmd, stdin, stdout, stderr, tty };
        Ok(self.runtime().exec(request).await?.into_inner().url)
    }

    /// The URL of an Attach.
    pub(crate) async fn attach_url(&self, id: &str, streams: Streams) -> Answer<String> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = AttachRequest { container_id: id.to_owned(), stdin, stdout, stderr, tty };
        Ok(self.runtime().attach(request).await?.into_inner().url)
    }

    /// The URL of a PortForward.
    pub(crate) async fn forward_url(&self, pod: &str) -> Answer<String> {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: Vec::new() };
        Ok(self.runtime().port_forward(request).await?.into_inner().url)
    }

    /// A connection to the server of a URL, from the daemon's network namespace.
    pub(crate) fn dial(&self, url: &str) -> TcpStream {
        let url: Url = url.parse().unwrap();
        let address = url.socket_addrs(|| None).unwrap()[0];
        let stream = self.netns.run(|| std::net::TcpStream::connect(address)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    }
}

/// Asks for an upgrade to SPDY and returns the connection after the answer's head.
///
/// # Errors
/// The answer, when it is not 101.
pub(crate) async fn upgrade<I: Io + 'static>(
    mut io: I,
    url: &str,
    headers: &[(&str, &str)],
) -> Result<(BoxIo, BTreeMap<String, String>), HttpAnswer> {
    let url: Url = url.parse().unwrap();
    let mut head = format!("POST {} HTTP/1.1\r\nHost: {}\r\n", url.path(), url.authority());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    io.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if io.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    let (first, headers) = super::http::read_head(&mut &answer[..]).unwrap();
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    if status == 101 {
        return Ok((Box::new(io), headers));
    }
    let mut body = Vec::new();
    let _ = io.read_to_end(&mut body).await;
    Err(HttpAnswer { status, headers, body })
}

/// What an upgrade to SPDY says.
pub(crate) fn spdy_headers(protocol: &str) -> [(&str, &str); 3] {
    [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)]
}

/// What comes on one stream, in the pieces of the wire.
#[derive(Debug)]
pub(crate) struct Output(pub(crate) mpsc::Receiver<Bytes>);

impl Output {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Clients may be sent empty messages; they mean nothing.
            match self.0.recv().await {
                Some(data) if data.is_empty() => {}
                other => return other,
            }
        }
    }

    /// All that comes, until the end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.extend_from_slice(&data);
        }
        all
    }

    /// Reads until `text` has come, and returns all up to there and what came with it. Panics after 20 seconds.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        let waiting = async {
            while !all.contains(text) {
                let Some(data) = self.next().await else { panic!("the end came before {text:?}: {all:?}") };
                all.push_str(&String::from_utf8_lossy(&data));
            }
        };
        let waited = tokio::time::timeout(super::patience(20), waiting).await;
        assert!(waited.is_ok(), "{text:?} does not come: {all:?}");
        all
    }
}
