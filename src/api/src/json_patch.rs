//! JSON patches (RFC 6902): a list of operations on a document, all of them or none.
//!
//! Pure. What a patch makes is bounded: copies by their size, everything by its depth.

use serde::Deserialize;
use serde_json::Value;

use crate::body::{DEEPEST, LARGEST, is_at_most};

/// Operations of one patch.
const MOST_OPERATIONS: usize = 10_000;

/// Why a patch was not applied. Texts name the operation by its place in the list, from 0.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is no patch.
    Malformed(String),
    /// It does not fit the document as it is.
    Unfit(String),
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
    Move { from: String, path: String },
    Copy { from: String, path: String },
    Test { path: String, value: Value },
}

/// Applies `patch` to `document`, which is of no use after a fault.
pub(crate) fn apply(document: &mut Value, patch: &Value) -> Result<(), Fault> {
    let Some(operations) = patch.as_array() else {
        return Err(Fault::Malformed("a JSON patch is a list of operations".to_owned()));
    };
    if operations.len() > MOST_OPERATIONS {
        return Err(Fault::Malformed(format!("{} operations in one patch, at most {MOST_OPERATIONS} are allowed", operations.len())));
    }
    let mut copied = 0;
    for (at, operation) in operations.iter().enumerate() {
        let operation = Operation::deserialize(operation).map_err(|fault| Fault::Malformed(format!("operation {at}: {fault}")))?;
        carry_out(document, operation, &mut copied).map_err(|fault| match fault {
            Fault::Malformed(text) => Fault::Malformed(format!("operation {at}: {text}")),
            Fault::Unfit(text) => Fault::Unfit(format!("operation {at}: {text}")),
        })?;
    }
    Ok(())
}

fn carry_out(document: &mut Value, operation: Operation, copied: &mut usize) -> Result<(), Fault> {
    match operation {
        Operation::Add { path, value } => add(document, &path, value),
        Operation::Remove { path } => remove(document, &path).map(drop),
        Operation::Replace { path, value } => {
            check_depth(&path, &value)?;
            *find(document, &path)? = value;
            Ok(())
        }
        Operation::Move { from, path } => {
            if path.strip_prefix(&from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(Fault::Malformed(format!("{from:?} cannot be moved into itself")));
            }
            let value = remove(document, &from)?;
            add(document, &path, value)
        }
        Operation::Copy { from, path } => {
            let value = find(document, &from)?.clone();
            *copied += value.to_string().len();
            if *copied > LARGEST {
                return Err(Fault::Unfit(format!("the patch copies more than {LARGEST} bytes")));
            }
            add(document, &path, value)
        }
        Operation::Test { path, value } => {
            let present = find(document, &path)?;
            if is_same(present, &value) { Ok(()) } else { Err(Fault::Unfit(format!("test failed: {path:?} has another value"))) }
        }
    }
}

/// The steps of a pointer (RFC 6901).
fn steps(path: &str) -> Result<Vec<String>, Fault> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let malformed = |what: &str| Fault::Malformed(format!("path {path:?} {what}"));
    let rest = path.strip_prefix('/').ok_or_else(|| malformed("must be empty or begin with /"))?;
    rest.split('/')
        .map(|step| {
            let escaped = step.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            if escaped { Ok(step.replace("~1", "/").replace("~0", "~")) } else { Err(malformed("has ~ without 0 or 1 after it")) }
        })
        .collect()
}

fn missing(path: &str) -> Fault {
    Fault::Unfit(format!("path {path:?} does not exist"))
}

