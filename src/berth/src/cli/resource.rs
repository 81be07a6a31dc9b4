//! What a resource's JSON says, in the same words for both kinds of models.
//!
//! Read as text and member by member: the server may be newer than this program, or a cluster in which others write too.

use berth_plan::resource::is_ours;
use berth_plan::status::NAME_TAKEN;
pub(crate) use berth_plan::status::document::NOT_SERVED;
use berth_registry::Kind;
use berth_types::{Owner, Reason};
use serde_json::{Map, Value};

/// The state shown for an InferenceService that is not for us.
pub(crate) const UNMANAGED: &str = "Unmanaged";

/// The text at `path`, where there is one that is not empty.
pub(crate) fn text<'v>(value: &'v Value, path: &[&str]) -> Option<&'v str> {
    path.iter().try_fold(value, |value, member| value.get(member))?.as_str().filter(|text| !text.is_empty())
}

/// The name; empty when the document has none.
pub(crate) fn name(resource: &Value) -> &str {
    text(resource, &["metadata", "name"]).unwrap_or_default()
}

/// The namespace of a namespaced resource.
pub(crate) fn namespace(resource: &Value) -> Option<&str> {
    text(resource, &["metadata", "namespace"])
}

/// The version of the resource, opaque.
pub(crate) fn version(resource: &Value) -> &str {
    text(resource, &["metadata", "resourceVersion"]).unwrap_or_default()
}

/// Whether we answer for an InferenceService or Predictor at all.
pub(crate) fn is_managed(kind: Kind, resource: &Value) -> bool {
    let owner = match kind {
        Kind::InferenceService => Owner::Isvc,
        Kind::Predictor | Kind::ServingRuntime | Kind::ClusterServingRuntime => return true,
    };
    is_ours(owner, resource["metadata"]["annotations"].as_object().unwrap_or(&Map::new()))
}

/// How an InferenceService or Predictor stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing<'r> {
    /// State of the active model; `None` before the first status.
    pub(crate) state: Option<&'r str>,
    /// State of the target model, where it is another one.
    pub(crate) target: Option<&'r str>,
    /// How the active model relates to the spec.
    pub(crate) transition: Option<&'r str>,
    /// Whether requests may be sent: `True`, `False` or `Unknown`.
    pub(crate) ready: &'r str,
    /// Copies that are loaded.
    pub(crate) copies: u64,
    /// Copies that failed to load lately.
    pub(crate) failed: u64,
    /// `lastFailureInfo`.
    pub(crate) failure: Option<&'r Value>,
    /// Where gRPC clients connect.
    pub(crate) grpc: Option<&'r str>,
    /// Where REST clients connect.
    pub(crate) rest: Option<&'r str>,
}

impl<'r> Standing<'r> {
    /// Reads the status of `resource`.
    pub(crate) fn of(kind: Kind, resource: &'r Value) -> Self {
        let status = &resource["status"];
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        match kind {
            Kind::Predictor => Standing {
                state: text(status, &["activeModelState"]),
                target: text(status, &["targetModelState"]),
                transition: text(status, &["transitionStatus"]),
                ready: match status["available"].as_bool() {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "Unknown",
                },
                copies: count(&status["totalCopies"]),
                failed: count(&status["failedCopies"]),
                failure: status.get("lastFailureInfo").filter(|info| info.is_object()),
                grpc: text(status, &["grpcEndpoint"]),
                rest: text(status, &["httpEndpoint"]),
            },
            Kind::InferenceService => {
                let model = &status["modelStatus"];
                let copies = model.get("copies").or_else(|| model.get("modelCopies")).unwrap_or(&Value::Null);
                Standing {
                    state: text(model, &["states", "activeModelState"]),
                    target: text(model, &["states", "targetModelState"]),
                    transition: text(model, &["transitionStatus"]),
                    ready: condition(resource, "Ready").unwrap_or("Unknown"),
                    copies: count(&copies["totalCopies"]),
                    failed: count(&copies["failedCopies"]),
                    failure: model.get("lastFailureInfo").filter(|info| info.is_object()),
                    grpc: text(status, &["components", "predictor", "grpcUrl"]),
                    rest: text(status, &["components", "predictor", "restUrl"]),
                }
            }
            Kind::ServingRuntime | Kind::ClusterServingRuntime => Standing { ready: "Unknown", ..Standing::default() },
        }
    }

