//! `berth import`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use berth::proto::berth::v1::ImportRequest;
use clap::Args;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::client::Client;
use crate::commands::images;
use crate::failure::Answer;
use crate::output;

/// Bytes sent in one message.
const CHUNK: usize = 256 << 10;

/// Options of `import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The archive; without it, or as -, standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The archive, as docker load has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

impl Import {
    /// Sends the archive.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let (name, archive) = self.open().await?;
        let mut client = Client::connect(address).await?;
        // A failed read ends the stream; the error is kept here, since the daemon only sees a cut archive.
        let broken = Arc::new(Mutex::new(None));
        let answer = client.transfer.import(requests(archive, Arc::clone(&broken))).await.answer();
        if let Some(error) = broken.lock().take() {
            return Err(error).with_context(|| format!("reading {name}"));
        }
        let imported = answer.with_context(|| format!("importing {name}"))?.images;
        for image in imported {
            output::print_line(&if self.quiet { image.id } else { images::title(&image) })?;
        }
        Ok(0)
    }

    async fn open(&self) -> Result<(String, Pin<Box<dyn AsyncRead + Send>>)> {
        match self.file.as_ref().or(self.input.as_ref()) {
            Some(path) if path.as_os_str() != "-" => {
                let file = tokio::fs::File::open(path).await;
                let file = file.with_context(|| format!("opening {}", path.display()))?;
                Ok((path.display().to_string(), Box::pin(file)))
            }
            _ if io::stdin().is_terminal() => {
                bail!(
                    "which archive? name a file, or send one to standard input, as in `berth import < image.tar`"
                )
            }
            _ => Ok(("standard input".to_owned(), Box::pin(tokio::io::stdin()))),
        }
    }
}

/// The archive as messages, up to its end or the first failed read.
fn requests(
    archive: impl AsyncRead + Send + 'static,
    broken: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = ImportRequest> + Send + 'static {
    ReaderStream::with_capacity(archive, CHUNK)
        .map(move |chunk| {
            chunk
                .map_err(|error| *broken.lock() = Some(error))
                .ok()
                .map(|chunk| ImportRequest { chunk: chunk.into() })
        })
        .take_while(|request| futures::future::ready(request.is_some()))
        .filter_map(futures::future::ready)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn an_archive_is_sent_in_bounded_pieces() {
        let archive = vec![7; CHUNK * 2 + 5];
        let broken = Arc::default();
        let sent: Vec<ImportRequest> =
            requests(io::Cursor::new(archive.clone()), Arc::clone(&broken)).collect().await;
        assert!(sent.iter().all(|request| request.chunk.len() <= CHUNK));
        assert_eq!(sent.iter().flat_map(|request| request.chunk.clone()).collect::<Vec<u8>>(), archive);
        assert!(broken.lock().is_none());
    }

    #[tokio::test]
    async fn a_failed_read_is_kept() {
        let failing =
            io::Cursor::new(vec![1; 10]).chain(tokio_util::io::StreamReader::new(futures::stream::iter([
                Err::<bytes::Bytes, _>(io::Error::other("disk gone")),
            ])));
        let broken = Arc::default();
        let sent: Vec<ImportRequest> = requests(failing, Arc::clone(&broken)).collect().await;
        assert_eq!(sent.iter().map(|request| request.chunk.len()).sum::<usize>(), 10);
        assert!(broken.lock().as_ref().is_some_and(|error| error.to_string() == "disk gone"));
    }
}
