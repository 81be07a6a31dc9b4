//! First loads that fail.

use std::fs;

use anyhow::Result;
use serde_json::json;

use super::gate::{Gated, behind};
use super::{FAILED, Form, LOADED, LOADING, Model, Stage, bare};
use crate::fixture::ROOMY;

/// A failed version is being replaced.
const REPAIRING: &str = "FailedToLoad -> Loading, InProgress, not available, 1/0";

async fn tells_why_a_first_load_failed(form: Form) -> Result<()> {
    let fixture = bare()?;
    let models = fixture.path("models");
    let whole = fs::read(fixture.quickstart.models().join("digits-wide/model.onnx"))?;
    for (name, bytes) in [("cut", &whole[..whole.len() / 2]), ("noise", b"this is not a model at all".as_slice()), ("empty", b"")] {
        fs::create_dir_all(models.join(name))?;
        fs::write(models.join(name).join("model.onnx"), bytes)?;
    }
    fixture.storage("mine", &json!({"type": "folder", "path": models}))?;
    fixture.storage("strange", &json!({"type": "ftp", "url": "ftp://nowhere"}))?;
    fixture.storage("typeless", &json!({"bucket": "models"}))?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let key = |key: &'static str, path: &'static str| Model { key: Some(key), ..Model::at(path) };
    for (name, model, parts) in [
        ("no-path", Model::at("no-such-folder"), vec!["no-such-folder", "does not exist"]),
        ("no-key", key("no-such-key", "iris"), vec!["Did not find storage config for key no-such-key: ", "quickstart"]),
        ("no-storage", Model { key: None, ..Model::at("iris") }, vec!["Predictor Storage field missing"]),
        ("no-type", key("typeless", "iris"), vec!["Predictor Storage field missing"]),
        ("strange-type", key("strange", "iris"), vec!["\"ftp\"", "is not known", "s3"]),
        ("cut", key("mine", "cut"), vec!["model.onnx"]),
        ("noise", key("mine", "noise"), vec!["model.onnx"]),
        ("empty", key("mine", "empty"), vec!["model.onnx", "empty"]),
    ] {
        let mut story = stage.create(name, &model).await?;
        let failed = story.reaches(FAILED).await?;
        story.went(&[form.unseen(), LOADING, FAILED])?;
        let version = story.failure_in_pod(&failed, &parts).await?;
        stage.is_id(&version, name)?;
        stage.refuses(name, "iris", &parts).await?;

        stage.change(name, &Model::at("iris")).await?;
        let loaded = story.reaches(LOADED).await?;
        // The repaired version may take over before it is loaded: nothing else serves.
        story.went_perhaps_through(LOADING, &[form.unseen(), LOADING, FAILED, REPAIRING, LOADED])?;
        assert!(form.failure(&loaded).is_null(), "{loaded}");
        assert_ne!(stage.answers(name, "iris").await?, version);
    }
    Ok(())
}

#[tokio::test]
async fn an_inference_service_tells_why_its_first_load_failed_and_is_repaired_by_an_edit() -> Result<()> {
    tells_why_a_first_load_failed(Form::Service).await
}

