//! Reading the body of a write into the resource that it asks for.
//!
//! What is checked here is the form that every resource of Kubernetes has: type, names, metadata, and that `spec` is an
//! object. What a spec asks for is not: as with a kind that has no schema, an unsound one is accepted, and the status
//! says what is wrong with it. Pure.

use berth_registry::{Desired, Kind, Object, ObjectKey, Origin, namespace_name, resource_name};
use berth_types::{Name, Namespace};
use serde_json::{Map, Value};

use crate::body::{DEEPEST, LARGEST, is_at_most};
use crate::document::{Resource, text};
use crate::failure::{Cause, Failure};

/// Bytes of all annotations of a resource, keys and values.
const MOST_ANNOTATIONS: usize = 256 << 10;
/// Characters of a generated name before its suffix.
const LONGEST_BASE: usize = 58;

/// The members that a resource has; others are dropped with a remark.
const MEMBERS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// The members of the metadata of Kubernetes. Those that are not read here are the server's business.
const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// What a document asks for. Its status and the fields that are the server's business are left out.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    kind: Kind,
    pub(crate) name: Option<String>,
    pub(crate) generate_name: Option<String>,
    namespace: Option<String>,
    pub(crate) uid: Option<String>,
    /// The version that the client has seen.
    pub(crate) resource_version: Option<String>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    spec: Option<Value>,
    /// What of the document is not kept and why.
    pub(crate) remarks: Vec<String>,
    /// Members that no resource has.
    pub(crate) unknown: Vec<String>,
}

impl Wanted {
    /// Reads a resource of this kind.
    ///
    /// # Errors
    /// The document is not a resource of this kind, or all faults of its form together.
    pub(crate) fn read(kind: Kind, document: Value) -> Result<Self, Failure> {
        if !is_at_most(&document, DEEPEST) {
            return Err(Failure::bad_request(format!("values are nested deeper than {DEEPEST} levels")));
        }
        let Value::Object(mut members) = document else {
            return Err(Failure::bad_request("the body must be a resource: an object with apiVersion, kind, metadata and spec"));
        };
        check_type(kind, &members)?;
        let mut causes = Vec::new();
        let mut metadata = match members.remove("metadata") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(metadata)) => metadata,
            Some(other) => {
                causes.push(Cause::of_type("metadata", &other, "an object"));
                Map::new()
            }
        };
        let spec = match members.remove("spec") {
            None | Some(Value::Null) => None,
            Some(spec @ Value::Object(_)) => Some(spec),
            Some(other) => {
                causes.push(Cause::of_type("spec", &other, "an object"));
                None
            }
        };
        let unknown = members
            .keys()
            .filter(|name| !MEMBERS.contains(&name.as_str()))
            .cloned()
            .chain(metadata.keys().filter(|name| !METADATA.contains(&name.as_str())).map(|name| format!("metadata.{name}")))
            .collect();
        let remarks = remarks(&metadata);
        let mut string = |name: &str| match metadata.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text).filter(|text| !text.is_empty()),
            Some(other) => {
                causes.push(Cause::of_type(format!("metadata.{name}"), &other, "a string"));
                None
            }
        };
        let (name, generate_name, namespace) = (string("name"), string("generateName"), string("namespace"));
        let (uid, resource_version) = (string("uid"), string("resourceVersion"));
        let labels = strings(&mut metadata, "labels", &mut causes);
        let annotations = strings(&mut metadata, "annotations", &mut causes);
        check_labels(&labels, &mut causes);
        check_annotations(&annotations, &mut causes);
        if !causes.is_empty() {
            return Err(Failure::invalid(kind, name.as_deref().or(generate_name.as_deref()).unwrap_or_default(), causes));
        }
        Ok(Wanted { kind, name, generate_name, namespace, uid, resource_version, labels, annotations, spec, remarks, unknown })
    }

    /// Names in the document must be those of the path.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn check_names(&self, key: &ObjectKey) -> Result<(), Failure> {
        let given =
            self.name.as_deref().ok_or_else(|| Failure::bad_request(format!("metadata.name is missing: the path has {:?}", key.name.as_str())))?;
        if given != key.name.as_str() {
            let text = format!("the name of the object ({given}) does not match the name on the URL ({})", key.name);
            return Err(Failure::bad_request(text));
        }
        self.check_namespace(key.namespace.as_ref())
    }

    /// A namespace in the document must be that of the path. Kinds without namespaces ignore it.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn check_namespace(&self, namespace: Option<&Namespace>) -> Result<(), Failure> {
        match (&self.namespace, namespace) {
            (Some(given), Some(namespace)) if given != namespace.as_str() => {
                let text = format!("the namespace of the object ({given}) does not match the namespace on the request ({namespace})");
                Err(Failure::bad_request(text))
            }
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }

    /// The name for a new resource: as given, or from `generateName` and a suffix.
    ///
    /// # Errors
    /// There is neither, or it is no name.
    pub(crate) fn new_name(&self, suffix: impl FnOnce() -> String) -> Result<Name, Failure> {
        let (field, name) = match (&self.name, &self.generate_name) {
            (Some(name), _) => ("metadata.name", name.clone()),
            (None, Some(base)) => {
                let base: String = base.chars().take(LONGEST_BASE).collect();
                ("metadata.generateName", base + &suffix())
            }
            (None, None) => {
                let cause = Cause::required("metadata.name", "name or generateName is required");
                return Err(Failure::invalid(self.kind, "", vec![cause]));
            }
        };
        resource_name(&name).map_err(|fault| Failure::invalid(self.kind, &name, vec![Cause::invalid(field, &name, &fault)]))
    }

    /// The resource, as the store takes it.
    ///
    /// # Errors
    /// It is too large.
    pub(crate) fn object(self, key: ObjectKey) -> Result<Object, Failure> {
        let spec = self.spec.unwrap_or_else(|| Value::Object(Map::new()));
        let object =
            Object::unsaved(Desired { labels: self.labels.into(), annotations: self.annotations.into(), ..Desired::new(key, Origin::Api, &spec) });
        let size = text(&Resource::of(&object)).len();
        if size > LARGEST {
            return Err(Failure::too_large(format!("the resource has {size} bytes as JSON, at most {LARGEST} are allowed")));
        }
        Ok(object)
    }

    /// What is left of `present` when this is applied to it: its spec, if this has none, and all labels and annotations
    /// that this does not set.
    pub(crate) fn over(mut self, present: &Object) -> Self {
        let mut labels = present.labels.members();
        labels.append(&mut self.labels);
        let mut annotations = present.annotations.members();
        annotations.append(&mut self.annotations);
        Wanted { labels, annotations, spec: self.spec.or_else(|| Some(present.spec.value())), ..self }
    }
}

