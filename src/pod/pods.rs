//! All pods: the handle the faces hold.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_cni::{Controller, EndpointOptions};
use futures::FutureExt;
use ipnetwork::IpNetwork;
use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;
use tracing::Instrument as _;

use super::error::Error;
use super::event::{Announcer, EventKind, PodEvent};
use super::lifecycle::{Lifecycle, Operation, PodStep};
use super::network::{self, PodCidrs};
use super::request::{Request, ask};
use super::runs::{Key, Run};
use super::sandbox;
use super::shared::Shared;
use super::snapshot::PodSnapshot;
use super::task;
use crate::cdi;
use crate::cgroup;
use crate::cni::Cni;
use crate::container::spec;
use crate::container::{
    self, CheckpointOptions, ContainerSnapshot, ContainerState, ExecOutput, Handler, Tools,
};
use crate::image::Images;
use crate::meter::{Recoveries, Stages, Writes};
use crate::progress::Board;
use crate::proto::berth::v1::{PodPhase, PodRecord};
use crate::proto::runtime::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use crate::shim::Launcher;
use crate::store::{self, Records};

/// What pods are made with.
#[derive(Debug)]
pub struct Options {
    /// Kept over a reboot: records, writable layers.
    pub root: PathBuf,
    /// Gone at reboot: namespaces, bundles, sockets.
    pub state: PathBuf,
    /// Starts shims.
    pub launcher: Launcher,
    /// Runtime handlers by name.
    pub handlers: Vec<Handler>,
    /// Name of the handler that "" means.
    pub default_handler: String,
    /// How cgroups are named.
    pub naming: cgroup::Naming,
    /// Facts of this machine.
    pub host: spec::Host,
    /// Built-in network that pods join.
    pub default_network: String,
    /// Times the steps.
    pub stages: Stages,
    /// Times the records.
    pub writes: Writes,
    /// Counts what is found amiss.
    pub recoveries: Recoveries,
    /// Shows what is under way.
    pub board: Board,
    /// Devices by name.
    pub devices: cdi::Registry,
    /// Whether and by what there are checkpoints.
    pub checkpoint: CheckpointOptions,
    /// Who is told of each step, if anybody can be.
    pub lifecycle: Option<Arc<dyn Lifecycle>>,
    /// Plugins that may attach them instead.
    pub cni: Cni,
}

/// All pods of this daemon. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pods {
    pub(super) shared: Arc<Shared>,
}

