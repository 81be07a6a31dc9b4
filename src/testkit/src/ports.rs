//! Free ports on the loopback address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::real_time::{Found, eventually};

/// Below the range from which systems choose ports for outgoing connections: none of those can take ours in between.
const FIRST: u32 = 20_000;
const COUNT: u32 = 10_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port that nobody listens on, given out once in this process.
///
/// # Panics
/// When every port of the range is taken.
#[must_use]
pub fn free_port() -> u16 {
    // Other test processes start elsewhere in the range.
    let start = std::process::id().wrapping_mul(131);
    for _ in 0..COUNT {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(port).expect("the range ends below 65536");
        if is_free(port) {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}

#[allow(clippy::disallowed_methods, reason = "real servers need real ports; this only looks whether one is free")]
fn is_free(port: u16) -> bool {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

/// Waits until somebody listens at `address`.
pub(crate) async fn until_it_listens(what: &str, address: SocketAddr) -> Result<()> {
    eventually(&format!("{what} to listen"), Duration::from_secs(20), || async {
        Ok(match tokio::net::TcpStream::connect(address).await {
            Ok(_) => Found::Yes(()),
            Err(fault) => Found::NotYet(fault.to_string()),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice() {
        let mut ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
