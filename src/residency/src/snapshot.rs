//! What `describe` and dashboards see of a pod's memory.

use berth_plan::Phase;
use berth_types::{ByteSize, Footprint, ModelId, Pool, Real, UnixMillis};

/// One pool at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Which pool.
    pub pool: Pool,
    /// All that it has.
    pub budget: ByteSize,
    /// Under lease or not confirmed as given back; larger than the budget when copies took more than was predicted.
    pub charged: ByteSize,
    /// The part of `charged` that is being unloaded.
    pub returning: ByteSize,
    /// The part of `charged` whose unload was not confirmed after all tries.
    pub unconfirmed: ByteSize,
    /// The part of `budget` that is not there in truth.
    pub withheld: ByteSize,
    /// What the server held before its first load, where that was seen.
    pub base: Option<ByteSize>,
    /// What the server kept of copies that have gone.
    pub retained: ByteSize,
    /// What was seen of it.
    pub real: Real,
    /// Nearly full: idle copies are evicted.
    pub strained: bool,
}

/// Where the number is from that a copy is charged with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Its resource says so.
    Declared,
    /// The same files took so much when they were loaded before.
    Learned,
    /// The runtime thinks so, or it follows from the bytes on disk.
    #[default]
    Estimated,
    /// This copy was measured, or the runtime said so when it had loaded it.
    Measured,
}

/// One model that is loaded or on its way, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyUse {
    /// Which model.
    pub model: ModelId,
    /// Where in its life.
    pub phase: Phase,
    /// Since when it has been loaded; before that, since when it has been asked for.
    pub since: UnixMillis,
    /// What it is charged with; `None` before memory was given to it.
    pub charged: Option<Footprint>,
    /// Where that is from.
    pub from: Origin,
    /// Requests on it, and callers that were just handed it.
    pub in_flight: u32,
    /// Callers that wait for it.
    pub waiting: usize,
    /// Last use; `None` until the first.
    pub last_used: Option<UnixMillis>,
}

/// The books of a pod at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The pools, in order.
    pub pools: Vec<PoolUse>,
    /// Every model that is loaded or on its way, by id.
    pub copies: Vec<CopyUse>,
    /// Callers that wait for a load.
    pub waiting: usize,
}
