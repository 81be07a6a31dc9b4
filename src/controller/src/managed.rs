//! Models and names that are made by calls: kept in the store, shown in the view, loaded and moved by the agents.
//!
//! ```text
//! let manager = Manager::open(ManagerDeps { controller, store, records, views, agents, clock, metrics, default_owner });
//! tokio::spawn(manager.clone().run(shutdown));         // names on their way, until the token is cancelled
//! manager.register(model).await?;                      // durable, and in the view
//! ```
//!
//! A call decides inside the store, where nobody comes between the look and the change; then it publishes what the store
//! says by now, not what it decided, so that calls that overtake each other end in the same view. Both run in a task of
//! their own: a caller that goes away leaves nothing half done.
//!
//! Invariants:
//! - A call is answered when the view says what it did: who made a name can use it.
//! - A model that is gone is unloaded before the same id stands for anything else.
//! - What resources have made can be read here and is changed there; the refusal names the resource. Who has a name first
//!   is decided where both meet, in the view: a call that finds a resource there is taken back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_plan::MayEvict;
use berth_plan::background::{self, LoadFacts, Refused as NoRoom};
use berth_plan::managed::{self, Doing, ModelStanding, NameDoing, NameStanding, NewModel, Refused, SetName, TakeOver};
use berth_plan::runtime::{self, NoRuntime, RuntimeSpec};
use berth_registry::{Kind, Managed, Management, NameEntry, Store, View, Views};
use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{Location, ManagedModel, ManagedPut, ManagedRecords, ModelId, Name, PodId, Registration, UnixMillis};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bells::Bells;
use crate::copies::Copies;
use crate::model::ANSWER_WITHIN;
use crate::{Agents, Controller, Pod};

/// The longest sleep: wall time may jump, the next look should not wait for it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// After the store failed, a name on its way is looked at again this much later.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What the manager works with.
pub struct ManagerDeps {
    /// The leader: it hears of names that come and go, and what pods report comes through it.
    pub controller: Controller,
    /// Resources, to say which of them something belongs to.
    pub store: Arc<dyn Store>,
    /// What calls have made.
    pub records: Arc<dyn Managed>,
    /// The picture that requests read.
    pub views: Views,
    /// The agents.
    pub agents: Arc<dyn Agents>,
    /// Time.
    pub clock: Clock,
    /// Measurements.
    pub metrics: Metrics,
    /// The owner of names whose call says none.
    pub default_owner: Option<Arc<str>>,
}

/// Carries out the calls. Cheap to clone.
#[derive(Clone)]
pub struct Manager(Arc<Shared>);

struct Shared {
    controller: Controller,
    store: Arc<dyn Store>,
    records: Arc<dyn Managed>,
    views: Views,
    agents: Arc<dyn Agents>,
    clock: Clock,
    metrics: Metrics,
    default_owner: Option<Arc<str>>,
    /// What calls are carried out by.
    driver: Handle,
    copies: Arc<Copies>,
    runtimes: watch::Receiver<Arc<[RuntimeSpec]>>,
    /// Models that are gone and not unloaded yet.
    retiring: Arc<Mutex<HashSet<ModelId>>>,
    retired: Bells,
    /// Rung when a name changes.
    names: Bells,
}

/// What a decision came to, out of the store's hands.
type Outcome = Arc<Mutex<Option<Result<Vec<ManagedPut>, Refused>>>>;

impl Manager {
    /// Shows what the store keeps. Before the leader reads the resources, so that names are held by those who have them.
    #[must_use]
    ///
    /// # Panics
    /// Outside of a tokio runtime, which carries out the calls.
    pub fn open(deps: ManagerDeps) -> Self {
        let ManagerDeps { controller, store, records, views, agents, clock, metrics, default_owner } = deps;
        let (copies, runtimes) = (Arc::clone(&controller.copies), controller.runtimes.clone());
        let shared = Shared {
            controller,
            store,
            records,
            views,
            agents,
            clock,
            metrics,
            default_owner,
            driver: Handle::current(),
            copies,
            runtimes,
            retiring: Arc::default(),
            retired: Bells::default(),
            names: Bells::default(),
        };
        let (models, names) = shared.records.managed();
        if !models.is_empty() {
            info!(models = models.len(), names = names.len(), "models registered by calls were read");
        }
        let ids: Vec<ModelId> = models.iter().map(|model| model.id.clone()).collect();
        let moving = names.iter().filter(|name| name.is_moving());
        moving.for_each(|name| shared.copies.watch(&name.name, name.models()));
        let names: Vec<Name> = names.iter().map(|name| name.name.clone()).collect();
        for name in shared.publish(&ids, &names) {
            warn!(name = %name, "a name that calls have made is a resource's by now");
        }
        Manager(Arc::new(shared))
    }

