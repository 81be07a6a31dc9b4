//! Starting, changing what is served, and ending.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_testkit::{Exit, Found, eventually, http};

use crate::fixture::{Fixture, ROOMY, SOON, service};

#[tokio::test]
async fn ctrl_c_ends_it_with_status_0_and_a_restart_serves_on() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    for _run in 0..2 {
        let mut berth = fixture.serve(ROOMY).start().await?;
        fixture.all_answer(&berth).await?;
        assert_eq!(berth.interrupt().await?, Exit::Code(0), "{}", berth.process().written());
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_under_way_when_ctrl_c_comes_is_answered() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    let held = fixture.hold(&berth, "digits-forest").await?;
    berth.ctrl_c()?;
    berth.drains().await?;
    berth.refuses("iris", fixture.quickstart.request("iris")?, SOON).await?;
    let answer = held.finish().await.with_context(|| berth.process().written())?;
    fixture.quickstart.check("digits-forest", &answer.good()?)?;
    assert_eq!(berth.process().exit(SOON).await?, Exit::Code(0), "{}", berth.process().written());
    Ok(())
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_keep_it_from_ending() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).flag("--drain-timeout", "1s").start().await?;
    let held = fixture.hold(&berth, "iris").await?;
    berth.ctrl_c()?;
    // The second that it was given, and some for a busy machine.
    assert_eq!(berth.process().exit(Duration::from_secs(6)).await?, Exit::Code(0), "{}", berth.process().written());
    drop(held);
    Ok(())
}

/// What the containers of ModelMesh's pods ask for before they end.
#[tokio::test]
async fn who_asks_before_the_end_is_answered_when_all_requests_are_and_then_the_end_is_quick() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).prestop().flag("--drain-timeout", "5m").start().await?;
    let held = fixture.hold(&berth, "digits-forest").await?;
    let url = berth.prestop("/prestop");
    let asked = tokio::spawn(async move { http::get(&url).await });
    berth.drains().await?;
    berth.refuses("iris", fixture.quickstart.request("iris")?, SOON).await?;
    assert!(!asked.is_finished(), "a request is under way");
    let answer = held.finish().await.with_context(|| berth.process().written())?;
    fixture.quickstart.check("digits-forest", &answer.good()?)?;
    let reply = asked.await??;
    assert_eq!((reply.status, reply.text().as_str()), (200, "drained\n"), "{}", berth.process().written());
    assert_eq!(http::get(&berth.probes("/live")).await?.status, 200, "it waits for the signal");
    berth.ctrl_c()?;
    assert_eq!(berth.process().exit(Duration::from_secs(5)).await?, Exit::Code(0), "{}", berth.process().written());
    Ok(())
}

#[tokio::test]
async fn a_second_ctrl_c_ends_it_at_once() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).flag("--drain-timeout", "5m").start().await?;
    let held = fixture.hold(&berth, "iris").await?;
    berth.ctrl_c()?;
    berth.drains().await?;
    berth.ctrl_c()?;
    assert_eq!(berth.process().exit(Duration::from_secs(5)).await?, Exit::Code(130), "{}", berth.process().written());
    drop(held);
    Ok(())
}

#[tokio::test]
async fn what_is_added_to_and_removed_from_the_folder_is_served_and_forgotten() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    fs::remove_file(fixture.manifests().join("iris.yaml"))?;
    let berth = fixture.serve(ROOMY).start().await?;
    assert_eq!(berth.infer("iris", fixture.quickstart.request("iris")?).await?.status, 404);

    fixture.service("iris", "quickstart", "iris")?;
    berth.stands("iris", SOON, |standing| standing.active == "Loaded").await?;
    berth.answers(&fixture.quickstart, "iris").await?;

    fs::remove_file(fixture.manifests().join("iris.yaml"))?;
    eventually("iris to be forgotten", SOON, || async {
        let reply = berth.infer("iris", fixture.quickstart.request("iris")?).await?;
        Ok(if reply.status == 404 { Found::Yes(()) } else { Found::NotYet(reply.text()) })
    })
    .await
}

