//! Generates the Rust code of `proto/*.proto` with a compiler written in Rust: no `protoc` is needed.

/// What clients are told about.
const FILES: [&str; 3] = ["proto/inference.proto", "proto/modelmesh.proto", "proto/rpc_errors.proto"];

/// What is spoken with inference servers, and between agents and controllers.
const INWARD: [&str; 4] = ["proto/attendance.proto", "proto/modelruntime.proto", "proto/repository.proto", "proto/torchserve.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES.iter().chain(&INWARD), ["proto"])?;
    tonic_prost_build::configure().bytes(".inference").compile_fds(files)?;
    // The same without comments, for server reflection.
    let descriptors = protox::Compiler::new(["proto"])?.include_imports(true).open_files(FILES)?.encode_file_descriptor_set();
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    Ok(std::fs::write(std::path::Path::new(&out).join("descriptors.bin"), descriptors)?)
}
