//! Writes images as CRI messages, and reads credentials from them.

use crate::image::{Credentials, FsInfo, Image};
use crate::proto::runtime::v1::{
    self as cri, AuthConfig, FilesystemIdentifier, FilesystemUsage, Int64Value, UInt64Value,
};

/// An image.
pub(crate) fn image(image: &Image) -> cri::Image {
    // Neither number nor name means root to the kubelet.
    let user = image.user();
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: user.uid.map(|value| Int64Value { value }),
        username: user.username,
        spec: None,
        pinned: image.pinned,
    }
}

/// What the registry gets to see; none when nothing is set.
pub(crate) fn credentials(auth: AuthConfig) -> Option<Credentials> {
    let AuthConfig { username, password, auth, server_address, identity_token, registry_token } = auth;
    let parts = [&username, &password, &auth, &identity_token, &registry_token];
    if parts.iter().all(|part| part.is_empty()) {
        return None;
    }
    Some(Credentials { username, password, auth, server_address, identity_token, registry_token })
}

/// The usage of a file system.
pub(super) fn file_system(info: &FsInfo) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: info.timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
        used_bytes: Some(UInt64Value { value: info.used_bytes }),
        inodes_used: Some(UInt64Value { value: info.inodes_used }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_credentials_are_none() {
        assert!(credentials(AuthConfig::default()).is_none());
        let address = AuthConfig { server_address: "registry".into(), ..Default::default() };
        assert!(credentials(address).is_none());
        let token = AuthConfig { identity_token: "t".into(), ..Default::default() };
        assert!(credentials(token).is_some());
    }
}
