//! Specs that nobody can serve: always a status, never silence.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::gate::{Gated, behind};
use super::{Form, LOADED, LOADING, Model, Stage, UPDATING, bare};
use crate::fixture::ROOMY;

/// Of a resource that never was valid.
const NEVER_VALID: &str = "Pending, InvalidSpec, not available, 0/0, InvalidPredictorSpec";
/// Of a resource that serves what it asked for before.
const SERVING: &str = "Loaded, InvalidSpec, available, 0/1, InvalidPredictorSpec";

/// A fault, the resource's spec, an annotation beside it, and what its message must hold.
type Fault = (&'static str, Value, Option<(&'static str, &'static str)>, Vec<&'static str>);

fn faults(form: Form) -> Vec<Fault> {
    let service = |model: Value| json!({"predictor": {"model": model}});
    let onnx = json!({"name": "onnx"});
    let storage = json!({"key": "quickstart", "path": "iris"});
    match form {
        Form::Service => vec![
            (
                "both-places",
                service(json!({"modelFormat": onnx, "storageUri": "s3://b/iris", "storage": storage})),
                None,
                vec!["storageUri", "storage.path"],
            ),
            ("no-place", service(json!({"modelFormat": onnx, "storage": {"key": "quickstart"}})), None, vec!["storageUri", "storage.path"]),
            ("no-uri", service(json!({"modelFormat": onnx, "storageUri": "iris"})), None, vec!["spec.predictor.model.storageUri"]),
            ("strange-uri", service(json!({"modelFormat": onnx, "storageUri": "ftp://host/iris"})), None, vec!["storageUri", "ftp"]),
            (
                "two-forms",
                json!({"predictor": {"model": {"modelFormat": onnx, "storage": storage}, "onnx": {"storage": storage}}}),
                None,
                vec!["model", "onnx", "keep one"],
            ),
            (
                "runtime-twice",
                service(json!({"modelFormat": onnx, "storage": storage})),
                Some(("serving.kserve.io/servingRuntime", "berth-onnx")),
                vec!["serving.kserve.io/servingRuntime", "spec.predictor.model.runtime"],
            ),
            ("no-framework", json!({"predictor": {"huggingface": {"storage": storage}}}), None, vec!["spec.predictor", "onnx"]),
            ("two-frameworks", json!({"predictor": {"onnx": {"storage": storage}, "sklearn": {"storage": storage}}}), None, vec!["onnx", "sklearn"]),
        ],
        Form::Predictor => vec![
            ("path-twice", json!({"modelType": onnx, "path": "iris", "storage": storage}), None, vec!["spec.path", "spec.storage.path"]),
            (
                "schema-twice",
                json!({"modelType": onnx, "schemaPath": "s", "storage": {"key": "quickstart", "path": "iris", "schemaPath": "s"}}),
                None,
                vec!["spec.schemaPath", "spec.storage.schemaPath"],
            ),
            (
                "a-claim",
                json!({"modelType": onnx, "path": "iris", "storage": {"persistentVolumeClaim": {"claimName": "c"}}}),
                None,
                vec!["spec.storage.persistentVolumeClaim"],
            ),
        ],
        Form::OldPredictor => [("path", json!("iris")), ("schemaPath", json!("s")), ("parameters", json!({"a": "b"})), ("key", json!("k"))]
            .into_iter()
            .map(|(field, value)| {
                let name = match field {
                    "path" => "s3-and-path",
                    "schemaPath" => "s3-and-schema",
                    "parameters" => "s3-and-parameters",
                    _ => "s3-and-key",
                };
                let storage = json!({"s3": {"secretKey": "quickstart"}, field: value});
                (name, json!({"modelType": onnx, "storage": storage}), None, vec!["spec.storage.s3", "spec.storage."])
            })
            .collect(),
    }
}

/// Puts the fault into a resource, or takes it out again.
fn set(resource: &mut Value, spec: &Value, annotation: Option<(&str, &str)>) {
    resource["spec"] = spec.clone();
    if let Some((name, value)) = annotation {
        resource["metadata"]["annotations"][name] = value.into();
    }
}

fn take_back(resource: &mut Value, spec: &Value, annotation: Option<(&str, &str)>) {
    resource["spec"] = spec.clone();
    if let (Some((name, _)), Some(annotations)) = (annotation, resource["metadata"]["annotations"].as_object_mut()) {
        annotations.remove(name);
    }
}