/// The namespace of a path, for a resource to be made in it.
///
/// # Errors
/// It cannot be one.
pub(crate) fn check_new_namespace(kind: Kind, name: &str, namespace: Option<&Namespace>) -> Result<(), Failure> {
    let Some(namespace) = namespace else { return Ok(()) };
    let fault = namespace_name(namespace.as_str()).err();
    fault.map_or(Ok(()), |fault| Err(Failure::invalid(kind, name, vec![Cause::invalid("metadata.namespace", namespace.as_str(), &fault)])))
}

fn check_type(kind: Kind, members: &Map<String, Value>) -> Result<(), Failure> {
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.as_str())] {
        match members.get(field) {
            Some(Value::String(given)) if given == expected => {}
            None | Some(Value::Null) => return Err(Failure::bad_request(format!("{field} is missing: the path expects {expected}"))),
            Some(Value::String(given)) => {
                let given: String = given.chars().take(80).collect();
                return Err(Failure::bad_request(format!("{field} in the body ({given}) does not match what the path expects ({expected})")));
            }
            Some(_) => return Err(Failure::bad_request(format!("{field} must be a string: the path expects {expected}"))),
        }
    }
    Ok(())
}

/// What of the metadata has no effect here although it has one in a cluster.
fn remarks(metadata: &Map<String, Value>) -> Vec<String> {
    let filled = |name: &str| metadata.get(name).and_then(Value::as_array).is_some_and(|items| !items.is_empty());
    [
        ("finalizers", "metadata.finalizers is not kept: here a removal takes effect at once"),
        ("ownerReferences", "metadata.ownerReferences is not kept: here nothing is removed together with its owner"),
    ]
    .into_iter()
    .filter(|(name, _)| filled(name))
    .map(|(_, remark)| remark.to_owned())
    .collect()
}

/// The strings of a member of the metadata.
fn strings(metadata: &mut Map<String, Value>, name: &str, causes: &mut Vec<Cause>) -> Map<String, Value> {
    let entries = match metadata.remove(name) {
        None | Some(Value::Null) => return Map::new(),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            causes.push(Cause::of_type(format!("metadata.{name}"), &other, "an object"));
            return Map::new();
        }
    };
    causes.extend(
        entries
            .iter()
            .filter(|(_, value)| !value.is_string())
            .map(|(key, value)| Cause::of_type(format!("metadata.{name}.{key}"), value, "a string: write it in quotes")),
    );
    entries
}

fn check_labels(labels: &Map<String, Value>, causes: &mut Vec<Cause>) {
    for (key, value) in labels {
        causes.extend(qualified_name(key).err().map(|fault| Cause::invalid("metadata.labels", key, fault)));
        if let Some(value) = value.as_str().filter(|value| !value.is_empty() && !is_word(value)) {
            let fault = "a label has at most 63 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit";
            causes.push(Cause::invalid("metadata.labels", value, fault));
        }
    }
}

