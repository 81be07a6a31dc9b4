//! From a storage reference and the storage configuration to the store that is meant.
//!
//! An entry of the configuration is a JSON object with a `type`; parameters of the model override its strings by dot
//! path. Where an entry carries credentials, parameters may choose the bucket but not the host that the credentials are
//! sent to, unless the entry's `allowed_hosts` says so. Secrets print as `***`, whatever they are part of. What the keys of
//! a type mean is for its provider to say.

mod dot_path;
mod entries;
mod guard;
mod keys;

use std::path::{Path, PathBuf};

use berth_types::StorageRef;
use serde_json::{Map, Value};

use crate::azure::AzureSettings;
use crate::gcs::GcsSettings;
use crate::s3::S3Settings;
use crate::web::WebSettings;
use crate::{ConfigFault, Settings, Source};

pub use entries::Entries;
pub(crate) use guard::{allowed_hosts, is_among};
pub(crate) use keys::{Secret, endpoint, filled, fingerprint, text, verify, word};

/// A folder on this machine whose files are used where they are.
#[derive(Debug, PartialEq, Eq)]
pub struct InPlace {
    /// The folder.
    pub root: PathBuf,
    /// How errors name it.
    pub named: String,
}

const TYPES: &str = "s3, gcs, azure, http, folder and pvc";

/// The store that `storage` means.
///
/// # Errors
/// [`ConfigFault`] names the key, parameter or type that is wrong, and what there is instead.
pub fn resolve(entries: &Entries, pvc_mounts: &Path, storage: &StorageRef) -> Result<Source, ConfigFault> {
    let chosen = choose(entries, storage)?;
    let named = chosen.as_ref().map_or_else(|| "the model's storage parameters".to_owned(), |(key, _)| format!("storage config {key}"));
    let entry = chosen.map(|(_, entry)| entry);
    let mut config = entry.clone().unwrap_or_default();
    for (path, value) in storage.parameters.iter() {
        dot_path::set(&mut config, path, value).map_err(|why| ConfigFault(format!("parameter {path} {why}")))?;
    }
    let kind = match text(&config, "type") {
        Some(kind) if !kind.is_empty() => kind.to_owned(),
        _ => return Err(ConfigFault("Predictor Storage field missing".to_owned())),
    };
    let parameters = storage.parameters.iter().map(|(path, value)| (path.as_str(), value.as_str()));
    guard::check(entry.as_ref(), &config, &kind, parameters, &named)?;
    match kind.as_str() {
        "s3" => S3Settings::parse(&config, &named).map(|s3| Source::Store(Settings::S3(s3))),
        "gcs" => GcsSettings::parse(&config, &named).map(|gcs| Source::Store(Settings::Gcs(gcs))),
        "azure" => AzureSettings::parse(&config, &named).map(|azure| Source::Store(Settings::Azure(azure))),
        "http" => WebSettings::parse(&config, &named).map(|web| Source::Store(Settings::Web(web))),
        "folder" => folder(entry.as_ref(), &config, entries, named).map(Source::InPlace),
        "pvc" => claim(&config, pvc_mounts, &named).map(Source::InPlace),
        _ => Err(ConfigFault(format!("storage type {kind:?} is not known, {TYPES} are"))),
    }
}

/// A key and its entry.
type Chosen = (String, Map<String, Value>);

/// The entry that applies and its key; `None` where nothing is named and there is no default.
fn choose(entries: &Entries, storage: &StorageRef) -> Result<Option<Chosen>, ConfigFault> {
    if let Some(key) = &storage.key {
        let Some(text) = entries.get(key) else {
            return Err(ConfigFault(format!("Did not find storage config for key {key}: {}", entries.instead())));
        };
        return Ok(Some((key.to_string(), entries.parse(key, text)?)));
    }
    let key = match storage.parameters.get("type") {
        Some(kind) => format!("default_{kind}"),
        None => "default".to_owned(),
    };
    entries.get(&key).map(|text| entries.parse(&key, text).map(|entry| (key.clone(), entry))).transpose()
}

fn folder(entry: Option<&Map<String, Value>>, config: &Map<String, Value>, entries: &Entries, named: String) -> Result<InPlace, ConfigFault> {
    // Only whoever writes the configuration says which folders of this machine may be read.
    let Some(path) = entry.and_then(|entry| filled(entry, "path")) else {
        return Err(ConfigFault(format!("{named}: a folder is named by the path of a storage config entry, which is missing")));
    };
    if text(config, "path") != Some(path) {
        return Err(ConfigFault(format!("parameter path may not change the folder of {named}: use another storage key")));
    }
    Ok(InPlace { root: entries.folder.as_deref().unwrap_or(Path::new("")).join(path), named: format!("the folder of {named}") })
}

fn claim(config: &Map<String, Value>, pvc_mounts: &Path, named: &str) -> Result<InPlace, ConfigFault> {
    let name = text(config, "name").unwrap_or_default();
    if name.is_empty() {
        return Err(ConfigFault(format!("{named}: the name of the volume claim is missing")));
    }
    if name.contains('/') || matches!(name, "." | "..") || name.chars().any(char::is_control) {
        return Err(ConfigFault(format!("{named}: {name:?} is not the name of a volume claim")));
    }
    Ok(InPlace { root: pvc_mounts.join(name), named: format!("volume claim {name}") })
}

#[cfg(test)]
mod tests;
