//! Mounts.

use std::path::Path;

use oci_spec::runtime::{self as oci, Spec};

use super::super::removal::unmarked;
use super::Error;
use crate::container::spec;
use crate::proto::nri::v1alpha1::Mount;

pub(super) fn adjust(spec: &mut Spec, wanted: &[Mount]) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut propagation = None;
    let mounts = spec.mounts_mut().get_or_insert_default();
    for mount in wanted {
        if let Some(removed) = unmarked(&mount.destination) {
            mounts.retain(|old| old.destination() != Path::new(removed));
            continue;
        }
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        if has("rshared") {
            spec::check_propagation(Path::new(&mount.source), true)?;
            propagation = Some("shared");
        } else if has("rslave") {
            spec::check_propagation(Path::new(&mount.source), false)?;
            propagation = propagation.or(Some("slave"));
        }
        mounts.retain(|old| old.destination() != Path::new(&mount.destination));
        let mut out = oci::Mount::default();
        out.set_destination((&mount.destination).into())
            .set_typ((!mount.r#type.is_empty()).then(|| mount.r#type.clone()))
            .set_source((!mount.source.is_empty()).then(|| (&mount.source).into()))
            .set_options(Some(mount.options.clone()));
        mounts.push(out);
    }
    // What lies in another comes after it; all else stays in order.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    let linux = spec.linux_mut().get_or_insert_default();
    let stronger = match (propagation, linux.rootfs_propagation().as_deref()) {
        (Some("slave"), Some(now)) => !now.ends_with("shared") && !now.ends_with("slave"),
        (wanted, _) => wanted.is_some(),
    };
    if stronger {
        linux.set_rootfs_propagation(propagation.map(str::to_owned));
    }
    Ok(())
}
