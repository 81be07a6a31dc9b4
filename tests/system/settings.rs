//! Where a setting may come from: the environment, a file, a flag; and which of them counts.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use berth_testkit::Berth;

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
