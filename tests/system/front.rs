//! Berth's data plane before a server of a test: whatever id is asked for, the server is taken to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    of_models(Everything, target, infos, max_message).await
}

/// The same with a word of its own about what the server holds.
pub(crate) async fn of_models(models: impl Models, target: &str, infos: &[(&str, &[u32])], max_message: ByteSize) -> Result<Front> {
    let infos: BTreeMap<String, Vec<u32>> = infos.iter().map(|(name, path)| ((*name).to_owned(), path.to_vec())).collect();
    let runtime = RuntimeServer {
        target: target.parse().with_context(|| format!("{target:?} is no target"))?,
        connections: berth_upstream::Config::default(),
        net: Arc::new(HostNet),
        methods: Methods::of_runtime(&infos, true).map_err(anyhow::Error::msg)?,
    };
    let config = ProxyConfig { threads: 2, max_message, body_budget: ByteSize(max_message.0 * 8), ..ProxyConfig::default() };
    let frontend = Frontend::before(models, runtime, Clock::system(), &Metrics::default(), config, Arc::new(|| Ok(())));
    let (stop, local) = (CancellationToken::new(), "127.0.0.1:0".parse()?);
    let (grpc, rest) = (HostNet.listen(local).await?, HostNet.listen(local).await?);
    let front = Front { grpc: grpc.local_addr()?.to_string(), http: rest.local_addr()?.to_string(), stop: stop.clone() };
    tokio::spawn(serve_grpc(Arc::clone(&frontend), grpc, stop.clone()));
    tokio::spawn(serve_rest(frontend, rest, stop));
    Ok(front)
}

/// A model being loaded.
pub(crate) type Loading = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Every id is registered under itself, and loaded; what the server turns out not to hold is loaded again.
#[derive(Clone)]
pub(crate) struct Reloading(Arc<Reloads>);

struct Reloads {
    load: Box<dyn Fn(ModelId) -> Loading + Send + Sync>,
    /// What the server does not hold.
    lost: Mutex<BTreeSet<ModelId>>,
    /// How often something was loaded again.
    loads: AtomicUsize,
    /// Cancelled when something is lost, and with it the guards of that time.
    looked: Mutex<CancellationToken>,
}

impl Reloading {
    pub(crate) fn by(load: impl Fn(ModelId) -> Loading + Send + Sync + 'static) -> Self {
        Reloading(Arc::new(Reloads { load: Box::new(load), lost: Mutex::default(), loads: AtomicUsize::default(), looked: Mutex::default() }))
    }

    pub(crate) fn loads(&self) -> usize {
        self.0.loads.load(Ordering::Relaxed)
    }

    fn guard(&self) -> CancellationToken {
        self.0.looked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lost(&self) -> MutexGuard<'_, BTreeSet<ModelId>> {
        self.0.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Models for Reloading {
    type Guard = CancellationToken;

    fn resolve(&self, id: &str) -> Resolved {
        Everything.resolve(id)
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        Everything.version(id)
    }

    fn try_acquire(&self, model: &ModelId) -> Option<CancellationToken> {
        (!self.lost().contains(model)).then(|| self.guard())
    }

    async fn ensure_loaded(&self, model: &Arc<Registration>, _deadline: Deadline) -> Result<CancellationToken, WaitError> {
        (self.0.load)(model.id.clone()).await.map_err(|_fault| WaitError::ShuttingDown)?;
        self.0.loads.fetch_add(1, Ordering::Relaxed);
        self.lost().remove(&model.id);
        Ok(self.guard())
    }

    async fn revoked(guard: &CancellationToken) {
        guard.cancelled().await;
    }

    async fn suspect(&self, model: &ModelId) {
        self.lost().insert(model.clone());
        std::mem::take(&mut *self.0.looked.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
    }
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
