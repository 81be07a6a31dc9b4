//! From creation to the first load.

use anyhow::Result;
use berth_testkit::{Standing, Transport};
use serde_json::{Value, json};

use super::{Form, LOADED, LOADING, Model, Stage};
use crate::fixture::{Fixture, ROOMY, SOON};

async fn is_created(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    // From 272 bytes to 940 KB.
    for example in ["diabetes", "iris", "digits-conv", "digits-wide"] {
        let mut story = stage.create(example, &Model::at(example)).await?;
        let loaded = story.reaches(LOADED).await?;
        story.went(&[form.unseen(), LOADING, LOADED])?;
        assert_eq!(loaded["status"]["observedGeneration"], loaded["metadata"]["generation"]);
        stage.answers(example, example).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_inference_service_has_no_status_then_loads_and_then_is_loaded() -> Result<()> {
    is_created(Form::Service).await
}

#[tokio::test]
async fn a_predictor_is_pending_then_loads_and_then_is_loaded() -> Result<()> {
    is_created(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_is_pending_then_loads_and_then_is_loaded() -> Result<()> {
    is_created(Form::OldPredictor).await
}

#[tokio::test]
async fn a_predictor_has_the_default_status_of_its_schema_in_the_answer_to_its_creation() -> Result<()> {
    for form in [Form::Predictor, Form::OldPredictor] {
        let stage = Stage::start(form).await?;
        let (mut story, made) = stage.make("iris", &form.spec(&Model::at("iris"))).await?;
        let default = json!({
            "transitionStatus": "UpToDate", "activeModelState": "Pending", "targetModelState": "",
            "available": false, "failedCopies": 0, "totalCopies": 0,
        });
        assert_eq!(made["status"], default);
        story.reaches(LOADED).await?;
        assert_eq!(story.watch.told()[0].resource["status"], default);
    }
    Ok(())
}

#[tokio::test]
async fn an_inference_service_has_no_status_in_the_answer_to_its_creation() -> Result<()> {
    let stage = Stage::start(Form::Service).await?;
    let (mut story, made) = stage.make("iris", &Form::Service.spec(&Model::at("iris"))).await?;
    assert_eq!(made.get("status"), None);
    story.reaches(LOADED).await?;
    assert_eq!(story.watch.told()[0].resource.get("status"), None);
    Ok(())
}

async fn many_are_created(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut stories = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        stories.push(stage.story(form, "default", name).await?);
    }
    for story in &stories {
        super::made(&stage.berth, &form.collection("default"), &form.document(story.name, &form.spec(&Model::at("diabetes")))).await?;
    }
    for story in &mut stories {
        story.reaches(LOADED).await?;
        story.went(&[form.unseen(), LOADING, LOADED])?;
    }
    Ok(())
}

#[tokio::test]
async fn of_many_inference_services_made_at_once_none_leaves_out_a_state() -> Result<()> {
    many_are_created(Form::Service).await
}

#[tokio::test]
async fn of_many_predictors_made_at_once_none_leaves_out_a_state() -> Result<()> {
    many_are_created(Form::Predictor).await
}

#[tokio::test]
async fn the_storage_forms_of_both_kinds_load_from_a_bucket() -> Result<()> {
    let model = Model { parameters: Some(json!({"bucket": "models"})), ..Model::at("iris") };
    let service = |predictor: Value| json!({"predictor": predictor});
    let secret_key = ("serving.kserve.io/secretKey", "quickstart");
    let onnx = json!({"name": "onnx"});
    let stage = Stage::of(Form::Service, Fixture::of_s3(Transport::Plain).await?, ROOMY).await?;
    for (name, form, spec, annotation) in [
        ("with-key", Form::Service, Form::Service.spec(&model), None),
        ("with-uri", Form::Service, service(json!({"model": {"modelFormat": onnx, "storageUri": "s3://models/iris"}})), Some(secret_key)),
        ("older-with-uri", Form::Service, service(json!({"onnx": {"storageUri": "s3://models/iris"}})), Some(secret_key)),
        ("older-with-key", Form::Service, service(json!({"onnx": {"storage": {"key": "quickstart", "path": "iris"}}})), None),
        ("predictor", Form::Predictor, Form::Predictor.spec(&model), None),
        ("older-predictor", Form::OldPredictor, Form::OldPredictor.spec(&model), None),
    ] {
        let mut document = form.document(name, &spec);
        if let Some((key, value)) = annotation {
            document["metadata"]["annotations"][key] = value.into();
        }
        let mut story = stage.story(form, "default", name).await?;
        super::made(&stage.berth, &form.collection("default"), &document).await?;
        story.reaches(LOADED).await?;
        story.went(&[form.unseen(), LOADING, LOADED])?;
        let answer = stage.ask(name, "iris").await?.good()?;
        stage.fixture.quickstart.check("iris", &answer)?;
    }
    Ok(())
}

#[tokio::test]
async fn parts_of_an_inference_service_that_are_not_run_here_get_a_condition_that_says_so() -> Result<()> {
    let stage = Stage::start(Form::Service).await?;
    for (part, condition) in [("transformer", "TransformerReady"), ("explainer", "ExplainerReady")] {
        let mut spec = Form::Service.spec(&Model::at("iris"));
        spec[part] = json!({"containers": [{"name": "kserve-container", "image": "an-image"}]});
        super::made(&stage.berth, &Form::Service.collection("default"), &Form::Service.document(part, &spec)).await?;
        let loaded = |standing: &Standing| standing.active == "Loaded";
        stage.berth.stands(part, SOON, loaded).await?;
        let resource = stage.read(part).await?;
        let find = |kind: &str| resource["status"]["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == kind).cloned();
        let [one, predictor, whole] = [condition, "PredictorReady", "Ready"].map(|kind| find(kind).unwrap_or_default());
        assert_eq!((&one["status"], &predictor["status"], &whole["status"]), (&json!("False"), &json!("True"), &json!("False")), "{resource}");
        assert!(one["message"].as_str().is_some_and(|message| message.contains(part)), "{one}");
        stage.answers(part, "iris").await?;
    }
    Ok(())
}

#[tokio::test]
async fn conditions_of_an_inference_service_keep_their_time_as_long_as_they_hold() -> Result<()> {
    let stage = Stage::start(Form::Service).await?;
    let loaded = stage.create("m", &Model::at("iris")).await?.reaches(LOADED).await?;
    stage.a_second_passes().await?;

    // Metadata alone is no reason for a status.
    let mut story = stage.story(Form::Service, "default", "m").await?;
    stage.edit("m", |resource| resource["metadata"]["labels"] = json!({"of": "somebody"})).await?;
    assert_eq!(story.reaches(LOADED).await?["status"], loaded["status"]);
    // Another version of the model is as ready as the one before.
    stage.change("m", &Model::at("diabetes")).await?;
    let updated = story.reaches(LOADED).await?;
    assert_eq!(updated["status"]["conditions"], loaded["status"]["conditions"]);

    // What is no longer so has a time of its own.
    stage.a_second_passes().await?;
    stage.delete("m").await?;
    let story = &mut stage.create("m", &Model::at("nowhere")).await?;
    let failed = story.reaches(super::FAILED).await?;
    stage.a_second_passes().await?;
    stage.change("m", &Model::at("iris")).await?;
    let mended = story.reaches(LOADED).await?;
    let since = |resource: &Value| resource["status"]["conditions"][0]["lastTransitionTime"].as_str().map(str::to_owned);
    assert!(since(&loaded) < since(&failed) && since(&failed) < since(&mended), "{failed} {mended}");
    Ok(())
}
