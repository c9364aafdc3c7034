//! Networks a pod joins: `NAME`, or `name=NAME,ip=ADDRESS,…`.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

/// The annotation by which a pod chooses its networks.
pub(crate) const ANNOTATION: &str = "berth.dev/networks";

/// Where a pod's network comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Networks {
    /// The daemon's default one.
    #[default]
    Default,
    /// The host's own.
    Host,
    /// These; as the annotation writes them.
    Named(String),
}

/// One network as the annotation writes it.
#[derive(Debug, Default, Serialize)]
struct Attachment {
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i8>,
}

/// Reads what was given, in order.
pub(crate) fn parse(texts: &[String]) -> Result<Networks> {
    let networks = texts.iter().map(|text| attachment(text)).collect::<Result<Vec<_>>>()?;
    match networks.as_slice() {
        [] => Ok(Networks::Default),
        [only] if matches!(texts.first().map(String::as_str), Some("bridge" | "default")) => {
            let _ = only;
            Ok(Networks::Default)
        }
        [only] if only.name == "host" => Ok(Networks::Host),
        several if several.iter().any(|network| network.name == "host") => {
            bail!("host can't be combined with other networks: it is the host's own")
        }
        named => Ok(Networks::Named(serde_json::to_string(named)?)),
    }
}

fn attachment(text: &str) -> Result<Attachment> {
    let mut attachment = Attachment::default();
    if !text.contains('=') {
        text.clone_into(&mut attachment.name);
    } else {
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| anyhow!("`{part}` is not KEY=VALUE"))?;
            match key {
                "name" => value.clone_into(&mut attachment.name),
                "ip" | "ip6" => attachment
                    .addresses
                    .push(value.parse().map_err(|_| anyhow!("`{value}` is no IP address"))?),
                "mac-address" => attachment.mac = Some(value.to_owned()),
                "interface" => attachment.interface = Some(value.to_owned()),
                "alias" => attachment.aliases.push(value.to_owned()),
                "gw-priority" => {
                    attachment.priority = Some(value.parse().context("gw-priority is -50 to 50")?);
                }
                _ => bail!(
                    "unknown key `{key}`: there are name, ip, ip6, mac-address, interface, alias and gw-priority"
                ),
            }
        }
    }
    if attachment.name.is_empty() {
        bail!("which network? Write NAME, or name=NAME,ip=ADDRESS");
    }
    Ok(attachment)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(texts: &[&str]) -> Result<Networks> {
        parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_options() {
        assert_eq!(read(&[]).unwrap(), Networks::Default);
        assert_eq!(read(&["bridge"]).unwrap(), Networks::Default);
        assert_eq!(read(&["host"]).unwrap(), Networks::Host);
        assert_eq!(read(&["none"]).unwrap(), Networks::Named(r#"[{"name":"none"}]"#.into()));
        let json = r#"[{"name":"blue","addresses":["10.1.0.9"],"aliases":["a","b"],"priority":3},{"name":"bridge"}]"#;
        let given = read(&["name=blue,ip=10.1.0.9,alias=a,alias=b,gw-priority=3", "bridge"]).unwrap();
        assert_eq!(given, Networks::Named(json.into()));
    }

    #[test]
    fn mistakes_are_named() {
        for (texts, words) in [
            (["host", "blue"].as_slice(), "host's own"),
            (&["ip=10.1.0.9"], "which network"),
            (&["name=a,speed=1"], "unknown key `speed`"),
            (&["name=a,ip=ten"], "no IP address"),
            (&["name=a,b"], "not KEY=VALUE"),
        ] {
            let error = format!("{:#}", read(texts).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
