//! Which pods serve other bytes than the first good ones of a model, as the server tells it. As with downloads, a server that does
//! not tell is no fault.

use std::collections::BTreeMap;

use berth_registry::Kind;
use http::Method;
use serde_json::Value;

use super::client::Client;
use super::resource::{self, text};

/// Where the server tells of them.
const PATH: &str = "/berth/v1/drifts";

/// One pod that serves other bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Of which version.
    pub(crate) model: String,
    /// Where.
    pub(crate) pod: String,
    /// When it was noticed.
    pub(crate) since: Option<String>,
    /// What it serves and what to do, in the server's words.
    pub(crate) summary: String,
}

/// Those that are known, by kind and name of their resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drifts(BTreeMap<(String, String), Vec<Drift>>);

impl Drifts {
    /// Reads the server's document.
    pub(crate) fn read(document: &Value) -> Self {
        let mut drifts = Drifts::default();
        for item in document["items"].as_array().into_iter().flatten() {
            let text = |member| text(item, &[member]).map(str::to_owned);
            if let (Some(kind), Some(name), Some(model), Some(pod), Some(summary)) =
                (text("kind"), text("name"), text("model"), text("pod"), text("summary"))
            {
                drifts.0.entry((kind, name)).or_default().push(Drift { model, pod, since: text("since"), summary });
            }
        }
        drifts
    }

    /// Those of `resource`.
    pub(crate) fn of(&self, kind: Kind, resource: &Value) -> &[Drift] {
        self.0.get(&(kind.as_str().to_owned(), resource::name(resource).to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// What is known now; nothing where the server does not tell.
pub(crate) async fn now(client: &Client) -> Drifts {
    client.json(Method::GET, PATH, None).await.map(|document| Drifts::read(&document)).unwrap_or_default()
}
