//! Making, replacing and removing resources.

use std::sync::Arc;

use berth_api::Access;
use berth_registry::{Desired, EMBEDDED_RUNTIME, Kind, MemoryStore, Origin, RedbStore, Store, bundled};
use berth_telemetry::Clock;
use http::Method;
use serde_json::{Value, json};

use super::server::{ISVCS, Server, isvc, key, whole};

const JSON: &str = "application/json";
const RUNTIMES: &str = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes";

fn document(name: &str, number: u64) -> Value {
    json!({
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": { "name": name, "annotations": { "serving.kserve.io/deploymentMode": "ModelMesh" } },
        "spec": { "predictor": { "number": number, "unheardOf": [null, { "x": 0.5 }] } },
    })
}

/// What a `Status` says.
fn told(status: &Value) -> (&str, &str) {
    assert_eq!((status["kind"].as_str(), status["apiVersion"].as_str()), (Some("Status"), Some("v1")), "{status}");
    (status["reason"].as_str().unwrap(), status["message"].as_str().unwrap())
}

#[tokio::test]
async fn a_resource_made_here_is_there_with_everything_that_its_spec_says() {
    let server = Server::start().await;
    let mut watch = server.watch(&format!("{ISVCS}?watch=true")).await;
    let mut sent = document("digits", 1);
    sent["status"] = json!({ "forged": true });
    sent["metadata"]["uid"] = "forged".into();
    sent["metadata"]["generation"] = 9.into();
    sent["metadata"]["creationTimestamp"] = Value::Null;
    let (code, made) = server.write(Method::POST, ISVCS, JSON, &sent).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["spec"], &made["metadata"]["annotations"]), (&sent["spec"], &sent["metadata"]["annotations"]));
    assert_eq!((&made["metadata"]["generation"], &made["metadata"]["resourceVersion"]), (&json!(1), &json!("1")));
    assert_ne!(made["metadata"]["uid"], "forged");
    assert_eq!(made.get("status"), None);
    assert_eq!(server.get(&format!("{ISVCS}/digits")).await, made);
    assert_eq!(server.get(&format!("{ISVCS}/digits/status")).await, made);
    assert_eq!(watch.lines(1).await, ["ADDED digits -"]);
    assert_eq!(server.store.get(&key(Kind::InferenceService, "default", "digits")).unwrap().origin, Origin::Api);
}

#[tokio::test]
async fn a_body_may_be_yaml_and_a_kind_may_be_cluster_wide() {
    let server = Server::start().await;
    let yaml =
        "# mine\napiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\nmetadata: {name: mine, namespace: ignored}\nspec:\n  on: yes\n";
    let (code, made) = server.write(Method::POST, RUNTIMES, "application/yaml", yaml).await;
    assert_eq!((code, &made["spec"], made["metadata"].get("namespace")), (201, &json!({ "on": true }), None), "{made}");
    // Without a spec: accepted, as by a cluster; the status says what is missing.
    let bare = json!({ "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": { "name": "bare" } });
    let (code, made) = server.write(Method::POST, ISVCS, JSON, bare).await;
    assert_eq!((code, &made["spec"]), (201, &json!({})));
}

#[tokio::test]
async fn generated_names_differ() {
    let server = Server::start().await;
    let mut names = std::collections::BTreeSet::new();
    let mut sent = document("x", 1);
    sent["metadata"] = json!({ "generateName": "run-" });
    for _ in 0..50 {
        let (code, made) = server.write(Method::POST, ISVCS, JSON, &sent).await;
        assert_eq!(code, 201, "{made}");
        let name = made["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("run-") && name.len() == 9, "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), 50);
}

