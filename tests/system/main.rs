//! What the built binary does, seen from outside: through the public clients, with a real object store, over crashes.
//!
//! Each test starts its own `berth serve` with its own folders and ports. Nothing here knows how Berth is made, except
//! for the names of the points at which `BERTH_HALT_AT` ends it.

mod access;
mod answers;
mod beside;
mod check_runtime;
mod cli;
mod cluster;
mod crash;
mod devices;
mod downloads;
mod eviction;
mod fixture;
mod front;
mod hard;
mod interop;
mod lifecycle;
mod logs;
mod memory;
mod mesh;
mod modelruntime;
mod orders;
mod ovms;
mod payloads;
mod peers;
mod refusals;
mod resources_doc;
mod restarts;
mod settings;
mod steps;
mod stores;
mod tls;
mod torchserve;
mod trying;
