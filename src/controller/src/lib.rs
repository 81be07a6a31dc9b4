//! The leader: keeps what is and what should be in step.
//!
//! It reads resources and reports, and for every name decides (in `berth-plan`, purely) which version serves, which
//! load that nobody waits for is due, and what the status says; then it carries that out: aliases and statuses go to the
//! store, names to the views, loads and retirements to the agents. One task owns all of it; store writes run beside it,
//! one per resource at a time, and come back as messages.
//!
//! ```text
//! let (controller, leader) = Controller::new(Deps { store, views, agents, clock, metrics, config });
//! tokio::spawn(leader.run(shutdown));                  // until the token is cancelled or the store is closed
//! controller.report(&pod, Vec::new()).await;           // this pod has said everything that it holds (nothing, here)
//! while let Some(reports) = residency_reports.next().await {
//!     controller.report(&pod, reports).await;          // every change since; an empty list means "there may be room"
//! }
//! ```
//!
//! Invariants:
//! - An alias is in the store before a view names its target; a version is retired only after a view stopped naming it.
//! - Statuses of one resource are written one after the other, each a documented step, and only when they differ.
//! - Until every pod has reported once (or [`Config::settle_within`] has passed) no status is lowered and nothing is
//!   loaded; afterwards a restarted leader knows what the one before it knew.
//! - The first good content of a version is in the store soon after it was loaded, and goes with the version. Other bytes
//!   under its id are told ([`Controller::drifts`]) and served.
//! - A change costs the same however many resources there are. Only the start and a changed ServingRuntime look at all.
//!
//! On one machine clients reach models by name alone, so a name belongs to the first resource that has it, whatever its
//! kind and namespace; the others say who holds it and get it when it is free.

mod asks;
mod bells;
mod copies;
mod drift;
mod keyed;
mod leader;
mod managed;
mod model;
mod names;
mod resource;
mod timers;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_plan::MayEvict;
use berth_plan::runtime::RuntimeSpec;
use berth_registry::{Store, Views};
use berth_telemetry::{Clock, Metrics};
use berth_types::{CopyReport, CopyState, Footprint, Location, ModelId, Name, PodId, Registration, UnixMillis};
use tokio::sync::{mpsc, oneshot, watch};

pub use berth_plan::status::document::Endpoints;
pub use drift::{Drift, Drifts};
pub use leader::Leader;
pub use managed::{Manager, ManagerDeps};

use copies::Copies;

/// Reports that may wait for the leader; a pod that sends more waits.
const REPORTS_WAITING: usize = 64;

/// One live agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its identity.
    pub id: PodId,
    /// The name of the ServingRuntime or ClusterServingRuntime that describes its inference server.
    pub runtime: Arc<str>,
    /// Memory that nothing is charged with.
    pub free: Footprint,
    /// All its memory for models.
    pub budget: Footprint,
    /// Loads that nobody waits for which it should have at a time.
    pub loads_at_a_time: NonZeroUsize,
}

/// The agents, as the leader commands them. Calls must return soon: they queue work, they do not wait for it.
#[async_trait]
pub trait Agents: Send + Sync + 'static {
    /// The live pods, now.
    fn pods(&self) -> Vec<Pod>;

    /// True while agents of before, which should be there, have not come back: there is nothing to conclude from what is missing.
    fn awaits_others(&self) -> bool {
        false
    }

    /// Those that did not come back are not waited for any longer.
    fn give_up_on_others(&self) {}

    /// Before when this pod is not to be asked to load this model: an inference server may have died of it. `None`: it may be.
    fn not_before(&self, _pod: &PodId, _model: &ModelId) -> Option<UnixMillis> {
        None
    }

    /// Loads a model that nobody waits for. The outcome comes as a report of that pod: `Loaded`, `Absent` with a failure,
    /// or `Absent` without one when there was no room.
    async fn load(&self, pod: &PodId, model: Arc<Registration>, may_evict: MayEvict);

    /// No name refers to this version any more: drain, unload and forget it. A pod that never had it ignores this.
    async fn retire(&self, pod: &PodId, model: Arc<Registration>);

    /// What is registered says something else of how this version is kept in memory. A pod that does not have it ignores this.
    async fn amend(&self, _pod: &PodId, _model: Arc<Registration>) {}

    /// The model counts as used on this pod at this time. A pod that keeps no such account ignores this.
    async fn touch(&self, _pod: &PodId, _model: &ModelId, _at: UnixMillis) {}

    /// The pod as people see it.
    fn location(&self, pod: &PodId) -> Location {
        Location::of_pod_name(pod.as_str())
    }
}

