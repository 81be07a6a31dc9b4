//! What every [`Fetch`] does: the real thing over a store and over a folder, and the fake, pass the same suite.

use std::sync::Arc;

use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, ModelFormat, ModelId, Placement, Registration, StorageRef};

use crate::fake::{FakeFetch, Scripted};
use crate::store::Store;
use crate::tests::{config, s3_entry};
use crate::{Fetch, PullError, Puller, Urgency};

/// A registration of `name`, which lies under `path` in the storage of key `key`.
pub(crate) fn model(name: &str, key: &str, path: &str) -> Registration {
    Registration::new(
        ModelId::new(format!("{name}__isvc-0000000000")).expect("sound"),
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: Some(key.into()), parameters: Arc::default(), path: path.into(), schema_path: None },
        None,
    )
}

/// `present` and `other` exist with 1,000 bytes each, `absent` does not. `copies`: files are fetched, not used in place.
async fn conforms(fetch: Arc<dyn Fetch>, copies: bool) {
    let (present, other, absent) = (model("present", "k", "present"), model("other", "k", "other"), model("absent", "k", "absent"));

    assert!(matches!(fetch.fetch(&absent, Urgency::Waited).await, Err(PullError::NotFound(_))), "what is not there is not found");
    assert!(!fetch.on_disk(&absent));
    assert_eq!(fetch.on_disk(&present), !copies);
    assert!(fetch.reuse(&present).await.is_none() && fetch.reuse(&absent).await.is_none(), "nothing was fetched");

    let first = fetch.fetch(&present, Urgency::Waited).await.expect("there");
    assert_eq!((first.size, first.from_disk), (ByteSize(1000), !copies));
    assert!(fetch.on_disk(&present));
    let again = fetch.fetch(&present, Urgency::Waited).await.expect("there");
    assert!(again.from_disk, "the second time it is on disk");
    assert_eq!((&again.model, again.size), (&first.model, first.size));
    let reused = fetch.reuse(&present).await;
    assert_eq!(reused.is_some(), copies, "what is used in place was never fetched");
    if let Some(reused) = reused {
        assert_eq!((reused.from_disk, &reused.model, reused.size, reused.hold.is_some()), (true, &first.model, first.size, true));
    }

    fetch.forget(&present);
    assert_eq!(again.hold.is_some(), copies);
    drop((first, again));
    assert_eq!(fetch.on_disk(&present), !copies, "forgotten copies go with their last pin, what is used in place stays");
    assert_eq!(fetch.fetch(&present, Urgency::Waited).await.expect("there").from_disk, !copies, "a forgotten model can come back");
    fetch.forget(&present);
    assert_eq!(fetch.on_disk(&present), !copies, "without a pin it goes at once");
    fetch.forget(&absent);

    let (a, b) = tokio::join!(fetch.fetch(&other, Urgency::Waited), fetch.fetch(&other, Urgency::Waited));
    let (a, b) = (a.expect("there"), b.expect("there"));
    assert_eq!((a.from_disk, &a.model), (b.from_disk, &b.model), "callers share one download");
    drop(a);
    assert!(fetch.on_disk(&other), "the other caller still holds it");
}

#[tokio::test]
async fn the_puller_over_a_store_conforms() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), Store::start().await);
    store.put("present/a", vec![1; 600]);
    store.put("present/b/c", vec![2; 400]);
    store.put("other", vec![3; 1000]);
    let config = config(folder.path(), &[("k", &s3_entry(&store))]);
    conforms(Puller::open(config, Clock::system(), Metrics::default()).await.expect("opens"), true).await;
}

#[tokio::test(start_paused = true)]
async fn the_puller_over_a_folder_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), &[("k", r#"{"type":"folder","path":"models"}"#)]);
    let models = config.storage_config.as_ref().expect("set").join("models");
    std::fs::create_dir_all(models.join("present")).expect("a folder");
    std::fs::write(models.join("present/a"), [1; 1000]).expect("written");
    std::fs::write(models.join("other"), [1; 1000]).expect("written");
    conforms(Puller::open(config, Clock::system(), Metrics::default()).await.expect("opens"), false).await;
}

#[tokio::test(start_paused = true)]
async fn the_fake_conforms() {
    let fake = FakeFetch::with_default(Clock::system(), Scripted::arrives(ByteSize(1000)));
    let absent = model("absent", "k", "absent").id;
    fake.always(absent.as_str(), Scripted::fails(PullError::NotFound("nothing is there".to_owned())));
    conforms(fake, true).await;
}

#[tokio::test(start_paused = true)]
async fn the_fake_follows_its_script() {
    use std::time::Duration;
    let clock = Clock::system();
    let fake = FakeFetch::new(clock.clone());
    let m = model("m", "k", "m");
    let (id, secs) = (m.id.as_str().to_owned(), Duration::from_secs);
    fake.then(&id, Scripted::fails(PullError::Unavailable("away".to_owned())))
        .then(&id, Scripted::Stalls)
        .then(&id, Scripted::arrives_in(ByteSize::mib(7), secs(30)));
    assert_eq!(fake.fetch(&m, Urgency::Waited).await.map(|_| ()), Err(PullError::Unavailable("away".to_owned())));
    let (begin, waiting) = (clock.now(), Arc::clone(&fake));
    let task = tokio::spawn(async move { waiting.fetch(&m, Urgency::Waited).await });
    fake.started(2).await;
    clock.sleep(secs(100)).await;
    assert!(!task.is_finished());
    fake.release(&id);
    let pinned = task.await.expect("no panic").expect("arrives");
    assert_eq!((pinned.size, clock.now() - begin), (ByteSize::mib(7), secs(130)));
    assert_eq!(fake.fetches(), [id.as_str(), id.as_str()]);
    let id = ModelId::new(id).expect("sound");
    assert_eq!(fake.pins(&id), 1);
    drop(pinned);
    assert_eq!(fake.pins(&id), 0);
}
