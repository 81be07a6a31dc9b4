//! Another spec for a model that serves.

use anyhow::Result;
use berth_testkit::{Found, eventually};

use super::gate::{Gated, behind};
use super::{BLOCKED, Form, LOADED, Model, Stage, UPDATING, bare};
use crate::fixture::{ROOMY, SOON};

async fn serves_the_old_while_the_new_loads(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.serving("m", "iris").await?;
    let old = stage.answers("m", "iris").await?;
    stage.change("m", &behind("diabetes")).await?;
    story.reaches(UPDATING).await?;
    for _ in 0..3 {
        assert_eq!(stage.answers("m", "iris").await?, old);
    }
    gated.open();
    story.reaches(LOADED).await?;
    assert_ne!(stage.answers("m", "diabetes").await?, old);
    story.went(&[LOADED, UPDATING, LOADED])
}

#[tokio::test]
async fn an_inference_service_serves_its_old_version_while_the_new_one_loads() -> Result<()> {
    serves_the_old_while_the_new_loads(Form::Service).await
}

#[tokio::test]
async fn a_predictor_serves_its_old_version_while_the_new_one_loads() -> Result<()> {
    serves_the_old_while_the_new_loads(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_serves_its_old_version_while_the_new_one_loads() -> Result<()> {
    serves_the_old_while_the_new_loads(Form::OldPredictor).await
}

async fn shows_progress_however_fast(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut story = stage.serving("m", "iris").await?;
    let first = stage.answers("m", "iris").await?;
    let mut ids = vec![first.clone()];
    for example in ["diabetes", "digits-conv", "iris"] {
        stage.change("m", &Model::at(example)).await?;
        story.reaches(UPDATING).await?;
        story.reaches(LOADED).await?;
        ids.push(stage.answers("m", example).await?);
    }
    story.went(&[LOADED, UPDATING, LOADED, UPDATING, LOADED, UPDATING, LOADED])?;
    // The same spec is the same version.
    assert_eq!(ids.pop(), Some(first));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    Ok(())
}

#[tokio::test]
async fn an_update_of_an_inference_service_that_takes_a_millisecond_still_shows_its_progress() -> Result<()> {
    shows_progress_however_fast(Form::Service).await
}

#[tokio::test]
async fn an_update_of_a_predictor_that_takes_a_millisecond_still_shows_its_progress() -> Result<()> {
    shows_progress_however_fast(Form::Predictor).await
}

#[tokio::test]
async fn an_update_of_an_older_predictor_that_takes_a_millisecond_still_shows_its_progress() -> Result<()> {
    shows_progress_however_fast(Form::OldPredictor).await
}

async fn ends_with_the_last_of_two(form: Form) -> Result<()> {
    let fixture = bare()?;
    let _gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.serving("m", "iris").await?;
    let old = stage.answers("m", "iris").await?;

    // The first never gets anywhere: what replaces it need not wait for it.
    stage.change("m", &behind("diabetes")).await?;
    story.reaches(UPDATING).await?;
    stage.change("m", &Model::at("digits-conv")).await?;
    story.reaches(UPDATING).await?;
    story.reaches(LOADED).await?;
    assert_ne!(stage.answers("m", "digits-conv").await?, old);
    story.went(&[LOADED, UPDATING, LOADED])?;

    // Nobody waits in between; the first may or may not have got anywhere.
    stage.change("m", &Model::at("diabetes")).await?;
    stage.change("m", &Model::at("iris")).await?;
    let last = stage.read("m").await?["metadata"]["generation"].clone();
    while story.reaches(LOADED).await?["metadata"]["generation"] != last {}
    assert_eq!(stage.answers("m", "iris").await?, old);
    let rows = story.watch.rows();
    assert!(rows.iter().all(|row| row == LOADED || row == UPDATING) && rows.len() > 3, "{rows:?}");
    Ok(())
}

#[tokio::test]
async fn of_two_quick_updates_of_an_inference_service_the_last_one_wins() -> Result<()> {
    ends_with_the_last_of_two(Form::Service).await
}

#[tokio::test]
async fn of_two_quick_updates_of_a_predictor_the_last_one_wins() -> Result<()> {
    ends_with_the_last_of_two(Form::Predictor).await
}

async fn takes_an_update_back(form: Form) -> Result<()> {
    let fixture = bare()?;
    let _gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.serving("m", "iris").await?;
    let old = stage.answers("m", "iris").await?;
    let loads = stage.berth.metric("berth_loads_total").await?;
    stage.change("m", &behind("diabetes")).await?;
    story.reaches(UPDATING).await?;
    stage.change("m", &Model::at("iris")).await?;
    story.reaches(LOADED).await?;
    assert_eq!(stage.answers("m", "iris").await?, old);
    assert_eq!(stage.berth.metric("berth_loads_total").await?, loads, "what was loaded all the time was loaded again");
    story.went(&[LOADED, UPDATING, LOADED])
}

#[tokio::test]
async fn an_update_of_an_inference_service_that_is_taken_back_leaves_everything_as_it_was() -> Result<()> {
    takes_an_update_back(Form::Service).await
}

#[tokio::test]
async fn an_update_of_a_predictor_that_is_taken_back_leaves_everything_as_it_was() -> Result<()> {
    takes_an_update_back(Form::Predictor).await
}

async fn is_blocked_and_repaired(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut story = stage.serving("m", "iris").await?;
    let old = stage.answers("m", "iris").await?;
    stage.change("m", &Model::at("no-such-folder")).await?;
    let blocked = story.reaches(BLOCKED).await?;
    assert_ne!(story.failure_in_pod(&blocked, &["no-such-folder"]).await?, old, "the failure is of the version that serves");
    assert_eq!(stage.answers("m", "iris").await?, old);

    // Another that cannot load, then one that can.
    stage.change("m", &Model { key: Some("no-such-key"), ..Model::at("iris") }).await?;
    story.reaches(UPDATING).await?;
    let again = story.reaches(BLOCKED).await?;
    let failed = story.failure_in_pod(&again, &["Did not find storage config for key no-such-key"]).await?;
    assert_ne!(failed, form.failure(&blocked)["modelId"], "the failure is of the version before");
    assert_eq!(stage.answers("m", "iris").await?, old);
    stage.change("m", &Model::at("diabetes")).await?;
    story.reaches(UPDATING).await?;
    let loaded = story.reaches(LOADED).await?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    let new = stage.answers("m", "diabetes").await?;

    // What was blocked and taken back is as it was.
    stage.change("m", &Model::at("no-such-folder")).await?;
    story.reaches(BLOCKED).await?;
    stage.change("m", &Model::at("diabetes")).await?;
    story.reaches(LOADED).await?;
    assert_eq!(stage.answers("m", "diabetes").await?, new);
    story.went(&[LOADED, UPDATING, BLOCKED, UPDATING, BLOCKED, UPDATING, LOADED, UPDATING, BLOCKED, LOADED])
}

#[tokio::test]
async fn a_bad_update_of_an_inference_service_is_blocked_until_it_is_repaired() -> Result<()> {
    is_blocked_and_repaired(Form::Service).await
}

#[tokio::test]
async fn a_bad_update_of_a_predictor_is_blocked_until_it_is_repaired() -> Result<()> {
    is_blocked_and_repaired(Form::Predictor).await
}

#[tokio::test]
async fn a_bad_update_of_an_older_predictor_is_blocked_until_it_is_repaired() -> Result<()> {
    is_blocked_and_repaired(Form::OldPredictor).await
}

/// A target that failed for want of its store is loading again when somebody asks for it by its id.
async fn is_in_progress_again(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    gated.leave(&fixture)?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.serving("m", "iris").await?;
    stage.change("m", &behind("diabetes")).await?;
    let blocked = story.reaches(BLOCKED).await?;
    let target = story.failure_in_pod(&blocked, &[]).await?;

    gated.come_back(&stage.fixture)?;
    let (request, berth) = (stage.fixture.quickstart.request("diabetes")?, &stage.berth);
    // That the store is away is the answer for some seconds after it was found to be.
    let asked = eventually("an answer of the target", SOON, || async {
        let reply = berth.infer(&target, request.clone()).await?;
        Ok(if reply.status == 503 { Found::NotYet(reply.text()) } else { Found::Yes(reply) })
    });
    let told = async {
        story.reaches(UPDATING).await?;
        stage.answers("m", "iris").await?;
        gated.open();
        story.reaches(LOADED).await
    };
    let (answer, loaded) = tokio::join!(asked, told);
    assert!(form.failure(&loaded?).is_null());
    assert_eq!(answer?.good()?["model_name"], target);
    assert_eq!(stage.answers("m", "diabetes").await?, target);
    story.went(&[LOADED, UPDATING, BLOCKED, UPDATING, LOADED])
}

#[tokio::test]
async fn a_blocked_update_of_an_inference_service_is_in_progress_again_while_it_is_tried_again() -> Result<()> {
    is_in_progress_again(Form::Service).await
}

#[tokio::test]
async fn a_blocked_update_of_a_predictor_is_in_progress_again_while_it_is_tried_again() -> Result<()> {
    is_in_progress_again(Form::Predictor).await
}
