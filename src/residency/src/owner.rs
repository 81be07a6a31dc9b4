//! The one task that owns the models of this pod.
//!
//! The loop is one `select!` over messages from callers, results of slow work, bells rung by requests, and time; each
//! arm calls a plain method, and every change of a model's phase goes through [`Owner::step`], which asks
//! [`berth_plan::Phase::on`] and carries out the effect. What may start is decided in `admission`, how copies leave in
//! `leaving`, what others are told in `telling`, the end of the pod in `ending`.
//!
//! Invariants: one entry, hence one load, per model; memory is leased before the runtime hears of a model and released
//! with its proof only; a copy is handed to its waiters in the same turn in which it becomes visible, so it cannot be
//! evicted before they ran; every waiter gets exactly one answer or has gone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use berth_adapters::{LoadError, LoadFault, Loaded, Seat};
use berth_memory::Source;
use berth_plan::{Effect, Event, MayEvict, Phase, Suspects, device};
use berth_puller::PullError;
use berth_telemetry::{Clock, Counter, Gauge, Histogram, Metrics, field};
use berth_types::{
    ByteSize, Caution, ContentDigest, Failure, Footprint, Location, ModelId, Pool, Reason, Refusal, Registration, Retry, Step, UnixMillis,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, error, info, warn};

use crate::away::Watch;
use crate::beware::Cautions;
use crate::ending::Ending;
use crate::entry::{Class, Entry, Ticket, Waiter};
use crate::failures::{Failures, Kind};
use crate::keeping::Keeping;
use crate::ledger::Ledger;
use crate::lru::ByLastUse;
use crate::slot::{Probation, Slot};
use crate::snapshot::Snapshot;
use crate::telling::Shown;
use crate::truth::{Around, Kept, Truth};
use crate::work::{Done, Fetched, Work};
use crate::{Config, Origin, Shared, WaitError};

/// What callers ask of the owner.
#[derive(Debug)]
pub(crate) enum Msg {
    Ensure { model: Arc<Registration>, reply: Waiter },
    Load { model: Arc<Registration>, may: MayEvict },
    Retire { model: Arc<Registration> },
    Amend { model: Arc<Registration> },
    Suspect { model: ModelId },
    StorageChanged,
    Beware { cautions: Vec<Caution> },
    Snapshot { reply: oneshot::Sender<Snapshot> },
    Held { reply: oneshot::Sender<Vec<Arc<Registration>>> },
    Drain { until: Instant, done: oneshot::Sender<()> },
}

pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) location: Location,
    pub(crate) inbox: mpsc::Receiver<Msg>,
    pub(crate) work: Work,

    pub(crate) ledger: Ledger,
    pub(crate) entries: HashMap<ModelId, Entry>,
    pub(crate) lru: ByLastUse,
    pub(crate) failures: Failures,
    pub(crate) keeping: Keeping,

    /// In Pulling, not begun: nobody has looked yet whether the files are on disk.
    pub(crate) to_reuse: BTreeSet<Ticket>,
    pub(crate) reusing: HashSet<ModelId>,
    /// In Pulling, to be fetched.
    pub(crate) to_fetch: BTreeSet<Ticket>,
    pub(crate) fetching: HashSet<ModelId>,
    /// In Pulling, waiting for files that others hold to go from the disk.
    pub(crate) awaiting_disk: BTreeSet<Ticket>,
    /// How often something happened that may have made room on disk, and how often that was answered with a try.
    pub(crate) let_go: u64,
    pub(crate) let_go_seen: u64,
    /// How often files of a model were let go of for good.
    pub(crate) freed: u64,
    /// In Fitting.
    pub(crate) to_fit: BTreeSet<Ticket>,
    /// How many of them nothing could help when memory was given out last.
    pub(crate) passed_over: usize,
    /// In Loading, not begun.
    pub(crate) to_load: BTreeSet<Ticket>,
    pub(crate) loading: HashSet<ModelId>,
    /// In Unloading or Stuck.
    pub(crate) leaving: BTreeSet<ModelId>,
    /// Held by the runtime when we started; nothing is loaded before they are unloaded. `None` until the runtime has
    /// said what it holds.
    pub(crate) left_over: Option<HashSet<ModelId>>,

    /// Something happened that may change what can start.
    pub(crate) reconsider: bool,
    /// When a copy in use has had its turn and somebody waits for that.
    pub(crate) turn_ends: Option<Instant>,
    /// A look at the index is under way.
    pub(crate) looking: bool,
    pub(crate) audit_due: bool,
    pub(crate) runtime_down: bool,
    pub(crate) watch: Watch,
    pub(crate) suspects: Suspects,
    /// What is told of them may have changed.
    pub(crate) suspicions_due: bool,
    pub(crate) cautions: Cautions,
    /// One of them loads or computes at a time.
    pub(crate) suspects_at_work: Arc<Semaphore>,
    /// Of loads that wait for others: whether they do no longer.
    pub(crate) turns_of_loads: HashMap<ModelId, Arc<AtomicBool>>,
    pub(crate) truth: Truth,

    /// Entries by phase.
    pub(crate) counts: [u64; Phase::ALL.len()],
    pub(crate) waiting: usize,
    next_tick: Instant,
    pub(crate) saved: Instant,
    pub(crate) saving: bool,
    /// Something was to be written while that was.
    pub(crate) save_again: bool,
    pub(crate) ending: Option<Ending>,
    pub(crate) shown: Option<Shown>,
}

