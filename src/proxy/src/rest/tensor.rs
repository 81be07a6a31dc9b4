//! JSON arrays to raw tensor bytes and back. Raw: little-endian, row-major; each BYTES element after its length in four
//! bytes.
//!
//! Each number is converted once, from its text straight into its bytes. The text is known to be JSON by then: whoever
//! cut it out of the body has checked that.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use half::{bf16, f16};

/// The datatypes of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    pub(super) const ALL: [Datatype; 14] = [
        Datatype::Bool,
        Datatype::Uint8,
        Datatype::Uint16,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp16,
        Datatype::Bf16,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bytes,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp16 => "FP16",
            Datatype::Bf16 => "BF16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }

    pub(super) fn named(name: &str) -> Option<Datatype> {
        Datatype::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// Bytes of one element; `None` for BYTES, whose elements differ.
    pub(super) const fn width(self) -> Option<usize> {
        match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => Some(1),
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => Some(2),
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => Some(4),
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => Some(8),
            Datatype::Bytes => None,
        }
    }
}

/// How many elements `shape` holds.
///
/// # Errors
/// A negative dimension, or more elements than can be counted.
pub(super) fn elements(shape: &[i64]) -> Result<usize, String> {
    if let Some(negative) = shape.iter().find(|dim| **dim < 0) {
        return Err(format!("shape {shape:?} has the dimension {negative}, it must not be negative"));
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let count = shape.iter().try_fold(1usize, |count, dim| count.checked_mul(usize::try_from(*dim).ok()?));
    count.ok_or_else(|| format!("shape {shape:?} has more elements than can be counted"))
}

/// How the elements of a BYTES tensor stand in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The string's UTF-8.
    Plain,
    /// The string is base64.
    Base64,
}

/// The most bytes that [`read`] can make of `json`. An element takes two characters at least, so a small body cannot ask
/// for much memory.
pub(super) fn room(datatype: Datatype, count: usize, json: &str) -> usize {
    let most = count.min(json.len() / 2 + 1);
    match datatype.width() {
        Some(width) => most * width,
        None => most * 4 + json.len(),
    }
}

/// The raw bytes of the JSON array `json`: flat, or nested exactly as `shape` says.
///
/// # Errors
/// What is wrong and with which element; the caller adds the tensor's name.
pub(super) fn read(datatype: Datatype, shape: &[i64], text: Text, json: &str) -> Result<Vec<u8>, String> {
    let count = elements(shape)?;
    let mut raw = Vec::with_capacity(room(datatype, count, json));
    let out = &mut raw;
    macro_rules! whole {
        ($int:ty) => {
            walk(json, shape, count, |element| match element.parse::<$int>() {
                Ok(number) => {
                    out.extend_from_slice(&number.to_le_bytes());
                    Ok(())
                }
                Err(_) => Err(not_whole(element, datatype, <$int>::MIN, <$int>::MAX)),
            })
        };
    }
    macro_rules! real {
        ($parse:expr, $from_f64:expr) => {
            walk(json, shape, count, |element| {
                let number = if element.starts_with('"') { special(element).map($from_f64) } else { $parse(element) };
                match number {
                    Some(number) => {
                        out.extend_from_slice(&number.to_le_bytes());
                        Ok(())
                    }
                    None => Err(not_real(element, datatype)),
                }
            })
        };
    }
    match datatype {
        Datatype::Bool => walk(json, shape, count, |element| {
            out.push(match element {
                "true" => 1,
                "false" => 0,
                _ => return Err(format!("is {}, BOOL takes true and false", shown(element))),
            });
            Ok(())
        }),
        Datatype::Uint8 => whole!(u8),
        Datatype::Uint16 => whole!(u16),
        Datatype::Uint32 => whole!(u32),
        Datatype::Uint64 => whole!(u64),
        Datatype::Int8 => whole!(i8),
        Datatype::Int16 => whole!(i16),
        Datatype::Int32 => whole!(i32),
        Datatype::Int64 => whole!(i64),
        // Half floats are rounded once, from the nearest f64; f32 and f64 are the nearest to the text itself.
        Datatype::Fp16 => real!(|text: &str| text.parse().ok().map(f16::from_f64).filter(|number| number.is_finite()), f16::from_f64),
        Datatype::Bf16 => real!(|text: &str| text.parse().ok().map(bf16::from_f64).filter(|number| number.is_finite()), bf16::from_f64),
        Datatype::Fp32 => real!(|text: &str| text.parse().ok().filter(|number: &f32| number.is_finite()), |special| special as f32),
        Datatype::Fp64 => real!(|text: &str| text.parse().ok().filter(|number: &f64| number.is_finite()), std::convert::identity),
        Datatype::Bytes => walk(json, shape, count, |element| string(out, element, text)),
    }?;
    Ok(raw)
}

