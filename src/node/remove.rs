//! Takes an installation off a host by its manifest: what is ours and unchanged goes, what was put aside comes back, what
//! somebody changed stays and is named. It does all it can, and can be run again.

use std::io::Cursor;
use std::path::Path;

use super::containerd;
use super::manifest::{self, Entry, Made, Manifest, Saved};
use super::places::{BACKUP, SERVICE};
use super::report::{Report, What};
use super::root::{Found, HostPath, HostRoot};
use super::systemd::Systemd;
use super::{Error, HOME, kubelet};

/// Uninstalls, or with `dry` says what it would do.
///
/// # Errors
/// When the manifest can't be trusted (then nothing was touched), or some things could not be removed.
pub fn uninstall(root: &Path, dry: bool) -> Result<Report, Error> {
    let root = HostRoot::lock(root)?;
    let mut report = Report::default();
    let Some(mut manifest) = Manifest::load(&root)? else {
        if !dry {
            sweep(&root)?;
        }
        report.notes.push("nothing is installed".into());
        return Ok(report);
    };
    let all = manifest.entries.clone();
    if dry {
        for entry in all.iter().rev() {
            let found = root.look(&entry.path)?;
            let what = match (&found, &entry.before) {
                (None, _) => continue,
                (Some(found), before) if entry.is(found) => match before {
                    Some(_) => What::Restore,
                    None => What::Remove,
                },
                _ => What::Keep,
            };
            report.change(&entry.path, what);
        }
        return Ok(report);
    }
    let entries_of_home = |entry: &Entry| Manifest::is_home(&entry.path);
    let gone = all.iter().filter(|entry| !entries_of_home(entry)).cloned().collect();
    let failed = entries(&root, &mut manifest, gone, &mut report);
    if !failed.is_empty() {
        manifest.store(&root)?;
        return Err(Error::Remains(failed));
    }
    for path in home(&root, &manifest)? {
        report.change(&path, What::Remove);
    }
    Ok(report)
}

/// Removes entries, last first, tells the services, and drops the entries from the manifest. Returns what failed; that stays
/// on record.
pub(super) fn entries(
    root: &HostRoot,
    manifest: &mut Manifest,
    gone: Vec<Entry>,
    report: &mut Report,
) -> Vec<Error> {
    let systemd = Systemd::at(root);
    let mut failed = Vec::new();
    let tell = |arguments: &[&str], report: &mut Report, failed: &mut Vec<Error>| match &systemd {
        None => report.left.push(format!("systemctl {}", arguments.join(" "))),
        Some(systemd) => match systemd.call(arguments) {
            Ok(()) => report.systemctl.push(arguments.join(" ")),
            Err(error) => failed.push(error),
        },
    };
    let (first, rest): (Vec<_>, Vec<_>) =
        gone.into_iter().partition(|entry| entry.path.as_str() == kubelet::DROP_IN);
    // The kubelet goes back to its old runtime while ours still answers.
    if !first.is_empty() {
        sink(root, manifest, first, report, &mut failed);
        tell(&["daemon-reload"], report, &mut failed);
        tell(&["try-restart", "kubelet.service"], report, &mut failed);
    }
    let service = rest.iter().any(|entry| entry.path.name() == SERVICE);
    if service {
        tell(&["stop", SERVICE], report, &mut failed);
    }
    let containerd = rest
        .iter()
        .any(|entry| entry.path.as_str() == containerd::CONFIG || entry.path.as_str() == containerd::DROP_IN);
    sink(root, manifest, rest, report, &mut failed);
    if service {
        tell(&["daemon-reload"], report, &mut failed);
    }
    if containerd {
        tell(&["try-restart", "containerd.service"], report, &mut failed);
    }
    failed
}

