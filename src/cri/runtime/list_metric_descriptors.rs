//! ListMetricDescriptors: which metrics ListPodSandboxMetrics gives.

use tonic::Status;

use crate::cri::metrics;
use crate::proto::runtime::v1::{ListMetricDescriptorsRequest, ListMetricDescriptorsResponse};

use super::RuntimeFace;

pub(super) async fn call(
    _: &RuntimeFace,
    _: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, Status> {
    Ok(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
}
