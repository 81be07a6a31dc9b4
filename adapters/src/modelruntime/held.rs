//! What a server was told of each model, and what it has confirmed.
//!
//! A model is listed from the order to load it until the server has confirmed an unload, or that it holds nothing at all. An
//! order runs in a task of its own; several who want the same share it. A load ends with its last caller: it is cancelled then,
//! and followed by unloads until one succeeds. Who asks for the model meanwhile waits for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use berth_types::ModelId;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::changes::Changes;
use crate::{Index, IndexEntry, LoadError, LoadFault, Loaded, UnloadError};

/// What is said to load a model, beside its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) model_type: String,
    pub(super) path: String,
    pub(super) key: String,
}

/// A server that can be told.
pub(super) trait Asked: Send + Sync + 'static {
    /// The books on it.
    fn held(&self) -> &Held;
    /// Loads; dropped, the load is cancelled.
    fn load(&self, model: &ModelId, order: Order) -> impl Future<Output = Result<Loaded, LoadError>> + Send;
    /// Unloads. Success: the model takes no memory.
    fn unload(&self, model: &ModelId) -> impl Future<Output = Result<(), UnloadError>> + Send;
}

/// An order under way, for several to wait for.
type Under<T> = Shared<BoxFuture<'static, T>>;

enum Entry {
    Loading {
        load: Under<Result<Loaded, LoadError>>,
        /// Tells it from other loads of the model.
        number: u64,
        /// Who waits for it.
        callers: usize,
        cancel: CancellationToken,
        since: Instant,
    },
    Loaded(Loaded),
    /// To be unloaded, until the server confirms. `None`: nobody is telling it so now.
    Leaving(Option<Under<Result<(), UnloadError>>>),
}

#[derive(Default)]
struct Books {
    entries: HashMap<ModelId, Entry>,
    loads: u64,
    /// How often the server said that it holds nothing.
    purges: u64,
}

/// The books on one server.
pub(super) struct Held {
    books: Mutex<Books>,
    /// Told when an order has ended.
    pub(super) changes: Changes,
    clock: Clock,
}

/// How long a load that failed waits for its unload before it says so.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Between two tries to unload what nobody waits for: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Held {
    pub(super) fn new(clock: Clock) -> Self {
        Held { books: Mutex::default(), changes: Changes::new(), clock }
    }

    pub(super) fn index(&self) -> Index {
        self.changes.look();
        let books = self.books.lock();
        Index::of(books.entries.iter().map(|(model, entry)| {
            let at = match entry {
                Entry::Loading { .. } => IndexEntry::Loading,
                Entry::Loaded(_) => IndexEntry::Ready,
                Entry::Leaving(_) => IndexEntry::Unloading,
            };
            (model.clone(), at)
        }))
    }

    pub(super) fn is_loaded(&self, model: &ModelId) -> bool {
        matches!(self.books.lock().entries.get(model), Some(Entry::Loaded(_)))
    }

    /// Some model that is loaded.
    pub(super) fn any_loaded(&self) -> Option<ModelId> {
        self.books.lock().entries.iter().find(|(_, entry)| matches!(entry, Entry::Loaded(_))).map(|(model, _)| model.clone())
    }

    /// Whether a load has been under way for less than `limit`.
    pub(super) fn loads_within(&self, limit: Duration) -> bool {
        let now = self.clock.now();
        let recent = |entry: &Entry| matches!(entry, Entry::Loading { since, .. } if now.saturating_duration_since(*since) < limit);
        self.books.lock().entries.values().any(recent)
    }

    /// The server said that it holds nothing. Orders that are under way end by themselves. The number of models that went.
    pub(super) fn purged(&self) -> usize {
        let mut books = self.books.lock();
        books.purges += 1;
        let before = books.entries.len();
        books.entries.retain(|_, entry| matches!(entry, Entry::Loading { .. } | Entry::Leaving(Some(_))));
        let gone = before - books.entries.len();
        drop(books);
        self.changes.announce();
        gone
    }

    /// One caller of a load has gone, or has its answer.
    fn left(&self, model: &ModelId, load: u64) {
        if let Some(Entry::Loading { number, callers, cancel, .. }) = self.books.lock().entries.get_mut(model)
            && *number == load
        {
            *callers = callers.saturating_sub(1);
            if *callers == 0 {
                cancel.cancel();
            }
        }
    }
}

