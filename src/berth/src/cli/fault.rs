//! What a command can end with, in the words that its user reads on standard error.
//!
//! The beginnings are kubectl's (`Error from server (NotFound): ...`, `error: ...`), since people and scripts look for them.

use std::error::Error;
use std::io;
use std::time::Duration;

use berth_registry::Kind;
use serde_json::Value;

use super::output::plain;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Nobody listens there.
    #[error("The connection to the server {server} was refused - is \"berth serve\" running? --server or BERTH_SERVER names another server")]
    Refused {
        /// `host:port`.
        server: String,
    },
    /// There is no way there, or it broke.
    #[error("Unable to connect to the server {server}: {why}")]
    Unreachable {
        /// `host:port`.
        server: String,
        /// What the system says.
        why: String,
    },
    /// No answer in time.
    #[error("Unable to connect to the server {server}: no answer within {}", humantime::format_duration(*.after))]
    Silent {
        /// `host:port`.
        server: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server refused.
    #[error("Error from server ({reason}): {message}")]
    Status {
        /// HTTP status.
        code: u16,
        /// One word of Kubernetes, such as `NotFound`.
        reason: String,
        /// The server's message.
        message: String,
    },
    /// What was asked for cannot be done, or did not come true.
    #[error("error: {0}")]
    Local(String),
    /// Several, each on a line of its own.
    #[error("{}", .0.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Fault>),
    /// Whoever read our output has gone. That is how `| head` ends, and nothing to complain about.
    #[error("nobody reads the output any more")]
    PipeClosed,
    /// The output cannot be written.
    #[error("error: cannot write the output: {0}")]
    Output(io::Error),
}

impl Fault {
    /// A fault of our own.
    pub(crate) fn local(message: impl Into<String>) -> Self {
        Fault::Local(message.into())
    }

    /// A resource that is not there, in the server's words.
    pub(crate) fn not_found(kind: Kind, name: &str) -> Self {
        Fault::Status { code: 404, reason: "NotFound".to_owned(), message: format!("{}.{} {name:?} not found", kind.plural(), Kind::GROUP) }
    }

    /// The refusal in an answer: the `Status` object of Kubernetes, or whatever else came.
    pub(crate) fn of_answer(server: &str, code: http::StatusCode, body: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(body).unwrap_or_default();
        if document["kind"] == "Status" {
            return Fault::of_status(&document);
        }
        let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
        let reason = code.canonical_reason().unwrap_or("Unknown").replace(' ', "");
        let told = if text.is_empty() { String::new() } else { format!(": {}", plain(&text)) };
        Fault::Status { code: code.as_u16(), reason, message: format!("{server} does not answer as the resource API does{told}") }
    }

