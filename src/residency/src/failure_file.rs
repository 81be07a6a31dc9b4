//! The file in which failures outlive the process: a line that says under what conditions they happened, then a line per
//! failure.
//!
//! The file is a convenience, never a truth: without it the models that failed are tried once more. It is replaced as a
//! whole, so it is never half-written; a line that cannot be read costs that one failure. Which failures still count is
//! left to `failures`, when to write to `keeping`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::{Footprint, Step};
use serde::{Deserialize, Serialize};

use crate::failures::Record;
use crate::file;

const VERSION: u32 = 1;
/// A larger file is not ours, and is not written either: some 80,000 failures. The newest come first.
const LARGEST_FILE: u64 = 32 << 20;

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

/// What a file was found to hold.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The failures, also those that are too old by now.
    pub(crate) records: Vec<Record>,
    /// How many lines cannot be read, and what is wrong with the first of them.
    pub(crate) damaged: Option<(usize, String)>,
    /// How many failures count no longer, since the runtime or its memory is another one now.
    pub(crate) cured: usize,
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
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(fault) => return Err(fault.to_string()),
        };
        if size > LARGEST_FILE {
            return Err(format!("it has {size} bytes, at most {LARGEST_FILE} are read"));
        }
        self.parse(&std::fs::read(&self.path).map_err(|fault| fault.to_string())?)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Found, String> {
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let then: Conditions = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|fault| format!("its first line: {fault}"))?;
        if then.version != VERSION {
            return Err(format!("it has version {}, this program reads {VERSION}", then.version));
        }
        let mut found = Found::default();
        for line in lines {
            match serde_json::from_slice::<Record>(line) {
                Ok(record) if then.may_still_hold(&record, &self.conditions) => found.records.push(record),
                Ok(_) => found.cured += 1,
                Err(fault) => found.damaged.get_or_insert_with(|| (0, fault.to_string())).0 += 1,
            }
        }
        Ok(found)
    }

    /// Replaces the file. Blocking: for a blocking thread.
    pub(crate) fn write(&self, mut records: Vec<Record>) -> std::io::Result<()> {
        records.sort_by(|a, b| (b.failure.time, &a.failure.model).cmp(&(a.failure.time, &b.failure.model)));
        file::replace(&self.path, |file| {
            let mut line = serde_json::to_vec(&*self.conditions)?;
            let mut size = 0;
            for record in &records {
                line.push(b'\n');
                file.write_all(&line)?;
                size += line.len() as u64;
                line.clear();
                serde_json::to_writer(&mut line, record)?;
                if size + line.len() as u64 >= LARGEST_FILE {
                    return Ok(());
                }
            }
            line.push(b'\n');
            file.write_all(&line)
        })
    }
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

    #[test]
    fn what_was_written_is_read_back_newest_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(&folder.path().join("new"));
        assert_eq!(file.read(), Ok(Found::default()), "no file is no fault");
        for count in [3, 1, 0] {
            let records: Vec<_> = (0..count).map(|n| record(&format!("m{n}"), Step::Load, Kind::Plain, 7 + n)).collect();
            file.write(records.clone()).expect("the folder is writable");
            let found = file.read().expect("just written");
            assert_eq!(found.records, records.into_iter().rev().collect::<Vec<_>>());
            assert_eq!((found.damaged, found.cured), (None, 0));
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_a_damaged_line_costs_one_failure() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        for text in ["", "\n\n", "{", "[]", r#"{"version":9,"runtime":"engine 1","budget":{"first":["host",8192],"more":[]}}"#, "\u{0}\u{0}\u{0}"] {
            std::fs::write(file.path(), text).expect("the folder is writable");
            assert!(file.read().is_err(), "{text:?} was read as {:?}", file.read());
        }
        file.write(vec![record("a", Step::Load, Kind::Plain, 2), record("b", Step::Load, Kind::Plain, 1)]).expect("the folder is writable");
        let whole = std::fs::read(file.path()).expect("just written");
        for (case, bytes) in
            [("torn", whole[..whole.len() - 9].to_vec()), ("no text", [&whole[..whole.len() - 60], b"\xff\xfe", &whole[whole.len() - 58..]].concat())]
        {
            std::fs::write(file.path(), bytes).expect("the folder is writable");
            let found = file.read().expect("the first lines are sound");
            assert_eq!(found.records, [record("a", Step::Load, Kind::Plain, 2)], "{case}");
            assert_eq!(found.damaged.map(|(lines, _)| lines), Some(1), "{case}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_neither_read_nor_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = file_in(folder.path());
        std::fs::File::create(file.path()).and_then(|file| file.set_len(LARGEST_FILE + 1)).expect("a sparse file");
        assert!(file.read().is_err_and(|fault| fault.contains("bytes")));
        let long = |n: u64| {
            let mut record = record(&format!("m{n}"), Step::Load, Kind::Plain, n);
            Arc::make_mut(&mut record.failure).message = "x".repeat(4 << 20);
            record
        };
        file.write((0..10).map(long).collect()).expect("the folder is writable");
        let models: Vec<_> = file.read().expect("what is written can be read").records.into_iter().map(|record| record.failure.time.0).collect();
        assert_eq!(models, [9, 8, 7, 6, 5, 4, 3], "the newest that fit");
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
        file_in(folder.path()).write(records).expect("the folder is writable");
        for (runtime, memory, kept) in
            [("engine 1", 8, &["admit", "fetch", "load", "oom"][..]), ("engine 2", 8, &["fetch"]), ("engine 1", 9, &["fetch", "load"])]
        {
            let found = FailureFile::in_folder(folder.path(), runtime.to_owned(), budget(memory)).read().expect("sound");
            let models: Vec<_> = found.records.iter().map(|record| record.failure.model.as_str()).collect();
            assert_eq!((models.as_slice(), found.cured), (kept, 4 - kept.len()), "{runtime}, {memory} KiB");
        }
    }
}
