//! What clients read: resources, lists, watches, discovery, errors.

use std::sync::Arc;

use berth_api::Access;
use berth_registry::{Desired, Folder, Kind, MemoryStore, Store, bundled};
use berth_telemetry::Clock;
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use super::server::{ISVCS, PATIENCE, Server, isvc, key};

#[tokio::test]
async fn a_resource_is_a_whole_kubernetes_object() {
    let server = Server::start().await;
    let made = server.store.apply(isvc("default", "digits", &[("tier", "gold")]), None).await.unwrap();
    server.store.set_status(&made.key, made.uid, json!({ "state": "Loaded" })).await.unwrap();
    let document = server.get(&format!("{ISVCS}/digits")).await;
    let expected = json!({
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "digits",
            "namespace": "default",
            "uid": made.uid,
            "resourceVersion": "2",
            "generation": 1,
            "creationTimestamp": made.created.rfc3339(),
            "labels": { "tier": "gold" },
        },
        "spec": { "predictor": { "model": { "modelFormat": { "name": "onnx" } } } },
        "status": { "state": "Loaded" },
    });
    assert_eq!(document, expected);
    let list = server.get(ISVCS).await;
    assert_eq!(
        list,
        json!({ "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceServiceList", "metadata": { "resourceVersion": "2" }, "items": [expected] })
    );
}

#[tokio::test]
async fn lists_are_of_a_kind_and_a_namespace_and_what_selectors_choose() {
    let server = Server::start().await;
    for object in bundled() {
        server.store.apply(object, None).await.unwrap();
    }
    for (namespace, name, tier) in [("default", "a", "gold"), ("default", "b", "silver"), ("team", "c", "gold")] {
        server.store.apply(isvc(namespace, name, &[("tier", tier)]), None).await.unwrap();
    }
    let predictor = Desired { key: key(Kind::Predictor, "default", "p"), ..Desired::clone(&isvc("default", "p", &[])) };
    server.store.apply(predictor.into(), None).await.unwrap();
    let all = "/apis/serving.kserve.io/v1beta1/inferenceservices";
    for (path, expected) in [
        (all.to_owned(), &["a", "b", "c"][..]),
        (ISVCS.to_owned(), &["a", "b"]),
        ("/apis/serving.kserve.io/v1beta1/namespaces/nobody/inferenceservices".to_owned(), &[]),
        ("/apis/serving.kserve.io/v1alpha1/predictors".to_owned(), &["p"]),
        ("/apis/serving.kserve.io/v1alpha1/servingruntimes".to_owned(), &[]),
        ("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes".to_owned(), &["berth-onnx"]),
        (format!("{all}?labelSelector=tier%3Dgold"), &["a", "c"]),
        (format!("{all}?labelSelector=tier%20in%20(silver,bronze),!x"), &["b"]),
        (format!("{all}?fieldSelector=metadata.name%3Dc"), &["c"]),
    ] {
        assert_eq!(server.names(&path).await, expected, "{path}");
    }
    let runtime = server.get("/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/berth-onnx").await;
    assert_eq!(runtime["spec"]["supportedModelFormats"], json!([{ "name": "onnx", "version": "1", "autoSelect": true }]));
    assert_eq!(runtime["metadata"].get("namespace"), None);
}

#[tokio::test]
async fn pages_together_are_the_list_and_carry_the_version_of_the_first() {
    let server = Server::start().await;
    for n in 0..300 {
        server.store.apply(isvc(if n % 2 == 0 { "default" } else { "team" }, &format!("m{n:03}"), &[]), None).await.unwrap();
    }
    let all = "/apis/serving.kserve.io/v1beta1/inferenceservices";
    let whole = server.names(all).await;
    assert_eq!(whole.len(), 300);
    let (mut paged, mut next, mut rests) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = server.get(&format!("{all}?limit=140&continue={next}")).await;
        assert_eq!(page["metadata"]["resourceVersion"], "300");
        paged.extend(page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        rests.push(page["metadata"]["remainingItemCount"].as_u64());
        // What changes between the pages is for a watch to tell.
        server.store.apply(isvc("default", &format!("late-{}", paged.len()), &[]), None).await.unwrap();
        match page["metadata"]["continue"].as_str() {
            Some(token) => next = token.to_owned(),
            None => break,
        }
    }
    paged.retain(|name| !name.starts_with("late"));
    assert_eq!(paged, whole);
    assert_eq!((rests[0], rests.last()), (Some(160), Some(&None)));
}

