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
    /// How many names refer to a model, where any do. Follows from the names.
    references: HashMap<ModelId, u32>,
}

/// Changes that were decided and not shown yet; `None` for what goes.
#[derive(Default)]
pub(crate) struct ManagedDraft {
    pub(crate) models: BTreeMap<ModelId, Option<Arc<ManagedModel>>>,
    pub(crate) names: BTreeMap<Name, Option<Arc<ManagedName>>>,
    /// How many names more, or fewer, refer to a model.
    references: BTreeMap<ModelId, i64>,
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

    fn references(&self, id: &ModelId) -> u32 {
        let shown = self.state.references.get(id).copied().unwrap_or_default();
        sum(shown, self.draft.references.get(id).copied().unwrap_or_default())
    }
}

fn sum(references: u32, more: i64) -> u32 {
    u32::try_from(i64::from(references) + more).unwrap_or_default()
}

impl ManagedDraft {
    /// Takes in one part of a change of what `state` and this draft say together.
    pub(crate) fn put(&mut self, put: ManagedPut, state: &ManagedState) {
        match put {
            ManagedPut::Model(model) => drop(self.models.insert(model.id.clone(), Some(Arc::new(model)))),
            ManagedPut::NoModel(id) => drop(self.models.insert(id, None)),
            ManagedPut::Name(name) => self.put_name(name.name.clone(), Some(Arc::new(name)), state),
            ManagedPut::NoName(name) => self.put_name(name, None, state),
        }
    }

    fn put_name(&mut self, key: Name, after: Option<Arc<ManagedName>>, state: &ManagedState) {
        let shown = state.names.get(&key).cloned();
        let before = self.names.insert(key, after.clone()).unwrap_or(shown);
        for (name, by) in [(before, -1), (after, 1)] {
            for id in name.iter().flat_map(|name| name.models()) {
                *self.references.entry(id.clone()).or_default() += by;
            }
        }
    }
}

impl ManagedState {
    pub(crate) fn of(models: Vec<ManagedModel>, names: Vec<ManagedName>) -> Self {
        let models = models.into_iter().map(|model| (model.id.clone(), Arc::new(model))).collect();
        let mut references = HashMap::new();
        for id in names.iter().flat_map(ManagedName::models) {
            *references.entry(id.clone()).or_default() += 1;
        }
        let names = names.into_iter().map(|name| (name.name.clone(), Arc::new(name))).collect();
        ManagedState { models, names, references }
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
        for (id, more) in draft.references {
            let before = self.references.get(&id).copied().unwrap_or_default();
            match sum(before, more) {
                0 => drop(self.references.remove(&id)),
                now => drop(self.references.insert(id, now)),
            }
        }
    }

    pub(crate) fn all(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>) {
        (self.models.values().cloned().collect(), self.names.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn id(at: u8) -> ModelId {
        ModelId::new(format!("m{at}")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn references_are_what_the_names_say_in_a_draft_when_it_is_shown_and_when_all_is_read_again(
            drafts in prop::collection::vec(prop::collection::vec((0u8..3, prop::option::of((0u8..3, 0u8..3))), 0..6), 0..8),
        ) {
            let mut state = ManagedState::default();
            let mut wanted: BTreeMap<Name, ManagedName> = BTreeMap::new();
            for puts in drafts {
                let mut draft = ManagedDraft::default();
                for (at, models) in puts {
                    let name = Name::new(format!("n{at}")).unwrap();
                    let put = match models {
                        Some((active, target)) => {
                            let made = ManagedName { name: name.clone(), active: id(active), target: id(target), owner: None };
                            wanted.insert(name, made.clone());
                            ManagedPut::Name(made)
                        }
                        None => {
                            wanted.remove(&name);
                            ManagedPut::NoName(name)
                        }
                    };
                    draft.put(put, &state);
                    let seen = Seen { state: &state, draft: &draft };
                    for model in (0..3).map(id) {
                        let referring = wanted.values().flat_map(ManagedName::models).filter(|one| **one == model).count();
                        prop_assert_eq!(seen.references(&model) as usize, referring);
                    }
                }
                state.take(draft);
                let again = ManagedState::of(Vec::new(), wanted.values().cloned().collect());
                prop_assert_eq!(&state.references, &again.references);
            }
        }
    }
}
