//! The daemon under test: `berthd`, or containerd in its place.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::netns::Netns;

/// Which daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Berth,
    Containerd,
}

impl Runtime {
    /// What `BERTH_TEST_RUNTIME` asks for.
    pub(crate) fn from_environment() -> Self {
        match std::env::var("BERTH_TEST_RUNTIME").as_deref() {
            Ok("containerd") => Self::Containerd,
            Ok("berth" | "") | Err(_) => Self::Berth,
            Ok(other) => panic!("BERTH_TEST_RUNTIME={other}: berth or containerd"),
        }
    }
}

/// Where `berthd`, `berth` and `berth-shim` are: `BERTH_BIN_DIR`, or beside what cargo built for this test.
pub(crate) fn binaries() -> PathBuf {
    std::env::var_os("BERTH_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_BIN_EXE_berthd")).parent().unwrap().to_owned(), PathBuf::from)
}

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The pools of the pods' network.
    pub(crate) subnets: Vec<String>,
    /// The `[network]` section of Berth's configuration, as it is written.
    pub(crate) network: String,
    /// More for the `[images]` section of Berth's configuration, as it is written.
    pub(crate) images: String,
    /// More `[runtimes.NAME]` tables of Berth's configuration.
    pub(crate) runtimes: String,
    /// The same for `[nri]`.
    pub(crate) nri: String,
    /// The same for `[streaming]`.
    pub(crate) streaming: String,
    /// Seconds that the test may take.
    pub(crate) limit: u64,
    /// Runs before the daemon starts: files that its configuration names.
    pub(crate) prepare: Option<fn()>,
    /// Environment variables of the daemon.
    pub(crate) environment: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            subnets: vec!["10.85.0.0/16".into(), "fd85:be:27::/64".into()],
            network: "mode = \"builtin\"".into(),
            images: String::new(),
            runtimes: String::new(),
            nri: String::new(),
            streaming: String::new(),
            limit: 180,
            prepare: None,
            environment: Vec::new(),
        }
    }
}

/// A daemon, its directories and its process.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) runtime: Runtime,
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) certs: PathBuf,
    log: PathBuf,
    netns: Netns,
    /// For the next start.
    pub(crate) environment: Vec<(String, String)>,
    process: Option<Child>,
}

impl Daemon {
    /// Writes the configuration; does not start.
    pub(crate) fn new(
        runtime: Runtime,
        netns: &Netns,
        disk: &Path,
        run: &Path,
        registry: &str,
        cgroup: &str,
        options: &Options,
    ) -> Self {
        let name = match runtime {
            Runtime::Berth => "berth",
            Runtime::Containerd => "containerd",
        };
        let daemon = Self {
            runtime,
            root: disk.join(name),
            state: run.join(name),
            socket: run.join(format!("{name}.sock")),
            config: run.join(format!("{name}.toml")),
            certs: run.join("certs.d"),
            log: run.join(format!("{name}.log")),
            netns: netns.clone(),
            environment: options.environment.clone(),
            process: None,
        };
        options.prepare.into_iter().for_each(|prepare| prepare());
        let certs = daemon.certs.join(registry);
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::write(certs.join("hosts.toml"), format!("server = \"http://{registry}\"\n")).unwrap();
        let text = match runtime {
            Runtime::Berth => daemon.berth_config(cgroup, run, options),
            Runtime::Containerd => daemon.containerd_config(registry, run, options),
        };
        std::fs::write(&daemon.config, text).unwrap();
        daemon
    }

