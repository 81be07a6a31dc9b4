//! Lists all objects that may belong to a path, however many pages that takes.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use berth_telemetry::Clock;
use tokio::sync::Semaphore;

use crate::paths::{Listed, StorePath};
use crate::patience::Patience;
use crate::s3::{Fault, Page, S3Client};
use crate::storage::S3Source;
use crate::{PullError, PullerConfig};

/// More than this is not a model but a bucket named by mistake.
const MOST_OBJECTS: usize = 100_000;

/// What a listing needs of its surroundings.
pub(crate) struct Lister<'a> {
    pub(crate) client: &'a S3Client,
    pub(crate) source: &'a S3Source,
    pub(crate) config: &'a PullerConfig,
    pub(crate) clock: &'a Clock,
    /// One permit per request, over all models.
    pub(crate) requests: &'a Semaphore,
}

impl Lister<'_> {
    /// Every object whose key is `path` or lies under it, among others that only start alike.
    pub(crate) async fn list(&self, path: &StorePath) -> Result<Vec<Listed>, Fault> {
        if path.is_folder() {
            return self.all(&path.children(), Vec::new()).await;
        }
        // One request answers for a single object and for most folders. Stores list in the order of keys, so an object
        // of that very name comes first; behind a page full of names that only start alike, the folder is listed alone.
        let first = self.page(path.as_str(), None).await?;
        if first.next.is_none() {
            return Ok(first.objects);
        }
        let single = first.objects.into_iter().filter(|object| object.key == path.as_str()).collect();
        self.all(&path.children(), single).await
    }

    async fn all(&self, prefix: &str, mut objects: Vec<Listed>) -> Result<Vec<Listed>, Fault> {
        let mut next = None;
        loop {
            let page = self.page(prefix, next.as_deref()).await?;
            objects.extend(page.objects);
            if objects.len() > MOST_OBJECTS {
                return Err(Fault::Final(PullError::Config(format!(
                    "more than {MOST_OBJECTS} objects lie under {prefix:?} in bucket {} at {}: name a longer path",
                    self.source.bucket,
                    self.source.address()
                ))));
            }
            match page.next {
                None => return Ok(objects),
                Some(token) if Some(&token) == next.as_ref() => {
                    let whose = format!("listing {prefix:?} of bucket {} at {}", self.source.bucket, self.source.address());
                    return Err(Fault::Final(PullError::Corrupt(format!("{whose} does not get on: the store repeats its continuation token"))));
                }
                Some(token) => next = Some(token),
            }
        }
    }

    async fn page(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        let work = || self.client.list(self.source, prefix, after);
        Patience::new(self.config, self.clock, seed(prefix, 0)).hold(self.requests, work).await
    }
}

/// A number that differs between requests and not between runs.
pub(crate) fn seed(key: &str, offset: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, offset).hash(&mut hasher);
    hasher.finish()
}
