//! What an entry of type `gcs` says: bucket, address and credential.
//!
//! A private key and its service account are the credential where they are given; an entry without them is anonymous.
//! `credentials` may name the service account of the machine instead. Pure.

use berth_telemetry::Clock;
use reqwest::Url;
use serde_json::{Map, Value};

use super::Link;
use super::token::{Key, Tokens};
use crate::config::{Secret, endpoint, filled, fingerprint, text, verify, word};
use crate::wire::{Trust, Wire, in_the_open, is_here};
use crate::{ConfigFault, Patience, Verify};

/// Google's own store.
const STORE: &str = "https://storage.googleapis.com";

/// Google's own token service.
const TOKENS: &str = "https://oauth2.googleapis.com/token";

/// The service that every machine of Google's has next to it.
const METADATA: &str = "metadata.google.internal";

/// A bucket, and how to speak with its store.
#[derive(Clone, Debug)]
pub struct GcsSettings {
    /// Scheme, host, port and an optional path prefix.
    pub(super) endpoint: Url,
    pub(super) bucket: String,
    pub(super) credential: Credential,
    /// PEM certificates of the authorities to trust, and no others.
    pub(super) certificate: Option<String>,
    pub(crate) verify: Verify,
    /// How errors name the entry that these came from.
    pub(super) named: String,
}

/// As whom the store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// As nobody: the bucket is public.
    Anonymous,
    /// As a service account: a token service gives tokens.
    Token(Grant),
}

/// What proves to a token service who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// A service account's private key.
    Account {
        email: String,
        /// PEM.
        key: Secret,
        /// The token service's URL.
        service: Url,
    },
    /// That we run on one of Google's machines, whose metadata service answers nobody else.
    Instance {
        /// The metadata service; `None` is the machine's.
        service: Option<Url>,
    },
}

impl GcsSettings {
    /// The settings of an entry, whose errors name it `named`.
    pub(crate) fn parse(config: &Map<String, Value>, named: &str) -> Result<Self, ConfigFault> {
        let mut faults = Vec::new();
        let written = filled(config, "endpoint_url").unwrap_or(STORE);
        let endpoint = endpoint("endpoint_url", written).map(without_api).map_err(|fault| faults.push(fault)).ok();
        let bucket = text(config, "bucket").or_else(|| text(config, "default_bucket")).unwrap_or_default();
        if bucket.is_empty() {
            faults.push("no bucket is named: set it in the model's storage parameters or as default_bucket".to_owned());
        } else if bucket.len() > 222 || matches!(bucket, "." | "..") || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            faults.push(format!("bucket {bucket:?} is not a bucket name"));
        }
        let credential = credential(config, &mut faults);
        let verify = verify(config, &mut faults);
        if let (Some(endpoint), Some(Credential::Token(_))) = (&endpoint, &credential)
            && in_the_open(endpoint)
        {
            faults.push(format!("a token would travel in the open to {endpoint}: endpoint_url must be https"));
        }
        match (endpoint, credential) {
            (Some(endpoint), Some(credential)) if faults.is_empty() => Ok(GcsSettings {
                endpoint,
                bucket: bucket.to_owned(),
                credential,
                certificate: filled(config, "certificate").map(str::to_owned),
                verify,
                named: named.to_owned(),
            }),
            _ => Err(ConfigFault(format!("{named}: {}", faults.join("; ")))),
        }
    }

    /// The store's address as messages show it.
    pub(super) fn address(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    pub(crate) fn identity(&self) -> String {
        format!("gcs {} bucket {}", self.address(), self.bucket)
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut fields = vec!["gcs", self.address(), self.certificate.as_deref().unwrap_or_default()];
        match &self.credential {
            Credential::Anonymous => fields.push("anonymous"),
            Credential::Token(Grant::Account { email, key, service }) => fields.extend(["account", email, &key.0, service.as_str()]),
            Credential::Token(Grant::Instance { service }) => fields.extend(["instance", service.as_ref().map_or("", Url::as_str)]),
        }
        fingerprint(&fields)
    }

    pub(crate) fn link(&self, patience: Patience, clock: Clock) -> Result<Link, ConfigFault> {
        let certificate = self.certificate.as_deref();
        let trust = |url: &Url, certificate, direct| Trust {
            plain: url.scheme() == "http",
            certificate,
            public: false,
            identity: None,
            direct,
            metadata: false,
            named: &self.named,
        };
        let wire = Wire::new(trust(&self.endpoint, certificate, is_here(&self.endpoint)), patience, clock.clone())?;
        let tokens = match &self.credential {
            Credential::Anonymous => None,
            Credential::Token(grant) => {
                let tokens = match grant {
                    Grant::Account { email, key, service } => {
                        // The certificate is about the store, and about what stands in for Google's services beside it.
                        let certificate = certificate.filter(|_| !is_googles(service));
                        let wire = Wire::new(trust(service, certificate, is_here(service)), patience, clock)?;
                        let key = Key::parse(&key.0).map_err(|why| ConfigFault(format!("{}: {why}", self.named)))?;
                        Tokens::of_account(email.clone(), key, service.clone(), wire, &self.named)
                    }
                    Grant::Instance { service } => {
                        let service = service.clone().map_or_else(metadata_service, Ok);
                        let service = service.map_err(|why| ConfigFault(format!("{}: {why}", self.named)))?;
                        Tokens::of_instance(
                            service.clone(),
                            Wire::new(Trust { metadata: true, ..trust(&service, None, true) }, patience, clock)?,
                            &self.named,
                        )
                    }
                };
                Some(tokens)
            }
        };
        Ok(Link { wire, tokens })
    }
}

