//! Where others may change a container's specification before it is made.
//!
//! Who they are, this room does not know: whoever calls [`super::make`] hands in a function.

use std::sync::Arc;

use futures::future::BoxFuture;
use oci_spec::runtime::Spec;

use super::error::Error;
use super::refusal::Refusal;
use super::snapshot::ContainerSnapshot;
use super::spec::{self, Host};
use crate::cgroup::Mode;

/// Changes the specification of the container, or refuses it.
pub(crate) type Adjust =
    Box<dyn FnOnce(Arc<ContainerSnapshot>, Spec) -> BoxFuture<'static, Result<Spec, Refusal>> + Send>;

/// Lets `adjust` change the specification, and takes out of the result what this machine can't do, as the specification's
/// own builder would have: the second value says what.
pub(super) async fn adjusted(
    adjust: Adjust,
    container: ContainerSnapshot,
    built: Spec,
    host: &Host,
) -> Result<(Spec, Vec<String>), Error> {
    let mut spec = adjust(Arc::new(container), built).await?;
    let notes = fit(&mut spec, host);
    Ok((spec, notes))
}

fn fit(spec: &mut Spec, host: &Host) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(process) = spec.process_mut()
        && let Some(wanted) = process.oom_score_adj()
    {
        let (score, note) = spec::cap_oom_score_adj(host, wanted);
        notes.extend(note);
        process.set_oom_score_adj(Some(score));
    }
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    let Some(resources) = resources else { return notes };
    if !host.hugetlb && resources.hugepage_limits().is_some() {
        resources.set_hugepage_limits(None);
        notes.push("limits of huge pages have no effect: no hugetlb controller".to_owned());
    }
    if host.cgroup != Mode::Unified && resources.unified().is_some() {
        resources.set_unified(None);
        notes.push("unified resources have no effect on cgroup v1".to_owned());
    }
    if let Some(memory) = resources.memory_mut()
        && memory.swap().is_some()
        && !host.swap
    {
        memory.set_swap(None);
        notes.push("a limit of swap has no effect: this kernel does not account swap".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use oci_spec::runtime::{LinuxHugepageLimit, LinuxMemory};

    use super::*;

    #[test]
    fn what_the_machine_lacks_is_taken_out() {
        let mut spec = Spec::default();
        spec.process_mut().as_mut().unwrap().set_oom_score_adj(Some(-900));
        let resources = spec.linux_mut().as_mut().unwrap().resources_mut().as_mut().unwrap();
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(1)).set_swap(Some(2));
        resources
            .set_memory(Some(memory))
            .set_hugepage_limits(Some(vec![LinuxHugepageLimit::default()]))
            .set_unified(Some([("memory.high".to_owned(), "1".to_owned())].into()));
        let mut host = super::super::spec::testing::Fixture::new().host;
        (host.swap, host.hugetlb, host.cgroup, host.may_exceed) = (false, false, Mode::Hybrid, false);
        host.oom_score_adj = 0;
        let notes = fit(&mut spec, &host);
        assert_eq!(notes.len(), 4, "{notes:?}");
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(1));
        assert_eq!(resources.memory().unwrap().swap(), None);
        assert_eq!((resources.hugepage_limits(), resources.unified()), (&None, &None));
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(0));
    }

    #[test]
    fn a_refusal_says_who_and_what() {
        let refusal = Refusal { who: "plugin 10-x".into(), step: "CreateContainer", reason: "no".into() };
        assert_eq!(refusal.to_string(), "plugin 10-x refuses CreateContainer: no");
    }
}
