//! Errors as Kubernetes tells them: a `Status` object and its HTTP code.

use berth_registry::{Kind, ObjectKey, StoreError, Uid};
use http::StatusCode;
use serde_json::{Value, json};

/// Why a request was not answered as asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: StatusCode,
    reason: &'static str,
    pub(crate) message: String,
    details: Option<Value>,
    /// The header that belongs to the code, where it has one.
    pub(crate) header: Option<(&'static str, &'static str)>,
}

/// One fault of a document, with the field that it is about.
#[derive(Debug)]
pub(crate) struct Cause {
    reason: &'static str,
    field: String,
    message: String,
}

impl Cause {
    pub(crate) fn required(field: impl Into<String>, message: &str) -> Self {
        Cause { reason: "FieldValueRequired", field: field.into(), message: format!("Required value: {message}") }
    }

    /// `value` is what the user wrote, `fault` what is wrong with it.
    pub(crate) fn invalid(field: impl Into<String>, value: &str, fault: &str) -> Self {
        let value: String = value.chars().take(80).collect();
        Cause { reason: "FieldValueInvalid", field: field.into(), message: format!("Invalid value: {value:?}: {fault}") }
    }

    pub(crate) fn of_type(field: impl Into<String>, value: &Value, expected: &str) -> Self {
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        Cause { reason: "FieldValueTypeInvalid", field: field.into(), message: format!("Invalid value: must be {expected}, not {is}") }
    }

    pub(crate) fn too_long(field: impl Into<String>, message: &str) -> Self {
        Cause { reason: "FieldValueTooLong", field: field.into(), message: format!("Too long: {message}") }
    }
}

fn named(key: &ObjectKey) -> String {
    format!("{}.{} {:?}", key.kind.plural(), Kind::GROUP, key.name.as_str())
}

fn details(key: &ObjectKey) -> Value {
    json!({ "name": key.name.as_str(), "group": Kind::GROUP, "kind": key.kind.plural() })
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Failure { code, reason, message: message.into(), details: None, header: None }
    }

    fn about(key: &ObjectKey, code: StatusCode, reason: &'static str, message: String) -> Self {
        Failure { details: Some(details(key)), ..Failure::new(code, reason, message) }
    }

    pub(crate) fn not_found(key: &ObjectKey) -> Self {
        Failure::about(key, StatusCode::NOT_FOUND, "NotFound", format!("{} not found", named(key)))
    }

    pub(crate) fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Failure { details: Some(json!({})), ..Failure::new(StatusCode::NOT_FOUND, "NotFound", message) }
    }

    pub(crate) fn led_elsewhere(controller: &str) -> Self {
        let message = format!("this agent has no resources of its own: ask the resource API of its controller, {controller}");
        Failure::new(StatusCode::MISDIRECTED_REQUEST, "LedElsewhere", message)
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(crate) fn without_token() -> Self {
        Failure::unauthorized("this server wants a token: send it as Authorization: Bearer TOKEN")
    }

    pub(crate) fn wrong_token() -> Self {
        Failure::unauthorized("this is not the token of this server: it may have been replaced")
    }

    fn unauthorized(message: &str) -> Self {
        Failure { header: Some(("www-authenticate", "Bearer")), ..Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized", message) }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// Nobody may change this resource.
    pub(crate) fn untouchable(key: &ObjectKey, why: &str) -> Self {
        Failure::about(key, StatusCode::FORBIDDEN, "Forbidden", format!("{} is forbidden: {why}", named(key)))
    }

    pub(crate) fn method_not_allowed(allow: &'static str, message: impl Into<String>) -> Self {
        Failure { header: Some(("allow", allow)), ..Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message) }
    }

    pub(crate) fn already_exists(key: &ObjectKey, whence: &str) -> Self {
        Failure::about(key, StatusCode::CONFLICT, "AlreadyExists", format!("{} already exists{whence}", named(key)))
    }

    pub(crate) fn conflict(key: &ObjectKey, why: &str) -> Self {
        Failure::about(key, StatusCode::CONFLICT, "Conflict", format!("operation cannot be fulfilled on {}: {why}", named(key)))
    }

    /// Somebody else changed the object first.
    pub(crate) fn modified(key: &ObjectKey, sent: &str, present: u64) -> Self {
        let sent: String = sent.chars().take(40).collect();
        let why = format!("the object has been modified (sent was version {sent}, it is at {present}): read it again and apply your changes to that");
        Failure::conflict(key, &why)
    }

    pub(crate) fn expired(message: String) -> Self {
        Failure::new(StatusCode::GONE, "Expired", message)
    }

    pub(crate) fn too_large(message: String) -> Self {
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub(crate) fn unsupported_media_type(message: String) -> Self {
        Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(crate) fn timeout(message: &str) -> Self {
        Failure::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    }

    pub(crate) fn too_many_writes() -> Self {
        let message = "too many writes at once: try again in a second";
        Failure { header: Some(("retry-after", "1")), details: Some(json!({ "retryAfterSeconds": 1 })), ..Failure::too_many(message) }
    }

    pub(crate) fn too_many_watches(allowed: usize) -> Self {
        let message = format!("{allowed} watches are open already, as many as there may be: end some, or try again in 5 seconds");
        Failure { header: Some(("retry-after", "5")), details: Some(json!({ "retryAfterSeconds": 5 })), ..Failure::too_many(message) }
    }

    fn too_many(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    /// The answer cannot be written in any form that the client takes.
    pub(crate) fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Failure::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// A document that cannot be a resource; all its faults together.
    pub(crate) fn invalid(kind: Kind, name: &str, causes: Vec<Cause>) -> Self {
        let texts: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let faults = if let [one] = &texts[..] { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let message = format!("{}.{} {name:?} is invalid: {faults}", kind.as_str(), Kind::GROUP);
        let causes: Vec<Value> =
            causes.iter().map(|cause| json!({ "reason": cause.reason, "message": cause.message, "field": cause.field })).collect();
        let details = json!({ "name": name, "group": Kind::GROUP, "kind": kind.as_str(), "causes": causes });
        Failure { details: Some(details), ..Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    /// A patch that cannot be applied to the object as it is.
    pub(crate) fn unpatchable(key: &ObjectKey, why: &str) -> Self {
        Failure::about(key, StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{} cannot be patched: {why}", named(key)))
    }

    /// What the store says, where a conflict has been dealt with already.
    pub(crate) fn of_store(fault: StoreError) -> Self {
        match fault {
            StoreError::NotFound(key) => Failure::not_found(&key),
            StoreError::Conflict(text) => Failure::new(StatusCode::CONFLICT, "Conflict", text),
            StoreError::Broken(text) => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text),
        }
    }

    /// The `Status` object.
    pub(crate) fn document(&self) -> Value {
        let mut document = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            document["details"] = details.clone();
        }
        document
    }
}

/// The `Status` object of a deletion.
pub(crate) fn deleted(key: &ObjectKey, uid: Uid) -> Value {
    let mut details = details(key);
    details["uid"] = uid.to_string().into();
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
