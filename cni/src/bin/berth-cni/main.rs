//! `berth-cni`: Berth's networks as a CNI plugin, for containerd, CRI-O, podman and whoever else reads CNI configurations.
//!
//! What it is depends on the name it is called by, as a link in the plugins' directory: `berth-bridge`, `berth-macvlan`,
//! `berth-ipvlan`, `berth-overlay`, or `berth-ipam` as the `ipam` of others' plugins. Each run is one command of the CNI specification: parameters
//! in the environment, configuration on standard input, the answer on standard output.
//!
//! ```text
//!   request ── environment and configuration, checked
//!   command ── lock, records, [`berth_cni::Controller`]: one sandbox an attachment
//!   daemon  ── for overlays: the host's berthd is asked over its socket, by its own API
//!   answer  ── results and errors as the asked version writes them
//! ```
//!
//! Records live in `/run/berth-cni` (or `dataDir`), one file for all networks, and end with the boot, as interfaces do. Runs take
//! turns. No daemon is needed, but for overlays: other hosts hear of an attachment from a daemon that runs, which keeps the
//! host's lease in etcd and tells the kernel of the others'.

mod answer;
mod command;
mod daemon;
mod proto;
mod request;

use std::io::{Read, Write};
use std::process::ExitCode;

use answer::Failure;
use request::Request;

/// Configurations are some kilobytes, with a previous result some more.
const INPUT_MAX: u64 = 4 << 20;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let (answer, code) = match run(&called.to_string_lossy()) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::FAILURE),
    };
    if !answer.is_null() {
        // A reader that went away has nobody who could be told.
        let _ = writeln!(std::io::stdout(), "{answer}");
    }
    code
}

fn run(called: &str) -> Result<serde_json::Value, Failure> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CNI_COMMAND").is_empty() {
        eprintln!(
            "berth-cni {}: a CNI plugin, called by a container runtime. Link it as berth-bridge, berth-macvlan, \
             berth-ipvlan, berth-overlay or berth-ipam into the plugins' directory; versions {}",
            env!("CARGO_PKG_VERSION"),
            answer::VERSIONS.join(", ")
        );
        return Ok(serde_json::Value::Null);
    }
    let mut input = Vec::new();
    std::io::stdin()
        .take(INPUT_MAX)
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(answer::IO, "reading the configuration", error))?;
    let request = Request::read(called, variable, &input)?;
    command::execute(&request)
}
