//! Wrong input of every kind: what the user sees, and that everybody else is served on.

use std::fs;

use anyhow::Result;
use berth_testkit::{Berth, Exit, Standing, Transport, curl, free_port, http, python, root};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON, service};

/// Waits until `name` has failed, and checks that the message holds every one of `parts`.
async fn fails_with(berth: &Berth, name: &str, parts: &[&str]) -> Result<Standing> {
    let standing = berth.stands(name, SOON, |standing| standing.active == "FailedToLoad").await?;
    assert_eq!(standing.reason, "ModelLoadFailed", "{standing:?}");
    for part in parts {
        assert!(standing.message.contains(part), "{name}: {part:?} is missing in: {}", standing.message);
    }
    Ok(standing)
}

/// Exit status of a program that was used wrongly.
pub(crate) const USAGE: Exit = Exit::Code(2);

/// Runs `serve` with `flags` until it ends by itself, and checks status and message.
async fn refuses_to_start(fixture: &Fixture, flags: &[(&str, String)], parts: &[&str]) -> Result<()> {
    let serve = flags.iter().fold(fixture.serve(ROOMY), |serve, (flag, value)| serve.flag(flag, value));
    let mut berth = serve.spawn()?;
    let exit = berth.process().exit(SOON).await?;
    let written = berth.process().written();
    assert_eq!(exit, USAGE, "{written}");
    let errors = berth.process().errors();
    for part in parts {
        assert!(errors.contains(part), "{part:?} is missing in {written}");
    }
    Ok(())
}

#[tokio::test]
async fn malformed_yaml_is_named_with_its_line_and_the_rest_is_served() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    fixture.manifest("broken.yaml", "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: [unclosed\n")?;
    fixture.manifest("strange.yaml", "apiVersion: v1\nkind: Teapot\nmetadata:\n  name: short-and-stout\n")?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    let written = berth.process().written();
    for part in ["broken.yaml", "line"] {
        assert!(written.lines().any(|line| line.contains("broken.yaml") && line.contains(part)), "{part} is missing in {written}");
    }
    assert!(written.lines().any(|line| line.contains("strange.yaml") && line.contains("Teapot")), "{written}");

    // Mended while it runs, it is served.
    fixture.manifest("broken.yaml", &service("mended", "quickstart", "iris"))?;
    berth.stands("mended", SOON, |standing| standing.active == "Loaded").await?;
    Ok(())
}

#[tokio::test]
async fn a_missing_manifests_folder_is_named() -> Result<()> {
    let fixture = Fixture::empty()?;
    fs::remove_dir_all(fixture.manifests())?;
    let missing = fixture.manifests().display().to_string();
    refuses_to_start(&fixture, &[], &[&missing, "--manifests"]).await
}

#[tokio::test]
async fn every_fault_of_a_configuration_is_told_at_once() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let flags = [("--disk", "much".to_owned()), ("--log-format", "prose".to_owned()), ("--drain-timeout", "later".to_owned())];
    refuses_to_start(&fixture, &flags, &["--disk", "much", "--log-format", "prose", "--drain-timeout", "later"]).await
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let other = fixture.serve(ROOMY).start().await?;
    let taken = other.grpc();
    let second = Fixture::of_folder()?;
    refuses_to_start(&second, &[("--grpc", taken.clone())], &[&taken]).await
}

#[tokio::test]
async fn a_data_folder_in_use_is_named() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let _other = fixture.serve(ROOMY).start().await?;
    let data = fixture.data().display().to_string();
    refuses_to_start(&fixture, &[], &[&data]).await
}