/// Settings of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What statuses say about where clients connect.
    pub endpoints: Endpoints,
    /// Pods that have not reported by then are not waited for any longer.
    pub settle_within: Duration,
    /// Store writes under way at a time.
    pub writes_at_a_time: NonZeroUsize,
}

impl Default for Config {
    /// No endpoints, ten seconds, 64 writes.
    fn default() -> Self {
        Config { endpoints: Endpoints::default(), settle_within: Duration::from_secs(10), writes_at_a_time: NonZeroUsize::MIN.saturating_add(63) }
    }
}

/// What the leader works with.
pub struct Deps {
    /// Desired state. Its folder should have been read once before the leader starts.
    pub store: Arc<dyn Store>,
    /// The picture that requests read; marked ready once every resource has been read.
    pub views: Views,
    /// The agents.
    pub agents: Arc<dyn Agents>,
    /// Time.
    pub clock: Clock,
    /// Measurements.
    pub metrics: Metrics,
    /// Settings.
    pub config: Config,
}

/// What reaches the leader.
enum News {
    /// A pod says something.
    Report(Report),
    /// A name came to calls, or went from them.
    Name(Name),
    /// Somebody waits until what came before has been looked at.
    Turn(oneshot::Sender<()>),
}

/// What a pod says.
struct Report {
    pod: PodId,
    copies: Vec<CopyReport>,
    standing: Standing,
}

/// How a pod stands with what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has said everything that it holds.
    Complete,
    /// More is to come.
    Begins,
    /// It has gone: nobody else says so of what it held.
    Gone,
}

/// Handle to the leader. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    news: mpsc::Sender<News>,
    caught_up: watch::Receiver<bool>,
    drifts: watch::Receiver<Drifts>,
    /// What pods hold, of every model.
    copies: Arc<Copies>,
    /// The runtimes that the leader knows.
    runtimes: watch::Receiver<Arc<[RuntimeSpec]>>,
}

impl Controller {
    /// The handle, and the leader that wants to be run.
    #[must_use]
    pub fn new(deps: Deps) -> (Controller, Leader) {
        let (sender, receiver) = mpsc::channel(REPORTS_WAITING);
        let (caught_up, followed) = watch::channel(false);
        let (drifts, known) = watch::channel(Drifts::default());
        let (tell, runtimes) = watch::channel(Arc::from([]));
        let copies = Arc::<Copies>::default();
        let leader = Leader::new(deps, receiver, Arc::clone(&copies), caught_up, drifts, tell);
        (Controller { news: sender, caught_up: followed, drifts: known, copies, runtimes }, leader)
    }

    /// Turns true when, for the first time since the leader started, the statuses in the store say what is rather than
    /// what the leader before it wrote.
    #[must_use]
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.clone()
    }

    /// Which pods serve other bytes than the first good ones of a model id.
    #[must_use]
    pub fn drifts(&self) -> watch::Receiver<Drifts> {
        self.drifts.clone()
    }

    /// What changed on a pod. Its first call says everything that the pod holds, with an empty list where that is
    /// nothing; a later empty list says that memory may have become free. Waits while many reports are waiting; a leader
    /// that has ended ignores it.
    pub async fn report(&self, pod: &PodId, copies: Vec<CopyReport>) {
        // Nothing to be done about an error: a leader that has ended needs no reports.
        let _ = self.news.send(News::Report(Report { pod: pod.clone(), copies, standing: Standing::Complete })).await;
    }

    /// The same of a pod that has not said everything yet: nothing is concluded from what it did not say. An empty list says that
    /// something else about the pods has changed.
    pub async fn report_part(&self, pod: &PodId, copies: Vec<CopyReport>) {
        let _ = self.news.send(News::Report(Report { pod: pod.clone(), copies, standing: Standing::Begins })).await;
    }

    /// The pod has gone, and these models with it. What it was asked for and has not done, others are asked for.
    pub async fn gone(&self, pod: &PodId, held: impl IntoIterator<Item = ModelId>) {
        let nothing = |model| CopyReport { model, state: CopyState::Absent, failure: None, mended: false, last_used: None };
        let copies = held.into_iter().map(nothing).collect();
        let _ = self.news.send(News::Report(Report { pod: pod.clone(), copies, standing: Standing::Gone })).await;
    }

    /// Completes when the leader has looked at all that was reported so far, and the view says what follows from it.
    pub async fn turned(&self) {
        let (done, turned) = oneshot::channel();
        if self.news.send(News::Turn(done)).await.is_ok() {
            let _ = turned.await;
        }
    }

    /// A name came to calls, or went from them: a resource of that name may lose or get it.
    async fn name_changed(&self, name: &Name) {
        let _ = self.news.send(News::Name(name.clone())).await;
    }
}
