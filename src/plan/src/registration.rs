//! From what a resource asks for to what a model id stands for.
//!
//! The id holds a hash of the resource's spec: the first five bytes of SHA-1 over its JSON as upstream's Go program
//! would write it, so that ids, and with them metadata and responses, stay what users have seen so far. The other two
//! texts that leave the program, the type string and the model key, are made here as well.

use std::fmt::Write as _;

use berth_types::{ModelId, Name, Owner, Placement, Registration};
use serde_json::{Map, Value};
use sha1::{Digest, Sha1};

use crate::resource::ServingSpec;

/// What the resource `name` registers: its id and what the id stands for.
#[must_use]
pub fn registration(name: &Name, owner: Owner, spec: &ServingSpec) -> Registration {
    let hash = spec_hash(&spec.hashed);
    let id = ModelId::new(format!("{name}__{owner}-{hash}")).expect("a name has at most 253 bytes and no control characters");
    let placement = match &spec.runtime {
        Some(runtime) => Placement::Runtime(runtime.clone()),
        None => Placement::Format { protocol: spec.protocol.clone() },
    };
    Registration::new(id, spec.format.clone(), placement, spec.storage.clone(), spec.declared_size).kept(spec.keep)
}

fn spec_hash(text: &str) -> String {
    Sha1::digest(text.as_bytes()).iter().take(5).fold(String::with_capacity(10), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// [`Registration::type_string`].
#[must_use]
pub fn type_string(registration: &Registration) -> String {
    registration.type_string()
}

/// The model key, a JSON text with `storage_key`, `storage_params`, `model_type` and `schema_path`, absent ones left out.
#[must_use]
pub fn model_key(registration: &Registration) -> String {
    let mut model_type = Map::from_iter([("name".to_owned(), Value::from(&*registration.format.name))]);
    model_type.extend(registration.format.version.as_deref().map(|version| ("version".to_owned(), Value::from(version))));
    let storage = registration.storage();
    let mut key = Map::new();
    key.extend(storage.key.as_deref().map(|text| ("storage_key".to_owned(), Value::from(text))));
    if !storage.parameters.is_empty() {
        let parameters = storage.parameters.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>();
        key.insert("storage_params".to_owned(), parameters.into());
    }
    key.insert("model_type".to_owned(), model_type.into());
    key.extend(storage.schema_path.as_deref().map(|text| ("schema_path".to_owned(), Value::from(text))));
    Value::Object(key).to_string()
}

/// Appends `text` as a JSON string, escaped as Go's encoder does by default: also `<`, `>`, `&` and the two line
/// separators of Unicode, and no short forms but for `\n`, `\r`, `\t`.
pub(crate) fn go_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resource::parse;

    fn made(owner: Owner, annotations: Value, spec: Value) -> Registration {
        let annotations = annotations.as_object().cloned().expect("an object");
        registration(&Name::new("m").expect("valid"), owner, &parse(owner, &annotations, &spec).expect("valid"))
    }

    fn by_storage(storage: Value) -> Value {
        json!({ "predictor": { "model": { "modelFormat": { "name": "sklearn" }, "storage": storage } } })
    }

    #[test]
    fn ids_are_those_that_upstream_printed() {
        let pvc = by_storage(json!({ "path": "sklearn/mnist-svm.joblib", "parameters": { "type": "pvc", "name": "my-models-pvc" } }));
        assert_eq!(made(Owner::Isvc, json!({}), pvc).id.as_str(), "m__isvc-3d2daa3370");
        let minio = by_storage(json!({ "key": "localMinIO", "path": "sklearn/mnist-svm.joblib" }));
        assert_eq!(made(Owner::Isvc, json!({}), minio).id.as_str(), "m__isvc-6b2eb0b8bf");
        // The legacy form by URI is the same document once converted.
        let legacy = json!({ "predictor": { "sklearn": { "storageUri": "pvc://my-models-pvc/sklearn/mnist-svm.joblib" } } });
        assert_eq!(made(Owner::Isvc, json!({}), legacy).id.as_str(), "m__isvc-3d2daa3370");
    }

    #[test]
    fn the_hashed_text_has_every_member_in_order_and_leaves_absent_ones_out() {
        let full = json!({ "protocolVersion": "v2", "runtime": { "name": "r" }, "gpu": "required", "path": "a", "schemaPath": "s", "serviceAccountName": "sa",
            "modelType": { "version": "1", "name": "onnx" }, "storage": { "s3": { "bucket": "b", "secretKey": "k" } } });
        let text = parse(Owner::Ksp, &Map::new(), &full).expect("valid").hashed;
        assert_eq!(
            text,
            r#"{"serviceAccountName":"sa","modelType":{"name":"onnx","version":"1"},"path":"a","schemaPath":"s","storage":{"s3":{"secretKey":"k","bucket":"b"}},"gpu":"required","runtime":{"name":"r"},"protocolVersion":"v2"}"#
        );
        let bare = parse(Owner::Ksp, &Map::new(), &json!({ "modelType": { "name": "onnx" } })).expect("valid").hashed;
        assert_eq!(bare, r#"{"modelType":{"name":"onnx"},"path":""}"#);
        let newer = json!({ "modelType": { "name": "onnx" }, "storage": { "key": "k", "schemaPath": "s", "parameters": { "b": "2", "a": "1" }, "path": "<p&q>" } });
        let text = parse(Owner::Ksp, &Map::new(), &newer).expect("valid").hashed;
        assert_eq!(
            text,
            r#"{"modelType":{"name":"onnx"},"path":"","storage":{"path":"\u003cp\u0026q\u003e","schemaPath":"s","parameters":{"a":"1","b":"2"},"key":"k"}}"#
        );
    }

    #[test]
    fn a_declared_size_does_not_change_the_id() {
        let spec = by_storage(json!({ "path": "p" }));
        let (plain, sized) = (made(Owner::Isvc, json!({}), spec.clone()), made(Owner::Isvc, json!({ "berth/model-size": "1Gi" }), spec));
        assert_eq!(plain.id, sized.id);
        assert_ne!(plain, sized);
    }

    #[test]
    fn type_strings_and_model_keys_are_upstreams() {
        let spec = |model: Value| json!({ "predictor": { "model": model } });
        for (model, expected, key) in [
            (
                json!({ "modelFormat": { "name": "onnx" }, "storageUri": "s3://b/p" }),
                "mt:onnx",
                r#"{"model_type":{"name":"onnx"},"storage_params":{"bucket":"b","type":"s3"}}"#,
            ),
            (
                json!({ "modelFormat": { "name": "onnx", "version": "1" }, "storage": { "path": "p", "key": "k" } }),
                "mt:onnx:1",
                r#"{"model_type":{"name":"onnx","version":"1"},"storage_key":"k"}"#,
            ),
            (
                json!({ "modelFormat": { "name": "onnx", "version": "1" }, "protocolVersion": "v2", "storage": { "path": "p", "schemaPath": "s" } }),
                "mt:onnx:1|pv:v2",
                r#"{"model_type":{"name":"onnx","version":"1"},"schema_path":"s"}"#,
            ),
            (
                json!({ "modelFormat": { "name": "onnx", "version": "1" }, "runtime": "mine", "protocolVersion": "v2", "storage": { "path": "p" } }),
                "rt:mine",
                r#"{"model_type":{"name":"onnx","version":"1"}}"#,
            ),
        ] {
            let registration = made(Owner::Isvc, json!({}), spec(model));
            assert_eq!(type_string(&registration), expected);
            let written: Value = serde_json::from_str(&model_key(&registration)).expect("JSON");
            assert_eq!(written, serde_json::from_str::<Value>(key).expect("JSON"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn an_escaped_string_reads_back_as_itself_and_holds_nothing_raw(text in any::<String>()) {
            let mut out = String::new();
            go_json_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text);
            let raw = out.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\u{8}', '\n']);
            prop_assert!(!raw);
        }
    }
}
