//! Wire types, generated from the `.proto` files beside this crate, and nothing else.
//!
//! Everything here is what a peer sends or expects. The crates above turn it into their own types at the edge, once.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::disallowed_methods)]

/// The Open Inference Protocol (KServe V2).
pub mod inference {
    tonic::include_proto!("inference");
}

/// `mmesh`: registering models and names by calls, and giving orders to an inference server.
pub mod mmesh {
    tonic::include_proto!("mmesh");
}

/// The repository API of inference servers: index, load, unload, statistics.
pub mod repository {
    tonic::include_proto!("berth.repository");
}

/// The stream between an agent and its controller.
pub mod attendance {
    tonic::include_proto!("berth.attendance");
}

/// TorchServe's management and predictions.
pub mod torchserve {
    tonic::include_proto!("berth.torchserve");
}

/// `google.rpc`: status details such as `RetryInfo`.
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

/// What clients may call, and its messages, as an encoded `google.protobuf.FileDescriptorSet`: what server reflection tells.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");
