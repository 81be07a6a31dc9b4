//! An inference request's body to raw tensors, in one go from its first byte to its last.
//!
//! Names of members are taken in any case, as Go's decoder takes them and clients of the original may write them; names of
//! parameters are not. Unknown members are passed by, and no member may come twice.

use std::collections::HashMap;

use berth_proto::inference::infer_parameter::ParameterChoice;
use berth_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use berth_proto::inference::{InferParameter, ModelInferRequest};
use bytes::Bytes;

use super::json::{Cursor, Stop};
use super::tensor::{self, Datatype, Text, shown};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::weight::{self, MOST_TENSORS};

/// A request with what it says about its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    pub(super) request: ModelInferRequest,
    pub(super) wanted: Wanted,
    /// The most microseconds that its client gives it: Triton's parameter `timeout`, which is passed on too.
    pub(super) timeout_micros: Option<u64>,
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

/// The most parameters of a request, of an input and of an output.
const MOST_PARAMETERS: usize = 128;

type Parameters = HashMap<String, InferParameter>;

/// Reads a body: JSON, followed by binary tensors where `json_length` says how long the JSON is. `share` holds the body; it
/// holds what becomes of it before that is made, and in the end only what is left.
///
/// # Errors
/// [`Fault::BadRequest`], naming the tensor and the element, or no room.
pub(super) fn read(body: &Bytes, json_length: Option<usize>, share: &mut Share) -> Result<Parsed, Fault> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(Fault::BadRequest(format!("Inference-Header-Content-Length is {length}, the body has {} bytes", body.len())));
    }
    let text = std::str::from_utf8(&body[..length]).map_err(|fault| {
        let at = fault.valid_up_to();
        Fault::BadRequest(format!("the body cannot be read: byte {at} of its JSON is no UTF-8"))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(Fault::BadRequest("the body has no JSON: send an object with \"inputs\"".to_owned()));
    }
    let mut reading = Reading { share, weight: 0 };
    let binary = BinaryPart { rest: body.slice(length..), allowed: json_length.is_some() };
    let parsed = reading.request(&mut Cursor::new(text), binary).map_err(|stop| match stop {
        Stop::Syntax { what, at } => {
            let line = text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1;
            let column = at - text[..at].rfind('\n').map_or(0, |end| end + 1) + 1;
            Fault::BadRequest(format!("the body cannot be read: expected {what} at line {line} column {column}"))
        }
        Stop::Wrong(text) => Fault::BadRequest(text),
        Stop::NoRoom(fault) => fault,
    })?;
    if json_length.is_none() {
        let weight = reading.weight;
        share.hold(weight)?; // binary tensors are slices of the body, others are not
    }
    Ok(parsed)
}

