//! One name, several resources: the first one has it, the others are told who.

use anyhow::Result;
use berth_testkit::http::call;

use super::{Form, LOADED, LOADING, Model, Stage};

const TAKEN: &str = "Pending, UpToDate, not available, 0/0, InvalidPredictorSpec";
const SOMEBODY_ELSES: &str = "Predictor already exists with the same name from a different source";

async fn waits_for_the_name(first: Form, first_namespace: &str, second: Form) -> Result<()> {
    let stage = Stage::start(second).await?;
    let mut holder = stage.story(first, first_namespace, "m").await?;
    let document = first.document("m", &first.spec(&Model::at("diabetes")));
    super::made(&stage.berth, &first.collection(first_namespace), &document).await?;
    holder.reaches(LOADED).await?;

    let mut story = stage.create("m", &Model::at("iris")).await?;
    let taken = story.reaches(TAKEN).await?;
    story.fault_of_spec(&taken, &[first.kind(), first_namespace])?;
    super::begins(second.failure(&taken), SOMEBODY_ELSES)?;
    assert!(second.failure(&taken)["modelId"].is_null(), "{taken}");
    stage.fixture.quickstart.check("diabetes", &stage.ask("m", "diabetes").await?.good()?)?;

    let url = stage.berth.api(&format!("{}/m", first.collection(first_namespace)));
    call("DELETE", &url, "".into()).await?.good()?;
    holder.reaches("deleted").await?;
    // It never knew of the other one.
    holder.went(&[first.unseen(), LOADING, LOADED, "deleted"])?;
    let loaded = story.reaches(LOADED).await?;
    assert!(second.failure(&loaded).is_null(), "{loaded}");
    story.went(&[second.unseen(), TAKEN, LOADING, LOADED])?;
    stage.answers("m", "iris").await?;
    Ok(())
}

#[tokio::test]
async fn an_inference_service_waits_for_the_name_of_a_predictor() -> Result<()> {
    waits_for_the_name(Form::Predictor, "default", Form::Service).await
}

#[tokio::test]
async fn a_predictor_waits_for_the_name_of_an_inference_service() -> Result<()> {
    waits_for_the_name(Form::Service, "default", Form::Predictor).await
}

#[tokio::test]
async fn an_inference_service_waits_for_its_name_in_another_namespace() -> Result<()> {
    waits_for_the_name(Form::Service, "elsewhere", Form::Service).await
}

#[tokio::test]
async fn a_predictor_waits_for_its_name_in_another_namespace() -> Result<()> {
    waits_for_the_name(Form::OldPredictor, "elsewhere", Form::Predictor).await
}
