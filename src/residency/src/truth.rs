//! What is really in use, held against the books.
//!
//! Somebody who can look ([`berth_memory::Source`]) is asked once a second, more often while a memory is nearly full, and
//! before memory is given out when what was last seen is older than the last copy that came or went. From that follow: what
//! a copy of files that were never loaded takes, which is what the server has grown by while it had nothing else to do; how
//! much of the budget is not there in truth; which copies go although the ledger has room; and whether the server had better
//! be started anew. What is decided says [`berth_plan::pressure`].
//!
//! Invariants: without a source, and of what it cannot tell, nothing changes; nothing is evicted on a reading that is older
//! than the last memory that came back; memory that was seen to be kept by the server never makes a copy look smaller.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_adapters::{LoadError, LoadFault};
use berth_memory::Source;
use berth_plan::pressure::{self, Share};
use berth_plan::{Event, MayEvict, Memory, Phase, device, free_up};
use berth_telemetry::{Counter, Gauge, Metrics};
use berth_types::{ByteSize, ContentDigest, Footprint, ModelId, Pool, Reading, UnixMillis, Usage};
use tracing::{info, warn};

use crate::Recycle;
use crate::admission::residents;
use crate::owner::Owner;

/// Between two readings: usually, and while a memory is nearly full.
const USUAL: Duration = Duration::from_secs(1);
const STRAINED: Duration = Duration::from_millis(200);
/// How long a server that gave its memory back when it was drained is not drained again.
const SPARED: Duration = Duration::from_secs(15 * 60);
/// A reading that takes longer tells nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What was seen around one load.
#[derive(Debug)]
pub(crate) struct Around {
    pub(crate) before: Reading,
    pub(crate) after: Reading,
}

/// Whether what was measured is remembered as the size of the same files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is too uncertain.
    Not,
    /// By what the server grew: a later load may show it to be wrong.
    Seen,
    /// The server said so.
    Told,
}

/// A load whose end will tell what the copy takes.
#[derive(Debug)]
struct Learning {
    /// It has the server's loads to itself, because it must.
    alone: bool,
    /// Nothing is known of its files: others wait for it.
    unknown: bool,
    /// How often something had come or gone when it began; `None` when it was not alone even then.
    stirred: Option<u64>,
    /// When it began; `None` when requests were under way even then.
    calm_from: Option<UnixMillis>,
    oom_kills: Option<u64>,
}

/// How it was before the loads that are under way began.
#[derive(Debug)]
struct BeforeLoads {
    /// What was in use.
    used: Footprint,
    /// What was charged to everything else.
    settled: Footprint,
}

/// The server is to be started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recycling {
    /// Its copies leave, and have until then.
    Draining { until: Instant },
    /// Nothing is loaded there, and that did not help.
    Told,
}

/// Whether evicting helps a memory that is nearly full.
#[derive(Clone, Copy, Debug)]
enum Relief {
    /// Copies were evicted that were charged with `freed`, when so much was in `use`.
    Tried { used: ByteSize, freed: ByteSize },
    /// It did not: the server keeps what it has, or others use it. Nothing more goes until noticeably more than this is used.
    Futile { used: ByteSize },
}

/// What is known, and what follows.
pub(crate) struct Truth {
    source: Option<Arc<dyn Source>>,
    /// The server's process, as far as it was ever seen.
    life: Option<u64>,
    /// The newest reading, the moment in the owner's sequence at which it was begun, and when it was there.
    reading: Option<(u64, Instant, Reading)>,
    /// One is under way.
    looking: bool,
    next: Instant,
    /// The moment in the owner's sequence at which a copy last came or went.
    changed: u64,
    /// How often one did.
    stirred: u64,
    learning: HashMap<ModelId, Learning>,
    before_loads: Option<BeforeLoads>,
    /// The server's process has been told to load something.
    loaded_something: bool,
    /// What it held before that.
    base: Option<Footprint>,
    /// GPUs of which nobody tells how much of them it holds.
    shares: BTreeMap<Pool, Share>,
    /// How often something had come or gone at the last reading, and when that was.
    seen_at: Option<(u64, UnixMillis)>,
    retained: Footprint,
    strained: BTreeSet<Pool>,
    /// GPUs that were there and are no more.
    gone: BTreeSet<Pool>,
    relief: BTreeMap<Pool, Relief>,
    bloated: bool,
    recycling: Option<Recycling>,
    /// It was drained for nothing, and is not before then.
    spared_until: Option<Instant>,
}

