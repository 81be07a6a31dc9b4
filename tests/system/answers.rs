//! Every example answers its recorded request rightly, through each public client, from each store, in each engine.

use anyhow::Result;
use berth_testkit::{Berth, Transport, curl, python, root};

use crate::fixture::{Fixture, ROOMY, SOON};

/// All examples through tritonclient in each of its ways (gRPC, streams, compression, HTTP with JSON and with binary
/// tensors, asynchronously) and through curl.
pub(crate) async fn right_through_every_client(fixture: &Fixture, berth: &Berth) -> Result<()> {
    let names = fixture.quickstart.names()?;
    let mut args = vec!["--grpc".to_owned(), berth.grpc(), "--http".to_owned(), berth.rest(), "--folder".to_owned()];
    args.extend([fixture.quickstart.folder().display().to_string(), "--more".to_owned()]);
    args.extend(names.iter().cloned());
    let said = python(&fixture.parts, &root().join("tests/system/clients.py"), &args).await?;
    assert_eq!(said.lines().filter(|line| line.starts_with("right: ")).count(), 12 * names.len(), "{said}");
    for name in &names {
        let body = format!("@{}", fixture.quickstart.folder().join("requests").join(name).with_extension("json").display());
        let answer = curl(&["--fail-with-body", &format!("http://{}/v2/models/{name}/infer", berth.rest()), "--data", &body]).await?;
        fixture.quickstart.check(name, &serde_json::from_str(&answer)?)?;
    }
    Ok(())
}

#[tokio::test]
async fn every_example_answers_rightly_through_every_client() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    right_through_every_client(&fixture, &berth).await
}

#[tokio::test]
async fn every_example_answers_rightly_where_not_all_fit_at_once() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(crate::eviction::TIGHT).start().await?;
    right_through_every_client(&fixture, &berth).await
}

#[tokio::test]
async fn every_example_answers_rightly_in_onnx_runtime() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let library = fixture.parts.onnx_library.clone();
    let mut berth = fixture.serve("2GiB").flag("--onnx-library", library).start().await?;
    right_through_every_client(&fixture, &berth).await?;
    // The library is really in the process, the built-in engine is not doing its work.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", berth.process().id()))?;
    assert!(maps.contains("libonnxruntime"), "the process has not loaded ONNX Runtime");
    Ok(())
}

#[tokio::test]
async fn every_example_answers_rightly_from_s3() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let berth = fixture.serve(ROOMY).start().await?;
    right_through_every_client(&fixture, &berth).await
}

#[tokio::test]
async fn every_example_answers_rightly_from_s3_over_tls() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Tls).await?;
    let berth = fixture.serve(ROOMY).start().await?;
    right_through_every_client(&fixture, &berth).await
}

#[tokio::test]
async fn a_store_that_is_gone_does_not_matter_once_the_models_are_on_disk() -> Result<()> {
    let mut fixture = Fixture::of_s3(Transport::Plain).await?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    berth.process().kill().await?;
    fixture.lose_gateway();
    let berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn the_curl_line_that_serve_prints_answers_a_digit() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    let line = berth.process().line("a curl line", SOON, |line| line.contains("curl ")).await?;
    let start = line.find("curl ").expect("the line was chosen by it");
    // As a user would: pasted into a shell, in the folder in which serve was started.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line[start..]]);
    let mut shell = berth_testkit::Process::start("the pasted line", shell)?;
    assert_eq!(shell.exit(SOON).await?, berth_testkit::Exit::Code(0), "{}", shell.written());
    assert!(shell.out().contains("\"outputs\""), "{}", shell.written());
    Ok(())
}
