//! The committed examples in the engine that is built in, without the rest of the program: each answers its recorded
//! request as ONNX Runtime did, and the quickstart's budget holds each alone but not all.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_adapters::counting::CountingAllocator;
use berth_adapters::{Artifacts, Infer, OnnxConfig, OnnxRuntime, Runtime};
use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{InferTensorContents, ModelInferRequest, ModelInferResponse};
use berth_telemetry::Clock;
use berth_testkit::{Quickstart, compare};
use berth_types::{ByteSize, ModelFormat, ModelId, Placement, Pool, Registration, StorageRef};
use serde_json::{Value, json};

/// As in the binary, so that the engine can tell what a model takes.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn engine() -> Result<OnnxRuntime> {
    let config = OnnxConfig { concurrency: NonZeroUsize::MIN, threads: NonZeroUsize::MIN, ..OnnxConfig::default() };
    OnnxRuntime::built_in(&config, Clock::system()).context("this build has no engine of its own")
}

fn registration(name: &str) -> Result<Registration> {
    Ok(Registration::new(
        ModelId::new(name)?,
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::default(), path: name.into(), schema_path: None },
        None,
    ))
}

/// What an example takes in memory.
struct Taken {
    /// As told before its load.
    estimated: ByteSize,
    /// As measured by its load.
    measured: ByteSize,
}

async fn load(engine: &OnnxRuntime, quickstart: &Quickstart, name: &str) -> Result<Taken> {
    let model = quickstart.models().join(name);
    let size = ByteSize(model.join("model.onnx").metadata()?.len());
    let (registration, artifacts) = (registration(name)?, Artifacts { model, schema: None, size });
    let estimated = engine.estimate(&artifacts).context("the engine estimates what a copy will take")?.get(Pool::Host);
    let laid_out = engine.lay_out(&registration, &artifacts).await?;
    let loaded = engine.load(&registration, &laid_out).await?;
    let measured = loaded.measured.context("the engine measures what a copy takes")?.get(Pool::Host);
    Ok(Taken { estimated, measured })
}

/// A REST request as the engine takes it, with typed contents.
fn request(body: &Value) -> Result<ModelInferRequest> {
    let mut inputs = Vec::new();
    for tensor in body["inputs"].as_array().context("a request has inputs")? {
        let data = tensor["data"].as_array().context("an input has data")?;
        let mut contents = InferTensorContents::default();
        let datatype = tensor["datatype"].as_str().context("an input has a datatype")?;
        match datatype {
            "FP32" => contents.fp32_contents = data.iter().filter_map(Value::as_f64).map(|number| number as f32).collect(),
            "INT64" => contents.int64_contents = data.iter().filter_map(Value::as_i64).collect(),
            other => anyhow::bail!("no example has inputs of type {other} yet"),
        }
        inputs.push(InferInputTensor {
            name: tensor["name"].as_str().context("an input has a name")?.to_owned(),
            datatype: datatype.to_owned(),
            shape: tensor["shape"].as_array().context("an input has a shape")?.iter().filter_map(Value::as_i64).collect(),
            contents: Some(contents),
            ..InferInputTensor::default()
        });
    }
    Ok(ModelInferRequest { inputs, ..ModelInferRequest::default() })
}

/// The engine's answer, raw contents and all, as a REST answer.
fn answer(response: &ModelInferResponse) -> Result<Value> {
    let mut outputs = Vec::new();
    for (tensor, raw) in response.outputs.iter().zip(&response.raw_output_contents) {
        let data: Vec<Value> = match tensor.datatype.as_str() {
            "FP32" => raw.as_chunks().0.iter().map(|bytes| json!(f32::from_le_bytes(*bytes))).collect(),
            "INT64" => raw.as_chunks().0.iter().map(|bytes| json!(i64::from_le_bytes(*bytes))).collect(),
            "BOOL" => raw.iter().map(|byte| json!(*byte == 1)).collect(),
            "BYTES" => texts(raw)?,
            other => anyhow::bail!("no example has outputs of type {other} yet"),
        };
        outputs.push(json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": data}));
    }
    Ok(json!({ "outputs": outputs }))
}

fn texts(mut raw: &[u8]) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    while let Some((length, rest)) = raw.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        ensure!(rest.len() >= length, "a text of {length} bytes has {} left", rest.len());
        let (text, rest) = rest.split_at(length);
        found.push(json!(std::str::from_utf8(text)?));
        raw = rest;
    }
    Ok(found)
}

#[tokio::test]
async fn every_example_answers_rightly_in_the_engine_that_is_built_in() -> Result<()> {
    let (engine, quickstart, clock) = (engine()?, Quickstart::committed(), Clock::system());
    for name in quickstart.names()? {
        load(&engine, &quickstart, &name).await.with_context(|| format!("loading {name}"))?;
        let asked = request(&serde_json::from_slice(&quickstart.request(&name)?)?)?;
        let response = engine.infer(&ModelId::new(&name)?, asked, clock.deadline_in(Duration::from_secs(60))).await.with_context(|| name.clone())?;
        compare(&quickstart.expected(&name)?, &answer(&response)?).with_context(|| name.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn the_budget_of_the_quickstart_holds_each_example_but_not_all() -> Result<()> {
    let (engine, quickstart) = (engine()?, Quickstart::committed());
    let config = std::fs::read_to_string(quickstart.folder().join("berth.toml"))?;
    let budget = config.lines().find_map(|line| line.strip_prefix("host-memory = ")).context("berth.toml sets host-memory")?;
    let budget: ByteSize = budget.trim_matches('"').parse()?;
    let (mut sum, mut told) = (ByteSize::ZERO, format!("budget {budget}"));
    for name in quickstart.names()? {
        let Taken { estimated, measured } = load(&engine, &quickstart, &name).await?;
        sum += measured;
        told += &format!("\n{name}: {measured}, estimated {estimated}");
        // Before a model was loaded once, only its estimate is known: it must fit too.
        assert!(estimated.max(measured) < budget, "{name} does not fit alone\n{told}");
    }
    // Clearly more than the budget: the difference is what a user sees move.
    assert!(sum.0 > budget.0 + budget.0 / 10, "all fit at once with {sum}\n{told}");
    Ok(())
}
