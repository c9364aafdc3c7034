//! `berth debug bundle`: what a report of a fault needs, in one archive.
//!
//! Every entry is made by a program of its own (this one, mostly), with a time limit and a bound on its size: what hangs or is
//! huge costs its own entry and no other.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use berth::config::{self, Source};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::redact::redacted;
use crate::output;

/// For each entry.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an entry; the rest is left out.
const ENTRY: u64 = 8 << 20;

/// What this program says: name in the archive, and arguments.
const OURS: &[(&str, &[&str])] = &[
    ("doctor.json", &["doctor", "-o", "json"]),
    ("version.txt", &["version"]),
    ("info.json", &["info", "-o", "json"]),
    ("health.json", &["debug", "health"]),
    ("leftovers.json", &["debug", "leftovers"]),
    ("events.json", &["debug", "events"]),
    ("metrics.txt", &["debug", "metrics"]),
    ("pods.json", &["debug", "pods"]),
    ("networks.json", &["debug", "networks"]),
    ("addresses.json", &["network", "ipam", "ls", "-o", "json"]),
    ("images.json", &["images", "-o", "json"]),
    ("volumes.json", &["volume", "ls", "-o", "json"]),
    ("disk.txt", &["system", "df"]),
    ("installation.json", &["node", "verify", "-o", "json"]),
];
/// What others say, where they are there.
const OTHERS: &[(&str, &[&str])] = &[
    ("host/journal.txt", &["journalctl", "--unit=berth", "--lines=5000", "--no-pager", "--output=short-iso"]),
    (
        "host/kubelet.txt",
        &["journalctl", "--unit=kubelet", "--lines=1000", "--no-pager", "--output=short-iso"],
    ),
    ("host/unit.txt", &["systemctl", "show", "berth.service", "--no-pager"]),
    ("host/addresses.txt", &["ip", "address"]),
    ("host/routes.txt", &["ip", "route", "show", "table", "all"]),
];
/// The firewall's table, as nftables shows it.
const NFT: &str = "host/nftables.txt";
/// Files of the kernel and the host.
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/version",
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/filesystems",
    "/proc/modules",
    "/proc/self/mountinfo",
    "/proc/cgroups",
    "/proc/self/cgroup",
    "/sys/fs/cgroup/cgroup.controllers",
    "/sys/fs/cgroup/cgroup.subtree_control",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/fs/inotify/max_user_instances",
    "/proc/sys/fs/file-nr",
    "/proc/sys/user/max_user_namespaces",
];
const README: &str = "Gathered by `berth debug bundle`.\n\nEach file is what the command or file of its name said; errors.txt lists what could \
not be had. Values of environment variables, keys, passwords, tokens and users in addresses are taken out. Names of pods, images, \
hosts, commands and addresses are in it: look through it before you send it to people who should not know them.\n";

/// Options of `debug bundle`.
#[derive(Debug, Args)]
pub(crate) struct Bundle {
    /// The archive [default: berth-debug-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The daemon's configuration [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Bundle {
    /// Gathers and writes.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = self.output.unwrap_or_else(|| format!("berth-debug-{now}.tar.gz").into());
        let writing = || format!("writing {}", path.display());
        // Only for who gathers it: there is enough in it that is nobody else's business.
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.write(true).create_new(true).open(&path).with_context(writing)?;
        let mut archive = Archive::new(file, now);
        archive.add("README.txt", README).with_context(writing)?;
        let mut errors = String::new();
        for (name, text) in gather(address, self.config).await {
            match text {
                Ok(text) => archive.add(name.as_str(), &redacted(&text)).with_context(writing)?,
                Err(why) => errors.push_str(&format!("{name}: {}\n", redacted(&why))),
            }
        }
        archive.add("errors.txt", &errors).with_context(writing)?;
        let bytes = archive.end().with_context(writing)?;
        output::print_line(&format!(
            "{} ({} KiB): secrets are taken out, names of pods, images and hosts are in it",
            path.display(),
            bytes.div_ceil(1024)
        ))?;
        Ok(0)
    }
}

type Entry = (String, Result<String, String>);

async fn gather(address: &str, file: Option<PathBuf>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let table = configuration(&mut entries, file.clone());
    let own =
        std::env::current_exe().map(|path| path.display().to_string()).map_err(|error| error.to_string());
    for (name, arguments) in OURS {
        let text = match &own {
            Ok(own) => {
                let mut words = vec![own.as_str(), "--address", address];
                words.extend(*arguments);
                let file = file.as_ref().map(|file| file.display().to_string());
                if let (&["doctor", ..], Some(file)) = (arguments, &file) {
                    words.extend(["--config", file]);
                }
                run(&words).await
            }
            Err(error) => Err(error.clone()),
        };
        entries.push(((*name).to_owned(), text));
    }
    for (name, words) in OTHERS {
        entries.push(((*name).to_owned(), run(words).await));
    }
    entries.push((NFT.to_owned(), run(&["nft", "list", "table", "inet", &table]).await));
    for path in FILES {
        let text = read(path).await;
        entries.push((format!("host{path}"), text));
    }
    entries
}

/// Adds what the configuration comes to; returns the name of the firewall's table.
fn configuration(entries: &mut Vec<Entry>, file: Option<PathBuf>) -> String {
    match (Source { file, ..Source::default() }).load() {
        Ok(loaded) => {
            entries.push(("config.toml".to_owned(), Ok(config::dump(&loaded.settings))));
            loaded.config.network.table
        }
        Err(error) => {
            entries.push(("config.toml".to_owned(), Err(error.to_string())));
            "berth".to_owned()
        }
    }
}

/// What a program prints, whatever it exits with; what it says on standard error when it prints nothing.
async fn run(words: &[&str]) -> Result<String, String> {
    let [program, arguments @ ..] = words else { return Err("nothing to run".to_owned()) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let both = async { tokio::join!(bounded(stdout), bounded(stderr)) };
    let Ok((said, complained)) = tokio::time::timeout(PATIENCE, both).await else {
        return Err(format!("{} did not end within {} s", words.join(" "), PATIENCE.as_secs()));
    };
    // Whoever has more to say than is taken is ended.
    drop(child);
    if said.is_empty() { Err(complained.trim().to_owned()) } else { Ok(said) }
}

async fn bounded(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came before an error is worth having.
        let _ = stream.take(ENTRY).read_to_end(&mut bytes).await;
    }
    let full = u64::try_from(bytes.len()).is_ok_and(|length| length == ENTRY);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if full {
        text.push_str("\n(cut off here)\n");
    }
    text
}

async fn read(path: &str) -> Result<String, String> {
    let reading = async {
        let file = tokio::fs::File::open(path).await.map_err(|error| error.to_string())?;
        Ok(bounded(Some(file)).await)
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

/// The archive under way.
struct Archive {
    builder: tar::Builder<GzEncoder<File>>,
    now: u64,
}

impl Archive {
    fn new(file: File, now: u64) -> Self {
        Self { builder: tar::Builder::new(GzEncoder::new(file, Compression::default())), now }
    }

    fn add(&mut self, name: &str, text: &str) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.builder.append_data(&mut header, format!("berth-debug/{name}"), text.as_bytes())
    }

    /// Returns its size.
    fn end(self) -> std::io::Result<u64> {
        let mut file = self.builder.into_inner()?.finish()?;
        file.flush()?;
        file.stream_position()
    }
}
