//! MLServer: a folder per model with `model-settings.json` in it.
//!
//! MLServer finds its models by looking for files of that name at any depth, through links too. So there is exactly one in
//! a layout: the model's own, in which every value that need not change is kept as written, or one that is made. Others,
//! deeper in the model's folder, would be models of their own and are left out.

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::Source;
use super::listing::{Node, SETTINGS, names};
use super::plan::{Entry, Plan};
use super::schema::TensorSpec;
use crate::LoadError;
use crate::tensor::{Datatype, quoted};

/// What MLServer needs to know of a format.
struct Runtime {
    implementation: &'static str,
    /// Of a runtime that reads one file: the names that it looks for in a folder.
    files: &'static [&'static str],
}

fn runtime(kind: &str) -> Option<Runtime> {
    let of = |implementation, files| Some(Runtime { implementation, files });
    match kind {
        "sklearn" => of("mlserver_sklearn.SKLearnModel", &["model.joblib", "model.pickle", "model.pkl"]),
        "xgboost" => of("mlserver_xgboost.XGBoostModel", &["model.bst", "model.json", "model.ubj"]),
        "lightgbm" => of("mlserver_lightgbm.LightGBMModel", &["model.bst"]),
        "catboost" => of("mlserver_catboost.CatboostModel", &["model.cbm", "model.bin"]),
        "mllib" => of("mlserver_mllib.MLlibModel", &[]),
        "mlflow" => of("mlserver_mlflow.MLflowRuntime", &[]),
        "huggingface" => of("mlserver_huggingface.HuggingFaceRuntime", &[]),
        "alibi-detect" | "alibi_detect" => of("mlserver_alibi_detect.AlibiDetectRuntime", &[]),
        "alibi-explain" | "alibi_explain" => of("mlserver_alibi_explain.AlibiExplainRuntime", &[]),
        _ => None,
    }
}

/// How the model is laid out for MLServer, whose models lie below `root` as MLServer itself sees it.
///
/// # Errors
/// A bad model: settings that are no settings, or that name a file that is not there.
pub(crate) fn plan(source: &Source, root: &Path) -> Result<Plan, LoadError> {
    check_schema(source)?;
    let mut plan = Plan::named(source.server_name());
    let target = root.join(&plan.name);
    let (own, text) = match &source.listing.0 {
        Node::Folder { entries, .. } if entries.get(SETTINGS).is_some_and(|node| !node.is_folder()) => ("", source.listing.text(SETTINGS)?),
        Node::File { .. } if source.name == SETTINGS => ("", source.listing.text("")?),
        Node::File { .. } | Node::Folder { .. } => (source.name.as_str(), &[][..]),
    };
    if own == SETTINGS {
        return Err(LoadError::bad_model(format!("{SETTINGS} is a folder: expected a file, or a model of another name")));
    }
    let settings = if own.is_empty() {
        rewritten(source, &plan.name, &target, text).map_err(|what| LoadError::bad_model(format!("{SETTINGS}: {what}")))?
    } else {
        if runtime(&source.kind).is_none() {
            plan.notes.push(format!("no implementation is known for the format {:?}: MLServer must have been told one", source.kind));
        }
        made(source, &plan.name, &target.join(own))
    };
    if !(own.is_empty() && matches!(source.listing.0, Node::File { .. })) {
        mirror(source, &source.listing.0, "", own, &mut plan);
    }
    plan.entries.insert(SETTINGS.to_owned(), Entry::Text(settings.into_bytes()));
    Ok(plan)
}

/// A datatype that MLServer does not know would make its settings unreadable: the model would not be found, for no reason told.
fn check_schema(source: &Source) -> Result<(), LoadError> {
    let specs = source.schema.iter().flat_map(|schema| schema.inputs.iter().chain(&schema.outputs));
    match specs.into_iter().find(|spec| spec.datatype == Datatype::Bf16) {
        None => Ok(()),
        Some(TensorSpec { name, .. }) => {
            Err(LoadError::bad_model(format!("tensor {} has datatype BF16, which MLServer does not know", quoted(name))))
        }
    }
}

/// Whether MLServer would find settings in there.
fn holds_settings(node: &Node) -> bool {
    node.entries().is_some_and(|entries| entries.iter().any(|(name, node)| name == SETTINGS || holds_settings(node)))
}

