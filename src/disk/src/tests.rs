//! The tier on a real folder.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, ModelId, UnixMillis};
use bytes::Bytes;

use crate::tier::Machine;
use crate::{BlobId, DiskError, Gathering, Hold, Note, Opened, Plan, Record, Tier, TierConfig, UNVERIFIED, Wanted, Writer};

pub(crate) fn id(name: &str) -> ModelId {
    ModelId::new(name).expect("sound")
}

pub(crate) fn blob(n: u8) -> BlobId {
    BlobId([n; 16])
}

/// The bytes of blob `n`.
pub(crate) fn bytes(n: u8, size: u64) -> Vec<u8> {
    (0..size).map(|at| n.wrapping_mul(31).wrapping_add(u8::try_from(at % 251).expect("small")) | 1).collect()
}

pub(crate) fn record(n: u8, size: u64) -> Record {
    Record { bytes: ByteSize(size), digest: crate::digest::of_reader(&bytes(n, size)[..]).ok(), checked: "crc32c".to_owned() }
}

/// A machine that has the given start; `syncs`: not.
pub(crate) fn machine(boot: &str) -> Machine {
    Machine { boot: Some(boot.to_owned()), syncs: false, links: None }
}

async fn open(machine: Machine, folder: &Path, budget: u64, at: u64) -> Tier {
    let config = TierConfig { folder: folder.to_owned(), budget: ByteSize(budget) };
    Tier::open_on(machine, config, Clock::starting_at(UnixMillis(at)), Metrics::default()).await.expect("opens")
}

async fn tier(folder: &Path, budget: u64) -> Tier {
    open(machine("one"), folder, budget, 1_000_000).await
}

/// Files `m/<blob>` of the given blobs.
pub(crate) fn plan(blobs: &[(u8, u64)]) -> Plan {
    let wanted = |(n, size): &(u8, u64)| Wanted { path: format!("m/{n}"), blob: blob(*n), bytes: ByteSize(*size), version: Some(format!("v{n}")) };
    Plan {
        source: "here".to_owned(),
        entry: "m".to_owned(),
        schema: None,
        size: ByteSize(blobs.iter().map(|(_, size)| size).sum()),
        files: blobs.iter().map(wanted).collect(),
    }
}

async fn writer(gathering: &Gathering, at: usize) -> Writer {
    match gathering.open(at).await.expect("opens") {
        Opened::Partial(writer) => writer,
        Opened::Whole(record) => panic!("whole: {record:?}"),
    }
}

async fn is_whole(gathering: &Gathering, at: usize) -> bool {
    matches!(gathering.open(at).await.expect("opens"), Opened::Whole(_))
}

/// Brings what of a plan is not here, and lands it.
async fn fill(gathering: Gathering) -> Result<Hold, DiskError> {
    for at in 0..gathering.plan().files.len() {
        let (n, size) = (gathering.plan().files[at].blob.0[0], gathering.plan().files[at].bytes.0);
        if let Opened::Partial(writer) = gathering.open(at).await? {
            if writer.done().is_empty() {
                writer.put(vec![Bytes::from(bytes(n, size))], record(n, size)).await?;
            } else {
                let file = writer.file().await?;
                let mut from = 0;
                let ends = writer.done().iter().map(|(range, _)| range.clone()).chain(std::iter::once(size..size));
                for range in ends {
                    file.write_all_at(&bytes(n, size)[usize::try_from(from).expect("small")..usize::try_from(range.start).expect("small")], from)
                        .expect("written");
                    from = range.end;
                }
                writer.finish(record(n, size)).await?;
            }
        }
    }
    gathering.land().await
}

async fn put(tier: &Tier, model: &str, blobs: &[(u8, u64)]) -> Result<Hold, DiskError> {
    fill(tier.gather(&id(model), plan(blobs)).await?).await
}

/// A download that would wait for ever if bytes had been lost.
async fn gather_soon(tier: &Tier, model: &str, blobs: &[(u8, u64)]) -> Result<Gathering, DiskError> {
    let clock = &tier.0.clock;
    let gathered = clock.until(clock.deadline_in(Duration::from_secs(60)), tier.gather(&id(model), plan(blobs))).await;
    gathered.expect("bytes that nobody holds are waited for")
}

fn names(folder: &Path, below: &str) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder.join(below)).expect("there").map(|entry| entry.expect("read").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn file_of(hold: &Hold, n: u8) -> PathBuf {
    hold.content().model().join(n.to_string())
}

/// Waits until what is on its way out is gone.
pub(crate) async fn settled(tier: &Tier) {
    tier.wait_until(crate::ledger::Ledger::is_quiet).await;
}

#[tokio::test(start_paused = true)]
async fn content_is_read_only_survives_a_restart_and_keeps_its_last_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path();
    {
        let tier = tier(cache, 100).await;
        for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
            drop(put(&tier, name, &[(n, 30)]).await.expect("fits"));
            tier.0.clock.sleep(Duration::from_secs(10)).await;
        }
        drop(tier.reuse(&id("a"), Some("here")).await.expect("there")); // so "b" is the least recently used
    }
    let tier = tier(cache, 100).await;
    assert_eq!(tier.used(), ByteSize(90));
    let hold = tier.reuse(&id("c"), None).await.expect("there");
    assert_eq!(std::fs::read(file_of(&hold, 3)).expect("there"), bytes(3, 30));
    let about = std::fs::metadata(file_of(&hold, 3)).expect("there");
    assert_eq!((about.permissions().mode() & 0o777, about.nlink()), (0o444, 2));
    drop(put(&tier, "d", &[(4, 20)]).await.expect("fits once the oldest is gone"));
    assert_eq!((names(cache, "models"), names(cache, "blobs").len()), (vec!["a".to_owned(), "c".to_owned(), "d".to_owned()], 3));
    assert!(!tier.has(&id("b"), None) && tier.has(&id("a"), None));
}

