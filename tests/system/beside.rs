//! `berth agent` beside real inference servers: models get there, answer, are evicted, come back, and survive the server's end.

use std::time::Duration;

use std::num::NonZeroU32;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_adapters::conformance::{Subject, raw_request, runtime_suite};
use berth_adapters::{Artifacts, Dialect, RepositoryConfig, RepositoryServer};
use berth_telemetry::{Clock, HostNet};
use berth_testkit::{Berth, Exit, MlServer, Triton};
use berth_types::ByteSize;
use berth_upstream::Server;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY};

/// Long enough for every example to be loaded once by a server that starts a process for each.
pub(crate) const LOADS: Duration = Duration::from_secs(120);

/// A Triton and an agent beside it with the example models.
async fn beside_triton(fixture: &Fixture, host_memory: &str) -> Result<(Triton, Berth)> {
    let repository = fixture.repository()?;
    let triton = Triton::with_onnx(&fixture.parts, &repository).await?;
    // Its models are processes of their own: what they really take is far more than their files.
    let serve = fixture.serve(host_memory).beside("triton", &triton.grpc(), &repository).flag("--runtime-process", "off");
    let berth = serve.start().await?;
    Ok((triton, berth))
}

#[tokio::test]
async fn every_example_is_served_by_triton_as_by_the_embedded_engine() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (_triton, berth) = beside_triton(&fixture, ROOMY).await?;
    for name in fixture.quickstart.names()? {
        berth.stands(&name, LOADS, |standing| standing.active == "Loaded").await?;
    }
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn models_that_do_not_fit_together_take_turns_in_triton() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    // Room for a part of the examples only: what a model takes is guessed by its bytes on disk.
    let (_triton, berth) = beside_triton(&fixture, "2500KiB").await?;
    for _round in 0..2 {
        for name in &fixture.quickstart.names()? {
            berth.answers(&fixture.quickstart, name).await?;
        }
    }
    ensure!(berth.metric("berth_evictions_total").await? > 0.0, "they do not all fit, so some were evicted");
    Ok(())
}

#[tokio::test]
async fn a_triton_that_is_killed_has_its_models_again_when_it_is_back() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (mut triton, mut berth) = beside_triton(&fixture, ROOMY).await?;
    berth.answers(&fixture.quickstart, "digits-mlp").await?;
    triton.kill().await?;
    let reply = berth.infer("digits-mlp", fixture.quickstart.request("digits-mlp")?).await?;
    ensure!(reply.status == 503, "a server that is away is no fault of the request: {} {}", reply.status, reply.text());
    triton.again().await?;
    berth.comes_to_answer("digits-mlp", fixture.quickstart.request("digits-mlp")?, LOADS).await?;
    let standing = berth.standing("digits-mlp").await?;
    ensure!(standing.active != "FailedToLoad" && standing.reason.is_empty(), "the model is not to blame: {standing:?}");
    let exit = berth.interrupt().await?;
    ensure!(exit == Exit::Code(0), "{exit:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_model_has_failed_in_the_words_of_triton() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let folder = fixture.path("models").join("broken");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("model.onnx"), "<html>404</html>")?;
    fixture.storage("broken", &json!({"type": "folder", "path": fixture.path("models")}))?;
    fixture.service("broken", "broken", "broken")?;
    let (_triton, berth) = beside_triton(&fixture, ROOMY).await?;
    let standing = berth.stands("broken", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("Triton"), "{standing:?}");
    berth.answers(&fixture.quickstart, "digits-mlp").await
}

fn config(dialect: Dialect, repository: &Path) -> RepositoryConfig {
    RepositoryConfig {
        dialect,
        name: "real".into(),
        repository: repository.to_owned(),
        capacity: None,
        load_concurrency: NonZeroU32::MIN,
        load_timeout: LOADS,
        start_timeout: LOADS,
        size_percent: 125,
        max_concurrency: None,
    }
}

pub(crate) async fn adapter(dialect: Dialect, endpoint: &str, repository: &Path) -> Result<(RepositoryServer, Clock)> {
    let clock = Clock::system();
    let server = Server::new(endpoint.parse()?, berth_upstream::Config::default(), clock.clone(), HostNet::shared());
    Ok((RepositoryServer::start(config(dialect, repository), server, clock.clone()).await?, clock))
}

/// A file of an example with what it answers.
pub(crate) fn files(model: &Path) -> Result<Artifacts> {
    let size = ByteSize(std::fs::metadata(model).with_context(|| model.display().to_string())?.len());
    Ok(Artifacts { model: model.to_owned(), schema: None, size })
}

/// FP32 numbers of a request as JSON has them.
pub(crate) fn numbers(values: &Value) -> Bytes {
    let values = values.as_array().into_iter().flatten().filter_map(Value::as_f64);
    #[allow(clippy::cast_possible_truncation, reason = "they were FP32 before")]
    values.flat_map(|value| (value as f32).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn triton_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let repository = fixture.repository()?;
    let triton = Triton::with_onnx(&fixture.parts, &repository).await?;
    let (runtime, clock) = adapter(Dialect::Triton, &triton.grpc(), &repository).await?;
    let bad = fixture.path("models").join("model.onnx");
    std::fs::write(&bad, "<html>404</html>")?;
    let request: Value = serde_json::from_slice(&fixture.quickstart.request("digits-mlp")?)?;
    let input = &request["inputs"][0];
    let name = input["name"].as_str().context("an input has a name")?;
    runtime_suite(&Subject {
        runtime,
        clock,
        format: "onnx",
        good: files(&fixture.quickstart.models().join("digits-mlp/model.onnx"))?,
        bad: files(&bad)?,
        request: raw_request(&[(name, "FP32", &[1, 64], &numbers(&input["data"]))]),
        answer: vec![("label".to_owned(), "INT64".to_owned(), vec![1], Bytes::copy_from_slice(&6_i64.to_le_bytes()))],
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mlserver_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let server = MlServer::start(&fixture.parts).await?;
    let model = fixture.path("models").join("model.joblib");
    server.train_iris(&model).await?;
    let bad = fixture.path("models").join("broken.joblib");
    std::fs::write(&bad, "<html>404</html>")?;
    let (runtime, clock) = adapter(Dialect::MlServer, &server.grpc(), &server.models()).await?;
    let flower = [5.1_f32, 3.5, 1.4, 0.2].into_iter().flat_map(f32::to_le_bytes).collect::<Bytes>();
    runtime_suite(&Subject {
        runtime,
        clock,
        format: "sklearn",
        good: files(&model)?,
        bad: files(&bad)?,
        request: raw_request(&[("flower", "FP32", &[1, 4], &flower)]),
        answer: vec![("predict".to_owned(), "INT64".to_owned(), vec![1, 1], Bytes::copy_from_slice(&0_i64.to_le_bytes()))],
    })
    .await;
    Ok(())
}
