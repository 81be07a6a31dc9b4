//! In what servers with a model repository differ.

use std::collections::HashMap;
use std::path::Path;

use berth_proto::repository::parameter::Value;
use berth_proto::repository::{Parameter, StatisticsRequest, StatisticsResponse};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Pool, Registration};

use crate::layout::{self, Source};
use crate::rpc::Rpc;
use crate::{Artifacts, LaidOut, LoadError};

/// Which server with a model repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// NVIDIA's Triton Inference Server.
    Triton,
    /// Seldon's MLServer.
    MlServer,
}

impl Dialect {
    /// As people call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Dialect::Triton => "Triton",
            Dialect::MlServer => "MLServer",
        }
    }

    /// How the server is started so that it takes orders.
    pub(super) const fn how_to_control(self) -> &'static str {
        match self {
            Dialect::Triton => "start it with --model-control-mode=explicit",
            Dialect::MlServer => "give it a model repository (model_repository_root, MLSERVER_MODELS_DIR)",
        }
    }

    pub(super) const fn index(self) -> &'static str {
        match self {
            Dialect::Triton => "/inference.GRPCInferenceService/RepositoryIndex",
            Dialect::MlServer => "/inference.model_repository.ModelRepositoryService/RepositoryIndex",
        }
    }

    pub(super) const fn load(self) -> &'static str {
        match self {
            Dialect::Triton => "/inference.GRPCInferenceService/RepositoryModelLoad",
            Dialect::MlServer => "/inference.model_repository.ModelRepositoryService/RepositoryModelLoad",
        }
    }

    pub(super) const fn unload(self) -> &'static str {
        match self {
            Dialect::Triton => "/inference.GRPCInferenceService/RepositoryModelUnload",
            Dialect::MlServer => "/inference.model_repository.ModelRepositoryService/RepositoryModelUnload",
        }
    }

    /// What a loaded copy takes, in the server's own word; `None` where it has none.
    pub(super) async fn measure(self, rpc: &Rpc, model: &ModelId, deadline: Deadline) -> Option<Footprint> {
        match self {
            Dialect::Triton => {
                let request = StatisticsRequest { name: model.to_string(), version: String::new() };
                let answer: StatisticsResponse = rpc.call("/inference.GRPCInferenceService/ModelStatistics", &request, deadline).await.ok()?;
                let usage: Vec<_> = answer.model_stats.into_iter().flat_map(|stats| stats.memory_usage).collect();
                (!usage.is_empty()).then(|| {
                    Footprint::of(usage.into_iter().map(|part| {
                        let gpu = (part.r#type == "GPU").then(|| u16::try_from(part.id).ok()).flatten();
                        (gpu.map_or(Pool::Host, Pool::Gpu), ByteSize(part.byte_size))
                    }))
                })
            }
            Dialect::MlServer => None,
        }
    }
}

impl Dialect {
    /// Puts the model's files where the server wants them below `root`. With it the names of the parts that it consists of.
    pub(super) fn lay_out(self, root: &Path, model: &Registration, artifacts: &Artifacts) -> Result<(LaidOut, Vec<String>), LoadError> {
        if layout::name::server_name(&model.id) != model.id.as_str() {
            // Requests carry the id, and what they name would be no model.
            let why = "an id for it is made of letters, digits, '_', '-' and '.', starts with none of these but letters and digits or '_'";
            return Err(LoadError::bad_model(format!("{} cannot call a model {:?}: {why}, and is at most 240 long", self.name(), model.id.as_str())));
        }
        let (laid_out, plan) = Source::lay_out(model, artifacts, root, |source| match self {
            Dialect::Triton => layout::triton::plan(source, &layout::triton::Options::default()),
            Dialect::MlServer => layout::mlserver::plan(source, root),
        })?;
        Ok((laid_out, plan.parts.into_keys().collect()))
    }

    /// What an order to unload says beside the name.
    pub(super) fn unload_parameters(self) -> HashMap<String, Parameter> {
        match self {
            // The parts of an ensemble go with it.
            Dialect::Triton => [("unload_dependents".to_owned(), Parameter { value: Some(Value::BoolParam(true)) })].into(),
            Dialect::MlServer => HashMap::new(),
        }
    }
}
