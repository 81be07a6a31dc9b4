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
    json!({ "kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": [] })
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
        .flat_map(|kind| {
            let resource = json!({
                "name": kind.plural(),
                "singularName": kind.as_str().to_ascii_lowercase(),
                "namespaced": kind.namespaced(),
                "kind": kind.as_str(),
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": short_names(kind),
            });
            let status = json!({
                "name": format!("{}/status", kind.plural()),
                "singularName": "",
                "namespaced": kind.namespaced(),
                "kind": kind.as_str(),
                "verbs": ["get"],
            });
            [resource, status]
        })
        .collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{}/{version}", Kind::GROUP), "resources": resources })
}

/// Where the description of each version is.
pub(crate) fn open_api() -> Value {
    let paths: serde_json::Map<String, Value> = VERSIONS
        .into_iter()
        .map(|version| {
            let path = format!("apis/{}/{version}", Kind::GROUP);
            let url = format!("/openapi/v3/{path}");
            (path, json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths })
}

/// As much of a description as kubectl wants before it writes: that `fieldValidation` and `dryRun` are understood, and which
/// patches. There are no schemas: what is in a spec is not judged here.
pub(crate) fn open_api_of(version: &str) -> Value {
    let text = json!({ "type": "string" });
    let parameter = |name: &str, place: &str| json!({ "name": name, "in": place, "required": place == "path", "schema": text });
    let paths: serde_json::Map<String, Value> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.version() == version)
        .map(|kind| {
            let namespace = if kind.namespaced() { "namespaces/{namespace}/" } else { "" };
            let path = format!("/apis/{}/{version}/{namespace}{}/{{name}}", Kind::GROUP, kind.plural());
            let names = ["name", "namespace"].into_iter().take(1 + usize::from(kind.namespaced())).map(|name| parameter(name, "path"));
            let options = ["dryRun", "fieldManager", "fieldValidation", "force"].map(|name| parameter(name, "query"));
            let content = PATCHES.map(|media_type| (media_type.to_owned(), json!({ "schema": {} })));
            let patch = json!({
                "parameters": names.chain(options).collect::<Vec<_>>(),
                "requestBody": { "required": true, "content": serde_json::Map::from_iter(content) },
                "responses": { "200": { "description": "the resource as it is now" } },
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": { "group": Kind::GROUP, "version": version, "kind": kind.as_str() },
            });
            (path, json!({ "patch": patch }))
        })
        .collect();
    json!({ "openapi": "3.0.0", "info": { "title": "Berth", "version": env!("CARGO_PKG_VERSION") }, "paths": paths })
}

/// The patches to be used on these kinds, as for a kind of a CustomResourceDefinition.
const PATCHES: [&str; 3] = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

fn short_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::InferenceService => &["isvc"],
        Kind::Predictor | Kind::ServingRuntime | Kind::ClusterServingRuntime => &[],
    }
}