#[tokio::test]
async fn faults_of_the_store_are_told_in_the_status_without_secrets() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let entry = |change: fn(&mut Value)| -> Result<Value> {
        let mut entry = fixture.gateway()?.storage_entry();
        change(&mut entry);
        Ok(entry)
    };
    fixture.storage("no-bucket", &entry(|entry| entry["default_bucket"] = json!("no-such-bucket"))?)?;
    fixture.storage("wrong-secret", &entry(|entry| entry["secret_access_key"] = json!("a-wrong-secret-of-somebody"))?)?;
    fixture.storage("no-secret", &entry(|entry| entry["secret_access_key"] = Value::Null)?)?;
    let closed = free_port();
    let mut away = entry(|_| ())?;
    away["endpoint_url"] = json!(format!("http://127.0.0.1:{closed}"));
    fixture.storage("away", &away)?;
    for key in ["no-bucket", "wrong-secret", "no-secret", "away", "no-such-key"] {
        fixture.service(key, key, "iris")?;
    }
    fixture.service("wrong-path", "quickstart", "irises")?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    fails_with(&berth, "no-bucket", &["no-such-bucket", "bucket"]).await?;
    fails_with(&berth, "wrong-secret", &["403", "SignatureDoesNotMatch", "secret_access_key"]).await?;
    fails_with(&berth, "no-secret", &["no-secret", "secret_access_key"]).await?;
    fails_with(&berth, "away", &[&format!("127.0.0.1:{closed}")]).await?;
    fails_with(&berth, "no-such-key", &["no-such-key"]).await?;
    fails_with(&berth, "wrong-path", &["irises", "models"]).await?;
    fixture.all_answer(&berth).await?;
    let written = berth.process().written();
    for secret in ["a-wrong-secret-of-somebody", "not-a-secret-of-anybody"] {
        assert!(!written.contains(secret), "a secret is in what it wrote");
        for name in ["wrong-secret", "no-bucket", "iris"] {
            assert!(!berth.resource(name).await?.to_string().contains(secret), "a secret is in the status of {name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_corrupt_model_is_named_and_does_not_disturb_the_others() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let models = fixture.path("models");
    fixture.storage("mine", &json!({"type": "folder", "path": models}))?;
    let whole = fs::read(fixture.quickstart.models().join("digits-wide/model.onnx"))?;
    for (name, bytes) in [("cut", &whole[..whole.len() / 2]), ("noise", b"this is not a model at all".as_slice()), ("nothing", b"".as_slice())] {
        fs::create_dir_all(models.join(name))?;
        fs::write(models.join(name).join("model.onnx"), bytes)?;
        fixture.service(name, "mine", name)?;
    }
    fs::create_dir_all(models.join("no-model"))?;
    fs::write(models.join("no-model/README"), "nothing here")?;
    fixture.service("no-model", "mine", "no-model")?;
    let berth = fixture.serve(ROOMY).start().await?;
    for name in ["cut", "noise"] {
        fails_with(&berth, name, &["model.onnx"]).await?;
        let reply = berth.infer(name, fixture.quickstart.request("digits-wide")?).await?;
        assert_eq!((reply.status, reply.retry_after.is_some()), (400, false), "{}", reply.text());
    }
    fails_with(&berth, "nothing", &["model.onnx", "empty"]).await?;
    fails_with(&berth, "no-model", &["onnx"]).await?;
    fixture.all_answer(&berth).await
}

#[tokio::test]
async fn a_model_larger_than_the_budget_is_refused_with_the_numbers() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve("512KiB").start().await?;
    fails_with(&berth, "digits-wide", &["512 KiB", "budget"]).await?;
    let reply = berth.infer("digits-wide", fixture.quickstart.request("digits-wide")?).await?;
    assert_eq!((reply.status, reply.retry_after.is_some()), (400, false), "{}", reply.text());
    assert!(reply.text().contains("512 KiB"), "{}", reply.text());
    berth.answers(&fixture.quickstart, "iris").await
}

#[tokio::test]
async fn a_model_larger_than_the_disk_budget_is_refused_with_the_numbers() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let berth = fixture.serve(ROOMY).flag("--disk", "512KiB").start().await?;
    fails_with(&berth, "digits-wide", &["512 KiB", "disk"]).await?;
    berth.answers(&fixture.quickstart, "iris").await?;
    berth.answers(&fixture.quickstart, "digits-forest").await
}