#[tokio::test(start_paused = true)]
async fn content_says_what_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 1000).await;
    let mut wanted = plan(&[(1, 30), (2, 0), (3, 10)]);
    wanted.files[2].path = "schema.json".to_owned();
    wanted.files[1].path = "m/deep/er/empty".to_owned();
    (wanted.schema, wanted.size) = (Some("schema.json".to_owned()), ByteSize(30));
    let gathering = tier.gather(&id("m"), wanted.clone()).await.expect("fits");
    let fault = tier.gather(&id("n"), plan(&[(9, 1)])).await.expect("fits").land().await.map(|_| ()).expect_err("nothing was fetched");
    assert!(matches!(&fault, DiskError::Failed(text) if text.contains("m/9 of n is not whole")), "{fault:?}");
    writer(&gathering, 2)
        .await
        .put(vec![Bytes::from(bytes(3, 10))], Record { checked: UNVERIFIED.to_owned(), ..record(3, 10) })
        .await
        .expect("written");
    let first = fill(gathering).await.expect("fits");
    let content = first.content();
    assert_eq!(
        (content.objects(), content.size(), content.checked()),
        (3, ByteSize(30), "crc32c of 1 of 2 objects, content of the others unverified".to_owned())
    );
    assert_eq!(std::fs::read(content.schema().expect("has one")).expect("there"), bytes(3, 10));
    assert_eq!(std::fs::read(content.model().join("deep/er/empty")).expect("there"), b"");
    // The same files of another model are the same content, also after a restart.
    let second = fill(tier.gather(&id("other"), wanted).await.expect("fits")).await.expect("fits");
    assert_eq!(second.content().digest(), content.digest());
    assert_ne!(put(&tier, "third", &[(1, 30)]).await.expect("fits").content().digest(), content.digest());
    let (digest, checked) = (content.digest(), content.checked());
    drop((first, second, tier));
    let tier = self::tier(folder.path(), 1000).await;
    let again = tier.reuse(&id("m"), Some("here")).await.expect("there");
    assert_eq!((again.content().digest(), again.content().checked()), (digest, checked));
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_is_swept_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path();
    {
        let tier = tier(cache, 1000).await;
        for (name, n) in [("whole", 1), ("short", 2), ("unmarked", 3), ("garbled", 4), ("foreign", 5), ("newer", 6), ("copied", 7), ("unknown", 8)] {
            drop(put(&tier, name, &[(n, 10)]).await.expect("fits"));
        }
    }
    let at = |path: &str| cache.join("models").join(path);
    let rewrite = |path: PathBuf, bytes: &[u8]| {
        std::fs::remove_file(&path).expect("there");
        std::fs::write(&path, bytes).expect("written");
    };
    rewrite(at("short/files/m/2"), b"short");
    std::fs::remove_file(at("unmarked/manifest.json")).expect("there");
    rewrite(at("garbled/manifest.json"), b"{\"format\":2,");
    std::fs::rename(at("foreign"), at("renamed")).expect("moved");
    let text = std::fs::read_to_string(at("newer/manifest.json")).expect("there");
    assert!(text.contains("\"format\":2"));
    rewrite(at("newer/manifest.json"), text.replace("\"format\":2", "\"format\":3").as_bytes());
    rewrite(at("copied/files/m/7"), &bytes(7, 10)); // of the right length, but not the blob
    std::fs::remove_file(cache.join("blobs").join(blob(8).to_string())).expect("there");
    std::fs::create_dir_all(cache.join("staging/half.0/files")).expect("a folder");
    std::fs::write(cache.join("staging/half.0/files/x"), b"half").expect("written");
    std::fs::write(cache.join("blobs/no-blob"), b"x").expect("written");
    std::fs::write(cache.join("blobs").join(blob(99).to_string()), b"x").expect("written");
    std::fs::create_dir(cache.join("blobs").join(blob(98).to_string())).expect("made");
    let tier = tier(cache, 1000).await;
    assert_eq!(names(cache, "models"), ["whole"]);
    assert_eq!(names(cache, "staging"), Vec::<String>::new());
    // What the swept ones consisted of is whole, and of use to the next download.
    assert_eq!((names(cache, "blobs").len(), tier.used()), (7, ByteSize(70)));
    assert_eq!(tier.gather(&id("short"), plan(&[(2, 10)])).await.expect("fits").resumed(), ByteSize(10));
}

