//! Who is told of each step in the life of pods and containers, and has a say in some.
//!
//! This room knows them as a trait; the `nri` room above implements it. Every step is an [`Operation`] that is begun before
//! anybody is told and dropped when its outcome is published: who joins meanwhile can wait for the operations that do not
//! know of it, and then sees what they led to.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use oci_spec::runtime::Spec;

use super::snapshot::PodSnapshot;
use crate::container::{ContainerSnapshot, Refusal};
use crate::proto::runtime::v1::LinuxContainerResources;

/// A step of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodStep {
    /// Its sandbox stands; nobody else knows of it yet. Can be refused.
    Run,
    /// It has new resources.
    Updated,
    /// Its containers have ended; its sandbox is about to be taken down.
    Stop,
    /// It is about to be removed.
    Remove,
}

/// A step of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerStep {
    /// It was made.
    Created,
    /// Its command is about to run. Can be refused.
    Start,
    /// Its command runs.
    Started,
    /// It has new limits.
    Updated,
    /// It has ended, or will never run.
    Stop,
    /// It is about to be removed.
    Remove,
}

/// Those who are told.
pub trait Lifecycle: Debug + Send + Sync {
    /// Begins an operation: it is told to those who are there now.
    fn begin(&self) -> Arc<dyn Operation>;
}

/// An answer to come.
pub type Told<'a, T> = BoxFuture<'a, Result<T, Refusal>>;

/// One operation. All of it is bounded in time by who implements it.
pub trait Operation: Debug + Send + Sync {
    /// Nobody is there to be told.
    fn is_idle(&self) -> bool;

    /// Tells of a pod's step.
    fn pod<'a>(&'a self, step: PodStep, pod: &'a PodSnapshot) -> Told<'a, ()>;

    /// Tells of resources that a pod is about to have.
    fn update_pod<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        overhead: Option<&'a LinuxContainerResources>,
        resources: Option<&'a LinuxContainerResources>,
    ) -> Told<'a, ()>;

    /// Tells of a container that is about to be made. The answer is the specification it is to be made from.
    fn create_container<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
        spec: Spec,
    ) -> Told<'a, Spec>;

    /// Tells of a container's step.
    fn container<'a>(
        &'a self,
        step: ContainerStep,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
    ) -> Told<'a, ()>;

    /// Tells of limits that a container is about to get. The answer is what it is to get.
    fn update_container<'a>(
        &'a self,
        pod: &'a PodSnapshot,
        container: &'a ContainerSnapshot,
        resources: LinuxContainerResources,
    ) -> Told<'a, LinuxContainerResources>;
}
