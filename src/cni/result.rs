//! What plugins answer: results of every version, and errors.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Kind;

/// What is shown of something that is not what it should be.
const EXCERPT: usize = 200;

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be started.
    #[error("starting {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long, and was killed.
    #[error("no answer in {}s: it was killed", .0.as_secs_f32())]
    Timeout(Duration),
    /// It said what is wrong.
    #[error("{message} (code {code}){}", suffix(.details))]
    Refused {
        /// Code of the specification, or 100 and above the plugin's own.
        code: u64,
        /// In its words.
        message: String,
        /// More of it.
        details: String,
    },
    /// It failed and said nothing that can be read.
    #[error("it ended with {status}, and said: {said:?}")]
    Broken {
        /// Its exit.
        status: ExitStatus,
        /// What it printed instead of an error.
        said: String,
    },
    /// It succeeded and printed something else than a result.
    #[error("it printed no result that can be read: {reason}: {said:?}")]
    Garbage {
        /// What is wrong with it.
        reason: String,
        /// What it printed.
        said: String,
    },
}

impl Failure {
    /// How a caller should take it ("Section 5", "Error").
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Timeout(_) => Kind::DeadlineExceeded,
            // Try again later; not available.
            Self::Refused { code: 11 | 50 | 51, .. } => Kind::Unavailable,
            _ => Kind::Internal,
        }
    }
}

fn suffix(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// A text for a message: short, one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(EXCERPT).collect()
}

/// What a pod has of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Addresses of the pod, in the plugin's order.
    pub addresses: Vec<IpAddr>,
}

/// An error as plugins print it ("Section 5").
#[derive(Debug, Deserialize)]
struct Printed {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The error in a failed plugin's output; `None` when there is none that can be read.
pub(super) fn refusal(output: &[u8]) -> Option<Failure> {
    let Printed { code, msg, details } = serde_json::from_slice(output).ok()?;
    Some(Failure::Refused { code, message: excerpt(msg.as_bytes()), details: excerpt(details.as_bytes()) })
}

/// The result in a successful plugin's output. Nothing at all is the result of one that adds none.
pub(super) fn checked(output: Vec<u8>) -> Result<Value, Failure> {
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    let garbage = |reason: String| Failure::Garbage { reason, said: excerpt(&output) };
    let value: Value = serde_json::from_slice(&output).map_err(|error| garbage(error.to_string()))?;
    if !value.is_object() {
        return Err(garbage("not an object".to_owned()));
    }
    if let Some(bad) = texts(&value).find(|text| parse_address(text).is_none()) {
        return Err(garbage(format!("{bad:?} is no address")));
    }
    Ok(value)
}

/// What a pod has of a result: its addresses on `interface`, in order.
pub(super) fn attached(result: &Value, interface: &str) -> Attached {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let is_of_pod = |ip: &Value| {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let named = index.and_then(|index| interfaces?.get(index)).and_then(|found| found.get("name"));
        // One that belongs to no interface belongs to the container.
        named.and_then(Value::as_str).is_none_or(|name| name == interface)
    };
    let addresses = match result.get("ips").and_then(Value::as_array) {
        Some(ips) => {
            let of_pod: Vec<&Value> = ips.iter().filter(|ip| is_of_pod(ip)).collect();
            // A plugin that renamed the interface still gave the addresses to the pod.
            let chosen = if of_pod.is_empty() { ips.iter().collect() } else { of_pod };
            chosen.iter().filter_map(|ip| parse_address(ip.get("address")?.as_str()?)).collect()
        }
        None => texts(result).filter_map(parse_address).collect(),
    };
    Attached { addresses }
}

/// The addresses of a result: `ips` since 0.3.0, `ip4` and `ip6` before.
fn texts(result: &Value) -> impl Iterator<Item = &str> {
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let old = ["ip4", "ip6"].into_iter().filter_map(|family| result.get(family)?.get("ip")?.as_str());
    ips.filter_map(|ip| ip.get("address")?.as_str()).chain(old)
}

fn parse_address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn addresses(result: &Value) -> Vec<String> {
        attached(result, "eth0").addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn results_of_every_version() {
        let new = json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 0, "address": "10.1.0.1/24"}, {"interface": 2, "address": "10.1.0.5/24"},
                    {"interface": 2, "address": "fd00::5/64"}]});
        assert_eq!(addresses(&new), ["10.1.0.5", "fd00::5"]);
        let middle = json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.5/24"}]});
        assert_eq!(addresses(&middle), ["10.1.0.5"]);
        let old = json!({"ip4": {"ip": "10.1.0.5/24"}, "ip6": {"ip": "fd00::5/64"}});
        assert_eq!(addresses(&old), ["10.1.0.5", "fd00::5"]);
        let renamed =
            json!({"interfaces": [{"name": "ens1"}], "ips": [{"interface": 0, "address": "10.1.0.5/24"}]});
        assert_eq!(addresses(&renamed), ["10.1.0.5"]);
        assert!(addresses(&Value::Null).is_empty());
    }

    #[test]
    fn garbage_and_errors() {
        assert_eq!(checked(b" \n".to_vec()).unwrap(), Value::Null);
        for (output, words) in [
            (&b"hello\nworld"[..], "hello world"),
            (b"[1]", "not an object"),
            (br#"{"ips": [{"address": "ten"}]}"#, "\"ten\" is no address"),
            (b"\xff\xfe", "no result"),
        ] {
            let error = checked(output.to_vec()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = refusal(br#"{"code": 11, "msg": "busy", "details": "wait"}"#).unwrap();
        assert_eq!(error.to_string(), "busy (code 11): wait");
        assert_eq!(error.kind(), crate::error::Kind::Unavailable);
        assert!(refusal(b"segfault").is_none());
    }
}
