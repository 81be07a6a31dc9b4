//! The slow work: everything that leaves the process. Each piece runs in a task of its own, has a deadline, and ends as
//! a message to the owner, also when it panics.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use berth_adapters::{Artifacts, Index, LaidOut, LoadError, LoadFault, Loaded, Runtime, RuntimeDown, Seat, UnloadError, Unloaded};
use berth_memory::Source;
use berth_puller::{Fetch, Pinned, PullError, Urgency};
use berth_telemetry::halt::{self, Point};
use berth_telemetry::{Clock, Histogram, Metrics};
use berth_types::{Footprint, ModelId, Reading, Registration, Step};
use futures::FutureExt as _;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::failure_file::{Extent, FailureFile, Write};
use crate::slot::{ALONE, Slot};
use crate::truth::{Around, Watched};

/// How a piece of work ended.
#[derive(Debug)]
pub(crate) enum Done {
    Reused {
        model: ModelId,
        life: u64,
        found: Option<Fetched>,
    },
    Fetched {
        model: ModelId,
        life: u64,
        result: Result<Fetched, PullError>,
    },
    LoadEnded {
        model: ModelId,
        life: u64,
        result: Result<Loaded, (Step, LoadError)>,
        /// What was seen of the memory around it.
        around: Option<Box<Around>>,
    },
    Drained {
        model: ModelId,
        life: u64,
    },
    UnloadTold {
        model: ModelId,
        life: u64,
        result: Result<(), UnloadError>,
    },
    LayoutCleared {
        model: ModelId,
        life: u64,
        proof: Unloaded,
    },
    /// `began` is the moment in the owner's sequence at which the index was asked for.
    Looked {
        began: u64,
        result: Result<Index, RuntimeDown>,
    },
    /// `began` as above.
    MemoryRead {
        began: u64,
        reading: Box<Reading>,
    },
    ServerTold {
        ended: bool,
    },
    Saved {
        result: std::io::Result<()>,
    },
    Sized {
        model: ModelId,
        life: u64,
        size: Option<Footprint>,
    },
    Doubted,
    FailuresKept {
        /// What the file holds now; `None` when it has to be written as a whole.
        result: std::io::Result<Option<Extent>>,
    },
}

/// Files on disk, and what the runtime thinks a copy of them takes.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) files: Pinned,
    pub(crate) estimate: Option<Footprint>,
    pub(crate) seat: Seat,
}

impl Fetched {
    async fn of(model: &Registration, files: Pinned, runtime: &dyn Runtime, gpus: bool) -> Self {
        let artifacts = artifacts_of(&files);
        let estimate = runtime.predict(model, &artifacts).await;
        let seat = if gpus { runtime.seat(model, &artifacts).await } else { Seat::Given };
        Fetched { files, estimate, seat }
    }
}

/// Counts moments, so that "asked after" can be told without a clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence(Arc<AtomicU64>);

impl Sequence {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What the pieces of work share.
pub(crate) struct Work {
    pub(crate) tasks: JoinSet<Done>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) fetch: Arc<dyn Fetch>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) sequence: Sequence,
    /// There are GPUs to choose from.
    pub(crate) gpus: bool,
    /// Ends the wait of a look that is waiting for a reason.
    pub(crate) look_now: Arc<Notify>,
}

pub(crate) fn artifacts_of(files: &Pinned) -> Artifacts {
    Artifacts { model: files.model.clone(), schema: files.schema.clone(), size: files.size }
}

/// How a copy is loaded.
pub(crate) struct Terms {
    /// On which device, where one was chosen.
    pub(crate) gpu: Option<u16>,
    /// Of a suspect.
    pub(crate) alone: Option<Apart>,
}

/// A suspect's turn to load.
pub(crate) struct Apart {
    /// What it holds meanwhile, as soon as it can be had.
    pub(crate) alone: Arc<Semaphore>,
    /// Set when it waits for that no longer.
    pub(crate) begun: Arc<AtomicBool>,
}

