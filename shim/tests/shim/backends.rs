//! The second backend (runc, crun) and the pod's first process.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Shim, base, clean_up_at_exit, context, eventually, refusal, shim_binary};

fn with_runtime(binary: &str) {
    clean_up_at_exit();
    assert!(Path::new(binary).exists(), "package {binary} is missing");
    let name = Path::new(binary).file_name().unwrap().to_str().unwrap();
    let root = base().join(format!("{name}-root"));
    let options = ["--runtime", binary, "--runtime-root", root.to_str().unwrap()];
    let shim = Shim::spawn_with(&["sh", "-c", "echo started; sleep 1000"], |_| (), &options);
    let pid = shim.create();
    assert_eq!(shim.start(), pid);
    eventually("the first line", || shim.texts() == ["started"]);
    assert_eq!(shim.exec_sync("e", &["sh", "-c", "echo in $WHO; exit 6"]), (6, "in berth\n".to_owned()));
    shim.exec("missing", &["no-such-command"], |_| ());
    let (_, message) = refusal(shim.start_exec("missing"));
    assert!(message.contains("no-such-command"), "{message}");
    shim.delete("missing").unwrap();
    shim.kill("", libc::SIGKILL, true).unwrap();
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.exit_json()["signal"], 9);
    shim.delete("").unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "runtime state left behind");
    shim.finish();

    let shim = Shim::spawn_with(&["no-such-command"], |_| (), &options);
    let result = shim.task.create(context(), &shim.create_request());
    if let Err(error) = &result {
        assert!(error.to_string().contains("no-such-command"), "{error}");
    }
    drop(shim);

    let shim = Shim::spawn_with(
        &["sh", "-c", "tty; exit 2"],
        |spec| spec["process"]["terminal"] = true.into(),
        &options,
    );
    let mut request = shim.create_request();
    request.terminal = true;
    shim.task.create(context(), &request).unwrap();
    shim.start();
    assert_eq!(shim.wait(""), 2);
    assert_eq!(shim.texts().iter().map(|line| line.trim_end()).collect::<Vec<_>>(), ["/dev/pts/0"]);
    shim.finish();
}

#[test]
fn runc() {
    with_runtime("/usr/sbin/runc");
}

#[test]
fn crun() {
    with_runtime("/usr/bin/crun");
}

#[test]
fn pod_init_holds_a_pid_namespace() {
    clean_up_at_exit();
    let path = base().join("pidns");
    let output = Command::new(shim_binary()).args(["pod-init", "--pidns-path"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let enter = |script: &str| {
        Command::new("nsenter")
            .arg(format!("--pid={}", path.display()))
            .args(["sh", "-c", script])
            .output()
            .unwrap()
    };
    let said = enter("(sleep 1000 >/dev/null 2>&1 &) ; echo $$");
    assert_ne!(String::from_utf8(said.stdout).unwrap().trim(), pid.to_string());
    assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 0);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    eventually("its end", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |text| text.contains(") Z "))
    });
    nix::mount::umount(&path).unwrap();
    fs::remove_file(&path).unwrap();
}
