//! Tensors of the V2 protocol: from a request to checked little-endian bytes, and the checks that no engine should repeat.
//!
//! Whatever form the client chose (typed or raw contents), behind this module a tensor is its datatype, its shape and
//! its raw bytes, row-major, in the form in which answers leave too. Raw contents are shared, not copied. Every fault
//! names the tensor, what was expected and what was given.
//!
//! A request may have a million inputs, or one of a million dimensions: names and counts are refused before anything is
//! made of them, at a cost that the model decides and not the request, and no message is long.

use std::collections::{HashMap, HashSet};
use std::fmt;

use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{InferTensorContents, ModelInferRequest};
use bytes::{BufMut, Bytes, BytesMut};

use crate::InferError;

/// A datatype of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Datatype {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    pub(crate) const ALL: [Datatype; 14] = [
        Datatype::Bool,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Uint8,
        Datatype::Uint16,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Fp16,
        Datatype::Bf16,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bytes,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Fp16 => "FP16",
            Datatype::Bf16 => "BF16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == text)
    }

    /// Bytes of one element; `None` for BYTES, whose elements say their own length.
    pub(crate) const fn width(self) -> Option<usize> {
        match self {
            Datatype::Bool | Datatype::Int8 | Datatype::Uint8 => Some(1),
            Datatype::Int16 | Datatype::Uint16 | Datatype::Fp16 | Datatype::Bf16 => Some(2),
            Datatype::Int32 | Datatype::Uint32 | Datatype::Fp32 => Some(4),
            Datatype::Int64 | Datatype::Uint64 | Datatype::Fp64 => Some(8),
            Datatype::Bytes => None,
        }
    }

    /// The field of `InferTensorContents` that carries it; `None` where the protocol has raw contents only.
    const fn field(self) -> Option<&'static str> {
        match self {
            Datatype::Bool => Some("bool_contents"),
            Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Some("int_contents"),
            Datatype::Int64 => Some("int64_contents"),
            Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Some("uint_contents"),
            Datatype::Uint64 => Some("uint64_contents"),
            Datatype::Fp32 => Some("fp32_contents"),
            Datatype::Fp64 => Some("fp64_contents"),
            Datatype::Bytes => Some("bytes_contents"),
            Datatype::Fp16 | Datatype::Bf16 => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tensor whose bytes are known to fit its datatype and shape (for BYTES: the framing is whole and has one element
/// per position).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    pub(crate) shape: Vec<usize>,
    pub(crate) raw: Bytes,
}

impl Tensor {
    /// The elements of a BYTES tensor.
    pub(crate) fn strings(&self) -> impl Iterator<Item = &[u8]> {
        Strings { rest: &self.raw }.map_while(Result::ok)
    }
}

/// Walks the 4-byte little-endian lengths of a raw BYTES tensor.
struct Strings<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    /// `Err`: how many bytes the broken element wants and how many are left.
    type Item = Result<&'a [u8], (u64, usize)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((length, rest)) = self.rest.split_first_chunk::<4>() else {
            let left = std::mem::take(&mut self.rest).len();
            return Some(Err((4, left)));
        };
        let length = u32::from_le_bytes(*length);
        // Compared as u64: on a 32-bit machine the length may not fit a usize.
        if u64::from(length) > rest.len() as u64 {
            self.rest = &[];
            return Some(Err((u64::from(length), rest.len())));
        }
        let (element, rest) = rest.split_at(length as usize);
        self.rest = rest;
        Some(Ok(element))
    }
}

/// The raw form of a BYTES tensor; `None` when an element is 4 GiB or longer.
pub(crate) fn frame<'a>(elements: impl Iterator<Item = &'a [u8]> + Clone) -> Option<Bytes> {
    let mut raw = BytesMut::with_capacity(elements.clone().map(|element| 4 + element.len()).sum());
    for element in elements {
        raw.put_u32_le(u32::try_from(element.len()).ok()?);
        raw.put_slice(element);
    }
    Some(raw.freeze())
}

/// `[2, -1]` as people write shapes.
pub(crate) fn shape_text(dims: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let dims: Vec<String> = dims.into_iter().map(|dim| dim.to_string()).collect();
    format!("[{}]", dims.join(", "))
}

/// An empty tensor costs the client nothing whatever its other dimensions are; a model that reduces over the empty one
/// would make a tensor of all the others.
const MOST_BESIDE_ZERO: usize = 1 << 24;

