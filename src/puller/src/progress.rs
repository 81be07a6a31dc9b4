//! How far downloads are, for whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};

use berth_types::{ByteSize, ModelId};
use tokio::sync::broadcast;

/// Where a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What belongs to the model is known; nothing has been fetched.
    Listed,
    /// Bytes are coming.
    Fetching,
    /// All bytes are here and checked.
    Verified,
    /// The files are in place. The last word on a download that went well.
    Done,
    /// The download ended without the model. The last word on one that did not.
    Failed,
}

/// One step of one download. Between them bytes only grow, but for a download that starts over because the store's
/// content changed: then `Listed` comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which model.
    pub model: ModelId,
    /// Where it is.
    pub stage: Stage,
    /// Bytes that have come.
    pub bytes: ByteSize,
    /// Bytes in all, schema included; zero until they are known.
    pub total: ByteSize,
}

/// A slow listener loses the oldest steps, it never slows a download.
pub(crate) const BACKLOG: usize = 256;

/// Tells the steps of one download: at most about a hundred while bytes are coming.
pub(crate) struct Reporter {
    model: ModelId,
    tell: broadcast::Sender<Progress>,
    bytes: AtomicU64,
    told: AtomicU64,
    total: AtomicU64,
}

impl Reporter {
    pub(crate) fn new(model: ModelId, tell: broadcast::Sender<Progress>) -> Self {
        Reporter { model, tell, bytes: AtomicU64::new(0), told: AtomicU64::new(0), total: AtomicU64::new(0) }
    }

    pub(crate) fn listed(&self, total: ByteSize) {
        self.total.store(total.0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.told.store(0, Ordering::Relaxed);
        self.stage(Stage::Listed);
    }

    /// More bytes came.
    pub(crate) fn received(&self, bytes: u64) {
        let so_far = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let step = (self.total.load(Ordering::Relaxed) / 100).max(1);
        let told = self.told.load(Ordering::Relaxed);
        let due = so_far >= told.saturating_add(step);
        if due && self.told.compare_exchange(told, so_far, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.stage(Stage::Fetching);
        }
    }

    pub(crate) fn stage(&self, stage: Stage) {
        let progress = Progress {
            model: self.model.clone(),
            stage,
            bytes: ByteSize(self.bytes.load(Ordering::Relaxed)),
            total: ByteSize(self.total.load(Ordering::Relaxed)),
        };
        // No listener is no fault.
        let _ = self.tell.send(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_small_frames_become_about_a_hundred_steps() {
        let (tell, mut steps) = broadcast::channel(BACKLOG);
        let reporter = Reporter::new(ModelId::new("m").expect("sound"), tell);
        reporter.listed(ByteSize(1_000_000));
        (0..100_000).for_each(|_| reporter.received(10));
        reporter.stage(Stage::Done);
        drop(reporter);
        let mut all = Vec::new();
        while let Ok(step) = steps.recv().await {
            all.push(step);
        }
        assert!((100..=103).contains(&all.len()), "{}", all.len());
        assert!(all.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
        assert_eq!(all.last().map(|step| (step.stage, step.bytes)), Some((Stage::Done, ByteSize(1_000_000))));
    }
}
