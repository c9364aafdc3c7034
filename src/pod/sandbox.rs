//! Making and unmaking a pod's sandbox. Both can be cut off anywhere and taken up again.

use std::net::IpAddr;
use std::sync::Arc;

use super::error::Error;
use super::files::Directory;
use super::host_files::HostFiles;
use super::init;
use super::namespaces::{Namespaces, Plan};
use super::network;
use super::shared::Shared;
use crate::cgroup::Cgroup;
use crate::container::{self, Handler, Surroundings, spec};
use crate::meter::Stage;
use crate::proto::berth::v1::{PodPhase, PodRecord};
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::selinux::Labels;

/// A sandbox that stands.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) record: PodRecord,
    pub(super) surroundings: Arc<Surroundings>,
}

/// Makes the sandbox of `record`, which is written before anything else is. When a step fails, all before it is undone.
pub(super) async fn bring_up(
    shared: &Arc<Shared>,
    mut record: PodRecord,
    config: Arc<PodSandboxConfig>,
    handler: Arc<Handler>,
) -> Result<Sandbox, Error> {
    let plan = plan(&config)?;
    spec::check_user_namespace(&config, &shared.tools.host, &handler.options)
        .map_err(container::Error::Spec)?;
    let networks = network::plan(shared, &config)?;
    // A container is likely to follow at once.
    crate::cgroup::prime(shared.tools.host.cgroup);
    shared.records.put(&record.id, &record).await?;
    let id = record.id.clone();
    let making = make(shared, &mut record, &config, &handler, plan, networks);
    let made = shared.tools.stages.time(Stage::SandboxCreate, &id, making).await;
    let made = match made {
        Ok(()) => {
            record.phase = PodPhase::PodReady.into();
            shared.records.put(&record.id, &record).await.map_err(Error::Record)
        }
        failed => failed,
    };
    if let Err(error) = made {
        for left in unmake(shared, &record).await {
            tracing::warn!(pod = record.id, error = crate::error::chain(&left), "undoing a failed run");
        }
        return Err(error);
    }
    let surroundings = Arc::new(surroundings(shared, &record, config, handler));
    Ok(Sandbox { record, surroundings })
}

async fn make(
    shared: &Arc<Shared>,
    record: &mut PodRecord,
    config: &Arc<PodSandboxConfig>,
    handler: &Arc<Handler>,
    plan: Plan,
    networks: Option<network::Plan>,
) -> Result<(), Error> {
    let directory = Directory::new(&shared.tools.state, &record.id);
    let namespaces = Namespaces::new(directory.namespaces());
    let hostname = hostname(config);
    let labels = labels(shared, &record.id, config)?;
    let files = {
        let (directory, config, shm) = (directory.clone(), Arc::clone(config), plan.ipc);
        let labels = labels.clone();
        async move {
            tokio::task::spawn_blocking(move || directory.make(&config, &HostFiles::default(), shm, &labels))
                .await
                .map_err(|_| Error::ShuttingDown)?
        }
    };
    let making = namespaces.make(plan, shared.tools.launcher.program());
    let making = shared.tools.stages.time(Stage::SandboxCreateNamespaces, &record.id, making);
    let (files, made) = tokio::join!(files, making);
    files?;
    made?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let (Some(networks), Some(netns)) = (networks, namespaces.network()) {
        let attaching = network::attach(shared, config, &record.id, &netns, networks);
        addresses = shared.tools.stages.time(Stage::SandboxCreateNetwork, &record.id, attaching).await?;
    }
    record.addresses = addresses.iter().map(ToString::to_string).collect();
    let named = {
        let directory = directory.clone();
        let host = spec::host_network(config).then(HostFiles::default);
        tokio::task::spawn_blocking(move || directory.name(&hostname, &addresses, host.as_ref(), &labels))
    };
    named.await.map_err(|_| Error::ShuttingDown)??;
    if spec::shares_pid(config) {
        let user = namespaces.user();
        let program = shared.tools.launcher.program();
        record.init_pid = init::start(program, &namespaces.pid_path(), user.as_deref()).await?;
    }
    if handler.sandbox {
        let pod = surroundings(shared, record, Arc::clone(config), Arc::clone(handler));
        container::sandbox::start(&shared.tools, &pod).await?;
    }
    Ok(())
}

