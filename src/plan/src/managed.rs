//! What calls of `mmesh.ModelMesh` do to the models and names that they manage.
//!
//! Every call is one function from what is there to the parts of one change, or to a [`Refused`] that says why not. All
//! parts of a change become true together. What a model id stands for follows from `type`, `path` and `key` by
//! [`registration`]; when a name that is on its way takes over is [`may_take_over`].
//!
//! Invariants: a name refers to models that exist, and a model that was made for its names goes with the last of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_types::{
    Location, ManagedModel, ManagedName, ManagedPut, ManagedRecords, ModelFormat, ModelId, Name, Placement, Registration, StorageRef, UnixMillis,
};
use serde_json::{Map, Value};

use crate::alias::SWITCH_AT_LATEST;

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The call itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it is about does not exist.
    #[error("{0}")]
    NotFound(String),
    /// What it would make exists and is something else.
    #[error("{0}")]
    Exists(String),
    /// Something must change first.
    #[error("{0}")]
    Blocked(String),
    /// What exists is not known yet.
    #[error("{0}")]
    NotReady(String),
    /// The caller's time is over; it may still be carried out.
    #[error("the deadline passed before the call was answered: it may still be carried out")]
    Late,
    /// It could not be kept.
    #[error("{0}")]
    Unkept(String),
}

/// What a model id stands for, in the words of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// `mt:<format>[:<version>][|pv:<protocol>]`, `rt:<runtime>`, or a format alone.
    pub kind: String,
    /// Path of the model in its store.
    pub path: String,
    /// JSON text with storage parameters; may be empty.
    pub key: String,
}

/// `registerModel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewModel {
    /// Its id.
    pub id: ModelId,
    /// What it stands for.
    pub info: ModelInfo,
    /// When it counts as last used.
    pub last_used: UnixMillis,
}

impl NewModel {
    fn record(&self, auto_delete: bool) -> ManagedModel {
        let filled = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
        let ModelInfo { kind, path, key } = &self.info;
        ManagedModel { id: self.id.clone(), kind: kind.as_str().into(), path: filled(path), key: filled(key), last_used: self.last_used, auto_delete }
    }
}

/// `setVModel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetName {
    /// The name.
    pub name: Name,
    /// The model that it should stand for.
    pub target: ModelId,
    /// What the target is, where it may have to be made.
    pub info: Option<ModelInfo>,
    /// When a target that is made counts as last used.
    pub last_used: UnixMillis,
    /// Only change a name that exists.
    pub update_only: bool,
    /// The target goes when no name refers to it any more.
    pub auto_delete: bool,
    /// Switch at once, whatever is loaded.
    pub force: bool,
    /// What the name's target has to be now; the same as the new target: it must be that or not exist.
    pub expected: Option<ModelId>,
    /// Who asks.
    pub owner: Option<Arc<str>>,
}

/// What pods hold of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Loaded copies.
    pub loaded: u32,
    /// Those of them that were used recently.
    pub used: u32,
    /// When the first of them was loaded.
    pub since: Option<UnixMillis>,
    /// Nothing is loaded or on its way, and a failure counts.
    pub failed: bool,
}

/// What a model is doing, in the words of `ModelStatusInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doing {
    /// There is no such model.
    NotFound,
    /// Nobody holds it.
    NotLoaded,
    /// On its way.
    Loading,
    /// Loaded in at least one pod.
    Loaded,
    /// It failed, and nobody holds it.
    LoadingFailed,
}

/// One copy, or one failure to have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyStanding {
    /// The pod.
    pub location: Location,
    /// What the copy is doing.
    pub doing: Doing,
    /// Since when.
    pub time: UnixMillis,
}

/// `ModelStatusInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStanding {
    /// What it is doing.
    pub doing: Doing,
    /// What went wrong, newest first.
    pub errors: Vec<String>,
    /// Copies and failures, newest first.
    pub copies: Vec<CopyStanding>,
}

impl ModelStanding {
    /// Of a model that does not exist.
    #[must_use]
    pub fn not_found() -> Self {
        ModelStanding { doing: Doing::NotFound, errors: Vec::new(), copies: Vec::new() }
    }
}

/// How far a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameDoing {
    /// It stands for its target.
    Defined,
    /// It is on its way to its target.
    Transitioning,
    /// Its target failed; it is tried again.
    TransitionFailed,
}

