//! What went wrong here lately, per model: shown for a while, and answered at once for a short while where trying again
//! so soon is of no use or costs others their copies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_types::{Failure, ModelId, Retry};

#[derive(Debug)]
struct Record {
    failure: Arc<Failure>,
    at: Instant,
    /// How long after `at` the failure is the answer; doubles with each failure in a row.
    quiet: Duration,
    /// The runtime had no memory for the model. It may have some again at any time, but each try takes long.
    out_of_memory: bool,
    /// It had none even after a copy had been evicted for this model.
    eviction_was_no_help: bool,
}

/// What kind of failure it was, as far as the next try is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    OutOfMemory {
        /// A copy had been evicted to help.
        after_eviction: bool,
    },
}

/// The failures that still count. One per model, so it is bounded by the models that were tried lately.
#[derive(Debug)]
pub(crate) struct Failures {
    kept: Duration,
    quiet: (Duration, Duration),
    records: HashMap<ModelId, Record>,
}

impl Failures {
    pub(crate) fn new(kept: Duration, quiet: (Duration, Duration)) -> Self {
        Failures { kept, quiet, records: HashMap::new() }
    }

    pub(crate) fn note(&mut self, failure: Arc<Failure>, kind: Kind, now: Instant) {
        let (first, longest) = self.quiet;
        let (quiet, no_help_before) = match self.records.get(&failure.model) {
            Some(before) => (before.quiet.saturating_mul(2).min(longest), before.eviction_was_no_help),
            None => (first, false),
        };
        let out_of_memory = matches!(kind, Kind::OutOfMemory { .. });
        let eviction_was_no_help = no_help_before || kind == Kind::OutOfMemory { after_eviction: true };
        self.records.insert(failure.model.clone(), Record { failure, at: now, quiet, out_of_memory, eviction_was_no_help });
    }

    pub(crate) fn clear(&mut self, model: &ModelId) {
        self.records.remove(model);
    }

    /// The failure that counts against `model`, for reports.
    pub(crate) fn of(&self, model: &ModelId) -> Option<Arc<Failure>> {
        self.records.get(model).map(|record| Arc::clone(&record.failure))
    }

    /// True when a copy was evicted for `model` lately because the runtime was out of memory, and it was of no use.
    pub(crate) fn eviction_was_no_help(&self, model: &ModelId) -> bool {
        self.records.get(model).is_some_and(|record| record.eviction_was_no_help)
    }

    /// The failure to answer with instead of trying again: only a change can cure it (or memory that was not there), and
    /// it is fresh.
    pub(crate) fn answer(&self, model: &ModelId, now: Instant) -> Option<Arc<Failure>> {
        let record = self.records.get(model)?;
        let fresh = now.saturating_duration_since(record.at) < record.quiet;
        ((record.failure.retry == Retry::AfterChange || record.out_of_memory) && fresh).then(|| Arc::clone(&record.failure))
    }

    /// Forgets what is too old and says of which models.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<ModelId> {
        let kept = self.kept;
        self.records.extract_if(|_, record| now.saturating_duration_since(record.at) >= kept).map(|(model, _)| model).collect()
    }
}