/// No engine takes more.
const MOST_DIMENSIONS: usize = 64;

/// In bytes; messages quote names.
const LONGEST_NAME: usize = 1024;

/// A message travels in a header, percent-encoded, and many clients take 8 KiB of those in all.
const LONGEST_MESSAGE: usize = 2000;

/// A refusal of a request; a long message is cut.
pub(crate) fn bad(message: String) -> InferError {
    InferError::BadRequest(cut(message, LONGEST_MESSAGE))
}

fn cut(mut text: String, characters: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(characters) {
        text.truncate(at);
        text.push_str(" ...");
    }
    text
}

/// A word of the client in quotes, for a message; the beginning of a long one.
pub(crate) fn quoted(word: &str) -> String {
    match word.char_indices().nth(100) {
        Some((at, _)) => format!("{:?}...", &word[..at]),
        None => format!("{word:?}"),
    }
}

/// The inputs of a request as checked tensors, in the request's order. `known` refuses a name that the model does not
/// have; it is asked once more than it says yes, at most.
///
/// # Errors
/// [`InferError::BadRequest`] names the input, what was expected and what was given.
pub(crate) fn inputs_of(request: ModelInferRequest, known: impl Fn(&str) -> Result<(), InferError>) -> Result<Vec<Tensor>, InferError> {
    let ModelInferRequest { inputs, raw_input_contents: raws, .. } = request;
    if !raws.is_empty() && raws.len() != inputs.len() {
        return Err(bad(format!("{} raw_input_contents for {} inputs: give one per input, in their order, or none", raws.len(), inputs.len())));
    }
    // After as many good names as the model has inputs, the next one is unknown or given twice.
    let mut names = HashSet::new();
    for name in inputs.iter().map(|input| input.name.as_str()) {
        known(name)?;
        if !names.insert(name) {
            return Err(bad(format!("input {} is given twice", quoted(name))));
        }
    }
    let mut raws = raws.into_iter();
    inputs.into_iter().map(|input| one_input(input, raws.next())).collect()
}

fn one_input(input: InferInputTensor, raw: Option<Bytes>) -> Result<Tensor, InferError> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    if name.len() > LONGEST_NAME {
        return Err(bad(format!("input {} has a name of {} bytes, at most {LONGEST_NAME} are possible", quoted(&name), name.len())));
    }
    if shape.len() > MOST_DIMENSIONS {
        return Err(bad(format!("input {name:?} has {} dimensions, at most {MOST_DIMENSIONS} are possible", shape.len())));
    }
    if parameters.contains_key("shared_memory_region") {
        return Err(bad(format!("input {name:?} is in shared memory, which this server does not read: send its contents")));
    }
    let Some(datatype) = Datatype::parse(&datatype) else {
        return Err(bad(format!("input {name:?} has datatype {}, which is none of {}", quoted(&datatype), shape_text(Datatype::ALL))));
    };
    let dims: Option<Vec<usize>> = shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let elements = dims.as_ref().and_then(|dims| dims.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim)));
    let (Some(dims), Some(elements)) = (dims, elements) else {
        return Err(bad(format!("input {name:?} has shape {}: dimensions must not be negative or overflow", shape_text(&shape))));
    };
    if elements == 0 {
        let others = dims.iter().filter(|dim| **dim > 0).try_fold(1_usize, |product, dim| product.checked_mul(*dim));
        if others.is_none_or(|others| others > MOST_BESIDE_ZERO) {
            return Err(bad(format!("input {name:?} has shape {}: an empty tensor must not have dimensions this large", shape_text(&shape))));
        }
    }
    let raw = match raw {
        Some(_) if contents.as_ref().is_some_and(holds_anything) => {
            return Err(bad(format!("input {name:?} has typed contents and the request has raw_input_contents: use one form")));
        }
        Some(raw) => raw,
        None => typed(&name, datatype, &contents.unwrap_or_default(), elements, &shape)?,
    };
    check_raw(&name, datatype, &raw, elements, &shape)?;
    Ok(Tensor { name, datatype, shape: dims, raw })
}

