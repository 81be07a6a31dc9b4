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
    fn unload(&self, model: &ModelId) -> impl Future<Output = Result<(), NotUnloaded>> + Send;
}

/// Why an order to unload was no success, apart by what it says of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotUnloaded {
    /// The server refused: it holds the model still.
    Refused(String),
    /// There was no answer, which says nothing.
    Unanswered(String),
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
        // What the server says of this model counts for more than what it said of all of them.
        let purged = books.purges != purges && !matches!(result, Err(NotUnloaded::Refused(_)));
        if result.is_ok() || purged {
            books.entries.remove(&model);
        } else {
            books.entries.insert(model, Entry::Leaving(None));
        }
    }
    held.changes.announce();
    result.map_err(|(NotUnloaded::Refused(why) | NotUnloaded::Unanswered(why))| UnloadError(why))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::task::JoinHandle;

    use super::*;

    const DONE: Loaded = Loaded { measured: None, max_concurrency: None };

    /// A server with one model, which takes its time and refuses as it is told.
    struct Server {
        held: Held,
        load_takes: Duration,
        unload_takes: Duration,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        refusals: u32,
        failures: u32,
        /// What it refuses it does not answer.
        is_silent: bool,
        /// What it truly holds.
        holds: bool,
        loading: bool,
        unloading: bool,
        loads: u32,
        /// When unloads began, in milliseconds.
        unloads: Vec<u128>,
        /// Orders that met where none may.
        met: bool,
    }

    /// Tells the state when an order ends, also when it is cancelled.
    struct Ends<'a>(&'a Mutex<State>, fn(&mut State) -> &mut bool);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            *self.1(&mut self.0.lock()) = false;
        }
    }

    impl Asked for Server {
        fn held(&self) -> &Held {
            &self.held
        }

        async fn load(&self, _model: &ModelId, _order: Order) -> Result<Loaded, LoadError> {
            let _ends = {
                let mut state = self.state.lock();
                state.met |= state.loading || state.unloading;
                (state.loading, state.loads) = (true, state.loads + 1);
                Ends(&self.state, |state| &mut state.loading)
            };
            // From here on it may hold something, whatever becomes of the call.
            self.state.lock().holds = true;
            self.held.clock.sleep(self.load_takes).await;
            let mut state = self.state.lock();
            if state.failures > 0 {
                state.failures -= 1;
                return Err(LoadError { fault: LoadFault::BadModel, message: "bad".to_owned(), nothing_attempted: false });
            }
            Ok(DONE)
        }

        async fn unload(&self, _model: &ModelId) -> Result<(), NotUnloaded> {
            let _ends = {
                let mut state = self.state.lock();
                state.met |= state.loading || state.unloading;
                state.unloading = true;
                let at = self.held.clock.wall().0;
                state.unloads.push(at.into());
                Ends(&self.state, |state| &mut state.unloading)
            };
            self.held.clock.sleep(self.unload_takes).await;
            let mut state = self.state.lock();
            if state.refusals > 0 {
                state.refusals -= 1;
                let why = "not yet".to_owned();
                return Err(if state.is_silent { NotUnloaded::Unanswered(why) } else { NotUnloaded::Refused(why) });
            }
            state.holds = false;
            Ok(())
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn server(load_takes: Duration, unload_takes: Duration, refusals: u32) -> Arc<Server> {
        let clock = Clock::starting_at(berth_types::UnixMillis(0));
        Arc::new(Server { held: Held::new(clock), load_takes, unload_takes, state: Mutex::new(State { refusals, ..State::default() }) })
    }

    fn id() -> ModelId {
        ModelId::new("m").expect("valid")
    }

    fn caller(server: &Arc<Server>) -> JoinHandle<Result<Loaded, LoadError>> {
        let server = Arc::clone(server);
        let order = Order { model_type: String::new(), path: String::new(), key: String::new() };
        tokio::spawn(async move { load(&server, &id(), &order).await })
    }

    impl Server {
        fn entry(&self) -> Option<IndexEntry> {
            self.held.index().get(&id())
        }

        async fn pass(&self, time: Duration) {
            self.held.clock.sleep(time).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_ends_with_its_last_caller_and_unloads_follow_until_one_is_confirmed() {
        let server = server(secs(100), Duration::ZERO, 3);
        let (first, second) = (caller(&server), caller(&server));
        server.pass(secs(1)).await;
        first.abort();
        server.pass(secs(1)).await;
        assert_eq!((server.entry(), server.state.lock().loading), (Some(IndexEntry::Loading), true), "somebody still waits");
        second.abort();
        server.pass(Duration::from_millis(10)).await;
        assert_eq!((server.entry(), server.state.lock().loading), (Some(IndexEntry::Unloading), false));
        server.pass(secs(20)).await;
        assert_eq!((server.entry(), server.state.lock().holds), (None, false));
        let tries: Vec<_> = server.state.lock().unloads.iter().map(|at| at / 1000).collect();
        assert_eq!(tries, [2, 3, 5, 9], "at once, then after longer and longer pauses");
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_of_a_model_that_is_being_unloaded_begins_when_that_is_confirmed() {
        let server = server(secs(1), secs(5), 0);
        caller(&server).await.expect("no panic").expect("it loads");
        let (unloading, held) = (Arc::clone(&server), Arc::clone(&server));
        let unloading = tokio::spawn(async move { unload(&unloading, &id()).await });
        server.pass(secs(1)).await;
        let again = caller(&server);
        server.pass(secs(3)).await;
        assert_eq!((held.entry(), server.state.lock().loads), (Some(IndexEntry::Unloading), 1));
        assert_eq!(unloading.await.expect("no panic"), Ok(()));
        assert_eq!(again.await.expect("no panic"), Ok(DONE));
        let state = server.state.lock();
        assert_eq!((held.entry(), state.loads, state.met), (Some(IndexEntry::Ready), 2, false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unload_of_a_model_that_loads_gives_the_load_up_and_is_confirmed_by_the_index() {
        let server = server(secs(100), secs(2), 0);
        let loading = caller(&server);
        server.pass(secs(1)).await;
        assert_eq!(unload(&server, &id()).await, Ok(()));
        let given_up = loading.await.expect("no panic").expect_err("it was given up");
        assert_eq!((given_up.fault, server.entry()), (LoadFault::NotNow, Some(IndexEntry::Unloading)));
        server.pass(secs(3)).await;
        assert_eq!((server.entry(), server.state.lock().holds), (None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_load_says_so_once_its_unload_is_confirmed_or_has_taken_too_long() {
        for (unload_takes, refusals, after, entry) in
            [(secs(2), 0, secs(3), None), (secs(60), 0, secs(6), Some(IndexEntry::Unloading)), (secs(1), 1, secs(2), Some(IndexEntry::Unloading))]
        {
            let server = server(secs(1), unload_takes, refusals);
            server.state.lock().failures = 1;
            let began = server.held.clock.now();
            let failed = caller(&server).await.expect("no panic").expect_err("it fails");
            let took = server.held.clock.now() - began;
            assert_eq!((took, failed.nothing_attempted, server.entry()), (after, entry.is_none(), entry), "{unload_takes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_holds_nothing_any_more_confirms_all_but_orders_that_are_under_way() {
        let server = server(secs(1), secs(5), 9);
        server.state.lock().is_silent = true;
        caller(&server).await.expect("no panic").expect("it loads");
        let telling = Arc::clone(&server);
        let unloading = tokio::spawn(async move { unload(&telling, &id()).await });
        server.pass(secs(1)).await;
        assert_eq!(server.held.purged(), 0);
        assert_eq!(server.entry(), Some(IndexEntry::Unloading), "the order may still arrive, and a load must not overtake it");
        assert!(unloading.await.expect("no panic").is_err());
        assert_eq!(server.entry(), None);
        caller(&server).await.expect("no panic").expect("it loads");
        assert_eq!((server.held.purged(), server.entry()), (1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_believed_though_the_server_said_meanwhile_that_it_holds_nothing() {
        let server = server(secs(1), secs(5), 1);
        caller(&server).await.expect("no panic").expect("it loads");
        let telling = Arc::clone(&server);
        let unloading = tokio::spawn(async move { unload(&telling, &id()).await });
        server.pass(secs(1)).await;
        server.held.purged();
        assert!(unloading.await.expect("no panic").is_err());
        assert_eq!((server.entry(), server.state.lock().holds), (Some(IndexEntry::Unloading), true), "its memory is in use");
        assert_eq!((unload(&server, &id()).await, server.entry()), (Ok(()), None));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Call,
        Leave(usize),
        Unload,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Call),
            3 => (0..4_usize).prop_map(Step::Leave),
            2 => Just(Step::Unload),
            4 => (0..3000_u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(85), ..Default::default() })]
        #[test]
        fn whatever_callers_do_orders_never_meet_and_what_is_not_listed_is_not_held(
            steps in prop::collection::vec(step(), 1..40), takes in (0..2000_u64, 0..2000_u64), trouble in (0..4_u32, 0..3_u32)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            let outcome = runtime.block_on(async {
                let server = server(Duration::from_millis(takes.0), Duration::from_millis(takes.1), trouble.0);
                server.state.lock().failures = trouble.1;
                let mut callers = Vec::new();
                for step in steps {
                    match step {
                        Step::Call => callers.push(caller(&server)),
                        Step::Leave(at) if at < callers.len() => callers.swap_remove(at).abort(),
                        Step::Leave(_) => {}
                        Step::Unload => {
                            let server = Arc::clone(&server);
                            tokio::spawn(async move { unload(&server, &id()).await });
                        }
                        Step::Pass(millis) => server.pass(Duration::from_millis(millis)).await,
                    }
                    let (listed, state) = (server.entry().is_some(), server.state.lock());
                    prop_assert!(listed || !state.holds, "it holds what is not listed, at {step:?}");
                    prop_assert!(!state.met, "orders met, at {step:?}");
                }
                drop(callers);
                // Whoever is in charge asks again until it is so.
                for _ in 0..10 {
                    server.pass(secs(10)).await;
                    let _ = unload(&server, &id()).await;
                }
                server.pass(secs(30)).await;
                prop_assert!(server.entry().is_none() && !server.state.lock().holds && !server.state.lock().met);
                Ok(())
            });
            outcome?;
        }
    }
}
