//! Export: writes images as an archive that leaves in pieces.

use futures::{StreamExt, stream::BoxStream};
use tokio_util::io::ReaderStream;
use tonic::Status;

use crate::api::stream;
use crate::cri::status_of;
use crate::image::Images;
use crate::proto::berth::v1::{ExportRequest, ExportResponse};

/// Images in one archive at most.
const MOST: usize = 256;
/// Bytes between the writer and the connection, and in one message: the writer waits when the client reads slowly.
const BUFFER: usize = 256 << 10;

pub(super) fn call(
    images: Images,
    request: ExportRequest,
) -> Result<BoxStream<'static, Result<ExportResponse, Status>>, Status> {
    let names = request.references;
    if names.is_empty() || names.len() > MOST {
        return Err(Status::invalid_argument(format!("references must be 1 to {MOST}")));
    }
    if let Some(missing) = names.iter().find(|name| images.get(name).is_none()) {
        return Err(Status::not_found(format!("image {missing:?} not found")));
    }
    let (sink, source) = tokio::io::duplex(BUFFER);
    let work = async move { images.export(&names, sink).await.map_err(status_of) };
    let pieces = ReaderStream::with_capacity(source, BUFFER).map(|piece| {
        // The pipe's own end can't fail; the writer's failure is the work's outcome.
        piece
            .map(|chunk| ExportResponse { chunk: chunk.into() })
            .map_err(|error| Status::internal(format!("reading the archive: {error}")))
    });
    Ok(stream::of_work(pieces, work, |()| None).boxed())
}
