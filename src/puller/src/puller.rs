//! The way of a model from its store to this pod's disk.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use berth_disk::{BlobId, Hold, Plan, Tier, TierConfig, Wanted};
use berth_stores::{Entries, InPlace, Object, Open, Patience, Remote, Settings, Source, Stores, Verify, resolve};
use berth_telemetry::halt::{self, Point};
use berth_telemetry::{Clock, Counter, Metrics, field};
use berth_types::{ByteSize, ContentDigest, ModelId, Registration, StorageRef};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tracing::{info, warn};

use crate::flights::Flights;
use crate::folder;
use crate::listing::{Finder, First, Found, keep};
use crate::pace::{Haste, Lane, Limits, Pace};
use crate::paths::{Item, StorePath, lay_out, local_names};
use crate::progress::Reporter;
use crate::sharing::Sharing;
use crate::tally::{Counted, Tally};
use crate::transfer::{Stop, Transfer};
use crate::{Downloads, Fetch, Pinned, Progress, PullError, PullerConfig, Stage, Urgency};

/// How often a download starts over because the store's content changed under it.
const STARTS: u32 = 3;

/// How many threads may read folders at once; those of mounts that hang are among them.
const LOOKS: usize = 16;

/// Gets models onto this pod's disk. One per process: the disk tier and the limits on requests are its own.
pub struct Puller {
    inner: Arc<Inner>,
    /// A download that was called off has no outcome.
    flights: Flights<Option<Result<Landed, PullError>>>,
}

/// What others can do to a download.
struct Reins {
    haste: Arc<Haste>,
    call_off: Notify,
}

/// Takes away what is kept for one download, however it ends.
struct Ended<'a> {
    inner: &'a Inner,
    model: &'a ModelId,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.inner.reins.lock().remove(self.model);
        // What was forgotten meanwhile goes, and nothing remembers it.
        if self.inner.unwanted.lock().remove(self.model) {
            self.inner.tier.forget(self.model);
        }
    }
}

/// Calls a download off when nobody listens any more and its model was forgotten.
struct Listening<'a> {
    puller: &'a Puller,
    model: &'a ModelId,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.puller.call_off(self.model);
    }
}

struct Inner {
    config: PullerConfig,
    clock: Clock,
    metrics: Metrics,
    tier: Tier,
    stores: Arc<dyn Open>,
    pace: Pace,
    sharing: Sharing,
    downloads: Downloads,
    /// Of the downloads under way.
    reins: Mutex<HashMap<ModelId, Arc<Reins>>>,
    /// Models that were forgotten while their download was under way: their files go when nobody holds them.
    unwanted: Mutex<HashSet<ModelId>>,
    /// Tells apart objects whose store does not.
    unversioned: AtomicU64,
    /// Threads that may read local or mounted folders at once.
    looks: Arc<Semaphore>,
}

/// What a download hands to all who waited for it.
#[derive(Clone)]
struct Landed {
    model: PathBuf,
    schema: Option<PathBuf>,
    size: ByteSize,
    from_disk: bool,
    digest: Option<ContentDigest>,
    checked: Arc<str>,
    hold: Option<Arc<Hold>>,
}

impl Landed {
    fn held(hold: Hold, from_disk: bool) -> Self {
        let content = hold.content();
        Landed {
            model: content.model(),
            schema: content.schema(),
            size: content.size(),
            from_disk,
            digest: content.digest().map(ContentDigest),
            checked: content.checked().into(),
            hold: Some(Arc::new(hold)),
        }
    }

    fn pinned(self) -> Pinned {
        Pinned {
            model: self.model,
            schema: self.schema,
            size: self.size,
            from_disk: self.from_disk,
            digest: self.digest,
            checked: self.checked,
            hold: self.hold.map(|hold| hold as Arc<dyn std::any::Any + Send + Sync>),
        }
    }
}

impl Puller {
    /// Checks the configuration and opens the disk tier: what a crash left is taken over as far as it is of use, the rest
    /// is removed.
    ///
    /// # Errors
    /// [`PullError::Config`] with all faults of the configuration, or [`PullError::Disk`].
    pub async fn open(config: PullerConfig, clock: Clock, metrics: Metrics) -> Result<Arc<Puller>, PullError> {
        let patience = Patience { connect: config.connect_timeout, silence: config.stall_timeout };
        let stores = Arc::new(Stores::new(patience, clock.clone()));
        Self::open_with(config, clock, metrics, stores).await
    }

