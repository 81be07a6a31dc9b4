//! The one agent of `berth serve`, as the leader sees it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use berth_controller::{Agents, Controller, Pod};
use berth_plan::MayEvict;
use berth_residency::Residency;
use berth_types::{Footprint, PodId, Registration};
use tokio_util::sync::CancellationToken;

/// The residency of this process.
pub(crate) struct LocalAgent {
    residency: Residency,
    pod: PodId,
    runtime: Arc<str>,
    budget: Footprint,
    loads_at_a_time: NonZeroUsize,
}

impl LocalAgent {
    /// `runtime` is the name of the ServingRuntime that describes the engine.
    pub(crate) fn new(residency: Residency, pod: PodId, runtime: Arc<str>, budget: Footprint, loads_at_a_time: NonZeroUsize) -> Self {
        LocalAgent { residency, pod, runtime, budget, loads_at_a_time }
    }
}

#[async_trait]
impl Agents for LocalAgent {
    fn pods(&self) -> Vec<Pod> {
        let free = self.residency.room().borrow().clone();
        vec![Pod {
            id: self.pod.clone(),
            runtime: Arc::clone(&self.runtime),
            free,
            budget: self.budget.clone(),
            loads_at_a_time: self.loads_at_a_time,
        }]
    }

    async fn load(&self, _pod: &PodId, model: Arc<Registration>, may_evict: MayEvict) {
        self.residency.load(model, may_evict).await;
    }

    async fn retire(&self, _pod: &PodId, model: Arc<Registration>) {
        self.residency.retire(model).await;
    }
}

/// Hands the leader what residency reports, until `shutdown` or the end of residency.
pub(crate) async fn relay_reports(residency: Residency, controller: Controller, pod: PodId, shutdown: CancellationToken) {
    let (mut reports, mut room) = (residency.reports(), residency.room());
    // A process that has just started holds nothing: that is its whole first report.
    controller.report(&pod, Vec::new()).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            copies = reports.next() => match copies {
                Some(copies) => controller.report(&pod, copies).await,
                None => return,
            },
            changed = room.changed() => match changed {
                Ok(()) => controller.report(&pod, Vec::new()).await,
                Err(_ended) => return,
            },
        }
    }
}
