//! An inference request's body to raw tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

use berth_proto::inference::infer_parameter::ParameterChoice;
use berth_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use berth_proto::inference::{InferParameter, ModelInferRequest};
use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;

use super::tensor::{self, Datatype, Text};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::weight::{self, MOST_TENSORS};

/// A request with what it says about the form of its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) request: ModelInferRequest,
    pub(super) wanted: Wanted,
}

/// Which outputs go after the JSON in binary form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Those that the request does not decide one by one.
    pub(super) binary_by_default: bool,
    /// By output.
    pub(super) binary: HashMap<String, bool>,
}

impl Wanted {
    pub(super) fn is_binary(&self, output: &str) -> bool {
        self.binary.get(output).copied().unwrap_or(self.binary_by_default)
    }
}

#[derive(serde::Deserialize)]
struct Body<'a> {
    id: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Option<Parameters>,
    #[serde(borrow)]
    inputs: Option<Few<Input<'a>>>,
    outputs: Option<Few<Output>>,
}

/// Members are optional here and asked for below, where the message can name the tensor.
#[derive(serde::Deserialize)]
struct Input<'a> {
    name: Option<String>,
    #[serde(borrow)]
    datatype: Option<Cow<'a, str>>,
    shape: Option<Few<i64>>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Option<Parameters>,
    /// Kept as text until shape, datatype and parameters are known, in whatever order they come.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct Output {
    name: Option<String>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: Option<Parameters>,
}

/// A list that is refused as soon as it is too long, so that a body cannot ask for many times its size.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Few<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Few<T>, A::Error> {
                let mut few = Vec::new();
                while let Some(member) = list.next_element()? {
                    if few.len() == MOST_TENSORS {
                        return Err(de::Error::custom(format!("a list with more than {MOST_TENSORS} members")));
                    }
                    few.push(member);
                }
                Ok(Few(few))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// The most parameters of a request, of an input and of an output.
const MOST_PARAMETERS: usize = 128;

fn parameters<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Parameters>, D::Error> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Option<Parameters>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of parameters")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut few = Parameters::new();
            while let Some((name, value)) = members.next_entry()? {
                few.insert(name, value);
                if few.len() > MOST_PARAMETERS {
                    return Err(de::Error::custom(format!("more than {MOST_PARAMETERS} parameters")));
                }
            }
            Ok(Some(few))
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Members)
}

type Parameters = HashMap<String, Parameter>;

#[derive(Clone, Debug)]
struct Parameter(Option<ParameterChoice>);

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a boolean or a number as value of a parameter")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter(Some(ParameterChoice::BoolParam(value))))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter(Some(ParameterChoice::Int64Param(value))))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Parameter, E> {
                Ok(Parameter(Some(i64::try_from(value).map_or(ParameterChoice::Uint64Param(value), ParameterChoice::Int64Param))))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter(Some(ParameterChoice::DoubleParam(value))))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter(Some(ParameterChoice::StringParam(value.to_owned()))))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Parameter, E> {
                Ok(Parameter(None))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// Reads a body: JSON, followed by binary tensors where `json_length` says how long the JSON is. `share` holds the body; it
/// holds what becomes of it before that is made, and in the end only what is left.
///
/// # Errors
/// [`Fault::BadRequest`], naming the tensor and the element, or no room.
pub(super) fn read(body: &Bytes, json_length: Option<usize>, share: &mut Share) -> Result<Parsed, Fault> {
    let (document, binary) = document(body, json_length).map_err(Fault::BadRequest)?;
    let weight = document.weight();
    share.add(weight)?;
    let parsed = tensors(document, binary).map_err(Fault::BadRequest)?;
    if json_length.is_none() {
        share.hold(weight)?; // binary tensors are slices of the body, others are not
    }
    Ok(parsed)
}

/// The JSON of a body, with the elements of its tensors still as text, and what follows it.
fn document(body: &Bytes, json_length: Option<usize>) -> Result<(Body<'_>, BinaryPart), String> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(format!("Inference-Header-Content-Length is {length}, the body has {} bytes", body.len()));
    }
    let json = &body[..length];
    if json.trim_ascii().is_empty() {
        return Err("the body has no JSON: send an object with \"inputs\"".to_owned());
    }
    let document = serde_json::from_slice(json).map_err(|fault| format!("the body cannot be read: {fault}"))?;
    Ok((document, BinaryPart { rest: body.slice(length..), allowed: json_length.is_some() }))
}

