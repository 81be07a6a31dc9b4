//! What the parameters of a model may change of an entry.
//!
//! Whoever can write a model can write any parameter, and need not be who wrote the entry. So a parameter never moves an
//! entry's credentials to another host, another trust or another form, and never brings the credentials of the pod itself
//! (the role of its instance, the token of its service account) into play: that is for an entry to say. What the entry
//! leaves to models is among what its credentials open: buckets, containers, paths.

use reqwest::Url;
use serde_json::{Map, Value};

use super::dot_path;
use super::keys::{filled, text, word};
use crate::ConfigFault;

/// Keys that a parameter may set whatever the entry holds: they choose among what the credentials open. Where a host is
/// made of one (`region`, a bucket in a host name), it stays a host of the entry's store.
const FREE: [&str; 6] = ["bucket", "container", "default_bucket", "name", "region", "verify"];

/// Keys that name the host that secrets are sent to, whom to trust with them, and in what form they go.
const GUARDED: [&str; 25] = [
    "account_name",
    "addressing",
    "allowed_hosts",
    "authority_host",
    "ca_bundle",
    "certificate",
    "client_certificate",
    "client_email",
    "client_id",
    "credentials",
    "endpoint",
    "endpoint_url",
    "federated_token_file",
    "host",
    "metadata_endpoint",
    "proxy_url",
    "role_arn",
    "role_session_name",
    "service_account",
    "sts_endpoint",
    "tenant_id",
    "token_uri",
    "type",
    "url",
    "use_emulator",
];

/// Keys that are secret themselves, or lead to a secret.
const SECRETS: [&str; 14] = [
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
    "service_account_key",
    "session_token",
    "token",
    "web_identity_token_file",
];

/// Checks all parameters of a model against the entry that they change. `config` is what came of them, of type `kind`.
pub(super) fn check<'a>(
    entry: Option<&Map<String, Value>>,
    config: &Map<String, Value>,
    kind: &str,
    parameters: impl Iterator<Item = (&'a str, &'a str)>,
    named: &str,
) -> Result<(), ConfigFault> {
    let lent = of_pod(kind, config);
    if lent && !entry.is_some_and(|entry| lends(entry, config, kind)) {
        return Err(ConfigFault(match (kind, filled(config, "credentials")) {
            ("s3", None) => format!(
                "{named}: no credentials are given: name a storage key that has them, or give access_key_id and secret_access_key \
                 (both empty for a public bucket)"
            ),
            (_, chosen) => format!(
                "{named}: only an entry of the storage config may choose credentials {}, no parameter of a model",
                word(chosen.unwrap_or_default())
            ),
        }));
    }
    let Some(entry) = entry.filter(|entry| lent || carries(entry)) else { return Ok(()) };
    parameters.into_iter().try_for_each(|(path, value)| permit(entry, path, value, named))
}

/// Whether these settings are used with credentials of the pod itself. What nobody knows counts as one of those.
fn of_pod(kind: &str, config: &Map<String, Value>) -> bool {
    match config.get("credentials") {
        Some(Value::String(chosen)) if !chosen.is_empty() => !OWN.contains(&chosen.as_str()),
        None | Some(Value::String(_)) => kind == "s3" && ["access_key_id", "secret_access_key"].iter().all(|key| text(config, key).is_none()),
        Some(_) => true,
    }
}

/// Values of `credentials` that use what is written down, or nothing.
const OWN: [&str; 3] = ["anonymous", "service_account", "static"];

/// Whether the entry by itself asks for the credentials of the pod that `config` uses.
fn lends(entry: &Map<String, Value>, config: &Map<String, Value>, kind: &str) -> bool {
    match filled(config, "credentials") {
        Some(chosen) => filled(entry, "credentials") == Some(chosen),
        None => text(entry, "type") == Some(kind) && of_pod(kind, entry),
    }
}

/// Whether an entry holds a secret that somebody else could want.
fn carries(entry: &Map<String, Value>) -> bool {
    let in_address = |key: &str| {
        // Addresses hold secrets too: a password, a signature.
        let url = text(entry, key).and_then(|url| Url::parse(url).ok());
        url.is_some_and(|url| !url.username().is_empty() || url.password().is_some() || url.query().is_some())
    };
    SECRETS.iter().any(|key| entry.get(*key).is_some_and(|held| !is_empty(held))) || ["endpoint_url", "url"].into_iter().any(in_address)
}

