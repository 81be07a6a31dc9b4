//! The store's conformance suite on both stores, what only the one on disk must do, and the watched folder.
#![allow(clippy::unwrap_used, reason = "tests")]

mod disk;
mod folder;
mod store;

use std::sync::Arc;

use berth_registry::{Alias, Desired, Kind, ObjectKey, Origin};
use berth_types::{ModelFormat, ModelId, Name, Namespace, Placement, Registration, StorageRef};
use serde_json::json;

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::InferenceService, namespace: Some(Namespace::new("default").unwrap()), name: Name::new(name).unwrap() }
}

fn object(name: &str, spec: u64) -> Arc<Desired> {
    Arc::new(Desired::new(key(name), Origin::Api, &json!({ "predictor": { "number": spec } })))
}

fn registration(id: &str) -> Arc<Registration> {
    Arc::new(Registration::new(
        ModelId::new(id).unwrap(),
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Runtime("berth-onnx".into()),
        StorageRef { key: None, parameters: Arc::default(), path: "m.onnx".into(), schema_path: None },
        None,
    ))
}

fn alias(active: &str) -> Alias {
    Alias { active: registration(active), target: Some(registration("target")) }
}
