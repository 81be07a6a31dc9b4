//! The connections to one server, and who gets which.
//!
//! A call takes a [`Lease`] on the connection with the fewest open calls and gives it back when its answer has ended. When
//! all are busy, another connection is opened beside; a call waits only while no connection has room, and is then served
//! in its turn. Connecting is done by tasks of their own, never by a call, so a cancelled call cancels nobody's connection.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Net};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::connection::{self, Connection, Opened};
use crate::error::CallError;
use crate::server::State;
use crate::target::Target;

/// How long nobody connects after a first failure. Doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// The longest that nobody connects after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long callers who waited for a first connection may be held back for the ones that are being opened beside it.
const GRACE: Duration = Duration::from_millis(10);

pub(crate) struct Pool {
    pub(crate) target: Target,
    config: Config,
    clock: Clock,
    net: Arc<dyn Net>,
    /// What drives connections; `None`: the runtime of whoever needs one.
    driver: Option<Handle>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    live: Vec<Slot>,
    /// Connections that are being opened.
    dialing: usize,
    waiting: VecDeque<Waiter>,
    /// Waiters beyond which those that gave up are looked for.
    sweep: usize,
    trouble: Option<Trouble>,
    /// Open calls, those of connections that take no more included.
    open: usize,
    next: u64,
}

type Waiter = oneshot::Sender<Result<Lease, CallError>>;

struct Slot {
    connection: Arc<Connection>,
    open: usize,
}

/// The last attempt to connect failed.
struct Trouble {
    why: Arc<str>,
    pause: Duration,
    until: Instant,
}

/// How full a connection may get when calls are handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Up to `Config::streams`: others are about to come up.
    Evenly,
    /// As far as the server allows.
    Whole,
}

/// How many more connections `demand` calls ask for. `shares`: calls that each live connection should carry at most;
/// `expected`: the same for one that comes up.
fn more(demand: usize, shares: &[usize], dialing: usize, expected: usize, most: usize) -> usize {
    let carried = shares.iter().sum::<usize>().saturating_add(dialing.saturating_mul(expected));
    let missing = demand.saturating_sub(carried).div_ceil(expected.max(1));
    missing.min(most.saturating_sub(shares.len() + dialing))
}

impl Pool {
    pub(crate) fn new(target: Target, config: Config, clock: Clock, net: Arc<dyn Net>, driver: Option<Handle>) -> Arc<Self> {
        Arc::new(Pool { target, config, clock, net, driver, inner: Mutex::default() })
    }