#[tokio::test(start_paused = true)]
async fn content_that_lost_a_byte_is_not_handed_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    drop(put(&tier, "a", &[(1, 30)]).await.expect("fits"));
    let file = folder.path().join("models/a/files/m/1");
    std::fs::remove_file(&file).expect("there");
    std::fs::write(&file, vec![7; 29]).expect("written");
    assert!(!tier.has(&id("a"), None));
    assert!(tier.reuse(&id("a"), None).await.is_none());
    assert_eq!((tier.used(), names(folder.path(), "models").len(), names(folder.path(), "blobs").len()), (ByteSize(0), 0, 0));
}

#[tokio::test(start_paused = true)]
async fn content_that_another_hand_wrote_in_is_not_handed_out_and_not_built_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 1000).await;
    drop(put(&tier, "a", &[(1, 30), (2, 10)]).await.expect("fits"));
    drop(put(&tier, "b", &[(1, 30)]).await.expect("fits"));
    let pinned = put(&tier, "c", &[(1, 30)]).await.expect("fits");
    let file = folder.path().join("models/a/files/m/1");
    let change = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("set");
        std::fs::write(path, vec![7; 30]).expect("written");
    };
    change(&file); // one file under four names
    assert!(tier.reuse(&id("a"), None).await.is_none());
    assert!(!tier.has(&id("b"), None) && !tier.has(&id("c"), None));
    settled(&tier).await;
    assert_eq!(tier.used(), ByteSize(30), "the pinned one's");
    let gathering = tier.gather(&id("a"), plan(&[(1, 30), (2, 10)])).await.expect("fits");
    assert_eq!(gathering.resumed(), ByteSize(0));
    let again = fill(gathering).await.expect("fits");
    assert_eq!(std::fs::read(file_of(&again, 1)).expect("there"), bytes(1, 30));
    assert_eq!(std::fs::read(file_of(&pinned, 1)).expect("there"), [7; 30], "whoever has it open is not disturbed");
    drop(pinned);
    // The same found by a download that would share it.
    change(&file_of(&again, 1));
    drop(again);
    let gathering = tier.gather(&id("d"), plan(&[(1, 30)])).await.expect("fits");
    assert_eq!((gathering.resumed(), tier.has(&id("a"), None)), (ByteSize(0), false));
    // A file that was only touched is read again, and is good.
    let good = fill(gathering).await.expect("fits");
    std::fs::set_permissions(file_of(&good, 1), std::fs::Permissions::from_mode(0o644)).expect("set");
    std::fs::write(file_of(&good, 1), bytes(1, 30)).expect("written");
    assert!(tier.reuse(&id("d"), None).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn content_from_another_source_is_not_handed_out_and_goes_when_its_successor_lands() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    drop(put(&tier, "a", &[(1, 30)]).await.expect("fits"));
    assert!(tier.has(&id("a"), Some("here")) && !tier.has(&id("a"), Some("there")));
    assert!(tier.reuse(&id("a"), Some("there")).await.is_none());
    let pinned = tier.reuse(&id("a"), Some("here")).await.expect("nothing was removed");
    assert!(tier.reuse(&id("a"), Some("there")).await.is_none());
    let there = Plan { source: "there".to_owned(), ..plan(&[(2, 30)]) };
    let second = fill(tier.gather(&id("a"), there.clone()).await.expect("fits")).await.expect("fits");
    assert!(tier.has(&id("a"), Some("there")) && !tier.has(&id("a"), Some("here")));
    assert_eq!(std::fs::read(file_of(&pinned, 1)).expect("still there"), bytes(1, 30));
    assert_eq!(std::fs::read(file_of(&second, 2)).expect("there"), bytes(2, 30));
    assert_eq!(tier.used(), ByteSize(60));
    drop(pinned);
    settled(&tier).await;
    assert_eq!((tier.used(), names(folder.path(), "models")), (ByteSize(30), vec!["a~1".to_owned()]));
    drop((second, tier));
    let tier = self::tier(folder.path(), 100).await;
    assert!(tier.has(&id("a"), Some("there")));
    // One that nobody pins leaves its place to its successor.
    drop(put(&tier, "a", &[(3, 30)]).await.expect("fits"));
    assert_eq!((tier.used(), names(folder.path(), "models")), (ByteSize(30), vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn of_two_contents_of_one_model_a_restart_keeps_the_later() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let tier = tier(folder.path(), 100).await;
        let pinned = put(&tier, "a", &[(1, 30)]).await.expect("fits");
        drop(put(&tier, "a", &[(2, 30)]).await.expect("fits"));
        std::mem::forget(pinned); // as with a kill
    }
    let tier = tier(folder.path(), 100).await;
    assert_eq!(names(folder.path(), "models"), ["a~1"]);
    let hold = tier.reuse(&id("a"), None).await.expect("there");
    assert_eq!(std::fs::read(file_of(&hold, 2)).expect("there"), bytes(2, 30));
}

#[tokio::test(start_paused = true)]
async fn pinned_content_is_kept_and_a_full_tier_says_so_with_the_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let held = put(&tier, "held", &[(1, 60)]).await.expect("fits");
    drop(put(&tier, "idle", &[(2, 30)]).await.expect("fits"));
    let refused = tier.gather(&id("m"), plan(&[(3, 50)])).await.map(|_| ()).expect_err("40 can be had");
    assert_eq!(refused, DiskError::Full { need: ByteSize(50), free: ByteSize(40), budget: ByteSize(100) });
    assert_eq!(refused.to_string(), "needs 50 B on disk, 40 B of 100 B can be freed: raise the disk budget or use a smaller model");
    assert!(tier.has(&id("idle"), None), "a refusal removes nothing");
    tier.forget(&id("held"));
    assert!(file_of(&held, 1).exists(), "forgotten, but still pinned");
    drop(held);
    drop(tier.gather(&id("m"), plan(&[(3, 100)])).await.expect("the pin is gone"));
    assert_eq!(tier.used(), ByteSize(0));
}