#[tokio::test]
async fn a_replaced_resource_keeps_its_identity_and_counts_its_specs() {
    let server = Server::start().await;
    let one = format!("{ISVCS}/a");
    let (_, made) = server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let stored = server.store.get(&key(Kind::InferenceService, "default", "a")).unwrap();
    server.store.set_status(&stored.key, stored.uid, json!({ "state": "Loaded" })).await.unwrap();
    let mut next = server.get(&one).await;
    next["spec"]["predictor"]["number"] = 2.into();
    next["status"] = json!("forged");
    let (code, changed) = server.write(Method::PUT, &one, JSON, &next).await;
    assert_eq!(code, 200, "{changed}");
    let of = |object: &Value, field: &str| object["metadata"][field].clone();
    assert_eq!((of(&changed, "generation"), of(&changed, "resourceVersion")), (json!(2), json!("3")));
    assert_eq!((of(&changed, "uid"), of(&changed, "creationTimestamp")), (of(&made, "uid"), of(&made, "creationTimestamp")));
    assert_eq!((&changed["spec"]["predictor"]["number"], &changed["status"]), (&json!(2), &json!({ "state": "Loaded" })));
    // Other metadata is no new spec, and the same again is no change.
    let mut labelled = changed.clone();
    labelled["metadata"]["labels"] = json!({ "tier": "gold" });
    let (_, labelled) = server.write(Method::PUT, &one, JSON, &labelled).await;
    assert_eq!((of(&labelled, "generation"), of(&labelled, "resourceVersion")), (json!(2), json!("4")));
    assert_eq!(server.write(Method::PUT, &one, JSON, &labelled).await, (200, labelled));
}

#[tokio::test]
async fn a_write_based_on_an_older_version_is_a_conflict() {
    let server = Server::start().await;
    let one = format!("{ISVCS}/a");
    let (_, first) = server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let mut second = first.clone();
    second["spec"]["predictor"]["number"] = 2.into();
    assert_eq!(server.write(Method::PUT, &one, JSON, &second).await.0, 200);
    let (code, status) = server.write(Method::PUT, &one, JSON, &second).await;
    let message = "operation cannot be fulfilled on inferenceservices.serving.kserve.io \"a\": the object has been modified \
                   (sent was version 1, it is at 2): read it again and apply your changes to that";
    assert_eq!((code, told(&status)), (409, ("Conflict", message)));
    assert_eq!(status["details"], json!({ "name": "a", "group": "serving.kserve.io", "kind": "inferenceservices" }));
    let patch = json!({ "metadata": { "resourceVersion": "1" }, "spec": { "x": 1 } });
    let (code, status) = server.write(Method::PATCH, &one, "application/merge-patch+json", patch).await;
    assert_eq!((code, told(&status).0), (409, "Conflict"));
    let (code, status) = server.write(Method::DELETE, &one, JSON, json!({ "preconditions": { "resourceVersion": "1" } })).await;
    assert_eq!((code, told(&status).0), (409, "Conflict"));
    let mut other = server.get(&one).await;
    other["metadata"]["uid"] = "another".into();
    let (code, status) = server.write(Method::PUT, &one, JSON, other).await;
    assert_eq!((code, told(&status).0), (409, "Conflict"));
    assert_eq!(server.store.version(), 2);
}

#[tokio::test]
async fn many_writers_of_one_resource_lose_nothing() {
    // The store on disk: its writes take a while, so that all writers have read before the first one is done.
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(dir.path(), Clock::system()).unwrap());
    let server = Arc::new(Server::with(store, None, Access::Loopback).await);
    server.write(Method::POST, ISVCS, JSON, document("a", 0)).await;
    let writers = (0..12).map(|n| {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let patch = json!({ "metadata": { "labels": { format!("l{n}"): "x" } } });
            server.write(Method::PATCH, &format!("{ISVCS}/a"), "application/merge-patch+json", patch).await.0
        })
    });
    for outcome in futures::future::join_all(writers).await {
        assert_eq!(outcome.unwrap(), 200);
    }
    assert_eq!(server.get(&format!("{ISVCS}/a")).await["metadata"]["labels"].as_object().unwrap().len(), 12);
}

