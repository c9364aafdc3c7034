//! A person's files unpacked, by the same hands as a layer's: nothing leads out of the directory.
//!
//! Beside a layer's rules: `.wh.` names are names like others; a directory that is there is added to and otherwise left as it is; a
//! directory does not take a file's place, nor a file a directory's; devices are not made.

use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;

use super::entry::Writer;
use super::root::Root;
use super::{Archive, Error, Limits, limits};
use crate::image::owners::Owners;

const BUFFER: usize = 128 << 10;

/// Unpacks a plain tar archive into a directory, to its end. Files belong to whom the archive says, as `owners` calls them
/// here; without it to whoever unpacks, and don't change users (set-user-id), and only attributes of `user.` come along.
///
/// Blocking.
///
/// # Errors
/// The first entry that can't be made; what was made before it stays.
pub fn extract(
    directory: OwnedFd,
    source: impl Read,
    owners: Option<Owners>,
    limits: &Limits,
) -> Result<(), Error> {
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, source));
    let mut writer = Writer::copying(Root::beneath(directory), owners);
    let (mut entries, mut bytes) = (0, 0_u64);
    while let Some(header) = archive.next()? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(limits::Exceeded::Entries(limits.layer_entries).into());
        }
        bytes = bytes.saturating_add(header.size);
        if bytes > limits.layer_bytes {
            return Err(limits::Exceeded::Bytes(limits.layer_bytes).into());
        }
        writer.apply(&header, &mut archive)?;
    }
    // Who sends goes on until all is taken.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::image::unpack::EntryError;

    fn entry(
        builder: &mut tar::Builder<Vec<u8>>,
        kind: tar::EntryType,
        name: &str,
        link: &str,
        bytes: &[u8],
    ) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1_700_000_000);
        header.set_size(bytes.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }

    fn unpack(
        at: &Path,
        owners: Option<Owners>,
        entries: &[(tar::EntryType, &str, &str)],
    ) -> Result<(), Error> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, link) in entries {
            let content: &[u8] = if *kind == tar::EntryType::Regular { b"new" } else { b"" };
            entry(&mut builder, *kind, name, link, content);
        }
        let directory = rustix::fs::open(at, OFlags::DIRECTORY, Mode::empty()).unwrap();
        extract(directory, builder.into_inner().unwrap().as_slice(), owners, &Limits::default())
    }

    #[test]
    fn what_is_there_is_added_to() {
        use tar::EntryType::{Directory, Regular};
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/kept"), "kept").unwrap();
        fs::write(at("d/old"), "old").unwrap();
        let mode = fs::metadata(at("d")).unwrap().mode();
        unpack(
            root.path(),
            None,
            &[(Directory, "./", ""), (Directory, "d/", ""), (Regular, "d/old", ""), (Regular, "d/.wh.x", "")],
        )
        .unwrap();
        assert_eq!(fs::metadata(at("d")).unwrap().mode(), mode, "left as it is");
        assert_eq!(fs::read_to_string(at("d/kept")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(at("d/.wh.x")).unwrap(), "new");
        let new = fs::metadata(at("d/old")).unwrap();
        let me = rustix::process::getuid().as_raw();
        assert_eq!((new.uid(), new.mode() & 0o7777), (me, 0o755), "no other user's, and no set-user-id");

        let occupied = |entries| {
            let Err(Error::Entry { source: EntryError::Occupied(_), .. }) =
                unpack(root.path(), None, entries)
            else {
                panic!("not refused")
            };
        };
        occupied(&[(Regular, "d", "")]);
        occupied(&[(Directory, "d/old/", "")]);
        assert_eq!(fs::read_to_string(at("d/kept")).unwrap(), "kept");
    }

    #[test]
    fn owners_are_kept_where_they_are_asked_for() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let owners = Owners::of_maps("0 1000 10", "0 2000 10");
        unpack(root.path(), owners, &[(tar::EntryType::Regular, "f", "")]).unwrap();
        let file = fs::metadata(root.path().join("f")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1005, 2006, 0o4755));
        let nobody = Owners::of_maps("0 1000 2", "0 2000 2");
        assert!(unpack(root.path(), nobody, &[(tar::EntryType::Regular, "g", "")]).is_err());
    }

    #[test]
    fn nothing_leads_out() {
        use tar::EntryType::{Block, Char, Link, Regular, Symlink};
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let away = outside.path().to_str().unwrap();
        std::os::unix::fs::symlink(away, root.path().join("there")).unwrap();
        for entries in [
            &[(Regular, "there/x", "")][..],
            &[(Symlink, "link", away), (Regular, "link/x", "")],
            &[(Symlink, "up", "../.."), (Regular, "up/x", "")],
            &[(Regular, "../x", "")],
            &[(Link, "x", "there/x")],
            &[(Char, "x", "")],
            &[(Block, "x", "")],
        ] {
            assert!(unpack(root.path(), None, entries).is_err(), "{entries:?}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
