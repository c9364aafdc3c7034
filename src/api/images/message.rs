//! Progress as messages, platforms from them; images and credentials are the CRI's.

use tonic::Status;

use crate::image::{self, Phase, Platform, Progress};
use crate::proto::berth::v1::{ImageUsage, LayerProgress, UsageResponse, layer_progress::Stage};

/// A step of a layer.
pub(super) fn layer(progress: &Progress) -> LayerProgress {
    let stage = match progress.phase {
        Phase::Waiting => Stage::Waiting,
        Phase::Downloading => Stage::Downloading,
        Phase::Exists => Stage::Exists,
        Phase::Uploading => Stage::Uploading,
        Phase::Mounted => Stage::Mounted,
        Phase::Done => Stage::Verified,
    };
    LayerProgress {
        digest: progress.layer.to_string(),
        stage: stage.into(),
        offset: progress.current,
        total: progress.total,
    }
}

/// What images take.
pub(super) fn usage(usage: image::Usage) -> UsageResponse {
    let images = usage.images.into_iter().map(|image| ImageUsage {
        id: image.id,
        bytes: image.bytes,
        unique_bytes: image.unique_bytes,
        in_use: image.in_use,
        pinned: image.pinned,
    });
    UsageResponse { images: images.collect(), bytes: usage.bytes, reclaimable_bytes: usage.reclaimable_bytes }
}

/// `os/architecture[/variant]`; none when empty.
pub(super) fn platform(text: &str) -> Result<Option<Platform>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] if !variant.is_empty() => (*os, *architecture, *variant),
        _ => ("", "", ""),
    };
    if os.is_empty() || architecture.is_empty() {
        return Err(Status::invalid_argument(format!(
            "platform {text:?} is not os/architecture[/variant], as in linux/arm64/v8"
        )));
    }
    Ok(Some(Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms() {
        assert_eq!(platform("").unwrap(), None);
        let arm = platform("linux/arm64/v8").unwrap().unwrap();
        assert_eq!(
            (arm.os.as_str(), arm.architecture.as_str(), arm.variant.as_str()),
            ("linux", "arm64", "v8")
        );
        assert_eq!(platform("linux/amd64").unwrap().unwrap().variant, "");
        for wrong in ["linux", "/amd64", "linux/", "linux/arm/", "a/b/c/d"] {
            assert!(platform(wrong).unwrap_err().message().contains("linux/arm64/v8"), "{wrong}");
        }
    }
}