#[tokio::test]
async fn what_cannot_be_a_resource_is_refused_with_the_reason() {
    let server = Server::start().await;
    server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let with = |pointer: &str, value: Value| {
        let mut document = document("b", 1);
        *document.pointer_mut(pointer).unwrap() = value;
        document.to_string()
    };
    let meta = |metadata: Value| with("/metadata", metadata);
    let one = format!("{ISVCS}/b");
    for (method, path, media_type, body, code, reason, message) in [
        (Method::POST, ISVCS, JSON, "{".into(), 400, "BadRequest", "cannot read the body as JSON: EOF"),
        (Method::POST, ISVCS, JSON, String::new(), 400, "BadRequest", "cannot read the body as JSON: EOF"),
        (Method::POST, ISVCS, JSON, "[]".into(), 400, "BadRequest", "the body must be a resource"),
        (Method::POST, ISVCS, "application/yaml", "a: [".into(), 400, "BadRequest", "cannot read the body as YAML: "),
        (
            Method::POST,
            ISVCS,
            "application/x-www-form-urlencoded",
            "{}".into(),
            415,
            "UnsupportedMediaType",
            "the body of the request has \"application/x-www",
        ),
        (
            Method::PATCH,
            &one,
            JSON,
            "{}".into(),
            415,
            "UnsupportedMediaType",
            "the body of the request has \"application/json\": accepted are application/merge",
        ),
        (Method::POST, ISVCS, JSON, "{}".into(), 400, "BadRequest", "apiVersion is missing: the path expects serving.kserve.io/v1beta1"),
        (Method::POST, ISVCS, JSON, with("/apiVersion", json!("v1")), 400, "BadRequest", "apiVersion in the body (v1) does not match"),
        (Method::POST, ISVCS, JSON, with("/kind", json!("Predictor")), 400, "BadRequest", "kind in the body (Predictor) does not match"),
        (
            Method::POST,
            ISVCS,
            JSON,
            meta(json!({ "name": "b", "namespace": "x" })),
            400,
            "BadRequest",
            "the namespace of the object (x) does not match",
        ),
        (
            Method::POST,
            ISVCS,
            JSON,
            meta(json!({ "name": "b", "resourceVersion": "1" })),
            400,
            "BadRequest",
            "metadata.resourceVersion must not be set",
        ),
        (
            Method::PUT,
            &one,
            JSON,
            document("c", 1).to_string(),
            400,
            "BadRequest",
            "the name of the object (c) does not match the name on the URL (b)",
        ),
        (Method::PUT, &one, JSON, meta(json!({})), 400, "BadRequest", "metadata.name is missing: the path has \"b\""),
        (Method::PUT, &one, JSON, document("b", 1).to_string(), 404, "NotFound", "inferenceservices.serving.kserve.io \"b\" not found"),
        (Method::POST, ISVCS, JSON, document("a", 1).to_string(), 409, "AlreadyExists", "inferenceservices.serving.kserve.io \"a\" already exists"),
        (
            Method::POST,
            ISVCS,
            JSON,
            meta(json!({})),
            422,
            "Invalid",
            "InferenceService.serving.kserve.io \"\" is invalid: metadata.name: Required value",
        ),
        (
            Method::POST,
            ISVCS,
            JSON,
            meta(json!({ "name": "A_b" })),
            422,
            "Invalid",
            "InferenceService.serving.kserve.io \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\"",
        ),
        (
            Method::POST,
            ISVCS,
            JSON,
            with("/spec", json!("x")),
            422,
            "Invalid",
            "InferenceService.serving.kserve.io \"b\" is invalid: spec: Invalid value: must be an object",
        ),
        (Method::DELETE, &one, JSON, String::new(), 404, "NotFound", "inferenceservices.serving.kserve.io \"b\" not found"),
        (Method::DELETE, ISVCS, JSON, "[]".into(), 400, "BadRequest", "the body of a removal must be DeleteOptions"),
    ] {
        let (got, status) = server.write(method.clone(), path, media_type, &body).await;
        let (got_reason, got_message) = told(&status);
        assert_eq!((got, got_reason), (code, reason), "{method} {path} {body}: {status}");
        assert!(got_message.starts_with(message), "{method} {path} {body}: {got_message}");
    }
    let (_, status) = server.write(Method::POST, ISVCS, JSON, with("/spec", json!("x"))).await;
    let cause = json!({ "reason": "FieldValueTypeInvalid", "message": "Invalid value: must be an object, not a string", "field": "spec" });
    assert_eq!(status["details"], json!({ "name": "b", "group": "serving.kserve.io", "kind": "InferenceService", "causes": [cause] }));
    let (code, status) = server.write(Method::PUT, &format!("{ISVCS}/a"), JSON, document("a", 2)).await;
    assert_eq!((code, status["details"]["causes"][0]["field"].as_str()), (422, Some("metadata.resourceVersion")));
    let (code, _) = server.write(Method::POST, "/apis/serving.kserve.io/v1beta1/namespaces/Bad_Ns/inferenceservices", JSON, document("b", 1)).await;
    assert_eq!(code, 422);
    assert_eq!((server.store.version(), server.store.list().len()), (1, 1));
}

