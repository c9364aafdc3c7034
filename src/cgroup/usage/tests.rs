//! On directories with files as kernels write them.

#![allow(clippy::unwrap_used)]

use super::*;

fn fill(directory: &Path, files: &[(&str, &str)]) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

/// A container with 64 MiB of memory on v1, kernel 6.1 and later.
fn v1(root: &Path, at: &str) {
    fill(
        &root.join("cpuacct").join(at),
        &[
            ("cpuacct.usage", "8215374021\n"),
            ("cpuacct.stat", "user 610\nsystem 211\n"),
            ("cgroup.procs", "4711\n4712\n"),
        ],
    );
    fill(
        &root.join("cpu").join(at),
        &[(
            "cpu.stat",
            "nr_periods 120\nnr_throttled 7\nthrottled_time 350000000\nnr_bursts 0\nburst_time 0\n",
        )],
    );
    fill(
        &root.join("memory").join(at),
        &[
            ("memory.usage_in_bytes", "13631488\n"),
            ("memory.max_usage_in_bytes", "20971520\n"),
            ("memory.failcnt", "3\n"),
            ("memory.kmem.usage_in_bytes", "1048576\n"),
            ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            (
                "memory.stat",
                "cache 4096\nrss 8192\nrss_huge 0\nmapped_file 0\nswap 0\npgfault 10\npgmajfault 1\ninactive_anon 0\n\
                 inactive_file 4096\nactive_file 0\nhierarchical_memory_limit 67108864\n\
                 hierarchical_memsw_limit 100663296\ntotal_cache 6291456\ntotal_rss 5242880\n\
                 total_mapped_file 2097152\ntotal_swap 12288\ntotal_pgfault 4242\ntotal_pgmajfault 24\n\
                 total_inactive_file 3145728\ntotal_active_file 1048576\n",
            ),
        ],
    );
    fill(&root.join("pids").join(at), &[("pids.current", "9\n"), ("pids.max", "max\n")]);
    fill(
        &root.join("blkio").join(at),
        &[
            (
                "blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 1048576\n254:0 Write 4096\n254:0 Sync 1052672\n254:0 Async 0\n254:0 Discard 0\n\
                 254:0 Total 1052672\nTotal 1052672\n",
            ),
            (
                "blkio.throttle.io_serviced_recursive",
                "254:0 Read 16\n254:0 Write 1\n254:0 Total 17\nTotal 17\n",
            ),
        ],
    );
}