fn check_annotations(annotations: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in annotations {
        causes.extend(qualified_name(&key.to_ascii_lowercase()).err().map(|fault| Cause::invalid("metadata.annotations", key, fault)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MOST_ANNOTATIONS {
        causes.push(Cause::too_long("metadata.annotations", &format!("{size} bytes, at most {MOST_ANNOTATIONS} are allowed")));
    }
}

/// `name` or `prefix/name`, as keys of labels and annotations are.
fn qualified_name(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| resource_name(prefix).is_err()) {
        return Err("the part before the / must be a DNS name");
    }
    if is_word(name) {
        Ok(())
    } else {
        Err(
            "a key has at most 63 letters, digits, '-', '_' and '.', begins and ends with a letter or digit, and may have a DNS name and a / before it",
        )
    }
}

fn is_word(text: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::json;

    use super::*;

    fn read(metadata: Value, spec: Value) -> Result<Wanted, Failure> {
        let document = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": metadata, "spec": spec });
        Wanted::read(Kind::Predictor, document)
    }

    #[test]
    fn faults_of_the_form_are_told_together_with_their_fields() {
        let metadata = json!({ "name": "a", "labels": { "t": 1, "-x": "y", "z": "a b" }, "annotations": { "a b": "" }, "uid": [] });
        let failure = read(metadata, json!([])).unwrap_err();
        let status = failure.document();
        let fields: Vec<_> = status["details"]["causes"].as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap()).collect();
        assert_eq!((status["code"].as_u64(), status["reason"].as_str()), (Some(422), Some("Invalid")));
        assert_eq!(fields, ["spec", "metadata.uid", "metadata.labels.t", "metadata.labels", "metadata.labels", "metadata.annotations"]);
        assert_eq!(status["details"]["causes"][0]["message"], "Invalid value: must be an object, not a list");
        assert!(
            failure.message.starts_with("Predictor.serving.kserve.io \"a\" is invalid: [spec: Invalid value: must be an object"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn keys_and_labels_are_those_of_kubernetes() {
        for (key, fine) in [
            ("a", true),
            ("serving.kserve.io/deploymentMode", true),
            ("A_b.c-9", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
            ("Up.per/a", false),
            ("-a", false),
            ("a b", false),
        ] {
            assert_eq!(qualified_name(key).is_ok(), fine, "{key:?}");
        }
        assert!(is_word(&"a".repeat(63)) && !is_word(&"a".repeat(64)));
        let large = json!({ "name": "a", "annotations": { "a": "x".repeat(MOST_ANNOTATIONS) } });
        assert!(read(large, json!({})).unwrap_err().message.contains("metadata.annotations: Too long: 262145 bytes"));
    }

    #[test]
    fn what_is_not_kept_is_said() {
        let metadata = json!({ "name": "a", "finalizers": ["x"], "ownerReferences": [], "managedFields": [{}], "colour": "red" });
        let document = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": metadata, "sepc": {}, "status": 1 });
        let wanted = Wanted::read(Kind::Predictor, document).unwrap();
        assert_eq!(wanted.remarks, ["metadata.finalizers is not kept: here a removal takes effect at once"]);
        assert_eq!(wanted.unknown, ["sepc", "metadata.colour"]);
    }

    #[test]
    fn a_name_is_given_or_generated() {
        let name = |metadata: Value| read(metadata, json!({})).unwrap().new_name(|| "x2b4c".to_owned()).map_err(|failure| failure.message);
        assert_eq!(name(json!({ "name": "a.b", "generateName": "g-" })).unwrap().as_str(), "a.b");
        assert_eq!(name(json!({ "generateName": "g-" })).unwrap().as_str(), "g-x2b4c");
        assert_eq!(name(json!({ "generateName": "g".repeat(300) })).unwrap().as_str().len(), 63);
        for (metadata, expected) in [
            (json!({}), "Predictor.serving.kserve.io \"\" is invalid: metadata.name: Required value: name or generateName is required"),
            (json!({ "name": "Bad" }), "Predictor.serving.kserve.io \"Bad\" is invalid: metadata.name: Invalid value: \"Bad\": is not a DNS name"),
            (json!({ "generateName": "_" }), "Predictor.serving.kserve.io \"_x2b4c\" is invalid: metadata.generateName: Invalid value"),
        ] {
            let fault = name(metadata).unwrap_err();
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn a_spec_is_kept_as_it_was_written(fields in prop::collection::btree_map("[a-zA-Z$/~ ]{0,6}", any::<i64>(), 0..5)) {
            let spec = json!(fields);
            let key = ObjectKey { kind: Kind::Predictor, namespace: Some(Namespace::new("n").unwrap()), name: Name::new("a").unwrap() };
            let object = read(json!({ "name": "a" }), spec.clone()).unwrap().object(key).unwrap();
            prop_assert_eq!(&object.spec, &spec);
        }
    }
}
