//! A machine in small: network namespace, registry, daemon, client, and the check for leaks at the end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AuthConfig, Container, ContainerConfig, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, Image as CriImage, ImageSpec,
    ImageStatusRequest, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxConfig, PodSandboxStatus, PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, VersionRequest,
};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::image::Image;
use super::leaks::{self, Traces};
use super::netns::Netns;
use super::registry::{Access, Registry};
use super::runtime::{Daemon, Options, Runtime};
use super::{container, http, spec};

static RUN_NAME: OnceLock<String> = OnceLock::new();
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Names the run and fills the registries' storage with the images that every world offers:
/// `test/{busybox,web,users,entry,signals,volume,pause}:1`.
pub(crate) fn prepare(run_name: &str) {
    RUN_NAME.set(run_name.to_owned()).expect("prepared once");
    let netns = Netns::new();
    let scratch = disk().join("prepare");
    std::fs::create_dir_all(&scratch).unwrap();
    let registry = Registry::start(&netns, 5000, &storage(), &scratch, &Access::default());
    let push = |name: &str, config| registry.push(&format!("test/{name}"), "1", &Image::busybox(config));
    push("busybox", json!({"Cmd": ["sh"]}));
    push("web", json!({"Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"], "ExposedPorts": {"80/tcp": {}}}));
    push("users", json!({"Cmd": ["id"], "User": "web"}));
    push(
        "entry",
        json!({"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"], "WorkingDir": "/work",
               "Env": ["PATH=/bin", "FROM=image", "KEEP=image"]}),
    );
    push("signals", json!({"Cmd": ["sh"], "StopSignal": "SIGUSR1"}));
    push("volume", json!({"Cmd": ["sh"], "Volumes": {"/data": {}}}));
    push("pause", json!({"Entrypoint": ["/bin/busybox", "sleep", "1000000000"]}));
}

fn disk() -> PathBuf {
    PathBuf::from("/var/tmp").join(RUN_NAME.get().expect("prepare() comes first"))
}

fn storage() -> PathBuf {
    disk().join("registry")
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) netns: Netns,
    pub(crate) registry: Registry,
    pub(crate) daemon: Daemon,
    /// On a disk: the daemon's root.
    pub(crate) disk: PathBuf,
    /// On a tmpfs: state, sockets, logs.
    pub(crate) run: PathBuf,
    /// Relative to each hierarchy, with a leading `/`.
    pub(crate) cgroup: String,
    channel: Channel,
    ids: Mutex<BTreeSet<String>>,
    addresses: Mutex<BTreeSet<String>>,
}

/// Result of a CRI call.
pub(crate) type Answer<T> = Result<T, Status>;

// === construction ===

impl World {
    /// A world with the daemon that the environment asks for, running.
    pub(crate) async fn start(options: &Options) -> Self {
        let mut world = Self::new(Runtime::from_environment(), options);
        world.daemon.spawn();
        world.ready().await;
        world
    }

