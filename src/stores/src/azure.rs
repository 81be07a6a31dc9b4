//! Speaks Azure Blob Storage: List Blobs and Get Blob.
//!
//! `object_store` signs with account keys and finds tokens; listing and GET are our own, for the reasons that S3 has. A
//! SAS token is part of the URL, which therefore is in no text here. Folders of accounts with a hierarchical namespace, and
//! the marks that other tools leave for folders, are not listed.

mod settings;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_types::ByteSize;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use object_store::azure::{AzureAuthorizer, AzureCredential};
use object_store::client::HttpResponse;
use serde::Deserialize;

pub use self::settings::AzureSettings;
use self::settings::Credential;
use self::token::Tokens;
use crate::config::Secret;
use crate::wire::{Wire, answered, encode, frames, one_line, quoted, refused_total, retry_after, root_cause, set, text};
use crate::{Answer, Ask, Fault, FaultKind, Object, Page, Remote, Sums, Version};

/// A page of a listing holds at most 5,000 names of 1,024 characters, with up to 8 KiB of metadata each, which few have.
const LARGEST_PAGE: usize = 64 << 20;

/// The first that says which blobs are folders and writes odd names in a form that XML can hold is 2021-02-12.
const API: HeaderValue = HeaderValue::from_static("2023-11-03");

/// Connections and credential, shared by all containers that are read with them.
pub(crate) struct Link {
    wire: Wire,
    auth: Auth,
    account: String,
}

enum Auth {
    None,
    Key(AzureCredential),
    Sas(Secret),
    Tokens(Tokens),
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("account", &self.account).finish_non_exhaustive()
    }
}

/// One container.
#[derive(Debug)]
pub(crate) struct AzureRemote {
    settings: AzureSettings,
    link: Arc<Link>,
    place: String,
}

/// What a request is about: a blob that is not there means another thing for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// A version that was listed.
    Version,
    Other,
}

impl AzureRemote {
    pub(crate) fn new(settings: AzureSettings, link: Arc<Link>) -> Self {
        let place = format!("container {} at {}", settings.container, settings.address());
        AzureRemote { settings, link, place }
    }

    /// Sends a GET. A token that the store does not take is replaced once: its rights or its key may have changed.
    async fn send(&self, url: String, headers: HeaderMap, what: &str) -> Result<HttpResponse, Fault> {
        let Auth::Tokens(tokens) = &self.link.auth else { return self.send_as(url, headers, None, what).await };
        let token = tokens.token(what).await?;
        let response = self.send_as(url.clone(), headers.clone(), Some(&token), what).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !tokens.forget(&token).await {
            return Ok(response);
        }
        let token = tokens.token(what).await?;
        self.send_as(url, headers, Some(&token), what).await
    }

    async fn send_as(&self, mut url: String, mut headers: HeaderMap, token: Option<&AzureCredential>, what: &str) -> Result<HttpResponse, Fault> {
        headers.insert("x-ms-version", API);
        if let Auth::Sas(sas) = &self.link.auth {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&sas.0);
        }
        let mut request = Wire::request(&url, headers, what)?;
        let credential = match &self.link.auth {
            Auth::Key(key) => Some(key),
            Auth::None | Auth::Sas(_) | Auth::Tokens(_) => token,
        };
        if let Some(credential) = credential {
            let signed = AzureAuthorizer::new(credential, &self.link.account).try_authorize(&mut request);
            signed.map_err(|fault| Fault::new(FaultKind::Config, what, format!("cannot sign: {}", root_cause(&fault))))?;
        }
        self.link.wire.send(request, what).await
    }

    /// What an answer other than success means. The code says more than the status; where its text cannot be read, the
    /// status must do.
    async fn refused(&self, response: HttpResponse, of: Of, what: &str) -> Fault {
        let (status, pause) = (response.status(), retry_after(response.headers()));
        let code = text(response.headers(), "x-ms-error-code").map(str::to_owned);
        let body = self.link.wire.error_text(response, what).await;
        let mut error = ErrorBody::parse(&body);
        if error.code.is_empty() {
            error.code = code.unwrap_or_default();
        }
        self.judge(status, pause, &error, of, what)
    }

    fn judge(&self, status: StatusCode, pause: Option<Duration>, error: &ErrorBody, of: Of, what: &str) -> Fault {
        // A version that was listed is not missing, it is gone; a container that is not there is another matter.
        let missing = if of == Of::Version { FaultKind::Changed } else { FaultKind::Missing };
        let said = error.text();
        let named = &self.settings.named;
        let fault = |kind, why: String| Fault::new(kind, what, why).with_status(status.as_u16());
        match (status.as_u16(), error.code.as_str()) {
            (_, "ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled") => {
                fault(FaultKind::Missing, format!("{said}: container {} does not exist", self.settings.container))
            }
            (_, "BlobNotFound") => fault(missing, said),
            // Whoever asks as nobody is not told whether a private container exists.
            (_, "ResourceNotFound") if self.settings.credential == Credential::Anonymous => {
                let why = format!("{said}: container {} does not exist, or is private and {named} has no credentials", self.settings.container);
                fault(FaultKind::Missing, why)
            }
            (_, "BlobArchived" | "BlobBeingRehydrated") => fault(FaultKind::Config, format!("{said}: bring it back from the archive tier first")),
            (_, "ConditionNotMet" | "BlobModifiedWhileReading") => fault(FaultKind::Changed, "it changed after it was listed".to_owned()),
            (503 | 429, _) | (_, "ServerBusy" | "TooManyRequests") => fault(FaultKind::Busy { pause }, said),
            (_, "OperationTimedOut" | "InternalError") | (408 | 500..=599, _) => fault(FaultKind::Away, said),
            (401 | 403, _) | (_, "PublicAccessNotPermitted" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" | "AccountIsDisabled") => {
                fault(FaultKind::Denied, format!("{said}: {}", self.denied(&error.code)))
            }
            (404, _) => fault(missing, said),
            (300..=399, _) => fault(FaultKind::Config, format!("{said}: the account is elsewhere: check endpoint_url of {named}")),
            _ => fault(FaultKind::Config, said),
        }
    }

    /// What may help where the store does not let us in.
    fn denied(&self, code: &str) -> String {
        let named = &self.settings.named;
        match (&self.settings.credential, code) {
            (_, "KeyBasedAuthenticationNotPermitted") => format!("the account takes no keys: give {named} an identity instead"),
            (Credential::Anonymous, _) => format!("{named} has no credentials"),
            (Credential::Sas(_), _) => {
                format!("check that the sas_token of {named} is valid now, lets read and list, and passes the account's network rules")
            }
            (_, "AuthorizationFailure") => format!("check the credential of {named}, what it may do and the account's network rules"),
            (Credential::Key(_), _) => format!("check account_name and account_key (or connection_string) of {named}"),
            (Credential::Token(_), _) => format!("the identity of {named} needs the role Storage Blob Data Reader"),
        }
    }
}

