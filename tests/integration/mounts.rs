//! Mounts of the host in containers: which way later mounts travel, and read-only with all below.

use std::path::Path;

use k8s_cri::v1::{Mount, MountPropagation, StatusRequest};
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

use crate::support::World;
use crate::support::container;
use crate::support::spec::{ContainerOptions, script};
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![propagation, propagation_mixed, recursive_read_only]
}

/// A tmpfs of the test's own; unmounted when dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn new(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

async fn propagation(world: &mut World) {
    let source = Tmpfs::new(&world.run.join("propagation"));
    let none: Option<&str> = None;
    mount(none, &source.0, none, MsFlags::MS_SHARED, none).unwrap();
    let image = world.image("busybox").await;
    let pod = world.pod("propagation");
    let pod_id = world.run_pod(&pod).await.unwrap();
    for (mode, sees, shows) in [
        (MountPropagation::PropagationPrivate, false, false),
        (MountPropagation::PropagationHostToContainer, true, false),
        (MountPropagation::PropagationBidirectional, true, true),
    ] {
        let name = format!("{}", mode as i32);
        let mut config = container(&name, &image, &["sleep", "100000"]);
        config.security().privileged = true;
        config.mounts = vec![Mount {
            container_path: "/volume".into(),
            host_path: source.0.to_str().unwrap().into(),
            propagation: mode as i32,
            ..Default::default()
        }];
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let later = Tmpfs::new(&source.0.join(format!("later-{name}")));
        let line = format!("grep -c /volume/later-{name} /proc/mounts");
        assert_eq!(
            world.sh(&id, &format!("{line} || true")).await.trim(),
            u8::from(sees).to_string(),
            "{mode:?}"
        );
        world.sh(&id, &format!("mkdir /volume/own-{name} && mount -t tmpfs own /volume/own-{name}")).await;
        let own = source.0.join(format!("own-{name}"));
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert_eq!(table.contains(own.to_str().unwrap()), shows, "{mode:?}: {table}");
        drop(later);
        world.stop_container(&id, 0).await.unwrap();
        let _ = umount2(&own, MntFlags::MNT_DETACH);
    }
}

/// Each mount of a container has its own propagation, whatever the others have.
async fn propagation_mixed(world: &mut World) {
    let source = Tmpfs::new(&world.run.join("mixed"));
    let none: Option<&str> = None;
    mount(none, &source.0, none, MsFlags::MS_SHARED, none).unwrap();
    let image = world.image("busybox").await;
    let pod = world.pod("mixed");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let volume = |path: &str, propagation: MountPropagation| Mount {
        container_path: path.into(),
        host_path: source.0.to_str().unwrap().into(),
        propagation: propagation.into(),
        ..Default::default()
    };
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let all = [
        ("private", PropagationPrivate),
        ("slave", PropagationHostToContainer),
        ("shared", PropagationBidirectional),
    ];
    for (number, names) in
        [["private", "slave"], ["private", "shared"], ["slave", "shared"]].iter().enumerate()
    {
        for handler in ["", "runc"] {
            let mut config = container(&format!("m{number}{handler}"), &image, &["sleep", "100000"]);
            config.security().privileged = true;
            config.mounts = all
                .iter()
                .filter(|(name, _)| names.contains(name))
                .map(|(name, mode)| volume(&format!("/{name}"), *mode))
                .collect();
            let own_pod = world.pod(&format!("mixed-{number}-{handler}"));
            let (pod_id, pod) = if handler.is_empty() {
                (pod_id.clone(), pod.clone())
            } else {
                (world.run_pod_with(&own_pod, handler).await.unwrap(), own_pod)
            };
            let id = world.launch(&pod_id, &pod, &config).await.unwrap();
            let later = Tmpfs::new(&source.0.join("later"));
            for &name in names {
                let seen = world.sh(&id, &format!("grep -c ' /{name}/later ' /proc/mounts || true")).await;
                assert_eq!(
                    seen,
                    u8::from(name != "private").to_string(),
                    "{name} of {names:?} by {handler:?}"
                );
                world.sh(&id, &format!("mkdir -p /{name}/own && mount -t tmpfs own /{name}/own")).await;
                let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
                let own = source.0.join("own");
                let shows = table.contains(own.to_str().unwrap());
                assert_eq!(shows, name == "shared", "{name} of {names:?} by {handler:?}");
                world.sh(&id, &format!("umount /{name}/own")).await;
            }
            drop(later);
            world.stop_container(&id, 0).await.unwrap();
        }
    }
}

async fn recursive_read_only(world: &mut World) {
    let status = world.runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let features = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap().features;
    assert!(features.unwrap().recursive_read_only_mounts);
    let source = Tmpfs::new(&world.run.join("read-only"));
    let below = Tmpfs::new(&source.0.join("below"));
    let image = world.image("busybox").await;
    let line = "for path in /plain /whole; do touch $path/x 2>/dev/null && echo $path; \
                touch $path/below/x 2>/dev/null && echo $path/below; done; true";
    let mut config = script("main", &image, line);
    let volume = |path: &str, recursive_read_only| Mount {
        container_path: path.into(),
        host_path: source.0.to_str().unwrap().into(),
        readonly: true,
        recursive_read_only,
        ..Default::default()
    };
    config.mounts = vec![volume("/plain", false), volume("/whole", true)];
    let pod = world.pod("read-only");
    let (output, _) = world.output_of(&pod, &config).await;
    assert_eq!(output, "/plain/below\n");

    let pod = world.pod("writable");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut wrong = script("wrong", &image, "true");
    wrong.mounts = vec![Mount { readonly: false, ..volume("/whole", true) }];
    assert_code(world.create(&pod_id, &pod, &wrong).await, Code::InvalidArgument);
    drop(below);
}
