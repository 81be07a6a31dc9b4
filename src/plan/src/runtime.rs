//! Which runtimes may load a model.
//!
//! "No runtime" is a typed answer here, made from the ServingRuntime resources; upstream guessed it from the text of a
//! load error. The two literal beginnings of the messages are kept, since scripts and tests look for them.

use std::cmp::Reverse;
use std::sync::Arc;

use berth_types::{ModelFormat, Namespace, Placement, Reason, Registration};
use serde_json::Value;

use crate::resource::{InvalidSpec, Node, kind_of};

/// Beginning of the message when the named runtime does not exist.
pub const NOT_RECOGNIZED: &str = "Specified runtime name not recognized";
/// Beginning of the message when no runtime fits.
pub const NOT_SUPPORTED: &str = "No ServingRuntime supports specified model type and/or protocol";
/// The message while a runtime exists and none of its pods lives.
pub const WAITING_FOR_POD: &str = "Waiting for supporting runtime Pod to become available";

/// The name of a ServingRuntime or ClusterServingRuntime.
pub type RuntimeName = Arc<str>;

/// One entry of `supportedModelFormats`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatEntry {
    /// Name and version.
    pub format: ModelFormat,
    /// False: reachable only by naming the runtime.
    pub auto_select: bool,
}

/// A ServingRuntime or ClusterServingRuntime, as far as selection reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeSpec {
    /// Its name.
    pub name: RuntimeName,
    /// Its namespace; `None` for a ClusterServingRuntime.
    pub namespace: Option<Namespace>,
    /// What it loads.
    pub formats: Vec<FormatEntry>,
    /// What it speaks (`grpc-v2`, ...).
    pub protocols: Vec<Arc<str>>,
    /// Switched off.
    pub disabled: bool,
    /// Holds many models at a time; others are not ours.
    pub multi_model: bool,
}

impl RuntimeSpec {
    /// Reads the `spec` of a ServingRuntime or ClusterServingRuntime.
    ///
    /// # Errors
    /// [`InvalidSpec`] names the field.
    pub fn parse(name: &str, namespace: Option<&Namespace>, spec: &Value) -> Result<Self, InvalidSpec> {
        let Value::Object(map) = spec else {
            return Err(InvalidSpec { message: format!("spec must be an object, not {}", kind_of(spec)) });
        };
        let node = Node { path: "spec".to_owned(), map };
        let mut formats = Vec::new();
        for (at, entry) in list(&node, "supportedModelFormats")?.iter().enumerate() {
            let path = format!("spec.supportedModelFormats[{at}]");
            let Value::Object(map) = entry else {
                return Err(InvalidSpec { message: format!("{path} must be an object, not {}", kind_of(entry)) });
            };
            let entry = Node { path, map };
            let name = entry.filled("name")?.ok_or_else(|| entry.missing("name"))?.into();
            let version = entry.text("version")?.filter(|text| !text.is_empty()).map(Arc::from);
            formats.push(FormatEntry { format: ModelFormat { name, version }, auto_select: entry.flag("autoSelect")?.unwrap_or(false) });
        }
        let mut protocols = Vec::new();
        for entry in list(&node, "protocolVersions")? {
            protocols.push(Arc::from(entry.as_str().ok_or_else(|| node.wrong("protocolVersions", "a list of texts", entry))?));
        }
        Ok(RuntimeSpec {
            name: name.into(),
            namespace: namespace.cloned(),
            formats,
            protocols,
            disabled: node.flag("disabled")?.unwrap_or(false),
            multi_model: node.flag("multiModel")?.unwrap_or(false),
        })
    }

    fn usable(&self) -> bool {
        !self.disabled && self.multi_model
    }

    fn speaks(&self, wanted: &str) -> bool {
        // A runtime of `grpc-v2` is reached with `v2` through the REST side of the proxy.
        self.protocols.iter().any(|has| &**has == wanted || (&**has == "grpc-v2" && wanted == "v2"))
    }

