//! Which objects belong to a model, and what their files are called. Pure.
//!
//! A model's path is an object's key, or the folder that holds its objects; an empty path is everything. Locally the
//! model is one entry, named like the last segment of its path, that is a file or a folder of the same shape as in the
//! store. A key that cannot be a file name is refused by name: what a model is made of is never silently left out.

use berth_stores::Object;
use berth_types::ByteSize;

/// The local name of a model whose path is empty.
pub(crate) const UNNAMED: &str = "_model";

/// The longest file name that Linux file systems take, in bytes.
const LONGEST_SEGMENT: usize = 255;

/// A model's or schema's path in its store: no leading or trailing slash, no segment that means something else locally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorePath {
    text: String,
    /// It was written with a trailing slash: only what lies under it is meant, never an object of that name.
    folder: bool,
}

/// An object and the file that it becomes, relative to the model's own folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) object: Object,
    pub(crate) file: String,
}

/// Why a segment of a path or key cannot be a file name.
fn fault(segment: &str) -> Option<&'static str> {
    match segment {
        "" => Some("has an empty segment"),
        "." | ".." => Some("has a segment that is . or .."),
        _ if segment.chars().any(char::is_control) => Some("has a control character"),
        _ if segment.len() > LONGEST_SEGMENT => Some("has a segment of more than 255 bytes"),
        _ => None,
    }
}

impl StorePath {
    /// Takes one leading and one trailing slash off.
    ///
    /// # Errors
    /// Says which path cannot be used, and why.
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let text = written.strip_prefix('/').unwrap_or(written);
        let (text, folder) = match text.strip_suffix('/') {
            Some(rest) => (rest, true),
            None => (text, text.is_empty()),
        };
        if !text.is_empty()
            && let Some(fault) = text.split('/').find_map(fault)
        {
            return Err(format!("path {written:?} {fault}"));
        }
        Ok(StorePath { text: text.to_owned(), folder })
    }

    /// The path itself: what listings are asked for.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// True when only a folder can be meant.
    pub(crate) fn is_folder(&self) -> bool {
        self.folder
    }

    /// What the key of every object under this path starts with.
    pub(crate) fn children(&self) -> String {
        if self.text.is_empty() { String::new() } else { format!("{}/", self.text) }
    }

    /// The name of the local entry.
    pub(crate) fn base_name(&self) -> &str {
        match self.text.rsplit('/').next() {
            None | Some("") => UNNAMED,
            Some(name) => name,
        }
    }
}

/// The local names of model and schema: each its base name; on a clash the schema gives way.
pub(crate) fn local_names(model: &StorePath, schema: Option<&StorePath>) -> (String, Option<String>) {
    let name = model.base_name();
    let schema = schema.map(|schema| match schema.base_name() {
        own if own != name => own,
        _ if name != "_schema.json" => "_schema.json",
        _ => "__schema.json",
    });
    (name.to_owned(), schema.map(str::to_owned))
}

/// The objects of `listed` that belong to `path`, each with its file under the local name `name`. Empty when none does.
///
/// # Errors
/// Names a key that cannot be a file, and says why.
pub(crate) fn lay_out(path: &StorePath, name: &str, listed: Vec<Object>) -> Result<Vec<Item>, String> {
    let children = path.children();
    let mut single = None;
    let mut items = Vec::new();
    for object in listed {
        if object.key == path.text && !path.folder {
            single = Some(Item { object, file: name.to_owned() });
        } else if let Some(rest) = object.key.strip_prefix(&children)
            && !object.key.ends_with('/')
        {
            if let Some(fault) = rest.split('/').find_map(fault) {
                return Err(format!("object key {:?} {fault} and cannot become a file: rename or remove the object", object.key));
            }
            let file = format!("{name}/{rest}");
            items.push(Item { object, file });
        }
    }
    match single {
        None => {}
        Some(item) if items.is_empty() => return Ok(vec![item]),
        Some(item) if item.object.size == ByteSize::ZERO => {} // what some tools leave to mark a folder
        Some(item) => {
            let key = item.object.key;
            return Err(format!("{key:?} is both an object and a folder of objects: end the path with a slash to mean the folder"));
        }
    }
    items.sort_by(|a, b| a.file.cmp(&b.file));
    items.dedup(); // some stores repeat a key where pages meet
    if let Some(twice) = items.windows(2).find(|pair| pair[0].file == pair[1].file) {
        return Err(format!("object key {:?} is listed twice, with different versions", twice[0].object.key));
    }
    clash(&items)?;
    Ok(items)
}

