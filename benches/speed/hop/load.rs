//! The client: callers that wait for one answer before they send the next request, against each contender in turns.
//!
//! All blocks of a case are run by one process that stays warm; it asks the kernel what the proxy has spent at the moments
//! between which it measures, so that nothing else is counted.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use berth_telemetry::Clock;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use serde::{Deserialize, Serialize};
use tokio::sync::{Barrier, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::wire::{self, COLD, Ends, NAMING, PLAIN, Pieces, WAIT};

/// What is to be measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Who is called, in turns.
    pub(crate) seats: Vec<Seat>,
    /// Bytes of a message.
    pub(crate) bytes: usize,
    pub(crate) callers: usize,
    /// Connections that they share.
    pub(crate) connections: usize,
    /// Each caller has one stream and sends messages on it; otherwise each request is a call.
    pub(crate) streaming: bool,
    /// Models are named in messages; otherwise in a header.
    pub(crate) in_message: bool,
    /// How often each seat is measured; once more before that, thrown away.
    pub(crate) blocks: usize,
    /// How long one block takes.
    pub(crate) millis: u64,
    /// How long the server and then the client leave each body unread.
    pub(crate) wait_millis: u64,
}

/// One contender.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Seat {
    pub(crate) address: String,
    /// The process whose time is counted.
    pub(crate) process: i32,
    /// So many further calls of the cold model wait on the same connections meanwhile.
    pub(crate) blocked: usize,
}

/// One block of one seat.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Sample {
    pub(crate) seat: usize,
    pub(crate) requests: u64,
    /// Seconds.
    pub(crate) wall: f64,
    /// User plus system time of the seat's process, seconds.
    pub(crate) cpu: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
}

/// Carries out `plan`, a line of JSON, and says each sample as one.
pub(super) async fn run(plan: &str) -> anyhow::Result<()> {
    let plan: Arc<Plan> = Arc::new(serde_json::from_str(plan)?);
    let clock = Clock::system();
    let filler = BytesMut::zeroed(plan.bytes).freeze();
    let mut lines = Vec::new();
    for seat in &plan.seats {
        let mut senders = Vec::new();
        for _ in 0..plan.connections {
            senders.push(wire::connect(&seat.address).await?);
        }
        lines.push(senders);
    }
    let seats = plan.seats.len();
    for block in 0..=plan.blocks {
        for turn in 0..seats {
            let at = (block + turn) % seats;
            let (seat, senders) = (&plan.seats[at], &lines[at]);
            let blocked = Blocked::begin(seat.blocked, senders).await?;
            let sample = measure(&plan, at, senders, &filler, &clock).await.with_context(|| format!("block {block} at {}", seat.address))?;
            blocked.end()?;
            if block > 0 {
                println!("{}", serde_json::to_string(&sample)?);
            }
        }
    }
    Ok(())
}

/// User plus system time of all threads of a process, which must be as many before as after.
fn spent(process: i32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // Nanoseconds on a processor, nanoseconds of waiting for one, turns.
        let told = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += told.split(' ').next().context("a number")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

async fn measure(plan: &Arc<Plan>, at: usize, senders: &[SendRequest<Sent>], filler: &Bytes, clock: &Clock) -> anyhow::Result<Sample> {
    let process = plan.seats[at].process;
    // Everyone has had one answer; everyone begins; everyone has ended.
    let (ready, go, ended) = (gate(plan), gate(plan), gate(plan));
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..plan.callers {
        let sender = senders[number % senders.len()].clone();
        let mut caller =
            Caller { plan: Arc::clone(plan), sender, filler: filler.clone(), clock: clock.clone(), next: Arc::clone(&next), stream: None };
        let (ready, go, ended, clock) = (Arc::clone(&ready), Arc::clone(&go), Arc::clone(&ended), clock.clone());
        callers.spawn(async move {
            // Who fails must not keep the others at a gate: the process ends with the reason.
            let outcome = async {
                caller.round().await?;
                ready.wait().await;
                go.wait().await;
                let until = clock.now() + Duration::from_millis(caller.plan.millis);
                let mut took = Vec::new();
                loop {
                    let since = clock.now();
                    caller.round().await?;
                    let now = clock.now();
                    took.push(now - since);
                    if now >= until {
                        break;
                    }
                }
                let last = clock.now();
                ended.wait().await;
                anyhow::Ok((took, last))
            };
            outcome.await.unwrap_or_else(|fault| {
                eprintln!("{fault:#}");
                std::process::exit(1)
            })
        });
    }
    ready.wait().await;
    let (cpu, begin) = (spent(process)?, clock.now());
    go.wait().await;
    ended.wait().await;
    let cpu = spent(process)?.saturating_sub(cpu);
    let (mut took, mut last): (Vec<Duration>, Instant) = (Vec::new(), begin);
    for (own, end) in callers.join_all().await {
        took.extend(own);
        last = last.max(end);
    }
    took.sort_unstable();
    let percentile = |percent: usize| took.get(took.len() * percent / 100).map_or(0.0, |took| took.as_secs_f64() * 1e6);
    let wall = (last - begin).as_secs_f64();
    Ok(Sample { seat: at, requests: took.len() as u64, wall, cpu: cpu.as_secs_f64(), p50: percentile(50), p99: percentile(99) })
}

fn gate(plan: &Plan) -> Arc<Barrier> {
    Arc::new(Barrier::new(plan.callers + 1))
}

/// A request's body.
enum Sent {
    /// All there.
    Whole(Pieces),
    /// Piece by piece, until the sender is dropped.
    Open(mpsc::Receiver<Bytes>),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Sent::Whole(pieces) => Pin::new(pieces).poll_frame(cx),
            Sent::Open(pieces) => pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Sent::Whole(pieces) if pieces.is_end_stream())
    }
}

