//! What only the store on disk must do: outlive the process, belong to one process, refuse what is not its own.

use std::path::Path;
use std::sync::Arc;

use berth_registry::{Managed, OpenError, RedbStore, Store};
use berth_telemetry::Clock;
use berth_types::ManagedPut;
use redb::{Database, ReadableTable as _, TableDefinition};
use serde_json::json;

use super::store::{contents, managed_model, managed_name};
use super::{alias, key, object};

const FILE: &str = "registry.redb";

fn open(dir: &Path) -> Result<RedbStore, OpenError> {
    RedbStore::open(dir, Clock::system())
}

fn refusal(dir: &Path) -> String {
    open(dir).err().map_or_else(|| panic!("{} was opened", dir.display()), |fault| fault.to_string())
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill() {
    let (dir, left_behind) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).unwrap();
    let made = store.apply(object("a", 1), None).await.unwrap();
    store.apply(object("b", 1), None).await.unwrap();
    store.set_alias(&key("a"), made.uid, Some(alias("v1"))).await.unwrap();
    store.set_contents(&key("a"), made.uid, contents(&[("v1", 1)])).await.unwrap();
    store.delete(&key("b")).await.unwrap();
    let puts = vec![ManagedPut::Model(managed_model("m/1", 1)), ManagedPut::Name(managed_name("n", "m/1"))];
    store.change_managed(Box::new(move |_| puts.clone())).await.unwrap();
    let last = store.set_status(&key("a"), made.uid, json!({ "state": "Loaded" })).await.unwrap();
    // What a process that is killed now leaves: the file as it is, nothing flushed or closed.
    std::fs::copy(dir.path().join(FILE), left_behind.path().join(FILE)).unwrap();

    let after = open(left_behind.path()).unwrap();
    assert_eq!(after.list(), [last]);
    assert_eq!(after.alias(&key("a")), Some(alias("v1")));
    assert_eq!(after.contents().await.unwrap(), [(key("a"), contents(&[("v1", 1)]))].into());
    assert_eq!((after.managed_model("m/1"), after.managed_name("n")), (store.managed_model("m/1"), store.managed_name("n")));
    assert!(after.managed_model("m/1").is_some() && after.managed_name("n").is_some());
    assert_eq!((after.version(), after.epoch(), store.epoch()), (store.version(), 2, 1));
    let next = after.apply(object("c", 1), None).await.unwrap();
    assert_eq!(next.resource_version, store.version() + 1, "no version is given twice");
    assert!(after.events_after(2).is_err(), "events are not kept over a restart, and a watcher is told so");
}

#[tokio::test]
async fn contents_of_another_release_are_as_good_as_none_and_leave_the_others_alone() {
    type Row = (&'static str, &'static str, &'static str);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for (name, kept) in [("a", &[("v1", 1)][..]), ("b", &[("w1", 2), ("w2", 3)]), ("c", &[("x1", 4)])] {
        let uid = store.apply(object(name, 1), None).await.unwrap().uid;
        store.set_contents(&key(name), uid, contents(kept)).await.unwrap();
    }
    drop(store);
    // As releases wrote them that hashed with BLAKE3: of a the only one, of b one of two.
    let database = Database::open(dir.path().join(FILE)).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(TableDefinition::<Row, &[u8]>::new("contents")).unwrap();
        for (name, digest) in [("a", "01"), ("b", "03")] {
            let at = key(name);
            let row = (at.kind.as_str(), at.namespace.as_ref().map_or("", |namespace| namespace.as_str()), at.name.as_str());
            let text = String::from_utf8(table.get(row).unwrap().unwrap().value().to_owned()).unwrap();
            let digest = digest.repeat(32);
            let other = text.replace(&format!("crc64:{digest}"), &format!("blake3:{digest}"));
            assert_ne!(text, other);
            table.insert(row, other.as_bytes()).unwrap();
        }
    }
    write.commit().unwrap();
    drop(database);
    let after = open(dir.path()).unwrap();
    let kept = [(key("b"), contents(&[("w1", 2)])), (key("c"), contents(&[("x1", 4)]))];
    assert_eq!(after.contents().await, Ok(kept.into()));
    let uid = after.get(&key("a")).unwrap().uid;
    after.set_contents(&key("a"), uid, contents(&[("v1", 9)])).await.unwrap();
    assert_eq!(after.contents().await.unwrap()[&key("a")], contents(&[("v1", 9)]));
}

