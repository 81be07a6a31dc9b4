//! A relay between a client and a real server, to make the way between them slow, far, stuck or broken on demand.
//!
//! It passes bytes, so it stands in front of any server that speaks TCP. Where plain HTTP/1.1 goes through, it can also
//! tell requests and answers apart: it keeps the heads of requests, answers some itself, and breaks bodies off. An order
//! takes effect with the next chunk of every connection, open ones included. What comes through is counted and can be
//! waited for, so that a test acts when a client is certainly stuck and not some time later.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::real_time::{now, sleep};

/// The most that is read at once, in bytes; also what waits in each direction of a connection that is held.
const CHUNK: usize = 16 << 10;
/// Where the rate is limited, a chunk is what passes in this time.
const TICK: Duration = Duration::from_millis(20);
/// Chunks that may be on a long way at once, in each direction of a connection: 64 MiB, more than any test sends within
/// the delay, so that a far server is not a slow one.
const ON_THE_WAY: usize = 4096;
/// The longest head of a request.
const HEAD: usize = 64 << 10;

/// How fast each connection is, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How long each chunk of at most 16 KiB is kept before it goes on. The next one is read after that, which limits the
    /// rate as well; [`Relay::start_far`] does not.
    pub delay: Duration,
    /// Bytes per second; `None`: as fast as it goes.
    pub rate: Option<NonZeroU64>,
}

impl Pace {
    /// How much to read at once, so that a limited rate is a flow and not a few gushes.
    fn chunk(self) -> usize {
        let in_a_tick = self.rate.map_or(u64::MAX, |rate| rate.get().saturating_mul(u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX)) / 1000);
        usize::try_from(in_a_tick).unwrap_or(CHUNK).clamp(1, CHUNK)
    }

    /// How long a chunk of `bytes` is kept.
    fn of(self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.delay + self.rate.map_or(Duration::ZERO, |rate| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate))
    }
}

/// What came through a relay so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that clients made.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Chunks that wait for a release, at most one for each way of a connection.
    pub held: u64,
    /// Bytes from clients that were passed on.
    pub to_server: u64,
    /// Bytes from the server that were passed on.
    pub to_clients: u64,
    /// Requests that the relay answered itself.
    pub refused: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    held: bool,
    pace: Pace,
    /// How often all connections were cut.
    cuts: u64,
    /// Bytes to its client after which a connection is cut; `None`: it is not.
    each: Option<u64>,
}

/// What happens a number of times and then no more.
#[derive(Debug, Default)]
struct Faults {
    /// Bytes to clients after which everything is cut once; `None`: nothing is.
    cut_after: Option<u64>,
    /// Requests that are still to be answered with a status.
    refusals: u64,
    status: u16,
    /// Bytes after which the next longer body breaks off.
    truncate: Option<u64>,
    /// Heads of the requests that came, refused ones included.
    heads: Vec<String>,
}

struct Shared {
    server: SocketAddr,
    /// How long everything is on its way, in each direction.
    far: Duration,
    orders: watch::Sender<Orders>,
    traffic: watch::Sender<Traffic>,
    faults: Mutex<Faults>,
}

