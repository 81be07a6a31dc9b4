//! Who gives the server its orders: one task, which owns the list of models that is in the configuration file.
//!
//! A reload is one call for all models, and the server does one at a time. So the first order goes out at once, what comes
//! while a reload runs is taken and goes out together with the next one, and nothing waits for more to come. Each model has a verdict of its
//! own, by its state: that another one of the same reload cannot be loaded, or takes long, is no matter of its.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use berth_types::Deadline;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use super::file::{self, Models};
use super::rest::{Answer, Api};
use super::states::{State, States, error, states};
use crate::repository::words::is_out_of_memory;
use crate::rpc::RpcError;
use crate::{Health, IndexEntry, LoadError, LoadFault, UnloadError};

/// How often it is looked whether a model of a reload that takes long is there already.
const LOOK: Duration = Duration::from_millis(100);
/// How long the server may take to say how its models stand.
const USUAL: Duration = Duration::from_secs(10);

type LoadReply = oneshot::Sender<Result<(), LoadError>>;
type UnloadReply = oneshot::Sender<Result<(), UnloadError>>;

enum Order {
    Load {
        name: String,
        folder: PathBuf,
        reply: LoadReply,
    },
    Unload {
        name: String,
        /// `None`: it was answered when it was taken.
        reply: Option<UnloadReply>,
    },
    /// Nobody wants it any more: it need not be loaded if the server has not been told yet.
    Withdraw {
        name: String,
    },
}

/// Models that are to be unloaded with the next reload.
pub(super) type Leaving = Arc<Mutex<BTreeSet<String>>>;

impl Order {
    fn name(&self) -> &str {
        match self {
            Order::Load { name, .. } | Order::Unload { name, .. } | Order::Withdraw { name } => name,
        }
    }
}

/// Takes orders. Cheap to clone.
#[derive(Clone)]
pub(super) struct Desk {
    orders: mpsc::Sender<Order>,
    leaving: Leaving,
}

impl Desk {
    /// Loads the model that is laid out in `folder`, and says what became of it.
    pub(super) async fn load(&self, name: String, folder: PathBuf) -> Result<(), LoadError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(Order::Load { name, folder, reply }).await.ok()?;
            answer.await.ok()
        };
        asked.await.unwrap_or_else(|| Err(refused(LoadFault::RuntimeDown, "nobody takes orders for the server any more", true)))
    }

    /// Takes the model out of the server. Success means that the server was told, or will be when it has done what it is at; its
    /// states say when it is gone.
    pub(super) async fn unload(&self, name: String) -> Result<(), UnloadError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(Order::Unload { name, reply: Some(reply) }).await.ok()?;
            answer.await.ok()
        };
        asked.await.unwrap_or_else(|| Err(UnloadError("nobody takes orders for the server any more".to_owned())))
    }

    /// An order to load `name` that has not gone out yet need not.
    pub(super) async fn withdraw(&self, name: String) {
        let _ = self.orders.send(Order::Withdraw { name }).await;
    }

    /// Whether an order to unload `name` was taken that the server has not been told.
    pub(super) fn is_leaving(&self, name: &str) -> bool {
        self.leaving.lock().contains(name)
    }
}

/// What the desk works with.
pub(super) struct Deps {
    pub(super) api: Arc<dyn Api>,
    pub(super) clock: Clock,
    /// The configuration file, with nothing in it.
    pub(super) file: PathBuf,
    /// How long a load may be waited for.
    pub(super) patience: Duration,
    /// Whether the server lives.
    pub(super) health: watch::Receiver<Health>,
}

/// Orders that wait: more and whoever gives one waits, too.
const QUEUE: usize = 256;

/// Begins to take orders, until the last [`Desk`] is gone.
pub(super) fn open(deps: Deps) -> (Desk, impl Future<Output = ()> + Send) {
    let (sender, orders) = mpsc::channel(QUEUE);
    let leaving = Leaving::default();
    let desk = Desk { orders: sender, leaving: Arc::clone(&leaving) };
    let owner = Owner { deps, orders, early: VecDeque::new(), models: Models::new(), awaited: BTreeMap::new(), leaving };
    (desk, owner.run())
}

