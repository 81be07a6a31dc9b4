//! NVIDIA's management library, played by a small one in C: its calling convention is what is tested, its numbers are made up.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_memory::Gpus;
use berth_types::{ByteSize, Real, Usage};

fn library(folder: &Path, old: bool) -> PathBuf {
    let file = folder.join(if old { "old.so" } else { "new.so" });
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvml.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&file).arg(source).args(old.then_some("-DBERTH_OLD"));
    let built = cc.output().unwrap_or_else(|fault| panic!("this test compiles a library and needs cc (install gcc): {fault}"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    file
}

#[test]
fn each_device_tells_how_full_it_is_and_what_the_server_holds_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gpus = Gpus::open(Some(&library(folder.path(), false))).expect("the library can be used");
    let gib = |gib: u64| ByteSize(gib << 30);
    let usage = |total: u64| Some(Usage { used: ByteSize((9 << 30) / 2), limit: gib(total) });
    let expected =
        BTreeMap::from([(0, Real { held: Some(gib(3)), usage: usage(16), others: true }), (1, Real { usage: usage(17), ..Real::default() })]);
    assert_eq!(gpus.read(&HashSet::from([4242, 77])), expected);
    assert_eq!(gpus.read(&HashSet::new())[&0], Real { usage: usage(16), ..Real::default() }, "of processes that are nobody's nothing follows");
    assert!(!gpus.read(&HashSet::from([4242, 1]))[&0].others, "all of them are its own");
    assert_eq!(gpus.totals(), BTreeMap::from([(0, gib(16)), (1, gib(17))]));
}

#[test]
fn a_device_that_is_lost_has_no_memory_any_more() {
    const LOST: &str = "BERTH_TEST_LOST_GPU";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = library(folder.path(), false);
    if std::env::var_os(LOST).is_none() {
        // In a process of its own, whose variables say so from its start.
        let name = "a_device_that_is_lost_has_no_memory_any_more";
        let own = std::env::current_exe().expect("this program");
        let run = Command::new(own).args([name, "--exact"]).env(LOST, "1").output().expect("it runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    let gpus = Gpus::open(Some(&file)).expect("the library can be used");
    let none = Some(Usage { used: ByteSize::ZERO, limit: ByteSize::ZERO });
    let read = gpus.read(&HashSet::new());
    assert!(read[&0].usage.is_some_and(|usage| usage.limit > ByteSize::ZERO));
    assert_eq!(read[&1], Real { usage: none, ..Real::default() });
    assert_eq!(gpus.totals().keys().copied().collect::<Vec<_>>(), [0]);
}

#[test]
fn an_old_driver_without_a_function_and_a_machine_without_a_library_tell_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gpus = Gpus::open(Some(&library(folder.path(), true))).expect("the library can be used");
    assert_eq!(gpus.read(&HashSet::new()), BTreeMap::new());
    assert!(Gpus::open(Some(&folder.path().join("none.so"))).is_none());
}