    fn berth_config(&self, cgroup: &str, run: &Path, options: &Options) -> String {
        format!(
            r#"version = 1
root = "{root}"
state = "{state}"

[grpc]
address = "{socket}"

[metrics]
address = "{metrics}"

[cgroup]
driver = "cgroupfs"
root = "{cgroup}"

[images]
config_path = ["{certs}"]
{images}

[streaming]
{streaming}

[network]
{network}

[network.bridge]
name = "berth0"
subnets = {subnets:?}

[devices]
cdi_spec_dirs = ["{run}/cdi/etc", "{run}/cdi/run"]

[nri]
socket_path = "{run}/nri/nri.sock"
plugin_path = "{run}/nri/plugins"
plugin_config_path = "{run}/nri/conf.d"
{nri}

[runtimes.runc]
type = "oci"
path = "{runc}"

[runtimes.crun]
type = "oci"
path = "{crun}"
{runtimes}
"#,
            root = self.root.display(),
            state = self.state.display(),
            socket = self.socket.display(),
            metrics = run.join("metrics.sock").display(),
            certs = self.certs.display(),
            subnets = options.subnets,
            runc = find("runc"),
            crun = crun(run).display(),
            images = options.images,
            runtimes = options.runtimes,
            nri = options.nri,
            run = run.display(),
            streaming = options.streaming,
            network = options.network.replace("RUN", &run.display().to_string()),
        )
    }

    fn containerd_config(&self, registry: &str, run: &Path, options: &Options) -> String {
        let cni = run.join("cni");
        std::fs::create_dir_all(&cni).unwrap();
        let ranges: Vec<_> =
            options.subnets.iter().map(|subnet| vec![serde_json::json!({"subnet": subnet})]).collect();
        let list = serde_json::json!({
            "cniVersion": "1.0.0", "name": "test",
            "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": run.join("ipam"), "ranges": ranges,
                          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}}
            ]
        });
        std::fs::write(cni.join("10-test.conflist"), list.to_string()).unwrap();
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{registry}/test/pause:1"
restrict_oom_score_adj = true
disable_tcp_service = true

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs}"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "{crun}"
"#,
            root = self.root.display(),
            state = self.state.display(),
            socket = self.socket.display(),
            certs = self.certs.display(),
            cni = cni.display(),
            crun = crun(run).display(),
        )
    }

    /// Starts the process; [`super::world::World::ready`] waits for its answer.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "the daemon is running already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let program = match self.runtime {
            Runtime::Berth => binaries().join("berthd"),
            Runtime::Containerd => PathBuf::from("containerd"),
        };
        let process = self.netns.run(|| {
            Command::new(&program)
                .arg("--config")
                .arg(&self.config)
                .envs(self.environment.iter().cloned())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
        });
        self.process = Some(process.unwrap_or_else(|error| panic!("{}: {error}", program.display())));
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon is not running").id()
    }

    /// Says how the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.as_mut().and_then(|process| process.try_wait().unwrap())
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, and waits up to 20 seconds for the end; then SIGKILL. Returns whether it ended by itself.
    pub(crate) fn terminate(&mut self) -> bool {
        let Some(mut process) = self.process.take() else { return true };
        self.signal_process(&process, nix::sys::signal::Signal::SIGTERM);
        let deadline = super::within(20);
        while Instant::now() < deadline {
            if process.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = process.kill();
        let _ = process.wait();
        false
    }

    /// Sends a signal to the daemon.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        self.signal_process(self.process.as_ref().expect("the daemon is not running"), signal);
    }

    fn signal_process(&self, process: &Child, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(process.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, signal);
    }

    /// All that the daemon said.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `crun`, or a script that runs it: crun refuses a hybrid of both cgroup versions when the second has any
/// controller. The script takes version 2 out of its sight.
fn crun(run: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let crun = find("crun");
    let unified = Path::new("/sys/fs/cgroup/unified");
    let controllers = std::fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
    if controllers.trim().is_empty() {
        return crun.into();
    }
    let script = run.join("crun");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'umount {} && exec {crun} \"$@\"' sh \"$@\"\n",
        unified.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// The path of a program in the usual places (root's PATH may lack `sbin`).
pub(crate) fn find(program: &str) -> String {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .into_iter()
        .map(|directory| format!("{directory}/{program}"))
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| format!("/usr/bin/{program}"))
}
