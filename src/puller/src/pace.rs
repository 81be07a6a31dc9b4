//! Who may ask stores for something, and how fast. Everything that this process asks goes through one [`Pace`].
//!
//! The decisions are in `Core`, which knows no clock, no task and no lock; [`Pace`] puts waiting tasks around it. Kept at
//! any time:
//! - No more requests are under way than `Limits::requests`, and none begins that would be one too many for its store: a
//!   store's own limit halves when it says that it is asked too much, and grows by one after as many answers as it allows.
//! - What somebody waits for comes before what nobody waits for. The latter leaves an eighth of every limit free for the
//!   first request of the former, and half of it while the former is at work. No request is ever taken back.
//! - Within a class turns go round the downloads, whatever their number of files; within a download they go in the order
//!   of asking, except that what waits for another large part lets small objects pass.
//! - Nothing that may go waits. The two things that only time ends, a store's pause and an empty bucket, are slept out by
//!   one of the waiting tasks for all of them: there is no task of its own here.
//!
//! Retries, pauses of a single request and time-outs are left to whoever asks.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Gauge, GaugeHandle, Metrics};
use berth_types::{ByteSize, Deadline};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Urgency;

/// So many stores that nobody asks at the moment are remembered with their limits and pauses.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// A store that asks for a longer rest is asked once a minute all the same: one request does no harm, and a wrong
/// `Retry-After` must not stop a model for a day.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The bucket holds at least this much, so that slow rates are not spent in single frames.
const SMALLEST_BURST: u64 = 256 << 10;

/// What all downloads of this process may use together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests under way at once. At least 1, whatever this says.
    pub(crate) requests: usize,
    /// Ranges and objects of more than a small object's size under way at once, for each download. At least 1.
    pub(crate) parts_per_download: usize,
    /// Taken off the network; `None` is no limit. At least 1.
    pub(crate) bytes_per_second: Option<ByteSize>,
}

/// A value for each class of downloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByClass<T> {
    pub(crate) waited: T,
    pub(crate) background: T,
}

impl<T> ByClass<T> {
    fn of(&mut self, class: Urgency) -> &mut T {
        match class {
            Urgency::Waited => &mut self.waited,
            Urgency::Background => &mut self.background,
        }
    }
}

/// Requests at one moment, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Turns that are held.
    pub(crate) under_way: ByClass<usize>,
    /// Turns that are waited for.
    pub(crate) queued: ByClass<usize>,
}

type LaneId = u64;
/// Grows: of two waiting ones the smaller came first.
type Ticket = u64;
type Fingerprint = [u8; 32];

/// How many requests wait and run, of the process or of one store.
type Load = Snapshot;

impl Load {
    fn total(&self) -> usize {
        self.under_way.waited + self.under_way.background
    }

    /// Whether one more of `class` stays within `limit` and within its class's share of it.
    fn admits(&self, class: Urgency, limit: usize) -> bool {
        match class {
            Urgency::Waited => self.total() < limit,
            Urgency::Background => {
                let others_work = self.under_way.waited + self.queued.waited > 0;
                let share = if others_work { limit / 2 } else { limit };
                self.total() < (limit - limit.div_ceil(8)).max(1) && self.under_way.background < share.max(1)
            }
        }
    }

    /// So many requests are waited for from now on.
    fn raise(&mut self, queued: usize, under_way: usize) {
        self.queued.background -= queued;
        self.queued.waited += queued;
        self.under_way.background -= under_way;
        self.under_way.waited += under_way;
    }
}

/// What one store can take, as far as its answers tell.
#[derive(Debug)]
struct Store {
    /// From 1 to the process's limit.
    limit: usize,
    /// Grows when the limit is halved. Answers to requests of earlier rounds say nothing about the new limit.
    round: u64,
    /// Good answers of this round since the limit last grew.
    fine: usize,
    /// The most requests of this round that were under way at once: what the store refused cannot have been more.
    peak: usize,
    /// No request begins before.
    held_until: Option<Instant>,
    load: Load,
    /// Downloads that use it.
    lanes: usize,
}