#[tokio::test]
async fn what_was_removed_from_the_folder_while_nobody_looked_is_forgotten() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    berth.answers(&fixture.quickstart, "iris").await?;
    berth.process().kill().await?;
    fs::remove_file(fixture.manifests().join("iris.yaml"))?;
    let berth = fixture.serve(ROOMY).start().await?;
    assert_eq!(berth.infer("iris", fixture.quickstart.request("iris")?).await?.status, 404);
    assert!(berth.resource("iris").await.is_err());
    berth.answers(&fixture.quickstart, "diabetes").await
}

#[tokio::test]
async fn a_name_serves_its_old_model_until_its_new_one_is_there() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    berth.answers(&fixture.quickstart, "digits-mlp").await?;

    // A new version that cannot be loaded leaves the old one in its place.
    fixture.service("digits-mlp", "quickstart", "no-such-folder")?;
    let standing = berth.stands("digits-mlp", SOON, |standing| standing.transition == "BlockedByFailedLoad").await?;
    assert_eq!((standing.active.as_str(), standing.target.as_str()), ("Loaded", "FailedToLoad"), "{standing:?}");
    berth.answers(&fixture.quickstart, "digits-mlp").await?;

    // One that can be loaded takes its place: the wide model's answers under the other one's name.
    fixture.manifest("digits-mlp.yaml", &service("digits-mlp", "quickstart", "digits-wide"))?;
    berth.stands("digits-mlp", SOON, |standing| standing.transition == "UpToDate" && standing.active == "Loaded").await?;
    let reply = berth.infer("digits-mlp", fixture.quickstart.request("digits-wide")?).await?;
    fixture.quickstart.check("digits-wide", &reply.good()?)
}

#[tokio::test]
async fn probes_metrics_and_lists_are_served() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    for path in ["/ready", "/live"] {
        assert_eq!(http::get(&berth.probes(path)).await?.status, 200, "{path}");
    }
    let metrics = http::get(&berth.metrics("/metrics")).await?.text();
    for family in ["berth_requests_total", "berth_memory_budget_bytes", "berth_memory_leased_bytes", "berth_request_seconds_count", "berth_models"] {
        assert!(metrics.lines().any(|line| line.starts_with(family)), "{family} is missing in\n{metrics}");
    }
    let mut names = Vec::new();
    for list in
        ["/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices", "/apis/serving.kserve.io/v1alpha1/namespaces/default/predictors"]
    {
        let list = http::get(&berth.api(list)).await?.good()?;
        names.extend(list["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)));
    }
    names.sort();
    assert_eq!(names, fixture.quickstart.names()?);
    Ok(())
}

#[tokio::test]
async fn what_waits_for_a_name_or_a_runtime_or_is_left_alone_does_not_keep_the_start_from_being_ready() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let predictor = |name: &str, format: &str| {
        format!(
            "apiVersion: serving.kserve.io/v1alpha1
kind: Predictor
metadata: {{name: {name}}}
spec: {{modelType: {{name: {format}}}, storage: {{key: quickstart, path: iris}}}}
"
        )
    };
    let elsewhere = "apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: elsewhere}
spec: {multiModel: true, supportedModelFormats: [{name: sklearn, autoSelect: true}], containers: []}
";
    // In the order of the files: the name has a holder before a second one wants it.
    fixture.manifest("zz.yaml", &format!("{}---\n{elsewhere}---\n{}", predictor("iris", "onnx"), predictor("waits", "sklearn")))?;
    fixture.manifest("a-foreign-one.yaml", &service("a-foreign-one", "quickstart", "iris").replace("ModelMesh", "Serverless"))?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    let ready = berth.process().line("the ready line", SOON, |line| line.starts_with("ready ")).await?;
    for counted in ["1 Pending", "1 Loading", "1 Unmanaged"] {
        assert!(ready.contains(counted), "{counted} is not in: {ready}");
    }
    let foreign = |line: &str| line.starts_with("Unmanaged ") && line.contains("a-foreign-one") && line.contains("deploymentMode: ModelMesh");
    berth.process().line("the word that one is left alone", SOON, foreign).await?;
    fixture.all_answer(&berth).await
}
