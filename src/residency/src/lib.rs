//! The models of this pod: what is loaded, what waits, what must go.
//!
//! One owner task decides and remembers; callers talk to it through [`Residency`], whose methods are one message each.
//! What every request touches (is it loaded, one more in flight, last use) is a sharded map of atomic words, so a warm
//! request never meets the owner task.
//!
//! | module | about |
//! |---|---|
//! | `gate` | the (count, closed) word of a copy |
//! | `slot` | what a request touches of a loaded copy; guards |
//! | `ledger` | pools and leases: memory comes back with the runtime's proof only |
//! | `lru` | the order of last use, without a message per request |
//! | `owner` | the task: messages, results, the life of each model |
//! | `admission` | what starts next and what must go for it |
//! | `leaving` | drain, unload, confirmation, what the runtime lost or holds for nobody |
//! | `away` | the runtime goes away and comes back |
//! | `beware` | models that end runtimes: what other pods are told, and what they tell |
//! | `truth` | what is really in use, and what follows: measured sizes, pressure, a server that keeps memory |
//! | `telling`, `ending` | reports, gauges and the history's file; shutting down |
//! | `keeping`, `failure_file`, `file` | failures on their way to the disk, before they are told; their file; replacing one |
//! | `work` | everything that leaves the process, each in a task with a deadline |
//! | `history`, `failures`, `reports` | what is remembered, what went wrong lately, what subscribers are told |
//!
//! Deciding is left to `berth_plan` (what fits, what to evict, which step follows), bytes on disk to `berth_puller`,
//! the server to `berth_adapters`.
//!
//! **Bounds.** A model that was never used or loaded here costs nothing. One that was costs an entry in the history: 64
//! bytes plus the table's slack (at most 147 in all), its id's text being shared with the registration; at most
//! [`Config::remembered`] are kept. A model that is loaded, loading or leaving has an entry of about a kilobyte. There
//! are at most [`Config::waiters`] waiting callers; failures are kept for [`Config::failure_kept`], one per model, in about
//! half a kilobyte (at most 600 bytes) and their message, and less on disk (32 MiB in all).

mod admission;
mod away;
mod beware;
mod config;
mod ending;
mod entry;
mod error;
mod failure_file;
mod failures;
mod file;
mod gate;
mod history;
mod keeping;
mod leaving;
mod ledger;
mod lru;
mod owner;
mod reports;
mod slot;
mod snapshot;
mod sync;
mod telling;
mod truth;
mod work;

pub use berth_plan::{MayEvict, Phase};
pub use config::{Config, Recycle};
pub use error::WaitError;
pub use reports::Reports;
pub use slot::{Ended, Guard};
pub use snapshot::{CopyUse, Origin, PoolUse, Snapshot};

use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_adapters::Runtime;
use berth_memory::Source;
use berth_puller::Fetch;
use berth_telemetry::{Clock, Metrics};
use berth_types::{Caution, Deadline, Footprint, Location, ModelId, Registration, Suspicion, UnixMillis};
use dashmap::DashMap;
use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::history::History;
use crate::owner::{Msg, Owner};
use crate::reports::Board;
use crate::slot::{Bell, Slot};
use crate::work::{Sequence, Work};

/// Messages that wait for the owner; callers wait, under their deadline, when it is full.
const INBOX: usize = 1024;

/// What residency works with.
pub struct Deps {
    /// Loads and unloads, and says what is loaded.
    pub runtime: Arc<dyn Runtime>,
    /// Brings files to the disk.
    pub fetch: Arc<dyn Fetch>,
    /// Time.
    pub clock: Clock,
    /// Where measurements go.
    pub metrics: Metrics,
    /// This pod, as failures name it.
    pub location: Location,
    /// Bytes per pool.
    pub budget: Footprint,
    /// Who can tell what is really in use; `None` leaves it at the ledger.
    pub memory: Option<Arc<dyn Source>>,
    /// Limits and waiting times.
    pub config: Config,
}

/// What the owner task and its handles both see.
#[derive(Debug)]
struct Shared {
    /// The copies that take requests.
    copies: DashMap<ModelId, Arc<Slot>, RandomState>,
    history: Mutex<History>,
    board: Board,
    bell: Arc<Bell>,
    room: watch::Sender<Footprint>,
    /// Why the runtime has to be started anew, while that is so.
    bloated: watch::Sender<Option<Arc<str>>>,
    /// What other pods should know of the deaths of the runtime.
    suspicions: watch::Sender<Arc<[Suspicion]>>,
}

