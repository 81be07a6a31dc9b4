//! The agent's end: attends, for as long as the process lives, whichever controller there is.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_proto::attendance::from_agent::Said;
use berth_proto::attendance::from_controller::Said as Told;
use berth_proto::attendance::{Beat, FromAgent, FromController, Hello, Leaving, Load, Reports, Touch, Welcome};
use berth_registry::Views;
use berth_residency::Residency;
use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{CopyReport, Footprint, Location, ModelId, PodId, Registration, UnixMillis};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

use crate::line::Line;
use crate::wire::{self, Building};
use crate::{BEAT_EVERY, GREETED_WITHIN, SILENT_AFTER, WAITING, kept};

/// After a stream broke, and after the first try that failed; doubled up to [`LONGEST_PAUSE`] as long as it fails.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A stream that lasted so long was a good one: the next try does not wait for what went wrong before.
const LASTING: Duration = Duration::from_secs(10);
/// A view that has changed is written to the disk after so long: many changes are one file.
const KEPT_AFTER: Duration = Duration::from_secs(5);
/// Between a write that failed and the next.
const KEPT_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long the last word may take to leave.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Reports in one message.
const TOGETHER: usize = 256;

/// Who attends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The same for as long as the data folder lives.
    pub pod: PodId,
    /// Where failures are said to have happened.
    pub location: Location,
    /// Name of the ServingRuntime that describes the inference server.
    pub runtime: Arc<str>,
    /// All memory for models.
    pub budget: Footprint,
    /// Loads that nobody waits for which it should have at a time.
    pub loads_at_a_time: u32,
}

/// An agent that attends.
pub struct Attendant {
    line: Arc<dyn Line>,
    who: Who,
    residency: Residency,
    views: Views,
    clock: Clock,
    metrics: Metrics,
    /// Where the last view is kept.
    file: Option<PathBuf>,
    /// The highest epoch heard of.
    epoch: u64,
    /// Since when this stream is one.
    attended: Option<Instant>,
    unsaved: watch::Sender<bool>,
    /// Held while the view is written.
    writing: Arc<Mutex<()>>,
}

/// Why a stream ended.
enum End {
    /// This process ends.
    Shutdown,
    /// It broke, or could not be had.
    Broken(Status),
}

impl Attendant {
    /// An agent that will attend over `line` and keep `views` as its controller has them. `file` keeps the last view; the one in
    /// it counts until a newer one comes. Nothing happens until it is run.
    #[must_use]
    pub fn new(line: Arc<dyn Line>, who: Who, residency: Residency, views: Views, clock: Clock, metrics: Metrics, file: Option<PathBuf>) -> Self {
        let before = file.as_ref().and_then(|file| {
            kept::read(file).unwrap_or_else(|fault| {
                warn!(file = %file.display(), error = %fault, "the last view cannot be read: nothing is known until the controller tells it");
                None
            })
        });
        let epoch = before.as_ref().map_or(0, |view| view.number().0);
        if let Some(view) = before {
            info!(names = view.name_count(), models = view.model_count(), epoch, "begins with the last view");
            views.take_over(view);
        }
        views.cut_off(true);
        metrics.set(Gauge::ControllerUp, &[], 0);
        Attendant {
            line,
            who,
            residency,
            views,
            clock,
            metrics,
            file,
            epoch,
            attended: None,
            unsaved: watch::Sender::new(false),
            writing: Arc::default(),
        }
    }

