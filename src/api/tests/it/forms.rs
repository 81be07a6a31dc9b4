//! The forms of an answer: JSON, YAML, and the tables that kubectl prints.

use berth_registry::{Desired, Kind, ObjectKey, Origin, yaml_document};
use berth_types::Name;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::server::{ISVCS, Server, isvc, key, whole};

/// What kubectl 1.32 sends for `get`.
const KUBECTL: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

async fn ask(server: &Server, path: &str, accept: &str) -> (u16, String, String) {
    let response = server.ask(Method::GET, path, &[("accept", accept)], "").await;
    let code = response.status().as_u16();
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, media_type, String::from_utf8(body.to_vec()).unwrap())
}

async fn table(server: &Server, path: &str) -> Value {
    let (code, media_type, text) = ask(server, path, KUBECTL).await;
    assert_eq!((code, media_type.as_str()), (200, "application/json"), "{text}");
    let table: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&table["kind"], &table["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")), "{table}");
    table
}

fn heads(table: &Value) -> Vec<&str> {
    table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect()
}

/// The cells of each row, without the age.
fn cells(table: &Value) -> Vec<Value> {
    let age = heads(table).iter().position(|head| *head == "Age").unwrap();
    let without = |row: &Value| {
        let mut cells = row["cells"].as_array().unwrap().clone();
        cells.remove(age);
        cells.into()
    };
    table["rows"].as_array().unwrap().iter().map(without).collect()
}

#[tokio::test]
async fn kubectl_is_given_tables_with_the_columns_of_each_kind() {
    let server = Server::start().await;
    let predictor = Desired::new(key(Kind::Predictor, "default", "p"), Origin::Api, &json!({ "modelType": { "name": "onnx" } }));
    let predictor = server.store.apply(predictor.into(), None).await.unwrap();
    let status = json!({ "available": true, "activeModelState": "Loaded", "targetModelState": "", "transitionStatus": "UpToDate" });
    server.store.set_status(&predictor.key, predictor.uid, status).await.unwrap();
    let spec = json!({ "supportedModelFormats": [{ "name": "onnx" }, { "name": "x" }], "containers": [{ "name": "c" }], "disabled": false });
    let runtime = ObjectKey { kind: Kind::ClusterServingRuntime, namespace: None, name: Name::new("r").unwrap() };
    server.store.apply(Desired::new(runtime, Origin::Api, &spec).into(), None).await.unwrap();
    let service = server.store.apply(isvc("default", "s", &[]), None).await.unwrap();
    let status = json!({
        "components": { "predictor": { "grpcUrl": "grpc://h:1" } },
        "conditions": [{ "type": "Ready", "status": "True" }],
        "modelStatus": { "states": { "activeModelState": "Loaded", "targetModelState": "" }, "transitionStatus": "UpToDate", "copies": { "totalCopies": 1 } },
    });
    server.store.set_status(&service.key, service.uid, status).await.unwrap();

    let predictors = table(&server, "/apis/serving.kserve.io/v1alpha1/predictors").await;
    assert_eq!(heads(&predictors), ["Name", "Type", "Available", "ActiveModel", "TargetModel", "Transition", "Age", "Progress"]);
    assert_eq!(cells(&predictors), [json!(["p", "onnx", true, "Loaded", null, "UpToDate", ""])]);
    let runtimes = table(&server, "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes").await;
    assert_eq!(heads(&runtimes), ["Name", "Disabled", "ModelType", "Containers", "Age"]);
    assert_eq!(cells(&runtimes), [json!(["r", false, "onnx,x", "c"])]);
    let services = table(&server, ISVCS).await;
    assert_eq!(heads(&services), ["Name", "URL", "Ready", "ActiveModel", "TargetModel", "Transition", "Copies", "Failure", "Age", "Progress"]);
    assert_eq!(cells(&services), [json!(["s", "grpc://h:1", "True", "Unmanaged", null, "UpToDate", 1, null, ""])]);
    assert_eq!(services["metadata"]["resourceVersion"], "5");

    // One resource is a table of one row, which carries what the client asks for.
    let one = table(&server, &format!("{ISVCS}/s")).await;
    assert_eq!((cells(&one), heads(&one)), (cells(&services), heads(&services)));
    for (query, kind, spec) in [("", json!("PartialObjectMetadata"), false), ("?includeObject=Object", json!("InferenceService"), true)] {
        let object = &table(&server, &format!("{ISVCS}/s{query}")).await["rows"][0]["object"];
        assert_eq!((&object["kind"], &object["metadata"]["name"], object["spec"].is_object()), (&kind, &json!("s"), spec), "{query}");
    }
    assert_eq!(table(&server, &format!("{ISVCS}?includeObject=None")).await["rows"][0]["object"], Value::Null);
    assert_eq!(ask(&server, &format!("{ISVCS}?includeObject=x"), KUBECTL).await.0, 400);
    // What is refused is a Status in every form.
    let (code, media_type, text) = ask(&server, &format!("{ISVCS}/nobody"), KUBECTL).await;
    assert_eq!((code, media_type.as_str(), text.contains("\"Status\"")), (404, "application/json", true), "{text}");
    // A long one comes in pieces and is whole all the same, page by page.
    for n in 0..300 {
        server.store.apply(isvc("default", &format!("n{n}"), &[]), None).await.unwrap();
    }
    let page = table(&server, &format!("{ISVCS}?limit=200")).await;
    assert_eq!((page["rows"].as_array().unwrap().len(), page["metadata"]["remainingItemCount"].as_u64()), (200, Some(101)));
    let rest = table(&server, &format!("{ISVCS}?limit=200&continue={}", page["metadata"]["continue"].as_str().unwrap())).await;
    assert_eq!(rest["rows"].as_array().unwrap().len(), 101);
}

