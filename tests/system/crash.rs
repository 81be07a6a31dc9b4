//! Whatever moment a crash comes at: afterwards nothing half-loaded is served and nothing registered is lost.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_telemetry::halt::{Point, VARIABLE};
use berth_testkit::{Berth, Exit, Found, Process, Standing, Transport, eventually, http};
use serde_json::Value;
use tokio::time::timeout;

use crate::answers::right_through_every_client;
use crate::eviction::TIGHT;
use crate::fixture::{Fixture, ROOMY, SOON, bytes_below};

#[tokio::test]
async fn every_example_answers_rightly_after_kill_and_restart() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    let before = berth.identities().await?;
    assert_eq!(before.keys().cloned().collect::<Vec<_>>(), fixture.quickstart.names()?);
    berth.process().kill().await?;
    let berth = fixture.serve(ROOMY).start().await?;
    assert_eq!(berth.identities().await?, before, "the store was lost");
    right_through_every_client(&fixture, &berth).await?;
    for name in fixture.quickstart.names()? {
        berth.stands(&name, SOON, |standing| standing.active == "Loaded" && standing.transition == "UpToDate").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_new_version_that_cannot_load_still_has_failed_after_kill_and_restart() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    let ask = async |berth: &Berth| -> Result<Value> {
        let answer = berth.infer("digits-mlp", fixture.quickstart.request("digits-mlp")?).await?.good()?;
        fixture.quickstart.check("digits-mlp", &answer)?;
        Ok(answer["model_name"].clone())
    };
    let blocked = |standing: &Standing| standing.transition == "BlockedByFailedLoad" && standing.target == "FailedToLoad";
    let old = ask(&berth).await?;
    fixture.service("digits-mlp", "quickstart", "no-such-folder")?;
    let failed = berth.stands("digits-mlp", SOON, blocked).await?;
    assert_eq!(failed.active, "Loaded");
    assert_eq!(ask(&berth).await?, old);
    let before = berth.resource("digits-mlp").await?;
    let last_failure = &before["status"]["modelStatus"]["lastFailureInfo"];
    assert!(last_failure["modelRevisionName"].is_string() && last_failure["modelRevisionName"] != old, "{last_failure}");
    berth.process().kill().await?;

    let mut berth = fixture.serve(ROOMY).spawn()?;
    eventually("the resource API", SOON, || async {
        Ok(berth.resource("digits-mlp").await.map_or_else(|fault| Found::NotYet(format!("{fault:#}")), Found::Yes))
    })
    .await?;
    let mut watch = Command::new("curl");
    let list = berth.api("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices");
    watch.args(["--silent", "--show-error", "--no-buffer", &format!("{list}?watch=true&fieldSelector=metadata.name%3Ddigits-mlp")]);
    let watch = Process::start("a watch", watch)?;
    berth.ready().await?;
    assert_eq!(ask(&berth).await?, old, "the old version is another one now");
    let now = berth.stands("digits-mlp", SOON, |standing| blocked(standing) && standing.active == "Loaded").await?;
    assert_eq!((&now.reason, &now.message), (&failed.reason, &failed.message));
    let after = berth.resource("digits-mlp").await?;
    for kept in ["uid", "generation"] {
        assert_eq!(after["metadata"][kept], before["metadata"][kept], "{kept}");
    }
    assert_eq!(after["status"]["modelStatus"]["lastFailureInfo"]["modelRevisionName"], last_failure["modelRevisionName"]);

    // It never said that the old version is what was asked for, nor that the new one had not failed.
    berth.interrupt().await?;
    let seen = watch.out();
    assert!(!seen.is_empty(), "{}", watch.written());
    for line in seen.lines() {
        let event: Value = serde_json::from_str(line)?;
        let standing = Standing::of(&event["object"])?;
        let in_order = standing.transition == "BlockedByFailedLoad" && standing.reason == failed.reason;
        assert!(in_order && standing.active != "FailedToLoad", "{standing:?} among\n{seen}");
    }
    Ok(())
}

