//! How far downloads are, for whoever shows it.
//!
//! A download counts its bytes in atomics and does nothing else for it. One task, which lives only while something is being
//! fetched, looks at all of them once a second: from what it sees come speeds, times that are left, and a line in the log now
//! and then. Whoever watches is told that something changed, not what: the picture is always the present one, so that slow
//! readers cost nothing. What is kept is bounded by the downloads under way.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Counter, Gauge, Histogram, Metrics, PassingGauge, field};
use berth_types::{ByteSize, ModelId};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

/// How often speeds are measured.
const TICK: Duration = Duration::from_secs(1);
/// How often a download that goes on says so in the log, and how often at most that it had to try again.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// A slow listener loses the oldest steps, it never slows a download.
pub(crate) const BACKLOG: usize = 256;

/// Where a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The store has been asked what belongs to the model; then room on disk is made for it.
    Listing,
    /// What belongs to the model is known and has its room. No byte of it has come yet.
    Listed,
    /// Bytes are coming.
    Fetching,
    /// All bytes are here; what is left of their checks is done, and they are put in place.
    Verifying,
    /// The files are in place. The last word on a download that went well.
    Done,
    /// The download ended without the model. The last word on one that did not.
    Failed,
}

impl Stage {
    /// The stage as one word for logs and APIs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Listing => "Listing",
            Stage::Listed => "Listed",
            Stage::Fetching => "Fetching",
            Stage::Verifying => "Verifying",
            Stage::Done => "Done",
            Stage::Failed => "Failed",
        }
    }

    /// True for the last word on a download.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Stage::Done | Stage::Failed)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where one download is. From step to step bytes only grow, but for a download that starts over because the store's
/// content changed: then `Listed` comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which model.
    pub model: ModelId,
    /// Where it is.
    pub stage: Stage,
    /// Bytes that are here, those of earlier attempts included.
    pub bytes: ByteSize,
    /// Bytes in all, schema included; zero until they are known.
    pub total: ByteSize,
    /// Bytes that an earlier attempt had left.
    pub resumed: ByteSize,
    /// Bytes per second over the last few seconds; `None` until it has been measured.
    pub rate: Option<ByteSize>,
    /// How long the rest takes at this rate; `None` where nothing comes or nothing is known.
    pub eta: Option<Duration>,
}

impl Progress {
    /// How much of it is here, of 100; `None` until it is known how much there is.
    #[must_use]
    pub fn percent(&self) -> Option<u8> {
        if matches!(self.stage, Stage::Listing) {
            return None;
        }
        let percent = (u128::from(self.bytes.0) * 100).checked_div(u128::from(self.total.0)).unwrap_or(100).min(100);
        u8::try_from(percent).ok()
    }
}

/// Bytes per second over the last few seconds.
#[derive(Debug, Default)]
struct Speed {
    /// When how many bytes were there: the newest last, the first at most one step older than the window.
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// What "the last few seconds" means.
    const WINDOW: Duration = Duration::from_secs(5);
    /// Samples that come faster replace each other: their number is bounded by the window.
    const STEP: Duration = Duration::from_millis(250);

    /// At `now` there are so many bytes. Fewer than before: everything starts over.
    fn sample(&mut self, now: Instant, bytes: u64) {
        if self.samples.back().is_some_and(|(_, before)| bytes < *before) {
            self.samples.clear();
        }
        if let [.., (older, _), _] = *self.samples.make_contiguous()
            && now.saturating_duration_since(older) < Self::STEP
        {
            self.samples.pop_back();
        }
        self.samples.push_back((now, bytes));
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= Self::WINDOW) {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> Option<ByteSize> {
        let ((first, had), (last, has)) = self.samples.front().zip(self.samples.back())?;
        per_second(has.saturating_sub(*had), last.saturating_duration_since(*first))
    }
}

/// `None` where no time has passed.
fn per_second(bytes: u64, took: Duration) -> Option<ByteSize> {
    let per_second = (u128::from(bytes) * 1_000_000).checked_div(took.as_micros())?;
    Some(ByteSize(u64::try_from(per_second).unwrap_or(u64::MAX)))
}

/// How long `left` takes; whole seconds, rounded up. `None` where nothing comes, or not within the life of a person.
fn eta(left: ByteSize, rate: ByteSize) -> Option<Duration> {
    const LONGEST: u64 = 100 * 365 * 86_400;
    let seconds = if left == ByteSize::ZERO { 0 } else { left.0.checked_sub(1)?.checked_div(rate.0)?.checked_add(1)? };
    (seconds < LONGEST).then(|| Duration::from_secs(seconds))
}

/// All downloads under way. Cheap to clone.
#[derive(Clone)]
pub struct Downloads(Arc<Board>);

struct Board {
    clock: Clock,
    metrics: Metrics,
    tell: broadcast::Sender<Progress>,
    changed: watch::Sender<u64>,
    state: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    /// In the order in which they began.
    downloads: Vec<Arc<Download>>,
    /// True while the task runs that looks at them.
    watched: bool,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Downloads")
    }
}

