//! The file in which failures outlive the process: a line that says under what conditions they happened, then a line per
//! change, the newest last.
//!
//! Lines are added at the end, so that one more failure costs one more line however many there are. When most lines are
//! superseded by later ones the file is replaced as a whole, and so it is when it is not what was left here. A write that
//! a crash cut short leaves a last line without an end, of which nobody was told: it is dropped. Any other line that
//! cannot be read costs that one change. The file is a convenience, never a truth: without it the models that failed are
//! tried once more. Which failures still count is left to `failures`, when to write what to `keeping`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::{Footprint, ModelId, Step};
use serde::{Deserialize, Serialize};

use crate::failures::Record;
use crate::file;

const VERSION: u32 = 2;
/// A larger file is not ours, and is not written either: some 80,000 changes.
const LARGEST_FILE: u64 = 32 << 20;
/// What is written at once when the file is replaced: the newest failures that fit. The rest is for the changes to come.
const LARGEST_REPLACEMENT: u64 = LARGEST_FILE / 2;
/// A file of this size is read and replaced in no time, whatever is in it.
const SMALL_FILE: u64 = 64 << 10;

/// The first line: what a failure may have been due to that a restart can change.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Conditions {
    version: u32,
    /// Name and version.
    runtime: String,
    budget: Footprint,
}

impl Conditions {
    /// Whether a failure of then would be one under `now`, as far as that can be told.
    fn may_still_hold(&self, record: &Record, now: &Conditions) -> bool {
        match record.failure.step {
            Step::Fetch => true,
            // What it takes of a budget is the runtime's word, too.
            Step::Admit => self == now,
            Step::Layout | Step::Load | Step::Serve | Step::Unload if record.was_out_of_memory() => self == now,
            Step::Layout | Step::Load | Step::Serve | Step::Unload => self.runtime == now.runtime,
        }
    }
}

/// What happened to the failure of a model: a line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Change {
    /// This is the newest one.
    Failed(Record),
    /// Nothing counts against it any more.
    Cleared(ModelId),
}

/// How much is in the file, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    bytes: u64,
    changes: usize,
}

impl Extent {
    /// Whether it pays to replace the file, `live` changes in it being of use.
    pub(crate) fn is_mostly_dead(self, live: usize) -> bool {
        self.bytes > SMALL_FILE && self.changes > live.saturating_mul(2)
    }
}

/// One write.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Adds to what was left here: that much.
    Append(Vec<Change>, Extent),
    /// Leaves these and nothing else.
    Replace(Vec<Record>),
}

/// What a file was found to hold.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The failures, the newest first, also those that are too old by now.
    pub(crate) records: Vec<Record>,
    /// How many lines cannot be read, and what is wrong with the first of them.
    pub(crate) damaged: Option<(usize, String)>,
    /// How many failures count no longer, since the runtime or its memory is another one now.
    pub(crate) cured: usize,
    /// `None` when nothing can be added to it: there is none, it is damaged, or it is of other conditions.
    pub(crate) extent: Option<Extent>,
}

/// The file, and the conditions of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FailureFile {
    path: Arc<Path>,
    conditions: Arc<Conditions>,
}

