//! The example models with their recorded requests and answers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// `examples/quickstart` of this repository, or a copy of it.
#[derive(Clone, Debug)]
pub struct Quickstart {
    folder: PathBuf,
}

impl Quickstart {
    /// The one in the repository.
    #[must_use]
    pub fn committed() -> Self {
        Quickstart { folder: crate::root().join("examples/quickstart") }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that holds a folder for each model.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    /// The names of the models, sorted: all that have a recorded answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join("expected"))? {
            names.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
        ensure!(!names.is_empty(), "no model has a recorded answer");
        names.sort();
        Ok(names)
    }

    /// The recorded request of `name`, the body of a REST call.
    ///
    /// # Errors
    /// When there is none.
    pub fn request(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join("requests").join(name).with_extension("json");
        fs::read(&path).with_context(|| path.display().to_string())
    }

    /// The recorded answer of `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn expected(&self, name: &str) -> Result<Value> {
        let path = self.folder.join("expected").join(name).with_extension("json");
        serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?).with_context(|| path.display().to_string())
    }

    /// Copies the manifests, and nothing else, into `to`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn copy_manifests(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                fs::copy(&path, to.join(path.file_name().context("a file has a name")?))?;
            }
        }
        Ok(())
    }

    /// Checks that `answer`, the body of a REST answer, is what was recorded for `name`.
    ///
    /// # Errors
    /// With the first difference.
    pub fn check(&self, name: &str, answer: &Value) -> Result<()> {
        compare(&self.expected(name)?, answer).with_context(|| format!("{name} answered {answer}"))
    }
}

/// Compares the outputs of an answer with the recorded ones: names, datatypes, shapes, and data within the tolerance.
///
/// # Errors
/// With the first difference.
pub fn compare(expected: &Value, answer: &Value) -> Result<()> {
    let outputs = |value: &Value| value["outputs"].as_array().cloned().unwrap_or_default();
    let given = outputs(answer);
    ensure!(given.len() == outputs(expected).len(), "{} outputs instead of {}", given.len(), outputs(expected).len());
    for want in outputs(expected) {
        let name = want["name"].as_str().context("a recorded output has a name")?;
        let got = given.iter().find(|output| output["name"] == want["name"]).with_context(|| format!("output {name} is missing"))?;
        for key in ["datatype", "shape"] {
            ensure!(got[key] == want[key], "output {name}: {key} is {} instead of {}", got[key], want[key]);
        }
        let (got_data, want_data) = (flat(&got["data"]), flat(&want["data"]));
        ensure!(got_data.len() == want_data.len(), "output {name}: {} elements instead of {}", got_data.len(), want_data.len());
        let in_base64 = got["parameters"]["content_type"] == "base64";
        for (at, (got, want)) in got_data.iter().zip(&want_data).enumerate() {
            ensure!(same(got, want, &expected_tolerance(expected, name), in_base64), "output {name}: element {at} is {got} instead of {want}");
        }
    }
    Ok(())
}

fn expected_tolerance(expected: &Value, name: &str) -> Value {
    let outputs = expected["outputs"].as_array();
    outputs.into_iter().flatten().find(|output| output["name"] == name).map_or(Value::Null, |output| output["tolerance"].clone())
}

/// The elements of an array that may be nested.
fn flat(data: &Value) -> Vec<Value> {
    match data {
        Value::Array(elements) => elements.iter().flat_map(flat).collect(),
        element => vec![element.clone()],
    }
}

fn same(got: &Value, want: &Value, tolerance: &Value, in_base64: bool) -> bool {
    if let (Some(got), Some(want), Some(absolute), Some(relative)) =
        (got.as_f64(), want.as_f64(), tolerance["absolute"].as_f64(), tolerance["relative"].as_f64())
    {
        return (got - want).abs() <= absolute + relative * want.abs();
    }
    match (got.as_str(), want.as_str()) {
        (Some(got), Some(want)) if in_base64 => STANDARD.decode(got).is_ok_and(|bytes| bytes == want.as_bytes()),
        _ => got == want,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outputs(datatype: &str, data: &Value, tolerance: &Value) -> Value {
        json!({"outputs": [{"name": "y", "datatype": datatype, "shape": [2], "data": data, "tolerance": tolerance}]})
    }

    #[test]
    fn only_answers_within_the_tolerance_are_the_same() {
        let close = json!({"absolute": 1e-5, "relative": 1e-4});
        for (case, want, got, equal) in [
            ("equal numbers", outputs("INT64", &json!([1, 2]), &Value::Null), outputs("INT64", &json!([1, 2]), &Value::Null), true),
            ("nested", outputs("INT64", &json!([1, 2]), &Value::Null), outputs("INT64", &json!([[1], [2]]), &Value::Null), true),
            ("another number", outputs("INT64", &json!([1, 2]), &Value::Null), outputs("INT64", &json!([1, 3]), &Value::Null), false),
            ("too few", outputs("INT64", &json!([1, 2]), &Value::Null), outputs("INT64", &json!([1]), &Value::Null), false),
            ("another type", outputs("INT64", &json!([1, 2]), &Value::Null), outputs("INT32", &json!([1, 2]), &Value::Null), false),
            ("near", outputs("FP32", &json!([1.0, 2.0]), &close), outputs("FP32", &json!([1.00005, 2.0]), &Value::Null), true),
            ("not near enough", outputs("FP32", &json!([1.0, 2.0]), &close), outputs("FP32", &json!([1.001, 2.0]), &Value::Null), false),
            ("texts", outputs("BYTES", &json!(["a", "b"]), &Value::Null), outputs("BYTES", &json!(["a", "b"]), &Value::Null), true),
            ("other texts", outputs("BYTES", &json!(["a", "b"]), &Value::Null), outputs("BYTES", &json!(["a", "YQ=="]), &Value::Null), false),
        ] {
            assert_eq!(compare(&want, &got).is_ok(), equal, "{case}");
        }
    }

    #[test]
    fn texts_in_base64_are_compared_as_the_bytes_that_they_stand_for() {
        let want = outputs("BYTES", &json!(["a", "b"]), &Value::Null);
        let mut got = outputs("BYTES", &json!(["YQ==", "Yg=="]), &Value::Null);
        got["outputs"][0]["parameters"] = json!({"content_type": "base64"});
        compare(&want, &got).expect("the same bytes");
    }

    #[test]
    fn every_example_has_a_request_a_model_and_a_manifest() {
        let quickstart = Quickstart::committed();
        let names = quickstart.names().expect("examples");
        assert!(names.len() >= 6, "{names:?}");
        for name in names {
            quickstart.request(&name).expect("a request");
            assert!(quickstart.models().join(&name).join("model.onnx").is_file(), "{name}");
            assert!(quickstart.folder().join(&name).with_extension("yaml").is_file(), "{name}");
        }
    }
}
