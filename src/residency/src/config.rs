//! What can be set, and the values when nothing is.

use std::path::PathBuf;
use std::time::Duration;

use berth_plan::pressure::Marks;

/// What is done about a runtime that keeps so much memory that no model has that it had better be started anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recycle {
    /// It is said in the log and in the metrics.
    #[default]
    Off,
    /// It is drained, and then [`crate::Residency::must_restart_runtime`] says so to whoever can start it anew.
    Drain,
    /// It is drained, and then its process is told to end.
    End,
}

/// Limits and waiting times of one pod's residency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Downloads at a time that somebody waits for. One that nobody waits for begins while fewer than this, less one, run
    /// in all (or none does): so it never takes the place of one that is waited for. Beside them as many looks for files
    /// that are on disk already, so that no reload waits for a download.
    pub fetches: usize,
    /// Callers that may wait for one model.
    pub waiters_per_model: usize,
    /// Callers that may wait in all.
    pub waiters: usize,
    /// How long a copy in use keeps its memory while callers wait for another model that has no room otherwise. After
    /// that it takes no new requests and is drained.
    pub turn: Duration,
    /// How long requests in flight may go on once their copy is drained; then they are told to end.
    pub drain_cap: Duration,
    /// How long requests that were told to end may take to do so.
    pub revoke_grace: Duration,
    /// How often an unload is asked for before the copy counts as stuck.
    pub unload_tries: u32,
    /// How long the runtime may take to answer one unload call, and again to drop the copy from its index.
    pub unload_timeout: Duration,
    /// The longest time between two looks at the index while an unload is awaited.
    pub poll: Duration,
    /// How often the owner compares its books with the runtime's index and tidies up.
    pub audit: Duration,
    /// How long callers wait for a runtime that has gone away; after that they are told at once to try again later.
    pub runtime_grace: Duration,
    /// How long a failure counts, also across restarts.
    pub failure_kept: Duration,
    /// How long a failure that only a change can cure is answered without another try: at first, and at most (it doubles).
    pub quiet: (Duration, Duration),
    /// The same for a failure that passes by itself, such as a store that is away, give or take a tenth.
    pub quiet_passing: (Duration, Duration),
    /// What a model takes when neither a declaration nor an earlier load nor the runtime can tell: its bytes on disk
    /// times this, in percent.
    pub disk_factor_percent: u32,
    /// Folder for what must survive a restart (last use, learned sizes, failures). `None` keeps nothing.
    pub state: Option<PathBuf>,
    /// The shortest time between two writes of last uses and sizes. Failures are written when they happen.
    pub save_every: Duration,
    /// Models whose last use and size are remembered; the longest unused are forgotten first.
    pub remembered: usize,
    /// When a memory counts as nearly full.
    pub marks: Marks,
    /// What is done about a runtime that keeps memory.
    pub recycle: Recycle,
    /// How much of a memory it may keep, in percent.
    pub bloated_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            fetches: 4,
            waiters_per_model: 1024,
            waiters: 16 * 1024,
            turn: Duration::from_secs(1),
            drain_cap: Duration::from_secs(30),
            revoke_grace: Duration::from_secs(1),
            unload_tries: 3,
            unload_timeout: Duration::from_secs(10),
            poll: Duration::from_millis(250),
            audit: Duration::from_secs(5),
            runtime_grace: Duration::from_secs(10),
            failure_kept: Duration::from_secs(15 * 60),
            quiet: (Duration::from_secs(10), Duration::from_secs(60)),
            quiet_passing: (Duration::from_secs(1), Duration::from_secs(30)),
            disk_factor_percent: 125,
            state: None,
            save_every: Duration::from_secs(30),
            remembered: 50_000,
            marks: Marks::default(),
            recycle: Recycle::Off,
            bloated_percent: 50,
        }
    }
}