impl Pods {
    /// Opens the records. [`Pods::recover`] must run before the first call is served.
    ///
    /// # Errors
    /// [`Error::Record`] when the record directories can't be made.
    pub fn open(options: Options, images: Images, networks: Controller) -> Result<Self, Error> {
        let records = options.root.join("records");
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let tools = Tools {
            records: Records::open(records.join("containers"))?.watched(options.writes.clone(), "containers"),
            root: options.root,
            state: options.state,
            images,
            launcher: options.launcher,
            host: options.host,
            naming: options.naming,
            stages: options.stages,
            devices: options.devices,
            checkpoint: options.checkpoint,
        };
        let handlers = options.handlers.into_iter().map(|handler| (handler.name.clone(), Arc::new(handler)));
        let shared = Shared {
            tools: Arc::new(tools),
            networks,
            default_network: options.default_network,
            cni: options.cni,
            records: Records::open(records.join("pods"))
                .map_err(|error: store::Error| Error::Record(error))?
                .watched(options.writes, "pods"),
            boot_id: boot_id.trim().to_owned(),
            handlers: handlers.collect(),
            default_handler: options.default_handler,
            pods: RwLock::default(),
            containers: RwLock::default(),
            runs: Mutex::default(),
            events: Announcer::new(),
            lifecycle: options.lifecycle,
            recoveries: options.recoveries,
            board: options.board,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes a pod sandbox and returns its id. A call with the metadata of one under way joins it and gets its answer.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] names the sandbox that has the metadata; [`Error::NoHandler`], and whatever step failed:
    /// nothing of the sandbox is then left.
    pub async fn run_pod_sandbox(
        &self,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, Error> {
        let key = Key::new(config.metadata.as_ref().ok_or(Error::Missing("config.metadata"))?);
        let handler = self.shared.handler(&runtime_handler)?;
        let id = crate::id::generate()?;
        let config = Arc::new(config);
        let run = self.shared.runs.lock().join_or_begin(key.clone(), &config, &runtime_handler, || {
            let shared = Arc::clone(&self.shared);
            let record = PodRecord {
                id: id.clone(),
                config: Some((*config).clone()),
                runtime_handler: runtime_handler.clone(),
                created_at: container::now(),
                phase: PodPhase::PodCreating.into(),
                boot_id: shared.boot_id.clone(),
                ..Default::default()
            };
            let begun = {
                let (id, config) = (id.clone(), Arc::clone(&config));
                // A task of its own: the pod is made, or unmade, whole, though the caller goes away.
                let making = async move {
                    let made = sandbox::bring_up(&shared, record, config, handler).await;
                    // Held until the pod can be seen.
                    let operation = shared.begin();
                    let made = match made {
                        Ok(made) => told_of_run(&shared, operation.as_deref(), made).await,
                        failed => failed,
                    };
                    match made {
                        Ok(made) => {
                            let start = task::Start {
                                record: made.record,
                                surroundings: made.surroundings,
                                slots: Vec::new(),
                                left: false,
                            };
                            let handle = task::spawn(Arc::clone(&shared), start);
                            let snapshot = Arc::clone(&handle.snapshot.borrow());
                            // Before anybody can know of the pod: its events come before those of its containers.
                            shared.events.announce(&id, EventKind::Created, Arc::clone(&snapshot));
                            shared.events.announce(&id, EventKind::Started, snapshot);
                            shared.register(&id, handle);
                            Ok(id)
                        }
                        Err(error) => {
                            shared.runs.lock().free(&key, &id);
                            Err(Arc::new(error))
                        }
                    }
                };
                tokio::spawn(making.in_current_span())
            };
            let answer = async move { begun.await.unwrap_or_else(|_| Err(Arc::new(Error::ShuttingDown))) };
            Run::new(id.clone(), Arc::clone(&config), runtime_handler.clone(), answer.boxed().shared())
        })?;
        match run.answer.clone().await {
            Ok(id) => {
                run.delivered();
                Ok(id)
            }
            Err(error) => Err(Error::Joined(error)),
        }
    }

    /// Ends the pod's containers and takes its sandbox down. Success when there is no such pod.
    ///
    /// # Errors
    /// [`Error::Incomplete`] lists what could not be undone; [`container::Error::StillRuns`].
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        match self.shared.pod(id) {
            Some(handle) => gone_is_fine(ask(&handle, |reply| Request::StopPod { reply }).await),
            None => none_is_fine(self.shared.no_pod(id)),
        }
    }

    /// Removes the pod with all its containers, ending them first. Success when there is no such pod.
    ///
    /// # Errors
    /// As [`Pods::stop_pod_sandbox`].
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        match self.shared.pod(id) {
            Some(handle) => gone_is_fine(ask(&handle, |reply| Request::RemovePod { reply }).await),
            None => none_is_fine(self.shared.no_pod(id)),
        }
    }

    /// The pod of that id or unique prefix. Never waits.
    pub fn pod(&self, id: &str) -> Option<Arc<PodSnapshot>> {
        self.shared.pod(id).map(|handle| Arc::clone(&handle.snapshot.borrow()))
    }

    /// The same, or why there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Ambiguous`] when more than one begins so.
    pub fn find_pod(&self, id: &str) -> Result<Arc<PodSnapshot>, Error> {
        self.pod(id).ok_or_else(|| self.shared.no_pod(id))
    }

    /// All pods, by time of creation. Never waits.
    pub fn pods(&self) -> Vec<Arc<PodSnapshot>> {
        let mut pods: Vec<_> =
            self.shared.pods.read().values().map(|handle| Arc::clone(&handle.snapshot.borrow())).collect();
        pods.sort_by_key(|pod| pod.created_at);
        pods
    }