/// Ends what runs and frees what is shared: the network, the namespaces. The pod's record stays, for RemovePodSandbox.
/// Does all it can; returns what it could not. What is gone already is fine.
pub(super) async fn stop(shared: &Arc<Shared>, record: &PodRecord) -> Vec<Error> {
    let mut errors = Vec::new();
    let config = record.config.clone().unwrap_or_default();
    let container = container::sandbox::record(&shared.tools, &config, &record.id);
    errors.extend(container::sandbox::end(&shared.tools, &container).await.into_iter().map(Error::Container));
    let detaching = async {
        let left = network::detach(shared, &record.id).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    };
    let detached = shared.tools.stages.time(Stage::SandboxDeleteNetwork, &record.id, detaching).await;
    errors.extend(detached.err().into_iter().flatten());
    let directory = Directory::new(&shared.tools.state, &record.id);
    let init_pid = record.init_pid;
    let removed = tokio::task::spawn_blocking(move || {
        let namespaces = Namespaces::new(directory.namespaces());
        init::end(init_pid, &namespaces.pid_path());
        namespaces.remove()
    })
    .await;
    match removed {
        Ok(result) => errors.extend(result.map_err(Error::Namespace).err()),
        Err(_) => errors.push(Error::ShuttingDown),
    }
    errors
}

/// Stops the sandbox, then removes its directory and its record.
pub(super) async fn unmake(shared: &Arc<Shared>, record: &PodRecord) -> Vec<Error> {
    let mut errors = stop(shared, record).await;
    let directory = Directory::new(&shared.tools.state, &record.id);
    let cgroup = own_cgroup(shared, record);
    let removed = tokio::task::spawn_blocking(move || {
        if let Some(Err(error)) = cgroup.map(|cgroup| cgroup.remove()) {
            // It goes with the next sweep; the pod itself is gone.
            tracing::warn!(error = crate::error::chain(&error), "removing the pod's cgroup");
        }
        directory.remove()
    });
    match removed.await {
        Ok(result) => errors.extend(result.err()),
        Err(_) => errors.push(Error::ShuttingDown),
    }
    if errors.is_empty() {
        errors.extend(shared.records.remove(&record.id).await.map_err(Error::Record).err());
    }
    errors
}

/// The cgroup that the pod's containers are below, when it is Berth's to remove: a pod with a parent has its caller's.
fn own_cgroup(shared: &Shared, record: &PodRecord) -> Option<Cgroup> {
    let naming = &shared.tools.naming;
    let linux = record.config.as_ref().and_then(|config| config.linux.as_ref());
    let (parent, ours) = naming.pod(linux.map_or("", |linux| &linux.cgroup_parent), &record.id).ok()?;
    let path = naming.pod_path(&parent).ok().filter(|_| ours)?;
    Some(Cgroup::new(shared.tools.host.cgroup, &path))
}

/// What containers of the pod need to know of it.
pub(super) fn surroundings(
    shared: &Shared,
    record: &PodRecord,
    config: Arc<PodSandboxConfig>,
    handler: Arc<Handler>,
) -> Surroundings {
    let directory = Directory::new(&shared.tools.state, &record.id);
    let namespaces = Namespaces::new(directory.namespaces());
    Surroundings {
        pod_id: record.id.clone(),
        config,
        handler,
        user: namespaces.user(),
        network: namespaces.network(),
        ipc: namespaces.ipc(),
        uts: namespaces.uts(),
        pid: namespaces.pid(),
        hosts: Some(directory.hosts()),
        hostname: Some(directory.hostname()),
        resolv_conf: Some(directory.resolv_conf()),
        shm: Some(directory.shm()).filter(|path| path.exists()),
    }
}

/// The SELinux labels of what the pod's containers share.
fn labels(shared: &Shared, id: &str, config: &PodSandboxConfig) -> Result<Labels, Error> {
    let Some(host) = &shared.tools.host.selinux else { return Ok(Labels::default()) };
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = context.and_then(|context| context.selinux_options.as_ref());
    let labels = host.labels(id, asked, None, false).map_err(spec::Error::Label);
    Ok(labels.map_err(container::Error::Spec)?)
}

/// Whether the pod's namespaces still stand: not after a reboot.
pub(super) fn intact(shared: &Shared, record: &PodRecord, config: &PodSandboxConfig) -> bool {
    let directory = Directory::new(&shared.tools.state, &record.id);
    record.boot_id == shared.boot_id
        && plan(config).is_ok_and(|plan| Namespaces::new(directory.namespaces()).intact(&plan))
}

/// The namespaces the pod is to have. What it says nothing about is its own.
fn plan(config: &PodSandboxConfig) -> Result<Plan, Error> {
    let invalid = container::Error::Spec;
    let network = !spec::host_network(config);
    let name = hostname(config);
    spec::check_hostname(&name).map_err(invalid)?;
    spec::check_pod(config).map_err(invalid)?;
    Ok(Plan {
        user: spec::user_namespace(config).map_err(invalid)?,
        network,
        ipc: !spec::host_ipc(config),
        // On the host's network a pod has the host's name: what it is reached by.
        uts: network.then_some(name),
        sysctls: spec::sysctls(config).map_err(invalid)?,
    })
}

/// The pod's host name, the node's when it asks for none.
fn hostname(config: &PodSandboxConfig) -> String {
    let wanted = spec::hostname(config);
    if !wanted.is_empty() {
        return wanted;
    }
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}
