//! Where a setting may come from: the environment, a file, a flag; and which of them counts.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use berth_testkit::{Berth, Watch};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON};
use crate::refusals::USAGE;

/// The line of the start that tells the memory budget.
async fn memory(berth: &mut Berth) -> Result<String> {
    let line = berth.process().line("the memory budget", SOON, |line| line.starts_with("memory ")).await?;
    Ok(line["memory ".len()..].trim().to_owned())
}

#[tokio::test]
async fn a_flag_counts_before_the_environment_and_the_environment_before_the_file() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    fs::write(fixture.manifests().join("berth.toml"), "host-memory = \"30MiB\"\n")?;
    for (case, variable, flag, expected) in [
        ("file", None, None, "30 MiB"),
        ("environment and file", Some("40MiB"), None, "40 MiB"),
        ("all three", Some("40MiB"), Some("50MiB"), "50 MiB"),
    ] {
        let serve = fixture.serve(ROOMY).unset("--host-memory");
        let serve = variable.into_iter().fold(serve, |serve, value| serve.env("BERTH_HOST_MEMORY", value));
        let serve = flag.into_iter().fold(serve, |serve, value| serve.flag("--host-memory", value));
        let mut berth = serve.start().await?;
        let told = memory(&mut berth).await?;
        assert!(told.starts_with(expected), "{case}: {told}");
        // What it says is what it does: the gauge of the budget has the same number.
        let megabytes: f64 = expected.split(' ').next().unwrap_or_default().parse()?;
        assert_eq!(berth.metric("berth_memory_budget_bytes").await?, megabytes * f64::from(1 << 20), "{case}");
        berth.process().kill().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_setting_of_the_environment_is_read_and_a_wrong_one_is_named() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let wrong = [("BERTH_HOST_MEMORY", "much"), ("BERTH_GRPC", "here"), ("BERTH_DRAIN_TIMEOUT", "later"), ("BERTH_LOG_FORMAT", "prose")];
    let serve = fixture.serve(ROOMY).unset("--host-memory").unset("--grpc");
    let mut berth = wrong.iter().fold(serve, |serve, (variable, value)| serve.env(variable, value)).spawn()?;
    assert_eq!(berth.process().exit(SOON).await?, USAGE, "{}", berth.process().written());
    for (variable, value) in wrong {
        let named = berth.process().errors().lines().any(|line| line.contains(variable) && line.contains(value));
        assert!(named, "{variable} is not named with {value}: {}", berth.process().written());
    }
    Ok(())
}

/// How many ports a process listens on.
fn listeners(id: i32) -> Result<usize> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{id}/fd"))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default().display().to_string();
        own.extend(target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
    }
    // Columns: number, local and remote address, state (0A: listening), queues, timer, retransmits, user, timeout, inode.
    let table = fs::read_to_string(format!("/proc/{id}/net/tcp"))?;
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(rows.filter(|row| row.len() > 9 && row[3] == "0A" && own.contains(row[9])).count())
}

#[tokio::test]
async fn rest_can_be_switched_off() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut with = fixture.serve(ROOMY).start().await?;
    assert_eq!(listeners(with.process().id())?, 5);
    with.process().kill().await?;
    let mut berth = fixture.serve(ROOMY).unset("--rest").env("BERTH_REST", "off").start().await?;
    berth.process().line("the word that REST is off", SOON, |line| line.starts_with("REST ") && line.ends_with(" off")).await?;
    assert_eq!(listeners(berth.process().id())?, 4);
    berth.stands("iris", SOON, |standing| standing.active == "Loaded").await?;
    Ok(())
}

/// The endpoints in the status of a resource of either kind: gRPC, REST, and what stands for "the" URL.
fn endpoints(resource: &Value) -> [&Value; 3] {
    let status = &resource["status"];
    match resource["kind"].as_str() {
        Some("Predictor") => [&status["grpcEndpoint"], &status["httpEndpoint"], &status["grpcEndpoint"]],
        _ => {
            let predictor = &status["components"]["predictor"];
            [&predictor["grpcUrl"], &predictor["restUrl"], &predictor["url"]]
        }
    }
}

#[tokio::test]
async fn with_rest_off_no_status_names_a_rest_endpoint() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let kinds = [("iris", "v1beta1", "inferenceservices"), ("breast-cancer", "v1alpha1", "predictors")];
    // What an earlier life with REST has told is taken back.
    let mut with = fixture.serve(ROOMY).start().await?;
    for (name, ..) in kinds {
        with.stands(name, SOON, |standing| standing.active == "Loaded").await?;
        assert_eq!(endpoints(&with.resource(name).await?)[1], &json!(format!("http://{}", with.rest())), "{name}");
    }
    with.process().kill().await?;
    drop(with);

    let berth = fixture.serve(ROOMY).unset("--rest").env("BERTH_REST", "off").start().await?;
    let grpc = json!(format!("grpc://{}", berth.grpc()));
    for (name, ..) in kinds {
        berth.stands(name, SOON, |standing| standing.active == "Loaded").await?;
        let resource = berth.resource(name).await?;
        assert_eq!(endpoints(&resource), [&grpc, &Value::Null, &grpc], "{resource}");
        assert!(!resource["status"].to_string().contains("http:"), "{resource}");
    }
    // One that is made now is never told of one either.
    for (model, version, plural) in kinds {
        let name = format!("another-{model}");
        let manifest = fs::read_to_string(fixture.manifests().join(format!("{model}.yaml")))?;
        let mut watch = Watch::start(&berth, &format!("/apis/serving.kserve.io/{version}/namespaces/default/{plural}"), &name).await?;
        fixture.manifest(&format!("{name}.yaml"), &manifest.replacen(&format!("name: {model}"), &format!("name: {name}"), 1))?;
        watch.until("it to be loaded", SOON, |told| told.row() == "Loaded, UpToDate, available, 0/1").await?;
        let last = watch.told().last().context("an event")?;
        assert_eq!(endpoints(&last.resource), [&grpc, &Value::Null, &grpc]);
        assert!(watch.told().iter().all(|told| endpoints(&told.resource)[1].is_null()), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_start_says_whether_the_resource_api_asks_for_a_token_and_never_which() -> Result<()> {
    let fixture = Fixture::empty()?;
    fs::write(fixture.path("token"), "s3cret-of-nobody\n")?;
    for (file, expected) in
        [(None, "token        none: the resource API answers everybody on this machine"), (Some(fixture.path("token")), "asks for the one in ")]
    {
        let serve = fixture.serve(ROOMY);
        let mut berth = match &file {
            Some(file) => serve.flag("--api-token-file", file),
            None => serve,
        }
        .spawn()?;
        let line = berth.process().line("the word about the token", SOON, |line| line.starts_with("token ")).await?;
        assert!(line.contains(expected), "{line}");
        assert!(file.is_none_or(|file| line.ends_with(&file.display().to_string())), "{line}");
        berth.ready().await?;
        assert!(!berth.process().written().contains("s3cret"), "{}", berth.process().written());
        berth.process().kill().await?;
    }
    Ok(())
}
