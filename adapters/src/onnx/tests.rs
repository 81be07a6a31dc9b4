//! The embedded runtime as a whole, with the built-in engine and with engines made for a case.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;

use super::interface::{Dim, Port};
use super::*;
use crate::conformance::{raw_request, registration};
use crate::sample;
use crate::tensor::{Datatype, Tensor};

#[cfg(feature = "onnx-tract")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_built_in_engine_conforms() {
    use crate::conformance::{Abilities, onnx_suite};
    let clock = Clock::system();
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = OnnxRuntime::built_in(&OnnxConfig::default(), clock.clone()).expect("built in");
    onnx_suite(&runtime, &clock, folder.path(), Abilities::BUILT_IN).await;
}

#[cfg(feature = "onnx-tract")]
#[tokio::test]
async fn an_operator_that_the_built_in_engine_lacks_is_named_with_the_engine_that_has_it() {
    let runtime = OnnxRuntime::built_in(&OnnxConfig::default(), Clock::system()).expect("built in");
    for (operator, says) in [
        ("ai.onnx.ml:TreeEnsembleRegressor", &["ai.onnx.ml.TreeEnsembleRegressor (node \"odd\")", "ONNX Runtime", "--onnx-library", "has them"][..]),
        ("ai.onnx.ml:ZipMap", &["ai.onnx.ml.ZipMap", "zipmap=False"]),
        ("com.example:Odd", &["com.example.Odd (node \"odd\")", "may have them"]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("net.onnx"), sample::with_operator(operator)).expect("a file");
        let model = registration("m__isvc-1");
        let fault = runtime.load(&model, &LaidOut { path: folder.path().join("net.onnx") }).await.expect_err("it cannot be loaded");
        for part in says {
            assert!(fault.message.contains(part), "{fault} does not say {part:?}");
        }
        assert_eq!((fault.fault, fault.nothing_attempted), (LoadFault::BadModel, true));
    }
}

#[test]
fn a_library_that_cannot_be_opened_is_named_with_the_cause() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("libonnxruntime.so");
    std::fs::write(&text, "no library").expect("a file");
    for (path, cause) in [(PathBuf::from("/nowhere/libonnxruntime.so"), "cannot open shared object file"), (text, "too short")] {
        let config = OnnxConfig { library: Some(path.clone()), ..OnnxConfig::default() };
        let Err(fault) = OnnxRuntime::start(&config, Clock::system()) else { panic!("{} is no library", path.display()) };
        let fault = fault.to_string();
        assert!(fault.starts_with(&format!("ONNX Runtime library {} (from --onnx-library) cannot be used: ", path.display())), "{fault}");
        assert!(fault.contains(cause), "{fault}");
    }
}

/// An engine whose loads and runs wait for the test.
#[derive(Default)]
struct Steered {
    loads: Mutex<Option<mpsc::Receiver<Result<(), LoadError>>>>,
    runs: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
    running: Arc<AtomicUsize>,
    ran: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    parallel: bool,
    panics: bool,
}

struct SteeredSession {
    runs: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
    running: Arc<AtomicUsize>,
    ran: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    parallel: bool,
    panics: bool,
}

impl Engine for Steered {
    fn platform(&self) -> &'static str {
        "steered"
    }

    fn version(&self) -> String {
        "steered 1".to_owned()
    }

    fn estimate(&self, files: ByteSize) -> ByteSize {
        files
    }

    fn load(&self, _file: &files::ModelFile) -> Result<Opened, LoadError> {
        if let Some(loads) = &*self.loads.lock() {
            loads.recv().unwrap_or(Ok(()))?;
        }
        let session = SteeredSession {
            runs: Arc::clone(&self.runs),
            running: Arc::clone(&self.running),
            ran: Arc::clone(&self.ran),
            dropped: Arc::clone(&self.dropped),
            parallel: self.parallel,
            panics: self.panics,
        };
        let port = Port { name: "x".to_owned(), datatype: Datatype::Uint8, shape: Some(vec![Dim::Any]) };
        let interface = Interface { inputs: vec![port.clone()], outputs: vec![port] };
        Ok(Opened { session: Box::new(session), interface, measured: None })
    }
}

