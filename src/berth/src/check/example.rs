//! The model that a server is checked with: one of its author's, or a small one that comes along; and what is no model at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_adapters::conformance::{Question, raw_request};
use berth_adapters::{Artifacts, sample};
use berth_types::{ByteSize, ModelFormat};
use bytes::Bytes;

use crate::beside::ServerKind;

/// In the server's folder, in what is Berth's there and no model's.
const PLACE: [&str; 2] = [".berth", "check"];
/// What is no model.
const PAGE: &[u8] = b"<!DOCTYPE html><html><body>404 Not Found</body></html>";
/// Files that a model's own folder may have, and folders in each other.
const MOST: usize = 10_000;
const DEEPEST: usize = 16;

/// A model of MLServer that sends its inputs back.
const ECHO: &str = "from mlserver import MLModel, types


class Echo(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        outputs = [types.ResponseOutput(**one.model_dump(exclude={\"parameters\"})) for one in payload.inputs]
        return types.InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
";

/// What a server is checked with.
pub(super) struct Example {
    /// What it is.
    pub(super) format: ModelFormat,
    source: Source,
}

enum Source {
    /// The author's.
    Own(PathBuf),
    /// Adds and multiplies two tensors.
    Onnx,
    /// Sends its inputs back.
    Python,
}

/// The example where the server sees it.
pub(super) struct Files {
    /// What the model's file or folder is called.
    pub(super) name: String,
    /// The model.
    pub(super) good: Artifacts,
    /// None.
    pub(super) bad: Artifacts,
}

impl Example {
    /// The author's model, or one that such a server loads.
    ///
    /// # Errors
    /// There is none: what to give.
    pub(super) fn of(kind: ServerKind, path: Option<PathBuf>, format: Option<ModelFormat>) -> Result<Self, String> {
        let named = |name: &str| ModelFormat { name: name.into(), version: None };
        match (path, format) {
            (Some(path), Some(format)) => match fs::canonicalize(&path) {
                Ok(real) => Ok(Example { format, source: Source::Own(real) }),
                Err(fault) => Err(format!("--model-path: {}: {fault}", path.display())),
            },
            (Some(_), None) => Err("--model-type: what is the model at --model-path? write its format, such as onnx".to_owned()),
            (None, format) => {
                let (usual, source) = match kind {
                    ServerKind::Triton | ServerKind::Ovms | ServerKind::ModelRuntime => ("onnx", Source::Onnx),
                    ServerKind::MlServer => ("python", Source::Python),
                    ServerKind::TorchServe => {
                        return Err(
                            "--model-path: there is no example for TorchServe: name an archive (.mar), and --model-type pytorch-mar".to_owned()
                        );
                    }
                };
                match format.filter(|format| &*format.name != usual) {
                    Some(other) => Err(format!("--model-path: there is no example of {}: name a model", other.name)),
                    None => Ok(Example { format: named(usual), source }),
                }
            }
        }
    }

    /// For the line that is printed.
    pub(super) fn shown(&self) -> String {
        match &self.source {
            Source::Own(path) => format!("{} ({})", path.display(), self.format.name),
            Source::Onnx => "a small ONNX model that comes along (--model-path and --model-type for one of yours)".to_owned(),
            Source::Python => "a small model in Python that comes along (--model-path and --model-type for one of yours)".to_owned(),
        }
    }

    /// What the model is asked.
    pub(super) fn question(&self) -> Question {
        let floats = |values: [f32; 3]| values.into_iter().flat_map(f32::to_le_bytes).collect::<Bytes>();
        let (a, b) = (floats([1.0, 2.0, 3.0]), floats([4.0, 5.0, 6.0]));
        let output = |name: &str, bytes: Bytes| (name.to_owned(), "FP32".to_owned(), vec![1, 3], bytes);
        match self.source {
            Source::Own(_) => Question::Described,
            Source::Onnx => Question::Known {
                request: Box::new(raw_request(&[("a", "FP32", &[1, 3], &a), ("b", "FP32", &[1, 3], &b)])),
                answer: vec![output("sum", floats([5.0, 7.0, 9.0])), output("product", floats([4.0, 10.0, 18.0]))],
            },
            Source::Python => Question::Known { request: Box::new(raw_request(&[("a", "FP32", &[1, 3], &a)])), answer: vec![output("a", a)] },
        }
    }

    /// Writes what comes along, and what is no model, below the server's folder.
    ///
    /// # Errors
    /// The disk's words.
    pub(super) fn laid_down(&self, repository: &Path) -> io::Result<Files> {
        let place = place(repository);
        let (good, bad) = (place.join("good"), place.join("bad"));
        fs::create_dir_all(&good)?;
        fs::create_dir_all(&bad)?;
        let (good, bad) = match &self.source {
            Source::Onnx => {
                fs::write(good.join("model.onnx"), sample::sum_and_product(true))?;
                fs::write(bad.join("model.onnx"), PAGE)?;
                (good.join("model.onnx"), bad.join("model.onnx"))
            }
            Source::Python => {
                for (folder, module) in [(&good, "berth_check_echo"), (&bad, "berth_check_nothing")] {
                    let settings = format!("{{\"name\": \"check\", \"implementation\": \"{module}.Echo\"}}");
                    fs::create_dir_all(folder.join("model"))?;
                    fs::write(folder.join("model/model-settings.json"), settings)?;
                }
                fs::write(good.join("model/berth_check_echo.py"), ECHO)?;
                fs::write(bad.join("model/berth_check_nothing.py"), PAGE)?;
                (good.join("model"), bad.join("model"))
            }
            Source::Own(path) => {
                let bad = bad.join(path.file_name().unwrap_or("model".as_ref()));
                let mut left = MOST;
                spoilt(path, &bad, DEEPEST, &mut left)?;
                (path.clone(), bad)
            }
        };
        let name = good.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Files { name, good: artifacts(good)?, bad: artifacts(bad)? })
    }
}

fn place(repository: &Path) -> PathBuf {
    PLACE.iter().fold(repository.to_owned(), |path, part| path.join(part))
}

/// The same files with a web page in each.
fn spoilt(from: &Path, to: &Path, deepest: usize, left: &mut usize) -> io::Result<()> {
    if !from.is_dir() {
        return fs::write(to, PAGE);
    }
    fs::create_dir_all(to)?;
    if deepest > 0 {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if *left == 0 {
                return Ok(());
            }
            *left -= 1;
            spoilt(&entry.path(), &to.join(entry.file_name()), deepest - 1, left)?;
        }
    }
    Ok(())
}

fn artifacts(model: PathBuf) -> io::Result<Artifacts> {
    let size = ByteSize(bytes(&model, DEEPEST)?);
    Ok(Artifacts { model, schema: None, size })
}

fn bytes(path: &Path, deepest: usize) -> io::Result<u64> {
    let about = fs::metadata(path)?;
    if !about.is_dir() || deepest == 0 {
        return Ok(about.len());
    }
    fs::read_dir(path)?.take(MOST).try_fold(0_u64, |sum, entry| Ok(sum.saturating_add(bytes(&entry?.path(), deepest - 1)?)))
}

/// The server's folder, as it was before.
pub(super) struct Folder {
    path: PathBuf,
    was: Was,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Absent,
    Empty,
    /// Berth's already, or somebody's: then it is not taken.
    Used,
}

impl Folder {
    pub(super) fn at(path: &Path) -> Self {
        let was = match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Was::Empty,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Was::Absent,
            Ok(false) | Err(_) => Was::Used,
        };
        Folder { path: path.to_owned(), was }
    }

    /// Leaves it as it was, but for what lay in it if it was Berth's.
    pub(super) fn leave(self) -> io::Result<()> {
        let gone = match self.was {
            Was::Absent => fs::remove_dir_all(&self.path),
            Was::Empty => fs::remove_dir_all(self.path.join(PLACE[0])),
            Was::Used => fs::remove_dir_all(place(&self.path)),
        };
        gone.or_else(|fault| if fault.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(fault) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(name: &str) -> Option<ModelFormat> {
        Some(ModelFormat { name: name.into(), version: None })
    }

    #[test]
    fn every_server_has_an_example_or_is_told_what_to_name() {
        for (kind, given, says) in [
            (ServerKind::Triton, None, "onnx"),
            (ServerKind::Ovms, format("onnx"), "onnx"),
            (ServerKind::ModelRuntime, None, "onnx"),
            (ServerKind::MlServer, None, "python"),
            (ServerKind::MlServer, format("sklearn"), "--model-path: there is no example of sklearn"),
            (ServerKind::TorchServe, None, "--model-path: there is no example for TorchServe"),
        ] {
            let told = Example::of(kind, None, given).map_or_else(|why| why, |example| example.format.name.to_string());
            assert!(told.starts_with(says), "{kind:?}: {told}");
        }
        let missing = Example::of(ServerKind::Triton, Some("/no/such".into()), format("onnx")).err().expect("it is not there");
        assert!(missing.starts_with("--model-path: /no/such: "), "{missing}");
    }

    #[test]
    fn an_authors_model_stays_where_it_is_and_its_bad_twin_has_its_names() {
        let place = tempfile::tempdir().expect("a folder");
        let (own, repository) = (place.path().join("net"), place.path().join("repository"));
        fs::create_dir_all(own.join("deep")).expect("a folder");
        fs::write(own.join("deep/weights.bin"), "0123456789").expect("written");
        fs::create_dir(&repository).expect("a folder");
        let folder = Folder::at(&repository);
        let example = Example::of(ServerKind::ModelRuntime, Some(own.clone()), format("mine")).expect("it is there");
        let files = example.laid_down(&repository).expect("written");
        assert_eq!((files.name.as_str(), files.good.size), ("net", ByteSize(10)));
        assert_eq!(files.good.model, fs::canonicalize(&own).expect("there"));
        assert_eq!(fs::read(files.bad.model.join("deep/weights.bin")).expect("there"), PAGE);
        assert!(files.bad.model.starts_with(&repository), "where the server sees it");
        folder.leave().expect("tidied up");
        assert!(repository.is_dir() && fs::read_dir(&repository).expect("there").next().is_none() && own.is_dir());
    }

    #[test]
    fn a_folder_is_left_as_it_was_found() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("r");
        for (was, before, after) in [(Was::Absent, None, None), (Was::Used, Some(".berth/parts"), Some(".berth/parts"))] {
            let _ = fs::remove_dir_all(&path);
            if let Some(before) = before {
                fs::create_dir_all(path.join(before)).expect("a folder");
            }
            let folder = Folder::at(&path);
            assert_eq!(folder.was, was);
            Example::of(ServerKind::Triton, None, None).expect("there is one").laid_down(&path).expect("written");
            folder.leave().expect("tidied up");
            assert_eq!(path.exists(), after.is_some(), "{was:?}");
            assert!(after.is_none_or(|kept| path.join(kept).is_dir()) && !path.join(".berth/check").exists(), "{was:?}");
        }
    }
}
