//! The home directory of a container's user, from the container's own `/etc/passwd`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// The most of a passwd file that is looked at.
const PASSWD_MAX: u64 = 1 << 20;

/// The home directory of `uid`, or `/`. The kernel keeps the look-up inside `root`.
pub(crate) fn of(root: &Path, uid: u32) -> String {
    find(root, uid).unwrap_or_else(|| "/".to_owned())
}

fn find(root: &Path, uid: u32) -> Option<String> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&root, "etc/passwd", flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let mut text = String::new();
    File::from(file).take(PASSWD_MAX).read_to_string(&mut text).ok()?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|field| field.parse().ok()) == Some(uid))
        .and_then(|fields| fields.get(5).map(|home| (*home).to_owned()))
        .filter(|home| !home.is_empty())
}