/// Links a file or folder as one where that is safe, else its entries one by one without the settings among them. `at` is
/// the path in the listing, `to` the one in the layout; of the model itself with settings of its own only the entries.
fn mirror(source: &Source, node: &Node, at: &str, to: &str, plan: &mut Plan) {
    let entries = match node.entries() {
        Some(entries) if to.is_empty() || holds_settings(node) => entries,
        _ => {
            plan.entries.insert(to.to_owned(), source.link(at));
            return;
        }
    };
    if !to.is_empty() {
        plan.entries.insert(to.to_owned(), Entry::Folder);
    }
    let join = |folder: &str, name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    for (name, node) in entries {
        if name != SETTINGS {
            mirror(source, node, &join(at, name), &join(to, name), plan);
        } else if !at.is_empty() {
            plan.notes.push(format!("{at}/{SETTINGS} is left out: MLServer would take it for another model"));
        }
    }
}

/// Settings for a model that has none.
fn made(source: &Source, name: &str, link: &Path) -> String {
    let runtime = runtime(&source.kind);
    let mut uri = link.to_owned();
    // A folder with one file of any name: the runtime would look for its own names only.
    if let (Some(Runtime { files, .. }), Some(entries)) = (&runtime, source.listing.0.entries())
        && let mut inner = entries.iter().filter(|(name, _)| *name != "_schema.json")
        && let (Some((file, Node::File { .. })), None) = (inner.next(), inner.next())
        && !files.is_empty()
        && !files.contains(&file.as_str())
    {
        uri.push(file);
    }
    let mut settings = Pairs(vec![("name".to_owned(), raw(&name))]);
    if let Some(Runtime { implementation, .. }) = runtime {
        settings.set("implementation", raw(&implementation));
    }
    settings.set("parameters", raw(&json!({ "uri": uri })));
    settings.apply(source);
    settings.text()
}

/// Settings that are there, changed where they must be.
fn rewritten(source: &Source, name: &str, target: &Path, text: &[u8]) -> Result<String, String> {
    let mut settings: Pairs = serde_json::from_slice(text).map_err(|fault| fault.to_string())?;
    settings.set("name", raw(&name));
    if let Some(written) = settings.get("parameters").filter(|written| written.get() != "null") {
        let mut parameters: Pairs = serde_json::from_str(written.get()).map_err(|fault| format!("parameters: {fault}"))?;
        if let Some(uri) = parameters.get("uri").filter(|written| written.get() != "null") {
            let uri: String = serde_json::from_str(uri.get()).map_err(|fault| format!("parameters.uri: {fault}"))?;
            // What is no path is the runtime's own business.
            if !uri.contains("://") {
                let path = inside(source, &uri)?;
                let whole = if path.is_empty() { target.to_owned() } else { target.join(path) };
                parameters.set("uri", raw(&whole));
                settings.set("parameters", raw(&parameters));
            }
        }
    }
    settings.apply(source);
    Ok(settings.text())
}

/// The path of the listing that a URI of the settings means. What leads above the model's folder stays in it.
fn inside(source: &Source, uri: &str) -> Result<String, String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in uri.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    let path = parts.join("/");
    match source.listing.get(&path) {
        Some(_) => Ok(path),
        None => {
            let found = source.listing.0.entries().map(names).unwrap_or_default();
            Err(format!("parameters.uri {uri:?} is not among the model's files: found {found}"))
        }
    }
}

/// The members of a JSON object in their order, each value as written.
#[derive(Clone, Debug, Default)]
struct Pairs(Vec<(String, Box<RawValue>)>);

impl Pairs {
    /// The last of this name counts, as in Python.
    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().rfind(|(own, _)| own == name).map(|(_, value)| &**value)
    }

    /// In the place of the last of this name, or at the end.
    fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().rfind(|(own, _)| own == name) {
            Some((_, own)) => *own = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Inputs and outputs of the schema; a list that it leaves empty stays as it is.
    fn apply(&mut self, source: &Source) {
        if let Some(schema) = &source.schema {
            for (name, specs) in [("inputs", &schema.inputs), ("outputs", &schema.outputs)] {
                if !specs.is_empty() {
                    let tensor =
                        |TensorSpec { name, datatype, shape }: &TensorSpec| json!({ "name": name, "datatype": datatype.as_str(), "shape": shape });
                    self.set(name, raw(&specs.iter().map(tensor).collect::<Vec<_>>()));
                }
            }
        }
    }

    fn text(&self) -> String {
        raw(self).get().to_owned()
    }
}