#[tokio::test(start_paused = true)]
async fn a_file_system_without_room_is_refused_before_the_first_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 1 << 60).await;
    let refused = tier.gather(&id("m"), plan(&[(3, 1 << 59)])).await.map(|_| ()).expect_err("no disk is that large");
    assert!(matches!(&refused, DiskError::Failed(text) if text.contains("free space there or move the data folder")), "{refused:?}");
    assert_eq!(tier.used(), ByteSize(0));
}

#[tokio::test(start_paused = true)]
async fn downloads_at_the_same_time_never_claim_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    drop(put(&tier, "old", &[(1, 90)]).await.expect("fits"));
    let (x, y) = (id("x"), id("y"));
    let (a, b) = tokio::join!(tier.gather(&x, plan(&[(2, 60)])), tier.gather(&y, plan(&[(3, 60)])));
    let outcomes = [a, b];
    assert_eq!(outcomes.iter().filter(|claim| claim.is_ok()).count(), 1);
    let refused = outcomes.iter().find_map(|claim| claim.as_ref().err()).expect("one is refused");
    assert_eq!(*refused, DiskError::Full { need: ByteSize(60), free: ByteSize(40), budget: ByteSize(100) });
    drop(outcomes);
    assert!(tier.gather(&id("z"), plan(&[(4, 100)])).await.is_ok(), "a dropped download gives its bytes back");
}

#[tokio::test(start_paused = true)]
async fn a_smaller_budget_keeps_the_most_recently_used() {
    let folder = tempfile::tempdir().expect("a folder");
    {
        let tier = tier(folder.path(), 100).await;
        for (name, n) in [("a", 1), ("b", 2), ("c", 3)] {
            drop(put(&tier, name, &[(n, 30)]).await.expect("fits"));
            tier.0.clock.sleep(Duration::from_secs(1)).await;
        }
    }
    let tier = tier(folder.path(), 65).await;
    assert_eq!((names(folder.path(), "models"), names(folder.path(), "blobs").len()), (vec!["b".to_owned(), "c".to_owned()], 2));
    assert_eq!(tier.used(), ByteSize(60));
}

#[tokio::test(start_paused = true)]
async fn two_models_that_share_objects_store_them_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let a = put(&tier, "a", &[(1, 60), (2, 10)]).await.expect("fits");
    let gathering = tier.gather(&id("b"), plan(&[(1, 60), (3, 20)])).await.expect("60 of the 80 are here");
    assert_eq!((gathering.resumed(), tier.used()), (ByteSize(60), ByteSize(90)));
    assert!(is_whole(&gathering, 0).await);
    let b = fill(gathering).await.expect("fits");
    let inode = |path: PathBuf| std::fs::metadata(path).expect("there").ino();
    assert_eq!((inode(file_of(&a, 1)), names(folder.path(), "blobs").len()), (inode(file_of(&b, 1)), 3));
    assert_eq!(crate::held_under(&folder.path().join("models")), ByteSize(90) + manifests(folder.path()));
    drop((a, b));
    tier.forget(&id("a"));
    settled(&tier).await;
    assert_eq!((tier.used(), names(folder.path(), "blobs").len()), (ByteSize(80), 2));
    let b = tier.reuse(&id("b"), None).await.expect("whole");
    assert_eq!(std::fs::read(file_of(&b, 1)).expect("there"), bytes(1, 60));
}

fn manifests(folder: &Path) -> ByteSize {
    let models = folder.join("models");
    let each = names(folder, "models").into_iter().map(|name| std::fs::metadata(models.join(name).join("manifest.json")).expect("there").len());
    ByteSize(each.sum())
}

#[tokio::test(start_paused = true)]
async fn one_object_may_be_two_files_of_one_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let mut twice = plan(&[(1, 60), (1, 60)]);
    twice.files[1].path = "schema".to_owned();
    let hold = fill(tier.gather(&id("a"), twice.clone()).await.expect("60 bytes")).await.expect("fits");
    assert_eq!((tier.used(), std::fs::metadata(file_of(&hold, 1)).expect("there").nlink()), (ByteSize(60), 3));
    twice.files[1].bytes = ByteSize(61);
    let fault = tier.gather(&id("b"), twice).await.map(|_| ()).expect_err("one blob, two lengths");
    assert!(matches!(&fault, DiskError::Failed(text) if text.contains("to have 60 B") && text.contains("to have 61 B")), "{fault:?}");
}

