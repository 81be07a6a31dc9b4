//! Speaks with the stores that models lie in: S3, Google Cloud Storage, Azure Blob Storage and plain web servers.
//!
//! [`resolve`] turns a storage reference and the storage configuration into a [`Source`]: the settings of a store, or a
//! folder of this machine. [`Stores`] opens a [`Remote`] over settings, which lists and gets. Nothing here
//! retries, writes files or checks content; secrets are in no text that it makes.

mod azure;
mod config;
mod fault;
mod gcs;
pub mod memory;
mod remote;
mod s3;
pub mod suite;
mod watch;
mod web;
mod wire;

use std::num::NonZeroUsize;
use std::sync::Arc;

use berth_telemetry::Clock;
use lru::LruCache;
use parking_lot::Mutex;

pub use azure::AzureSettings;
pub use config::{Entries, InPlace, resolve};
pub use fault::{ConfigFault, Fault, FaultKind};
pub use gcs::GcsSettings;
pub use remote::{Answer, Ask, Composite, Object, OfParts, Page, Patience, Remote, Sums, Version};
pub use s3::S3Settings;
pub use watch::watch;
pub use web::WebSettings;

/// Where a model comes from.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per load, and it is not moved often")]
pub enum Source {
    /// A store that its files are fetched from.
    Store(Settings),
    /// A folder whose files are used where they are.
    InPlace(InPlace),
}

/// How a store is reached. Prints without secrets.
#[derive(Clone, Debug)]
pub enum Settings {
    /// S3 and what speaks like it.
    S3(S3Settings),
    /// Google Cloud Storage.
    Gcs(GcsSettings),
    /// Azure Blob Storage.
    Azure(AzureSettings),
    /// A plain web server.
    Web(WebSettings),
}

/// What is held against the bytes that come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Whatever checksum the store states.
    #[default]
    Content,
    /// Lengths only: for stores whose statements are not to be believed, and for comparing the cost.
    Length,
}

impl Settings {
    /// What tells this store and bucket from others, without secrets.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Settings::S3(s3) => s3.identity(),
            Settings::Gcs(gcs) => gcs.identity(),
            Settings::Azure(azure) => azure.identity(),
            Settings::Web(web) => web.identity(),
        }
    }

    /// Names a connection: equal for settings that reach the same store with the same credential and trust, whatever the
    /// bucket. Secrets are in it as a digest only.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        match self {
            Settings::S3(s3) => s3.fingerprint(),
            Settings::Gcs(gcs) => gcs.fingerprint(),
            Settings::Azure(azure) => azure.fingerprint(),
            Settings::Web(web) => web.fingerprint(),
        }
    }

    /// The storage type, as users write it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Settings::S3(_) => "s3",
            Settings::Gcs(_) => "gcs",
            Settings::Azure(_) => "azure",
            Settings::Web(_) => "http",
        }
    }

    /// What is held against the bytes that come.
    #[must_use]
    pub fn verify(&self) -> Verify {
        match self {
            Settings::S3(s3) => s3.verify,
            Settings::Gcs(gcs) => gcs.verify,
            Settings::Azure(azure) => azure.verify,
            Settings::Web(web) => web.verify,
        }
    }
}

/// Opens remotes.
pub trait Open: Send + Sync + 'static {
    /// A remote over these settings. Opens no connection yet.
    ///
    /// # Errors
    /// [`ConfigFault`] where certificates, keys or addresses cannot be used.
    fn open(&self, settings: &Settings) -> Result<Arc<dyn Remote>, ConfigFault>;
}

/// How many stores and credentials keep their connections.
const LINKS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Connections and credentials of the stores used last, shared by all buckets that are read with them.
pub struct Stores {
    patience: Patience,
    clock: Clock,
    links: Mutex<LruCache<[u8; 32], Link>>,
}

#[derive(Clone)]
enum Link {
    S3(Arc<s3::Link>),
    Gcs(Arc<gcs::Link>),
    Azure(Arc<azure::Link>),
    Web(Arc<web::Link>),
}

impl Stores {
    /// None is connected yet.
    #[must_use]
    pub fn new(patience: Patience, clock: Clock) -> Self {
        Stores { patience, clock, links: Mutex::new(LruCache::new(LINKS)) }
    }

    fn link(&self, settings: &Settings) -> Result<Link, ConfigFault> {
        let fingerprint = settings.fingerprint();
        if let Some(link) = self.links.lock().get(&fingerprint) {
            return Ok(link.clone());
        }
        let link = match settings {
            Settings::S3(s3) => Link::S3(Arc::new(s3.link(self.patience, self.clock.clone())?)),
            Settings::Gcs(gcs) => Link::Gcs(Arc::new(gcs.link(self.patience, self.clock.clone())?)),
            Settings::Azure(azure) => Link::Azure(Arc::new(azure.link(self.patience, self.clock.clone())?)),
            Settings::Web(web) => Link::Web(Arc::new(web.link(self.patience, self.clock.clone())?)),
        };
        self.links.lock().put(fingerprint, link.clone());
        Ok(link)
    }
}

impl Open for Stores {
    fn open(&self, settings: &Settings) -> Result<Arc<dyn Remote>, ConfigFault> {
        Ok(match (settings, self.link(settings)?) {
            (Settings::S3(settings), Link::S3(link)) => Arc::new(s3::S3Remote::new(settings.clone(), link)),
            (Settings::Gcs(settings), Link::Gcs(link)) => Arc::new(gcs::GcsRemote::new(settings.clone(), link)),
            (Settings::Azure(settings), Link::Azure(link)) => Arc::new(azure::AzureRemote::new(settings.clone(), link)),
            (Settings::Web(settings), Link::Web(link)) => Arc::new(web::WebRemote::new(settings.clone(), link)),
            (Settings::S3(_) | Settings::Gcs(_) | Settings::Azure(_) | Settings::Web(_), _) => {
                unreachable!("a fingerprint begins with the kind of store")
            }
        })
    }
}
