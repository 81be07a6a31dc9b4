//! `berth agent` beside a real TorchServe: archives get there, answer by its own protocol, are evicted, and survive its end.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Result, ensure};
use berth_adapters::conformance::{Subject, raw_request, registration, runtime_suite};
use berth_adapters::{LoadFault, Runtime as _, TorchServeConfig};
use berth_telemetry::{Clock, HostNet};
use berth_testkit::message::{field, text};
use berth_testkit::{Berth, Client, Found, Kind, Order, Outcome, TorchServe, eventually};
use berth_upstream::Server;
use bytes::Bytes;
use serde_json::json;

use crate::beside::{LOADS, files};
use crate::fixture::{Fixture, service};

const PREDICTIONS: &str = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions";

/// Archives `double-0` to `double-2`, and `refuses`, as resources.
async fn fixture() -> Result<Fixture> {
    let fixture = Fixture::empty()?;
    let models = fixture.path("models");
    TorchServe::archives(&models).await?;
    fixture.storage("archives", &json!({"type": "folder", "path": models}))?;
    let archived = |name: &str, file: &str| service(name, "archives", file).replace("name: onnx", "name: pytorch-mar");
    for number in 0..3 {
        fixture.manifest(&format!("double-{number}.yaml"), &archived(&format!("double-{number}"), "double.mar"))?;
    }
    fixture.manifest("refuses.yaml", &archived("refuses", "refuses.mar"))?;
    Ok(fixture)
}

async fn beside_torchserve(fixture: &Fixture, host_memory: &str) -> Result<(TorchServe, Berth)> {
    let torchserve = TorchServe::start().await?;
    let serve = fixture.serve(host_memory).beside("torchserve", &torchserve.management(), &torchserve.store());
    let berth = serve.flag("--runtime-data-endpoint", torchserve.inference()).start().await?;
    Ok((torchserve, berth))
}

async fn predict(fixture: &Fixture, berth: &Berth, model: &str) -> Result<Outcome> {
    let input = [text(1, "x"), field(2, &[1.5_f32, -2.0, 0.25].map(f32::to_le_bytes).concat())].concat();
    let message = [text(1, model), field(3, &input)].concat();
    Client::Go.call(&fixture.parts, &berth.grpc(), Order::new(Kind::Unary, PREDICTIONS).message(message).timeout(LOADS)).await
}

async fn answers(fixture: &Fixture, berth: &Berth, model: &str) -> Result<()> {
    let outcome = predict(fixture, berth, model).await?;
    let expected = field(1, &[3.0_f32, -4.0, 0.5].map(f32::to_le_bytes).concat());
    ensure!(outcome.good()?.bytes.as_ref() == Some(&expected), "{model}: {outcome:?}");
    Ok(())
}

#[tokio::test]
async fn archives_take_turns_in_torchserve_answer_by_its_protocol_and_come_back_after_its_end() -> Result<()> {
    let fixture = fixture().await?;
    // Room for two of three, once it is known what a worker takes: a Python with torch, and not the few bytes on disk.
    let (mut torchserve, berth) = beside_torchserve(&fixture, "640MiB").await?;
    eventually("an eviction", LOADS, || async {
        for number in 0..3 {
            answers(&fixture, &berth, &format!("double-{number}")).await?;
        }
        // It is not among the metrics before the first one.
        let evictions = berth.metric("berth_evictions_total").await.unwrap_or_default();
        Ok(if evictions > 0.0 { Found::Yes(()) } else { Found::NotYet("none".to_owned()) })
    })
    .await?;
    let standing = berth.stands("refuses", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("Failed to start workers"), "{standing:?}");
    let outcome = predict(&fixture, &berth, "nobody").await?;
    ensure!(outcome.code == 5, "a model that nobody made is not found: {outcome:?}");

    torchserve.kill().await?;
    let outcome = predict(&fixture, &berth, "double-2").await?;
    ensure!(outcome.code == 14, "a server that is away is no fault of the request: {outcome:?}");
    torchserve.again().await?;
    eventually("an answer", LOADS, || async {
        let outcome = predict(&fixture, &berth, "double-2").await?;
        Ok(if outcome.code == 0 { Found::Yes(()) } else { Found::NotYet(format!("{} {}", outcome.code, outcome.message)) })
    })
    .await?;
    answers(&fixture, &berth, "double-2").await?;
    let standing = berth.standing("double-2").await?;
    ensure!(standing.active != "FailedToLoad" && standing.reason.is_empty(), "the model is not to blame: {standing:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn torchserve_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let models = fixture.path("models");
    TorchServe::archives(&models).await?;
    let torchserve = TorchServe::start().await?;
    let clock = Clock::system();
    let server = |endpoint: String| -> Result<Server> {
        Ok(Server::new(endpoint.parse()?, berth_upstream::Config::default(), clock.clone(), HostNet::shared()))
    };
    let config = TorchServeConfig {
        name: "real".into(),
        store: torchserve.store(),
        capacity: None,
        load_concurrency: NonZeroU32::MIN,
        load_timeout: LOADS,
        start_timeout: LOADS,
        size_percent: 275,
        max_concurrency: None,
        batch_size: None,
        max_batch_delay: None,
        response_timeout: Some(Duration::from_secs(60)),
    };
    let start = || async {
        let started =
            berth_adapters::TorchServe::start(config.clone(), server(torchserve.management())?, server(torchserve.inference())?, clock.clone());
        Ok::<_, anyhow::Error>(started.await?)
    };
    let runtime = start().await?;
    let answer = [3.0_f32, -4.0, 0.5].map(f32::to_le_bytes).concat();
    let element = [12_u32.to_le_bytes().to_vec(), answer].concat();
    let subject = Subject {
        runtime,
        clock: clock.clone(),
        format: "pytorch-mar",
        good: files(&models.join("double.mar"))?,
        bad: files(&models.join("refuses.mar"))?,
        request: raw_request(&[("x", "FP32", &[3], &[1.5_f32, -2.0, 0.25].map(f32::to_le_bytes).concat())]),
        answer: vec![("prediction".to_owned(), "BYTES".to_owned(), vec![1], Bytes::from(element))],
    };
    runtime_suite(&subject).await;

    // What is no archive, a folder, and an id that no file can have.
    let (runtime, good) = (&subject.runtime, &subject.good);
    let text = models.join("text.mar");
    std::fs::write(&text, "<html>404</html>")?;
    let model = registration("team/model");
    let laid_out = runtime.lay_out(&model, &files(&text)?).await?;
    let refused = runtime.load(&model, &laid_out).await.err().map(|refused| refused.fault);
    ensure!(refused == Some(LoadFault::BadModel), "{refused:?}");
    let laid_out = runtime.lay_out(&model, good).await?;
    runtime.load(&model, &laid_out).await?;
    // Of what a process before this one left, nothing stays.
    let successor = start().await?;
    ensure!(successor.index().await?.iter().count() == 0, "its successor begins with an empty server");
    Ok(())
}
