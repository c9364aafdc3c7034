//! The commands, a file each.

pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod pods;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod stop;
pub(crate) mod version;

use anyhow::Result;

use crate::cli::{Cli, Command};

/// Carries out what was typed. Returns what to exit with.
pub(crate) async fn run(cli: Cli) -> Result<u8> {
    let address = cli.address.as_str();
    match cli.command {
        Command::Run(run) => run.execute(address).await,
        Command::Exec(exec) => exec.execute(address).await,
        Command::Ps(ps) => ps.execute(address).await,
        Command::Pods(pods) => pods.execute(address).await,
        Command::Logs(logs) => logs.execute(address).await,
        Command::Stop(stop) => stop.execute(address).await,
        Command::Rm(rm) => rm.execute(address).await,
        Command::Inspect(inspect) => inspect.execute(address).await,
        Command::Pull(pull) => pull.execute(address).await,
        Command::Images(images) => images.execute(address).await,
        Command::Rmi(rmi) => rmi.execute(address).await,
        Command::Import(import) => import.execute(address).await,
        Command::Export(export) => export.execute(address).await,
        Command::Network(network) => network.execute(address).await,
        Command::Info(info) => info.execute(address).await,
        Command::Version(version) => version.execute(address).await,
    }
}