/// Finds a key that would have to be a file and a folder at once.
fn clash(items: &[Item]) -> Result<(), String> {
    let files: std::collections::HashSet<&str> = items.iter().map(|item| item.file.as_str()).collect();
    for item in items {
        let mut folder = item.file.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if files.contains(parent) {
                return Err(format!("object key {:?} lies under another object's key and cannot become a file", item.object.key));
            }
            folder = parent;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(keys: &[(&str, u64)]) -> Vec<Object> {
        let object =
            |(key, size): &(&str, u64)| Object { key: (*key).to_owned(), size: ByteSize(*size), version: None, sums: berth_stores::Sums::default() };
        keys.iter().map(object).collect()
    }

    fn files(path: &str, keys: &[(&str, u64)]) -> Result<Vec<String>, String> {
        let path = StorePath::parse(path)?;
        let (name, _) = local_names(&path, None);
        Ok(lay_out(&path, &name, listed(keys))?.into_iter().map(|item| item.file).collect())
    }

    #[test]
    fn a_path_means_an_object_or_what_lies_under_it() {
        for (case, path, keys, expected) in [
            ("single object", "a/m.onnx", &[("a/m.onnx", 5)][..], &["m.onnx"][..]),
            ("leading slash is stripped", "/a/m.onnx", &[("a/m.onnx", 5)], &["m.onnx"]),
            ("prefix keeps sub-paths", "a/m", &[("a/m/1/x", 5), ("a/m/y", 1)], &["m/1/x", "m/y"]),
            ("trailing slash means the folder", "a/m/", &[("a/m", 9), ("a/m/x", 1)], &["m/x"]),
            ("siblings are not the model", "path", &[("path_with_more", 1), ("path_with_more/o", 1), ("path/obj", 1)], &["path/obj"]),
            ("empty path is everything", "", &[("a", 1), ("b/c", 2)], &["_model/a", "_model/b/c"]),
            ("a lone slash is everything", "/", &[("a", 1)], &["_model/a"]),
            ("zero-byte objects are kept", "m", &[("m/__init__.py", 0)], &["m/__init__.py"]),
            ("a zero-byte single object is kept", "m", &[("m", 0)], &["m"]),
            ("keys ending in a slash are skipped", "m", &[("m/", 0), ("m/d/", 0), ("m/d/x", 1)], &["m/d/x"]),
            ("a zero-byte folder mark is not the model", "m", &[("m", 0), ("m/x", 1)], &["m/x"]),
            ("names are taken as they are", "m", &[("m/a b+c%20ü.txt", 1)], &["m/a b+c%20ü.txt"]),
            ("nothing matches", "m", &[("n", 1)], &[]),
        ] {
            let expected: Vec<String> = expected.iter().map(|file| (*file).to_owned()).collect();
            assert_eq!(files(path, keys), Ok(expected), "{case}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_a_file_is_refused_by_name() {
        for (path, keys, name, why) in [
            ("m", &[("m/ok", 1), ("m/../etc/passwd", 1)][..], "m/../etc/passwd", ". or .."),
            ("m", &[("m/./x", 1)], "m/./x", ". or .."),
            ("m", &[("m//x", 1)], "m//x", "empty segment"),
            ("", &[("/x", 1)], "/x", "empty segment"),
            ("m", &[("m/a\u{7}b", 1)], "m/a\\u{7}b", "control character"),
            ("m", &[("m", 3), ("m/x", 1)], "m", "both an object and a folder"),
            ("m", &[("m/a", 1), ("m/a/b", 1)], "m/a/b", "under another object"),
            ("m", &[("m/a", 1), ("m/a-b", 1), ("m/a/b/c", 1)], "m/a/b/c", "under another object"),
        ] {
            let refused = files(path, keys).expect_err(name);
            assert!(refused.contains(name) && refused.contains(why), "{refused}");
        }
        let long = format!("m/{}", "x".repeat(256));
        assert!(files("m", &[(&long, 1)]).expect_err("too long").contains("255 bytes"));
    }

    #[test]
    fn a_path_that_climbs_or_is_ragged_is_refused() {
        for path in ["..", "a/../b", "//a", "a//b", "a//", "./a", "a/\n"] {
            let refused = StorePath::parse(path).expect_err(path);
            assert!(refused.contains(&format!("{path:?}")), "{refused}");
        }
        for path in ["..a", "a..", "...", "a b", "%2e%2e", "~"] {
            assert!(StorePath::parse(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn the_schema_gives_way_when_names_clash() {
        for (model, schema, expected) in [
            ("a/m", Some("b/s.json"), ("m", Some("s.json"))),
            ("a/m", Some("b/m"), ("m", Some("_schema.json"))),
            ("a/_schema.json", Some("_schema.json"), ("_schema.json", Some("__schema.json"))),
            ("", Some("s"), ("_model", Some("s"))),
            ("a/m/", None, ("m", None)),
        ] {
            let schema = schema.map(|schema| StorePath::parse(schema).expect("sound"));
            let (name, schema) = local_names(&StorePath::parse(model).expect("sound"), schema.as_ref());
            assert_eq!((name.as_str(), schema.as_deref()), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_file_ever_leaves_the_models_folder(
            path in "[a./ ]{0,8}",
            keys in proptest::collection::vec("[ab./\u{1}]{0,10}", 0..12),
        ) {
            let keys: std::collections::BTreeSet<String> = keys.into_iter().collect();
            let keys: Vec<(&str, u64)> = keys.iter().map(|key| (key.as_str(), 1)).collect();
            if let Ok(files) = files(&path, &keys) {
                let distinct: std::collections::HashSet<&String> = files.iter().collect();
                prop_assert_eq!(distinct.len(), files.len());
                for file in &files {
                    let whole = std::path::Path::new(file);
                    prop_assert!(whole.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{}", file);
                    prop_assert!(!file.chars().any(char::is_control));
                }
            }
        }
    }
}
