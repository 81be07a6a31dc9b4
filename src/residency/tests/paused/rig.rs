//! A pod for tests: residency between a fake runtime and a fake store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_adapters::{FakeRuntime, RuntimeInfo};
use berth_memory::{Source, Told};
use berth_puller::fake::{FakeFetch, Scripted};
use berth_residency::{Config, Deps, Guard, Reports, Residency, Snapshot, WaitError};
use berth_telemetry::{Clock, Metrics};
use berth_types::{
    ByteSize, CopyReport, CopyState, Failure, Footprint, Keep, Location, ModelFormat, ModelId, Placement, Reading, Registration, StorageRef,
    UnixMillis,
};
use tokio::task::JoinHandle;

pub(crate) const START: UnixMillis = UnixMillis(1_790_000_000_000);

pub(crate) fn id(name: &str) -> ModelId {
    ModelId::new(name).expect("a test's id is valid")
}

pub(crate) fn kib(n: u64) -> ByteSize {
    ByteSize::kib(n)
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn model(name: &str) -> Arc<Registration> {
    Arc::new(Registration::new(
        id(name),
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::default(), path: name.into(), schema_path: None },
        None,
    ))
}

pub(crate) fn kept(name: &str, keep: Keep) -> Arc<Registration> {
    Arc::new((*model(name)).clone().kept(keep))
}

pub(crate) fn declaring(name: &str, size: ByteSize) -> Arc<Registration> {
    Arc::new(Registration { declared_size: Some(size), ..(*model(name)).clone() })
}

/// What the pod is made of, before it starts.
pub(crate) struct Parts {
    pub(crate) clock: Clock,
    pub(crate) runtime: FakeRuntime,
    pub(crate) fetch: Arc<FakeFetch>,
    pub(crate) budget: Footprint,
    pub(crate) memory: Option<Arc<dyn Source>>,
    pub(crate) config: Config,
}

fn info(reads_files_while_loaded: bool) -> RuntimeInfo {
    RuntimeInfo {
        name: "fake".into(),
        version: "1".into(),
        capacity: None,
        load_concurrency: std::num::NonZeroU32::MIN.saturating_add(1),
        load_timeout: secs(100),
        reads_files_while_loaded,
    }
}

impl Parts {
    /// A pod with that much memory, in which every model has 4 KiB and loads at once.
    pub(crate) fn with_memory(budget: ByteSize) -> Self {
        let clock = Clock::starting_at(START);
        Parts {
            runtime: FakeRuntime::with_info(clock.clone(), info(true)),
            fetch: FakeFetch::with_default(clock.clone(), Scripted::arrives(kib(4))),
            clock,
            budget: Footprint::host(budget),
            memory: None,
            config: Config::default(),
        }
    }

    /// The same with a runtime that is done with a model's files once it is loaded.
    pub(crate) fn done_with_files(self) -> Self {
        Parts { runtime: FakeRuntime::with_info(self.clock.clone(), info(false)), ..self }
    }

    /// The same with a runtime that is a server of its own.
    pub(crate) fn beside(self) -> Self {
        Parts { runtime: FakeRuntime::beside(self.clock.clone(), info(true)), ..self }
    }

    /// The same with somebody who tells what is really in use.
    pub(crate) fn measured_by(self, tell: impl Fn(&FakeRuntime) -> Reading + Send + Sync + 'static) -> Self {
        let runtime = self.runtime.clone();
        Parts { memory: Some(Arc::new(Told(move || tell(&runtime)))), ..self }
    }

    pub(crate) fn start(self) -> Pod {
        let metrics = Metrics::default();
        let (residency, owner) = Residency::start(Deps {
            runtime: Arc::new(self.runtime.clone()),
            fetch: Arc::clone(&self.fetch) as _,
            clock: self.clock.clone(),
            metrics: metrics.clone(),
            location: Location::of_pod_name("berth-test"),
            budget: self.budget,
            memory: self.memory,
            config: self.config,
        });
        Pod { clock: self.clock, runtime: self.runtime, fetch: self.fetch, residency, owner, metrics }
    }
}

/// A pod at work.
pub(crate) struct Pod {
    pub(crate) clock: Clock,
    pub(crate) runtime: FakeRuntime,
    pub(crate) fetch: Arc<FakeFetch>,
    pub(crate) residency: Residency,
    pub(crate) owner: JoinHandle<()>,
    pub(crate) metrics: Metrics,
}

