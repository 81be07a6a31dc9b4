//! Changes of resources as they happen, whatever becomes of the connection.
//!
//! A watch goes on after the last version that was seen; when that is too long ago, or a server has started anew, everything is
//! listed again and what differs from what was known is told. So nobody above here sees a connection, and no change of a
//! resource's last state is missed; states that came and went while nobody was connected may be.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use berth_types::Deadline;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

use super::client::{Client, Scope};
use super::fault::Fault;
use super::output::note;
use super::resource;

/// The server ends a watch after this time and we begin the next one: a connection that only seems to live is noticed.
pub(crate) const WATCH_LASTS: Duration = Duration::from_secs(300);
/// How long after that the client stops believing in the server.
const GRACE: Duration = Duration::from_secs(15);
/// How long a server may be away.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pauses between attempts double from the first to the second.
pub(crate) const WATCH_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The longest line that is read.
const LONGEST_LINE: usize = 16 << 20;

/// What happened to a resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// It is new, or it is like this now.
    Is(Value),
    /// It is gone; this is how it last was.
    Gone(Value),
}

/// Namespace and name.
type Key = (String, String);

/// A watch of some resources.
pub(crate) struct Watch<'c> {
    client: &'c Client,
    scope: Scope,
    known: BTreeMap<Key, Value>,
    version: String,
    coming: VecDeque<Change>,
    lines: Option<Lines>,
    /// Attempts since something was last heard.
    attempts: u32,
    /// Since when nobody answers.
    away: Option<Instant>,
}

impl<'c> Watch<'c> {
    /// Lists the resources of `scope` and watches them from then on.
    ///
    /// # Errors
    /// The list could not be had.
    pub(crate) async fn begin(client: &'c Client, scope: Scope) -> Result<(Vec<Value>, Self), Fault> {
        let (items, version) = client.list(&scope).await?;
        let known = items.iter().map(|item| (key(item), item.clone())).collect();
        Ok((items, Watch { client, scope, known, version, coming: VecDeque::new(), lines: None, attempts: 0, away: None }))
    }

