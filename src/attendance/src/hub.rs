//! The controller's end: who attends, what they hold and what they are to be told.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use berth_controller::{Agents, Controller, Pod};
use berth_plan::MayEvict;
use berth_plan::caution::{self, Told};
use berth_registry::{Followers, Views};
use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{Caution, CopyReport, CopyState, Footprint, Location, ModelId, PodId, Registration, Suspicion, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::orders::Orders;
use crate::remembered::Remembered;

/// What a [`Hub`] goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// An agent whose stream broke counts as there for so long.
    pub grace: Duration,
    /// Who wrote something waits so long, at most, for agents to know it.
    pub patience: Duration,
    /// Where the agents of before are remembered; `None` remembers nobody.
    pub remembered: Option<PathBuf>,
}

impl Default for Settings {
    /// Ten seconds, two seconds, nobody.
    fn default() -> Self {
        Settings { grace: Duration::from_secs(10), patience: Duration::from_secs(2), remembered: None }
    }
}

/// One agent.
struct Attending {
    pod: Pod,
    location: Location,
    /// Its latest stream; another one has another number.
    stream: u64,
    /// That stream is open.
    here: bool,
    /// On that stream it has said everything that it holds.
    introduced: bool,
    /// It has done so on that stream or on one before: what is known of it counts.
    counts: bool,
    /// Ends that stream.
    end: CancellationToken,
    /// The view that it has.
    seen: (u64, u64),
    /// It was too slow to be waited for, and has not caught up since.
    late: bool,
    /// The models of which it said anything but "absent, and never failed".
    held: BTreeSet<ModelId>,
    orders: Arc<Orders>,
    suspicions: Arc<[Suspicion]>,
}

#[derive(Default)]
struct Pods {
    attending: BTreeMap<PodId, Attending>,
    /// What agents that have gone suspected: a model is no better for that. As long as it counts.
    left: BTreeMap<PodId, Told>,
    streams: u64,
    /// Attended before this process, and not yet since.
    awaited: BTreeSet<PodId>,
}

struct Shared {
    views: Views,
    clock: Clock,
    metrics: Metrics,
    settings: Settings,
    remembered: Option<Remembered>,
    controller: OnceLock<Controller>,
    pods: Mutex<Pods>,
    /// Held while it is written down who attends.
    writing: Mutex<()>,
    /// Rings when an agent has seen a view, or has gone.
    seen: watch::Sender<()>,
    /// Rings when what agents are to beware of may have changed.
    suspicions: watch::Sender<()>,
    /// Some agent suspects some model.
    suspected: AtomicBool,
    /// The controller ends.
    ended: CancellationToken,
}

/// The agents, as the controller knows them. Clones are the same.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

/// Who an agent says that it is.
pub(crate) struct Newcomer {
    pub(crate) pod: Pod,
    pub(crate) location: Location,
    pub(crate) epoch: u64,
}

/// One stream of an agent, at the controller. Dropping it says that the stream is broken.
pub(crate) struct Seat {
    hub: Hub,
    pub(crate) pod: PodId,
    stream: u64,
    pub(crate) orders: Arc<Orders>,
    /// Another stream of the same agent has come, or the controller ends.
    pub(crate) ended: CancellationToken,
}

impl Hub {
    /// A hub at which nobody attends yet. Reads who attended before.
    #[must_use]
    pub fn open(views: Views, settings: Settings, clock: Clock, metrics: Metrics) -> Hub {
        let remembered = settings.remembered.clone().map(Remembered::at);
        let awaited = remembered.as_ref().map(Remembered::read).unwrap_or_default();
        let pods = Mutex::new(Pods { awaited, ..Pods::default() });
        let shared = Shared {
            views: views.clone(),
            clock,
            metrics,
            settings,
            remembered,
            controller: OnceLock::new(),
            pods,
            writing: Mutex::new(()),
            seen: watch::Sender::new(()),
            suspicions: watch::Sender::new(()),
            suspected: AtomicBool::new(false),
            ended: CancellationToken::new(),
        };
        let hub = Hub { shared: Arc::new(shared) };
        hub.shared.metrics.set(Gauge::Agents, &[], 0);
        views.follow(Arc::new(hub.clone()));
        hub
    }

