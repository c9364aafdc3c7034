//! UpdateRuntimeConfig: the node's pod CIDR, told by the kubelet.

use ipnetwork::IpNetwork;
use tonic::Status;

use crate::proto::runtime::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

use super::RuntimeFace;

/// Checks the CIDRs and says them in the log: the built-in network takes its pools from the configuration.
pub(super) async fn call(
    _: &RuntimeFace,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
    // Dual stack comes as two, separated by a comma.
    for cidr in pod_cidr.split(',').filter(|cidr| !cidr.is_empty()) {
        if cidr.trim().parse::<IpNetwork>().is_err() {
            let message = format!("runtime_config.network_config.pod_cidr is no subnet: {cidr:?}");
            return Err(Status::invalid_argument(message));
        }
    }
    tracing::info!(pod_cidr, "told of the node's pod CIDR");
    Ok(UpdateRuntimeConfigResponse {})
}
