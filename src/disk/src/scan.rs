//! What the tier finds when it opens: what is known and whole is taken over, the rest is swept.
//!
//! The journal, the blobs' files and the contents' manifests must agree. Content counts when each of its files is the file
//! of a whole blob. A blob that nobody uses is kept for the next download of it, for a day. After another start of the
//! machine only what was on stable storage is taken for what it was: whole blobs are hashed before they are used, partial
//! ones are dropped.

use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{ByteSize, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::DiskError;
use crate::blob::{BlobId, State, Trust};
use crate::content::{Content, written_at};
use crate::journal::{Journal, Known, Line, replay};
use crate::ledger::Ledger;
use crate::tier::{Machine, Places, Removal, Shared, Tier, TierConfig, remove_or_warn};

/// How long what no content uses is kept at most, from one start to the next.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl Tier {
    /// Opens the tier: creates its folders, sweeps what a crash left, takes over what is whole, and keeps the budget.
    ///
    /// # Errors
    /// [`DiskError::Failed`] names the folder that cannot be used.
    pub async fn open(config: TierConfig, clock: Clock, metrics: Metrics) -> Result<Tier, DiskError> {
        Tier::open_on(Machine::this(), config, clock, metrics).await
    }

    pub(crate) async fn open_on(machine: Machine, config: TierConfig, clock: Clock, metrics: Metrics) -> Result<Tier, DiskError> {
        let folder = config.folder.clone();
        let fault = |fault: &dyn std::fmt::Display| DiskError::Failed(format!("disk tier in {}: {fault}", folder.display()));
        match tokio::task::spawn_blocking(move || open(machine, config, clock, metrics)).await {
            Ok(Ok(tier)) => Ok(tier),
            Ok(Err(why)) => Err(fault(&why)),
            Err(why) => Err(fault(&why)),
        }
    }
}

/// Bytes of the files under `folder`, each counted once however many names it has; links are not followed, what cannot be
/// read counts as nothing. For whoever sizes the budget before the tier is open.
#[must_use]
pub fn held_under(folder: &Path) -> ByteSize {
    fn add(folder: &Path, seen: &mut HashSet<(u64, u64)>) -> ByteSize {
        let Ok(entries) = std::fs::read_dir(folder) else { return ByteSize::ZERO };
        let each = entries.flatten().map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => add(&entry.path(), seen),
            Ok(about) if about.nlink() > 1 && !seen.insert((about.dev(), about.ino())) => ByteSize::ZERO,
            Ok(about) => ByteSize(about.len()),
            Err(_gone) => ByteSize::ZERO,
        });
        each.sum()
    }
    add(folder, &mut HashSet::new())
}

fn open(machine: Machine, config: TierConfig, clock: Clock, metrics: Metrics) -> io::Result<Tier> {
    let places = Places::new(config.folder);
    if places.staging.exists() {
        std::fs::remove_dir_all(&places.staging)?;
    }
    for folder in [&places.staging, &places.models, &places.blobs] {
        std::fs::create_dir_all(folder)?;
    }
    let found = Found::at(&places, &machine)?;
    let links = machine.links.map_or_else(|| links(&places.staging), Ok)?;
    let mut ledger = Ledger::new(config.budget);
    let (contents, blobs, ignored) = (found.contents.len(), found.blobs.len(), found.ignored);
    let taken = found.contents.iter().map(|(content, _)| content.folder().to_owned()).collect();
    for (id, (known, written, file)) in found.blobs {
        ledger.found(id, known, written, file);
    }
    for (content, last_use) in found.contents {
        let generation = ledger.stage(content.manifest().blobs().into());
        ledger.add(generation, content.manifest().model.clone(), Arc::new(content), last_use);
    }
    let lines = |line: &mut dyn FnMut(Line)| {
        line(Line::Opened { boot: machine.boot.clone() });
        ledger.blobs().for_each(|(id, blob)| Known::lines(*id, blob.size, &blob.state, blob.last_use, &mut *line));
    };
    let journal = Journal::create(&places.journal, lines)?;
    info!(path = %places.folder.display(), contents, blobs, size = %ledger.used(), "disk tier opened");
    if ignored > 0 {
        warn!(path = %places.journal.display(), lines = ignored, "lines of the journal are torn or do not fit, and count as not there");
    }
    let (gone, swept) = (ledger.shrink(), ledger.sweep(UnixMillis(clock.wall().0.saturating_sub(KEPT.as_millis() as u64))));
    let tier = Tier(Arc::new(Shared {
        places,
        budget: config.budget,
        clock,
        metrics,
        machine,
        links,
        looking: Mutex::default(),
        stuck: Mutex::default(),
        taken: Mutex::new(taken),
        writers: Mutex::default(),
        journal: Mutex::new(journal),
        ledger: Mutex::new(ledger),
        syncing: Mutex::default(),
        freed: Notify::new(),
        turn: AtomicU64::new(found.turn),
        sequence: AtomicU64::new(0),
    }));
    for taken in gone {
        if let Some((_, content)) = &taken.content {
            let manifest = content.manifest();
            info!(model = %manifest.model, size = %manifest.total(), "content is removed from the disk tier, the budget has become smaller");
        }
        tier.erase_now(taken.into());
    }
    if !swept.is_empty() {
        info!(blobs = swept.len(), "what unfinished downloads left a day ago is removed from the disk tier");
        tier.erase_now(Removal { folder: None, files: swept });
    }
    tier.0.metrics.set(Gauge::DiskBudgetBytes, &[], config.budget.0);
    tier.told();
    tier.free()?;
    if blobs > 0 {
        tier.sync_soon(); // the journal is new
    }
    Ok(tier)
}