/// A relay on a free port of the loopback address. Ends with all its connections when dropped.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Starts one in front of `server`, which is asked for only when a client comes.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        Relay::start_far(server, Duration::ZERO).await
    }

    /// The same, with everything on its way for `each_way` in each direction. How much is on its way is not limited.
    ///
    /// # Errors
    /// When no port can be had.
    #[allow(clippy::disallowed_methods, reason = "real clients need a real port")]
    pub async fn start_far(server: SocketAddr, each_way: Duration) -> Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.context("no port for a relay")?;
        let address = listener.local_addr()?;
        let (orders, traffic) = (watch::Sender::new(Orders::default()), watch::Sender::new(Traffic::default()));
        let shared = Arc::new(Shared { server, far: each_way, orders, traffic, faults: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Relay { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections are accepted and nothing passes, either way, until [`release`](Self::release). Neither does
    /// the end of a connection: one whose client is gone counts as open, and what it sent comes through on release.
    pub fn hold(&self) {
        self.shared.orders.send_modify(|orders| orders.held = true);
    }

    /// Lets pass what is held, and all that comes.
    pub fn release(&self) {
        self.shared.orders.send_modify(|orders| orders.held = false);
    }

    /// Ends every connection that is open, with whatever is under way on it. New ones are served.
    pub fn cut(&self) {
        self.shared.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Cuts every connection once when `bytes` more have been passed to clients, over all connections.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.faults().cut_after = Some(bytes);
    }

    /// From now on cuts each connection that is made once `bytes` have been passed to its client. `None`: no more.
    pub fn cut_each_after(&self, bytes: Option<u64>) {
        self.shared.orders.send_modify(|orders| orders.each = bytes);
    }

    /// Answers the next `requests`, over all connections, with `status` and passes them on to nobody. They are plain
    /// HTTP/1.1 without a body.
    pub fn refuse(&self, requests: u64, status: u16) {
        let mut faults = self.shared.faults();
        (faults.refusals, faults.status) = (requests, status);
    }

    /// Ends the next answer whose body is longer than `bytes` after as many of its body, as if that were all. Plain
    /// HTTP/1.1 with a `content-length`.
    pub fn truncate_next(&self, bytes: u64) {
        self.shared.faults().truncate = Some(bytes);
    }

    /// The heads of the requests that came so far, refused ones included: request line and headers.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.shared.faults().heads.clone()
    }

    /// Sets how fast connections are from now on.
    pub fn pace(&self, pace: Pace) {
        self.shared.orders.send_modify(|orders| orders.pace = pace);
    }

    /// What came through so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        *self.shared.traffic.borrow()
    }

    /// Waits until `wanted` holds of what came through.
    ///
    /// # Errors
    /// After `within`, with what came through instead.
    pub async fn until(&self, what: &str, within: Duration, wanted: impl Fn(&Traffic) -> bool) -> Result<Traffic> {
        let mut traffic = self.shared.traffic.subscribe();
        match timeout(within, traffic.wait_for(wanted)).await {
            Ok(seen) => Ok(*seen.context("a relay counts as long as it is there")?),
            Err(_elapsed) => Err(anyhow!("waited {within:?} for {what} at the relay; last seen: {:?}", self.traffic())),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                shared.traffic.send_modify(|traffic| traffic.connections += 1);
                let open = Counted::new(&shared, |traffic| &mut traffic.open);
                // Subscribed before anything else can happen: no order is missed.
                let orders = shared.orders.subscribe();
                connections.spawn(connection(client, orders, open));
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}

/// Passes everything both ways until both have ended, one breaks, or all are cut.
async fn connection(client: TcpStream, mut orders: watch::Receiver<Orders>, open: Counted) {
    let shared = Arc::clone(&open.shared);
    let cuts = orders.borrow().cuts;
    // Ended with the connection.
    let mut ways = JoinSet::new();
    let both = async {
        let server = TcpStream::connect(shared.server).await?;
        // A relay that waits for more bytes before it sends some would be slow of its own accord.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let (own, answers) = mpsc::channel(1);
        let there = to_the_server(Way::over(from_client, &shared, &mut ways), to_server, own, &shared);
        let back = to_the_client(Way::over(from_server, &shared, &mut ways), to_client, answers, &shared);
        tokio::try_join!(there, back).map(drop)
    };
    tokio::select! {
        // A broken connection is broken for both ends, which is all that there is to do about it.
        _ended = both => {}
        _cut = orders.wait_for(|orders| orders.cuts != cuts) => {}
    }
}

/// Where the bytes of one direction come from.
enum Way {
    /// Straight from the socket.
    Near(OwnedReadHalf),
    /// From a line on which they are for a while. It is closed after the last.
    Far(mpsc::Receiver<(Instant, Vec<u8>)>),
}

impl Way {
    fn over(mut from: OwnedReadHalf, shared: &Arc<Shared>, ways: &mut JoinSet<()>) -> Self {
        if shared.far.is_zero() {
            return Way::Near(from);
        }
        let (line, far_end) = mpsc::channel(ON_THE_WAY);
        let far = shared.far;
        ways.spawn(async move {
            let mut chunk = vec![0; CHUNK];
            while let Ok(got) = from.read(&mut chunk).await {
                // The end of a connection is on its way for as long as its bytes are.
                if line.send((now() + far, chunk[..got].to_vec())).await.is_err() || got == 0 {
                    return;
                }
            }
        });
        Way::Far(far_end)
    }

    /// What comes next, at most `most` bytes where that can be chosen; empty at the end. Nothing is lost when this is
    /// dropped before it is done.
    async fn next(&mut self, most: usize, next: &mut Option<(Instant, Vec<u8>)>) -> io::Result<Vec<u8>> {
        match self {
            Way::Near(from) => {
                let mut chunk = vec![0; most];
                let got = from.read(&mut chunk).await?;
                chunk.truncate(got);
                Ok(chunk)
            }
            Way::Far(line) => {
                if next.is_none() {
                    *next = Some(line.recv().await.ok_or(io::ErrorKind::ConnectionReset)?);
                }
                let due = next.as_ref().map_or_else(now, |(due, _)| *due);
                sleep(due.saturating_duration_since(now())).await;
                Ok(next.take().map(|(_, chunk)| chunk).unwrap_or_default())
            }
        }
    }
}

async fn to_the_server(mut from: Way, mut to: OwnedWriteHalf, own: mpsc::Sender<Vec<u8>>, shared: &Arc<Shared>) -> io::Result<()> {
    let mut orders = shared.orders.subscribe();
    let mut waiting = None;
    loop {
        let most = orders.borrow().pace.chunk();
        let mut chunk = from.next(most, &mut waiting).await?;
        while begins_a_request(&chunk) && end_of_head(&chunk).is_none() && chunk.len() < HEAD {
            match from.next(most, &mut waiting).await? {
                more if more.is_empty() => break,
                more => chunk.extend(more),
            }
        }
        held(&mut orders, shared).await;
        if chunk.is_empty() {
            return to.shutdown().await;
        }
        paced(&orders, chunk.len()).await;
        if let Some(answer) = shared.refused(&chunk) {
            // The connection goes on; where it is gone there is nobody to answer.
            let _ = own.send(answer).await;
            continue;
        }
        to.write_all(&chunk).await?;
        shared.traffic.send_modify(|traffic| traffic.to_server += as_u64(chunk.len()));
    }
}

async fn to_the_client(mut from: Way, mut to: OwnedWriteHalf, mut own: mpsc::Receiver<Vec<u8>>, shared: &Arc<Shared>) -> io::Result<()> {
    let mut orders = shared.orders.subscribe();
    let each = orders.borrow().each;
    // What may still pass before this connection is cut, or what it passes is broken off.
    let (mut left, mut of_body) = (each, None);
    let mut waiting = None;
    loop {
        let most = orders.borrow().pace.chunk();
        let chunk = tokio::select! {
            chunk = from.next(most, &mut waiting) => chunk?,
            Some(answer) = own.recv() => {
                to.write_all(&answer).await?;
                continue;
            }
        };
        held(&mut orders, shared).await;
        if chunk.is_empty() {
            return to.shutdown().await;
        }
        paced(&orders, chunk.len()).await;
        of_body = of_body.or_else(|| shared.broken_off(&chunk));
        let own_limit = [left, of_body].into_iter().flatten().min().unwrap_or(u64::MAX);
        let (allowed, cut_all) = shared.allowed(as_u64(chunk.len()).min(own_limit));
        to.write_all(&chunk[..usize::try_from(allowed).unwrap_or(chunk.len())]).await?;
        shared.traffic.send_modify(|traffic| traffic.to_clients += allowed);
        if cut_all {
            shared.orders.send_modify(|orders| orders.cuts += 1);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        for limit in [&mut left, &mut of_body] {
            *limit = limit.map(|limit| limit - allowed);
        }
        if left == Some(0) || of_body == Some(0) {
            to.shutdown().await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

/// Waits for a release, if nothing may pass.
async fn held(orders: &mut watch::Receiver<Orders>, shared: &Arc<Shared>) {
    if orders.borrow().held {
        let _held = Counted::new(shared, |traffic| &mut traffic.held);
        // The orders live as long as the relay, and this task no longer.
        let _ = orders.wait_for(|orders| !orders.held).await;
    }
}

async fn paced(orders: &watch::Receiver<Orders>, bytes: usize) {
    let wait = orders.borrow().pace.of(bytes);
    if !wait.is_zero() {
        sleep(wait).await;
    }
}

fn begins_a_request(chunk: &[u8]) -> bool {
    [&b"GET "[..], b"HEAD ", b"POST ", b"PUT "].iter().any(|method| chunk.starts_with(method))
}

/// Where the body begins.
fn end_of_head(chunk: &[u8]) -> Option<usize> {
    chunk.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("nothing panics while it holds the faults")
    }

    /// Keeps the head of a request, and says what to answer when it is not to be passed on.
    fn refused(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        let end = end_of_head(chunk).filter(|_| begins_a_request(chunk))?;
        let mut faults = self.faults();
        faults.heads.push(String::from_utf8_lossy(&chunk[..end]).into_owned());
        faults.refusals = faults.refusals.checked_sub(1)?;
        let status = faults.status;
        drop(faults);
        self.traffic.send_modify(|traffic| traffic.refused += 1);
        let body = "<Error><Code>SlowDown</Code><Message>asked too much</Message></Error>";
        let length = body.len();
        Some(format!("HTTP/1.1 {status} by the relay\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes())
    }

    /// After how many bytes from here the connection ends, where an answer begins that is to be broken off.
    fn broken_off(&self, chunk: &[u8]) -> Option<u64> {
        let end = end_of_head(chunk).filter(|_| chunk.starts_with(b"HTTP/1.1 2"))?;
        let head = String::from_utf8_lossy(&chunk[..end]).to_ascii_lowercase();
        let length: u64 = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())?;
        let mut faults = self.faults();
        let after = faults.truncate.filter(|after| length > *after)?;
        faults.truncate = None;
        Some(as_u64(end) + after)
    }

    /// How many of `bytes` may pass to a client, and whether everything is to be cut then.
    fn allowed(&self, bytes: u64) -> (u64, bool) {
        let mut faults = self.faults();
        let Some(left) = faults.cut_after else { return (bytes, false) };
        let allowed = left.min(bytes);
        faults.cut_after = Some(left - allowed).filter(|left| *left > 0);
        (allowed, left == allowed)
    }
}

/// One more in a count, as long as this lives.
struct Counted {
    shared: Arc<Shared>,
    count: fn(&mut Traffic) -> &mut u64,
}

impl Counted {
    fn new(shared: &Arc<Shared>, count: fn(&mut Traffic) -> &mut u64) -> Self {
        shared.traffic.send_modify(|traffic| *count(traffic) += 1);
        Counted { shared: Arc::clone(shared), count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.traffic.send_modify(|traffic| *(self.count)(traffic) -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, http};

    const SOON: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets, and a relay in front of it.
    async fn echo() -> Relay {
        far_echo(Duration::ZERO).await
    }

    #[allow(clippy::disallowed_methods, reason = "real sockets are what is tested")]
    async fn far_echo(each_way: Duration) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Relay::start_far(server, each_way).await.expect("a relay")
    }

    async fn client(relay: &Relay) -> TcpStream {
        TcpStream::connect(relay.address()).await.expect("a relay accepts")
    }

    /// What comes until the connection ends, however it ends.
    async fn rest(mut socket: TcpStream) -> Vec<u8> {
        let (mut all, mut some) = (Vec::new(), vec![0; 4096]);
        loop {
            match timeout(SOON, socket.read(&mut some)).await.expect("the connection goes on") {
                Ok(0) | Err(_) => return all,
                Ok(got) => all.extend(&some[..got]),
            }
        }
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways_and_are_counted() {
        let relay = echo().await;
        let body: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let mut socket = client(&relay).await;
        let (mut from, mut to) = socket.split();
        let sent = async {
            to.write_all(&body).await.expect("sent");
            to.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        tokio::join!(sent, async { from.read_to_end(&mut got).await.expect("sent back") });
        assert!(got == body, "{} bytes came back of {}", got.len(), body.len());
        let seen = relay.until("its end", SOON, |traffic| traffic.open == 0).await.expect("both ways have ended");
        assert_eq!(seen, Traffic { connections: 1, to_server: 200_000, to_clients: 200_000, ..Traffic::default() });
    }

    #[tokio::test]
    async fn nothing_passes_while_it_holds_and_everything_after() {
        let relay = echo().await;
        let mut before = client(&relay).await;
        before.write_all(b"one").await.expect("sent");
        before.read_exact(&mut [0; 3]).await.expect("sent back");
        relay.hold();
        before.write_all(b"two").await.expect("accepted");
        let mut meanwhile = client(&relay).await;
        meanwhile.write_all(b"new").await.expect("accepted");
        let held = relay.until("two that wait", SOON, |traffic| traffic.held == 2).await.expect("an old and a new one");
        assert_eq!((held.connections, held.open, held.to_server, held.to_clients), (2, 2, 3, 3));
        relay.release();
        for socket in [&mut before, &mut meanwhile] {
            timeout(SOON, socket.read_exact(&mut [0; 3])).await.expect("released").expect("sent back");
        }
        assert_eq!(relay.traffic().held, 0);
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_also_what_is_held_and_nothing_later() {
        let relay = echo().await;
        relay.hold();
        let mut stuck = client(&relay).await;
        stuck.write_all(b"stuck").await.expect("accepted");
        relay.until("one that waits", SOON, |traffic| traffic.held == 1).await.expect("held");
        relay.cut();
        assert_eq!(rest(stuck).await, b"");
        relay.until("its end", SOON, |traffic| traffic.open == 0 && traffic.held == 0).await.expect("nothing is left of it");
        relay.release();
        let mut later = client(&relay).await;
        later.write_all(b"later").await.expect("accepted");
        later.read_exact(&mut [0; 5]).await.expect("sent back");
        assert_eq!(relay.traffic().to_server, 5, "what was cut came through");
    }

    #[tokio::test]
    async fn a_cut_comes_after_as_many_bytes_as_were_asked_for_and_once() {
        let relay = echo().await;
        relay.cut_after(5);
        let mut first = client(&relay).await;
        first.write_all(b"0123456789").await.expect("accepted");
        assert_eq!(rest(first).await, b"01234");
        assert_eq!(relay.traffic().to_clients, 5);
        let mut second = client(&relay).await;
        second.write_all(b"0123456789").await.expect("accepted");
        second.read_exact(&mut [0; 10]).await.expect("sent back");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_ends_the_connection() {
        let nobody = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, crate::free_port()));
        let relay = Relay::start(nobody).await.expect("a relay needs no server");
        assert_eq!(rest(client(&relay).await).await, b"");
    }

    #[tokio::test]
    async fn it_is_as_slow_as_it_was_told_to_be() {
        let ms = Duration::from_millis;
        for (case, pace, bytes, at_least) in [
            ("a delay, once each way", Pace { delay: ms(60), rate: None }, 10, ms(120)),
            // The two ways overlap.
            ("a rate", Pace { delay: Duration::ZERO, rate: NonZeroU64::new(100_000) }, 20_000, ms(200)),
        ] {
            let relay = echo().await;
            relay.pace(pace);
            let mut socket = client(&relay).await;
            let begin = now();
            socket.write_all(&vec![7; bytes]).await.expect("sent");
            socket.read_exact(&mut vec![0; bytes]).await.expect("sent back");
            assert!(begin.elapsed() >= at_least, "{case}: {:?}", begin.elapsed());
        }
        assert_eq!(Pace::default().chunk(), CHUNK);
        assert_eq!(Pace { delay: Duration::ZERO, rate: NonZeroU64::new(1) }.chunk(), 1);
    }

    #[tokio::test]
    async fn a_far_server_answers_late_and_no_slower() {
        let relay = far_echo(Duration::from_millis(30)).await;
        let mut socket = client(&relay).await;
        let begin = now();
        socket.write_all(b"ping").await.expect("sent");
        socket.read_exact(&mut [0; 4]).await.expect("sent back");
        assert!(begin.elapsed() >= Duration::from_millis(60), "{:?}", begin.elapsed());

        // 16 MiB are 1,024 chunks: one after the other they would take a minute.
        let body = vec![7; 16 << 20];
        let (mut from, mut to) = socket.split();
        let sent = async {
            to.write_all(&body).await.expect("sent");
            to.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        let both = async { tokio::join!(sent, async { from.read_to_end(&mut got).await.expect("sent back") }) };
        timeout(Duration::from_secs(20), both).await.expect("it is far and not slow");
        assert_eq!(got.len(), body.len());
    }

    #[tokio::test]
    async fn each_connection_is_cut_after_as_many_bytes_as_it_may_pass() {
        let relay = echo().await;
        relay.cut_each_after(Some(4));
        for _connection in 0..2 {
            let mut socket = client(&relay).await;
            socket.write_all(b"0123456789").await.expect("accepted");
            assert_eq!(rest(socket).await, b"0123");
        }
        relay.cut_each_after(None);
        let mut socket = client(&relay).await;
        socket.write_all(b"0123456789").await.expect("accepted");
        socket.read_exact(&mut [0; 10]).await.expect("sent back");
    }

    /// A server that answers every request with ten letters, and a relay in front of it.
    async fn letters() -> (Endpoint, Relay) {
        let server = Endpoint::start(|_| (200, "abcdefghij".to_owned())).await.expect("a server");
        let relay = Relay::start(server.address()).await.expect("a relay");
        (server, relay)
    }

    #[tokio::test]
    async fn requests_are_refused_as_often_as_was_ordered_and_reach_nobody() {
        let (server, relay) = letters().await;
        relay.refuse(2, 503);
        let mut statuses = Vec::new();
        for number in 0..4 {
            statuses.push(http::get(&format!("http://{}/{number}", relay.address())).await.expect("an answer").status);
        }
        assert_eq!(statuses, [503, 503, 200, 200]);
        assert_eq!(server.asked().iter().map(|asked| asked.target.clone()).collect::<Vec<_>>(), ["/2", "/3"]);
        let lines: Vec<String> = relay.heads().iter().filter_map(|head| head.lines().next().map(str::to_owned)).collect();
        assert_eq!(lines, ["GET /0 HTTP/1.1", "GET /1 HTTP/1.1", "GET /2 HTTP/1.1", "GET /3 HTTP/1.1"]);
        assert_eq!(relay.traffic().refused, 2);
    }

    #[tokio::test]
    async fn a_body_breaks_off_where_it_was_ordered_and_the_next_is_whole() {
        let (_server, relay) = letters().await;
        relay.truncate_next(10);
        assert_eq!(http::get(&format!("http://{}/", relay.address())).await.expect("it is not longer").text(), "abcdefghij");
        relay.truncate_next(4);
        let mut socket = client(&relay).await;
        socket.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("sent");
        let broken = String::from_utf8(rest(socket).await).expect("text").to_ascii_lowercase();
        assert!(broken.contains("content-length: 10") && broken.ends_with("\r\n\r\nabcd"), "{broken}");
        assert_eq!(http::get(&format!("http://{}/", relay.address())).await.expect("an answer").text(), "abcdefghij");
    }
}
