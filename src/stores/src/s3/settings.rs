//! From the keys of an entry to a bucket and how to speak with its store.

use std::net::IpAddr;

use berth_telemetry::Clock;
use reqwest::Url;
use serde_json::{Map, Value};

use super::Link;
use super::credentials::{Credentials, Environment, Signer};
use crate::config::{Secret, endpoint, filled, fingerprint, text, verify, word};
use crate::wire::{Trust, Wire, is_here};
use crate::{ConfigFault, Patience, Verify};

/// Where a bucket's name stands in the addresses of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addressing {
    /// First in the path.
    Path,
    /// First in the host name.
    Virtual,
}

/// A bucket, and how to speak with its store.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// Scheme, host, port and an optional path prefix. No user, password, query or fragment.
    pub(crate) endpoint: Url,
    pub(crate) addressing: Addressing,
    pub(crate) region: String,
    pub(crate) bucket: String,
    pub(crate) credentials: Credentials,
    /// PEM certificates of the authorities to trust, and no others.
    pub(crate) certificate: Option<String>,
    pub(crate) verify: Verify,
    /// How errors name the entry that these came from.
    pub(crate) named: String,
}

/// The domain of the services of `region`: China's are apart.
fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

impl S3Settings {
    pub(crate) fn parse(config: &Map<String, Value>, named: &str) -> Result<Self, ConfigFault> {
        let mut faults = Vec::new();
        let region = filled(config, "region").unwrap_or("us-east-1");
        if !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            faults.push(format!("region {region:?} is not a region name"));
        }
        let own = filled(config, "endpoint_url");
        let endpoint = match own {
            Some(url) => endpoint("endpoint_url", url),
            None => Url::parse(&format!("https://s3.{region}.{}", domain(region))).map_err(|_| "the region makes no address".to_owned()),
        };
        let endpoint = endpoint.map_err(|fault| faults.push(fault)).ok();
        let bucket = text(config, "bucket").or_else(|| text(config, "default_bucket")).unwrap_or_default();
        if bucket.is_empty() {
            faults.push("no bucket is named: set it in the model's storage parameters or as default_bucket".to_owned());
        } else if bucket.len() > 255 || matches!(bucket, "." | "..") || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            faults.push(format!("bucket {bucket:?} is not a bucket name"));
        }
        let addressing = match filled(config, "addressing") {
            Some("path") => Addressing::Path,
            Some("virtual") => {
                if !is_label(bucket) {
                    faults.push(format!("bucket {bucket:?} cannot be part of a host name: set addressing to path"));
                }
                if endpoint.as_ref().is_some_and(|url| url.host_str().is_some_and(is_address)) {
                    faults.push("endpoint_url names a host by its address, which leaves no room for a bucket: set addressing to path".to_owned());
                }
                Addressing::Virtual
            }
            Some(other) => {
                faults.push(format!("addressing is {}, it can be path or virtual", word(other)));
                Addressing::Path
            }
            // A bucket with dots fits no certificate.
            None if own.is_none() && is_label(bucket) => Addressing::Virtual,
            None => Addressing::Path,
        };
        let credentials = credentials(config, &mut faults);
        let verify = verify(config, &mut faults);
        match (endpoint, credentials) {
            (Some(endpoint), Some(credentials)) if faults.is_empty() => {
                let settings = S3Settings {
                    endpoint,
                    addressing,
                    region: region.to_owned(),
                    bucket: bucket.to_owned(),
                    credentials,
                    certificate: filled(config, "certificate").map(str::to_owned),
                    verify,
                    named: named.to_owned(),
                };
                match Url::parse(&settings.base()) {
                    Ok(_) => Ok(settings),
                    Err(fault) => Err(ConfigFault(format!("{named}: bucket {bucket:?} and the store's host make no address: {fault}"))),
                }
            }
            _ => Err(ConfigFault(format!("{named}: {}", faults.join("; ")))),
        }
    }

    /// The store's address as messages show it.
    pub(crate) fn address(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// The bucket's address, without a slash at its end.
    pub(crate) fn base(&self) -> String {
        match self.addressing {
            Addressing::Path => format!("{}/{}", self.address(), self.bucket),
            Addressing::Virtual => {
                let (scheme, rest) = self.address().split_once("://").expect("an endpoint was parsed as http or https");
                format!("{scheme}://{}.{rest}", self.bucket)
            }
        }
    }

    pub(crate) fn identity(&self) -> String {
        format!("s3 {} bucket {}", self.address(), self.bucket)
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let [kind, first, second, third] = self.credentials.fields();
        let certificate = self.certificate.as_deref().unwrap_or_default();
        fingerprint(&["s3", self.address(), &self.region, kind, first, second, third, certificate])
    }

    pub(crate) fn link(&self, patience: Patience, clock: Clock) -> Result<Link, ConfigFault> {
        self.link_in(&Environment::of_process(), patience, clock)
    }

    pub(super) fn link_in(&self, environment: &Environment, patience: Patience, clock: Clock) -> Result<Link, ConfigFault> {
        let plain = self.endpoint.scheme() == "http";
        let direct = is_here(&self.endpoint);
        let (certificate, named) = (self.certificate.as_deref(), self.named.as_str());
        let trust = Trust { plain, certificate, public: false, identity: None, direct, metadata: false, named };
        let wire = Wire::new(trust, patience, clock.clone())?;
        let place = (self.region.as_str(), domain(&self.region));
        let signer = Signer::new(&self.credentials, environment, place, &self.named, patience, clock)?;
        Ok(Link { wire, signer })
    }
}

