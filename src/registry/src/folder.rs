//! A watched folder of manifests that feeds the store.
//!
//! What the files of the folder say is what the store holds of them: a scan reads every file that changed, applies what is
//! new or different and removes what no file says any more, also at the first scan after a restart. A file that cannot be
//! read says nothing new: the resources last read from it stay until it is fixed. Of two definitions of one resource the
//! first file by name wins. The file system's events only say when to scan; a slow poll stands behind them, since some
//! mounts send none.
//!
//! A file may be read while it is being written, and what is there by then may be valid by itself. So a file that changed
//! within the last two seconds only adds resources: what it changes waits until the file has come to rest, and what is
//! missing, in a file at rest or because its file is gone, must be missing for two seconds. An edit is seen about two
//! seconds after the last write to its file, a file that is removed two seconds later, a resource that is removed from
//! its file four seconds later. The first scan changes what files say at once, and removes at once what belongs to
//! files that do not exist: nobody saw those being written.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use berth_types::{ByteSize, UnixMillis};
use futures::StreamExt;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::manifest::{self, Manifests};
use crate::{Desired, Object, ObjectKey, Origin, Store, StoreError};

/// Larger files are not read.
const LARGEST_FILE: ByteSize = ByteSize::mib(16);
/// How long a burst of events may go on before the folder is read.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the folder is read when events come, and when the system gives none.
const POLL_BEHIND_EVENTS: Duration = Duration::from_secs(15);
const POLL_ALONE: Duration = Duration::from_secs(2);
/// A file whose times are younger than this when it is read may change again without changing them, and may still be
/// being written.
const TIMES_SETTLE: Duration = Duration::from_secs(2);
/// Writes handed to the store at once; it puts what waits into one disk write.
const WRITES_AT_ONCE: usize = 256;

