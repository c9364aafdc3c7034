//! Pod sandboxes: run, status, list, stop, remove.

use k8s_cri::v1::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStateValue, PodSandboxStatusRequest,
};
use libtest_mimic::Trial;
use tonic::Code;

use crate::support::World;
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![life_of_a_pod, list_filters, status_carries_what_was_asked, restart_keeps_nothing_of_removed_pods]
}

async fn life_of_a_pod(world: &mut World) {
    let config = world.pod("life");
    let id = world.run_pod(&config).await.unwrap();
    assert_eq!(id.len(), 64, "{id}");
    let status = world.pod_status(&id).await.unwrap();
    assert_eq!(status.state, i32::from(PodSandboxState::SandboxReady));
    assert_eq!(status.metadata, config.metadata);
    let network = status.network.unwrap();
    assert!(network.ip.starts_with("10.85."), "{network:?}");
    assert!(network.additional_ips[0].ip.starts_with("fd85:be:27:"), "{network:?}");

    world.stop_pod(&id).await.unwrap();
    let status = world.pod_status(&id).await.unwrap();
    assert_eq!(status.state, i32::from(PodSandboxState::SandboxNotready));
    world.stop_pod(&id).await.unwrap();

    world.remove_pod(&id).await.unwrap();
    assert_code(world.pod_status(&id).await, Code::NotFound);
    world.remove_pod(&id).await.unwrap();
    world.no_leaks();
}

async fn list_filters(world: &mut World) {
    let (a, b) = (world.pod("a"), world.pod("b"));
    let a = world.run_pod(&a).await.unwrap();
    let b = world.run_pod(&b).await.unwrap();
    world.stop_pod(&b).await.unwrap();
    let list = async |filter: PodSandboxFilter| {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let items = world.runtime().list_pod_sandbox(request).await.unwrap().into_inner().items;
        items.into_iter().map(|item| item.id).collect::<Vec<_>>()
    };
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let mut all = list(PodSandboxFilter::default()).await;
    all.sort();
    let mut both = vec![a.clone(), b.clone()];
    both.sort();
    assert_eq!(all, both);
    let ready = PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() };
    assert_eq!(list(ready).await, [a.as_str()]);
    let stopped = PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..Default::default() };
    assert_eq!(list(stopped).await, [b.as_str()]);
    assert_eq!(list(PodSandboxFilter { id: a.clone(), ..Default::default() }).await, [a.as_str()]);
    assert_eq!(list(PodSandboxFilter { id: a[..12].to_owned(), ..Default::default() }).await, [a.as_str()]);
    let labels = |value: &str| PodSandboxFilter {
        label_selector: [("app".to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(list(labels("b")).await, [b]);
    assert!(list(labels("c")).await.is_empty());
    assert!(list(PodSandboxFilter { id: "0123".into(), ..Default::default() }).await.is_empty());
}

async fn status_carries_what_was_asked(world: &mut World) {
    let mut config = world.pod("status");
    config.annotations.insert("example.org/note".into(), "a note".into());
    let id = world.run_pod(&config).await.unwrap();
    let status = world.pod_status(&id[..16]).await.unwrap();
    assert_eq!(status.id, id);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert!(status.created_at > 1_700_000_000_000_000_000, "{}", status.created_at);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(Some(options), config.linux.unwrap().security_context.unwrap().namespace_options);
    let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
    let verbose = world.runtime().pod_sandbox_status(request).await.unwrap().into_inner();
    assert!(!verbose.info.is_empty());
}

async fn restart_keeps_nothing_of_removed_pods(world: &mut World) {
    let config = world.pod("short");
    let id = world.run_pod(&config).await.unwrap();
    world.stop_pod(&id).await.unwrap();
    world.remove_pod(&id).await.unwrap();
    world.restart().await;
    assert!(world.list_pods().await.unwrap().is_empty());
    world.no_leaks();
}