impl Store {
    fn new(limit: usize) -> Self {
        Store { limit, round: 0, fine: 0, peak: 0, held_until: None, load: Load::default(), lanes: 0 }
    }

    fn begin(&mut self) -> u64 {
        self.peak = self.peak.max(self.load.total().min(self.limit));
        self.round
    }

    fn fine(&mut self, round: u64, most: usize) {
        if round != self.round {
            return;
        }
        self.fine += 1;
        if self.fine >= self.limit {
            self.fine = 0;
            self.limit = most.min(self.limit + 1);
        }
    }

    fn busy(&mut self, round: u64, pause: Option<Duration>, now: Instant) {
        let until = pause.map(|pause| now + pause.min(LONGEST_PAUSE));
        self.held_until = self.held_until.max(until);
        if round == self.round {
            // Half of what was tried: half of a limit that nobody came near would change nothing.
            self.limit = (self.peak / 2).max(1);
            self.round += 1;
            self.fine = 0;
            self.peak = 0;
        }
    }

    fn held(&self, now: Instant) -> Option<Instant> {
        self.held_until.filter(|until| *until > now)
    }
}

/// One download.
#[derive(Debug)]
struct Download {
    store: Fingerprint,
    class: Urgency,
    small: VecDeque<Ticket>,
    large: VecDeque<Ticket>,
    under_way: usize,
    large_under_way: usize,
    /// Bytes that are waited for.
    wanted: VecDeque<(Ticket, u64)>,
    /// Its place among the downloads that wait for bytes: what it has had, counted from when it joined them.
    had: u64,
    /// False once it is over; it stays until its last request is.
    open: bool,
}

impl Download {
    fn queued(&self) -> usize {
        self.small.len() + self.large.len()
    }

    /// The first that its parts allow, and whether it is a large one.
    fn first(&self, parts: usize) -> Option<(Ticket, bool)> {
        let small = self.small.front().map(|ticket| (*ticket, false));
        let large = self.large.front().filter(|_| self.large_under_way < parts).map(|ticket| (*ticket, true));
        small.into_iter().chain(large).min()
    }
}

/// A bucket of bytes that fills at a rate; kept as the moment at which it is full again.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    burst: u64,
    full_at: Option<Instant>,
    /// Downloads that wait for bytes, by what they have had, then by the ticket that is their first.
    lines: ByClass<BTreeMap<(u64, Ticket), LaneId>>,
    /// What the download had that was served last: whoever joins begins here.
    served: ByClass<u64>,
}

impl Bucket {
    fn new(rate: ByteSize) -> Self {
        let rate = rate.0.max(1);
        Bucket { rate, burst: (rate / 10).max(SMALLEST_BURST), full_at: None, lines: ByClass::default(), served: ByClass::default() }
    }

    fn nanos(&self, bytes: u64) -> (u128, u128) {
        let scaled = u128::from(bytes) * 1_000_000_000;
        (scaled / u128::from(self.rate), scaled.div_ceil(u128::from(self.rate)))
    }

    /// How long until `bytes` may be taken. More than the bucket holds may be taken when it is full, and are paid back.
    fn wait(&self, bytes: u64, now: Instant) -> Duration {
        let lacks = self.full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
        let (may_lack, _) = self.nanos(self.burst - bytes.min(self.burst));
        lacks.saturating_sub(duration(may_lack))
    }

    fn take(&mut self, bytes: u64, now: Instant) {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let (_, cost) = self.nanos(bytes);
        self.full_at = Some(full_at.checked_add(duration(cost)).unwrap_or(full_at)); // further off than clocks reach: never happens
    }

    /// Puts a download that waits for bytes, and is in no line, in its line.
    fn join(&mut self, lane: LaneId, download: &mut Download) {
        if let Some((first, _)) = download.wanted.front() {
            download.had = download.had.max(*self.served.of(download.class));
            self.lines.of(download.class).insert((download.had, *first), lane);
        }
    }

