//! How long a store may fail us before we give it up.

use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::s3::Fault;
use crate::{PullError, PullerConfig};

/// Counts tries and time since the last byte of progress. Both are limited; progress renews both. Time in our own queue
/// for requests is not counted: it says nothing about the store.
pub(crate) struct Patience {
    clock: Clock,
    tries_left: u32,
    failed: u32,
    since: Instant,
    config: Limits,
    seed: u64,
}

#[derive(Clone, Copy)]
struct Limits {
    tries: u32,
    give_up_after: Duration,
    backoff: Duration,
}

impl Patience {
    /// `seed` spreads the retries of requests that failed together.
    pub(crate) fn new(config: &PullerConfig, clock: &Clock, seed: u64) -> Self {
        let limits = Limits { tries: config.tries, give_up_after: config.give_up_after, backoff: config.backoff };
        Patience { clock: clock.clone(), tries_left: limits.tries, failed: 0, since: clock.now(), config: limits, seed }
    }

    /// Bytes came.
    pub(crate) fn progress(&mut self) {
        self.tries_left = self.config.tries;
        self.failed = 0;
        self.since = self.clock.now();
    }

    /// How long the next wait may be at most.
    pub(crate) fn left(&self) -> Duration {
        self.config.give_up_after.saturating_sub(self.clock.now().saturating_duration_since(self.since))
    }

    /// A permit for one request. The clock stands still meanwhile; nothing is renewed.
    pub(crate) async fn turn<'a>(&mut self, requests: &'a Semaphore) -> Option<SemaphorePermit<'a>> {
        let queued = self.clock.now();
        let permit = requests.acquire().await.ok(); // `None` never comes: nobody closes it
        self.since += self.clock.now().saturating_duration_since(queued);
        permit
    }

    /// `work`, with a permit of `requests`, tried again while the store is away and patience lasts.
    pub(crate) async fn hold<T, F: Future<Output = Result<T, Fault>>>(
        mut self,
        requests: &Semaphore,
        mut work: impl FnMut() -> F,
    ) -> Result<T, Fault> {
        loop {
            let one_request = self.turn(requests).await;
            let outcome = self.clock.until(self.clock.deadline_in(self.left()), work()).await;
            drop(one_request); // others go on while this one pauses
            match outcome.unwrap_or_else(|| Err(Fault::Away(format!("no answer within {:?}", self.config.give_up_after)))) {
                Err(Fault::Away(why)) => self.pause(why).await?,
                settled => return settled,
            }
        }
    }

    /// Waits before the next try, or says that there is none.
    pub(crate) async fn pause(&mut self, why: String) -> Result<(), Fault> {
        self.tries_left = self.tries_left.saturating_sub(1);
        self.failed += 1;
        let pause = pause(self.config.backoff, self.failed, self.seed);
        if self.tries_left == 0 || self.left() <= pause {
            let tries = if self.failed == 1 { "once".to_owned() } else { format!("{} times", self.failed) };
            let waited = berth_telemetry::field::took(self.clock.now().saturating_duration_since(self.since));
            return Err(Fault::Final(PullError::Unavailable(format!("{why} (tried {tries} in {waited})"))));
        }
        self.clock.sleep(pause).await;
        Ok(())
    }
}

/// The pause after the `failed`-th try: doubling, and up to half longer by `seed`.
fn pause(backoff: Duration, failed: u32, seed: u64) -> Duration {
    let base = backoff.saturating_mul(1 << failed.saturating_sub(1).min(6));
    let mixed = (seed ^ u64::from(failed)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    base.saturating_add((base / 2).saturating_mul(u32::try_from(mixed).unwrap_or(0)) / (1 << 16))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use berth_types::{ByteSize, UnixMillis};

    use super::*;

    #[test]
    fn pauses_double_and_spread() {
        let ms = Duration::from_millis;
        for (failed, low, high) in [(1, 200, 300), (2, 400, 600), (3, 800, 1200), (40, 12_800, 19_200)] {
            for seed in 0..50 {
                let pause = pause(ms(200), failed, seed);
                assert!(ms(low) <= pause && pause <= ms(high), "{failed} {seed}: {pause:?}");
            }
        }
        assert_ne!(pause(ms(200), 1, 1), pause(ms(200), 1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_stays_away_is_given_up_after_its_tries_and_within_the_time() {
        for (hang, expected) in [(false, 4), (true, 2)] {
            let clock = Clock::starting_at(UnixMillis(0));
            let begin = clock.now();
            let tries = AtomicU32::new(0);
            let patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, 7);
            let outcome: Result<(), Fault> = patience
                .hold(&Semaphore::new(1), || async {
                    tries.fetch_add(1, Ordering::Relaxed);
                    if hang {
                        clock.sleep(Duration::from_secs(10)).await;
                    }
                    Err(Fault::Away("away".to_owned()))
                })
                .await;
            assert!(
                matches!(&outcome, Err(Fault::Final(PullError::Unavailable(why))) if why.starts_with("away (tried") || why.starts_with("no answer")),
                "{outcome:?}"
            );
            assert_eq!(tries.into_inner(), expected);
            assert!(clock.now() - begin <= Duration::from_secs(15), "{:?}", clock.now() - begin);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_our_own_turn_is_not_the_store_s_fault() {
        let clock = Clock::starting_at(UnixMillis(0));
        let requests = Semaphore::new(1);
        let patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, 7);
        let busy = async {
            let _others = requests.acquire().await;
            clock.sleep(Duration::from_secs(60)).await;
        };
        let queued = async {
            tokio::task::yield_now().await;
            let begin = clock.now();
            let answer = || async {
                clock.sleep(Duration::from_secs(14)).await;
                Ok(())
            };
            (patience.hold(&requests, answer).await, clock.now() - begin)
        };
        let (_, outcome) = tokio::join!(busy, queued);
        assert_eq!(outcome, (Ok(()), Duration::from_secs(74)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_our_own_turn_renews_nothing() {
        let clock = Clock::starting_at(UnixMillis(0));
        let requests = Semaphore::new(0);
        let mut patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, 7);
        for _ in 0..3 {
            patience.pause("away".to_owned()).await.expect("there are tries left");
        }
        let left = patience.left();
        let serve = async {
            clock.sleep(Duration::from_secs(60)).await;
            requests.add_permits(1);
        };
        let ((), permit) = tokio::join!(serve, patience.turn(&requests));
        assert!(permit.is_some());
        assert_eq!(patience.left(), left);
        patience.pause("away".to_owned()).await.expect_err("no try is left");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_renews_patience() {
        let clock = Clock::starting_at(UnixMillis(0));
        let mut patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, 7);
        for _ in 0..20 {
            patience.pause("away".to_owned()).await.expect("there was progress");
            patience.progress();
        }
        for _ in 0..3 {
            patience.pause("away".to_owned()).await.expect("there are tries left");
        }
        patience.pause("away".to_owned()).await.expect_err("no try is left");
    }
}
