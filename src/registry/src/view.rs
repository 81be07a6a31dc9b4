//! The picture that every request reads.
//!
//! A [`View`] never changes. A change makes the next one, which shares all but the changed path with it (see
//! [`map`](crate::map)), and [`Views`] swaps it in: readers take one view, decide on that one, and never wait.
//!
//! Names come from resources and from calls (managed ones); a name that calls hold is theirs until they let go of it.
//!
//! Invariant: the models of a view are exactly the registrations that its names refer to, as active or as target, and
//! those that calls have registered.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use berth_types::{Failure, ModelId, Name, Registration};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::map::{Entry, Map};
use crate::pool::Pool;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// The version that serves. `None` while no valid spec was ever seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Arc<Registration>>,
    /// The version that should serve, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Arc<Registration>>,
    /// Why nothing can serve, when `active` is `None`, or why `active` cannot be loaded by any runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Arc<Failure>>,
}

impl NameEntry {
    /// Each once.
    fn registrations(&self) -> impl Iterator<Item = &Arc<Registration>> {
        let is_active = |target: &&Arc<Registration>| self.active.as_ref().is_some_and(|active| active.id == target.id);
        self.active.iter().chain(self.target.iter().filter(move |target| !is_active(target)))
    }
}

/// What a client's id stands for.
#[derive(Clone, Debug)]
pub enum Resolved {
    /// This version.
    Model(Arc<Registration>),
    /// The name is known and nothing can serve it.
    Unservable(Arc<Failure>),
    /// Neither a name nor a model id that we know.
    Unknown,
    /// Not known yet: resources are still being read, or whoever makes the views cannot be asked.
    NotReady,
}

/// A registration made by a call.
#[derive(Clone)]
struct Pinned(Arc<Registration>);

impl Entry for Pinned {
    fn key(&self) -> &str {
        self.0.id.as_str()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A name that calls hold.
#[derive(Clone)]
struct Managed(Name);

impl Entry for Managed {
    fn key(&self) -> &str {
        self.0.as_str()
    }

    fn same(&self, _other: &Self) -> bool {
        true
    }
}

/// A name with its entry, as the map keeps it.
struct Named {
    name: Name,
    entry: NameEntry,
}

impl Entry for Arc<Named> {
    fn key(&self) -> &str {
        self.name.as_str()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

/// A registration that is not found by the name in its id, and how many names refer to it.
#[derive(Clone)]
struct Counted {
    registration: Arc<Registration>,
    names: u32,
}

impl Entry for Counted {
    fn key(&self) -> &str {
        self.registration.id.as_str()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.registration, &other.registration) && self.names == other.names
    }
}

/// The name that a model id begins with, where it has the usual form `<name>__<owner>-<hash>`.
fn name_in(id: &str) -> Option<&str> {
    id.rsplit_once("__").map(|(name, _)| name)
}

/// True when a model id is found through this name. Only a version of the name has an id of that form, so nothing more
/// than the name has to be kept to find it.
fn is_of(id: &ModelId, name: &Name) -> bool {
    name_in(id.as_str()) == Some(name.as_str())
}

/// What a name stands for by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedName {
    /// Which.
    pub name: Name,
    /// Calls hold it, not a resource.
    pub managed: bool,
    /// `None`: there is none any more.
    pub entry: Option<NameEntry>,
}

/// How one view differs from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Names.
    pub names: Vec<ChangedName>,
    /// Models that calls have registered; `None`: no longer.
    pub models: Vec<(ModelId, Option<Arc<Registration>>)>,
}

impl Difference {
    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.models.is_empty()
    }
}

/// One immutable picture of names and registrations, numbered (epoch, sequence). A clone is a few reference counts; a
/// change copies one path of about log32(names) small nodes, not the whole.
#[derive(Clone, Default)]
pub struct View {
    epoch: u64,
    sequence: u64,
    /// Every resource has been read once, so what is not here does not exist.
    ready: bool,
    /// Whoever makes the views cannot be asked: there may be more by now.
    cut_off: bool,
    names: Map<Arc<Named>>,
    /// How many of them look like the ids of models.
    like_ids: usize,
    /// How many registrations there are.
    models: usize,
    /// Those among them whose id does not begin with the name that refers to them.
    others: Map<Counted>,
    /// Those that calls have registered, whether a name refers to them or not.
    pinned: Map<Pinned>,
    /// Those among the names that calls hold.
    managed: Map<Managed>,
    pool: Arc<Pool>,
}

