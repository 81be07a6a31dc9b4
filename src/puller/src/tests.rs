//! The puller against a store in this process: what arrives, what is refused and how, and what stays on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_stores::memory::{self, MemoryStore};
use berth_telemetry::{Clock, Counter, Metrics};
use berth_types::{ByteSize, Class, Registration};

use crate::store::{BUCKET, KEY_ID, SECRET, Store, Trouble, etag};
use crate::suite::model;
use crate::{Fetch, PullError, Puller, PullerConfig, Stage, Urgency};

/// A configuration with these storage keys, short waits and small parts.
pub(crate) fn config(folder: &Path, entries: &[(&str, &str)]) -> PullerConfig {
    let keys = folder.join("storage-config");
    std::fs::create_dir_all(&keys).expect("a folder");
    for (key, text) in entries {
        std::fs::write(keys.join(key), text).expect("written");
    }
    PullerConfig {
        storage_config: Some(keys),
        pvc_mounts: folder.join("pvc"),
        part_size: ByteSize::kib(64),
        grain: 16 << 10,
        give_up_after: Duration::from_secs(3),
        tries: 3,
        backoff: Duration::from_millis(1),
        stall_timeout: Duration::from_millis(500),
        ..PullerConfig::new(folder.join("cache"), ByteSize::mib(64))
    }
}

pub(crate) fn s3_entry(store: &Store) -> String {
    entry(&store.endpoint(), KEY_ID, SECRET, "")
}

fn entry(endpoint: &str, key_id: &str, secret: &str, certificate: &str) -> String {
    serde_json::json!({
        "type": "s3", "endpoint_url": endpoint, "region": "us-east-1", "default_bucket": BUCKET,
        "access_key_id": key_id, "secret_access_key": secret, "certificate": certificate,
    })
    .to_string()
}

/// A store, a puller that knows it as `k`, and the folder of both.
struct Bench {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    puller: Arc<Puller>,
    metrics: Metrics,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PullerConfig)) -> Self {
        let (folder, store, metrics) = (tempfile::tempdir().expect("a folder"), Store::start().await, Metrics::default());
        let mut config = config(folder.path(), &[("k", &s3_entry(&store))]);
        change(&mut config);
        let puller = Puller::open(config, Clock::system(), metrics.clone()).await.expect("opens");
        Bench { folder, store, puller, metrics }
    }

    async fn restart(&mut self) {
        let config = config(self.folder.path(), &[]);
        self.puller = Puller::open(config, Clock::system(), self.metrics.clone()).await.expect("opens");
    }

    async fn fetch(&self, path: &str) -> Result<crate::Pinned, PullError> {
        self.puller.fetch(&model("m", "k", path), Urgency::Waited).await
    }

    /// What staging holds, once all that is being removed is gone.
    async fn staged(&self) -> usize {
        let staging = self.folder.path().join("cache/staging");
        for _ in 0..1000 {
            if std::fs::read_dir(&staging).expect("there").count() == 0 {
                return 0;
            }
            // Removal runs on another thread; every turn gives it one.
            let _ = tokio::task::spawn_blocking(std::thread::yield_now).await;
        }
        std::fs::read_dir(&staging).expect("there").count()
    }
}

/// Bytes that differ at every offset that matters.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("read").path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).expect("under it").to_str().expect("UTF-8").to_owned();
                found.push((name, std::fs::read(&path).expect("read")));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

