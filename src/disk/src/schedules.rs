//! Random schedules of everything that a caller and a machine may do, against what must hold whatever they do.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, UnixMillis};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::tests::{blob, bytes, id, machine, plan, record, settled};
use crate::tier::Machine;
use crate::{DiskError, Gathering, Hold, Note, Opened, Tier, TierConfig, Writer};

const BUDGET: u64 = 1000;
const MODELS: u8 = 4;
const BLOBS: u8 = 8;

fn size(n: u8) -> u64 {
    [0, 60, 100, 150, 200, 250, 400, 700][usize::from(n)]
}

#[derive(Clone, Debug)]
enum Act {
    Gather(u8, Vec<u8>),
    /// Opens a file of a download.
    Open(usize, usize),
    Put(usize),
    /// Writes and records the tenth of a blob with this number.
    Write(usize, u64),
    Finish(usize),
    /// Brings all of a download that nobody is writing.
    Fill(usize),
    Spoil(usize),
    LetGo(usize),
    /// Lands a download, brought in full before or as it is.
    Land(usize, bool),
    GiveUp(usize),
    Reuse(u8),
    Unpin(usize),
    Forget(u8),
    /// Another hand changes a byte of a blob.
    Scribble(u8),
    Synced,
    Restart,
    Kill,
    /// What was not synced may be lost: so much of the journal's end, and the blobs with these bits.
    PowerCut(u64, u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0..MODELS, proptest::collection::btree_set(0..BLOBS, 1..4)).prop_map(|(model, blobs)| Act::Gather(model, blobs.into_iter().collect())),
        8 => (0usize..3, 0usize..3).prop_map(|(at, file)| Act::Open(at, file)),
        6 => (0usize..3).prop_map(Act::Put),
        10 => (0usize..3, 0u64..10).prop_map(|(at, tenth)| Act::Write(at, tenth)),
        3 => (0usize..3).prop_map(Act::Finish),
        3 => (0usize..3).prop_map(Act::Fill),
        1 => (0usize..3).prop_map(Act::Spoil),
        2 => (0usize..3).prop_map(Act::LetGo),
        8 => (0usize..3, proptest::bool::weighted(0.8)).prop_map(|(at, full)| Act::Land(at, full)),
        2 => (0usize..3).prop_map(Act::GiveUp),
        4 => (0..MODELS).prop_map(Act::Reuse),
        4 => (0usize..3).prop_map(Act::Unpin),
        2 => (0..MODELS).prop_map(Act::Forget),
        1 => (0..BLOBS).prop_map(Act::Scribble),
        2 => Just(Act::Synced),
        1 => Just(Act::Restart),
        1 => Just(Act::Kill),
        1 => (0u64..400, any::<u8>()).prop_map(|(lost, blobs)| Act::PowerCut(lost, blobs)),
    ];
    proptest::collection::vec(act, 0..70)
}

/// A process with the tier open, and whoever uses it.
struct Process {
    runtime: Runtime,
    tier: Tier,
    gatherings: Vec<Gathering>,
    /// With whether there is a file by now.
    writers: Vec<(u8, Writer, bool)>,
    holds: Vec<(Vec<u8>, Hold)>,
}

impl Process {
    fn start(folder: &Path, links: bool, boot: u32, at: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let machine = Machine { links: Some(links), ..machine(&format!("boot-{boot}")) };
        let config = TierConfig { folder: folder.to_owned(), budget: ByteSize(BUDGET) };
        let open = async { Tier::open_on(machine, config, Clock::starting_at(UnixMillis(at)), Metrics::default()).await.expect("opens") };
        let tier = runtime.block_on(open);
        Process { runtime, tier, gatherings: Vec::new(), writers: Vec::new(), holds: Vec::new() }
    }

    /// Ends it; `killed`: nobody gets to clean up.
    fn end(self, killed: bool) {
        if killed {
            std::mem::forget((self.gatherings, self.writers, self.holds));
        } else {
            let _entered = self.runtime.enter();
            drop((self.gatherings, self.writers, self.holds));
            self.runtime.block_on(settled(&self.tier));
        }
        // Work that has begun ends, as system calls do; what has not begun never does.
        drop(self.runtime);
    }
}

