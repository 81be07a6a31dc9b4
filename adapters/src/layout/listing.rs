//! What a model's files are: names, kinds, sizes, and a look into the few that decide something.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::LoadError;
use crate::tensor::shape_text;

/// More than this is not a model but a folder named by mistake.
const MOST_ENTRIES: usize = 100_000;

/// Folders within folders.
const DEEPEST: usize = 32;

/// What is read of a configuration. One that is longer is refused where it is used.
const LONGEST_TEXT: u64 = 1 << 20;

/// What is read of another file's beginning.
const HEAD: u64 = 1 << 16;

/// What is read of a file's end.
const TAIL: u64 = 1 << 16;

/// What is read of all files together: what a model says of itself must not cost the pod its memory.
const BUDGET: u64 = 1 << 25;

/// The name of Triton's configuration.
pub(crate) const CONFIG: &str = "config.pbtxt";

/// The name of MLServer's configuration.
pub(crate) const SETTINGS: &str = "model-settings.json";

/// A file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File {
        bytes: u64,
        /// Present for the files that decisions need.
        look: Option<Look>,
    },
    Folder {
        entries: BTreeMap<String, Node>,
        /// It is a link to another folder of the model.
        linked: bool,
    },
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Its beginning: 1 MiB of a configuration, 64 KiB of another file, at most.
    pub(crate) head: Arc<[u8]>,
    /// Its end, at most 64 KiB.
    pub(crate) tail: Arc<[u8]>,
    /// The beginning is all of it.
    pub(crate) whole: bool,
}

impl Node {
    pub(crate) fn entries(&self) -> Option<&BTreeMap<String, Node>> {
        match self {
            Node::File { .. } => None,
            Node::Folder { entries, .. } => Some(entries),
        }
    }

    pub(crate) fn is_folder(&self) -> bool {
        self.entries().is_some()
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        if path.is_empty() {
            return Some(self);
        }
        path.split('/').try_fold(self, |node, name| node.entries()?.get(name))
    }
}

/// The tree of a model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing(pub(crate) Node);

impl Listing {
    /// What is at a path, whose parts are joined by `/`; empty is the model itself.
    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.0.get(path)
    }

    /// Takes a file or folder out of consideration.
    pub(crate) fn remove(&mut self, path: &str) {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = folder.split('/').filter(|part| !part.is_empty()).try_fold(&mut self.0, |node, part| match node {
            Node::File { .. } => None,
            Node::Folder { entries, .. } => entries.get_mut(part),
        });
        if let Some(Node::Folder { entries, .. }) = folder {
            entries.remove(name);
        }
    }

    /// What was read of the file at a path, whole.
    ///
    /// # Errors
    /// A bad model when it was not read or is too long to be what its name says.
    pub(crate) fn text(&self, path: &str) -> Result<&[u8], LoadError> {
        match self.get(path) {
            Some(Node::File { look: Some(Look { head, whole: true, .. }), .. }) => Ok(head),
            Some(Node::File { bytes, look: Some(_) }) => {
                Err(LoadError::bad_model(format!("{path} has {bytes} bytes: expected at most {LONGEST_TEXT}")))
            }
            Some(Node::File { look: None, .. }) => Err(LoadError::bad_model(format!("{path} was not read: too many like it in one model"))),
            Some(Node::Folder { .. }) => Err(LoadError::bad_model(format!("{path} is a folder: expected a file"))),
            None => Err(LoadError::bad_model(format!("{path} is not there"))),
        }
    }
}

/// At most ten names of a folder, for messages; folders end with a slash.
pub(crate) fn names(entries: &BTreeMap<String, Node>) -> String {
    const SHOWN: usize = 10;
    if entries.is_empty() {
        return "nothing".to_owned();
    }
    let shown = entries.iter().take(SHOWN).map(|(name, node)| if node.is_folder() { format!("{name}/") } else { name.clone() });
    let more = if entries.len() > SHOWN { format!(" and {} more", entries.len() - SHOWN) } else { String::new() };
    shape_text(shown) + &more
}

