//! Scopes of systemd: on a machine that it runs with cgroup v2, it alone makes the cgroups below its slices, and whoever wants one
//! asks for a scope ("The New Control Group Interfaces"; systemd's CGROUP_DELEGATION, "single-writer rule").
//!
//! ```text
//! cgroup of the container   /kubepods.slice/kubepods-podX.slice/cri-berth-<id>.scope
//! scope                     cri-berth-<id>.scope in kubepods-podX.slice, delegated
//! ```
//!
//! The process that creates a container asks for the scope with itself in it, and the container's processes, which it starts, are
//! born there. Limits are written into the cgroup's files, as on any machine; then systemd is told what they are, so that it does not
//! undo them when it writes that cgroup anew (`daemon-reload`, new properties of the slice). The scope ends by itself when its last
//! process has.

mod bus;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use self::bus::{Bus, Error};
use self::wire::{Property, Value, Writer};
use crate::say::say;
use crate::status::Failure;

/// How long the scope may take to have us in it, and how often we look.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(1);
/// How long a unit of the same name, of a creation that was cut off, may take to go.
const GOING: Duration = Duration::from_secs(5);
/// systemd's "no limit".
const INFINITY: u64 = u64::MAX;

/// A scope, named by its cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// `kubepods-podX.slice`
    slice: String,
    /// What stands before the id: `cri-berth`.
    prefix: String,
    /// The id.
    name: String,
}

impl Scope {
    /// The scope whose cgroup has this path below the hierarchy, if systemd runs this machine with cgroup v2 and the path is one of
    /// its scopes.
    pub(crate) fn of(cgroup: &Path) -> Option<Self> {
        // sd_booted(3)
        let booted = Path::new("/run/systemd/system").is_dir() && crate::cgroup::unified();
        if booted { Self::named(cgroup) } else { None }
    }

    fn named(cgroup: &Path) -> Option<Self> {
        let unit = cgroup.file_name()?.to_str()?.strip_suffix(".scope")?;
        let slice = cgroup.parent()?.file_name()?.to_str()?;
        // The id has no dash, the prefix may.
        let (prefix, name) = unit.rsplit_once('-')?;
        let whole = slice.ends_with(".slice") && !prefix.is_empty() && !name.is_empty();
        whole.then(|| Self { slice: slice.to_owned(), prefix: prefix.to_owned(), name: name.to_owned() })
    }

    /// The scope of a `cgroupsPath` in the systemd driver's form, `slice:prefix:name` (runc, docs/systemd.md).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let whole = parts.next().is_none()
            && slice.ends_with(".slice")
            && [slice, prefix, name].iter().all(|part| !part.is_empty() && !part.contains('/'));
        whole.then(|| Self { slice: slice.to_owned(), prefix: prefix.to_owned(), name: name.to_owned() })
    }

    /// In the systemd driver's form.
    pub(crate) fn as_cgroups_path(&self) -> String {
        format!("{}:{}:{}", self.slice, self.prefix, self.name)
    }

    /// Path of its cgroup: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
    pub(crate) fn cgroup(&self) -> PathBuf {
        let mut path = PathBuf::from("/");
        let stem = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        if stem != "-" {
            path.extend(ends.filter_map(|end| stem.get(..end)).map(|part| format!("{part}.slice")));
        }
        path.join(self.unit())
    }

    fn unit(&self) -> String {
        format!("{}-{}.scope", self.prefix, self.name)
    }

    /// Moves the calling process into the scope, which is made for it. Returns when it is there.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        let unit = self.unit();
        let failed = |error: Error| Failure::doing(&format!("asking systemd for {unit}"), &error);
        let mut bus = Bus::connect().map_err(failed)?;
        let properties = self.birth(std::process::id());
        let deadline = Instant::now() + GOING;
        loop {
            match start(&mut bus, &unit, &properties) {
                Err(error) if error.exists() && Instant::now() < deadline => {
                    // One that failed stays until somebody has seen it; one that ends is gone soon.
                    let _ = reset(&mut bus, &unit);
                    sleep(Duration::from_millis(20));
                }
                other => break other.map_err(failed)?,
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let own = crate::cgroup::own_membership()
                .map_err(|error| Failure::doing("reading the cgroup", &error))?;
            if own.iter().any(|(_, path)| path.ends_with(&format!("/{unit}"))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::internal(format!("systemd took {unit}, and has not started it")));
            }
            sleep(STEP);
        }
    }

    fn birth(&self, pid: u32) -> Vec<Property> {
        let mut properties = vec![
            ("Description", Value::Text(format!("container {}", self.name))),
            ("Slice", Value::Text(self.slice.clone())),
            ("Delegate", Value::Flag(true)),
            // One whose processes were killed for lack of memory must not stay as failed.
            ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
            ("DefaultDependencies", Value::Flag(false)),
            ("PIDs", Value::Numbers(vec![pid])),
        ];
        let accounted = ["CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"];
        properties.extend(accounted.map(|name| (name, Value::Flag(true))));
        properties
    }
}

