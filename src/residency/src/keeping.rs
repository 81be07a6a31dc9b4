//! Failures on their way to the disk: written as soon as they change, and before anybody is told.
//!
//! What a status said must stay true when the process is killed the moment after. So a report of a model whose record was
//! changed (a failure, a success after one, the end of the registration) waits for the write that takes that change along.
//! One write at a time runs beside the owner task; what changes meanwhile goes with the next one, which begins at once
//! when that one ends. So a disk that is slow has more changes per write, not more waiting.
//!
//! Invariants:
//! - A report waits for the changes that it shows and for none that comes later: a model that fails faster than the disk
//!   writes is reported with each write.
//! - The reports of one model keep their order.
//! - No report waits longer than [`PATIENCE`]. A disk that is full or does not answer costs the memory of failures across
//!   a restart and nothing else.
//! - One more change costs the same however many failures there are. Only replacing the file takes all of them, after at
//!   least as many changes, at the start, and when the disk could not be written to.

use std::collections::HashMap;
use std::io::Result;
use std::time::{Duration, Instant};

use berth_types::{CopyReport, Footprint, ModelId};
use tracing::{info, warn};

use crate::failure_file::{Change, Extent, FailureFile, Write};
use crate::failures::Failures;
use crate::owner::Owner;
use crate::reports::News;

/// Longer than this no report waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// What may not be said of a model yet.
#[derive(Debug)]
struct Held {
    /// When the first of the changes was made that it waits for.
    since: Instant,
    news: News,
}

/// Models whose records changed; `None` where nothing waits for the disk, which did not answer in time.
type Changed = HashMap<ModelId, Option<Held>>;

/// A write under way.
#[derive(Debug)]
struct Writing {
    about: Changed,
    began: Instant,
    /// When the first of the reports that wait for it waits no longer; `None` when none waits (any more).
    patience_ends: Option<Instant>,
}

/// What is on disk, what is not, and who waits for that.
#[derive(Debug)]
pub(crate) struct Keeping {
    /// `None` when nothing is kept.
    file: Option<FailureFile>,
    /// What the file holds; `None` when it has to be written as a whole.
    extent: Option<Extent>,
    /// It is to be written, changes or not.
    due: bool,
    /// What no write has taken along yet.
    changed: Changed,
    writing: Option<Writing>,
    /// Before this no write begins: the last one failed.
    next_write: Instant,
    /// The last write failed, or takes too long: no report waits.
    broken: bool,
}

impl Keeping {
    pub(crate) fn new(file: Option<FailureFile>, now: Instant) -> Self {
        Keeping { file, extent: None, due: false, changed: HashMap::new(), writing: None, next_write: now, broken: false }
    }

    /// The record of `model` is another one now.
    pub(crate) fn note_change(&mut self, model: &ModelId, now: Instant) {
        if self.file.is_none() {
            return;
        }
        let held = self.changed.entry(model.clone()).or_default();
        if held.is_none() && !self.broken {
            *held = Some(Held { since: now, news: News::default() });
        }
    }

    /// Gives `report` back when it may be said now; otherwise it is kept until then.
    pub(crate) fn hold_back(&mut self, report: CopyReport) -> Option<CopyReport> {
        let writing = self.writing.as_mut().and_then(|writing| writing.about.get_mut(&report.model)?.as_mut());
        match self.changed.get_mut(&report.model).and_then(Option::as_mut).or(writing) {
            Some(held) => held.news.add(report),
            None => return Some(report),
        }
        None
    }

    fn holds_back(&self, model: &ModelId) -> bool {
        let holds = |changed: &Changed| changed.get(model).is_some_and(Option::is_some);
        holds(&self.changed) || self.writing.as_ref().is_some_and(|writing| holds(&writing.about))
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The next write need not wait until the disk had time to recover.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.next_write = now;
    }