/// Refuses a parameter that would send an entry's credentials elsewhere, or trust somebody else with them. Names that
/// are in no list mean nothing to any provider.
fn permit(entry: &Map<String, Value>, path: &str, value: &str, named: &str) -> Result<(), ConfigFault> {
    let top = path.split('.').next().unwrap_or(path);
    if FREE.contains(&top) || !(GUARDED.contains(&top) || SECRETS.contains(&top)) {
        return Ok(());
    }
    let held = dot_path::get(entry, path);
    if held.and_then(Value::as_str) == Some(value) || (held.is_none() && path == "type") {
        return Ok(()); // where the entry leaves the type open, its host is its own all the same
    }
    let elsewhere = ["connection_string", "endpoint_url"].iter().any(|key| filled(entry, key).is_some());
    let address = match path {
        "endpoint_url" | "url" => value.to_owned(),
        // The entry says where its host is: the account makes none.
        "account_name" if held.is_none() && elsewhere => return Ok(()),
        // The host that an account's name makes; another account is another host.
        "account_name" if held.is_none() && value.bytes().all(|b| b.is_ascii_alphanumeric()) => format!("https://{value}.blob.core.windows.net"),
        _ => return Err(ConfigFault(format!("parameter {path} may not change {named}, which holds credentials: use another storage key"))),
    };
    if allows(entry, path, &address) {
        return Ok(());
    }
    Err(ConfigFault(format!("parameter {path} may not send the credentials of {named} to another host: add the host to its allowed_hosts")))
}

/// Whether an entry's credentials may go to `address`: to the place that the entry itself gives, and to its
/// `allowed_hosts`, unless they would leave the protection of TLS.
fn allows(entry: &Map<String, Value>, path: &str, address: &str) -> bool {
    let Ok(url) = Url::parse(address) else { return false };
    let own = text(entry, path).and_then(|own| Url::parse(own).ok());
    if own.as_ref().is_some_and(|own| own.origin() == url.origin()) {
        return true;
    }
    // Without an address of its own an entry's store speaks TLS.
    let bare = url.scheme() == "http" && own.is_none_or(|own| own.scheme() == "https");
    allowed_hosts(entry).iter().any(|item| if item.contains("://") { is_origin(item, &url) } else { !bare && is_host(item, &url) })
}

/// Whether `url` is at one of these hosts.
pub(crate) fn is_among(hosts: &[String], url: &Url) -> bool {
    hosts.iter().any(|item| if item.contains("://") { is_origin(item, url) } else { is_host(item, url) })
}

fn is_origin(item: &str, url: &Url) -> bool {
    Url::parse(item).is_ok_and(|item| item.origin() == url.origin())
}

/// A host with any port, or with one.
fn is_host(item: &str, url: &Url) -> bool {
    // As the host of an address of the same scheme, so that both are written alike.
    let Ok(allowed) = Url::parse(&format!("{}://{item}", url.scheme())) else { return false };
    let port = item.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let same_port = port.is_none() || allowed.port_or_known_default() == url.port_or_known_default();
    allowed.host_str().is_some_and(|host| !host.is_empty()) && allowed.host_str() == url.host_str() && same_port && allowed.path() == "/"
}

/// The hosts that an entry's credentials may go to besides its own: a list, or separated by commas. Each is a host, a
/// host with a port, or scheme, host and port.
pub(crate) fn allowed_hosts(entry: &Map<String, Value>) -> Vec<String> {
    let items: Vec<&str> = match entry.get("allowed_hosts") {
        Some(Value::String(hosts)) => hosts.split(',').collect(),
        Some(Value::Array(hosts)) => hosts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    items.into_iter().map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
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

/// Whether a key is in one of the lists.
#[cfg(test)]
pub(super) fn knows(key: &str) -> bool {
    FREE.contains(&key) || GUARDED.contains(&key) || SECRETS.contains(&key)
}
