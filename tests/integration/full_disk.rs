//! Directories without space: each call that needs some is refused with the reason, what runs goes on and can be stopped and
//! removed, and once there is space again all works, without a restart.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};
use tonic::Code;

use crate::support::World;
use crate::support::spec;
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![no_space_for_state, no_space_for_images_and_roots]
}

/// Ends the daemon, mounts an empty file system of `size` at `directory`, and starts the daemon again on it.
async fn move_to_small(world: &mut World, directory: &Path, size: &str) {
    assert!(world.daemon.terminate());
    let options = format!("size={size},mode=711");
    mount(Some("small"), directory, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    world.daemon.spawn();
    world.ready().await;
}

/// Leaves no byte; gives the file that took them.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).unwrap();
    for chunk in [vec![0; 1 << 16], vec![0; 1 << 8]] {
        while file.write_all(&chunk).is_ok() {}
    }
    path
}

async fn no_space_for_state(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let state = world.daemon.state.clone();
    move_to_small(world, &state, "6m").await;
    let pod = world.pod("before");
    let before = world.run_pod(&pod).await.unwrap();
    let container = world.sleeper(&before, &pod).await;
    let _ = world.address(&before).await;

    let filler = fill(&state);
    for round in 0..3 {
        let said =
            assert_code(world.run_pod(&world.pod(&format!("full-{round}"))).await, Code::ResourceExhausted);
        assert!(said.contains("No space left on device") && said.contains(state.to_str().unwrap()), "{said}");
    }
    let config = spec::container("full", &world.image("busybox").await, &["true"]);
    let said = assert_code(world.create(&before, &pod, &config).await, Code::ResourceExhausted);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(world.list_pods().await.unwrap().len(), 1, "refused pods are not there");
    assert_eq!(world.list_containers().await.unwrap().len(), 1, "nor are containers");

    // What is there goes on, and can be taken away.
    assert_eq!(world.sh(&container, "echo here").await, "here");
    world.stop_container(&container, 0).await.unwrap();
    world.remove_container(&container).await.unwrap();
    world.stop_pod(&before).await.unwrap();
    world.remove_pod(&before).await.unwrap();
    assert!(world.list_pods().await.unwrap().is_empty());

    std::fs::remove_file(filler).unwrap();
    let (_, id) = world.pod_with_sleeper("after").await;
    assert_eq!(world.sh(&id, "echo again").await, "again");
    // The records are whole: the next daemon finds the same.
    world.crash_and_restart().await;
    assert_eq!(world.list_pods().await.unwrap().len(), 1);
    assert_eq!(world.sh(&id, "echo still").await, "still");
}

async fn no_space_for_images_and_roots(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let root = world.daemon.root.clone();
    move_to_small(world, &root, "32m").await;
    let (pod_id, id) = world.pod_with_sleeper("before").await;
    let kept = world.list_images().await.unwrap().len();

    let filler = fill(&root);
    let said = assert_code(world.pull(&world.reference("web")).await, Code::ResourceExhausted);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(world.list_images().await.unwrap().len(), kept, "no image is half there");
    assert_eq!(world.sh(&id, "echo data > /file || echo full").await, "full");
    let pod = spec::pod("second");
    let config = spec::container("second", &world.reference("busybox"), &["true"]);
    if let Err(status) = world.create(&pod_id, &pod, &config).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    assert!(world.list_pods().await.unwrap().is_empty() && world.list_containers().await.unwrap().is_empty());

    std::fs::remove_file(filler).unwrap();
    world.pull(&world.reference("web")).await.unwrap();
    let (_, id) = world.pod_with_sleeper("after").await;
    assert_eq!(world.sh(&id, "echo data > /file && cat /file").await, "data");
}