    fn leave(&mut self, download: &Download) {
        if let Some((first, _)) = download.wanted.front() {
            self.lines.of(download.class).remove(&(download.had, *first));
        }
    }

    /// The download whose turn it is.
    fn next(&self) -> Option<LaneId> {
        self.lines.waited.first_key_value().or_else(|| self.lines.background.first_key_value()).map(|(_, lane)| *lane)
    }
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// All that is known about who asks what. Whoever changes it asks for grants until there are none.
#[derive(Debug)]
struct Core {
    requests: usize,
    parts: usize,
    bucket: Option<Bucket>,
    /// Those that a download uses.
    stores: HashMap<Fingerprint, Store>,
    /// Those that none uses at the moment.
    idle: LruCache<Fingerprint, Store>,
    lanes: HashMap<LaneId, Download>,
    /// Downloads with queued requests, in the order of their turns.
    rings: ByClass<VecDeque<LaneId>>,
    load: Load,
    issued: u64,
}

impl Core {
    fn new(limits: &Limits) -> Self {
        Core {
            requests: limits.requests.max(1),
            parts: limits.parts_per_download.max(1),
            bucket: limits.bytes_per_second.map(Bucket::new),
            stores: HashMap::new(),
            idle: LruCache::new(REMEMBERED),
            lanes: HashMap::new(),
            rings: ByClass::default(),
            load: Load::default(),
            issued: 0,
        }
    }

    fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }

    /// A download begins.
    fn open(&mut self, store: Fingerprint, class: Urgency) -> LaneId {
        let lane = self.issue();
        let Core { stores, idle, requests, .. } = self;
        stores.entry(store).or_insert_with(|| idle.pop(&store).unwrap_or_else(|| Store::new(*requests))).lanes += 1;
        let (small, large, wanted) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        self.lanes.insert(lane, Download { store, class, small, large, under_way: 0, large_under_way: 0, wanted, had: 0, open: true });
        lane
    }

    /// A download is over, but for requests that are still under way.
    fn close(&mut self, lane: LaneId) {
        if let Some(download) = self.lanes.get_mut(&lane) {
            download.open = false;
            self.forget_if_over(lane);
        }
    }

    fn forget_if_over(&mut self, lane: LaneId) {
        let over = |download: &Download| !download.open && download.under_way == 0 && download.queued() == 0 && download.wanted.is_empty();
        let Some(store) = self.lanes.get(&lane).filter(|download| over(download)).map(|download| download.store) else { return };
        self.lanes.remove(&lane);
        let Some(used) = self.stores.get_mut(&store) else { return };
        used.lanes -= 1;
        if used.lanes == 0
            && let Some(unused) = self.stores.remove(&store)
        {
            self.idle.put(store, unused);
        }
    }

    /// `lane`, its store and the whole process's load.
    fn parts_of(&mut self, lane: LaneId) -> Option<(&mut Download, &mut Store, &mut Load)> {
        let download = self.lanes.get_mut(&lane)?;
        let store = self.stores.get_mut(&download.store)?;
        Some((download, store, &mut self.load))
    }

    /// Queues a request.
    fn ask(&mut self, lane: LaneId, large: bool) -> Ticket {
        let ticket = self.issue();
        if let Some((download, store, load)) = self.parts_of(lane) {
            let first = download.queued() == 0;
            let class = download.class;
            if large { &mut download.large } else { &mut download.small }.push_back(ticket);
            *load.queued.of(class) += 1;
            *store.load.queued.of(class) += 1;
            if first {
                self.rings.of(class).push_back(lane);
            }
        }
        ticket
    }

    /// Queues for `bytes`.
    fn ask_bytes(&mut self, lane: LaneId, bytes: u64) -> Ticket {
        let ticket = self.issue();
        if let (Some(download), Some(bucket)) = (self.lanes.get_mut(&lane), &mut self.bucket) {
            let first = download.wanted.is_empty();
            download.wanted.push_back((ticket, bytes));
            if first {
                bucket.join(lane, download);
            }
        }
        ticket
    }

