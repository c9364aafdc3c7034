//! StreamContainers: ListContainers as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamContainersRequest, StreamContainersResponse};

use super::{RuntimeFace, list_containers};

pub(super) async fn call(
    face: &RuntimeFace,
    request: StreamContainersRequest,
) -> Result<Answers<StreamContainersResponse>, Status> {
    let items = list_containers::items(face, request.filter.as_ref());
    Ok(stream::chunks(items, |containers| StreamContainersResponse { containers }))
}
