//! The disk tier: content of models that were fetched, kept for the next load within a byte budget.
//!
//! ```text
//! <cache>/models/<model id>/manifest.json   what the content is; its time stamp is the last use
//! <cache>/models/<model id>/files/...       the files, read-only
//! <cache>/staging/...                       downloads under way and content being removed
//! ```
//!
//! A folder under `models` appears by one rename, complete and on stable storage, its manifest included. What is not so
//! (a crash, another hand) is removed at start, or when it is asked for and a file does not have its length. All of
//! `staging` is removed at start.
//!
//! What goes is decided under the ledger's lock; files are touched after that, by threads that may block. So a folder may
//! be in its place for a moment after its content left the ledger, and the next content of that model waits for it. Bytes
//! are given back when the files are gone; files that cannot be removed keep theirs, and each claim tries again.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{ByteSize, ModelId, UnixMillis};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::PullError;
use crate::ledger::{ClaimId, Entry, Extent, Ledger, Room};

const MANIFEST: &str = "manifest.json";
const FILES: &str = "files";
const FORMAT: u32 = 1;

/// Up to this many files are flushed one by one; beyond it the whole file system is flushed once, which is cheaper.
const FLUSHED_SINGLY: usize = 64;

/// How often a folder is emptied that gets a new file meanwhile, from a write that had begun when its download failed.
const EMPTIED: u32 = 16;

/// What a content folder holds. Written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of this form; content of another one is fetched anew.
    pub(crate) format: u32,
    pub(crate) model: ModelId,
    /// Where it came from, without secrets.
    pub(crate) source: String,
    /// Name of the model's file or folder under `files`.
    pub(crate) entry: String,
    /// Name of the schema under `files`.
    pub(crate) schema: Option<String>,
    /// Bytes of the model, without the schema.
    pub(crate) size: ByteSize,
    pub(crate) fetched: UnixMillis,
    pub(crate) files: Vec<FileRecord>,
}

/// One file, as it was listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Relative to `files`.
    pub(crate) path: String,
    pub(crate) bytes: ByteSize,
    pub(crate) etag: Option<String>,
}

impl Manifest {
    pub(crate) fn new(
        model: ModelId,
        source: String,
        names: (String, Option<String>),
        size: ByteSize,
        fetched: UnixMillis,
        files: Vec<FileRecord>,
    ) -> Self {
        Manifest { format: FORMAT, model, source, entry: names.0, schema: names.1, size, fetched, files }
    }

    fn total(&self) -> ByteSize {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One model's folder in the tier.
#[derive(Debug)]
pub(crate) struct Content {
    folder: PathBuf,
    manifest: Manifest,
}

impl Content {
    pub(crate) fn model(&self) -> PathBuf {
        self.folder.join(FILES).join(&self.manifest.entry)
    }

    pub(crate) fn schema(&self) -> Option<PathBuf> {
        self.manifest.schema.as_ref().map(|name| self.folder.join(FILES).join(name))
    }

    pub(crate) fn size(&self) -> ByteSize {
        self.manifest.size
    }

    pub(crate) fn objects(&self) -> usize {
        self.manifest.files.len()
    }

    /// Every file is there with its length.
    fn check(&self) -> Result<(), String> {
        for file in &self.manifest.files {
            let path = self.folder.join(FILES).join(&file.path);
            match std::fs::symlink_metadata(&path) {
                Ok(about) if about.is_file() && about.len() == file.bytes.0 => {}
                Ok(about) => return Err(format!("{} has {} bytes, not {}", path.display(), about.len(), file.bytes.0)),
                Err(fault) => return Err(format!("{}: {fault}", path.display())),
            }
        }
        Ok(())
    }

    /// Remembers the last use across restarts. Failing to is no fault: the content only goes a little sooner.
    fn touch(&self, now: UnixMillis) {
        if let Ok(manifest) = File::open(self.folder.join(MANIFEST)) {
            let _ = manifest.set_modified(UNIX_EPOCH + Duration::from_millis(now.0));
        }
    }
}

/// The disk tier. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tier(Arc<Shared>);

struct Shared {
    models: PathBuf,
    staging: PathBuf,
    budget: ByteSize,
    clock: Clock,
    metrics: Metrics,
    ledger: Mutex<Ledger<Arc<Content>>>,
    /// What could not be removed. Locked while it is tried again, so only by threads that may block.
    stuck: Mutex<Vec<Removed>>,
    /// Told when bytes were given back.
    freed: Notify,
    sequence: AtomicU64,
}

/// Bytes of the tier that belong to a download until it lands or is dropped.
pub(crate) struct Claim {
    tier: Tier,
    id: ClaimId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.tier.0.ledger.lock().unclaim(self.id);
        self.tier.told();
    }
}

/// A folder for a download under way; removed when dropped.
pub(crate) struct Stage {
    folder: PathBuf,
    claim: Option<Claim>,
}

impl Stage {
    /// Where the files go.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// What to tell the bytes that files in here have come to occupy.
    pub(crate) fn growth(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let claim = self.claim.as_ref().map(|claim| (claim.tier.clone(), claim.id));
        move |bytes| {
            if let Some((tier, id)) = &claim {
                tier.0.ledger.lock().wrote(*id, bytes);
            }
        }
    }

