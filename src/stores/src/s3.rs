//! Speaks S3: signed listings, GETs and HEADs.
//!
//! `object_store` signs the requests and finds credentials; the requests are our own, because its path rules would
//! fail a whole page for one odd key, hide the marks that some tools leave for folders, and its resumed GETs do not
//! insist on the version that was listed.

mod answers;
mod credentials;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_types::ByteSize;
use http::{HeaderMap, Method, StatusCode, header};
use object_store::aws::AwsAuthorizer;
use object_store::client::HttpResponse;

use crate::wire::{Wire, answered, bare, encode, frames, one_line, refused_total, retry_after, root_cause, set, text};
use crate::{Answer, Ask, Fault, FaultKind, Object, Page, Remote, Sums, Version};
use answers::{ErrorBody, composite, of_parts, page, sums, version};
use credentials::Signer;
use settings::Addressing;

pub use settings::S3Settings;

/// A page of a listing holds at most 1,000 keys of 1,024 bytes, each perhaps written as character references.
const LARGEST_PAGE: usize = 16 << 20;

/// Connections and credentials, shared by all buckets that are read with them.
pub(crate) struct Link {
    wire: Wire,
    signer: Signer,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("signed", &!matches!(self.signer, Signer::Unsigned)).finish_non_exhaustive()
    }
}

/// One bucket.
#[derive(Debug)]
pub(crate) struct S3Remote {
    settings: S3Settings,
    link: Arc<Link>,
    place: String,
    /// The bucket's address.
    base: String,
}

/// An answer without success, as far as its head and a short body tell.
struct Refused {
    status: StatusCode,
    pause: Option<Duration>,
    /// The store's time, where it says it.
    date: Option<String>,
    /// The region that the bucket is in, where the store says it.
    region: Option<String>,
    error: ErrorBody,
}

impl S3Remote {
    pub(crate) fn new(settings: S3Settings, link: Arc<Link>) -> Self {
        let place = format!("bucket {} at {}", settings.bucket, settings.address());
        let base = settings.base();
        S3Remote { settings, link, place, base }
    }

    /// How errors name an object, and its address.
    fn object(&self, key: &str) -> Result<(String, String), Fault> {
        let what = format!("object {key:?} of {}", self.place);
        // URLs are normalised on their way: it would be another object's, or a bucket's.
        if key.is_empty() || key.split('/').any(|segment| matches!(segment, "." | "..")) {
            let why = "its key is empty or has a segment \".\" or \"..\", which no address can name: store it under another key";
            return Err(Fault::new(FaultKind::Config, what, why));
        }
        let url = format!("{}/{}", self.base, encode(key, true));
        Ok((what, url))
    }

    /// Asks, and once more with a new credential where the store calls this one ended. Answers without success come as a
    /// fault, but for those that say something about an object's version and length.
    async fn ask(&self, method: Method, url: &str, headers: HeaderMap, what: &str) -> Result<HttpResponse, Fault> {
        let Link { wire, signer } = &*self.link;
        let mut renewed = false;
        loop {
            let mut request = Wire::request(url, headers.clone(), what)?;
            *request.method_mut() = method.clone();
            let held = signer.credential(what).await?;
            if let Some(held) = &held {
                let signed = AwsAuthorizer::new(&held.credential, "s3", &self.settings.region).try_authorize(&mut request, None);
                signed.map_err(|fault| Fault::new(FaultKind::Config, what, format!("cannot sign: {}", root_cause(&fault))))?;
            }
            let response = wire.send(request, what).await?;
            let status = response.status();
            if status.is_success() || matches!(status, StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE) {
                return Ok(response);
            }
            let said = |name| text(response.headers(), name).map(one_line);
            let (pause, date, region) = (retry_after(response.headers()), said("date"), said("x-amz-bucket-region"));
            // Where the text of an error cannot be read, its status must do.
            let error = ErrorBody::parse(&wire.error_text(response, what).await);
            if !renewed && error.ended() && held.is_some_and(|held| signer.renew(&held)) {
                renewed = true;
                continue;
            }
            return Err(self.judge(&Refused { status, pause, date, region, error }, what));
        }
    }

