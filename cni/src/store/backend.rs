//! A file without `fdatasync`: its pages are in the kernel's memory, which is all that records of one boot need.
//!
//! They have to outlive the process, killed at any moment, and must not outlive the kernel: after a power loss they describe
//! nothing that exists, and [`super::Store::open`] begins anew by the boot's id. On a state directory that is not a tmpfs each
//! commit would otherwise wait for the disk.

use std::{fs::File, io, os::unix::fs::FileExt};

use redb::StorageBackend;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

#[derive(Debug)]
pub(super) struct Unsynced(pub(super) File);

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        #[cfg(test)]
        counted::add(out.len());
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.len()?;
        if len <= now {
            return self.0.set_len(len);
        }
        // Room for all of it at once: a page that is there can be written on a full disk too, so that what is recorded can be
        // taken back.
        match fallocate(&self.0, FallocateFlags::empty(), now, len - now) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.0.set_len(len),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        {
            counted::add(data.len());
            if full::is() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.0.write_all_at(data, offset)
    }
}

/// What the calling thread has read and written: the cost of an operation, whatever else the machine does.
#[cfg(test)]
pub(crate) mod counted {
    use std::cell::Cell;

    thread_local! {
        static SO_FAR: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    }

    pub(super) fn add(bytes: usize) {
        SO_FAR.with(|so_far| so_far.set((so_far.get().0 + 1, so_far.get().1 + bytes)));
    }

    /// Operations and bytes since the last call.
    pub(crate) fn take() -> (usize, usize) {
        SO_FAR.with(Cell::take)
    }
}

/// A disk that is full for the calling thread.
#[cfg(test)]
pub(crate) mod full {
    use std::cell::Cell;

    thread_local! {
        static FULL: Cell<bool> = const { Cell::new(false) };
    }

    pub(crate) fn set(full: bool) {
        FULL.with(|cell| cell.set(full));
    }

    pub(super) fn is() -> bool {
        FULL.with(Cell::get)
    }
}
