//! `berth agent` beside what stands in for OpenVINO Model Server, which comes in a container only: the stand-in keeps to the
//! contract of its REST port, and answers with ONNX Runtime.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_adapters::conformance::{Subject, raw_request, registration, runtime_suite};
use berth_adapters::{Artifacts, IndexEntry, LoadFault, OvmsConfig, OvmsServer, Runtime as _};
use berth_telemetry::{Clock, HostNet};
use berth_testkit::{Berth, Found, Ovms, Serve, eventually};
use berth_types::ByteSize;
use berth_upstream::Server;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::beside::{LOADS, files, numbers};
use crate::fixture::{Fixture, ROOMY};

/// The bundled description takes ONNX only where a resource names it; this one where none does.
const RUNTIME: &str = "apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: { name: ours }
spec:
  supportedModelFormats: [{ name: onnx, version: \"1\", autoSelect: true }]
  multiModel: true
  containers: []
";

fn agent(fixture: &Fixture, ovms: &Ovms, host_memory: &str) -> Result<Serve> {
    fixture.manifest("runtime.yaml", RUNTIME)?;
    let serve = fixture.serve(host_memory).beside("ovms", &ovms.rest(), &ovms.models()).flag("--runtime-data-endpoint", ovms.grpc());
    Ok(serve.flag("--model-config", ovms.config()).flag("--serving-runtime", "ours"))
}

async fn beside_ovms(fixture: &Fixture, host_memory: &str) -> Result<(Ovms, Berth)> {
    let ovms = Ovms::start(&fixture.parts).await?;
    // What the stand-in takes for a model has nothing to do with what the server would: budgets here are of files.
    let berth = agent(fixture, &ovms, host_memory)?.flag("--runtime-process", "off").start().await?;
    Ok((ovms, berth))
}

#[tokio::test]
async fn every_example_is_served_by_ovms_as_by_the_embedded_engine_and_few_orders_bring_them_there() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (ovms, berth) = beside_ovms(&fixture, ROOMY).await?;
    let names = fixture.quickstart.names()?;
    for name in &names {
        berth.stands(name, LOADS, |standing| standing.active == "Loaded").await?;
    }
    fixture.all_answer(&berth).await?;
    ensure!(ovms.reloads() <= names.len(), "{} reloads for {} models", ovms.reloads(), names.len());
    Ok(())
}

#[tokio::test]
async fn models_that_do_not_fit_together_take_turns_in_ovms() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (_ovms, berth) = beside_ovms(&fixture, "2500KiB").await?;
    for _round in 0..2 {
        for name in &fixture.quickstart.names()? {
            berth.answers(&fixture.quickstart, name).await?;
        }
    }
    ensure!(berth.metric("berth_evictions_total").await? > 0.0, "they do not all fit, so some were evicted");
    Ok(())
}

#[tokio::test]
async fn an_ovms_that_is_killed_has_its_models_again_when_it_is_back() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (mut ovms, berth) = beside_ovms(&fixture, ROOMY).await?;
    berth.answers(&fixture.quickstart, "digits-mlp").await?;
    ovms.kill().await?;
    eventually("the file to be emptied", LOADS, || async {
        let text = std::fs::read_to_string(ovms.config())?;
        Ok(if text == r#"{"model_config_list":[]}"# { Found::Yes(()) } else { Found::NotYet(text) })
    })
    .await?;
    ovms.again().await?;
    berth.comes_to_answer("digits-mlp", fixture.quickstart.request("digits-mlp")?, LOADS).await?;
    let standing = berth.standing("digits-mlp").await?;
    ensure!(standing.active != "FailedToLoad" && standing.reason.is_empty(), "the model is not to blame: {standing:?}");
    Ok(())
}

#[tokio::test]
async fn a_reload_that_one_model_fails_brings_the_others() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let folder = fixture.path("models").join("broken");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("model.onnx"), "<html>404</html>")?;
    fixture.storage("broken", &json!({"type": "folder", "path": fixture.path("models")}))?;
    fixture.service("broken", "broken", "broken")?;
    let (_ovms, berth) = beside_ovms(&fixture, ROOMY).await?;
    let standing = berth.stands("broken", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("Cannot compile model"), "{standing:?}");
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn what_the_server_was_given_by_another_is_left_alone() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let ovms = Ovms::start(&fixture.parts).await?;
    let theirs = r#"{"model_config_list":[{"config":{"name":"theirs","base_path":"/srv/theirs"}}]}"#;
    std::fs::write(ovms.config(), theirs)?;
    let mut berth = agent(&fixture, &ovms, ROOMY)?.spawn()?;
    berth.process().line("what is wrong", LOADS, |line| line.contains("it lists theirs, which Berth did not put there")).await?;
    ensure!(std::fs::read_to_string(ovms.config())? == theirs, "it was not touched");
    Ok(())
}

