//! Who holds how many bytes of the disk tier. Pure: the caller moves the files.
//!
//! Bytes are those of blobs, each counted once. A blob is here for its users (contents), for the downloads that hold it
//! (flights), or as an orphan that a later download may use; when none of that holds it leaves, and its bytes count until
//! all its files are gone: its own, and the links to it in folders. A download holds its blobs, bytes still to come
//! included, before the first of them is written, together with the victims that must go for it; two downloads never
//! count on the same byte. Bytes of files that cannot be removed stay counted, and nobody waits for them. So what is on
//! disk never exceeds the budget.
//!
//! Victims are contents that nobody pins and orphans, least recently used first; what would free nothing stays.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use berth_types::{ByteSize, ModelId, UnixMillis};

use crate::blob::{BlobId, State, Trust, Whole};
use crate::journal::Known;

/// Names a folder that links blobs, from before it is content until it is gone. A later one is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Generation(u64);

/// One model's content on disk.
#[derive(Debug)]
pub(crate) struct Entry<C> {
    pub(crate) model: ModelId,
    pub(crate) content: C,
    /// Each once.
    pub(crate) blobs: Arc<[BlobId]>,
    pub(crate) last_use: UnixMillis,
    pub(crate) pins: u32,
    /// Goes with its last pin.
    pub(crate) doomed: bool,
}

/// One blob.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) state: State,
    pub(crate) size: u64,
    pub(crate) last_use: UnixMillis,
    /// How many of its bytes surely lie on the file system; at most `size`.
    written: u64,
    /// Contents that it belongs to.
    users: u32,
    /// Downloads and writers that hold it.
    flights: u32,
    /// Folders with a link to it, those being made or removed included.
    links: u32,
    /// True when it has a file of its own, outside of folders.
    file: bool,
    /// Of its file and links, those that are being removed.
    going: u32,
    /// Not to be had any more.
    leaving: bool,
}

/// What all blobs come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    size: u64,
    written: u64,
    /// Of `size`: bytes that removals under way give back.
    leaving: u64,
}

impl Blob {
    fn new(size: u64, last_use: UnixMillis) -> Self {
        let (state, file, leaving) = (State::Absent, false, false);
        Blob { state, size, last_use, written: 0, users: 0, flights: 0, links: 0, file, going: 0, leaving }
    }

    fn sums(&self) -> Sums {
        let leaving = if self.leaving && self.going > 0 { self.size } else { 0 };
        Sums { size: self.size, written: self.written, leaving }
    }

    fn is_nowhere(&self) -> bool {
        self.users == 0 && self.flights == 0 && self.links == 0 && !self.file
    }

    fn is_orphan(&self) -> bool {
        self.users == 0 && self.flights == 0 && !self.leaving
    }

    /// False while it is in folders only, so that nobody else can have it.
    pub(crate) fn is_to_be_had(&self) -> bool {
        !self.leaving && (self.file || self.links == 0)
    }

    /// True when the next start may have use for what is known of it.
    pub(crate) fn is_worth_a_line(&self) -> bool {
        !self.leaving && (self.file || self.users > 0)
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.flights > 0
    }
}

/// What left the ledger but for its bytes: its files are to be removed now.
#[derive(Debug)]
pub(crate) struct Taken<C> {
    /// A content, with its folder: [`Ledger::folder_gone`] ends it.
    pub(crate) content: Option<(Generation, C)>,
    /// Blobs' own files: [`Ledger::file_gone`] ends them.
    pub(crate) files: Vec<BlobId>,
}

/// Whether what is claimed may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Once what is being removed is gone.
    NotYet,
    /// What was to make room cannot be removed.
    No,
}

/// Why a claim is refused: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no room.
    Short(Short),
    /// An earlier file of this blob is being removed.
    Leaving(BlobId),
    /// An earlier file of this blob cannot be removed.
    Stuck(BlobId),
}

/// The numbers of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// Bytes of all that was wanted.
    pub(crate) need: ByteSize,
    /// What could be had for it by removing all that may be removed, with what of it is here.
    pub(crate) free: ByteSize,
    /// What the tier may hold in all at present.
    pub(crate) limit: ByteSize,
    /// True when it is the file system, not the budget, that is short.
    pub(crate) file_system: bool,
}

/// What the last holder of blobs left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Files that are of no use: to be removed now.
    pub(crate) files: Vec<BlobId>,
    /// Kept for a later download.
    pub(crate) orphans: Vec<BlobId>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Content(Generation),
    Orphan(BlobId),
}

#[derive(Debug)]
pub(crate) struct Ledger<C> {
    budget: u64,
    blobs: HashMap<BlobId, Blob>,
    sums: Sums,
    contents: HashMap<Generation, Entry<C>>,
    /// The content that counts, of each model; earlier ones are only here for their pins.
    current: HashMap<ModelId, Generation>,
    /// Folders that are no content, being made or removed, with the blobs that they link.
    folders: HashMap<Generation, Arc<[BlobId]>>,
    generation: u64,
}

impl<C: Clone> Ledger<C> {
    pub(crate) fn new(budget: ByteSize) -> Self {
        Ledger {
            budget: budget.0,
            blobs: HashMap::new(),
            sums: Sums::default(),
            contents: HashMap::new(),
            current: HashMap::new(),
            folders: HashMap::new(),
            generation: 0,
        }
    }

