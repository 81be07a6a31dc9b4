//! The one table from what a caller ran into to gRPC code, HTTP status and retry hint.
//!
//! | what | gRPC | HTTP | retry |
//! |---|---|---|---|
//! | the request is malformed or does not fit the model | INVALID_ARGUMENT | 400 | no |
//! | unknown model, version or path | NOT_FOUND | 404 | no |
//! | resources are still being read; shutting down; lost copy; storage or runtime away | UNAVAILABLE | 503 | yes |
//! | no room now, for the model or for the request; too many callers wait or hold too much; copy busy | RESOURCE_EXHAUSTED | 429 | yes |
//! | bad model, invalid resource, no runtime for it, larger than the whole budget | FAILED_PRECONDITION | 400 | no |
//! | message over the limit, or decoded larger than the budget of all requests | RESOURCE_EXHAUSTED | 413 | no |
//! | what a call would make exists as something else | ALREADY_EXISTS | 409 | no |
//! | a call cannot be carried out as things stand | FAILED_PRECONDITION | 400 | no |
//! | a call could not be kept; the controller is away | UNAVAILABLE | 503 | yes |
//! | a call that changes something without the token | UNAUTHENTICATED | 401 | no |
//! | deadline passed | DEADLINE_EXCEEDED | 504 | no |
//! | unknown gRPC method, compressed body | UNIMPLEMENTED | 501, 405, 415 | no |
//! | the model failed while computing | UNKNOWN | 500 | no |
//! | the client went away, or does not read its answer | CANCELLED | 499 | - |
//! | a bug here or in a runtime | INTERNAL | 500 | no |
//!
//! "Larger than the whole budget" is FAILED_PRECONDITION and not RESOURCE_EXHAUSTED: nothing gets better by waiting,
//! somebody has to change the budget or the model first, and RESOURCE_EXHAUSTED makes clients try again.

use std::sync::Arc;
use std::time::Duration;

use berth_adapters::InferError;
use berth_plan::managed::Refused;
use berth_proto::rpc;
use berth_residency::WaitError;
use berth_types::{ByteSize, Failure, Reason, Refusal, Retry};
use http::StatusCode;
use prost::Message as _;
use tonic::Code;