    pub(crate) async fn open_with(config: PullerConfig, clock: Clock, metrics: Metrics, stores: Arc<dyn Open>) -> Result<Arc<Puller>, PullError> {
        config.check()?;
        let tier = Tier::open(TierConfig { folder: config.cache.clone(), budget: config.disk_budget }, clock.clone(), metrics.clone()).await?;
        let limits = Limits { requests: config.requests, parts_per_download: config.parts_per_model, bytes_per_second: config.bytes_per_second };
        let inner = Inner {
            pace: Pace::new(limits, clock.clone(), &metrics),
            sharing: Sharing::default(),
            downloads: Downloads::new(clock.clone(), metrics.clone()),
            config,
            clock,
            metrics,
            tier,
            stores,
            reins: Mutex::default(),
            unwanted: Mutex::default(),
            unversioned: AtomicU64::new(0),
            looks: Arc::new(Semaphore::new(LOOKS)),
        };
        Ok(Arc::new(Puller { inner: Arc::new(inner), flights: Flights::new() }))
    }

    /// The steps of all downloads from now on. Models found on disk or used in place have none. A slow listener loses
    /// the oldest.
    #[must_use]
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.inner.downloads.steps()
    }

    /// The downloads under way.
    #[must_use]
    pub fn downloads(&self) -> Downloads {
        self.inner.downloads.clone()
    }

    /// A number that grows whenever the storage configuration changed. `None` where there is no folder of it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn storage_changes(&self) -> Option<watch::Receiver<u64>> {
        self.inner.config.storage_config.as_deref().map(|folder| berth_stores::watch(folder, self.inner.clock.clone()))
    }

    /// Ends the download of a forgotten model that nobody waits for. What it fetched so far is the first to make room.
    fn call_off(&self, model: &ModelId) {
        if self.inner.unwanted.lock().contains(model) && self.flights.is_unheard(model) {
            self.inner.reins_of(model, Urgency::Background).call_off.notify_one();
        }
    }

    /// Requests at the moment.
    #[cfg(test)]
    pub(crate) fn requests(&self) -> crate::pace::Snapshot {
        self.inner.pace.snapshot()
    }

    /// Models that were forgotten while their download was under way.
    #[cfg(test)]
    pub(crate) fn unwanted(&self) -> usize {
        self.inner.unwanted.lock().len()
    }
}

#[async_trait]
impl Fetch for Puller {
    async fn fetch(&self, model: &Registration, urgency: Urgency) -> Result<Pinned, PullError> {
        self.inner.unwanted.lock().remove(&model.id);
        if urgency == Urgency::Waited {
            self.hurry(&model.id);
        }
        let work = || Inner::bring(Arc::clone(&self.inner), model.id.clone(), model.storage(), urgency);
        let _listening = Listening { puller: self, model: &model.id };
        loop {
            match self.flights.join(&model.id, work).await {
                Some(Some(outcome)) => return outcome.map(Landed::pinned),
                Some(None) => {} // it was called off before we came
                None => return Err(PullError::Disk(format!("the download of {} ended without an outcome", model.id))),
            }
        }
    }

