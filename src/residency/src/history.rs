//! What is remembered of models beyond their copies: last use and measured size, kept across restarts in one small
//! file.
//!
//! The file is a convenience, never a truth: without it the order of eviction starts anew and sizes are estimated
//! again. A file that cannot be read is said so once and replaced. Failures have a file of their own: they are few, and
//! written as they happen.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use berth_types::{ContentDigest, Footprint, ModelId, UnixMillis};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// What is known of one model. With its key 64 bytes in the table; the id's text is shared with the registration.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    last_used: Option<UnixMillis>,
    /// What the last copy took.
    measured: Option<Footprint>,
}

/// What files took when they were loaded, under whatever name.
#[derive(Clone, Debug, PartialEq)]
struct Learned {
    size: Footprint,
    /// When that was.
    at: UnixMillis,
    /// By what the server grew: another load may show it to be wrong. Else the server said so itself.
    seen: bool,
}

/// One life of the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Server {
    life: u64,
    /// What it held before it was told to load anything.
    base: Footprint,
    /// What was in use by then of the GPUs that it has alone as far as can be told.
    #[serde(default)]
    gpus: Footprint,
}

/// Last use and measured size of the models that were used or loaded here, and what was learned of their files.
#[derive(Debug, Default)]
pub(crate) struct History {
    models: HashMap<ModelId, Known>,
    contents: HashMap<ContentDigest, Learned>,
    /// The last one that was told to load something.
    server: Option<Server>,
    changed: bool,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    models: Vec<StoredModel>,
    /// Files of before this was kept have none.
    #[serde(default)]
    contents: Vec<StoredContent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

#[derive(Serialize, Deserialize)]
struct StoredContent {
    digest: ContentDigest,
    size: Footprint,
    at: UnixMillis,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    seen: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredModel {
    id: ModelId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used: Option<UnixMillis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    measured: Option<Footprint>,
}

const VERSION: u32 = 1;
/// A larger file is not ours.
const LARGEST_FILE: u64 = 64 << 20;

/// The file inside the state folder.
pub(crate) fn file_in(folder: &Path) -> PathBuf {
    folder.join("residency.json")
}

impl History {
    /// What the file says; empty when there is none or it cannot be read.
    pub(crate) fn read(folder: &Path) -> Self {
        let path = file_in(folder);
        match read_file(&path) {
            Ok(history) => history,
            Err(fault) => {
                warn!(path = %path.display(), error = %fault, "last uses and sizes of models cannot be read, starting without");
                History::default()
            }
        }
    }

    pub(crate) fn note_use(&mut self, model: &ModelId, time: UnixMillis) {
        let known = self.models.entry(model.clone()).or_default();
        if known.last_used < Some(time) {
            known.last_used = Some(time);
            self.changed = true;
        }
    }

    /// What a copy takes, and with it every copy of the same files: as the server said, or as was `seen` of it.
    pub(crate) fn note_size(&mut self, model: &ModelId, digest: Option<ContentDigest>, measured: &Footprint, seen: bool, at: UnixMillis) {
        if let Some(digest) = digest
            && self.contents.get(&digest).is_none_or(|learned| learned.size != *measured || learned.seen != seen)
        {
            self.contents.insert(digest, Learned { size: measured.clone(), at, seen });
            self.changed = true;
        }
        let known = self.models.entry(model.clone()).or_default();
        if known.measured.as_ref() != Some(measured) {
            known.measured = Some(measured.clone());
            self.changed = true;
        }
    }

    pub(crate) fn forget(&mut self, model: &ModelId) {
        self.changed |= self.models.remove(model).is_some();
    }

    pub(crate) fn last_used(&self, model: &str) -> Option<UnixMillis> {
        self.models.get(model)?.last_used
    }

    pub(crate) fn measured(&self, model: &ModelId) -> Option<Footprint> {
        self.models.get(model)?.measured.clone()
    }

    /// What these files took when they were last loaded.
    pub(crate) fn learned(&self, digest: ContentDigest) -> Option<Footprint> {
        self.contents.get(&digest).map(|learned| learned.size.clone())
    }

    /// Whether that is known by what the server grew.
    pub(crate) fn was_seen(&self, digest: ContentDigest) -> bool {
        self.contents.get(&digest).is_some_and(|learned| learned.seen)
    }

    /// What the server of this life held before it was told to load anything; `None` for one that never was.
    /// With it what was in use of the GPUs that it has alone.
    pub(crate) fn base_of(&self, life: u64) -> Option<[Footprint; 2]> {
        self.server.as_ref().filter(|server| server.life == life).map(|server| [server.base.clone(), server.gpus.clone()])
    }

    /// The server of this life, which was told to load something, held `base` before, and of the GPUs that it has alone so much
    /// was in use.
    pub(crate) fn note_base(&mut self, life: u64, base: &Footprint, gpus: Footprint) {
        self.server = Some(Server { life, base: base.clone(), gpus });
        self.changed = true;
    }

    /// Every model that was ever used, with its last use.
    pub(crate) fn used(&self) -> impl Iterator<Item = (&ModelId, UnixMillis)> {
        self.models.iter().filter_map(|(model, known)| Some((model, known.last_used?)))
    }

