//! A client, this front and a runtime, each with a socket of its own.

mod bounds;
mod ended;
mod observed;
mod twice;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_telemetry::{Clock, Counter, HostNet, Listener, Metrics, Net};
use berth_types::ByteSize;
use bytes::{Bytes, BytesMut};
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::methods::Methods;
use crate::scripted::{FakeModels, Load};
use crate::{Frontend, ProxyConfig, RuntimeServer, serve_grpc};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const OTHER: &str = "/some.Service/Method";
const ID: &str = "digits__isvc-1111111111";

type Body = BoxBody<Bytes, std::io::Error>;

/// What the runtime of a test answers; it is given the whole head and the body as it comes.
type Behaviour = Arc<dyn Fn(Request<Incoming>) -> futures::future::BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A runtime that does what a test says, until it is dropped.
struct Runtime {
    addr: SocketAddr,
    /// Made with it so far.
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn runtime(behaviour: Behaviour) -> Runtime {
    runtime_on(HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap(), behaviour)
}

fn runtime_on(listener: Listener, behaviour: Behaviour) -> Runtime {
    let (addr, made) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let connections = Arc::clone(&made);
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            made.fetch_add(1, Ordering::Relaxed);
            let behaviour = Arc::clone(&behaviour);
            connections.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = behaviour(request);
                    async move {
                        let answer = answer.await;
                        if answer.extensions().get::<Reset>().is_some() { Err(std::io::Error::other("reset")) } else { Ok(answer) }
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Runtime { addr, connections, task }
}

/// A front before a runtime, and a client of it.
struct World {
    frontend: Arc<Frontend<FakeModels>>,
    addr: SocketAddr,
    models: FakeModels,
    metrics: Metrics,
    client: SendRequest<Body>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn world(runtime: SocketAddr) -> World {
    world_with(runtime, Methods::default(), ProxyConfig { threads: 2, ..ProxyConfig::default() }).await
}

async fn world_with(runtime: SocketAddr, methods: Methods, config: ProxyConfig) -> World {
    world_over(Arc::new(HostNet), runtime, methods, config).await
}

/// The same, whose connections to the runtime are made by `net`.
async fn world_over(net: Arc<dyn Net>, runtime: SocketAddr, methods: Methods, config: ProxyConfig) -> World {
    let (models, metrics, stop) = (FakeModels::new(), Metrics::default(), CancellationToken::new());
    let server = RuntimeServer { target: runtime.to_string().parse().unwrap(), connections: berth_upstream::Config::default(), net, methods };
    let frontend = Frontend::before(models.clone(), server, Clock::system(), &metrics, config, Arc::new(|| Ok(())));
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve_grpc(Arc::clone(&frontend), listener, stop.clone()));
    let client = client(addr, 1 << 20).await;
    World { frontend, addr, models, metrics, client, stop }
}

/// A client with this window for each answer.
async fn client(front: SocketAddr, window: u32) -> SendRequest<Body> {
    let stream = TcpStream::connect(front).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = builder.initial_stream_window_size(window).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::from(&[0][..]);
    framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(bytes);
    framed.freeze()
}

/// A message that names `model` in field 1, with `more` in field 7.
fn naming(model: &str, more: usize) -> Vec<u8> {
    let mut bytes = field(1, model.as_bytes());
    bytes.extend(field(7, &vec![7; more]));
    bytes
}

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let (mut bytes, mut length) = (vec![number << 3 | 2], value.len());
    while length > 0x7f {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(value);
    bytes
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn trailers(code: &str) -> HeaderMap {
    [(Status::GRPC_STATUS, HeaderValue::from_str(code).unwrap())].into_iter().collect()
}

/// An answer with these frames, then `grpc-status: 0` and a trailer of its own.
fn well(frames: Vec<Bytes>) -> Response<Body> {
    let mut last = trailers("0");
    last.insert("x-last", HeaderValue::from_static("kept"));
    let frames = frames.into_iter().map(Frame::data).chain([Frame::trailers(last)]).map(Ok);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("x-first", HeaderValue::from_static("kept"));
    response
}

/// Says of an answer that the runtime resets the call instead.
#[derive(Clone)]
struct Reset;

fn reset() -> Response<Body> {
    let mut response = Response::new(whole(Bytes::new()));
    response.extensions_mut().insert(Reset);
    response
}

/// An answer without messages.
fn badly(code: &str, text: &'static str) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.headers_mut() = trailers(code);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("grpc-message", HeaderValue::from_static(text));
    response
}

/// Keeps the heads and bodies that the runtime got, and answers with the body.
fn echo(seen: UnboundedSender<(HeaderMap, Bytes)>) -> Behaviour {
    Arc::new(move |request| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else { return badly("1", "cut") };
            let _ = seen.unbounded_send((head.headers, body.clone()));
            well(vec![body])
        }
        .boxed()
    })
}

fn call(path: &str, headers: &[(&'static str, &str)], body: Body) -> Request<Body> {
    let mut request = Request::post(format!("http://front{path}")).body(body).unwrap();
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    request
}

/// What a client gets in all.
#[derive(Debug)]
struct Got {
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Got {
    fn status(&self) -> (Code, String) {
        let all = Status::from_header_map(&self.trailers).or_else(|| Status::from_header_map(&self.headers)).expect("a status");
        (all.code(), all.message().to_owned())
    }
}

impl World {
    async fn call(&mut self, path: &str, headers: &[(&'static str, &str)], body: Body) -> Got {
        self.client.ready().await.unwrap();
        let response = self.client.send_request(call(path, headers, body)).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        Got { headers: head.headers, body: body.to_bytes(), trailers }
    }

    /// Returns once no guard lives.
    async fn unguarded(&self) {
        self.models.guards.subscribe().wait_for(|guards| *guards == 0).await.unwrap();
    }
}

async fn echoing() -> (Runtime, World, UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (seen, got) = unbounded();
    let runtime = runtime(echo(seen)).await;
    let world = world(runtime.addr).await;
    (runtime, world, got)
}

#[tokio::test]
async fn a_call_goes_to_the_runtime_with_the_id_behind_its_message_and_comes_back_whole() {
    let (_runtime, mut world, mut seen) = echoing().await;
    let sent = naming("digits", 3);
    let got = world.call(INFER, &[("x-mine", "a"), ("x-mine", "b"), ("mm-balanced", "true")], whole(message(&sent))).await;
    assert_eq!(got.status(), (Code::Ok, String::new()));
    assert_eq!((&got.headers["x-first"], &got.trailers["x-last"]), (&"kept".parse().unwrap(), &"kept".parse().unwrap()));
    let with_id = [sent.clone(), field(1, ID.as_bytes())].concat();
    assert_eq!(got.body, message(&with_id));
    let (headers, body) = seen.next().await.unwrap();
    assert_eq!(body, message(&with_id));
    assert_eq!(headers.get_all("x-mine").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert!(headers["mm-model-id"] == ID && !headers.contains_key("mm-balanced"));
    world.unguarded().await;
    assert_eq!(world.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "OK")]), 1);
}

#[tokio::test]
async fn each_thread_passes_on_what_comes_to_it_over_a_connection_of_its_own() {
    let (runtime, mut world, _seen) = echoing().await;
    let connections = || runtime.connections.load(Ordering::Relaxed);
    for (clients, reached) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
        let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
        assert_eq!((got.status().0, connections()), (Code::Ok, reached), "{clients} clients");
        // The one before stays connected, and asks nothing more.
        let before = std::mem::replace(&mut world.client, client(world.addr, 1 << 20).await);
        tokio::spawn(async move { std::future::pending::<()>().map(|()| before).await });
    }
    let without = world_with(runtime.addr, Methods::default(), ProxyConfig::default()).await;
    let before = connections();
    for mut client in [client(without.addr, 1 << 20).await, client(without.addr, 1 << 20).await] {
        client.ready().await.unwrap();
        client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap();
    }
    assert_eq!(connections() - before, 1, "where there are no threads all share one");
}

#[tokio::test]
async fn a_port_with_threads_stops_when_the_last_answer_is_out_and_its_threads_end_with_it() {
    let (entered, mut entries) = unbounded();
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&go_on);
    let behaviour: Behaviour = Arc::new(move |_| {
        let (entered, gate) = (entered.clone(), Arc::clone(&gate));
        async move {
            let _ = entered.unbounded_send(());
            let _passed = gate.acquire().await;
            well(vec![message(b"late")])
        }
        .boxed()
    });
    let runtime = runtime(behaviour).await;
    let models = FakeModels::new();
    let server = RuntimeServer {
        target: runtime.addr.to_string().parse().unwrap(),
        connections: berth_upstream::Config::default(),
        net: Arc::new(HostNet),
        methods: Methods::default(),
    };
    let config = ProxyConfig { threads: 2, ..ProxyConfig::default() };
    let frontend = Frontend::before(models.clone(), server, Clock::system(), &Metrics::default(), config, Arc::new(|| Ok(())));
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let place = frontend.place().unwrap();
    let ended_with_it = place.handle.spawn(std::future::pending::<()>());
    drop(place);
    let port = tokio::spawn(serve_grpc(frontend, listener, stop.clone()));
    let calls = [client(addr, 1 << 20).await, client(addr, 1 << 20).await].map(|mut client| {
        tokio::spawn(async move {
            let answer = client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap();
            answer.into_body().collect().await.unwrap().to_bytes()
        })
    });
    for _ in &calls {
        entries.next().await.unwrap();
    }
    stop.cancel();
    assert!(!port.is_finished() && !ended_with_it.is_finished());
    go_on.add_permits(2);
    for call in calls {
        assert_eq!(call.await.unwrap(), message(b"late"));
    }
    port.await.unwrap();
    assert!(ended_with_it.await.unwrap_err().is_cancelled());
    models.guards.subscribe().wait_for(|guards| *guards == 0).await.unwrap();
}

#[tokio::test]
async fn the_model_comes_from_headers_or_the_message_wherever_in_it_and_else_from_nowhere() {
    let (_runtime, mut world, mut seen) = echoing().await;
    let (none, first) = (field(7, b"x"), naming("digits", 1));
    let last = [field(7, &[7; 100_000]), field(1, b"digits")].concat();
    let twice = [field(1, b"digits"), field(1, b"unheard-of")].concat();
    for (headers, sent) in [
        (&[][..], &first),
        (&[], &last),
        (&[], &twice),
        (&[("mm-model-id", ID)], &none),
        (&[("mm-vmodel-id", "digits")], &none),
        (&[("mm-vmodel-id-bin", "ZGlnaXRz")], &field(1, b"unheard-of")),
    ] {
        let got = world.call(INFER, headers, whole(message(sent))).await;
        assert_eq!(got.status().0, Code::Ok, "{headers:?}: {got:?}");
        let (_, body) = seen.next().await.unwrap();
        assert_eq!(body, message(&[sent.as_slice(), &field(1, ID.as_bytes())].concat()), "{headers:?}");
    }
    for (headers, sent, code, text) in [
        (&[][..], &none, Code::InvalidArgument, "must include a model"),
        (&[], &field(1, b"unheard-of"), Code::NotFound, "model \"unheard-of\" is not registered"),
        (&[("mm-model-id", "digits")], &none, Code::NotFound, "it is the name of a model"),
        (&[("mm-model-id", ID), ("mm-vmodel-id", "digits")], &none, Code::InvalidArgument, "both"),
    ] {
        let (got, said) = world.call(INFER, headers, whole(message(sent))).await.status();
        assert!(got == code && said.contains(text), "{headers:?}: {got:?} {said}");
    }
    let (code, said) = world.call(OTHER, &[], whole(message(&first))).await.status();
    assert!(code == Code::InvalidArgument && said.contains("must include a model"), "nobody knows where this one names it: {said}");
    world.unguarded().await;
}

#[tokio::test]
async fn methods_without_a_field_pass_untouched_and_those_of_the_runtimes_management_not_at_all() {
    let (_runtime, mut world, mut seen) = echoing().await;
    let odd = message(b"\xff\xff no protobuf");
    let got = world.call(OTHER, &[("mm-vmodel-id", "digits")], whole(odd.clone())).await;
    assert_eq!((got.status().0, got.body), (Code::Ok, odd.clone()));
    assert_eq!(seen.next().await.unwrap().1, odd);
    let (code, said) = world.call("/mmesh.ModelRuntime/unloadModel", &[("mm-vmodel-id", "digits")], whole(odd)).await.status();
    assert!(code == Code::Unimplemented && said.contains("not one that can be called here"), "{said}");
}

#[tokio::test]
async fn an_id_is_found_and_put_where_the_runtime_says() {
    let (seen, mut got) = unbounded();
    let runtime = runtime(echo(seen)).await;
    let infos = BTreeMap::from([("some.Service/Method".to_owned(), vec![3, 1])]);
    let mut world = world_with(runtime.addr, Methods::of_runtime(&infos, false).unwrap(), ProxyConfig::default()).await;
    let sent = [field(7, b"x"), field(3, &[field(2, b"y"), field(1, b"digits")].concat())].concat();
    assert_eq!(world.call(OTHER, &[], whole(message(&sent))).await.status().0, Code::Ok);
    assert_eq!(got.next().await.unwrap().1, message(&[sent, field(3, &field(1, ID.as_bytes()))].concat()));
    assert_eq!(world.call(INFER, &[("mm-model-id", ID)], whole(message(b""))).await.status().0, Code::Unimplemented);
}

#[tokio::test]
async fn messages_pass_one_by_one_both_ways_each_with_the_id() {
    let behaviour: Behaviour = Arc::new(|request| async move { Response::new(request.into_body().map_err(std::io::Error::other).boxed()) }.boxed());
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let (send, frames) = unbounded();
    let body = BodyExt::boxed(StreamBody::new(frames.map(|bytes: Bytes| Ok(Frame::data(bytes)))));
    send.unbounded_send(message(&naming("digits", 1))).unwrap();
    let mut answer = world.client.send_request(call(INFER, &[], body)).await.unwrap().into_body();
    for (at, sent) in [naming("digits", 1), naming("", 2), naming("digits", 70_000)].into_iter().enumerate() {
        if at > 0 {
            send.unbounded_send(message(&sent)).unwrap();
        }
        let expected = message(&[sent, field(1, ID.as_bytes())].concat());
        let mut got = BytesMut::new();
        while got.len() < expected.len() {
            got.extend_from_slice(&answer.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        assert_eq!(got, expected, "the stream goes on: it is answered before it ends");
    }
    send.unbounded_send(message(&naming("another", 1))).unwrap();
    let last = loop {
        let frame = answer.frame().await.unwrap().unwrap();
        if let Ok(trailers) = frame.into_trailers() {
            break trailers;
        }
    };
    let status = Status::from_header_map(&last).unwrap();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("another"), "{status:?}");
    world.unguarded().await;
}

/// Answers each call with the next of `answers`.
fn scripted(answers: Vec<Response<Body>>) -> Behaviour {
    let answers = Arc::new(parking_lot::Mutex::new(answers.into_iter()));
    Arc::new(move |request| {
        let answer = answers.lock().next().unwrap_or_else(|| badly("13", "called too often"));
        async move {
            let _ = request.into_body().collect().await;
            answer
        }
        .boxed()
    })
}

#[tokio::test]
async fn a_model_that_the_runtime_has_lost_is_looked_at_and_a_small_request_sent_once_more() {
    let runtime = runtime(scripted(vec![badly("5", "gone"), well(vec![message(b"x")])])).await;
    let mut world = world(runtime.addr).await;
    let got = world.call(INFER, &[], whole(message(&naming("digits", 1000)))).await;
    assert_eq!(got.status().0, Code::Ok, "{got:?}");
    assert_eq!(*world.models.suspects.lock(), [ID]);
    world.unguarded().await;
}

#[tokio::test]
async fn a_large_request_that_finds_no_model_is_told_to_come_again() {
    let runtime = runtime(scripted(vec![badly("5", "gone")])).await;
    let mut world = world(runtime.addr).await;
    let (code, said) = world.call(INFER, &[], whole(message(&naming("digits", 300 * 1024)))).await.status();
    assert!(code == Code::Unavailable && said.contains("does not hold model"), "{code:?} {said}");
    assert_eq!(*world.models.suspects.lock(), [ID]);
}

#[tokio::test(start_paused = true)]
async fn what_a_runtime_does_not_find_twice_is_its_own_answer() {
    let answers = vec![badly("5", "no%20such%20tensor"), badly("5", "no%20such%20tensor"), badly("5", "no%20such%20tensor")];
    let runtime = runtime(scripted(answers)).await;
    let mut world = world_with(runtime.addr, Methods::default(), ProxyConfig::default()).await; // no thread of its own has this clock
    let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
    assert_eq!(got.status(), (Code::NotFound, "no such tensor".to_owned()));
}

#[tokio::test]
async fn every_code_of_the_runtime_passes_with_its_details() {
    for code in (1..=16).filter(|code| *code != 5) {
        let mut answer = badly(&code.to_string(), "its%20own%20words");
        answer.headers_mut().insert("grpc-status-details-bin", HeaderValue::from_static("CAES"));
        let runtime = runtime(scripted(vec![answer])).await;
        let mut world = world(runtime.addr).await;
        let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
        assert_eq!(got.status(), (Code::from_i32(code), "its own words".to_owned()));
        assert_eq!(got.headers.get("grpc-status-details-bin").unwrap(), "CAES");
    }
}

#[tokio::test]
async fn messages_over_the_limit_cut_short_or_garbage_never_reach_a_runtime_as_whole_ones() {
    let (seen, mut got) = unbounded();
    let runtime = runtime(echo(seen)).await;
    let config = ProxyConfig { max_message: ByteSize(1000), ..ProxyConfig::default() };
    let mut world = world_with(runtime.addr, Methods::default(), config).await;
    let with_header = &[("mm-vmodel-id", "digits")][..];
    for (headers, body, code, text) in [
        (&[][..], message(&naming("digits", 1000)), Code::ResourceExhausted, "the limit is 1000"),
        (with_header, message(&naming("digits", 1000)), Code::ResourceExhausted, "the limit is 1000"),
        (&[], message(&naming("digits", 10)).slice(..12), Code::Cancelled, "ended"),
        (with_header, message(&naming("digits", 10)).slice(..12), Code::Cancelled, "ended"),
        (&[], Bytes::from_static(&[7, 0, 0, 0, 0]), Code::InvalidArgument, "begins with byte 7"),
        (&[], message(&[0x0a, 0xff]), Code::InvalidArgument, "no protobuf message"),
        (with_header, message(&[0x0a, 0x05, b'x']), Code::InvalidArgument, "no protobuf message"),
        (&[], Bytes::from_static(&[1, 0, 0, 0, 1, 0]), Code::InvalidArgument, "grpc-encoding does not say how"),
        (&[("grpc-encoding", "br")], Bytes::from_static(&[1, 0, 0, 0, 1, 0]), Code::Unimplemented, "gzip and deflate"),
    ] {
        let (got, said) = world.call(INFER, headers, whole(body)).await.status();
        assert!(got == code && said.contains(text), "{headers:?}: {got:?} {said}");
    }
    assert!(world.call(INFER, &[], whole(message(&naming("digits", 10)))).await.status().0 == Code::Ok);
    assert_eq!(
        got.next().await.unwrap().1,
        message(&[naming("digits", 10), field(1, ID.as_bytes())].concat()),
        "the first that the runtime has seen"
    );
    world.unguarded().await;
}

#[tokio::test]
async fn a_compressed_message_arrives_inflated_with_the_id() {
    use std::io::Write as _;
    let (_runtime, mut world, mut seen) = echoing().await;
    let sent = naming("digits", 50_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&sent).unwrap();
    let mut framed = BytesMut::from(&message(&gzip.finish().unwrap())[..]);
    framed[0] = 1;
    let got = world.call(INFER, &[("grpc-encoding", "gzip")], whole(framed.freeze())).await;
    assert_eq!(got.status().0, Code::Ok, "{got:?}");
    assert_eq!(seen.next().await.unwrap().1, message(&[sent, field(1, ID.as_bytes())].concat()));
}

#[tokio::test]
async fn a_client_that_goes_away_is_heard_by_the_runtime_and_frees_the_copy() {
    let (entered, mut entries) = unbounded();
    let (left, mut leavings) = unbounded::<()>();
    let behaviour: Behaviour = Arc::new(move |request| {
        let (entered, left) = (entered.clone(), left.clone());
        async move {
            let _left = left; // dropped with the call
            let _ = entered.unbounded_send(request);
            std::future::pending().await
        }
        .boxed()
    });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let call = tokio::spawn(world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))));
    let mut entry = entries.next().await.unwrap();
    assert_eq!(*world.models.guards.borrow(), 1);
    call.abort();
    while let Some(Ok(_)) = entry.body_mut().frame().await {}
    drop(entry);
    world.unguarded().await;
    assert!(leavings.next().now_or_never().is_none(), "the behaviour of the runtime lives on, its calls do not");
}

