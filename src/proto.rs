//! Messages and services generated from `proto/`.

/// The Container Runtime Interface (`proto/runtime/v1/api.proto`).
#[allow(
    missing_docs,
    unreachable_pub,
    deprecated,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]
pub mod runtime {
    /// CRI v1.
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

pub mod metrics;

/// Berth's own messages (`proto/berth/v1`).
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub mod berth {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("berth.v1");
    }
}

/// The Node Resource Interface (`proto/nri/v1alpha1/api.proto`).
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub mod nri {
    /// Version 1, alpha 1.
    pub mod v1alpha1 {
        tonic::include_proto!("nri.pkg.api.v1alpha1");
    }
}
