//! PodSandboxStats: what one pod uses.

use tonic::Status;

use crate::cri::{status, trace, usage, validate};
use crate::proto::runtime::v1::{PodSandboxStatsRequest, PodSandboxStatsResponse};
use crate::stats::Depth;

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    let pod = face.pods.find_pod(id).map_err(status::of)?;
    if !pod.ready {
        // As containerd answers: the pod may be on its way, or gone soon.
        return Err(Status::unavailable(format!(
            "pod sandbox {} is not ready: it has no statistics",
            pod.id
        )));
    }
    let readings = face.stats.pods(vec![pod], Depth::Usage).await;
    let stats = readings.first().map(|reading| usage::pod(&face.stats, reading));
    Ok(PodSandboxStatsResponse { stats })
}
