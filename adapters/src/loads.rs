//! The loads of one server: each model has one at a time, in a task of its own, which its callers' end does not end.
//!
//! What a server does with a load that nobody waits for is its own affair, so a load is under way until it has answered:
//! who unloads the model meanwhile marks the load as unwanted, and the model is unloaded when the answer has come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_telemetry::Clock;
use berth_types::ModelId;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tracing::warn;

use crate::changes::Changes;
use crate::repository::words;
use crate::rpc::RpcError;
use crate::{LoadError, LoadFault, Loaded, UnloadError};

/// How often a server that has something under way is looked at.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// A load that several wait for.
pub(crate) type Load = Shared<BoxFuture<'static, Result<Loaded, LoadError>>>;

/// Why a load has failed, as a call tells it. `late` is for one that was not answered, `shown` what is told of the server's words.
pub(crate) fn load_error(kind: &str, why: RpcError, late: String, shown: impl FnOnce(&str) -> String) -> LoadError {
    let (fault, message) = match why {
        RpcError::Said { code, message } => (words::load_fault(code, &message), format!("{kind} did not load it ({code:?}): {}", shown(&message))),
        RpcError::Late => (LoadFault::TimedOut, late),
        RpcError::Away(why) => (LoadFault::RuntimeDown, format!("{kind} is away: {why}")),
        RpcError::Unreadable(why) => (LoadFault::NotNow, format!("{kind} gave no answer to a load: {why}")),
    };
    LoadError { fault, message, nothing_attempted: false }
}

/// What was asked of a server for each model.
pub(crate) struct Loads {
    held: Mutex<HashMap<ModelId, Held>>,
    /// Told when a load has ended.
    pub(crate) changes: Changes,
    clock: Clock,
}

enum Held {
    /// A load whose answer has not come.
    Loading {
        load: Load,
        since: Instant,
        /// It is unloaded as soon as it has ended.
        unwanted: bool,
    },
    /// A load that ended well.
    Loaded(Loaded),
}

