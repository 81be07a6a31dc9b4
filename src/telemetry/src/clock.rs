//! The one source of time.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_types::{Deadline, UnixMillis};

/// Where wall time comes from.
#[derive(Clone)]
pub enum WallSource {
    /// The system's clock.
    System,
    /// A start value that moves with the monotonic clock: what tests with paused time use.
    FollowsMonotonic {
        /// Wall time at `start`.
        at_start: UnixMillis,
        /// Monotonic time at which `at_start` held.
        start: Instant,
    },
}

/// Time, handed in wherever it is needed. Cheap to clone.
///
/// The monotonic side is tokio's, so `#[tokio::test(start_paused = true)]` governs it; wall time is only for what a
/// user reads and for what must survive a restart.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<WallSource>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl Clock {
    /// The clocks of this machine.
    #[must_use]
    pub fn system() -> Self {
        Clock { wall: Arc::new(WallSource::System) }
    }

    /// A clock whose wall time starts at `wall` and moves with tokio's (pausable) monotonic time.
    #[must_use]
    pub fn starting_at(wall: UnixMillis) -> Self {
        Clock { wall: Arc::new(WallSource::FollowsMonotonic { at_start: wall, start: monotonic() }) }
    }

    /// Monotonic now.
    #[must_use]
    pub fn now(&self) -> Instant {
        monotonic()
    }

    /// Wall now.
    #[must_use]
    pub fn wall(&self) -> UnixMillis {
        match &*self.wall {
            WallSource::System => system_wall(),
            WallSource::FollowsMonotonic { at_start, start } => at_start.after(monotonic().saturating_duration_since(*start)),
        }
    }

    /// The deadline `after` from now.
    #[must_use]
    pub fn deadline_in(&self, after: Duration) -> Deadline {
        Deadline::at(self.now() + after)
    }

    /// Completes when `duration` has passed.
    pub async fn sleep(&self, duration: Duration) {
        pause((monotonic() + duration).into()).await;
    }

    /// Completes at `deadline`.
    pub async fn sleep_until(&self, deadline: Deadline) {
        pause(deadline.instant().into()).await;
    }

    /// The output of `future`, or `None` when `deadline` comes first. What is ready at once costs no timer.
    pub async fn until<F: Future>(&self, deadline: Deadline, future: F) -> Option<F::Output> {
        let (mut future, mut late) = (pin!(future), pin!(None));
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if late.is_none() {
                // Told also to a future that never lets others have their turn.
                late.set(Some(tokio::task::unconstrained(pause(deadline.instant().into()))));
            }
            // Just set.
            late.as_mut().as_pin_mut().map_or(Poll::Pending, |late| late.poll(cx).map(|()| None))
        })
        .await
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
fn monotonic() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
fn system_wall() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
async fn pause(until: tokio::time::Instant) {
    tokio::time::sleep_until(until).await;
}
