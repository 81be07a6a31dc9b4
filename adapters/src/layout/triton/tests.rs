use std::collections::BTreeMap;

use super::super::listing::Node;
use super::super::name::{Named, named};
use super::super::tests::{Case, id, shown, source};
use super::*;

/// Upstream's own cases, and those that it has no test for.
pub(in super::super) const CASES: &[Case] = &[
    ("a file of an unknown type", "foo", "model.data", &["model.data"], &["1/model.data -> model.data"]),
    ("a folder with one file", "foo", "model", &["model/data.model"], &["1 -> model"]),
    ("a folder with many files", "foo", "model", &["model/a", "model/b", "model/c"], &["1 -> model"]),
    ("a folder with one folder", "foo", "model", &["model/dir/a"], &["1 -> model"]),
    ("a folder with both", "foo", "model", &["model/a", "model/dir/b"], &["1 -> model"]),
    ("an empty path", "foo", "", &["a", "b"], &["1 -> "]),
    ("versions", "foo", "model", &["model/1/a", "model/3/a"], &["3 -> model/3"]),
    ("versions of folders", "foo", "model", &["model/7/dir/a", "model/9/dir/a"], &["9 -> model/9"]),
    ("a version itself", "foo", "model/2", &["model/2/a"], &["1 -> model/2"]),
    ("files beside versions are not served", "foo", "model", &["model/readme", "model/3/a"], &["3 -> model/3"]),
    ("a folder beside versions is no version", "foo", "model", &["model/3/a", "model/doc/a"], &["1 -> model"]),
    ("version zero is none", "foo", "model", &["model/0/a"], &["1 -> model"]),
    ("Triton passes over leading zeros", "foo", "model", &["model/007/a", "model/2/a"], &["7 -> model/007"]),
    ("the plain number before the one with zeros", "foo", "model", &["model/007/a", "model/7/a"], &["7 -> model/7"]),
    ("a number beyond numbers is a name", "foo", "model", &["model/99999999999999999999/a"], &["1 -> model"]),
    ("tensorflow: an empty folder", "tensorflow", "model", &["model/"], &["1/model.savedmodel -> model"]),
    (
        "tensorflow: laid out with a saved model",
        "tensorflow",
        "model",
        &["model/1/model.savedmodel/saved_model.pb", "model/1/model.savedmodel/variables/a"],
        &["1/model.savedmodel -> model/1/model.savedmodel"],
    ),
    ("tensorflow: laid out with a graph", "tensorflow", "model", &["model/1/model.graphdef"], &["1/model.graphdef -> model/1/model.graphdef"]),
    ("tensorflow: a lone saved_model.pb", "tensorflow", "model", &["model/saved_model.pb"], &["1/model.graphdef -> model/saved_model.pb"]),
    (
        "tensorflow: a saved model, the type with a version",
        "tensorflow:1.5",
        "model",
        &["model/saved_model.pb", "model/variables/a"],
        &["1/model.savedmodel -> model"],
    ),
    (
        "tensorflow: a folder saved_model",
        "tensorflow",
        "model",
        &["model/saved_model/saved_model.pb", "model/saved_model/variables/a"],
        &["1/model.savedmodel -> model/saved_model"],
    ),
    (
        "tensorflow: a folder model.savedmodel",
        "tensorflow",
        "model",
        &["model/model.savedmodel/saved_model.pb", "model/model.savedmodel/variables/a"],
        &["1/model.savedmodel -> model/model.savedmodel"],
    ),
    ("tensorflow: a version with a file", "tensorflow", "model", &["model/1/saved_model.pb"], &["1/model.graphdef -> model/1/saved_model.pb"]),
    (
        "tensorflow: a version that is a saved model",
        "tensorflow",
        "model",
        &["model/2/saved_model.pb", "model/2/variables/a"],
        &["2/model.savedmodel -> model/2"],
    ),
    (
        "tensorflow: a version with a folder",
        "tensorflow",
        "model",
        &["model/1/saved_model/saved_model.pb", "model/1/saved_model/variables/a"],
        &["1/model.savedmodel -> model/1/saved_model"],
    ),
    ("tensorflow: 1 and NAN", "tensorflow", "model", &["model/1/saved_model.pb", "model/NAN/saved_model.pb"], &["1/model.savedmodel -> model"]),
    (
        "tensorflow: versions 1, 2, 5",
        "tensorflow",
        "model",
        &["model/1/saved_model.pb", "model/2/saved_model.pb", "model/5/saved_model.pb", "model/5/variables/a"],
        &["5/model.savedmodel -> model/5"],
    ),
    (
        "tensorflow: versions in numeric order, folder",
        "tensorflow",
        "model",
        &["model/2/a/saved_model.pb", "model/14/a/saved_model.pb"],
        &["14/model.savedmodel -> model/14/a"],
    ),
    (
        "tensorflow: versions in numeric order, file",
        "tensorflow",
        "model",
        &["model/2/model.graphdef", "model/14/model.graphdef"],
        &["14/model.graphdef -> model/14/model.graphdef"],
    ),
    (
        "tensorflow: laid out with a configuration",
        "tensorflow",
        "model",
        &[
            "model/config.pbtxt=name: \"old\"\nplatform: \"tensorflow_graphdef\"\n",
            "model/1/model.graphdef",
            "model/14/model.graphdef",
            "model/labels.txt",
        ],
        &["1 -> model/1", "14 -> model/14", "config.pbtxt = \nplatform: \"tensorflow_graphdef\"\n", "labels.txt -> model/labels.txt"],
    ),
    ("tensorrt: laid out", "tensorrt", "model", &["model/1/model.plan"], &["1/model.plan -> model/1/model.plan"]),
    ("tensorrt: a version with another name", "tensorRT:2x", "model", &["model/2/model_2.plan"], &["2/model.plan -> model/2/model_2.plan"]),
    ("tensorrt: a file", "TensorRT", "model.plan", &["model.plan"], &["1/model.plan -> model.plan"]),
    ("tensorrt: a folder with a file", "tensorrt", "model", &["model/model.plan"], &["1/model.plan -> model/model.plan"]),
    ("tensorrt: a folder with a folder", "tensorrt", "model", &["model/myModel/model.plan"], &["1 -> model/myModel"]),
    ("tensorrt: more files", "tensorrt", "model", &["model/model.plan", "model/notes.txt"], &["1 -> model"]),
    ("tensorrt: unexpected folders", "tensorrt", "model", &["model/model.plan", "model/dir/a"], &["1 -> model"]),
    ("pytorch: laid out", "pytorch", "model", &["model/1/model.pt"], &["1/model.pt -> model/1/model.pt"]),
    ("pytorch: any single file", "pytorch", "model.x", &["model.x"], &["1/model.pt -> model.x"]),
    ("pytorch: any single file of a folder", "pytorch", "model", &["model/net.bin"], &["1/model.pt -> model/net.bin"]),
    ("onnx: laid out with a file", "onnx", "model", &["model/1/model.onnx"], &["1/model.onnx -> model/1/model.onnx"]),
    (
        "onnx: laid out with a folder",
        "onnx",
        "model",
        &["model/1/model.onnx/model.onnx", "model/1/model.onnx/weights"],
        &["1/model.onnx -> model/1/model.onnx"],
    ),
    ("onnx: a version with more files", "onnx", "model", &["model/1/model.onnx", "model/1/weights"], &["1/model.onnx -> model/1"]),
    ("onnx: a file", "onnx", "model.x", &["model.x"], &["1/model.onnx -> model.x"]),
    ("onnx: a folder of files", "onnx", "model", &["model/model.x", "model/variables/a"], &["1/model.onnx -> model"]),
    ("onnx: a folder with a folder", "onnx", "model", &["model/myModel/model.x", "model/myModel/y"], &["1/model.onnx -> model/myModel"]),
    (
        "onnx: external data beside a file of another name",
        "onnx",
        "model",
        &["model/net.onnx", "model/net.onnx.data"],
        &["1 -> model", "config.pbtxt = backend: \"onnxruntime\"\ndefault_model_filename: \"net.onnx\"\n"],
    ),
    (
        "tensorrt: a plan of another name among files",
        "tensorrt",
        "model",
        &["model/net.engine", "model/notes.txt"],
        &["1 -> model", "config.pbtxt = backend: \"tensorrt\"\ndefault_model_filename: \"net.engine\"\n"],
    ),
    ("a schema beside the model is no part of it", "onnx", "model", &["model/_schema.json", "model/net.x"], &["1/model.onnx -> model/net.x"]),
    (
        "openvino: files of one name",
        "openvino",
        "mnist",
        &["mnist/mnist.bin", "mnist/mnist.mapping", "mnist/mnist.xml"],
        &["1 -> mnist", "config.pbtxt = backend: \"openvino\"\ndefault_model_filename: \"mnist.xml\"\n"],
    ),
    ("openvino: files as the backend wants them", "openvino", "model", &["model/model.xml", "model/model.bin"], &["1 -> model"]),
    ("python: a file", "python", "model.py", &["model.py"], &["1/model.py -> model.py", "config.pbtxt = backend: \"python\"\n"]),
    ("python: a folder", "python", "m", &["m/model.py", "m/util.py"], &["1 -> m", "config.pbtxt = backend: \"python\"\n"]),
    (
        "python: laid out",
        "python",
        "model",
        &["model/config.pbtxt=backend: \"python\"", "model/1/model.py"],
        &["1 -> model/1", "config.pbtxt = backend: \"python\""],
    ),
    (
        "a configuration without a version's folder",
        "python",
        "model",
        &["model/config.pbtxt=backend: \"python\"", "model/model.py", "model/env.tar"],
        &["1 -> model", "config.pbtxt = backend: \"python\"", "env.tar -> model/env.tar", "model.py -> model/model.py"],
    ),
    (
        "a model packed with its own folder",
        "onnx",
        "pack",
        &["pack/net/config.pbtxt=name: \"net\" backend: \"onnxruntime\"", "pack/net/1/model.onnx"],
        &["1 -> pack/net/1", "config.pbtxt =  backend: \"onnxruntime\""],
    ),
    (
        "a configuration beside a version with leading zeros",
        "onnx",
        "model",
        &["model/config.pbtxt=max_batch_size: 0", "model/02/model.onnx", "model/03/model.onnx", "model/3/model.onnx"],
        &["2 -> model/02", "3 -> model/3", "config.pbtxt = max_batch_size: 0"],
    ),
    (
        "configurations in the folders of versions",
        "onnx",
        "model",
        &["model/1/config.pbtxt=a: 1", "model/1/model.onnx", "model/2/config.pbtxt=a: 1", "model/2/model.onnx"],
        &["2/model.onnx -> model/2"],
    ),
    // The example models.
    ("example: onnx/mnist.onnx", "onnx", "onnx/mnist.onnx", &["onnx/mnist.onnx"], &["1/model.onnx -> onnx/mnist.onnx"]),
    (
        "example: tensorflow/mnist",
        "tensorflow",
        "tensorflow/mnist",
        &["tensorflow/mnist/saved_model.pb", "tensorflow/mnist/variables/a"],
        &["1/model.savedmodel -> tensorflow/mnist"],
    ),
    (
        "example: tensorflow/mnist.savedmodel",
        "keras",
        "tensorflow/mnist.savedmodel",
        &["tensorflow/mnist.savedmodel/saved_model.pb", "tensorflow/mnist.savedmodel/variables/a"],
        &["1/model.savedmodel -> tensorflow/mnist.savedmodel"],
    ),
    (
        "example: pytorch/cifar",
        "pytorch",
        "pytorch/cifar",
        &["pytorch/cifar/config.pbtxt=platform: \"pytorch_libtorch\"\nmax_batch_size: 1\n", "pytorch/cifar/1/model.pt"],
        &["1 -> pytorch/cifar/1", "config.pbtxt = platform: \"pytorch_libtorch\"\nmax_batch_size: 1\n"],
    ),
    (
        "example: tensorflow/simple_string, whose name must go",
        "tensorflow",
        "tensorflow/simple_string",
        &["tensorflow/simple_string/config.pbtxt=name: \"simple_string\" # ours\nmax_batch_size: 8\n", "tensorflow/simple_string/1/model.graphdef"],
        &["1 -> tensorflow/simple_string/1", "config.pbtxt =  # ours\nmax_batch_size: 8\n"],
    ),
    (
        "example: lightgbm/lightgbm-fil",
        "lightgbm",
        "lightgbm/lightgbm-fil",
        &["lightgbm/lightgbm-fil/config.pbtxt=backend: \"fil\"", "lightgbm/lightgbm-fil/1/model.txt"],
        &["1 -> lightgbm/lightgbm-fil/1", "config.pbtxt = backend: \"fil\""],
    ),
    (
        "example: xgboost/mushroom-fil",
        "xgboost",
        "xgboost/mushroom-fil",
        &["xgboost/mushroom-fil/config.pbtxt=backend: \"fil\"", "xgboost/mushroom-fil/1/xgboost.json"],
        &["1 -> xgboost/mushroom-fil/1", "config.pbtxt = backend: \"fil\""],
    ),
];

