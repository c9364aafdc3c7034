//! Runtime handlers: several keys there are one `[runtimes.NAME]` here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::Value;

use super::{Fate, Import, Note, Origin};

/// Before a handler's name in the key.
const CONTAINERD: &str = "cri.containerd.runtimes.";
const CRIO: &str = "crio.runtime.runtimes.";

/// What a handler says of itself.
#[derive(Debug, Default)]
struct Handler {
    /// containerd: `io.containerd.runc.v2`. CRI-O: `oci`, `vm`.
    kind: String,
    /// The program that is called.
    path: String,
    /// containerd: the OCI runtime that its shim for runc calls.
    binary: String,
    root: String,
    config: String,
    /// Keys that have the same name here.
    switches: BTreeMap<&'static str, bool>,
}

/// Those keys.
const SWITCHES: [&str; 3] = [
    "cgroup_writable",
    "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
];

/// The handlers of a file.
#[derive(Debug, Default)]
pub(super) struct Handlers {
    found: BTreeMap<String, Handler>,
    systemd: Option<bool>,
}

impl Handlers {
    /// Takes a key if it is a handler's. Returns what became of it, if that is known by itself.
    pub(super) fn take(&mut self, origin: Origin, key: &str, value: &Value) -> Option<Option<Fate>> {
        let rest = key.strip_prefix(match origin {
            Origin::Containerd => CONTAINERD,
            Origin::Crio => CRIO,
        })?;
        let (name, key) = rest.split_once('.')?;
        let handler = self.found.entry(name.to_owned()).or_default();
        let text = value.as_str().unwrap_or_default().to_owned();
        if let (Some(switch), Some(on)) = (SWITCHES.iter().find(|switch| **switch == key), value.as_bool()) {
            handler.switches.insert(switch, on);
            return Some(on.then(|| Fate::Becomes(format!("runtimes.{name}.{switch}"))));
        }
        let place = match (origin, key) {
            (_, "runtime_type") => &mut handler.kind,
            (_, "runtime_path") => &mut handler.path,
            (Origin::Containerd, "options.BinaryName") => &mut handler.binary,
            (Origin::Containerd, "options.Root") | (_, "runtime_root") => &mut handler.root,
            (Origin::Containerd, "options.ConfigPath") | (Origin::Crio, "runtime_config_path") => {
                &mut handler.config
            }
            (Origin::Containerd, "options.SystemdCgroup") => {
                let runc = name == "runc" || self.systemd.is_none();
                self.systemd = value.as_bool().filter(|_| runc).or(self.systemd);
                return Some(None);
            }
            // What CRI-O knows of its monitor, and what holds anyway.
            (Origin::Crio, "monitor_path" | "monitor_cgroup" | "monitor_env" | "monitor_exec_cgroup") => {
                return Some(None);
            }
            (Origin::Containerd, "sandboxer" | "sandbox_mode") => return Some(None),
            _ if super::rule::says_nothing(value) => return Some(None),
            _ => return Some(Some(Fate::Missing(format!("handlers have no {key}")))),
        };
        if !text.is_empty() {
            *place = text;
        }
        Some(None)
    }

    /// Writes `[runtimes.NAME]` for each.
    pub(super) fn finish(self, origin: Origin, import: &mut Import) {
        let before = match origin {
            Origin::Containerd => "plugins.cri.containerd.runtimes",
            Origin::Crio => "crio.runtime.runtimes",
        };
        for (name, handler) in self.found {
            let fate = match ours(origin, &handler, &import.search) {
                Ok(settings) => {
                    let settings = settings
                        .into_iter()
                        .filter(|(_, value)| !value.is_empty())
                        .map(|(key, value)| (format!("runtimes.{name}.{key}"), Value::String(value)));
                    import.settings.extend(settings);
                    let switches = handler.switches.iter().filter(|(_, on)| **on);
                    import.settings.extend(
                        switches.map(|(key, on)| (format!("runtimes.{name}.{key}"), Value::Boolean(*on))),
                    );
                    Fate::Becomes(format!("runtimes.{name}"))
                }
                Err(why) => {
                    // A default that is not there would be refused.
                    let default = import.settings.get("default_runtime").and_then(Value::as_str);
                    if default == Some(name.as_str()) {
                        import.settings.remove("default_runtime");
                    }
                    Fate::Missing(why)
                }
            };
            import.notes.push(Note { key: format!("{before}.{name}"), fate });
        }
        if let Some(systemd) = self.systemd {
            let driver = if systemd { "systemd" } else { "cgroupfs" };
            import.settings.insert("cgroup.driver".to_owned(), Value::String(driver.to_owned()));
            let key = format!("{before}.*.options.SystemdCgroup");
            import.notes.push(Note { key, fate: Fate::Becomes("cgroup.driver".to_owned()) });
        }
    }
}

type Settings = Vec<(&'static str, String)>;

fn ours(origin: Origin, handler: &Handler, search: &[PathBuf]) -> Result<Settings, String> {
    let Handler { kind, path, binary, root, config, switches: _ } = handler;
    let oci = |program: &str| -> Result<Settings, String> {
        Ok(vec![("type", "oci".into()), ("path", find(program, search)?), ("root", root.clone())])
    };
    let shim = |program: &str| -> Result<Settings, String> {
        Ok(vec![("type", "shim".into()), ("path", find(program, search)?), ("config", config.clone())])
    };
    match (origin, kind.as_str()) {
        // containerd's shim for runc is not needed to call runc.
        (Origin::Containerd, "io.containerd.runc.v2" | "io.containerd.runc.v1") if path.is_empty() => {
            oci(if binary.is_empty() { "runc" } else { binary })
        }
        (Origin::Containerd, "") if path.is_empty() => {
            Err("it names no runtime_type: the handler `berth` is always there".into())
        }
        (Origin::Containerd, _) if !path.is_empty() => shim(path),
        (Origin::Containerd, kind) => shim(&shim_of(kind)?),
        (Origin::Crio, "vm") => shim(path),
        (Origin::Crio, "" | "oci") => oci(if path.is_empty() { "runc" } else { path }),
        (Origin::Crio, kind) => Err(format!("handlers of type {kind} are not there")),
    }
}

/// The program that `io.containerd.NAME.VERSION` stands for (containerd's runtime v2 naming).
fn shim_of(kind: &str) -> Result<String, String> {
    if kind.starts_with('/') {
        return Ok(kind.to_owned());
    }
    let mut parts = kind.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(version), Some(name)) if !name.is_empty() => Ok(format!("containerd-shim-{name}-{version}")),
        _ => Err(format!("{kind} is no name of a shim")),
    }
}

fn find(program: &str, search: &[PathBuf]) -> Result<String, String> {
    if program.starts_with('/') {
        return Ok(program.to_owned());
    }
    let found = search.iter().map(|directory| directory.join(program)).find(|path| path.is_file());
    found
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("{program} is not installed: install it and import again"))
}

/// An address and a port, as one writes them together.
pub(super) fn socket(address: &str, port: &str) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