#[tokio::test]
async fn a_folder_of_objects_arrives_byte_for_byte_and_is_not_asked_for_again() {
    let mut bench = Bench::new().await;
    let mut expected: Vec<(String, Vec<u8>)> = [
        ("config.pbtxt", noise(500, 1)),
        ("1/model.onnx", noise(300_000, 2)),
        ("1/exact", noise(65_536, 3)),
        ("1/one more", noise(65_537, 4)),
        ("empty/__init__.py", Vec::new()),
        ("names/a b+c%20d&e=f?g#h.txt", noise(10, 5)),
        ("names/größe-模型", noise(10, 6)),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect();
    expected.sort();
    for (name, bytes) in &expected {
        bench.store.put(&format!("models/deep/{name}"), bytes.clone());
    }
    bench.store.put("models/deep/", Vec::new()); // the mark of a folder
    bench.store.put("models/deep-er/x", noise(9, 7));

    let mut steps = bench.puller.progress();
    let pinned = bench.fetch("/models/deep").await.expect("there");
    assert!(!pinned.from_disk && pinned.model.ends_with("deep"));
    assert!(files(&pinned.model) == expected, "other bytes arrived");
    let total: usize = expected.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(pinned.size, ByteSize(total as u64));
    assert_eq!(bench.metrics.count(Counter::FetchedBytes, &[]), total as u64);
    assert_eq!(bench.metrics.count(Counter::FetchedObjects, &[]), 7);
    assert_eq!(bench.store.count("onnx bytes="), 5, "300,000 bytes are five ranges of 64 KiB: {:?}", bench.store.requests());
    let mut seen = Vec::new();
    while let Ok(step) = steps.try_recv() {
        seen.push((step.stage, step.bytes));
    }
    assert_eq!(seen[..2], [(Stage::Listing, ByteSize(0)), (Stage::Listed, ByteSize(0))]);
    assert_eq!(seen[seen.len() - 2..], [(Stage::Verifying, pinned.size), (Stage::Done, pinned.size)]);
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1));

    let requests = bench.store.requests().len();
    assert!(bench.fetch("/models/deep").await.expect("there").from_disk);
    drop(pinned);
    bench.restart().await;
    let again = bench.fetch("/models/deep").await.expect("there");
    assert!(again.from_disk && files(&again.model) == expected);
    assert_eq!(bench.store.requests().len(), requests, "the store was asked again");
    assert_eq!(bench.metrics.count(Counter::DiskHits, &[]), 2);
}

#[tokio::test]
async fn a_single_object_keeps_its_name_and_brings_its_schema() {
    let bench = Bench::new().await;
    bench.store.put("a/m.onnx", noise(200_000, 1));
    bench.store.put("a/m.onnx.bak", noise(5, 2));
    bench.store.put("b/m.onnx", b"{}".to_vec());
    bench.store.put("b/s.json", b"[]".to_vec());
    for (schema, name, text) in [("b/s.json", "s.json", "[]"), ("b/m.onnx", "_schema.json", "{}")] {
        let mut wanted = model(name, "k", "a/m.onnx");
        wanted.schema_path = Some(schema.into());
        let pinned = bench.puller.fetch(&wanted, Urgency::Waited).await.expect("both there");
        assert_eq!((pinned.size, std::fs::read(&pinned.model).expect("a file")), (ByteSize(200_000), noise(200_000, 1)));
        let path = pinned.schema.expect("asked for");
        assert_eq!((path.file_name().and_then(|n| n.to_str()), std::fs::read_to_string(&path).expect("a file")), (Some(name), text.to_owned()));
    }
    let mut wanted = model("none", "k", "a/m.onnx");
    wanted.schema_path = Some("b/none.json".into());
    let fault = bench.puller.fetch(&wanted, Urgency::Waited).await.expect_err("no schema");
    assert!(matches!(&fault, PullError::NotFound(text) if text.contains("b/none.json")), "{fault:?}");
}

#[tokio::test]
async fn a_listing_is_read_to_its_last_page() {
    let bench = Bench::new().await;
    for n in 0..2_001 {
        bench.store.put(&format!("many/{n:05}"), format!("{n}").into_bytes());
    }
    let pinned = bench.fetch("many").await.expect("there");
    assert_eq!(bench.store.count("list-type"), 3, "pages of 1,000, 1,000 and 1");
    let found = files(&pinned.model);
    assert_eq!(found.len(), 2_001);
    assert!(found.iter().enumerate().all(|(n, (name, bytes))| *name == format!("{n:05}") && *bytes == n.to_string().as_bytes()));
}

