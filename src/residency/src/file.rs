//! Writing a file so that a crash leaves the whole old one or the whole new one.

use std::fs::File;
use std::io::{BufWriter, Result, Write as _};
use std::path::Path;

/// Replaces the file at `path` by what `content` writes: temporary name, sync, rename, sync of the folder, without which
/// the old name could be back after a power cut. Nothing is left behind where that fails, so that a full disk is not made
/// fuller. Blocking: for a blocking thread.
pub(crate) fn replace<T>(path: &Path, content: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    let written = written(temporary, content).and_then(|answer| std::fs::rename(temporary, path).map(|()| answer));
    match written {
        Ok(answer) => File::open(folder)?.sync_all().map(|()| answer),
        Err(fault) => {
            // Not being able to clean up is no news after not being able to write.
            let _ = std::fs::remove_file(temporary);
            Err(fault)
        }
    }
}

fn written<T>(path: &Path, content: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let mut file = BufWriter::new(File::create(path)?);
    let answer = content(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state").join("a.json");
        replace(&path, |file| file.write_all(b"old")).expect("the folder is writable");
        let fails = |file: &mut BufWriter<File>| -> Result<()> {
            file.write_all(b"new, but only")?;
            Err(std::io::ErrorKind::StorageFull.into())
        };
        assert!(replace(&path, fails).is_err());
        assert_eq!(std::fs::read(&path).expect("it is there"), b"old");
        assert_eq!(std::fs::read_dir(folder.path().join("state")).expect("a folder").count(), 1);
    }
}
