//! Queues, senders, taps and posts, with time at a test's will.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use berth_telemetry::{Clock, Counter, Dialed, Listener, Metrics, Net, Peer};
use berth_types::{ByteSize, ModelId};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex as PlainMutex;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use prost::Message as _;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::courier::{Courier, SenderOf};
use super::payload::{Kind, Packing, Payload};
use super::queue::{Line, Lost, Queue};
use super::{Deps, Payloads, Settings, processors};
use crate::frontend::{Call, MODEL_INFER, MODEL_STREAM_INFER};
use crate::id::Asked;
use crate::scripted::rig;

const SECOND: Duration = Duration::from_secs(1);
const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Connections that end in this process: the other end of each goes to whoever holds the receiver.
struct Pairs(mpsc::UnboundedSender<UnixStream>);

#[async_trait]
impl Net for Pairs {
    async fn listen(&self, _addr: SocketAddr) -> io::Result<Listener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn dial(&self, _peer: &Peer) -> io::Result<Dialed> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(tokio_util::either::Either::Right(ours))
    }
}

/// What a receiver does with a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answers(u16),
    AnswersAndCloses,
    AnswersMuch,
    Hangs,
    Breaks,
}

/// A receiver of payloads.
pub(crate) struct Received {
    posts: mpsc::UnboundedReceiver<(HeaderMap, Value)>,
    net: Arc<dyn Net>,
    connections: Arc<PlainMutex<usize>>,
}

impl Received {
    pub(crate) fn new() -> Self {
        Received::doing(vec![])
    }

    /// Does these, one for each post, then answers.
    fn doing(script: Vec<Does>) -> Self {
        let (dialed, mut connected) = mpsc::unbounded_channel();
        let (posted, posts) = mpsc::unbounded_channel();
        let connections = Arc::new(PlainMutex::new(0));
        let (script, count) = (Arc::new(PlainMutex::new(VecDeque::from(script))), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Some(stream) = connected.recv().await {
                *count.lock() += 1;
                let (script, posted) = (Arc::clone(&script), posted.clone());
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (script, posted) = (Arc::clone(&script), posted.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                        assert_eq!(head.headers["content-length"], body.len().to_string());
                        let _ = posted.send((head.headers, serde_json::from_slice(&body).map_err(io::Error::other)?));
                        let does = script.lock().pop_front().unwrap_or(Does::Answers(200));
                        let mut response = Response::new(Full::new(Bytes::from_static(b"taken")));
                        match does {
                            Does::Answers(status) => *response.status_mut() = status.try_into().unwrap(),
                            Does::AnswersAndCloses => drop(response.headers_mut().insert("connection", HeaderValue::from_static("close"))),
                            Does::AnswersMuch => *response.body_mut() = Full::new(vec![b'x'; 1 << 20].into()),
                            Does::Hangs => std::future::pending().await,
                            Does::Breaks => return Err(io::Error::other("broken")),
                        }
                        Ok(response)
                    }
                });
                tokio::spawn(async move { hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
            }
        });
        Received { posts, net: Arc::new(Pairs(dialed)), connections }
    }

    /// Processors of `list` that reach this receiver, delivering until the test ends.
    pub(crate) fn processors(&self, list: &str, metrics: &Metrics) -> Payloads {
        let (payloads, senders) = Payloads::new(Deps {
            processors: processors(list).unwrap(),
            settings: Settings { senders: NonZeroUsize::MIN, ..Settings::default() },
            tls: None,
            net: Arc::clone(&self.net),
            clock: Clock::system(),
            metrics: metrics.clone(),
            source: "test".to_owned(),
        });
        tokio::spawn(senders.run(CancellationToken::new()));
        payloads
    }

    /// The next post.
    pub(crate) async fn next(&mut self) -> Value {
        self.posts.recv().await.expect("a post").1
    }

    /// Whether there is no post beside those that were looked at.
    pub(crate) fn is_empty(&self) -> bool {
        self.posts.is_empty()
    }
}

/// The bytes that a post carries.
pub(crate) fn data(post: &Value) -> Vec<u8> {
    STANDARD.decode(post["data"].as_str().expect("a text")).expect("base64")
}

/// How a delivery ends: well, badly, or never.
type Ends = Option<Result<(), Lost>>;

