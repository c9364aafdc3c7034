//! What each runtime handler can do: asked of its program when the daemon starts, never assumed.
//!
//! An OCI runtime answers `features` (opencontainers/runtime-spec, `features.md`), a shim `-info` with the same document in it
//! (containerd, `core/runtime/v2/README.md`). containerd-shim-runc-v2 before containerd 2.0 has no `-info`; it runs the `runc` that
//! is in `PATH`, so that is asked. A program that does not answer gets nothing that needs an answer.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use serde_json::Value;

use crate::config::Runtime;
use crate::container::Restores;

/// How long a program may take: some start a virtual machine's tools first.
const ANSWER_MAX: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_secs(10) };
/// The longest answer; runc's has 4 KiB.
const LENGTH_MAX: u64 = 1 << 20;

/// What a handler can do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Abilities {
    /// Mounts that are read-only with all that is mounted below them (KEP-3857).
    pub(super) recursive_read_only_mounts: bool,
    /// Pods with a user namespace, their volumes mapped (KEP-127), where the kernel has all that this needs.
    pub(super) user_namespaces: bool,
    /// Containers from checkpoints.
    pub(super) restores: Restores,
}

/// Asks all handlers at once.
pub(super) fn ask(runtimes: &BTreeMap<String, Runtime>) -> BTreeMap<String, Abilities> {
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            runtimes.iter().map(|(name, runtime)| (name, scope.spawn(move || of(name, runtime)))).collect();
        asked.into_iter().map(|(name, thread)| (name.clone(), thread.join().unwrap_or_default())).collect()
    })
}

fn of(name: &str, runtime: &Runtime) -> Abilities {
    let answer = match runtime {
        Runtime::Berth => return built_in(),
        Runtime::Oci { path, .. } => features(path),
        Runtime::Shim { path, .. } => info(path).or_else(|error| {
            let runs_runc =
                path.file_name().is_some_and(|name| name.to_string_lossy().contains("shim-runc-"));
            if runs_runc { features(Path::new("runc")) } else { Err(error) }
        }),
    };
    match answer {
        // Mounts with mapped owners are our own shim's work, whoever creates the container; another's shim does not do it.
        Ok(features) => abilities(&features, has_mount_setattr(), matches!(runtime, Runtime::Oci { .. })),
        Err(error) => {
            tracing::info!(handler = name, error, "does not tell its features: none is assumed");
            Abilities { restores: Restores::No { why: error }, ..Abilities::default() }
        }
    }
}

/// What the linked-in runtime can do on this kernel.
fn built_in() -> Abilities {
    Abilities {
        recursive_read_only_mounts: has_mount_setattr(),
        user_namespaces: true,
        restores: Restores::Yes,
    }
}

/// `program`: it is an OCI runtime, which our own shim calls.
fn abilities(features: &Value, recursive: bool, program: bool) -> Abilities {
    let lists = |pointer: &str, wanted: &str| {
        features
            .pointer(pointer)
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|one| one == wanted))
    };
    Abilities {
        recursive_read_only_mounts: recursive && lists("/mountOptions", "rro"),
        user_namespaces: program && lists("/linux/namespaces", "user"),
        restores: restores(features, program),
    }
}

/// An OCI runtime tells by an annotation whether it was built to call criu: runc's is `org.opencontainers.runc.checkpoint.enabled`
/// (opencontainers/runc, `types/features`), crun's `run.oci.crun.checkpoint.enabled`.
fn restores(features: &Value, program: bool) -> Restores {
    if !program {
        return Restores::No { why: "other shims are not asked to".to_owned() };
    }
    let told = features
        .get("annotations")
        .and_then(Value::as_object)
        .and_then(|annotations| annotations.iter().find(|(name, _)| name.ends_with(".checkpoint.enabled")));
    match told {
        Some((_, value)) if value == "true" => Restores::Yes,
        Some((name, value)) => Restores::No { why: format!("its features say {name}={value}") },
        None => Restores::No { why: "its features have no annotation checkpoint.enabled".to_owned() },
    }
}

