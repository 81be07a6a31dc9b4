//! Resources, lists and errors as the JSON of Kubernetes.

use std::sync::Arc;

use berth_registry::{Kind, Object, ObjectKey};
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value, json};

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
    uid: &'o str,
    resource_version: String,
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
                resource_version: object.resource_version.to_string(),
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

/// An error as Kubernetes tells it: a `Status` object and its HTTP code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: StatusCode,
    reason: &'static str,
    pub(crate) message: String,
    details: Option<Value>,
}

impl Failure {
    pub(crate) fn not_found(key: &ObjectKey) -> Self {
        let (plural, name) = (key.kind.plural(), key.name.as_str());
        Failure {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: format!("{plural}.{} {name:?} not found", Kind::GROUP),
            details: Some(json!({ "name": name, "group": Kind::GROUP, "kind": plural })),
        }
    }

    pub(crate) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        Failure { code: StatusCode::NOT_FOUND, reason: "NotFound", message, details: Some(json!({})) }
    }

    pub(crate) fn bad_request(message: String) -> Self {
        Failure { code: StatusCode::BAD_REQUEST, reason: "BadRequest", message, details: None }
    }

    pub(crate) fn forbidden(message: String) -> Self {
        Failure { code: StatusCode::FORBIDDEN, reason: "Forbidden", message, details: None }
    }

    pub(crate) fn read_only(message: String) -> Self {
        Failure { code: StatusCode::METHOD_NOT_ALLOWED, reason: "MethodNotAllowed", message, details: None }
    }

    pub(crate) fn expired(message: String) -> Self {
        Failure { code: StatusCode::GONE, reason: "Expired", message, details: None }
    }

    /// The `Status` object.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            document["details"] = details.clone();
        }
        document
    }
}
