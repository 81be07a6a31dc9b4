//! Speaks Google Cloud Storage's JSON API: listings and downloads.
//!
//! An object's version is its generation, which is part of the address that its bytes are asked for at. Objects that
//! are stored compressed (`contentEncoding: gzip`) arrive as they are stored: the store would unpack them on the way
//! otherwise, and neither length nor checksum would fit what it states. A failure stays with the request that it came
//! from: links keep connections and a token, nothing else.

mod answers;
mod settings;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_types::ByteSize;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use object_store::client::HttpResponse;

use self::answers::{ErrorBody, is_googles, metadata, page};
pub use self::settings::GcsSettings;
use self::settings::{Credential, Grant};
use self::token::Tokens;
use crate::wire::{Wire, answered, encode, frames, refused_total, retry_after, set, text};
use crate::{Answer, Ask, Fault, FaultKind, Object, Page, Remote, Sums, Version};

pub(crate) use self::answers::hashes;

/// A page of a listing holds at most 1,000 names of 1,024 bytes, each perhaps written as escapes; servers that do not
/// know how to leave fields out write a kilobyte more about each.
const LARGEST_PAGE: usize = 16 << 20;

/// What is said about one object takes a few kilobytes at most, but for custom metadata, which is not asked for.
const LARGEST_METADATA: usize = 1 << 20;

const CHANGED: &str = "it changed after it was listed";

/// Connections and credential, shared by all buckets that are read with them.
pub(crate) struct Link {
    wire: Wire,
    /// `None` asks as nobody.
    tokens: Option<Tokens>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("tokens", &self.tokens.is_some()).finish_non_exhaustive()
    }
}

/// One bucket.
#[derive(Debug)]
pub(crate) struct GcsRemote {
    settings: GcsSettings,
    link: Arc<Link>,
    place: String,
    /// The address of the bucket's objects.
    base: String,
}

/// What a request is about: a 404 means another thing for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Bucket,
    Object,
    /// A version of an object that was listed.
    Version,
}

impl Of {
    fn object(version: Option<&Version>) -> Self {
        if version.is_some() { Of::Version } else { Of::Object }
    }
}

/// An answer without success.
struct Refused {
    status: StatusCode,
    pause: Option<Duration>,
    error: ErrorBody,
}

impl GcsRemote {
    pub(crate) fn new(settings: GcsSettings, link: Arc<Link>) -> Self {
        let place = format!("bucket {} at {}", settings.bucket, settings.address());
        let base = format!("{}/storage/v1/b/{}/o", settings.address(), settings.bucket);
        GcsRemote { settings, link, place, base }
    }

    /// How errors name an object, and its address.
    fn object(&self, key: &str) -> Result<(String, String), Fault> {
        let what = format!("object {key:?} of {}", self.place);
        // The slashes of a name are encoded, so only a whole name can be taken for a step in the path.
        if matches!(key, "" | "." | "..") {
            return Err(Fault::new(FaultKind::Config, what, "an object cannot have that name"));
        }
        let url = format!("{}/{}", self.base, encode(key, false));
        Ok((what, url))
    }

    /// Asks. A token that the store does not take is replaced once: it may have been withdrawn.
    async fn ask(&self, url: &str, headers: HeaderMap, what: &str) -> Result<HttpResponse, Fault> {
        let Link { wire, tokens } = &*self.link;
        let Some(tokens) = tokens else { return wire.send(Wire::request(url, headers, what)?, what).await };
        let mut renewed = false;
        loop {
            let token = tokens.token(what).await?;
            let mut request = Wire::request(url, headers.clone(), what)?;
            request.headers_mut().insert(header::AUTHORIZATION, token.bearer());
            let response = wire.send(request, what).await?;
            if response.status() != StatusCode::UNAUTHORIZED || renewed {
                return Ok(response);
            }
            tokens.forget(&token);
            renewed = true;
        }
    }

    async fn refused(&self, response: HttpResponse, of: Of, what: &str) -> Fault {
        let (status, pause) = (response.status(), retry_after(response.headers()));
        let known = is_googles(response.headers());
        // Where the text of an error cannot be read, its status must do.
        let error = ErrorBody::parse(&self.link.wire.error_text(response, what).await, known);
        self.judge(&Refused { status, pause, error }, of, what)
    }

    /// What an answer without success means.
    fn judge(&self, refused: &Refused, of: Of, what: &str) -> Fault {
        let Refused { status, pause, error } = refused;
        let (said, named) = (error.to_string(), &self.settings.named);
        let fault = |kind, hint: &str| {
            let why = if said.is_empty() || hint.is_empty() { format!("{said}{hint}") } else { format!("{said}: {hint}") };
            Fault::new(kind, what, why).with_status(status.as_u16())
        };
        match (status.as_u16(), error.reason.as_str()) {
            (404, _) if of == Of::Bucket || error.is_about_the_bucket() => {
                fault(FaultKind::Missing, &format!("bucket {} does not exist", self.settings.bucket))
            }
            // It is not missing, it is gone.
            (404, _) if of == Of::Version => fault(FaultKind::Changed, ""),
            (404, _) => fault(FaultKind::Missing, ""),
            (412, _) => fault(FaultKind::Changed, CHANGED),
            (501, _) => fault(FaultKind::Config, "the store cannot do that"),
            (429 | 503, _) | (_, "rateLimitExceeded" | "userRateLimitExceeded") => fault(FaultKind::Busy { pause: *pause }, ""),
            (408 | 500..=599, _) => fault(FaultKind::Away, ""),
            _ if error.wants_a_payer() => fault(FaultKind::Config, "it makes its readers pay, which is not supported"),
            (401 | 403, _) => fault(FaultKind::Denied, &self.denied(*status)),
            (300..=399, _) => fault(FaultKind::Config, &format!("the store is elsewhere: check endpoint_url of {named}")),
            _ => fault(FaultKind::Config, ""),
        }
    }

