//! What comes with the program: the runtime that is built into it.

use std::sync::Arc;

use berth_types::Name;
use serde_json::json;

use crate::{Desired, Kind, ObjectKey, Origin};

/// The name of the ClusterServingRuntime of the embedded engine.
pub const EMBEDDED_RUNTIME: &str = "berth-onnx";

/// The objects that the program brings with it; apply them to the store before anything else.
#[must_use]
pub fn bundled() -> Vec<Arc<Desired>> {
    let name = Name::new(EMBEDDED_RUNTIME).expect("the constant above is a name");
    let key = ObjectKey { kind: Kind::ClusterServingRuntime, namespace: None, name };
    let spec = json!({
        "supportedModelFormats": [{ "name": "onnx", "version": "1", "autoSelect": true }],
        "multiModel": true,
        "protocolVersions": ["v2", "grpc-v2"],
        // The schema of the kind requires the field; nothing is started for an engine that lives in this process.
        "containers": [],
    });
    vec![Arc::new(Desired::new(key, Origin::Bundled, &spec))]
}
