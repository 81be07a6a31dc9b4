//! One process per data folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::OpenError;

/// The name of the lock file. It stays when the lock is given back: only the lock on it means something.
const NAME: &str = "berth.lock";

/// Held while this process owns a data folder; the system gives it back however the process ends. A store on the disk has one of
/// its own.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// The lock of `dir`, which is made where it is missing, for a process without a store.
    ///
    /// # Errors
    /// Another process has it, or the folder cannot be used.
    pub fn of(dir: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(|fault| OpenError::Folder { dir: dir.to_owned(), fault })?;
        DataLock::take(dir)
    }

    /// Takes the lock of `dir`, which must exist, and leaves the id of this process there for whoever comes second.
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        let broken = |fault| OpenError::Folder { dir: dir.to_owned(), fault };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(broken)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only a hint: the owner may be between taking the lock and writing its id.
                let _ = (&mut file).take(32).read_to_string(&mut text);
                return Err(OpenError::InUse { dir: dir.to_owned(), process: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(fault)) => return Err(broken(fault)),
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(broken)?;
        Ok(DataLock { _file: file })
    }
}
