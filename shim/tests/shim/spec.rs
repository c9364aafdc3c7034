//! What the shim makes of a spec that libcontainer alone gets wrong.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Shim, clean_up_at_exit, eventually, shim_binary};

fn run(arguments: &[&str], adapt: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
    clean_up_at_exit();
    let shim = Shim::spawn(arguments, adapt);
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 0, "{}", shim.log());
    let mut lines = Vec::new();
    eventually("the log", || {
        lines = shim.texts();
        !lines.is_empty()
    });
    shim.finish();
    lines
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    let lines = run(&["sh", "-c", "pwd; ls -ldn . | head -c 10; echo; id -u"], |spec| {
        spec["process"]["cwd"] = json!("/srv/deep/down");
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["root"]["readonly"] = json!(true);
    });
    assert_eq!(lines, ["/srv/deep/down", "drwxr-xr-x", "1000"]);
}

#[test]
fn an_execs_working_directory_that_is_missing_is_made() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    let [out, _] = shim.exec("e", &["sh", "-c", "pwd"], |process| process["cwd"] = json!("/not/there/yet"));
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    shim.start_exec("e").unwrap();
    assert_eq!(shim.wait("e"), 0);
    assert_eq!(reader.join().unwrap(), "/not/there/yet\n");
    shim.finish();
}

#[test]
fn privileges_end_where_the_spec_says() {
    for no_new_privileges in [true, false] {
        let lines = run(&["sh", "-c", "grep -E '^(Cap|Seccomp:|NoNew)' /proc/self/status"], |spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            let one = json!(["CAP_NET_BIND_SERVICE"]);
            spec["process"]["capabilities"] = json!({"bounding": one, "permitted": one, "effective": one});
        });
        let text = lines.join("\n");
        // An unprivileged user's capabilities are lost at exec; the bounding set stays.
        for expected in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000400", "Seccomp:\t2"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(text.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))), "{text}");
    }
}

#[test]
fn the_cgroup_mount_shows_the_containers_own_also_in_another_pid_namespace() {
    clean_up_at_exit();
    let pin = crate::harness::base().join("pidns");
    let made = Command::new(shim_binary())
        .args(["pod-init", "--pidns-path"])
        .arg(&pin)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let init: i32 = String::from_utf8(made.stdout).unwrap().trim().parse().unwrap();
    let mount = |spec: &mut serde_json::Value| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        }));
    };
    let command = [
        "sh",
        "-c",
        "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | grep -cx $$",
    ];
    assert_eq!(run(&command, mount), ["1"]);
    let joined = run(&command, |spec| {
        mount(spec);
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "pid" {
                namespace["path"] = json!(pin.display().to_string());
            }
        }
    });
    assert_eq!(joined, ["1"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::SIGKILL).unwrap();
    nix::mount::umount2(&pin, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