    /// How well the best entry fits; `None` when none does.
    fn fit(&self, wanted: &ModelFormat, only_auto: bool) -> Option<Fit> {
        self.formats.iter().filter(|entry| entry.auto_select || !only_auto).filter_map(|entry| fit(&entry.format, wanted)).max()
    }

    fn listed(&self) -> String {
        let all: Vec<String> = self.formats.iter().map(|entry| entry.format.to_string()).collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
    }
}

fn list<'a>(node: &Node<'a>, field: &str) -> Result<&'a [Value], InvalidSpec> {
    match node.get(field) {
        None => Ok(&[]),
        Some(Value::Array(entries)) => Ok(entries),
        Some(other) => Err(node.wrong(field, "a list", other)),
    }
}

/// How an entry fits a format, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// One of both names no version.
    Unversioned,
    /// The entry's version is a dot-prefix of the wanted one: `1` serves `1.15`.
    Prefix,
    /// The same version, or none on both sides.
    Exact,
}

fn fit(entry: &ModelFormat, wanted: &ModelFormat) -> Option<Fit> {
    if entry.name != wanted.name {
        return None;
    }
    match (&entry.version, &wanted.version) {
        (None, None) => Some(Fit::Exact),
        (None, Some(_)) | (Some(_), None) => Some(Fit::Unversioned),
        (Some(has), Some(wants)) if has == wants => Some(Fit::Exact),
        (Some(has), Some(wants)) => wants.strip_prefix(&**has).is_some_and(|rest| rest.starts_with('.')).then_some(Fit::Prefix),
    }
}

/// Why no runtime may load a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NoRuntime {
    /// [`Reason::RuntimeNotRecognized`] or [`Reason::NoSupportingRuntime`].
    pub reason: Reason,
    /// Begins with [`NOT_RECOGNIZED`] or [`NOT_SUPPORTED`]; details follow.
    pub message: String,
}

/// The runtimes that a resource of `namespace` sees: a namespaced one hides a cluster-wide one of the same name.
#[must_use]
pub fn visible_in<'a>(namespace: Option<&Namespace>, all: impl IntoIterator<Item = &'a RuntimeSpec>) -> Vec<&'a RuntimeSpec> {
    let mut seen: Vec<&RuntimeSpec> =
        all.into_iter().filter(|runtime| runtime.namespace.is_none() || runtime.namespace.as_ref() == namespace).collect();
    seen.sort_by(|a, b| a.name.cmp(&b.name).then(b.namespace.is_some().cmp(&a.namespace.is_some())));
    seen.dedup_by(|later, kept| later.name == kept.name);
    seen
}

