//! One operation on a pod or a container, told to the plugins that were there when it began.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::join_all;
use oci_spec::runtime::Spec;

use super::collect::{Creation, Others, Update};
use super::owners::Owners;
use super::plugin::Plugin;
use super::plugins::Generation;
use super::{Shared, apply, describe, others};
use crate::container::{ContainerSnapshot, Refusal};
use crate::pod::{ContainerStep, Operation, PodSnapshot, PodStep, Told};
use crate::proto::nri::v1alpha1::*;
use crate::proto::runtime::v1::LinuxContainerResources;

/// An operation under way.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) shared: Arc<Shared>,
    pub(super) generation: Arc<Generation>,
}

impl Begun {
    fn plugins(&self) -> &[Arc<Plugin>] {
        &self.generation.plugins
    }

    async fn pod_step(&self, step: PodStep, pod: &PodSnapshot) -> Result<(), Refusal> {
        let described = describe::pod(pod);
        let pod = Some(described.clone());
        // One after the other in the order of their index. A refusal ends it: those that come after are not told.
        for plugin in self.plugins() {
            macro_rules! tell {
                ($event:ident, $request:ident) => {
                    plugin.tell(Event::$event, &$request { pod: pod.clone() }, &described, None).await?
                };
            }
            match step {
                PodStep::Run => tell!(RunPodSandbox, RunPodSandboxRequest),
                PodStep::Updated => tell!(PostUpdatePodSandbox, PostUpdatePodSandboxRequest),
                PodStep::Stop => tell!(StopPodSandbox, StopPodSandboxRequest),
                PodStep::Remove => tell!(RemovePodSandbox, RemovePodSandboxRequest),
            }
        }
        Ok(())
    }

