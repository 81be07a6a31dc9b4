//! The outline of an ONNX file: which operators it uses and which files it needs, without its weights.
//!
//! Both engines get the same answers to "is this an ONNX model at all", "which operators" and "which files beside it",
//! before they are handed anything. The file is walked field by field and everything else is skipped over, so that an
//! outline of a model of any size takes a few kilobytes. Nothing is trusted: lengths stay inside their parent, nesting
//! and text have limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Deepest nesting of graphs in attributes (loops and branches) that is followed.
const DEEPEST: u32 = 32;
/// Longest name that is kept.
const LONGEST: u64 = 4096;
/// Most different operators and most different files; no real model comes near.
const MOST: usize = 4096;

/// An operator: its domain (empty for the standard one) and its type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Operator {
    pub(super) domain: String,
    pub(super) kind: String,
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { &self.domain };
        write!(f, "{domain}.{}", self.kind)
    }
}

/// What an ONNX file says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// Each operator with the name (else the first output) of the first node that uses it.
    pub(super) operators: BTreeMap<Operator, String>,
    /// Locations of external data, as written.
    pub(super) external: BTreeSet<String>,
    /// Inputs and outputs that are declared without a shape: of any rank.
    pub(super) shapeless: BTreeSet<String>,
    /// Functions that the model defines itself.
    pub(super) functions: BTreeSet<Operator>,
}

/// Reads the outline of `file`.
///
/// # Errors
/// What is wrong with it as an ONNX model; an I/O error as its text.
pub(super) fn read(file: &Path) -> Result<Outline, String> {
    let opened = File::open(file).map_err(|fault| format!("cannot be opened: {fault}"))?;
    let length = opened.metadata().map_err(|fault| format!("cannot be read: {fault}"))?.len();
    if length == 0 {
        return Err("is empty".to_owned());
    }
    let mut start = [0; 512];
    let mut input = BufReader::with_capacity(8 << 10, opened);
    let sniffed = fill(&mut input, &mut start).map_err(|fault| format!("cannot be read: {fault}"))?;
    if let Some(other) = other_format(&start[..sniffed]) {
        return Err(format!("is {other}, not an ONNX model"));
    }
    input.seek(SeekFrom::Start(0)).map_err(|fault| format!("cannot be read: {fault}"))?;
    let mut wire = Wire { input, at: 0, outline: Outline::default() };
    let has_graph = wire.model(length).map_err(|fault| match fault {
        Fault::Io(fault) if fault.kind() != io::ErrorKind::UnexpectedEof => format!("cannot be read: {fault}"),
        Fault::Io(_) => format!("is not a whole ONNX model: it ends within a field, after {length} bytes"),
        Fault::Broken(what, at) => format!("is not an ONNX model: {what} at byte {at} of {length}"),
    })?;
    if has_graph { Ok(wire.outline) } else { Err("is not an ONNX model: it has no graph".to_owned()) }
}

fn fill(input: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..])? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

/// What people upload instead of a model, recognised by its first bytes.
fn other_format(start: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let begins = |with: &[u8]| start.starts_with(with);
    if text.starts_with("<!doctype html") || text.starts_with("<html") || text.starts_with("<head") {
        Some("an HTML page (a download that ended on a web page?)")
    } else if text.starts_with("<?xml") {
        Some("an XML document (an error answer of a store?)")
    } else if text.starts_with("version https://git-lfs") {
        Some("a Git LFS pointer (fetch the file itself with git lfs pull)")
    } else if text.starts_with('{') {
        Some("JSON")
    } else if begins(b"PK\x03\x04") {
        Some("a zip archive (a PyTorch or Keras file?)")
    } else if begins(b"\x1f\x8b") {
        Some("gzip-compressed")
    } else if begins(b"\x89HDF") {
        Some("an HDF5 file (Keras?)")
    } else if begins(b"\x80\x02") || begins(b"\x80\x03") || begins(b"\x80\x04") || begins(b"\x80\x05") {
        Some("a Python pickle")
    } else if start.iter().all(|byte| *byte == 0) {
        Some("all zeros")
    } else {
        None
    }
}