/// Which of `names` this is, in whatever case. Marks it in `seen`; twice is wrong.
fn member(names: &[&'static str], name: &str, seen: &mut u32) -> Result<&'static str, Stop> {
    let Some(at) = names.iter().position(|known| known.eq_ignore_ascii_case(name)) else { return Ok("") };
    if *seen & 1 << at != 0 {
        return Err(Stop::Wrong(format!("{} is there twice", names[at])));
    }
    *seen |= 1 << at;
    Ok(names[at])
}

/// Text; `None` for `null`. The fault lacks the path.
fn text(cursor: &mut Cursor<'_>) -> Result<Option<String>, Stop> {
    match cursor.peek() {
        b'n' => cursor.null().map(|_| None),
        b'"' => cursor.string().map(|text| Some(text.into_owned())),
        _ => Err(Stop::Wrong(format!(" is {}, it must be a string", shown(cursor.skip()?)))),
    }
}

/// An array of at most [`MOST_TENSORS`] members, refused as soon as it is longer, so that a body cannot ask for many times
/// its size. `null` has none. Returns whether it was there.
fn few<'a>(cursor: &mut Cursor<'a>, mut each: impl FnMut(&mut Cursor<'a>) -> Result<(), Stop>) -> Result<bool, Stop> {
    match cursor.peek() {
        b'n' => cursor.null().map(|_| false),
        b'[' => {
            cursor.array(|cursor, at| {
                if at == MOST_TENSORS {
                    return Err(Stop::Wrong(format!(" has more than {MOST_TENSORS} members")));
                }
                each(cursor).map_err(|stop| stop.within(format_args!("[{at}]")))
            })?;
            Ok(true)
        }
        _ => Err(Stop::Wrong(format!(" is {}, it must be an array", shown(cursor.skip()?)))),
    }
}

/// Says which input it is about, where its name is known by then. The path goes before what is wrong, so this follows.
fn of_input(stop: Stop, name: Option<&str>) -> Stop {
    match (stop, name) {
        (Stop::Wrong(text), Some(name)) => Stop::Wrong(format!("{text} (input {})", Quoted::new(name))),
        (stop, _) => stop,
    }
}

/// Checks that an object comes next.
fn object_ahead(cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    if cursor.peek() == b'{' { Ok(()) } else { Err(Stop::Wrong(format!(" is {}, it must be an object", shown(cursor.skip()?)))) }
}

fn parameter(cursor: &mut Cursor<'_>) -> Result<InferParameter, Stop> {
    let parameter_choice = match cursor.peek() {
        b'n' => {
            cursor.null()?;
            None
        }
        b't' | b'f' => Some(ParameterChoice::BoolParam(cursor.boolean()?)),
        b'"' => Some(ParameterChoice::StringParam(cursor.string()?.into_owned())),
        b'{' | b'[' => {
            return Err(Stop::Wrong(format!(" is {}, a parameter is a string, a boolean or a number", shown(cursor.skip()?))));
        }
        _ => {
            let number = cursor.number()?;
            let integer = number.integer();
            let int64 = integer.and_then(|integer| i64::try_from(integer).ok()).map(ParameterChoice::Int64Param);
            let uint64 = || integer.and_then(|integer| u64::try_from(integer).ok()).map(ParameterChoice::Uint64Param);
            let double = || number.f64().map(ParameterChoice::DoubleParam);
            match int64.or_else(uint64).or_else(double) {
                Some(number) => Some(number),
                None => return Err(Stop::Wrong(format!(" is {}, that is too large for a number", shown(number.text)))),
            }
        }
    };
    Ok(InferParameter { parameter_choice })
}

/// One body being read, with what its parts take so far.
struct Reading<'s> {
    share: &'s mut Share,
    weight: u64,
}

impl Reading<'_> {
    /// To be called before memory is taken.
    fn charge(&mut self, bytes: u64) -> Result<(), Fault> {
        self.share.add(bytes)?;
        self.weight += bytes;
        Ok(())
    }

    fn request(&mut self, cursor: &mut Cursor<'_>, mut binary: BinaryPart) -> Result<Parsed, Stop> {
        if cursor.peek() != b'{' {
            return Err(Stop::Wrong(format!("the body is {}, it must be an object with \"inputs\"", shown(cursor.skip()?))));
        }
        let mut parsed = Parsed::default();
        let Parsed { request, wanted, .. } = &mut parsed;
        let (mut seen, mut parameters) = (0, Parameters::new());
        // BYTES inputs are read when it is known whether the request says that they are base64.
        let (mut texts, mut has_inputs) = (Vec::new(), false);
        let mut sizes: Vec<Option<usize>> = Vec::new();
        cursor.object(|cursor, name| {
            match member(&["id", "parameters", "inputs", "outputs"], &name, &mut seen)? {
                "id" => request.id = text(cursor).map_err(|stop| stop.within("id"))?.unwrap_or_default(),
                "parameters" => parameters = self.parameters(cursor)?,
                "inputs" => {
                    let inputs = few(cursor, |cursor| {
                        let Read { tensor, raw, binary_size, later } = self.input(cursor)?;
                        if let Some(later) = later {
                            texts.push((request.inputs.len(), later));
                        }
                        request.inputs.push(tensor);
                        request.raw_input_contents.push(raw);
                        sizes.push(binary_size);
                        Ok(())
                    });
                    has_inputs = inputs.map_err(|stop| stop.within("inputs"))?;
                }
                "outputs" => {
                    let outputs = few(cursor, |cursor| {
                        let (output, is_binary) = self.output(cursor)?;
                        if let Some(is_binary) = is_binary {
                            wanted.binary.insert(output.name.clone(), is_binary);
                        }
                        request.outputs.push(output);
                        Ok(())
                    });
                    outputs.map_err(|stop| stop.within("outputs"))?;
                }
                _ => drop(cursor.skip()?),
            }
            Ok(())
        })?;
        cursor.end()?;
        if !has_inputs {
            return Err(Stop::Wrong("inputs is missing".to_owned()));
        }
        let base64_by_default = is_base64(&parameters);
        for (at, (count, mut data)) in texts {
            let input = &request.inputs[at];
            let text = if base64_by_default || is_base64(&input.parameters) { Text::Base64 } else { Text::Plain };
            self.charge(tensor::room(Datatype::Bytes, count, data.left()) as u64)?;
            let raw = tensor::read(&mut data, Datatype::Bytes, &input.shape, count, text);
            let raw = raw.map_err(|stop| of_input(stop.within(format_args!("inputs[{at}].data")), Some(&input.name)))?;
            request.raw_input_contents[at] = raw.into();
        }
        for (at, size) in sizes.into_iter().enumerate() {
            let Some(size) = size else { continue };
            let taken = binary.take(size).map_err(Stop::Wrong);
            let taken = taken.map_err(|stop| of_input(stop.within(format_args!("inputs[{at}]")), Some(&request.inputs[at].name)));
            request.raw_input_contents[at] = taken?;
        }
        if !binary.rest.is_empty() {
            return Err(Stop::Wrong(format!("{} bytes follow the last binary input: its binary_data_size is too small", binary.rest.len())));
        }
        let within = |stop: Stop| stop.within("parameters");
        wanted.binary_by_default = flag(&mut parameters, "binary_data_output").map_err(within)?.unwrap_or(false);
        let timeout_micros = timeout(&parameters).map_err(within)?;
        request.parameters = parameters;
        Ok(Parsed { timeout_micros, ..parsed })
    }

    fn parameters(&mut self, cursor: &mut Cursor<'_>) -> Result<Parameters, Stop> {
        let mut parameters = Parameters::new();
        if cursor.null()? {
            return Ok(parameters);
        }
        let read = object_ahead(cursor).and_then(|()| {
            cursor.object(|cursor, name| {
                if parameters.len() == MOST_PARAMETERS {
                    return Err(Stop::Wrong(format!(" has more than {MOST_PARAMETERS} members")));
                }
                let value = parameter(cursor).map_err(|stop| stop.within(format_args!("[{}]", Quoted::new(&name))))?;
                let text = if let Some(ParameterChoice::StringParam(text)) = &value.parameter_choice { text.len() } else { 0 };
                self.charge(weight::PARAMETER + (name.len() + text) as u64)?;
                if parameters.contains_key(&*name) {
                    return Err(Stop::Wrong(format!("[{}] is there twice", Quoted::new(&name))));
                }
                parameters.insert(name.into_owned(), value);
                Ok(())
            })
        });
        read.map(|()| parameters).map_err(|stop| stop.within("parameters"))
    }

    fn output(&mut self, cursor: &mut Cursor<'_>) -> Result<(InferRequestedOutputTensor, Option<bool>), Stop> {
        object_ahead(cursor)?;
        let (mut seen, mut name, mut parameters) = (0, None, Parameters::new());
        let read = cursor.object(|cursor, member_name| {
            match member(&["name", "parameters"], &member_name, &mut seen)? {
                "name" => name = text(cursor).map_err(|stop| stop.within("name"))?,
                "parameters" => parameters = self.parameters(cursor)?,
                _ => drop(cursor.skip()?),
            }
            Ok(())
        });
        let checked = read.and_then(|()| {
            let name = name.ok_or_else(|| "name is missing".to_owned())?;
            self.charge(weight::OUTPUT + name.len() as u64)?;
            let is_binary = flag(&mut parameters, "binary_data").and_then(|flag| supported(&parameters).map(|()| flag));
            let is_binary = is_binary.map_err(|stop| stop.within("parameters"))?;
            Ok((InferRequestedOutputTensor { name, parameters }, is_binary))
        });
        checked.map_err(|stop| stop.within("."))
    }

    /// Reads an input. Its raw bytes are empty where they come later.
    fn input<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Read<'a>, Stop> {
        object_ahead(cursor)?;
        self.charge(weight::INPUT)?;
        let mut input = Input::default();
        let mut read = cursor.object(|cursor, name| self.input_member(cursor, &name, &mut input));
        let mut later = None;
        if read.is_ok() {
            read = self.finished(&mut input, &mut later);
        }
        let Input { name, datatype_name, shape, parameters, raw, binary_size, .. } = input;
        if let Err(stop) = read {
            return Err(of_input(stop.within("."), name.as_deref()));
        }
        let tensor = InferInputTensor {
            name: name.unwrap_or_default(),
            datatype: datatype_name.unwrap_or_default(),
            shape: shape.unwrap_or_default(),
            parameters,
            contents: None,
        };
        Ok(Read { tensor, raw: raw.unwrap_or_default(), binary_size, later })
    }

    fn input_member<'a>(&mut self, cursor: &mut Cursor<'a>, name: &str, input: &mut Input<'a>) -> Result<(), Stop> {
        match member(&["name", "datatype", "shape", "parameters", "data"], name, &mut input.seen)? {
            "name" => {
                input.name = text(cursor).map_err(|stop| stop.within("name"))?;
                self.charge(input.name.as_ref().map_or(0, String::len) as u64)?;
            }
            "datatype" => input.datatype_name = text(cursor).map_err(|stop| stop.within("datatype"))?,
            "shape" => {
                let mut shape = Vec::new();
                let there = few(cursor, |cursor| {
                    let mut shows = cursor.clone();
                    let dimension = if matches!(cursor.peek(), b'-' | b'0'..=b'9') { cursor.number()?.integer() } else { None };
                    match dimension.and_then(|dimension| i64::try_from(dimension).ok()) {
                        Some(dimension) => shape.push(dimension),
                        None => return Err(Stop::Wrong(format!(" is {}, a dimension is a whole number", shown(shows.skip()?)))),
                    }
                    Ok(())
                });
                if there.map_err(|stop| stop.within("shape"))? {
                    self.charge(weight::DIMENSION * shape.len() as u64)?;
                    input.shape = Some(shape);
                }
            }
            "parameters" => input.parameters = self.parameters(cursor)?,
            "data" if cursor.peek() == b'n' => drop(cursor.null()?),
            "data" => {
                // At once where the members before it say what it is, else when they all have been read.
                match input.numbers() {
                    Some((datatype, shape)) => input.raw = Some(self.numbers(cursor, datatype, shape)?),
                    None => {
                        let start = cursor.clone();
                        cursor.skip()?;
                        input.data = Some(start.up_to(cursor));
                    }
                }
            }
            _ => drop(cursor.skip()?),
        }
        Ok(())
    }

    fn numbers(&mut self, cursor: &mut Cursor<'_>, datatype: Datatype, shape: &[i64]) -> Result<Bytes, Stop> {
        let count = tensor::elements(shape)?;
        self.charge(tensor::room(datatype, count, cursor.left()) as u64)?;
        let raw = tensor::read(cursor, datatype, shape, count, Text::Plain).map_err(|stop| stop.within("data"))?;
        Ok(raw.into())
    }

    /// What is left to do when all members of an input are known.
    fn finished<'a>(&mut self, input: &mut Input<'a>, later: &mut Option<(usize, Cursor<'a>)>) -> Result<(), Stop> {
        let missing = |member: &str| Stop::Wrong(format!("{member} is missing"));
        if input.name.is_none() {
            return Err(missing("name"));
        }
        let shape = input.shape.as_deref().ok_or_else(|| missing("shape"))?;
        let datatype_name = input.datatype_name.as_deref().ok_or_else(|| missing("datatype"))?;
        let Some(datatype) = Datatype::named(datatype_name) else {
            let known: Vec<&str> = Datatype::ALL.iter().map(|datatype| datatype.as_str()).collect();
            return Err(Stop::Wrong(format!("datatype is {}, it must be one of {}", Quoted::new(datatype_name), known.join(", "))));
        };
        supported(&input.parameters).map_err(|stop| stop.within("parameters"))?;
        let has_data = input.raw.is_some() || input.data.is_some();
        input.binary_size = match input.parameters.remove("binary_data_size").map(|size| size.parameter_choice) {
            None => None,
            Some(_) if has_data => return Err(Stop::Wrong("data is there, and the parameter binary_data_size too: send one of them".to_owned())),
            Some(Some(ParameterChoice::Int64Param(size))) if size >= 0 => Some(usize::try_from(size).unwrap_or(usize::MAX)),
            Some(_) => return Err(Stop::Wrong("parameters[\"binary_data_size\"] must be a number of bytes".to_owned())),
        };
        match (input.data.take(), input.binary_size) {
            (None, Some(_)) => drop(tensor::elements(shape)?),
            (None, None) if input.raw.is_none() => return Err(missing("data")),
            (None, None) => {}
            (Some(data), _) if datatype == Datatype::Bytes => *later = Some((tensor::elements(shape)?, data)),
            (Some(mut data), _) => input.raw = Some(self.numbers(&mut data, datatype, shape)?),
        }
        Ok(())
    }
}