#[tokio::test]
async fn too_large_too_deep_and_compressed_bodies_are_refused() {
    let server = Server::start().await;
    let with_bulk = |bytes: usize| {
        let mut document = document("b", 1);
        document["spec"]["bulk"] = "x".repeat(bytes).into();
        document.to_string()
    };
    let (code, status) = server.write(Method::POST, ISVCS, JSON, with_bulk(3 << 20)).await;
    assert_eq!((code, told(&status)), (413, ("RequestEntityTooLarge", "request entity too large: limit is 3145728 bytes")));
    // Small on the wire, large when it is unfolded.
    let references = "\n- *b".repeat(90);
    let text = "x".repeat(50_000);
    let yaml = format!(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {{name: b}}\nspec:\n  one: &b {text}\n  all:{references}\n"
    );
    let (code, status) = server.write(Method::POST, ISVCS, "application/yaml", yaml.replace("\n- *b", "\n  - *b")).await;
    assert_eq!((code, told(&status).0), (413, "RequestEntityTooLarge"), "{status}");
    let mut deep = json!(1);
    for _ in 0..80 {
        deep = json!([deep]);
    }
    let mut nested = document("b", 1);
    nested["spec"]["deep"] = deep;
    let (code, status) = server.write(Method::POST, ISVCS, JSON, nested).await;
    assert_eq!((code, told(&status)), (400, ("BadRequest", "values are nested deeper than 64 levels")));
    let zipped = server.ask(Method::POST, ISVCS, &[("content-encoding", "gzip")], document("b", 1).to_string()).await;
    assert_eq!(whole(zipped).await.0, 415);
    assert_eq!(server.store.list().len(), 0);
    assert_eq!(server.write(Method::POST, ISVCS, JSON, with_bulk(2 << 20)).await.0, 201);
}

#[tokio::test]
async fn a_dry_run_answers_as_if_and_changes_nothing() {
    let server = Server::start().await;
    let (code, tried) = server.write(Method::POST, &format!("{ISVCS}?dryRun=All"), JSON, document("a", 1)).await;
    assert_eq!((code, &tried["spec"]["predictor"]["number"], tried["metadata"].get("uid")), (201, &json!(1), None));
    assert_eq!(server.store.version(), 0);
    let (_, made) = server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let one = format!("{ISVCS}/a?dryRun=All");
    assert_eq!(server.write(Method::POST, &format!("{ISVCS}?dryRun=All"), JSON, document("a", 1)).await.0, 409);
    let mut next = made.clone();
    next["spec"]["predictor"]["number"] = 2.into();
    let (code, tried) = server.write(Method::PUT, &one, JSON, &next).await;
    assert_eq!((code, &tried["metadata"]["generation"], &tried["spec"]), (200, &json!(2), &next["spec"]));
    assert_eq!(server.write(Method::PATCH, &one, "application/merge-patch+json", json!({ "spec": { "x": 1 } })).await.1["spec"]["x"], 1);
    assert_eq!(server.write(Method::DELETE, &one, JSON, "").await.0, 200);
    assert_eq!(server.write(Method::DELETE, &format!("{ISVCS}/a"), JSON, json!({ "dryRun": ["All"] })).await.0, 200);
    assert_eq!(server.write(Method::DELETE, &format!("{ISVCS}?dryRun=All"), JSON, "").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(server.write(Method::PUT, &format!("{ISVCS}/a?dryRun=yes"), JSON, &next).await.0, 400);
    assert_eq!((server.get(&format!("{ISVCS}/a")).await, server.store.version()), (made, 1));
}

#[tokio::test]
async fn what_is_not_kept_is_a_warning_or_on_request_a_refusal() {
    let server = Server::start().await;
    let mut sent = document("a", 1);
    sent["metadata"]["finalizers"] = json!(["x/y"]);
    sent["sepc"] = json!({});
    let post = async |query: &str| server.ask(Method::POST, &format!("{ISVCS}{query}"), &[("content-type", JSON)], sent.to_string()).await;
    let response = post("?dryRun=All").await;
    let warnings: Vec<_> = response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(warnings, ["299 - \"metadata.finalizers is not kept: here a removal takes effect at once\"", "299 - \"unknown field \\\"sepc\\\"\""]);
    let ignoring = post("?dryRun=All&fieldValidation=Ignore").await;
    let warnings: Vec<_> = ignoring.headers().get_all("warning").iter().collect();
    assert_eq!(warnings, ["299 - \"metadata.finalizers is not kept: here a removal takes effect at once\""]);
    let (code, status) = whole(post("?fieldValidation=Strict").await).await;
    assert_eq!((code, told(&status)), (400, ("BadRequest", "strict decoding error: unknown field \"sepc\"")));
    assert_eq!(server.store.version(), 0);
    let (code, made) = whole(post("").await).await;
    assert_eq!((code, made["metadata"].get("finalizers")), (201, None));
    // A removal does not wait for anybody.
    assert_eq!(server.json(Method::DELETE, &format!("{ISVCS}/a")).await.0, 200);
    assert_eq!(server.store.list().len(), 0);
}

#[tokio::test]
async fn a_removal_tells_what_went() {
    let server = Server::start().await;
    let (_, made) = server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let mut watch = server.watch(&format!("{ISVCS}?watch=true&resourceVersion=1")).await;
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground", "gracePeriodSeconds": 0,
        "preconditions": { "uid": made["metadata"]["uid"], "resourceVersion": "1" } });
    let (code, status) = server.write(Method::DELETE, &format!("{ISVCS}/a?propagationPolicy=Orphan"), JSON, options).await;
    let details = json!({ "name": "a", "group": "serving.kserve.io", "kind": "inferenceservices", "uid": made["metadata"]["uid"] });
    assert_eq!((code, &status["kind"], &status["status"], &status["details"]), (200, &json!("Status"), &json!("Success"), &details));
    assert_eq!(watch.lines(1).await, ["DELETED a -"]);
    assert_eq!(server.json(Method::DELETE, &format!("{ISVCS}/a")).await.0, 404);
}

