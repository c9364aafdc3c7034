//! `berth-cni` as container runtimes call it: environment, standard input, standard output, on the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

/// The host a test has to itself: a thread in a network namespace of its own.
struct Host {
    directory: tempfile::TempDir,
}

/// A container's namespace.
struct Netns(std::fs::File);

impl Netns {
    fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(open).join().unwrap())
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    fn sh(&self, line: &str) -> String {
        self.within(|| sh(line))
    }
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Host {
    fn test(test: impl FnOnce(&Self) + Send + 'static) {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sh("ip link set lo up");
            let host = Self { directory: tempfile::tempdir_in("/run").unwrap() };
            for role in [
                "berth-bridge",
                "berth-macvlan",
                "berth-ipvlan",
                "berth-ipam",
                "berth-overlay",
                "berth-nothing",
            ] {
                std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_berth-cni"), host.directory.path().join(role))
                    .unwrap();
            }
            test(&host);
        };
        if let Err(panic) = std::thread::spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn records(&self) -> PathBuf {
        self.directory.path().join("records")
    }

    fn bridge(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": "pods", "type": "berth-bridge", "bridge": "bcni0",
               "dataDir": self.records(), "ipam": {"ranges": [[{"subnet": "10.88.0.0/28"}], [{"subnet": "fd88::/64"}]]}})
    }

    fn plugin(&self, role: &str) -> PathBuf {
        self.directory.path().join(role)
    }

    /// Success: what was printed.
    fn ok(&self, role: &str, command: &str, of: (&str, &str), config: &Value) -> Value {
        let (status, printed) = run(&self.plugin(role), command, of, config);
        assert!(status, "{command}: {printed}");
        printed
    }

    /// Failure: its code and text.
    fn refused(&self, role: &str, command: &str, of: (&str, &str), config: &Value) -> (u64, String) {
        let (status, printed) = run(&self.plugin(role), command, of, config);
        assert!(!status, "{command}: {printed}");
        assert!(printed["cniVersion"].is_string(), "{printed}");
        (printed["code"].as_u64().unwrap(), format!("{} {}", printed["msg"], printed["details"]))
    }
}