/// Everything that a caller can run into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The request itself is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// Neither a name nor a model id that is registered.
    #[error("model {0} is not registered")]
    UnknownModel(Quoted),
    /// A model id header that holds a name.
    #[error("model id {0} is not registered, it is the name of a model: send it as mm-vmodel-id or in the message")]
    NameAsModelId(Quoted),
    /// The model has no such version.
    #[error("model {model} has no version {version}, it has {}", if .known.is_empty() { "none" } else { .known.as_str() })]
    UnknownVersion {
        /// As asked.
        model: Quoted,
        /// As asked.
        version: Quoted,
        /// What there is, separated by commas.
        known: String,
    },
    /// Resources are still being read: an unknown id may become known.
    #[error("model {0} is not known yet: resources are still being read, or the controller cannot be asked; try again")]
    NotReady(Quoted),
    /// The server as a whole takes no requests, and why.
    #[error("not ready: {0}")]
    ServerNotReady(String),
    /// The name is known and nothing can serve it.
    #[error("model {model} cannot be served: {failure}", model = .0.model, failure = .0)]
    Unservable(Arc<Failure>),
    /// What waiting for a copy ran into.
    #[error("model {model}: {error}")]
    Wait {
        /// Which model.
        model: Quoted,
        /// What happened.
        error: WaitError,
    },
    /// The copy had to go while it computed: a drain ran past its cap.
    #[error("model {0}: its copy is being unloaded: try again")]
    Revoked(Quoted),
    /// No connection to the runtime can be had: nothing was sent.
    #[error("model {model}: {why}")]
    RuntimeAway {
        /// Which model.
        model: Quoted,
        /// What the connection ran into.
        why: String,
        /// When a connection is tried again.
        retry_after: Duration,
    },
    /// The runtime broke off: whether it had computed is not known.
    #[error("model {model}: {why}: try again")]
    RuntimeLost {
        /// Which model.
        model: Quoted,
        /// What happened.
        why: String,
    },
    /// What the runtime ran into.
    #[error("model {model}: {error}")]
    Infer {
        /// Which model.
        model: Quoted,
        /// What happened.
        error: InferError,
    },
    /// The request is over the limit.
    #[error("{}", too_large(*.size, *.limit))]
    TooLarge {
        /// Its size where it was announced; `None` when it was still growing.
        size: Option<u64>,
        /// The limit.
        limit: ByteSize,
    },
    /// The requests that are here leave no room for this one.
    #[error("requests hold {taken} of {budget}, and this one needs {more} more: try again")]
    NoBuffer {
        /// What this one asked for beyond what it holds.
        more: ByteSize,
        /// What all of them hold, this one included.
        taken: ByteSize,
        /// What all of them may hold.
        budget: ByteSize,
    },
    /// Callers who wait for models hold as much as they may.
    #[error("model {model}: callers who wait {} hold {held} of {bound}, and this one brings {more}: try again", if *.all { "for models" } else { "for it" })]
    NoRoomToWait {
        /// Which model.
        model: Quoted,
        /// The bound is that of all models; else of this one.
        all: bool,
        /// What this one holds.
        more: ByteSize,
        /// What the others hold.
        held: ByteSize,
        /// What they may hold.
        bound: ByteSize,
    },
    /// The request alone, with what it becomes when it is decoded, is more than all requests may hold.
    #[error("the request needs {need} of memory when it is decoded, all requests together have {budget}")]
    TooHeavy {
        /// What it needs.
        need: ByteSize,
        /// What all requests may hold.
        budget: ByteSize,
    },
    /// The deadline passed before the whole request had arrived.
    #[error("the deadline passed before the whole request had arrived")]
    SlowRequest,
    /// A gRPC method that is not served, or a way of sending that is not understood.
    #[error("{0}")]
    Unimplemented(String),
    /// A path that the REST port does not have.
    #[error("no such path: {0}")]
    UnknownPath(Quoted),
    /// A path that has other HTTP methods.
    #[error("{method} is not allowed here, {allow} is")]
    WrongMethod {
        /// As sent.
        method: String,
        /// What the path takes, as the `Allow` header has it.
        allow: &'static str,
    },
    /// The body is encoded in a way that is not understood.
    #[error("content-encoding {0} is not supported: send the body as gzip, as deflate, or as it is")]
    Encoded(Quoted),
    /// A call that manages models or names was refused.
    #[error("{0}")]
    Managed(Refused),
    /// The controller, which carries calls out for this agent, cannot be reached, or it broke one off.
    #[error("controller: {why}")]
    Controller {
        /// Where it is, and what happened.
        why: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// A call that changes something came without the token.
    #[error("this call needs the token of the API: send it as authorization: Bearer TOKEN")]
    Unauthenticated,
    /// The client stopped sending.
    #[error("the request ended early: {0}")]
    Broken(String),
    /// The client does not read what it is sent.
    #[error("model {0}: its answer was given up, because it was not read for too long")]
    Unread(Quoted),
    /// A bug.
    #[error("{0}")]
    Internal(String),
}

fn too_large(size: Option<u64>, limit: ByteSize) -> String {
    match size {
        Some(size) => format!("the request has {size} bytes, the limit is {} ({limit})", limit.0),
        None => format!("the request is larger than the limit of {} bytes ({limit})", limit.0),
    }
}

/// A text that a client sent, quoted and cut to 120 characters, so that it can stand in a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(Box<str>);

impl Quoted {
    /// Quotes `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        const LONGEST: usize = 120;
        let cut: String = text.chars().take(LONGEST).collect();
        let dots = if cut.len() < text.len() { "..." } else { "" };
        Quoted(format!("{cut:?}{dots}").into())
    }
}

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client is told besides the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The gRPC code; also `code` in REST errors.
    pub code: Code,
    /// The HTTP status on the REST port.
    pub http: StatusCode,
    /// When trying again may help: `RetryInfo` and `Retry-After`. `None`: it does not.
    pub retry_after: Option<Duration>,
}

/// Something that ends by itself within about a second: an eviction, a queue, a hand-over.
const SOON: Duration = Duration::from_secs(1);
/// Something outside has to come back: a store, a runtime.
const LATER: Duration = Duration::from_secs(10);

impl Verdict {
    fn last(code: Code) -> Self {
        Verdict { code, http: http_status(code), retry_after: None }
    }

    fn retry(code: Code, after: Duration) -> Self {
        Verdict { code, http: http_status(code), retry_after: Some(after) }
    }

    fn with_http(code: Code, http: StatusCode) -> Self {
        Verdict { code, http, retry_after: None }
    }
}

