//! Reading an InferenceService or a Predictor into one value.
//!
//! Everything that can be wrong with such a document is found here, and becomes an [`InvalidSpec`] whose message names
//! the field and says what to write instead; nothing later needs to look at the document again. Upstream left half of
//! these faults without any status (its users saw an endless retry), so the list here is longer than upstream's.
//! Whether the storage exists, its key is known or a runtime fits is not decided here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::Arc;

use berth_types::{ByteSize, Keep, ModelFormat, Owner, StorageRef};
use serde_json::{Map, Value};

use crate::registration::go_json_string;
use crate::uri::{self, Located};

/// An InferenceService is ours only when this annotation says [`MODEL_MESH`].
pub const DEPLOYMENT_MODE: &str = "serving.kserve.io/deploymentMode";
/// The value of [`DEPLOYMENT_MODE`] that makes an InferenceService ours.
pub const MODEL_MESH: &str = "ModelMesh";
/// Bytes in memory as the user declares them, such as `512Mi`; beats every estimate.
pub const MODEL_SIZE: &str = "berth/model-size";
/// How many copies of the model are never evicted.
pub const MIN_COPIES: &str = "berth/min-copies";
/// How long the model stays loaded without being used, such as `30m`.
pub const IDLE_TTL: &str = "berth/idle-ttl";
/// `true`: the model is never evicted.
pub const PIN: &str = "berth/pin";

const SECRET_KEY: &str = "serving.kserve.io/secretKey";
const SCHEMA_PATH: &str = "serving.kserve.io/schemaPath";
const SERVING_RUNTIME: &str = "serving.kserve.io/servingRuntime";

/// The keys of the legacy form; the key is the name of the format.
const FRAMEWORKS: [&str; 8] = ["xgboost", "lightgbm", "sklearn", "tensorflow", "onnx", "pytorch", "triton", "pmml"];

/// What a resource asks for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingSpec {
    /// The format that it names.
    pub format: ModelFormat,
    /// The runtime that it insists on.
    pub runtime: Option<Arc<str>>,
    /// The protocol that it insists on.
    pub protocol: Option<Arc<str>>,
    /// Where the bytes are.
    pub storage: StorageRef,
    /// [`MODEL_SIZE`].
    pub declared_size: Option<ByteSize>,
    /// [`PIN`], [`MIN_COPIES`] and [`IDLE_TTL`].
    pub keep: Keep,
    /// The text that the id's hash is made of; see [`crate::registration`].
    pub(crate) hashed: String,
}

/// Why a resource asks for nothing that can be served. The message names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidSpec {
    /// What is wrong, where, and what to write instead.
    pub message: String,
}

fn invalid(message: impl Into<String>) -> InvalidSpec {
    InvalidSpec { message: message.into() }
}

/// Whether a resource is for us at all: every Predictor is, an InferenceService only in deployment mode `ModelMesh`.
#[must_use]
pub fn is_ours(owner: Owner, annotations: &Map<String, Value>) -> bool {
    match owner {
        Owner::Ksp => true,
        Owner::Isvc => annotations.get(DEPLOYMENT_MODE).and_then(Value::as_str) == Some(MODEL_MESH),
    }
}

/// Reads the `spec` of an InferenceService or a Predictor together with its annotations.
///
/// # Errors
/// [`InvalidSpec`], the first fault found.
pub fn parse(owner: Owner, annotations: &Map<String, Value>, spec: &Value) -> Result<ServingSpec, InvalidSpec> {
    let spec = match spec {
        Value::Object(map) => Node { path: "spec".to_owned(), map },
        Value::Null => return Err(invalid("spec is missing")),
        other => return Err(invalid(format!("spec must be an object, not {}", kind_of(other)))),
    };
    let declared_size = match annotation(annotations, MODEL_SIZE)? {
        None => None,
        Some(text) => match text.parse::<ByteSize>() {
            Ok(size) if size > ByteSize::ZERO => Some(size),
            Ok(_) => return Err(invalid(format!("annotation {MODEL_SIZE} is zero: give the bytes that the model takes in memory, or leave it out"))),
            Err(fault) => return Err(invalid(format!("annotation {MODEL_SIZE}: {fault}"))),
        },
    };
    let written = match owner {
        Owner::Isvc => inference_service(annotations, &spec)?,
        Owner::Ksp => predictor(&spec)?,
    };
    Ok(written.into_spec(declared_size, keep(annotations)?))
}

