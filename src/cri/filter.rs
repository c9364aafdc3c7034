//! What a list shows: ids by prefix, states, labels. Fields of a filter that are set must all fit.

use std::collections::HashMap;

use crate::container::ContainerSnapshot;
use crate::pod::PodSnapshot;
use crate::proto::runtime::v1::{
    ContainerFilter, ContainerStatsFilter, PodSandboxFilter, PodSandboxStatsFilter,
};

use super::message;

/// Whether a pod is in the list.
pub(crate) fn pod(filter: Option<&PodSandboxFilter>, pod: &PodSnapshot) -> bool {
    let Some(filter) = filter else { return true };
    pod.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(message::pod_state(pod)))
        && labels(&filter.label_selector, &pod.config.labels)
}

/// Whether a container is in the list.
pub(crate) fn container(filter: Option<&ContainerFilter>, container: &ContainerSnapshot) -> bool {
    let Some(filter) = filter else { return true };
    container.id.starts_with(&filter.id)
        && container.pod_id.starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == i32::from(message::container_state(&container.state)))
        && labels(&filter.label_selector, &container.config.labels)
}

/// Whether a pod's statistics are in the list.
pub(crate) fn pod_stats(filter: Option<&PodSandboxStatsFilter>, pod: &PodSnapshot) -> bool {
    let Some(filter) = filter else { return true };
    pod.id.starts_with(&filter.id) && labels(&filter.label_selector, &pod.config.labels)
}

/// Whether a container's statistics are in the list.
pub(crate) fn container_stats(filter: Option<&ContainerStatsFilter>, container: &ContainerSnapshot) -> bool {
    let Some(filter) = filter else { return true };
    container.id.starts_with(&filter.id)
        && container.pod_id.starts_with(&filter.pod_sandbox_id)
        && labels(&filter.label_selector, &container.config.labels)
}

fn labels(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::ContainerState;
    use crate::cri::fixtures;
    use crate::proto::runtime::v1::{
        ContainerState as State, ContainerStateValue, PodSandboxState, PodSandboxStateValue,
    };

    fn selector(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn pods_by_id_state_and_labels() {
        let snapshot = fixtures::pod("aabb", "web");
        let shown = |filter: PodSandboxFilter| pod(Some(&filter), &snapshot);
        assert!(pod(None, &snapshot));
        assert!(shown(PodSandboxFilter::default()));
        assert!(shown(PodSandboxFilter { id: "aa".into(), ..Default::default() }));
        assert!(!shown(PodSandboxFilter { id: "bb".into(), ..Default::default() }));
        let state = |state: PodSandboxState| PodSandboxFilter {
            state: Some(PodSandboxStateValue { state: state.into() }),
            ..Default::default()
        };
        assert!(shown(state(PodSandboxState::SandboxReady)));
        assert!(!shown(state(PodSandboxState::SandboxNotready)));
        let labelled = |pairs| PodSandboxFilter { label_selector: selector(pairs), ..Default::default() };
        assert!(shown(labelled(&[("app", "web")])));
        assert!(!shown(labelled(&[("app", "web"), ("tier", "front")])));
        assert!(!shown(labelled(&[("app", "db")])));
    }

    #[test]
    fn statistics_by_id_pod_and_labels() {
        let snapshot = fixtures::container("cc11", "aabb", ContainerState::Created);
        let shown = |filter: ContainerStatsFilter| container_stats(Some(&filter), &snapshot);
        assert!(container_stats(None, &snapshot) && shown(ContainerStatsFilter::default()));
        assert!(shown(ContainerStatsFilter { id: "cc".into(), ..Default::default() }));
        assert!(!shown(ContainerStatsFilter { id: "cc12".into(), ..Default::default() }));
        assert!(!shown(ContainerStatsFilter { pod_sandbox_id: "b".into(), ..Default::default() }));
        assert!(shown(ContainerStatsFilter {
            label_selector: selector(&[("part", "nginx")]),
            ..Default::default()
        }));
        assert!(!shown(ContainerStatsFilter {
            label_selector: selector(&[("x", "y")]),
            ..Default::default()
        }));
        let snapshot = fixtures::pod("aabb", "web");
        let shown = |filter: PodSandboxStatsFilter| pod_stats(Some(&filter), &snapshot);
        assert!(pod_stats(None, &snapshot));
        assert!(shown(PodSandboxStatsFilter {
            id: "aa".into(),
            label_selector: selector(&[("app", "web")])
        }));
        assert!(!shown(PodSandboxStatsFilter { id: "b".into(), ..Default::default() }));
        assert!(!shown(PodSandboxStatsFilter {
            label_selector: selector(&[("app", "db")]),
            ..Default::default()
        }));
    }

    #[test]
    fn containers_by_id_pod_state_and_labels() {
        let snapshot = fixtures::container("cc11", "aabb", ContainerState::Created);
        let shown = |filter: ContainerFilter| container(Some(&filter), &snapshot);
        assert!(container(None, &snapshot));
        assert!(shown(ContainerFilter { id: "cc".into(), ..Default::default() }));
        assert!(!shown(ContainerFilter { id: "11".into(), ..Default::default() }));
        assert!(shown(ContainerFilter { pod_sandbox_id: "aab".into(), ..Default::default() }));
        assert!(!shown(ContainerFilter { pod_sandbox_id: "b".into(), ..Default::default() }));
        let state = |state: State| ContainerFilter {
            state: Some(ContainerStateValue { state: state.into() }),
            ..Default::default()
        };
        assert!(shown(state(State::ContainerCreated)));
        assert!(!shown(state(State::ContainerRunning)));
        assert!(!shown(ContainerFilter { label_selector: selector(&[("x", "y")]), ..Default::default() }));
    }
}