#[tokio::test]
async fn siblings_that_start_alike_do_not_hide_a_model() {
    let bench = Bench::new().await;
    for n in 0..1_500 {
        bench.store.put(&format!("m-{n:05}"), vec![0]);
    }
    bench.store.put("m/x", b"child".to_vec());
    assert_eq!(files(&bench.fetch("m").await.expect("there").model), [("x".to_owned(), b"child".to_vec())]);
    bench.store.put("m-", b"single".to_vec());
    let single = bench.puller.fetch(&model("single", "k", "m-"), Urgency::Waited).await.expect("there");
    assert_eq!(std::fs::read(single.model).expect("a file"), b"single");
}

#[tokio::test]
async fn an_empty_path_is_the_whole_bucket() {
    let bench = Bench::new().await;
    bench.store.put("a", b"1".to_vec());
    bench.store.put("b/c", b"2".to_vec());
    let pinned = bench.fetch("").await.expect("there");
    assert!(pinned.model.ends_with("_model"));
    assert_eq!(files(&pinned.model), [("a".to_owned(), b"1".to_vec()), ("b/c".to_owned(), b"2".to_vec())]);
}

#[tokio::test]
async fn passing_trouble_is_overcome() {
    let (old, new) = (noise(300_000, 1), noise(310_000, 2));
    for (case, part, trouble, times, expected) in [
        ("a busy listing", "list-type", Trouble::Status(503, "SlowDown"), 2, &old),
        ("a busy object", "m.onnx", Trouble::Status(500, "InternalError"), 2, &old),
        ("a broken body", "m.onnx", Trouble::Truncate(40_000), 4, &old),
        ("a body that stalls", "m.onnx", Trouble::Stall, 1, &old),
        ("an object replaced after the listing", "m.onnx", Trouble::Replace(new.clone()), 1, &new),
        ("a garbled small object", "small", Trouble::Garble, 1, &old),
        ("an object gone and back", "m.onnx", Trouble::Status(404, "NoSuchKey"), 1, &old),
    ] {
        let bench = Bench::new().await;
        bench.store.put("d/m.onnx", old.clone());
        bench.store.put("d/small", b"small".to_vec());
        bench.store.trouble(part, trouble, times);
        let pinned = bench.fetch("d").await.unwrap_or_else(|fault| panic!("{case}: {fault}"));
        let found = files(&pinned.model);
        assert!(found[0].1 == *expected && found[1].1 == b"small", "{case}: other bytes arrived");
        assert_eq!(bench.staged().await, 0, "{case}");
    }
}

