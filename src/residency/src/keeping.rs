//! Failures on their way to the disk: written as soon as they change, and before anybody is told.
//!
//! What a status said must stay true when the process is killed the moment after. So the report of a model whose record
//! was changed (a failure, a success after one, the end of the registration) waits until the file says so, too. That is
//! short: one write at a time runs beside the owner task, and what changes meanwhile shares the next one. A disk that is
//! full or does not answer is not waited for: it costs the memory of failures across a restart and nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use berth_types::{Footprint, ModelId};
use tracing::{info, warn};

use crate::failure_file::FailureFile;
use crate::owner::Owner;

/// The shortest time between two writes, so that a thousand failures in a row are not a thousand files.
const BETWEEN_WRITES: Duration = Duration::from_millis(100);
/// Longer than this no report waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// A write under way.
#[derive(Debug)]
struct Writing {
    /// Models whose reports wait for it.
    about: BTreeSet<ModelId>,
    /// When they wait no longer.
    patience_ends: Instant,
}

/// What is on disk, what is not, and who waits for that.
#[derive(Debug)]
pub(crate) struct Keeping {
    /// `None` when nothing is kept.
    file: Option<FailureFile>,
    /// The records are others than those that were written last.
    unsaved: bool,
    /// Models whose reports wait for the next write.
    changed: BTreeSet<ModelId>,
    writing: Option<Writing>,
    /// When the next write may begin.
    next_write: Instant,
    /// The last write failed, or takes too long: no report waits.
    broken: bool,
}

impl Keeping {
    pub(crate) fn new(file: Option<FailureFile>, now: Instant) -> Self {
        Keeping { file, unsaved: false, changed: BTreeSet::new(), writing: None, next_write: now, broken: false }
    }

    /// The record of `model` is another one now.
    pub(crate) fn note_change(&mut self, model: &ModelId) {
        if self.file.is_none() {
            return;
        }
        self.unsaved = true;
        if !self.broken {
            self.changed.insert(model.clone());
        }
    }

    /// True while nothing may be said of `model`; it is reported when that is over.
    pub(crate) fn holds_back(&self, model: &ModelId) -> bool {
        self.changed.contains(model) || self.writing.as_ref().is_some_and(|writing| writing.about.contains(model))
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The next write need not keep its distance from the last one.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.next_write = now;
    }

    /// When time alone makes something due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.writing {
            Some(writing) => (!self.broken).then_some(writing.patience_ends),
            None => self.unsaved.then_some(self.next_write),
        }
    }
}

impl Owner {
    /// Takes in the failures of before the restart and reports them. Blocking, for the start.
    pub(crate) fn restore_failures(&mut self) {
        let Some(file) = &self.keeping.file else { return };
        let found = match file.read() {
            Ok(found) => found,
            Err(fault) => {
                warn!(path = %file.path().display(), error = %fault, "failures of models cannot be read, starting without");
                self.keeping.unsaved = true;
                return;
            }
        };
        if let Some((lines, fault)) = &found.damaged {
            warn!(path = %file.path().display(), lines, error = %fault, "some failures of models cannot be read, starting without them");
        }
        self.keeping.unsaved = found.damaged.is_some() || found.cured > 0;
        self.keeping.unsaved |= !self.failures.restore(found.records, self.clock.wall(), self.clock.now());
        let models: Vec<ModelId> = self.failures.records().map(|record| record.failure.model.clone()).collect();
        if !models.is_empty() {
            info!(models = models.len(), "failures of before the restart still count");
        }
        for model in models {
            self.report(&model);
        }
    }

    /// Nothing counts against `model` any more.
    pub(crate) fn clear_failure(&mut self, model: &ModelId) {
        if self.failures.clear(model) {
            self.keeping.note_change(model);
        }
    }

    /// Begins a write, if something changed and none is under way.
    pub(crate) fn keep_failures(&mut self) {
        let (keeping, now) = (&mut self.keeping, self.clock.now());
        let Some(file) = keeping.file.clone().filter(|_| keeping.unsaved && keeping.writing.is_none() && keeping.next_write <= now) else {
            return;
        };
        keeping.unsaved = false;
        keeping.writing = Some(Writing { about: std::mem::take(&mut keeping.changed), patience_ends: now + PATIENCE });
        self.work.keep_failures(file, self.failures.records().cloned().collect());
    }

    pub(crate) fn on_failures_kept(&mut self, result: std::io::Result<()>) {
        let now = self.clock.now();
        let Some(Writing { about, .. }) = self.keeping.writing.take() else { return };
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.keeping.broken) {
                    info!("failures of models can be written again");
                }
                self.keeping.next_write = now + BETWEEN_WRITES;
                for model in &about {
                    // Held back still, if its record changed again meanwhile.
                    self.report(model);
                }
            }
            Err(fault) => {
                self.keeping.unsaved = true;
                self.keeping.next_write = now + self.config.audit;
                self.stop_waiting_for_disk(about, &fault.to_string());
            }
        }
    }

    /// Somebody may have waited for the disk for too long.
    pub(crate) fn look_at_patience(&mut self, now: Instant) {
        let broken = self.keeping.broken;
        if let Some(writing) = self.keeping.writing.as_mut().filter(|writing| !broken && writing.patience_ends <= now) {
            let about = std::mem::take(&mut writing.about);
            self.stop_waiting_for_disk(about, &format!("no end of the write within {PATIENCE:?}"));
        }
    }

    /// Says what was held back. Said once, not with each write that fails.
    fn stop_waiting_for_disk(&mut self, mut about: BTreeSet<ModelId>, fault: &str) {
        if !std::mem::replace(&mut self.keeping.broken, true) {
            let path = self.keeping.file.as_ref().map(FailureFile::path).unwrap_or(std::path::Path::new(""));
            warn!(path = %path.display(), error = %fault, "failures of models cannot be written: a restart now would forget them");
        }
        about.append(&mut self.keeping.changed);
        for model in about {
            self.report(&model);
        }
    }
}

/// The file for a process that keeps its state in `folder`.
pub(crate) fn file_of(folder: Option<&std::path::Path>, runtime: &berth_adapters::RuntimeInfo, budget: &Footprint) -> Option<FailureFile> {
    let runtime = format!("{} {}", runtime.name, runtime.version);
    folder.map(|folder| FailureFile::in_folder(folder, runtime, budget.clone()))
}
