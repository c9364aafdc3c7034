//! What the plugins want, put together: each sees what those before it made of the container, and none may undo another's.

mod resources;

use std::collections::HashMap;

use super::owners::{Conflict, Owners};
use super::removal::{marked, unmarked};
use crate::proto::nri::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Field,
    Hooks, KeyValue, LinuxContainerAdjustment, LinuxDevice, LinuxRdt, LinuxResources, Mount,
    UpdateContainerResponse,
};

/// Containers that one answer may speak of, and entries of one list: beyond it, something is wrong with the plugin.
const MOST: usize = 4096;

/// Why an answer is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Two plugins want the same thing.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// An update of the container that is just being made.
    #[error("it asks for an update of the container that is being made")]
    OwnUpdate,
    /// There is too much of it.
    #[error("its answer has more than {MOST} {0}")]
    TooMany(&'static str),
}

/// What the plugins want with other containers.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) updates: Vec<ContainerUpdate>,
    pub(super) evictions: Vec<ContainerEviction>,
}

/// What is collected while a container is made.
#[derive(Debug)]
pub(super) struct Creation {
    /// As the next plugin is to see it.
    pub(super) container: Container,
    pub(super) adjust: ContainerAdjustment,
    pub(super) others: Others,
    pub(super) owners: Owners,
}

impl Creation {
    pub(super) fn new(container: Container) -> Self {
        Self { container, adjust: Default::default(), others: Others::default(), owners: Owners::default() }
    }

    /// Takes in the answer of `plugin`.
    pub(super) fn take(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), Error> {
        if let Some(adjust) = answer.adjust {
            self.adjust(plugin, adjust)?;
        }
        if answer.update.iter().any(|update| update.container_id == self.container.id) {
            return Err(Error::OwnUpdate);
        }
        self.others.take(&mut self.owners, plugin, answer.update, answer.evict)
    }

