//! How a plugin comes to be told: it registers, is configured, and is synchronized with what there is.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::connection::{Connection, Incoming, code};
use super::plugin::{ALL_EVENTS, Plugin, check_name};
use super::{JoinError, Shared, describe, others, wire};
use crate::container::ContainerState;
use crate::proto::nri::v1alpha1::{
    ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, PodSandbox,
    RegisterPluginRequest, SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};

/// The version of NRI whose protocol is spoken here, told to plugins.
const NRI_VERSION: &str = "v0.12.2";

/// Bytes of pods and containers in one piece of a synchronization: well below what a message can hold.
const PIECE: usize = wire::MAX_MESSAGE / 2;

/// What is known of a plugin before it registers.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Index and name of one that we launched: what it says of itself does not count.
    pub(super) name: Option<(String, String)>,
    pub(super) config: String,
    pub(super) process: Option<Child>,
}

/// Serves a plugin that connected by itself, until it goes away.
pub(super) async fn external(shared: Arc<Shared>, stream: UnixStream, place: OwnedSemaphorePermit) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    match join(&shared, stream, Known::default()).await {
        Ok((plugin, incoming)) => serve(&shared, &plugin, incoming).await,
        Err(error) => {
            tracing::error!(?pid, error = crate::error::chain(&error), "an NRI plugin could not join");
        }
    }
    drop(place);
}

/// Takes a plugin in. When it comes back, the plugin is told of all that happens.
pub(super) async fn join(
    shared: &Arc<Shared>,
    stream: UnixStream,
    known: Known,
) -> Result<(Arc<Plugin>, mpsc::Receiver<Incoming>), JoinError> {
    let (connection, mut incoming) = Connection::open(stream);
    let joined = take_in(shared, &connection, &mut incoming, known).await;
    match joined {
        Ok(plugin) => Ok((plugin, incoming)),
        Err(error) => {
            connection.close();
            Err(error)
        }
    }
}

