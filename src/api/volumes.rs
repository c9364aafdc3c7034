//! `berth.v1.Volumes`: directories with names. Who uses them is seen in what containers mount.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tonic::{Request, Response, Status};

use crate::container::fill_from_image;
use crate::cri::status_of;
use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::{
    CreateVolumeRequest, CreateVolumeResponse, InspectVolumeRequest, InspectVolumeResponse,
    ListVolumesRequest, ListVolumesResponse, PrepareVolumeRequest, PrepareVolumeResponse,
    RemoveVolumeRequest, RemoveVolumeResponse, Volume as Message, volumes_server,
};
use crate::volume::{Error, Volume, Volumes};

/// The service.
#[derive(Clone, Debug)]
pub struct VolumesFace {
    pods: Pods,
    images: Images,
    volumes: Volumes,
}

impl VolumesFace {
    /// The service over these volumes, and what uses and fills them.
    pub fn new(pods: Pods, images: Images, volumes: Volumes) -> Self {
        Self { pods, images, volumes }
    }

    fn message(&self, volume: Volume) -> Message {
        Message {
            users: users(&self.pods, &volume.path),
            name: volume.name,
            path: volume.path.to_string_lossy().into_owned(),
            created_at: volume.created_at,
            labels: volume.labels.into_iter().collect(),
        }
    }

    /// Runs what blocks beside the workers.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Volumes) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let volumes = self.volumes.clone();
        tokio::task::spawn_blocking(move || work(&volumes))
            .await
            .map_err(|error| Status::internal(format!("working on volumes: {error}")))?
            .map_err(status_of)
    }
}

/// Containers that mount the directory, or something in it.
fn users(pods: &Pods, path: &Path) -> Vec<String> {
    let pods = pods.pods();
    let containers = pods.iter().flat_map(|pod| &pod.containers);
    let mounts = containers
        .filter(|one| one.config.mounts.iter().any(|mount| Path::new(&mount.host_path).starts_with(path)));
    mounts.map(|container| container.id.clone()).collect()
}

#[tonic::async_trait]
impl volumes_server::Volumes for VolumesFace {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let CreateVolumeRequest { name, labels } = request.into_inner();
        let labels = sorted(labels);
        let made = self.work(move |volumes| volumes.create(&name, &labels)).await?;
        Ok(Response::new(CreateVolumeResponse { volume: Some(self.message(made)) }))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let all = self.work(Volumes::list).await?;
        let volumes = all.into_iter().map(|volume| self.message(volume)).collect();
        Ok(Response::new(ListVolumesResponse { volumes }))
    }

    async fn inspect_volume(
        &self,
        request: Request<InspectVolumeRequest>,
    ) -> Result<Response<InspectVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let found = self.work(move |volumes| volumes.get(&name)).await?;
        Ok(Response::new(InspectVolumeResponse { volume: Some(self.message(found)) }))
    }

    async fn prepare_volume(
        &self,
        request: Request<PrepareVolumeRequest>,
    ) -> Result<Response<PrepareVolumeResponse>, Status> {
        let PrepareVolumeRequest { name, image, path } = request.into_inner();
        let mut layers = None;
        if !image.is_empty() {
            let found = self.images.get(&image);
            let found = found.ok_or_else(|| Status::not_found(format!("image {image:?} not found")))?;
            let hold = self.images.hold(&found);
            layers = Some((self.images.lower_dirs(&found).await.map_err(status_of)?, hold));
        }
        let prepared = self
            .work(move |volumes| {
                volumes.ready(&name, |target| match &layers {
                    Some((layers, _hold)) => fill_from_image(layers, Path::new(&path), target),
                    None => std::fs::create_dir_all(target),
                })
            })
            .await?;
        Ok(Response::new(PrepareVolumeResponse { volume: Some(self.message(prepared)) }))
    }

    async fn remove_volume(
        &self,
        request: Request<RemoveVolumeRequest>,
    ) -> Result<Response<RemoveVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let pods = self.pods.clone();
        self.work(move |volumes| volumes.remove(&name, |path| users(&pods, path))).await?;
        Ok(Response::new(RemoveVolumeResponse {}))
    }
}

fn sorted(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}
