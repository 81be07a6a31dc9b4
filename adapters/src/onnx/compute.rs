//! Turns at computing: as many at a time as there are cores for it, a bounded line in front, deadlines while waiting.
//!
//! A caller that goes away gives up its place; only what has a turn is computed. A model whose engine runs one request
//! at a time lets its callers in one after the other before they stand in the common line, so a busy model cannot
//! occupy the cores' turns with waiting.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_telemetry::Clock;
use berth_types::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::InferError;

/// The common line.
pub(super) struct Compute {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// The right to compute now; given back when dropped.
pub(super) struct Turn {
    _common: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Compute {
    /// `at_a_time` turns, `queue` callers waiting at most.
    pub(super) fn new(at_a_time: NonZeroUsize, queue: usize) -> Self {
        let turns = at_a_time.get().min(Semaphore::MAX_PERMITS);
        Compute { turns: Arc::new(Semaphore::new(turns)), waiting: AtomicUsize::new(0), queue }
    }

    /// Waits for a turn. `gate`: the model's own, where it runs one request at a time.
    ///
    /// # Errors
    /// [`InferError::Busy`] when too many wait already, [`InferError::DeadlineExceeded`].
    pub(super) async fn turn(&self, gate: Option<&Arc<Semaphore>>, clock: &Clock, deadline: Deadline) -> Result<Turn, InferError> {
        if deadline.left(clock.now()).is_zero() {
            return Err(InferError::DeadlineExceeded);
        }
        if let Some(turn) = self.turn_now(gate) {
            return Ok(turn);
        }
        let already = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if already >= self.queue {
            return Err(InferError::Busy(format!("{already} requests wait for the ONNX engine already: try again")));
        }
        let both = async {
            let own = match gate {
                Some(gate) => Some(Arc::clone(gate).acquire_owned().await.ok()?),
                None => None,
            };
            let common = Arc::clone(&self.turns).acquire_owned().await.ok()?;
            Some(Turn { _common: common, _own: own })
        };
        // The semaphores are never closed, so `None` inside means nothing but an end of the process.
        clock.until(deadline, both).await.flatten().ok_or(InferError::DeadlineExceeded)
    }

    /// A turn without waiting. Never overtakes: semaphores hand out permits in order.
    fn turn_now(&self, gate: Option<&Arc<Semaphore>>) -> Option<Turn> {
        let own = match gate {
            Some(gate) => Some(Arc::clone(gate).try_acquire_owned().ok()?),
            None => None,
        };
        let common = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(Turn { _common: common, _own: own })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn compute(at_a_time: usize, queue: usize) -> Compute {
        Compute::new(NonZeroUsize::new(at_a_time).expect("not zero"), queue)
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_is_busy_and_a_place_is_free_again_when_its_caller_leaves() {
        let (clock, compute) = (Clock::system(), compute(1, 1));
        let in_a_minute = clock.deadline_in(Duration::from_secs(60));
        let turn = compute.turn(None, &clock, in_a_minute).await.expect("the only turn");
        {
            let mut waiting = std::pin::pin!(compute.turn(None, &clock, in_a_minute));
            assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), &mut waiting).await.is_none(), "it waits");
            let refused = compute.turn(None, &clock, in_a_minute).await.err();
            assert_eq!(refused, Some(InferError::Busy("1 requests wait for the ONNX engine already: try again".to_owned())));
        }
        let mut waiting = std::pin::pin!(compute.turn(None, &clock, in_a_minute));
        assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), &mut waiting).await.is_none(), "the place is free again");
        drop(turn);
        assert!(waiting.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_a_passed_one_prevents_it() {
        let (clock, compute) = (Clock::system(), compute(1, 8));
        let _turn = compute.turn(None, &clock, clock.deadline_in(Duration::from_secs(60))).await.expect("the only turn");
        let started = clock.now();
        let late = compute.turn(None, &clock, clock.deadline_in(Duration::from_secs(5))).await.err();
        assert_eq!((late, clock.now() - started), (Some(InferError::DeadlineExceeded), Duration::from_secs(5)));
        let free = self::compute(1, 8);
        assert_eq!(free.turn(None, &clock, Deadline::at(clock.now())).await.err(), Some(InferError::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_model_leaves_the_other_turns_to_others() {
        let (clock, compute) = (Clock::system(), compute(2, 8));
        let soon = clock.deadline_in(Duration::from_secs(1));
        let gate = Arc::new(Semaphore::new(1));
        let _first = compute.turn(Some(&gate), &clock, soon).await.expect("free");
        let mut second = std::pin::pin!(compute.turn(Some(&gate), &clock, soon));
        assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), &mut second).await.is_none(), "the model runs one at a time");
        assert!(compute.turn(None, &clock, soon).await.is_ok(), "the second turn is another model's");
    }
}
