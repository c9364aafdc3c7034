//! A shim on a socket of its own, a bundle with busybox, and a client.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

/// The binary under test.
pub(crate) fn shim_binary() -> PathBuf {
    std::env::var_os("BERTH_SHIM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_berth-shim")), PathBuf::from)
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The tests' directory on tmpfs; each test process has its own.
pub(crate) fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let base = PathBuf::from(format!("/run/berth-shim-test-{}", std::process::id()));
        let bin = base.join("image/bin");
        fs::create_dir_all(&bin).unwrap();
        for directory in ["proc", "dev", "sys", "tmp", "etc", "root"] {
            fs::create_dir_all(base.join("image").join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).expect("package busybox-static");
        let names = [
            "sh", "cat", "echo", "sleep", "true", "false", "id", "tail", "dd", "env", "stty", "ls", "kill",
            "seq", "yes", "head", "grep", "mount", "printf", "tty", "ps",
        ];
        for name in names {
            symlink("busybox", bin.join(name)).unwrap();
        }
        fs::write(
            base.join("image/etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .unwrap();
        fs::write(base.join("image/etc/plain"), "not executable\n").unwrap();
        base
    })
}

pub(crate) struct Shim {
    pub(crate) id: String,
    pub(crate) directory: PathBuf,
    pub(crate) child: Child,
    pub(crate) client: Client,
    pub(crate) task: TaskClient,
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(20_000_000_000)
}

/// A spec that runs `arguments` with the usual mounts and namespaces.
pub(crate) fn spec(id: &str, arguments: &[&str]) -> Value {
    let namespaces: Vec<Value> =
        ["pid", "mount", "ipc", "uts", "network"].iter().map(|kind| json!({"type": kind})).collect();
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": arguments,
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin", "WHO=berth"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "berth",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/berth-shim-test-{}/{id}", std::process::id()),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            },
        },
    })
}

impl Shim {
    pub(crate) fn spawn(arguments: &[&str], adapt: impl FnOnce(&mut Value)) -> Self {
        Self::spawn_with(arguments, adapt, &[])
    }

    pub(crate) fn spawn_with(arguments: &[&str], adapt: impl FnOnce(&mut Value), options: &[&str]) -> Self {
        Self::spawn_saying(arguments, adapt, options, Path::new(""))
    }