impl FailureFile {
    /// The file inside the state folder; `runtime` names the runtime and its version.
    pub(crate) fn in_folder(folder: &Path, runtime: String, budget: Footprint) -> Self {
        let path: PathBuf = folder.join("failures.jsonl");
        FailureFile { path: path.into(), conditions: Arc::new(Conditions { version: VERSION, runtime, budget }) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says; nothing when there is none. Blocking.
    ///
    /// # Errors
    /// Why nothing in it can be used.
    pub(crate) fn read(&self) -> Result<Found, String> {
        let size = match std::fs::metadata(&self.path) {
            Ok(meta) => meta.len(),
            Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(Found::default()),
            Err(fault) => return Err(fault.to_string()),
        };
        if size > LARGEST_FILE {
            return Err(format!("it has {size} bytes, at most {LARGEST_FILE} are read"));
        }
        self.parse(&std::fs::read(&self.path).map_err(|fault| fault.to_string())?)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Found, String> {
        let ended = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut lines = bytes[..ended].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let then: Conditions = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|fault| format!("its first line: {fault}"))?;
        if then.version != VERSION {
            return Err(format!("it has version {}, this program reads {VERSION}", then.version));
        }
        let (mut found, mut changes, mut newest) = (Found::default(), 0, HashMap::new());
        for line in lines {
            changes += 1;
            match serde_json::from_slice(line) {
                Ok(Change::Failed(record)) => drop(newest.insert(record.failure.model.clone(), record)),
                Ok(Change::Cleared(model)) => drop(newest.remove(&model)),
                Err(fault) => found.damaged.get_or_insert_with(|| (0, fault.to_string())).0 += 1,
            }
        }
        let failures = newest.len();
        found.records = newest.into_values().filter(|record| then.may_still_hold(record, &self.conditions)).collect();
        found.cured = failures - found.records.len();
        newest_first(&mut found.records);
        let can_be_added_to = ended == bytes.len() && found.damaged.is_none() && then == *self.conditions;
        found.extent = can_be_added_to.then_some(Extent { bytes: bytes.len() as u64, changes });
        Ok(found)
    }

    /// Carries it out, up to the disk. What the file holds then; `None` when it is not what was left here, or would be too
    /// large, so that it has to be replaced: nothing was written. After an error nobody knows what it holds. Blocking: for
    /// a blocking thread.
    pub(crate) fn write(&self, write: Write) -> std::io::Result<Option<Extent>> {
        match write {
            Write::Append(changes, extent) => self.append(&changes, extent),
            Write::Replace(records) => self.replace(records).map(Some),
        }
    }

    fn append(&self, changes: &[Change], before: Extent) -> std::io::Result<Option<Extent>> {
        let mut lines = Vec::new();
        for change in changes {
            add_line(&mut lines, change)?;
        }
        let after = Extent { bytes: before.bytes + lines.len() as u64, changes: before.changes + changes.len() };
        let mut file = match File::options().append(true).open(&self.path) {
            Ok(file) => file,
            Err(fault) if fault.kind() == ErrorKind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        if after.bytes > LARGEST_FILE || file.metadata()?.len() != before.bytes {
            return Ok(None);
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        Ok(Some(after))
    }

    fn replace(&self, mut records: Vec<Record>) -> std::io::Result<Extent> {
        newest_first(&mut records);
        file::replace(&self.path, |file| {
            let mut line = Vec::new();
            add_line(&mut line, &*self.conditions)?;
            file.write_all(&line)?;
            let mut extent = Extent { bytes: line.len() as u64, changes: 0 };
            for record in records {
                line.clear();
                add_line(&mut line, &Change::Failed(record))?;
                if extent.bytes + line.len() as u64 > LARGEST_REPLACEMENT {
                    break;
                }
                file.write_all(&line)?;
                extent = Extent { bytes: extent.bytes + line.len() as u64, changes: extent.changes + 1 };
            }
            Ok(extent)
        })
    }
}

fn newest_first(records: &mut [Record]) {
    records.sort_by(|a, b| (b.failure.time, &a.failure.model).cmp(&(a.failure.time, &b.failure.model)));
}

fn add_line(lines: &mut Vec<u8>, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *lines, value)?;
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_types::{ByteSize, Failure, Location, ModelId, Reason, Retry, UnixMillis};

    use super::*;
    use crate::failures::Kind;

    fn budget(kib: u64) -> Footprint {
        Footprint::host(ByteSize::kib(kib))
    }

    fn file_in(folder: &Path) -> FailureFile {
        FailureFile::in_folder(folder, "engine 1".to_owned(), budget(8))
    }

    fn record(model: &str, step: Step, kind: Kind, time: u64) -> Record {
        let failure = Failure {
            reason: Reason::ModelLoadFailed,
            step,
            location: Location::of_pod_name("pod"),
            model: ModelId::new(model).expect("a test's id is valid"),
            message: "two\nlines and a \"quote\"".to_owned(),
            time: UnixMillis(time),
            retry: Retry::AfterChange,
        };
        Record::new(Arc::new(failure), kind, Duration::from_secs(20), false)
    }

    fn models(found: &Found) -> Vec<&str> {
        found.records.iter().map(|record| record.failure.model.as_str()).collect()
    }

    fn failed(model: &str, time: u64) -> Change {
        Change::Failed(record(model, Step::Load, Kind::Plain, time))
    }

    fn cleared(model: &str) -> Change {
        Change::Cleared(ModelId::new(model).expect("a test's id is valid"))
    }

    /// A file that holds these, with what was left there.
    fn replaced(file: &FailureFile, records: Vec<Record>) -> Extent {
        file.write(Write::Replace(records)).expect("the folder is writable").expect("it was replaced")
    }

    #[test]
    fn what_was_written_is_read_back_newest_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(&folder.path().join("new"));
        assert_eq!(file.read(), Ok(Found::default()), "no file is no fault");
        for count in [3, 1, 0] {
            let records: Vec<_> = (0..count).map(|n| record(&format!("m{n}"), Step::Load, Kind::Plain, 7 + n)).collect();
            let extent = replaced(&file, records.clone());
            let found = file.read().expect("just written");
            assert_eq!(found.records, records.into_iter().rev().collect::<Vec<_>>());
            assert_eq!((found.damaged, found.cured, found.extent), (None, 0, Some(extent)));
        }
    }

    #[test]
    fn later_lines_win_over_earlier_ones() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        let mut extent = replaced(&file, vec![record("a", Step::Load, Kind::Plain, 1), record("b", Step::Load, Kind::Plain, 2)]);
        for (changes, left) in [
            (vec![failed("c", 3)], &[("c", 3), ("b", 2), ("a", 1)][..]),
            (vec![cleared("b"), failed("a", 4)], &[("a", 4), ("c", 3)]),
            (vec![failed("b", 1), cleared("c"), cleared("never-failed")], &[("a", 4), ("b", 1)]),
            // The clock was turned back: what was written later happened later.
            (vec![failed("a", 0), failed("b", 0)], &[("a", 0), ("b", 0)]),
        ] {
            extent = file.write(Write::Append(changes.clone(), extent)).expect("the folder is writable").expect("as it was left");
            let found = file.read().expect("just written");
            assert_eq!(found.records.iter().map(|record| (record.failure.model.as_str(), record.failure.time.0)).collect::<Vec<_>>(), left);
            assert_eq!((found.damaged, found.extent), (None, Some(extent)), "after {changes:?}");
        }
        assert_eq!(extent.changes, 2 + 1 + 2 + 3 + 2);
    }

    #[test]
    fn nothing_is_added_to_a_file_that_is_not_as_it_was_left() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        let extent = replaced(&file, vec![record("a", Step::Load, Kind::Plain, 1)]);
        let whole = std::fs::read(file.path()).expect("just written");
        for other in [Some(&whole[..whole.len() - 1]), Some(&[]), Some(&[&whole[..], b"\n"].concat()), None] {
            match other {
                Some(bytes) => std::fs::write(file.path(), bytes).expect("the folder is writable"),
                None => std::fs::remove_file(file.path()).expect("it is there"),
            }
            assert_eq!(file.write(Write::Append(vec![failed("b", 2)], extent)).expect("no fault"), None);
            assert_eq!(std::fs::read(file.path()).ok().as_deref(), other, "it was written to");
        }
    }