    /// Removes the folder and gives the bytes back, before it returns.
    pub(crate) async fn discard(mut self) {
        if let Some((tier, left)) = self.leave() {
            tier.erase(left).await;
        }
    }

    /// From here on the bytes are on their way out: another claim may count on them and waits until they are gone.
    fn leave(&mut self) -> Option<(Tier, Removed)> {
        let claim = self.claim.take()?;
        let tier = claim.tier.clone();
        let bytes = tier.0.ledger.lock().abandon(claim.id);
        let folder = std::mem::take(&mut self.folder);
        bytes.map(|bytes| (tier, Removed { folder, place_of: None, bytes }))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((tier, left)) = self.leave() {
            drop(tier.erase_aside(left));
        }
    }
}

/// Keeps content on disk; dropped with the last [`crate::Pinned`] that shares it.
pub(crate) struct Hold {
    tier: Tier,
    generation: u64,
    content: Arc<Content>,
}

impl Hold {
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let now = self.tier.0.clock.wall();
        let last = self.tier.0.ledger.lock().unpin(&self.content.manifest.model, self.generation, now);
        match last {
            Some(entry) => drop(self.tier.erase_aside(Removed::content(&entry))),
            None => {
                let (tier, content, generation) = (self.tier.clone(), Arc::clone(&self.content), self.generation);
                drop(aside(move || tier.remember(&content, generation)));
            }
        }
    }
}

/// Files off the ledger that are still to be deleted.
struct Removed {
    folder: PathBuf,
    /// Set while `folder` is the place where content of that model belongs.
    place_of: Option<ModelId>,
    bytes: Extent,
}

impl Removed {
    fn content(entry: &Entry<Arc<Content>>) -> Self {
        let content = &entry.content;
        Removed { folder: content.folder.clone(), place_of: Some(content.manifest.model.clone()), bytes: entry.extent() }
    }
}

impl Tier {
    /// Opens the tier: creates its folders, sweeps what a crash left, takes over what is whole, and keeps the budget.
    pub(crate) async fn open(cache: &Path, budget: ByteSize, clock: Clock, metrics: Metrics) -> Result<Self, PullError> {
        let shared = Shared {
            models: cache.join("models"),
            staging: cache.join("staging"),
            budget,
            clock,
            metrics,
            ledger: Mutex::new(Ledger::new(budget)),
            stuck: Mutex::default(),
            freed: Notify::new(),
            sequence: AtomicU64::new(0),
        };
        let tier = Tier(Arc::new(shared));
        let scanned = tier.clone();
        let fault = |fault: &dyn std::fmt::Display| PullError::Disk(format!("disk tier in {}: {fault}", cache.display()));
        match tokio::task::spawn_blocking(move || scanned.scan()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(fault(&why)),
            Err(why) => return Err(fault(&why)),
        }
        tier.0.metrics.set(Gauge::DiskBudgetBytes, &[], budget.0);
        tier.told();
        Ok(tier)
    }

    fn scan(&self) -> io::Result<()> {
        if self.0.staging.exists() {
            std::fs::remove_dir_all(&self.0.staging)?;
        }
        std::fs::create_dir_all(&self.0.staging)?;
        std::fs::create_dir_all(&self.0.models)?;
        let mut found = Vec::new();
        for folder in std::fs::read_dir(&self.0.models)? {
            let folder = folder?.path();
            match read_content(&folder) {
                Ok(whole) => found.push(whole),
                Err(why) => {
                    info!(path = %folder.display(), error = %why, "content of the disk tier is not whole and is removed");
                    remove_or_warn(&folder);
                }
            }
        }
        found.sort_by_key(|(_, last_use)| std::cmp::Reverse(*last_use));
        let mut ledger = self.0.ledger.lock();
        let mut held = ByteSize::ZERO;
        for (content, last_use) in found {
            let size = content.manifest.total();
            if held + size > self.0.budget {
                info!(model = %content.manifest.model, size = %size, "content is removed from the disk tier, the budget has become smaller");
                remove_or_warn(&content.folder);
                continue;
            }
            held += size;
            ledger.add(content.manifest.model.clone(), Arc::new(content), size, last_use);
        }
        drop(ledger);
        self.free()?;
        Ok(())
    }