impl Session for SteeredSession {
    fn run(&self, inputs: Vec<Tensor>, _wanted: &[usize]) -> Result<Vec<Tensor>, InferError> {
        assert!(!self.panics, "as told");
        self.running.fetch_add(1, Ordering::SeqCst);
        if let Some(runs) = &*self.runs.lock() {
            let _ = runs.recv();
        }
        self.ran.fetch_add(1, Ordering::SeqCst);
        Ok(inputs)
    }

    fn parallel(&self) -> bool {
        self.parallel
    }
}

impl Drop for SteeredSession {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    runtime: OnnxRuntime,
    clock: Clock,
    _folder: tempfile::TempDir,
    laid_out: LaidOut,
}

fn bench(engine: Steered, change: impl FnOnce(&mut OnnxConfig)) -> Bench {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, sample::labels()).expect("a file");
    let mut config = OnnxConfig { concurrency: NonZeroUsize::new(2).expect("not zero"), ..OnnxConfig::default() };
    change(&mut config);
    let clock = Clock::system();
    let runtime = OnnxRuntime::over(Box::new(engine), &config, clock.clone());
    Bench { runtime, clock, _folder: folder, laid_out: LaidOut { path } }
}

impl Bench {
    fn in_a_minute(&self) -> Deadline {
        self.clock.deadline_in(Duration::from_secs(60))
    }

    fn spawn_infer(&self, model: &ModelId) -> tokio::task::JoinHandle<Result<ModelInferResponse, InferError>> {
        let (runtime, model, deadline) = (self.runtime.clone(), model.clone(), self.in_a_minute());
        tokio::spawn(async move { runtime.infer(&model, request(), deadline).await })
    }

    async fn until_index(&self, model: &ModelId, entry: Option<IndexEntry>) {
        let wait = async {
            while self.runtime.index().await.expect("always").get(model) != entry {
                self.runtime.index_changed().await;
            }
        };
        let shown = self.clock.until(self.in_a_minute(), wait).await;
        assert!(shown.is_some(), "the index never shows {entry:?}");
    }
}

fn request() -> ModelInferRequest {
    raw_request(&[("x", "UINT8", &[1], &[7])])
}

async fn until(what: &str, clock: &Clock, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    assert!(clock.until(clock.deadline_in(Duration::from_secs(60)), wait).await.is_some(), "never: {what}");
}

#[tokio::test]
async fn a_running_request_keeps_an_unloaded_copy_alive_and_listed() {
    let (go, runs) = mpsc::channel();
    let engine = Steered { runs: Arc::new(Mutex::new(Some(runs))), parallel: true, ..Steered::default() };
    let (running, dropped) = (Arc::clone(&engine.running), Arc::clone(&engine.dropped));
    let bench = bench(engine, |_| {});
    let model = registration("m__isvc-1");
    bench.runtime.load(&model, &bench.laid_out).await.expect("it loads");
    let inference = bench.spawn_infer(&model.id);
    until("running", &bench.clock, || running.load(Ordering::SeqCst) == 1).await;

    bench.runtime.unload(&model.id).await.expect("taken");
    bench.until_index(&model.id, Some(IndexEntry::Unloading)).await;
    assert_eq!(bench.runtime.infer(&model.id, request(), bench.in_a_minute()).await.err(), Some(InferError::NotLoaded(model.id.clone())));
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "the request still computes on it");

    // A new load waits for the old copy to go.
    let again = bench.runtime.load(&model, &bench.laid_out);
    let mut again = std::pin::pin!(again);
    assert!(bench.clock.until(bench.clock.deadline_in(Duration::from_millis(20)), &mut again).await.is_none());
    go.send(()).expect("it waits");
    assert_eq!(inference.await.expect("no panic").expect("it answers").raw_output_contents, [Bytes::from_static(&[7])]);
    assert!(again.await.is_ok());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    bench.until_index(&model.id, Some(IndexEntry::Ready)).await;
}

#[tokio::test]
async fn a_load_that_times_out_goes_on_and_ends_ready() {
    let (go, loads) = mpsc::channel();
    let engine = Steered { loads: Mutex::new(Some(loads)), parallel: true, ..Steered::default() };
    let bench = bench(engine, |config| config.load_timeout = Duration::from_millis(20));
    let model = registration("m__isvc-1");
    let fault = bench.runtime.load(&model, &bench.laid_out).await.expect_err("it hangs");
    assert_eq!((fault.fault, fault.nothing_attempted), (LoadFault::TimedOut, false), "{fault}");
    bench.until_index(&model.id, Some(IndexEntry::Loading)).await;
    go.send(Ok(())).expect("it waits");
    bench.until_index(&model.id, Some(IndexEntry::Ready)).await;
}

