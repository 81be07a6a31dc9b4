//! What a pod is still to be told: of each model what is newest.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_plan::MayEvict;
use berth_proto::attendance::{FromController, Touch, from_controller::Said};
use berth_types::{ModelId, Registration, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

use crate::wire;

/// Orders about one model, in the order in which they are told.
#[derive(Default)]
struct OfModel {
    retire: Option<Arc<Registration>>,
    amend: Option<Arc<Registration>>,
    load: Option<(Arc<Registration>, MayEvict)>,
    touch: Option<UnixMillis>,
}

/// The orders that wait for one pod: bounded by the models that there are.
#[derive(Default)]
pub(crate) struct Orders {
    waiting: Mutex<BTreeMap<ModelId, OfModel>>,
    pub(crate) ring: Notify,
}

impl Orders {
    pub(crate) fn load(&self, model: Arc<Registration>, may: MayEvict) {
        self.add(&model.id.clone(), |of| of.load = Some((model, may)));
    }

    /// Whatever was to be told of it before says nothing any more.
    pub(crate) fn retire(&self, model: Arc<Registration>) {
        self.add(&model.id.clone(), |of| *of = OfModel { retire: Some(model), ..OfModel::default() });
    }

    pub(crate) fn amend(&self, model: Arc<Registration>) {
        self.add(&model.id.clone(), |of| of.amend = Some(model));
    }

    pub(crate) fn touch(&self, model: &ModelId, at: UnixMillis) {
        self.add(model, |of| of.touch = of.touch.max(Some(at)));
    }

    fn add(&self, model: &ModelId, change: impl FnOnce(&mut OfModel)) {
        change(self.waiting.lock().entry(model.clone()).or_default());
        self.ring.notify_one();
    }

    /// The next ones, in words; none: nothing waits.
    pub(crate) fn take(&self) -> Result<Vec<FromController>, Status> {
        let Some((model, OfModel { retire, amend, load, touch })) = self.waiting.lock().pop_first() else { return Ok(Vec::new()) };
        let mut said = Vec::new();
        if let Some(model) = retire {
            said.push(Said::Retire(wire::json(&model)?));
        }
        if let Some(model) = amend {
            said.push(Said::Amend(wire::json(&model)?));
        }
        if let Some((model, may)) = load {
            said.push(Said::Load(wire::load(wire::json(&model)?, may)));
        }
        if let Some(at) = touch {
            said.push(Said::Touch(Touch { model: model.to_string(), at: at.0 }));
        }
        Ok(said.into_iter().map(|said| FromController { said: Some(said) }).collect())
    }
}
