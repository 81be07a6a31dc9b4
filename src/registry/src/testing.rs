//! What the unit tests of this crate share.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_types::{ModelFormat, ModelId, Placement, Registration, StorageRef};

/// Version `version` of the model of `name`.
pub(crate) fn registration(name: &str, version: u32) -> Arc<Registration> {
    Arc::new(Registration::new(
        ModelId::new(format!("{name}__isvc-{version:010}")).unwrap(),
        ModelFormat { name: "onnx".into(), version: Some("1".into()) },
        Placement::Format { protocol: None },
        StorageRef {
            key: Some("localMinIO".into()),
            parameters: Arc::new(BTreeMap::from([("bucket".to_owned(), "models".to_owned())])),
            path: format!("{name}/{version}/model.onnx").into(),
            schema_path: None,
        },
        None,
    ))
}
