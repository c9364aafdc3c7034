//! `berth run`: one container in a pod of its own, both of one name.
//!
//! ```text
//! image ── here or pulled ──> pod sandbox ──> container ──> started ──┬─ -d: its id is printed, the end
//!                                │               │             │      └─ until it ends ──> pod stopped (--rm: removed)
//!                                └───────────────┴─ failed: ───┴─> pod removed, exit 125, 126 or 127
//! ```

pub(crate) mod attend;
pub(crate) mod config;
pub(crate) mod log_dir;
pub(crate) mod marks;
pub(crate) mod settings;

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::berth::v1::{CreateVolumeRequest, PrepareVolumeRequest, RemoveVolumeRequest};
use berth::proto::runtime::v1::{CreateContainerRequest, Image, RunPodSandboxRequest, StartContainerRequest};
use clap::{Args, ValueEnum};

use crate::client::Client;
use crate::commands::attach;
use crate::commands::pull::{self, Source};
use crate::failure::{self, Answer, ExitCodeExt, Refusal};
use crate::names::{container_name, pod_name};
use crate::options::isolation::Isolation;
use crate::options::limits::Limits;
use crate::options::volume::Volume;
use crate::options::{duration, name};
use crate::output;
use crate::session::{Session, terminal};

/// Options of `run`.
#[derive(Debug, Default, Args)]
pub(crate) struct Run {
    /// Name of the container and its pod (else one is made up)
    #[arg(long)]
    pub name: Option<String>,
    /// Print the container's id and leave it running
    #[arg(short, long)]
    pub detach: bool,
    /// Remove pod, container and volumes without a name when it has ended
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Pass standard input on to it; with -d: keep it open for `berth attach`
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal; Ctrl-P Ctrl-Q leaves and lets it run on
    #[arg(short, long)]
    pub tty: bool,
    /// Publish a port on the host
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    pub publish: Vec<String>,
    /// Set a variable, or pass on one's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set variables from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Show a path of the host, or a volume by its name, in the container; without a source a volume of its own
    #[arg(short, long, value_name = "[SOURCE:]DESTINATION[:OPTIONS]")]
    pub volume: Vec<String>,
    /// Network to join, one for each use: a name, host, none, or name=NAME,ip=ADDRESS,… (else the default network)
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Runtime handler, one of those that `berth info` lists
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub runtime: String,
    #[command(flatten)]
    pub limits: Limits,
    /// User it runs as
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Directory it starts in
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// Host name (else the name)
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Parent of the pod's cgroups: a slice such as mine.slice with the systemd driver, a path such as /mine with cgroupfs (else
    /// what the daemon's `cgroup.root` says)
    #[arg(long, value_name = "PARENT")]
    pub cgroup_parent: Option<String>,
    /// Execute this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// All capabilities and devices, no confinement
    #[arg(long)]
    pub privileged: bool,
    /// Root file system can't be written to
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    #[command(flatten)]
    pub isolation: Isolation,
    /// Name server to ask (else the host's)
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// Domain that short names are looked for in
    #[arg(long, value_name = "DOMAIN", requires = "dns")]
    pub dns_search: Vec<String>,
    /// Option of the resolver, as in ndots:2
    #[arg(long, value_name = "OPTION", requires = "dns")]
    pub dns_option: Vec<String>,
    /// Signal that asks it to end, instead of the image's, as in QUIT
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Put a label on pod and container
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Put an annotation on the pod
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub annotation: Vec<String>,
    /// Pull the image
    #[arg(long, value_enum, default_value_t)]
    pub pull: Policy,
    /// Show no progress of the pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Directory for logs, in which each pod gets one of its own
    #[arg(long, env = "BERTH_LOG_DIR", value_name = "DIRECTORY", default_value = log_dir::DEFAULT)]
    pub log_dir: PathBuf,
    /// How long it has to end by itself after Ctrl-C
    #[arg(long, value_name = "TIME", default_value = "10")]
    pub stop_timeout: String,
    #[command(flatten)]
    pub source: Source,
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The command and its arguments, instead of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// When to pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// When it is not here
    #[default]
    Missing,
    /// In any case
    Always,
    /// Not at all
    Never,
}

