//! External CNI plugins: pods attached by whatever stands in `/etc/cni/net.d`, as libcni would do it.
//!
//! ```text
//!   conf directory ──(config)──► lists ──(watched: changed, appeared, recreated)
//!                                  │
//!   attach: record ─► ADD each plugin in order, the last one's result to the next ─► record with the result
//!   detach: DEL each plugin in reverse order, from the record ─► record gone
//! ```
//!
//! Everything that DEL needs is in the record, not in the directory: a configuration that was changed or removed while a pod
//! was there does not keep its addresses. A plugin has a deadline, and the attachment that failed is deleted at once. Only
//! loopback is ours.

mod attachment;
mod config;
mod error;
mod plugin;
mod result;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};

use crate::error::chain;
use crate::meter::Writes;
use crate::proto::berth::v1::AttachmentRecord;
use crate::store::Records;

pub use attachment::Request;
pub use config::{List, Version};
pub use error::Error;
pub use result::{Attached, Failure};

/// Between two STATUS of a plugin: as often as the kubelet asks the daemon.
const STATUS: Duration = Duration::from_secs(5);

/// Who attaches pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Plugins when there is a configuration, else the built-in networks.
    Auto,
    /// Always the built-in networks.
    Builtin,
    /// Always plugins.
    Cni,
}

/// How plugins are used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who attaches pods.
    pub mode: Mode,
    /// Where configurations are.
    pub configurations: PathBuf,
    /// Where plugins are, in order.
    pub plugins: Vec<PathBuf>,
    /// Longest time of one plugin's run.
    pub timeout: Duration,
    /// Directory of attachment records; kept over a reboot, as plugins keep their leases.
    pub records: PathBuf,
    /// Times them.
    pub writes: Writes,
}

/// What stands in the directory.
#[derive(Debug)]
struct Known {
    signature: watch::Signature,
    /// The lists in order, or why there is none.
    lists: Result<Vec<Arc<List>>, String>,
    /// What the first list's plugins say of themselves.
    status: Result<(), String>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    records: Records,
    /// What is on record, by key.
    attachments: Mutex<BTreeMap<String, AttachmentRecord>>,
    known: RwLock<Known>,
}

/// The plugins; clones share everything.
#[derive(Clone, Debug)]
pub struct Cni {
    inner: Arc<Inner>,
}

impl Cni {
    /// Opens the records and reads the configuration.
    ///
    /// # Errors
    /// The record directory can't be made.
    pub fn open(options: Options) -> Result<Self, Error> {
        let records = Records::open(options.records.clone())?.watched(options.writes.clone(), "cni");
        let loaded = records.load::<AttachmentRecord>()?;
        for id in loaded.damaged {
            tracing::warn!(
                id,
                "the record of an attachment was torn: what its plugins keep is left to their own GC"
            );
        }
        let known = Known { signature: watch::Signature::default(), lists: Ok(Vec::new()), status: Ok(()) };
        let attachments = Mutex::new(loaded.records.into_iter().collect());
        let inner = Inner { options, records, attachments, known: RwLock::new(known) };
        let cni = Self { inner: Arc::new(inner) };
        cni.reload();
        Ok(cni)
    }

    /// The list a pod joins when it names no network; `None` where that is a built-in one.
    ///
    /// # Errors
    /// Plugins are to be used, and there is no usable configuration.
    pub fn default_list(&self) -> Result<Option<Arc<List>>, Error> {
        let Options { mode, configurations, .. } = &self.inner.options;
        if *mode == Mode::Builtin {
            return Ok(None);
        }
        self.reload();
        let known = self.inner.known.read();
        match &known.lists {
            Ok(lists) => match (lists.first(), mode) {
                (Some(first), _) => Ok(Some(Arc::clone(first))),
                (None, Mode::Auto) => Ok(None),
                (None, _) => Err(Error::NoConfiguration(configurations.clone())),
            },
            // A configuration that can't be read is no reason to put pods into another network than was meant.
            Err(reasons) => {
                Err(Error::NoneUsable { directory: configurations.clone(), reasons: reasons.clone() })
            }
        }
    }

    /// Whether plugins attach pods that name no network, or would if their configuration could be read. Never waits.
    pub fn is_default(&self) -> bool {
        match self.inner.options.mode {
            Mode::Builtin => false,
            Mode::Cni => true,
            Mode::Auto => {
                self.reload();
                !matches!(&self.inner.known.read().lists, Ok(lists) if lists.is_empty())
            }
        }
    }

    /// The list of a network.
    pub fn list(&self, network: &str) -> Option<Arc<List>> {
        if self.inner.options.mode == Mode::Builtin {
            return None;
        }
        let known = self.inner.known.read();
        known.lists.as_ref().ok()?.iter().find(|list| list.name == network).cloned()
    }