impl Truth {
    pub(crate) fn new(source: Option<Arc<dyn Source>>, now: Instant) -> Self {
        Truth {
            source,
            life: None,
            reading: None,
            looking: false,
            next: now,
            changed: 0,
            stirred: 0,
            learning: HashMap::new(),
            before_loads: None,
            loaded_something: false,
            base: None,
            shares: BTreeMap::new(),
            seen_at: None,
            retained: Footprint::default(),
            strained: BTreeSet::new(),
            gone: BTreeSet::new(),
            relief: BTreeMap::new(),
            bloated: false,
            recycling: None,
            spared_until: None,
        }
    }

    /// When time alone makes something due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        (self.source.is_some() && !self.looking).then_some(self.next)
    }

    /// The newest reading.
    pub(crate) fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref().map(|(_, _, reading)| reading)
    }

    pub(crate) fn retained(&self) -> &Footprint {
        &self.retained
    }

    /// What the server held before its first load, with all that was in use of the GPUs that it has alone.
    pub(crate) fn base(&self) -> Option<Footprint> {
        Some(self.base.as_ref()?.plus(&pressure::base(&self.shares)))
    }

    pub(crate) fn is_strained(&self, pool: Pool) -> bool {
        self.strained.contains(&pool)
    }

    /// Whether a load has the server to itself, so that what it takes can be told.
    pub(crate) fn loads_alone(&self, model: &ModelId) -> bool {
        self.learning.get(model).is_some_and(|learning| learning.alone)
    }

    pub(crate) fn is_recycling(&self) -> bool {
        self.recycling.is_some()
    }

    /// Of the memories in which the server can be seen.
    fn tells_held(&self) -> bool {
        self.reading().is_some_and(|reading| reading.held().is_some())
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.reading.as_ref().is_some_and(|(began, at, _)| *began > self.changed && now < *at + USUAL + PATIENCE)
    }
}

impl Owner {
    /// A copy came or went, or is about to: what was seen before says nothing of what is used now.
    pub(crate) fn stir(&mut self) {
        self.truth.stirred += 1;
        self.truth.changed = self.work.sequence.next();
    }

    /// Begins a reading, if one is due and none is under way.
    pub(crate) fn read_if_due(&mut self) {
        if self.truth.looking || self.truth.next > self.clock.now() {
            return;
        }
        if let Some(source) = &self.truth.source {
            self.truth.looking = true;
            self.work.read_memory(Arc::clone(source));
        }
    }

    /// Whether what is known of the memory is new enough to give some of it out. If not, a reading begins, and memory is
    /// given out when it has come.
    pub(crate) fn sees_clearly(&mut self) -> bool {
        let now = self.clock.now();
        if self.truth.source.is_none() || self.truth.is_fresh(now) {
            return true;
        }
        self.truth.next = now;
        false
    }

    /// The books as far as they are true.
    pub(crate) fn memory(&self) -> Memory {
        let memory = self.ledger.sums().memory;
        let Some(reading) = self.truth.reading() else { return memory };
        let to_load = self.leased_by(self.to_load.iter().map(|ticket| &ticket.model));
        let loading = self.leased_by(self.loading.iter());
        let coming = match &self.truth.before_loads {
            Some(BeforeLoads { used, settled }) => {
                let now = (used_of(reading), memory.charged.minus(&loading).minus(&to_load));
                pressure::still_coming(&loading, [used, &now.0], [settled, &now.1])
            }
            None => loading,
        };
        let coming = coming.plus(&to_load);
        let withheld = pressure::withheld(&memory.budget, &memory.charged, &coming, &self.truth.retained, reading, self.config.marks);
        Memory { withheld, ..memory }
    }