/// How much of the beginning of a file of this name decisions need; `None` when they do not look into it.
fn wanted(name: &str, kind: &str) -> Option<u64> {
    match (name, kind) {
        (CONFIG | SETTINGS, _) => Some(LONGEST_TEXT),
        (name, "xgboost" | "lightgbm") if !name.starts_with('.') => Some(HEAD),
        _ => None,
    }
}

/// The model's real path, and what is there. `kind` says into which files to look.
///
/// # Errors
/// A bad model: names the file that cannot be read, that leads out of the model's folder or is of a strange kind.
pub(crate) fn read(model: &Path, kind: &str) -> Result<(PathBuf, Listing), LoadError> {
    let shown = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
    let root = fs::canonicalize(model).map_err(|fault| LoadError::bad_model(format!("{shown} cannot be read: {fault}")))?;
    let mut walk = Walk { root: &root, kind, entries: 0, looked: 0 };
    let node = walk.node(&root, &shown, 0, false)?;
    Ok((root, Listing(node)))
}

struct Walk<'a> {
    root: &'a Path,
    kind: &'a str,
    entries: usize,
    looked: u64,
}

impl Walk<'_> {
    /// `shown` is the path for messages, relative to the folder that holds the model.
    fn node(&mut self, path: &Path, shown: &str, depth: usize, linked: bool) -> Result<Node, LoadError> {
        let bad = |fault: io::Error| LoadError::bad_model(format!("{shown} cannot be read: {fault}"));
        let about = fs::metadata(path).map_err(bad)?;
        if about.is_file() {
            let name = shown.rsplit('/').next().unwrap_or(shown);
            let head = wanted(name, self.kind).filter(|_| self.looked < BUDGET);
            let look = head.map(|head| look(path, about.len(), head)).transpose().map_err(bad)?;
            self.looked += look.as_ref().map_or(0, |look| (look.head.len() + look.tail.len()) as u64);
            return Ok(Node::File { bytes: about.len(), look });
        }
        if !about.is_dir() {
            return Err(LoadError::bad_model(format!("{shown} is neither a file nor a folder")));
        }
        if depth == DEEPEST {
            return Err(LoadError::bad_model(format!("{shown} lies more than {DEEPEST} folders deep, or its links lead in a circle")));
        }
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(bad)? {
            let entry = entry.map_err(bad)?;
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(LoadError::bad_model(format!("more than {MOST_ENTRIES} files and folders: not one model")));
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(LoadError::bad_model(format!("{shown} holds a file whose name {name:?} is not UTF-8")));
            };
            let (shown, path) = (format!("{shown}/{name}"), entry.path());
            let linked = entry.file_type().map_err(bad)?.is_symlink();
            if linked {
                self.inside(&path, &shown)?;
            }
            entries.insert(name.to_owned(), self.node(&path, &shown, depth + 1, linked)?);
        }
        Ok(Node::Folder { entries, linked })
    }

    /// A link must stay within the model's folder: whoever wrote the model could otherwise have any file of this machine served.
    fn inside(&self, link: &Path, shown: &str) -> Result<(), LoadError> {
        match fs::canonicalize(link) {
            Ok(target) if target.starts_with(self.root) => Ok(()),
            Ok(_) => Err(LoadError::bad_model(format!("{shown} is a link that leads outside the model's folder"))),
            Err(fault) => Err(LoadError::bad_model(format!("{shown} is a link that leads nowhere: {fault}"))),
        }
    }
}

fn look(path: &Path, bytes: u64, most: u64) -> io::Result<Look> {
    let mut file = File::open(path)?;
    let mut head = Vec::new();
    // One byte more than it should have, so that a file that grows meanwhile is not taken for whole.
    (&mut file).take(most + 1).read_to_end(&mut head)?;
    let whole = head.len() as u64 <= most;
    head.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL)))?;
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(Look { head: head.into(), tail: tail.into(), whole })
}

