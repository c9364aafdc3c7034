//! The third backend: another shim of containerd's shim v2 protocol, started and called as containerd does it.
//!
//! ```text
//!  daemon ── Task ──▶ berth-shim ── Task ──▶ the other shim ──▶ container
//!                      │  ▲ FIFOs: standard streams  │
//!                      ▼  └──────────────────────────┘
//!                     log, attached clients, exit.json
//! ```
//!
//! The program is called with `start`, and says where it, or a shim of the same pod that is there already, listens: a plain
//! address (Task version 2), or JSON or a protobuf message with version, address and protocol
//! (containerd, `core/runtime/v2/README.md`, "Start"). What it said is kept as `bootstrap.json`, so that whoever comes later finds
//! the shim again. `delete` frees what a shim left that is gone.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message;
use rustix::fs::{CWD, FileType, Mode, OFlags, mkfifoat, openat};
use serde::{Deserialize, Serialize};

use crate::status::{Code, Failure};
use crate::sys;

/// How long `start` and `delete` may take: a virtual machine has to boot meanwhile.
const PROGRAM_MAX: Duration = Duration::from_secs(60);
/// The most that is read of what the program prints.
const OUTPUT_MAX: u64 = 64 << 10;
/// The newest version of the Task service that is spoken here.
const VERSION_MAX: i32 = 3;

/// How to call the other shim's program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// containerd's namespace: part of the names of what the other shim makes.
    pub(crate) namespace: String,
    /// The daemon's socket; the one for events has `.ttrpc` behind it.
    pub(crate) address: String,
    /// A configuration file of the shim's own, for those that take one.
    pub(crate) config: Option<String>,
}

/// Where a shim listens, and what it speaks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Bootstrap {
    pub(crate) version: i32,
    pub(crate) address: String,
    pub(crate) protocol: String,
}

impl Bootstrap {
    /// Understands what `start` printed.
    fn parse(output: &[u8]) -> Result<Self, Failure> {
        let legacy = String::from_utf8_lossy(output).trim().to_owned();
        let found = if legacy.starts_with('{') {
            serde_json::from_str(&legacy)
                .map_err(|error| Failure::doing("reading what the shim said at its start", &error))?
        } else if legacy.starts_with("unix:") || legacy.starts_with('/') {
            Self { version: 2, address: legacy, protocol: "ttrpc".to_owned() }
        } else {
            let message = BootstrapResult::parse_from_bytes(output)
                .ok()
                .filter(|message| !message.address.is_empty())
                .ok_or_else(|| Failure::internal(format!("the shim printed no address: {legacy:?}")))?;
            Self { version: message.version, address: message.address, protocol: message.protocol }
        };
        found.check()
    }

    fn check(self) -> Result<Self, Failure> {
        if !self.protocol.eq_ignore_ascii_case("ttrpc") {
            let message = format!("the shim speaks {}: only ttrpc is built", self.protocol);
            return Err(Failure::new(Code::Unimplemented, message));
        }
        if !(2..=VERSION_MAX).contains(&self.version) {
            let message = format!(
                "the shim speaks version {} of the Task service: only 2 and 3 are built",
                self.version
            );
            return Err(Failure::new(Code::Unimplemented, message));
        }
        Ok(self)
    }

    /// The Task service's name in the shim's version.
    pub(crate) fn service(&self) -> &'static str {
        if self.version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" }
    }

    fn file(bundle: &Path) -> PathBuf {
        bundle.join("bootstrap.json")
    }

    /// What a shim said that was started for this bundle.
    pub(crate) fn load(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(bundle)).ok()?).ok()
    }

    fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join("bootstrap.json.tmp");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, Self::file(bundle))
    }

    pub(crate) fn connect(&self) -> Result<UnixStream, Failure> {
        let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
        UnixStream::connect(path)
            .map_err(|error| Failure::doing(&format!("connecting to the shim at {}", self.address), &error))
    }
}

impl Program {
    /// Starts a shim for the bundle, or finds that of its pod.
    pub(crate) fn start(&self, id: &str, bundle: &Path) -> Result<Bootstrap, Failure> {
        // The other shim writes its log there; containerd has a FIFO in this place, but nobody needs to read a file.
        File::create(bundle.join("log")).map_err(|error| Failure::doing("making the shim's log", &error))?;
        let output = self.run("start", id, bundle)?;
        let bootstrap = Bootstrap::parse(&output)?;
        bootstrap.save(bundle).map_err(|error| Failure::doing("keeping the shim's address", &error))?;
        Ok(bootstrap)
    }

    /// Frees what a shim that is gone left of a container.
    pub(crate) fn delete(&self, id: &str, bundle: &Path) -> Result<api::DeleteResponse, Failure> {
        let output = self.run("delete", id, bundle)?;
        api::DeleteResponse::parse_from_bytes(&output)
            .map_err(|error| Failure::doing("reading what the shim said of the deletion", &error))
    }