    /// What agents report goes there from now on; until then nobody may attend.
    pub fn report_to(&self, controller: Controller) {
        let _ = self.shared.controller.set(controller);
    }

    /// Ends every stream, and lets nobody attend from now on.
    pub fn end(&self) {
        self.shared.ended.cancel();
    }

    /// How many agents have a stream open.
    #[must_use]
    pub fn attending(&self) -> usize {
        self.shared.pods.lock().attending.values().filter(|attending| attending.here).count()
    }

    pub(crate) fn views(&self) -> &Views {
        &self.shared.views
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    pub(crate) fn controller(&self) -> Option<&Controller> {
        self.shared.controller.get()
    }

    /// A stream of this agent begins; one that it has already ends.
    pub(crate) async fn seat(&self, newcomer: Newcomer) -> Seat {
        let (seat, is_new) = self.seated(newcomer);
        if is_new {
            self.remember().await;
        }
        seat
    }

    /// The seat, and whether the agent was not known before.
    fn seated(&self, Newcomer { pod, location, .. }: Newcomer) -> (Seat, bool) {
        let (id, ended) = (pod.id.clone(), self.shared.ended.child_token());
        let mut pods = self.shared.pods.lock();
        pods.streams += 1;
        let stream = pods.streams;
        let was_awaited = pods.awaited.contains(&id);
        // What it was to be told and did not hear it is told now.
        let (held, suspicions, orders, counts, known) = match pods.attending.remove(&id) {
            Some(before) => {
                before.end.cancel();
                (before.held, before.suspicions, before.orders, before.counts, true)
            }
            None => (BTreeSet::new(), Arc::default(), Arc::<Orders>::default(), false, was_awaited),
        };
        info!(pod = %id, %location, runtime = %pod.runtime, "an agent attends");
        let attending = Attending {
            pod,
            location,
            stream,
            here: true,
            introduced: false,
            counts,
            end: ended.clone(),
            seen: (0, 0),
            late: false,
            held,
            orders: Arc::clone(&orders),
            suspicions,
        };
        pods.attending.insert(id.clone(), attending);
        self.count(&pods);
        drop(pods);
        (Seat { hub: self.clone(), pod: id, stream, orders, ended }, !known)
    }

    fn count(&self, pods: &Pods) {
        let here = pods.attending.values().filter(|attending| attending.here).count();
        self.shared.metrics.set(Gauge::Agents, &[], u64::try_from(here).unwrap_or(u64::MAX));
    }

    /// Writes down who attends, where that is wanted. Of several at once the last one writes the newest.
    async fn remember(&self) {
        let Some(remembered) = self.shared.remembered.clone() else { return };
        let hub = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = hub.shared.writing.lock();
            let known: BTreeSet<PodId> = {
                let pods = hub.shared.pods.lock();
                pods.attending.keys().chain(&pods.awaited).cloned().collect()
            };
            remembered.write(&known);
        });
        if let Err(panic) = written.await {
            warn!(error = %panic, "it was not kept which agents attend");
        }
    }

    /// Changes what is known of an agent, unless another stream of it has begun.
    fn with<T>(&self, pod: &PodId, stream: u64, change: impl FnOnce(&mut Attending) -> T) -> Option<T> {
        let mut pods = self.shared.pods.lock();
        pods.attending.get_mut(pod).filter(|attending| attending.stream == stream).map(change)
    }

    /// The agent is no longer counted as there.
    async fn gone(&self, pod: &PodId, stream: u64) {
        let held = {
            let mut pods = self.shared.pods.lock();
            if pods.attending.get(pod).is_none_or(|attending| attending.stream != stream) {
                return;
            }
            let Some(Attending { location, suspicions, held, .. }) = pods.attending.remove(pod) else { return };
            if !suspicions.is_empty() {
                pods.left.insert(pod.clone(), Told { location, suspicions });
            }
            self.count(&pods);
            held
        };
        info!(%pod, "an agent has gone");
        if let Some(controller) = self.controller() {
            // Before anything else is waited for: whoever comes by that name says what it holds behind this.
            controller.gone(pod, held).await;
        }
        self.shared.seen.send_replace(());
        self.shared.suspicions.send_replace(());
        self.remember().await;
    }

    /// What the agents suspect of models, by agent.
    fn told(&self) -> BTreeMap<PodId, Told> {
        if !self.shared.suspected.load(Ordering::Acquire) {
            return BTreeMap::new();
        }
        let mut pods = self.shared.pods.lock();
        let now = self.shared.clock.wall();
        pods.left.retain(|_, told| told.suspicions.iter().any(|suspicion| now < suspicion.last.after(caution::CASE)));
        let mut told = pods.left.clone();
        for (pod, attending) in pods.attending.iter().filter(|(_, attending)| !attending.suspicions.is_empty()) {
            told.insert(pod.clone(), Told { location: attending.location.clone(), suspicions: Arc::clone(&attending.suspicions) });
        }
        self.shared.suspected.store(!told.is_empty(), Ordering::Release);
        told
    }

    /// What this agent is to beware of, now.
    pub(crate) fn cautions(&self, pod: &PodId) -> Vec<Caution> {
        caution::cautions(&self.told(), pod, self.shared.clock.wall())
    }

    /// Changes when [`Hub::cautions`] may say something else.
    pub(crate) fn suspicions(&self) -> watch::Receiver<()> {
        self.shared.suspicions.subscribe()
    }

    fn orders(&self, pod: &PodId) -> Option<Arc<Orders>> {
        self.shared.pods.lock().attending.get(pod).map(|attending| Arc::clone(&attending.orders))
    }
}

