//! How the host's mounts propagate: a container can only take part in what the host's mount shares.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::Error;

/// What a mount of the container needs of the host's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Need {
    /// For `rslave`.
    SharedOrSlave,
    /// For `rshared`.
    Shared,
}

/// The host's mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug)]
pub(super) struct MountTable(Vec<(PathBuf, Kind)>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Private,
    Shared,
    Slave,
}

/// A mount at `directory` or below it, if there is one. Links on the way to it are followed, one at its end is not.
///
/// # Errors
/// The table, or where the directory is, can't be read: nobody knows then.
pub(crate) fn mounted_below(directory: &Path) -> io::Result<Option<PathBuf>> {
    let parent = match directory.parent().map(Path::canonicalize) {
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Some(parent) => parent?,
        None => PathBuf::new(),
    };
    // The kernel tells the places of mounts without links.
    let directory = directory.file_name().map_or(PathBuf::from("/"), |name| parent.join(name));
    let MountTable(mounts) = MountTable::parse(&fs::read("/proc/thread-self/mountinfo")?);
    Ok(mounts.into_iter().map(|(at, _)| at).find(|at| at.starts_with(&directory)))
}

/// Checks a path on the host; the table is read at the first need.
pub(super) fn check(table: &mut Option<MountTable>, path: &Path, need: Need) -> Result<(), Error> {
    let table = match table {
        Some(table) => table,
        None => {
            let file = PathBuf::from("/proc/self/mountinfo");
            let text = fs::read(&file).map_err(|source| Error::HostPath {
                field: "mounts[].propagation",
                path: file,
                source,
            })?;
            table.insert(MountTable::parse(&text))
        }
    };
    table.check(path, need)
}

impl MountTable {
    fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(line).collect())
    }

    fn check(&self, path: &Path, need: Need) -> Result<(), Error> {
        // The deepest mount holds the path; of mounts at one place the last is on top.
        let holder = self.0.iter().filter(|(at, _)| path.starts_with(at));
        let (mount_point, kind) = holder
            .max_by_key(|(at, _)| at.components().count())
            .map_or((PathBuf::from("/"), Kind::Private), |(at, kind)| (at.clone(), *kind));
        let (enough, propagation, needed, make) = match need {
            Need::Shared => (kind == Kind::Shared, "BIDIRECTIONAL", "shared", "shared"),
            Need::SharedOrSlave => (kind != Kind::Private, "HOST_TO_CONTAINER", "shared or slave", "shared"),
        };
        if enough {
            return Ok(());
        }
        let found = match kind {
            Kind::Private => "private",
            Kind::Shared => "shared",
            Kind::Slave => "slave",
        };
        Err(Error::Propagation { path: path.to_path_buf(), mount_point, propagation, needed, found, make })
    }
}

fn line(line: &[u8]) -> Option<(PathBuf, Kind)> {
    let mut fields = line.split(|b| *b == b' ');
    let mount_point = unescape(fields.nth(4)?);
    let mut kind = Kind::Private;
    // After the mount options come optional fields up to a lone dash.
    for field in fields.skip(1).take_while(|field| *field != b"-") {
        if field.starts_with(b"shared:") {
            kind = Kind::Shared; // a slave that is shared too passes on what it gets
        } else if field.starts_with(b"master:") && kind == Kind::Private {
            kind = Kind::Slave;
        }
    }
    Some((OsString::from_vec(mount_point).into(), kind))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /srv rw shared:5 - tmpfs tmpfs rw
31 22 0:26 / /slave rw master:5 - tmpfs tmpfs rw
32 22 0:27 / /both rw shared:7 master:5 - tmpfs tmpfs rw
33 30 0:28 / /srv/a\\040b rw - tmpfs tmpfs rw
34 22 0:29 / /twice rw - tmpfs tmpfs rw
35 34 0:30 / /twice rw shared:9 - tmpfs tmpfs rw
garbage
";

    #[test]
    fn propagation() {
        let table = MountTable::parse(TABLE);
        for (path, slave, shared) in [
            ("/", false, false),
            ("/etc", false, false),
            ("/srv", true, true),
            ("/srv/x", true, true),
            ("/srvx", false, false),
            ("/srv/a b/c", false, false),
            ("/slave/x", true, false),
            ("/both", true, true),
            ("/twice", true, true),
        ] {
            assert_eq!(table.check(Path::new(path), Need::SharedOrSlave).is_ok(), slave, "{path}");
            assert_eq!(table.check(Path::new(path), Need::Shared).is_ok(), shared, "{path}");
        }
    }

    #[test]
    fn the_error_says_what_to_do() {
        let error =
            MountTable::parse(TABLE).check(Path::new("/slave/x"), Need::Shared).unwrap_err().to_string();
        assert_eq!(
            error,
            "mounts[].host_path /slave/x: propagation BIDIRECTIONAL needs a shared mount, /slave is slave: \
             run `mount --make-rshared /slave` on the host"
        );
    }

    #[test]
    fn of_this_machine() {
        let mut table = None;
        let _ = check(&mut table, Path::new("/proc"), Need::Shared);
        assert!(!table.unwrap().0.is_empty());
    }
}
