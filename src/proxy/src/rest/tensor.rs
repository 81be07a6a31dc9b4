//! JSON arrays to raw tensor bytes and back. Raw: little-endian, row-major; each BYTES element after its length in four
//! bytes.
//!
//! Each number is converted once, from its text straight into its bytes. Faults begin with the place below `data`, such as
//! `[3][2]`.

use std::io::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use half::{bf16, f16};
use serde::Serialize;

use super::json::{Cursor, Number, Stop};

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

/// The most bytes that [`read`] can make of `left` bytes of JSON. An element takes two characters at least, so a small
/// body cannot ask for much memory.
pub(super) fn room(datatype: Datatype, count: usize, left: usize) -> usize {
    let most = count.min(left / 2 + 1);
    match datatype.width() {
        Some(width) => most * width,
        None => most * 4 + left,
    }
}

/// The raw bytes of the array that comes next: flat, or nested exactly as `shape` says, which has `count` elements.
///
/// # Errors
/// What is wrong and where; the caller adds the path to the array.
pub(super) fn read(cursor: &mut Cursor<'_>, datatype: Datatype, shape: &[i64], count: usize, text: Text) -> Result<Vec<u8>, Stop> {
    if cursor.peek() != b'[' {
        return Err(format!(" is {}, it must be an array", shown(cursor.skip()?)).into());
    }
    let mut raw = Vec::with_capacity(room(datatype, count, cursor.left()));
    let out = &mut raw;
    let (depth, first) = cursor.openings();
    let form = Form { shape, count, nested: depth > 1 && shape.len() > 1 };
    macro_rules! whole {
        ($int:ty) => {
            form.read(cursor, |cursor| {
                let takes = || format!("{} takes whole numbers from {} to {}", datatype.as_str(), <$int>::MIN, <$int>::MAX);
                if !is_number(cursor.peek()) {
                    return Err(not_taken(cursor, &takes()));
                }
                let number = cursor.number()?;
                match number.integer().and_then(|value| <$int>::try_from(value).ok()) {
                    Some(value) => {
                        out.extend_from_slice(&value.to_le_bytes());
                        Ok(())
                    }
                    None => Err(Stop::Wrong(format!(" is {}, {}", shown(number.text), takes()))),
                }
            })
        };
    }
    macro_rules! real {
        ($read:expr, $named:expr) => {
            form.read(cursor, |cursor| {
                let first = cursor.peek();
                let value = if is_number(first) {
                    let number = cursor.number()?;
                    match $read(&number) {
                        Some(value) => value,
                        None => return Err(Stop::Wrong(format!(" is {}, that is too large for {}", shown(number.text), datatype.as_str()))),
                    }
                } else {
                    $named(named(cursor, datatype)?)
                };
                out.extend_from_slice(&value.to_le_bytes());
                Ok(())
            })
        };
    }
    match datatype {
        Datatype::Bool => form.read(cursor, |cursor| {
            if !matches!(cursor.peek(), b't' | b'f') {
                return Err(not_taken(cursor, "BOOL takes true and false"));
            }
            out.push(u8::from(cursor.boolean()?));
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
        Datatype::Fp16 => real!(|number: &Number<'_>| half(number, f16::from_f64, f16::is_finite), f16::from_f64),
        Datatype::Bf16 => real!(|number: &Number<'_>| half(number, bf16::from_f64, bf16::is_finite), bf16::from_f64),
        Datatype::Fp32 => real!(Number::f32, |named| named as f32),
        Datatype::Fp64 => real!(Number::f64, std::convert::identity),
        // Elements that are arrays of bytes are one level deeper than texts.
        Datatype::Bytes if first != b'"' && depth > 1 && count > 0 => {
            let form = Form { nested: depth > 2 && shape.len() > 1, ..form };
            form.read(cursor, |cursor| byte_array(out, cursor))
        }
        Datatype::Bytes => form.read(cursor, |cursor| string(out, cursor, text)),
    }?;
    Ok(raw)
}

/// How the elements of a tensor stand within each other.
#[derive(Clone, Copy)]
struct Form<'s> {
    shape: &'s [i64],
    count: usize,
    nested: bool,
}

impl Form<'_> {
    /// Hands every element to `each`, in order, and checks how many there are.
    fn read<'a>(self, cursor: &mut Cursor<'a>, mut each: impl FnMut(&mut Cursor<'a>) -> Result<(), Stop>) -> Result<(), Stop> {
        if self.nested { self.rows(cursor, 0, &mut each) } else { self.row(cursor, self.count, "elements", &mut each) }
    }

    fn rows<'a>(self, cursor: &mut Cursor<'a>, level: usize, each: &mut impl FnMut(&mut Cursor<'a>) -> Result<(), Stop>) -> Result<(), Stop> {
        let members = usize::try_from(self.shape[level]).unwrap_or(usize::MAX);
        if cursor.peek() != b'[' {
            return Err(format!(" is {}, shape {:?} has an array of {members} there", shown(cursor.skip()?), self.shape).into());
        }
        if level + 1 == self.shape.len() {
            return self.row(cursor, members, "members", each);
        }
        self.row(cursor, members, "members", &mut |cursor| self.rows(cursor, level + 1, each))
    }

    fn row<'a>(
        self,
        cursor: &mut Cursor<'a>,
        members: usize,
        what: &str,
        each: &mut impl FnMut(&mut Cursor<'a>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let given = cursor.array(|cursor, at| {
            if at == members {
                return Err(Stop::Wrong(format!(" has more than {members} {what}, shape {:?} takes {members}", self.shape)));
            }
            each(cursor).map_err(|stop| stop.within(format_args!("[{at}]")))
        })?;
        if given == members { Ok(()) } else { Err(format!(" has {given} {what}, shape {:?} takes {members}", self.shape).into()) }
    }
}

