//! A download under way: what it holds, the writers of its blobs, and how content is made of them.
//!
//! What must not be cut in half (a file that is made, a blob that becomes whole, content that lands) runs to its end on a
//! thread that may block, with the lease on its blobs, whether or not somebody still waits for it.

use std::fs::{File, Permissions};
use std::io::{self, IoSlice, Write as _};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::{ByteSize, ModelId};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::info;

use crate::blob::{BlobId, Note, Partial, Record, State, Trust, Whole};
use crate::content::{Content, MANIFEST, Manifest, folder_name, written_at};
use crate::journal::Line;
use crate::ledger::{Ledger, Refused, Room, Taken};
use crate::tier::{Folder, Hold, Removal, Tier, aside, on_disk, remove_file};
use crate::{DiskError, Plan};

/// What every file of the tier is once it is whole.
const READ_ONLY: u32 = 0o444;

/// A download under way: its claim, and its hold on the blobs that are here. Dropped: what is done stays for the next
/// download until its bytes are needed, the rest of the claim is given back.
#[derive(Debug)]
pub struct Gathering {
    tier: Tier,
    model: ModelId,
    plan: Arc<Plan>,
    /// The blob of each file of the plan.
    ids: Vec<BlobId>,
    resumed: ByteSize,
    /// Only dropped.
    _held: Held,
}

/// Keeps blobs, each once, on disk and claimed.
#[derive(Debug)]
struct Held {
    tier: Tier,
    ids: Vec<BlobId>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = self.tier.0.clock.wall();
        let (released, fewer) = {
            let mut ledger = self.tier.0.ledger.lock();
            let before = ledger.used();
            (ledger.release(&self.ids, now), ledger.used() < before)
        };
        if fewer {
            self.tier.told();
        }
        if released.files.is_empty() && released.orphans.is_empty() {
            return;
        }
        let tier = self.tier.clone();
        drop(aside(move || {
            let used: Vec<Line> = released.orphans.iter().map(|id| Line::Used { id: *id, at: now }).collect();
            // Without these lines orphans only go a little sooner.
            let _ = if used.is_empty() { Ok(()) } else { tier.journaled(&used, |_| ()) };
            tier.erase_now(Removal { folder: None, files: released.files });
        }));
    }
}

/// The right to write a blob, and the hold on it.
#[derive(Debug)]
struct Lease {
    id: BlobId,
    held: Held,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The hold ends after this: whoever is told holds the blob as well.
        if let Some(told) = self.held.tier.0.writers.lock().remove(&self.id) {
            told.notify_waiters();
        }
    }
}

/// One file of a plan, as [`Gathering::open`] found it.
#[derive(Debug)]
pub enum Opened {
    /// All of it is here.
    Whole(Record),
    /// Some or all of it is to be written.
    Partial(Writer),
}

