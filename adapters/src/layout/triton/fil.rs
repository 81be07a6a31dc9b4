//! Trees of XGBoost and LightGBM for Triton's `fil` backend, which needs a configuration that says what the file is.
//!
//! What the file says of itself (its form, how many features, whether it classifies) is read from its beginning and end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::listing::{Look, Node, names};
use super::super::pbtxt::quote;
use super::super::schema::TensorSpec;
use super::{Options, Source, entries_of, instances, lone};
use crate::LoadError;
use crate::tensor::{Datatype, quoted, shape_text};

/// Rows at a time, as NVIDIA's examples have it.
const MAX_BATCH_SIZE: u32 = 32_768;

/// The only names that the backend knows.
const INPUT: &str = "input__0";
const OUTPUT: &str = "output__0";

/// What a model's file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trees {
    /// As the backend calls the form.
    form: &'static str,
    features: Option<i64>,
    /// Classifies rather than estimates.
    classes: bool,
}

/// Whether models of this format are trees.
pub(super) fn takes(kind: &str) -> bool {
    matches!(kind, "xgboost" | "lightgbm")
}

/// The model's file in a folder.
pub(super) fn model_of(source: &Source, folder: &str) -> Result<String, LoadError> {
    let entries = entries_of(source, folder)?;
    let (defaults, endings): (&[&str], &[&str]) = match source.kind.as_str() {
        "xgboost" => (&["xgboost.json", "xgboost.ubj", "xgboost.model"], &["json", "ubj", "bst", "model", "bin", "xgb"]),
        _ => (&["model.txt"], &["txt", "bst", "model", "lgb"]),
    };
    let is_file = |name: &&&str| entries.get(**name).is_some_and(|node| !node.is_folder());
    let without_schema: BTreeMap<String, Node> =
        entries.iter().filter(|(name, _)| *name != "_schema.json").map(|(name, node)| (name.clone(), node.clone())).collect();
    let found = defaults.iter().find(is_file).map(|name| (*name).to_owned()).or_else(|| lone(&without_schema, endings));
    found.ok_or_else(|| {
        let wanted = format!("expected {} or one file that ends in .{}", defaults.join(", "), endings.join(", ."));
        LoadError::bad_model(format!("no {} model in {}: {wanted}; found {}", source.kind, source.name, names(entries)))
    })
}

/// The configuration for the model in a file of the listing.
pub(super) fn config(source: &Source, options: &Options, file: &str, notes: &mut Vec<String>) -> Result<Vec<u8>, LoadError> {
    let name = if file.is_empty() { source.name.as_str() } else { file.rsplit('/').next().unwrap_or(file) };
    let look = match source.listing.get(file) {
        Some(Node::File { look: Some(look), .. }) => look,
        _ => return Err(LoadError::bad_model(format!("{name} was not read: too many files beside it"))),
    };
    let trees = if source.kind == "xgboost" { xgboost(look) } else { lightgbm(look) };
    let trees = trees.map_err(|what| LoadError::bad_model(format!("{name} {what}")))?;
    if trees.form == "xgboost" {
        notes.push(format!("{name} has the binary form that newer versions of XGBoost neither write nor read: save it as .json or .ubj"));
    }
    let schema = source.schema.as_ref();
    let rows = schema.map_or(Ok(None), |schema| tensor("input", &schema.inputs, INPUT))?;
    let results = schema.map_or(Ok(None), |schema| tensor("output", &schema.outputs, OUTPUT))?.unwrap_or(1);
    let features = match (rows, trees.features) {
        (Some(stated), Some(read)) if stated != read => {
            return Err(LoadError::bad_model(format!("{name} has {read} features, its schema says {stated}")));
        }
        (Some(features), _) | (None, Some(features)) => features,
        (None, None) => {
            return Err(LoadError::bad_model(format!("{name} does not say how many features it takes: give the model a schema with input {INPUT}")));
        }
    };
    let mut text = String::new();
    let mut parameter = |key: &str, value: &str| {
        let _ = writeln!(text, "parameters {{ key: {} value: {{ string_value: {} }} }}", quote(key), quote(value));
    };
    parameter("model_type", trees.form);
    parameter("output_class", if trees.classes { "true" } else { "false" });
    parameter("predict_proba", if trees.classes && results > 1 { "true" } else { "false" });
    let group = options.device.map_or_else(|| "instance_group [ { kind: KIND_AUTO } ]".to_owned(), instances::group);
    let name = quote(name);
    Ok(format!(
        "backend: \"fil\"\ndefault_model_filename: {name}\nmax_batch_size: {MAX_BATCH_SIZE}\n\
         input [\n  {{ name: \"{INPUT}\" data_type: TYPE_FP32 dims: [ {features} ] }}\n]\n\
         output [\n  {{ name: \"{OUTPUT}\" data_type: TYPE_FP32 dims: [ {results} ] }}\n]\n{group}\n{text}"
    )
    .into_bytes())
}