#[tokio::test]
async fn a_broken_body_goes_on_where_it_broke() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(60_000, 1));
    bench.store.trouble("/m", Trouble::Truncate(20_000), 1);
    let pinned = bench.fetch("m").await.expect("there");
    assert!(std::fs::read(&pinned.model).expect("a file") == noise(60_000, 1));
    let gets: Vec<String> = bench.store.requests().into_iter().filter(|line| !line.contains("list-type")).collect();
    assert_eq!(gets, ["GET /bucket/m bytes=0-65535", "GET /bucket/m bytes=20000-59999"]);
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_in_words_that_help() {
    let dead = Store::start().await.endpoint().replace("127.0.0.1", "127.0.0.2"); // nobody listens there
    for (case, path, entry_of, trouble, kind, words) in [
        ("nothing matches", "none/here", None, None, "NotFound", &["none/here", "bucket bucket", "http://127.0.0.1"][..]),
        ("only a mark", "marked", None, None, "NotFound", &["marked"]),
        ("no bucket", "m", Some(("bucket", "absent")), None, "NotFound", &["bucket absent at http://127.0.0.1"]),
        ("wrong key", "m", Some(("access_key_id", "WRONG")), None, "Denied", &["403 InvalidAccessKeyId", "storage config k", "access_key_id"]),
        ("nobody there", "m", Some(("endpoint_url", dead.as_str())), None, "Unavailable", &["127.0.0.2", "refused", "tried 3 times"]),
        ("always busy", "m", None, Some(("list-type", Trouble::Status(503, "SlowDown"))), "Unavailable", &["HTTP 503 SlowDown", "tried"]),
        ("object denied", "m", None, Some(("/m", Trouble::Status(403, "AccessDenied"))), "Denied", &["\"m\"", "AccessDenied"]),
        ("always stalls", "m", None, Some(("/m", Trouble::Stall)), "Unavailable", &["no byte came for", "after 500 B of 1000 B", "tried 3 times"]),
        ("always garbled", "m", None, Some(("/m", Trouble::Garble)), "Corrupt", &["MD5", "\"m\"", "tried 3 times"]),
        ("no S3", "m", None, Some(("list-type", Trouble::Page("<html>welcome</html>"))), "Config", &["no S3 listing", "endpoint_url"]),
        ("a key that climbs", "climbs", None, None, "Config", &["climbs/../x", ". or .."]),
        ("a key with a control character", "bell", None, None, "Config", &["control character", "bell/"]),
        ("a path that climbs", "m/../x", None, None, "Config", &["m/../x"]),
        ("no such key", "m", Some(("", "")), None, "Config", &["Did not find storage config for key k", "has no keys"]),
    ] {
        let bench = Bench::new().await;
        bench.store.put("m", noise(1000, 1));
        bench.store.put("marked/", Vec::new());
        bench.store.put("climbs/../x", vec![1]);
        bench.store.put("bell/\u{7}", vec![1]);
        let file = bench.folder.path().join("storage-config/k");
        match entry_of {
            None => {}
            Some(("", _)) => std::fs::remove_file(&file).expect("there"),
            Some((field, value)) => {
                let mut entry: serde_json::Value = serde_json::from_str(&s3_entry(&bench.store)).expect("sound");
                entry[field] = value.into();
                std::fs::write(&file, entry.to_string()).expect("written");
            }
        }
        if let Some((part, trouble)) = trouble {
            bench.store.trouble(part, trouble, 1000);
        }
        let begin = Clock::system().now();
        let fault = bench.fetch(path).await.expect_err(case);
        let took = Clock::system().now() - begin;
        let text = fault.to_string();
        assert!(format!("{fault:?}").starts_with(kind), "{case}: {fault:?}");
        assert!(words.iter().all(|word| text.contains(word)), "{case}: {text}");
        assert!(!text.contains(SECRET) && !text.contains(KEY_ID) && !text.contains("WRONG"), "{case}: {text}");
        assert!(took < Duration::from_secs(15), "{case} took {took:?}");
        assert_eq!(bench.staged().await, 0, "{case}");
        assert!(!bench.puller.on_disk(&model("m", "k", path)), "{case}");
    }
}

#[tokio::test]
async fn an_object_that_changes_all_the_time_is_refused() {
    let bench = Bench::new().await;
    bench.store.put("d/m", noise(100, 0));
    for n in 1..=3 {
        bench.store.trouble("/d/m", Trouble::Replace(noise(100, n)), 1);
    }
    let fault = bench.fetch("d").await.expect_err("never the same");
    assert!(matches!(&fault, PullError::Corrupt(text) if text.contains("tried 3 times")), "{fault:?}");
    let pinned = bench.fetch("d").await.expect("at rest now");
    assert_eq!(std::fs::read(pinned.model.join("m")).expect("a file"), noise(100, 3));
}

#[tokio::test]
async fn a_store_whose_etags_are_no_digests_can_be_told_so() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(1000, 1));
    bench.store.trouble("/m", Trouble::Garble, 1000); // as if the ETag were of other bytes
    let mut wanted: Registration = model("m", "k", "m");
    let parameters = Arc::new([("verify".to_owned(), "length".to_owned())].into());
    wanted.class = Arc::new(Class { parameters, ..Class::clone(&wanted.class) });
    assert_eq!(bench.puller.fetch(&wanted, Urgency::Waited).await.expect("lengths are right").size, ByteSize(1000));
    assert_ne!(etag(&noise(1000, 1)), etag(&noise(1000, 2)));
}

