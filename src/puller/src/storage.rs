//! From a storage reference and the storage configuration to the store that is meant. Pure but for [`Entries::read`].
//!
//! An entry of the configuration is a JSON object with a `type`; parameters of the model override its strings by dot
//! path. Where an entry carries credentials, parameters may choose the bucket but not the host that the credentials are
//! sent to, unless the entry's `allowed_hosts` says so. Secrets print as `***`, whatever they are part of.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use berth_types::StorageRef;
use serde_json::{Map, Value};

use crate::PullError;

/// Files of a storage configuration are small; a larger one is something else.
const LARGEST_ENTRY: u64 = 1 << 20;

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The storage configuration as read: the text of each key's file, or why it cannot be read. Holds secrets.
#[derive(Default)]
pub(crate) struct Entries {
    folder: Option<PathBuf>,
    missing: bool,
    texts: BTreeMap<String, Result<String, String>>,
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").field("folder", &self.folder).field("keys", &self.texts.keys()).finish()
    }
}

impl Entries {
    /// Reads all files of the folder, each time anew: mounted secrets change under a running process. What is not a
    /// plain file (a mounted secret has `..data` folders) is no key.
    pub(crate) fn read(folder: Option<&Path>) -> Result<Self, PullError> {
        let Some(folder) = folder else { return Ok(Entries::default()) };
        let mut entries = Entries { folder: Some(folder.to_owned()), ..Entries::default() };
        let files = match std::fs::read_dir(folder) {
            Ok(files) => files,
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
                entries.missing = true;
                return Ok(entries);
            }
            Err(fault) => return Err(PullError::Config(format!("storage config folder {}: {fault}", folder.display()))),
        };
        for file in files {
            let file = file.map_err(|fault| PullError::Config(format!("storage config folder {}: {fault}", folder.display())))?;
            let Ok(key) = file.file_name().into_string() else { continue };
            // The metadata of what a link points to: keys of a mounted secret are links.
            if key.starts_with("..") || !std::fs::metadata(file.path()).is_ok_and(|about| about.is_file()) {
                continue;
            }
            entries.texts.insert(key, read_entry(&file.path()));
        }
        Ok(entries)
    }

    /// The file of `key`: named exactly so, or with `.json` after it.
    fn get(&self, key: &str) -> Option<&Result<String, String>> {
        self.texts.get(key).or_else(|| self.texts.get(&format!("{key}.json")))
    }

    fn place(&self) -> String {
        match &self.folder {
            Some(folder) => folder.display().to_string(),
            None => "none".to_owned(),
        }
    }

    /// What there is instead of a missing key.
    fn instead(&self) -> String {
        match (&self.folder, self.missing) {
            (None, _) => "no storage config folder is set".to_owned(),
            (Some(folder), true) => format!("folder {} does not exist", folder.display()),
            (Some(folder), false) if self.texts.is_empty() => format!("folder {} has no keys", folder.display()),
            (Some(folder), false) => {
                let keys: Vec<&str> = self.texts.keys().map(String::as_str).collect();
                format!("folder {} has the keys {}", folder.display(), keys.join(", "))
            }
        }
    }

    fn parse(&self, key: &str, text: &Result<String, String>) -> Result<Map<String, Value>, PullError> {
        let text = text.as_ref().map_err(|fault| PullError::Config(format!("storage config {key} in {}: {fault}", self.place())))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(entry)) => Ok(entry),
            Ok(_) => Err(PullError::Config(format!("storage config {key} in {} is not a JSON object", self.place()))),
            // Line and column only: the parser's text may quote what it could not read.
            Err(fault) => Err(PullError::Config(format!(
                "storage config {key} in {} is not valid JSON: line {}, column {}",
                self.place(),
                fault.line(),
                fault.column()
            ))),
        }
    }
}

fn read_entry(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|fault| fault.to_string())?;
    let read = file.take(LARGEST_ENTRY + 1).read_to_string(&mut text).map_err(|fault| fault.to_string())?;
    if read as u64 > LARGEST_ENTRY { Err("is larger than 1 MiB".to_owned()) } else { Ok(text) }
}

/// Where a model comes from, ready to be used.
#[derive(Debug)]
pub(crate) enum Source {
    S3(S3Source),
    InPlace(InPlace),
}