/// Uses every model in turn until the process has ended; what it answers on its way there does not matter. Bounded:
/// where the stage is never reached, the test tells so.
async fn drive(fixture: &Fixture, berth: &Berth) -> Result<()> {
    let names = fixture.quickstart.names()?;
    let rounds = async {
        for name in std::iter::repeat_n(&names, 10).flatten() {
            if berth.infer(name, fixture.quickstart.request(name)?).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    timeout(2 * SOON, rounds).await.unwrap_or(Ok(()))
}

/// Lets a crash happen at `point` in the life of `subject`, and looks at what a restart makes of it.
async fn crash_at(point: Point, subject: &str) -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let stage = format!("{}@{subject}", point.as_str());
    let later = fixture.manifests().join(subject).with_extension("yaml");
    let manifest = fs::read_to_string(&later)?;
    fs::remove_file(&later)?;
    let mut berth = fixture.serve(TIGHT).env(VARIABLE, &stage).start().await?;
    let before = berth.identities().await?;
    ensure!(before.len() + 1 == fixture.quickstart.names()?.len(), "{before:?}");
    fixture.manifest(&format!("{subject}.yaml"), &manifest)?;
    // It may end as soon as the subject is there, or later, when requests make it load and evict.
    eventually("the subject", SOON, || async {
        Ok(match berth.resource(subject).await {
            Ok(_) => Found::Yes(()),
            Err(fault) if http::is_refused(&fault) => Found::Yes(()),
            Err(fault) => Found::NotYet(format!("{fault:#}")),
        })
    })
    .await?;
    drive(&fixture, &berth).await?;
    let exit = berth.process().exit(Duration::from_secs(5)).await.with_context(|| format!("{stage} was not reached"))?;
    assert_eq!(exit, Exit::KILLED, "{stage}: {}", berth.process().written());
    assert!(berth.process().errors().contains(&format!("{VARIABLE}: {} reached", point.as_str())), "{stage}: {}", berth.process().written());
    drop(berth);

    let berth = fixture.serve(TIGHT).start().await.with_context(|| format!("restart after {stage}"))?;
    let mut after = berth.identities().await?;
    assert!(after.remove(subject).is_some_and(|subject| subject.generation == 1), "{subject} is not there after {stage}");
    assert_eq!(after, before, "the store was lost after {stage}");
    for _round in 0..2 {
        fixture.all_answer(&berth).await.with_context(|| format!("after {stage}"))?;
    }
    // What the crash left half-done is gone from the disk: each model is there once at most.
    let (held, whole) = (bytes_below(&fixture.data().join("models/blobs"))?, bytes_below(&fixture.quickstart.models())?);
    assert!(held <= whole + (64 << 10), "after {stage}: {held} bytes are held for models of {whole} bytes");
    for name in fixture.quickstart.names()? {
        let standing = berth.standing(&name).await?;
        let well = ["Loaded", "Loading", "Standby"].contains(&standing.active.as_str()) && standing.transition == "UpToDate";
        assert!(well && standing.reason.is_empty(), "after {stage}, {name}: {standing:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_after_listing_loses_nothing() -> Result<()> {
    crash_at(Point::Listed, "digits-wide").await
}

#[tokio::test]
async fn a_crash_while_fetching_leaves_nothing_half_fetched() -> Result<()> {
    crash_at(Point::Fetching, "digits-wide").await
}

#[tokio::test]
async fn a_crash_between_checking_and_renaming_leaves_nothing_half_fetched() -> Result<()> {
    crash_at(Point::Verified, "digits-wide").await
}

#[tokio::test]
async fn a_crash_right_after_renaming_loses_nothing() -> Result<()> {
    crash_at(Point::Renamed, "digits-wide").await
}

#[tokio::test]
async fn a_crash_after_laying_out_loses_nothing() -> Result<()> {
    crash_at(Point::LaidOut, "digits-wide").await
}

#[tokio::test]
async fn a_crash_while_loading_does_not_count_against_the_model() -> Result<()> {
    crash_at(Point::Loading, "digits-wide").await
}

#[tokio::test]
async fn a_crash_between_loading_and_telling_anybody_loses_nothing() -> Result<()> {
    crash_at(Point::Loaded, "digits-wide").await
}

#[tokio::test]
async fn a_crash_while_unloading_loses_nothing() -> Result<()> {
    crash_at(Point::Unloading, "digits-wide").await
}

#[test]
fn there_is_a_test_of_a_crash_at_every_point() {
    let source = include_str!("crash.rs");
    for point in Point::ALL {
        assert!(source.contains(&format!("crash_at(Point::{point:?},")), "no test crashes at {point:?}");
    }
}