impl Tier {
    /// Claims room for what of `plan` is not on disk yet, removing what was used longest ago where that takes it, and holds
    /// on to the rest. Returns once the room is free. Content in doubt (after the machine was switched off) is read again
    /// before, which takes its time.
    ///
    /// # Errors
    /// [`DiskError::Full`] when there is no room, [`DiskError::Failed`] when the file system has none or fails.
    pub async fn gather(&self, model: &ModelId, plan: Plan) -> Result<Gathering, DiskError> {
        let plan = Arc::new(plan);
        loop {
            let (tier, owner, planned) = (self.clone(), model.clone(), Arc::clone(&plan));
            let looked = on_disk(&self.0.places.blobs, move || {
                tier.retry_stuck();
                let ids = tier.ids(&tier.0.ledger.lock(), &owner, &planned);
                tier.look_at_blobs(&ids)?;
                let held = tier.0.ledger.lock().on_disk();
                tier.free().map(|free| (ids, free, held + free))
            });
            let (ids, free, by_disk) = looked.await?;
            let (gathering, taken) = match self.claim(model, &plan, &ids, by_disk)? {
                Ok(Some(claimed)) => claimed,
                Ok(None) => continue,
                Err(Refused::Short(short)) if short.file_system && short.need <= self.0.budget => {
                    return Err(DiskError::Failed(format!(
                        "needs {} on disk, the file system of {} has {free} free and {} can be had: free space there or move the data folder",
                        short.need,
                        self.0.places.folder.display(),
                        short.free
                    )));
                }
                Err(Refused::Short(short)) => return Err(DiskError::Full { need: short.need, free: short.free, budget: short.limit }),
                Err(Refused::Leaving(id)) => {
                    self.wait_until(|ledger| !ledger.is_leaving(&id)).await;
                    continue;
                }
                Err(Refused::Stuck(id)) => {
                    let path = self.0.places.blob(&id);
                    return Err(DiskError::Failed(format!(
                        "disk tier, {}: an earlier file cannot be removed and is in the way: remove it",
                        path.display()
                    )));
                }
            };
            // All are begun before one is waited for: they go on when nobody waits for this download any more.
            let removals: Vec<_> = self.make_room(taken).into_iter().filter_map(|removal| self.erase_aside(removal)).collect();
            futures::future::join_all(removals).await;
            let mut room = Room::NotYet;
            self.wait_until(|ledger| {
                room = ledger.room();
                room != Room::NotYet
            })
            .await;
            self.told();
            if room == Room::Yes {
                return Ok(gathering);
            }
            // What was to make room cannot be removed: decide again, with it counted.
        }
    }

    /// One look at the ledger: the claim of a plan, and what must go for it. `None` when its blobs are not those that were
    /// `looked` at.
    #[allow(clippy::type_complexity, reason = "a fault of the plan, a refusal by the ledger, or the claim")]
    fn claim(
        &self,
        model: &ModelId,
        plan: &Arc<Plan>,
        looked: &[BlobId],
        by_disk: ByteSize,
    ) -> Result<Result<Option<(Gathering, Vec<Taken<Arc<Content>>>)>, Refused>, DiskError> {
        let now = self.0.clock.wall();
        let mut ledger = self.0.ledger.lock();
        let ids = self.ids(&ledger, model, plan);
        if ids != looked {
            return Ok(Ok(None));
        }
        let mut wants: Vec<(BlobId, ByteSize)> = ids.iter().zip(&plan.files).map(|(id, wanted)| (*id, wanted.bytes)).collect();
        wants.sort_unstable();
        wants.dedup();
        let known = wants.iter().filter_map(|(id, bytes)| ledger.blob(id).map(|blob| (id, *bytes, ByteSize(blob.size))));
        let twice = wants.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| (&pair[0].0, pair[0].1, pair[1].1));
        if let Some((id, one, other)) = known.chain(twice).find(|(_, one, other)| one != other) {
            return Err(DiskError::Failed(format!("disk tier: blob {id} is said to have {one} and to have {other}")));
        }
        let taken = match ledger.claim(&wants, by_disk, now) {
            Ok(taken) => taken,
            Err(refused) => return Ok(Err(refused)),
        };
        let wants: Vec<BlobId> = wants.into_iter().map(|(id, _)| id).collect();
        let resumed = wants.iter().filter_map(|id| ledger.blob(id)).map(|blob| ByteSize(blob.state.here(blob.size))).sum();
        drop(ledger);
        let held = Held { tier: self.clone(), ids: wants };
        Ok(Ok(Some((Gathering { tier: self.clone(), model: model.clone(), plan: Arc::clone(plan), ids, resumed, _held: held }, taken))))
    }

    /// The blob of each file of the plan. Where contents cannot share blobs, none that belongs to content already.
    fn ids(&self, ledger: &Ledger<Arc<Content>>, model: &ModelId, plan: &Plan) -> Vec<BlobId> {
        if self.0.links {
            return plan.files.iter().map(|wanted| wanted.blob).collect();
        }
        let mut chosen = std::collections::HashSet::new();
        let own = |wanted: BlobId| {
            let mut attempts = (0..).map(|attempt| wanted.private(model.as_str(), attempt));
            let id = attempts.find(|id| !chosen.contains(id) && ledger.blob(id).is_none_or(crate::ledger::Blob::is_to_be_had));
            let id = id.expect("attempts do not run out");
            chosen.insert(id);
            id
        };
        plan.files.iter().map(|wanted| wanted.blob).map(own).collect()
    }

    /// Says what goes, and gathers the orphans to be removed together.
    fn make_room(&self, taken: Vec<Taken<Arc<Content>>>) -> Vec<Removal> {
        let (mut removals, mut orphans) = (Vec::new(), Vec::new());
        for taken in taken {
            match &taken.content {
                Some((_, content)) => {
                    let manifest = content.manifest();
                    info!(model = %manifest.model, size = %manifest.total(), "content is removed from the disk tier to make room");
                    removals.push(Removal::from(taken));
                }
                None => orphans.extend(taken.files),
            }
        }
        if !orphans.is_empty() {
            info!(blobs = orphans.len(), "what unfinished downloads left is removed from the disk tier to make room");
            removals.push(Removal { folder: None, files: orphans });
        }
        removals
    }

    /// Takes the turn to write a blob that the caller holds, if nobody has it.
    fn turn(&self, id: BlobId) -> Turn {
        let mut writers = self.0.writers.lock();
        if let Some(told) = writers.get(&id) {
            return Turn::Taken(Arc::clone(told));
        }
        let mut ledger = self.0.ledger.lock();
        let state = match ledger.blob(&id) {
            Some(blob) if let State::Whole(whole) = &blob.state => return Turn::Whole(whole.record(blob.size)),
            Some(blob) => (blob.state.clone(), blob.size),
            None => (State::Absent, 0),
        };
        ledger.hold(&id);
        writers.insert(id, Arc::new(Notify::new()));
        Turn::Mine(Lease { id, held: Held { tier: self.clone(), ids: vec![id] } }, state.0, state.1)
    }

    /// Waits until the writer that is told of by `told` has ended.
    async fn end_of(&self, id: BlobId, told: Arc<Notify>) {
        let ended = told.notified();
        tokio::pin!(ended);
        ended.as_mut().enable(); // an end between the look and the wait must not be missed
        let writes_on = self.0.writers.lock().get(&id).is_some_and(|now| Arc::ptr_eq(now, &told));
        if writes_on {
            ended.await;
        }
    }
}

