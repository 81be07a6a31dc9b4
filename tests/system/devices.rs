//! A GPU that is chosen for a copy, told to a real Triton. This machine has none: what Triton takes of it shows in its
//! configuration, and what it does not take in its words.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_adapters::conformance::registration;
use berth_adapters::{Artifacts, Dialect, LoadFault, Runtime as _, Seat};
use berth_testkit::http::get;
use berth_testkit::{Triton, TritonModels};
use berth_types::ByteSize;
use serde_json::json;

use crate::beside::{LOADS, adapter};
use crate::cli::on;
use crate::fixture::{Fixture, service};

/// A model for the Python backend whose configuration says this of its instances.
fn model(fixture: &Fixture, name: &str, instances: &str) -> Result<Artifacts> {
    let folder = fixture.path("models").join(name);
    TritonModels::hungry(&folder, &[1; 4096], 100)?;
    let config = fs::read_to_string(folder.join("config.pbtxt"))?;
    let (before, _) = config.split_once("instance_group").context("it says where it runs")?;
    fs::write(folder.join("config.pbtxt"), format!("{before}{instances}\n"))?;
    Ok(Artifacts { model: folder, schema: None, size: ByteSize(8192) })
}

#[tokio::test(flavor = "multi_thread")]
async fn triton_takes_the_configuration_that_comes_with_the_load() -> Result<()> {
    let fixture = Fixture::empty()?;
    let repository = fixture.repository()?;
    let triton = Triton::start(&fixture.parts, &repository).await?;
    let (runtime, _clock) = adapter(Dialect::Triton, &triton.grpc(), &repository).await?;

    let (two, files) = (registration("two__isvc-1"), model(&fixture, "two", "instance_group [ { count: 2 kind: KIND_CPU } ]")?);
    ensure!(runtime.seat(&two, &files).await == Seat::Given, "no GPU is chosen for it");
    let laid_out = runtime.lay_out_on(1, &two, &files).await?;
    ensure!(!laid_out.path.join("config.pbtxt").exists(), "Triton has nothing but what comes with the load");
    runtime.load(&two, &laid_out).await?;
    let config = get(&format!("http://{}/v2/models/{}/config", triton.http(), two.id)).await?.good()?;
    let group = &config["instance_group"][0];
    ensure!(group["kind"] == "KIND_CPU" && group["count"] == 2 && config["backend"] == "python", "{config}");

    let (free, files) = (registration("free__isvc-1"), model(&fixture, "free", "")?);
    ensure!(runtime.seat(&free, &files).await == Seat::OneGpu);
    let laid_out = runtime.lay_out_on(1, &free, &files).await?;
    let refused = runtime.load(&free, &laid_out).await.err().context("there is no such GPU here")?;
    ensure!(refused.message.contains("unsupported gpu id 1") && refused.fault == LoadFault::NotNow, "{refused:?}");
    // That is no fault of the model: from now on it goes where there is something.
    ensure!(runtime.seat(&free, &files).await == Seat::Given);
    let laid_out = runtime.lay_out(&free, &files).await?;
    runtime.load(&free, &laid_out).await?;
    Ok(())
}

#[tokio::test]
async fn beside_a_triton_without_a_gpu_models_that_would_take_one_are_served_all_the_same() -> Result<()> {
    let fixture = Fixture::empty()?;
    fixture.models_storage()?;
    model(&fixture, "free", "")?;
    fixture.manifest("free.yaml", &service("free", "models", "free").replace("name: onnx", "name: python"))?;
    let repository = fixture.repository()?;
    let triton = Triton::start(&fixture.parts, &repository).await?;
    let berth = fixture.serve("256MiB").beside("triton", &triton.grpc(), &repository).flag("--gpu-memory", "0=1GiB").start().await?;
    let body = json!({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1], "data": [1.5]}]}).to_string();
    berth.comes_to_answer("free", body, LOADS).await?;
    ensure!(berth.standing("free").await?.reason.is_empty(), "it is not to blame");
    Ok(())
}

#[tokio::test]
async fn a_model_for_the_cpu_is_served_from_main_memory_beside_a_gpu() -> Result<()> {
    let fixture = Fixture::empty()?;
    fixture.models_storage()?;
    model(&fixture, "plain", "instance_group [ { kind: KIND_CPU } ]")?;
    fixture.manifest("plain.yaml", &service("plain", "models", "plain").replace("name: onnx", "name: python"))?;
    let repository = fixture.repository()?;
    let triton = Triton::start(&fixture.parts, &repository).await?;
    let serve = fixture.serve("256MiB").beside("triton", &triton.grpc(), &repository).flag("--gpu-memory", "0=1GiB,1=1GiB");
    let berth = serve.start().await?;
    berth.stands("plain", LOADS, |standing| standing.active == "Loaded").await?;
    let leased = async |pool: &str| berth.metric(&format!("berth_memory_leased_bytes{{pool=\"{pool}\"}}")).await;
    ensure!(leased("host").await? > 0.0 && leased("gpu:0").await? == 0.0 && leased("gpu:1").await? == 0.0);
    // As people see it.
    let top = on(&fixture, &berth, "top").await?.good()?;
    let line = |begins: &str| top.lines().find(|line| line.starts_with(begins)).map(str::to_owned).with_context(|| format!("no {begins} in\n{top}"));
    ensure!(line("host ")?.contains("256 MiB") && line("gpu:1 ")?.contains("1 GiB      0 B"), "{top}");
    ensure!(line("plain__isvc-")?.contains("ready") && line("plain__isvc-")?.contains(" host   measured"), "{top}");
    let page = on(&fixture, &berth, "describe isvc plain").await?.good()?;
    let memory = page.lines().find(|line| line.starts_with("  Memory: ")).with_context(|| format!("no memory in\n{page}"))?;
    ensure!(memory.contains(" host (measured), plain__isvc-"), "{memory}");
    Ok(())
}