impl Shared {
    fn last_used(&self, model: &str) -> Option<UnixMillis> {
        let here = self.copies.get(model).and_then(|copy| copy.last_used());
        here.or_else(|| self.history.lock().last_used(model))
    }
}

/// Handle to the owner task. Cheap to clone; each method but the plain look-ups is one message.
#[derive(Clone, Debug)]
pub struct Residency {
    inbox: mpsc::Sender<Msg>,
    shared: Arc<Shared>,
}

/// Tells the owner when a caller stops waiting, however it does.
struct Waiting<'a> {
    bell: &'a Bell,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.bell.left.store(true, Ordering::Release);
            self.bell.wake.notify_one();
        }
    }
}

impl Residency {
    /// Starts the owner task, within a tokio runtime. Whatever the runtime holds at this moment is unloaded before
    /// anything is loaded. Failures that were kept in [`Config::state`] and still count are reported before anything
    /// else. The task ends after [`Residency::drain`], or when every handle is gone.
    #[must_use]
    pub fn start(deps: Deps) -> (Residency, JoinHandle<()>) {
        let Deps { runtime, fetch, clock, metrics, location, budget, memory, config } = deps;
        let history = config.state.as_deref().map(History::read).unwrap_or_default();
        let shared = Arc::new(Shared {
            copies: DashMap::default(),
            history: Mutex::new(history),
            board: Board::default(),
            bell: Bell::new(clock.clone()),
            room: watch::Sender::new(budget.clone()),
            bloated: watch::Sender::new(None),
            suspicions: watch::Sender::new(Arc::default()),
        });
        let (inbox, messages) = mpsc::channel(INBOX);
        let work = Work {
            tasks: JoinSet::new(),
            runtime,
            fetch,
            clock,
            metrics,
            sequence: Sequence::default(),
            gpus: budget.gpus().next().is_some(),
            look_now: Arc::new(Notify::new()),
        };
        let mut owner = Owner::new(Arc::clone(&shared), config, location, (budget, memory), messages, work);
        owner.restore_failures();
        owner.tell_suspicions();
        (Residency { inbox, shared }, tokio::spawn(Box::pin(owner.run())))
    }

    /// A guard at once if the model is loaded here and takes requests: no message, no allocation; one shard's read
    /// lock, the gate, a reference count and the time of use. Counts as a use.
    #[must_use]
    pub fn try_acquire(&self, model: &str) -> Option<Guard> {
        self.shared.copies.get(model)?.enter()
    }

