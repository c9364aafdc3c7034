//! ttrpc frames by hand: for what a client library hides, and for being a server.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::{Message, MessageDyn};
use containerd_shim_protos::ttrpc::proto::{Request, Response};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
}

fn write(socket: &mut UnixStream, stream: u32, kind: u8, payload: &[u8]) {
    socket.write_all(&frame(stream, kind, payload)).unwrap();
}

fn read(socket: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let mut header = [0; 10];
    socket.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(0) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((word(4), payload))
}

/// A client.
pub(crate) struct Raw(UnixStream);

impl Raw {
    pub(crate) fn connect(socket: &Path) -> Self {
        let socket = UnixStream::connect(socket).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        Self(socket)
    }

    pub(crate) fn ask(&mut self, stream: u32, method: &str, message: &dyn MessageDyn) {
        self.ask_all(&[(stream, method, message)]);
    }

    /// Several calls in one piece.
    pub(crate) fn ask_all(&mut self, calls: &[(u32, &str, &dyn MessageDyn)]) {
        let frames = calls.iter().map(|(stream, method, message)| {
            let request = Request {
                service: "containerd.task.v3.Task".into(),
                method: (*method).into(),
                payload: message.write_to_bytes_dyn().unwrap(),
                ..Default::default()
            };
            frame(*stream, REQUEST, &request.write_to_bytes().unwrap())
        });
        self.0.write_all(&frames.collect::<Vec<_>>().concat()).unwrap();
    }

    /// The next answer, whatever it is to.
    pub(crate) fn answer(&mut self) -> (u32, Response) {
        let (stream, payload) = read(&mut self.0).expect("an answer");
        (stream, Response::parse_from_bytes(&payload).unwrap())
    }
}

/// A shim that answers as `answer` says, by the call's name; garbage where it says nothing.
pub(crate) fn answer_as(path: &Path, answer: impl Fn(&str) -> Option<Response> + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        while let Some((stream, payload)) = read(&mut socket) {
            let method = Request::parse_from_bytes(&payload).unwrap().method;
            let response =
                answer(&method).map_or(vec![0xff; 3], |response| response.write_to_bytes().unwrap());
            write(&mut socket, stream, RESPONSE, &response);
        }
    });
}

/// Takes events as containerd does, and gives their topics.
pub(crate) fn take_events(path: &Path) -> Receiver<String> {
    let listener = UnixListener::bind(path).unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        while let Some((stream, payload)) = read(&mut socket) {
            let request = Request::parse_from_bytes(&payload).unwrap();
            let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
            write(&mut socket, stream, RESPONSE, &[]);
            if sender.send(forward.envelope.topic.clone()).is_err() {
                return;
            }
        }
    });
    receiver
}
