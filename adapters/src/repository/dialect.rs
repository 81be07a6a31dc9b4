//! In what servers with a model repository differ.

use std::io;
use std::path::Path;

use berth_proto::repository::{StatisticsRequest, StatisticsResponse};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Pool, Registration};

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
    pub(super) fn lay_out(self, root: &Path, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let (folder, wrong) = (root.join(model.id.as_str()), |fault: io::Error| LoadError::bad_model(fault.to_string()));
        let _ = std::fs::remove_dir_all(&folder);
        match self {
            Dialect::Triton => {
                std::fs::create_dir_all(folder.join("1")).map_err(wrong)?;
                std::os::unix::fs::symlink(&artifacts.model, folder.join("1/model.onnx")).map_err(wrong)?;
                std::fs::write(folder.join("config.pbtxt"), "backend: \"onnxruntime\"\n").map_err(wrong)?;
            }
            Dialect::MlServer => {}
        }
        Ok(LaidOut { path: folder })
    }

    pub(super) fn clear(self, root: &Path, model: &ModelId) -> io::Result<()> {
        match std::fs::remove_dir_all(root.join(model.as_str())) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(fault),
            _ => Ok(()),
        }
    }
}
