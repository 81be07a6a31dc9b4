//! What a bad way to the store does to a download: nothing, but for the time that it takes.

use std::fs;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Result;
use berth_testkit::{Berth, Gateway, Pace, Relay, Stored, Transport};
use serde_json::json;

use super::{LATER, MODEL, answers, bytes, fails_with, fetched, holds, onnx, serves};
use crate::fixture::{Fixture, ROOMY};

/// Of the larger file that lies beside the model.
const SIZE: usize = 24 << 20;
const MIB: u64 = 1 << 20;

/// A model with a larger file beside it, in a store that is reached through a relay. A test that does something in the
/// middle of the download spawns Berth: what says that it is ready waits for the download.
struct Way {
    fixture: Fixture,
    gateway: Gateway,
    relay: Relay,
}

impl Way {
    async fn new() -> Result<Self> {
        let fixture = Fixture::empty()?;
        let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
        let relay = Relay::start(gateway.address()).await?;
        let mut entry = gateway.storage_entry();
        entry["endpoint_url"] = json!(gateway.endpoint_at(relay.address()));
        fixture.storage("store", &entry)?;
        fixture.service(MODEL, "store", MODEL)?;
        gateway.put("iris/model.onnx", &onnx(&fixture)).await?;
        let way = Way { fixture, gateway, relay };
        way.put(1).await?;
        Ok(way)
    }

    /// Puts the larger file there, with the bytes of `seed`.
    async fn put(&self, seed: u64) -> Result<()> {
        let file = self.fixture.path("ballast");
        fs::write(&file, bytes(SIZE, seed))?;
        self.gateway.put_as(&self.fixture.parts, "iris/ballast.bin", &file, Stored::WholeWith("CRC64NVME")).await?;
        Ok(())
    }

    async fn serves(&self, berth: &Berth) -> Result<()> {
        serves(&self.fixture, berth, MODEL).await?;
        holds(&self.fixture, "ballast.bin", &bytes(SIZE, 1))
    }

    /// Bytes that came from the store so far.
    fn passed(&self) -> u64 {
        self.relay.traffic().to_clients
    }

    /// Slow enough to do something before it is over, fast enough to wait for it.
    fn slow(&self) {
        self.relay.pace(Pace { delay: Duration::ZERO, rate: NonZeroU64::new(MIB / 2) });
    }

    fn fast(&self) {
        self.relay.pace(Pace::default());
    }
}

#[tokio::test]
async fn a_burst_of_503_is_waited_out() -> Result<()> {
    let way = Way::new().await?;
    way.relay.refuse(3, 503);
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    assert_eq!(way.relay.traffic().refused, 3);
    Ok(())
}

#[tokio::test]
async fn a_burst_of_503_in_the_middle_costs_little() -> Result<()> {
    let way = Way::new().await?;
    way.slow();
    let berth = way.fixture.serve(ROOMY).spawn()?;
    way.relay.until("a part of the download", LATER, |traffic| traffic.to_clients > 4 * MIB).await?;
    way.relay.refuse(3, 503);
    way.fast();
    // What was under way is asked for again.
    way.relay.cut();
    way.serves(&berth).await?;
    let (passed, refused) = (way.passed(), way.relay.traffic().refused);
    assert_eq!(refused, 3);
    assert!(passed < SIZE as u64 + 10 * MIB, "{passed} bytes for {SIZE}");
    Ok(())
}

#[tokio::test]
async fn a_store_that_only_says_503_is_given_up_with_its_name_and_status() -> Result<()> {
    let way = Way::new().await?;
    way.relay.refuse(1_000_000, 503);
    let berth = way.fixture.serve(ROOMY).start().await?;
    fails_with(&berth, MODEL, &["HTTP 503", Gateway::BUCKET, &way.relay.address().to_string()]).await?;
    // It comes back.
    way.relay.refuse(0, 503);
    super::answers_in_the_end(&way.fixture, &berth, MODEL).await
}

#[tokio::test]
async fn connections_that_are_cut_again_and_again_cost_little() -> Result<()> {
    let way = Way::new().await?;
    way.relay.cut_each_after(Some(5 * MIB));
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    let (passed, connections) = (way.passed(), way.relay.traffic().connections);
    assert!(connections >= 5, "{connections} connections");
    assert!(passed < 2 * SIZE as u64, "{passed} bytes for {SIZE}");
    Ok(())
}