impl Work {
    /// `panicked` makes the message when the work panics, so that a bug in an adapter ends one load and not the pod.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static, panicked: impl FnOnce(String) -> Done + Send + 'static) -> AbortHandle {
        self.tasks.spawn(async move {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(done) => done,
                Err(panic) => panicked(text_of(&*panic)),
            }
        })
    }

    /// Looks for files that were fetched earlier.
    pub(crate) fn reuse(&mut self, model: Arc<Registration>, life: u64) -> AbortHandle {
        let (fetch, runtime, metrics, clock) = (Arc::clone(&self.fetch), Arc::clone(&self.runtime), self.metrics.clone(), self.clock.clone());
        let (id, gpus) = (model.id.clone(), self.gpus);
        let work = async move {
            let began = clock.now();
            let found = match fetch.reuse(&model).await {
                Some(files) => Some(Fetched::of(&model, files, &*runtime, gpus).await),
                None => None,
            };
            if found.is_some() {
                metrics.observe(Histogram::StepSeconds, &[("step", Step::Fetch.as_str())], clock.now() - began);
            }
            Done::Reused { model: model.id.clone(), life, found }
        };
        // The fetch that follows says what is wrong.
        self.spawn(work, move |_| Done::Reused { model: id, life, found: None })
    }

    /// Gets the files. No deadline of ours: a stall is the puller's time-out, a long download is none.
    pub(crate) fn fetch(&mut self, model: Arc<Registration>, urgency: Urgency, life: u64) -> AbortHandle {
        let (fetch, runtime, metrics, clock) = (Arc::clone(&self.fetch), Arc::clone(&self.runtime), self.metrics.clone(), self.clock.clone());
        let (id, gpus) = (model.id.clone(), self.gpus);
        let work = async move {
            let began = clock.now();
            let result = match fetch.fetch(&model, urgency).await {
                Ok(files) => Ok(Fetched::of(&model, files, &*runtime, gpus).await),
                Err(why) => Err(why),
            };
            metrics.observe(Histogram::StepSeconds, &[("step", Step::Fetch.as_str())], clock.now() - began);
            Done::Fetched { model: model.id.clone(), life, result }
        };
        self.spawn(work, move |panic| Done::Fetched { model: id, life, result: Err(PullError::Disk(format!("fetching panicked: {panic}"))) })
    }

    /// Lays out and loads.
    pub(crate) fn load(&mut self, model: Arc<Registration>, artifacts: Artifacts, terms: Terms, watched: Watched, life: u64) -> AbortHandle {
        let Terms { gpu, alone } = terms;
        let (runtime, metrics, clock) = (Arc::clone(&self.runtime), self.metrics.clone(), self.clock.clone());
        let id = model.id.clone();
        let work = async move {
            let Watched { source, measure } = watched;
            let _alone = match alone {
                Some(Apart { alone, begun }) => {
                    let permit = clock.until(clock.deadline_in(ALONE), alone.acquire_owned()).await;
                    begun.store(true, Ordering::Release);
                    permit
                }
                None => None,
            };
            let before = match source.as_ref().filter(|_| measure) {
                Some(source) => read(&**source, &clock).await,
                None => Reading::default(),
            };
            let result = load(&*runtime, &clock, &metrics, &model, &artifacts, gpu).await;
            let around = match source.filter(|_| measure || result.is_err()) {
                Some(source) => Some(Box::new(Around { before, after: read(&*source, &clock).await })),
                None => None,
            };
            Done::LoadEnded { model: model.id.clone(), life, result, around }
        };
        self.spawn(work, move |panic| {
            let error = LoadError { fault: LoadFault::BadModel, message: format!("loading panicked: {panic}"), nothing_attempted: false };
            Done::LoadEnded { model: id, life, result: Err((Step::Load, error)), around: None }
        })
    }

    /// Asks what a copy takes whose load did not say.
    pub(crate) fn size(&mut self, model: ModelId, life: u64) {
        let (runtime, id) = (Arc::clone(&self.runtime), model.clone());
        let work = async move {
            let size = runtime.size(&model).await;
            Done::Sized { model, life, size }
        };
        self.spawn(work, move |_| Done::Sized { model: id, life, size: None });
    }

    /// Tells the runtime that it was heard not to hold a model.
    pub(crate) fn doubt(&mut self, model: ModelId, limit: Duration) {
        let (runtime, clock) = (Arc::clone(&self.runtime), self.clock.clone());
        let work = async move {
            let _ = clock.until(clock.deadline_in(limit), runtime.doubt(&model)).await;
            Done::Doubted
        };
        self.spawn(work, |_| Done::Doubted);
    }

    /// Waits until nobody uses the copy; past `cap` tells those who do, and gives them `grace` to end.
    pub(crate) fn drain(&mut self, slot: Arc<Slot>, cap: Duration, grace: Duration, life: u64) -> AbortHandle {
        let clock = self.clock.clone();
        let id = slot.model.clone();
        let work = async move {
            if clock.until(clock.deadline_in(cap), slot.drained.notified()).await.is_none() {
                slot.revoke();
                // Whoever does not end by then finds out from the runtime.
                let _ = clock.until(clock.deadline_in(grace), slot.drained.notified()).await;
            }
            Done::Drained { model: slot.model.clone(), life }
        };
        self.spawn(work, move |_| Done::Drained { model: id, life })
    }

    /// Tells the runtime to unload.
    pub(crate) fn unload(&mut self, model: ModelId, life: u64, limit: Duration) {
        let (runtime, clock) = (Arc::clone(&self.runtime), self.clock.clone());
        let id = model.clone();
        let work = async move {
            let answer = clock.until(clock.deadline_in(limit), runtime.unload(&model)).await;
            halt::at(Point::Unloading, model.as_str());
            let result = answer.unwrap_or_else(|| Err(UnloadError(format!("no answer within {limit:?}"))));
            Done::UnloadTold { model, life, result }
        };
        self.spawn(work, move |panic| Done::UnloadTold { model: id, life, result: Err(UnloadError(format!("unloading panicked: {panic}"))) });
    }

    /// Removes the layout of a model that the runtime does not hold.
    pub(crate) fn clear_layout(&mut self, proof: Unloaded, life: u64, limit: Duration) {
        let (runtime, clock) = (Arc::clone(&self.runtime), self.clock.clone());
        // The proof must survive a panic in the adapter: the memory is free whatever became of the layout.
        let work = async move {
            let clearing = clock.until(clock.deadline_in(limit), runtime.clear_layout(proof.model()));
            let _ = AssertUnwindSafe(clearing).catch_unwind().await;
            Done::LayoutCleared { model: proof.model().clone(), life, proof }
        };
        self.tasks.spawn(work);
    }

    /// Asks for the index: at once, or after a change, at the latest after `wait`.
    pub(crate) fn look(&mut self, wait: Option<Duration>, limit: Duration) {
        let (runtime, clock, sequence, now) = (Arc::clone(&self.runtime), self.clock.clone(), self.sequence.clone(), Arc::clone(&self.look_now));
        let panicked_at = self.sequence.next();
        let work = async move {
            if let Some(wait) = wait {
                tokio::select! {
                    () = runtime.index_changed() => {}
                    () = now.notified() => {}
                    () = clock.sleep(wait) => {}
                }
            }
            let began = sequence.next();
            let answer = clock.until(clock.deadline_in(limit), runtime.index()).await;
            let result = answer.unwrap_or_else(|| Err(RuntimeDown(format!("its index did not answer within {limit:?}"))));
            Done::Looked { began, result }
        };
        self.spawn(work, move |panic| Done::Looked {
            began: panicked_at,
            result: Err(RuntimeDown(format!("asking for its index panicked: {panic}"))),
        });
    }

    /// Asks what is really in use.
    pub(crate) fn read_memory(&mut self, source: Arc<dyn Source>) {
        let (clock, began) = (self.clock.clone(), self.sequence.next());
        let work = async move { Done::MemoryRead { began, reading: Box::new(read(&*source, &clock).await) } };
        self.spawn(work, move |_| Done::MemoryRead { began, reading: Box::default() });
    }

    /// Ends the server's process.
    pub(crate) fn end_server(&mut self, source: Arc<dyn Source>) {
        let work = async move { Done::ServerTold { ended: source.end_server().await } };
        self.spawn(work, |_| Done::ServerTold { ended: false });
    }

    /// Writes the history's file.
    pub(crate) fn save(&mut self, folder: std::path::PathBuf, bytes: Vec<u8>) {
        self.tasks.spawn_blocking(move || Done::Saved { result: crate::history::write(&folder, &bytes) });
    }

    /// Writes to the file of failures.
    pub(crate) fn keep_failures(&mut self, file: FailureFile, write: Write) {
        self.tasks.spawn_blocking(move || {
            let written = std::panic::catch_unwind(AssertUnwindSafe(|| file.write(write)));
            Done::FailuresKept {
                result: written.unwrap_or_else(|panic| Err(std::io::Error::other(format!("writing panicked: {}", text_of(&*panic))))),
            }
        });
    }
}

