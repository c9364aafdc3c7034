//! berthd: the daemon. Reads the command line and the configuration, and runs `berth::server`.

use std::path::PathBuf;
use std::process::ExitCode;

use berth::config::{self, Source};
use berth::error::chain;
use berth::server;
use berth::telemetry::Telemetry;
use clap::{Parser, Subcommand};

/// A Kubernetes-compatible CRI runtime service.
#[derive(Debug, Parser)]
#[command(
    name = "berthd",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Without a command it serves until SIGTERM; containers go on then, and are found again at the next start. SIGHUP reads \
    the log level again. Options come before the configuration's keys of the same name; traces are configured by OTEL_… variables."
)]
struct Arguments {
    /// Configuration file; conf.d/*.toml beside it is read as well [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Unix socket to serve on
    #[arg(long, value_name = "PATH", global = true)]
    address: Option<PathBuf>,
    /// Directory for what is kept over a reboot: images, records, volumes
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Directory for what is gone at a reboot: namespaces, shims, sockets
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    /// What is logged to standard error: error, warn, info, debug, trace, or directives such as info,berth::cri=debug
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum ConfigCommand {
    /// Print a commented file with all keys and their defaults
    Default,
    /// Print the settings that hold, each with the file and line it comes from
    Dump,
    /// Read the configuration and name all that is wrong with it
    Check,
}

fn main() -> ExitCode {
    berth::sys::bound_heap();
    let arguments = Arguments::parse();
    let source = Source {
        file: arguments.config,
        address: arguments.address,
        root: arguments.root,
        state: arguments.state,
        log_level: arguments.log_level,
    };
    let result = match arguments.command {
        Some(Command::Config(command)) => show(&source, command),
        None => run(source),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                eprintln!("berthd: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn show(source: &Source, command: ConfigCommand) -> Result<(), String> {
    match command {
        ConfigCommand::Default => print!("{}", config::default_file()),
        ConfigCommand::Dump => print!("{}", config::dump(&load(source)?.settings)),
        ConfigCommand::Check => {
            let files = load(source)?.files;
            let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            println!(
                "ok: {}",
                if names.is_empty() { "no file, all defaults".into() } else { names.join(", ") }
            );
        }
    }
    Ok(())
}

fn run(source: Source) -> Result<(), String> {
    let loaded = load(&source)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("starting the runtime: {error}"))?;
    let entered = runtime.enter();
    let telemetry = Telemetry::install(&loaded.config.log).map_err(|error| chain(&error))?;
    drop(entered);
    let serving = server::run(source, loaded, telemetry.clone());
    let result = runtime.block_on(serving).map_err(|error| chain(&error));
    telemetry.end();
    // What still hangs in the kernel on a blocking thread must not hold up the end.
    runtime.shutdown_background();
    result
}

fn load(source: &Source) -> Result<config::Loaded, String> {
    source.load().map_err(|error| error.to_string())
}
