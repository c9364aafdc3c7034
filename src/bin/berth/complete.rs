//! Completion of what is typed: commands and options by clap, names by asking the daemon.
//!
//! The shell's script (`berth completions SHELL`) calls this program again with `COMPLETE` set ([`answer`]). The daemon is asked
//! for at most [`PATIENCE`]; without one there are no names, and no word of it.

use std::ffi::OsStr;
use std::time::Duration;

use berth::proto::berth::v1::{ListNetworksRequest, ListVolumesRequest};
use berth::proto::runtime::v1::ListImagesRequest;
use clap::{Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::CompleteEnv;

use crate::cli::Cli;
use crate::client::Client;
use crate::names::{container_name, pod_name};

/// Longest time that somebody who pressed Tab waits.
const PATIENCE: Duration = Duration::from_millis(800);
/// Most names that are offered.
const MOST: usize = 500;

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    Container,
    Pod,
    /// Of either.
    Any,
    Image,
    Network,
    Volume,
    /// A path here, or one in a container.
    Place,
}

/// Which arguments name what: the command, the argument, the thing.
const NAMED: &[(&[&str], &str, Thing)] = &[
    (&["run"], "image", Thing::Image),
    (&["run"], "network", Thing::Network),
    (&["exec"], "container", Thing::Container),
    (&["attach"], "container", Thing::Container),
    (&["ps"], "pod", Thing::Pod),
    (&["top"], "container", Thing::Container),
    (&["stats"], "containers", Thing::Container),
    (&["logs"], "container", Thing::Container),
    (&["cp"], "source", Thing::Place),
    (&["cp"], "destination", Thing::Place),
    (&["port"], "name", Thing::Any),
    (&["wait"], "containers", Thing::Container),
    (&["update"], "containers", Thing::Container),
    (&["kill"], "containers", Thing::Container),
    (&["stop"], "names", Thing::Any),
    (&["rm"], "names", Thing::Any),
    (&["inspect"], "names", Thing::Any),
    (&["pull"], "images", Thing::Image),
    (&["checkpoint"], "container", Thing::Container),
    (&["commit"], "container", Thing::Container),
    (&["push"], "images", Thing::Image),
    (&["tag"], "source", Thing::Image),
    (&["history"], "image", Thing::Image),
    (&["rmi"], "images", Thing::Image),
    (&["export"], "images", Thing::Image),
    (&["network", "connect"], "network", Thing::Network),
    (&["network", "connect"], "pod", Thing::Pod),
    (&["network", "disconnect"], "network", Thing::Network),
    (&["network", "disconnect"], "pod", Thing::Pod),
    (&["network", "ipam", "reclaim"], "network", Thing::Network),
    (&["network", "inspect"], "names", Thing::Network),
    (&["network", "rm"], "names", Thing::Network),
    (&["volume", "inspect"], "names", Thing::Volume),
    (&["volume", "rm"], "names", Thing::Volume),
];

/// Answers a shell that asks for completions, and ends the program then.
pub(crate) fn answer() {
    CompleteEnv::with_factory(command).complete();
}

/// The command line, with names.
fn command() -> Command {
    NAMED
        .iter()
        .fold(Cli::command(), |command, (path, argument, thing)| named(command, path, argument, *thing))
}

fn named(command: Command, path: &[&'static str], argument: &'static str, thing: Thing) -> Command {
    match path {
        // Not `mut_arg`, which moves the argument behind the others: the order of words would change.
        [] => command.mut_args(|one| {
            if one.get_id() == argument { one.add(ArgValueCompleter::new(thing)) } else { one }
        }),
        [first, rest @ ..] => command.mut_subcommand(first, |inner| named(inner, rest, argument, thing)),
    }
}

impl ValueCompleter for Thing {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(start) = current.to_str() else { return Vec::new() };
        let names = names(*self);
        let mut found: Vec<CompletionCandidate> = names
            .iter()
            .filter(|name| name.starts_with(start))
            .take(MOST)
            .map(CompletionCandidate::new)
            .collect();
        if *self == Self::Place {
            found.extend(PathCompleter::any().complete(current));
        }
        found
    }
}

/// What the daemon has of the kind.
fn names(thing: Thing) -> Vec<String> {
    let address = std::env::var("BERTH_ADDRESS").unwrap_or_else(|_| crate::cli::ADDRESS.to_owned());
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(&address, thing)).await });
    let mut names = asked.ok().and_then(Result::ok).unwrap_or_default();
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

async fn ask(address: &str, thing: Thing) -> anyhow::Result<Vec<String>> {
    let mut client = Client::connect(address).await?;
    let containers = |list: Vec<_>| list.iter().map(|one| container_name(one).to_owned()).collect::<Vec<_>>();
    let pods = |list: Vec<_>| list.iter().map(|one| pod_name(one).to_owned()).collect::<Vec<_>>();
    Ok(match thing {
        Thing::Container => containers(client.containers().await?),
        Thing::Pod => pods(client.pods().await?),
        Thing::Any => [containers(client.containers().await?), pods(client.pods().await?)].concat(),
        Thing::Place => {
            containers(client.containers().await?).iter().map(|name| format!("{name}:")).collect()
        }
        Thing::Image => {
            let answer = client.images.list_images(ListImagesRequest { filter: None }).await?;
            answer.into_inner().images.into_iter().flat_map(|image| image.repo_tags).collect()
        }
        Thing::Network => {
            let answer = client.networks.list_networks(ListNetworksRequest::default()).await?;
            answer.into_inner().networks.into_iter().map(|network| network.name).collect()
        }
        Thing::Volume => {
            let answer = client.volumes.list_volumes(ListVolumesRequest {}).await?;
            answer.into_inner().volumes.into_iter().map(|volume| volume.name).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_name_something_are_there() {
        // An argument that is not there panics.
        command().debug_assert();
    }

    #[test]
    fn whatever_takes_a_name_is_listed() {
        fn missing(command: &Command, path: &mut Vec<String>, found: &mut Vec<String>) {
            for argument in command.get_positionals() {
                let id = argument.get_id().as_str();
                let listed = NAMED.iter().any(|(names, name, _)| path == names && *name == id);
                if matches!(id, "container" | "containers" | "pod" | "network" | "image" | "images")
                    && !listed
                {
                    found.push(format!("{} {id}", path.join(" ")));
                }
            }
            for inner in command.get_subcommands() {
                path.push(inner.get_name().to_owned());
                missing(inner, path, found);
                path.pop();
            }
        }
        let mut found = Vec::new();
        missing(&Cli::command(), &mut Vec::new(), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
