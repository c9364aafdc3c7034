//! Which hosts answer for a registry: `certs.d/<host>/hosts.toml` as containerd reads it (containerd, docs/hosts.md).
//!
//! Mirrors are tried in the order of the file, the registry itself last. Without a file, certificates may lie in the
//! directory as Docker has it: `*.crt` are authorities, `*.cert` with `*.key` a client's identity.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use super::Error;
use super::tls::Tls;
use crate::config::value;

/// Largest host file.
const FILE_LIMIT: u64 = 1 << 20;

/// A host that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Address up to and including the API's root, without a slash at the end.
    pub(crate) base: Url,
    /// May resolve tags.
    pub(crate) resolve: bool,
    /// May give content.
    pub(crate) pull: bool,
    /// Takes pushes.
    pub(crate) push: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// What a mirror is told of whom it stands for.
    pub(crate) namespace: Option<String>,
}

impl Host {
    /// Host and port, for people and for keys.
    pub(crate) fn name(&self) -> String {
        authority(&self.base)
    }
}

/// Host and port of an address.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[derive(Default, Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, HostTable>,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Clone, Default, Deserialize)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, OneOrMany>>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

/// The hosts for the registry `name` (as the reference has it) that answers at `endpoint`.
pub(crate) fn load(config_path: &[PathBuf], name: &str, endpoint: &str) -> Result<Vec<Host>, Error> {
    let Some(directory) = find(config_path, name) else {
        return Ok(vec![upstream(endpoint, Tls::default(), name)?]);
    };
    let path = directory.join("hosts.toml");
    let problem = |problem: String| Error::HostsFile { path: path.display().to_string(), problem };
    let size = match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(vec![upstream(endpoint, beside(&directory)?, name)?]);
        }
        Err(error) => return Err(problem(error.to_string())),
        Ok(metadata) => metadata.len(),
    };
    if size > FILE_LIMIT {
        return Err(problem(format!("the file is larger than {FILE_LIMIT} bytes")));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| problem(error.to_string()))?;
    let file: HostsFile = toml::from_str(&text).map_err(|error| problem(error.to_string()))?;
    let mut tables: Vec<(Spanned<String>, HostTable)> = file.host.into_iter().collect();
    // The order of the file decides, and it is not that of the map.
    tables.sort_by_key(|(address, _)| address.span().start);
    let mut hosts = Vec::new();
    for (address, table) in &tables {
        hosts.push(host(address.get_ref(), table, &directory, name).map_err(problem)?);
    }
    let server = match file.server.as_deref().filter(|server| !server.is_empty()) {
        Some(server) => host(server, &file.own, &directory, name).map_err(problem)?,
        None => {
            let scheme = if is_plain(endpoint) && file.own.ca.is_none() { "http" } else { "https" };
            host(&format!("{scheme}://{endpoint}"), &file.own, &directory, name).map_err(problem)?
        }
    };
    hosts.push(server);
    Ok(hosts)
}

/// The first directory that speaks of the registry; a port's colon may be written with underscores.
fn find(config_path: &[PathBuf], name: &str) -> Option<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = name.rsplit_once(':')
        && !port.contains(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([name.to_owned(), "_default".to_owned()]);
    config_path
        .iter()
        .flat_map(|root| names.iter().map(move |name| root.join(name)))
        .find(|directory| directory.is_dir())
}

/// Registries on this machine's loopback speak plain HTTP unless told otherwise, as containerd has it.
fn is_plain(endpoint: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{endpoint}")) else { return false };
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    loopback && !endpoint.ends_with(":443")
}

fn upstream(endpoint: &str, tls: Tls, name: &str) -> Result<Host, Error> {
    let scheme = if is_plain(endpoint) && tls == Tls::default() { "http" } else { "https" };
    let address = format!("{scheme}://{endpoint}");
    host(&address, &HostTable::default(), Path::new("/"), name)
        .map(|host| Host { tls, ..host })
        .map_err(|problem| Error::HostsFile { path: address, problem })
}

