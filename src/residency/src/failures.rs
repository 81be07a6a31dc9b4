//! What went wrong here lately, per model: shown for a while, and answered at once for a short while, since trying again
//! so soon is of no use, costs others their copies, or keeps a store busy that has enough to do.
//!
//! That while doubles with each failure in a row. It is short where the cause passes by itself, and spread a little then,
//! so that what failed together is not tried again together. Success ends it, another version has none, and where other
//! settings of the storage may be the cure their change does.
//!
//! A model that fails again and again has a line in the log about once a second, with the number of times.
//!
//! All times run on the monotonic clock. Only across a restart the time of the failure says how much of them is left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_plan::background::{spread, was_for_want_of_files};
use berth_types::{Failure, ModelId, Retry, UnixMillis};
use serde::{Deserialize, Serialize};

/// The shortest time between two lines in the log about one model.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// The last failure of a model, and what those before it mean for the next try: all that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) failure: Arc<Failure>,
    /// How long the failure is the answer, before it is spread; doubles with each failure in a row.
    quiet: Duration,
    /// The runtime had no memory for the model. It may have some again at any time, but each try takes long.
    out_of_memory: bool,
    /// It had none even after a copy had been evicted for this model.
    eviction_was_no_help: bool,
    /// The model has ended the runtime: each try costs all others their copies.
    #[serde(default)]
    ended_the_runtime: bool,
}

impl Record {
    pub(crate) fn new(failure: Arc<Failure>, kind: Kind, quiet: Duration, no_help_before: bool) -> Self {
        let eviction_was_no_help = no_help_before || kind == Kind::OutOfMemory { after_eviction: true };
        let (out_of_memory, ended_the_runtime) = (matches!(kind, Kind::OutOfMemory { .. }), kind == Kind::EndedTheRuntime);
        Record { failure, quiet, out_of_memory, eviction_was_no_help, ended_the_runtime }
    }

    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    pub(crate) fn has_ended_the_runtime(&self) -> bool {
        self.ended_the_runtime
    }

    /// Waiting alone may help.
    fn passes(&self) -> bool {
        self.failure.retry == Retry::Later && !self.out_of_memory
    }

    fn answers_for(&self) -> Duration {
        if self.passes() { spread(self.quiet, &self.failure.model, self.failure.location.as_str()) } else { self.quiet }
    }
}

#[derive(Debug)]
struct Kept {
    record: Record,
    quiet_until: Instant,
    expires: Instant,
    /// How often files had been let go of when it found the disk full; `None` when that is not what it failed for.
    found_disk_full: Option<u64>,
    /// Its cause may have been mended since.
    mended: bool,
    /// When the log last had a line about it.
    logged: Option<Instant>,
    /// Failures since then.
    unlogged: u32,
}

impl Kept {
    fn take_unlogged(&mut self, now: Instant) -> Option<u32> {
        if self.unlogged == 0 || self.logged.is_some_and(|logged| now < logged + BETWEEN_LINES) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// What kind of failure it was, as far as the next try is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    OutOfMemory {
        /// A copy had been evicted to help.
        after_eviction: bool,
    },
    /// The runtime did not survive the model. As long as that counts no caller's wish is another try.
    EndedTheRuntime,
    DiskFull {
        /// How often files had been let go of by then.
        freed: u64,
    },
}

/// The failures that still count. One per model, so it is bounded by the models that were tried lately.
#[derive(Debug)]
pub(crate) struct Failures {
    kept: Duration,
    quiet: (Duration, Duration),
    quiet_passing: (Duration, Duration),
    records: HashMap<ModelId, Kept>,
}

impl Failures {
    pub(crate) fn new(kept: Duration, quiet: (Duration, Duration), quiet_passing: (Duration, Duration)) -> Self {
        Failures { kept, quiet, quiet_passing, records: HashMap::new() }
    }

    /// Takes it in; how many failures there were since the last line in the log, when it is time for one.
    pub(crate) fn note(&mut self, failure: Arc<Failure>, kind: Kind, now: Instant) -> Option<u32> {
        let before = self.records.get(&failure.model);
        let (logged, unlogged) = before.map_or((None, 0), |kept| (kept.logged, kept.unlogged));
        let model = failure.model.clone();
        let mut record = Record::new(failure, kind, Duration::ZERO, before.is_some_and(|kept| kept.record.eviction_was_no_help));
        let (first, longest) = self.quiet_of(&record);
        let in_a_row = before.filter(|kept| kept.record.passes() == record.passes());
        record.quiet = in_a_row.map_or(first, |kept| kept.record.quiet.saturating_mul(2).max(first).min(longest));
        self.insert(record, Duration::ZERO, now);
        let kept = self.records.get_mut(&model)?;
        (kept.logged, kept.unlogged) = (logged, unlogged.saturating_add(1));
        if let Kind::DiskFull { freed } = kind {
            kept.found_disk_full = Some(freed);
        }
        kept.take_unlogged(now)
    }