/// The columns of the one tensor that a schema may state here; `None` when it states none.
fn tensor(what: &str, specs: &[TensorSpec], expected: &str) -> Result<Option<i64>, LoadError> {
    let wanted = format!("trees take one {what} named {expected}, FP32, of shape [-1, n] or [n]");
    let bad = |given: String| Err(LoadError::bad_model(format!("{given}: {wanted}")));
    match specs {
        [] => Ok(None),
        [TensorSpec { name, datatype: Datatype::Fp32, shape }] if name == expected => match shape.as_slice() {
            [columns] | [-1, columns] if *columns > 0 => Ok(Some(*columns)),
            [-1] if expected == OUTPUT => Ok(Some(1)),
            other => bad(format!("{what} {} has shape {}", quoted(name), shape_text(other))),
        },
        [TensorSpec { name, datatype, .. }] => bad(format!("{what} {} has datatype {datatype}", quoted(name))),
        several => bad(format!("the schema has {} {what}s", several.len())),
    }
}

/// What a file of XGBoost says of itself: JSON, UBJSON, or the binary form that newer versions no longer write.
fn xgboost(look: &Look) -> Result<Trees, String> {
    let classes = |objective: &[u8]| objective.starts_with(b"binary:") || objective.starts_with(b"multi:");
    let head = &*look.head;
    let text = head.trim_ascii_start();
    let form = match text {
        // An object: the next byte is a quote in JSON, the type of a key's length in UBJSON.
        [b'{', rest @ ..] if matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')) => "xgboost_json",
        [b'{', b'L' | b'l' | b'I' | b'i' | b'U' | b'$' | b'#', ..] => "xgboost_ubj",
        [0x80, ..] => return Err("is a Python pickle: save the model with save_model()".to_owned()),
        _ => {
            let (features, objective) = binary(head).ok_or("is no model of XGBoost: neither JSON nor UBJSON nor its binary form")?;
            return Ok(Trees { form: "xgboost", features: Some(features), classes: classes(objective) });
        }
    };
    // What matters stands behind the trees, which may be of any size: in the end that was read.
    let read = |key: &[u8]| after(&look.tail, key).and_then(if form == "xgboost_json" { json_text } else { ubjson_text });
    let features = read(b"num_feature").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).filter(|count| *count > 0);
    let objective = after(&look.tail, b"objective").and_then(|rest| {
        let rest = after_first(rest, b"name")?;
        if form == "xgboost_json" { json_text(rest) } else { ubjson_text(rest) }
    });
    Ok(Trees { form, features, classes: objective.is_some_and(classes) })
}

/// What follows the last occurrence of a key.
fn after<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = bytes.windows(key.len()).rposition(|window| window == key)?;
    Some(&bytes[at + key.len()..])
}

fn after_first<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = bytes.windows(key.len()).position(|window| window == key)?;
    Some(&bytes[at + key.len()..])
}

/// The text that is the value of a key whose closing quote comes next.
fn json_text(rest: &[u8]) -> Option<&[u8]> {
    let rest = rest.strip_prefix(b"\"")?.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let rest = rest.strip_prefix(b"\"")?;
    rest.iter().position(|byte| *byte == b'"').map(|end| &rest[..end])
}

/// The text that is the value of a key: `S`, the length with its type, the bytes.
fn ubjson_text(rest: &[u8]) -> Option<&[u8]> {
    let (kind, rest) = rest.strip_prefix(b"S")?.split_first()?;
    let width = match kind {
        b'i' | b'U' => 1,
        b'I' => 2,
        b'l' => 4,
        b'L' => 8,
        _ => return None,
    };
    let (length, rest) = rest.split_at_checked(width)?;
    let length = length.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    rest.get(..usize::try_from(length).ok()?)
}