    /// Forgets the longest unused models down to `limit`, once it is exceeded by a tenth: so that it costs little per
    /// model.
    pub(crate) fn keep_within(&mut self, limit: usize) {
        if self.contents.len() > limit + limit / 10 {
            let mut times: Vec<UnixMillis> = self.contents.values().map(|learned| learned.at).collect();
            let surplus = times.len() - limit;
            let (_, oldest_kept, _) = times.select_nth_unstable(surplus);
            let oldest_kept = *oldest_kept;
            self.contents.retain(|_, learned| learned.at >= oldest_kept);
            self.changed = true;
        }
        if self.models.len() <= limit + limit / 10 {
            return;
        }
        let mut times: Vec<Option<UnixMillis>> = self.models.values().map(|known| known.last_used).collect();
        let surplus = times.len() - limit;
        let (_, oldest_kept, _) = times.select_nth_unstable(surplus);
        let oldest_kept = *oldest_kept;
        // All that are older go, and as many of its own age as are too many.
        let mut equals_to_go = surplus - self.models.values().filter(|known| known.last_used < oldest_kept).count();
        self.models.retain(|_, known| {
            let equal_goes = known.last_used == oldest_kept && equals_to_go > 0;
            equals_to_go -= usize::from(equal_goes);
            known.last_used >= oldest_kept && !equal_goes
        });
        self.changed = true;
    }

    /// The bytes to write, if anything changed since the last call.
    pub(crate) fn take_unsaved(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let stored = |(id, known): (&ModelId, &Known)| StoredModel { id: id.clone(), last_used: known.last_used, measured: known.measured.clone() };
        let mut models: Vec<_> = self.models.iter().map(stored).collect();
        models.sort_by(|a, b| a.id.cmp(&b.id));
        let stored = |(digest, learned): (&ContentDigest, &Learned)| StoredContent {
            digest: *digest,
            size: learned.size.clone(),
            at: learned.at,
            seen: learned.seen,
        };
        let mut contents: Vec<_> = self.contents.iter().map(stored).collect();
        contents.sort_by_key(|content| content.digest);
        // Plain values with text keys: there is nothing in them that JSON cannot say.
        serde_json::to_vec(&Stored { version: VERSION, models, contents, server: self.server.clone() }).ok()
    }

    /// The last write did not succeed: the next save tries again.
    pub(crate) fn save_failed(&mut self) {
        self.changed = true;
    }
}

fn read_file(path: &Path) -> Result<History, String> {
    let size = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(fault) => return Err(fault.to_string()),
    };
    if size > LARGEST_FILE {
        return Err(format!("it has {size} bytes, at most {LARGEST_FILE} are read"));
    }
    let bytes = std::fs::read(path).map_err(|fault| fault.to_string())?;
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|fault| fault.to_string())?;
    if stored.version != VERSION {
        return Err(format!("it has version {}, this program reads {VERSION}", stored.version));
    }
    let models = stored.models.into_iter().map(|model| (model.id, Known { last_used: model.last_used, measured: model.measured }));
    let learned = |content: StoredContent| (content.digest, Learned { size: content.size, at: content.at, seen: content.seen });
    let contents = stored.contents.into_iter().map(learned);
    Ok(History { models: models.collect(), contents: contents.collect(), server: stored.server, changed: false })
}

/// Writes the file. Blocking: for a blocking thread.
pub(crate) fn write(folder: &Path, bytes: &[u8]) -> std::io::Result<()> {
    crate::file::replace(&file_in(folder), |file| file.write_all(bytes))
}

#[cfg(test)]
mod tests {
    use berth_types::ByteSize;

    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("a test's id is valid")
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(History::read(folder.path()).used().count(), 0, "no file is no fault");
        let mut history = History::default();
        assert!(history.take_unsaved().is_none(), "nothing changed");
        history.note_use(&id("a"), UnixMillis(7));
        history.note_use(&id("a"), UnixMillis(5));
        history.note_size(&id("b"), Some(ContentDigest([7; 32])), &Footprint::host(ByteSize(9)), true, UnixMillis(3));
        history.note_base(7, &Footprint::host(ByteSize(5)), Footprint::host(ByteSize(3)));
        write(folder.path(), &history.take_unsaved().expect("changed")).expect("the folder is writable");
        assert!(history.take_unsaved().is_none());
        let back = History::read(folder.path());
        assert_eq!(back.last_used("a"), Some(UnixMillis(7)), "the last use never moves back");
        assert_eq!(back.measured(&id("b")), Some(Footprint::host(ByteSize(9))));
        assert_eq!(back.learned(ContentDigest([7; 32])), Some(Footprint::host(ByteSize(9))));
        assert!(back.was_seen(ContentDigest([7; 32])));
        assert_eq!((back.base_of(7), back.base_of(8)), (Some([5, 3].map(|bytes| Footprint::host(ByteSize(bytes)))), None));
        assert_eq!((back.models, back.contents), (history.models, history.contents));
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for text in ["", "{", "[]", r#"{"version":9,"models":[]}"#, r#"{"version":1,"models":[{"id":""}]}"#] {
            std::fs::write(file_in(folder.path()), text).expect("the folder is writable");
            assert_eq!(History::read(folder.path()).models.len(), 0, "{text}");
        }
    }

    #[test]
    fn the_longest_unused_are_forgotten_first() {
        let mut history = History::default();
        for n in 0..111 {
            history.note_use(&id(&format!("m{n}")), UnixMillis(1_000 + n));
        }
        for n in 0..111 {
            history.note_size(&id("never-used"), Some(ContentDigest([n; 32])), &Footprint::default(), false, UnixMillis(n.into()));
        }
        history.keep_within(100);
        assert_eq!(history.models.len(), 100);
        assert_eq!(history.last_used("m110"), Some(UnixMillis(1_110)));
        assert_eq!(history.last_used("m10"), None);
        assert!(history.measured(&id("never-used")).is_none());
        assert_eq!(history.last_used("m11"), Some(UnixMillis(1_011)));
        let knows = |n| history.learned(ContentDigest([n; 32])).is_some();
        assert_eq!((knows(10), knows(11), knows(110)), (false, true, true));
    }

    #[test]
    fn a_remembered_model_takes_64_bytes_in_the_table() {
        assert_eq!(std::mem::size_of::<(ModelId, Known)>(), 64);
    }
}
