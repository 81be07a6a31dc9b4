//! The end, and a new beginning under the same name.

use anyhow::Result;
use berth_testkit::http;

use super::{Form, LOADED, LOADING, Model, Stage};

async fn is_deleted_and_made_again(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut story = stage.create("m", &Model::at("iris")).await?;
    let first = story.reaches(LOADED).await?;
    let id = stage.answers("m", "iris").await?;
    stage.delete("m").await?;
    story.reaches("deleted").await?;
    assert_eq!(http::get(&stage.url("m")).await?.status, 404);
    let gone = async |name: &str| -> Result<()> {
        berth_testkit::eventually("the name to be forgotten", crate::fixture::SOON, || async {
            let reply = stage.ask(name, "iris").await?;
            Ok(if reply.status == 404 { berth_testkit::Found::Yes(()) } else { berth_testkit::Found::NotYet(reply.text()) })
        })
        .await
    };
    gone("m").await?;
    gone(&id).await?;

    stage.create("m", &Model::at("iris")).await?;
    let second = story.reaches(LOADED).await?;
    story.went(&[form.unseen(), LOADING, LOADED, "deleted", form.unseen(), LOADING, LOADED])?;
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(second["metadata"]["generation"], 1);
    assert_eq!(stage.answers("m", "iris").await?, id, "the same spec is the same version");
    Ok(())
}

#[tokio::test]
async fn an_inference_service_that_is_made_again_begins_anew() -> Result<()> {
    is_deleted_and_made_again(Form::Service).await
}

#[tokio::test]
async fn a_predictor_that_is_made_again_begins_anew() -> Result<()> {
    is_deleted_and_made_again(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_that_is_made_again_begins_anew() -> Result<()> {
    is_deleted_and_made_again(Form::OldPredictor).await
}
