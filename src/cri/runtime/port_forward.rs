//! PortForward: prepares a session that connects a client to ports of a pod; answers where to connect.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{PortForwardRequest, PortForwardResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    if let Some(port) = request.port.iter().find(|port| !(1..=65535).contains(*port)) {
        return Err(Status::invalid_argument(format!("port: {port} is no port")));
    }
    // Clients name the port of each connection anew; these are what the first clients asked for.
    let url = face.streaming.port_forward(id).map_err(status::of)?;
    Ok(PortForwardResponse { url })
}