/// Loads `model`, joins who does, or waits until an unload is over and loads it then.
pub(super) async fn load<S: Asked>(server: &Arc<S>, model: &ModelId, order: &Order) -> Result<Loaded, LoadError> {
    let mut changes = server.held().changes.subscribe();
    loop {
        match joined(server, model, order) {
            Some(Joined::Loaded(loaded)) => return Ok(loaded),
            Some(Joined::Load(load, _caller)) => return load.await,
            None => drop(changes.changed().await),
        }
    }
}

enum Joined<'a, S: Asked> {
    Loaded(Loaded),
    Load(Under<Result<Loaded, LoadError>>, Caller<'a, S>),
}

/// `None`: the model is on its way out.
fn joined<'a, S: Asked>(server: &'a Arc<S>, model: &'a ModelId, order: &Order) -> Option<Joined<'a, S>> {
    // Held while the task is begun: it cannot end before it is known here.
    let mut guard = server.held().books.lock();
    let books = &mut *guard;
    match books.entries.get_mut(model) {
        Some(Entry::Loaded(loaded)) => Some(Joined::Loaded(loaded.clone())),
        Some(Entry::Loading { cancel, .. }) if cancel.is_cancelled() => None,
        Some(Entry::Loading { load, number, callers, .. }) => {
            *callers += 1;
            Some(Joined::Load(load.clone(), Caller { server, model, load: *number }))
        }
        Some(Entry::Leaving(_)) => None,
        None => {
            books.loads += 1;
            let (number, cancel) = (books.loads, CancellationToken::new());
            let task = tokio::spawn(carry_load(Arc::clone(server), model.clone(), order.clone(), cancel.clone()));
            let (books_of, id) = (Arc::clone(server), model.clone());
            let load = async move {
                task.await.unwrap_or_else(|panic| {
                    // What the server made of it is not known: it is to be unloaded.
                    books_of.held().books.lock().entries.insert(id, Entry::Leaving(None));
                    books_of.held().changes.announce();
                    Err(LoadError { fault: LoadFault::NotNow, message: format!("the load panicked: {panic}"), nothing_attempted: false })
                })
            };
            let load = load.boxed().shared();
            let since = server.held().clock.now();
            books.entries.insert(model.clone(), Entry::Loading { load: load.clone(), number, callers: 1, cancel, since });
            Some(Joined::Load(load, Caller { server, model, load: number }))
        }
    }
}

/// One who waits for a load.
struct Caller<'a, S: Asked> {
    server: &'a Arc<S>,
    model: &'a ModelId,
    load: u64,
}

impl<S: Asked> Drop for Caller<'_, S> {
    fn drop(&mut self) {
        self.server.held().left(self.model, self.load);
    }
}

async fn carry_load<S: Asked>(server: Arc<S>, model: ModelId, order: Order, cancel: CancellationToken) -> Result<Loaded, LoadError> {
    let began = server.held().books.lock().purges;
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        result = server.load(&model, order) => Some(result),
    };
    let failed = server.held().load_ended(&model, began, &cancel, ended);
    let error = match failed {
        Ended::With(result) => return result,
        Ended::GivenUp => {
            tokio::spawn(see_off(Arc::clone(&server), model.clone()));
            let message = format!("the load of {model} was given up");
            return Err(LoadError { fault: LoadFault::NotNow, message, nothing_attempted: false });
        }
        // There is nobody to tell.
        Ended::Failed(error) if error.fault == LoadFault::RuntimeDown => return Err(error),
        Ended::Failed(error) => error,
    };
    // Servers do not say reliably whether they attempted anything.
    let clock = &server.held().clock;
    let unloaded = clock.until(clock.deadline_in(AFTER_FAILURE), finish(&server, &model)).await;
    Err(LoadError { nothing_attempted: unloaded == Some(Ok(())), ..error })
}