impl Body<'_> {
    /// Bytes that the request takes when its tensors are read, binary ones left out.
    fn weight(&self) -> u64 {
        let inputs = self.inputs.iter().flat_map(|inputs| &inputs.0).map(Input::weight);
        let outputs = self.outputs.iter().flat_map(|outputs| &outputs.0).map(|output| {
            let name = output.name.as_ref().map_or(0, String::len);
            weight::OUTPUT + name as u64 + weight_of(output.parameters.as_ref())
        });
        inputs.chain(outputs).sum::<u64>() + weight_of(self.parameters.as_ref())
    }
}

impl Input<'_> {
    fn weight(&self) -> u64 {
        let shape = self.shape.as_ref().map_or(&[][..], |shape| &shape.0);
        let datatype = self.datatype.as_deref().and_then(Datatype::named);
        let raw = match (datatype, self.data) {
            // A shape that cannot be counted is refused before anything is made of it.
            (Some(datatype), Some(data)) => tensor::elements(shape).map_or(0, |count| tensor::room(datatype, count, data.get())),
            _ => 0,
        };
        let name = self.name.as_ref().map_or(0, String::len);
        weight::INPUT + (name + raw) as u64 + weight::DIMENSION * shape.len() as u64 + weight_of(self.parameters.as_ref())
    }
}

fn weight_of(parameters: Option<&Parameters>) -> u64 {
    let each = |(name, value): (&String, &Parameter)| {
        let text = if let Parameter(Some(ParameterChoice::StringParam(text))) = value { text.len() } else { 0 };
        weight::PARAMETER + (name.len() + text) as u64
    };
    parameters.into_iter().flatten().map(each).sum()
}

/// What `document` asks for, its tensors raw.
fn tensors(document: Body<'_>, mut binary: BinaryPart) -> Result<Parsed, String> {
    let Body { id, parameters, inputs, outputs } = document;
    let mut parameters = parameters.unwrap_or_default();
    let binary_by_default = flag(&mut parameters, "binary_data_output")?.unwrap_or(false);
    let base64_by_default = is_base64(&parameters);

    let mut request = ModelInferRequest { id: id.map(Cow::into_owned).unwrap_or_default(), ..ModelInferRequest::default() };
    for (at, input) in inputs.ok_or("member \"inputs\" is missing")?.0.into_iter().enumerate() {
        let name = input.name.clone().ok_or_else(|| format!("input {at} has no member \"name\""))?;
        let (tensor, raw) = read_input(input, base64_by_default, &mut binary).map_err(|fault| format!("input {}: {fault}", Quoted::new(&name)))?;
        request.inputs.push(InferInputTensor { name, ..tensor });
        request.raw_input_contents.push(raw);
    }
    if !binary.rest.is_empty() {
        return Err(format!("{} bytes follow the last binary input: its binary_data_size is too small", binary.rest.len()));
    }
    let mut wanted = Wanted { binary_by_default, ..Wanted::default() };
    for (at, output) in outputs.map_or_else(Vec::new, |outputs| outputs.0).into_iter().enumerate() {
        let name = output.name.ok_or_else(|| format!("output {at} has no member \"name\""))?;
        let mut parameters = output.parameters.unwrap_or_default();
        let within = |fault| format!("output {}: {fault}", Quoted::new(&name));
        if let Some(is_binary) = flag(&mut parameters, "binary_data").map_err(within)? {
            wanted.binary.insert(name.clone(), is_binary);
        }
        unsupported(&parameters).map_err(within)?;
        request.outputs.push(InferRequestedOutputTensor { name, parameters: wire(parameters) });
    }
    request.parameters = wire(parameters);
    Ok(Parsed { request, wanted })
}

/// What follows the JSON and is not taken yet.
struct BinaryPart {
    rest: Bytes,
    allowed: bool,
}

