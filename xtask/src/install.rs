//! How a part gets into the cache folder: whole or not at all, one run at a time, with a log beside it.
//!
//! Each part is a folder of its own in the cache, named by what is in it and its version. It is built beside its place
//! and renamed into it, so a folder that is there is whole. Installs hold a lock: two runs do not build the same thing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::group::{End, Group, now};
use crate::say;

/// The longest that one command of an installation may take, beside compilers on two cores.
const INSTALLING: Duration = Duration::from_mins(30);

/// The cache folder, locked for this run.
pub(crate) struct Cache {
    folder: PathBuf,
    /// Released when closed.
    _lock: File,
}

impl Cache {
    /// `~/.cache/berth/parts`, or what BERTH_PARTS names; waits until no other run installs there.
    pub(crate) fn open() -> Result<Cache> {
        let folder = place()?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("cannot make the lock file")?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            say("parts: another run is installing, waiting for it");
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("cannot lock the parts folder")?;
        }
        Ok(Cache { folder, _lock: lock })
    }

    /// Where the parts are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the part `name`, built by `build` when it is not there. `build` is given a folder to fill and a log.
    pub(crate) fn part(&self, name: &str, build: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        let place = self.folder.join(name);
        if place.is_dir() {
            return Ok(place);
        }
        let log = self.folder.join(format!("{name}.log"));
        say(&format!("parts: installing {name}, log in {}", log.display()));
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let unfinished = self.folder.join(format!("{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).context("cannot remove what an interrupted install left")?;
        }
        fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        let start = now();
        build(&unfinished, &log).with_context(|| format!("cannot install {name}; its log is {}", log.display()))?;
        fs::rename(&unfinished, &place).with_context(|| format!("cannot rename {}", unfinished.display()))?;
        say(&format!("parts: {name} is installed, it took {} s", start.elapsed().as_secs()));
        Ok(place)
    }
}

fn place() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("BERTH_PARTS") {
        return std::path::absolute(folder).context("BERTH_PARTS");
    }
    let home = std::env::var_os("HOME").context("neither BERTH_PARTS nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/berth/parts"))
}

/// FNV-1a: the same on every machine and with every compiler, which is all that a folder's name needs.
pub(crate) fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A program that leaves the cores to the tests and compilers that run at the same time.
pub(crate) fn gently(program: impl AsRef<OsStr>) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(program);
    nice
}

/// Runs `command` with all it writes going to the end of `log`.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    logged_within(INSTALLING, command, log)
}

/// The same, with a time limit.
pub(crate) fn logged_within(limit: Duration, command: &mut Command, log: &Path) -> Result<()> {
    let out = File::options().append(true).create(true).open(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = out.try_clone().context("cannot share the log")?;
    match Group::start(command.stdin(Stdio::null()).stdout(out).stderr(errors))?.wait(Some(now() + limit), |_| Ok(()))? {
        End::By(status) => ensure!(status.success(), "{command:?} failed: {status}"),
        End::OutOfTime => bail!("{command:?} was killed after {} min", limit.as_secs() / 60),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_built_once_and_never_left_half_built() {
        let folder = std::env::temp_dir().join(format!("berth-xtask-parts-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let cache = Cache { _lock: File::create(folder.join("lock")).expect("a file"), folder: folder.clone() };
        let failed = cache.part("p-1", |place, _| {
            fs::write(place.join("half"), "")?;
            bail!("no room")
        });
        assert!(format!("{:#}", failed.expect_err("it failed")).contains("p-1.log"));
        assert!(!folder.join("p-1").exists());
        let place = cache.part("p-1", |place, _| Ok(fs::write(place.join("whole"), "")?)).expect("built");
        assert!(place.join("whole").exists() && !place.join("half").exists());
        cache.part("p-1", |_, _| bail!("built a second time")).expect("found again");
        fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn fingerprints_tell_texts_apart() {
        assert_eq!(fingerprint(""), 0xcbf2_9ce4_8422_2325);
        assert_ne!(fingerprint("a==1"), fingerprint("a==2"));
    }
}