    /// Whoever queued with `ticket` waits no more.
    fn leave(&mut self, lane: LaneId, ticket: Ticket) {
        if let (Some(download), Some(bucket)) = (self.lanes.get_mut(&lane), &mut self.bucket)
            && download.wanted.iter().any(|(other, _)| *other == ticket)
        {
            bucket.leave(download);
            download.wanted.retain(|(other, _)| *other != ticket);
            bucket.join(lane, download);
        }
        if let Some((download, store, load)) = self.parts_of(lane) {
            let (before, class) = (download.queued(), download.class);
            download.small.retain(|other| *other != ticket);
            download.large.retain(|other| *other != ticket);
            let (after, gone) = (download.queued(), before - download.queued());
            *load.queued.of(class) -= gone;
            *store.load.queued.of(class) -= gone;
            if gone > 0 && after == 0 {
                self.rings.of(class).retain(|other| *other != lane);
            }
        }
        self.forget_if_over(lane);
    }

    /// Somebody waits for this download now. Its requests go behind those that are waited for already.
    fn raise(&mut self, lane: LaneId) {
        let Core { lanes, stores, load, rings, bucket, .. } = self;
        let Some(download) = lanes.get_mut(&lane).filter(|download| download.class == Urgency::Background) else { return };
        let (queued, under_way) = (download.queued(), download.under_way);
        load.raise(queued, under_way);
        if let Some(store) = stores.get_mut(&download.store) {
            store.load.raise(queued, under_way);
        }
        if queued > 0 {
            rings.background.retain(|other| *other != lane);
            rings.waited.push_back(lane);
        }
        if let Some(bucket) = bucket {
            bucket.leave(download);
        }
        download.class = Urgency::Waited;
        download.had = 0; // the two classes count apart
        if let Some(bucket) = bucket {
            bucket.join(lane, download);
        }
    }

    /// The request with the turn begins now; the round that its answer counts for.
    fn begin(&mut self, lane: LaneId) -> u64 {
        self.parts_of(lane).map_or(0, |(_, store, _)| store.begin())
    }

    /// The store answered a request of `round`.
    fn fine(&mut self, lane: LaneId, round: u64) {
        let most = self.requests;
        if let Some((_, store, _)) = self.parts_of(lane) {
            store.fine(round, most);
        }
    }

    /// The store said to a request of `round` that it is asked too much.
    fn busy(&mut self, lane: LaneId, round: u64, pause: Option<Duration>, now: Instant) {
        if let Some((_, store, _)) = self.parts_of(lane) {
            store.busy(round, pause, now);
        }
    }

    /// A turn comes back.
    fn done(&mut self, lane: LaneId, large: bool) {
        if let Some((download, store, load)) = self.parts_of(lane) {
            download.under_way -= 1;
            download.large_under_way -= usize::from(large);
            *load.under_way.of(download.class) -= 1;
            *store.load.under_way.of(download.class) -= 1;
        }
        self.forget_if_over(lane);
    }

    /// Whoever may go next; it counts as gone.
    fn next_grant(&mut self, now: Instant) -> Option<Ticket> {
        self.next_bytes(now).or_else(|| self.next_turn(now))
    }

    fn next_bytes(&mut self, now: Instant) -> Option<Ticket> {
        let bucket = self.bucket.as_mut()?;
        let lane = bucket.next()?;
        let download = self.lanes.get_mut(&lane)?;
        let (ticket, bytes) = *download.wanted.front()?;
        if !bucket.wait(bytes, now).is_zero() {
            return None;
        }
        bucket.leave(download);
        bucket.take(bytes, now);
        *bucket.served.of(download.class) = download.had;
        download.wanted.pop_front();
        download.had = download.had.saturating_add(bytes);
        bucket.join(lane, download);
        Some(ticket)
    }

    fn next_turn(&mut self, now: Instant) -> Option<Ticket> {
        [Urgency::Waited, Urgency::Background].into_iter().find_map(|class| self.next_turn_of(class, now))
    }