/// How the annotations ask that the model be kept in memory.
fn keep(annotations: &Map<String, Value>) -> Result<Keep, InvalidSpec> {
    let pinned = match annotation(annotations, PIN)? {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(invalid(format!("annotation {PIN} is {other:?}: write \"true\" or \"false\", or leave it out"))),
    };
    let min_copies = match annotation(annotations, MIN_COPIES)? {
        None => 0,
        Some(text) => match text.parse::<u32>() {
            Ok(copies) if copies <= MOST_COPIES => copies,
            _ => return Err(invalid(format!("annotation {MIN_COPIES} is {text:?}: write a whole number from 0 to {MOST_COPIES}"))),
        },
    };
    let idle_ttl = match annotation(annotations, IDLE_TTL)? {
        None => None,
        Some(text) => match seconds(text) {
            Some(seconds) => Some(seconds),
            None => {
                return Err(invalid(format!(
                    "annotation {IDLE_TTL} is {text:?}: write a time above zero with its unit, such as 90s, 30m, 1h30m or 7d"
                )));
            }
        },
    };
    let keep = Keep { pinned, min_copies, idle_ttl };
    if keep.is_fixed() && idle_ttl.is_some() {
        let other = if pinned { PIN } else { MIN_COPIES };
        return Err(invalid(format!("annotations {other} and {IDLE_TTL} are both set, and a model cannot stay and go: keep one")));
    }
    Ok(keep)
}

/// More copies than this nobody means.
const MOST_COPIES: u32 = 1000;

/// A time such as `90s` or `1h30m`, in seconds; `None` when it is none, is zero, or is longer than a hundred years.
fn seconds(text: &str) -> Option<NonZeroU32> {
    const LONGEST: u64 = 100 * 366 * 86_400;
    let (mut sum, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0)?;
        let (number, tail) = rest.split_at(digits);
        let mut unit = tail.chars();
        let each = match unit.next()? {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        sum = number.parse::<u64>().ok()?.checked_mul(each)?.checked_add(sum).filter(|sum| *sum <= LONGEST)?;
        rest = unit.as_str();
    }
    NonZeroU32::new(u32::try_from(sum).ok()?)
}

/// The parts of an InferenceService, besides its predictor, that its spec asks for. Nobody here runs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtherParts {
    /// Something that changes requests on their way to the predictor, and answers on their way back.
    pub transformer: bool,
    /// Something that explains predictions.
    pub explainer: bool,
}

impl OtherParts {
    /// Those of a resource; a Predictor has none.
    #[must_use]
    pub fn of(owner: Owner, spec: &Value) -> Self {
        let asked = |part: &str| owner == Owner::Isvc && spec.get(part).is_some_and(|value| !value.is_null());
        OtherParts { transformer: asked("transformer"), explainer: asked("explainer") }
    }
}

/// The two kinds in one form: a Predictor's spec as upstream writes it, which is also what its hash covers.
#[derive(Default)]
struct Written<'a> {
    service_account: Option<&'a str>,
    format: &'a str,
    version: Option<&'a str>,
    path: &'a str,
    schema_path: Option<&'a str>,
    storage: Option<WrittenStorage<'a>>,
    gpu: Option<&'a str>,
    runtime: Option<&'a str>,
    protocol: Option<&'a str>,
}

#[derive(Default)]
struct WrittenStorage<'a> {
    path: Option<String>,
    schema_path: Option<&'a str>,
    parameters: Option<BTreeMap<String, String>>,
    key: Option<&'a str>,
    s3: Option<(&'a str, Option<&'a str>)>,
}

