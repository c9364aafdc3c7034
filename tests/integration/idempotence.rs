//! Calls that come twice, together or after each other.

use berth::proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use berth::proto::runtime::v1::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use futures::future::join_all;
use k8s_cri::v1::{ContainerStatsRequest, NamespaceMode, PodSandboxState, PodSandboxStatsRequest};
use libtest_mimic::Trial;
use tonic::{Code, Status};

use crate::support::World;
use crate::support::container;
use crate::support::spec::PodOptions;
use crate::support::streaming::Streams;
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        what_is_gone_is_stopped_and_removed,
        a_retry_joins_the_call_under_way,
        taken_metadata_is_refused,
        a_prefix_of_two_is_none,
        updates_of_a_pod_beside_its_end,
        a_failed_create_frees_the_metadata,
        stops_and_removes_together,
        a_caller_that_goes_away,
    ]
}

async fn what_is_gone_is_stopped_and_removed(world: &mut World) {
    let unknown = "0".repeat(64);
    world.stop_pod(&unknown).await.unwrap();
    world.remove_pod(&unknown).await.unwrap();
    world.stop_container(&unknown, 1).await.unwrap();
    world.remove_container(&unknown).await.unwrap();
    let request =
        k8s_cri::v1::RemoveImageRequest { image: Some(crate::support::world::image_spec("no/such:image")) };
    world.images().remove_image(request).await.unwrap();
}

async fn a_retry_joins_the_call_under_way(world: &mut World) {
    if !world.is_berth() {
        return; // there: "name is reserved"
    }
    let pod = world.pod("joined");
    let answers = futures::future::join_all((0..4).map(|_| world.run_pod(&pod))).await;
    let first = answers[0].as_ref().unwrap().clone();
    for answer in answers {
        match answer {
            Ok(id) => assert_eq!(id, first),
            // One that came after the first had ended.
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status:?}"),
        }
    }
    let image = world.image("busybox").await;
    let config = container("main", &image, &["sleep", "1000"]);
    let answers = futures::future::join_all((0..4).map(|_| world.create(&first, &pod, &config))).await;
    let id = answers[0].as_ref().unwrap().clone();
    for answer in answers {
        match answer {
            Ok(other) => assert_eq!(other, id),
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status:?}"),
        }
    }
    assert_eq!(world.list_pods().await.unwrap().len(), 1);
    assert_eq!(world.list_containers().await.unwrap().len(), 1);
}

async fn taken_metadata_is_refused(world: &mut World) {
    let pod = world.pod("taken");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let error = world.run_pod(&pod).await.unwrap_err();
    assert!(error.message().contains(&pod_id[..12]), "says by whom: {error:?}");
    let image = world.image("busybox").await;
    let config = container("main", &image, &["sleep", "1000"]);
    let id = world.create(&pod_id, &pod, &config).await.unwrap();
    let error = world.create(&pod_id, &pod, &config).await.unwrap_err();
    assert!(error.message().contains(&id[..12]), "says by whom: {error:?}");
    // Another attempt is another thing.
    let mut next = pod.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    world.run_pod(&next).await.unwrap();
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    world.create(&pod_id, &pod, &next).await.unwrap();
    // Removed metadata is free again.
    world.remove_container(&id).await.unwrap();
    world.create(&pod_id, &pod, &config).await.unwrap();
}

/// Who shortens an id too much is told so: success would mean that the pod is stopped.
async fn a_prefix_of_two_is_none(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let mut pods: Vec<String> = Vec::new();
    // Sixteen first digits: at the seventeenth pod at the latest.
    let prefix = loop {
        let mut pod = world.pod(&format!("prefix-{}", pods.len()));
        pod.security().namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
        let id = world.run_pod(&pod).await.unwrap();
        let first = id[..1].to_owned();
        let taken = pods.iter().any(|other| other.starts_with(&first));
        pods.push(id);
        if taken {
            break first;
        }
    };
    for answer in [world.stop_pod(&prefix).await, world.remove_pod(&prefix).await] {
        assert!(assert_code(answer, Code::InvalidArgument).contains("more than one"));
    }
    let ambiguous = |status: Status| {
        let message = status.message();
        assert!(status.code() == Code::InvalidArgument && message.contains("more than one"), "{status:?}");
    };
    let mut runtime = world.runtime();
    ambiguous(world.pod_status(&prefix).await.unwrap_err());
    let request = PodSandboxStatsRequest { pod_sandbox_id: prefix.clone() };
    ambiguous(runtime.pod_sandbox_stats(request).await.unwrap_err());
    ambiguous(world.forward_url(&prefix).await.unwrap_err());
    let ready = i32::from(PodSandboxState::SandboxReady);
    for pod in world.list_pods().await.unwrap() {
        assert_eq!(pod.state, ready);
    }
    // None at all is stopped and removed already.
    let none = "no-such-pod";
    world.stop_pod(none).await.unwrap();
    world.remove_pod(none).await.unwrap();
    assert_eq!(world.pod_status(none).await.unwrap_err().code(), Code::NotFound);

    let (image, config) = (world.image("busybox").await, world.pod("prefix-0"));
    let mut containers: Vec<String> = Vec::new();
    let prefix = loop {
        let name = format!("c{}", containers.len());
        let id = world.create(&pods[0], &config, &container(&name, &image, &["true"])).await.unwrap();
        let first = id[..1].to_owned();
        let taken = containers.iter().any(|other| other.starts_with(&first));
        containers.push(id);
        if taken {
            break first;
        }
    };
    ambiguous(world.status(&prefix).await.unwrap_err());
    let request = ContainerStatsRequest { container_id: prefix.clone() };
    ambiguous(runtime.container_stats(request).await.unwrap_err());
    let streams = Streams { stdout: true, ..Streams::default() };
    ambiguous(world.exec_url(&prefix, &["true"], streams).await.unwrap_err());
    ambiguous(world.attach_url(&prefix, streams).await.unwrap_err());
    assert_eq!(world.status(none).await.unwrap_err().code(), Code::NotFound);
}