async fn take_in(
    shared: &Arc<Shared>,
    connection: &Connection,
    incoming: &mut mpsc::Receiver<Incoming>,
    known: Known,
) -> Result<Arc<Plugin>, JoinError> {
    let limit = shared.options.registration_timeout;
    let registered = tokio::time::timeout(limit, registered(connection, incoming, known.name));
    let (index, base) = registered.await.map_err(|_| JoinError::Late(limit))??;
    let request = ConfigureRequest {
        config: known.config,
        runtime_name: "berth".to_owned(),
        runtime_version: shared.options.version.clone(),
        registration_timeout: millis(limit),
        request_timeout: millis(shared.options.request_timeout),
        nri_version: NRI_VERSION.to_owned(),
    };
    let answer: ConfigureResponse = connection
        .call("Configure", &request, shared.options.request_timeout)
        .await
        .map_err(|source| JoinError::Call { call: "Configure", source })?;
    let events = if answer.events == 0 { ALL_EVENTS } else { answer.events };
    if events & !ALL_EVENTS != 0 {
        return Err(JoinError::Events(events));
    }
    let plugin = Arc::new(Plugin {
        index,
        base,
        events,
        connection: connection.clone(),
        turn: Arc::default(),
        limit: shared.options.request_timeout,
        process: Mutex::new(known.process),
        old: AtomicBool::new(false),
    });
    match synchronize(shared, &plugin).await {
        Ok(updates) => {
            others::apply(shared, &plugin.name(), updates, Vec::new()).await;
            tracing::info!(plugin = plugin.name(), "NRI plugin joined");
            Ok(plugin)
        }
        Err(error) => {
            plugin.close();
            shared.plugins.remove(&plugin);
            Err(error)
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Waits for the plugin to register. The answer is its index and its name.
async fn registered(
    connection: &Connection,
    incoming: &mut mpsc::Receiver<Incoming>,
    known: Option<(String, String)>,
) -> Result<(String, String), JoinError> {
    let request = incoming.recv().await.ok_or(JoinError::Gone)?;
    if request.method != "RegisterPlugin" {
        let message = "register first".to_owned();
        connection.answer::<Empty>(&request, Err((code::FAILED_PRECONDITION, message))).await;
        return Err(JoinError::Order(request.method));
    }
    let asked = RegisterPluginRequest::decode(request.payload.as_slice());
    let asked = asked.map_err(|error| JoinError::Name(format!("its registration can't be read: {error}")))?;
    let name = known.unwrap_or((asked.plugin_idx, asked.plugin_name));
    let checked = check_name(&name.0, &name.1);
    let answer = checked.clone().map(|()| Empty {}).map_err(|reason| (code::INVALID_ARGUMENT, reason));
    connection.answer(&request, answer).await;
    checked.map_err(JoinError::Name)?;
    tracing::info!(
        plugin = format!("{}-{}", name.0, name.1),
        nri = asked.nri_version,
        "NRI plugin registered"
    );
    Ok(name)
}

// === Synchronization ===

/// Tells the plugin of all there is. It has its own turn meanwhile: whoever has something to tell it waits, and nobody else.
async fn synchronize(shared: &Arc<Shared>, plugin: &Arc<Plugin>) -> Result<Vec<ContainerUpdate>, JoinError> {
    // It may have to look at every container: more time than for one request, and less than somebody may have to wait.
    let limit = shared.options.registration_timeout.max(shared.options.request_timeout);
    let _turn = plugin.turn.lock().await;
    let past = shared.plugins.add(Arc::clone(plugin));
    if !shared.plugins.drained(&past, limit).await {
        tracing::warn!(
            plugin = plugin.name(),
            "operations that began before the NRI plugin came are still under way: it is not told of them"
        );
    }
    let (pods, containers) = everything(shared).await;
    let deadline = Instant::now() + limit;
    let mut pieces = pieces(pods, containers).into_iter().peekable();
    loop {
        let (pods, containers) = pieces.next().unwrap_or_default();
        let more = pieces.peek().is_some();
        let request = SynchronizeRequest { pods, containers, more };
        let left = deadline.saturating_duration_since(Instant::now());
        let answer: SynchronizeResponse = plugin
            .connection
            .call("Synchronize", &request, left)
            .await
            .map_err(|source| JoinError::Call { call: "Synchronize", source })?;
        if !more {
            return Ok(answer.update);
        }
        if !answer.more || !answer.update.is_empty() {
            return Err(JoinError::Pieces);
        }
    }
}

/// All pods, and all containers that have not ended.
async fn everything(shared: &Shared) -> (Vec<PodSandbox>, Vec<Container>) {
    let pods = shared.pods.get().map(|pods| pods.pods()).unwrap_or_default();
    let gathered = tokio::task::spawn_blocking(move || {
        let containers = pods.iter().flat_map(|pod| &pod.containers).filter(|container| {
            matches!(container.state, ContainerState::Created | ContainerState::Running { .. })
        });
        let containers = containers
            .map(|container| describe::container(container, describe::read_spec(&container.bundle).as_ref()));
        (pods.iter().map(|pod| describe::pod(pod)).collect(), containers.collect())
    });
    gathered.await.unwrap_or_default()
}

/// One call of Synchronize.
type Piece = (Vec<PodSandbox>, Vec<Container>);

/// Cuts what there is into pieces that fit into messages.
fn pieces(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = vec![Default::default()];
    let mut size = 0;
    let mut last = |length: usize| {
        size += length;
        let next = size > PIECE && size != length;
        if next {
            size = length;
        }
        next
    };
    for pod in pods {
        if last(pod.encoded_len()) {
            pieces.push(Default::default());
        }
        if let Some(piece) = pieces.last_mut() {
            piece.0.push(pod);
        }
    }
    for container in containers {
        if last(container.encoded_len()) {
            pieces.push(Default::default());
        }
        if let Some(piece) = pieces.last_mut() {
            piece.1.push(container);
        }
    }
    pieces
}

// === What a plugin asks ===

/// Answers the plugin's own requests, until it goes away.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    plugin: &Arc<Plugin>,
    mut incoming: mpsc::Receiver<Incoming>,
) {
    loop {
        let request = tokio::select! {
            request = incoming.recv() => request,
            () = plugin.connection.closed() => None,
        };
        let Some(request) = request else { break };
        let answer = match request.method.as_str() {
            "UpdateContainers" => update_containers(shared, plugin, &request).await,
            "RegisterPlugin" => Err((code::FAILED_PRECONDITION, "registered already".to_owned())),
            other => Err((code::UNIMPLEMENTED, format!("no method {other:?}"))),
        };
        plugin.connection.answer(&request, answer).await;
    }
    shared.plugins.remove(plugin);
    plugin.close();
    tracing::info!(plugin = plugin.name(), "NRI plugin gone");
}

async fn update_containers(
    shared: &Arc<Shared>,
    plugin: &Plugin,
    request: &Incoming,
) -> Result<UpdateContainersResponse, (i32, String)> {
    let request = UpdateContainersRequest::decode(request.payload.as_slice())
        .map_err(|error| (code::INVALID_ARGUMENT, error.to_string()))?;
    let failed = others::apply(shared, &plugin.name(), request.update, request.evict).await;
    Ok(UpdateContainersResponse { failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_goes_in_pieces() {
        let pod = |size: usize| PodSandbox { id: "x".repeat(size), ..Default::default() };
        let container = |size: usize| Container { id: "x".repeat(size), ..Default::default() };
        let counts = |pods, containers| {
            let pieces = pieces(pods, containers);
            pieces.iter().map(|(pods, containers)| (pods.len(), containers.len())).collect::<Vec<_>>()
        };
        assert_eq!(counts(vec![], vec![]), [(0, 0)]);
        assert_eq!(counts(vec![pod(9), pod(9)], vec![container(9)]), [(2, 1)]);
        let third = PIECE / 3;
        let pods = vec![pod(third), pod(third), pod(third)];
        assert_eq!(counts(pods, vec![container(third), container(third)]), [(2, 0), (1, 1), (0, 1)]);
        // One that is alone too large is not ours to cut.
        assert_eq!(counts(vec![pod(PIECE * 2)], vec![container(1)]), [(1, 0), (0, 1)]);
    }
}