fn read_input(input: Input<'_>, base64_by_default: bool, binary: &mut BinaryPart) -> Result<(InferInputTensor, Bytes), String> {
    let Few(shape) = input.shape.ok_or("member \"shape\" is missing")?;
    let datatype_name = input.datatype.ok_or("member \"datatype\" is missing")?;
    let datatype = Datatype::named(&datatype_name).ok_or_else(|| {
        let known: Vec<&str> = Datatype::ALL.iter().map(|datatype| datatype.as_str()).collect();
        format!("datatype {} is not one of {}", Quoted::new(&datatype_name), known.join(", "))
    })?;
    let mut parameters = input.parameters.unwrap_or_default();
    unsupported(&parameters)?;
    let size = match parameters.remove("binary_data_size") {
        None => None,
        Some(Parameter(Some(ParameterChoice::Int64Param(size)))) if size >= 0 => Some(usize::try_from(size).unwrap_or(usize::MAX)),
        Some(_) => return Err("parameter \"binary_data_size\" must be a number of bytes".to_owned()),
    };
    let raw = match (size, input.data) {
        (Some(_), Some(_)) => return Err("has both \"data\" and the parameter \"binary_data_size\": send one of them".to_owned()),
        (None, None) => return Err("member \"data\" is missing".to_owned()),
        (Some(_), None) if !binary.allowed => {
            return Err("has the parameter \"binary_data_size\", and the header Inference-Header-Content-Length is missing".to_owned());
        }
        (Some(size), None) => {
            if size > binary.rest.len() {
                return Err(format!("parameter \"binary_data_size\" is {size}, the body has {} bytes left", binary.rest.len()));
            }
            tensor::elements(&shape)?;
            binary.rest.split_to(size)
        }
        (None, Some(data)) => {
            let text = if base64_by_default || is_base64(&parameters) { Text::Base64 } else { Text::Plain };
            tensor::read(datatype, &shape, text, data.get())?.into()
        }
    };
    let tensor = InferInputTensor { datatype: datatype_name.into_owned(), shape, parameters: wire(parameters), ..InferInputTensor::default() };
    Ok((tensor, raw))
}

/// `content_type` in the spellings that upstream takes; any other value means plain text.
fn is_base64(parameters: &Parameters) -> bool {
    match parameters.get("content_type") {
        Some(Parameter(Some(ParameterChoice::StringParam(kind)))) => ["base64", "b64"].iter().any(|name| kind.eq_ignore_ascii_case(name)),
        _ => false,
    }
}

fn flag(parameters: &mut Parameters, name: &str) -> Result<Option<bool>, String> {
    match parameters.remove(name) {
        None => Ok(None),
        Some(Parameter(Some(ParameterChoice::BoolParam(value)))) => Ok(Some(value)),
        Some(_) => Err(format!("parameter {name:?} must be true or false")),
    }
}

/// Extensions that change what the data means: passing them by would give wrong answers.
fn unsupported(parameters: &Parameters) -> Result<(), String> {
    match ["classification", "shared_memory_region"].into_iter().find(|name| parameters.contains_key(*name)) {
        Some(name) => Err(format!("parameter {name:?} is not supported")),
        None => Ok(()),
    }
}

fn wire(parameters: Parameters) -> HashMap<String, InferParameter> {
    parameters.into_iter().map(|(name, Parameter(parameter_choice))| (name, InferParameter { parameter_choice })).collect()
}

#[cfg(test)]
mod tests {
    use berth_types::ByteSize;

    use super::*;
    use crate::budget::Budget;

    fn parse(body: &Bytes, json_length: Option<usize>) -> Result<Parsed, String> {
        let (document, binary) = document(body, json_length)?;
        tensors(document, binary)
    }