    /// A world whose daemon is configured, but does not run.
    pub(crate) fn new(runtime: Runtime, options: &Options) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let run = PathBuf::from(format!("/run/world-{number}"));
        let disk = disk().join(format!("world-{number}"));
        std::fs::create_dir_all(&run).unwrap();
        std::fs::create_dir_all(&disk).unwrap();
        let cgroup = format!("/{}/world-{number}", RUN_NAME.get().unwrap());
        let netns = Netns::new();
        let registry = Registry::start(&netns, 5000, &storage(), &run, &Access::default());
        let daemon = Daemon::new(runtime, &netns, &disk, &run, &registry.host(), &cgroup, options);
        let channel = channel(&daemon);
        Self {
            netns,
            registry,
            daemon,
            disk,
            run,
            cgroup,
            channel,
            ids: Mutex::default(),
            addresses: Mutex::default(),
        }
    }

    /// Waits until the daemon answers, at most 20 seconds.
    pub(crate) async fn ready(&mut self) {
        let deadline = super::within(20);
        loop {
            self.channel = channel(&self.daemon);
            let call = self.runtime().version(VersionRequest::default()).await;
            let network = match &call {
                Ok(_) => self.network_is_ready().await,
                Err(_) => false,
            };
            if network {
                return;
            }
            if let Some(status) = self.daemon.ended() {
                panic!("the daemon ended with {status}:\n{}", self.daemon.log());
            }
            assert!(Instant::now() < deadline, "the daemon is not ready: {call:?}\n{}", self.daemon.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn network_is_ready(&self) -> bool {
        let Ok(status) = self.runtime().status(k8s_cri::v1::StatusRequest::default()).await else {
            return false;
        };
        let conditions = status.into_inner().status.unwrap_or_default().conditions;
        conditions.iter().any(|condition| condition.r#type == "NetworkReady" && condition.status)
    }

    /// SIGKILL, then a new daemon.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.daemon.kill();
        self.daemon.spawn();
        self.ready().await;
    }

    /// SIGTERM, then a new daemon.
    pub(crate) async fn restart(&mut self) {
        assert!(self.daemon.terminate(), "the daemon did not end at SIGTERM:\n{}", self.daemon.log());
        self.daemon.spawn();
        self.ready().await;
    }

    pub(crate) fn is_berth(&self) -> bool {
        self.daemon.runtime == Runtime::Berth
    }

    /// The client of the RuntimeService.
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    /// A client with a connection of its own: what it does not read holds up nobody else's calls.
    pub(crate) fn own_runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(channel(&self.daemon)).max_decoding_message_size(16 << 20)
    }

    /// For calls by hand.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The client of the ImageService.
    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }
}

fn channel(daemon: &Daemon) -> Channel {
    Endpoint::try_from(format!("unix:{}", daemon.socket.display())).unwrap().connect_lazy()
}

// === images ===

impl World {
    /// The reference of a prepared image.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/test/{name}:1", self.registry.host())
    }

    /// Pulls one of the prepared images and returns its reference.
    pub(crate) async fn image(&self, name: &str) -> String {
        let reference = self.reference(name);
        self.pull(&reference).await.unwrap_or_else(|status| panic!("pulling {reference}: {status:?}"));
        reference
    }

    pub(crate) async fn pull(&self, reference: &str) -> Answer<String> {
        self.pull_with(reference, None).await
    }

    pub(crate) async fn pull_with(&self, reference: &str, auth: Option<AuthConfig>) -> Answer<String> {
        let request = PullImageRequest {
            image: Some(image_spec(reference)),
            auth,
            sandbox_config: Some(spec::pod("p")),
        };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }

    pub(crate) async fn image_status(&self, reference: &str) -> Answer<Option<CriImage>> {
        let request = ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.images().image_status(request).await?.into_inner().image)
    }

    pub(crate) async fn list_images(&self) -> Answer<Vec<CriImage>> {
        Ok(self.images().list_images(ListImagesRequest::default()).await?.into_inner().images)
    }
}

/// An `ImageSpec` of just a reference.
pub(crate) fn image_spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.to_owned(), ..Default::default() }
}

// === pods ===

impl World {
    /// A pod's configuration with log directory (made) and cgroup parent in this world.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        let mut config = spec::pod(name);
        let uid = config.metadata.as_ref().unwrap().uid.clone();
        let logs = self.run.join("logs").join(&uid);
        std::fs::create_dir_all(&logs).unwrap();
        config.log_directory = logs.to_str().unwrap().to_owned();
        config.linux.as_mut().unwrap().cgroup_parent = format!("{}/pod-{uid}", self.cgroup);
        config
    }

    pub(crate) async fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        self.run_pod_with(config, "").await
    }

    pub(crate) async fn run_pod_with(&self, config: &PodSandboxConfig, handler: &str) -> Answer<String> {
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.ids.lock().unwrap().insert(id.clone());
        Ok(id)
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let status = self.runtime().pod_sandbox_status(request).await?.into_inner().status.unwrap();
        if let Some(network) = &status.network {
            // Pods on the host's network show the node's own address, if any: nothing of theirs.
            let mut addresses = self.addresses.lock().unwrap();
            addresses.extend(network.additional_ips.iter().map(|ip| ip.ip.clone()));
            addresses.insert(network.ip.clone());
            addresses.remove("");
        }
        Ok(status)
    }

    pub(crate) async fn list_pods(&self) -> Answer<Vec<PodSandbox>> {
        Ok(self.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items)
    }

    /// The pod's first address.
    pub(crate) async fn address(&self, id: &str) -> String {
        self.pod_status(id).await.unwrap().network.expect("a network status").ip
    }
}

