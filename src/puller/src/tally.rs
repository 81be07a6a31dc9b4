//! Counts what is asked of stores, and what comes of it.

use std::sync::Arc;

use async_trait::async_trait;
use berth_stores::{Answer, Ask, Fault, FaultKind, Object, Page, Remote, Sums};
use berth_telemetry::{Counter, Metrics};

/// Counts for one type of store.
#[derive(Clone)]
pub(crate) struct Tally {
    metrics: Metrics,
    /// The storage type, as users write it.
    store: &'static str,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Tally {
    pub(crate) fn new(metrics: Metrics, store: &'static str) -> Self {
        Tally { metrics, store }
    }

    /// A request is tried again.
    pub(crate) fn retried(&self) {
        self.metrics.add(Counter::StoreRetries, &[("store", self.store)], 1);
    }

    fn counted<T>(&self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        let word = match &outcome {
            Ok(_) => "ok",
            Err(fault) => match fault.kind {
                FaultKind::Away => "away",
                FaultKind::Busy { .. } => "busy",
                FaultKind::Changed => "changed",
                FaultKind::Missing => "missing",
                FaultKind::Denied => "denied",
                FaultKind::Config => "config",
                FaultKind::Corrupt => "corrupt",
            },
        };
        self.metrics.add(Counter::StoreRequests, &[("store", self.store), ("outcome", word)], 1);
        outcome
    }
}

/// A remote whose requests are counted.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) remote: Arc<dyn Remote>,
    pub(crate) tally: Tally,
}

#[async_trait]
impl Remote for Counted {
    fn place(&self) -> &str {
        self.remote.place()
    }

    fn lists(&self) -> bool {
        self.remote.lists()
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        self.tally.counted(self.remote.list(prefix, after).await)
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        self.tally.counted(self.remote.get(ask).await)
    }

    async fn sums(&self, object: &Object) -> Result<Sums, Fault> {
        // Costs a request in some stores only, which is all the same to whoever reads the count.
        self.tally.counted(self.remote.sums(object).await)
    }
}