#[tokio::test]
async fn many_callers_share_one_download_which_goes_on_when_one_gives_up() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(1000, 1));
    bench.store.trouble("/m", Trouble::Hold, 1);
    let wanted = model("m", "k", "m");
    let mut impatient = Box::pin(bench.puller.fetch(&wanted, Urgency::Waited));
    assert!(futures::poll!(&mut impatient).is_pending());
    let others: Vec<_> = (0..10)
        .map(|_| {
            let (puller, wanted) = (Arc::clone(&bench.puller), wanted.clone());
            tokio::spawn(async move { puller.fetch(&wanted, Urgency::Waited).await })
        })
        .collect();
    drop(impatient); // it began the download
    bench.store.let_go(1);
    for other in others {
        assert_eq!(other.await.expect("no panic").expect("there").size, ByteSize(1000));
    }
    assert_eq!(bench.store.count("/m"), 1, "{:?}", bench.store.requests());
}

#[tokio::test]
async fn a_model_forgotten_while_it_is_fetched_does_not_stay() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(1000, 1));
    bench.store.trouble("/m", Trouble::Hold, 1);
    let wanted = model("m", "k", "m");
    let mut waiting = Box::pin(bench.puller.fetch(&wanted, Urgency::Waited));
    assert!(futures::poll!(&mut waiting).is_pending());
    bench.puller.forget(&wanted);
    bench.store.let_go(1);
    let pinned = waiting.await.expect("whoever waits still gets it");
    assert!(pinned.model.exists());
    drop(pinned);
    assert!(!bench.puller.on_disk(&wanted));

    bench.store.trouble("list-type", Trouble::Hold, 1);
    bench.store.trouble("/m", Trouble::Status(403, "AccessDenied"), 2);
    let mut waiting = Box::pin(bench.puller.fetch(&wanted, Urgency::Waited));
    assert!(futures::poll!(&mut waiting).is_pending());
    bench.puller.forget(&wanted);
    assert_eq!(bench.puller.unwanted(), 1);
    bench.store.let_go(1);
    waiting.await.map(|_| ()).expect_err("denied");
    assert_eq!(bench.puller.unwanted(), 0, "a download that failed is remembered");
}

#[tokio::test]
async fn a_download_that_starts_over_is_not_in_its_own_way() {
    let bench = Bench::with(|config| config.disk_budget = ByteSize::kib(100)).await;
    let idle = model("idle", "k", "idle");
    bench.store.put("idle", noise(30 << 10, 1));
    drop(bench.puller.fetch(&idle, Urgency::Waited).await.expect("fits"));
    bench.store.put("m/large", noise(60 << 10, 2));
    bench.store.put("m/small", noise(1 << 10, 2));
    for n in 3..5 {
        bench.store.trouble("/large", Trouble::Replace(noise(60 << 10, n)), 1);
    }
    let pinned = bench.fetch("m").await.expect("the third time it is at rest");
    assert!(files(&pinned.model)[0].1 == noise(60 << 10, 4));
    assert!(bench.puller.on_disk(&idle), "nothing had to go for it");
}

#[tokio::test]
async fn a_model_larger_than_the_disk_budget_is_refused_before_its_first_byte() {
    let bench = Bench::with(|config| config.disk_budget = ByteSize::kib(100)).await;
    bench.store.put("large", noise(200 << 10, 1));
    bench.store.put("small", noise(60 << 10, 2));
    let held = bench.puller.fetch(&model("small", "k", "small"), Urgency::Waited).await.expect("fits");
    let fault = bench.puller.fetch(&model("large", "k", "large"), Urgency::Waited).await.expect_err("too large");
    assert_eq!(fault, PullError::DiskFull { need: ByteSize::kib(200), free: ByteSize::kib(40), budget: ByteSize::kib(100) });
    assert_eq!(fault.to_string(), "needs 200 KiB on disk, 40 KiB of 100 KiB can be freed: raise the disk budget or use a smaller model");
    assert_eq!(bench.metrics.count(Counter::FetchedBytes, &[]), 60 << 10, "the large one's bytes were left where they are");
    drop(held);
}

