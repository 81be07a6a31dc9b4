//! What every store must do.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_registry::{
    Alias, Change, Contents, Desired, EventKind, Json, Managed, MemoryStore, Object, ObjectKey, Origin, RedbStore, Store, StoreError, Uid,
};
use berth_telemetry::Clock;
use berth_types::{ContentDigest, ManagedModel, ManagedName, ManagedPut, ModelId, Name, UnixMillis};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

use super::{alias, key, object, registration};

fn clock() -> Clock {
    Clock::starting_at(UnixMillis(1_700_000_000_000))
}

macro_rules! conformance {
    ($($rule:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $rule() {
                super::$rule(std::sync::Arc::new(super::MemoryStore::new(super::clock()))).await;
            })*
        }
        mod on_disk {
            $(#[tokio::test]
            async fn $rule() {
                let dir = tempfile::tempdir().unwrap();
                super::$rule(std::sync::Arc::new(super::RedbStore::open(dir.path(), super::clock()).unwrap())).await;
            })*
        }
    };
}

/// What is kept of resources and of calls.
trait Both: Store + Managed {}
impl<S: Store + Managed> Both for S {}

conformance!(
    what_calls_have_made_changes_together_and_sees_what_was_decided_before,
    a_new_object_gets_an_identity_and_an_unchanged_one_stays_as_it_is,
    only_a_changed_spec_raises_the_generation,
    a_write_with_a_stale_version_is_a_conflict,
    only_the_version_that_was_seen_is_removed,
    an_object_belongs_to_its_origin,
    a_status_goes_to_the_object_that_it_was_made_for,
    an_object_made_again_is_another_one_without_the_old_alias,
    an_alias_is_kept_until_it_is_forgotten,
    contents_are_kept_until_they_or_their_object_go,
    a_subscriber_gets_everything_then_the_newest_state_per_key,
    a_subscriber_of_an_empty_store_is_told_so,
    subscribers_learn_that_the_store_is_closed,
    events_tell_every_state_in_order,
    a_watcher_that_fell_too_far_behind_is_told,
    many_writers_at_once_are_all_served,
);

pub(super) fn managed_model(id: &str, last_used: u64) -> ManagedModel {
    let kind = "mt:onnx".into();
    ManagedModel { id: ModelId::new(id).unwrap(), kind, path: None, key: None, last_used: UnixMillis(last_used), auto_delete: false }
}

pub(super) fn managed_name(name: &str, active: &str) -> ManagedName {
    let active = ModelId::new(active).unwrap();
    ManagedName { name: Name::new(name).unwrap(), target: active.clone(), active, owner: None }
}

async fn what_calls_have_made_changes_together_and_sees_what_was_decided_before(store: Arc<dyn Both>) {
    let puts = vec![ManagedPut::Model(managed_model("a/b", 1)), ManagedPut::Name(managed_name("n", "a/b"))];
    store.change_managed(Box::new(move |_| puts.clone())).await.unwrap();
    assert_eq!(store.managed_model("a/b").as_deref(), Some(&managed_model("a/b", 1)));
    assert_eq!(store.managed_name("n").as_deref(), Some(&managed_name("n", "a/b")));
    let (before, objects) = (store.version(), store.list().len());
    assert_eq!((before, objects), (1, 0), "one change, and no object");

    // Each counts one up from what it sees: none is lost, whichever share a disk write.
    let one_more = || {
        let change = |there: &dyn berth_types::ManagedRecords| {
            let id = ModelId::new("a/b").unwrap();
            let present = there.model(&id).unwrap();
            vec![ManagedPut::Model(ManagedModel { last_used: UnixMillis(present.last_used.0 + 1), ..(*present).clone() })]
        };
        store.change_managed(Box::new(change))
    };
    for done in futures::future::join_all((0..100).map(|_| one_more())).await {
        done.unwrap();
    }
    assert_eq!(store.managed_model("a/b").unwrap().last_used, UnixMillis(101));
    store.change_managed(Box::new(|_| Vec::new())).await.unwrap();
    assert_eq!(store.version(), before + 100, "no change, no version");
    let gone = vec![ManagedPut::NoModel(ModelId::new("a/b").unwrap()), ManagedPut::NoName(Name::new("n").unwrap())];
    store.change_managed(Box::new(move |_| gone.clone())).await.unwrap();
    assert_eq!((store.managed_model("a/b"), store.managed_name("n"), store.managed().0.len(), store.managed().1.len()), (None, None, 0, 0));
}

