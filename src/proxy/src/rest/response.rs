//! An inference answer to JSON, followed by those outputs that were asked for in binary form.

use std::collections::HashMap;
use std::fmt::Write as _;

use berth_proto::inference::infer_parameter::ParameterChoice;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::{InferParameter, ModelInferResponse};
use bytes::Bytes;

use super::request::Wanted;
use super::tensor::{self, Datatype, Text, quoted};
use crate::codes::{Fault, Quoted};

/// An answer as it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) json: String,
    /// What follows the JSON; `None` when all outputs are in it.
    pub(super) binary: Option<Vec<Bytes>>,
}

/// Writes `answer`: compact, members in the protocol's order, empty ones left out, `data` always flat.
///
/// # Errors
/// The runtime's answer does not fit together: a bug there.
pub(super) fn write(answer: ModelInferResponse, wanted: &Wanted) -> Result<Written, Fault> {
    let ModelInferResponse { model_name, model_version, id, parameters, outputs, raw_output_contents } = answer;
    if outputs.len() != raw_output_contents.len() {
        return Err(Fault::Internal(format!("the runtime answered {} outputs with {} contents", outputs.len(), raw_output_contents.len())));
    }
    let mut json = String::with_capacity(256 + 2 * raw_output_contents.iter().map(Bytes::len).sum::<usize>());
    json.push_str("{\"model_name\":");
    quoted(&mut json, &model_name);
    for (name, value) in [("model_version", &model_version), ("id", &id)] {
        if !value.is_empty() {
            let _ = write!(json, ",\"{name}\":");
            quoted(&mut json, value);
        }
    }
    write_parameters(&mut json, &parameters, &[]);
    json.push_str(",\"outputs\":");
    let mut binary = Vec::new();
    let mut separator = '[';
    for (output, raw) in outputs.into_iter().zip(raw_output_contents) {
        json.push(separator);
        separator = ',';
        let is_binary = wanted.is_binary(&output.name);
        write_output(&mut json, &output, &raw, is_binary)
            .map_err(|fault| Fault::Internal(format!("the runtime answered output {} wrongly: {fault}", Quoted::new(&output.name))))?;
        if is_binary {
            binary.push(raw);
        }
    }
    json.push_str(if separator == '[' { "[]}" } else { "]}" });
    Ok(Written { json, binary: (!binary.is_empty()).then_some(binary) })
}

fn write_output(json: &mut String, output: &InferOutputTensor, raw: &[u8], is_binary: bool) -> Result<(), String> {
    let datatype = Datatype::named(&output.datatype).ok_or_else(|| format!("unknown datatype {}", Quoted::new(&output.datatype)))?;
    let count = tensor::elements(&output.shape)?;
    json.push_str("{\"name\":");
    quoted(json, &output.name);
    let _ = write!(json, ",\"datatype\":\"{}\",\"shape\":[", datatype.as_str());
    for (at, dim) in output.shape.iter().enumerate() {
        let _ = write!(json, "{}{dim}", if at == 0 { "" } else { "," });
    }
    json.push(']');
    if is_binary {
        write_parameters(
            json,
            &output.parameters,
            &[("binary_data_size", ParameterChoice::Int64Param(i64::try_from(raw.len()).unwrap_or(i64::MAX)))],
        );
        json.push('}');
        return Ok(());
    }
    // One element that is no text turns the whole tensor to base64, and says so: a client must not have to guess.
    let text = match datatype {
        Datatype::Bytes if tensor::strings(raw, count)?.iter().any(|element| std::str::from_utf8(element).is_err()) => Text::Base64,
        _ => Text::Plain,
    };
    let extra = match text {
        Text::Base64 => &[("content_type", ParameterChoice::StringParam("base64".to_owned()))][..],
        Text::Plain => &[],
    };
    write_parameters(json, &output.parameters, extra);
    json.push_str(",\"data\":");
    tensor::write(json, datatype, count, text, raw)?;
    json.push('}');
    Ok(())
}

