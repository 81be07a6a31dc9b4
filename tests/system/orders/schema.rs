//! A schema file beside a model: asked for in every form, fetched from the top of the model's own bucket, missed by name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use berth_testkit::Transport;
use serde_json::{Value, json};

use super::{FAILED, Form, LOADED, LOADING, Stage};
use crate::fixture::{Fixture, ROOMY, SOON};

/// Every way to ask for a model in a bucket with a schema.
const WAYS: [(&str, Form); 5] = [
    ("with-storage", Form::Service),
    ("with-uri", Form::Service),
    ("older-with-uri", Form::Service),
    ("predictor", Form::Predictor),
    ("older-predictor", Form::OldPredictor),
];

/// The resource that asks for iris, and for `schema`, in the way of that name.
fn document(way: &str, form: Form, schema: &str) -> Value {
    let onnx = json!({"name": "onnx"});
    let storage = json!({"key": "store", "path": "iris", "schemaPath": schema, "parameters": {"bucket": "models"}});
    let spec = match way {
        "with-storage" => json!({"predictor": {"model": {"modelFormat": onnx, "storage": storage}}}),
        "with-uri" => json!({"predictor": {"model": {"modelFormat": onnx, "storageUri": "s3://models/iris"}}}),
        "older-with-uri" => json!({"predictor": {"onnx": {"storageUri": "s3://models/iris"}}}),
        "predictor" => json!({"modelType": onnx, "storage": storage}),
        _ => json!({"modelType": onnx, "path": "iris", "schemaPath": schema, "storage": {"s3": {"secretKey": "store", "bucket": "models"}}}),
    };
    let mut document = form.document(way, &spec);
    if way.ends_with("uri") {
        document["metadata"]["annotations"]["serving.kserve.io/secretKey"] = "store".into();
        document["metadata"]["annotations"]["serving.kserve.io/schemaPath"] = schema.into();
    }
    document
}

/// The files called `name` below `folder`.
fn called(name: &str, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(called(name, &path)?);
        } else if path.file_name().is_some_and(|found| found == name) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A server over a bucket with the models. The storage key's own bucket is one that does not exist.
async fn stage() -> Result<Stage> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    // The resources are made one by one.
    for name in fixture.quickstart.names()? {
        fs::remove_file(fixture.manifests().join(format!("{name}.yaml")))?;
    }
    let mut entry = fixture.gateway()?.storage_entry();
    entry["default_bucket"] = json!("no-such-bucket");
    fixture.storage("store", &entry)?;
    Stage::of(Form::Service, fixture, ROOMY).await
}

/// Puts a file with `text` into the bucket.
async fn put(stage: &Stage, key: &str, text: &str) -> Result<()> {
    let file = stage.fixture.path("uploaded");
    fs::write(&file, text)?;
    stage.fixture.gateway()?.put(key, &file).await
}

#[tokio::test]
async fn a_schema_is_fetched_from_the_top_of_the_models_bucket_however_it_is_asked_for() -> Result<()> {
    let stage = stage().await?;
    for (way, form) in WAYS {
        let (file, text) = (format!("{way}.json"), format!("the schema of {way}"));
        put(&stage, &format!("schemas/{file}"), &text).await?;
        let mut story = stage.story(form, "default", way).await?;
        super::made(&stage.berth, &form.collection("default"), &document(way, form, &format!("schemas/{file}"))).await?;
        story.reaches(LOADED).await?;
        story.went(&[form.unseen(), LOADING, LOADED])?;
        stage.fixture.quickstart.check("iris", &stage.ask(way, "iris").await?.good()?)?;
        let found = called(&file, &stage.fixture.data())?;
        assert!(!found.is_empty(), "{way}: {file} is not in the data folder");
        for found in found {
            assert_eq!(fs::read_to_string(&found)?, text, "{}", found.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_schema_that_is_not_there_fails_the_load_and_is_named_with_its_bucket() -> Result<()> {
    let stage = stage().await?;
    // By the same path, but from the model on.
    put(&stage, "iris/schemas/none.json", "not the schema").await?;
    for (way, form) in WAYS {
        let mut story = stage.story(form, "default", way).await?;
        super::made(&stage.berth, &form.collection("default"), &document(way, form, "schemas/none.json")).await?;
        let failed = story.reaches(FAILED).await?;
        story.went(&[form.unseen(), LOADING, FAILED])?;
        story.failure_in_pod(&failed, &["schema", "schemas/none.json", "bucket models "]).await?;
        assert_eq!(stage.ask(way, "iris").await?.status, 400, "{way}");
    }
    // The path is good once something is there.
    put(&stage, "schemas/none.json", "the schema").await?;
    for (way, form) in WAYS {
        let name = format!("again-{way}");
        let mut document = document(way, form, "schemas/none.json");
        document["metadata"]["name"] = name.clone().into();
        super::made(&stage.berth, &form.collection("default"), &document).await?;
        stage.berth.stands(&name, SOON, |standing| standing.active == "Loaded").await?;
    }
    Ok(())
}