async fn a_new_object_gets_an_identity_and_an_unchanged_one_stays_as_it_is(store: Arc<dyn Store>) {
    assert_eq!((store.version(), store.list().len()), (0, 0));
    let made = store.apply(object("a", 1), None).await.unwrap();
    assert_eq!((made.resource_version, made.generation, &made.status), (1, 1, &None));
    assert!(made.created >= UnixMillis(1_700_000_000_000));
    assert!(!made.uid.is_none());
    let again = store.apply(object("a", 1), None).await.unwrap();
    assert_eq!((again, store.version()), (Arc::clone(&made), 1));
    let other = store.apply(object("b", 1), None).await.unwrap();
    assert_ne!(made.uid, other.uid);
    assert_eq!(store.list(), [Arc::clone(&made), other]);
    assert_eq!(store.get(&key("a")), Some(made));
    assert_eq!(store.get(&key("c")), None);
    assert_eq!((store.snapshot().version, store.snapshot().objects), (2, store.list()));
}

async fn only_a_changed_spec_raises_the_generation(store: Arc<dyn Store>) {
    let made = store.apply(object("a", 1), None).await.unwrap();
    let with_status = store.set_status(&key("a"), made.uid, json!({ "state": "Loaded" })).await.unwrap();
    assert_eq!((with_status.generation, with_status.resource_version), (1, 2));
    let labelled = Desired { labels: json!({ "tier": "x" }).into(), ..Desired::clone(&object("a", 1)) };
    let labelled = store.apply(Arc::new(labelled), None).await.unwrap();
    assert_eq!((labelled.generation, labelled.resource_version), (1, 3));
    let changed = store.apply(object("a", 2), None).await.unwrap();
    assert_eq!((changed.generation, changed.resource_version, changed.labels.is_empty()), (2, 4, true));
    assert_eq!((&changed.uid, changed.created, &changed.status), (&made.uid, made.created, &with_status.status), "what is the store's stays");
}

async fn a_write_with_a_stale_version_is_a_conflict(store: Arc<dyn Store>) {
    let text = |result: Result<Arc<Object>, StoreError>| match result {
        Err(StoreError::Conflict(text)) => text,
        other => panic!("{other:?}"),
    };
    store.apply(object("a", 1), Some(0)).await.unwrap();
    assert_eq!(text(store.apply(object("a", 1), Some(0)).await), "InferenceService default/a exists already");
    store.apply(object("a", 2), Some(1)).await.unwrap();
    assert_eq!(
        text(store.apply(object("a", 3), Some(1)).await),
        "InferenceService default/a has changed from version 1 to 2: read it again and apply to that"
    );
    store.delete(&key("a")).await.unwrap();
    assert_eq!(text(store.apply(object("a", 3), Some(2)).await), "InferenceService default/a was removed after version 2: read it again");
    assert_eq!((store.version(), store.list().len()), (3, 0));
}

async fn only_the_version_that_was_seen_is_removed(store: Arc<dyn Store>) {
    store.apply(object("a", 1), None).await.unwrap();
    store.apply(object("a", 2), None).await.unwrap();
    let conflict = "InferenceService default/a has changed from version 1 to 2: read it again and apply to that";
    assert_eq!(store.delete_version(&key("a"), 1).await, Err(StoreError::Conflict(conflict.to_owned())));
    assert_eq!(store.delete_version(&key("a"), 2).await.unwrap().resource_version, 3);
    assert_eq!(store.delete_version(&key("a"), 2).await, Err(StoreError::NotFound(key("a"))));
}

