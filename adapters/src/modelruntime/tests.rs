//! The client against a scripted server of the contract, over sockets: its books are tested where they are kept.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use berth_proto::mmesh::model_runtime_server::{self, ModelRuntimeServer as ServiceOf};
use berth_proto::mmesh::runtime_status_response::Status as Word;
use berth_telemetry::{HostNet, Net as _};
use berth_types::{ByteSize, ModelFormat, Placement, StorageRef};
use bytes::Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use super::*;
use crate::conformance::{BROKEN, Subject, raw_request, runtime_suite};
use crate::fake::Script;
use crate::{FakeRuntime, IndexEntry, LoadFault};

/// A folder, a server over it, and the client.
struct Rig {
    folder: tempfile::TempDir,
    client: ModelRuntimeServer,
    clock: Clock,
    _server: DropGuard,
}

fn config(folder: &Path) -> ModelRuntimeConfig {
    ModelRuntimeConfig {
        name: "test".into(),
        folder: folder.join("models"),
        capacity: None,
        load_concurrency: None,
        load_timeout: None,
        start_timeout: Duration::from_secs(30),
        size_percent: 125,
        max_concurrency: None,
    }
}

fn artifacts(folder: &Path) -> Artifacts {
    let model = folder.join("files");
    std::fs::write(&model, "0123456789").expect("a file");
    Artifacts { model, schema: None, size: ByteSize(10) }
}

fn named(id: &str) -> Registration {
    let storage = StorageRef { key: None, parameters: Arc::default(), path: "some/model.bin".into(), schema_path: None };
    let format = ModelFormat { name: "any".into(), version: None };
    Registration::new(ModelId::new(id).expect("valid"), format, Placement::Format { protocol: None }, storage, None)
}

async fn entrance(unix: Option<PathBuf>) -> (Entrance, String) {
    match unix {
        Some(path) => (Entrance::Unix(HostNet.listen_unix(&path).expect("a socket")), format!("unix:{}", path.display())),
        None => {
            let listener = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a port");
            let addr = listener.local_addr().expect("bound");
            (Entrance::Tcp(vec![listener]), addr.to_string())
        }
    }
}

fn connect(endpoint: &str, clock: &Clock) -> Server {
    let config = berth_upstream::Config { connections: 1, ..berth_upstream::Config::default() };
    Server::new(endpoint.parse().expect("an endpoint"), config, clock.clone(), HostNet::shared())
}

async fn beside_a_fake(fake: &FakeRuntime, unix: bool) -> Rig {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::system());
    let (entrance, endpoint) = entrance(unix.then(|| folder.path().join("socket"))).await;
    let served = ServedConfig { models: folder.path().join("models"), capacity: ByteSize::mib(64), max_message: 1 << 20 };
    let stop = CancellationToken::new();
    tokio::spawn(serve_contract(Arc::new(fake.clone()), served, entrance, clock.clone(), stop.clone().cancelled_owned()));
    let client = ModelRuntimeServer::start(config(folder.path()), connect(&endpoint, &clock), clock.clone()).await.expect("it is ready");
    Rig { folder, client, clock, _server: stop.drop_guard() }
}

