//! The content drift that the leader of this process knows of, as the resource API tells it.

use berth_api::{Drift, Drifts};
use tokio::sync::watch;

/// What the leader has noted.
pub(crate) struct Drifting(pub(crate) watch::Receiver<berth_controller::Drifts>);

impl Drifts for Drifting {
    fn known(&self) -> Vec<Drift> {
        let drifts = self.0.borrow();
        let told = |model: &berth_types::ModelId, drift: &berth_controller::Drift| Drift {
            model: model.clone(),
            pod: drift.pod.clone(),
            first: drift.first,
            seen: drift.seen.digest,
            since: drift.since,
            summary: drift.to_string(),
        };
        drifts.iter().flat_map(|(model, drifts)| drifts.iter().map(move |drift| told(model, drift))).collect()
    }
}
