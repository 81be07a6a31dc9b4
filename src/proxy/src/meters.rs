//! What the inference ports measure, with every series looked up once.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use berth_telemetry::{Clock, Counter, CounterHandle, Gauge, GaugeHandle, Histogram, HistogramHandle, Metrics, OneMore};
use tonic::Code;

use crate::codes;

/// The inference requests of one protocol.
pub(crate) struct Requests {
    metrics: Metrics,
    protocol: &'static str,
    /// By gRPC code; made when a code first occurs, so that the page shows only what happened.
    counts: [OnceLock<CounterHandle>; 17],
    seconds: HistogramHandle,
    in_flight: GaugeHandle,
}

impl Requests {
    pub(crate) fn new(metrics: &Metrics, protocol: &'static str) -> Self {
        Requests {
            metrics: metrics.clone(),
            protocol,
            counts: [const { OnceLock::new() }; 17],
            seconds: metrics.histogram(Histogram::RequestSeconds, &[("protocol", protocol)]),
            in_flight: metrics.gauge(Gauge::InFlight, &[]),
        }
    }

    /// A request has come in. It counts as cancelled unless [`Measured::is`] or [`Measured::ended`] says otherwise.
    pub(crate) fn started(self: &Arc<Self>, clock: &Clock) -> Measured {
        let in_flight = self.in_flight.one_more();
        Measured { requests: Arc::clone(self), clock: clock.clone(), since: clock.now(), code: Code::Cancelled, _in_flight: in_flight }
    }

    fn count(&self, code: Code) {
        let labels = [("protocol", self.protocol), ("code", codes::name(code))];
        self.counts[code as usize].get_or_init(|| self.metrics.counter(Counter::Requests, &labels)).add(1);
    }
}

/// One request under way. Dropped early, because the client went away, it is counted all the same.
pub(crate) struct Measured {
    requests: Arc<Requests>,
    clock: Clock,
    since: Instant,
    code: Code,
    _in_flight: OneMore,
}

impl Measured {
    /// It ended with `code`.
    pub(crate) fn ended(mut self, code: Code) {
        self.code = code;
    }

    /// It will have ended with `code`.
    pub(crate) fn is(&mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.requests.seconds.observe(self.clock.now().saturating_duration_since(self.since));
        self.requests.count(self.code);
    }
}

/// Everything that a [`crate::Frontend`] measures.
pub(crate) struct Meters {
    pub(crate) grpc: Arc<Requests>,
    pub(crate) rest: Arc<Requests>,
    pub(crate) runtime: HistogramHandle,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Meters {
            grpc: Arc::new(Requests::new(metrics, "grpc")),
            rest: Arc::new(Requests::new(metrics, "rest")),
            runtime: metrics.histogram(Histogram::RuntimeInferSeconds, &[]),
        }
    }
}
