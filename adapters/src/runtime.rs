//! The seam between Berth and an inference server.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Registration, Retry};
use tokio::sync::watch;

/// What a runtime is and what it asks for. Fixed while the process lives.
#[derive(Clone, Debug)]
pub struct RuntimeInfo {
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
    /// Version text of the server, for `ServerMetadata` and logs.
    pub version: Arc<str>,
    /// What it says it can hold, where it can say.
    pub capacity: Option<Footprint>,
    /// Loads at a time.
    pub load_concurrency: NonZeroU32,
    /// A load that takes longer has failed.
    pub load_timeout: Duration,
    /// True when a loaded copy may still read its files (a layout that refers to them, a reload after a crash). Where it
    /// is false, the disk tier may remove the files of loaded models to make room.
    pub reads_files_while_loaded: bool,
}

/// The checked files of one model on this pod's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifacts {
    /// The model: a file, or a folder that holds its files. Read-only; owned by the disk tier.
    pub model: PathBuf,
    /// The schema file, where the registration names one.
    pub schema: Option<PathBuf>,
    /// Bytes of the model's files.
    pub size: ByteSize,
}

/// Where copies of a model compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seat {
    /// In main memory, or on whichever GPUs the server takes: nobody here chooses.
    #[default]
    Given,
    /// On one GPU, which is chosen for each copy.
    OneGpu,
}

/// A layout that is in place: what [`Runtime::load`] is told to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaidOut {
    /// The path that the runtime reads.
    pub path: PathBuf,
}

/// What a successful load tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What the copy takes, where the runtime can measure it.
    pub measured: Option<Footprint>,
    /// Requests that the copy serves at a time; `None` is no limit.
    pub max_concurrency: Option<NonZeroU32>,
}

/// What kept a model from loading, apart by what a caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFault {
    /// The files or the layout are not a model that this runtime can load.
    BadModel,
    /// The runtime ran out of memory.
    OutOfMemory,
    /// The runtime did not answer in time. It may still finish: its index says.
    TimedOut,
    /// The runtime is not there or is failing.
    RuntimeDown,
    /// The runtime is there and does not take the load now, or is not used as it wants to be.
    NotNow,
}

/// A load that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// The kind of fault.
    pub fault: LoadFault,
    /// What happened: file, operator, expected and given; no secrets.
    pub message: String,
    /// True when nothing was attempted: no memory can be in use.
    pub nothing_attempted: bool,
}

impl LoadError {
    /// Files that the runtime cannot load; nothing was attempted.
    #[must_use]
    pub fn bad_model(message: impl Into<String>) -> Self {
        LoadError { fault: LoadFault::BadModel, message: message.into(), nothing_attempted: true }
    }

    /// Whether waiting alone may help.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self.fault {
            LoadFault::BadModel => Retry::AfterChange,
            LoadFault::OutOfMemory | LoadFault::TimedOut | LoadFault::RuntimeDown | LoadFault::NotNow => Retry::Later,
        }
    }
}

/// An unload that the runtime refused or did not answer. The memory stays charged until the index confirms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnloadError(pub String);

/// Why a copy was not parked or woken: it is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParkError {
    /// This runtime has no such thing.
    #[error("the runtime does not park models")]
    NotSupported,
    /// Not this copy, or not now, in the server's words.
    #[error("{0}")]
    Refused(String),
}

/// The runtime cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("runtime is not reachable: {0}")]
pub struct RuntimeDown(pub String);

/// How the runtime sees one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexEntry {
    /// Being loaded.
    Loading,
    /// Loaded.
    Ready,
    /// Being unloaded: memory may still be in use.
    Unloading,
    /// Loaded, and moved out of the way: it answers nothing until it is woken.
    Parked,
}

/// What a runtime truly holds at one moment. A model that is not listed takes no memory there.
#[derive(Clone, Debug, Default)]
pub struct Index {
    entries: BTreeMap<ModelId, IndexEntry>,
}

impl Index {
    /// An index of these entries; for adapters.
    #[must_use]
    pub fn of(entries: impl IntoIterator<Item = (ModelId, IndexEntry)>) -> Self {
        Index { entries: entries.into_iter().collect() }
    }

    /// How the runtime sees `model`; `None` when it does not hold it.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<IndexEntry> {
        self.entries.get(model).copied()
    }

    /// Every model that the runtime holds.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelId, IndexEntry)> {
        self.entries.iter().map(|(model, entry)| (model, *entry))
    }

    /// The proof that `model` takes no memory in the runtime, or `None` while it is listed.
    #[must_use]
    pub fn unloaded(&self, model: &ModelId) -> Option<Unloaded> {
        (!self.entries.contains_key(model)).then(|| Unloaded { model: model.clone() })
    }
}

/// Proof that a runtime does not hold a model: only an [`Index`] makes one, and only it lets a lease go.
#[derive(Debug)]
pub struct Unloaded {
    model: ModelId,
}

impl Unloaded {
    /// Which model.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }
}

/// Whether a runtime answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Up,
    /// It does not: what it held is gone, or cannot be reached.
    Down {
        /// What the last try ran into.
        why: Arc<str>,
    },
}