    /// The content of `model`, checked and pinned. `source`: where it would be fetched from now, if that is known;
    /// content from elsewhere is removed.
    pub(crate) async fn reuse(&self, model: &ModelId, source: Option<&str>) -> Option<Hold> {
        let now = self.0.clock.wall();
        let found = {
            let mut ledger = self.0.ledger.lock();
            let content = Arc::clone(&ledger.get(model)?.content);
            if source.is_some_and(|source| source != content.manifest.source) {
                Err(ledger.take(model).map(|entry| Removed::content(&entry))?)
            } else {
                Ok(Hold { tier: self.clone(), generation: ledger.pin(model, now)?, content })
            }
        };
        let hold = match found {
            Ok(hold) => hold,
            Err(elsewhere) => {
                self.erase(elsewhere).await;
                return None;
            }
        };
        let checked = Arc::clone(&hold.content);
        let outcome = tokio::task::spawn_blocking(move || checked.check().map(|()| checked.touch(now))).await;
        let why = match outcome {
            Ok(Ok(())) => return Some(hold),
            Ok(Err(why)) => why,
            Err(fault) => fault.to_string(),
        };
        warn!(model = %model, error = %why, "content of the disk tier is not whole and is fetched again");
        let removed = {
            let mut ledger = self.0.ledger.lock();
            let same = ledger.get(model).is_some_and(|entry| entry.generation == hold.generation);
            if same { ledger.take(model).map(|entry| Removed::content(&entry)) } else { None }
        };
        if let Some(removed) = removed {
            self.erase(removed).await;
        }
        None
    }

    /// True when the content of `model` is here and every file has its length.
    pub(crate) fn has(&self, model: &ModelId, source: Option<&str>) -> bool {
        let content = self.0.ledger.lock().get(model).filter(|entry| !entry.doomed).map(|entry| Arc::clone(&entry.content));
        content.is_some_and(|content| source.is_none_or(|source| source == content.manifest.source) && content.check().is_ok())
    }

    /// Claims `need` bytes, removing the least recently used content where that takes it. Returns once they are free.
    pub(crate) async fn claim(&self, need: ByteSize) -> Result<Claim, PullError> {
        loop {
            let tier = self.clone();
            let looked = on_disk(&self.0.models, move || {
                tier.retry_stuck();
                let held = tier.0.ledger.lock().on_disk();
                tier.free().map(|free| (free, held + free))
            });
            let (free, by_disk) = looked.await?;
            let decided = self.0.ledger.lock().claim(need, by_disk);
            let (id, victims) = decided.map_err(|short| {
                if short.file_system && need <= self.0.budget {
                    let of = self.0.models.display();
                    PullError::Disk(format!(
                        "needs {need} on disk, the file system of {of} has {free} free and {} can be had: free space there or move the data folder",
                        short.free
                    ))
                } else {
                    PullError::DiskFull { need, free: short.free, budget: short.limit }
                }
            })?;
            let claim = Claim { tier: self.clone(), id };
            let start = |(model, entry): (ModelId, Entry<_>)| {
                info!(model = %model, size = %entry.size, "content is removed from the disk tier to make room");
                self.erase_aside(Removed::content(&entry))
            };
            // All are begun before one is waited for: they go on when nobody waits for this claim any more.
            let removals: Vec<_> = victims.into_iter().filter_map(start).collect();
            futures::future::join_all(removals).await;
            let mut room = Room::NotYet;
            self.wait_until(|ledger| {
                room = ledger.room();
                room != Room::NotYet
            })
            .await;
            self.told();
            if room == Room::Yes {
                return Ok(claim);
            }
            // What was to make room cannot be removed: decide again, with it counted.
        }
    }