impl Seat {
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What the agent said of copies. `complete`: that is all that it holds, and of everything else it holds nothing by now.
    pub(crate) async fn report(&self, mut copies: Vec<CopyReport>, complete: Option<&BTreeSet<ModelId>>) {
        let holds = |copy: &&CopyReport| copy.state != CopyState::Absent || copy.failure.is_some();
        let taken = self.hub.with(&self.pod, self.stream, |attending| {
            attending.held.extend(copies.iter().filter(holds).map(|copy| copy.model.clone()));
            if let Some(all) = complete {
                copies.extend(attending.held.difference(all).cloned().map(nothing_of));
                (attending.introduced, attending.counts) = (true, true);
            }
            attending.introduced
        });
        if complete.is_some() {
            self.hub.shared.pods.lock().awaited.remove(&self.pod);
        }
        let gone: BTreeSet<ModelId> = copies.iter().filter(|copy| !holds(copy)).map(|copy| copy.model.clone()).collect();
        match (taken, self.hub.controller()) {
            (Some(true), Some(controller)) => controller.report(&self.pod, copies).await,
            (Some(false), Some(controller)) => controller.report_part(&self.pod, copies).await,
            _ => return,
        }
        // Not before the leader has it: what is not told now is told with the next stream.
        self.hub.with(&self.pod, self.stream, |attending| attending.held.retain(|model| !gone.contains(model)));
    }

    pub(crate) async fn has_room(&self, free: Footprint) {
        self.hub.with(&self.pod, self.stream, |attending| attending.pod.free = free);
        if let Some(controller) = self.hub.controller() {
            controller.report_part(&self.pod, Vec::new()).await;
        }
    }

    pub(crate) async fn suspects(&self, suspicions: Arc<[Suspicion]>) {
        for suspicion in &*suspicions {
            warn!(pod = %self.pod, model = %suspicion.model, deaths = suspicion.deaths, "an agent's inference server may have died of a model");
        }
        let any = !suspicions.is_empty();
        if self.hub.with(&self.pod, self.stream, |attending| attending.suspicions = suspicions).is_some() {
            self.hub.shared.pods.lock().left.remove(&self.pod);
        }
        self.hub.shared.suspected.fetch_or(any, Ordering::AcqRel);
        self.hub.shared.suspicions.send_replace(());
        if let Some(controller) = self.hub.controller() {
            controller.report_part(&self.pod, Vec::new()).await;
        }
    }

    pub(crate) fn has_seen(&self, number: (u64, u64)) {
        let present = self.hub.views().current().number();
        self.hub.with(&self.pod, self.stream, |attending| {
            attending.seen = number;
            attending.late &= number < present;
        });
        self.hub.shared.seen.send_replace(());
    }