/// An input as far as it has been read.
#[derive(Default)]
struct Input<'a> {
    seen: u32,
    name: Option<String>,
    datatype_name: Option<String>,
    shape: Option<Vec<i64>>,
    parameters: Parameters,
    /// The data, and nothing that follows it.
    data: Option<Cursor<'a>>,
    raw: Option<Bytes>,
    binary_size: Option<usize>,
}

impl Input<'_> {
    /// What is needed to read the data, where it is known and the data has numbers.
    fn numbers(&self) -> Option<(Datatype, &[i64])> {
        let datatype = Datatype::named(self.datatype_name.as_deref()?)?;
        datatype.width()?;
        Some((datatype, self.shape.as_deref()?))
    }
}

/// An input, and what is still to be done about its bytes.
struct Read<'a> {
    tensor: InferInputTensor,
    raw: Bytes,
    /// They are so many of those after the JSON.
    binary_size: Option<usize>,
    /// They are made of so many elements of this text.
    later: Option<(usize, Cursor<'a>)>,
}

/// What follows the JSON and is not taken yet.
struct BinaryPart {
    rest: Bytes,
    allowed: bool,
}

impl BinaryPart {
    fn take(&mut self, size: usize) -> Result<Bytes, String> {
        if !self.allowed {
            return Err(" has the parameter binary_data_size, and the header Inference-Header-Content-Length is missing".to_owned());
        }
        if size > self.rest.len() {
            return Err(format!(".parameters[\"binary_data_size\"] is {size}, the body has {} bytes left", self.rest.len()));
        }
        Ok(self.rest.split_to(size))
    }
}