/// One caller.
struct Caller {
    plan: Arc<Plan>,
    sender: SendRequest<Sent>,
    filler: Bytes,
    clock: Clock,
    /// Which model is next, for all callers.
    next: Arc<AtomicUsize>,
    stream: Option<Stream>,
}

/// A call that stays open.
struct Stream {
    model: String,
    messages: mpsc::Sender<Bytes>,
    answers: Incoming,
    ends: Ends,
}

impl Caller {
    /// One request and all of its answer.
    async fn round(&mut self) -> anyhow::Result<()> {
        if self.plan.streaming { self.exchange().await } else { self.call().await }
    }

    fn model(&self) -> String {
        wire::model(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn message(&self, model: &str) -> VecDeque<Bytes> {
        wire::message(self.plan.in_message.then_some(model), self.plan.bytes, &self.filler)
    }

    fn request(&self, model: &str, body: Sent) -> anyhow::Result<Request<Sent>> {
        let Plan { in_message, streaming, wait_millis, .. } = *self.plan;
        let path = if in_message { NAMING } else { PLAIN }[usize::from(streaming)];
        let named = (!in_message).then_some(model);
        request(path, named, wait_millis, body)
    }

    /// A call of its own.
    async fn call(&mut self) -> anyhow::Result<()> {
        let model = self.model();
        let body = Sent::Whole(Pieces { data: self.message(&model), trailers: None });
        let request = self.request(&model, body)?;
        let mut answer = begun(&mut self.sender, request).await?.into_body();
        if self.plan.wait_millis > 0 {
            self.clock.sleep(Duration::from_millis(self.plan.wait_millis)).await;
        }
        let (mut ends, mut messages, mut trailers) = (Ends::default(), 0, None);
        while let Some(frame) = answer.frame().await {
            match frame?.into_data() {
                Ok(data) => messages += ends.push(&data),
                Err(other) => trailers = other.into_trailers().ok(),
            }
        }
        let trailers = trailers.context("an answer without trailers")?;
        ensure!(is_ok(&trailers) && messages == 1, "the answer has {messages} messages and ended with {trailers:?}");
        Ok(())
    }

    /// One more message of the stream, which is opened first where there is none.
    async fn exchange(&mut self) -> anyhow::Result<()> {
        if self.stream.is_none() {
            let model = self.model();
            let (messages, pieces) = mpsc::channel(4);
            let request = self.request(&model, Sent::Open(pieces))?;
            let mut sender = self.sender.clone();
            let first = self.message(&model);
            let (answer, ()) = tokio::try_join!(begun(&mut sender, request), send(&messages, first))?;
            self.stream = Some(Stream { model, messages, answers: answer.into_body(), ends: Ends::default() });
        } else if let Some(stream) = &self.stream {
            send(&stream.messages, self.message(&stream.model)).await?;
        }
        let stream = self.stream.as_mut().context("a stream")?;
        loop {
            let frame = stream.answers.frame().await.context("the stream has ended")??;
            match frame.into_data() {
                Ok(data) => {
                    if stream.ends.push(&data) > 0 {
                        return Ok(());
                    }
                }
                Err(trailers) => bail!("the stream ended with {trailers:?}"),
            }
        }
    }
}

async fn send(to: &mpsc::Sender<Bytes>, message: VecDeque<Bytes>) -> anyhow::Result<()> {
    for piece in message {
        to.send(piece).await?;
    }
    Ok(())
}

fn request(path: &str, model: Option<&str>, wait_millis: u64, body: Sent) -> anyhow::Result<Request<Sent>> {
    let mut request = Request::post(format!("http://bench{path}")).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
    if let Some(model) = model {
        request = request.header("mm-model-id", model);
    }
    if wait_millis > 0 {
        request = request.header(WAIT, wait_millis);
    }
    Ok(request.body(body)?)
}

/// The answer to `request` from its head on.
async fn begun(sender: &mut SendRequest<Sent>, request: Request<Sent>) -> anyhow::Result<Response<Incoming>> {
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status() == StatusCode::OK && !answer.headers().contains_key("grpc-status"), "refused: {:?}", answer.headers());
    Ok(answer)
}

fn is_ok(trailers: &HeaderMap) -> bool {
    trailers.get("grpc-status").is_some_and(|status| status == "0")
}

/// Calls of the cold model that wait.
struct Blocked(Vec<JoinHandle<()>>);

impl Blocked {
    async fn begin(count: usize, senders: &[SendRequest<Sent>]) -> anyhow::Result<Self> {
        let mut calls = Vec::new();
        for number in 0..count {
            let mut sender = senders[number % senders.len()].clone();
            let body = Sent::Whole(Pieces { data: wire::message(None, 100, &Bytes::from_static(&[0; 100])), trailers: None });
            let request = request(PLAIN[0], Some(COLD), 0, body)?;
            sender.ready().await?;
            // Sent when this returns: a hot request that follows on the same connection arrives later.
            let answer = sender.send_request(request);
            calls.push(tokio::spawn(async move {
                let told = answer.await.map(|answer| answer.headers().clone());
                eprintln!("a call of the cold model was answered: {told:?}");
            }));
        }
        Ok(Blocked(calls))
    }

    /// Cancels them all.
    fn end(self) -> anyhow::Result<()> {
        for call in &self.0 {
            ensure!(!call.is_finished(), "a call of the cold model was answered");
            call.abort();
        }
        Ok(())
    }
}
