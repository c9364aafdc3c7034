//! Messages and client of Berth's network API, generated from `proto/berth/v1/networks.proto`.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

tonic::include_proto!("berth.v1");
