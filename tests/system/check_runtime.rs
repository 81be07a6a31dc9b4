//! `berth check-runtime` as the author of a server runs it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use berth_testkit::{Contract, Exit, GoRuntime, MlServer, Process, Triton, free_port};
use serde_json::json;

use crate::fixture::Fixture;

/// A check of a server that keeps every rule, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How a check ended.
struct Ran {
    exit: Exit,
    out: String,
    errors: String,
}

impl Ran {
    /// The rules that its lines begin with this word.
    fn rules(&self, word: &str) -> Vec<&str> {
        self.out.lines().filter_map(|line| line.strip_prefix(word)?.split_whitespace().next()).collect()
    }

    fn all(&self) -> String {
        format!("{:?}\n{}\n{}", self.exit, self.out, self.errors)
    }
}

async fn check(fixture: &Fixture, words: &[&str]) -> Result<Ran> {
    let mut command = Command::new(&fixture.parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.arg("check-runtime").args(words);
    let mut process = Process::start("check-runtime", command)?;
    let exit = process.exit(PATIENCE).await?;
    Ok(Ran { exit, out: process.out(), errors: process.errors() })
}

/// A model of the server in Go, and the folder that it is laid out in.
async fn check_go(fixture: &Fixture, flags: &[&str], more: &[&str]) -> Result<(Ran, GoRuntime)> {
    let (model, folder) = (fixture.path("models").join("model.json"), fixture.path("laid-out"));
    fs::write(&model, json!({"factor": 3, "load_ms": 20}).to_string())?;
    let server = GoRuntime::start(flags).await?;
    let (target, model, folder) = (server.target(), model.display().to_string(), folder.display().to_string());
    let words = [&target, "--model-path", &model, "--model-type", "scripted", "--repository", &folder, "--timeout", "10s"];
    Ok((check(fixture, &[&words[..], more].concat()).await?, server))
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[tokio::test]
async fn a_server_in_go_keeps_every_rule_and_is_left_as_it_was() -> Result<()> {
    let fixture = Fixture::empty()?;
    let (ran, mut server) = check_go(&fixture, &[], &[]).await?;
    ensure!(ran.exit == Exit::Code(0) && ran.errors.is_empty(), "{}", ran.all());
    ensure!(ran.rules("BROKEN").is_empty() && ran.rules("unchecked") == ["parking"] && ran.rules("kept").len() == 11, "{}", ran.all());
    ensure!(ran.out.ends_with("\n12 rules: 11 kept, 0 broken, 1 unchecked"), "{}", ran.all());
    ensure!(!fixture.path("laid-out").exists(), "the folder was not there before");
    let last = server.told("unloadModel", "ended", "other__ksp-").await?;
    ensure!(last["code"] == "OK", "{last}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_breaks_a_rule_is_told_which_and_what_to_do() -> Result<()> {
    let cases: [(&[&str], &[&str], &str, &str); 4] = [
        (&["-lies"], &[], "load-is-ready", "its load was answered, and the server does not know the model"),
        (&["-keeps"], &[], "unload-is-gone", "after its unload it answers a request"),
        (&["-unknown-unload=3"], &[], "unknown-unload", "it answered InvalidArgument: what is never__isvc-0000000004?"),
        (&["-starting=1000000"], &["--start-timeout", "2s"], "ready", "is not ready after 2s: it is starting"),
    ];
    for (flags, more, rule, came) in cases {
        let fixture = Fixture::empty()?;
        let (ran, _server) = check_go(&fixture, flags, more).await?;
        ensure!(ran.exit == Exit::Code(1) && ran.errors.is_empty(), "{flags:?}: {}", ran.all());
        ensure!(ran.rules("BROKEN").contains(&rule), "{flags:?}: {}", ran.all());
        let about: Vec<&str> = ran.out.lines().skip_while(|line| !line.starts_with(&format!("BROKEN     {rule} "))).collect();
        ensure!(about.get(1).is_some_and(|line| line.trim_start().starts_with("came ") && line.contains(came)), "{flags:?}: {}", ran.all());
        ensure!(about.get(3).is_some_and(|line| line.trim_start().starts_with("to do ")), "{flags:?}: {}", ran.all());
        ensure!(about.get(4).is_some_and(|line| line.ends_with(&format!("docs/check-runtime.md#{rule}"))), "{flags:?}: {}", ran.all());
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_and_a_wrong_flag_are_one_message() -> Result<()> {
    let fixture = Fixture::empty()?;
    let nowhere = format!("127.0.0.1:{}", free_port());
    let ran = check(&fixture, &[&nowhere, "--start-timeout", "1s"]).await?;
    ensure!(ran.exit == Exit::Code(1) && ran.rules("BROKEN").is_empty(), "{}", ran.all());
    let message = format!("berth: the model runtime at {nowhere} does not answer after 1s: ");
    ensure!(ran.errors.starts_with(&message) && ran.errors.lines().count() == 1, "{}", ran.all());
    for (words, says) in [
        (&["nowhere"][..], "names no server"),
        (&["port:1", "--runtime", "tfserving"], "no inference server that is known"),
        (&["port:1", "--runtime", "torchserve"], "there is no example for TorchServe"),
        (&["port:1", "--model-path", "/no/such", "--model-type", "x"], "--model-path: /no/such: "),
        (&[], "<ENDPOINT>"),
    ] {
        let ran = check(&fixture, words).await?;
        ensure!(ran.exit == Exit::Code(2) && ran.errors.contains(says), "{words:?}: {}", ran.all());
    }
    Ok(())
}

#[tokio::test]
async fn a_folder_with_files_of_somebody_else_is_not_touched() -> Result<()> {
    let fixture = Fixture::empty()?;
    let folder = fixture.path("laid-out");
    fs::create_dir_all(folder.join("theirs"))?;
    let (ran, _server) = check_go(&fixture, &[], &[]).await?;
    ensure!(ran.exit == Exit::Code(2) && ran.errors.contains("--repository: ") && ran.errors.contains("it holds theirs"), "{}", ran.all());
    ensure!(fs::read_dir(&folder)?.count() == 1, "nothing was added");
    Ok(())
}

#[tokio::test]
async fn real_triton_keeps_every_rule_with_the_example_that_comes_along() -> Result<()> {
    let fixture = Fixture::empty()?;
    let repository = fixture.repository()?;
    let triton = Triton::with_onnx(&fixture.parts, &repository).await?;
    let ran = check(&fixture, &[&triton.grpc(), "--runtime", "triton", "--repository", &repository.display().to_string()]).await?;
    ensure!(ran.exit == Exit::Code(0) && ran.rules("unchecked") == ["parking"], "{}", ran.all());
    ensure!(is_empty(&repository), "what was laid out is gone");
    Ok(())
}

#[tokio::test]
async fn real_mlserver_keeps_every_rule_with_the_example_that_comes_along() -> Result<()> {
    let fixture = Fixture::empty()?;
    let server = MlServer::start(&fixture.parts).await?;
    let models = server.models();
    let ran = check(&fixture, &[&server.grpc(), "--runtime", "mlserver", "--repository", &models.display().to_string()]).await?;
    ensure!(ran.exit == Exit::Code(0) && ran.rules("unchecked") == ["parking"], "{}", ran.all());
    ensure!(is_empty(&models), "what was laid out is gone");
    Ok(())
}

#[tokio::test]
async fn berth_runtime_keeps_every_rule_with_the_example_that_comes_along() -> Result<()> {
    let fixture = Fixture::empty()?;
    let folder = fixture.path("repository");
    let contract = Contract::start(&fixture.parts, &format!("unix:{}", fixture.path("socket").display()), &folder).await?;
    let ran = check(&fixture, &[&contract.endpoint(), "--repository", &folder.display().to_string()]).await?;
    ensure!(ran.exit == Exit::Code(0) && ran.rules("unchecked") == ["parking"], "{}", ran.all());
    Ok(())
}
