//! From an id to a guarded copy: one view, one registration, one guard.

use std::collections::HashMap;
use std::sync::Arc;

use berth_registry::{Resolved, Views};
use berth_residency::{Ended, Guard, Residency, WaitError};
use berth_telemetry::Clock;
use berth_types::{CopyReport, CopyState, Deadline, Failure, ModelId, Registration};
use futures::FutureExt as _;
use parking_lot::RwLock;

use crate::codes::{Fault, Quoted};
use crate::id::Asked;
use crate::waiting::Waiting;

/// What routing needs of the rest: names, and copies to be held.
pub trait Models: Send + Sync + 'static {
    /// Keeps a copy loaded while it lives.
    type Guard: Send + Sync + 'static;

    /// What a name or a model id stands for.
    fn resolve(&self, id: &str) -> Resolved;

    /// The registration of a model id, whatever names there are.
    fn version(&self, id: &str) -> Option<Arc<Registration>>;

    /// A guard at once, if the model is loaded here.
    fn try_acquire(&self, model: &ModelId) -> Option<Self::Guard>;

    /// A guard once the model can serve here.
    fn ensure_loaded(&self, model: &Arc<Registration>, deadline: Deadline) -> impl Future<Output = Result<Self::Guard, WaitError>> + Send;

    /// Waits until the copy takes one more request, where it serves so many at a time. At once where nobody says otherwise.
    fn turn(_guard: &mut Self::Guard) -> impl Future<Output = Result<(), WaitError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Gives the turn back before the guard; nothing where copies have no turns.
    fn end_turn(guard: &mut Self::Guard) {
        let _ = guard;
    }

    /// Completes when the copy must go although the guard lives. Never where copies never do.
    fn revoked(_guard: &Self::Guard) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// What is told how a call on this copy has ended; nothing where nobody wants to know.
    fn witness(_guard: &Self::Guard) -> Box<dyn FnOnce(Ended) + Send + Sync> {
        Box::new(|_ended| ())
    }

    /// Whether it wants to know of calls that end well, too.
    fn is_on_probation(_guard: &Self::Guard) -> bool {
        false
    }

    /// The runtime said that it does not hold a model that is thought to be loaded.
    fn suspect(&self, _model: &ModelId) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Why the last load of a model failed, while that counts and no copy serves.
    fn failure(&self, _model: &ModelId) -> Option<Arc<Failure>> {
        None
    }

    /// Every name, sorted; none where they cannot be listed.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The models of this process.
#[derive(Clone)]
pub struct Here {
    views: Views,
    residency: Residency,
    failing: Arc<RwLock<HashMap<ModelId, Arc<Failure>>>>,
}

impl Here {
    /// Follows the reports of `residency`, to know which models fail, until its owner task ends. Within a tokio runtime.
    #[must_use]
    pub fn new(views: Views, residency: Residency) -> Self {
        let failing = Arc::<RwLock<HashMap<ModelId, Arc<Failure>>>>::default();
        let (mut reports, kept) = (residency.reports(), Arc::clone(&failing));
        tokio::spawn(async move {
            while let Some(changed) = reports.next().await {
                let mut failing = kept.write();
                for report in changed {
                    match report {
                        CopyReport { model, state: CopyState::Absent, failure: Some(failure), .. } => drop(failing.insert(model, failure)),
                        CopyReport { model, .. } => drop(failing.remove(&model)),
                    }
                }
            }
        });
        Here { views, residency, failing }
    }
}

impl Models for Here {
    type Guard = Guard;

    fn resolve(&self, id: &str) -> Resolved {
        self.views.current().resolve(id)
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        self.views.current().model(id).cloned()
    }

    fn try_acquire(&self, model: &ModelId) -> Option<Guard> {
        self.residency.try_acquire(model.as_str())
    }

    async fn ensure_loaded(&self, model: &Arc<Registration>, deadline: Deadline) -> Result<Guard, WaitError> {
        self.residency.ensure_loaded(model, deadline).await
    }

    async fn turn(guard: &mut Guard) -> Result<(), WaitError> {
        guard.turn().await
    }

    fn end_turn(guard: &mut Guard) {
        guard.end_turn();
    }

    async fn revoked(guard: &Guard) {
        guard.revoked().await;
    }

    fn witness(guard: &Guard) -> Box<dyn FnOnce(Ended) + Send + Sync> {
        Box::new(guard.witness())
    }

    fn is_on_probation(guard: &Guard) -> bool {
        guard.is_on_probation()
    }

    async fn suspect(&self, model: &ModelId) {
        self.residency.suspect(model).await;
    }

    fn failure(&self, model: &ModelId) -> Option<Arc<Failure>> {
        self.failing.read().get(model).cloned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.views.current().names().map(|(name, _)| name.to_string()).collect();
        names.sort_unstable();
        names
    }
}

/// The registration that `asked` stands for.
///
/// # Errors
/// Unknown, not known yet, or nothing can serve it.
pub fn registration(models: &impl Models, asked: &Asked<'_>) -> Result<Arc<Registration>, Fault> {
    let quoted = || Quoted::new(asked.as_str());
    if let Asked::Version(id) = asked {
        return match models.version(id) {
            Some(registration) => Ok(registration),
            None => Err(match models.resolve(id) {
                Resolved::NotReady => Fault::NotReady(quoted()),
                Resolved::Model(_) | Resolved::Unservable(_) => Fault::NameAsModelId(quoted()),
                Resolved::Unknown => Fault::UnknownModel(quoted()),
            }),
        };
    }
    match models.resolve(asked.as_str()) {
        Resolved::Model(registration) => Ok(registration),
        Resolved::Unservable(failure) => Err(Fault::Unservable(failure)),
        Resolved::Unknown => Err(Fault::UnknownModel(quoted())),
        Resolved::NotReady => Err(Fault::NotReady(quoted())),
    }
}

/// A guarded copy of `registration` that takes this request, loaded first where it must be. `held`: bytes that the caller
/// has in memory while it waits, asked for only if it does.
///
/// # Errors
/// [`Fault::Wait`], [`Fault::NoRoomToWait`].
pub(crate) async fn acquire<M: Models>(
    models: &M,
    registration: &Arc<Registration>,
    waiting: &Waiting,
    held: impl FnOnce() -> u64,
    clock: &Clock,
    deadline: Deadline,
) -> Result<M::Guard, Fault> {
    let model = &registration.id;
    let mut at_once = models.try_acquire(model);
    // Nearly always it is loaded and takes this request: no timer for what takes no time.
    let turn = at_once.as_mut().and_then(|guard| M::turn(guard).now_or_never());
    let acquired = match (at_once, turn) {
        (Some(guard), Some(turn)) => turn.map(|()| guard),
        (guard, _) => {
            let _place = waiting.place(model, held())?;
            // The wait has the same deadline inside; this one holds even if the other side forgets it.
            let acquired = async {
                let mut guard = match guard {
                    Some(guard) => guard,
                    None => models.ensure_loaded(registration, deadline).await?,
                };
                M::turn(&mut guard).await.map(|()| guard)
            };
            Box::pin(clock.until(deadline, acquired)).await.unwrap_or(Err(WaitError::Deadline))
        }
    };
    acquired.map_err(|error| Fault::Wait { model: Quoted::new(model.as_str()), error })
}