    /// The next change. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// The server refuses, or has been away for too long.
    pub(crate) async fn next(&mut self) -> Result<Change, Fault> {
        loop {
            if let Some(change) = self.coming.pop_front() {
                return Ok(change);
            }
            let Some(lines) = &mut self.lines else {
                self.connect().await?;
                continue;
            };
            match self.client.clock().until(lines.until, lines.next()).await {
                Some(Some(event)) => self.take(event).await?,
                // Ended, broken or silent beyond its time: another one goes on where this one was.
                Some(None) | None => self.lines = None,
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Fault> {
        let clock = self.client.clock();
        if let Some(doublings) = self.attempts.checked_sub(1) {
            clock.sleep(WATCH_PAUSES[0].saturating_mul(1 << doublings.min(10)).min(WATCH_PAUSES[1])).await;
        }
        self.attempts = self.attempts.saturating_add(1);
        match self.client.watch(&self.scope, &self.version, WATCH_LASTS).await {
            Ok(body) => {
                if self.away.take().is_some() {
                    note(&format!("connected to {} again", self.client.server()));
                }
                self.lines = Some(Lines::new(body, clock));
                Ok(())
            }
            Err(fault) if fault.code() == Some(410) => self.list_again().await,
            Err(fault) => self.bear(fault),
        }
    }

    /// Everything is read once more, and what differs from what was known has changed.
    async fn list_again(&mut self) -> Result<(), Fault> {
        self.lines = None;
        let (items, version) = match self.client.list(&self.scope).await {
            Ok(listed) => listed,
            Err(fault) => return self.bear(fault),
        };
        let mut before = std::mem::take(&mut self.known);
        for item in items {
            let key = key(&item);
            let same = before.remove(&key).is_some_and(|old| is_same(&old, &item));
            self.known.insert(key, item.clone());
            if !same {
                self.coming.push_back(Change::Is(item));
            }
        }
        self.coming.extend(before.into_values().map(Change::Gone));
        self.version = version;
        Ok(())
    }

    /// A fault that may pass is borne for a while.
    fn bear(&mut self, fault: Fault) -> Result<(), Fault> {
        let now = self.client.clock().now();
        let first = self.away.is_none();
        let away = now.saturating_duration_since(*self.away.get_or_insert(now));
        if !fault.may_pass() || away >= PATIENCE {
            return Err(fault);
        }
        if first {
            note(&format!("lost the connection to {}, trying again for {}s", self.client.server(), PATIENCE.as_secs()));
        }
        Ok(())
    }

    async fn take(&mut self, mut event: Value) -> Result<(), Fault> {
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                self.advance(&object);
                let key = key(&object);
                // A version that was told before is told again where a watch begins a little too early.
                if self.known.get(&key).is_none_or(|known| is_newer(&object, known)) {
                    self.known.insert(key, object.clone());
                    self.coming.push_back(Change::Is(object));
                }
            }
            Some("DELETED") => {
                self.advance(&object);
                if self.known.remove(&key(&object)).is_some() {
                    self.coming.push_back(Change::Gone(object));
                }
            }
            Some("BOOKMARK") => self.advance(&object),
            Some("ERROR") if object["code"] == 410 => self.list_again().await?,
            Some("ERROR") => {
                self.lines = None;
                self.bear(Fault::of_status(&object))?;
            }
            // Nothing that a watch tells: the connection is not to be trusted.
            _ => self.lines = None,
        }
        Ok(())
    }

    fn advance(&mut self, object: &Value) {
        self.attempts = 0;
        let version = resource::version(object);
        if !version.is_empty() && number(version).is_none_or(|new| number(&self.version).is_none_or(|seen| new > seen)) {
            version.clone_into(&mut self.version);
        }
    }
}

fn key(object: &Value) -> Key {
    (resource::namespace(object).unwrap_or_default().to_owned(), resource::name(object).to_owned())
}

/// Versions are opaque by their definition and numbers in every server there is.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

fn is_same(one: &Value, other: &Value) -> bool {
    resource::version(one) == resource::version(other) && one["metadata"]["uid"] == other["metadata"]["uid"]
}

fn is_newer(new: &Value, known: &Value) -> bool {
    match (number(resource::version(new)), number(resource::version(known))) {
        (Some(new), Some(known)) => new > known,
        _ => !is_same(new, known),
    }
}

/// The lines of one answer.
pub(crate) struct Lines {
    body: Incoming,
    text: Vec<u8>,
    /// How much of the text holds no end of a line.
    searched: usize,
    until: Deadline,
}

impl Lines {
    /// The lines of an answer that lasts as long as a watch.
    pub(crate) fn new(body: Incoming, clock: &Clock) -> Self {
        Lines { body, text: Vec::new(), searched: 0, until: clock.deadline_in(WATCH_LASTS + GRACE) }
    }

    /// When the server is not believed in any more.
    pub(crate) fn until(&self) -> Deadline {
        self.until
    }