/// Whether a name can be one label of a host name, and stands for itself there: `xn--` begins what is written in another form.
fn is_label(bucket: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&bucket.len()) && bucket.bytes().all(inner) && !bucket.starts_with('-') && !bucket.ends_with('-') && !bucket.starts_with("xn--")
}

fn is_address(host: &str) -> bool {
    host.starts_with('[') || host.parse::<IpAddr>().is_ok()
}

fn credentials(config: &Map<String, Value>, faults: &mut Vec<String>) -> Option<Credentials> {
    for key in ["access_key_id", "secret_access_key", "session_token", "credentials", "role_arn", "web_identity_token_file"] {
        if config.get(key).is_some_and(|value| !value.is_string()) {
            faults.push(format!("{key} is not a string"));
            return None;
        }
    }
    let keys = (text(config, "access_key_id"), text(config, "secret_access_key"));
    let token = filled(config, "session_token");
    let named = |key: &str| filled(config, key).map(str::to_owned);
    let web_identity = || Credentials::WebIdentity { role: named("role_arn"), token_file: named("web_identity_token_file") };
    let held = matches!(keys, (Some(key), _) | (_, Some(key)) if !key.is_empty());
    let chosen = match (filled(config, "credentials"), keys) {
        (Some("anonymous"), _) | (None, (Some(""), Some(""))) => Ok(Credentials::Anonymous),
        (None | Some("static"), (Some(key_id), Some(secret))) if !key_id.is_empty() && !secret.is_empty() => {
            let texts = [key_id, secret, token.unwrap_or("none")];
            if !texts.iter().all(|text| text.bytes().all(|b| b.is_ascii_graphic())) {
                faults
                    .push("access_key_id, secret_access_key or session_token has a character that cannot be sent (a space or line end?)".to_owned());
            }
            let secret = |text: &str| Secret(text.to_owned());
            Ok(Credentials::Static { key_id: secret(key_id), secret: secret(texts[1]), token: token.map(secret) })
        }
        (None, (None, None)) if filled(config, "role_arn").or(filled(config, "web_identity_token_file")).is_some() => Ok(web_identity()),
        (None, (None, None)) => Ok(Credentials::Environment),
        (None | Some("static"), _) => Err("access_key_id and secret_access_key must both be given (both empty for a public bucket)".to_owned()),
        (Some(way @ ("environment" | "web_identity" | "instance")), _) if held => {
            Err(format!("credentials is {way:?}, but access_key_id or secret_access_key is given too"))
        }
        (Some("environment"), _) => Ok(Credentials::Environment),
        (Some("web_identity"), _) => Ok(web_identity()),
        (Some("instance"), _) => Ok(Credentials::Instance),
        (Some(other), _) => Err(format!("credentials is {}, it can be static, anonymous, environment, web_identity or instance", word(other))),
    };
    if token.is_some() && matches!(chosen, Ok(Credentials::Environment | Credentials::WebIdentity { .. } | Credentials::Instance)) {
        faults.push("session_token is given without access_key_id and secret_access_key".to_owned());
    }
    chosen.map_err(|fault| faults.push(fault)).ok()
}
