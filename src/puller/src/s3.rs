//! Speaks S3: signed listings and GETs, told apart by what a caller does about a failure.
//!
//! `object_store` signs the requests and is the transport; listing and GET are our own, because its path rules would
//! fail a whole page for one odd key, hide the marks that some tools leave for folders, and its resumed GETs do not
//! insist on the version that was listed. Nothing here retries: [`crate::patience`] does, with what is known there.

use std::ops::Range;
use std::time::Duration;

use berth_telemetry::Clock;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::{HeaderMap, StatusCode, header};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpClient, HttpConnector as _, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, ReqwestConnector};
use object_store::{Certificate, ClientOptions};
use serde::Deserialize;

use crate::paths::Listed;
use crate::storage::S3Source;
use crate::{PullError, PullerConfig};

/// A page of a listing holds at most 1,000 keys of 1,024 bytes, each perhaps written as character references.
const LARGEST_PAGE: usize = 16 << 20;

/// What of an error's body is looked at.
const LARGEST_ERROR: usize = 64 << 10;

/// What went wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The store is away or busy: the same request may succeed soon.
    Away(String),
    /// What was listed is not there any more: only a new listing helps.
    Changed(String),
    /// Asking again is of no use.
    Final(PullError),
}

/// Speaks with one store, with one credential. Keeps connections.
pub(crate) struct S3Client {
    http: HttpClient,
    clock: Clock,
    stall_timeout: Duration,
    credential: Option<AwsCredential>,
    region: String,
}

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) objects: Vec<Listed>,
    /// Where the next page begins; `None` after the last.
    pub(crate) next: Option<String>,
}

/// The body of an answered GET.
pub(crate) struct Body {
    frames: BoxStream<'static, Result<Bytes, HttpError>>,
    /// False where the store encrypts with keys of its own and an ETag is no digest of the bytes.
    pub(crate) etag_may_be_md5: bool,
}

