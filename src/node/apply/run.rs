//! One run of a plan: each step is recorded, then done, and can be taken back.

use std::io::Cursor;

use crate::node::assess::{Verdict, assess};
use crate::node::manifest::{self, Entry, Made, Manifest, Saved};
use crate::node::places::{BACKUP, SERVICE};
use crate::node::plan::{Content, Plan, Standing, Step};
use crate::node::remove;
use crate::node::report::{Report, What};
use crate::node::root::{FileFacts, Found, HostPath, HostRoot};
use crate::node::systemd::Systemd;
use crate::node::{Error, HOME, containerd};

use super::obsolete::obsolete;
use super::services::service_verbs;

/// How something that was done is undone.
enum Undo {
    Remove(HostPath),
    RemoveDirectory(HostPath),
    PutBack(HostPath),
}

/// One run.
pub(super) struct Run<'a> {
    root: &'a HostRoot,
    systemd: Option<Systemd>,
    /// What will have been done.
    manifest: Manifest,
    /// What the host's manifest says now.
    stored: Option<Manifest>,
    undo: Vec<Undo>,
    /// Services that were told.
    told: Vec<&'static str>,
    report: Report,
    /// Changes that services know of.
    settled: usize,
}

impl<'a> Run<'a> {
    /// Begins from what the host's manifest says.
    pub(super) fn new(root: &'a HostRoot, plan: &Plan, before: Option<&Manifest>) -> Result<Self, Error> {
        let mut manifest = before.cloned().unwrap_or_else(|| Manifest::new(&plan.version, plan.mode));
        for entry in &manifest.entries {
            root.settle(&entry.path)?;
        }
        manifest.turn_to(plan);
        Ok(Self {
            root,
            systemd: Systemd::at(root),
            manifest,
            stored: before.cloned(),
            undo: Vec::new(),
            told: Vec::new(),
            report: Report { notes: plan.notes.clone(), ..Report::default() },
            settled: 0,
        })
    }
}

