//! Models move between Loaded and Standby by use when not all fit at once.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_testkit::{Berth, Transport, http};

use crate::answers::right_through_every_client;
use crate::fixture::{Fixture, ROOMY, SOON, service};

/// Room for each example alone, not for all of them: the quickstart's own budget.
pub(crate) const TIGHT: &str = "2.5MiB";

/// A model that had to make room is left alone for half a minute before it is loaded again without being asked for.
const WARM: Duration = Duration::from_secs(90);

async fn in_state(fixture: &Fixture, berth: &Berth, state: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in fixture.quickstart.names()? {
        if berth.standing(&name).await?.active == state {
            found.insert(name);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn every_example_answers_rightly_again_after_it_had_to_make_room() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(TIGHT).start().await?;
    let mut were_on_standby = BTreeSet::new();
    for _round in 0..2 {
        for name in fixture.quickstart.names()? {
            berth.answers(&fixture.quickstart, &name).await?;
            let standing = berth.stands(&name, SOON, |standing| standing.active == "Loaded").await?;
            assert!(standing.available && standing.copies == 1, "{name}: {standing:?}");
            were_on_standby.extend(in_state(&fixture, &berth, "Standby").await?);
        }
    }
    // The one that is too large to stay beside the others had to go at least once, and came back.
    assert!(were_on_standby.contains("digits-wide"), "nothing made room for anything: only {were_on_standby:?} were on Standby");
    assert!(berth.metric("berth_evictions_total").await? > 0.0, "models went to Standby, no eviction was counted");
    right_through_every_client(&fixture, &berth).await
}

#[tokio::test]
async fn a_model_on_standby_is_loaded_by_itself_when_room_appears() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    // Room for the largest and some of the small ones, not for all of those.
    let berth = fixture.serve("1.6MiB").start().await?;
    let large = ["digits-deep", "digits-denoise", "digits-wide"];
    for name in large {
        berth.answers(&fixture.quickstart, name).await?;
    }
    let on_standby = in_state(&fixture, &berth, "Standby").await?;
    let small = on_standby.iter().find(|name| !large.contains(&name.as_str())).context("every small model stayed")?;
    assert_eq!(berth.standing(small).await?.copies, 0, "{small}");
    for name in large {
        fs::remove_file(fixture.manifests().join(name).with_extension("yaml"))?;
    }
    let requests = berth.metric("berth_requests_total").await?;
    let standing = berth.stands(small, WARM, |standing| standing.active == "Loaded" && standing.copies == 1).await?;
    assert_eq!((standing.transition.as_str(), standing.available), ("UpToDate", true), "{standing:?}");
    assert_eq!(berth.metric("berth_requests_total").await?, requests, "somebody asked for a model");
    Ok(())
}

#[tokio::test]
async fn all_examples_are_loaded_where_all_fit() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    for name in fixture.quickstart.names()? {
        let standing = berth.stands(&name, SOON, |standing| standing.active == "Loaded").await?;
        assert_eq!((standing.transition.as_str(), standing.copies, standing.reason.as_str()), ("UpToDate", 1, ""), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_budget_that_holds_some_of_the_models_serves_all_of_them() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    // Declared so large that one is loaded at a time: the files of loaded models stay, the others' may go.
    let names = fixture.quickstart.names()?;
    for name in &names {
        let declared = service(name, "quickstart", name).replace("  annotations:", "  annotations:\n    berth/model-size: 2Mi");
        fixture.manifest(&format!("{name}.yaml"), &declared)?;
    }
    // Any two of the models, not the three large ones.
    let berth = fixture.serve(TIGHT).flag("--disk", "2MiB").start().await?;
    for _round in 0..2 {
        fixture.all_answer(&berth).await?;
    }
    let fetched = berth.metric("berth_fetched_objects_total").await?;
    assert!(fetched > names.len() as f64, "{fetched} objects were fetched for {} models: nothing had to go", names.len());
    Ok(())
}

#[tokio::test]
async fn many_callers_of_models_that_do_not_fit_together_are_all_answered() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(TIGHT).start().await?;
    let names = fixture.quickstart.names()?;
    // Each caller starts at another model, so that at every moment most of them want something that is not loaded.
    let mut callers = Vec::new();
    for first in 0..names.len() {
        let (names, quickstart, rest) = (names.clone(), fixture.quickstart.clone(), berth.rest());
        callers.push(tokio::spawn(async move {
            for step in 0..2 * names.len() {
                let name = &names[(first + step) % names.len()];
                let reply = http::post(&format!("http://{rest}/v2/models/{name}/infer"), quickstart.request(name)?).await?;
                quickstart.check(name, &reply.good()?)?;
            }
            Ok::<_, anyhow::Error>(())
        }));
    }
    for caller in callers {
        caller.await??;
    }
    Ok(())
}