    /// What may help where the store does not let us in.
    fn denied(&self, status: StatusCode) -> String {
        let named = &self.settings.named;
        match &self.settings.credential {
            Credential::Anonymous => format!("{named} has no credentials"),
            Credential::Token(_) if status == StatusCode::UNAUTHORIZED => format!("the store does not take the token of {named}"),
            Credential::Token(Grant::Account { .. }) => {
                format!("the service account of {named} needs the role Storage Object Viewer of the bucket")
            }
            Credential::Token(Grant::Instance { .. }) => {
                format!("the service account of this machine, which {named} uses, needs the role Storage Object Viewer of the bucket")
            }
        }
    }
}

fn generation(headers: &HeaderMap) -> Option<Version> {
    text(headers, "x-goog-generation").filter(|text| !text.is_empty()).map(|text| Version(text.to_owned()))
}

#[async_trait]
impl Remote for GcsRemote {
    fn place(&self) -> &str {
        &self.place
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        let mut url = format!(
            "{}?maxResults=1000&prettyPrint=false&fields=kind,nextPageToken,items(name,size,generation,crc32c,md5Hash)&prefix={}",
            self.base,
            encode(prefix, false)
        );
        if let Some(token) = after {
            url.push_str("&pageToken=");
            url.push_str(&encode(token, false));
        }
        let what = format!("listing {prefix:?} of {}", self.place);
        let response = self.ask(&url, HeaderMap::new(), &what).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, Of::Bucket, &what).await);
        }
        let body = self.link.wire.read(response, LARGEST_PAGE, &what).await?;
        page(&body).map_err(|why| {
            let hint = "is endpoint_url the address of a store that speaks the JSON API of Google Cloud Storage?";
            Fault::new(FaultKind::Config, what, format!("the answer is no listing ({why}): {hint}"))
        })
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let (what, mut url) = self.object(ask.key)?;
        url.push_str("?alt=media");
        let mut headers = HeaderMap::new();
        // Asked so, the store hands out what it holds.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Some(range) = ask.range {
            set(&mut headers, header::RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(version) = ask.version {
            url.push_str("&generation=");
            url.push_str(&encode(&version.0, false));
        }
        let response = self.ask(&url, headers, &what).await?;
        let status = response.status();
        let fault = |kind, why: &str| Fault::new(kind, &what, why).with_status(status.as_u16());
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::RANGE_NOT_SATISFIABLE if refused_total(response.headers()) == Some(0) || ask.range.is_some_and(|range| range.start == 0) => {
                let version = generation(response.headers()).or_else(|| ask.version.cloned());
                let object = Object { key: ask.key.to_owned(), size: ByteSize::ZERO, version, sums: Sums::default() };
                return Ok(Answer { object, range: 0..0, frames: Box::pin(futures::stream::empty()) });
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(fault(FaultKind::Changed, "it is shorter than it was listed")),
            _ => return Err(self.refused(response, Of::object(ask.version), &what).await),
        }
        let (range, total) = answered(status, response.headers()).map_err(|why| Fault::new(FaultKind::Corrupt, &what, why))?;
        let stored = text(response.headers(), "x-goog-stored-content-length").and_then(|stored| stored.parse::<u64>().ok());
        if let Some(stored) = stored.filter(|stored| *stored != total) {
            let why = format!("it comes with {total} bytes, {stored} are stored: something on the way unpacks or packs it");
            return Err(fault(FaultKind::Corrupt, &why));
        }
        let version = generation(response.headers()).or_else(|| ask.version.cloned());
        if ask.version.is_some_and(|listed| Some(listed) != version.as_ref()) {
            return Err(fault(FaultKind::Changed, CHANGED));
        }
        // These are the whole object's, however much of it comes.
        let object = Object { key: ask.key.to_owned(), size: ByteSize(total), sums: hashes(response.headers()), version };
        Ok(Answer { object, range, frames: frames(response) })
    }

    async fn sums(&self, object: &Object) -> Result<Sums, Fault> {
        if !object.sums.is_empty() {
            return Ok(object.sums);
        }
        let (what, mut url) = self.object(&object.key)?;
        url.push_str("?prettyPrint=false&fields=crc32c,md5Hash");
        if let Some(version) = &object.version {
            url.push_str("&generation=");
            url.push_str(&encode(&version.0, false));
        }
        let response = self.ask(&url, HeaderMap::new(), &what).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, Of::object(object.version.as_ref()), &what).await);
        }
        let body = self.link.wire.read(response, LARGEST_METADATA, &what).await?;
        metadata(&body).map_err(|why| Fault::new(FaultKind::Corrupt, what, format!("what the store says about it cannot be read: {why}")))
    }
}