    /// What is charged to these models.
    fn leased_by<'a>(&'a self, models: impl Iterator<Item = &'a ModelId>) -> Footprint {
        let leases = models.filter_map(|model| self.entries.get(model)?.lease.as_ref());
        leases.fold(Footprint::default(), |sum, lease| sum.plus(lease.bytes()))
    }

    pub(crate) fn on_memory_read(&mut self, began: u64, reading: Reading) {
        let now = self.clock.now();
        self.truth.looking = false;
        if let Some(life) = reading.life
            && self.truth.life.replace(life).is_some_and(|before| before != life)
        {
            self.another_server(!self.loading.is_empty());
        }
        if let Some(held) = reading.held().filter(|_| !self.truth.loaded_something) {
            // One that was told to load something before, by this process or an earlier one, holds more than it began with.
            let began_with = reading.life.and_then(|life| self.shared.history.lock().base_of(life));
            self.truth.loaded_something = began_with.is_some();
            let [base, gpus] = began_with.unwrap_or_else(|| [held, Footprint::default()]);
            self.truth.base = Some(base);
            self.truth.shares = gpus.gpus().map(|gpu| (Pool::Gpu(gpu), Share::alone(gpus.get(Pool::Gpu(gpu))))).collect();
        }
        self.share_gpus(&reading);
        let reading = pressure::attributed(reading, &self.truth.shares);
        let is_news = began > self.truth.changed;
        if let (Some(held), Some(base)) = (reading.held(), self.truth.base())
            && is_news
            && self.loading.is_empty()
            && !self.is_unloading()
        {
            self.truth.retained = pressure::retained(&held, &base, &self.ledger.sums().memory.charged);
        }
        self.truth.reading = Some((began, now, reading));
        if is_news && !self.is_away() && self.ending.is_none() {
            self.relieve_what_is_full();
            self.look_at_bloat();
        }
        self.truth.next = now + if self.truth.strained.is_empty() { USUAL } else { STRAINED };
        self.reconsider |= !self.to_fit.is_empty();
        self.show_truth();
    }

    /// Whether the server has the GPUs alone of which nobody tells how much of them it holds.
    fn share_gpus(&mut self, reading: &Reading) {
        let now = (self.truth.stirred, self.clock.wall());
        let idle = self.loading.is_empty() && !self.is_unloading();
        let rests = idle && self.truth.seen_at.is_some_and(|(stirred, at)| stirred == now.0 && !self.any_request_since(Some(at)));
        self.truth.seen_at = Some(now);
        let shares = pressure::shares(&self.truth.shares, reading, !self.truth.loaded_something, rests);
        let before = std::mem::replace(&mut self.truth.shares, shares);
        for pool in before.keys().filter(|pool| self.truth.shares.get(pool) == Some(&Share::Others) && before[pool] != Share::Others) {
            info!(pool = %pool, "a GPU is not the runtime's alone, what it holds there cannot be told");
        }
        if self.truth.loaded_something && pressure::base(&before) != pressure::base(&self.truth.shares) {
            self.note_base();
        }
    }

    /// What the server held before its first load is on disk before this process may end: its successor sees what it holds by then.
    fn note_base(&mut self) {
        if let (Some(life), Some(base)) = (self.truth.life, &self.truth.base) {
            self.shared.history.lock().note_base(life, base, pressure::base(&self.truth.shares));
            self.save();
        }
    }

    /// The server's process is another one, which holds nothing yet.
    pub(crate) fn another_server(&mut self, loads: bool) {
        self.truth.loaded_something = loads;
        self.truth.base = None;
        self.truth.shares.clear();
        self.truth.retained = Footprint::default();
        self.truth.bloated = false;
        self.truth.recycling = None;
        self.truth.spared_until = None;
        self.shared.bloated.send_replace(None);
    }

    fn is_unloading(&self) -> bool {
        self.leaving.iter().filter_map(|model| self.entries.get(model)).any(|entry| entry.phase == Phase::Unloading)
    }

    /// Copies go, least recently used first, from memories that are nearly full.
    fn relieve_what_is_full(&mut self) {
        let Some((_, _, reading)) = &self.truth.reading else { return };
        // Of what nobody can tell any more, and of a GPU that has dropped out, nothing follows.
        let tells = |pool: &Pool| reading.usage(*pool).is_some_and(|usage| *pool == Pool::Host || !device::is_gone(usage));
        self.truth.relief.retain(|pool, _| tells(pool));
        for pool in self.truth.strained.extract_if(.., |pool| !tells(pool)) {
            info!(pool = %pool, "a memory that was nearly full cannot be seen any more");
            self.metrics.set(Gauge::MemoryStrained, &[("pool", &*pool.to_string())], 0);
        }
        let (mut excess, mut used) = (Vec::new(), Vec::new());
        for (pool, usage) in reading.pools.iter().filter_map(|(pool, real)| Some((*pool, real.usage?))).collect::<Vec<_>>() {
            if self.has_gone(pool, usage) {
                continue;
            }
            let before = self.truth.strained.contains(&pool);
            let strain = pressure::strain(before, usage, self.config.marks);
            if strain.strained && self.truth.strained.insert(pool) {
                warn!(pool = %pool, used = %usage.used, limit = %usage.limit, excess = %strain.excess, "memory is nearly full, idle copies are evicted until it is not");
            } else if !strain.strained && self.truth.strained.remove(&pool) {
                info!(pool = %pool, used = %usage.used, limit = %usage.limit, "memory is no longer nearly full");
            }
            // Only what models are charged with can be had back, and only if they give it back.
            if strain.strained && !self.is_futile(pool, usage) && self.ledger.sums().memory.charged.get(pool).0 > 0 {
                excess.push((pool, strain.excess));
                used.push((pool, usage.used));
            } else if !strain.strained {
                self.truth.relief.remove(&pool);
            }
        }
        let returning = self.ledger.sums().memory.returning;
        let excess = Footprint::of(excess).minus(&returning);
        let victims = free_up(&excess, residents(&mut self.lru, &self.entries, self.clock.now()));
        for victim in victims {
            if self.evict_idle(&victim, "memory is nearly full") {
                self.metrics.add(Counter::PressureEvictions, &[], 1);
            }
        }
        let more = self.ledger.sums().memory.returning.minus(&returning);
        for (pool, used) in used.into_iter().filter(|(pool, _)| more.get(*pool).0 > 0) {
            let tried = self.truth.relief.entry(pool).or_insert(Relief::Tried { used, freed: ByteSize::ZERO });
            if let Relief::Tried { freed, .. } = tried {
                *freed += more.get(pool);
            }
        }
    }

    /// Whether this is a GPU that is there no more: then its idle copies go, to be loaded on another one when they are asked for.
    fn has_gone(&mut self, pool: Pool, usage: Usage) -> bool {
        if pool == Pool::Host || !device::is_gone(usage) {
            if self.truth.gone.remove(&pool) {
                info!(pool = %pool, limit = %usage.limit, "a GPU is there again");
            }
            return false;
        }
        let memory = self.ledger.sums().memory;
        let left = Footprint::of([(pool, memory.charged.get(pool).saturating_sub(memory.returning.get(pool)))]);
        if self.truth.gone.insert(pool) {
            warn!(pool = %pool, charged = %left, "a GPU is there no more, nothing is put on it and its idle models go");
        }
        for victim in free_up(&left, residents(&mut self.lru, &self.entries, self.clock.now())) {
            self.evict_idle(&victim, "its GPU is there no more");
        }
        true
    }

    /// Whether evicting more would not help: what went before freed less than half of what it was charged with.
    fn is_futile(&mut self, pool: Pool, usage: Usage) -> bool {
        let all_back = self.ledger.sums().memory.returning.get(pool).0 == 0;
        match self.truth.relief.get(&pool).copied() {
            Some(Relief::Tried { used, freed }) if all_back => {
                self.truth.relief.remove(&pool);
                let futile = usage.used + freed.percent(50) > used;
                if futile {
                    warn!(pool = %pool, used = %usage.used, evicted = %freed, "memory stays nearly full although models were evicted: others use it, or the runtime keeps it");
                    self.truth.relief.insert(pool, Relief::Futile { used: usage.used });
                }
                futile
            }
            Some(Relief::Futile { used }) if usage.used <= used + usage.limit.percent(2) => true,
            Some(Relief::Futile { .. }) => {
                self.truth.relief.remove(&pool);
                false
            }
            Some(Relief::Tried { .. }) | None => false,
        }
    }

    // What a copy takes.

    /// Whether the load of `model`, which would begin now, is to have the server to itself.
    pub(crate) fn would_learn_alone(&self, model: &ModelId) -> bool {
        self.truth.tells_held()
            && !self.knows_size_of(model)
            && self.entries.get(model).and_then(|entry| entry.need.as_ref()).is_some_and(|need| pressure::learns_alone(need, self.ledger.budget()))
    }

    /// Whether what `model` is thought to take is a guess that may be far off, and will be measured.
    pub(crate) fn is_guess(&self, model: &ModelId) -> bool {
        let declared =
            self.entries.get(model).and_then(|entry| entry.registration.as_ref()).is_some_and(|registration| registration.declared_size.is_some());
        !declared && self.truth.tells_held() && !self.knows_size_of(model)
    }

    fn knows_size_of(&self, model: &ModelId) -> bool {
        let history = self.shared.history.lock();
        match self.digest_of(model) {
            Some(digest) => history.learned(digest).is_some(),
            None => history.measured(model).is_some(),
        }
    }

    /// Whether that is by what the server grew.
    fn saw_size_of(&self, model: &ModelId) -> bool {
        self.digest_of(model).is_some_and(|digest| self.shared.history.lock().was_seen(digest))
    }

    fn digest_of(&self, model: &ModelId) -> Option<ContentDigest> {
        self.entries.get(model)?.content.as_ref().map(|content| content.digest)
    }

    /// Whether it must wait for the server to have nothing else to do. A server that loads one model at a time loses nothing
    /// by learning of each: there only what is being unloaded is waited for.
    pub(crate) fn must_wait_to_learn(&self, model: &ModelId) -> bool {
        let learns = self.would_learn_alone(model) || self.loads_one_at_a_time() && self.truth.tells_held() && !self.knows_size_of(model);
        learns && (!self.loading.is_empty() || self.is_unloading())
    }

    /// Whether copies that go now would disturb what is being learned, and may wait.
    pub(crate) fn must_not_be_disturbed(&self) -> bool {
        let learns = |learning: &Learning| learning.unknown && learning.stirred.is_some();
        let measured = |model: &ModelId| self.loads_one_at_a_time() && self.truth.learning.get(model).is_some_and(learns);
        self.loading.iter().any(|model| self.truth.loads_alone(model) || measured(model))
    }

    fn loads_one_at_a_time(&self) -> bool {
        self.work.runtime.info().load_concurrency.get() == 1
    }

    /// The load of `model` begins. Who is asked around it, where that may tell something.
    pub(crate) fn begin_learning(&mut self, model: &ModelId) -> Watched {
        let Some(source) = self.truth.source.clone() else { return Watched::default() };
        let (quiet, unknown) = (self.loading.is_empty() && !self.is_unloading(), !self.knows_size_of(model));
        // What was seen once is looked at again whenever a load can be told apart.
        let measured = quiet && self.truth.tells_held() && (unknown || self.saw_size_of(model));
        let alone = self.would_learn_alone(model);
        if self.loading.is_empty() {
            // Those that are leased and wait have taken as little of it.
            let waiting = self.leased_by(self.to_load.iter().map(|ticket| &ticket.model));
            let others = self.ledger.sums().memory.charged.minus(&self.leased_by([model].into_iter())).minus(&waiting);
            // What was seen before the last change tells nothing of what is used now: all of the lease is still to come then.
            let now = self.clock.now();
            let seen = self.truth.reading().filter(|_| self.truth.is_fresh(now));
            self.truth.before_loads = seen.map(|reading| BeforeLoads { used: used_of(reading), settled: others });
        }
        self.stir();
        if !std::mem::replace(&mut self.truth.loaded_something, true) {
            self.note_base();
        }
        let stirred = measured.then_some(self.truth.stirred);
        let calm_from = measured.then(|| self.clock.wall()).filter(|_| !self.any_request_since(None));
        let oom_kills = self.truth.reading().and_then(|reading| reading.oom_kills);
        self.truth.learning.insert(model.clone(), Learning { alone, unknown, stirred, calm_from, oom_kills });
        Watched { source: Some(source), measure: stirred.is_some() }
    }

    /// Whether requests are under way, or have come since this moment.
    fn any_request_since(&self, since: Option<UnixMillis>) -> bool {
        let came = |used: UnixMillis| since.is_some_and(|since| used >= since);
        self.shared.copies.iter().any(|copy| copy.in_flight() > 0 || copy.last_used().is_some_and(came))
    }

    /// It has ended. What the copy is charged with from now on, where that was seen; and whether that is remembered.
    pub(crate) fn learned(&mut self, model: &ModelId, around: Option<&Around>) -> Option<(Footprint, Kept)> {
        let learning = self.truth.learning.get(model).filter(|learning| learning.stirred == Some(self.truth.stirred))?;
        let around = around.filter(|around| around.before.life == around.after.life)?;
        let [before, after] = [&around.before, &around.after].map(|reading| pressure::attributed(reading.clone(), &self.truth.shares));
        let in_traffic = learning.calm_from.is_none_or(|began| self.any_request_since(Some(began)));
        let unknown = learning.unknown;
        let entry = self.entries.get(model)?;
        let need = entry.need.clone()?;
        let charged = self.ledger.sums().memory.charged.minus(entry.lease.as_ref()?.bytes());
        let (held_before, held_after) = (before.held()?, after.held()?);
        // Of a server whose beginning nobody saw, all may have been kept.
        let kept = self.truth.base().map_or_else(|| need.clone(), |base| pressure::retained(&held_before, &base, &charged));
        let told = |pool: Pool| -> Option<[ByteSize; 2]> {
            let [before, after] = [&before, &after].map(|reading| reading.pools.get(&pool).copied().unwrap_or_default());
            match (before.held.zip(after.held), before.usage.zip(after.usage)) {
                (Some((before, after)), _) => Some([before, after]),
                // A driver that does not tell what is whose: what all of the GPU grew by.
                (None, Some((before, after))) if pool != Pool::Host => Some([before.used, after.used]),
                (None, _) => None,
            }
        };
        let seen = |footprint: &Footprint| {
            Footprint::of(footprint.iter().filter(|(pool, _)| self.ledger.budget().get(*pool).0 > 0 && told(*pool).is_some()))
        };
        let unseen = Footprint::of(need.iter().filter(|(pool, _)| told(*pool).is_none()));
        let mut pools: Vec<Pool> = held_before.plus(&held_after).plus(&need).iter().map(|(pool, _)| pool).collect();
        // Its own, whatever it was thought to take of it.
        if let Some(gpu) = entry.gpu.map(Pool::Gpu).filter(|gpu| !pools.contains(gpu)) {
            pools.push(gpu);
        }
        let grown = Footprint::of(pools.into_iter().filter_map(|pool| told(pool).map(|[before, after]| (pool, after.saturating_sub(before)))));
        let (need, grown) = (seen(&need), seen(&grown));
        if !pressure::tells_something(&need, &grown, &kept, !unknown) {
            return None;
        }
        let measured = if in_traffic { pressure::charge_in_traffic(&need, &grown, &kept) } else { pressure::charge(&need, &grown, &kept) };
        // Of a GPU whose driver does not tell what is whose nobody knows what the server had kept: it may have made the copy of that.
        // Nor does that it has the GPU alone make two readings of one load: a page of metrics may be the same one twice.
        let untold = |reading: &Reading, pool: &Pool| reading.pools.get(pool).is_some_and(|real| real.held.is_none());
        let mixed = |pool: &Pool| *pool != Pool::Host && (untold(&around.before, pool) || untold(&around.after, pool));
        let measured = measured.max(&Footprint::of(need.iter().filter(|(pool, _)| mixed(pool))));
        // What somebody has declared may be needed later.
        let declared = entry.registration.as_ref().is_some_and(|registration| registration.declared_size.is_some());
        let measured = if declared { measured.max(&need) } else { measured };
        let certain = pressure::is_certain(&grown, &kept) && unseen.total() == ByteSize::ZERO;
        // A bound is better than a guess, and no reason to give up what is known.
        let remembered = if certain && (unknown || !in_traffic) { Kept::Seen } else { Kept::Not };
        Some((measured.plus(&unseen), remembered))
    }

    /// Forgets that the load was watched; true when it ended because the kernel killed for want of memory.
    pub(crate) fn end_learning(&mut self, model: &ModelId, around: Option<&Around>) -> bool {
        let learning = self.truth.learning.remove(model);
        if self.loading.is_empty() {
            self.truth.before_loads = None;
        }
        self.stir();
        let (Some(before), Some(after)) = (learning.and_then(|learning| learning.oom_kills), around.and_then(|around| around.after.oom_kills)) else {
            return false;
        };
        after > before
    }

    /// The numbers to a load that ran out of memory.
    pub(crate) fn with_numbers(&self, need: &Footprint, pools: &[Pool], error: LoadError) -> LoadError {
        if error.fault != LoadFault::OutOfMemory {
            return error;
        }
        let Memory { budget, charged, .. } = self.ledger.sums().memory;
        let mut message = format!("{}; it was given {need}, models take {charged} of {budget}", error.message);
        for pool in pools {
            if let Some(usage) = self.truth.reading().and_then(|reading| reading.usage(*pool)) {
                message.push_str(&format!(", and in truth {} of {} {pool} are in use", usage.used, usage.limit));
            }
        }
        LoadError { message, ..error }
    }

    // A server that does not give memory back.

    fn look_at_bloat(&mut self) {
        let sums = self.ledger.sums();
        let loaded = sums.memory.charged.minus(&sums.memory.returning).minus(&sums.unconfirmed);
        let bloated = pressure::is_bloated(&self.truth.retained, &loaded, &sums.unconfirmed, &sums.memory.budget, self.config.bloated_percent);
        if bloated && !std::mem::replace(&mut self.truth.bloated, bloated) {
            warn!(retained = %self.truth.retained, unconfirmed = %sums.unconfirmed, budget = %sums.memory.budget, "the runtime keeps memory that no model has");
        }
        self.truth.bloated = bloated;
        let now = self.clock.now();
        let left = self.entries.values().any(|entry| matches!(entry.phase, Phase::Loading | Phase::Ready | Phase::Draining | Phase::Unloading));
        match self.truth.recycling {
            None if bloated && self.config.recycle != Recycle::Off && self.truth.spared_until.is_none_or(|until| until <= now) => {
                warn!("the runtime is drained, to be started anew");
                let unloads = self.config.unload_timeout * self.config.unload_tries * 2;
                let until = now + self.work.runtime.info().load_timeout + self.config.drain_cap + self.config.revoke_grace + unloads;
                self.truth.recycling = Some(Recycling::Draining { until });
                self.drain_what_is_loaded();
            }
            Some(Recycling::Draining { until }) if !bloated && (!left || until <= now) => {
                info!("the runtime has given its memory back, it is used again");
                self.truth.recycling = None;
                self.truth.spared_until = Some(now + SPARED);
            }
            Some(Recycling::Told) if !bloated => {
                info!("the runtime has given its memory back after all, it is used again");
                self.truth.recycling = None;
                self.truth.spared_until = Some(now + SPARED);
                self.shared.bloated.send_replace(None);
            }
            // What does not leave in all this time does not leave.
            Some(Recycling::Draining { until }) if !left || until <= now => {
                let why = format!("the runtime keeps {} that no model has and does not unload {}", self.truth.retained, sums.unconfirmed);
                warn!(retained = %self.truth.retained, unconfirmed = %sums.unconfirmed, left, "the runtime was drained and still keeps memory: it must be started anew");
                self.truth.recycling = Some(Recycling::Told);
                self.shared.bloated.send_replace(Some(why.into()));
                self.metrics.add(Counter::RuntimeRecycled, &[], 1);
                if let Some(source) = self.truth.source.clone().filter(|_| self.config.recycle == Recycle::End) {
                    self.work.end_server(source);
                }
            }
            // Loads that were under way have ended since.
            Some(Recycling::Draining { .. }) => self.drain_what_is_loaded(),
            _ => {}
        }
    }

    /// Every copy leaves, to be loaded again by the runtime's successor, and what has memory and was not begun goes back.
    fn drain_what_is_loaded(&mut self) {
        for model in self.to_load.iter().map(|ticket| ticket.model.clone()).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&model) {
                entry.leaving.nothing_attempted = true;
            }
            self.step(&model, Event::Evict);
        }
        for model in self.shared.copies.iter().map(|copy| copy.key().clone()).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&model).filter(|entry| !entry.retired) {
                entry.background = Some(MayEvict::Nothing);
            }
            self.drain_within(&model, self.config.drain_cap);
            self.step(&model, Event::Evict);
        }
    }

    fn show_truth(&self) {
        let Some(reading) = self.truth.reading() else { return };
        show(&self.metrics, reading, self.truth.base().as_ref(), &self.truth.retained, &self.truth.strained);
    }
}