fn sink(
    root: &HostRoot,
    manifest: &mut Manifest,
    gone: Vec<Entry>,
    report: &mut Report,
    failed: &mut Vec<Error>,
) {
    // Copies of what could not be brought back stay, with their directory.
    let mut wanted: Vec<HostPath> = Vec::new();
    let is_copy = |entry: &Entry| entry.path.as_str() == BACKUP || entry.path.parent() == BACKUP;
    let (copies, others): (Vec<_>, Vec<_>) = gone.into_iter().rev().partition(is_copy);
    for entry in others.into_iter().chain(copies) {
        if wanted.contains(&entry.path) || (!wanted.is_empty() && entry.path.as_str() == BACKUP) {
            continue;
        }
        match one(root, &entry) {
            Ok(outcome) => {
                match outcome {
                    Outcome::Nothing => {}
                    Outcome::Done(what) => report.change(&entry.path, what),
                    Outcome::Kept(why) => {
                        report.change(&entry.path, What::Keep);
                        report.notes.push(format!("{}: {why}", entry.path));
                    }
                }
                manifest.forget(&entry.path);
            }
            Err(error) => {
                wanted.extend(entry.before.as_ref().and_then(|saved| saved.copy().ok()));
                failed.push(error);
            }
        }
    }
}

enum Outcome {
    Nothing,
    Done(What),
    Kept(&'static str),
}

fn one(root: &HostRoot, entry: &Entry) -> Result<Outcome, Error> {
    let path = &entry.path;
    root.settle(path)?;
    let Some(found) = root.look(path)? else { return Ok(Outcome::Nothing) };
    if entry.made == (Made::Directory {}) {
        return match found {
            Found::Directory if root.remove_directory(path)? => Ok(Outcome::Done(What::Remove)),
            Found::Directory => Ok(Outcome::Kept("not empty: what others put there stays")),
            _ => Ok(Outcome::Nothing),
        };
    }
    if entry.is(&found) {
        return match &entry.before {
            None => root.remove(path).map(|()| Outcome::Done(What::Remove)),
            Some(saved) => restore(root, path, saved).map(|()| Outcome::Done(What::Restore)),
        };
    }
    let Found::File(facts) = found else { return Ok(Outcome::Kept("changed since it was installed")) };
    if entry.before.as_ref().is_some_and(|saved| saved.sha256 == facts.sha256) {
        return Ok(Outcome::Nothing);
    }
    if path.as_str() == containerd::CONFIG {
        let content = root.read(path, manifest::SAVED_LIMIT)?.unwrap_or_default();
        if let Some(cut) = std::str::from_utf8(&content).ok().and_then(containerd::cut) {
            root.put_file(path, &mut Cursor::new(cut), facts.mode, true)?;
            root.dress(path, &facts)?;
            root.settle(path)?;
            return Ok(Outcome::Kept("changed since it was installed: only our lines were taken out"));
        }
    }
    Ok(Outcome::Kept("changed since it was installed"))
}

/// Brings back what was put aside.
fn restore(root: &HostRoot, path: &HostPath, saved: &Saved) -> Result<(), Error> {
    let copy = saved.copy()?;
    let lost = |why: &str| Error::Host {
        doing: "bringing back what was before",
        path: path.clone(),
        source: std::io::Error::other(format!("its copy {copy} {why}")),
    };
    match root.look(&copy)? {
        None => return Err(lost("is gone")),
        Some(Found::File(facts)) if facts.sha256 == saved.sha256 => {}
        Some(_) => return Err(lost("was changed")),
    }
    let content = root.read(&copy, manifest::SAVED_LIMIT)?.unwrap_or_default();
    root.put_file(path, &mut Cursor::new(content), saved.mode, true)?;
    root.dress(path, &saved.facts())?;
    root.settle(path)
}

/// Removes the manifest, and the home directory as far as it is ours and empty. Returns the directories that went.
pub(super) fn home(root: &HostRoot, manifest: &Manifest) -> Result<Vec<HostPath>, Error> {
    let (opt, home) = (HostPath::try_from("/opt")?, HostPath::try_from(HOME)?);
    root.settle(&Manifest::path()?)?;
    let ours = |path: &HostPath| manifest.entry(path).is_some();
    if ours(&opt) && root.vanish(&opt, &["berth"], manifest::FILE)? {
        return Ok(vec![home, opt]);
    }
    if ours(&home) && root.vanish(&home, &[], manifest::FILE)? {
        return Ok(vec![home]);
    }
    root.remove(&Manifest::path()?)?;
    Ok(Vec::new())
}

/// Removes what a run left that was interrupted before there was a manifest, or after.
pub(super) fn sweep(root: &HostRoot) -> Result<(), Error> {
    root.vanish_staged(&HostPath::try_from("/opt")?, &["berth"], manifest::FILE)?;
    root.vanish_staged(&HostPath::try_from(HOME)?, &[], manifest::FILE)
}