impl Loads {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Loads { held: Mutex::default(), changes: Changes::new(), clock })
    }

    /// What a load that ended well has told of `model`.
    pub(crate) fn loaded(&self, model: &ModelId) -> Option<Loaded> {
        match self.held.lock().get(model) {
            Some(Held::Loaded(loaded)) => Some(loaded.clone()),
            _ => None,
        }
    }

    /// The models whose loads have not ended.
    pub(crate) fn under_way(&self) -> Vec<ModelId> {
        let held = self.held.lock();
        held.iter().filter(|(_, held)| matches!(held, Held::Loading { .. })).map(|(model, _)| model.clone()).collect()
    }

    /// Whether a load has been under way for less than `limit`.
    pub(crate) fn any_within(&self, limit: Duration) -> bool {
        let now = self.clock.now();
        self.held.lock().values().any(|held| matches!(held, Held::Loading { since, .. } if now.saturating_duration_since(*since) < limit))
    }

    /// Joins the load of `model` that is under way, else begins `load`; `unload` follows it if nobody wants the model by then.
    pub(crate) fn join<L, U>(self: &Arc<Self>, model: &ModelId, load: L, unload: U) -> Load
    where
        L: Future<Output = Result<Loaded, LoadError>> + Send + 'static,
        U: Future<Output = Result<(), UnloadError>> + Send + 'static,
    {
        // Held while the task is begun: it cannot end before it is known here.
        let mut held = self.held.lock();
        if let Some(Held::Loading { load, unwanted, .. }) = held.get_mut(model) {
            *unwanted = false;
            return load.clone();
        }
        let task = tokio::spawn(Arc::clone(self).carry_out(model.clone(), load, unload));
        let (loads, id) = (Arc::clone(self), model.clone());
        let load = async move {
            task.await.unwrap_or_else(|panic| {
                // From here on the server's own index counts.
                loads.held.lock().remove(&id);
                Err(LoadError { fault: LoadFault::NotNow, message: format!("the load panicked: {panic}"), nothing_attempted: false })
            })
        };
        let load = load.boxed().shared();
        held.insert(model.clone(), Held::Loading { load: load.clone(), since: self.clock.now(), unwanted: false });
        load
    }

    async fn carry_out(
        self: Arc<Self>,
        model: ModelId,
        load: impl Future<Output = Result<Loaded, LoadError>>,
        unload: impl Future<Output = Result<(), UnloadError>>,
    ) -> Result<Loaded, LoadError> {
        let result = load.await;
        let unwanted = {
            let mut held = self.held.lock();
            let unwanted = matches!(held.get(&model), Some(Held::Loading { unwanted: true, .. }));
            match &result {
                // Listed as loading until it is unloaded: a look in between proves nothing.
                _ if unwanted => {}
                Ok(loaded) => drop(held.insert(model.clone(), Held::Loaded(loaded.clone()))),
                Err(_) => drop(held.remove(&model)),
            }
            unwanted
        };
        let result = if unwanted {
            if !result.as_ref().is_err_and(|error| error.nothing_attempted)
                && let Err(why) = unload.await
            {
                warn!(model = %model, error = %why, "a load that nobody waits for has ended, and the model cannot be unloaded");
            }
            self.held.lock().remove(&model);
            Err(LoadError { fault: LoadFault::NotNow, message: format!("{model} was unloaded while it was loading"), nothing_attempted: false })
        } else {
            result
        };
        self.changes.announce();
        result
    }

    /// Marks the load of `model` as one that nobody wants. False when none is under way: then the model is there or it is not.
    pub(crate) fn give_up(&self, model: &ModelId) -> bool {
        match self.held.lock().get_mut(model) {
            Some(Held::Loading { unwanted, .. }) => {
                *unwanted = true;
                true
            }
            _ => false,
        }
    }

    /// Completes when a load has ended, or after a while: servers do not tell when an unload has.
    pub(crate) async fn changed_or_later(&self) {
        tokio::select! {
            () = self.changes.changed() => {}
            () = self.clock.sleep(LOOK_AGAIN) => {}
        }
    }

    /// The server took the order to unload `model`.
    pub(crate) fn forget(&self, model: &ModelId) {
        let mut held = self.held.lock();
        if matches!(held.get(model), Some(Held::Loaded(_))) {
            held.remove(model);
        }
        drop(held);
        self.changes.announce();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    const DONE: Loaded = Loaded { measured: None, max_concurrency: None };

    fn loads() -> Arc<Loads> {
        Loads::new(Clock::system())
    }

    fn id() -> ModelId {
        ModelId::new("m").expect("valid")
    }

    #[tokio::test]
    async fn who_asks_for_a_model_that_is_loading_waits_for_the_same_load() {
        let (loads, (answer, answered)) = (loads(), oneshot::channel::<()>());
        let first = loads.join(&id(), async { answered.await.map(|()| DONE).map_err(|_| LoadError::bad_model("gone")) }, async { Ok(()) });
        let second = loads.join(&id(), async { panic!("one load is enough") }, async { Ok(()) });
        assert_eq!((loads.under_way(), loads.loaded(&id())), (vec![id()], None));
        assert!(loads.any_within(Duration::from_secs(60)) && !loads.any_within(Duration::ZERO));
        answer.send(()).expect("it waits");
        assert_eq!((first.await, second.await), (Ok(DONE), Ok(DONE)));
        assert_eq!((loads.under_way(), loads.loaded(&id())), (vec![], Some(DONE)));
        loads.forget(&id());
        assert_eq!(loads.loaded(&id()), None);
    }

    #[tokio::test]
    async fn what_nobody_wants_is_unloaded_when_its_load_has_ended_unless_it_never_began() {
        for (case, result, unloads) in [
            ("loaded", Ok(DONE), 1),
            ("failed", Err(LoadError { nothing_attempted: false, ..LoadError::bad_model("x") }), 1),
            ("never began", Err(LoadError::bad_model("x")), 0),
        ] {
            let (loads, (answer, answered), unloaded) = (loads(), oneshot::channel::<()>(), Arc::new(AtomicU32::new(0)));
            let count = Arc::clone(&unloaded);
            let load = async move {
                let _ = answered.await;
                result
            };
            let load = loads.join(&id(), load, async move {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            assert!(loads.give_up(&id()), "{case}");
            answer.send(()).expect("it waits");
            let refused = load.await.expect_err(case);
            assert_eq!((refused.fault, refused.nothing_attempted), (LoadFault::NotNow, false), "{case}");
            assert_eq!((unloaded.load(Ordering::Relaxed), loads.under_way()), (unloads, vec![]), "{case}");
            assert!(!loads.give_up(&id()), "{case}: nothing is under way");
        }
    }

    #[tokio::test]
    async fn a_model_that_is_wanted_again_before_its_load_has_ended_stays() {
        let (loads, (answer, answered)) = (loads(), oneshot::channel::<()>());
        let load = async move {
            let _ = answered.await;
            Ok(DONE)
        };
        let first = loads.join(&id(), load, async { panic!("it is wanted") });
        assert!(loads.give_up(&id()));
        let second = loads.join(&id(), async { panic!("one load is enough") }, async { Ok(()) });
        answer.send(()).expect("it waits");
        assert_eq!((first.await, second.await), (Ok(DONE), Ok(DONE)));
    }
}
