//! An NRI plugin: what it is told is written down, what it answers the test decides.
//!
//! It speaks the protocol by itself, a message a frame, and shares no code with the daemon but the messages.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth::proto::nri::v1alpha1::{
    ConfigureRequest, ConfigureResponse, Container, Empty, PodSandbox, RegisterPluginRequest,
    SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse,
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;

/// Requests and responses of ttrpc.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// Fields that all events have in the same places.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "1")]
    pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "2")]
    container: Option<Container>,
}

/// How a request is answered.
pub(crate) enum Reply {
    /// With an empty message.
    Fine,
    /// With this one.
    With(Vec<u8>),
    /// With an error.
    Refuse(&'static str),
    /// Not at all.
    Never,
    /// As one that does not know the call.
    Unknown,
}

/// What the plugin was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) method: String,
    pub(crate) pod: PodSandbox,
    pub(crate) container: Container,
    pub(crate) payload: Vec<u8>,
}

type Handler = dyn Fn(&Told) -> Reply + Send + Sync;

#[derive(Default)]
struct State {
    told: Vec<Told>,
    answers: Vec<oneshot::Sender<Response>>,
    ended: bool,
}

/// A plugin that is connected.
pub(crate) struct Plugin {
    state: Arc<Mutex<State>>,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
}

impl Plugin {
    /// Connects, registers, and waits until it has been synchronized.
    pub(crate) async fn join(
        socket: &Path,
        index: &str,
        name: &str,
        handler: impl Fn(&Told) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let plugin = Self::connect(socket, index, name, handler).await;
        plugin.wait_for("Synchronize").await;
        // The answer is on its way; what the daemon does with it takes a moment.
        tokio::time::sleep(Duration::from_millis(100)).await;
        plugin
    }

    /// Connects and registers.
    pub(crate) async fn connect(
        socket: &Path,
        index: &str,
        name: &str,
        handler: impl Fn(&Told) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let deadline = super::within(10);
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Self::over(stream, index, name, handler).await
    }

    async fn over(
        stream: UnixStream,
        index: &str,
        name: &str,
        handler: impl Fn(&Told) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (read, write) = stream.into_split();
        let plugin = Self { state: Arc::default(), writer: Arc::new(tokio::sync::Mutex::new(write)) };
        let (state, writer) = (Arc::clone(&plugin.state), Arc::clone(&plugin.writer));
        let handler: Arc<Handler> = Arc::new(handler);
        tokio::spawn(async move {
            let _ = serve(read, &state, &writer, &handler).await;
            let mut state = state.lock().unwrap();
            state.ended = true;
            state.answers.clear();
        });
        let registration = RegisterPluginRequest {
            plugin_name: name.to_owned(),
            plugin_idx: index.to_owned(),
            nri_version: "test".to_owned(),
        };
        let _ = plugin.call::<_, Empty>("RegisterPlugin", &registration).await;
        plugin
    }