    /// The failures that no line in the log tells of yet although there was time enough, with how many there were of each.
    pub(crate) fn take_unlogged(&mut self, now: Instant) -> Vec<(Arc<Failure>, u32)> {
        let unlogged = |kept: &mut Kept| Some((Arc::clone(&kept.record.failure), kept.take_unlogged(now)?));
        self.records.values_mut().filter_map(unlogged).collect()
    }

    /// At first, and at most.
    fn quiet_of(&self, record: &Record) -> (Duration, Duration) {
        match record {
            Record { ended_the_runtime: true, .. } => (self.kept, self.kept),
            record if record.passes() => self.quiet_passing,
            _ => self.quiet,
        }
    }

    fn insert(&mut self, record: Record, age: Duration, now: Instant) {
        let (quiet_until, expires) = (now + record.answers_for().saturating_sub(age), now + self.kept.saturating_sub(age));
        let kept = Kept { record, quiet_until, expires, found_disk_full: None, mended: false, logged: None, unlogged: 0 };
        self.records.insert(kept.record.failure.model.clone(), kept);
    }

    /// Takes in failures of before a restart, with what is left of their time at `wall`, which is `now`. One that says to
    /// come from the future happened now: the clock was wrong then, or is wrong now. True when all of them still count as
    /// they are.
    pub(crate) fn restore(&mut self, records: Vec<Record>, wall: UnixMillis, now: Instant) -> bool {
        let mut all_as_they_were = true;
        for mut record in records {
            let age = wall.since(record.failure.time);
            let known = self.records.get(&record.failure.model);
            if age >= self.kept || known.is_some_and(|known| known.record.failure.time >= record.failure.time) {
                all_as_they_were = false;
                continue;
            }
            if record.failure.time > wall {
                Arc::make_mut(&mut record.failure).time = wall;
                all_as_they_were = false;
            }
            record.quiet = record.quiet.min(self.quiet_of(&record).1);
            self.insert(record, age, now);
        }
        all_as_they_were
    }

    /// True when there was something to forget.
    pub(crate) fn clear(&mut self, model: &ModelId) -> bool {
        self.records.remove(model).is_some()
    }

    /// All that count.
    pub(crate) fn records(&self) -> impl ExactSizeIterator<Item = &Record> {
        self.records.values().map(|kept| &kept.record)
    }

    pub(crate) fn record(&self, model: &ModelId) -> Option<&Record> {
        self.records.get(model).map(|kept| &kept.record)
    }

    /// The failure that counts against `model`, for reports.
    pub(crate) fn of(&self, model: &ModelId) -> Option<Arc<Failure>> {
        self.records.get(model).map(|kept| Arc::clone(&kept.record.failure))
    }

    /// True when a copy was evicted for `model` lately because the runtime was out of memory, and it was of no use.
    pub(crate) fn eviction_was_no_help(&self, model: &ModelId) -> bool {
        self.records.get(model).is_some_and(|kept| kept.record.eviction_was_no_help)
    }

    /// How often files had been let go of when `model` found the disk full, if that is what it failed for.
    pub(crate) fn found_disk_full(&self, model: &ModelId) -> Option<u64> {
        self.records.get(model)?.found_disk_full
    }

    /// The failure to answer with instead of trying again: it is fresh.
    pub(crate) fn answer(&self, model: &ModelId, now: Instant) -> Option<Arc<Failure>> {
        let Kept { record, quiet_until, .. } = self.records.get(model)?;
        (now < *quiet_until).then(|| Arc::clone(&record.failure))
    }

    /// The storage configuration has changed: what failed for want of its files may be tried at once, and its quiet times
    /// begin anew. Of which models that is so.
    pub(crate) fn mend(&mut self, now: Instant) -> Vec<ModelId> {
        let mut mended = Vec::new();
        for (model, kept) in &mut self.records {
            if was_for_want_of_files(&kept.record.failure) {
                (kept.quiet_until, kept.record.quiet, kept.mended) = (now, Duration::ZERO, true);
                mended.push(model.clone());
            }
        }
        mended.sort_unstable();
        mended
    }

    /// Whether what `model` failed for may have been mended since.
    pub(crate) fn was_mended(&self, model: &ModelId) -> bool {
        self.records.get(model).is_some_and(|kept| kept.mended)
    }

    /// Forgets what is too old and says of which models.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<ModelId> {
        self.records.extract_if(|_, kept| now >= kept.expires).map(|(model, _)| model).collect()
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::Clock;
    use berth_types::{Location, Reason, Step};

