//! Turns at computing: as many at a time as there are cores for it, a bounded line in front, deadlines while waiting.
//!
//! A caller that goes away gives up its place; only what has a turn is computed. A model whose engine runs one request
//! at a time has a line of its own before the common one, with a bound of its own: a busy model can neither occupy the
//! cores' turns with waiting nor fill the line that the others stand in.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_telemetry::Clock;
use berth_types::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::InferError;

/// Those who wait for the same turns.
pub(super) struct Line {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    longest: usize,
    /// What they wait for, for messages.
    what: &'static str,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    fn new(turns: usize, longest: usize, what: &'static str) -> Self {
        Line { turns: Arc::new(Semaphore::new(turns)), waiting: AtomicUsize::new(0), longest, what }
    }

    async fn turn(&self, clock: &Clock, deadline: Deadline) -> Result<OwnedSemaphorePermit, InferError> {
        // Never overtakes: semaphores hand out permits in order.
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(turn);
        }
        let already = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if already >= self.longest {
            return Err(InferError::Busy(format!("{already} requests wait for {} already: try again", self.what)));
        }
        // The semaphores are never closed, so an error inside means nothing but an end of the process.
        let turn = clock.until(deadline, Arc::clone(&self.turns).acquire_owned()).await;
        turn.and_then(Result::ok).ok_or(InferError::DeadlineExceeded)
    }
}

/// The common line, and how long those before it may be.
pub(super) struct Compute {
    common: Line,
    queue: usize,
}

/// The right to compute now; given back when dropped.
pub(super) struct Turn {
    _common: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl Compute {
    /// `at_a_time` turns; `queue` callers waiting for them at most, and a quarter of that before each [gate](Self::gate).
    pub(super) fn new(at_a_time: NonZeroUsize, queue: usize) -> Self {
        Compute { common: Line::new(at_a_time.get().min(Semaphore::MAX_PERMITS), queue, "the ONNX engine"), queue }
    }

    /// The line of a model that runs one request at a time.
    pub(super) fn gate(&self) -> Arc<Line> {
        Arc::new(Line::new(1, self.queue.div_ceil(4), "this model"))
    }

    /// Waits for a turn, `gate` (the model's own, if it has one) first.
    ///
    /// # Errors
    /// [`InferError::Busy`] when too many wait already, [`InferError::DeadlineExceeded`].
    pub(super) async fn turn(&self, gate: Option<&Line>, clock: &Clock, deadline: Deadline) -> Result<Turn, InferError> {
        if deadline.left(clock.now()).is_zero() {
            return Err(InferError::DeadlineExceeded);
        }
        let own = match gate {
            Some(gate) => Some(gate.turn(clock, deadline).await?),
            None => None,
        };
        Ok(Turn { _common: self.common.turn(clock, deadline).await?, _own: own })
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
        let gate = compute.gate();
        let _first = compute.turn(Some(&gate), &clock, soon).await.expect("free");
        let mut second = std::pin::pin!(compute.turn(Some(&gate), &clock, soon));
        assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), &mut second).await.is_none(), "the model runs one at a time");
        assert!(compute.turn(None, &clock, soon).await.is_ok(), "the second turn is another model's");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_one_model_take_no_place_from_the_others() {
        let (clock, compute) = (Clock::system(), compute(2, 8));
        let soon = clock.deadline_in(Duration::from_secs(1));
        let gate = compute.gate();
        let own = compute.turn(Some(&gate), &clock, soon).await.expect("free");
        let mut line = Vec::new();
        for _ in 0..2 {
            line.push(Box::pin(compute.turn(Some(&gate), &clock, soon)));
        }
        for waiting in &mut line {
            assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), waiting).await.is_none(), "it waits");
        }
        let refused = compute.turn(Some(&gate), &clock, soon).await.err();
        assert_eq!(refused, Some(InferError::Busy("2 requests wait for this model already: try again".to_owned())), "a quarter of 8");

        let other = compute.turn(None, &clock, soon).await.expect("the second turn");
        let mut others: Vec<_> = (0..8).map(|_| Box::pin(compute.turn(None, &clock, soon))).collect();
        for waiting in &mut others {
            assert!(clock.until(clock.deadline_in(Duration::from_millis(1)), waiting).await.is_none(), "all eight places are the others'");
        }
        drop((others, other, own));
        for waiting in line {
            assert!(waiting.await.is_ok());
        }
    }
}