fn features(program: &Path) -> Result<Value, String> {
    let output = run(program, "features")?;
    serde_json::from_slice(&output).map_err(|error| format!("{} features: {error}", program.display()))
}

fn info(program: &Path) -> Result<Value, String> {
    let output = run(program, "-info")?;
    let failed = |error: String| format!("{} -info: {error}", program.display());
    let info = RuntimeInfo::parse_from_bytes(&output).map_err(|error| failed(error.to_string()))?;
    let features = info.features.as_ref().ok_or_else(|| failed("it has no features".to_owned()))?;
    serde_json::from_slice(&features.value).map_err(|error| failed(error.to_string()))
}

fn run(program: &Path, argument: &str) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("{} {argument}: {error}", program.display());
    let mut child = Command::new(program)
        .arg(argument)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let stdout = child.stdout.take();
    let (sender, reading) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.map_or(Ok(0), |stdout| stdout.take(LENGTH_MAX).read_to_end(&mut output));
        let _ = sender.send(read.map(|_| output));
    });
    let deadline = Instant::now() + ANSWER_MAX;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    // It may have left somebody behind who holds its output open, for as long as he lives.
    let rest = deadline.saturating_duration_since(Instant::now());
    let output = reading.recv_timeout(rest).map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
    let output = output.map_err(failed)?;
    if status.success() { Ok(output) } else { Err(format!("{} {argument}: {status}", program.display())) }
}

fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// mount_setattr(2) is there since linux 5.12.
fn has_mount_setattr() -> bool {
    kernel() >= (5, 12)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({
            "mountOptions": ["ro", "rro"],
            "linux": {"namespaces": ["pid", "user"]},
        })
    }

    #[test]
    fn a_feature_needs_both_runtime_and_kernel() {
        let both = |able: &Abilities| (able.recursive_read_only_mounts, able.user_namespaces);
        assert_eq!(both(&abilities(&document(), true, true)), (true, true));
        assert_eq!(both(&abilities(&document(), false, false)), (false, false));
        assert_eq!(both(&abilities(&json!({}), true, true)), (false, false));
    }

    #[test]
    fn who_restores_says_so_himself() {
        let of = |annotations: Value, program| restores(&json!({ "annotations": annotations }), program);
        let runc = json!({"org.opencontainers.runc.checkpoint.enabled": "true"});
        assert_eq!(of(runc.clone(), true), Restores::Yes);
        assert!(matches!(of(runc, false), Restores::No { .. }), "a shim that runs it");
        let crun = of(json!({"run.oci.crun.checkpoint.enabled": "false"}), true);
        assert!(matches!(crun, Restores::No { why } if why.contains("run.oci.crun.checkpoint.enabled=")));
        assert!(matches!(restores(&json!({}), true), Restores::No { .. }));
    }

    #[test]
    fn programs_are_asked() {
        let directory = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            path
        };
        let good = script("good", &format!("[ $1 = features ] && echo '{}'", document()));
        assert_eq!(features(&good).unwrap(), document());
        let silent = script("silent", "exit 1");
        let said = |error: String| error;
        assert!(features(&silent).map_err(said).unwrap_err().contains("silent features: exit status: 1"));
        assert!(info(&good).is_err());
        let forks = script("forks", &format!("sleep 20 & echo '{}'", document()));
        assert!(
            features(&forks).map_err(said).unwrap_err().contains("timed out"),
            "who is left behind is not waited for"
        );
        let odd = script("odd", "echo no json");
        assert!(features(&odd).is_err());
        let runtimes = BTreeMap::from([
            ("a".to_owned(), Runtime::Oci { path: silent, root: "/".into() }),
            ("b".to_owned(), Runtime::Oci { path: directory.path().join("missing"), root: "/".into() }),
        ]);
        assert!(ask(&runtimes).values().all(|one| !one.user_namespaces && one.restores != Restores::Yes));
    }
}
