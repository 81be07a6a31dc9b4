//! The settings of calls to a server.

use std::time::Duration;

use berth_types::ByteSize;

/// How a server is called. [`Config::faults`] checks it once at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most connections to the server. Each is driven by one task, so this bounds the cores that calls can use.
    pub connections: usize,
    /// Calls that a connection carries before another one is opened. Beyond it, and once there are as many connections as
    /// there may be, the calls are spread evenly.
    pub streams: usize,
    /// How long connecting may take, up to the server's first word of HTTP/2.
    pub connect_timeout: Duration,
    /// HTTP/2 window of one call's answer: what of it may lie here unread.
    pub stream_window: ByteSize,
    /// HTTP/2 window of one connection: what of all its answers may lie here unread. Beyond as many answers as stream
    /// windows are in it, those that nobody reads hold up the others; at least as many as `streams`.
    pub connection_window: ByteSize,
    /// What of one call's request may lie here unsent beside the piece that is in hand.
    pub send_buffer: ByteSize,
    /// The largest HTTP/2 frame that the server may send.
    pub max_frame: ByteSize,
    /// The largest head or trailers that the server may send, counted as HTTP/2 does: 32 B more for each header.
    pub max_headers: ByteSize,
    /// How long the server may be silent, while it has calls, before it is asked whether it lives. After two questions to
    /// which it had nothing but the reply to say, the next ones come five minutes apart: gRPC servers by default close
    /// connections that ask more often.
    pub ping_interval: Duration,
    /// How long the server may take to reply to that. A connection without a reply is given up, with its calls.
    pub ping_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connections: 4,
            streams: 32,
            connect_timeout: Duration::from_secs(10),
            // As on the inference ports: 255 answers may lie unread beside others on one connection. No smaller: bodies of
            // megabytes would stall.
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(64),
            send_buffer: ByteSize::mib(1),
            max_frame: ByteSize(64 * 1024),
            max_headers: ByteSize(64 * 1024),
            ping_interval: Duration::from_secs(30),
            // Long: a server whose one thread computes must not be taken for a dead one.
            ping_timeout: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Every fault of these settings, to be reported together with those of other parts. Empty when there is none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        const KIB: u64 = 1024;
        const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
        let mut faults = Vec::new();
        for (name, value, most) in [("connections", self.connections, 64), ("streams", self.streams, 65_536)] {
            if value == 0 || value > most {
                faults.push(format!("{name} is {value}, it must be between 1 and {most}"));
            }
        }
        for (name, value) in [("connect_timeout", self.connect_timeout), ("ping_interval", self.ping_interval), ("ping_timeout", self.ping_timeout)] {
            if value.is_zero() || value > LONGEST {
                faults.push(format!("{name} is {value:?}, it must be more than zero and at most 7 days"));
            }
        }
        for (name, value, least, most) in [
            ("stream_window", self.stream_window, 64 * KIB, (1 << 31) - 1), // HTTP/2 windows have 31 bits
            ("connection_window", self.connection_window, 64 * KIB, (1 << 31) - 1),
            ("send_buffer", self.send_buffer, 16 * KIB, (1 << 31) - 1),
            ("max_frame", self.max_frame, 16 * KIB, (1 << 24) - 1), // and lengths of frames 24
            ("max_headers", self.max_headers, KIB, (1 << 24) - 1),
        ] {
            if !(least..=most).contains(&value.0) {
                faults.push(format!("{name} is {value}, it must be between {} and {}", ByteSize(least), ByteSize(most)));
            }
        }
        let all = self.stream_window.0.saturating_mul(self.streams as u64);
        if self.connection_window.0 < all {
            faults.push(format!("connection_window is {}, less than the {} of all streams' windows", self.connection_window, ByteSize(all)));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_faults_and_every_fault_is_reported_together() {
        assert_eq!(Config::default().faults(), Vec::<String>::new());
        let broken = Config {
            connections: 0,
            streams: 0,
            connect_timeout: Duration::ZERO,
            stream_window: ByteSize(1),
            connection_window: ByteSize::MAX,
            send_buffer: ByteSize(1),
            max_frame: ByteSize::mib(16),
            max_headers: ByteSize::ZERO,
            ping_interval: Duration::MAX,
            ping_timeout: Duration::ZERO,
        };
        let faults = broken.faults();
        for field in [
            "connections",
            "streams",
            "connect_timeout",
            "stream_window",
            "connection_window",
            "send_buffer",
            "max_frame",
            "max_headers",
            "ping_interval",
            "ping_timeout",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(&format!("{field} is"))), "{field} in {faults:?}");
        }
        assert_eq!(faults.len(), 10);
        let narrow = Config { streams: 257, ..Config::default() };
        assert_eq!(narrow.faults(), ["connection_window is 64 MiB, less than the 64.2 MiB of all streams' windows"]);
    }
}