/// Who is asked around a load.
#[derive(Default)]
pub(crate) struct Watched {
    /// Asked after a load that failed, and around each that is measured.
    pub(crate) source: Option<Arc<dyn Source>>,
    pub(crate) measure: bool,
}

/// What is in use of each memory of which that is known.
fn used_of(reading: &Reading) -> Footprint {
    Footprint::of(reading.pools.iter().filter_map(|(pool, real)| Some((*pool, real.usage?.used))))
}

fn show(metrics: &Metrics, reading: &Reading, base: Option<&Footprint>, retained: &Footprint, strained: &BTreeSet<Pool>) {
    for (pool, real) in &reading.pools {
        let labels = [("pool", &*pool.to_string())];
        if let Some(usage) = real.usage {
            metrics.set(Gauge::MemoryUsedBytes, &labels, usage.used.0);
            metrics.set(Gauge::MemoryLimitBytes, &labels, usage.limit.0);
            metrics.set(Gauge::MemoryStrained, &labels, u64::from(strained.contains(pool)));
        }
        if let Some(held) = real.held {
            metrics.set(Gauge::RuntimeMemoryBytes, &labels, held.0);
            metrics.set(Gauge::RuntimeBaseBytes, &labels, base.map_or(0, |base| base.get(*pool).0));
            metrics.set(Gauge::RuntimeRetainedBytes, &labels, retained.get(*pool).0);
        }
    }
    if let Some(stalled) = reading.stalled {
        metrics.set(Gauge::MemoryStallPermyriad, &[], u64::from(stalled));
    }
    if let Some(kills) = reading.oom_kills {
        metrics.set(Gauge::OomKills, &[], kills);
    }
}
