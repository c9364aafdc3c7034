//! The options of `run` that have a syntax of their own, read.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{KeyValue, LinuxContainerResources, Mount, PortMapping, Signal};

use super::{Run, log_dir};
use crate::options::isolation::Isolated;
use crate::options::network::{self, Networks};
use crate::options::volume::Volume;
use crate::options::{env, name, port, signal, user, volume};

/// They are all in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub ports: Vec<PortMapping>,
    pub mounts: Vec<Mount>,
    /// Which of them are of volumes: their path is not known yet.
    pub volumes: Vec<(usize, Volume)>,
    pub envs: Vec<KeyValue>,
    pub resources: LinuxContainerResources,
    pub isolated: Isolated,
    pub stop_signal: Option<Signal>,
    pub user: user::User,
    pub host_network: bool,
    pub labels: HashMap<String, String>,
    pub annotations: HashMap<String, String>,
}

impl Settings {
    /// Reads them; the first that is not in order is the error.
    pub(crate) fn read(run: &Run) -> Result<Self> {
        if let Some(name) = &run.name {
            name::check(name).context("--name")?;
        }
        if !run.log_dir.is_absolute() {
            bail!("--log-dir {}: give a path from /, as in {}", run.log_dir.display(), log_dir::DEFAULT);
        }
        if let Some(path) = run.workdir.as_deref().filter(|path| !path.starts_with('/')) {
            bail!("-w {path}: give a path from / in the container");
        }
        let networks = network::parse(&run.network).context("--network")?;
        let host_network = networks == Networks::Host;
        let mut annotations = env::pairs(&run.annotation).context("--annotation")?;
        if let Networks::Named(text) = networks
            && annotations.insert(network::ANNOTATION.to_owned(), text).is_some()
        {
            bail!("--network and --annotation {} both name networks: leave one out", network::ANNOTATION);
        }
        if host_network && !run.publish.is_empty() {
            bail!("-p has no meaning with --network host: the container's ports are the host's own");
        }
        let here = std::env::current_dir().context("finding the current directory")?;
        let (mounts, volumes) = mounts(&run.volume, &here)?;
        Ok(Self {
            ports: ports(&run.publish)?,
            mounts,
            volumes,
            envs: variables(run)?,
            resources: run.limits.resources()?,
            isolated: run.isolation.read(&here)?,
            stop_signal: run
                .stop_signal
                .as_deref()
                .map(signal::parse)
                .transpose()
                .context("--stop-signal")?,
            user: run.user.as_deref().map(user::parse).transpose()?.unwrap_or_default(),
            host_network,
            labels: env::pairs(&run.label).context("--label")?,
            annotations,
        })
    }
}

fn ports(texts: &[String]) -> Result<Vec<PortMapping>> {
    let ports = texts.iter().map(|text| port::parse(text)).collect::<Result<Vec<_>>>()?;
    for (index, port) in ports.iter().enumerate() {
        let same = |other: &PortMapping| {
            (other.host_port, other.protocol, &other.host_ip)
                == (port.host_port, port.protocol, &port.host_ip)
        };
        if ports.iter().take(index).any(same) {
            bail!("-p: port {} of the host is given twice", port.host_port);
        }
    }
    Ok(ports)
}

/// Mounts, and which of them are of volumes.
type Mounts = (Vec<Mount>, Vec<(usize, Volume)>);

fn mounts(texts: &[String], here: &Path) -> Result<Mounts> {
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    for text in texts {
        let wanted = volume::parse(text, here)?;
        volumes.extend(wanted.volume.map(|volume| (mounts.len(), volume)));
        mounts.push(wanted.mount);
    }
    for (index, mount) in mounts.iter().enumerate() {
        if mounts.iter().take(index).any(|other| other.container_path == mount.container_path) {
            bail!("-v: the destination {} is given twice", mount.container_path);
        }
    }
    Ok((mounts, volumes))
}

fn variables(run: &Run) -> Result<Vec<KeyValue>> {
    let mut texts = Vec::new();
    for path in &run.env_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("--env-file {}", path.display()))?;
        texts.extend(env::file_lines(&text).map(str::to_owned));
    }
    let all = texts.iter().chain(&run.env).map(String::as_str);
    env::variables(all, |name| std::env::var_os(name)).context("--env")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::options::limits::Limits;

    fn run() -> Run {
        Run { log_dir: log_dir::DEFAULT.into(), image: "a".into(), ..Run::default() }
    }

    #[test]
    fn what_is_asked_for_is_read() {
        let run = Run {
            publish: vec!["8080:80".into(), "8080:80/udp".into()],
            limits: Limits { memory: Some("1g".into()), cpus: Some("0.5".into()), ..Limits::default() },
            stop_signal: Some("QUIT".into()),
            user: Some("33".into()),
            label: vec!["a=b".into()],
            ..run()
        };
        let settings = Settings::read(&run).unwrap();
        assert_eq!(settings.ports.len(), 2);
        assert_eq!(settings.resources.memory_limit_in_bytes, 1 << 30);
        assert_eq!((settings.resources.cpu_quota, settings.resources.cpu_period), (50_000, 100_000));
        assert_eq!(settings.stop_signal, Some(Signal::Sigquit));
        assert_eq!(settings.labels["a"], "b");
        assert!(!settings.host_network);
    }

    #[test]
    fn files_of_variables_are_weaker() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\nA=file\nB=file\n").unwrap();
        let run = Run { env_file: vec![file.path().into()], env: vec!["A=option".into()], ..run() };
        let envs = Settings::read(&run).unwrap().envs;
        let envs: Vec<_> = envs.iter().map(|env| (env.key.as_str(), env.value.as_slice())).collect();
        assert_eq!(envs, [("A", b"option".as_slice()), ("B", b"file")]);
    }

    #[test]
    fn contradictions_are_refused() {
        let host = || Run { network: vec!["host".into()], ..run() };
        assert!(Settings::read(&host()).unwrap().host_network);
        for (run, word) in [
            (Run { publish: vec!["1:1".into()], ..host() }, "no meaning"),
            (Run { network: vec!["host".into(), "blue".into()], ..run() }, "--network"),
            (
                Run {
                    network: vec!["blue".into()],
                    annotation: vec!["berth.dev/networks=red".into()],
                    ..run()
                },
                "both name networks",
            ),
            (Run { publish: vec!["1:1".into(), "1:2".into()], ..run() }, "twice"),
            (Run { volume: vec!["/a:/x".into(), "/b:/x".into()], ..run() }, "twice"),
            (Run { workdir: Some("tmp".into()), ..run() }, "from /"),
            (Run { log_dir: "logs".into(), ..run() }, "--log-dir"),
            (Run { name: Some("a/b".into()), ..run() }, "--name"),
            (
                Run { limits: Limits { memory: Some("lots".into()), ..Limits::default() }, ..run() },
                "--memory",
            ),
            (Run { stop_signal: Some("NOPE".into()), ..run() }, "--stop-signal"),
            (Run { env_file: vec!["/nonexistent".into()], ..run() }, "/nonexistent"),
        ] {
            let error = format!("{:#}", Settings::read(&run).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