    /// Whether pods can be connected, as far as that is ours to say. Never waits.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn ready(&self) -> Result<(), String> {
        let Options { mode, configurations, .. } = &self.inner.options;
        if *mode == Mode::Builtin {
            return Ok(());
        }
        let known = self.inner.known.read();
        match &known.lists {
            Ok(lists) if lists.is_empty() && *mode == Mode::Cni => {
                Err(Error::NoConfiguration(configurations.clone()).to_string())
            }
            Ok(lists) if lists.is_empty() => Ok(()),
            Ok(_) => known.status.clone(),
            Err(reasons) => {
                Err(Error::NoneUsable { directory: configurations.clone(), reasons: reasons.clone() }
                    .to_string())
            }
        }
    }

    /// Attaches a pod. Plugins may be asked once only for one interface (CNI specification, "ADD"): the caller knows what is attached.
    ///
    /// # Errors
    /// A plugin failed: what the others did is deleted again.
    pub async fn attach(&self, list: &List, request: Request) -> Result<Attached, Error> {
        let key = request.key();
        let mut record = attachment::record(list, &request)?;
        self.keep(&key, &record).await?;
        match self.add(list, &record).await {
            Ok(result) => {
                let attached = result::attached(&result, &request.interface);
                record.result = result.to_string();
                self.keep(&key, &record).await?;
                Ok(attached)
            }
            Err(error) => {
                if let Err(left) = self.delete(&key, &record).await {
                    tracing::warn!(error = chain(&left), "undoing a failed attachment");
                }
                Err(error)
            }
        }
    }

    /// Detaches a pod from all that plugins attached it to. A pod that has nothing is fine.
    ///
    /// # Errors
    /// Everything that could not be undone; it stays on record and can be tried again.
    pub async fn detach(&self, pod: &str) -> Result<(), Vec<Error>> {
        let mut errors = Vec::new();
        for (key, record) in self.attachments().iter().filter(|(_, record)| record.pod_id == pod) {
            errors.extend(self.delete(key, record).await.err());
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Whether plugins attached the pod to something.
    pub fn owns(&self, pod: &str) -> bool {
        self.inner.attachments.lock().values().any(|record| record.pod_id == pod)
    }

    /// Names of the interfaces that plugins made in a pod.
    pub fn interfaces(&self, pod: &str) -> Vec<String> {
        let attachments = self.inner.attachments.lock();
        let ours = attachments.values().filter(|record| record.pod_id == pod);
        ours.map(|record| record.interface.clone()).collect()
    }

    /// Removes what belongs to pods that are not `live`: attachments on record, and what plugins find themselves (GC, from
    /// version 1.1 on).
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Vec<Error> {
        let mut errors = Vec::new();
        let (valid, stale): (Vec<_>, Vec<_>) =
            self.attachments().into_iter().partition(|(_, record)| live.contains(&record.pod_id));
        for (key, record) in stale {
            tracing::info!(pod = record.pod_id, "detaching what plugins attached to a pod that is gone");
            errors.extend(self.delete(&key, &record).await.err());
        }
        let lists = self.inner.known.read().lists.clone().unwrap_or_default();
        for list in lists.iter().filter(|list| list.collects()) {
            let of_list = |record: &&AttachmentRecord| record.network == list.name;
            let valid: Vec<Value> = valid
                .iter()
                .map(|(_, record)| record)
                .filter(of_list)
                .map(|record| serde_json::json!({"containerID": record.pod_id, "ifname": record.interface}))
                .collect();
            errors.extend(self.collect(list, &valid).await);
        }
        errors
    }

    /// Watches the directory and asks the plugins how they are, for as long as the daemon lives.
    pub async fn watch(self) {
        if self.inner.options.mode == Mode::Builtin {
            return;
        }
        // Whom the plugins were last asked for, and when.
        let mut asked: Option<(Arc<List>, Instant)> = None;
        loop {
            self.reload();
            let first = self.inner.known.read().lists.as_ref().ok().and_then(|lists| lists.first().cloned());
            let due = match (&first, &asked) {
                (Some(list), Some((of, at))) => !Arc::ptr_eq(list, of) || at.elapsed() >= STATUS,
                (first, _) => first.is_some(),
            };
            if let Some(list) = first.filter(|_| due) {
                let status = self.ask(&list).await.map_err(|error| chain(&error));
                self.inner.known.write().status = status;
                asked = Some((list, Instant::now()));
            }
            tokio::time::sleep(watch::INTERVAL).await;
        }
    }

    /// Reads the configuration anew if the directory is not what it was.
    fn reload(&self) {
        let Options { configurations, .. } = &self.inner.options;
        let signature = watch::look(configurations);
        if self.inner.known.read().signature == signature {
            return;
        }
        let lists = config::read(configurations);
        match &lists {
            Ok(lists) => {
                let names: Vec<_> = lists.iter().map(|list| list.name.as_str()).collect();
                tracing::info!(directory = %configurations.display(), networks = names.join(", "), "CNI configuration");
            }
            Err(reasons) => {
                tracing::warn!(directory = %configurations.display(), reasons, "no usable CNI configuration")
            }
        }
        let mut known = self.inner.known.write();
        *known = Known {
            signature,
            lists: lists.map(|all| all.into_iter().map(Arc::new).collect()),
            status: Ok(()),
        };
    }

    // === Commands ===

    async fn add(&self, list: &List, record: &AttachmentRecord) -> Result<Value, Error> {
        let mut result = Value::Null;
        for plugin in &list.plugins {
            let run = self.run(list, plugin, "ADD", record, Some(&result), &[]).await?;
            result = result::checked(run).map_err(|failure| Error::Plugin {
                plugin: config::kind(plugin).to_owned(),
                command: "ADD",
                network: list.name.clone(),
                failure: Box::new(failure),
            })?;
        }
        Ok(result)
    }

    /// Undoes an attachment with the configuration it was made with, in reverse order, and goes on after failures.
    async fn delete(&self, key: &str, record: &AttachmentRecord) -> Result<(), Error> {
        let list = List::parse_record(&record.list)?;
        let result: Value = serde_json::from_str(&record.result).unwrap_or_default();
        // Earlier versions of the specification pass none to DEL.
        let previous = Some(&result).filter(|_| list.version >= Version::new(0, 4));
        let mut failed = None;
        for plugin in list.plugins.iter().rev() {
            let deleted = self.run(&list, plugin, "DEL", record, previous, &[]).await;
            if let Err(error) = deleted
                && let Some(earlier) = failed.replace(error)
            {
                tracing::warn!(pod = record.pod_id, error = chain(&earlier), "detaching");
            }
        }
        match failed {
            Some(error) => Err(error),
            None => {
                self.inner.records.remove(key).await?;
                self.inner.attachments.lock().remove(key);
                Ok(())
            }
        }
    }

    /// STATUS of every plugin, where the version has it.
    async fn ask(&self, list: &List) -> Result<(), Error> {
        let nobody = AttachmentRecord::default();
        for plugin in &list.plugins {
            if list.version >= Version::new(1, 1) {
                self.run(list, plugin, "STATUS", &nobody, None, &[]).await?;
            } else {
                self.find(list, plugin)?;
            }
        }
        Ok(())
    }

    async fn collect(&self, list: &List, valid: &[Value]) -> Vec<Error> {
        let nobody = AttachmentRecord::default();
        let valid = Value::from(valid.to_vec());
        // The second is what the specification called it for a while: a plugin that knows only that must not take all for stale.
        let more = [("cni.dev/valid-attachments", valid.clone()), ("cni.dev/attachments", valid)];
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            errors.extend(self.run(list, plugin, "GC", &nobody, None, &more).await.err());
        }
        errors
    }

    fn find(&self, list: &List, plugin: &Map<String, Value>) -> Result<PathBuf, Error> {
        let kind = config::kind(plugin);
        let searched = &self.inner.options.plugins;
        plugin::find(kind, searched).ok_or_else(|| Error::NoPlugin {
            plugin: kind.to_owned(),
            network: list.name.clone(),
            searched: searched.clone(),
        })
    }

    async fn run(
        &self,
        list: &List,
        plugin: &Map<String, Value>,
        command: &'static str,
        record: &AttachmentRecord,
        previous: Option<&Value>,
        more: &[(&str, Value)],
    ) -> Result<Vec<u8>, Error> {
        let program = self.find(list, plugin)?;
        let capabilities: Map<String, Value> = serde_json::from_str(&record.capabilities).unwrap_or_default();
        let mut config =
            list.plugin_config(plugin, &capabilities, previous.filter(|result| !result.is_null()));
        config.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let invocation = plugin::Invocation {
            program: &program,
            command,
            record,
            directories: &self.inner.options.plugins,
            input: Value::Object(config).to_string(),
            timeout: self.inner.options.timeout,
        };
        plugin::run(invocation).await.map_err(|failure| Error::Plugin {
            plugin: config::kind(plugin).to_owned(),
            command,
            network: list.name.clone(),
            failure: Box::new(failure),
        })
    }

    fn attachments(&self) -> Vec<(String, AttachmentRecord)> {
        let all = self.inner.attachments.lock();
        all.iter().map(|(key, record)| (key.clone(), record.clone())).collect()
    }

    async fn keep(&self, key: &str, record: &AttachmentRecord) -> Result<(), Error> {
        self.inner.records.put(key, record).await?;
        self.inner.attachments.lock().insert(key.to_owned(), record.clone());
        Ok(())
    }
}