    fn next_turn_of(&mut self, class: Urgency, now: Instant) -> Option<Ticket> {
        if !self.load.admits(class, self.requests) {
            return None;
        }
        let may_go = |lane: &LaneId| {
            let download = self.lanes.get(lane)?;
            let store = self.stores.get(&download.store)?;
            let open = store.held(now).is_none() && store.load.admits(class, store.limit);
            download.first(self.parts).filter(|_| open)
        };
        // Whoever cannot go keeps its place.
        let ring = self.rings.of(class);
        let (at, lane, ticket, large) =
            ring.iter().enumerate().find_map(|(at, lane)| may_go(lane).map(|(ticket, large)| (at, *lane, ticket, large)))?;
        ring.remove(at);
        let (download, store, load) = self.parts_of(lane)?;
        if large { &mut download.large } else { &mut download.small }.pop_front();
        download.under_way += 1;
        download.large_under_way += usize::from(large);
        for load in [load, &mut store.load] {
            *load.queued.of(class) -= 1;
            *load.under_way.of(class) += 1;
        }
        if download.queued() > 0 {
            self.rings.of(class).push_back(lane);
        }
        Some(ticket)
    }

    /// The next moment at which time alone lets somebody go.
    fn next_time(&self, now: Instant) -> Option<Instant> {
        let waits = |store: &Store| store.load.queued.waited + store.load.queued.background > 0;
        let pauses = self.stores.values().filter(|store| waits(store)).filter_map(|store| store.held(now));
        let bytes = self.bucket.as_ref().and_then(|bucket| {
            let (_, bytes) = self.lanes.get(&bucket.next()?)?.wanted.front()?;
            now.checked_add(bucket.wait(*bytes, now))
        });
        pauses.chain(bytes).min()
    }
}

/// One for the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pace(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Whether bytes are counted at all.
    counts_bytes: bool,
    gauges: Gauges,
    desk: Mutex<Desk>,
}

/// What the metrics page shows.
struct Gauges {
    under_way: GaugeHandle,
    queued: ByClass<GaugeHandle>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gauges")
    }
}

impl Gauges {
    fn of(metrics: &Metrics, requests: usize) -> Self {
        metrics.set(Gauge::StoreRequestsLimit, &[], requests as u64);
        let queued = |class| metrics.gauge(Gauge::StoreRequestsQueued, &[("class", class)]);
        Gauges {
            under_way: metrics.gauge(Gauge::StoreRequestsUnderWay, &[]),
            queued: ByClass { waited: queued("waited"), background: queued("background") },
        }
    }

    fn show(&self, load: &Snapshot) {
        self.under_way.set((load.under_way.waited + load.under_way.background) as u64);
        self.queued.waited.set(load.queued.waited as u64);
        self.queued.background.set(load.queued.background as u64);
    }
}

#[derive(Debug)]
struct Desk {
    core: Core,
    waiting: BTreeMap<Ticket, Arc<Notify>>,
    /// Granted, and not fetched by the waiting task yet.
    granted: HashSet<Ticket>,
    /// Who of `waiting` sleeps until the next moment at which somebody may go, and until when.
    keeper: Option<(Ticket, Instant)>,
}

impl Desk {
    /// Hands out all that may go, and sees to it that somebody wakes when more may. `asking` looks for itself.
    fn settle(&mut self, now: Instant, asking: Option<Ticket>) {
        while let Some(ticket) = self.core.next_grant(now) {
            if let Some(bell) = self.waiting.remove(&ticket) {
                self.granted.insert(ticket);
                bell.notify_one();
            }
        }
        let keeper = self.keeper.filter(|(ticket, _)| self.waiting.contains_key(ticket));
        self.keeper = match (self.core.next_time(now), keeper) {
            (None, _) => None,
            (Some(at), Some((ticket, until))) if now < until && until <= at => Some((ticket, until)),
            (Some(at), keeper) => {
                let ticket = keeper.map(|(ticket, _)| ticket).or(asking.filter(|ticket| self.waiting.contains_key(ticket)));
                let ticket = ticket.or_else(|| self.waiting.keys().next().copied());
                if let Some(bell) = ticket.filter(|_| ticket != asking).and_then(|ticket| self.waiting.get(&ticket)) {
                    bell.notify_one();
                }
                ticket.map(|ticket| (ticket, at))
            }
        };
    }
}

