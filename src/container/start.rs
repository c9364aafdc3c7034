//! Running a container's command.

use std::sync::Arc;
use std::time::Duration;

use super::create::Creation;
use super::error::Error;
use super::restore;
use crate::shim::Shim;

/// What its shim may take beside criu's time.
const AROUND: Duration = Duration::from_secs(60);

/// Waits for the creation to be over, then runs the command. Returns the process id.
///
/// # Errors
/// [`Error::CannotRun`] with the shim's reason.
pub(crate) async fn start(id: &str, shim: &Shim, creation: Creation) -> Result<u32, Error> {
    let cannot = |source| Error::CannotRun { id: id.to_owned(), source };
    let pid = creation.await.map_err(cannot)?;
    let failed = |error| cannot(Arc::new(error));
    if pid == 0 {
        // To be restored: there is no process before that, and reading its memory takes its time.
        return shim.start_within("", restore::LIMIT + AROUND).await.map_err(failed);
    }
    shim.start("").await.map_err(failed)?;
    Ok(pid)
}