impl Written<'_> {
    fn into_spec(self, declared_size: Option<ByteSize>, keep: Keep) -> ServingSpec {
        let hashed = self.hashed();
        // Without `storage` the path counts for nothing: the fetch then says that the storage is missing.
        let (path, schema_path) = match &self.storage {
            Some(storage) => (storage.path.as_deref().unwrap_or(self.path), storage.schema_path.or(self.schema_path)),
            None => ("", self.schema_path),
        };
        let (path, schema_path) = (Arc::from(path), schema_path.filter(|text| !text.is_empty()).map(Arc::from));
        let (key, parameters) = match self.storage.unwrap_or_default() {
            WrittenStorage { s3: Some((key, bucket)), .. } => {
                (Some(key), bucket.map(|bucket| BTreeMap::from([("bucket".to_owned(), bucket.to_owned())])).unwrap_or_default())
            }
            WrittenStorage { key, parameters, .. } => (key, parameters.unwrap_or_default()),
        };
        ServingSpec {
            format: ModelFormat { name: self.format.into(), version: self.version.filter(|text| !text.is_empty()).map(Arc::from) },
            runtime: self.runtime.map(Arc::from),
            protocol: self.protocol.map(Arc::from),
            storage: StorageRef { key: key.map(Arc::from), parameters: Arc::new(parameters), path, schema_path },
            declared_size,
            keep,
            hashed,
        }
    }

    /// The JSON text under the hash: members in a fixed order, absent ones left out, strings escaped as Go does.
    fn hashed(&self) -> String {
        let mut text = Members::open();
        text.text("serviceAccountName", self.service_account);
        text.nested("modelType", |inner| {
            inner.text("name", Some(self.format));
            inner.text("version", self.version);
        });
        text.text("path", Some(self.path));
        text.text("schemaPath", self.schema_path);
        if let Some(storage) = &self.storage {
            text.nested("storage", |inner| {
                inner.text("path", storage.path.as_deref());
                inner.text("schemaPath", storage.schema_path);
                if let Some(parameters) = &storage.parameters {
                    inner.nested("parameters", |each| parameters.iter().for_each(|(name, value)| each.text(name, Some(value))));
                }
                inner.text("key", storage.key);
                if let Some((secret_key, bucket)) = storage.s3 {
                    inner.nested("s3", |s3| {
                        s3.text("secretKey", Some(secret_key));
                        s3.text("bucket", bucket);
                    });
                }
            });
        }
        text.text("gpu", self.gpu);
        if let Some(runtime) = self.runtime {
            text.nested("runtime", |inner| inner.text("name", Some(runtime)));
        }
        text.text("protocolVersion", self.protocol);
        text.close()
    }
}

/// One JSON object being written.
struct Members(String);