impl Pace {
    pub(crate) fn new(limits: Limits, clock: Clock, metrics: &Metrics) -> Self {
        let gauges = Gauges::of(metrics, limits.requests);
        let desk = Desk { core: Core::new(&limits), waiting: BTreeMap::new(), granted: HashSet::new(), keeper: None };
        Pace(Arc::new(Shared { clock, counts_bytes: limits.bytes_per_second.is_some(), gauges, desk: Mutex::new(desk) }))
    }

    /// A download from `store` begins. It is over when its lane and its turns are dropped.
    pub(crate) fn lane(&self, store: [u8; 32], haste: Arc<Haste>) -> Lane {
        let mut known = haste.0.lock(); // kept until the lane is in it, lest it be raised in between
        let id = self.0.desk.lock().core.open(store, known.class);
        if known.class == Urgency::Background {
            known.lanes.push((Arc::downgrade(&self.0), id));
        }
        drop(known);
        Lane { pace: self.clone(), id, haste }
    }

    /// What is under way and what waits.
    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.0.desk.lock().core.load
    }

    /// Changes something and hands out what may go then.
    fn change<T>(&self, change: impl FnOnce(&mut Core, Instant) -> T) -> T {
        let now = self.0.clock.now();
        let mut desk = self.0.desk.lock();
        let outcome = change(&mut desk.core, now);
        desk.settle(now, None);
        self.0.gauges.show(&desk.core.load);
        outcome
    }
}

/// How urgent a download is at the moment, shared by all who care. It only ever becomes more urgent.
#[derive(Debug)]
pub(crate) struct Haste(Mutex<Known>);

#[derive(Debug)]
struct Known {
    class: Urgency,
    /// Whom to tell.
    lanes: Vec<(Weak<Shared>, LaneId)>,
    /// What becomes as urgent as this.
    tied: Vec<Weak<Haste>>,
}

impl Haste {
    pub(crate) fn new(class: Urgency) -> Self {
        Haste(Mutex::new(Known { class, lanes: Vec::new(), tied: Vec::new() }))
    }

    /// Somebody waits from now on, for this and for whatever is tied to it. Queued requests move up at once.
    pub(crate) fn raise(&self) {
        let mut rest = self.raise_alone();
        while let Some(next) = rest.pop() {
            rest.extend(next.raise_alone());
        }
    }

    /// From now on each of the two is raised with the other.
    pub(crate) fn tie(self: &Arc<Self>, other: &Arc<Haste>) {
        for (one, other) in [(self, other), (other, self)] {
            one.0.lock().tied.push(Arc::downgrade(other));
        }
        // Either may have been raised before it was tied.
        if self.is_waited_for() || other.is_waited_for() {
            self.raise();
            other.raise();
        }
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        self.0.lock().class == Urgency::Waited
    }

    /// Returns what is to be raised with it.
    fn raise_alone(&self) -> Vec<Arc<Haste>> {
        let (lanes, tied) = {
            let mut known = self.0.lock();
            known.class = Urgency::Waited;
            (std::mem::take(&mut known.lanes), std::mem::take(&mut known.tied))
        };
        for (shared, lane) in lanes {
            if let Some(shared) = shared.upgrade() {
                Pace(shared).change(|core, _| core.raise(lane));
            }
        }
        tied.iter().filter_map(Weak::upgrade).collect()
    }
}

/// One download.
#[derive(Debug)]
pub(crate) struct Lane {
    pace: Pace,
    id: LaneId,
    haste: Arc<Haste>,
}

