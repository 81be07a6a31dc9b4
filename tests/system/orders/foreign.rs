//! InferenceServices that are somebody else's: served by whom they name, never written to from here.

use anyhow::Result;
use berth_testkit::{Found, eventually};
use serde_json::{Value, json};

use super::{Form, LOADED, LOADING, Model, Stage};
use crate::fixture::SOON;

const MODE: &str = "serving.kserve.io/deploymentMode";

/// Waits until the leader has seen all that was written so far: it takes things in order.
async fn the_leader_came_by(stage: &Stage, name: &'static str) -> Result<()> {
    stage.create(name, &Model::at("diabetes")).await?.reaches(LOADED).await?;
    Ok(())
}

#[tokio::test]
async fn an_inference_service_of_another_mode_gets_no_status_and_is_not_served() -> Result<()> {
    let form = Form::Service;
    let stage = Stage::start(form).await?;
    for (name, annotations) in [
        ("without", json!({})),
        ("serverless", json!({MODE: "Serverless"})),
        ("raw", json!({MODE: "RawDeployment"})),
        ("lower-case", json!({MODE: "modelmesh"})),
    ] {
        let mut document = form.document(name, &form.spec(&Model::at("iris")));
        document["metadata"]["annotations"] = annotations;
        let made = super::made(&stage.berth, &form.collection("default"), &document).await?;
        assert_eq!(stage.ask(name, "iris").await?.status, 404, "{name}");
        the_leader_came_by(&stage, "ours").await?;
        stage.delete("ours").await?;
        assert_eq!(stage.read(name).await?, made, "it was written to");
        assert_eq!(stage.ask(name, "iris").await?.status, 404, "{name}");

        // It becomes ours when it says so.
        let mut story = stage.story(form, "default", name).await?;
        stage.edit(name, |resource| resource["metadata"]["annotations"] = json!({MODE: "ModelMesh"})).await?;
        story.reaches(LOADED).await?;
        story.went(&["no status", LOADING, LOADED])?;
        stage.answers(name, "iris").await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_inference_service_that_changes_its_mode_is_withdrawn_and_never_written_to_again() -> Result<()> {
    let stage = Stage::start(Form::Service).await?;
    stage.serving("m", "iris").await?;
    stage.edit("m", |resource| resource["metadata"]["annotations"] = json!({})).await?;
    eventually("it to be withdrawn", SOON, || async {
        let reply = stage.ask("m", "iris").await?;
        Ok(if reply.status == 404 { Found::Yes(()) } else { Found::NotYet(reply.text()) })
    })
    .await?;
    // Whatever is written to it from now on is somebody else's to answer for.
    let withdrawn: Value = stage.read("m").await?;
    stage.change("m", &Model::at("no-such-folder")).await?;
    the_leader_came_by(&stage, "ours").await?;
    assert_eq!(stage.read("m").await?["status"], withdrawn["status"]);
    assert_eq!(stage.ask("m", "iris").await?.status, 404);

    stage.edit("m", |resource| resource["metadata"]["annotations"] = json!({MODE: "ModelMesh"})).await?;
    stage.change("m", &Model::at("iris")).await?;
    let mut story = stage.story(Form::Service, "default", "m").await?;
    stage.edit("m", |resource| resource["metadata"]["labels"] = json!({"ours": "again"})).await?;
    story.reaches(LOADED).await?;
    stage.answers("m", "iris").await?;
    Ok(())
}