    /// The agent says that it ends.
    pub(crate) async fn leave(&self) {
        let (hub, pod, stream) = (self.hub.clone(), self.pod.clone(), self.stream);
        // To its end, whoever hangs up meanwhile.
        let _ = tokio::spawn(async move { hub.gone(&pod, stream).await }).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let broken = self.hub.with(&self.pod, self.stream, |attending| attending.here = false).is_some();
        if !broken || self.hub.shared.ended.is_cancelled() {
            return;
        }
        self.hub.count(&self.hub.shared.pods.lock());
        self.hub.shared.seen.send_replace(());
        warn!(pod = %self.pod, grace = ?self.hub.shared.settings.grace, "the stream of an agent broke: it counts as there for a while");
        let (hub, pod, stream) = (self.hub.clone(), self.pod.clone(), self.stream);
        // Without a runtime the process ends, and nobody counts any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                hub.clock().sleep(hub.shared.settings.grace).await;
                hub.gone(&pod, stream).await;
            });
        }
    }
}

#[async_trait]
impl Agents for Hub {
    fn pods(&self) -> Vec<Pod> {
        self.shared.pods.lock().attending.values().filter(|attending| attending.counts).map(|attending| attending.pod.clone()).collect()
    }

    fn awaits_others(&self) -> bool {
        !self.shared.pods.lock().awaited.is_empty()
    }

    fn give_up_on_others(&self) {
        let given_up = std::mem::take(&mut self.shared.pods.lock().awaited);
        if let (false, Ok(runtime)) = (given_up.is_empty(), tokio::runtime::Handle::try_current()) {
            let hub = self.clone();
            runtime.spawn(async move { hub.remember().await });
        }
    }

    fn not_before(&self, pod: &PodId, model: &ModelId) -> Option<UnixMillis> {
        self.cautions(pod).into_iter().find(|caution| caution.model == *model).map(|caution| caution.until)
    }

    async fn load(&self, pod: &PodId, model: Arc<Registration>, may_evict: MayEvict) {
        if let Some(orders) = self.orders(pod) {
            orders.load(model, may_evict);
        }
    }

    async fn retire(&self, pod: &PodId, model: Arc<Registration>) {
        if let Some(orders) = self.orders(pod) {
            orders.retire(model);
        }
    }

    async fn amend(&self, pod: &PodId, model: Arc<Registration>) {
        if let Some(orders) = self.orders(pod) {
            orders.amend(model);
        }
    }

    async fn touch(&self, pod: &PodId, model: &ModelId, at: UnixMillis) {
        if let Some(orders) = self.orders(pod) {
            orders.touch(model, at);
        }
    }

    fn location(&self, pod: &PodId) -> Location {
        let pods = self.shared.pods.lock();
        pods.attending.get(pod).map_or_else(|| Location::of_pod_name(pod.as_str()), |attending| attending.location.clone())
    }
}

#[async_trait]
impl Followers for Hub {
    async fn have(&self, number: (u64, u64)) {
        let mut seen = self.shared.seen.subscribe();
        let missing = |attending: &Attending| attending.here && !attending.late && attending.seen < number;
        let all = async {
            loop {
                seen.mark_unchanged();
                if !self.shared.pods.lock().attending.values().any(missing) {
                    return;
                }
                if seen.changed().await.is_err() {
                    return;
                }
            }
        };
        if self.shared.clock.until(self.shared.clock.deadline_in(self.shared.settings.patience), all).await.is_none() {
            for attending in self.shared.pods.lock().attending.values_mut() {
                if missing(attending) {
                    warn!(pod = %attending.pod.id, "an agent is slow to take the view: writers do not wait for it until it has caught up");
                    attending.late = true;
                }
            }
        }
    }
}

/// The pod has nothing of this model, and nothing against it.
fn nothing_of(model: ModelId) -> CopyReport {
    CopyReport { model, state: CopyState::Absent, failure: None, mended: false, last_used: None }
}

/// Loads that an agent says it may have at a time.
pub(crate) fn at_a_time(loads: u32) -> NonZeroUsize {
    usize::try_from(loads).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}
