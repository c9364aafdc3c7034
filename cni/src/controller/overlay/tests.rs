#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

use crate::{
    controller::{Controller, Options},
    definition::overlay_interfaces,
    link,
    model::{Network, NetworkDriver, OverlayOptions, SubnetOptions},
    netlink::{Messages, Socket},
    overlay::{self, TlsFiles},
    worker::Kernel,
};

/// A host with one overlay and no etcd.
fn host(directory: &std::path::Path) -> Controller {
    let mut socket = Socket::route().unwrap();
    link::create_bridge(&mut socket, "up0", [2, 0, 0, 0, 0, 1], 1500).unwrap();
    let index = link::find(&mut socket, "up0").unwrap().unwrap().index;
    let mut messages = Messages::new();
    link::add_address(&mut messages, index, "192.0.2.1/24".parse().unwrap());
    link::set_up(&mut messages, index);
    socket.exchange(messages).unwrap().iter().try_for_each(|reply| reply.accept(&[])).unwrap();
    let options = overlay::Options {
        endpoints: vec!["http://192.0.2.2:2379".into()],
        prefix: "/berth".into(),
        tls: TlsFiles::default(),
        timeout: Duration::from_secs(1),
        lease: Duration::from_secs(4),
        address: Some("192.0.2.1".parse().unwrap()),
        port: 4789,
        wireguard_port: 51820,
        host_file: directory.join("host-id"),
    };
    let options = Options { overlay: Some(options), ..Options::bare(directory.join("records.redb")) };
    Controller::open(options).unwrap()
}

/// Asking for the state (as every scrape does) and telling the kernel of peers don't stop each other for ever.
#[test]
fn the_state_is_told_while_the_kernel_learns_of_peers() {
    let test = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let _netns = File::open("/proc/thread-self/ns/net").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let cni = host(directory.path());
        let mut kernel = Kernel::open().unwrap();
        let (bridge, vxlan) = overlay_interfaces("berth", "blue");
        let driver = NetworkDriver::Overlay(OverlayOptions {
            vni: 5_000,
            bridge,
            vxlan,
            subnets: vec![SubnetOptions::new("10.90.0.0/24".parse().unwrap())],
            block: 0,
            mtu: 0,
            internal: false,
            encrypted: false,
        });
        cni.inner.create_network(&mut kernel, Network::new("blue", driver)).unwrap();
        let plane = Arc::clone(cni.inner.overlay.as_ref().unwrap());
        plane.view.lock().revision = 1;

        let done = Arc::new(AtomicBool::new(false));
        let asker = {
            let (plane, done) = (Arc::clone(&plane), Arc::clone(&done));
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    plane.status();
                }
            })
        };
        let active = cni.inner.active("blue").unwrap();
        let (told, hears) = mpsc::channel();
        let inner = Arc::clone(&cni.inner);
        thread::spawn(move || {
            for _ in 0..3_000 {
                inner.sync_peers(&mut kernel, &active).unwrap();
            }
            told.send(()).unwrap();
        });
        assert_eq!(hears.recv_timeout(Duration::from_secs(60)), Ok(()), "they wait for each other");
        done.store(true, Ordering::Relaxed);
        asker.join().unwrap();
        assert!(plane.applied.lock().contains_key("blue"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(cni.remove_all()).unwrap();
    };
    thread::spawn(test).join().unwrap();
}