    fn adjust(&mut self, plugin: &str, wanted: ContainerAdjustment) -> Result<(), Error> {
        let lists =
            [("mounts", wanted.mounts.len()), ("variables", wanted.env.len()), ("args", wanted.args.len())];
        if let Some((what, _)) = lists.into_iter().find(|(_, length)| *length > MOST) {
            return Err(Error::TooMany(what));
        }
        let Self { container, adjust, owners, .. } = self;
        let id = container.id.clone();
        let mut claims = Claims { owners, id: &id, plugin };
        claims.map(
            Field::Annotations,
            wanted.annotations,
            &mut container.annotations,
            &mut adjust.annotations,
        )?;
        claims.list(Field::Mounts, wanted.mounts, &mut container.mounts, &mut adjust.mounts)?;
        claims.environment(wanted.env, &mut container.env, &mut adjust.env)?;
        if !wanted.args.is_empty() {
            let mut args = wanted.args;
            if args[0].is_empty() {
                claims.owners.clear(claims.id, Field::Args, plugin);
                args.remove(0);
            }
            claims.one(Field::Args)?;
            container.args.clone_from(&args);
            adjust.args = args;
        }
        if let Some(hooks) = wanted.hooks {
            claims.owners.share(claims.id, Field::OciHooks, plugin);
            append_hooks(container.hooks.get_or_insert_default(), &hooks);
            append_hooks(adjust.hooks.get_or_insert_default(), &hooks);
        }
        for limit in wanted.rlimits {
            claims.entry(Field::Rlimits, &limit.r#type)?;
            container.rlimits.retain(|old| old.r#type != limit.r#type);
            container.rlimits.push(limit.clone());
            adjust.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            claims.entry(Field::CdiDevices, &device.name)?;
            adjust.cdi_devices.push(device);
        }
        match wanted.linux {
            Some(linux) => linux_adjust(&mut claims, linux, container, adjust.linux.get_or_insert_default()),
            None => Ok(()),
        }
    }
}

fn linux_adjust(
    claims: &mut Claims<'_>,
    wanted: LinuxContainerAdjustment,
    container: &mut Container,
    adjust: &mut LinuxContainerAdjustment,
) -> Result<(), Error> {
    let linux = container.linux.get_or_insert_default();
    claims.list(Field::Devices, wanted.devices, &mut linux.devices, &mut adjust.devices)?;
    if let Some(resources) = wanted.resources {
        resources::claim(claims.owners, claims.id, claims.plugin, &resources)?;
        resources::overlay(&resources, linux.resources.get_or_insert_default());
        resources::overlay(&resources, adjust.resources.get_or_insert_default());
    }
    if !wanted.cgroups_path.is_empty() {
        claims.one(Field::CgroupsPath)?;
        linux.cgroups_path.clone_from(&wanted.cgroups_path);
        adjust.cgroups_path = wanted.cgroups_path;
    }
    // What has one value, and is shown to the next plugins.
    macro_rules! value {
        ($($name:ident: $field:ident),*) => {
            $(if let Some(value) = wanted.$name {
                claims.one(Field::$field)?;
                linux.$name = Some(value.clone());
                adjust.$name = Some(value);
            })*
        };
    }
    value!(oom_score_adj: OomScoreAdj, io_priority: IoPriority, seccomp_policy: SeccompPolicy,
        scheduler: LinuxSched);
    for namespace in wanted.namespaces {
        let kind = unmarked(&namespace.r#type).unwrap_or(&namespace.r#type).to_owned();
        claims.entry(Field::Namespace, &kind)?;
        linux.namespaces.retain(|old| old.r#type != kind);
        if kind == namespace.r#type {
            linux.namespaces.push(namespace.clone());
        }
        adjust.namespaces.push(namespace);
    }
    claims.map(Field::Sysctl, wanted.sysctl, &mut linux.sysctl, &mut adjust.sysctl)?;
    claims.map(
        Field::LinuxNetDevices,
        wanted.net_devices,
        &mut linux.net_devices,
        &mut adjust.net_devices,
    )?;
    if let Some(rdt) = wanted.rdt {
        let adjusted = adjust.rdt.get_or_insert_default();
        rdt_adjust(claims, rdt, adjusted)?;
        linux.rdt = Some(adjusted.clone());
    }
    if let Some(policy) = wanted.memory_policy {
        claims.one(Field::MemoryPolicy)?;
        adjust.memory_policy = Some(policy);
    }
    Ok(())
}

fn rdt_adjust(claims: &mut Claims<'_>, wanted: LinuxRdt, adjust: &mut LinuxRdt) -> Result<(), Error> {
    if wanted.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            claims.owners.clear(claims.id, field, claims.plugin);
        }
        *adjust = LinuxRdt { remove: true, ..Default::default() };
    }
    if wanted.clos_id.is_some() {
        claims.one(Field::RdtClosId)?;
        adjust.clos_id = wanted.clos_id;
    }
    if wanted.schemata.is_some() {
        claims.one(Field::RdtSchemata)?;
        adjust.schemata = wanted.schemata;
    }
    if wanted.enable_monitoring.is_some() {
        claims.one(Field::RdtEnableMonitoring)?;
        adjust.enable_monitoring = wanted.enable_monitoring;
    }
    Ok(())
}

fn append_hooks(into: &mut Hooks, hooks: &Hooks) {
    for (into, hooks) in [
        (&mut into.prestart, &hooks.prestart),
        (&mut into.create_runtime, &hooks.create_runtime),
        (&mut into.create_container, &hooks.create_container),
        (&mut into.start_container, &hooks.start_container),
        (&mut into.poststart, &hooks.poststart),
        (&mut into.poststop, &hooks.poststop),
    ] {
        into.extend_from_slice(hooks);
    }
}

/// What is collected while a container gets new limits.
#[derive(Debug)]
pub(super) struct Update {
    id: String,
    /// As the next plugin is to see them.
    pub(super) resources: LinuxResources,
    pub(super) others: Others,
    owners: Owners,
}

impl Update {
    pub(super) fn new(id: &str, resources: LinuxResources) -> Self {
        Self { id: id.to_owned(), resources, others: Others::default(), owners: Owners::default() }
    }

