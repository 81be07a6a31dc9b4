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
        made(source, &plan.name, &target.join(own))
    };
    if !(own.is_empty() && matches!(source.listing.0, Node::File { .. })) {
        mirror(source, &source.listing.0, "", own, &mut plan);
    }
    plan.entries.insert(SETTINGS.to_owned(), Entry::Text(settings.into_bytes()));
    Ok(plan)
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