/// What is wrong with a part of the folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// The file, or the folder itself.
    pub file: PathBuf,
    /// Line, from 1, where it is known.
    pub line: Option<u64>,
    /// Column, from 1, where it is known.
    pub column: Option<u64>,
    /// What follows from it.
    pub kind: FaultKind,
    /// What is wrong and what to do.
    pub message: String,
}

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FaultKind {
    /// Something could not be read; resources last read from this file stay as they were.
    Broken,
    /// Something is not for us.
    Ignored,
    /// The resource is defined elsewhere, and that definition holds.
    Duplicate,
    /// The store did not take it.
    Refused,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        for place in [self.line, self.line.and(self.column)].into_iter().flatten() {
            write!(f, ":{place}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a folder cannot be watched at all.
#[derive(Debug, thiserror::Error)]
#[error("folder of manifests {}: {fault}: create it, or choose another folder", dir.display())]
pub struct FolderError {
    /// The folder as given.
    pub dir: PathBuf,
    /// What the system says.
    pub fault: io::Error,
}

/// What one scan did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Resources made or changed.
    pub applied: usize,
    /// Resources removed.
    pub removed: usize,
    /// Changes and removals that wait until their files have come to rest.
    pub held_back: usize,
    /// Faults that stand now.
    pub faults: usize,
}

/// The faults of a folder, as they are at each moment. Cheap to clone.
#[derive(Clone)]
pub struct Faults(watch::Receiver<Arc<[Fault]>>);

impl Faults {
    /// The faults that stand now, by file and line.
    #[must_use]
    pub fn list(&self) -> Arc<[Fault]> {
        Arc::clone(&self.0.borrow())
    }
}

/// Which content of a file was read: as long as all of it stays the same, so does the content.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// True when a change after `now` would show in the times.
    fn is_settled(&self, now: UnixMillis) -> bool {
        let latest = u64::try_from(self.modified.0.max(self.changed.0)).unwrap_or(0);
        now.since(UnixMillis(latest.saturating_mul(1000))) > TIMES_SETTLE
    }
}

/// A file as it was last read.
#[derive(Clone)]
struct Known {
    /// `None` when nothing could be learned about it.
    stamp: Option<Stamp>,
    /// When it was first seen with this stamp.
    since: Instant,
    /// False when the file must be read again in any case.
    settled: bool,
    manifests: Arc<Manifests>,
}

impl Known {
    /// Nobody seems to be writing it. Also true for a file whose times are in the future and never look settled, and for
    /// one that is closed to us.
    fn is_at_rest(&self, now: Instant) -> bool {
        self.settled || self.stamp.is_none() || now.saturating_duration_since(self.since) >= TIMES_SETTLE
    }
}

type Files = BTreeMap<PathBuf, Known>;

/// A folder whose manifests are kept in the store.
pub struct Folder {
    dir: PathBuf,
    store: Arc<dyn Store>,
    clock: Clock,
    files: Files,
    /// Since when objects have been missing from files at rest; `None` before the first scan.
    missing: Option<Missing>,
    faults: watch::Sender<Arc<[Fault]>>,
}

/// When it was first seen that no file says anything of an object any more.
type Missing = BTreeMap<ObjectKey, Instant>;

impl Folder {
    /// A folder to be watched. Nothing is read yet: [`Folder::rescan`] reads it once, [`Folder::run`] keeps at it.
    ///
    /// # Errors
    /// [`FolderError`] when it does not exist or cannot be read.
    pub fn open(dir: &Path, store: Arc<dyn Store>, clock: Clock) -> Result<Self, FolderError> {
        let fault = |fault| FolderError { dir: dir.to_owned(), fault };
        // Absolute, since origins are kept over restarts from other working directories.
        let absolute = dir.canonicalize().map_err(fault)?;
        std::fs::read_dir(&absolute).map_err(fault)?;
        Ok(Folder { dir: absolute, store, clock, files: Files::new(), missing: None, faults: watch::Sender::new(Arc::default()) })
    }

    /// The faults of this folder, now and later.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(self.faults.subscribe())
    }

    /// Reads what changed and brings the store to what the files say.
    pub async fn rescan(&mut self) -> Scan {
        let (dir, known, now) = (self.dir.clone(), self.files.clone(), Now { wall: self.clock.wall(), instant: self.clock.now() });
        let read = tokio::task::spawn_blocking(move || read_folder(&dir, &known, now)).await.map_err(io::Error::other).flatten();
        let files = match read {
            Ok(files) => files,
            Err(fault) => {
                // Nothing is removed for a folder that is away: it may be a mount that comes back.
                let message = format!("cannot read the folder: {fault}: its resources stay as they were");
                return self
                    .report(vec![Fault { file: self.dir.clone(), line: None, column: None, kind: FaultKind::Broken, message }], Scan::default());
            }
        };
        let stored: Vec<Arc<Object>> = self.store.list().into_iter().filter(|object| matches!(object.origin, Origin::Folder(_))).collect();
        let Plan { apply, remove, missing, held_back, mut faults } = plan(&files, &stored, self.missing.as_ref(), now.instant);
        let was_read =
            |(path, known): (&PathBuf, &Known)| self.files.get(path).is_none_or(|before| !Arc::ptr_eq(&before.manifests, &known.manifests));
        let read_anew = files.iter().any(was_read);
        self.files = files;
        self.missing = Some(missing);

        let store = &self.store;
        let mut scan = Scan { held_back, ..Scan::default() };
        let removals = futures::stream::iter(remove).map(|key| async move { (key.clone(), store.delete(&key).await) });
        let removed: Vec<_> = removals.buffered(WRITES_AT_ONCE).collect().await;
        for (key, outcome) in removed {
            match outcome {
                Ok(_) => scan.removed += 1,
                Err(StoreError::NotFound(_)) => {}
                Err(fault) => faults.push(self.refused(self.dir.clone(), None, format!("{key} not removed: {fault}"))),
            }
        }
        let writes = futures::stream::iter(apply).map(|wanted| async move {
            let Wanted { file, line, object } = wanted;
            let before = store.get(&object.key).map(|present| present.resource_version);
            let outcome = store.apply(object, None).await;
            (file, line, outcome.map(|after| before != Some(after.resource_version)))
        });
        let applied: Vec<_> = writes.buffered(WRITES_AT_ONCE).collect().await;
        for (file, line, outcome) in applied {
            match outcome {
                Ok(changed) => scan.applied += usize::from(changed),
                Err(fault) => faults.push(self.refused(file, Some(line), fault.to_string())),
            }
        }
        if read_anew {
            self.share_with_store();
        }
        self.report(faults, scan)
    }

    fn refused(&self, file: PathBuf, line: Option<u64>, message: String) -> Fault {
        Fault { file, line, column: None, kind: FaultKind::Refused, message }
    }

    /// Lets go of copies of what the store holds: after a start, and after a change of a file, most was read twice.
    fn share_with_store(&mut self) {
        for known in self.files.values_mut() {
            let held = |object: &Arc<Desired>| self.store.get(&object.key).filter(|present| present.desired == *object);
            let is_copy = |object: &Arc<Desired>| held(object).is_some_and(|present| !Arc::ptr_eq(&present.desired, object));
            if known.manifests.objects.iter().any(|(_, object)| is_copy(object)) {
                for (_, object) in &mut Arc::make_mut(&mut known.manifests).objects {
                    *object = held(object).map_or_else(|| Arc::clone(object), |present| Arc::clone(&present.desired));
                }
            }
        }
    }

    /// Publishes the faults and logs what is new about them and about the scan.
    fn report(&mut self, mut faults: Vec<Fault>, scan: Scan) -> Scan {
        faults.sort();
        faults.dedup();
        let before: BTreeSet<Fault> = self.faults.borrow().iter().cloned().collect();
        for fault in faults.iter().filter(|fault| !before.contains(fault)) {
            let (file, line, column) = (fault.file.display(), fault.line, fault.column);
            match fault.kind {
                FaultKind::Ignored => tracing::info!(path = %file, line, error = %fault.message, "manifest ignored"),
                FaultKind::Broken | FaultKind::Duplicate | FaultKind::Refused => {
                    tracing::warn!(path = %file, line, column, error = %fault.message, "manifest not applied");
                }
            }
        }
        for fault in before.iter().filter(|fault| faults.binary_search(fault).is_err()) {
            tracing::info!(path = %fault.file.display(), line = fault.line, "fault of a manifest is gone");
        }
        if scan.applied + scan.removed > 0 {
            tracing::info!(path = %self.dir.display(), applied = scan.applied, removed = scan.removed, "folder of manifests read");
        }
        let scan = Scan { faults: faults.len(), ..scan };
        self.faults.send_replace(faults.into());
        scan
    }

    /// Keeps the store at what the files say, until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let watcher = match watch_folder(&self.dir, Arc::clone(&changed)) {
            Ok(watcher) => Some(watcher),
            Err(fault) => {
                tracing::warn!(path = %self.dir.display(), error = %fault, "no file events, the folder is polled");
                None
            }
        };
        let pause = if watcher.is_some() { POLL_BEHIND_EVENTS } else { POLL_ALONE };
        loop {
            let scan = self.rescan().await;
            let pause = if scan.held_back > 0 { TIMES_SETTLE } else { pause };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.clock.sleep(pause) => {}
                () = async { changed.notified().await; self.clock.sleep(SETTLE).await } => {}
            }
        }
    }
}

