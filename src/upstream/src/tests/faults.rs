//! Calls that fail: what is said about them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_telemetry::Clock;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Request;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use super::host::{Door, Host};
use super::peer::{DATA, END_STREAM, HEADERS, Peer, RST_STREAM};
use super::sharing::echo;
use super::{Counting, get, server, told, whole};
use crate::{Answer, CallError, Code, Config, Server};

/// A server that is a [`Peer`], and that peer.
async fn met() -> (Server, Peer, Door) {
    let door = Door::tcp().await;
    let server = server(&door.target(), Config { connections: 1, ..Config::default() });
    let (first, peer) = tokio::join!(server.call(get("/first")), async {
        let mut peer = Peer::meet(&door, &[]).await;
        let head = peer.next_of(HEADERS).await;
        peer.head(head.stream, END_STREAM).await;
        peer
    });
    assert!(first.unwrap().body().is_end_stream());
    (server, peer, door)
}

/// What an answer that has begun ends with.
async fn breaks(mut answer: http::Response<Answer>) -> CallError {
    loop {
        match answer.body_mut().frame().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("the answer ended as if it were whole"),
        }
    }
}

#[tokio::test]
async fn a_reset_is_told_with_its_code_and_only_a_refusal_may_be_sent_again() {
    let (server, mut peer, _door) = met().await;
    for code in (0..=13).chain([99]) {
        let (called, ()) = tokio::join!(server.call(get("/")), async {
            let head = peer.next_of(HEADERS).await;
            peer.number(RST_STREAM, head.stream, code).await;
        });
        let error = called.unwrap_err();
        let refused = Code(code) == Code::REFUSED_STREAM;
        assert_eq!(error.safe_to_send_again(), refused, "{error}");
        assert!(error.to_string().contains(&Code(code).to_string()), "{error}");
        assert_eq!(matches!(error, CallError::Reset { code: told, .. } if told == Code(code)), !refused, "{error}");

        let (called, stream) = tokio::join!(server.call(get("/")), async {
            let head = peer.next_of(HEADERS).await;
            peer.head(head.stream, 0).await;
            peer.send(DATA, 0, head.stream, b"some").await;
            head.stream
        });
        let mut answer = called.unwrap();
        assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "some");
        peer.number(RST_STREAM, stream, code).await;
        let error = breaks(answer).await;
        assert!(matches!(error, CallError::Reset { code: told, .. } if told == Code(code)), "after the head of the answer: {error}");
        assert!(!error.safe_to_send_again(), "{error}");
    }
    assert_eq!((server.state().connections, server.state().streams), (1, 0), "the connection is still good");
}

#[tokio::test]
async fn a_closing_server_tells_apart_what_it_began_with() {
    let (server, mut peer, door) = met().await;
    let mut calls: FuturesUnordered<_> = ["/a", "/b", "/c"].map(|path| server.call(get(path))).into_iter().collect();
    let streams = tokio::select! {
        called = calls.next() => panic!("{called:?}"),
        streams = async {
            [peer.next_of(HEADERS).await.stream, peer.next_of(HEADERS).await.stream, peer.next_of(HEADERS).await.stream]
        } => streams,
    };
    peer.go_away(streams[0], 0).await;
    for _ in 0..2 {
        let error = calls.next().await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::NotProcessed { .. }) && error.safe_to_send_again(), "{error}");
        assert!(error.to_string().contains("closing the connection with NO_ERROR"), "{error}");
    }
    peer.head(streams[0], 0).await;
    let open = calls.next().await.unwrap().unwrap();
    drop(calls);
    // What it began with goes on; what comes now goes elsewhere.
    let (called, mut other) = tokio::join!(server.call(get("/next")), async {
        let mut other = Peer::meet(&door, &[]).await;
        let head = other.next_of(HEADERS).await;
        other.head(head.stream, END_STREAM).await;
        other
    });
    assert!(called.is_ok());
    peer.send(DATA, END_STREAM, streams[0], b"late").await;
    assert_eq!(whole(open).await.unwrap().0, "late");
    let state = server.state();
    assert_eq!((state.connections, state.streams), (1, 0));
    drop(server);
    while other.next().await.is_some() {} // closed with the last handle
}

