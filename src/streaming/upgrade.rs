//! What a client asks its connection to become, and the answer.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::websocket::Codec;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const PORT_FORWARD: &str = "portforward.k8s.io";

/// How the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// SPDY streams. The version of the command protocol; 0 for port-forward.
    Spdy { version: u8 },
    /// WebSocket messages with channel numbers.
    Channels { version: u8, codec: Codec },
    /// SPDY within WebSocket messages.
    Tunnel,
}

/// What the client is told.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) transport: Transport,
    pub(super) headers: HeaderMap,
}

/// The request can't be upgraded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// 400
    #[error("{0}")]
    Malformed(&'static str),
    /// 403, as `k8s.io/apimachinery` has it, with what there is.
    #[error("none of the protocols asked for is supported; there are: {}", .0.join(", "))]
    Protocol(Vec<&'static str>),
}

impl Refusal {
    /// The headers that name what is supported.
    pub(super) fn headers(&self) -> HeaderMap {
        let Self::Protocol(names) = self else { return HeaderMap::new() };
        names.iter().map(|name| (ACCEPTED_PROTOCOLS, HeaderValue::from_static(name))).collect()
    }
}

/// Versions of the command protocol over SPDY. No version at all is the first.
const SPDY_COMMAND: &[(&str, u8)] = &[
    ("v5.channel.k8s.io", 5),
    ("v4.channel.k8s.io", 4),
    ("v3.channel.k8s.io", 3),
    ("v2.channel.k8s.io", 2),
    ("channel.k8s.io", 1),
];

/// Subprotocols of WebSocket for commands.
const WEBSOCKET_COMMAND: &[(&str, u8, bool)] = &[
    ("v5.channel.k8s.io", 5, false),
    ("v4.channel.k8s.io", 4, false),
    ("v4.base64.channel.k8s.io", 4, true),
    ("channel.k8s.io", 1, false),
    ("base64.channel.k8s.io", 1, true),
];

/// Subprotocols of WebSocket for port-forward: tunnels, and the old way of two channels a port.
const WEBSOCKET_TUNNEL: &[&str] = &["SPDY/3.1+portforward.k8s.io", "v2.portforward.k8s.io"];

/// Chooses by the request's headers. A client names its favourite first.
pub(super) fn negotiate(headers: &HeaderMap, port_forward: bool) -> Result<Upgrade, Refusal> {
    if !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::Malformed("unable to upgrade: the Connection header does not say Upgrade"));
    }
    let wanted = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if wanted.eq_ignore_ascii_case("SPDY/3.1") {
        spdy(headers, port_forward)
    } else if wanted.eq_ignore_ascii_case("websocket") {
        websocket(headers, port_forward)
    } else {
        Err(Refusal::Malformed("unable to upgrade: neither to SPDY/3.1 nor to websocket"))
    }
}

/// The elements of a list header.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn switching(to: &'static str) -> HeaderMap {
    HeaderMap::from_iter([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static(to)),
    ])
}

fn spdy(headers: &HeaderMap, port_forward: bool) -> Result<Upgrade, Refusal> {
    let versions = if port_forward { &[(PORT_FORWARD, 0)] } else { SPDY_COMMAND };
    let mut asked = tokens(headers, &STREAM_PROTOCOL).peekable();
    let mut answer = switching("SPDY/3.1");
    let version = if asked.peek().is_none() {
        // As the first clients were: they send no version.
        u8::from(!port_forward)
    } else {
        let (name, version) = asked
            .find_map(|asked| versions.iter().find(|(name, _)| *name == asked))
            .ok_or_else(|| Refusal::Protocol(versions.iter().map(|(name, _)| *name).collect()))?;
        answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        *version
    };
    Ok(Upgrade { transport: Transport::Spdy { version }, headers: answer })
}

fn websocket(headers: &HeaderMap, port_forward: bool) -> Result<Upgrade, Refusal> {
    let key =
        headers.get(SEC_WEBSOCKET_KEY).ok_or(Refusal::Malformed("unable to upgrade: no WebSocket key"))?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::Malformed("unable to upgrade: the WebSocket version is not 13"));
    }
    let mut answer = switching("websocket");
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    answer
        .insert(SEC_WEBSOCKET_ACCEPT, accept.map_err(|_| Refusal::Malformed("unable to upgrade: the key"))?);
    let mut asked = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    let (name, transport) = if port_forward {
        let name = asked.find_map(|asked| WEBSOCKET_TUNNEL.iter().find(|name| **name == asked).copied());
        (name.ok_or_else(|| Refusal::Protocol(WEBSOCKET_TUNNEL.to_vec()))?, Transport::Tunnel)
    } else if asked.peek().is_none() {
        ("", Transport::Channels { version: 1, codec: Codec { base64: false, closes: false } })
    } else {
        let (name, version, base64) = asked
            .find_map(|asked| WEBSOCKET_COMMAND.iter().find(|(name, ..)| *name == asked).copied())
            .ok_or_else(|| Refusal::Protocol(WEBSOCKET_COMMAND.iter().map(|(name, ..)| *name).collect()))?;
        (name, Transport::Channels { version, codec: Codec { base64, closes: version >= 5 } })
    };
    if !name.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(Upgrade { transport, headers: answer })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_clients_favourite_is_taken() {
        let kubectl = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        let upgrade = negotiate(&kubectl, false).unwrap();
        assert_eq!(upgrade.transport, Transport::Spdy { version: 4 });
        assert_eq!(upgrade.headers["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(matches!(negotiate(&kubectl, true), Err(Refusal::Protocol(_))));
    }

    #[test]
    fn websocket_protocols() {
        let with = |protocol: &'static str| {
            headers(&[
                ("connection", "keep-alive, upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-protocol", protocol),
            ])
        };
        let base64 = negotiate(&with("x, v4.base64.channel.k8s.io"), false).unwrap();
        let codec = Codec { base64: true, closes: false };
        assert_eq!(base64.transport, Transport::Channels { version: 4, codec });
        // The example of RFC 6455, 1.3.
        assert_eq!(base64.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let tunnel = negotiate(&with("SPDY/3.1+portforward.k8s.io"), true).unwrap();
        assert_eq!(tunnel.transport, Transport::Tunnel);
        assert!(negotiate(&with("nonsense"), false).is_err());
        assert!(negotiate(&headers(&[("upgrade", "websocket")]), false).is_err());
    }
}