    /// A fresh folder for a download.
    pub(crate) async fn stage(&self, model: &ModelId, claim: Claim) -> Result<Stage, PullError> {
        let folder = self.aside_name(&folder_name(model));
        let stage = Stage { folder: folder.clone(), claim: Some(claim) };
        let files = stage.files();
        match on_disk(&folder, move || std::fs::create_dir_all(files)).await {
            Ok(()) => Ok(stage),
            Err(fault) => {
                stage.discard().await;
                Err(fault)
            }
        }
    }

    /// Makes the staged files read-only, writes the manifest, and brings all of it to stable storage.
    pub(crate) async fn seal(&self, stage: &Stage, manifest: &Manifest) -> Result<(), PullError> {
        let (folder, manifest) = (stage.folder.clone(), manifest.clone());
        on_disk(&stage.folder, move || seal(&folder, &manifest)).await
    }

    /// Gives sealed content its final name and pins it. There is one download per model, so nothing else takes the name.
    pub(crate) async fn land(&self, mut stage: Stage, manifest: Manifest) -> Result<Hold, PullError> {
        let before = self.0.ledger.lock().take(&manifest.model);
        if let Some(before) = before {
            drop(self.erase_aside(Removed::content(&before)));
        }
        self.wait_until(|ledger| !ledger.in_place(&manifest.model)).await;
        let (tier, shown) = (self.clone(), stage.folder.clone());
        let landed = on_disk(&shown, move || Ok(tier.put(&mut stage, manifest).map_err(|fault| (stage, fault)))).await?;
        match landed {
            Ok(hold) => Ok(hold),
            Err((stage, fault)) => {
                stage.discard().await;
                Err(PullError::Disk(format!("disk tier, {}: {fault}", shown.display())))
            }
        }
    }

    /// Moves the staged folder into its place, which is free, and makes content of it.
    fn put(&self, stage: &mut Stage, manifest: Manifest) -> io::Result<Hold> {
        let now = self.0.clock.wall();
        let folder = self.0.models.join(folder_name(&manifest.model));
        self.retry_stuck();
        if self.0.stuck.lock().iter().any(|left| left.folder == folder) {
            return Err(io::Error::other(format!("what was in {} before cannot be removed", folder.display())));
        }
        if folder.exists() {
            let stray = self.aside_name("stray"); // another hand put it there
            std::fs::rename(&folder, &stray)?;
            remove_or_warn(&stray);
        }
        let staged = Content { folder: stage.folder.clone(), manifest };
        staged.touch(now);
        std::fs::rename(&staged.folder, &folder)?;
        let content = Arc::new(Content { folder, manifest: staged.manifest });
        let (model, size) = (&content.manifest.model, content.manifest.total());
        let generation = {
            let mut ledger = self.0.ledger.lock();
            ledger.add(model.clone(), Arc::clone(&content), size, now);
            if let Some(claim) = &stage.claim {
                ledger.unclaim(claim.id);
            }
            ledger.pin(model, now).unwrap_or_default()
        };
        // The folder is content now: nothing is left for the stage to remove.
        drop(stage.claim.take());
        let hold = Hold { tier: self.clone(), generation, content };
        flush(&self.0.models)?;
        // Only a gauge hangs on it.
        let _ = self.free();
        Ok(hold)
    }

    /// Removes the content of `model`, at once or with its last pin.
    pub(crate) fn forget(&self, model: &ModelId) {
        let removed = self.0.ledger.lock().doom(model);
        if let Some(entry) = removed {
            drop(self.erase_aside(Removed::content(&entry)));
        }
    }

    /// Bytes held, claimed and being removed.
    #[cfg(test)]
    pub(crate) fn used(&self) -> ByteSize {
        self.0.ledger.lock().used()
    }

    /// Writes down when content was last used. It may have left the ledger meanwhile.
    fn remember(&self, content: &Content, generation: u64) {
        let last_use = {
            let ledger = self.0.ledger.lock();
            ledger.get(&content.manifest.model).filter(|entry| entry.generation == generation).map(|entry| entry.last_use)
        };
        if let Some(last_use) = last_use {
            content.touch(last_use);
        }
    }

    async fn erase(&self, removed: Removed) {
        if let Some(erased) = self.erase_aside(removed) {
            // Fails only when the runtime is shutting down; the next start sweeps what is left.
            let _ = erased.await;
        }
    }

    fn erase_aside(&self, removed: Removed) -> Option<JoinHandle<()>> {
        let tier = self.clone();
        aside(move || tier.erase_now(removed))
    }

