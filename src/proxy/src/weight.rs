//! What a request takes in memory once it is decoded, known before it is.
//!
//! Two bytes of protobuf can become a structure of 300, so the size of a message does not bound what decoding it costs.
//! [`of_infer_request`] walks over the message without building anything. It counts what the decoded form holds besides
//! slices of the message; vectors that grow while they are filled may have as much again for a moment.

use berth_proto::inference::InferParameter;
use berth_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use bytes::Bytes;

/// The most inputs, and the most outputs, that a request may name.
pub(crate) const MOST_TENSORS: usize = 1024;

/// A parameter, beside its texts: a place in a hash map, which may be half empty.
pub(crate) const PARAMETER: u64 = 2 * (size_of::<(String, InferParameter)>() as u64 + 1);
/// An input, beside its texts and contents.
pub(crate) const INPUT: u64 = size_of::<InferInputTensor>() as u64;
/// An output that is asked for, beside its texts.
pub(crate) const OUTPUT: u64 = size_of::<InferRequestedOutputTensor>() as u64;
/// A dimension of a shape.
pub(crate) const DIMENSION: u64 = 8;
/// A slice of the message.
const SLICE: u64 = size_of::<Bytes>() as u64;

/// Bytes that an encoded `ModelInferRequest` takes when decoded, besides itself.
///
/// # Errors
/// More than [`MOST_TENSORS`] of something, or not protobuf.
pub(crate) fn of_infer_request(message: &[u8]) -> Result<u64, String> {
    let mut sum = 0;
    let (mut inputs, mut outputs, mut raw) = (0, 0, 0);
    let more = |count: &mut usize, what: &str| {
        *count += 1;
        if *count > MOST_TENSORS { Err(format!("the request has more than {MOST_TENSORS} {what}, that is the most")) } else { Ok(()) }
    };
    for field in Fields(message) {
        sum += match field? {
            (4, Value::Bytes(entry)) => PARAMETER + size(entry),
            (5, Value::Bytes(input)) => {
                more(&mut inputs, "inputs")?;
                INPUT + of_input(input)?
            }
            (6, Value::Bytes(output)) => {
                more(&mut outputs, "outputs")?;
                OUTPUT + of_output(output)?
            }
            (7, Value::Bytes(_)) => {
                more(&mut raw, "raw_input_contents")?;
                SLICE
            }
            (1..=3, Value::Bytes(text)) => size(text),
            _ => 0,
        };
    }
    Ok(sum)
}

fn of_input(input: &[u8]) -> Result<u64, String> {
    let mut sum = 0;
    for field in Fields(input) {
        sum += match field? {
            (1 | 2, Value::Bytes(text)) => size(text),
            (3, Value::Bytes(packed)) => DIMENSION * varints(packed),
            (3, Value::Scalar) => DIMENSION,
            (4, Value::Bytes(entry)) => PARAMETER + size(entry),
            (5, Value::Bytes(contents)) => of_contents(contents)?,
            _ => 0,
        };
    }
    Ok(sum)
}

fn of_output(output: &[u8]) -> Result<u64, String> {
    let mut sum = 0;
    for field in Fields(output) {
        sum += match field? {
            (1, Value::Bytes(text)) => size(text),
            (2, Value::Bytes(entry)) => PARAMETER + size(entry),
            _ => 0,
        };
    }
    Ok(sum)
}

/// Typed contents: packed, or one by one.
fn of_contents(contents: &[u8]) -> Result<u64, String> {
    let mut sum = 0;
    for field in Fields(contents) {
        sum += match field? {
            (1, Value::Bytes(packed)) => varints(packed),
            (2 | 4, Value::Bytes(packed)) => 4 * varints(packed),
            (3 | 5, Value::Bytes(packed)) => 8 * varints(packed),
            (6 | 7, Value::Bytes(packed)) => size(packed),
            (8, Value::Bytes(_)) => SLICE,
            (1, Value::Scalar) => 1,
            (2 | 4 | 6, Value::Scalar) => 4,
            (3 | 5 | 7, Value::Scalar) => 8,
            _ => 0,
        };
    }
    Ok(sum)
}