    /// Calls the runtime.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, String> {
        let (sender, answer) = oneshot::channel();
        // Calls are made one after the other here: answers come in that order.
        self.state.lock().unwrap().answers.push(sender);
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
        };
        send(&self.writer, RUNTIME, 1, 1, &request.encode_to_vec()).await.map_err(|e| e.to_string())?;
        let response = answer.await.map_err(|_| "the connection ended".to_owned())?;
        match response.status.filter(|status| status.code != 0) {
            Some(status) => Err(status.message),
            None => Ok(A::decode(response.payload.as_slice()).unwrap()),
        }
    }

    /// Asks for updates and evictions.
    pub(crate) async fn update(&self, request: UpdateContainersRequest) -> UpdateContainersResponse {
        self.call("UpdateContainers", &request).await.unwrap()
    }

    /// Sends bytes as they are.
    pub(crate) async fn send_raw(&self, bytes: &[u8]) {
        let _ = self.writer.lock().await.write_all(bytes).await;
    }

    /// All that it was told so far.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.state.lock().unwrap().told.clone()
    }

    /// Names of the calls that were about a pod or container with that id.
    pub(crate) fn calls_about(&self, id: &str) -> Vec<String> {
        let about =
            |told: &Told| told.container.id == id || (told.container.id.is_empty() && told.pod.id == id);
        self.told().iter().filter(|told| about(told)).map(|told| told.method.clone()).collect()
    }

    /// Waits until it is told, at most 15 seconds.
    pub(crate) async fn wait_for(&self, method: &str) -> Told {
        let deadline = super::within(15);
        loop {
            if let Some(told) = self.told().into_iter().find(|told| told.method == method) {
                return told;
            }
            assert!(Instant::now() < deadline, "not told of {method}: {:?}", self.told());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the runtime has ended the connection, at most 15 seconds.
    pub(crate) async fn wait_end(&self) {
        let deadline = super::within(15);
        while !self.state.lock().unwrap().ended {
            assert!(Instant::now() < deadline, "the connection does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Goes away.
    pub(crate) async fn leave(self) {
        let _ = self.writer.lock().await.shutdown().await;
        self.wait_end().await;
    }
}

async fn serve(
    mut read: OwnedReadHalf,
    state: &Mutex<State>,
    writer: &Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    handler: &Arc<Handler>,
) -> io::Result<()> {
    let mut partial = [Vec::new(), Vec::new()];
    loop {
        let connection = read.read_u32().await?;
        let mut frame = vec![0; read.read_u32().await?.try_into().unwrap()];
        read.read_exact(&mut frame).await?;
        let partial = &mut partial[usize::try_from(connection).unwrap() - 1];
        partial.append(&mut frame);
        while partial.len() >= 10 {
            let length = u32::from_be_bytes(partial[..4].try_into().unwrap());
            let length = usize::try_from(length).unwrap();
            if partial.len() < 10 + length {
                break;
            }
            let message: Vec<u8> = partial.drain(..10 + length).collect();
            let stream = u32::from_be_bytes(message[4..8].try_into().unwrap());
            let body = &message[10..];
            if connection == RUNTIME {
                let answer = state.lock().unwrap().answers.remove(0);
                let _ = answer.send(Response::decode(body).unwrap());
                continue;
            }
            let request = Request::decode(body).unwrap();
            let response = answer(request, state, handler);
            if let Some(response) = response {
                send(writer, PLUGIN, stream, 2, &response.encode_to_vec()).await?;
            }
        }
    }
}

fn answer(request: Request, state: &Mutex<State>, handler: &Arc<Handler>) -> Option<Response> {
    let event = match request.method.as_str() {
        "Configure" | "Synchronize" | "StateChange" => Event::default(),
        _ => Event::decode(request.payload.as_slice()).unwrap_or_default(),
    };
    let told = Told {
        method: request.method,
        pod: event.pod.unwrap_or_default(),
        container: event.container.unwrap_or_default(),
        payload: request.payload,
    };
    state.lock().unwrap().told.push(told.clone());
    let fine = match told.method.as_str() {
        // All pieces are taken.
        "Synchronize" => {
            let more = SynchronizeRequest::decode(told.payload.as_slice()).unwrap().more;
            SynchronizeResponse { more, ..Default::default() }.encode_to_vec()
        }
        _ => Vec::new(),
    };
    let refused = |code, message: &str| Status { code, message: message.to_owned() };
    let (status, payload) = match handler(&told) {
        Reply::Fine => (None, fine),
        Reply::With(payload) => (None, payload),
        Reply::Refuse(reason) => (Some(refused(2, reason)), Vec::new()),
        Reply::Unknown => (Some(refused(12, "unknown method")), Vec::new()),
        Reply::Never => return None,
    };
    Some(Response { status, payload })
}

async fn send(
    writer: &tokio::sync::Mutex<OwnedWriteHalf>,
    connection: u32,
    stream: u32,
    kind: u8,
    body: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&connection.to_be_bytes());
    bytes.extend_from_slice(&(length + 10).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&[kind, 0]);
    bytes.extend_from_slice(body);
    writer.lock().await.write_all(&bytes).await
}

/// A handler that is fine with everything.
pub(crate) fn agree(_: &Told) -> Reply {
    Reply::Fine
}

/// The answer to Configure that subscribes to these events, by number.
pub(crate) fn subscribe(events: &[i32]) -> Reply {
    let events = events.iter().fold(0, |mask, event| mask | 1 << (event - 1));
    Reply::With(ConfigureResponse { events }.encode_to_vec())
}

/// When this program was started as a plugin, acts as one and returns true: it writes the names of the calls into the file
/// that its configuration names, and ends when a pod is stopped.
pub(crate) fn launched() -> bool {
    if std::env::var_os("NRI_PLUGIN_SOCKET").is_none_or(|descriptor| descriptor != "0") {
        return false;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
        stream.set_nonblocking(true).unwrap();
        let stream = UnixStream::from_std(stream).unwrap();
        let (index, name) =
            (std::env::var("NRI_PLUGIN_IDX").unwrap(), std::env::var("NRI_PLUGIN_NAME").unwrap());
        let file = Mutex::new(None);
        let plugin = Plugin::over(stream, &index, &name, move |told| {
            use std::io::Write;
            let mut file = file.lock().unwrap();
            if told.method == "Configure" {
                let request = ConfigureRequest::decode(told.payload.as_slice()).unwrap();
                *file = std::fs::File::create(request.config.trim()).ok();
            }
            if let Some(file) = file.as_mut() {
                writeln!(file, "{}", told.method).unwrap();
            }
            Reply::Fine
        })
        .await;
        plugin.wait_for_long("StopPodSandbox").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    true
}

impl Plugin {
    async fn wait_for_long(&self, method: &str) {
        while !self.told().iter().any(|told| told.method == method) && !self.state.lock().unwrap().ended {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
