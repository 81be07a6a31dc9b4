//! Tokens of Google's identity service, and who is given one.
//!
//! A service account signs a statement with its private key and trades it for a token that may read and nothing else; a
//! machine of Google's is given one by the metadata service next to it. One question at a time is under way: whoever
//! needs a token meanwhile waits for its answer. A failure is told to those who waited for it and then forgotten.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{HeaderValue, Method, StatusCode, header};
use object_store::client::HttpRequestBody;
use parking_lot::Mutex;
use reqwest::Url;
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SigningKey;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::wire::{Wire, encode, one_line, retry_after};
use crate::{Fault, FaultKind};

/// What a token may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// How long a statement is good for: as long as the service allows.
const STATED: u64 = 3600;

/// A token is not used in the last minutes of its life: requests take time, and clocks differ.
const SPARE: Duration = Duration::from_secs(225);

/// No token is good for longer than a day; who says so is asked again.
const LONGEST: u64 = 24 * 3600;

/// Answers of token services are short.
const LARGEST: usize = 64 << 10;

/// The RSA key of a service account.
#[derive(Clone)]
pub(super) struct Key(Arc<dyn SigningKey>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    /// No error repeats any of the text.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        let why = || "private_key is not the PEM text of an RSA key".to_owned();
        // Copied out of a file of JSON, its line ends are often written out.
        let pem = pem.replace("\\n", "\n");
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| why())?;
        let key = rustls::crypto::ring::sign::any_supported_type(&der).map_err(|_| why())?;
        let key = Key(key);
        key.sign(b"").map(|_| key).ok_or_else(why)
    }

    /// RSA with SHA-256, as tokens are signed. `None` where the key is of another kind.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])?.sign(message).ok()
    }

    /// What the account `email` states to `service` at `now`, in seconds since the epoch.
    fn statement(&self, email: &str, service: &Url, now: u64) -> Option<String> {
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        // The service does not take what was stated in its future.
        let from = now.saturating_sub(10);
        let claims = json!({"iss": email, "scope": SCOPE, "aud": service.as_str(), "iat": from, "exp": from + STATED});
        let stated = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.sign(stated.as_bytes())?);
        Some(format!("{stated}.{signature}"))
    }
}

/// What opens the store for a while.
pub(super) struct Token {
    bearer: HeaderValue,
    /// When another one is asked for.
    until: Instant,
}

impl Token {
    /// The value of the header `Authorization`.
    pub(super) fn bearer(&self) -> HeaderValue {
        self.bearer.clone()
    }
}

/// Why there is no token.
#[derive(Clone)]
struct Refusal {
    kind: FaultKind,
    why: String,
}

type Asking = Shared<BoxFuture<'static, Result<Arc<Token>, Refusal>>>;

/// Who asks for tokens, and where.
struct Asker {
    way: Way,
    service: Url,
    wire: Wire,
    named: String,
}

enum Way {
    Account { email: String, key: Key },
    Instance,
}

/// The tokens of one credential.
pub(super) struct Tokens {
    asker: Arc<Asker>,
    /// The last question, answered or not.
    asked: Mutex<Option<Asking>>,
}

impl Tokens {
    /// Tokens of the service account `email`.
    pub(super) fn of_account(email: String, key: Key, service: Url, wire: Wire, named: &str) -> Self {
        Self::new(Asker { way: Way::Account { email, key }, service, wire, named: named.to_owned() })
    }

    /// Tokens of the service account of this machine, from the metadata service at `host`.
    pub(super) fn of_instance(mut host: Url, wire: Wire, named: &str) -> Self {
        host.set_path("/computeMetadata/v1/instance/service-accounts/default/token");
        Self::new(Asker { way: Way::Instance, service: host, wire, named: named.to_owned() })
    }

    fn new(asker: Asker) -> Self {
        Tokens { asker: Arc::new(asker), asked: Mutex::new(None) }
    }

    /// A token that has not ended yet.
    pub(super) async fn token(&self, what: &str) -> Result<Arc<Token>, Fault> {
        let asking = self.asking();
        asking.await.map_err(|Refusal { kind, why }| Fault::new(kind, what, why))
    }

    /// Forgets `token`, which the store did not take.
    pub(super) fn forget(&self, token: &Arc<Token>) {
        let mut asked = self.asked.lock();
        let held = asked.as_ref().and_then(|asking| asking.peek());
        // Somebody else may have been faster: then there is a new one already.
        if matches!(held, Some(Ok(held)) if Arc::ptr_eq(held, token)) {
            *asked = None;
        }
    }

    /// The question that is under way or whose answer is still good, or else a new one.
    fn asking(&self) -> Asking {
        let mut asked = self.asked.lock();
        let now = self.asker.wire.clock().now();
        let good = |asking: &&Asking| match asking.peek() {
            None => true,
            Some(Ok(token)) => now < token.until,
            Some(Err(_)) => false,
        };
        if let Some(asking) = asked.as_ref().filter(good) {
            return asking.clone();
        }
        let asker = Arc::clone(&self.asker);
        let asking = async move { asker.ask().await.map(Arc::new) }.boxed().shared();
        // On its own: whoever waits may give up, and the answer is for all.
        tokio::spawn(asking.clone());
        *asked = Some(asking.clone());
        asking
    }
}