/// `VModelStatusInfo` of a name that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameStanding {
    /// How far it is.
    pub doing: NameDoing,
    /// The model that serves; `None` while nothing valid was asked for.
    pub active: Option<(ModelId, ModelStanding)>,
    /// The model that should serve; `None` when it is the active one.
    pub target: Option<(ModelId, ModelStanding)>,
    /// Who made it.
    pub owner: Option<Arc<str>>,
}

/// What a model id stands for.
///
/// `type` chooses the runtimes, as upstream's controller writes it; a plain format is taken as well. `key` says where the
/// bytes are: `storage_key`, `storage_params`, `schema_path`, the older `bucket`, and `model_type`, which names the format
/// where `type` names a runtime. Members that nobody knows are let pass.
///
/// # Errors
/// [`Refused::Invalid`] names the field.
pub fn registration(id: &ModelId, kind: &str, path: Option<&str>, key: Option<&str>) -> Result<Registration, Refused> {
    let key = match key {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return Err(invalid("modelInfo.key is not a JSON object: write {\"storage_key\": ...} or leave it out")),
            Err(fault) => return Err(invalid(format!("modelInfo.key is no JSON: {fault}"))),
        },
    };
    let (format, placement) = placed(kind, format_in(&key)?)?;
    let mut parameters = BTreeMap::new();
    if let Some(bucket) = text(&key, "bucket")? {
        parameters.insert("bucket".to_owned(), bucket.to_owned());
    }
    match key.get("storage_params") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (name, value) in given {
                let value = value.as_str().ok_or_else(|| invalid(format!("modelInfo.key: storage_params.{name} must be a text")))?;
                parameters.insert(name.clone(), value.to_owned());
            }
        }
        Some(_) => return Err(invalid("modelInfo.key: storage_params must be an object of texts")),
    }
    let storage = StorageRef {
        key: text(&key, "storage_key")?.map(Arc::from),
        parameters: Arc::new(parameters),
        path: path.unwrap_or_default().into(),
        schema_path: text(&key, "schema_path")?.map(Arc::from),
    };
    Ok(Registration::new(id.clone(), format, placement, storage, None))
}

fn invalid(message: impl Into<String>) -> Refused {
    Refused::Invalid(message.into())
}

/// A filled text member of the key.
fn text<'k>(key: &'k Map<String, Value>, name: &str) -> Result<Option<&'k str>, Refused> {
    match key.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(invalid(format!("modelInfo.key: {name} must be a text"))),
    }
}

/// `model_type`: an object with name and version, or a name alone.
fn format_in(key: &Map<String, Value>) -> Result<Option<ModelFormat>, Refused> {
    match key.get("model_type") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok((!name.is_empty()).then(|| format_of(name))),
        Some(Value::Object(members)) => {
            let Some(name) = text(members, "name")? else { return Ok(None) };
            Ok(Some(ModelFormat { name: name.into(), version: text(members, "version")?.map(Arc::from) }))
        }
        Some(_) => Err(invalid("modelInfo.key: model_type must be a text, or an object with name and version")),
    }
}

fn format_of(text: &str) -> ModelFormat {
    let (name, version) = text.split_once(':').map_or((text, None), |(name, version)| (name, Some(version)));
    ModelFormat { name: name.into(), version: version.filter(|version| !version.is_empty()).map(Arc::from) }
}

fn placed(kind: &str, in_key: Option<ModelFormat>) -> Result<(ModelFormat, Placement), Refused> {
    if let Some(runtime) = kind.strip_prefix("rt:") {
        let format = in_key.ok_or_else(|| {
            invalid(format!("modelInfo.type {kind:?} names a runtime and nothing names the format: give modelInfo.key a model_type"))
        })?;
        return if runtime.is_empty() { Err(no_type(kind)) } else { Ok((format, Placement::Runtime(runtime.into()))) };
    }
    let (format, rest) = kind.split_once('|').map_or((kind, None), |(format, rest)| (format, Some(rest)));
    let protocol = match rest {
        None => None,
        Some(rest) => Some(rest.strip_prefix("pv:").filter(|protocol| !protocol.is_empty()).ok_or_else(|| no_type(kind))?.into()),
    };
    let format = format_of(format.strip_prefix("mt:").unwrap_or(format));
    if format.name.is_empty() {
        return Err(no_type(kind));
    }
    Ok((format, Placement::Format { protocol }))
}

fn no_type(kind: &str) -> Refused {
    let shown: String = kind.chars().take(80).collect();
    invalid(format!("modelInfo.type is {shown:?}: write mt:FORMAT, mt:FORMAT:VERSION, mt:FORMAT|pv:PROTOCOL or rt:RUNTIME"))
}