/// Wakes `changed` when something in `dir` changes. Reading it must not count, or each scan would cause the next one.
fn watch_folder(dir: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event.map(|event| event.kind) {
        Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => changed.notify_one(),
        Ok(EventKind::Access(_)) => {}
        Ok(EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other) | Err(_) => changed.notify_one(),
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// When a scan began.
#[derive(Clone, Copy)]
struct Now {
    wall: UnixMillis,
    instant: Instant,
}

/// Every manifest file of the folder, those that did not change as they are known.
fn read_folder(dir: &Path, known: &Files, now: Now) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if !is_manifest(&path) {
            continue;
        }
        // Follows links: a mounted ConfigMap is links into a folder that is swapped as a whole.
        if path.to_str().is_none() {
            // Where a resource comes from is kept with it, as text.
            let manifests = Arc::new(unreadable(&path, "its name is not UTF-8: rename it"));
            files.insert(path, Known { stamp: None, since: now.instant, settled: false, manifests });
            continue;
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => continue,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => continue,
            Err(fault) => {
                let manifests = Arc::new(unreadable(&path, &fault.to_string()));
                files.insert(path, Known { stamp: None, since: now.instant, settled: false, manifests });
                continue;
            }
        };
        let stamp = Stamp::of(&metadata);
        let same = known.get(&path).filter(|file| file.stamp == Some(stamp));
        let file = match same {
            Some(file) if file.settled => file.clone(),
            Some(_) | None => {
                let read = read_file(&path);
                // Read in the middle of a write that began after the first look, it is neither the old nor the new file.
                let unchanged = std::fs::metadata(&path).is_ok_and(|after| Stamp::of(&after) == stamp);
                let since = same.filter(|_| unchanged).map_or(now.instant, |file| file.since);
                let settled = read.is_ok() && unchanged && stamp.is_settled(now.wall);
                Known { stamp: Some(stamp), since, settled, manifests: Arc::new(read.unwrap_or_else(|fault| unreadable(&path, &fault))) }
            }
        };
        files.insert(path, file);
    }
    Ok(files)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    !hidden && matches!(ending.as_deref(), Some("yaml" | "yml" | "json"))
}