    /// Looks after names on their way, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut journeys = Journeys { shared: self.0, under_way: BTreeMap::new(), alarms: BTreeSet::new() };
        loop {
            let alarm = journeys.next_alarm();
            let (copies, clock) = (Arc::clone(&journeys.shared.copies), journeys.shared.clock.clone());
            let touched = tokio::select! {
                () = shutdown.cancelled() => return,
                touched = copies.touched() => touched,
                () = clock.sleep(alarm) => journeys.due(),
            };
            for name in touched {
                journeys.look_at(&name).await;
            }
        }
    }
}

#[async_trait]
impl Management for Manager {
    async fn register(&self, model: NewModel) -> Result<(), Refused> {
        let shared = Arc::clone(&self.0);
        self.0
            .finished(async move {
                let view = shared.view()?;
                if shared.records.managed_model(model.id.as_str()).is_none() {
                    let wanted = registration_of(&model)?;
                    if let Some(theirs) = view.model(model.id.as_str()) {
                        let same = *theirs.class == *wanted.class && (&theirs.path, &theirs.schema_path) == (&wanted.path, &wanted.schema_path);
                        return if same { Ok(()) } else { Err(Refused::Exists(shared.belongs(model.id.as_str()))) };
                    }
                    shared.hosted(&wanted).map_err(|none| Refused::Blocked(none.message))?;
                }
                shared.change(move |there| managed::register(there, &model)).await
            })
            .await
    }

    async fn unregister(&self, id: ModelId) -> Result<(), Refused> {
        let shared = Arc::clone(&self.0);
        self.0
            .finished(async move {
                let view = shared.view()?;
                if view.model(id.as_str()).is_some() && shared.records.managed_model(id.as_str()).is_none() {
                    return Err(Refused::Blocked(shared.belongs(id.as_str())));
                }
                shared.change(move |there| managed::unregister(there, &id)).await
            })
            .await
    }

    fn model(&self, id: &str) -> Result<ModelStanding, Refused> {
        let view = self.0.views.current();
        match view.model(id) {
            Some(registration) => Ok(self.0.standing(registration)),
            None if view.is_ready() => Ok(ModelStanding::not_found()),
            None => Err(not_ready()),
        }
    }

    async fn model_is(&self, id: &str, wanted: &[Doing]) -> ModelStanding {
        let shared = &self.0;
        let look = || match shared.views.current().model(id) {
            Some(registration) => Some(shared.standing(registration)).filter(|standing| wanted.contains(&standing.doing)),
            None => Some(ModelStanding::not_found()),
        };
        shared.copies.bells.found(id, look).await
    }

    async fn load(&self, id: &str, used: Option<UnixMillis>) {
        let shared = &self.0;
        let Some(registration) = shared.views.current().model(id).cloned() else { return };
        let now = shared.clock.wall();
        let pods = shared.agents.pods();
        for pod in &pods {
            shared.agents.touch(&pod.id, &registration.id, used.unwrap_or(now).min(now)).await;
        }
        if shared.copies.is_held(&registration.id, &pods) {
            return;
        }
        let runtimes = shared.hosted(&registration);
        // A resource may see runtimes of its namespace: where it seems to have none, whoever is asked says so.
        let is_theirs = !shared.views.current().is_managed_model(id);
        // The one with the most room; where several have as much, always the same one.
        let hosts = pods.iter().filter(|pod| runtimes.as_ref().map_or(is_theirs, |runtimes| runtimes.contains(&pod.runtime)));
        let hosts = hosts.filter(|pod| shared.agents.not_before(&pod.id, &registration.id).is_none());
        if let Some(pod) = hosts.max_by_key(|pod| (pod.free.total(), background::spread(LONGEST_SLEEP, &registration.id, pod.id.as_str()))) {
            shared.agents.load(&pod.id, registration, MayEvict::AnyIdle).await;
        }
    }

