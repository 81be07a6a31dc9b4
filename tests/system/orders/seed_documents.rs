//! The examples of the two documents that Berth answers to, applied as they stand there.

use std::process::Command;

use anyhow::{Result, ensure};
use berth_testkit::{Exit, Process, root};
use serde_json::{Value, json};

use super::{Form, Stage};
use crate::fixture::SOON;

const UNRECOGNIZED: &str = "FailedToLoad, UpToDate, not available, 0/0, RuntimeNotRecognized";
const UNSUPPORTED: &str = "FailedToLoad, UpToDate, not available, 0/0, NoSupportingRuntime";
const WAITING: &str = "Loading, UpToDate, not available, 0/0, RuntimeUnhealthy";

async fn apply(stage: &Stage, file: &str) -> Result<String> {
    let mut command = Command::new(&stage.fixture.parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.env("BERTH_SERVER", stage.berth.api("")).args(["apply", "-f"]).arg(root().join("tests/seeds").join(file));
    let mut apply = Process::start("berth apply", command)?;
    ensure!(apply.exit(SOON).await? == Exit::Code(0) && apply.errors().is_empty(), "{}", apply.written());
    Ok(apply.out())
}

/// A ServingRuntime as the documents' own one is, as far as it matters here.
fn triton(formats: &Value) -> Value {
    json!({
        "supportedModelFormats": formats, "multiModel": true, "protocolVersions": ["grpc-v2"],
        "grpcEndpoint": "port:8085", "grpcDataEndpoint": "port:8001",
        "containers": [{"name": "triton", "image": "nvcr.io/nvidia/tritonserver:23.04-py3"}],
        "builtInAdapter": {"serverType": "triton", "runtimeManagementPort": 8001, "memBufferBytes": 134_217_728},
    })
}

async fn is_taken_as_it_stands(form: Form, file: &str, name: &'static str, annotations: &Value, spec: &Value) -> Result<()> {
    let stage = Stage::start(form).await?;
    let mut story = stage.story(form, "default", name).await?;
    let applied = |word: &str| format!("{}.serving.kserve.io/{name} {word}", form.kind().to_lowercase());
    assert_eq!(apply(&stage, file).await?, applied("created"));
    let unrecognized = story.reaches(UNRECOGNIZED).await?;
    let version = story.failure_without_pod(&unrecognized, "Specified runtime name not recognized", &["triton-2.x", "berth-onnx"])?;
    stage.is_id(&version, name)?;
    let stored = stage.read(name).await?;
    assert_eq!(stored["spec"], *spec);
    assert_eq!(stored["metadata"].get("annotations").unwrap_or(&json!({})), annotations);
    assert_eq!(apply(&stage, file).await?, applied("unchanged"));

    let tensorflow = json!([{"name": "keras", "version": "2", "autoSelect": true}, {"name": "tensorflow", "version": "2", "autoSelect": true}]);
    stage.runtime("triton-2.x", &triton(&tensorflow)).await?;
    let unsupported = story.reaches(UNSUPPORTED).await?;
    let literal = "No ServingRuntime supports specified model type and/or protocol";
    let parts = ["runtime triton-2.x lists keras:2, tensorflow:2, not tensorflow:1.15"];
    assert_eq!(story.failure_without_pod(&unsupported, literal, &parts)?, version);

    stage.runtime("triton-2.x", &triton(&json!([{"name": "tensorflow", "version": "1", "autoSelect": true}]))).await?;
    let waiting = story.reaches(WAITING).await?;
    assert_eq!(story.failure_without_pod(&waiting, "Waiting for supporting runtime Pod to become available", &[])?, version);
    story.went(&[form.unseen(), UNRECOGNIZED, UNSUPPORTED, WAITING])
}

#[tokio::test]
async fn the_documents_inference_service_with_a_storage_spec_is_taken_as_it_stands() -> Result<()> {
    let spec = json!({"predictor": {"model": {
        "modelFormat": {"name": "tensorflow", "version": "1.15"},
        "runtime": "triton-2.x",
        "storage": {
            "key": "my_storage",
            "path": "my_models/mnist-tf",
            "schemaPath": "my_schemas/mnist-schema.json",
            "parameters": {"bucket": "my_bucket"},
        },
    }}});
    let annotations = json!({"serving.kserve.io/deploymentMode": "ModelMesh"});
    is_taken_as_it_stands(Form::Service, "inferenceservice-storage.yaml", "my-tensorflow-predictor", &annotations, &spec).await
}

#[tokio::test]
async fn the_documents_inference_service_with_a_storage_uri_is_taken_as_it_stands() -> Result<()> {
    let spec = json!({"predictor": {"model": {
        "modelFormat": {"name": "tensorflow", "version": "1.15"},
        "runtime": "triton-2.x",
        "storageUri": "s3://my_bucket/my_models/mnist-tf",
    }}});
    let annotations = json!({
        "serving.kserve.io/deploymentMode": "ModelMesh",
        "serving.kserve.io/secretKey": "my_storage",
        "serving.kserve.io/schemaPath": "my_schemas/mnist-schema.json",
    });
    is_taken_as_it_stands(Form::Service, "inferenceservice-storage-uri.yaml", "my-tensorflow-predictor", &annotations, &spec).await
}

#[tokio::test]
async fn the_documents_predictor_is_taken_as_it_stands() -> Result<()> {
    let spec = json!({
        "modelType": {"name": "tensorflow", "version": "1.15"},
        "runtime": {"name": "triton-2.x"},
        "path": "my_models/mnist-tf",
        "schemaPath": "my_schemas/mnist-schema.json",
        "storage": {"s3": {"secretKey": "my_storage", "bucket": "my_bucket"}},
    });
    is_taken_as_it_stands(Form::OldPredictor, "predictor.yaml", "my-mnist-predictor", &json!({}), &spec).await
}

#[tokio::test]
async fn members_that_nobody_here_knows_are_kept() -> Result<()> {
    let model = super::Model::at("iris");
    for (form, at) in [(Form::Service, "/predictor/model"), (Form::Predictor, "/storage"), (Form::OldPredictor, "/storage/s3")] {
        let stage = Stage::start(form).await?;
        let mut spec = form.spec(&model);
        spec["somebodyElses"] = json!({"list": [1, 2.5, null, "x"], "deep": {"er": true}});
        spec.pointer_mut(at).expect("a member of the form")["alsoSomebodyElses"] = json!("y");
        let (mut story, _) = stage.make("m", &spec).await?;
        let loaded = story.reaches(super::LOADED).await?;
        assert_eq!(loaded["spec"], spec);
        stage.answers("m", "iris").await?;
    }
    Ok(())
}