#[tokio::test]
async fn a_collection_loses_what_the_selector_chooses_in_its_namespace() {
    let server = Server::start().await;
    for (namespace, name, tier) in [("default", "a", "gold"), ("default", "b", "silver"), ("default", "c", "gold"), ("team", "d", "gold")] {
        server.store.apply(isvc(namespace, name, &[("tier", tier)]), None).await.unwrap();
    }
    let (code, gone) = server.json(Method::DELETE, &format!("{ISVCS}?labelSelector=tier%3Dgold")).await;
    let names: Vec<_> = gone["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!((code, gone["kind"].as_str(), names), (200, Some("InferenceServiceList"), vec!["a", "c"]));
    assert_eq!(server.names("/apis/serving.kserve.io/v1beta1/inferenceservices").await, ["b", "d"]);
    assert_eq!(server.json(Method::DELETE, &format!("{ISVCS}?labelSelector=a%20b")).await.0, 400);
    // One that cannot go keeps all: nothing is half done.
    server.store.apply(Desired { origin: Origin::file("/m/e.yaml"), ..Desired::clone(&isvc("default", "e", &[])) }.into(), None).await.unwrap();
    let (code, status) = server.json(Method::DELETE, ISVCS).await;
    assert_eq!((code, told(&status).0), (409, "Conflict"));
    assert_eq!(server.names(ISVCS).await, ["b", "e"]);
}

#[tokio::test]
async fn resources_of_the_folder_and_of_the_program_are_not_changed_here() {
    let server = Server::start().await;
    server.store.apply(Desired { origin: Origin::file("/models/a.yaml"), ..Desired::clone(&isvc("default", "a", &[])) }.into(), None).await.unwrap();
    for object in bundled() {
        server.store.apply(object, None).await.unwrap();
    }
    let version = server.store.version();
    let folder = format!("{ISVCS}/a");
    let runtime = format!("{RUNTIMES}/{EMBEDDED_RUNTIME}");
    let (held, mine) = (server.get(&folder).await.to_string(), server.get(&runtime).await.to_string());
    let merge = "application/merge-patch+json";
    let apply = "application/apply-patch+yaml";
    let from_file = "operation cannot be fulfilled on inferenceservices.serving.kserve.io \"a\": it comes from /models/a.yaml: change it there";
    let remove_file = "operation cannot be fulfilled on inferenceservices.serving.kserve.io \"a\": it comes from /models/a.yaml: remove it there";
    let exists = "inferenceservices.serving.kserve.io \"a\" already exists: it comes from /models/a.yaml";
    let never = "clusterservingruntimes.serving.kserve.io \"berth-onnx\" is forbidden: it comes with the program";
    let program = "clusterservingruntimes.serving.kserve.io \"berth-onnx\" already exists: it comes with the program";
    let new_runtime =
        json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterServingRuntime", "metadata": { "name": EMBEDDED_RUNTIME } });
    for (method, path, media_type, body, code, reason, message) in [
        (Method::PUT, &folder, JSON, held.clone(), 409, "Conflict", from_file),
        (Method::PATCH, &folder, merge, "{}".to_owned(), 409, "Conflict", from_file),
        (Method::PATCH, &folder, apply, held, 409, "Conflict", from_file),
        (Method::DELETE, &folder, JSON, String::new(), 409, "Conflict", remove_file),
        (Method::POST, &ISVCS.to_owned(), JSON, document("a", 1).to_string(), 409, "AlreadyExists", exists),
        (Method::PUT, &runtime, JSON, mine.clone(), 403, "Forbidden", never),
        (Method::PATCH, &runtime, merge, "{}".to_owned(), 403, "Forbidden", never),
        (Method::PATCH, &runtime, apply, mine, 403, "Forbidden", never),
        (Method::DELETE, &runtime, JSON, String::new(), 403, "Forbidden", never),
        (Method::POST, &RUNTIMES.to_owned(), JSON, new_runtime.to_string(), 409, "AlreadyExists", program),
    ] {
        let (got, status) = server.write(method.clone(), path, media_type, body).await;
        assert_eq!((got, told(&status)), (code, (reason, message)), "{method} {path}");
    }
    assert_eq!(server.store.version(), version);
}

#[tokio::test]
async fn the_status_of_a_resource_is_read_and_not_written() {
    let server = Server::start().await;
    server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    let path = format!("{ISVCS}/a/status");
    for method in [Method::PUT, Method::PATCH, Method::DELETE, Method::POST] {
        let response = server.ask(method.clone(), &path, &[("content-type", JSON)], document("a", 1).to_string()).await;
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        let (code, status) = whole(response).await;
        let message = "the status of InferenceService default/a is written by this server alone: change the spec of the resource";
        assert_eq!((code, told(&status)), (405, ("MethodNotAllowed", message)), "{method}");
    }
    assert_eq!(server.get(&path).await["metadata"]["name"], "a");
    assert_eq!(server.json(Method::GET, &format!("{ISVCS}/b/status")).await.0, 404);
}

#[tokio::test]
async fn resources_made_here_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || -> Arc<dyn Store> { Arc::new(RedbStore::open(dir.path(), Clock::system()).unwrap()) };
    let server = Server::with(open(), None, Access::Loopback).await;
    server.write(Method::POST, ISVCS, JSON, document("a", 1)).await;
    server.write(Method::POST, ISVCS, JSON, document("b", 1)).await;
    server.write(Method::PATCH, &format!("{ISVCS}/a"), "application/merge-patch+json", json!({ "spec": { "more": [1] } })).await;
    server.json(Method::DELETE, &format!("{ISVCS}/b")).await;
    let before = server.get(&format!("{ISVCS}/a")).await;
    let Server { store, client, shutdown, serving, .. } = server;
    shutdown.cancel();
    drop(client);
    serving.await.unwrap();
    drop(store);

    let server = Server::with(open(), None, Access::Loopback).await;
    assert_eq!(server.get(&format!("{ISVCS}/a")).await, before);
    assert_eq!(server.names(ISVCS).await, ["a"]);
    let mut next = before;
    next["spec"]["more"] = json!([2]);
    assert_eq!(server.write(Method::PUT, &format!("{ISVCS}/a"), JSON, next).await.1["metadata"]["generation"], 3);
}

#[tokio::test]
async fn both_a_cluster_wide_and_a_namespaced_runtime_can_be_made_and_removed() {
    let server = Server::with(Arc::new(MemoryStore::new(Clock::system())), None, Access::Loopback).await;
    for (collection, kind) in [
        (RUNTIMES.to_owned(), "ClusterServingRuntime"),
        ("/apis/serving.kserve.io/v1alpha1/namespaces/team/servingruntimes".to_owned(), "ServingRuntime"),
        ("/apis/serving.kserve.io/v1alpha1/namespaces/team/predictors".to_owned(), "Predictor"),
    ] {
        let body = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": kind, "metadata": { "name": "r" }, "spec": { "x": 1 } });
        assert_eq!(server.write(Method::POST, &collection, JSON, body).await.0, 201);
        assert_eq!(server.json(Method::DELETE, &format!("{collection}/r")).await.1["status"], "Success");
    }
    assert_eq!(server.store.list().len(), 0);
}