/// `registerModel`: the same again changes nothing but that the model stays from now on, whatever names refer to it.
///
/// # Errors
/// [`Refused::Exists`] when it is registered as something else.
pub fn register(there: &dyn ManagedRecords, model: &NewModel) -> Result<Vec<ManagedPut>, Refused> {
    let wanted = model.record(false);
    match there.model(&model.id) {
        None => Ok(vec![ManagedPut::Model(wanted)]),
        Some(present) if !present.is_same(&wanted) => Err(exists_otherwise(&model.id)),
        Some(present) if present.auto_delete => Ok(vec![ManagedPut::Model(ManagedModel { auto_delete: false, ..(*present).clone() })]),
        Some(_) => Ok(Vec::new()),
    }
}

fn exists_otherwise(id: &ModelId) -> Refused {
    Refused::Exists(format!("model {:?} is registered with another type, path or key: give the new one another id", id.as_str()))
}

/// `unregisterModel`: what is not there is gone already.
///
/// # Errors
/// [`Refused::Blocked`] while names refer to it.
pub fn unregister(there: &dyn ManagedRecords, id: &ModelId) -> Result<Vec<ManagedPut>, Refused> {
    match (there.model(id), there.references(id)) {
        (None, _) => Ok(Vec::new()),
        (Some(_), 0) => Ok(vec![ManagedPut::NoModel(id.clone())]),
        (Some(_), references) => {
            let names = if references == 1 { "1 vmodel refers".to_owned() } else { format!("{references} vmodels refer") };
            Err(Refused::Blocked(format!("{names} to model {:?}: let them refer to another one, or delete them first", id.as_str())))
        }
    }
}

/// `setVModel`: makes the name or gives it another target, and the target's model where the call says what it is.
///
/// The name switches at once when it is new, when it is told to, when the active model has no loaded copy (unless the
/// target has failed: what could still be loaded is not given up for what could not), or when the target has as many
/// loaded copies as the active one. Otherwise it is on its way.
///
/// # Errors
/// [`Refused`].
pub fn set_name(there: &dyn ManagedRecords, ask: &SetName, held: &dyn Fn(&ModelId) -> Held) -> Result<Vec<ManagedPut>, Refused> {
    let before = there.name(&ask.name);
    let shown = ask.name.as_str();
    let mismatch = |now: String| {
        let expected = ask.expected.as_ref().map_or("", ModelId::as_str);
        Refused::Blocked(format!("vmodel {shown:?} was expected to have target {expected:?}, {now}"))
    };
    match &before {
        None if ask.update_only => return Err(Refused::NotFound(format!("vmodel {shown:?} does not exist"))),
        None if ask.expected.as_ref().is_some_and(|expected| *expected != ask.target) => return Err(mismatch("it does not exist".to_owned())),
        None => {}
        Some(name) if name.owner != ask.owner => {
            return Err(Refused::Exists(format!("vmodel {shown:?} belongs to {}", whose(name.owner.as_deref()))));
        }
        Some(name) if ask.expected.as_ref().is_some_and(|expected| *expected != name.target) => {
            return Err(mismatch(format!("it has {:?}", name.target.as_str())));
        }
        Some(_) => {}
    }
    let mut changed = Changed::of(there);
    match (there.model(&ask.target), &ask.info) {
        (Some(present), Some(info)) => {
            let wanted = NewModel { id: ask.target.clone(), info: info.clone(), last_used: ask.last_used }.record(false);
            if !present.is_same(&wanted) {
                return Err(exists_otherwise(&ask.target));
            }
        }
        (Some(_), None) => {}
        (None, Some(info)) => {
            let model = NewModel { id: ask.target.clone(), info: info.clone(), last_used: ask.last_used };
            changed.put(model.record(false));
        }
        (None, None) => {
            return Err(Refused::NotFound(format!("model {:?} is not registered: give modelInfo, or register it first", ask.target.as_str())));
        }
    }
    changed.edit(&ask.target, |model| model.auto_delete |= ask.auto_delete);
    let active = match &before {
        None => ask.target.clone(),
        Some(name) if ask.force || switches_at_once(held(&name.active), held(&ask.target)) => ask.target.clone(),
        Some(name) => name.active.clone(),
    };
    let after = ManagedName { name: ask.name.clone(), active, target: ask.target.clone(), owner: ask.owner.clone() };
    changed.refer(before.as_deref(), Some(&after));
    let mut puts = changed.puts();
    if before.as_deref() != Some(&after) {
        puts.push(ManagedPut::Name(after));
    }
    Ok(puts)
}

