//! OpenVINO Model Server: a folder of versions per model, and one file that lists the models.

use std::collections::BTreeMap;
use std::path::PathBuf;

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

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{Case, shown, source};
    use super::*;

    /// Upstream's own cases, and those that it has no test for.
    pub(in super::super) const CASES: &[Case] = &[
        ("an onnx file", "onnx", "model.onnx", &["model.onnx"], &["1/model.onnx -> model.onnx"]),
        ("an onnx file of another name", "onnx", "mnist", &["mnist"], &["1/model.onnx -> mnist"]),
        ("versions of onnx", "onnx", "my_model", &["my_model/2/model.onnx", "my_model/6/model.onnx"], &["6 -> my_model/6"]),
        ("a folder of IR", "openvino_ir", "my_model", &["my_model/a.xml", "my_model/a.bin", "my_model/a.mapping"], &["1 -> my_model"]),
        (
            "versions of IR",
            "openvino_ir",
            "my_model",
            &["my_model/2/a.xml", "my_model/2/a.bin", "my_model/5/a.xml", "my_model/5/a.bin"],
            &["5 -> my_model/5"],
        ),
        ("a file of an unknown type", "foo", "my_model", &["my_model"], &["1/my_model -> my_model"]),
        ("a folder of an unknown type", "foo", "dir", &["dir/a"], &["1 -> dir"]),
        ("a path that is a version", "foo", "2", &["2/a"], &["1 -> 2"]),
        ("numeric order", "foo", "dir", &["dir/9/a", "dir/10/a"], &["10 -> dir/10"]),
        (
            "example: fvt openvino mnist",
            "openvino_ir",
            "fvt/openvino/mnist",
            &["fvt/openvino/mnist/mnist.bin", "fvt/openvino/mnist/mnist.xml", "fvt/openvino/mnist/mnist.mapping"],
            &["1 -> fvt/openvino/mnist"],
        ),
    ];

    #[test]
    fn every_model_has_one_version() {
        for (case, kind, path, files, expected) in CASES {
            let given = plan(&source(kind, path, files, None)).unwrap_or_else(|fault| panic!("{case}: {fault}"));
            assert_eq!(
                (shown(&given.entries).as_slice(), given.notes.len()),
                (expected.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>().as_slice(), 0),
                "{case}"
            );
        }
        assert_eq!(plan(&source("onnx", "a", &["a"], Some("{}"))).expect("sound").notes.len(), 1);
    }

    #[test]
    fn the_configuration_lists_the_models_in_order_and_is_read_back() {
        let models: BTreeMap<String, PathBuf> =
            ["b", "a\"", "c"].into_iter().map(|name| (name.to_owned(), std::path::Path::new("/models/_ovms_models").join(name))).collect();
        let text = config(&models);
        assert_eq!(
            text,
            r#"{"model_config_list":[{"config":{"name":"a\"","base_path":"/models/_ovms_models/a\""}},{"config":{"name":"b","base_path":"/models/_ovms_models/b"}},{"config":{"name":"c","base_path":"/models/_ovms_models/c"}}]}"#
        );
        assert_eq!(super::models(text.as_bytes()), Ok(models));
        assert_eq!(config(&BTreeMap::new()), r#"{"model_config_list":[]}"#);
        assert!(super::models(b"{").expect_err("cut off").contains("line 1"));
        let extra = br#"{"model_config_list":[{"config":{"name":"a","base_path":"/a","nireq":4}}],"monitoring":{}}"#;
        assert_eq!(super::models(extra).expect("sound").len(), 1);
    }
}
