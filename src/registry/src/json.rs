//! JSON values that are kept by the ten thousand and seldom looked into.
//!
//! A parsed value takes about ten times the bytes of its text, and the texts of resources differ in little but names,
//! paths and times. So a value is kept as compressed text, against a dictionary of what resources usually say: the
//! status of a loaded model takes about 90 bytes instead of 8 KiB. Reading it costs microseconds.
//!
//! The dictionary lives in this program only: what is written to disk or sent is plain JSON.

use std::fmt;
use std::sync::Arc;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Texts of resources in the form in which they are kept: no blanks, members in the order of their names.
const DICTIONARY: &str = concat!(
    r#"{"serving.kserve.io/deploymentMode":"ModelMesh","serving.kserve.io/schemaPath":"","serving.kserve.io/secretKey":"","#,
    r#"{"predictor":{"model":{"modelFormat":{"name":"onnx","version":"1"},"runtime":"","storage":{"key":"","parameters":{"bucket":""},"path":"models/"}}}}"#,
    r#"{"predictor":{"model":{"modelFormat":{"name":"onnx"},"storage":{"key":"","parameters":{"bucket":""},"path":""}}}}"#,
    r#"{"predictor":{"model":{"modelFormat":{"name":"onnx"},"storage":{"key":"","path":""}}}}"#,
    r#"{"predictor":{"model":{"modelFormat":{"name":"sklearn"},"storageUri":"s3://","protocolVersion":"v2"}}}"#,
    r#"{"modelType":{"name":"tensorflow"},"path":"","storage":{"s3":{"bucket":"","secretKey":""}}}"#,
    r#"{"activeModelState":"Standby","available":false,"failedCopies":1,"grpcEndpoint":"grpc://","httpEndpoint":"http://","#,
    r#""lastFailureInfo":{"location":"","message":" not found: check the path","modelId":"__ksp-","reason":"ModelLoadFailed","time":"2026-01-01T00:00:00Z"},"#,
    r#""observedGeneration":1,"targetModelState":"","totalCopies":0,"transitionStatus":"UpToDate"}"#,
    r#"{"components":{"predictor":{"grpcUrl":"grpc://127.0.0.1:8033","restUrl":"http://127.0.0.1:8008","url":"grpc://127.0.0.1:8033"}},"#,
    r#""conditions":[{"lastTransitionTime":"2026-01-01T00:00:00Z","status":"False","type":"PredictorReady"},"#,
    r#"{"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"PredictorReady"},"#,
    r#"{"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"Ready"}],"#,
    r#""modelStatus":{"copies":{"failedCopies":0,"totalCopies":1},"lastFailureInfo":{"location":"","message":"","modelId":"__isvc-","modelRevisionName":"","#,
    r#""reason":"NoSupportingRuntime","time":""},"modelCopies":{"failedCopies":0,"totalCopies":1},"#,
    r#""states":{"activeModelState":"FailedToLoad","targetModelState":"Loading"},"transitionStatus":"BlockedByFailedLoad"},"#,
    r#""modelStatus":{"copies":{"failedCopies":0},"modelCopies":{"failedCopies":0},"states":{"activeModelState":"Loaded"},"transitionStatus":"UpToDate"},"#,
    r#""observedGeneration":1,"url":"grpc://127.0.0.1:8033"}"#,
);

/// A JSON value, kept small. Equal values are equal here, whatever the order of their members was.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(
    /// Compressed text; `None` for an object without members, as most labels are.
    Option<Arc<[u8]>>,
);

impl Json {
    /// An object without members.
    pub const EMPTY: Json = Json(None);

    fn of_text(text: &str) -> Self {
        match text {
            "{}" => Json::EMPTY,
            _ => Json(Some(compress_prepend_size_with_dict(text.as_bytes(), DICTIONARY.as_bytes()).into())),
        }
    }

    /// The value as text, members in the order of their names.
    #[must_use]
    pub fn text(&self) -> String {
        let Some(packed) = &self.0 else { return "{}".to_owned() };
        let bytes = decompress_size_prepended_with_dict(packed, DICTIONARY.as_bytes()).expect("it was compressed here, with this dictionary");
        String::from_utf8(bytes).expect("it was made from a text")
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.text()).expect("it was printed as JSON")
    }

    /// The members, where the value is an object; none otherwise.
    #[must_use]
    pub fn members(&self) -> Map<String, Value> {
        match (&self.0, self.0.as_ref().map(|_| self.value())) {
            (Some(_), Some(Value::Object(members))) => members,
            (_, _) => Map::new(),
        }
    }

    /// True for an object without members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes that it takes in memory beside itself, those of the allocator left out.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.0.as_ref().map_or(0, |packed| 2 * size_of::<usize>() + packed.len())
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Json::of_text(&value.to_string())
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Json::from(&value)
    }
}

impl From<Map<String, Value>> for Json {
    fn from(members: Map<String, Value>) -> Self {
        Json::from(&Value::Object(members))
    }
}

impl PartialEq<Value> for Json {
    fn eq(&self, other: &Value) -> bool {
        let other = other.to_string();
        self.text() == other
    }
}

impl Default for Json {
    fn default() -> Self {
        Json::EMPTY
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.text()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Text that was written by the above: read and printed once more, a number could change its last digit.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Json::of_text(text.get()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::json;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()).prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "(Loaded|predictor|serving.kserve.io/){1,9}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z/.]{0,9}", inner, 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn every_value_comes_back_as_it_was_and_equals_only_itself(value in values(), other in values()) {
            let kept = Json::from(&value);
            prop_assert_eq!(&kept.value(), &value);
            prop_assert_eq!(kept.text(), value.to_string());
            prop_assert_eq!(kept == other, value == other);
            let sent = serde_json::to_string(&kept).unwrap();
            prop_assert_eq!(&sent, &value.to_string());
            prop_assert_eq!(serde_json::from_str::<Json>(&sent).unwrap(), kept);
        }
    }

    #[test]
    fn what_resources_usually_say_takes_a_fifth_of_its_text_and_a_bit() {
        for value in [
            json!({ "serving.kserve.io/deploymentMode": "ModelMesh" }),
            json!({ "predictor": { "model": { "modelFormat": { "name": "onnx" }, "storage": { "key": "quickstart", "path": "iris" } } } }),
            json!({
                "observedGeneration": 1, "url": "grpc://127.0.0.1:8033",
                "components": { "predictor": { "url": "grpc://127.0.0.1:8033", "grpcUrl": "grpc://127.0.0.1:8033", "restUrl": "http://127.0.0.1:8008" } },
                "conditions": [
                    { "type": "PredictorReady", "status": "True", "lastTransitionTime": "2027-03-14T07:43:20Z" },
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2027-03-14T07:43:20Z" }
                ],
                "modelStatus": {
                    "transitionStatus": "UpToDate", "states": { "activeModelState": "Standby" },
                    "copies": { "failedCopies": 0 }, "modelCopies": { "failedCopies": 0 }
                }
            }),
        ] {
            let (kept, text) = (Json::from(&value), value.to_string());
            let limit = text.len() / 5 + 48;
            assert!(kept.weight() <= limit, "{} bytes for {} of {text}", kept.weight(), text.len());
        }
        assert_eq!(Json::from(json!({})).weight(), 0);
    }
}
