//! What a server of the contract is told of a model's files: paths and a model key, as ModelMesh's puller writes them once the
//! files are there. Where they came from, with its keys and secrets, is left out.

use std::path::Path;

use berth_types::{ByteSize, Registration};
use serde::Serialize;

/// The name of a model whose path has none.
const MODEL: &str = "_model";
/// The name of a schema that would be called like its model, or like nothing.
const SCHEMA: &str = "_schema.json";

/// What the model's file or folder is called, and its schema.
pub(super) fn names(model: &Registration) -> (String, Option<String>) {
    let name = last_of(&model.path).unwrap_or(MODEL).to_owned();
    let schema = model.schema_path.as_deref().map(|path| last_of(path).filter(|schema| *schema != name).unwrap_or(SCHEMA).to_owned());
    (name, schema)
}

fn last_of(path: &str) -> Option<&str> {
    path.trim_matches('/').rsplit('/').next().filter(|name| !name.is_empty())
}

#[derive(Serialize)]
struct Key<'a> {
    model_type: ModelType<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_path: Option<&'a Path>,
    disk_size_bytes: u64,
}

#[derive(Serialize)]
struct ModelType<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

/// The model key: JSON with the format, where the schema lies, and the bytes of the model's files.
pub(super) fn key(model: &Registration, schema: Option<&Path>, size: ByteSize) -> Result<String, String> {
    let model_type = ModelType { name: &model.format.name, version: model.format.version.as_deref() };
    serde_json::to_string(&Key { model_type, schema_path: schema, disk_size_bytes: size.0 }).map_err(|fault| format!("model key: {fault}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_types::{ModelFormat, ModelId, Placement, StorageRef};

    use super::*;

    fn model(path: &str, schema: Option<&str>) -> Registration {
        let parameters = [("bucket".to_owned(), "b".to_owned())].into();
        let storage =
            StorageRef { key: Some("secret".into()), parameters: Arc::new(parameters), path: path.into(), schema_path: schema.map(Arc::from) };
        let format = ModelFormat { name: "onnx".into(), version: Some("1".into()) };
        Registration::new(ModelId::new("m").expect("valid"), format, Placement::Format { protocol: None }, storage, None)
    }

    #[test]
    fn local_names_are_the_last_of_the_remote_paths() {
        for (path, schema, named, schema_named) in [
            ("model.zip", None, "model.zip", None),
            ("path/to/model", Some("other/my_schema"), "model", Some("my_schema")),
            ("path/to/model/", Some("schema.json/"), "model", Some("schema.json")),
            ("/a/model", Some("b/model"), "model", Some("_schema.json")),
            ("", Some(""), "_model", Some("_schema.json")),
            ("/", Some("_model"), "_model", Some("_schema.json")),
        ] {
            let expected = (named.to_owned(), schema_named.map(str::to_owned));
            assert_eq!(names(&model(path, schema)), expected, "{path} {schema:?}");
        }
    }

    #[test]
    fn the_key_says_what_the_files_are_and_not_where_they_came_from() {
        let onnx = model("path/model", Some("s"));
        assert_eq!(
            key(&onnx, Some(Path::new("/models/m/s")), ByteSize(60)).expect("text"),
            r#"{"model_type":{"name":"onnx","version":"1"},"schema_path":"/models/m/s","disk_size_bytes":60}"#
        );
        let mut plain = model("path/model", None);
        Arc::make_mut(&mut plain.class).format.version = None;
        assert_eq!(key(&plain, None, ByteSize(0)).expect("text"), r#"{"model_type":{"name":"onnx"},"disk_size_bytes":0}"#);
    }
}