impl View {
    /// What `id` stands for: a name first, else a model id.
    ///
    /// A name stands for its active version, and for its target while it has no active one. A failure of the name comes
    /// before both: it says that no runtime can load the version that should serve.
    #[must_use]
    pub fn resolve(&self, id: &str) -> Resolved {
        // Mostly no name looks like the id of a model, and an id is found at the first look.
        let may_be_a_name = self.like_ids > 0 || name_in(id).is_none();
        if let Some(entry) = may_be_a_name.then(|| self.name(id)).flatten() {
            return match (&entry.failure, entry.active.as_ref().or(entry.target.as_ref())) {
                (Some(failure), _) => Resolved::Unservable(Arc::clone(failure)),
                (None, Some(registration)) => Resolved::Model(Arc::clone(registration)),
                (None, None) => self.unknown(),
            };
        }
        self.model(id).map_or_else(|| self.unknown(), |registration| Resolved::Model(Arc::clone(registration)))
    }

    fn unknown(&self) -> Resolved {
        if self.ready && !self.cut_off { Resolved::Unknown } else { Resolved::NotReady }
    }

    /// What a name stands for, in full.
    #[must_use]
    pub fn name(&self, name: &str) -> Option<&NameEntry> {
        self.names.get(name).map(|named| &named.entry)
    }

    /// The registration of a model id.
    #[must_use]
    pub fn model(&self, id: &str) -> Option<&Arc<Registration>> {
        self.named_model(id).or_else(|| self.pinned.get(id).map(|pinned| &pinned.0))
    }

    /// The registration of a model id that a name refers to.
    fn named_model(&self, id: &str) -> Option<&Arc<Registration>> {
        let of_name = name_in(id).and_then(|name| self.name(name)?.registrations().find(|registration| registration.id.as_str() == id));
        of_name.or_else(|| self.others.get(id).map(|counted| &counted.registration))
    }

    /// True when calls hold this name.
    #[must_use]
    pub fn is_managed_name(&self, name: &str) -> bool {
        self.managed.get(name).is_some()
    }

    /// True when a resource holds this name.
    #[must_use]
    pub fn is_resource_name(&self, name: &str) -> bool {
        self.name(name).is_some() && !self.is_managed_name(name)
    }

    /// True when a call has registered this model.
    #[must_use]
    pub fn is_managed_model(&self, id: &str) -> bool {
        self.pinned.get(id).is_some()
    }

    /// This view with what calls have made: models and names as they are now (`None`: removed). The names are theirs until
    /// they are removed in the same way; those that resources hold stay as they are.
    #[must_use]
    pub fn with_managed(
        &self,
        models: impl IntoIterator<Item = (ModelId, Option<Arc<Registration>>)>,
        names: impl IntoIterator<Item = (Name, Option<NameEntry>)>,
    ) -> View {
        let mut next = self.clone();
        for (id, registration) in models {
            let counts = usize::from(next.named_model(id.as_str()).is_none());
            let before = match registration {
                Some(registration) => next.pinned.insert(Pinned(next.pool.share(&registration))).is_some(),
                None => {
                    let there = next.pinned.remove(id.as_str()).is_some();
                    next.models -= usize::from(there) * counts;
                    true
                }
            };
            next.models += usize::from(!before) * counts;
        }
        for (name, entry) in names {
            if next.is_resource_name(name.as_str()) {
                continue;
            }
            match &entry {
                Some(_) => drop(next.managed.insert(Managed(name.clone()))),
                None => drop(next.managed.remove(name.as_str())),
            }
            next.change(name, entry);
        }
        next
    }