/// Delivers what a test lets it.
#[derive(Clone, Default)]
struct Fake {
    /// One for each payload; beyond them all go well.
    outcomes: Arc<PlainMutex<VecDeque<Ends>>>,
    delivered: Arc<PlainMutex<Vec<String>>>,
}

impl Courier for Fake {
    async fn deliver(&mut self, payload: &Payload, message: Option<Bytes>) -> Result<(), Lost> {
        let data = message.unwrap_or_else(|| payload.data.concat().into());
        self.delivered.lock().push(format!("{} {}", payload.call.id, String::from_utf8_lossy(&data)));
        let next = self.outcomes.lock().pop_front();
        match next {
            None => Ok(()),
            Some(Some(outcome)) => outcome,
            Some(None) => std::future::pending().await,
        }
    }
}

/// Queues without senders.
struct Queues {
    payloads: Payloads,
    waiting: Vec<Line>,
    metrics: Metrics,
}

fn queues(list: &str, settings: Settings) -> Queues {
    let metrics = Metrics::default();
    let (payloads, senders) = Payloads::new(Deps {
        processors: processors(list).unwrap(),
        settings,
        tls: None,
        net: Arc::new(Pairs(mpsc::unbounded_channel().0)),
        clock: Clock::system(),
        metrics: metrics.clone(),
        source: "t".to_owned(),
    });
    Queues { payloads, waiting: senders.waiting.into_iter().map(|(_, waiting)| waiting).collect(), metrics }
}

impl Queues {
    fn queue(&self, at: usize) -> &Arc<Queue> {
        &self.payloads.0.queues[at]
    }

    fn sender<C: Courier>(&self, at: usize, courier: C) -> SenderOf<C> {
        SenderOf { queue: Arc::clone(self.queue(at)), waiting: Arc::clone(&self.waiting[at]), courier, clock: Clock::system() }
    }

    /// Puts a request of those bytes into the queues.
    fn put(&self, bytes: &'static [u8]) {
        let observed = self.observe();
        observed.request(bytes.len(), || Bytes::from_static(bytes));
        // Its end is no payload of these tests.
        std::mem::forget(observed);
    }

    fn observe(&self) -> super::Observed {
        let model = ModelId::new("m__isvc-1").unwrap();
        self.payloads.observe(METHOD, &Asked::Name("m".into()), &model, &HeaderMap::new()).expect("somebody wants it")
    }

    fn taken(&self, at: usize) -> Vec<Arc<Payload>> {
        let mut waiting = self.waiting[at].try_lock().unwrap();
        std::iter::from_fn(|| waiting.try_recv().ok()).map(|waiting| waiting.payload).collect()
    }

    fn dropped(&self, processor: &str, why: Lost) -> u64 {
        self.metrics.count(Counter::PayloadsDropped, &[("processor", processor), ("reason", why.label())])
    }

    fn sent(&self, processor: &str) -> u64 {
        self.metrics.count(Counter::PayloadsSent, &[("processor", processor)])
    }
}

fn settings(capacity: usize, budget: u64, limit: u64) -> Settings {
    let capacity = NonZeroUsize::new(capacity).unwrap();
    Settings { senders: NonZeroUsize::MIN, capacity, budget: ByteSize(budget), limit: ByteSize(limit) }
}

const A: &str = "http://a:80";
const B: &str = "http://b:80";

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_dropped_by_its_reason_for_that_processor_alone() {
    let overhead = {
        let queues = queues("http://a", settings(1, 1 << 20, 100));
        queues.put(b"");
        queues.queue(0).held()
    };
    let queues = queues("http://a http://b?other logger:///*", settings(2, 3 * (2 * overhead + 15), 10));
    queues.put(b"0123456789x");
    assert_eq!((queues.dropped(A, Lost::Size), queues.queue(0).held()), (1, 0));
    queues.put(b"0123456789");
    queues.put(b"012345");
    assert_eq!(queues.dropped(A, Lost::Budget), 1, "the budget is each processor's own third");
    queues.put(b"01234");
    assert_eq!(queues.queue(0).held(), 2 * overhead + 15);
    assert_eq!(queues.taken(0).len(), 2);
    assert_eq!(queues.queue(0).held(), 0, "taken out and gone");
    assert_eq!(queues.dropped(A, Lost::Capacity), 0);
}