    /// The last failure on a line: `ModelLoadFailed at d4f-abcdefgh: no such object`.
    pub(crate) fn failure_line(&self) -> Option<String> {
        let failure = self.failure?;
        let reason = text(failure, &["reason"]).unwrap_or("Failure");
        let at = text(failure, &["location"]).map(|location| format!(" at {location}")).unwrap_or_default();
        let message = text(failure, &["message"]).map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("{reason}{at}{message}"))
    }

    /// Another resource has the name: nothing happens to this one until that one is gone.
    pub(crate) fn name_is_taken(&self) -> bool {
        let told = self.failure.is_some_and(|failure| {
            let begins = |member: &str, word: &str| text(failure, &[member]).is_some_and(|text| text.starts_with(word));
            begins("reason", Reason::InvalidPredictorSpec.as_str()) && begins("message", NAME_TAKEN)
        });
        told && self.state == Some("Pending")
    }
}

/// The status of a condition, whatever the case of its name.
pub(crate) fn condition<'r>(resource: &'r Value, name: &str) -> Option<&'r str> {
    let conditions = resource["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|one| text(one, &["type"]).is_some_and(|kind| kind.eq_ignore_ascii_case(name)))?;
    text(found, &["status"])
}

/// The parts of an InferenceService that it asks for and nobody serves: type and message of their conditions.
pub(crate) fn not_served(resource: &Value) -> Vec<(&str, &str)> {
    let conditions = resource["status"]["conditions"].as_array().into_iter().flatten();
    let missing = conditions.filter(|one| text(one, &["reason"]) == Some(NOT_SERVED) && text(one, &["status"]) != Some("True"));
    // `Ready` repeats what one of the parts says.
    let parts = missing.filter_map(|one| text(one, &["type"]).zip(text(one, &["message"]).or(Some("not served"))));
    parts.filter(|(part, _)| *part != "Ready").collect()
}

/// What an InferenceService or Predictor asks for, as far as people look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model<'r> {
    /// Name of the format.
    pub(crate) format: Option<&'r str>,
    /// Version of the format.
    pub(crate) version: Option<&'r str>,
    /// The runtime that it insists on.
    pub(crate) runtime: Option<&'r str>,
    /// The protocol that it insists on.
    pub(crate) protocol: Option<&'r str>,
    /// Where the bytes are: names and values in the order of the resource's documentation.
    pub(crate) storage: Vec<(&'static str, String)>,
}

impl<'r> Model<'r> {
    /// Reads the spec of `resource`.
    pub(crate) fn of(kind: Kind, resource: &'r Value) -> Self {
        let spec = &resource["spec"];
        match kind {
            Kind::Predictor => Model {
                format: text(spec, &["modelType", "name"]),
                version: text(spec, &["modelType", "version"]),
                runtime: text(spec, &["runtime", "name"]),
                protocol: text(spec, &["protocolVersion"]),
                storage: storage(spec, &spec["storage"]),
            },
            Kind::InferenceService => {
                let predictor = &spec["predictor"];
                if let Some(model) = predictor.get("model") {
                    return Model {
                        format: text(model, &["modelFormat", "name"]),
                        version: text(model, &["modelFormat", "version"]),
                        runtime: text(model, &["runtime"]),
                        protocol: text(model, &["protocolVersion"]),
                        storage: storage(model, &model["storage"]),
                    };
                }
                // The older form: the format is the key under which the model stands.
                let legacy = predictor.as_object().into_iter().flatten();
                let legacy = legacy.into_iter().find(|(_, value)| value.get("storageUri").is_some() || value.get("storage").is_some());
                let Some((format, model)) = legacy else { return Model::default() };
                Model {
                    format: Some(format),
                    version: None,
                    runtime: text(resource, &["metadata", "annotations", "serving.kserve.io/servingRuntime"]),
                    protocol: text(model, &["protocolVersion"]),
                    storage: storage(model, &model["storage"]),
                }
            }
            Kind::ServingRuntime | Kind::ClusterServingRuntime => Model::default(),
        }
    }
}

fn storage(model: &Value, storage: &Value) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut take = |label, value: Option<&str>| found.extend(value.map(|value| (label, value.to_owned())));
    take("URI", text(model, &["storageUri"]));
    take("Key", text(storage, &["key"]).or_else(|| text(storage, &["s3", "secretKey"])));
    take("Path", text(storage, &["path"]).or_else(|| text(model, &["path"])));
    take("Schema", text(storage, &["schemaPath"]).or_else(|| text(model, &["schemaPath"])));
    take("Bucket", text(storage, &["s3", "bucket"]));
    let parameters: Vec<String> = storage["parameters"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    take("Parameters", (!parameters.is_empty()).then(|| parameters.join(", ")).as_deref());
    found
}