    async fn set_name(&self, mut ask: SetName) -> Result<(), Refused> {
        let shared = Arc::clone(&self.0);
        ask.owner = ask.owner.or_else(|| shared.default_owner.clone());
        self.0
            .finished(async move {
                let view = shared.view()?;
                let name = ask.name.as_str();
                if view.is_resource_name(name) {
                    return Err(Refused::Exists(shared.belongs(name)));
                }
                if shared.records.managed_model(ask.target.as_str()).is_none() {
                    if view.model(ask.target.as_str()).is_some() {
                        return Err(Refused::Blocked(shared.belongs(ask.target.as_str())));
                    }
                    if let Some(info) = &ask.info {
                        let model = NewModel { id: ask.target.clone(), info: info.clone(), last_used: ask.last_used };
                        shared.hosted(&registration_of(&model)?).map_err(|none| Refused::Blocked(none.message))?;
                    }
                }
                let at = Arc::clone(&shared);
                let decide = move |there: &dyn ManagedRecords| {
                    let (pods, now) = (at.agents.pods(), at.clock.wall());
                    managed::set_name(there, &ask, &|model| at.copies.held(model, &pods, now))
                };
                shared.change(decide).await
            })
            .await
    }

    async fn delete_name(&self, name: Name, owner: Option<Arc<str>>) -> Result<(), Refused> {
        let shared = Arc::clone(&self.0);
        self.0
            .finished(async move {
                let view = shared.view()?;
                if let Some(entry) = view.name(name.as_str()).filter(|_| view.is_resource_name(name.as_str())) {
                    let theirs = owner_in(entry);
                    // Somebody else's name counts as none, as it always did.
                    return match owner.is_some() && owner.as_deref() != theirs {
                        true => Ok(()),
                        false => Err(Refused::Blocked(shared.belongs(name.as_str()))),
                    };
                }
                let owner = owner.or_else(|| shared.default_owner.clone());
                shared.change(move |there| Ok(managed::delete_name(there, &name, owner.as_deref()))).await
            })
            .await
    }

    fn name(&self, name: &str, owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        let view = self.0.views.current();
        let Some(entry) = view.name(name) else {
            return if view.is_ready() { Ok(None) } else { Err(not_ready()) };
        };
        let record = self.0.records.managed_name(name).filter(|_| view.is_managed_name(name));
        let theirs = record.map_or_else(|| owner_in(entry).map(Arc::from), |record| record.owner.clone());
        if owner.is_some() && owner != theirs.as_deref() {
            return Ok(None);
        }
        let of = |version: &Option<Arc<Registration>>| version.as_ref().map(|version| (version.id.clone(), self.0.standing(version)));
        let (active, target) = (of(&entry.active), of(&entry.target).filter(|_| entry.target != entry.active));
        let doing = match &target {
            None => NameDoing::Defined,
            Some((_, standing)) if standing.doing == Doing::LoadingFailed => NameDoing::TransitionFailed,
            Some(_) => NameDoing::Transitioning,
        };
        Ok(Some(NameStanding { doing, active, target, owner: theirs }))
    }

    async fn name_settles(&self, name: &str, target: &ModelId) {
        let look = || {
            let moving = self.0.records.managed_name(name).is_some_and(|name| name.is_moving() && name.target == *target);
            let shown = self.0.views.current().name(name).and_then(|entry| entry.target.clone()).is_some_and(|shown| shown.id == *target);
            (!moving && !shown).then_some(())
        };
        self.0.names.found(name, look).await;
    }
}

fn not_ready() -> Refused {
    Refused::NotReady("resources are still being read: try again".to_owned())
}

fn registration_of(model: &NewModel) -> Result<Registration, Refused> {
    let filled = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let (path, key) = (filled(&model.info.path), filled(&model.info.key));
    managed::registration(&model.id, &model.info.kind, path.as_deref(), key.as_deref())
}

/// The owner in the ids of what a resource has made: `isvc` or `ksp`.
fn owner_in(entry: &NameEntry) -> Option<&'static str> {
    let id = entry.active.as_ref().or(entry.target.as_ref())?.id.as_str();
    let (_, rest) = id.rsplit_once("__")?;
    ["isvc", "ksp"].into_iter().find(|owner| rest.strip_prefix(owner).is_some_and(|rest| rest.starts_with('-')))
}

