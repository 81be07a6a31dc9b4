//! OpenVINO Model Server: a folder of versions per model, and one file that lists the models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::listing::Node;
use super::plan::Plan;
use super::{Source, triton};
use crate::LoadError;

/// How the model is laid out: one version of it, which is the largest of a folder of versions. A schema has no say here.
///
/// # Errors
/// None today; a bad model where a layout cannot be.
pub(crate) fn plan(source: &Source) -> Result<Plan, LoadError> {
    let mut plan = Plan::named(source.server_name());
    let (path, link) = match &source.listing.0 {
        Node::File { .. } => {
            let name = if source.kind == "onnx" { "model.onnx" } else { source.name.as_str() };
            (format!("1/{name}"), source.link(""))
        }
        Node::Folder { .. } => {
            let (folder, version) = triton::version_of(source, None, "")?;
            (version, source.link(&folder))
        }
    };
    plan.entries.insert(path, link);
    if source.schema.is_some() {
        plan.notes.push("the schema is not used: the server reads inputs and outputs from the model".to_owned());
    }
    Ok(plan)
}

#[derive(Deserialize, Serialize)]
struct Written {
    model_config_list: Vec<Item>,
}

#[derive(Deserialize, Serialize)]
struct Item {
    config: Model,
}

#[derive(Deserialize, Serialize)]
struct Model {
    name: String,
    base_path: PathBuf,
}

/// The text of the server's configuration file for these models: name and the folder that [`Plan::carry_out`] made, as the
/// server sees it. The same models give the same text.
pub(crate) fn config(models: &BTreeMap<String, PathBuf>) -> String {
    let item = |(name, path): (&String, &PathBuf)| Item { config: Model { name: name.clone(), base_path: path.clone() } };
    let written = Written { model_config_list: models.iter().map(item).collect() };
    serde_json::to_string(&written).unwrap_or_else(|_| r#"{"model_config_list":[]}"#.to_owned())
}

/// The models of a configuration file that an earlier process left.
///
/// # Errors
/// What is wrong and where.
pub(crate) fn models(config: &[u8]) -> Result<BTreeMap<String, PathBuf>, String> {
    let written: Written = serde_json::from_slice(config).map_err(|fault| fault.to_string())?;
    Ok(written.model_config_list.into_iter().map(|Item { config: Model { name, base_path } }| (name, base_path)).collect())
}

/// The folder of a model as the server sees it.
pub(crate) fn base_path(root: &Path, name: &str) -> PathBuf {
    root.join(name)
}
