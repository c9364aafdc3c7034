//! TLS of the server, with files that may be renewed while it runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{DEFAULT_VERSIONS, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take for its part of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where certificate, key and authorities are, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of clients; `None`: any client may connect.
    pub client_ca: Option<PathBuf>,
}

/// The files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there, or not PEM.
    #[error("reading {path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{0} holds no certificate")]
    Empty(PathBuf),
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("using {path}: {source}")]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities of clients can't be used.
    #[error("using {path}: {source}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
}

/// When each file last changed.
type Stamp = [Option<SystemTime>; 3];

/// Takes connections over.
#[derive(Debug)]
pub(super) struct Acceptor {
    files: TlsFiles,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Acceptor {
    /// Reads the files.
    pub(super) fn open(files: TlsFiles) -> Result<Self, Error> {
        let stamp = files.stamp();
        let config = Arc::new(files.read()?);
        Ok(Self { files, current: Mutex::new((stamp, config)) })
    }

    /// What holds now. Files that changed are read again; if they can't be used, those from before go on to be.
    fn config(&self) -> Arc<ServerConfig> {
        let stamp = self.files.stamp();
        let mut current = self.current.lock();
        if current.0 != stamp {
            current.0 = stamp;
            match self.files.read() {
                Ok(config) => {
                    tracing::info!("streaming: the certificate was read again");
                    current.1 = Arc::new(config);
                }
                Err(error) => tracing::error!(%error, "streaming: the certificate from before is kept"),
            }
        }
        Arc::clone(&current.1)
    }

    /// The handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let accepting = TlsAcceptor::from(self.config()).accept(stream);
        tokio::time::timeout(HANDSHAKE, accepting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        [changed(&self.certificate), changed(&self.key), self.client_ca.as_deref().and_then(changed)]
    }

    fn read(&self) -> Result<ServerConfig, Error> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| Error::Pem { path: self.key.clone(), source })?;
        let unusable = |source| Error::Unusable { path: self.certificate.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(DEFAULT_VERSIONS)
            .map_err(unusable)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    let unusable = |source| Error::Unusable { path: path.clone(), source };
                    roots.add(certificate).map_err(unusable)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|source| Error::Authorities { path: path.clone(), source })?,
                )
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |source| Error::Pem { path: path.to_owned(), source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let found = found.map_err(wrong)?;
    if found.is_empty() { Err(Error::Empty(path.to_owned())) } else { Ok(found) }
}