#[async_trait]
impl Remote for AzureRemote {
    fn place(&self) -> &str {
        &self.place
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault> {
        // The metadata tells the marks of folders.
        let mut url = format!("{}/{}?restype=container&comp=list&include=metadata", self.settings.address(), self.settings.container);
        // An empty parameter is signed in different ways by different servers.
        for (name, value) in [("&prefix=", Some(prefix)), ("&marker=", after)] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                url.push_str(name);
                url.push_str(&encode(value, false));
            }
        }
        let what = format!("listing {prefix:?} of {}", self.place);
        let response = self.send(url, HeaderMap::new(), &what).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, Of::Other, &what).await);
        }
        let body = self.link.wire.read(response, LARGEST_PAGE, &what).await?;
        page(&body).map_err(|why| {
            let hint = "is endpoint_url the address of an Azure account?";
            Fault::new(FaultKind::Config, what, format!("the answer is no Azure listing ({why}): {hint}"))
        })
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let what = format!("object {:?} of {}", ask.key, self.place);
        // Such a part would leave the container on the way into the URL.
        if ask.key.is_empty() || ask.key.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(Fault::new(FaultKind::Config, what, "a name with such parts cannot be asked for"));
        }
        let mut headers = HeaderMap::new();
        if let Some(range) = ask.range {
            set(&mut headers, header::RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(version) = ask.version {
            set(&mut headers, header::IF_MATCH, &version.0);
        }
        let url = format!("{}/{}/{}", self.settings.address(), self.settings.container, encode(ask.key, true));
        let response = self.send(url, headers, &what).await?;
        let status = response.status();
        let changed = |why: &str| Fault::new(FaultKind::Changed, &what, why);
        if ask.range.is_some_and(|range| begins_after_the_end(range.start, status, response.headers())) {
            if ask.range.is_none_or(|range| range.start > 0) && refused_total(response.headers()) != Some(0) {
                return Err(changed("it is shorter than it was listed").with_status(status.as_u16()));
            }
            let version = version(response.headers()).or_else(|| ask.version.cloned());
            let object = Object { key: ask.key.to_owned(), size: ByteSize::ZERO, version, sums: Sums::default() };
            return Ok(Answer { object, range: 0..0, frames: Box::pin(futures::stream::empty()) });
        }
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::PRECONDITION_FAILED => return Err(changed("it changed after it was listed").with_status(412)),
            _ => {
                let of = if ask.version.is_some() { Of::Version } else { Of::Other };
                return Err(self.refused(response, of, &what).await);
            }
        }
        let (range, total) = answered(status, response.headers()).map_err(|why| Fault::new(FaultKind::Corrupt, &what, why))?;
        let version = version(response.headers());
        if let (Some(listed), Some(got)) = (ask.version, &version)
            && listed != got
        {
            return Err(changed("it changed after it was listed"));
        }
        let object = Object { key: ask.key.to_owned(), size: ByteSize(total), sums: sums(status, response.headers()), version };
        Ok(Answer { object, range, frames: frames(response) })
    }
}

