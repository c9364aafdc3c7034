//! A daemon that hangs: who is told, and what of it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::stat::Mode;

use crate::support::World;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![a_hang_is_named_and_ends_the_signs_of_life, a_single_pod_that_hangs_does_not]
}

/// The service manager's side of the notification socket.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Starts the world's daemon anew as a service manager would, with a watchdog of four seconds: a part hangs after two.
    async fn of(world: &mut World) -> Self {
        let path = world.run.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        world.daemon.environment.extend([
            ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
            ("WATCHDOG_USEC".to_owned(), "4000000".to_owned()),
        ]);
        assert!(world.daemon.terminate());
        world.daemon.spawn();
        world.ready().await;
        Self { socket }
    }

    /// What came since the last time.
    fn told(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            self.socket
                .recv(&mut buffer)
                .ok()
                .map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
        .collect()
    }

    /// Waits until a sign of life comes.
    async fn alive(&self) {
        let deadline = crate::support::within(20);
        while !self.told().iter().any(|told| told.contains("WATCHDOG=1")) {
            assert!(std::time::Instant::now() < deadline, "no sign of life");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = crate::support::within(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A machine under load may stand still for a moment itself.
async fn well(world: &World) {
    eventually("it is not well", || {
        (world.observe("GET /healthz") == (200, "ok\n".to_owned())).then_some(())
    })
    .await;
}

/// For how many seconds `/healthz` says that a part hangs.
fn seconds(health: &str, part: &str) -> Option<u64> {
    let line = health.lines().find_map(|line| line.strip_prefix(&format!("{part}: no progress for ")))?;
    line.split(' ').next()?.parse().ok()
}

/// The file that the daemon writes a pod's next record to, as a pipe that nobody reads: whoever opens it waits.
struct Stuck {
    pipe: PathBuf,
}

impl Stuck {
    fn record(world: &World, pod: &str) -> Self {
        let pipe = world.daemon.root.join("records/pods").join(format!(".{pod}"));
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        Self { pipe }
    }

    /// Lets the writer go on, into nothing.
    fn release(self) {
        use std::io::Read;
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::File::options();
        let reader = options.read(true).custom_flags(libc_nonblock()).open(&self.pipe);
        // Renamed by the writer when it is done: read by the descriptor that is open.
        if let Ok(mut reader) = reader {
            let deadline = crate::support::within(20);
            let mut all = Vec::new();
            loop {
                match reader.read_to_end(&mut all) {
                    Ok(_) if !all.is_empty() => break,
                    _ => assert!(std::time::Instant::now() < deadline, "nobody writes the record"),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn libc_nonblock() -> i32 {
    nix::fcntl::OFlag::O_NONBLOCK.bits()
}

async fn a_hang_is_named_and_ends_the_signs_of_life(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let manager = Manager::of(world).await;
    manager.alive().await;
    let pod = world.run_pod(&world.pod("stuck")).await.unwrap();
    let stuck = Stuck::record(world, &pod);
    let stopping = {
        let (mut client, id) = (world.runtime(), pod.clone());
        tokio::spawn(async move {
            client.stop_pod_sandbox(k8s_cri::v1::StopPodSandboxRequest { pod_sandbox_id: id }).await
        })
    };
    let health = eventually("no hang was noticed", || {
        let (status, health) = world.observe("GET /healthz");
        (status == 503 && seconds(&health, "store").is_some()).then_some(health)
    })
    .await;
    assert!(health.contains("in write_record at pods of") && health.contains(&pod), "{health}");
    assert_eq!(world.observe("GET /readyz").0, 503);
    assert_eq!(world.metric("berth_hanging{part=\"store\"}"), Some(1.0));
    assert_eq!(world.metric("berth_ready"), Some(0.0));
    // The log names operation, stage and object.
    let line = eventually("the log does not say it", || {
        let log = world.daemon.log();
        log.lines().find(|line| line.contains("no progress")).map(str::to_owned)
    })
    .await;
    for part in ["store", "write_record", "pods", pod.as_str(), "seconds"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    // Four looks of the watchdog by its own clock, and no sign of life.
    let from = seconds(&health, "store").unwrap();
    manager.told();
    eventually("it does not hang on", || {
        seconds(&world.observe("GET /healthz").1, "store").filter(|now| *now >= from + 3)
    })
    .await;
    let told = manager.told();
    assert!(!told.iter().any(|told| told.contains("WATCHDOG=1")), "{told:?}");
    // Reads are answered all the while.
    world.list_pods().await.unwrap();
    stuck.release();
    stopping.await.unwrap().unwrap();
    manager.alive().await;
    well(world).await;
    world.remove_pod(&pod).await.unwrap();
    world.no_leaks();
}

/// A step of one pod may take as long as it wants: a command that does not end holds up nobody.
async fn a_single_pod_that_hangs_does_not(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let manager = Manager::of(world).await;
    let (_, container) = world.pod_with_sleeper("slow").await;
    let (mut client, id) = (world.runtime(), container.clone());
    let hanging = tokio::spawn(async move {
        let cmd = vec!["sleep".to_owned(), "1000".to_owned()];
        client.exec_sync(k8s_cri::v1::ExecSyncRequest { container_id: id, cmd, timeout: 0 }).await
    });
    eventually("the call is not under way", || {
        world.metric("berth_cri_operations_in_flight{operation=\"exec_sync\"}").filter(|count| *count == 1.0)
    })
    .await;
    // More than the two seconds after which a part of the daemon hangs.
    for _ in 0..4 {
        manager.alive().await;
    }
    well(world).await;
    hanging.abort();
}