#[tokio::test]
async fn the_least_recently_used_model_makes_room() {
    let bench = Bench::with(|config| config.disk_budget = ByteSize::kib(100)).await;
    let models: Vec<Registration> = ["a", "b", "c"].map(|name| model(name, "k", name)).into();
    for (n, name) in ["a", "b", "c"].iter().enumerate() {
        bench.store.put(name, noise(40 << 10, n as u64));
    }
    let a = bench.puller.fetch(&models[0], Urgency::Waited).await.expect("fits");
    drop(bench.puller.fetch(&models[1], Urgency::Waited).await.expect("fits"));
    drop(bench.puller.fetch(&models[2], Urgency::Waited).await.expect("fits once b is gone: a is pinned"));
    let here: Vec<bool> = models.iter().map(|model| bench.puller.on_disk(model)).collect();
    assert_eq!(here, [true, false, true]);
    drop(a);
}

#[tokio::test]
async fn a_file_that_was_cut_on_disk_is_fetched_again() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(1000, 1));
    let path = bench.fetch("m").await.expect("there").model.clone();
    std::fs::remove_file(&path).expect("there");
    std::fs::write(&path, b"cut").expect("written");
    assert!(!bench.puller.on_disk(&model("m", "k", "m")));
    let pinned = bench.fetch("m").await.expect("there");
    assert!(!pinned.from_disk && std::fs::read(&pinned.model).expect("a file") == noise(1000, 1));
}

#[tokio::test]
async fn a_storage_key_that_now_means_another_bucket_is_fetched_anew_and_a_lost_one_is_not() {
    let bench = Bench::new().await;
    bench.store.put("m", noise(1000, 1));
    drop(bench.fetch("m").await.expect("there"));
    let file = bench.folder.path().join("storage-config/k");
    std::fs::remove_file(&file).expect("there");
    assert!(bench.fetch("m").await.expect("the files are here, whatever became of the key").from_disk);
    let other = Store::start().await;
    other.put("m", noise(1000, 2));
    std::fs::write(&file, s3_entry(&other)).expect("written");
    let pinned = bench.fetch("m").await.expect("there");
    assert!(!pinned.from_disk && std::fs::read(&pinned.model).expect("a file") == noise(1000, 2));
}

#[tokio::test]
async fn a_public_bucket_is_read_without_a_signature() {
    let (folder, store) = (tempfile::tempdir().expect("a folder"), Store::public().await);
    store.put("m", noise(1000, 1));
    let config = config(folder.path(), &[("k", &entry(&store.endpoint(), "", "", ""))]);
    let puller = Puller::open(config, Clock::system(), Metrics::default()).await.expect("opens");
    assert_eq!(puller.fetch(&model("m", "k", "m"), Urgency::Waited).await.expect("public").size, ByteSize(1000));
}