    /// When time alone makes something due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.writing {
            Some(writing) => (!self.broken).then(|| writing.patience_ends.unwrap_or(writing.began + PATIENCE)),
            None => (self.due || !self.changed.is_empty()).then_some(self.next_write),
        }
    }

    /// The write that begins now, if there is something to write and none is under way.
    fn begin(&mut self, failures: &Failures, now: Instant) -> Option<(FailureFile, Write)> {
        if self.writing.is_some() || now < self.next_write || (self.changed.is_empty() && !self.due) {
            return None;
        }
        let file = self.file.clone()?;
        let about = std::mem::take(&mut self.changed);
        let write = match self.extent.take() {
            Some(extent) if !extent.is_mostly_dead(failures.records().len()) => {
                let change = |model: &ModelId| failures.record(model).cloned().map_or_else(|| Change::Cleared(model.clone()), Change::Failed);
                Write::Append(about.keys().map(change).collect(), extent)
            }
            Some(_) | None => Write::Replace(failures.records().cloned().collect()),
        };
        self.due = false;
        let first = about.values().flatten().map(|held| held.since).min();
        self.writing = Some(Writing { about, began: now, patience_ends: first.map(|since| since + PATIENCE) });
        Some((file, write))
    }

    /// The write ended; after a fault the next one begins `recovery` later. What may be said now.
    fn end(&mut self, result: Result<Option<Extent>>, now: Instant, recovery: Duration) -> Vec<(ModelId, News)> {
        let Some(Writing { about, .. }) = self.writing.take() else { return Vec::new() };
        match result {
            Ok(Some(extent)) => {
                self.extent = Some(extent);
                if std::mem::take(&mut self.broken) {
                    info!("failures of models can be written again");
                }
                news_of(about)
            }
            Ok(None) => {
                self.due = true;
                self.put_back(about);
                Vec::new()
            }
            Err(fault) => {
                self.due = true;
                self.next_write = now + recovery;
                let mut news = news_of(about);
                news.extend(self.give_up(&fault.to_string()));
                news
            }
        }
    }

    /// These are still to be written, before what changed meanwhile.
    fn put_back(&mut self, about: Changed) {
        for (model, before) in about {
            let after = self.changed.entry(model).or_default();
            let later = match (before, after.take()) {
                (Some(mut before), Some(Held { mut news, .. })) => {
                    while let Some(report) = news.take() {
                        before.news.add(report);
                    }
                    Some(before)
                }
                (before, after) => before.or(after),
            };
            *after = later;
        }
    }

    /// Somebody may have waited for the disk for too long. What is said without it.
    fn lose_patience(&mut self, now: Instant) -> Vec<(ModelId, News)> {
        let Some(writing) = self.writing.as_mut().filter(|_| !self.broken) else { return Vec::new() };
        if writing.began + PATIENCE <= now {
            return self.give_up(&format!("no end of the write within {PATIENCE:?}"));
        }
        if writing.patience_ends.take_if(|ends| *ends <= now).is_none() {
            return Vec::new();
        }
        take_news(&mut writing.about)
    }

    /// Nothing waits for the disk any more. Logged once, not with each write that fails.
    fn give_up(&mut self, fault: &str) -> Vec<(ModelId, News)> {
        if !std::mem::replace(&mut self.broken, true) {
            let path = self.file.as_ref().map(FailureFile::path).unwrap_or(std::path::Path::new(""));
            warn!(path = %path.display(), error = %fault, "failures of models cannot be written: a restart now would forget them");
        }
        self.stop_holding_back()
    }

    /// All that is held back, the older news of a model before the newer.
    fn stop_holding_back(&mut self) -> Vec<(ModelId, News)> {
        let mut news = self.writing.as_mut().map(|writing| take_news(&mut writing.about)).unwrap_or_default();
        news.extend(take_news(&mut self.changed));
        news
    }
}

fn news_of(changed: Changed) -> Vec<(ModelId, News)> {
    changed.into_iter().filter_map(|(model, held)| Some((model, held?.news))).collect()
}

fn take_news(changed: &mut Changed) -> Vec<(ModelId, News)> {
    changed.iter_mut().filter_map(|(model, held)| Some((model.clone(), held.take()?.news))).collect()
}

