//! What the benches play on: the embedded engine, models of the quickstart, residency over them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use berth_adapters::{Artifacts, OnnxConfig, OnnxRuntime};
use berth_benches::{Cost, cpu_time};
use berth_puller::{Puller, PullerConfig};
use berth_residency::{Config, Deps, Residency};
use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, Footprint, Location, ModelFormat, ModelId, Placement, Registration, StorageRef};

/// The folder of the quickstart's models.
pub(crate) fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart/models")
}

/// A model of the quickstart as registered.
pub(crate) fn registration(model: &str) -> Arc<Registration> {
    Arc::new(Registration::new(
        ModelId::new(format!("{model}__isvc-0000000000")).expect("an id"),
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: Some("quickstart".into()), parameters: Arc::default(), path: model.into(), schema_path: None },
        None,
    ))
}

/// The files of a model of the quickstart.
pub(crate) fn artifacts(model: &str) -> anyhow::Result<Artifacts> {
    let folder = models().join(model);
    let file = folder.join("model.onnx");
    let size = std::fs::metadata(&file).with_context(|| format!("{}", file.display()))?.len();
    Ok(Artifacts { model: folder, schema: None, size: ByteSize(size) })
}

/// The embedded engine.
pub(crate) fn engine(clock: &Clock) -> anyhow::Result<Arc<OnnxRuntime>> {
    Ok(Arc::new(OnnxRuntime::start(&OnnxConfig::default(), clock.clone())?))
}

/// Residency over `engine` with this much memory.
pub(crate) async fn residency(engine: &Arc<OnnxRuntime>, memory: ByteSize, scratch: &tempfile::TempDir, clock: &Clock) -> anyhow::Result<Residency> {
    let metrics = Metrics::default();
    let mut config = PullerConfig::new(scratch.path().join("cache"), ByteSize::mib(64));
    config.storage_config = Some(models().join("../storage-config"));
    let puller = Puller::open(config, clock.clone(), metrics.clone()).await?;
    let (residency, _task) = Residency::start(Deps {
        runtime: engine.clone(),
        fetch: puller,
        clock: clock.clone(),
        metrics,
        location: Location::of_pod_name("bench"),
        budget: Footprint::host(memory),
        memory: None,
        config: Config::default(),
    });
    Ok(residency)
}

/// What has been spent since.
pub(crate) struct Meter {
    wall: Instant,
    cpu: std::time::Duration,
}

impl Meter {
    /// From now.
    pub(crate) fn start(clock: &Clock) -> Self {
        Meter { wall: clock.now(), cpu: cpu_time() }
    }

    /// Until now.
    pub(crate) fn stop(&self, clock: &Clock) -> Cost {
        Cost { wall: clock.now() - self.wall, cpu: cpu_time().saturating_sub(self.cpu) }
    }
}