impl Fault {
    /// The table.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Fault::BadRequest(_) => Verdict::last(Code::InvalidArgument),
            Fault::UnknownModel(_) | Fault::NameAsModelId(_) | Fault::UnknownVersion { .. } | Fault::UnknownPath(_) => Verdict::last(Code::NotFound),
            Fault::NotReady(_) | Fault::ServerNotReady(_) | Fault::Revoked(_) | Fault::RuntimeLost { .. } => Verdict::retry(Code::Unavailable, SOON),
            Fault::RuntimeAway { retry_after, .. } | Fault::Controller { retry_after, .. } => Verdict::retry(Code::Unavailable, *retry_after),
            Fault::Unservable(failure) => of_failure(failure),
            Fault::Wait { error, .. } => match error {
                WaitError::Deadline => Verdict::last(Code::DeadlineExceeded),
                WaitError::ShuttingDown | WaitError::Retired => Verdict::retry(Code::Unavailable, SOON),
                WaitError::Refused(Refusal::NeverFits { .. }) => Verdict::last(Code::FailedPrecondition),
                WaitError::Refused(Refusal::NoRoomNow { .. }) | WaitError::TooManyWaiting { .. } => Verdict::retry(Code::ResourceExhausted, SOON),
                WaitError::Failed(failure) => of_failure(failure),
            },
            Fault::Infer { error, .. } => match error {
                InferError::NotLoaded(_) => Verdict::retry(Code::Unavailable, SOON),
                InferError::BadRequest(_) => Verdict::last(Code::InvalidArgument),
                InferError::DeadlineExceeded => Verdict::last(Code::DeadlineExceeded),
                InferError::Busy(_) => Verdict::retry(Code::ResourceExhausted, SOON),
                InferError::Away(_) => Verdict::retry(Code::Unavailable, SOON),
                InferError::Refused { code, .. } => Verdict::last(Code::from_i32(*code)),
                InferError::Failed(_) => Verdict::last(Code::Unknown),
            },
            Fault::NoBuffer { .. } | Fault::NoRoomToWait { .. } => Verdict::retry(Code::ResourceExhausted, SOON),
            Fault::TooLarge { .. } | Fault::TooHeavy { .. } => Verdict::with_http(Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE),
            Fault::SlowRequest => Verdict::last(Code::DeadlineExceeded),
            Fault::Unimplemented(_) => Verdict::last(Code::Unimplemented),
            Fault::WrongMethod { .. } => Verdict::with_http(Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED),
            Fault::Encoded(_) => Verdict::with_http(Code::Unimplemented, StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Fault::Managed(refused) => match refused {
                Refused::Invalid(_) => Verdict::last(Code::InvalidArgument),
                Refused::NotFound(_) => Verdict::last(Code::NotFound),
                Refused::Exists(_) => Verdict::last(Code::AlreadyExists),
                Refused::Blocked(_) => Verdict::last(Code::FailedPrecondition),
                Refused::NotReady(_) => Verdict::retry(Code::Unavailable, SOON),
                Refused::Late => Verdict::last(Code::DeadlineExceeded),
                Refused::Unkept(_) => Verdict::retry(Code::Unavailable, LATER),
            },
            Fault::Unauthenticated => Verdict::last(Code::Unauthenticated),
            Fault::Broken(_) | Fault::Unread(_) => Verdict::last(Code::Cancelled),
            Fault::Internal(_) => Verdict::last(Code::Internal),
        }
    }

    /// As a gRPC status, with `RetryInfo` where trying again may help.
    #[must_use]
    pub fn to_status(&self) -> tonic::Status {
        let Verdict { code, retry_after, .. } = self.verdict();
        let message = cut(self.to_string());
        let Some(delay) = retry_after else { return tonic::Status::new(code, message) };
        let info = rpc::RetryInfo { retry_delay: prost_types::Duration::try_from(delay).ok() };
        let details = rpc::Status {
            code: code as i32,
            message: message.clone(),
            details: vec![prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value: info.encode_to_vec() }],
        };
        tonic::Status::with_details(code, message, details.encode_to_vec().into())
    }
}