    /// Room for one call, on a connection that was alive when last looked at.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Lease, CallError> {
        let waiter = {
            let mut inner = self.inner.lock();
            let lease = self.take(&mut inner, Fill::Whole);
            if let Some(lease) = lease {
                self.grow(&mut inner);
                return Ok(lease);
            }
            let (waiter, lease) = oneshot::channel();
            if inner.waiting.len() >= inner.sweep {
                inner.waiting.retain(|waiter| !waiter.is_closed());
                inner.sweep = 2 * inner.waiting.len() + 64;
            }
            inner.waiting.push_back(waiter);
            self.settle(&mut inner, Fill::Whole);
            lease
        };
        match waiter.await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::NotProcessed { target: self.target.clone(), why: "the connections are being closed".into() }),
        }
    }

    /// Takes no further calls to this connection; those that it has go on.
    pub(crate) fn retire(self: &Arc<Self>, id: u64) {
        let mut inner = self.inner.lock();
        inner.live.retain(|slot| slot.connection.id != id);
        self.settle(&mut inner, Fill::Whole);
    }

    /// Attempts to connect so far.
    pub(crate) fn begun(&self) -> u64 {
        self.inner.lock().next
    }

    pub(crate) fn state(&self) -> State {
        let inner = self.inner.lock();
        State {
            connections: inner.live.len(),
            connecting: inner.dialing,
            streams: inner.open,
            waiting: inner.waiting.iter().filter(|waiter| !waiter.is_closed()).count(),
            last_error: inner.trouble.as_ref().map(|trouble| trouble.why.clone()),
        }
    }

    fn take(self: &Arc<Self>, inner: &mut Inner, fill: Fill) -> Option<Lease> {
        let room = |slot: &&mut Slot| {
            let limit = slot.connection.vital.limit();
            slot.open < if fill == Fill::Evenly { limit.min(self.config.streams) } else { limit }
        };
        let slot = inner.live.iter_mut().filter(room).min_by_key(|slot| slot.open)?;
        slot.open += 1;
        inner.open += 1;
        slot.connection.vital.open(true);
        Some(Lease { pool: Some(self.clone()), connection: slot.connection.clone() })
    }

    fn give_back(inner: &mut Inner, connection: &Connection) {
        inner.open = inner.open.saturating_sub(1);
        connection.vital.open(false);
        if let Some(slot) = inner.live.iter_mut().find(|slot| slot.connection.id == connection.id) {
            slot.open = slot.open.saturating_sub(1);
        }
    }

    /// Serves those who wait, opens what connections are missing, and turns away who would wait for nothing.
    fn settle(self: &Arc<Self>, inner: &mut Inner, fill: Fill) {
        while !inner.waiting.is_empty() {
            let Some(lease) = self.take(inner, fill) else { break };
            let Some(waiter) = inner.waiting.pop_front() else { break };
            if let Err(Ok(mut unused)) = waiter.send(Ok(lease)) {
                unused.pool = None; // its drop would lock again
                Self::give_back(inner, &unused.connection);
            }
        }
        self.grow(inner);
        if inner.live.is_empty()
            && inner.dialing == 0
            && let Some(why) = self.unreachable(inner)
        {
            for waiter in inner.waiting.drain(..) {
                let _ = waiter.send(Err(why.clone()));
            }
        }
    }

    fn grow(self: &Arc<Self>, inner: &mut Inner) {
        let share = |slot: &Slot| slot.connection.vital.limit().min(self.config.streams);
        // What each call looks at.
        let carried =
            |inner: &Inner| inner.live.iter().map(share).fold(0_usize, usize::saturating_add) >= inner.live.iter().map(|slot| slot.open).sum();
        if inner.waiting.is_empty() && carried(inner) {
            return;
        }
        let shares: Vec<usize> = inner.live.iter().map(share).collect();
        let demand = inner.waiting.len() + inner.live.iter().map(|slot| slot.open).sum::<usize>();
        let expected = shares.iter().copied().max().unwrap_or(self.config.streams);
        let missing = more(demand, &shares, inner.dialing, expected, self.config.connections);
        if missing == 0 || self.paused(inner).is_some() {
            return;
        }
        for _ in 0..missing {
            inner.dialing += 1;
            let (id, pool) = (inner.next, Arc::downgrade(self));
            inner.next += 1;
            let driven = connect(pool, id, self.target.clone(), self.config.clone(), self.clock.clone(), self.net.clone());
            match &self.driver {
                Some(driver) => driver.spawn(driven),
                None => tokio::spawn(driven),
            };
        }
    }

    /// How long nobody connects, if the last attempt has just failed.
    fn paused(&self, inner: &Inner) -> Option<Duration> {
        let until = inner.trouble.as_ref()?.until;
        Some(until.saturating_duration_since(self.clock.now())).filter(|left| !left.is_zero())
    }

    fn unreachable(&self, inner: &Inner) -> Option<CallError> {
        let retry_after = self.paused(inner)?;
        let why = inner.trouble.as_ref()?.why.clone();
        Some(CallError::Unreachable { target: self.target.clone(), why, retry_after })
    }

    /// A connection has come up. Whether some who wait were held back for those that are still being opened.
    fn connected(self: &Arc<Self>, connection: Connection) -> bool {
        let mut inner = self.inner.lock();
        inner.dialing -= 1;
        inner.trouble = None;
        inner.live.push(Slot { connection: Arc::new(connection), open: 0 });
        let fill = if inner.dialing > 0 { Fill::Evenly } else { Fill::Whole };
        self.settle(&mut inner, fill);
        fill == Fill::Evenly && !inner.waiting.is_empty()
    }

    fn failed(self: &Arc<Self>, why: Arc<str>) {
        let mut inner = self.inner.lock();
        inner.dialing -= 1;
        let paused = self.paused(&inner).is_some();
        inner.trouble = Some(match inner.trouble.take() {
            Some(trouble) if paused => Trouble { why, ..trouble }, // another attempt of the same moment
            before => {
                let pause = before.map_or(FIRST_PAUSE, |trouble| (2 * trouble.pause).min(LONGEST_PAUSE));
                Trouble { why, pause, until: self.clock.now() + pause }
            }
        });
        self.settle(&mut inner, Fill::Whole);
    }

    fn hand_out(self: &Arc<Self>) {
        self.settle(&mut self.inner.lock(), Fill::Whole);
    }
}

