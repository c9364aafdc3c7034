//! A host's place among the others, in a real etcd.

use std::{
    collections::HashSet,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use berth_cni::{
    Controller,
    overlay::{Names, Options, TlsFiles},
};

use crate::host::{Host, eventually, run};

const ENDPOINT: &str = "http://127.0.0.1:2379";

/// etcd in the calling thread's namespace.
struct Etcd(Child);

impl Etcd {
    fn start(host: &Host) -> Self {
        let etcd = Command::new("etcd")
            .arg("--data-dir")
            .arg(host.directory.path().join("etcd"))
            .args(["--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ask(question: &str) -> String {
    run(&format!("etcdctl --endpoints {ENDPOINT} {question}"))
}

#[test]
fn a_host_that_is_busy_for_long_is_not_forgotten() {
    Host::test(|host| {
        let _etcd = Etcd::start(host);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let overlay = Options {
            endpoints: vec![ENDPOINT.into()],
            prefix: "/berth".into(),
            tls: TlsFiles::default(),
            timeout: Duration::from_secs(3),
            lease: Duration::from_secs(2),
            address: Some([192, 0, 2, 1].into()),
            port: 4789,
            wireguard_port: 51820,
            host_file: host.directory.path().join("host"),
        };
        let options = berth_cni::Options { overlay: Some(overlay), ..host.options(&["10.85.0.0/16"]) };
        let cni = Controller::open(options).unwrap();
        runtime.block_on(async { cni.serve_overlay(Arc::new(|_| Names::default())) });
        eventually("this host is one of them", || {
            cni.overlay_status().is_some_and(|status| status.connected && status.hosts == 1)
        });
        // Nothing else of this host goes on meanwhile.
        let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let busy = cni.clone();
        let busy = runtime.spawn(async move {
            let live = move || {
                begin.send(()).unwrap();
                let _ = ended.recv();
                HashSet::new()
            };
            busy.reconcile_with(live).await
        });
        begun.recv().unwrap();
        let leases = ask("lease list");
        // By etcd's clock: what lives twice as long as an unkept lease of this host.
        let granted = ask("lease grant 4");
        let longer = granted.split_whitespace().nth(1).unwrap();
        ask(&format!("put --lease={longer} /longer x"));
        eventually("a longer lease has ended", || ask("get /longer").is_empty());
        assert!(ask("get --prefix --keys-only /berth/overlay/hosts/").contains("/hosts/"), "forgotten");
        assert_eq!(ask("lease list"), leases, "under the same lease");
        end.send(()).unwrap();
        runtime.block_on(busy).unwrap().unwrap();
        runtime.block_on(cni.remove_all()).unwrap();
    });
}
