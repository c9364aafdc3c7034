//! Further processes in a container.

use std::fs;
use std::time::{Duration, Instant};

use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::harness::{Shim, clean_up_at_exit, eventually, refusal};

fn running() -> Shim {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    shim
}

#[test]
fn an_exec_runs_inside_and_its_output_and_code_come_back() {
    let shim = running();
    assert_eq!(shim.exec_sync("e1", &["sh", "-c", "echo $WHO; exit 5"]), (5, "berth\n".to_owned()));
    let (code, output) = shim.exec_sync("e2", &["sh", "-c", "cat /proc/1/comm; cat /proc/self/status"]);
    assert_eq!(code, 0);
    assert!(output.starts_with("sleep\n"), "{output}");
    for expected in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t00000000000004e1"] {
        assert!(output.contains(expected), "{expected} in {output}");
    }
    let (_, mine) = shim.exec_sync("e3", &["cat", "/proc/self/cgroup"]);
    assert!(mine.contains(&shim.id), "{mine}");
    shim.finish();
}

#[test]
fn the_exec_users_ids_and_directory_are_applied() {
    let shim = running();
    let [out, _] = shim.exec("u", &["sh", "-c", "id; pwd; grep Cap /proc/self/status"], |process| {
        process["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 63});
        process["cwd"] = json!("/tmp");
    });
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    shim.start_exec("u").unwrap();
    assert_eq!(shim.wait("u"), 0);
    shim.delete("u").unwrap();
    let output = reader.join().unwrap();
    assert!(
        output.starts_with("uid=1000(user) gid=1000 groups=5,7\n/tmp\n")
            || output.contains("groups=1000,5,7\n/tmp\n"),
        "{output}"
    );
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    shim.finish();
}

#[test]
fn a_command_that_is_not_there_is_named() {
    let shim = running();
    for (exec_id, command, expected, code) in [
        ("a", "nope", "exec: \"nope\": executable file not found in $PATH", 127),
        ("b", "/etc/plain", "exec: \"/etc/plain\": permission denied", 126),
    ] {
        shim.exec(exec_id, &[command], |_| ());
        let (_, message) = refusal(shim.start_exec(exec_id));
        assert_eq!(message, expected);
        assert_eq!(shim.wait(exec_id), code);
        shim.delete(exec_id).unwrap();
    }
    assert_eq!(refusal(shim.start_exec("unknown")).0, Code::NOT_FOUND);
    shim.finish();
}

#[test]
fn killing_an_exec_kills_all_it_started() {
    let shim = running();
    shim.exec("k", &["sh", "-c", "(setsid sleep 999 &) ; sleep 999"], |_| ());
    shim.start_exec("k").unwrap();
    let sleepers = || {
        let kinds = shim.cgroups();
        let pids = kinds.iter().find(|path| path.join("pids.max").exists()).unwrap();
        fs::read_to_string(pids.join("berth-exec-k/cgroup.procs")).unwrap_or_default().lines().count()
    };
    eventually("the grandchild", || sleepers() == 3 || sleepers() == 2);
    shim.kill("k", libc::SIGKILL, true).unwrap();
    assert_eq!(shim.wait("k"), 137);
    eventually("everybody's end", || sleepers() == 0);
    shim.delete("k").unwrap();
    assert_eq!(shim.exec_sync("after", &["echo", "alive"]).1, "alive\n");
    shim.finish();
}

#[test]
fn an_exec_with_a_terminal() {
    let shim = running();
    // The harness announces execs without a terminal; this one goes through the raw request.
    let mut process = crate::harness::spec(&shim.id, &["sh", "-c", "tty; echo done"])["process"].take();
    process["terminal"] = json!(true);
    let out = shim.directory.join("t.out");
    nix::unistd::mkfifo(&out, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let request = containerd_shim_protos::api::ExecProcessRequest {
        id: shim.id.clone(),
        exec_id: "t".into(),
        terminal: true,
        stdout: out.display().to_string(),
        spec: containerd_shim_protos::protobuf::MessageField::some(
            containerd_shim_protos::protobuf::well_known_types::any::Any {
                value: serde_json::to_vec(&process).unwrap(),
                ..Default::default()
            },
        ),
        ..Default::default()
    };
    shim.task.exec(crate::harness::context(), &request).unwrap();
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    shim.start_exec("t").unwrap();
    assert_eq!(shim.wait("t"), 0);
    shim.delete("t").unwrap();
    assert_eq!(reader.join().unwrap(), "/dev/pts/0\r\ndone\r\n");
    shim.finish();
}

#[test]
fn many_execs_leave_memory_and_descriptors_where_they_were() {
    let shim = running();
    let pid = shim.child.id();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let resident = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    for round in 0..20 {
        shim.exec_sync(&format!("warm{round}"), &["true"]);
    }
    let (fds, memory) = (descriptors(), resident());
    let mut times = Vec::new();
    for round in 0..200 {
        let before = Instant::now();
        assert_eq!(shim.exec_sync(&format!("e{round}"), &["true"]).0, 0);
        times.push(before.elapsed());
    }
    times.sort();
    eprintln!("exec: median {:?}, 95% {:?}; private {memory} -> {} KiB", times[100], times[190], resident());
    assert_eq!(descriptors(), fds);
    assert!(resident() <= memory + 64, "{memory} -> {} KiB", resident());
    assert!(times[100] < Duration::from_millis(500));
    shim.finish();
}
