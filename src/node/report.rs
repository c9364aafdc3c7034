//! What an installation or its removal did, or would do.

use serde::Serialize;

use super::root::HostPath;

/// What an installation or its removal did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Paths, in order.
    pub changes: Vec<Change>,
    /// What systemd was told.
    pub systemctl: Vec<String>,
    /// What is left for the administrator, where systemd does not run on the host.
    pub left: Vec<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which.
    pub path: HostPath,
    /// In a word.
    pub what: What,
}

/// What happens to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It was not there.
    Make,
    /// Ours of an earlier installation gave way.
    Replace,
    /// Somebody else's was put aside.
    Amend,
    /// Ours went.
    Remove,
    /// Somebody else's came back.
    Restore,
    /// Somebody else's, or ours that somebody changed: left alone.
    Keep,
}

impl What {
    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Make => "make",
            Self::Replace => "replace",
            Self::Amend => "amend",
            Self::Remove => "remove",
            Self::Restore => "restore",
            Self::Keep => "keep",
        }
    }
}

impl Report {
    pub(super) fn change(&mut self, path: &HostPath, what: What) {
        self.changes.push(Change { path: path.clone(), what });
    }

    /// Whether anything was, or would be, touched.
    pub fn is_idle(&self) -> bool {
        self.changes.iter().all(|change| change.what == What::Keep) && self.systemctl.is_empty()
    }
}
