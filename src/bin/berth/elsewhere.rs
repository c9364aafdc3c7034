//! Words of docker and crictl that are none here, and what to type instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What somebody typed from habit, and what does it here.
const WORDS: &[(&[&str], &str)] = &[
    (
        &["start", "restart"],
        "a container that has ended is not started again, as the CRI has it: `berth rm NAME`, then `berth run --name NAME …` \
         makes a new one (a pod of Kubernetes: its kubelet does)",
    ),
    (
        &["pause", "unpause"],
        "the CRI knows no pause: `berth kill -s STOP NAME` halts a container's first process, `-s CONT` lets it go on; \
         `berth update --cpus 0.01 NAME` slows all of it down",
    ),
    (
        &["diff"],
        "`berth commit` makes an image of what a container wrote, `berth cp NAME:PATH -` shows a part of it",
    ),
    (&["rename"], "names stay: `berth run --name NAME` gives a new container its name"),
    (&["search"], "registries are not searched: `berth pull` takes the whole name of an image"),
    (&["create"], "`berth run -d` makes and starts a container"),
    (
        &["build", "buildx", "builder"],
        "images are built by other programs, such as buildah; `berth load` takes their archives, `berth pull` what they push",
    ),
    (&["compose"], "there are no compose files here: `berth run` and `berth network`, or a Kubernetes pod"),
    (&["container"], "commands on containers have no word before them: `berth ps`, `berth logs`, `berth rm`"),
    (&["image"], "commands on images have no word before them: `berth images`, `berth pull`, `berth rmi`"),
    (
        &["pod"],
        "`berth pods` lists pods; `berth stop`, `berth rm` and `berth inspect` take their names as well",
    ),
    (&["list"], "`berth ps` lists containers, `berth pods` pods, `berth images` images"),
    (&["stopp", "rmp", "inspectp"], "`berth stop`, `berth rm` and `berth inspect` take pods by name as well"),
    (&["inspecti"], "`berth inspect` takes images by name as well"),
    (&["runp"], "`berth run` makes a pod for the container that it runs"),
    (&["statsp", "metricsp"], "`berth stats` shows what containers use"),
    (&["imagefsinfo"], "`berth system df` shows what takes room on the disk"),
    (
        &["prune"],
        "`berth system prune`, `berth volume prune` and `berth network prune` remove what nothing uses",
    ),
    (&["df"], "`berth system df` shows what takes room on the disk"),
    (&["daemon"], "the daemon is a program of its own: `berthd`"),
];

/// What to type instead of a command that is none here, where the error is that.
pub(crate) fn advice(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    WORDS.iter().find(|(words, _)| words.contains(&typed.as_str())).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn habits_are_answered() {
        let advice_of = |words: &[&str]| advice(&Cli::try_parse_from(words).unwrap_err());
        assert!(advice_of(&["berth", "start", "web"]).unwrap().contains("berth run --name"));
        assert!(advice_of(&["berth", "image", "ls"]).unwrap().contains("berth images"));
        assert_eq!(advice_of(&["berth", "frobnicate"]), None);
        assert_eq!(advice_of(&["berth", "ps", "--no-such"]), None);
    }

    #[test]
    fn what_is_a_command_here_is_not_listed() {
        let command = Cli::command();
        let known = |word: &str| {
            command
                .get_subcommands()
                .any(|inner| inner.get_name() == word || inner.get_all_aliases().any(|alias| alias == word))
        };
        assert!(WORDS.iter().flat_map(|(words, _)| *words).all(|word| !known(word)));
    }
}