    use super::*;

    const MINUTE: u64 = 60_000;
    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
    const NOT_QUIET: (Duration, Duration) = (Duration::ZERO, Duration::ZERO);

    fn record(model: &str, time: UnixMillis) -> Record {
        let failure = Failure {
            reason: Reason::ModelLoadFailed,
            step: Step::Load,
            location: Location::of_pod_name("pod"),
            model: ModelId::new(model).expect("a test's id is valid"),
            message: "no".to_owned(),
            time,
            retry: Retry::AfterChange,
        };
        Record::new(Arc::new(failure), Kind::Plain, Duration::from_secs(60), false)
    }

    #[test]
    fn after_a_restart_the_time_of_the_failure_says_how_long_it_still_counts() {
        let secs = Duration::from_secs;
        for (case, time, shown, quiet_for, counts_for, unchanged) in [
            ("just now", NOW.0, Some(NOW.0), 60, 900, true),
            ("half a minute ago", NOW.0 - MINUTE / 2, Some(NOW.0 - MINUTE / 2), 30, 870, true),
            ("ten minutes ago", NOW.0 - 10 * MINUTE, Some(NOW.0 - 10 * MINUTE), 0, 300, true),
            ("a quarter of an hour ago", NOW.0 - 15 * MINUTE, None, 0, 0, false),
            ("in 1970", 0, None, 0, 0, false),
            ("a second ahead", NOW.0 + 1_000, Some(NOW.0), 60, 900, false),
            ("at the end of time", u64::MAX, Some(NOW.0), 60, 900, false),
        ] {
            let now = Clock::system().now();
            let mut failures = Failures::new(secs(900), (secs(10), secs(60)), (secs(1), secs(30)));
            let model = ModelId::new("m").expect("valid");
            assert_eq!(failures.restore(vec![record("m", UnixMillis(time))], NOW, now), unchanged, "{case}");
            assert_eq!(failures.of(&model).map(|failure| failure.time.0), shown, "{case}");
            let ends = |left: u64, at: Duration| if left > 0 { at < secs(left) } else { false };
            for at in [0, 1, 29, 30, 59, 60].map(secs) {
                assert_eq!(failures.answer(&model, now + at).is_some(), ends(quiet_for, at), "{case}, {at:?} later");
            }
            for at in [0, 299, 300, 869, 870, 899].map(secs) {
                failures.expire(now + at);
                assert_eq!(failures.of(&model).is_some(), ends(counts_for, at), "{case}, {at:?} later");
            }
        }
    }

    #[test]
    fn of_two_failures_of_one_model_the_newer_one_is_restored() {
        for times in [[NOW.0 - 2, NOW.0 - 1], [NOW.0 - 1, NOW.0 - 2]] {
            let mut failures = Failures::new(Duration::from_secs(900), NOT_QUIET, NOT_QUIET);
            failures.restore(times.map(|time| record("m", UnixMillis(time))).into(), NOW, Clock::system().now());
            assert_eq!(failures.records().map(|record| record.failure.time.0).collect::<Vec<_>>(), [NOW.0 - 1]);
        }
    }

    #[test]
    fn a_model_that_fails_again_and_again_is_logged_once_a_second_with_the_number_of_times() {
        let start = Clock::system().now();
        let mut failures = Failures::new(Duration::from_secs(900), NOT_QUIET, NOT_QUIET);
        let mut note = |model: &str, at: u64| failures.note(record(model, NOW).failure, Kind::Plain, start + Duration::from_millis(at));
        for (at, line) in [(0, Some(1)), (1, None), (999, None), (1_000, Some(3)), (1_001, None), (2_500, Some(2)), (3_400, None)] {
            assert_eq!(note("m", at), line, "at {at} ms");
        }
        assert_eq!(note("other", 1), Some(1));
        for (at, lines) in [(3_499, vec![]), (3_500, vec![("m", 1)]), (9_000, vec![])] {
            let left = failures.take_unlogged(start + Duration::from_millis(at));
            assert_eq!(left.iter().map(|(failure, times)| (failure.model.as_str(), *times)).collect::<Vec<_>>(), lines, "at {at} ms");
        }
    }

    #[test]
    fn a_failure_takes_what_the_crate_says() {
        let in_tables = std::mem::size_of::<(ModelId, Kept)>() + std::mem::size_of::<(ModelId, berth_types::CopyReport)>();
        let shared = 2 * std::mem::size_of::<usize>() + std::mem::size_of::<Failure>();
        // A hash table may be half empty, and has a byte of its own per place.
        assert!(in_tables * 2 + shared <= 600, "{in_tables} and {shared}");
    }
}
