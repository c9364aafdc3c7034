//! Pods, containers and faces for the unit tests of this room.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::CgroupDriver;
use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::PodSnapshot;
use crate::proto::runtime::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, PodSandboxConfig, PodSandboxMetadata,
};

use super::{Facts, Handler};

pub(crate) fn pod_config(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: "b2f0".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: name.into(),
        log_directory: "/var/log/pods/x".into(),
        labels: HashMap::from([("app".into(), name.into())]),
        annotations: HashMap::from([("note".into(), "kept".into())]),
        ..Default::default()
    }
}

pub(crate) fn container_config(name: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 2 }),
        image: Some(ImageSpec { image: "docker.io/library/nginx:1".into(), ..Default::default() }),
        log_path: "nginx/0.log".into(),
        labels: HashMap::from([("part".into(), name.into())]),
        ..Default::default()
    }
}

pub(crate) fn pod(id: &str, name: &str) -> PodSnapshot {
    PodSnapshot {
        id: id.into(),
        config: Arc::new(pod_config(name)),
        runtime_handler: "runc".into(),
        created_at: 17,
        ready: true,
        addresses: vec!["10.85.0.2".parse().unwrap(), "fd85:be:27::2".parse().unwrap()],
        namespaces: Vec::new(),
        netns: Some("/run/berth/pods/x/ns/net".into()),
        containers: Vec::new(),
    }
}

pub(crate) fn container(id: &str, pod_id: &str, state: ContainerState) -> ContainerSnapshot {
    ContainerSnapshot {
        id: id.into(),
        pod_id: pod_id.into(),
        config: Arc::new(container_config("nginx")),
        image_id: "sha256:aa".into(),
        image_ref: "docker.io/library/nginx@sha256:bb".into(),
        created_at: 18,
        state,
        log_path: Some("/var/log/pods/x/nginx/0.log".into()),
        user: None,
        stop_signal: 15,
        cgroups_path: "/berth/x".into(),
        bundle: "/nonexistent".into(),
        upper: "/nonexistent".into(),
        shim: None,
    }
}

pub(crate) fn facts() -> Facts {
    let handler = |name: &str| Handler {
        name: name.into(),
        recursive_read_only_mounts: true,
        user_namespaces: name == "berth",
    };
    Facts {
        version: "1.2.3".into(),
        cgroup_driver: CgroupDriver::Cgroupfs,
        default_runtime: "berth".into(),
        handlers: vec![handler("berth"), handler("runc")],
        supplemental_groups_policy: true,
        config: serde_json::json!({"root": "/var/lib/berth"}),
        features: serde_json::json!({"cgroup": "v2"}),
        network: serde_json::json!({"default": "bridge"}),
    }
}

/// Rooms without pods and images, below a directory, and in a network namespace that ends with them. Its loopback is down,
/// so the streaming server listens on no address in particular.
pub(crate) fn rooms(directory: &std::path::Path) -> crate::server::assembly::Rooms {
    let file = directory.join("config.toml");
    let settings = format!(
        "root = \"{0}/root\"\nstate = \"{0}/state\"\nshim = \"/bin/true\"\n[cgroup]\ndriver = \"cgroupfs\"\n\
         [streaming]\naddress = \"0.0.0.0:0\"\n[nri]\nenable = false\n",
        directory.display()
    );
    std::fs::write(&file, settings).unwrap();
    for part in ["root", "state"] {
        std::fs::create_dir_all(directory.join(part)).unwrap();
    }
    let loaded = crate::config::Source { file: Some(file), ..Default::default() }.load().unwrap();
    // Threads that the rooms start inherit the namespace of this one.
    let opened = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let meter = crate::meter::Meter::new(&prometheus::Registry::new()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(crate::server::assembly::open(&loaded, &meter)).unwrap()
    });
    crate::server::assembly::Rooms { facts: Arc::new(facts()), ..opened.join().unwrap() }
}
