//! The watched folder, scan by scan, and once through the events of the system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use berth_registry::{FaultKind, Folder, Kind, MemoryStore, Origin, RedbStore, Scan, Store, bundled};
use berth_telemetry::Clock;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{key, object};

struct Bed {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    folder: Folder,
    /// Moves only when a test lets it: what is written has the times of this clock.
    clock: Clock,
}

/// Longer than a file takes to come to rest.
const REST: Duration = Duration::from_secs(3);

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at(Clock::system().wall());
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
        let folder = Folder::open(dir.path(), Arc::clone(&store), clock.clone()).unwrap();
        Bed { dir, store, folder, clock }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).unwrap();
        self.touch(file, self.clock.wall().0);
    }

    /// Gives a file this time of modification, in milliseconds since the epoch. The other time of a file cannot be set;
    /// it is about the one at which the test began.
    fn touch(&self, file: &str, time: u64) {
        File::options().write(true).open(self.path(file)).unwrap().set_modified(UNIX_EPOCH + Duration::from_millis(time)).unwrap();
    }

    async fn rest(&self) {
        self.clock.sleep(REST).await;
    }

    /// Scans until nothing is held back any more: what that did in all, and the faults after it, without the name of the
    /// folder.
    async fn scan(&mut self) -> (Scan, Vec<String>) {
        let mut scan = self.folder.rescan().await;
        while scan.held_back > 0 {
            self.rest().await;
            let next = self.folder.rescan().await;
            scan = Scan { applied: scan.applied + next.applied, removed: scan.removed + next.removed, ..next };
        }
        self.rest().await;
        let folder = format!("{}/", self.path("").display().to_string().trim_end_matches('/'));
        let faults = self.folder.faults().list();
        assert_eq!(scan.faults, faults.len());
        (scan, faults.iter().map(|fault| fault.to_string().replace(&folder, "")).collect())
    }

    /// `name=spec.v` of every object, with its file.
    fn held(&self) -> Vec<String> {
        let file = |origin: &Origin| match origin {
            Origin::Folder(path) => path.file_name().unwrap().to_str().unwrap().to_owned(),
            other => format!("{other:?}"),
        };
        self.store.list().iter().map(|o| format!("{}={} {}", o.key.name, o.spec.value()["v"], file(&o.origin))).collect()
    }
}

fn isvc(name: &str, v: u32) -> String {
    format!("---\napiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: {name}\nspec:\n  v: {v}\n")
}

const NO_FAULTS: [&str; 0] = [];

fn scan(applied: usize, removed: usize, faults: usize) -> Scan {
    Scan { applied, removed, held_back: 0, faults }
}

fn held_back(held_back: usize) -> Scan {
    Scan { held_back, ..Scan::default() }
}