/// What is running now.
#[derive(Debug)]
pub(crate) struct Launched {
    pub name: String,
    pub pod_id: String,
    pub container_id: String,
    pub log_directory: PathBuf,
    /// Volumes that were made for it alone.
    pub volumes: Vec<String>,
    /// We at its streams, with `-i`.
    pub session: Option<(Session, attach::Made)>,
}

impl Run {
    /// Runs it. All that fails before its command runs exits with 125 to 127, so that scripts can tell it from codes of
    /// the command.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let (mut client, mut signals, mut launched) = self.launch(address).await.or_exit(failure::DAEMON)?;
        if self.detach {
            output::print_line(&launched.container_id)?;
            return Ok(0);
        }
        let grace = duration::parse(&self.stop_timeout)?;
        let outcome = attend::until_ended(&mut client, &mut launched, grace, &mut signals).await;
        let tidied = match (&outcome, self.rm) {
            (Ok(attend::Ending::Left), _) => Ok(()),
            (_, true) => remove(&mut client, &launched).await,
            // It ended: its network and ports are free again, its log stays.
            (Ok(_), false) => client.stop_pod(&launched.pod_id).await,
            // Nobody watches any more, it runs on.
            (Err(_), false) => Ok(()),
        };
        if let Err(error) = tidied {
            failure::say(&format!("tidying up after {}: {error:#}", launched.name));
        }
        match outcome.or_exit(failure::DAEMON)? {
            attend::Ending::Exited(code) => Ok(code),
            attend::Ending::Left => Ok(0),
        }
    }

    async fn launch(&self, address: &str) -> Result<(Client, attend::Signals, Launched)> {
        if self.interactive && self.tty && !self.detach {
            terminal::check()?;
        }
        duration::parse(&self.stop_timeout).context("--stop-timeout")?;
        let mut settings = settings::Settings::read(self)?;
        let mut client = Client::connect(address).await?;
        let image = self.image(&mut client).await?;
        let name = self.name(&mut client).await?;
        let identity = config::Identity::new(name, &self.log_dir, image)?;
        let made = self.prepare(&mut client, &mut settings, &identity).await;
        if made.is_err() {
            log_dir::remove(&identity.log_directory);
            remove_volumes(&mut client, &marks::volumes(&settings.annotations)).await;
        }
        let (signals, launched) = made?;
        Ok((client, signals, launched))
    }

    /// Volumes, log and then the thing itself. What was made when this fails is for the caller to remove.
    async fn prepare(
        &self,
        client: &mut Client,
        settings: &mut settings::Settings,
        identity: &config::Identity,
    ) -> Result<(attend::Signals, Launched)> {
        volumes(client, identity, settings).await?;
        let mut signals = attend::Signals::listen()?;
        log_dir::create(&identity.log_directory)?;
        let launched = signals.unless_twice(&identity.name, self.create(client, settings, identity)).await?;
        Ok((signals, launched))
    }

    /// The image, pulled where it has to be.
    async fn image(&self, client: &mut Client) -> Result<Image> {
        if self.pull != Policy::Always {
            if let Some(image) = client.image(&self.image).await? {
                return Ok(image);
            }
            if self.pull == Policy::Never {
                bail!("image {} is not here, and --pull never says to leave it at that", self.image);
            }
        }
        pull::fetch(
            client,
            &self.image,
            self.source.auth(&self.image).await?,
            self.source.platform(),
            self.quiet,
        )
        .await
    }

    /// A name that nothing else has.
    async fn name(&self, client: &mut Client) -> Result<String> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let taken = |name: &str| {
            pods.iter().any(|pod| pod_name(pod) == name)
                || containers.iter().any(|container| container_name(container) == name)
        };
        match &self.name {
            None => Ok(name::generate(
                getrandom::u32().map_err(|error| anyhow!("making up a name: {error}"))?,
                taken,
            )),
            Some(name) if taken(name) => {
                bail!("the name {name} is taken: `berth rm {name}` first, or choose another one")
            }
            Some(name) => Ok(name.clone()),
        }
    }

    /// Makes pod and container and starts it. Leaves nothing when one of the steps fails.
    async fn create(
        &self,
        client: &mut Client,
        settings: &settings::Settings,
        identity: &config::Identity,
    ) -> Result<Launched> {
        let name = identity.name.clone();
        let (pod, container) =
            (config::pod(self, settings, identity), config::container(self, settings, identity));
        let request =
            RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: self.runtime.clone() };
        let made = client.runtime.run_pod_sandbox(request).await.answer();
        let pod_id = made.with_context(|| format!("making pod {name}"))?.pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.clone(),
            config: Some(container),
            sandbox_config: Some(pod),
        };
        let log_directory = identity.log_directory.clone();
        let volumes = marks::volumes(&settings.annotations);
        let mut launched =
            Launched { name, pod_id, container_id: String::new(), log_directory, volumes, session: None };
        let started = match client.runtime.create_container(request).await.answer() {
            Err(refusal) => Err(failed_start(refusal, &launched.name)),
            Ok(response) => {
                launched.container_id = response.container_id;
                self.start(client, &mut launched).await
            }
        };
        match started {
            Ok(()) => Ok(launched),
            Err(error) => {
                if let Err(error) = remove(client, &launched).await {
                    failure::say(&format!("tidying up after {}: {error:#}", launched.name));
                }
                Err(error)
            }
        }
    }

    /// Starts the container; attached before, so that nothing that it prints is missed.
    async fn start(&self, client: &mut Client, launched: &mut Launched) -> Result<()> {
        if self.interactive && !self.detach {
            let made = attach::Made { stdin: true, tty: self.tty };
            let session = attach::open(client, &launched.container_id, made).await;
            launched.session =
                Some((session.with_context(|| format!("attaching to {}", launched.name))?, made));
        }
        let request = StartContainerRequest { container_id: launched.container_id.clone() };
        let started = client.runtime.start_container(request).await.answer();
        started.map(drop).map_err(|refusal| failed_start(refusal, &launched.name))
    }
}

