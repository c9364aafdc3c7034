//! What an installation wrote on a host: every path, what was put there, and what was there before.
//!
//! It lies in `/opt/berth/manifest.json` and is written before the step it speaks of, so that it is never short of
//! anything. A manifest is input as any other: only paths that an installation writes to are believed, so that nobody can
//! make an uninstallation remove something else by writing one.

use std::io::Cursor;

use serde::{Deserialize, Serialize};

use super::places::{self, BACKUP};
use super::root::{FileFacts, Found, HostPath, HostRoot};
use super::{Error, HOME, Mode, VERSIONS};

/// Its file's name.
pub(crate) const FILE: &str = "manifest.json";
/// Where it lies.
pub const PATH: &str = "/opt/berth/manifest.json";
/// Bytes of the largest that is read.
const LIMIT: u64 = 1 << 20;
/// Bytes of the largest file of somebody else that is put aside.
pub(crate) const SAVED_LIMIT: u64 = 1 << 20;
/// Most paths in one.
const ENTRIES: usize = 512;

/// What an installation wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this file; 1 is the only one.
    pub format: u32,
    /// The version in use.
    pub version: String,
    /// The version before it, kept for going back.
    pub previous: Option<String>,
    /// What the node uses Berth for.
    pub mode: Mode,
    /// In the order they were made.
    pub entries: Vec<Entry>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Where.
    pub path: HostPath,
    /// What was put there.
    pub made: Made,
    /// What was there; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Saved>,
}

/// What was put somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Made {
    /// A directory, removed when it is empty.
    Directory {},
    /// A file.
    File {
        /// Of its content.
        sha256: String,
        /// Of the content it had from the installation before, until this one was through.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
    },
    /// A symbolic link.
    Link {
        /// Where to.
        target: String,
        /// Where it pointed to, until the installation was through.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
    },
}

/// A file of somebody else that was put aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Of its content; the copy lies in the directory of saved files under this name.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed, in seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
}

impl Saved {
    /// Where the copy lies.
    pub(crate) fn copy(&self) -> Result<HostPath, Error> {
        HostPath::try_from(format!("{BACKUP}/{}", self.sha256))
    }

    /// As facts of a file.
    pub(crate) fn facts(&self) -> FileFacts {
        let Self { sha256, mode, uid, gid, modified } = self.clone();
        FileFacts { sha256, mode, uid, gid, modified }
    }
}

impl From<FileFacts> for Saved {
    fn from(facts: FileFacts) -> Self {
        let FileFacts { sha256, mode, uid, gid, modified } = facts;
        Self { sha256, mode, uid, gid, modified }
    }
}

impl Entry {
    /// Whether what is there is what an installation put there.
    pub(crate) fn is(&self, found: &Found) -> bool {
        match (&self.made, found) {
            (Made::Directory {}, Found::Directory) => true,
            (Made::File { sha256, replaces }, Found::File(facts)) => {
                facts.sha256 == *sha256 || replaces.as_ref() == Some(&facts.sha256)
            }
            (Made::Link { target, replaces }, Found::Link(to)) => {
                to == target || replaces.as_ref() == Some(to)
            }
            _ => false,
        }
    }
}

impl Manifest {
    /// Of a host where nothing was installed yet.
    pub(crate) fn new(version: &str, mode: Mode) -> Self {
        Self { format: 1, version: version.to_owned(), previous: None, mode, entries: Vec::new() }
    }

    /// Where it lies, as a path.
    pub(crate) fn path() -> Result<HostPath, Error> {
        HostPath::try_from(PATH)
    }

    /// Reads the host's, if there is one.
    ///
    /// # Errors
    /// When it can't be read, or says what no installation wrote.
    pub fn load(root: &HostRoot) -> Result<Option<Self>, Error> {
        let path = Self::path()?;
        let Some(content) = root.read(&path, LIMIT)? else { return Ok(None) };
        let wrong = |why: String| Error::Manifest { path: path.clone(), why };
        let manifest: Self = serde_json::from_slice(&content)
            .map_err(|error| wrong(format!("not as written by us: {error}")))?;
        manifest.check().map_err(wrong)?;
        Ok(Some(manifest))
    }

    fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("format {} is not known to this version", self.format));
        }
        if self.entries.len() > ENTRIES {
            return Err(format!("more than {ENTRIES} paths"));
        }
        for version in self.previous.iter().chain([&self.version]) {
            places::version(version).map_err(|error| error.to_string())?;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if !places::is_ours(&entry.path) {
                return Err(format!("it names {}, which no installation writes", entry.path));
            }
            if self.entries[..index].iter().any(|other| other.path == entry.path) {
                return Err(format!("it names {} twice", entry.path));
            }
            let hashes = match &entry.made {
                Made::File { sha256, replaces } => replaces.iter().chain([sha256]).collect(),
                _ => Vec::new(),
            };
            let saved = entry.before.iter().map(|saved| &saved.sha256);
            for hash in saved.chain(hashes) {
                if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(format!("a digest of {} is none", entry.path));
                }
            }
        }
        Ok(())
    }

    /// Writes it on a host.
    pub(crate) fn store(&self, root: &HostRoot) -> Result<(), Error> {
        let path = Self::path()?;
        let over = root.look(&path)?.is_some();
        root.put_file(&path, &mut Cursor::new(self.to_bytes()?), 0o600, over)?;
        root.settle(&path)
    }

    /// The file as it is written.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let path = Self::path()?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Host {
            doing: "writing",
            path,
            source: error.into(),
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What it says of a path.
    pub fn entry(&self, path: &HostPath) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == *path)
    }

    /// Puts an entry in place of the one for the same path, or at the end.
    pub(crate) fn record(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|known| known.path == entry.path) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// Drops what it says of a path.
    pub(crate) fn forget(&mut self, path: &HostPath) {
        self.entries.retain(|entry| entry.path != *path);
    }

    /// What was replaced is settled.
    pub(crate) fn settle(&mut self) {
        for entry in &mut self.entries {
            match &mut entry.made {
                Made::File { replaces, .. } | Made::Link { replaces, .. } => *replaces = None,
                Made::Directory {} => {}
            }
        }
    }

    /// The versions that are on the host, by their directories.
    pub fn versions(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|entry| entry.path.parent() == VERSIONS).map(|entry| entry.path.name())
    }

    /// Whether a path belongs to the home directory itself.
    pub(crate) fn is_home(path: &HostPath) -> bool {
        path.as_str() == HOME || path.as_str() == "/opt"
    }
}
