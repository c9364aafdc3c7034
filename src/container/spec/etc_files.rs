//! The text of a pod's `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Error;
use crate::proto::runtime::v1::{DnsConfig, PodSandboxConfig};

/// The pod's host name: what its configuration says, or the host's when the pod is in the host's network.
pub fn hostname(pod: &PodSandboxConfig) -> String {
    let configured = pod.hostname.trim();
    if configured.is_empty() && super::host_network(pod) {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        return name.trim().to_owned();
    }
    configured.to_owned()
}

/// Checks a pod's host name: it is set with sethostname(2) and written into files.
pub fn check_hostname(name: &str) -> Result<(), Error> {
    const FIELD: &str = "hostname";
    if name.len() > 64 {
        return Err(Error::invalid(FIELD, name, "is longer than the kernel's 64 bytes"));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if !name.bytes().all(legal) || name.starts_with(['-', '.']) {
        return Err(Error::invalid(FIELD, name, "must be of letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

/// `/etc/hostname`.
pub fn render_hostname(name: &str) -> String {
    format!("{name}\n")
}

/// `/etc/hosts` of a pod with addresses of its own. (The kubelet mounts its own file over it; others don't.)
pub fn render_hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        let short = hostname.split('.').next().unwrap_or(hostname);
        let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
        for address in addresses {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

/// `/etc/resolv.conf` as the pod's DNS configuration says; `None` when it says nothing at all: the host's own is meant.
pub fn render_resolv_conf(dns: Option<&DnsConfig>) -> Result<Option<String>, Error> {
    let Some(dns) = dns.filter(|d| !(d.servers.is_empty() && d.searches.is_empty() && d.options.is_empty()))
    else {
        return Ok(None);
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        for search in &dns.searches {
            word("dns_config.searches", search)?;
        }
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        // A zone may follow: fe80::1%eth0.
        let address = server.split('%').next().unwrap_or(server);
        if address.parse::<IpAddr>().is_err() {
            return Err(Error::invalid("dns_config.servers", server, "is not an IP address"));
        }
        word("dns_config.servers", server)?;
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        for option in &dns.options {
            word("dns_config.options", option)?;
        }
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Ok(Some(text))
}

/// The host's configuration for a pod whose loopback is not the host's: without the servers there. Where none is left, that of the
/// servers behind them, `uplink`. `None`: it can be used as it is, or nothing better is known.
pub fn without_loopback(of_host: &str, uplink: &str) -> Option<String> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.split('%').next()?.parse::<IpAddr>().ok()
    };
    let is_near = |line: &str| server(line).is_some_and(|address| address.to_canonical().is_loopback());
    if !of_host.lines().any(is_near) {
        return None;
    }
    [of_host, uplink].into_iter().find_map(|text| {
        let kept: Vec<&str> = text.lines().filter(|line| !is_near(line)).collect();
        kept.iter().any(|line| server(line).is_some()).then(|| kept.join("\n") + "\n")
    })
}

/// The same configuration with one server: the pod's own resolver, which asks the others. A name without a dot is asked for as it is
/// first, as Docker's users expect, unless the configuration says otherwise.
pub fn render_own_resolver(original: &str, resolver: IpAddr) -> String {
    let is = |line: &str, key: &str| line.split_ascii_whitespace().next() == Some(key);
    let mut text: String =
        original.lines().filter(|line| !is(line, "nameserver")).map(|line| format!("{line}\n")).collect();
    let _ = writeln!(text, "nameserver {resolver}");
    let decided = original.lines().filter(|line| is(line, "options")).any(|line| line.contains("ndots:"));
    if !decided {
        text.push_str("options ndots:0\n");
    }
    text
}

/// A word can't end its line and begin another.
fn word(field: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() || text.len() > 255 || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid(field, text, "must be one word of at most 255 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        DnsConfig { servers: strings(servers), searches: strings(searches), options: strings(options) }
    }

    #[test]
    fn resolv_conf() {
        assert_eq!(render_resolv_conf(None).unwrap(), None);
        assert_eq!(render_resolv_conf(Some(&dns(&[], &[], &[]))).unwrap(), None);
        let full = dns(&["10.96.0.10", "fe80::1%eth0"], &["a.svc", "svc"], &["ndots:5", "edns0"]);
        assert_eq!(
            render_resolv_conf(Some(&full)).unwrap().unwrap(),
            "search a.svc svc\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\noptions ndots:5 edns0\n"
        );
        for bad in [
            dns(&["dns.example"], &[], &[]),
            dns(&["10.0.0.1%x\nnameserver 6.6.6.6"], &[], &[]),
            dns(&[], &["a b"], &[]),
            dns(&[], &[""], &[]),
            dns(&[], &[], &["ndots:5\nnameserver 6.6.6.6"]),
        ] {
            assert!(render_resolv_conf(Some(&bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn servers_on_the_hosts_loopback_are_not_for_pods() {
        let uplink = "# by systemd\nnameserver 192.0.2.1\nnameserver ::1\nsearch lan\n";
        assert_eq!(without_loopback("nameserver 192.0.2.2\nsearch a\n", uplink), None);
        assert_eq!(without_loopback("", uplink), None);
        let mixed = "nameserver 127.0.0.1\nsearch a\nnameserver 192.0.2.2\n";
        assert_eq!(without_loopback(mixed, uplink).unwrap(), "search a\nnameserver 192.0.2.2\n");
        for stub in ["nameserver 127.0.0.53\noptions edns0", "nameserver ::1", "nameserver ::ffff:127.0.0.1"]
        {
            let expected = "# by systemd\nnameserver 192.0.2.1\nsearch lan\n";
            assert_eq!(without_loopback(stub, uplink).unwrap(), expected, "{stub}");
            assert_eq!(without_loopback(stub, ""), None, "nothing better is known");
        }
    }

    #[test]
    fn the_own_resolver_keeps_searches_and_options() {
        let resolver = "127.0.0.11".parse().unwrap();
        let kubelets = "search a.svc svc\nnameserver 10.96.0.10\noptions ndots:5 edns0\n";
        let own = render_own_resolver(kubelets, resolver);
        assert_eq!(own, "search a.svc svc\noptions ndots:5 edns0\nnameserver 127.0.0.11\n");
        let hosts = "# by hand\nnameserver 192.0.2.1\n  nameserver\tfd00::1\noptions timeout:1";
        let own = render_own_resolver(hosts, resolver);
        assert_eq!(own, "# by hand\noptions timeout:1\nnameserver 127.0.0.11\noptions ndots:0\n");
        assert_eq!(render_own_resolver("", resolver), "nameserver 127.0.0.11\noptions ndots:0\n");
    }

    #[test]
    fn hosts() {
        let addresses = ["10.85.0.2".parse().unwrap(), "fd85::2".parse().unwrap()];
        let text = render_hosts("web-0.svc.local", &addresses);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\t"));
        assert!(
            text.ends_with("10.85.0.2\tweb-0.svc.local web-0\nfd85::2\tweb-0.svc.local web-0\n"),
            "{text}"
        );
        assert!(render_hosts("web", &addresses).ends_with("fd85::2\tweb\n"));
        assert!(!render_hosts("", &addresses).contains("10.85"));
    }

    #[test]
    fn host_names() {
        assert_eq!(render_hostname("web"), "web\n");
        for (name, good) in
            [("", true), ("web-0.a_b", true), ("-web", false), (".", false), ("a b", false), ("a\nb", false)]
        {
            assert_eq!(check_hostname(name).is_ok(), good, "{name:?}");
        }
        assert!(check_hostname(&"a".repeat(65)).is_err());
        let named = PodSandboxConfig { hostname: "web".into(), ..Default::default() };
        assert_eq!(hostname(&named), "web");
        assert_eq!(hostname(&PodSandboxConfig::default()), "");
    }
}
