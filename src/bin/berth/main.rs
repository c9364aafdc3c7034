//! `berth`: the client of berthd.
//!
//! It speaks the CRI and Berth's own API over the daemon's Unix socket. [`cli`] holds what can be typed, each file under
//! `commands/` carries out one command, [`options`] reads the values that have a syntax of their own, [`names`] finds
//! what a person means, [`view`] is what `-o json` prints, [`output`] draws tables, [`logs`] reads CRI log files,
//! [`credentials`] is what Docker's configuration holds for registries.
//!
//! Exit codes: 0 done; 1 it failed; 2 the command line can't be read; and for `run` and `exec` those that people know:
//! 125 the daemon refused, 126 the command can't be executed, 127 there is no such command, else the command's own.

mod cli;
mod client;
mod commands;
mod complete;
mod credentials;
mod elsewhere;
mod failure;
mod logs;
mod names;
mod options;
mod output;
mod progress;
mod session;
mod view;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    complete::answer();
    let cli = cli::Cli::try_parse().unwrap_or_else(|error| match elsewhere::advice(&error) {
        Some(advice) => {
            eprintln!("berth: there is no such command: {advice}");
            std::process::exit(2)
        }
        None => error.exit(),
    });
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into()),
    };
    let outcome = runtime.block_on(cli.run());
    // A read of a terminal or pipe that never ends must not keep the process: leave its thread behind.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => failure::report(&error),
    }
}
