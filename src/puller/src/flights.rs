//! One piece of work per model, however many callers ask for it.
//!
//! The work runs in a task of its own: a caller that goes away only stops listening. The outcome is kept exactly as long
//! as somebody listens, so what it holds (a pin) cannot be lost between the end of the work and a caller's waking up.

use std::collections::HashMap;
use std::sync::Arc;

use berth_types::ModelId;
use parking_lot::Mutex;
use tokio::sync::watch;

type Running<T> = Arc<Mutex<HashMap<ModelId, UnderWay<T>>>>;

struct UnderWay<T> {
    outcome: watch::Receiver<Option<T>>,
    /// Shared by all who listen.
    listeners: Arc<()>,
}

/// What is under way, by model.
pub(crate) struct Flights<T> {
    running: Running<T>,
}

/// Takes the model off the list when its work ends, also when it ends in a panic.
struct Landing<T> {
    running: Running<T>,
    model: ModelId,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.model);
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(crate) fn new() -> Self {
        Flights { running: Arc::default() }
    }

    /// The outcome of the work under way for `model`, which `work` starts when there is none. `None` when the work
    /// ended without an outcome (it panicked, or the process is stopping).
    pub(crate) async fn join<F>(&self, model: &ModelId, work: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut outcome, _listening) = {
            let mut running = self.running.lock();
            match running.get(model) {
                Some(under_way) => (under_way.outcome.clone(), Arc::clone(&under_way.listeners)),
                None => {
                    let (tell, outcome) = watch::channel(None);
                    let listeners = Arc::new(());
                    running.insert(model.clone(), UnderWay { outcome: outcome.clone(), listeners: Arc::clone(&listeners) });
                    let landing = Landing { running: Arc::clone(&self.running), model: model.clone() };
                    let work = work();
                    tokio::spawn(async move {
                        let value = work.await;
                        drop(landing); // whoever asks from here on finds the result where the work left it
                        tell.send_replace(Some(value));
                    });
                    (outcome, listeners)
                }
            }
        };
        let landed = outcome.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }

    /// True while work for `model` is under way that nobody listens to.
    pub(crate) fn is_unheard(&self, model: &ModelId) -> bool {
        self.running.lock().get(model).is_some_and(|under_way| Arc::strong_count(&under_way.listeners) == 1)
    }

    /// True while work for `model` is under way.
    pub(crate) fn is_running(&self, model: &ModelId) -> bool {
        self.running.lock().contains_key(model)
    }
}