    async fn pod_update(
        &self,
        pod: &PodSnapshot,
        overhead: Option<&LinuxContainerResources>,
        resources: Option<&LinuxContainerResources>,
    ) -> Result<(), Refusal> {
        let request = UpdatePodSandboxRequest {
            pod: Some(describe::pod(pod)),
            overhead_linux_resources: overhead.map(describe::from_cri),
            linux_resources: resources.map(describe::from_cri),
        };
        for plugin in self.plugins() {
            plugin.ask::<_, UpdatePodSandboxResponse>(Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    async fn container_step(
        &self,
        step: ContainerStep,
        pod: &PodSnapshot,
        container: &ContainerSnapshot,
    ) -> Result<(), Refusal> {
        let described = self.described(container).await;
        let sandbox = describe::pod(pod);
        let mut ended = Others::default();
        let mut owners = Owners::default();
        for plugin in self.plugins() {
            macro_rules! tell {
                ($event:ident, $request:ident) => {{
                    let request = $request { pod: Some(sandbox.clone()), container: Some(described.clone()) };
                    plugin.tell(Event::$event, &request, &sandbox, Some(&described)).await?
                }};
            }
            match step {
                ContainerStep::Created => tell!(PostCreateContainer, PostCreateContainerRequest),
                ContainerStep::Start => tell!(StartContainer, StartContainerRequest),
                ContainerStep::Started => tell!(PostStartContainer, PostStartContainerRequest),
                ContainerStep::Updated => tell!(PostUpdateContainer, PostUpdateContainerRequest),
                ContainerStep::Remove => tell!(RemoveContainer, RemoveContainerRequest),
                ContainerStep::Stop => {
                    let request = StopContainerRequest {
                        pod: Some(sandbox.clone()),
                        container: Some(described.clone()),
                    };
                    let answer: Option<StopContainerResponse> =
                        plugin.ask(Event::StopContainer, &request).await?;
                    let updates = answer.unwrap_or_default().update;
                    ended
                        .take(&mut owners, &plugin.name(), updates, Vec::new())
                        .map_err(|error| plugin.refusal("StopContainer", error.to_string()))?;
                }
            }
        }
        self.apply(ended).await;
        Ok(())
    }

    async fn creation(
        &self,
        pod: &PodSnapshot,
        container: &ContainerSnapshot,
        spec: Spec,
    ) -> Result<Spec, Refusal> {
        let pod = describe::pod(pod);
        let pristine = describe::container(container, Some(&spec));
        let mut creation = Creation::new(pristine.clone());
        for plugin in self.plugins() {
            let request = CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(creation.container.clone()),
            };
            let answer: Option<CreateContainerResponse> =
                plugin.ask(Event::CreateContainer, &request).await?;
            creation
                .take(&plugin.name(), answer.unwrap_or_default())
                .map_err(|error| plugin.refusal("CreateContainer", error.to_string()))?;
        }
        self.validate(&pod, pristine, &creation).await?;
        let Creation { adjust, others, .. } = creation;
        self.apply(others).await;
        let devices = self.shared.options.devices.clone();
        let adjusted = tokio::task::spawn_blocking(move || {
            let mut spec = spec;
            apply::adjust(&mut spec, &adjust, &devices).map(|()| spec)
        });
        let refused = |reason: String| Refusal {
            who: "the adjustment by NRI plugins".to_owned(),
            step: "CreateContainer",
            reason,
        };
        match adjusted.await {
            Ok(adjusted) => adjusted.map_err(|error| refused(crate::error::chain(&error))),
            Err(_) => Err(refused("cut off by the daemon's shutdown".to_owned())),
        }
    }

    /// Lets those who validate see what the others want. All at once: they can't change it any more.
    async fn validate(
        &self,
        pod: &PodSandbox,
        pristine: Container,
        creation: &Creation,
    ) -> Result<(), Refusal> {
        const EVENT: Event = Event::ValidateContainerAdjustment;
        if !self.plugins().iter().any(|plugin| plugin.wants(EVENT)) {
            return Ok(());
        }
        let asked = self.plugins().iter().filter(|plugin| plugin.wants(Event::CreateContainer));
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()),
            container: Some(pristine),
            adjust: Some(creation.adjust.clone()),
            update: creation.others.updates.clone(),
            owners: Some(creation.owners.message()),
            plugins: asked
                .map(|plugin| PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() })
                .collect(),
        };
        let validators = self.plugins().iter().filter(|plugin| plugin.wants(EVENT));
        let verdicts = join_all(validators.map(|plugin| async {
            let there = !plugin.connection.is_closed();
            let answer: Option<ValidateContainerAdjustmentResponse> = plugin.ask(EVENT, &request).await?;
            match answer {
                Some(verdict) if verdict.reject => Err(plugin.refusal("CreateContainer", verdict.reason)),
                Some(_) => Ok(()),
                // Who is there to refuse must have been able to.
                None if there => {
                    Err(plugin.refusal("CreateContainer", "the validator gave no answer".to_owned()))
                }
                None => Ok(()),
            }
        }));
        verdicts.await.into_iter().collect()
    }

    async fn update(
        &self,
        pod: &PodSnapshot,
        container: &ContainerSnapshot,
        resources: LinuxContainerResources,
    ) -> Result<LinuxContainerResources, Refusal> {
        let described = self.described(container).await;
        let pod = describe::pod(pod);
        let mut update = Update::new(&container.id, describe::from_cri(&resources));
        for plugin in self.plugins() {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(described.clone()),
                linux_resources: Some(update.resources.clone()),
            };
            let answer: Option<UpdateContainerResponse> =
                plugin.ask(Event::UpdateContainer, &request).await?;
            update
                .take(&plugin.name(), answer.unwrap_or_default())
                .map_err(|error| plugin.refusal("UpdateContainer", error.to_string()))?;
        }
        let (changed, lost) = describe::to_cri(&update.resources);
        if !lost.is_empty() {
            let fields = lost.join(", ");
            tracing::warn!(container = container.id, fields, "NRI plugins can't change these later");
        }
        // Not awaited: two containers whose updates change each other would wait for one another.
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            others::apply(&shared, "", update.others.updates, update.others.evictions).await;
        });
        Ok(LinuxContainerResources { oom_score_adj: resources.oom_score_adj, ..changed })
    }

    /// The container with what stands in its bundle.
    async fn described(&self, container: &ContainerSnapshot) -> Container {
        let bundle = container.bundle.clone();
        let spec = tokio::task::spawn_blocking(move || describe::read_spec(&bundle)).await;
        describe::container(container, spec.ok().flatten().as_ref())
    }

    async fn apply(&self, wanted: Others) {
        if wanted.updates.is_empty() && wanted.evictions.is_empty() {
            return;
        }
        // What fails is logged: as everywhere, it does not keep the operation that led to it from going on.
        others::apply(&self.shared, "", wanted.updates, wanted.evictions).await;
    }
}

impl Operation for Begun {
    fn is_idle(&self) -> bool {
        self.plugins().is_empty()
    }

    fn pod<'a>(&'a self, step: PodStep, pod: &'a PodSnapshot) -> Told<'a, ()> {
        self.pod_step(step, pod).boxed()
    }

    fn update_pod<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        overhead: Option<&'a LinuxContainerResources>,
        resources: Option<&'a LinuxContainerResources>,
    ) -> Told<'a, ()> {
        self.pod_update(pod, overhead, resources).boxed()
    }

    fn create_container<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
        spec: Spec,
    ) -> Told<'a, Spec> {
        self.creation(pod, container, spec).boxed()
    }

    fn container<'a>(
        &'a self,
        step: ContainerStep,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
    ) -> Told<'a, ()> {
        self.container_step(step, pod, container).boxed()
    }

    fn update_container<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
        resources: LinuxContainerResources,
    ) -> Told<'a, LinuxContainerResources> {
        self.update(pod, container, resources).boxed()
    }
}