impl Owner {
    /// Takes in the failures of before the restart and reports them. Blocking, for the start.
    pub(crate) fn restore_failures(&mut self) {
        let Some(file) = &self.keeping.file else { return };
        let found = match file.read() {
            Ok(found) => found,
            Err(fault) => {
                warn!(path = %file.path().display(), error = %fault, "failures of models cannot be read, starting without");
                self.keeping.due = true;
                return;
            }
        };
        if let Some((lines, fault)) = &found.damaged {
            warn!(path = %file.path().display(), lines, error = %fault, "some failures of models cannot be read, starting without them");
        }
        let is_new = found == crate::failure_file::Found::default();
        let all_as_they_were = self.failures.restore(found.records, self.clock.wall(), self.clock.now());
        self.keeping.extent = found.extent.filter(|_| all_as_they_were);
        self.keeping.due = self.keeping.extent.is_none() && !is_new;
        let models: Vec<ModelId> = self.failures.records().map(|record| record.failure.model.clone()).collect();
        if !models.is_empty() {
            info!(models = models.len(), "failures of before the restart still count");
        }
        for model in models {
            self.report(&model);
        }
    }

    /// Nothing counts against `model` any more.
    pub(crate) fn clear_failure(&mut self, model: &ModelId) {
        if self.failures.clear(model) {
            self.keeping.note_change(model, self.clock.now());
        }
    }

    /// Begins a write, if there is something to write and none is under way.
    pub(crate) fn keep_failures(&mut self) {
        if let Some((file, write)) = self.keeping.begin(&self.failures, self.clock.now()) {
            self.work.keep_failures(file, write);
        }
    }

    pub(crate) fn on_failures_kept(&mut self, result: Result<Option<Extent>>) {
        let news = self.keeping.end(result, self.clock.now(), self.config.audit);
        self.say(news);
    }

    pub(crate) fn look_at_patience(&mut self, now: Instant) {
        let news = self.keeping.lose_patience(now);
        self.say(news);
    }

    /// Says what is held back: the process ends, and the disk does not answer.
    pub(crate) fn say_what_is_held_back(&mut self) {
        let news = self.keeping.stop_holding_back();
        self.say(news);
    }

    fn say(&mut self, news: Vec<(ModelId, News)>) {
        for (model, mut news) in news {
            // A change of which nobody made a report yet.
            if news.is_empty() && !self.keeping.holds_back(&model) {
                self.report(&model);
            }
            while let Some(report) = news.take() {
                self.shared.board.publish(report);
            }
        }
    }
}

