//! What an installation leaves behind it: versions, and what only a former one put there.

use crate::node::VERSIONS;
use crate::node::manifest::{Entry, Manifest};
use crate::node::places::BACKUP;
use crate::node::plan::{Plan, Step};
use crate::node::root::HostPath;

/// What is on record and has no place in a plan: older versions than the one before, files of another mode, copies of
/// what came back.
pub(super) fn obsolete(manifest: &Manifest, plan: &Plan) -> Vec<Entry> {
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
    pub(super) fn turn_to(&mut self, plan: &Plan) {
        if self.version != plan.version {
            self.previous = Some(std::mem::replace(&mut self.version, plan.version.clone()));
        }
        self.mode = plan.mode;
    }

    fn kept_versions(&self) -> impl Iterator<Item = &String> {
        self.previous.iter().chain([&self.version])
    }
}