    /// Attends until `shutdown`, then says so.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let keeping = self.keeps();
        let attending = async {
            let (mut pause, mut said) = (PAUSE, None);
            loop {
                self.attended = None;
                match self.attend(&shutdown).await {
                    End::Shutdown => return,
                    End::Broken(why) => {
                        self.views.cut_off(true);
                        self.metrics.set(Gauge::ControllerUp, &[], 0);
                        if self.attended.is_some_and(|since| self.clock.now() - since >= LASTING) {
                            (pause, said) = (PAUSE, None);
                        }
                        // Once for as long as it is the same.
                        let now = (why.code(), why.message().to_owned());
                        if said.as_ref() != Some(&now) {
                            warn!(controller = %self.line, code = ?why.code(), error = %why.message(), "the controller cannot be reached: serving on with what is known");
                            said = Some(now);
                        }
                    }
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.clock.sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        tokio::select! {
            () = attending => {}
            () = keeping => {}
        }
        self.keep().await;
    }

    /// Writes views to the disk as they change.
    fn keeps(&self) -> impl Future<Output = ()> + use<> {
        let (clock, mut unsaved, file, views, told, writing) =
            (self.clock.clone(), self.unsaved.subscribe(), self.file.clone(), self.views.clone(), self.unsaved.clone(), Arc::clone(&self.writing));
        async move {
            let Some(file) = file else { return std::future::pending().await };
            while unsaved.wait_for(|unsaved| *unsaved).await.is_ok() {
                clock.sleep(KEPT_AFTER).await;
                told.send_replace(false);
                if !write(file.clone(), views.clone(), Arc::clone(&writing)).await {
                    clock.sleep(KEPT_AGAIN_AFTER).await;
                    told.send_replace(true);
                }
            }
        }
    }

    async fn keep(&self) {
        if let Some(file) = self.file.clone().filter(|_| *self.unsaved.borrow()) {
            write(file, self.views.clone(), Arc::clone(&self.writing)).await;
        }
    }

    /// One stream, from its beginning to its end.
    async fn attend(&mut self, shutdown: &CancellationToken) -> End {
        let (tell, said) = mpsc::channel(WAITING);
        let hello = match self.hello() {
            Ok(hello) => hello,
            Err(why) => return End::Broken(why),
        };
        let deadline = self.clock.deadline_in(GREETED_WITHIN);
        let greeted = async {
            // There is room for it.
            let _ = tell.send(hello).await;
            let mut told = self.line.open(said).await?;
            let first = told.next().await.ok_or_else(|| Status::unavailable("it ended the stream without a word"))??;
            match first.said {
                Some(Told::Welcome(Welcome { epoch })) => Ok((told, epoch)),
                _ => Err(Status::internal("a controller begins with its epoch")),
            }
        };
        let greeted = tokio::select! {
            () = shutdown.cancelled() => return End::Shutdown,
            greeted = self.clock.until(deadline, greeted) => greeted,
        };
        let (told, epoch) = match greeted {
            None => return End::Broken(Status::deadline_exceeded(format!("it did not greet within {GREETED_WITHIN:?}"))),
            Some(Err(why)) => return End::Broken(why),
            Some(Ok(greeted)) => greeted,
        };
        if epoch < self.epoch {
            let why = format!(
                "it is of epoch {epoch}, and one of epoch {} has led since: it is not followed; where it was restored from an older state, remove \
                 DATA/agent/view here and start this agent anew",
                self.epoch
            );
            return End::Broken(Status::failed_precondition(why));
        }
        self.epoch = epoch;
        self.attended = Some(self.clock.now());
        info!(controller = %self.line, epoch, "attends the controller");
        self.metrics.set(Gauge::ControllerUp, &[], 1);
        let mut hears = pin!(self.hear(told, shutdown));
        let ended = tokio::select! {
            ended = speak(&self.residency, &self.clock, self.views.numbers(), &tell, shutdown) => ended,
            ended = &mut hears => ended,
            // Nobody takes what it would say.
            () = async { shutdown.cancelled().await; self.clock.sleep(LAST_WORD).await } => Ok(()),
        };
        match ended {
            Ok(()) => {
                // The last word must have left before the stream does: the controller ends it then.
                drop(tell);
                let _ = self.clock.until(self.clock.deadline_in(LAST_WORD), hears).await;
                End::Shutdown
            }
            Err(why) => End::Broken(why),
        }
    }

    fn hello(&self) -> Result<FromAgent, Status> {
        let Who { pod, location, runtime, budget, loads_at_a_time } = &self.who;
        let hello = Hello {
            pod: pod.to_string(),
            location: location.to_string(),
            runtime: runtime.to_string(),
            budget: wire::json(budget)?,
            loads_at_a_time: *loads_at_a_time,
            epoch: self.epoch,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            room: wire::json(&*self.residency.room().borrow())?,
        };
        Ok(said(Said::Hello(hello)))
    }

    /// Does what the controller says.
    async fn hear(&self, mut told: BoxStream<'static, Result<FromController, Status>>, shutdown: &CancellationToken) -> Result<(), Status> {
        let (mut building, mut anew) = (Building::default(), false);
        loop {
            let next = self.clock.until(self.clock.deadline_in(SILENT_AFTER), told.next()).await;
            let next = next.ok_or_else(|| Status::deadline_exceeded(format!("it has said nothing for {SILENT_AFTER:?}")))?;
            let next = next.ok_or_else(|| Status::unavailable("it ended the stream"))??;
            if shutdown.is_cancelled() {
                // What follows from this agent's end is nothing for its successor to begin with.
                continue;
            }
            match next.said {
                Some(Told::Welcome(_)) => return Err(Status::internal("a controller greets once")),
                Some(Told::View(part)) => {
                    anew |= part.anew;
                    let before = self.views.current();
                    if let Some(view) = building.take(part, &before)? {
                        self.views.take_over(view);
                        self.views.cut_off(false);
                        self.unsaved.send_replace(true);
                        if std::mem::take(&mut anew) {
                            self.catch_up().await;
                        }
                    }
                }
                Some(Told::Load(Load { registration, may_evict })) => {
                    self.residency.load(wire::read("a registration", &registration)?, wire::permission(may_evict)).await;
                }
                Some(Told::Retire(registration)) => self.residency.retire(wire::read("a registration", &registration)?).await,
                Some(Told::Amend(registration)) => self.residency.amend(wire::read("a registration", &registration)?).await,
                Some(Told::Touch(Touch { model, at })) => {
                    let model = ModelId::new(&model).map_err(|fault| Status::invalid_argument(fault.to_string()))?;
                    self.residency.touch(&model, UnixMillis(at));
                }
                Some(Told::Cautions(cautions)) => self.residency.beware(wire::read("what to beware of", &cautions)?).await,
                // Of a later release, or a sign of life.
                Some(Told::Beat(_)) | None => {}
            }
        }
    }

    /// Does what orders would have said that were not heard: with what is held and not in the view any more, or is something else by now.
    async fn catch_up(&self) {
        let now = self.views.current();
        for held in self.residency.held().await {
            match now.model(held.id.as_str()) {
                Some(known) if *known == held => {}
                Some(known) if has_the_same_files(known, &held) => self.residency.amend(Arc::clone(known)).await,
                _ => self.residency.retire(held).await,
            }
        }
    }
}

/// Two registrations of one id differ in how the model is kept, and in nothing else.
fn has_the_same_files(one: &Registration, other: &Registration) -> bool {
    (&one.format, &one.placement, one.storage()) == (&other.format, &other.placement, other.storage())
}

/// True when it is on the disk.
async fn write(file: PathBuf, views: Views, writing: Arc<Mutex<()>>) -> bool {
    let shown = file.display().to_string();
    let written = tokio::task::spawn_blocking(move || {
        // Of several at once the last one writes the newest.
        let _one_at_a_time = writing.lock();
        kept::write(&file, &views.current())
    });
    match written.await {
        Ok(Ok(())) => return true,
        Ok(Err(fault)) => warn!(file = shown, error = %fault, "the view cannot be kept: a restart without a controller would know an older one"),
        Err(panic) => warn!(file = shown, error = %panic, "the view was not kept"),
    }
    false
}

fn said(said: Said) -> FromAgent {
    FromAgent { said: Some(said) }
}

/// Says what there is to say, until `shutdown`.
async fn speak(
    residency: &Residency,
    clock: &Clock,
    mut numbers: watch::Receiver<(u64, u64)>,
    tell: &mpsc::Sender<FromAgent>,
    shutdown: &CancellationToken,
) -> Result<(), Status> {
    let say = async |words: Said| tell.send(said(words)).await.map_err(|_gone| Status::unavailable("it listens no more"));
    let reports = async |copies: Vec<CopyReport>, complete: bool| {
        let mut chunks = copies.chunks(TOGETHER).peekable();
        if complete && chunks.peek().is_none() {
            say(Said::Reports(Reports { copies: Vec::new(), complete })).await?;
        }
        while let Some(chunk) = chunks.next() {
            let copies = chunk.iter().map(wire::json).collect::<Result<Vec<_>, _>>()?;
            say(Said::Reports(Reports { copies, complete: complete && chunks.peek().is_none() })).await?;
        }
        Ok::<(), Status>(())
    };
    let (mut changes, mut room, mut suspicions) = (residency.reports(), residency.room(), residency.suspicions());
    // Before what is held: who hears of a death should not act on older news.
    let suspected = suspicions.borrow_and_update().clone();
    say(Said::Suspicions(wire::json(&suspected)?)).await?;
    reports(changes.so_far(), true).await?;
    let free = room.borrow_and_update().clone();
    say(Said::Room(wire::json(&free)?)).await?;
    numbers.mark_unchanged();
    let mut beat = clock.deadline_in(BEAT_EVERY);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                say(Said::Leaving(Leaving {})).await?;
                return Ok(());
            }
            changed = suspicions.changed() => {
                changed.map_err(|_ended| Status::cancelled("residency has ended"))?;
                let suspected = suspicions.borrow_and_update().clone();
                say(Said::Suspicions(wire::json(&suspected)?)).await?;
            }
            // Whatever else there is to say: it is answered, so that this side knows that somebody listens.
            () = clock.sleep_until(beat) => {
                beat = clock.deadline_in(BEAT_EVERY);
                say(Said::Beat(Beat {})).await?;
            }
            copies = changes.next() => match copies {
                Some(copies) => reports(copies, false).await?,
                None => return Err(Status::cancelled("residency has ended")),
            },
            changed = room.changed() => {
                changed.map_err(|_ended| Status::cancelled("residency has ended"))?;
                let free = room.borrow_and_update().clone();
                say(Said::Room(wire::json(&free)?)).await?;
            }
            changed = numbers.changed() => {
                changed.map_err(|_ended| Status::cancelled("the views have ended"))?;
                let number = *numbers.borrow_and_update();
                say(Said::Seen(wire::number(number))).await?;
            }
        }
    }
}
