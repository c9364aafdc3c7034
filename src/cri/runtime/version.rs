//! Version: who answers, and which API.

use tonic::Status;

use crate::proto::runtime::v1::{VersionRequest, VersionResponse};

use super::RuntimeFace;

/// The version of the kubelet's own runtime API: the same since 2016, and the only one clients accept.
const KUBELET_API_VERSION: &str = "0.1.0";

pub(super) async fn call(face: &RuntimeFace, _: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: "berth".into(),
        runtime_version: face.facts.version.clone(),
        runtime_api_version: "v1".into(),
    })
}
