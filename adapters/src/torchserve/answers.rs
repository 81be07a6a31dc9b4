//! What TorchServe says in JSON: which models it has, and what their workers take.

use berth_types::ByteSize;
use serde::{Deserialize, Deserializer};

/// One page of the models that are registered.
#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct Page {
    #[serde(default)]
    models: Vec<Listed>,
    /// Where the next page begins; absent on the last one. It is a text that holds a number.
    #[serde(default, rename = "nextPageToken", deserialize_with = "token")]
    pub(super) next: Option<i32>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Listed {
    #[serde(rename = "modelName")]
    name: String,
}

impl Page {
    /// # Errors
    /// What is wrong with the answer.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|fault| fault.to_string())
    }

    pub(super) fn names(self) -> impl Iterator<Item = String> {
        self.models.into_iter().map(|model| model.name)
    }
}

fn token<'de, D: Deserializer<'de>>(given: D) -> Result<Option<i32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Number(i32),
        Text(String),
    }
    let number = match Option::<Token>::deserialize(given)? {
        None => return Ok(None),
        Some(Token::Number(number)) => number,
        Some(Token::Text(text)) => text.parse().map_err(serde::de::Error::custom)?,
    };
    // The server says 0 where there is no more.
    Ok((number > 0).then_some(number))
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    workers: Vec<Worker>,
}

#[derive(Deserialize)]
struct Worker {
    /// Bytes; 0 until the server has measured its workers for the first time.
    #[serde(default, rename = "memoryUsage")]
    memory: i64,
}

/// What a model's workers take together, with a tenth on top for what requests need; `None` until the server has measured each.
pub(super) fn taken(text: &str) -> Option<ByteSize> {
    let versions: Vec<Version> = serde_json::from_str(text).ok()?;
    let workers = versions.into_iter().flat_map(|version| version.workers);
    let each: Option<Vec<u64>> = workers.map(|worker| u64::try_from(worker.memory).ok().filter(|bytes| *bytes > 0)).collect();
    let sum = each.filter(|each| !each.is_empty())?.into_iter().fold(0, u64::saturating_add);
    Some(ByteSize(sum.saturating_add(sum / 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As TorchServe 0.12 writes it.
    const DESCRIBED: &str = r#"[
  {
    "modelName": "m", "modelVersion": "1.0", "modelUrl": "m.mar", "runtime": "python", "minWorkers": 1, "maxWorkers": 1, "batchSize": 1,
    "maxBatchDelay": 100, "responseTimeout": 120, "deviceType": "cpu", "loadedAtStartup": false,
    "workers": [
      { "id": "9002", "startTime": "2026-11-23T00:15:10.900Z", "status": "READY", "memoryUsage": 251834368, "pid": 11739, "gpu": false, "gpuUsage": "N/A" }
    ],
    "jobQueueStatus": { "remainingCapacity": 100, "pendingRequests": 0 }
  }
]"#;

    #[test]
    fn a_size_is_what_all_workers_take_and_a_tenth_or_unknown() {
        for (case, text, expected) in [
            ("as the server writes it", DESCRIBED, Some(277_017_804)),
            ("the contract's example", r#"[{"workers":[{"memoryUsage":11111}]}]"#, Some(12_222)),
            ("two workers", r#"[{"workers":[{"memoryUsage":100},{"memoryUsage":300}]}]"#, Some(440)),
            ("one of two is not measured yet: half a size is none", r#"[{"workers":[{"memoryUsage":100},{"memoryUsage":0}]}]"#, None),
            ("not measured yet", r#"[{"workers":[{"memoryUsage":0}]}]"#, None),
            ("no workers", r#"[{"workers":[]}]"#, None),
            ("nothing", "[]", None),
            ("garbage", "{{", None),
        ] {
            assert_eq!(taken(text), expected.map(ByteSize), "{case}");
        }
    }

    #[test]
    fn pages_follow_each_other_by_a_token_that_is_a_text() {
        for (case, text, next, names) in [
            ("nothing", r#"{"models": []}"#, None, vec![]),
            ("the last page", r#"{"models": [{"modelName": "a/b", "modelUrl": "a~2Fb.mar"}]}"#, None, vec!["a/b"]),
            ("more to come", r#"{"nextPageToken": "1", "models": [{"modelName": "a", "modelUrl": "a.mar"}]}"#, Some(1), vec!["a"]),
            ("a number would do", r#"{"nextPageToken": 500, "models": []}"#, Some(500), vec![]),
            ("a token that leads nowhere", r#"{"nextPageToken": "0", "models": []}"#, None, vec![]),
        ] {
            let page = Page::read(text).expect(case);
            assert_eq!(page.next, next, "{case}");
            assert_eq!(page.names().collect::<Vec<_>>(), names, "{case}");
        }
        assert!(Page::read("<html>").is_err() && Page::read(r#"{"nextPageToken": "x"}"#).is_err());
    }
}
