//! The command `berth`, as a person or a script types it.

use std::process::Output;

use libtest_mimic::Trial;

use super::resources::cgroup_file;
use crate::support::runtime::binaries;
use crate::support::{World, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_web_server,
        images,
        archives,
        exit_codes,
        options_that_docker_has,
        errors_say_what_to_do,
        configuration_of_containerd,
        lists_are_filtered,
        names_are_completed,
        signals_and_limits,
        history_of_an_image,
    ]
}

impl World {
    /// `berth` with these arguments, in this world.
    pub(crate) fn berth(&self, arguments: &[&str]) -> Output {
        self.netns
            .run(|| {
                std::process::Command::new(binaries().join("berth"))
                    .args(arguments)
                    .env("BERTH_ADDRESS", &self.daemon.socket)
                    .env("BERTH_LOG_DIR", self.run.join("client-logs"))
                    .stdin(std::process::Stdio::null())
                    .output()
            })
            .unwrap()
    }

    /// The same; it must succeed. Returns its standard output.
    pub(crate) fn berth_ok(&self, arguments: &[&str]) -> String {
        let output = self.berth(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "berth {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

async fn a_web_server(world: &mut World) {
    let image = world.reference("web");
    let id = world.berth_ok(&["run", "-d", "--name", "web", "-p", "18100:80", "-e", "A=b", &image]);
    assert_eq!(id.len(), 64, "{id}");
    world.remember(&id);
    assert_eq!(world.fetch("127.0.0.1:18100").text(), "It works.\n");
    let table = world.berth_ok(&["ps"]);
    assert!(table.contains("web") && table.contains(&id[..12]), "{table}");
    let json: serde_json::Value = serde_json::from_str(&world.berth_ok(&["ps", "-o", "json"])).unwrap();
    assert!(json.to_string().contains(&id));
    assert!(world.berth_ok(&["pods"]).contains("web"));
    assert!(world.berth_ok(&["port", "web"]).lines().any(|line| line == "80/tcp -> 0.0.0.0:18100"));
    assert_eq!(world.berth_ok(&["port", "web", "80"]).lines().next(), Some("0.0.0.0:18100"));
    let said = world.berth(&["port", "web", "81/udp"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("81/udp of web is not published"), "{said:?}");
    assert_eq!(world.berth_ok(&["exec", "web", "sh", "-c", "echo $A"]), "b");
    let inspect: serde_json::Value = serde_json::from_str(&world.berth_ok(&["inspect", "web"])).unwrap();
    assert!(inspect.to_string().contains(&id));
    world.berth_ok(&["stop", "--time", "0", "web"]);
    assert!(world.berth_ok(&["ps", "-a"]).contains("web"));
    world.berth_ok(&["rm", "web"]);
    assert!(!world.berth_ok(&["ps", "-a"]).contains("web"));
    world.no_leaks();
}

async fn images(world: &mut World) {
    let image = world.reference("busybox");
    world.berth_ok(&["pull", &image]);
    let table = world.berth_ok(&["images"]);
    assert!(table.contains("test/busybox"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&world.berth_ok(&["images", "-o", "json"])).unwrap();
    assert!(json.to_string().contains("test/busybox"));
    world.berth_ok(&["rmi", &image]);
    assert!(!world.berth_ok(&["images"]).contains("test/busybox"));
    assert!(world.berth_ok(&["version"]).to_lowercase().contains("berth"));
    assert!(!world.berth_ok(&["info"]).is_empty());
}

async fn archives(world: &mut World) {
    let image = world.reference("users");
    world.berth_ok(&["pull", &image]);
    let before = world.image_status(&image).await.unwrap().unwrap();
    let archive = world.disk.join("archive.tar");
    let path = archive.to_str().unwrap();
    world.berth_ok(&["export", "-o", path, &image]);
    world.berth_ok(&["rmi", &image]);
    world.berth_ok(&["import", path]);
    let after = world.image_status(&image).await.unwrap().expect("imported under its name");
    assert_eq!(after.id, before.id);
    assert_eq!(world.berth_ok(&["run", "--rm", &image, "id", "-u"]), "1000");
    // Others read what we write.
    let output = std::process::Command::new("skopeo")
        .args(["inspect", "--raw", &format!("oci-archive:{path}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn exit_codes(world: &mut World) {
    let image = world.reference("busybox");
    let code = |arguments: &[&str]| world.berth(arguments).status.code().unwrap();
    assert_eq!(code(&["run", "--rm", &image, "sh", "-c", "exit 9"]), 9);
    assert_eq!(code(&["run", "--rm", &image, "no-such-command"]), 127);
    assert_eq!(code(&["run", "--rm", &image, "/bin/not-executable"]), 126);
    world.berth_ok(&["run", "-d", "--name", "codes", &image, "sleep", "1000"]);
    assert_eq!(code(&["exec", "codes", "sh", "-c", "exit 5"]), 5);
    world.berth_ok(&["rm", "--force", "codes"]);
}

async fn options_that_docker_has(world: &mut World) {
    let image = world.reference("busybox");
    let run = |options: &[&str], script: &str| {
        world.berth_ok(&[&["run", "--rm"], options, &[&image, "sh", "-c", script]].concat())
    };
    let dns =
        ["--dns", "192.0.2.1", "--dns", "192.0.2.2", "--dns-search", "a.example", "--dns-option", "ndots:2"];
    assert_eq!(
        run(&dns, "cat /etc/resolv.conf"),
        "search a.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:2"
    );
    let sysctl = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=80"];
    assert_eq!(run(&sysctl, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "80");
    let status = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'";
    assert_eq!(run(&[], status), "NoNewPrivs:0Seccomp:2");
    let options = ["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"];
    assert_eq!(run(&options, status), "NoNewPrivs:1Seccomp:0");
    assert_eq!(
        run(&["--user", "4000:4000", "--group-add", "44", "--group-add", "27"], "id -G"),
        "4000 27 44"
    );
    // A device of the host under another name.
    let device = ["--device", "/dev/zero:/dev/nought:r"];
    assert_eq!(run(&device, "head -c 2 /dev/nought | wc -c"), "2");
    // Others' processes: the daemon's at least.
    let processes = "ls /proc | grep -c '^[0-9]'";
    assert!(
        run(&[], processes).parse::<u32>().unwrap() < run(&["--pid", "host"], processes).parse().unwrap()
    );
    let shared = run(&["--ipc", "host"], "readlink /proc/self/ns/ipc");
    assert_eq!(shared, std::fs::read_link("/proc/self/ns/ipc").unwrap().to_string_lossy());
    assert_ne!(run(&[], "readlink /proc/self/ns/ipc"), shared);
    let masks = "grep -c ' /proc/' /proc/self/mounts; true";
    assert_ne!(run(&[], masks), "0");
    assert_eq!(run(&["--security-opt", "systempaths=unconfined"], masks), "0");
    let script = "trap 'exit 3' QUIT; touch /ready; while :; do sleep 0.05; done";
    let limits = ["--stop-signal", "QUIT", "--pids-limit", "50", "--cpu-shares", "512"];
    let id = world
        .berth_ok(&[&["run", "-d", "--name", "asked"], &limits[..], &[&image, "sh", "-c", script]].concat());
    world.remember(&id);
    assert_eq!(cgroup_file(world, &id, &["pids.max"]), "50");
    let deadline = within(30);
    while !world.berth(&["exec", "asked", "test", "-e", "/ready"]).status.success() {
        assert!(std::time::Instant::now() < deadline, "the script did not begin");
    }
    world.berth_ok(&["stop", "asked"]);
    assert_eq!(world.berth_ok(&["wait", "asked"]), "3");
    world.berth_ok(&["rm", "asked"]);
    let said = world.berth(&["run", "--rm", "--device", "fuse", &image, "true"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("CDI name"), "{said:?}");
}

async fn errors_say_what_to_do(world: &mut World) {
    let fail = |arguments: &[&str]| {
        let output = world.berth(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
    };
    let said = fail(&["--address", "/run/nobody.sock", "ps"]);
    assert!(said.contains("/run/nobody.sock") && said.lines().count() <= 2, "{said}");
    let said = fail(&["exec", "nobody", "true"]);
    assert!(said.contains("nobody") && said.lines().count() <= 2, "{said}");
    let said = fail(&["pull", &world.reference("no-such-image")]);
    assert!(said.contains("no-such-image"), "{said}");
}

async fn lists_are_filtered(world: &mut World) {
    let image = world.reference("busybox");
    for (name, label, command) in [("one", "tier=front", "sleep 1000"), ("two", "tier=back", "exit 3")] {
        let id = world.berth_ok(&["run", "-d", "--name", name, "-l", label, &image, "sh", "-c", command]);
        world.remember(&id);
        if name == "two" {
            world.wait_exit(&id).await;
        }
    }
    let format = "{.name} {.state} {.exitCode}";
    let ps = |arguments: &[&str]| world.berth_ok(&[&["ps", "--format", format][..], arguments].concat());
    assert_eq!(ps(&[]), "one running null");
    assert_eq!(ps(&["-a"]).lines().count(), 2);
    assert_eq!(ps(&["-f", "status=exited"]), "two exited 3");
    assert_eq!(ps(&["-a", "--filter", "label=tier=front", "--filter", "name=on"]), "one running null");
    assert_eq!(ps(&["--filter", "exited=3"]), "two exited 3");
    assert_eq!(ps(&["--filter", "label=none"]), "");
    let id = world.berth_ok(&["ps", "-q", "--filter", "name=one"]);
    assert_eq!(world.berth_ok(&["inspect", "-f", ".name", &id]), "one");
    assert_eq!(world.berth_ok(&["pods", "--filter", "name=two", "--format", ".name"]), "two");
    assert_eq!(
        world.berth_ok(&["images", "--filter", "reference=test/busybox", "--format", ".repoTags[0]"]),
        image
    );
    assert_eq!(world.berth_ok(&["images", "-q", "--filter", "dangling=true"]), "");
    let said = world.berth(&["ps", "--filter", "colour=red"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("exitCode"), "{said:?}");
}

async fn signals_and_limits(world: &mut World) {
    let image = world.reference("busybox");
    let script = "trap 'exit 7' USR1; touch /ready; while :; do sleep 0.05; done";
    let id = world.berth_ok(&["run", "-d", "--name", "tuned", &image, "sh", "-c", script]);
    world.remember(&id);
    let limits = ["--memory", "48m", "--cpus", "0.5", "--cpu-shares", "512", "--pids-limit", "60"];
    assert_eq!(world.berth_ok(&[&["update"], &limits[..], &["tuned"]].concat()), "tuned");
    let file = |files: &[&str]| cgroup_file(world, &id, files);
    assert_eq!(file(&["memory.max", "memory.limit_in_bytes"]), (48 << 20).to_string());
    assert_eq!(file(&["pids.max"]), "60");
    assert!(file(&["cpu.max", "cpu.cfs_quota_us"]).starts_with("50000"));
    let shown =
        world.berth_ok(&["inspect", "-f", "{.resources.memoryLimitBytes} {.resources.cpuShares}", "tuned"]);
    assert_eq!(shown, format!("{} 512", 48 << 20));
    world.berth_ok(&["update", "--pids-limit", "-1", "tuned"]);
    assert_eq!(file(&["pids.max"]), "max");
    assert_eq!(file(&["memory.max", "memory.limit_in_bytes"]), (48 << 20).to_string(), "not named: it stays");

    let waiting = std::process::Command::new(binaries().join("berth"))
        .args(["wait", "tuned"])
        .env("BERTH_ADDRESS", &world.daemon.socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = within(30);
    while !world.berth(&["exec", "tuned", "test", "-e", "/ready"]).status.success() {
        assert!(std::time::Instant::now() < deadline, "the script did not begin");
    }
    let said = world.berth(&["kill", "-s", "SIGNOPE", "tuned"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("no signal"), "{said:?}");
    // Without a handler the first process of a PID namespace does not notice.
    world.berth_ok(&["kill", "-s", "HUP", "tuned"]);
    assert_eq!(world.berth_ok(&["kill", "-s", "usr1", "tuned"]), "tuned");
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!((String::from_utf8_lossy(&waited.stdout).trim_end(), waited.status.success()), ("7", true));
    assert_eq!(world.berth_ok(&["wait", "tuned"]), "7", "one that has ended is waited for no longer");
    let said = world.berth(&["kill", "tuned"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("running"), "{said:?}");
    assert!(!world.berth(&["wait", "nobody"]).status.success());

    let id =
        world.berth_ok(&["run", "-d", "--name", "stubborn", &image, "sh", "-c", "trap '' TERM; sleep 1000"]);
    world.remember(&id);
    world.berth_ok(&["kill", "stubborn"]);
    assert_eq!(world.berth_ok(&["wait", "stubborn", "tuned"]), "137\n7");
    world.berth_ok(&["rm", "tuned", "stubborn"]);
    world.no_leaks();
}

async fn history_of_an_image(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "source", &image, "sleep", "1000"]);
    world.remember(&id);
    let made = format!("{image}-made");
    world.berth_ok(&["commit", "--message", "a second layer", "source", &made]);
    let json = world.berth_ok(&["history", "-o", "json", &made]);
    let steps: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(steps[0]["comment"], "a second layer", "the last step comes first: {json}");
    let layers: Vec<_> = steps.iter().filter_map(|step| step["diffId"].as_str()).collect();
    let status =
        world.berth_ok(&["inspect", "--type", "image", "-f", ".info.info.imageSpec.rootfs.diff_ids", &made]);
    let mut wanted: Vec<String> = serde_json::from_str(&status).unwrap();
    wanted.reverse();
    assert_eq!(layers, wanted);
    assert!(world.berth_ok(&["history", &made]).contains("a second layer"));
    let said = world.berth(&["history", "nothing-like-it"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("berth images"), "{said:?}");
    world.berth_ok(&["rm", "-f", "source"]);
    world.berth_ok(&["rmi", &made]);
    world.no_leaks();
}

/// As a shell asks.
async fn names_are_completed(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "harbour", &image, "sleep", "1000"]);
    world.remember(&id);
    world.berth_ok(&["volume", "create", "hold"]);
    world.berth_ok(&["network", "create", "--subnet", "10.71.0.0/24", "haven"]);
    let complete = |words: &[&str], address: &std::path::Path| {
        let index = words.len() - 1;
        let output = std::process::Command::new(binaries().join("berth"))
            .arg("--")
            .args(words)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index.to_string())
            .env("_CLAP_IFS", "\n")
            .env("BERTH_ADDRESS", address)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let offered = |words: &[&str]| complete(words, &world.daemon.socket);
    assert_eq!(offered(&["berth", "exec", "har"]), ["harbour"]);
    assert_eq!(offered(&["berth", "logs", "h"]), ["harbour"]);
    assert_eq!(offered(&["berth", "rm", "-f", "h"]), ["harbour"]);
    assert_eq!(offered(&["berth", "cp", "harb"]), ["harbour:"]);
    assert_eq!(offered(&["berth", "volume", "rm", "h"]), ["hold"]);
    assert_eq!(offered(&["berth", "network", "connect", "ha"]), ["haven"]);
    assert_eq!(offered(&["berth", "network", "connect", "haven", "h"]), ["harbour"]);
    assert_eq!(offered(&["berth", "rmi", "127."]), [image.as_str()]);
    assert!(offered(&["berth", "ru"]).contains(&"run".to_owned()));
    // Without a daemon there are no names, and no noise.
    assert_eq!(complete(&["berth", "exec", "har"], std::path::Path::new("/run/nobody.sock")), [""; 0]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(world.berth_ok(&["completions", shell]).contains("COMPLETE"), "{shell}");
    }
    world.berth_ok(&["rm", "-f", "harbour"]);
    world.berth_ok(&["network", "rm", "haven"]);
    world.berth_ok(&["volume", "rm", "hold"]);
    world.no_leaks();
}

/// What the real containerd prints as its configuration, with a file that it imports.
async fn configuration_of_containerd(world: &mut World) {
    let printed = std::process::Command::new("containerd").args(["config", "default"]).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("imports = []"), "{text}");
    let directory = world.run.join("containerd");
    std::fs::create_dir_all(directory.join("conf.d")).unwrap();
    let (main, drop_in) = (directory.join("config.toml"), directory.join("conf.d/debug.toml"));
    std::fs::write(&main, text.replace("imports = []", "imports = [\"conf.d/*.toml\"]")).unwrap();
    std::fs::write(&drop_in, "[debug]\nlevel = \"debug\"\n").unwrap();
    let ours = directory.join("out/50-imported.toml");
    let (from, to) = (main.display().to_string(), ours.display().to_string());
    let import = ["config", "import", "--containerd", &from, "-o", &to];
    let output = world.berth(&import);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    for line in ["-> streaming.address", "not needed: there is no pause image", "debug.toml"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let written = std::fs::read_to_string(&ours).unwrap();
    assert!(written.contains("level = \"debug\"") && written.contains("[runtimes.runc]"), "{written}");
    let check = std::process::Command::new(binaries().join("berthd"))
        .args(["--config", &to, "config", "check"])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    // What is there stays.
    let again = world.berth(&import);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&ours).unwrap(), written);
}
