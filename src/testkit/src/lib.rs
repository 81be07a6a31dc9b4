//! What the whole-system tests and benches stand on: the built binary, real servers and real clients as processes.
//!
//! Everything here meets Berth from outside, over sockets, files and signals, as a user would. Processes are ended by
//! their own id, also when a test panics. Waiting is for an event where there is one (a line, an exit) and otherwise
//! goes through [`eventually`], which has a deadline and tells what it saw last.

mod azure;
mod berth;
mod bounds;
mod calls;
mod contract;
mod curl;
mod echo;
mod endpoint;
mod gcs;
mod go_runtime;
mod held;
pub mod http;
mod identity;
pub mod message;
mod mlserver;
mod ovms;
mod parts;
mod peers;
mod ports;
mod process;
mod python;
mod quickstart;
mod real_time;
mod relay;
mod s3;
mod torchserve;
mod triton;
mod uploads;
mod watching;
mod web;

pub use azure::{Access, Azure};
pub use berth::{Berth, Identity, Serve, Standing};
pub use bounds::Bounds;
pub use calls::{Calling, Client, Kind, Metadata, Order, Outcome, Seen as SeenMessage};
pub use contract::Contract;
pub use curl::curl;
pub use echo::{Call, GoEcho};
pub use endpoint::{Asked, Endpoint};
pub use gcs::Gcs;
pub use go_runtime::GoRuntime;
pub use held::Held;
pub use identity::{Authority, Identity as TlsIdentity};
pub use mlserver::MlServer;
pub use ovms::Ovms;
pub use parts::Parts;
pub use peers::{Manner, Peers};
pub use ports::free_port;
pub use process::{Exit, Process};
pub use python::python;
pub use quickstart::{Quickstart, compare};
pub use real_time::{Found, eventually};
pub use relay::{Pace, Relay, Traffic};
pub use s3::{Gateway, Stored, Transport};
pub use torchserve::TorchServe;
pub use triton::{Triton, TritonModels, examples_for_triton};
pub use watching::{Told, Watch};
pub use web::{Seen, Web};

/// The root of the repository.
#[must_use]
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate lies in src/testkit").to_owned()
}
