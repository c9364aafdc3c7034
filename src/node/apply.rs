//! Carries a plan out: each step is held against what is there, recorded, then done; the first that fails undoes all
//! that this run did.

mod obsolete;
mod run;
mod services;

use super::Error;
use super::assess::{Verdict, assess};
use super::manifest::Manifest;
use super::plan::{Options, Plan, Step};
use super::remove;
use super::report::{Report, What};
use super::root::HostRoot;
use super::systemd::Systemd;
use obsolete::obsolete;
use run::Run;
use services::service_verbs;

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

/// Carries out a plan on a host whose lock is held.
///
/// # Errors
/// The step that failed, and what could not be undone of those before it.
pub fn run(root: &HostRoot, plan: &Plan) -> Result<Report, Error> {
    let before = Manifest::load(root)?;
    if before.is_none() {
        remove::sweep(root)?;
    }
    let mut run = Run::new(root, plan, before.as_ref())?;
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
