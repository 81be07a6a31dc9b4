//! What a request touches of a loaded copy: its gate, its last use and the way to be told that it must end.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId, UnixMillis};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::WaitError;
use crate::gate::{Gate, Left, Starving};

/// How requests and callers reach the owner task without a message.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) clock: Clock,
    /// Raised while a load waits for copies in use.
    pub(crate) starving: Starving,
    /// A caller stopped waiting since the owner last looked.
    pub(crate) left: AtomicBool,
    /// The runtime broke off a call since the owner last looked.
    pub(crate) broke: AtomicBool,
    /// The owner should look: a copy became idle while somebody starves, or a caller left.
    pub(crate) wake: Notify,
}

impl Bell {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Bell { clock, starving: Starving::not(), left: AtomicBool::new(false), broke: AtomicBool::new(false), wake: Notify::new() })
    }
}

/// One loaded copy. It exists from the moment the runtime has loaded it until its unload begins.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) model: ModelId,
    pub(crate) gate: Gate,
    /// Milliseconds since the epoch; 0 is "never", as no request came in 1970.
    last_used: AtomicU64,
    /// When the runtime had loaded it.
    pub(crate) loaded: UnixMillis,
    /// The same on the monotonic clock.
    pub(crate) loaded_at: Instant,
    /// Rung by the last request of a drain.
    pub(crate) drained: Notify,
    /// Whether requests in flight must end, and how they are told.
    is_revoked: AtomicBool,
    revoking: Notify,
    /// When the runtime last broke off a call on it, in milliseconds since the epoch; 0 is "never".
    broken: AtomicU64,
    /// Of a copy that serves so many requests at a time.
    turns: Option<Turns>,
    /// Of a copy whose model may have ended the runtime as it computed.
    probation: Option<Probation>,
    bell: Arc<Bell>,
}

impl Slot {
    /// A copy loaded now, last used (maybe before an earlier eviction or restart) at `last_used`, that serves `at_a_time`
    /// requests at a time where it has such a limit.
    pub(crate) fn new(
        model: ModelId,
        last_used: Option<UnixMillis>,
        at_a_time: Option<NonZeroU32>,
        probation: Option<Probation>,
        bell: Arc<Bell>,
    ) -> Arc<Self> {
        Arc::new(Slot {
            model,
            gate: Gate::open(),
            last_used: AtomicU64::new(last_used.map_or(0, |time| time.0)),
            loaded: bell.clock.wall(),
            loaded_at: bell.clock.now(),
            drained: Notify::new(),
            is_revoked: AtomicBool::new(false),
            revoking: Notify::new(),
            broken: AtomicU64::new(0),
            turns: at_a_time.map(Turns::new),
            probation,
            bell,
        })
    }