    fn run(&self, action: &str, id: &str, bundle: &Path) -> Result<Vec<u8>, Failure> {
        let failed =
            |error: &io::Error| Failure::doing(&format!("running {} {action}", self.path.display()), error);
        // Files, not pipes: a shim that goes on in the background may keep them open.
        let (out, err) = (bundle.join("shim-stdout"), bundle.join("shim-stderr"));
        let publisher = crate::program::path();
        let mut command = Command::new(&self.path);
        command
            .args(["-namespace", &self.namespace, "-address", &self.address, "-publish-binary"])
            .arg(publisher)
            .args(["-id", id, "-bundle"])
            .arg(bundle)
            .arg(action)
            .current_dir(bundle)
            .env("NAMESPACE", &self.namespace)
            .env("GRPC_ADDRESS", &self.address)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", self.address))
            .env("MAX_SHIM_VERSION", VERSION_MAX.to_string())
            // As containerd has it: a shim is no place for a thread per processor.
            .env("GOMAXPROCS", "2")
            .stdin(Stdio::null())
            .stdout(File::create(&out).map_err(|error| failed(&error))?)
            .stderr(File::create(&err).map_err(|error| failed(&error))?);
        sys::start_with_default_signals(&mut command);
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        let status = wait(&mut child).map_err(|error| failed(&error))?;
        let (printed, said) = (beginning(&out), beginning(&err));
        let _ = fs::remove_file(out);
        let _ = fs::remove_file(err);
        if status.success() {
            return Ok(printed);
        }
        let said = [said, printed].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(Failure::internal(format!("{} {action}: {status}: {said}", self.path.display())))
    }
}

/// The other shim has nothing of this bundle any more.
pub(crate) fn forget(bundle: &Path) {
    let _ = fs::remove_file(Bootstrap::file(bundle));
}

fn beginning(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What can't be read is as good as not said.
    let _ = File::open(path).and_then(|file| file.take(OUTPUT_MAX).read_to_end(&mut bytes));
    bytes
}

/// Waits for the program's end; kills it when that takes too long.
fn wait(child: &mut std::process::Child) -> io::Result<std::process::ExitStatus> {
    let deadline = Instant::now() + PROGRAM_MAX;
    let pidfd = sys::pidfd_open(i32::try_from(child.id()).unwrap_or(0))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {PROGRAM_MAX:?}")));
        }
        let mut fds = [libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut fds, Some(i32::try_from(rest.as_millis()).unwrap_or(i32::MAX)))?;
    }
}

/// The directory of the FIFOs between this shim and the other one.
pub(crate) fn fifo_directory(bundle: &Path) -> PathBuf {
    bundle.join("io")
}

/// Makes a FIFO, if it is not there, and opens both ends. The reading one does not block.
pub(crate) fn fifo(bundle: &Path, name: &str) -> Result<(OwnedFd, OwnedFd), Failure> {
    let directory = fifo_directory(bundle);
    let path = directory.join(name);
    let make = || -> io::Result<(OwnedFd, OwnedFd)> {
        fs::create_dir_all(&directory)?;
        match mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if is_fifo(&path)? => {}
            Err(error) => return Err(error.into()),
        }
        let open = |flags| openat(CWD, &path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
        Ok((open(OFlags::RDONLY)?, open(OFlags::WRONLY)?))
    };
    make().map_err(|error| Failure::doing(&format!("making the FIFO {}", path.display()), &error))
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    let found = rustix::fs::lstat(path)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Fifo)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_form_of_an_address_is_understood() {
        let plain = Bootstrap::parse(b"unix:///run/containerd/s/abc\n").unwrap();
        assert_eq!((plain.version, plain.address.as_str()), (2, "unix:///run/containerd/s/abc"));
        assert_eq!(plain.service(), "containerd.task.v2.Task");
        let json = br#"{"version":3,"address":"unix:///s","protocol":"ttrpc"}"#;
        assert_eq!(Bootstrap::parse(json).unwrap().service(), "containerd.task.v3.Task");
        let mut message = BootstrapResult::new();
        message.version = 3;
        message.address = "unix:///s".to_owned();
        message.protocol = "ttrpc".to_owned();
        let parsed = Bootstrap::parse(&message.write_to_bytes().unwrap()).unwrap();
        assert_eq!((parsed.version, parsed.address.as_str()), (3, "unix:///s"));
    }

    #[test]
    fn what_is_not_spoken_is_said_so() {
        let code = |text: &[u8]| Bootstrap::parse(text).unwrap_err().code;
        assert_eq!(code(br#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#), Code::Unimplemented);
        assert_eq!(code(br#"{"version":4,"address":"unix:///s","protocol":"ttrpc"}"#), Code::Unimplemented);
        assert_eq!(code(b""), Code::Internal);
        assert_eq!(code(b"panic: no"), Code::Internal);
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let bundle = tempfile::tempdir().unwrap();
        let program = bundle.path().join("shim");
        fs::write(&program, "#!/bin/sh\necho broken >&2\nexit 3\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let program = Program {
            path: program,
            namespace: "n".to_owned(),
            address: "/nowhere".to_owned(),
            config: None,
        };
        let message = program.start("id", bundle.path()).unwrap_err().message;
        assert!(message.contains("start") && message.contains("broken"), "{message}");
        assert!(Bootstrap::load(bundle.path()).is_none());
    }
}
