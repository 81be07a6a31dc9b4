//! The atomics that [`crate::gate`] uses. `tests/gate_loom.rs` compiles that file against loom's instead.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