    /// A guard, unless the copy takes no more requests.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Guard> {
        if !self.gate.enter() {
            return None;
        }
        self.touch();
        Some(Guard { alone: None, turn: None, place: None, slot: Arc::clone(self) })
    }

    /// The same for a caller who has waited for the load: it has its place among those inside, however many have one. A
    /// load serves all who waited for it, and more of them may wait for a load than for a turn.
    pub(crate) fn enter_first(self: &Arc<Self>) -> Option<Guard> {
        let mut guard = self.enter()?;
        guard.place = self.turns.as_ref().map(Turns::place_of_its_own);
        Some(guard)
    }

    /// Ends requests in flight, and those that come later.
    pub(crate) fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
        self.revoking.notify_waiters();
    }

    /// Never moves back: the index by last use counts on that. Two requests of one millisecond write once.
    fn touch(&self) {
        self.touch_at(self.bell.clock.wall());
    }

    pub(crate) fn touch_at(&self, at: UnixMillis) {
        if self.last_used.load(Ordering::Relaxed) < at.0 {
            self.last_used.fetch_max(at.0, Ordering::Relaxed);
        }
    }

    pub(crate) fn last_used(&self) -> Option<UnixMillis> {
        match self.last_used.load(Ordering::Relaxed) {
            0 => None,
            time => Some(UnixMillis(time)),
        }
    }

    pub(crate) fn used_since_load(&self) -> bool {
        self.last_used().is_some_and(|used| used >= self.loaded)
    }

    /// Whether the runtime has broken off a call on it within so many milliseconds.
    pub(crate) fn broke_within(&self, millis: u64) -> bool {
        let broken = self.broken.load(Ordering::Relaxed);
        broken > 0 && self.bell.clock.wall().0.saturating_sub(broken) <= millis
    }

    /// Whether the runtime computes for a request on it, as far as is known here.
    pub(crate) fn computes(&self) -> bool {
        match &self.probation {
            Some(probation) if probation.goes_on() => probation.computing.load(Ordering::Acquire) > 0,
            _ => self.gate.count() > 0,
        }
    }

    /// Whether it was on probation and is no longer.
    pub(crate) fn has_passed_probation(&self) -> bool {
        self.probation.as_ref().is_some_and(|probation| !probation.goes_on())
    }

    /// Whether it is on probation and has not answered any request well.
    pub(crate) fn has_answered_nothing(&self) -> bool {
        self.probation.as_ref().is_some_and(|probation| probation.left.load(Ordering::Acquire) == PROBATION)
    }

    fn is_on_probation(&self) -> bool {
        self.probation.as_ref().is_some_and(Probation::goes_on)
    }

    fn answered_well(&self) {
        if let Some(probation) = &self.probation {
            let _ = probation.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        }
    }

    /// How many requests are inside, for the decisions that take 32 bits.
    pub(crate) fn in_flight(&self) -> u32 {
        u32::try_from(self.gate.count()).unwrap_or(u32::MAX)
    }
}

/// Requests of a copy that serves so many at a time: the others wait in the order in which they came.
#[derive(Debug)]
struct Turns {
    free: Arc<Semaphore>,
    /// Requests that have a turn or wait for one, and those to come of who waited for the load.
    inside: Arc<AtomicUsize>,
    /// With so many inside no other comes in.
    most: usize,
}

impl Turns {
    fn new(at_a_time: NonZeroU32) -> Self {
        let at_a_time = usize::try_from(at_a_time.get()).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        // As many as upstream lets in: more would only wait for what their callers have given up.
        Turns { free: Arc::new(Semaphore::new(at_a_time)), inside: Arc::default(), most: at_a_time.saturating_mul(8).max(16) }
    }

    /// A place among those inside, full or not.
    fn place_of_its_own(&self) -> Place {
        self.inside.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.inside))
    }

    /// A place among those inside, while there is one.
    fn place(&self) -> Result<Place, WaitError> {
        let more = |inside: usize| (inside < self.most).then_some(inside + 1);
        match self.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_before) => Ok(Place(Arc::clone(&self.inside))),
            Err(inside) => Err(WaitError::TooManyWaiting { waiting: inside }),
        }
    }
}

/// A copy whose model may have ended the runtime: of all such models one loads or computes at a time, so that the next death
/// tells which it is. It lasts for a few requests, and who takes long does not keep the others waiting for long.
#[derive(Debug)]
pub(crate) struct Probation {
    /// Of all of them.
    alone: Arc<Semaphore>,
    /// Requests of this copy that are being computed.
    computing: AtomicUsize,
    /// Requests that are still to be answered well.
    left: AtomicUsize,
    /// Until when its requests wait for others, from the first one on.
    waits: OnceLock<Deadline>,
}

/// Requests that a suspect has to answer well.
const PROBATION: usize = 3;
/// How long a suspect waits for what others do: a load, or all requests of a copy together.
pub(crate) const ALONE: Duration = Duration::from_secs(2);

impl Probation {
    pub(crate) fn beside(others: &Arc<Semaphore>) -> Self {
        Probation { alone: Arc::clone(others), computing: AtomicUsize::new(0), left: AtomicUsize::new(PROBATION), waits: OnceLock::new() }
    }

    fn goes_on(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }
}

