//! What comes with the program: the runtime that is built into it, and descriptions of those that may stand beside it.

use std::path::Path;
use std::sync::Arc;

use berth_types::Name;
use serde_json::json;

use crate::{Desired, Kind, ObjectKey, Origin, manifest};

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

/// The descriptions of inference servers that come with the program: what `deploy/runtimes` holds.
const BESIDE: [(&str, &str); 4] = [
    ("triton-2.x", include_str!("../../../deploy/runtimes/triton-2.x.yaml")),
    ("mlserver-1.x", include_str!("../../../deploy/runtimes/mlserver-1.x.yaml")),
    ("ovms-1.x", include_str!("../../../deploy/runtimes/ovms-1.x.yaml")),
    ("torchserve-0.x", include_str!("../../../deploy/runtimes/torchserve-0.x.yaml")),
];

/// All that come with the program: for a controller, whose agents may stand before any of them.
#[must_use]
pub fn bundled_for_agents() -> Vec<Arc<Desired>> {
    BESIDE.iter().map(|(name, _)| *name).chain([EMBEDDED_RUNTIME]).filter_map(bundled_beside).collect()
}

/// The ClusterServingRuntime of this name that comes with the program, for an inference server beside it. `None`: its
/// description is the user's to give.
#[must_use]
pub fn bundled_beside(name: &str) -> Option<Arc<Desired>> {
    if name == EMBEDDED_RUNTIME {
        // The same engine in a process of its own: `berth runtime`.
        return bundled().into_iter().next();
    }
    let (file, text) = BESIDE.iter().find(|(known, _)| *known == name)?;
    let read = manifest::read(Path::new(&format!("{file}.yaml")), text);
    let (_, object) = read.objects.into_iter().next()?;
    Some(Arc::new(Desired { origin: Origin::Bundled, ..Desired::clone(&object) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bundled_for_servers_beside_can_be_read_without_a_fault() {
        for (name, text) in BESIDE {
            let read = manifest::read(Path::new("runtime.yaml"), text);
            assert_eq!((read.objects.len(), read.faults.len()), (1, 0), "{name}: {:?}", read.faults);
            let object = bundled_beside(name).expect("it is bundled");
            assert_eq!((object.key.kind, object.key.name.as_str(), &object.origin), (Kind::ClusterServingRuntime, name, &Origin::Bundled));
        }
        assert_eq!(bundled_beside("mine"), None);
    }
}
