//! The CRI faces: gRPC in, one domain call, gRPC out. No state and no rules of their own.
//!
//! One file per call, named as the call, under `runtime/` and `image/`. `validate` refuses malformed requests,
//! `filter` selects what lists show, `message` writes pods and containers as CRI messages, and `status` is the only place
//! where an error becomes a gRPC status.

mod facts;
mod filter;
#[cfg(test)]
pub(crate) mod fixtures;
mod image;
mod info;
mod message;
mod metrics;
mod runtime;
mod status;
mod stream;
mod trace;
mod usage;
mod validate;

pub use facts::{Facts, Handler};
pub use image::ImageFace;
pub(crate) use image::message as image_message;
pub use runtime::RuntimeFace;
pub use status::of as status_of;
