//! Import: reads images from an archive that arrives in pieces.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio_util::io::StreamReader;
use tonic::Status;

use super::LARGEST_CHUNK;
use crate::cri::{image_message, status_of};
use crate::image::Images;
use crate::proto::berth::v1::{ImportRequest, ImportResponse};

/// Pieces are taken from the connection as the archive is read: a slow disk slows the client down, nothing piles up here.
/// A cancelled call drops this future, and the import with it.
pub(super) async fn call(
    images: &Images,
    pieces: impl Stream<Item = Result<ImportRequest, Status>> + Send + Unpin + 'static,
) -> Result<ImportResponse, Status> {
    let imported = images.import(reader(pieces)).await.map_err(status_of)?;
    Ok(ImportResponse { images: imported.iter().map(|image| image_message::image(image)).collect() })
}

fn reader<S>(pieces: S) -> StreamReader<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static, Bytes>
where
    S: Stream<Item = Result<ImportRequest, Status>> + Send + Unpin + 'static,
{
    StreamReader::new(pieces.map(|piece| {
        let chunk = piece.map_err(io::Error::other)?.chunk;
        if chunk.len() > LARGEST_CHUNK {
            return Err(io::Error::other(format!(
                "a piece of {} bytes: at most {LARGEST_CHUNK}",
                chunk.len()
            )));
        }
        Ok(Bytes::from(chunk))
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::stream;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn piece(chunk: impl Into<Vec<u8>>) -> Result<ImportRequest, Status> {
        Ok(ImportRequest { chunk: chunk.into() })
    }

    #[tokio::test]
    async fn pieces_are_one_archive_and_empty_ones_do_not_end_it() {
        let mut text = String::new();
        let pieces = stream::iter([piece("ab"), piece(""), piece("cd")]);
        reader(pieces).read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abcd");
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_no_end_of_the_archive() {
        let mut text = String::new();
        let pieces = stream::iter([piece("ab"), Err(Status::cancelled("gone"))]);
        assert!(reader(pieces).read_to_string(&mut text).await.is_err());
    }

    #[tokio::test]
    async fn pieces_are_bounded() {
        let mut bytes = Vec::new();
        let pieces = stream::iter([piece(vec![0; LARGEST_CHUNK + 1])]);
        assert!(reader(pieces).read_to_end(&mut bytes).await.unwrap_err().to_string().contains("at most"));
    }
}
