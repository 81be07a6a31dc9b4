//! The one place that opens sockets for servers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream};

/// A bound socket that accepts connections.
pub struct Listener {
    inner: TcpListener,
}

impl Listener {
    /// The address it listens on, with the port that the system chose where 0 was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// The next connection, without Nagle's delay.
    ///
    /// # Errors
    /// What the system says; the caller goes on accepting (a single failed accept is no reason to stop serving).
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.inner.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, peer))
    }

    /// The tokio listener inside, for servers that accept by themselves.
    #[must_use]
    pub fn into_tokio(self) -> TcpListener {
        self.inner
    }
}

/// Opens sockets. Handed in, so that a simulation can stand in.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Listens on `addr`.
    ///
    /// # Errors
    /// What the system says, with the address in the text.
    async fn listen(&self, addr: SocketAddr) -> io::Result<Listener>;
}

/// The sockets of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNet;

impl HostNet {
    /// As a shared [`Net`].
    #[must_use]
    pub fn shared() -> Arc<dyn Net> {
        Arc::new(HostNet)
    }
}

#[async_trait]
impl Net for HostNet {
    #[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    async fn listen(&self, addr: SocketAddr) -> io::Result<Listener> {
        match TcpListener::bind(addr).await {
            Ok(inner) => Ok(Listener { inner }),
            Err(fault) => Err(io::Error::new(fault.kind(), format!("cannot listen on {addr}: {fault}"))),
        }
    }
}
