//! Generates the client's side of Berth's network API, which `berth-overlay` asks a daemon by.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../proto/berth/v1/networks.proto");
    let files = protox::compile(["berth/v1/networks.proto"], ["../proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
