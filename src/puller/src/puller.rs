//! The way of a model from its store to this pod's disk.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use berth_telemetry::halt::{self, Point};
use berth_telemetry::{Clock, Counter, Metrics, field};
use berth_types::{ByteSize, ModelId, Registration, StorageRef};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast};
use tracing::{info, warn};

use crate::disk::{self, FileRecord, Hold, Manifest, Tier};
use crate::flights::Flights;
use crate::folder;
use crate::listing::Lister;
use crate::paths::{Item, StorePath, lay_out, local_names};
use crate::progress::{BACKLOG, Reporter};
use crate::s3::{Fault, S3Client};
use crate::storage::{Entries, InPlace, S3Source, Source, resolve};
use crate::transfer::{Checked, Transfer};
use crate::{Fetch, Pinned, Progress, PullError, PullerConfig, Stage};

/// Stores and credentials whose connections are kept.
const CLIENTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// How often a download starts over because the store's content changed under it.
const STARTS: u32 = 3;

/// Gets models onto this pod's disk. One per process: the disk tier and the limits on requests are its own.
pub struct Puller {
    inner: Arc<Inner>,
    flights: Flights<Result<Landed, PullError>>,
}

struct Inner {
    config: Arc<PullerConfig>,
    clock: Clock,
    metrics: Metrics,
    tier: Tier,
    requests: Arc<Semaphore>,
    /// By digest of address and credential.
    clients: Mutex<LruCache<[u8; 32], Arc<S3Client>>>,
    progress: broadcast::Sender<Progress>,
    /// Models that were forgotten while their download was under way: their files go when nobody holds them.
    unwanted: Mutex<HashSet<ModelId>>,
}

/// What a download hands to all who waited for it.
#[derive(Clone)]
struct Landed {
    model: PathBuf,
    schema: Option<PathBuf>,
    size: ByteSize,
    from_disk: bool,
    hold: Option<Arc<Hold>>,
}

impl Landed {
    fn held(hold: Hold, from_disk: bool) -> Self {
        let content = hold.content();
        Landed { model: content.model(), schema: content.schema(), size: content.size(), from_disk, hold: Some(Arc::new(hold)) }
    }

    fn pinned(self) -> Pinned {
        Pinned {
            model: self.model,
            schema: self.schema,
            size: self.size,
            from_disk: self.from_disk,
            hold: self.hold.map(|hold| hold as Arc<dyn std::any::Any + Send + Sync>),
        }
    }
}

impl Puller {
    /// Checks the configuration and opens the disk tier: what a crash left is removed, whole content is taken over.
    ///
    /// # Errors
    /// [`PullError::Config`] with all faults of the configuration, or [`PullError::Disk`].
    pub async fn open(config: PullerConfig, clock: Clock, metrics: Metrics) -> Result<Arc<Puller>, PullError> {
        config.check()?;
        let tier = Tier::open(&config.cache, config.disk_budget, clock.clone(), metrics.clone()).await?;
        let inner = Inner {
            requests: Arc::new(Semaphore::new(config.requests)),
            config: Arc::new(config),
            clock,
            metrics,
            tier,
            clients: Mutex::new(LruCache::new(CLIENTS)),
            progress: broadcast::Sender::new(BACKLOG),
            unwanted: Mutex::default(),
        };
        Ok(Arc::new(Puller { inner: Arc::new(inner), flights: Flights::new() }))
    }

    /// The steps of all downloads from now on. Models found on disk or used in place have none. A slow listener loses
    /// the oldest.
    #[must_use]
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.inner.progress.subscribe()
    }

    /// Models that were forgotten while their download was under way.
    #[cfg(test)]
    pub(crate) fn unwanted(&self) -> usize {
        self.inner.unwanted.lock().len()
    }
}

