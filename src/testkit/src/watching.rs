//! A watch of one resource, as a client of the resource API keeps it: every status that was ever published, in order.
//!
//! It begins at a version that was read before, so that nothing is missed however late `curl` comes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::get;
use crate::{Berth, Process, Standing};

/// A watch under way. Ends when dropped.
pub struct Watch {
    process: Process,
    told: Vec<Told>,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub struct Told {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub event: String,
    /// The whole resource as of then.
    pub resource: Value,
}

impl Watch {
    /// Watches `name` in the collection at `path` for what happens from now on.
    ///
    /// # Errors
    /// When the collection cannot be listed, or there is no curl.
    pub async fn start(berth: &Berth, path: &str, name: &str) -> Result<Self> {
        let list = get(&berth.api(path)).await?.good()?;
        let version = list["metadata"]["resourceVersion"].as_str().with_context(|| format!("no version in {}", list["metadata"]))?;
        let url = berth.api(&format!("{path}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3D{name}"));
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--no-buffer", &url]);
        Ok(Watch { process: Process::start(format!("a watch of {name}"), curl)?, told: Vec::new() })
    }

    /// The next event that `wanted` accepts, of those that come after the last one returned from here.
    ///
    /// # Errors
    /// When it has not come after `within`, with what came instead.
    pub async fn until(&mut self, what: &str, within: Duration, wanted: impl Fn(&Told) -> bool) -> Result<Told> {
        let seen = self.told.last().map_or(0, Told::version);
        let next = |line: &str| Told::read(line).ok().filter(|told| told.version() > seen);
        let found = self.process.line(what, within, |line| next(line).is_some_and(|told| wanted(&told))).await;
        // A stream in order: what stands before the wanted line belongs to the story, what follows it is still to come.
        let last = found.as_deref().ok().map(Told::read).transpose()?.map(|told| told.version());
        for line in self.process.out().lines() {
            let told = Told::read(line)?;
            if told.version() > seen && last.is_none_or(|last| told.version() <= last) {
                self.told.push(told);
            }
        }
        match (found, self.told.last()) {
            (Ok(_), Some(told)) => Ok(told.clone()),
            (Ok(_), None) => bail!("an event was told and is not there"),
            (Err(_), _) => bail!("waited {within:?} for {what}, was told\n  {}\n{}", self.rows().join("\n  "), self.process.errors()),
        }
    }

    /// Every event up to the last one that was waited for.
    #[must_use]
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// How the resource stood from event to event, each [`Told::row`] once as long as it lasted.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self.told.iter().map(Told::row).collect();
        rows.dedup();
        rows
    }
}

impl Told {
    fn read(line: &str) -> Result<Self> {
        let mut event: Value = serde_json::from_str(line).with_context(|| format!("not an event: {line}"))?;
        Ok(Told { event: event["type"].as_str().unwrap_or_default().to_owned(), resource: event["object"].take() })
    }

    fn version(&self) -> u64 {
        self.resource["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok()).unwrap_or(0)
    }

    /// The status in one line: the state of the active model and that of the target, the transition, availability, failed
    /// and loaded copies, and the reason of the last failure. `Loaded -> Loading, InProgress, available, 0/1`, for example.
    #[must_use]
    pub fn row(&self) -> String {
        if self.event == "DELETED" {
            return "deleted".to_owned();
        }
        let Ok(standing) = Standing::of(&self.resource) else { return format!("not a model: {}", self.resource) };
        let status = &self.resource["status"];
        if status.is_null() {
            return "no status".to_owned();
        }
        let failed = [&status["failedCopies"], &status["modelStatus"]["copies"]["failedCopies"]].into_iter().find_map(Value::as_u64);
        let mut row = standing.active;
        if !standing.target.is_empty() {
            row.push_str(" -> ");
            row.push_str(&standing.target);
        }
        let available = if standing.available { "available" } else { "not available" };
        row.push_str(&format!(", {}, {available}, {}/{}", standing.transition, failed.unwrap_or(0), standing.copies));
        if !standing.reason.is_empty() {
            row.push_str(", ");
            row.push_str(&standing.reason);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_all_that_a_status_says() {
        let row = |event: &str, resource: Value| Told { event: event.to_owned(), resource }.row();
        let blocked = json!({"kind": "Predictor", "status": {
            "available": true, "transitionStatus": "BlockedByFailedLoad", "activeModelState": "Loaded", "targetModelState": "FailedToLoad",
            "failedCopies": 1, "totalCopies": 2, "lastFailureInfo": {"reason": "ModelLoadFailed"},
        }});
        assert_eq!(row("MODIFIED", blocked.clone()), "Loaded -> FailedToLoad, BlockedByFailedLoad, available, 1/2, ModelLoadFailed");
        assert_eq!(row("DELETED", blocked), "deleted");
        let loading = json!({"kind": "InferenceService", "status": {"modelStatus": {
            "transitionStatus": "UpToDate", "states": {"activeModelState": "Loading"}, "copies": {"failedCopies": 0},
        }}});
        assert_eq!(row("MODIFIED", loading), "Loading, UpToDate, not available, 0/0");
        assert_eq!(row("ADDED", json!({"kind": "InferenceService"})), "no status");
    }
}