    /// The shim says what goes wrong to `log`, a file that is there; to one in its bundle if that is empty.
    pub(crate) fn spawn_saying(
        arguments: &[&str],
        adapt: impl FnOnce(&mut Value),
        options: &[&str],
        log: &Path,
    ) -> Self {
        let id = format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = base().join(&id);
        for name in ["bundle/rootfs", "upper", "work", "logs"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        let mut spec = spec(&id, arguments);
        adapt(&mut spec);
        fs::write(directory.join("bundle/config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let socket = directory.join("shim.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(shim_binary());
        command.args(["serve", "--id", &id, "--bundle"]).arg(directory.join("bundle")).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(match log.to_str() {
            Some("") => fs::File::create(directory.join("bundle/shim.log")).unwrap(),
            _ => fs::OpenOptions::new().append(true).open(log).unwrap(),
        });
        pass_as_3(&mut command, listener.as_raw_fd());
        if options.iter().any(|option| option.ends_with("crun")) {
            hide_unified_cgroups(&mut command);
        }
        let child = command.spawn().unwrap();
        drop(listener);
        let client = Client::connect(&format!("unix://{}", socket.display())).unwrap();
        let task = TaskClient::new(client.clone());
        Self { id, directory, child, client, task }
    }

    /// A client of its own.
    pub(crate) fn connect(&self) -> TaskClient {
        TaskClient::new(
            Client::connect(&format!("unix://{}", self.directory.join("shim.sock").display())).unwrap(),
        )
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.directory.join("logs/0.log")
    }

    pub(crate) fn create_request(&self) -> api::CreateTaskRequest {
        let option = |name: &str| format!("{name}dir={}", self.directory.join(name).display());
        let options =
            vec![format!("lowerdir={}", base().join("image").display()), option("upper"), option("work")];
        let mount =
            api::Mount { type_: "overlay".into(), source: "overlay".into(), options, ..Default::default() };
        let log = format!("cri-log://{}", self.log_path().display());
        api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.directory.join("bundle").display().to_string(),
            rootfs: vec![mount],
            stdout: log.clone(),
            stderr: log,
            ..Default::default()
        }
    }

    pub(crate) fn create(&self) -> u32 {
        self.task.create(context(), &self.create_request()).expect("create").pid
    }

    pub(crate) fn start(&self) -> u32 {
        let request = api::StartRequest { id: self.id.clone(), ..Default::default() };
        self.task.start(context(), &request).expect("start").pid
    }

    pub(crate) fn wait(&self, exec_id: &str) -> u32 {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.wait(context(), &request).expect("wait").exit_status
    }

    pub(crate) fn kill(&self, exec_id: &str, signal: i32, all: bool) -> ttrpc::Result<api::Empty> {
        let signal = u32::try_from(signal).unwrap();
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        self.task.kill(context(), &request)
    }

    pub(crate) fn delete(&self, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request =
            api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.delete(context(), &request)
    }

    pub(crate) fn state(&self) -> api::StateResponse {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        self.task.state(context(), &request).expect("state")
    }

    pub(crate) fn reopen_log(&self) {
        let request = ttrpc::Request {
            service: "berth.shim.v1.Shim".into(),
            method: "ReopenLog".into(),
            ..Default::default()
        };
        self.client.request(request).expect("reopen");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The texts of the log's lines.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.log().lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()).collect()
    }

    pub(crate) fn exit_json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.directory.join("bundle/exit.json")).unwrap()).unwrap()
    }

    /// Announces an exec with FIFOs for its output; returns their paths.
    pub(crate) fn exec(
        &self,
        exec_id: &str,
        arguments: &[&str],
        adapt: impl FnOnce(&mut Value),
    ) -> [PathBuf; 2] {
        let mut process = spec(&self.id, arguments)["process"].take();
        adapt(&mut process);
        let paths = ["out", "err"].map(|name| self.directory.join(format!("{exec_id}.{name}")));
        for path in &paths {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        }
        let any = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process).unwrap(),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            stdout: paths[0].display().to_string(),
            stderr: paths[1].display().to_string(),
            spec: MessageField::some(any),
            ..Default::default()
        };
        self.task.exec(context(), &request).expect("exec");
        paths
    }

    pub(crate) fn start_exec(&self, exec_id: &str) -> ttrpc::Result<api::StartResponse> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec_id.into(), ..Default::default() };
        self.task.start(context(), &request)
    }

    /// A whole ExecSync as the daemon does it: exit code and output.
    pub(crate) fn exec_sync(&self, exec_id: &str, arguments: &[&str]) -> (u32, String) {
        let [out, err] = self.exec(exec_id, arguments, |_| ());
        let read =
            |path: PathBuf| fs::OpenOptions::new().read(true).custom_flags_nonblock().open(path).unwrap();
        let (out, _err) = (read(out), read(err));
        self.start_exec(exec_id).expect("start exec");
        let code = self.wait(exec_id);
        let mut output = Vec::new();
        let mut out = out;
        let _ = std::io::Read::read_to_end(&mut out, &mut output);
        self.delete(exec_id).expect("delete exec");
        for name in ["out", "err"] {
            fs::remove_file(self.directory.join(format!("{exec_id}.{name}"))).unwrap();
        }
        (code, String::from_utf8(output).unwrap())
    }

    /// Directories of this container's cgroup that exist.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let path = format!("berth-shim-test-{}/{}", std::process::id(), self.id);
        fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|entry| entry.path().join(&path))
            .chain([Path::new("/sys/fs/cgroup").join(&path)])
            .filter(|path| path.exists())
            .collect()
    }

    /// Kills, deletes and shuts down; checks that nothing is left.
    pub(crate) fn finish(mut self) {
        let _ = self.kill("", libc::SIGKILL, true);
        let _ = self.task.wait(context(), &api::WaitRequest { id: self.id.clone(), ..Default::default() });
        match self.delete("") {
            Ok(_) => {}
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => {}
            Err(error) => panic!("delete: {error}"),
        }
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        self.task.shutdown(context(), &request).expect("shutdown");
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the shim does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroup left behind");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.id), "mount left behind");
        assert!(!self.directory.join("bundle/state").exists(), "state left behind");
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "shim.log: {}",
                fs::read_to_string(self.directory.join("bundle/shim.log")).unwrap_or_default()
            );
        }
        for directory in self.cgroups() {
            for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid.parse().unwrap()),
                    nix::sys::signal::SIGKILL,
                );
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::thread::sleep(Duration::from_millis(if self.cgroups().is_empty() { 0 } else { 50 }));
        for directory in self.cgroups() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(directory);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

trait NonBlock {
    fn custom_flags_nonblock(&mut self) -> &mut Self;
}

impl NonBlock for fs::OpenOptions {
    fn custom_flags_nonblock(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NONBLOCK)
    }
}

#[allow(unsafe_code)]
fn pass_as_3(command: &mut Command, fd: i32) {
    // SAFETY: dup2 and fcntl are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if fd == 3 {
                libc::fcntl(3, libc::F_SETFD, 0);
            } else if libc::dup2(fd, 3) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// crun refuses to work where cgroup v1 and v2 both have controllers, as on machines like ours: hide v2 from it.
#[allow(unsafe_code)]
fn hide_unified_cgroups(command: &mut Command) {
    // SAFETY: plain system calls.
    unsafe {
        command.pre_exec(|| {
            libc::unshare(libc::CLONE_NEWNS);
            let private = libc::MS_PRIVATE | libc::MS_REC;
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null());
            libc::umount2(c"/sys/fs/cgroup/unified".as_ptr(), libc::MNT_DETACH);
            Ok(())
        });
    }
}

/// The message of a refusal.
pub(crate) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("no refusal: {other:?}"),
    }
}

/// Polls for something that comes soon.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "{what} does not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what the whole test process made; registered to run at its end.
#[allow(unsafe_code)]
pub(crate) fn clean_up_at_exit() {
    extern "C" fn clean_up() {
        let _ = fs::remove_dir_all(base());
        let name = format!("berth-shim-test-{}", std::process::id());
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path().join(&name));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&name));
    }
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: the function uses nothing that is torn down before exit handlers run.
        unsafe { libc::atexit(clean_up) };
    });
}
