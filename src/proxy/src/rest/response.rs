//! An inference answer to JSON, followed by those outputs that were asked for in binary form.

use std::collections::HashMap;
use std::io::Write as _;

use berth_proto::inference::infer_parameter::ParameterChoice;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::{InferParameter, ModelInferResponse};
use bytes::Bytes;

use super::request::Wanted;
use super::tensor::{self, Datatype, Text, quoted};
use super::typed;
use crate::codes::{Fault, Quoted};

/// An answer as it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) json: Vec<u8>,
    /// What follows the JSON; `None` when all outputs are in it.
    pub(super) binary: Option<Vec<Bytes>>,
}

/// Writes `answer`: compact, members in the protocol's order, empty ones left out, `data` always flat.
///
/// # Errors
/// The runtime's answer does not fit together: a bug there.
pub(super) fn write(answer: ModelInferResponse, wanted: &Wanted) -> Result<Written, Fault> {
    let ModelInferResponse { model_name, model_version, id, parameters, outputs, mut raw_output_contents } = answer;
    if raw_output_contents.is_empty() {
        // Some runtimes answer in typed fields.
        raw_output_contents = outputs.iter().filter_map(|output| output.contents.as_ref().map(|typed| typed::raw(&output.datatype, typed))).collect();
    }
    if outputs.len() != raw_output_contents.len() {
        return Err(Fault::Internal(format!("the runtime answered {} outputs with {} contents", outputs.len(), raw_output_contents.len())));
    }
    let mut json = Vec::with_capacity(256 + 2 * raw_output_contents.iter().map(Bytes::len).sum::<usize>());
    json.extend_from_slice(b"{\"model_name\":");
    quoted(&mut json, &model_name);
    for (name, value) in [("model_version", &model_version), ("id", &id)] {
        if !value.is_empty() {
            let _ = write!(json, ",\"{name}\":");
            quoted(&mut json, value);
        }
    }
    write_parameters(&mut json, &parameters, &[]);
    json.extend_from_slice(b",\"outputs\":");
    let mut binary = Vec::new();
    let mut separator = b'[';
    for (output, raw) in outputs.into_iter().zip(raw_output_contents) {
        json.push(separator);
        separator = b',';
        let is_binary = wanted.is_binary(&output.name);
        write_output(&mut json, &output, &raw, is_binary)
            .map_err(|fault| Fault::Internal(format!("the runtime answered output {} wrongly: {fault}", Quoted::new(&output.name))))?;
        if is_binary {
            binary.push(raw);
        }
    }
    json.extend_from_slice(if separator == b'[' { "[]}" } else { "]}" }.as_bytes());
    Ok(Written { json, binary: (!binary.is_empty()).then_some(binary) })
}