#[tokio::test]
async fn errors_are_status_objects() {
    let server = Server::start().await;
    server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    let nothing_there = "the server could not find the requested resource";
    for (method, path, code, reason, message) in [
        (Method::GET, format!("{ISVCS}/x"), 404, "NotFound", "inferenceservices.serving.kserve.io \"x\" not found"),
        (Method::GET, "/apis/serving.kserve.io/v1/inferenceservices".into(), 404, "NotFound", nothing_there),
        (Method::GET, format!("{ISVCS}?limit=x"), 400, "BadRequest", "limit=x: expected a number, 0 for no limit"),
        (
            Method::GET,
            format!("{ISVCS}?continue=9999:a:b"),
            410,
            "Expired",
            "changes after version 9999 are not kept, only those after 0 up to 1: list again and watch from there",
        ),
        (
            Method::GET,
            format!("{ISVCS}?watch=1&resourceVersion=9999"),
            410,
            "Expired",
            "changes after version 9999 are not kept, only those after 0 up to 1: list again and watch from there",
        ),
        (Method::PUT, ISVCS.into(), 405, "MethodNotAllowed", "PUT is not possible here: use one of GET, HEAD, POST, DELETE"),
        (Method::POST, format!("{ISVCS}/a"), 405, "MethodNotAllowed", "POST is not possible here: use one of GET, HEAD, PUT, PATCH, DELETE"),
        (Method::POST, "/version".into(), 405, "MethodNotAllowed", "POST is not possible here: use one of GET, HEAD"),
        (
            Method::DELETE,
            "/apis/serving.kserve.io/v1beta1/inferenceservices".into(),
            405,
            "MethodNotAllowed",
            "DELETE of inferenceservices needs a namespace: use .../namespaces/NAMESPACE/inferenceservices",
        ),
        (
            Method::PUT,
            format!("{ISVCS}/a/status"),
            405,
            "MethodNotAllowed",
            "the status of InferenceService default/a is written by this server alone: change the spec of the resource",
        ),
        (Method::POST, "/nowhere".into(), 404, "NotFound", nothing_there),
    ] {
        let (got, status) = server.json(method.clone(), &path).await;
        assert_eq!((got, status["code"].as_u64()), (code, Some(code.into())), "{method} {path}");
        assert_eq!(
            (status["kind"].as_str(), status["apiVersion"].as_str(), status["status"].as_str()),
            (Some("Status"), Some("v1"), Some("Failure"))
        );
        assert_eq!((status["reason"].as_str(), status["message"].as_str()), (Some(reason), Some(message)), "{method} {path}");
    }
    let (_, missing) = server.json(Method::GET, &format!("{ISVCS}/x")).await;
    assert_eq!(missing["details"], json!({ "name": "x", "group": "serving.kserve.io", "kind": "inferenceservices" }));
    let refused = server.send(Method::PATCH, ISVCS, None).await;
    assert_eq!(refused.headers()["allow"], "GET, HEAD, POST, DELETE");
}

#[tokio::test]
async fn a_watch_tells_every_state_of_what_it_covers_in_order() {
    let server = Server::start().await;
    let a = server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    server.store.apply(isvc("team", "elsewhere", &[]), None).await.unwrap();
    let list = server.get(ISVCS).await;
    let since = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = server.watch(&format!("{ISVCS}?watch=true&resourceVersion={since}")).await;
    let mut fresh = server.watch(&format!("{ISVCS}?watch=true")).await;
    assert_eq!(fresh.lines(1).await, ["ADDED a -"]);
    for state in ["Pending", "Loading", "Loaded"] {
        server.store.set_status(&a.key, a.uid, json!({ "state": state })).await.unwrap();
    }
    server.store.apply(isvc("team", "elsewhere", &[("x", "y")]), None).await.unwrap();
    server.store.apply(isvc("default", "b", &[]), None).await.unwrap();
    server.store.delete(&a.key).await.unwrap();
    let expected = ["MODIFIED a Pending", "MODIFIED a Loading", "MODIFIED a Loaded", "ADDED b -", "DELETED a Loaded"];
    assert_eq!(watch.lines(5).await, expected);
    assert_eq!(fresh.lines(5).await, expected);
    // From an older version everything since is told again.
    assert_eq!(server.watch(&format!("{ISVCS}?watch=true&resourceVersion={since}")).await.lines(5).await, expected);
}

#[tokio::test]
async fn a_watch_with_a_selector_sees_objects_come_into_sight_and_leave_it() {
    let server = Server::start().await;
    let mut watch = server.watch(&format!("{ISVCS}?watch=true&labelSelector=tier%3Dgold")).await;
    for labels in [&[][..], &[("tier", "gold")], &[("tier", "gold"), ("x", "y")], &[("tier", "silver")], &[("tier", "gold")]] {
        server.store.apply(isvc("default", "a", labels), None).await.unwrap();
    }
    server.store.delete(&key(Kind::InferenceService, "default", "a")).await.unwrap();
    assert_eq!(watch.lines(5).await, ["ADDED a -", "MODIFIED a -", "DELETED a -", "ADDED a -", "DELETED a -"]);
}