#[async_trait]
impl Fetch for Puller {
    async fn fetch(&self, model: &Registration) -> Result<Pinned, PullError> {
        self.inner.unwanted.lock().remove(&model.id);
        let work = || Inner::bring(Arc::clone(&self.inner), model.id.clone(), model.storage());
        match self.flights.join(&model.id, work).await {
            Some(outcome) => outcome.map(Landed::pinned),
            None => Err(PullError::Disk(format!("the download of {} ended without an outcome", model.id))),
        }
    }

    async fn reuse(&self, model: &Registration) -> Option<Pinned> {
        self.inner.unwanted.lock().remove(&model.id);
        let storage = model.storage();
        let source = self.inner.source_of(&storage).await;
        self.inner.reuse(&model.id, &storage, &source).await.map(Landed::pinned)
    }

    fn on_disk(&self, model: &Registration) -> bool {
        let storage = model.storage();
        match self.inner.resolve_now(&storage) {
            Ok(Source::InPlace(place)) => paths(&storage).is_ok_and(|(path, _)| folder::exists(&place, &path)),
            Ok(source) => self.inner.tier.has(&model.id, Some(&source.identity(&storage))),
            Err(_) => self.inner.tier.has(&model.id, None),
        }
    }

    fn forget(&self, model: &Registration) {
        if self.flights.is_running(&model.id) {
            self.inner.unwanted.lock().insert(model.id.clone());
        }
        self.inner.tier.forget(&model.id);
    }
}

/// The parsed paths of model and schema.
fn paths(storage: &StorageRef) -> Result<(StorePath, Option<StorePath>), PullError> {
    let model = StorePath::parse(&storage.path).map_err(PullError::Config)?;
    let schema = storage.schema_path.as_deref().map(StorePath::parse).transpose().map_err(|why| PullError::Config(format!("schema {why}")))?;
    if let Some(schema) = schema.as_ref().filter(|schema| schema.is_folder()) {
        return Err(PullError::Config(format!("schema path {:?} is not a file's", schema.as_str())));
    }
    Ok((model, schema))
}

impl Inner {
    fn resolve_now(&self, storage: &StorageRef) -> Result<Source, PullError> {
        let entries = Entries::read(self.config.storage_config.as_deref())?;
        resolve(&entries, &self.config.pvc_mounts, storage)
    }

