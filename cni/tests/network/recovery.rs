//! After a death at any step, a flush, a deletion under us: reconciliation makes it right.

use std::collections::HashSet;

use berth_cni::{Controller, EndpointOptions, Protocol};

use crate::host::{Host, Netns, eventually, links, port, publish, run, tcp};

/// A new controller on the same records, as after a restart of the daemon.
fn reopen(host: &Host, cni: Controller) -> Controller {
    drop(cni);
    let reopened = std::cell::OnceCell::new();
    eventually("the record file is free", || {
        let cni = Controller::open(host.options(&["10.85.0.0/16", "fd85:be:27::/64"]));
        cni.is_ok_and(|cni| reopened.set(cni).is_ok())
    });
    reopened.into_inner().unwrap()
}

fn live(ids: &[&str]) -> HashSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_restart_finds_everything_and_touches_nothing() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        pod.serve(80);
        let before = (run("nft list table inet berth"), run("ip -o link"));
        let cni = reopen(host, cni);
        let report = host.runtime.block_on(cni.reconcile(&live(&[&pod.id]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!((report.restored_elements, report.removed_elements), (0, 0), "{report:?}");
        assert!(report.restored_endpoints.is_empty() && report.removed_links.is_empty(), "{report:?}");
        assert_eq!(before, (run("nft list table inet berth"), run("ip -o link")));
        assert_eq!(cni.sandbox(&pod.id).unwrap().unwrap().endpoints, std::slice::from_ref(&pod.endpoint));
        assert!(tcp([127, 0, 0, 1], 8080).is_ok());
        let report = host.runtime.block_on(cni.reconcile(&live(&[]))).unwrap();
        assert_eq!(report.removed_sandboxes, std::slice::from_ref(&pod.id));
        assert_eq!(links("berth"), ["berth0"]);
        assert_eq!(host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)])).v4().to_string(), "10.85.0.3");
        host.finish(cni);
    });
}

/// What a join leaves when it is cut off: the record alone, or the record and a part of the kernel's work. Redone by joining
/// again and undone by reconciliation, from each of them.
#[test]
fn a_join_cut_off_at_any_step_is_redone_or_undone() {
    type Cut = fn(&str, &str);
    let cuts: [(&str, Cut); 5] = [
        ("nothing but the record", |veth, _| {
            run(&format!("ip link del {veth}"));
            run("nft flush map inet berth ports4");
        }),
        ("elements, no interface", |veth, _| drop(run(&format!("ip link del {veth}")))),
        ("interface not on the bridge and down", |veth, _| {
            run(&format!("ip link set {veth} nomaster"));
            run(&format!("ip link set {veth} down"));
        }),
        ("interface without addresses", |_, netns| {
            run(&format!("nsenter --net={netns} ip addr flush dev eth0"));
        }),
        ("everything", |_, _| {}),
    ];
    for (what, cut) in cuts {
        Host::test(move |host| {
            let mut cni = host.dual();
            for redo in [true, false] {
                let options = || publish([port(Protocol::Tcp, 8080, 80)]);
                let pod = host.pod(&cni, options());
                cut(pod.endpoint.host_interface.as_ref().unwrap(), &pod.netns.path().to_string_lossy());
                cni = reopen(host, cni);
                if redo {
                    let again = host.runtime.block_on(cni.join(&pod.id, "bridge", options())).unwrap();
                    assert_eq!(again, pod.endpoint, "{what}");
                    pod.serve(80);
                    assert!(tcp([127, 0, 0, 1], 8080).is_ok(), "{what}");
                    assert!(tcp(pod.v6(), 80).is_ok(), "{what}");
                }
                let report = host.runtime.block_on(cni.reconcile(&live(&[]))).unwrap();
                assert!(report.errors.is_empty(), "{what}: {report:?}");
                assert_eq!(report.removed_sandboxes, std::slice::from_ref(&pod.id), "{what}");
                assert_eq!(links("berth"), ["berth0"], "{what}");
                assert!(!run("nft list map inet berth ports4").contains("elements"), "{what}");
            }
            host.finish(cni);
        });
    }
}