struct Owner {
    deps: Deps,
    orders: mpsc::Receiver<Order>,
    /// Orders that were taken out of the queue and must wait for the next reload.
    early: VecDeque<Order>,
    /// What is in the file.
    models: Models,
    /// Loads without a verdict: those of the reload that runs, and those that the server goes on with.
    awaited: BTreeMap<String, Awaited>,
    /// Taken while a reload ran, for the next one.
    leaving: Leaving,
}

struct Awaited {
    replies: Vec<LoadReply>,
    until: Deadline,
}

/// What goes out together.
#[derive(Default)]
struct Batch {
    loads: BTreeMap<String, (PathBuf, Vec<LoadReply>)>,
    unloads: BTreeMap<String, Vec<UnloadReply>>,
}

impl Batch {
    /// Adds an order, or gives it back where it must come after what is here already.
    fn add(&mut self, order: Order) -> Option<Order> {
        match order {
            Order::Load { ref name, .. } if self.unloads.contains_key(name) => Some(order),
            Order::Load { name, folder, reply } => {
                let load = self.loads.entry(name).or_insert_with(|| (folder.clone(), Vec::new()));
                load.0 = folder;
                load.1.push(reply);
                None
            }
            Order::Unload { name, reply } => {
                self.withdraw(&name);
                self.unloads.entry(name).or_default().extend(reply);
                None
            }
            Order::Withdraw { name } => {
                self.withdraw(&name);
                None
            }
        }
    }

    fn withdraw(&mut self, name: &str) {
        for reply in self.loads.remove(name).into_iter().flat_map(|(_, replies)| replies) {
            let _ = reply.send(Err(refused(LoadFault::NotNow, &format!("{name} was unloaded before the server was told to load it"), true)));
        }
    }

    fn is_empty(&self) -> bool {
        self.loads.is_empty() && self.unloads.is_empty()
    }
}

fn refused(fault: LoadFault, message: &str, nothing_attempted: bool) -> LoadError {
    LoadError { fault, message: message.to_owned(), nothing_attempted }
}

fn down(why: &str) -> LoadError {
    refused(LoadFault::RuntimeDown, &format!("{KIND} is away: {why}"), false)
}

const KIND: &str = "OpenVINO Model Server";

impl Owner {
    async fn run(mut self) {
        loop {
            let first = match self.early.pop_front() {
                Some(early) => early,
                None => tokio::select! {
                    biased;
                    why = went_down(&mut self.deps.health) => {
                        self.died(&why).await;
                        continue;
                    }
                    order = self.orders.recv() => match order {
                        Some(order) => order,
                        None => return,
                    },
                    () = self.deps.clock.sleep(LOOK), if !self.awaited.is_empty() => {
                        self.look().await;
                        continue;
                    }
                },
            };
            let batch = self.gather(first);
            if !batch.is_empty() {
                self.carry_out(batch).await;
            }
        }
    }

    /// `first` and all that waits and may go with it, in the order in which it came.
    fn gather(&mut self, first: Order) -> Batch {
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(order) = next {
            if let Some(later) = batch.add(order) {
                self.early.push_front(later);
                break;
            }
            next = self.early.pop_front().or_else(|| self.orders.try_recv().ok());
        }
        batch
    }

    async fn carry_out(&mut self, batch: Batch) {
        let leaving: Vec<String> = batch.unloads.keys().cloned().collect();
        self.told(batch).await;
        // From here on the server's states tell.
        self.leaving.lock().retain(|name| !leaving.contains(name));
    }

