#![allow(clippy::unwrap_used)]
use berth::proto::runtime::v1::{ContainerMetadata, PodSandboxMetadata};

use super::*;

fn pod(id: &str, name: &str) -> PodSandbox {
    let metadata =
        PodSandboxMetadata { name: name.into(), namespace: "default".into(), ..Default::default() };
    PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
}

fn container(id: &str, pod: &str, name: &str, attempt: u32) -> Container {
    let metadata = ContainerMetadata { name: name.into(), attempt };
    Container { id: id.into(), pod_sandbox_id: pod.into(), metadata: Some(metadata), ..Default::default() }
}

/// Three pods: web (as `run` makes it), shop with two containers, one of them at its second attempt, and blog whose
/// only container has the name of one in shop.
struct World(Vec<Container>, Vec<PodSandbox>);

impl World {
    fn new() -> Self {
        let containers = vec![
            container("c1aaa", "p1", "web", 0),
            container("c2aaa", "p2", "app", 0),
            container("c2bbb", "p2", "app", 1),
            container("c2ccc", "p2", "proxy", 0),
            container("c3aaa", "p3", "app", 0),
        ];
        Self(containers, vec![pod("p1", "web"), pod("p2", "shop"), pod("p3", "blog")])
    }

    fn names(&self) -> Names<'_> {
        Names { containers: &self.0, pods: &self.1 }
    }

    fn container(&self, name: &str) -> Result<String> {
        self.names().container(name).map(|container| container.id.clone())
    }

    fn any(&self, name: &str) -> Result<String> {
        self.names().any(name).map(|named| match named {
            Named::Container(container) => container.id.clone(),
            Named::Pod(pod) => pod.id.clone(),
        })
    }
}

#[test]
fn containers_by_id_prefix_name_and_pod() {
    let world = World::new();
    for (name, id) in [
        ("c2aaa", "c2aaa"),
        ("c1", "c1aaa"),
        ("web", "c1aaa"),
        ("proxy", "c2ccc"),
        ("shop/app", "c2bbb"),
        ("p2/proxy", "c2ccc"),
        ("blog", "c3aaa"),
    ] {
        assert_eq!(world.container(name).unwrap(), id, "{name}");
    }
}

#[test]
fn what_is_ambiguous_is_listed() {
    let world = World::new();
    let error = world.container("app").unwrap_err().to_string();
    assert!(
        error.contains("shop/app") && error.contains("blog/app") && error.contains("POD/CONTAINER"),
        "{error}"
    );
    assert!(world.container("c2").unwrap_err().to_string().contains("may be"));
    assert!(world.container("shop").unwrap_err().to_string().contains("shop/CONTAINER"));
}

#[test]
fn what_is_not_there_is_said() {
    let world = World::new();
    for name in ["nope", "", "c", "shop/nope", "nope/app"] {
        assert!(world.container(name).unwrap_err().to_string().contains("no container"), "{name}");
    }
    assert!(world.names().pod("nope").unwrap_err().to_string().contains("berth pods"));
    assert!(world.any("nope").unwrap_err().to_string().contains("no container or pod"));
}

#[test]
fn either_a_pod_or_a_container() {
    let world = World::new();
    for (name, id) in [
        ("web", "p1"),
        ("shop", "p2"),
        ("p3", "p3"),
        ("proxy", "c2ccc"),
        ("c1", "c1aaa"),
        ("shop/app", "c2bbb"),
    ] {
        assert_eq!(world.any(name).unwrap(), id, "{name}");
    }
    assert!(world.any("app").unwrap_err().to_string().contains("may be"));
}

#[test]
fn a_name_comes_before_a_prefix() {
    let mut world = World::new();
    world.0.push(container("webcafe", "p3", "other", 0));
    assert_eq!(world.container("web").unwrap(), "c1aaa");
}