#[tokio::test]
async fn both_sides_of_the_contract_together_keep_that_of_every_runtime() {
    for (unix, script) in [(false, Script::default()), (true, Script::default().loading_for(Duration::from_millis(30)))] {
        let fake = FakeRuntime::following(Clock::system(), script);
        fake.script(BROKEN, Script::default().failing(100, LoadFault::BadModel));
        let Rig { folder, client, clock, _server } = beside_a_fake(&fake, unix).await;
        let raw = Bytes::from_static(&[1, 0, 0, 0]);
        runtime_suite(&Subject {
            runtime: client,
            clock,
            format: "any",
            good: artifacts(folder.path()),
            bad: artifacts(folder.path()),
            request: raw_request(&[("x", "INT32", &[1], &raw)]),
            answer: vec![("x".to_owned(), "INT32".to_owned(), vec![1], raw)],
        })
        .await;
        assert_eq!(fake.violations(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn what_the_server_says_of_itself_counts_where_nothing_else_was_said() {
    let fake = FakeRuntime::new(Clock::system());
    let rig = beside_a_fake(&fake, false).await;
    let info = rig.client.info();
    assert_eq!((info.capacity.clone(), info.load_concurrency.get()), (Some(Footprint::host(ByteSize::mib(64))), 4));
    assert_eq!((info.load_timeout, &*info.version), (Duration::from_secs(60), "1"));
    assert_eq!(rig.client.methods().get("inference.GRPCInferenceService/ModelInfer"), Some(&vec![1]));
    assert!(!rig.client.any_method());
}

/// What one call is to be answered.
type Answers<T> = Mutex<VecDeque<Result<T, Status>>>;

/// A server that answers as it is told, and remembers what it was asked.
#[derive(Default)]
struct Scripted {
    loads: Answers<LoadModelResponse>,
    unloads: Answers<UnloadModelResponse>,
    sizes: Answers<ModelSizeResponse>,
    predictions: Answers<PredictModelSizeResponse>,
    statuses: Mutex<VecDeque<Word>>,
    limits: bool,
    /// Loads do not end.
    hangs: bool,
    asked: Mutex<Vec<String>>,
    last_load: Mutex<LoadModelRequest>,
    cancelled: Mutex<usize>,
    /// Told when something of this has changed.
    events: watch::Sender<()>,
}

impl Scripted {
    fn note(&self, what: &str, model: &str) {
        self.asked.lock().push(format!("{what} {model}").trim().to_owned());
        self.events.send_replace(());
    }

    fn asked(&self, what: &str) -> usize {
        self.asked.lock().iter().filter(|line| line.starts_with(what)).count()
    }
}

struct Service(Arc<Scripted>);

fn next<T: Default>(answers: &Answers<T>) -> Result<Response<T>, Status> {
    answers.lock().pop_front().unwrap_or_else(|| Ok(T::default())).map(Response::new)
}

/// Counts its end.
struct Counted(Arc<Scripted>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.cancelled.lock() += 1;
        self.0.events.send_replace(());
    }
}

#[tonic::async_trait]
impl model_runtime_server::ModelRuntime for Service {
    async fn load_model(&self, request: Request<LoadModelRequest>) -> Result<Response<LoadModelResponse>, Status> {
        let request = request.into_inner();
        self.0.note("load", &request.model_id);
        *self.0.last_load.lock() = request;
        if self.0.hangs {
            let _ends = Counted(Arc::clone(&self.0));
            std::future::pending::<()>().await;
        }
        next(&self.0.loads)
    }

    async fn unload_model(&self, request: Request<UnloadModelRequest>) -> Result<Response<UnloadModelResponse>, Status> {
        self.0.note("unload", &request.into_inner().model_id);
        next(&self.0.unloads)
    }

    async fn predict_model_size(&self, request: Request<PredictModelSizeRequest>) -> Result<Response<PredictModelSizeResponse>, Status> {
        self.0.note("predict", &request.into_inner().model_id);
        next(&self.0.predictions)
    }

    async fn model_size(&self, request: Request<ModelSizeRequest>) -> Result<Response<ModelSizeResponse>, Status> {
        self.0.note("size", &request.into_inner().model_id);
        next(&self.0.sizes)
    }

    async fn runtime_status(&self, _request: Request<RuntimeStatusRequest>) -> Result<Response<RuntimeStatusResponse>, Status> {
        self.0.note("status", "");
        let status = self.0.statuses.lock().pop_front().unwrap_or(Word::Ready) as i32;
        Ok(Response::new(RuntimeStatusResponse {
            status,
            capacity_in_bytes: 1 << 30,
            max_loading_concurrency: 1,
            model_loading_timeout_ms: 60_000,
            default_model_size_in_bytes: 1 << 20,
            limit_model_concurrency: self.0.limits,
            ..RuntimeStatusResponse::default()
        }))
    }
}

async fn serve(script: &Arc<Scripted>) -> (String, DropGuard) {
    let listener = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let endpoint = listener.local_addr().expect("bound").to_string();
    let stop = CancellationToken::new();
    let (service, ends) = (ServiceOf::new(Service(Arc::clone(script))), stop.clone());
    let listener = listener.into_tokio();
    let accept = futures::stream::poll_fn(move |cx| listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream))));
    let serving = async move { tonic::transport::Server::builder().add_service(service).serve_with_incoming(accept).await };
    // Ended as a crash ends it.
    tokio::spawn(async move { ends.run_until_cancelled(serving).await.map(drop) });
    (endpoint, stop.drop_guard())
}

