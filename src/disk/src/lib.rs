//! The disk tier: content of models that were fetched, kept for the next load within a byte budget.
//!
//! ```text
//! <cache>/blobs/<blob id>                   the bytes of one object's version; read-only once whole
//! <cache>/blobs.journal                     what is known of each blob
//! <cache>/models/<model id>/manifest.json   what a content is; its time stamp is the last use
//! <cache>/models/<model id>/files/...       its files: hard links to whole blobs
//! <cache>/staging/...                       content being made or removed; emptied at start
//! ```
//!
//! A [`Plan`] says what a model's files are. [`Tier::gather`] claims room for what of it is not here, before the first byte
//! is fetched; [`Gathering::open`] hands out each blob, whole or with a [`Writer`] that goes on where an earlier download
//! ended; [`Gathering::land`] makes content of whole blobs, which appears by one rename. A [`Hold`] keeps content.
//!
//! What holds at every moment:
//! - What is on disk or claimed is within the budget. Bytes count once, however many models share them, and until their
//!   files are gone.
//! - A blob has one writer. Its bytes are trusted only as far as the journal vouches for them.
//! - Pinned content and what a download holds are never removed to make room.
//!
//! Where objects come from, what they are called and how their bytes are checked is the caller's business.

mod blob;
mod content;
mod digest;
mod error;
mod gathering;
mod journal;
mod ledger;
mod plan;
mod scan;
mod tier;

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;

pub use blob::{BlobId, Note, Record, UNVERIFIED};
pub use content::Content;
pub use digest::digest;
pub use error::DiskError;
pub use gathering::{Gathering, Opened, Writer};
pub use plan::{Plan, Wanted};
pub use scan::held_under;
pub use tier::{Hold, Tier, TierConfig};