impl Lane {
    /// Waits until one request may be sent. `large` ones count against the download's parts. Poll it until it is done or
    /// drop it: a turn may be kept for it meanwhile, and it may be the one that sleeps for all.
    pub(crate) async fn turn(&self, large: bool) -> Turn {
        self.wait(Asked::Turn { large }).await;
        let round = self.pace.0.desk.lock().core.begin(self.id);
        Turn { pace: self.pace.clone(), lane: self.id, large, round, counted: AtomicBool::new(false) }
    }

    /// Waits until `n` more bytes may be taken off the network. They count as taken, also when nobody waits for the end.
    pub(crate) async fn bytes(&self, n: u64) {
        if self.pace.0.counts_bytes && n > 0 {
            self.wait(Asked::Bytes(n)).await;
        }
    }

    async fn wait(&self, asked: Asked) {
        let bell = Arc::new(Notify::new());
        let mut waiter = Waiter::new(self, asked, Arc::clone(&bell));
        loop {
            match waiter.look() {
                Look::Granted => return,
                Look::Wait => bell.notified().await,
                Look::WaitUntil(at) => {
                    let _rung_or_late = self.pace.0.clock.until(Deadline::at(at), bell.notified()).await;
                }
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let here = Arc::as_ptr(&self.pace.0);
        self.haste.0.lock().lanes.retain(|(shared, lane)| *lane != self.id || shared.as_ptr() != here);
        self.pace.change(|core, _| core.close(self.id));
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Turn { large: bool },
    Bytes(u64),
}

enum Look {
    Granted,
    Wait,
    WaitUntil(Instant),
}

/// A place in a queue; left when dropped.
struct Waiter<'a> {
    lane: &'a Lane,
    asked: Asked,
    ticket: Ticket,
    /// True when what was asked for is in the caller's hands.
    served: bool,
}

impl<'a> Waiter<'a> {
    fn new(lane: &'a Lane, asked: Asked, bell: Arc<Notify>) -> Self {
        let mut desk = lane.pace.0.desk.lock();
        let ticket = match asked {
            Asked::Turn { large } => desk.core.ask(lane.id, large),
            Asked::Bytes(n) => desk.core.ask_bytes(lane.id, n),
        };
        desk.waiting.insert(ticket, bell);
        Waiter { lane, asked, ticket, served: false }
    }

    fn look(&mut self) -> Look {
        let shared = &self.lane.pace.0;
        let now = shared.clock.now();
        let mut desk = shared.desk.lock();
        desk.settle(now, Some(self.ticket));
        shared.gauges.show(&desk.core.load);
        if desk.granted.remove(&self.ticket) {
            self.served = true;
            return Look::Granted;
        }
        match desk.keeper {
            Some((ticket, at)) if ticket == self.ticket => Look::WaitUntil(at),
            _ => Look::Wait,
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let shared = &self.lane.pace.0;
        let now = shared.clock.now();
        let mut desk = shared.desk.lock();
        if desk.granted.remove(&self.ticket) {
            if let Asked::Turn { large } = self.asked {
                desk.core.done(self.lane.id, large);
            }
        } else {
            desk.waiting.remove(&self.ticket);
            desk.core.leave(self.lane.id, self.ticket);
        }
        desk.settle(now, None);
        shared.gauges.show(&desk.core.load);
    }
}

/// A permit for one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pace: Pace,
    lane: LaneId,
    large: bool,
    round: u64,
    counted: AtomicBool,
}

impl Turn {
    /// The store answered as it should. Counts once.
    pub(crate) fn fine(&self) {
        if !self.counted.swap(true, Ordering::Relaxed) {
            self.pace.change(|core, _| core.fine(self.lane, self.round));
        }
    }

    /// The store said that it is asked too much, and perhaps for how long it wants to be left alone.
    pub(crate) fn busy(&self, pause: Option<Duration>) {
        self.pace.change(|core, now| core.busy(self.lane, self.round, pause, now));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pace.change(|core, _| core.done(self.lane, self.large));
    }
}

#[cfg(test)]
mod tests;
