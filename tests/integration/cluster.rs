//! Several machines in small: worlds joined by a switch, and an etcd beside it.
//!
//! ```text
//!   world 1: uplink 192.0.2.1 ──┐
//!   world 2: uplink 192.0.2.2 ──┼── br0 192.0.2.254: etcd, and whatever is outside
//!   world 3: uplink 192.0.2.3 ──┘
//! ```
//!
//! Over IPv6 there is `2001:db8::` in place of `192.0.2.`, and no IPv4 address at all.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::support::netns::Netns;
use crate::support::runtime::{Options, Runtime};
use crate::support::{World, within};

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// The address beyond the switch.
pub(crate) const OUTSIDE: &str = "192.0.2.254";
/// The same over IPv6.
pub(crate) const OUTSIDE_V6: &str = "2001:db8::254";

/// What hosts and etcd are joined by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Underlay {
    #[default]
    V4,
    /// IPv4 with TLS, and certificates of both sides.
    Tls,
    V6,
}

impl Underlay {
    fn outside(self) -> &'static str {
        if self == Self::V6 { OUTSIDE_V6 } else { OUTSIDE }
    }

    /// An address of the underlay's network with its prefix length; no waiting for others who have it.
    fn address(self, last: &str) -> String {
        if self == Self::V6 { format!("2001:db8::{last}/64 nodad") } else { format!("192.0.2.{last}/24") }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) switch: Netns,
    pub(crate) etcd: Etcd,
    pub(crate) hosts: Vec<World>,
}

impl Cluster {
    /// So many hosts with a daemon each, and etcd; all run.
    pub(crate) async fn start(hosts: usize, underlay: Underlay) -> Self {
        let switch = Netns::new();
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        switch.ip(&format!("addr add dev br0 {}", underlay.address("254")));
        let mut etcd = Etcd::new(&switch, underlay);
        etcd.start();
        let options = Options { network: etcd.network(), ..Options::default() };
        let mut worlds = Vec::new();
        for number in 1..=hosts {
            let mut world = World::new(Runtime::Berth, &options);
            let port = format!("port{number}");
            world.netns.connect_as("uplink", &switch, &port);
            switch.ip(&format!("link set {port} master br0"));
            world.netns.ip(&format!("addr add dev uplink {}", underlay.address(&number.to_string())));
            world.netns.ip(&format!("route add default via {}", underlay.outside()));
            world.daemon.spawn();
            worlds.push(world);
        }
        for world in &mut worlds {
            world.ready().await;
        }
        Self { switch, etcd, hosts: worlds }
    }

    /// Removes all pods and overlays, waits until nothing of them is left, and ends the hosts.
    pub(crate) async fn finish(mut self) {
        for world in &self.hosts {
            for pod in world.list_pods().await.unwrap() {
                world.stop_pod(&pod.id).await.unwrap();
                world.remove_pod(&pod.id).await.unwrap();
            }
        }
        self.hosts[0].berth_ok(&["network", "prune"]);
        let etcd = &self.etcd;
        eventually("no record but the hosts' is in etcd", || {
            let keys = etcd.keys();
            keys.iter().all(|key| key.contains("/hosts/")).then_some(()).ok_or(format!("{keys:?}"))
        });
        for world in &self.hosts {
            eventually("no overlay is left", || {
                let links = world.netns.ip("-o link");
                let left = links.contains("br-") || links.contains("vx-");
                if left { Err(links) } else { Ok(()) }
            });
        }
        for world in self.hosts.drain(..) {
            world.finish().await;
        }
        // The last thing that etcd knows of them is their leases.
        eventually("the hosts' leases end", || {
            let (keys, leases) = (etcd.keys(), etcd.ctl(&["lease", "list"]));
            let none = keys.is_empty() && leases.contains("found 0 leases");
            if none { Ok(()) } else { Err(format!("{keys:?} {leases}")) }
        });
    }
}

/// A test on so many hosts, `async fn(&mut Cluster)`.
pub(crate) fn trial<F>(name: &str, hosts: usize, underlay: Underlay, test: F) -> Trial
where
    F: for<'a> ClusterTest<'a> + Send + 'static,
{
    Trial::test(name.to_owned(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let work = async {
                let mut cluster = Cluster::start(hosts, underlay).await;
                test.call(&mut cluster).await;
                cluster.finish().await;
            };
            tokio::time::timeout(crate::support::patience(240), work).await.expect("the test takes too long");
        });
        Ok(())
    })
}

/// `async fn(&mut Cluster)`.
pub(crate) trait ClusterTest<'a> {
    type Future: Future<Output = ()>;
    fn call(self, cluster: &'a mut Cluster) -> Self::Future;
}

