//! `berth agent` beside servers that speak ModelMesh's runtime contract: one in Go that shares no code with it, and `berth
//! runtime`, the other side of the same contract.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_adapters::conformance::{Subject, raw_request, runtime_suite};
use berth_adapters::{Artifacts, ModelRuntimeConfig, ModelRuntimeServer};
use berth_telemetry::{Clock, HostNet};
use berth_testkit::{Berth, Client, Contract, Exit, Found, GoRuntime, Kind, Order, eventually, free_port, message};
use berth_types::ByteSize;
use berth_upstream::Server;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON};

/// Long enough for every example to be loaded once.
const LOADS: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

/// A model for the server in Go, which does what its file says, as a resource.
fn model(fixture: &Fixture, name: &str, says: &Value) -> Result<()> {
    let folder = fixture.path("models").join(name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("model.json"), says.to_string())?;
    fixture.storage("scripted", &json!({"type": "folder", "path": fixture.path("models")}))?;
    let text = crate::fixture::service(name, "scripted", &format!("{name}/model.json"));
    fixture.manifest(&format!("{name}.yaml"), &text.replace("name: onnx", "name: scripted"))
}

/// The description of the server in Go.
fn describe(fixture: &Fixture) -> Result<()> {
    fixture.manifest(
        "runtime.yaml",
        "apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: scripted
spec:
  supportedModelFormats:
    - { name: scripted, autoSelect: true }
  protocolVersions: [v2, grpc-v2]
  multiModel: true
  grpcEndpoint: port:8085
  containers: []
",
    )
}

/// An agent beside the server in Go, with as much memory as that says.
async fn beside(fixture: &Fixture, runtime: &GoRuntime) -> Result<Berth> {
    let serve = fixture.serve(ROOMY).unset("--host-memory").beside("modelruntime", &runtime.target(), &fixture.path("repository"));
    serve.flag("--serving-runtime", "scripted").start().await
}

fn request() -> String {
    json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}).to_string()
}

