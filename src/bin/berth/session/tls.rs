//! The streaming server by TLS: who vouches for it, and who we are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustls::crypto::ring;
use rustls::{ClientConfig, DEFAULT_VERSIONS, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What sessions by TLS need: used where `[streaming]` in berthd's configuration has a certificate.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TlsOptions {
    /// Authority that signed the certificate of berthd's streaming server (PEM), for exec, attach and run -i
    #[arg(long, global = true, env = "BERTH_TLS_CA", value_name = "FILE", help_heading = "TLS")]
    tls_ca: Option<PathBuf>,
    /// Our certificate (PEM), where the streaming server asks for one
    #[arg(
        long,
        global = true,
        env = "BERTH_TLS_CERT",
        value_name = "FILE",
        help_heading = "TLS",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(
        long,
        global = true,
        env = "BERTH_TLS_KEY",
        value_name = "FILE",
        help_heading = "TLS",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
}

/// The same for every session of this process.
static OPTIONS: OnceLock<TlsOptions> = OnceLock::new();

impl TlsOptions {
    /// Has all sessions use these.
    pub(crate) fn hold(self) {
        let _ = OPTIONS.set(self);
    }

    fn connector(&self) -> Result<TlsConnector> {
        let Some(authority) = &self.tls_ca else {
            bail!(
                "it speaks TLS (`[streaming]` in berthd's configuration): name the authority that signed its certificate \
                 with --tls-ca or BERTH_TLS_CA"
            );
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authority)? {
            roots.add(certificate).with_context(|| format!("using {}", authority.display()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(DEFAULT_VERSIONS)?
            .with_root_certificates(roots);
        let config = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let read = PrivateKeyDer::from_pem_file(key);
                let read = read.with_context(|| format!("reading the key in {}", key.display()))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, read)
                    .with_context(|| format!("using {}", certificate.display()))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let context = || format!("reading certificates in {}", path.display());
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(context)?
        .collect::<Result<_, _>>()
        .with_context(context)?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

/// Speaks TLS with `host`, a name or an address.
pub(super) async fn connect(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
    let connector = OPTIONS.get().cloned().unwrap_or_default().connector()?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).with_context(|| format!("`{bare}` is no host"))?;
    connector.connect(name, stream).await.context(
        "its certificate or ours was not taken (the authority is named by --tls-ca, our certificate by --tls-cert and --tls-key)",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error =
            |options: TlsOptions| options.connector().err().map(|error| format!("{error:#}")).unwrap();
        assert!(error(TlsOptions::default()).contains("--tls-ca"));
        let tls_ca = Some(PathBuf::from("/nonexistent/ca.pem"));
        assert!(error(TlsOptions { tls_ca, ..TlsOptions::default() }).contains("/nonexistent/ca.pem"));
        let tls_ca = Some(PathBuf::from("/dev/null"));
        assert!(error(TlsOptions { tls_ca, ..TlsOptions::default() }).contains("no certificate"));
    }
}