/// Clients take 8 KiB of headers by default, and the text is in them twice where details are sent.
fn cut(mut message: String) -> String {
    const LONGEST: usize = 2048;
    if message.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// A failure of the model or of its resource.
fn of_failure(failure: &Failure) -> Verdict {
    match (failure.reason, failure.retry) {
        (Reason::RuntimeUnhealthy, Retry::Later | Retry::AfterChange)
        | (Reason::ModelLoadFailed | Reason::NoSupportingRuntime | Reason::RuntimeNotRecognized | Reason::InvalidPredictorSpec, Retry::Later) => {
            Verdict::retry(Code::Unavailable, LATER)
        }
        (Reason::ModelLoadFailed | Reason::NoSupportingRuntime | Reason::RuntimeNotRecognized | Reason::InvalidPredictorSpec, Retry::AfterChange) => {
            Verdict::last(Code::FailedPrecondition)
        }
    }
}

/// The HTTP status of a gRPC code, as gRPC gateways have it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // Nobody standardised it and every gateway uses it: the client is gone, the status is for logs only.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The name of a code, as gRPC spells it: the `code` label of metrics.
#[must_use]
pub const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use berth_types::{ModelId, Pool};

    use super::*;
    use crate::scripted::failure;

    /// Every fault once, with what the client is told.
    fn table() -> Vec<(Fault, Code, u16, Option<u64>)> {
        use Code::{
            Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, ResourceExhausted, Unavailable, Unimplemented,
            Unknown,
        };
        let q = Quoted::new;
        let size = ByteSize(1);
        let wait = |error| Fault::Wait { model: q("m"), error };
        let infer = |error| Fault::Infer { model: q("m"), error };
        let never = Refusal::NeverFits { pool: Pool::Host, need: size, budget: size };
        let now = Refusal::NoRoomNow { pool: Pool::Host, need: size, free: size, evictable: size, budget: size };
        let mut table = vec![
            (Fault::BadRequest("x".into()), InvalidArgument, 400, None),
            (Fault::UnknownModel(q("m")), NotFound, 404, None),
            (Fault::NameAsModelId(q("m")), NotFound, 404, None),
            (Fault::UnknownVersion { model: q("m"), version: q("7"), known: "1".into() }, NotFound, 404, None),
            (Fault::UnknownPath(q("/")), NotFound, 404, None),
            (Fault::NotReady(q("m")), Unavailable, 503, Some(1)),
            (Fault::ServerNotReady("x".into()), Unavailable, 503, Some(1)),
            (Fault::Revoked(q("m")), Unavailable, 503, Some(1)),
            (Fault::RuntimeAway { model: q("m"), why: "x".into(), retry_after: Duration::from_secs(2) }, Unavailable, 503, Some(2)),
            (Fault::RuntimeLost { model: q("m"), why: "x".into() }, Unavailable, 503, Some(1)),
            (wait(WaitError::Deadline), DeadlineExceeded, 504, None),
            (wait(WaitError::ShuttingDown), Unavailable, 503, Some(1)),
            (wait(WaitError::Retired), Unavailable, 503, Some(1)),
            (wait(WaitError::Refused(never)), FailedPrecondition, 400, None),
            (wait(WaitError::Refused(now)), ResourceExhausted, 429, Some(1)),
            (wait(WaitError::TooManyWaiting { waiting: 9 }), ResourceExhausted, 429, Some(1)),
            (infer(InferError::NotLoaded(ModelId::new("m").unwrap())), Unavailable, 503, Some(1)),
            (infer(InferError::BadRequest("x".into())), InvalidArgument, 400, None),
            (infer(InferError::DeadlineExceeded), DeadlineExceeded, 504, None),
            (infer(InferError::Busy("x".into())), ResourceExhausted, 429, Some(1)),
            (infer(InferError::Failed("x".into())), Unknown, 500, None),
            (infer(InferError::Away("x".into())), Unavailable, 503, Some(1)),
            (infer(InferError::Refused { code: 9, message: "x".into() }), FailedPrecondition, 400, None),
            (Fault::TooLarge { size: Some(2), limit: size }, ResourceExhausted, 413, None),
            (Fault::NoBuffer { more: size, taken: size, budget: size }, ResourceExhausted, 429, Some(1)),
            (Fault::NoRoomToWait { model: q("m"), all: true, more: size, held: size, bound: size }, ResourceExhausted, 429, Some(1)),
            (Fault::TooHeavy { need: size, budget: size }, ResourceExhausted, 413, None),
            (Fault::SlowRequest, DeadlineExceeded, 504, None),
            (Fault::Unimplemented("x".into()), Unimplemented, 501, None),
            (Fault::WrongMethod { method: "PUT".into(), allow: "GET" }, Unimplemented, 405, None),
            (Fault::Encoded(q("gzip")), Unimplemented, 415, None),
            (Fault::Managed(Refused::Invalid("x".into())), InvalidArgument, 400, None),
            (Fault::Managed(Refused::NotFound("x".into())), NotFound, 404, None),
            (Fault::Managed(Refused::Exists("x".into())), Code::AlreadyExists, 409, None),
            (Fault::Managed(Refused::Blocked("x".into())), FailedPrecondition, 400, None),
            (Fault::Managed(Refused::NotReady("x".into())), Unavailable, 503, Some(1)),
            (Fault::Managed(Refused::Unkept("x".into())), Unavailable, 503, Some(10)),
            (Fault::Managed(Refused::Late), DeadlineExceeded, 504, None),
            (Fault::Controller { why: "x".into(), retry_after: Duration::from_secs(3) }, Unavailable, 503, Some(3)),
            (Fault::Unauthenticated, Code::Unauthenticated, 401, None),
            (Fault::Broken("x".into()), Cancelled, 499, None),
            (Fault::Internal("x".into()), Internal, 500, None),
        ];
        for reason in [
            Reason::ModelLoadFailed,
            Reason::NoSupportingRuntime,
            Reason::RuntimeNotRecognized,
            Reason::InvalidPredictorSpec,
            Reason::RuntimeUnhealthy,
        ] {
            let lasting = if reason == Reason::RuntimeUnhealthy { (Unavailable, 503, Some(10)) } else { (FailedPrecondition, 400, None) };
            for (retry, (code, http, after)) in [(Retry::Later, (Unavailable, 503, Some(10))), (Retry::AfterChange, lasting)] {
                table.push((Fault::Unservable(failure(reason, retry)), code, http, after));
                table.push((wait(WaitError::Failed(failure(reason, retry))), code, http, after));
            }
        }
        table
    }

    #[test]
    fn every_fault_has_the_code_the_status_and_the_hint_of_the_table() {
        for (fault, code, http, after) in table() {
            let Verdict { code: got, http: status, retry_after } = fault.verdict();
            assert_eq!((got, status.as_u16(), retry_after.map(|after| after.as_secs())), (code, http, after), "{fault}");
        }
    }

    #[test]
    fn a_status_carries_retry_info_exactly_when_trying_again_may_help() {
        for (fault, code, _, after) in table() {
            let status = fault.to_status();
            assert_eq!(status.code(), code);
            assert_eq!(status.message(), fault.to_string());
            let Some(after) = after else {
                assert!(status.details().is_empty(), "{fault}");
                continue;
            };
            let details = rpc::Status::decode(status.details()).unwrap();
            assert_eq!((details.code, details.message.as_str()), (code as i32, status.message()));
            assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
            let delay = rpc::RetryInfo::decode(details.details[0].value.as_slice()).unwrap().retry_delay.unwrap();
            assert_eq!((delay.seconds, delay.nanos), (i64::try_from(after).unwrap(), 0));
        }
    }

    #[test]
    fn what_a_client_may_try_again_says_so_in_its_code_and_internal_is_for_bugs_only() {
        for (fault, code, _, after) in table() {
            let says_again =
                matches!(code, Code::Unavailable | Code::ResourceExhausted) && !matches!(fault, Fault::TooLarge { .. } | Fault::TooHeavy { .. });
            assert_eq!(after.is_some(), says_again, "{fault}");
            assert_eq!(code == Code::Internal, matches!(fault, Fault::Internal(_)), "{fault}");
        }
    }

    #[test]
    fn texts_name_the_model_and_are_cut_before_they_burst_the_headers() {
        let bad = Fault::Unservable(failure(Reason::ModelLoadFailed, Retry::AfterChange));
        assert_eq!(bad.to_string(), "model bad__isvc-0000000000 cannot be served: ModelLoadFailed at pod-1 (load): not a model");
        assert_eq!(Fault::UnknownModel(Quoted::new("a\"\n")).to_string(), "model \"a\\\"\\n\" is not registered");
        let long = Fault::UnknownModel(Quoted::new(&"ü".repeat(5000))).to_string();
        assert!(long.chars().count() < 160 && long.contains("\"..."), "{long}");
        let status = Fault::BadRequest("ü".repeat(5000)).to_status();
        assert!(status.message().len() <= 2051 && status.message().ends_with("..."));
        let large = Fault::TooLarge { size: Some(16_777_217), limit: ByteSize::mib(16) };
        assert_eq!(large.to_string(), "the request has 16777217 bytes, the limit is 16777216 (16 MiB)");
    }
}