#[tokio::test]
async fn what_is_left_of_the_deadline_goes_with_the_call_and_is_kept_here_too() {
    let (seen, mut got) = unbounded();
    let behaviour: Behaviour = Arc::new(move |request: Request<Incoming>| {
        let _ = seen.unbounded_send(request.headers().get("grpc-timeout").cloned());
        std::future::pending().boxed()
    });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let (code, said) = world.call(INFER, &[("grpc-timeout", "80m")], whole(message(&naming("digits", 1)))).await.status();
    assert!(code == Code::DeadlineExceeded, "{said}");
    let passed = got.next().await.unwrap().unwrap();
    let nanos: u64 = passed.to_str().unwrap().strip_suffix('n').expect("what is left is less than a tenth of a second").parse().unwrap();
    assert!(Duration::from_nanos(nanos) <= Duration::from_millis(80));
    world.unguarded().await;
}

#[tokio::test]
async fn a_copy_that_must_go_ends_the_answer_with_a_status() {
    let (send, frames) = unbounded::<Bytes>();
    let frames = Arc::new(parking_lot::Mutex::new(Some(frames)));
    let behaviour: Behaviour = Arc::new(move |_request| {
        let frames = frames.lock().take().expect("called once");
        async move { Response::new(BodyExt::boxed(StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes)))))) }.boxed()
    });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    send.unbounded_send(message(b"first")).unwrap();
    let mut answer = world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), message(b"first"));
    world.models.revoked.send_replace(true);
    let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    let status = Status::from_header_map(&trailers).unwrap();
    assert!(status.code() == Code::Unavailable && !status.details().is_empty(), "{status:?}");
    world.unguarded().await;
}