impl Run<'_> {
    /// Takes a step.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), Error> {
        if let Step::Service(unit) = step {
            return self.service(unit);
        }
        let Some(path) = step.path() else { return Ok(()) };
        let mut verdict = assess(self.root, &self.manifest, step)?;
        if self.stored.is_none() && !matches!(verdict, Verdict::Same | Verdict::Yield(_)) {
            self.begin()?;
            verdict = assess(self.root, &self.manifest, step)?;
        }
        let before = self.manifest.entry(path).and_then(|entry| entry.before.clone());
        let entry = |made, before| Entry { path: path.clone(), made, before };
        let Some(made) = step.made() else { return Ok(()) };
        match verdict {
            // What is as it shall be, and not recorded, is somebody else's.
            Verdict::Same => Ok(()),
            Verdict::Yield(why) => {
                self.report.change(path, What::Keep);
                self.report.notes.push(format!("{path}: {why}"));
                Ok(())
            }
            Verdict::Make => {
                self.record(entry(made, before))?;
                match self.write(step, None, false) {
                    Err(error) if yields(step) && error.is_host(std::io::ErrorKind::ReadOnlyFilesystem) => {
                        // /usr may be read-only; the programs are found by their whole path.
                        self.manifest.forget(path);
                        self.report.notes.push(format!("{error}; it is done without"));
                        return Ok(());
                    }
                    written => written?,
                }
                self.report.change(path, What::Make);
                Ok(())
            }
            Verdict::Replace(found) => {
                let (made, facts) = match (made, found) {
                    (Made::File { sha256, .. }, Found::File(facts)) => {
                        (Made::File { sha256, replaces: Some(facts.sha256.clone()) }, Some(facts))
                    }
                    (Made::Link { target, .. }, Found::Link(to)) => {
                        (Made::Link { target, replaces: Some(to) }, None)
                    }
                    (made, _) => (made, None),
                };
                self.record(entry(made, before))?;
                self.write(step, facts.as_ref(), true)?;
                self.report.change(path, What::Replace);
                Ok(())
            }
            Verdict::Amend(facts) => {
                let saved = self.save(path, facts.clone())?;
                self.record(entry(made, Some(saved)))?;
                self.write(step, Some(&facts), true)?;
                self.report.change(path, What::Amend);
                Ok(())
            }
        }
    }

    /// Writes what a step is about; what it was is `facts`.
    fn write(&mut self, step: &Step, facts: Option<&FileFacts>, over: bool) -> Result<(), Error> {
        match step {
            Step::Directory(path) => {
                // Before: a directory that was made and not given its mode has to go as well.
                self.undo.push(Undo::RemoveDirectory(path.clone()));
                self.root.make_directory(path, 0o755)?;
            }
            Step::File { path, content, mode, standing } => {
                let facts = facts.filter(|_| *standing == Standing::Amends);
                let mode = facts.map_or(*mode, |facts| facts.mode);
                match content {
                    Content::Bytes(bytes) => {
                        self.root.put_file(path, &mut Cursor::new(bytes), mode, over)?;
                    }
                    Content::Copy { from, .. } => {
                        let failed = |source| Error::Source { path: from.clone(), source };
                        let mut file = std::fs::File::open(from).map_err(failed)?;
                        self.root.put_file(path, &mut file, mode, over)?;
                    }
                }
                self.undo.push(if over { Undo::PutBack(path.clone()) } else { Undo::Remove(path.clone()) });
                if let Some(facts) = facts
                    && (facts.uid, facts.gid) != (0, 0)
                {
                    self.root.dress(path, facts)?;
                }
            }
            Step::Link { path, target, .. } => {
                self.root.put_link(path, target, over)?;
                self.undo.push(if over { Undo::PutBack(path.clone()) } else { Undo::Remove(path.clone()) });
            }
            Step::Keep(_) | Step::Service(_) => {}
        }
        Ok(())
    }

    /// Copies somebody's file aside.
    fn save(&mut self, path: &HostPath, facts: FileFacts) -> Result<Saved, Error> {
        let mut saved = Saved::from(facts);
        let bytes = self.root.read(path, manifest::SAVED_LIMIT)?.unwrap_or_default();
        // What comes back is theirs: without lines of ours of another day.
        let theirs = std::str::from_utf8(&bytes).ok().and_then(containerd::cut);
        let content = Content::Bytes(bytes);
        if content.sha256() != saved.sha256 {
            return Err(Error::Changed(path.clone()));
        }
        let content = theirs.map_or(content, |theirs| Content::Bytes(theirs.into()));
        saved.sha256 = content.sha256();
        self.step(&Step::Directory(HostPath::try_from(BACKUP)?))?;
        let copy = saved.copy()?;
        self.step(&Step::File { path: copy, content, mode: 0o600, standing: Standing::Needed })?;
        Ok(saved)
    }

    /// Writes an entry into the host's manifest.
    fn record(&mut self, entry: Entry) -> Result<(), Error> {
        self.manifest.record(entry);
        self.store()
    }

    /// Makes the home directory, with the manifest in it.
    fn begin(&mut self) -> Result<(), Error> {
        let (opt, home) = (HostPath::try_from("/opt")?, HostPath::try_from(HOME)?);
        let (top, inner): (_, &[&str]) = match (self.root.look(&opt)?, self.root.look(&home)?) {
            (None, _) => (Some(opt.clone()), &["berth"]),
            (_, None) => (Some(home.clone()), &[]),
            (_, Some(_)) => (None, &[]),
        };
        let made = |path: &HostPath| Entry { path: path.clone(), made: Made::Directory {}, before: None };
        for path in [&opt, &home] {
            if top.as_ref().is_some_and(|top| path.as_str().len() >= top.as_str().len()) {
                self.manifest.record(made(path));
                self.report.change(path, What::Make);
            }
        }
        match top {
            Some(top) => self.root.appear(&top, inner, manifest::FILE, &self.manifest.to_bytes()?)?,
            None => self.store()?,
        }
        self.stored = Some(self.manifest.clone());
        Ok(())
    }

    fn store(&mut self) -> Result<(), Error> {
        self.manifest.store(self.root)?;
        self.stored = Some(self.manifest.clone());
        Ok(())
    }

    fn service(&mut self, unit: &'static str) -> Result<(), Error> {
        let changed = self.report.changes[self.settled..].iter().any(|change| change.what != What::Keep);
        self.settled = self.report.changes.len();
        let Some(systemd) = &self.systemd else {
            let verbs = service_verbs(unit, changed);
            self.report.left.extend(verbs.into_iter().map(|verb| format!("systemctl {verb}")));
            return Ok(());
        };
        if unit == SERVICE && !changed && systemd.call(&["is-active", "--quiet", unit]).is_ok() {
            return Ok(());
        }
        for verb in service_verbs(unit, changed) {
            if !self.told.contains(&unit) {
                self.told.push(unit);
            }
            systemd.call(&verb.split(' ').collect::<Vec<_>>())?;
            self.report.systemctl.push(verb);
        }
        Ok(())
    }

    /// Undoes what was done, last first. Returns what could not be.
    pub(super) fn take_back(mut self, before: Option<&Manifest>) -> Vec<Error> {
        let mut left = Vec::new();
        let mut keep = |outcome: Result<(), Error>| {
            if let Err(error) = outcome {
                left.push(error);
            }
        };
        let had = |unit: &str| {
            before.is_some_and(|manifest| manifest.entries.iter().any(|e| e.path.name() == unit))
        };
        if let Some(systemd) = &self.systemd
            && self.told.contains(&SERVICE)
            && !had(SERVICE)
        {
            keep(systemd.call(&["stop", SERVICE]));
        }
        for undo in self.undo.drain(..).rev() {
            keep(match undo {
                Undo::Remove(path) => self.root.remove(&path),
                // One that somebody put something into meanwhile stays.
                Undo::RemoveDirectory(path) => self.root.remove_directory(&path).map(|_| ()),
                Undo::PutBack(path) => self.root.put_back(&path),
            });
        }
        if let Some(systemd) = &self.systemd
            && !self.told.is_empty()
        {
            keep(systemd.call(&["daemon-reload"]));
            for unit in &self.told {
                match (*unit == SERVICE, had(SERVICE)) {
                    (true, true) => keep(systemd.call(&["restart", unit])),
                    (true, false) => {}
                    (false, _) => keep(systemd.call(&["try-restart", unit])),
                }
            }
        }
        // What could not be undone must stay on record.
        if left.is_empty() && self.stored.as_ref() != before {
            let outcome = match before {
                Some(before) => before.store(self.root),
                None => remove::home(self.root, &self.manifest).map(|_| ()),
            };
            if let Err(error) = outcome {
                left.push(error);
            }
        }
        left
    }

    /// All steps are through: what was replaced goes, and what no version needs any more.
    pub(super) fn commit(mut self, plan: &Plan) -> Result<Report, Error> {
        for undo in self.undo.drain(..) {
            if let Undo::PutBack(path) = undo {
                self.root.settle(&path)?;
            }
        }
        let gone = obsolete(&self.manifest, plan);
        let mut failed = Vec::new();
        if !gone.is_empty() {
            failed = remove::entries(self.root, &mut self.manifest, gone, &mut self.report);
        }
        self.manifest.settle();
        if self.stored.as_ref() != Some(&self.manifest) {
            self.store()?;
        }
        self.report.notes.extend(failed.iter().map(|error| format!("{error}; it is tried again next time")));
        Ok(self.report)
    }
}

fn yields(step: &Step) -> bool {
    matches!(
        step,
        Step::Link { standing: Standing::Yields, .. } | Step::File { standing: Standing::Yields, .. }
    )
}
