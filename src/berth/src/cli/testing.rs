//! A server for tests that says what it is told to.

use std::net::SocketAddr;

use berth_telemetry::{HostNet, Net};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// An answer with a body of JSON.
pub(crate) fn whole(code: u16, body: &Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// A server that gives each connection its answer and then closes it; after the last answer it keeps quiet. Sends on the
/// heads of the requests.
pub(crate) async fn scripted(answers: Vec<String>) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = connection.read_u8().await else { break };
                head.push(byte);
            }
            let _ = asked.send(String::from_utf8_lossy(&head).into_owned());
            match answers.next() {
                Some(answer) => {
                    let _ = connection.write_all(answer.as_bytes()).await;
                }
                None => std::future::pending().await,
            }
        }
    });
    (addr, asks)
}
