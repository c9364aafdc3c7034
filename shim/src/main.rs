//! The process beside each container.
//!
//! `berth-shim serve` holds one container: it creates it (with libcontainer, or an OCI runtime binary), keeps its standard
//! streams, writes its log, waits for it and remembers how it ended, and answers the Task service of containerd's shim v2 protocol
//! over ttrpc (versions 2 and 3, same messages) and our own `berth.shim.v1.Shim` on a Unix socket.
//!
//! ```text
//!  Create ──▶ created ──Start──▶ running ──exit──▶ stopped ──Delete──▶ (nothing) ──Shutdown──▶ the shim ends
//!                │                 │ ▲
//!                └──Kill───────────┼─┘──▶ stopped       Pause / Resume: running ◀──▶ paused
//! ```
//!
//! The process has one thread and a `poll` loop, and keeps only what an idle container needs. What needs much memory, may block or
//! changes namespaces happens in forked children (`job`) that end afterwards.

#![deny(clippy::print_stderr)]

mod adapt;
mod audience;
mod bundle;
mod cgroup;
mod checkpoint;
mod containerd;
mod create;
mod criu;
mod cwd;
mod delete;
mod devices;
mod exec;
mod executor;
mod filter;
mod foreign;
mod frame;
mod home;
mod idmap;
mod job;
mod log;
mod logger;
mod metrics;
mod null;
mod numbers;
mod oci;
mod oom;
mod pod_init;
mod pod_namespaces;
mod probe;
mod program;
mod restore;
mod rootfs;
mod say;
mod selinux;
mod serve;
mod stage;
mod staging;
mod status;
mod stdio;
mod stream;
mod sys;
mod systemd;
mod terminal;
mod timing;
mod trace;
mod update;
mod uri;
mod userns;
mod warm;

use std::process::ExitCode;

const USAGE: &str = "usage:
  berth-shim serve --id ID --bundle DIR [--socket-fd N] [--seccomp-cache DIR]
                   [--runtime PATH [--runtime-root DIR]
                   | --shim PATH --namespace NAME --address SOCKET [--shim-config FILE]]
      serves the Task service on the listening socket passed as descriptor N (3 unless said); the container is created by
      libcontainer, by the OCI runtime program at --runtime, or by another containerd shim
  berth-shim pod-init --pidns-path PATH [--userns PATH]
      makes a PID namespace, pins it at PATH and prints the process id of its first process
  berth-shim pod-namespaces --directory DIR --uid-map C:H:N --gid-map C:H:N --kinds KIND[,KIND]
      makes a user namespace and in it one of each KIND (net, ipc, uts), and pins them in DIR by their kinds
  berth-shim probe-userns --root DIR --state DIR
      tells whether pods whose files are there can have user namespaces
  berth-shim --help | --version
  containerd-shim-berth-v1 [FLAGS] start | delete
      what containerd calls for the runtime io.containerd.berth.v1";

fn main() -> ExitCode {
    // Executed by way of a descriptor it would be called by that one's number.
    let _ = nix::sys::prctl::set_name(c"berth-shim");
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_str() {
        first if containerd::is_meant(&program, first) => {
            containerd::run(&std::iter::once(command.clone()).chain(rest).collect::<Vec<_>>())
        }
        // Other shims may publish by a program; nobody needs to know.
        _ if rest.iter().any(|word| word == "publish") => Ok(()),
        "serve" => serve::Options::parse(&rest).and_then(serve::run),
        "pod-init" => pod_init::run(&rest),
        "pod-namespaces" => pod_namespaces::run(&rest),
        "probe-userns" => probe::run(&rest),
        "--version" | "version" => {
            println!("berth-shim {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        "--help" | "-h" | "help" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say::say(format_args!("berth-shim: {message}"));
            ExitCode::FAILURE
        }
    }
}

/// The value of `--name` among arguments of the form `--name value`.
fn option(arguments: &[String], name: &str) -> Result<Option<String>, String> {
    match arguments.iter().position(|argument| argument == name) {
        None => Ok(None),
        Some(at) => match arguments.get(at + 1) {
            Some(value) => Ok(Some(value.clone())),
            None => Err(format!("{name} needs a value")),
        },
    }
}