fn start(bus: &mut Bus, unit: &str, properties: &[Property]) -> Result<(), Error> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace");
    body.properties(properties);
    body.no_units();
    bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
}

fn reset(bus: &mut Bus, unit: &str) -> Result<(), Error> {
    let mut body = Writer::default();
    body.text(unit);
    bus.call("ResetFailedUnit", "s", body)
}

/// Tells systemd the limits in the files of a scope's cgroup, a directory of the v2 hierarchy; does nothing for other cgroups. The
/// limits are in force whatever comes of it: what can't be told is said on standard error, the shim's log.
pub(crate) fn tell_limits(directory: &Path) {
    let Some(scope) = Scope::of(directory) else { return };
    let limits = Limits::read(directory);
    let mut body = Writer::default();
    body.text(&scope.unit());
    // Until the next boot only: the scope does not outlive it either.
    body.flag(true);
    body.properties(&limits.properties());
    let told = Bus::connect().and_then(|mut bus| bus.call("SetUnitProperties", "sba(sv)", body));
    if let Err(error) = told {
        say(format_args!("telling systemd the limits of {}: {error}", scope.unit()));
    }
    // systemd counts processor time in hundredths of a processor: what it wrote may be a little more.
    limits.write_back(directory);
}

/// The files whose values systemd has properties for.
const FILES: [&str; 10] = [
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
];