impl Owner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Config,
        location: Location,
        (budget, source): (Footprint, Option<Arc<dyn Source>>),
        inbox: mpsc::Receiver<Msg>,
        work: Work,
    ) -> Self {
        let (clock, metrics) = (work.clock.clone(), work.metrics.clone());
        let now = clock.now();
        for (pool, bytes) in budget.iter() {
            metrics.set(Gauge::MemoryBudgetBytes, &[("pool", &pool.to_string())], bytes.0);
        }
        Owner {
            failures: Failures::new(config.failure_kept, config.quiet, config.quiet_passing),
            keeping: Keeping::new(crate::keeping::file_of(config.state.as_deref(), work.runtime.info(), &budget), now),
            next_tick: now + config.audit,
            watch: Watch::new(work.runtime.health()),
            suspects: Suspects::default(),
            suspicions_due: true,
            cautions: Cautions::default(),
            suspects_at_work: Arc::new(Semaphore::new(1)),
            turns_of_loads: HashMap::new(),
            truth: Truth::new(source, now),
            shared,
            config,
            clock,
            metrics,
            location,
            inbox,
            work,
            ledger: Ledger::new(budget),
            entries: HashMap::new(),
            lru: ByLastUse::default(),
            to_reuse: BTreeSet::new(),
            reusing: HashSet::new(),
            to_fetch: BTreeSet::new(),
            fetching: HashSet::new(),
            awaiting_disk: BTreeSet::new(),
            let_go: 0,
            let_go_seen: 0,
            freed: 0,
            to_fit: BTreeSet::new(),
            passed_over: 0,
            to_load: BTreeSet::new(),
            loading: HashSet::new(),
            leaving: BTreeSet::new(),
            left_over: None,
            reconsider: true,
            turn_ends: None,
            looking: false,
            audit_due: true,
            runtime_down: false,
            counts: [0; Phase::ALL.len()],
            waiting: 0,
            saved: now,
            saving: false,
            save_again: false,
            ending: None,
            shown: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut inbox_open = true;
        loop {
            self.tell_suspicions();
            self.start_what_can_start();
            self.look_if_needed();
            self.read_if_due();
            self.keep_failures();
            self.show();
            if self.ended() {
                break;
            }
            let wake_at = self.wake_at();
            tokio::select! {
                message = self.inbox.recv(), if inbox_open => match message {
                    Some(message) => self.on_message(message),
                    None => {
                        // Every handle is gone: nobody can ask for anything any more.
                        inbox_open = false;
                        self.begin_ending(self.clock.now() + self.config.drain_cap, None);
                    }
                },
                Some(done) = self.work.tasks.join_next(), if !self.work.tasks.is_empty() => match done {
                    Ok(done) => self.on_done(done),
                    Err(fault) if fault.is_cancelled() => {}
                    Err(fault) => error!(error = %fault, "a task of the owner ended without a result"),
                },
                health = self.watch.changed() => self.on_health(health),
                () = self.shared.bell.wake.notified() => self.on_bell(),
                () = self.clock.sleep_until(berth_types::Deadline::at(wake_at)) => self.on_time(),
            }
        }
        self.end().await;
    }

    fn on_message(&mut self, message: Msg) {
        match message {
            Msg::Ensure { model, reply } => self.ensure(model, reply),
            Msg::Load { model, may } => self.load(model, may),
            Msg::Retire { model } => self.retire(model),
            Msg::Amend { model } => {
                if let Some(entry) = self.entries.get_mut(&model.id).filter(|entry| entry.registration.is_some()) {
                    entry.registration = Some(model);
                    self.reconsider = true;
                }
            }
            Msg::Suspect { model } => {
                if self.entries.get(&model).is_some_and(|entry| entry.phase == Phase::Ready) {
                    self.work.doubt(model, self.config.unload_timeout);
                }
            }
            Msg::StorageChanged => self.storage_changed(),
            Msg::Beware { cautions } => self.beware(cautions),
            Msg::Snapshot { reply } => {
                let _ = reply.send(self.snapshot());
            }
            Msg::Held { reply } => {
                let held = self.entries.values().filter(|entry| !entry.retired).filter_map(|entry| entry.registration.clone());
                let _ = reply.send(held.collect());
            }
            Msg::Drain { until, done } => self.begin_ending(until, Some(done)),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Reused { model, life, found } => {
                if self.is_current(&model, life) {
                    self.on_reused(&model, found);
                }
            }
            Done::Fetched { model, life, result } => {
                if self.is_current(&model, life) {
                    self.on_fetched(&model, result);
                }
            }
            Done::LoadEnded { model, life, result, around } => {
                if self.is_current(&model, life) {
                    self.on_load_ended(&model, result, around.as_deref());
                }
            }
            Done::Drained { model, life } => {
                if self.is_current(&model, life) && self.phase(&model) == Some(Phase::Draining) {
                    self.step(&model, Event::Idle);
                }
            }
            Done::UnloadTold { model, life, result } => {
                if self.is_current(&model, life) {
                    self.on_unload_told(&model, result);
                }
            }
            Done::LayoutCleared { model, life, proof } => {
                if self.is_current(&model, life)
                    && let Some(entry) = self.entries.get_mut(&model)
                {
                    entry.proof = Some(proof);
                    self.step(&model, Event::Confirmed);
                }
            }
            Done::Looked { began, result } => self.on_looked(began, result),
            Done::MemoryRead { began, reading } => self.on_memory_read(began, *reading),
            Done::ServerTold { ended } => {
                if !ended {
                    warn!("the runtime's process cannot be ended from here");
                }
            }
            Done::Saved { result } => {
                self.saving = false;
                if let Err(fault) = result {
                    let path = self.config.state.as_deref().map(crate::history::file_in).unwrap_or_default();
                    warn!(path = %path.display(), error = %fault, "last uses and sizes of models cannot be written");
                    self.shared.history.lock().save_failed();
                }
                if std::mem::take(&mut self.save_again) {
                    self.save();
                }
            }
            Done::Sized { model, life, size } => {
                if let Some(size) = size.filter(|_| self.is_current(&model, life)) {
                    self.on_sized(&model, size);
                }
            }
            Done::Doubted => {
                self.audit_due = true;
                self.work.look_now.notify_one();
            }
            Done::FailuresKept { result } => self.on_failures_kept(result),
        }
    }

    fn on_bell(&mut self) {
        self.reconsider = true;
        if self.shared.bell.broke.swap(false, Ordering::AcqRel) {
            self.work.runtime.ask_whether_it_lives();
        }
        if self.shared.bell.left.swap(false, Ordering::AcqRel) {
            self.drop_callers_that_left();
        }
    }

    fn on_time(&mut self) {
        let now = self.clock.now();
        if self.turn_ends.is_some_and(|at| at <= now) {
            self.turn_ends = None;
            self.reconsider = true;
        }
        self.look_at_patience(now);
        self.look_at_grace(now);
        if self.next_tick <= now {
            self.next_tick = now + self.config.audit;
            self.audit_due = true;
            self.reconsider = true;
            // Room on disk may also come from what this owner does not see, such as a download that was given up.
            self.let_go += u64::from(!self.awaiting_disk.is_empty());
            self.work.look_now.notify_one();
            self.drop_callers_that_left();
            self.suspicions_due = true;
            for model in self.failures.expire(now) {
                self.report(&model);
            }
            for (failure, times) in self.failures.take_unlogged(now) {
                log_failure(&failure, times);
            }
            self.unload_what_is_idle();
            self.show_lru_age();
            self.save_if_due();
        }
    }

    fn wake_at(&self) -> Instant {
        let mut at = self.next_tick;
        if let Some(sooner) = self.turn_ends.into_iter().chain(self.keeping.wake_at()).chain(self.grace_ends()).chain(self.truth.wake_at()).min() {
            at = at.min(sooner);
        }
        if let Some(ending) = &self.ending {
            at = at.min(self.last_moment(ending));
        }
        at
    }

    // Asking for models.

    fn ensure(&mut self, model: Arc<Registration>, reply: Waiter) {
        if reply.is_closed() {
            return;
        }
        if self.ending.is_some() {
            return self.refuse(reply, WaitError::ShuttingDown, "shutting-down");
        }
        let id = model.id.clone();
        if let Some(entry) = self.entries.get_mut(&id) {
            if entry.phase == Phase::Ready
                && let Some(guard) = entry.slot.as_ref().and_then(Slot::enter)
            {
                let _ = reply.send(Ok(guard));
                return;
            }
            if let Some(stuck) = entry.stuck.clone() {
                return self.refuse(reply, WaitError::Failed(stuck), "failed");
            }
        }
        if let Some(refusal) = self.refusal_by_caution(&id) {
            return self.refuse(reply, refusal, "suspect");
        }
        if let Some(refusal) = self.refusal_while_away(&id) {
            return self.refuse(reply, refusal, "runtime-away");
        }
        if matches!(self.phase(&id), Some(Phase::Pulling | Phase::Fitting | Phase::Loading)) {
            return self.attach(model, reply);
        }
        // The load has to begin (again): only now is it worth asking whether it can succeed at all.
        if let Some(refusal) = self.never_fits(&model) {
            return self.refuse(reply, WaitError::Refused(refusal), "never-fits");
        }
        match self.failures.answer(&id, self.clock.now()) {
            // A refusal is answered with numbers, and those are known only when the files are there.
            Some(failure) if failure.step != Step::Admit && !self.disk_may_have_room_for(&id) => {
                self.refuse(reply, WaitError::Failed(failure), "failed")
            }
            _ => self.attach(model, reply),
        }
    }

    fn attach(&mut self, model: Arc<Registration>, reply: Waiter) {
        let id = model.id.clone();
        if self.entries.get(&id).is_some_and(|entry| entry.waiters.len() >= self.config.waiters_per_model) || self.waiting >= self.config.waiters {
            self.drop_callers_that_left();
        }
        let here = self.entries.get(&id).map_or(0, |entry| entry.waiters.len());
        if here >= self.config.waiters_per_model {
            return self.refuse(reply, WaitError::TooManyWaiting { waiting: here }, "too-many-waiting");
        }
        if self.waiting >= self.config.waiters {
            return self.refuse(reply, WaitError::TooManyWaiting { waiting: self.waiting }, "too-many-waiting");
        }
        self.want(model, Class::Waited);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.waiters.push(reply);
            self.waiting += 1;
        }
    }

    pub(crate) fn refuse(&self, reply: Waiter, error: WaitError, reason: &str) {
        self.metrics.add(Counter::Refused, &[("reason", reason)], 1);
        let _ = reply.send(Err(error));
    }

    fn load(&mut self, model: Arc<Registration>, may: MayEvict) {
        let id = model.id.clone();
        let phase = self.phase(&id);
        if self.ending.is_some() || matches!(phase, Some(Phase::Ready | Phase::Stuck)) {
            return;
        }
        if self.is_held_off(&id) {
            return self.report(&id);
        }
        if phase.is_none()
            && let Some(refusal) = self.never_fits(&model)
        {
            let failure = self.failure(&id, Reason::ModelLoadFailed, Step::Admit, refusal.to_string(), Retry::AfterChange);
            self.record(failure, Kind::Plain);
            return self.report(&id);
        }
        self.want(model, Class::Background);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.background = Some(entry.background.map_or(may, |before| before.or(may)));
        }
    }

    /// Makes sure that there is an entry for `model`, in a queue of at least this class.
    fn want(&mut self, model: Arc<Registration>, class: Class) {
        let id = model.id.clone();
        let number = self.work.sequence.next();
        let ticket = Ticket { class, number, model: id.clone() };
        match self.entries.get_mut(&id) {
            None => {
                let entry = Entry::new(ticket, Some(model), Phase::Pulling, number, self.clock.wall(), self.clock.now());
                self.enter_pulling(entry);
            }
            Some(entry) => {
                entry.registration = Some(model);
                // On its way down it comes back at the end of the queue; on its way up it only moves forward.
                let down = matches!(entry.phase, Phase::Ready | Phase::Draining | Phase::Unloading | Phase::Stuck | Phase::Gone);
                let hurried = class < entry.ticket.class;
                if (down && !entry.wanted()) || hurried {
                    let before = std::mem::replace(&mut entry.ticket, ticket.clone());
                    if down {
                        entry.asked = self.clock.now();
                        entry.since = self.clock.wall();
                    }
                    for queue in [&mut self.to_reuse, &mut self.to_fetch, &mut self.awaiting_disk, &mut self.to_fit, &mut self.to_load] {
                        if queue.remove(&before) {
                            queue.insert(ticket.clone());
                            self.reconsider = true;
                        }
                    }
                    if hurried && self.fetching.contains(&id) {
                        self.work.fetch.hurry(&id);
                    }
                }
            }
        }
    }

    fn enter_pulling(&mut self, entry: Entry) {
        let id = entry.ticket.model.clone();
        self.to_reuse.insert(entry.ticket.clone());
        self.insert(entry);
        self.report(&id);
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        self.counts[entry.phase as usize] += 1;
        self.entries.insert(entry.ticket.model.clone(), entry);
    }

    fn retire(&mut self, model: Arc<Registration>) {
        let id = model.id.clone();
        self.clear_failure(&id);
        self.suspicions_due = true;
        let Some(entry) = self.entries.get_mut(&id) else {
            self.forget(&model);
            return self.report(&id);
        };
        entry.retired = true;
        entry.background = None;
        entry.registration = Some(model);
        let waiters = self.take_waiters(&id);
        for waiter in waiters {
            let _ = waiter.send(Err(WaitError::Retired));
        }
        match self.phase(&id) {
            Some(Phase::Pulling | Phase::Fitting | Phase::Loading | Phase::Ready) => {
                self.drain_within(&id, self.config.drain_cap);
                self.step(&id, Event::Evict);
            }
            Some(Phase::Draining | Phase::Unloading | Phase::Stuck | Phase::Gone) | None => {}
        }
    }

    /// Nothing is here of a model that is registered no longer: nothing is kept of it.
    fn forget(&mut self, model: &Registration) {
        self.work.fetch.forget(model);
        self.suspects.forget(&model.id);
        self.suspicions_due = true;
        self.shared.history.lock().forget(&model.id);
    }

    /// Other settings may cure what failed for want of its files, and what is about to.
    fn storage_changed(&mut self) {
        for model in &self.fetching {
            if let Some(entry) = self.entries.get_mut(model) {
                entry.storage_changed = true;
            }
        }
        let mended = self.failures.mend(self.clock.now());
        if !mended.is_empty() {
            info!(models = mended.len(), "the storage configuration has changed, what failed for want of its files may be tried again");
        }
        for model in mended {
            self.report(&model);
        }
    }

    // Results of slow work.

    fn is_current(&self, model: &ModelId, life: u64) -> bool {
        self.entries.get(model).is_some_and(|entry| entry.life == life)
    }

    fn on_reused(&mut self, model: &ModelId, found: Option<Fetched>) {
        if !self.reusing.remove(model) {
            return;
        }
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.task = None;
        match found {
            Some(fetched) => self.arrived(model, fetched),
            None => self.fetch_later(model),
        }
    }

    fn on_fetched(&mut self, model: &ModelId, result: Result<Fetched, PullError>) {
        if !self.fetching.remove(model) {
            return;
        }
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.task = None;
        let storage_changed = entry.storage_changed;
        match result {
            Ok(fetched) => {
                // Where there was room for one there may be room for the next.
                self.let_go += u64::from(!self.awaiting_disk.is_empty());
                self.arrived(model, fetched);
            }
            Err(PullError::DiskFull { need, free, budget }) if need <= budget && self.others_let_go(model) => {
                debug!(model = %model, size = %need, free = %free, budget = %budget, "no room on disk until others let go of their files, the load waits");
                self.await_disk(model);
            }
            Err(fault) if storage_changed && !matches!(fault, PullError::DiskFull { .. }) => {
                debug!(model = %model, error = %fault, "the storage configuration has changed meanwhile, the files are fetched once more");
                self.fetch_later(model);
            }
            Err(fault) => {
                self.let_go += 1;
                let failure = self.failure(model, Reason::ModelLoadFailed, Step::Fetch, fault.to_string(), fault.retry());
                let full = matches!(fault, PullError::DiskFull { .. });
                self.fail(model, failure, Some(if full { Kind::DiskFull { freed: self.freed } } else { Kind::Plain }));
                self.step(model, Event::Broke);
            }
        }
    }

    /// The files are here.
    fn arrived(&mut self, model: &ModelId, Fetched { files, estimate, seat }: Fetched) {
        let registration = self.entries.get(model).and_then(|entry| entry.registration.clone());
        // Of what goes on a GPU a guess counts there. Which one is decided when memory is given out.
        let gpu = self.ledger.budget().gpus().next().filter(|_| seat == Seat::OneGpu);
        let on_it = |guess: Footprint| gpu.map_or(guess.clone(), |gpu| Footprint::of([(Pool::Gpu(gpu), guess.total())]));
        let estimate = estimate.map(on_it);
        let on_disk = on_it(Footprint::host(files.size.percent(self.config.disk_factor_percent)));
        let digest = files.content().map(|content| content.digest);
        let known = registration.as_ref().and_then(|registration| self.known_need(registration, digest, estimate.as_ref()));
        let declared = registration.is_some_and(|registration| registration.declared_size.is_some());
        if let Some(entry) = self.entries.get_mut(model) {
            entry.origin = match &known {
                Some(_) if declared => Origin::Declared,
                Some(_) => Origin::Learned,
                None => Origin::Estimated,
            };
            entry.need = Some(known.or(estimate).unwrap_or(on_disk));
            entry.seat = seat;
            entry.content = files.content().map(Arc::new);
            entry.files = Some(files);
        }
        self.step(model, Event::Pulled);
    }

    /// Whether files were let go of since the fetch of `model` began, or will be: those of copies that stay loaded are
    /// not.
    fn others_let_go(&self, model: &ModelId) -> bool {
        let did = self.entries.get(model).is_some_and(|entry| entry.let_go_before != self.let_go);
        did || self.files_will_go()
    }

    fn files_will_go(&self) -> bool {
        let passing = |phase| matches!(phase, Phase::Fitting | Phase::Loading | Phase::Draining | Phase::Unloading);
        !self.fetching.is_empty() || self.entries.values().any(|entry| entry.files.is_some() && passing(entry.phase))
    }

    /// Whether `model` found the disk full, and files were let go of since, or will be.
    fn disk_may_have_room_for(&self, model: &ModelId) -> bool {
        self.failures.found_disk_full(model).is_some_and(|freed| freed != self.freed || self.files_will_go())
    }

    /// Waits its turn for room on disk.
    fn await_disk(&mut self, model: &ModelId) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        if entry.let_go_before != self.let_go {
            return self.fetch_later(model);
        }
        self.awaiting_disk.insert(entry.ticket.clone());
        self.waiting -= entry.drop_waiters_that_left();
        if !entry.wanted() {
            self.abandon(model);
        }
    }

    /// Back into the queue of the downloads, unless nobody wants it any more.
    fn fetch_later(&mut self, model: &ModelId) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        self.to_fetch.insert(entry.ticket.clone());
        self.waiting -= entry.drop_waiters_that_left();
        if !entry.wanted() {
            self.abandon(model);
        }
    }

    fn on_load_ended(&mut self, model: &ModelId, result: Result<Loaded, (Step, LoadError)>, around: Option<&Around>) {
        if !self.loading.remove(model) {
            return;
        }
        let learned = self.learned(model, around);
        let killed = self.end_learning(model, around);
        self.reconsider = true;
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.task = None;
        match result {
            Ok(Loaded { measured, max_concurrency }) => {
                entry.at_a_time = max_concurrency;
                let life = entry.life;
                if measured.is_none() {
                    self.work.size(model.clone(), life);
                }
                // Room that was given out of caution is given back.
                if let (Some(lease), Some(need)) = (entry.lease.as_mut(), entry.need.clone()) {
                    lease.correct(need);
                }
                let own_word = measured.map(|measured| (measured, Kept::Told));
                if let Some((measured, kept)) = own_word.or(learned)
                    && let Some(refusal) = self.charge(model, &measured, kept)
                {
                    self.refuse_for_good(model, refusal);
                    return self.step(model, Event::Broke);
                }
                self.suspects.acquit(model);
                self.suspicions_due = true;
                self.clear_failure(model);
                self.step(model, Event::Loaded);
                self.obey(model);
            }
            Err((step, error)) => {
                entry.leaving.nothing_attempted = error.nothing_attempted;
                // A process that was killed did not have the time to say of what it died.
                let fault = if killed && error.fault == LoadFault::BadModel { LoadFault::OutOfMemory } else { error.fault };
                let need = entry.need.clone().unwrap_or_default();
                let pools = device::ran_out(killed, entry.gpu, &need, self.ledger.budget());
                let after_eviction = entry.after_out_of_memory.is_some();
                let mut error = self.with_numbers(&need, &pools, LoadError { fault, ..error });
                let out_of_memory = error.fault == LoadFault::OutOfMemory;
                if out_of_memory && !after_eviction && !self.failures.eviction_was_no_help(model) {
                    if self.evict_one_for(model, &pools) {
                        info!(model = %model, error = %error, "the runtime ran out of memory, trying once more with one copy less");
                        return self.step(model, Event::Broke);
                    }
                    let pools: Vec<String> = pools.iter().map(Pool::to_string).collect();
                    error.message.push_str(&format!("; no idle model takes any of {}, so none could go for it", pools.join(" or ")));
                }
                // A layout that fails has not reached the runtime: that it cannot be made says nothing of who ended what.
                if error.fault == LoadFault::RuntimeDown && step == Step::Load {
                    // Still among the loading, so that it is a suspect.
                    self.loading.insert(model.clone());
                    let waits = self.load_found_it_away(&error.message);
                    self.loading.remove(model);
                    if waits {
                        return self.step(model, Event::Broke);
                    }
                }
                let (reason, counts_as) = match error.fault {
                    LoadFault::RuntimeDown | LoadFault::NotNow => (Reason::RuntimeUnhealthy, None),
                    LoadFault::BadModel | LoadFault::TimedOut => (Reason::ModelLoadFailed, Some(Kind::Plain)),
                    LoadFault::OutOfMemory => (Reason::ModelLoadFailed, Some(Kind::OutOfMemory { after_eviction })),
                };
                let failure = self.failure(model, reason, step, error.message.clone(), error.retry());
                self.fail(model, failure, counts_as);
                self.step(model, Event::Broke);
            }
        }
    }

    // Sizes.

    /// A copy was measured while it serves.
    fn on_sized(&mut self, model: &ModelId, size: Footprint) {
        if self.phase(model) != Some(Phase::Ready) {
            return;
        }
        self.reconsider = true;
        if let Some(refusal) = self.charge(model, &size, Kept::Told) {
            self.refuse_for_good(model, refusal);
            self.step(model, Event::Evict);
        }
    }

    /// Charges what a copy was measured to take, and remembers it for these files as far as that may be. What it is refused
    /// with when there will never be room for it.
    fn charge(&mut self, model: &ModelId, measured: &Footprint, kept: Kept) -> Option<Refusal> {
        let measured = within_pools(measured, self.ledger.budget())?;
        if kept != Kept::Not {
            let digest = self.entries.get(model).and_then(|entry| entry.content.as_ref()).map(|content| content.digest);
            self.shared.history.lock().note_size(model, digest, &measured, kept == Kept::Seen, self.clock.wall());
        }
        let too_large = device::too_small(&measured, self.ledger.budget());
        if let Some(entry) = self.entries.get_mut(model)
            && let Some(lease) = entry.lease.as_mut()
        {
            lease.correct(measured);
            entry.origin = Origin::Measured;
        }
        too_large.map(|(pool, need, budget)| Refusal::NeverFits { pool, need, budget })
    }

    /// What the model takes as far as that is known without its files: declared, or as measured last time where that was
    /// more. A declaration that is too small would otherwise have a model that cannot fit loaded again and again.
    pub(crate) fn known_need(&self, model: &Registration, digest: Option<ContentDigest>, estimate: Option<&Footprint>) -> Option<Footprint> {
        let measured = {
            let history = self.shared.history.lock();
            digest.and_then(|digest| history.learned(digest)).or_else(|| history.measured(&model.id))
        };
        let Some(declared) = model.declared_size else { return measured };
        // A declaration is one number: it counts for the pool that the runtime would mostly use.
        let likely = measured.as_ref().or(estimate).and_then(|like| like.iter().max_by_key(|part| part.1));
        let declared = likely.map_or_else(|| Footprint::host(declared), |(pool, _)| Footprint::of([(pool, declared)]));
        Some(declared.max(&measured.unwrap_or_default()))
    }

    fn never_fits(&self, model: &Registration) -> Option<Refusal> {
        let (need, budget) = (self.known_need(model, None, None)?, self.ledger.budget());
        // Whether it goes on a GPU its files say, unless it was loaded before.
        let said = model.declared_size.filter(|_| self.shared.history.lock().measured(&model.id).is_none());
        if let Some(said) = said
            && budget.gpus().any(|gpu| said <= budget.get(Pool::Gpu(gpu)))
        {
            return None;
        }
        device::too_small(&need, budget).map(|(pool, need, budget)| Refusal::NeverFits { pool, need, budget })
    }

    /// Copies go that were not used for as long as their users want them kept.
    fn unload_what_is_idle(&mut self) {
        let now = self.clock.wall();
        let idle = |(model, entry): &(&ModelId, &Entry)| {
            let ttl = entry.registration.as_ref().and_then(|registration| registration.keep.idle_for());
            entry.phase == Phase::Ready && ttl.is_some_and(|ttl| now.since(last_used_of(&self.entries, model)) >= ttl)
        };
        let idle: Vec<ModelId> = self.entries.iter().filter(idle).map(|(model, _)| model.clone()).collect();
        for model in idle {
            self.evict_idle(&model, "not used for as long as it is to be kept");
        }
    }

    // Failures.

    pub(crate) fn failure(&self, model: &ModelId, reason: Reason, step: Step, message: String, retry: Retry) -> Arc<Failure> {
        Arc::new(Failure { reason, step, location: self.location.clone(), model: model.clone(), message, time: self.clock.wall(), retry })
    }

    fn record(&mut self, failure: Arc<Failure>, kind: Kind) {
        let step = failure.step.as_str();
        self.metrics.add(Counter::Loads, &[("step", step), ("outcome", "failed")], 1);
        let now = self.clock.now();
        self.keeping.note_change(&failure.model, now);
        if let Some(times) = self.failures.note(Arc::clone(&failure), kind, now) {
            log_failure(&failure, times);
        }
    }

    /// The load is over: everybody who waits learns why. `counts_as`: it also counts against the model.
    pub(crate) fn fail(&mut self, model: &ModelId, failure: Arc<Failure>, counts_as: Option<Kind>) {
        if let Some(entry) = self.entries.get_mut(model) {
            entry.background = None;
        }
        for waiter in self.take_waiters(model) {
            let _ = waiter.send(Err(WaitError::Failed(Arc::clone(&failure))));
        }
        if let Some(kind) = counts_as {
            self.record(failure, kind);
        } else {
            let step = failure.step.as_str();
            self.metrics.add(Counter::Loads, &[("step", step), ("outcome", "runtime-down")], 1);
            warn!(model = %model, step, reason = %failure.reason, error = %failure.message, "model could not be loaded, the runtime is down");
        }
    }

    /// It can never fit: callers get the numbers, and a load that nobody waits for shows them.
    pub(crate) fn refuse_for_good(&mut self, model: &ModelId, refusal: Refusal) {
        let asked_by_leader = self.entries.get_mut(model).and_then(|entry| entry.background.take()).is_some();
        let waiters = self.take_waiters(model);
        if !waiters.is_empty() {
            info!(model = %model, error = %refusal, "model refused");
        }
        for waiter in waiters {
            self.refuse(waiter, WaitError::Refused(refusal.clone()), "never-fits");
        }
        if asked_by_leader {
            let failure = self.failure(model, Reason::ModelLoadFailed, Step::Admit, refusal.to_string(), Retry::AfterChange);
            self.record(failure, Kind::Plain);
        }
    }

    pub(crate) fn take_waiters(&mut self, model: &ModelId) -> Vec<Waiter> {
        let waiters = self.entries.get_mut(model).map(|entry| std::mem::take(&mut entry.waiters)).unwrap_or_default();
        self.waiting -= waiters.len();
        waiters
    }

    fn drop_callers_that_left(&mut self) {
        let mut abandoned = Vec::new();
        for (model, entry) in &mut self.entries {
            if !entry.waiters.is_empty() {
                self.waiting -= entry.drop_waiters_that_left();
                // What has begun goes on; what has not, does not begin.
                if !entry.wanted() && entry.phase == Phase::Pulling && entry.task.is_none() {
                    abandoned.push(model.clone());
                }
            }
        }
        for model in abandoned {
            self.abandon(&model);
        }
    }

    /// Nobody wants a load that has not begun.
    fn abandon(&mut self, model: &ModelId) {
        self.metrics.add(Counter::Loads, &[("step", Step::Fetch.as_str()), ("outcome", "abandoned")], 1);
        self.step(model, Event::Evict);
    }

    // The life of a model.

    pub(crate) fn phase(&self, model: &ModelId) -> Option<Phase> {
        self.entries.get(model).map(|entry| entry.phase)
    }

    /// Something happened to `model`: moves it on and does what follows.
    pub(crate) fn step(&mut self, model: &ModelId, event: Event) {
        let Some(entry) = self.entries.get_mut(model) else {
            error!(model = %model, event = ?event, "an event for a model that is not here: a bug, it is ignored");
            return;
        };
        let before = entry.phase;
        let (next, effect) = match before.on(event) {
            Ok(step) => step,
            Err(unexpected) => {
                error!(model = %model, error = %unexpected, "a bug, the event is ignored");
                return;
            }
        };
        debug!(model = %model, from = %before, to = %next, event = ?event, "step");
        entry.phase = next;
        self.counts[before as usize] -= 1;
        self.counts[next as usize] += 1;
        self.stop_work_of(model, before);
        match effect {
            Effect::Fit => {
                if let Some(entry) = self.entries.get(model) {
                    self.to_fit.insert(entry.ticket.clone());
                }
                self.reconsider = true;
            }
            Effect::LoadInRuntime => {
                if let Some(entry) = self.entries.get(model) {
                    self.to_load.insert(entry.ticket.clone());
                }
            }
            Effect::Announce => self.announce(model),
            Effect::Withdraw => self.withdraw(model, next),
            Effect::Unload => self.begin_unload(model),
            Effect::DropFiles => self.gone(model),
            Effect::ReleaseLease => self.release(model),
            Effect::Report => self.stuck(model),
        }
    }

    /// The phase is over: its queue and its task, if they still have the model, let go of it.
    fn stop_work_of(&mut self, model: &ModelId, phase: Phase) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        if let Some(task) = entry.task.take() {
            task.abort();
        }
        match phase {
            Phase::Pulling => {
                self.to_reuse.remove(&entry.ticket);
                self.reusing.remove(model);
                self.to_fetch.remove(&entry.ticket);
                self.fetching.remove(model);
                // Those behind it may be smaller.
                self.let_go += u64::from(self.awaiting_disk.remove(&entry.ticket));
            }
            Phase::Fitting => {
                self.to_fit.remove(&entry.ticket);
            }
            Phase::Loading => {
                self.to_load.remove(&entry.ticket);
                self.loading.remove(model);
                let _killed = self.end_learning(model, None);
            }
            Phase::Ready | Phase::Draining | Phase::Unloading | Phase::Stuck | Phase::Gone => {}
        }
    }

    fn announce(&mut self, model: &ModelId) {
        let last_used = self.shared.history.lock().last_used(model.as_str());
        let at_a_time = self.entries.get(model).and_then(|entry| entry.at_a_time);
        let probation = self.suspects.computes_alone(model, self.clock.wall()).then(|| Probation::beside(&self.suspects_at_work));
        let slot = Slot::new(model.clone(), last_used, at_a_time, probation, Arc::clone(&self.shared.bell));
        let waiters = self.take_waiters(model);
        let Some(entry) = self.entries.get_mut(model) else { return };
        let took = self.clock.now().saturating_duration_since(entry.asked);
        let size = entry.lease.as_ref().map(|lease| lease.bytes().clone()).unwrap_or_default();
        entry.background = None;
        entry.after_out_of_memory = None;
        if !self.work.runtime.info().reads_files_while_loaded {
            let freed = u64::from(entry.files.take().is_some());
            (self.let_go, self.freed) = (self.let_go + freed, self.freed + freed);
        }
        entry.since = slot.loaded;
        entry.announced = self.work.sequence.next();
        entry.slot = Some(Arc::clone(&slot));
        if !waiters.is_empty() {
            self.metrics.observe(Histogram::ColdStartSeconds, &[], took);
        }
        // Every waiter is inside before the copy can be seen, let alone evicted.
        let guards: Vec<_> = waiters.into_iter().filter_map(|waiter| Some((waiter, slot.enter_first()?))).collect();
        self.lru.insert(model, slot.last_used().unwrap_or(slot.loaded));
        self.shared.copies.insert(model.clone(), slot);
        for (waiter, guard) in guards {
            // A caller that has gone drops its guard with the answer.
            let _ = waiter.send(Ok(guard));
        }
        self.metrics.add(Counter::Loads, &[("step", Step::Load.as_str()), ("outcome", "loaded")], 1);
        info!(model = %model, step = %Step::Load, size = %size, took = field::took(took), "model loaded");
        self.report(model);
    }

    /// The model is gone from the runtime, or never got there.
    pub(crate) fn gone(&mut self, model: &ModelId) {
        let Some(mut entry) = self.entries.remove(model) else { return };
        self.counts[entry.phase as usize] -= 1;
        self.reconsider = true;
        self.leaving.remove(model);
        if let Some(left_over) = &mut self.left_over {
            left_over.remove(model);
        }
        let freed = u64::from(entry.files.take().is_some());
        (self.let_go, self.freed) = (self.let_go + freed, self.freed + freed);
        if entry.retired
            && let Some(registration) = &entry.registration
        {
            self.forget(registration);
        }
        let refusal = self.refusal_by_caution(model);
        let again = entry.wanted() && self.ending.is_none() && refusal.is_none();
        match entry.registration.take() {
            Some(registration) if again => {
                let mut next = Entry::new(entry.ticket, Some(registration), Phase::Pulling, self.work.sequence.next(), entry.since, entry.asked);
                next.waiters = entry.waiters;
                next.background = entry.background;
                next.after_out_of_memory = entry.after_out_of_memory;
                self.enter_pulling(next);
            }
            registration => {
                self.waiting -= entry.waiters.len();
                for waiter in entry.waiters {
                    let _ = waiter.send(Err(refusal.clone().unwrap_or(WaitError::ShuttingDown)));
                }
                if registration.is_some() {
                    self.report(model);
                }
            }
        }
    }
}

/// What a runtime measured, of the pools that there is a budget for: nothing is known of others that could be held against a copy.
/// `None`: it says nothing of these, and what was thought before stays.
fn within_pools(measured: &Footprint, budget: &Footprint) -> Option<Footprint> {
    let known = Footprint::of(measured.iter().filter(|(pool, _)| budget.iter().any(|(known, _)| known == *pool)));
    (known.total() > ByteSize::ZERO || measured.total() == ByteSize::ZERO).then_some(known)
}

/// `times`: how often it failed since the last such line about this model, this failure included.
fn log_failure(failure: &Failure, times: u32) {
    warn!(model = %failure.model, step = failure.step.as_str(), reason = %failure.reason, error = %failure.message, times, "model failed");
}

/// Last use of a loaded copy, or the time of loading when it was never used.
pub(crate) fn last_used_of(entries: &HashMap<ModelId, Entry>, model: &ModelId) -> UnixMillis {
    let slot = entries.get(model).and_then(|entry| entry.slot.as_ref());
    slot.map_or(UnixMillis::default(), |slot| slot.last_used().unwrap_or(slot.loaded))
}