/// What is in use; nothing is known of it when that takes too long.
async fn read(source: &dyn Source, clock: &Clock) -> Reading {
    clock.until(clock.deadline_in(crate::truth::PATIENCE), source.read()).await.unwrap_or_default()
}

async fn load(
    runtime: &dyn Runtime,
    clock: &Clock,
    metrics: &Metrics,
    model: &Registration,
    artifacts: &Artifacts,
    gpu: Option<u16>,
) -> Result<Loaded, (Step, LoadError)> {
    let limit = runtime.info().load_timeout;
    let timed_out = |step: Step, nothing_attempted| {
        let message = format!("{step} did not end within {limit:?}");
        (step, LoadError { fault: LoadFault::TimedOut, message, nothing_attempted })
    };
    let began = clock.now();
    let laying_out = async {
        match gpu {
            Some(gpu) => runtime.lay_out_on(gpu, model, artifacts).await,
            None => runtime.lay_out(model, artifacts).await,
        }
    };
    let laid_out = clock.until(clock.deadline_in(limit), laying_out).await;
    metrics.observe(Histogram::StepSeconds, &[("step", Step::Layout.as_str())], clock.now() - began);
    let laid_out: LaidOut =
        laid_out.ok_or_else(|| timed_out(Step::Layout, true))?.map_err(|error| (Step::Layout, LoadError { nothing_attempted: true, ..error }))?;
    halt::at(Point::LaidOut, model.id.as_str());

    let began = clock.now();
    let loaded = clock.until(clock.deadline_in(limit), runtime.load(model, &laid_out)).await;
    metrics.observe(Histogram::StepSeconds, &[("step", Step::Load.as_str())], clock.now() - began);
    let loaded = loaded.ok_or_else(|| timed_out(Step::Load, false))?.map_err(|error| (Step::Load, error))?;
    halt::at(Point::Loaded, model.id.as_str());
    Ok(loaded)
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