enum Turn {
    Mine(Lease, State, u64),
    Taken(Arc<Notify>),
    Whole(Record),
}

impl Gathering {
    /// Bytes of the plan that were on disk already: whole files, and what was done of others.
    #[must_use]
    pub fn resumed(&self) -> ByteSize {
        self.resumed
    }

    /// The blobs of its files that are not whole at the moment, in the plan's order. Another download may have some of them too.
    #[must_use]
    pub fn missing(&self) -> Vec<BlobId> {
        let ledger = self.tier.0.ledger.lock();
        let is_whole = |id: &BlobId| ledger.blob(id).is_some_and(|blob| matches!(blob.state, State::Whole(_)));
        self.ids.iter().copied().filter(|id| !is_whole(id)).collect()
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The blob of file `at` of the plan. Waits while another writer has it, also one of this download (where two files have
    /// the same bytes): a task that waits here must not be what that writer waits for.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when the disk fails, or the plan has no such file.
    pub async fn open(&self, at: usize) -> Result<Opened, DiskError> {
        let Some(id) = self.ids.get(at).copied() else {
            return Err(DiskError::Failed(format!("disk tier: no file {at} among the {} of {}", self.ids.len(), self.model)));
        };
        loop {
            match self.tier.turn(id) {
                Turn::Whole(record) => return Ok(Opened::Whole(record)),
                Turn::Taken(told) => self.tier.end_of(id, told).await,
                Turn::Mine(lease, State::Partial(partial), size) => {
                    let path = self.tier.0.places.blob(&id);
                    let shown = path.clone();
                    let found = on_disk(&shown, move || Ok(lease.find(&path, size)?.then_some(lease))).await?;
                    // Not found: its turn has ended, and the next one finds nothing.
                    if let Some(lease) = found {
                        return Ok(Opened::Partial(Writer::new(lease, size, partial.done)));
                    }
                }
                Turn::Mine(lease, _, size) => return Ok(Opened::Partial(Writer::new(lease, size, Vec::new()))),
            }
        }
    }

    /// Makes content of the plan: lays its files out, renames the folder into place and pins it. All blobs must be whole.
    /// Earlier content of the model goes, with its last pin.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when a blob is not whole or the disk fails; the blobs stay for the next download.
    pub async fn land(self) -> Result<Hold, DiskError> {
        let models = self.tier.0.places.models.clone();
        on_disk(&models, move || self.land_now()).await
    }

    fn land_now(self) -> io::Result<Hold> {
        let (tier, now) = (self.tier.clone(), self.tier.0.clock.wall());
        let (manifest, generation) = {
            let mut ledger = tier.0.ledger.lock();
            let whole = |(id, wanted): (&BlobId, &crate::Wanted)| match ledger.blob(id).map(|blob| (&blob.state, blob.size)) {
                Some((State::Whole(whole), size)) => Ok((*id, whole.record(size))),
                _ => Err(io::Error::other(format!("{} of {} is not whole", wanted.path, self.model))),
            };
            let files: Vec<(BlobId, Record)> = self.ids.iter().zip(&self.plan.files).map(whole).collect::<io::Result<_>>()?;
            let manifest = Manifest::new(&self.model, &self.plan, &files, !tier.0.links, now);
            let blobs: Arc<[BlobId]> = manifest.blobs().into();
            (manifest, ledger.stage(blobs))
        };
        let staged = Content::new(tier.aside_name(&folder_name(&self.model)), manifest);
        let placed = tier.lay_out(&staged).and_then(|()| {
            staged.touch(now);
            // What was there goes first, so that its place is free, unless it is pinned.
            let (replaced, pinned) = {
                let mut ledger = tier.0.ledger.lock();
                let before = ledger.get(&self.model).map(|(generation, entry)| (generation, Arc::clone(&entry.content)));
                let replaced = ledger.replace(&self.model);
                let pinned = if replaced.is_none() { before } else { None };
                (replaced, pinned)
            };
            replaced.into_iter().for_each(|taken| tier.erase_now(taken.into()));
            let path = tier.place(staged.folder(), &self.model)?;
            if let Some((_, pinned)) = pinned {
                // So that the next start does not take it for the model's. Should this fail, the later one counts.
                let _ = std::fs::remove_file(pinned.folder().join(MANIFEST));
            }
            Ok(path)
        });
        let path = match placed {
            Ok(path) => path,
            Err(fault) => {
                tier.take_back(&staged);
                tier.0.ledger.lock().folder_going(generation);
                tier.erase_now(Removal { folder: Some(Folder { generation, path: staged.folder().to_owned(), in_place: false }), files: Vec::new() });
                return Err(io::Error::new(fault.kind(), format!("content of {} cannot be laid out: {fault}", self.model)));
            }
        };
        let content = Arc::new(staged.moved_to(path));
        let hold = {
            let mut ledger = tier.0.ledger.lock();
            if content.manifest().owned {
                content.manifest().files.iter().for_each(|file| ledger.moved(&file.blob));
            }
            let replaced = ledger.add(generation, self.model.clone(), Arc::clone(&content), now);
            let pinned = ledger.pin(&self.model, now);
            drop(ledger);
            replaced.into_iter().for_each(|taken| drop(tier.erase_aside(taken.into())));
            pinned
        };
        let Some((generation, content)) = hold else {
            return Err(io::Error::other(format!("content of {} was gone when it had landed", self.model)));
        };
        let hold = Hold::new(tier.clone(), generation, content);
        drop(self);
        tier.told();
        // Only a gauge hangs on it.
        let _ = tier.free();
        tier.sync_soon();
        Ok(hold)
    }
}

impl Tier {
    /// Makes the folder of a content: its folders, its links to blobs, and last its manifest.
    fn lay_out(&self, staged: &Content) -> io::Result<()> {
        let files = staged.files();
        std::fs::create_dir_all(&files)?;
        let mut made = std::collections::HashSet::from([files.clone()]);
        for file in &staged.manifest().files {
            let path = files.join(&file.path);
            if let Some(parent) = path.parent()
                && !made.contains(parent)
            {
                std::fs::create_dir_all(parent)?;
                made.extend(parent.ancestors().take_while(|folder| folder.starts_with(&files)).map(Path::to_owned));
            }
            let blob = self.0.places.blob(&file.blob);
            let there = if self.0.links { std::fs::hard_link(&blob, &path) } else { std::fs::rename(&blob, &path) };
            there.map_err(|fault| io::Error::new(fault.kind(), format!("{}: {fault}", path.display())))?;
        }
        std::fs::write(staged.folder().join(MANIFEST), serde_json::to_vec(staged.manifest())?)
    }

    /// Moves blobs that were moved into a folder back to where they are found.
    fn take_back(&self, staged: &Content) {
        if !staged.manifest().owned {
            return;
        }
        let files = staged.files();
        for file in &staged.manifest().files {
            let (moved, blob) = (files.join(&file.path), self.0.places.blob(&file.blob));
            if std::fs::symlink_metadata(&blob).is_err() && std::fs::rename(moved, blob).is_err() {
                // It goes with the folder; the next download begins anew.
                let _ = self.journaled(&[Line::Gone { id: file.blob }], |ledger| ledger.spoiled(&file.blob));
            }
        }
    }
}

impl Lease {
    fn tier(&self) -> &Tier {
        &self.held.tier
    }

    /// True when the file of a partial blob is there; when it is not, nothing of the blob is.
    fn find(&self, path: &Path, size: u64) -> io::Result<bool> {
        if std::fs::symlink_metadata(path).is_ok_and(|about| about.is_file() && about.len() == size) {
            return Ok(true);
        }
        self.forget_file(path)?;
        Ok(false)
    }

    fn forget_file(&self, path: &Path) -> io::Result<()> {
        remove_file(path)?;
        // A line that is missing is made up for: there is no file.
        if self.tier().journaled(&[Line::Gone { id: self.id }], |ledger| ledger.spoiled(&self.id)).is_err() {
            self.tier().0.ledger.lock().spoiled(&self.id);
        }
        Ok(())
    }

    /// The blob is whole, in a file that was last written as `about` says.
    fn complete(&self, size: u64, record: Record, about: &std::fs::Metadata) -> io::Result<()> {
        let tier = self.tier();
        let turn = tier.next_turn();
        let whole = Whole { digest: record.digest, checked: record.checked.into(), written: written_at(about), turn, trust: Trust::Fresh };
        let line = Line::Whole { id: self.id, size, whole: whole.clone(), at: tier.0.clock.wall() };
        tier.journaled(&[line], |ledger| ledger.completed(&self.id, whole))
    }
}

/// The one writer of a blob. Dropped unfinished: what was recorded as done stays for the next one.
#[derive(Debug)]
pub struct Writer {
    lease: Arc<Lease>,
    size: u64,
    done: Vec<(Range<u64>, Note)>,
    /// Set once the file is made or opened. Locked while that is done, so not waited for by async threads.
    made: Arc<Mutex<Option<Made>>>,
}

#[derive(Clone, Debug)]
struct Made {
    file: Arc<File>,
    turn: u64,
    /// True when all of its bytes are taken from the file system already.
    in_full: bool,
}

impl Writer {
    fn new(lease: Lease, size: u64, done: Vec<(Range<u64>, Note)>) -> Self {
        Writer { lease: Arc::new(lease), size, done, made: Arc::default() }
    }

    /// Bytes of the blob.
    #[must_use]
    pub fn bytes(&self) -> ByteSize {
        ByteSize(self.size)
    }

    /// What earlier writers recorded, in order of offset, not overlapping.
    #[must_use]
    pub fn done(&self) -> &[(Range<u64>, Note)] {
        &self.done
    }

    fn path(&self) -> PathBuf {
        self.lease.tier().0.places.blob(&self.lease.id)
    }

    /// Writes a blob of which nothing is done at once, and makes it whole: one trip to a thread that may block.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when the disk fails, or `frames` or `record` have another length than the blob.
    pub async fn put(self, frames: Vec<Bytes>, record: Record) -> Result<(), DiskError> {
        let length = frames.iter().fold(0, |sum: u64, frame| sum.saturating_add(frame.len() as u64));
        let path = self.path();
        if !self.done.is_empty() || self.made.try_lock().is_none_or(|made| made.is_some()) {
            return Err(DiskError::Failed(format!("disk tier, {}: part of it is written already", path.display())));
        }
        self.check_length(length, &path)?;
        self.check_length(record.bytes.0, &path)?;
        let shown = path.clone();
        on_disk(&shown, move || {
            let written = put(&path, &frames).and_then(|about| self.lease.complete(self.size, record, &about));
            if written.is_err() {
                self.lease.forget_file(&path)?;
            }
            written
        })
        .await
    }

    fn check_length(&self, length: u64, path: &Path) -> Result<(), DiskError> {
        if length == self.size {
            return Ok(());
        }
        Err(DiskError::Failed(format!("disk tier, {}: has {} bytes, {length} are said to be all of it", path.display(), self.size)))
    }

    /// The blob's file, at its full length, for writing at any offset; made at the first call.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when the disk fails; a full one says so here.
    pub async fn file(&self) -> Result<Arc<File>, DiskError> {
        if let Some(made) = self.made.try_lock().and_then(|made| made.clone()) {
            return Ok(made.file);
        }
        let (lease, made, size) = (Arc::clone(&self.lease), Arc::clone(&self.made), self.size);
        on_disk(&self.path(), move || ready(&lease, &made, size).map(|made| made.file)).await
    }

    /// Records that these bytes are in the file: they were written before this call. `note` is given back by
    /// [`Writer::done`]. A range takes the place of those that it overlaps, with their notes. Blocking, cheap: one append to
    /// the journal.
    ///
    /// # Errors
    /// When the journal cannot be written (the bytes are there all the same, but the next process will not know), before
    /// [`Writer::file`], and when the range is empty or outside of the blob, or the note too long.
    pub fn record(&self, range: Range<u64>, note: Note) -> io::Result<()> {
        let (tier, id) = (self.lease.tier(), self.lease.id);
        let made = self.made.lock().clone();
        let sound = range.start < range.end && range.end <= self.size && note.0.len() <= Note::LONGEST;
        let Some(made) = made.filter(|_| sound) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("bytes {range:?} of blob {id} cannot be recorded as done")));
        };
        let line = Line::Done { id, turn: made.turn, range: range.clone(), note: note.clone(), at: tier.0.clock.wall() };
        tier.journaled(&[line], |ledger| {
            ledger.go_on(&id, |state| match state {
                State::Partial(partial) => partial.add(range, note, self.size).filter(|_| !made.in_full).unwrap_or_default(),
                State::Absent | State::Whole(_) => 0,
            });
        })
    }

    /// Makes the blob whole and read-only. All its bytes were written, which whoever states the digest has seen to; the
    /// file's length is looked at.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when the disk fails, or the file or `record` have another length than the blob.
    pub async fn finish(self, record: Record) -> Result<(), DiskError> {
        let path = self.path();
        self.check_length(record.bytes.0, &path)?;
        on_disk(&path, move || {
            if self.size > 0 && self.done.is_empty() && self.made.lock().is_none() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing of it was written"));
            }
            let made = ready(&self.lease, &self.made, self.size)?;
            let about = made.file.metadata()?;
            if about.len() != self.size {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("has {} bytes, not {}", about.len(), self.size)));
            }
            self.lease.complete(self.size, record, &about)?;
            // After the record: a file that is read-only and not whole could not be gone on with. Failing to is no fault of
            // the bytes.
            let _ = made.file.set_permissions(Permissions::from_mode(READ_ONLY));
            Ok(())
        })
        .await
    }

    /// What was written is wrong: removes it. The blob is begun anew with the next [`Gathering::open`].
    pub async fn spoil(self) {
        let path = self.path();
        let shown = path.clone();
        let spoiled = on_disk(&shown, move || {
            // A file that cannot be removed is written over: nothing of it is done.
            self.lease.forget_file(&path).or_else(|_| begin_again(&self.lease, self.size))
        });
        if let Err(fault) = spoiled.await {
            // Whoever writes it next meets the same fault, and says so.
            tracing::debug!(error = %fault, "a spoiled file stays");
        }
    }
}

