//! Our side as a process of its own, so that what it costs is its own: one puller, one fetch.

use std::path::PathBuf;

use berth_puller::{Fetch, Puller, PullerConfig, Urgency};
use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, ModelFormat, ModelId, Placement, Registration, StorageRef};

use super::contender::STORAGE_KEY;

/// More than any set.
const DISK_BUDGET: ByteSize = ByteSize::mib(8 << 10);

/// Fetches the model at `path` with the limits that a user gets, and says where its files are in a line `done: ...`.
pub(super) async fn fetch(storage_config: PathBuf, cache: PathBuf, path: &str) -> anyhow::Result<()> {
    let mut config = PullerConfig::new(cache, DISK_BUDGET);
    config.storage_config = Some(storage_config);
    let puller = Puller::open(config, Clock::system(), Metrics::default()).await?;
    let model = Registration::new(
        ModelId::new(format!("{path}__isvc-0000000000"))?,
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: Some(STORAGE_KEY.into()), parameters: Default::default(), path: path.into(), schema_path: None },
        None,
    );
    let fetched = puller.fetch(&model, Urgency::Waited).await?;
    println!("done: {}", fetched.model.display());
    Ok(())
}