/// `content_type` in the spellings that upstream takes; any other value means plain text.
fn is_base64(parameters: &Parameters) -> bool {
    match parameters.get("content_type").and_then(|value| value.parameter_choice.as_ref()) {
        Some(ParameterChoice::StringParam(kind)) => ["base64", "b64"].iter().any(|name| kind.eq_ignore_ascii_case(name)),
        _ => false,
    }
}

fn flag(parameters: &mut Parameters, name: &str) -> Result<Option<bool>, Stop> {
    match parameters.remove(name).map(|value| value.parameter_choice) {
        None => Ok(None),
        Some(Some(ParameterChoice::BoolParam(value))) => Ok(Some(value)),
        Some(_) => Err(Stop::Wrong(format!("[{name:?}] must be true or false"))),
    }
}

/// Zero is Triton's "none".
fn timeout(parameters: &Parameters) -> Result<Option<u64>, Stop> {
    match parameters.get("timeout").map(|value| &value.parameter_choice) {
        None => Ok(None),
        Some(Some(ParameterChoice::Int64Param(0))) => Ok(None),
        Some(Some(ParameterChoice::Int64Param(micros))) if *micros > 0 => Ok(Some(micros.unsigned_abs())),
        Some(_) => Err(Stop::Wrong("[\"timeout\"] must be a number of microseconds".to_owned())),
    }
}