impl Members {
    fn open() -> Self {
        Members("{".to_owned())
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        go_json_string(&mut self.0, name);
        self.0.push(':');
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            go_json_string(&mut self.0, value);
        }
    }

    fn nested(&mut self, name: &str, fill: impl FnOnce(&mut Members)) {
        let mut inner = Members::open();
        fill(&mut inner);
        self.name(name);
        self.0.push_str(&inner.close());
    }

    fn close(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn inference_service<'a>(annotations: &'a Map<String, Value>, spec: &Node<'a>) -> Result<Written<'a>, InvalidSpec> {
    let predictor = spec.object("predictor")?.ok_or_else(|| invalid("spec.predictor is missing"))?;
    let model = predictor.object("model")?;
    let mut frameworks = Vec::new();
    for name in FRAMEWORKS {
        frameworks.extend(predictor.object(name)?.map(|node| (name, node)));
    }
    let runtime_annotation = annotation(annotations, SERVING_RUNTIME)?;
    let mut written = Written::default();
    let form = match (model, frameworks.as_slice()) {
        (Some(model), []) => {
            if runtime_annotation.is_some() {
                return Err(invalid(format!(
                    "annotation {SERVING_RUNTIME} belongs to the older form without {path}: write {path}.runtime instead",
                    path = model.path
                )));
            }
            let format = model.object("modelFormat")?.ok_or_else(|| model.missing("modelFormat"))?;
            written.format = format.filled("name")?.ok_or_else(|| format.missing("name"))?;
            written.version = format.text("version")?;
            written.runtime = model.filled("runtime")?;
            model
        }
        (None, [(name, framework)]) => {
            written.format = name;
            written.runtime = runtime_annotation;
            if written.runtime == Some("") {
                return Err(invalid(format!("annotation {SERVING_RUNTIME} is empty: name a ServingRuntime or leave it out")));
            }
            framework.clone()
        }
        (Some(_), [(name, _), ..]) => {
            return Err(invalid(format!("spec.predictor has both model and {name}: keep one, with {name} as model.modelFormat.name")));
        }
        (None, [(first, _), (second, _), ..]) => return Err(invalid(format!("spec.predictor has both {first} and {second}: keep one"))),
        (None, []) => {
            return Err(invalid(format!(
                "spec.predictor names no model: set spec.predictor.model, or one of {} (containers and other forms are not served here)",
                FRAMEWORKS.join(", ")
            )));
        }
    };
    written.protocol = form.text("protocolVersion")?.filter(|text| !text.is_empty());

    let storage = form.object("storage")?;
    let (in_storage, at_path) = match &storage {
        Some(storage) => (storage.text("path")?, format!("{}.path", storage.path)),
        None => (None, format!("{}.storage.path", form.path)),
    };
    let uri_field = format!("{}.storageUri", form.path);
    let mut parameters = match &storage {
        Some(storage) => storage.texts("parameters")?.unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let path = match (form.text("storageUri")?, in_storage) {
        (Some(_), Some(_)) => return Err(invalid(format!("{uri_field} and {at_path} are both set: keep one"))),
        (None, None) => return Err(invalid(format!("neither {uri_field} nor {at_path} is set: one must say where the model is"))),
        (None, Some(path)) => path.to_owned(),
        (Some(text), None) => {
            let Located { parameters: from_uri, path } = uri::locate(text).map_err(|fault| invalid(format!("{uri_field}: {fault}")))?;
            parameters.extend(from_uri);
            path
        }
    };
    let key = match &storage {
        Some(storage) => storage.filled("key")?,
        None => None,
    };
    let schema_path = match &storage {
        Some(storage) => storage.text("schemaPath")?,
        None => None,
    };
    written.storage = Some(WrittenStorage {
        path: Some(path),
        schema_path: match schema_path {
            Some(path) => Some(path),
            None => annotation(annotations, SCHEMA_PATH)?,
        },
        parameters: Some(parameters),
        key: match key {
            Some(key) => Some(key),
            None => annotation(annotations, SECRET_KEY)?,
        },
        s3: None,
    });
    Ok(written)
}

fn predictor<'a>(spec: &Node<'a>) -> Result<Written<'a>, InvalidSpec> {
    let model_type = spec.object("modelType")?.ok_or_else(|| spec.missing("modelType"))?;
    let runtime = match spec.object("runtime")? {
        Some(runtime) => Some(runtime.filled("name")?.ok_or_else(|| runtime.missing("name"))?),
        None => None,
    };
    let gpu = spec.text("gpu")?;
    if let Some(other) = gpu.filter(|text| !matches!(*text, "required" | "preferred")) {
        return Err(invalid(format!("spec.gpu is {other:?}: write \"required\" or \"preferred\", or leave it out")));
    }
    let mut written = Written {
        service_account: spec.text("serviceAccountName")?.filter(|text| !text.is_empty()),
        format: model_type.filled("name")?.ok_or_else(|| model_type.missing("name"))?,
        version: model_type.text("version")?,
        path: spec.text("path")?.unwrap_or_default(),
        schema_path: spec.text("schemaPath")?,
        storage: None,
        gpu,
        runtime,
        protocol: spec.text("protocolVersion")?.filter(|text| !text.is_empty()),
    };
    let Some(storage) = spec.object("storage")? else { return Ok(written) };
    if storage.object("persistentVolumeClaim")?.is_some() {
        return Err(invalid(
            "spec.storage.persistentVolumeClaim is not supported: write spec.storage.parameters with type: pvc and name: <the claim>",
        ));
    }
    let path = storage.text("path")?;
    let schema_path = storage.text("schemaPath")?;
    for (outer, inner, name) in
        [(!written.path.is_empty(), path.is_some(), "path"), (written.schema_path.is_some(), schema_path.is_some(), "schemaPath")]
    {
        if outer && inner {
            return Err(invalid(format!("spec.{name} and spec.storage.{name} are both set: keep one")));
        }
    }
    let s3 = match storage.object("s3")? {
        None => None,
        Some(s3) => {
            for newer in ["path", "schemaPath", "parameters", "key"] {
                if storage.get(newer).is_some() {
                    return Err(invalid(format!("spec.storage.s3 and spec.storage.{newer} are both set: s3 is the older form, keep one")));
                }
            }
            Some((s3.filled("secretKey")?.ok_or_else(|| s3.missing("secretKey"))?, s3.text("bucket")?))
        }
    };
    written.storage = Some(WrittenStorage {
        path: path.map(str::to_owned),
        schema_path,
        parameters: storage.texts("parameters")?,
        key: storage.filled("key")?,
        s3,
    });
    Ok(written)
}

