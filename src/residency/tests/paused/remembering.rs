//! What went wrong before a restart: what still counts after it, for how long, and what does not.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_adapters::LoadFault;
use berth_adapters::fake::Script;
use berth_puller::PullError;
use berth_puller::fake::Scripted;
use berth_residency::{MayEvict, WaitError};
use berth_telemetry::Clock;
use berth_types::{CopyReport, CopyState, Failure, Reason, Step, UnixMillis};

use crate::rig::{Parts, Pod, START, Unanswering, kib, millis, model, secs};

/// A pod that keeps its state in `folder` and starts at this time of day.
fn pod_in(folder: &Path, wall: UnixMillis) -> Pod {
    let mut parts = Parts::with_memory(kib(40));
    parts.clock = Clock::starting_at(wall);
    parts.config.state = Some(folder.to_owned());
    parts.start()
}

/// The models that failed as the file says at this moment; none when there is no file. A line that is being written is not there.
fn on_disk(folder: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file_in(folder)).unwrap_or_default();
    let (whole, _begun) = text.rsplit_once('\n').unwrap_or_default();
    let mut models = BTreeSet::new();
    for line in whole.lines().skip(1) {
        let line: serde_json::Value = serde_json::from_str(line).expect("a whole line");
        match (line["failed"]["failure"]["model"].as_str(), line["cleared"].as_str()) {
            (Some(model), None) => models.insert(model.to_owned()),
            (None, Some(model)) => models.remove(model),
            _ => panic!("{line}"),
        };
    }
    models
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("failures.jsonl")
}

/// Ends the pod as a crash does: nothing is written, nobody is told.
async fn crash(pod: Pod) {
    pod.owner.abort();
    assert!(pod.owner.await.is_err_and(|end| end.is_cancelled()), "it had not ended by itself");
}

async fn fails_for_good(pod: &Pod, name: &str) -> Arc<Failure> {
    pod.fetch.then(name, Scripted::fails(PullError::NotFound("nothing there".to_owned())));
    pod.residency.load(model(name), MayEvict::Nothing).await;
    pod.report(name, |report| report.state == CopyState::Absent && report.failure.is_some()).await.failure.expect("just seen")
}

fn named(reports: &[CopyReport]) -> Vec<(&str, bool)> {
    reports.iter().map(|report| (report.model.as_str(), report.failure.is_some())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_was_reported_survives_a_crash_and_is_reported_before_anything_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    pod.use_once("used").await;
    pod.pass(secs(60)).await;
    let failure = fails_for_good(&pod, "m").await;
    assert!(on_disk(folder.path()).contains("m"), "reported before it was written");
    crash(pod).await;

    let pod = pod_in(folder.path(), START.after(secs(90)));
    let first = pod.residency.reports().so_far();
    assert_eq!(named(&first), [("m", true), ("used", false)]);
    assert_eq!((&first[0].state, &first[0].failure), (&CopyState::Absent, &Some(Arc::clone(&failure))));
    assert_eq!((failure.reason, failure.step, failure.time), (Reason::ModelLoadFailed, Step::Fetch, first[0].failure.as_ref().expect("seen").time));
    assert!(first[1].last_used.is_some_and(|used| used >= START));
    pod.pass(secs(30)).await;
    assert_eq!(pod.fetch.fetches(), Vec::<String>::new(), "nobody asked for it again");
}

#[tokio::test(start_paused = true)]
async fn failures_that_come_together_are_all_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    let names: Vec<String> = (0..40).map(|n| format!("m{n:02}")).collect();
    for name in &names {
        pod.fetch.then(name, Scripted::fails(PullError::NotFound("nothing there".to_owned())));
        pod.residency.load(model(name), MayEvict::Nothing).await;
    }
    for name in &names {
        pod.report(name, |report| report.state == CopyState::Absent && report.failure.is_some()).await;
        assert!(on_disk(folder.path()).contains(name), "{name}");
    }
    assert_eq!(pod.clock.wall(), START, "only the disk is waited for");
    crash(pod).await;
    let first = pod_in(folder.path(), START.after(secs(1))).residency.reports().so_far();
    assert_eq!(named(&first), names.iter().map(|name| (name.as_str(), true)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_model_behind_three_hundred_that_fail_waits_for_the_disk_and_for_no_clock() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    // As a leader does that may have one load under way: the next one when the last one has ended.
    for n in 0..300 {
        let failure = fails_for_good(&pod, &format!("m{n:03}")).await;
        assert_eq!(failure.time, START);
    }
    pod.residency.load(model("good"), MayEvict::Nothing).await;
    pod.loaded("good").await;
    // Time stands still while somebody waits for the disk, and passes when everybody waits for a clock.
    assert_eq!(pod.clock.wall(), START, "a clock was waited for");
    assert_eq!(on_disk(folder.path()).len(), 300);
}

#[tokio::test(start_paused = true)]
async fn one_more_failure_costs_one_more_line_however_many_there_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    let meta = || std::fs::metadata(file_in(folder.path())).expect("it is there");
    fails_for_good(&pod, "m000").await;
    let first = meta();
    let mut sizes = vec![first.len()];
    for n in 1..400 {
        fails_for_good(&pod, &format!("m{n:03}")).await;
        assert_eq!(meta().ino(), first.ino(), "the file was replaced for the failure of m{n:03}");
        sizes.push(meta().len());
    }
    let mut lines: Vec<u64> = sizes.windows(2).map(|sizes| sizes[1] - sizes[0]).collect();
    lines.dedup();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0] < 500, "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_fails_without_end_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut parts = Parts::with_memory(kib(40));
    parts.clock = Clock::starting_at(START);
    parts.config.state = Some(folder.path().to_owned());
    parts.config.quiet_passing = (Duration::ZERO, Duration::ZERO);
    let pod = parts.start();
    let mut reports = pod.residency.reports();
    let (mut attempts, mut told) = (0, 0);
    while told < 50 && attempts < 1_000_000 {
        attempts += 1;
        pod.fetch.then("m", Scripted::fails(PullError::Disk("a loop of links".to_owned())));
        let answer = pod.ensure("m", secs(5)).await;
        assert!(matches!(answer, Err(WaitError::Failed(_))), "{answer:?}");
        let failed = |report: &CopyReport| report.state == CopyState::Absent && report.failure.is_some();
        told += reports.so_far().iter().filter(|report| failed(report)).count();
    }
    assert_eq!(pod.clock.wall(), START, "a clock was waited for");
    // Each write is a line of this one model. Two may end between two looks at the reports.
    let lines = std::fs::read_to_string(file_in(folder.path())).expect("it is there").lines().count();
    assert!(told == 50 && lines < 2 * told, "told {told} times in {lines} writes, {attempts} attempts");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_a_crash_cut_short_costs_nothing_that_was_reported_and_the_next_failure_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    fails_for_good(&pod, "a").await;
    fails_for_good(&pod, "b").await;
    crash(pod).await;
    let whole = std::fs::read(file_in(folder.path())).expect("it is there");
    std::fs::write(file_in(folder.path()), &whole[..whole.len() - 20]).expect("the folder is writable");
    let pod = pod_in(folder.path(), START.after(secs(1)));
    assert_eq!(named(&pod.residency.reports().so_far()), [("a", true)]);
    fails_for_good(&pod, "c").await;
    crash(pod).await;
    let first = pod_in(folder.path(), START.after(secs(2))).residency.reports().so_far();
    assert_eq!(named(&first), [("a", true), ("c", true)]);
}