#[tokio::test]
async fn a_model_unloaded_while_it_loads_is_listed_until_its_session_is_dropped() {
    let (go, loads) = mpsc::channel();
    let engine = Steered { loads: Mutex::new(Some(loads)), parallel: true, ..Steered::default() };
    let dropped = Arc::clone(&engine.dropped);
    let bench = bench(engine, |config| config.load_concurrency = NonZeroU32::MIN);
    let (model, queued) = (registration("m__isvc-1"), registration("q__isvc-2"));
    let tell = |model: Registration| {
        let (runtime, laid_out) = (bench.runtime.clone(), bench.laid_out.clone());
        tokio::spawn(async move { runtime.load(&model, &laid_out).await })
    };
    let load = tell(model.clone());
    bench.until_index(&model.id, Some(IndexEntry::Loading)).await;
    let waiting = tell(queued.clone());
    bench.until_index(&queued.id, Some(IndexEntry::Loading)).await;
    for id in [&model.id, &queued.id] {
        bench.runtime.unload(id).await.expect("taken");
    }
    let fault = load.await.expect("no panic").expect_err("it was unloaded");
    assert!(fault.message.contains("was unloaded while it was loading"), "{fault}");
    assert_eq!(bench.runtime.index().await.expect("always").get(&model.id), Some(IndexEntry::Unloading), "the engine is still at it");
    go.send(Ok(())).expect("it waits");
    bench.until_index(&model.id, None).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(waiting.await.expect("no panic").is_err());
    // The one that had not begun never does: one load was let go, none waits for a second.
    bench.until_index(&queued.id, None).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_whose_caller_left_the_line_is_not_computed() {
    let (go, runs) = mpsc::channel();
    let engine = Steered { runs: Arc::new(Mutex::new(Some(runs))), parallel: false, ..Steered::default() };
    let (running, ran) = (Arc::clone(&engine.running), Arc::clone(&engine.ran));
    let bench = bench(engine, |_| {});
    let model = registration("m__isvc-1");
    bench.runtime.load(&model, &bench.laid_out).await.expect("it loads");
    let first = bench.spawn_infer(&model.id);
    until("running", &bench.clock, || running.load(Ordering::SeqCst) == 1).await;
    let soon = bench.clock.deadline_in(Duration::from_millis(20));
    assert_eq!(bench.runtime.infer(&model.id, request(), soon).await.err(), Some(InferError::DeadlineExceeded), "one at a time");
    go.send(()).expect("it waits");
    assert!(first.await.expect("no panic").is_ok());
    let last = bench.spawn_infer(&model.id);
    go.send(()).expect("it waits");
    assert!(last.await.expect("no panic").is_ok());
    assert_eq!(ran.load(Ordering::SeqCst), 2, "the one that left was never computed");
}

#[tokio::test]
async fn a_panic_of_an_engine_is_one_failed_request() {
    let bench = bench(Steered { panics: true, parallel: true, ..Steered::default() }, |_| {});
    let model = registration("m__isvc-1");
    bench.runtime.load(&model, &bench.laid_out).await.expect("it loads");
    for _ in 0..3 {
        let failed = bench.runtime.infer(&model.id, request(), bench.in_a_minute()).await.err();
        assert_eq!(failed, Some(InferError::Failed("the model made the engine panic: as told".to_owned())));
    }
    bench.until_index(&model.id, Some(IndexEntry::Ready)).await;
}

#[tokio::test]
async fn a_failed_load_leaves_nothing_and_the_next_one_may_succeed() {
    let (go, loads) = mpsc::channel();
    let bench = bench(Steered { loads: Mutex::new(Some(loads)), parallel: true, ..Steered::default() }, |_| {});
    let model = registration("m__isvc-1");
    let fault = LoadError { fault: LoadFault::OutOfMemory, message: "full".to_owned(), nothing_attempted: false };
    go.send(Err(fault.clone())).expect("it listens");
    assert_eq!(bench.runtime.load(&model, &bench.laid_out).await, Err(fault));
    bench.until_index(&model.id, None).await;
    go.send(Ok(())).expect("it listens");
    assert!(bench.runtime.load(&model, &bench.laid_out).await.is_ok());
}