    /// Makes a container in the pod and returns its id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PodState`], [`Error::AlreadyExists`], or the step that failed.
    pub async fn create_container(&self, pod_id: &str, config: ContainerConfig) -> Result<String, Error> {
        if config.metadata.is_none() {
            return Err(Error::Missing("config.metadata"));
        }
        let handle = self.shared.pod(pod_id).ok_or_else(|| self.shared.no_pod(pod_id))?;
        let config = Box::new(config);
        ask(&handle, |reply| Request::Create { config, reply }).await.unwrap_or_else(|| Err(no_pod(pod_id)))
    }

    /// Runs the container's command.
    ///
    /// # Errors
    /// [`container::Error::CannotRun`] with the reason: the container has then ended.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let (id, handle) = self.shared.container(id).ok_or_else(|| self.shared.no_container(id))?;
        let error = no_container(&id);
        ask(&handle, |reply| Request::Start { id, reply }).await.unwrap_or(Err(error))
    }

    /// Asks the container to end and kills it when `grace` is over. Success when there is no such container.
    ///
    /// # Errors
    /// [`container::Error::StillRuns`] when it outlives SIGKILL.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        match self.shared.container(id) {
            Some((id, handle)) => {
                gone_is_fine(ask(&handle, |reply| Request::Stop { id, grace, reply }).await)
            }
            None => none_is_fine(self.shared.no_container(id)),
        }
    }

    /// Removes the container, ending it first. Success when there is no such container.
    ///
    /// # Errors
    /// What could not be removed; it can be tried again.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        match self.shared.container(id) {
            Some((id, handle)) => gone_is_fine(ask(&handle, |reply| Request::Remove { id, reply }).await),
            None => none_is_fine(self.shared.no_container(id)),
        }
    }

    /// The container of that id or unique prefix, and its pod. Never waits.
    pub fn container(&self, id: &str) -> Option<(Arc<PodSnapshot>, Arc<ContainerSnapshot>)> {
        let (id, handle) = self.shared.container(id)?;
        let pod = Arc::clone(&handle.snapshot.borrow());
        let container = pod.containers.iter().find(|container| container.id == id).cloned()?;
        Some((pod, container))
    }

    /// The same, or why there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Ambiguous`] when more than one begins so.
    pub fn find_container(&self, id: &str) -> Result<(Arc<PodSnapshot>, Arc<ContainerSnapshot>), Error> {
        self.container(id).ok_or_else(|| self.shared.no_container(id))
    }

    /// Runs a command in the container and returns what it printed. `None` sets no time limit.
    ///
    /// # Errors
    /// [`Error::ContainerState`] when it does not run; [`container::Error::ExecTimedOut`].
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        if command.is_empty() {
            return Err(Error::Missing("cmd"));
        }
        let (_, container) = self.find_container(id)?;
        let shim = running(&container, "ExecSync")?;
        let exec = crate::id::generate()?;
        Ok(container::exec_sync(&container, shim, exec, command, limit).await?)
    }

    /// Makes the container's log be written to its path anew. Does not wait for anything else that happens to it.
    ///
    /// # Errors
    /// [`Error::ContainerState`] when it does not run.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let (_, container) = self.find_container(id)?;
        let shim = running(&container, "ReopenContainerLog")?;
        shim.reopen_log().await.map_err(|error| Error::Container(error.into()))
    }

    /// Sends a signal to the running container's first process; SIGKILL to all of its processes. Does not wait for anything else
    /// that happens to it.
    ///
    /// # Errors
    /// [`Error::ContainerState`] when it does not run.
    pub async fn signal_container(&self, id: &str, signal: i32) -> Result<(), Error> {
        const CALL: &str = "Kill";
        let (_, container) = self.find_container(id)?;
        let shim = running(&container, CALL)?;
        match shim.kill("", signal, signal == libc::SIGKILL).await {
            // It ended meanwhile.
            Err(error) if error.is_gone() => Err(Error::ContainerState {
                id: container.id.clone(),
                state: "exited",
                call: CALL,
                needed: "running",
            }),
            sent => sent.map_err(|error| Error::Container(error.into())),
        }
    }

    /// Writes a checkpoint of the running container to `location`, an absolute path at which nothing is. The container runs on.
    /// `limit` is how long criu may take.
    ///
    /// # Errors
    /// [`Error::ContainerState`] when it does not run; [`container::CheckpointError`].
    pub async fn checkpoint_container(
        &self,
        id: &str,
        location: PathBuf,
        limit: Option<Duration>,
    ) -> Result<(), Error> {
        let (pod, container) = self.find_container(id)?;
        let shim = running(&container, "CheckpointContainer")?.clone();
        let handler = match pod.runtime_handler.as_str() {
            "" => &self.shared.default_handler,
            name => name,
        };
        let handler = self.shared.handlers.get(handler).cloned();
        let handler = handler.ok_or_else(|| self.shared.no_container(id))?;
        let subject = container::Subject { container, pod: Arc::clone(&pod.config), handler, shim };
        container::checkpoint(&self.shared.tools, subject, location, limit)
            .await
            .map_err(|error| Error::Container(error.into()))
    }

    /// Whether checkpoints can be made here. Asks criu, the first time.
    pub async fn checkpoint_state(&self) -> container::CheckpointState {
        self.shared.tools.checkpoint.state().await
    }

    /// Joins a running pod to one more network. An empty interface name in `options` is chosen.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::PodState`], [`Error::HostNetwork`], or what the network says.
    pub async fn connect_network(
        &self,
        id: &str,
        network: &str,
        options: EndpointOptions,
    ) -> Result<(), Error> {
        let handle = self.shared.pod(id).ok_or_else(|| self.shared.no_pod(id))?;
        let (network, options) = (network.to_owned(), Box::new(options));
        ask(&handle, |reply| Request::Connect { network, options, reply })
            .await
            .unwrap_or_else(|| Err(no_pod(id)))
    }

    /// Takes a running pod off a network. Its other networks don't notice.
    ///
    /// # Errors
    /// As [`Pods::connect_network`]; [`Error::NotConnected`].
    pub async fn disconnect_network(&self, id: &str, network: &str) -> Result<(), Error> {
        let handle = self.shared.pod(id).ok_or_else(|| self.shared.no_pod(id))?;
        let network = network.to_owned();
        ask(&handle, |reply| Request::Disconnect { network, reply }).await.unwrap_or_else(|| Err(no_pod(id)))
    }

    /// Makes the node's pod CIDRs the default network's subnets: pods that run keep their addresses, new ones get theirs there.
    ///
    /// # Errors
    /// [`Error::PodCidrs`]: they make no sense or overlap another network.
    pub async fn set_cidrs(&self, cidrs: Vec<IpNetwork>) -> Result<PodCidrs, Error> {
        network::set_cidrs(&self.shared, cidrs).await
    }

    /// The subnets pods get addresses from when they name no network and no plugin attaches them.
    pub fn subnets(&self) -> Vec<IpNetwork> {
        let Shared { networks, default_network, .. } = &*self.shared;
        let network = networks.network(default_network);
        network.iter().flat_map(|network| network.subnets()).map(|options| options.subnet).collect()
    }

    /// Ids of all pods that may own something, those being made or removed included.
    pub fn ids(&self) -> HashSet<String> {
        let mut ids: HashSet<_> = self.shared.pods.read().keys().cloned().collect();
        ids.extend(self.shared.runs.lock().ids().map(str::to_owned));
        ids
    }

    /// Whether pods can be connected; the reason when not.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn network_ready(&self) -> Result<(), String> {
        let Shared { networks, default_network, cni, .. } = &*self.shared;
        cni.ready()?;
        if networks.network(default_network).is_none() {
            return Err(format!(
                "the default network {default_network:?} does not exist: make it, or change network.default"
            ));
        }
        Ok(())
    }

    /// Changes the limits of a container, and what its record says of them. Fields that are not set stay as they are. One
    /// that does not run gets them when it starts.
    ///
    /// # Errors
    /// [`Error::NotFound`]; what the kernel refuses: the record then says what it said before.
    pub async fn update_container(&self, id: &str, resources: LinuxContainerResources) -> Result<(), Error> {
        self.change_container(id, resources, true).await
    }

    /// The same, of which nobody is told: those who would be want it themselves.
    ///
    /// # Errors
    /// As [`Pods::update_container`].
    pub async fn update_container_unasked(
        &self,
        id: &str,
        resources: LinuxContainerResources,
    ) -> Result<(), Error> {
        self.change_container(id, resources, false).await
    }

    async fn change_container(
        &self,
        id: &str,
        resources: LinuxContainerResources,
        tell: bool,
    ) -> Result<(), Error> {
        let (id, handle) = self.shared.container(id).ok_or_else(|| self.shared.no_container(id))?;
        let error = no_container(&id);
        let resources = Box::new(resources);
        ask(&handle, |reply| Request::Update { id, resources, tell, reply }).await.unwrap_or(Err(error))
    }

    /// Records new resources and overhead of a pod. Its cgroup is its caller's, who has changed it already.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Record`].
    pub async fn update_pod_sandbox(
        &self,
        id: &str,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Result<(), Error> {
        let handle = self.shared.pod(id).ok_or_else(|| self.shared.no_pod(id))?;
        let (overhead, resources) = (overhead.map(Box::new), resources.map(Box::new));
        ask(&handle, |reply| Request::UpdatePod { overhead, resources, reply })
            .await
            .unwrap_or_else(|| Err(no_pod(id)))
    }

    /// Events of all pods from now on. A receiver that falls too far behind gets an error in place of what it missed.
    pub fn events(&self) -> broadcast::Receiver<Arc<PodEvent>> {
        self.shared.events.subscribe()
    }
}

