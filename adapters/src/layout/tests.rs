//! What the tests of the planners share, and tests of planning and carrying out together.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::{ByteSize, ModelFormat, ModelId, Placement, Registration, StorageRef};
use proptest::prelude::*;

use super::listing::{Listing, Node, of_files};
use super::name::{Named, named};
use super::plan::{Entries, Entry};
use super::{Plan, Schema, Source, clear, kind_of, mlserver, ovms, torchserve, triton};
use crate::Artifacts;

/// A case as the tables of upstream's tests have it: a format, a path below the folder that was pulled, the files there
/// (`name=content`, or the name alone), and what the layout is to hold (`L -> T`, `L = text`, `L/`; T below that folder).
pub(super) type Case = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// Where the pulled folder is said to be in tests without files.
pub(super) const PULLED: &str = "/pulled";

/// Name and content.
pub(super) fn file(written: &str) -> (&str, &[u8]) {
    let (name, content) = written.split_once('=').unwrap_or((written, written));
    (name, content.as_bytes())
}

pub(super) fn id(text: &str) -> ModelId {
    ModelId::new(text).expect("valid")
}

/// A source without files.
pub(super) fn source(kind: &str, path: &str, files: &[&str], schema: Option<&str>) -> Source {
    let files: Vec<(&str, &[u8])> = files.iter().map(|written| file(written)).collect();
    let all = of_files(&files);
    let node = all.get(path).unwrap_or_else(|| panic!("{path} is not among the files")).clone();
    let schema = schema.map(|text| Schema::parse(text.as_bytes()).expect("a schema"));
    let id = id("m");
    let name = if path.is_empty() { "m" } else { path.rsplit('/').next().expect("a name") }.to_owned();
    let path = if path.is_empty() { PathBuf::from(PULLED) } else { Path::new(PULLED).join(path) };
    Source { id, kind: kind_of(kind), path, name, listing: Listing(node), schema }
}

/// The entries as the tables write them.
pub(super) fn shown(entries: &Entries) -> Vec<String> {
    let show = |(path, entry): (&String, &Entry)| match entry {
        Entry::Link(target) | Entry::Tree(target, _) => format!("{path} -> {}", target.strip_prefix(PULLED).expect("a file of the model").display()),
        Entry::Text(text) => format!("{path} = {}", String::from_utf8_lossy(text)),
        Entry::Folder => format!("{path}/"),
    };
    entries.iter().map(show).collect()
}

/// What a server wants of a source.
type Planner = fn(&Source) -> Result<Plan, crate::LoadError>;

const PLANNERS: [(&str, Planner, &[Case]); 3] = [
    ("triton", |source| triton::plan(source, &triton::Options::default()), triton::tests::CASES),
    ("mlserver", |source| mlserver::plan(source, Path::new("/models")), mlserver::tests::CASES),
    ("ovms", ovms::plan, ovms::tests::CASES),
];

/// Makes the files of a case below a folder; where the model is.
fn pull(pulled: &Path, path: &str, files: &[&str]) -> PathBuf {
    for written in files {
        let (name, content) = file(written);
        let at = pulled.join(name);
        if let Some(folder) = name.strip_suffix('/') {
            fs::create_dir_all(pulled.join(folder)).expect("a folder");
        } else {
            fs::create_dir_all(at.parent().expect("a parent")).expect("a folder");
            fs::write(at, content).expect("a file");
        }
    }
    if path.is_empty() { pulled.to_owned() } else { pulled.join(path) }
}

fn registration(id: &str, kind: &str, path: &str) -> Registration {
    let format = ModelFormat { name: Arc::from(kind), version: None };
    let storage = StorageRef { key: None, parameters: Arc::default(), path: Arc::from(path), schema_path: None };
    Registration::new(self::id(id), format, Placement::Format { protocol: None }, storage, None)
}

fn read(id: &str, kind: &str, path: &str, model: PathBuf) -> Source {
    Source::read(&registration(id, kind, path), &Artifacts { model, schema: None, size: ByteSize(1) }).expect("sound")
}

/// Every file that a server sees below a folder, links followed, with its content.
fn seen(folder: &Path) -> BTreeMap<String, String> {
    fn walk(at: &Path, shown: String, out: &mut BTreeMap<String, String>) {
        if !fs::metadata(at).unwrap_or_else(|fault| panic!("{shown}: {fault}")).is_dir() {
            out.insert(shown, String::from_utf8_lossy(&fs::read(at).expect("a file")).into_owned());
            return;
        }
        out.insert(format!("{shown}/"), String::new());
        for entry in fs::read_dir(at).expect("a folder") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            walk(&at.join(&name), format!("{shown}/{name}"), out);
        }
    }
    let mut out = BTreeMap::new();
    walk(folder, String::new(), &mut out);
    out
}

