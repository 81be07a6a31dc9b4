//! Limits and use of cgroups, version 1 and 2.
//!
//! A limit may be set at any level above a process, and the one that leaves least is the one that counts. The kernel
//! counts the page cache as used, and drops it before it ends anybody: it is subtracted here, but for pages that have to be
//! written first. What stands in files of temporary file systems is no cache.

use std::fs;
use std::path::{Component, Path, PathBuf};

use berth_types::{ByteSize, Usage};

/// Limits beyond this are none: version 1 writes the largest number of pages.
const NO_LIMIT: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The cgroups that a process is in, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    version: Version,
    folders: Vec<PathBuf>,
}

/// A file system of cgroups.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// Which folder of the hierarchy is mounted.
    root: PathBuf,
    point: PathBuf,
}

impl Groups {
    /// Those of `pid`, as far as they can be seen from here or from where it stands itself.
    pub(crate) fn of(root: &Path, pid: u32) -> Option<Groups> {
        let process = root.join("proc").join(pid.to_string());
        let said = fs::read_to_string(process.join("cgroup")).ok()?;
        let seen_from = |mountinfo: PathBuf, prefix: &Path, own: bool| {
            let mounts = mounts(&fs::read_to_string(mountinfo).ok()?);
            mounts.into_iter().find_map(|mount| {
                let path = path_of(&said, mount.version)?;
                let point = prefix.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
                let folders = folders(&point, &mount.root, Path::new(path), own)?;
                has_memory(&folders, mount.version).then_some(Groups { version: mount.version, folders })
            })
        };
        let here = seen_from(root.join("proc/self/mountinfo"), root, false);
        here.or_else(|| seen_from(process.join("mountinfo"), &process.join("root"), true))
    }

    /// How full the group is that has least left; `None` when none has a limit.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let levels = self.folders.iter().filter_map(|folder| usage_of(folder, self.version));
        levels.min_by_key(|usage| usage.free())
    }

    /// How many processes the kernel has ended here for want of memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        self.folders.iter().find_map(|folder| field(&fs::read_to_string(folder.join(file)).ok()?, "oom_kill"))
    }

    /// Share of the last ten seconds in which something here waited for memory, in hundredths of a percent.
    pub(crate) fn stalled(&self, root: &Path) -> Option<u32> {
        let own = self.folders.iter().map(|folder| folder.join("memory.pressure"));
        own.chain([root.join("proc/pressure/memory")]).find_map(|file| stalled(&fs::read_to_string(file).ok()?))
    }
}

/// The main memory of the machine, where no group limits it.
pub(crate) fn machine(root: &Path) -> Option<Usage> {
    machine_of(&fs::read_to_string(root.join("proc/meminfo")).ok()?)
}

fn machine_of(meminfo: &str) -> Option<Usage> {
    let kib = |name: &str| field(meminfo, name).map(|kib| kib.saturating_mul(1024));
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    Some(Usage { used: ByteSize(total.saturating_sub(available)), limit: ByteSize(total) })
}

/// The number behind a name at the start of a line.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// From the lines of `/proc/PID/mountinfo`: those with memory, version 1 first, which has it where both are there.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut kind = kind.split_whitespace();
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        let mut fields = fields.split_whitespace();
        Some(Mount { version, root: fields.nth(3)?.into(), point: fields.next()?.into() })
    };
    let mut mounts: Vec<_> = mountinfo.lines().filter_map(mount).collect();
    mounts.sort_by_key(|mount| mount.version == Version::Two);
    mounts
}

/// The path of the group from the lines of `/proc/PID/cgroup`.
fn path_of(said: &str, version: Version) -> Option<&str> {
    said.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::One => controllers.split(',').any(|controller| controller == "memory"),
            Version::Two => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// The folder of the group and those above it, up to the mount. `own`: seen by the process itself, whose mount is its group
/// when nothing better is found.
fn folders(point: &Path, mounted: &Path, path: &Path, own: bool) -> Option<Vec<PathBuf>> {
    let inside = path.strip_prefix(mounted).ok().filter(|inside| inside.components().all(|part| matches!(part, Component::Normal(_))));
    match inside.map(|inside| point.join(inside)).filter(|folder| folder.is_dir()) {
        Some(folder) => Some(folder.ancestors().take_while(|folder| folder.starts_with(point)).map(Path::to_owned).collect()),
        None if own && point.is_dir() => Some(vec![point.to_owned()]),
        None => None,
    }
}

fn has_memory(folders: &[PathBuf], version: Version) -> bool {
    let file = match version {
        Version::One => "memory.usage_in_bytes",
        // The group at the top has none of the files.
        Version::Two => "memory.stat",
    };
    folders.iter().any(|folder| folder.join(file).is_file())
}

/// `None` where no limit is set, or the files cannot be read.
fn usage_of(folder: &Path, version: Version) -> Option<Usage> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let (limit, used, prefix) = match version {
        Version::One => (text("memory.limit_in_bytes")?, text("memory.usage_in_bytes")?, "total_"),
        Version::Two => (text("memory.max")?, text("memory.current")?, ""),
    };
    let (limit, used) = (limit.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)?, used.trim().parse().ok()?);
    let cache = text("memory.stat").map_or(0, |stat| droppable(&stat, prefix));
    Some(Usage { used: ByteSize(u64::saturating_sub(used, cache)), limit: ByteSize(limit) })
}

/// Bytes of the page cache that the kernel can drop at once.
fn droppable(stat: &str, prefix: &str) -> u64 {
    let of = |name: &str| field(stat, &format!("{prefix}{name}")).unwrap_or(0);
    let waits = of("dirty").max(of("file_dirty")).saturating_add(of("writeback").max(of("file_writeback")));
    of("inactive_file").saturating_add(of("active_file")).saturating_sub(waits)
}

