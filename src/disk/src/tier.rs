//! The tier itself: what holds its parts together, contents in and out, and the removal of files.
//!
//! What goes is decided under the ledger's lock; files are touched after that, by threads that may block. Bytes are given
//! back when the files are gone; files that cannot be removed keep theirs, and each download tries again. Locks are taken
//! in the order of [`Shared`]'s fields, and none is held across an await.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{ByteSize, ModelId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::DiskError;
use crate::blob::{BlobId, State, Trust, Whole};
use crate::content::{Content, nth_name};
use crate::journal::{Journal, Known, Line};
use crate::ledger::{Generation, Ledger, Taken};

/// Where the tier is and what it may hold.
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// The tier's own folder; nobody else writes in it. Created when missing.
    pub folder: PathBuf,
    /// Bytes that it may hold, downloads under way included.
    pub budget: ByteSize,
}

/// What the tier takes from the machine. Tests say otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Which start of the machine this is. `None`: it does not say, and what a power cut may take is always looked at anew.
    pub(crate) boot: Option<String>,
    /// False in tests that need no stable storage, which may cost seconds.
    pub(crate) syncs: bool,
    /// Whether the file system can link; `None` finds out.
    pub(crate) links: Option<bool>,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let boot = boot.map(|boot| boot.trim().to_owned()).filter(|boot| !boot.is_empty() && !boot.contains(char::is_whitespace));
        Machine { boot, syncs: true, links: None }
    }
}

/// The disk tier. Cheap to clone.
#[derive(Clone)]
pub struct Tier(pub(crate) Arc<Shared>);

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tier").field("folder", &self.0.places.folder).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) budget: ByteSize,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) machine: Machine,
    /// True where contents are links to blobs; false where the file system cannot, and blobs are moved into them.
    pub(crate) links: bool,
    /// One look at doubtful files at a time. Locked only by threads that may block.
    pub(crate) looking: Mutex<()>,
    /// What could not be removed. Locked while it is tried again, so only by threads that may block.
    pub(crate) stuck: Mutex<Vec<Left>>,
    /// Folders under `models` that are taken, also by what is on its way out. Locked only by threads that may block.
    pub(crate) taken: Mutex<HashSet<PathBuf>>,
    /// Blobs that are being written, and whom to tell when that ends.
    pub(crate) writers: Mutex<HashMap<BlobId, Arc<Notify>>>,
    /// Locked while a line is appended, so only by threads that may block.
    pub(crate) journal: Mutex<Journal>,
    pub(crate) ledger: Mutex<Ledger<Arc<Content>>>,
    pub(crate) syncing: Mutex<Syncing>,
    /// Told when bytes were given back.
    pub(crate) freed: Notify,
    /// The last turn given out: see [`Whole::turn`].
    pub(crate) turn: AtomicU64,
    pub(crate) sequence: AtomicU64,
}

/// Whether what is new is being brought to stable storage.
#[derive(Debug, Default)]
pub(crate) struct Syncing {
    wanted: bool,
    running: bool,
}

/// The tier's folders.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) folder: PathBuf,
    pub(crate) blobs: PathBuf,
    pub(crate) models: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) journal: PathBuf,
}

impl Places {
    pub(crate) fn new(folder: PathBuf) -> Self {
        let at = |name: &str| folder.join(name);
        Places { blobs: at("blobs"), models: at("models"), staging: at("staging"), journal: at("blobs.journal"), folder }
    }

    pub(crate) fn blob(&self, id: &BlobId) -> PathBuf {
        self.blobs.join(id.to_string())
    }
}

/// A folder off the ledger that is still to be deleted.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) generation: Generation,
    pub(crate) path: PathBuf,
    /// True while it is where content belongs.
    pub(crate) in_place: bool,
}

/// What could not be removed.
#[derive(Debug)]
pub(crate) enum Left {
    Folder(Folder),
    Blob(BlobId),
}

/// Files off the ledger that are still to be deleted.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    pub(crate) folder: Option<Folder>,
    pub(crate) files: Vec<BlobId>,
}

impl From<Taken<Arc<Content>>> for Removal {
    fn from(taken: Taken<Arc<Content>>) -> Self {
        let folder = taken.content.map(|(generation, content)| Folder { generation, path: content.folder().to_owned(), in_place: true });
        Removal { folder, files: taken.files }
    }
}

/// Keeps content on disk. It goes on being where it is until this is dropped, whatever comes after it.
#[derive(Debug)]
pub struct Hold {
    tier: Tier,
    generation: Generation,
    content: Arc<Content>,
    ended: bool,
}