impl Pod {
    pub(crate) fn with_memory(budget: ByteSize) -> Pod {
        Parts::with_memory(budget).start()
    }

    pub(crate) async fn ensure(&self, name: &str, within: Duration) -> Result<Guard, WaitError> {
        self.residency.ensure_loaded(&model(name), self.clock.deadline_in(within)).await
    }

    /// A caller in a task of its own, asking from now on.
    pub(crate) fn caller(&self, name: &str, within: Duration) -> JoinHandle<Result<Guard, WaitError>> {
        let (residency, deadline, model) = (self.residency.clone(), self.clock.deadline_in(within), model(name));
        tokio::spawn(async move { residency.ensure_loaded(&model, deadline).await })
    }

    /// Why a load of `name` fails now; panics when it does not.
    pub(crate) async fn failure(&self, name: &str) -> Arc<Failure> {
        match self.ensure(name, secs(60)).await {
            Err(WaitError::Failed(failure)) => failure,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Loads it, uses it, lets go.
    pub(crate) async fn use_once(&self, name: &str) {
        let guard = self.ensure(name, secs(300)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        drop(guard);
        // So that no two uses fall on one millisecond.
        self.clock.sleep(millis(2)).await;
    }

    /// A request on a model that is loaded.
    pub(crate) fn enter(&self, name: &str) -> Guard {
        self.residency.try_acquire(name).unwrap_or_else(|| panic!("{name} does not serve"))
    }

    pub(crate) async fn pass(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    /// The newest report of `name` once it is as wanted; panics when that does not happen within ten minutes.
    pub(crate) async fn report(&self, name: &str, wanted: impl Fn(&CopyReport) -> bool) -> CopyReport {
        let mut reports: Reports = self.residency.reports();
        let found = async {
            let mut last = None;
            loop {
                let Some(news) = reports.next().await else { panic!("the owner ended; last of {name}: {last:?}") };
                for report in news.into_iter().filter(|report| report.model.as_str() == name) {
                    if wanted(&report) {
                        return report;
                    }
                    last = Some(report);
                }
            }
        };
        let found = self.clock.until(self.clock.deadline_in(secs(600)), found).await;
        found.unwrap_or_else(|| panic!("no such report of {name} within ten minutes"))
    }

    pub(crate) async fn loaded(&self, name: &str) -> CopyReport {
        self.report(name, |report| matches!(report.state, CopyState::Loaded { .. })).await
    }

    /// Once nothing of `name` is here: what is still said of it. A model without a past is not reported at all.
    pub(crate) async fn absent(&self, name: &str) -> CopyReport {
        let deadline = self.clock.deadline_in(secs(600));
        let mut changes = self.residency.reports();
        while self.snapshot().await.copies.iter().any(|copy| copy.model.as_str() == name) {
            let change = self.clock.until(deadline, changes.next()).await;
            change.unwrap_or_else(|| panic!("{name} is still here after ten minutes")).expect("the owner lives");
        }
        let known = self.clock.until(self.clock.deadline_in(millis(1)), self.residency.reports().next()).await.flatten();
        let known = known.into_iter().flatten().find(|report| report.model.as_str() == name);
        let report = known.unwrap_or(CopyReport { model: id(name), state: CopyState::Absent, failure: None, mended: false, last_used: None });
        assert_eq!(report.state, CopyState::Absent);
        report
    }

    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.residency.snapshot().await.expect("the owner lives")
    }

    pub(crate) async fn charged(&self) -> ByteSize {
        self.snapshot().await.pools[0].charged
    }

    /// What the runtime holds, by name.
    pub(crate) fn held(&self) -> Vec<String> {
        self.runtime.held().into_iter().map(|(name, _)| name).collect()
    }
}

/// A file that nobody can open for writing before somebody reads it; read and removed when this goes out of scope.
pub(crate) struct Unanswering(PathBuf);

impl Unanswering {
    pub(crate) fn at(path: PathBuf) -> Self {
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        Unanswering(path)
    }
}

impl Drop for Unanswering {
    fn drop(&mut self) {
        // Opened both ways it does not wait for a writer. Open until it is removed: whoever opens it later finds a file
        // like any other, and waits for nobody.
        let open = std::fs::File::options().read(true).write(true).open(&self.0);
        let _ = std::fs::remove_file(&self.0);
        drop(open);
    }
}