#[test]
fn all_cases_loaded_into_one_root_one_after_another_are_valid_and_stay_so() {
    for (server, planner, cases) in PLANNERS {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, one) = (folder.path().join("server"), folder.path().join("one"));
        let mut laid_out = Vec::new();
        for (at, (case, kind, path, files, expected)) in cases.iter().enumerate() {
            let model = pull(&folder.path().join(format!("pulled-{at}")), path, files);
            let plan = planner(&read(&format!("m{at}"), kind, path, model.clone())).unwrap_or_else(|fault| panic!("{server}, {case}: {fault}"));
            assert_eq!(plan.entries.len(), expected.len(), "{server}, {case}: {plan:?}");
            let laid = plan.carry_out(&root).unwrap_or_else(|fault| panic!("{server}, {case}: {fault}"));
            // The same model of the same name over the one before: nothing of that may be left.
            let again = planner(&read("m", kind, path, model)).expect("as before").carry_out(&one).expect("done");
            let now = seen(&laid.path);
            if server != "mlserver" {
                assert_eq!(seen(&again.path), now, "{server}, {case}"); // MLServer's settings hold the name
            }
            assert_eq!(seen(&again.path).len(), now.len(), "{server}, {case}");
            laid_out.push((case, laid.path, now));
        }
        for (case, path, before) in &laid_out {
            assert_eq!(seen(path), *before, "{server}, {case}: others that came later changed it");
        }
        for at in 0..laid_out.len() {
            clear(&root, &format!("m{at}")).expect("cleared");
            for (case, path, before) in &laid_out[at + 1..] {
                assert!(path.exists() && (at % 10 > 0 || seen(path) == *before), "{server}, {case}");
            }
        }
        assert_eq!(fs::read_dir(&root).expect("a folder").count(), 1, "{server}: only what is ours is left");
    }
}

#[test]
fn a_source_is_read_from_what_the_disk_tier_hands_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (files, schema) = (folder.path().join("files"), r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]}"#);
    pull(&files, "", &["net/model.x", "net/more/s.json=schema", "_model/a", "_model/s.json=x", "s.json=x"]);
    fs::write(files.join("s.json"), schema).expect("a file");
    fs::write(files.join("_model/s.json"), schema).expect("a file");
    let beside = Artifacts { model: files.join("net"), schema: Some(files.join("s.json")), size: ByteSize(1) };
    let source = Source::read(&registration("team/m", "ONNX:1.9", "store/net"), &beside).expect("sound");
    assert_eq!((source.kind.as_str(), source.name.as_str(), source.server_name().as_str()), ("onnx", "net", "team~2Fm"));
    assert_eq!(source.schema.as_ref().map(|schema| schema.inputs.len()), Some(1));
    assert!(source.listing.get("more/s.json").is_some());
    // Everything in the bucket is the model, the schema among it.
    let among = Artifacts { model: files.join("_model"), schema: Some(files.join("_model/s.json")), size: ByteSize(1) };
    let source = Source::read(&registration("m", "onnx", "/"), &among).expect("sound");
    assert_eq!(source.name, "m");
    assert!(source.listing.get("s.json").is_none() && source.listing.get("a").is_some());
    // Through a link to the folder, as a mounted volume may have it.
    std::os::unix::fs::symlink("net", files.join("link")).expect("a link");
    let linked = Artifacts { model: files.join("link"), schema: None, size: ByteSize(1) };
    let source = Source::read(&registration("m", "onnx", "link"), &linked).expect("sound");
    assert_eq!((source.name.as_str(), source.path), ("link", files.canonicalize().expect("there").join("net")));
    let broken = Artifacts { model: files.join("net"), schema: Some(files.join("net/more/s.json")), size: ByteSize(1) };
    let refused = Source::read(&registration("m", "onnx", "net"), &broken).expect_err("no schema");
    assert!(refused.message.starts_with("schema s.json: expected value at line 1"), "{refused}");
}

#[test]
fn the_format_decides_in_lower_case_and_up_to_the_colon() {
    for (written, kind) in
        [("onnx", "onnx"), ("tensorRT:2x", "tensorrt"), ("tensorflow:1.5", "tensorflow"), ("XGBoost", "xgboost"), ("", ""), (":1", "")]
    {
        assert_eq!(kind_of(written), kind);
    }
}

