//! Changing parts of resources, and applying manifests.

use berth_registry::Kind;
use http::Method;
use serde_json::{Value, json};

use super::server::{ISVCS, Server, isvc, key};

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

async fn with_a() -> (Server, String) {
    let server = Server::start().await;
    let made = server.store.apply(isvc("default", "a", &[("tier", "gold")]), None).await.unwrap();
    server.store.set_status(&made.key, made.uid, json!({ "state": "Loaded" })).await.unwrap();
    (server, format!("{ISVCS}/a"))
}

async fn patch(server: &Server, path: &str, media_type: &str, body: Value) -> (u16, Value) {
    server.write(Method::PATCH, path, media_type, body).await
}

#[tokio::test]
async fn each_kind_of_patch_changes_what_it_names() {
    for (media_type, body) in [
        (
            MERGE,
            json!({ "metadata": { "labels": { "tier": null, "zone": "b" } }, "spec": { "predictor": { "model": { "storageUri": "s3://b/m" } } } }),
        ),
        (
            STRATEGIC,
            json!({ "metadata": { "labels": { "tier": null, "zone": "b" } }, "spec": { "predictor": { "model": { "storageUri": "s3://b/m" } } } }),
        ),
        (
            JSON_PATCH,
            json!([
                { "op": "test", "path": "/metadata/labels/tier", "value": "gold" },
                { "op": "move", "from": "/metadata/labels/tier", "path": "/metadata/labels/zone" },
                { "op": "replace", "path": "/metadata/labels/zone", "value": "b" },
                { "op": "add", "path": "/spec/predictor/model/storageUri", "value": "s3://b/m" },
            ]),
        ),
    ] {
        let (server, one) = with_a().await;
        let (code, changed) = patch(&server, &one, media_type, body).await;
        assert_eq!(code, 200, "{media_type}: {changed}");
        assert_eq!(changed["metadata"]["labels"], json!({ "zone": "b" }), "{media_type}");
        assert_eq!(
            changed["spec"],
            json!({ "predictor": { "model": { "modelFormat": { "name": "onnx" }, "storageUri": "s3://b/m" } } }),
            "{media_type}"
        );
        assert_eq!((&changed["metadata"]["generation"], &changed["status"]["state"]), (&json!(2), &json!("Loaded")));
        assert_eq!(server.get(&one).await, changed);
    }
}

#[tokio::test]
async fn a_patch_cannot_change_identity_or_status_or_leave_something_that_is_no_resource() {
    let (server, one) = with_a().await;
    let before = server.get(&one).await;
    for (media_type, body, code) in [
        (MERGE, json!({ "metadata": { "name": "b" } }), 400),
        (MERGE, json!({ "metadata": { "namespace": "team" } }), 400),
        (MERGE, json!({ "kind": "Predictor" }), 400),
        (MERGE, json!({ "metadata": { "uid": "x" } }), 409),
        (MERGE, json!({ "spec": 3 }), 422),
        (MERGE, json!([]), 400),
        (JSON_PATCH, json!([{ "op": "remove", "path": "/metadata" }]), 400),
        (JSON_PATCH, json!([{ "op": "replace", "path": "/spec", "value": [] }]), 422),
        (JSON_PATCH, json!([{ "op": "test", "path": "/spec/x", "value": 1 }]), 422),
        (JSON_PATCH, json!([{ "op": "test", "path": "/metadata/labels/tier", "value": "silver" }]), 422),
        (JSON_PATCH, json!({}), 400),
        (STRATEGIC, json!({ "spec": { "containers": [{ "$patch": "delete", "name": "x" }] } }), 400),
        // Accepted without effect, as in Kubernetes: these are not the client's.
        (MERGE, json!({ "status": { "state": "Forged" }, "metadata": { "generation": 7, "creationTimestamp": null } }), 200),
        (MERGE, json!({}), 200),
    ] {
        let (got, answer) = patch(&server, &one, media_type, body.clone()).await;
        assert_eq!(got, code, "{media_type} {body}: {answer}");
        assert_eq!(server.get(&one).await, before, "{media_type} {body}");
    }
    assert_eq!(patch(&server, &format!("{ISVCS}/b"), MERGE, json!({})).await.0, 404);
}

#[tokio::test]
async fn an_applied_manifest_makes_the_resource_and_then_replaces_its_spec() {
    let server = Server::start().await;
    let path = format!("{ISVCS}/a?fieldManager=me&force=true");
    let manifest = |uri: &str, label: &str| {
        format!(
            "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: a\n  labels: {{{label}: \"1\"}}\n\
             spec:\n  predictor:\n    model:\n      {uri}\n"
        )
    };
    let (code, made) = server.write(Method::PATCH, &path, APPLY, manifest("storageUri: s3://b/m", "one")).await;
    assert_eq!((code, &made["metadata"]["generation"]), (201, &json!(1)), "{made}");
    let (code, same) = server.write(Method::PATCH, &path, APPLY, manifest("storageUri: s3://b/m", "one")).await;
    assert_eq!((code, &same), (200, &made));
    let (code, next) = server.write(Method::PATCH, &path, APPLY, manifest("storage: {key: k}", "two")).await;
    // What the manifest no longer has is gone from the spec; labels only come.
    assert_eq!((code, &next["spec"]), (200, &json!({ "predictor": { "model": { "storage": { "key": "k" } } } })));
    assert_eq!(next["metadata"]["labels"], json!({ "one": "1", "two": "1" }));
    assert_eq!((&next["metadata"]["uid"], &next["metadata"]["generation"]), (&made["metadata"]["uid"], &json!(2)));
    let bare = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {annotations: {x: \"on\"}}\n";
    let (code, annotated) = server.write(Method::PATCH, &path, APPLY, bare).await;
    assert_eq!((code, &annotated["spec"], &annotated["metadata"]["annotations"]), (200, &next["spec"], &json!({ "x": "on" })));
    for (body, code) in [
        ("kind: InferenceService\n".to_owned(), 400),
        (manifest("a: 1", "x").replace("name: a", "name: b"), 400),
        (manifest("a: 1", "x").replace("name: a", "name: a\n  resourceVersion: \"1\""), 409),
    ] {
        assert_eq!(server.write(Method::PATCH, &path, APPLY, &body).await.0, code, "{body}");
    }
    let nobody = format!("{ISVCS}/Not_A_Name");
    assert_eq!(server.write(Method::PATCH, &nobody, APPLY, bare).await.0, 422);
    assert_eq!(server.store.get(&key(Kind::InferenceService, "default", "a")).unwrap().generation, 2);
}