/// The numbers that JSON has no form for, as strings; the same ones are written.
fn special(element: &str) -> Option<f64> {
    match element {
        "\"NaN\"" => Some(f64::NAN),
        "\"Infinity\"" => Some(f64::INFINITY),
        "\"-Infinity\"" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn not_whole(element: &str, datatype: Datatype, least: impl std::fmt::Display, most: impl std::fmt::Display) -> String {
    format!("is {}, {} takes whole numbers from {least} to {most}", shown(element), datatype.as_str())
}

fn not_real(element: &str, datatype: Datatype) -> String {
    let name = datatype.as_str();
    if element.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        format!("is {}, that is too large for {name}", shown(element))
    } else {
        format!("is {}, {name} takes numbers, \"NaN\", \"Infinity\" and \"-Infinity\"", shown(element))
    }
}

/// An element as it stands in the body, cut to a length that fits in a message.
fn shown(element: &str) -> String {
    const LONGEST: usize = 60;
    match element.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &element[..end]),
        None => element.to_owned(),
    }
}

fn string(out: &mut Vec<u8>, element: &str, text: Text) -> Result<(), String> {
    let Some(inside) = element.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(format!("is {}, BYTES takes strings", shown(element)));
    };
    let unescaped;
    let plain = if inside.contains('\\') {
        unescaped = serde_json::from_str::<String>(element).map_err(|fault| format!("is {}, that is no text: {fault}", shown(element)))?;
        unescaped.as_str()
    } else {
        inside
    };
    let decoded;
    let bytes = match text {
        Text::Plain => plain.as_bytes(),
        Text::Base64 => {
            decoded = BASE64_STANDARD.decode(plain).map_err(|fault| format!("is {}, that is not base64: {fault}", shown(element)))?;
            &decoded
        }
    };
    let length = u32::try_from(bytes.len()).map_err(|_| format!("has {} bytes, a BYTES element takes at most 4 GiB", bytes.len()))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Hands every element of the array `json` to `each`, in order, as the text it has there. Checks the nesting against
/// `shape` and that there are `count` elements, neither more nor fewer.
fn walk(json: &str, shape: &[i64], count: usize, mut each: impl FnMut(&str) -> Result<(), String>) -> Result<(), String> {
    let bytes = json.as_bytes();
    let nested = match bytes.strip_prefix(b"[").map(<[u8]>::trim_ascii_start) {
        None => return Err(format!("data is {}, it must be an array", shown(json))),
        Some(rest) => rest.first() == Some(&b'['),
    };
    let rank = shape.len();
    let depth_of_elements = if nested { rank } else { 1 };
    if nested && rank < 2 {
        return Err(format!("data is nested, shape {shape:?} takes a flat array"));
    }
    // How many members the open arrays have so far, the outermost first.
    let mut open: Vec<i64> = Vec::with_capacity(depth_of_elements);
    let (mut at, mut seen) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b',' | b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            b'[' => {
                if let Some(members) = open.last_mut() {
                    *members += 1;
                }
                if open.len() == depth_of_elements {
                    return Err(match nested {
                        true => format!("data is nested deeper than shape {shape:?}"),
                        false => format!("element {seen} is an array among elements: data is either flat or nested as shape {shape:?}"),
                    });
                }
                open.push(0);
                at += 1;
            }
            b']' => {
                let members = open.pop().unwrap_or(0);
                if nested && members != shape[open.len()] {
                    let level = open.len();
                    return Err(format!("an array at depth {} has {members} members, shape {shape:?} has {} there", level + 1, shape[level]));
                }
                at += 1;
            }
            _ => {
                if open.len() != depth_of_elements {
                    return Err(format!("element {seen} is {} arrays deep, shape {shape:?} takes {depth_of_elements} or a flat array", open.len()));
                }
                if seen == count {
                    return Err(format!("data has more than {count} elements, shape {shape:?} takes {count}"));
                }
                if let Some(members) = open.last_mut() {
                    *members += 1;
                }
                let end = at + length(&bytes[at..]);
                each(&json[at..end]).map_err(|fault| format!("element {seen} {fault}"))?;
                seen += 1;
                at = end;
            }
        }
    }
    if seen == count { Ok(()) } else { Err(format!("data has {seen} elements, shape {shape:?} takes {count}")) }
}