/// Whether a value that begins so is a number, those included that only Python writes.
fn is_number(first: u8) -> bool {
    matches!(first, b'-' | b'0'..=b'9' | b'N' | b'I')
}

/// The next value is none that the datatype takes.
#[cold]
fn not_taken(cursor: &mut Cursor<'_>, takes: &str) -> Stop {
    if cursor.peek() == b'[' {
        return Stop::Wrong(" is an array among elements: data is either flat or nested as its shape".to_owned());
    }
    match cursor.skip() {
        Ok(value) => Stop::Wrong(format!(" is {}, {takes}", shown(value))),
        Err(stop) => stop,
    }
}

/// The numbers that JSON has no form for, as strings; the same ones are written.
fn named(cursor: &mut Cursor<'_>, datatype: Datatype) -> Result<f64, Stop> {
    if cursor.peek() == b'"' {
        let mut ahead = cursor.clone();
        let number = match ahead.raw_string()?.0 {
            "\"NaN\"" => Some(f64::NAN),
            "\"Infinity\"" => Some(f64::INFINITY),
            "\"-Infinity\"" => Some(f64::NEG_INFINITY),
            _ => None,
        };
        if let Some(number) = number {
            *cursor = ahead;
            return Ok(number);
        }
    }
    Err(not_taken(cursor, &format!("{} takes numbers, \"NaN\", \"Infinity\" and \"-Infinity\"", datatype.as_str())))
}

