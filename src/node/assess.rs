//! A step held against what is there.

use super::Error;
use super::manifest::{Made, Manifest};
use super::plan::{Standing, Step};
use super::root::{FileFacts, Found, HostRoot};

/// What a step finds.
pub(super) enum Verdict {
    Same,
    Make,
    /// Ours of before, with its facts if it is a file.
    Replace(Found),
    Amend(FileFacts),
    Yield(&'static str),
}

/// Holds a step against what is there.
pub(super) fn assess(root: &HostRoot, manifest: &Manifest, step: &Step) -> Result<Verdict, Error> {
    let Some(path) = step.path() else { return Ok(Verdict::Same) };
    let entry = manifest.entry(path);
    let found = root.look(path)?;
    let (wanted, standing) = match step {
        Step::Directory(_) => {
            return match found {
                None => Ok(Verdict::Make),
                Some(_) if root.is_directory(path.as_str()) => Ok(Verdict::Same),
                Some(found) => Err(Error::Conflict { path: path.clone(), what: found.word() }),
            };
        }
        Step::Keep(_) => {
            return match (entry, found) {
                (Some(entry), Some(found)) if entry.is(&found) => Ok(Verdict::Same),
                _ => Err(Error::Changed(path.clone())),
            };
        }
        Step::File { standing, .. } | Step::Link { standing, .. } => (step.made(), *standing),
        Step::Service(_) => return Ok(Verdict::Same),
    };
    let Some(found) = found else { return Ok(Verdict::Make) };
    let same = match (&wanted, &found) {
        (Some(Made::File { sha256, .. }), Found::File(facts)) => facts.sha256 == *sha256,
        (Some(Made::Link { target, .. }), Found::Link(to)) => to == target,
        _ => false,
    };
    if same {
        return Ok(Verdict::Same);
    }
    if entry.is_some_and(|entry| entry.is(&found)) {
        return Ok(Verdict::Replace(found));
    }
    match (standing, found, entry) {
        (Standing::Amends, Found::File(facts), _) => Ok(Verdict::Amend(facts)),
        (Standing::Needed, _, Some(_)) => Err(Error::Changed(path.clone())),
        (Standing::Needed, found, None) => Err(Error::Conflict { path: path.clone(), what: found.word() }),
        (_, _, Some(_)) => Ok(Verdict::Yield("changed since it was installed; it is left as it is")),
        (_, _, None) => Ok(Verdict::Yield("not ours; it is left as it is")),
    }
}