impl<'a, F, Fut> ClusterTest<'a> for F
where
    F: FnOnce(&'a mut Cluster) -> Fut,
    Fut: Future<Output = ()> + 'a,
{
    type Future = Fut;
    fn call(self, cluster: &'a mut Cluster) -> Fut {
        self(cluster)
    }
}

/// The `[network]` section of a host whose etcd is nowhere.
pub(crate) fn network_without_etcd() -> String {
    section("http", OUTSIDE, "")
}

/// Leases are short, so that tests of their end are.
fn section(scheme: &str, address: &str, more: &str) -> String {
    format!(
        "mode = \"builtin\"\nstore = \"etcd\"\n[network.etcd]\nendpoints = [\"{scheme}://{address}:2379\"]\nlease = \"4s\"\n\
         timeout = \"2s\"\n{more}"
    )
}

/// Tries until it is so, at most 30 seconds.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = within(30);
    loop {
        match check() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

// === etcd ===

/// Debian's etcd, in the switch's namespace.
#[derive(Debug)]
pub(crate) struct Etcd {
    netns: Netns,
    directory: PathBuf,
    underlay: Underlay,
    process: Option<Child>,
}

impl Etcd {
    fn new(netns: &Netns, underlay: Underlay) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("/run/etcd-{number}"));
        std::fs::create_dir_all(&directory).unwrap();
        let etcd = Self { netns: netns.clone(), directory, underlay, process: None };
        if underlay == Underlay::Tls {
            etcd.certificates();
        }
        etcd
    }

    /// An authority, and one certificate for the server and for its clients.
    fn certificates(&self) {
        let openssl = |line: &str| {
            let output = Command::new("openssl").args(line.split(' ')).current_dir(&self.directory).output();
            let output = output.expect("openssl (apt-get install openssl)");
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let extensions = format!("subjectAltName=IP:{OUTSIDE}\n");
        std::fs::write(self.directory.join("extensions"), extensions).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=tests"));
        openssl(&format!("req -new {key} -keyout etcd.key -out etcd.csr -subj /CN=etcd"));
        openssl(
            "x509 -req -in etcd.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out etcd.crt",
        );
    }

    fn url(&self) -> String {
        match self.underlay {
            Underlay::V4 => format!("http://{OUTSIDE}:2379"),
            Underlay::Tls => format!("https://{OUTSIDE}:2379"),
            Underlay::V6 => format!("http://[{OUTSIDE_V6}]:2379"),
        }
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// The `[network]` section of a host.
    fn network(&self) -> String {
        match self.underlay {
            Underlay::V4 => return section("http", OUTSIDE, ""),
            Underlay::V6 => return section("http", &format!("[{OUTSIDE_V6}]"), ""),
            Underlay::Tls => {}
        }
        let [ca, certificate, key] = ["ca.crt", "etcd.crt", "etcd.key"].map(|name| self.file(name));
        let files = format!("ca_file = {ca:?}\ncert_file = {certificate:?}\nkey_file = {key:?}\n");
        section("https", OUTSIDE, &files)
    }

    /// Starts it with the data it has, and waits until it answers.
    pub(crate) fn start(&mut self) {
        let client = self.url();
        let [ca, certificate, key] = ["ca.crt", "etcd.crt", "etcd.key"].map(|name| self.file(name));
        let tls =
            ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &certificate, "--key-file", &key];
        let tls = if self.underlay == Underlay::Tls { &tls[..] } else { &[] };
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let process = self.netns.run(|| {
            Command::new("etcd")
                .arg("--data-dir")
                .arg(self.directory.join("data"))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
                .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
                .args(["--initial-cluster", "default=http://127.0.0.1:2380"])
                .args(tls)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
        });
        self.process = Some(process.expect("etcd (apt-get install etcd-server)"));
        eventually("etcd answers", || {
            let output = self.netns.run(|| self.command(&["endpoint", "health"]).output()).unwrap();
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
    }

    /// SIGKILL; its data stay.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Keeps a copy of its data as they are.
    pub(crate) fn back_up(&self) {
        self.ctl(&["snapshot", "save", &self.file("backup")]);
    }

    /// Puts the copy in the place of its data. It does not run.
    pub(crate) fn restore(&self) {
        let data = self.directory.join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let (backup, data) = (self.file("backup"), data.display().to_string());
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore", &backup, "--data-dir", &data]);
        command.args(["--initial-cluster", "default=http://127.0.0.1:2380"]);
        let output =
            command.args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]);
        if self.underlay == Underlay::Tls {
            let [ca, certificate, key] = ["ca.crt", "etcd.crt", "etcd.key"].map(|name| self.file(name));
            command.args(["--cacert", &ca, "--cert", &certificate, "--key", &key]);
        }
        command.args(arguments);
        command
    }

    /// `etcdctl` with these arguments; its output.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self
            .netns
            .run(|| self.command(arguments).output())
            .expect("etcdctl (apt-get install etcd-client)");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All of Berth's keys.
    pub(crate) fn keys(&self) -> Vec<String> {
        let text = self.ctl(&["get", "--prefix", "/berth/", "--keys-only"]);
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The last revision.
    pub(crate) fn revision(&self) -> i64 {
        let status: serde_json::Value = serde_json::from_str(&self.ctl(&["get", "/", "-w", "json"])).unwrap();
        status["header"]["revision"].as_i64().unwrap()
    }

    /// Drops all history up to now.
    pub(crate) fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