fn size(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

/// How many varints stand in `packed`: each ends with the one byte whose top bit is clear.
fn varints(packed: &[u8]) -> u64 {
    packed.iter().filter(|byte| **byte < 0x80).count() as u64
}

/// The fields of a message, in order.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    /// A number of any width.
    Scalar,
    /// A text, a message, or packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => {
                self.varint()?;
                Value::Scalar
            }
            1 => {
                self.take(8)?;
                Value::Scalar
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Scalar
            }
            // Groups are gone from protobuf and were never part of this protocol.
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for at in 0..10 {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f).checked_shl(7 * at)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "the message cannot be read: it is no protobuf message, or it is cut short".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::inference::infer_parameter::ParameterChoice;
    use berth_proto::inference::{InferTensorContents, ModelInferRequest};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use prost::Message as _;

    use super::*;

    fn parameter(text: &str) -> (String, InferParameter) {
        (text.to_owned(), InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())) })
    }

    #[test]
    fn each_part_of_a_request_counts_as_what_it_becomes() {
        let input = |contents: InferTensorContents| ModelInferRequest {
            inputs: vec![InferInputTensor { contents: Some(contents), ..InferInputTensor::default() }],
            ..ModelInferRequest::default()
        };
        let none = InferTensorContents::default;
        for (case, request, expected) in [
            ("nothing", ModelInferRequest::default(), 0),
            ("a name", ModelInferRequest { model_name: "digits".into(), ..Default::default() }, 6),
            ("raw contents", ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![0; 999]); 3], ..Default::default() }, 3 * SLICE),
            ("outputs", ModelInferRequest { outputs: vec![InferRequestedOutputTensor::default(); 7], ..Default::default() }, 7 * OUTPUT),
            ("empty inputs", ModelInferRequest { inputs: vec![InferInputTensor::default(); 7], ..Default::default() }, 7 * INPUT),
            ("bools", input(InferTensorContents { bool_contents: vec![true; 9], ..none() }), INPUT + 9),
            ("ints", input(InferTensorContents { int_contents: vec![-1; 9], ..none() }), INPUT + 36),
            ("uints", input(InferTensorContents { uint_contents: vec![300; 9], ..none() }), INPUT + 36),
            ("long ints", input(InferTensorContents { int64_contents: vec![1, i64::MIN], ..none() }), INPUT + 16),
            ("long uints", input(InferTensorContents { uint64_contents: vec![1, u64::MAX], ..none() }), INPUT + 16),
            ("floats", input(InferTensorContents { fp32_contents: vec![1.5; 9], ..none() }), INPUT + 36),
            ("doubles", input(InferTensorContents { fp64_contents: vec![1.5; 9], ..none() }), INPUT + 72),
            ("strings", input(InferTensorContents { bytes_contents: vec![Bytes::new(); 9], ..none() }), INPUT + 9 * SLICE),
        ] {
            assert_eq!(of_infer_request(&request.encode_to_vec()), Ok(expected), "{case}");
        }
        let shaped = InferInputTensor { name: "x".into(), datatype: "FP32".into(), shape: vec![-1, 3, 224], ..InferInputTensor::default() };
        let request = ModelInferRequest { inputs: vec![shaped], ..ModelInferRequest::default() };
        assert_eq!(of_infer_request(&request.encode_to_vec()), Ok(INPUT + 5 + 3 * DIMENSION));
        let request = ModelInferRequest { parameters: [parameter("a")].into(), ..ModelInferRequest::default() };
        let weight = of_infer_request(&request.encode_to_vec()).unwrap();
        assert!((PARAMETER + 2..PARAMETER + 20).contains(&weight), "{weight}");
    }

    #[test]
    fn numbers_that_are_not_packed_count_too() {
        // Field 5 of the request: field 5 of the input: int64 7, twice, and a double.
        let contents = [0x18, 7, 0x18, 7, 0x39, 0, 0, 0, 0, 0, 0, 0, 0];
        let input = [&[0x2a, 13][..], &contents, &[0x18, 1]].concat();
        let request = [&[0x2a, u8::try_from(input.len()).unwrap()][..], &input].concat();
        let decoded = ModelInferRequest::decode(&request[..]).unwrap();
        assert_eq!(decoded.inputs[0].contents.as_ref().unwrap().int64_contents, [7, 7]);
        assert_eq!(of_infer_request(&request), Ok(INPUT + 24 + DIMENSION));
    }

    #[test]
    fn two_bytes_that_become_a_structure_are_refused_in_great_numbers() {
        for (tag, what) in [(0x2a, "inputs"), (0x32, "outputs"), (0x3a, "raw_input_contents")] {
            assert!(of_infer_request(&[tag, 0].repeat(MOST_TENSORS)).is_ok(), "{what}");
            let fault = of_infer_request(&[tag, 0].repeat(MOST_TENSORS + 1)).unwrap_err();
            assert_eq!(fault, format!("the request has more than 1024 {what}, that is the most"));
        }
        let parameters = [0x22, 0].repeat(1000);
        assert_eq!(of_infer_request(&parameters), Ok(1000 * PARAMETER), "these have no number, they have a weight");
    }

    #[test]
    fn what_is_no_protobuf_is_told_before_anything_is_built() {
        for (case, bytes) in [
            ("a tag only", &[0x2a][..]),
            ("a length that leads outside", &[0x2a, 9, 0]),
            ("a group", &[0x2b, 0x2c]),
            ("a varint without an end", &[0x80; 11]),
            ("a short double", &[0x09, 0, 0]),
            ("an input that is broken inside", &[0x2a, 1, 0x1a]),
        ] {
            let fault = of_infer_request(bytes).expect_err(case);
            assert!(fault.starts_with("the message cannot be read"), "{case}: {fault}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]
        #[test]
        fn whatever_decodes_weighs_at_least_its_structures(bytes in proptest::collection::vec(prop_oneof![
            Just(0x2au8), Just(0x32), Just(0x3a), Just(0x22), Just(0x1a), Just(0x18), Just(0x10), 0..12u8, any::<u8>(),
        ], 0..60)) {
            let Ok(request) = ModelInferRequest::decode(&bytes[..]) else { return Ok(()) };
            // Only groups are refused here and skipped there.
            let Ok(weight) = of_infer_request(&bytes) else { return Ok(()) };
            let shapes: usize = request.inputs.iter().map(|input| input.shape.len()).sum();
            let least = request.inputs.len() as u64 * INPUT + shapes as u64 * DIMENSION
                + request.outputs.len() as u64 * OUTPUT
                + request.raw_input_contents.len() as u64 * SLICE
                + request.parameters.len() as u64 * PARAMETER;
            prop_assert!(weight >= least, "{weight} of {least}: {request:?}");
        }
    }
}