    /// What makes this view of `before`. Costs what has changed, where this one came from that.
    #[must_use]
    pub fn since(&self, before: &View) -> Difference {
        let mut difference = Difference::default();
        self.names.compare(&before.names, |old, new| {
            let Some(named) = new.or(old) else { return };
            let managed = self.managed.get(named.name.as_str()).is_some();
            difference.names.push(ChangedName { name: named.name.clone(), managed, entry: new.map(|named| named.entry.clone()) });
        });
        self.pinned.compare(&before.pinned, |old, new| {
            let Some(pinned) = new.or(old) else { return };
            difference.models.push((pinned.0.id.clone(), new.map(|pinned| Arc::clone(&pinned.0))));
        });
        difference
    }

    /// This view with what makes another one of it ([`View::since`]).
    #[must_use]
    pub fn with(&self, Difference { names, models }: Difference) -> View {
        let mut next = self.with_managed(models, []);
        for ChangedName { name, managed, entry } in names {
            if managed && entry.is_some() {
                next.managed.insert(Managed(name.clone()));
            } else {
                next.managed.remove(name.as_str());
            }
            next.change(name, entry);
        }
        next
    }

    /// This view as the one of this number, complete or not.
    #[must_use]
    pub fn numbered(self, (epoch, sequence): (u64, u64), ready: bool) -> View {
        View { epoch, sequence, ready, ..self }
    }

    /// This view with one name changed (`None`: removed). Registrations that no name refers to any more are gone.
    #[must_use]
    pub fn with_name(&self, name: &Name, entry: Option<NameEntry>) -> View {
        self.with_names([(name.clone(), entry)])
    }

    /// This view with several names changed, at less cost than one after the other. Names that calls hold stay as they
    /// are.
    #[must_use]
    pub fn with_names(&self, changes: impl IntoIterator<Item = (Name, Option<NameEntry>)>) -> View {
        let mut next = self.clone();
        for (name, entry) in changes {
            if !next.is_managed_name(name.as_str()) {
                next.change(name, entry);
            }
        }
        next
    }

    fn change(&mut self, name: Name, entry: Option<NameEntry>) {
        let key = name.clone();
        let like_id = usize::from(name_in(name.as_str()).is_some());
        let old = match entry {
            Some(entry) => {
                let share = |registration: Option<Arc<Registration>>| registration.map(|registration| self.pool.share(&registration));
                let entry = NameEntry { active: share(entry.active), target: share(entry.target), failure: entry.failure };
                // Counted up before the old entry is counted down, so that what both refer to stays.
                entry.registrations().for_each(|registration| self.hold(&name, registration));
                self.like_ids += like_id;
                self.names.insert(Arc::new(Named { name, entry }))
            }
            None => self.names.remove(name.as_str()),
        };
        self.like_ids -= like_id * usize::from(old.is_some());
        for registration in old.iter().flat_map(|named| named.entry.registrations()) {
            self.release(&key, &registration.id);
        }
    }

    fn hold(&mut self, name: &Name, registration: &Arc<Registration>) {
        let counts = usize::from(self.pinned.get(registration.id.as_str()).is_none());
        if is_of(&registration.id, name) {
            self.models += counts;
            return;
        }
        let names = self.others.get(registration.id.as_str()).map_or(0, |counted| counted.names);
        self.models += usize::from(names == 0) * counts;
        self.others.insert(Counted { registration: Arc::clone(registration), names: names + 1 });
    }

    fn release(&mut self, name: &Name, id: &ModelId) {
        let counts = usize::from(self.pinned.get(id.as_str()).is_none());
        if is_of(id, name) {
            self.models -= counts;
            return;
        }
        match self.others.get(id.as_str()).cloned() {
            Some(counted) if counted.names > 1 => drop(self.others.insert(Counted { names: counted.names - 1, ..counted })),
            Some(_) => {
                self.models -= counts;
                self.others.remove(id.as_str());
            }
            None => {}
        }
    }

    /// The same registration made of parts that this view's registrations share. Who keeps registrations beside a view
    /// keeps them in this form: the view then holds the very same ones.
    #[must_use]
    pub fn share(&self, registration: &Arc<Registration>) -> Arc<Registration> {
        self.pool.share(registration)
    }