async fn an_object_belongs_to_its_origin(store: Arc<dyn Store>) {
    let from = |origin: &Origin, spec| Arc::new(Desired { origin: origin.clone(), ..Desired::clone(&object("a", spec)) });
    let (folder, other) = (Origin::file("/m/a.yaml"), Origin::file("/m/b.yaml"));
    for (owner, writer, conflict) in [
        (&folder, &Origin::Api, "InferenceService default/a comes from /m/a.yaml: change it there"),
        (&folder, &Origin::Bundled, "the name of InferenceService default/a belongs to the program: choose another one in /m/a.yaml"),
        (&Origin::Api, &other, "InferenceService default/a was made through the API: delete it there, or remove it from /m/b.yaml"),
        (&Origin::Api, &Origin::Bundled, "the name of InferenceService default/a belongs to the program: delete the one made through the API"),
        (&Origin::Bundled, &other, "InferenceService default/a comes with the program: choose another name in /m/b.yaml"),
        (&Origin::Bundled, &Origin::Api, "InferenceService default/a comes with the program: choose another name"),
    ] {
        store.apply(from(owner, 1), None).await.unwrap();
        assert_eq!(store.apply(from(writer, 2), None).await, Err(StoreError::Conflict(conflict.to_owned())));
        store.delete(&key("a")).await.unwrap();
    }
    store.apply(from(&folder, 1), None).await.unwrap();
    let moved = store.apply(from(&other, 1), None).await.unwrap();
    assert_eq!((&moved.origin, moved.generation), (&other, 1), "a resource may move from file to file");
}

async fn a_status_goes_to_the_object_that_it_was_made_for(store: Arc<dyn Store>) {
    let made = store.apply(object("a", 1), None).await.unwrap();
    let status = json!({ "modelStatus": { "states": { "activeModelState": "Loaded" } } });
    let written = store.set_status(&key("a"), made.uid, status.clone()).await.unwrap();
    assert_eq!(written.status, Some(status.clone().into()));
    assert!(Arc::ptr_eq(&written.desired, &made.desired), "who knows the old spec sees without a comparison that it is the same");
    assert_eq!(store.set_status(&key("a"), made.uid, status.clone()).await.unwrap(), written, "the same again changes nothing");
    assert_eq!(store.version(), 2);
    let missing = Err(StoreError::NotFound(key("a")));
    assert_eq!(store.set_status(&key("a"), Uid::default(), json!({})).await, missing);
    store.delete(&key("a")).await.unwrap();
    assert_eq!(store.set_status(&key("a"), made.uid, json!({})).await, missing);
    assert_eq!(store.delete(&key("a")).await, missing);
    assert_eq!(StoreError::NotFound(key("a")).to_string(), "InferenceService default/a not found");
}

async fn an_object_made_again_is_another_one_without_the_old_alias(store: Arc<dyn Store>) {
    let first = store.apply(object("a", 1), None).await.unwrap();
    store.set_alias(&key("a"), first.uid, Some(alias("v1"))).await.unwrap();
    let removed = store.delete(&key("a")).await.unwrap();
    assert_eq!((&removed.uid, removed.resource_version, store.version()), (&first.uid, 3, 3));
    let second = store.apply(object("a", 1), None).await.unwrap();
    assert_ne!(first.uid, second.uid);
    assert_eq!((second.generation, store.alias(&key("a"))), (1, None));
    // Who still writes for the first one changes nothing about the second.
    let missing = Err(StoreError::NotFound(key("a")));
    assert_eq!(store.set_alias(&key("a"), first.uid, Some(alias("v1"))).await, missing);
    assert_eq!(store.alias(&key("a")), None);
    store.set_alias(&key("a"), second.uid, Some(alias("v2"))).await.unwrap();
    assert_eq!(store.set_alias(&key("a"), first.uid, None).await, missing);
    assert_eq!(store.alias(&key("a")), Some(alias("v2")));
}

