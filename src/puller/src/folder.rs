//! Models that lie in a folder of this machine or in a mounted volume: used where they are, never copied or changed.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use berth_stores::InPlace;
use berth_types::ByteSize;
use rustix::io::Errno;

use crate::PullError;
use crate::paths::StorePath;

/// A model found in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) model: PathBuf,
    pub(crate) schema: Option<PathBuf>,
    /// Bytes of the model's files, without the schema.
    pub(crate) size: ByteSize,
    pub(crate) files: usize,
}

/// Looks for model and schema and measures the model. Nothing outside the root is reached, whatever links say.
///
/// # Errors
/// [`PullError`] names the path and what is wrong with it.
pub(crate) fn find(place: &InPlace, model: &StorePath, schema: Option<&StorePath>) -> Result<Found, PullError> {
    let root = std::fs::canonicalize(&place.root).map_err(|fault| match fault.kind() {
        io::ErrorKind::NotFound => PullError::NotFound(format!("{}: {} does not exist", place.named, place.root.display())),
        _ => disk(place, &place.root, &fault),
    })?;
    let mut walk = Walk { place, root: &root, open: HashSet::new(), size: 0, files: 0, looked: 0 };
    let found = locate(place, &root, model)?;
    walk.measure(&found)?;
    let (size, files) = (ByteSize(walk.size), walk.files);
    let schema = match schema {
        None => None,
        Some(path) => {
            let found = locate(place, &root, path)?;
            walk.measure(&found)?;
            Some(found)
        }
    };
    Ok(Found { model: found, schema, size, files })
}

/// Whether there is something at the path: one look, for who asks often. Loading it may still find fault with it.
pub(crate) fn exists(place: &InPlace, model: &StorePath) -> bool {
    locate(place, &place.root, model).is_ok()
}

/// What the system says against a path. Waiting helps where a volume is away; links that lead in a circle and closed doors
/// stay as they are until somebody changes them.
fn disk(place: &InPlace, path: &Path, fault: &io::Error) -> PullError {
    let text = format!("{}: {}: {fault}", place.named, path.display());
    match fault.kind() {
        io::ErrorKind::PermissionDenied => PullError::Denied(text),
        _ if Errno::from_io_error(fault) == Some(Errno::LOOP) => PullError::NotFound(text),
        _ => PullError::Disk(text),
    }
}

/// The path as written under the root: links on the way stay, so that what is seen is what the user named.
fn locate(place: &InPlace, root: &Path, path: &StorePath) -> Result<PathBuf, PullError> {
    let found = if path.as_str().is_empty() { root.to_owned() } else { root.join(path.as_str()) };
    match std::fs::metadata(&found) {
        Ok(about) if path.is_folder() && !about.is_dir() => {
            Err(PullError::NotFound(format!("{}: {} is a file, the path ends with a slash", place.named, found.display())))
        }
        Ok(_) => Ok(found),
        Err(fault) if matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(PullError::NotFound(format!("{}: {} does not exist", place.named, found.display())))
        }
        Err(fault) => Err(disk(place, &found, &fault)),
    }
}

/// More than this is not a model but a folder named by mistake, or links that lead to one another without end.
const MOST_FILES: usize = 100_000;

struct Walk<'a> {
    place: &'a InPlace,
    root: &'a Path,
    /// The folders, by their real path, that lead to where the walk is.
    open: HashSet<PathBuf>,
    size: u64,
    files: usize,
    /// Files and folders, as often as they were looked at.
    looked: usize,
}

