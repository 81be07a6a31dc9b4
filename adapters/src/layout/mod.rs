//! How a model's files are laid out for a server: one planner for all of them, adapters only carry out.
//!
//! [`Source::read`] looks at the files once: names, kinds, sizes, and the few small texts that a decision needs. From then
//! on everything is decided purely: a server's `plan` says what lies where below the model's own folder, as links and
//! texts. [`Plan::carry_out`] makes it so, beside and by rename; [`clear`] takes it away. Nothing else in the server's
//! folder is touched, and nothing that a model's files say reaches outside them.
//!
//! All of this reads and writes files on the calling thread: call it where blocking is right.

pub(crate) mod listing;
pub(crate) mod mlserver;
pub(crate) mod name;
pub(crate) mod ovms;
pub(crate) mod pbtxt;
pub(crate) mod plan;
pub(crate) mod schema;
pub(crate) mod torchserve;
pub(crate) mod triton;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use berth_types::{ModelId, Registration};
use tracing::{info, warn};

pub(crate) use listing::Listing;
pub(crate) use plan::{Plan, claim, clear};
pub(crate) use schema::Schema;

use crate::{Artifacts, LaidOut, LoadError, StartError};

/// Makes a layout on a thread where that may block.
///
/// # Errors
/// Those of `make`.
pub(crate) async fn made<T: Send + 'static>(make: impl FnOnce() -> Result<T, LoadError> + Send + 'static) -> Result<T, LoadError> {
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|panic| Err(LoadError::bad_model(format!("the layout panicked: {panic}"))))
}

/// Has the layout that the server calls `name` taken away. What cannot be is told in the log: nobody waits for it.
pub(crate) async fn cleared(root: &Path, name: String) {
    let root = root.to_owned();
    if let Ok(Err(fault)) = tokio::task::spawn_blocking(move || clear(&root, &name)).await {
        warn!(error = %fault, "the layout of a model cannot be removed");
    }
}

/// Has the server's folder [claimed](claim).
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn claimed(root: &Path) -> Result<(), StartError> {
    let folder = root.to_owned();
    let claimed = tokio::task::spawn_blocking(move || claim(&folder)).await;
    let path = || root.display().to_string();
    claimed.unwrap_or_else(|panic| Err(panic.to_string())).map_err(|why| StartError::Repository { path: path(), why })
}

/// All that a plan is made from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The model.
    pub(crate) id: ModelId,
    /// Its format's name: lower-case, cut at the first `:`.
    pub(crate) kind: String,
    /// Where the files are: a file or a folder, with no link on the way.
    pub(crate) path: PathBuf,
    /// The name that the file or folder has in its store; the server's name of the model where its path was empty.
    pub(crate) name: String,
    /// What is there.
    pub(crate) listing: Listing,
    /// Inputs and outputs as the registration's schema file has them.
    pub(crate) schema: Option<Schema>,
}

impl Source {
    /// Looks at a model's files.
    ///
    /// # Errors
    /// A bad model: names the file that cannot be read or leads out of the model's folder, or what is wrong with the schema.
    pub(crate) fn read(model: &Registration, artifacts: &Artifacts) -> Result<Self, LoadError> {
        let schema = artifacts.schema.as_deref().map(Schema::read).transpose()?;
        let kind = kind_of(&model.format.name);
        let (path, mut listing) = listing::read(&artifacts.model, &kind)?;
        // In a folder that is used in place, or for "everything in the bucket", the schema lies among the model's files.
        if let Some(inside) = artifacts.schema.as_deref().and_then(|schema| schema.strip_prefix(&artifacts.model).ok()?.to_str()) {
            listing.remove(inside);
        }
        let own = artifacts.model.file_name().and_then(|name| name.to_str()).filter(|_| !model.path.trim_matches('/').is_empty());
        let name = own.map_or_else(|| name::server_name(&model.id), str::to_owned);
        Ok(Source { id: model.id.clone(), kind, path, name, listing, schema })
    }

    /// Makes a layout of a model's files below `root` as `plan` says.
    ///
    /// # Errors
    /// A bad model, or the disk's words.
    pub(crate) fn lay_out(
        model: &Registration,
        artifacts: &Artifacts,
        root: &Path,
        plan: impl FnOnce(&Self) -> Result<Plan, LoadError>,
    ) -> Result<(LaidOut, Plan), LoadError> {
        let plan = plan(&Source::read(model, artifacts)?)?;
        for note in &plan.notes {
            info!(model = %model.id, "{note}");
        }
        Ok((plan.carry_out(root)?, plan))
    }

    /// What the server calls the model, and what its folder is called.
    pub(crate) fn server_name(&self) -> String {
        name::server_name(&self.id)
    }

    /// What makes a server see the file or folder at a path of the listing; empty is the model itself.
    fn link(&self, path: &str) -> plan::Entry {
        let target = if path.is_empty() { self.path.clone() } else { self.path.join(path) };
        match self.listing.get(path) {
            Some(node) => plan::Entry::of(target, node),
            None => plan::Entry::Link(target),
        }
    }
}

/// A format's name as layouts know it: `tensorRT:2x` is `tensorrt`.
pub(crate) fn kind_of(format: &str) -> String {
    format.split(':').next().unwrap_or_default().to_lowercase()
}