    /// The next line; `None` when there is none any more, or what comes is no line of a watch. What has come of a line
    /// stays here when this is dropped.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=self.searched + end).collect();
                self.searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).ok();
            }
            self.searched = self.text.len();
            if self.text.len() > LONGEST_LINE {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.text.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use berth_registry::Kind;
    use serde_json::json;

    use super::*;
    use crate::cli::client::Server;
    use crate::cli::testing::{scripted, whole};

    const SOON: Duration = Duration::from_secs(20);

    fn resource(name: &str, version: u64) -> Value {
        json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor",
                "metadata": { "name": name, "namespace": "default", "uid": name, "resourceVersion": version.to_string() } })
    }

    fn list(version: u64, items: &[Value]) -> String {
        whole(200, &json!({ "metadata": { "resourceVersion": version.to_string() }, "items": items }))
    }

    fn expired() -> Value {
        json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" })
    }

    /// The head of a watch and its first lines; the last one may be cut.
    fn stream(text: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n", text.len())
    }

    fn event(kind: &str, object: &Value) -> String {
        format!("{}\n", json!({ "type": kind, "object": object }))
    }

    fn client(addr: SocketAddr) -> Client {
        Client::new(Server::parse(&addr.to_string(), "--server").expect("a server"), Clock::system())
    }

    fn scope() -> Scope {
        Scope { kind: Kind::Predictor, namespace: Some("default".to_owned()), selector: None, name: None }
    }

    async fn next(watch: &mut Watch<'_>) -> String {
        let clock = Clock::system();
        let change = clock.until(clock.deadline_in(SOON), watch.next()).await.expect("no change in time").expect("no fault");
        match change {
            Change::Is(object) => format!("is {} {}", resource::name(&object), resource::version(&object)),
            Change::Gone(object) => format!("gone {}", resource::name(&object)),
        }
    }

    #[tokio::test]
    async fn a_broken_connection_goes_on_after_the_last_version_and_nothing_is_told_twice() {
        let cut = event("MODIFIED", &resource("a", 7));
        let (addr, mut asks) = scripted(vec![
            list(5, &[resource("a", 3)]),
            stream(&format!("{}{}", event("MODIFIED", &resource("a", 6)), &cut[..cut.len() / 2])),
            stream(&format!("{}{cut}", event("MODIFIED", &resource("a", 6)))),
        ])
        .await;
        let client = client(addr);
        let (items, mut watch) = Watch::begin(&client, scope()).await.expect("a list");
        assert_eq!(items, [resource("a", 3)]);
        assert_eq!(next(&mut watch).await, "is a 6");
        assert_eq!(next(&mut watch).await, "is a 7");
        let mut paths = Vec::new();
        for _ in 0..3 {
            paths.push(asks.recv().await.expect("asked"));
        }
        let all = "GET /apis/serving.kserve.io/v1alpha1/namespaces/default/predictors?";
        assert!(paths[0].starts_with(&format!("{all}limit=500")), "{paths:?}");
        assert!(paths[1].starts_with(all) && paths[1].contains("watch=true") && paths[1].contains("&resourceVersion=5"), "{paths:?}");
        assert!(paths[2].contains("&resourceVersion=6"), "{paths:?}");
    }

    #[tokio::test]
    async fn where_the_past_is_not_kept_everything_is_listed_again_and_only_differences_are_told() {
        let (addr, _asks) = scripted(vec![
            list(5, &[resource("a", 3), resource("b", 4), resource("c", 5)]),
            stream(&event("ERROR", &expired())),
            list(20, &[resource("a", 3), resource("b", 19), resource("d", 20)]),
            whole(410, &expired()),
            list(2, &[resource("d", 2)]),
        ])
        .await;
        let client = client(addr);
        let (_, mut watch) = Watch::begin(&client, scope()).await.expect("a list");
        let mut told = Vec::new();
        for _ in 0..6 {
            told.push(next(&mut watch).await);
        }
        // The last list is that of a server that began anew: its lower version is another state all the same.
        assert_eq!(told, ["is b 19", "is d 20", "gone c", "is d 2", "gone a", "gone b"]);
    }

    #[tokio::test]
    async fn deletions_and_what_is_no_event_are_told_apart() {
        let (addr, _asks) = scripted(vec![
            list(5, &[resource("a", 3)]),
            stream("what is this\n"),
            stream(&format!(
                "{}{}\n{}",
                event("BOOKMARK", &json!({ "metadata": { "resourceVersion": "8" } })),
                event("DELETED", &resource("never-seen", 9)),
                event("DELETED", &resource("a", 10))
            )),
        ])
        .await;
        let client = client(addr);
        let (_, mut watch) = Watch::begin(&client, scope()).await.expect("a list");
        assert_eq!(next(&mut watch).await, "gone a");
        assert_eq!(watch.version, "10");
    }

    #[tokio::test]
    async fn a_refusal_ends_a_watch_at_once() {
        let no = json!({ "kind": "Status", "code": 403, "reason": "Forbidden", "message": "not you" });
        let (addr, _asks) = scripted(vec![list(5, &[]), whole(403, &no)]).await;
        let client = client(addr);
        let (_, mut watch) = Watch::begin(&client, scope()).await.expect("a list");
        let clock = Clock::system();
        let fault = clock.until(clock.deadline_in(SOON), watch.next()).await.expect("an end in time").expect_err("refused");
        assert_eq!(fault.to_string(), "Error from server (Forbidden): not you");
    }
}