    /// Takes in the answer of `plugin`.
    pub(super) fn take(&mut self, plugin: &str, answer: UpdateContainerResponse) -> Result<(), Error> {
        let (own, others): (Vec<_>, Vec<_>) =
            answer.update.into_iter().partition(|update| update.container_id == self.id);
        for update in own {
            let Some(resources) = update.linux.and_then(|linux| linux.resources) else { continue };
            let mut owners = self.owners.clone();
            match resources::claim(&mut owners, &self.id, plugin, &resources) {
                Ok(()) => {
                    self.owners = owners;
                    resources::overlay(&resources, &mut self.resources);
                }
                Err(_) if update.ignore_failure => {}
                Err(conflict) => return Err(conflict.into()),
            }
        }
        self.others.take(&mut self.owners, plugin, others, answer.evict)
    }
}

impl Others {
    /// Takes in what `plugin` wants with other containers.
    pub(super) fn take(
        &mut self,
        owners: &mut Owners,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), Error> {
        if self.updates.len() + updates.len() > MOST || self.evictions.len() + evictions.len() > MOST {
            return Err(Error::TooMany("other containers"));
        }
        for update in updates {
            let wanted = update.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
            let mut claimed = owners.clone();
            match resources::claim(&mut claimed, &update.container_id, plugin, &wanted) {
                Ok(()) => *owners = claimed,
                Err(_) if update.ignore_failure => continue,
                Err(conflict) => return Err(conflict.into()),
            }
            match self.updates.iter_mut().find(|old| old.container_id == update.container_id) {
                Some(old) => {
                    old.ignore_failure &= update.ignore_failure;
                    let linux = old.linux.get_or_insert_default();
                    resources::overlay(&wanted, linux.resources.get_or_insert_default());
                }
                None => self.updates.push(update),
            }
        }
        self.evictions.extend(evictions);
        Ok(())
    }
}

// === Claims ===

/// One plugin's claims on one container.
struct Claims<'a> {
    owners: &'a mut Owners,
    id: &'a str,
    plugin: &'a str,
}

impl Claims<'_> {
    fn one(&mut self, field: Field) -> Result<(), Conflict> {
        self.owners.claim(self.id, field, self.plugin)
    }

    fn entry(&mut self, field: Field, entry: &str) -> Result<(), Conflict> {
        self.owners.claim_entry(self.id, field, entry, self.plugin)
    }

    fn cleared(&mut self, field: Field, entry: &str) {
        self.owners.clear_entry(self.id, field, entry, self.plugin);
    }

    fn map<V: Clone + Default>(
        &mut self,
        field: Field,
        wanted: HashMap<String, V>,
        shown: &mut HashMap<String, V>,
        adjust: &mut HashMap<String, V>,
    ) -> Result<(), Conflict> {
        // What is taken away first, so that the same plugin can set it anew.
        for key in wanted.keys().filter_map(|key| unmarked(key)) {
            self.cleared(field, key);
            shown.remove(key);
            adjust.remove(key);
            adjust.insert(marked(key), V::default());
        }
        for (key, value) in wanted.into_iter().filter(|(key, _)| unmarked(key).is_none()) {
            self.entry(field, &key)?;
            shown.insert(key.clone(), value.clone());
            adjust.insert(key, value);
        }
        Ok(())
    }

    fn list<T: Keyed>(
        &mut self,
        field: Field,
        wanted: Vec<T>,
        shown: &mut Vec<T>,
        adjust: &mut Vec<T>,
    ) -> Result<(), Conflict> {
        let (removed, set): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|item| unmarked(item.key()).is_some());
        for item in removed {
            let key = unmarked(item.key()).unwrap_or_default();
            self.cleared(field, key);
            shown.retain(|old| old.key() != key);
            adjust.retain(|old| old.key() != key && old.key() != item.key());
            adjust.push(item);
        }
        for item in set {
            self.entry(field, item.key())?;
            shown.retain(|old| old.key() != item.key());
            shown.push(item.clone());
            adjust.push(item);
        }
        Ok(())
    }

    fn environment(
        &mut self,
        wanted: Vec<KeyValue>,
        shown: &mut Vec<String>,
        adjust: &mut Vec<KeyValue>,
    ) -> Result<(), Conflict> {
        let parts = |variable: &str| {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            KeyValue { key: key.to_owned(), value: value.to_owned() }
        };
        let mut pairs = shown.iter().map(|variable| parts(variable)).collect();
        self.list(Field::Env, wanted, &mut pairs, adjust)?;
        *shown = pairs.into_iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
        Ok(())
    }
}

/// What has a key by which it is known.
trait Keyed: Clone {
    fn key(&self) -> &str;
}

impl Keyed for Mount {
    fn key(&self) -> &str {
        &self.destination
    }
}

impl Keyed for LinuxDevice {
    fn key(&self) -> &str {
        &self.path
    }
}

impl Keyed for KeyValue {
    fn key(&self) -> &str {
        &self.key
    }
}

#[cfg(test)]
mod tests;