#[test]
fn an_archive_for_torchserve_is_a_link_of_the_models_name() {
    let plan = torchserve::plan(&source("pytorch-mar", "pytorch-mar/mnist.mar", &["pytorch-mar/mnist.mar"], None)).expect("sound");
    assert_eq!((plan.name.as_str(), shown(&plan.entries), plan.notes.len()), ("m.mar", vec![" -> pytorch-mar/mnist.mar".to_owned()], 0));
    let escaped = Source { id: id("a/b\\c"), ..source("pytorch-mar", "x.mar", &["x.mar"], Some("{}")) };
    let plan = torchserve::plan(&escaped).expect("sound");
    assert_eq!((plan.name.as_str(), plan.notes.len()), ("a~2Fb~5Cc.mar", 1));
    let refused = torchserve::plan(&source("pytorch-mar", "d", &["d/mnist.mar"], None)).expect_err("a folder");
    assert!(refused.message.contains("takes one .mar file; found [mnist.mar]") && refused.nothing_attempted, "{refused}");
    // On the disk, and gone after the unload.
    let folder = tempfile::tempdir().expect("a folder");
    let model = pull(&folder.path().join("pulled"), "mnist.mar", &["mnist.mar=archive"]);
    let plan = torchserve::plan(&read("m", "pytorch-mar", "mnist.mar", model)).expect("sound");
    let store = folder.path().join("store");
    let laid = plan.carry_out(&store).expect("done");
    assert_eq!((laid.path.clone(), fs::read_to_string(&laid.path).expect("a file")), (store.join("m.mar"), "archive".to_owned()));
    clear(&store, &plan.name).expect("done");
    assert!(!laid.path.exists() && folder.path().join("pulled/mnist.mar").exists());
}

#[test]
fn a_file_is_a_file_and_a_folder_a_folder_in_these_tests() {
    assert!(matches!(source("x", "a", &["a"], None).listing.0, Node::File { bytes: 1, .. }));
    assert!(source("x", "d", &["d/"], None).listing.0.is_folder());
}

/// A tree of files that may be anything to any server.
fn tree() -> impl Strategy<Value = Vec<(String, &'static str)>> {
    let name = prop::sample::select(vec![
        "1",
        "2",
        "03",
        "0",
        "_schema.json",
        "a",
        "b",
        "config.pbtxt",
        "model-settings.json",
        "model.onnx",
        "model.py",
        "net.onnx",
        "x.json",
        "x.txt",
        "x.xml",
    ]);
    let text = prop::sample::select(vec![
        "",
        "x",
        "name: \"a\" max_batch_size: 2 input { }",
        "ensemble_scheduling { step { model_name: \"a\" } step { model_name: \"b\" } }",
        "ensemble_scheduling { step [ { model_name: \"b\" } ] }",
        "{\"parameters\": {\"uri\": \"./a/../x.json\"}}",
        "{\"name\": 1}",
        "tree\nmax_feature_idx=3\n",
        "{\"num_feature\":\"4\"}",
        "input [ {",
    ]);
    let file = (prop::collection::vec(name, 1..4), text).prop_map(|(parts, text)| (parts.join("/"), text));
    prop::collection::vec(file, 1..8).prop_map(|mut files| {
        files.sort();
        files.dedup_by(|later, earlier| later.0 == earlier.0);
        let paths: Vec<String> = files.iter().map(|(path, _)| path.clone()).collect();
        files.retain(|(path, _)| !paths.iter().any(|other| other.starts_with(&format!("{path}/"))));
        files
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn any_tree_of_files_is_refused_or_laid_out_within_its_own_folder(
        files in tree(),
        kind in prop::sample::select(vec!["onnx", "python", "tensorflow", "pytorch", "xgboost", "lightgbm", "openvino", "keras", "sklearn", "foo"]),
        schema in prop::option::of(Just(r#"{"inputs":[{"name":"input__0","datatype":"FP32","shape":[-1,4]}]}"#)),
        device in prop::option::of(Just(triton::Device::Gpu(1))),
        version in prop::option::of(1u64..3),
    ) {
        let files: Vec<String> = files.into_iter().map(|(path, text)| format!("{path}={text}")).collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let source = source(kind, "", &files, schema);
        let options = triton::Options { device, version, ..triton::Options::default() };
        for plan in [triton::plan(&source, &options), mlserver::plan(&source, Path::new("/models")), ovms::plan(&source), torchserve::plan(&source)] {
            let plan = match plan {
                Ok(plan) => plan,
                Err(fault) => {
                    prop_assert!(fault.nothing_attempted && fault.fault == crate::LoadFault::BadModel && !fault.message.is_empty());
                    continue;
                }
            };
            prop_assert!(plan.check().is_ok(), "{:?}", plan);
            let are_parts = plan.parts.keys().all(|name| matches!(named(name), Named::Part { .. }));
            prop_assert!(are_parts, "{:?}", plan.parts.keys());
            for (path, entry) in plan.parts.values().chain([&plan.entries]).flatten() {
                match entry {
                    Entry::Link(target) | Entry::Tree(target, _) => {
                        let inside = target.strip_prefix(PULLED).expect("a file of the model").to_str().expect("UTF-8");
                        prop_assert!(source.listing.get(inside).is_some(), "{} leads to {}", path, inside);
                    }
                    Entry::Text(text) if path == "config.pbtxt" => {
                        prop_assert!(super::pbtxt::Document::parse(text).is_ok(), "{}", String::from_utf8_lossy(text));
                    }
                    Entry::Text(text) => prop_assert!(serde_json::from_slice::<serde_json::Value>(text).is_ok()),
                    Entry::Folder => {}
                }
            }
        }
    }
}