/// Sorted by name; `extra` comes first and replaces what has the same name.
fn write_parameters(json: &mut String, parameters: &HashMap<String, InferParameter>, extra: &[(&str, ParameterChoice)]) {
    let given = parameters.iter().filter_map(|(name, value)| Some((name.as_str(), value.parameter_choice.as_ref()?)));
    let mut all: Vec<(&str, &ParameterChoice)> = given.filter(|(name, _)| extra.iter().all(|(taken, _)| taken != name)).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    if all.is_empty() && extra.is_empty() {
        return;
    }
    json.push_str(",\"parameters\":");
    let mut separator = '{';
    for (name, value) in extra.iter().map(|(name, value)| (*name, value)).chain(all) {
        json.push(separator);
        separator = ',';
        quoted(json, name);
        json.push(':');
        let _ = match value {
            ParameterChoice::BoolParam(value) => write!(json, "{value}"),
            ParameterChoice::Int64Param(value) => write!(json, "{value}"),
            ParameterChoice::Uint64Param(value) => write!(json, "{value}"),
            ParameterChoice::DoubleParam(value) if value.is_finite() => write!(json, "{value:?}"),
            ParameterChoice::DoubleParam(value) => write!(json, "\"{value}\""),
            ParameterChoice::StringParam(value) => {
                quoted(json, value);
                Ok(())
            }
        };
    }
    json.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, datatype: &str, shape: &[i64]) -> InferOutputTensor {
        InferOutputTensor { name: name.to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), ..InferOutputTensor::default() }
    }

    fn answer(outputs: Vec<(InferOutputTensor, &[u8])>) -> ModelInferResponse {
        let (outputs, raw): (Vec<_>, Vec<_>) = outputs.into_iter().map(|(output, raw)| (output, Bytes::copy_from_slice(raw))).unzip();
        ModelInferResponse { model_name: "m__isvc-1".to_owned(), outputs, raw_output_contents: raw, ..ModelInferResponse::default() }
    }

    fn parameter(value: ParameterChoice) -> InferParameter {
        InferParameter { parameter_choice: Some(value) }
    }

    #[test]
    fn answers_are_compact_in_the_order_of_the_protocol_with_flat_data() {
        let mut full = answer(vec![(output("y", "INT64", &[1, 1]), &8i64.to_le_bytes()), (output("p", "FP32", &[2]), &[0; 8])]);
        full.model_version = "1".to_owned();
        full.id = "r\"1".to_owned();
        full.parameters = [("b", ParameterChoice::BoolParam(true)), ("a", ParameterChoice::DoubleParam(1.0))]
            .map(|(name, value)| (name.to_owned(), parameter(value)))
            .into();
        assert_eq!(
            write(full, &Wanted::default()).unwrap().json,
            concat!(
                r#"{"model_name":"m__isvc-1","model_version":"1","id":"r\"1","parameters":{"a":1.0,"b":true},"outputs":["#,
                r#"{"name":"y","datatype":"INT64","shape":[1,1],"data":[8]},{"name":"p","datatype":"FP32","shape":[2],"data":[0,0]}]}"#
            )
        );
        assert_eq!(write(answer(vec![]), &Wanted::default()).unwrap().json, r#"{"model_name":"m__isvc-1","outputs":[]}"#);
    }

    #[test]
    fn bytes_are_strings_when_all_of_them_are_text_and_base64_otherwise() {
        let text = answer(vec![(output("s", "BYTES", &[2]), b"\x03\0\0\0h\xc3\xa9\x01\0\0\0\"")]);
        assert!(write(text, &Wanted::default()).unwrap().json.contains(r#""shape":[2],"data":["hé","\""]"#));
        let binary = answer(vec![(output("s", "BYTES", &[2]), b"\x01\0\0\0a\x01\0\0\0\xff")]);
        let json = write(binary, &Wanted::default()).unwrap().json;
        assert!(json.contains(r#""parameters":{"content_type":"base64"},"data":["YQ==","/w=="]"#), "{json}");
    }

    #[test]
    fn outputs_asked_for_in_binary_follow_the_json_in_order() {
        let three =
            || answer(vec![(output("a", "UINT8", &[2]), &[1, 2]), (output("b", "UINT8", &[1]), &[3]), (output("c", "BYTES", &[1]), b"\x01\0\0\0z")]);
        let all = write(three(), &Wanted { binary_by_default: true, ..Wanted::default() }).unwrap();
        assert_eq!(all.binary.unwrap(), [&[1u8, 2][..], &[3], b"\x01\0\0\0z"]);
        assert!(all.json.contains(r#"{"name":"c","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}"#), "{}", all.json);
        let wanted = Wanted { binary_by_default: true, binary: HashMap::from([("b".to_owned(), false)]) };
        let some = write(three(), &wanted).unwrap();
        assert_eq!(some.binary.unwrap().len(), 2);
        assert!(some.json.contains(r#"{"name":"b","datatype":"UINT8","shape":[1],"data":[3]}"#), "{}", some.json);
        assert_eq!(write(three(), &Wanted::default()).unwrap().binary, None);
    }

    #[test]
    fn answers_that_do_not_fit_together_are_internal_faults() {
        let mut lacking = answer(vec![(output("a", "UINT8", &[2]), &[1, 2])]);
        lacking.raw_output_contents.clear();
        for (case, text) in [
            (lacking, "1 outputs with 0 contents"),
            (answer(vec![(output("a", "UINT8", &[3]), &[1, 2])]), "output \"a\" wrongly: 2 bytes for 3 elements of UINT8"),
            (answer(vec![(output("a", "FP128", &[1]), &[1])]), "unknown datatype \"FP128\""),
            (answer(vec![(output("a", "UINT8", &[-1]), &[1])]), "must not be negative"),
        ] {
            match write(case, &Wanted::default()) {
                Err(Fault::Internal(message)) => assert!(message.contains(text), "{message}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
