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
fn who_is_given_no_capabilities_has_none() {
    let forget = |process: &mut serde_json::Value| process.as_object_mut().unwrap().remove("capabilities");
    let lines = run(&["grep", "Cap", "/proc/self/status"], |spec| _ = forget(&mut spec["process"]));
    let text = lines.join("\n");
    for set in ["Inh", "Prm", "Eff", "Bnd", "Amb"] {
        assert!(text.contains(&format!("Cap{set}:\t0000000000000000")), "{text}");
    }
    // An exec has those of its container then.
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    let [out, _] = shim.exec("e", &["grep", "Cap", "/proc/self/status"], |process| _ = forget(process));
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    shim.start_exec("e").unwrap();
    assert_eq!(shim.wait("e"), 0);
    let text = reader.join().unwrap();
    for set in ["CapEff", "CapBnd"] {
        assert!(text.contains(&format!("{set}:\t00000000000004e1")), "{text}");
    }
    shim.finish();
}

/// Puts a key into a session keyring of the calling thread alone; `false` where the kernel has no keys.
#[allow(unsafe_code)]
fn keep_key(name: &str) -> bool {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    const SESSION_KEYRING: libc::c_int = -3;
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: strings end with a zero byte, the payload is as long as is said, a null pointer stands for no name.
    let key = unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>());
        let (kind, payload) = (c"user".as_ptr(), c"secret".as_ptr());
        libc::syscall(libc::SYS_add_key, kind, name.as_ptr(), payload, 6_usize, SESSION_KEYRING)
    };
    key > 0
}

#[test]
fn keys_of_whoever_started_the_shim_stay_his() {
    clean_up_at_exit();
    let name = format!("berth-test-{}", std::process::id());
    if !keep_key(&name) {
        eprintln!("skipped: the kernel has no keys");
        return;
    }
    // By its keyring alone: the user is not the key's owner.
    let look = ["sh", "-c", "grep -c berth-test /proc/keys; sleep 1000"];
    let as_user = |process: &mut serde_json::Value| process["user"] = json!({"uid": 1000, "gid": 1000});
    let shim = Shim::spawn(&look, |spec| {
        as_user(&mut spec["process"]);
        spec["linux"]["maskedPaths"] = json!([]);
    });
    shim.create();
    shim.start();
    eventually("the count", || !shim.texts().is_empty());
    assert_eq!(shim.texts(), ["0"]);
    let [out, _] = shim.exec("e", &["grep", "-c", "berth-test", "/proc/keys"], as_user);
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    shim.start_exec("e").unwrap();
    assert_eq!(shim.wait("e"), 1);
    assert_eq!(reader.join().unwrap(), "0\n");
    shim.finish();
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