fn host(address: &str, table: &HostTable, directory: &Path, name: &str) -> Result<Host, String> {
    let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let mut base = Url::parse(&full).map_err(|error| format!("host {address:?}: {error}"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(format!("host {address:?} is not an http or https address"));
    }
    let path = base.path().trim_end_matches('/').to_owned();
    let path = match table.override_path.unwrap_or(false) || path.ends_with("/v2") {
        true => path,
        false => format!("{path}/v2"),
    };
    base.set_path(&path);
    base.set_query(None);
    base.set_fragment(None);
    let allows =
        |what: &str| table.capabilities.as_ref().is_none_or(|list| list.iter().any(|one| one == what));
    let authority = authority(&base);
    let own = authority == name || (name == "docker.io" && authority == "registry-1.docker.io");
    Ok(Host {
        base,
        resolve: allows("resolve"),
        pull: allows("pull"),
        push: allows("push"),
        tls: Tls {
            authorities: table.ca.iter().flat_map(|ca| ca.list()).map(|path| directory.join(path)).collect(),
            identities: identities(table.client.as_ref(), directory)?,
            skip_verify: table.skip_verify.unwrap_or(false),
            dial_timeout: dial_timeout(table)?,
        },
        headers: headers(table)?,
        namespace: (!own).then(|| name.to_owned()),
    })
}

/// A time in Go's form; 0 says nothing.
fn dial_timeout(table: &HostTable) -> Result<Option<Duration>, String> {
    let Some(text) = table.dial_timeout.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let time = value::duration(text).map_err(|problem| format!("dial_timeout: {problem}"))?;
    Ok(Some(time).filter(|time| !time.is_zero()))
}

fn identities(client: Option<&Client>, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let at = |path: &String| directory.join(path);
    Ok(match client {
        None => Vec::new(),
        Some(Client::One(both)) => vec![(at(both), None)],
        // containerd reads a flat pair as two files that each hold both; a certificate and its key are meant.
        Some(Client::Many(list)) => match &list[..] {
            [certificate, key] if key.ends_with(".key") => vec![(at(certificate), Some(at(key)))],
            list => list.iter().map(|both| (at(both), None)).collect(),
        },
        Some(Client::Pairs(pairs)) => pairs
            .iter()
            .map(|(certificate, key)| (at(certificate), (!key.is_empty()).then(|| at(key))))
            .collect(),
    })
}

fn headers(table: &HostTable) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in table.header.iter().flatten() {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header"))?;
        for value in values.list() {
            let value = HeaderValue::from_str(value).map_err(|_| format!("the value of header {name:?}"))?;
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// Certificates in the directory itself.
fn beside(directory: &Path) -> Result<Tls, Error> {
    let problem = |error: std::io::Error| Error::HostsFile {
        path: directory.display().to_string(),
        problem: error.to_string(),
    };
    let mut tls = Tls::default();
    for entry in std::fs::read_dir(directory).map_err(problem)? {
        let path = entry.map_err(problem)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.identities.push((path, Some(key)));
            }
            _ => {}
        }
    }
    tls.authorities.sort();
    tls.identities.sort();
    Ok(tls)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn directory(name: &str, file: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(name)).unwrap();
        if let Some(text) = file {
            std::fs::write(root.path().join(name).join("hosts.toml"), text).unwrap();
        }
        root
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let root = directory(
            "docker.io",
            Some(
                r#"server = "https://registry-1.docker.io"
                [host."https://zebra.test:8443"]
                capabilities = ["pull"]
                ca = ["a.pem", "/b.pem"]
                client = [["c.cert", "c.key"]]
                [host."http://alpha.test/cache/v2"]
                dial_timeout = "1s500ms"
                skip_verify = true
                override_path = true
                [host."http://alpha.test/cache/v2".header]
                x-one = "1"
                x-two = ["2", "3"]"#,
            ),
        );
        let hosts = load(&[root.path().to_owned()], "docker.io", "registry-1.docker.io").unwrap();
        let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
        assert_eq!(
            bases,
            ["https://zebra.test:8443/v2", "http://alpha.test/cache/v2", "https://registry-1.docker.io/v2"]
        );
        assert!(hosts[0].pull && !hosts[0].resolve && !hosts[0].push && hosts[2].push);
        assert_eq!(hosts[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(hosts[2].namespace, None);
        let own = root.path().join("docker.io");
        assert_eq!(hosts[0].tls.authorities, [own.join("a.pem"), PathBuf::from("/b.pem")]);
        assert_eq!(hosts[0].tls.identities, [(own.join("c.cert"), Some(own.join("c.key")))]);
        assert!(hosts[1].tls.skip_verify);
        assert_eq!(hosts[1].tls.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(hosts[0].tls.dial_timeout, None);
        assert_eq!(hosts[1].headers.get_all("x-two").iter().count(), 2);
    }

    #[test]
    fn directories_are_looked_up_by_port_then_default() {
        let root = directory("reg.test_5000_", Some("server = \"http://one.test\""));
        std::fs::create_dir(root.path().join("_default")).unwrap();
        std::fs::write(root.path().join("_default/hosts.toml"), "[host.\"https://all.test\"]").unwrap();
        let paths = [PathBuf::from("/nowhere"), root.path().to_owned()];
        let base = |name: &str| load(&paths, name, name).unwrap()[0].base.to_string();
        assert_eq!(base("reg.test:5000"), "http://one.test/v2");
        assert_eq!(base("other.test"), "https://all.test/v2");
        assert_eq!(
            load(&paths, "other.test", "other.test").unwrap()[1].base.as_str(),
            "https://other.test/v2"
        );
    }

    #[test]
    fn loopback_is_plain_unless_certificates_lie_there() {
        let base = |name: &str| load(&[], name, name).unwrap()[0].base.to_string();
        assert_eq!(base("localhost:5000"), "http://localhost:5000/v2");
        assert_eq!(base("127.0.0.2"), "http://127.0.0.2/v2");
        assert_eq!(base("[::1]:5000"), "http://[::1]:5000/v2");
        assert_eq!(base("reg.test"), "https://reg.test/v2");
        assert_eq!(base("localhost.test"), "https://localhost.test/v2");
        let root = directory("localhost:5000", None);
        std::fs::write(root.path().join("localhost:5000/ca.crt"), "").unwrap();
        let hosts = load(&[root.path().to_owned()], "localhost:5000", "localhost:5000").unwrap();
        assert_eq!(hosts[0].base.as_str(), "https://localhost:5000/v2");
        assert_eq!(hosts[0].tls.authorities.len(), 1);
    }

    #[test]
    fn a_wrong_file_is_named() {
        let slow = "[host.\"http://x\"]\ndial_timeout = \"soon\"";
        for text in [slow, "server = 1", "[host.\"ftp://x\"]", "[host.\"http://x\".header]\n\"a b\" = \"1\""]
        {
            let root = directory("a.test", Some(text));
            let error = load(&[root.path().to_owned()], "a.test", "a.test").unwrap_err();
            assert!(error.to_string().contains("hosts.toml"), "{error}");
        }
    }
}