async fn beside(script: &Arc<Scripted>) -> Rig {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::system());
    let (endpoint, server) = serve(script).await;
    let client = ModelRuntimeServer::start(config(folder.path()), connect(&endpoint, &clock), clock.clone()).await.expect("it is ready");
    Rig { folder, client, clock, _server: server }
}

impl Rig {
    async fn laid_out(&self, id: &str) -> (Registration, LaidOut) {
        let model = named(id);
        let laid_out = self.client.lay_out(&model, &artifacts(self.folder.path())).await.expect("any file will do");
        (model, laid_out)
    }

    async fn load(&self, id: &str) -> Result<Loaded, LoadError> {
        let (model, laid_out) = self.laid_out(id).await;
        self.client.load(&model, &laid_out).await
    }

    async fn entry(&self, id: &str) -> Option<IndexEntry> {
        self.client.index().await.ok()?.get(&named(id).id)
    }

    /// Waits for something that happens elsewhere.
    async fn until(&self, script: &Scripted, what: &str, there: impl AsyncFn() -> bool) {
        let deadline = self.clock.deadline_in(Duration::from_secs(30));
        let mut events = script.events.subscribe();
        let waiting = async {
            while !there().await {
                tokio::select! {
                    changed = events.changed() => changed.expect("the script is there"),
                    () = self.client.index_changed() => {}
                }
            }
        };
        assert!(self.clock.until(deadline, waiting).await.is_some(), "{what} did not happen");
    }
}

fn said<T>(answers: impl IntoIterator<Item = Result<T, Status>>) -> Answers<T> {
    Mutex::new(answers.into_iter().collect())
}

#[tokio::test]
async fn a_server_that_is_starting_is_asked_again_and_one_that_has_failed_is_not() {
    let script = Arc::new(Scripted { statuses: Mutex::new([Word::Starting, Word::Starting].into()), ..Scripted::default() });
    let rig = beside(&script).await;
    assert_eq!((script.asked("status"), rig.entry("m").await), (3, None));

    let script = Arc::new(Scripted { statuses: Mutex::new([Word::Failing].into()), ..Scripted::default() });
    let (folder, (endpoint, _server)) = (tempfile::tempdir().expect("a folder"), serve(&script).await);
    let refused = ModelRuntimeServer::start(config(folder.path()), connect(&endpoint, &rig.clock), rig.clock.clone()).await.err();
    assert!(matches!(&refused, Some(StartError::Unfit { why, .. }) if why.contains("failed to start")), "{refused:?}");
    assert_eq!(script.asked("status"), 1);
}