async fn an_alias_is_kept_until_it_is_forgotten(store: Arc<dyn Store>) {
    for alias in [Some(alias("v1")), None] {
        assert_eq!(store.set_alias(&key("a"), Uid::default(), alias).await, Err(StoreError::NotFound(key("a"))));
    }
    let uid = store.apply(object("a", 1), None).await.unwrap().uid;
    assert_eq!(store.alias(&key("a")), None);
    store.set_alias(&key("a"), uid, Some(alias("v1"))).await.unwrap();
    store.set_alias(&key("a"), uid, Some(alias("v2"))).await.unwrap();
    assert_eq!(store.alias(&key("a")), Some(alias("v2")));
    let version = store.version();
    store.set_alias(&key("a"), uid, Some(alias("v2"))).await.unwrap();
    assert_eq!(store.version(), version, "the same again changes nothing");
    store.set_alias(&key("a"), uid, None).await.unwrap();
    assert_eq!(store.alias(&key("a")), None);
}

pub(crate) fn contents(versions: &[(&str, u8)]) -> Contents {
    versions.iter().map(|(version, digest)| (registration(version).id.clone(), ContentDigest([*digest; 32]))).collect()
}

async fn contents_are_kept_until_they_or_their_object_go(store: Arc<dyn Store>) {
    let missing = Err(StoreError::NotFound(key("a")));
    assert_eq!(store.set_contents(&key("a"), Uid::default(), contents(&[("v1", 1)])).await, missing);
    let uid = store.apply(object("a", 1), None).await.unwrap().uid;
    assert_eq!(store.contents().await, Ok(BTreeMap::new()));
    let other = store.apply(object("b", 1), None).await.unwrap().uid;
    store.set_contents(&key("b"), other, contents(&[("w1", 9)])).await.unwrap();
    for kept in [contents(&[("v1", 1)]), contents(&[("v1", 1), ("v2", 2)]), contents(&[("v2", 2)])] {
        let version = store.version();
        store.set_contents(&key("a"), uid, kept.clone()).await.unwrap();
        assert_eq!(store.contents().await.unwrap(), BTreeMap::from([(key("a"), kept), (key("b"), contents(&[("w1", 9)]))]));
        assert_eq!(store.version(), version + 1);
    }
    store.set_contents(&key("a"), uid, Contents::new()).await.unwrap();
    assert_eq!(store.contents().await.unwrap().len(), 1);
    // An object made again is another one, with contents of its own.
    store.set_contents(&key("a"), uid, contents(&[("v1", 1)])).await.unwrap();
    store.delete(&key("a")).await.unwrap();
    store.apply(object("a", 1), None).await.unwrap();
    assert_eq!(store.set_contents(&key("a"), uid, contents(&[("v1", 1)])).await, missing, "who still writes for the first one");
    assert_eq!(store.contents().await.unwrap().into_keys().collect::<Vec<_>>(), [key("b")]);
}

fn told(changes: &[Change]) -> Vec<(String, Option<u64>)> {
    changes
        .iter()
        .map(|change| (change.key.name.to_string(), change.object.as_ref().and_then(|object| object.spec.value()["predictor"]["number"].as_u64())))
        .collect()
}

async fn a_subscriber_gets_everything_then_the_newest_state_per_key(store: Arc<dyn Store>) {
    store.apply(object("a", 1), None).await.unwrap();
    store.apply(object("b", 1), None).await.unwrap();
    let mut changes = store.subscribe();
    store.apply(object("a", 2), None).await.unwrap();
    assert_eq!(told(&changes.next().await.unwrap()), [("a".into(), Some(2)), ("b".into(), Some(1))]);
    for spec in 3..100 {
        store.apply(object("a", spec), None).await.unwrap();
    }
    let c = store.apply(object("c", 1), None).await.unwrap();
    store.delete(&key("b")).await.unwrap();
    store.set_alias(&key("c"), c.uid, Some(alias("v1"))).await.unwrap();
    let news = changes.next().await.unwrap();
    assert_eq!(told(&news), [("a".into(), Some(99)), ("b".into(), None), ("c".into(), Some(1))]);
    assert_eq!(news.iter().map(|change| change.resource_version).collect::<Vec<_>>(), [100, 102, 101]);
    // A call that is given up loses nothing.
    assert!(futures::FutureExt::now_or_never(changes.next()).is_none());
    let (news, _) = tokio::join!(changes.next(), store.apply(object("d", 1), None));
    assert_eq!(told(&news.unwrap()), [("d".into(), Some(1))]);
}