fn write_output(json: &mut Vec<u8>, output: &InferOutputTensor, raw: &[u8], is_binary: bool) -> Result<(), String> {
    let datatype = Datatype::named(&output.datatype).ok_or_else(|| format!("unknown datatype {}", Quoted::new(&output.datatype)))?;
    let count = tensor::elements(&output.shape)?;
    json.extend_from_slice(b"{\"name\":");
    quoted(json, &output.name);
    let _ = write!(json, ",\"datatype\":\"{}\",\"shape\":[", datatype.as_str());
    for (at, dim) in output.shape.iter().enumerate() {
        let _ = write!(json, "{}{dim}", if at == 0 { "" } else { "," });
    }
    json.push(b']');
    if is_binary {
        write_parameters(
            json,
            &output.parameters,
            &[("binary_data_size", ParameterChoice::Int64Param(i64::try_from(raw.len()).unwrap_or(i64::MAX)))],
        );
        json.push(b'}');
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
    json.extend_from_slice(b",\"data\":");
    tensor::write(json, datatype, count, text, raw)?;
    json.push(b'}');
    Ok(())
}

/// Sorted by name; `extra` comes first and replaces what has the same name.
fn write_parameters(json: &mut Vec<u8>, parameters: &HashMap<String, InferParameter>, extra: &[(&str, ParameterChoice)]) {
    let given = parameters.iter().filter_map(|(name, value)| Some((name.as_str(), value.parameter_choice.as_ref()?)));
    let mut all: Vec<(&str, &ParameterChoice)> = given.filter(|(name, _)| extra.iter().all(|(taken, _)| taken != name)).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    if all.is_empty() && extra.is_empty() {
        return;
    }
    json.extend_from_slice(b",\"parameters\":");
    let mut separator = b'{';
    for (name, value) in extra.iter().map(|(name, value)| (*name, value)).chain(all) {
        json.push(separator);
        separator = b',';
        quoted(json, name);
        json.push(b':');
        let _ = match value {
            ParameterChoice::BoolParam(value) => write!(json, "{value}"),
            ParameterChoice::Int64Param(value) => write!(json, "{value}"),
            ParameterChoice::Uint64Param(value) => write!(json, "{value}"),
            ParameterChoice::DoubleParam(value) if value.is_finite() => write!(json, "{value:?}"),
            ParameterChoice::DoubleParam(value) if value.is_nan() => write!(json, "\"NaN\""),
            ParameterChoice::DoubleParam(value) => write!(json, "\"{}Infinity\"", if *value < 0.0 { "-" } else { "" }),
            ParameterChoice::StringParam(value) => {
                quoted(json, value);
                Ok(())
            }
        };
    }
    json.push(b'}');
}

#[cfg(test)]
mod tests {
    use berth_proto::inference::InferTensorContents;

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

    fn json(answer: ModelInferResponse, wanted: &Wanted) -> String {
        String::from_utf8(write(answer, wanted).unwrap().json).unwrap()
    }

    #[test]
    fn typed_contents_are_written_as_raw_ones_are() {
        let mut typed = answer(vec![(output("y", "FP32", &[2]), &[])]);
        typed.raw_output_contents.clear();
        typed.outputs[0].contents = Some(InferTensorContents { fp32_contents: vec![0.5, f32::NAN], ..InferTensorContents::default() });
        assert!(json(typed.clone(), &Wanted::default()).ends_with(r#""shape":[2],"data":[0.5,"NaN"]}]}"#));
        let binary = write(typed, &Wanted { binary_by_default: true, ..Wanted::default() }).unwrap().binary.unwrap();
        assert_eq!(binary, [[0.5f32, f32::NAN].map(f32::to_le_bytes).concat()]);
    }

    #[test]
    fn answers_are_compact_in_the_order_of_the_protocol_with_flat_data() {
        let mut full = answer(vec![(output("y", "INT64", &[1, 1]), &8i64.to_le_bytes()), (output("p", "FP32", &[2]), &[0; 8])]);
        full.model_version = "1".to_owned();
        full.id = "r\"1".to_owned();
        full.parameters = [
            ("b", ParameterChoice::BoolParam(true)),
            ("a", ParameterChoice::DoubleParam(1.0)),
            ("c", ParameterChoice::Int64Param(-3)),
            ("d", ParameterChoice::StringParam("\"".to_owned())),
            ("e", ParameterChoice::DoubleParam(f64::NEG_INFINITY)),
        ]
        .map(|(name, value)| (name.to_owned(), parameter(value)))
        .into();
        assert_eq!(
            json(full, &Wanted::default()),
            concat!(
                r#"{"model_name":"m__isvc-1","model_version":"1","id":"r\"1","parameters":{"a":1.0,"b":true,"c":-3,"d":"\"","e":"-Infinity"},"outputs":["#,
                r#"{"name":"y","datatype":"INT64","shape":[1,1],"data":[8]},{"name":"p","datatype":"FP32","shape":[2],"data":[0,0]}]}"#
            )
        );
        assert_eq!(json(answer(vec![]), &Wanted::default()), r#"{"model_name":"m__isvc-1","outputs":[]}"#);
    }

    #[test]
    fn bytes_are_strings_when_all_of_them_are_text_and_base64_otherwise() {
        let text = answer(vec![(output("s", "BYTES", &[2]), b"\x03\0\0\0h\xc3\xa9\x01\0\0\0\"")]);
        assert!(json(text, &Wanted::default()).contains(r#""shape":[2],"data":["hé","\""]"#));
        let binary = answer(vec![(output("s", "BYTES", &[2]), b"\x01\0\0\0a\x01\0\0\0\xff")]);
        let json = json(binary, &Wanted::default());
        assert!(json.contains(r#""parameters":{"content_type":"base64"},"data":["YQ==","/w=="]"#), "{json}");
    }

    #[test]
    fn outputs_asked_for_in_binary_follow_the_json_in_order() {
        let three =
            || answer(vec![(output("a", "UINT8", &[2]), &[1, 2]), (output("b", "UINT8", &[1]), &[3]), (output("c", "BYTES", &[1]), b"\x01\0\0\0z")]);
        let text = |written: &Written| String::from_utf8(written.json.clone()).unwrap();
        let all = write(three(), &Wanted { binary_by_default: true, ..Wanted::default() }).unwrap();
        assert_eq!(all.binary.clone().unwrap(), [&[1u8, 2][..], &[3], b"\x01\0\0\0z"]);
        assert!(text(&all).contains(r#"{"name":"c","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}"#), "{}", text(&all));
        let wanted = Wanted { binary_by_default: true, binary: HashMap::from([("b".to_owned(), false)]) };
        let some = write(three(), &wanted).unwrap();
        assert_eq!(some.binary.clone().unwrap().len(), 2);
        assert!(text(&some).contains(r#"{"name":"b","datatype":"UINT8","shape":[1],"data":[3]}"#), "{}", text(&some));
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
