//! Triton: a folder per model, a folder per version in it, and `config.pbtxt`.
//!
//! A folder that is laid out for Triton already is passed through, its configuration changed only where it must be. Any
//! other is linked under the names that the backend of its format looks for. Where a backend needs a configuration that
//! can be made, it is made: from a schema, or for trees from what the model's file says of itself.

mod config;
mod ensemble;
mod fil;
mod instances;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;

use super::listing::{CONFIG, Node, names};
use super::pbtxt::{Document, Fields as _, to_json};
use super::plan::{Entries, Entry, Plan};
use super::{Schema, Source};
use crate::LoadError;

/// What the pod decides about a layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where the model's instances run; `None` leaves that to its configuration and to Triton. An instance group that names
    /// CPU or MODEL itself stays as it is.
    pub(crate) device: Option<Device>,
    /// The version to serve of a folder of versions; `None` is the largest.
    pub(crate) version: Option<u64>,
    /// How Triton gets the configuration.
    pub(crate) config: ConfigBy,
}

/// A device that instances are put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    #[cfg_attr(not(test), expect(dead_code, reason = "what goes on no GPU keeps its configuration"))]
    Cpu,
    /// By Triton's number.
    Gpu(u32),
}

/// How Triton gets a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConfigBy {
    /// As a file; where the model has one, every byte of it that need not change is kept.
    #[default]
    File,
    /// As JSON with the load: [`Plan::config`]. What the model's own file says is converted. The parts of an ensemble, which
    /// Triton loads by itself, have files all the same.
    Parameter,
}

/// What Triton's backends expect of a format.
struct Format {
    /// The name of a single file; `None` keeps its own.
    file: Option<&'static str>,
    /// The name of a folder; `None` makes it the version's folder.
    folder: Option<&'static str>,
    backend: Option<&'static str>,
    /// The name that the backend looks for in a version's folder, and what other files of the kind end in.
    default: Option<(&'static str, &'static [&'static str])>,
    /// A folder that holds one thing stands for that thing.
    steps_in: bool,
}

fn format(kind: &str) -> Format {
    let of = |file, folder, backend, default| Format { file, folder, backend: Some(backend), default, steps_in: true };
    match kind {
        "tensorflow" => of(Some("model.graphdef"), Some("model.savedmodel"), "tensorflow", None),
        "keras" => of(None, Some("model.savedmodel"), "tensorflow", None),
        "onnx" => of(Some("model.onnx"), Some("model.onnx"), "onnxruntime", Some(("model.onnx", &["onnx"]))),
        "pytorch" => of(Some("model.pt"), None, "pytorch", Some(("model.pt", &["pt", "pth"]))),
        "tensorrt" => of(Some("model.plan"), None, "tensorrt", Some(("model.plan", &["plan", "engine", "trt"]))),
        "openvino" | "openvino_ir" => Format { steps_in: false, ..of(None, None, "openvino", Some(("model.xml", &["xml"]))) },
        "python" => Format { steps_in: false, ..of(None, None, "python", Some(("model.py", &["py"]))) },
        _ => Format { file: None, folder: None, backend: None, default: None, steps_in: false },
    }
}

/// How the model is laid out for Triton.
///
/// # Errors
/// A bad model: what in its files or its configuration Triton could not load, by name.
pub(crate) fn plan(source: &Source, options: &Options) -> Result<Plan, LoadError> {
    let mut plan = Plan::named(source.server_name());
    let mut config = None;
    match &source.listing.0 {
        Node::File { .. } => {
            let version = options.version.unwrap_or(1).to_string();
            unshaped(source, options, "", &version, &mut plan, &mut config)?;
        }
        Node::Folder { .. } => {
            let folder = shaped_folder(source);
            let entries = entries_of(source, &folder)?;
            if ensemble::is_one(source, &folder)? {
                ensemble::plan(source, options, &folder, &mut plan, &mut config)?;
            } else if entries.contains_key(CONFIG) {
                plan.entries = shaped(source, options, &folder, &[])?;
                let change = config::Change { schema: source.schema.as_ref(), device: options.device, parts: None };
                config = Some(config::edited(source, &folder, &change)?);
            } else {
                let (folder, version) = version_of(source, options.version, &folder)?;
                unshaped(source, options, &folder, &version, &mut plan, &mut config)?;
            }
        }
    }
    match (options.config, config) {
        (_, None) => {}
        // Its parts are found by its own file, and none of it is on a device.
        (_, Some(config)) if !plan.parts.is_empty() => drop(plan.entries.insert(CONFIG.to_owned(), Entry::Text(config))),
        (ConfigBy::File, Some(config)) => drop(plan.entries.insert(CONFIG.to_owned(), Entry::Text(config))),
        (ConfigBy::Parameter, Some(config)) => {
            let document = Document::parse(&config).map_err(|fault| LoadError::bad_model(format!("{CONFIG}: {fault}")))?;
            plan.config = Some(to_json(&document));
        }
    }
    Ok(plan)
}

/// Whether any instance of the model would run on a GPU that is chosen for it: not where all of its groups say that they run
/// on the CPU or where the model itself puts them, nor with a backend that knows the CPU only.
///
/// # Errors
/// As [`plan`].
pub(crate) fn runs_on_a_gpu(source: &Source) -> Result<bool, LoadError> {
    let plan = plan(source, &Options { device: Some(Device::Gpu(0)), ..Options::default() })?;
    let folders = std::iter::once(&plan.entries).chain(plan.parts.values());
    let configs = folders.filter_map(|entries| match entries.get(CONFIG) {
        Some(Entry::Text(config)) => Document::parse(config).ok(),
        Some(Entry::Link(_) | Entry::Tree(..) | Entry::Folder) | None => None,
    });
    Ok(configs.into_iter().any(|document| instances::any_on_a_gpu(&document)))
}

/// The path of a name in a folder of the listing.
fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn entries_of<'a>(source: &'a Source, folder: &str) -> Result<&'a BTreeMap<String, Node>, LoadError> {
    let entries = source.listing.get(folder).and_then(Node::entries);
    entries.ok_or_else(|| LoadError::bad_model(format!("{folder} is not a folder")))
}