async fn a_subscriber_of_an_empty_store_is_told_so(store: Arc<dyn Store>) {
    let mut changes = store.subscribe();
    assert_eq!(changes.next().await.map(|changes| changes.len()), Some(0));
    assert!(futures::FutureExt::now_or_never(changes.next()).is_none(), "only the first call answers without news");
}

async fn subscribers_learn_that_the_store_is_closed(store: Arc<dyn Store>) {
    store.apply(object("a", 1), None).await.unwrap();
    let (mut changes, mut versions) = (store.subscribe(), store.versions());
    assert_eq!(*versions.borrow_and_update(), 1);
    drop(store);
    assert_eq!(changes.next().await.map(|changes| changes.len()), Some(1), "what was there is still told");
    assert!(changes.next().await.is_none());
    assert!(versions.changed().await.is_err());
}

async fn events_tell_every_state_in_order(store: Arc<dyn Store>) {
    let made = store.apply(object("a", 1), None).await.unwrap();
    for state in ["Pending", "Loading", "Loaded"] {
        store.set_status(&key("a"), made.uid, json!({ "state": state })).await.unwrap();
    }
    store.delete(&key("a")).await.unwrap();
    let events: Vec<_> = store
        .events_after(0)
        .unwrap()
        .into_iter()
        .map(|event| {
            (
                event.kind,
                event.version(),
                event.object.status.as_ref().map_or(String::new(), |status| status.value()["state"].as_str().unwrap().to_owned()),
            )
        })
        .collect();
    assert_eq!(
        events,
        [
            (EventKind::Added, 1, String::new()),
            (EventKind::Modified, 2, "Pending".into()),
            (EventKind::Modified, 3, "Loading".into()),
            (EventKind::Modified, 4, "Loaded".into()),
            (EventKind::Deleted, 5, "Loaded".into()),
        ]
    );
    assert_eq!(store.events_after(4).unwrap().len(), 1);
    assert_eq!(store.events_after(5).unwrap().len(), 0);
    assert!(store.events_after(6).is_err(), "a version that never was");
    assert_eq!(*store.versions().borrow(), 5);
}

async fn a_watcher_that_fell_too_far_behind_is_told(store: Arc<dyn Store>) {
    // Text that cannot be pressed together.
    let bulk = |seed: u64| {
        let letters = (0..1u64 << 20).scan(seed + 1, |state, _| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(char::from(b'a' + u8::try_from((*state >> 33) % 26).unwrap()))
        });
        letters.collect::<String>()
    };
    for spec in 0..20 {
        let spec = json!({ "n": spec, "bulk": bulk(spec) });
        store.apply(Arc::new(Desired::new(key("a"), Origin::Api, &spec)), None).await.unwrap();
    }
    let expired = store.events_after(0).unwrap_err();
    assert_eq!((expired.asked, expired.newest), (0, 20));
    let kept = store.events_after(expired.oldest).unwrap();
    assert_eq!(kept.first().map(|event| event.version()), Some(expired.oldest + 1));
    assert!((4..=8).contains(&kept.len()), "{} MiB are kept", kept.len());
}

async fn many_writers_at_once_are_all_served(store: Arc<dyn Store>) {
    let writes = (0..3_000).map(|n| store.apply(object(&format!("m{n}"), n), Some(0)));
    let outcomes = futures::future::join_all(writes).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!((store.list().len(), store.version()), (3_000, 3_000));
}

