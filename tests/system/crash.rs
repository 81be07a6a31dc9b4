//! Whatever moment a crash comes at: afterwards nothing half-loaded is served and nothing registered is lost.

use anyhow::{Context, Result};
use berth_telemetry::halt::{Point, VARIABLE};
use berth_testkit::{Berth, Exit, Transport};

use crate::eviction::TIGHT;
use crate::fixture::{Fixture, ROOMY, SOON, bytes_below};

#[tokio::test]
async fn every_example_answers_rightly_after_kill_and_restart() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    berth.process().kill().await?;
    let berth = fixture.serve(ROOMY).start().await?;
    fixture.all_answer(&berth).await?;
    for name in fixture.quickstart.names()? {
        berth.stands(&name, SOON, |standing| standing.active == "Loaded" && standing.transition == "UpToDate").await?;
    }
    Ok(())
}

/// Uses every model in turn until the process has ended; what it answers on its way there does not matter.
async fn drive(fixture: &Fixture, berth: &Berth) -> Result<()> {
    loop {
        for name in fixture.quickstart.names()? {
            if berth.infer(&name, fixture.quickstart.request(&name)?).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Lets a crash happen at `point` in the life of `subject`, and looks at what a restart makes of it.
async fn crash_at(point: Point, subject: &str) -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let stage = format!("{}@{subject}", point.as_str());
    let mut berth = fixture.serve(TIGHT).env(VARIABLE, &stage).spawn()?;
    // It may end while it starts, or later, when requests make it load and evict.
    if berth.ready().await.is_ok() {
        drive(&fixture, &berth).await?;
    }
    let exit = berth.process().exit(SOON).await.with_context(|| format!("{stage} was not reached"))?;
    assert_eq!(exit, Exit::KILLED, "{stage}: {}", berth.process().written());
    assert!(berth.process().errors().contains(&format!("{VARIABLE}: {} reached", point.as_str())), "{stage}: {}", berth.process().written());
    drop(berth);

    let berth = fixture.serve(TIGHT).start().await.with_context(|| format!("restart after {stage}"))?;
    for _round in 0..2 {
        fixture.all_answer(&berth).await.with_context(|| format!("after {stage}"))?;
    }
    // What the crash left half-done is gone from the disk: each model is there once at most.
    let (held, whole) = (bytes_below(&fixture.data().join("models"))?, bytes_below(&fixture.quickstart.models())?);
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
