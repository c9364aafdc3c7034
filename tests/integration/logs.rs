//! Container logs: format, partial lines, reopening, and that no line is lost.

use std::path::PathBuf;
use std::time::Duration;

use k8s_cri::v1::{ContainerConfig, PodSandboxConfig, ReopenContainerLogRequest};
use libtest_mimic::Trial;

use crate::containers::wait_for_log;
use crate::support::World;
use crate::support::spec::script;
use crate::support::world::{LogLine, parse_log};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        streams_and_times,
        long_lines_are_split,
        last_line_without_end,
        reopen_loses_nothing,
        the_daemons_death_loses_nothing,
        no_path_no_log,
        bytes_are_kept,
    ]
}

async fn streams_and_times(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("streams");
    let config = script("main", &image, "echo a; sleep 0.1; echo b >&2; sleep 0.1; echo; echo c d");
    world.output_of(&pod, &config).await;
    let log = world.log(&pod, &config);
    let seen: Vec<(&str, &str)> = log.iter().map(|line| (line.stream.as_str(), line.text.as_str())).collect();
    assert_eq!(seen, [("stdout", "a"), ("stderr", "b"), ("stdout", ""), ("stdout", "c d")]);
    for line in &log {
        let time = time::OffsetDateTime::parse(&line.time, &time::format_description::well_known::Rfc3339);
        assert!(time.is_ok(), "{}", line.time);
        let fraction = line.time.split_once('.').map_or("", |(_, rest)| rest);
        assert!(fraction.chars().take_while(char::is_ascii_digit).count() >= 6, "{}", line.time);
    }
}

async fn long_lines_are_split(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("long");
    let config = script("main", &image, "head -c 40000 /dev/zero | tr '\\0' y; echo; echo end");
    world.output_of(&pod, &config).await;
    let log = world.log(&pod, &config);
    let shape: Vec<(bool, usize)> = log.iter().map(|line| (line.full, line.text.len())).collect();
    assert_eq!(shape, [(false, 16384), (false, 16384), (true, 40000 - 2 * 16384), (true, 3)]);
}

async fn last_line_without_end(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("last");
    let config = script("main", &image, "printf 'first\\nlast'");
    world.output_of(&pod, &config).await;
    let texts: Vec<String> = world.log(&pod, &config).into_iter().map(|line| line.text).collect();
    assert_eq!(texts, ["first", "last"]);
}

const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; [ $((i % 50)) = 0 ] && sleep 0.01; done";

async fn reopen_loses_nothing(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("reopen");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = script("main", &image, COUNTER);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    wait_for_log(world, &pod, &config, "1\n").await;
    let path = PathBuf::from(&pod.log_directory).join(&config.log_path);
    let mut parts = Vec::new();
    for number in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let rotated = path.with_extension(number.to_string());
        std::fs::rename(&path, &rotated).unwrap();
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        world.runtime().reopen_container_log(request).await.unwrap();
        assert!(path.exists(), "reopened");
        parts.push(rotated);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.stop_container(&id, 0).await.unwrap();
    parts.push(path);
    let lines: Vec<LogLine> =
        parts.iter().flat_map(|part| parse_log(&std::fs::read(part).unwrap())).collect();
    assert_counts(&lines);
    let request = ReopenContainerLogRequest { container_id: id };
    world.runtime().reopen_container_log(request).await.unwrap_err();
}

/// Every number from one on, in order, once.
fn assert_counts(lines: &[LogLine]) {
    assert!(lines.len() > 50, "{} lines", lines.len());
    for (number, line) in (1..).zip(lines) {
        assert_eq!(line.text, number.to_string(), "line {number} of {}", lines.len());
    }
}

async fn the_daemons_death_loses_nothing(world: &mut World) {
    if !world.is_berth() {
        return; // containerd's CRI plugin writes the logs itself and loses lines here
    }
    let image = world.image("busybox").await;
    let pod = world.pod("death");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = script("main", &image, COUNTER);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.daemon.kill();
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.daemon.spawn();
        world.ready().await;
    }
    world.stop_container(&id, 0).await.unwrap();
    assert_counts(&world.log(&pod, &config));
}

async fn no_path_no_log(world: &mut World) {
    let image = world.image("busybox").await;
    let pod: PodSandboxConfig = world.pod("silent");
    let mut config: ContainerConfig = script("main", &image, "head -c 1000000 /dev/zero; exit 3");
    config.log_path = String::new();
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.wait_exit(&id).await.exit_code, 3);
    assert_eq!(std::fs::read_dir(&pod.log_directory).unwrap().count(), 0);
}

async fn bytes_are_kept(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("bytes");
    let config = script("main", &image, "printf '\\001\\377\\t\\n'; printf 'a b  c\\n'");
    world.output_of(&pod, &config).await;
    let raw = std::fs::read(PathBuf::from(&pod.log_directory).join("main.log")).unwrap();
    let first = raw.split(|&byte| byte == b'\n').next().unwrap();
    assert!(first.ends_with(b" stdout F \x01\xff\t"), "{}", String::from_utf8_lossy(first));
}