    /// What an answer without success means. The code says more than the status.
    fn judge(&self, refused: &Refused, what: &str) -> Fault {
        let Refused { status, pause, error, .. } = refused;
        let (said, settings) = (error.to_string(), &self.settings);
        let named = &settings.named;
        let fault = |kind, hint: String| {
            let why = if said.is_empty() || hint.is_empty() { format!("{said}{hint}") } else { format!("{said}: {hint}") };
            Fault::new(kind, what, why).with_status(status.as_u16())
        };
        let region = refused.region.clone().unwrap_or_else(|| one_line(&error.region));
        let elsewhere = || match (region.is_empty(), error.endpoint.is_empty()) {
            (false, _) => format!("the bucket is in region {region}: set region of {named} to it, and endpoint_url if there is one"),
            (true, false) => format!("the bucket is at {}: check endpoint_url and region of {named}", one_line(&error.endpoint)),
            (true, true) => format!("the bucket is elsewhere: check endpoint_url and region of {named}"),
        };
        match (status.as_u16(), error.code.as_str()) {
            (_, "NoSuchBucket") => fault(FaultKind::Missing, format!("bucket {} does not exist", settings.bucket)),
            (_, "NoSuchKey") => fault(FaultKind::Missing, String::new()),
            (501, _) | (_, "NotImplemented") => fault(FaultKind::Config, "the store cannot do that".to_owned()),
            (503 | 429, _) | (_, "SlowDown" | "ServiceUnavailable" | "TooManyRequests") => fault(FaultKind::Busy { pause: *pause }, String::new()),
            (_, "InternalError" | "RequestTimeout" | "OperationAborted") | (408 | 500..=599, _) => fault(FaultKind::Away, String::new()),
            (_, "RequestTimeTooSkewed") => {
                let theirs = refused.date.as_deref().map_or_else(String::new, |date| format!(" (the store's says {date})"));
                fault(FaultKind::Denied, format!("this machine's clock and the store's differ too much{theirs}: set the clock"))
            }
            (_, "InvalidObjectState") => fault(FaultKind::Config, "the object is archived: restore it first".to_owned()),
            (_, "AuthorizationHeaderMalformed") if !region.is_empty() => fault(FaultKind::Config, elsewhere()),
            _ if error.ended() => fault(FaultKind::Denied, settings.credentials.ended(named)),
            (401 | 403, _) => fault(FaultKind::Denied, settings.credentials.hint(named)),
            (404, _) => fault(FaultKind::Missing, String::new()),
            (300..=399, _) => fault(FaultKind::Config, elsewhere()),
            _ => fault(FaultKind::Config, String::new()),
        }
    }

    /// The headers that a HEAD of a version of an object, or of one of its parts, is answered with.
    async fn head(&self, object: &Object, part: Option<u32>) -> Result<HeaderMap, Fault> {
        let (what, mut url) = self.object(&object.key)?;
        if let Some(part) = part {
            url.push_str(&format!("?partNumber={part}"));
        }
        let mut headers = HeaderMap::new();
        if let Some(version) = &object.version {
            set(&mut headers, header::IF_MATCH, &version.0);
        }
        set(&mut headers, "x-amz-checksum-mode", "ENABLED");
        let response = self.ask(Method::HEAD, &url, headers, &what).await.map_err(|fault| gone(fault, object.version.as_ref()))?;
        let got = version(response.headers());
        let fault = |kind, why: &str| Err(Fault::new(kind, &what, why).with_status(response.status().as_u16()));
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => fault(FaultKind::Config, "the store knows no such part of it"),
            status if status.is_success() && same(object.version.as_ref(), got.as_ref()) => Ok(response.headers().clone()),
            _ => fault(FaultKind::Changed, CHANGED),
        }
    }
}

const CHANGED: &str = "it changed after it was listed";

