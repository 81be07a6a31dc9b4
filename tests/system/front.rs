//! Berth's data plane before a server of a test: whatever id is asked for, the server is taken to hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use berth_proxy::methods::Methods;
use berth_proxy::{Frontend, Models, ProxyConfig, RuntimeServer, serve_grpc, serve_rest};
use berth_registry::Resolved;
use berth_residency::WaitError;
use berth_telemetry::{Clock, HostNet, Metrics, Net};
use berth_types::{ByteSize, Deadline, ModelFormat, ModelId, Placement, Registration, StorageRef};
use tokio_util::sync::CancellationToken;

/// Where clients of a server send their calls. The front ends with this.
pub(crate) struct Front {
    pub(crate) grpc: String,
    pub(crate) http: String,
    stop: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A front before the server at `target`, which wants ids where `infos` say; none: as the Open Inference Protocol has them.
/// Within a tokio runtime, which serves it.
pub(crate) async fn before(target: &str, infos: &[(&str, &[u32])], max_message: ByteSize) -> Result<Front> {
    let infos: BTreeMap<String, Vec<u32>> = infos.iter().map(|(name, path)| ((*name).to_owned(), path.to_vec())).collect();
    let runtime = RuntimeServer {
        target: target.parse().with_context(|| format!("{target:?} is no target"))?,
        connections: berth_upstream::Config::default(),
        net: Arc::new(HostNet),
        methods: Methods::of_runtime(&infos, true).map_err(anyhow::Error::msg)?,
    };
    let config = ProxyConfig { max_message, body_budget: ByteSize(max_message.0 * 8), ..ProxyConfig::default() };
    let frontend = Frontend::before(Everything, runtime, Clock::system(), &Metrics::default(), config, Arc::new(|| Ok(())));
    let (stop, local) = (CancellationToken::new(), "127.0.0.1:0".parse()?);
    let (grpc, rest) = (HostNet.listen(local).await?, HostNet.listen(local).await?);
    let front = Front { grpc: grpc.local_addr()?.to_string(), http: rest.local_addr()?.to_string(), stop: stop.clone() };
    tokio::spawn(serve_grpc(Arc::clone(&frontend), grpc, stop.clone()));
    tokio::spawn(serve_rest(frontend, rest, stop));
    Ok(front)
}

/// Every id is registered under itself, and loaded.
struct Everything;

impl Models for Everything {
    type Guard = ();

    fn resolve(&self, id: &str) -> Resolved {
        self.version(id).map_or(Resolved::Unknown, Resolved::Model)
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        Some(Arc::new(Registration::new(
            ModelId::new(id).ok()?,
            ModelFormat { name: "any".into(), version: None },
            Placement::Format { protocol: None },
            StorageRef { key: None, parameters: Arc::default(), path: "any".into(), schema_path: None },
            None,
        )))
    }

    fn try_acquire(&self, _model: &ModelId) -> Option<()> {
        Some(())
    }

    async fn ensure_loaded(&self, _model: &Arc<Registration>, _deadline: Deadline) -> Result<(), WaitError> {
        Ok(())
    }
}
