//! Inference in, a loaded copy found, the answer out: the gRPC and REST ports of the Open Inference Protocol, and the
//! small servers for metrics and probes.
//!
//! A request becomes an id ([`id`](mod@id)), the id a registration of one view and the registration a guarded copy
//! ([`route`]); [`Frontend`] runs the model under the caller's deadline. `grpc` and `rest` only translate. What a caller
//! can run into is one enum, [`Fault`], and its codes are one table ([`codes`]).
//!
//! Kept here: a request waits only under its own deadline; the copy that serves it stays guarded until the runtime has
//! answered; message sizes are bounded before they are read, and what all requests hold together by one budget; a client
//! that connects and says nothing is cut off; a caller that goes away takes its wait with it. Left to others: loading and
//! eviction (`berth-residency`), what a name stands for (`berth-registry`), checking tensors against the model (the
//! runtime).

mod body;
mod budget;
pub mod codes;
mod config;
mod connections;
mod context;
mod cores;
mod first;
mod frontend;
mod grpc;
mod health;
pub mod id;
mod mesh;
mod meters;
pub mod methods;
mod opaque;
mod ops;
pub mod payloads;
mod reflection;
mod rest;
pub mod route;
#[cfg(test)]
mod scripted;
mod streaming;
mod tls;
mod waiting;
mod weight;
mod wire;

pub use codes::{Fault, Verdict};
pub use config::{MOST_THREADS, ProxyConfig};
pub use connections::{Door, serve_http};
pub use context::LogHeaders;
pub use frontend::{Frontend, RuntimeServer};
pub use grpc::serve_grpc;
pub use health::Ready;
pub use mesh::{BearerToken, ControllerServer, IsToken, ManagementPort, Writes, serve_management};
pub use ops::{PreStop, serve_metrics, serve_prestop, serve_probes};
pub use rest::serve_rest;
pub use route::{Here, Models};
pub use tls::{ClientAuth, ClientIdentity, Passphrase, Tls, TlsFile, TlsSettings};