/// The same on v2, kernel 6.12, with a cgroup of an exec below it.
fn v2(root: &Path, at: &str) {
    let directory = root.join(at);
    fill(
        &directory,
        &[
            (
                "cpu.stat",
                "usage_usec 8215374\nuser_usec 6100000\nsystem_usec 2115374\nnice_usec 0\n\
                 core_sched.force_idle_usec 0\nnr_periods 120\nnr_throttled 7\nthrottled_usec 350000\nnr_bursts 0\n\
                 burst_usec 0\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.75 avg300=0.10 total=123456\n\
                 full avg10=0.50 avg60=0.25 avg300=0.05 total=23456\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
            (
                "io.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=8\n",
            ),
            ("memory.current", "13631488\n"),
            ("memory.max", "67108864\n"),
            ("memory.low", "0\n"),
            ("memory.peak", "20971520\n"),
            ("memory.swap.current", "12288\n"),
            ("memory.swap.max", "33554432\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            (
                "memory.stat",
                "anon 5242880\nfile 6291456\nkernel 1048576\nkernel_stack 65536\nfile_mapped 2097152\n\
                 inactive_anon 0\nactive_anon 5242880\ninactive_file 3145728\nactive_file 1048576\npgfault 4242\n\
                 pgmajfault 24\n",
            ),
            ("pids.current", "9\n"),
            ("pids.max", "100\n"),
            ("cgroup.procs", "4711\n"),
            ("io.stat", "254:0 rbytes=1048576 wbytes=4096 rios=16 wios=1 dbytes=0 dios=0\n253:1 \n"),
        ],
    );
    fill(&directory.join("exec-1"), &[("cgroup.procs", "4712\n")]);
}

#[test]
fn both_versions_say_the_same() {
    let root = tempfile::tempdir().unwrap();
    v1(root.path(), "pods/p/c");
    v2(root.path(), "pods/p/c");
    let mut buffer = Buffer::default();
    let at = Path::new("/pods/p/c");
    let mut one = Meter::below(root.path(), Mode::Hybrid, at);
    let mut two = Meter::below(root.path(), Mode::Unified, at);
    let (first, second) = (one.usage(&mut buffer).unwrap(), two.usage(&mut buffer).unwrap());
    assert_eq!((first.cpu_nanoseconds, second.cpu_nanoseconds), (Some(8_215_374_021), Some(8_215_374_000)));
    assert_eq!((first.tasks, second.tasks), (Some(9), Some(9)));
    let memory = first.memory.unwrap();
    assert_eq!(memory.working_set(), 13_631_488 - 3_145_728);
    assert_eq!(
        (memory.limit, memory.swap_limit, memory.swap),
        (Some(64 << 20), Some(32 << 20), Some(12_288))
    );
    assert_eq!(Memory { kernel: Some(1 << 20), ..memory }, second.memory.unwrap());
    assert_eq!(first.cpu_pressure, None);
    let pressure = second.cpu_pressure.unwrap();
    assert_eq!((pressure.some.total_microseconds, pressure.full.total_microseconds), (123_456, 23_456));
    assert!((pressure.some.average_10 - 1.5).abs() < f64::EPSILON);
    assert_eq!(second.io_pressure.unwrap().full.total_microseconds, 8);

    let all = |meter: &mut Meter, buffer: &mut Buffer| meter.all(buffer, None).unwrap().1;
    let (first, second) = (all(&mut one, &mut buffer), all(&mut two, &mut buffer));
    assert_eq!(first.processes, [4711, 4712]);
    assert_eq!(second.processes, [4711, 4712]);
    assert_eq!((first.tasks_limit, second.tasks_limit), (None, Some(100)));
    assert_eq!(
        first.devices,
        [DeviceUsage { major: 254, minor: 0, read_bytes: 1 << 20, write_bytes: 4096, reads: 16, writes: 1 }]
    );
    assert_eq!(second.devices.first(), first.devices.first());
    for detail in [&first, &second] {
        assert_eq!(
            (detail.periods, detail.throttled_periods, detail.throttled_nanoseconds),
            (120, 7, 350_000_000)
        );
        assert_eq!((detail.memory_peak, detail.memory_limit_hits, detail.oom_kills), (20 << 20, 3, 1));
        assert_eq!((detail.kernel_memory, detail.memory_reservation), (1 << 20, None));
        assert_eq!(detail.cpu_user_nanoseconds, 6_100_000_000);
    }
}

/// A container of one task has the process that it began with: no list is asked for.
#[test]
fn one_task_is_the_first_process() {
    let root = tempfile::tempdir().unwrap();
    v2(root.path(), "pod/one");
    std::fs::write(root.path().join("pod/one/pids.current"), "1\n").unwrap();
    let (mut meter, mut buffer) =
        (Meter::below(root.path(), Mode::Unified, Path::new("/pod/one")), Buffer::default());
    assert_eq!(meter.all(&mut buffer, Some(99)).unwrap().1.processes, [99]);
    assert_eq!(meter.all(&mut buffer, None).unwrap().1.processes, [4711, 4712]);
    std::fs::write(root.path().join("pod/one/pids.current"), "2\n").unwrap();
    assert_eq!(meter.all(&mut buffer, Some(99)).unwrap().1.processes, [4711, 4712]);
}

#[test]
fn what_is_gone_has_no_usage() {
    let root = tempfile::tempdir().unwrap();
    let mut buffer = Buffer::default();
    for mode in [Mode::Hybrid, Mode::Unified] {
        let mut meter = Meter::below(root.path(), mode, Path::new("/gone"));
        assert_eq!(meter.usage(&mut buffer), None);
        assert_eq!(meter.cpu_nanoseconds(&mut buffer), None);
        assert_eq!(meter.all(&mut buffer, None), None);
    }
}

#[test]
fn files_larger_than_the_buffer_are_read_whole() {
    let root = tempfile::tempdir().unwrap();
    v2(root.path(), "c");
    let pids: String = (1..=10_000).map(|pid| format!("{pid}\n")).collect();
    std::fs::write(root.path().join("c/cgroup.procs"), pids).unwrap();
    let mut meter = Meter::below(root.path(), Mode::Unified, Path::new("c"));
    assert_eq!(meter.all(&mut Buffer::default(), None).unwrap().1.processes.len(), MAX_PROCESSES);
}

#[test]
fn page_sizes_are_named_as_the_kernel_does() {
    assert_eq!([64, 2048, 1 << 20].map(v2::page_size), ["64KB", "2MB", "1GB"]);
}

/// What 200 containers cost. Real cgroups, with `BERTH_MEASURE=1`: `cargo test --lib usage::tests::cost -- --nocapture`.
#[test]
fn cost() {
    if std::env::var_os("BERTH_MEASURE").is_none() {
        return;
    }
    let mode = Mode::detect();
    let parent = format!("berth-stats-cost-{}", std::process::id());
    let made: Vec<_> = (0..200)
        .map(|n| crate::cgroup::Cgroup::new(mode, Path::new(&format!("{parent}/pod{n}/{n:064x}"))))
        .collect();
    for cgroup in &made {
        cgroup.create().unwrap();
    }
    let mut meters: Vec<_> = made.iter().map(|cgroup| Meter::new(mode, cgroup.path())).collect();
    let mut buffer = Buffer::default();
    // Processor time of this thread: the machine may have other things to do.
    let time = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        std::time::Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    for _ in 0..4 {
        let began = time();
        let found = meters.iter_mut().filter_map(|meter| meter.usage(&mut buffer)).count();
        let usage = time() - began;
        let began = time();
        let all = meters.iter_mut().filter_map(|meter| meter.all(&mut buffer, None)).count();
        println!("{found} cgroups: usage {usage:?}, all {:?} ({all})", time() - began);
    }
    crate::cgroup::Cgroup::new(mode, Path::new(&parent)).remove().unwrap();
}

/// The kernel's own files, made, removed and made anew under a meter that holds them open.
#[test]
fn a_cgroup_made_anew_is_read_anew() {
    let mode = Mode::detect();
    let cgroup =
        crate::cgroup::Cgroup::new(mode, Path::new(&format!("berth-stats-anew-{}", std::process::id())));
    if let Err(error) = cgroup.create() {
        println!("skipped: no cgroup can be made here: {error}");
        return;
    }
    let (mut meter, mut buffer) = (Meter::new(mode, cgroup.path()), Buffer::default());
    for _ in 0..2 {
        assert!(meter.usage(&mut buffer).is_some() && meter.all(&mut buffer, None).is_some());
    }
    cgroup.remove().unwrap();
    assert_eq!((meter.usage(&mut buffer), meter.all(&mut buffer, None)), (None, None));
    cgroup.create().unwrap();
    let anew = (meter.usage(&mut buffer).is_some(), meter.all(&mut buffer, None).is_some());
    cgroup.remove().unwrap();
    assert_eq!(anew, (true, true));
}
