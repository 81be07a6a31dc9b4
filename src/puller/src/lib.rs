//! From a storage reference to checked files on disk, within a disk budget.
//!
//! [`Puller::fetch`](Fetch::fetch) resolves the storage configuration, lists what belongs to the model, fetches it under
//! a temporary name, checks every length, renames it into place and hands out a [`Pinned`] reference. Files that nobody
//! pins stay as the disk tier and are removed least recently used first when their bytes are needed. Models in folders
//! and volumes of this machine are used where they are.
//!
//! What a store says is believed only as far as it was checked: a listing is read to its end, each byte range is of the
//! version that was listed, and what cannot be a file is refused by name. Secrets are in no log, error or debug text.

mod config;
mod disk;
mod error;
pub mod fake;
mod flights;
mod folder;
mod ledger;
mod listing;
mod paths;
mod patience;
mod progress;
mod puller;
mod s3;
mod storage;
mod transfer;

#[cfg(test)]
mod store;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use berth_types::{ByteSize, Registration};

pub use config::PullerConfig;
pub use error::PullError;
pub use progress::{Progress, Stage};
pub use puller::Puller;

/// The files of a model on this pod's disk. They are not removed while this lives.
#[derive(Debug)]
pub struct Pinned {
    /// The model: a file, or a folder that holds its files.
    pub model: PathBuf,
    /// The schema file, where the registration names one.
    pub schema: Option<PathBuf>,
    /// Bytes of the model's files (without the schema).
    pub size: ByteSize,
    /// True when the files were on disk already and nothing was fetched.
    pub from_disk: bool,
    /// Keeps the files; dropped with this value. `None` for folders that are used in place.
    pub hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl std::fmt::Debug for dyn Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetch")
    }
}

/// Gets models onto this pod's disk. The seam that lets residency be tested without a store.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// The files of `model`, fetched if they are not on disk. Callers of one model share one download, which goes on
    /// when they give up.
    ///
    /// # Errors
    /// [`PullError`] names store, bucket, path and status, and whether trying again may help.
    async fn fetch(&self, model: &Registration) -> Result<Pinned, PullError>;

    /// The files of `model` when they were fetched earlier and are still whole on disk: quick, without a store. `None`
    /// says nothing but that [`fetch`](Fetch::fetch) has to find out.
    async fn reuse(&self, _model: &Registration) -> Option<Pinned> {
        None
    }

    /// True when the files of `model` are on disk, checked.
    fn on_disk(&self, model: &Registration) -> bool;

    /// Removes the files of a model that is registered no longer (once nobody holds them). Files used in place stay.
    fn forget(&self, model: &Registration);
}
