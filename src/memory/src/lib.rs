//! What is really in use: main memory as the kernel counts it, and that of GPUs.
//!
//! A [`Source`] is asked and answers with a [`Reading`]: how much the inference server's processes hold, and how full
//! each memory is that it shares with others. What follows from that is decided elsewhere (`berth_plan`).
//!
//! | module | about |
//! |---|---|
//! | `cgroup` | limits and use of cgroups, version 1 and 2, caches not counted |
//! | `process` | what a process and those that it started hold of main memory |
//! | `listener` | which process listens on a port or a socket |
//! | `gpu` | devices by NVIDIA's management library, loaded at run time; no library is no fault |
//! | `metrics` | devices by a server's own page of metrics |
//! | `host` | all of these together: the source of this machine |
//!
//! Nothing here is ever an error to the caller: what cannot be read is not known. Each such thing is said once in the log.
//! Files are read below a root that is handed in, so that tests have a `/proc` and cgroups of their own.

mod cgroup;
mod gpu;
mod host;
mod listener;
mod metrics;
mod process;

pub use gpu::Gpus;
pub use host::{Host, HostConfig, MetricsPage, Scope};
pub use listener::Which;

use async_trait::async_trait;
use berth_types::Reading;

/// Somebody who can tell what is really in use.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// What is known now. Takes milliseconds.
    async fn read(&self) -> Reading;

    /// Ends the server's process, so that whoever keeps it running starts it anew. False when that cannot be done from here.
    async fn end_server(&self) -> bool {
        false
    }
}

/// A source that answers by a plain function.
pub struct Told<F>(pub F);

#[async_trait]
impl<F: Fn() -> Reading + Send + Sync + 'static> Source for Told<F> {
    async fn read(&self) -> Reading {
        (self.0)()
    }
}
