//! Calls that go well: what is passed on, and over how many connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::host::{Door, Handler, Host, Reply};
use super::peer::{END_STREAM, HEADERS, Peer};
use super::{get, server, told, trailers, whole};
use crate::{Config, Server};

fn reply(heads: String, body: impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send + 'static) -> Reply {
    Response::builder().header("heads", heads).body(body.boxed_unsync()).unwrap()
}

/// Sends back what it gets as it comes, the trailers with a status beside them.
pub(super) fn echo() -> Handler {
    Arc::new(|_, request| {
        let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        let heads = format!("{} {:?} {}", request.uri(), request.version(), names.join(" "));
        let (sender, body) = told();
        tokio::spawn(async move {
            let mut ends = trailers("grpc-status", "0");
            let mut asked = request.into_body();
            while let Some(Ok(frame)) = asked.frame().await {
                match frame.into_data() {
                    Ok(data) if data.is_empty() => {} // the end of a body without trailers
                    Ok(data) => drop(sender.send(Ok(Frame::data(data)))),
                    Err(last) => ends.extend(last.into_trailers().unwrap()),
                }
            }
            drop(sender.send(Ok(Frame::trailers(ends))));
        });
        async move { reply(heads, body) }.boxed()
    })
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways_over_tcp_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    for door in [Door::tcp().await, Door::unix(&folder.path().join("grpc.sock"))] {
        let host = Host::start(door, 100, echo());
        let authority = host.target.to_string().split_once("unix:").map_or_else(|| host.target.to_string(), |_| "localhost".to_owned());
        let server = server(&host.target, Config::default());
        let (sender, body) = told();
        let mut sent = Vec::new();
        for (index, size) in [1, 5, 16 * 1024, 0, 3 << 20, 70_001].into_iter().enumerate() {
            let piece = vec![u8::try_from(index).unwrap(); size];
            sent.extend(&piece);
            sender.send(Ok(Frame::data(piece.into()))).unwrap();
        }
        sender.send(Ok(Frame::trailers(trailers("checksum", "7")))).unwrap();
        let request = Request::post("https://elsewhere:1/inference.GRPCInferenceService/ModelInfer?a=b")
            .header("te", "trailers")
            .header("x-mine", "1")
            .header("host", "elsewhere")
            .header("connection", "x-hop, keep-alive")
            .header("x-hop", "1")
            .header("keep-alive", "1")
            .header("transfer-encoding", "chunked");
        let answer = server.call(request.body(body).unwrap()).await.unwrap();
        let heads = format!("http://{authority}/inference.GRPCInferenceService/ModelInfer?a=b HTTP/2.0 te x-mine");
        assert_eq!(answer.headers()["heads"], heads);
        let (got, ends) = whole(answer).await.unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        let ends = ends.unwrap();
        assert_eq!((&ends["checksum"], &ends["grpc-status"]), (&"7".parse().unwrap(), &"0".parse().unwrap()));
        assert_eq!((server.state().connections, server.state().streams), (1, 0));
    }
}

#[tokio::test]
async fn a_call_streams_both_ways_message_by_message() {
    let host = Host::start(Door::tcp().await, 100, echo());
    let server = server(&host.target, Config::default());
    let (sender, body) = told();
    let mut answer = server.call(Request::post("/").body(body).unwrap()).await.unwrap(); // before any message
    for round in 0..50_u8 {
        sender.send(Ok(Frame::data(vec![round; 100].into()))).unwrap();
        assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), vec![round; 100]);
    }
    drop(sender);
    assert!(answer.body_mut().frame().await.unwrap().unwrap().is_trailers());
    assert_eq!(server.state().streams, 0);
}

#[tokio::test]
async fn an_answer_of_trailers_only_has_ended_with_its_head() {
    let handler: Handler = Arc::new(|_, _| {
        let empty = Empty::new().map_err(|never| match never {});
        let reply = Response::builder().header("grpc-status", "5").body(empty.boxed_unsync()).unwrap();
        async move { reply }.boxed()
    });
    let host = Host::start(Door::tcp().await, 100, handler);
    let server = server(&host.target, Config::default());
    let (sender, body) = told();
    let answer = server.call(Request::post("/").body(body).unwrap()).await.unwrap();
    assert!(http_body::Body::is_end_stream(answer.body()), "so that whoever passes it on sends trailers only too");
    assert_eq!(answer.headers()["grpc-status"], "5");
    assert_eq!(server.state().streams, 0, "though the answer is still held and the request has not ended");
    sender.closed().await;
}

/// A server whose calls last until they are let go: how many each connection has, and the most it had.
struct Held {
    host: Host,
    server: Server,
    now: watch::Receiver<BTreeMap<usize, usize>>,
    most: Arc<Mutex<BTreeMap<usize, usize>>>,
    go: Arc<Semaphore>,
}

impl Held {
    async fn start(streams: u32, config: Config) -> Held {
        let (counts, now) = watch::channel(BTreeMap::new());
        let (most, go) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(Semaphore::new(0)));
        let (peak, gate) = (most.clone(), go.clone());
        let handler: Handler = Arc::new(move |connection, _| {
            let (counts, peak, gate) = (counts.clone(), peak.clone(), gate.clone());
            async move {
                counts.send_modify(|counts| {
                    let count = counts.entry(connection).or_insert(0);
                    *count += 1;
                    let mut peak = peak.lock();
                    let peak = peak.entry(connection).or_insert(0);
                    *peak = (*count).max(*peak);
                });
                gate.acquire().await.unwrap().forget();
                counts.send_modify(|counts| *counts.entry(connection).or_insert(1) -= 1);
                reply(String::new(), Empty::new().map_err(|never| match never {}))
            }
            .boxed()
        });
        let host = Host::start(Door::tcp().await, streams, handler);
        let server = server(&host.target, config);
        Held { host, server, now, most, go }
    }

    /// Waits until so many calls are at the server.
    async fn at_work(&mut self, calls: usize) -> BTreeMap<usize, usize> {
        self.now.wait_for(|counts| counts.values().sum::<usize>() == calls).await.unwrap().clone()
    }

    fn calls(&self, calls: usize) -> Vec<tokio::task::JoinHandle<()>> {
        let call = || {
            let server = self.server.clone();
            tokio::spawn(async move { drop(whole(server.call(get("/")).await.unwrap()).await.unwrap()) })
        };
        (0..calls).map(|_| call()).collect()
    }
}