/// The runtimes that may load a model, best fit first, then by name.
///
/// A named runtime must list the format, with or without `autoSelect`. Otherwise every enabled multi-model runtime that
/// selects the format by itself and speaks the protocol may.
///
/// # Errors
/// [`NoRuntime`] says what was looked for and what there is.
pub fn select(model: &Registration, runtimes: &[&RuntimeSpec]) -> Result<Vec<RuntimeName>, NoRuntime> {
    match &model.placement {
        Placement::Runtime(name) => {
            let Some(runtime) = runtimes.iter().find(|runtime| runtime.name == *name) else {
                let mut known: Vec<&str> = runtimes.iter().filter(|runtime| runtime.usable()).map(|runtime| &*runtime.name).collect();
                known.sort_unstable();
                let known = if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
                return Err(NoRuntime { reason: Reason::RuntimeNotRecognized, message: format!("{NOT_RECOGNIZED}: {name} ({known})") });
            };
            if !runtime.usable() {
                let why = if runtime.disabled { "is disabled" } else { "is not multiModel" };
                return Err(NoRuntime { reason: Reason::RuntimeNotRecognized, message: format!("{NOT_RECOGNIZED}: {name} {why}") });
            }
            match runtime.fit(&model.format, false) {
                Some(_) => Ok(vec![name.clone()]),
                None => Err(NoRuntime {
                    reason: Reason::NoSupportingRuntime,
                    message: format!("{NOT_SUPPORTED}: runtime {name} lists {}, not {}", runtime.listed(), model.format),
                }),
            }
        }
        Placement::Format { protocol } => {
            let usable = || runtimes.iter().filter(|runtime| runtime.usable());
            let mut fitting: Vec<(Reverse<Fit>, &RuntimeName)> = usable()
                .filter(|runtime| protocol.as_deref().is_none_or(|wanted| runtime.speaks(wanted)))
                .filter_map(|runtime| runtime.fit(&model.format, true).map(|fit| (Reverse(fit), &runtime.name)))
                .collect();
            fitting.sort();
            if !fitting.is_empty() {
                return Ok(fitting.into_iter().map(|(_, name)| name.clone()).collect());
            }
            let speaking = protocol.as_deref().map_or_else(String::new, |protocol| format!(" over {protocol}"));
            let mut there: Vec<String> = usable().map(|runtime| format!("{} lists {}", runtime.name, runtime.listed())).collect();
            there.sort_unstable();
            let by_name = usable().filter(|runtime| runtime.fit(&model.format, false).is_some()).map(|runtime| &*runtime.name).min();
            let there = if there.is_empty() { "there is no runtime".to_owned() } else { there.join("; ") };
            let hint = by_name.map_or_else(String::new, |name| format!("; {name} would have to be named as the runtime, or speak the protocol"));
            Err(NoRuntime { reason: Reason::NoSupportingRuntime, message: format!("{NOT_SUPPORTED}: {}{speaking} ({there}{hint})", model.format) })
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_types::{ModelId, StorageRef};
    use serde_json::json;

    use super::*;

    fn model(placement: Placement, format: &str) -> Registration {
        let (name, version) = format.split_once(':').map_or((format, None), |(name, version)| (name, Some(version.into())));
        Registration::new(
            ModelId::new("m__isvc-0").expect("valid"),
            ModelFormat { name: name.into(), version },
            placement,
            StorageRef { key: None, parameters: Default::default(), path: "p".into(), schema_path: None },
            None,
        )
    }

    fn runtime(name: &str, spec: Value) -> RuntimeSpec {
        RuntimeSpec::parse(name, None, &spec).expect("valid")
    }

    fn bundled() -> Vec<RuntimeSpec> {
        vec![
            runtime(
                "triton",
                json!({ "multiModel": true, "protocolVersions": ["grpc-v2"], "supportedModelFormats": [
                { "name": "onnx", "version": "1", "autoSelect": true }, { "name": "tensorflow", "version": "1", "autoSelect": true }, { "name": "sklearn", "version": "0" }] }),
            ),
            runtime(
                "ovms",
                json!({ "multiModel": true, "protocolVersions": ["grpc-v1"], "supportedModelFormats": [
                { "name": "onnx", "version": "1.15", "autoSelect": true }, { "name": "onnx", "autoSelect": false }] }),
            ),
            runtime("plain", json!({ "multiModel": true, "supportedModelFormats": [{ "name": "onnx", "autoSelect": true }] })),
            runtime("off", json!({ "multiModel": true, "disabled": true, "supportedModelFormats": [{ "name": "pmml", "autoSelect": true }] })),
            runtime("single", json!({ "supportedModelFormats": [{ "name": "pmml", "autoSelect": true }] })),
        ]
    }

    fn auto(protocol: Option<&str>) -> Placement {
        Placement::Format { protocol: protocol.map(Arc::from) }
    }

    #[test]
    fn runtimes_are_selected_by_format_version_and_protocol_exact_ones_first() {
        let all = bundled();
        let all: Vec<&RuntimeSpec> = all.iter().collect();
        for (placement, format, expected) in [
            (auto(None), "onnx", Ok(vec!["plain", "ovms", "triton"])),
            (auto(None), "onnx:1", Ok(vec!["triton", "plain"])),
            (auto(None), "onnx:1.15", Ok(vec!["ovms", "triton", "plain"])),
            (auto(None), "onnx:1.15.2", Ok(vec!["ovms", "triton", "plain"])),
            (auto(None), "onnx:11", Ok(vec!["plain"])),
            (auto(Some("grpc-v2")), "onnx:1", Ok(vec!["triton"])),
            (auto(Some("v2")), "onnx:1", Ok(vec!["triton"])),
            (auto(Some("v1")), "onnx:1", Err(Reason::NoSupportingRuntime)),
            (auto(None), "sklearn", Err(Reason::NoSupportingRuntime)),
            (auto(None), "pmml", Err(Reason::NoSupportingRuntime)),
            (Placement::Runtime("triton".into()), "sklearn", Ok(vec!["triton"])),
            (Placement::Runtime("triton".into()), "pmml", Err(Reason::NoSupportingRuntime)),
            (Placement::Runtime("nobody".into()), "onnx", Err(Reason::RuntimeNotRecognized)),
            (Placement::Runtime("off".into()), "pmml", Err(Reason::RuntimeNotRecognized)),
            (Placement::Runtime("single".into()), "pmml", Err(Reason::RuntimeNotRecognized)),
        ] {
            let got = select(&model(placement.clone(), format), &all);
            let shown = got.as_ref().map(|names| names.iter().map(|name| &**name).collect::<Vec<_>>()).map_err(|none| none.reason);
            assert_eq!(shown, expected, "{placement:?} {format}");
        }
    }

    #[test]
    fn messages_begin_with_the_literal_words_and_end_with_what_there_is() {
        let all = bundled();
        let all: Vec<&RuntimeSpec> = all.iter().collect();
        let none = |placement, format| select(&model(placement, format), &all).expect_err("none").message;
        assert_eq!(
            none(Placement::Runtime("nobody".into()), "onnx"),
            "Specified runtime name not recognized: nobody (there are ovms, plain, triton)"
        );
        assert_eq!(none(Placement::Runtime("off".into()), "onnx"), "Specified runtime name not recognized: off is disabled");
        let listed = none(Placement::Runtime("triton".into()), "pmml:4");
        assert_eq!(listed, format!("{NOT_SUPPORTED}: runtime triton lists onnx:1, tensorflow:1, sklearn:0, not pmml:4"));
        let text = none(auto(Some("v1")), "sklearn");
        assert!(text.starts_with(NOT_SUPPORTED) && text.contains("sklearn over v1") && text.contains("triton would have to be named"), "{text}");
        assert!(select(&model(auto(None), "onnx"), &[]).expect_err("none").message.contains("there is no runtime"));
    }

    #[test]
    fn a_namespaced_runtime_hides_a_cluster_wide_one_of_the_same_name() {
        let space = Namespace::new("a").expect("valid");
        let spec = json!({ "multiModel": true });
        let mut all = bundled();
        all.push(RuntimeSpec::parse("triton", Some(&space), &spec).expect("valid"));
        let inside = visible_in(Some(&space), &all);
        assert!(inside.iter().any(|runtime| &*runtime.name == "triton" && runtime.namespace.is_some()));
        assert_eq!(inside.len(), 5);
        let outside = visible_in(None, &all);
        assert!(outside.iter().all(|runtime| runtime.namespace.is_none()));
        assert_eq!(outside.len(), 5);
    }

    #[test]
    fn a_malformed_runtime_is_refused_with_the_field() {
        for (spec, expected) in [
            (json!(null), "spec must be an object"),
            (json!({ "supportedModelFormats": {} }), "spec.supportedModelFormats must be a list"),
            (json!({ "supportedModelFormats": [1] }), "spec.supportedModelFormats[0] must be an object, not the number 1"),
            (json!({ "supportedModelFormats": [{}] }), "spec.supportedModelFormats[0].name is missing"),
            (
                json!({ "supportedModelFormats": [{ "name": "a", "version": 1 }] }),
                "spec.supportedModelFormats[0].version must be a text, not the number 1: write it in quotes",
            ),
            (json!({ "protocolVersions": [2] }), "spec.protocolVersions must be a list of texts"),
            (json!({ "multiModel": "yes" }), "spec.multiModel must be true or false"),
        ] {
            let fault = RuntimeSpec::parse("r", None, &spec).expect_err(expected);
            assert!(fault.message.starts_with(expected), "{fault}");
        }
    }
}