    /// A `Status` object that tells of a failure.
    pub(crate) fn of_status(document: &Value) -> Self {
        let text = |member: &str| document[member].as_str().filter(|text| !text.is_empty()).map(plain);
        Fault::Status {
            code: document["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500),
            reason: text("reason").unwrap_or_else(|| "Unknown".to_owned()),
            message: text("message").unwrap_or_else(|| "no message".to_owned()),
        }
    }

    /// What a connection ended with.
    pub(crate) fn of_connection(server: &str, fault: &(dyn Error + 'static)) -> Self {
        let server = server.to_owned();
        let chain: Vec<&(dyn Error + 'static)> = std::iter::successors(Some(fault), |&fault| fault.source()).collect();
        let refused =
            |fault: &&(dyn Error + 'static)| fault.downcast_ref::<io::Error>().is_some_and(|fault| fault.kind() == io::ErrorKind::ConnectionRefused);
        if chain.iter().any(refused) {
            return Fault::Refused { server };
        }
        let why = chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        Fault::Unreachable { server, why: plain(&why) }
    }

    /// The same refusal, told as part of what was tried.
    pub(crate) fn when(self, trying: &str) -> Self {
        match self {
            Fault::Status { code, reason, message } => Fault::Status { code, reason, message: format!("error when {trying}: {message}") },
            other => other,
        }
    }

    /// The same refusal, followed by what to do about it.
    pub(crate) fn with_advice(self, advice: &str) -> Self {
        match self {
            Fault::Status { code, reason, message } => Fault::Status { code, reason, message: format!("{message}: {advice}") },
            other => other,
        }
    }

    /// The HTTP status, where a server answered.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Fault::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True when the same request may get through later: nobody answered, or the server has its hands full.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Fault::Refused { .. } | Fault::Unreachable { .. } | Fault::Silent { .. } => true,
            Fault::Status { code, .. } => matches!(code, 429 | 500..=599),
            Fault::Local(_) | Fault::Several(_) | Fault::PipeClosed | Fault::Output(_) => false,
        }
    }

    /// True when nothing else that this command could do would get anywhere.
    pub(crate) fn ends_all(&self) -> bool {
        match self {
            Fault::Refused { .. } | Fault::Unreachable { .. } | Fault::Silent { .. } | Fault::PipeClosed | Fault::Output(_) => true,
            Fault::Status { code, .. } => *code == 401,
            Fault::Local(_) | Fault::Several(_) => false,
        }
    }

    /// Nothing wrong, one fault, or all of them.
    ///
    /// # Errors
    /// When there is any.
    pub(crate) fn all(mut faults: Vec<Fault>) -> Result<(), Fault> {
        match faults.len() {
            0 => Ok(()),
            1 => faults.pop().map_or(Ok(()), Err),
            _ => Err(Fault::Several(faults)),
        }
    }
}

impl From<io::Error> for Fault {
    /// What writing the output ran into.
    fn from(fault: io::Error) -> Self {
        if fault.kind() == io::ErrorKind::BrokenPipe { Fault::PipeClosed } else { Fault::Output(fault) }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_end_is_told_in_the_words_that_scripts_look_for() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let gone = json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "predictors.serving.kserve.io \"x\" not found" });
        let answer = |code, body: &[u8]| Fault::of_answer("h:1", code, body);
        for (fault, text) in [
            (
                Fault::of_connection("127.0.0.1:8088", &refused),
                "The connection to the server 127.0.0.1:8088 was refused - is \"berth serve\" running? --server or BERTH_SERVER names another server",
            ),
            (Fault::of_connection("h:1", &io::Error::other("no route")), "Unable to connect to the server h:1: no route"),
            (Fault::Silent { server: "h:1".to_owned(), after: Duration::from_secs(30) }, "Unable to connect to the server h:1: no answer within 30s"),
            (
                answer(StatusCode::NOT_FOUND, gone.to_string().as_bytes()),
                "Error from server (NotFound): predictors.serving.kserve.io \"x\" not found",
            ),
            (Fault::not_found(Kind::Predictor, "x"), "Error from server (NotFound): predictors.serving.kserve.io \"x\" not found"),
            (
                answer(StatusCode::BAD_GATEWAY, b"<h1>\x1b[1moh"),
                "Error from server (BadGateway): h:1 does not answer as the resource API does: <h1>^[[1moh",
            ),
            (answer(StatusCode::NOT_FOUND, b""), "Error from server (NotFound): h:1 does not answer as the resource API does"),
            (
                Fault::not_found(Kind::Predictor, "x").when("applying \"f.yaml\""),
                "Error from server (NotFound): error when applying \"f.yaml\": predictors.serving.kserve.io \"x\" not found",
            ),
            (Fault::Several(vec![Fault::local("a"), Fault::local("b")]), "error: a\nerror: b"),
        ] {
            assert_eq!(fault.to_string(), text);
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        assert!(matches!(Fault::from(io::Error::from(io::ErrorKind::BrokenPipe)), Fault::PipeClosed));
        assert!(matches!(Fault::from(io::Error::from(io::ErrorKind::StorageFull)), Fault::Output(_)));
    }
}