#[tokio::test(start_paused = true)]
async fn success_clears_the_failure_on_disk_before_it_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    fails_for_good(&pod, "m").await;
    pod.pass(secs(11)).await;
    drop(pod.ensure("m", secs(5)).await.expect("the files are there now"));
    assert_eq!(pod.report("m", |report| matches!(report.state, CopyState::Loaded { .. })).await.failure, None);
    assert_eq!(on_disk(folder.path()), BTreeSet::new(), "reported before it was written");
    crash(pod).await;
    let pod = pod_in(folder.path(), START.after(secs(20)));
    assert!(pod.residency.reports().so_far().iter().all(|report| report.failure.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_retired_leaves_no_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    fails_for_good(&pod, "m").await;
    fails_for_good(&pod, "other").await;
    let mut reports = pod.residency.reports();
    assert_eq!(named(&reports.so_far()), [("m", true), ("other", true)]);
    pod.residency.retire(model("m")).await;
    assert_eq!(named(&reports.next().await.expect("the owner lives")), [("m", false)]);
    crash(pod).await;
    let first = pod_in(folder.path(), START.after(secs(1))).residency.reports().so_far();
    assert_eq!(named(&first), [("other", true)]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_for_fifteen_minutes_however_often_the_pod_restarts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    let time = fails_for_good(&pod, "m").await.time;
    crash(pod).await;
    for minutes in [1, 7, 14] {
        let pod = pod_in(folder.path(), time.after(secs(minutes * 60)));
        let first = pod.residency.reports().so_far();
        assert_eq!(first[0].failure.as_ref().map(|failure| failure.time), Some(time), "after {minutes} minutes");
        crash(pod).await;
    }
    let pod = pod_in(folder.path(), time.after(secs(14 * 60)));
    let mut reports = pod.residency.reports();
    assert_eq!(named(&reports.so_far()), [("m", true)]);
    assert_eq!(named(&reports.next().await.expect("the owner lives")), [("m", false)]);
    let counted = pod.clock.wall().since(time);
    assert!(counted >= secs(15 * 60) && counted < secs(15 * 60 + 10), "{counted:?}");
    crash(pod).await;
    let pod = pod_in(folder.path(), time.after(secs(15 * 60)));
    assert_eq!(pod.residency.reports().so_far(), []);
    pod.pass(secs(1)).await;
    let text = std::fs::read_to_string(file_in(folder.path())).expect("it is there");
    assert!(!text.contains("nothing there"), "what counts no longer is not kept");
}

#[tokio::test(start_paused = true)]
async fn a_failure_from_the_future_happened_now() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START.after(secs(3_600)));
    fails_for_good(&pod, "m").await;
    crash(pod).await;
    let pod = pod_in(folder.path(), START);
    let mut reports = pod.residency.reports();
    assert_eq!(reports.so_far()[0].failure.as_ref().map(|failure| failure.time), Some(START));
    assert_eq!(named(&reports.next().await.expect("the owner lives")), [("m", false)]);
    let counted = pod.clock.wall().since(START);
    assert!(counted >= secs(15 * 60) && counted < secs(15 * 60 + 10), "{counted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restart_neither_ends_nor_renews_the_time_in_which_a_failure_is_the_answer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    let time = fails_for_good(&pod, "m").await.time;
    crash(pod).await;
    let pod = pod_in(folder.path(), time.after(secs(4)));
    for later in [0, 5] {
        pod.pass(secs(later)).await;
        let answer = pod.ensure("m", secs(5)).await;
        assert!(matches!(&answer, Err(WaitError::Failed(failure)) if failure.time == time), "{answer:?}");
    }
    assert_eq!(pod.fetch.fetches(), Vec::<String>::new());
    pod.pass(secs(2)).await;
    // The second failure in a row is the answer for twice as long, also when a restart lies between them.
    pod.fetch.then("m", Scripted::fails(PullError::NotFound("still nothing".to_owned())));
    for (later, fetches) in [(0, 1), (19, 1), (2, 2)] {
        pod.pass(secs(later)).await;
        assert_eq!(pod.ensure("m", secs(5)).await.is_err(), fetches == 1);
        assert_eq!(pod.fetch.fetches().len(), fetches, "{later} s later");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_a_crash_cut_short_leaves_no_failure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    pod.runtime.script("m", Script::default().hanging());
    pod.fetch.then("n", Scripted::Stalls);
    for name in ["m", "n"] {
        pod.residency.load(model(name), MayEvict::Nothing).await;
        pod.report(name, |report| matches!(report.state, CopyState::Loading { .. })).await;
    }
    pod.pass(secs(5)).await;
    crash(pod).await;
    let pod = pod_in(folder.path(), START.after(secs(6)));
    assert_eq!(pod.residency.reports().so_far(), []);
    assert!(pod.ensure("m", secs(5)).await.is_ok() && pod.ensure("n", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn failures_also_survive_an_orderly_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    pod.runtime.script("m", Script::default().failing(1, LoadFault::BadModel));
    let answer = pod.ensure("m", secs(5)).await;
    assert!(matches!(answer, Err(WaitError::Failed(_))), "{answer:?}");
    // The caller has its answer before the failure is on disk.
    pod.residency.drain(pod.clock.deadline_in(secs(10))).await;
    pod.owner.await.expect("the owner does not panic");
    let first = pod_in(folder.path(), START.after(secs(1))).residency.reports().so_far();
    assert_eq!(named(&first), [("m", true)]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_costs_the_memory_of_failures_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("state");
    std::fs::write(&state, "no folder").expect("the folder is writable");
    let pod = pod_in(&state, START);
    for name in ["a", "b"] {
        fails_for_good(&pod, name).await;
    }
    assert!(pod.clock.wall().since(START) < secs(1), "a disk that fails is not waited for");
    pod.use_once("c").await;
    pod.residency.retire(model("a")).await;
    pod.pass(secs(10)).await;
    std::fs::remove_file(&state).expect("it is there");
    pod.pass(secs(10)).await;
    assert_eq!(on_disk(&state), ["b".to_owned()].into(), "written once the disk takes it");
    fails_for_good(&pod, "d").await;
    assert!(on_disk(&state).contains("d"), "and from then on before anybody is told");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_answer_is_waited_for_for_a_second() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pod = pod_in(folder.path(), START);
    let fifo = Unanswering::at(folder.path().join("failures.jsonl.tmp"));
    pod.fetch.then("m", Scripted::fails(PullError::NotFound("nothing there".to_owned())));
    let mut reports = pod.residency.reports();
    let answer = pod.ensure("m", secs(5)).await;
    assert!(matches!(answer, Err(WaitError::Failed(_))), "callers do not wait for the disk: {answer:?}");
    assert_eq!(named(&reports.next().await.expect("the owner lives")), [("m", false)], "it began to load");
    // Time does not pass by itself while a thread waits for the disk.
    tokio::time::advance(millis(900)).await;
    pod.snapshot().await;
    assert_eq!(reports.so_far(), []);
    tokio::time::advance(millis(200)).await;
    assert_eq!(named(&reports.next().await.expect("the owner lives")), [("m", true)]);
    drop(pod.ensure("n", secs(5)).await.expect("the pod works on"));
    drop(fifo);
}