#[tokio::test]
async fn requests_that_do_not_fit_the_model_are_refused_with_tensor_expected_and_given() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let good: Value = serde_json::from_slice(&fixture.quickstart.request("iris")?)?;
    let with = |change: fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    for (case, body, parts) in [
        (
            "a shape that the model does not take",
            with(|body| {
                body["inputs"][0]["shape"] = json!([2, 6]);
            }),
            vec!["X", "[2,6]", "4"],
        ),
        (
            "data that do not fill the shape",
            with(|body| {
                body["inputs"][0]["shape"] = json!([4, 4]);
            }),
            vec!["X", "16", "12"],
        ),
        (
            "a datatype that the model does not take",
            with(|body| {
                body["inputs"][0]["datatype"] = json!("INT64");
                body["inputs"][0]["data"] = json!([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
            }),
            vec!["X", "FP32", "INT64"],
        ),
        (
            "a datatype that does not exist",
            with(|body| {
                body["inputs"][0]["datatype"] = json!("FP31");
            }),
            vec!["X", "FP31"],
        ),
        (
            "a tensor of another name",
            with(|body| {
                body["inputs"][0]["name"] = json!("Y");
            }),
            vec!["X", "Y"],
        ),
        ("no tensor", json!({"inputs": []}), vec!["X"]),
        (
            "an output of another name",
            with(|body| {
                body["outputs"] = json!([{"name": "colour"}]);
            }),
            vec!["colour", "label"],
        ),
    ] {
        let reply = berth.infer("iris", body.to_string()).await?;
        assert_eq!((reply.status, reply.retry_after.is_some()), (400, false), "{case}: {}", reply.text());
        let text = reply.text().replace(", ", ",");
        for part in parts {
            assert!(text.contains(part), "{case}: {part:?} is missing in {text}");
        }
    }
    let reply = berth.infer("iris", "{\"inputs\": [").await?;
    assert_eq!(reply.status, 400, "{}", reply.text());
    berth.answers(&fixture.quickstart, "iris").await
}

#[tokio::test]
async fn unknown_models_and_paths_are_not_found() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let reply = berth.infer("tulips", fixture.quickstart.request("iris")?).await?;
    assert_eq!(reply.status, 404, "{}", reply.text());
    assert!(reply.text().contains("tulips"), "{}", reply.text());
    assert_eq!(http::get(&format!("http://{}/v3/models/iris", berth.rest())).await?.status, 404);
    assert_eq!(http::get(&berth.api("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/tulips")).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn codes_and_hints_say_whether_trying_again_helps() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    // One model that is no model, and one whose store cannot be reached now.
    let models = fixture.path("models");
    fs::create_dir_all(models.join("bad"))?;
    fs::write(models.join("bad/model.onnx"), "this is not a model at all")?;
    fixture.storage("mine", &json!({"type": "folder", "path": models}))?;
    fixture.service("bad", "mine", "bad")?;
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let away = json!({"type": "s3", "access_key_id": "a", "secret_access_key": "b", "endpoint_url": endpoint, "default_bucket": "models"});
    fixture.storage("away", &away)?;
    fixture.service("away", "away", "iris")?;
    let berth = fixture.serve(ROOMY).flag("--max-message", "64KiB").start().await?;
    fails_with(&berth, "bad", &["model.onnx"]).await?;
    fails_with(&berth, "away", &[&endpoint["http://".len()..]]).await?;

    let script = root().join("tests/system/codes.py");
    let said = python(&fixture.parts, &script, ["--grpc", &berth.grpc(), "--limit", "65536"]).await?;
    assert_eq!(said.lines().filter(|line| line.starts_with("right: ")).count(), 9, "{said}");
    for (name, status, again) in [("bad", 400, false), ("away", 503, true)] {
        let reply = berth.infer(name, fixture.quickstart.request("iris")?).await?;
        assert_eq!((reply.status, reply.retry_after.is_some()), (status, again), "{name}: {}", reply.text());
    }
    Ok(())
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).flag("--max-message", "64KiB").start().await?;
    let large = fixture.path("large.json");
    fs::write(&large, format!("{{\"inputs\": [], \"id\": \"{}\"}}", "x".repeat(1 << 20)))?;
    // Through curl, which reads the answer also when the server does not want the rest of the body.
    let url = format!("http://{}/v2/models/iris/infer", berth.rest());
    let said = curl(&["--write-out", "\n%{http_code}", &url, "--data", &format!("@{}", large.display())]).await?;
    assert!(said.ends_with("\n413") && said.contains("65536"), "{said}");
    berth.answers(&fixture.quickstart, "iris").await
}
