//! Files into and out of containers.
//!
//! ```text
//! running:  /proc/PID/root ──┐                        ┌─ stat
//!                            ├─> a directory, opened ─┼─ pack ──> tar
//! ended:    its overlay and ─┘   (RESOLVE_IN_ROOT)    └─ unpack <── tar
//!           binds, mounted where nobody else sees it
//! ```
//!
//! The container's processes may change names while they are looked at. So no path is ever put together here: the kernel resolves
//! each one inside the container's root (`openat2` with `RESOLVE_IN_ROOT`), and what it opened is what is worked on. No program and
//! no library of the container is loaded, and nothing of ours enters it. (What happened elsewhere: CVE-2018-15664,
//! CVE-2019-14271.)
//!
//! Each piece of work has a thread of its own that ends with it: mounts for an ended container, and the user that files are made
//! as, are that thread's alone. A thread that hangs in the kernel, on a dead network file system, keeps its place ([`PLACES`]) and
//! nothing else.

mod root;
mod stopped;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, OFlags};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::io::SyncIoBridge;

use super::ContainerSnapshot;
use crate::error::{Classify, Kind};
use crate::image::owners::Owners;
use crate::image::{Limits, pack, unpack};
use root::Root;

/// Copies under way at once.
pub const PLACES: usize = 16;
static COPIES: Semaphore = Semaphore::const_new(PLACES);

/// Longest path (PATH_MAX) and longest name (NAME_MAX).
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;

/// Why files can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path or name that is none.
    #[error("{what} {text:?}: {reason}")]
    Argument {
        /// Path or name.
        what: &'static str,
        /// As it was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The container's files can't be reached.
    #[error("the files of container {id} can't be reached: {reason}")]
    Unreachable {
        /// The container.
        id: String,
        /// Why.
        reason: String,
    },
    /// Something in the container.
    #[error("{what} {path:?} in the container: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something about the container.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too many at once.
    #[error("{PLACES} copies are under way: try again when one has ended")]
    Busy,
    /// Reading.
    #[error(transparent)]
    Pack(#[from] pack::Error),
    /// Writing.
    #[error("unpacking into {directory:?} of the container")]
    Unpack {
        /// Where.
        directory: String,
        /// What went wrong.
        source: unpack::Error,
    },
    /// The work was cut off.
    #[error("the copy was cut off by the daemon's shutdown")]
    Interrupted,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Argument { .. } => Kind::InvalidArgument,
            Error::Unreachable { .. } => Kind::FailedPrecondition,
            Error::Path { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
                _ => Kind::FailedPrecondition,
            },
            Error::System { .. } => Kind::Internal,
            Error::Busy => Kind::ResourceExhausted,
            Error::Pack(error) => error.kind(),
            Error::Unpack { source: unpack::Error::Limit(_), .. } => Kind::ResourceExhausted,
            Error::Unpack { source: unpack::Error::Format(_), .. } => Kind::InvalidArgument,
            Error::Unpack { source: unpack::Error::Read(_) | unpack::Error::Aborted, .. } => Kind::Cancelled,
            Error::Unpack { .. } => Kind::FailedPrecondition,
            Error::Interrupted => Kind::Cancelled,
        }
    }
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: FileType,
    /// Permissions and special bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// User and group as the container sees them.
    pub owner: (u32, u32),
    /// Seconds since the Unix epoch.
    pub modified_at: i64,
}

/// A container whose files are to be copied.
#[derive(Clone, Debug)]
pub struct Files {
    container: Arc<ContainerSnapshot>,
    /// Layers of its image, the topmost first; needed for one that has ended.
    lower: Vec<PathBuf>,
}

impl Files {
    /// Of this container.
    pub fn new(container: Arc<ContainerSnapshot>, lower: Vec<PathBuf>) -> Self {
        Self { container, lower }
    }

    /// What lies at a path; of a link itself, or where it leads.
    pub async fn stat(self, path: String, follow: bool) -> Result<Found, Error> {
        check_path(&path)?;
        on_thread(move || {
            let root = self.root()?;
            let thing = root.open(&path, "looking for", with(OFlags::PATH, follow))?;
            let stat = rustix::fs::fstat(&thing).map_err(root::at("looking at", &path))?;
            let nobody = (65534, 65534);
            Ok(Found {
                kind: FileType::from_raw_mode(stat.st_mode),
                mode: stat.st_mode & 0o7777,
                size: u64::try_from(stat.st_size).unwrap_or_default(),
                owner: root.owners.reversed().map(stat.st_uid, stat.st_gid).unwrap_or(nobody),
                modified_at: stat.st_mtime,
            })
        })
        .await
    }

    /// Writes what lies at a path as a tar archive in which it is called `name`.
    pub async fn read(
        self,
        path: String,
        follow: bool,
        name: String,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), Error> {
        check_path(&path)?;
        if name.is_empty() || name.len() > LONGEST_NAME || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::Argument { what: "name", text: name, reason: "is none of a file" });
        }
        let mut writer = SyncIoBridge::new(writer);
        on_thread(move || {
            let root = self.root()?;
            let thing = root.open(&path, "looking for", with(OFlags::PATH, follow))?;
            let (owners, limits, stop) = (root.owners.reversed(), Limits::default(), AtomicBool::new(false));
            let bounds = pack::Bounds {
                overlay: false,
                entries: limits.layer_entries,
                bytes: limits.layer_bytes,
                stop: &stop,
                owners: Some(&owners),
            };
            pack::one(thing, name.as_bytes(), &mut writer, bounds)?;
            writer.shutdown().map_err(|source| pack::Error::Write(source).into())
        })
        .await
    }

    /// Unpacks an archive in a directory.
    pub async fn write(
        self,
        directory: String,
        keep_owners: bool,
        reader: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<(), Error> {
        check_path(&directory)?;
        let reader = SyncIoBridge::new(reader);
        on_thread(move || {
            let root = self.root()?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let target = root.open(&directory, "opening the directory", flags)?;
            root.become_its_root()?;
            let owners = keep_owners.then(|| root.owners.clone());
            unpack::extract(target, reader, owners, &Limits::default())
                .map_err(|source| Error::Unpack { directory, source })
        })
        .await
    }

    fn root(&self) -> Result<Root, Error> {
        root::open(&self.container, &self.lower)
    }
}

fn with(flags: OFlags, follow: bool) -> OFlags {
    if follow { flags } else { flags | OFlags::NOFOLLOW }
}

fn check_path(path: &str) -> Result<(), Error> {
    let reason = match path {
        "" => "it is empty",
        path if path.len() > LONGEST_PATH => "it is longer than 4096 bytes",
        path if path.contains('\0') => "it has a zero byte",
        _ => return Ok(()),
    };
    Err(Error::Argument { what: "path", text: path.chars().take(64).collect(), reason })
}

/// Runs it on a thread that ends afterwards. Who no longer waits leaves it behind: its reader or writer is gone, which ends it.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let place = COPIES.try_acquire().map_err(|_| Error::Busy)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("copy".to_owned())
        .spawn(move || {
            let _place = place;
            let _ = sender.send(work());
        })
        .map_err(|source| Error::System { what: "starting a thread", source })?;
    receiver.await.map_err(|_| Error::Interrupted)?
}

/// The numbers of a process' user namespace, from inside to outside.
fn owners_of(pid: u32) -> Result<Owners, Error> {
    let read = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let failed = |source| Error::System { what: "reading the container's user namespace", source };
    let (uids, gids) = (read("uid_map").map_err(failed)?, read("gid_map").map_err(failed)?);
    Owners::of_maps(&uids, &gids).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}
