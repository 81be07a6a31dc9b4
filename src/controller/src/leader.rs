//! The task that owns everything the leader knows.
//!
//! One turn: take what came in (changed resources, reports, finished writes, time), look at each resource that it
//! touches, publish the next view, then command the agents. Looking at a resource is plain code without a wait: it ends
//! in a store write on its way, or in a time at which to look again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_plan::alias::{self, Effect, Next, Versions};
use berth_plan::background::{self, Purpose, Standby};
use berth_plan::device;
use berth_plan::drift::{Comparison, compare};
use berth_plan::resource::{InvalidSpec, OtherParts, is_ours};
use berth_plan::runtime::{self, RuntimeSpec, WAITING_FOR_POD};
use berth_plan::status::document::{self, Circumstances};
use berth_plan::status::{self, ModelState, Observed, SpecState, Status};
use berth_registry::{Alias, Change, Changes, Contents, Json, NameEntry, Object, ObjectKey, Store, StoreError, Views};
use berth_telemetry::{Clock, Counter, Gauge, Metrics};
use berth_types::{
    Content, ContentDigest, CopyState, Failure, Footprint, Location, ModelId, Name, Namespace, PodId, Reason, Registration, Retry, Step, UnixMillis,
};
use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::asks::{Asked, LoadCommand, Queues, Warmable};
use crate::copies::Copies;
use crate::drift::{Drift, Drifts};
use crate::keyed::Table;
use crate::model::{Hosts, Model};
use crate::names::Names;
use crate::resource::{Resource, Shown, Writing, owner};
use crate::timers::Timers;
use crate::{Agents, Config, Deps, News, Pod, Report, Standing};

/// After the store failed, one resource's next write waits this long.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long the end of the leader waits for writes under way.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// The longest sleep: wall time may jump, the next look should not wait for it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How many versions on standby are looked at in search of one that fits.
const WARM_CANDIDATES: usize = 32;
/// Versions retired last, in case a request that resolved its id before still loads one of them.
const RETIRED_KEPT: usize = 256;

/// A finished store write.
struct Written {
    key: ObjectKey,
    outcome: Result<(), StoreError>,
}

/// The leader. Made by [`crate::Controller::new`]; does nothing until it is run.
pub struct Leader {
    store: Arc<dyn Store>,
    views: Views,
    agents: Arc<dyn Agents>,
    clock: Clock,
    metrics: Metrics,
    config: Config,
    incoming: mpsc::Receiver<News>,
    /// What pods hold, of every model.
    copies: Arc<Copies>,

    resources: Table<Resource>,
    names: Names,
    models: Table<Model>,
    runtimes: BTreeMap<(Name, Option<Namespace>), RuntimeSpec>,
    /// Whoever reads it is told of each change.
    told_runtimes: watch::Sender<Arc<[RuntimeSpec]>>,
    /// The live pods as of this turn.
    pods: Vec<Pod>,

    to_look_at: BTreeSet<ObjectKey>,
    timers: Timers,
    queues: Queues,
    warmable: Warmable,

    writes: JoinSet<Written>,
    writing: HashSet<ObjectKey>,
    /// Resources that want to write while too many writes are under way.
    write_backlog: BTreeSet<ObjectKey>,
    /// After the store failed: no write of these before then.
    paused: HashMap<ObjectKey, UnixMillis>,

    names_to_show: Vec<(Name, Option<NameEntry>)>,
    to_retire: Vec<Arc<Registration>>,
    /// Versions of which pods have to know that they are kept otherwise.
    to_amend: Vec<Arc<Registration>>,
    to_load: Vec<LoadCommand>,
    /// Who waits for the end of this turn.
    to_tell: Vec<oneshot::Sender<()>>,
    retired: VecDeque<Arc<Registration>>,

    /// First good contents of before this leader, until their versions are registered again.
    remembered: HashMap<ModelId, ContentDigest>,
    /// Whoever reads it is told of each change.
    drifts: watch::Sender<Drifts>,

    /// The newest version of the store that was taken in.
    taken_in: u64,
    heard_of: HashSet<PodId>,
    settled: bool,
    settle_by: Option<Instant>,
    /// True once statuses say what is, for the first time in this life.
    caught_up: watch::Sender<bool>,
}

/// What looking at a status came to.
enum StatusStep {
    /// A write is on its way, or has to wait.
    Writing,
    /// Something is true now that was not before: look again.
    Again,
    /// Nothing to do.
    Rest,
}

impl Leader {
    pub(crate) fn new(
        deps: Deps,
        incoming: mpsc::Receiver<News>,
        copies: Arc<Copies>,
        caught_up: watch::Sender<bool>,
        drifts: watch::Sender<Drifts>,
        told_runtimes: watch::Sender<Arc<[RuntimeSpec]>>,
    ) -> Self {
        let Deps { store, views, agents, clock, metrics, config } = deps;
        Leader {
            store,
            views,
            agents,
            clock,
            metrics,
            config,
            incoming,
            copies,
            resources: Table::default(),
            names: Names::default(),
            models: Table::default(),
            runtimes: BTreeMap::new(),
            told_runtimes,
            pods: Vec::new(),
            to_look_at: BTreeSet::new(),
            timers: Timers::default(),
            queues: Queues::default(),
            warmable: Warmable::default(),
            writes: JoinSet::new(),
            writing: HashSet::new(),
            write_backlog: BTreeSet::new(),
            paused: HashMap::new(),
            names_to_show: Vec::new(),
            to_retire: Vec::new(),
            to_amend: Vec::new(),
            to_load: Vec::new(),
            to_tell: Vec::new(),
            retired: VecDeque::new(),
            remembered: HashMap::new(),
            drifts,
            taken_in: 0,
            heard_of: HashSet::new(),
            settled: false,
            settle_by: None,
            caught_up,
        }
    }

