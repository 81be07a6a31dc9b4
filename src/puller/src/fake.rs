//! A [`Fetch`] without store or disk, for the tests of whoever waits for models.
//!
//! Every model arrives at once with a default size unless a script says otherwise: it can take its time (on tokio's
//! pausable clock), fail, or stall until the test releases it. What was asked for and how urgently, what is "on disk" and
//! what is pinned can be read back. Sharing, pinning and forgetting behave as in the real [`crate::Puller`]; both pass one suite.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_telemetry::Clock;
use berth_types::{ByteSize, ContentDigest, ModelId, Registration};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::flights::Flights;
use crate::{Fetch, Pinned, PullError, Urgency};

/// What the next download of a model does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scripted {
    /// It arrives after this long.
    Arrives {
        /// Bytes of its files.
        size: ByteSize,
        /// How long the download takes.
        after: Duration,
    },
    /// It fails after this long.
    Fails {
        /// With this error.
        error: PullError,
        /// How long it takes to fail.
        after: Duration,
    },
    /// It hangs until [`FakeFetch::release`], then goes on with the next line of the script.
    Stalls,
}

impl Scripted {
    /// Arrives at once.
    #[must_use]
    pub const fn arrives(size: ByteSize) -> Self {
        Scripted::Arrives { size, after: Duration::ZERO }
    }

    /// Arrives after `after`.
    #[must_use]
    pub const fn arrives_in(size: ByteSize, after: Duration) -> Self {
        Scripted::Arrives { size, after }
    }

    /// Fails at once.
    #[must_use]
    pub const fn fails(error: PullError) -> Self {
        Scripted::Fails { error, after: Duration::ZERO }
    }
}

/// What is on disk of a model.
#[derive(Clone, Copy)]
struct Kept {
    size: ByteSize,
    digest: ContentDigest,
}

#[derive(Default)]
struct State {
    scripts: HashMap<String, VecDeque<Scripted>>,
    always: HashMap<String, Scripted>,
    fetches: Vec<(String, Urgency)>,
    hurried: Vec<String>,
    digests: HashMap<String, ContentDigest>,
    disk: HashMap<ModelId, Kept>,
    pins: HashMap<ModelId, usize>,
    forgotten: HashSet<ModelId>,
    gates: HashMap<String, Arc<Semaphore>>,
}

impl State {
    fn gate(&mut self, model: &str) -> Arc<Semaphore> {
        Arc::clone(self.gates.entry(model.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))))
    }

    /// What the store holds of `model` now.
    fn content(&self, model: &str, size: ByteSize) -> Kept {
        let digest = self.digests.get(model).copied();
        Kept { size, digest: digest.unwrap_or_else(|| ContentDigest(*blake3::hash(model.as_bytes()).as_bytes())) }
    }

    fn next(&mut self, model: &str) -> Option<Scripted> {
        self.scripts.get_mut(model).and_then(VecDeque::pop_front).or_else(|| self.always.get(model).cloned())
    }
}

struct Shared {
    clock: Clock,
    default: Scripted,
    state: Mutex<State>,
    started: watch::Sender<usize>,
}

/// Given out while a fake model is pinned.
struct FakeHold {
    shared: Arc<Shared>,
    model: ModelId,
}

impl FakeHold {
    fn on(shared: &Arc<Shared>, model: &ModelId) -> Arc<Self> {
        *shared.state.lock().pins.entry(model.clone()).or_default() += 1;
        Arc::new(FakeHold { shared: Arc::clone(shared), model: model.clone() })
    }
}

impl Drop for FakeHold {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(pins) = state.pins.get_mut(&self.model) {
            *pins -= 1;
            if *pins == 0 {
                state.pins.remove(&self.model);
                if state.forgotten.remove(&self.model) {
                    state.disk.remove(&self.model);
                }
            }
        }
    }
}

#[derive(Clone)]
struct Landed {
    kept: Kept,
    from_disk: bool,
    hold: Arc<FakeHold>,
}

/// The fake. Share it as `Arc<dyn Fetch>`.
pub struct FakeFetch {
    shared: Arc<Shared>,
    flights: Flights<Result<Landed, PullError>>,
}

