//! The shim's program, run so that no container can change it.
//!
//! A process that enters a container is, until it has executed the container's command, a process of this program, and PID 1 of
//! a pod's shared PID namespace is one for good: whoever may look at it in the container can open `/proc/PID/exe`, which is the
//! program itself on the host (CVE-2019-5736). What keeps it from being written is only that it is being executed, and that
//! not on every kernel (Linux 6.11 let it be written); its mode, owner and attributes are not kept at all.
//!
//! So the program is executed by way of a mount of its directory that is read-only, was never attached anywhere, and is let go of as
//! soon as the program was opened on it: `/proc/PID/exe` then leads to that mount. Writing there fails with EROFS, and as the
//! mount is in no mount namespace, nobody can make it writable, whatever his capabilities in a container. It is the same file
//! with the same pages in memory: a sealed copy in memory, the other way to do it, costs every shim its text or the daemon the
//! program's size, and an overlay a file system of its own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::process::Command;

/// The program.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    opened: Mutex<Option<Opened>>,
}

/// The file on its read-only mount.
#[derive(Debug)]
struct Opened {
    /// Device and inode of what stands at the path.
    identity: (u64, u64),
    file: Option<Arc<OwnedFd>>,
}

/// What systemd tells the daemon about itself (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)). A shim passes its environment
/// on: runc would take the container for a service that tells systemd when it is ready, and others might speak for the daemon.
const SERVICE: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

impl Program {
    /// The program at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, opened: Mutex::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs it. The second value must live until the command was spawned.
    pub(crate) fn command(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> (Command, Option<Arc<OwnedFd>>) {
        let file = self.file();
        let mut command = match &file {
            // The child's own descriptors are a copy until it executes: the number is the same there.
            Some(file) => Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => Command::new(&self.path),
        };
        command.arg0(&self.path).args(arguments);
        for name in SERVICE {
            command.env_remove(name);
        }
        (command, file)
    }

    /// The file, opened anew when the program was replaced.
    fn file(&self) -> Option<Arc<OwnedFd>> {
        // One that is not there is for the spawn to report.
        let found = fs::metadata(&self.path).ok()?;
        let identity = (found.dev(), found.ino());
        let mut opened = self.opened.lock();
        if let Some(opened) = opened.as_ref().filter(|opened| opened.identity == identity) {
            return opened.file.clone();
        }
        let file = read_only(&self.path)
            .inspect_err(|error| {
                let program = self.path.display();
                tracing::warn!(%program, %error, "the shim's program is not protected from privileged containers");
            })
            .ok()
            .map(Arc::new);
        *opened = Some(Opened { identity, file: file.clone() });
        file
    }
}

/// Opens a file on a read-only mount that only it is there for.
fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let path = fs::canonicalize(path)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    };
    // The directory, not the file: what can be reached of the mount later is then never its root, which alone could be mounted.
    let tree = open_tree(CWD, directory, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    crate::sys::make_read_only(tree.as_fd())?;
    let file = openat(&tree, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // With the last descriptor on the tree the mount leaves its namespace; the file keeps it.
    drop(tree);
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use super::*;

    async fn said(program: &Program) -> String {
        let (mut command, _file) = program.command(["-c", "echo $0"]);
        let output = command.stdout(Stdio::piped()).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[tokio::test]
    async fn runs_under_its_name_and_is_found_again_when_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shell");
        fs::copy("/bin/sh", &path).unwrap();
        let program = Program::new(path.clone());
        assert_eq!(said(&program).await, path.to_str().unwrap());
        let first = program.file().map(|file| file.as_raw_fd());
        assert_eq!(program.file().map(|file| file.as_raw_fd()), first);
        let other = directory.path().join("other");
        fs::copy("/bin/sh", &other).unwrap();
        let identity = fs::metadata(&other).unwrap().ino();
        fs::rename(other, &path).unwrap();
        assert_eq!(said(&program).await, path.to_str().unwrap());
        assert_eq!(program.opened.lock().as_ref().unwrap().identity.1, identity);
        fs::remove_file(&path).unwrap();
        let (mut command, _file) = program.command(["-c", "true"]);
        assert_eq!(command.status().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_systemd_told_the_daemon_goes_no_further() {
        let (command, _file) = Program::new(PathBuf::from("/bin/sh")).command(["-c", "true"]);
        let without: Vec<_> =
            command.as_std().get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        for name in SERVICE {
            assert!(without.contains(&OsStr::new(name)), "{name}");
        }
    }

    #[tokio::test]
    async fn what_runs_can_not_be_changed_by_way_of_proc() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sleeper");
        fs::copy("/bin/sleep", &path).unwrap();
        let program = Program::new(path.clone());
        let (mut command, file) = program.command(["1000"]);
        if file.is_none() {
            println!("skipped: no mount can be made here");
            return;
        }
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        // What a container may have kept open of it, and writes to when nobody executes it any more.
        let kept = fs::File::open(format!("/proc/{}/exe", child.id().unwrap())).unwrap();
        let link = PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd()));
        let refused =
            |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
        refused(fs::set_permissions(&link, fs::Permissions::from_mode(0o4777)));
        refused(std::os::unix::fs::chown(&link, Some(1), None));
        child.kill().await.unwrap();
        refused(fs::File::options().write(true).open(&link).map(drop));
        drop((program, file));
        refused(fs::File::options().append(true).open(&link).map(drop));
        // The file itself is as it was, for those on the host.
        fs::File::options().write(true).open(&path).map(drop).unwrap();
    }
}
