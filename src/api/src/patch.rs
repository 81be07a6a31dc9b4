//! The ways to say what should change about a resource. Pure.

use berth_registry::ObjectKey;
use http::HeaderMap;
use serde_json::{Map, Value};

use crate::body;
use crate::failure::Failure;
use crate::json_patch::{self, Fault};

const ACCEPTED: &str =
    "application/merge-patch+json, application/json-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// The body of a `PATCH`.
#[derive(Debug)]
pub(crate) enum Patch {
    /// Changes to the object that is there.
    Changes(Changes),
    /// The resource as its manifest has it, to be made when it is not there.
    Apply(Value),
}

/// Changes to an object.
#[derive(Debug)]
pub(crate) enum Changes {
    /// RFC 7386: fields to set, `null` for those to remove; lists are replaced.
    Merge(Value),
    /// RFC 6902.
    Json(Value),
}

impl Patch {
    /// # Errors
    /// The body is not of a type that is understood, or not what its type says.
    pub(crate) fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Self, Failure> {
        match body::media_type(headers).as_deref() {
            Some("application/merge-patch+json") => merge_patch(body::json(bytes)?),
            Some("application/strategic-merge-patch+json") => {
                let patch = body::json(bytes)?;
                match directive(&patch) {
                    None => merge_patch(patch),
                    Some(directive) => Err(Failure::bad_request(format!(
                        "{directive:?}: directives of strategic merge patches are not understood here, lists are replaced: use a JSON patch"
                    ))),
                }
            }
            Some("application/json-patch+json") => Ok(Patch::Changes(Changes::Json(body::json(bytes)?))),
            Some("application/apply-patch+yaml") => Ok(Patch::Apply(body::yaml(bytes)?)),
            given => Err(body::unknown_type(given, ACCEPTED)),
        }
    }
}

fn merge_patch(patch: Value) -> Result<Patch, Failure> {
    if patch.is_object() { Ok(Patch::Changes(Changes::Merge(patch))) } else { Err(Failure::bad_request("a merge patch is an object")) }
}

/// The first field that is an instruction and not a value.
fn directive(patch: &Value) -> Option<&str> {
    match patch {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| if name.starts_with('$') { Some(name.as_str()) } else { directive(value) }),
        Value::Array(items) => items.iter().find_map(directive),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

impl Changes {
    /// `document`, the text of the object `key`, as it should be.
    ///
    /// # Errors
    /// The patch does not fit.
    pub(crate) fn apply(&self, key: &ObjectKey, mut document: Value) -> Result<Value, Failure> {
        match self {
            Changes::Merge(patch) => merge(&mut document, patch),
            Changes::Json(patch) => json_patch::apply(&mut document, patch).map_err(|fault| match fault {
                Fault::Malformed(text) => Failure::bad_request(format!("cannot read the JSON patch: {text}")),
                Fault::Unfit(text) => Failure::unpatchable(key, &text),
            })?,
        }
        Ok(document)
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(fields) = target {
        for (name, value) in patch {
            match value {
                Value::Null => drop(fields.remove(name)),
                value => merge(fields.entry(name.clone()).or_insert(Value::Null), value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_sets_and_removes_as_the_standard_says() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, expected, "{target} {patch}");
        }
    }

    #[test]
    fn instructions_of_strategic_patches_are_found_wherever_they_are() {
        assert_eq!(directive(&json!({"spec": {"containers": [{"name": "a"}, {"$patch": "delete"}]}})), Some("$patch"));
        assert_eq!(directive(&json!({"spec": {"$setElementOrder/containers": []}})), Some("$setElementOrder/containers"));
        assert_eq!(directive(&json!({"metadata": {"annotations": {"a": "$patch"}}})), None);
    }
}
