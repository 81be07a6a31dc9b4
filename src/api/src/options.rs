//! What a client adds to a write: whether to only try it, and what to do about unknown fields.

use berth_registry::Object;
use serde_json::Value;

use crate::failure::Failure;

/// What happens to fields that a resource does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Nothing is said.
    Ignored,
    /// The answer has a `Warning` header.
    #[default]
    Told,
    /// The write is refused.
    Refused,
}

/// The parameters of a write. Those of Kubernetes that change nothing here (`fieldManager`, `force`, `pretty`,
/// `propagationPolicy`, `gracePeriodSeconds`) are ignored: fields have no owners, and a removal takes effect at once.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Everything is checked and answered as if it had been done; nothing is.
    pub(crate) dry_run: bool,
    pub(crate) unknown: Unknown,
}

impl Options {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// A text that names the parameter and what it may be.
    pub(crate) fn read(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut options = Options::default();
        for (name, value) in parameters {
            match (name.as_str(), value.as_str()) {
                ("dryRun", "") | ("fieldValidation", "") => {}
                ("dryRun", "All") => options.dry_run = true,
                ("dryRun", other) => return Err(format!("dryRun={other}: expected All")),
                ("fieldValidation", "Ignore") => options.unknown = Unknown::Ignored,
                ("fieldValidation", "Warn") => options.unknown = Unknown::Told,
                ("fieldValidation", "Strict") => options.unknown = Unknown::Refused,
                ("fieldValidation", other) => return Err(format!("fieldValidation={other}: expected Ignore, Warn or Strict")),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The body of a removal: what the object must be for it to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    uid: Option<String>,
    resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    /// # Errors
    /// The document is not the options of a removal.
    pub(crate) fn read(document: &Value) -> Result<Self, Failure> {
        let Some(fields) = document.as_object() else {
            return Err(Failure::bad_request("the body of a removal must be DeleteOptions"));
        };
        if fields.get("kind").is_some_and(|kind| kind != "DeleteOptions") {
            return Err(Failure::bad_request(format!("the body of a removal must be DeleteOptions, not {}", fields["kind"])));
        }
        let text = |name: &str| match document.pointer(&format!("/preconditions/{name}")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(Failure::bad_request(format!("preconditions.{name} must be a string, not {other}"))),
        };
        let dry_run = match fields.get("dryRun") {
            None | Some(Value::Null) => false,
            Some(Value::Array(stages)) if stages.iter().all(|stage| stage == "All") => !stages.is_empty(),
            Some(other) => return Err(Failure::bad_request(format!("dryRun: {other}: expected [\"All\"]"))),
        };
        Ok(DeleteOptions { uid: text("uid")?, resource_version: text("resourceVersion")?, dry_run })
    }

    /// # Errors
    /// The object is not the one that the client means.
    pub(crate) fn check(&self, object: &Object) -> Result<(), Failure> {
        let (uid, version) = (object.uid.to_string(), object.resource_version.to_string());
        for (what, wanted, present) in [("UID", &self.uid, uid.as_str()), ("resourceVersion", &self.resource_version, version.as_str())] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != present) {
                let wanted: String = wanted.chars().take(80).collect();
                return Err(Failure::conflict(&object.key, &format!("the precondition asks for {what} {wanted}, the object has {present}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(name: &str, value: &str) -> Result<(bool, Unknown), String> {
        Options::read(&[(name.to_owned(), value.to_owned())]).map(|options| (options.dry_run, options.unknown))
    }

    #[test]
    fn parameters_are_those_of_kubernetes() {
        for (name, value, expected) in [
            ("dryRun", "All", Ok((true, Unknown::Told))),
            ("dryRun", "", Ok((false, Unknown::Told))),
            ("dryRun", "true", Err("dryRun=true: expected All")),
            ("fieldValidation", "Strict", Ok((false, Unknown::Refused))),
            ("fieldValidation", "Ignore", Ok((false, Unknown::Ignored))),
            ("fieldValidation", "x", Err("fieldValidation=x: expected Ignore, Warn or Strict")),
            ("fieldManager", "kubectl", Ok((false, Unknown::Told))),
        ] {
            assert_eq!(options(name, value), expected.map_err(str::to_owned), "{name}={value}");
        }
    }

    #[test]
    fn the_options_of_a_removal_are_read_or_refused() {
        let read = |document| DeleteOptions::read(&document).map_err(|failure| failure.message);
        assert_eq!(read(json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background" })), Ok(DeleteOptions::default()));
        assert_eq!(
            read(json!({ "dryRun": ["All"], "preconditions": { "uid": "u", "resourceVersion": "7" } })),
            Ok(DeleteOptions { uid: Some("u".into()), resource_version: Some("7".into()), dry_run: true })
        );
        for wrong in [json!([]), json!({ "kind": "Predictor" }), json!({ "dryRun": true }), json!({ "preconditions": { "uid": 7 } })] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