#[tokio::test]
async fn a_slow_store_is_not_a_dead_one() -> Result<()> {
    let way = Way::new().await?;
    // Longer than the store may be silent: what counts is the silence.
    way.relay.pace(Pace { delay: Duration::ZERO, rate: NonZeroU64::new(512 << 10) });
    let berth = way.fixture.serve(ROOMY).spawn()?;
    way.serves(&berth).await
}

#[tokio::test]
async fn a_far_store_is_not_a_slow_one() -> Result<()> {
    let way = Way::new().await?;
    let far = Relay::start_far(way.gateway.address(), Duration::from_millis(20)).await?;
    let mut entry = way.gateway.storage_entry();
    entry["endpoint_url"] = json!(way.gateway.endpoint_at(far.address()));
    way.fixture.storage("store", &entry)?;
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await
}

#[tokio::test]
async fn a_body_that_ends_early_is_completed() -> Result<()> {
    let way = Way::new().await?;
    way.relay.truncate_next(MIB);
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    let passed = way.passed();
    assert!(passed < SIZE as u64 + 9 * MIB, "{passed} bytes for {SIZE}");
    Ok(())
}

#[tokio::test]
async fn a_killed_download_goes_on_after_the_restart() -> Result<()> {
    let way = Way::new().await?;
    way.slow();
    let mut berth = way.fixture.serve(ROOMY).spawn()?;
    way.relay.until("half of the download", LATER, |traffic| traffic.to_clients > SIZE as u64 / 2).await?;
    berth.process().kill().await?;
    way.relay.until("the end of its connections", LATER, |traffic| traffic.open == 0).await?;
    let before = way.passed();
    way.fast();
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    let again = way.passed() - before;
    // What was on its way when it was killed: a piece of each connection.
    assert!(again < SIZE as u64 - before + 10 * MIB, "{before} bytes of {SIZE} before, {again} after");
    Ok(())
}

#[tokio::test]
async fn what_is_on_the_disk_is_not_fetched_again_after_a_restart() -> Result<()> {
    let way = Way::new().await?;
    let mut berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    berth.process().kill().await?;
    let before = way.passed();
    let berth = way.fixture.serve(ROOMY).start().await?;
    way.serves(&berth).await?;
    let again = way.passed() - before;
    assert!(again < MIB, "{again} bytes were fetched again");
    Ok(())
}

#[tokio::test]
async fn an_object_that_changes_on_the_way_is_served_in_one_version() -> Result<()> {
    let way = Way::new().await?;
    way.slow();
    let berth = way.fixture.serve(ROOMY).spawn()?;
    way.relay.until("a part of the download", LATER, |traffic| traffic.to_clients > 6 * MIB).await?;
    way.put(2).await?;
    let passed = way.passed();
    assert!(passed < SIZE as u64, "the download was over before the object changed");
    way.fast();
    // The connections that bring the old version end: what comes next asks for a version that is there no more.
    way.relay.cut();
    serves(&way.fixture, &berth, MODEL).await?;
    holds(&way.fixture, "ballast.bin", &bytes(SIZE, 2))
}

#[tokio::test]
async fn an_object_that_goes_away_on_the_way_is_not_waited_for() -> Result<()> {
    let way = Way::new().await?;
    way.slow();
    let berth = way.fixture.serve(ROOMY).spawn()?;
    way.relay.until("a part of the download", LATER, |traffic| traffic.to_clients > 6 * MIB).await?;
    fs::remove_file(way.gateway.file("iris/ballast.bin"))?;
    way.fast();
    way.relay.cut();
    // What is listed now is the model without it.
    serves(&way.fixture, &berth, MODEL).await?;
    assert!(fetched(&way.fixture, "ballast.bin").is_err());
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_held_up_and_then_goes_on_loses_nothing() -> Result<()> {
    let way = Way::new().await?;
    way.slow();
    let berth = way.fixture.serve(ROOMY).spawn()?;
    way.relay.until("a part of the download", LATER, |traffic| traffic.to_clients > 4 * MIB).await?;
    way.relay.hold();
    way.relay.until("connections that wait", LATER, |traffic| traffic.held > 0).await?;
    way.relay.cut();
    way.fast();
    way.relay.release();
    way.serves(&berth).await?;
    answers(&way.fixture, &berth, MODEL).await
}
