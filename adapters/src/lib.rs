//! One trait for every inference server, and what implements it.
//!
//! A [`Runtime`] loads and unloads models, says what it truly holds, and, where it runs in this process, answers
//! inference. Only its index makes the proof ([`Unloaded`]) that memory may be given back. [`OnnxRuntime`] is the one
//! inside this process, [`RepositoryServer`] a Triton or MLServer beside it, [`OvmsServer`] an OpenVINO Model Server,
//! [`TorchServe`] what its name says, [`ModelRuntimeServer`] a server that speaks ModelMesh's runtime contract,
//! [`FakeRuntime`] the one for tests;
//! [`conformance`] is what all of them must do.

mod beat;
mod changes;
pub mod conformance;
pub mod counting;
pub mod fake;
mod layout;
mod loads;
mod modelruntime;
mod onnx;
mod open_inference;
mod ovms;
mod repository;
mod rpc;
mod runtime;
pub mod sample;
mod start;
mod tensor;
mod torchserve;
mod unknown;

pub use fake::FakeRuntime;
pub use modelruntime::{Entrance, ModelRuntimeConfig, ModelRuntimeServer, ServedConfig, serve_contract};
pub use onnx::{OnnxConfig, OnnxRuntime, OnnxStartError};
pub use ovms::{OvmsConfig, OvmsServer};
pub use repository::{Dialect, RepositoryConfig, RepositoryServer};
pub use runtime::{
    Artifacts, Health, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, LoadFault, Loaded, ParkError, Runtime, RuntimeDown, RuntimeInfo,
    Seat, UnloadError, Unloaded,
};
pub use start::StartError;
pub use torchserve::{TorchServe, TorchServeConfig};
pub use unknown::{is_unknown_model, is_unknown_to_triton};

// Measures are tested with the allocator that the binary has.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: counting::CountingAllocator = counting::CountingAllocator;
