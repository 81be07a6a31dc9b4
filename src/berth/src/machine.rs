//! What this machine, or the cgroup that we live in, has to give.

use std::path::Path;

use berth_types::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

/// A budget and where it came from, for the line that `serve` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes.
    pub(crate) bytes: ByteSize,
    /// Where the number came from, as a phrase.
    pub(crate) origin: &'static str,
}

/// Main memory for models where the user named none: half of the limit of our cgroup, or of the machine's memory. The
/// other half is for requests, the engine's working memory and everything else on the machine.
///
/// # Errors
/// A text when neither can be read.
pub(crate) fn host_memory() -> Result<Budget, String> {
    let unreadable = |fault: &dyn std::fmt::Display| format!("cannot read this machine's memory ({fault}): set --host-memory");
    let mut system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything())).map_err(|fault| unreadable(&fault))?;
    // The limit of the cgroup that this process is in; the one at the top counts where the two are the same (a container).
    let own = sysinfo::get_current_pid().ok().and_then(|pid| {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
        system.process(pid)?.cgroup_limits()
    });
    let limits = [own, system.cgroup_limits()].into_iter().flatten().map(|limits| limits.total_memory).filter(|limit| *limit > 0);
    half_of(limits.min(), system.total_memory()).ok_or_else(|| "this machine does not tell how much memory it has: set --host-memory".to_owned())
}

fn half_of(cgroup: Option<u64>, machine: u64) -> Option<Budget> {
    match cgroup.filter(|limit| *limit > 0 && *limit < machine) {
        Some(limit) => Some(Budget { bytes: ByteSize(limit / 2), origin: "half of the cgroup's memory" }),
        None => (machine > 0).then_some(Budget { bytes: ByteSize(machine / 2), origin: "half of the machine's memory" }),
    }
}

/// Disk for fetched models where the user named none: half of what is free under `data`, plus what the tier holds.
///
/// # Errors
/// A text when the file system does not tell.
pub(crate) fn disk(data: &Path, held: ByteSize) -> Result<Budget, String> {
    let stat = rustix::fs::statvfs(data).map_err(|fault| format!("cannot read the free space under {} ({fault}): set --disk", data.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    Ok(Budget { bytes: ByteSize(free / 2) + held, origin: "half of the free disk" })
}

/// Raises the number of files that this process may have open to the most that it is allowed: a connection is one, and
/// the usual 1,024 are kept low only for programs that cannot count further.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(fault) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(error = %fault, limit = ?limit.current, "the limit of open files cannot be raised: connections beyond it are not accepted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_limit_counts_only_where_it_is_one() {
        assert_eq!(half_of(Some(100), 1000), Some(Budget { bytes: ByteSize(50), origin: "half of the cgroup's memory" }));
        for no_limit in [None, Some(0), Some(1000), Some(u64::MAX)] {
            assert_eq!(half_of(no_limit, 1000), Some(Budget { bytes: ByteSize(500), origin: "half of the machine's memory" }));
        }
        assert_eq!(half_of(None, 0), None);
    }

    #[test]
    fn this_machine_tells_its_memory_and_disk() {
        assert!(host_memory().expect("memory").bytes > ByteSize::mib(64));
        assert!(disk(Path::new("/"), ByteSize::ZERO).is_ok());
    }
}