/// The file of a blob: made, opened, or as it was made before.
fn ready(lease: &Lease, slot: &Mutex<Option<Made>>, size: u64) -> io::Result<Made> {
    let mut slot = slot.lock();
    if let Some(made) = slot.as_ref() {
        return Ok(made.clone());
    }
    let tier = lease.tier();
    let path = tier.0.places.blob(&lease.id);
    let known = match tier.0.ledger.lock().blob(&lease.id).map(|blob| &blob.state) {
        Some(State::Partial(partial)) => Some(partial.turn),
        _ => None,
    };
    let made = match known {
        Some(turn) => {
            let file = File::options().read(true).write(true).open(&path)?;
            let in_full = file.metadata()?.blocks().saturating_mul(512) >= size;
            Made { file: Arc::new(file), turn, in_full }
        }
        None => {
            let file = create(&path, 0o644)?;
            let begun = take_room(&file, size).and_then(|in_full| begin(lease, size, in_full).map(|turn| (turn, in_full)));
            match begun {
                Ok((turn, in_full)) => Made { file: Arc::new(file), turn, in_full },
                Err(fault) => {
                    // Not begun: nothing refers to it, and the next try removes it if this one cannot.
                    let _ = remove_file(&path);
                    return Err(fault);
                }
            }
        }
    };
    Ok(slot.insert(made).clone())
}