/// Its record is written by all of them: the last one counts, and nothing is written of a pod that is gone.
async fn updates_of_a_pod_beside_its_end(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let pod_id = world.run_pod(&world.pod("updated")).await.unwrap();
    let record = world.daemon.root.join("records/pods").join(&pod_id);
    let updates = |world: &World, shares: i64| {
        let client = RuntimeServiceClient::new(world.channel());
        let resources = Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() });
        let request =
            UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod_id.clone(), overhead: None, resources };
        join_all((0..64).map(move |_| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.update_pod_sandbox_resources(request).await }
        }))
    };
    for answer in updates(world, 512).await {
        answer.unwrap();
    }
    let (answers, stopped) = tokio::join!(updates(world, 513), world.stop_pod(&pod_id));
    stopped.unwrap();
    for answer in answers {
        answer.unwrap();
    }
    // The record is whole, and says that the pod was stopped.
    world.crash_and_restart().await;
    let status = world.pod_status(&pod_id).await.unwrap();
    assert_eq!(status.state, i32::from(PodSandboxState::SandboxNotready));
    let (answers, removed) = tokio::join!(updates(world, 514), world.remove_pod(&pod_id));
    removed.unwrap();
    for answer in answers {
        // One that came too late has none any more.
        assert!(
            answer.is_ok() || answer.as_ref().is_err_and(|status| status.code() == Code::NotFound),
            "{answer:?}"
        );
    }
    assert!(!record.exists(), "nothing wrote it again");
}

async fn a_failed_create_frees_the_metadata(world: &mut World) {
    let pod = world.pod("failed");
    assert!(world.run_pod_with(&pod, "no-such-handler").await.is_err());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = container("main", "no/such/image:1", &["true"]);
    assert!(world.create(&pod_id, &pod, &config).await.is_err());
    let image = world.image("busybox").await;
    let config = container("main", &image, &["true"]);
    let id = world.create(&pod_id, &pod, &config).await.unwrap();
    world.start_container(&id).await.unwrap();
}

async fn stops_and_removes_together(world: &mut World) {
    let (pod_id, id) = world.pod_with_sleeper("together").await;
    let stops = futures::future::join_all((0..4).map(|_| world.stop_container(&id, 0))).await;
    assert!(stops.iter().all(Result::is_ok), "{stops:?}");
    let stops = futures::future::join_all((0..4).map(|_| world.stop_pod(&pod_id))).await;
    assert!(stops.iter().all(Result::is_ok), "{stops:?}");
    if world.is_berth() {
        let removals = futures::future::join_all((0..4).map(|_| world.remove_pod(&pod_id))).await;
        assert!(removals.iter().all(Result::is_ok), "{removals:?}");
    }
    world.remove_pod(&pod_id).await.unwrap();
    assert_code(world.pod_status(&pod_id).await, Code::NotFound);
}

/// The kubelet's deadline passes in the middle of a call: whatever the daemon makes of the first call, the
/// retry ends well and nothing is there twice.
async fn a_caller_that_goes_away(world: &mut World) {
    let image = world.image("busybox").await;
    for moment in [0, 1, 3, 8, 20, 60] {
        let limit = std::time::Duration::from_millis(moment);
        let pod = world.pod(&format!("away-{moment}"));
        let _ = tokio::time::timeout(limit, world.run_pod(&pod)).await;
        let pod_id = settled(world.run_pod(&pod), async || {
            let pods = world.list_pods().await.unwrap();
            pods.into_iter().find(|item| item.metadata == pod.metadata).map(|item| item.id)
        })
        .await;
        let config = container("main", &image, &["sleep", "1000"]);
        let _ = tokio::time::timeout(limit, world.create(&pod_id, &pod, &config)).await;
        let id = settled(world.create(&pod_id, &pod, &config), async || {
            world.list_containers().await.unwrap().into_iter().next().map(|item| item.id)
        })
        .await;
        world.start_container(&id).await.unwrap();
        assert_eq!(world.list_pods().await.unwrap().len(), 1);
        assert_eq!(world.list_containers().await.unwrap().len(), 1);
        world.remove_pod(&pod_id).await.unwrap();
    }
}

/// The id that a retry ends with: its own answer, or that of the first call, which the list shows in the end.
async fn settled(
    retry: impl Future<Output = Result<String, tonic::Status>>,
    listed: impl AsyncFn() -> Option<String>,
) -> String {
    match retry.await {
        Ok(id) => id,
        Err(status) => {
            for _ in 0..100 {
                if let Some(id) = listed().await {
                    return id;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("neither made nor there: {status:?}");
        }
    }
}