#[tokio::test]
async fn a_runtime_that_is_away_is_told_with_a_time_to_come_again_and_found_when_it_is_back() {
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let mut world = world(addr).await;
    let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
    let (code, said) = got.status();
    assert!(code == Code::Unavailable && said.contains(&addr.to_string()), "{said}");
    assert!(got.headers.contains_key("grpc-status-details-bin"), "when to try again");
    let (seen, _got) = unbounded();
    let _runtime = runtime_on(HostNet.listen(addr).await.unwrap(), echo(seen));
    loop {
        let (code, said) = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await.status();
        match code {
            Code::Ok => break,
            Code::Unavailable => tokio::task::yield_now().await,
            other => panic!("{other:?} {said}"),
        }
    }
}

#[tokio::test]
async fn a_cold_model_is_waited_for_and_a_wait_that_fails_is_told() {
    let (_runtime, mut world, _seen) = echoing().await;
    world.models.load.lock().push_back(Load::After(Duration::from_millis(1)));
    assert_eq!(world.call(INFER, &[], whole(message(&naming("digits", 1)))).await.status().0, Code::Ok);
    world.models.load.lock().push_back(Load::Fails(berth_residency::WaitError::TooManyWaiting { waiting: 7 }));
    let (code, said) = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await.status();
    assert!(code == Code::ResourceExhausted && said.contains("7 callers wait"), "{said}");
}