fn check_raw(name: &str, datatype: Datatype, raw: &Bytes, elements: usize, shape: &[i64]) -> Result<(), InferError> {
    let shape = || shape_text(shape);
    if let Some(width) = datatype.width() {
        if elements.checked_mul(width) != Some(raw.len()) {
            let expected = elements as u128 * width as u128;
            return Err(bad(format!("input {name:?}: shape {} of {datatype} is {expected} bytes, {} bytes given", shape(), raw.len())));
        }
        if datatype == Datatype::Bool
            && let Some(at) = raw.iter().position(|byte| *byte > 1)
        {
            return Err(bad(format!("input {name:?}: element {at} of BOOL is {}, expected 0 or 1", raw[at])));
        }
        return Ok(());
    }
    let mut count = 0;
    for element in (Strings { rest: raw }) {
        match element {
            Ok(_) => count += 1,
            Err((wanted, left)) => {
                return Err(bad(format!(
                    "input {name:?}: BYTES element {count} is cut off: {wanted} bytes expected, {left} left (each element is a 4-byte little-endian length and its bytes)"
                )));
            }
        }
    }
    if count != elements {
        return Err(bad(format!("input {name:?}: shape {} is {elements} BYTES elements, {count} given", shape())));
    }
    Ok(())
}

/// How many elements each field of `contents` has, in the order of the protocol.
fn counts(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
}

fn holds_anything(contents: &InferTensorContents) -> bool {
    counts(contents).iter().any(|(_, count)| *count > 0)
}

/// Typed contents as raw bytes.
fn typed(name: &str, datatype: Datatype, contents: &InferTensorContents, elements: usize, shape: &[i64]) -> Result<Bytes, InferError> {
    let Some(field) = datatype.field() else {
        return if elements == 0 && !holds_anything(contents) {
            Ok(Bytes::new())
        } else {
            Err(bad(format!("input {name:?}: {datatype} has no typed form: send it in raw_input_contents")))
        };
    };
    let mut given = 0;
    for (other, count) in counts(contents) {
        if other == field {
            given = count;
        } else if count > 0 {
            return Err(bad(format!("input {name:?}: {datatype} is given in {field}, but {other} has {count} elements")));
        }
    }
    if given != elements {
        let shape = shape_text(shape);
        return Err(bad(format!("input {name:?}: shape {shape} is {elements} elements, {field} has {given}")));
    }
    let mut raw = BytesMut::with_capacity(elements.saturating_mul(datatype.width().unwrap_or(0)));
    let out_of_range = |at: usize, value: i64| bad(format!("input {name:?}: element {at} is {value}, which does not fit {datatype}"));
    match datatype {
        Datatype::Bool => raw.extend(contents.bool_contents.iter().map(|value| u8::from(*value))),
        Datatype::Int8 => {
            for (at, value) in contents.int_contents.iter().enumerate() {
                raw.put_i8(i8::try_from(*value).map_err(|_| out_of_range(at, i64::from(*value)))?);
            }
        }
        Datatype::Int16 => {
            for (at, value) in contents.int_contents.iter().enumerate() {
                raw.put_i16_le(i16::try_from(*value).map_err(|_| out_of_range(at, i64::from(*value)))?);
            }
        }
        Datatype::Int32 => contents.int_contents.iter().for_each(|value| raw.put_i32_le(*value)),
        Datatype::Int64 => contents.int64_contents.iter().for_each(|value| raw.put_i64_le(*value)),
        Datatype::Uint8 => {
            for (at, value) in contents.uint_contents.iter().enumerate() {
                raw.put_u8(u8::try_from(*value).map_err(|_| out_of_range(at, i64::from(*value)))?);
            }
        }
        Datatype::Uint16 => {
            for (at, value) in contents.uint_contents.iter().enumerate() {
                raw.put_u16_le(u16::try_from(*value).map_err(|_| out_of_range(at, i64::from(*value)))?);
            }
        }
        Datatype::Uint32 => contents.uint_contents.iter().for_each(|value| raw.put_u32_le(*value)),
        Datatype::Uint64 => contents.uint64_contents.iter().for_each(|value| raw.put_u64_le(*value)),
        Datatype::Fp32 => contents.fp32_contents.iter().for_each(|value| raw.put_f32_le(*value)),
        Datatype::Fp64 => contents.fp64_contents.iter().for_each(|value| raw.put_f64_le(*value)),
        Datatype::Bytes => {
            let framed = frame(contents.bytes_contents.iter().map(|element| &element[..]));
            return framed.ok_or_else(|| bad(format!("input {name:?}: a BYTES element is longer than 4 GiB")));
        }
        // They have no field, which ended this function above.
        Datatype::Fp16 | Datatype::Bf16 => {}
    }
    Ok(raw.freeze())
}

