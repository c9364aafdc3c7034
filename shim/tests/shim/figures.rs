//! Figures, not checks: run with `--ignored --nocapture`, and `BERTH_SHIM=` for another binary than the debug one.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::{Shim, clean_up_at_exit};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "prints figures"]
fn latency() {
    clean_up_at_exit();
    let mut rows: [Vec<Duration>; 5] = Default::default();
    for round in 0..20 {
        // Far enough from other writes to cgroup.procs that each row pays what a quiet node pays.
        std::thread::sleep(Duration::from_millis(60));
        let shim = Shim::spawn(&["sleep", "1000"], |_| ());
        let mut timed = |row: usize, call: &mut dyn FnMut()| {
            let before = Instant::now();
            call();
            rows[row].push(before.elapsed());
        };
        timed(0, &mut || _ = shim.create());
        timed(1, &mut || _ = shim.start());
        std::thread::sleep(Duration::from_millis(60));
        timed(2, &mut || assert_eq!(shim.exec_sync(&format!("e{round}"), &["true"]).0, 0));
        std::thread::sleep(Duration::from_millis(60));
        timed(3, &mut || {
            shim.kill("", libc::SIGKILL, true).unwrap();
            assert_eq!(shim.wait(""), 137);
        });
        timed(4, &mut || drop(shim.delete("").unwrap()));
        shim.finish();
    }
    for (name, times) in ["create", "start", "exec", "kill+wait", "delete"].iter().zip(rows) {
        eprintln!("{name}: median {:?}", median(times));
    }
}

#[test]
#[ignore = "prints figures"]
fn memory_of_fifty() {
    clean_up_at_exit();
    let shims: Vec<Shim> = (0..50)
        .map(|_| {
            let shim = Shim::spawn(&["sleep", "1000"], |_| ());
            shim.create();
            shim.start();
            shim
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let rollups: Vec<String> = shims
        .iter()
        .map(|shim| fs::read_to_string(format!("/proc/{}/smaps_rollup", shim.child.id())).unwrap())
        .collect();
    for name in ["Rss:", "Pss:", "Private_Clean:", "Private_Dirty:", "Anonymous:"] {
        let total: u64 = rollups.iter().map(|text| field(text, name)).sum();
        eprintln!("{name} {} KiB each", total / 50);
    }
    shims.into_iter().for_each(Shim::finish);
}