/// Opens a connection for the pool and drives it to its end.
async fn connect(pool: Weak<Pool>, id: u64, target: Target, config: Config, clock: Clock, net: Arc<dyn Net>) {
    let opening = clock.until(clock.deadline_in(config.connect_timeout), connection::open(&target, &*net, &config)).await;
    let opened: Result<Opened, String> = opening.unwrap_or_else(|| Err(format!("it did not answer within {:?}", config.connect_timeout)));
    let Some(strong) = pool.upgrade() else { return };
    let opened = match opened {
        Ok(opened) => opened,
        Err(why) => {
            tracing::debug!(target = %target, error = %why, "cannot connect to a server");
            return strong.failed(why.into());
        }
    };
    tracing::debug!(target = %target, "connected to a server");
    let held_back = strong.connected(Connection::new(id, &opened));
    drop(strong);
    if held_back {
        let (pool, clock) = (pool.clone(), clock.clone());
        tokio::spawn(async move {
            clock.sleep(GRACE).await;
            if let Some(pool) = pool.upgrade() {
                pool.hand_out();
            }
        });
    }
    let roomier = || {
        if let Some(pool) = pool.upgrade() {
            pool.hand_out();
        }
    };
    connection::drive(opened, clock, config, roomier).await;
    if let Some(pool) = pool.upgrade() {
        pool.retire(id);
    }
}

/// One call's place on a connection, until it is dropped.
pub(crate) struct Lease {
    /// `None` when its place has been given back already.
    pool: Option<Arc<Pool>>,
    pub(crate) connection: Arc<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let mut inner = pool.inner.lock();
            Pool::give_back(&mut inner, &self.connection);
            if !inner.waiting.is_empty() {
                pool.settle(&mut inner, Fill::Whole);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_opened_for_what_the_live_ones_should_not_carry() {
        for (case, demand, shares, dialing, expected, most, want) in [
            ("nothing to do", 0, &[][..], 0, 32, 4, 0),
            ("the first call", 1, &[], 0, 32, 4, 1),
            ("it is being opened already", 32, &[], 1, 32, 4, 0),
            ("64 callers at once", 64, &[], 0, 32, 4, 2),
            ("one has room", 32, &[32], 0, 32, 4, 0),
            ("one is full", 33, &[32], 0, 32, 4, 1),
            ("one is full, another on its way", 33, &[32], 1, 32, 4, 0),
            ("never more than allowed", 1000, &[32, 32], 1, 32, 4, 1),
            ("all that are allowed", 1000, &[32, 32, 32, 32], 0, 32, 4, 0),
            ("a server that takes one call at a time", 3, &[1], 0, 1, 4, 2),
            ("a server that takes none", 3, &[0], 0, 0, 4, 3),
        ] {
            assert_eq!(more(demand, shares, dialing, expected, most), want, "{case}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn what_is_opened_carries_the_demand_and_not_one_connection_more(
            demand in 0_usize..300, shares in proptest::collection::vec(1_usize..64, 0..4), dialing in 0_usize..4, expected in 1_usize..64, most in 1_usize..8,
        ) {
            let opened = more(demand, &shares, dialing, expected, most);
            let carried = |opened: usize| shares.iter().sum::<usize>() + (dialing + opened) * expected;
            let all = shares.len() + dialing + opened;
            proptest::prop_assert!(opened == 0 || all <= most);
            proptest::prop_assert!(carried(opened) >= demand || all >= most);
            proptest::prop_assert!(opened == 0 || carried(opened - 1) < demand);
        }
    }
}