/// An annotation's text. Kubernetes allows only texts; a folder of YAML may hold anything.
fn annotation<'a>(annotations: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, InvalidSpec> {
    match annotations.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(format!("annotation {name} must be a text, not {}: write it in quotes", kind_of(other)))),
    }
}

/// An object of a document and where it stands in it, for messages.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub(crate) path: String,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Node<'a> {
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn missing(&self, field: &str) -> InvalidSpec {
        invalid(format!("{}.{field} is missing", self.path))
    }

    pub(crate) fn wrong(&self, field: &str, should: &str, is: &Value) -> InvalidSpec {
        let hint = if should == "a text" && (is.is_number() || is.is_boolean()) { ": write it in quotes" } else { "" };
        invalid(format!("{}.{field} must be {should}, not {}{hint}", self.path, kind_of(is)))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Node<'a>>, InvalidSpec> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Node { path: format!("{}.{field}", self.path), map })),
            Some(other) => Err(self.wrong(field, "an object", other)),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, InvalidSpec> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a text", other)),
        }
    }

    /// A text that, where it is given, must not be empty.
    pub(crate) fn filled(&self, field: &str) -> Result<Option<&'a str>, InvalidSpec> {
        match self.text(field)? {
            Some("") => Err(invalid(format!("{}.{field} is empty: fill it in or leave it out", self.path))),
            other => Ok(other),
        }
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, InvalidSpec> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(field, "true or false", other)),
        }
    }

    fn texts(&self, field: &str) -> Result<Option<BTreeMap<String, String>>, InvalidSpec> {
        let Some(node) = self.object(field)? else { return Ok(None) };
        let mut texts = BTreeMap::new();
        for (name, value) in node.map {
            match value {
                Value::String(text) => texts.insert(name.clone(), text.clone()),
                other => return Err(node.wrong(name, "a text", other)),
            };
        }
        Ok(Some(texts))
    }
}