/// The folder that the model is, or that it holds and nothing else: somebody has packed a Triton model with its own folder.
fn shaped_folder(source: &Source) -> String {
    let mut folder = String::new();
    while let Some(entries) = source.listing.get(&folder).and_then(Node::entries)
        && entries.len() == 1
        && let Some((name, inner)) = entries.first_key_value()
        && number(name).is_none()
        && inner.get(CONFIG).is_some_and(|config| !config.is_folder())
    {
        folder = join(&folder, name);
    }
    folder
}

/// A version's number in Triton's eyes: it wants no leading zeros, and none of zero.
fn number(name: &str) -> Option<u64> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    name.parse().ok().filter(|number| i64::try_from(*number).is_ok())
}

/// The folder to serve and the version it will have: where all folders are numbers the chosen or largest one.
pub(super) fn version_of(source: &Source, chosen: Option<u64>, folder: &str) -> Result<(String, String), LoadError> {
    let entries = entries_of(source, folder)?;
    let folders: Vec<&String> = entries.iter().filter(|(_, node)| matches!(node, Node::Folder { linked: false, .. })).map(|(name, _)| name).collect();
    let numbers: Option<Vec<(u64, &String)>> = folders.iter().map(|name| Some((number(name)?, *name))).collect();
    let mut numbers = numbers.unwrap_or_default();
    // Of `7` and `007` the one that Triton itself would read.
    numbers.sort_by_key(|(number, name)| (*number, std::cmp::Reverse(name.len())));
    let found = match chosen {
        Some(wanted) => numbers.iter().rfind(|(number, _)| *number == wanted && wanted > 0),
        None => numbers.last().filter(|(number, _)| *number > 0),
    };
    match (found, chosen) {
        (Some((number, name)), _) => Ok((join(folder, name), number.to_string())),
        (None, Some(wanted)) if !numbers.is_empty() => {
            Err(LoadError::bad_model(format!("version {wanted} of {} is not there: found {}", source.name, names(entries))))
        }
        (None, _) => Ok((folder.to_owned(), chosen.unwrap_or(1).to_string())),
    }
}

