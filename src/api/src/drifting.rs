//! Pods that serve other bytes than the first good ones of their model: the seam to whoever knows, and how it is told.
//!
//! Like downloads they are no part of a resource: they are a document of their own, `/berth/v1/drifts`.

use berth_types::{ContentDigest, ModelId, PodId, UnixMillis};
use serde_json::{Value, json};

use crate::fetching::resource_of;

/// Whoever knows which pods serve other bytes.
pub trait Drifts: Send + Sync + 'static {
    /// All that are known, by model.
    fn known(&self) -> Vec<Drift>;
}

/// A pod that serves other bytes than the first good ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Which version of which model.
    pub model: ModelId,
    /// Where.
    pub pod: PodId,
    /// What was good first.
    pub first: ContentDigest,
    /// What the pod serves.
    pub seen: ContentDigest,
    /// When it was noticed.
    pub since: UnixMillis,
    /// All of it in words, with what to do.
    pub summary: String,
}

impl Drift {
    fn document(&self) -> Value {
        let mut document = json!({
            "model": self.model.as_str(),
            "pod": self.pod.as_str(),
            "first": self.first.to_string(),
            "seen": self.seen.to_string(),
            "since": self.since.rfc3339(),
            "summary": self.summary,
        });
        if let Some((kind, name)) = resource_of(&self.model) {
            document["kind"] = kind.as_str().into();
            document["name"] = name.into();
        }
        document
    }
}

/// All that are known, as a document.
pub(crate) fn document(drifts: Option<&dyn Drifts>) -> Value {
    let drifts = drifts.map(Drifts::known).unwrap_or_default();
    json!({ "items": drifts.iter().map(Drift::document).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(Vec<Drift>);

    impl Drifts for Known {
        fn known(&self) -> Vec<Drift> {
            self.0.clone()
        }
    }

    #[test]
    fn a_drift_is_told_with_the_resource_whose_version_it_is() {
        let drift = |model: &str| Drift {
            model: ModelId::new(model).expect("valid"),
            pod: PodId::new("p2").expect("valid"),
            first: ContentDigest([1; 32]),
            seen: ContentDigest([2; 32]),
            since: UnixMillis(1_795_333_424_000),
            summary: "in words".to_owned(),
        };
        let told = document(Some(&Known(vec![drift("digits__isvc-1"), drift("strange")])));
        let (seen, items) = (told["items"][0]["seen"].as_str().unwrap_or_default(), &told["items"]);
        assert_eq!((&items[0]["kind"], &items[0]["name"], &items[0]["pod"]), (&json!("InferenceService"), &json!("digits"), &json!("p2")));
        assert!(seen.starts_with("crc64:0202") && items[0]["since"] == "2026-11-22T07:43:44Z" && items[1].get("name").is_none(), "{told}");
        assert_eq!(document(None), json!({ "items": [] }));
    }
}
