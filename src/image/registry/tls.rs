//! HTTP clients by what they trust, who they are, and how long they try to connect.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Certificate, Client, Identity, redirect};

use super::Error;
use crate::image::digest::Digest;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Different clients kept at a time.
const CLIENTS_LIMIT: usize = 16;

/// What a host's certificates are held against, what we show, and how long we knock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Further authorities, beside those of the system.
    pub(crate) authorities: Vec<PathBuf>,
    /// Certificate and key, or one file with both.
    pub(crate) identities: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
    /// How long a connection may take to come up; `None`: [`CONNECT_TIMEOUT`].
    pub(crate) dial_timeout: Option<Duration>,
}

/// Clients that were made before; each keeps its connections.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<Vec<(Digest, Client)>>);

impl Clients {
    /// A client for these settings. Files are read each time: what is new in them makes a new client.
    pub(crate) fn get(&self, tls: &Tls) -> Result<Client, Error> {
        let authorities = tls.authorities.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
        // rustls shows one identity; the first counts.
        let identity = match tls.identities.first() {
            None => Vec::new(),
            Some((both, None)) => read(both)?,
            Some((certificate, Some(key))) => [read(certificate)?, b"\n".to_vec(), read(key)?].concat(),
        };
        let mut key = vec![u8::from(tls.skip_verify)];
        key.extend_from_slice(&tls.dial_timeout.unwrap_or(CONNECT_TIMEOUT).as_millis().to_be_bytes());
        for part in authorities.iter().chain([&identity]) {
            key.extend_from_slice(Digest::of(part).hex().as_bytes());
        }
        let key = Digest::of(&key);
        if let Some((_, client)) = self.0.lock().iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let client = build(tls, &authorities, &identity)?;
        let mut clients = self.0.lock();
        if clients.len() >= CLIENTS_LIMIT {
            clients.remove(0);
        }
        clients.push((key, client.clone()));
        Ok(client)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| wrong(path, &error))
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::HostsFile { path: path.display().to_string(), problem: error.to_string() }
}

fn build(tls: &Tls, authorities: &[Vec<u8>], identity: &[u8]) -> Result<Client, Error> {
    // Whoever is first in the process decides; it is the same everywhere.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(tls.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
        // Redirects are followed by us, so that nothing secret goes along.
        .redirect(redirect::Policy::none())
        // A connection for each transfer moves large content faster than streams within one.
        .http1_only()
        .tls_danger_accept_invalid_certs(tls.skip_verify);
    let mut certificates = Vec::new();
    for (path, pem) in tls.authorities.iter().zip(authorities) {
        let bundle = Certificate::from_pem_bundle(pem).map_err(|error| wrong(path, &error))?;
        if bundle.is_empty() {
            return Err(wrong(path, &"no certificate in it"));
        }
        certificates.extend(bundle);
    }
    if !certificates.is_empty() {
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some((path, _)) = tls.identities.first() {
        builder = builder.identity(Identity::from_pem(identity).map_err(|error| wrong(path, &error))?);
    }
    // What rustls does not take of the files only shows here, as a certificate of version 1.
    let files =
        tls.identities.iter().take(1).flat_map(|(certificate, key)| [Some(certificate), key.as_ref()]);
    let files = files.flatten().chain(&tls.authorities).map(|path| path.display().to_string());
    let files = files.collect::<Vec<_>>().join(", ");
    builder.build().map_err(|error| Error::HostsFile {
        path: if files.is_empty() { "the TLS settings".to_owned() } else { files },
        problem: format!(
            "{error}: {}",
            std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
        ),
    })
}
