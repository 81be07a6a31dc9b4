//! Resources and lists as the JSON of Kubernetes.

use std::sync::Arc;

use berth_registry::{Kind, Object};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

/// A resource as clients see it; borrowed, so that a list of thousands is not copied to be printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Resource<'o> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'o>,
    spec: &'o Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'o Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'o> {
    name: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'o str>,
    // What was only tried (`dryRun`) was given neither.
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<String>,
    generation: u64,
    creation_timestamp: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    labels: &'o Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    annotations: &'o Map<String, Value>,
}

impl<'o> Resource<'o> {
    pub(crate) fn of(object: &'o Object) -> Self {
        let kind = object.key.kind;
        Resource {
            api_version: kind.api_version(),
            kind: kind.as_str(),
            metadata: Metadata {
                name: object.key.name.as_str(),
                namespace: object.key.namespace.as_ref().map(|namespace| namespace.as_str()),
                uid: &object.uid,
                resource_version: (object.resource_version > 0).then(|| object.resource_version.to_string()),
                generation: object.generation,
                creation_timestamp: object.created.rfc3339(),
                labels: &object.labels,
                annotations: &object.annotations,
            },
            spec: &object.spec,
            status: object.status.as_deref(),
        }
    }
}

/// JSON text of something that always has one.
pub(crate) fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with text keys and plain values always print")
}

/// Objects printed into one piece of a list's text.
const OBJECTS_PER_PIECE: usize = 128;

/// The text of a list, piece by piece, so that a long one is never whole in memory.
pub(crate) fn list(kind: Kind, metadata: &Value, objects: Vec<Arc<Object>>) -> impl Iterator<Item = Bytes> + Send + 'static {
    let head = format!(r#"{{"apiVersion":"{}","kind":"{}List","metadata":{metadata},"items":["#, kind.api_version(), kind.as_str());
    let pieces = objects.len().div_ceil(OBJECTS_PER_PIECE);
    let body = (0..pieces).map(move |piece| {
        let from = piece * OBJECTS_PER_PIECE;
        let mut text = Vec::new();
        for (at, object) in objects.iter().enumerate().skip(from).take(OBJECTS_PER_PIECE) {
            if at > 0 {
                text.push(b',');
            }
            text.extend(self::text(&Resource::of(object)));
        }
        Bytes::from(text)
    });
    std::iter::once(Bytes::from(head)).chain(body).chain(std::iter::once(Bytes::from_static(b"]}\n")))
}