/// Clients of other makes want the API's own path in their address.
fn without_api(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/');
    if let Some(prefix) = path.strip_suffix("/storage/v1") {
        let prefix = prefix.to_owned();
        url.set_path(&prefix);
    }
    url
}

fn is_googles(service: &Url) -> bool {
    service.host_str().is_some_and(|host| host == "googleapis.com" || host.ends_with(".googleapis.com"))
}

/// The metadata service of this machine, which its environment may move.
fn metadata_service() -> Result<Url, String> {
    let host = std::env::var("GCE_METADATA_HOST").ok().filter(|host| !host.is_empty());
    let url = Url::parse(&format!("http://{}", host.as_deref().unwrap_or(METADATA)));
    url.map_err(|fault| format!("GCE_METADATA_HOST names no host: {fault}"))
}

fn credential(config: &Map<String, Value>, faults: &mut Vec<String>) -> Option<Credential> {
    for key in ["private_key", "client_email", "token_uri", "credentials"] {
        if config.get(key).is_some_and(|value| !value.is_string()) {
            faults.push(format!("{key} is not a string"));
            return None;
        }
    }
    let account = (filled(config, "private_key"), filled(config, "client_email"));
    let chosen = match (filled(config, "credentials"), account) {
        (Some("anonymous"), _) | (None, (None, None)) => return Some(Credential::Anonymous),
        (Some("instance"), (None, None)) => return Some(Credential::Token(Grant::Instance { service: None })),
        (Some("instance"), _) => Err("credentials is \"instance\", but private_key or client_email is given too".to_owned()),
        (None | Some("service_account"), (Some(key), Some(email))) => Ok((key, email)),
        (None | Some("service_account"), _) => Err("private_key and client_email must be given together (neither for a public bucket)".to_owned()),
        (Some(other), _) => Err(format!("credentials is {}, it can be service_account, anonymous or instance", word(other))),
    };
    let (key, email) = chosen.map_err(|fault| faults.push(fault)).ok()?;
    if let Err(fault) = Key::parse(key) {
        faults.push(fault);
    }
    let service = match endpoint("token_uri", filled(config, "token_uri").unwrap_or(TOKENS)) {
        Ok(url) if in_the_open(&url) => Err(format!("token_uri {url} must be https: the account's statement would travel in the open")),
        other => other,
    };
    let service = service.map_err(|fault| faults.push(fault)).ok()?;
    Some(Credential::Token(Grant::Account { email: email.to_owned(), key: Secret(key.to_owned()), service }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcs::tests::KEY;

    fn parsed(entry: &str) -> Result<GcsSettings, String> {
        let entry = entry.replace("KEY", &KEY.replace('\n', "\\n"));
        let Ok(Value::Object(entry)) = serde_json::from_str(&entry) else { panic!("{entry}") };
        GcsSettings::parse(&entry, "storage config k").map_err(|fault| fault.to_string())
    }

    #[test]
    fn an_entry_names_its_store_its_bucket_and_its_credential() {
        let instance = || Credential::Token(Grant::Instance { service: None });
        let account = |service: &str| {
            let service = service.parse().expect("a URL");
            Credential::Token(Grant::Account { email: "a@p.example".to_owned(), key: Secret(KEY.to_owned()), service })
        };
        for (entry, identity, credential) in [
            (r#"{"bucket":"b"}"#, "gcs https://storage.googleapis.com bucket b", Credential::Anonymous),
            (r#"{"default_bucket":"d","endpoint_url":""}"#, "gcs https://storage.googleapis.com bucket d", Credential::Anonymous),
            (r#"{"bucket":"b","default_bucket":"d","private_key":"","client_email":""}"#, "", Credential::Anonymous),
            (r#"{"bucket":"b","private_key":"KEY","client_email":"a@p.example"}"#, "", account(TOKENS)),
            (r#"{"bucket":"b","private_key":"KEY","client_email":"a@p.example","credentials":"service_account"}"#, "", account(TOKENS)),
            (r#"{"bucket":"b","private_key":"KEY","client_email":"a@p.example","credentials":"anonymous"}"#, "", Credential::Anonymous),
            (
                r#"{"bucket":"b","private_key":"KEY","client_email":"a@p.example","token_uri":"http://127.0.0.1:9/t"}"#,
                "",
                account("http://127.0.0.1:9/t"),
            ),
            (r#"{"bucket":"b","credentials":"instance"}"#, "", instance()),
            (r#"{"bucket":"b","endpoint_url":"http://gcs.example:4443/storage/v1/"}"#, "gcs http://gcs.example:4443 bucket b", Credential::Anonymous),
            (r#"{"bucket":"b","endpoint_url":"https://x.example/p/"}"#, "gcs https://x.example/p bucket b", Credential::Anonymous),
        ] {
            let settings = parsed(entry).unwrap_or_else(|why| panic!("{entry}: {why}"));
            let expected = if identity.is_empty() { "gcs https://storage.googleapis.com bucket b" } else { identity };
            assert_eq!((settings.identity().as_str(), &settings.credential), (expected, &credential), "{entry}");
        }
    }

    #[test]
    fn an_entry_that_cannot_work_says_why_without_its_secrets() {
        for (entry, expected) in [
            ("{}", "storage config k: no bucket is named: set it in the model's storage parameters or as default_bucket"),
            (r#"{"bucket":"a/b"}"#, "bucket \"a/b\" is not a bucket name"),
            (r#"{"bucket":"b","private_key":"sEcReT"}"#, "private_key and client_email must be given together"),
            (r#"{"bucket":"b","client_email":"e"}"#, "private_key and client_email must be given together"),
            (r#"{"bucket":"b","credentials":"service_account"}"#, "private_key and client_email must be given together"),
            (r#"{"bucket":"b","private_key":"sEcReT","client_email":"e"}"#, "private_key is not the PEM text of an RSA key"),
            (r#"{"bucket":"b","private_key":["sEcReT"],"client_email":"e"}"#, "private_key is not a string"),
            (
                r#"{"bucket":"b","private_key":"-----BEGIN PRIVATE KEY-----\nc0VjUmVU\n-----END PRIVATE KEY-----","client_email":"e"}"#,
                "private_key is not the PEM text of an RSA key",
            ),
            (r#"{"bucket":"b","credentials":"instance","client_email":"e"}"#, "but private_key or client_email is given too"),
            (r#"{"bucket":"b","credentials":"sEcReT"}"#, "credentials is something else, it can be service_account"),
            (r#"{"bucket":"b","credentials":"metadata"}"#, "it can be service_account, anonymous or instance"),
            (r#"{"bucket":"b","private_key":"KEY","client_email":"e","token_uri":"http://x.example"}"#, "token_uri http://x.example/ must be https"),
            (r#"{"bucket":"b","private_key":"KEY","client_email":"e","token_uri":"https://u:sEcReT@x"}"#, "token_uri holds a user or password"),
            (r#"{"bucket":"b","credentials":"instance","endpoint_url":"http://x.example"}"#, "would travel in the open to http://x.example/"),
            (r#"{"bucket":"b","endpoint_url":"http://169.254.169.254"}"#, "is the address of a metadata service, which is no store"),
            (r#"{"bucket":"b","endpoint_url":"ftp://x","verify":"no"}"#, "is not an http or https URL; verify is \"no\""),
        ] {
            let fault = parsed(entry).map(|_| ()).expect_err(entry);
            assert!(fault.starts_with("storage config k: ") && fault.contains(expected), "{entry}: {fault}");
            assert!(!fault.contains("sEcReT") && !fault.contains("c0VjUmVU") && !fault.contains(&KEY[40..80]), "{fault}");
        }
    }

    #[test]
    fn settings_print_without_secrets_and_differ_by_them() {
        let with = |more: &str| parsed(&format!(r#"{{"bucket":"b",{more}}}"#)).expect("sound");
        let all = [
            with(r#""verify":"length""#),
            with(r#""certificate":"pem""#),
            with(r#""credentials":"instance""#),
            with(r#""private_key":"KEY","client_email":"a""#),
            with(r#""private_key":"KEY","client_email":"b""#),
            with(r#""private_key":"KEY","client_email":"b","token_uri":"https://t.example""#),
            with(r#""endpoint_url":"https://x.example""#),
        ];
        for (i, settings) in all.iter().enumerate() {
            let text = format!("{settings:?} {}", settings.identity());
            assert!(!text.contains("PRIVATE") && !text.contains(&KEY[40..80]), "{text}");
            for other in &all[..i] {
                assert_ne!(settings.fingerprint(), other.fingerprint(), "{settings:?} and {other:?}");
            }
        }
        assert_eq!(all[0].verify, Verify::Length);
        let other = parsed(r#"{"bucket":"other"}"#).expect("sound");
        assert_eq!(all[0].fingerprint(), other.fingerprint(), "buckets share connections");
    }
}
