//! RuntimeConfig: the cgroup driver, which the kubelet follows (KEP-4033).

use tonic::Status;

use crate::config;
use crate::proto::runtime::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse,
};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    _: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, Status> {
    let driver = match face.facts.cgroup_driver {
        config::CgroupDriver::Systemd => CgroupDriver::Systemd,
        config::CgroupDriver::Cgroupfs | config::CgroupDriver::Auto => CgroupDriver::Cgroupfs,
    };
    Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
}