/// What a file says, or why it cannot be read.
fn read_file(path: &Path) -> Result<Manifests, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|fault| fault.to_string())?;
    file.take(LARGEST_FILE.0 + 1).read_to_end(&mut bytes).map_err(|fault| fault.to_string())?;
    if bytes.len() as u64 > LARGEST_FILE.0 {
        return Err(format!("is larger than {LARGEST_FILE}: split it into several files"));
    }
    if bytes.is_empty() {
        // Most editors and `>` empty a file before they write it, and nobody means to remove anything that way.
        return Err("is empty: delete the file to remove its resources".to_owned());
    }
    let text =
        String::from_utf8(bytes).map_err(|fault| format!("is not UTF-8 text at byte {}: save it as UTF-8", fault.utf8_error().valid_up_to()))?;
    Ok(manifest::read(path, &text))
}

fn unreadable(path: &Path, fault: &str) -> Manifests {
    let message = format!("cannot be read: {fault}");
    let fault = Fault { file: path.to_owned(), line: None, column: None, kind: FaultKind::Broken, message };
    Manifests { objects: Vec::new(), faults: vec![fault] }
}

/// A resource as a file wants it.
struct Wanted {
    file: PathBuf,
    line: u64,
    object: Arc<Desired>,
}

/// What a scan means to do.
struct Plan {
    apply: Vec<Wanted>,
    remove: Vec<ObjectKey>,
    /// Objects that files at rest do not have, and since when.
    missing: Missing,
    /// Changes and removals left for a later scan.
    held_back: usize,
    faults: Vec<Fault>,
}

/// What brings the store, whose objects that come from folders are `stored`, to what `files` say. `missing` is what the
/// scan before found missing; `None` at the first scan.
fn plan(files: &Files, stored: &[Arc<Object>], missing: Option<&Missing>, now: Instant) -> Plan {
    let at_start = missing.is_none();
    let stored_by_key: BTreeMap<&ObjectKey, &Object> = stored.iter().map(|object| (&object.key, &**object)).collect();
    let mut stored_by_file: BTreeMap<&Path, Vec<&ObjectKey>> = BTreeMap::new();
    for object in stored {
        if let Origin::Folder(file) = &object.origin {
            stored_by_file.entry(file).or_default().push(&object.key);
        }
    }
    // Which place has the say over a key; the line is known where the file could be read.
    let mut claims: BTreeMap<&ObjectKey, (&Path, Option<u64>)> = BTreeMap::new();
    // Claimed by a file that does not say so, but may before it has come to rest.
    let mut awaited: BTreeSet<&ObjectKey> = BTreeSet::new();
    let (mut apply, mut faults, mut held_back) = (Vec::new(), Vec::new(), 0);
    for (file, known) in files {
        let being_written = !at_start && !known.is_at_rest(now);
        let Manifests { objects, faults: own } = &*known.manifests;
        faults.extend(own.iter().cloned());
        for (line, object) in objects {
            if awaited.contains(&object.key) {
                held_back += 1;
                continue;
            }
            if let Some((first, first_line)) = claims.get(&object.key) {
                let place = first_line.map_or_else(|| first.display().to_string(), |line| format!("{}:{line}", first.display()));
                let message = format!("{} is already defined in {place}, which holds: remove one of the two", object.key);
                faults.push(Fault { file: file.clone(), line: Some(*line), column: None, kind: FaultKind::Duplicate, message });
                continue;
            }
            claims.insert(&object.key, (file, Some(*line)));
            match stored_by_key.get(&object.key) {
                Some(present) if present.is_as_desired(object) => continue,
                Some(_) if being_written => {
                    held_back += 1;
                    continue;
                }
                Some(_) | None => {}
            }
            apply.push(Wanted { file: file.clone(), line: *line, object: object.clone() });
        }
        if being_written || known.manifests.may_hide_objects() {
            for key in stored_by_file.get(file.as_path()).into_iter().flatten().copied() {
                let Entry::Vacant(free) = claims.entry(key) else { continue };
                free.insert((file, None));
                if being_written {
                    awaited.insert(key);
                    held_back += 1;
                }
            }
        }
    }
    let (mut remove, mut still_missing) = (Vec::new(), Missing::new());
    for object in stored.iter().filter(|object| !claims.contains_key(&object.key)) {
        let Origin::Folder(file) = &object.origin else { continue };
        let (at_rest, exists) = files.get(&**file).map_or((true, false), |known| (known.is_at_rest(now), true));
        let since = missing.and_then(|missing| missing.get(&object.key)).copied().unwrap_or(now);
        if (at_start && !exists) || (at_rest && now.saturating_duration_since(since) >= TIMES_SETTLE) {
            remove.push(object.key.clone());
            continue;
        }
        held_back += 1;
        if at_rest {
            still_missing.insert(object.key.clone(), since);
        }
    }
    Plan { apply, remove, missing: still_missing, held_back, faults }
}