    /// Every model id, for tests and lists. In no order that means anything.
    pub fn model_ids(&self) -> impl Iterator<Item = &ModelId> {
        let of_names = self.names.iter().flat_map(|named| {
            let ids = named.entry.registrations().map(|registration| &registration.id);
            ids.filter(|id| is_of(id, &named.name))
        });
        let pinned = self.pinned.iter().map(|pinned| &pinned.0.id).filter(|id| self.named_model(id.as_str()).is_none());
        of_names.chain(self.others.iter().map(|counted| &counted.registration.id)).chain(pinned)
    }

    /// Every name with its entry, in no order that means anything.
    pub fn names(&self) -> impl Iterator<Item = (&Name, &NameEntry)> {
        self.names.iter().map(|named| (&named.name, &named.entry))
    }

    /// How many names there are.
    #[must_use]
    pub fn name_count(&self) -> usize {
        self.names.len()
    }

    /// How many registrations there are.
    #[must_use]
    pub fn model_count(&self) -> usize {
        self.models
    }

    /// Which view this is: the epoch of its writer, and its place in that epoch. The larger pair is the newer view.
    #[must_use]
    pub fn number(&self) -> (u64, u64) {
        (self.epoch, self.sequence)
    }

    /// True once every resource has been read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }
}

/// Those who have copies of the views elsewhere.
#[async_trait]
pub trait Followers: Send + Sync + 'static {
    /// Completes when each that can be reached has the view of this number or a newer one. Bounded by itself: who is late is not
    /// waited for any longer.
    async fn have(&self, number: (u64, u64));
}

/// The present view. Readers take it once and decide on that one. Clones are the same views.
#[derive(Clone, Default)]
pub struct Views {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    current: ArcSwap<View>,
    /// Held while the next view is made: two changes never start from the same view.
    writing: Mutex<()>,
    /// The version of the store that the view has caught up with; `None` while nobody makes views from a store.
    covers: watch::Sender<Option<u64>>,
    /// The number of the present view.
    number: watch::Sender<(u64, u64)>,
    followers: OnceLock<Arc<dyn Followers>>,
}

impl Views {
    /// Starts with an empty view of the writer whose epoch this is.
    #[must_use]
    pub fn in_epoch(epoch: u64) -> Self {
        let current = ArcSwap::from_pointee(View { epoch, ..View::default() });
        Views { shared: Arc::new(Shared { current, number: watch::Sender::new((epoch, 0)), ..Shared::default() }) }
    }

    /// The present view.
    #[must_use]
    pub fn current(&self) -> Arc<View> {
        self.shared.current.load_full()
    }

    /// Publishes the next view: `change` gets the present one. One writer. The sequence number grows by one.
    pub fn update(&self, change: impl FnOnce(&View) -> View) {
        let _one_at_a_time = self.shared.writing.lock();
        let current = self.shared.current.load_full();
        let next = View { epoch: current.epoch, sequence: current.sequence + 1, ..change(&current) };
        self.publish(next);
    }

    fn publish(&self, next: View) {
        let number = next.number();
        self.shared.current.store(Arc::new(next));
        self.shared.number.send_replace(number);
    }

    /// Publishes a view that was made elsewhere, under its own number.
    pub fn take_over(&self, view: View) {
        let _one_at_a_time = self.shared.writing.lock();
        self.publish(view);
    }

    /// Says whether whoever makes these views elsewhere can be asked. While that is not so, what is unknown may exist by now.
    pub fn cut_off(&self, cut_off: bool) {
        let _one_at_a_time = self.shared.writing.lock();
        let current = self.shared.current.load_full();
        if current.cut_off != cut_off {
            self.shared.current.store(Arc::new(View { cut_off, ..View::clone(&current) }));
        }
    }

    /// The number of the present view, as it changes.
    #[must_use]
    pub fn numbers(&self) -> watch::Receiver<(u64, u64)> {
        self.shared.number.subscribe()
    }

    /// From now on [`Views::covered`] and [`Views::followed`] wait for these as well. The first ones count.
    pub fn follow(&self, followers: Arc<dyn Followers>) {
        let _ = self.shared.followers.set(followers);
    }

