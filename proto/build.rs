//! Generates the Rust code of `proto/*.proto` with a compiler written in Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/inference.proto", "proto/modelmesh.proto", "proto/rpc_errors.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".inference").compile_fds(files)?;
    Ok(())
}
