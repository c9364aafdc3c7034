//! GetContainerEvents.

use std::time::Instant;

use futures::StreamExt;
use k8s_cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use libtest_mimic::Trial;
use tonic::{Code, Streaming};

use crate::support::measure::anonymous;
use crate::support::runtime::Options;
use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let mut list = trials![order_and_statuses, the_daemons_end];
    let options = Options { limit: 900, ..Options::default() };
    list.extend(trials![options = options; a_subscriber_that_does_not_read]);
    list
}

async fn subscribe(world: &World) -> Streaming<ContainerEventResponse> {
    world.own_runtime().get_container_events(GetEventsRequest {}).await.unwrap().into_inner()
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    let event = tokio::time::timeout(crate::support::patience(20), events.next()).await;
    event.expect("an event in time").expect("no end").unwrap()
}

/// Several subscribers are told the same, in the order in which it happened, with the statuses of that moment.
async fn order_and_statuses(world: &mut World) {
    let image = world.image("busybox").await;
    let mut subscribers = Vec::new();
    for _ in 0..5 {
        subscribers.push(subscribe(world).await);
    }
    let pod = world.pod("told");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.launch(&pod_id, &pod, &container("main", &image, &["sleep", "100000"])).await.unwrap();
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    use ContainerEventType::{ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted};
    use ContainerEventType::{ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped};
    let expected = [
        (&pod_id, Created),
        (&pod_id, Started),
        (&id, Created),
        (&id, Started),
        (&id, Stopped),
        (&id, Deleted),
        (&pod_id, Stopped),
        (&pod_id, Deleted),
    ];
    let mut told = Vec::new();
    for events in &mut subscribers {
        let mut all = Vec::new();
        for (of, kind) in expected {
            let event = next(events).await;
            assert_eq!((&event.container_id, event.container_event_type()), (of, kind));
            all.push(event);
        }
        told.push(all);
    }
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "all are told the same");
    let all = &told[0];
    assert!(all.windows(2).all(|pair| pair[0].created_at <= pair[1].created_at), "times grow");
    let state = |index: usize| {
        all[index].containers_statuses.iter().find(|status| status.id == id).map(|status| status.state())
    };
    assert_eq!(state(2), Some(ContainerState::ContainerCreated));
    assert_eq!(state(3), Some(ContainerState::ContainerRunning));
    assert_eq!(state(4), Some(ContainerState::ContainerExited));
    assert_eq!(state(5), None);
    let pod_state =
        |index: usize| all[index].pod_sandbox_status.as_ref().map(k8s_cri::v1::PodSandboxStatus::state);
    assert_eq!(pod_state(1), Some(PodSandboxState::SandboxReady));
    assert_eq!(pod_state(6), Some(PodSandboxState::SandboxNotready));
}

/// It is let go with an error; meanwhile the daemon does not grow, and others miss nothing.
async fn a_subscriber_that_does_not_read(world: &mut World) {
    // Two events each: more than the daemon keeps for a subscriber, and than fits into what lies between us.
    const ROUNDS: usize = 600;
    let image = world.image("busybox").await;
    let pod = world.pod("unread");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..5 {
        slow.push(subscribe(world).await);
    }
    let mut quick = subscribe(world).await;
    let reading = tokio::spawn(async move {
        let mut seen = 0usize;
        while seen < ROUNDS * 2 {
            let event = next(&mut quick).await;
            seen += usize::from(matches!(
                event.container_event_type(),
                ContainerEventType::ContainerCreatedEvent | ContainerEventType::ContainerDeletedEvent
            ));
        }
        seen
    });
    let round = async |number: usize| {
        let mut config = container(&format!("main-{number}"), &image, &["true"]);
        config.annotations = (0..2).map(|index| (format!("key-{index}"), "x".repeat(16 << 10))).collect();
        let id = world.create(&pod_id, &pod, &config).await.unwrap();
        world.remove_container(&id).await.unwrap();
    };
    let rounds = async |numbers: std::ops::Range<usize>| {
        futures::stream::iter(numbers).map(round).buffer_unordered(4).collect::<Vec<()>>().await;
    };
    rounds(0..ROUNDS / 3).await;
    let before = anonymous(world.daemon.pid());
    rounds(ROUNDS / 3..ROUNDS).await;
    let after = anonymous(world.daemon.pid());
    assert!(after < before + (64 << 10), "{before} KiB after a third, {after} KiB after all");
    assert_eq!(reading.await.unwrap(), ROUNDS * 2, "who reads misses nothing");
    for mut events in slow {
        let deadline = within(20);
        let end = loop {
            match tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), events.next())
                .await
            {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(status))) => break status,
                Ok(None) => panic!("it ended as if all had been told"),
                Err(_) => panic!("it was not let go"),
            }
        };
        assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
        assert!(end.message().contains("subscribe again"), "{end:?}");
    }
}

/// Subscribers do not hold up the daemon's stop, and are told of it.
async fn the_daemons_end(world: &mut World) {
    let mut events = subscribe(world).await;
    let deadline = within(10);
    world.restart().await;
    assert!(Instant::now() < deadline, "the daemon waited for who subscribes");
    let end = events.next().await.expect("an end").unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}