#[tokio::test]
async fn many_callers_are_spread_over_connections_and_few_share_one() {
    let mut held = Held::start(100, Config::default()).await;
    for _ in 0..3 {
        let few = held.calls(32);
        held.at_work(32).await;
        held.go.add_permits(32);
        join_all(few).await;
    }
    assert_eq!(held.host.connections.load(Ordering::SeqCst), 1);

    let first = held.calls(64);
    held.at_work(64).await;
    held.go.add_permits(64);
    join_all(first).await;
    while held.server.state().connecting > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.server.state().connections, 2, "64 calls are two connections' worth");
    let second = held.calls(64);
    assert_eq!(held.at_work(64).await.into_values().collect::<Vec<_>>(), [32, 32]);
    let more = held.calls(400);
    held.at_work(400).await; // a connection takes no more than 100 here
    assert_eq!((held.server.state().connections, held.server.state().waiting), (4, 64));
    held.go.add_permits(464);
    join_all(second.into_iter().chain(more)).await;
    assert_eq!(held.host.connections.load(Ordering::SeqCst), 4);
    assert!(held.most.lock().values().all(|most| *most <= 100), "{:?}", held.most.lock());
    assert_eq!((held.server.state().streams, held.server.state().waiting), (0, 0));
}

#[tokio::test]
async fn callers_who_all_come_first_are_spread_too() {
    let mut held = Held::start(100, Config { streams: 4, ..Config::default() }).await;
    // Time stands still: paused, and kept from jumping ahead by a task that blocks.
    tokio::time::pause();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let blocked = tokio::task::spawn_blocking(move || ended.recv());
    let calls = held.calls(16);
    assert_eq!(held.at_work(16).await.into_values().collect::<Vec<_>>(), [4, 4, 4, 4]);
    held.go.add_permits(16);
    join_all(calls).await;
    drop(end);
    assert!(blocked.await.unwrap().is_err());
}

#[tokio::test]
async fn callers_who_all_come_first_do_not_wait_long_for_a_second_connection() {
    let door = Door::tcp().await;
    let config = Config { streams: 1, connections: 2, connect_timeout: Duration::from_secs(3600), ..Config::default() };
    let server = server(&door.target(), config);
    let (both, _peer) = tokio::join!(join_all([server.call(get("/a")), server.call(get("/b"))]), async {
        let mut peer = Peer::meet(&door, &[]).await; // nobody answers the second one
        // Both have come before either is answered: the second has not waited for the first one's place.
        for head in [peer.next_of(HEADERS).await, peer.next_of(HEADERS).await] {
            peer.head(head.stream, END_STREAM).await;
        }
        peer
    });
    assert!(both.iter().all(Result::is_ok));
    assert_eq!((server.state().connections, server.state().connecting), (1, 1));
}

#[tokio::test]
async fn a_server_that_takes_one_call_at_a_time_gets_one_on_each_connection() {
    let mut held = Held::start(1, Config::default()).await;
    let calls = held.calls(20);
    let spread = held.at_work(4).await;
    assert_eq!(spread.into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_eq!((held.server.state().streams, held.server.state().waiting), (4, 16));
    for call in &calls[4..10] {
        call.abort(); // who gives up takes nobody's turn
    }
    held.go.add_permits(20);
    let served = join_all(calls).await.into_iter().filter(Result::is_ok).count();
    assert!(served >= 14, "{served}");
    assert_eq!(held.most.lock().values().copied().max(), Some(1));
    assert_eq!((held.server.state().streams, held.server.state().waiting), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_leave_no_open_stream() {
    let host = Host::start(Door::tcp().await, 50, echo());
    let server = server(&host.target, Config::default());
    let whole_ones = Arc::new(AtomicUsize::new(0));
    let calls = (0..1000).map(|index| {
        let (server, whole_ones) = (server.clone(), whole_ones.clone());
        tokio::spawn(async move {
            let (sender, body) = told();
            sender.send(Ok(Frame::data(vec![1; 1 + index * 97].into()))).unwrap();
            let call = server.call(Request::post("/").body(body).unwrap());
            match index % 4 {
                0 => drop(call.now_or_never()), // cancelled wherever it is
                1 => drop(call.await.unwrap()), // its request never ended
                2 => drop(call.await.unwrap().into_body().frame().await.unwrap().unwrap()),
                _ => {
                    let answer = call.await.unwrap();
                    drop(sender);
                    assert_eq!(whole(answer).await.unwrap().0.len(), 1 + index * 97);
                    whole_ones.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    assert_eq!(whole_ones.load(Ordering::SeqCst), 250);
    let state = server.state();
    assert_eq!((state.streams, state.waiting), (0, 0));
    assert!((1..=4).contains(&state.connections), "{state:?}");
    // Streams that were let go of are so at the server too: all its places are free for new calls.
    let again = (0..200).map(|_| async { whole(server.call(get("/")).await.unwrap()).await.unwrap() });
    assert_eq!(join_all(again).await.len(), 200);
}