/// Positions of the outputs that are asked for, in the order asked; all of them when none is named.
///
/// # Errors
/// [`InferError::BadRequest`] for an unknown output or one that is asked for twice.
pub(crate) fn chosen_outputs<'a>(wanted: impl ExactSizeIterator<Item = &'a str>, outputs: &[&str]) -> Result<Vec<usize>, InferError> {
    if wanted.len() == 0 {
        return Ok((0..outputs.len()).collect());
    }
    let mut left: HashMap<&str, usize> = outputs.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    let mut chosen = Vec::new();
    for name in wanted {
        let Some(at) = left.remove(name) else {
            let name_of = quoted(name);
            return Err(bad(if outputs.contains(&name) {
                format!("output {name_of} is asked for twice")
            } else {
                format!("unknown output {name_of}: the model has {}", shape_text(outputs))
            }));
        };
        chosen.push(at);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor { name: "x".to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), contents, ..InferInputTensor::default() }
    }

    fn request(input: InferInputTensor, raw: Option<&[u8]>) -> ModelInferRequest {
        let raw_input_contents = raw.map(Bytes::copy_from_slice).into_iter().collect();
        ModelInferRequest { inputs: vec![input], raw_input_contents, ..ModelInferRequest::default() }
    }

    /// As for a model that takes whatever it is called.
    fn inputs_of(request: ModelInferRequest) -> Result<Vec<Tensor>, InferError> {
        super::inputs_of(request, |_| Ok(()))
    }

    #[test]
    fn a_request_with_too_many_names_costs_what_the_model_has_and_not_what_it_sends() {
        let named = |names: &[&str]| {
            let inputs = names.iter().map(|name| InferInputTensor { name: (*name).to_owned(), ..input("FP32", &[0], None) }).collect();
            ModelInferRequest { inputs, ..ModelInferRequest::default() }
        };
        let asked = Cell::new(0);
        let known = |name: &str| {
            asked.set(asked.get() + 1);
            if ["x", "y"].contains(&name) { Ok(()) } else { Err(bad(format!("unknown input {}", quoted(name)))) }
        };
        for (case, names, says) in [
            ("strangers", [&["x"][..], &["strange"; 1000]].concat(), "unknown input \"strange\""),
            ("one again and again", vec!["x"; 1000], "input \"x\" is given twice"),
            ("all and more", [&["y", "x"][..], &["y"; 1000]].concat(), "input \"y\" is given twice"),
        ] {
            asked.set(0);
            assert_eq!(super::inputs_of(named(&names), known), Err(bad(says.to_owned())), "{case}");
            assert!(asked.get() <= 3, "{case}: asked for {} names", asked.get());
        }
        assert_eq!(super::inputs_of(named(&["y", "x"]), known).map(|tensors| tensors.len()), Ok(2));

        for (case, wanted, says) in [
            ("strangers", [&["a"][..], &["strange"; 1000]].concat(), "unknown output \"strange\": the model has [a, b]"),
            ("one again and again", vec!["b"; 1000], "output \"b\" is asked for twice"),
        ] {
            let looked_at = Cell::new(0);
            let wanted = wanted.iter().copied().inspect(|_| looked_at.set(looked_at.get() + 1));
            assert_eq!(chosen_outputs(wanted, &["a", "b"]), Err(bad(says.to_owned())), "{case}");
            assert!(looked_at.get() <= 3, "{case}: looked at {}", looked_at.get());
        }
        assert_eq!(chosen_outputs(["b", "a"].into_iter(), &["a", "b"]), Ok(vec![1, 0]));
        assert_eq!(chosen_outputs([].into_iter(), &["a", "b"]), Ok(vec![0, 1]));
    }

    #[test]
    fn no_request_makes_a_long_message() {
        let long = "\u{1}".repeat(1 << 20);
        let ones = vec![1; 1 << 20];
        for (case, input, says) in [
            ("dimensions", input("FP32", &ones, None), "input \"x\" has 1048576 dimensions, at most 64 are possible"),
            ("wide", input("FP32", &[i64::MIN; 64], None), "dimensions must not be negative or overflow"),
            ("a datatype", input(&long, &[1], None), "which is none of"),
            ("a name", InferInputTensor { name: long.clone(), ..input("FP32", &[1], None) }, "a name of 1048576 bytes, at most 1024 are possible"),
            ("an escaped name", InferInputTensor { name: long[..1024].to_owned(), ..input("odd", &[1], None) }, "..."),
        ] {
            let fault = inputs_of(request(input, None)).expect_err(case).to_string();
            assert!(fault.contains(says), "{case}: {fault}");
            assert!(fault.chars().count() < LONGEST_MESSAGE + 100, "{case}: {}", fault.len());
        }
        let fault = chosen_outputs([long.as_str()].into_iter(), &["y"]).expect_err("unknown").to_string();
        assert!(fault.contains("unknown output") && fault.len() < 1000, "{fault}");
    }

    #[test]
    fn typed_contents_become_the_bytes_of_their_datatype() {
        let none = InferTensorContents::default;
        for (datatype, contents, raw) in [
            ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..none() }, &b"\x01\0"[..]),
            ("INT8", InferTensorContents { int_contents: vec![-1, 2], ..none() }, b"\xff\x02"),
            ("INT16", InferTensorContents { int_contents: vec![-1, 2], ..none() }, b"\xff\xff\x02\0"),
            ("UINT8", InferTensorContents { uint_contents: vec![255, 2], ..none() }, b"\xff\x02"),
            ("FP32", InferTensorContents { fp32_contents: vec![1.0, -2.0], ..none() }, b"\0\0\x80\x3f\0\0\0\xc0"),
            ("BYTES", InferTensorContents { bytes_contents: vec!["a".into(), "".into()], ..none() }, b"\x01\0\0\0a\0\0\0\0"),
        ] {
            let tensors = inputs_of(request(input(datatype, &[2], Some(contents)), None)).expect(datatype);
            assert_eq!((tensors[0].datatype.as_str(), &tensors[0].raw[..]), (datatype, raw));
        }
    }

    #[test]
    fn what_a_datatype_cannot_hold_or_the_protocol_cannot_say_is_refused() {
        let none = InferTensorContents::default;
        let ints = |values: &[i32]| Some(InferTensorContents { int_contents: values.to_vec(), ..none() });
        for (request, says) in [
            (request(input("INT8", &[1], ints(&[200])), None), "element 0 is 200, which does not fit INT8"),
            (request(input("FP16", &[1], Some(InferTensorContents { fp32_contents: vec![1.0], ..none() })), None), "FP16 has no typed form"),
            (request(input("FP32", &[2], None), None), "shape [2] is 2 elements, fp32_contents has 0"),
            (request(input("BOOL", &[2], None), Some(&[1, 2])), "element 1 of BOOL is 2, expected 0 or 1"),
            (request(input("FP32", &[0, 1 << 40], None), None), "an empty tensor must not have dimensions this large"),
            (request(input("FP32", &[1 << 40, 1 << 40], None), None), "dimensions must not be negative or overflow"),
            (
                request(input("FP32", &[1 << 62], None), Some(&[0; 4])),
                "shape [4611686018427387904] of FP32 is 18446744073709551616 bytes, 4 bytes given",
            ),
        ] {
            let fault = inputs_of(request).expect_err(says).to_string();
            assert!(fault.contains(says), "{fault:?} does not say {says:?}");
        }
        let mut shared = input("FP32", &[1], None);
        shared.parameters.insert("shared_memory_region".to_owned(), berth_proto::inference::InferParameter::default());
        assert!(inputs_of(request(shared, None)).expect_err("refused").to_string().contains("shared memory"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn framed_texts_come_back(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..10)) {
            let raw = frame(texts.iter().map(Vec::as_slice)).expect("short");
            let count = i64::try_from(texts.len()).expect("few");
            let tensors = inputs_of(request(input("BYTES", &[count], None), Some(&raw))).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
            prop_assert!(tensors[0].strings().eq(texts.iter().map(Vec::as_slice)));
        }

        #[test]
        fn no_bytes_and_no_shape_make_it_panic(
            datatype in proptest::sample::select(Datatype::ALL.to_vec()),
            shape in proptest::collection::vec(prop_oneof![Just(0_i64), 0..4_i64, any::<i64>()], 0..4),
            raw in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(tensors) = inputs_of(request(input(datatype.as_str(), &shape, None), Some(&raw))) {
                let elements: usize = tensors[0].shape.iter().product();
                match datatype.width() {
                    Some(width) => prop_assert_eq!(elements * width, raw.len()),
                    None => prop_assert_eq!(tensors[0].strings().count(), elements),
                }
            }
        }
    }
}
