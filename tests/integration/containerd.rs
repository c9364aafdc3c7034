//! Our shim under Debian's containerd, as `ctr` uses it: runtime `io.containerd.berth.v1`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::netns::Netns;
use crate::support::runtime::{binaries, find};
use crate::support::{World, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    if !["containerd", "ctr"].iter().all(|program| Path::new(&find(program)).exists()) {
        eprintln!("containerd: skipped, there are no containerd and ctr (Debian's package containerd)");
        return Vec::new();
    }
    trials![
        a_task_from_start_to_end,
        output_exit_status_and_terminal,
        output_that_nobody_waits_for,
        containerd_comes_back,
        a_dead_shim_is_cleaned_up,
        memory_that_ran_out,
        what_the_shim_says_of_itself,
    ]
}

/// A containerd with directories and a socket of its own, in the world's network namespace.
struct Containerd {
    netns: Netns,
    directory: PathBuf,
    cgroup: String,
    image: String,
    process: Child,
    /// Sockets that others left.
    before: Vec<PathBuf>,
}

/// Sockets of our shims on which nobody listens.
fn dead_sockets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/run/berth-shim").into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| std::os::unix::net::UnixStream::connect(path).is_err()).collect()
}

impl Containerd {
    fn start(world: &World) -> Self {
        let directory = world.run.join("c");
        let programs = directory.join("bin");
        std::fs::create_dir_all(&programs).unwrap();
        let shim = programs.join("containerd-shim-berth-v1");
        std::os::unix::fs::symlink(binaries().join("berth-shim"), shim).unwrap();
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{run}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{run}/c.sock\"\n",
            root = world.disk.join("c").display(),
            run = directory.display()
        );
        std::fs::write(directory.join("config.toml"), text).unwrap();
        let process = Self::spawn(&world.netns, &directory);
        let this = Self {
            netns: world.netns.clone(),
            cgroup: format!("{}/ctr", world.cgroup),
            image: world.reference("busybox"),
            directory,
            process,
            before: dead_sockets(),
        };
        this.ready();
        this.ctr(&["images", "pull", "--plain-http", &this.image]);
        this
    }

    fn spawn(netns: &Netns, directory: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        netns
            .run(|| {
                Command::new(find("containerd"))
                    .arg("--config")
                    .arg(directory.join("config.toml"))
                    .env("PATH", format!("{}:{path}:/usr/sbin", directory.join("bin").display()))
                    .stdin(Stdio::null())
                    .stdout(log.try_clone().unwrap())
                    .stderr(log)
                    .spawn()
            })
            .unwrap()
    }

    fn ready(&self) {
        let deadline = within(20);
        while !self.try_ctr(&["version"]).status.success() {
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "containerd is not ready:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(find("ctr"));
        command.arg("--address").arg(self.directory.join("c.sock")).args(arguments).stdin(Stdio::null());
        command
    }

    fn try_ctr(&self, arguments: &[&str]) -> Output {
        self.netns.run(|| self.command(arguments).output()).unwrap()
    }

    fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.try_ctr(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        assert!(output.status.success(), "ctr {arguments:?}: {said}\n{log}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ctr run` with our runtime and a cgroup of this world.
    fn run_arguments<'a>(
        &'a self,
        id: &'a str,
        cgroup: &'a str,
        options: &[&'a str],
        command: &[&'a str],
    ) -> Vec<&'a str> {
        let mut arguments = vec!["run", "--runtime", "io.containerd.berth.v1", "--cgroup", cgroup];
        arguments.extend(options);
        arguments.extend([self.image.as_str(), id]);
        arguments.extend(command);
        arguments
    }

    fn cgroup_of(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup)
    }

    fn run(&self, id: &str, options: &[&str], command: &[&str]) -> Output {
        let cgroup = self.cgroup_of(id);
        self.try_ctr(&self.run_arguments(id, &cgroup, options, command))
    }

    /// A container that sleeps.
    fn sleeper(&self, id: &str) {
        let output = self.run(id, &["--detach"], &["sleep", "10000"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.wait_for(id, "RUNNING");
    }

    /// The state that `ctr task list` shows; empty when the task is not there.
    fn state(&self, id: &str) -> String {
        let list = self.ctr(&["task", "list"]);
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned()
    }

    fn wait_for(&self, id: &str, state: &str) {
        let deadline = within(10);
        while self.state(id) != state {
            assert!(Instant::now() < deadline, "{id} is {:?}, not {state}", self.state(id));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes of ours that serve a container of this containerd.
    fn shims(&self) -> Vec<i32> {
        let of_ours = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            command.starts_with("berth-shim\0serve") && command.contains(self.directory.to_str().unwrap())
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let all: Vec<i32> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(of_ours).collect();
        // Not the children in which a shim does its work.
        let parent = |pid: &i32| -> Option<i32> {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
        };
        all.iter().copied().filter(|pid| !parent(pid).is_some_and(|parent| all.contains(&parent))).collect()
    }

    /// Ends containerd, after it has been seen that nothing of ours is left.
    fn finish(mut self) {
        let deadline = within(10);
        let sockets = || -> Vec<PathBuf> {
            dead_sockets().into_iter().filter(|path| !self.before.contains(path)).collect()
        };
        while !self.shims().is_empty() || !sockets().is_empty() {
            assert!(Instant::now() < deadline, "left: {:?} {:?}", self.shims(), sockets());
            std::thread::sleep(Duration::from_millis(20));
        }
        let tasks = std::fs::read_dir(self.directory.join("state/io.containerd.runtime.v2.task/default"));
        assert_eq!(tasks.into_iter().flatten().count(), 0);
        self.stop();
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
        for pid in self.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

async fn a_task_from_start_to_end(world: &mut World) {
    let containerd = Containerd::start(world);
    let events = std::fs::File::create(containerd.directory.join("events")).unwrap();
    let mut listener = containerd
        .netns
        .run(|| containerd.command(&["events"]).stdout(events).stderr(Stdio::null()).spawn())
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    containerd.sleeper("a");
    let output =
        containerd.ctr(&["task", "exec", "--exec-id", "e1", "a", "sh", "-c", "echo in; echo $((6 * 7))"]);
    assert_eq!(output, "in\n42\n");
    let failed = containerd.try_ctr(&["task", "exec", "--exec-id", "e2", "a", "sh", "-c", "exit 9"]);
    assert_eq!(failed.status.code(), Some(9));
    let processes = containerd.ctr(&["task", "ps", "a"]);
    assert_eq!(processes.lines().count(), 2, "{processes}");
    let metrics = containerd.ctr(&["task", "metrics", "a"]);
    assert!(metrics.contains("pids.current") || metrics.contains("pids"), "{metrics}");
    let of = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().last()?.parse::<u64>().ok()
    };
    let memory = of("memory.usage_in_bytes").or_else(|| of("memory.usage"));
    assert!(memory.is_some_and(|bytes| bytes > 0), "{metrics}");
    containerd.ctr(&["task", "pause", "a"]);
    assert_eq!(containerd.state("a"), "PAUSED");
    containerd.ctr(&["task", "resume", "a"]);
    assert_eq!(containerd.state("a"), "RUNNING");
    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "a"]);
    containerd.wait_for("a", "STOPPED");
    let removed = containerd.try_ctr(&["task", "rm", "a"]);
    let said = String::from_utf8_lossy(&removed.stderr);
    assert!(removed.status.success() && said.contains("137"), "{said}");
    containerd.ctr(&["container", "rm", "a"]);

    let wanted = ["create", "start", "exec-added", "exec-started", "paused", "resumed", "exit", "delete"];
    let deadline = within(10);
    loop {
        let seen = std::fs::read_to_string(containerd.directory.join("events")).unwrap();
        let missing: Vec<_> =
            wanted.iter().filter(|name| !seen.contains(&format!("/tasks/{name} "))).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "no events {missing:?} in\n{seen}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = listener.kill();
    let _ = listener.wait();
    containerd.finish();
}

async fn output_exit_status_and_terminal(world: &mut World) {
    let containerd = Containerd::start(world);
    let output = containerd.run("b", &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let missing = containerd.run("m", &["--rm"], &["no-such-command"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-command"), "{missing:?}");
    // `script` gives ctr the terminal that it asks for.
    if Path::new("/usr/bin/script").exists() {
        let cgroup = containerd.cgroup_of("t");
        let command = containerd.command(&containerd.run_arguments("t", &cgroup, &["--rm", "-t"], &["tty"]));
        let line = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        let typed = containerd.directory.join("typed");
        let status = containerd
            .netns
            .run(|| Command::new("script").args(["-qec", &line]).arg(&typed).stdin(Stdio::null()).output())
            .unwrap();
        let shown = std::fs::read_to_string(typed).unwrap();
        assert!(status.status.success() && shown.contains("/dev/pts/0"), "{shown}");
    } else {
        eprintln!("containerd: no terminal was tried, there is no `script`");
    }
    containerd.finish();
}

/// `--log-uri`, as nerdctl gives one to whatever it starts in the background.
async fn output_that_nobody_waits_for(world: &mut World) {
    let containerd = Containerd::start(world);
    let script = ["sh", "-c", "echo out; echo err >&2; sleep 10000"];
    let (file, program) = (containerd.directory.join("made/out.log"), containerd.directory.join("logger"));
    let done = containerd.directory.join("done");
    let to_file = format!("file://{}", file.display());
    let output = containerd.run("f", &["--detach", "--log-uri", &to_file], &script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let logger = "exec 5>&-\ncat <&4 > \"$1.err\" &\ncat <&3 > \"$1.out\"\nwait\n\
                  echo \"$CONTAINER_ID $CONTAINER_NAMESPACE\" > \"$1\"\n";
    std::fs::write(&program, logger).unwrap();
    let to_program = format!("binary:///bin/sh?{}={}", program.display(), done.display());
    let output = containerd.run("p", &["--detach", "--log-uri", &to_program], &script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |path: &Path, end: &str| {
        let path = PathBuf::from(format!("{}{end}", path.display()));
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let deadline = within(10);
    let both = |text: &str| text.lines().count() == 2 && text.contains("out") && text.contains("err");
    while !both(&read(&file, "")) || read(&done, ".out") != "out\n" || read(&done, ".err") != "err\n" {
        assert!(Instant::now() < deadline, "{:?} {:?}", read(&file, ""), read(&done, ".out"));
        std::thread::sleep(Duration::from_millis(20));
    }
    for id in ["f", "p"] {
        containerd.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        containerd.wait_for(id, "STOPPED");
        containerd.try_ctr(&["task", "rm", id]);
        containerd.ctr(&["container", "rm", id]);
    }
    // When the task is gone the logger has written all.
    assert_eq!(read(&done, ""), "p default\n");
    let missing = containerd.run("m", &["--detach", "--log-uri", "binary:///no/such/logger"], &script);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("/no/such/logger"), "{said}");
    containerd.ctr(&["container", "rm", "m"]);
    containerd.finish();
}

async fn containerd_comes_back(world: &mut World) {
    let mut containerd = Containerd::start(world);
    containerd.sleeper("c");
    containerd.stop();
    containerd.process = Containerd::spawn(&containerd.netns, &containerd.directory);
    containerd.ready();
    assert_eq!(containerd.state("c"), "RUNNING");
    assert_eq!(containerd.ctr(&["task", "exec", "--exec-id", "e", "c", "echo", "alive"]), "alive\n");
    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "c"]);
    containerd.wait_for("c", "STOPPED");
    containerd.try_ctr(&["task", "rm", "c"]);
    containerd.ctr(&["container", "rm", "c"]);
    containerd.finish();
}

async fn a_dead_shim_is_cleaned_up(world: &mut World) {
    let containerd = Containerd::start(world);
    containerd.sleeper("d");
    let [shim] = containerd.shims()[..] else { panic!("one shim: {:?}", containerd.shims()) };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    // containerd calls `delete`, which ends what the shim left.
    let procs = || {
        let cgroup = containerd.cgroup_of("d");
        let at = |hierarchy: &Path| hierarchy.join(cgroup.trim_start_matches('/')).join("cgroup.procs");
        let hierarchies = crate::support::leaks::hierarchies();
        hierarchies.iter().any(|one| std::fs::read_to_string(at(one)).is_ok_and(|text| !text.is_empty()))
    };
    let deadline = within(15);
    while procs() || !containerd.state("d").is_empty() {
        assert!(Instant::now() < deadline, "the container is there: {:?}", containerd.state("d"));
        std::thread::sleep(Duration::from_millis(50));
    }
    containerd.ctr(&["container", "rm", "d"]);
    containerd.finish();
}

async fn memory_that_ran_out(world: &mut World) {
    let containerd = Containerd::start(world);
    let events = std::fs::File::create(containerd.directory.join("events")).unwrap();
    let mut listener = containerd
        .netns
        .run(|| containerd.command(&["events"]).stdout(events).stderr(Stdio::null()).spawn())
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let greedy = "head -c 200m /dev/zero | tail -n 1 | wc -c; exit 9";
    let output = containerd.run("o", &["--rm", "--memory-limit", "33554432"], &["sh", "-c", greedy]);
    assert_ne!(output.status.code(), Some(0));
    let deadline = within(10);
    while !std::fs::read_to_string(containerd.directory.join("events")).unwrap().contains("/tasks/oom ") {
        assert!(Instant::now() < deadline, "no event tells that memory ran out");
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = listener.kill();
    let _ = listener.wait();
    containerd.finish();
}

async fn what_the_shim_says_of_itself(world: &mut World) {
    let shim = world.run.join("containerd-shim-berth-v1");
    std::os::unix::fs::symlink(binaries().join("berth-shim"), &shim).unwrap();
    let run = |argument: &str| Command::new(&shim).arg(argument).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&run("-v").stdout).contains("containerd-shim-berth-v1"));
    let info = run("-info");
    assert!(info.status.success());
    let text = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(text.contains("io.containerd.berth.v1") && text.contains("\"rro\""), "{text}");
}