impl Downloads {
    pub(crate) fn new(clock: Clock, metrics: Metrics) -> Self {
        metrics.set(Gauge::Downloads, &[], 0);
        let (tell, changed) = (broadcast::Sender::new(BACKLOG), watch::Sender::new(0));
        Downloads(Arc::new(Board { clock, metrics, tell, changed, state: Mutex::default() }))
    }

    /// The steps of all downloads from now on.
    pub(crate) fn steps(&self) -> broadcast::Receiver<Progress> {
        self.0.tell.subscribe()
    }

    /// Each download under way, in the order in which they began.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Progress> {
        self.0.state.lock().downloads.iter().map(|download| download.progress()).collect()
    }

    /// The download of `model`, where one is under way.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<Progress> {
        self.0.state.lock().downloads.iter().find(|download| download.model == *model).map(|download| download.progress())
    }

    /// A number that grows when a download begins, comes to another stage or ends, and once a second in between. Changes
    /// that nobody has looked at become one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn begin(&self, download: Arc<Download>) {
        let (count, watched) = {
            let mut state = self.0.state.lock();
            state.downloads.push(download);
            (state.downloads.len(), std::mem::replace(&mut state.watched, true))
        };
        self.counted(count);
        if !watched {
            let board = Arc::clone(&self.0);
            tokio::spawn(async move { board.look().await });
        }
    }

    fn end(&self, download: &Arc<Download>) {
        let count = {
            let mut state = self.0.state.lock();
            state.downloads.retain(|other| !Arc::ptr_eq(other, download));
            state.downloads.len()
        };
        self.counted(count);
    }

    fn counted(&self, count: usize) {
        self.0.metrics.set(Gauge::Downloads, &[], count as u64);
        self.0.moved();
    }
}

impl Board {
    fn moved(&self) {
        self.changed.send_modify(|number| *number = number.wrapping_add(1));
    }

    /// Looks at the downloads once a second until there are none.
    async fn look(&self) {
        loop {
            self.clock.sleep(TICK).await;
            let downloads = {
                let mut state = self.state.lock();
                if state.downloads.is_empty() {
                    state.watched = false;
                    return;
                }
                state.downloads.clone()
            };
            let now = self.clock.now();
            downloads.iter().for_each(|download| download.look(now));
            self.moved();
        }
    }
}

/// One download as all see it.
struct Download {
    model: ModelId,
    begun: Instant,
    bytes: PassingGauge,
    total: PassingGauge,
    /// Bytes that the last step told of.
    told: AtomicU64,
    /// True once a frame came after the last `Listed` or `Verifying`.
    coming: AtomicBool,
    seen: Mutex<Seen>,
}

/// What is touched seldom.
struct Seen {
    stage: Stage,
    resumed: u64,
    speed: Speed,
    /// When bytes began to be waited for.
    listed: Option<Instant>,
    say_at: Instant,
    /// Tries again that were not told yet, and when the next may be.
    retries: u64,
    warn_at: Instant,
}

impl Download {
    fn progress(&self) -> Progress {
        let (bytes, total) = (ByteSize(self.bytes.get()), ByteSize(self.total.get()));
        let seen = self.seen.lock();
        let rate = seen.speed.per_second();
        let eta = rate.filter(|_| seen.stage == Stage::Fetching).and_then(|rate| eta(total.saturating_sub(bytes), rate));
        Progress { model: self.model.clone(), stage: seen.stage, bytes, total, resumed: ByteSize(seen.resumed), rate, eta }
    }