    /// Runs `work`, which reads local or mounted folders, with a limit on how long it may hang.
    async fn reading<T: Send + 'static>(&self, what: &str, work: impl FnOnce() -> Result<T, PullError> + Send + 'static) -> Result<T, PullError> {
        let limit = self.config.give_up_after;
        match self.clock.until(self.clock.deadline_in(limit), tokio::task::spawn_blocking(work)).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(fault)) => Err(PullError::Disk(format!("{what}: {fault}"))),
            None => Err(PullError::Unavailable(format!("{what} did not answer within {limit:?}"))),
        }
    }

    async fn source_of(self: &Arc<Self>, storage: &StorageRef) -> Result<Source, PullError> {
        let (this, wanted) = (Arc::clone(self), storage.clone());
        self.reading("the storage config", move || this.resolve_now(&wanted)).await
    }

    /// The files of the disk tier, if they are whole and are those of `source`.
    async fn reuse(&self, model: &ModelId, storage: &StorageRef, source: &Result<Source, PullError>) -> Option<Landed> {
        let started = self.clock.now();
        let identity = source.as_ref().ok().map(|source| source.identity(storage));
        let hold = self.tier.reuse(model, identity.as_deref()).await?;
        if let Err(fault) = source {
            warn!(model = %model, step = "fetch", error = %fault, "the storage of this model cannot be resolved, its files on disk are used");
        }
        self.metrics.add(Counter::DiskHits, &[], 1);
        let took = field::took(self.clock.now() - started);
        info!(model = %model, step = "fetch", size = %hold.content().size(), took, "model found on disk");
        Some(Landed::held(hold, true))
    }

    async fn bring(self: Arc<Self>, model: ModelId, storage: StorageRef) -> Result<Landed, PullError> {
        let outcome = self.find_or_fetch(model.clone(), storage).await;
        // However it ended: what was forgotten meanwhile goes, and nothing remembers it.
        if self.unwanted.lock().remove(&model) {
            self.tier.forget(&model);
        }
        outcome
    }

    async fn find_or_fetch(self: &Arc<Self>, model: ModelId, storage: StorageRef) -> Result<Landed, PullError> {
        let started = self.clock.now();
        let source = self.source_of(&storage).await;
        if let Some(landed) = self.reuse(&model, &storage, &source).await {
            return Ok(landed);
        }
        match source? {
            Source::InPlace(place) => self.in_place(model, &storage, place).await,
            Source::S3(source) => {
                let reporter = Arc::new(Reporter::new(model.clone(), self.progress.clone()));
                let outcome = self.download(&model, &storage, source, &reporter).await;
                reporter.stage(if outcome.is_ok() { Stage::Done } else { Stage::Failed });
                let (hold, checked) = outcome?;
                let content = hold.content();
                let took = field::took(self.clock.now() - started);
                info!(model = %model, step = "fetch", size = %content.size(), objects = content.objects(), checked = %checked, took, "model fetched");
                Ok(Landed::held(hold, false))
            }
        }
    }

    async fn in_place(&self, model: ModelId, storage: &StorageRef, place: InPlace) -> Result<Landed, PullError> {
        let started = self.clock.now();
        let (path, schema) = paths(storage)?;
        let named = format!("{}, {}", place.named, place.root.display());
        let found = self.reading(&named, move || folder::find(&place, &path, schema.as_ref())).await?;
        halt::at(Point::Listed, model.as_str());
        let took = field::took(self.clock.now() - started);
        info!(model = %model, step = "fetch", size = %found.size, objects = found.files, took, "model used in place");
        Ok(Landed { model: found.model, schema: found.schema, size: found.size, from_disk: true, hold: None })
    }

    /// Lists, claims, fetches, checks and renames; from the start again when the store's content changed meanwhile.
    async fn download(
        &self,
        model: &ModelId,
        storage: &StorageRef,
        source: S3Source,
        reporter: &Arc<Reporter>,
    ) -> Result<(Hold, Checked), PullError> {
        let (path, schema) = paths(storage)?;
        let client = self.client(&source)?;
        let identity = source.identity(storage);
        let source = Arc::new(source);
        let names = local_names(&path, schema.as_ref());
        let mut changed = String::new();
        for start in 1..=STARTS {
            if start > 1 {
                warn!(model = %model, step = "fetch", error = %changed, "the download starts over");
            }
            let (items, size) = match self.list(&client, &source, &path, schema.as_ref(), &names).await {
                Err(Fault::Changed(why)) => {
                    changed = why;
                    continue;
                }
                Err(fault) => return Err(settled(fault)),
                Ok(listed) => listed,
            };
            let items: Arc<[Item]> = items.into();
            let total: ByteSize = items.iter().map(|item| item.object.size).sum();
            reporter.listed(total);
            halt::at(Point::Listed, model.as_str());
            let claim = self.tier.claim(total).await?;
            let stage = self.tier.stage(model, claim).await?;
            let transfer = self.transfer(model, &client, &source, &stage, reporter);
            let files = items.iter().map(|item| FileRecord { path: item.file.clone(), bytes: item.object.size, etag: item.object.etag.clone() });
            let manifest = Manifest::new(model.clone(), identity.clone(), names.clone(), size, self.clock.wall(), files.collect());
            let fill = async {
                let checked = transfer.run(Arc::clone(&items)).await?;
                self.tier.seal(&stage, &manifest).await.map_err(Fault::Final)?;
                Ok(checked)
            };
            let checked = match fill.await {
                Ok(checked) => checked,
                Err(fault) => {
                    // Before whatever comes next, which must not find its own bytes still taken.
                    stage.discard().await;
                    match fault {
                        Fault::Changed(why) => changed = why,
                        fault => return Err(settled(fault)),
                    }
                    continue;
                }
            };
            reporter.stage(Stage::Verified);
            halt::at(Point::Verified, model.as_str());
            let hold = self.tier.land(stage, manifest).await?;
            halt::at(Point::Renamed, model.as_str());
            self.metrics.add(Counter::FetchedObjects, &[], hold.content().objects() as u64);
            return Ok((hold, checked));
        }
        Err(PullError::Corrupt(format!("{changed} (tried {STARTS} times)")))
    }

    /// All objects of model and schema with their files, and the bytes of the model alone.
    async fn list(
        &self,
        client: &S3Client,
        source: &S3Source,
        path: &StorePath,
        schema: Option<&StorePath>,
        names: &(String, Option<String>),
    ) -> Result<(Vec<Item>, ByteSize), Fault> {
        let lister = Lister { client, source, config: &self.config, clock: &self.clock, requests: &self.requests };
        let place = format!("bucket {} at {}", source.bucket, source.address());
        let unusable = |why: String| Fault::Final(PullError::Config(format!("{place}: {why}")));
        let mut items = lay_out(path, &names.0, lister.list(path).await?).map_err(unusable)?;
        if items.is_empty() {
            return Err(Fault::Final(PullError::NotFound(format!("no object is at or under path {:?} in {place}", path.as_str()))));
        }
        let size = items.iter().map(|item| item.object.size).sum();
        if let (Some(schema), Some(name)) = (schema, &names.1) {
            let found = lay_out(schema, name, lister.list(schema).await?).map_err(unusable)?;
            match <[Item; 1]>::try_from(found) {
                Ok([single]) if single.file == *name => items.push(single),
                _ => return Err(Fault::Final(PullError::NotFound(format!("no schema object {:?} in {place}", schema.as_str())))),
            }
        }
        Ok((items, size))
    }

    fn transfer(
        &self,
        model: &ModelId,
        client: &Arc<S3Client>,
        source: &Arc<S3Source>,
        stage: &disk::Stage,
        reporter: &Arc<Reporter>,
    ) -> Arc<Transfer> {
        let (reporter, metrics, model) = (Arc::clone(reporter), self.metrics.clone(), model.clone());
        let first = AtomicBool::new(true);
        Arc::new(Transfer {
            client: Arc::clone(client),
            source: Arc::clone(source),
            config: Arc::clone(&self.config),
            clock: self.clock.clone(),
            requests: Arc::clone(&self.requests),
            folder: stage.files(),
            occupied: Box::new(stage.growth()),
            received: Box::new(move |bytes| {
                metrics.add(Counter::FetchedBytes, &[], bytes);
                reporter.received(bytes);
            }),
            written: Box::new(move || {
                if first.swap(false, Ordering::Relaxed) {
                    halt::at(Point::Fetching, model.as_str());
                }
            }),
        })
    }

    /// The client for this address and credential, with its connections.
    fn client(&self, source: &S3Source) -> Result<Arc<S3Client>, PullError> {
        let digest = digest(source);
        if let Some(client) = self.clients.lock().get(&digest) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(S3Client::new(source, &self.config, self.clock.clone())?);
        self.clients.lock().put(digest, Arc::clone(&client));
        Ok(client)
    }
}

/// A fault that a new start does not help.
fn settled(fault: Fault) -> PullError {
    match fault {
        Fault::Final(error) => error,
        Fault::Away(why) => PullError::Unavailable(why),
        Fault::Changed(why) => PullError::Corrupt(why),
    }
}

/// Names a client without showing what is secret in it. Lengths keep neighbouring fields apart.
fn digest(source: &S3Source) -> [u8; 32] {
    let (key_id, secret) = source.credential.as_ref().map_or(("", ""), |credential| (credential.key_id.0.as_str(), credential.secret.0.as_str()));
    let mut hasher = blake3::Hasher::new();
    for field in [source.address(), &source.region, key_id, secret, source.certificate.as_deref().unwrap_or_default()] {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field.as_bytes());
    }
    *hasher.finalize().as_bytes()
}