/// Features and objective of the binary form: a header of 136 bytes (base score, features, classes, ...), then the
/// objective with its length.
fn binary(head: &[u8]) -> Option<(i64, &[u8])> {
    let head = head.strip_prefix(b"binf").unwrap_or(head);
    let features = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
    let length = u64::from_le_bytes(*head.get(136..)?.first_chunk()?);
    let objective = head.get(144..)?.get(..usize::try_from(length).ok().filter(|length| *length < 100)?)?;
    let is_word = !objective.is_empty() && objective.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_'));
    (features > 0 && is_word).then_some((i64::from(features), objective))
}

/// What a text file of LightGBM says of itself in its first lines.
fn lightgbm(look: &Look) -> Result<Trees, String> {
    let mut lines = look.head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    if lines.next() != Some(b"tree") {
        return Err("is no model of LightGBM: its first line is not \"tree\"; save the model with save_model()".to_owned());
    }
    let (mut features, mut classes) = (None, false);
    for line in lines.take(32) {
        if let Some(last) = line.strip_prefix(b"max_feature_idx=") {
            features = std::str::from_utf8(last).ok().and_then(|last| last.parse::<i64>().ok()?.checked_add(1)).filter(|count| *count > 0);
        }
        if let Some(objective) = line.strip_prefix(b"objective=") {
            classes = objective.starts_with(b"binary") || objective.starts_with(b"multiclass");
        }
    }
    Ok(Trees { form: "lightgbm", features, classes })
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::Entry;
    use super::super::super::tests::{shown, source};
    use super::super::{CONFIG, Device, plan};
    use super::*;

    const XGBOOST: &str = concat!(
        r#"{"learner":{"attributes":{},"gradient_booster":{"model":{"trees":[{"tree_param":{"num_feature":"1"}}]},"name":"gbtree"},"#,
        r#""learner_model_param":{"base_score":"5E-1","num_class":"0","num_feature":"126"},"objective":{"name":"binary:logistic"}},"version":[2,0,3]}"#
    );
    const LIGHTGBM: &str = "tree\nversion=v4\nnum_class=1\nlabel_index=0\nmax_feature_idx=125\nobjective=binary sigmoid:1\nfeature_names=a b\n";

    fn ubjson(objective: &str) -> Vec<u8> {
        let text = |text: &str| [b"SL".as_slice(), &(text.len() as u64).to_be_bytes(), text.as_bytes()].concat();
        let key = |text: &str| [b"L".as_slice(), &(text.len() as u64).to_be_bytes(), text.as_bytes()].concat();
        let object = |members: &[Vec<u8>]| [b"{".as_slice(), &members.concat(), b"}"].concat();
        let params = object(&[key("base_score"), text("0.5"), key("num_feature"), text("13")]);
        let learner = object(&[key("learner_model_param"), params, key("objective"), object(&[key("name"), text(objective)])]);
        object(&[key("learner"), learner])
    }

    fn binary_form(objective: &str) -> Vec<u8> {
        let mut bytes = vec![0; 136];
        bytes[4..8].copy_from_slice(&30u32.to_le_bytes());
        [bytes, (objective.len() as u64).to_le_bytes().to_vec(), objective.as_bytes().to_vec(), vec![6, 0, 0]].concat()
    }

    fn look(bytes: &[u8]) -> Look {
        let tail = &bytes[bytes.len().saturating_sub(1 << 16)..];
        Look { head: bytes.into(), tail: tail.into(), whole: true }
    }

    fn expected(file: &str, form: &str, features: i64, classes: bool) -> String {
        format!(
            "config.pbtxt = backend: \"fil\"\ndefault_model_filename: \"{file}\"\nmax_batch_size: 32768\n\
             input [\n  {{ name: \"input__0\" data_type: TYPE_FP32 dims: [ {features} ] }}\n]\n\
             output [\n  {{ name: \"output__0\" data_type: TYPE_FP32 dims: [ 1 ] }}\n]\n\
             instance_group [ {{ kind: KIND_AUTO }} ]\n\
             parameters {{ key: \"model_type\" value: {{ string_value: \"{form}\" }} }}\n\
             parameters {{ key: \"output_class\" value: {{ string_value: \"{classes}\" }} }}\n\
             parameters {{ key: \"predict_proba\" value: {{ string_value: \"false\" }} }}\n"
        )
    }

    #[test]
    fn trees_get_the_configuration_that_they_need() {
        let (json, text) = (XGBOOST.replace('=', ""), LIGHTGBM);
        for (case, kind, path, files, link, config) in [
            (
                "xgboost/mushroom.json",
                "xgboost",
                "mushroom.json",
                vec![format!("mushroom.json={json}")],
                "1/mushroom.json -> mushroom.json",
                expected("mushroom.json", "xgboost_json", 126, true),
            ),
            (
                "lightgbm/mushroom.bst",
                "lightgbm",
                "mushroom.bst",
                vec![format!("mushroom.bst={text}")],
                "1/mushroom.bst -> mushroom.bst",
                expected("mushroom.bst", "lightgbm", 126, true),
            ),
            (
                "the content counts, not the name",
                "xgboost",
                "a.bst",
                vec![format!("a.bst= {json}")],
                "1/a.bst -> a.bst",
                expected("a.bst", "xgboost_json", 126, true),
            ),
            (
                "a folder with one",
                "xgboost",
                "d",
                vec![format!("d/x.json={json}"), "d/readme.md".into()],
                "1 -> d",
                expected("x.json", "xgboost_json", 126, true),
            ),
            (
                "mushroom-dup/dummy",
                "xgboost",
                "d",
                vec![format!("d/mushroom.json={json}"), "d/dummy".into()],
                "1 -> d",
                expected("mushroom.json", "xgboost_json", 126, true),
            ),
            (
                "the backend's own name among several",
                "lightgbm",
                "d",
                vec![format!("d/model.txt={text}"), "d/notes.txt".into()],
                "1 -> d",
                expected("model.txt", "lightgbm", 126, true),
            ),
            (
                "a version",
                "lightgbm",
                "d",
                vec![format!("d/3/a.txt={text}"), format!("d/1/a.txt={text}")],
                "3 -> d/3",
                expected("a.txt", "lightgbm", 126, true),
            ),
            ("a folder in a folder", "lightgbm", "d", vec![format!("d/in/a.txt={text}")], "1 -> d/in", expected("a.txt", "lightgbm", 126, true)),
        ] {
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            let plan = plan(&source(kind, path, &files, None), &Options::default()).unwrap_or_else(|fault| panic!("{case}: {fault}"));
            let mut given = shown(&plan.entries);
            given.sort();
            assert_eq!(given, [link.to_owned(), config], "{case}");
        }
        let old = Source {
            listing: super::super::super::listing::of_files(&[("m", &binary_form("binary:logistic"))]),
            ..source("xgboost", "d", &["d/m"], None)
        };
        let mut notes = Vec::new();
        let config = super::config(&old, &Options::default(), "m", &mut notes).expect("sound");
        assert_eq!((notes.len(), format!("config.pbtxt = {}", String::from_utf8_lossy(&config))), (1, expected("m", "xgboost", 30, true)));
        // A folder of xgboost with a model.py is a python model's business.
        let python = plan(&source("xgboost", "d", &["d/model.py", "d/x.json"], None), &Options::default()).expect("sound");
        assert_eq!(shown(&python.entries), ["1 -> d"]);
    }

    #[test]
    fn a_schema_and_a_device_have_their_say() {
        let file = format!("m.json={XGBOOST}");
        let schema = |inputs: &str, outputs: &str| format!(r#"{{"inputs":[{inputs}],"outputs":[{outputs}]}}"#);
        let input = r#"{"name":"input__0","datatype":"FP32","shape":[-1,126]}"#;
        let options = Options { device: Some(Device::Gpu(2)), ..Options::default() };
        let both = schema(input, r#"{"name":"output__0","datatype":"FP32","shape":[-1,2]}"#);
        let laid_out = plan(&source("xgboost", "m.json", &[&file], Some(&both)), &options).expect("sound");
        let Some(Entry::Text(text)) = laid_out.entries.get(CONFIG) else { panic!("a configuration") };
        let text = String::from_utf8_lossy(text);
        assert!(text.contains("output__0\" data_type: TYPE_FP32 dims: [ 2 ]") && text.contains("kind: KIND_GPU gpus: [ 2 ]"), "{text}");
        assert!(text.contains("\"predict_proba\" value: { string_value: \"true\" }"), "{text}");
        for (case, schema, says) in [
            ("another count", schema(r#"{"name":"input__0","datatype":"FP32","shape":[7]}"#, ""), "m.json has 126 features, its schema says 7"),
            ("another name", schema(r#"{"name":"x","datatype":"FP32","shape":[126]}"#, ""), "trees take one input named input__0, FP32"),
            ("another type", schema(r#"{"name":"input__0","datatype":"FP64","shape":[126]}"#, ""), "datatype FP64: trees take one input"),
            ("a fixed batch", schema(r#"{"name":"input__0","datatype":"FP32","shape":[4,126]}"#, ""), "has shape [4, 126]: trees take one input"),
            ("two", schema(input, &format!("{input},{}", input.replace("input", "output"))), "the schema has 2 outputs"),
        ] {
            let refused = plan(&source("xgboost", "m.json", &[&file], Some(&schema)), &Options::default()).expect_err(case);
            assert!(refused.message.contains(says), "{case}: {refused}");
        }
    }

    #[test]
    fn every_form_says_what_it_is() {
        let trees = |form, features, classes| Ok(Trees { form, features, classes });
        assert_eq!(xgboost(&look(XGBOOST.as_bytes())), trees("xgboost_json", Some(126), true));
        assert_eq!(xgboost(&look(XGBOOST.replace("binary:logistic", "reg:squarederror").as_bytes())), trees("xgboost_json", Some(126), false));
        assert_eq!(xgboost(&look(&ubjson("multi:softprob"))), trees("xgboost_ubj", Some(13), true));
        assert_eq!(xgboost(&look(&ubjson("rank:pairwise"))), trees("xgboost_ubj", Some(13), false));
        assert_eq!(xgboost(&look(&binary_form("binary:logistic"))), trees("xgboost", Some(30), true));
        assert_eq!(xgboost(&look(&[b"binf".to_vec(), binary_form("reg:linear")].concat())), trees("xgboost", Some(30), false));
        // A big one: what matters is behind the trees.
        let big = XGBOOST.replace("\"trees\":[", &format!("\"trees\":[{}", "{},".repeat(100_000)));
        assert_eq!(xgboost(&look(big.as_bytes())), trees("xgboost_json", Some(126), true));
        assert_eq!(lightgbm(&look(LIGHTGBM.as_bytes())), trees("lightgbm", Some(126), true));
        assert_eq!(lightgbm(&look(LIGHTGBM.replace("binary sigmoid:1", "regression").as_bytes())), trees("lightgbm", Some(126), false));
        for bytes in [b"".as_slice(), b"\x80\x04\x95", b"hello", &[0; 200], b"[1]"] {
            assert!(xgboost(&look(bytes)).is_err() && lightgbm(&look(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        for (case, kind, path, file, says) in [
            ("a pickle", "xgboost", "m.pkl", "m.pkl=\u{80}", "is no model of XGBoost"),
            ("no trees", "lightgbm", "m.txt", "m.txt=hello", "m.txt is no model of LightGBM"),
            ("no features", "xgboost", "m.json", "m.json={\"learner\":{}}", "m.json does not say how many features it takes"),
            ("no file", "xgboost", "d", "d/readme.md", "no xgboost model in d: expected xgboost.json"),
            ("two files", "lightgbm", "d", "d/a.txt", "found [a.txt, b.txt]"),
        ] {
            let files = if case == "two files" { vec![file, "d/b.txt"] } else { vec![file, "other"] };
            let refused = plan(&source(kind, path, &files, None), &Options::default()).expect_err(case);
            assert!(refused.message.contains(says) && refused.nothing_attempted, "{case}: {refused}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_file_makes_the_readers_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), start in 0usize..4) {
            let starts: [&[u8]; 4] = [b"", b"{L", b"tree\nmax_feature_idx=", b"{\"objectivenum_featureSL"];
            let bytes = [starts[start], &bytes, b"num_feature", &bytes].concat();
            let _ = (xgboost(&look(&bytes)), lightgbm(&look(&bytes)));
        }
    }
}