    /// Completes when all who have copies of the views have the present one, if there are any. Bounded by them.
    pub async fn followed(&self) {
        if let Some(followers) = self.shared.followers.get() {
            followers.have(self.current().number()).await;
        }
    }

    /// Says that the view tells all that follows from the store up to this version, as far as it does so at once.
    pub fn cover(&self, version: u64) {
        self.shared.covers.send_if_modified(|covers| covers.replace(version) != Some(version));
    }

    /// Completes when the view has caught up with this version of the store: who wrote it can then use what it wrote. At
    /// once where nobody makes views from a store. Without a deadline of its own.
    pub async fn covered(&self, version: u64) {
        let mut covers = self.shared.covers.subscribe();
        // The sender lives as long as `self`.
        let _ = covers.wait_for(|covers| covers.is_none_or(|covers| covers >= version)).await;
        self.followed().await;
    }

    /// From now on unknown ids are unknown, not "not ready": every resource has been read once.
    pub fn mark_ready(&self) {
        self.update(|view| View { ready: true, ..view.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use berth_types::{Location, Reason, Retry, Step, UnixMillis};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::testing::registration;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn entry(active: Option<Arc<Registration>>, target: Option<Arc<Registration>>) -> NameEntry {
        NameEntry { active, target, failure: None }
    }

    fn failure(model: &ModelId) -> Arc<Failure> {
        Arc::new(Failure {
            reason: Reason::NoSupportingRuntime,
            step: Step::Admit,
            location: Location::of_pod_name("pod"),
            model: model.clone(),
            message: "no runtime lists tensorrt".to_owned(),
            time: UnixMillis(0),
            retry: Retry::AfterChange,
        })
    }

    #[test]
    fn a_name_stands_for_what_serves_and_a_model_id_for_itself() {
        let (v1, v2) = (registration("digits", 1), registration("digits", 2));
        let broken = registration("broken", 1);
        let view = View::default()
            .with_name(&name("digits"), Some(entry(Some(Arc::clone(&v1)), Some(Arc::clone(&v2)))))
            .with_name(&name("new"), Some(entry(None, Some(Arc::clone(&v2)))))
            .with_name(&name("broken"), Some(NameEntry { failure: Some(failure(&broken.id)), ..entry(Some(Arc::clone(&broken)), None) }))
            .with_name(&name("empty"), Some(entry(None, None)));
        let views = Views::in_epoch(3);
        views.update(|_| view);
        let text = |resolved: Resolved| match resolved {
            Resolved::Model(registration) => registration.id.to_string(),
            Resolved::Unservable(failure) => failure.reason.to_string(),
            Resolved::Unknown => "unknown".to_owned(),
            Resolved::NotReady => "not ready".to_owned(),
        };
        for (id, expected) in [
            ("digits", v1.id.as_str()),
            (v1.id.as_str(), v1.id.as_str()),
            (v2.id.as_str(), v2.id.as_str()),
            ("new", v2.id.as_str()),
            ("broken", "NoSupportingRuntime"),
            (broken.id.as_str(), broken.id.as_str()),
            ("empty", "not ready"),
            ("nobody", "not ready"),
        ] {
            assert_eq!(text(views.current().resolve(id)), expected, "{id}");
        }
        // A name may look like the id of a model; then it goes before that.
        let shadow = name(v1.id.as_str());
        for (stands_for, expected) in [(Some(entry(Some(Arc::clone(&v2)), None)), &v2), (None, &v1), (None, &v1)] {
            views.update(|view| view.with_name(&shadow, stands_for));
            assert_eq!(text(views.current().resolve(v1.id.as_str())), expected.id.as_str());
        }
        views.mark_ready();
        assert_eq!(text(views.current().resolve("nobody")), "unknown");
        assert_eq!(text(views.current().resolve("empty")), "unknown");
        assert_eq!(text(views.current().resolve("digits")), v1.id.as_str());
    }

    /// Everything that a view says.
    fn told(view: &View) -> (BTreeMap<Name, (bool, NameEntry)>, BTreeMap<ModelId, bool>) {
        let names = view.names().map(|(name, entry)| (name.clone(), (view.is_managed_name(name.as_str()), entry.clone())));
        let models = view.model_ids().map(|id| (id.clone(), view.is_managed_model(id.as_str())));
        (names.collect(), models.collect())
    }

    /// Odd versions belong to no name, even ones to the name with this number.
    fn version_of(number: u8, version: u32) -> Arc<Registration> {
        if version.is_multiple_of(2) { registration(&format!("name-{number}"), version) } else { registration("shared", version) }
    }

    #[test]
    fn each_update_is_one_number_later_in_the_writers_epoch_whatever_the_change_returns() {
        let views = Views::in_epoch(7);
        let first = views.current();
        views.update(|view| view.with_name(&name("a"), Some(entry(Some(registration("a", 1)), None))));
        views.update(|_| View::default());
        assert_eq!((first.number(), views.current().number()), ((7, 0), (7, 2)));
        assert_eq!(first.name_count(), 0);
    }

    #[test]
    fn what_calls_have_made_is_theirs_until_they_let_go_of_it() {
        let (mine, other) = (registration("mine", 1), registration("mine", 2));
        let resource = entry(Some(Arc::clone(&other)), None);
        let named = [(name("mine"), Some(entry(Some(Arc::clone(&mine)), None)))];
        let pinned = View::default().with_managed([(mine.id.clone(), Some(Arc::clone(&mine)))], []);
        assert_eq!((pinned.model_count(), pinned.name_count(), pinned.is_managed_model(mine.id.as_str())), (1, 0, true));
        let view = pinned.with_managed([], named).with_name(&name("mine"), Some(resource.clone())).with_name(&name("mine"), None);
        assert!(view.is_managed_name("mine") && matches!(view.resolve("mine"), Resolved::Model(found) if found.id == mine.id));
        assert_eq!((view.model_count(), view.model_ids().count()), (1, 1), "counted once, by itself and through its name");
        let gone = view.with_managed([(mine.id.clone(), None)], [(name("mine"), None)]);
        assert_eq!((gone.model_count(), gone.name_count(), gone.model(mine.id.as_str()).is_none()), (0, 0, true));
        let theirs = gone.with_name(&name("mine"), Some(resource));
        for entry in [None, Some(entry(Some(Arc::clone(&mine)), None))] {
            let after = theirs.with_managed([], [(name("mine"), entry)]);
            assert!(matches!(after.resolve("mine"), Resolved::Model(found) if found.id == other.id), "not what a resource has by now");
            assert!(after.is_resource_name("mine") && after.model(mine.id.as_str()).is_none());
        }
    }

    #[tokio::test]
    async fn what_is_unknown_may_exist_while_whoever_makes_the_views_cannot_be_asked() {
        let (views, v1) = (Views::default(), registration("digits", 1));
        let theirs = View::default().with_name(&name("digits"), Some(entry(Some(v1), None)));
        let mut numbers = views.numbers();
        views.take_over(theirs.numbered((4, 9), true));
        assert_eq!((*numbers.borrow_and_update(), views.current().number()), ((4, 9), (4, 9)));
        for (cut_off, unknown) in [(false, true), (true, false), (false, true)] {
            views.cut_off(cut_off);
            assert_eq!(matches!(views.current().resolve("nobody"), Resolved::Unknown), unknown);
            assert!(matches!(views.current().resolve("digits"), Resolved::Model(_)) && views.current().is_ready());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_wrote_waits_for_a_view_that_covers_it_and_only_where_there_is_a_leader() {
        let views = Views::in_epoch(1);
        views.covered(7).await;
        views.cover(6);
        let late = tokio::time::timeout(std::time::Duration::from_secs(9), views.covered(7)).await;
        assert!(late.is_err(), "the view does not say what was written at 7");
        let (waiter, ()) = tokio::join!(tokio::time::timeout(std::time::Duration::from_secs(9), views.covered(7)), async { views.cover(8) });
        assert!(waiter.is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn names_and_models_of_calls_and_of_resources_are_counted_once_and_keep_out_of_each_others_way(
            steps in prop::collection::vec((0u8..4, 0u8..6, 0u32..4), 0..60)
        ) {
            let mut view = View::default();
            let mut views = vec![view.clone()];
            let (mut named, mut pinned) = (BTreeMap::new(), BTreeMap::new());
            for (number, step, version) in steps {
                let (name, made) = (name(&format!("name-{number}")), version_of(number, version));
                let is_managed = named.get(&number).is_some_and(|(managed, _)| *managed);
                let stands = || Some(entry(Some(Arc::clone(&made)), None));
                view = match step {
                    0 => view.with_name(&name, stands()),
                    1 => view.with_name(&name, None),
                    2 => view.with_managed([(made.id.clone(), Some(Arc::clone(&made)))], []),
                    3 => view.with_managed([(made.id.clone(), None)], []),
                    4 => view.with_managed([], [(name.clone(), stands())]),
                    _ => view.with_managed([], [(name.clone(), None)]),
                };
                views.push(view.clone());
                match step {
                    0 if !is_managed => drop(named.insert(number, (false, made.id.clone()))),
                    1 if !is_managed => drop(named.remove(&number)),
                    2 => drop(pinned.insert(made.id.clone(), ())),
                    3 => drop(pinned.remove(&made.id)),
                    4 if is_managed || !named.contains_key(&number) => drop(named.insert(number, (true, made.id.clone()))),
                    5 if is_managed => drop(named.remove(&number)),
                    _ => {}
                }
            }
            let expected: BTreeSet<ModelId> = named.values().map(|(_, id)| id.clone()).chain(pinned.keys().cloned()).collect();
            let listed: Vec<ModelId> = view.model_ids().cloned().collect();
            prop_assert_eq!((view.model_count(), listed.len(), view.name_count()), (expected.len(), expected.len(), named.len()));
            prop_assert!(expected.iter().all(|id| view.model(id.as_str()).is_some_and(|found| found.id == *id)));
            prop_assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
            // Whoever has any other one of these views can be told what makes this one of it.
            for other in views {
                let made = other.with(view.since(&other));
                prop_assert_eq!(told(&made), told(&view));
                prop_assert_eq!((made.model_count(), made.name_count()), (view.model_count(), view.name_count()));
                prop_assert!(view.since(&made).names.iter().all(|name| name.entry.is_some()) && view.since(&view).is_empty());
            }
            for (number, (managed, id)) in &named {
                let name = format!("name-{number}");
                prop_assert_eq!(view.is_managed_name(&name), *managed);
                prop_assert!(matches!(view.resolve(&name), Resolved::Model(found) if found.id == *id));
            }
        }

        #[test]
        fn the_models_are_exactly_those_that_names_refer_to(
            steps in prop::collection::vec((0u8..6, prop::option::of((prop::option::of(0u32..4), prop::option::of(0u32..4)))), 0..60)
        ) {
            let mut view = View::default();
            let mut expected = BTreeMap::new();
            for (number, change) in steps {
                let name = name(&format!("name-{number}"));
                // Odd versions come from one small pool, so that names share registrations; even ones are the name's own.
                let of = |version: Option<u32>| version.map(|version| version_of(number, version));
                view = view.with_name(&name, change.map(|(active, target)| entry(of(active), of(target))));
                match change {
                    Some(ids) => drop(expected.insert(number, ids)),
                    None => drop(expected.remove(&number)),
                }
            }
            let referred: BTreeSet<ModelId> = expected
                .iter()
                .flat_map(|(number, (active, target))| [active, target].into_iter().flatten().map(|version| version_of(*number, *version).id.clone()))
                .collect();
            prop_assert_eq!(view.model_ids().cloned().collect::<BTreeSet<_>>(), referred.clone());
            prop_assert_eq!((view.name_count(), view.model_count(), view.model_ids().count()), (expected.len(), referred.len(), referred.len()));
            for number in 0..6 {
                for version in 0..4 {
                    let id = version_of(number, version).id.clone();
                    prop_assert_eq!(view.model(id.as_str()).map(|found| &found.id), referred.get(&id));
                }
            }
        }
    }
}
