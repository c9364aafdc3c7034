//! What can be typed. Each command's own options stand beside the command.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands;
use crate::session::TlsOptions;

/// Where the daemon listens unless its configuration says otherwise.
pub(crate) const ADDRESS: &str = "/run/berth/berth.sock";

/// Pods, containers and images of a node, by way of berthd.
#[derive(Debug, Parser)]
#[command(name = "berth", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The daemon's socket
    #[arg(
        long,
        global = true,
        env = "BERTH_ADDRESS",
        value_name = "SOCKET",
        default_value = ADDRESS
    )]
    pub address: String,
    #[command(flatten)]
    pub tls: TlsOptions,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Carries out what was typed. Returns what to exit with.
    pub(crate) async fn run(self) -> Result<u8> {
        self.tls.hold();
        let address = self.address.as_str();
        match self.command {
            Command::Run(run) => run.execute(address).await,
            Command::Exec(exec) => exec.execute(address).await,
            Command::Attach(attach) => attach.execute(address).await,
            Command::Ps(ps) => ps.execute(address).await,
            Command::Pods(pods) => pods.execute(address).await,
            Command::Top(top) => top.execute(address).await,
            Command::Stats(stats) => stats.execute(address).await,
            Command::Events(events) => events.execute(address).await,
            Command::Logs(logs) => logs.execute(address).await,
            Command::Cp(cp) => cp.execute(address).await,
            Command::Port(port) => port.execute(address).await,
            Command::Wait(wait) => wait.execute(address).await,
            Command::Update(update) => update.execute(address).await,
            Command::Kill(kill) => kill.execute(address).await,
            Command::Stop(stop) => stop.execute(address).await,
            Command::Rm(rm) => rm.execute(address).await,
            Command::Inspect(inspect) => inspect.execute(address).await,
            Command::Pull(pull) => pull.execute(address).await,
            Command::Checkpoint(checkpoint) => checkpoint.execute(address).await,
            Command::Commit(commit) => commit.execute(address).await,
            Command::Push(push) => push.execute(address).await,
            Command::Tag(tag) => tag.execute(address).await,
            Command::Login(login) => login.execute(address).await,
            Command::Logout(logout) => logout.execute().await,
            Command::History(history) => history.execute(address).await,
            Command::Images(images) => images.execute(address).await,
            Command::Rmi(rmi) => rmi.execute(address).await,
            Command::Import(import) => import.execute(address).await,
            Command::Export(export) => export.execute(address).await,
            Command::Network(network) => network.execute(address).await,
            Command::Config(config) => config.execute(),
            Command::Volume(volume) => volume.execute(address).await,
            Command::System(system) => system.execute(address).await,
            Command::Node(node) => node.execute(address).await,
            Command::Doctor(doctor) => doctor.execute(address).await,
            Command::Debug(debug) => debug.execute(address).await,
            Command::Completions(completions) => completions.execute(),
            Command::Man(man) => man.execute(Self::command()),
            Command::Info(info) => info.execute(address).await,
            Command::Version(version) => version.execute(address).await,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container, in a pod of its own
    Run(Box<commands::run::Run>),
    /// Execute a command in a running container
    Exec(commands::exec::Exec),
    /// Attach to the standard streams of a running container
    Attach(commands::attach::Attach),
    /// List containers
    Ps(commands::ps::Ps),
    /// List pods
    Pods(commands::pods::Pods),
    /// Show the processes of a container
    Top(commands::top::Top),
    /// Show what containers use
    Stats(commands::stats::Stats),
    /// Show what happens to pods and containers, as it happens
    Events(commands::events::Events),
    /// Show what a container wrote
    Logs(commands::logs::Logs),
    /// Copy files into and out of containers
    Cp(commands::cp::Cp),
    /// Show where ports of a container or pod are published
    Port(commands::port::Port),
    /// Wait until containers have ended, and print their exit codes
    Wait(commands::wait::Wait),
    /// Change the limits of containers
    Update(commands::update::Update),
    /// Send a signal to containers
    Kill(commands::kill::Kill),
    /// Stop containers or pods
    Stop(commands::stop::Stop),
    /// Remove containers or pods
    Rm(commands::rm::Rm),
    /// Show all there is to know of containers, pods or images, as JSON
    Inspect(commands::inspect::Inspect),
    /// Pull images from their registries
    Pull(commands::pull::Pull),
    /// Write a running container, with its memory, to an archive
    Checkpoint(commands::checkpoint::Checkpoint),
    /// Make an image of a container
    Commit(commands::commit::Commit),
    /// Push images to their registries
    Push(commands::push::Push),
    /// Give an image one more name
    Tag(commands::tag::Tag),
    /// Check credentials with a registry, and keep them
    Login(commands::login::Login),
    /// Forget the credentials for a registry
    Logout(commands::logout::Logout),
    /// List images
    Images(commands::images::Images),
    /// Show how an image was made
    History(commands::history::History),
    /// Remove images
    Rmi(commands::rmi::Rmi),
    /// Read images from an archive (OCI layout or docker save)
    #[command(visible_alias = "load")]
    Import(commands::import::Import),
    /// Write images to an archive that OCI tools and docker load both read
    #[command(visible_alias = "save")]
    Export(commands::export::Export),
    /// Make, look at and remove networks, connect pods to them
    #[command(subcommand)]
    Network(commands::network::Network),
    /// Take over the configuration of other runtimes (the daemon's own: `berthd config`)
    #[command(subcommand)]
    Config(commands::config::Config),
    /// Make, look at and remove volumes
    #[command(subcommand)]
    Volume(commands::volume::Volume),
    /// Show what takes room on the disk, and make some
    #[command(subcommand)]
    System(commands::system::System),
    /// Put Berth on a node, take it off, check whether a node can run it
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Find out what is wrong on this node, and what to do about it
    Doctor(commands::doctor::Doctor),
    /// Look into the daemon itself, and gather what a report of a fault needs
    #[command(subcommand)]
    Debug(commands::debug::Debug),
    /// Show the daemon's state
    Info(commands::info::Info),
    /// Print a shell's completions of this program's commands and options
    Completions(commands::completions::Completions),
    /// Write this program's manual pages into a directory
    Man(commands::man::Man),
    /// Show the versions of client and daemon
    Version(commands::version::Version),
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let cli = Cli::try_parse_from(["berth", "run", "--rm", "busybox", "sh", "-c", "echo -n"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.command, ["sh", "-c", "echo -n"]);
        assert!(run.rm);
    }

    #[test]
    fn the_address_may_follow_the_command() {
        let cli = Cli::try_parse_from(["berth", "ps", "--address", "/tmp/x.sock", "-a"]).unwrap();
        assert_eq!(cli.address, "/tmp/x.sock");
    }

    #[test]
    fn quiet_and_json_exclude_each_other() {
        assert!(Cli::try_parse_from(["berth", "ps", "-q", "-o", "json"]).is_err());
    }
}