/// One step of the random test.
#[derive(Clone, Debug)]
enum Step {
    Apply { name: u8, spec: u8, stale: bool },
    Status { name: u8, state: u8, stale: bool },
    Delete { name: u8 },
    Alias { name: u8, version: Option<u8>, stale: bool },
    Contents { name: u8, versions: u8, stale: bool },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..5, 0u8..3, prop::bool::weighted(0.1)).prop_map(|(name, spec, stale)| Step::Apply { name, spec, stale }),
        4 => (0u8..5, 0u8..4, prop::bool::weighted(0.1)).prop_map(|(name, state, stale)| Step::Status { name, state, stale }),
        1 => (0u8..5).prop_map(|name| Step::Delete { name }),
        2 => (0u8..5, prop::option::of(0u8..3), prop::bool::weighted(0.1)).prop_map(|(name, version, stale)| Step::Alias { name, version, stale }),
        2 => (0u8..5, 0u8..3, prop::bool::weighted(0.1)).prop_map(|(name, versions, stale)| Step::Contents { name, versions, stale }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// What a store should hold, kept by the simplest means.
#[derive(Default)]
struct Model {
    objects: BTreeMap<ObjectKey, (Uid, u64, Json, Option<Value>)>,
    aliases: BTreeMap<ObjectKey, Alias>,
    contents: BTreeMap<ObjectKey, Contents>,
}

/// Runs the steps on a store; `reopen` closes and opens it where that means something, and is `epochs` epochs later.
async fn follows_the_model(steps: Vec<Step>, mut store: Arc<dyn Store>, epochs: u64, reopen: impl Fn(Arc<dyn Store>) -> Arc<dyn Store>) {
    let mut model = Model::default();
    let mut changes = store.subscribe();
    let mut seen = BTreeMap::new();
    let mut since = store.snapshot();
    for step in steps {
        let before = store.version();
        let mut changed = true;
        match step {
            Step::Apply { name, spec, stale } => {
                let wanted = object(&format!("m{name}"), u64::from(spec));
                let outcome = store.apply(wanted.clone(), stale.then_some(u64::MAX)).await;
                let present = model.objects.get_mut(&wanted.key);
                match (outcome, present) {
                    (Err(StoreError::Conflict(_)), _) if stale => changed = false,
                    (Ok(object), Some((uid, generation, spec, status))) => {
                        changed = *spec != wanted.spec;
                        *generation += u64::from(changed);
                        *spec = wanted.spec.clone();
                        assert_eq!((&object.uid, object.generation, object.status.clone()), (&*uid, *generation, status.clone().map(Json::from)));
                    }
                    (Ok(object), None) => drop(model.objects.insert(wanted.key.clone(), (object.uid, 1, wanted.spec.clone(), None))),
                    (outcome, _) => panic!("{outcome:?}"),
                }
            }
            Step::Status { name, state, stale } => {
                let key = key(&format!("m{name}"));
                let present = model.objects.get_mut(&key);
                let uid = present.as_ref().filter(|_| !stale).map_or_else(Uid::default, |present| present.0);
                let status = json!({ "state": state });
                match (store.set_status(&key, uid, status.clone()).await, present) {
                    (Ok(_), Some(present)) if !stale => changed = present.3.replace(status.clone()) != Some(status),
                    (Err(StoreError::NotFound(_)), present) if stale || present.is_none() => changed = false,
                    (outcome, _) => panic!("{outcome:?}"),
                }
            }
            Step::Delete { name } => {
                let key = key(&format!("m{name}"));
                changed = model.objects.remove(&key).is_some();
                model.aliases.remove(&key);
                model.contents.remove(&key);
                assert_eq!(store.delete(&key).await.is_ok(), changed);
            }
            Step::Alias { name, version, stale } => {
                let key = key(&format!("m{name}"));
                let wanted = version.map(|version| alias(&format!("v{version}")));
                let present = model.objects.get(&key).filter(|_| !stale);
                let uid = present.map_or_else(Uid::default, |present| present.0);
                let outcome = store.set_alias(&key, uid, wanted.clone()).await;
                if outcome.is_ok() {
                    assert!(present.is_some());
                    changed = model.aliases.get(&key) != wanted.as_ref();
                    match wanted {
                        Some(wanted) => drop(model.aliases.insert(key, wanted)),
                        None => drop(model.aliases.remove(&key)),
                    }
                } else {
                    changed = false;
                    assert_eq!(outcome, Err(StoreError::NotFound(key)));
                    assert!(present.is_none());
                }
            }
            Step::Contents { name, versions, stale } => {
                let key = key(&format!("m{name}"));
                let wanted: Contents = (0..versions).flat_map(|version| contents(&[(&format!("v{version}"), version)])).collect();
                let present = model.objects.get(&key).filter(|_| !stale);
                let uid = present.map_or_else(Uid::default, |present| present.0);
                let outcome = store.set_contents(&key, uid, wanted.clone()).await;
                changed = present.is_some();
                assert_eq!(outcome, if changed { Ok(()) } else { Err(StoreError::NotFound(key.clone())) });
                if changed && versions > 0 {
                    model.contents.insert(key, wanted);
                } else if changed {
                    model.contents.remove(&key);
                }
            }
            Step::Reopen => {
                let epoch = store.epoch();
                drop(changes);
                store = reopen(store);
                assert_eq!(store.epoch(), epoch + epochs, "each opening has an epoch of its own");
                changes = store.subscribe();
                seen.clear();
                since = store.snapshot();
                changed = false;
            }
        }
        assert_eq!(store.version(), before + u64::from(changed), "each change is one version");
        let held: Vec<_> = store.list().iter().map(|o| (o.key.clone(), o.uid, o.generation, o.spec.clone(), o.status.clone())).collect();
        let expected: Vec<_> = model.objects.iter().map(|(k, (u, g, s, t))| (k.clone(), *u, *g, s.clone(), t.clone().map(Json::from))).collect();
        assert_eq!(held, expected);
        for name in 0..5 {
            let key = key(&format!("m{name}"));
            assert_eq!(store.alias(&key), model.aliases.get(&key).cloned());
        }
        assert_eq!(store.contents().await.as_ref(), Ok(&model.contents));
        if store.version().is_multiple_of(3)
            && let Some(Some(news)) = futures::FutureExt::now_or_never(changes.next())
        {
            for change in news {
                seen.insert(change.key, change.object);
            }
            let current: Vec<_> = seen.values().flatten().cloned().collect();
            assert_eq!(current, store.list(), "a subscriber that keeps the newest state per key has what the store has");
        }
    }
    let mut replayed: BTreeMap<_, _> = since.objects.into_iter().map(|object| (object.key.clone(), object)).collect();
    for event in store.events_after(since.version).unwrap() {
        let old = match event.kind {
            EventKind::Added | EventKind::Modified => replayed.insert(event.object.key.clone(), Arc::clone(&event.object)),
            EventKind::Deleted => replayed.remove(&event.object.key),
        };
        assert_eq!(old.is_none(), event.kind == EventKind::Added);
    }
    assert_eq!(replayed.into_values().collect::<Vec<_>>(), store.list(), "the events lead from the snapshot to the present");
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn random_writes_leave_what_a_plain_map_would_hold_in_memory() {
    let config = ProptestConfig { cases: 200, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() };
    proptest!(config, |(steps in steps())| {
        block_on(follows_the_model(steps, Arc::new(MemoryStore::new(clock())), 0, |store| store));
    });
}

#[test]
fn random_writes_leave_what_a_plain_map_would_hold_on_disk_over_restarts() {
    let config = ProptestConfig { cases: 12, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() };
    proptest!(config, |(steps in steps())| {
        let dir = tempfile::tempdir().unwrap();
        let open = || -> Arc<dyn Store> { Arc::new(RedbStore::open(dir.path(), clock()).unwrap()) };
        let reopen = |store| {
            drop(store);
            open()
        };
        block_on(follows_the_model(steps, open(), 1, reopen));
    });
}