impl Asker {
    async fn ask(&self) -> Result<Token, Refusal> {
        let unsent = |fault: Fault| Refusal { kind: fault.kind, why: format!("no token: {fault}{}", self.doubt(fault.kind)) };
        let what = format!("the token service {}", self.service);
        let mut request = Wire::request(self.service.as_str(), http::HeaderMap::new(), &what).map_err(unsent)?;
        match &self.way {
            Way::Account { email, key } => {
                let now = self.wire.clock().wall().0 / 1000;
                let statement = key.statement(email, &self.service, now).ok_or_else(|| {
                    let why = format!("private_key of {} does not sign", self.named);
                    Refusal { kind: FaultKind::Config, why }
                })?;
                let grant = encode("urn:ietf:params:oauth:grant-type:jwt-bearer", false);
                *request.method_mut() = Method::POST;
                *request.body_mut() = HttpRequestBody::from(format!("grant_type={grant}&assertion={statement}"));
                request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            Way::Instance => {
                request.headers_mut().insert("metadata-flavor", HeaderValue::from_static("Google"));
            }
        }
        let begun = self.wire.clock().now();
        let response = self.wire.send(request, &what).await.map_err(unsent)?;
        let (status, pause) = (response.status(), retry_after(response.headers()));
        if !status.is_success() {
            return Err(self.refused(status, pause, &self.wire.error_text(response, &what).await));
        }
        let body = self.wire.read(response, LARGEST, &what).await.map_err(unsent)?;
        granted(&body, begun).ok_or_else(|| {
            let why = format!("no token: the answer of {what} holds no access_token that can be sent");
            Refusal { kind: FaultKind::Config, why }
        })
    }

    fn refused(&self, status: StatusCode, pause: Option<Duration>, body: &[u8]) -> Refusal {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Said {
            error: String,
            error_description: String,
        }
        let said: Said = serde_json::from_slice(body).unwrap_or_default();
        let words = if said.error_description.is_empty() { &said.error } else { &said.error_description };
        let words = one_line(words);
        let space = if words.is_empty() { "" } else { " " };
        let why = format!("the token service {} answered HTTP {}{space}{words}", self.service, status.as_u16());
        let named = &self.named;
        let (kind, hint) = match (status.as_u16(), &self.way) {
            (429 | 503, _) => (FaultKind::Busy { pause }, String::new()),
            (408 | 500..=599, _) => (FaultKind::Away, String::new()),
            (300..=399, _) => (FaultKind::Config, format!(": check token_uri of {named}")),
            // The times in a statement are called by the names that they have there.
            (_, Way::Account { .. }) if words.contains("iat") && words.contains("exp") => {
                (FaultKind::Denied, ": set this machine's clock".to_owned())
            }
            (_, Way::Account { .. }) => (FaultKind::Denied, format!(": check private_key, client_email and token_uri of {named}")),
            (404, Way::Instance) => (FaultKind::Denied, format!(": this machine has no service account, which {named} wants to use")),
            (_, Way::Instance) => (FaultKind::Denied, format!(": {named} wants to use the service account of this machine")),
        };
        Refusal { kind, why: format!("{why}{hint}") }
    }

    /// What to think of where the service is not there.
    fn doubt(&self, kind: FaultKind) -> &'static str {
        match (&self.way, kind) {
            (Way::Instance, FaultKind::Away) => " (is this a machine of Google's, with a metadata service?)",
            _ => "",
        }
    }
}

/// The token in an answer to a question that was asked at `begun`.
fn granted(body: &[u8], begun: Instant) -> Option<Token> {
    #[derive(Deserialize)]
    struct Grant {
        access_token: String,
        #[serde(default)]
        expires_in: Value,
    }
    let grant: Grant = serde_json::from_slice(body).ok()?;
    // Some write it as text. What is neither says nothing: another token is asked for soon.
    let seconds = grant.expires_in.as_u64().or_else(|| grant.expires_in.as_str()?.trim().parse().ok());
    let life = Duration::from_secs(seconds.unwrap_or_default().min(LONGEST));
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", grant.access_token)).ok().filter(|_| !grant.access_token.is_empty())?;
    bearer.set_sensitive(true);
    Some(Token { bearer, until: begun + (life - SPARE.min(life / 4)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_its_answer_says_in_numbers_or_in_text() {
        let begun = berth_telemetry::Clock::system().now();
        for (said, seconds) in [
            (r#","expires_in":900"#, 675),
            (r#","expires_in":"900""#, 675),
            (r#","expires_in":3600"#, 3375),
            (r#","expires_in":18446744073709551615"#, 24 * 3600 - 225),
            (r#","expires_in":-1"#, 0),
            (r#","expires_in":"soon""#, 0),
            (r#","expires_in":[900]"#, 0),
            ("", 0),
        ] {
            let token = granted(format!(r#"{{"access_token":"t"{said}}}"#).as_bytes(), begun).expect("a token");
            assert_eq!(token.until - begun, Duration::from_secs(seconds), "{said}");
        }
    }
}