impl S3Client {
    pub(crate) fn new(source: &S3Source, config: &PullerConfig, clock: Clock) -> Result<Self, PullError> {
        // Without a process-wide provider the TLS library panics at first use; a provider that is there already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = source.endpoint.scheme() == "http";
        let mut options = ClientOptions::new()
            .with_timeout_disabled() // a whole download has no limit, a stall has
            .with_connect_timeout(config.connect_timeout)
            .with_allow_http(plain)
            // An empty system store would fail even a plain endpoint; with an own authority nobody else is trusted.
            .with_no_system_certificates(plain || source.certificate.is_some());
        if let Some(pem) = &source.certificate {
            let unusable = |why: String| PullError::Config(format!("{}: certificate is not a PEM bundle of certificates: {why}", source.named));
            let bundle = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|fault| unusable(root_cause(&fault)))?;
            if bundle.is_empty() {
                return Err(unusable("it holds none".to_owned()));
            }
            for certificate in bundle {
                options = options.with_root_certificate(certificate);
            }
        }
        let http = ReqwestConnector::default().connect(&options).map_err(|fault| {
            PullError::Config(format!("{}: no connection to {} can be set up: {}", source.named, source.address(), root_cause(&fault)))
        })?;
        let credential = source.credential.as_ref().map(|credential| AwsCredential {
            key_id: credential.key_id.0.clone(),
            secret_key: credential.secret.0.clone(),
            token: None,
        });
        Ok(S3Client { http, clock, stall_timeout: config.stall_timeout, credential, region: source.region.clone() })
    }

    /// One page of the objects whose keys start with `prefix`.
    pub(crate) async fn list(&self, source: &S3Source, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        let mut url = format!("{}/{}?list-type=2&prefix={}", source.address(), source.bucket, encode(prefix, false));
        if let Some(token) = after {
            url.push_str("&continuation-token=");
            url.push_str(&encode(token, false));
        }
        let what = format!("listing {prefix:?} of bucket {} at {}", source.bucket, source.address());
        let response = self.send(&url, HeaderMap::new(), &what).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, source, &what).await);
        }
        let body = self.read(response, LARGEST_PAGE, &what).await?;
        page(&body).map_err(|why| {
            Fault::Final(PullError::Config(format!("{what}: the answer is no S3 listing ({why}): is endpoint_url the address of an S3 store?")))
        })
    }

    /// The bytes of `range` of a listed object, of which `None` is all; only of the version that was listed.
    pub(crate) async fn get(&self, source: &S3Source, object: &Listed, range: Option<Range<u64>>) -> Result<Body, Fault> {
        let url = format!("{}/{}/{}", source.address(), source.bucket, encode(&object.key, true));
        let what = format!("object {:?} of bucket {} at {}", object.key, source.bucket, source.address());
        let mut headers = HeaderMap::new();
        if let Some(range) = &range {
            set(&mut headers, header::RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(etag) = &object.etag {
            set(&mut headers, header::IF_MATCH, etag);
        }
        let response = self.send(&url, headers, &what).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Fault::Changed(format!("{what} changed after it was listed")));
            }
            _ => return Err(self.refused(response, source, &what).await),
        }
        let wanted = range.unwrap_or(0..object.size.0);
        match answered(response.status(), response.headers(), object.size.0) {
            Err(why) => return Err(Fault::Final(PullError::Corrupt(format!("{what}: {why}")))),
            Ok((_, Some(total))) if total != object.size.0 => {
                return Err(Fault::Changed(format!("{what} has {total} bytes, {} were listed", object.size.0)));
            }
            Ok((got, _)) if got != wanted => {
                let why = format!("asked for bytes {}..{}, the store answered with {}..{}", wanted.start, wanted.end, got.start, got.end);
                return Err(Fault::Final(PullError::Corrupt(format!("{what}: {why}"))));
            }
            Ok(_) => {}
        }
        let version = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok());
        if let (Some(listed), Some(got)) = (object.etag.as_deref(), version)
            && bare(listed) != bare(got)
        {
            return Err(Fault::Changed(format!("{what} changed after it was listed")));
        }
        let etag_may_be_md5 = md5_etag_possible(response.headers());
        Ok(Body { frames: response.into_body().bytes_stream(), etag_may_be_md5 })
    }

    /// The next bytes of a body; `None` at its end. `what` names it in errors.
    pub(crate) async fn next(&self, body: &mut Body, within: Duration) -> Result<Option<Bytes>, String> {
        let within = within.min(self.stall_timeout);
        match self.clock.until(self.clock.deadline_in(within), body.frames.next()).await {
            Some(None) => Ok(None),
            Some(Some(Ok(bytes))) => Ok(Some(bytes)),
            Some(Some(Err(fault))) => Err(format!("the connection broke: {}", root_cause(&fault))),
            None => Err(format!("no byte came for {within:?}")),
        }
    }

    async fn send(&self, url: &str, headers: HeaderMap, what: &str) -> Result<HttpResponse, Fault> {
        let request = http::Request::get(url).body(HttpRequestBody::empty());
        // Cannot happen: the address was parsed as a URL and all that follows it is percent-encoded ASCII.
        let mut request: HttpRequest = request.map_err(|fault| Fault::Final(PullError::Config(format!("{what}: {fault}"))))?;
        *request.headers_mut() = headers;
        if let Some(credential) = &self.credential {
            let signer = AwsAuthorizer::new(credential, "s3", &self.region);
            let signed = signer.try_authorize(&mut request, None);
            signed.map_err(|fault| Fault::Final(PullError::Config(format!("{what}: cannot sign: {}", root_cause(&fault)))))?;
        }
        let deadline = self.clock.deadline_in(self.stall_timeout);
        match self.clock.until(deadline, self.http.execute(request)).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(fault)) => Err(not_sent(&fault, what)),
            None => Err(Fault::Away(format!("{what}: no answer within {:?}", self.stall_timeout))),
        }
    }

    async fn read(&self, response: HttpResponse, limit: usize, what: &str) -> Result<Vec<u8>, Fault> {
        let mut body = Body { frames: response.into_body().bytes_stream(), etag_may_be_md5: false };
        let mut bytes = Vec::new();
        while let Some(more) = self.next(&mut body, self.stall_timeout).await.map_err(|why| Fault::Away(format!("{what}: {why}")))? {
            if bytes.len() + more.len() > limit {
                return Err(Fault::Final(PullError::Corrupt(format!("{what}: the answer is larger than {}", ByteSize(limit as u64)))));
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    /// What an answer other than success means.
    async fn refused(&self, response: HttpResponse, source: &S3Source, what: &str) -> Fault {
        let status = response.status();
        // The code says more than the status; where its text cannot be read, the status must do.
        let body = self.read(response, LARGEST_ERROR, what).await.unwrap_or_default();
        judge(status, &ErrorBody::parse(&body), source, what)
    }
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    // An ETag that is no header value cannot be insisted on; length and the answer's own ETag are still compared.
    if let Ok(value) = header::HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// An ETag without quotes and without the mark of weakness.
fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The MD5 digest that an ETag states, in lower-case hex; `None` for objects uploaded in parts and for other forms.
pub(crate) fn md5_of_etag(etag: &str) -> Option<String> {
    let digest = bare(etag);
    (digest.len() == 32 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digest.to_ascii_lowercase())
}

/// With keys of a key service or of the client the ETag is no MD5 of the bytes, whatever it looks like.
fn md5_etag_possible(headers: &HeaderMap) -> bool {
    let scheme = headers.get("x-amz-server-side-encryption").and_then(|value| value.to_str().ok()).unwrap_or("AES256");
    scheme == "AES256" && !headers.contains_key("x-amz-server-side-encryption-customer-algorithm")
}

/// Which bytes an answer holds, and of how many the object has in all where the answer says so.
fn answered(status: StatusCode, headers: &HeaderMap, listed: u64) -> Result<(Range<u64>, Option<u64>), String> {
    if status != StatusCode::PARTIAL_CONTENT {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        return Ok((0..length.unwrap_or(listed), length));
    }
    let value = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parse = || {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let end = last.parse::<u64>().ok()?.checked_add(1)?;
        Some((first.parse::<u64>().ok()?..end, total.parse().ok()))
    };
    parse().ok_or_else(|| format!("the store answered with the range {value:?}"))
}

/// Percent-encodes all but unreserved characters (and slashes, where asked), as the signature wants it.
fn encode(text: &str, keep_slash: bool) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            b'/' if keep_slash => encoded.push('/'),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// The innermost cause: "Connection refused (os error 111)" rather than "error sending request".
fn root_cause(fault: &dyn std::error::Error) -> String {
    let mut cause = fault;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn not_sent(fault: &HttpError, what: &str) -> Fault {
    let cause = root_cause(fault);
    match fault.kind() {
        HttpErrorKind::Connect if cause.contains("certificate") => {
            // Waiting will not make it trusted; still the store's fault rather than the model's.
            Fault::Final(PullError::Unavailable(format!("{what}: {cause}: give the certificate of the store's authority in the storage config")))
        }
        HttpErrorKind::Connect => Fault::Away(format!("{what}: cannot connect: {cause}")),
        HttpErrorKind::Timeout => Fault::Away(format!("{what}: timed out: {cause}")),
        _ => Fault::Away(format!("{what}: {cause}")),
    }
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorBody {
    code: String,
    message: String,
}

impl ErrorBody {
    /// An answer that is no S3 error gives an empty one.
    fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        quick_xml::de::from_str(&text).unwrap_or_default()
    }

    /// Code and message as one short line.
    fn text(&self) -> String {
        let text = match (self.code.is_empty(), self.message.is_empty()) {
            (true, _) => return String::new(),
            (false, true) => format!(" {}", self.code),
            (false, false) => format!(" {}: {}", self.code, self.message),
        };
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
    }
}

/// What a refused request means. The code decides where there is one.
fn judge(status: StatusCode, error: &ErrorBody, source: &S3Source, what: &str) -> Fault {
    let said = format!("{what}: HTTP {}{}", status.as_u16(), error.text());
    match (status.as_u16(), error.code.as_str()) {
        (_, "NoSuchBucket") => Fault::Final(PullError::NotFound(format!("bucket {} does not exist at {}", source.bucket, source.address()))),
        (_, "NoSuchKey") => Fault::Changed(format!("{what} is gone since it was listed")),
        (_, "SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "OperationAborted") | (408 | 429 | 500..=599, _) => {
            Fault::Away(said)
        }
        (401 | 403, _) => {
            let hint = if source.credential.is_some() {
                format!("check access_key_id and secret_access_key of {} and what they may read", source.named)
            } else {
                format!("{} has no credentials", source.named)
            };
            Fault::Final(PullError::Denied(format!("{said}: {hint}")))
        }
        (404, _) => Fault::Final(PullError::NotFound(said)),
        (300..=399, _) => {
            Fault::Final(PullError::Config(format!("{said}: the bucket is elsewhere: check endpoint_url and region of {}", source.named)))
        }
        _ => Fault::Final(PullError::Config(said)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    #[serde(rename = "ETag", default)]
    etag: Option<String>,
}

fn page(body: &[u8]) -> Result<Page, String> {
    let text = std::str::from_utf8(body).map_err(|_| "not UTF-8".to_owned())?;
    if !text.contains("<ListBucketResult") {
        return Err("no ListBucketResult".to_owned());
    }
    let result: ListBucketResult = quick_xml::de::from_str(text).map_err(|fault| fault.to_string())?;
    let next = result.next_continuation_token.filter(|token| !token.is_empty());
    if result.is_truncated && next.is_none() {
        return Err("it is cut off and does not say where it goes on".to_owned());
    }
    let objects = result.contents.into_iter().map(|object| Listed {
        key: object.key,
        size: ByteSize(object.size),
        etag: object.etag.filter(|etag| !bare(etag).is_empty()),
    });
    Ok(Page { objects: objects.collect(), next: next.filter(|_| result.is_truncated) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Credential, Secret};

    fn source(credential: bool) -> S3Source {
        let secret = |text: &str| Secret(text.to_owned());
        S3Source {
            endpoint: "http://s3.example:9000".parse().expect("a URL"),
            region: "r".to_owned(),
            bucket: "b".to_owned(),
            credential: credential.then(|| Credential { key_id: secret("AKID"), secret: secret("sEcReT") }),
            certificate: None,
            verify_etag: true,
            named: "storage config k".to_owned(),
        }
    }

    #[test]
    fn an_answer_is_judged_by_what_the_caller_can_do_about_it() {
        #[derive(Debug, PartialEq)]
        enum Kind {
            Away,
            Changed,
            NotFound,
            Denied,
            Config,
        }
        for (status, code, expected) in [
            (404, "NoSuchBucket", Kind::NotFound),
            (404, "NoSuchKey", Kind::Changed),
            (404, "", Kind::NotFound),
            (403, "AccessDenied", Kind::Denied),
            (403, "SignatureDoesNotMatch", Kind::Denied),
            (401, "", Kind::Denied),
            (503, "SlowDown", Kind::Away),
            (500, "InternalError", Kind::Away),
            (502, "", Kind::Away),
            (429, "", Kind::Away),
            (409, "OperationAborted", Kind::Away),
            (400, "AuthorizationHeaderMalformed", Kind::Config),
            (301, "PermanentRedirect", Kind::Config),
            (405, "", Kind::Config),
        ] {
            let error = ErrorBody { code: code.to_owned(), message: "why not".to_owned() };
            let fault = judge(StatusCode::from_u16(status).expect("a status"), &error, &source(true), "listing");
            let kind = match &fault {
                Fault::Away(_) => Kind::Away,
                Fault::Changed(_) => Kind::Changed,
                Fault::Final(PullError::NotFound(_)) => Kind::NotFound,
                Fault::Final(PullError::Denied(_)) => Kind::Denied,
                Fault::Final(PullError::Config(_)) => Kind::Config,
                Fault::Final(other) => panic!("{other:?}"),
            };
            assert_eq!(kind, expected, "{status} {code}: {fault:?}");
        }
    }

    #[test]
    fn errors_name_bucket_endpoint_and_entry_but_no_key() {
        let error = ErrorBody::parse(b"<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>bad\nsignature</Message><AWSAccessKeyId>AKID</AWSAccessKeyId></Error>");
        let text = format!("{:?}", judge(StatusCode::FORBIDDEN, &error, &source(true), "listing \"m\" of bucket b at http://s3.example:9000"));
        for part in ["bucket b", "http://s3.example:9000", "HTTP 403 SignatureDoesNotMatch: bad signature", "storage config k"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("AKID") && !text.contains("sEcReT"), "{text}");
        let text = format!("{:?}", judge(StatusCode::FORBIDDEN, &ErrorBody::default(), &source(false), "x"));
        assert!(text.contains("has no credentials"), "{text}");
        assert_eq!(ErrorBody::parse(b"<html>no XML<br></html>"), ErrorBody::default());
        assert_eq!(ErrorBody::parse(b"\xff\xfe"), ErrorBody::default());
    }

    #[test]
    fn a_listing_is_read_with_its_odd_keys_and_its_continuation() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>true</IsTruncated><KeyCount>3</KeyCount>
            <NextContinuationToken>a+/=</NextContinuationToken>
            <Contents><Key>m/a &amp; b+%20.txt</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>&quot;x-2&quot;</ETag><Size>5</Size></Contents>
            <Contents><Key>m/../x</Key><Size>0</Size></Contents><CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
            <Contents><Key>m//</Key><ETag></ETag><Size>1</Size></Contents></ListBucketResult>"#;
        let listed = |key: &str, size, etag: Option<&str>| Listed { key: key.to_owned(), size: ByteSize(size), etag: etag.map(str::to_owned) };
        let objects = vec![listed("m/a & b+%20.txt", 5, Some("\"x-2\"")), listed("m/../x", 0, None), listed("m//", 1, None)];
        assert_eq!(page(body), Ok(Page { objects, next: Some("a+/=".to_owned()) }));
        let empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        assert_eq!(page(empty), Ok(Page { objects: vec![], next: None }));
        for body in [
            &b"<html><body>hello</body></html>"[..],
            b"",
            b"{}",
            b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            b"<ListBucketResult><Contents>",
        ] {
            assert!(page(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn ranges_and_etags_are_read_from_answers() {
        let headers = |name: &'static str, value: &str| HeaderMap::from_iter([(name.parse().expect("name"), value.parse().expect("value"))]);
        assert_eq!(answered(StatusCode::PARTIAL_CONTENT, &headers("content-range", "bytes 5-9/100"), 100), Ok((5..10, Some(100))));
        assert_eq!(answered(StatusCode::PARTIAL_CONTENT, &headers("content-range", "bytes 5-9/*"), 100), Ok((5..10, None)));
        assert_eq!(answered(StatusCode::OK, &headers("content-length", "7"), 9), Ok((0..7, Some(7))));
        assert_eq!(answered(StatusCode::OK, &HeaderMap::new(), 9), Ok((0..9, None)));
        for odd in ["", "bytes 5-", "bytes */100", "items 1-2/3", "bytes 1-18446744073709551615/1"] {
            assert!(answered(StatusCode::PARTIAL_CONTENT, &headers("content-range", odd), 9).is_err(), "{odd}");
        }
        assert_eq!(md5_of_etag("\"D41D8CD98F00B204E9800998ECF8427E\"").as_deref(), Some("d41d8cd98f00b204e9800998ecf8427e"));
        for other in ["\"d41d8cd98f00b204e9800998ecf8427e-2\"", "\"\"", "W/\"x\"", "\"zz1d8cd98f00b204e9800998ecf8427e\""] {
            assert_eq!(md5_of_etag(other), None, "{other}");
        }
        assert!(md5_etag_possible(&headers("x-amz-server-side-encryption", "AES256")));
        assert!(!md5_etag_possible(&headers("x-amz-server-side-encryption", "aws:kms")));
        assert!(!md5_etag_possible(&headers("x-amz-server-side-encryption-customer-algorithm", "AES256")));
    }

    #[test]
    fn keys_are_encoded_as_the_signature_wants_them() {
        assert_eq!(encode("a b/c+d%~ü", true), "a%20b/c%2Bd%25~%C3%BC");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }
}
