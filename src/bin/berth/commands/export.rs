//! `berth export`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use berth::proto::berth::v1::{ExportRequest, ExportResponse};
use clap::Args;
use tempfile::NamedTempFile;
use tonic::Streaming;

use crate::client::Client;
use crate::failure::{Answer, Refusal};

/// Options of `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Names, ids, or unique prefixes of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The archive to write; without it, or as -, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    /// Receives the archive. A file appears whole or not at all.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let file = self.output.as_deref().filter(|path| path.as_os_str() != "-");
        if file.is_none() && io::stdout().is_terminal() {
            bail!(
                "an archive is not for a terminal: name a file with -o, or send it on, as in `berth export … > FILE`"
            );
        }
        let mut client = Client::connect(address).await?;
        let request = ExportRequest { references: self.images.clone() };
        let context = || format!("exporting {}", self.images.join(", "));
        let archive = client.transfer.export(request).await.answer().with_context(context)?;
        match file {
            None => receive(archive, &mut io::stdout().lock()).await.with_context(context)?,
            Some(path) => to_file(archive, path).await.with_context(context)?,
        }
        Ok(0)
    }
}

async fn to_file(archive: Streaming<ExportResponse>, path: &Path) -> Result<()> {
    let context = || format!("writing {}", path.display());
    if !replaceable(path) {
        // A device or pipe is written to, not replaced.
        let mut file = std::fs::OpenOptions::new().write(true).open(path).with_context(context)?;
        return receive(archive, &mut file).await;
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    let builder = builder.prefix(".berth-export-").permissions(mode);
    let mut file: NamedTempFile = builder.tempfile_in(directory).with_context(context)?;
    receive(archive, file.as_file_mut()).await?;
    file.persist(path).map_err(|error| error.error).with_context(context)?;
    Ok(())
}

fn replaceable(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |metadata| metadata.is_file())
}

async fn receive(mut archive: Streaming<ExportResponse>, sink: &mut impl Write) -> Result<()> {
    while let Some(piece) = archive.message().await.map_err(Refusal::from)? {
        sink.write_all(&piece.chunk)?;
    }
    Ok(sink.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_not_replaced() {
        assert!(!replaceable(Path::new("/dev/null")));
        assert!(replaceable(Path::new("/nonexistent/file")));
    }
}
