//! Strings at dot paths (`headers.Authorization`) of an object.

use serde_json::{Map, Value};

/// Sets the string at a dot path, making objects on the way. Only strings are overwritten. An error reads on after the
/// path's name.
pub(super) fn set(config: &mut Map<String, Value>, path: &str, value: &str) -> Result<(), String> {
    let mut at = config;
    let mut rest = path;
    while let Some((member, deeper)) = rest.split_once('.') {
        at = match at.entry(member).or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(object) => object,
            _ => return Err(format!("leads through {member}, which is not an object")),
        };
        rest = deeper;
    }
    match at.get(rest) {
        None | Some(Value::String(_)) => {
            at.insert(rest.to_owned(), Value::String(value.to_owned()));
            Ok(())
        }
        Some(_) => Err("would overwrite a value that is not a string".to_owned()),
    }
}

/// What is at a dot path.
pub(super) fn get<'a>(config: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut members = path.split('.');
    let first = config.get(members.next()?)?;
    members.try_fold(first, |at, member| at.as_object()?.get(member))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_set_by_dot_path_and_nothing_else_is_overwritten() {
        let start = || match serde_json::json!({"key": "v", "struct": {"s1": "a", "list": [1]}, "number": 1, "none": null}) {
            Value::Object(map) => map,
            _ => unreachable!("an object was written"),
        };
        for (case, path, value, expected) in [
            ("change", "key", "w", Ok(r#"{"key":"w","number":1,"none":null,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create", "new", "n", Ok(r#"{"key":"v","new":"n","number":1,"none":null,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create nested", "a.b", "n", Ok(r#"{"a":{"b":"n"},"key":"v","number":1,"none":null,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create inside nested", "struct.s2", "n", Ok(r#"{"key":"v","number":1,"none":null,"struct":{"list":[1],"s1":"a","s2":"n"}}"#)),
            ("change inside nested", "struct.s1", "n", Ok(r#"{"key":"v","number":1,"none":null,"struct":{"list":[1],"s1":"n"}}"#)),
            ("overwrite an object", "struct", "n", Err("would overwrite a value that is not a string")),
            ("overwrite a number", "number", "2", Err("would overwrite a value that is not a string")),
            ("overwrite null", "none", "2", Err("would overwrite a value that is not a string")),
            ("through a list", "struct.list.0", "n", Err("leads through list, which is not an object")),
            ("through a string", "key.x", "n", Err("leads through key, which is not an object")),
        ] {
            let mut config = start();
            match (set(&mut config, path, value), expected) {
                (Ok(()), Ok(text)) => {
                    let expected: Value = serde_json::from_str(text).expect("sound");
                    assert_eq!(get(&config, path).and_then(Value::as_str), Some(value), "{case}");
                    assert_eq!(Value::Object(config), expected, "{case}");
                }
                (Err(fault), Err(text)) => assert_eq!(fault, text, "{case}"),
                (got, wanted) => panic!("{case}: {got:?}, wanted {wanted:?}"),
            }
        }
        for absent in ["", "x", "key.x", "struct.list.0", "struct.x.y", "."] {
            assert_eq!(get(&start(), absent), None, "{absent}");
        }
    }
}
