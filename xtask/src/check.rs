//! Checks of the tree itself that need no compiler: who depends on whom, how large files are, what nobody may write.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::say;
use crate::step::{Outcome, root};
use crate::workspace::{Member, members};

/// Which of our crates each of our crates may name in `[dependencies]`. Tests and benches may name all; so may the
/// binary, which wires them together. A crate that is not listed here is a fault: decide first where it stands.
const ARROWS: [(&str, &[&str]); 17] = [
    ("types", &[]),
    ("plan", &["types"]),
    ("proto", &[]),
    ("splice", &[]),
    ("telemetry", &["types"]),
    ("upstream", &["types", "telemetry"]),
    ("stores", &["types", "telemetry"]),
    ("disk", &["types", "telemetry"]),
    ("puller", &["types", "telemetry", "stores", "disk"]),
    ("memory", &["types", "telemetry"]),
    ("adapters", &["types", "proto", "telemetry", "upstream"]),
    ("residency", &["types", "plan", "puller", "adapters", "memory", "telemetry"]),
    ("registry", &["types", "plan", "proto", "telemetry"]),
    ("proxy", &["types", "plan", "proto", "splice", "adapters", "registry", "residency", "telemetry", "upstream"]),
    ("api", &["types", "plan", "registry", "telemetry"]),
    ("attendance", &["types", "plan", "proto", "registry", "residency", "controller", "telemetry"]),
    ("controller", &["types", "plan", "proto", "registry", "residency", "puller", "adapters", "telemetry"]),
];

/// Crates that may name any other of ours.
const TOP: [&str; 5] = ["berth", "testkit", "benches", "tests", "xtask"];

/// Crates that decide and compute only: nothing that does I/O, waits or reads a clock.
const PURE: [&str; 3] = ["types", "plan", "splice"];

/// All that a pure crate may use from elsewhere.
const PURE_USES: [&str; 7] = ["blake3", "bytes", "flate2", "serde", "serde_json", "sha1", "thiserror"];

/// The longest Rust file, in lines. A file is about one thing.
const LONGEST_RUST: usize = 1_200;

/// The largest file, in bytes.
const LARGEST: u64 = 2 << 20;

/// Marks of unfinished work, spelled so that this file does not hold them.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// All checks; every fault is told.
pub(crate) fn tree() -> Result<Outcome> {
    say("\n== tree: dependency arrows, file sizes, unfinished work");
    let mut faults = arrows(&members()?);
    let root = root();
    for path in files(&root)? {
        faults.extend(file(&root, &path)?);
    }
    faults.iter().for_each(|fault| say(&format!("   {fault}")));
    Ok(Outcome { fault: (!faults.is_empty()).then_some("failed"), ..Outcome::default() })
}

fn arrows(members: &[Member]) -> Vec<String> {
    let mut faults = Vec::new();
    for member in members.iter().filter(|member| !TOP.contains(&member.name.as_str())) {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == member.name) else {
            faults.push(format!("crate {} has no place in the table of arrows (xtask/src/check.rs)", member.name));
            continue;
        };
        for used in &member.uses {
            match used.strip_prefix("berth-") {
                Some(ours) if !allowed.contains(&ours) => faults.push(format!("crate {} must not depend on {ours}", member.name)),
                None if PURE.contains(&member.name.as_str()) && !PURE_USES.contains(&used.as_str()) => {
                    faults.push(format!("crate {} is pure and must not depend on {used}", member.name));
                }
                Some(_) | None => {}
            }
        }
    }
    faults
}

/// Every file of ours below `root`: what version control would take.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let skipped: BTreeSet<PathBuf> = ["target", "berth-data", ".git"].map(|name| root.join(name)).into();
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && !skipped.contains(&path) && entry.file_name() != "__pycache__" {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn file(root: &Path, path: &Path) -> Result<Vec<String>> {
    let shown = path.strip_prefix(root).unwrap_or(path).display();
    let size = path.metadata()?.len();
    if size > LARGEST {
        return Ok(vec![format!("{shown} has {size} bytes, the limit is {LARGEST}")]);
    }
    let Ok(text) = String::from_utf8(fs::read(path)?) else { return Ok(Vec::new()) };
    let mut faults = Vec::new();
    if path.extension().is_some_and(|extension| extension == "rs") && text.lines().count() > LONGEST_RUST {
        faults.push(format!("{shown} is longer than {LONGEST_RUST} lines: is it about one thing?"));
    }
    let here = root.to_string_lossy();
    for (number, line) in text.lines().enumerate() {
        if UNFINISHED.iter().any(|mark| line.contains(mark)) {
            faults.push(format!("{shown}:{}: unfinished work is marked here", number + 1));
        }
        if line.contains(&*here) {
            faults.push(format!("{shown}:{}: names the folder that this tree lies in", number + 1));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, uses: &[&str]) -> Member {
        let uses = uses.iter().map(|used| (*used).to_owned()).collect();
        Member { name: name.to_owned(), package: format!("berth-{name}"), folder: PathBuf::new(), uses, tests: Vec::new() }
    }

    #[test]
    fn arrows_that_point_back_and_impure_pure_crates_are_found() {
        for (name, uses, faults) in [
            ("plan", vec!["berth-types", "thiserror"], 0),
            ("plan", vec!["berth-telemetry"], 1),
            ("types", vec!["tokio"], 1),
            ("registry", vec!["tokio", "berth-plan"], 0),
            ("registry", vec!["berth-proxy"], 1),
            ("testkit", vec!["berth-proxy"], 0),
            ("newcomer", vec![], 1),
        ] {
            assert_eq!(arrows(&[member(name, &uses)]).len(), faults, "{name} {uses:?}");
        }
    }

    #[test]
    fn a_file_that_names_our_folder_or_marks_unfinished_work_is_found() {
        let folder = std::env::temp_dir().join(format!("berth-xtask-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("a.rs");
        fs::write(&path, format!("fine\n// {} later\n// see {}/notes\n", UNFINISHED[0], folder.display())).expect("written");
        let faults = file(&folder, &path).expect("readable");
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("a.rs:2") && faults[1].starts_with("a.rs:3"), "{faults:?}");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