/// Extensions that change what the data means: passing them by would give wrong answers.
fn supported(parameters: &Parameters) -> Result<(), Stop> {
    match ["classification", "shared_memory_region"].into_iter().find(|name| parameters.contains_key(*name)) {
        Some(name) => Err(Stop::Wrong(format!("[{name:?}] is not supported"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use berth_types::ByteSize;
    use half::f16;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::Value;

    use super::*;
    use crate::budget::Budget;

    fn parse(body: &Bytes, json_length: Option<usize>) -> Result<Parsed, String> {
        match read(body, json_length, &mut Budget::of(ByteSize::mib(64)).share()) {
            Ok(parsed) => Ok(parsed),
            Err(Fault::BadRequest(text)) => Err(text),
            Err(other) => panic!("{other}"),
        }
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
            assert!(fault.contains(" has more than 1024 members"), "{case}: {fault}");
        }
        let parameters = |count: usize| {
            let members: Vec<String> = (0..count).map(|at| format!("\"p{at}\":1")).collect();
            format!(r#"{{"inputs":[],"parameters":{{{}}}}}"#, members.join(","))
        };
        assert!(json(&parameters(128)).is_ok());
        let fault = json(&parameters(129)).unwrap_err();
        assert_eq!(fault, "parameters has more than 128 members");
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
        let Parsed { request, wanted, .. } = parsed;
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
    fn data_is_read_wherever_it_stands_and_names_in_any_case() {
        let members = [r#""name":"x""#, r#""datatype":"FP32""#, r#""shape":[2]"#, r#""data":[1,NaN]"#, r#""parameters":{"a":1}"#];
        let usual = json(&format!(r#"{{"inputs":[{{{}}}]}}"#, members.join(","))).unwrap();
        for first in 0..members.len() {
            let mut turned = members;
            turned.rotate_left(first);
            let body = format!(r#"{{"inputs":[{{{}}}]}}"#, turned.join(","));
            let parsed = json(&body).unwrap();
            assert_eq!(parsed.request.raw_input_contents, [[1.0f32, f32::NAN].map(f32::to_le_bytes).concat()], "{body}");
            assert_eq!((parsed.request.inputs, &parsed.wanted), (usual.request.inputs.clone(), &usual.wanted), "{body}");
        }
        let go = r#"{"Id":"7","INPUTS":[{"Name":"x","Datatype":"INT8","Shape":[1],"Data":[5],"Parameters":{"A":1,"a":2}}],"Outputs":[{"Name":"y"}]}"#;
        let request = json(go).unwrap().request;
        assert_eq!((request.id.as_str(), request.raw_input_contents[0].as_ref()), ("7", &[5u8][..]));
        assert_eq!((request.inputs[0].parameters.len(), request.outputs[0].name.as_str()), (2, "y"), "parameters have the case they have");
    }

    #[test]
    fn the_timeout_of_triton_is_read_and_passed_on() {
        for (parameters, wanted) in [
            (r#"{"timeout":250000}"#, Ok(Some(250_000))),
            (r#"{"timeout":0}"#, Ok(None)),
            ("{}", Ok(None)),
            ("null", Ok(None)),
            (r#"{"timeout":-1}"#, Err("parameters[\"timeout\"] must be a number of microseconds".to_owned())),
            (r#"{"timeout":"1s"}"#, Err("parameters[\"timeout\"] must be a number of microseconds".to_owned())),
        ] {
            let parsed = json(&format!(r#"{{"parameters":{parameters},"inputs":[]}}"#));
            if let Ok(parsed) = &parsed {
                assert_eq!(parsed.request.parameters.contains_key("timeout"), parameters.contains("timeout"));
            }
            assert_eq!(parsed.map(|parsed| parsed.timeout_micros), wanted, "{parameters}");
        }
    }

    #[test]
    fn malformed_bodies_are_refused_with_what_is_wrong_and_where() {
        let input = |rest: &str| format!(r#"{{"inputs":[{{"name":"x",{rest}}}]}}"#);
        for (body, expected) in [
            (String::new(), "the body has no JSON: send an object with \"inputs\""),
            (" \n".to_owned(), "the body has no JSON"),
            ("{".to_owned(), "the body cannot be read: expected the name of a member in quotes at line 1 column 2"),
            ("[1]".to_owned(), "the body is [1], it must be an object with \"inputs\""),
            ("{}".to_owned(), "inputs is missing"),
            ("{\"inputs\":null}".to_owned(), "inputs is missing"),
            ("{\"inputs\":[]} {}".to_owned(), "the body cannot be read: expected nothing after the value at line 1 column 15"),
            ("{\"inputs\":[],\n \"id\":+1}".to_owned(), "the body cannot be read: expected a value at line 2 column 7"),
            ("{\"inputs\":[],\"inputs\":[]}".to_owned(), "inputs is there twice"),
            ("{\"inputs\":[],\"Inputs\":[]}".to_owned(), "inputs is there twice"),
            ("{\"inputs\":[{}]}".to_owned(), "inputs[0].name is missing"),
            ("{\"inputs\":[3]}".to_owned(), "inputs[0] is 3, it must be an object"),
            ("{\"inputs\":{}}".to_owned(), "inputs is {}, it must be an array"),
            ("{\"inputs\":[],\"id\":7}".to_owned(), "id is 7, it must be a string"),
            ("{\"inputs\":[],\"parameters\":7}".to_owned(), "parameters is 7, it must be an object"),
            ("{\"inputs\":[],\"parameters\":{\"a\":[1]}}".to_owned(), "parameters[\"a\"] is [1], a parameter is a string, a boolean or a number"),
            ("{\"inputs\":[],\"parameters\":{\"a\":1e999}}".to_owned(), "parameters[\"a\"] is 1e999, that is too large for a number"),
            ("{\"inputs\":[],\"parameters\":{\"a\":1,\"a\":1}}".to_owned(), "parameters[\"a\"] is there twice"),
            ("{\"inputs\":[],\"parameters\":{\"binary_data_output\":1}}".to_owned(), "parameters[\"binary_data_output\"] must be true or false"),
            ("{\"inputs\":[],\"outputs\":[{}]}".to_owned(), "outputs[0].name is missing"),
            (
                "{\"inputs\":[],\"outputs\":[{\"name\":\"y\",\"parameters\":{\"classification\":3}}]}".to_owned(),
                "outputs[0].parameters[\"classification\"] is not supported",
            ),
            (input(r#""datatype":"FP32","data":[1]"#), "inputs[0].shape is missing (input \"x\")"),
            (input(r#""shape":[1],"data":[1]"#), "inputs[0].datatype is missing (input \"x\")"),
            (input(r#""datatype":"FP32","shape":[1]"#), "inputs[0].data is missing (input \"x\")"),
            (input(r#""datatype":"FP32","shape":[1],"data":null"#), "inputs[0].data is missing"),
            (input(r#""datatype":"FP32","shape":[1],"data":[1],"data":[1]"#), "inputs[0].data is there twice"),
            (input(r#""datatype":"FLOAT","shape":[1],"data":[1]"#), "inputs[0].datatype is \"FLOAT\", it must be one of BOOL, UINT8,"),
            (input(r#""datatype":7,"shape":[1],"data":[1]"#), "inputs[0].datatype is 7, it must be a string"),
            (input(r#""datatype":"FP32","shape":[2,1.5],"data":[1]"#), "inputs[0].shape[1] is 1.5, a dimension is a whole number"),
            (input(r#""datatype":"FP32","shape":[-1],"data":[1]"#), "inputs[0].shape [-1] has the dimension -1, it must not be negative"),
            (
                input(r#""datatype":"INT8","shape":[1],"data":[300]"#),
                "inputs[0].data[0] is 300, INT8 takes whole numbers from -128 to 127 (input \"x\")",
            ),
            (input(r#""data":[[1,2,3],[4,"a",6]],"datatype":"FP32","shape":[2,3]"#), "inputs[0].data[1][1] is \"a\", FP32 takes numbers"),
            (
                input(r#""datatype":"FP32","shape":[2,3],"data":[[1,2,3],[4,5]]"#),
                "inputs[0].data[1] has 2 members, shape [2, 3] takes 3 (input \"x\")",
            ),
            (
                input(r#""datatype":"BYTES","shape":[2],"data":["a",1]"#),
                "inputs[0].data[1] is 1, BYTES takes strings and arrays of bytes (input \"x\")",
            ),
            (input(r#""datatype":"FP32","shape":[1],"data":[nan]"#), "the body cannot be read: expected a value at line 1"),
            (input(r#""datatype":"FP32","shape":[1],"data":[.5]"#), "the body cannot be read: expected a value at line 1"),
            (
                input(r#""datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}"#),
                "inputs[0] has the parameter binary_data_size, and the header Inference-Header-Content-Length is missing (input \"x\")",
            ),
            (
                input(r#""datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#),
                "inputs[0].data is there, and the parameter binary_data_size too: send one of them",
            ),
            (
                input(r#""datatype":"FP32","shape":[1],"parameters":{"shared_memory_region":"r"}"#),
                "inputs[0].parameters[\"shared_memory_region\"] is not supported",
            ),
            (format!(r#"{{"more":{}}}"#, "[".repeat(100_000)), "expected at most 128 arrays and objects within each other at line 1 column "),
        ] {
            let fault = json(&body).expect_err(&body);
            assert!(fault.contains(expected), "{body}: {fault}");
        }
        let surrogate = r#"{"aaaaaaé":0,"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["\ud800"]}]}"#;
        let fault = json(surrogate).unwrap_err();
        assert_eq!(fault, "the body cannot be read: expected surrogates in pairs in a string at line 1 column 84");
        let fault = parse(&Bytes::from_static(b"{\"id\":\"\xff\"}"), None).unwrap_err();
        assert_eq!(fault, "the body cannot be read: byte 7 of its JSON is no UTF-8");
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
            (whole(&[0; 5]), json.len(), "inputs[2].parameters[\"binary_data_size\"] is 2, the body has 1 bytes left (input \"c\")"),
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
        assert_eq!(fault, "inputs[0].parameters[\"binary_data_size\"] must be a number of bytes (input \"a\")");
    }

    /// An input in JSON, its members in some order, and its raw bytes as a reader of `Value` makes them.
    #[derive(Clone, Debug)]
    struct Sample {
        text: String,
        /// Bytes after the JSON.
        binary: Option<Vec<u8>>,
    }

    /// What a reader makes of an input that knows nothing but `Value`s.
    fn naive(input: &Value) -> Vec<u8> {
        fn flat(value: &Value) -> Vec<Value> {
            match value {
                Value::Array(members) => members.iter().flat_map(flat).collect(),
                other => vec![other.clone()],
            }
        }
        let bytes = |value: Value| -> Vec<u8> {
            match input["datatype"].as_str().unwrap() {
                "BOOL" => vec![u8::from(value.as_bool().unwrap())],
                "UINT8" => u8::try_from(value.as_u64().unwrap()).unwrap().to_le_bytes().into(),
                "INT16" => i16::try_from(value.as_i64().unwrap()).unwrap().to_le_bytes().into(),
                "INT64" => value.as_i64().unwrap().to_le_bytes().into(),
                "UINT64" => value.as_u64().unwrap().to_le_bytes().into(),
                "FP16" => f16::from_f64(value.as_f64().unwrap()).to_le_bytes().into(),
                "FP32" => (value.as_f64().unwrap() as f32).to_le_bytes().into(),
                "FP64" => value.as_f64().unwrap().to_le_bytes().into(),
                "BYTES" => {
                    let text = value.as_str().unwrap().as_bytes();
                    [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text].concat()
                }
                other => panic!("{other}"),
            }
        };
        flat(&input["data"]).into_iter().flat_map(bytes).collect()
    }

    fn element(datatype: &str, bits: u64) -> String {
        match datatype {
            "BOOL" => bits.is_multiple_of(2).to_string(),
            "UINT8" => (bits as u8).to_string(),
            "INT16" => (bits as i16).to_string(),
            "INT64" => bits.cast_signed().to_string(),
            "UINT64" => bits.to_string(),
            "FP16" => format!("{}e-{}", bits as u8, bits >> 8 & 3),
            "FP32" => [f64::from(bits as u16) / 3e2, f64::from(bits as u32) / 7e9, bits as f64][bits as usize % 3].to_string(),
            "FP64" => format!("{:?}", bits as f64 / 1e5),
            _ => serde_json::to_string(&["", "a", "é\n", "\u{1}\"", "🚢"][bits as usize % 5]).unwrap(),
        }
    }

    fn samples() -> impl Strategy<Value = Sample> {
        let datatypes = vec!["BOOL", "UINT8", "INT16", "INT64", "UINT64", "FP16", "FP32", "FP64", "BYTES"];
        let numbers = prop::collection::vec(any::<u64>(), 12);
        (prop::sample::select(datatypes), 0usize..4, 0usize..4, numbers, any::<(bool, bool, usize)>()).prop_map(
            |(datatype, rows, columns, bits, (is_nested, is_binary, turn))| {
                let elements: Vec<String> = bits[..rows * columns].iter().map(|bits| element(datatype, *bits)).collect();
                let is_binary = is_binary && datatype == "UINT8";
                let data = match is_nested && rows * columns > 0 {
                    true => format!("[{}]", elements.chunks(columns).map(|row| format!("[ {} ]", row.join(" ,"))).collect::<Vec<_>>().join(",\n")),
                    false => format!("[{}]", elements.join(", ")),
                };
                let data = if is_binary { format!(r#""parameters":{{"binary_data_size":{}}}"#, rows * columns) } else { format!("\"data\":{data}") };
                let mut members = [
                    "\"name\":\"x\"".to_owned(),
                    format!("\"datatype\":\"{datatype}\""),
                    format!("\"shape\":[{rows},{columns}]"),
                    data,
                    "\"else\":[{\"a\":[null,1e400]}]".to_owned(),
                ];
                members.rotate_left(turn % 5);
                let binary = is_binary.then(|| bits[..rows * columns].iter().map(|bits| *bits as u8).collect());
                Sample { text: format!("{{{}}}", members.join(" , ")), binary }
            },
        )
    }

    fn body(samples: &[Sample]) -> (String, Vec<u8>) {
        let inputs: Vec<&str> = samples.iter().map(|sample| sample.text.as_str()).collect();
        let binary = samples.iter().flat_map(|sample| sample.binary.clone().unwrap_or_default()).collect();
        (format!("{{\"id\":\"1\",\"inputs\":[{}]}}", inputs.join(",")), binary)
    }

    fn config(cases: u32) -> ProptestConfig {
        ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(17), ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(config(4000))]

        #[test]
        fn a_request_is_what_a_reader_of_values_makes_of_it(samples in prop::collection::vec(samples(), 0..4)) {
            let (json, binary) = body(&samples);
            let parsed = parse(&Bytes::from([json.as_bytes(), &binary].concat()), Some(json.len()));
            let values: Value = serde_json::from_str(&json.replace("1e400", "1")).unwrap();
            let inputs = values["inputs"].as_array().unwrap();
            let wanted: Vec<Vec<u8>> =
                inputs.iter().zip(&samples).map(|(input, sample)| sample.binary.clone().unwrap_or_else(|| naive(input))).collect();
            let request = parsed.map_err(|fault| TestCaseError::fail(format!("{json}: {fault}")))?.request;
            prop_assert_eq!(request.raw_input_contents, wanted, "{}", json);
            for (tensor, input) in request.inputs.iter().zip(inputs) {
                let shape: Vec<i64> = input["shape"].as_array().unwrap().iter().map(|dimension| dimension.as_i64().unwrap()).collect();
                prop_assert_eq!((tensor.datatype.as_str(), &tensor.shape), (input["datatype"].as_str().unwrap(), &shape));
            }
        }

        #[test]
        fn what_is_broken_is_refused_and_never_worse(
            samples in prop::collection::vec(samples(), 1..3),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, prop::sample::select(&b"[]{},:\"\\0-.eE5 \xc3ntf"[..])), 1..5),
        ) {
            let (json, binary) = body(&samples);
            let mut text = json.into_bytes();
            for (at, kind, byte) in edits {
                if text.is_empty() {
                    break;
                }
                let at = at.index(text.len());
                match kind {
                    0 => drop(text.remove(at)),
                    1 => text.insert(at, byte),
                    2 => text[at] = byte,
                    _ => text.truncate(at),
                }
            }
            let length = text.len();
            let is_json = serde_json::from_slice::<&serde_json::value::RawValue>(&text).is_ok();
            text.extend_from_slice(&binary);
            let read = parse(&Bytes::from(text), Some(length));
            prop_assert!(read.is_err() || is_json);
        }

        #[test]
        fn a_surrogate_without_its_other_half_is_told_where_it_stands(before in "[aé🚢]{0,12}", lines in 0usize..3, data_first: bool) {
            let data = r#""data":[["é"],["\ud800"]]"#;
            let rest = r#""name":"x","datatype":"BYTES","shape":[2,1]"#;
            let members = if data_first { [data, rest] } else { [rest, data] };
            let body = format!("{{\"{before}\":0,{}\"inputs\":[{{{}}}]}}", "\n".repeat(lines), members.join(","));
            let start = body.rfind('\n').map_or(0, |end| end + 1);
            let column = body.find("\\ud800\"").unwrap() + "\\ud800\"".len() - start + 1;
            let told = format!("expected surrogates in pairs in a string at line {} column {column}", lines + 1);
            prop_assert_eq!(json(&body), Err(format!("the body cannot be read: {told}")), "{}", body);
        }

        #[test]
        fn no_length_of_the_json_panics(samples in prop::collection::vec(samples(), 0..3), length in 0usize..2000) {
            let (json, binary) = body(&samples);
            let whole = Bytes::from([json.as_bytes(), &binary].concat());
            let read = parse(&whole, Some(length));
            prop_assert_eq!(read.is_ok(), length == json.len(), "{}", json);
        }
    }
}