/// A number of 16 bits. `None`: too large.
fn half<T>(number: &Number<'_>, from_f64: impl Fn(f64) -> T, is_finite: impl Fn(T) -> bool) -> Option<T>
where
    T: Copy,
{
    let wide = number.f64()?;
    let narrow = from_f64(wide);
    (is_finite(narrow) || !wide.is_finite()).then_some(narrow)
}

/// A value as it stands in the body, cut to a length that fits in a message.
pub(super) fn shown(value: &str) -> String {
    const LONGEST: usize = 60;
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// A BYTES element that is a text.
fn string(out: &mut Vec<u8>, cursor: &mut Cursor<'_>, text: Text) -> Result<(), Stop> {
    if cursor.peek() != b'"' {
        return Err(not_taken(cursor, "BYTES takes strings and arrays of bytes"));
    }
    let mut shows = cursor.clone();
    let plain = cursor.string()?;
    let decoded;
    let bytes = match text {
        Text::Plain => plain.as_bytes(),
        Text::Base64 => match BASE64_STANDARD.decode(plain.as_bytes()) {
            Ok(bytes) => {
                decoded = bytes;
                &decoded
            }
            Err(fault) => return Err(format!(" is {}, that is not base64: {fault}", shown(shows.skip()?)).into()),
        },
    };
    out.extend_from_slice(&length(bytes.len())?);
    out.extend_from_slice(bytes);
    Ok(())
}

/// A BYTES element that is an array of its bytes.
fn byte_array(out: &mut Vec<u8>, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    if cursor.peek() != b'[' {
        return Err(not_taken(cursor, "the elements before it are arrays of bytes"));
    }
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let count = cursor.array(|cursor, at| {
        let mut shows = cursor.clone();
        let byte = if is_number(cursor.peek()) { cursor.number()?.integer() } else { None };
        match byte.and_then(|byte| u8::try_from(byte).ok()) {
            Some(byte) => {
                out.push(byte);
                Ok(())
            }
            None => Err(format!("[{at}] is {}, a byte is a whole number from 0 to 255", shown(shows.skip()?)).into()),
        }
    })?;
    out[start..start + 4].copy_from_slice(&length(count)?);
    Ok(())
}

fn length(bytes: usize) -> Result<[u8; 4], Stop> {
    match u32::try_from(bytes) {
        Ok(length) => Ok(length.to_le_bytes()),
        Err(_) => Err(format!(" has {bytes} bytes, a BYTES element takes at most 4 GiB").into()),
    }
}

/// Writes the elements of `raw` as a flat JSON array. BYTES are strings when `text` is plain.
///
/// # Errors
/// `raw` does not hold the elements of a tensor with `count` elements.
pub(super) fn write(out: &mut Vec<u8>, datatype: Datatype, count: usize, text: Text, raw: &[u8]) -> Result<(), String> {
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
        Datatype::Bool => list(out, raw.iter(), |out, byte| out.extend_from_slice(if *byte == 0 { "false" } else { "true" }.as_bytes())),
        Datatype::Uint8 => numbers!(u8, json),
        Datatype::Uint16 => numbers!(u16, json),
        Datatype::Uint32 => numbers!(u32, json),
        Datatype::Uint64 => numbers!(u64, json),
        Datatype::Int8 => numbers!(i8, json),
        Datatype::Int16 => numbers!(i16, json),
        Datatype::Int32 => numbers!(i32, json),
        Datatype::Int64 => numbers!(i64, json),
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
                    out.push(b'"');
                    out.extend_from_slice(BASE64_STANDARD.encode(bytes).as_bytes());
                    out.push(b'"');
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

fn list<T>(out: &mut Vec<u8>, elements: impl Iterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    let mut separator = b'[';
    for element in elements {
        out.push(separator);
        write(out, element);
        separator = b',';
    }
    if separator == b'[' {
        out.push(b'[');
    }
    out.push(b']');
}

/// Writes `value` as JSON; only for what always is some.
fn json(out: &mut Vec<u8>, value: impl Serialize) {
    let _ = serde_json::to_writer(out, &value); // writing to memory cannot fail, and what is written here is scalar
}

/// The shortest text that reads back as the same number; integral ones without a fraction, and an exponent only for very
/// small and very large ones, as upstream writes them.
fn real<T: Copy + Into<f64> + Serialize + std::fmt::Display + std::fmt::LowerExp>(out: &mut Vec<u8>, number: T) {
    let wide: f64 = number.into();
    if !wide.is_finite() {
        let name = match (wide.is_nan(), wide < 0.0) {
            (true, _) => "\"NaN\"",
            (false, true) => "\"-Infinity\"",
            (false, false) => "\"Infinity\"",
        };
        return out.extend_from_slice(name.as_bytes());
    }
    let size = wide.abs();
    // serde_json writes these as wanted, but for the fraction, and fast.
    if size == 0.0 || (1e-4..1e12).contains(&size) {
        json(out, number);
        if out.ends_with(b".0") {
            out.truncate(out.len() - 2);
        }
        return;
    }
    // Compared as f32, so that the f32 next to 1e-6 is on the same side as 1e-6 itself.
    let _ = if (1e-6..1e21).contains(&(size as f32)) { write!(out, "{number}") } else { write!(out, "{number:e}") };
}

/// Writes `text` as a JSON string.
pub(super) fn quoted(out: &mut Vec<u8>, text: &str) {
    json(out, text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::{Value, json};

    use super::*;

    /// What the array `text` is as a tensor.
    fn read(datatype: Datatype, shape: &[i64], text: Text, json: &str) -> Result<Vec<u8>, Stop> {
        let mut cursor = Cursor::new(json);
        let raw = super::read(&mut cursor, datatype, shape, super::elements(shape)?, text)?;
        cursor.end().map(|()| raw)
    }

    fn wrong(outcome: Result<Vec<u8>, Stop>) -> String {
        match outcome {
            Err(Stop::Wrong(text)) => text,
            other => panic!("{other:?}"),
        }
    }

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
            let mut text = Vec::new();
            write(&mut text, datatype, elements.len(), Text::Plain, &raw).unwrap();
            let values: Vec<Value> = serde_json::from_slice(&text).unwrap();
            prop_assert_eq!(values.len(), elements.len());
            for (value, element) in values.iter().zip(&elements) {
                // An FP32 is the nearest to its text, which is no more than that for an f64: compared when read back.
                let same = value == element || (value.is_number() && element.is_f64());
                prop_assert!(same, "{} is not {}", value, element);
            }
            prop_assert_eq!(read(datatype, &shape, Text::Plain, std::str::from_utf8(&text).unwrap()), Ok(raw));
        }

        #[test]
        fn bytes_of_any_kind_survive_base64(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8)) {
            let raw: Vec<u8> = elements.iter().flat_map(|element| [&(element.len() as u32).to_le_bytes()[..], element].concat()).collect();
            let mut text = Vec::new();
            write(&mut text, Datatype::Bytes, elements.len(), Text::Base64, &raw).unwrap();
            let text = std::str::from_utf8(&text).unwrap();
            prop_assert_eq!(read(Datatype::Bytes, &[elements.len() as i64], Text::Base64, text), Ok(raw.clone()));
            let arrays = serde_json::to_string(&elements).unwrap();
            prop_assert_eq!(read(Datatype::Bytes, &[elements.len() as i64], Text::Plain, &arrays), Ok(raw), "arrays of bytes");
        }

        #[test]
        fn no_json_and_no_shape_panics(text in "(\\[[-0-9a\",\\[\\] .e\\\\]{0,30})|.{0,10}", shape in prop::collection::vec(-2i64..4, 0..4)) {
            for datatype in Datatype::ALL {
                let _ = read(datatype, &shape, Text::Plain, &text);
            }
        }

        #[test]
        fn numbers_look_as_upstream_writes_them(bits in any::<u32>(), wide in any::<f64>()) {
            // Display and LowerExp of std are the shortest, and the slow way. Of two that are as short and as near, they may
            // take the other one.
            fn alike<T: Into<f64> + Copy + std::fmt::Display + std::fmt::LowerExp>(text: &[u8], number: T) -> bool {
                let size = number.into().abs() as f32;
                let slow = if size == 0.0 || (1e-6..1e21).contains(&size) { format!("[{number}]") } else { format!("[{number:e}]") };
                let text = std::str::from_utf8(text).unwrap();
                text == slow || (text.len() == slow.len() && text[..text.len() - 2] == slow[..slow.len() - 2])
            }
            let narrow = f32::from_bits(bits);
            let mut text = Vec::new();
            if narrow.is_finite() {
                write(&mut text, Datatype::Fp32, 1, Text::Plain, &narrow.to_le_bytes()).unwrap();
                prop_assert!(alike(&text, narrow), "{}", narrow);
            }
            // Not only sizes that no tensor has.
            for number in [wide, f64::from(bits) / 1e4, f64::from(bits as f32 / 3e5)] {
                if number.is_finite() && (number == 0.0 || number.abs() > 1e-40) {
                    text.clear();
                    write(&mut text, Datatype::Fp64, 1, Text::Plain, &number.to_le_bytes()).unwrap();
                    prop_assert!(alike(&text, number), "{}", number);
                    prop_assert_eq!(read(Datatype::Fp64, &[1], Text::Plain, std::str::from_utf8(&text).unwrap()), Ok(number.to_le_bytes().to_vec()));
                }
            }
        }
    }

    #[test]
    fn numbers_print_as_short_as_they_can_be() {
        let mut text = Vec::new();
        let raw: Vec<u8> = [3.0f32, 0.37, -0.0, 1e-6, 1e-7, 1e20, 1e21, f32::NAN, f32::NEG_INFINITY].into_iter().flat_map(f32::to_le_bytes).collect();
        write(&mut text, Datatype::Fp32, 9, Text::Plain, &raw).unwrap();
        assert_eq!(text, b"[3,0.37,-0,0.000001,1e-7,100000000000000000000,1e21,\"NaN\",\"-Infinity\"]");
        text.clear();
        write(&mut text, Datatype::Uint8, 3, Text::Plain, &[1, 2, 250]).unwrap();
        assert_eq!(text, b"[1,2,250]");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        for (datatype, shape, json, expected) in [
            (Datatype::Int8, &[2][..], "[1,300]", "[1] is 300, INT8 takes whole numbers from -128 to 127"),
            (Datatype::Uint8, &[1], "[-1]", "[0] is -1, UINT8 takes whole numbers from 0 to 255"),
            (Datatype::Uint64, &[1], "[18446744073709551616]", "[0] is 18446744073709551616, UINT64 takes"),
            (Datatype::Int64, &[1], "[1.5]", "[0] is 1.5, INT64 takes whole numbers"),
            (Datatype::Int64, &[1], "[1e3]", "[0] is 1e3, INT64 takes whole numbers"),
            (Datatype::Int64, &[1], "[NaN]", "[0] is NaN, INT64 takes whole numbers"),
            (Datatype::Int32, &[1], "[\"1\"]", "[0] is \"1\", INT32 takes whole numbers"),
            (Datatype::Int32, &[1], "[{\"a\":[1]}]", "[0] is {\"a\":[1]}, INT32 takes whole numbers"),
            (Datatype::Bool, &[1], "[1]", "[0] is 1, BOOL takes true and false"),
            (Datatype::Fp32, &[1], "[1e39]", "[0] is 1e39, that is too large for FP32"),
            (Datatype::Fp16, &[1], "[65520]", "[0] is 65520, that is too large for FP16"),
            (Datatype::Bf16, &[1], "[3.4e38]", "[0] is 3.4e38, that is too large for BF16"),
            (Datatype::Fp64, &[1], "[-1e999]", "[0] is -1e999, that is too large for FP64"),
            (Datatype::Fp32, &[1], "[null]", "[0] is null, FP32 takes numbers, \"NaN\""),
            (Datatype::Fp32, &[1], "[\"nan\"]", "[0] is \"nan\", FP32 takes numbers, \"NaN\""),
            (Datatype::Bytes, &[1], "[1]", "[0] is 1, BYTES takes strings and arrays of bytes"),
            (Datatype::Bytes, &[2], "[[1],\"a\"]", "[1] is \"a\", the elements before it are arrays of bytes"),
            (Datatype::Bytes, &[2], "[[1],[2,256]]", "[1][1] is 256, a byte is a whole number from 0 to 255"),
            (Datatype::Bytes, &[1, 2], "[[[1],[-2]]]", "[0][1][0] is -2, a byte is"),
            (Datatype::Fp32, &[3], "[1,2]", " has 2 elements, shape [3] takes 3"),
            (Datatype::Fp32, &[1], "[1,2]", " has more than 1 elements, shape [1] takes 1"),
            (Datatype::Fp32, &[], "[]", " has 0 elements, shape [] takes 1"),
            (Datatype::Fp32, &[1], "7", " is 7, it must be an array"),
            (Datatype::Fp32, &[2], "[[1,2]]", "[0] is an array among elements"),
            (Datatype::Fp32, &[2, 2], "[[1,2,3],[4]]", "[0] has more than 2 members, shape [2, 2] takes 2"),
            (Datatype::Fp32, &[2, 2], "[[1,2],[3]]", "[1] has 1 members, shape [2, 2] takes 2"),
            (Datatype::Fp32, &[2, 2], "[[1,2],[3,4],[]]", " has more than 2 members, shape [2, 2] takes 2"),
            (Datatype::Fp32, &[2, 2], "[[1,2]]", " has 1 members, shape [2, 2] takes 2"),
            (Datatype::Fp32, &[2, 2], "[[1,2],3,4]", "[1] is 3, shape [2, 2] has an array of 2 there"),
            (Datatype::Fp32, &[2, 2], "[1,2,[3,4]]", "[2] is an array among elements"),
            (Datatype::Fp32, &[2, 2], "[[[1],[2]],[3,4]]", "[0][0] is an array among elements"),
            (Datatype::Fp32, &[2, 2, 2], "[[[1,2],[3,4]],[[5,6],[7,\"x\"]]]", "[1][1][1] is \"x\", FP32 takes"),
            (Datatype::Fp32, &[-1, 2], "[]", "shape [-1, 2] has the dimension -1, it must not be negative"),
            (Datatype::Fp32, &[i64::MAX, 3], "[]", "more elements than can be counted"),
            (Datatype::Fp32, &[i64::MAX], "[1]", " has 1 elements, shape [9223372036854775807] takes 9223372036854775807"),
        ] {
            let fault = wrong(read(datatype, shape, Text::Plain, json));
            assert!(fault.starts_with(expected) || fault.ends_with(expected), "{json}: {fault}");
        }
        let fault = wrong(read(Datatype::Bytes, &[1], Text::Base64, "[\"a\"]"));
        assert!(fault.starts_with("[0] is \"a\", that is not base64"), "{fault}");
        let broken = read(Datatype::Bytes, &[1], Text::Plain, r#"["\ud800"]"#);
        assert_eq!(broken, Err(Stop::Syntax { what: "surrogates in pairs in a string", at: 9 }));
    }

    #[test]
    fn numbers_without_a_form_in_json_are_read_as_texts_and_as_python_writes_them() {
        let wanted: Vec<u8> = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(f32::to_le_bytes).collect();
        for json in ["[\"NaN\",\"Infinity\",\"-Infinity\"]", "[NaN, Infinity, -Infinity]"] {
            assert_eq!(read(Datatype::Fp32, &[3], Text::Plain, json).as_ref(), Ok(&wanted), "{json}");
        }
        let half: Vec<u8> = [f16::NAN, f16::INFINITY].into_iter().flat_map(f16::to_le_bytes).collect();
        assert_eq!(read(Datatype::Fp16, &[2], Text::Plain, "[NaN,Infinity]"), Ok(half));
    }

    #[test]
    fn bytes_are_texts_or_arrays_flat_or_nested_and_empty_ones_are_told_apart() {
        let raw = |elements: &[&[u8]]| -> Vec<u8> {
            elements.iter().flat_map(|element| [&(element.len() as u32).to_le_bytes()[..], element].concat()).collect()
        };
        for (shape, json, wanted) in [
            (&[2][..], r#"["a",""]"#, raw(&[b"a", b""])),
            (&[2], "[[97],[]]", raw(&[b"a", b""])),
            (&[1], "[[]]", raw(&[b""])),
            (&[1, 0], "[[]]", raw(&[])),
            (&[1, 2], r#"[["a","b"]]"#, raw(&[b"a", b"b"])),
            (&[1, 2], "[[[97],[98,99]]]", raw(&[b"a", b"bc"])),
            (&[1, 2], "[[97],[98,99]]", raw(&[b"a", b"bc"])),
            (&[0], "[]", raw(&[])),
        ] {
            assert_eq!(read(Datatype::Bytes, shape, Text::Plain, json).as_ref(), Ok(&wanted), "{shape:?} {json}");
        }
    }

    #[test]
    fn answers_that_do_not_fit_their_shape_are_noticed() {
        let mut text = Vec::new();
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
