//! The words that every part of Berth shares: ids, sizes, deadlines, failures and what a pod holds.
//!
//! Plain values only. Nothing here does I/O, reads a clock or starts a task, so the decisions in `berth-plan` that are
//! written in these words cannot do so by accident either.

mod content;
mod copy;
mod failure;
mod id;
mod managed;
mod memory;
mod real;
mod registration;
mod size;
mod suspicion;
mod time;

pub use content::{Content, ContentDigest, ParseContentDigestError};
pub use copy::{CopyReport, CopyState, Tier};
pub use failure::{Failure, Location, Reason, Refusal, Retry, Step};
pub use id::{InvalidId, ModelId, Name, Namespace, Owner, PodId};
pub use managed::{ManagedModel, ManagedName, ManagedPut, ManagedRecords};
pub use memory::{Footprint, Pool};
pub use real::{Reading, Real, Usage};
pub use registration::{Class, Keep, ModelFormat, Parameters, Placement, Registration, StorageRef};
pub use size::{ByteSize, ParseByteSizeError};
pub use suspicion::{Caution, Suspicion};
pub use time::{Deadline, UnixMillis};
