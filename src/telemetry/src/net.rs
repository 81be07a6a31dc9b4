//! The one place that opens sockets: those that servers listen on, and those to the servers that we call by HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

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

/// Where a server listens that is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A port of a host, which may be a name or an address (IPv6 without brackets).
    Tcp {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The file of a Unix socket.
    Unix(PathBuf),
}

/// A connection to a [`Peer`], without Nagle's delay.
pub type Dialed = Either<TcpStream, UnixStream>;

/// Opens sockets. Handed in, so that a simulation can stand in.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Listens on `addr`.
    ///
    /// # Errors
    /// What the system says, with the address in the text.
    async fn listen(&self, addr: SocketAddr) -> io::Result<Listener>;

    /// Connects to `peer`. A name is resolved, and its addresses are tried one after the other.
    ///
    /// # Errors
    /// What the system says.
    async fn dial(&self, peer: &Peer) -> io::Result<Dialed>;
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

impl HostNet {
    /// Listens on a Unix socket. A file that a dead process has left there is replaced.
    ///
    /// # Errors
    /// What the system says, with the path in the text.
    pub fn listen_unix(self, path: &Path) -> io::Result<UnixListener> {
        let bound = match UnixListener::bind(path) {
            Err(fault) if fault.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            }
            bound => bound,
        };
        bound.map_err(|fault| io::Error::new(fault.kind(), format!("cannot listen on {}: {fault}", path.display())))
    }
}

fn is_dead(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_err_and(|fault| fault.kind() == io::ErrorKind::ConnectionRefused)
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

    async fn dial(&self, peer: &Peer) -> io::Result<Dialed> {
        match peer {
            Peer::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Either::Left(stream))
            }
            Peer::Unix(path) => UnixStream::connect(path).await.map(Either::Right),
        }
    }
}