fn planned(source: &Source) -> Result<Plan, LoadError> {
    plan(source, &Options::default())
}

fn config_of(plan: &Plan) -> String {
    match plan.entries.get(CONFIG) {
        Some(Entry::Text(text)) => String::from_utf8(text.clone()).expect("UTF-8"),
        other => panic!("no configuration but {other:?}"),
    }
}

#[test]
fn every_layout_is_linked_as_triton_wants_it() {
    for (case, kind, path, files, expected) in CASES {
        let plan = planned(&source(kind, path, files, None)).unwrap_or_else(|fault| panic!("{case}: {fault}"));
        assert_eq!(shown(&plan.entries), *expected, "{case}");
        assert_eq!((plan.parts.len(), plan.config, plan.notes.len()), (0, None, 0), "{case}");
    }
}

#[test]
fn a_linked_folder_is_no_version() {
    let mut linked = source("foo", "model", &["model/1/a", "model/2/a"], None);
    let Node::Folder { entries, .. } = &mut linked.listing.0 else { panic!("a folder") };
    let Some(Node::Folder { linked: is_link, .. }) = entries.get_mut("2") else { panic!("a folder") };
    *is_link = true;
    assert_eq!(shown(&planned(&linked).expect("sound").entries), ["1 -> model/1"]);
}