/// Whether a range that begins at `start` has nothing of the blob. Azure refuses it then; its emulator answers a range that
/// begins right at the end with no bytes of none: `bytes 5-4/5`.
fn begins_after_the_end(start: u64, status: StatusCode, headers: &HeaderMap) -> bool {
    let total = || text(headers, "content-range")?.rsplit_once('/')?.1.parse::<u64>().ok();
    status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && total().is_some_and(|total| total <= start))
}

/// Listings name an ETag without quotes, answers with them.
fn version(headers: &HeaderMap) -> Option<Version> {
    quoted(text(headers, "etag")?)
}

/// Blobs of other types are written to in place, and keep the digest of what they were before.
const WRITTEN_ONCE: &str = "BlockBlob";

/// The MD5 that the blob's writer left with it. `Content-MD5` of an answer with a part is of that part.
fn sums(status: StatusCode, headers: &HeaderMap) -> Sums {
    if text(headers, "x-ms-blob-type") != Some(WRITTEN_ONCE) {
        return Sums::default();
    }
    let whole = text(headers, "content-md5").filter(|_| status == StatusCode::OK);
    Sums { md5: text(headers, "x-ms-blob-content-md5").or(whole).and_then(md5), ..Sums::default() }
}

fn md5(base64: &str) -> Option<[u8; 16]> {
    BASE64_STANDARD.decode(base64.trim()).ok()?.try_into().ok()
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorBody {
    code: String,
    message: String,
    authentication_error_detail: String,
}

impl ErrorBody {
    /// An answer that is no Azure error gives an empty one.
    fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        // Azure writes a mark of the byte order before its XML.
        quick_xml::de::from_str(text.trim_start_matches('\u{feff}')).unwrap_or_default()
    }

    /// Code and message as one short line. Details of signatures are left out but for those about time, which a user can
    /// do something about.
    fn text(&self) -> String {
        let detail = &self.authentication_error_detail;
        let timely = detail.starts_with("Signature not valid in the specified time frame") || detail.starts_with("Request date header too old");
        let message = if timely { detail } else { &self.message };
        let text = match (self.code.is_empty(), message.is_empty()) {
            (true, _) => return String::new(),
            (false, true) => self.code.clone(),
            (false, false) => format!("{}: {message}", self.code),
        };
        // The store's own time says nothing here; the number of the request is what its support asks for.
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("Time:")).collect();
        one_line(&lines.join(" "))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EnumerationResults {
    #[serde(default)]
    blobs: Blobs,
    #[serde(default)]
    next_marker: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blobs {
    #[serde(default)]
    blob: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: Name,
    properties: Properties,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Name {
    /// Percent-encoded, because XML could not hold it otherwise.
    #[serde(rename = "@Encoded", default)]
    encoded: bool,
    #[serde(rename = "$text", default)]
    text: String,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Content-Length", default)]
    length: u64,
    #[serde(rename = "Etag", default)]
    etag: Option<String>,
    #[serde(rename = "Content-MD5", default)]
    md5: Option<String>,
    #[serde(rename = "BlobType", default)]
    written: Option<String>,
    #[serde(rename = "ResourceType", default)]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "hdi_isfolder", alias = "Hdi_isfolder", default)]
    is_folder: Option<String>,
}

impl Blob {
    fn is_folder(&self) -> bool {
        let marked = self.metadata.as_ref().and_then(|metadata| metadata.is_folder.as_deref()).is_some_and(|mark| mark.eq_ignore_ascii_case("true"));
        marked || self.properties.kind.as_deref() == Some("directory")
    }

    fn object(self) -> Result<Object, String> {
        let key = if self.name.encoded {
            percent_decoded(&self.name.text).ok_or_else(|| format!("the name {:?} cannot be decoded", one_line(&self.name.text)))?
        } else {
            self.name.text
        };
        let stated = self.properties.md5.as_deref().filter(|_| self.properties.written.as_deref() == Some(WRITTEN_ONCE));
        let sums = Sums { md5: stated.and_then(md5), ..Sums::default() };
        Ok(Object { key, size: ByteSize(self.properties.length), version: self.properties.etag.as_deref().and_then(quoted), sums })
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit()? << 4 | digit()?
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn page(body: &[u8]) -> Result<Page, String> {
    let text = std::str::from_utf8(body).map_err(|_| "not UTF-8".to_owned())?.trim_start_matches('\u{feff}');
    if !text.contains("<EnumerationResults") {
        return Err("no EnumerationResults".to_owned());
    }
    let results: EnumerationResults = quick_xml::de::from_str(text).map_err(|fault| fault.to_string())?;
    let objects = results.blobs.blob.into_iter().filter(|blob| !blob.is_folder()).map(Blob::object);
    Ok(Page { objects: objects.collect::<Result<_, _>>()?, next: results.next_marker.filter(|marker| !marker.is_empty()) })
}