#[tokio::test]
async fn a_connection_that_breaks_loses_what_was_sent() {
    let (server, mut peer, _door) = met().await;
    let (called, stream) = tokio::join!(server.call(get("/begun")), async {
        let head = peer.next_of(HEADERS).await;
        peer.head(head.stream, 0).await;
        head.stream
    });
    let (called_too, ()) = tokio::join!(server.call(get("/sent")), async {
        peer.next_of(HEADERS).await;
        peer.send(DATA, 0, stream, b"part").await;
        drop(peer);
    });
    for error in [breaks(called.unwrap()).await, called_too.unwrap_err()] {
        assert!(matches!(error, CallError::Lost { .. }) && !error.safe_to_send_again(), "{error}");
        assert!(error.to_string().contains(&server.target().to_string()), "{error}");
    }
    assert_eq!(server.state().streams, 0);
}

#[tokio::test]
async fn a_body_that_fails_is_not_taken_for_the_servers_fault() {
    let (server, mut peer, _door) = met().await;
    for begun in [false, true] {
        let (sender, body) = told();
        sender.send(Ok(Frame::data("part".into()))).unwrap();
        let call = async {
            let mut answer = server.call(Request::post("/").body(body).unwrap()).await?;
            assert!(begun);
            match answer.body_mut().frame().await {
                Some(Err(error)) => Err::<(), _>(error),
                other => panic!("{other:?}"),
            }
        };
        let (called, ()) = tokio::join!(call, async {
            let stream = peer.next_of(DATA).await.stream;
            if begun {
                peer.head(stream, 0).await;
            }
            sender.send(Err(std::io::Error::other("the client went away"))).unwrap();
            let reset = peer.next_of(RST_STREAM).await;
            assert_eq!((reset.stream, Code(reset.number())), (stream, Code::CANCEL));
        });
        let error = called.unwrap_err();
        assert!(matches!(error, CallError::Body(_)) && !error.safe_to_send_again(), "{error}");
        assert!(error.to_string().contains("the client went away"), "{error}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_is_cancelled_at_the_server() {
    for (case, begun, stuck) in [
        ("waiting for the answer", false, false),
        ("waiting for room to send", false, true),
        ("in the answer", true, false),
        ("in the answer, waiting for room to send", true, true),
    ] {
        let (server, mut peer, _door) = met().await;
        let (sender, body) = told();
        sender.send(Ok(Frame::data(vec![1; if stuck { 1 << 20 } else { 5 }].into()))).unwrap();
        let mut call = Box::pin(server.call(Request::post("/").body(body).unwrap()));
        let stream = tokio::select! {
            called = &mut call => panic!("{case}: {called:?}"),
            frame = peer.next_of(DATA) => frame.stream,
        };
        if begun {
            peer.head(stream, 0).await;
            let answer = call.await.unwrap();
            assert_eq!(server.state().streams, 1, "{case}");
            drop(answer);
        } else {
            drop(call);
        }
        assert_eq!(server.state().streams, 0, "{case}");
        let reset = peer.next_of(RST_STREAM).await;
        assert_eq!((reset.stream, Code(reset.number())), (stream, Code::CANCEL), "{case}");
        drop(sender);
    }
}

#[tokio::test]
async fn an_answer_that_has_ended_ends_the_body_of_its_request() {
    let (server, mut peer, _door) = met().await;
    let (sender, body) = told();
    sender.send(Ok(Frame::data("part".into()))).unwrap();
    let (called, stream) = tokio::join!(server.call(Request::post("/").body(body).unwrap()), async {
        let stream = peer.next_of(DATA).await.stream;
        peer.head(stream, 0).await;
        stream
    });
    peer.send(DATA, END_STREAM, stream, b"enough").await;
    assert_eq!(whole(called.unwrap()).await.unwrap().0, "enough");
    let reset = peer.next_of(RST_STREAM).await;
    assert_eq!((reset.stream, Code(reset.number())), (stream, Code::CANCEL));
    sender.closed().await; // whoever makes the body learns of it
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_says_nothing_is_given_up_in_time() {
    let door = Door::tcp().await;
    let clock = Clock::system();
    let (started, server) = (clock.now(), server(&door.target(), Config::default()));
    let error = server.call(get("/")).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }) && error.safe_to_send_again(), "{error}");
    assert!(error.to_string().contains("did not answer within 10s"), "{error}");
    assert_eq!((clock.now() - started).as_secs(), 10);
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_named() {
    let door = Door::tcp().await;
    let server = server(&door.target(), Config::default());
    let (called, _socket) = tokio::join!(server.call(get("/")), async {
        let mut socket = door.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        socket
    });
    let error = called.unwrap_err().to_string();
    assert!(error.contains("does not speak HTTP/2 in plain text"), "{error}");
}

#[tokio::test]
async fn a_peer_that_stops_replying_to_pings_loses_its_calls() {
    let (server, mut peer, _door) = met().await;
    let (called, ()) = tokio::join!(server.call(get("/")), async {
        let stream = peer.next_of(HEADERS).await.stream;
        peer.head(stream, 0).await;
    });
    let (clock, answer) = (Clock::system(), called.unwrap());
    tokio::time::pause(); // the peer is still there, its socket too, but nobody reads it
    let started = clock.now();
    let error = breaks(answer).await;
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("did not reply to a ping within 60s"), "{error}");
    assert!((Duration::from_secs(60)..=Duration::from_secs(121)).contains(&(clock.now() - started)));
    assert_eq!(server.state().connections, 0);
}