// === containers ===

impl World {
    pub(crate) async fn create(
        &self,
        pod_id: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        let id = self.runtime().create_container(request).await?.into_inner().container_id;
        self.ids.lock().unwrap().insert(id.clone());
        Ok(id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Answer<()> {
        self.runtime().start_container(StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    /// Create and start.
    pub(crate) async fn launch(
        &self,
        pod_id: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Answer<String> {
        let id = self.create(pod_id, pod, config).await?;
        self.start_container(&id).await?;
        Ok(id)
    }

    /// A container of busybox that waits to be stopped.
    pub(crate) async fn sleeper(&self, pod_id: &str, pod: &PodSandboxConfig) -> String {
        let image = self.image("busybox").await;
        self.launch(pod_id, pod, &container("sleeper", &image, &["sleep", "100000"])).await.unwrap()
    }

    /// A pod with one sleeping container.
    pub(crate) async fn pod_with_sleeper(&self, name: &str) -> (String, String) {
        let config = self.pod(name);
        let pod_id = self.run_pod(&config).await.unwrap();
        let id = self.sleeper(&pod_id, &config).await;
        (pod_id, id)
    }

    /// Runs `script` in a pod of its own until it ends and returns its output and exit code.
    pub(crate) async fn output_of(
        &self,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> (String, ContainerStatus) {
        let pod_id = self.run_pod(pod).await.unwrap();
        let id = self.launch(&pod_id, pod, config).await.unwrap();
        let status = self.wait_exit(&id).await;
        (self.log_text(pod, config), status)
    }

    pub(crate) async fn stop_container(&self, id: &str, seconds: i64) -> Answer<()> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.runtime().stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Answer<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime().remove_container(request).await.map(drop)
    }

    pub(crate) async fn status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(self.runtime().container_status(request).await?.into_inner().status.unwrap())
    }

    pub(crate) async fn list_containers(&self) -> Answer<Vec<Container>> {
        Ok(self.runtime().list_containers(ListContainersRequest::default()).await?.into_inner().containers)
    }

    /// Waits until the container has ended, at most 30 seconds.
    pub(crate) async fn wait_exit(&self, id: &str) -> ContainerStatus {
        let deadline = super::within(30);
        loop {
            let status = self.status(id).await.unwrap();
            if status.state == i32::from(ContainerState::ContainerExited) {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Answer<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    /// Runs a shell line in a container; it must succeed. Returns what it printed, without the last line end.
    pub(crate) async fn sh(&self, id: &str, line: &str) -> String {
        let answer = self.exec_sync(id, &["sh", "-c", line], 30).await.unwrap();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.exit_code, 0, "{line}: {stderr}");
        String::from_utf8_lossy(&answer.stdout).trim_end().to_owned()
    }
}

// === logs ===

/// A line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) time: String,
    pub(crate) stream: String,
    pub(crate) full: bool,
    pub(crate) text: String,
}

/// Parses a log in the CRI's format; a malformed line is a failure.
pub(crate) fn parse_log(bytes: &[u8]) -> Vec<LogLine> {
    let text = String::from_utf8_lossy(bytes);
    assert!(text.is_empty() || text.ends_with('\n'), "the log ends in the middle of a line: {text:?}");
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let mut next =
                || parts.next().unwrap_or_else(|| panic!("malformed log line {line:?}")).to_owned();
            let (time, stream, tag, text) = (next(), next(), next(), next());
            assert!(stream == "stdout" || stream == "stderr", "stream in {line:?}");
            assert!(tag == "F" || tag == "P", "tag in {line:?}");
            LogLine { time, stream, full: tag == "F", text }
        })
        .collect()
}

impl World {
    /// The container's log, parsed.
    pub(crate) fn log(&self, pod: &PodSandboxConfig, config: &ContainerConfig) -> Vec<LogLine> {
        let path = PathBuf::from(&pod.log_directory).join(&config.log_path);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        parse_log(&bytes)
    }

    /// The container's output as it wrote it (the shim has written all when the container shows as ended).
    pub(crate) fn log_text(&self, pod: &PodSandboxConfig, config: &ContainerConfig) -> String {
        self.log(pod, config)
            .iter()
            .map(|line| if line.full { format!("{}\n", line.text) } else { line.text.clone() })
            .collect()
    }
}

// === network ===

impl World {
    /// GET from the world's network namespace, retried until something answers, at most 10 seconds.
    pub(crate) fn fetch(&self, address: &str) -> http::Answer {
        let address: SocketAddr = address.parse().unwrap();
        let deadline = super::within(10);
        loop {
            match self.netns.run(|| http::get(address, "/")) {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "GET {address}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

// === the end ===

impl World {
    /// Removes all pods, stops the daemon, and checks that nothing is left.
    pub(crate) async fn finish(mut self) {
        for container in self.list_containers().await.unwrap() {
            self.ids.lock().unwrap().insert(container.id);
        }
        for pod in self.list_pods().await.unwrap() {
            self.ids.lock().unwrap().insert(pod.id.clone());
            let _ = self.pod_status(&pod.id).await;
            self.stop_pod(&pod.id).await.unwrap();
            self.remove_pod(&pod.id).await.unwrap();
        }
        assert!(self.list_containers().await.unwrap().is_empty(), "containers without a pod");
        self.no_leaks();
        assert!(self.daemon.terminate(), "the daemon did not end at SIGTERM:\n{}", self.daemon.log());
        let log = self.daemon.log();
        assert!(!log.contains("panicked at"), "the daemon panicked:\n{log}");
    }

    /// Panics when something of a pod or container of this world is left. No pod may be there.
    pub(crate) fn no_leaks(&self) {
        let left = self.leaks(super::patience(10));
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }

    /// What is left of this world's pods after waiting at most `limit`.
    pub(crate) fn leaks(&self, limit: Duration) -> Vec<String> {
        let ids = self.ids.lock().unwrap().clone();
        let addresses = self.addresses.lock().unwrap().clone();
        let processes = [self.daemon.pid(), self.registry.pid()];
        Traces {
            netns: &self.netns,
            links: &["lo", "berth0", "cni0", "uplink", "berth1"],
            directories: &[&self.daemon.root, &self.daemon.state],
            processes: &processes,
            cgroup: &self.cgroup,
            ids: &ids,
            addresses: &addresses,
        }
        .wait_gone(limit)
    }

    /// Remembers an id made by a call that this world did not make itself.
    pub(crate) fn remember(&self, id: &str) {
        self.ids.lock().unwrap().insert(id.to_owned());
    }
}

impl Drop for World {
    /// After a failure: ends the daemon, every process in the world's cgroups, and what was mounted.
    fn drop(&mut self) {
        self.daemon.kill();
        for hierarchy in leaks::hierarchies() {
            let directory = hierarchy.join(self.cgroup.trim_start_matches('/'));
            kill_all(&directory);
            leaks::remove_cgroup(&directory);
        }
        let _ = std::fs::remove_dir_all(&self.disk);
    }
}

fn kill_all(cgroup: &std::path::Path) {
    for line in std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid) = line.parse::<i32>()
            && pid > 1
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
}

/// `NOT_FOUND` and the like, with the message in the failure.
pub(crate) fn assert_code<T: std::fmt::Debug>(answer: Answer<T>, code: Code) -> String {
    match answer {
        Err(status) if status.code() == code => status.message().to_owned(),
        other => panic!("expected {code:?}, got {other:?}"),
    }
}