/// How a load ended for the books.
enum Ended {
    With(Result<Loaded, LoadError>),
    /// Nobody wants it: it is to be unloaded.
    GivenUp,
    /// What the server made of it is not known: it is to be unloaded.
    Failed(LoadError),
}

impl Held {
    fn load_ended(&self, model: &ModelId, began: u64, cancel: &CancellationToken, ended: Option<Result<Loaded, LoadError>>) -> Ended {
        let mut books = self.books.lock();
        // Loads are given up under this lock.
        let ended = match ended {
            Some(Ok(loaded)) if !cancel.is_cancelled() => {
                books.entries.insert(model.clone(), Entry::Loaded(loaded.clone()));
                Ended::With(Ok(loaded))
            }
            // What it was told it has forgotten since.
            Some(Err(error)) if error.fault == LoadFault::RuntimeDown && books.purges != began => {
                books.entries.remove(model);
                Ended::With(Err(error))
            }
            Some(Err(error)) => {
                books.entries.insert(model.clone(), Entry::Leaving(None));
                Ended::Failed(error)
            }
            Some(Ok(_)) | None => {
                books.entries.insert(model.clone(), Entry::Leaving(None));
                Ended::GivenUp
            }
        };
        drop(books);
        self.changes.announce();
        ended
    }
}

/// Unloads what nobody waits for, until the server confirms.
pub(super) async fn see_off<S: Asked>(server: Arc<S>, model: ModelId) {
    let mut pause = FIRST_PAUSE;
    while let Err(why) = finish(&server, &model).await {
        warn!(model = %model, error = %why, "a model that nobody waits for is not unloaded yet, and is tried again");
        server.held().clock.sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Unloads `model` if it is still to be unloaded.
async fn finish<S: Asked>(server: &Arc<S>, model: &ModelId) -> Result<(), UnloadError> {
    let under = {
        let mut books = server.held().books.lock();
        match books.entries.get(model) {
            Some(Entry::Leaving(Some(under))) => under.clone(),
            Some(Entry::Leaving(None)) => begun(server, model, &mut books),
            Some(Entry::Loading { .. } | Entry::Loaded(_)) | None => return Ok(()),
        }
    };
    under.await
}

/// Unloads `model`, or gives up its load. Success: the server confirmed, or does so in time, as the index tells.
pub(super) async fn unload<S: Asked>(server: &Arc<S>, model: &ModelId) -> Result<(), UnloadError> {
    let under = {
        let mut books = server.held().books.lock();
        match books.entries.get(model) {
            Some(Entry::Loading { cancel, .. }) => {
                cancel.cancel();
                return Ok(());
            }
            Some(Entry::Leaving(Some(under))) => under.clone(),
            Some(Entry::Loaded(_) | Entry::Leaving(None)) | None => begun(server, model, &mut books),
        }
    };
    under.await
}

/// An order to unload, in a task of its own.
fn begun<S: Asked>(server: &Arc<S>, model: &ModelId, books: &mut Books) -> Under<Result<(), UnloadError>> {
    let task = tokio::spawn(carry_unload(Arc::clone(server), model.clone(), books.purges));
    let (books_of, id) = (Arc::clone(server), model.clone());
    let under = async move {
        task.await.unwrap_or_else(|panic| {
            books_of.held().books.lock().entries.insert(id, Entry::Leaving(None));
            Err(UnloadError(format!("the unload panicked: {panic}")))
        })
    };
    let under = under.boxed().shared();
    books.entries.insert(model.clone(), Entry::Leaving(Some(under.clone())));
    under
}

async fn carry_unload<S: Asked>(server: Arc<S>, model: ModelId, purges: u64) -> Result<(), UnloadError> {
    let result = server.unload(&model).await;
    let held = server.held();
    {
        let mut books = held.books.lock();
        if result.is_ok() || books.purges != purges {
            books.entries.remove(&model);
        } else {
            books.entries.insert(model, Entry::Leaving(None));
        }
    }
    held.changes.announce();
    result
}
