//! Changes that are only tried, and removals of many at once, from the command line.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use berth_testkit::{Berth, Exit, Process};

use crate::fixture::{Fixture, ROOMY, service};

/// Longer than any command here takes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `berth LINE` against `server` and checks status, standard output and the begin of standard error.
async fn says(fixture: &Fixture, server: &Berth, line: &str, status: i32, out: &str, errors: &str) -> Result<()> {
    let mut command = Command::new(&fixture.parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.env("BERTH_SERVER", server.api("")).args(line.split(' '));
    let mut process = Process::start(line, command)?;
    let exit = process.exit(PATIENCE).await?;
    assert_eq!((exit, process.out().as_str()), (Exit::Code(status), out), "{line}: {}", process.errors());
    assert!(process.errors().starts_with(errors) && process.errors().is_empty() == errors.is_empty(), "{line}: {}", process.errors());
    Ok(())
}

#[tokio::test]
async fn what_is_only_tried_is_told_as_if_and_not_done() -> Result<()> {
    let fixture = Fixture::empty()?;
    let server = fixture.serve(ROOMY).start().await?;
    let write = |text: String| -> Result<()> { Ok(fs::write(fixture.path("iris.yaml"), text)?) };
    let file = fixture.path("iris.yaml").display().to_string();
    let says = async |line: &str, status, out: &str, errors: &str| says(&fixture, &server, line, status, out, errors).await;
    let name = "inferenceservice.serving.kserve.io/iris";
    let missing = "Error from server (NotFound): inferenceservices.serving.kserve.io \"iris\" not found";

    write(service("iris", "no-such-key", "iris"))?;
    for (how, remark) in [("server", "server dry run"), ("client", "dry run")] {
        says(&format!("apply -f {file} --dry-run={how}"), 0, &format!("{name} created ({remark})"), "").await?;
        says("get isvc iris", 1, "", missing).await?;
        says(&format!("delete isvc iris --dry-run={how}"), 1, "", missing).await?;
    }
    says(&format!("apply -f {file} --dry-run=none"), 0, &format!("{name} created"), "").await?;
    says(&format!("apply -f {file} --dry-run=server"), 0, &format!("{name} unchanged (server dry run)"), "").await?;
    write(service("iris", "no-such-key", "elsewhere"))?;
    for (how, remark) in [("server", "server dry run"), ("client", "dry run")] {
        says(&format!("apply -f {file} --dry-run={how}"), 0, &format!("{name} configured ({remark})"), "").await?;
        let told = format!("inferenceservice.serving.kserve.io \"iris\" deleted ({remark})");
        says(&format!("delete -f {file} --dry-run={how}"), 0, &told, "").await?;
    }
    // Still there, and as it was.
    write(service("iris", "no-such-key", "iris"))?;
    says(&format!("apply -f {file}"), 0, &format!("{name} unchanged"), "").await?;

    // The server's checks are part of a try with it, and of none without.
    write(service("Not_A_Name", "no-such-key", "iris"))?;
    let refused = format!("Error from server (Invalid): error when applying {file:?}: ");
    says(&format!("apply -f {file} --dry-run=server"), 1, "", &refused).await?;
    says(&format!("apply -f {file} --dry-run=client"), 0, "inferenceservice.serving.kserve.io/Not_A_Name created (dry run)", "").await?;
    write(service("iris", "no-such-key", "iris") + "sepc: {}\n")?;
    let strict = format!("Error from server (BadRequest): error when applying {file:?}: strict decoding error: unknown field \"sepc\"");
    says("delete isvc iris", 0, "inferenceservice.serving.kserve.io \"iris\" deleted", "").await?;
    says(&format!("apply -f {file} --validate=strict"), 1, "", &strict).await?;
    says(&format!("apply -f {file}"), 0, &format!("{name} created"), "Warning: unknown field \"sepc\"").await
}

#[tokio::test]
async fn many_are_removed_by_kind_by_label_and_by_file_and_only_those() -> Result<()> {
    let fixture = Fixture::empty()?;
    let server = fixture.serve(ROOMY).start().await?;
    let says = async |line: &str, status, out: &str, errors: &str| says(&fixture, &server, line, status, out, errors).await;
    let labelled = |name: &str| service(name, "no-such-key", "m").replace("metadata:\n", "metadata:\n  labels: {tier: gold}\n");
    let all = [service("a", "no-such-key", "m"), labelled("b"), labelled("c"), service("d", "no-such-key", "m")].join("---\n");
    fs::write(fixture.path("all.yaml"), all)?;
    fs::write(fixture.path("a.yaml"), service("a", "no-such-key", "m"))?;
    let (file, one) = (fixture.path("all.yaml").display().to_string(), fixture.path("a.yaml").display().to_string());
    let each = |names: &[&str], text: &dyn Fn(&str) -> String| names.iter().map(|name| text(name)).collect::<Vec<_>>().join("\n");
    let created = each(&["a", "b", "c", "d"], &|name| format!("inferenceservice.serving.kserve.io/{name} created"));
    let deleted = |names: &[&str]| each(names, &|name| format!("inferenceservice.serving.kserve.io \"{name}\" deleted"));

    says(&format!("apply -f {file}"), 0, &created, "").await?;
    says(&format!("delete -f {one}"), 0, &deleted(&["a"]), "").await?;
    says(&format!("delete -f {one}"), 1, "", "Error from server (NotFound): inferenceservices.serving.kserve.io \"a\" not found").await?;
    says(&format!("delete -f {one} --ignore-not-found"), 0, "", "").await?;
    says("delete isvc -l tier=gold", 0, &deleted(&["b", "c"]), "").await?;
    says("delete isvc x --all", 1, "", "error: name cannot be provided when --all is specified").await?;
    says("delete isvc", 1, "", "error: a name is missing").await?;
    says("delete isvc,predictor --all -n elsewhere", 0, "No resources found", "").await?;
    says("get isvc -o name", 0, "inferenceservice.serving.kserve.io/d", "").await?;
    says("delete isvc,predictor --all", 0, &deleted(&["d"]), "").await?;
    says("get isvc d --ignore-not-found", 0, "", "").await?;
    says("get isvc", 0, "", "No resources found in default namespace.").await
}
