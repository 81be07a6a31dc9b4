//! What is registered by calls instead of resources: models and names of `mmesh.ModelMesh`, as they are kept.
//!
//! A resource is a document that somebody else owns and that says everything; these two are made, changed and removed by
//! single calls, so they are kept in the words of those calls. What follows from them (registration, view) is derived.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ModelId, Name, UnixMillis};

/// A model as it was registered by a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedModel {
    /// Its id, chosen by the caller.
    pub id: ModelId,
    /// `ModelInfo.type`: `mt:onnx`, `rt:my-runtime`. Never empty.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// `ModelInfo.path`; `None` where the call left it empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
    /// `ModelInfo.key`: a JSON text. `None` where the call left it empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Arc<str>>,
    /// When it counts as last used until it is.
    pub last_used: UnixMillis,
    /// It goes when no name refers to it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_delete: bool,
}

impl ManagedModel {
    /// True when both stand for the same bytes.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.id, &self.kind, &self.path, &self.key) == (&other.id, &other.kind, &other.path, &other.key)
    }
}

/// A name that was made by a call: it stands for one managed model, and may be on its way to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedName {
    /// The name: upstream's vmodel id.
    pub name: Name,
    /// The model that serves.
    pub active: ModelId,
    /// The model that should serve; the same as `active` when nothing is under way.
    pub target: ModelId,
    /// Who made it; `None` when nobody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Arc<str>>,
}

impl ManagedName {
    /// True while the name is on its way to another model.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.active != self.target
    }

    /// The models that it refers to, each once.
    pub fn models(&self) -> impl Iterator<Item = &ModelId> {
        [&self.active, &self.target].into_iter().take(1 + usize::from(self.is_moving()))
    }
}

/// What is there, as a change sees it: changes that were decided before it and are not shown yet included.
pub trait ManagedRecords {
    /// A model.
    fn model(&self, id: &ModelId) -> Option<Arc<ManagedModel>>;

    /// A name.
    fn name(&self, name: &Name) -> Option<Arc<ManagedName>>;

    /// How many names refer to a model. A model with none is there in its own right.
    fn references(&self, id: &ModelId) -> u32;
}

/// One part of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedPut {
    /// The model is this from now on.
    Model(ManagedModel),
    /// There is no such model any more.
    NoModel(ModelId),
    /// The name is this from now on.
    Name(ManagedName),
    /// There is no such name any more.
    NoName(Name),
}