/// Links what has no configuration of its own under the names that the backend of its format looks for.
fn unshaped(source: &Source, options: &Options, at: &str, version: &str, plan: &mut Plan, config: &mut Option<Vec<u8>>) -> Result<(), LoadError> {
    let kind = source.kind.as_str();
    let mut format = format(kind);
    let mut at = at.to_owned();
    // A schema that lies among the files is no part of the model.
    let considered = |at: &str| -> Vec<(String, bool)> {
        let entries = source.listing.get(at).and_then(Node::entries).into_iter().flatten();
        entries.filter(|(name, _)| *name != "_schema.json").map(|(name, node)| (name.clone(), node.is_folder())).collect()
    };
    if let [(only, is_folder)] = considered(&at).as_slice()
        && (format.steps_in || (*is_folder && (format.backend.is_some() || fil::takes(kind))))
    {
        at = join(&at, only);
    }
    let node = source.listing.get(&at);
    let own_name = if at.is_empty() { source.name.as_str() } else { at.rsplit('/').next().unwrap_or(&at) };
    let mut default = None;
    if node.is_some_and(Node::is_folder) {
        let entries = entries_of(source, &at)?;
        if fil::takes(kind) && !entries.contains_key("model.py") {
            let file = fil::model_of(source, &at)?;
            *config = Some(fil::config(source, options, &join(&at, &file), &mut plan.notes)?);
        } else if let Some((name, endings)) = format.default
            && !entries.contains_key(name)
            && let Some(only) = lone(entries, endings)
        {
            default = Some(only);
            format = Format { folder: None, ..format };
        }
        plan.entries.insert(format.folder.map_or_else(|| version.to_owned(), |name| format!("{version}/{name}")), source.link(&at));
    } else {
        if kind == "keras" {
            let what = "Triton has no backend for a Keras file, and converting needs TensorFlow: export the model as SavedModel or ONNX";
            return Err(LoadError::bad_model(format!("{own_name}: {what}")));
        }
        if fil::takes(kind) {
            *config = Some(fil::config(source, options, &at, &mut plan.notes)?);
        } else if format.file.is_none() && format.default.is_some_and(|(name, _)| name != own_name) {
            default = Some(own_name.to_owned());
        }
        plan.entries.insert(format!("{version}/{}", format.file.unwrap_or(own_name)), source.link(&at));
    }
    if config.is_none() {
        let needed = kind == "python" || default.is_some() || source.schema.is_some() || options.device.is_some();
        *config = needed.then(|| config::generated(format.backend, default.as_deref(), source.schema.as_ref(), options.device)).transpose()?;
    }
    Ok(())
}

/// The only file with one of these endings.
fn lone(entries: &BTreeMap<String, Node>, endings: &[&str]) -> Option<String> {
    let mut found = entries.iter().filter(|(name, node)| !node.is_folder() && !name.starts_with('.') && ends_in(name, endings));
    match (found.next(), found.next()) {
        (Some((only, _)), None) => Some(only.clone()),
        _ => None,
    }
}

fn ends_in(name: &str, endings: &[&str]) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| endings.iter().any(|one| ending.eq_ignore_ascii_case(one)))
}

/// Passes a folder with a configuration through, the configuration itself and `without` left out.
fn shaped(source: &Source, options: &Options, folder: &str, without: &[&String]) -> Result<Entries, LoadError> {
    let entries = entries_of(source, folder)?;
    let mut out = Entries::new();
    let mut files = false;
    for (name, node) in entries.iter().filter(|(name, _)| *name != CONFIG && *name != "_schema.json" && !without.contains(name)) {
        files |= !node.is_folder();
        let version = number(name).filter(|number| *number > 0 && node.is_folder());
        match (version, options.version) {
            (Some(version), Some(wanted)) if version != wanted => {}
            (Some(version), _) => {
                // Triton passes over a name with leading zeros; where the plain name is there too, that one counts.
                let plain = version.to_string();
                if *name == plain || !entries.contains_key(&plain) {
                    out.insert(plain, source.link(&join(folder, name)));
                }
            }
            (None, _) => drop(out.insert(name.clone(), source.link(&join(folder, name)))),
        }
    }
    let is_version = |name: &String| number(name).is_some_and(|number| number > 0);
    if let Some(wanted) = options.version
        && !out.contains_key(&wanted.to_string())
        && entries.keys().any(is_version)
    {
        return Err(LoadError::bad_model(format!("version {wanted} of {} is not there: found {}", source.name, names(entries))));
    }
    // Without a version's folder Triton finds nothing to serve: then the files are the one version there is.
    if files && !out.keys().any(is_version) {
        out.insert("1".to_owned(), source.link(folder));
    }
    Ok(out)
}

/// Whether a configuration is that of an ensemble.
fn is_ensemble(document: &Document<'_>) -> bool {
    document.has("ensemble_scheduling")
}
