//! How long a store may fail us before we give it up.

use std::time::{Duration, Instant};

use berth_stores::{Fault, FaultKind};
use berth_telemetry::Clock;

use crate::PullerConfig;
use crate::pace::{Lane, Turn};
use crate::tally::Tally;

/// Counts tries and time since the last byte of progress. Both are limited; progress renews both. Time in our own queue
/// for requests is not counted: it says nothing about the store. A store that says that it is busy is there: only the time
/// counts then, not the tries.
pub(crate) struct Patience {
    clock: Clock,
    tries_left: u32,
    failed: u32,
    since: Instant,
    config: Limits,
    seed: u64,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Limits {
    tries: u32,
    give_up_after: Duration,
    backoff: Duration,
}

impl Patience {
    /// `seed` spreads the retries of requests that failed together.
    pub(crate) fn new(config: &PullerConfig, clock: &Clock, tally: &Tally, seed: u64) -> Self {
        let limits = Limits { tries: config.tries, give_up_after: config.give_up_after, backoff: config.backoff };
        Patience { clock: clock.clone(), tries_left: limits.tries, failed: 0, since: clock.now(), config: limits, seed, tally: tally.clone() }
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

    /// Permission for one request. The clock stands still meanwhile; nothing is renewed.
    pub(crate) async fn turn(&mut self, lane: &Lane, large: bool) -> Turn {
        let queued = self.clock.now();
        let turn = lane.turn(large).await;
        self.since += self.clock.now().saturating_duration_since(queued);
        turn
    }

    /// `work`, in its turn, tried again while the store is away and patience lasts. Hands out the turn of the answer.
    pub(crate) async fn hold<T, F: Future<Output = Result<T, Fault>>>(
        mut self,
        lane: &Lane,
        mut work: impl FnMut() -> F,
    ) -> Result<(T, Turn), Fault> {
        // What the store said the last time it said something: time that runs out in the middle of a try explains nothing.
        let mut said = None;
        loop {
            let turn = self.turn(lane, false).await;
            let within = self.left();
            match self.clock.until(self.clock.deadline_in(within), work()).await {
                Some(Ok(answer)) => {
                    turn.fine();
                    return Ok((answer, turn));
                }
                Some(Err(fault)) => {
                    if let FaultKind::Busy { pause } = fault.kind {
                        turn.busy(pause);
                    }
                    drop(turn); // others go on while this one pauses
                    said = Some(fault.clone());
                    self.pause(fault).await?;
                }
                None => {
                    drop(turn);
                    let silent = || Fault::new(FaultKind::Away, "the store", format!("no answer within {within:?}"));
                    self.pause(said.take().unwrap_or_else(silent)).await?;
                }
            }
        }
    }

    /// Waits before the next try, or hands the fault back: waiting does not help, or there is no patience left.
    pub(crate) async fn pause(&mut self, fault: Fault) -> Result<(), Fault> {
        let counts = match fault.kind {
            FaultKind::Away => true,
            FaultKind::Busy { .. } => false,
            FaultKind::Changed | FaultKind::Missing | FaultKind::Denied | FaultKind::Config | FaultKind::Corrupt => return Err(fault),
        };
        self.tries_left = self.tries_left.saturating_sub(u32::from(counts));
        self.failed += 1;
        let pause = pause(self.config.backoff, self.failed, self.seed);
        if self.tries_left == 0 || self.left() <= pause {
            let tries = if self.failed == 1 { "once".to_owned() } else { format!("{} times", self.failed) };
            let waited = berth_telemetry::field::took(self.clock.now().saturating_duration_since(self.since));
            return Err(Fault { why: format!("{} (tried {tries} in {waited})", fault.why), ..fault });
        }
        self.clock.sleep(pause).await;
        self.tally.retried();
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use berth_telemetry::Metrics;
    use berth_types::{ByteSize, UnixMillis};

    use super::*;
    use crate::Urgency;
    use crate::pace::{Haste, Limits, Pace};

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

    fn away() -> Fault {
        Fault::new(FaultKind::Away, "the store", "away")
    }

    fn tally() -> Tally {
        Tally::new(Metrics::default(), "s3")
    }

    fn lane(clock: &Clock, requests: usize) -> Lane {
        let limits = Limits { requests, parts_per_download: 8, bytes_per_second: None };
        Pace::new(limits, clock.clone(), &Metrics::default()).lane([0; 32], Arc::new(Haste::new(Urgency::Waited)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_stays_away_is_given_up_after_its_tries_and_within_the_time() {
        for (hang, expected) in [(false, 4), (true, 2)] {
            let clock = Clock::starting_at(UnixMillis(0));
            let begin = clock.now();
            let tries = AtomicU32::new(0);
            let patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, &tally(), 7);
            let outcome = patience
                .hold(&lane(&clock, 1), || async {
                    tries.fetch_add(1, Ordering::Relaxed);
                    if hang {
                        clock.sleep(Duration::from_secs(10)).await;
                    }
                    Err::<(), _>(away())
                })
                .await;
            let fault = outcome.map(|_| ()).expect_err("away");
            assert!(fault.why.starts_with("away (tried"), "{fault}");
            assert_eq!((fault.kind, tries.into_inner()), (FaultKind::Away, expected));
            assert!(clock.now() - begin <= Duration::from_secs(15), "{:?}", clock.now() - begin);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_runs_out_during_a_try_does_not_hide_what_the_store_said_before() {
        for (said, expected) in [(true, "slow down (tried 2 times"), (false, "no answer within 15s (tried once")] {
            let clock = Clock::starting_at(UnixMillis(0));
            let patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, &tally(), 7);
            let tries = AtomicU32::new(0);
            let outcome = patience
                .hold(&lane(&clock, 1), || async {
                    if !said || tries.fetch_add(1, Ordering::Relaxed) > 0 {
                        clock.sleep(Duration::from_secs(3600)).await;
                    }
                    Err::<(), _>(Fault::new(FaultKind::Busy { pause: None }, "the store", "slow down"))
                })
                .await;
            let fault = outcome.map(|_| ()).expect_err("no answer");
            assert!(fault.why.starts_with(expected), "{fault}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_store_is_waited_for_as_long_as_time_lasts_and_other_faults_not_at_all() {
        let clock = Clock::starting_at(UnixMillis(0));
        let config = PullerConfig::new("/x", ByteSize(1));
        let mut patience = Patience::new(&config, &clock, &tally(), 7);
        let begin = clock.now();
        let busy = || Fault::new(FaultKind::Busy { pause: None }, "the store", "slow down");
        let mut times = 0;
        while patience.pause(busy()).await.is_ok() {
            times += 1;
        }
        assert!(times > config.tries, "{times}");
        let took = clock.now() - begin;
        assert!(took > config.give_up_after / 2 && took <= config.give_up_after, "{took:?}");
        for kind in [FaultKind::Changed, FaultKind::Missing, FaultKind::Denied, FaultKind::Config, FaultKind::Corrupt] {
            let (fault, before) = (Fault::new(kind, "x", "y"), clock.now());
            let mut patience = Patience::new(&config, &clock, &tally(), 7);
            assert_eq!((patience.pause(fault.clone()).await, clock.now()), (Err(fault), before));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_our_own_turn_is_not_the_store_s_fault() {
        let clock = Clock::starting_at(UnixMillis(0));
        let lane = lane(&clock, 1);
        let patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, &tally(), 7);
        let busy = async {
            let _others = lane.turn(false).await;
            clock.sleep(Duration::from_secs(60)).await;
        };
        let queued = async {
            tokio::task::yield_now().await;
            let begin = clock.now();
            let answer = || async {
                clock.sleep(Duration::from_secs(14)).await;
                Ok(())
            };
            (patience.hold(&lane, answer).await.map(|(answer, _turn)| answer), clock.now() - begin)
        };
        let (_, outcome) = tokio::join!(busy, queued);
        assert_eq!(outcome, (Ok(()), Duration::from_secs(74)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_our_own_turn_renews_nothing() {
        let clock = Clock::starting_at(UnixMillis(0));
        let lane = lane(&clock, 1);
        let mut patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, &tally(), 7);
        for _ in 0..3 {
            patience.pause(away()).await.expect("there are tries left");
        }
        let (left, others) = (patience.left(), lane.turn(false).await);
        let serve = async {
            clock.sleep(Duration::from_secs(60)).await;
            drop(others);
        };
        let ((), _turn) = tokio::join!(serve, patience.turn(&lane, false));
        assert_eq!(patience.left(), left);
        patience.pause(away()).await.expect_err("no try is left");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_renews_patience() {
        let clock = Clock::starting_at(UnixMillis(0));
        let mut patience = Patience::new(&PullerConfig::new("/x", ByteSize(1)), &clock, &tally(), 7);
        for _ in 0..20 {
            patience.pause(away()).await.expect("there was progress");
            patience.progress();
        }
        for _ in 0..3 {
            patience.pause(away()).await.expect("there are tries left");
        }
        patience.pause(away()).await.expect_err("no try is left");
    }
}
