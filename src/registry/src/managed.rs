//! Models and names that are made by calls of `mmesh.ModelMesh`, kept beside the resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use berth_types::{ManagedModel, ManagedName, ManagedPut, ManagedRecords, ModelId, Name};

use crate::StoreError;

/// Decides what changes, from what is there at that moment. Nobody else changes anything between the look and the change.
/// A store may ask more than once before it keeps an answer; the last answer counts.
pub type ManagedChange = Box<dyn FnMut(&dyn ManagedRecords) -> Vec<ManagedPut> + Send>;

/// Desired state that is made by calls. As with [`crate::Store`], a change is durable when it returns, nobody sees it
/// before, all its parts become true together, and changes that wait at the same time share one disk write.
#[async_trait]
pub trait Managed: Send + Sync + 'static {
    /// A model.
    fn managed_model(&self, id: &str) -> Option<Arc<ManagedModel>>;

    /// A name.
    fn managed_name(&self, name: &str) -> Option<Arc<ManagedName>>;

    /// Every model and every name, in no order that means anything.
    fn managed(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>);

    /// Carries out a change. One that changes nothing costs no disk write of its own.
    ///
    /// # Errors
    /// [`StoreError::Broken`]: nothing of it was kept.
    async fn change_managed(&self, change: ManagedChange) -> Result<(), StoreError>;
}

/// All of it, in memory.
#[derive(Default)]
pub(crate) struct ManagedState {
    pub(crate) models: HashMap<ModelId, Arc<ManagedModel>>,
    pub(crate) names: HashMap<Name, Arc<ManagedName>>,
}

/// Changes that were decided and not shown yet; `None` for what goes.
#[derive(Default)]
pub(crate) struct ManagedDraft {
    pub(crate) models: BTreeMap<ModelId, Option<Arc<ManagedModel>>>,
    pub(crate) names: BTreeMap<Name, Option<Arc<ManagedName>>>,
}

/// What a change sees: the draft over the state.
pub(crate) struct Seen<'s> {
    pub(crate) state: &'s ManagedState,
    pub(crate) draft: &'s ManagedDraft,
}

impl ManagedRecords for Seen<'_> {
    fn model(&self, id: &ModelId) -> Option<Arc<ManagedModel>> {
        self.draft.models.get(id).map_or_else(|| self.state.models.get(id).cloned(), Clone::clone)
    }

    fn name(&self, name: &Name) -> Option<Arc<ManagedName>> {
        self.draft.names.get(name).map_or_else(|| self.state.names.get(name).cloned(), Clone::clone)
    }
}

impl ManagedDraft {
    pub(crate) fn put(&mut self, put: ManagedPut) {
        match put {
            ManagedPut::Model(model) => drop(self.models.insert(model.id.clone(), Some(Arc::new(model)))),
            ManagedPut::NoModel(id) => drop(self.models.insert(id, None)),
            ManagedPut::Name(name) => drop(self.names.insert(name.name.clone(), Some(Arc::new(name)))),
            ManagedPut::NoName(name) => drop(self.names.insert(name, None)),
        }
    }
}

impl ManagedState {
    pub(crate) fn of(models: Vec<ManagedModel>, names: Vec<ManagedName>) -> Self {
        let models = models.into_iter().map(|model| (model.id.clone(), Arc::new(model))).collect();
        let names = names.into_iter().map(|name| (name.name.clone(), Arc::new(name))).collect();
        ManagedState { models, names }
    }

    pub(crate) fn take(&mut self, draft: ManagedDraft) {
        for (id, model) in draft.models {
            match model {
                Some(model) => drop(self.models.insert(id, model)),
                None => drop(self.models.remove(&id)),
            }
        }
        for (key, name) in draft.names {
            match name {
                Some(name) => drop(self.names.insert(key, name)),
                None => drop(self.names.remove(&key)),
            }
        }
    }

    pub(crate) fn all(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>) {
        (self.models.values().cloned().collect(), self.names.values().cloned().collect())
    }
}
