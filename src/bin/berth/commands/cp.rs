//! `berth cp`: files into and out of containers, by docker's rules.
//!
//! ```text
//! there:  NAME is a directory   the thing goes into it, under its own name (DIR/. : what is in DIR)
//!         NAME is a file        the thing takes its place, unless it is a directory
//!         NAME is nothing       the thing is called that; its directory must be there
//! ```
//!
//! Both sides speak tar; the side that writes resolves every name within the directory it writes to, so that neither a container's links
//! nor an archive's names lead elsewhere.

mod local;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use berth::proto::berth::v1::stat_path_response::Kind;
use berth::proto::berth::v1::write_files_request::{Part, Target};
use berth::proto::berth::v1::{ReadFilesRequest, StatPathRequest, WriteFilesRequest};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader};
use tonic::Code;

use crate::client::Client;
use crate::failure::{Answer, Refusal};
use crate::names::Names;

/// Bytes of one message.
const CHUNK: usize = 256 << 10;

/// Options of `cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "A path in a container is one from its root. DIR/. stands for what is in DIR; - is a tar archive on standard input or \
    output. Works on running containers, and on ended ones until they are removed; mounts and volumes are seen as the container sees them."
)]
pub(crate) struct Cp {
    /// Where from: a path here, CONTAINER:PATH, or -
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to: a path here, CONTAINER:PATH, or -
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// Follow the source when it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep owners, and bits that change users; else files are root's in the container, and one's own here
    #[arg(short, long)]
    archive: bool,
}

/// One side, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    /// Standard input or output.
    Stream,
    Here(PathBuf),
    Container {
        name: String,
        path: String,
    },
}

impl Side {
    fn read(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            // A name begins with no dot and holds at most the slash of POD/CONTAINER.
            Some((name, path)) if !name.is_empty() && !name.starts_with(['/', '.', '~']) => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::Container { name: name.to_owned(), path }
            }
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

/// What is at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Directory,
    File,
}

/// Where a thing goes: a directory that is there, and what it is called in it. By the rules of this module.
fn target(path: &str, there: There, source: &str, is_directory: bool) -> Result<(String, String)> {
    let own_name = last_name(source);
    match there {
        There::Directory if is_contents(source) => Ok((path.to_owned(), ".".to_owned())),
        There::Directory => Ok((path.to_owned(), own_name)),
        There::File if is_directory => bail!("{path} is a file: a directory can't take its place"),
        There::Nothing if path.ends_with('/') && !is_directory => {
            bail!(
                "there is no directory {path}: make it first, or leave the slash out to make a file of that name"
            )
        }
        There::File | There::Nothing => Ok((parent(path), last_name(path))),
    }
}

