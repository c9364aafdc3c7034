//! One daemon per directory: an advisory lock on a file in it, which the kernel drops when the daemon ends, however it
//! ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use super::Error;

/// Name of the file.
const NAME: &str = "berthd.lock";

/// Holds the directory for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory, or says who has it.
    pub(crate) fn take(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let error = |source| Error::Io { doing: "locking", path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let pid = holder.trim().parse().ok();
                return Err(Error::InUse { directory: directory.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(error)?;
        writeln!(file, "{}", std::process::id()).map_err(error)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_second_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        let message = Lock::take(directory.path()).unwrap_err().to_string();
        let holder = format!("(pid {})", std::process::id());
        assert!(message.contains(&holder) && message.contains("another berthd"), "{message}");
        drop(first);
        Lock::take(directory.path()).unwrap();
    }
}