async fn adapter(ovms: &Ovms, at_a_time: u32) -> Result<(OvmsServer, Clock)> {
    let clock = Clock::system();
    let requests = Server::new(ovms.grpc().parse()?, berth_upstream::Config::default(), clock.clone(), HostNet::shared());
    let config = OvmsConfig {
        name: "stand-in".into(),
        repository: ovms.models(),
        config_file: ovms.config(),
        capacity: None,
        load_concurrency: NonZeroU32::new(at_a_time).context("more than nothing")?,
        load_timeout: LOADS,
        start_timeout: LOADS,
        size_percent: 125,
        max_concurrency: None,
    };
    Ok((OvmsServer::start(config, ovms.rest().parse()?, requests, clock.clone(), HostNet::shared()).await?, clock))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stand_in_for_ovms_keeps_the_contract_of_every_runtime() -> Result<()> {
    let fixture = Fixture::empty()?;
    let ovms = Ovms::start(&fixture.parts).await?;
    let (runtime, clock) = adapter(&ovms, 1).await?;
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
async fn sixty_loads_at_once_are_a_few_reloads_and_a_slow_one_or_a_lost_answer_fails_none_of_them() -> Result<()> {
    let fixture = Fixture::empty()?;
    let ovms = Ovms::start(&fixture.parts).await?;
    let (runtime, clock) = adapter(&ovms, 60).await?;
    let artifacts = Artifacts { size: ByteSize(1), ..files(&fixture.quickstart.models().join("iris/model.onnx"))? };
    let runtime = Arc::new(runtime);
    let load = |name: String| {
        let (runtime, artifacts) = (Arc::clone(&runtime), artifacts.clone());
        tokio::spawn(async move {
            let model = registration(&name);
            let laid_out = runtime.lay_out(&model, &artifacts).await?;
            runtime.load(&model, &laid_out).await
        })
    };
    ovms.switch(&json!({"slow": {"slow": 3}}))?;
    let before = ovms.reloads();
    let slow = load("slow".to_owned());
    eventually("the slow one to load", LOADS, || async {
        let entry = runtime.index().await?.get(&registration("slow").id);
        Ok(if entry == Some(IndexEntry::Loading) { Found::Yes(()) } else { Found::NotYet(format!("{entry:?}")) })
    })
    .await?;
    let others: Vec<_> = (0..60).map(|number| load(format!("m{number}"))).collect();
    slow.await??;
    for other in others {
        other.await??;
    }
    ensure!(ovms.reloads() - before <= 4, "{} reloads for 61 models", ovms.reloads() - before);

    // The server does what it is told, and the connection breaks before it says so.
    ovms.switch(&json!({"lose_answers": true}))?;
    load("unheard".to_owned()).await??;
    runtime.unload(&registration("m7").id).await?;
    ensure!(runtime.index().await?.unloaded(&registration("m7").id).is_some(), "its states say that it is gone");
    let broken = fixture.path("models").join("broken.onnx");
    std::fs::write(&broken, "<html>404</html>")?;
    let model = registration("broken");
    let laid_out = runtime.lay_out(&model, &files(&broken)?).await?;
    let refused = runtime.load(&model, &laid_out).await.err().context("it is no model")?;
    ensure!(refused.fault == LoadFault::BadModel, "{refused}");
    drop(clock);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_costs_what_its_reload_costs_and_no_wait_on_top() -> Result<()> {
    let fixture = Fixture::empty()?;
    let ovms = Ovms::start(&fixture.parts).await?;
    let (runtime, _clock) = adapter(&ovms, 1).await?;
    let artifacts = files(&fixture.quickstart.models().join("iris/model.onnx"))?;
    let model = registration("m");
    let laid_out = runtime.lay_out(&model, &artifacts).await?;
    let mut fastest = Duration::MAX;
    for _round in 0..10 {
        #[allow(clippy::disallowed_methods, reason = "a measure of real time")]
        let began = Instant::now();
        runtime.load(&model, &laid_out).await?;
        fastest = fastest.min(began.elapsed());
        runtime.unload(&model.id).await?;
        ensure!(runtime.index().await?.unloaded(&model.id).is_some());
    }
    // Upstream waits for 100 ms before it tells the server anything.
    ensure!(fastest < Duration::from_millis(90), "the fastest of ten loads took {fastest:?}");
    Ok(())
}
