//! Running a container's command.

use std::sync::Arc;

use super::create::Creation;
use super::error::Error;
use crate::shim::Shim;

/// Waits for the creation to be over, then runs the command. Returns the process id.
///
/// # Errors
/// [`Error::CannotRun`] with the shim's reason.
pub(crate) async fn start(id: &str, shim: &Shim, creation: Creation) -> Result<u32, Error> {
    let cannot = |source| Error::CannotRun { id: id.to_owned(), source };
    let pid = creation.await.map_err(cannot)?;
    shim.start("").await.map_err(|error| cannot(Arc::new(error)))?;
    Ok(pid)
}