#[tokio::test]
async fn a_predictor_tells_why_its_first_load_failed_and_is_repaired_by_an_edit() -> Result<()> {
    tells_why_a_first_load_failed(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_tells_why_its_first_load_failed_and_is_repaired_by_an_edit() -> Result<()> {
    tells_why_a_first_load_failed(Form::OldPredictor).await
}

#[tokio::test]
async fn a_predictor_without_storage_says_so() -> Result<()> {
    let stage = Stage::start(Form::Predictor).await?;
    let (mut story, _) = stage.make("m", &json!({"modelType": {"name": "onnx"}, "path": "iris"})).await?;
    let failed = story.reaches(FAILED).await?;
    story.failure_in_pod(&failed, &["Predictor Storage field missing"]).await?;
    stage.refuses("m", "iris", &["Predictor Storage field missing"]).await
}

async fn keeps_its_failure_as_it_is(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    for (name, model, row) in [
        ("no-path", Model::at("no-such-folder"), FAILED),
        ("no-runtime", Model { format: "sklearn", ..Model::at("iris") }, "FailedToLoad, UpToDate, not available, 0/0, NoSupportingRuntime"),
    ] {
        let mut story = stage.create(name, &model).await?;
        let failed = story.reaches(row).await?;
        stage.a_second_passes().await?;
        stage.edit(name, |resource| resource["metadata"]["labels"] = json!({"of": "somebody"})).await?;
        assert_eq!(story.reaches(row).await?["status"], failed["status"], "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_failure_of_an_inference_service_keeps_its_time_as_long_as_it_is_the_same() -> Result<()> {
    keeps_its_failure_as_it_is(Form::Service).await
}

#[tokio::test]
async fn the_failure_of_a_predictor_keeps_its_time_as_long_as_it_is_the_same() -> Result<()> {
    keeps_its_failure_as_it_is(Form::Predictor).await
}

async fn fails_again_after_a_repair_that_is_none(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut story = stage.create("m", &Model::at("no-such-folder")).await?;
    let first = story.reaches(FAILED).await?;
    stage.change("m", &Model::at("nor-this-one")).await?;
    let second = story.reaches(FAILED).await?;
    assert_ne!(story.failure_in_pod(&second, &["nor-this-one"]).await?, form.failure(&first)["modelId"]);
    story.went_perhaps_through(LOADING, &[form.unseen(), LOADING, FAILED, REPAIRING, FAILED])
}

#[tokio::test]
async fn an_inference_service_that_failed_fails_again_when_its_new_spec_is_no_better() -> Result<()> {
    fails_again_after_a_repair_that_is_none(Form::Service).await
}

#[tokio::test]
async fn a_predictor_that_failed_fails_again_when_its_new_spec_is_no_better() -> Result<()> {
    fails_again_after_a_repair_that_is_none(Form::Predictor).await
}

async fn the_repaired_version_takes_over_at_once(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.create("m", &Model::at("no-such-folder")).await?;
    story.reaches(FAILED).await?;
    stage.change("m", &behind("iris")).await?;
    story.reaches(REPAIRING).await?;
    let loading = story.reaches(LOADING).await?;
    assert!(form.failure(&loading).is_null(), "{loading}");
    // A request waits now, where it was refused before.
    let told = async {
        gated.open();
        story.reaches(LOADED).await
    };
    let (answered, loaded) = tokio::join!(stage.answers_again("m", "iris"), told);
    answered?;
    loaded?;
    story.went(&[form.unseen(), LOADING, FAILED, REPAIRING, LOADING, LOADED])
}

#[tokio::test]
async fn the_repaired_version_of_an_inference_service_that_failed_takes_over_before_it_is_loaded() -> Result<()> {
    the_repaired_version_takes_over_at_once(Form::Service).await
}

#[tokio::test]
async fn the_repaired_version_of_a_predictor_that_failed_takes_over_before_it_is_loaded() -> Result<()> {
    the_repaired_version_takes_over_at_once(Form::Predictor).await
}

async fn loads_again_when_asked(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    gated.leave(&fixture)?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.create("m", &behind("iris")).await?;
    let failed = story.reaches(FAILED).await?;
    let version = story.failure_in_pod(&failed, &["127.0.0.1"]).await?;

    gated.come_back(&stage.fixture)?;
    let told = async {
        story.reaches(LOADING).await?;
        gated.open();
        story.reaches(LOADED).await
    };
    let (answered, loaded) = tokio::join!(stage.answers_again("m", "iris"), told);
    let loaded = loaded?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    assert_eq!(answered?, version);
    story.went(&[form.unseen(), LOADING, FAILED, LOADING, LOADED])
}

#[tokio::test]
async fn an_inference_service_whose_store_was_away_is_loaded_when_a_request_asks_for_it() -> Result<()> {
    loads_again_when_asked(Form::Service).await
}

#[tokio::test]
async fn a_predictor_whose_store_was_away_is_loaded_when_a_request_asks_for_it() -> Result<()> {
    loads_again_when_asked(Form::Predictor).await
}