#[tokio::test]
async fn one_process_has_the_folder_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir.path().join("not/there/yet")).unwrap();
    let data = dir.path().join("not/there/yet");
    assert_eq!(
        refusal(&data),
        format!("data folder {} is in use by process {}: stop that process, or choose another folder", data.display(), std::process::id())
    );
    drop(first);
    drop(open(&data).unwrap());
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let text = refusal(&file);
    assert!(text.starts_with(&format!("data folder {}: ", file.display())), "{text}");
    assert!(text.ends_with(": check that it is a folder that this user may write, with space left"), "{text}");
}

#[tokio::test]
async fn a_file_that_is_damaged_or_not_ours_is_refused_and_left_alone() {
    let hint = ": restore a copy of it, or move it away to start without resources (those of a watched folder are read again)";
    let foreign = |path: &Path| {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
    };
    let newer = |path: &Path| {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 2).unwrap();
        transaction.commit().unwrap();
    };
    let other_meta = |path: &Path| {
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TableDefinition::<&str, &str>::new("meta")).unwrap().insert("format", "x").unwrap();
        transaction.commit().unwrap();
    };
    let bad_row = |path: &Path| {
        drop(open(path.parent().unwrap()).unwrap());
        let database = Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        let objects = TableDefinition::<(&str, &str, &str), &[u8]>::new("objects");
        transaction.open_table(objects).unwrap().insert(("InferenceService", "default", "a"), b"{".as_slice()).unwrap();
        transaction.commit().unwrap();
    };
    type Damage<'d> = (&'d str, &'d dyn Fn(&Path));
    let cases: [Damage<'_>; 6] = [
        ("cannot open this database: ", &|path| std::fs::write(path, "not a database at all").unwrap()),
        ("cannot open this database: ", &|path| std::fs::write(path, vec![0u8; 1 << 20]).unwrap()),
        ("this is a database of another program", &foreign),
        ("this database has format 2, this version of the program reads format 1", &newer),
        ("cannot read this database: ", &other_meta),
        ("cannot read the row of (\"InferenceService\", \"default\", \"a\"): ", &bad_row),
    ];
    for (number, (expected, write)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        write(&file);
        let text = refusal(dir.path());
        assert!(text.starts_with(&format!("{}: {expected}", file.display())) && text.ends_with(hint), "case {number}: {text}");
        assert!(file.exists());
    }
}

#[tokio::test]
async fn a_file_cut_short_or_with_flipped_bytes_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    futures::future::join_all((0..200).map(|n| store.apply(object(&format!("m{n}"), n), None))).await;
    drop(store);
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    let refused = |bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        open(dir.path()).is_err()
    };
    let cuts = (1..20).filter(|n| refused(&whole[..whole.len() * n / 20])).count();
    assert!(cuts > 0, "no cut was noticed");
    for n in 0..60 {
        let mut bytes = whole.clone();
        let at = (n * 7919 * 13) % bytes.len();
        bytes[at..].iter_mut().take(16).for_each(|byte| *byte ^= 0xa5);
        // Many places are free pages; what counts is that an answer comes.
        let _ = refused(&bytes);
    }
}

#[tokio::test]
async fn the_writer_serves_what_was_handed_over_before_the_store_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()).unwrap());
    let writes: Vec<_> = (0..50)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.apply(object(&format!("m{n}"), n), None).await })
        })
        .collect();
    drop(store);
    for write in writes {
        write.await.unwrap().unwrap();
    }
    // The last task may still hold the store for a moment after its answer was read here; its end closes the file.
    let reopened = loop {
        match open(dir.path()) {
            Ok(store) => break store,
            Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
            Err(fault) => panic!("{fault}"),
        }
    };
    assert_eq!(reopened.list().len(), 50);
}