#[tokio::test(start_paused = true)]
async fn each_processor_has_so_many_payloads_waiting_and_only_what_it_wants() {
    let queues = queues("http://a http://b?other logger:///*", settings(2, 1 << 20, 10));
    for _ in 0..3 {
        queues.put(b"1");
    }
    queues.put(b"too long for a and b");
    assert_eq!((queues.dropped(A, Lost::Capacity), queues.dropped(A, Lost::Size), queues.taken(0).len()), (1, 1, 2));
    assert_eq!((queues.dropped(B, Lost::Size), queues.taken(1).len()), (0, 0), "it wants another model's");
    let logged = queues.taken(2);
    assert_eq!((logged.len(), queues.dropped("logger", Lost::Capacity), queues.dropped("logger", Lost::Size)), (2, 2, 0));
    assert_eq!((logged[0].size, logged[0].data.len()), (1, 0), "the log gets sizes and no data");
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_hangs_costs_its_own_payloads_and_nobody_elses() {
    let queues = queues("http://a http://b", settings(4, 1 << 20, 100));
    let (hanging, other) = (Fake::default(), Fake::default());
    hanging.outcomes.lock().extend([None, None]);
    let closing = CancellationToken::new();
    for _ in 0..2 {
        tokio::spawn(queues.sender(0, hanging.clone()).run(closing.clone()));
    }
    tokio::spawn(queues.sender(1, other.clone()).run(closing.clone()));
    let started = Clock::system().now();
    for _ in 0..100 {
        queues.put(b"x");
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    assert_eq!(Clock::system().now(), started, "nothing was waited for");
    assert_eq!((queues.sent(B), queues.dropped(B, Lost::Capacity)), (100, 0));
    assert_eq!((queues.sent(A), queues.dropped(A, Lost::Capacity)), (0, 94), "two on their way, four wait");
    assert_eq!(other.delivered.lock()[..2], ["t-0 x", "t-1 x"]);
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_is_not_there_is_asked_seldom_and_again_at_once_when_it_is() {
    let queues = queues("http://a", settings(64, 1 << 20, 100));
    let fake = Fake::default();
    fake.outcomes.lock().extend([Some(Err(Lost::Unreachable)); 20]);
    tokio::spawn(queues.sender(0, fake.clone()).run(CancellationToken::new()));
    for _ in 0..600 {
        queues.put(b"x");
        Clock::system().sleep(Duration::from_millis(100)).await;
    }
    // 0.1 + 0.2 + ... + 3.2 s, then every 5 s: within a minute 6 and 11.
    let asked = fake.delivered.lock().len();
    assert!((16..=19).contains(&asked), "{asked} in a minute");
    assert_eq!(queues.dropped(A, Lost::Unreachable) as usize, asked);
    Clock::system().sleep(20 * SECOND).await;
    assert!(queues.sent(A) > 60, "what waited has gone");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_what_waits_is_delivered_for_five_seconds_and_what_is_left_counted() {
    for hangs in [false, true] {
        let mut received = Received::doing(if hangs { vec![Does::Answers(200), Does::Hangs] } else { vec![] });
        let metrics = Metrics::default();
        let (payloads, senders) = Payloads::new(Deps {
            processors: processors("http://a").unwrap(),
            settings: Settings { senders: NonZeroUsize::MIN, ..Settings::default() },
            tls: None,
            net: Arc::clone(&received.net),
            clock: Clock::system(),
            metrics: metrics.clone(),
            source: "t".to_owned(),
        });
        for _ in 0..5 {
            let model = ModelId::new("m").unwrap();
            payloads.observe(METHOD, &Asked::Version("m".into()), &model, &HeaderMap::new()).unwrap().failed(Code::NotFound);
        }
        let (stop, started) = (CancellationToken::new(), Clock::system().now());
        stop.cancel();
        senders.run(stop).await;
        let took = Clock::system().now() - started;
        let of = |counter, labels: &[(&'static str, &str)]| metrics.count(counter, &[&[("processor", A)], labels].concat());
        let counted = (of(Counter::PayloadsSent, &[]), of(Counter::PayloadsDropped, &[("reason", "shutdown")]));
        if hangs {
            assert_eq!((counted, took >= 5 * SECOND && took < 6 * SECOND), ((1, 3), true), "one was cut off: {took:?}");
        } else {
            assert_eq!((counted, took < SECOND), ((5, 0), true), "{took:?}");
            let post = received.next().await;
            assert_eq!((post["status"].as_str(), post["vModelId"].as_str(), post["id"].as_str()), (Some("NOT_FOUND"), Some(""), Some("t-0")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_does_decides_what_is_counted_and_connections_are_kept() {
    let cases = [
        (Does::Answers(204), None),
        (Does::Answers(503), Some(Lost::Refused)),
        (Does::Answers(302), Some(Lost::Refused)),
        (Does::AnswersAndCloses, None),
        (Does::Hangs, Some(Lost::Timeout)),
        (Does::Breaks, Some(Lost::Broken)),
        (Does::AnswersMuch, None),
        (Does::Answers(200), None),
    ];
    let mut received = Received::doing(cases.iter().map(|(does, _)| *does).collect());
    let metrics = Metrics::default();
    let payloads = received.processors("http://us:s3cret@a/path", &metrics);
    for (does, lost) in cases {
        let started = Clock::system().now();
        let model = ModelId::new("m").unwrap();
        let observed = payloads.observe(METHOD, &Asked::Version("m".into()), &model, &HeaderMap::new()).unwrap();
        observed.failed(Code::Ok);
        let (headers, _) = received.posts.recv().await.unwrap();
        assert_eq!((&headers["host"], &headers["authorization"]), (&"a".parse().unwrap(), &"Basic dXM6czNjcmV0".parse().unwrap()));
        let count = || match lost {
            None => metrics.count(Counter::PayloadsSent, &[("processor", A)]),
            Some(lost) => metrics.count(Counter::PayloadsDropped, &[("processor", A), ("reason", lost.label())]),
        };
        let wanted = 1 + cases.iter().take_while(|(other, _)| *other != does).filter(|(_, other)| *other == lost).count() as u64;
        while count() < wanted {
            Clock::system().sleep(SECOND / 10).await;
            assert!(Clock::system().now() - started < 20 * SECOND, "{does:?} is counted as something else: {}", metrics.render());
        }
    }
    // One for the first four, and a new one after each that was closed, given up, broken or not read to its end.
    assert_eq!(*received.connections.lock(), 5);
}

#[tokio::test(start_paused = true)]
async fn drops_are_said_once_a_minute_with_their_number_and_without_secrets() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = logging(subscriber);
    let queues = queues("http://user:s3cret@a/s3cret?*", settings(1, 1 << 20, 1));
    for _ in 0..125 {
        queues.put(b"too long");
        Clock::system().sleep(SECOND).await;
    }
    let text = lines.text();
    let said: Vec<&str> = text.lines().filter(|line| line.contains("payloads were dropped")).collect();
    assert_eq!(said.len(), 3, "{text}");
    for (line, dropped) in said.iter().zip(["dropped=1", "dropped=60", "dropped=60"]) {
        assert!(line.contains(dropped) && line.contains("http://a:80") && line.contains("reason=size"), "{line}");
    }
    assert!(!text.contains("s3cret"), "{text}");
}

/// What is logged.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<PlainMutex<Vec<u8>>>);

/// Has the log of this thread written by `subscriber`. What other tests first log meanwhile is asked of it, too: of a single
/// subscriber the library asks the one of the thread that logs, which may have none, and then nothing of that line is ever written.
pub(crate) fn logging(subscriber: impl tracing::Subscriber + Send + Sync) -> (tracing::subscriber::DefaultGuard, tracing::Dispatch) {
    let other = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(io::sink).finish();
    let other = tracing::Dispatch::new(other);
    (tracing::subscriber::set_default(subscriber), other)
}

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_logger_writes_a_line_for_each_payload_and_no_data() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = logging(subscriber);
    let queues = queues("logger:///*", settings(8, 1 << 20, 1));
    queues.put(b"s3cret");
    queues.observe().failed(Code::Unavailable);
    let closing = CancellationToken::new();
    closing.cancel();
    queues.sender(0, super::Logger).run(closing).await;
    let text = lines.text();
    let texts: Vec<&str> = text.lines().filter(|line| line.contains("payload ")).collect();
    assert_eq!(texts.len(), 2, "{text}");
    for (line, parts) in texts.iter().zip([["kind=\"request\"", "size=6"], ["kind=\"response\"", "status=\"UNAVAILABLE\""]]) {
        assert!(parts.iter().all(|part| line.contains(part)) && line.contains("m__isvc-1") && line.contains("name=\"m\""), "{line}");
    }
    assert!(!text.contains("s3cret"));
}

fn framed(packed: u8, bytes: &[u8]) -> Vec<u8> {
    [&[packed][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn encoded_by(encoding: &'static str) -> HeaderMap {
    [(http::HeaderName::from_static("grpc-encoding"), HeaderValue::from_static(encoding))].into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn compressed_messages_are_inflated_within_the_limit_before_they_are_delivered() {
    for (encoding, message, expected) in [
        ("gzip", framed(1, &gzip(b"plain")), Ok("plain")),
        ("gzip", framed(0, b"plain"), Ok("plain")),
        ("gzip", framed(1, &gzip(&[0; 3000])), Err(Lost::Size)),
        ("gzip", framed(1, b"no gzip"), Err(Lost::Unreadable)),
        ("br", framed(1, b"whatever"), Err(Lost::Unreadable)),
        ("identity", framed(1, b"whatever"), Err(Lost::Unreadable)),
    ] {
        let queues = queues("http://a", settings(8, 1 << 20, 2000));
        let observed = queues.observe();
        observed.requests(&encoded_by(encoding)).push(&message.into());
        std::mem::forget(observed);
        let (fake, closing) = (Fake::default(), CancellationToken::new());
        closing.cancel();
        queues.sender(0, fake.clone()).run(closing).await;
        match expected {
            Ok(text) => assert_eq!(*fake.delivered.lock(), [format!("t-0 {text}")], "{encoding}"),
            Err(lost) => assert_eq!((queues.dropped(A, lost), fake.delivered.lock().len()), (1, 0), "{encoding} {lost}"),
        }
        assert_eq!(queues.queue(0).held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_call_is_told_where_no_message_has_told_it() {
    type Steps = fn(super::Observed);
    type Case = (&'static str, Steps, &'static [(&'static str, Code)]);
    const NOTHING: &[(&str, Code)] = &[];
    let cases: [Case; 8] = [
        (
            "a message, well",
            |o| {
                let mut t = o.responses(&HeaderMap::new());
                t.push(&framed(0, b"a").into());
                t.ended(Code::Ok)
            },
            &[("a", Code::Ok)],
        ),
        (
            "a message, then badly",
            |o| {
                let mut t = o.responses(&HeaderMap::new());
                t.push(&framed(0, b"a").into());
                t.ended(Code::Internal)
            },
            &[("a", Code::Ok), ("", Code::Internal)],
        ),
        ("none, well", |o| o.responses(&HeaderMap::new()).ended(Code::Ok), &[("", Code::Ok)]),
        (
            "two, then nobody reads",
            |o| {
                let mut t = o.responses(&HeaderMap::new());
                t.push(&[framed(0, b"a"), framed(0, b"")].concat().into())
            },
            &[("a", Code::Ok), ("", Code::Ok), ("", Code::Cancelled)],
        ),
        (
            "ended twice",
            |o| {
                let mut t = o.responses(&HeaderMap::new());
                t.ended(Code::Aborted);
                t.ended(Code::Ok)
            },
            &[("", Code::Aborted)],
        ),
        ("failed", |o| o.failed(Code::NotFound), &[("", Code::NotFound)]),
        ("nobody waits", drop, &[("", Code::Cancelled)]),
        ("forgotten", |o| std::mem::forget(o), NOTHING),
    ];
    for (case, steps, expected) in cases {
        let queues = queues("http://a", settings(8, 1 << 20, 100));
        steps(queues.observe());
        let told: Vec<(String, Option<Code>)> =
            queues.taken(0).iter().map(|payload| (String::from_utf8(payload.data.concat()).unwrap(), payload.status)).collect();
        assert_eq!(told, expected.iter().map(|(data, code)| ((*data).to_owned(), Some(*code))).collect::<Vec<_>>(), "{case}");
        assert!(queues.taken(0).iter().all(|payload| payload.kind == Kind::Response));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_cut_short_is_dropped_and_not_half_told() {
    let queues = queues("http://a", settings(8, 1 << 20, 100));
    let observed = queues.observe();
    let mut tap = observed.requests(&HeaderMap::new());
    std::mem::forget(observed);
    tap.push(&framed(0, b"whole").into());
    tap.push(&framed(0, b"a half")[..8].to_vec().into());
    drop(tap);
    assert_eq!((queues.dropped(A, Lost::Unfinished), queues.taken(0).len(), queues.queue(0).held()), (1, 1, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, rng_seed: RngSeed::Fixed(23), ..ProptestConfig::default() })]
    #[test]
    fn messages_are_seen_once_however_they_are_cut_and_begun_again(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..9000)), 1..5),
        cuts in prop::collection::vec(1usize..6000, 1..12),
        again_after in 0usize..20_000,
    ) {
        let queues = queues("http://a", settings(64, 1 << 30, 6000));
        let observed = queues.observe();
        let mut tap = observed.requests(&encoded_by("gzip"));
        std::mem::forget(observed);
        let whole: Vec<u8> = messages.iter().flat_map(|(packed, bytes)| framed(u8::from(*packed), bytes)).collect();
        let push = |tap: &mut super::Tap, mut rest: &[u8], mut cuts: std::iter::Cycle<std::slice::Iter<'_, usize>>| {
            while !rest.is_empty() {
                let (frame, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                tap.push(&Bytes::copy_from_slice(frame));
                rest = after;
            }
        };
        push(&mut tap, &whole[..again_after.min(whole.len())], cuts.iter().cycle());
        tap.begins_again();
        let mut other = cuts.clone();
        other.reverse();
        push(&mut tap, &whole, other.iter().cycle());
        drop(tap);
        let seen: Vec<(bool, Vec<u8>)> = queues.taken(0).iter().map(|payload| (payload.packing != Packing::Plain, payload.data.concat())).collect();
        let fitting: Vec<_> = messages.iter().filter(|(_, bytes)| bytes.len() <= 6000).cloned().collect();
        prop_assert_eq!(queues.dropped(A, Lost::Size) as usize, messages.len() - fitting.len());
        prop_assert_eq!(seen, fitting);
        prop_assert_eq!(queues.queue(0).held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_inference_of_this_process_is_shown_as_the_messages_of_its_method() {
    let rig = rig();
    let mut received = Received::new();
    rig.frontend.show_payloads(received.processors("http://a?digits", &rig.metrics));
    let input = InferInputTensor { name: "x".to_owned(), datatype: "UINT8".to_owned(), shape: vec![3], ..InferInputTensor::default() };
    let request = ModelInferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[1, 2, 3])],
        ..ModelInferRequest::default()
    };
    let mut metadata = HeaderMap::new();
    metadata.insert("traceparent", HeaderValue::from_static("00-1-2-01"));
    metadata.insert("authorization", HeaderValue::from_static("Bearer s3cret"));
    for path in [MODEL_INFER, MODEL_STREAM_INFER] {
        let call = Call { path, metadata: &metadata };
        let deadline = rig.frontend.clock.deadline_in(SECOND);
        let answer = rig.frontend.infer_with(&Asked::Name("digits".into()), request.clone(), call, deadline).await.unwrap();
        let (sent, got) = (received.next().await, received.next().await);
        assert_eq!(
            (&sent["kind"], &sent["status"], &sent["metadata"]),
            (&"request".into(), &"".into(), &serde_json::json!({"traceparent": "00-1-2-01"}))
        );
        assert_eq!((&sent["modelid"], &sent["vModelId"]), (&"digits__isvc-1111111111".into(), &"digits".into()));
        assert_eq!(ModelInferRequest::decode(&*data(&sent)).unwrap(), request);
        assert_eq!((&got["kind"], &got["status"], &got["id"]), (&"response".into(), &"OK".into(), &sent["id"]));
        let told = if path == MODEL_INFER {
            ModelInferResponse::decode(&*data(&got)).unwrap()
        } else {
            ModelStreamInferResponse::decode(&*data(&got)).unwrap().infer_response.unwrap()
        };
        assert_eq!(told, answer);
    }
    rig.infer.answers.lock().push_back(Err(berth_adapters::InferError::BadRequest("no".to_owned())));
    let call = Call { path: MODEL_INFER, metadata: &metadata };
    let _fault = rig.frontend.infer_with(&Asked::Name("digits".into()), request, call, rig.frontend.clock.deadline_in(SECOND)).await.unwrap_err();
    assert_eq!(received.next().await["kind"], "request");
    let failed = received.next().await;
    assert_eq!((&failed["status"], &failed["data"]), (&"INVALID_ARGUMENT".into(), &"".into()));
    assert!(received.is_empty());
}
