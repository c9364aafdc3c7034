#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    fs::File,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};

use crate::{
    controller::{Controller, Options, STRIPES},
    error::Error,
    link,
    model::{BridgeOptions, EndpointOptions, SandboxSpec},
    names::stable_hash,
    netlink::Socket,
};

/// A namespace of its own for the rest of the thread.
fn own_namespace() -> File {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Whoever waits for the kernel keeps nobody from the records: here the kernel is asked, and a bridge that somebody deleted is made,
/// while another has them.
#[test]
fn no_transaction_is_open_while_the_kernel_is_asked() {
    let test = || {
        let _host = own_namespace();
        let pod = thread::spawn(own_namespace).join().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let bridge = BridgeOptions::new("held0", ["10.85.0.0/24".parse().unwrap()]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cni = Controller::open(Options::new(directory.path().join("records.redb"), bridge)).unwrap();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd()).into();
        runtime.block_on(cni.create_sandbox(SandboxSpec { id: "pod".into(), netns })).unwrap();
        let mut socket = Socket::route().unwrap();
        link::delete(&mut socket, "held0").unwrap();

        let others = cni.inner.store.write().unwrap();
        let joiner = cni.clone();
        let joined =
            runtime.spawn(async move { joiner.join("pod", "bridge", EndpointOptions::default()).await });
        let deadline = Instant::now() + Duration::from_secs(20);
        while link::find(&mut socket, "held0").unwrap().is_none() {
            assert!(Instant::now() < deadline, "the kernel is asked only when the records are free");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(cni.sandbox("pod").unwrap().unwrap().endpoints.is_empty(), "nothing is recorded yet");
        others.abort().unwrap();

        let endpoint = runtime.block_on(joined).unwrap().unwrap();
        assert_eq!(endpoint.addresses[0].to_string(), "10.85.0.2/24");
        runtime.block_on(cni.remove_all()).unwrap();
    };
    thread::spawn(test).join().unwrap();
}

/// One change that hangs keeps its own sandbox waiting, and whoever wants to be alone; nobody for ever, and no other sandbox.
#[test]
fn nobody_waits_for_ever_for_a_change_that_hangs() {
    let test = || {
        let _host = own_namespace();
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut cni = Controller::open(Options::bare(directory.path().join("records.redb"))).unwrap();
        cni.patience = Duration::from_millis(20);
        let create = async |id: &str| {
            let id = id.to_owned();
            cni.create_sandbox(SandboxSpec { id, netns: "/proc/self/ns/net".into() }).await
        };
        runtime.block_on(async {
            let stripe = usize::try_from(stable_hash(&["hung"]) % STRIPES).unwrap();
            let (hung, turn) = (cni.gate.read().await, cni.stripes[stripe].lock().await);
            let alone = cni.audit(HashSet::new).await;
            assert!(matches!(alone, Err(Error::Deadline(_))), "{alone:?}");
            let same = create("hung").await;
            assert!(matches!(same, Err(Error::Deadline(_))), "{same:?}");
            let other = ["a", "b"]
                .into_iter()
                .find(|id| stable_hash(&[id]) % STRIPES != stable_hash(&["hung"]) % STRIPES);
            create(other.unwrap()).await.unwrap();
            drop((hung, turn));
            create("hung").await.unwrap();
            cni.audit(HashSet::new).await.unwrap();
        });
        runtime.block_on(cni.remove_all()).unwrap();
    };
    thread::spawn(test).join().unwrap();
}
