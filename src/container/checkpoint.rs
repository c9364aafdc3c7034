//! Checkpoints: a running container, its memory and its files, as one archive. The container runs on.
//!
//! ```text
//! shim: criu dumps ──▶ processes stand still ──────────────────────────▶ run on ──▶ answer
//!                          │ connects to `hold`            ▲ connection ends
//! daemon:                  └─▶ changed files ──▶ rootfs-diff.tar ──▶ description ──▶ archive ──▶ its name
//! ```
//!
//! Work is done in a directory below the trash, which the next start empties after a crash. The archive has no name before it is
//! whole. It is laid out as checkpointctl, CRI-O and containerd know it (checkpointctl, lib/metadata):
//!
//! | name | content |
//! | --- | --- |
//! | `checkpoint/` | criu's images |
//! | `config.dump`, `spec.dump` | which container and image this was; its OCI specification |
//! | `rootfs-diff.tar`, `deleted.files` | what its writable layer has; JSON: what it lacks of the image |
//! | `bind.mounts` | JSON: what was mounted from the host, and whether it was a file or a directory |
//! | `status`, `status.dump` | JSON: its state, as containerd and as the CRI say it |
//! | `container.log` | its log until then |
//! | `dump.log`, `stats-dump` | what criu did, and how long it took |

mod archive;
mod description;
mod error;

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use super::snapshot::ContainerSnapshot;
use super::tools::{Handler, Tools};
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::shim::{Backend, CheckpointRequest, Shim};

pub use error::Error;

/// How long criu may take when the request does not say.
const DEFAULT_LIMIT: Duration = Duration::from_secs(600);
/// Where the shim tells that the container stands still.
const HOLD: &str = "hold";
/// criu's images, here and in the archive.
pub(crate) const IMAGES: &str = "checkpoint";

/// Whom to checkpoint.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) container: Arc<ContainerSnapshot>,
    pub(crate) pod: Arc<PodSandboxConfig>,
    pub(crate) handler: Arc<Handler>,
    pub(crate) shim: Shim,
}

/// Writes a checkpoint of the container to `location`, which must not exist. Dropping the future stops the work.
///
/// # Errors
/// [`Error`]; the container runs on, and nothing is at `location`.
pub(crate) async fn checkpoint(
    tools: &Arc<Tools>,
    subject: Subject,
    location: PathBuf,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let criu = match subject.handler.backend {
        Backend::BuiltIn => Some(tools.checkpoint.program()?),
        // They know themselves where it is, or have it linked in.
        _ => tools.checkpoint.program_if_any()?,
    };
    archive::check(&location)?;
    let root = tools.trash();
    let work = blocking(move || {
        std::fs::create_dir_all(&root).map_err(Error::at("making", &root))?;
        tempfile::Builder::new()
            .prefix("checkpoint-")
            .tempdir_in(&root)
            .map_err(Error::at("making a directory in", &root))
    })
    .await?;
    let layout = tools.layout(&subject.container.id);
    let request = CheckpointRequest {
        images: work.path().join(IMAGES),
        // Whoever wants to know what went wrong finds criu's log here for as long as the container is there.
        work: layout.writable.join("criu"),
        criu,
        hold: work.path().join(HOLD),
        limit: limit.unwrap_or(DEFAULT_LIMIT),
    };
    dump(&subject, &request, tools, work.path()).await?;
    let (directory, target) = (work.path().to_owned(), location.clone());
    let logs = request.work.clone();
    blocking(move || {
        description::write(&subject, &directory)?;
        archive::take_logs(&logs, &directory)?;
        archive::write(&directory, &target)?;
        drop(work);
        Ok(())
    })
    .await?;
    tracing::info!(location = %location.display(), "wrote a checkpoint");
    Ok(())
}

/// Has the container dumped, and takes its files while it stands still.
async fn dump(
    subject: &Subject,
    request: &CheckpointRequest,
    tools: &Arc<Tools>,
    work: &Path,
) -> Result<(), Error> {
    let directory = std::fs::File::open(work).map_err(Error::at("opening", work))?;
    // A socket's name is short; the directory's may not be.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{HOLD}", directory.as_raw_fd()))
        .map_err(Error::at("listening in", work))?;
    let dumping = subject.shim.checkpoint(request);
    tokio::pin!(dumping);
    let lower = layers(tools, subject).await?;
    let (upper, target) = (subject.container.upper.clone(), work.to_owned());
    let files = move || archive::changes(&upper, &lower, &target);
    tokio::select! {
        biased;
        held = listener.accept() => {
            let held = held.map_err(Error::at("listening in", work))?;
            let packed = blocking(files).await;
            drop(held);
            dumping.await?;
            packed
        }
        // A shim that knows of no holding: the files are those of a moment later.
        dumped = &mut dumping => {
            dumped?;
            blocking(files).await
        }
    }
}

/// The directories below the container's writable layer.
async fn layers(tools: &Arc<Tools>, subject: &Subject) -> Result<Vec<PathBuf>, Error> {
    let id = &subject.container.image_id;
    let image = tools.images.get(id).ok_or_else(|| Error::NoImage(id.clone()))?;
    Ok(tools.images.lower_dirs(&image).await?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)?
}
