//! The commands. Runs take turns on one lock; each opens the records, does its work and ends.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use berth_cni::model::NetworkDriver;
use berth_cni::{Controller, Network, Options, SandboxSpec};
use serde_json::Value;

use crate::answer::{self, Attached, DIFFERS, Failure, IO, TRY_AGAIN, UNAVAILABLE};
use crate::daemon;
use crate::request::{Command, Request, Target};

/// Longest time in line. Each run takes some milliseconds.
const TURN: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(3);

/// Carries it out.
pub(crate) fn execute(request: &Request) -> Result<Value, Failure> {
    let speaking = |failure: Failure| failure.speaking(&request.version);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(IO, "starting", error))?;
    let network = match &request.target {
        Target::Nothing => return Ok(answer::versions(&request.version)),
        Target::Daemon(overlay) => {
            return runtime.block_on(daemon::execute(request, overlay)).map_err(speaking);
        }
        Target::Own(network) => network,
    };
    let _turn = turn(&request.records).map_err(speaking)?;
    let run = async {
        let controller = open(&request.records)?;
        match request.command {
            Command::Add => add(&controller, request, network).await,
            Command::Del => delete(&controller, &request.sandbox, network).await,
            Command::Check => check(&controller, request, network).await,
            Command::Status => status(&controller, network).await,
            Command::Gc => collect(&controller, request, network).await,
            Command::Version => Ok(answer::versions(&request.version)),
        }
    };
    runtime.block_on(run).map_err(speaking)
}

fn turn(directory: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::new(IO, format!("using {}", directory.display()), error);
    fs::create_dir_all(directory).map_err(failed)?;
    let lock = File::create(directory.join("lock")).map_err(failed)?;
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            Err(fs::TryLockError::WouldBlock) if started.elapsed() > TURN => {
                let why = format!("{} was locked for {}s", directory.display(), TURN.as_secs());
                return Err(Failure::new(TRY_AGAIN, "other runs are under way", why));
            }
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(STEP),
        }
    }
}

fn open(directory: &Path) -> Result<Controller, Failure> {
    let options = Options {
        definitions: Some(directory.join("networks")),
        table: "berth-cni".to_owned(),
        interface_prefix: "bcni".to_owned(),
        ..Options::bare(directory.join("records.redb"))
    };
    Ok(Controller::open(options)?)
}

async fn add(controller: &Controller, request: &Request, network: &Network) -> Result<Value, Failure> {
    controller.create_network(network.clone()).await?;
    let id = request.sandbox.clone();
    controller.create_sandbox(SandboxSpec { id: id.clone(), netns: request.netns.clone() }).await?;
    let mut options = request.options.clone();
    if matches!(network.driver, NetworkDriver::Addresses(_)) {
        options.ports.clear();
    }
    let joined = controller.join(&id, &network.name, options).await;
    let endpoint = match joined {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let _ = controller.delete_sandbox(&id).await;
            return Err(error.into());
        }
    };
    let bridge = match &network.driver {
        NetworkDriver::Bridge(bridge) => Some(bridge.bridge.as_str()),
        _ => None,
    };
    let attached = Attached::new(&endpoint, bridge);
    Ok(answer::result(&request.version, &attached, &request.netns.to_string_lossy()))
}

/// What is not there is deleted already. The interface is gone when this returns.
async fn delete(controller: &Controller, sandbox: &str, network: &Network) -> Result<Value, Failure> {
    let left = controller.leave(sandbox, &network.name).await;
    let deleted = controller.delete_sandbox(sandbox).await;
    let errors: Vec<_> = left.err().into_iter().chain(deleted.err()).flatten().collect();
    match errors.into_iter().next() {
        Some(first) => Err(first.into()),
        None => Ok(Value::Null),
    }
}

async fn check(controller: &Controller, request: &Request, network: &Network) -> Result<Value, Failure> {
    let endpoint = controller
        .verify(&request.sandbox, &network.name)
        .await
        .map_err(|error| Failure::new(DIFFERS, "the attachment is not as it was made", error))?;
    answer::agree(request.previous.as_ref(), &endpoint.addresses).map(|()| Value::Null)
}

/// Whether an ADD would succeed.
async fn status(controller: &Controller, network: &Network) -> Result<Value, Failure> {
    let unavailable = |error: berth_cni::Error| Failure::new(UNAVAILABLE, error.to_string(), "");
    controller.create_network(network.clone()).await.map_err(unavailable)?;
    for status in controller.pools().await? {
        let (first, last) = status.pool.range;
        let full = status.pool.network == network.name && status.is_full();
        if full {
            let what = format!("no free address in {}", status.pool.subnet);
            return Err(Failure::new(UNAVAILABLE, what, format!("{first} to {last} are leased")));
        }
    }
    Ok(Value::Null)
}

/// Deletes the network's attachments that nobody knows any more.
async fn collect(controller: &Controller, request: &Request, network: &Network) -> Result<Value, Failure> {
    let mut failed = None;
    for sandbox in controller.sandboxes()? {
        let here = sandbox.endpoints.iter().any(|endpoint| endpoint.network == network.name);
        if here && !request.valid.contains(&sandbox.id) {
            failed = delete(controller, &sandbox.id, network).await.err().or(failed);
        }
    }
    failed.map_or(Ok(Value::Null), Err)
}
