//! Resources as the rows of a `Table`: what `kubectl get` prints without knowing the kinds.
//!
//! The columns of Predictors and runtimes are the printer columns of their CustomResourceDefinitions; those of
//! InferenceServices are KServe's, without its traffic columns and with the state of the model instead. Behind both stands
//! how far the download of the model is. A cell that has nothing to show is `null`, which kubectl prints as `<none>`; that
//! of the download is empty, since there seldom is one.

use std::time::Duration;

use berth_plan::resource::is_ours;
use berth_registry::{Json, Kind, Object};
use berth_types::{Owner, UnixMillis};
use serde::Serialize;
use serde_json::{Value, json};

use crate::age::short_duration;
use crate::document::{Metadata, Resource};

/// How much of its object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    Nothing,
    #[default]
    Metadata,
    Whole,
}

impl Include {
    /// Reads `includeObject` among the parameters of a request.
    ///
    /// # Errors
    /// A text that names what it may be.
    pub(crate) fn read(parameters: &[(String, String)]) -> Result<Self, String> {
        match parameters.iter().rfind(|(name, _)| name == "includeObject").map(|(_, value)| value.as_str()) {
            None | Some("" | "Metadata") => Ok(Include::Metadata),
            Some("None") => Ok(Include::Nothing),
            Some("Object") => Ok(Include::Whole),
            Some(other) => Err(format!("includeObject={other}: expected None, Metadata or Object")),
        }
    }
}

/// One column; those of priority 1 are shown with `-o wide` only.
#[derive(Serialize)]
pub(crate) struct Column {
    name: &'static str,
    r#type: &'static str,
    format: &'static str,
    description: &'static str,
    priority: u8,
}

const fn column(name: &'static str, r#type: &'static str, description: &'static str) -> Column {
    Column { name, r#type, format: "", description, priority: 0 }
}

const NAME: Column = Column { format: "name", ..column("Name", "string", "Name of the resource, unique among those of its kind and namespace") };
const AGE: Column = column("Age", "date", "How long ago the resource was made");
const ACTIVE: Column = column("ActiveModel", "string", "State of the model that serves");
const TARGET: Column = column("TargetModel", "string", "State of the model that is to take its place");
const TRANSITION: Column = column("Transition", "string", "How the model that serves relates to the spec");
const PROGRESS: Column = column("Progress", "string", "How far the download of the model is, while there is one");

const SERVICES: &[Column] = &[
    NAME,
    column("URL", "string", "Where clients send their requests"),
    column("Ready", "string", "Whether requests may be sent"),
    ACTIVE,
    Column { priority: 1, ..TARGET },
    TRANSITION,
    column("Copies", "integer", "Copies that are loaded"),
    Column { priority: 1, ..column("Failure", "string", "Why the model failed last") },
    AGE,
    PROGRESS,
];
const PREDICTORS: &[Column] = &[
    NAME,
    column("Type", "string", "Format of the model"),
    column("Available", "boolean", "Whether requests may be sent"),
    ACTIVE,
    TARGET,
    TRANSITION,
    AGE,
    PROGRESS,
];
const RUNTIMES: &[Column] = &[
    NAME,
    column("Disabled", "boolean", "Whether it takes no models"),
    column("ModelType", "string", "Formats that it serves"),
    column("Containers", "string", "Its containers"),
    AGE,
];

/// The columns of a kind.
pub(crate) const fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::InferenceService => SERVICES,
        Kind::Predictor => PREDICTORS,
        Kind::ServingRuntime | Kind::ClusterServingRuntime => RUNTIMES,
    }
}