impl Hold {
    pub(crate) fn new(tier: Tier, generation: Generation, content: Arc<Content>) -> Self {
        Hold { tier, generation, content, ended: false }
    }

    /// The content.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let now = self.tier.0.clock.wall();
        let last = self.tier.0.ledger.lock().unpin(self.generation, now);
        match last {
            Some(taken) => drop(self.tier.erase_aside(taken.into())),
            None => {
                let (tier, content, generation) = (self.tier.clone(), Arc::clone(&self.content), self.generation);
                drop(aside(move || tier.remember(&content, generation)));
            }
        }
    }
}

impl Tier {
    /// The content of `model`, checked and pinned. `source`: where it would be fetched from now, if that is known; content
    /// from elsewhere is not handed out, and goes when its successor lands or its bytes are needed.
    pub async fn reuse(&self, model: &ModelId, source: Option<&str>) -> Option<Hold> {
        let now = self.0.clock.wall();
        let hold = {
            let mut ledger = self.0.ledger.lock();
            let (_, entry) = ledger.get(model)?;
            if source.is_some_and(|source| source != entry.content.manifest().source) {
                ledger.demote(model);
                return None;
            }
            let (generation, content) = ledger.pin(model, now)?;
            Hold::new(self.clone(), generation, content)
        };
        let tier = self.clone();
        let look = move || match tier.look_at_content(&hold.content) {
            Ok(()) => {
                hold.content.touch(now);
                Ok(hold)
            }
            Err(why) => {
                tier.give_up(hold);
                Err(why)
            }
        };
        let why = match tokio::task::spawn_blocking(look).await {
            Ok(Ok(hold)) => return Some(hold),
            Ok(Err(why)) => why,
            Err(fault) => fault.to_string(),
        };
        warn!(model = %model, error = %why, "content of the disk tier is not whole and is fetched again");
        None
    }

    /// True when the content of `model` is here and every file has its length.
    #[must_use]
    pub fn has(&self, model: &ModelId, source: Option<&str>) -> bool {
        let content = {
            let ledger = self.0.ledger.lock();
            ledger.get(model).filter(|(_, entry)| !entry.doomed).map(|(_, entry)| Arc::clone(&entry.content))
        };
        content.is_some_and(|content| source.is_none_or(|source| source == content.manifest().source) && content.check(|_, _, _| ()).is_ok())
    }

    /// Removes the content of `model`, at once or with its last pin.
    pub fn forget(&self, model: &ModelId) {
        let taken = self.0.ledger.lock().doom(model);
        if let Some(taken) = taken {
            drop(self.erase_aside(taken.into()));
        }
    }

    /// Every file of pinned content has its length, and those in doubt have their bytes.
    fn look_at_content(&self, content: &Content) -> Result<(), String> {
        let mut files = Vec::with_capacity(content.objects());
        content.check(|file, path, about| files.push((file.blob, path.to_owned(), crate::content::written_at(about))))?;
        {
            let ledger = self.0.ledger.lock();
            files.retain(|(id, _, written)| match ledger.blob(id).map(|blob| &blob.state) {
                Some(State::Whole(whole)) => whole.trust == Trust::Doubtful || whole.written != *written,
                _ => true,
            });
        }
        let mut outcome = Ok(());
        for (id, path, written) in files {
            let wrong = match self.hash_again(&id, &path, written) {
                Ok(true) => continue,
                Ok(false) => format!("{} does not have the bytes that were fetched", path.display()),
                Err(fault) => format!("{}: {fault}", path.display()),
            };
            outcome = Err(wrong);
            // It may be this name of it only that is wrong. Where its own file cannot be looked at or removed, whoever fetches
            // it again finds that out.
            let _ = self.look_at_blobs(&[id]);
        }
        outcome
    }

    /// Ends a pin of content that is not to be handed out again, and removes it unless others pin it.
    fn give_up(&self, mut hold: Hold) {
        hold.ended = true;
        let now = self.0.clock.wall();
        let taken = {
            let mut ledger = self.0.ledger.lock();
            // Pinned as it is, this takes nothing yet.
            let _ = ledger.discard(hold.generation);
            ledger.unpin(hold.generation, now)
        };
        if let Some(taken) = taken {
            self.erase_now(taken.into());
        }
    }