    async fn told(&mut self, batch: Batch) {
        let before = self.models.clone();
        batch.unloads.keys().for_each(|name| drop(self.models.remove(name)));
        self.models.extend(batch.loads.iter().map(|(name, (folder, _))| (name.clone(), folder.clone())));
        if let Err(why) = file::write(&self.deps.file, &self.models).await {
            self.models = before;
            for reply in batch.loads.into_values().flat_map(|(_, replies)| replies) {
                let _ = reply.send(Err(refused(LoadFault::RuntimeDown, &why, true)));
            }
            for reply in batch.unloads.into_values().flatten() {
                let _ = reply.send(Err(UnloadError(why.clone())));
            }
            return;
        }
        let until = self.deps.clock.deadline_in(self.deps.patience);
        for (name, (_, replies)) in batch.loads {
            let awaited = self.awaited.entry(name).or_insert_with(|| Awaited { replies: Vec::new(), until });
            awaited.until = until;
            awaited.replies.extend(replies);
        }
        match self.reload(until).await {
            Err(why) => {
                for reply in batch.unloads.into_values().flatten() {
                    let _ = reply.send(Err(UnloadError(format!("{KIND} is away: {why}"))));
                }
                self.died(&why).await;
            }
            Ok(answer) => self.verdicts(answer, batch.unloads).await,
        }
    }

    /// Has the server read the file. Models that are there before the call has ended are not kept waiting for the others.
    /// `Err`: the server went away meanwhile.
    async fn reload(&mut self, until: Deadline) -> Result<Result<Answer, RpcError>, String> {
        let (api, clock, mut health) = (Arc::clone(&self.deps.api), self.deps.clock.clone(), self.deps.health.clone());
        let mut reload = std::pin::pin!(api.reload(until));
        let mut next = clock.deadline_in(LOOK);
        loop {
            tokio::select! {
                biased;
                answer = &mut reload => return Ok(answer),
                why = went_down(&mut health) => return Err(why),
                Some(order) = self.orders.recv() => {
                    self.take(order);
                    continue;
                }
                () = clock.sleep_until(next), if !self.awaited.is_empty() => next = clock.deadline_in(LOOK),
            }
            // The call must not stand still while it is looked.
            let looking = async {
                let answer = api.config(clock.deadline_in(USUAL)).await.ok()?;
                states(&answer.body).ok()
            };
            let mut looking = std::pin::pin!(looking);
            let seen = loop {
                tokio::select! {
                    biased;
                    answer = &mut reload => return Ok(answer),
                    Some(order) = self.orders.recv() => self.take(order),
                    seen = &mut looking => break seen,
                }
            };
            // Only what is there counts yet: a failure may be that of an earlier try.
            self.settle(&seen.unwrap_or_default(), |state| matches!(state, Some(State::Is(IndexEntry::Ready))).then_some(Ok(())));
        }
    }

    /// An order that comes while a reload runs: it goes out with the next one. One to unload is answered at once, since that may take
    /// as long as the slowest load of this reload.
    fn take(&mut self, order: Order) {
        match order {
            Order::Unload { name, reply } => {
                if let Some(reply) = reply {
                    let _ = reply.send(Ok(()));
                }
                let last = self.early.iter().rfind(|early| early.name() == name);
                if !matches!(last, Some(Order::Unload { .. })) {
                    self.early.push_back(Order::Unload { name: name.clone(), reply: None });
                }
                self.leaving.lock().insert(name);
            }
            other => self.early.push_back(other),
        }
    }

    /// What became of each model of a reload that has ended.
    async fn verdicts(&mut self, answer: Result<Answer, RpcError>, unloads: BTreeMap<String, Vec<UnloadReply>>) {
        let (told, why) = match &answer {
            Ok(answer) if answer.is_good() => (states(&answer.body).ok(), None),
            Ok(answer) => (None, Some(format!("{KIND} did not reload ({}): {}", answer.status, error(&answer.body)))),
            Err(why) => (None, Some(format!("{KIND} gave no answer to a reload: {why}"))),
        };
        let seen = match told {
            Some(states) => Ok(states),
            None => self.states().await,
        };
        for (name, replies) in unloads {
            let result = match (&why, &seen) {
                (None, _) => Ok(()),
                (Some(_), Ok(seen)) if !matches!(seen.get(&name), Some(State::Is(IndexEntry::Ready | IndexEntry::Loading))) => Ok(()),
                (Some(why), _) => Err(UnloadError(why.clone())),
            };
            for reply in replies {
                let _ = reply.send(result.clone());
            }
        }
        match seen {
            Err(why) if answer.is_err() => {
                for name in self.awaited.keys().cloned().collect::<Vec<_>>() {
                    self.answer(&name, &Err(down(&why)));
                }
                // A server that starts now must not load what was refused.
                self.write().await;
            }
            // Whoever was not told yet is told by the next look, or when time is up.
            Err(why) => warn!(error = %why, "the model server does not say how its models stand"),
            Ok(seen) => self.judge(&seen, why.as_deref()),
        }
    }

