//! Removing what a container made. Every step can be taken any number of times.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use super::spec;
use super::tools::Tools;
use crate::cgroup::Cgroup;
use crate::image;
use crate::proto::berth::v1::ContainerRecord;
use crate::shim::Shim;

/// How long the processes of a container whose shim is gone have to die.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long its shim has to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long its shim has to end, and how often it is asked.
const SHIM_LIMIT: Duration = Duration::from_secs(15);
const SHIM_STEP: Duration = Duration::from_millis(10);

/// Ends a container by whatever way is left: through its shim if that answers, by its cgroup otherwise. For containers
/// that were half made, and for those whose shim was killed.
pub(crate) async fn end_without_shim(tools: &Tools, record: &ContainerRecord) {
    let bundle = tools.layout(&record.id).bundle;
    through_shim(record, &bundle).await;
    // Ours may be gone and another one, which it called, still be there: it is called again, to the same end.
    match tools.launcher.spawn_again(&record.id, &bundle) {
        Ok(Some(_)) => through_shim(record, &bundle).await,
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(
                container = record.id,
                error = crate::error::chain(&error),
                "calling the shim again"
            );
        }
    }
    if record.cgroups_path.is_empty() {
        return;
    }
    let (cgroup, id) = (Cgroup::new(tools.host.cgroup, Path::new(&record.cgroups_path)), record.id.clone());
    let _ = tokio::task::spawn_blocking(move || {
        if !cgroup.exists() {
            return;
        }
        if let Err(error) = cgroup.kill(KILL_LIMIT).and_then(|()| cgroup.remove()) {
            tracing::warn!(
                container = id,
                error = crate::error::chain(&error),
                "removing the container's cgroup"
            );
        }
    })
    .await;
}

/// Ends a container through its shim, and the shim, if one answers.
async fn through_shim(record: &ContainerRecord, bundle: &Path) {
    let deadline = Instant::now() + SHIM_LIMIT;
    // A shim that is just creating its container has nothing yet that could be killed, and does not end before it is done:
    // it is asked until it is gone.
    while let Ok(shim) = Shim::connect(&record.id, bundle) {
        let killed = tokio::time::timeout(ANSWER, shim.kill("", libc::SIGKILL, true)).await;
        let Ok(killed) = killed else {
            // Nor would it answer the next question: the kernel is asked instead.
            tracing::warn!(container = record.id, "the shim does not answer");
            break;
        };
        if killed.is_ok() {
            let _ = tokio::time::timeout(KILL_LIMIT, shim.wait("")).await;
        }
        super::clean_up(&record.id, &shim).await;
        if Instant::now() > deadline {
            tracing::warn!(container = record.id, "the shim does not end");
            break;
        }
        tokio::time::sleep(SHIM_STEP).await;
    }
}

/// Removes the directories and the record of a container that has ended. Does all it can; returns what it could not.
pub(crate) async fn remove(tools: &Tools, record: &ContainerRecord) -> Vec<Error> {
    let mut errors = Vec::new();
    let layout = tools.layout(&record.id);
    let trash = tools.trash().join(&record.id);
    let moved = tokio::task::spawn_blocking(move || {
        let mut errors = Vec::new();
        errors.extend(tree(&layout.bundle).err());
        errors.extend(discard(&layout.writable, &trash).err());
        (errors, trash)
    })
    .await;
    match moved {
        Ok((failed, trash)) => {
            errors.extend(failed);
            // A writable layer may hold many files: the caller does not wait for them. What a crash leaves in the trash
            // goes at the next start.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = tree(&trash) {
                    tracing::warn!(error = crate::error::chain(&error), "deleting a writable layer");
                }
            });
        }
        Err(_) => errors.push(Error::Interrupted("removing a container")),
    }
    if errors.is_empty() {
        errors.extend(tools.records.remove(&record.id).await.map_err(Error::Record).err());
    }
    errors
}

/// Moves a directory into the trash, so that it is gone at once.
fn discard(directory: &Path, trash: &Path) -> Result<(), Error> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Path { action, path, source }
    };
    if let Some(parent) = trash.parent() {
        fs::create_dir_all(parent).map_err(failed("making the directory", parent))?;
    }
    match fs::rename(directory, trash) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("moving to the trash", directory)),
    }
}

/// Deletes a directory and all in it, however deep its container nested directories; one that is not there is fine. Refuses one that has something mounted below: what
/// is in a mount is not ours to delete.
pub(crate) fn tree(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Path { action: "deleting", path: directory.to_owned(), source };
    if let Some(mount) = spec::mounted_below(directory).map_err(failed)? {
        return Err(Error::Path {
            action: "deleting a directory that has a mount below it:",
            path: mount,
            source: io::Error::from_raw_os_error(libc::EBUSY),
        });
    }
    image::tree::remove_path(directory).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn a_mount_below_is_never_deleted() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/b");
        fs::create_dir_all(&target).unwrap();
        mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(target.join("precious"), b"x").unwrap();
        let refused = tree(&root.path().join("a"));
        let survived = target.join("precious").exists();
        umount2(&target, MntFlags::MNT_DETACH).unwrap();
        assert!(refused.unwrap_err().to_string().contains("a/b"));
        assert!(survived);
        tree(&root.path().join("a")).unwrap();
        tree(&root.path().join("a")).unwrap();
        assert!(!root.path().join("a").exists());
    }

    /// A container may nest directories as deep as its disk has room.
    #[test]
    fn what_is_nested_deep_is_deleted() {
        let root = tempfile::Builder::new().prefix("berth-deep").tempdir_in("/run").unwrap();
        let upper = root.path().join("upper");
        fs::create_dir(&upper).unwrap();
        image::tree::testing::nested(&upper, 30_000);
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        let target = upper.clone();
        thread.spawn(move || tree(&target)).unwrap().join().unwrap().unwrap();
        assert!(!upper.exists());
    }

    /// Mounts of a thread of its own: other tests read the table as text.
    #[test]
    fn a_mount_is_found_by_any_name() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let root = tempfile::tempdir().unwrap();
        let (home, link) = (root.path().join("a disk"), root.path().join("link"));
        let target = home.join("x/mounted");
        fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&home, &link).unwrap();
        let odd = root.path().join(OsStr::from_bytes(b"not-\xff-text"));
        fs::create_dir(&odd).unwrap();
        let test = std::thread::spawn(move || {
            let none: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let tmpfs = |at: &Path| mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            tmpfs(&target);
            fs::write(target.join("precious"), b"x").unwrap();
            tree(&home.join("x")).unwrap_err();
            tree(&link.join("x")).unwrap_err();
            tmpfs(&odd);
            tree(&home.join("x")).unwrap_err();
            assert!(target.join("precious").exists());
            // A link is not what it leads to.
            std::os::unix::fs::symlink(&target, home.join("away")).unwrap();
            let _ = tree(&home.join("away"));
            assert!(target.join("precious").exists());
            umount2(&target, MntFlags::MNT_DETACH).unwrap();
            tree(&link.join("x")).unwrap();
            assert!(!home.join("x").exists() && tree(&link.join("none/x")).is_ok());
        });
        test.join().unwrap();
    }

    #[test]
    fn the_trash_takes_a_directory_at_once() {
        let root = tempfile::tempdir().unwrap();
        let (from, trash) = (root.path().join("containers/x"), root.path().join("trash/x"));
        fs::create_dir_all(from.join("fs")).unwrap();
        discard(&from, &trash).unwrap();
        discard(&from, &trash).unwrap();
        assert!(!from.exists() && trash.join("fs").is_dir());
    }
}