    /// Looks at whole blobs before they are used: the wrong ones are gone afterwards.
    pub(crate) fn look_at_blobs(&self, ids: &[BlobId]) -> io::Result<()> {
        let whole: Vec<(BlobId, u64, i64, Trust)> = {
            let ledger = self.0.ledger.lock();
            let known = ids.iter().filter_map(|id| ledger.blob(id).map(|blob| (id, blob)));
            let whole = known.filter_map(|(id, blob)| match &blob.state {
                // One in flight was looked at when its download began.
                State::Whole(whole) if blob.is_to_be_had() && !blob.is_in_flight() => Some((*id, blob.size, whole.written, whole.trust)),
                _ => None,
            });
            whole.collect()
        };
        for (id, size, written, trust) in whole {
            let path = self.0.places.blob(&id);
            let sound = match std::fs::symlink_metadata(&path) {
                Ok(about) if !about.is_file() || about.len() != size => false,
                Ok(about) if trust == Trust::Doubtful || crate::content::written_at(&about) != written => {
                    self.hash_again(&id, &path, crate::content::written_at(&about))?
                }
                Ok(_) => true,
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => false,
                Err(fault) => return Err(fault),
            };
            if !sound {
                warn!(path = %path.display(), "a file of the disk tier does not have the bytes that were fetched, and is fetched again");
                self.condemn(&id)?;
            }
        }
        Ok(())
    }