fn begin(lease: &Lease, size: u64, in_full: bool) -> io::Result<u64> {
    let tier = lease.tier();
    let turn = tier.next_turn();
    let state = State::Partial(Partial { turn, done: Vec::new() });
    let line = Line::Begun { id: lease.id, turn, size, at: tier.0.clock.wall() };
    tier.journaled(&[line], |ledger| ledger.began(&lease.id, state, in_full))?;
    Ok(turn)
}

fn begin_again(lease: &Lease, size: u64) -> io::Result<()> {
    let about = std::fs::symlink_metadata(lease.tier().0.places.blob(&lease.id))?;
    begin(lease, size, about.blocks().saturating_mul(512) >= size).map(|_| ())
}

/// A file that was not there. What an earlier failure left in its place goes.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    let open = || File::options().read(true).write(true).create_new(true).mode(mode).open(path);
    match open() {
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => {
            remove_file(path)?;
            open()
        }
        outcome => outcome,
    }
}

/// Gives a file its length; true when its bytes are taken from the file system with it.
fn take_room(file: &File, size: u64) -> io::Result<bool> {
    if size == 0 {
        return Ok(true);
    }
    // Not every file system can; then the file grows as it is written, and the length is right all the same.
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size).map(|()| false),
        Err(fault) => Err(fault.into()),
    }
}

/// Writes a whole file, read-only from the start.
fn put(path: &Path, frames: &[Bytes]) -> io::Result<std::fs::Metadata> {
    let mut file = create(path, READ_ONLY)?;
    let mut slices: Vec<IoSlice<'_>> = frames.iter().filter(|frame| !frame.is_empty()).map(|frame| IoSlice::new(frame)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
            Err(fault) => return Err(fault),
        }
    }
    let about = file.metadata()?;
    if about.mode() & 0o777 != READ_ONLY {
        file.set_permissions(Permissions::from_mode(READ_ONLY))?; // a mask took some of it away
    }
    Ok(about)
}
