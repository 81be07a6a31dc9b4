//! What is being fetched, as the server tells it: read once, or followed for as long as a command runs.
//!
//! It is a help for a person and never more: a server that does not tell, a cluster for one, is no fault.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_registry::Kind;
use http::Method;
use serde_json::Value;

use super::client::Client;
use super::resource::{self, Standing, text};
use super::watch::{Lines, WATCH_LASTS, WATCH_PAUSES};

/// Where the server tells what it fetches.
const PATH: &str = "/berth/v1/downloads";

/// One download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Download {
    /// The id of the version that is being fetched.
    pub(crate) model: String,
    /// How far it is, in the server's words.
    pub(crate) summary: String,
}

/// The downloads under way, by kind and name of their resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Downloads(BTreeMap<(String, String), Download>);

impl Downloads {
    /// Reads the server's document. Of several versions of one resource the last one counts: it began last.
    pub(crate) fn read(document: &Value) -> Self {
        let items = document["items"].as_array().into_iter().flatten();
        let read = |item| {
            let text = |member| text(item, &[member]).map(str::to_owned);
            Some(((text("kind")?, text("name")?), Download { model: text("model")?, summary: text("summary")? }))
        };
        Downloads(items.filter_map(read).collect())
    }

    /// The download for `resource`, if the resource waits for one.
    pub(crate) fn of(&self, kind: Kind, resource: &Value) -> Option<&Download> {
        if self.0.is_empty() || !may_wait(kind, resource) {
            return None;
        }
        self.0.get(&(kind.as_str().to_owned(), resource::name(resource).to_owned()))
    }
}

/// False for a resource that is where it should be, or waits for something else than its model: so nothing is asked for it.
pub(crate) fn may_wait(kind: Kind, resource: &Value) -> bool {
    let is_model = matches!(kind, Kind::InferenceService | Kind::Predictor);
    if !is_model || !resource::is_managed(kind, resource) {
        return false;
    }
    let standing = Standing::of(kind, resource);
    let settled = matches!(standing.state, Some("Loaded" | "Standby")) && standing.target.is_none();
    !settled && !standing.name_is_taken()
}

/// What is being fetched now; nothing where the server does not tell.
pub(crate) async fn now(client: &Client) -> Downloads {
    client.json(Method::GET, PATH, None).await.map(|document| Downloads::read(&document)).unwrap_or_default()
}

/// The downloads as they go on.
pub(crate) struct Following<'c> {
    client: &'c Client,
    lines: Option<Lines>,
    /// Attempts since something was last heard.
    attempts: u32,
}

impl<'c> Following<'c> {
    /// Begins with the first call of [`Following::next`].
    pub(crate) fn new(client: &'c Client) -> Self {
        Following { client, lines: None, attempts: 0 }
    }

    /// What is being fetched when it has changed. Waits for ever where the server does not tell. May be dropped while it
    /// waits.
    pub(crate) async fn next(&mut self) -> Downloads {
        loop {
            let clock = self.client.clock();
            let Some(lines) = &mut self.lines else {
                if let Some(doublings) = self.attempts.checked_sub(1) {
                    clock.sleep(WATCH_PAUSES[0].saturating_mul(1 << doublings.min(10)).min(WATCH_PAUSES[1])).await;
                }
                self.attempts = self.attempts.saturating_add(1);
                match self.client.stream(&path(WATCH_LASTS)).await {
                    Ok(body) => self.lines = Some(Lines::new(body, clock)),
                    // Refused for good: by a server of another make, or one that has no such thing.
                    Err(fault) if !fault.may_pass() => std::future::pending().await,
                    Err(_away) => {}
                }
                continue;
            };
            match clock.until(lines.until(), lines.next()).await {
                Some(Some(document)) => {
                    self.attempts = 0;
                    return Downloads::read(&document);
                }
                Some(None) | None => self.lines = None,
            }
        }
    }
}