/// Has the daemon make and fill volumes, and puts their paths into the mounts. Those without a name get one, which the pod's
/// annotations say.
async fn volumes(
    client: &mut Client,
    identity: &config::Identity,
    settings: &mut settings::Settings,
) -> Result<()> {
    for (index, volume) in std::mem::take(&mut settings.volumes) {
        let Some(mount) = settings.mounts.get_mut(index) else { continue };
        let name = match volume {
            Volume::Named(name) => name,
            Volume::Anonymous => {
                let name = anonymous(client, &identity.name).await?;
                let listed = settings.annotations.entry(marks::VOLUMES.to_owned()).or_default();
                listed.push_str(&name);
                listed.push(',');
                name
            }
        };
        let (image, path) = (identity.image.id.clone(), mount.container_path.clone());
        let request = PrepareVolumeRequest { name: name.clone(), image, path };
        let answer = client.volumes.prepare_volume(request).await.answer();
        let prepared = answer.with_context(|| format!("preparing volume {name}"))?;
        mount.host_path = prepared.volume.unwrap_or_default().path;
    }
    Ok(())
}

/// A volume that nobody named.
async fn anonymous(client: &mut Client, pod: &str) -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("making up a volume's name: {error}"))?;
    let name = hex::encode(bytes);
    let labels = HashMap::from([(marks::ANONYMOUS.to_owned(), pod.to_owned())]);
    let made =
        client.volumes.create_volume(CreateVolumeRequest { name: name.clone(), labels }).await.answer();
    made.with_context(|| "making a volume without a name")?;
    Ok(name)
}

/// Removes volumes that were made for one pod. What can't be removed is said, and left to `berth volume prune`.
pub(crate) async fn remove_volumes(client: &mut Client, names: &[String]) {
    for name in names {
        let request = RemoveVolumeRequest { name: name.clone() };
        match client.volumes.remove_volume(request).await.answer() {
            Ok(_) | Err(Refusal { code: tonic::Code::NotFound, .. }) => {}
            Err(refusal) => failure::say(&format!("removing volume {name}: {refusal}")),
        }
    }
}

/// The error of a container that could not be made or started, with the exit code that people know for it.
fn failed_start(refusal: Refusal, name: &str) -> anyhow::Error {
    let code = failure::start_failure_code(&refusal.to_string());
    let failed: Result<()> = Err(refusal).with_context(|| format!("starting {name}")).or_exit(code);
    failed.err().unwrap_or_else(|| anyhow!("starting {name}"))
}

/// Removes pod, container and log.
async fn remove(client: &mut Client, launched: &Launched) -> Result<()> {
    client.stop_pod(&launched.pod_id).await?;
    client.remove_pod(&launched.pod_id).await?;
    log_dir::remove(&launched.log_directory);
    remove_volumes(client, &launched.volumes).await;
    Ok(())
}