enum Fault {
    Io(io::Error),
    Broken(&'static str, u64),
}

impl From<io::Error> for Fault {
    fn from(fault: io::Error) -> Self {
        Fault::Io(fault)
    }
}

/// What follows a field's number.
enum Value {
    /// A number.
    Number,
    /// Text, bytes or a message that ends at this position.
    Until(u64),
}

struct Wire {
    input: BufReader<File>,
    at: u64,
    outline: Outline,
}

impl Wire {
    fn byte(&mut self) -> Result<u8, Fault> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.at += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Fault::Broken("a number is too long", self.at))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        let far = i64::try_from(bytes).map_err(|_| Fault::Broken("a length is too large", self.at))?;
        self.input.seek_relative(far)?;
        self.at += bytes;
        Ok(())
    }

    /// The next field of the message that ends at `end`; numbers are passed over.
    fn field(&mut self, end: u64) -> Result<Option<(u64, Value)>, Fault> {
        if self.at == end {
            return Ok(None);
        }
        let began = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => {
                self.varint()?;
                Value::Number
            }
            1 => {
                self.skip(8)?;
                Value::Number
            }
            2 => {
                let length = self.varint()?;
                Value::Until(self.at.checked_add(length).ok_or(Fault::Broken("a length is too large", began))?)
            }
            5 => {
                self.skip(4)?;
                Value::Number
            }
            _ => return Err(Fault::Broken("an unknown kind of field", began)),
        };
        if tag >> 3 == 0 {
            return Err(Fault::Broken("a field without a number", began));
        }
        let reaches = if let Value::Until(until) = value { until } else { self.at };
        if reaches > end {
            return Err(Fault::Broken("a field is longer than what it is part of", began));
        }
        Ok(Some((tag >> 3, value)))
    }

    fn skip_to(&mut self, until: u64) -> Result<(), Fault> {
        self.skip(until - self.at)
    }

    fn text(&mut self, until: u64) -> Result<String, Fault> {
        let length = until - self.at;
        if length > LONGEST {
            return Err(Fault::Broken("a name is too long", self.at));
        }
        // Bounded by `LONGEST` above.
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes)?;
        self.at = until;
        String::from_utf8(bytes).map_err(|_| Fault::Broken("a name is not text", until))
    }

    /// `ModelProto`: 7 graph, 25 functions. Answers whether there is a graph.
    fn model(&mut self, end: u64) -> Result<bool, Fault> {
        let mut has_graph = false;
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (7, Value::Until(until)) => {
                    has_graph = true;
                    self.graph(until, 0)?;
                }
                (25, Value::Until(until)) => self.function(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        Ok(has_graph)
    }

    /// `FunctionProto`: 1 name, 7 nodes, 10 domain.
    fn function(&mut self, end: u64) -> Result<(), Fault> {
        let (mut domain, mut kind) = (String::new(), String::new());
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (1, Value::Until(until)) => kind = self.text(until)?,
                (7, Value::Until(until)) => self.node(until, 0)?,
                (10, Value::Until(until)) => domain = self.text(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        if self.outline.functions.len() < MOST {
            self.outline.functions.insert(Operator { domain, kind });
        }
        Ok(())
    }

    /// `GraphProto`: 1 nodes, 5 initializers, 11 inputs, 12 outputs.
    fn graph(&mut self, end: u64, depth: u32) -> Result<(), Fault> {
        if depth > DEEPEST {
            return Err(Fault::Broken("graphs are nested too deeply", self.at));
        }
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (1, Value::Until(until)) => self.node(until, depth)?,
                (5, Value::Until(until)) => self.tensor(until)?,
                (11 | 12, Value::Until(until)) if depth == 0 => self.port(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        Ok(())
    }

    /// `ValueInfoProto`: 1 name, 2 type.
    fn port(&mut self, end: u64) -> Result<(), Fault> {
        let (mut name, mut shaped) = (String::new(), false);
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (1, Value::Until(until)) => name = self.text(until)?,
                // `TypeProto`: 1 tensor; in it 2 shape.
                (2, Value::Until(until)) => shaped = self.has(until, &[1, 2])?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        if !shaped && self.outline.shapeless.len() < MOST {
            self.outline.shapeless.insert(name);
        }
        Ok(())
    }

    /// Whether the message that ends at `end` has this path of messages in it.
    fn has(&mut self, end: u64, path: &[u64]) -> Result<bool, Fault> {
        let mut found = false;
        while let Some((number, value)) = self.field(end)? {
            match value {
                Value::Until(until) if Some(&number) == path.first() => {
                    found |= path.len() == 1 || self.has(until, &path[1..])?;
                    self.skip_to(until)?;
                }
                Value::Until(until) => self.skip_to(until)?,
                Value::Number => {}
            }
        }
        Ok(found)
    }

    /// `NodeProto`: 2 outputs, 3 name, 4 type, 5 attributes, 7 domain.
    fn node(&mut self, end: u64, depth: u32) -> Result<(), Fault> {
        let (mut domain, mut kind, mut name, mut output) = (String::new(), String::new(), String::new(), String::new());
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (2, Value::Until(until)) if output.is_empty() => output = self.text(until)?,
                (3, Value::Until(until)) => name = self.text(until)?,
                (4, Value::Until(until)) => kind = self.text(until)?,
                (5, Value::Until(until)) => self.attribute(until, depth)?,
                (7, Value::Until(until)) => domain = self.text(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        if domain == "ai.onnx" {
            domain.clear();
        }
        if self.outline.operators.len() < MOST {
            let named = if name.is_empty() { output } else { name };
            self.outline.operators.entry(Operator { domain, kind }).or_insert(named);
        }
        Ok(())
    }

    /// `AttributeProto`: 5 tensor, 6 graph, 10 tensors, 11 graphs.
    fn attribute(&mut self, end: u64, depth: u32) -> Result<(), Fault> {
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (5 | 10, Value::Until(until)) => self.tensor(until)?,
                (6 | 11, Value::Until(until)) => self.graph(until, depth + 1)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        Ok(())
    }

    /// `TensorProto`: 13 external data.
    fn tensor(&mut self, end: u64) -> Result<(), Fault> {
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (13, Value::Until(until)) => self.external(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        Ok(())
    }

    /// `StringStringEntryProto`: 1 key, 2 value.
    fn external(&mut self, end: u64) -> Result<(), Fault> {
        let (mut key, mut text) = (String::new(), String::new());
        while let Some((number, value)) = self.field(end)? {
            match (number, value) {
                (1, Value::Until(until)) => key = self.text(until)?,
                (2, Value::Until(until)) => text = self.text(until)?,
                (_, Value::Until(until)) => self.skip_to(until)?,
                (_, Value::Number) => {}
            }
        }
        if key == "location" {
            if self.outline.external.len() == MOST {
                return Err(Fault::Broken("external data is in too many files", self.at));
            }
            self.outline.external.insert(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample;

    fn outline_of(bytes: &[u8]) -> Result<Outline, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("model.onnx");
        std::fs::write(&file, bytes).expect("a file");
        read(&file)
    }

    #[test]
    fn operators_of_nested_graphs_and_external_files_are_found() {
        let outline = outline_of(&sample::with_branches_and_external_data()).expect("a model");
        let operators: Vec<String> = outline.operators.iter().map(|(operator, node)| format!("{operator} {node}")).collect();
        assert_eq!(operators, ["ai.onnx.Add plus", "ai.onnx.If choose", "ai.onnx.Mul times", "com.example.Odd odd"]);
        assert_eq!(outline.external.iter().map(String::as_str).collect::<Vec<_>>(), ["weights.bin"]);
    }

    #[test]
    fn ports_without_a_shape_are_told_from_scalars() {
        let model = sample::Graph::default()
            .input("any", sample::FLOAT, None)
            .input("scalar", sample::FLOAT, Some(&[]))
            .output("row", sample::FLOAT, Some(&[sample::Axis::Free]))
            .model();
        let outline = outline_of(&model).expect("a model");
        assert_eq!(outline.shapeless.iter().map(String::as_str).collect::<Vec<_>>(), ["any"]);
    }

    #[test]
    fn what_is_no_model_is_called_by_its_name() {
        for (bytes, says) in [
            (&b""[..], "is empty"),
            (b"<!DOCTYPE html><html></html>", "is an HTML page"),
            (b"  \n<html>", "is an HTML page"),
            (b"<?xml version='1.0'?><Error><Code>NoSuchKey", "is an XML document"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
            (b"{\"a\": 1}", "is JSON"),
            (b"PK\x03\x04rest", "is a zip archive"),
            (b"\x80\x04\x95", "is a Python pickle"),
            (b"\0\0\0\0", "is all zeros"),
            (b"hello, I am no model", "is not an ONNX model: "),
            (b"\x08\x08", "is not an ONNX model: it has no graph"),
            (b"\x3a\xff\xff\xff\x7f", "is not an ONNX model: a field is longer than what it is part of"),
        ] {
            let fault = outline_of(bytes).expect_err(says);
            assert!(fault.starts_with(says), "{fault:?} does not start with {says:?}");
        }
    }

    #[test]
    fn a_model_that_was_cut_is_no_model() {
        let whole = sample::with_branches_and_external_data();
        for length in 1..whole.len() {
            // The graph is the last field of the sample: any cut hurts it, or leaves no graph.
            assert!(outline_of(&whole[..length]).is_err(), "cut at {length} of {}", whole.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_make_it_panic(noise in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 1..20)) {
            let mut bytes = sample::with_branches_and_external_data();
            for (at, byte) in noise {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = outline_of(&bytes);
        }
    }
}