    /// A guard once `model` can serve here. Callers share one load; each waits under its own deadline, and the load
    /// goes on when a caller gives up (unless it has not begun and nobody else wants it). Counts as a use.
    ///
    /// Memory that is short for now is waited for: only the deadline ends that.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn ensure_loaded(&self, model: &Arc<Registration>, deadline: Deadline) -> Result<Guard, WaitError> {
        if let Some(guard) = self.try_acquire(model.id.as_str()) {
            return Ok(guard);
        }
        let mut waiting = Waiting { bell: &self.shared.bell, answered: false };
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.inbox.send(Msg::Ensure { model: Arc::clone(model), reply }).await.ok()?;
            answer.await.ok()
        };
        match self.shared.bell.clock.until(deadline, ask).await {
            Some(outcome) => {
                waiting.answered = true;
                outcome.unwrap_or(Err(WaitError::ShuttingDown))
            }
            None => Err(WaitError::Deadline),
        }
    }

    /// Loads in the background for the leader: a first load, a retry, a warm-up. Returns when the load has been queued;
    /// its outcome comes as a report: `Loaded`, `Absent` with a failure, or `Absent` without one when there is no room
    /// that it may have.
    pub async fn load(&self, model: Arc<Registration>, may_evict: MayEvict) {
        let _ = self.inbox.send(Msg::Load { model, may: may_evict }).await;
    }

    /// The registration is gone: drain, unload and forget the files. Returns when that has been queued. Callers that
    /// wait for it get [`WaitError::Retired`]; a later load of the same id begins from nothing.
    pub async fn retire(&self, model: Arc<Registration>) {
        let _ = self.inbox.send(Msg::Retire { model }).await;
    }

    /// The registration says something else of how the model is kept, or of its size; its id and its files are the same.
    pub async fn amend(&self, model: Arc<Registration>) {
        let _ = self.inbox.send(Msg::Amend { model }).await;
    }

    /// The runtime said that it does not hold `model`, which we serve: its index is looked at now, and the copy
    /// withdrawn if that is so.
    pub async fn suspect(&self, model: &ModelId) {
        let _ = self.inbox.send(Msg::Suspect { model: model.clone() }).await;
    }

    /// The storage configuration has changed: nothing that failed for want of its files waits out its time, and reports
    /// say so, so that the leader tries again, too. What is being fetched and fails is fetched once more.
    pub async fn storage_changed(&self) {
        let _ = self.inbox.send(Msg::StorageChanged).await;
    }

    /// Every report so far (the newest per model; models of which only the last use, or a failure of before a restart, is
    /// known come as absent), then each change. A slow reader gets the newest per model (and before that how its last load
    /// ended, when it loads again), never a growing queue. What says that a model failed, or does no longer, is also on
    /// disk by then, where a disk takes it within a second.
    #[must_use]
    pub fn reports(&self) -> Reports {
        self.shared.board.subscribe(&self.shared.history.lock())
    }

    /// Last use of a model here, also of one that is not loaded (any more); `None` when it was never used or is
    /// forgotten.
    #[must_use]
    pub fn last_used(&self, model: &str) -> Option<UnixMillis> {
        self.shared.last_used(model)
    }

    /// Says that a model counts as used at this time, loaded or not. A use that is older than the last one says nothing.
    pub fn touch(&self, model: &ModelId, at: UnixMillis) {
        match self.shared.copies.get(model.as_str()) {
            Some(copy) => copy.touch_at(at),
            None => self.shared.history.lock().note_use(model, at),
        }
    }

    /// Bytes per pool that nothing is charged with. Changes wake the receiver: a reason to look for a model to warm.
    #[must_use]
    pub fn room(&self) -> watch::Receiver<Footprint> {
        self.shared.room.subscribe()
    }

    /// Why the runtime has to be started anew by whoever keeps it running: it has been drained, and keeps memory that no model
    /// has. `None` while it has not, and always unless [`Config::recycle`] says more than "off".
    #[must_use]
    pub fn must_restart_runtime(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.shared.bloated.subscribe()
    }

    /// What the deaths of the runtime here say of models, for the other pods: told at the death, before anything is loaded
    /// again, and whenever it changes. Also what had been found before a restart.
    #[must_use]
    pub fn suspicions(&self) -> watch::Receiver<Arc<[Suspicion]>> {
        self.shared.suspicions.subscribe()
    }

    /// What must be bewared of here by the deaths of all pods, in the place of what was said before. While a model is tried
    /// elsewhere no load of it begins here: callers who ask for it get [`WaitError::Failed`] at once (to try again later), and
    /// the leader an absent copy. After a verdict (to try again after a change) copies of it leave, too. What the runtime is
    /// loading already goes on.
    pub async fn beware(&self, cautions: Vec<Caution>) {
        let _ = self.inbox.send(Msg::Beware { cautions }).await;
    }

    /// The books at this moment; `None` when the owner task has ended.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Msg::Snapshot { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Every model of which something is here, or on its way: whoever knows that it is gone can [retire](Residency::retire) it. Empty
    /// when the owner task has ended.
    pub async fn held(&self) -> Vec<Arc<Registration>> {
        let (reply, answer) = oneshot::channel();
        match self.inbox.send(Msg::Held { reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_ended) => Vec::new(),
        }
    }

    /// Stops taking loads, lets requests in flight end until `deadline` (then they are revoked), unloads, ends the
    /// owner task. Returns when that is done: at the latest [`Config::revoke_grace`] plus [`Config::unload_timeout`]
    /// after the deadline, and two seconds more where the disk does not answer.
    pub async fn drain(&self, deadline: Deadline) {
        let (done, ended) = oneshot::channel();
        if self.inbox.send(Msg::Drain { until: deadline.instant(), done }).await.is_ok() {
            let _ = ended.await;
        }
    }
}
