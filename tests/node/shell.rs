//! What shells and `man` are given: completions that the shells themselves take, pages that `man` renders.

use std::process::{Command, Output};

use crate::host::text;

fn berth(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_berth")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    output
}

#[test]
fn bash_completes_commands_and_options() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("berth");
    std::fs::write(&file, berth(&["completions", "bash"]).stdout).unwrap();
    let complete = |words: &str| -> String {
        let script = format!(
            "source {}; COMP_TYPE=9; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _clap_complete_berth berth \"${{COMP_WORDS[COMP_CWORD]}}\"; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        // The script asks the program for what can follow.
        let programs = std::path::Path::new(env!("CARGO_BIN_EXE_berth")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash").args(["--norc", "-c", &script]).env("PATH", path).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
        text(&output)
    };
    assert!(complete("berth no").split_whitespace().any(|word| word == "node"));
    let options = complete("berth node install --");
    for option in ["--root", "--mode", "--from", "--dry-run"] {
        assert!(options.split_whitespace().any(|word| word == option), "{option} in {options}");
    }
    assert_eq!(complete("berth node install --mode n").trim(), "node");
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = text(&berth(&["completions", shell]));
        assert!(said.contains("COMPLETE") && said.contains("berth"), "{shell}: {said}");
    }
    let refused = Command::new(env!("CARGO_BIN_EXE_berth")).args(["completions", "dos"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    berth(&["man", pages.to_str().unwrap()]);
    for (page, says) in [
        ("berth.1", "Pods, containers and images"),
        ("berth-run.1", "Run a command in a new container"),
        ("berth-node-install.1", "dry"),
        ("berth-network-create.1", "subnet"),
    ] {
        let text =
            std::fs::read_to_string(pages.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH") && text.contains(says), "{page}: {text:.300}");
    }
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_berth")).arg("man").arg(&file).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("manual pages"), "{}", text(&refused));
}
