//! Sockets inside a pod's network namespace. A socket belongs to the namespace of the thread that makes it, for good: the
//! thread only makes it and ends; connecting happens outside.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// A port on the loopback answers at once or never.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a port on the loopback of a network namespace, by IPv4 and then by IPv6. `None` is the daemon's own.
pub(super) async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let mut first = None;
    for address in [(Ipv4Addr::LOCALHOST, port).into(), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        let connecting = async { socket(netns, address).await?.connect(address).await };
        match tokio::time::timeout(CONNECT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            // What IPv4 says is of more use than that there is no IPv6.
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn make(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn socket(netns: Option<&Path>, address: SocketAddr) -> io::Result<TcpSocket> {
    let Some(netns) = netns.map(PathBuf::from) else { return make(address) };
    let (sender, made) = oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).stack_size(64 << 10).spawn(move || {
        let socket = std::fs::File::open(&netns).and_then(|file| {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            make(address)
        });
        let _ = sender.send(socket);
    })?;
    made.await.unwrap_or_else(|_| Err(io::Error::other("the thread that makes sockets ended")))
}
