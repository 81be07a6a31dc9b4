//! From a storage reference to checked files on disk.
//!
//! [`Puller::fetch`](Fetch::fetch) resolves the storage configuration (`berth-stores`), finds what belongs to the model,
//! claims room in the disk tier (`berth-disk`), fetches what is not there yet in ranges, holds it against what the store
//! states, and hands out a [`Pinned`] reference to whole files. What an attempt leaves behind the next one goes on with.
//! Models in folders and volumes of this machine are used where they are.
//!
//! What a store says is believed only as far as it was checked: a listing is read to its end, each byte range is of the
//! version that was found, and what cannot be a file is refused by name. Secrets are in no log, error or debug text.

mod check;
mod config;
mod crc;
mod error;
pub mod fake;
mod flights;
mod folder;
mod listing;
mod pace;
mod paths;
mod patience;
mod progress;
mod puller;
mod sharing;
mod tally;
mod transfer;

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod store;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use berth_types::{ByteSize, Content, ContentDigest, ModelId, Registration};

pub use berth_disk::held_under;
pub use config::PullerConfig;
pub use error::PullError;
pub use progress::{Downloads, Progress, Stage};
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
    /// Our own digest of the files, schema included. `None` for folders that are used in place: nobody read them.
    pub digest: Option<ContentDigest>,
    /// What the store stated about them that was held against them: `crc32c`, `md5`, or `unverified`.
    pub checked: Arc<str>,
    /// Keeps the files; dropped with this value. `None` for folders that are used in place.
    pub hold: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl Pinned {
    /// What the files are, as far as anybody read them.
    #[must_use]
    pub fn content(&self) -> Option<Content> {
        self.digest.map(|digest| Content { digest, checked: Arc::clone(&self.checked) })
    }
}

/// Whether somebody waits for a download. The greater one goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody does: a first load, a retry, a warm-up.
    Background,
    /// A caller waits for the model.
    Waited,
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
    /// when they give up, and which is as urgent as the most urgent of them.
    ///
    /// # Errors
    /// [`PullError`] names store, bucket, path and status, and whether trying again may help.
    async fn fetch(&self, model: &Registration, urgency: Urgency) -> Result<Pinned, PullError>;

    /// Somebody waits from now on for a model whose download was begun in the background, if it is still under way.
    /// Returns at once.
    fn hurry(&self, _model: &ModelId) {}

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
