//! What should be, and the one picture of what should be and what is.
//!
//! - [`Store`]: desired state. Resources, aliases, the epoch of the writer. One trait, two implementations here (redb on
//!   disk, memory for tests), one conformance suite.
//! - [`Folder`]: a watched folder of YAML that feeds the store.
//! - [`View`]: one immutable numbered picture of names and registrations that every request reads.

mod bundled;
mod event;
mod folder;
mod lock;
mod manifest;
mod map;
mod memory_store;
mod object;
mod pool;
mod redb_store;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod view;

pub use bundled::{EMBEDDED_RUNTIME, bundled};
pub use event::{Event, EventKind, Expired};
pub use folder::{Fault, FaultKind, Faults, Folder, FolderError, Scan};
pub use memory_store::MemoryStore;
pub use object::{Alias, Kind, Object, ObjectKey, Origin};
pub use redb_store::{OpenError, RedbStore};
pub use store::{Change, Changes, Snapshot, Store, StoreError};
pub use view::{NameEntry, Resolved, View, Views};
