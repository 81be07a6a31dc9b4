//! How the rest of Berth meets the outside without naming it: time, sockets, logs and metrics.
//!
//! [`Clock`] and [`Net`] are handed in wherever time or sockets are needed, so that a simulation can stand in for both.
//! [`Host`] says whose name a request was led here by. [`log`] sets logging up once and [`field`] fixes the field names; [`Metrics`] is the one table of what is measured.
//! [`halt`] marks the places at which a test may end the process.

mod clock;
pub mod field;
pub mod halt;
mod host;
pub mod log;
mod metrics;
mod net;

pub use clock::{Clock, WallSource};
pub use host::Host;
pub use metrics::{Counter, CounterHandle, Gauge, GaugeHandle, Histogram, HistogramHandle, Metrics, OneMore, PassingGauge};
pub use net::{Dialed, HostNet, Listener, Net, Peer};
