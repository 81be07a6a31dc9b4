//! Which file of a model's folder is the model, and whether all that it needs is there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use berth_types::ByteSize;

use super::outline::{self, Outline};
use crate::LoadError;
use crate::tensor::shape_text;

/// A model file that has been looked at.
#[derive(Debug)]
pub(super) struct ModelFile {
    pub(super) path: PathBuf,
    pub(super) outline: Outline,
    /// Bytes of the external data beside it.
    pub(super) external: ByteSize,
}

impl ModelFile {
    /// The file's name, for messages: paths of the disk tier say nothing to a user.
    pub(super) fn name(&self) -> String {
        name_of(&self.path)
    }
}

/// The last part of a path.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The model file at `path`: the file itself; in a folder the only `*.onnx` file, else `model.onnx`, else the same in
/// the sub-folder with the highest number above zero (Triton's versions).
///
/// # Errors
/// A bad model, naming what was found instead.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, LoadError> {
    let unreadable = |fault: io::Error| LoadError::bad_model(format!("{} cannot be read: {fault}", name_of(path)));
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(path.to_owned());
    }
    let found = list(path).map_err(unreadable)?;
    if let Some(model) = found.model() {
        return Ok(path.join(model));
    }
    let mut versions: Vec<(u64, &String)> =
        found.folders.iter().filter_map(|name| Some((name.parse::<u64>().ok().filter(|version| *version > 0)?, name))).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    for (_, version) in versions {
        let folder = path.join(version);
        if let Some(model) = list(&folder).map_err(unreadable)?.model() {
            return Ok(folder.join(model));
        }
    }
    let wanted = "one *.onnx file, model.onnx, or a folder named by a version number that holds one of these";
    Err(LoadError::bad_model(format!("no ONNX model in {}: expected {wanted}; found {}", name_of(path), found.text())))
}

#[derive(Default)]
struct Listing {
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
}

fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // Follows links: a layout may be made of them.
        match fs::metadata(entry.path()) {
            Ok(about) if about.is_dir() => listing.folders.insert(name),
            Ok(_) => listing.files.insert(name),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => false,
            Err(fault) => return Err(fault),
        };
    }
    Ok(listing)
}

impl Listing {
    fn model(&self) -> Option<&String> {
        let is_onnx = |name: &str| Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"));
        let mut models = self.files.iter().filter(|name| is_onnx(name));
        match (models.next(), models.next()) {
            (Some(only), None) => Some(only),
            _ => self.files.get("model.onnx"),
        }
    }

    /// At most ten names; folders end with a slash.
    fn text(&self) -> String {
        const SHOWN: usize = 10;
        let all = self.files.len() + self.folders.len();
        if all == 0 {
            return "nothing".to_owned();
        }
        let names = self.folders.iter().map(|name| format!("{name}/")).chain(self.files.iter().cloned());
        let more = if all > SHOWN { format!(" and {} more", all - SHOWN) } else { String::new() };
        shape_text(names.take(SHOWN)) + &more
    }
}

/// Reads the outline of a model file and checks that its external data is beside it.
///
/// # Errors
/// A bad model: what is wrong with the file, or which other file is missing or outside the model's folder.
pub(super) fn inspect(path: &Path) -> Result<ModelFile, LoadError> {
    let name = name_of(path);
    let outline = outline::read(path).map_err(|fault| LoadError::bad_model(format!("{name} {fault}")))?;
    let mut external = ByteSize::ZERO;
    let folder = path.parent().unwrap_or(Path::new("."));
    for location in &outline.external {
        // A model could otherwise have any file of this machine read into its weights, and given out again.
        if !Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(LoadError::bad_model(format!("{name} has external data in {location:?}, which is outside the model's folder")));
        }
        let inside = folder.canonicalize().and_then(|root| Ok(folder.join(location).canonicalize()?.starts_with(root)));
        match inside.and_then(|inside| Ok((inside, fs::metadata(folder.join(location))?))) {
            Ok((true, about)) => external += ByteSize(about.len()),
            Ok((false, _)) => {
                let message = format!("{name} has external data in {location:?}, a link that leads outside the model's folder");
                return Err(LoadError::bad_model(message));
            }
            Err(fault) => {
                let beside = list(folder).map(|found| found.text()).unwrap_or_default();
                let message = format!("{name} needs the external data file {location:?} beside it: {fault}; found {beside}");
                return Err(LoadError::bad_model(message));
            }
        }
    }
    Ok(ModelFile { path: path.to_owned(), outline, external })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_model_of_a_folder_is_the_one_that_people_mean() {
        for (case, files, expected) in [
            ("the only one, whatever its name", &["net.ONNX", "labels.txt"][..], Ok("net.ONNX")),
            ("model.onnx among several", &["a.onnx", "model.onnx"], Ok("model.onnx")),
            ("the newest version, by number", &["2/model.onnx", "10/net.onnx", "config.pbtxt"], Ok("10/net.onnx")),
            ("a newer version without a model", &["2/model.onnx", "3/readme.md"], Ok("2/model.onnx")),
            ("the folder itself before versions", &["model.onnx", "7/model.onnx"], Ok("model.onnx")),
            ("hidden files do not count", &[".old.onnx", "new.onnx"], Ok("new.onnx")),
            ("version zero is none", &["0/model.onnx"], Err("found [0/]")),
            ("several without model.onnx", &["a.onnx", "b.onnx"], Err("found [a.onnx, b.onnx]")),
            ("something else", &["model.pt", "sub/x"], Err("found [sub/, model.pt]")),
            ("nothing", &[], Err("found nothing")),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
                fs::write(path, "x").expect("a file");
            }
            match (resolve(folder.path()), expected) {
                (Ok(path), Ok(expected)) => assert_eq!(path, folder.path().join(expected), "{case}"),
                (Err(fault), Err(says)) => assert!(fault.message.ends_with(says) && fault.nothing_attempted, "{case}: {fault}"),
                (answer, expected) => panic!("{case}: {answer:?} instead of {expected:?}"),
            }
        }
        let gone = resolve(Path::new("/nowhere/at-all")).expect_err("it is not there");
        assert!(gone.message.starts_with("at-all cannot be read: "), "{gone}");
    }

    #[test]
    fn external_data_must_be_inside_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("secret"), "12345678").expect("a file");
        let inner = folder.path().join("model");
        fs::create_dir(&inner).expect("a folder");
        fs::write(inner.join("w.bin"), "12345678").expect("a file");
        std::os::unix::fs::symlink("../secret", inner.join("link")).expect("a link");
        for (location, says) in [
            ("w.bin", None),
            ("./w.bin", None),
            ("gone.bin", Some("needs the external data file \"gone.bin\" beside it")),
            ("../secret", Some("outside the model's folder")),
            ("/etc/passwd", Some("outside the model's folder")),
            ("link", Some("leads outside the model's folder")),
        ] {
            fs::write(inner.join("model.onnx"), sample::with_external_weights(location)).expect("a file");
            match (inspect(&inner.join("model.onnx")), says) {
                (Ok(file), None) => assert_eq!(file.external, ByteSize(8), "{location}"),
                (Err(fault), Some(says)) => assert!(fault.message.contains(says), "{location}: {fault}"),
                (answer, says) => panic!("{location}: {answer:?} instead of {says:?}"),
            }
        }
    }
}
