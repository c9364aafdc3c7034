//! Published ports: which host addresses a mapping stands for, and whether a process on the host has the port.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

use crate::{
    error::{Error, Result},
    model::{Endpoint, PortMapping, Protocol},
};

/// The mappings that publish something, each with the host addresses it stands for (unspecified: all of the family). A family
/// the endpoint has no address of is left out.
pub(crate) fn published(endpoint: &Endpoint) -> impl Iterator<Item = (&PortMapping, IpAddr)> {
    let has = |v4: bool| endpoint.addresses.iter().any(|address| address.is_ipv4() == v4);
    hosts(&endpoint.ports, (has(true), has(false)))
}

/// The same for an endpoint that has IPv4 addresses, and IPv6 ones.
pub(crate) fn hosts(
    ports: &[PortMapping],
    (v4, v6): (bool, bool),
) -> impl Iterator<Item = (&PortMapping, IpAddr)> {
    ports.iter().filter(|mapping| mapping.host_port != 0).flat_map(move |mapping| {
        let hosts = match mapping.host_ip {
            Some(host) => [Some(host), None],
            None => [Some(Ipv4Addr::UNSPECIFIED.into()), Some(Ipv6Addr::UNSPECIFIED.into())],
        };
        hosts
            .into_iter()
            .flatten()
            .filter(move |host| if host.is_ipv4() { v4 } else { v6 })
            .map(move |host| (mapping, host))
    })
}

/// Refuses host addresses that no packet to a pod can have had.
pub(crate) fn check_address(mapping: &PortMapping) -> Result<()> {
    let Some(host) = mapping.host_ip else { return Ok(()) };
    let refuse = |reason: &str| {
        let port = mapping.host_port;
        Err(Error::invalid("host address", host, format!("port {port} can't be published on it: {reason}")))
    };
    match host {
        // The kernel lets 127.0.0.0/8 leave by another interface where `route_localnet` says so; for IPv6 it knows no such thing, and
        // drops the answers.
        IpAddr::V6(Ipv6Addr::LOCALHOST) => {
            refuse("IPv6 loopback can't be translated; publish it on 127.0.0.1, or on an address of the host")
        }
        IpAddr::V6(host) if host.to_ipv4_mapped().is_some() => refuse("write it as an IPv4 address"),
        host if host.is_multicast() => refuse("it is a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => refuse("it is the broadcast address"),
        _ => Ok(()),
    }
}

/// Refuses a port that a socket of the host is bound to: its traffic would silently go to the pod. Binding is the test, as
/// only the kernel knows the rules; the socket is closed at once.
pub(crate) fn check_host(mapping: &PortMapping, host: IpAddr) -> Result<()> {
    match try_bind(mapping.protocol, SocketAddr::new(host, mapping.host_port)) {
        Err(Errno::ADDRINUSE) => Err(Error::PortTaken {
            protocol: mapping.protocol,
            host,
            port: mapping.host_port,
            holder: holder(mapping.protocol, mapping.host_port)
                .unwrap_or_else(|| "a socket on the host".to_owned()),
        }),
        // Not an address of this host (yet), no SCTP, no IPv6: nobody can have it.
        _ => Ok(()),
    }
}

fn try_bind(protocol: Protocol, address: SocketAddr) -> rustix::io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(ipproto::SCTP)),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    if kind == SocketType::STREAM {
        // Ended connections that linger are no holders.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address)
}

/// Names the process that has the port: from the socket tables to an inode, from the inode to a process. Only on the way to an
/// error message.
fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let name = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => return None,
    };
    let inodes: Vec<String> =
        [String::new(), "6".to_owned()].iter().flat_map(|v| inodes(&format!("{name}{v}"), port)).collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let found = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()));
        if found {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {} ({pid}) on the host", command.trim()));
        }
    }
    None
}

/// The inodes of bound sockets with that local port. Columns of `/proc/net/tcp`: slot, local, remote, state, …, inode (10th).
fn inodes(table: &str, port: u16) -> Vec<String> {
    let text: io::Result<String> = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
    let suffix = format!(":{port:04X}");
    text.unwrap_or_default()
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let inode = *columns.get(9)?;
            (columns.get(1)?.ends_with(&suffix) && inode != "0").then(|| inode.to_owned())
        })
        .collect()
}
