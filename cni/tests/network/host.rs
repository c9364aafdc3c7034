//! A throw-away host: a thread in a new network namespace, an "outside" beyond it, and pods.

use std::{
    fs::File,
    io::{Read, Write},
    mem::ManuallyDrop,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use berth_cni::{
    BridgeOptions, Controller, Endpoint, EndpointOptions, Options, PortMapping, Protocol, SandboxSpec,
};
use nix::sched::{CloneFlags, setns, unshare};

const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace that lives as long as this value.
pub(crate) struct Netns(ManuallyDrop<OwnedFd>);

impl Netns {
    pub(crate) fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(ManuallyDrop::new(thread::spawn(open).join().unwrap().into()))
    }

    /// The calling thread's.
    pub(crate) fn current() -> Self {
        Self(ManuallyDrop::new(File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }
}

impl Drop for Netns {
    /// The namespace goes, but not its descriptor's number: under the same path another test's namespace would be taken for
    /// this one.
    fn drop(&mut self) {
        let nothing = File::open("/dev/null").unwrap();
        nix::unistd::dup2(&nothing, &mut self.0).unwrap();
    }
}

pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The host a test has to itself.
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) outside: Netns,
    pub(crate) runtime: tokio::runtime::Runtime,
    number: AtomicU32,
}

impl Host {
    /// Runs a test on a fresh host. 192.0.2.1 and 2001:db8::1 are its addresses to the outside.
    pub(crate) fn test(test: impl FnOnce(&Self) + Send + 'static) {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let host = Self {
                directory: tempfile::tempdir_in("/run").unwrap(),
                outside: Netns::new(),
                runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
                number: AtomicU32::new(0),
            };
            run("ip link set lo up");
            run(&format!(
                "ip link add out0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
                host.outside.path().display()
            ));
            run("ip addr add 192.0.2.1/24 dev out0");
            run("ip addr add 2001:db8::1/64 dev out0 nodad");
            run("ip link set out0 up");
            run("ip route add default via 192.0.2.2");
            host.outside.within(|| {
                run("ip addr add 192.0.2.2/24 dev eth0");
                run("ip addr add 2001:db8::2/64 dev eth0 nodad");
                run("ip link set eth0 up");
            });
            test(&host);
            assert_eq!(links("berth").len(), 0, "left over: {:?}", links("berth"));
        };
        if let Err(panic) = thread::spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    }

    pub(crate) fn options(&self, subnets: &[&str]) -> Options {
        let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap());
        Options {
            definitions: Some(self.directory.path().join("networks")),
            ..Options::new(self.directory.path().join("leases.redb"), BridgeOptions::new("berth0", subnets))
        }
    }

    pub(crate) fn open(&self, subnets: &[&str]) -> Controller {
        Controller::open(self.options(subnets)).unwrap()
    }

    pub(crate) fn dual(&self) -> Controller {
        self.open(&["10.85.0.0/16", "fd85:be:27::/64"])
    }

    pub(crate) fn pod(&self, controller: &Controller, options: EndpointOptions) -> Pod {
        let id = format!("pod{}", self.number.fetch_add(1, Ordering::Relaxed));
        let netns = Netns::new();
        let endpoint = self.runtime.block_on(async {
            controller.create_sandbox(SandboxSpec { id: id.clone(), netns: netns.path() }).await.unwrap();
            controller.join(&id, "bridge", options).await.unwrap()
        });
        Pod { id, netns, endpoint }
    }

    pub(crate) fn delete(&self, controller: &Controller, id: &str) {
        self.runtime.block_on(controller.delete_sandbox(id)).unwrap();
    }

    pub(crate) fn finish(&self, controller: Controller) {
        self.runtime.block_on(controller.remove_all()).unwrap();
        assert!(!run("nft list tables").contains("berth"));
    }
}

pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    pub(crate) endpoint: Endpoint,
}

impl Pod {
    pub(crate) fn v4(&self) -> IpAddr {
        self.endpoint.addresses.iter().find(|a| a.is_ipv4()).unwrap().ip()
    }

    pub(crate) fn v6(&self) -> IpAddr {
        self.endpoint.addresses.iter().find(|a| a.is_ipv6()).unwrap().ip()
    }

    /// Serves TCP and UDP on a port: each answers with its name and the address the client has for it.
    pub(crate) fn serve(&self, port: u16) {
        let id = self.id.clone();
        self.netns.within(|| serve(&id, port));
    }
}

/// Begins to serve in the calling thread's namespace.
pub(crate) fn serve(name: &str, port: u16) {
    let name = name.to_owned();
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))).unwrap();
    let socket = UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).unwrap();
    let answer = move |peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
    let udp_answer = answer.clone();
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(answer(peer).as_bytes());
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(udp_answer(peer).as_bytes(), peer);
        }
    });
}

pub(crate) fn tcp(to: impl Into<IpAddr>, port: u16) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub(crate) fn udp(to: impl Into<IpAddr>, port: u16) -> Result<String, std::io::Error> {
    let to = to.into();
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    udp_on(&socket, to, port)
}

pub(crate) fn udp_on(socket: &UdpSocket, to: IpAddr, port: u16) -> Result<String, std::io::Error> {
    socket.send_to(b"?", (to, port))?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub(crate) fn port(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol, host_ip: None, host_port, container_port }
}

pub(crate) fn publish(ports: impl IntoIterator<Item = PortMapping>) -> EndpointOptions {
    EndpointOptions { ports: ports.into_iter().collect(), ..EndpointOptions::default() }
}

/// Interfaces of the calling thread's namespace whose names begin so.
pub(crate) fn links(prefix: &str) -> Vec<String> {
    run("ip -o link")
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap().to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Waits for the kernel to have done something in the background.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..160 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {what}");
}
