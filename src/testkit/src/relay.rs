//! A relay between a client and a real server, to make the way between them slow, stuck or broken on demand.
//!
//! It passes bytes and does not know what they mean, so it stands in front of any server that speaks TCP. An order takes
//! effect with the next chunk of every connection, open ones included. What comes through is counted and can be waited
//! for, so that a test acts when a client is certainly stuck and not some time later.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::real_time::sleep;

/// The most that is read at once, in bytes; also what waits in each direction of a connection that is held.
const CHUNK: usize = 16 << 10;
/// Where the rate is limited, a chunk is what passes in this time.
const TICK: Duration = Duration::from_millis(20);

/// How fast each connection is, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How long each chunk of at most 16 KiB is kept before it goes on. The next one is read after that.
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
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    held: bool,
    pace: Pace,
    /// How often all connections were cut.
    cuts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClients,
}

struct Shared {
    server: SocketAddr,
    orders: watch::Sender<Orders>,
    traffic: watch::Sender<Traffic>,
    /// Bytes to clients after which everything is cut once; `None`: nothing is.
    cut_after: Mutex<Option<u64>>,
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
    #[allow(clippy::disallowed_methods, reason = "real clients need a real port")]
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.context("no port for a relay")?;
        let address = listener.local_addr()?;
        let (orders, traffic) = (watch::Sender::new(Orders::default()), watch::Sender::new(Traffic::default()));
        let shared = Arc::new(Shared { server, orders, traffic, cut_after: Mutex::new(None) });
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
    ///
    /// # Panics
    /// Never: nothing panics while it holds the count.
    pub fn cut_after(&self, bytes: u64) {
        *self.shared.cut_after.lock().expect("nothing panics while it holds the count") = Some(bytes);
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
async fn connection(mut client: TcpStream, mut orders: watch::Receiver<Orders>, open: Counted) {
    let shared = Arc::clone(&open.shared);
    let cuts = orders.borrow().cuts;
    let both = async {
        let mut server = TcpStream::connect(shared.server).await?;
        // A relay that waits for more bytes before it sends some would be slow of its own accord.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let there = pass(from_client, to_server, Way::ToServer, &shared);
        let back = pass(from_server, to_client, Way::ToClients, &shared);
        tokio::try_join!(there, back).map(drop)
    };
    tokio::select! {
        // A broken connection is broken for both ends, which is all that there is to do about it.
        _ended = both => {}
        _cut = orders.wait_for(|orders| orders.cuts != cuts) => {}
    }
}

async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, way: Way, shared: &Arc<Shared>) -> io::Result<()> {
    let mut orders = shared.orders.subscribe();
    let mut chunk = vec![0; CHUNK];
    loop {
        let most = orders.borrow().pace.chunk();
        let got = from.read(&mut chunk[..most]).await?;
        if orders.borrow().held {
            let _held = Counted::new(shared, |traffic| &mut traffic.held);
            // The orders live as long as the relay, and this task no longer.
            let _ = orders.wait_for(|orders| !orders.held).await;
        }
        if got == 0 {
            return to.shutdown().await;
        }
        let wait = orders.borrow().pace.of(got);
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let (allowed, cut) = shared.allowed(way, got);
        to.write_all(&chunk[..allowed]).await?;
        let bytes = u64::try_from(allowed).unwrap_or(u64::MAX);
        shared.traffic.send_modify(|traffic| match way {
            Way::ToServer => traffic.to_server += bytes,
            Way::ToClients => traffic.to_clients += bytes,
        });
        if cut {
            shared.orders.send_modify(|orders| orders.cuts += 1);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

impl Shared {
    /// How many of `bytes` may pass, and whether everything is to be cut then.
    fn allowed(&self, way: Way, bytes: usize) -> (usize, bool) {
        if way == Way::ToServer {
            return (bytes, false);
        }
        let mut cut_after = self.cut_after.lock().expect("nothing panics while it holds the count");
        let Some(left) = *cut_after else { return (bytes, false) };
        let allowed = usize::try_from(left).unwrap_or(usize::MAX).min(bytes);
        let left = left - u64::try_from(allowed).unwrap_or(left);
        *cut_after = Some(left).filter(|left| *left > 0);
        (allowed, left == 0)
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
    use crate::real_time::now;

    const SOON: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets, and a relay in front of it.
    #[allow(clippy::disallowed_methods, reason = "real sockets are what is tested")]
    async fn echo() -> Relay {
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
        Relay::start(server).await.expect("a relay")
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
        assert_eq!(seen, Traffic { connections: 1, open: 0, held: 0, to_server: 200_000, to_clients: 200_000 });
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
}
