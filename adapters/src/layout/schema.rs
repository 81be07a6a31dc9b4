//! The schema file: `{"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}`.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use crate::LoadError;
use crate::tensor::{Datatype, quoted};

/// In bytes. A schema of a thousand tensors has a tenth of it.
const LARGEST: u64 = 1 << 20;

/// Inputs and outputs as the owner of a model states them. A list that is empty states nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schema {
    pub(crate) inputs: Vec<TensorSpec>,
    pub(crate) outputs: Vec<TensorSpec>,
}

/// One tensor of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    /// Each at least 1, or -1 for "any".
    pub(crate) shape: Vec<i64>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    inputs: Option<Vec<WrittenTensor>>,
    #[serde(default)]
    outputs: Option<Vec<WrittenTensor>>,
}

#[derive(Deserialize)]
struct WrittenTensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl Schema {
    /// Reads a schema file.
    ///
    /// # Errors
    /// A bad model: what is wrong and where.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text));
        read.map_err(|fault| LoadError::bad_model(format!("schema {name} cannot be read: {fault}")))?;
        if text.len() as u64 > LARGEST {
            return Err(LoadError::bad_model(format!("schema {name} has more than {LARGEST} bytes")));
        }
        Self::parse(&text).map_err(|fault| LoadError::bad_model(format!("schema {name}: {fault}")))
    }

    /// Reads the text of a schema. Nothing but space is an empty schema, like `{}`.
    ///
    /// # Errors
    /// What is wrong and where.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Schema::default());
        }
        let written: Written = serde_json::from_slice(text).map_err(|fault| fault.to_string())?;
        Ok(Schema { inputs: tensors("input", written.inputs)?, outputs: tensors("output", written.outputs)? })
    }
}

fn tensors(what: &str, written: Option<Vec<WrittenTensor>>) -> Result<Vec<TensorSpec>, String> {
    let mut names = HashSet::new();
    let mut checked = Vec::new();
    for (at, WrittenTensor { name, datatype, shape }) in written.unwrap_or_default().into_iter().enumerate() {
        if name.is_empty() {
            return Err(format!("{what} {at} has an empty name"));
        }
        if !names.insert(name.clone()) {
            return Err(format!("two {what}s are named {}", quoted(&name)));
        }
        let known = match datatype.as_str() {
            // Upstream's own name; the protocol's is BYTES.
            "STRING" => Some(Datatype::Bytes),
            other => Datatype::parse(other),
        };
        let Some(datatype) = known else {
            let known = Datatype::ALL.map(Datatype::as_str).join(", ");
            return Err(format!("{what} {} has datatype {}: expected one of {known}", quoted(&name), quoted(&datatype)));
        };
        if let Some(dim) = shape.iter().find(|dim| **dim < 1 && **dim != -1) {
            return Err(format!("{what} {} has a dimension of {dim}: expected one of at least 1, or -1 for any", quoted(&name)));
        }
        checked.push(TensorSpec { name, datatype, shape });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_schema_is_read_as_its_owner_wrote_it() {
        let text = br#"{"inputs":[{"name":"Input3","datatype":"FP32","shape":[1,1,28,28]},{"name":"s","datatype":"STRING","shape":[-1]}],
            "outputs":[{"name":"b","datatype":"BYTES","shape":[]},{"name":"h","datatype":"BF16","shape":[2],"more":1}],"else":null}"#;
        let tensor = |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.into(), datatype, shape: shape.into() };
        let expected = Schema {
            inputs: vec![tensor("Input3", Datatype::Fp32, &[1, 1, 28, 28]), tensor("s", Datatype::Bytes, &[-1])],
            outputs: vec![tensor("b", Datatype::Bytes, &[]), tensor("h", Datatype::Bf16, &[2])],
        };
        assert_eq!(Schema::parse(text), Ok(expected));
        for empty in ["{}", "", " \n", r#"{"inputs":[],"outputs":null}"#] {
            assert_eq!(Schema::parse(empty.as_bytes()), Ok(Schema::default()), "{empty:?}");
        }
    }

    #[test]
    fn a_wrong_schema_says_what_is_wrong_and_where() {
        for (case, text, says) in [
            ("no JSON", "{\"inputs\": [", "line 1 column 12"),
            ("another kind of JSON", "[1]", "line 1 column"),
            ("a list that is none", r#"{"inputs": {}}"#, "expected a sequence at line 1"),
            ("a tensor without a shape", r#"{"outputs": [{"name":"x","datatype":"FP32"}]}"#, "missing field `shape` at line 1"),
            ("a shape of words", r#"{"outputs": [{"name":"x","datatype":"FP32","shape":["a"]}]}"#, "expected i64 at line 1"),
            (
                "Triton's own word",
                r#"{"inputs":[{"name":"x","datatype":"TYPE_STRING","shape":[1]}]}"#,
                r#"input "x" has datatype "TYPE_STRING": expected one of BOOL"#,
            ),
            ("an unknown word", r#"{"outputs":[{"name":"x","datatype":"FP8","shape":[1]}]}"#, r#"output "x" has datatype "FP8""#),
            ("lower case", r#"{"outputs":[{"name":"x","datatype":"fp32","shape":[1]}]}"#, r#"datatype "fp32""#),
            ("a dimension of nothing", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[0]}]}"#, r#"input "x" has a dimension of 0"#),
            ("a dimension below", r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[-2]}]}"#, r#"input "x" has a dimension of -2"#),
            ("no name", r#"{"inputs":[{"name":"","datatype":"FP32","shape":[1]}]}"#, "input 0 has an empty name"),
            (
                "one name twice",
                r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1]},{"name":"x","datatype":"FP32","shape":[1]}]}"#,
                r#"two inputs are named "x""#,
            ),
        ] {
            let refused = Schema::parse(text.as_bytes()).expect_err(case);
            assert!(refused.contains(says), "{case}: {refused}");
        }
        let gone = Schema::read(Path::new("/nowhere/s.json")).expect_err("not there");
        assert!(gone.message.starts_with("schema s.json cannot be read: ") && gone.nothing_attempted, "{gone}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_text_makes_the_reader_panic(text in r#"[\[\]{}":,a-z0-9 -]{0,60}"#) {
            let _ = Schema::parse(text.as_bytes());
        }
    }
}