#[tokio::test]
async fn one_message_for_several_models_comes_back_as_their_answers_in_order() {
    let (_runtime, mut world, _seen) = echoing().await;
    let other = crate::scripted::registration("other__isvc-2222222222");
    world.models.names.lock().insert("other".to_owned(), berth_registry::Resolved::Model(other));
    let ids = [("mm-vmodel-id", "other"), ("mm-vmodel-id", "unheard-of"), ("mm-vmodel-id", "digits")];
    let sent = field(7, b"x");
    let got = world.call(INFER, &ids, whole(message(&sent))).await;
    assert_eq!(got.status().0, Code::Ok, "{got:?}");
    let answers = [sent.clone(), field(1, b"other__isvc-2222222222"), sent.clone(), field(1, ID.as_bytes())].concat();
    assert_eq!(got.body, message(&answers));
    assert_eq!(got.headers.get_all("x-first").iter().count(), 2);
    world.unguarded().await;

    let all = [&ids[..], &[("mm-required", "all")]].concat();
    let (code, said) = world.call(INFER, &all, whole(message(&sent))).await.status();
    assert!(code == Code::NotFound && said.contains("unheard-of"), "{said}");
    let none = [("mm-vmodel-id", "a"), ("mm-vmodel-id", "b")];
    assert_eq!(world.call(INFER, &none, whole(message(&sent))).await.status().0, Code::NotFound);
    world.unguarded().await;
}