/// A place in a list: digits without leading zeros.
fn index(step: &str) -> Option<usize> {
    let canonical = step == "0" || (!step.starts_with('0') && !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then(|| step.parse().ok())?
}

fn walk<'v>(document: &'v mut Value, steps: &[String]) -> Option<&'v mut Value> {
    steps.iter().try_fold(document, |value, step| match value {
        Value::Object(fields) => fields.get_mut(step),
        Value::Array(items) => items.get_mut(index(step)?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

fn find<'v>(document: &'v mut Value, path: &str) -> Result<&'v mut Value, Fault> {
    walk(document, &steps(path)?).ok_or_else(|| missing(path))
}

/// Values must not become so deep that they could not be read, or dropped, any more.
fn check_depth(path: &str, value: &Value) -> Result<(), Fault> {
    let above = path.bytes().filter(|byte| *byte == b'/').count();
    let fits = DEEPEST.checked_sub(above).is_some_and(|rest| is_at_most(value, rest));
    if fits { Ok(()) } else { Err(Fault::Unfit(format!("values would be nested deeper than {DEEPEST} levels"))) }
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), Fault> {
    check_depth(path, &value)?;
    let steps = steps(path)?;
    let Some((last, parents)) = steps.split_last() else {
        *document = value;
        return Ok(());
    };
    match walk(document, parents) {
        Some(Value::Object(fields)) => drop(fields.insert(last.clone(), value)),
        Some(Value::Array(items)) => {
            let at = if last == "-" { Some(items.len()) } else { index(last).filter(|at| *at <= items.len()) };
            items.insert(at.ok_or_else(|| missing(path))?, value);
        }
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) | None => return Err(missing(path)),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, Fault> {
    let steps = steps(path)?;
    let Some((last, parents)) = steps.split_last() else {
        return Err(Fault::Unfit("the whole document cannot be removed".to_owned()));
    };
    match walk(document, parents) {
        Some(Value::Object(fields)) => fields.remove(last),
        Some(Value::Array(items)) => index(last).filter(|at| *at < items.len()).map(|at| items.remove(at)),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) | None => None,
    }
    .ok_or_else(|| missing(path))
}

/// Equal as JSON: numbers by their value, however they are written.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| is_same(value, other)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::json;

    use super::*;

    fn patched(document: Value, patch: Value) -> Result<Value, Fault> {
        let mut document = document;
        apply(&mut document, &patch).map(|()| document)
    }

    #[test]
    fn operations_do_what_the_standard_says() {
        for (document, patch, expected) in [
            (json!({"a": 1}), json!([]), json!({"a": 1})),
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
            (json!({"a": 1}), json!([{"op": "add", "path": "/a", "value": null}]), json!({"a": null})),
            (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), json!({"a": [1, 2, 3]})),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), json!({"a": [1, 2]})),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": [2]}]), json!({"a": [1, [2]]})),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": [1]}]), json!([1])),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/b"}]), json!({"a": 1})),
            (json!([1, 2, 3]), json!([{"op": "remove", "path": "/1"}]), json!([1, 3])),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": "x"}]), json!({"a": "x"})),
            (json!({"a": {"b": 1}, "c": {}}), json!([{"op": "move", "from": "/a/b", "path": "/c/d"}]), json!({"a": {}, "c": {"d": 1}})),
            (json!([1, 2, 3]), json!([{"op": "move", "from": "/0", "path": "/2"}]), json!([2, 3, 1])),
            (json!({"a": [1]}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": [1], "b": [1]})),
            (json!({"a/b": 1, "m~n": 2, "~1": 3}), json!([{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/m~0n"}]), json!({"~1": 3})),
            (json!({"": 1}), json!([{"op": "replace", "path": "/", "value": 2}]), json!({"": 2})),
            (json!({"a": {"b": [1, "x"]}}), json!([{"op": "test", "path": "/a", "value": {"b": [1.0, "x"]}}]), json!({"a": {"b": [1, "x"]}})),
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2, "more": true}]), json!({"a": 1, "b": 2})),
        ] {
            assert_eq!(patched(document.clone(), patch.clone()), Ok(expected), "{document} {patch}");
        }
    }

    #[test]
    fn a_patch_that_does_not_fit_says_where_and_one_that_is_none_says_why() {
        let document = json!({"a": 1, "l": [1]});
        for (operation, expected) in [
            (json!({"op": "remove", "path": "/x"}), "operation 0: path \"/x\" does not exist"),
            (json!({"op": "replace", "path": "/x", "value": 1}), "operation 0: path \"/x\" does not exist"),
            (json!({"op": "add", "path": "/x/y", "value": 1}), "operation 0: path \"/x/y\" does not exist"),
            (json!({"op": "add", "path": "/a/y", "value": 1}), "operation 0: path \"/a/y\" does not exist"),
            (json!({"op": "add", "path": "/l/2", "value": 1}), "operation 0: path \"/l/2\" does not exist"),
            (json!({"op": "add", "path": "/l/01", "value": 1}), "operation 0: path \"/l/01\" does not exist"),
            (json!({"op": "remove", "path": "/l/-"}), "operation 0: path \"/l/-\" does not exist"),
            (json!({"op": "remove", "path": ""}), "operation 0: the whole document cannot be removed"),
            (json!({"op": "copy", "from": "/x", "path": "/y"}), "operation 0: path \"/x\" does not exist"),
            (json!({"op": "test", "path": "/a", "value": "1"}), "operation 0: test failed: \"/a\" has another value"),
        ] {
            assert_eq!(patched(document.clone(), json!([operation])), Err(Fault::Unfit(expected.to_owned())));
        }
        for (patch, expected) in [
            (json!({}), "a JSON patch is a list of operations"),
            (json!([{"op": "add", "path": "/a"}]), "operation 0: missing field `value`"),
            (json!([{"op": "jump", "path": "/a"}]), "operation 0: unknown variant `jump`"),
            (json!([{"path": "/a"}]), "operation 0: missing field `op`"),
            (json!([1]), "operation 0: "),
            (json!([{"op": "remove", "path": "a"}]), "operation 0: path \"a\" must be empty or begin with /"),
            (json!([{"op": "remove", "path": "/~2"}]), "operation 0: path \"/~2\" has ~ without 0 or 1 after it"),
            (json!([{"op": "remove", "path": "/~~01"}]), "operation 0: path \"/~~01\" has ~ without 0 or 1 after it"),
            (json!([{"op": "move", "from": "/l", "path": "/l/0"}]), "operation 0: \"/l\" cannot be moved into itself"),
        ] {
            match patched(document.clone(), patch.clone()) {
                Err(Fault::Malformed(text)) => assert!(text.starts_with(expected), "{text}"),
                other => panic!("{patch}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_patch_cannot_make_a_small_document_huge_or_endlessly_deep() {
        let doubling: Vec<Value> = (0..60).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/{n}")})).collect();
        let deep = patched(json!({"a": {"x": 1}}), Value::Array(doubling));
        assert!(matches!(deep, Err(Fault::Unfit(_))), "{deep:?}");
        let long = "x".repeat(100_000);
        let many: Vec<Value> = (0..60).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/b{n}")})).collect();
        assert_eq!(
            patched(json!({ "a": long }), Value::Array(many)),
            Err(Fault::Unfit("operation 31: the patch copies more than 3145728 bytes".into()))
        );
        let nested: Vec<Value> = (1..100).map(|n| json!({"op": "add", "path": "/a".repeat(n), "value": {}})).collect();
        assert_eq!(patched(json!({}), Value::Array(nested)), Err(Fault::Unfit("operation 63: values would be nested deeper than 64 levels".into())));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn no_path_breaks_the_patcher(from in "[/~01a-]{0,8}", path in "[/~01a-]{0,8}", op in "add|remove|replace|move|copy|test") {
            let operation = json!({"op": op, "from": from, "path": path, "value": [1]});
            let _ = patched(json!({"a": [{"a": 1}, [0, 1]], "0": {}}), json!([operation]));
        }

        #[test]
        fn what_was_added_can_be_tested_and_removed(name in ".{0,6}", number: i32) {
            let path = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            let patch = json!([
                {"op": "add", "path": path, "value": number}, {"op": "test", "path": path, "value": number}, {"op": "remove", "path": path}
            ]);
            prop_assert_eq!(patched(json!({}), patch), Ok(json!({})));
        }
    }
}