    fn erase_now(&self, mut removed: Removed) {
        let place_of = removed.place_of.clone();
        let outcome = self.try_erase(&mut removed);
        match &outcome {
            Ok(()) => self.0.ledger.lock().gone(removed.bytes),
            Err(fault) => {
                warn!(path = %removed.folder.display(), error = %fault, "cannot be removed: its bytes stay counted, the next download tries again");
                let bytes = removed.bytes;
                // In this order: whoever finds the place cleared must find what is stuck there.
                let mut stuck = self.0.stuck.lock();
                stuck.push(removed);
                self.0.ledger.lock().stick(bytes);
            }
        }
        if let Some(model) = &place_of {
            self.0.ledger.lock().cleared(model);
        }
        self.told();
        // Only a gauge hangs on it.
        let _ = self.free();
    }

    /// Out of sight first, so that what is half removed is never in the place of content.
    fn try_erase(&self, removed: &mut Removed) -> io::Result<()> {
        if removed.place_of.is_some() {
            let hidden = self.aside_name("gone");
            // Where it cannot be moved it is removed in its place, which takes a folder that is gone already for removed.
            if std::fs::rename(&removed.folder, &hidden).is_ok() {
                removed.folder = hidden;
                removed.place_of = None;
            }
        }
        remove(&removed.folder)
    }

    /// Tries once more what could not be removed.
    fn retry_stuck(&self) {
        let mut freed = false;
        self.0.stuck.lock().retain_mut(|removed| {
            let gone = self.try_erase(removed).is_ok();
            if gone {
                info!(path = %removed.folder.display(), "removed at last");
                self.0.ledger.lock().unstick(removed.bytes);
                freed = true;
            }
            !gone
        });
        if freed {
            self.told();
        }
    }

    /// Waits until the ledger says so, which only what [`Tier::told`] tells can change.
    async fn wait_until(&self, mut so: impl FnMut(&Ledger<Arc<Content>>) -> bool) {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable(); // a notice between the look and the wait must not be missed
            if so(&self.0.ledger.lock()) {
                return;
            }
            freed.await;
        }
    }

    /// Bytes moved: wakes claims that wait and sets the gauge.
    fn told(&self) {
        self.0.freed.notify_waiters();
        let used = self.0.ledger.lock().used();
        self.0.metrics.set(Gauge::DiskUsedBytes, &[], used.0);
    }

    /// What the file system has left. May block.
    fn free(&self) -> io::Result<ByteSize> {
        let free = free_bytes(&self.0.models)?;
        self.0.metrics.set(Gauge::DiskFreeBytes, &[], free.0);
        Ok(free)
    }

    fn aside_name(&self, what: &str) -> PathBuf {
        self.0.staging.join(format!("{what}.{}", self.0.sequence.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Runs `work` off the async threads where there is a runtime, here otherwise.
fn aside(work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => Some(runtime.spawn_blocking(work)),
        Err(_) => {
            work();
            None
        }
    }
}

async fn on_disk<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, PullError> {
    let failed = |fault: &dyn std::fmt::Display| PullError::Disk(format!("disk tier, {}: {fault}", path.display()));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fault)) => Err(failed(&fault)),
        Err(fault) => Err(failed(&fault)),
    }
}

/// What is gone already counts as removed.
fn remove(folder: &Path) -> io::Result<()> {
    let mut times = 1;
    loop {
        match std::fs::remove_dir_all(folder) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(fault) if fault.kind() == io::ErrorKind::DirectoryNotEmpty && times < EMPTIED => times += 1,
            outcome => return outcome,
        }
    }
}

/// For what no bytes are counted for.
fn remove_or_warn(folder: &Path) {
    if let Err(fault) = remove(folder) {
        warn!(path = %folder.display(), error = %fault, "cannot be removed, the next start tries again");
    }
}

fn free_bytes(path: &Path) -> io::Result<ByteSize> {
    let about = rustix::fs::statvfs(path)?;
    Ok(ByteSize(about.f_bavail.saturating_mul(about.f_frsize)))
}