    /// Measures, and says how far it is when that is due.
    fn look(&self, now: Instant) {
        let due = {
            let mut seen = self.seen.lock();
            if seen.listed.is_some() {
                seen.speed.sample(now, self.bytes.get());
            }
            let due = now >= seen.say_at && !seen.stage.is_end();
            if due {
                seen.say_at = now + SAY_EVERY;
            }
            due
        };
        if due {
            let at = self.progress();
            let (percent, rate, eta) = (at.percent(), at.rate.map(field::rate), at.eta.map(|eta| format!("{}s", eta.as_secs())));
            info!(model = %at.model, step = "fetch", stage = %at.stage, bytes = %at.bytes, size = %at.total, percent, rate, eta, "download goes on");
        }
    }
}

/// Tells how one download goes: at most about a hundred steps while bytes are coming. One that is dropped before it is done
/// has failed.
pub(crate) struct Reporter {
    board: Downloads,
    download: Arc<Download>,
}

impl Reporter {
    /// A download of `model` begins.
    pub(crate) fn new(model: ModelId, board: &Downloads) -> Self {
        let Board { clock, metrics, .. } = &*board.0;
        let gauge = |gauge| metrics.passing_gauge(gauge, &[("model", model.as_str())]);
        let (bytes, total, now) = (gauge(Gauge::DownloadBytes), gauge(Gauge::DownloadSizeBytes), clock.now());
        let seen =
            Seen { stage: Stage::Listing, resumed: 0, speed: Speed::default(), listed: None, say_at: now + SAY_EVERY, retries: 0, warn_at: now };
        let download = Download { model, begun: now, bytes, total, told: AtomicU64::new(0), coming: AtomicBool::new(false), seen: Mutex::new(seen) };
        let download = Arc::new(download);
        board.begin(Arc::clone(&download));
        let reporter = Reporter { board: board.clone(), download };
        reporter.tell();
        reporter
    }

    /// It is known what belongs to the model: so many objects and bytes, of which `resumed` are here already. Again when it
    /// starts over.
    pub(crate) fn listed(&self, objects: usize, total: ByteSize, resumed: ByteSize) {
        let Board { clock, metrics, .. } = &*self.board.0;
        let first = {
            let now = clock.now();
            let mut seen = self.download.seen.lock();
            self.download.total.set(total.0);
            self.download.bytes.set(resumed.0);
            self.download.told.store(resumed.0, Ordering::Relaxed);
            seen.resumed = resumed.0;
            seen.speed = Speed::default();
            seen.speed.sample(now, resumed.0);
            seen.listed.replace(now).is_none()
        };
        if first {
            metrics.add(Counter::ResumedBytes, &[], resumed.0);
        }
        info!(model = %self.download.model, step = "fetch", size = %total, objects, resumed = %resumed, "download begins");
        self.stage(Stage::Listed);
    }

    /// More bytes came.
    pub(crate) fn received(&self, bytes: u64) {
        let Download { bytes: so_far, total, told, coming, .. } = &*self.download;
        let so_far = so_far.add(bytes);
        if !coming.load(Ordering::Relaxed) && !coming.swap(true, Ordering::Relaxed) {
            self.stage(Stage::Fetching);
        }
        let step = (total.get() / 100).max(1);
        let before = told.load(Ordering::Relaxed);
        let due = so_far >= before.saturating_add(step);
        if due && told.compare_exchange(before, so_far, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.tell();
        }
    }

    /// A request failed in passing, as `why` says, and is tried again. Told at once, then at most every few seconds, with
    /// how often it happened.
    pub(crate) fn retried(&self, why: &dyn fmt::Display) {
        let now = self.board.0.clock.now();
        let times = {
            let mut seen = self.download.seen.lock();
            seen.retries += 1;
            if now < seen.warn_at {
                return;
            }
            seen.warn_at = now + SAY_EVERY;
            std::mem::take(&mut seen.retries)
        };
        warn!(model = %self.download.model, step = "fetch", times, error = %why, "the store fails, it is tried again");
    }

