//! A model configuration in the text format as the JSON that Triton's load takes.
//!
//! JSON must say what is a list and what is a map, which the text format leaves to the message's definition; the names of
//! those fields of `inference.ModelConfig` are here. Of a field that is not among them a list is made where it is written as
//! one or stands more than once.

use std::borrow::Cow;

use serde_json::{Map, Number, Value as Json};

use super::{Document, Field, Fields as _, Scalar, ScalarKind, Value};

/// Fields with any number of values, wherever they stand.
const LISTS: [&str; 32] = [
    "agents",
    "batch_input",
    "batch_output",
    "bool_false_true",
    "buckets",
    "control",
    "control_input",
    "cpu_execution_accelerator",
    "dim",
    "dims",
    "fp32_false_true",
    "gpu_execution_accelerator",
    "gpus",
    "graph_spec",
    "initial_state",
    "input",
    "instance_group",
    "int32_false_true",
    "metric_control",
    "model_warmup",
    "op_library_filename",
    "output",
    "preferred_batch_size",
    "profile",
    "resources",
    "secondary_devices",
    "shape",
    "source_input",
    "state",
    "step",
    "target_name",
    "versions",
];

/// Fields with a value per key.
const MAPS: [&str; 7] = ["cc_model_filenames", "input_map", "inputs", "metric_tags", "output_map", "parameters", "priority_queue_policy"];

/// The document as JSON text.
pub(crate) fn to_json(document: &Document<'_>) -> String {
    Json::Object(message(document.fields(), "")).to_string()
}

fn message(fields: &[Field], within: &str) -> Map<String, Json> {
    let mut out = Map::new();
    for field in fields {
        let name = field.name.as_str();
        // `input` is a list of tensors, but in a graph's specification a map of shapes.
        let is_map = MAPS.contains(&name) || matches!((within, name), ("graph_spec" | "graph_lower_bound", "input"));
        let is_list = LISTS.contains(&name) || matches!(field.value, Value::List(_));
        if is_map {
            let entries = out.entry(name).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(entries) = entries {
                entries.extend(field.value.messages().map(|entry| pair(entry.fields(), name, within.is_empty())));
            }
        } else if is_list || out.contains_key(name) {
            let values = field.value.each().map(|one| value(one, name));
            match out.get_mut(name) {
                Some(Json::Array(list)) => list.extend(values),
                Some(other) => {
                    let first = other.take();
                    *other = Json::Array(std::iter::once(first).chain(values).collect());
                }
                None => {
                    let list = values.collect();
                    out.insert(name.to_owned(), Json::Array(list));
                }
            }
        } else {
            out.insert(name.to_owned(), value(&field.value, name));
        }
    }
    out
}

/// An entry of a map. What is left out is the type's own nothing: 0 where keys are numbers, an empty message where values are
/// messages.
fn pair(entry: &[Field], within: &str, is_top: bool) -> (String, Json) {
    let of = |name: &str| entry.iter().rev().find(|field| field.name == name).map(|field| &field.value);
    let key = match of("key") {
        Some(Value::Scalar(scalar)) => scalar.text().map_or_else(|| scalar.to_string(), Cow::into_owned),
        _ if within == "priority_queue_policy" => "0".to_owned(),
        _ => String::new(),
    };
    let absent = || match within {
        "input" | "inputs" | "priority_queue_policy" => Json::Object(Map::new()),
        "parameters" if is_top => Json::Object(Map::new()),
        _ => Json::String(String::new()),
    };
    (key, of("value").map_or_else(absent, |of| value(of, within)))
}

fn value(of: &Value, within: &str) -> Json {
    match of {
        Value::Message(inner) => Json::Object(message(inner.fields(), within)),
        Value::List(values) => Json::Array(values.iter().map(|one| value(one, within)).collect()),
        Value::Scalar(one) => scalar(one),
    }
}

fn scalar(one: &Scalar) -> Json {
    match &one.kind {
        ScalarKind::Text(text) => Json::String(String::from_utf8_lossy(text).into_owned()),
        ScalarKind::Number(written) => match one.integer() {
            Some(whole) => Json::Number(whole.into()),
            // What is no number here is the server's to refuse.
            None => number(written).map_or_else(|| Json::String(written.clone()), Json::Number),
        },
        ScalarKind::Word(word) => match word.as_str() {
            "true" | "True" | "t" => Json::Bool(true),
            "false" | "False" | "f" => Json::Bool(false),
            "-inf" | "-infinity" => Json::String("-Infinity".to_owned()),
            "inf" | "infinity" => Json::String("Infinity".to_owned()),
            "nan" => Json::String("NaN".to_owned()),
            other => Json::String(other.to_owned()),
        },
    }
}

fn number(written: &str) -> Option<Number> {
    written.parse::<u64>().ok().map(Number::from).or_else(|| Number::from_f64(written.trim_end_matches(['f', 'F']).parse().ok()?))
}