impl Shared {
    /// What `work` comes to, which is finished whatever becomes of who waits for it and of the thread that it waits on.
    async fn finished<T: Send + 'static>(&self, work: impl Future<Output = Result<T, Refused>> + Send + 'static) -> Result<T, Refused> {
        match self.driver.spawn(work).await {
            Ok(outcome) => outcome,
            Err(fault) => Err(Refused::Unkept(format!("the call was lost: {fault}"))),
        }
    }

    /// The view, once it can tell what does not exist.
    fn view(&self) -> Result<Arc<View>, Refused> {
        Some(self.views.current()).filter(|view| view.is_ready()).ok_or_else(not_ready)
    }

    /// The runtimes that take a model.
    fn hosted(&self, registration: &Registration) -> Result<Vec<runtime::RuntimeName>, NoRuntime> {
        let all = Arc::clone(&self.runtimes.borrow());
        runtime::select(registration, &runtime::visible_in(None, all.iter()))
    }

    fn standing(&self, registration: &Registration) -> ModelStanding {
        let id = registration.id.as_str();
        // A resource may see runtimes of its namespace; the leader says what is wrong with it.
        let none = self.views.current().is_managed_model(id).then(|| self.hosted(registration).err()).flatten();
        let locate = |pod: &PodId| -> Location { self.agents.location(pod) };
        self.copies.standing(&registration.id, &self.agents.pods(), none.as_ref(), locate, self.clock.wall())
    }

    /// Whose a name or a model id is, and where to change it.
    fn belongs(&self, id: &str) -> String {
        let name = id.rsplit_once("__").map_or(id, |(name, _)| name);
        let is_it = |key: &berth_registry::ObjectKey| {
            matches!(key.kind, Kind::InferenceService | Kind::Predictor) && (key.name.as_str() == id || key.name.as_str() == name)
        };
        let holder = self.store.list().into_iter().find(|object| is_it(&object.key));
        let holder = holder.map_or_else(|| "a resource".to_owned(), |object| object.key.to_string());
        format!("{id:?} belongs to {holder}: change it there")
    }

    /// Lets `decide` change what is kept, then shows it. A name that a resource has got meanwhile is let go of.
    async fn change<D>(&self, decide: D) -> Result<(), Refused>
    where
        D: FnMut(&dyn ManagedRecords) -> Result<Vec<ManagedPut>, Refused> + Send + 'static,
    {
        let puts = self.keep(decide).await?;
        let theirs = self.settle(puts).await;
        let Some(name) = theirs.first().cloned() else { return Ok(()) };
        let let_go = move |there: &dyn ManagedRecords| {
            Ok(theirs
                .iter()
                .flat_map(|name| managed::delete_name(there, name, there.name(name).and_then(|kept| kept.owner.clone()).as_deref()))
                .collect())
        };
        self.settle(self.keep(let_go).await?).await;
        Err(Refused::Exists(self.belongs(name.as_str())))
    }

    /// Lets `decide` change what is kept. Gives what it has decided.
    async fn keep<D>(&self, mut decide: D) -> Result<Vec<ManagedPut>, Refused>
    where
        D: FnMut(&dyn ManagedRecords) -> Result<Vec<ManagedPut>, Refused> + Send + 'static,
    {
        let outcome = Outcome::default();
        let (decided, retiring) = (Arc::clone(&outcome), Arc::clone(&self.retiring));
        let change = move |there: &dyn ManagedRecords| {
            let mut marked = retiring.lock();
            if let Some(Ok(before)) = decided.lock().take() {
                marked.retain(|id| !gone(&before).any(|one| one == id));
            }
            let answer = decide(there);
            let puts = answer.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
            // While nobody can register it anew.
            marked.extend(gone(&puts).cloned());
            *decided.lock() = Some(answer);
            puts
        };
        let kept = self.records.change_managed(Box::new(change)).await;
        let decided = outcome.lock().take();
        match (kept, decided) {
            (Ok(()), Some(decided)) => decided,
            (Ok(()), None) => Err(Refused::Unkept("the store did not look at the change".to_owned())),
            (Err(fault), decided) => {
                if let Some(Ok(puts)) = decided {
                    let mut marked = self.retiring.lock();
                    marked.retain(|id| !gone(&puts).any(|one| one == id));
                }
                Err(Refused::Unkept(fault.to_string()))
            }
        }
    }

    /// Makes true for requests what is kept now. Gives the names that it could not show, since resources hold them.
    async fn settle(&self, puts: Vec<ManagedPut>) -> Vec<Name> {
        let view = self.views.current();
        let (mut models, mut leaving, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for put in puts {
            match put {
                ManagedPut::Model(model) => {
                    if !view.is_managed_model(model.id.as_str()) || self.retiring.lock().contains(&model.id) {
                        models.push(model.id);
                    }
                }
                ManagedPut::NoModel(id) => leaving.push((view.model(id.as_str()).cloned(), id)),
                ManagedPut::Name(name) => names.push(name.name),
                ManagedPut::NoName(name) => names.push(name),
            }
        }
        for id in &models {
            self.retired.found(id.as_str(), || (!self.retiring.lock().contains(id)).then_some(())).await;
        }
        models.extend(leaving.iter().map(|(_, id)| id.clone()));
        let theirs = self.publish(&models, &names);
        for (registration, id) in leaving {
            // A resource may stand for the same version.
            if let Some(registration) = registration.filter(|_| self.views.current().model(id.as_str()).is_none()) {
                info!(model = %id, "model retired");
                for pod in self.agents.pods() {
                    self.agents.retire(&pod.id, Arc::clone(&registration)).await;
                }
            }
            self.retiring.lock().remove(&id);
            self.retired.ring(id.as_str());
            self.copies.bells.ring(id.as_str());
        }
        for name in names {
            self.names.ring(name.as_str());
            self.controller.name_changed(&name).await;
        }
        self.views.followed().await;
        theirs
    }

    /// Puts into the view what the store says of these by now. Gives the names among them that resources hold: they stay
    /// as they are.
    fn publish(&self, models: &[ModelId], names: &[Name]) -> Vec<Name> {
        if models.is_empty() && names.is_empty() {
            return Vec::new();
        }
        let registration = |id: &ModelId| {
            let record = self.records.managed_model(id.as_str()).filter(|_| !self.retiring.lock().contains(id))?;
            shown(&record)
        };
        let entry = |name: &Name| {
            let record = self.records.managed_name(name.as_str())?;
            let target = record.is_moving().then(|| registration(&record.target)).flatten();
            Some(NameEntry { active: registration(&record.active), target, failure: None })
        };
        let (mut watched, mut theirs) = (Vec::new(), Vec::new());
        self.views.update(|view| {
            let models = models.iter().map(|id| (id.clone(), registration(id)));
            let (of_resources, ours): (Vec<_>, Vec<_>) = names.iter().partition(|name| view.is_resource_name(name.as_str()));
            watched = ours.iter().map(|name| (*name, view.name(name.as_str()).cloned())).collect();
            theirs = of_resources.into_iter().filter(|name| self.records.managed_name(name.as_str()).is_some()).cloned().collect();
            view.with_managed(models, names.iter().map(|name| (name.clone(), entry(name))))
        });
        let registered = u64::try_from(self.views.current().model_count()).unwrap_or(u64::MAX);
        self.metrics.set(Gauge::RegisteredModels, &[], registered);
        for (name, before) in watched {
            let ids = |entry: &Option<NameEntry>| -> Vec<ModelId> {
                let both = entry.iter().flat_map(|entry| [&entry.active, &entry.target]);
                both.flatten().map(|version| version.id.clone()).collect()
            };
            self.copies.unwatch(name, ids(&before).iter());
            if let Some(record) = self.records.managed_name(name.as_str()).filter(|record| record.is_moving()) {
                self.copies.watch(name, record.models());
            }
        }
        theirs
    }
}