    /// The download is there now. After the last word nothing counts.
    pub(crate) fn stage(&self, stage: Stage) {
        {
            let mut seen = self.download.seen.lock();
            if seen.stage.is_end() {
                return;
            }
            seen.stage = stage;
        }
        self.download.coming.store(stage == Stage::Fetching, Ordering::Relaxed);
        self.tell();
        if stage.is_end() {
            let outcome = if stage == Stage::Done { "done" } else { "failed" };
            let Board { clock, metrics, .. } = &*self.board.0;
            metrics.observe(Histogram::DownloadSeconds, &[("outcome", outcome)], clock.now().saturating_duration_since(self.download.begun));
            self.board.end(&self.download);
        } else {
            self.board.0.moved();
        }
    }

    /// Bytes per second from the listing until now, those of earlier attempts not counted.
    pub(crate) fn mean_rate(&self) -> ByteSize {
        let (resumed, listed) = {
            let seen = self.download.seen.lock();
            (seen.resumed, seen.listed)
        };
        let took = listed.map_or(Duration::ZERO, |listed| self.board.0.clock.now().saturating_duration_since(listed));
        per_second(self.download.bytes.get().saturating_sub(resumed), took).unwrap_or_default()
    }

    fn tell(&self) {
        // No listener is no fault.
        let _ = self.board.0.tell.send(self.download.progress());
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stage(Stage::Failed);
    }
}

#[cfg(test)]
mod tests {
    use berth_types::UnixMillis;

    use super::*;

    fn board() -> (Downloads, Clock, Metrics) {
        let (clock, metrics) = (Clock::starting_at(UnixMillis(0)), Metrics::default());
        (Downloads::new(clock.clone(), metrics.clone()), clock, metrics)
    }

    fn id(model: &str) -> ModelId {
        ModelId::new(model).expect("sound")
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let start = Clock::system().now();
        for (case, samples, expected) in [
            ("nothing is known at first", &[(0, 0)][..], None),
            ("one second", &[(0, 0), (1_000, 500)], Some(500)),
            ("what an earlier attempt left is no speed", &[(0, 9_000), (1_000, 9_500)], Some(500)),
            ("a fast past is forgotten", &[(0, 0), (1_000, 90_000), (2_000, 90_100), (4_000, 90_300), (7_000, 90_600)], Some(100)),
            ("nothing comes", &[(0, 0), (1_000, 500), (3_000, 500), (5_000, 500), (6_000, 500)], Some(0)),
            ("it starts over", &[(0, 0), (1_000, 90_000), (2_000, 0), (3_000, 70)], Some(70)),
            ("samples in quick succession", &[(0, 0), (10, 1), (20, 2), (30, 900), (1_000, 1_000)], Some(1_000)),
        ] {
            let mut speed = Speed::default();
            for (at, bytes) in samples {
                speed.sample(start + Duration::from_millis(*at), *bytes);
            }
            assert_eq!(speed.per_second(), expected.map(ByteSize), "{case}");
        }
    }

    #[test]
    fn however_often_it_is_measured_little_is_kept() {
        let start = Clock::system().now();
        let mut speed = Speed::default();
        for n in 0..100_000u32 {
            speed.sample(start + Duration::from_millis(1) * n, u64::from(n) * 7);
            assert!(speed.samples.len() <= 42, "{}", speed.samples.len());
        }
        assert_eq!(speed.per_second(), Some(ByteSize(7_000)));
    }