/// A value as JSON text. Paths here are UTF-8 but for the root's, which is ours; what cannot be written is null.
fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{Case, id, shown, source};
    use super::*;

    /// Upstream's own cases, and those that it has no test for.
    pub(in super::super) const CASES: &[Case] = &[
        (
            "a single file",
            "sklearn",
            "sklearn/mnist-svm.joblib",
            &["sklearn/mnist-svm.joblib"],
            &[
                "mnist-svm.joblib -> sklearn/mnist-svm.joblib",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"uri":"/models/m/mnist-svm.joblib"}}"#,
            ],
        ),
        (
            "a folder with one file",
            "lightgbm",
            "dir",
            &["dir/model.bst"],
            &[
                "dir -> dir",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_lightgbm.LightGBMModel","parameters":{"uri":"/models/m/dir"}}"#,
            ],
        ),
        (
            "a folder with one file of a name that the runtime does not look for",
            "sklearn",
            "dir",
            &["dir/mnist-svm.joblib"],
            &[
                "dir -> dir",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"uri":"/models/m/dir/mnist-svm.joblib"}}"#,
            ],
        ),
        (
            "a complex folder",
            "mllib",
            "dir",
            &["dir/data/a", "dir/metadata/b", "dir/c"],
            &[
                "dir -> dir",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_mllib.MLlibModel","parameters":{"uri":"/models/m/dir"}}"#,
            ],
        ),
        (
            "settings and others",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"name": "old", "implementation": "a.B"}"#, "dir/model.joblib", "dir/more/x"],
            &["model-settings.json = {\"name\":\"m\",\"implementation\":\"a.B\"}", "model.joblib -> dir/model.joblib", "more -> dir/more"],
        ),
        (
            "an empty path: named after the id",
            "sklearn",
            "",
            &["a", "b"],
            &["m -> ", r#"model-settings.json = {"name":"m","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"uri":"/models/m/m"}}"#],
        ),
        (
            "sklearn with settings: the name is replaced",
            "sklearn",
            "dir",
            &[
                r#"dir/model-settings.json={"name":"mnist","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"version":"v1","uri":"./mnist.joblib"}}"#,
                "dir/mnist.joblib",
            ],
            &[
                "mnist.joblib -> dir/mnist.joblib",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"version":"v1","uri":"/models/m/mnist.joblib"}}"#,
            ],
        ),
        (
            "xgboost with settings: a name is added, the version kept",
            "xgboost",
            "dir",
            &[
                r#"dir/model-settings.json={"parameters": {"uri": "./mushroom-xgboost.json", "version": "v0.1.0"}, "implementation": "mlserver_xgboost.XGBoostModel"}"#,
                "dir/mushroom-xgboost.json",
            ],
            &[
                r#"model-settings.json = {"parameters":{"uri":"/models/m/mushroom-xgboost.json","version":"v0.1.0"},"implementation":"mlserver_xgboost.XGBoostModel","name":"m"}"#,
                "mushroom-xgboost.json -> dir/mushroom-xgboost.json",
            ],
        ),
        (
            "mllib with settings and folders",
            "mllib",
            "dir",
            &[r#"dir/model-settings.json={"implementation":"x","parameters":{"uri":"data/part"}}"#, "dir/data/part/a", "dir/metadata/b"],
            &[
                "data -> dir/data",
                "metadata -> dir/metadata",
                r#"model-settings.json = {"implementation":"x","parameters":{"uri":"/models/m/data/part"},"name":"m"}"#,
            ],
        ),
        (
            "a settings file that comes after the model's in the alphabet",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"name":"m","parameters":{"uri":"a.joblib"}}"#, "dir/a.joblib"],
            &["a.joblib -> dir/a.joblib", r#"model-settings.json = {"name":"m","parameters":{"uri":"/models/m/a.joblib"}}"#],
        ),
        (
            "a list of versions and a path with ./",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"name":"n","versions":[{"v": 1.0},18446744073709551617],"parameters":{"uri":"./x"}}"#, "dir/x"],
            &[r#"model-settings.json = {"name":"m","versions":[{"v": 1.0},18446744073709551617],"parameters":{"uri":"/models/m/x"}}"#, "x -> dir/x"],
        ),
        (
            "settings deeper in a folder would be another model",
            "huggingface",
            "dir",
            &["dir/a/b/model-settings.json={}", "dir/a/b/x", "dir/a/c/y", "dir/z"],
            &[
                "dir/",
                "dir/a/",
                "dir/a/b/",
                "dir/a/b/x -> dir/a/b/x",
                "dir/a/c -> dir/a/c",
                "dir/z -> dir/z",
                r#"model-settings.json = {"name":"m","implementation":"mlserver_huggingface.HuggingFaceRuntime","parameters":{"uri":"/models/m/dir"}}"#,
            ],
        ),
        (
            "settings deeper than the model's own",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"name":"m"}"#, "dir/old/model-settings.json={}", "dir/old/x"],
            &[r#"model-settings.json = {"name":"m"}"#, "old/", "old/x -> dir/old/x"],
        ),
        (
            "settings and nothing else",
            "sklearn",
            "model-settings.json",
            &[r#"model-settings.json={"implementation":"a.B"}"#],
            &[r#"model-settings.json = {"implementation":"a.B","name":"m"}"#],
        ),
        (
            "a format that the server's own image may know",
            "spacy",
            "dir",
            &["dir/x"],
            &["dir -> dir", r#"model-settings.json = {"name":"m","parameters":{"uri":"/models/m/dir"}}"#],
        ),
        (
            "what is no path stays",
            "mlflow",
            "dir",
            &[r#"dir/model-settings.json={"parameters":{"uri":"runs://x","extra":null}}"#, "dir/x"],
            &[r#"model-settings.json = {"parameters":{"uri":"runs://x","extra":null},"name":"m"}"#, "x -> dir/x"],
        ),
        (
            "an absolute path is one below the model",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"parameters":{"uri":"/../sub/./x"}}"#, "dir/sub/x"],
            &[r#"model-settings.json = {"parameters":{"uri":"/models/m/sub/x"},"name":"m"}"#, "sub -> dir/sub"],
        ),
        (
            "the whole folder",
            "huggingface",
            "dir",
            &[r#"dir/model-settings.json={"parameters":{"uri":"."}}"#, "dir/x"],
            &[r#"model-settings.json = {"parameters":{"uri":"/models/m"},"name":"m"}"#, "x -> dir/x"],
        ),
        (
            "parameters of null",
            "sklearn",
            "dir",
            &[r#"dir/model-settings.json={"parameters":null,"name":"a","name":"b"}"#],
            &[r#"model-settings.json = {"parameters":null,"name":"a","name":"m"}"#],
        ),
        (
            "example: mushroom-dup with a further file",
            "xgboost",
            "xgboost/mushroom-dup",
            &["xgboost/mushroom-dup/mushroom.json", "xgboost/mushroom-dup/dummy"],
            &[
                r#"model-settings.json = {"name":"m","implementation":"mlserver_xgboost.XGBoostModel","parameters":{"uri":"/models/m/mushroom-dup"}}"#,
                "mushroom-dup -> xgboost/mushroom-dup",
            ],
        ),
        (
            "example: lightgbm/mushroom.bst",
            "lightgbm",
            "lightgbm/mushroom.bst",
            &["lightgbm/mushroom.bst"],
            &[
                r#"model-settings.json = {"name":"m","implementation":"mlserver_lightgbm.LightGBMModel","parameters":{"uri":"/models/m/mushroom.bst"}}"#,
                "mushroom.bst -> lightgbm/mushroom.bst",
            ],
        ),
    ];

    fn planned(source: &Source) -> Result<Plan, LoadError> {
        plan(source, Path::new("/models"))
    }

    #[test]
    fn every_model_becomes_one_folder_with_one_settings_file() {
        for (case, kind, path, files, expected) in CASES {
            let plan = planned(&source(kind, path, files, None)).unwrap_or_else(|fault| panic!("{case}: {fault}"));
            let (mut given, mut wanted) = (shown(&plan.entries), expected.to_vec());
            given.sort();
            wanted.sort_unstable();
            assert_eq!(given, wanted, "{case}");
            assert_eq!(plan.entries.keys().filter(|path| path.ends_with(SETTINGS)).count(), 1, "{case}");
            assert_eq!(plan.notes.len(), usize::from(case.contains("deeper") || *kind == "spacy"), "{case}: {:?}", plan.notes);
        }
    }

    #[test]
    fn every_runtime_of_mlservers_own_is_known_by_its_right_name() {
        for (kind, implementation) in [
            ("sklearn", "mlserver_sklearn.SKLearnModel"),
            ("xgboost", "mlserver_xgboost.XGBoostModel"),
            ("lightgbm", "mlserver_lightgbm.LightGBMModel"),
            ("mllib", "mlserver_mllib.MLlibModel"),
            ("huggingface", "mlserver_huggingface.HuggingFaceRuntime"),
            ("mlflow", "mlserver_mlflow.MLflowRuntime"),
            ("catboost", "mlserver_catboost.CatboostModel"),
            ("alibi-detect", "mlserver_alibi_detect.AlibiDetectRuntime"),
            ("alibi-explain", "mlserver_alibi_explain.AlibiExplainRuntime"),
            ("SKLearn:1.2", "mlserver_sklearn.SKLearnModel"),
        ] {
            let plan = planned(&source(kind, "a", &["a"], None)).expect("sound");
            assert!(shown(&plan.entries)[1].contains(&format!("\"implementation\":\"{implementation}\"")), "{kind}");
        }
    }

    #[test]
    fn a_schema_fills_in_what_it_states() {
        let schema = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,126]}],"outputs":[{"name":"p","datatype":"STRING","shape":[-1]}]}"#;
        let plan = planned(&source("xgboost", "m.json", &["m.json"], Some(schema))).expect("sound");
        let inputs = r#""inputs":[{"datatype":"FP32","name":"x","shape":[-1,126]}]"#;
        let outputs = r#""outputs":[{"datatype":"BYTES","name":"p","shape":[-1]}]"#;
        let text = format!(
            r#"model-settings.json = {{"name":"m","implementation":"mlserver_xgboost.XGBoostModel","parameters":{{"uri":"/models/m/m.json"}},{inputs},{outputs}}}"#
        );
        assert_eq!(shown(&plan.entries), ["m.json -> m.json".to_owned(), text]);
        let only = r#"{"outputs":[{"name":"p","datatype":"BYTES","shape":[-1]}]}"#;
        let settings = r#"dir/model-settings.json={"outputs":[1,2],"inputs":[ {"name":"kept"} ],"name":"n"}"#;
        let plan = planned(&source("xgboost", "dir", &[settings], Some(only))).expect("sound");
        assert_eq!(shown(&plan.entries), [format!(r#"model-settings.json = {{{outputs},"inputs":[ {{"name":"kept"}} ],"name":"m"}}"#)]);
    }

    #[test]
    fn a_datatype_that_mlserver_does_not_know_is_refused_by_name() {
        let schema = r#"{"outputs":[{"name":"p","datatype":"BF16","shape":[1]}]}"#;
        let refused = planned(&source("sklearn", "a", &["a"], Some(schema))).expect_err("unknown");
        assert_eq!(refused.message, "tensor \"p\" has datatype BF16, which MLServer does not know");
    }

    #[test]
    fn settings_that_are_none_are_refused_with_what_and_where() {
        for (text, says) in [
            ("", "model-settings.json: EOF while parsing a value at line 1 column 0"),
            ("{\"name\": }", "model-settings.json: expected value at line 1 column 10"),
            ("[]", "model-settings.json: invalid type: sequence, expected an object at line 1 column 0"),
            (r#"{"parameters":"x"}"#, "model-settings.json: parameters: invalid type: string \"x\", expected an object at line 1 column 3"),
            (r#"{"parameters":{"uri":["x"]}}"#, "model-settings.json: parameters.uri: invalid type: sequence, expected a string"),
            (r#"{"parameters":{"uri":"./y"}}"#, "parameters.uri \"./y\" is not among the model's files: found [model-settings.json, x]"),
        ] {
            let settings = format!("dir/model-settings.json={text}");
            let refused = planned(&source("sklearn", "dir", &[&settings, "dir/x"], None)).expect_err(text);
            assert!(refused.message.contains(says) && refused.nothing_attempted, "{text}: {refused}");
        }
        let folder = planned(&source("sklearn", "model-settings.json", &["model-settings.json/x"], None)).expect_err("a folder");
        assert!(folder.message.contains("is a folder"), "{folder}");
    }

    #[test]
    fn an_id_that_is_no_folders_name_is_escaped_everywhere() {
        let source = Source { id: id("team/m"), ..source("sklearn", "a", &["a"], None) };
        let plan = planned(&source).expect("sound");
        assert_eq!(plan.name, "team~2Fm");
        assert!(
            shown(&plan.entries)[1]
                .contains(r#"{"name":"team~2Fm","implementation":"mlserver_sklearn.SKLearnModel","parameters":{"uri":"/models/team~2Fm/a"}}"#)
        );
    }
}
