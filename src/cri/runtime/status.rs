//! Status: is the runtime ready, is the network, and what can the handlers do.

use std::collections::HashMap;

use tonic::Status;

use crate::cri::Handler;
use crate::proto::runtime::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

use super::RuntimeFace;

pub(super) async fn call(face: &RuntimeFace, request: StatusRequest) -> Result<StatusResponse, Status> {
    let network = match face.pods.network_ready() {
        Ok(()) => ready("NetworkReady"),
        Err(message) => RuntimeCondition {
            r#type: "NetworkReady".into(),
            status: false,
            reason: "NetworkNotReady".into(),
            message,
        },
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions: vec![ready("RuntimeReady"), network] }),
        info: if request.verbose { info(face).await } else { HashMap::new() },
        runtime_handlers: handlers(face),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: face.facts.supplemental_groups_policy,
            // What one handler can do beside a network namespace of the pod's own, it can do without.
            user_namespaces_host_network: face.facts.handlers.iter().any(|handler| handler.user_namespaces),
            ..Default::default()
        }),
    })
}

fn ready(name: &str) -> RuntimeCondition {
    RuntimeCondition { r#type: name.into(), status: true, ..Default::default() }
}

/// The default handler under the empty name, then each under its own.
fn handlers(face: &RuntimeFace) -> Vec<RuntimeHandler> {
    let facts = &face.facts;
    let default = facts.handlers.iter().find(|handler| handler.name == facts.default_runtime);
    let default = default.map(|handler| Handler { name: String::new(), ..handler.clone() });
    default
        .iter()
        .chain(&facts.handlers)
        .map(|handler| RuntimeHandler {
            name: handler.name.clone(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only_mounts,
                user_namespaces: handler.user_namespaces,
            }),
        })
        .collect()
}

async fn info(face: &RuntimeFace) -> HashMap<String, String> {
    let mut network = face.facts.network.clone();
    network["subnets"] = face.pods.subnets().iter().map(ToString::to_string).collect();
    let version = serde_json::json!({ "berth": face.facts.version, "api": "v1" });
    let checkpoint = serde_json::to_string(&face.pods.checkpoint_state().await).unwrap_or_default();
    HashMap::from([
        ("checkpoint".to_owned(), checkpoint),
        ("config".to_owned(), face.facts.config.to_string()),
        ("version".to_owned(), version.to_string()),
        ("features".to_owned(), face.facts.features.to_string()),
        ("network".to_owned(), network.to_string()),
    ])
}
