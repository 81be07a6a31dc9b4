//! In what servers with a model repository differ.

use std::collections::HashMap;
use std::path::Path;

use berth_proto::repository::parameter::Value;
use berth_proto::repository::{Parameter, StatisticsRequest, StatisticsResponse};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Pool, Registration};

use crate::layout::{self, Source};
use crate::rpc::Rpc;
use crate::{Artifacts, LaidOut, LoadError, Seat};

/// What a layout is to be loaded with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// What the model consists of beside itself, by the server's names: the parts of an ensemble.
    pub(super) parts: Vec<String>,
    /// For Triton: its configuration, where that is given with the load.
    pub(super) config: Option<String>,
}

/// A device is named by the load, so that the files are the same for every one.
fn options(gpu: Option<u16>) -> layout::triton::Options {
    let device = gpu.map(|gpu| layout::triton::Device::Gpu(gpu.into()));
    let config = if device.is_some() { layout::triton::ConfigBy::Parameter } else { layout::triton::ConfigBy::File };
    layout::triton::Options { device, config, version: None }
}

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
    /// Where copies of these files compute. Files that are no model have their say when they are laid out.
    pub(super) fn seat(self, model: &Registration, artifacts: &Artifacts) -> Seat {
        let on_a_gpu = || Source::read(model, artifacts).and_then(|source| layout::triton::runs_on_a_gpu(&source)).unwrap_or(false);
        if self == Dialect::Triton && on_a_gpu() { Seat::OneGpu } else { Seat::Given }
    }

    /// Puts the model's files where the server wants them below `root`, for the GPU that was chosen.
    pub(super) fn lay_out(self, root: &Path, model: &Registration, artifacts: &Artifacts, gpu: Option<u16>) -> Result<(LaidOut, Made), LoadError> {
        if layout::name::server_name(&model.id) != model.id.as_str() {
            // Requests carry the id, and what they name would be no model.
            let why = "an id for it is made of letters, digits, '_', '-' and '.', starts with none of these but letters and digits or '_'";
            return Err(LoadError::bad_model(format!("{} cannot call a model {:?}: {why}, and is at most 240 long", self.name(), model.id.as_str())));
        }
        let (laid_out, plan) = Source::lay_out(model, artifacts, root, |source| match self {
            Dialect::Triton => layout::triton::plan(source, &options(gpu)),
            Dialect::MlServer => layout::mlserver::plan(source, root),
        })?;
        Ok((laid_out, Made { parts: plan.parts.into_keys().collect(), config: plan.config }))
    }

    /// What an order to load says beside the name.
    pub(super) fn load_parameters(self, made: &Made) -> HashMap<String, Parameter> {
        let config = made.config.clone().map(|config| ("config".to_owned(), Parameter { value: Some(Value::StringParam(config)) }));
        config.into_iter().collect()
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::conformance::registration;

    #[test]
    fn a_copy_for_a_gpu_has_its_configuration_with_the_order_to_load_and_no_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (root, files) = (folder.path().join("server"), folder.path().join("model.onnx"));
        fs::write(&files, "x").expect("writable");
        let (model, artifacts) = (registration("m__isvc-1"), Artifacts { model: files, schema: None, size: ByteSize(1) });
        assert_eq!(Dialect::Triton.seat(&model, &artifacts), Seat::OneGpu);
        assert_eq!(Dialect::MlServer.seat(&model, &artifacts), Seat::Given);
        let (laid_out, made) = Dialect::Triton.lay_out(&root, &model, &artifacts, Some(3)).expect("sound");
        assert!(laid_out.path.join("1/model.onnx").exists() && !laid_out.path.join("config.pbtxt").exists());
        let parameters = Dialect::Triton.load_parameters(&made);
        let Some(Value::StringParam(config)) = parameters.get("config").and_then(|config| config.value.clone()) else {
            panic!("{parameters:?}");
        };
        let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["instance_group"], serde_json::json!([{ "kind": "KIND_GPU", "gpus": [3] }]));
        let (_, made) = Dialect::Triton.lay_out(&root, &model, &artifacts, None).expect("sound");
        assert!(Dialect::Triton.load_parameters(&made).is_empty());
    }
}
