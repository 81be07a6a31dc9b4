//! Why an inference server beside this process cannot be used.

use std::time::Duration;

/// Why an inference server beside this process cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// It does not answer.
    #[error("{kind} at {target} does not answer after {waited:?}: {why}")]
    Away {
        /// Which server.
        kind: &'static str,
        /// Where.
        target: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last try ran into.
        why: String,
    },
    /// It answers, but did not become ready.
    #[error("{kind} at {target} is not ready after {waited:?}: {why}")]
    NotReady {
        /// Which server.
        kind: &'static str,
        /// Where.
        target: String,
        /// How long it was waited for.
        waited: Duration,
        /// What it said last.
        why: String,
    },
    /// It answers, but what it is asked for it does not do.
    #[error("{kind} at {target} {why}")]
    Unfit {
        /// Which server.
        kind: &'static str,
        /// Where.
        target: String,
        /// What is wrong with it and how to mend it.
        why: String,
    },
    /// The folder of models.
    #[error("model repository {path}: {why}")]
    Repository {
        /// The folder.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StartError {
    /// It was waited for in vain. `said`: its last answer was one, and not silence.
    pub(crate) fn waited(kind: &'static str, target: String, waited: Duration, why: String, said: bool) -> Self {
        if said { StartError::NotReady { kind, target, waited, why } } else { StartError::Away { kind, target, waited, why } }
    }
}
