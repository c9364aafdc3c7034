//! StatPath, ReadFiles, WriteFiles: files into and out of containers.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use rustix::fs::FileType;
use tokio_util::io::{ReaderStream, StreamReader};
use tonic::Status;

use super::ContainersFace;
use crate::api::stream;
use crate::container::{ContainerState, Files};
use crate::cri::status_of;
use crate::image::LayerHold;
use crate::proto::berth::v1::stat_path_response::Kind;
use crate::proto::berth::v1::write_files_request::{Part, Target};
use crate::proto::berth::v1::{
    ReadFilesRequest, ReadFilesResponse, StatPathRequest, StatPathResponse, WriteFilesRequest,
    WriteFilesResponse,
};

/// Bytes between a container's files and the connection, and in one message that is sent.
const BUFFER: usize = 256 << 10;
/// Most bytes of one message that is taken.
const LARGEST_CHUNK: usize = 1 << 20;

/// The container's files, and what keeps its layers there meanwhile.
async fn files(face: &ContainersFace, id: &str) -> Result<(Files, Option<LayerHold>), Status> {
    let container = face.container(id)?;
    let (mut lower, mut hold) = (Vec::new(), None);
    if matches!(container.state, ContainerState::Exited { .. })
        && let Some(image) = face.images.get(&container.image_id)
    {
        hold = Some(face.images.hold(&image));
        lower = face.images.lower_dirs(&image).await.map_err(status_of)?;
    }
    Ok((Files::new(container, lower), hold))
}

pub(super) async fn stat(
    face: &ContainersFace,
    request: StatPathRequest,
) -> Result<StatPathResponse, Status> {
    let (files, _hold) = files(face, &request.container_id).await?;
    let found = files.stat(request.path, request.follow).await.map_err(status_of)?;
    let kind = match found.kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    Ok(StatPathResponse {
        kind: kind.into(),
        mode: found.mode,
        size: found.size,
        uid: found.owner.0,
        gid: found.owner.1,
        modified_at: found.modified_at,
    })
}

/// The archive waits when the client reads slowly.
pub(super) async fn read(
    face: &ContainersFace,
    request: ReadFilesRequest,
) -> Result<BoxStream<'static, Result<ReadFilesResponse, Status>>, Status> {
    let (files, hold) = files(face, &request.container_id).await?;
    let (sink, source) = tokio::io::duplex(BUFFER);
    let work = async move {
        let _hold = hold;
        files.read(request.path, request.follow, request.name, sink).await.map_err(status_of)
    };
    let pieces = ReaderStream::with_capacity(source, BUFFER).map(|piece| {
        piece
            .map(|chunk| ReadFilesResponse { chunk: chunk.into() })
            .map_err(|error| Status::internal(format!("reading the archive: {error}")))
    });
    Ok(stream::of_work(pieces, work, |()| None).boxed())
}

/// Pieces are taken from the connection as they are unpacked.
pub(super) async fn write(
    face: &ContainersFace,
    mut parts: impl Stream<Item = Result<WriteFilesRequest, Status>> + Send + Unpin + 'static,
) -> Result<WriteFilesResponse, Status> {
    let first = parts.next().await.transpose()?.and_then(|first| first.part);
    let Some(Part::Target(Target { container_id, directory, keep_owners })) = first else {
        return Err(Status::invalid_argument("the first message must say where to"));
    };
    let (files, _hold) = files(face, &container_id).await?;
    let archive = StreamReader::new(parts.map(|part| match part.map_err(io::Error::other)?.part {
        Some(Part::Chunk(chunk)) if chunk.len() <= LARGEST_CHUNK => Ok(Bytes::from(chunk)),
        Some(Part::Chunk(chunk)) => {
            Err(io::Error::other(format!("a piece of {} bytes: at most {LARGEST_CHUNK}", chunk.len())))
        }
        _ => Err(io::Error::other("a second target")),
    }));
    files.write(directory, keep_owners, archive).await.map_err(status_of)?;
    Ok(WriteFilesResponse {})
}
