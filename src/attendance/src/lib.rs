//! The stream between agents and their controller, both ends.
//!
//! An agent attends: it keeps one stream to the controller open and says first who it is, then everything that it holds, then what
//! changes. The other way come the view, from nothing and then as it changes, and orders. Nobody keeps a queue that grows: what is
//! still to be said of a model is what is newest of it, and how a view differs from the one that an agent has is found by
//! comparing the two.
//!
//! ```text
//! controller:  let hub = Hub::open(views, settings, clock, metrics).await;
//!              let (controller, leader) = Controller::new(Deps { agents: hub.clone(), .. });
//!              hub.report_to(controller);
//!              service(hub, admits)                     // answers agents at a port
//! agent:       Attendant::new(line, who, residency, views, clock, metrics).run(stop).await;
//! ```
//!
//! Rules:
//! - An agent serves on, with what it knows, while no controller can be reached; its last view is on its disk. What it does not
//!   know then is "not now" rather than "not found".
//! - It follows the highest epoch that it has heard of, and no lower one.
//! - An agent whose stream breaks counts as there for [`hub::Settings::grace`], so that a controller or a network that comes back
//!   soon moves no status.
//! - Either end counts the other as gone when it has said nothing for [`SILENT_AFTER`].

mod agent;
mod hub;
mod kept;
mod line;
mod orders;
mod remembered;
mod session;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use agent::{Attendant, Who};
pub use hub::{Hub, Settings};
pub use line::{Admits, Desk, Line, Shows, Wire, service};

/// How often an agent says that it lives, when it has nothing else to say; the controller answers.
pub const BEAT_EVERY: Duration = Duration::from_secs(3);
/// Who has said nothing for so long is gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);
/// How long the first word may take, either way.
const GREETED_WITHIN: Duration = Duration::from_secs(10);
/// Messages that may wait for the network, each way.
const WAITING: usize = 16;
/// The largest message, in bytes.
const LARGEST: usize = 16 << 20;
