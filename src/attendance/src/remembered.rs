//! The pods that attended lately, on disk: a controller that begins waits for them before it decides anything.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use berth_types::PodId;
use tracing::warn;

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Remembered(PathBuf);

impl Remembered {
    pub(crate) fn at(file: PathBuf) -> Self {
        Remembered(file)
    }

    /// Those of before; none where there is no such file, or it cannot be read.
    pub(crate) fn read(&self) -> BTreeSet<PodId> {
        let read = |path: &Path| -> io::Result<BTreeSet<PodId>> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
        match read(&self.0) {
            Ok(pods) => pods,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(fault) => {
                warn!(file = %self.0.display(), error = %fault, "cannot read which agents attended before: none is waited for");
                BTreeSet::new()
            }
        }
    }

    pub(crate) fn write(&self, pods: &BTreeSet<PodId>) {
        if let Err(fault) = replace(&self.0, |file| file.write_all(&serde_json::to_vec(pods)?)) {
            warn!(file = %self.0.display(), error = %fault, "cannot keep which agents attend: after a restart none is waited for");
        }
    }
}

/// Writes a file anew, beside and then in its place, so that whoever reads it has the whole of one or the other.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut io::BufWriter<std::fs::File>) -> io::Result<()>) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = io::BufWriter::new(std::fs::File::create(&beside)?);
    write(&mut file)?;
    file.flush()?;
    drop(file);
    std::fs::rename(&beside, path)
}
