//! The embedded runtime over ONNX Runtime's real library passes the suite of every runtime and ONNX's own. In a process of
//! its own: what a C library takes is seen in the heap of the whole process, so another test beside it would be measured, too.

use berth_adapters::conformance::{Abilities, onnx_suite};
use berth_adapters::{OnnxConfig, OnnxRuntime};
use berth_telemetry::Clock;
use berth_testkit::Parts;

// Loads are measured with the allocator that the binary has.
#[global_allocator]
static ALLOCATOR: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_runtime_over_onnx_runtime_keeps_the_contract() {
    let parts = Parts::from_env().expect("run through cargo xtask test");
    let clock = Clock::system();
    let config = OnnxConfig { library: Some(parts.onnx_library.clone()), ..OnnxConfig::default() };
    let runtime = OnnxRuntime::start(&config, clock.clone()).expect("the library of the parts opens");
    let folder = tempfile::tempdir().expect("a folder");
    onnx_suite(&runtime, &clock, folder.path(), Abilities::ONNX_RUNTIME).await;
}