#[tokio::test]
async fn orders_say_what_the_puller_of_modelmesh_would_say() {
    let script = Arc::new(Scripted::default());
    let rig = beside(&script).await;
    rig.load("m__isvc-1").await.expect("it loads");
    let order = script.last_load.lock().clone();
    let path = rig.folder.path().join("models/m__isvc-1/model.bin");
    assert_eq!((order.model_id.as_str(), order.model_type.as_str()), ("m__isvc-1", "mt:any"));
    assert_eq!((Path::new(&order.model_path), order.model_key.as_str()), (&*path, r#"{"model_type":{"name":"any"},"disk_size_bytes":10}"#));
    assert_eq!(std::fs::read_to_string(path).expect("the server can read it"), "0123456789");
}

#[tokio::test]
async fn answers_to_a_load_say_size_and_concurrency_where_they_count() {
    let answer = |size_in_bytes, max_concurrency| Ok(LoadModelResponse { size_in_bytes, max_concurrency });
    let one = NonZeroU32::MIN;
    for (case, limits, answer, measured, concurrency) in [
        ("both", true, answer(7, 3), Some(7), Some(one.saturating_add(2))),
        ("a limit that it forgot", true, answer(7, 0), Some(7), Some(one)),
        ("a number that it did not announce", false, answer(0, 3), None, None),
    ] {
        let rig = beside(&Arc::new(Scripted { loads: said([answer]), limits, ..Scripted::default() })).await;
        let loaded = rig.load("m").await.expect(case);
        let measured = measured.map(|bytes| Footprint::host(ByteSize(bytes)));
        assert_eq!(loaded, Loaded { measured, max_concurrency: concurrency }, "{case}");
    }
}

#[tokio::test]
async fn a_size_that_comes_late_is_asked_for_and_a_server_without_the_question_is_asked_once() {
    let script = Arc::new(Scripted {
        sizes: said([Ok(ModelSizeResponse { size_in_bytes: 9 }), Err(Status::unimplemented("no"))]),
        predictions: said([Ok(PredictModelSizeResponse { size_in_bytes: 30 }), Err(Status::internal("not now")), Err(Status::unimplemented("no"))]),
        ..Scripted::default()
    });
    let rig = beside(&script).await;
    let (model, files) = (named("m"), artifacts(rig.folder.path()));
    assert_eq!(rig.client.size(&model.id).await, Some(Footprint::host(ByteSize(9))));
    for _ in 0..3 {
        assert_eq!(rig.client.size(&model.id).await, None);
    }
    assert_eq!(script.asked("size"), 2);
    let usual = Some(Footprint::host(ByteSize::mib(1)));
    assert_eq!(rig.client.predict(&model, &files).await, Some(Footprint::host(ByteSize(30))));
    for _ in 0..3 {
        assert_eq!(rig.client.predict(&model, &files).await, usual, "at least the default");
    }
    assert_eq!(script.asked("predict"), 3);
    let large = Artifacts { size: ByteSize::mib(8), ..files };
    assert_eq!(rig.client.predict(&model, &large).await, Some(Footprint::host(ByteSize::mib(10))), "at least what its files have");
}

#[tokio::test]
async fn faults_of_loads_are_told_apart_and_whatever_the_code_says_the_model_is_unloaded() {
    for (status, fault) in [
        (Status::invalid_argument("no such layer"), LoadFault::BadModel),
        (Status::failed_precondition("no such layer"), LoadFault::BadModel),
        (Status::not_found("no such file"), LoadFault::BadModel),
        (Status::internal("it broke"), LoadFault::BadModel),
        (Status::unknown("it broke"), LoadFault::BadModel),
        (Status::resource_exhausted("full"), LoadFault::OutOfMemory),
        (Status::internal("CUDA error: out of memory"), LoadFault::OutOfMemory),
        (Status::deadline_exceeded("slow"), LoadFault::TimedOut),
        (Status::unavailable("later"), LoadFault::NotNow),
        (Status::cancelled("somebody gave up"), LoadFault::NotNow),
    ] {
        let script = Arc::new(Scripted { loads: said([Err(status.clone())]), ..Scripted::default() });
        let rig = beside(&script).await;
        let error = rig.load("m").await.expect_err("it fails");
        assert_eq!((error.fault, error.nothing_attempted), (fault, true), "{status}");
        assert!(error.message.contains(status.message()), "in the server's words: {error}");
        assert_eq!((script.asked("unload m"), rig.entry("m").await), (1, None), "{status}");
    }
}

#[tokio::test]
async fn an_unload_that_is_refused_proves_nothing_and_one_of_what_is_not_there_does() {
    let refused = || Err(Status::internal("not yet"));
    let script = Arc::new(Scripted { unloads: said([refused(), refused(), Err(Status::not_found("what?"))]), ..Scripted::default() });
    let rig = beside(&script).await;
    let model = named("m").id;
    rig.load("m").await.expect("it loads");
    for _ in 0..2 {
        let why = rig.client.unload(&model).await.expect_err("it is refused").0;
        assert!(why.contains("not yet"), "{why}");
        assert_eq!(rig.entry("m").await, Some(IndexEntry::Unloading));
    }
    rig.client.unload(&model).await.expect("the third is good");
    assert_eq!((rig.entry("m").await, script.asked("unload m")), (None, 3));
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_cancelled_at_the_server_and_unloaded_until_that_is_confirmed() {
    let script = Arc::new(Scripted { hangs: true, unloads: said([Err(Status::internal("not yet"))]), ..Scripted::default() });
    let rig = beside(&script).await;
    let (model, laid_out) = rig.laid_out("m").await;
    {
        let loading = rig.client.load(&model, &laid_out);
        let begun = rig.until(&script, "the load", async || script.asked("load m") == 1);
        tokio::select! {
            _ = loading => panic!("it hangs"),
            () = begun => {}
        }
    }
    rig.until(&script, "the cancellation", async || *script.cancelled.lock() == 1).await;
    rig.until(&script, "the proof", async || rig.entry("m").await.is_none()).await;
    assert_eq!((script.asked("unload m"), script.asked("load m")), (2, 1), "once more than was refused");
}

#[tokio::test]
async fn a_server_that_ends_is_asked_until_it_is_ready_and_has_lost_everything() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), Clock::system());
    let socket = folder.path().join("socket");
    let models = folder.path().join("models");
    let fake = FakeRuntime::new(clock.clone());
    let begin = || {
        let entrance = Entrance::Unix(HostNet.listen_unix(&socket).expect("the socket of a dead process is taken over"));
        let served = ServedConfig { models: models.clone(), capacity: ByteSize::mib(64), max_message: 1 << 20 };
        let serving = serve_contract(Arc::new(fake.clone()), served, entrance, clock.clone(), std::future::pending());
        AbortOnDropHandle::new(tokio::spawn(serving))
    };
    let first = begin();
    let endpoint = format!("unix:{}", socket.display());
    let client = ModelRuntimeServer::start(config(folder.path()), connect(&endpoint, &clock), clock.clone()).await.expect("it is ready");
    let rig = Rig { folder, client, clock: clock.clone(), _server: CancellationToken::new().drop_guard() };
    rig.load("m").await.expect("it loads");
    assert_eq!(rig.entry("m").await, Some(IndexEntry::Ready));
    let mut health = rig.client.health().expect("it has one");
    drop(first);
    let mut becomes = async |up: bool| {
        let seen = health.wait_for(|health| (*health == Health::Up) == up);
        clock.until(clock.deadline_in(Duration::from_secs(30)), seen).await.is_some_and(|seen| seen.is_ok())
    };
    assert!(becomes(false).await, "it is seen to be gone");
    assert!(rig.client.index().await.is_err(), "nothing is known of it");
    let _second = begin();
    assert!(becomes(true).await, "it is seen to be back");
    assert_eq!((rig.entry("m").await, fake.held()), (None, vec![]), "it was asked how it stands, and dropped what it had");
}