/// Recorded answers of the API, for the tests of everything that reads them.
#[cfg(test)]
pub(crate) mod recorded {
    use berth_plan::status::NAME_TAKEN;
    use berth_registry::Kind;
    use serde_json::{Value, json};

    /// A loaded InferenceService.
    pub(crate) fn loaded(name: &str) -> Value {
        json!({
            "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
            "metadata": {
                "name": name, "namespace": "default", "uid": "0b9c", "resourceVersion": "12", "generation": 1,
                "creationTimestamp": "2026-11-22T07:40:34Z", "annotations": { "serving.kserve.io/deploymentMode": "ModelMesh" }
            },
            "spec": { "predictor": { "model": { "modelFormat": { "name": "onnx", "version": "1" }, "storage": { "key": "quickstart", "path": name } } } },
            "status": {
                "url": "grpc://127.0.0.1:8033",
                "components": { "predictor": { "url": "grpc://127.0.0.1:8033", "grpcUrl": "grpc://127.0.0.1:8033", "restUrl": "http://127.0.0.1:8008" } },
                "conditions": [
                    { "type": "PredictorReady", "status": "True", "lastTransitionTime": "2026-11-22T07:41:44Z" },
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T07:41:44Z" }
                ],
                "modelStatus": {
                    "transitionStatus": "UpToDate", "states": { "activeModelState": "Loaded" },
                    "copies": { "failedCopies": 0, "totalCopies": 1 }, "modelCopies": { "failedCopies": 0, "totalCopies": 1 }
                }
            }
        })
    }

    /// A Predictor that could not be updated.
    pub(crate) fn blocked() -> Value {
        json!({
            "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor",
            "metadata": { "name": "mnist", "namespace": "team", "uid": "1", "resourceVersion": "13", "generation": 2, "creationTimestamp": "2026-11-20T07:43:44Z" },
            "spec": {
                "modelType": { "name": "tensorflow", "version": "1.15" }, "runtime": { "name": "triton-2.x" }, "path": "my_models/mnist-tf",
                "storage": { "s3": { "secretKey": "my_storage", "bucket": "my_bucket" } }
            },
            "status": {
                "available": true, "transitionStatus": "BlockedByFailedLoad", "activeModelState": "Loaded", "targetModelState": "FailedToLoad",
                "failedCopies": 1, "totalCopies": 2, "grpcEndpoint": "grpc://127.0.0.1:8033", "httpEndpoint": "http://127.0.0.1:8008",
                "lastFailureInfo": {
                    "reason": "ModelLoadFailed", "location": "d4f-abcdefgh", "message": "no such\nobject", "modelId": "mnist__ksp-0123456789",
                    "time": "2026-11-22T07:43:14Z"
                }
            }
        })
    }

    /// A resource whose name another one has.
    pub(crate) fn name_taken(kind: Kind) -> Value {
        let failure = json!({ "reason": "InvalidPredictorSpec", "message": format!("{NAME_TAKEN}: Predictor default/mnist has it") });
        let mut taken = match kind {
            Kind::Predictor => blocked(),
            _ => loaded("mnist"),
        };
        taken["status"] = match kind {
            Kind::Predictor => json!({ "available": false, "transitionStatus": "UpToDate", "activeModelState": "Pending", "targetModelState": "",
                "failedCopies": 0, "totalCopies": 0, "lastFailureInfo": failure }),
            _ => json!({
                "conditions": [{ "type": "PredictorReady", "status": "False" }, { "type": "Ready", "status": "False" }],
                "modelStatus": { "transitionStatus": "UpToDate", "states": { "activeModelState": "Pending" }, "lastFailureInfo": failure }
            }),
        };
        taken
    }

    /// A loaded InferenceService that asks for a transformer, which nobody serves.
    pub(crate) fn without_transformer() -> Value {
        let mut service = loaded("iris");
        let message = "the transformer is not run here: requests reach the predictor without it";
        service["status"]["conditions"] = json!([
            { "type": "PredictorReady", "status": "True" },
            { "type": "Ready", "status": "False", "reason": "NotServed", "message": message },
            { "type": "TransformerReady", "status": "False", "reason": "NotServed", "message": message }
        ]);
        service
    }