#[test]
fn a_flushed_ruleset_and_a_deleted_bridge_come_back() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        pod.serve(80);
        run("nft add table inet theirs");
        let whole = run("nft -s list table inet berth");
        run("nft flush table inet berth");
        let report = host.runtime.block_on(cni.reconcile(&live(&[&pod.id]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(run("nft -s list table inet berth"), whole);
        run("nft delete table inet berth");
        // The next pod notices by itself and restores what belongs to the others too.
        let next = host.pod(&cni, publish([port(Protocol::Tcp, 8081, 80)]));
        assert!(tcp([127, 0, 0, 1], 8080).is_ok());
        run("ip link del berth0");
        let report = host.runtime.block_on(cni.reconcile(&live(&[&pod.id, &next.id]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(report.restored_endpoints.len(), 2);
        assert!(tcp([127, 0, 0, 1], 8080).is_ok());
        assert!(run("nft list tables").contains("theirs"));
        host.finish(cni);
    });
}

#[test]
fn what_nobody_owns_is_removed_and_what_others_own_is_not() {
    Host::test(|host| {
        let cni = host.dual();
        run("ip link add berth0123456789 type veth peer name stray1");
        run("ip link set berth0123456789 master berth0");
        run("ip link add berth-theirs type veth peer name stray2");
        run("nft add element inet berth ports4 { tcp . 999 : 10.85.9.9 . 9 }");
        let report = host.runtime.block_on(cni.reconcile(&live(&[]))).unwrap();
        assert_eq!(report.removed_links, ["berth0123456789"]);
        assert_eq!(report.removed_elements, 1);
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(links("berth-theirs").len(), 1);
        run("ip link del berth-theirs");
        host.finish(cni);
    });
}

#[test]
fn a_namespace_deleted_under_us_is_no_obstacle() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, publish([port(Protocol::Udp, 5353, 53)]));
        let (id, options) = (pod.id.clone(), publish([port(Protocol::Udp, 5353, 53)]));
        drop(pod);
        eventually("the interface goes with its namespace", || links("berth").len() == 1);
        assert!(host.runtime.block_on(cni.join(&id, "bridge", options)).is_err(), "there is nothing to join");
        let report = host.runtime.block_on(cni.reconcile(&live(&[&id]))).unwrap();
        assert_eq!(report.errors.len(), 1, "a live sandbox without a namespace is reported: {report:?}");
        host.delete(&cni, &id);
        let _ = Netns::new();
        let pod = host.pod(&cni, EndpointOptions::default());
        host.delete(&cni, &pod.id);
        host.finish(cni);
    });
}

const SMALL: &str = "10.85.0.0/28";

/// The victim of the test below: pods come and go, four at a time, until it is killed.
#[test]
#[ignore = "runs as a child of another test"]
fn victim() {
    let Ok(store) = std::env::var("BERTH_TEST_STORE") else { return };
    let bridge = berth_cni::BridgeOptions::new("berth0", [SMALL.parse().unwrap()]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cni = Controller::open(berth_cni::Options::new(store.into(), bridge)).unwrap();
    runtime.block_on(async {
        let mut churn = tokio::task::JoinSet::new();
        for lane in 0..4_u16 {
            let cni = cni.clone();
            churn.spawn(async move {
                for turn in 0_u64.. {
                    let (id, netns) = (format!("lane{lane}-{turn}"), Netns::new());
                    cni.create_sandbox(berth_cni::SandboxSpec { id: id.clone(), netns: netns.path() })
                        .await
                        .unwrap();
                    cni.join(&id, "bridge", publish([port(Protocol::Tcp, 9000 + lane, 80)])).await.unwrap();
                    cni.delete_sandbox(&id).await.unwrap();
                }
            });
        }
        churn.join_all().await;
    });
}

#[test]
fn killed_at_any_moment_nothing_leaks_and_nothing_is_given_twice() {
    Host::test(|host| {
        let options = || host.options(&[SMALL]);
        for round in 0..8_u64 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "recovery::victim"])
                .env("BERTH_TEST_STORE", options().store)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(150 + 37 * round));
            assert!(child.try_wait().unwrap().is_none(), "the victim lives until it is killed");
            child.kill().unwrap();
            child.wait().unwrap();
            let cni = Controller::open(options()).unwrap();
            let sandboxes = cni.sandboxes().unwrap();
            let addresses: Vec<_> =
                sandboxes.iter().flat_map(|s| &s.endpoints).flat_map(|e| &e.addresses).collect();
            assert_eq!(addresses.len(), addresses.iter().collect::<HashSet<_>>().len(), "{sandboxes:?}");
            let report = host.runtime.block_on(cni.reconcile(&live(&[]))).unwrap();
            assert!(report.errors.is_empty(), "{report:?}");
            assert_eq!(
                (report.removed_leases, report.removed_ports),
                (0, 0),
                "owner and lease are one commit"
            );
            assert_eq!(links("berth"), ["berth0"]);
            assert!(!run("nft list map inet berth ports4").contains("elements"));
            // The whole pool is there to be given out.
            let pods: Vec<_> = (0..13).map(|_| host.pod(&cni, EndpointOptions::default())).collect();
            for pod in &pods {
                host.delete(&cni, &pod.id);
            }
            drop(pods);
            if round == 7 {
                host.finish(cni);
            } else {
                drop(cni);
                eventually("the record file is free", || !file_is_locked(&options().store));
            }
        }
    });
}

fn file_is_locked(path: &std::path::Path) -> bool {
    std::fs::File::open(path).unwrap().try_lock().is_err()
}