#[tokio::test]
async fn a_peer_that_replies_to_pings_keeps_its_calls_however_long_they_take() {
    let door = Door::tcp().await;
    let ping_interval = Duration::from_millis(1);
    let server = server(&door.target(), Config { ping_interval, ping_timeout: Duration::from_secs(3600), ..Config::default() });
    let (called, _peer) = tokio::join!(server.call(get("/")), async {
        let mut peer = Peer::meet(&door, &[]).await;
        let stream = peer.next_of(HEADERS).await.stream;
        peer.pong().await;
        peer.pong().await;
        peer.head(stream, END_STREAM).await;
        peer
    });
    assert_eq!(called.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_is_not_called_more_often_than_a_pause_that_doubles() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grpc.sock");
    let (net, clock) = (Arc::new(Counting::default()), Clock::system());
    let server = Server::new(path.to_str().unwrap().parse().unwrap(), Config::default(), clock.clone(), net.clone());
    for (attempt, pause) in [25, 50, 100, 200, 400, 800, 1000, 1000].into_iter().enumerate() {
        for again in [false, true] {
            let error = server.call(get("/")).await.unwrap_err();
            assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
            assert_eq!(error.retry_after(), Some(Duration::from_millis(pause)), "attempt {attempt}, again {again}");
            assert!(error.to_string().contains("No such file"), "{error}");
        }
        assert_eq!(net.0.load(Ordering::SeqCst), attempt + 1, "the second call does not connect");
        clock.sleep(Duration::from_millis(pause - 1)).await;
        assert_eq!(server.call(get("/")).await.unwrap_err().retry_after(), Some(Duration::from_millis(1)));
        clock.sleep(Duration::from_millis(1)).await;
    }
    assert!(server.state().last_error.unwrap().contains("No such file"));
    let _host = Host::start(Door::unix(&path), 100, echo());
    tokio::time::resume();
    assert_eq!(server.call(get("/")).await.unwrap().status(), 200, "it is there now");
    assert_eq!(server.state().last_error, None);
}

#[tokio::test]
async fn a_server_that_was_killed_and_is_back_serves_the_next_call() {
    let host = Host::start(Door::tcp().await, 100, echo());
    let addr = host.target.to_string();
    let server = server(&host.target, Config::default());
    let (_sender, body) = told();
    let answer = server.call(Request::post("/").body(body).unwrap()).await.unwrap();
    host.kill().await;
    let error = breaks(answer).await;
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    let _host = Host::start(Door::at(&addr).await, 100, echo());
    let (called, trailers) = whole(server.call(get("/")).await.unwrap()).await.unwrap();
    assert!(called.is_empty() && trailers.is_some());
}

#[tokio::test]
async fn what_never_left_for_a_server_that_has_died_may_be_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grpc.sock");
    let mut host = Host::start(Door::unix(&path), 100, echo());
    let server = server(&host.target, Config::default());
    for _ in 0..20 {
        whole(server.call(get("/")).await.unwrap()).await.unwrap();
        host.kill().await;
        std::fs::remove_file(&path).unwrap();
        host = Host::start(Door::unix(&path), 100, echo());
        // Nobody has told the client yet.
        while let Err(error) = server.call(get("/")).await {
            assert!(error.safe_to_send_again(), "{error}");
        }
    }
}