#[tokio::test]
async fn a_watch_can_be_one_of_tables_that_name_their_columns_once() {
    let server = Server::start().await;
    let made = server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    let mut watch = server.watch_as(&format!("{ISVCS}?watch=true"), KUBECTL).await;
    server.store.set_status(&made.key, made.uid, json!({ "modelStatus": { "transitionStatus": "InProgress" } })).await.unwrap();
    server.store.delete(&made.key).await.unwrap();
    for (kind, columns, transition) in [("ADDED", 10, Value::Null), ("MODIFIED", 0, json!("InProgress")), ("DELETED", 0, json!("InProgress"))] {
        let line = watch.next().await.unwrap();
        let table = &line["object"];
        assert_eq!((&line["type"], &table["kind"], heads(table).len()), (&json!(kind), &json!("Table"), columns), "{line}");
        let row = &table["rows"][0];
        assert_eq!((&row["cells"][5], &row["object"]["metadata"]["name"]), (&transition, &json!("a")), "{line}");
        assert_eq!(table["metadata"]["resourceVersion"], row["object"]["metadata"]["resourceVersion"], "{line}");
    }
}

#[tokio::test]
async fn what_is_read_as_yaml_is_what_is_read_as_json() {
    let server = Server::start().await;
    let spec = json!({ "text": "a\nb\n", "block": "one\n\n  two: 3\n", "number": "1.15", "none": null, "list": [[], {}, [1, "- x"]], "yes": "yes" });
    for name in ["a", "b"] {
        let made = Desired::new(key(Kind::InferenceService, "default", name), Origin::Api, &spec);
        server.store.apply(made.into(), None).await.unwrap();
    }
    for path in [
        format!("{ISVCS}/a"),
        ISVCS.to_owned(),
        format!("{ISVCS}?limit=1"),
        format!("{ISVCS}?labelSelector=no"),
        "/apis/serving.kserve.io".to_owned(),
        "/berth/v1/view".to_owned(),
    ] {
        let (code, media_type, text) = ask(&server, &path, "application/yaml").await;
        assert_eq!((code, media_type.as_str()), (200, "application/yaml"), "{path}");
        assert_eq!(yaml_document(&text).unwrap(), server.get(&path).await, "{path}: {text}");
    }
}

#[tokio::test]
async fn who_takes_none_of_our_forms_is_told_which_there_are() {
    let server = Server::start().await;
    server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    for (path, accept, forms) in [
        (format!("{ISVCS}/a"), "text/html", "application/json, application/yaml, application/json;as=Table;v=v1;g=meta.k8s.io"),
        (ISVCS.to_owned(), "application/vnd.kubernetes.protobuf", "application/json, application/yaml, application/json;as=Table;v=v1;g=meta.k8s.io"),
        (format!("{ISVCS}?watch=1"), "application/yaml", "application/json, application/json;as=Table;v=v1;g=meta.k8s.io"),
    ] {
        let (code, status) = whole(server.ask(Method::GET, &path, &[("accept", accept)], "").await).await;
        assert_eq!((code, &status["kind"], &status["reason"]), (406, &json!("Status"), &json!("NotAcceptable")), "{path}");
        assert_eq!(status["message"], format!("only the following media types are accepted: {forms}"), "{path}");
    }
    // What clients ask before they know anything is answered in any case.
    for path in ["/version", "/openapi/v3", "/apis", "/healthz"] {
        assert_eq!(ask(&server, path, "application/vnd.kubernetes.protobuf").await.0, 200, "{path}");
    }
}
