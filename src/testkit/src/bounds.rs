//! Processes whose memory is bounded: by a cgroup of their own, where one can be made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A cgroup (version 1) with a limit of memory. Removed when dropped, after what ran in it.
pub struct Bounds {
    folder: PathBuf,
}

impl Bounds {
    /// A group beside those of this process; `None` where none can be made.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.trim_start_matches('/')))?;
        let mounted = Path::new("/sys/fs/cgroup/memory").join(path);
        let name = format!("berth-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bounds = Bounds { folder: mounted.join(name) };
        // Groups of tests that have ended, whose last process had not when they were dropped.
        for entry in
            fs::read_dir(&mounted).into_iter().flatten().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("berth-test-"))
        {
            let ended = fs::read_to_string(entry.path().join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
            let _ = ended.then(|| fs::remove_dir(entry.path()));
        }
        fs::create_dir(&bounds.folder).ok()?;
        fs::write(bounds.folder.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(bounds)
    }

    /// Puts a process there; what it starts from now on is there, too.
    ///
    /// # Errors
    /// What the system says.
    pub fn hold(&self, pid: i32) -> Result<()> {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).with_context(|| self.folder.display().to_string())
    }

    fn number(&self, file: &str, name: &str) -> Result<u64> {
        let text = fs::read_to_string(self.folder.join(file))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).with_context(|| format!("{file} has {name}"))?;
        Ok(value.trim().parse()?)
    }

    /// Bytes in use there but for caches.
    ///
    /// # Errors
    /// What the system says.
    pub fn in_use(&self) -> Result<u64> {
        Ok(self.number("memory.stat", "total_rss")? + self.number("memory.stat", "total_shmem")?)
    }

    /// How many processes the kernel has ended there for want of memory.
    ///
    /// # Errors
    /// What the system says.
    pub fn kills(&self) -> Result<u64> {
        self.number("memory.oom_control", "oom_kill")
    }
}

impl Drop for Bounds {
    fn drop(&mut self) {
        // What still runs there goes where it would be without it.
        let above = self.folder.parent().map(|above| above.join("cgroup.procs"));
        for pid in fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = above.as_ref().map(|above| fs::write(above, pid));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