    /// The runtime that comes with the program.
    pub(crate) fn runtime() -> Value {
        json!({
            "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterServingRuntime",
            "metadata": { "name": "berth-onnx", "uid": "2", "resourceVersion": "1", "generation": 1, "creationTimestamp": "2026-11-22T07:43:39Z" },
            "spec": {
                "multiModel": true, "protocolVersions": ["grpc-v2", "v2"], "containers": [{ "name": "embedded" }],
                "supportedModelFormats": [{ "name": "onnx", "version": "1", "autoSelect": true }]
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_kinds_are_read_into_the_same_words() {
        let (service, predictor) = (recorded::loaded("iris"), recorded::blocked());
        let standing = Standing::of(Kind::InferenceService, &service);
        assert_eq!((standing.state, standing.target, standing.transition), (Some("Loaded"), None, Some("UpToDate")));
        assert_eq!((standing.ready, standing.copies, standing.failed), ("True", 1, 0));
        assert_eq!((standing.rest, standing.failure_line()), (Some("http://127.0.0.1:8008"), None));
        let standing = Standing::of(Kind::Predictor, &predictor);
        assert_eq!((standing.state, standing.target, standing.ready, standing.copies), (Some("Loaded"), Some("FailedToLoad"), "True", 2));
        assert_eq!(standing.failure_line().as_deref(), Some("ModelLoadFailed at d4f-abcdefgh: no such\nobject"));
    }

    #[test]
    fn a_resource_without_status_stands_nowhere_and_garbage_breaks_nothing() {
        for kind in Kind::ALL {
            for garbage in [json!({}), json!(null), json!({ "status": 5 }), json!({ "status": { "modelStatus": [], "conditions": {} }, "spec": [] })]
            {
                let standing = Standing::of(kind, &garbage);
                assert_eq!((standing.state, standing.ready, standing.copies), (None, "Unknown", 0));
                assert_eq!(Model::of(kind, &garbage).format, None);
            }
        }
    }

    #[test]
    fn a_taken_name_and_a_part_that_nobody_serves_are_told_apart_from_other_trouble() {
        for kind in [Kind::Predictor, Kind::InferenceService] {
            let mut taken = recorded::name_taken(kind);
            assert!(Standing::of(kind, &taken).name_is_taken());
            let failure = match kind {
                Kind::Predictor => &mut taken["status"]["lastFailureInfo"],
                _ => &mut taken["status"]["modelStatus"]["lastFailureInfo"],
            };
            failure["message"] = "spec.predictor has no model".into();
            assert!(!Standing::of(kind, &taken).name_is_taken());
        }
        assert!(!Standing::of(Kind::Predictor, &recorded::blocked()).name_is_taken());
        let missing = "the transformer is not run here: requests reach the predictor without it";
        assert_eq!(not_served(&recorded::without_transformer()), [("TransformerReady", missing)]);
        let mut run_by_others = recorded::without_transformer();
        run_by_others["status"]["conditions"][2] = json!({ "type": "TransformerReady", "status": "False", "reason": "Deploying" });
        assert!(not_served(&run_by_others).is_empty());
    }

    #[test]
    fn every_form_of_a_model_is_read() {
        let model = Model::of(Kind::Predictor, &recorded::blocked()).storage;
        let pairs = |pairs: &[(&'static str, &str)]| pairs.iter().map(|(label, value)| (*label, (*value).to_owned())).collect::<Vec<_>>();
        assert_eq!(model, pairs(&[("Key", "my_storage"), ("Path", "my_models/mnist-tf"), ("Bucket", "my_bucket")]));
        let legacy = json!({
            "metadata": { "annotations": { "serving.kserve.io/servingRuntime": "r" } },
            "spec": { "predictor": { "minReplicas": 1, "sklearn": { "storageUri": "s3://b/p", "protocolVersion": "v2" } } }
        });
        let model = Model::of(Kind::InferenceService, &legacy);
        assert_eq!((model.format, model.runtime, model.protocol), (Some("sklearn"), Some("r"), Some("v2")));
        assert_eq!(model.storage, pairs(&[("URI", "s3://b/p")]));
    }

    #[test]
    fn only_services_with_the_annotation_are_managed() {
        assert!(is_managed(Kind::InferenceService, &recorded::loaded("a")));
        assert!(!is_managed(Kind::InferenceService, &json!({ "metadata": { "name": "a" } })));
        assert!(is_managed(Kind::Predictor, &json!({ "metadata": { "name": "a" } })));
    }
}
