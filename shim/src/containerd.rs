//! The shim as containerd starts it: `containerd-shim-berth-v1`, runtime `io.containerd.berth.v1`.
//!
//! containerd calls the program with flags in Go's form and an action: `start` makes a socket, starts `serve` on it and prints its
//! address; `delete` frees what a shim left that is gone; `-info` says what the runtime can do (containerd,
//! `core/runtime/v2/README.md`). One process serves one container.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::json;

use crate::cgroup;
use crate::job::{self, Report};
use crate::numbers::time;
use crate::say::say;
use crate::{delete, program, sys};

/// What the program is called when it is containerd's.
const NAME: &str = "containerd-shim-berth-";
/// Where sockets are; containerd wants addresses of at most 106 bytes.
const SOCKETS: &str = "/run/berth-shim";
/// The directories of a container's cgroup, in its bundle: for `delete`.
const CGROUPS: &str = "cgroups";
const DELETE_MAX: Duration = Duration::from_secs(10);
const KILLED: u32 = 137;

/// Whether the program was called by containerd.
pub(crate) fn is_meant(program: &str, first: &str) -> bool {
    let name = Path::new(program).file_name().map(|name| name.to_string_lossy().into_owned());
    name.is_some_and(|name| name.starts_with(NAME)) || matches!(first, "-namespace" | "-id" | "-info" | "-v")
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Call {
    namespace: String,
    address: String,
    id: String,
    bundle: Option<PathBuf>,
    version: bool,
    info: bool,
    action: String,
}

impl Call {
    /// Flags as Go's `flag` package has them: one dash or two, the value after a blank or `=`.
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut call = Self::default();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                call.action.clone_from(word);
                continue;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if matches!(name, "debug" | "v" | "info") {
                call.version |= name == "v";
                call.info |= name == "info";
                continue;
            }
            let value = match given {
                Some(value) => value,
                None => rest.next().cloned().ok_or_else(|| format!("{word} needs a value"))?,
            };
            match name {
                "namespace" => call.namespace = value,
                "address" => call.address = value,
                "id" => call.id = value,
                "bundle" => call.bundle = Some(PathBuf::from(value)),
                // Not needed: events go over ttrpc, and the socket is of our own making.
                "publish-binary" | "socket" => {}
                _ => return Err(format!("unknown flag {word}")),
            }
        }
        Ok(call)
    }

    fn bundle(&self) -> Result<PathBuf, String> {
        match &self.bundle {
            Some(bundle) => Ok(bundle.clone()),
            None => std::env::current_dir().map_err(|error| format!("the bundle's directory: {error}")),
        }
    }
}

/// Does what containerd asks for.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let call = Call::parse(arguments)?;
    if call.version {
        println!("containerd-shim-berth-v1:\n  Version: {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if call.info {
        return print(&info());
    }
    if !crate::bundle::valid_id(&call.id) {
        return Err(format!("{:?} is no container id", call.id));
    }
    match call.action.as_str() {
        "start" => start(&call),
        "delete" => print(&free(&call)?),
        other => Err(format!("unknown action {other:?}: start and delete are known")),
    }
}

fn print(message: &impl Message) -> Result<(), String> {
    let bytes = message.write_to_bytes().map_err(|error| format!("encoding the answer: {error}"))?;
    io::stdout().write_all(&bytes).map_err(|error| format!("writing the answer: {error}"))
}

fn start(call: &Call) -> Result<(), String> {
    let failed = |what: String| move |error: io::Error| format!("start: {what}: {error}");
    let bundle = call.bundle()?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(SOCKETS)
        .map_err(failed(format!("making {SOCKETS}")))?;
    let socket = socket(call);
    if UnixStream::connect(&socket).is_err() {
        let _ = fs::remove_file(&socket);
        let listener =
            UnixListener::bind(&socket).map_err(failed(format!("listening on {}", socket.display())))?;
        let log = File::create(bundle.join("shim.log")).map_err(failed("making the log".to_owned()))?;
        let path = std::env::current_exe().map_err(failed("finding the program".to_owned()))?;
        // Where no mount can be made, containers are kept from changing it only by its being executed.
        let file = program::read_only(&path).ok();
        let through = file.as_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        let mut serve = Command::new(through.as_ref().unwrap_or(&path));
        serve
            .arg0("berth-shim")
            .args(["serve", "--socket-fd", "0", "--id", &call.id, "--bundle"])
            .arg(&bundle)
            .arg("--socket-path")
            .arg(&socket);
        if let Some(events) = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty()) {
            serve.arg("--events").arg(events).args(["--namespace", &call.namespace]);
        }
        serve
            .current_dir(&bundle)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("starting the server".to_owned()))?;
    }
    let address = format!("unix://{}", socket.display());
    // containerd before 1.7 finds the shim again by this file, and leaves it to the shim to write it.
    fs::write(bundle.join("address"), &address).map_err(failed("writing the address".to_owned()))?;
    println!("{}", answer(&address, std::env::var("MAX_SHIM_VERSION").ok().as_deref()));
    Ok(())
}

/// What `start` says: a plain address to those who know no more than version 2 of the Task service, JSON to others.
fn answer(address: &str, newest: Option<&str>) -> String {
    match newest.and_then(|text| text.parse::<u32>().ok()) {
        Some(3..) => json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string(),
        _ => address.to_owned(),
    }
}