fn whose(owner: Option<&str>) -> String {
    owner.map_or_else(|| "nobody in particular: leave out the owner".to_owned(), |owner| format!("owner {owner:?}"))
}

fn switches_at_once(active: Held, target: Held) -> bool {
    if active.loaded == 0 { !target.failed } else { target.loaded >= active.loaded }
}

/// `deleteVModel`: what is not there, or is somebody else's, is left alone.
#[must_use]
pub fn delete_name(there: &dyn ManagedRecords, name: &Name, owner: Option<&str>) -> Vec<ManagedPut> {
    let Some(present) = there.name(name).filter(|present| present.owner.as_deref() == owner) else { return Vec::new() };
    let mut changed = Changed::of(there);
    changed.refer(Some(&present), None);
    let mut puts = changed.puts();
    puts.push(ManagedPut::NoName(name.clone()));
    puts
}

/// The end of a transition: `name` stands for `target`, if that is still what it is on its way to.
#[must_use]
pub fn take_over(there: &dyn ManagedRecords, name: &Name, target: &ModelId) -> Vec<ManagedPut> {
    let Some(before) = there.name(name).filter(|before| before.is_moving() && before.target == *target) else { return Vec::new() };
    let after = ManagedName { active: target.clone(), ..(*before).clone() };
    let mut changed = Changed::of(there);
    changed.refer(Some(&before), Some(&after));
    let mut puts = changed.puts();
    puts.push(ManagedPut::Name(after));
    puts
}

/// Models that a change touches.
struct Changed<'t> {
    there: &'t dyn ManagedRecords,
    models: BTreeMap<ModelId, (Option<ManagedModel>, ManagedModel)>,
    /// How many names more, or fewer, refer to them.
    references: BTreeMap<ModelId, i64>,
}

impl<'t> Changed<'t> {
    fn of(there: &'t dyn ManagedRecords) -> Self {
        Changed { there, models: BTreeMap::new(), references: BTreeMap::new() }
    }

    fn put(&mut self, model: ManagedModel) {
        self.models.insert(model.id.clone(), (None, model));
    }

    fn edit(&mut self, id: &ModelId, how: impl FnOnce(&mut ManagedModel)) {
        if !self.models.contains_key(id)
            && let Some(model) = self.there.model(id)
        {
            self.models.insert(id.clone(), (Some((*model).clone()), (*model).clone()));
        }
        if let Some((_, model)) = self.models.get_mut(id) {
            how(model);
        }
    }

    /// A name refers to other models from now on.
    fn refer(&mut self, before: Option<&ManagedName>, after: Option<&ManagedName>) {
        for (name, by) in [(before, -1), (after, 1)] {
            for id in name.into_iter().flat_map(ManagedName::models) {
                self.edit(id, |_model| {});
                *self.references.entry(id.clone()).or_default() += by;
            }
        }
    }

    fn puts(self) -> Vec<ManagedPut> {
        let Changed { there, models, references } = self;
        let referred = |id: &ModelId| i64::from(there.references(id)) + references.get(id).copied().unwrap_or_default() > 0;
        let put = |(before, after): (Option<ManagedModel>, ManagedModel)| match (before, after) {
            (Some(_), after) if after.auto_delete && !referred(&after.id) => Some(ManagedPut::NoModel(after.id)),
            (Some(before), after) if before == after => None,
            (_, after) => Some(ManagedPut::Model(after)),
        };
        models.into_values().filter_map(put).collect()
    }
}

/// Whether a name that is on its way takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeOver {
    /// Now.
    Now,
    /// At this time, if nothing happens before.
    At(UnixMillis),
    /// When the target has been loaded.
    Waits,
}

/// A target takes over when it has as many loaded copies as were used of the active model and as it may have, at least
/// one; at the latest two minutes after its first one, and at once where nothing of the active model is loaded any more.
#[must_use]
pub fn may_take_over(active: Held, target: Held, pods: u32, now: UnixMillis) -> TakeOver {
    let enough = active.used.min(pods).max(1);
    let latest = target.since.map(|since| since.after(SWITCH_AT_LATEST));
    match (target.loaded, latest) {
        (0, _) => TakeOver::Waits,
        (loaded, _) if loaded >= enough || active.loaded == 0 => TakeOver::Now,
        (_, Some(latest)) if latest > now => TakeOver::At(latest),
        (_, Some(_) | None) => TakeOver::Now,
    }
}

#[cfg(test)]
mod tests;
