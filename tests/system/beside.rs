//! `berth agent` beside real inference servers: models get there, answer, are evicted, come back, and survive the server's end.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_testkit::{Berth, Exit, Found, Triton, eventually};

use crate::fixture::{Fixture, ROOMY};

/// Long enough for every example to be loaded once by a server that starts a process for each.
const LOADS: Duration = Duration::from_secs(120);

/// A Triton and an agent beside it with the example models.
async fn beside_triton(fixture: &Fixture, host_memory: &str) -> Result<(Triton, Berth)> {
    let repository = fixture.path("repository");
    std::fs::create_dir_all(&repository)?;
    let triton = Triton::with_onnx(&fixture.parts, &repository).await?;
    let berth = fixture.serve(host_memory).beside("triton", &triton.grpc(), &repository).start().await?;
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
    let (_triton, berth) = beside_triton(&fixture, "100KiB").await?;
    let names: Vec<String> = fixture.quickstart.names()?.into_iter().filter(|name| name != "digits-wide").collect();
    for _round in 0..2 {
        for name in &names {
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
    eventually("an answer", LOADS, || async {
        let reply = berth.infer("digits-mlp", fixture.quickstart.request("digits-mlp")?).await?;
        Ok(if reply.status == 200 { Found::Yes(()) } else { Found::NotYet(format!("{} {}", reply.status, reply.text())) })
    })
    .await?;
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
    fixture.storage("broken", &serde_json::json!({"type": "folder", "path": fixture.path("models")}))?;
    fixture.service("broken", "broken", "broken")?;
    let (_triton, berth) = beside_triton(&fixture, ROOMY).await?;
    let standing = berth.stands("broken", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("Triton"), "{standing:?}");
    berth.answers(&fixture.quickstart, "digits-mlp").await
}