    fn hurry(&self, model: &ModelId) {
        // Before the download has begun, so that it begins in haste; `bring` and `forget` take it away.
        self.inner.reins_of(model, Urgency::Waited).haste.raise();
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
            Ok(Source::Store(settings)) => self.inner.tier.has(&model.id, Some(&identity(&settings, &storage))),
            Err(_) => self.inner.tier.has(&model.id, None),
        }
    }

    fn forget(&self, model: &Registration) {
        if self.flights.is_running(&model.id) {
            self.inner.unwanted.lock().insert(model.id.clone());
            self.call_off(&model.id);
        } else {
            self.inner.reins.lock().remove(&model.id);
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

/// What tells this model's source from others, without secrets: the disk tier answers only for the source it was filled
/// from.
fn identity(settings: &Settings, storage: &StorageRef) -> String {
    let store = settings.identity();
    match &storage.schema_path {
        None => format!("{store} path {}", storage.path),
        Some(schema) => format!("{store} path {} schema {schema}", storage.path),
    }
}

/// What is to be fetched.
struct Wish {
    items: Vec<Item>,
    /// Bytes of the model, without the schema.
    size: ByteSize,
    first: Option<First>,
}

impl Inner {
    fn resolve_now(&self, storage: &StorageRef) -> Result<Source, PullError> {
        let entries = Entries::read(self.config.storage_config.as_deref())?;
        Ok(resolve(&entries, &self.config.pvc_mounts, storage)?)
    }

    /// Runs `work`, which reads local or mounted folders, with a limit on how long it may hang.
    async fn reading<T: Send + 'static>(&self, what: &str, work: impl FnOnce() -> Result<T, PullError> + Send + 'static) -> Result<T, PullError> {
        let limit = self.config.give_up_after;
        let look = async {
            // A thread that hangs in a dead mount keeps its place: only so many may.
            let place = Arc::clone(&self.looks).acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let outcome = work();
                drop(place);
                outcome
            })
            .await
        };
        match self.clock.until(self.clock.deadline_in(limit), look).await {
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
        let identity = match source {
            Ok(Source::Store(settings)) => Some(identity(settings, storage)),
            Ok(Source::InPlace(_)) => return None,
            Err(_) => None,
        };
        let hold = self.tier.reuse(model, identity.as_deref()).await?;
        if let Err(fault) = source {
            warn!(model = %model, step = "fetch", error = %fault, "the storage of this model cannot be resolved, its files on disk are used");
        }
        self.metrics.add(Counter::DiskHits, &[], 1);
        let took = field::took(self.clock.now() - started);
        info!(model = %model, step = "fetch", size = %hold.content().size(), took, "model found on disk");
        Some(Landed::held(hold, true))
    }

    fn reins_of(&self, model: &ModelId, urgency: Urgency) -> Arc<Reins> {
        let mut reins = self.reins.lock();
        let new = || Arc::new(Reins { haste: Arc::new(Haste::new(urgency)), call_off: Notify::new() });
        Arc::clone(reins.entry(model.clone()).or_insert_with(new))
    }

    /// `None`: it was called off.
    async fn bring(self: Arc<Self>, model: ModelId, storage: StorageRef, urgency: Urgency) -> Option<Result<Landed, PullError>> {
        let _ended = Ended { inner: &self, model: &model };
        let reins = self.reins_of(&model, urgency);
        if urgency == Urgency::Waited {
            reins.haste.raise();
        }
        tokio::select! {
            outcome = self.find_or_fetch(model.clone(), storage, Arc::clone(&reins.haste)) => Some(outcome),
            () = reins.call_off.notified() => {
                info!(model = %model, step = "fetch", "the download is called off, the model is registered no longer");
                None
            }
        }
    }

    async fn find_or_fetch(self: &Arc<Self>, model: ModelId, storage: StorageRef, haste: Arc<Haste>) -> Result<Landed, PullError> {
        let started = self.clock.now();
        let source = self.source_of(&storage).await;
        if let Some(landed) = self.reuse(&model, &storage, &source).await {
            return Ok(landed);
        }
        match source? {
            Source::InPlace(place) => self.in_place(model, &storage, place).await,
            Source::Store(settings) => {
                let reporter = Reporter::new(model.clone(), &self.downloads);
                let outcome = self.download(&model, &storage, &settings, haste, &reporter).await;
                reporter.stage(if outcome.is_ok() { Stage::Done } else { Stage::Failed });
                let hold = outcome?;
                let content = hold.content();
                let (took, rate) = (field::took(self.clock.now() - started), field::rate(reporter.mean_rate()));
                let (size, objects, checked) = (content.size(), content.objects(), content.checked());
                info!(model = %model, step = "fetch", size = %size, objects, checked = %checked, took, rate, "model fetched");
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
        let (model, schema, size) = (found.model, found.schema, found.size);
        Ok(Landed { model, schema, size, from_disk: true, digest: None, checked: "in place".into(), hold: None })
    }

    /// Finds, claims, fetches, checks and lands; from the start again when the store's content changed meanwhile.
    async fn download(
        &self,
        model: &ModelId,
        storage: &StorageRef,
        settings: &Settings,
        haste: Arc<Haste>,
        reporter: &Reporter,
    ) -> Result<Hold, PullError> {
        let (path, schema) = paths(storage)?;
        let tally = Tally::new(self.metrics.clone(), settings.kind());
        let remote = Counted { remote: self.stores.open(settings)?, tally: tally.clone() };
        let lane = self.pace.lane(settings.fingerprint(), Arc::clone(&haste));
        let names = local_names(&path, schema.as_ref());
        let mut changed = String::new();
        for start in 1..=STARTS {
            if start > 1 {
                warn!(model = %model, step = "fetch", error = %changed, "the download starts over");
                reporter.stage(Stage::Listing);
            }
            let attempt = async {
                let wish = self.find(&remote, &lane, &tally, &path, schema.as_ref(), &names).await?;
                let plan = self.plan(settings, identity(settings, storage), &names, &wish);
                halt::at(Point::Listed, model.as_str());
                let (items, mut first) = (wish.items, wish.first);
                let total: ByteSize = items.iter().map(|item| item.object.size).sum();
                let gathering = keep(&self.clock, &mut first, self.tier.gather(model, plan)).await?;
                reporter.listed(items.len(), total, gathering.resumed());
                let _wants = self.sharing.join(gathering.missing(), &haste);
                let transfer = Transfer {
                    remote: &remote,
                    verify: settings.verify(),
                    lane: &lane,
                    tally: &tally,
                    config: &self.config,
                    clock: &self.clock,
                    metrics: &self.metrics,
                    reporter,
                    written: written(model),
                };
                transfer.run(&items, &gathering, first).await?;
                reporter.stage(Stage::Verifying);
                halt::at(Point::Verified, model.as_str());
                let hold = gathering.land().await?;
                halt::at(Point::Renamed, model.as_str());
                Ok(hold)
            };
            match attempt.await {
                Ok(hold) => return Ok(hold),
                Err(Stop::Changed(why)) => changed = why,
                Err(Stop::Final(error)) => return Err(error),
                Err(Stop::Unranged) => changed = "the store answers with all bytes, whatever range it is asked for".to_owned(),
            }
        }
        Err(PullError::Corrupt(format!("{changed} (tried {STARTS} times)")))
    }

    /// All objects of model and schema with their files.
    async fn find(
        &self,
        remote: &dyn Remote,
        lane: &Lane,
        tally: &Tally,
        path: &StorePath,
        schema: Option<&StorePath>,
        names: &(String, Option<String>),
    ) -> Result<Wish, Stop> {
        let finder = Finder { remote, config: &self.config, clock: &self.clock, lane, tally };
        let place = remote.place();
        let unusable = |why: String| Stop::Final(PullError::Config(format!("{place}: {why}")));
        let mut status = None;
        let mut wish = match finder.find(path).await? {
            Found::Single(first) => {
                let object = first.answer.object.clone();
                Wish { size: object.size, items: vec![Item { object, file: names.0.clone() }], first: Some(*first) }
            }
            Found::Listed { objects: listed, status: at } => {
                status = at;
                let items = lay_out(path, &names.0, listed).map_err(unusable)?;
                Wish { size: items.iter().map(|item| item.object.size).sum(), items, first: None }
            }
        };
        if wish.items.is_empty() {
            let status = status.map_or_else(String::new, |status| format!(" (HTTP {status})"));
            return Err(Stop::Final(PullError::NotFound(format!("no object is at or under path {:?} in {place}{status}", path.as_str()))));
        }
        if let (Some(schema), Some(name)) = (schema, &names.1) {
            let listed = wish.items.iter().find(|item| item.object.key == schema.as_str()).map(|item| item.object.clone());
            // The answer's body is left to the transfer, which asks again in its turn. While it is asked for, the model's own
            // answer may not keep a turn for long that this question needs.
            let found = match listed {
                Some(object) => Ok(object),
                None => keep(&self.clock, &mut wish.first, finder.object(schema)).await.map(|First { answer, .. }| answer.object),
            };
            let object = match found {
                Ok(object) => object,
                Err(fault) if fault.kind == berth_stores::FaultKind::Missing => {
                    return Err(Stop::Final(PullError::NotFound(format!("no schema object {:?} is in {place}: {fault}", schema.as_str()))));
                }
                Err(fault) => return Err(fault.into()),
            };
            wish.items.push(Item { object, file: name.clone() });
        }
        Ok(wish)
    }

    fn plan(&self, settings: &Settings, source: String, names: &(String, Option<String>), wish: &Wish) -> Plan {
        let store = settings.identity();
        let files = wish.items.iter().map(|Item { object, file }| Wanted {
            path: file.clone(),
            blob: self.blob(&store, settings.verify(), object),
            bytes: object.size,
            version: object.version.as_ref().map(|version| version.0.clone()),
        });
        Plan { source, entry: names.0.clone(), schema: names.1.clone(), size: wish.size, files: files.collect() }
    }

    /// Names the bytes of one version of an object. Where the store tells versions not apart nothing is shared and nothing
    /// is gone on with.
    fn blob(&self, store: &str, verify: Verify, object: &Object) -> BlobId {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()); // keeps neighbouring fields apart
            hasher.update(bytes);
        };
        field(store.as_bytes());
        if verify == Verify::Length {
            field(b"lengths only"); // who wants more does not take it over
        }
        field(object.key.as_bytes());
        field(&object.size.0.to_le_bytes());
        match &object.version {
            Some(version) => field(version.0.as_bytes()),
            None => {
                field(&self.clock.wall().0.to_le_bytes());
                field(&self.unversioned.fetch_add(1, Ordering::Relaxed).to_le_bytes());
                field(&std::process::id().to_le_bytes());
            }
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        BlobId(id)
    }
}

/// Lets a test end the process when the first bytes of `model` are on disk.
fn written(model: &ModelId) -> Arc<dyn Fn() + Send + Sync> {
    let (model, first) = (model.clone(), AtomicBool::new(true));
    Arc::new(move || {
        if first.swap(false, Ordering::Relaxed) {
            halt::at(Point::Fetching, model.as_str());
        }
    })
}