/// The file for a process that keeps its state in `folder`.
pub(crate) fn file_of(folder: Option<&std::path::Path>, runtime: &berth_adapters::RuntimeInfo, budget: &Footprint) -> Option<FailureFile> {
    let runtime = format!("{} {}", runtime.name, runtime.version);
    folder.map(|folder| FailureFile::in_folder(folder, runtime, budget.clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_telemetry::Clock;
    use berth_types::{ByteSize, CopyState, Failure, Location, Reason, Retry, Step, UnixMillis};

    use super::*;
    use crate::failures::Kind;

    const RECOVERY: Duration = Duration::from_secs(5);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A disk whose writes end when a test says so, and models that fail.
    struct Rig {
        keeping: Keeping,
        failures: Failures,
        start: Instant,
        /// Writes that began, each with how many changes or records it takes along.
        writes: Vec<(&'static str, usize)>,
        written: Option<Extent>,
        folder: tempfile::TempDir,
    }

    impl Rig {
        fn new() -> Self {
            let (folder, start) = (tempfile::tempdir().expect("a temporary folder"), Clock::system().now());
            let file = FailureFile::in_folder(folder.path(), "engine 1".to_owned(), Footprint::host(ByteSize::kib(8)));
            let failures = Failures::new(Duration::from_secs(900), (Duration::ZERO, Duration::ZERO), (Duration::ZERO, Duration::ZERO));
            Rig { keeping: Keeping::new(Some(file), start), failures, start, writes: Vec::new(), written: None, folder }
        }

        fn report(&mut self, model: &str, state: CopyState) -> Option<CopyReport> {
            let model = ModelId::new(model).expect("a test's id is valid");
            let failure = self.failures.of(&model);
            self.keeping.hold_back(CopyReport { model, state, failure, mended: false, last_used: None })
        }

        /// It is tried and fails; true when the end was said at once.
        fn fails(&mut self, model: &str, at: u64) -> bool {
            self.report(model, CopyState::Loading { since: UnixMillis(at) });
            let failure = Failure {
                reason: Reason::ModelLoadFailed,
                step: Step::Fetch,
                location: Location::of_pod_name("pod"),
                model: ModelId::new(model).expect("a test's id is valid"),
                message: "no".to_owned(),
                time: UnixMillis(at),
                retry: Retry::Later,
            };
            let now = self.start + millis(at);
            self.keeping.note_change(&failure.model, now);
            self.failures.note(Arc::new(failure), Kind::Plain, now);
            self.report(model, CopyState::Absent).is_some()
        }

        /// A turn of the owner: true when a write begins. It is carried out at once, but ends when the test says so.
        fn turn(&mut self, at: u64) -> bool {
            let Some((file, write)) = self.keeping.begin(&self.failures, self.start + millis(at)) else { return false };
            self.writes.push(match &write {
                Write::Append(changes, _) => ("append", changes.len()),
                Write::Replace(records) => ("replace", records.len()),
            });
            self.written = file.write(write).expect("the folder is writable");
            true
        }

        fn write_ends(&mut self, at: u64) -> Vec<(String, u64)> {
            said(self.keeping.end(Ok(self.written.take()), self.start + millis(at), RECOVERY))
        }

        fn patience_at(&mut self, at: u64) -> Vec<(String, u64)> {
            said(self.keeping.lose_patience(self.start + millis(at)))
        }

        fn wakes_at(&self) -> Option<u64> {
            let after = self.keeping.wake_at()?.saturating_duration_since(self.start);
            u64::try_from(after.as_millis()).ok()
        }
    }

    /// The reports, each as its model and the time of the failure in it; those that say that it loads are marked.
    fn said(news: Vec<(ModelId, News)>) -> Vec<(String, u64)> {
        let mut said = Vec::new();
        for (model, mut news) in news {
            while let Some(report) = news.take() {
                let loads = if matches!(report.state, CopyState::Loading { .. }) { " loads" } else { "" };
                said.push((format!("{model}{loads}"), report.failure.map_or(0, |failure| failure.time.0)));
            }
        }
        said.sort();
        said
    }

    fn of(said: &[(&str, u64)]) -> Vec<(String, u64)> {
        said.iter().map(|(model, time)| ((*model).to_owned(), *time)).collect()
    }

    #[test]
    fn a_model_that_fails_faster_than_the_disk_writes_is_reported_with_each_write() {
        let mut rig = Rig::new();
        let mut at = 0;
        assert!(!rig.fails("m", at) && rig.turn(at));
        for _ in 0..10 {
            let failed_before = at;
            for _ in 0..7 {
                at += 1;
                assert!(!rig.fails("m", at) && !rig.turn(at), "while one write is under way no other begins");
            }
            // Its next load began before the write ended.
            rig.report("m", CopyState::Loading { since: UnixMillis(at) });
            assert_eq!(rig.write_ends(at), of(&[("m", failed_before), ("m loads", failed_before)]));
            assert!(rig.turn(at), "the next write begins at once");
        }
        assert_eq!(rig.writes[..3], [("replace", 1), ("append", 1), ("append", 1)]);
    }

    #[test]
    fn what_changes_during_a_write_shares_the_next_one_which_begins_at_once() {
        let mut rig = Rig::new();
        rig.fails("first", 0);
        assert!(rig.turn(0));
        for n in 0..300 {
            assert!(!rig.fails(&format!("m{n}"), 1) && !rig.turn(1));
        }
        assert_eq!(rig.write_ends(2), of(&[("first", 0)]));
        assert!(rig.turn(2));
        assert_eq!(rig.write_ends(3).len(), 300);
        assert!(!rig.turn(3), "nothing is left to write");
        assert_eq!((rig.writes.as_slice(), rig.wakes_at()), (&[("replace", 1), ("append", 300)][..], None));
    }

    #[test]
    fn no_report_waits_longer_than_a_second_in_all() {
        let mut rig = Rig::new();
        rig.fails("a", 0);
        assert!(rig.turn(0));
        rig.fails("b", 100);
        rig.fails("b", 500);
        assert_eq!((rig.write_ends(700), rig.turn(700)), (of(&[("a", 0)]), true));
        assert_eq!(rig.wakes_at(), Some(1_100), "a second after its first failure, not after the write began");
        assert_eq!(rig.patience_at(1_099), of(&[]));
        assert_eq!(rig.patience_at(1_100), of(&[("b", 500)]));
        assert!(!rig.keeping.broken, "the disk answers, if slowly");
        // What comes now waits for its own time.
        assert!(!rig.fails("c", 1_200) && rig.report("b", CopyState::Unloading).is_some());
        assert_eq!(rig.wakes_at(), Some(1_700));
        assert_eq!(rig.patience_at(1_700), of(&[("c", 1_200)]), "the write takes a second");
        assert!(rig.keeping.broken && rig.fails("d", 1_800), "nothing waits for a disk that does not answer");
        assert_eq!(rig.wakes_at(), None);
        assert_eq!(rig.write_ends(2_000), of(&[]), "all was said");
        assert!(rig.turn(2_000) && !rig.fails("c", 2_001), "it answers again");
        assert_eq!(rig.writes, [("replace", 1), ("append", 1), ("append", 2)]);
    }

    #[test]
    fn after_a_fault_everything_is_written_again_and_the_older_report_comes_first() {
        let mut rig = Rig::new();
        rig.fails("m", 1);
        assert!(rig.turn(1));
        rig.fails("m", 2);
        let news = rig.keeping.end(Err(std::io::ErrorKind::StorageFull.into()), rig.start + millis(3), RECOVERY);
        let times = news.into_iter().map(|(_, mut news)| news.take().and_then(|report| report.failure).map(|failure| failure.time.0));
        assert_eq!(times.collect::<Vec<_>>(), [Some(1), Some(2)]);
        assert!(rig.fails("n", 4) && !rig.turn(4));
        assert_eq!(rig.wakes_at(), Some(5_003));
        assert!(rig.turn(5_003));
        assert_eq!(rig.writes[1..], [("replace", 2)]);
    }

    #[test]
    fn a_file_that_is_not_as_it_was_left_is_replaced_before_anything_is_said() {
        let mut rig = Rig::new();
        rig.fails("a", 0);
        assert!(rig.turn(0));
        rig.write_ends(1);
        std::fs::remove_file(rig.folder.path().join("failures.jsonl")).expect("it is there");
        rig.fails("b", 2);
        assert!(rig.turn(2));
        rig.fails("b", 3);
        assert_eq!((rig.write_ends(4), rig.turn(4)), (of(&[]), true));
        assert_eq!(rig.wakes_at(), Some(1_002), "its patience began with its first change");
        assert_eq!(rig.write_ends(5), of(&[("b", 3)]));
        assert_eq!(rig.writes, [("replace", 1), ("append", 1), ("replace", 2)]);
    }

    #[test]
    fn a_file_of_dead_lines_is_replaced_now_and_then() {
        let mut rig = Rig::new();
        let mut largest = 0;
        for n in 0..2_000 {
            rig.fails("m", n);
            assert!(rig.turn(n));
            rig.write_ends(n);
            let size = std::fs::metadata(rig.folder.path().join("failures.jsonl")).expect("it is there").len();
            largest = largest.max(size);
        }
        let replaced = rig.writes.iter().filter(|(kind, _)| *kind == "replace").count();
        assert!(largest < 66 << 10, "it grew to {largest} bytes");
        assert!(replaced > 1 && replaced < rig.writes.len() / 100, "replaced {replaced} times in {} writes", rig.writes.len());
    }
}