impl FakeFetch {
    /// Every model arrives at once and has 1 KiB, until a script says otherwise.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Self::with_default(clock, Scripted::arrives(ByteSize::kib(1)))
    }

    /// Models without a script do `default`.
    #[must_use]
    pub fn with_default(clock: Clock, default: Scripted) -> Arc<Self> {
        let shared = Shared { clock, default, state: Mutex::default(), started: watch::Sender::new(0) };
        Arc::new(FakeFetch { shared: Arc::new(shared), flights: Flights::new() })
    }

    /// Appends to the script of `model`: one line per download.
    pub fn then(&self, model: &str, what: Scripted) -> &Self {
        self.shared.state.lock().scripts.entry(model.to_owned()).or_default().push_back(what);
        self
    }

    /// What each download of `model` does once its script is used up.
    pub fn always(&self, model: &str, what: Scripted) -> &Self {
        self.shared.state.lock().always.insert(model.to_owned(), what);
        self
    }

    /// Lets one stalled download of `model` go on; one that stalls later goes on at once.
    pub fn release(&self, model: &str) {
        self.shared.state.lock().gate(model).add_permits(1);
    }

    /// The downloads that were started, in order. Callers that shared one and models found on disk are not in it.
    #[must_use]
    pub fn fetches(&self) -> Vec<String> {
        self.shared.state.lock().fetches.iter().map(|(model, _)| model.clone()).collect()
    }

    /// The same downloads with how urgent each was when it began.
    #[must_use]
    pub fn urgencies(&self) -> Vec<(String, Urgency)> {
        self.shared.state.lock().fetches.clone()
    }

    /// The models that [`Fetch::hurry`] was called for, in order.
    #[must_use]
    pub fn hurried(&self) -> Vec<String> {
        self.shared.state.lock().hurried.clone()
    }

    /// Puts other bytes behind the path of `model`: downloads that end from now on have this digest. Without it each
    /// model has one of its own.
    pub fn content(&self, model: &str, digest: ContentDigest) -> &Self {
        self.shared.state.lock().digests.insert(model.to_owned(), digest);
        self
    }

    /// Returns once `count` downloads have been started, ever.
    pub async fn started(&self, count: usize) {
        let mut started = self.shared.started.subscribe();
        // The sender lives in `self`, so the channel cannot be closed here.
        let _ = started.wait_for(|so_far| *so_far >= count).await;
    }

    /// Puts `model` on disk, as an earlier run would have left it.
    pub fn put_on_disk(&self, model: &ModelId, size: ByteSize) {
        let mut state = self.shared.state.lock();
        let kept = state.content(model.as_str(), size);
        state.disk.insert(model.clone(), kept);
    }

    /// How many holds on `model` are alive; callers that shared one download share one hold.
    #[must_use]
    pub fn pins(&self, model: &ModelId) -> usize {
        self.shared.state.lock().pins.get(model).copied().unwrap_or(0)
    }

    async fn bring(shared: Arc<Shared>, model: ModelId, urgency: Urgency) -> Result<Landed, PullError> {
        let found = shared.state.lock().disk.get(&model).copied();
        if let Some(kept) = found {
            return Ok(Landed { kept, from_disk: true, hold: FakeHold::on(&shared, &model) });
        }
        shared.state.lock().fetches.push((model.as_str().to_owned(), urgency));
        shared.started.send_modify(|so_far| *so_far += 1);
        loop {
            let next = shared.state.lock().next(model.as_str());
            match next.unwrap_or_else(|| shared.default.clone()) {
                Scripted::Arrives { size, after } => {
                    // A timer takes a millisecond, also for nothing.
                    if !after.is_zero() {
                        shared.clock.sleep(after).await;
                    }
                    let kept = {
                        let mut state = shared.state.lock();
                        let kept = state.content(model.as_str(), size);
                        state.disk.insert(model.clone(), kept);
                        kept
                    };
                    return Ok(Landed { kept, from_disk: false, hold: FakeHold::on(&shared, &model) });
                }
                Scripted::Fails { error, after } => {
                    shared.clock.sleep(after).await;
                    return Err(error);
                }
                Scripted::Stalls => {
                    let gate = shared.state.lock().gate(model.as_str());
                    // The semaphore is never closed, so this cannot fail.
                    if let Ok(permit) = gate.acquire().await {
                        permit.forget();
                    }
                }
            }
        }
    }
}

impl Landed {
    fn pinned(self, model: &Registration) -> Pinned {
        Pinned {
            model: PathBuf::from("/fake").join(model.id.as_str()),
            schema: model.schema_path.as_ref().map(|_| PathBuf::from("/fake").join(format!("{}.schema", model.id))),
            size: self.kept.size,
            from_disk: self.from_disk,
            digest: Some(self.kept.digest),
            checked: "md5".into(),
            hold: Some(self.hold),
        }
    }
}

#[async_trait]
impl Fetch for FakeFetch {
    async fn fetch(&self, model: &Registration, urgency: Urgency) -> Result<Pinned, PullError> {
        self.shared.state.lock().forgotten.remove(&model.id);
        let work = || Self::bring(Arc::clone(&self.shared), model.id.clone(), urgency);
        match self.flights.join(&model.id, work).await {
            Some(outcome) => outcome.map(|landed| landed.pinned(model)),
            None => Err(PullError::Disk(format!("the download of {} ended without an outcome", model.id))),
        }
    }

    fn hurry(&self, model: &ModelId) {
        self.shared.state.lock().hurried.push(model.as_str().to_owned());
    }

    async fn reuse(&self, model: &Registration) -> Option<Pinned> {
        let kept = {
            let mut state = self.shared.state.lock();
            let kept = *state.disk.get(&model.id)?;
            state.forgotten.remove(&model.id);
            kept
        };
        Some(Landed { kept, from_disk: true, hold: FakeHold::on(&self.shared, &model.id) }.pinned(model))
    }

    fn on_disk(&self, model: &Registration) -> bool {
        let state = self.shared.state.lock();
        state.disk.contains_key(&model.id) && !state.forgotten.contains(&model.id)
    }

    fn forget(&self, model: &Registration) {
        let mut state = self.shared.state.lock();
        if state.pins.contains_key(&model.id) || self.flights.is_running(&model.id) {
            state.forgotten.insert(model.id.clone());
        } else {
            state.disk.remove(&model.id);
        }
    }
}