/// A writer that has written and recorded `ranges`, each with its number as the note.
async fn write(writer: &Writer, n: u8, ranges: &[(u64, u64)]) {
    let file = writer.file().await.expect("made");
    let all = bytes(n, writer.bytes().0);
    for (number, (start, end)) in ranges.iter().copied().enumerate() {
        let slice = &all[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")];
        file.write_all_at(slice, start).expect("written");
        writer.record(start..end, Note(vec![u8::try_from(number).expect("few")].into())).expect("recorded");
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_where_the_one_before_ended() {
    for ending in ["dropped", "killed", "killed, and the journal is torn", "killed, and the journal has garbage"] {
        let folder = tempfile::tempdir().expect("a folder");
        {
            let tier = tier(folder.path(), 100).await;
            let gathering = tier.gather(&id("a"), plan(&[(1, 50), (2, 20), (3, 30)])).await.expect("fits");
            writer(&gathering, 1).await.put(vec![Bytes::from(bytes(2, 20))], record(2, 20)).await.expect("written");
            let writer = writer(&gathering, 0).await;
            write(&writer, 1, &[(10, 20), (0, 5), (40, 50)]).await;
            if ending != "dropped" {
                std::mem::forget((gathering, writer));
            }
        }
        let journal = folder.path().join("blobs.journal");
        let text = std::fs::read(&journal).expect("there");
        match ending {
            "killed, and the journal is torn" => {
                std::fs::write(&journal, [&text[..], &text[text.len() - 50..text.len() - 10]].concat()).expect("written")
            }
            "killed, and the journal has garbage" => {
                std::fs::write(&journal, [&text[..], &[0; 300], b"\n\xff\xfe done\n"].concat()).expect("written")
            }
            _ => {}
        }
        let tier = tier(folder.path(), 100).await;
        assert_eq!(tier.used(), ByteSize(70), "{ending}");
        let gathering = tier.gather(&id("a"), plan(&[(1, 50), (2, 20), (3, 30)])).await.expect("fits");
        assert_eq!(gathering.resumed(), ByteSize(45), "{ending}");
        assert!(is_whole(&gathering, 1).await);
        let writer = writer(&gathering, 0).await;
        let done: Vec<_> = writer.done().iter().map(|(range, note)| (range.clone(), note.0[0])).collect();
        assert_eq!(done, [(0..5, 1), (10..20, 0), (40..50, 2)], "{ending}");
        drop(writer);
        let hold = fill(gathering).await.expect("whole");
        assert_eq!(std::fs::read(file_of(&hold, 1)).expect("there"), bytes(1, 50), "{ending}");
        assert_eq!((tier.used(), names(folder.path(), "blobs").len()), (ByteSize(100), 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_download_of_which_nothing_is_done_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let gathering = tier.gather(&id("a"), plan(&[(1, 50), (2, 20)])).await.expect("fits");
    let writer = writer(&gathering, 0).await;
    writer.file().await.expect("made");
    assert_eq!(tier.used(), ByteSize(70));
    drop(gathering);
    assert_eq!(tier.used(), ByteSize(50), "its writer is still there");
    drop(writer);
    settled(&tier).await;
    assert_eq!((tier.used(), names(folder.path(), "blobs").len()), (ByteSize(0), 0));
}

#[tokio::test(start_paused = true)]
async fn only_ranges_of_the_blob_are_recorded() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let gathering = tier.gather(&id("a"), plan(&[(1, 50)])).await.expect("fits");
    let writer = writer(&gathering, 0).await;
    let kind = |outcome: std::io::Result<()>| outcome.err().map(|fault| fault.kind());
    let invalid = Some(std::io::ErrorKind::InvalidInput);
    assert_eq!(kind(writer.record(0..10, Note::default())), invalid, "there is no file yet");
    writer.file().await.expect("made");
    assert_eq!(kind(writer.record(0..10, Note(vec![0; Note::LONGEST].into()))), None);
    for (range, note) in [(20..20, 0), (45..51, 0), (20..30, Note::LONGEST + 1)] {
        assert_eq!(kind(writer.record(range.clone(), Note(vec![0; note].into()))), invalid, "{range:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_is_whole_only_with_all_its_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let gathering = tier.gather(&id("a"), plan(&[(1, 50)])).await.expect("fits");
    let short = writer(&gathering, 0).await.put(vec![Bytes::from(bytes(1, 49))], record(1, 50)).await;
    assert!(matches!(&short, Err(DiskError::Failed(text)) if text.contains("49 are said to be all of it")), "{short:?}");
    let other = writer(&gathering, 0).await.put(vec![Bytes::from(bytes(1, 50))], record(1, 51)).await;
    assert!(other.is_err(), "{other:?}");
    let cut = writer(&gathering, 0).await;
    cut.file().await.expect("made").set_len(49).expect("cut");
    let cut = cut.finish(record(1, 50)).await;
    assert!(matches!(&cut, Err(DiskError::Failed(text)) if text.contains("has 49 bytes, not 50")), "{cut:?}");
    let unwritten = writer(&gathering, 0).await.finish(record(1, 50)).await;
    assert!(matches!(&unwritten, Err(DiskError::Failed(text)) if text.contains("nothing of it was written")), "{unwritten:?}");
    // What was cut is not gone on with.
    let writer = writer(&gathering, 0).await;
    assert_eq!(writer.done(), []);
    writer.put(bytes(1, 50).chunks(7).map(Bytes::copy_from_slice).collect(), record(1, 50)).await.expect("written");
    let hold = gathering.land().await.expect("whole");
    assert_eq!(std::fs::read(file_of(&hold, 1)).expect("there"), bytes(1, 50));
}

#[tokio::test(start_paused = true)]
async fn a_spoiled_blob_is_begun_anew_within_its_claim() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 50).await;
    let gathering = tier.gather(&id("a"), plan(&[(1, 50)])).await.expect("fits");
    let first = writer(&gathering, 0).await;
    write(&first, 1, &[(0, 50)]).await;
    first.spoil().await;
    assert_eq!((tier.used(), names(folder.path(), "blobs").len()), (ByteSize(50), 0));
    assert!(tier.gather(&id("b"), plan(&[(2, 1)])).await.is_err(), "its bytes are still claimed");
    let second = writer(&gathering, 0).await;
    assert_eq!(second.done(), []);
    write(&second, 1, &[(0, 50)]).await;
    second.finish(record(1, 50)).await.expect("whole");
    let hold = gathering.land().await.expect("lands");
    assert_eq!(std::fs::read(file_of(&hold, 1)).expect("there"), bytes(1, 50));
}

#[tokio::test(start_paused = true)]
async fn a_blob_has_one_writer_and_the_next_one_goes_on_when_it_gives_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    let a = tier.gather(&id("a"), plan(&[(1, 50)])).await.expect("fits");
    let b = tier.gather(&id("b"), plan(&[(1, 50)])).await.expect("shares");
    let first = writer(&a, 0).await;
    write(&first, 1, &[(0, 30)]).await;
    let second = tokio::spawn(async move {
        let writer = writer(&b, 0).await;
        (b, writer)
    });
    tier.0.clock.sleep(Duration::from_secs(3600)).await; // paused time: passes when nothing else can happen
    assert!(!second.is_finished(), "the first one has it");
    drop((first, a)); // all of the first download is gone
    let (b, second) = second.await.expect("gets its turn");
    assert_eq!(second.done().iter().map(|(range, _)| range.clone()).next(), Some(0..30));
    let third = tier.gather(&id("c"), plan(&[(1, 50)])).await.expect("shares");
    let third = tokio::spawn(async move {
        assert!(is_whole(&third, 0).await, "the second one has finished it");
        third.land().await
    });
    write(&second, 1, &[(30, 50)]).await;
    second.finish(record(1, 50)).await.expect("whole");
    let (b, c) = (b.land().await.expect("whole"), third.await.expect("ends").expect("whole"));
    assert_eq!(tier.used(), ByteSize(50));
    for hold in [b, c] {
        assert_eq!(std::fs::read(file_of(&hold, 1)).expect("there"), bytes(1, 50));
    }
}

#[tokio::test(start_paused = true)]
async fn what_downloads_left_goes_in_the_order_of_last_use_and_after_a_day_at_the_latest() {
    let folder = tempfile::tempdir().expect("a folder");
    let day = 24 * 60 * 60;
    {
        let tier = tier(folder.path(), 100).await;
        drop(put(&tier, "older", &[(1, 30)]).await.expect("fits"));
        tier.0.clock.sleep(Duration::from_secs(10)).await;
        let gathering = tier.gather(&id("x"), plan(&[(2, 30)])).await.expect("fits");
        write(&writer(&gathering, 0).await, 2, &[(0, 3)]).await;
        drop(gathering);
        tier.0.clock.sleep(Duration::from_secs(10)).await;
        drop(put(&tier, "newer", &[(3, 30)]).await.expect("fits"));
        drop(tier.gather(&id("y"), plan(&[(4, 40)])).await.expect("the older goes"));
        assert_eq!((tier.has(&id("older"), None), tier.used()), (false, ByteSize(60)));
        drop(tier.gather(&id("y"), plan(&[(4, 70)])).await.expect("what was left goes"));
        assert_eq!((tier.has(&id("newer"), None), tier.used()), (true, ByteSize(30)));
        let gathering = tier.gather(&id("x"), plan(&[(2, 30), (5, 10)])).await.expect("fits");
        assert_eq!(gathering.resumed(), ByteSize(0));
        write(&writer(&gathering, 0).await, 2, &[(0, 3)]).await;
        writer(&gathering, 1).await.put(vec![Bytes::from(bytes(5, 10))], record(5, 10)).await.expect("written");
        drop(gathering);
        settled(&tier).await;
    }
    for (later, left) in [(0, 70), (day - 3600, 70), (day + 60, 30)] {
        let tier = open(machine("one"), folder.path(), 100, 1_020_000 + later * 1000).await;
        assert_eq!(tier.used(), ByteSize(left), "after {later} s");
        assert!(tier.has(&id("newer"), None));
    }
}

#[tokio::test(start_paused = true)]
async fn after_another_start_of_the_machine_only_what_was_synced_is_taken_for_what_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let zero = |path: PathBuf| {
        let written = std::fs::metadata(&path).expect("there").modified().expect("known");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
        let length = std::fs::metadata(&path).expect("there").len();
        std::fs::write(&path, vec![0; usize::try_from(length).expect("small")]).expect("written");
        std::fs::File::options().write(true).open(&path).expect("opens").set_modified(written).expect("set");
    };
    let path = |n: u8| folder.path().join("blobs").join(blob(n).to_string());
    {
        let tier = tier(folder.path(), 1000).await;
        drop(put(&tier, "synced", &[(1, 10)]).await.expect("fits"));
        tier.sync_now().expect("noted");
        drop(put(&tier, "sound", &[(2, 10)]).await.expect("fits"));
        drop(put(&tier, "lost", &[(3, 10), (4, 10)]).await.expect("fits"));
        let gathering = tier.gather(&id("x"), plan(&[(5, 10), (6, 10), (7, 10)])).await.expect("fits");
        write(&writer(&gathering, 0).await, 5, &[(0, 3)]).await;
        for at in [1, 2] {
            let n = gathering.plan().files[at].blob.0[0];
            writer(&gathering, at).await.put(vec![Bytes::from(bytes(n, 10))], record(n, 10)).await.expect("written");
        }
        drop(gathering);
        settled(&tier).await;
    }
    // As a power cut may leave files whose names were written and whose bytes were not.
    [1, 3, 6].into_iter().for_each(|n| zero(path(n)));
    {
        let tier = open(machine("two"), folder.path(), 1000, 1_000_000).await;
        assert_eq!(tier.used(), ByteSize(60), "what was partial is dropped");
        assert!(!path(5).exists());
    }
    // In doubt they stay, also over another start of the process.
    let tier = open(machine("two"), folder.path(), 1000, 1_000_000).await;
    assert!(tier.reuse(&id("synced"), None).await.is_some(), "not looked at: the machine said that it was safe");
    assert!(tier.reuse(&id("sound"), None).await.is_some());
    assert!(tier.reuse(&id("lost"), None).await.is_none());
    settled(&tier).await;
    assert_eq!(tier.used(), ByteSize(40));
    let gathering = tier.gather(&id("x"), plan(&[(6, 10), (7, 10)])).await.expect("fits");
    assert_eq!(gathering.resumed(), ByteSize(10));
    assert!(is_whole(&gathering, 1).await && !is_whole(&gathering, 0).await);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_does_not_name_its_start_is_not_trusted() {
    let folder = tempfile::tempdir().expect("a folder");
    let nameless = Machine { boot: None, ..machine("") };
    {
        let tier = open(nameless.clone(), folder.path(), 100, 1_000_000).await;
        let gathering = tier.gather(&id("x"), plan(&[(5, 10)])).await.expect("fits");
        write(&writer(&gathering, 0).await, 5, &[(0, 3)]).await;
        drop(gathering);
        settled(&tier).await;
    }
    assert_eq!(open(nameless, folder.path(), 100, 1_000_000).await.used(), ByteSize(0));
}

#[tokio::test(start_paused = true)]
async fn where_files_cannot_be_linked_each_content_has_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let linkless = || Machine { links: Some(false), ..machine("one") };
    let tier = open(linkless(), folder.path(), 200, 1_000_000).await;
    let mut twice = plan(&[(1, 30), (1, 30)]);
    twice.files[1].path = "m/schema".to_owned();
    let a = fill(tier.gather(&id("a"), twice).await.expect("fits")).await.expect("lands");
    let b = put(&tier, "b", &[(1, 30)]).await.expect("fits");
    assert_eq!((tier.used(), names(folder.path(), "blobs").len()), (ByteSize(90), 0));
    // The same model again, while the one before is pinned.
    let again = put(&tier, "b", &[(1, 30)]).await.expect("fits");
    assert_eq!(tier.used(), ByteSize(120));
    for hold in [&a, &b, &again] {
        assert_eq!(std::fs::read(file_of(hold, 1)).expect("there"), bytes(1, 30));
    }
    drop((a, b, again));
    settled(&tier).await;
    assert_eq!(tier.used(), ByteSize(90));
    let gathering = tier.gather(&id("c"), plan(&[(2, 40)])).await.expect("fits");
    write(&writer(&gathering, 0).await, 2, &[(0, 3)]).await;
    std::mem::forget(gathering);
    drop(tier);
    let tier = open(linkless(), folder.path(), 200, 1_000_000).await;
    assert_eq!(tier.used(), ByteSize(130));
    assert!(tier.reuse(&id("a"), None).await.is_some() && tier.reuse(&id("b"), None).await.is_some());
    let gathering = tier.gather(&id("c"), plan(&[(2, 40)])).await.expect("fits");
    assert_eq!(gathering.resumed(), ByteSize(3));
    drop(fill(gathering).await.expect("lands"));
    std::fs::remove_file(folder.path().join("models/a/files/m/1")).expect("there");
    assert!(tier.reuse(&id("a"), None).await.is_none());
    tier.forget(&id("b"));
    drop(gather_soon(&tier, "d", &[(3, 160)]).await.expect("40 are left"));
}

/// Something that is no folder, which cannot be removed as one.
fn spoil(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("there");
    std::fs::write(folder, b"no folder").expect("written");
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_removed_keep_their_bytes_until_they_can_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    drop(put(&tier, "a", &[(1, 30)]).await.expect("fits"));
    let gathering = tier.gather(&id("b"), plan(&[(2, 30)])).await.expect("fits");
    write(&writer(&gathering, 0).await, 2, &[(0, 30)]).await;
    drop(gathering);
    let blob = folder.path().join("blobs").join(blob(2).to_string());
    std::fs::remove_file(&blob).expect("there");
    std::fs::create_dir(&blob).expect("made"); // which cannot be removed as a file
    spoil(&folder.path().join("models/a"));
    let refused = gather_soon(&tier, "c", &[(3, 50)]).await.map(|_| ()).expect_err("30 stay and 30 cannot be removed");
    assert_eq!(refused, DiskError::Full { need: ByteSize(50), free: ByteSize(40), budget: ByteSize(100) });
    assert_eq!((tier.used(), names(folder.path(), "staging").len()), (ByteSize(60), 1));
    let refused = gather_soon(&tier, "b", &[(2, 30)]).await.map(|_| ()).expect_err("its place is taken");
    assert!(matches!(&refused, DiskError::Failed(text) if text.contains("cannot be removed and is in the way")), "{refused:?}");
    drop(put(&tier, "a", &[(1, 30)]).await.expect("what is stuck is not in the way of the same model"));
    for left in names(folder.path(), "staging") {
        std::fs::remove_file(folder.path().join("staging").join(left)).expect("there");
    }
    std::fs::remove_dir(&blob).expect("there");
    let gathering = gather_soon(&tier, "c", &[(3, 100)]).await.expect("all of it is gone");
    assert_eq!(tier.used(), ByteSize(100));
    drop(gathering);
}

#[tokio::test(start_paused = true)]
async fn content_that_cannot_be_moved_is_removed_where_it_is_and_its_successor_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    drop(put(&tier, "a", &[(1, 60)]).await.expect("fits"));
    let staging = folder.path().join("staging");
    std::fs::remove_dir_all(&staging).expect("there"); // no folder can be moved there
    drop(gather_soon(&tier, "b", &[(2, 100)]).await.expect("removed in its place"));
    assert_eq!(names(folder.path(), "models").len(), 0);
    std::fs::create_dir(&staging).expect("made");
    let held = put(&tier, "a", &[(1, 60)]).await.expect("fits");
    drop(gather_soon(&tier, "b", &[(2, 40)]).await.expect("fits beside it"));
    assert!(file_of(&held, 1).exists());
}

#[tokio::test(start_paused = true)]
async fn a_landing_that_fails_leaves_the_blobs_to_the_next_one() {
    for links in [Some(true), Some(false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let tier = open(Machine { links, ..machine("one") }, folder.path(), 100, 1_000_000).await;
        drop(put(&tier, "a", &[(1, 30)]).await.expect("fits"));
        let mut odd = plan(&[(2, 20), (3, 20)]);
        odd.files[1].path = "m/2/below".to_owned(); // below a file
        let fault = fill(tier.gather(&id("b"), odd).await.expect("fits")).await.map(|_| ()).expect_err("cannot be laid out");
        assert!(matches!(&fault, DiskError::Failed(text) if text.contains("content of b cannot be laid out")), "{fault:?}");
        assert_eq!((tier.used(), names(folder.path(), "staging").len()), (ByteSize(70), 0));
        let gathering = tier.gather(&id("b"), plan(&[(2, 20), (3, 20)])).await.expect("fits");
        assert_eq!(gathering.resumed(), ByteSize(40));
        let hold = gathering.land().await.expect("lands");
        assert_eq!(std::fs::read(file_of(&hold, 3)).expect("there"), bytes(3, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn content_forgotten_and_fetched_again_at_once_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 100).await;
    for _ in 0..20 {
        let held = put(&tier, "a", &[(1, 30)]).await.expect("fits");
        assert!(file_of(&held, 1).exists());
        tier.forget(&id("a"));
        drop(held); // its files go while the next ones land
    }
    let held = put(&tier, "a", &[(1, 30)]).await.expect("fits");
    drop(gather_soon(&tier, "b", &[(2, 70)]).await.expect("all that went is gone"));
    assert!(file_of(&held, 1).exists());
    assert_eq!((names(folder.path(), "staging").len(), tier.used()), (0, ByteSize(30)));
}

#[tokio::test(start_paused = true)]
async fn a_journal_of_mostly_history_is_written_anew_while_it_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let tier = tier(folder.path(), 1 << 20).await;
    let gathering = tier.gather(&id("a"), plan(&[(1, 1000), (2, 30)])).await.expect("fits");
    let writer = writer(&gathering, 0).await;
    write(&writer, 1, &[(0, 10), (10, 20)]).await;
    let journal = folder.path().join("blobs.journal");
    let mut shorter = false;
    for _ in 0..40 {
        let before = std::fs::metadata(&journal).expect("there").len();
        let history: Vec<_> = (0..10_000).map(|_| crate::journal::Line::Used { id: blob(9), at: UnixMillis(7) }).collect();
        tier.journaled(&history, |_| ()).expect("written");
        shorter |= std::fs::metadata(&journal).expect("there").len() < before;
    }
    assert!(shorter);
    write(&writer, 1, &[(20, 30)]).await;
    std::mem::forget((gathering, writer));
    drop(tier);
    let tier = self::tier(folder.path(), 1 << 20).await;
    assert_eq!(tier.gather(&id("a"), plan(&[(1, 1000)])).await.expect("fits").resumed(), ByteSize(30));
}