/// A request that a suspect computes, alone if that could be had.
struct Alone {
    slot: Arc<Slot>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Alone {
    /// `None` for a copy that is above suspicion.
    async fn on(slot: &Arc<Slot>) -> Option<Self> {
        let probation = slot.probation.as_ref().filter(|probation| probation.goes_on())?;
        let clock = &slot.bell.clock;
        let until = *probation.waits.get_or_init(|| clock.deadline_in(ALONE));
        let permit = clock.until(until, Arc::clone(&probation.alone).acquire_owned()).await;
        probation.computing.fetch_add(1, Ordering::AcqRel);
        Some(Alone { slot: Arc::clone(slot), _permit: permit.and_then(Result::ok) })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some(probation) = &self.slot.probation {
            probation.computing.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// How a call on a copy has ended, where that says something of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The runtime broke it off.
    Lost,
    /// The model has computed, and the runtime said that it went well.
    Well,
}

/// One of those inside.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A loaded copy in use: it is not unloaded while this lives, unless a drain ran past its cap ([`Guard::revoked`]).
#[must_use = "the copy may be unloaded once the guard is dropped"]
pub struct Guard {
    /// What its request is to suspects.
    alone: Option<Alone>,
    /// Before the copy: a turn ends no later than the use.
    turn: Option<OwnedSemaphorePermit>,
    /// Of a copy with turns: from the load on for who waited for it, for others from when they ask for a turn.
    place: Option<Place>,
    slot: Arc<Slot>,
}

impl Guard {
    /// Which model this guard keeps.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.slot.model
    }

    /// Waits until the copy takes this request, where it serves so many at a time; first come, first served. Its turn ends
    /// with the guard. At once where there is no limit.
    ///
    /// # Errors
    /// [`WaitError::TooManyWaiting`]: the copy has as many requests waiting as make sense.
    pub async fn turn(&mut self) -> Result<(), WaitError> {
        if let Some(turns) = &self.slot.turns {
            let place = self.place.take().map_or_else(|| turns.place(), Ok)?;
            // The semaphore is never closed.
            let permit = Arc::clone(&turns.free).acquire_owned().await.map_err(|_closed| WaitError::ShuttingDown)?;
            (self.turn, self.place) = (Some(permit), Some(place));
        }
        self.alone = Alone::on(&self.slot).await;
        Ok(())
    }

    /// Gives the turn back before the guard: this request waits for something else than the copy.
    pub fn end_turn(&mut self) {
        (self.alone, self.turn) = (None, None);
    }

    /// What says, later than now if need be, how a call on this copy has ended. If the runtime has died, that is how the models
    /// are known that computed: their calls break off before anybody notices that it does not answer. It is asked at once.
    pub fn witness(&self) -> impl FnOnce(Ended) + Send + Sync + 'static {
        let slot = Arc::clone(&self.slot);
        move |ended| match ended {
            Ended::Lost => {
                slot.broken.store(slot.bell.clock.wall().0, Ordering::Relaxed);
                slot.bell.broke.store(true, Ordering::Release);
                slot.bell.wake.notify_one();
            }
            Ended::Well => slot.answered_well(),
        }
    }

    /// Whether the [witness](Guard::witness) wants to know of calls that end well, too.
    #[must_use]
    pub fn is_on_probation(&self) -> bool {
        self.slot.is_on_probation()
    }

    /// Completes when the copy goes although this guard lives (a drain ran past its cap, or the runtime lost the
    /// model): the request should end with UNAVAILABLE.
    pub async fn revoked(&self) {
        // Made before the flag is read: it is told of what happens after that.
        let told = self.slot.revoking.notified();
        if !self.slot.is_revoked.load(Ordering::Acquire) {
            told.await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        (self.alone, self.turn, self.place) = (None, None, None);
        // A long request was using the copy until now.
        self.slot.touch();
        match self.slot.gate.leave() {
            Left::InUse => {}
            Left::Idle => {
                if self.slot.bell.starving.heard() {
                    self.slot.bell.wake.notify_one();
                }
            }
            Left::Drained => self.slot.drained.notify_one(),
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", self.slot.model)
    }
}
