//! What the API bears: connections that bring nothing, too many of them, watches that are quiet for long.

use std::sync::Arc;
use std::time::Duration;

use berth_api::{Access, Limits};
use berth_proxy::ProxyConfig;
use berth_registry::{MemoryStore, Store};
use berth_telemetry::Clock;
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::{ISVCS, PATIENCE, Server, isvc, whole};

async fn server(config: &ProxyConfig, limits: Limits) -> Server {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Clock::system()));
    Server::within(config, limits, store, None, Access::Loopback).await
}

/// Connects, sends `text` and waits until the server ends the connection.
async fn cut_off_after(server: &Server, text: &str) -> String {
    let mut connection = TcpStream::connect(server.addr).await.unwrap();
    connection.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = server.clock.until(server.clock.deadline_in(PATIENCE), connection.read_to_end(&mut answer)).await;
    // A reset is an end as well.
    let _ = end.expect("the connection was not ended");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_slow_head_and_a_resting_connection_are_cut_off_and_a_quiet_watch_is_not() {
    let short = Duration::from_millis(100);
    let config = ProxyConfig { head_timeout: short, idle_timeout: short, ..ProxyConfig::default() };
    let server = server(&config, Limits::default()).await;
    let mut watch = server.watch(&format!("{ISVCS}?watch=true")).await;
    let begun = server.clock.now();
    for (case, text, answered) in [
        ("nothing", String::new(), false),
        ("half a head", format!("GET {ISVCS} HTTP/1.1\r\nhost: localhost\r\n"), false),
        ("one request and then none", format!("GET {ISVCS} HTTP/1.1\r\nhost: localhost\r\n\r\n"), true),
    ] {
        let answer = cut_off_after(&server, &text).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 OK\r\n"), answered, "{case}: {answer}");
    }
    // By now the watch has been quiet for longer than any of them was borne.
    assert!(server.clock.now() - begun > 3 * short);
    server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    assert_eq!(watch.lines(1).await, ["ADDED a -"]);
}

#[tokio::test]
async fn a_server_has_as_many_connections_as_it_may_and_those_go_on() {
    let config = ProxyConfig { max_connections: 1, ..ProxyConfig::default() };
    let server = server(&config, Limits::default()).await;
    let mut watch = server.watch(&format!("{ISVCS}?watch=true")).await;
    assert_eq!(cut_off_after(&server, "").await, "");
    server.store.apply(isvc("default", "a", &[]), None).await.unwrap();
    assert_eq!(watch.lines(1).await, ["ADDED a -"]);
}

#[tokio::test]
async fn a_watch_beyond_the_limit_is_refused_until_a_client_of_another_one_goes() {
    let server = server(&ProxyConfig::default(), Limits { watches: 1 }).await;
    let path = format!("{ISVCS}?watch=true");
    let first = server.watch(&path).await;
    let refused = server.send(Method::GET, &path, None).await;
    assert_eq!(refused.headers()["retry-after"], "5");
    let (code, status) = whole(refused).await;
    assert_eq!((code, status["reason"].as_str()), (429, Some("TooManyRequests")), "{status}");
    assert_eq!(status["message"], "1 watches are open already, as many as there may be: end some, or try again in 5 seconds");
    assert_eq!(server.send(Method::GET, ISVCS, None).await.status(), 200);
    drop(first);
    // The server notices that the client has gone when it notices it.
    let again = async { while server.send(Method::GET, &path, None).await.status() != 200 {} };
    server.clock.until(server.clock.deadline_in(PATIENCE), again).await.expect("no place came free");
}
