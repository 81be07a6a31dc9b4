//! The command line as a person types it, against a running server: what it prints, where, and with which exit status.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Exit, Process, Transport, free_port};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON, service};

/// Longer than any command here takes by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a command ended.
pub(crate) struct Ran {
    line: String,
    exit: Exit,
    out: String,
    errors: String,
}

impl Ran {
    /// Standard output of a command that did what it was asked to.
    pub(crate) fn good(self) -> Result<String> {
        ensure!(self.exit == Exit::Code(0), "{}: {:?}\n{}\n{}", self.line, self.exit, self.out, self.errors);
        ensure!(self.errors.is_empty(), "{} complains: {}", self.line, self.errors);
        Ok(self.out)
    }

    /// Standard error of a command that did not, and printed nothing else.
    fn bad(self) -> Result<String> {
        ensure!(self.exit == Exit::Code(1), "{}: {:?}\n{}\n{}", self.line, self.exit, self.out, self.errors);
        ensure!(self.out.is_empty(), "{} prints {}", self.line, self.out);
        Ok(self.errors)
    }
}

fn command(fixture: &Fixture, server: &str, line: &str) -> Command {
    let mut command = Command::new(&fixture.parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.env("BERTH_SERVER", server).args(line.split(' '));
    command
}

async fn run(fixture: &Fixture, server: &str, line: &str) -> Result<Ran> {
    ended(line, Process::start(line, command(fixture, server, line))?).await
}

async fn ended(line: &str, mut process: Process) -> Result<Ran> {
    let exit = process.exit(PATIENCE).await?;
    Ok(Ran { line: line.to_owned(), exit, out: process.out(), errors: process.errors() })
}

/// Runs a line against `berth`.
pub(crate) async fn on(fixture: &Fixture, berth: &Berth, line: &str) -> Result<Ran> {
    run(fixture, &berth.api(""), line).await
}

/// A server without any model of its own, over the store of the examples.
async fn bare() -> Result<(Fixture, Berth)> {
    let fixture = Fixture::empty()?;
    fixture.storage("quickstart", &json!({"type": "folder", "path": fixture.quickstart.models()}))?;
    let berth = fixture.serve(ROOMY).start().await?;
    Ok((fixture, berth))
}

/// Writes a manifest outside of the watched folder and returns its path.
fn manifest(fixture: &Fixture, file: &str, text: &str) -> Result<String> {
    let path = fixture.path(file);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

#[tokio::test]
async fn the_examples_are_listed_described_waited_for_and_asked() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mut services = Vec::new();
    for name in fixture.quickstart.names()? {
        let kind = match &berth.resource(&name).await?["kind"] {
            kind if kind == "Predictor" => "predictor",
            _ => {
                services.push(name.clone());
                "inferenceservice"
            }
        };
        let out = on(&fixture, &berth, &format!("wait {kind}/{name} --for=loaded")).await?.good()?;
        assert_eq!(out, format!("{kind}.serving.kserve.io/{name} condition met"));
        let request = fixture.quickstart.folder().join("requests").join(&name).with_extension("json");
        let answer = on(&fixture, &berth, &format!("infer {name} --input {}", request.display())).await?.good()?;
        fixture.quickstart.check(&name, &serde_json::from_str(&answer)?)?;
    }

    let table = on(&fixture, &berth, "get isvc").await?.good()?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "TYPE", "READY", "STATE", "TARGET", "TRANSITION", "COPIES", "AGE"]);
    let names: Vec<&str> = rows[1..].iter().map(|row| row[0]).collect();
    assert_eq!(names, services);
    for row in &rows[1..] {
        assert_eq!(row[1..7], ["onnx", "True", "Loaded", "-", "UpToDate", "1"], "{table}");
    }

    // Without a kind both kinds of models, each with its own heads.
    let tables = on(&fixture, &berth, "get").await?.good()?;
    for there in ["inferenceservice.serving.kserve.io/iris ", "\n\nNAME ", "AVAILABLE", "predictor.serving.kserve.io/breast-cancer "] {
        assert!(tables.contains(there), "{there:?} is not in\n{tables}");
    }

    let one: Value = serde_json::from_str(&on(&fixture, &berth, "get isvc iris -o json").await?.good()?)?;
    assert_eq!((one["kind"].as_str(), one["metadata"]["name"].as_str()), (Some("InferenceService"), Some("iris")));
    let list: Value = serde_json::from_str(&on(&fixture, &berth, "get isvc iris diabetes -o json").await?.good()?)?;
    assert_eq!((list["kind"].as_str(), list["items"].as_array().map(Vec::len)), (Some("List"), Some(2)));
    let yaml = on(&fixture, &berth, "get isvc/iris -o yaml").await?.good()?;
    assert!(yaml.starts_with("apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"), "{yaml}");
    assert_eq!(on(&fixture, &berth, "get isvc/iris -o name").await?.good()?, "inferenceservice.serving.kserve.io/iris");
    let wide = on(&fixture, &berth, "get isvc iris -o wide").await?.good()?;
    let heads: Vec<&str> = wide.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heads[heads.len() - 3..], ["URL", "RUNTIME", "FAILURE"]);
    assert!(wide.contains(&format!("grpc://{}", berth.grpc())), "{wide}");
    let runtimes = on(&fixture, &berth, "get runtime").await?.good()?;
    assert!(runtimes.starts_with("NAME") && runtimes.contains("DISABLED") && runtimes.contains("berth-onnx"), "{runtimes}");

    let page = on(&fixture, &berth, "describe isvc iris").await?.good()?;
    for line in ["Name:           iris", "  Format:       onnx", "  State:        Loaded", "Last failure:   <none>"] {
        assert!(page.lines().any(|there| there == line), "{line:?} is not in\n{page}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_told_as_kubectl_tells_it() -> Result<()> {
    let (fixture, berth) = bare().await?;
    let empty = on(&fixture, &berth, "get isvc").await?;
    assert_eq!((empty.exit, empty.out.as_str(), empty.errors.as_str()), (Exit::Code(0), "", "No resources found in default namespace."));
    let missing = "Error from server (NotFound): inferenceservices.serving.kserve.io \"x\" not found";
    for line in ["get isvc x", "describe isvc x", "delete isvc x", "wait isvc/x --for=loaded", "get isvc/x -w", "get isvc x -o json"] {
        assert_eq!(on(&fixture, &berth, line).await?.bad()?, missing, "{line}");
    }
    assert_eq!(on(&fixture, &berth, "wait isvc/x --for=delete").await?.good()?, "inferenceservice.serving.kserve.io/x condition met");
    assert_eq!(on(&fixture, &berth, "delete isvc x --ignore-not-found").await?.good()?, "");
    let request = manifest(&fixture, "r.json", "{}")?;
    for (line, told) in [
        ("get pods", "error: the server doesn't have a resource type \"pods\""),
        ("get isvc x -l a=b", "error: name cannot be provided when a selector is specified"),
        ("get isvc -l a,,b", "Error from server (BadRequest): labelSelector"),
        (&format!("infer x --input {request}"), "error: no InferenceService or Predictor \"x\" in namespace default"),
        ("apply -f no-such-file.yaml", "error: the path \"no-such-file.yaml\" does not exist"),
    ] {
        let errors = on(&fixture, &berth, line).await?.bad()?;
        assert!(errors.starts_with(told), "{line}: {errors}");
    }
    let iris = fixture.quickstart.folder().join("requests/iris.json").display().to_string();
    for (request, told) in [(request, "error: x: 400 Bad Request: "), (iris, "error: x: 404 Not Found: ")] {
        let refused = on(&fixture, &berth, &format!("infer x --rest http://{} --input {request}", berth.rest())).await?.bad()?;
        assert!(refused.starts_with(told) && !refused.contains('{'), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_with_what_to_do() -> Result<()> {
    let fixture = Fixture::empty()?;
    let addr = format!("127.0.0.1:{}", free_port());
    for line in ["get isvc", "describe isvc a", "delete isvc a", "wait isvc/a --for=loaded", "get -w"] {
        let errors = run(&fixture, &format!("http://{addr}"), line).await?.bad()?;
        assert!(errors.starts_with(&format!("The connection to the server {addr} was refused - is \"berth serve\" running?")), "{line}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    let errors = run(&fixture, "https://h:1", "get isvc").await?.bad()?;
    assert!(errors.starts_with("error: --server: \"https://h:1\" is https"), "{errors}");
    Ok(())
}

#[tokio::test]
async fn what_is_applied_is_served_changed_and_deleted() -> Result<()> {
    let (fixture, berth) = bare().await?;
    let both = format!("{}---\n{}", service("iris", "quickstart", "iris"), service("diabetes", "quickstart", "diabetes"));
    let file = manifest(&fixture, "both.yaml", &both)?;
    let told = |word: &str| format!("inferenceservice.serving.kserve.io/iris {word}\ninferenceservice.serving.kserve.io/diabetes {word}");
    assert_eq!(on(&fixture, &berth, &format!("apply -f {file}")).await?.good()?, told("created"));
    on(&fixture, &berth, "wait isvc iris diabetes --for=loaded").await?.good()?;
    berth.answers(&fixture.quickstart, "iris").await?;
    assert_eq!(on(&fixture, &berth, &format!("apply -f {file}")).await?.good()?, told("unchanged"));

    // A version that cannot be loaded: the wait is not deceived by the status of the one before, and says why.
    let file = manifest(&fixture, "both.yaml", &both.replace("path: iris", "path: no-such-folder"))?;
    let applied = on(&fixture, &berth, &format!("apply -f {file}")).await?.good()?;
    assert_eq!(applied, "inferenceservice.serving.kserve.io/iris configured\ninferenceservice.serving.kserve.io/diabetes unchanged");
    let errors = on(&fixture, &berth, "wait isvc/iris --for=loaded").await?.bad()?;
    assert!(errors.starts_with("error: inferenceservices/iris: Loaded, BlockedByFailedLoad, ModelLoadFailed at "), "{errors}");
    assert!(errors.contains("no-such-folder"), "{errors}");

    let timed_out = on(&fixture, &berth, "wait isvc/diabetes --for=standby --timeout 200ms").await?.bad()?;
    assert_eq!(timed_out, "error: timed out waiting for the condition on inferenceservices/diabetes: after 200ms it is Loaded, UpToDate");

    // A wait that has begun sees the deletion.
    let line = "wait isvc/iris --for=delete";
    let waiting = Process::start(line, command(&fixture, &berth.api(""), line))?;
    let out = on(&fixture, &berth, &format!("delete -f {file}")).await?.good()?;
    assert_eq!(out, "inferenceservice.serving.kserve.io \"iris\" deleted\ninferenceservice.serving.kserve.io \"diabetes\" deleted");
    assert_eq!(ended(line, waiting).await?.good()?, "inferenceservice.serving.kserve.io/iris condition met");
    assert_eq!(on(&fixture, &berth, "get isvc").await?.out, "");
    Ok(())
}

#[tokio::test]
async fn nobody_waits_for_what_will_not_come_by_itself() -> Result<()> {
    let (fixture, berth) = bare().await?;
    let iris = service("iris", "quickstart", "iris");
    on(&fixture, &berth, &format!("apply -f {}", manifest(&fixture, "iris.yaml", &iris)?)).await?.good()?;
    on(&fixture, &berth, "wait isvc/iris --for=loaded").await?.good()?;

    // A name that another resource has.
    let text = "apiVersion: serving.kserve.io/v1alpha1
kind: Predictor
metadata: {name: iris}
spec: {modelType: {name: onnx}, storage: {key: quickstart, path: iris}}
";
    on(&fixture, &berth, &format!("apply -f {}", manifest(&fixture, "taken.yaml", text)?)).await?.good()?;
    for awaited in ["loaded", "standby", "condition=Available"] {
        let errors = on(&fixture, &berth, &format!("wait predictor/iris --for={awaited} --timeout 1h")).await?.bad()?;
        let told = "error: predictors/iris: Pending, UpToDate, InvalidPredictorSpec: Predictor already exists with the same name";
        assert!(errors.starts_with(told) && errors.contains("InferenceService default/iris has it"), "{awaited}: {errors}");
    }

    // A part that nobody runs.
    let whole = iris.replace("name: iris\n", "name: whole\n") + "  transformer: {containers: [{name: kserve-container, image: an-image}]}\n";
    on(&fixture, &berth, &format!("apply -f {}", manifest(&fixture, "whole.yaml", &whole)?)).await?.good()?;
    for awaited in ["loaded", "condition=PredictorReady", "condition=Ready=False"] {
        on(&fixture, &berth, &format!("wait isvc/whole --for={awaited}")).await?.good()?;
    }
    for awaited in ["condition=Ready", "condition=TransformerReady"] {
        assert_eq!(
            on(&fixture, &berth, &format!("wait isvc/whole --for={awaited} --timeout 1h")).await?.bad()?,
            "error: inferenceservices/whole: Loaded, UpToDate, TransformerReady, NotServed: the transformer is not run here: requests reach the \
             predictor without it",
            "{awaited}"
        );
    }

    // One that is somebody else's.
    let other = iris.replace("name: iris\n", "name: other\n").replace("ModelMesh", "Serverless");
    on(&fixture, &berth, &format!("apply -f {}", manifest(&fixture, "other.yaml", &other)?)).await?.good()?;
    let errors = on(&fixture, &berth, "wait isvc/other --for=loaded --timeout 1h").await?.bad()?;
    assert!(errors.starts_with("error: inferenceservices/other: it is left alone: "), "{errors}");
    Ok(())
}

#[tokio::test]
async fn an_inference_service_of_another_mode_is_listed_and_described_as_left_alone() -> Result<()> {
    let (fixture, berth) = bare().await?;
    let (ours, other) = (service("ours", "quickstart", "iris"), service("other", "quickstart", "iris").replace("ModelMesh", "Serverless"));
    on(&fixture, &berth, &format!("apply -f {}", manifest(&fixture, "both.yaml", &format!("{ours}---\n{other}"))?)).await?.good()?;
    on(&fixture, &berth, "wait isvc/ours --for=loaded").await?.good()?;
    for line in ["get isvc", "get isvc -o wide", "get -A", "get isvc other ours"] {
        let table = on(&fixture, &berth, line).await?.good()?;
        let cells = |name: &str| -> Vec<String> {
            let row = table.lines().find(|row| row.split_whitespace().any(|cell| cell == name || cell.ends_with(&format!("/{name}"))));
            row.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        assert!(cells("other").contains(&"Unmanaged".to_owned()), "{line}\n{table}");
        assert!(cells("ours").contains(&"Loaded".to_owned()), "{line}\n{table}");
    }
    let managed = |page: &str| page.lines().find(|line| line.starts_with("Managed:")).map(str::to_owned);
    let told = managed(&on(&fixture, &berth, "describe isvc other").await?.good()?).context("nothing is said about it")?;
    assert!(told.contains("no, it is left alone: only InferenceServices with the annotation serving.kserve.io/deploymentMode: ModelMesh"), "{told}");
    assert_eq!(managed(&on(&fixture, &berth, "describe isvc ours").await?.good()?), None);
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_is_partly_wrong_is_applied_as_far_as_it_is_right() -> Result<()> {
    let (fixture, berth) = bare().await?;
    let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{}", service("iris", "quickstart", "iris"));
    let file = manifest(&fixture, "partly.yaml", &text)?;
    let ran = on(&fixture, &berth, &format!("apply -f {file}")).await?;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Code(1), "inferenceservice.serving.kserve.io/iris created"), "{}", ran.errors);
    assert!(ran.errors.contains("resource 1: no matches for kind \"Secret\" in version \"v1\""), "{}", ran.errors);
    Ok(())
}

#[tokio::test]
async fn resources_of_the_folder_are_not_changed_behind_its_back() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let file = manifest(&fixture, "iris.yaml", &service("iris", "quickstart", "diabetes"))?;
    for line in ["delete isvc iris".to_owned(), format!("apply -f {file}")] {
        let errors = on(&fixture, &berth, &line).await?.bad()?;
        assert!(errors.starts_with("Error from server (") && errors.contains("iris.yaml"), "{line}: {errors}");
    }
    berth.answers(&fixture.quickstart, "iris").await
}

#[tokio::test]
async fn a_watch_prints_a_line_for_every_change_and_outlives_the_server() -> Result<()> {
    let (fixture, mut berth) = bare().await?;
    let server = berth.api("");
    let mut watch = Process::start("get -w", command(&fixture, &server, "get isvc -w"))?;
    let row = |name: &'static str, state: &'static str| {
        move |line: &str| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells.first() == Some(&name) && cells.get(3) == Some(&state)
        }
    };
    fixture.service("iris", "quickstart", "iris")?;
    watch.line("iris to load", SOON, row("iris", "Loading")).await?;
    watch.line("iris to be loaded", SOON, row("iris", "Loaded")).await?;

    berth.process().kill().await?;
    watch.line("the watch to notice", SOON, |line| line.starts_with("lost the connection to ")).await?;
    let api = server.strip_prefix("http://").context("a URL")?;
    let berth = fixture.serve(ROOMY).flag("--api", api).start().await?;
    assert_eq!(berth.api(""), server);
    fixture.service("diabetes", "quickstart", "diabetes")?;
    watch.line("diabetes to be loaded", SOON, row("diabetes", "Loaded")).await?;
    std::fs::remove_file(fixture.manifests().join("iris.yaml"))?;
    watch.line("iris to be gone", SOON, row("iris", "Deleted")).await?;
    let heads = watch.out().lines().filter(|line| line.starts_with("NAME")).count();
    assert_eq!(heads, 1, "{}", watch.written());
    Ok(())
}

#[tokio::test]
async fn completions_are_scripts_and_a_reader_that_goes_away_is_no_fault() -> Result<()> {
    let fixture = Fixture::empty()?;
    for (shell, mark) in [("bash", "complete -F _berth"), ("zsh", "#compdef berth"), ("fish", "complete -c berth")] {
        let script = run(&fixture, "unused:1", &format!("completion {shell}")).await?.good()?;
        assert!(script.contains(mark) && script.contains("describe"), "{shell}: {script}");
    }
    let mut bash = Command::new("bash");
    let bin = fixture.parts.bin.display();
    bash.args(["-c", &format!("set -o pipefail; bash -n <('{bin}' completion bash) && '{bin}' completion zsh | head -c 1")]);
    let ran = ended("a pipe", Process::start("a pipe", bash)?).await?;
    assert_eq!((ran.exit, ran.errors.as_str()), (Exit::Code(0), ""), "{}", ran.out);
    Ok(())
}

#[tokio::test]
async fn bytes_that_changed_behind_a_path_are_told_with_the_pod_that_serves_them() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    berth.stands("iris", SOON, |standing| standing.active == "Loaded").await?;
    let told = on(&fixture, &berth, "describe isvc iris").await?.good()?;
    ensure!(!told.contains("Content drift"), "{told}");
    ensure!(berth.interrupt().await? == Exit::Code(0), "{}", berth.process().written());
    // What was fetched is gone, and what is fetched next is something else.
    std::fs::remove_dir_all(fixture.data().join("models"))?;
    let other = fixture.path("other");
    std::fs::create_dir_all(other.join("iris"))?;
    std::fs::copy(fixture.quickstart.models().join("digits-mlp/model.onnx"), other.join("iris/model.onnx"))?;
    fixture.gateway()?.put_folder(&other).await?;
    let berth = fixture.serve(ROOMY).start().await?;
    berth.stands("iris", SOON, |standing| standing.active == "Loaded").await?;
    let told = on(&fixture, &berth, "describe isvc iris").await?.good()?;
    let drift = told.split_once("\nContent drift:\n").map(|(_, drift)| drift).unwrap_or_default();
    ensure!(drift.starts_with("  Pod:          local\n  Model:        iris__isvc-"), "{told}");
    ensure!(drift.contains("  Message:      pod local serves crc64:") && drift.contains("the first good content was crc64:"), "{told}");
    Ok(())
}