/// Of a file of pressure stalls: `some avg10=1.23 ...`.
fn stalled(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let share = line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, part) = share.split_once('.').unwrap_or((share, "0"));
    let part: u32 = format!("{part:0<2}").get(..2)?.parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("a folder")).expect("the folder is writable");
        fs::write(file, text).expect("the folder is writable");
    }

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup rw,nsdelegate\n";
    const V1: &str =
        "36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    fn usage(used: u64, limit: u64) -> Option<Usage> {
        Some(Usage { used: ByteSize(used), limit: ByteSize(limit) })
    }

    #[test]
    fn the_tightest_group_above_a_process_counts_and_caches_do_not() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        put(root, "proc/self/mountinfo", V2);
        put(root, "proc/7/cgroup", "0::/pod/server\n");
        put(root, "sys/fs/cgroup/pod/memory.max", "1000\n");
        put(root, "sys/fs/cgroup/pod/memory.current", "950\n");
        put(root, "sys/fs/cgroup/pod/memory.stat", "anon 300\ninactive_file 200\nactive_file 100\nfile_dirty 20\nfile_writeback 10\n");
        put(root, "sys/fs/cgroup/pod/server/memory.max", "max\n");
        put(root, "sys/fs/cgroup/pod/server/memory.current", "900\n");
        put(root, "sys/fs/cgroup/pod/server/memory.stat", "anon 300\n");
        put(root, "sys/fs/cgroup/pod/server/memory.events", "low 0\nhigh 3\nmax 8\noom 2\noom_kill 1\n");
        put(root, "sys/fs/cgroup/pod/server/memory.pressure", "some avg10=12.3 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00\n");
        let groups = Groups::of(root, 7).expect("it is in a group");
        assert_eq!(groups.usage(), usage(950 - 270, 1000));
        assert_eq!((groups.oom_kills(), groups.stalled(root)), (Some(1), Some(1230)));
        put(root, "sys/fs/cgroup/pod/server/memory.max", "1000");
        assert_eq!(groups.usage(), usage(900, 1000), "the inner one leaves less now");
    }

    #[test]
    fn version_one_is_read_by_its_own_names() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        put(root, "proc/self/mountinfo", &format!("{V2}{V1}"));
        put(root, "proc/7/cgroup", "4:memory:/a\n1:cpu:/\n0::/\n");
        put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5000");
        put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        put(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000\n");
        put(root, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1500\n");
        put(root, "sys/fs/cgroup/memory/a/memory.stat", "inactive_file 7\ntotal_inactive_file 400\ntotal_active_file 300\ntotal_dirty 100\n");
        put(root, "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
        let groups = Groups::of(root, 7).expect("it is in a group");
        assert_eq!((groups.usage(), groups.oom_kills(), groups.stalled(root)), (usage(900, 2000), Some(4), None));
    }

    #[test]
    fn a_group_that_cannot_be_seen_from_here_is_looked_for_from_where_the_server_stands() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        put(root, "proc/self/mountinfo", V2);
        put(root, "proc/7/cgroup", "0::/../other\n");
        put(root, "sys/fs/cgroup/memory.stat", "");
        assert_eq!(Groups::of(root, 7), None, "our own group is not its");
        put(root, "proc/7/mountinfo", V2);
        put(root, "proc/7/root/sys/fs/cgroup/memory.stat", "inactive_file 1");
        put(root, "proc/7/root/sys/fs/cgroup/memory.max", "100");
        put(root, "proc/7/root/sys/fs/cgroup/memory.current", "41");
        assert_eq!(Groups::of(root, 7).expect("seen by the server").usage(), usage(40, 100));
    }

    #[test]
    fn what_is_damaged_is_not_known() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        put(root, "proc/self/mountinfo", &format!("rubbish\n - \n1 2 - cgroup2\n{V2}"));
        put(root, "proc/7/cgroup", "x\n0:\n0::/a\n");
        put(root, "sys/fs/cgroup/a/memory.stat", "inactive_file\nactive_file x\n");
        let groups = Groups::of(root, 7).expect("it is in a group");
        for (max, current, expected) in [("", "1", None), ("-5", "1", None), ("10", "", None), ("10", "1 2", None), ("10", "12", usage(12, 10))] {
            put(root, "sys/fs/cgroup/a/memory.max", max);
            put(root, "sys/fs/cgroup/a/memory.current", current);
            assert_eq!(groups.usage(), expected, "{max:?} {current:?}");
        }
        assert_eq!((groups.oom_kills(), groups.stalled(root), Groups::of(root, 8)), (None, None, None));
        for (text, expected) in
            [("some avg10=0.05 x", Some(5)), ("some avg10=7", Some(700)), ("some avg10=x", None), ("full avg10=1.00", None), ("some", None)]
        {
            assert_eq!(stalled(text), expected, "{text}");
        }
    }

    #[test]
    fn the_machine_counts_what_is_not_available() {
        assert_eq!(machine_of("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   60 kB\n"), usage(40 * 1024, 100 * 1024));
        assert_eq!(machine_of("MemTotal:  100 kB\nMemFree: 1 kB\n"), None);
        assert!(machine(Path::new("/")).is_some_and(|usage| usage.limit > ByteSize::mib(64)), "this machine tells");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,200}") {
            let _ = (mounts(&text), path_of(&text, Version::Two), path_of(&text, Version::One), stalled(&text), machine_of(&text), droppable(&text, ""));
        }
    }
}
