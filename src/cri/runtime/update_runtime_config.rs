//! UpdateRuntimeConfig: the node's pod CIDR, told by the kubelet.

use ipnetwork::IpNetwork;
use tonic::Status;

use crate::cri::status;
use crate::pod::PodCidrs;
use crate::proto::runtime::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

use super::RuntimeFace;

/// Far more than two, and no reason to read on.
const CIDRS_MAX: usize = 16;

/// Makes the CIDRs the default network's subnets. Where CNI plugins attach pods there is nothing to do: they have subnets of
/// their own, and no configuration of theirs is written for them.
pub(super) async fn call(
    face: &RuntimeFace,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
    // Dual stack comes as two, separated by a comma; the kubelet sends nothing while the node has none.
    let texts = pod_cidr.split(',').map(str::trim).filter(|text| !text.is_empty());
    let parse = |text: &str| {
        text.parse::<IpNetwork>().map_err(|_| {
            let message = format!("runtime_config.network_config.pod_cidr is no subnet: {text:?}");
            Status::invalid_argument(message)
        })
    };
    let cidrs = texts.take(CIDRS_MAX).map(parse).collect::<Result<Vec<_>, _>>()?;
    if cidrs.is_empty() {
        return Ok(UpdateRuntimeConfigResponse {});
    }
    match face.pods.set_cidrs(cidrs).await.map_err(status::of)? {
        PodCidrs::Changed => tracing::info!(pod_cidr, "the node's pod CIDR is the default network's"),
        PodCidrs::Unchanged => tracing::debug!(pod_cidr, "told of the node's pod CIDR again"),
        PodCidrs::Ignored(reason) => tracing::info!(pod_cidr, reason, "the node's pod CIDR is not used"),
    }
    Ok(UpdateRuntimeConfigResponse {})
}