#[tokio::test]
async fn a_store_is_trusted_by_the_certificate_of_its_entry_and_not_otherwise() {
    let authority = rcgen::CertifiedIssuer::self_signed(
        {
            let mut about = rcgen::CertificateParams::default();
            about.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            about
        },
        rcgen::KeyPair::generate().expect("a key"),
    )
    .expect("an authority");
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name").signed_by(&key, &authority).expect("signed");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a sound pair");
    let store = Store::over_tls(tokio_rustls::TlsAcceptor::from(Arc::new(server))).await;
    store.put("m", noise(200_000, 1));

    let folder = tempfile::tempdir().expect("a folder");
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let trusted = entry(&store.endpoint(), KEY_ID, SECRET, &authority.pem());
    let distrusted = entry(&store.endpoint(), KEY_ID, SECRET, &stranger.cert.pem());
    let broken = entry(&store.endpoint(), KEY_ID, SECRET, "no PEM");
    let config = config(folder.path(), &[("trusted", &trusted), ("distrusted", &distrusted), ("broken", &broken)]);
    let puller = Puller::open(config, Clock::system(), Metrics::default()).await.expect("opens");

    let pinned = puller.fetch(&model("a", "trusted", "m"), Urgency::Waited).await.expect("trusted");
    assert!(std::fs::read(&pinned.model).expect("a file") == noise(200_000, 1));
    let fault = puller.fetch(&model("b", "distrusted", "m"), Urgency::Waited).await.expect_err("not trusted");
    assert!(matches!(&fault, PullError::Config(text) if text.contains("certificate")), "{fault:?}");
    let fault = puller.fetch(&model("c", "broken", "m"), Urgency::Waited).await.expect_err("no certificate");
    assert!(matches!(&fault, PullError::Config(text) if text.contains("storage config broken") && text.contains("PEM")), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_work_is_refused_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut faulty = config(folder.path(), &[]);
    faulty.tries = 0;
    assert!(matches!(Puller::open(faulty, Clock::system(), Metrics::default()).await.map(|_| ()), Err(PullError::Config(_))));
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let faulty = PullerConfig { cache: file.clone(), ..config(folder.path(), &[]) };
    match Puller::open(faulty, Clock::system(), Metrics::default()).await.map(|_| ()) {
        Err(PullError::Disk(text)) => assert!(text.contains(&file.display().to_string()), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// A puller over a store in memory, on a clock that the test moves.
async fn over_memory(folder: &Path, change: impl FnOnce(&mut PullerConfig)) -> (Arc<Puller>, Arc<MemoryStore>) {
    let clock = Clock::system();
    let store = MemoryStore::new(clock.clone());
    let mut config = config(folder, &[("k", &entry("http://memory:1", KEY_ID, SECRET, ""))]);
    change(&mut config);
    let stores = Arc::clone(&store);
    (Puller::open_with(config, clock, Metrics::default(), stores).await.expect("opens"), store)
}

#[tokio::test(start_paused = true)]
async fn a_model_and_its_schema_arrive_over_one_request_at_a_time() {
    for urgency in [Urgency::Background, Urgency::Waited] {
        let folder = tempfile::tempdir().expect("a folder");
        let (puller, store) = over_memory(folder.path(), |config| config.requests = 1).await;
        store.put("a/m", noise(300_000, 1));
        store.put("b/s.json", b"[]".to_vec());
        // And after the store was busy once, which leaves one turn for all.
        store.trouble(|request| request.gets("a/m"), memory::Trouble::Busy(None), 1);
        let mut wanted = model("m", "k", "a/m");
        wanted.schema_path = Some("b/s.json".into());
        let pinned = tokio::time::timeout(Duration::from_secs(60), puller.fetch(&wanted, urgency)).await.expect("nobody waits for itself");
        assert_eq!(pinned.expect("there").size, ByteSize(300_000));
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_for_nobody_ends_when_its_model_is_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let (puller, store) = over_memory(folder.path(), |_| {}).await;
    store.put("m", noise(300_000, 1));
    store.trouble(|request| request.gets("m"), memory::Trouble::Hold, usize::MAX);
    let wanted = model("m", "k", "m");
    let (caller, asked) = (Arc::clone(&puller), wanted.clone());
    let caller = tokio::spawn(async move { caller.fetch(&asked, Urgency::Waited).await });
    store.asked(|request| request.gets("m")).await;
    puller.forget(&wanted);
    assert_eq!(puller.downloads().snapshot().len(), 1, "somebody waits for it");
    caller.abort();
    assert!(caller.await.expect_err("given up").is_cancelled());
    let mut changes = puller.downloads().changes();
    while !puller.downloads().snapshot().is_empty() {
        changes.changed().await.expect("the board lives");
    }
    assert_eq!((puller.unwanted(), store.at_once()), (0, 0));
    store.peace();
    assert_eq!(puller.fetch(&wanted, Urgency::Waited).await.expect("wanted again").size, ByteSize(300_000));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_asked_for_a_checksum_leaves_nothing_unverified() {
    let folder = tempfile::tempdir().expect("a folder");
    let (puller, store) = over_memory(folder.path(), |_| {}).await;
    store.put("m", noise(300_000, 1));
    let asks = |request: &memory::Request| request.op == memory::Op::Sums;
    store.trouble(asks, memory::Trouble::Away, 100);
    let wanted = model("m", "k", "m");
    let fault = puller.fetch(&wanted, Urgency::Waited).await.expect_err("it was not checked");
    assert!(matches!(fault, PullError::Unavailable(_)), "{fault:?}");
    store.peace();
    let (before, pinned) = (store.served("m"), puller.fetch(&wanted, Urgency::Waited).await.expect("there"));
    assert_eq!(&*pinned.checked, "crc32c");
    assert!(store.served("m") - before <= 64 << 10, "what was there is fetched again: {}", store.served("m") - before);
    puller.forget(&wanted);
    drop(pinned);
    // One that may not be asked is another matter, and says so.
    store.trouble(asks, memory::Trouble::Denied, 100);
    store.put("n", noise(300_000, 2));
    assert_eq!(&*puller.fetch(&model("n", "k", "n"), Urgency::Waited).await.expect("there").checked, "lengths, content unverified");
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_without_checks_is_no_answer_for_who_wants_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let (puller, store) = over_memory(folder.path(), |_| {}).await;
    store.put("m", noise(300_000, 1));
    let mut loose: Registration = model("loose", "k", "m");
    let parameters = Arc::new([("verify".to_owned(), "length".to_owned())].into());
    loose.class = Arc::new(Class { parameters, ..Class::clone(&loose.class) });
    let loose = puller.fetch(&loose, Urgency::Waited).await.expect("there");
    let strict = puller.fetch(&model("strict", "k", "m"), Urgency::Waited).await.expect("there");
    assert_eq!((&*loose.checked, &*strict.checked), ("lengths, content unverified", "crc32c"));
    assert_eq!((loose.digest.is_some(), strict.digest.is_some()), (false, true));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_bytes_that_another_download_fetches_makes_that_as_urgent() {
    let folder = tempfile::tempdir().expect("a folder");
    let (puller, store) = over_memory(folder.path(), |_| {}).await;
    store.put("m", noise(300_000, 1));
    store.put("other", noise(300_000, 2));
    // The first range is how an object is found.
    let beyond = |request: &memory::Request| request.op == memory::Op::Get && request.range.as_ref().is_some_and(|range| range.start > 0);
    store.trouble(beyond, memory::Trouble::Hold, usize::MAX);
    let fetch = |name: &str, path: &str, urgency| {
        let (puller, wanted) = (Arc::clone(&puller), model(name, "k", path));
        tokio::spawn(async move { puller.fetch(&wanted, urgency).await })
    };
    let ahead = [fetch("ahead", "m", Urgency::Background), fetch("apart", "other", Urgency::Background)];
    store.asked(|request| beyond(request) && request.key == "m").await;
    store.asked(|request| beyond(request) && request.key == "other").await;
    // Four ranges of each, and nothing else.
    assert_eq!((puller.requests().under_way.background, puller.requests().under_way.waited), (8, 0));
    let waiting = fetch("waiting", "m", Urgency::Waited);
    let mut turns = 0;
    while puller.requests().under_way.background > 4 {
        turns += 1;
        assert!(turns < 100_000, "nobody hurries: {:?}", puller.requests());
        // What it needs runs on threads that may block.
        let _ = tokio::task::spawn_blocking(std::thread::yield_now).await;
    }
    assert_eq!(puller.requests().under_way.background, 4, "those of the other object");
    store.peace();
    store.release();
    for fetched in ahead.into_iter().chain([waiting]) {
        assert_eq!(fetched.await.expect("ran").expect("there").size, ByteSize(300_000));
    }
}