/// What the files of a cgroup say, without those that the kernel does not have.
#[derive(Debug, Default)]
struct Limits(Vec<(&'static str, String)>);

impl Limits {
    fn read(directory: &Path) -> Self {
        let value = |file| fs::read_to_string(directory.join(file)).ok();
        Self(FILES.into_iter().filter_map(|file| Some((file, value(file)?.trim().to_owned()))).collect())
    }

    fn write_back(&self, directory: &Path) {
        for (file, value) in &self.0 {
            let path = directory.join(file);
            if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value)
                && let Err(error) = fs::write(&path, format!("{value}\n"))
            {
                say(format_args!("writing {}: {error}", path.display()));
            }
        }
    }

    fn properties(&self) -> Vec<Property> {
        let mut properties = Vec::new();
        for (file, value) in &self.0 {
            let number = || if value == "max" { Some(INFINITY) } else { value.parse().ok() };
            let (name, limit) = match *file {
                "memory.min" => ("MemoryMin", number().map(Value::Number)),
                "memory.low" => ("MemoryLow", number().map(Value::Number)),
                "memory.high" => ("MemoryHigh", number().map(Value::Number)),
                "memory.max" => ("MemoryMax", number().map(Value::Number)),
                "memory.swap.max" => ("MemorySwapMax", number().map(Value::Number)),
                "pids.max" => ("TasksMax", number().map(Value::Number)),
                "cpu.weight" => ("CPUWeight", number().map(Value::Number)),
                "cpuset.cpus" => ("AllowedCPUs", mask(value).map(Value::Bytes)),
                "cpuset.mems" => ("AllowedMemoryNodes", mask(value).map(Value::Bytes)),
                _ => {
                    properties.extend(cpu_max(value).into_iter().flatten());
                    continue;
                }
            };
            properties.extend(limit.map(|limit| (name, limit)));
        }
        properties
    }
}

/// `QUOTA PERIOD`, microseconds each, or `max PERIOD`. systemd has the quota for a second, and knows no finer steps than a hundredth
/// of it: it is rounded up, as the other way round a container would get less than it was promised.
fn cpu_max(text: &str) -> Option<[Property; 2]> {
    const SECOND: u64 = 1_000_000;
    const STEP: u64 = SECOND / 100;
    let (quota, period) = text.split_once(' ')?;
    let period: u64 = period.parse().ok().filter(|period| *period > 0)?;
    let per_second = match quota {
        "max" => INFINITY,
        quota => {
            let exact = u128::from(quota.parse::<u64>().ok()?) * u128::from(SECOND) / u128::from(period);
            u64::try_from(exact).ok()?.checked_next_multiple_of(STEP)?.max(STEP)
        }
    };
    Some([("CPUQuotaPerSecUSec", Value::Number(per_second)), ("CPUQuotaPeriodUSec", Value::Number(period))])
}

/// A list such as `0-3,7` as bits, the lowest first; none for an empty one, which is no limit.
fn mask(list: &str) -> Option<Vec<u8>> {
    /// More processors than any kernel has (`CONFIG_NR_CPUS`).
    const MAX: usize = 8192;
    let mut bits = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        if to < from || to >= MAX {
            return None;
        }
        bits.resize(bits.len().max(to / 8 + 1), 0_u8);
        for bit in from..=to {
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_known_by_its_cgroup_and_by_its_name() {
        let path =
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podA_b.slice/cri-berth-0af1.scope";
        let scope = Scope::named(Path::new(path));
        let parsed = Scope::parse("kubepods-burstable-podA_b.slice:cri-berth:0af1");
        assert_eq!(scope, parsed);
        let scope = scope.unwrap_or_else(|| unreachable!("it is one"));
        assert_eq!(scope.unit(), "cri-berth-0af1.scope");
        assert_eq!(scope.cgroup(), Path::new(path));
        assert_eq!(scope.as_cgroups_path(), "kubepods-burstable-podA_b.slice:cri-berth:0af1");
        let system = Scope::parse(":docker:1").map(|scope| scope.cgroup());
        assert_eq!(system.as_deref(), Some(Path::new("/system.slice/docker-1.scope")));
        let root = Scope::parse("-.slice:a:1").map(|scope| scope.cgroup());
        assert_eq!(root.as_deref(), Some(Path::new("/a-1.scope")));
    }

    #[test]
    fn what_is_no_scope_is_left_alone() {
        for path in ["/berth/pod/0af1", "/a.slice/0af1.scope", "/a/b-1.scope", "/b-1.scope", "/"] {
            assert_eq!(Scope::named(Path::new(path)), None, "{path}");
        }
        for text in ["", "a.slice", "a.slice:b", "a:b:c", "a.slice:b:c:d", "a.slice:../b:c", "a.slice::c"] {
            assert_eq!(Scope::parse(text), None, "{text}");
        }
    }

    #[test]
    fn limits_are_said_in_systemds_words() {
        let limits = Limits(vec![
            ("memory.max", "67108864".to_owned()),
            ("memory.swap.max", "max".to_owned()),
            ("pids.max", "12".to_owned()),
            ("cpu.max", "12345 100000".to_owned()),
            ("cpuset.cpus", "0-1,9".to_owned()),
            ("cpuset.mems", String::new()),
        ]);
        let wanted = [
            ("MemoryMax", Value::Number(64 << 20)),
            ("MemorySwapMax", Value::Number(INFINITY)),
            ("TasksMax", Value::Number(12)),
            ("CPUQuotaPerSecUSec", Value::Number(130_000)),
            ("CPUQuotaPeriodUSec", Value::Number(100_000)),
            ("AllowedCPUs", Value::Bytes(vec![0b11, 0b10])),
            ("AllowedMemoryNodes", Value::Bytes(Vec::new())),
        ];
        assert_eq!(limits.properties(), wanted);
        assert_eq!(cpu_max("max 100000").map(|[quota, _]| quota.1), Some(Value::Number(INFINITY)));
        for odd in ["", "x 100000", "1", "1 0"] {
            assert_eq!(cpu_max(odd), None, "{odd}");
        }
        assert_eq!(mask("3-1"), None);
        assert_eq!(mask("99999"), None);
    }
}
