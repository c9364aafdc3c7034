//! Leftovers: what belongs to no pod, in directories, processes and the kernel.

use tonic::Status;

use super::DebugFace;
use crate::error::chain;
use crate::proto::berth::v1::{Leftover, LeftoversResponse};

/// Most things that are told.
const MOST: usize = 1000;

pub(super) async fn call(face: &DebugFace) -> Result<LeftoversResponse, Status> {
    let pods = face.pods.clone();
    let looking = tokio::task::spawn_blocking(move || (pods.leftovers(), pods.shims(), pods.shim_program()));
    let (found, shims, program) =
        looking.await.map_err(|error| Status::internal(format!("looking for leftovers: {error}")))?;
    let live = face.pods.clone();
    let audit = face.networks.audit(move || live.ids()).await;
    let audit = audit.map_err(|error| Status::internal(chain(&error)))?;
    let message = |kind: &str, what: String| Leftover { kind: kind.to_owned(), what };
    let mut leftovers: Vec<Leftover> = found.into_iter().map(|one| message(one.kind, one.what)).collect();
    leftovers.extend(audit.unowned_links.into_iter().map(|link| message("interface", link)));
    leftovers.extend(audit.stale_sandboxes.into_iter().map(|id| message("sandbox", id)));
    let detached = audit.detached_endpoints.into_iter();
    leftovers.extend(detached.map(|(pod, network)| message("endpoint", format!("{pod} on {network}"))));
    leftovers.truncate(MOST);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(LeftoversResponse {
        leftovers,
        table: face.networks.table().to_owned(),
        table_missing: audit.table_missing,
        missing_elements: count(audit.missing_elements),
        surplus_elements: count(audit.surplus_elements),
        shims: count(shims.running),
        former_shims: count(shims.former),
        shim_program: program.display().to_string(),
    })
}