fn flush(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn seal(folder: &Path, manifest: &Manifest) -> io::Result<()> {
    let files = folder.join(FILES);
    let mut folders = std::collections::BTreeSet::from([files.clone()]);
    for record in &manifest.files {
        let path = files.join(&record.path);
        let file = File::open(&path)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        if manifest.files.len() <= FLUSHED_SINGLY {
            file.sync_all()?;
        }
        folders.extend(path.ancestors().skip(1).take_while(|parent| parent.starts_with(&files)).map(Path::to_owned));
    }
    let text = serde_json::to_vec(manifest)?;
    let path = folder.join(MANIFEST);
    std::fs::write(&path, text)?;
    if manifest.files.len() <= FLUSHED_SINGLY {
        flush(&path)?;
        for folder in &folders {
            flush(folder)?;
        }
        flush(folder)
    } else {
        rustix::fs::syncfs(File::open(folder)?)?;
        Ok(())
    }
}

fn read_content(folder: &Path) -> Result<(Content, UnixMillis), String> {
    let path = folder.join(MANIFEST);
    let text = std::fs::read(&path).map_err(|fault| format!("{}: {fault}", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|fault| format!("{}: {fault}", path.display()))?;
    if manifest.format != FORMAT {
        return Err(format!("{} has format {}, this program writes {FORMAT}", path.display(), manifest.format));
    }
    if folder.file_name().is_none_or(|name| name != folder_name(&manifest.model).as_str()) {
        return Err(format!("{} is of model {}", path.display(), manifest.model));
    }
    let last_use = std::fs::metadata(&path).and_then(|about| about.modified()).map_err(|fault| fault.to_string())?;
    let last_use = last_use.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let content = Content { folder: folder.to_owned(), manifest };
    content.check()?;
    Ok((content, UnixMillis(u64::try_from(last_use).unwrap_or(u64::MAX))))
}

/// A model id as a file name: readable, reversible by eye, at most 200 bytes, different for different ids.
fn folder_name(model: &ModelId) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for byte in model.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if !name.is_empty() => name.push('.'),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    if name.len() > 200 {
        name.truncate(160);
        name.push('~');
        name.push_str(&blake3::hash(model.as_str().as_bytes()).to_hex()[..32]);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("sound")
    }

    async fn tier(cache: &Path, budget: u64) -> Tier {
        Tier::open(cache, ByteSize(budget), Clock::starting_at(UnixMillis(1_000_000)), Metrics::default()).await.expect("opens")
    }

    fn manifest(name: &str, bytes: u64, fetched: u64) -> Manifest {
        let files = vec![FileRecord { path: "m/x".to_owned(), bytes: ByteSize(bytes), etag: None }];
        Manifest::new(id(name), "here".to_owned(), ("m".to_owned(), None), ByteSize(bytes), UnixMillis(fetched), files)
    }

    async fn put(tier: &Tier, name: &str, bytes: u64) -> Result<Hold, PullError> {
        let claim = tier.claim(ByteSize(bytes)).await?;
        let stage = tier.stage(&id(name), claim).await?;
        std::fs::create_dir_all(stage.files().join("m")).expect("a folder");
        std::fs::write(stage.files().join("m/x"), vec![7; usize::try_from(bytes).expect("small")]).expect("written");
        let manifest = manifest(name, bytes, 1);
        tier.seal(&stage, &manifest).await?;
        tier.land(stage, manifest).await
    }

    fn names(cache: &Path, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(cache.join(folder))
            .expect("there")
            .map(|entry| entry.expect("read").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn content_is_read_only_survives_a_restart_and_keeps_its_last_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path();
        {
            let tier = tier(cache, 100).await;
            for name in ["a", "b", "c"] {
                drop(put(&tier, name, 30).await.expect("fits"));
                tier.0.clock.sleep(Duration::from_secs(10)).await;
            }
            drop(tier.reuse(&id("a"), Some("here")).await.expect("there")); // so "b" is the least recently used
        }
        let tier = tier(cache, 100).await;
        assert_eq!(tier.used(), ByteSize(90));
        let hold = tier.reuse(&id("c"), None).await.expect("there");
        let mode = std::fs::metadata(hold.content().model().join("x")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        drop(put(&tier, "d", 20).await.expect("fits once the oldest is gone"));
        assert_eq!(names(cache, "models"), ["a", "c", "d"]);
        assert!(!tier.has(&id("b"), None) && tier.has(&id("a"), None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_crash_left_is_swept_at_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = folder.path();
        {
            let tier = tier(cache, 1000).await;
            for name in ["whole", "short", "unmarked", "garbled", "foreign", "newer"] {
                drop(put(&tier, name, 10).await.expect("fits"));
            }
        }
        let at = |path: &str| cache.join("models").join(path);
        let rewrite = |path: PathBuf, bytes: &[u8]| {
            std::fs::remove_file(&path).expect("there");
            std::fs::write(&path, bytes).expect("written");
        };
        rewrite(at("short/files/m/x"), b"short");
        std::fs::remove_file(at("unmarked/manifest.json")).expect("there");
        rewrite(at("garbled/manifest.json"), b"{\"format\":1,");
        std::fs::rename(at("foreign"), at("renamed")).expect("moved");
        rewrite(at("newer/manifest.json"), serde_json::to_string(&Manifest { format: 2, ..manifest("newer", 10, 1) }).expect("text").as_bytes());
        std::fs::create_dir_all(cache.join("staging/half.0/files")).expect("a folder");
        std::fs::write(cache.join("staging/half.0/files/x"), b"half").expect("written");
        let tier = tier(cache, 1000).await;
        assert_eq!(names(cache, "models"), ["whole"]);
        assert_eq!(names(cache, "staging"), Vec::<String>::new());
        assert_eq!(tier.used(), ByteSize(10));
    }

    #[tokio::test(start_paused = true)]
    async fn content_that_lost_a_byte_is_not_handed_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "a", 30).await.expect("fits"));
        let file = folder.path().join("models/a/files/m/x");
        std::fs::remove_file(&file).expect("there");
        std::fs::write(&file, vec![7; 29]).expect("written");
        assert!(!tier.has(&id("a"), None));
        assert!(tier.reuse(&id("a"), None).await.is_none());
        assert_eq!((tier.used(), names(folder.path(), "models").len()), (ByteSize(0), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn content_from_another_source_is_not_handed_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "a", 30).await.expect("fits"));
        assert!(tier.has(&id("a"), Some("here")) && !tier.has(&id("a"), Some("there")));
        assert!(tier.reuse(&id("a"), Some("there")).await.is_none());
        assert_eq!(tier.used(), ByteSize(0));
    }

    #[tokio::test(start_paused = true)]
    async fn pinned_content_is_kept_and_a_full_tier_says_so_with_the_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        let held = put(&tier, "held", 60).await.expect("fits");
        drop(put(&tier, "idle", 30).await.expect("fits"));
        let refused = tier.claim(ByteSize(50)).await.map(|_| ()).expect_err("40 can be had");
        assert_eq!(refused, PullError::DiskFull { need: ByteSize(50), free: ByteSize(40), budget: ByteSize(100) });
        assert!(tier.has(&id("idle"), None), "a refusal removes nothing");
        tier.forget(&id("held"));
        assert!(held.content().model().join("x").exists(), "forgotten, but still pinned");
        drop(held);
        drop(tier.claim(ByteSize(100)).await.expect("the pin is gone"));
        assert_eq!(tier.used(), ByteSize(0));
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_at_the_same_time_never_claim_the_same_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "old", 90).await.expect("fits"));
        let (a, b) = tokio::join!(tier.claim(ByteSize(60)), tier.claim(ByteSize(60)));
        let outcomes = [a, b];
        assert_eq!(outcomes.iter().filter(|claim| claim.is_ok()).count(), 1);
        let refused = outcomes.iter().find_map(|claim| claim.as_ref().err()).expect("one is refused");
        assert_eq!(*refused, PullError::DiskFull { need: ByteSize(60), free: ByteSize(40), budget: ByteSize(100) });
        drop(outcomes);
        assert!(tier.claim(ByteSize(100)).await.is_ok(), "a dropped claim gives its bytes back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_budget_keeps_the_most_recently_used() {
        let folder = tempfile::tempdir().expect("a folder");
        {
            let tier = tier(folder.path(), 100).await;
            for name in ["a", "b", "c"] {
                drop(put(&tier, name, 30).await.expect("fits"));
                tier.0.clock.sleep(Duration::from_secs(1)).await;
            }
        }
        let tier = tier(folder.path(), 65).await;
        assert_eq!(names(folder.path(), "models"), ["b", "c"]);
        assert_eq!(tier.used(), ByteSize(60));
    }

    async fn staged(tier: &Tier, name: &str, bytes: u64) -> Stage {
        tier.stage(&id(name), tier.claim(ByteSize(bytes)).await.expect("fits")).await.expect("a folder")
    }

    /// A claim, which would wait for ever if bytes had been lost.
    async fn claim_soon(tier: &Tier, need: u64) -> Result<Claim, PullError> {
        let clock = &tier.0.clock;
        clock.until(clock.deadline_in(Duration::from_secs(60)), tier.claim(ByteSize(need))).await.expect("bytes that nobody holds are waited for")
    }

    /// Something that is no folder, which [`remove`] refuses.
    fn spoil(folder: &Path) {
        std::fs::remove_dir_all(folder).expect("there");
        std::fs::write(folder, b"no folder").expect("written");
    }

    #[tokio::test(start_paused = true)]
    async fn a_given_up_download_is_in_nobody_s_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "idle", 40).await.expect("fits"));
        let first = staged(&tier, "m", 60).await;
        std::fs::write(first.files().join("x"), b"half").expect("written");
        first.discard().await;
        assert_eq!((names(folder.path(), "staging").len(), tier.used()), (0, ByteSize(40)), "all of it is gone when discard returns");
        drop(staged(&tier, "m", 60).await);
        let third = claim_soon(&tier, 60).await.expect("one that was only dropped is waited for");
        assert_eq!(names(folder.path(), "staging").len(), 0);
        assert!(tier.has(&id("idle"), None), "nothing had to go");
        drop(third);
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_cannot_be_removed_keep_their_bytes_until_they_can_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "a", 30).await.expect("fits"));
        let stage = staged(&tier, "b", 30).await;
        spoil(&folder.path().join("models/a"));
        spoil(&stage.folder);
        stage.discard().await;
        assert_eq!(tier.used(), ByteSize(60));
        let refused = claim_soon(&tier, 50).await.map(|_| ()).expect_err("30 stay and 30 cannot be removed");
        assert_eq!(refused, PullError::DiskFull { need: ByteSize(50), free: ByteSize(40), budget: ByteSize(100) });
        assert_eq!((tier.used(), names(folder.path(), "staging").len()), (ByteSize(60), 2));
        for left in names(folder.path(), "staging") {
            std::fs::remove_file(folder.path().join("staging").join(left)).expect("there");
        }
        let claim = claim_soon(&tier, 100).await.expect("all of it is gone");
        assert_eq!(tier.used(), ByteSize(100));
        drop(claim);
    }

    #[tokio::test(start_paused = true)]
    async fn content_that_cannot_be_moved_is_removed_where_it_is_and_its_successor_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "a", 60).await.expect("fits"));
        let staging = folder.path().join("staging");
        std::fs::remove_dir_all(&staging).expect("there"); // no folder can be moved there
        drop(claim_soon(&tier, 100).await.expect("removed in its place"));
        assert_eq!(names(folder.path(), "models").len(), 0);
        std::fs::create_dir(&staging).expect("made");
        let held = put(&tier, "a", 60).await.expect("fits");
        drop(claim_soon(&tier, 40).await.expect("fits beside it"));
        assert!(held.content().model().join("x").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_landing_that_fails_gives_all_bytes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "a", 30).await.expect("fits"));
        let stage = staged(&tier, "a", 30).await;
        std::fs::remove_dir_all(&stage.folder).expect("there");
        let fault = tier.land(stage, manifest("a", 30, 2)).await.map(|_| ()).expect_err("nothing was staged");
        assert!(matches!(&fault, PullError::Disk(text) if text.contains("staging/a.")), "{fault:?}");
        drop(claim_soon(&tier, 100).await.expect("nothing is held"));
        assert_eq!(tier.used(), ByteSize(0));
    }

    #[tokio::test(start_paused = true)]
    async fn content_forgotten_and_fetched_again_at_once_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = tier(folder.path(), 100).await;
        for _ in 0..20 {
            let held = put(&tier, "a", 30).await.expect("fits");
            assert!(held.content().model().join("x").exists());
            tier.forget(&id("a"));
            drop(held); // its files go while the next ones land
        }
        let held = put(&tier, "a", 30).await.expect("fits");
        drop(claim_soon(&tier, 70).await.expect("all that went is gone"));
        assert!(held.content().model().join("x").exists());
        assert_eq!((names(folder.path(), "staging").len(), tier.used()), (0, ByteSize(30)));
    }

    #[test]
    fn folder_names_are_safe_and_different() {
        let long_a = format!("{}a", "é".repeat(300));
        let long_b = format!("{}b", "é".repeat(300));
        let ids = ["m__isvc-0123456789", ".", "..", ".hidden", "a/b", "a%2Fb", "a b", "ä", long_a.as_str(), long_b.as_str()];
        let names: std::collections::HashSet<String> = ids.iter().map(|name| folder_name(&id(name))).collect();
        assert_eq!(names.len(), ids.len());
        for name in names {
            assert!(name.len() <= 200 && name.is_ascii() && !name.contains('/') && !name.starts_with('.'), "{name}");
        }
        assert_eq!(folder_name(&id("m__isvc-0123456789")), "m__isvc-0123456789");
    }
}