#[cfg(test)]
pub(crate) fn of_files(files: &[(&str, &[u8])]) -> Listing {
    let mut root = Node::Folder { entries: BTreeMap::new(), linked: false };
    for (path, bytes) in files {
        let mut at = &mut root;
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            let Node::Folder { entries, .. } = at else { panic!("{path} lies under a file") };
            at = entries.entry(part.to_owned()).or_insert_with(|| Node::Folder { entries: BTreeMap::new(), linked: false });
        }
        let Node::Folder { entries, .. } = at else { panic!("{path} lies under a file") };
        if !name.is_empty() {
            let look = Look { head: (*bytes).into(), tail: (*bytes).into(), whole: true };
            entries.insert(name.to_owned(), Node::File { bytes: bytes.len() as u64, look: Some(look) });
        }
    }
    Listing(root)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn make(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        folder
    }

    #[test]
    fn names_kinds_and_sizes_are_read_and_only_what_decides_is_looked_into() {
        let folder = make(&[("m/config.pbtxt", "name: \"x\""), ("m/1/model.onnx", "12345"), ("other", "x")]);
        symlink("1", folder.path().join("m/latest")).expect("a link");
        let (path, listing) = read(&folder.path().join("m"), "onnx").expect("sound");
        assert_eq!(path, folder.path().canonicalize().expect("there").join("m"));
        assert_eq!(listing.get("1/model.onnx"), Some(&Node::File { bytes: 5, look: None }));
        assert_eq!(listing.get("latest/model.onnx"), Some(&Node::File { bytes: 5, look: None }));
        assert!(
            matches!(listing.get("latest"), Some(Node::Folder { linked: true, .. }))
                && matches!(listing.get("1"), Some(Node::Folder { linked: false, .. }))
        );
        assert_eq!(listing.text("config.pbtxt").expect("read"), b"name: \"x\"");
        assert_eq!(names(listing.0.entries().expect("a folder")), "[1/, config.pbtxt, latest/]");
        let (_, single) = read(&folder.path().join("other"), "onnx").expect("sound");
        assert_eq!(single.0, Node::File { bytes: 1, look: None });
    }

    #[test]
    fn a_link_that_leaves_the_models_folder_is_refused_by_name() {
        for (case, target, says) in [
            ("beside it", "../other", "m/sub/link is a link that leads outside the model's folder"),
            ("the machine's", "/etc/passwd", "m/sub/link is a link that leads outside the model's folder"),
            ("a folder above", "../..", "m/sub/link is a link that leads outside the model's folder"),
            ("nowhere", "gone", "m/sub/link is a link that leads nowhere"),
            ("in a circle", "..", "its links lead in a circle"),
        ] {
            let folder = make(&[("m/a", "x"), ("m/sub/b", "x"), ("m/other", "x"), ("other", "x")]);
            let target = if target == "../other" { "../../other" } else { target };
            symlink(target, folder.path().join("m/sub/link")).expect("a link");
            let refused = read(&folder.path().join("m"), "onnx").expect_err(case);
            assert!(refused.message.contains(says) && refused.nothing_attempted, "{case}: {refused}");
        }
    }

    #[test]
    fn what_is_too_much_for_a_model_is_refused() {
        let deep = format!("m/{}x", "d/".repeat(DEEPEST + 1));
        let folder = make(&[(&deep, "x"), ("big/config.pbtxt", &" ".repeat(usize::try_from(LONGEST_TEXT).expect("small") + 1))]);
        assert!(read(&folder.path().join("m"), "onnx").expect_err("deep").message.contains("folders deep"));
        let (_, listing) = read(&folder.path().join("big"), "onnx").expect("sound");
        assert!(listing.text("config.pbtxt").expect_err("long").message.contains("expected at most 1048576"));
        let many: Vec<(String, String)> = (0..400).map(|at| (format!("many/{at}.json"), "x".repeat(1 << 17))).collect();
        let many = make(&many.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect::<Vec<_>>());
        let (_, listing) = read(&many.path().join("many"), "xgboost").expect("sound");
        let looks = listing.0.entries().expect("a folder").values().filter(|node| matches!(node, Node::File { look: Some(_), .. })).count();
        assert_eq!(looks as u64, BUDGET / (HEAD + TAIL));
        assert!(read(&folder.path().join("gone"), "onnx").expect_err("gone").message.starts_with("gone cannot be read: "));
    }
}
