//! What went wrong here lately, per model: shown for a while, and answered at once for a short while.

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

    pub(crate) fn note(&mut self, failure: Arc<Failure>, now: Instant) {
        let (first, longest) = self.quiet;
        let quiet = match self.records.get(&failure.model) {
            Some(before) => before.quiet.saturating_mul(2).min(longest),
            None => first,
        };
        self.records.insert(failure.model.clone(), Record { failure, at: now, quiet });
    }

    pub(crate) fn clear(&mut self, model: &ModelId) {
        self.records.remove(model);
    }

    /// The failure that counts against `model`, for reports.
    pub(crate) fn of(&self, model: &ModelId) -> Option<Arc<Failure>> {
        self.records.get(model).map(|record| Arc::clone(&record.failure))
    }

    /// The failure to answer with instead of trying again: only a change can cure it, and it is fresh.
    pub(crate) fn answer(&self, model: &ModelId, now: Instant) -> Option<Arc<Failure>> {
        let record = self.records.get(model)?;
        let fresh = now.saturating_duration_since(record.at) < record.quiet;
        (record.failure.retry == Retry::AfterChange && fresh).then(|| Arc::clone(&record.failure))
    }

    /// Forgets what is too old and says of which models.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<ModelId> {
        let kept = self.kept;
        self.records.extract_if(|_, record| now.saturating_duration_since(record.at) >= kept).map(|(model, _)| model).collect()
    }
}
