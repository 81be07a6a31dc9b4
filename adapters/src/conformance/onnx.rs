//! What the embedded runtime must do with either engine.

use std::fs;
use std::path::Path;

use berth_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use berth_proto::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_telemetry::Clock;
use berth_types::{ByteSize, ModelId};
use bytes::Bytes;

use super::{PATIENCE, Subject, outputs_of, raw_request, registration, runtime_suite};
use crate::{Artifacts, Infer, InferError, LoadError, LoadFault, OnnxRuntime, Runtime, sample};

/// In what the engines differ.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// BF16 tensors.
    pub bf16: bool,
    /// Inputs of which the model declares not even the rank.
    pub any_rank: bool,
    /// The loads of this process are measured: the test declares the counting allocator.
    pub measures: bool,
}

impl Abilities {
    /// The built-in engine's.
    pub const BUILT_IN: Abilities = Abilities { bf16: false, any_rank: false, measures: true };
    /// ONNX Runtime's.
    pub const ONNX_RUNTIME: Abilities = Abilities { bf16: true, any_rank: true, measures: true };
}

/// The suite of every runtime, then what is ONNX's own: datatypes, free dimensions, files, messages, sizes. `folder`:
/// an empty one for the models.
pub async fn onnx_suite(runtime: &OnnxRuntime, clock: &Clock, folder: &Path, abilities: Abilities) {
    let bench = Bench { runtime, clock, folder };
    let (a, b) = (floats(&[1.0, 2.0, 3.0]), floats(&[4.0, 5.0, 6.0]));
    let expected = |name: &str, values: &[f32]| (name.to_owned(), "FP32".to_owned(), vec![1, 3], floats(values));
    runtime_suite(&Subject {
        runtime: runtime.clone(),
        clock: clock.clone(),
        format: "onnx",
        good: bench.write("good", &sample::sum_and_product(true)),
        bad: bench.write("bad", b"<!DOCTYPE html><title>404</title>"),
        request: raw_request(&[("b", "FP32", &[1, 3], &b), ("a", "FP32", &[1, 3], &a)]),
        answer: vec![expected("sum", &[5.0, 7.0, 9.0]), expected("product", &[4.0, 10.0, 18.0])],
    })
    .await;
    bench.every_datatype(abilities).await;
    bench.free_dimensions().await;
    bench.labels_are_integers().await;
    bench.outputs_as_asked_for().await;
    bench.bad_requests().await;
    bench.bad_files().await;
    bench.external_weights().await;
    bench.sizes(abilities).await;
    bench.misfits_between_inputs().await;
    bench.many_at_a_time().await;
    if abilities.any_rank {
        bench.any_rank().await;
    }
    assert_eq!(runtime.index().await.expect("the index can be asked").iter().count(), 0, "nothing is left over");
}

fn floats(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

struct Bench<'a> {
    runtime: &'a OnnxRuntime,
    clock: &'a Clock,
    folder: &'a Path,
}