    async fn look(&mut self) {
        if let Ok(seen) = self.states().await {
            self.judge(&seen, None);
        }
        let now = self.deps.clock.now();
        let late: Vec<String> = self.awaited.iter().filter(|(_, awaited)| awaited.until.instant() <= now).map(|(name, _)| name.clone()).collect();
        for name in late {
            let message = format!("{KIND} did not end the load of {name}");
            self.answer(&name, &Err(refused(LoadFault::TimedOut, &message, false)));
        }
    }

    async fn states(&self) -> Result<States, String> {
        let answer = self.deps.api.config(self.deps.clock.deadline_in(USUAL)).await.map_err(|why| why.to_string())?;
        if answer.is_good() { states(&answer.body) } else { Err(error(&answer.body)) }
    }

    /// Tells those whose models' states are final, no reload being under way. `why` the last reload was no success.
    fn judge(&mut self, seen: &States, why: Option<&str>) {
        let file = self.deps.file.display().to_string();
        self.settle(seen, |state| match state {
            Some(State::Is(IndexEntry::Ready)) => Some(Ok(())),
            Some(State::Is(IndexEntry::Loading)) => None,
            Some(State::Failed(words)) => {
                let fault = if is_out_of_memory(words) { LoadFault::OutOfMemory } else { LoadFault::BadModel };
                Some(Err(refused(fault, &format!("{KIND} did not load it ({words}): its log says more"), false)))
            }
            Some(State::Absent | State::Is(IndexEntry::Unloading | IndexEntry::Parked)) | None => Some(Err(match why {
                // A reload that went wrong as a whole says nothing of a model that it did not come to.
                Some(why) => refused(LoadFault::NotNow, why, false),
                None => refused(LoadFault::NotNow, &format!("{KIND} does not list it: is its configuration file {file}?"), false),
            })),
        });
    }

    /// Answers those loads of which `verdict` says what became of them. What failed is taken out of the list, so that the server
    /// does not try it again with every reload.
    fn settle(&mut self, seen: &States, verdict: impl Fn(Option<&State>) -> Option<Result<(), LoadError>>) {
        let settled: Vec<_> = self.awaited.keys().filter_map(|name| Some((name.clone(), verdict(seen.get(name))?))).collect();
        for (name, result) in settled {
            self.answer(&name, &result);
        }
    }

    fn answer(&mut self, name: &str, result: &Result<(), LoadError>) {
        if result.is_err() {
            self.models.remove(name);
        }
        for reply in self.awaited.remove(name).into_iter().flat_map(|awaited| awaited.replies) {
            let _ = reply.send(result.clone());
        }
    }

    /// Writes the file where nobody waits for it.
    async fn write(&self) {
        if let Err(fault) = file::write(&self.deps.file, &self.models).await {
            warn!(error = %fault, "a model server that comes back will load what it held");
        }
    }

    /// The server is gone, and so are its models: its successor must not load what is in the file.
    async fn died(&mut self, why: &str) {
        self.leaving.lock().clear();
        self.models.clear();
        self.write().await;
        for name in self.awaited.keys().cloned().collect::<Vec<_>>() {
            self.answer(&name, &Err(down(why)));
        }
    }
}

/// Completes when the server goes down that was up before.
async fn went_down(health: &mut watch::Receiver<Health>) -> String {
    loop {
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Health::Down { why } = &*health.borrow_and_update() {
            return why.to_string();
        }
    }
}

#[cfg(test)]
mod tests;