#[tokio::test]
async fn what_a_server_is_heard_not_to_hold_is_believed_unless_it_knows_its_size() {
    let script =
        Arc::new(Scripted { sizes: said([Ok(ModelSizeResponse { size_in_bytes: 9 }), Err(Status::not_found("what?"))]), ..Scripted::default() });
    let rig = beside(&script).await;
    rig.load("m").await.expect("it loads");
    let model = named("m").id;
    rig.client.doubt(&model).await;
    assert_eq!((rig.entry("m").await, script.asked("unload")), (Some(IndexEntry::Ready), 0), "it has its size");
    rig.client.doubt(&model).await;
    assert_eq!((rig.entry("m").await, script.asked("unload"), script.asked("status")), (None, 1, 1), "what is left of it goes");
    rig.client.doubt(&model).await;
    assert_eq!(script.asked("unload"), 1, "nobody thinks that it is there");
}

#[tokio::test]
async fn two_who_find_that_the_server_was_away_ask_once_how_it_stands() {
    let script = Arc::new(Scripted::default());
    let rig = beside(&script).await;
    let soon = rig.clock.deadline_in(Duration::from_secs(30));
    let (one, other) = tokio::join!(rig.client.shared.lives(true, soon), rig.client.shared.lives(true, soon));
    assert_eq!((one, other, script.asked("status")), (Ok(()), Ok(()), 2), "at its start, and once");
    assert_eq!((rig.client.shared.lives(true, soon).await, script.asked("status")), (Ok(()), 3), "who comes later asks again");
}
