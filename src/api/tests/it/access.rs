//! Who is let in.

use std::sync::Arc;

use berth_api::{Access, Api, Deps, Limits, Token};
use berth_registry::{MemoryStore, Store, Views};
use berth_telemetry::Clock;
use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::server::{ISVCS, Server, whole};

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new(Clock::system()))
}

#[tokio::test]
async fn a_loopback_server_answers_for_names_of_this_machine_only() {
    let server = Server::start().await;
    for (host, code) in
        [("localhost", 200), ("127.0.0.1:1234", 200), ("[::1]:8088", 200), ("evil.example", 403), ("127.0.0.1.evil.example:8088", 403)]
    {
        assert_eq!(server.send(Method::GET, ISVCS, Some(host)).await.status(), code, "{host}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_cannot_write_to_a_loopback_server() {
    let server = Server::start().await;
    let body = json!({ "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": { "name": "a" } }).to_string();
    // What a browser sends for a page without asking the server first.
    let headers = [("origin", "https://evil.example"), ("host", "localhost")];
    let (code, status) = whole(server.ask(Method::POST, ISVCS, &headers, body.clone()).await).await;
    assert_eq!((code, status["message"].as_str()), (403, Some("a page of another site may not change anything here")));
    assert_eq!(server.store.list().len(), 0);
    let own = [("origin", "http://localhost"), ("host", "localhost")];
    assert_eq!(whole(server.ask(Method::POST, ISVCS, &own, body).await).await.0, 201);
}

#[tokio::test]
async fn with_a_token_everybody_who_knows_it_is_let_in_and_nobody_else() {
    let server = Server::with(memory(), None, Access::token(Token::new("s3cret").unwrap())).await;
    for path in ["/healthz", "/version", ISVCS, "/nowhere"] {
        for wrong in [&[][..], &[("authorization", "Bearer wrong!")], &[("authorization", "Basic s3cret")]] {
            let response = server.ask(Method::GET, path, wrong, "").await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (code, status) = whole(response).await;
            assert_eq!((code, status["kind"].as_str(), status["reason"].as_str()), (401, Some("Status"), Some("Unauthorized")), "{path}");
            assert!(!status.to_string().contains("s3cret"));
        }
    }
    // From wherever and under whatever name.
    let headers = [("authorization", "Bearer s3cret"), ("host", "berth.example")];
    assert_eq!(server.ask(Method::GET, ISVCS, &headers, "").await.status(), 200);
    let body = json!({ "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": { "name": "a" } }).to_string();
    assert_eq!(server.ask(Method::POST, ISVCS, &[], body.clone()).await.status(), 401);
    assert_eq!(server.store.list().len(), 0);
    assert_eq!(server.ask(Method::POST, ISVCS, &headers, body).await.status(), 201);
}

#[test]
fn an_open_socket_without_a_token_is_not_served() {
    let deps = Deps {
        store: memory(),
        views: Views::in_epoch(1),
        clock: Clock::system(),
        faults: None,
        downloads: None,
        drifts: None,
        memory: None,
        led_by: None,
        access: Access::Loopback,
        limits: Limits::default(),
    };
    let fault = Api::new(deps, "0.0.0.0:1".parse().unwrap(), CancellationToken::new()).err().expect("it was served");
    assert_eq!(fault.to_string(), "the resource API on 0.0.0.0:1 can be reached from elsewhere: give it a token or a loopback address");
}