/// Bytes of blobs and contents below `folder`, each file once.
fn lying_under(folder: &Path, seen: &mut HashSet<u64>) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => lying_under(&entry.path(), seen),
        Ok(about) if entry.file_name() != "manifest.json" && entry.file_name() != "blobs.journal" && seen.insert(about.ino()) => about.len(),
        _ => 0,
    });
    each.sum()
}

fn number(gathering: &Gathering, at: usize) -> u8 {
    gathering.plan().files[at].blob.0[0]
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &bytes[usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small")]
}

/// What is said to be done of a blob, as it should be and as it is, with its notes.
async fn done_of(writer: &Writer, n: u8) -> [Vec<(Vec<u8>, Note)>; 2] {
    if writer.done().is_empty() {
        return [Vec::new(), Vec::new()];
    }
    let (file, right) = (writer.file().await.expect("opens"), bytes(n, size(n)));
    let read = |range: &Range<u64>| {
        let mut there = vec![0; usize::try_from(range.end - range.start).expect("small")];
        file.read_exact_at(&mut there, range.start).expect("read");
        there
    };
    let done = || writer.done().iter();
    [
        done().map(|(range, _)| (slice(&right, range).to_vec(), Note(vec![n].into()))).collect(),
        done().map(|(range, note)| (read(range), note.clone())).collect(),
    ]
}

/// What of a blob is not said to be done.
fn missing_of(writer: &Writer) -> impl Iterator<Item = Range<u64>> {
    let ends = writer.done().iter().map(|(range, _)| range.end);
    let starts = writer.done().iter().map(|(range, _)| range.start);
    std::iter::once(0).chain(ends).zip(starts.chain(std::iter::once(writer.bytes().0))).map(|(start, end)| start..end)
}

/// Brings all of a download that none of `writers` has.
fn fill(runtime: &Runtime, gathering: &Gathering, writers: &[(u8, Writer, bool)]) -> Result<(), TestCaseError> {
    for file in 0..gathering.plan().files.len() {
        let n = number(gathering, file);
        if writers.iter().any(|(other, ..)| *other == n) {
            continue;
        }
        let Opened::Partial(writer) = runtime.block_on(gathering.open(file)).expect("opens") else { continue };
        let [right, there] = runtime.block_on(done_of(&writer, n));
        prop_assert_eq!(there, right);
        if writer.done().is_empty() {
            runtime.block_on(writer.put(vec![Bytes::from(bytes(n, size(n)))], record(n, size(n)))).expect("whole");
        } else {
            let opened = runtime.block_on(writer.file()).expect("opens");
            missing_of(&writer).for_each(|range| opened.write_all_at(slice(&bytes(n, size(n)), &range), range.start).expect("written"));
            runtime.block_on(writer.finish(record(n, size(n)))).expect("whole");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn whatever_is_handed_out_has_the_right_bytes_and_the_budget_holds(acts in acts(), links in proptest::bool::weighted(0.8)) {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut boot, mut at) = (0, 1_000_000);
        let mut process = Process::start(folder.path(), links, boot, at);
        let blob_files = |folder: &Path| -> Vec<std::path::PathBuf> {
            std::fs::read_dir(folder.join("blobs")).expect("there").map(|entry| entry.expect("read").path()).collect()
        };
        // What a power cut leaves alone: so much of the journal, and these files.
        let mut synced: (u64, HashMap<std::path::PathBuf, u64>) = (0, HashMap::new());
        for act in acts {
            at += 1000;
            let Process { runtime, tier, gatherings, writers, holds } = &mut process;
            match act {
                Act::Gather(model, blobs) if gatherings.len() < 3 => {
                    let wanted: Vec<(u8, u64)> = blobs.iter().map(|n| (*n, size(*n))).collect();
                    let need = wanted.iter().map(|(_, size)| *size).sum::<u64>();
                    let gathered = runtime.block_on(async {
                        let clock = &tier.0.clock;
                        clock.until(clock.deadline_in(Duration::from_secs(20)), tier.gather(&id(&format!("m{model}")), plan(&wanted))).await
                    });
                    match gathered {
                        None => prop_assert!(false, "waits for bytes that nobody holds"),
                        Some(Ok(gathering)) => gatherings.push(gathering),
                        Some(Err(DiskError::Full { need: said, free, budget })) => {
                            prop_assert_eq!((said, budget), (ByteSize(need), ByteSize(BUDGET)));
                            prop_assert!(free < said);
                        }
                        Some(Err(fault)) => prop_assert!(false, "{fault:?}"),
                    }
                }
                Act::Open(which, file) if !gatherings.is_empty() && writers.len() < 3 => {
                    let gathering = &gatherings[which % gatherings.len()];
                    let file = file % gathering.plan().files.len();
                    let n = number(gathering, file);
                    // Another's turn would be waited for.
                    if writers.iter().any(|(other, ..)| *other == n) {
                        continue;
                    }
                    match runtime.block_on(gathering.open(file)).expect("opens") {
                        Opened::Whole(whole) => prop_assert_eq!(whole, record(n, size(n))),
                        Opened::Partial(writer) => {
                            let made = !writer.done().is_empty();
                            let [right, there] = runtime.block_on(done_of(&writer, n));
                            prop_assert_eq!(there, right);
                            writers.push((n, writer, made));
                        }
                    }
                }
                Act::Put(which) if !writers.is_empty() => {
                    let (n, writer, made) = writers.remove(which % writers.len());
                    let anew = !made && writer.done().is_empty();
                    let put = runtime.block_on(writer.put(vec![Bytes::from(bytes(n, size(n)))], record(n, size(n))));
                    prop_assert_eq!(put.is_ok(), anew);
                }
                Act::Write(which, tenth) if !writers.is_empty() => {
                    let at = which % writers.len();
                    let (n, writer, made) = &mut writers[at];
                    *made = true;
                    let length = size(*n) / 10;
                    let range = tenth * length..(tenth + 1) * length;
                    let file = runtime.block_on(writer.file()).expect("made");
                    let right = bytes(*n, size(*n));
                    file.write_all_at(slice(&right, &range), range.start).expect("written");
                    prop_assert_eq!(writer.record(range.clone(), Note(vec![*n].into())).is_ok(), !range.is_empty());
                }
                Act::Finish(which) if !writers.is_empty() => {
                    let (n, writer, _) = writers.remove(which % writers.len());
                    let file = runtime.block_on(writer.file()).expect("made");
                    file.write_all_at(&bytes(n, size(n)), 0).expect("written");
                    runtime.block_on(writer.finish(record(n, size(n)))).expect("whole");
                }
                Act::Fill(which) if !gatherings.is_empty() => {
                    let gathering = &gatherings[which % gatherings.len()];
                    fill(runtime, gathering, writers)?;
                }
                Act::Spoil(which) if !writers.is_empty() => {
                    let (n, writer, _) = writers.remove(which % writers.len());
                    let file = runtime.block_on(writer.file()).expect("made");
                    file.write_all_at(&vec![0; usize::try_from(size(n)).expect("small")], 0).expect("written");
                    runtime.block_on(writer.spoil());
                }
                Act::LetGo(which) if !writers.is_empty() => {
                    let _entered = runtime.enter();
                    drop(writers.remove(which % writers.len()));
                }
                Act::Land(which, full) if !gatherings.is_empty() => {
                    let gathering = gatherings.remove(which % gatherings.len());
                    if full {
                        fill(runtime, &gathering, writers)?;
                    }
                    let numbers: Vec<u8> = (0..gathering.plan().files.len()).map(|file| number(&gathering, file)).collect();
                    if let Ok(hold) = runtime.block_on(gathering.land()) {
                        holds.push((numbers, hold));
                    }
                }
                Act::GiveUp(which) if !gatherings.is_empty() => {
                    let _entered = runtime.enter();
                    drop(gatherings.remove(which % gatherings.len()));
                }
                Act::Reuse(model) => {
                    let model = id(&format!("m{model}"));
                    if let Some(hold) = runtime.block_on(tier.reuse(&model, Some("here"))) {
                        prop_assert!(tier.has(&model, Some("here")));
                        let numbers = hold.content().manifest().files.iter().map(|file| file.path["m/".len()..].parse().expect("a number")).collect();
                        holds.push((numbers, hold));
                    }
                }
                Act::Unpin(which) if !holds.is_empty() => {
                    let _entered = runtime.enter();
                    drop(holds.remove(which % holds.len()));
                }
                Act::Forget(model) => {
                    let _entered = runtime.enter();
                    tier.forget(&id(&format!("m{model}")));
                }
                Act::Scribble(n) => {
                    // Nobody is looking: what is held was whole when it was taken.
                    runtime.block_on(settled(tier));
                    let path = folder.path().join("blobs").join(blob(n).to_string());
                    let about = std::fs::metadata(&path);
                    let scribbled = about.is_ok_and(|about| about.permissions().mode() & 0o200 == 0 && about.len() > 0);
                    if scribbled && gatherings.is_empty() && holds.is_empty() {
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
                        let file = std::fs::File::options().write(true).open(&path).expect("opens");
                        file.write_all_at(b"\0", 0).expect("written");
                        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(at)).expect("set");
                        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).expect("set");
                    }
                }
                Act::Synced => {
                    tier.sync_now().expect("noted");
                    let inode = |path: std::path::PathBuf| std::fs::metadata(&path).ok().map(|about| (path, about.ino()));
                    let length = std::fs::metadata(folder.path().join("blobs.journal")).expect("there").len();
                    synced = (length, blob_files(folder.path()).into_iter().filter_map(inode).collect());
                }
                Act::Restart | Act::Kill => {
                    process.end(matches!(act, Act::Kill));
                    process = Process::start(folder.path(), links, boot, at);
                    synced.0 = 0; // the journal is another file
                }
                Act::PowerCut(lost, which) => {
                    process.end(true);
                    boot += 1;
                    let journal = std::fs::File::options().write(true).open(folder.path().join("blobs.journal")).expect("there");
                    let length = journal.metadata().expect("there").len();
                    journal.set_len(length.saturating_sub(lost).max(synced.0)).expect("cut");
                    for path in blob_files(folder.path()) {
                        let about = std::fs::metadata(&path).expect("there");
                        let unlucky = BlobLuck(which).is_out(&path);
                        if unlucky && synced.1.get(&path) != Some(&about.ino()) {
                            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
                            let file = std::fs::File::options().write(true).open(&path).expect("opens");
                            file.write_all_at(&vec![0; usize::try_from(about.len()).expect("small")], 0).expect("written");
                            file.set_modified(about.modified().expect("known")).expect("set");
                        }
                    }
                    process = Process::start(folder.path(), links, boot, at);
                    synced.0 = 0;
                }
                Act::Gather(..) | Act::Open(..) | Act::Put(_) | Act::Write(..) | Act::Finish(_) | Act::Fill(_) | Act::Spoil(_) | Act::LetGo(_) | Act::Land(..)
                | Act::GiveUp(_) | Act::Unpin(_) => {}
            }
            process.tier.0.ledger.lock().check();
            let (used, lying) = (process.tier.used().0, lying_under(folder.path(), &mut HashSet::new()));
            prop_assert!(lying <= BUDGET, "{lying} bytes lie there");
            prop_assert!(used <= BUDGET, "{used} are used");
            for (numbers, hold) in &process.holds {
                for n in numbers {
                    prop_assert_eq!(std::fs::read(hold.content().model().join(n.to_string())).ok(), Some(bytes(*n, size(*n))), "{} in {:?}", n, hold);
                }
            }
        }
        // With everybody gone all of it can be had.
        let Process { runtime, tier, gatherings, writers, holds } = process;
        let _entered = runtime.enter();
        drop((gatherings, writers, holds));
        runtime.block_on(async {
            let clock = &tier.0.clock;
            let all = clock.until(clock.deadline_in(Duration::from_secs(20)), tier.gather(&id("last"), plan(&[(9, BUDGET)]))).await;
            assert!(matches!(all, Some(Ok(_))), "{all:?}");
        });
        prop_assert_eq!(lying_under(&folder.path().join("models"), &mut HashSet::new()), 0);
    }
}

/// Which blobs lose their bytes in a power cut.
struct BlobLuck(u8);

impl BlobLuck {
    fn is_out(&self, path: &Path) -> bool {
        path.as_os_str().as_encoded_bytes().iter().fold(0u8, |sum, byte| sum.wrapping_mul(3).wrapping_add(*byte)) & self.0 != 0
    }
}