    /// Leads until `shutdown` is cancelled or the store is closed. Writes under way are finished first.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.store.subscribe();
        let first = tokio::select! {
            () = shutdown.cancelled() => return,
            first = changes.next() => first.unwrap_or_default(),
        };
        self.begin(first).await;
        while self.take_in(&mut changes, &shutdown).await {
            self.turn().await;
        }
        let deadline = self.clock.deadline_in(LAST_WRITES);
        while let Some(Some(_)) = self.clock.until(deadline, self.writes.join_next()).await {}
        info!(unfinished = self.writes.len(), "leader has ended");
    }

    /// Reads every resource once; from then on unknown names are unknown.
    async fn begin(&mut self, mut objects: Vec<Change>) {
        self.settle_by = Some(self.clock.now() + self.config.settle_within);
        self.pods = self.agents.pods();
        let kept = self.store.contents().await.unwrap_or_else(|fault| {
            warn!(error = %fault, "the first good contents of models cannot be read: what is loaded next counts as the first");
            BTreeMap::new()
        });
        self.remembered = kept.values().flatten().map(|(model, digest)| (model.clone(), *digest)).collect();
        // Who was made first holds a name that several have, also after a restart.
        objects.sort_by_key(|change| change.object.as_ref().map(|object| (object.created, object.key.clone())));
        for change in objects {
            self.take_change(change, true);
        }
        self.turn().await;
        self.remembered = HashMap::new();
        self.forget_old_contents(&kept);
        self.views.mark_ready();
        info!(resources = self.resources.len(), models = self.models.len(), "resources read");
    }

    /// Waits for something to happen and takes it in. False when it is time to end.
    async fn take_in(&mut self, changes: &mut Changes, shutdown: &CancellationToken) -> bool {
        let alarm = self.next_alarm();
        let clock = self.clock.clone();
        let sleep = pin!(clock.sleep(alarm));
        tokio::select! {
            () = shutdown.cancelled() => return false,
            changed = changes.next() => match changed {
                Some(changed) => changed.into_iter().for_each(|change| self.take_change(change, false)),
                None => return false,
            },
            Some(news) = self.incoming.recv() => match news {
                News::Report(report) => self.take_report(report),
                News::Name(name) => self.to_look_at.extend(self.names.holder(&name)),
                News::Turn(done) => self.to_tell.push(done),
            },
            Some(written) = self.writes.join_next() => match written {
                Ok(written) => self.take_written(written),
                Err(fault) => error!(error = %fault, "a store write was lost"),
            },
            () = sleep => {}
        }
        true
    }

    fn next_alarm(&self) -> Duration {
        let by_timer = self.timers.next().map(|at| at.since(self.clock.wall()));
        let by_settling = self.settle_by.filter(|_| !self.settled).map(|by| by.saturating_duration_since(self.clock.now()));
        by_timer.into_iter().chain(by_settling).min().unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    async fn turn(&mut self) {
        let now = self.clock.wall();
        let pods = self.agents.pods();
        let who = |pods: &[Pod]| pods.iter().map(|pod| (pod.id.clone(), pod.runtime.clone())).collect::<Vec<_>>();
        if who(&pods) != who(&self.pods) {
            self.to_look_at.extend(self.resources.keys().cloned());
            self.drifts.send_if_modified(|drifts| drifts.keep_pods(|known| pods.iter().any(|pod| pod.id == *known)));
            self.heard_of.retain(|known| pods.iter().any(|pod| pod.id == *known));
        }
        self.pods = pods;
        self.settle();
        while let Some(key) = self.timers.pop_due(now) {
            if let Some(resource) = self.resources.get_mut(&key) {
                resource.look_again = None;
            }
            self.to_look_at.insert(key);
        }
        while let Some(key) = self.to_look_at.pop_first().or_else(|| self.next_of_backlog()) {
            self.look_at(&key, now);
        }
        if self.settled {
            self.hand_out_loads(now);
        }
        if !self.names_to_show.is_empty() {
            let shown = std::mem::take(&mut self.names_to_show);
            self.views.update(|view| view.with_names(shown));
        }
        self.views.cover(self.taken_in);
        let registered = u64::try_from(self.views.current().model_count()).unwrap_or(u64::MAX);
        self.metrics.set(Gauge::RegisteredModels, &[], registered);
        for registration in std::mem::take(&mut self.to_amend) {
            for pod in &self.pods {
                self.agents.amend(&pod.id, Arc::clone(&registration)).await;
            }
        }
        for registration in std::mem::take(&mut self.to_retire) {
            if self.views.current().is_managed_model(registration.id.as_str()) {
                continue; // A call stands for the same version.
            }
            info!(model = %registration.id, "model retired");
            for pod in &self.pods {
                self.agents.retire(&pod.id, registration.clone()).await;
            }
            if self.retired.len() == RETIRED_KEPT {
                self.retired.pop_front();
            }
            self.retired.push_back(registration);
        }
        for LoadCommand { pod, model, may_evict } in std::mem::take(&mut self.to_load) {
            if let Some(model) = self.models.get(&model) {
                self.agents.load(&pod, model.registration.clone(), may_evict).await;
            }
        }
        for done in std::mem::take(&mut self.to_tell) {
            let _ = done.send(());
        }
        if !*self.caught_up.borrow() && self.says_what_is() {
            self.caught_up.send_replace(true);
        }
    }

    /// True when no status has anything left to say.
    fn says_what_is(&self) -> bool {
        self.settled && self.writes.is_empty() && self.write_backlog.is_empty() && self.paused.is_empty()
    }

    fn next_of_backlog(&mut self) -> Option<ObjectKey> {
        if self.writes.len() < self.config.writes_at_a_time.get() { self.write_backlog.pop_first() } else { None }
    }

    fn settle(&mut self) {
        if self.settled {
            return;
        }
        let missing: Vec<&PodId> = self.pods.iter().map(|pod| &pod.id).filter(|pod| !self.heard_of.contains(*pod)).collect();
        let late = self.settle_by.is_some_and(|by| by <= self.clock.now());
        let awaited = self.agents.awaits_others();
        if (awaited || !missing.is_empty()) && !late {
            return;
        }
        if let Some(pod) = missing.first() {
            warn!(pods = missing.len(), first = %pod, "pods have not reported: going on without them");
        } else if awaited {
            warn!("pods of before have not come back: going on without them");
        }
        self.agents.give_up_on_others();
        self.settled = true;
        self.to_look_at.extend(self.resources.keys().cloned());
    }

    // What came in.

    fn take_change(&mut self, change: Change, at_start: bool) {
        self.taken_in = self.taken_in.max(change.resource_version);
        let key = change.key;
        let Some(owner) = owner(key.kind) else {
            return self.take_runtime(&key, change.object.as_deref());
        };
        let Some(object) = change.object.filter(|object| is_ours(owner, &object.annotations.members())) else {
            return self.drop_resource(&key);
        };
        match self.resources.get_mut(&key) {
            Some(known) if known.object.uid != object.uid => self.drop_resource(&key),
            Some(known) => {
                let before = std::mem::replace(&mut known.object, object.clone());
                // The echo of a status that we wrote. Not told by its version: an edit may have come with it, since a
                // subscriber gets the newest state only. A store keeps the desired part where it is when a status is written.
                if Arc::ptr_eq(&before.desired, &object.desired) {
                    return;
                }
            }
            None => {}
        }
        let wanted = Resource::wanted(owner, &object).map(|wanted| self.views.current().share(&wanted)).map_err(Box::new);
        if let Err(fault) = &wanted
            && self.resources.get(&key).is_none_or(|known| known.wanted.as_ref().err() != Some(fault))
        {
            warn!(name = %key.name, kind = key.kind.as_str(), error = %fault, "resource is invalid");
        }
        match self.resources.get_mut(&key) {
            Some(known) if known.wanted == wanted => {}
            Some(known) => known.wanted = wanted,
            None => self.add_resource(&key, object, wanted, at_start),
        }
        self.to_look_at.insert(key);
    }

    fn add_resource(&mut self, key: &ObjectKey, object: Arc<Object>, wanted: Result<Arc<Registration>, Box<InvalidSpec>>, at_start: bool) {
        let Some(owner) = owner(key.kind) else { return };
        self.names.claim(key, object.created);
        let published = Resource::published(owner, &object);
        let kept = self.store.alias(key);
        let was_loaded = match &kept {
            Some(_) => published.active.was_loaded(),
            None => wanted.is_ok() && published.shows_loaded(object.generation),
        };
        let was_loaded = at_start && was_loaded;
        let mut resource = Resource {
            owner,
            object,
            wanted,
            versions: Versions::default(),
            kept: kept.map(Box::new),
            told_target: None,
            was_loaded,
            of_earlier_run: false,
            failed_target: None,
            contents_due: false,
            shown: None,
            writing: None,
            look_again: None,
        };
        // An alias outlives a restart; a resource that was just made has none to go on from.
        if let Some(Alias { active, target }) = resource.kept.as_deref().cloned().filter(|_| at_start && self.other_holder(key).is_none()) {
            resource.told_target = target.as_ref().filter(|_| published.target.is_some()).map(|target| Box::new(target.id.clone()));
            resource.of_earlier_run = !matches!(published.active, ModelState::Pending | ModelState::FailedToLoad);
            resource.versions = Versions { active: Some(active.clone()), target: target.clone() };
            self.add_model(&resource.object, active, was_loaded);
            if let Some(target) = target {
                self.add_model(&resource.object, target, false);
            }
        }
        self.resources.insert(resource);
    }

    fn add_model(&mut self, object: &Object, registration: Arc<Registration>, loaded_once: bool) {
        // A call may have had it loaded.
        let loaded_once = loaded_once || self.copies.held(&registration.id, &self.pods, self.clock.wall()).loaded > 0;
        let mut model = Model::new(Arc::clone(&object.desired), registration, loaded_once);
        model.first = self.remembered.remove(&model.registration.id).map(Box::new);
        self.models.insert(model);
    }

    fn drop_resource(&mut self, key: &ObjectKey) {
        let Some(resource) = self.resources.remove(key) else { return };
        self.timers.set(key, resource.look_again, None);
        self.write_backlog.remove(key);
        self.paused.remove(key);
        for version in [resource.versions.active, resource.versions.target].into_iter().flatten() {
            self.forget_model(&version.id);
        }
        if resource.shown.is_some() {
            self.names_to_show.push((key.name.clone(), None));
        }
        self.to_look_at.extend(self.names.release(key));
        info!(name = %key.name, kind = key.kind.as_str(), "resource is gone");
    }

    fn forget_model(&mut self, id: &ModelId) {
        if let Some(mut model) = self.models.remove(id) {
            if !self.views.current().is_managed_model(id.as_str()) {
                self.copies.forget(id);
            }
            self.queues.forget(id, &mut model.asked);
            self.warmable.set(id, model.warmth, None);
            self.drifts.send_if_modified(|drifts| drifts.forget(id));
            self.to_retire.push(model.registration);
        }
    }

    fn take_runtime(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let at = (key.name.clone(), key.namespace.clone());
        let parsed = object.map(|object| RuntimeSpec::parse(key.name.as_str(), key.namespace.as_ref(), &object.spec.value()));
        let before = match parsed {
            None => self.runtimes.remove(&at),
            Some(Ok(spec)) if self.runtimes.get(&at) == Some(&spec) => return,
            Some(Ok(spec)) => self.runtimes.insert(at, spec),
            Some(Err(fault)) => {
                warn!(name = %key.name, kind = key.kind.as_str(), error = %fault, "runtime is invalid and counts as absent");
                self.runtimes.remove(&at)
            }
        };
        debug!(name = %key.name, known = before.is_some(), "runtimes changed");
        self.told_runtimes.send_replace(self.runtimes.values().cloned().collect());
        // Which models a runtime takes is known only by asking for each of them.
        self.to_look_at.extend(self.resources.keys().cloned());
    }

    fn take_report(&mut self, Report { pod, copies, standing }: Report) {
        if standing == Standing::Gone {
            self.forget_asks_of(&pod);
        }
        let now = self.clock.wall();
        for mut report in copies {
            // Held against the first one here, and kept by the pod alone.
            let content = match &mut report.state {
                CopyState::Loaded { content, .. } => content.take(),
                CopyState::Loading { .. } | CopyState::Unloading | CopyState::Absent => None,
            };
            let went = self.copies.take(&pod, &report);
            let Some(model) = self.models.get_mut(&report.model) else {
                self.take_stray(&report);
                continue;
            };
            let id = report.model.clone();
            if model.take(&pod, report, went, now) {
                self.queues.forget(&id, &mut model.asked);
            }
            self.to_look_at.insert(model.of().clone());
            if let Some(content) = content {
                self.take_content(&pod, &id, &content, now);
            }
        }
        if standing == Standing::Complete {
            self.heard_of.insert(pod);
        }
    }

    /// What a pod that has gone was asked for is no refusal of its: somebody else may be asked at once.
    fn forget_asks_of(&mut self, pod: &PodId) {
        let asked = |model: &&Model| matches!(&model.asked, Asked::Pending(asked) if asked.pod == *pod);
        let models: Vec<ModelId> = self.models.values().filter(asked).map(|model| model.registration.id.clone()).collect();
        for id in models {
            let Some(model) = self.models.get_mut(&id) else { continue };
            self.queues.forget(&id, &mut model.asked);
            self.to_look_at.insert(model.of().clone());
        }
    }

    /// A copy was loaded from these bytes.
    fn take_content(&mut self, pod: &PodId, id: &ModelId, content: &Content, now: UnixMillis) {
        let Some(model) = self.models.get_mut(id) else { return };
        let told = self.drifts.borrow().of(id).iter().find(|drift| drift.pod == *pod).map(|drift| drift.seen.digest);
        let first = model.first.as_deref().copied();
        match (compare(first, told, content.digest), first) {
            (Comparison::First, _) => {
                model.first = Some(Box::new(content.digest));
                if let Some(resource) = self.resources.get_mut(model.of()) {
                    resource.contents_due = true;
                }
            }
            (Comparison::Same, _) if told.is_some() => {
                info!(model = %id, pod = %pod, digest = %content.digest, "the pod serves the first good content of this model again");
                self.drifts.send_modify(|drifts| drifts.settle(id, pod));
            }
            (Comparison::Drift { news: true }, Some(first)) => {
                let (digest, checked) = (content.digest, &*content.checked);
                warn!(model = %id, pod = %pod, %digest, checked, %first, "content drift: a pod serves other bytes than the first good ones of this model");
                self.metrics.add(Counter::ContentDrift, &[], 1);
                let drift = Drift { pod: pod.clone(), first, seen: content.clone(), since: now };
                self.drifts.send_modify(|drifts| drifts.note(id, drift));
            }
            (Comparison::Same | Comparison::Drift { .. }, _) => {}
        }
    }

    /// A version that no name refers to: retired once more if it was, by a request that had resolved its id before.
    fn take_stray(&mut self, report: &berth_types::CopyReport) {
        match report.state {
            CopyState::Absent | CopyState::Unloading => {}
            CopyState::Loading { .. } | CopyState::Loaded { .. } => match self.retired.iter().position(|retired| retired.id == report.model) {
                Some(at) => self.to_retire.extend(self.retired.remove(at)),
                // A call has registered it.
                None if self.views.current().is_managed_model(report.model.as_str()) => {}
                None => warn!(model = %report.model, "a pod holds a model that no resource asks for"),
            },
        }
    }

    fn take_written(&mut self, Written { key, outcome }: Written) {
        self.writing.remove(&key);
        self.to_look_at.insert(key.clone());
        let Some(resource) = self.resources.get_mut(&key) else { return };
        // A resource made anew under the same key while its predecessor was being written has nothing pending.
        let Some(writing) = resource.writing.take() else { return };
        match (outcome, *writing) {
            (Ok(()), Writing::Alias { alias, next }) => {
                resource.kept = alias.map(Box::new);
                self.commit(&key, next);
            }
            (Ok(()), Writing::Status { told_target }) => {
                resource.told_target = told_target;
                self.metrics.add(Counter::StatusWrites, &[], 1);
            }
            (Ok(()), Writing::Contents) => {}
            // It is gone, or another one by now: its change is on the way here.
            (Err(StoreError::NotFound(_)), _) => debug!(name = %key.name, "resource went while it was being written"),
            (Err(fault), writing) => {
                resource.contents_due |= matches!(writing, Writing::Contents);
                error!(name = %key.name, error = %fault, "cannot write to the store: trying again");
                self.paused.insert(key, self.clock.wall().after(WRITE_AGAIN_AFTER));
            }
        }
    }

    // One resource.

    fn look_at(&mut self, key: &ObjectKey, now: UnixMillis) {
        if self.writing.contains(key) || self.resources.get(key).is_none() {
            return; // The end of the write looks at it again.
        }
        if self.paused.get(key).is_some_and(|until| *until <= now) {
            self.paused.remove(key);
        }
        let mut look_again = self.paused.get(key).copied();
        loop {
            let (by_versions, may_write) = self.step_versions(key, now);
            let by_loads = self.plan_loads(key, now);
            self.show_name(key, now);
            look_again = look_again.into_iter().chain(by_versions).chain(by_loads).min();
            if !may_write {
                break;
            }
            match self.step_status(key, now) {
                StatusStep::Again => {}
                StatusStep::Writing => break,
                StatusStep::Rest => {
                    self.keep_contents(key);
                    break;
                }
            }
        }
        if let Some(resource) = self.resources.get_mut(key) {
            let before = std::mem::replace(&mut resource.look_again, look_again);
            self.timers.set(key, before, look_again);
        }
    }

    /// Moves the versions of a name as far as they go without a write. The second answer is false when a write is on its
    /// way or has to wait.
    fn step_versions(&mut self, key: &ObjectKey, now: UnixMillis) -> (Option<UnixMillis>, bool) {
        loop {
            let Some(resource) = self.resources.get(key) else { return (None, false) };
            if self.other_holder(key).is_some() {
                return (None, !self.paused.contains_key(key));
            }
            let copies = self.copies_of(key, resource, now);
            if copies.target_failed {
                let target = resource.versions.target.as_ref().map(|target| Box::new(target.id.clone()));
                if let Some(resource) = self.resources.get_mut(key) {
                    resource.failed_target = target;
                }
            }
            let Some(resource) = self.resources.get(key) else { return (None, false) };
            let next = alias::next(&resource.versions, resource.wanted.as_ref().map_err(|fault| &**fault), &copies, now);
            let alias = resource.alias_for(&next.versions);
            if alias.as_ref() != resource.kept.as_deref() {
                let write = Writing::Alias { alias: alias.clone(), next };
                let (store, of, uid) = (self.store.clone(), key.clone(), resource.object.uid);
                self.write(key, write, async move { store.set_alias(&of, uid, alias).await });
                return (None, false);
            }
            if next.effects.is_empty() && next.versions == resource.versions {
                return (next.look_again, !self.paused.contains_key(key));
            }
            self.commit(key, next);
        }
    }

    /// Makes decided versions true.
    fn commit(&mut self, key: &ObjectKey, next: Next) {
        for effect in next.effects {
            match effect {
                Effect::Register(registration) => {
                    let id = registration.id.clone();
                    if self.settled {
                        info!(name = %key.name, model = %id, "model registered");
                    }
                    let is_active = next.versions.active.as_ref().is_some_and(|active| active.id == id);
                    let Some(resource) = self.resources.get_mut(key) else { continue };
                    let was_loaded = is_active && std::mem::take(&mut resource.was_loaded);
                    let object = Arc::clone(&resource.object);
                    self.add_model(&object, registration, was_loaded);
                }
                Effect::Amend(registration) => {
                    if let Some(model) = self.models.get_mut(&registration.id) {
                        model.size = registration.declared_size.map(Footprint::host).or(model.size.take());
                        model.registration = Arc::clone(&registration);
                        self.to_amend.push(registration);
                    }
                }
                Effect::Retire(id) => {
                    let had_content = self.models.get(&id).is_some_and(|model| model.first.is_some());
                    if let Some(resource) = self.resources.get_mut(key) {
                        resource.contents_due |= had_content;
                    }
                    self.forget_model(&id);
                }
            }
        }
        let Some(resource) = self.resources.get_mut(key) else { return };
        if next.switched {
            resource.of_earlier_run = false;
            resource.failed_target = None;
        }
        if next.switched
            && let Some(active) = &next.versions.active
        {
            info!(name = %key.name, model = %active.id, "name switched to its target");
        }
        resource.versions = next.versions;
    }

    /// The first good contents of what the name stands for.
    fn contents_of(&self, versions: &Versions) -> Contents {
        let ids = [&versions.active, &versions.target].into_iter().flatten().map(|version| &version.id);
        ids.filter_map(|id| Some((id.clone(), **self.models.get(id)?.first.as_ref()?))).collect()
    }

    /// What a leader before this one kept of versions that are no more is not kept any longer.
    fn forget_old_contents(&mut self, kept: &BTreeMap<ObjectKey, Contents>) {
        for (key, contents) in kept {
            let Some(versions) = self.resources.get(key).map(|resource| resource.versions.clone()) else { continue };
            if self.contents_of(&versions) != *contents
                && let Some(resource) = self.resources.get_mut(key)
            {
                resource.contents_due = true;
                self.to_look_at.insert(key.clone());
            }
        }
    }

    /// Writes the first good contents, if the store has others.
    fn keep_contents(&mut self, key: &ObjectKey) {
        let Some(resource) = self.resources.get(key).filter(|resource| resource.contents_due) else { return };
        let (store, of, uid, contents) = (self.store.clone(), key.clone(), resource.object.uid, self.contents_of(&resource.versions));
        self.write(key, Writing::Contents, async move { store.set_contents(&of, uid, contents).await });
        if let Some(resource) = self.resources.get_mut(key) {
            resource.contents_due = resource.writing.is_none();
        }
    }

    fn copies_of(&self, key: &ObjectKey, resource: &Resource, now: UnixMillis) -> alias::Copies {
        let Versions { active: Some(active), target: Some(target) } = &resource.versions else { return alias::Copies::default() };
        let (Some(active), Some(target)) = (self.models.get(&active.id), self.models.get(&target.id)) else { return alias::Copies::default() };
        let failed = |model: &Model| {
            let hosts = self.hosts(key, &model.registration);
            let facts = model.facts(&self.copies, &self.pods, &hosts, now);
            facts.loaded == 0 && !facts.on_the_way && (facts.is_given_up() || hosts.pods.is_empty())
        };
        let [of_active, of_target] = [active, target].map(|model| self.copies.held(&model.registration.id, &self.pods, now));
        // What the target will take is best guessed from what it replaces.
        let size = target.size.clone().or(active.size.clone()).unwrap_or_default();
        let hosts = self.hosts(key, &target.registration);
        let room = self.pods.iter().filter(|pod| hosts.pods.contains(&&pod.id) && device::fits_on_some(&size, &pod.free)).count();
        alias::Copies {
            active_loaded: of_active.loaded,
            active_used: of_active.used,
            active_can_load: !failed(active),
            target_loaded: of_target.loaded,
            target_loaded_since: of_target.since,
            target_failed: resource.of_earlier_run || resource.failed_target.as_deref() == Some(&target.registration.id) || failed(target),
            target_room: of_target.loaded.saturating_add(u32::try_from(room).unwrap_or(u32::MAX)),
            // Before every pod has spoken, "no copy is loaded" is no evidence to switch on.
            shown: self.settled && resource.told_target.as_deref() == Some(&target.registration.id),
        }
    }

    /// The live pods that may load a version.
    fn hosts(&self, key: &ObjectKey, registration: &Registration) -> Hosts<'_> {
        let runtimes = runtime::visible_in(key.namespace.as_ref(), self.runtimes.values());
        match runtime::select(registration, &runtimes) {
            Ok(names) => {
                let pods: Vec<&PodId> = self.pods.iter().filter(|pod| names.contains(&pod.runtime)).map(|pod| &pod.id).collect();
                let open = pods.iter().filter(|pod| self.agents.not_before(pod, &registration.id).is_none()).count();
                Hosts { pods, none: None, open }
            }
            Err(none) => Hosts { pods: Vec::new(), none: Some(none), open: 0 },
        }
    }

    /// Queues what is due for the versions of a name.
    fn plan_loads(&mut self, key: &ObjectKey, now: UnixMillis) -> Option<UnixMillis> {
        let resource = self.resources.get(key).filter(|_| self.settled)?;
        let Versions { active, target } = resource.versions.clone();
        let has_target = target.is_some();
        let versions = active.map(|version| (version, false)).into_iter().chain(target.map(|version| (version, true)));
        let mut look_again = None;
        for (version, is_target) in versions {
            // While there is a target, it is the one to load; the active version is loaded by use.
            let again = self.plan_load(key, &version, is_target, is_target == has_target, now);
            look_again = look_again.into_iter().chain(again).min();
        }
        look_again
    }

    fn plan_load(&mut self, key: &ObjectKey, version: &Arc<Registration>, is_target: bool, wanted: bool, now: UnixMillis) -> Option<UnixMillis> {
        let id = &version.id;
        if let Some(model) = self.models.get_mut(id).filter(|model| model.is_unanswered(&self.copies, now)) {
            warn!(model = %id, "the pod that was asked to load this model says nothing");
            model.refused = Some(Box::new(model.refused_again(now)));
            self.queues.forget(id, &mut model.asked);
        }
        let model = self.models.get(id)?;
        let answer_due = model.answer_due(&self.copies);
        let mut hosts = self.hosts(key, version);
        let mut held_off = None;
        hosts.pods.retain(|pod| {
            let until = self.agents.not_before(pod, id);
            held_off = held_off.into_iter().chain(until).min();
            until.is_none()
        });
        let due = model.due(&self.copies, &self.pods, &hosts, now);
        let warm_from = model.warm_from(&self.copies, &self.pods, &hosts, now);
        let model = self.models.get_mut(id)?;
        match (&model.asked, due.ask.filter(|_| wanted)) {
            (Asked::Pending(_), _) | (Asked::No, None) => {}
            (Asked::Queued(queued), Some(ask)) if queued.ask == ask => {}
            (Asked::No | Asked::Queued(_), ask) => {
                self.queues.forget(id, &mut model.asked);
                if let Some(ask) = ask {
                    model.asked = self.queues.push(id, ask, is_target);
                }
            }
        }
        let warm_from = warm_from.filter(|_| model.asked == Asked::No);
        let warmth = warm_from.filter(|(from, _)| *from <= now).map(|(_, warmth)| warmth);
        let before = std::mem::replace(&mut model.warmth, warmth);
        self.warmable.set(id, before, warmth);
        let warm_later = warm_from.map(|(from, _)| from).filter(|from| *from > now);
        due.look_again.into_iter().chain(answer_due).chain(warm_later).chain(held_off).min()
    }

    /// Puts into the next view what it should say about a name.
    fn show_name(&mut self, key: &ObjectKey, now: UnixMillis) {
        if self.other_holder(key).is_some() {
            if let Some(resource) = self.resources.get_mut(key) {
                resource.shown = None;
            }
            return;
        }
        let Some(resource) = self.resources.get(key) else { return };
        let failure = self.unservable(key, resource, now);
        let before = resource.shown.as_ref();
        // The same failure as before keeps its time, so that it is no news.
        let kept = before.and_then(|shown| shown.failure.clone());
        let same = |a: &Failure, b: &Failure| (a.reason, &a.message, &a.model) == (b.reason, &b.message, &b.model);
        let failure = failure.map(|new| kept.filter(|old| same(old, &new)).unwrap_or_else(|| Arc::new(new)));
        let shown = Shown { versions: resource.versions.clone(), failure };
        if before != Some(&shown) {
            let Versions { active, target } = shown.versions.clone();
            self.names_to_show.push((key.name.clone(), Some(NameEntry { active, target, failure: shown.failure.clone() })));
            if let Some(resource) = self.resources.get_mut(key) {
                resource.shown = Some(shown);
            }
        }
    }

    /// Who holds the name of `key`, if that is not its resource.
    fn other_holder(&self, key: &ObjectKey) -> Option<String> {
        let other = self.names.other_holder(key).map(|holder| holder.to_string());
        other.or_else(|| self.views.current().is_managed_name(key.name.as_str()).then(|| format!("a vmodel {}", key.name)))
    }

    /// Why no request for the name can be served, if that is so.
    fn unservable(&self, key: &ObjectKey, resource: &Resource, now: UnixMillis) -> Option<Failure> {
        let (reason, message, model, retry) = match (&resource.versions.active, &resource.wanted) {
            (None, Ok(_)) => return None,
            (None, Err(fault)) => {
                let model = ModelId::new(key.name.as_str()).ok()?;
                (Reason::InvalidPredictorSpec, fault.message.clone(), model, Retry::AfterChange)
            }
            (Some(active), _) => {
                let hosts = self.hosts(key, active);
                // Before every pod has spoken nobody knows which there are.
                let may_serve = !hosts.pods.is_empty() || (hosts.none.is_none() && !self.settled);
                if may_serve || self.copies.held(&active.id, &self.pods, now).loaded > 0 {
                    return None;
                }
                match hosts.none {
                    Some(none) => (none.reason, none.message, active.id.clone(), Retry::AfterChange),
                    None => (Reason::RuntimeUnhealthy, WAITING_FOR_POD.to_owned(), active.id.clone(), Retry::Later),
                }
            }
        };
        Some(Failure { reason, step: Step::Admit, location: Location::of_pod_name("controller"), model, message, time: now, retry })
    }

    /// Publishes the next step of the status, if it is not what users read already.
    fn step_status(&mut self, key: &ObjectKey, now: UnixMillis) -> StatusStep {
        let Some(resource) = self.resources.get(key) else { return StatusStep::Rest };
        let Some(object) = self.store.get(key).filter(|object| object.uid == resource.object.uid) else { return StatusStep::Rest };
        let observed = self.observed(key, resource, now);
        let existing = object.status.as_ref().map(Json::value);
        let published = existing.as_ref().map_or_else(Status::default, |existing| document::from_json(resource.owner, existing));
        let moved = status::status(&published, &observed, now);
        if existing.is_none() && moved.status == published {
            return StatusStep::Rest;
        }
        let target = resource.versions.target.as_ref().map(|target| Box::new(target.id.clone()));
        let others = OtherParts::of(resource.owner, &object.spec.value());
        let around = Circumstances { endpoints: &self.config.endpoints, others, now };
        let document = document::to_json(resource.owner, existing.as_ref(), &moved.status, &around);
        let told_target = target.filter(|_| moved.status.target.is_some());
        if existing.as_ref() == Some(&document) {
            let news = moved.more || told_target != resource.told_target;
            if let Some(resource) = self.resources.get_mut(key) {
                resource.told_target = told_target;
            }
            return if news { StatusStep::Again } else { StatusStep::Rest };
        }
        debug!(name = %key.name, active = moved.status.active.as_str(), transition = moved.status.transition.as_str(), "status moves");
        let (store, of, uid) = (self.store.clone(), key.clone(), resource.object.uid);
        let write = Writing::Status { told_target };
        self.write(key, write, async move { store.set_status(&of, uid, document).await.map(drop) });
        StatusStep::Writing
    }

    fn observed(&self, key: &ObjectKey, resource: &Resource, now: UnixMillis) -> Observed {
        let spec = match (self.other_holder(key), &resource.wanted) {
            (_, Err(fault)) => SpecState::Invalid(fault.message.clone()),
            (Some(holder), Ok(_)) => SpecState::NameTaken(format!("{holder} has it: give one of them another name")),
            (None, Ok(_)) => SpecState::Valid,
        };
        let facts = |version: &Option<Arc<Registration>>| {
            let model = self.models.get(&version.as_ref()?.id)?;
            Some(model.facts(&self.copies, &self.pods, &self.hosts(key, &model.registration), now))
        };
        Observed {
            generation: resource.object.generation,
            spec,
            active: facts(&resource.versions.active),
            target: facts(&resource.versions.target),
            settled: self.settled,
        }
    }

    /// Starts a store write, or puts the resource into the backlog while too many are under way.
    fn write(&mut self, key: &ObjectKey, what: Writing, how: impl Future<Output = Result<(), StoreError>> + Send + 'static) {
        let Some(resource) = self.resources.get_mut(key).filter(|_| !self.paused.contains_key(key)) else { return };
        if self.writes.len() >= self.config.writes_at_a_time.get() {
            self.write_backlog.insert(key.clone());
            return;
        }
        resource.writing = Some(Box::new(what));
        self.writing.insert(key.clone());
        let key = key.clone();
        self.writes.spawn(async move {
            // A store that panics must not leave the resource waiting for the end of its write.
            let outcome = std::panic::AssertUnwindSafe(how).catch_unwind().await;
            Written { key, outcome: outcome.unwrap_or_else(|_| Err(StoreError::Broken("the store panicked".to_owned()))) }
        });
    }

    // Loads.

    /// Asks pods for what is queued, as many as each may have at a time; an idle pod with room warms something.
    fn hand_out_loads(&mut self, now: UnixMillis) {
        for pod in self.pods.clone() {
            while let Some(id) = self.queues.pop(&pod.id, pod.loads_at_a_time.get()) {
                let Some(model) = self.models.get_mut(&id) else { continue };
                let Asked::Queued(queued) = &model.asked else { continue };
                let (purpose, may_evict) = (queued.ask.purpose, queued.ask.may_evict);
                self.ask(&pod, id, purpose, may_evict, now);
            }
            if self.queues.idle(&pod.id)
                && let Some(id) = self.to_warm(&pod)
            {
                self.ask(&pod, id, Purpose::Warm, berth_plan::MayEvict::Nothing, now);
            }
        }
    }

    fn to_warm(&self, pod: &Pod) -> Option<ModelId> {
        let loadable = |id: &&ModelId| {
            let model = self.models.get(*id);
            let hosts = |model: &Model| self.hosts(model.of(), &model.registration).pods.contains(&&pod.id);
            model.is_some_and(hosts) && self.agents.not_before(&pod.id, id).is_none()
        };
        let standby = self.warmable.hottest(WARM_CANDIDATES).filter(loadable);
        let sized = standby.map(|id| Standby { model: id, size: self.models.get(id).and_then(|model| model.size.as_ref()) });
        background::warm(sized, &pod.free, &pod.budget).cloned()
    }

    fn ask(&mut self, pod: &Pod, id: ModelId, purpose: Purpose, may_evict: berth_plan::MayEvict, now: UnixMillis) {
        let Some(model) = self.models.get_mut(&id) else { return };
        debug!(model = %id, ?purpose, "asking for a load that nobody waits for");
        model.asked = self.queues.pending(&pod.id, purpose, now);
        let before = model.warmth.take();
        self.warmable.set(&id, before, None);
        // If the pod says nothing at all, somebody has to notice.
        let key = model.of().clone();
        let due = model.answer_due(&self.copies);
        if let Some(resource) = self.resources.get_mut(&key) {
            let earliest = resource.look_again.into_iter().chain(due).min();
            let before = std::mem::replace(&mut resource.look_again, earliest);
            self.timers.set(&key, before, earliest);
        }
        self.to_load.push(LoadCommand { pod: pod.id.clone(), model: id, may_evict });
    }
}
