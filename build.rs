//! Generates Rust from the protocol definitions in `proto/`, without an external `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(
        [
            "runtime/v1/api.proto",
            "berth/v1/containers.proto",
            "berth/v1/debug.proto",
            "berth/v1/images.proto",
            "berth/v1/networks.proto",
            "berth/v1/record.proto",
            "berth/v1/volumes.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        // Verbose status answers show configurations as JSON.
        .type_attribute(".runtime.v1", "#[derive(serde::Serialize)]")
        // Written by hand: see there.
        .extern_path(".runtime.v1.PodSandboxMetrics", "crate::proto::metrics::PodSandboxMetrics")
        .compile_fds(files)?;
    // NRI runs over ttrpc on a transport of its own (src/nri/wire.rs): messages only.
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(protox::compile(["nri/v1alpha1/api.proto"], ["proto"])?)?;
    Ok(())
}