/// Length of the scalar or object that `bytes` start with.
fn length(bytes: &[u8]) -> usize {
    match bytes[0] {
        b'"' => {
            let mut at = 1;
            while at < bytes.len() {
                match bytes[at] {
                    b'"' => return at + 1,
                    b'\\' => at += 2,
                    _ => at += 1,
                }
            }
            bytes.len()
        }
        // An object is no element of any tensor: all the rest may as well belong to it.
        b'{' => bytes.len(),
        _ => bytes.iter().position(|byte| matches!(byte, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(bytes.len()),
    }
}

/// Writes the elements of `raw` as a flat JSON array. BYTES are strings when `text` is plain.
///
/// # Errors
/// `raw` does not hold the elements of a tensor with `count` elements.
pub(super) fn write(out: &mut String, datatype: Datatype, count: usize, text: Text, raw: &[u8]) -> Result<(), String> {
    if let Some(width) = datatype.width()
        && raw.len() != count.saturating_mul(width)
    {
        return Err(format!("{} bytes for {count} elements of {}", raw.len(), datatype.as_str()));
    }
    macro_rules! numbers {
        ($number:ty, $write:expr) => {{
            let (elements, _) = raw.as_chunks::<{ size_of::<$number>() }>();
            list(out, elements.iter().map(|bytes| <$number>::from_le_bytes(*bytes)), $write);
        }};
    }
    match datatype {
        Datatype::Bool => list(out, raw.iter(), |out, byte| out.push_str(if *byte == 0 { "false" } else { "true" })),
        Datatype::Uint8 => numbers!(u8, display),
        Datatype::Uint16 => numbers!(u16, display),
        Datatype::Uint32 => numbers!(u32, display),
        Datatype::Uint64 => numbers!(u64, display),
        Datatype::Int8 => numbers!(i8, display),
        Datatype::Int16 => numbers!(i16, display),
        Datatype::Int32 => numbers!(i32, display),
        Datatype::Int64 => numbers!(i64, display),
        Datatype::Fp16 => numbers!(f16, |out, number| real(out, number.to_f32())),
        Datatype::Bf16 => numbers!(bf16, |out, number| real(out, number.to_f32())),
        Datatype::Fp32 => numbers!(f32, real),
        Datatype::Fp64 => numbers!(f64, real),
        Datatype::Bytes => {
            let elements = strings(raw, count)?;
            list(out, elements.into_iter(), |out, bytes| match (text, std::str::from_utf8(bytes)) {
                // Only control characters, quotes and backslashes are escaped, so that text stays readable.
                (Text::Plain, Ok(text)) => quoted(out, text),
                _ => {
                    out.push('"');
                    BASE64_STANDARD.encode_string(bytes, out);
                    out.push('"');
                }
            });
        }
    }
    Ok(())
}

/// The elements of a raw BYTES tensor.
///
/// # Errors
/// A length that leads outside, or not `count` elements.
pub(super) fn strings(raw: &[u8], count: usize) -> Result<Vec<&[u8]>, String> {
    let mut elements = Vec::with_capacity(count.min(raw.len() / 4));
    let mut rest = raw;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (element, after) = after
            .split_at_checked(length)
            .ok_or_else(|| format!("element {} of BYTES says that it has {length} bytes, {} are left", elements.len(), after.len()))?;
        elements.push(element);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes after the last element of BYTES", rest.len()));
    }
    if elements.len() == count { Ok(elements) } else { Err(format!("{} elements of BYTES instead of {count}", elements.len())) }
}

fn list<T>(out: &mut String, elements: impl Iterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    let mut separator = '[';
    for element in elements {
        out.push(separator);
        write(out, element);
        separator = ',';
    }
    if separator == '[' {
        out.push('[');
    }
    out.push(']');
}

fn display(out: &mut String, number: impl std::fmt::Display) {
    let _ = write!(out, "{number}"); // writing to a String cannot fail
}

/// The shortest text that reads back as the same number; integral ones without a fraction, and an exponent only for very
/// small and very large ones, as upstream writes them.
fn real<T: Copy + Into<f64> + std::fmt::Display + std::fmt::LowerExp>(out: &mut String, number: T) {
    let wide: f64 = number.into();
    // Compared as f32, so that the f32 next to 1e-6 is on the same side as 1e-6 itself.
    let rough = wide.abs() as f32;
    let _ = if wide.is_nan() {
        write!(out, "\"NaN\"")
    } else if wide.is_infinite() {
        write!(out, "\"{}Infinity\"", if wide < 0.0 { "-" } else { "" })
    } else if wide == 0.0 || (1e-6..1e21).contains(&rough) {
        write!(out, "{number}")
    } else {
        write!(out, "{number:e}")
    };
}

/// Writes `text` as a JSON string.
pub(super) fn quoted(out: &mut String, text: &str) {
    match serde_json::to_string(text) {
        Ok(json) => out.push_str(&json),
        Err(_) => out.push_str("\"\""), // a str is always a JSON string
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::{Value, json};

    use super::*;

    /// A tensor in three forms: raw bytes, and its elements as JSON values.
    #[derive(Clone, Debug)]
    struct Sample {
        datatype: Datatype,
        shape: Vec<i64>,
        raw: Vec<u8>,
        elements: Vec<Value>,
    }

    /// A number as a JSON value that holds it exactly, or as one of the strings.
    fn number(exact: f64) -> Value {
        if exact.is_nan() {
            json!("NaN")
        } else if exact.is_infinite() {
            json!(if exact > 0.0 { "Infinity" } else { "-Infinity" })
        } else {
            json!(exact)
        }
    }

    /// Raw bytes and value of an element made of 64 random bits.
    fn element(datatype: Datatype, bits: u64) -> (Vec<u8>, Value) {
        macro_rules! int {
            ($int:ty) => {{
                let number = bits as $int;
                (number.to_le_bytes().to_vec(), json!(number))
            }};
        }
        macro_rules! real {
            ($number:expr, $nan:expr) => {{
                let number = if $number.is_nan() { $nan } else { $number };
                (number.to_le_bytes().to_vec(), self::number(f64::from(number)))
            }};
        }
        match datatype {
            Datatype::Bool => (vec![u8::from(bits & 1 == 1)], json!(bits & 1 == 1)),
            Datatype::Uint8 => int!(u8),
            Datatype::Uint16 => int!(u16),
            Datatype::Uint32 => int!(u32),
            Datatype::Uint64 => int!(u64),
            Datatype::Int8 => int!(i8),
            Datatype::Int16 => int!(i16),
            Datatype::Int32 => int!(i32),
            Datatype::Int64 => int!(i64),
            Datatype::Fp16 => real!(f16::from_bits(bits as u16), f16::from_f64(f64::NAN)),
            Datatype::Bf16 => real!(bf16::from_bits(bits as u16), bf16::from_f64(f64::NAN)),
            Datatype::Fp32 => real!(f32::from_bits(bits as u32), f32::NAN),
            Datatype::Fp64 => real!(f64::from_bits(bits), f64::NAN),
            Datatype::Bytes => {
                let alphabet = ['a', '"', '\\', '/', '\n', '\u{1}', 'ü', '漢', '🚢', ']', ',', ' '];
                let text: String = (0..bits % 7).map(|at| alphabet[(bits >> (8 + 4 * at)) as usize % alphabet.len()]).collect();
                let mut raw = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
                raw.extend_from_slice(text.as_bytes());
                (raw, json!(text))
            }
        }
    }

    fn samples() -> impl Strategy<Value = Sample> {
        let shapes = prop::collection::vec(0i64..5, 0..5);
        (prop::sample::select(&Datatype::ALL[..]), shapes, prop::collection::vec(any::<u64>(), 625)).prop_map(|(datatype, shape, bits)| {
            let (raw, elements): (Vec<Vec<u8>>, Vec<Value>) =
                bits.into_iter().take(super::elements(&shape).unwrap()).map(|bits| element(datatype, bits)).unzip();
            Sample { datatype, shape, raw: raw.concat(), elements }
        })
    }

    /// The elements as arrays within arrays.
    fn nested(elements: &[Value], shape: &[i64]) -> Value {
        match shape {
            [] | [_] => Value::Array(elements.to_vec()),
            [outer, inner @ ..] => {
                let each = elements.len() / usize::try_from(*outer).unwrap().max(1);
                Value::Array((0..*outer as usize).map(|at| nested(&elements[at * each..(at + 1) * each], inner)).collect())
            }
        }
    }

    fn config() -> ProptestConfig {
        ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: RngSeed::Fixed(3), ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn what_serde_json_writes_is_read_into_the_same_bytes_flat_or_nested(sample in samples(), pretty in any::<bool>()) {
            let Sample { datatype, shape, raw, elements } = sample;
            for value in [Value::Array(elements.clone()), nested(&elements, &shape)] {
                let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
                let got = read(datatype, &shape, Text::Plain, &text);
                prop_assert_eq!(got.as_ref(), Ok(&raw), "{:?} {:?} {}", datatype, shape, text);
            }
        }

        #[test]
        fn what_is_written_is_json_of_the_same_elements_and_reads_back(sample in samples()) {
            let Sample { datatype, shape, raw, elements } = sample;
            let mut text = String::new();
            write(&mut text, datatype, elements.len(), Text::Plain, &raw).unwrap();
            let values: Vec<Value> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(values.len(), elements.len());
            for (value, element) in values.iter().zip(&elements) {
                // serde_json reads the last digit of an f64 loosely, so numbers with a fraction are compared below only.
                let same = value == element || (value.is_number() && element.is_f64());
                prop_assert!(same, "{} is not {}", value, element);
            }
            prop_assert_eq!(read(datatype, &shape, Text::Plain, &text), Ok(raw));
        }

        #[test]
        fn bytes_of_any_kind_survive_base64(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8)) {
            let raw: Vec<u8> = elements.iter().flat_map(|element| [&(element.len() as u32).to_le_bytes()[..], element].concat()).collect();
            let mut text = String::new();
            write(&mut text, Datatype::Bytes, elements.len(), Text::Base64, &raw).unwrap();
            prop_assert_eq!(read(Datatype::Bytes, &[elements.len() as i64], Text::Base64, &text), Ok(raw));
        }

        #[test]
        fn no_json_and_no_shape_panics(text in "(\\[[-0-9a\",\\[\\] .e\\\\]{0,30})|.{0,10}", shape in prop::collection::vec(-2i64..4, 0..4)) {
            if serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok() {
                for datatype in Datatype::ALL {
                    let _ = read(datatype, &shape, Text::Plain, &text);
                }
            }
        }
    }

    #[test]
    fn numbers_print_as_short_as_they_can_be() {
        let mut text = String::new();
        let raw: Vec<u8> = [3.0f32, 0.37, -0.0, 1e-6, 1e-7, 1e20, 1e21, f32::NAN, f32::NEG_INFINITY].into_iter().flat_map(f32::to_le_bytes).collect();
        write(&mut text, Datatype::Fp32, 9, Text::Plain, &raw).unwrap();
        assert_eq!(text, "[3,0.37,-0,0.000001,1e-7,100000000000000000000,1e21,\"NaN\",\"-Infinity\"]");
        text.clear();
        write(&mut text, Datatype::Uint8, 3, Text::Plain, &[1, 2, 250]).unwrap();
        assert_eq!(text, "[1,2,250]");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        for (datatype, shape, json, expected) in [
            (Datatype::Int8, &[2][..], "[1,300]", "element 1 is 300, INT8 takes whole numbers from -128 to 127"),
            (Datatype::Uint8, &[1], "[-1]", "element 0 is -1, UINT8 takes whole numbers from 0 to 255"),
            (Datatype::Uint64, &[1], "[18446744073709551616]", "element 0 is 18446744073709551616, UINT64 takes"),
            (Datatype::Int64, &[1], "[1.5]", "element 0 is 1.5, INT64 takes whole numbers"),
            (Datatype::Int64, &[1], "[1e3]", "element 0 is 1e3, INT64 takes whole numbers"),
            (Datatype::Int32, &[1], "[\"1\"]", "element 0 is \"1\", INT32 takes whole numbers"),
            (Datatype::Int32, &[1], "[{\"a\":[1]}]", "element 0 is {\"a\":[1]}], INT32 takes whole numbers"),
            (Datatype::Bool, &[1], "[1]", "element 0 is 1, BOOL takes true and false"),
            (Datatype::Fp32, &[1], "[1e39]", "element 0 is 1e39, that is too large for FP32"),
            (Datatype::Fp16, &[1], "[65520]", "element 0 is 65520, that is too large for FP16"),
            (Datatype::Fp64, &[1], "[-1e999]", "element 0 is -1e999, that is too large for FP64"),
            (Datatype::Fp32, &[1], "[null]", "element 0 is null, FP32 takes numbers, \"NaN\""),
            (Datatype::Fp32, &[1], "[\"nan\"]", "element 0 is \"nan\", FP32 takes numbers, \"NaN\""),
            (Datatype::Bytes, &[1], "[1]", "element 0 is 1, BYTES takes strings"),
            (Datatype::Bytes, &[1], r#"["\ud800"]"#, r#"element 0 is "\ud800", that is no text"#),
            (Datatype::Fp32, &[3], "[1,2]", "data has 2 elements, shape [3] takes 3"),
            (Datatype::Fp32, &[1], "[1,2]", "data has more than 1 elements, shape [1] takes 1"),
            (Datatype::Fp32, &[], "[]", "data has 0 elements, shape [] takes 1"),
            (Datatype::Fp32, &[1], "7", "data is 7, it must be an array"),
            (Datatype::Fp32, &[2], "[[1,2]]", "data is nested, shape [2] takes a flat array"),
            (Datatype::Fp32, &[2, 2], "[[1,2,3],[4]]", "an array at depth 2 has 3 members, shape [2, 2] has 2 there"),
            (Datatype::Fp32, &[2, 2], "[[1,2],[3,4],[]]", "an array at depth 2 has 0 members"),
            (Datatype::Fp32, &[2, 2], "[[1,2]]", "an array at depth 1 has 1 members, shape [2, 2] has 2 there"),
            (Datatype::Fp32, &[2, 2], "[[1,2],3,4]", "element 2 is 1 arrays deep, shape [2, 2] takes 2 or a flat array"),
            (Datatype::Fp32, &[2, 2], "[1,2,[3,4]]", "element 2 is an array among elements"),
            (Datatype::Fp32, &[2, 2], "[[[1],[2]],[3,4]]", "data is nested deeper than shape [2, 2]"),
            (Datatype::Fp32, &[-1, 2], "[]", "shape [-1, 2] has the dimension -1, it must not be negative"),
            (Datatype::Fp32, &[i64::MAX, 3], "[]", "more elements than can be counted"),
            (Datatype::Fp32, &[i64::MAX], "[1]", "data has 1 elements, shape [9223372036854775807] takes 9223372036854775807"),
        ] {
            let fault = read(datatype, shape, Text::Plain, json).expect_err(json);
            assert!(fault.contains(expected), "{json}: {fault}");
        }
        let fault = read(Datatype::Bytes, &[1], Text::Base64, "[\"a\"]").unwrap_err();
        assert!(fault.starts_with("element 0 is \"a\", that is not base64"), "{fault}");
    }

    #[test]
    fn answers_that_do_not_fit_their_shape_are_noticed() {
        let mut text = String::new();
        for (datatype, count, raw, expected) in [
            (Datatype::Fp32, 2, &[0; 7][..], "7 bytes for 2 elements of FP32"),
            (Datatype::Fp32, usize::MAX, &[0; 8], "8 bytes for"),
            (Datatype::Bytes, 1, &[5, 0, 0, 0, b'a'], "element 0 of BYTES says that it has 5 bytes, 1 are left"),
            (Datatype::Bytes, 1, &[0, 0], "2 bytes after the last element of BYTES"),
            (Datatype::Bytes, 2, &[0, 0, 0, 0], "1 elements of BYTES instead of 2"),
        ] {
            let fault = write(&mut text, datatype, count, Text::Plain, raw).expect_err(expected);
            assert!(fault.starts_with(expected), "{fault}");
        }
    }
}