/// `DIR/.`: not the directory, but what is in it.
fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// The last name of a path; `.` for a root, and for what has none.
fn last_name(path: &str) -> String {
    let name = Path::new(path.trim_end_matches('/')).file_name().filter(|_| !is_contents(path));
    name.map_or_else(|| ".".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn parent(path: &str) -> String {
    match Path::new(path.trim_end_matches('/')).parent() {
        Some(parent) if parent.as_os_str().is_empty() => ".".to_owned(),
        Some(parent) => parent.to_string_lossy().into_owned(),
        None => "/".to_owned(),
    }
}

impl Cp {
    /// Copies.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let (from, to) = (Side::read(&self.source), Side::read(&self.destination));
        match (from, to) {
            (Side::Container { .. }, Side::Container { .. }) => {
                bail!(
                    "from container to container: copy to a directory here first, or `berth cp A:PATH - | berth cp - B:PATH`"
                )
            }
            (Side::Container { name, path }, to) => {
                let container = Inside::find(address, &name, path).await?;
                self.out(container, to).await.with_context(|| format!("copying {}", self.source))?;
            }
            (from, Side::Container { name, path }) => {
                let container = Inside::find(address, &name, path).await?;
                let what = || format!("copying {} to {}", self.source, self.destination);
                self.put(container, from).await.with_context(what)?;
            }
            _ => bail!(
                "neither {} nor {} is in a container: write one as CONTAINER:PATH",
                self.source,
                self.destination
            ),
        }
        Ok(0)
    }

    async fn out(&self, mut inside: Inside, to: Side) -> Result<()> {
        let source = inside.path.clone();
        let follow = self.follow_link || source.ends_with('/');
        if to == Side::Stream {
            if io::stdout().is_terminal() {
                bail!(
                    "an archive is not for a terminal: send it on, as in `berth cp {} - | tar -t`",
                    self.source
                );
            }
            let mut archive = inside.archive(follow, last_name(&source)).await?;
            let mut output = tokio::io::stdout();
            tokio::io::copy(&mut archive, &mut output).await?;
            return Ok(output.flush().await?);
        }
        let Side::Here(to) = to else { bail!("the destination is no place here") };
        let kind =
            inside.kind(follow).await?.with_context(|| format!("there is no {source} in the container"))?;
        let there = local::there(&to)?;
        let (directory, name) = target(&to.to_string_lossy(), there, &source, kind == Kind::Directory)?;
        let archive = inside.archive(follow, name).await?;
        local::extract(Path::new(&directory), archive, self.archive).await
    }

    async fn put(&self, mut inside: Inside, from: Side) -> Result<()> {
        let there = match inside.kind(true).await? {
            None => There::Nothing,
            Some(Kind::Directory) => There::Directory,
            Some(_) => There::File,
        };
        match from {
            Side::Stream if io::stdin().is_terminal() => {
                bail!(
                    "send an archive to standard input, as in `tar -c DIR | berth cp - {}`",
                    self.destination
                )
            }
            Side::Stream if there != There::Directory => {
                bail!("an archive goes into a directory, and {} is none", inside.path)
            }
            Side::Stream => {
                let directory = inside.path.clone();
                inside.write(directory, self.archive, tokio::io::stdin()).await
            }
            Side::Here(from) => {
                let text = from.to_string_lossy().into_owned();
                let (thing, is_directory) = local::open(&from, self.follow_link || text.ends_with('/'))?;
                // `.` and `..` have a name of their own only when they are looked up.
                let named = match last_name(&text).as_str() {
                    "." if !is_contents(&text) => from.canonicalize()?.to_string_lossy().into_owned(),
                    _ => text,
                };
                let (directory, name) = target(&inside.path, there, &named, is_directory)?;
                let (archive, packed) = local::pack(thing, name);
                let sent = inside.write(directory, self.archive, archive).await;
                // What could not be read here is the cause of what the daemon then missed.
                match packed.await? {
                    Err(error) if sent.is_ok() || !error.is_cut_off() => Err(error.into()),
                    _ => sent,
                }
            }
            Side::Container { .. } => bail!("the source is no place here"),
        }
    }
}

/// A path in a container.
#[derive(Debug)]
struct Inside {
    client: Client,
    id: String,
    path: String,
}

impl Inside {
    async fn find(address: &str, name: &str, path: String) -> Result<Self> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let found = Names { containers: &containers, pods: &pods }.container(name);
        let id = found
            .with_context(|| format!("{name}:{path} (a path here that has a colon is written ./{name}:…)"))?
            .id
            .clone();
        Ok(Self { client, id, path })
    }

    /// What is there, if anything.
    async fn kind(&mut self, follow: bool) -> Result<Option<Kind>> {
        let request = StatPathRequest { container_id: self.id.clone(), path: self.path.clone(), follow };
        match self.client.own_containers.stat_path(request).await.answer() {
            Ok(found) => Ok(Some(found.kind())),
            Err(Refusal { code: Code::NotFound, .. }) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// What is there, as an archive in which it has that name.
    async fn archive(
        &mut self,
        follow: bool,
        name: String,
    ) -> Result<impl AsyncRead + Send + Unpin + 'static> {
        let request =
            ReadFilesRequest { container_id: self.id.clone(), path: self.path.clone(), follow, name };
        let pieces = self.client.own_containers.read_files(request).await.answer()?;
        let pieces = pieces.map_ok(|piece| bytes::Bytes::from(piece.chunk));
        Ok(StreamReader::new(pieces.map_err(|status| io::Error::other(Refusal::from(status)))))
    }

    async fn write(
        &mut self,
        directory: String,
        keep_owners: bool,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<()> {
        let target = Target { container_id: self.id.clone(), directory, keep_owners };
        let broken = Arc::new(Mutex::new(None));
        let pieces = {
            let broken = Arc::clone(&broken);
            ReaderStream::with_capacity(archive, CHUNK)
                .map(move |piece| piece.map_err(|error| *broken.lock() = Some(error)).ok())
                .take_while(|piece| futures::future::ready(piece.is_some()))
                .filter_map(|piece| futures::future::ready(piece.map(|piece| Part::Chunk(piece.into()))))
        };
        let parts = stream::once(futures::future::ready(Part::Target(target))).chain(pieces);
        let parts = parts.map(|part| WriteFilesRequest { part: Some(part) });
        let answer = self.client.own_containers.write_files(parts).await.answer();
        // The daemon only sees an archive that ends early.
        if let Some(error) = broken.lock().take() {
            return Err(error).context("reading the archive");
        }
        answer.map(drop).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let inside = |name: &str, path: &str| Side::Container { name: name.into(), path: path.into() };
        assert_eq!(Side::read("-"), Side::Stream);
        assert_eq!(Side::read("web:/etc"), inside("web", "/etc"));
        assert_eq!(Side::read("web:etc/passwd"), inside("web", "/etc/passwd"));
        assert_eq!(Side::read("pod/web:/etc"), inside("pod/web", "/etc"));
        assert_eq!(Side::read("web:"), inside("web", "/"));
        for here in ["etc", "./a:b", "/a:b", "../a:b", ":x"] {
            assert_eq!(Side::read(here), Side::Here(here.into()));
        }
    }

    #[test]
    fn things_go_where_docker_would_put_them() {
        let to = |path, there, source, directory| target(path, there, source, directory).ok();
        let at = |directory: &str, name: &str| Some((directory.to_owned(), name.to_owned()));
        use There::{Directory, File, Nothing};
        assert_eq!(to("/tmp", Directory, "a/f", false), at("/tmp", "f"));
        assert_eq!(to("/tmp/", Directory, "/d/", true), at("/tmp/", "d"));
        assert_eq!(to("/tmp", Directory, "/d/.", true), at("/tmp", "."));
        assert_eq!(to("/tmp", Directory, "/", true), at("/tmp", "."));
        assert_eq!(to("/tmp/f", File, "a", false), at("/tmp", "f"));
        assert_eq!(to("/tmp/f", File, "a", true), None);
        assert_eq!(to("/tmp/new", Nothing, "a", false), at("/tmp", "new"));
        assert_eq!(to("/tmp/new/", Nothing, "a", false), None);
        assert_eq!(to("/tmp/new/", Nothing, "d/.", true), at("/tmp", "new"));
        assert_eq!(to("/new", Nothing, "a", false), at("/", "new"));
        assert_eq!(to("new", Nothing, "a", false), at(".", "new"));
    }
}