/// Whether a file can have two names here.
fn links(folder: &Path) -> io::Result<bool> {
    let (one, other) = (folder.join("one"), folder.join("other"));
    std::fs::write(&one, b"")?;
    let linked = std::fs::hard_link(&one, &other).is_ok();
    if linked {
        std::fs::remove_file(&other)?;
    } else {
        info!(path = %folder.display(), "this file system cannot link files: models do not share what they have in common");
    }
    std::fs::remove_file(&one)?;
    Ok(linked)
}

/// One of each model, with its last use.
type Contents = Vec<(Content, UnixMillis)>;

/// What is on disk and agrees.
struct Found {
    /// With the bytes that lie on the file system, and whether it has a file of its own.
    blobs: HashMap<BlobId, (Known, u64, bool)>,
    contents: Contents,
    turn: u64,
    ignored: usize,
}

impl Found {
    fn at(places: &Places, machine: &Machine) -> io::Result<Self> {
        let text = match std::fs::read(&places.journal) {
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Vec::new(),
            outcome => outcome?,
        };
        let read = replay(&text);
        drop(text);
        let same_boot = machine.boot.is_some() && read.boot == machine.boot;
        let mut known = read.blobs;
        for blob in known.values_mut() {
            if let State::Whole(whole) = &mut blob.state
                && whole.trust == Trust::Fresh
                && !same_boot
            {
                whole.trust = Trust::Doubtful;
            }
        }
        let files = files(&places.blobs, &mut known, same_boot)?;
        let (contents, owned) = contents(&places.models, &mut known, &files)?;
        let mut blobs = HashMap::with_capacity(files.len() + owned.len());
        for (id, known) in known {
            if let Some(about) = files.get(&id) {
                blobs.insert(id, (known, about.blocks().saturating_mul(512), true));
            } else if owned.contains(&id) {
                let size = known.size;
                blobs.insert(id, (known, size, false));
            }
        }
        Ok(Found { blobs, contents, turn: read.turn, ignored: read.ignored })
    }
}

/// The blobs' files that are what the journal knows; others are removed. Those in doubt are marked.
fn files(folder: &Path, known: &mut HashMap<BlobId, Known>, same_boot: bool) -> io::Result<HashMap<BlobId, Metadata>> {
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (about, id) = (entry.metadata()?, entry.file_name().to_str().and_then(BlobId::parse));
        let of = id.and_then(|id| known.get_mut(&id).map(|known| (id, known)));
        let of = of.filter(|(_, known)| about.is_file() && about.len() == known.size && (same_boot || matches!(known.state, State::Whole(_))));
        match of {
            Some((id, known)) => {
                doubt(known, &about);
                files.insert(id, about);
            }
            None => remove_or_warn(&entry.path()),
        }
    }
    Ok(files)
}

/// Another hand may have written a whole blob.
fn doubt(known: &mut Known, about: &Metadata) {
    if let State::Whole(whole) = &mut known.state
        && whole.written != written_at(about)
    {
        whole.trust = Trust::Doubtful;
    }
}

/// The contents that are whole, and the blobs that are in them alone; other folders are removed.
fn contents(models: &Path, known: &mut HashMap<BlobId, Known>, files: &HashMap<BlobId, Metadata>) -> io::Result<(Contents, HashSet<BlobId>)> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(models)? {
        let folder = folder?.path();
        match Content::read(&folder) {
            Ok(content) => found.push(content),
            Err(why) => sweep(&folder, &why),
        }
    }
    // The later one of two counts.
    found.sort_by_key(|(content, last_use)| std::cmp::Reverse((content.manifest().fetched, *last_use)));
    let (mut names, mut owned, mut contents) = (HashSet::new(), HashSet::new(), Vec::new());
    for (content, last_use) in found {
        if !names.insert(content.manifest().model.clone()) {
            sweep(content.folder(), "later content has replaced it");
            continue;
        }
        let mut odd = None;
        let checked = content.check(|file, path, about| {
            let Some(known) = known.get_mut(&file.blob).filter(|known| matches!(known.state, State::Whole(_)) && known.size == file.bytes.0) else {
                odd = Some(unknown(path));
                return;
            };
            match files.get(&file.blob) {
                Some(own) if !content.manifest().owned && (own.dev(), own.ino()) == (about.dev(), about.ino()) => {}
                None if content.manifest().owned && owned.insert(file.blob) => doubt(known, about),
                _ => odd = Some(unknown(path)),
            }
        });
        match checked.err().or(odd) {
            None => contents.push((content, last_use)),
            Some(why) => sweep(content.folder(), &why),
        }
    }
    // Those of a folder that was swept went with it.
    let kept: HashSet<BlobId> =
        contents.iter().filter(|(content, _)| content.manifest().owned).flat_map(|(content, _)| content.manifest().blobs()).collect();
    owned.retain(|id| kept.contains(id));
    Ok((contents, owned))
}

fn unknown(path: &Path) -> String {
    format!("{} is not a file that the journal knows", path.display())
}

fn sweep(folder: &Path, why: &str) {
    info!(path = %folder.display(), error = %why, "content of the disk tier is not whole and is removed");
    remove_or_warn(folder);
}