/// One row.
#[derive(Serialize)]
pub(crate) struct Row<'o> {
    cells: Vec<Value>,
    object: Carried<'o>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Carried<'o> {
    Nothing(()),
    Metadata(Partial<'o>),
    Whole(Resource<'o>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Partial<'o> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Metadata<'o>,
}

impl<'o> Row<'o> {
    /// The row of `object` at `now`, whose download is as far as `progress` says.
    pub(crate) fn of(object: &'o Object, include: Include, now: UnixMillis, progress: &str) -> Self {
        let carried = match include {
            Include::Nothing => Carried::Nothing(()),
            Include::Metadata => {
                Carried::Metadata(Partial { kind: "PartialObjectMetadata", api_version: "meta.k8s.io/v1", metadata: Metadata::of(object) })
            }
            Include::Whole => Carried::Whole(Resource::of(object)),
        };
        Row { cells: cells(object, now, progress), object: carried }
    }
}

/// The state of an InferenceService that is left alone, in the words of the command line.
const UNMANAGED: &str = "Unmanaged";

fn cells(object: &Object, now: UnixMillis, progress: &str) -> Vec<Value> {
    let status = object.status.as_ref().map(Json::value).unwrap_or_default();
    let age = short_duration(Duration::from_millis(now.0.saturating_sub(object.created.0)));
    let mut cells = vec![json!(object.key.name.as_str())];
    match object.key.kind {
        Kind::InferenceService => {
            let (predictor, model) = (&status["components"]["predictor"], &status["modelStatus"]);
            let url =
                [&status["url"], &predictor["url"], &predictor["grpcUrl"], &predictor["restUrl"]].into_iter().map(text).find(|url| !url.is_null());
            let ready = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == "Ready");
            let ours = is_ours(Owner::Isvc, &object.annotations.members());
            cells.extend([
                url.unwrap_or_default(),
                ready.map_or(Value::Null, |condition| text(&condition["status"])),
                if ours { text(&model["states"]["activeModelState"]) } else { UNMANAGED.into() },
                text(&model["states"]["targetModelState"]),
                text(&model["transitionStatus"]),
                model["copies"].as_object().map_or(Value::Null, |copies| copies.get("totalCopies").and_then(Value::as_u64).unwrap_or(0).into()),
                failure(&model["lastFailureInfo"]),
            ]);
        }
        Kind::Predictor => cells.extend([
            text(&object.spec.value()["modelType"]["name"]),
            status["available"].as_bool().map_or(Value::Null, Value::from),
            text(&status["activeModelState"]),
            text(&status["targetModelState"]),
            text(&status["transitionStatus"]),
        ]),
        Kind::ServingRuntime | Kind::ClusterServingRuntime => {
            let spec = object.spec.value();
            let disabled = spec["disabled"].as_bool().unwrap_or(false);
            cells.extend([disabled.into(), names(&spec["supportedModelFormats"]), names(&spec["containers"])]);
        }
    }
    cells.push(age.into());
    if matches!(object.key.kind, Kind::InferenceService | Kind::Predictor) {
        cells.push(progress.into());
    }
    cells
}

/// A text that says something.
fn text(value: &Value) -> Value {
    value.as_str().filter(|text| !text.is_empty()).map_or(Value::Null, Value::from)
}

fn names(items: &Value) -> Value {
    let names: Vec<&str> = items.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect();
    if names.is_empty() { Value::Null } else { names.join(",").into() }
}

fn failure(info: &Value) -> Value {
    match (info["reason"].as_str(), info["message"].as_str()) {
        (Some(reason), Some(message)) => format!("{reason}: {message}").into(),
        (Some(reason), None) => reason.into(),
        (None, _) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use berth_plan::resource::{DEPLOYMENT_MODE, MODEL_MESH};
    use berth_registry::{Desired, ObjectKey, Origin};
    use berth_types::{Name, Namespace};

    use super::*;

    fn row(kind: Kind, spec: Value, status: Option<Value>, include: Include) -> Value {
        let namespace = kind.namespaced().then(|| Namespace::new("n").unwrap());
        let key = ObjectKey { kind, namespace, name: Name::new("a").unwrap() };
        let annotations = if spec["left alone"] == true { Json::EMPTY } else { json!({ DEPLOYMENT_MODE: MODEL_MESH }).into() };
        let object = Object::unsaved(Desired { annotations, ..Desired::new(key, Origin::Api, &spec) });
        let object = Object { status: status.map(Json::from), created: UnixMillis(1_000), ..object };
        serde_json::to_value(Row::of(&object, include, UnixMillis(191_500), "45%")).unwrap()
    }

    #[test]
    fn every_kind_has_a_cell_for_every_column_with_and_without_a_status() {
        let failed = json!({ "reason": "ModelLoadFailed", "message": "why" });
        let service = json!({
            "components": { "predictor": { "grpcUrl": "grpc://h:1", "restUrl": "http://h:2" } },
            "conditions": [{ "type": "PredictorReady", "status": "False" }, { "type": "Ready", "status": "True" }],
            "modelStatus": { "transitionStatus": "BlockedByFailedLoad", "copies": { "totalCopies": 2 }, "lastFailureInfo": failed,
                "states": { "activeModelState": "Loaded", "targetModelState": "FailedToLoad" } },
        });
        let predictor = json!({ "available": false, "activeModelState": "Standby", "targetModelState": "", "transitionStatus": "UpToDate" });
        let runtime = json!({ "disabled": true, "supportedModelFormats": [{ "name": "x" }, { "name": "y" }], "containers": [{ "name": "c" }] });
        let none = Value::Null;
        for (kind, spec, status, cells) in [
            (
                Kind::InferenceService,
                json!({}),
                Some(service),
                json!(["a", "grpc://h:1", "True", "Loaded", "FailedToLoad", "BlockedByFailedLoad", 2, "ModelLoadFailed: why", "3m10s", "45%"]),
            ),
            (
                Kind::InferenceService,
                json!({ "left alone": true }),
                None,
                json!(["a", none, none, UNMANAGED, none, none, none, none, "3m10s", "45%"]),
            ),
            (Kind::InferenceService, json!({}), None, json!(["a", none, none, none, none, none, none, none, "3m10s", "45%"])),
            (
                Kind::InferenceService,
                json!({}),
                Some(json!({ "modelStatus": { "copies": { "failedCopies": 0 } } })),
                json!(["a", none, none, none, none, none, 0, none, "3m10s", "45%"]),
            ),
            (
                Kind::Predictor,
                json!({ "modelType": { "name": "onnx" } }),
                Some(predictor),
                json!(["a", "onnx", false, "Standby", none, "UpToDate", "3m10s", "45%"]),
            ),
            (Kind::Predictor, json!({}), None, json!(["a", none, none, none, none, none, "3m10s", "45%"])),
            (Kind::ServingRuntime, runtime.clone(), None, json!(["a", true, "x,y", "c", "3m10s"])),
            (Kind::ClusterServingRuntime, json!({}), None, json!(["a", false, none, none, "3m10s"])),
        ] {
            let row = row(kind, spec, status, Include::Nothing);
            assert_eq!(row, json!({ "cells": cells, "object": none }), "{kind:?}");
            assert_eq!(columns(kind).len(), row["cells"].as_array().unwrap().len(), "{kind:?}");
        }
    }

    #[test]
    fn a_row_carries_as_much_of_its_object_as_is_asked_for() {
        let carried = |include| row(Kind::Predictor, json!({ "x": 1 }), None, include)["object"].clone();
        let metadata = carried(Include::Metadata);
        assert_eq!((&metadata["kind"], &metadata["apiVersion"]), (&json!("PartialObjectMetadata"), &json!("meta.k8s.io/v1")));
        assert_eq!((&metadata["metadata"]["name"], metadata.get("spec")), (&json!("a"), None));
        assert_eq!(carried(Include::Whole)["spec"], json!({ "x": 1 }));
        let read = |value: &str| Include::read(&[("includeObject".to_owned(), value.to_owned())]);
        assert_eq!((read("None"), read("Object"), read("Metadata")), (Ok(Include::Nothing), Ok(Include::Whole), Ok(Include::Metadata)));
        assert_eq!(read("all").unwrap_err(), "includeObject=all: expected None, Metadata or Object");
    }
}
