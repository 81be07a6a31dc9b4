//! The settings of the inference ports.

use std::time::Duration;

use berth_types::ByteSize;

/// What the inference ports are told. [`ProxyConfig::faults`] checks it once at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The largest request: a gRPC message or a REST body. Larger ones are refused before they are read.
    pub max_message: ByteSize,
    /// What all requests of both inference ports may hold in memory together: bodies from their first bytes until they
    /// are answered, and what they become when they are decoded. At least `max_message`; JSON and typed tensors need up to
    /// several times their size. Those that wait for a model may hold three quarters of it, and half for one model.
    pub body_budget: ByteSize,
    /// Deadline of a request that brings none.
    pub default_deadline: Duration,
    /// The longest deadline that a client gets, whatever it asks for.
    pub max_deadline: Duration,
    /// HTTP/2 window of one stream: bounds what one caller can have sent that nobody has read, such as one that waits for a
    /// model before a runtime of its own process.
    pub stream_window: ByteSize,
    /// HTTP/2 window of one connection: bounds what one client can have buffered here unread. As many callers as stream
    /// windows are in it, less one, may wait before they hold up those beside them on the same connection.
    pub connection_window: ByteSize,
    /// Requests that one HTTP/2 connection may have open. Callers of cold models hold one each while they wait, so this
    /// is far above what runs at a time.
    pub max_streams: u32,
    /// The most connections that a port has open. Further ones are closed as soon as they come.
    pub max_connections: usize,
    /// How long a client may take for the head of an HTTP/1 request, or for the preface of HTTP/2, from its first byte and
    /// at first from the connection on. Who takes longer is cut off.
    pub head_timeout: Duration,
    /// How long an HTTP/1 connection may wait for its next request. (HTTP/2 connections are kept while they answer pings.)
    pub idle_timeout: Duration,
    /// How long a client may leave the answer of a runtime unread before it is given up; half of that at least. While it
    /// waits for more nothing counts: only what is there and not taken.
    pub unread_timeout: Duration,
    /// Threads that drive the connections of the gRPC port, where the runtime is no part of this process; 0: those that everything
    /// else runs on.
    pub threads: usize,
    /// Name in the server's metadata.
    pub server_name: String,
    /// Version in the server's metadata.
    pub server_version: String,
}

/// The most [`ProxyConfig::threads`]: more than a machine has processors.
pub const MOST_THREADS: usize = 1024;

impl Default for ProxyConfig {
    fn default() -> Self {
        ProxyConfig {
            max_message: ByteSize::mib(16),
            body_budget: ByteSize::mib(256),
            default_deadline: Duration::from_secs(300),
            max_deadline: Duration::from_secs(3600),
            // 255 callers may wait beside others on one connection. No smaller: bodies of megabytes would stall.
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(64),
            max_streams: 4096,
            max_connections: 16_384,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            unread_timeout: Duration::from_secs(60),
            threads: 0,
            server_name: "berth".to_owned(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl ProxyConfig {
    /// Every fault of these settings, to be reported together with those of other parts. Empty when there is none.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
        let window = ByteSize(64 * 1024)..=ByteSize((1 << 31) - 1); // HTTP/2 windows have 31 bits
        let mut faults = Vec::new();
        // A gRPC message announces its length in 32 bits.
        if self.max_message == ByteSize::ZERO || self.max_message > ByteSize(u64::from(u32::MAX)) {
            faults.push(format!("max_message is {}, it must be between 1 B and 4 GiB - 1 B", self.max_message));
        }
        if self.body_budget < self.max_message {
            faults.push(format!("body_budget is {}, less than max_message of {}", self.body_budget, self.max_message));
        }
        for (name, value) in [
            ("default_deadline", self.default_deadline),
            ("max_deadline", self.max_deadline),
            ("head_timeout", self.head_timeout),
            ("idle_timeout", self.idle_timeout),
            ("unread_timeout", self.unread_timeout),
        ] {
            if value.is_zero() || value > LONGEST {
                faults.push(format!("{name} is {value:?}, it must be more than zero and at most 7 days"));
            }
        }
        if self.default_deadline > self.max_deadline {
            faults.push(format!("default_deadline is {:?}, more than max_deadline of {:?}", self.default_deadline, self.max_deadline));
        }
        for (name, value) in [("stream_window", self.stream_window), ("connection_window", self.connection_window)] {
            if !window.contains(&value) {
                faults.push(format!("{name} is {value}, it must be between 64 KiB and 2 GiB - 1 B"));
            }
        }
        if self.threads > MOST_THREADS {
            faults.push(format!("threads is {}, it must be at most {MOST_THREADS}", self.threads));
        }
        if self.max_streams == 0 {
            faults.push("max_streams is 0, it must be at least 1".to_owned());
        }
        if self.max_connections == 0 {
            faults.push("max_connections is 0, it must be at least 1".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_faults_and_every_fault_is_reported_together() {
        assert_eq!(ProxyConfig::default().faults(), Vec::<String>::new());
        const LONG: Duration = Duration::from_secs(8 * 24 * 3600);
        let broken = ProxyConfig {
            max_message: ByteSize::ZERO,
            default_deadline: Duration::from_secs(2),
            max_deadline: Duration::from_secs(1),
            stream_window: ByteSize(1),
            connection_window: ByteSize::MAX,
            max_streams: 0,
            max_connections: 0,
            head_timeout: Duration::ZERO,
            idle_timeout: LONG,
            unread_timeout: Duration::ZERO,
            threads: MOST_THREADS + 1,
            ..ProxyConfig::default()
        };
        let faults = broken.faults();
        for field in [
            "max_message",
            "default_deadline",
            "stream_window",
            "connection_window",
            "max_streams",
            "max_connections",
            "head_timeout",
            "idle_timeout",
            "unread_timeout",
            "threads",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(field)), "{field} in {faults:?}");
        }
        assert_eq!(faults.len(), 10);
        let small = ProxyConfig { max_message: ByteSize::mib(2), body_budget: ByteSize::mib(1), ..ProxyConfig::default() };
        assert_eq!(small.faults(), ["body_budget is 1 MiB, less than max_message of 2 MiB"]);
    }
}