#[tokio::test]
async fn what_one_of_several_models_runs_into_is_the_answer() {
    let runtime = runtime(scripted(vec![badly("9", "not%20now"), badly("9", "not%20now")])).await;
    let mut world = world(runtime.addr).await;
    let got = world.call(INFER, &[("mm-vmodel-id", "digits"), ("mm-vmodel-id", "digits")], whole(message(b""))).await;
    assert_eq!(got.status(), (Code::FailedPrecondition, "not now".to_owned()));
    world.unguarded().await;
}

const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// A streamed answer of Triton about a model that it does not hold.
fn unknown() -> Bytes {
    message(&field(1, b"Request for unknown model: 'm' has no available versions"))
}

#[tokio::test]
async fn a_stream_whose_first_answer_says_that_the_model_is_not_here_is_sent_once_more() {
    let (half, rest) = (unknown().slice(..7), unknown().slice(7..));
    let runtime = runtime(scripted(vec![well(vec![half, rest]), well(vec![message(b"x"), unknown()])])).await;
    let mut world = world(runtime.addr).await;
    let got = world.call(STREAM, &[], whole(message(&naming("digits", 1000)))).await;
    assert_eq!(got.status().0, Code::Ok, "{got:?}");
    assert_eq!(got.body, [message(b"x"), unknown()].concat(), "the second answer whole, and only that");
    assert_eq!((&got.headers["x-first"], &got.trailers["x-last"]), (&"kept".parse().unwrap(), &"kept".parse().unwrap()));
    assert_eq!(*world.models.suspects.lock(), [ID]);
    world.unguarded().await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_sent_again_is_told_to_come_again_and_what_is_said_thrice_is_the_answer() {
    let large = runtime(scripted(vec![well(vec![unknown()])])).await;
    let mut world_of_large = world(large.addr).await;
    let (code, said) = world_of_large.call(STREAM, &[], whole(message(&naming("digits", 300 * 1024)))).await.status();
    assert!(code == Code::Unavailable && said.contains("does not hold model"), "{code:?} {said}");

    let stubborn = runtime(scripted((0..3).map(|_| well(vec![unknown()])).collect())).await;
    let mut world = world(stubborn.addr).await;
    let got = world.call(STREAM, &[], whole(message(&naming("digits", 1)))).await;
    assert_eq!((got.status().0, got.body), (Code::Ok, unknown()));
}

#[tokio::test]
async fn the_same_words_in_another_method_or_later_in_a_stream_pass_untouched() {
    let empty = || message(b"");
    for (path, frames) in [
        (INFER, vec![unknown()]),
        (STREAM, vec![message(b"x"), unknown()]),
        (STREAM, vec![empty(), unknown()]),
        (STREAM, vec![unknown().slice(..9)]), // cut off
        (STREAM, vec![]),
    ] {
        let runtime = runtime(scripted(vec![well(frames.clone())])).await;
        let mut world = world(runtime.addr).await;
        let got = world.call(path, &[], whole(message(&naming("digits", 1)))).await;
        assert_eq!((got.status().0, got.body), (Code::Ok, Bytes::from(frames.concat())), "{path} {frames:?}");
        assert_eq!(got.trailers["x-last"], "kept", "{path} {frames:?}");
        assert!(world.models.suspects.lock().is_empty(), "{path} {frames:?}");
    }
}

#[tokio::test]
async fn a_streamed_answer_of_which_nothing_has_come_ends_with_the_deadline_of_its_caller() {
    let behaviour: Behaviour = Arc::new(|_| async { Response::new(BodyExt::boxed(StreamBody::new(futures::stream::pending()))) }.boxed());
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let (code, said) = world.call(STREAM, &[("grpc-timeout", "80m")], whole(message(&naming("digits", 1)))).await.status();
    assert_eq!(code, Code::DeadlineExceeded, "{said}");
    world.unguarded().await;
}

/// On one connection, with as much of their requests in it as its windows take: what callers of a cold model have sent
/// must not stand in the way of others.
#[tokio::test]
async fn callers_who_wait_for_a_model_leave_the_connection_to_those_beside_them() {
    let (_runtime, mut world, _seen) = echoing().await;
    world.models.never_loads("cold");
    let body = || whole(message(&naming("cold", 1 << 20)));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..250 {
        world.client.ready().await.unwrap();
        waiting.spawn(world.client.send_request(call(INFER, &[], body())));
    }
    world.models.waiting.subscribe().wait_for(|waiting| *waiting == 250).await.unwrap();
    for _ in 0..20 {
        let sent = naming("digits", 1 << 20);
        let got = world.call(INFER, &[], whole(message(&sent))).await;
        assert_eq!((got.status().0, got.body.len()), (Code::Ok, message(&[sent, field(1, ID.as_bytes())].concat()).len()));
    }
    let (mut held, shown) = (0, world.metrics.render());
    for line in shown.lines().filter_map(|line| line.strip_prefix("berth_buffer_bytes{class=\"requests-waiting\"} ")) {
        held = line.parse().unwrap();
    }
    let windows = 250 * ProxyConfig::default().stream_window.0;
    assert!((windows..ByteSize::mib(128).0).contains(&held), "what they hold is counted with their windows: {held}");
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    world.models.waiting.subscribe().wait_for(|waiting| *waiting == 0).await.unwrap();
}

/// A body without an end, of messages that name the model, and the bytes that were asked of it.
fn endless() -> (Body, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (piece, counted) = (message(&naming("digits", 16_000)), Arc::clone(&asked));
    let frames = futures::stream::repeat_with(move || {
        counted.fetch_add(piece.len(), Ordering::Relaxed);
        Ok(Frame::data(piece.clone()))
    });
    (BodyExt::boxed(StreamBody::new(frames)), asked)
}

/// Returns once no more of a body is asked for while others are served, which are refused here.
async fn stops(world: &mut World, asked: &AtomicUsize, most: usize) {
    loop {
        let before = asked.load(Ordering::Relaxed);
        for _ in 0..50 {
            let got = world.call(INFER, &[], whole(message(&naming("unheard-of", 1)))).await;
            assert_eq!(got.status().0, Code::NotFound);
        }
        let now = asked.load(Ordering::Relaxed);
        assert!(now <= most, "{now} bytes are on their way to somebody who reads none");
        if now > 0 && now == before {
            return;
        }
    }
}

#[tokio::test]
async fn a_runtime_that_does_not_read_stops_the_client_and_a_client_that_does_not_read_the_runtime() {
    let unread: Behaviour = Arc::new(|request| {
        async move {
            let _request = request;
            std::future::pending().await
        }
        .boxed()
    });
    let deaf = runtime(unread).await;
    let mut world_of_deaf = world(deaf.addr).await;
    let (body, asked) = endless();
    let sending = tokio::spawn(world_of_deaf.client.send_request(call(INFER, &[], body)));
    stops(&mut world_of_deaf, &asked, 8 << 20).await;
    sending.abort();
    world_of_deaf.unguarded().await;

    let (body, asked) = endless();
    let answer = Arc::new(parking_lot::Mutex::new(Some(body)));
    let talks: Behaviour = Arc::new(move |_| {
        let body = answer.lock().take().expect("called once");
        async move { Response::new(body) }.boxed()
    });
    let talker = runtime(talks).await;
    let mut world = world(talker.addr).await;
    let unread = world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap();
    stops(&mut world, &asked, 16 << 20).await;
    drop(unread);
    world.unguarded().await;
}
