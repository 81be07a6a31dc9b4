//! "Something may have changed": how an adapter implements [`crate::Runtime::index_changed`].

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// A counter of changes and the count at the last look. No change between a look and the next wait is lost; a change
/// that was already seen may wake once more. Made for one reader (the owner task); several readers each see the
/// changes that come while they wait.
#[derive(Debug)]
pub(crate) struct Changes {
    count: watch::Sender<u64>,
    looked_at: AtomicU64,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Changes { count: watch::Sender::new(0), looked_at: AtomicU64::new(0) }
    }

    /// Something changed. Call it after the change can be seen.
    pub(crate) fn announce(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    /// The reader is about to look. Call it before reading what is looked at.
    pub(crate) fn look(&self) {
        self.looked_at.store(*self.count.borrow(), Ordering::Release);
    }

    /// A cursor of its own, for those who wait beside the reader.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    /// Completes when something changed since the last look.
    pub(crate) async fn changed(&self) {
        let seen = self.looked_at.load(Ordering::Acquire);
        // The sender lives in `self`, so the channel cannot be closed here.
        let _ = self.count.subscribe().wait_for(|count| *count != seen).await;
    }
}
