//! What should be, and the one picture of what should be and what is.
//!
//! - [`Store`]: desired state. Resources, aliases, first good contents, the epoch of the writer. One trait, two implementations ([`RedbStore`]
//!   on disk, [`MemoryStore`] for tests), one conformance suite. A write is durable when it returns and seen by nobody
//!   before. [`Store::subscribe`] gives the newest state per key, [`Store::events_after`] every single state.
//! - [`Managed`]: models and names that are made by calls, kept by the same two stores.
//! - [`Management`]: the calls themselves, for whoever receives them and whoever carries them out.
//! - [`Folder`]: a watched folder of manifests that feeds the store; [`Faults`] says what is wrong with it.
//! - [`yaml_document`], [`resource_name`], [`namespace_name`]: the rules of manifests, for the resource API.
//! - [`bundled`]: the objects that come with the program.
//! - [`View`]: one immutable numbered picture of names and registrations that every request reads; [`Views`] holds the
//!   present one.
//!
//! At start, in this order, so that nothing is taken for gone that was not read yet:
//!
//! ```text
//! let store = Arc::new(RedbStore::open(data_dir, clock)?);       // locks the data folder, raises the epoch
//! for object in bundled() { store.apply(object, None).await?; }
//! let mut folder = Folder::open(manifests, store, clock)?;       // a missing folder ends here
//! let faults = folder.faults();
//! folder.rescan().await;                                         // the store now says what the files say
//! spawn(folder.run(shutdown));
//! let views = Views::in_epoch(store.epoch());                    // names are "not ready" until mark_ready
//! let changes = store.subscribe();                               // its first answer is every object
//! ```

mod bundled;
mod event;
mod folder;
mod json;
mod lock;
mod managed;
mod management;
mod manifest;
mod map;
mod memory_store;
mod naming;
mod object;
mod pool;
mod redb_store;
mod shelved;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod uid;
mod view;

pub use bundled::{EMBEDDED_RUNTIME, bundled, bundled_beside, bundled_for_agents};
pub use event::{Event, EventKind, Expired};
pub use folder::{Fault, FaultKind, Faults, Folder, FolderError, Scan};
pub use json::Json;
pub use lock::DataLock;
pub use managed::{Managed, ManagedChange};
pub use management::Management;
pub use manifest::yaml_document;
pub use memory_store::MemoryStore;
pub use naming::{namespace_name, resource_name};
pub use object::{Alias, Contents, Desired, Kind, Object, ObjectKey, Origin};
pub use redb_store::{OpenError, RedbStore};
pub use store::{Change, Changes, Snapshot, Store, StoreError};
pub use uid::{InvalidUid, Uid};
pub use view::{ChangedName, Difference, Followers, NameEntry, Resolved, View, Views};