pub(crate) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("the value {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => {
            let mut shown = "the text ".to_owned();
            let _ = write!(shown, "{:?}", text.chars().take(80).collect::<String>());
            shown
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn isvc(annotations: Value, predictor: Value) -> Result<ServingSpec, String> {
        parse(Owner::Isvc, &map(annotations), &json!({ "predictor": predictor })).map_err(|fault| fault.message)
    }

    fn ksp(spec: Value) -> Result<ServingSpec, String> {
        parse(Owner::Ksp, &Map::new(), &spec).map_err(|fault| fault.message)
    }

    fn parameters(spec: &ServingSpec) -> Vec<(&str, &str)> {
        spec.storage.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn how_a_model_is_kept_is_read_from_annotations() {
        let ttl = NonZeroU32::new;
        for (annotations, expected) in [
            (json!({}), Keep::default()),
            (json!({ PIN: "true", MIN_COPIES: "2" }), Keep { pinned: true, min_copies: 2, idle_ttl: None }),
            (json!({ PIN: "false", MIN_COPIES: "0", IDLE_TTL: "1h30m" }), Keep { pinned: false, min_copies: 0, idle_ttl: ttl(5400) }),
            (json!({ IDLE_TTL: "7d" }), Keep { idle_ttl: ttl(604_800), ..Keep::default() }),
        ] {
            assert_eq!(keep(annotations.as_object().expect("an object")), Ok(expected), "{annotations}");
        }
        for text in ["", "0s", "m", "5", "5x", "-5s", "1.5h", "99999999999999999999s", "4000000000d"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn other_parts_are_those_of_an_inference_service_that_its_spec_names() {
        let parts = |transformer, explainer| OtherParts { transformer, explainer };
        for (owner, spec, expected) in [
            (Owner::Isvc, json!({ "predictor": {} }), parts(false, false)),
            (Owner::Isvc, json!({ "transformer": {} }), parts(true, false)),
            (Owner::Isvc, json!({ "transformer": null, "explainer": { "containers": [] } }), parts(false, true)),
            (Owner::Ksp, json!({ "transformer": {}, "explainer": {} }), parts(false, false)),
            (Owner::Isvc, json!("no object"), parts(false, false)),
        ] {
            assert_eq!(OtherParts::of(owner, &spec), expected, "{owner} {spec}");
        }
    }

    #[test]
    fn quotes_are_recommended_only_where_they_help() {
        let fault = |spec| ksp(spec).err().unwrap_or_default();
        assert_eq!(fault(json!({ "modelType": { "name": 1 } })), "spec.modelType.name must be a text, not the number 1: write it in quotes");
        assert_eq!(fault(json!({ "modelType": { "name": {} } })), "spec.modelType.name must be a text, not an object");
        assert_eq!(fault(json!({ "modelType": 1 })), "spec.modelType must be an object, not the number 1");
    }

    #[test]
    fn an_inference_service_is_ours_only_in_mode_model_mesh() {
        for (mode, ours) in [(json!({}), false), (json!({ DEPLOYMENT_MODE: "modelmesh" }), false), (json!({ DEPLOYMENT_MODE: MODEL_MESH }), true)] {
            assert_eq!(is_ours(Owner::Isvc, &map(mode.clone())), ours, "{mode}");
            assert!(is_ours(Owner::Ksp, &map(mode)));
        }
    }

    #[test]
    fn the_seed_documents_are_read_as_they_say() {
        let model = json!({ "modelFormat": { "name": "tensorflow", "version": "1.15" }, "runtime": "triton-2.x", "protocolVersion": "grpc-v2",
            "storage": { "key": "my_storage", "path": "my_models/mnist-tf", "schemaPath": "my_schemas/mnist-schema.json", "parameters": { "bucket": "my_bucket" } } });
        let spec = isvc(json!({ MODEL_SIZE: "512Mi" }), json!({ "model": model })).expect("valid");
        assert_eq!(spec.format.to_string(), "tensorflow:1.15");
        assert_eq!(spec.runtime.as_deref(), Some("triton-2.x"));
        assert_eq!(spec.protocol.as_deref(), Some("grpc-v2"));
        assert_eq!(spec.storage.key.as_deref(), Some("my_storage"));
        assert_eq!(&*spec.storage.path, "my_models/mnist-tf");
        assert_eq!(spec.storage.schema_path.as_deref(), Some("my_schemas/mnist-schema.json"));
        assert_eq!(parameters(&spec), [("bucket", "my_bucket")]);
        assert_eq!(spec.declared_size, Some(ByteSize::mib(512)));

        let annotations = json!({ SECRET_KEY: "my_storage", SCHEMA_PATH: "my_schemas/mnist-schema.json" });
        let model = json!({ "modelFormat": { "name": "tensorflow" }, "storageUri": "s3://my_bucket/my_models/mnist-tf" });
        let by_uri = isvc(annotations, json!({ "model": model })).expect("valid");
        assert_eq!(by_uri.storage.key.as_deref(), Some("my_storage"));
        assert_eq!(by_uri.storage.schema_path.as_deref(), Some("my_schemas/mnist-schema.json"));
        assert_eq!(&*by_uri.storage.path, "my_models/mnist-tf");
        assert_eq!(parameters(&by_uri), [("bucket", "my_bucket"), ("type", "s3")]);

        let spec =
            ksp(json!({ "modelType": { "name": "tensorflow", "version": "1.15" }, "runtime": { "name": "triton-2.x" }, "path": "my_models/mnist-tf",
            "schemaPath": "my_schemas/mnist-schema.json", "storage": { "s3": { "secretKey": "my_storage", "bucket": "my_bucket" } } }))
            .expect("valid");
        assert_eq!(spec.storage.key.as_deref(), Some("my_storage"));
        assert_eq!(&*spec.storage.path, "my_models/mnist-tf");
        assert_eq!(spec.storage.schema_path.as_deref(), Some("my_schemas/mnist-schema.json"));
        assert_eq!(parameters(&spec), [("bucket", "my_bucket")]);
    }

    #[test]
    fn the_legacy_form_takes_its_format_from_its_key_and_its_runtime_from_the_annotation() {
        for name in FRAMEWORKS {
            let predictor = json!({ name: { "storageUri": "gs://b/m", "protocolVersion": "v2" } });
            let spec = isvc(json!({ SERVING_RUNTIME: "mine" }), predictor).expect(name);
            assert_eq!((&*spec.format.name, spec.format.version.as_deref()), (name, None));
            assert_eq!((spec.runtime.as_deref(), spec.protocol.as_deref()), (Some("mine"), Some("v2")));
            assert_eq!(parameters(&spec), [("bucket", "b"), ("type", "gcs")]);
        }
    }

    #[test]
    fn what_a_uri_says_wins_over_parameters_and_leaves_the_others() {
        let storage = json!({ "parameters": { "bucket": "other", "endpoint_url": "http://h" } });
        let spec = isvc(json!({}), json!({ "onnx": { "storageUri": "s3://B/p", "storage": storage } })).expect("valid");
        assert_eq!(parameters(&spec), [("bucket", "B"), ("endpoint_url", "http://h"), ("type", "s3")]);
    }

    #[test]
    fn a_predictor_without_storage_has_no_path_whatever_it_wrote() {
        let spec = ksp(json!({ "modelType": { "name": "onnx" }, "path": "p" })).expect("valid: the fetch says what is missing");
        assert_eq!(&*spec.storage.path, "");
    }

    #[test]
    fn every_fault_of_an_inference_service_names_its_field() {
        let format = json!({ "name": "onnx" });
        for (annotations, predictor, expected) in [
            (
                json!({}),
                json!({ "model": { "modelFormat": format, "storageUri": "s3://b/p", "storage": { "path": "p" } } }),
                "spec.predictor.model.storageUri and spec.predictor.model.storage.path are both set",
            ),
            (
                json!({}),
                json!({ "model": { "modelFormat": format, "storage": { "key": "k" } } }),
                "neither spec.predictor.model.storageUri nor spec.predictor.model.storage.path is set",
            ),
            (json!({}), json!({ "sklearn": {} }), "neither spec.predictor.sklearn.storageUri nor spec.predictor.sklearn.storage.path is set"),
            (json!({}), json!({ "model": { "modelFormat": format, "storageUri": "s3//b/p" } }), "spec.predictor.model.storageUri: has no scheme"),
            (json!({}), json!({ "model": { "modelFormat": format, "storageUri": "s3://b/%zz" } }), "spec.predictor.model.storageUri: "),
            (json!({}), json!({ "model": { "modelFormat": format, "storageUri": "ftp://b/p" } }), "scheme ftp is not supported"),
            (json!({}), json!({ "model": { "modelFormat": format, "storageUri": "" } }), "spec.predictor.model.storageUri: "),
            (
                json!({}),
                json!({ "model": { "modelFormat": format, "storageUri": "s3://b" }, "onnx": { "storageUri": "s3://b" } }),
                "spec.predictor has both model and onnx",
            ),
            (json!({}), json!({ "onnx": {}, "pmml": {} }), "spec.predictor has both onnx and pmml"),
            (
                json!({ SERVING_RUNTIME: "r" }),
                json!({ "model": { "modelFormat": format, "storageUri": "s3://b" } }),
                "annotation serving.kserve.io/servingRuntime",
            ),
            (json!({}), json!({ "huggingface": {}, "containers": [] }), "spec.predictor names no model"),
            (json!({}), json!(null), "spec.predictor is missing"),
            (json!({}), json!(["model"]), "spec.predictor must be an object, not a list"),
            (json!({}), json!({ "model": { "storageUri": "s3://b" } }), "spec.predictor.model.modelFormat is missing"),
            (json!({}), json!({ "model": { "modelFormat": {}, "storageUri": "s3://b" } }), "spec.predictor.model.modelFormat.name is missing"),
            (
                json!({}),
                json!({ "model": { "modelFormat": { "name": "" }, "storageUri": "s3://b" } }),
                "spec.predictor.model.modelFormat.name is empty",
            ),
            (
                json!({}),
                json!({ "model": { "modelFormat": { "name": "onnx", "version": 1.15 }, "storageUri": "s3://b" } }),
                "spec.predictor.model.modelFormat.version must be a text, not the number 1.15: write it in quotes",
            ),
            (
                json!({}),
                json!({ "model": { "modelFormat": format, "runtime": "", "storageUri": "s3://b" } }),
                "spec.predictor.model.runtime is empty",
            ),
            (
                json!({}),
                json!({ "model": { "modelFormat": format, "storage": { "path": "p", "parameters": { "port": 1 } } } }),
                "spec.predictor.model.storage.parameters.port must be a text",
            ),
            (json!({ MODEL_SIZE: "big" }), json!({ "onnx": { "storageUri": "s3://b" } }), "annotation berth/model-size: \"big\" is not a size"),
            (json!({ PIN: "yes" }), json!({ "onnx": { "storageUri": "s3://b" } }), "annotation berth/pin is \"yes\": write \"true\""),
            (json!({ MIN_COPIES: "-1" }), json!({ "onnx": { "storageUri": "s3://b" } }), "annotation berth/min-copies is \"-1\""),
            (json!({ IDLE_TTL: "30" }), json!({ "onnx": { "storageUri": "s3://b" } }), "annotation berth/idle-ttl is \"30\": write a time"),
            (
                json!({ PIN: "true", IDLE_TTL: "30m" }),
                json!({ "onnx": { "storageUri": "s3://b" } }),
                "annotations berth/pin and berth/idle-ttl are both set",
            ),
            (json!({ MODEL_SIZE: "0" }), json!({ "onnx": { "storageUri": "s3://b" } }), "annotation berth/model-size is zero"),
            (
                json!({ MODEL_SIZE: 5 }),
                json!({ "onnx": { "storageUri": "s3://b" } }),
                "annotation berth/model-size must be a text, not the number 5: write it in quotes",
            ),
        ] {
            let fault = isvc(annotations, predictor.clone()).expect_err(expected);
            assert!(fault.contains(expected), "{predictor}: {fault}");
        }
    }

    #[test]
    fn every_fault_of_a_predictor_names_its_field() {
        let with = |rest: Value| {
            let mut spec = map(json!({ "modelType": { "name": "onnx" } }));
            spec.extend(map(rest));
            Value::Object(spec)
        };
        for (spec, expected) in [
            (with(json!({ "path": "p", "storage": { "path": "p" } })), "spec.path and spec.storage.path are both set"),
            (with(json!({ "schemaPath": "p", "storage": { "schemaPath": "p" } })), "spec.schemaPath and spec.storage.schemaPath are both set"),
            (with(json!({ "storage": { "persistentVolumeClaim": { "claimName": "c" } } })), "spec.storage.persistentVolumeClaim is not supported"),
            (with(json!({ "storage": { "s3": { "secretKey": "k" }, "path": "p" } })), "spec.storage.s3 and spec.storage.path are both set"),
            (
                with(json!({ "storage": { "s3": { "secretKey": "k" }, "schemaPath": "p" } })),
                "spec.storage.s3 and spec.storage.schemaPath are both set",
            ),
            (
                with(json!({ "storage": { "s3": { "secretKey": "k" }, "parameters": {} } })),
                "spec.storage.s3 and spec.storage.parameters are both set",
            ),
            (with(json!({ "storage": { "s3": { "secretKey": "k" }, "key": "k" } })), "spec.storage.s3 and spec.storage.key are both set"),
            (with(json!({ "storage": { "s3": {} } })), "spec.storage.s3.secretKey is missing"),
            (with(json!({ "runtime": {} })), "spec.runtime.name is missing"),
            (with(json!({ "gpu": "two" })), "spec.gpu is \"two\""),
            (json!({ "path": "p" }), "spec.modelType is missing"),
            (json!(null), "spec is missing"),
            (json!("text"), "spec must be an object, not the text \"text\""),
        ] {
            let fault = ksp(spec.clone()).expect_err(expected);
            assert!(fault.contains(expected), "{spec}: {fault}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "model",
            "modelFormat",
            "name",
            "storage",
            "storageUri",
            "path",
            "parameters",
            "onnx",
            "modelType",
            "s3",
            "runtime",
            "x",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z:/%?#@]{0,12}".prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(names.clone(), inner, 0..5).prop_map(|members| members
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<Map<_, _>>()
                    .into()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_document_makes_the_reader_panic_and_every_fault_has_a_message(document in any_json()) {
            for owner in [Owner::Isvc, Owner::Ksp] {
                for spec in [document.clone(), json!({ "predictor": document })] {
                    if let Err(fault) = parse(owner, &Map::new(), &spec) {
                        prop_assert!(fault.message.contains("spec"), "{}", fault.message);
                    }
                }
            }
        }
    }
}
