//! Having a shim dump its container.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;

use super::client::Shim;
use super::criu::{Options, nanoseconds};
use super::error::Error;

/// What a shim may take beside criu's own time: to hold the container for its files, and to say what went wrong.
const AROUND: Duration = Duration::from_secs(15 * 60);

/// How a container is to be dumped.
#[derive(Clone, Debug)]
pub struct CheckpointRequest {
    /// Directory of the images; made if it is not there.
    pub images: PathBuf,
    /// Directory of criu's log and statistics; made if it is not there.
    pub work: PathBuf,
    /// The criu program; `None` for shims that look for it themselves.
    pub criu: Option<PathBuf>,
    /// A listening unix socket: while the shim is connected to it, the container stands still as it was dumped.
    pub hold: PathBuf,
    /// How long criu may take.
    pub limit: Duration,
}

impl Shim {
    /// Dumps the running container, which runs on.
    ///
    /// # Errors
    /// [`Error::Refused`] with criu's reason: what the container has that can't be dumped, no criu, the time was over.
    pub async fn checkpoint(&self, request: &CheckpointRequest) -> Result<(), Error> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let options = Options {
            open_tcp: true,
            external_unix_sockets: true,
            file_locks: true,
            work_path: text(&request.work),
            criu: request.criu.as_ref().map(text).unwrap_or_default(),
            hold: text(&request.hold),
            limit: nanoseconds(request.limit),
        };
        let message = api::CheckpointTaskRequest {
            id: self.id.clone(),
            path: text(&request.images),
            options: MessageField::some(options.into_any()),
            ..Default::default()
        };
        let limit = request.limit.saturating_add(AROUND);
        self.call("Checkpoint", limit, |context| self.task.checkpoint(context, &message)).await.map(drop)
    }
}
