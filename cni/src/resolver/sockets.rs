//! A resolver's sockets, and the rules that lead 127.0.0.11:53 to them.
//!
//! ```text
//! table inet berth-names {
//!   chain requests  output, mangle:  to 127.0.0.11, udp port 53      port := ours     (and tcp)
//!   chain replies   output, raw:     from 127.0.0.11, udp port ours  port := 53       (and tcp)
//! }
//! ```
//!
//! The ports are rewritten without connection tracking, which the namespace may not need otherwise and which would cost every
//! packet. Where it is in use all the same (a service mesh), it sees port 53 both ways: requests are rewritten after it and
//! replies before it.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use super::ADDRESS;
use crate::{
    error::{Error, Result},
    model::Protocol,
    netlink::Socket,
    netns,
    nft::{Hook, Layer, Meta, Register, Rule, Transaction},
};

const TABLE: &str = "berth-names";
const PORT: u16 = 53;
/// `NF_INET_LOCAL_OUT`
const OUTPUT: u32 = 3;
const RAW: i32 = -300;
const MANGLE: i32 = -150;

#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// Opens them in a namespace and leads the address to them, away from those of an earlier daemon.
pub(super) fn open(netns: &Path) -> Result<Sockets> {
    let file = netns::open(netns)?;
    netns::within(netns, &file, || {
        let open = || {
            let (udp, tcp) = (UdpSocket::bind((ADDRESS, 0))?, TcpListener::bind((ADDRESS, 0))?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            lead(&udp.local_addr()?, &tcp.local_addr()?)?;
            Ok(Sockets { udp, tcp })
        };
        open().map_err(|source: io::Error| {
            Error::kernel(format!("opening a resolver in {}", netns.display()))(source)
        })
    })
}

/// Takes the rules out of a namespace; the sockets are closed by whoever has them.
pub(super) fn close(netns: &Path) -> Result<()> {
    let file = netns::open(netns)?;
    netns::within(netns, &file, || {
        let mut tx = Transaction::new(TABLE);
        tx.table();
        tx.delete_table();
        let closed = Socket::netfilter().and_then(|mut socket| tx.commit(&mut socket));
        closed.map_err(Error::kernel(format!("closing the resolver in {}", netns.display())))
    })
}

fn lead(udp: &SocketAddr, tcp: &SocketAddr) -> io::Result<()> {
    const OFFSET_SOURCE: (u32, u32) = (12, 0);
    const OFFSET_DESTINATION: (u32, u32) = (16, 2);
    let mut tx = Transaction::new(TABLE);
    // Made so that it can be deleted, whether it was there or not.
    tx.table();
    tx.delete_table();
    tx.table();
    for (chain, priority) in [("requests", MANGLE), ("replies", RAW)] {
        tx.chain(chain, Some(Hook { kind: "filter", number: OUTPUT, priority }));
    }
    for (protocol, ours) in [(Protocol::Udp, udp.port()), (Protocol::Tcp, tcp.port())] {
        tx.rule("requests", "names", rewrite(protocol, OFFSET_DESTINATION, PORT, ours));
        tx.rule("replies", "names", rewrite(protocol, OFFSET_SOURCE, ours, PORT));
    }
    tx.commit(&mut Socket::netfilter()?)
}

/// Of packets of the resolver's address at the given offsets (address, port): another port.
fn rewrite(protocol: Protocol, (address, port): (u32, u32), from: u16, to: u16) -> Rule {
    const IPV4: u8 = 2;
    const CHECKSUM_UDP: u32 = 6;
    const CHECKSUM_TCP: u32 = 16;
    let checksum = if protocol == Protocol::Tcp { CHECKSUM_TCP } else { CHECKSUM_UDP };
    let register = Register(0);
    Rule::default()
        .meta(Meta::Family, register)
        .equal(register, &[IPV4])
        .payload(Layer::Network, address, 4, register)
        .equal(register, &ADDRESS.octets())
        .meta(Meta::Protocol, register)
        .equal(register, &[protocol.number()])
        .payload(Layer::Transport, port, 2, register)
        .equal(register, &from.to_be_bytes())
        .load(register, &to.to_be_bytes())
        .write_payload(Layer::Transport, port, 2, register, checksum)
}