async fn each_fault_is_told_and_can_be_repaired(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let good = form.spec(&Model::at("iris"));
    for (name, spec, annotation, parts) in faults(form) {
        let mut document = form.document(name, &spec);
        set(&mut document, &spec, annotation);
        let mut story = stage.story(form, "default", name).await?;
        super::made(&stage.berth, &form.collection("default"), &document).await?;
        let invalid = story.reaches(NEVER_VALID).await.context(name)?;
        story.fault_of_spec(&invalid, &parts).context(name)?;
        // No version of it was ever valid.
        assert!(form.failure(&invalid)["modelId"].is_null(), "{name}: {invalid}");
        stage.refuses(name, "iris", &parts).await?;

        stage.edit(name, |resource| take_back(resource, &good, annotation)).await?;
        let loaded = story.reaches(LOADED).await.context(name)?;
        assert!(form.failure(&loaded).is_null(), "{name}: {loaded}");
        story.went(&[form.unseen(), NEVER_VALID, LOADING, LOADED])?;
        stage.answers(name, "iris").await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_fault_in_a_new_inference_service_is_told_and_can_be_repaired() -> Result<()> {
    each_fault_is_told_and_can_be_repaired(Form::Service).await
}

#[tokio::test]
async fn every_fault_in_a_new_predictor_is_told_and_can_be_repaired() -> Result<()> {
    each_fault_is_told_and_can_be_repaired(Form::Predictor).await
}

#[tokio::test]
async fn every_fault_in_a_new_predictor_of_the_older_form_is_told_and_can_be_repaired() -> Result<()> {
    each_fault_is_told_and_can_be_repaired(Form::OldPredictor).await
}

async fn what_serves_serves_on(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let (good, better) = (form.spec(&Model::at("iris")), form.spec(&Model::at("diabetes")));
    let mut story = stage.serving("m", "iris").await?;
    let version = stage.answers("m", "iris").await?;
    let mut went = vec![LOADED];
    for (name, spec, annotation, parts) in faults(form) {
        stage.edit("m", |resource| set(resource, &spec, annotation)).await?;
        let invalid = story.reaches(SERVING).await.context(name)?;
        story.fault_of_spec(&invalid, &parts).context(name)?;
        assert_eq!(form.failure(&invalid)["modelId"], version, "{name}");
        assert_eq!(stage.answers("m", "iris").await?, version, "{name}");

        // What it was before needs no load.
        stage.edit("m", |resource| take_back(resource, &good, annotation)).await?;
        let valid = story.reaches(LOADED).await.context(name)?;
        assert!(form.failure(&valid).is_null(), "{name}: {valid}");
        went.extend([SERVING, LOADED]);
    }
    let (name, spec, annotation, _) = faults(form).remove(0);
    stage.edit("m", |resource| set(resource, &spec, annotation)).await?;
    story.reaches(SERVING).await.context(name)?;
    stage.edit("m", |resource| take_back(resource, &better, annotation)).await?;
    story.reaches(UPDATING).await?;
    story.reaches(LOADED).await?;
    assert_ne!(stage.answers("m", "diabetes").await?, version);
    went.extend([SERVING, UPDATING, LOADED]);
    story.went(&went)
}

#[tokio::test]
async fn an_inference_service_whose_new_spec_is_invalid_serves_on_as_before() -> Result<()> {
    what_serves_serves_on(Form::Service).await
}

#[tokio::test]
async fn a_predictor_whose_new_spec_is_invalid_serves_on_as_before() -> Result<()> {
    what_serves_serves_on(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_whose_new_spec_is_invalid_serves_on_as_before() -> Result<()> {
    what_serves_serves_on(Form::OldPredictor).await
}

async fn what_was_on_its_way_is_dropped(form: Form) -> Result<()> {
    let fixture = bare()?;
    let _gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    let mut story = stage.serving("m", "iris").await?;
    stage.change("m", &behind("diabetes")).await?;
    story.reaches(UPDATING).await?;
    let (_, spec, annotation, _) = faults(form).remove(0);
    stage.edit("m", |resource| set(resource, &spec, annotation)).await?;
    story.reaches(SERVING).await?;
    stage.answers("m", "iris").await?;
    story.went(&[LOADED, UPDATING, SERVING])
}

#[tokio::test]
async fn an_update_of_an_inference_service_under_way_ends_when_the_spec_becomes_invalid() -> Result<()> {
    what_was_on_its_way_is_dropped(Form::Service).await
}

#[tokio::test]
async fn an_update_of_a_predictor_under_way_ends_when_the_spec_becomes_invalid() -> Result<()> {
    what_was_on_its_way_is_dropped(Form::Predictor).await
}