/// An inference server as Berth sees it.
///
/// Every call may be cancelled by dropping its future; what the server does with a cancelled load its index tells.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What it is and what it asks for.
    fn info(&self) -> &RuntimeInfo;

    /// What a copy of these files will take, before loading; `None` when this runtime cannot tell.
    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint>;

    /// The same from a server that can be asked about this model; else [`Runtime::estimate`].
    async fn predict(&self, _model: &Registration, artifacts: &Artifacts) -> Option<Footprint> {
        self.estimate(artifacts)
    }

    /// Where copies of these files compute. Asked only where there are GPUs to choose from.
    async fn seat(&self, _model: &Registration, _artifacts: &Artifacts) -> Seat {
        Seat::Given
    }

    /// Puts the files where and how the server wants them. Idempotent: an older layout of the model is replaced.
    ///
    /// # Errors
    /// [`LoadFault::BadModel`] when the files are not a model of a format that it knows.
    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError>;

    /// The same for a copy that [`Runtime::load`] is to put on this GPU, where [`Runtime::seat`] said that one is chosen.
    ///
    /// # Errors
    /// As [`Runtime::lay_out`].
    async fn lay_out_on(&self, _gpu: u16, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        self.lay_out(model, artifacts).await
    }

    /// Loads a model that is laid out. Loading a model that is loaded is a success.
    ///
    /// # Errors
    /// [`LoadError`]; after any error other than "nothing attempted" the index tells whether memory is in use.
    async fn load(&self, model: &Registration, laid_out: &LaidOut) -> Result<Loaded, LoadError>;

    /// What a loaded copy takes, from a server that can tell only after [`Runtime::load`] has ended. Asked once for a copy whose
    /// load measured nothing, while it serves; may take its time. `None`: nobody can tell.
    async fn size(&self, _model: &ModelId) -> Option<Footprint> {
        None
    }

    /// Somebody was told by the server that it does not hold `model`, which it should: completes when [`Runtime::index`] says
    /// how it is. Only adapters whose index is not the server's own have something to do.
    async fn doubt(&self, _model: &ModelId) {}

    /// A call broke off: [`Runtime::health`] says soon whether the server lives, sooner than it would by itself. Does not wait.
    fn ask_whether_it_lives(&self) {}

    /// Starts to unload a model. Success means that the server took the order, not that memory is free: see
    /// [`Runtime::index`]. Unloading a model that is not there is a success.
    ///
    /// # Errors
    /// [`UnloadError`] with the server's words.
    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError>;

    /// How long a runtime may take from the order to unload until its index confirms it, where that can be longer than a few seconds.
    fn unloads_within(&self) -> Option<Duration> {
        None
    }

    /// Moves a loaded copy out of the memory in which it serves, to where [`Runtime::wake`] brings it back from sooner than a load
    /// would. What it takes from then on. Its index entry is [`IndexEntry::Parked`], it answers nothing, and it can be unloaded as it
    /// is. Parking what is parked is a success.
    ///
    /// # Errors
    /// [`ParkError`]: the copy serves as before.
    async fn park(&self, _model: &ModelId) -> Result<Footprint, ParkError> {
        Err(ParkError::NotSupported)
    }

    /// Has a parked copy serve again; so does [`Runtime::load`]. Waking what serves is a success.
    ///
    /// # Errors
    /// [`ParkError`]: the copy is where it was.
    async fn wake(&self, _model: &ModelId) -> Result<Loaded, ParkError> {
        Err(ParkError::NotSupported)
    }

    /// Removes what [`Runtime::lay_out`] made. Called after the unload is confirmed.
    async fn clear_layout(&self, model: &ModelId);

    /// What the server truly holds now.
    ///
    /// # Errors
    /// [`RuntimeDown`] when it cannot be asked.
    async fn index(&self) -> Result<Index, RuntimeDown>;

    /// Completes when the index may have changed since the last look (a load ended, an unload finished). A server
    /// without events may complete after a polling interval.
    async fn index_changed(&self);

    /// Whether it answers, as that changes. `None` for what lives and dies with this process.
    fn health(&self) -> Option<watch::Receiver<Health>> {
        None
    }
}

/// Why an inference failed, apart by what the caller does about it. The proxy has the one table to gRPC and HTTP codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// The runtime does not hold the model (any more): route again.
    #[error("the runtime does not hold model {0}")]
    NotLoaded(ModelId),
    /// The request does not fit the model; names tensor, expected and given.
    #[error("{0}")]
    BadRequest(String),
    /// The deadline passed before the result was there.
    #[error("the deadline passed during inference")]
    DeadlineExceeded,
    /// Too many requests wait for this copy: try again.
    #[error("{0}")]
    Busy(String),
    /// The model failed while computing.
    #[error("{0}")]
    Failed(String),
    /// The runtime cannot be reached, or broke off: try again.
    #[error("{0}")]
    Away(String),
    /// The runtime answered with a code of its own, which is the caller's to know.
    #[error("{message}")]
    Refused {
        /// As gRPC numbers them.
        code: i32,
        /// The runtime's words.
        message: String,
    },
}

/// Inference by a runtime that lives in this process.
#[async_trait]
pub trait Infer: Send + Sync + 'static {
    /// Runs the model. `request.model_name` is ignored; the answer carries `model` as its name. Outputs are raw
    /// contents, little-endian, row-major, in the order asked for (all outputs in the model's order when none is named).
    ///
    /// # Errors
    /// [`InferError`].
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError>;

    /// Inputs and outputs of a loaded model.
    ///
    /// # Errors
    /// [`InferError::NotLoaded`].
    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError>;
}