#[test]
fn a_version_can_be_chosen() {
    let chosen = |version| Options { version: Some(version), ..Options::default() };
    let versions = source("foo", "model", &["model/1/a", "model/3/a"], None);
    assert_eq!(shown(&plan(&versions, &chosen(1)).expect("there").entries), ["1 -> model/1"]);
    let refused = plan(&versions, &chosen(2)).expect_err("not there");
    assert_eq!(refused.message, "version 2 of model is not there: found [1/, 3/]");
    assert!(plan(&versions, &chosen(0)).is_err());
    let shaped = source("onnx", "model", &["model/config.pbtxt=max_batch_size: 0", "model/1/a", "model/3/a", "model/labels"], None);
    let links = shown(&plan(&shaped, &chosen(1)).expect("there").entries);
    assert_eq!(links, ["1 -> model/1", "config.pbtxt = max_batch_size: 0", "labels -> model/labels"]);
    assert!(plan(&shaped, &chosen(2)).is_err());
    assert_eq!(shown(&plan(&source("foo", "a", &["a"], None), &chosen(4)).expect("a name for it").entries), ["4/a -> a"]);
}

#[test]
fn a_schema_makes_a_configuration_where_there_is_none() {
    let io = r#"{"inputs":[{"name":"in","datatype":"FP32","shape":[3,32,32]}],"outputs":[{"name":"out","datatype":"INT64","shape":[1]}]}"#;
    let io_text = "input [\n  { name: \"in\" data_type: TYPE_FP32 dims: [ 3, 32, 32 ] }\n]\noutput [\n  { name: \"out\" data_type: TYPE_INT64 dims: [ 1 ] }\n]\n";
    let with = |backend: &str| format!("config.pbtxt = {backend}{io_text}");
    for (case, kind, path, files, schema, expected) in [
        (
            "an empty schema",
            "onnx",
            "m.onnx",
            &["m.onnx"][..],
            "{}",
            vec!["1/model.onnx -> m.onnx".to_owned(), "config.pbtxt = backend: \"onnxruntime\"\n".to_owned()],
        ),
        ("pytorch", "pytorch", "m", &["m/_schema.json", "m/net"], io, vec!["1/model.pt -> m/net".to_owned(), with("backend: \"pytorch\"\n")]),
        (
            "a folder of tensorflow",
            "tensorflow",
            "m",
            &["m/saved_model.pb", "m/variables/a"],
            io,
            vec!["1/model.savedmodel -> m".to_owned(), with("backend: \"tensorflow\"\n")],
        ),
        (
            "keras",
            "keras",
            "m",
            &["m/saved_model.pb", "m/variables/a"],
            io,
            vec!["1/model.savedmodel -> m".to_owned(), with("backend: \"tensorflow\"\n")],
        ),
        ("tensorrt", "tensorrt", "m.plan", &["m.plan"], io, vec!["1/model.plan -> m.plan".to_owned(), with("backend: \"tensorrt\"\n")]),
        ("a type that nobody knows", "foo", "m.x", &["m.x"], io, vec!["1/m.x -> m.x".to_owned(), with("")]),
        (
            "openvino",
            "openvino",
            "m",
            &["m/a.xml", "m/a.bin"],
            io,
            vec!["1 -> m".to_owned(), with("backend: \"openvino\"\ndefault_model_filename: \"a.xml\"\n")],
        ),
    ] {
        let plan = planned(&source(kind, path, files, Some(schema))).unwrap_or_else(|fault| panic!("{case}: {fault}"));
        assert_eq!(shown(&plan.entries), expected, "{case}");
    }
}