/// One address for one container of one containerd.
fn socket(call: &Call) -> PathBuf {
    let mut hash = DefaultHasher::new();
    (&call.address, &call.namespace, &call.id).hash(&mut hash);
    Path::new(SOCKETS).join(format!("{:016x}.sock", hash.finish()))
}

/// Keeps for `delete` which cgroup is the container's.
pub(crate) fn keep_cgroups(bundle: &Path, directories: &[PathBuf]) -> io::Result<()> {
    let lines: Vec<_> = directories.iter().map(|directory| directory.to_string_lossy()).collect();
    fs::write(bundle.join(CGROUPS), lines.join("\n"))
}

fn kept_cgroups(bundle: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(bundle.join(CGROUPS)).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

/// Ends and removes what a shim left of its container.
fn free(call: &Call) -> Result<api::DeleteResponse, String> {
    let bundle = call.bundle()?;
    let _ = fs::remove_file(socket(call));
    let cgroups = kept_cgroups(&bundle);
    cgroup::kill_all(&cgroups, DELETE_MAX);
    let mut work = job::spawn(&[], |reporter| delete::run(&call.id, &bundle, &cgroups, None, &[], reporter))
        .map_err(|failure| format!("delete: {failure}"))?;
    let deadline = Instant::now() + DELETE_MAX;
    while Instant::now() < deadline {
        let mut fds = [libc::pollfd { fd: work.fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut fds, Some(1000)).map_err(|error| format!("delete: {error}"))?;
        let (reports, ended) = work.read();
        for report in reports {
            if let Report::Failed(failure) = report {
                say(format_args!("delete: {failure}"));
            }
        }
        if ended {
            break;
        }
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let mut response =
        api::DeleteResponse { exit_status: KILLED, exited_at: time(now), ..Default::default() };
    // It may have ended before its shim did.
    let exit = fs::read(bundle.join("exit.json")).ok();
    if let Some(exit) = exit.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok()) {
        let number = |key: &str| exit.get(key).and_then(serde_json::Value::as_i64);
        response.exit_status =
            number("exit_code").and_then(|code| u32::try_from(code).ok()).unwrap_or(KILLED);
        response.pid = number("pid").and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        if let Some(at) = number("exited_at_ns") {
            response.exited_at = time(at);
        }
    }
    Ok(response)
}

/// What the runtime can do, as the runtime specification's `features.md` says it.
pub(crate) fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "bind", "defaults", "dev", "dirsync", "exec", "noatime", "nodev", "nodiratime", "noexec",
            "norelatime", "nosuid", "private", "ratime", "rbind", "rdev", "relatime", "remount", "rexec", "rnoatime",
            "rnodev", "rnoexec", "rnosuid", "ro", "rprivate", "rro", "rrw", "rshared", "rslave", "rsuid", "rw",
            "shared", "slave", "strictatime", "suid", "sync",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
        },
        "annotations": {"dev.berth.shim.version": env!("CARGO_PKG_VERSION")},
    })
}

fn info() -> RuntimeInfo {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let features = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    };
    RuntimeInfo {
        name: "io.containerd.berth.v1".to_owned(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn call(text: &str) -> Result<Call, String> {
        Call::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_in_the_form_of_go() {
        let found = call(
            "-namespace moby --address=/run/c.sock -publish-binary /usr/bin/containerd -id x -debug start",
        );
        let found = found.unwrap();
        assert_eq!((found.namespace.as_str(), found.address.as_str()), ("moby", "/run/c.sock"));
        assert_eq!((found.id.as_str(), found.action.as_str()), ("x", "start"));
        assert!(call("-id").is_err() && call("-odd x").is_err());
        assert!(call("-info").unwrap().info && call("-v").unwrap().version);
    }

    #[test]
    fn it_answers_in_the_form_that_is_understood() {
        assert_eq!(answer("unix:///s", None), "unix:///s");
        assert_eq!(answer("unix:///s", Some("2")), "unix:///s");
        let json: serde_json::Value = serde_json::from_str(&answer("unix:///s", Some("3"))).unwrap();
        assert_eq!((&json["version"], &json["address"]), (&json!(3), &json!("unix:///s")));
    }

    #[test]
    fn it_knows_when_containerd_calls() {
        assert!(is_meant("/usr/local/bin/containerd-shim-berth-v1", "serve"));
        assert!(is_meant("berth-shim", "-namespace"));
        assert!(!is_meant("/usr/bin/berth-shim", "serve"));
    }

    #[test]
    fn addresses_are_short_and_differ() {
        let at = |namespace: &str, id: &str| {
            socket(&Call { namespace: namespace.to_owned(), id: id.to_owned(), ..Default::default() })
        };
        assert_ne!(at("a", "x"), at("b", "x"));
        assert_ne!(at("a", "bc"), at("ab", "c"));
        assert!(at(&"n".repeat(76), &"i".repeat(76)).as_os_str().len() < 100);
    }

    #[test]
    fn the_information_is_what_containerd_reads() {
        let info = RuntimeInfo::parse_from_bytes(&info().write_to_bytes().unwrap()).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().iter().any(|option| option == "rro"));
    }
}