/// Tells of a sandbox that stands. One that is refused is unmade.
async fn told_of_run(
    shared: &Arc<Shared>,
    operation: Option<&dyn Operation>,
    made: sandbox::Sandbox,
) -> Result<sandbox::Sandbox, Error> {
    let Some(operation) = operation.filter(|operation| !operation.is_idle()) else { return Ok(made) };
    let pod = PodSnapshot::new(&made.record, &made.surroundings, true, Vec::new());
    let Err(refusal) = operation.pod(PodStep::Run, &pod).await else { return Ok(made) };
    // Those who were told before the one that refused.
    for step in [PodStep::Stop, PodStep::Remove] {
        if let Err(error) = operation.pod(step, &pod).await {
            tracing::warn!(pod = pod.id, %error, "telling of a pod's end");
        }
    }
    for left in sandbox::unmake(shared, &made.record).await {
        tracing::warn!(pod = pod.id, error = crate::error::chain(&left), "undoing a refused run");
    }
    Err(Error::Container(refusal.into()))
}

fn running<'a>(container: &'a ContainerSnapshot, call: &'static str) -> Result<&'a crate::shim::Shim, Error> {
    match (&container.state, &container.shim) {
        (ContainerState::Running { .. }, Some(shim)) => Ok(shim),
        (state, _) => Err(Error::ContainerState {
            id: container.id.clone(),
            state: match state {
                ContainerState::Created => "created",
                ContainerState::Exited { .. } => "exited",
                _ => "not running",
            },
            call,
            needed: "running",
        }),
    }
}

fn gone_is_fine(answer: Option<Result<(), Error>>) -> Result<(), Error> {
    answer.unwrap_or(Ok(()))
}

/// CRI: what is not there is stopped, and removed. What is there twice is neither.
fn none_is_fine(error: Error) -> Result<(), Error> {
    if matches!(error, Error::NotFound { .. }) { Ok(()) } else { Err(error) }
}

fn no_pod(id: &str) -> Error {
    Error::NotFound { what: "pod sandbox", id: id.to_owned() }
}

fn no_container(id: &str) -> Error {
    Error::NotFound { what: "container", id: id.to_owned() }
}
