//! The storage configuration as files: one per key, read anew each time.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::dot_path;
use crate::ConfigFault;

/// Files of a storage configuration are small; a larger one is something else.
const LARGEST_ENTRY: u64 = 1 << 20;

/// The storage configuration as read: the text of each key's file, or why it cannot be read. Holds secrets.
#[derive(Default)]
pub struct Entries {
    pub(super) folder: Option<PathBuf>,
    pub(super) missing: bool,
    pub(super) texts: BTreeMap<String, Result<String, String>>,
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("folder", &self.folder).field("keys", &self.texts.keys()).finish()
    }
}

impl Entries {
    /// Reads all files of the folder, each time anew: mounted secrets change under a running process. What is not a
    /// plain file (a mounted secret has `..data` folders) is no key.
    ///
    /// # Errors
    /// [`ConfigFault`] where the folder is there and cannot be read.
    pub fn read(folder: Option<&Path>) -> Result<Self, ConfigFault> {
        let Some(folder) = folder else { return Ok(Entries::default()) };
        let mut entries = Entries { folder: Some(folder.to_owned()), ..Entries::default() };
        let unreadable = |fault: std::io::Error| ConfigFault(format!("storage config folder {}: {fault}", folder.display()));
        let files = match std::fs::read_dir(folder) {
            Ok(files) => files,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
                entries.missing = true;
                return Ok(entries);
            }
            Err(fault) => return Err(unreadable(fault)),
        };
        for file in files {
            let file = file.map_err(unreadable)?;
            let Ok(key) = file.file_name().into_string() else { continue };
            // The metadata of what a link points to: keys of a mounted secret are links.
            if key.starts_with("..") || !std::fs::metadata(file.path()).is_ok_and(|about| about.is_file()) {
                continue;
            }
            entries.texts.insert(key, read_entry(&file.path()));
        }
        Ok(entries)
    }

    /// Equal for configurations that say the same. Shows nothing of what they say.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut field = |mark: u8, text: &str| {
            hasher.update(&[mark]).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        field(u8::from(self.missing), "");
        for (key, text) in &self.texts {
            field(2, key);
            match text {
                Ok(text) => field(3, text),
                Err(fault) => field(4, fault),
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// The file of `key`: named exactly so, or with `.json` after it.
    pub(super) fn get(&self, key: &str) -> Option<&Result<String, String>> {
        self.texts.get(key).or_else(|| self.texts.get(&format!("{key}.json")))
    }

    fn place(&self) -> String {
        match &self.folder {
            Some(folder) => folder.display().to_string(),
            None => "none".to_owned(),
        }
    }

    /// What there is instead of a missing key.
    pub(super) fn instead(&self) -> String {
        match (&self.folder, self.missing) {
            (None, _) => "no storage config folder is set".to_owned(),
            (Some(folder), true) => format!("folder {} does not exist", folder.display()),
            (Some(folder), false) if self.texts.is_empty() => format!("folder {} has no keys", folder.display()),
            (Some(folder), false) => {
                let keys: Vec<&str> = self.texts.keys().map(String::as_str).collect();
                format!("folder {} has the keys {}", folder.display(), keys.join(", "))
            }
        }
    }

    /// The object in a key's text. Names with dots in them are paths: where every value must be a string (the controller
    /// reads this configuration too, and wants it so), `headers.Authorization` is how a header is written.
    pub(super) fn parse(&self, key: &str, text: &Result<String, String>) -> Result<Map<String, Value>, ConfigFault> {
        let named = || format!("storage config {key} in {}", self.place());
        let text = text.as_ref().map_err(|fault| ConfigFault(format!("{}: {fault}", named())))?;
        let written = match serde_json::from_str(text) {
            Ok(Value::Object(entry)) => entry,
            Ok(_) => return Err(ConfigFault(format!("{} is not a JSON object", named()))),
            // Line and column only: the parser's text may quote what it could not read.
            Err(fault) => {
                let (line, column) = (fault.line(), fault.column());
                return Err(ConfigFault(format!("{} is not valid JSON: line {line}, column {column}", named())));
            }
        };
        let (paths, mut entry): (Map<_, _>, Map<_, _>) = written.into_iter().partition(|(name, value)| name.contains('.') && value.is_string());
        for (path, value) in &paths {
            let value = value.as_str().unwrap_or_default();
            dot_path::set(&mut entry, path, value).map_err(|why| ConfigFault(format!("{}: {path} {why}", named())))?;
        }
        Ok(entry)
    }
}

fn read_entry(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|fault| fault.to_string())?;
    let read = file.take(LARGEST_ENTRY + 1).read_to_string(&mut text).map_err(|fault| fault.to_string())?;
    if read as u64 > LARGEST_ENTRY { Err("is larger than 1 MiB".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_secret_is_read_as_its_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("..2026_data");
        std::fs::create_dir(&data).expect("a folder");
        std::fs::write(data.join("k"), "{}").expect("written");
        std::os::unix::fs::symlink(&data, folder.path().join("..data")).expect("linked");
        std::os::unix::fs::symlink("..data/k", folder.path().join("k")).expect("linked");
        std::fs::create_dir(folder.path().join("models")).expect("a folder");
        let entries = Entries::read(Some(folder.path())).expect("read");
        assert_eq!(entries.texts.keys().collect::<Vec<_>>(), ["k"]);
    }

    #[test]
    fn a_digest_moves_with_anything_that_is_said() {
        let entries = |missing, texts: &[(&str, Result<&str, &str>)]| {
            let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), text.map(str::to_owned).map_err(str::to_owned)));
            Entries { folder: None, missing, texts: texts.collect() }.digest()
        };
        let all = [
            entries(true, &[]),
            entries(false, &[]),
            entries(false, &[("a", Ok("b"))]),
            entries(false, &[("a", Err("b"))]),
            entries(false, &[("ab", Ok(""))]),
            entries(false, &[("a", Ok("")), ("b", Ok(""))]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "case {at}");
        }
        assert_eq!(entries(false, &[("a", Ok("b"))]), entries(false, &[("a", Ok("b"))]));
    }

    #[test]
    fn names_with_dots_in_a_flat_entry_are_paths() {
        let parse = |text: &str| Entries::default().parse("k", &Ok(text.to_owned())).map(Value::Object);
        let nested = serde_json::json!({"type": "http", "headers": {"Authorization": "t", "X-Y": "u"}});
        assert_eq!(parse(r#"{"type":"http","headers.Authorization":"t","headers":{"X-Y":"u"}}"#), Ok(nested.clone()));
        assert_eq!(parse(r#"{"type":"http","headers.Authorization":"t","headers.X-Y":"u"}"#), Ok(nested));
        let fault = parse(r#"{"headers":"flat","headers.Authorization":"sEcReT"}"#).expect_err("a string has no members").to_string();
        assert!(fault.contains("headers.Authorization leads through headers, which is not an object") && !fault.contains("sEcReT"), "{fault}");
    }
}
