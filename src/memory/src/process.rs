//! What a process and those that it started hold of main memory.
//!
//! Counted are pages that nothing backs but memory itself: anonymous ones and shared ones. A page that is shared within the
//! tree counts for each that has touched it. Pages of mapped files do not count: the kernel drops and reads them again.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use berth_types::ByteSize;

use crate::cgroup::field;

/// One process, told from a later one with the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks since the machine was started.
    pub(crate) started: u64,
}

impl Process {
    pub(crate) fn of(root: &Path, pid: u32) -> Option<Process> {
        stat(root, pid).map(|stat| Process { pid, started: stat.started })
    }

    /// Still the same one, and not a dead one whose end nobody has taken note of.
    pub(crate) fn lives(self, root: &Path) -> bool {
        stat(root, self.pid).is_some_and(|stat| stat.started == self.started && !stat.dead)
    }
}

/// Of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    dead: bool,
    parent: u32,
    started: u64,
}

fn stat(root: &Path, pid: u32) -> Option<Stat> {
    stat_of(&fs::read_to_string(folder(root, pid).join("stat")).ok()?)
}

fn stat_of(text: &str) -> Option<Stat> {
    // The name, in brackets, may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    Some(Stat { dead: matches!(state, "Z" | "X" | "x"), parent, started: fields.nth(17)?.parse().ok()? })
}

pub(crate) fn folder(root: &Path, pid: u32) -> PathBuf {
    root.join("proc").join(pid.to_string())
}

/// The numbers of all processes.
pub(crate) fn all(root: &Path) -> Vec<u32> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// `pid` and all that it started, directly or not.
pub(crate) fn tree(root: &Path, pid: u32) -> HashSet<u32> {
    let parents: HashMap<u32, u32> = all(root).into_iter().filter_map(|pid| Some((pid, stat(root, pid)?.parent))).collect();
    descendants(pid, &parents)
}

fn descendants(pid: u32, parents: &HashMap<u32, u32>) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, parent) in parents {
        children.entry(*parent).or_default().push(*child);
    }
    let (mut found, mut next) = (HashSet::from([pid]), vec![pid]);
    while let Some(pid) = next.pop() {
        next.extend(children.get(&pid).into_iter().flatten().filter(|child| found.insert(**child)));
    }
    found
}

/// Of several processes the one that none of the others started: the first of them by number where there are more.
pub(crate) fn topmost(root: &Path, pids: &[u32]) -> Option<u32> {
    let above = |pid: u32| {
        let (mut at, mut steps) = (pid, 0);
        std::iter::from_fn(move || {
            steps += 1;
            at = stat(root, at)?.parent;
            (at > 0 && steps < 64).then_some(at)
        })
    };
    pids.iter().copied().filter(|pid| !above(*pid).any(|parent| pids.contains(&parent))).min()
}

/// What these processes hold; `None` when none of them can be looked at.
pub(crate) fn held(root: &Path, pids: impl IntoIterator<Item = u32>) -> Option<ByteSize> {
    let each = pids.into_iter().filter_map(|pid| held_of(&fs::read_to_string(folder(root, pid).join("status")).ok()?));
    each.reduce(|sum, bytes| sum + bytes)
}

fn held_of(status: &str) -> Option<ByteSize> {
    let kib = field(status, "RssAnon:")?.saturating_add(field(status, "RssShmem:").unwrap_or(0));
    Some(ByteSize(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(root: &Path, pid: u32, parent: u32, kib: u64) {
        let folder = folder(root, pid);
        fs::create_dir_all(&folder).expect("the folder is writable");
        let stat = format!("{pid} (a) b) S {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {} 0", 1000 + pid);
        fs::write(folder.join("stat"), stat).expect("the folder is writable");
        let status = format!("Name:\ta\nVmRSS:\t  9999 kB\nRssAnon:\t  {kib} kB\nRssFile:\t 500 kB\nRssShmem:\t 1 kB\n");
        fs::write(folder.join("status"), status).expect("the folder is writable");
    }

    #[test]
    fn a_tree_is_all_that_a_process_started_and_nothing_else() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        for (pid, parent, kib) in [(1, 0, 1), (10, 1, 100), (11, 10, 20), (12, 11, 3), (20, 1, 5000)] {
            put(root, pid, parent, kib);
        }
        fs::create_dir_all(root.join("proc/self")).expect("the folder is writable");
        assert_eq!(tree(root, 10), HashSet::from([10, 11, 12]));
        assert_eq!(held(root, tree(root, 10)), Some(ByteSize::kib(126)));
        assert_eq!((held(root, tree(root, 99)), topmost(root, &[12, 10, 11])), (None, Some(10)));
        assert_eq!(topmost(root, &[20, 12]), Some(12));
        let server = Process::of(root, 10).expect("it lives");
        assert!(server.lives(root));
        put(root, 10, 1, 1);
        fs::write(folder(root, 10).join("stat"), "10 (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0").expect("writable");
        assert!(!server.lives(root), "another one has its number");
    }

    #[test]
    fn what_is_damaged_is_not_known() {
        for text in ["", "1 (a) S", "1 (a S 2", "1 (a) S x 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5", "1 (a) S 1 1 1"] {
            assert_eq!(stat_of(text), None, "{text}");
        }
        assert!(stat_of("1 (a) Z 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5").is_some_and(|stat| stat.dead));
        for text in ["", "RssAnon:", "RssAnon: x kB", "VmRSS: 5 kB"] {
            assert_eq!(held_of(text), None, "{text}");
        }
        assert_eq!(held_of("RssAnon:\t18446744073709551615 kB\nRssShmem: 1 kB"), Some(ByteSize(u64::MAX)), "no overflow");
    }

    #[test]
    fn this_process_holds_what_it_has_written() {
        let own = std::process::id();
        let before = held(Path::new("/"), [own]).expect("this is Linux");
        let block = std::hint::black_box(vec![1_u8; 32 << 20]);
        let after = held(Path::new("/"), tree(Path::new("/"), own)).expect("this is Linux");
        assert!(after.0 > before.0 + (28 << 20), "{before} before, {after} with {} bytes more", block.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_family_however_tangled_keeps_the_walk_from_ending(links in prop::collection::hash_map(0u32..12, 0u32..12, 0..12), pid in 0u32..12) {
            let tree = descendants(pid, &links);
            prop_assert!(tree.contains(&pid));
            for (child, parent) in &links {
                prop_assert!(!tree.contains(parent) || tree.contains(child));
            }
        }
    }
}
