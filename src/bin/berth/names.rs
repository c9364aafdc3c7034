//! What a person means by a name: a container or pod by its id, a unique prefix of that, or its name.
//!
//! In this order: a full id; `POD/CONTAINER`; a name; a prefix of an id. A pod's name stands for its container where a
//! container is asked for and the pod has but one. Of several attempts at one container of one pod, the latest counts.

use anyhow::{Result, bail};
use berth::proto::runtime::v1::{Container, PodSandbox};

/// Shortest prefix of an id that counts as one.
const SHORTEST_PREFIX: usize = 2;
/// How many of the things a name may mean are listed.
const LISTED: usize = 5;

/// All that can be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The daemon's containers.
    pub containers: &'a [Container],
    /// The daemon's pods.
    pub pods: &'a [PodSandbox],
}

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Named<'a> {
    /// A container.
    Container(&'a Container),
    /// A pod.
    Pod(&'a PodSandbox),
}

impl<'a> Names<'a> {
    /// The container that is meant.
    pub(crate) fn container(&self, name: &str) -> Result<&'a Container> {
        let steps: [&dyn Fn() -> Vec<&'a Container>; 4] = [
            &|| self.containers_where(|container| container.id == name),
            &|| self.in_pod(name),
            &|| self.containers_where(|container| container_name(container) == name),
            &|| self.only_one_of_pod(name),
        ];
        for step in steps {
            if let Some(found) = one(name, latest(step()), |container| self.describe(container))? {
                return Ok(found);
            }
        }
        let by_prefix = self.containers_where(|container| is_prefix(&container.id, name));
        match one(name, by_prefix, |container| self.describe(container))? {
            Some(found) => Ok(found),
            None if self.pod(name).is_ok() => {
                bail!("{name} is a pod with no container or several: name one as {name}/CONTAINER")
            }
            None => bail!("no container is called {name}: `berth ps -a` lists them"),
        }
    }

    /// The pod that is meant.
    pub(crate) fn pod(&self, name: &str) -> Result<&'a PodSandbox> {
        let steps: [&dyn Fn(&PodSandbox) -> bool; 3] =
            [&|pod| pod.id == name, &|pod| pod_name(pod) == name, &|pod| is_prefix(&pod.id, name)];
        for step in steps {
            let found = self.pods.iter().filter(|pod| step(pod)).collect();
            if let Some(pod) = one(name, found, describe_pod)? {
                return Ok(pod);
            }
        }
        bail!("no pod is called {name}: `berth pods` lists them")
    }

    /// The container or the pod that is meant. Where `run` gave both one name, that is the pod.
    pub(crate) fn any(&self, name: &str) -> Result<Named<'a>> {
        // An exact id or name of either comes before a prefix of the other.
        let exact_pod = self.pods.iter().any(|pod| pod.id == name || pod_name(pod) == name);
        if exact_pod {
            return self.pod(name).map(Named::Pod);
        }
        let exact = |container: &Container| container_name(container) == name || container.id == name;
        match (self.container(name), self.pod(name)) {
            (Ok(container), Ok(_)) if exact(container) => Ok(Named::Container(container)),
            (Ok(container), Err(_)) => Ok(Named::Container(container)),
            (Err(_), Ok(pod)) => Ok(Named::Pod(pod)),
            (Ok(container), Ok(pod)) => {
                bail!(
                    "{name} may be {} or {}: give more of the id",
                    self.describe(container),
                    describe_pod(pod)
                )
            }
            (Err(error), Err(_)) if error.to_string().contains(" may be ") => Err(error),
            (Err(_), Err(error)) if error.to_string().contains(" may be ") => Err(error),
            (Err(_), Err(_)) => {
                bail!("no container or pod is called {name}: `berth ps -a` and `berth pods` list them")
            }
        }
    }

    /// Whether a name means anything, be it several things.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let ambiguous = |error: anyhow::Error| error.to_string().contains(" may be ");
        self.any(name).map_or_else(ambiguous, |_| true)
    }

    /// The pod a container is in.
    pub(crate) fn pod_of(&self, container: &Container) -> Option<&'a PodSandbox> {
        self.pods.iter().find(|pod| pod.id == container.pod_sandbox_id)
    }

    /// The containers of a pod.
    pub(crate) fn containers_of(&self, pod: &PodSandbox) -> Vec<&'a Container> {
        self.containers_where(|container| container.pod_sandbox_id == pod.id)
    }

    fn containers_where(&self, wanted: impl Fn(&Container) -> bool) -> Vec<&'a Container> {
        self.containers.iter().filter(|container| wanted(container)).collect()
    }

    fn in_pod(&self, name: &str) -> Vec<&'a Container> {
        let Some((pod, container)) = name.split_once('/') else { return Vec::new() };
        let Ok(pod) = self.pod(pod) else { return Vec::new() };
        self.containers_where(|candidate| {
            candidate.pod_sandbox_id == pod.id && container_name(candidate) == container
        })
    }

    fn only_one_of_pod(&self, name: &str) -> Vec<&'a Container> {
        let mut containers = Vec::new();
        for pod in self.pods.iter().filter(|pod| pod_name(pod) == name || pod.id == name) {
            let of_pod = latest(self.containers_of(pod));
            if of_pod.len() > 1 {
                return Vec::new();
            }
            containers.extend(of_pod);
        }
        containers
    }

    fn describe(&self, container: &Container) -> String {
        let pod = self.pod_of(container).map_or("?", pod_name);
        format!("{} ({pod}/{})", short(&container.id), container_name(container))
    }
}

/// The name in a container's metadata.
pub(crate) fn container_name(container: &Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

/// The name in a pod's metadata.
pub(crate) fn pod_name(pod: &PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

fn describe_pod(pod: &PodSandbox) -> String {
    let namespace = pod.metadata.as_ref().map_or("", |metadata| metadata.namespace.as_str());
    format!("pod {} ({namespace}/{})", short(&pod.id), pod_name(pod))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn is_prefix(id: &str, name: &str) -> bool {
    name.len() >= SHORTEST_PREFIX && id.starts_with(name)
}

/// Of several attempts at one container of one pod, the latest.
fn latest(containers: Vec<&Container>) -> Vec<&Container> {
    let attempt = |container: &Container| {
        (container.metadata.as_ref().map_or(0, |metadata| metadata.attempt), container.created_at)
    };
    let mut kept: Vec<&Container> = Vec::new();
    for container in containers {
        let same = |other: &&mut &Container| {
            other.pod_sandbox_id == container.pod_sandbox_id
                && container_name(other) == container_name(container)
        };
        match kept.iter_mut().find(same) {
            Some(other) if attempt(container) > attempt(other) => *other = container,
            Some(_) => {}
            None => kept.push(container),
        }
    }
    kept
}

/// The one thing found, if any; several are an error that lists them.
fn one<T: Copy>(name: &str, found: Vec<T>, describe: impl Fn(T) -> String) -> Result<Option<T>> {
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(*only)),
        several => {
            let mut listed: Vec<String> = several.iter().take(LISTED).map(|thing| describe(*thing)).collect();
            if several.len() > LISTED {
                listed.push(format!("{} more", several.len() - LISTED));
            }
            bail!("{name} may be {}: give more of the id, or POD/CONTAINER", listed.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests;
