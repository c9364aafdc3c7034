//! What shims are told of criu, in their requests to dump and to create.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use prost::Message as _;

/// containerd's `runc.v1.CheckpointOptions`, and fields of ours (from 1001), which other shims pass over.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Options {
    #[prost(bool, tag = "2")]
    pub(super) open_tcp: bool,
    #[prost(bool, tag = "3")]
    pub(super) external_unix_sockets: bool,
    #[prost(bool, tag = "5")]
    pub(super) file_locks: bool,
    #[prost(string, tag = "9")]
    pub(super) work_path: String,
    #[prost(string, tag = "1001")]
    pub(super) criu: String,
    #[prost(string, tag = "1002")]
    pub(super) hold: String,
    #[prost(uint64, tag = "1003")]
    pub(super) limit: u64,
}

/// What a container is to be restored from.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Directory of criu's images.
    pub images: PathBuf,
    /// Directory of criu's log; made if it is not there.
    pub work: PathBuf,
    /// The criu program.
    pub criu: PathBuf,
    /// How long criu may take.
    pub limit: Duration,
}

impl Restore {
    /// Path and options of a Create request.
    pub(super) fn message(&self) -> (String, Any) {
        let options = Options {
            work_path: self.work.to_string_lossy().into_owned(),
            criu: self.criu.to_string_lossy().into_owned(),
            limit: nanoseconds(self.limit),
            ..Options::default()
        };
        (self.images.to_string_lossy().into_owned(), options.into_any())
    }
}

pub(super) fn nanoseconds(limit: Duration) -> u64 {
    u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)
}

impl Options {
    pub(super) fn into_any(self) -> Any {
        Any {
            type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
            value: self.encode_to_vec(),
            ..Default::default()
        }
    }
}