/// A bucket, and how to speak with its store.
#[derive(Debug)]
pub(crate) struct S3Source {
    /// Scheme, host, port and an optional path prefix. No user, password, query or fragment.
    pub(crate) endpoint: reqwest::Url,
    pub(crate) region: String,
    pub(crate) bucket: String,
    /// `None`: requests are not signed.
    pub(crate) credential: Option<Credential>,
    /// PEM certificates of the authorities to trust, and no others.
    pub(crate) certificate: Option<String>,
    /// Whether an ETag that looks like an MD5 digest is held against the bytes.
    pub(crate) verify_etag: bool,
    /// How errors name the entry that the credentials came from.
    pub(crate) named: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) key_id: Secret,
    pub(crate) secret: Secret,
}

/// A folder on this machine whose files are used where they are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InPlace {
    pub(crate) root: PathBuf,
    /// How errors name it.
    pub(crate) named: String,
}

impl S3Source {
    /// The store's address as messages show it.
    pub(crate) fn address(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// See [`Source::identity`].
    pub(crate) fn identity(&self, storage: &StorageRef) -> String {
        format!("s3 {} bucket {} {}", self.address(), self.bucket, named_paths(storage))
    }
}

fn named_paths(storage: &StorageRef) -> String {
    match &storage.schema_path {
        None => format!("path {}", storage.path),
        Some(schema) => format!("path {} schema {schema}", storage.path),
    }
}

impl Source {
    /// What tells this source from others, without secrets: the disk tier answers only for the source it was filled from.
    pub(crate) fn identity(&self, storage: &StorageRef) -> String {
        match self {
            Source::S3(s3) => s3.identity(storage),
            Source::InPlace(place) => format!("folder {} {}", place.root.display(), named_paths(storage)),
        }
    }
}

const SUPPORTED: &str = "s3, folder and pvc";

/// Keys that a parameter may set whatever the entry holds: they choose among what the credentials open.
const FREE: [&str; 4] = ["bucket", "container", "default_bucket", "region"];

/// Keys of any type of storage that are secret, or that name the host that secrets are sent to. Other names mean
/// nothing to any provider and may be set freely.
const GUARDED: [&str; 26] = [
    "access_key_id",
    "account_key",
    "account_name",
    "allowed_hosts",
    "ca_bundle",
    "certificate",
    "client_certificate",
    "client_email",
    "client_id",
    "client_key",
    "client_secret",
    "connection_string",
    "endpoint",
    "endpoint_url",
    "headers",
    "host",
    "password",
    "private_key",
    "proxy_url",
    "sas_token",
    "secret_access_key",
    "session_token",
    "tenant_id",
    "token_uri",
    "type",
    "url",
];

const SECRETS: [&str; 12] = [
    "access_key_id",
    "account_key",
    "client_key",
    "client_secret",
    "connection_string",
    "headers",
    "password",
    "private_key",
    "sas_token",
    "secret_access_key",
    "session_token",
    "token",
];

/// The store that `storage` means.
///
/// # Errors
/// [`PullError::Config`] names the key, parameter or type that is wrong, and what there is instead.
pub(crate) fn resolve(entries: &Entries, pvc_mounts: &Path, storage: &StorageRef) -> Result<Source, PullError> {
    let chosen = choose(entries, storage)?;
    let named = chosen.as_ref().map_or_else(|| "the model's storage parameters".to_owned(), |(key, _)| format!("storage config {key}"));
    let from_entry = chosen.map(|(_, entry)| entry).unwrap_or_default();
    let mut config = from_entry.clone();
    for (path, value) in storage.parameters.iter() {
        permit(&from_entry, path, value, &named)?;
        set(&mut config, path, value)?;
    }
    let kind = match config.get("type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        _ => return Err(PullError::Config("Predictor Storage field missing".to_owned())),
    };
    match kind.as_str() {
        "s3" => s3(&config, named).map(Source::S3),
        "folder" => folder(&from_entry, &config, entries, named).map(Source::InPlace),
        "pvc" => claim(&config, pvc_mounts, &named).map(Source::InPlace),
        "gcs" | "azure" | "http" => Err(PullError::Config(format!("storage type {kind:?} is not supported yet, {SUPPORTED} are"))),
        _ => Err(PullError::Config(format!("storage type {kind:?} is not known, {SUPPORTED} are"))),
    }
}

/// A key and its entry.
type Chosen = (String, Map<String, Value>);

/// The entry that applies and its key; `None` where nothing is named and there is no default.
fn choose(entries: &Entries, storage: &StorageRef) -> Result<Option<Chosen>, PullError> {
    if let Some(key) = &storage.key {
        let Some(text) = entries.get(key) else {
            return Err(PullError::Config(format!("Did not find storage config for key {key}: {}", entries.instead())));
        };
        return Ok(Some((key.to_string(), entries.parse(key, text)?)));
    }
    let key = match storage.parameters.get("type") {
        Some(kind) => format!("default_{kind}"),
        None => "default".to_owned(),
    };
    entries.get(&key).map(|text| entries.parse(&key, text).map(|entry| (key.clone(), entry))).transpose()
}

/// Refuses a parameter that would send an entry's credentials elsewhere, or trust somebody else with them.
fn permit(entry: &Map<String, Value>, path: &str, value: &str, named: &str) -> Result<(), PullError> {
    let top = path.split('.').next().unwrap_or(path);
    let carries = entry.iter().any(|(key, held)| SECRETS.contains(&key.as_str()) && !is_empty(held));
    if !carries || FREE.contains(&top) || !GUARDED.contains(&top) {
        return Ok(());
    }
    match entry.get(path) {
        Some(Value::String(held)) if held == value => return Ok(()),
        None if path == "type" => return Ok(()), // the entry leaves the type open, its host is its own
        _ => {}
    }
    if matches!(path, "endpoint_url" | "url") {
        let host = reqwest::Url::parse(value).ok().and_then(|url| url.host_str().map(str::to_owned));
        if host.is_some_and(|host| allowed_hosts(entry).iter().any(|allowed| allowed.eq_ignore_ascii_case(&host))) {
            return Ok(());
        }
        return Err(PullError::Config(format!(
            "parameter {path} may not send the credentials of {named} to another host: add the host to its allowed_hosts"
        )));
    }
    Err(PullError::Config(format!("parameter {path} may not change {named}, which holds credentials: use another storage key")))
}

/// Host names, as a list or separated by commas.
fn allowed_hosts(entry: &Map<String, Value>) -> Vec<String> {
    match entry.get("allowed_hosts") {
        Some(Value::String(hosts)) => hosts.split(',').map(|host| host.trim().to_owned()).collect(),
        Some(Value::Array(hosts)) => hosts.iter().filter_map(|host| host.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Sets the string at a dot path, making objects on the way.
fn set(config: &mut Map<String, Value>, path: &str, value: &str) -> Result<(), PullError> {
    let mut at = config;
    let mut rest = path;
    while let Some((member, deeper)) = rest.split_once('.') {
        at = match at.entry(member).or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(object) => object,
            _ => return Err(PullError::Config(format!("parameter {path} leads through {member}, which is not an object"))),
        };
        rest = deeper;
    }
    match at.get(rest) {
        None | Some(Value::String(_)) => {
            at.insert(rest.to_owned(), Value::String(value.to_owned()));
            Ok(())
        }
        Some(_) => Err(PullError::Config(format!("parameter {path} would overwrite a value that is not a string"))),
    }
}

fn text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

fn s3(config: &Map<String, Value>, named: String) -> Result<S3Source, PullError> {
    let mut faults = Vec::new();
    let endpoint = match text(config, "endpoint_url") {
        None | Some("") => {
            faults.push("endpoint_url is missing".to_owned());
            None
        }
        Some(url) => endpoint(url).map_err(|fault| faults.push(fault)).ok(),
    };
    let bucket = text(config, "bucket").or_else(|| text(config, "default_bucket")).unwrap_or_default();
    if bucket.is_empty() {
        faults.push("no bucket is named: set it in the model's storage parameters or as default_bucket".to_owned());
    } else if bucket.len() > 255 || matches!(bucket, "." | "..") || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        faults.push(format!("bucket {bucket:?} is not a bucket name"));
    }
    let credential = match (text(config, "access_key_id"), text(config, "secret_access_key")) {
        (Some(""), Some("")) => None,
        (Some(key_id), Some(secret)) if !key_id.is_empty() && !secret.is_empty() => {
            if !key_id.bytes().chain(secret.bytes()).all(|b| b.is_ascii_graphic()) {
                faults.push("access_key_id or secret_access_key has a character that cannot be sent (a space or line end?)".to_owned());
            }
            Some(Credential { key_id: Secret(key_id.to_owned()), secret: Secret(secret.to_owned()) })
        }
        _ => {
            faults.push("access_key_id and secret_access_key must both be given (both empty for a public bucket)".to_owned());
            None
        }
    };
    let verify_etag = match text(config, "verify") {
        None | Some("etag") => true,
        Some("length") => false,
        Some(other) => {
            faults.push(format!("verify is {other:?}, it can be etag or length"));
            true
        }
    };
    let region = text(config, "region").filter(|region| !region.is_empty()).unwrap_or("us-east-1");
    if !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        faults.push(format!("region {region:?} is not a region name"));
    }
    match endpoint {
        Some(endpoint) if faults.is_empty() => Ok(S3Source {
            endpoint,
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            credential,
            certificate: text(config, "certificate").filter(|pem| !pem.is_empty()).map(str::to_owned),
            verify_etag,
            named,
        }),
        _ => Err(PullError::Config(format!("{named}: {}", faults.join("; ")))),
    }
}

fn endpoint(written: &str) -> Result<reqwest::Url, String> {
    // The text is not repeated where it may hold a password.
    let url = reqwest::Url::parse(written).map_err(|fault| format!("endpoint_url is not a URL: {fault}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("endpoint_url holds a user or password: use access_key_id and secret_access_key".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("endpoint_url {written:?} is not an http or https URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("endpoint_url has a query or fragment".to_owned());
    }
    Ok(url)
}

fn folder(entry: &Map<String, Value>, config: &Map<String, Value>, entries: &Entries, named: String) -> Result<InPlace, PullError> {
    // Only whoever writes the configuration says which folders of this machine may be read.
    let Some(path) = text(entry, "path").filter(|path| !path.is_empty()) else {
        return Err(PullError::Config(format!("{named}: a folder is named by the path of a storage config entry, which is missing")));
    };
    if text(config, "path") != Some(path) {
        return Err(PullError::Config(format!("parameter path may not change the folder of {named}: use another storage key")));
    }
    Ok(InPlace { root: entries.folder.as_deref().unwrap_or(Path::new("")).join(path), named: format!("the folder of {named}") })
}

fn claim(config: &Map<String, Value>, pvc_mounts: &Path, named: &str) -> Result<InPlace, PullError> {
    let name = text(config, "name").unwrap_or_default();
    if name.is_empty() {
        return Err(PullError::Config(format!("{named}: the name of the volume claim is missing")));
    }
    if name.contains('/') || matches!(name, "." | "..") || name.chars().any(char::is_control) {
        return Err(PullError::Config(format!("{named}: {name:?} is not the name of a volume claim")));
    }
    Ok(InPlace { root: pvc_mounts.join(name), named: format!("volume claim {name}") })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const S3: &str = r#"{"type":"s3","access_key_id":"AKIDEXAMPLE","secret_access_key":"sEcReT","endpoint_url":"https://s3.example:9000",
        "region":"eu-1","default_bucket":"main","allowed_hosts":"mirror.example, other.example"}"#;

    fn entries(texts: &[(&str, &str)]) -> Entries {
        let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), Ok((*text).to_owned()))).collect();
        Entries { folder: Some("/config".into()), missing: false, texts }
    }

    fn storage(key: Option<&str>, parameters: &[(&str, &str)]) -> StorageRef {
        StorageRef {
            key: key.map(Arc::from),
            parameters: Arc::new(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
            path: "m".into(),
            schema_path: None,
        }
    }

    fn resolved(texts: &[(&str, &str)], key: Option<&str>, parameters: &[(&str, &str)]) -> Result<Source, String> {
        resolve(&entries(texts), Path::new("/pvc_mounts"), &storage(key, parameters)).map_err(|fault| {
            assert!(matches!(fault, PullError::Config(_)), "{fault:?}");
            fault.to_string()
        })
    }

    fn bucket(source: Result<Source, String>) -> String {
        match source {
            Ok(Source::S3(s3)) => format!("{} {} {}", s3.address(), s3.region, s3.bucket),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_a_default_of_the_type_or_the_default_is_chosen() {
        let other = S3.replace("main", "other");
        let all = [("named", S3), ("default_s3", other.as_str()), ("default", r#"{"type":"pvc","name":"claim"}"#)];
        assert_eq!(bucket(resolved(&all, Some("named"), &[])), "https://s3.example:9000 eu-1 main");
        assert_eq!(bucket(resolved(&all, Some("named"), &[("bucket", "b")])), "https://s3.example:9000 eu-1 b");
        assert_eq!(bucket(resolved(&all, None, &[("type", "s3")])), "https://s3.example:9000 eu-1 other");
        match resolved(&all, None, &[]) {
            Ok(Source::InPlace(place)) => assert_eq!(place.root, Path::new("/pvc_mounts/claim")),
            other => panic!("{other:?}"),
        }
        match resolved(&[], None, &[("type", "pvc"), ("name", "c2")]) {
            Ok(Source::InPlace(place)) => assert_eq!(place.root, Path::new("/pvc_mounts/c2")),
            other => panic!("{other:?}"),
        }
        assert_eq!(bucket(resolved(&[("k.json", S3)], Some("k"), &[])), "https://s3.example:9000 eu-1 main");
    }

    #[test]
    fn what_cannot_be_resolved_says_what_is_there_instead() {
        for (texts, key, parameters, expected) in [
            (&[("a", S3), ("b", S3)][..], Some("c"), &[][..], "Did not find storage config for key c: folder /config has the keys a, b"),
            (&[], Some("c"), &[], "Did not find storage config for key c: folder /config has no keys"),
            (&[("a", "{")], Some("a"), &[], "storage config a in /config is not valid JSON: line 1, column 1"),
            (&[("a", "[1]")], Some("a"), &[], "storage config a in /config is not a JSON object"),
            (&[], None, &[], "Predictor Storage field missing"),
            (&[("default", r#"{"type":7}"#)], None, &[], "Predictor Storage field missing"),
            (&[], None, &[("type", "ftp")], "storage type \"ftp\" is not known, s3, folder and pvc are"),
            (&[], None, &[("type", "gcs")], "storage type \"gcs\" is not supported yet, s3, folder and pvc are"),
            (&[], None, &[("type", "pvc"), ("name", "../etc")], "the model's storage parameters: \"../etc\" is not the name of a volume claim"),
            (
                &[("a", r#"{"type":"s3"}"#)],
                Some("a"),
                &[],
                "storage config a: endpoint_url is missing; no bucket is named: set it in the model's storage parameters or as default_bucket; \
                 access_key_id and secret_access_key must both be given (both empty for a public bucket)",
            ),
        ] {
            assert_eq!(resolved(texts, key, parameters).map(|_| ()), Err(expected.to_owned()));
        }
        let unset = resolve(&Entries::default(), Path::new("/"), &storage(Some("c"), &[])).expect_err("no folder");
        assert_eq!(unset.to_string(), "Did not find storage config for key c: no storage config folder is set");
    }

    #[test]
    fn parameters_override_strings_by_dot_path() {
        let start = || match serde_json::json!({"key": "v", "struct": {"s1": "a", "list": [1]}, "number": 1}) {
            Value::Object(map) => map,
            _ => unreachable!("an object was written"),
        };
        for (case, path, value, expected) in [
            ("change", "key", "w", Ok(r#"{"key":"w","number":1,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create", "new", "n", Ok(r#"{"key":"v","new":"n","number":1,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create nested", "a.b", "n", Ok(r#"{"a":{"b":"n"},"key":"v","number":1,"struct":{"list":[1],"s1":"a"}}"#)),
            ("create inside nested", "struct.s2", "n", Ok(r#"{"key":"v","number":1,"struct":{"list":[1],"s1":"a","s2":"n"}}"#)),
            ("overwrite an object", "struct", "n", Err("parameter struct would overwrite a value that is not a string")),
            ("overwrite a number", "number", "2", Err("parameter number would overwrite a value that is not a string")),
            ("through a list", "struct.list.0", "n", Err("parameter struct.list.0 leads through list, which is not an object")),
            ("through a string", "key.x", "n", Err("parameter key.x leads through key, which is not an object")),
        ] {
            let mut config = start();
            match (set(&mut config, path, value), expected) {
                (Ok(()), Ok(text)) => {
                    let expected: Value = serde_json::from_str(text).expect("sound");
                    assert_eq!(Value::Object(config), expected, "{case}");
                }
                (Err(fault), Err(text)) => assert_eq!(fault.to_string(), text, "{case}"),
                (got, wanted) => panic!("{case}: {got:?}, wanted {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_parameter_cannot_send_an_entrys_secret_to_another_host() {
        let texts = [("k", S3), ("bearer", r#"{"type":"http","url":"https://a.example","headers":{"Authorization":"sEcReT"}}"#)];
        for (key, path, value, allowed) in [
            ("k", "bucket", "other", true),
            ("k", "region", "eu-2", true),
            ("k", "unrelated", "x", true),
            ("k", "type", "s3", true),
            ("k", "endpoint_url", "https://s3.example:9000", true),
            ("k", "endpoint_url", "https://mirror.example/x", true),
            ("k", "endpoint_url", "https://evil.example", false),
            ("k", "endpoint_url", "https://mirror.example@evil.example", false),
            ("k", "type", "http", false),
            ("k", "url", "https://evil.example", false),
            ("k", "certificate", "pem", false),
            ("k", "allowed_hosts", "evil.example", false),
            ("k", "secret_access_key", "x", false),
            ("bearer", "url", "https://evil.example", false),
            ("bearer", "headers.Host", "evil.example", false),
        ] {
            let entry = match serde_json::from_str(texts.iter().find(|(name, _)| *name == key).expect("listed").1) {
                Ok(Value::Object(entry)) => entry,
                other => panic!("{other:?}"),
            };
            let outcome = permit(&entry, path, value, key);
            assert_eq!(outcome.is_ok(), allowed, "{key} {path}={value}: {outcome:?}");
        }
        // Through the front door too, and where nothing secret is held everything may be set.
        let refused = resolved(&texts, Some("k"), &[("endpoint_url", "http://evil.example")]).map(|_| ()).expect_err("another host");
        assert!(refused.contains("allowed_hosts") && refused.contains("storage config k"), "{refused}");
        let public = r#"{"type":"s3","access_key_id":"","secret_access_key":"","endpoint_url":"http://a:1","bucket":"b"}"#;
        assert_eq!(bucket(resolved(&[("p", public)], Some("p"), &[("endpoint_url", "http://c:2")])), "http://c:2 us-east-1 b");
    }

    #[test]
    fn secrets_are_in_no_text() {
        let source = resolved(&[("k", S3)], Some("k"), &[]).expect("sound");
        let Source::S3(s3) = &source else { panic!("{source:?}") };
        assert_eq!(s3.credential.as_ref().expect("keys").secret.0, "sEcReT");
        for text in [format!("{source:?}"), format!("{:?}", entries(&[("k", S3)])), source.identity(&storage(Some("k"), &[]))] {
            assert!(!text.contains("sEcReT") && !text.contains("AKIDEXAMPLE"), "{text}");
        }
        for broken in [
            S3.replace("https://s3.example:9000", "https://user:sEcReT@s3.example"),
            S3.replace("sEcReT", "sEcReT\\n"),
            S3.replace("\"region\"", "sEcReT"),
            S3.replace("\"region\":\"eu-1\"", "\"region\":\"\\u0001\""),
        ] {
            let text = resolved(&[("k", &broken)], Some("k"), &[]).map(|_| ()).expect_err("broken");
            assert!(!text.contains("sEcReT") && !text.contains("AKIDEXAMPLE"), "{text}");
        }
    }

    #[test]
    fn a_folder_is_named_by_its_entry_alone() {
        let texts = [("rel", r#"{"type":"folder","path":"models"}"#), ("abs", r#"{"type":"folder","path":"/srv/m"}"#)];
        for (key, root) in [("rel", "/config/models"), ("abs", "/srv/m")] {
            match resolved(&texts, Some(key), &[]) {
                Ok(Source::InPlace(place)) => assert_eq!(place.root, Path::new(root)),
                other => panic!("{other:?}"),
            }
        }
        assert!(resolved(&texts, Some("rel"), &[("path", "/etc")]).map(|_| ()).expect_err("changed").contains("may not change the folder"));
        assert!(resolved(&[], None, &[("type", "folder"), ("path", "/etc")]).map(|_| ()).expect_err("no entry").contains("storage config entry"));
    }

    #[test]
    fn a_mounted_secret_is_read_as_its_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("..2026_data");
        std::fs::create_dir(&data).expect("a folder");
        std::fs::write(data.join("k"), S3).expect("written");
        std::os::unix::fs::symlink(&data, folder.path().join("..data")).expect("linked");
        std::os::unix::fs::symlink("..data/k", folder.path().join("k")).expect("linked");
        std::fs::create_dir(folder.path().join("models")).expect("a folder");
        let entries = Entries::read(Some(folder.path())).expect("read");
        assert_eq!(entries.texts.keys().collect::<Vec<_>>(), ["k"]);
        let gone = Entries::read(Some(&folder.path().join("none"))).expect("a missing folder is an empty one");
        let fault = resolve(&gone, Path::new("/"), &storage(Some("k"), &[])).expect_err("missing");
        assert!(fault.to_string().ends_with("none does not exist"), "{fault}");
    }
}
