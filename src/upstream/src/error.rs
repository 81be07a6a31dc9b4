//! What can go wrong with a call, by what is known about it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;

use crate::target::Target;

/// Why a call has no answer, or why its answer broke off.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection. Nothing was sent.
    #[error("cannot reach {target}: {why}; check that the server runs and listens there (tried again in {retry_after:?})")]
    Unreachable {
        /// The server.
        target: Target,
        /// What the attempt to connect ran into.
        why: Arc<str>,
        /// When the next call will try again; until then calls fail at once.
        retry_after: Duration,
    },
    /// The server said that it did not begin with the request, or not a byte of it left this process.
    #[error("{target} did not take the request: {why}; send it again")]
    NotProcessed {
        /// The server.
        target: Target,
        /// What the server said, or what happened.
        why: Arc<str>,
    },
    /// The connection broke after the request was sent, at least in part. Whether it ran is not known.
    #[error("the connection to {target} broke: {why}; whether the request ran is not known")]
    Lost {
        /// The server.
        target: Target,
        /// What happened to the connection.
        why: Arc<str>,
    },
    /// The server reset the call. Whether it ran is not known.
    #[error("{target} reset the call with {code}; its log should say why")]
    Reset {
        /// The server.
        target: Target,
        /// Its reason.
        code: Code,
    },
    /// The body of the request failed where it comes from; the call was cancelled at the server.
    #[error("the body of the request broke off: {0}")]
    Body(#[source] Arc<dyn Error + Send + Sync>),
}

impl CallError {
    /// Whether the request surely did not run, so that sending it again, if it is still whole, cannot run it twice.
    #[must_use]
    pub fn safe_to_send_again(&self) -> bool {
        match self {
            CallError::Unreachable { .. } | CallError::NotProcessed { .. } => true,
            CallError::Lost { .. } | CallError::Reset { .. } | CallError::Body(_) => false,
        }
    }

    /// Whether the connection broke under the call.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, CallError::Lost { .. })
    }

    /// When to send it again, where the server could not be reached.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            CallError::Unreachable { retry_after, .. } => Some(*retry_after),
            CallError::NotProcessed { .. } | CallError::Lost { .. } | CallError::Reset { .. } | CallError::Body(_) => None,
        }
    }
}

/// The reason of a reset, as HTTP/2 counts them. Prints with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// The server did not begin with the request.
    pub const REFUSED_STREAM: Code = Code(7);
    /// The server has no more use for the call.
    pub const CANCEL: Code = Code(8);

    /// Its name; `None` for a number that HTTP/2 does not know.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        usize::try_from(self.0).ok().and_then(|code| NAMES.get(code)).copied()
    }
}

impl From<Reason> for Code {
    fn from(reason: Reason) -> Self {
        Code(reason.into())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "code {}", self.0),
        }
    }
}

/// How far a call had come when its stream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The head of the answer had not come, and nothing was written to the connection since the call began.
    Unwritten,
    /// The head of the answer had not come.
    Sent,
    /// The head of the answer had come.
    Answering,
}

/// What a failed stream means for its call. `ended` is what this side knows about the end of the connection.
pub(crate) fn classify(target: &Target, error: &h2::Error, stage: Stage, ended: Option<&Arc<str>>) -> CallError {
    let target = target.clone();
    let code = error.reason().map(Code::from);
    match code {
        // Both promise that the request was not begun with (RFC 9113, 8.7). Not believed once the answer has begun.
        Some(code) if error.is_remote() && error.is_go_away() && stage != Stage::Answering => {
            CallError::NotProcessed { target, why: format!("it is closing the connection with {code}").into() }
        }
        Some(Code::REFUSED_STREAM) if error.is_remote() && error.is_reset() && stage != Stage::Answering => {
            CallError::NotProcessed { target, why: format!("it refused the call with {}", Code::REFUSED_STREAM).into() }
        }
        Some(code) if error.is_remote() && error.is_reset() => CallError::Reset { target, code },
        Some(_) | None => {
            let why = ended.cloned().unwrap_or_else(|| error.to_string().into());
            match stage {
                Stage::Unwritten => CallError::NotProcessed { target, why },
                Stage::Sent | Stage::Answering => CallError::Lost { target, why },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_did_not_run_may_be_sent_again() {
        let target: Target = "runtime:8085".parse().unwrap();
        let why: Arc<str> = "reasons".into();
        let retry_after = Duration::from_millis(50);
        for (error, again, text) in [
            (
                CallError::Unreachable { target: target.clone(), why: why.clone(), retry_after },
                true,
                "cannot reach runtime:8085: reasons; check that the server runs and listens there (tried again in 50ms)",
            ),
            (
                CallError::NotProcessed { target: target.clone(), why: why.clone() },
                true,
                "runtime:8085 did not take the request: reasons; send it again",
            ),
            (
                CallError::Lost { target: target.clone(), why },
                false,
                "the connection to runtime:8085 broke: reasons; whether the request ran is not known",
            ),
            (
                CallError::Reset { target: target.clone(), code: Code(11) },
                false,
                "runtime:8085 reset the call with ENHANCE_YOUR_CALM (11); its log should say why",
            ),
            (CallError::Body(Arc::new(std::io::Error::other("gone"))), false, "the body of the request broke off: gone"),
        ] {
            assert_eq!(error.safe_to_send_again(), again, "{error}");
            assert_eq!(error.to_string(), text);
            assert_eq!(error.retry_after().is_some(), matches!(error, CallError::Unreachable { .. }));
        }
        assert_eq!(
            (Code(0).to_string(), Code(13).to_string(), Code(14).to_string()),
            ("NO_ERROR (0)".into(), "HTTP_1_1_REQUIRED (13)".into(), "code 14".into())
        );
    }
}