impl Bench<'_> {
    fn write(&self, name: &str, model: &[u8]) -> Artifacts {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).expect("a folder for the model");
        fs::write(folder.join("model.onnx"), model).expect("a file for the model");
        Artifacts { model: folder, schema: None, size: ByteSize(model.len() as u64) }
    }

    async fn try_load(&self, name: &str, artifacts: &Artifacts) -> Result<(ModelId, Option<ByteSize>), LoadError> {
        let model = registration(name);
        let laid_out = self.runtime.lay_out(&model, artifacts).await?;
        let load = self.clock.until(self.clock.deadline_in(PATIENCE), self.runtime.load(&model, &laid_out)).await;
        let loaded = load.unwrap_or_else(|| panic!("{name}: still loading after {PATIENCE:?}"))?;
        Ok((model.id, loaded.measured.map(|footprint| footprint.total())))
    }

    async fn load(&self, name: &str, model: &[u8]) -> ModelId {
        let artifacts = self.write(name, model);
        self.try_load(name, &artifacts).await.unwrap_or_else(|fault| panic!("{name}: {fault}")).0
    }

    async fn unload(&self, model: &ModelId) {
        self.runtime.unload(model).await.expect("an unload is taken");
        while self.runtime.index().await.expect("the index can be asked").unloaded(model).is_none() {
            self.runtime.index_changed().await;
        }
    }

    async fn infer(&self, model: &ModelId, request: ModelInferRequest) -> Result<ModelInferResponse, InferError> {
        self.runtime.infer(model, request, self.clock.deadline_in(PATIENCE)).await
    }

    async fn metadata(&self, model: &ModelId) -> ModelMetadataResponse {
        self.runtime.metadata(model).await.expect("it is loaded")
    }

    async fn every_datatype(&self, abilities: Abilities) {
        for (element, datatype) in sample::ELEMENT_TYPES {
            let name = format!("identity-{}", datatype.to_ascii_lowercase());
            let artifacts = self.write(&name, &sample::identity(element));
            let loaded = self.try_load(&name, &artifacts).await;
            if datatype == "BF16" && !abilities.bf16 {
                let fault = loaded.expect_err("this engine has no BF16").message;
                assert!(fault.contains("BFLOAT16") && fault.contains("--onnx-library"), "{fault}");
                continue;
            }
            let (model, _) = loaded.unwrap_or_else(|fault| panic!("{datatype}: {fault}"));
            let metadata = self.metadata(&model).await;
            assert!(!metadata.platform.is_empty() && metadata.inputs.len() == 1 && metadata.outputs.len() == 1, "{metadata:?}");
            assert_eq!((metadata.inputs[0].datatype.as_str(), &metadata.inputs[0].shape), (datatype, &vec![-1, 2]), "{datatype}");
            assert_eq!((metadata.outputs[0].name.as_str(), metadata.outputs[0].datatype.as_str()), ("y", datatype), "{datatype}");

            let (raw, contents) = values(datatype);
            let expected = vec![("y".to_owned(), datatype.to_owned(), vec![2, 2], raw.clone())];
            // One byte further, so that the elements are not aligned.
            let shifted = Bytes::from([&[0], &raw[..]].concat()).slice(1..);
            for raw in [raw, shifted] {
                let mut request = raw_request(&[("x", datatype, &[2, 2], &[])]);
                request.raw_input_contents = vec![raw];
                let response = self.infer(&model, request).await.unwrap_or_else(|fault| panic!("raw {datatype}: {fault}"));
                assert_eq!(outputs_of(&response), expected, "raw {datatype}");
            }
            if let Some(contents) = contents {
                let input = InferInputTensor {
                    name: "x".to_owned(),
                    datatype: datatype.to_owned(),
                    shape: vec![2, 2],
                    contents: Some(contents),
                    ..InferInputTensor::default()
                };
                let request = ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() };
                let response = self.infer(&model, request).await.unwrap_or_else(|fault| panic!("typed {datatype}: {fault}"));
                assert_eq!(outputs_of(&response), expected, "typed {datatype}");
            }
            let empty = self.infer(&model, raw_request(&[("x", datatype, &[0, 2], &[])])).await;
            let empty = empty.unwrap_or_else(|fault| panic!("empty {datatype}: {fault}"));
            assert_eq!(outputs_of(&empty), [("y".to_owned(), datatype.to_owned(), vec![0, 2], Bytes::new())], "empty {datatype}");
            self.unload(&model).await;
        }
    }

    /// One plan serves any size, with named and with nameless dimensions.
    async fn free_dimensions(&self) {
        for (case, bytes) in [("named", sample::sum_and_product(true)), ("nameless", sample::sum_and_product(false))] {
            let model = self.load(&format!("batch-{case}"), &bytes).await;
            for rows in [1_u16, 7, 0, 1000, 2] {
                let values: Vec<f32> = (0..rows * 3).map(f32::from).collect();
                let shape = [i64::from(rows), 3];
                let request = raw_request(&[("a", "FP32", &shape, &floats(&values)), ("b", "FP32", &shape, &floats(&values))]);
                let response = self.infer(&model, request).await.unwrap_or_else(|fault| panic!("{case}, {rows} rows: {fault}"));
                let doubled: Vec<f32> = values.iter().map(|value| value + value).collect();
                assert_eq!(outputs_of(&response)[0], ("sum".to_owned(), "FP32".to_owned(), shape.to_vec(), floats(&doubled)), "{case}, {rows} rows");
            }
            self.unload(&model).await;
        }
        let model = self.load("dense", &sample::dense(3, 2)).await;
        for rows in [1_i64, 5] {
            let ones = vec![1.0; usize::try_from(rows).expect("small") * 3];
            let response = self.infer(&model, raw_request(&[("x", "FP32", &[rows, 3], &floats(&ones))])).await.expect("it fits");
            let fours = vec![4.0; usize::try_from(rows).expect("small") * 2];
            assert_eq!(outputs_of(&response), [("y".to_owned(), "FP32".to_owned(), vec![rows, 2], floats(&fours))]);
        }
        self.unload(&model).await;
    }

    async fn labels_are_integers(&self) {
        let model = self.load("labels", &sample::labels()).await;
        assert_eq!(self.metadata(&model).await.outputs[0].datatype, "INT64");
        let request = raw_request(&[("x", "FP32", &[2, 4], &floats(&[0.0, 3.0, 1.0, 2.0, 9.0, 1.0, 1.0, 1.0]))]);
        let response = self.infer(&model, request).await.expect("it fits");
        let expected: Bytes = [1_i64, 0].iter().flat_map(|label| label.to_le_bytes()).collect();
        assert_eq!(outputs_of(&response), [("label".to_owned(), "INT64".to_owned(), vec![2], expected)]);
        self.unload(&model).await;
    }

    async fn outputs_as_asked_for(&self) {
        let model = self.load("outputs", &sample::sum_and_product(true)).await;
        for (wanted, given) in [(&[][..], &["sum", "product"][..]), (&["product"], &["product"]), (&["product", "sum"], &["product", "sum"])] {
            let mut request = raw_request(&[("a", "FP32", &[1, 3], &floats(&[1.0; 3])), ("b", "FP32", &[1, 3], &floats(&[1.0; 3]))]);
            request.outputs = wanted.iter().map(|name| asked(name)).collect();
            let outputs = outputs_of(&self.infer(&model, request).await.expect("it fits"));
            assert_eq!(outputs.iter().map(|output| output.0.as_str()).collect::<Vec<_>>(), given);
        }
        self.unload(&model).await;
    }

    async fn bad_requests(&self) {
        let model = self.load("misfits", &sample::sum_and_product(true)).await;
        let texts = self.load("texts", &sample::identity(8)).await;
        let good = floats(&[1.0; 3]);
        let ok = || ("b", "FP32", &[1_i64, 3][..], &good[..]);
        let with_a = |datatype: &'static str, shape: &'static [i64], raw: &[u8]| raw_request(&[("a", datatype, shape, raw), ok()]);
        let mut both = with_a("FP32", &[1, 3], &good);
        both.inputs[0].contents = Some(InferTensorContents { fp32_contents: vec![1.0; 3], ..InferTensorContents::default() });
        let mut elements = with_a("FP32", &[1, 3], &good);
        elements.raw_input_contents.clear();
        elements.inputs[0].contents = Some(InferTensorContents { fp32_contents: vec![1.0; 2], ..InferTensorContents::default() });
        let mut other_field = elements.clone();
        other_field.inputs[0].contents = Some(InferTensorContents { fp64_contents: vec![1.0; 3], ..InferTensorContents::default() });
        let mut unknown_output = with_a("FP32", &[1, 3], &good);
        unknown_output.outputs = vec![asked("difference")];
        let mut twice = with_a("FP32", &[1, 3], &good);
        twice.outputs = vec![asked("sum"), asked("sum")];
        let mut too_few = with_a("FP32", &[1, 3], &good);
        too_few.raw_input_contents.pop();
        for (case, request, says) in [
            ("missing", raw_request(&[ok()]), r#"input "a" is missing: expected FP32 [-1, 3]"#),
            (
                "unknown",
                raw_request(&[("c", "FP32", &[1, 3], &good), ok()]),
                r#"unknown input "c": the model has ["a" FP32 [-1, 3], "b" FP32 [-1, 3]]"#,
            ),
            ("duplicate", raw_request(&[ok(), ok()]), r#"input "b" is given twice"#),
            ("datatype", with_a("INT32", &[1, 3], &good), r#"input "a": expected FP32 [-1, 3], got INT32 [1, 3]: another datatype"#),
            ("no datatype", with_a("fp32", &[1, 3], &good), r#"input "a" has datatype "fp32", which is none of [BOOL"#),
            ("rank", with_a("FP32", &[3], &good), r#"input "a": expected FP32 [-1, 3], got FP32 [3]: 1 dimensions instead of 2"#),
            ("dimension", with_a("FP32", &[3, 1], &good), r#"input "a": expected FP32 [-1, 3], got FP32 [3, 1]: dimension 1 must be 3"#),
            ("negative", with_a("FP32", &[-1, 3], &good), r#"input "a" has shape [-1, 3]: dimensions must not be negative"#),
            ("overflow", with_a("FP32", &[i64::MAX, i64::MAX], &good), "dimensions must not be negative or overflow"),
            ("bytes", with_a("FP32", &[1, 3], &good[..11]), r#"input "a": shape [1, 3] of FP32 is 12 bytes, 11 bytes given"#),
            ("elements", elements, r#"input "a": shape [1, 3] is 3 elements, fp32_contents has 2"#),
            ("field", other_field, r#"input "a": FP32 is given in fp32_contents, but fp64_contents has 3 elements"#),
            ("both forms", both, r#"input "a" has typed contents and the request has raw_input_contents"#),
            ("raw count", too_few, "1 raw_input_contents for 2 inputs"),
            ("output", unknown_output, r#"unknown output "difference": the model has [sum, product]"#),
            ("output twice", twice, r#"output "sum" is asked for twice"#),
        ] {
            match self.infer(&model, request).await {
                Err(InferError::BadRequest(message)) => assert!(message.contains(says), "{case}: {message:?} does not say {says:?}"),
                other => panic!("{case}: {other:?}"),
            }
        }
        for (case, raw, says) in [
            ("cut", &b"\x05\0\0\0abc"[..], "BYTES element 0 is cut off: 5 bytes expected, 3 left"),
            ("count", b"\x01\0\0\0a", "shape [1, 2] is 2 BYTES elements, 1 given"),
            ("no text", b"\x01\0\0\0\xff\x01\0\0\0a", "BYTES element 0 is not UTF-8"),
        ] {
            match self.infer(&texts, raw_request(&[("x", "BYTES", &[1, 2], raw)])).await {
                Err(InferError::BadRequest(message)) => assert!(message.contains(says), "{case}: {message:?} does not say {says:?}"),
                other => panic!("{case}: {other:?}"),
            }
        }
        self.unload(&model).await;
        self.unload(&texts).await;
    }

    async fn bad_files(&self) {
        let whole = sample::sum_and_product(true);
        for (case, bytes, says) in [
            ("empty", &b""[..], "model.onnx is empty"),
            ("html", b"<html><body>404</body></html>", "model.onnx is an HTML page"),
            ("noise", b"\xde\xad\xbe\xef\xde\xad\xbe\xef", "model.onnx is not"),
            ("cut", &whole[..whole.len() / 2], "model.onnx is not"),
            ("operator", &sample::with_operator("com.example:Odd"), "com.example"),
            ("dangling", &sample::Graph::default().output("y", sample::FLOAT, Some(&[])).model(), "model.onnx"),
        ] {
            let artifacts = self.write(&format!("bad-{case}"), bytes);
            let fault = self.try_load(&format!("bad-{case}"), &artifacts).await.expect_err(case);
            assert_eq!(fault.fault, LoadFault::BadModel, "{case}: {fault}");
            assert!(fault.message.contains(says), "{case}: {:?} does not say {says:?}", fault.message);
            assert!(!fault.message.contains(&*self.folder.to_string_lossy()), "{case}: the path says nothing to a user: {fault}");
        }
        let empty = Artifacts { model: self.folder.join("empty-folder"), schema: None, size: ByteSize::ZERO };
        fs::create_dir_all(&empty.model).expect("a folder");
        let fault = self.try_load("empty-folder", &empty).await.expect_err("there is no model");
        assert!(fault.message.contains("no ONNX model in empty-folder") && fault.nothing_attempted, "{fault}");
    }

    async fn external_weights(&self) {
        let artifacts = self.write("external", &sample::with_external_weights("w.bin"));
        let fault = self.try_load("external", &artifacts).await.expect_err("the weights are missing");
        assert!(fault.message.contains("needs the external data file \"w.bin\""), "{fault}");
        fs::write(artifacts.model.join("w.bin"), floats(&[10.0, 20.0])).expect("a file");
        let (model, _) = self.try_load("external", &artifacts).await.unwrap_or_else(|fault| panic!("external data: {fault}"));
        let response = self.infer(&model, raw_request(&[("x", "FP32", &[1, 2], &floats(&[1.0, 2.0]))])).await.expect("it fits");
        assert_eq!(outputs_of(&response), [("y".to_owned(), "FP32".to_owned(), vec![1, 2], floats(&[11.0, 22.0]))]);
        self.unload(&model).await;
    }

    /// The measure is at least the weights, and the estimate is not below the measure.
    async fn sizes(&self, abilities: Abilities) {
        if !abilities.measures {
            return;
        }
        for (name, inputs, outputs) in [("large", 1024, 4096), ("middle", 512, 512)] {
            let artifacts = self.write(name, &sample::dense(inputs, outputs));
            let weights = (inputs * outputs * 4) as u64;
            let (model, measured) = self.try_load(name, &artifacts).await.unwrap_or_else(|fault| panic!("{name}: {fault}"));
            let measured = measured.unwrap_or_else(|| panic!("{name}: not measured")).0;
            assert!((weights..weights * 3 + (2 << 20)).contains(&measured), "{name}: {measured} bytes measured for {weights} of weights");
            let estimate = self.runtime.estimate(&artifacts).expect("it estimates").total().0;
            assert!(measured <= estimate, "{name}: {measured} bytes measured, {estimate} estimated");
            self.unload(&model).await;
        }
    }

    /// Sizes that the model leaves open but that do not go together: refused, and the copy goes on.
    async fn misfits_between_inputs(&self) {
        for named in [true, false] {
            let model = self.load("apart", &sample::sum_and_product(named)).await;
            let (two, three) = (floats(&[1.0; 6]), floats(&[1.0; 9]));
            let misfit = self.infer(&model, raw_request(&[("a", "FP32", &[2, 3], &two), ("b", "FP32", &[3, 3], &three)])).await;
            assert!(matches!(misfit, Err(InferError::BadRequest(_) | InferError::Failed(_))), "{misfit:?}");
            let fit = self.infer(&model, raw_request(&[("a", "FP32", &[2, 3], &two), ("b", "FP32", &[2, 3], &two)])).await;
            assert_eq!(outputs_of(&fit.expect("it fits"))[0].3, floats(&[2.0; 6]));
            self.unload(&model).await;
        }
    }

    /// Requests, loads and unloads at the same time: each answer is right or says that the model is not loaded.
    async fn many_at_a_time(&self) {
        let artifacts = self.write("busy", &sample::dense(64, 8));
        let (model, _) = self.try_load("busy", &artifacts).await.unwrap_or_else(|fault| panic!("{fault}"));
        let ask = |rows: u16| async move {
            let mut right = 0;
            for round in 0..60_u16 {
                let rows = 1 + (rows + round) % 5;
                let ones = floats(&vec![1.0; usize::from(rows) * 64]);
                let request = raw_request(&[("x", "FP32", &[i64::from(rows), 64], &ones)]);
                match self.infer(&registration("busy").id, request).await {
                    Ok(response) => {
                        assert_eq!(outputs_of(&response)[0].3, floats(&vec![65.0; usize::from(rows) * 8]), "{rows} rows");
                        right += 1;
                    }
                    Err(InferError::NotLoaded(_)) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            }
            right
        };
        let cycle = async {
            for _ in 0..5 {
                self.unload(&model).await;
                self.try_load("busy", &artifacts).await.unwrap_or_else(|fault| panic!("{fault}"));
            }
        };
        let (a, b, c, d, ()) = tokio::join!(ask(0), ask(1), ask(2), ask(3), cycle);
        assert!(a + b + c + d > 0, "some were answered");
        self.unload(&model).await;
    }

    async fn any_rank(&self) {
        let bytes = sample::Graph::default()
            .node("Identity", "same", &["x"], &["y"], &[])
            .input("x", sample::FLOAT, None)
            .output("y", sample::FLOAT, None)
            .model();
        let model = self.load("any-rank", &bytes).await;
        for shape in [&[][..], &[1], &[1, 1, 1]] {
            let response = self.infer(&model, raw_request(&[("x", "FP32", shape, &floats(&[7.0]))])).await.expect("any rank fits");
            assert_eq!(outputs_of(&response), [("y".to_owned(), "FP32".to_owned(), shape.to_vec(), floats(&[7.0]))]);
        }
        self.unload(&model).await;
    }
}

fn asked(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor { name: name.to_owned(), ..InferRequestedOutputTensor::default() }
}

/// Four elements of a datatype, raw and, where the protocol has that, typed. Extremes are among them.
fn values(datatype: &str) -> (Bytes, Option<InferTensorContents>) {
    fn raw<const N: usize>(elements: [[u8; N]; 4]) -> Bytes {
        elements.concat().into()
    }
    let none = InferTensorContents::default;
    match datatype {
        "BOOL" => (raw([[1], [0], [0], [1]]), Some(InferTensorContents { bool_contents: vec![true, false, false, true], ..none() })),
        "INT8" => (raw([i8::MIN, -1, 0, i8::MAX].map(i8::to_le_bytes)), Some(InferTensorContents { int_contents: vec![-128, -1, 0, 127], ..none() })),
        "INT16" => {
            let all = [i16::MIN, -1, 0, i16::MAX];
            (raw(all.map(i16::to_le_bytes)), Some(InferTensorContents { int_contents: all.map(i32::from).to_vec(), ..none() }))
        }
        "INT32" => {
            let all = [i32::MIN, -1, 0, i32::MAX];
            (raw(all.map(i32::to_le_bytes)), Some(InferTensorContents { int_contents: all.to_vec(), ..none() }))
        }
        "INT64" => {
            let all = [i64::MIN, -1, 0, i64::MAX];
            (raw(all.map(i64::to_le_bytes)), Some(InferTensorContents { int64_contents: all.to_vec(), ..none() }))
        }
        "UINT8" => (raw([0, 1, 128, u8::MAX].map(u8::to_le_bytes)), Some(InferTensorContents { uint_contents: vec![0, 1, 128, 255], ..none() })),
        "UINT16" => {
            let all = [0, 1, 1 << 15, u16::MAX];
            (raw(all.map(u16::to_le_bytes)), Some(InferTensorContents { uint_contents: all.map(u32::from).to_vec(), ..none() }))
        }
        "UINT32" => {
            let all = [0, 1, 1 << 31, u32::MAX];
            (raw(all.map(u32::to_le_bytes)), Some(InferTensorContents { uint_contents: all.to_vec(), ..none() }))
        }
        "UINT64" => {
            let all = [0, 1, 1 << 63, u64::MAX];
            (raw(all.map(u64::to_le_bytes)), Some(InferTensorContents { uint64_contents: all.to_vec(), ..none() }))
        }
        "FP16" => (raw([-1.5, 0.0, 65504.0, 0.1].map(|value| half::f16::from_f32(value).to_le_bytes())), None),
        "BF16" => (raw([-1.5, 0.0, 3e38, 0.1].map(|value| half::bf16::from_f32(value).to_le_bytes())), None),
        "FP32" => {
            let all = [f32::MIN, -0.0, 0.1, f32::INFINITY];
            (raw(all.map(f32::to_le_bytes)), Some(InferTensorContents { fp32_contents: all.to_vec(), ..none() }))
        }
        "FP64" => {
            let all = [f64::MIN, -0.0, 0.1, f64::INFINITY];
            (raw(all.map(f64::to_le_bytes)), Some(InferTensorContents { fp64_contents: all.to_vec(), ..none() }))
        }
        "BYTES" => {
            let all = ["", "a", "größer", "x y\nz"];
            let framed = crate::tensor::frame(all.iter().map(|text| text.as_bytes())).expect("short");
            (framed, Some(InferTensorContents { bytes_contents: all.iter().map(|text| Bytes::from_static(text.as_bytes())).collect(), ..none() }))
        }
        other => panic!("no values for {other}"),
    }
}