/// Asks a model of this factor.
async fn answers(berth: &Berth, name: &str, factor: f64) -> Result<()> {
    let reply = berth.infer(name, request()).await?.good().with_context(|| name.to_owned())?;
    let output = &reply["outputs"][0];
    let numbers: Vec<_> = output["data"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    ensure!(output["name"] == "y" && numbers == [factor, 2.0 * factor], "{name}: {reply}");
    Ok(())
}

/// Waits until it answers.
async fn comes_to_answer(berth: &Berth, name: &str, factor: f64) -> Result<()> {
    eventually("an answer", LOADS, || async {
        let reply = berth.infer(name, request()).await?;
        if reply.status != 200 {
            return Ok(Found::NotYet(format!("{} {}", reply.status, reply.text())));
        }
        answers(berth, name, factor).await.map(Found::Yes)
    })
    .await
}

#[tokio::test]
async fn models_take_turns_in_a_server_that_says_itself_how_much_it_holds() -> Result<()> {
    let fixture = Fixture::empty()?;
    describe(&fixture)?;
    for (name, factor) in [("double", 2), ("triple", 3), ("tenfold", 10)] {
        model(&fixture, name, &json!({"factor": factor, "size": 20 * MIB, "refused_unloads": 2}))?;
    }
    let mut runtime = GoRuntime::start_at(&fixture.path("socket"), &["-capacity=52428800", "-starting=2", "-predicts"]).await?;
    let berth = beside(&fixture, &runtime).await?;
    for _round in 0..2 {
        for (name, factor) in [("double", 2.0), ("triple", 3.0), ("tenfold", 10.0)] {
            answers(&berth, name, factor).await?;
        }
    }
    ensure!(berth.metric("berth_evictions_total").await? >= 2.0, "two of them fit");
    let order = runtime.told("loadModel", "begun", "double__isvc-").await?;
    let key: Value = serde_json::from_str(order["key"].as_str().context("a key")?)?;
    let path = order["path"].as_str().context("a path")?;
    ensure!(order["type"] == "mt:scripted" && key["model_type"] == json!({"name": "scripted"}), "{order}");
    ensure!(path.starts_with(&*fixture.path("repository").to_string_lossy()) && path.ends_with("/model.json"), "{order}");
    ensure!(key["disk_size_bytes"].as_u64().is_some_and(|bytes| bytes > 10) && key.get("storage_key").is_none(), "{order}");
    ensure!(runtime.count("predictModelSize") > 0 && runtime.count("runtimeStatus") == 3, "asked until it was ready, and not again");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_has_its_models_again_when_it_is_back() -> Result<()> {
    let fixture = Fixture::empty()?;
    describe(&fixture)?;
    model(&fixture, "double", &json!({"factor": 2, "late_size": 30 * MIB}))?;
    let mut runtime = GoRuntime::start(&[]).await?;
    let mut berth = beside(&fixture, &runtime).await?;
    answers(&berth, "double", 2.0).await?;
    runtime.told("modelSize", "ended", "double__isvc-").await?;
    runtime.kill().await?;
    let reply = berth.infer("double", request()).await?;
    ensure!(reply.status == 503, "a server that is away is no fault of the request: {} {}", reply.status, reply.text());
    runtime.again().await?;
    comes_to_answer(&berth, "double", 2.0).await?;
    ensure!(runtime.count("runtimeStatus") > 0, "it was asked how it stands before it was told anything");
    let standing = berth.standing("double").await?;
    ensure!(standing.active != "FailedToLoad" && standing.reason.is_empty(), "the model is not to blame: {standing:?}");
    let exit = berth.interrupt().await?;
    ensure!(exit == Exit::Code(0), "{exit:?}");
    Ok(())
}

#[tokio::test]
async fn a_model_that_the_server_lost_is_loaded_again_for_the_request_that_finds_out() -> Result<()> {
    let fixture = Fixture::empty()?;
    describe(&fixture)?;
    model(&fixture, "double", &json!({"factor": 2, "size": MIB}))?;
    let mut runtime = GoRuntime::start(&[]).await?;
    let berth = beside(&fixture, &runtime).await?;
    answers(&berth, "double", 2.0).await?;
    let order = runtime.told("loadModel", "ended", "double__isvc-").await?;
    let id = order["model"].as_str().context("an id")?;
    // Behind the agent's back.
    let unload = Order::new(Kind::Unary, "/mmesh.ModelRuntime/unloadModel").message(message::text(1, id)).timeout(SOON);
    let outcome = Client::Go.call(&fixture.parts, &runtime.target(), unload).await?;
    ensure!(outcome.code == 0, "{outcome:?}");
    answers(&berth, "double", 2.0).await
}

#[tokio::test]
async fn what_a_server_does_not_load_has_failed_in_its_words() -> Result<()> {
    let fixture = Fixture::empty()?;
    describe(&fixture)?;
    model(&fixture, "picky", &json!({"code": 9, "message": "layer 7 has no weights"}))?;
    model(&fixture, "double", &json!({"factor": 2, "size": MIB}))?;
    let folder = fixture.path("models").join("broken");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("model.json"), "<html>404</html>")?;
    let text = crate::fixture::service("broken", "scripted", "broken/model.json");
    fixture.manifest("broken.yaml", &text.replace("name: onnx", "name: scripted"))?;
    let runtime = GoRuntime::start(&["-methods=inference.GRPCInferenceService/ModelInfer"]).await?;
    let berth = beside(&fixture, &runtime).await?;
    for (name, words) in [("picky", "layer 7 has no weights"), ("broken", "model.json is no model")] {
        let standing = berth.stands(name, LOADS, |standing| standing.active == "FailedToLoad").await?;
        ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains(words), "{standing:?}");
    }
    answers(&berth, "double", 2.0).await?;
    // What the server does not list is not passed on, and its orders are nobody's.
    for method in ["/inference.GRPCInferenceService/ModelStreamInfer", "/mmesh.ModelRuntime/unloadModel"] {
        let order = Order::new(Kind::Unary, method).message(message::text(1, "double")).timeout(SOON);
        let outcome = Client::Go.call(&fixture.parts, &berth.grpc(), order).await?;
        ensure!(outcome.code == 12, "{method}: {outcome:?}");
    }
    Ok(())
}

/// An agent beside `berth runtime`, with the examples.
async fn beside_our_own(fixture: &Fixture, endpoint: &str, host_memory: &str) -> Result<(Contract, Berth)> {
    let folder = fixture.path("repository");
    let contract = Contract::start(&fixture.parts, endpoint, &folder).await?;
    let serve = fixture.serve(host_memory).beside("modelruntime", &contract.endpoint(), &folder).flag("--serving-runtime", "berth-onnx");
    Ok((contract, serve.start().await?))
}