    #[test]
    fn a_file_pays_to_be_replaced_when_it_is_large_and_most_of_it_is_dead() {
        for (bytes, changes, live, pays) in [
            (SMALL_FILE, 1_000, 0, false),
            (SMALL_FILE + 1, 1_000, 0, true),
            (SMALL_FILE + 1, 1_000, 499, true),
            (SMALL_FILE + 1, 1_000, 500, false),
            (LARGEST_FILE, 1_000, usize::MAX, false),
        ] {
            assert_eq!(Extent { bytes, changes }.is_mostly_dead(live), pays, "{bytes} bytes, {live} of {changes} live");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        let other_version = "{\"version\":1,\"runtime\":\"engine 1\",\"budget\":{\"first\":[\"host\",8192],\"more\":[]}}\n";
        for text in ["", "\n\n", "{", "{\n", "[]\n", other_version, "\u{0}\u{0}\u{0}"] {
            std::fs::write(file.path(), text).expect("the folder is writable");
            assert!(file.read().is_err(), "{text:?} was read as {:?}", file.read());
        }
    }

    #[test]
    fn a_torn_last_line_is_dropped_without_a_word_and_a_damaged_one_costs_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        let before = replaced(&file, vec![record("a", Step::Load, Kind::Plain, 1)]);
        let start = usize::try_from(before.bytes).expect("small");
        file.write(Write::Append(vec![failed("b", 2)], before)).expect("the folder is writable").expect("as it was left");
        let whole = std::fs::read(file.path()).expect("just written");
        for torn in start + 1..whole.len() {
            std::fs::write(file.path(), &whole[..torn]).expect("the folder is writable");
            let found = file.read().expect("the first lines are sound");
            assert_eq!((models(&found), &found.damaged), (vec!["a"], &None), "torn at {torn}");
            assert_eq!(found.extent, None, "nothing may be added to half a line");
        }
        let zeros = [&whole[..], &[0; 700]].concat();
        std::fs::write(file.path(), zeros).expect("the folder is writable");
        assert_eq!(file.read().map(|found| (found.records.len(), found.damaged, found.extent)), Ok((2, None, None)), "space that was never filled");

        let middle = [&whole[..start - 30], b"\xff\xfe", &whole[start - 28..]].concat();
        let joined = [&whole[..start - 30], b"\n", &whole[start - 30..]].concat();
        for (case, bytes, lines) in [("no text", middle, 1), ("cut in two", joined, 2)] {
            std::fs::write(file.path(), bytes).expect("the folder is writable");
            let found = file.read().expect("the first line is sound");
            assert_eq!((models(&found), found.extent), (vec!["b"], None), "{case}");
            assert_eq!(found.damaged.map(|(lines, _)| lines), Some(lines), "{case}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_neither_read_nor_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        File::create(file.path()).and_then(|file| file.set_len(LARGEST_FILE + 1)).expect("a sparse file");
        assert!(file.read().is_err_and(|fault| fault.contains("bytes")));
        let long = |n: u64| {
            let mut record = record(&format!("m{n}"), Step::Load, Kind::Plain, n);
            Arc::make_mut(&mut record.failure).message = "x".repeat(4 << 20);
            record
        };
        let times = || file.read().expect("what is written can be read").records.into_iter().map(|record| record.failure.time.0).collect::<Vec<_>>();
        let mut extent = replaced(&file, (0..6).map(long).collect());
        assert_eq!(times(), [5, 4, 3], "the newest that fit");
        for n in 6..10 {
            extent = file.write(Write::Append(vec![Change::Failed(long(n))], extent)).expect("the folder is writable").expect("it fits");
        }
        assert_eq!(file.write(Write::Append(vec![Change::Failed(long(10))], extent)).expect("no fault"), None, "it would be too large");
        assert_eq!(times(), [9, 8, 7, 6, 5, 4, 3]);
    }

    #[test]
    fn what_another_runtime_or_other_memory_may_cure_is_forgotten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out_of_memory = Kind::OutOfMemory { after_eviction: true };
        let records = [
            ("fetch", Step::Fetch, Kind::Plain),
            ("admit", Step::Admit, Kind::Plain),
            ("load", Step::Load, Kind::Plain),
            ("oom", Step::Load, out_of_memory),
        ];
        let records: Vec<_> = records.map(|(model, step, kind)| record(model, step, kind, 1)).into();
        replaced(&file_in(folder.path()), records);
        for (runtime, memory, kept) in
            [("engine 1", 8, &["admit", "fetch", "load", "oom"][..]), ("engine 2", 8, &["fetch"]), ("engine 1", 9, &["fetch", "load"])]
        {
            let found = FailureFile::in_folder(folder.path(), runtime.to_owned(), budget(memory)).read().expect("sound");
            let mut models = models(&found);
            models.sort_unstable();
            assert_eq!((models.as_slice(), found.cured), (kept, 4 - kept.len()), "{runtime}, {memory} KiB");
            assert_eq!(found.extent.is_some(), kept.len() == 4, "nothing is added below other conditions: {runtime}, {memory} KiB");
        }
    }
}
