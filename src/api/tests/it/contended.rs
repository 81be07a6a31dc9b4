//! Writes to a resource that somebody else writes to at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use berth_api::Access;
use berth_registry::{Alias, Changes, Desired, Event, Expired, MemoryStore, Object, ObjectKey, Snapshot, Store, StoreError, Uid};
use berth_telemetry::Clock;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::server::{ISVCS, Server, isvc};

const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A store in which a status is written just before a write that was worked out on an older version arrives.
struct Busy {
    inner: MemoryStore,
    /// How many writes will be too late.
    disturbances: AtomicUsize,
    statuses: AtomicUsize,
}

impl Busy {
    async fn disturb(&self, key: &ObjectKey) {
        let due = self.disturbances.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if let Some(object) = self.inner.get(key).filter(|_| due) {
            let number = self.statuses.fetch_add(1, Ordering::SeqCst);
            self.inner.set_status(key, object.uid, json!({ "number": number })).await.unwrap();
        }
    }
}

#[async_trait]
impl Store for Busy {
    fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.inner.get(key)
    }
    fn list(&self) -> Vec<Arc<Object>> {
        self.inner.list()
    }
    fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }
    fn version(&self) -> u64 {
        self.inner.version()
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    async fn apply(&self, object: Arc<Desired>, expected: Option<u64>) -> Result<Arc<Object>, StoreError> {
        self.disturb(&object.key).await;
        self.inner.apply(object, expected).await
    }
    async fn set_status(&self, key: &ObjectKey, uid: Uid, status: Value) -> Result<Arc<Object>, StoreError> {
        self.inner.set_status(key, uid, status).await
    }
    async fn delete(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError> {
        self.inner.delete(key).await
    }
    async fn delete_version(&self, key: &ObjectKey, version: u64) -> Result<Arc<Object>, StoreError> {
        self.disturb(key).await;
        self.inner.delete_version(key, version).await
    }
    fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.inner.alias(key)
    }
    async fn set_alias(&self, key: &ObjectKey, uid: Uid, alias: Option<Alias>) -> Result<(), StoreError> {
        self.inner.set_alias(key, uid, alias).await
    }
    fn subscribe(&self) -> Changes {
        self.inner.subscribe()
    }
    fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired> {
        self.inner.events_after(version)
    }
    fn versions(&self) -> watch::Receiver<u64> {
        self.inner.versions()
    }
}

#[tokio::test]
async fn only_a_client_that_names_a_version_sees_that_a_status_was_faster() {
    let inner = MemoryStore::new(Clock::system());
    inner.apply(isvc("default", "a", &[]), None).await.unwrap();
    let store = Arc::new(Busy { inner, disturbances: AtomicUsize::new(0), statuses: AtomicUsize::new(0) });
    let server = Server::with(Arc::clone(&store) as Arc<dyn Store>, None, Access::Loopback).await;
    let one = format!("{ISVCS}/a");
    let disturb = |count| store.disturbances.store(count, Ordering::SeqCst);
    let applied = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nspec: {x: 2}\n";

    disturb(3);
    let (code, patched) = server.write(Method::PATCH, &one, MERGE, json!({ "spec": { "x": 1 } })).await;
    assert_eq!((code, &patched["spec"]["x"], &patched["status"]["number"]), (200, &json!(1), &json!(2)));
    disturb(3);
    let (code, patched) = server.write(Method::PATCH, &one, APPLY, applied).await;
    assert_eq!((code, &patched["spec"], &patched["status"]["number"]), (200, &json!({ "x": 2 }), &json!(5)));

    let mut next = server.get(&one).await;
    next["spec"]["x"] = 3.into();
    disturb(1);
    let (code, status) = server.write(Method::PUT, &one, "application/json", &next).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")), "{status}");
    assert!(status["message"].as_str().unwrap().contains("the object has been modified"), "{status}");
    disturb(1);
    let named = json!({ "metadata": { "resourceVersion": server.get(&one).await["metadata"]["resourceVersion"] }, "spec": { "x": 4 } });
    assert_eq!(server.write(Method::PATCH, &one, MERGE, named).await.0, 409);
    assert_eq!(server.get(&one).await["spec"]["x"], 2);

    // Nobody tries for ever.
    disturb(1_000);
    for (method, media_type, body) in
        [(Method::PATCH, MERGE, "{\"spec\": {\"x\": 5}}"), (Method::PATCH, APPLY, applied.replace('2', "6").as_str()), (Method::DELETE, MERGE, "")]
    {
        let (code, status) = server.write(method.clone(), &one, media_type, body).await;
        assert_eq!(code, 409, "{method} {media_type}: {status}");
        assert!(status["message"].as_str().unwrap().ends_with("the object has been modified again and again: try again"), "{status}");
    }
    disturb(3);
    assert_eq!(server.json(Method::DELETE, &one).await.0, 200);
    assert_eq!(store.list().len(), 0);
}
