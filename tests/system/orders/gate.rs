//! A store that a test holds up: loads from it stay under way for as long as the test likes, or find nobody there.

use anyhow::{Context, Result};
use berth_testkit::{Gateway, Relay, Transport, free_port};
use serde_json::json;

use super::Model;
use crate::fixture::{Fixture, SOON};

/// The storage key.
const KEY: &str = "gated";

/// A real S3 server that holds the examples, behind a gate.
pub(super) struct Gated {
    gateway: Gateway,
    relay: Relay,
}

impl Gated {
    /// Starts the server, with the gate closed, and writes the storage key `gated`.
    pub(super) async fn closed(fixture: &Fixture) -> Result<Self> {
        let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
        gateway.put_folder(&fixture.quickstart.models()).await?;
        let entry = gateway.storage_entry();
        let address = entry["endpoint_url"].as_str().and_then(|url| url.strip_prefix("http://")).context("a plain endpoint")?;
        let relay = Relay::start(address.parse()?).await?;
        relay.hold();
        let gated = Gated { gateway, relay };
        gated.come_back(fixture)?;
        Ok(gated)
    }

    /// Lets through what waits and what comes.
    pub(super) fn open(&self) {
        self.relay.release();
    }

    /// Waits until a load stands before the closed gate.
    pub(super) async fn is_asked(&self) -> Result<()> {
        self.relay.until("a load at the gate", SOON, |traffic| traffic.held > 0).await?;
        Ok(())
    }

    /// From now on nobody is where the storage key points to.
    pub(super) fn leave(&self, fixture: &Fixture) -> Result<()> {
        self.point(fixture, &format!("127.0.0.1:{}", free_port()))
    }

    /// The storage key points to the gate again.
    pub(super) fn come_back(&self, fixture: &Fixture) -> Result<()> {
        self.point(fixture, &self.relay.address().to_string())
    }

    fn point(&self, fixture: &Fixture, address: &str) -> Result<()> {
        let mut entry = self.gateway.storage_entry();
        entry["endpoint_url"] = json!(format!("http://{address}"));
        fixture.storage(KEY, &entry)
    }
}

/// The model at `path` behind the gate.
pub(super) fn behind(path: &'static str) -> Model {
    Model { key: Some(KEY), ..Model::at(path) }
}