    /// Bytes on disk or about to be: blobs, what downloads claimed, what is being removed and what cannot be.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize(self.sums.size)
    }

    /// Bytes that surely lie on the file system.
    pub(crate) fn on_disk(&self) -> ByteSize {
        ByteSize(self.sums.written)
    }

    /// Bytes that no removal under way gives back.
    fn lasting(&self) -> u64 {
        self.sums.size - self.sums.leaving
    }

    pub(crate) fn blob(&self, id: &BlobId) -> Option<&Blob> {
        self.blobs.get(id)
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = (&BlobId, &Blob)> {
        self.blobs.iter()
    }

    /// The content of `model` that counts.
    pub(crate) fn get(&self, model: &ModelId) -> Option<(Generation, &Entry<C>)> {
        let generation = *self.current.get(model)?;
        self.contents.get(&generation).map(|entry| (generation, entry))
    }

    /// The content of that generation, whether it still counts or is only pinned.
    pub(crate) fn entry(&self, generation: Generation) -> Option<&Entry<C>> {
        self.contents.get(&generation)
    }

    /// Changes a blob, keeps the sums, and drops it once nothing of it is anywhere.
    fn change<T>(&mut self, id: &BlobId, change: impl FnOnce(&mut Blob) -> T) -> Option<T> {
        let blob = self.blobs.get_mut(id)?;
        let before = blob.sums();
        let outcome = change(blob);
        let nowhere = blob.is_nowhere();
        let after = if nowhere { Sums::default() } else { blob.sums() };
        self.sums = Sums {
            size: self.sums.size - before.size + after.size,
            written: self.sums.written - before.written + after.written,
            leaving: self.sums.leaving - before.leaving + after.leaving,
        };
        if nowhere {
            self.blobs.remove(id);
        }
        Some(outcome)
    }

    fn insert(&mut self, id: BlobId, blob: Blob) {
        let sums = blob.sums();
        self.sums.size = self.sums.size.saturating_add(sums.size);
        self.sums.written += sums.written;
        let before = self.blobs.insert(id, blob);
        debug_assert!(before.is_none(), "two blobs of one id");
    }

    /// Takes in a blob from before the process started, of which `written` bytes lie on the file system. `file`: it has a
    /// file of its own; if not, a folder is to follow.
    pub(crate) fn found(&mut self, id: BlobId, known: Known, written: u64, file: bool) {
        let written = written.min(known.size);
        self.insert(id, Blob { state: known.state, file, written, ..Blob::new(known.size, known.last_use) });
    }

    /// Frees the name of a blob whose files are in folders only: its bytes are counted under another one from now on.
    fn set_apart(&mut self, id: &BlobId) {
        self.generation += 1;
        let apart = id.private("apart", self.generation);
        let Some(blob) = self.blobs.remove(id) else { return };
        if blob.is_nowhere() {
            let sums = blob.sums();
            self.sums.size -= sums.size;
            self.sums.written -= sums.written;
            self.sums.leaving -= sums.leaving;
            return;
        }
        self.blobs.insert(apart, blob);
        let renamed = |blobs: &mut Arc<[BlobId]>| {
            if blobs.contains(id) {
                *blobs = blobs.iter().map(|other| if other == id { apart } else { *other }).collect();
            }
        };
        self.contents.values_mut().for_each(|entry| renamed(&mut entry.blobs));
        self.folders.values_mut().for_each(renamed);
    }

    /// Holds `wants` (each blob once), of which those that are not here are claimed. Returns the least recently used that
    /// must go first. `by_disk`: what the file system lets the tier hold in all, which is what lay on it
    /// ([`Ledger::on_disk`]) and, looked at after that, what is free.
    pub(crate) fn claim(&mut self, wants: &[(BlobId, ByteSize)], by_disk: ByteSize, now: UnixMillis) -> Result<Vec<Taken<C>>, Refused> {
        let (mut missing, mut here) = (0u64, 0u64);
        for (id, _) in wants {
            if self.blobs.get(id).is_some_and(|blob| blob.leaving && !blob.file) {
                self.set_apart(id); // what still goes is in other places than what comes
            }
        }
        for (id, size) in wants {
            match self.blobs.get(id) {
                Some(blob) if blob.leaving && blob.going > 0 => return Err(Refused::Leaving(*id)),
                Some(blob) if blob.leaving => return Err(Refused::Stuck(*id)),
                Some(blob) => here = here.saturating_add(blob.size),
                None => missing = missing.saturating_add(size.0),
            }
        }
        for (id, _) in wants {
            self.change(id, |blob| blob.flights += 1);
        }
        let limit = self.budget.min(by_disk.0);
        let victims = self.victims(missing, limit).map_err(|evictable| {
            let others = self.lasting().saturating_sub(evictable).saturating_sub(here);
            for (id, _) in wants {
                self.change(id, |blob| blob.flights -= 1);
            }
            Refused::Short(Short {
                need: ByteSize(missing.saturating_add(here)),
                free: ByteSize(limit.saturating_sub(others)),
                limit: ByteSize(limit),
                file_system: by_disk.0 < self.budget,
            })
        })?;
        for (id, size) in wants {
            if !self.blobs.contains_key(id) {
                self.insert(*id, Blob { flights: 1, ..Blob::new(size.0, now) });
            }
        }
        Ok(victims.into_iter().filter_map(|victim| self.evict(victim)).collect())
    }

    /// What must go for `missing` more bytes within `limit`; if all of it is not enough, how many bytes it has.
    fn victims(&self, missing: u64, limit: u64) -> Result<Vec<Victim>, u64> {
        let fits = |freed: u64| missing.saturating_add(self.lasting().saturating_sub(freed)) <= limit;
        if missing == 0 || fits(0) {
            return Ok(Vec::new());
        }
        let pinned: HashSet<&BlobId> = self.contents.values().filter(|entry| entry.pins > 0).flat_map(|entry| entry.blobs.iter()).collect();
        let may_go = |id: &BlobId| self.blobs.get(id).is_some_and(|blob| blob.flights == 0 && !blob.leaving) && !pinned.contains(id);
        let evictable = self.blobs.iter().filter(|(id, _)| may_go(id)).fold(0, |sum: u64, (_, blob)| sum.saturating_add(blob.size));
        if !fits(evictable) {
            return Err(evictable);
        }
        let contents = self.contents.iter().filter(|(_, entry)| entry.pins == 0 && entry.blobs.iter().any(may_go));
        let orphans = self.blobs.iter().filter(|(_, blob)| blob.is_orphan());
        let mut order: Vec<(UnixMillis, Victim)> = contents
            .map(|(generation, entry)| (entry.last_use, Victim::Content(*generation)))
            .chain(orphans.map(|(id, blob)| (blob.last_use, Victim::Orphan(*id))))
            .collect();
        order.sort_unstable();
        // How many users are left of the blobs of those chosen.
        let mut left: HashMap<BlobId, u32> = HashMap::new();
        let (mut freed, mut chosen) = (0u64, Vec::new());
        for (_, victim) in order {
            if fits(freed) {
                break;
            }
            match victim {
                Victim::Orphan(id) => freed = freed.saturating_add(self.blobs.get(&id).map_or(0, |blob| blob.size)),
                Victim::Content(generation) => {
                    for id in self.contents.get(&generation).into_iter().flat_map(|entry| entry.blobs.iter()) {
                        let Some(blob) = self.blobs.get(id) else { continue };
                        let users = left.entry(*id).or_insert(blob.users);
                        *users = users.saturating_sub(1);
                        if *users == 0 && blob.flights == 0 {
                            freed = freed.saturating_add(blob.size);
                        }
                    }
                }
            }
            chosen.push(victim);
        }
        // A content of which every blob stays, because others that were not chosen use it, was chosen for nothing.
        let frees = |id: &BlobId| left.get(id) == Some(&0) && self.blobs.get(id).is_some_and(|blob| blob.flights == 0);
        chosen.retain(|victim| match victim {
            Victim::Orphan(_) => true,
            Victim::Content(generation) => self.contents.get(generation).is_some_and(|entry| entry.blobs.iter().any(frees)),
        });
        Ok(chosen)
    }

    fn evict(&mut self, victim: Victim) -> Option<Taken<C>> {
        match victim {
            Victim::Content(generation) => self.take(generation),
            Victim::Orphan(id) => Some(Taken { content: None, files: self.leave(&id).into_iter().collect() }),
        }
    }

    /// What must go, least recently used first, for a budget that has become smaller.
    pub(crate) fn shrink(&mut self) -> Vec<Taken<C>> {
        let over = self.lasting().saturating_sub(self.budget);
        // As a claim of the bytes that are too many, or of all that can go, in a tier that is just full.
        let victims = self.victims(over, self.lasting()).or_else(|evictable| self.victims(evictable, self.lasting())).unwrap_or_default();
        victims.into_iter().filter_map(|victim| self.evict(victim)).collect()
    }

    /// Takes off orphans last used before `then`.
    pub(crate) fn sweep(&mut self, then: UnixMillis) -> Vec<BlobId> {
        let old: Vec<BlobId> = self.blobs.iter().filter(|(_, blob)| blob.is_orphan() && blob.last_use < then).map(|(id, _)| *id).collect();
        old.iter().filter_map(|id| self.leave(id)).collect()
    }

    /// A blob is not to be had any more. Returns it when it has a file of its own to remove.
    fn leave(&mut self, id: &BlobId) -> Option<BlobId> {
        let file = self.change(id, |blob| {
            blob.leaving = true;
            blob.going += u32::from(blob.file);
            blob.file
        });
        file.filter(|file| *file).map(|_| *id)
    }

    /// True while files of a blob that left are being removed.
    pub(crate) fn is_leaving(&self, id: &BlobId) -> bool {
        self.blobs.get(id).is_some_and(|blob| blob.leaving && blob.file && blob.going > 0)
    }

    /// Whether what was removed has made room for every claim: from then on what is claimed may be written.
    pub(crate) fn room(&self) -> Room {
        match (self.sums.size <= self.budget, self.sums.leaving) {
            (true, _) => Room::Yes,
            (false, 0) => Room::No,
            (false, _) => Room::NotYet,
        }
    }

    /// One more holds a blob.
    pub(crate) fn hold(&mut self, id: &BlobId) {
        self.change(id, |blob| blob.flights += 1);
    }

    /// A holder lets go of blobs.
    pub(crate) fn release(&mut self, ids: &[BlobId], now: UnixMillis) -> Released {
        let mut released = Released::default();
        for id in ids {
            let left = self.change(id, |blob| {
                blob.flights -= 1;
                (blob.is_orphan() && blob.file).then(|| {
                    blob.last_use = now;
                    blob.state.is_of_use()
                })
            });
            match left.flatten() {
                Some(true) => released.orphans.push(*id),
                Some(false) => released.files.extend(self.leave(id)),
                None => {}
            }
        }
        released
    }

    /// A blob's file was made. `in_full`: its bytes are taken from the file system already.
    pub(crate) fn began(&mut self, id: &BlobId, state: State, in_full: bool) {
        self.change(id, |blob| {
            blob.state = state;
            blob.file = true;
            blob.written = if in_full { blob.size } else { 0 };
        });
    }

    /// Changes what is known of a partial blob; `change` says how many bytes more its file has come to occupy.
    pub(crate) fn go_on(&mut self, id: &BlobId, change: impl FnOnce(&mut State) -> u64) {
        self.change(id, |blob| {
            let more = change(&mut blob.state);
            blob.written = blob.written.saturating_add(more).min(blob.size);
        });
    }

    /// A blob is whole, in a file of its own.
    pub(crate) fn completed(&mut self, id: &BlobId, whole: Whole) {
        self.change(id, |blob| {
            blob.state = State::Whole(whole);
            blob.file = true;
            blob.written = blob.size;
        });
    }

    /// A whole blob was looked at again, wherever it is.
    pub(crate) fn judged(&mut self, id: &BlobId, written: i64, trust: Trust) {
        self.change(id, |blob| {
            if let State::Whole(whole) = &mut blob.state {
                (whole.written, whole.trust) = (written, trust);
            }
        });
    }

    /// The file of a blob that its download holds is gone; the download begins anew, with the bytes that it claimed.
    pub(crate) fn spoiled(&mut self, id: &BlobId) {
        self.change(id, |blob| {
            blob.state = State::Absent;
            blob.file = false;
            blob.written = 0;
        });
    }

    /// Whole blobs up to `turn` are on stable storage.
    pub(crate) fn synced(&mut self, turn: u64) {
        for blob in self.blobs.values_mut() {
            if let State::Whole(whole) = &mut blob.state
                && whole.turn <= turn
                && whole.trust == Trust::Fresh
            {
                whole.trust = Trust::Synced;
            }
        }
    }

    /// A folder that is to link `blobs`, each once. [`Ledger::add`] makes content of it, [`Ledger::folder_gone`] ends it.
    pub(crate) fn stage(&mut self, blobs: Arc<[BlobId]>) -> Generation {
        self.generation += 1;
        let generation = Generation(self.generation);
        for id in blobs.iter() {
            self.change(id, |blob| blob.links += 1);
        }
        self.folders.insert(generation, blobs);
        generation
    }

    /// A staged folder has become the content of `model`. Returns what it replaces, unless that is pinned and goes later.
    pub(crate) fn add(&mut self, generation: Generation, model: ModelId, content: C, last_use: UnixMillis) -> Option<Taken<C>> {
        let blobs = self.folders.remove(&generation)?;
        for id in blobs.iter() {
            self.change(id, |blob| blob.users += 1);
        }
        let replaced = self.replace(&model);
        self.current.insert(model.clone(), generation);
        self.contents.insert(generation, Entry { model, content, blobs, last_use, pins: 0, doomed: false });
        replaced
    }

    /// The file of a blob has been moved into the folder that links it.
    pub(crate) fn moved(&mut self, id: &BlobId) {
        self.change(id, |blob| blob.file = false);
    }

    /// The content of `model` counts no more. It is returned, or goes with its last pin.
    pub(crate) fn replace(&mut self, model: &ModelId) -> Option<Taken<C>> {
        let generation = self.current.remove(model)?;
        let entry = self.contents.get_mut(&generation)?;
        entry.doomed = true;
        if entry.pins == 0 { self.take(generation) } else { None }
    }

    /// The content of that generation is not to be handed out again. It is returned, or goes with its last pin.
    pub(crate) fn discard(&mut self, generation: Generation) -> Option<Taken<C>> {
        let model = self.contents.get(&generation)?.model.clone();
        if self.current.get(&model) == Some(&generation) { self.replace(&model) } else { None }
    }

    /// Takes content off; what only it used leaves.
    fn take(&mut self, generation: Generation) -> Option<Taken<C>> {
        let entry = self.contents.remove(&generation)?;
        if self.current.get(&entry.model) == Some(&generation) {
            self.current.remove(&entry.model);
        }
        let mut files = Vec::new();
        for id in entry.blobs.iter() {
            let leaves = self.change(id, |blob| {
                blob.users -= 1;
                blob.going += 1;
                // What is in folders only is of no use to a download.
                blob.users == 0 && (blob.flights == 0 || !blob.file)
            });
            if leaves == Some(true) {
                files.extend(self.leave(id));
            }
        }
        self.folders.insert(generation, entry.blobs);
        Some(Taken { content: Some((generation, entry.content)), files })
    }

    /// A staged folder is given up and is removed from now on.
    pub(crate) fn folder_going(&mut self, generation: Generation) {
        self.each_in(generation, |blob| blob.going += 1);
    }

    /// A folder that was being removed cannot be.
    pub(crate) fn folder_stuck(&mut self, generation: Generation) {
        self.each_in(generation, |blob| blob.going -= 1);
    }

    /// A folder that was being removed is gone.
    pub(crate) fn folder_gone(&mut self, generation: Generation) {
        self.each_in(generation, |blob| {
            blob.going -= 1;
            blob.links -= 1;
        });
        self.folders.remove(&generation);
    }

    fn each_in(&mut self, generation: Generation, change: impl Fn(&mut Blob)) {
        let blobs = self.folders.get(&generation).cloned();
        for id in blobs.iter().flat_map(|blobs| blobs.iter()) {
            self.change(id, &change);
        }
    }

    /// The own file of a blob that leaves is being removed once more.
    pub(crate) fn file_going(&mut self, id: &BlobId) {
        self.change(id, |blob| blob.going += 1);
    }

    /// The own file of a blob that leaves cannot be removed.
    pub(crate) fn file_stuck(&mut self, id: &BlobId) {
        self.change(id, |blob| blob.going -= 1);
    }

    /// The own file of a blob that leaves is gone.
    pub(crate) fn file_gone(&mut self, id: &BlobId) {
        self.change(id, |blob| {
            blob.going -= 1;
            blob.file = false;
        });
    }

    /// A whole blob that no download holds turned out to be wrong, and its own file was removed: contents that use it count
    /// no more. Those that are pinned keep its bytes, under another name.
    pub(crate) fn condemn(&mut self, id: &BlobId) -> Vec<Taken<C>> {
        let wrong: Vec<Generation> = self.contents.iter().filter(|(_, entry)| entry.blobs.contains(id)).map(|(generation, _)| *generation).collect();
        let taken = wrong
            .iter()
            .filter_map(|generation| self.discard(*generation))
            .map(|taken| Taken { files: taken.files.into_iter().filter(|file| file != id).collect(), ..taken })
            .collect();
        // Not with `change`: the name is freed even when nothing of the blob is left.
        if let Some(blob) = self.blobs.get_mut(id) {
            let before = blob.sums();
            blob.going -= u32::from(blob.leaving && blob.file); // its last user has just left
            (blob.file, blob.leaving) = (false, blob.users == 0);
            let after = blob.sums();
            self.sums.leaving = self.sums.leaving - before.leaving + after.leaving;
            self.set_apart(id);
        }
        taken
    }

    /// Pins the content of `model`.
    pub(crate) fn pin(&mut self, model: &ModelId, now: UnixMillis) -> Option<(Generation, C)> {
        let generation = *self.current.get(model)?;
        let entry = self.contents.get_mut(&generation)?;
        entry.pins += 1;
        entry.last_use = now;
        entry.doomed = false; // somebody wants it again
        Some((generation, entry.content.clone()))
    }

    /// Ends a pin. Returns content that was only waiting for this.
    pub(crate) fn unpin(&mut self, generation: Generation, now: UnixMillis) -> Option<Taken<C>> {
        let entry = self.contents.get_mut(&generation)?;
        entry.pins -= 1;
        entry.last_use = now;
        if entry.doomed && entry.pins == 0 { self.take(generation) } else { None }
    }

    /// Removes the content of `model`, now (then it is returned) or with its last pin.
    pub(crate) fn doom(&mut self, model: &ModelId) -> Option<Taken<C>> {
        let generation = *self.current.get(model)?;
        let entry = self.contents.get_mut(&generation)?;
        if entry.pins == 0 {
            return self.take(generation);
        }
        entry.doomed = true;
        None
    }

    /// The content of `model` is the first to go, unless it is pinned.
    pub(crate) fn demote(&mut self, model: &ModelId) {
        let entry = self.current.get(model).and_then(|generation| self.contents.get_mut(generation));
        if let Some(entry) = entry.filter(|entry| entry.pins == 0) {
            entry.last_use = UnixMillis(0);
        }
    }

    /// True when nothing is being removed.
    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.blobs.values().all(|blob| blob.going == 0)
    }

    /// Adds up anew what is kept as sums, for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut sums = Sums::default();
        for (id, blob) in &self.blobs {
            let of = blob.sums();
            sums = Sums { size: sums.size + of.size, written: sums.written + of.written, leaving: sums.leaving + of.leaving };
            assert!(blob.written <= blob.size && !blob.is_nowhere(), "{id} {blob:?}");
            let users = self.contents.values().filter(|entry| entry.blobs.contains(id)).count();
            let links = users + self.folders.values().filter(|blobs| blobs.contains(id)).count();
            assert_eq!((blob.users as usize, blob.links as usize), (users, links), "{id} {blob:?}");
            assert!(!blob.leaving || blob.users == 0, "{id} {blob:?}");
        }
        assert_eq!(self.sums, sums);
        for (model, generation) in &self.current {
            assert_eq!(self.contents.get(generation).map(|entry| &entry.model), Some(model));
        }
        assert!(
            self.contents.iter().all(|(generation, entry)| self.current.get(&entry.model) == Some(generation) || (entry.doomed && entry.pins > 0))
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blob::{Note, Partial};

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("sound")
    }

    fn blob(n: u8) -> BlobId {
        BlobId([n; 16])
    }

    fn whole() -> Whole {
        Whole { digest: Some([0; 32]), checked: "".into(), written: 0, turn: 1, trust: Trust::Fresh }
    }

    fn partial() -> State {
        State::Partial(Partial { turn: 1, done: vec![(0..1, Note::default())] })
    }

    const PLENTY: ByteSize = ByteSize(u64::MAX);
    const NOW: UnixMillis = UnixMillis(50);

    fn wants(blobs: &[(u8, u64)]) -> Vec<(BlobId, ByteSize)> {
        blobs.iter().map(|(n, size)| (blob(*n), ByteSize(*size))).collect()
    }

    /// What goes for a claim: contents by name, orphans by number.
    fn goes(claimed: Result<Vec<Taken<&'static str>>, Refused>) -> Result<Vec<String>, Refused> {
        let name = |taken: Taken<&'static str>| match taken.content {
            Some((_, name)) => name.to_owned(),
            None => taken.files[0].0[0].to_string(),
        };
        claimed.map(|taken| taken.into_iter().map(name).collect())
    }

    /// A content that was fetched, and is let go of.
    fn land(ledger: &mut Ledger<&'static str>, name: &'static str, blobs: &[(u8, u64)], last_use: u64) {
        let wants = wants(blobs);
        assert_eq!(goes(ledger.claim(&wants, PLENTY, NOW)), Ok(vec![]), "room for {name}");
        let ids: Vec<BlobId> = wants.iter().map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| ledger.completed(id, whole()));
        let generation = ledger.stage(ids.clone().into());
        assert!(ledger.add(generation, id(name), name, UnixMillis(last_use)).is_none());
        assert_eq!(ledger.release(&ids, NOW), Released::default());
        ledger.check();
    }

    /// What an unfinished download left.
    fn orphan(ledger: &mut Ledger<&'static str>, n: u8, size: u64, last_use: u64) {
        ledger.claim(&wants(&[(n, size)]), PLENTY, NOW).expect("room");
        ledger.began(&blob(n), partial(), true);
        assert_eq!(ledger.release(&[blob(n)], UnixMillis(last_use)).orphans, [blob(n)]);
    }

    fn short(need: u64, free: u64, limit: u64, file_system: bool) -> Refused {
        Refused::Short(Short { need: ByteSize(need), free: ByteSize(free), limit: ByteSize(limit), file_system })
    }

    fn cleared(ledger: &mut Ledger<&'static str>, taken: Taken<&'static str>) {
        taken.files.iter().for_each(|id| ledger.file_gone(id));
        if let Some((generation, _)) = taken.content {
            ledger.folder_gone(generation);
        }
        ledger.check();
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        for (need, expected) in [
            (1, vec![]),
            (2, vec!["old"]),
            (5, vec!["old"]),
            (6, vec!["old", "7"]),
            (7, vec!["old", "7", "mid"]),
            (11, vec!["old", "7", "mid", "new"]),
        ] {
            let mut ledger = Ledger::new(ByteSize(11));
            land(&mut ledger, "old", &[(1, 3), (2, 1)], 1);
            land(&mut ledger, "new", &[(3, 3)], 9);
            land(&mut ledger, "mid", &[(4, 2)], 5);
            orphan(&mut ledger, 7, 1, 3);
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(goes(ledger.claim(&wants(&[(9, need)]), PLENTY, NOW)), Ok(expected), "{need}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers_and_changes_nothing() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "pinned", &[(1, 4)], 1);
        land(&mut ledger, "idle", &[(2, 3)], 2);
        ledger.pin(&id("pinned"), NOW);
        assert_eq!(goes(ledger.claim(&wants(&[(9, 7)]), PLENTY, NOW)), Err(short(7, 6, 10, false)));
        // What is here of it counts on both sides: three of the nine are "idle"'s.
        assert_eq!(goes(ledger.claim(&wants(&[(2, 3), (9, 6)]), PLENTY, NOW)), Err(short(9, 6, 10, false)));
        assert!(ledger.get(&id("idle")).is_some());
        assert_eq!(ledger.used(), ByteSize(7));
        ledger.check();
        // The file system has one byte left: with the idle content gone, four.
        let by_disk = ByteSize(ledger.on_disk().0 + 1);
        assert_eq!(goes(ledger.claim(&wants(&[(9, 5)]), by_disk, NOW)), Err(short(5, 4, 8, true)));
        assert_eq!(goes(ledger.claim(&wants(&[(9, 4)]), by_disk, NOW)), Ok(vec!["idle".to_owned()]));
    }

    #[test]
    fn shared_bytes_count_once_and_go_with_their_last_user() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 4), (2, 2)], 1);
        land(&mut ledger, "b", &[(1, 4), (3, 2)], 2);
        assert_eq!(ledger.used(), ByteSize(8));
        let taken = ledger.doom(&id("a")).expect("idle");
        assert_eq!(taken.files, [blob(2)]);
        cleared(&mut ledger, taken);
        assert_eq!(ledger.used(), ByteSize(6));
        let taken = ledger.doom(&id("b")).expect("idle");
        assert_eq!(taken.files.len(), 2);
        cleared(&mut ledger, taken);
        assert_eq!((ledger.used(), ledger.on_disk()), (ByteSize(0), ByteSize(0)));
    }

    #[test]
    fn content_whose_bytes_all_stay_is_no_victim() {
        // "a" is the oldest, but all its bytes are "b"'s too.
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 4)], 1);
        land(&mut ledger, "c", &[(2, 4)], 5);
        land(&mut ledger, "b", &[(1, 4), (3, 2)], 9);
        assert_eq!(goes(ledger.claim(&wants(&[(9, 4)]), PLENTY, NOW)), Ok(vec!["c".to_owned()]));
        assert_eq!(goes(ledger.claim(&wants(&[(8, 6)]), PLENTY, NOW)), Ok(vec!["a".to_owned(), "b".to_owned()]));
        // What a pinned content or a download holds is no way to make room either.
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 4)], 1);
        land(&mut ledger, "b", &[(1, 4)], 2);
        ledger.pin(&id("b"), NOW);
        assert_eq!(goes(ledger.claim(&wants(&[(9, 7)]), PLENTY, NOW)), Err(short(7, 6, 10, false)));
        ledger.claim(&wants(&[(1, 4), (9, 6)]), PLENTY, NOW).expect("its own bytes are here");
    }

    #[test]
    fn a_claim_may_be_written_once_its_victims_are_gone() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 10)], 1);
        let mut taken = ledger.claim(&wants(&[(8, 1)]), PLENTY, NOW).expect("fits");
        assert_eq!(ledger.room(), Room::NotYet);
        // A second claim fits the budget, yet may not be written while the first one's victim is on disk.
        assert_eq!(goes(ledger.claim(&wants(&[(9, 9)]), PLENTY, NOW)), Ok(vec![]));
        assert_eq!(goes(ledger.claim(&wants(&[(7, 1)]), PLENTY, NOW)), Err(short(1, 0, 10, false)));
        cleared(&mut ledger, taken.remove(0));
        assert_eq!(ledger.room(), Room::Yes);
    }

    #[test]
    fn bytes_that_a_download_has_written_are_not_missed_twice() {
        let mut ledger: Ledger<&str> = Ledger::new(ByteSize(100));
        ledger.claim(&wants(&[(1, 40)]), ByteSize(50), NOW).expect("50 are free");
        ledger.began(&blob(1), State::Partial(Partial::default()), false);
        ledger.go_on(&blob(1), |_| 30);
        let by_disk = ByteSize(ledger.on_disk().0 + 20); // 30 of the 50 are its own
        assert_eq!(goes(ledger.claim(&wants(&[(2, 11)]), by_disk, NOW)), Err(short(11, 10, 50, true)));
        assert_eq!(goes(ledger.claim(&wants(&[(2, 10)]), by_disk, NOW)), Ok(vec![]));
        ledger.go_on(&blob(1), |_| 30);
        assert_eq!(ledger.on_disk(), ByteSize(40), "no more than it claimed");
        assert_eq!(ledger.release(&[blob(1)], NOW).files, [blob(1)], "nothing of it is done");
        assert_eq!((ledger.on_disk(), ledger.used()), (ByteSize(40), ByteSize(50)), "until its file is gone");
        ledger.file_gone(&blob(1));
        assert_eq!((ledger.on_disk(), ledger.used()), (ByteSize(0), ByteSize(10)));
    }

    #[test]
    fn what_cannot_be_removed_counts_and_is_not_waited_for() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 6)], 1);
        let taken = ledger.claim(&wants(&[(2, 6)]), PLENTY, NOW).expect("fits once it is gone").remove(0);
        let (generation, _) = taken.content.expect("a content");
        ledger.file_gone(&blob(1));
        assert_eq!(ledger.room(), Room::NotYet, "there is still the folder");
        ledger.folder_stuck(generation);
        assert_eq!((ledger.room(), ledger.used(), ledger.on_disk()), (Room::No, ByteSize(12), ByteSize(6)));
        ledger.release(&[blob(2)], NOW);
        assert_eq!(goes(ledger.claim(&wants(&[(2, 6)]), PLENTY, NOW)), Err(short(6, 4, 10, false)));
        // Another file of the same blob is not in the way, and is not taken for the stuck one.
        assert_eq!(goes(ledger.claim(&wants(&[(1, 4)]), PLENTY, NOW)), Ok(vec![]));
        ledger.check();
        ledger.folder_going(generation);
        ledger.folder_gone(generation);
        ledger.check();
        assert_eq!(ledger.used(), ByteSize(4));
    }

    #[test]
    fn a_blob_whose_file_is_being_removed_is_waited_for() {
        let mut ledger: Ledger<&str> = Ledger::new(ByteSize(10));
        orphan(&mut ledger, 1, 4, 1);
        assert_eq!(ledger.sweep(UnixMillis(2)), [blob(1)]);
        assert_eq!(goes(ledger.claim(&wants(&[(1, 4)]), PLENTY, NOW)), Err(Refused::Leaving(blob(1))));
        ledger.file_stuck(&blob(1));
        assert_eq!(goes(ledger.claim(&wants(&[(1, 4)]), PLENTY, NOW)), Err(Refused::Stuck(blob(1))));
        ledger.file_going(&blob(1));
        ledger.file_gone(&blob(1));
        assert_eq!(goes(ledger.claim(&wants(&[(1, 4)]), PLENTY, NOW)), Ok(vec![]));
    }

    #[test]
    fn doomed_content_goes_with_its_last_pin_unless_it_is_wanted_again() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 1)], 1);
        let a = id("a");
        let (first, _) = ledger.pin(&a, NOW).expect("there");
        assert!(ledger.doom(&a).is_none());
        ledger.pin(&a, NOW).expect("wanted again");
        assert!(ledger.unpin(first, NOW).is_none());
        assert!(ledger.unpin(first, NOW).is_none());
        assert!(ledger.get(&a).is_some(), "somebody wanted it after it was doomed");
        ledger.pin(&a, NOW).expect("there");
        assert!(ledger.doom(&a).is_none());
        assert!(ledger.unpin(first, NOW).is_some());
        assert!(ledger.get(&a).is_none());
    }

    #[test]
    fn content_that_is_replaced_stays_for_its_pins_alone() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 2), (2, 2)], 1);
        let (first, _) = ledger.pin(&id("a"), NOW).expect("there");
        land(&mut ledger, "a", &[(2, 2), (3, 2)], 2);
        let (second, _) = ledger.pin(&id("a"), NOW).expect("there");
        assert_ne!(first, second);
        assert_eq!(ledger.used(), ByteSize(6));
        assert_eq!(goes(ledger.claim(&wants(&[(9, 5)]), PLENTY, NOW)), Err(short(5, 4, 10, false)), "both are pinned");
        let taken = ledger.unpin(first, NOW).expect("nobody has it any more");
        assert_eq!(taken.files, [blob(1)]);
        assert_eq!(ledger.get(&id("a")).map(|(generation, entry)| (generation, entry.pins)), Some((second, 1)));
    }

    #[test]
    fn a_wrong_blob_takes_its_contents_along_and_frees_its_name() {
        let mut ledger = Ledger::new(ByteSize(20));
        land(&mut ledger, "idle", &[(1, 4), (2, 2)], 1);
        land(&mut ledger, "pinned", &[(1, 4), (3, 2)], 1);
        land(&mut ledger, "other", &[(3, 2)], 1);
        let (generation, _) = ledger.pin(&id("pinned"), NOW).expect("there");
        let mut taken = ledger.condemn(&blob(1));
        ledger.check();
        assert_eq!((taken.len(), taken[0].content.map(|content| content.1), &taken[0].files), (1, Some("idle"), &vec![blob(2)]));
        assert!(ledger.get(&id("pinned")).is_none() && ledger.get(&id("other")).is_some());
        cleared(&mut ledger, taken.remove(0));
        assert_eq!(ledger.used(), ByteSize(6), "the pinned one's bytes are still there");
        assert_eq!(goes(ledger.claim(&wants(&[(1, 4)]), PLENTY, NOW)), Ok(vec![]));
        assert_eq!(ledger.used(), ByteSize(10));
        let taken = ledger.unpin(generation, NOW).expect("nobody has it any more");
        assert_eq!(taken.files, [], "it has a folder only");
        cleared(&mut ledger, taken);
        assert_eq!(ledger.used(), ByteSize(6));
    }

    #[test]
    fn a_smaller_budget_takes_the_least_recently_used() {
        let mut ledger = Ledger::new(ByteSize(10));
        land(&mut ledger, "a", &[(1, 3)], 1);
        land(&mut ledger, "b", &[(2, 3)], 3);
        orphan(&mut ledger, 3, 3, 2);
        ledger.budget = 5;
        assert_eq!(goes(Ok(ledger.shrink())), Ok(vec!["a".to_owned(), "3".to_owned()]));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Claim(Vec<u8>, u64),
        Begin(usize, usize, bool),
        Grow(usize, usize, u64),
        Complete(usize, usize),
        Spoil(usize, usize),
        Land(usize, u8),
        Drop(usize),
        Clear,
        Stick,
        Unstick,
        Pin(u8),
        Unpin(usize),
        Doom(u8),
        Condemn(u8),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (proptest::collection::btree_set(0u8..10, 1..5), 0u64..120).prop_map(|(blobs, free)| Act::Claim(blobs.into_iter().collect(), free)),
            2 => (0usize..4, 0usize..5, any::<bool>()).prop_map(|(at, blob, full)| Act::Begin(at, blob, full)),
            1 => (0usize..4, 0usize..5, 0u64..30).prop_map(|(at, blob, more)| Act::Grow(at, blob, more)),
            4 => (0usize..4, 0usize..5).prop_map(|(at, blob)| Act::Complete(at, blob)),
            1 => (0usize..4, 0usize..5).prop_map(|(at, blob)| Act::Spoil(at, blob)),
            4 => (0usize..4, 0u8..4).prop_map(|(at, model)| Act::Land(at, model)),
            1 => (0usize..4).prop_map(Act::Drop),
            4 => Just(Act::Clear),
            1 => Just(Act::Stick),
            1 => Just(Act::Unstick),
            2 => (0u8..4).prop_map(Act::Pin),
            2 => (0usize..4).prop_map(Act::Unpin),
            1 => (0u8..4).prop_map(Act::Doom),
            1 => (0u8..10).prop_map(Act::Condemn),
        ];
        proptest::collection::vec(act, 0..80)
    }

    /// A disk as the ledger's caller sees it: files by name, each an inode.
    #[derive(Default)]
    struct Disk {
        inodes: Vec<u8>,
        files: HashMap<BlobId, usize>,
        folders: HashMap<Generation, Vec<usize>>,
    }

    impl Disk {
        fn make(&mut self, n: u8) {
            self.inodes.push(n);
            self.files.insert(blob(n), self.inodes.len() - 1);
        }

        fn bytes(&self) -> u64 {
            let there: HashSet<usize> = self.files.values().copied().chain(self.folders.values().flatten().copied()).collect();
            there.into_iter().map(|inode| size(self.inodes[inode])).sum()
        }
    }

    fn size(n: u8) -> u64 {
        [3, 5, 8, 10, 12, 15, 20, 25, 30, 60][usize::from(n)]
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Thing {
        File(BlobId),
        Folder(Generation),
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn what_is_on_disk_never_exceeds_the_budget_and_pinned_content_stays(acts in acts()) {
            const BUDGET: u64 = 100;
            let mut ledger: Ledger<Vec<u8>> = Ledger::new(ByteSize(BUDGET));
            let mut disk = Disk::default();
            // Downloads: their blobs, and whether they may write.
            let mut flights: Vec<(Vec<u8>, bool)> = Vec::new();
            let mut pins: Vec<(ModelId, Generation, Vec<u8>)> = Vec::new();
            let (mut going, mut stuck): (Vec<Thing>, Vec<Thing>) = (Vec::new(), Vec::new());
            let mut now = 0;
            let things = |taken: Taken<Vec<u8>>| {
                let folder = taken.content.map(|(generation, _)| Thing::Folder(generation));
                taken.files.into_iter().map(Thing::File).chain(folder).collect::<Vec<_>>()
            };
            for act in acts {
                now += 1;
                let at = UnixMillis(now);
                let state = |ledger: &Ledger<Vec<u8>>, n: u8| ledger.blob(&blob(n)).map(|blob| blob.state.clone());
                match act {
                    Act::Claim(blobs, free) => {
                        let wants: Vec<_> = blobs.iter().map(|n| (blob(*n), ByteSize(size(*n)))).collect();
                        let by_disk = ByteSize(ledger.on_disk().0 + free);
                        if let Ok(taken) = ledger.claim(&wants, by_disk, at) {
                            for taken in taken {
                                let held = |id: &BlobId| flights.iter().any(|(blobs, _)| blobs.iter().any(|n| blob(*n) == *id));
                                prop_assert!(!taken.files.iter().any(held), "a download's blob was taken");
                                if let Some((generation, _)) = taken.content {
                                    prop_assert!(pins.iter().all(|pin| pin.1 != generation), "pinned content was taken");
                                }
                                going.extend(things(taken));
                            }
                            flights.push((blobs, false));
                        }
                    }
                    Act::Begin(at, n, full) if at < flights.len() && flights[at].1 => {
                        let n = flights[at].0[n % flights[at].0.len()];
                        if state(&ledger, n) == Some(State::Absent) {
                            disk.make(n);
                            ledger.began(&blob(n), if full { partial() } else { State::Partial(Partial::default()) }, full);
                        }
                    }
                    Act::Grow(at, n, more) if at < flights.len() && flights[at].1 => {
                        let n = flights[at].0[n % flights[at].0.len()];
                        if let Some(State::Partial(_)) = state(&ledger, n) {
                            ledger.go_on(&blob(n), |_| more);
                        }
                    }
                    Act::Complete(at, n) if at < flights.len() && flights[at].1 => {
                        let n = flights[at].0[n % flights[at].0.len()];
                        match state(&ledger, n) {
                            Some(State::Whole(_)) => {}
                            before => {
                                if before == Some(State::Absent) {
                                    disk.make(n);
                                }
                                ledger.completed(&blob(n), whole());
                            }
                        }
                    }
                    Act::Spoil(at, n) if at < flights.len() && flights[at].1 => {
                        let n = flights[at].0[n % flights[at].0.len()];
                        if let Some(State::Partial(_)) = state(&ledger, n) {
                            disk.files.remove(&blob(n));
                            ledger.spoiled(&blob(n));
                        }
                    }
                    Act::Land(at_flight, model) if at_flight < flights.len() && flights[at_flight].1 => {
                        let all_whole = flights[at_flight].0.iter().all(|n| matches!(state(&ledger, *n), Some(State::Whole(_))));
                        if all_whole {
                            let (blobs, _) = flights.remove(at_flight);
                            let ids: Vec<BlobId> = blobs.iter().map(|n| blob(*n)).collect();
                            let generation = ledger.stage(ids.clone().into());
                            disk.folders.insert(generation, ids.iter().map(|id| disk.files[id]).collect());
                            going.extend(ledger.add(generation, id(&format!("m{model}")), blobs, at).into_iter().flat_map(things));
                            let released = ledger.release(&ids, at);
                            prop_assert_eq!(released, Released::default());
                        }
                    }
                    Act::Drop(at_flight) if at_flight < flights.len() => {
                        let ids: Vec<BlobId> = flights.remove(at_flight).0.into_iter().map(blob).collect();
                        going.extend(ledger.release(&ids, at).files.into_iter().map(Thing::File));
                    }
                    Act::Clear => {
                        for thing in going.drain(..) {
                            match thing {
                                Thing::File(id) => {
                                    disk.files.remove(&id);
                                    ledger.file_gone(&id);
                                }
                                Thing::Folder(generation) => {
                                    disk.folders.remove(&generation);
                                    ledger.folder_gone(generation);
                                }
                            }
                        }
                    }
                    Act::Stick => {
                        if let Some(thing) = going.pop() {
                            match thing {
                                Thing::File(id) => ledger.file_stuck(&id),
                                Thing::Folder(generation) => ledger.folder_stuck(generation),
                            }
                            stuck.push(thing);
                        }
                    }
                    Act::Unstick => {
                        for thing in stuck.drain(..) {
                            match thing {
                                Thing::File(id) => ledger.file_going(&id),
                                Thing::Folder(generation) => ledger.folder_going(generation),
                            }
                            going.push(thing);
                        }
                    }
                    Act::Pin(n) => {
                        let model = id(&format!("m{n}"));
                        if let Some((generation, blobs)) = ledger.pin(&model, at) {
                            pins.push((model, generation, blobs));
                        }
                    }
                    Act::Unpin(n) if n < pins.len() => {
                        let (_, generation, _) = pins.remove(n);
                        going.extend(ledger.unpin(generation, at).into_iter().flat_map(things));
                    }
                    Act::Doom(n) => going.extend(ledger.doom(&id(&format!("m{n}"))).into_iter().flat_map(things)),
                    Act::Condemn(n) => {
                        let wrong = ledger.blob(&blob(n)).is_some_and(|blob| matches!(blob.state, State::Whole(_)) && blob.is_to_be_had() && !blob.is_in_flight());
                        if wrong {
                            disk.files.remove(&blob(n));
                            going.extend(ledger.condemn(&blob(n)).into_iter().flat_map(things));
                        }
                    }
                    Act::Begin(..) | Act::Grow(..) | Act::Complete(..) | Act::Spoil(..) | Act::Land(..) | Act::Drop(_) | Act::Unpin(_) => {}
                }
                ledger.check();
                if ledger.room() == Room::Yes {
                    flights.iter_mut().for_each(|flight| flight.1 = true);
                }
                prop_assert_eq!(ledger.room() == Room::No, ledger.used().0 > BUDGET && going.iter().all(|thing| match thing {
                    Thing::File(id) => !ledger.blob(id).is_some_and(|blob| blob.leaving),
                    Thing::Folder(generation) => !ledger.folders[generation].iter().any(|id| ledger.blob(id).is_some_and(|blob| blob.leaving)),
                }));
                for (_, generation, blobs) in &pins {
                    prop_assert_eq!(ledger.entry(*generation).map(|entry| &entry.content), Some(blobs), "pinned content is gone");
                }
                // What is there is there in full at most.
                prop_assert!(disk.bytes() <= BUDGET, "{} on disk", disk.bytes());
                prop_assert!(ledger.on_disk().0 <= disk.bytes() && disk.bytes() <= ledger.used().0);
            }
            // With everybody gone and everything removed nothing is left but contents and orphans, which can all go.
            flights.into_iter().for_each(|(blobs, _)| {
                let ids: Vec<BlobId> = blobs.into_iter().map(blob).collect();
                going.extend(ledger.release(&ids, UnixMillis(now)).files.into_iter().map(Thing::File));
            });
            pins.into_iter().for_each(|(_, generation, _)| going.extend(ledger.unpin(generation, UnixMillis(now)).into_iter().flat_map(things)));
            ledger.budget = 0;
            going.extend(ledger.shrink().into_iter().flat_map(things));
            for thing in &stuck {
                match thing {
                    Thing::File(id) => ledger.file_going(id),
                    Thing::Folder(generation) => ledger.folder_going(*generation),
                }
            }
            for thing in going.into_iter().chain(stuck) {
                match thing {
                    Thing::File(id) => ledger.file_gone(&id),
                    Thing::Folder(generation) => ledger.folder_gone(generation),
                }
            }
            ledger.check();
            prop_assert_eq!((ledger.used(), ledger.blobs().count(), ledger.folders.len()), (ByteSize(0), 0, 0));
        }
    }
}