    #[test]
    fn the_time_that_is_left_is_rounded_up_and_not_told_when_nothing_comes() {
        for (left, rate, expected) in [(0, 0, Some(0)), (1, 10, Some(1)), (100, 10, Some(10)), (101, 10, Some(11)), (1, 0, None), (u64::MAX, 1, None)]
        {
            assert_eq!(eta(ByteSize(left), ByteSize(rate)), expected.map(Duration::from_secs), "{left} at {rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_frames_become_about_a_hundred_steps() {
        let (board, _, _) = board();
        let mut steps = board.steps();
        let reporter = Reporter::new(id("m"), &board);
        reporter.listed(1, ByteSize(1_000_000), ByteSize(0));
        (0..100_000).for_each(|_| reporter.received(10));
        reporter.stage(Stage::Verifying);
        reporter.stage(Stage::Done);
        drop(reporter);
        let mut all = Vec::new();
        while let Ok(step) = steps.try_recv() {
            all.push(step);
        }
        assert!((104..=106).contains(&all.len()), "{}", all.len());
        assert!(all.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
        let mut stages: Vec<Stage> = all.iter().map(|step| step.stage).collect();
        stages.dedup();
        assert_eq!(stages, [Stage::Listing, Stage::Listed, Stage::Fetching, Stage::Verifying, Stage::Done]);
        assert_eq!(all.last().map(|step| step.bytes), Some(ByteSize(1_000_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_is_on_the_board_and_among_the_metrics_as_long_as_it_lasts() {
        let (board, clock, metrics) = board();
        let (first, second) = (Reporter::new(id("a"), &board), Reporter::new(id("b"), &board));
        first.listed(3, ByteSize(1_000), ByteSize(200));
        let models = || board.snapshot().iter().map(|progress| progress.model.to_string()).collect::<Vec<_>>();
        assert_eq!(models(), ["a", "b"]);
        let listing = board.get(&id("b")).expect("under way");
        assert_eq!((listing.stage, listing.percent(), listing.rate), (Stage::Listing, None, None));
        let listed = board.get(&id("a")).expect("under way");
        assert_eq!((listed.stage, listed.percent(), listed.resumed), (Stage::Listed, Some(20), ByteSize(200)));
        for line in ["berth_downloads 2\n", "berth_download_bytes{model=\"a\"} 200\n", "berth_download_size_bytes{model=\"a\"} 1000\n"] {
            assert!(metrics.render().contains(line), "{line}\n{}", metrics.render());
        }
        assert_eq!(metrics.count(Counter::ResumedBytes, &[]), 200);
        clock.sleep(2 * SECOND).await;
        first.stage(Stage::Done);
        drop(second);
        assert_eq!((models(), board.get(&id("a"))), (Vec::new(), None));
        let page = metrics.render();
        for line in [
            "berth_downloads 0\n",
            "berth_download_seconds_sum{outcome=\"done\"} 2\n",
            "berth_download_seconds_count{outcome=\"done\"} 1\n",
            "berth_download_seconds_count{outcome=\"failed\"} 1\n",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        drop(first);
        assert!(!metrics.render().contains("model="), "{page}");
        assert!(metrics.render().contains("berth_download_seconds_count{outcome=\"failed\"} 1\n"), "the end is told once");
    }

    #[tokio::test(start_paused = true)]
    async fn speed_and_time_left_are_those_of_what_comes_now() {
        let (board, clock, _) = board();
        let reporter = Reporter::new(id("m"), &board);
        reporter.listed(1, ByteSize(10_000), ByteSize(4_000));
        for _ in 0..4 {
            reporter.received(500);
            clock.sleep(SECOND).await;
        }
        // Past the tick of the same moment.
        clock.sleep(SECOND / 2).await;
        let progress = board.get(&id("m")).expect("under way");
        assert_eq!((progress.bytes, progress.percent()), (ByteSize(6_000), Some(60)));
        assert_eq!((progress.rate, progress.eta), (Some(ByteSize(500)), Some(8 * SECOND)));
        assert_eq!(reporter.mean_rate(), ByteSize(444), "2,000 bytes in 4.5 s");
        clock.sleep(10 * SECOND).await;
        let silent = board.get(&id("m")).expect("under way");
        assert_eq!((silent.rate, silent.eta), (Some(ByteSize(0)), None), "nothing comes any more");
        reporter.listed(1, ByteSize(9_000), ByteSize(0));
        let again = board.get(&id("m")).expect("under way");
        assert_eq!((again.stage, again.bytes, again.rate), (Stage::Listed, ByteSize(0), None), "it starts over");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken_by_begin_stage_tick_and_end_and_by_nothing_when_nothing_is_fetched() {
        let (board, clock, _) = board();
        let mut changes = board.changes();
        let reporter = Reporter::new(id("m"), &board);
        let mut woken = || changes.has_changed().expect("the board is there") && *changes.borrow_and_update() > 0;
        assert!(woken(), "a download began");
        reporter.listed(1, ByteSize(100), ByteSize(0));
        assert!(woken(), "it came to another stage");
        assert!(!woken());
        clock.sleep(3 * SECOND).await;
        assert!(woken(), "time passed");
        drop(reporter);
        assert!(woken(), "it ended");
        clock.sleep(3 * SECOND).await;
        assert!(!woken() && !board.0.state.lock().watched, "nobody looks any more");
        let _next = Reporter::new(id("n"), &board);
        assert!(woken());
        clock.sleep(3 * SECOND).await;
        assert!(woken(), "somebody looks again");
    }
}
