//! Resources as the JSON of Kubernetes.

use berth_registry::{Json, Object, Uid};
use serde::Serialize;

/// A resource as clients see it; borrowed, so that a list of thousands is not copied to be printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resource<'o> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'o>,
    spec: &'o Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'o Json>,
}

/// What a resource is called and belongs to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata<'o> {
    name: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'o str>,
    // What was only tried (`dryRun`) was given neither.
    #[serde(skip_serializing_if = "Uid::is_none")]
    uid: Uid,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<String>,
    generation: u64,
    creation_timestamp: String,
    #[serde(skip_serializing_if = "Json::is_empty")]
    labels: &'o Json,
    #[serde(skip_serializing_if = "Json::is_empty")]
    annotations: &'o Json,
}

impl<'o> Resource<'o> {
    pub(crate) fn of(object: &'o Object) -> Self {
        let kind = object.key.kind;
        Resource {
            api_version: kind.api_version(),
            kind: kind.as_str(),
            metadata: Metadata::of(object),
            spec: &object.spec,
            status: object.status.as_ref(),
        }
    }
}

impl<'o> Metadata<'o> {
    pub(crate) fn of(object: &'o Object) -> Self {
        Metadata {
            name: object.key.name.as_str(),
            namespace: object.key.namespace.as_ref().map(|namespace| namespace.as_str()),
            uid: object.uid,
            resource_version: (object.resource_version > 0).then(|| object.resource_version.to_string()),
            generation: object.generation,
            creation_timestamp: object.created.rfc3339(),
            labels: &object.labels,
            annotations: &object.annotations,
        }
    }
}

/// JSON text of something that always has one.
pub(crate) fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with text keys and plain values always print")
}
