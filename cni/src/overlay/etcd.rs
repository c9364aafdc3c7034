//! The etcd client: every call has a deadline, every failure says what was asked of whom, and lists come in pages.

use std::{future::Future, path::PathBuf, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, LeaseGrantOptions,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn, TxnOp, TxnResponse, WatchOptions,
    WatchStream,
};

use super::{Options, view::Change};
use crate::error::EtcdError;

/// Keys of one page. A record is some hundred bytes, and a message may have 4 MiB.
const PAGE: i64 = 1_000;

/// Shorthand for results of this module.
pub(crate) type Result<T, E = EtcdError> = std::result::Result<T, E>;

/// A value and the revision it was written at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) value: Vec<u8>,
    pub(crate) revision: i64,
    /// 0: none.
    pub(crate) lease: i64,
}

/// What an answer says of etcd itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) revision: i64,
    pub(crate) cluster: u64,
}

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) struct Etcd {
    client: Client,
    endpoints: String,
    timeout: Duration,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Makes a client; it connects when it is first asked.
    pub(crate) async fn connect(options: &Options) -> Result<Self> {
        let endpoints = options.endpoints.join(", ");
        let mut settings = ConnectOptions::new()
            .with_connect_timeout(options.timeout)
            .with_keep_alive(options.timeout, options.timeout)
            .with_keep_alive_while_idle(true);
        if let Some(tls) = tls(options)? {
            settings = settings.with_tls(tls);
        }
        let unreachable = |error: etcd_client::Error| EtcdError::Unreachable {
            endpoints: endpoints.clone(),
            reason: error.to_string(),
        };
        let client = Client::connect(&options.endpoints, Some(settings)).await.map_err(unreachable)?;
        Ok(Self { client, endpoints, timeout: options.timeout })
    }

    async fn bounded<T>(
        &self,
        action: impl Into<String>,
        call: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
    ) -> Result<T> {
        let endpoints = self.endpoints.clone();
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => {
                Err(EtcdError::Refused { action: action.into(), endpoints, source: Box::new(source) })
            }
            Err(_) => Err(EtcdError::TimedOut { action: action.into(), endpoints, limit: self.timeout }),
        }
    }

    /// A key's value, and where etcd is.
    pub(crate) async fn get(&self, key: &str) -> Result<(Option<Found>, At)> {
        self.get_at(key, 0).await
    }

    /// The same as it was at a revision; 0: now.
    pub(crate) async fn get_at(&self, key: &str, revision: i64) -> Result<(Option<Found>, At)> {
        let mut kv = self.client.kv_client();
        let options = GetOptions::new().with_revision(revision);
        let answer = self.bounded(format!("reading {key}"), kv.get(key, Some(options))).await?;
        let at =
            answer.header().map(|header| At { revision: header.revision(), cluster: header.cluster_id() });
        let found = answer.kvs().first();
        Ok((
            found.map(|kv| Found {
                value: kv.value().to_vec(),
                revision: kv.mod_revision(),
                lease: kv.lease(),
            }),
            at.unwrap_or_default(),
        ))
    }

    /// All keys of a prefix as they were at one revision, which is returned.
    pub(crate) async fn list(&self, prefix: &str, mut each: impl FnMut(Change<'_>)) -> Result<i64> {
        let mut kv = self.client.kv_client();
        let end = prefix_end(prefix);
        let (mut from, mut revision) = (prefix.as_bytes().to_vec(), 0);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let page = self.bounded(format!("listing {prefix}"), kv.get(from, Some(options))).await?;
            if revision == 0 {
                revision = page.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
            }
            for kv in page.kvs() {
                if let Ok(key) = kv.key_str() {
                    each(Change {
                        key,
                        value: Some(kv.value()),
                        revision: kv.mod_revision(),
                        lease: kv.lease(),
                    });
                }
            }
            let Some(last) = page.kvs().last().filter(|_| page.more()) else { return Ok(revision) };
            from = [last.key(), &[0]].concat();
        }
    }

    /// A transaction.
    pub(crate) async fn commit(
        &self,
        action: impl Into<String>,
        compares: Vec<Compare>,
        operations: Vec<TxnOp>,
    ) -> Result<TxnResponse> {
        let mut kv = self.client.kv_client();
        self.bounded(action, kv.txn(Txn::new().when(compares).and_then(operations))).await
    }

    /// A new lease.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64> {
        let mut lease = self.client.lease_client();
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let granted = lease.grant(seconds, None::<LeaseGrantOptions>);
        Ok(self.bounded("asking for a lease", granted).await?.id())
    }

    /// Ends a lease and what is under it.
    pub(crate) async fn revoke(&self, id: i64) -> Result<()> {
        let mut lease = self.client.lease_client();
        self.bounded("ending a lease", lease.revoke(id)).await.map(drop)
    }

    /// Begins to keep a lease alive.
    pub(crate) async fn keep_alive(&self, id: i64) -> Result<(LeaseKeeper, LeaseKeepAliveStream)> {
        let mut lease = self.client.lease_client();
        self.bounded("keeping the lease", lease.keep_alive(id)).await
    }

    /// All changes of a prefix from a revision on.
    pub(crate) async fn watch(&self, prefix: &str, from: i64) -> Result<WatchStream> {
        let mut watch = self.client.watch_client();
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(from)
            .with_progress_notify()
            .with_fragment();
        self.bounded(format!("watching {prefix}"), watch.watch(prefix, Some(options))).await
    }

    /// An error of a stream.
    pub(crate) fn broken(&self, action: &str, error: Option<etcd_client::Error>) -> EtcdError {
        let endpoints = self.endpoints.clone();
        match error {
            Some(source) => {
                EtcdError::Refused { action: action.to_owned(), endpoints, source: Box::new(source) }
            }
            None => EtcdError::Unreachable { endpoints, reason: format!("{action}: the connection ended") },
        }
    }

    pub(crate) fn endpoints(&self) -> &str {
        &self.endpoints
    }
}

// === Parts of transactions ===

/// The key is not there; for a prefix: no key of it.
pub(crate) fn absent(key: &str) -> Compare {
    Compare::version(key, CompareOp::Equal, 0)
}

/// The key is as it was read.
pub(crate) fn unchanged(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

/// The key has this value.
pub(crate) fn is(key: &str, value: &str) -> Compare {
    Compare::value(key, CompareOp::Equal, value)
}

/// No key of the prefix was written after a revision.
pub(crate) fn none_since(prefix: &str, revision: i64) -> Compare {
    Compare::mod_revision(prefix, CompareOp::Less, revision + 1).with_prefix()
}

/// Writes a value that stays.
pub(crate) fn put(key: &str, value: Vec<u8>) -> TxnOp {
    TxnOp::put(key, value, None)
}

/// Writes a value that ends with a lease.
pub(crate) fn put_leased(key: &str, value: Vec<u8>, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

/// Deletes a key.
pub(crate) fn delete(key: &str) -> TxnOp {
    TxnOp::delete(key, None)
}

/// The first key after all of a prefix. Our prefixes end in `/`, which has a successor.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

// === TLS ===

fn tls(options: &Options) -> Result<Option<TlsOptions>> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|source| EtcdError::File { path: path.clone(), source });
    let mut tls = None;
    if let Some(ca) = &options.tls.ca {
        tls = Some(TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?)));
    }
    if let (Some(certificate), Some(key)) = (&options.tls.certificate, &options.tls.key) {
        let identity = Identity::from_pem(read(certificate)?, read(key)?);
        tls = Some(tls.unwrap_or_default().identity(identity));
    }
    Ok(tls)
}