#[tokio::test]
async fn a_watch_ends_at_its_time_and_with_the_server() {
    let server = Server::start().await;
    let mut short = server.watch(&format!("{ISVCS}?watch=true&timeoutSeconds=0")).await;
    assert_eq!(short.next().await, None);
    let mut long = server.watch(&format!("{ISVCS}?watch=true")).await;
    server.shutdown.cancel();
    assert_eq!(long.next().await, None);
    drop((short, long));
    let ended = server.clock.until(server.clock.deadline_in(PATIENCE), server.serving).await;
    ended.expect("the server did not end").unwrap();
}

#[tokio::test]
async fn a_watch_of_a_version_that_is_too_old_is_told_to_list_again() {
    let server = Server::start().await;
    let made = server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    for n in 0..5_000 {
        server.store.set_status(&made.key, made.uid, json!({ "n": n })).await.unwrap();
    }
    let (code, status) = server.json(Method::GET, &format!("{ISVCS}?watch=true&resourceVersion=1")).await;
    assert_eq!((code, status["reason"].as_str()), (410, Some("Expired")));
}

#[tokio::test]
async fn clients_find_their_way_around() {
    let server = Server::start().await;
    let health = server.send(Method::GET, "/healthz", None).await;
    assert_eq!((health.status().as_u16(), &health.headers()["x-content-type-options"]), (200, &"nosniff".parse().unwrap()));
    assert_eq!(health.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert!(server.get("/version").await["gitVersion"].as_str().unwrap().starts_with('v'));
    assert_eq!(server.get("/api").await["kind"], "APIVersions");
    assert_eq!(server.get("/api/v1").await["resources"], json!([]));
    let groups = server.get("/apis").await;
    let group = server.get("/apis/serving.kserve.io").await;
    for found in [&groups["groups"][0], &group] {
        assert_eq!(found["name"], "serving.kserve.io");
        assert_eq!(found["preferredVersion"], json!({ "groupVersion": "serving.kserve.io/v1beta1", "version": "v1beta1" }));
        // Each resource that is announced can be listed.
        for version in found["versions"].as_array().unwrap() {
            let path = format!("/apis/{}", version["groupVersion"].as_str().unwrap());
            let resources = server.get(&path).await["resources"].as_array().unwrap().clone();
            for resource in resources.iter().filter(|resource| !resource["name"].as_str().unwrap().contains('/')) {
                let list = server.get(&format!("{path}/{}", resource["name"].as_str().unwrap())).await;
                assert_eq!(list["kind"].as_str(), Some(format!("{}List", resource["kind"].as_str().unwrap()).as_str()));
            }
        }
    }
    // Each description that is announced is there and names every kind of its version.
    let described = server.get("/openapi/v3").await;
    let mut kinds = Vec::new();
    for description in described["paths"].as_object().unwrap().values() {
        let document = server.get(description["serverRelativeURL"].as_str().unwrap()).await;
        for path in document["paths"].as_object().unwrap().values() {
            kinds.push(path["patch"]["x-kubernetes-group-version-kind"]["kind"].as_str().unwrap().to_owned());
            let parameters = path["patch"]["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"), "{path}");
        }
    }
    kinds.sort();
    assert_eq!(kinds, ["ClusterServingRuntime", "InferenceService", "Predictor", "ServingRuntime"]);
    assert_eq!(server.get("/berth/v1/view").await, json!({ "epoch": 4, "sequence": 0, "ready": false, "names": 0, "models": 0 }));
    assert_eq!(server.get("/berth/v1/faults").await, json!({ "items": [] }));
    let head = server.send(Method::HEAD, ISVCS, None).await;
    assert_eq!((head.status().as_u16(), head.into_body().collect().await.unwrap().to_bytes().len()), (200, 0));
}

#[tokio::test]
async fn the_faults_of_the_folder_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), "kind: [\n").unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Clock::system()));
    let mut folder = Folder::open(dir.path(), Arc::clone(&store), Clock::system()).unwrap();
    folder.rescan().await;
    let server = Server::with(store, Some(folder.faults()), Access::Loopback).await;
    let faults = server.get("/berth/v1/faults").await;
    let fault = &faults["items"][0];
    assert!(fault["file"].as_str().unwrap().ends_with("a.yaml") && fault["line"].is_u64() && fault["kind"] == "Broken", "{faults}");
}
