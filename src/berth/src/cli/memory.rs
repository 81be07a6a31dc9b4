//! Who has which memory, as the server tells it: a line of `berth describe`, and `berth top`.
//!
//! For `describe` it is a help and never more: a server that does not tell is no fault.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use berth_registry::Kind;
use berth_types::ByteSize;
use http::Method;
use serde_json::Value;

use super::client::Client;
use super::fault::Fault;
use super::output::{Out, plain};
use super::resource::{self, text};

/// Where the server tells it.
const PATH: &str = "/berth/v1/memory";
/// Shown where nothing is known.
const NOTHING: &str = "-";

/// What models take, by kind and name of their resources: of several versions of one each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprints(BTreeMap<(String, String), Vec<String>>);

impl Footprints {
    /// Reads the server's document.
    pub(crate) fn read(document: &Value) -> Self {
        let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for item in document["items"].as_array().into_iter().flatten() {
            if let (Some(kind), Some(name), Some(summary)) = (text(item, &["kind"]), text(item, &["name"]), text(item, &["summary"])) {
                let version = text(item, &["model"]).map(|model| format!(", {model}")).unwrap_or_default();
                found.entry((kind.to_owned(), name.to_owned())).or_default().push(format!("{summary}{version}"));
            }
        }
        Footprints(found)
    }

    /// What is held of `resource`.
    pub(crate) fn of(&self, kind: Kind, resource: &Value) -> &[String] {
        self.0.get(&(kind.as_str().to_owned(), resource::name(resource).to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// What models take now; nothing where the server does not tell.
pub(crate) async fn now(client: &Client) -> Footprints {
    client.json(Method::GET, PATH, None).await.map(|document| Footprints::read(&document)).unwrap_or_default()
}

/// `berth top`.
///
/// # Errors
/// Whatever kept the server from answering.
pub(crate) async fn top(client: &Client, out: &mut Out) -> Result<(), Fault> {
    let document = client.json(Method::GET, PATH, None).await?;
    out.text(&page(&document))
}

fn page(document: &Value) -> String {
    let size = |of: &Value, member: &str| of[member].as_u64().map_or(NOTHING.to_owned(), |bytes| ByteSize(bytes).to_string());
    let pools = document["pools"].as_array().into_iter().flatten().map(|pool| {
        let sizes = ["capacityBytes", "leasedBytes", "measuredBytes", "baseBytes", "retainedBytes", "withheldBytes"].map(|member| size(pool, member));
        let full = if pool["nearlyFull"].as_bool() == Some(true) { " (nearly full)" } else { "" };
        let mut line = vec![plain(text(pool, &["pool"]).unwrap_or(NOTHING)) + full];
        line.extend(sizes);
        line
    });
    let mut models: Vec<&Value> = document["items"].as_array().into_iter().flatten().collect();
    let bytes = |model: &Value| -> u64 { model["bytes"].as_object().into_iter().flatten().filter_map(|(_, bytes)| bytes.as_u64()).sum() };
    models.sort_by_key(|model| (std::cmp::Reverse(bytes(model)), model["model"].as_str().unwrap_or_default().to_owned()));
    let models = models.into_iter().map(|model| {
        let parts = model["bytes"].as_object().into_iter().flatten();
        let parts: Vec<String> = parts.map(|(pool, bytes)| format!("{} {pool}", ByteSize(bytes.as_u64().unwrap_or_default()))).collect();
        let held = if parts.is_empty() { NOTHING.to_owned() } else { parts.join(" + ") };
        [text(model, &["model"]).unwrap_or(NOTHING), text(model, &["phase"]).unwrap_or(NOTHING), &held, text(model, &["from"]).unwrap_or(NOTHING)]
            .map(plain)
            .to_vec()
    });
    let pools = table(&["POOL", "CAPACITY", "LEASED", "MEASURED", "BASE", "RETAINED", "WITHHELD"], pools.collect());
    let models = table(&["MODEL", "PHASE", "MEMORY", "FROM"], models.collect());
    format!("{pools}\n{models}")
}

fn table(heads: &[&str], lines: Vec<Vec<String>>) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(lines).collect();
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in &lines {
        let cells: String = line.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}   ", width = width(at))).collect();
        let _ = writeln!(text, "{}", cells.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::resource::recorded;

    fn document() -> Value {
        let gib = 1_u64 << 30;
        json!({
            "pools": [
                { "pool": "host", "capacityBytes": 8 * gib, "leasedBytes": gib, "measuredBytes": 2 * gib, "baseBytes": gib / 2, "retainedBytes": 0,
                  "withheldBytes": 0, "nearlyFull": true },
                { "pool": "gpu:0", "capacityBytes": 20 * gib, "leasedBytes": 3 * gib, "retainedBytes": 0, "withheldBytes": gib },
            ],
            "items": [
                { "model": "small__isvc-1", "phase": "ready", "bytes": { "host": gib }, "from": "declared", "summary": "1 GiB host (declared)" },
                { "model": "iris__isvc-2", "kind": "InferenceService", "name": "iris", "phase": "draining", "bytes": { "gpu:0": 3 * gib },
                  "from": "measured", "summary": "3 GiB gpu:0 (measured)" },
                { "model": "coming__isvc-1", "phase": "pulling" },
            ],
        })
    }

    #[test]
    fn memories_come_first_then_models_the_largest_first() {
        let expected = "\
POOL                 CAPACITY   LEASED   MEASURED   BASE      RETAINED   WITHHELD
host (nearly full)   8 GiB      1 GiB    2 GiB      512 MiB   0 B        0 B
gpu:0                20 GiB     3 GiB    -          -         0 B        1 GiB

MODEL            PHASE      MEMORY        FROM
iris__isvc-2     draining   3 GiB gpu:0   measured
small__isvc-1    ready      1 GiB host    declared
coming__isvc-1   pulling    -             -
";
        assert_eq!(page(&document()), expected);
        assert!(page(&json!({})).starts_with("POOL"), "a server of another make");
    }

    #[test]
    fn a_model_is_found_by_kind_and_name() {
        let found = Footprints::read(&document());
        assert_eq!(found.of(Kind::InferenceService, &recorded::loaded("iris")), ["3 GiB gpu:0 (measured), iris__isvc-2"]);
        assert_eq!(found.of(Kind::Predictor, &recorded::loaded("iris")), Vec::<String>::new().as_slice());
    }
}