impl Walk<'_> {
    fn measure(&mut self, path: &Path) -> Result<(), PullError> {
        let real = std::fs::canonicalize(path).map_err(|fault| disk(self.place, path, &fault))?;
        if !real.starts_with(self.root) {
            return Err(PullError::Denied(format!("{}: {} leads out of the folder, to {}", self.place.named, path.display(), real.display())));
        }
        let about = std::fs::metadata(&real).map_err(|fault| disk(self.place, path, &fault))?;
        self.looked += 1;
        if self.looked > MOST_FILES {
            return Err(PullError::Config(format!(
                "{}: more than {MOST_FILES} files and folders lie under {}: name a longer path",
                self.place.named,
                path.display()
            )));
        }
        if about.is_file() {
            self.size = self.size.saturating_add(about.len());
            self.files += 1;
            return Ok(());
        }
        if !about.is_dir() {
            return Err(PullError::Config(format!("{}: {} is neither a file nor a folder", self.place.named, path.display())));
        }
        if !self.open.insert(real.clone()) {
            return Err(PullError::Config(format!("{}: {} leads back into itself", self.place.named, path.display())));
        }
        for entry in std::fs::read_dir(path).map_err(|fault| disk(self.place, path, &fault))? {
            let entry = entry.map_err(|fault| disk(self.place, path, &fault))?;
            self.measure(&entry.path())?;
        }
        self.open.remove(&real);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Models {
        folder: tempfile::TempDir,
    }

    impl Models {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let at = |path: &str| folder.path().join("root").join(path);
            std::fs::create_dir_all(at("m/1")).expect("a folder");
            std::fs::write(at("m/1/a"), [0; 5]).expect("written");
            std::fs::write(at("m/b"), [0; 3]).expect("written");
            std::fs::write(at("one.onnx"), [0; 9]).expect("written");
            std::fs::write(at("s.json"), [0; 2]).expect("written");
            std::fs::write(folder.path().join("outside"), [0; 100]).expect("written");
            symlink("one.onnx", at("linked.onnx")).expect("linked");
            symlink("m", at("linked")).expect("linked");
            symlink(folder.path().join("outside"), at("out")).expect("linked");
            std::fs::create_dir(at("bad")).expect("a folder");
            symlink("../../outside", at("bad/climbs")).expect("linked");
            std::fs::create_dir(at("loop")).expect("a folder");
            symlink("../loop", at("loop/again")).expect("linked");
            symlink("nowhere", at("dangling")).expect("linked");
            Models { folder }
        }

        fn find(&self, model: &str, schema: Option<&str>) -> Result<Found, PullError> {
            let place = InPlace { root: self.folder.path().join("root"), named: "the folder of storage config k".to_owned() };
            let schema = schema.map(|path| StorePath::parse(path).expect("sound"));
            find(&place, &StorePath::parse(model).expect("sound"), schema.as_ref())
        }
    }

    #[test]
    fn what_only_a_change_can_cure_is_not_tried_again_soon() {
        use berth_types::Retry;
        let models = Models::new();
        symlink("circle", models.folder.path().join("root/circle")).expect("linked");
        for path in ["circle", "nowhere", "dangling"] {
            let fault = models.find(path, None).expect_err("nothing is there");
            assert_eq!(fault.retry(), Retry::AfterChange, "{fault:?}");
        }
    }

    #[test]
    fn files_and_folders_are_measured_through_links_that_stay_inside() {
        let models = Models::new();
        for (path, size, files) in [("one.onnx", 9, 1), ("m", 8, 2), ("m/", 8, 2), ("/m/1", 5, 1), ("linked.onnx", 9, 1), ("linked", 8, 2)] {
            let found = models.find(path, None).expect(path);
            assert_eq!((found.size, found.files), (ByteSize(size), files), "{path}");
            assert!(found.model.exists());
        }
        let found = models.find("m", Some("s.json")).expect("both there");
        assert_eq!(found.size, ByteSize(8), "the schema does not count");
        assert!(found.schema.is_some_and(|path| path.ends_with("s.json")));
    }

    #[test]
    fn what_is_not_there_or_leads_out_is_refused_by_name() {
        let models = Models::new();
        for (path, schema, kind, text) in [
            ("none", None, "NotFound", "none does not exist"),
            ("one.onnx/x", None, "NotFound", "one.onnx/x does not exist"),
            ("one.onnx/", None, "NotFound", "is a file"),
            ("m", Some("none.json"), "NotFound", "none.json does not exist"),
            ("dangling", None, "NotFound", "dangling does not exist"),
            ("out", None, "Denied", "leads out of the folder"),
            ("bad", None, "Denied", "bad/climbs leads out of the folder"),
            ("m", Some("out"), "Denied", "leads out"),
            ("loop", None, "Config", "leads back into itself"),
        ] {
            let fault = models.find(path, schema).expect_err(path);
            assert!(format!("{fault:?}").starts_with(kind) && fault.to_string().contains(text), "{path}: {fault:?}");
            assert!(fault.to_string().contains("storage config k"), "{fault}");
        }
        let nowhere = InPlace { root: "/nowhere/at/all".into(), named: "volume claim c".to_owned() };
        let fault = find(&nowhere, &StorePath::parse("m").expect("sound"), None).expect_err("no root");
        assert_eq!(fault, PullError::NotFound("volume claim c: /nowhere/at/all does not exist".to_owned()));
    }
}
