//! Published ports: `[ip:]host:container[/tcp|udp|sctp]`.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::runtime::v1::{PortMapping, Protocol};

/// Reads one `-p`.
pub(crate) fn parse(text: &str) -> Result<PortMapping> {
    read(text).with_context(|| format!("-p {text}"))
}

fn read(text: &str) -> Result<PortMapping> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, name)) => (ports, self::protocol(name)?),
    };
    let (host, container) = ports.rsplit_once(':').ok_or_else(|| {
        anyhow!("which port of the host? write [IP:]HOST:CONTAINER[/PROTOCOL], as in 8080:80")
    })?;
    let (ip, host) = match host.rsplit_once(':') {
        None => ("", host),
        Some((ip, host)) => (ip, host),
    };
    Ok(PortMapping {
        protocol: protocol.into(),
        container_port: number(container)?,
        host_port: number(host)?,
        host_ip: address(ip)?,
    })
}

fn protocol(name: &str) -> Result<Protocol> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => bail!("unknown protocol `{name}`: there are tcp, udp and sctp"),
    }
}

fn number(text: &str) -> Result<i32> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port.into()),
        _ => bail!("`{text}` is no port: there are 1 to 65535"),
    }
}

fn address(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address: IpAddr = bare.parse().map_err(|_| anyhow!("`{text}` is no IP address"))?;
    if address.is_ipv6() && bare == text {
        bail!("write an IPv6 address in brackets, as in [{address}]:8080:80");
    }
    Ok(address.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mapping(protocol: Protocol, host_ip: &str, host_port: i32, container_port: i32) -> PortMapping {
        PortMapping { protocol: protocol.into(), container_port, host_port, host_ip: host_ip.to_owned() }
    }

    #[test]
    fn all_forms() {
        assert_eq!(parse("8080:80").unwrap(), mapping(Protocol::Tcp, "", 8080, 80));
        assert_eq!(parse("53:53/udp").unwrap(), mapping(Protocol::Udp, "", 53, 53));
        assert_eq!(parse("1:2/SCTP").unwrap(), mapping(Protocol::Sctp, "", 1, 2));
        assert_eq!(parse("127.0.0.1:8080:80").unwrap(), mapping(Protocol::Tcp, "127.0.0.1", 8080, 80));
        assert_eq!(parse("[::1]:8080:80/tcp").unwrap(), mapping(Protocol::Tcp, "::1", 8080, 80));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("80", "which port of the host?"),
            ("8080:80/http", "tcp, udp and sctp"),
            ("0:80", "1 to 65535"),
            ("8080:65536", "1 to 65535"),
            ("8080:", "1 to 65535"),
            ("-1:80", "1 to 65535"),
            ("localhost:8080:80", "no IP address"),
            ("::1:8080:80", "in brackets"),
            ("", "which port"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