/// The models that a change removes.
fn gone(puts: &[ManagedPut]) -> impl Iterator<Item = &ModelId> {
    puts.iter().filter_map(|put| match put {
        ManagedPut::NoModel(id) => Some(id),
        ManagedPut::Model(_) | ManagedPut::Name(_) | ManagedPut::NoName(_) => None,
    })
}

/// What a record stands for.
fn shown(record: &ManagedModel) -> Option<Arc<Registration>> {
    match managed::registration(&record.id, &record.kind, record.path.as_deref(), record.key.as_deref()) {
        Ok(registration) => Some(Arc::new(registration)),
        Err(fault) => {
            warn!(model = %record.id, error = %fault, "a model that an earlier release registered cannot be understood");
            None
        }
    }
}

/// A name on its way.
#[derive(Default)]
struct Journey {
    target: Option<ModelId>,
    /// Whom the target's load was asked of, and when.
    asked: Option<(PodId, UnixMillis)>,
    no_room: Option<NoRoom>,
    alarm: Option<UnixMillis>,
}

/// The names on their way, and when to look at which again.
struct Journeys {
    shared: Arc<Shared>,
    under_way: BTreeMap<Name, Journey>,
    alarms: BTreeSet<(UnixMillis, Name)>,
}

impl Journeys {
    fn next_alarm(&self) -> Duration {
        let next = self.alarms.first().map(|(at, _)| at.since(self.shared.clock.wall()));
        next.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)
    }

    fn due(&self) -> BTreeSet<Name> {
        let now = self.shared.clock.wall();
        self.alarms.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()).collect()
    }

    async fn look_at(&mut self, name: &Name) {
        let mut journey = self.under_way.remove(name).unwrap_or_default();
        if let Some(at) = journey.alarm.take() {
            self.alarms.remove(&(at, name.clone()));
        }
        let Some(record) = self.shared.records.managed_name(name.as_str()).filter(|record| record.is_moving()) else { return };
        if journey.target.as_ref() != Some(&record.target) {
            journey = Journey { target: Some(record.target.clone()), ..Journey::default() };
        }
        journey.alarm = self.step(name, &record.active, &record.target, &mut journey).await;
        if let Some(at) = journey.alarm {
            self.alarms.insert((at, name.clone()));
        }
        self.under_way.insert(name.clone(), journey);
    }

    /// Takes over, or sees to it that the target is loaded. Answers when to look again although nothing was reported.
    async fn step(&self, name: &Name, active: &ModelId, target: &ModelId, journey: &mut Journey) -> Option<UnixMillis> {
        let shared = &self.shared;
        let (pods, now) = (shared.agents.pods(), shared.clock.wall());
        if shared.agents.awaits_others() {
            // They may have what is missing.
            return Some(now.after(AGAIN_AFTER));
        }
        let registration = shared.views.current().model(target.as_str()).cloned()?;
        let hosts = shared.hosted(&registration).unwrap_or_default();
        let hosts: Vec<&Pod> = pods.iter().filter(|pod| hosts.contains(&pod.runtime)).collect();
        let (of_active, of_target) = (shared.copies.held(active, &pods, now), shared.copies.held(target, &pods, now));
        match managed::may_take_over(of_active, of_target, u32::try_from(hosts.len()).unwrap_or(u32::MAX), now) {
            TakeOver::Now => {
                let (of, to) = (name.clone(), target.clone());
                return match shared.change(move |there| Ok(managed::take_over(there, &of, &to))).await {
                    Ok(()) => {
                        info!(name = %name, model = %target, "name switched to its target");
                        None
                    }
                    Err(fault) => {
                        warn!(name = %name, error = %fault, "a name cannot switch to its target: trying again");
                        Some(now.after(AGAIN_AFTER))
                    }
                };
            }
            TakeOver::At(at) => return Some(at),
            TakeOver::Waits => {}
        }
        shared.names.ring(name.as_str());
        let refused = shared.copies.take_refusal(target);
        if let Some((pod, at)) = journey.asked.take() {
            let answered = shared.copies.is_held(target, &pods) || of_target.failed || refused;
            let due = at.after(ANSWER_WITHIN);
            match answered || due <= now {
                true if refused || !answered => {
                    let times = journey.no_room.map_or(0, |no_room| no_room.times).saturating_add(1);
                    journey.no_room = Some(NoRoom { at: now, times });
                }
                true => journey.no_room = None,
                false => {
                    journey.asked = Some((pod, at));
                    return Some(due);
                }
            }
        }
        let held_off = hosts.iter().filter_map(|pod| shared.agents.not_before(&pod.id, target)).min();
        let ids: Vec<&PodId> = hosts.iter().map(|pod| &pod.id).filter(|pod| shared.agents.not_before(pod, target).is_none()).collect();
        let due = shared.copies.of(target, &pods, |copies| {
            background::due(&LoadFacts { model: target, loaded_once: false, refused: journey.no_room, copies, pods: &ids }, now)
        });
        let Some(ask) = due.ask else {
            return due.look_again.into_iter().chain(held_off).min().or(hosts.is_empty().then(|| now.after(LONGEST_SLEEP)));
        };
        if let Some(used) = shared.copies.last_used(active) {
            shared.agents.touch(&ask.pod, target, used).await;
        }
        shared.agents.load(&ask.pod, registration, ask.may_evict).await;
        journey.asked = Some((ask.pod, now));
        Some(now.after(ANSWER_WITHIN))
    }
}