    #[test]
    fn long_lists_are_refused_before_they_are_whole() {
        let list = |member: &str, count: usize| vec![member; count].join(",");
        let input = |count: usize| format!(r#"{{"inputs":[{}]}}"#, list(r#"{"name":"x","datatype":"INT8","shape":[0],"data":[]}"#, count));
        let output = |count: usize| format!(r#"{{"inputs":[],"outputs":[{}]}}"#, list(r#"{"name":"y"}"#, count));
        let shape = |count: usize| format!(r#"{{"inputs":[{{"name":"x","datatype":"INT8","shape":[{}],"data":[1]}}]}}"#, list("1", count));
        for (case, most, more) in [("inputs", input(1024), input(1025)), ("outputs", output(1024), output(1025)), ("shape", shape(1024), shape(1025))]
        {
            assert!(json(&most).is_ok(), "{case}");
            let fault = json(&more).expect_err(case);
            assert!(fault.starts_with("the body cannot be read: a list with more than 1024 members at line 1 column "), "{case}: {fault}");
        }
        let parameters = |count: usize| {
            let members: Vec<String> = (0..count).map(|at| format!("\"p{at}\":1")).collect();
            format!(r#"{{"inputs":[],"parameters":{{{}}}}}"#, members.join(","))
        };
        assert!(json(&parameters(128)).is_ok());
        let fault = json(&parameters(129)).unwrap_err();
        assert!(fault.starts_with("the body cannot be read: more than 128 parameters at line 1 column "), "{fault}");
    }

    #[test]
    fn a_body_is_held_as_what_is_left_of_it() {
        let text = br#"{"inputs":[{"name":"x","datatype":"FP64","shape":[2,2],"data":[1,2,3,4]}]}"#;
        let budget = Budget::of(ByteSize::kib(4));
        let mut share = budget.share();
        share.add(text.len() as u64).unwrap();
        read(&Bytes::from_static(text), None, &mut share).unwrap();
        assert_eq!(budget.taken(), weight::INPUT + 1 + 2 * weight::DIMENSION + 32, "the text is gone");
        let mut share = budget.share();
        share.add(1000).unwrap();
        let before = budget.taken();
        read(&Bytes::from_static(text), Some(text.len()), &mut share).unwrap();
        assert!(budget.taken() > before, "binary tensors would be slices of the body");

        let full = Budget::of(ByteSize(100));
        assert!(matches!(read(&Bytes::from_static(text), None, &mut full.share()), Err(Fault::TooHeavy { .. })));
    }

    fn json(text: &str) -> Result<Parsed, String> {
        parse(&Bytes::copy_from_slice(text.as_bytes()), None)
    }

    #[test]
    fn members_are_read_in_any_order_and_unknown_ones_are_passed_by() {
        let parsed = json(
            r#"{"outputs":[{"parameters":{"binary_data":true},"name":"y"},{"name":"z"}],
                "more":{"deep":[1,{"a":null}]},
                "inputs":[
                  {"data":[[1.5,-2],[3,"NaN"]],"shape":[2,2],"unknown":[[[]]],"datatype":"FP32","name":"x"},
                  {"name":"s","parameters":{"content_type":"base64","n":3},"datatype":"BYTES","shape":[1],"data":["\u0061GVq"]}],
                "parameters":{"binary_data_output":false,"s":"t","i":-1,"u":18446744073709551615,"f":0.5,"b":true,"none":null},
                "id":"r\u00e9 \ud83d\udea2"}"#,
        )
        .unwrap();
        let Parsed { request, wanted } = parsed;
        assert_eq!(request.id, "ré 🚢");
        assert_eq!(request.raw_input_contents[0], [1.5f32, -2.0, 3.0, f32::NAN].map(f32::to_le_bytes).concat());
        assert_eq!(&request.raw_input_contents[1][..], b"\x03\0\0\0hej");
        assert_eq!((request.inputs[0].name.as_str(), request.inputs[0].datatype.as_str(), &request.inputs[0].shape[..]), ("x", "FP32", &[2, 2][..]));
        assert!(request.inputs.iter().all(|input| input.contents.is_none()), "raw contents exclude typed ones");
        let parameter = |name: &str| request.parameters.get(name).and_then(|value| value.parameter_choice.clone());
        for (name, value) in [
            ("s", ParameterChoice::StringParam("t".to_owned())),
            ("i", ParameterChoice::Int64Param(-1)),
            ("u", ParameterChoice::Uint64Param(u64::MAX)),
            ("f", ParameterChoice::DoubleParam(0.5)),
            ("b", ParameterChoice::BoolParam(true)),
        ] {
            assert_eq!(parameter(name), Some(value), "{name}");
        }
        assert!(request.parameters.contains_key("none") && !request.parameters.contains_key("binary_data_output"));
        assert_eq!(request.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), ["y", "z"]);
        assert!(request.outputs[0].parameters.is_empty());
        assert!(wanted.is_binary("y") && !wanted.is_binary("z"));
    }

    #[test]
    fn a_content_type_of_the_request_counts_for_its_bytes_inputs() {
        let parsed = json(r#"{"inputs":[{"name":"s","datatype":"BYTES","shape":[1],"data":["aGVq"]}],"parameters":{"content_type":"B64"}}"#).unwrap();
        assert_eq!(&parsed.request.raw_input_contents[0][..], b"\x03\0\0\0hej");
        let plain = json(r#"{"inputs":[{"name":"s","datatype":"BYTES","shape":[1],"data":["aGVq"],"parameters":{"content_type":"str"}}]}"#).unwrap();
        assert_eq!(&plain.request.raw_input_contents[0][..], b"\x04\0\0\0aGVq");
    }

    #[test]
    fn malformed_bodies_are_refused_with_what_is_wrong_and_where() {
        let input = |rest: &str| format!(r#"{{"inputs":[{{"name":"x",{rest}}}]}}"#);
        for (body, expected) in [
            (String::new(), "the body has no JSON: send an object with \"inputs\""),
            (" \n".to_owned(), "the body has no JSON"),
            ("{".to_owned(), "the body cannot be read: EOF while parsing an object at line 1 column 1"),
            ("[1]".to_owned(), "the body cannot be read: "),
            ("{}".to_owned(), "member \"inputs\" is missing"),
            ("{\"inputs\":[]} {}".to_owned(), "the body cannot be read: trailing characters at line 1 column 15"),
            ("{\"inputs\":[],\"inputs\":[]}".to_owned(), "the body cannot be read: duplicate field `inputs`"),
            ("{\"inputs\":[{}]}".to_owned(), "input 0 has no member \"name\""),
            ("{\"inputs\":{}}".to_owned(), "the body cannot be read: invalid type: map, expected a sequence at line 1 column 10"),
            ("{\"inputs\":[],\"id\":7}".to_owned(), "the body cannot be read: invalid type: integer `7`, expected a string"),
            ("{\"inputs\":[],\"parameters\":{\"a\":[1]}}".to_owned(), "expected a string, a boolean or a number as value of a parameter"),
            ("{\"inputs\":[],\"parameters\":{\"binary_data_output\":1}}".to_owned(), "parameter \"binary_data_output\" must be true or false"),
            ("{\"inputs\":[],\"outputs\":[{}]}".to_owned(), "output 0 has no member \"name\""),
            (
                "{\"inputs\":[],\"outputs\":[{\"name\":\"y\",\"parameters\":{\"classification\":3}}]}".to_owned(),
                "output \"y\": parameter \"classification\" is not supported",
            ),
            (input(r#""datatype":"FP32","data":[1]"#), "input \"x\": member \"shape\" is missing"),
            (input(r#""shape":[1],"data":[1]"#), "input \"x\": member \"datatype\" is missing"),
            (input(r#""datatype":"FP32","shape":[1]"#), "input \"x\": member \"data\" is missing"),
            (input(r#""datatype":"FP32","shape":[1],"data":null"#), "input \"x\": member \"data\" is missing"),
            (input(r#""datatype":"FLOAT","shape":[1],"data":[1]"#), "input \"x\": datatype \"FLOAT\" is not one of BOOL, UINT8,"),
            (input(r#""datatype":"FP32","shape":[1.5],"data":[1]"#), "invalid type: floating point `1.5`, expected i64"),
            (input(r#""datatype":"INT8","shape":[1],"data":[300]"#), "input \"x\": element 0 is 300, INT8 takes whole numbers from -128 to 127"),
            (input(r#""datatype":"FP32","shape":[1],"data":[NaN]"#), "the body cannot be read: expected value at line 1"),
            (
                input(r#""datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}"#),
                "input \"x\": has the parameter \"binary_data_size\", and the header Inference-Header-Content-Length is missing",
            ),
            (
                input(r#""datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#),
                "input \"x\": has both \"data\" and the parameter \"binary_data_size\"",
            ),
            (
                input(r#""datatype":"FP32","shape":[1],"parameters":{"shared_memory_region":"r"}"#),
                "input \"x\": parameter \"shared_memory_region\" is not supported",
            ),
        ] {
            let fault = json(&body).expect_err(&body);
            assert!(fault.contains(expected), "{body}: {fault}");
        }
    }

    #[test]
    fn binary_inputs_follow_the_json_in_order() {
        let json = br#"{"inputs":[
            {"name":"a","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}},
            {"name":"b","datatype":"INT8","shape":[1],"data":[7]},
            {"name":"c","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let whole = |tail: &[u8]| Bytes::from([json, tail].concat());
        let parsed = parse(&whole(&[1, 2, 3, 4, 5, 6]), Some(json.len())).unwrap();
        assert_eq!(parsed.request.raw_input_contents, [&[1u8, 2, 3, 4][..], &[7], &[5, 6]]);
        assert!(parsed.request.inputs.iter().all(|input| input.parameters.is_empty()));
        for (body, length, expected) in [
            (whole(&[0; 5]), json.len(), "input \"c\": parameter \"binary_data_size\" is 2, the body has 1 bytes left"),
            (whole(&[0; 7]), json.len(), "1 bytes follow the last binary input"),
            (whole(&[0; 6]), json.len() + 7, "Inference-Header-Content-Length is "),
            (whole(&[0; 6]), 0, "the body has no JSON"),
            (whole(&[0; 6]), json.len() - 1, "the body cannot be read: "),
        ] {
            let fault = parse(&body, Some(length)).expect_err(expected);
            assert!(fault.contains(expected), "{fault}");
        }
        let negative = r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":-4}}]}"#;
        let fault = parse(&Bytes::from_static(negative.as_bytes()), Some(negative.len())).unwrap_err();
        assert_eq!(fault, "input \"a\": parameter \"binary_data_size\" must be a number of bytes");
    }
}
