//! Writing a file so that a crash leaves the whole old one or the whole new one.

use std::fs::File;
use std::io::{BufWriter, Result, Write as _};
use std::path::Path;

/// Replaces the file at `path` by what `content` writes: temporary name, sync, rename. Nothing is left behind where that
/// fails, so that a full disk is not made fuller. Blocking: for a blocking thread.
pub(crate) fn replace(path: &Path, content: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    let written = written(temporary, content).and_then(|()| std::fs::rename(temporary, path));
    if written.is_err() {
        // Not being able to clean up is no news after not being able to write.
        let _ = std::fs::remove_file(temporary);
    }
    written
}

fn written(path: &Path, content: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    content(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state").join("a.json");
        replace(&path, |file| file.write_all(b"old")).expect("the folder is writable");
        let fails = |file: &mut BufWriter<File>| {
            file.write_all(b"new, but only")?;
            Err(std::io::ErrorKind::StorageFull.into())
        };
        assert!(replace(&path, fails).is_err());
        assert_eq!(std::fs::read(&path).expect("it is there"), b"old");
        assert_eq!(std::fs::read_dir(folder.path().join("state")).expect("a folder").count(), 1);
    }
}