/// A version that was listed is not missing, it is gone. A fault begins with the store's code, names come later.
fn gone(fault: Fault, listed: Option<&Version>) -> Fault {
    let gone = listed.is_some() && fault.kind == FaultKind::Missing && !fault.why.starts_with("NoSuchBucket");
    if gone { Fault { kind: FaultKind::Changed, ..fault } } else { fault }
}

/// False where two versions are known and differ.
fn same(listed: Option<&Version>, got: Option<&Version>) -> bool {
    !matches!((listed, got), (Some(listed), Some(got)) if bare(&listed.0) != bare(&got.0))
}

#[async_trait]
impl Remote for S3Remote {
    fn place(&self) -> &str {
        &self.place
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        // A host name alone has no path for the query to follow.
        let slash = if self.settings.addressing == Addressing::Virtual { "/" } else { "" };
        let mut url = format!("{}{slash}?list-type=2&prefix={}", self.base, encode(prefix, false));
        if let Some(token) = after {
            url.push_str("&continuation-token=");
            url.push_str(&encode(token, false));
        }
        let what = format!("listing {prefix:?} of {}", self.place);
        let response = self.ask(Method::GET, &url, HeaderMap::new(), &what).await?;
        if !response.status().is_success() {
            return Err(Fault::new(FaultKind::Config, what, "a listing has no condition to fail").with_status(response.status().as_u16()));
        }
        let body = self.link.wire.read(response, LARGEST_PAGE, &what).await?;
        page(&body).map_err(|why| {
            Fault::new(FaultKind::Config, what, format!("the answer is no S3 listing ({why}): is endpoint_url the address of an S3 store?"))
        })
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let (what, url) = self.object(ask.key)?;
        let mut headers = HeaderMap::new();
        if let Some(range) = ask.range {
            set(&mut headers, header::RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(version) = ask.version {
            set(&mut headers, header::IF_MATCH, &version.0);
        }
        set(&mut headers, "x-amz-checksum-mode", "ENABLED");
        let response = self.ask(Method::GET, &url, headers, &what).await.map_err(|fault| gone(fault, ask.version))?;
        let status = response.status();
        let changed = |why: &str| Fault::new(FaultKind::Changed, &what, why).with_status(status.as_u16());
        match status {
            StatusCode::PRECONDITION_FAILED => return Err(changed(CHANGED)),
            StatusCode::RANGE_NOT_SATISFIABLE if refused_total(response.headers()) == Some(0) || ask.range.is_some_and(|range| range.start == 0) => {
                let object = Object { key: ask.key.to_owned(), size: ByteSize::ZERO, version: version(response.headers()), sums: Sums::default() };
                return Ok(Answer { object, range: 0..0, frames: Box::pin(futures::stream::empty()) });
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(changed("it is shorter than it was listed")),
            _ => {}
        }
        let (range, total) = answered(status, response.headers()).map_err(|why| Fault::new(FaultKind::Corrupt, &what, why))?;
        let version = version(response.headers());
        if !same(ask.version, version.as_ref()) {
            return Err(changed(CHANGED));
        }
        let whole = range == (0..total);
        let object = Object { key: ask.key.to_owned(), size: ByteSize(total), sums: sums(response.headers(), whole), version };
        Ok(Answer { object, range, frames: frames(response) })
    }

    async fn sums(&self, object: &Object) -> Result<Sums, Fault> {
        let head = self.head(object, None).await?;
        let stated = sums(&head, true);
        let Some((value, parts)) = of_parts(&head).filter(|_| stated.is_empty()) else { return Ok(stated.or(object.sums)) };
        // Stores that know no parts, or do not tell their lengths, leave it at nothing stated.
        let without = |fault: Fault| if fault.kind == FaultKind::Config { Ok(stated.or(object.sums)) } else { Err(fault) };
        let first = match self.head(object, Some(1)).await {
            Ok(first) => first,
            Err(fault) => return without(fault),
        };
        let last = match self.head(object, Some(parts)).await {
            Ok(last) => last,
            Err(fault) => return without(fault),
        };
        let composite = composite(value, parts, object.size, &first, &last);
        Ok(Sums { composite, ..stated }.or(object.sums))
    }
}
