//! Top: the processes of a container.

use std::path::PathBuf;

use tonic::Status;

use super::ContainersFace;
use crate::cgroup::Mode;
use crate::container::ContainerState;
use crate::cri::status_of;
use crate::proto::berth::v1::{Process, TopRequest, TopResponse};
use crate::stats::{ProcessInfo, processes};

pub(super) async fn call(face: &ContainersFace, request: TopRequest) -> Result<TopResponse, Status> {
    let container = face.container(&request.container_id)?;
    let ContainerState::Running { .. } = container.state else {
        return Err(Status::failed_precondition(format!("container {} is not running", container.id)));
    };
    let cgroup = PathBuf::from(&container.cgroups_path);
    let listed = tokio::task::spawn_blocking(move || processes(Mode::detect(), &cgroup))
        .await
        .map_err(|error| Status::internal(format!("listing processes: {error}")))?;
    Ok(TopResponse { processes: listed.map_err(status_of)?.into_iter().map(message).collect() })
}

fn message(process: ProcessInfo) -> Process {
    let ProcessInfo {
        pid,
        parent,
        inner_pid,
        uid,
        state,
        threads,
        resident_bytes,
        cpu_nanos,
        started_at,
        command,
    } = process;
    Process {
        pid,
        parent_pid: parent,
        container_pid: inner_pid,
        uid,
        state,
        threads,
        resident_bytes,
        cpu_nanos,
        started_at,
        command,
    }
}