fn path(lasts: Duration) -> String {
    format!("{PATH}?watch=true&timeoutSeconds={}", lasts.as_secs())
}

#[cfg(test)]
mod tests {
    use berth_telemetry::Clock;
    use serde_json::json;

    use super::*;
    use crate::cli::client::Server;
    use crate::cli::resource::recorded;
    use crate::cli::testing::{scripted, whole};

    fn document(percent: u8) -> Value {
        let item = |model: &str, name: &str, summary: String| json!({ "model": model, "kind": "InferenceService", "name": name, "summary": summary });
        json!({ "items": [
            item("iris__isvc-1", "iris", "1%".to_owned()), item("iris__isvc-2", "iris", format!("{percent}%")), { "model": "strange", "summary": "x" },
        ] })
    }

    #[test]
    fn a_download_is_shown_at_who_waits_for_it() {
        let downloads = Downloads::read(&document(45));
        let with = |state: &str, target: &str| {
            let mut service = recorded::loaded("iris");
            service["status"]["modelStatus"]["states"] = json!({ "activeModelState": state, "targetModelState": target });
            service
        };
        let nothing_yet = json!({ "metadata": recorded::loaded("iris")["metadata"] });
        let mut taken = recorded::name_taken(Kind::InferenceService);
        taken["metadata"]["name"] = "iris".into();
        let mut other = with("Loading", "");
        other["metadata"]["annotations"] = Value::Null;
        let download = Download { model: "iris__isvc-2".to_owned(), summary: "45%".to_owned() };
        for (case, kind, resource, expected) in [
            ("it loads", Kind::InferenceService, with("Loading", ""), Some(&download)),
            ("its target loads", Kind::InferenceService, with("Loaded", "Loading"), Some(&download)),
            ("it is tried again", Kind::InferenceService, with("FailedToLoad", ""), Some(&download)),
            ("nothing is said yet", Kind::InferenceService, nothing_yet, Some(&download)),
            ("it is there", Kind::InferenceService, with("Loaded", ""), None),
            ("it waits for its name", Kind::InferenceService, taken, None),
            ("it is somebody else's", Kind::InferenceService, other, None),
            ("another kind of that name", Kind::Predictor, with("Loading", ""), None),
        ] {
            assert_eq!(downloads.of(kind, &resource), expected, "{case}");
        }
        assert_eq!(Downloads::read(&json!({})), Downloads::default());
    }

    fn stream(documents: &[Value]) -> String {
        let text: String = documents.iter().map(|document| format!("{document}\n")).collect();
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n", text.len())
    }

    #[tokio::test]
    async fn downloads_are_followed_over_broken_connections_and_not_asked_for_where_nobody_tells() {
        let (addr, mut asks) = scripted(vec![stream(&[document(1), document(2)]), stream(&[document(3)])]).await;
        let client = Client::new(Server::parse(&addr.to_string(), "--server").expect("a server"), Clock::system());
        let mut following = Following::new(&client);
        let clock = Clock::system();
        for percent in 1..=3 {
            let next = clock.until(clock.deadline_in(Duration::from_secs(20)), following.next()).await;
            assert_eq!(next, Some(Downloads::read(&document(percent))));
        }
        assert!(asks.recv().await.is_some_and(|head| head.starts_with("GET /berth/v1/downloads?watch=true&timeoutSeconds=300 ")));

        let missing = whole(404, &json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "nothing there" }));
        let (addr, mut asks) = scripted(vec![missing.clone(), missing]).await;
        let client = Client::new(Server::parse(&addr.to_string(), "--server").expect("a server"), Clock::system());
        assert_eq!(now(&client).await, Downloads::default());
        let mut following = Following::new(&client);
        assert_eq!(clock.until(clock.deadline_in(Duration::from_millis(300)), following.next()).await, None);
        assert!(asks.recv().await.is_some() && asks.recv().await.is_some() && asks.try_recv().is_err(), "asked once each");
    }
}