#[tokio::test]
async fn every_example_is_served_through_the_contract_as_without() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (_contract, berth) = beside_our_own(&fixture, &format!("127.0.0.1:{}", free_port()), ROOMY).await?;
    for name in fixture.quickstart.names()? {
        berth.stands(&name, LOADS, |standing| standing.active == "Loaded").await?;
    }
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn examples_take_turns_and_survive_the_end_of_the_engine() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let folder = fixture.path("models").join("broken");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("model.onnx"), "<html>404</html>")?;
    fixture.storage("broken", &json!({"type": "folder", "path": fixture.path("models")}))?;
    fixture.service("broken", "broken", "broken")?;
    let endpoint = format!("unix:{}", fixture.path("socket").display());
    let (mut contract, berth) = beside_our_own(&fixture, &endpoint, "2500KiB").await?;
    for _round in 0..2 {
        fixture.all_answer(&berth).await?;
    }
    ensure!(berth.metric("berth_evictions_total").await? > 0.0, "they do not all fit, so some were evicted");
    let standing = berth.stands("broken", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("model.onnx"), "{standing:?}");
    contract.process().kill().await?;
    contract.again().await?;
    berth.comes_to_answer("digits-mlp", fixture.quickstart.request("digits-mlp")?, LOADS).await?;
    fixture.all_answer(&berth).await
}

async fn client(endpoint: &str, folder: &Path) -> Result<(ModelRuntimeServer, Clock)> {
    let clock = Clock::system();
    let server = Server::new(endpoint.parse()?, berth_upstream::Config::default(), clock.clone(), HostNet::shared());
    let config = ModelRuntimeConfig {
        name: "real".into(),
        folder: folder.to_owned(),
        capacity: None,
        load_concurrency: None,
        load_timeout: Some(LOADS),
        start_timeout: LOADS,
        size_percent: 125,
        max_concurrency: None,
    };
    Ok((ModelRuntimeServer::start(config, server, clock.clone()).await?, clock))
}

fn files(model: &Path) -> Result<Artifacts> {
    let size = ByteSize(fs::metadata(model).with_context(|| model.display().to_string())?.len());
    Ok(Artifacts { model: model.to_owned(), schema: None, size })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_go_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let (good, bad) = (fixture.path("models").join("model.json"), fixture.path("models").join("broken.json"));
    fs::write(&good, json!({"factor": 3, "load_ms": 30, "stubborn": true}).to_string())?;
    fs::write(&bad, "<html>404</html>")?;
    let floats = |numbers: [f32; 2]| numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Bytes>();
    for (case, runtime) in [("tcp", GoRuntime::start(&["-limits"]).await?), ("unix", GoRuntime::start_at(&fixture.path("socket"), &[]).await?)] {
        let server = runtime;
        let (runtime, clock) = client(&server.target(), &fixture.path(case)).await?;
        runtime_suite(&Subject {
            runtime,
            clock,
            format: "scripted",
            good: files(&good)?,
            bad: files(&bad)?,
            request: raw_request(&[("x", "FP32", &[1, 2], &floats([1.0, 2.0]))]),
            answer: vec![("y".to_owned(), "FP32".to_owned(), vec![1, 2], floats([3.0, 6.0]))],
        })
        .await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn berth_runtime_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let bad = fixture.path("models").join("model.onnx");
    fs::write(&bad, "<html>404</html>")?;
    let request: Value = serde_json::from_slice(&fixture.quickstart.request("digits-mlp")?)?;
    let input = &request["inputs"][0];
    let name = input["name"].as_str().context("an input has a name")?;
    #[allow(clippy::cast_possible_truncation, reason = "they were FP32 before")]
    let numbers: Bytes =
        input["data"].as_array().into_iter().flatten().filter_map(Value::as_f64).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let unix = format!("unix:{}", fixture.path("socket").display());
    for endpoint in [format!("127.0.0.1:{}", free_port()), unix] {
        let folder = fixture.path("repository");
        let contract = Contract::start(&fixture.parts, &endpoint, &folder).await?;
        let (runtime, clock) = client(&contract.endpoint(), &folder).await?;
        runtime_suite(&Subject {
            runtime,
            clock,
            format: "onnx",
            good: files(&fixture.quickstart.models().join("digits-mlp/model.onnx"))?,
            bad: files(&bad)?,
            request: raw_request(&[(name, "FP32", &[1, 64], &numbers)]),
            answer: vec![("label".to_owned(), "INT64".to_owned(), vec![1], Bytes::copy_from_slice(&6_i64.to_le_bytes()))],
        })
        .await;
    }
    Ok(())
}
