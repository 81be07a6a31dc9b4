//! Standby: what had to make room, what comes back, and what cannot be had back just now.

use std::time::Duration;

use anyhow::Result;

use super::gate::{Gated, behind};
use super::{Form, LOADED, LOADING, Model, Stage, bare};

/// Room for either of the two large examples, not for both.
const ONE_LARGE: &str = "1.6MiB";
const STANDBY: &str = "Standby, UpToDate, available, 0/0";
/// It was loaded before; just now its files cannot be had.
const CUT_OFF: &str = "Standby, UpToDate, available, 1/0, ModelLoadFailed";

/// What had to make room is left alone for half a minute before it is loaded again without being asked for.
const WARM: Duration = Duration::from_secs(90);

async fn comes_and_goes(form: Form) -> Result<()> {
    let stage = Stage::of(form, bare()?, ONE_LARGE).await?;
    let mut wide = stage.create("wide", &Model::at("digits-wide")).await?;
    wide.reaches(LOADED).await?;
    stage.answers("wide", "digits-wide").await?;
    // Nobody makes room for what nobody asked for.
    let mut deep = stage.create("deep", &Model::at("digits-deep")).await?;
    deep.reaches(STANDBY).await?;

    stage.answers("deep", "digits-deep").await?;
    deep.reaches(LOADED).await?;
    wide.reaches(STANDBY).await?;
    deep.went_perhaps_through(LOADING, &[form.unseen(), STANDBY, LOADING, LOADED])?;
    stage.answers("wide", "digits-wide").await?;
    wide.reaches(LOADED).await?;
    deep.reaches(STANDBY).await?;
    wide.went(&[form.unseen(), LOADING, LOADED, STANDBY, LOADING, LOADED])?;

    let requests = stage.berth.metric("berth_requests_total").await?;
    stage.delete("wide").await?;
    deep.reaches_within(WARM, LOADED).await?;
    deep.went_perhaps_through(LOADING, &[form.unseen(), STANDBY, LOADING, LOADED, STANDBY, LOADING, LOADED])?;
    assert_eq!(stage.berth.metric("berth_requests_total").await?, requests, "somebody asked for it");
    stage.answers("deep", "digits-deep").await?;
    Ok(())
}

#[tokio::test]
async fn an_inference_service_goes_to_standby_and_comes_back_when_asked_and_by_itself() -> Result<()> {
    comes_and_goes(Form::Service).await
}

#[tokio::test]
async fn a_predictor_goes_to_standby_and_comes_back_when_asked_and_by_itself() -> Result<()> {
    comes_and_goes(Form::Predictor).await
}

async fn stays_on_standby_while_its_store_is_away(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    gated.open();
    // The disk holds the files of one of the two as well.
    let berth = fixture.serve(ONE_LARGE).flag("--disk", "1.2MiB").start().await?;
    let stage = Stage { fixture, berth, form };
    let mut wide = stage.create("wide", &behind("digits-wide")).await?;
    wide.reaches(LOADED).await?;
    let version = stage.answers("wide", "digits-wide").await?;
    stage.create("deep", &behind("digits-deep")).await?.reaches(STANDBY).await?;
    stage.answers("deep", "digits-deep").await?;
    wide.reaches(STANDBY).await?;

    gated.leave(&stage.fixture)?;
    let reply = stage.ask("wide", "digits-wide").await?;
    assert_eq!((reply.status, reply.retry_after.is_some()), (503, true), "{}", reply.text());
    let cut_off = wide.reaches(CUT_OFF).await?;
    assert_eq!(wide.failure_in_pod(&cut_off, &["127.0.0.1"]).await?, version);

    gated.come_back(&stage.fixture)?;
    assert_eq!(stage.answers_again("wide", "digits-wide").await?, version);
    let loaded = wide.reaches(LOADED).await?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    Ok(())
}

#[tokio::test]
async fn an_inference_service_stays_on_standby_while_its_store_is_away() -> Result<()> {
    stays_on_standby_while_its_store_is_away(Form::Service).await
}

#[tokio::test]
async fn a_predictor_stays_on_standby_while_its_store_is_away() -> Result<()> {
    stays_on_standby_while_its_store_is_away(Form::Predictor).await
}
