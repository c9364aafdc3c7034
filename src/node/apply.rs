//! Carries a plan out: each step is held against what is there, recorded, then done; the first that fails undoes all
//! that this run did.

use std::io::Cursor;

use serde::Serialize;

use super::manifest::{self, BACKUP, Entry, Made, Manifest, Saved};
use super::plan::{Content, Options, Plan, SERVICE, Standing, Step};
use super::remove;
use super::root::{FileFacts, Found, HostPath, HostRoot};
use super::systemd::Systemd;
use super::{Error, HOME, VERSIONS, containerd};

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

/// Installs, or with `dry` says what it would do.
///
/// # Errors
/// When the host, the programs or the configuration don't allow it; then nothing on the host has changed.
pub fn install(options: &Options, dry: bool) -> Result<Report, Error> {
    let root = HostRoot::lock(&options.root)?;
    let manifest = Manifest::load(&root)?;
    let plan = Plan::make(options, &root, manifest.as_ref())?;
    if dry { preview(&root, &plan, manifest) } else { run(&root, &plan) }
}

/// Says what [`run`] would do.
fn preview(root: &HostRoot, plan: &Plan, manifest: Option<Manifest>) -> Result<Report, Error> {
    let manifest = manifest.unwrap_or_else(|| Manifest::new(&plan.version, plan.mode));
    let mut report = Report { notes: plan.notes.clone(), ..Report::default() };
    let mut settled = 0;
    for step in &plan.steps {
        if let Step::Service(unit) = step {
            let changed = report.changes[settled..].iter().any(|change| change.what != What::Keep);
            settled = report.changes.len();
            let verbs = service_verbs(unit, changed);
            match Systemd::at(root) {
                Some(_) => report.systemctl.extend(verbs),
                None => report.left.extend(verbs.iter().map(|verb| format!("systemctl {verb}"))),
            }
            continue;
        }
        let Some(path) = step.path() else { continue };
        match assess(root, &manifest, step)? {
            Verdict::Same => {}
            Verdict::Make => report.change(path, What::Make),
            Verdict::Replace(_) => report.change(path, What::Replace),
            Verdict::Amend(_) => report.change(path, What::Amend),
            Verdict::Yield(why) => {
                report.change(path, What::Keep);
                report.notes.push(format!("{path}: {why}"));
            }
        }
    }
    let mut after = manifest;
    after.turn_to(plan);
    for entry in obsolete(&after, plan) {
        report.change(&entry.path, What::Remove);
    }
    Ok(report)
}

/// What systemd is told so that a service runs with new files.
fn service_verbs(unit: &str, changed: bool) -> Vec<String> {
    match (unit == SERVICE, changed) {
        (true, true) => vec!["daemon-reload".into(), format!("restart {unit}")],
        (true, false) => vec![format!("start {unit}")],
        // Others' services are not started by us, only told.
        (false, true) => vec!["daemon-reload".into(), format!("try-restart {unit}")],
        (false, false) => Vec::new(),
    }
}

/// What a step finds.
enum Verdict {
    Same,
    Make,
    /// Ours of before, with its facts if it is a file.
    Replace(Found),
    Amend(FileFacts),
    Yield(&'static str),
}

/// Holds a step against what is there.
fn assess(root: &HostRoot, manifest: &Manifest, step: &Step) -> Result<Verdict, Error> {
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

/// Carries out a plan on a host whose lock is held.
///
/// # Errors
/// The step that failed, and what could not be undone of those before it.
pub fn run(root: &HostRoot, plan: &Plan) -> Result<Report, Error> {
    let before = Manifest::load(root)?;
    if before.is_none() {
        remove::sweep(root)?;
    }
    let mut manifest = before.clone().unwrap_or_else(|| Manifest::new(&plan.version, plan.mode));
    for entry in &manifest.entries {
        root.settle(&entry.path)?;
    }
    manifest.turn_to(plan);
    let mut run = Run {
        root,
        systemd: Systemd::at(root),
        manifest,
        stored: before.clone(),
        undo: Vec::new(),
        told: Vec::new(),
        report: Report { notes: plan.notes.clone(), ..Report::default() },
        settled: 0,
    };
    for step in &plan.steps {
        if let Err(cause) = run.step(step) {
            let left = run.take_back(before.as_ref());
            return Err(Error::Step { step: describe(step), cause: Box::new(cause), left });
        }
    }
    run.commit(plan)
}

fn describe(step: &Step) -> String {
    match step {
        Step::Directory(path) => format!("making the directory {path}"),
        Step::File { path, .. } => format!("writing {path}"),
        Step::Link { path, .. } => format!("linking {path}"),
        Step::Keep(path) => format!("keeping {path}"),
        Step::Service(unit) => format!("starting {unit} with the new files"),
    }
}

/// How something that was done is undone.
enum Undo {
    Remove(HostPath),
    RemoveDirectory(HostPath),
    PutBack(HostPath),
}

/// One run.
struct Run<'a> {
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

impl Run<'_> {
    fn step(&mut self, step: &Step) -> Result<(), Error> {
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
        store(self.root, &self.manifest)?;
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
    fn take_back(mut self, before: Option<&Manifest>) -> Vec<Error> {
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
                Some(before) => store(self.root, before),
                None => remove::home(self.root, &self.manifest).map(|_| ()),
            };
            if let Err(error) = outcome {
                left.push(error);
            }
        }
        left
    }

    /// All steps are through: what was replaced goes, and what no version needs any more.
    fn commit(mut self, plan: &Plan) -> Result<Report, Error> {
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

/// Writes the host's manifest.
pub(super) fn store(root: &HostRoot, manifest: &Manifest) -> Result<(), Error> {
    let path = Manifest::path()?;
    let over = root.look(&path)?.is_some();
    root.put_file(&path, &mut Cursor::new(manifest.to_bytes()?), 0o600, over)?;
    root.settle(&path)
}

/// What is on record and has no place in a plan: older versions than the one before, files of another mode, copies of
/// what came back.
fn obsolete(manifest: &Manifest, plan: &Plan) -> Vec<Entry> {
    let kept = |path: &HostPath| {
        let planned = plan.steps.iter().any(|step| step.path() == Some(path));
        let version = |version: &String| {
            let directory = format!("{VERSIONS}/{version}");
            path.as_str() == directory || path.is_below(&directory)
        };
        let mut copies = manifest.entries.iter().filter(|entry| {
            plan.steps.iter().any(|step| step.path() == Some(&entry.path)) && entry.before.is_some()
        });
        let saved = match path.parent() == BACKUP {
            true => {
                copies.any(|entry| entry.before.as_ref().is_some_and(|saved| saved.sha256 == path.name()))
            }
            false => path.as_str() == BACKUP && copies.next().is_some(),
        };
        let above = plan.steps.iter().filter_map(Step::path).any(|planned| planned.is_below(path.as_str()));
        planned || above || saved || Manifest::is_home(path) || manifest.kept_versions().any(version)
    };
    manifest.entries.iter().filter(|entry| !kept(&entry.path)).cloned().collect()
}

impl Manifest {
    /// Becomes that of a plan.
    fn turn_to(&mut self, plan: &Plan) {
        if self.version != plan.version {
            self.previous = Some(std::mem::replace(&mut self.version, plan.version.clone()));
        }
        self.mode = plan.mode;
    }

    fn kept_versions(&self) -> impl Iterator<Item = &String> {
        self.previous.iter().chain([&self.version])
    }
}
