//! What a caller that waits for a model can run into.

use std::sync::Arc;

use berth_types::{Failure, Refusal};

/// Why a caller got no guard. Only [`WaitError::Failed`] says something about the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// This caller's clock ran out; the load goes on.
    #[error("the deadline passed while the model was loading")]
    Deadline,
    /// The agent is shutting down.
    #[error("shutting down")]
    ShuttingDown,
    /// The registration went away while the caller waited: resolve the name again.
    #[error("the model was removed while it was loading")]
    Retired,
    /// Memory was refused, with the numbers.
    #[error(transparent)]
    Refused(Refusal),
    /// Too many callers wait already.
    #[error("{waiting} callers wait already: try again")]
    TooManyWaiting {
        /// How many.
        waiting: usize,
    },
    /// The load failed.
    #[error("{0}")]
    Failed(Arc<Failure>),
}
