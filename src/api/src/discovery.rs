//! What clients such as kubectl ask for before they ask for resources.

use berth_registry::Kind;
use serde_json::{Value, json};

use crate::target::VERSIONS;

pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "0",
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION"), "+berth"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

pub(crate) fn core() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

pub(crate) fn core_resources() -> Value {
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [] })
}

pub(crate) fn groups() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [named_group()] })
}

pub(crate) fn group() -> Value {
    let mut group = named_group();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    group
}

fn named_group() -> Value {
    let versions = VERSIONS.map(|version| json!({ "groupVersion": format!("{}/{version}", Kind::GROUP), "version": version }));
    json!({ "name": Kind::GROUP, "versions": versions, "preferredVersion": versions[0] })
}

pub(crate) fn resources(version: &str) -> Value {
    let resources: Vec<Value> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.version() == version)
        .map(|kind| {
            json!({
                "name": kind.plural(),
                "singularName": kind.as_str().to_ascii_lowercase(),
                "namespaced": kind.namespaced(),
                "kind": kind.as_str(),
                "verbs": ["get", "list", "watch"],
                "shortNames": short_names(kind),
            })
        })
        .collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{}/{version}", Kind::GROUP), "resources": resources })
}

fn short_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::InferenceService => &["isvc"],
        Kind::Predictor | Kind::ServingRuntime | Kind::ClusterServingRuntime => &[],
    }
}
