//! Flow control from end to end: who does not read holds up who writes, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use http_body::Frame;
use http_body_util::BodyExt as _;

use super::host::Door;
use super::peer::{DATA, END_STREAM, HEADERS, Peer, WINDOW_UPDATE};
use super::{Endless, get, server, told};
use crate::Config;
use berth_types::ByteSize;

const WINDOW: usize = 65_535; // where nobody says otherwise

#[tokio::test]
async fn the_first_piece_of_a_request_does_not_wait_for_its_head_to_be_written() {
    let door = Door::tcp().await;
    let server = server(&door.target(), Config { connections: 1, ..Config::default() });
    let (first, mut peer) = tokio::join!(server.call(get("/first")), async {
        let mut peer = Peer::meet(&door, &[]).await;
        let head = peer.next_of(HEADERS).await;
        peer.head(head.stream, END_STREAM).await;
        peer
    });
    first.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let mut call = Box::pin(server.call(Request::post("/").body(Endless(asked.clone())).unwrap()));
    // On one thread: nothing has been written between the beginning of this turn and its end.
    assert!(futures::poll!(&mut call).is_pending());
    assert_eq!(asked.load(Ordering::SeqCst), 2 * 16 * 1024, "the first piece is with the head, the second waits for room");
    tokio::select! {
        biased;
        data = async { peer.next_of(HEADERS).await; peer.next_of(DATA).await } => assert_eq!(data.payload.len(), 16 * 1024),
        ended = call => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn a_server_that_does_not_read_stops_the_body_of_the_request() {
    for begun in [false, true] {
        let door = Door::tcp().await;
        let server = server(&door.target(), Config { connections: 1, ..Config::default() });
        let asked = Arc::new(AtomicUsize::new(0));
        let mut call = Box::pin(server.call(Request::post("/").body(Endless(asked.clone())).unwrap()));
        let mut answer = None;
        let flow = async {
            let mut peer = Peer::meet(&door, &[]).await;
            let stream = peer.next_of(HEADERS).await.stream;
            if begun {
                peer.head(stream, 0).await;
            }
            let (mut got, mut allowed) = (0, WINDOW);
            for more in [0, 100_000, 50_000_u32] {
                if more > 0 {
                    allowed += more as usize;
                    peer.number(WINDOW_UPDATE, 0, more).await;
                    peer.number(WINDOW_UPDATE, stream, more).await;
                }
                while got < allowed {
                    got += peer.next_of(DATA).await.payload.len();
                }
                assert_eq!(got, allowed, "to the byte");
                // A call beside it is served, and gives an eager sender time to ask for more.
                let other = tokio::spawn({
                    let server = server.clone();
                    async move { server.call(get("/beside")).await }
                });
                let head = peer.next().await.unwrap();
                assert_eq!(head.kind, HEADERS, "no data beyond the window");
                peer.head(head.stream, END_STREAM).await;
                other.await.unwrap().unwrap();
                let asked = asked.load(Ordering::SeqCst);
                assert!(asked <= allowed + 3 * 16 * 1024, "{asked} bytes were asked of the body, {allowed} were allowed");
            }
            peer
        };
        let drive = async {
            match (&mut call).await {
                Ok(begins) => {
                    answer = Some(begins);
                    std::future::pending::<()>().await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        tokio::select! {
            biased;
            _peer = flow => {}
            () = drive => {}
        }
        assert_eq!(answer.is_some(), begun);
        drop((call, answer));
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_stops_the_server() {
    let door = Door::tcp().await;
    let window = 64 * 1024;
    let server = server(&door.target(), Config { connections: 1, stream_window: ByteSize(window as u64), ..Config::default() });
    let (called, (mut peer, stream)) = tokio::join!(server.call(get("/")), async {
        let mut peer = Peer::meet(&door, &[]).await;
        let stream = peer.next_of(HEADERS).await.stream;
        peer.head(stream, 0).await;
        for _ in 0..window / (16 * 1024) {
            peer.send(DATA, 0, stream, &[1; 16 * 1024]).await;
        }
        (peer, stream)
    });
    let mut answer = called.unwrap();
    let (beside, ()) = tokio::join!(server.call(get("/beside")), async {
        let frame = peer.next().await.unwrap();
        assert_eq!((frame.kind, frame.stream), (HEADERS, stream + 2), "no room was given for the answer that nobody reads");
        peer.head(frame.stream, END_STREAM).await;
    });
    beside.unwrap();
    let mut got = 0;
    while got < window {
        got += answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    let mut given = 0;
    while given < window / 2 {
        let frame = peer.next_of(WINDOW_UPDATE).await;
        assert_eq!(frame.stream, stream);
        given += frame.number() as usize;
    }
    peer.send(DATA, END_STREAM, stream, b"end").await;
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "end");
    assert_eq!(server.state().streams, 0, "over with its last piece, though nobody asked what comes next");
    assert!(answer.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn empty_pieces_are_not_passed_on_in_either_direction() {
    let door = Door::tcp().await;
    let server = server(&door.target(), Config::default());
    let (sender, body) = told();
    for piece in ["", "a", "", ""] {
        sender.send(Ok(Frame::data(piece.into()))).unwrap();
    }
    drop(sender);
    let (called, _peer) = tokio::join!(server.call(Request::post("/").body(body).unwrap()), async {
        let mut peer = Peer::meet(&door, &[]).await;
        let stream = peer.next_of(HEADERS).await.stream;
        let (first, second) = (peer.next_of(DATA).await, peer.next_of(DATA).await);
        assert_eq!((first.payload, first.flags), (b"a".to_vec(), 0));
        assert_eq!((second.payload, second.flags), (vec![], END_STREAM));
        peer.head(stream, 0).await;
        for (piece, flags) in [("", 0), ("b", 0), ("", 0), ("", END_STREAM)] {
            peer.send(DATA, flags, stream, piece.as_bytes()).await;
        }
        peer
    });
    let mut body = called.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "b");
    assert!(body.frame().await.is_none());
}
