//! A server for tests of this module, which reads the configuration file and does as it is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use berth_telemetry::Clock;
use berth_types::Deadline;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::rest::{Answer, Api};
use crate::layout::ovms;
use crate::rpc::RpcError;

/// A model whose folder's name ends so cannot be loaded, or only when [`Scripted::let_in`] was called.
pub(super) const BROKEN: &str = "-broken";
pub(super) const SLOW: &str = "-slow";

/// Where slow models wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    OpenOnce,
    Shut,
}

pub(super) struct Scripted {
    file: PathBuf,
    clock: Clock,
    one_at_a_time: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
    door: watch::Sender<Door>,
}

#[derive(Default)]
struct Seen {
    states: BTreeMap<String, Value>,
    /// What each reload found in the file.
    reloads: Vec<Vec<String>>,
    /// The answer of a reload gets lost, though its work is done.
    loses_answers: bool,
    /// It is not there at all.
    away: bool,
}

fn status(state: &str, code: &str, message: &str) -> Value {
    json!({"model_version_status": [{"version": "1", "state": state, "status": {"error_code": code, "error_message": message}}]})
}

impl Scripted {
    pub(super) fn new(file: PathBuf, clock: Clock) -> Arc<Self> {
        let door = watch::Sender::new(Door::Open);
        Arc::new(Scripted { file, clock, one_at_a_time: tokio::sync::Mutex::default(), seen: Mutex::default(), door })
    }

    /// Slow models wait at the door.
    pub(super) fn shut(&self) {
        self.door.send_replace(Door::Shut);
    }

    pub(super) fn let_in(&self) {
        self.door.send_replace(Door::Open);
    }

    /// The slow model that waits, or else the next one; then the door is shut again.
    pub(super) fn let_one_in(&self) {
        self.door.send_replace(Door::OpenOnce);
    }

    pub(super) fn lose_answers(&self, lose: bool) {
        self.seen.lock().loses_answers = lose;
    }

    /// Ends it, or starts it anew: it holds nothing, and reads the file.
    pub(super) fn be_away(&self, away: bool) {
        let mut seen = self.seen.lock();
        (seen.away, seen.states) = (away, BTreeMap::new());
    }

    pub(super) fn reloads(&self) -> Vec<Vec<String>> {
        self.seen.lock().reloads.clone()
    }

    /// The models that can be asked.
    pub(super) fn available(&self) -> Vec<String> {
        let seen = self.seen.lock();
        let available = seen.states.iter().filter(|(_, state)| state["model_version_status"][0]["state"] == "AVAILABLE");
        available.map(|(name, _)| name.clone()).collect()
    }

    /// Completes when a reload has begun that waits at the door.
    pub(super) async fn at_the_door(&self) {
        while !self.seen.lock().states.values().any(|state| state["model_version_status"][0]["state"] == "START") {
            self.clock.sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn set(&self, name: &str, state: Value) {
        self.seen.lock().states.insert(name.to_owned(), state);
    }

    fn refuses(&self) -> Result<(), RpcError> {
        if self.seen.lock().away { Err(RpcError::Away("refused".to_owned())) } else { Ok(()) }
    }

    async fn reload(&self) -> Result<Answer, RpcError> {
        let _turn = self.one_at_a_time.lock().await;
        let wanted = ovms::models(&std::fs::read(&self.file).expect("the file is there")).expect("it is whole");
        let mut leaving = Vec::new();
        {
            let mut seen = self.seen.lock();
            seen.reloads.push(wanted.keys().cloned().collect());
            leaving.extend(seen.states.keys().filter(|name| !wanted.contains_key(*name)).cloned());
        }
        for name in leaving {
            self.set(&name, status("END", "OK", "OK"));
        }
        let mut all = true;
        let held = self.available();
        for (name, _) in wanted.iter().filter(|(name, _)| !held.contains(name)) {
            self.set(name, status("START", "OK", "OK"));
        }
        // The quick ones first, so that a test can see who waits for whom.
        let mut names: Vec<&String> = wanted.keys().filter(|name| !held.contains(name)).collect();
        names.sort_by_key(|name| name.ends_with(SLOW));
        for name in names {
            if name.ends_with(SLOW) {
                let _ = self.door.subscribe().wait_for(|door| *door != Door::Shut).await;
                self.door.send_if_modified(|door| {
                    let once = *door == Door::OpenOnce;
                    *door = if once { Door::Shut } else { *door };
                    once
                });
            }
            if self.seen.lock().away {
                return Err(RpcError::Away("reset".to_owned()));
            }
            let broken = name.ends_with(BROKEN);
            all &= !broken;
            self.set(name, if broken { status("LOADING", "UNKNOWN", "no such network") } else { status("AVAILABLE", "OK", "OK") });
        }
        if all {
            return Ok(Answer { status: 201, body: self.body() });
        }
        Ok(Answer { status: 400, body: Bytes::from_static(include_bytes!("golden/error.json")) })
    }

    fn body(&self) -> Bytes {
        json!(self.seen.lock().states).to_string().into()
    }
}

#[async_trait]
impl Api for Scripted {
    async fn config(&self, _deadline: Deadline) -> Result<Answer, RpcError> {
        self.refuses()?;
        Ok(Answer { status: 200, body: self.body() })
    }

    async fn reload(&self, deadline: Deadline) -> Result<Answer, RpcError> {
        self.refuses()?;
        if self.seen.lock().loses_answers {
            // The server goes on with what it was told.
            self.clock.until(self.clock.deadline_in(std::time::Duration::from_millis(50)), self.reload()).await;
            return Err(RpcError::Away("reset".to_owned()));
        }
        self.clock.until(deadline, self.reload()).await.unwrap_or(Err(RpcError::Late))
    }
}