/// Container id and namespace → whether it succeeded, and what it printed.
fn run(program: &Path, command: &str, (id, netns): (&str, &str), config: &Value) -> (bool, Value) {
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

#[test]
fn an_attachment_from_add_to_del() {
    Host::test(|host| {
        let (a, b) = (Netns::new(), Netns::new());
        let config = host.bridge("1.0.0");
        let result = host.ok("berth-bridge", "ADD", ("a", &a.path()), &config);
        assert_eq!(result["cniVersion"], "1.0.0");
        let names: Vec<_> = result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!((names[0], names[2]), ("bcni0", "eth0"));
        assert_eq!(result["interfaces"][2]["sandbox"], a.path());
        assert_eq!(
            result["ips"][0],
            json!({"address": "10.88.0.2/28", "gateway": "10.88.0.1", "interface": 2})
        );
        assert_eq!(result["ips"][1]["address"], "fd88::2/64");
        assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.88.0.1"}));
        assert_eq!(host.ok("berth-bridge", "ADD", ("a", &a.path()), &config), result, "again is the same");
        host.ok("berth-bridge", "ADD", ("b", &b.path()), &config);
        let listener = b.within(|| std::net::TcpListener::bind("[::]:80").unwrap());
        for address in ["10.88.0.3:80", "[fd88::3]:80"] {
            let limit = std::time::Duration::from_secs(3);
            a.within(|| std::net::TcpStream::connect_timeout(&address.parse().unwrap(), limit)).unwrap();
        }
        drop(listener);

        let mut checked = config.clone();
        checked["prevResult"] = result;
        host.ok("berth-bridge", "CHECK", ("a", &a.path()), &checked);
        let (code, text) = host.refused("berth-bridge", "CHECK", ("b", &b.path()), &checked);
        assert!(code >= 100 && text.contains("10.88.0.3"), "{code} {text}");
        a.sh("ip addr del 10.88.0.2/28 dev eth0");
        let (code, text) = host.refused("berth-bridge", "CHECK", ("a", &a.path()), &checked);
        assert!(code >= 100 && text.contains("lacks 10.88.0.2/28"), "{code} {text}");

        for _ in 0..2 {
            host.ok("berth-bridge", "DEL", ("a", &a.path()), &config);
        }
        assert!(!a.sh("ip -o link").contains("eth0"));
        // Without its namespace, as after a reboot of the container runtime.
        host.ok("berth-bridge", "DEL", ("b", ""), &config);
        assert_eq!(sh("ip -o link show master bcni0"), "");
        assert_eq!(host.refused("berth-bridge", "CHECK", ("a", &a.path()), &checked).0, 102);
    });
}

#[test]
fn versions_say_what_they_should() {
    Host::test(|host| {
        let nobody = ("", "");
        let answer = host.ok("berth-bridge", "VERSION", nobody, &json!({"cniVersion": "1.0.0"}));
        assert_eq!(answer["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        let netns = Netns::new();
        for version in ["0.3.1", "0.4.0", "1.1.0"] {
            let result = host.ok("berth-bridge", "ADD", ("a", &netns.path()), &host.bridge(version));
            assert_eq!(result["cniVersion"], version);
            let family = if version.starts_with("0.") { json!("4") } else { Value::Null };
            assert_eq!(result["ips"][0]["version"], family, "{version}");
            host.ok("berth-bridge", "DEL", ("a", &netns.path()), &host.bridge(version));
        }
        let (code, text) = host.refused("berth-bridge", "ADD", ("a", &netns.path()), &host.bridge("9.0.0"));
        assert!(code == 1 && text.contains("9.0.0"), "{text}");
    });
}

#[test]
fn status_and_garbage() {
    Host::test(|host| {
        let mut config = host.bridge("1.1.0");
        let nobody = ("", "");
        host.ok("berth-bridge", "STATUS", nobody, &config);
        let pods: Vec<_> = (0..13).map(|_| Netns::new()).collect();
        for (number, netns) in pods.iter().enumerate() {
            host.ok("berth-bridge", "ADD", (&format!("pod{number}"), &netns.path()), &config);
        }
        let (code, text) = host.refused("berth-bridge", "STATUS", nobody, &config);
        assert!(code == 50 && text.contains("10.88.0.0/28"), "{text}");
        let late = Netns::new();
        let (code, text) = host.refused("berth-bridge", "ADD", ("late", &late.path()), &config);
        assert!(code >= 100 && text.contains("no free address"), "{text}");
        assert!(!late.sh("ip -o link").contains("eth0"));
        config["cni.dev/valid-attachments"] = json!([{"containerID": "pod3", "ifname": "eth0"}]);
        host.ok("berth-bridge", "GC", nobody, &config);
        assert_eq!(sh("ip -o link show master bcni0").lines().count(), 1);
        assert!(pods[3].sh("ip -o addr show eth0").contains("10.88.0.5"));
        host.ok("berth-bridge", "STATUS", nobody, &config);
        // What a runtime written in Go says when it has no pods, and no ports to publish.
        config["cni.dev/valid-attachments"] = Value::Null;
        config["runtimeConfig"] = json!({"portMappings": null, "ips": null});
        host.ok("berth-bridge", "GC", nobody, &config);
        assert_eq!(sh("ip -o link show master bcni0").lines().count(), 0);
        host.ok("berth-bridge", "ADD", ("pod3", &pods[3].path()), &config);
        host.ok("berth-bridge", "DEL", ("pod3", &pods[3].path()), &config);
    });
}

#[test]
fn mistakes_have_their_codes() {
    Host::test(|host| {
        let netns = Netns::new();
        let path = netns.path();
        let good = host.bridge("1.0.0");
        let with = |key: &str, value: Value| {
            let mut config = good.clone();
            config[key] = value;
            config
        };
        let a = ("a", path.as_str());
        for (role, command, of, config, code, words) in [
            ("berth-bridge", "PLAY", a, good.clone(), 4, "PLAY"),
            ("berth-bridge", "ADD", ("", path.as_str()), good.clone(), 4, "CNI_CONTAINERID"),
            ("berth-bridge", "ADD", ("a", ""), good.clone(), 4, "CNI_NETNS"),
            ("berth-bridge", "ADD", a, json!([1]), 6, "can't be read"),
            ("berth-bridge", "ADD", a, with("name", json!("")), 7, "no name"),
            ("berth-bridge", "ADD", a, with("ipam", json!({})), 7, "subnet"),
            ("berth-bridge", "ADD", a, with("ipam", json!({"type": "dhcp"})), 7, "dhcp"),
            ("berth-bridge", "ADD", a, with("mode", json!("quick")), 7, "one of nat"),
            (
                "berth-bridge",
                "ADD",
                a,
                with("ipam", json!({"ranges": [[{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.100"}]]})),
                7,
                "rangeStart",
            ),
            (
                "berth-bridge",
                "ADD",
                a,
                with("ipam", json!({"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.200"})),
                7,
                "rangeEnd",
            ),
            ("berth-macvlan", "ADD", a, good.clone(), 7, "master"),
            ("berth-macvlan", "ADD", a, with("master", json!("eth9")), 100, "eth9"),
            ("berth-nothing", "ADD", a, good.clone(), 7, "berth-nothing"),
            (
                "berth-overlay",
                "ADD",
                a,
                with("socket", json!("/run/no/such/socket")),
                11,
                "does it run on this host",
            ),
            ("berth-overlay", "ADD", a, with("ipam", json!({"type": "dhcp"})), 7, "dhcp"),
            ("berth-bridge", "ADD", ("a", "/run/no/such/netns"), good.clone(), 100, "/run/no/such/netns"),
        ] {
            let (found, text) = host.refused(role, command, of, &config);
            assert!(found == code && text.contains(words), "{command} {config}: {found} {text}");
        }
        assert!(!netns.sh("ip -o link").contains("eth0"));
        // The lock has no holder that hangs: a next run works.
        host.ok("berth-bridge", "ADD", a, &good);
        host.ok("berth-bridge", "DEL", a, &good);
    });
}

#[test]
fn others_plugins_follow_in_a_chain_and_take_our_addresses() {
    let debian = |name: &str| Path::new("/usr/lib/cni").join(name);
    if !debian("portmap").exists() {
        println!("Debian's containernetworking-plugins are not installed: skipped");
        return;
    }
    Host::test(move |host| {
        let netns = Netns::new();
        let of = ("a", netns.path());
        let of = (of.0, of.1.as_str());
        let config = host.bridge("1.0.0");
        let result = host.ok("berth-bridge", "ADD", of, &config);
        let port = json!([{"hostPort": 18300, "containerPort": 80, "protocol": "tcp"}]);
        let portmap = json!({"cniVersion": "1.0.0", "name": "pods", "type": "portmap",
                             "runtimeConfig": {"portMappings": port}, "prevResult": result});
        let (status, passed) = run(&debian("portmap"), "ADD", of, &portmap);
        assert!(status && passed["ips"] == result["ips"], "{passed}");
        let rules = sh("nft list ruleset; iptables-save");
        assert!(rules.contains("18300") && rules.contains("10.88.0.2"), "{rules}");
        assert!(run(&debian("portmap"), "DEL", of, &portmap).0);
        host.ok("berth-bridge", "DEL", of, &config);

        // Debian's bridge with our addresses.
        let ipam = json!({"type": "berth-ipam", "dataDir": host.records(), "subnet": "10.89.0.0/24"});
        let config = json!({"cniVersion": "1.0.0", "name": "theirs", "type": "bridge", "bridge": "theirs0",
                            "isGateway": true, "dataDir": host.records(), "ipam": ipam});
        let bridge = |command: &str| {
            let mut child = Command::new(debian("bridge"))
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", "b")
                .env("CNI_NETNS", netns.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", host.directory.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(bridge("ADD").contains("10.89.0.2/24"));
        assert!(netns.sh("ip -o addr show eth0").contains("10.89.0.2/24"));
        bridge("DEL");
        assert!(!netns.sh("ip -o link").contains("eth0"));
    });
}

#[test]
fn many_at_once_take_turns() {
    Host::test(|host| {
        let pods: Vec<_> = (0..10).map(|_| Netns::new()).collect();
        let config = host.bridge("1.0.0");
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let addresses: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let adds: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(number, netns)| {
                    let (config, here) = (&config, &here);
                    scope.spawn(move || {
                        setns(here, CloneFlags::CLONE_NEWNET).unwrap();
                        let id = format!("pod{number}");
                        let result = host.ok("berth-bridge", "ADD", (&id, &netns.path()), config);
                        result["ips"][0]["address"].as_str().unwrap().to_owned()
                    })
                })
                .collect();
            adds.into_iter().map(|add| add.join().unwrap()).collect()
        });
        assert_eq!(addresses.len(), 10, "{addresses:?}");
        for (number, netns) in pods.iter().enumerate() {
            host.ok("berth-bridge", "DEL", (&format!("pod{number}"), &netns.path()), &config);
        }
    });
}
