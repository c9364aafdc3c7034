//! Overlay networks: the other nodes are told what pods and containers are called.

use std::sync::Arc;

use berth_cni::Controller;
use berth_cni::overlay::Names;
use futures::StreamExt;

use crate::pod::{EventKind, Pods};

/// Begins to take part, now that the pods are known.
pub(super) fn serve(pods: &Pods, networks: &Controller) {
    if networks.overlay_status().is_none() {
        return;
    }
    let named = pods.clone();
    networks.serve_overlay(Arc::new(move |id| names(&named, id)));
    tokio::spawn(announce(pods.clone(), networks.clone()));
}

/// Pods show up after they have joined their networks, and containers come and go: each time the names are written anew.
async fn announce(pods: Pods, networks: Controller) {
    loop {
        let events = crate::events::subscribe(&pods);
        futures::pin_mut!(events);
        loop {
            match events.next().await {
                Some(Ok(event)) if matches!(event.kind, EventKind::Created | EventKind::Deleted) => {
                    networks.announce();
                }
                Some(Ok(_)) => {}
                // Some were missed under great load: they may have been of these.
                Some(Err(crate::events::Error::FellBehind { .. })) => {
                    networks.announce();
                    break;
                }
                Some(Err(crate::events::Error::ShuttingDown)) | None => return,
            }
        }
    }
}

/// What a pod and its containers are called.
fn names(pods: &Pods, id: &str) -> Names {
    let Some(pod) = pods.pods().into_iter().find(|pod| pod.id == id) else { return Names::default() };
    let metadata = pod.config.metadata.as_ref();
    let mut containers: Vec<String> = pod
        .containers
        .iter()
        .filter_map(|container| container.config.metadata.as_ref())
        .map(|metadata| metadata.name.clone())
        .collect();
    containers.sort();
    containers.dedup();
    Names {
        name: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
        namespace: metadata.map(|metadata| metadata.namespace.clone()).unwrap_or_default(),
        containers,
    }
}
