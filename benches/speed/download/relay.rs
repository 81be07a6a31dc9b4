//! A way to a server that takes time: each byte arrives a fixed while after it was sent, as many of them as are sent.
//!
//! A relay that sleeps between two reads limits the rate as well: a round trip of 20 ms and chunks of 16 KiB make 1.6 MB/s
//! a connection, and the bench would measure the relay. Here reading and writing go on at the same time, with what is on
//! its way between them. It runs as a process of its own, so that its CPU time is nobody's whose costs are measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use berth_telemetry::{Clock, HostNet, Net};
use berth_types::Deadline;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Read at once at most, in bytes.
const CHUNK: usize = 256 << 10;
/// On their way at most, in bytes for each way of a connection: more than memory passes on in the time that they take.
const ON_THE_WAY: usize = 64 << 20;

/// Bytes on their way, and when they arrive.
struct Sent {
    bytes: Vec<u8>,
    arrives: Deadline,
    _room: OwnedSemaphorePermit,
}

/// Listens on a free port, says which in a line `address: ...`, and passes on what comes to `server` and back, `delay`
/// later each way. Ends with its process.
pub(super) async fn serve(server: SocketAddr, delay: Duration) -> anyhow::Result<()> {
    let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("address: {}", listener.local_addr()?);
    let clock = Clock::system();
    loop {
        let (client, _) = listener.accept().await?;
        let clock = clock.clone();
        tokio::spawn(async move {
            // A connection that breaks is broken for both ends, which is all that there is to do about it.
            let _ = connection(client, server, delay, &clock).await;
        });
    }
}

async fn connection(client: TcpStream, server: SocketAddr, delay: Duration, clock: &Clock) -> anyhow::Result<()> {
    let server = TcpStream::connect(server).await.context("the server is away")?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(way(from_client, to_server, delay, clock), way(from_server, to_client, delay, clock)).map(drop)
}

async fn way(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, delay: Duration, clock: &Clock) -> anyhow::Result<()> {
    // The room for bytes is the limit; there are never more chunks than bytes.
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::try_join!(leave(from, sender, delay, clock), arrive(receiver, to, clock)).map(drop)
}

async fn leave(mut from: impl AsyncRead + Unpin, sent: mpsc::UnboundedSender<Sent>, delay: Duration, clock: &Clock) -> anyhow::Result<()> {
    let room = Arc::new(Semaphore::new(ON_THE_WAY));
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = from.read(&mut chunk).await?;
        if got == 0 {
            return Ok(());
        }
        let arrives = clock.deadline_in(delay);
        let taken = Arc::clone(&room).acquire_many_owned(u32::try_from(got)?).await?;
        if sent.send(Sent { bytes: chunk[..got].to_vec(), arrives, _room: taken }).is_err() {
            return Ok(());
        }
    }
}

async fn arrive(mut sent: mpsc::UnboundedReceiver<Sent>, mut to: impl AsyncWrite + Unpin, clock: &Clock) -> anyhow::Result<()> {
    while let Some(next) = sent.recv().await {
        clock.sleep_until(next.arrives).await;
        to.write_all(&next.bytes).await?;
    }
    // The end arrives behind the last byte, at once: nobody measures that.
    Ok(to.shutdown().await?)
}