    /// True when the file at `path`, last written at `written`, has the bytes of the whole blob `id`.
    fn hash_again(&self, id: &BlobId, path: &Path, written: i64) -> io::Result<bool> {
        let _alone = self.0.looking.lock();
        let known = |ledger: &Ledger<_>| match ledger.blob(id).map(|blob| (&blob.state, blob.size, blob.last_use)) {
            Some((State::Whole(whole), size, last_use)) => Some((whole.clone(), size, last_use)),
            _ => None,
        };
        let Some((whole, size, at)) = known(&self.0.ledger.lock()) else { return Ok(false) };
        if whole.trust != Trust::Doubtful && whole.written == written {
            return Ok(true); // somebody else was first
        }
        let file = match File::open(path) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(false),
            outcome => outcome?,
        };
        if Some(crate::digest::of_reader(file)?) != whole.digest {
            return Ok(false);
        }
        let again = Whole { written, trust: Trust::Fresh, ..whole };
        if self.journaled(&[Line::Whole { id: *id, size, whole: again, at }], |ledger| ledger.judged(id, written, Trust::Fresh)).is_err() {
            self.0.ledger.lock().judged(id, written, Trust::Fresh); // the next start reads it once more
        }
        self.sync_soon();
        Ok(true)
    }

    /// A whole blob is wrong: it goes, and with it the contents that use it (those that are pinned, with their last pin).
    /// Not while a download holds it, which has seen it whole.
    fn condemn(&self, id: &BlobId) -> io::Result<()> {
        let path = self.0.places.blob(id);
        let taken = {
            let mut journal = self.0.journal.lock();
            let mut ledger = self.0.ledger.lock();
            match ledger.blob(id) {
                Some(blob) if blob.is_to_be_had() && !blob.is_in_flight() => {}
                _ => return Ok(()),
            }
            remove_file(&path)?;
            let taken = ledger.condemn(id);
            drop(ledger);
            // A line that is missing is made up for: there is no file.
            let _ = journal.append(&[Line::Gone { id: *id }]);
            taken
        };
        taken.into_iter().for_each(|taken| self.erase_now(taken.into()));
        self.told();
        Ok(())
    }

    /// Appends lines to the journal, then lets the ledger know: what a journal line says is never ahead of nor behind what the
    /// ledger says when the journal is written anew.
    pub(crate) fn journaled<T>(&self, lines: &[Line], apply: impl FnOnce(&mut Ledger<Arc<Content>>) -> T) -> io::Result<T> {
        let mut journal = self.0.journal.lock();
        journal.append(lines)?;
        let outcome = apply(&mut self.0.ledger.lock());
        if journal.is_oversized() {
            match self.write_journal() {
                Ok(anew) => *journal = anew,
                Err(fault) => {
                    warn!(path = %self.0.places.journal.display(), error = %fault, "the journal of the disk tier cannot be written anew and grows on");
                    journal.leave_oversized();
                }
            }
            drop(journal);
            self.sync_soon();
        }
        Ok(outcome)
    }

    /// Writes the journal anew, while it is locked.
    fn write_journal(&self) -> io::Result<Journal> {
        let mut all = vec![Line::Opened { boot: self.0.machine.boot.clone() }];
        for (id, blob) in self.0.ledger.lock().blobs() {
            if blob.is_worth_a_line() {
                Known::lines(*id, blob.size, &blob.state, blob.last_use, |line| all.push(line));
            }
        }
        Journal::create(&self.0.places.journal, |line| all.into_iter().for_each(line))
    }

    /// The next turn: see [`Whole::turn`].
    pub(crate) fn next_turn(&self) -> u64 {
        self.0.turn.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Brings what is whole by now to stable storage, behind everybody's back. One run at a time; one that is asked for
    /// meanwhile follows it. In a thread of its own: the end of the process does not wait for it.
    pub(crate) fn sync_soon(&self) {
        if !self.0.machine.syncs {
            return;
        }
        {
            let mut syncing = self.0.syncing.lock();
            syncing.wanted = true;
            if std::mem::replace(&mut syncing.running, true) {
                return;
            }
        }
        let tier = self.clone();
        if let Err(fault) = std::thread::Builder::new().name("disk-sync".to_owned()).spawn(move || tier.sync_while_wanted()) {
            warn!(error = %fault, "no thread to bring the disk tier to stable storage: tried again with the next content");
            self.0.syncing.lock().running = false;
        }
    }

    fn sync_while_wanted(&self) {
        loop {
            {
                let mut syncing = self.0.syncing.lock();
                if !std::mem::take(&mut syncing.wanted) {
                    syncing.running = false;
                    return;
                }
            }
            if let Err(fault) = self.sync_now() {
                warn!(path = %self.0.places.folder.display(), error = %fault, "the disk tier cannot be brought to stable storage, a power cut would cost its newest content");
            }
        }
    }

    /// Brings all of the tier's file system to stable storage, and notes which blobs that covers.
    pub(crate) fn sync_now(&self) -> io::Result<()> {
        // Whatever has its turn by now was written before.
        let turn = self.0.turn.load(Ordering::Relaxed);
        if self.0.machine.syncs {
            rustix::fs::syncfs(File::open(&self.0.places.blobs)?)?;
        }
        self.journaled(&[Line::Synced { turn }], |ledger| ledger.synced(turn))
    }

    /// Moves a staged folder to where content of `model` belongs. What another hand put there goes.
    pub(crate) fn place(&self, staged: &Path, model: &ModelId) -> io::Result<PathBuf> {
        let mut taken = self.0.taken.lock();
        let free = (0..).map(|n| self.0.places.models.join(nth_name(model, n))).find(|path| !taken.contains(path));
        let path = free.expect("names do not run out");
        if std::fs::symlink_metadata(&path).is_ok() {
            let stray = self.aside_name("stray");
            std::fs::rename(&path, &stray)?;
            remove_or_warn(&stray);
        }
        std::fs::rename(staged, &path)?;
        taken.insert(path.clone());
        Ok(path)
    }

    /// Writes down when content was last used. It may have left the ledger meanwhile.
    fn remember(&self, content: &Content, generation: Generation) {
        let last_use = self.0.ledger.lock().entry(generation).map(|entry| entry.last_use);
        if let Some(last_use) = last_use {
            content.touch(last_use);
        }
    }

    /// Begins to remove what was taken off the ledger.
    pub(crate) fn erase_aside(&self, removal: Removal) -> Option<JoinHandle<()>> {
        let tier = self.clone();
        aside(move || tier.erase_now(removal))
    }

    pub(crate) fn erase_now(&self, removal: Removal) {
        self.erase_files(&removal.files);
        if let Some(folder) = removal.folder {
            self.erase_folder(folder);
        }
        self.told();
        // Only a gauge hangs on it.
        let _ = self.free();
    }

    fn erase_files(&self, ids: &[BlobId]) {
        let (mut gone, mut left) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let path = self.0.places.blob(id);
            match remove_file(&path) {
                Ok(()) => gone.push(*id),
                Err(fault) => {
                    warn!(path = %path.display(), error = %fault, "cannot be removed: its bytes stay counted, the next download tries again");
                    left.push(*id);
                }
            }
        }
        self.files_gone(&gone);
        if !left.is_empty() {
            let mut stuck = self.0.stuck.lock();
            let mut ledger = self.0.ledger.lock();
            for id in left {
                ledger.file_stuck(&id);
                stuck.push(Left::Blob(id));
            }
        }
    }

    fn files_gone(&self, ids: &[BlobId]) {
        if ids.is_empty() {
            return;
        }
        let lines: Vec<Line> = ids.iter().map(|id| Line::Gone { id: *id }).collect();
        if let Err(fault) = self.journaled(&lines, |ledger| ids.iter().for_each(|id| ledger.file_gone(id))) {
            // Made up for: there are no files. On a full disk this is what makes room for the journal.
            warn!(error = %fault, "the journal of the disk tier cannot be written");
            let mut ledger = self.0.ledger.lock();
            ids.iter().for_each(|id| ledger.file_gone(id));
        }
    }

    fn erase_folder(&self, mut folder: Folder) {
        match self.try_erase(&mut folder) {
            Ok(()) => self.0.ledger.lock().folder_gone(folder.generation),
            Err(fault) => {
                warn!(path = %folder.path.display(), error = %fault, "cannot be removed: its bytes stay counted, the next download tries again");
                let mut stuck = self.0.stuck.lock();
                self.0.ledger.lock().folder_stuck(folder.generation);
                stuck.push(Left::Folder(folder));
            }
        }
    }

    /// Out of sight first, so that what is half removed is never in the place of content.
    fn try_erase(&self, folder: &mut Folder) -> io::Result<()> {
        if !folder.in_place {
            return remove(&folder.path);
        }
        let hidden = self.aside_name("gone");
        if std::fs::rename(&folder.path, &hidden).is_ok() {
            self.0.taken.lock().remove(&folder.path);
            *folder = Folder { path: hidden, in_place: false, ..*folder };
            return remove(&folder.path);
        }
        // Where it cannot be moved it is removed in its place, which takes a folder that is gone already for removed.
        remove(&folder.path)?;
        self.0.taken.lock().remove(&folder.path);
        Ok(())
    }

    /// Tries once more what could not be removed.
    pub(crate) fn retry_stuck(&self) {
        let mut tried = false;
        self.0.stuck.lock().retain_mut(|left| {
            tried = true;
            let gone = match left {
                Left::Folder(folder) => {
                    let generation = folder.generation;
                    self.0.ledger.lock().folder_going(generation);
                    let gone = self.try_erase(folder).is_ok();
                    let mut ledger = self.0.ledger.lock();
                    if gone {
                        ledger.folder_gone(generation)
                    } else {
                        ledger.folder_stuck(generation)
                    }
                    gone
                }
                Left::Blob(id) => {
                    self.0.ledger.lock().file_going(id);
                    let gone = remove_file(&self.0.places.blob(id)).is_ok();
                    if gone {
                        self.files_gone(&[*id])
                    } else {
                        self.0.ledger.lock().file_stuck(id)
                    }
                    gone
                }
            };
            if gone {
                info!(left = ?left, "removed at last");
            }
            !gone
        });
        if tried {
            self.told();
        }
    }

    /// Waits until the ledger says so, which only what [`Tier::told`] tells can change.
    pub(crate) async fn wait_until(&self, mut so: impl FnMut(&Ledger<Arc<Content>>) -> bool) {
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

    /// Bytes moved: wakes downloads that wait and sets the gauge.
    pub(crate) fn told(&self) {
        self.0.freed.notify_waiters();
        let used = self.0.ledger.lock().used();
        self.0.metrics.set(Gauge::DiskUsedBytes, &[], used.0);
    }

    /// What the file system has left. May block.
    pub(crate) fn free(&self) -> io::Result<ByteSize> {
        let about = rustix::fs::statvfs(&self.0.places.blobs)?;
        let free = ByteSize(about.f_bavail.saturating_mul(about.f_frsize));
        self.0.metrics.set(Gauge::DiskFreeBytes, &[], free.0);
        Ok(free)
    }

    pub(crate) fn aside_name(&self, what: &str) -> PathBuf {
        self.0.places.staging.join(format!("{what}.{}", self.0.sequence.fetch_add(1, Ordering::Relaxed)))
    }

    /// Bytes held, claimed and being removed.
    #[cfg(test)]
    pub(crate) fn used(&self) -> ByteSize {
        self.0.ledger.lock().used()
    }
}

/// Runs `work` off the async threads where there is a runtime, here otherwise.
pub(crate) fn aside(work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => Some(runtime.spawn_blocking(work)),
        Err(_) => {
            work();
            None
        }
    }
}

/// Runs `work` on a thread that may block, to its end even when nobody waits for it any more.
pub(crate) async fn on_disk<T: Send + 'static>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, DiskError> {
    let failed = |fault: &dyn std::fmt::Display| DiskError::Failed(format!("disk tier, {}: {fault}", path.display()));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(fault)) => Err(failed(&fault)),
        Err(fault) => Err(failed(&fault)),
    }
}

/// What is gone already counts as removed.
fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// What is gone already counts as removed.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// For what no bytes are counted for, a folder or a file.
pub(crate) fn remove_or_warn(path: &Path) {
    if let Err(fault) = remove(path)
        && (fault.kind() != io::ErrorKind::NotADirectory || remove_file(path).is_err())
    {
        warn!(path = %path.display(), error = %fault, "cannot be removed, the next start tries again");
    }
}