#[test]
fn every_datatype_of_a_schema_has_its_triton_name() {
    let types = [
        ("BOOL", "BOOL"),
        ("UINT8", "UINT8"),
        ("UINT16", "UINT16"),
        ("UINT32", "UINT32"),
        ("UINT64", "UINT64"),
        ("INT8", "INT8"),
        ("INT16", "INT16"),
        ("INT32", "INT32"),
        ("INT64", "INT64"),
        ("FP16", "FP16"),
        ("FP32", "FP32"),
        ("FP64", "FP64"),
        ("BF16", "BF16"),
        ("STRING", "STRING"),
        ("BYTES", "STRING"),
    ];
    for (written, name) in types {
        let schema = format!(r#"{{"outputs":[{{"name":"a \"b\"","datatype":"{written}","shape":[-1,2]}}]}}"#);
        let config = config_of(&planned(&source("pytorch", "m", &["m"], Some(&schema))).expect("sound"));
        let expected = format!("backend: \"pytorch\"\noutput [\n  {{ name: \"a \\\"b\\\"\" data_type: TYPE_{name} dims: [ -1, 2 ] }}\n]\n");
        assert_eq!(config, expected, "{written}");
    }
}

#[test]
fn a_schema_replaces_what_it_states_and_keeps_the_rest() {
    let config = "# mine\nname: \"x\"\nplatform: \"p\"\ninput [ { name: \"a\" data_type: TYPE_FP32 dims: [ 1 ] } ]\noutput { name: \"b\" dims: 1 }\noutput { name: \"c\" dims: 1 }\nresponse_cache { enable: true }\n";
    let one = |name: &str, shape: &str| format!(r#"[{{"name":"{name}","datatype":"BYTES","shape":{shape}}}]"#);
    let new = |field: &str, name: &str, dims: &str| format!("{field} [\n  {{ name: \"{name}\" data_type: TYPE_STRING dims: {dims} }}\n]");
    let both = |dims: &str| {
        format!("# mine\n\nplatform: \"p\"\n{}\n{}\n\nresponse_cache {{ enable: true }}\n", new("input", "i", dims), new("output", "o", dims))
    };
    for (case, batch, schema, expected) in [
        (
            "inputs only",
            "",
            format!(r#"{{"inputs":{}}}"#, one("i", "[2]")),
            Ok(format!(
                "# mine\n\nplatform: \"p\"\n{}\noutput {{ name: \"b\" dims: 1 }}\noutput {{ name: \"c\" dims: 1 }}\nresponse_cache {{ enable: true }}\n",
                new("input", "i", "[ 2 ]")
            )),
        ),
        ("both", "", format!(r#"{{"inputs":{},"outputs":{}}}"#, one("i", "[2]"), one("o", "[2]")), Ok(both("[ 2 ]"))),
        ("nothing", "", "{}".to_owned(), Ok(config.replace("name: \"x\"", ""))),
        (
            "a batch, stripped",
            "max_batch_size: 100\n",
            format!(r#"{{"inputs":{},"outputs":{}}}"#, one("i", "[-1,3]"), one("o", "[-1,3]")),
            Ok(format!("max_batch_size: 100\n{}", both("[ 3 ]"))),
        ),
        (
            "a batch of scalars",
            "max_batch_size: 0x10\n",
            format!(r#"{{"inputs":{},"outputs":{}}}"#, one("i", "[-1]"), one("o", "[-1]")),
            Ok(format!("max_batch_size: 0x10\n{}", both("[ 1 ] reshape { shape: [ ] }"))),
        ),
        (
            "scalars without a batch",
            "max_batch_size: 0\n",
            format!(r#"{{"inputs":{},"outputs":{}}}"#, one("i", "[]"), one("o", "[]")),
            Ok(format!("max_batch_size: 0\n{}", both("[ 1 ]"))),
        ),
        (
            "an output without the batch",
            "max_batch_size: 100\n",
            format!(r#"{{"inputs":{},"outputs":{}}}"#, one("i", "[-1,3]"), one("o", "[3]")),
            Err("output \"o\" has shape [3]: max_batch_size is above 0, so the first dimension must be -1, the batch"),
        ),
        (
            "an empty shape where there is a batch",
            "max_batch_size: 1\n",
            format!(r#"{{"inputs":{}}}"#, one("i", "[]")),
            Err("input \"i\" has shape []: max_batch_size is above 0, so the first dimension must be -1, the batch"),
        ),
        (
            "a batch that is no number",
            "max_batch_size: \"8\"\n",
            format!(r#"{{"inputs":{}}}"#, one("i", "[-1]")),
            Err("config.pbtxt: max_batch_size is \"8\": expected a whole number"),
        ),
    ] {
        let file = format!("m/config.pbtxt={batch}{config}");
        let planned = planned(&source("tensorflow", "m", &[&file, "m/1/a"], Some(&schema)));
        match (planned, expected) {
            (Ok(plan), Ok(expected)) => assert_eq!(config_of(&plan), expected, "{case}"),
            (Err(fault), Err(expected)) => assert_eq!((fault.message.as_str(), fault.nothing_attempted), (expected, true), "{case}"),
            (planned, expected) => panic!("{case}: {planned:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn the_examples_with_a_schema_come_out_right() {
    let cifar = r#"{"inputs":[{"name":"INPUT__0","datatype":"FP32","shape":[-1,3,32,32]}],"outputs":[{"name":"OUTPUT__0","datatype":"FP32","shape":[-1,10]}]}"#;
    let files = &["fvt/pytorch-cifar-schema/config.pbtxt=max_batch_size: 1", "fvt/pytorch-cifar-schema/1/model.pt"];
    let config = config_of(&planned(&source("pytorch", "fvt/pytorch-cifar-schema", files, Some(cifar))).expect("sound"));
    let io = "input [\n  { name: \"INPUT__0\" data_type: TYPE_FP32 dims: [ 3, 32, 32 ] }\n]\noutput [\n  { name: \"OUTPUT__0\" data_type: TYPE_FP32 dims: [ 10 ] }\n]\n";
    assert_eq!(config, format!("max_batch_size: 1\n{io}"));
    let mnist = r#"{"inputs":[{"name":"Input3","datatype":"FP32","shape":[1,1,28,28]}],"outputs":[{"name":"Plus214_Output_0","datatype":"FP32","shape":[1,10]}]}"#;
    let io = "input [\n  { name: \"Input3\" data_type: TYPE_FP32 dims: [ 1, 1, 28, 28 ] }\n]\noutput [\n  { name: \"Plus214_Output_0\" data_type: TYPE_FP32 dims: [ 1, 10 ] }\n]\n";
    let bare = planned(&source("onnx", "onnx/mnist.onnx", &["onnx/mnist.onnx"], Some(mnist))).expect("sound");
    assert_eq!(config_of(&bare), format!("backend: \"onnxruntime\"\n{io}"));
    let files = &["fvt/onnx-withschema/config.pbtxt=backend: \"onnxruntime\"\nmax_batch_size: 0\n", "fvt/onnx-withschema/1/model.onnx"];
    let config = config_of(&planned(&source("onnx", "fvt/onnx-withschema", files, Some(mnist))).expect("sound"));
    assert_eq!(config, format!("backend: \"onnxruntime\"\nmax_batch_size: 0\n{io}"));
}

#[test]
fn a_keras_file_is_refused_with_what_to_do() {
    for (path, files) in [("keras/mnist.h5", &["keras/mnist.h5"]), ("keras", &["keras/mnist.h5"])] {
        let refused = planned(&source("keras", path, files, None)).expect_err("no converter");
        assert!(refused.message.starts_with("mnist.h5: ") && refused.message.contains("export the model as SavedModel or ONNX"), "{refused}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_says_where() {
    for (text, says) in [
        ("name: \"x\"\nbackend \"onnx\"\n", "config.pbtxt: line 2, column 9: expected ':' or '{' after backend, found \"\\\"onnx\\\"\""),
        ("input [ { name: \"x\" }", "config.pbtxt: line 1, column 22: expected ',' or ']', found the end"),
        ("max_batch_size: 8 }", "config.pbtxt: line 1, column 19: expected a field name, found \"}\""),
        ("a: \"x\n", "config.pbtxt: line 1, column 4: this text is not closed on its line"),
    ] {
        let refused = planned(&source("onnx", "m", &[&format!("m/config.pbtxt={text}"), "m/1/model.onnx"], None)).expect_err(text);
        assert_eq!((refused.message.as_str(), refused.nothing_attempted), (says, true));
    }
}

#[test]
fn fields_newer_than_any_list_of_ours_pass_untouched() {
    let newer = "backend: 'onnxruntime'\nmodel_metrics { metric_control: [ { histogram_options { buckets: [ 1.5e-3, .5 ] } } ] }\n\
                 input < name: \"a\" optional: true; is_non_linear_format_io: false >, runtime: \"x\" 'y'\nfrom_2031 { a { b { c: -inf } } [ext.of/x] { } }\n";
    let file = format!("m/config.pbtxt=name: \"gone\"\n{newer}");
    let config = config_of(&planned(&source("onnx", "m", &[&file, "m/1/model.onnx"], None)).expect("sound"));
    assert_eq!(config, format!("\n{newer}"));
}

#[test]
fn instances_go_to_the_chosen_device() {
    for (case, before, device, after) in [
        ("none yet", "backend: \"b\" # end", Device::Gpu(1), "backend: \"b\" # end\ninstance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]\n"),
        ("none yet, CPU", "backend: \"b\"\n", Device::Cpu, "backend: \"b\"\ninstance_group [ { kind: KIND_CPU } ]\n"),
        ("an empty list", "instance_group [ ] a: 1", Device::Cpu, "instance_group [ { kind: KIND_CPU } ] a: 1"),
        (
            "a count and a name stay",
            "instance_group [ { name: \"i\" count: 2 kind: KIND_GPU gpus: [ 0, 3 ] } ]",
            Device::Gpu(7),
            "instance_group [ { kind: KIND_GPU gpus: [ 7 ] name: \"i\" count: 2   } ]",
        ),
        ("no kind", "instance_group { count: 2 }", Device::Gpu(0), "instance_group { kind: KIND_GPU gpus: [ 0 ] count: 2 }"),
        ("by number", "instance_group {kind:1}", Device::Cpu, "instance_group { kind: KIND_CPU }"),
        ("auto to the CPU", "instance_group <kind: KIND_AUTO>", Device::Cpu, "instance_group < kind: KIND_CPU >"),
        (
            "CPU and MODEL stay, the others go",
            "instance_group [ { kind: KIND_CPU }, { kind: KIND_MODEL }, { kind: KIND_GPU } ]",
            Device::Gpu(2),
            "instance_group [ { kind: KIND_CPU }, { kind: KIND_MODEL }, { kind: KIND_GPU gpus: [ 2 ]  } ]",
        ),
    ] {
        let options = Options { device: Some(device), ..Options::default() };
        let file = format!("m/config.pbtxt={before}");
        let plan = plan(&source("foo", "m", &[&file, "m/1/a"], None), &options).expect("sound");
        assert_eq!(config_of(&plan), after, "{case}");
    }
    let options = Options { device: Some(Device::Gpu(3)), ..Options::default() };
    let bare = plan(&source("onnx", "a.onnx", &["a.onnx"], None), &options).expect("sound");
    assert_eq!(config_of(&bare), "backend: \"onnxruntime\"\ninstance_group [ { kind: KIND_GPU gpus: [ 3 ] } ]\n");
}

#[test]
fn a_gpu_is_chosen_for_what_would_run_on_one() {
    let shaped = |config: &str| ("python", vec![format!("m/config.pbtxt={config}"), "m/1/model.py".to_owned()]);
    let bare = |kind: &'static str, file: &str| (kind, vec![format!("m/{file}")]);
    let parts = |first: &str, second: &str| {
        let step = |name: &str| format!("step {{ model_name: \"{name}\" }}");
        let main = format!("m/flow/config.pbtxt=ensemble_scheduling {{ {} {} }}", step("a"), step("b"));
        (
            "ensemble",
            vec![main, format!("m/a/config.pbtxt={first}"), "m/a/1/x".to_owned(), format!("m/b/config.pbtxt={second}"), "m/b/1/x".to_owned()],
        )
    };
    let cpu = "instance_group [ { count: 2 kind: KIND_CPU } ]";
    for (case, (kind, files), expected) in [
        ("nothing is said", shaped("backend: \"python\""), true),
        ("the CPU", shaped(cpu), false),
        ("the CPU by number, and the model itself", shaped("instance_group [ { kind: 2 }, { kind: KIND_MODEL } ]"), false),
        ("some on the CPU", shaped("instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU gpus: [ 0, 1 ] } ]"), true),
        ("whatever there is", shaped("instance_group [ { kind: KIND_AUTO } ]"), true),
        ("a backend for the CPU", shaped("backend: \"openvino\""), false),
        ("a file of onnx", bare("onnx", "model.onnx"), true),
        ("a file for a backend for the CPU", bare("openvino", "model.xml"), false),
        ("an ensemble of which a part would", parts("backend: \"b\"", cpu), true),
        ("an ensemble of which none would", parts(cpu, cpu), false),
    ] {
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(runs_on_a_gpu(&source(kind, "m", &files, None)).expect(case), expected, "{case}");
    }
    assert!(runs_on_a_gpu(&source("python", "m", &["m/config.pbtxt={", "m/1/model.py"], None)).is_err());
}

#[test]
fn an_ensemble_has_its_file_where_others_have_their_configuration_with_the_load() {
    let files = ["e/config.pbtxt=ensemble_scheduling { step { model_name: \"net\" } }", "e/net/config.pbtxt=backend: \"b\"", "e/net/1/x"];
    let options = Options { device: Some(Device::Gpu(1)), config: ConfigBy::Parameter, ..Options::default() };
    let plan = plan(&source("ensemble", "e", &files, None), &options).expect("sound");
    assert_eq!(plan.config, None);
    assert_eq!(config_of(&plan), "ensemble_scheduling { step { model_name: \"m~.net\" } }");
    let part = shown(&plan.parts["m~.net"]);
    assert!(part[1].contains("KIND_GPU gpus: [ 1 ]"), "{part:?}");
}

#[test]
fn the_configuration_can_go_with_the_load_as_json() {
    let options = Options { device: Some(Device::Gpu(1)), config: ConfigBy::Parameter, ..Options::default() };
    let text = "name: \"gone\"\nbackend: \"onnx\" 'runtime'\nmax_batch_size: 010\n\
        input { name: \"a\" data_type: TYPE_FP32 dims: -1 dims: 0x10 optional: true }\noutput [ { name: \"b\" dims: [ 2 ] label_filename: \"l\" } ]\n\
        parameters { key: \"p\" value { string_value: \"1\" } } parameters: [ { key: \"q\" value: { string_value: \"\\\"\\303\\274\" } } ]\n\
        instance_group { count: 2 }\nparameters { key: \"r\" } metric_tags { key: \"t\" }\n\
        dynamic_batching { priority_queue_policy { value { } } preferred_batch_size: 4 max_queue_delay_microseconds: 100 }\n\
        optimization { execution_accelerators { gpu_execution_accelerator { name: \"tensorrt\" parameters { key: \"k\" value: \"v\" } }\n\
        } cuda { graph_spec { batch_size: 1 input { key: \"a\" value { dim: 3 } } graph_lower_bound { input { key: \"a\" value { dim: 1 } } } } } }\nnewer: 1.5f newer: -inf\n";
    let file = format!("m/config.pbtxt={text}");
    let plan = plan(&source("onnx", "m", &[&file, "m/1/model.onnx"], None), &options).expect("sound");
    assert_eq!(shown(&plan.entries), ["1 -> m/1"]);
    let json: serde_json::Value = serde_json::from_str(&plan.config.expect("given")).expect("JSON");
    let expected = serde_json::json!({
        "backend": "onnxruntime", "max_batch_size": 8,
        "input": [{ "name": "a", "data_type": "TYPE_FP32", "dims": [-1, 16], "optional": true }],
        "output": [{ "name": "b", "dims": [2], "label_filename": "l" }],
        "parameters": { "p": { "string_value": "1" }, "q": { "string_value": "\"ü" }, "r": {} },
        "metric_tags": { "t": "" },
        "instance_group": [{ "kind": "KIND_GPU", "gpus": [1], "count": 2 }],
        "dynamic_batching": { "priority_queue_policy": { "0": {} }, "preferred_batch_size": [4], "max_queue_delay_microseconds": 100 },
        "optimization": {
            "execution_accelerators": { "gpu_execution_accelerator": [{ "name": "tensorrt", "parameters": { "k": "v" } }] },
            "cuda": { "graph_spec": [{ "batch_size": 1, "input": { "a": { "dim": [3] } }, "graph_lower_bound": { "input": { "a": { "dim": [1] } } } }] },
        },
        "newer": [1.5, "-Infinity"],
    });
    assert_eq!(json, expected);
    // Nothing to say is nothing said.
    let quiet = Options { device: None, ..options };
    assert_eq!(super::plan(&source("onnx", "a.onnx", &["a.onnx"], None), &quiet).expect("sound").config, None);
}

const STEPS: &str = "ensemble_scheduling { step [ { model_name: \"pre\" model_version: -1 input_map { key: \"pre\" value: \"pre\" } }, \
                     { model_name: 'n' \"et\" } ] step < model_name: \"pre\" > }";

#[test]
fn an_ensemble_and_its_parts_are_one_unit() {
    let main = format!("e/flow/config.pbtxt=name: \"flow\" platform: \"ensemble\" {STEPS}");
    let files = [
        main.as_str(),
        "e/flow/labels.txt",
        "e/pre/config.pbtxt=name: \"pre\" backend: \"python\"",
        "e/pre/1/model.py",
        "e/net/config.pbtxt=name: \"net\" backend: \"onnxruntime\"",
        "e/net/2/model.onnx",
        "e/net/10/model.onnx",
        "e/other/config.pbtxt=backend: \"python\"",
        "e/other/1/model.py",
        "e/readme.md",
    ];
    let options = Options { device: Some(Device::Gpu(1)), ..Options::default() };
    let source = Source { id: id("team/flow"), ..source("python", "e", &files, None) };
    let plan = plan(&source, &options).expect("sound");
    let renamed = STEPS.replace("model_name: \"pre\"", "model_name: \"team~2Fflow~.pre\"").replace("'n' \"et\"", "\"team~2Fflow~.net\"");
    assert_eq!(plan.name, "team~2Fflow");
    let config = format!("config.pbtxt =  platform: \"ensemble\" {renamed}");
    assert_eq!(shown(&plan.entries), ["1 -> e/flow", config.as_str(), "labels.txt -> e/flow/labels.txt"]);
    let parts: BTreeMap<&str, Vec<String>> = plan.parts.iter().map(|(name, entries)| (name.as_str(), shown(entries))).collect();
    let group = "instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]\n";
    let expected = BTreeMap::from([
        (
            "team~2Fflow~.net",
            vec!["10 -> e/net/10".to_owned(), "2 -> e/net/2".to_owned(), format!("config.pbtxt =  backend: \"onnxruntime\"\n{group}")],
        ),
        ("team~2Fflow~.pre", vec!["1 -> e/pre/1".to_owned(), format!("config.pbtxt =  backend: \"python\"\n{group}")]),
    ]);
    assert_eq!(parts, expected);
    assert!(plan.parts.keys().all(|name| matches!(named(name), Named::Part { of: Some(_) })));
    assert_eq!(plan.notes, ["other is named by no step of the ensemble and left out"]);
}

#[test]
fn an_ensemble_may_hold_its_parts_and_have_ensembles_among_them() {
    let files = [
        "e/config.pbtxt=ensemble_scheduling { step { model_name: \"inner\" } }",
        "e/inner/config.pbtxt=ensemble_scheduling { step { model_name: \"net\" } }",
        "e/net/config.pbtxt=backend: \"python\"",
        "e/net/1/model.py",
    ];
    let plan = planned(&source("ensemble", "e", &files, None)).expect("sound");
    assert_eq!(shown(&plan.entries), ["1/", "config.pbtxt = ensemble_scheduling { step { model_name: \"m~.inner\" } }"]);
    assert_eq!(shown(&plan.parts["m~.inner"]), ["1/", "config.pbtxt = ensemble_scheduling { step { model_name: \"m~.net\" } }"]);
    assert_eq!(shown(&plan.parts["m~.net"]), ["1 -> e/net/1", "config.pbtxt = backend: \"python\""]);
    // A schema is the ensemble's, not its parts'.
    let schema = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]}"#;
    let plan = planned(&source("ensemble", "e", &files, Some(schema))).expect("sound");
    assert!(config_of(&plan).ends_with("input [\n  { name: \"x\" data_type: TYPE_FP32 dims: [ 1 ] }\n]\n"));
    assert_eq!(shown(&plan.parts["m~.net"])[1], "config.pbtxt = backend: \"python\"");
}

#[test]
fn models_that_are_no_unit_are_refused_by_name() {
    let step = |name: &str| format!("config.pbtxt=ensemble_scheduling {{ step {{ model_name: \"{name}\" }} }}");
    let (to_b, to_a, to_x) = (format!("e/a/{}", step("b")), format!("e/b/{}", step("a")), format!("e/a/{}", step("x")));
    for (case, files, says) in [
        (
            "no ensemble",
            vec!["e/a/config.pbtxt=backend: \"x\"", "e/a/1/m", "e/b/config.pbtxt=backend: \"x\"", "e/b/1/m"],
            "e holds the Triton models [a, b], 0 of them ensembles that none names",
        ),
        ("each other's parts", vec![&to_b, &to_a], "e holds the Triton models [a, b], 0 of them ensembles that none names"),
        (
            "two ensembles",
            vec![&to_b, "e/b/config.pbtxt=backend: \"x\"", "e/c/config.pbtxt=ensemble_scheduling { }"],
            "2 of them ensembles that none names",
        ),
        (
            "a part that is not there",
            vec![&to_x, "e/b/config.pbtxt=backend: \"x\""],
            "the ensemble has a step of model \"x\", which is not in its folder: found [a, b]",
        ),
        ("a lone ensemble whose parts are elsewhere", vec![&to_x], "has a step of model \"x\", which is not in its folder: found []"),
        (
            "a part that cannot be read",
            vec![&to_b, "e/b/config.pbtxt=a: {", "e/b/1/m"],
            "b/config.pbtxt: line 1, column 5: expected a field name or '}', found the end",
        ),
    ] {
        let refused = planned(&source("python", "e", &files, None)).expect_err(case);
        assert!(refused.message.contains(says) && refused.nothing_attempted, "{case}: {refused}");
    }
}