#[tokio::test(start_paused = true)]
async fn files_that_come_change_and_go_take_their_resources_along() {
    let mut bed = Bed::new();
    assert_eq!(bed.scan().await, (scan(0, 0, 0), vec![]));
    bed.write("a.yaml", &(isvc("a", 1) + &isvc("b", 1)));
    bed.write("c.yml", &isvc("c", 1));
    bed.write(
        "d.json",
        &json!({"apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": {"name": "d"}, "spec": {"v": 1}}).to_string(),
    );
    bed.write("notes.txt", "not a manifest");
    bed.write(".hidden.yaml", &isvc("hidden", 1));
    std::fs::create_dir(bed.path("folder.yaml")).unwrap();
    assert_eq!(bed.scan().await, (scan(4, 0, 0), vec![]));
    assert_eq!(bed.held(), ["a=1 a.yaml", "b=1 a.yaml", "c=1 c.yml", "d=1 d.json"]);
    let version = bed.store.version();
    assert_eq!(bed.scan().await, (scan(0, 0, 0), vec![]));
    assert_eq!(bed.store.version(), version, "a scan without changes writes nothing");
    bed.write("a.yaml", &isvc("b", 2));
    std::fs::remove_file(bed.path("c.yml")).unwrap();
    assert_eq!(bed.scan().await, (scan(1, 2, 0), vec![]));
    assert_eq!(bed.held(), ["b=2 a.yaml", "d=1 d.json"]);
    std::fs::rename(bed.path("a.yaml"), bed.path("z.yaml")).unwrap();
    let uid = bed.store.get(&key("b")).unwrap().uid;
    assert_eq!(bed.scan().await, (scan(1, 0, 0), vec![]));
    assert_eq!((bed.held(), &bed.store.get(&key("b")).unwrap().uid), (vec!["b=2 z.yaml".to_owned(), "d=1 d.json".to_owned()], &uid));
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_keeps_what_was_read_from_it_and_disturbs_no_other() {
    let mut bed = Bed::new();
    bed.write("a.yaml", &(isvc("a", 1) + &isvc("b", 1)));
    bed.write("c.yaml", &isvc("c", 1));
    bed.scan().await;
    bed.write("a.yaml", &(isvc("a", 2) + "---\napiVersion: serving.kserve.io/v1beta1\nkind: [InferenceService\nmetadata: {name: b}\n"));
    bed.write("c.yaml", &isvc("c", 2));
    // Another definition of what the broken file holds does not take over.
    bed.write("d.yaml", &isvc("b", 9));
    let (done, faults) = bed.scan().await;
    assert_eq!(done, scan(2, 0, 2));
    assert!(
        faults[0].starts_with("a.yaml:1") && faults[0].ends_with(": correct it here, what was last read from this file stays as it was until then"),
        "{faults:?}"
    );
    assert_eq!(faults[1], "d.yaml:2: InferenceService default/b is already defined in a.yaml, which holds: remove one of the two");
    assert_eq!(bed.held(), ["a=2 a.yaml", "b=1 a.yaml", "c=2 c.yaml"]);
    bed.write("a.yaml", &isvc("a", 2));
    assert_eq!(bed.scan().await, (scan(1, 0, 0), vec![]));
    assert_eq!(bed.held(), ["a=2 a.yaml", "b=9 d.yaml", "c=2 c.yaml"]);
    for (content, expected) in [
        (Vec::new(), "a.yaml: cannot be read: is empty: delete the file to remove its resources"),
        (b"\xff\xfe".to_vec(), "a.yaml: cannot be read: is not UTF-8 text at byte 0: save it as UTF-8"),
        (vec![b' '; (16 << 20) + 1], "a.yaml: cannot be read: is larger than 16 MiB: split it into several files"),
    ] {
        std::fs::write(bed.path("a.yaml"), content).unwrap();
        assert_eq!(bed.scan().await, (scan(0, 0, 1), vec![expected.to_owned()]));
        assert_eq!(bed.held(), ["a=2 a.yaml", "b=9 d.yaml", "c=2 c.yaml"]);
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_definitions_the_first_file_by_name_wins_and_both_are_named() {
    let mut bed = Bed::new();
    bed.write("b.yaml", &(isvc("x", 2) + &isvc("x", 3)));
    bed.scan().await;
    bed.write("a.yaml", &isvc("x", 1));
    let (_, faults) = bed.scan().await;
    let holds = |line| format!("b.yaml:{line}: InferenceService default/x is already defined in a.yaml:2, which holds: remove one of the two");
    assert_eq!(faults, [holds(2), holds(9)]);
    assert_eq!(bed.held(), ["x=1 a.yaml"]);
    std::fs::remove_file(bed.path("a.yaml")).unwrap();
    let (_, faults) = bed.scan().await;
    assert_eq!(faults, ["b.yaml:9: InferenceService default/x is already defined in b.yaml:2, which holds: remove one of the two"]);
    assert_eq!(bed.held(), ["x=2 b.yaml"]);
}

#[tokio::test(start_paused = true)]
async fn other_kinds_and_what_the_store_refuses_are_said() {
    let mut bed = Bed::new();
    for object in bundled() {
        bed.store.apply(object, None).await.unwrap();
    }
    bed.store.apply(object("mine", 1), None).await.unwrap();
    bed.write("a.yaml", &(isvc("mine", 1) + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n"));
    bed.write("b.yaml", "apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\nmetadata: {name: berth-onnx}\n");
    let (done, faults) = bed.scan().await;
    assert_eq!(done, scan(0, 0, 3));
    assert_eq!(faults[0], "a.yaml:2: InferenceService default/mine was made through the API: delete it there, or remove it from a.yaml");
    assert!(faults[1].starts_with("a.yaml:9: kind Secret of v1 is ignored: "), "{faults:?}");
    assert_eq!(faults[2], "b.yaml:1: ClusterServingRuntime berth-onnx comes with the program: choose another name in b.yaml");
    let kinds: Vec<_> = bed.folder.faults().list().iter().map(|fault| fault.kind).collect();
    assert_eq!(kinds, [FaultKind::Refused, FaultKind::Ignored, FaultKind::Refused]);
    bed.store.delete(&key("mine")).await.unwrap();
    let (done, faults) = bed.scan().await;
    assert_eq!((done, faults.len()), (scan(1, 0, 2), 2), "what was refused is tried again");
}

#[tokio::test]
async fn a_file_that_went_while_nobody_looked_is_noticed_at_the_next_start() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = async || -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(data.path(), Clock::system()).unwrap());
        Folder::open(dir.path(), Arc::clone(&store), Clock::system()).unwrap().rescan().await;
        store
    };
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    write("a.yaml", &isvc("a", 1));
    write("b.yaml", &isvc("b", 1));
    write("c.yaml", &isvc("c", 1));
    let store = start().await;
    store.apply(object("api", 1), None).await.unwrap();
    drop(store);
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    write("b.yaml", "]");
    let store = start().await;
    let names: Vec<_> = store.list().iter().map(|object| object.key.name.to_string()).collect();
    assert_eq!(names, ["api", "b", "c"]);
    assert_eq!(store.get(&key("c")).unwrap().generation, 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_folder_is_refused_at_start_and_keeps_everything_later() {
    let missing = Path::new("/nonexistent/manifests");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Clock::system()));
    let fault = Folder::open(missing, store, Clock::system()).err().map(|fault| fault.to_string());
    assert_eq!(
        fault.as_deref(),
        Some("folder of manifests /nonexistent/manifests: No such file or directory (os error 2): create it, or choose another folder")
    );
    let mut bed = Bed::new();
    bed.write("a.yaml", &isvc("a", 1));
    bed.scan().await;
    let away = bed.path("").parent().unwrap().join(format!("{}-away", bed.path("").file_name().unwrap().to_str().unwrap()));
    let here = bed.path("").components().collect::<PathBuf>();
    std::fs::rename(&here, &away).unwrap();
    let done = bed.folder.rescan().await;
    let faults = bed.folder.faults().list();
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(done, scan(0, 0, 1));
    assert!(faults[0].to_string().contains("cannot read the folder: No such file"), "{faults:?}");
    assert_eq!(bed.held(), ["a=1 a.yaml"]);
    assert_eq!(bed.scan().await.1, NO_FAULTS);
}

#[tokio::test(start_paused = true)]
async fn a_mounted_config_map_is_followed_through_its_swapped_link() {
    let mut bed = Bed::new();
    let version = |name: &str, v| {
        std::fs::create_dir(bed.path(name)).unwrap();
        bed.write(&format!("{name}/a.yaml"), &isvc("a", v));
    };
    version("..2026_01", 1);
    version("..2026_02", 2);
    std::os::unix::fs::symlink("..2026_01", bed.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", bed.path("a.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", bed.path("dangling.yaml")).unwrap();
    assert_eq!(bed.scan().await, (scan(1, 0, 0), vec![]));
    std::os::unix::fs::symlink("..2026_02", bed.path("..data_tmp")).unwrap();
    std::fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    assert_eq!(bed.scan().await, (scan(1, 0, 0), vec![]));
    assert_eq!(bed.held(), ["a=2 a.yaml"]);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_and_a_kind_make_another_resource_of_the_same_name() {
    let mut bed = Bed::new();
    let other = isvc("a", 2).replace("name: a", "name: a\n  namespace: team");
    bed.write("a.yaml", &(isvc("a", 1) + &other + &isvc("a", 3).replace("InferenceService", "Predictor").replace("v1beta1", "v1alpha1")));
    assert_eq!(bed.scan().await, (scan(3, 0, 0), vec![]));
    let keys: Vec<_> = bed.store.list().iter().map(|object| object.key.to_string()).collect();
    assert_eq!(keys, ["InferenceService default/a", "InferenceService team/a", "Predictor default/a"]);
    assert_eq!(bed.store.list()[2].key.kind, Kind::Predictor);
}

#[tokio::test(start_paused = true)]
async fn a_file_read_while_it_is_being_written_only_adds() {
    let mut bed = Bed::new();
    bed.write("m.yaml", &(isvc("a", 1) + &isvc("b", 1)));
    bed.scan().await;
    let uid = bed.store.get(&key("b")).unwrap().uid;
    // A valid beginning of what is to come, cut in the middle of a number.
    bed.write("m.yaml", &(isvc("new", 1) + &isvc("a", 2)));
    assert_eq!(bed.folder.rescan().await, Scan { applied: 1, ..held_back(2) });
    assert_eq!(bed.held(), ["a=1 m.yaml", "b=1 m.yaml", "new=1 m.yaml"]);
    bed.clock.sleep(Duration::from_secs(1)).await;
    bed.write("m.yaml", &(isvc("new", 1) + &isvc("a", 21) + &isvc("b", 1)));
    assert_eq!(bed.folder.rescan().await, held_back(1), "it changed again");
    bed.rest().await;
    assert_eq!(bed.folder.rescan().await, scan(1, 0, 0));
    assert_eq!(bed.held(), ["a=21 m.yaml", "b=1 m.yaml", "new=1 m.yaml"]);
    assert_eq!(bed.store.get(&key("b")).unwrap().uid, uid);
    // What another file says about it takes over only when this one is done.
    bed.write("z.yaml", &isvc("b", 9));
    bed.scan().await;
    bed.write("m.yaml", &isvc("new", 1));
    assert_eq!(bed.folder.rescan().await, held_back(3));
    bed.rest().await;
    assert_eq!(bed.scan().await, (scan(1, 1, 0), vec![]));
    assert_eq!(bed.held(), ["b=9 z.yaml", "new=1 m.yaml"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_before_it_was_missing_for_two_seconds() {
    let mut bed = Bed::new();
    bed.write("m.yaml", &(isvc("a", 1) + &isvc("b", 1)));
    bed.write("n.yaml", &isvc("c", 1));
    bed.scan().await;
    // A slow writer, and an editor that moves a file away before it writes another one in its place.
    bed.write("m.yaml", &isvc("a", 1));
    std::fs::rename(bed.path("n.yaml"), bed.path("n.yaml~")).unwrap();
    bed.rest().await;
    for _ in 0..3 {
        assert_eq!(bed.folder.rescan().await, held_back(2), "however often it is looked at");
    }
    bed.clock.sleep(Duration::from_secs(1)).await;
    bed.write("m.yaml", &(isvc("a", 1) + &isvc("b", 1)));
    bed.write("n.yaml", &isvc("c", 1));
    assert_eq!(bed.folder.rescan().await, scan(0, 0, 0));
    // Missing once more, the time before does not count.
    bed.write("m.yaml", &isvc("a", 1));
    std::fs::remove_file(bed.path("n.yaml")).unwrap();
    bed.rest().await;
    assert_eq!(bed.folder.rescan().await, held_back(2));
    bed.rest().await;
    assert_eq!(bed.folder.rescan().await, scan(0, 2, 0));
    assert_eq!(bed.held(), ["a=1 m.yaml"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_looked_at_keeps_its_resources_and_is_not_waited_for() {
    let mut bed = Bed::new();
    bed.write("m.yaml", &isvc("a", 1));
    bed.scan().await;
    std::fs::remove_file(bed.path("m.yaml")).unwrap();
    std::os::unix::fs::symlink("m.yaml", bed.path("m.yaml")).unwrap();
    assert_eq!(bed.folder.rescan().await, scan(0, 0, 1));
    assert_eq!(bed.held(), ["a=1 m.yaml"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_name_is_no_text_is_named_and_disturbs_no_other() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bed = Bed::new();
    bed.write("a.yaml", &isvc("a", 1));
    let strange = bed.dir.path().join(std::ffi::OsStr::from_bytes(b"\xff.yaml"));
    std::fs::write(strange, isvc("b", 1)).unwrap();
    let (scan, faults) = bed.scan().await;
    assert_eq!((scan.applied, bed.held()), (1, vec!["a=1 a.yaml".to_owned()]));
    assert!(matches!(faults.as_slice(), [fault] if fault.contains("its name is not UTF-8")), "{faults:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_from_the_future_is_read_as_others_are() {
    let mut bed = Bed::new();
    for v in [1, 2] {
        bed.write("m.yaml", &isvc("a", v));
        bed.touch("m.yaml", bed.clock.wall().0 + 86_400_000);
        bed.scan().await;
        assert_eq!(bed.held(), [format!("a={v} m.yaml")]);
    }
    std::fs::remove_file(bed.path("m.yaml")).unwrap();
    assert_eq!(bed.scan().await, (scan(0, 1, 0), vec![]));
}

#[tokio::test]
async fn a_running_folder_sees_changes_by_itself_and_ends_when_told() {
    let bed = Bed::new();
    let (store, dir) = (Arc::clone(&bed.store), bed.path(""));
    let mut versions = store.versions();
    let clock = Clock::system();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(bed.folder.run(shutdown.clone()));
    for v in [1, 2] {
        std::fs::write(dir.join("a.yaml"), isvc("a", v)).unwrap();
        let seen = clock.until(clock.deadline_in(Duration::from_secs(10)), versions.wait_for(|version| *version == u64::from(v))).await;
        assert!(seen.is_some_and(|seen| seen.is_ok()), "version {v} was not read");
        assert_eq!(store.list().len(), 1);
    }
    assert_eq!(store.get(&key("a")).unwrap().spec.value()["v"], 2);
    std::fs::remove_file(dir.join("a.yaml")).unwrap();
    let gone = clock.until(clock.deadline_in(Duration::from_secs(10)), versions.wait_for(|version| *version == 3)).await;
    assert!(gone.is_some_and(|gone| gone.is_ok()) && store.list().is_empty(), "what is held back is looked at again by itself");
    shutdown.cancel();
    assert!(clock.until(clock.deadline_in(Duration::from_secs(10)), running).await.is_some());
}
