//! Speaks with plain web servers: one GET per object, and no listing.
//!
//! The address of an object is the entry's `url` with the object's key at the end of its path; the query of `url` stays.
//! Servers tell versions apart in different ways, or not at all, and need not know ranges: what an answer says decides,
//! never what was asked for. Redirects are followed here, hop by hop, because headers and client certificates of an entry
//! must not go to a host that they are not for. A page that says "not found" with the status 200 cannot be told from a
//! model here.

mod settings;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use berth_telemetry::Clock;
use berth_types::ByteSize;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use object_store::client::HttpResponse;
use parking_lot::Mutex;
use reqwest::Url;

pub use self::settings::WebSettings;
use self::settings::{Identity, shown};
use self::statements::{condition, sums, version};
use crate::wire::{Trust, Wire, answered, encode, frames, is_here, is_metadata, refused_total, retry_after, set, text};
use crate::{Answer, Ask, ConfigFault, Fault, FaultKind, Object, Page, Patience, Remote, Sums};

/// More in a row are a circle.
const MOST_REDIRECTS: usize = 10;

/// What kind of connection a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Way {
    /// To a host that may see what the entry holds.
    own: bool,
    tls: bool,
    /// Without a proxy.
    direct: bool,
}

/// Connections, shared by all addresses of a host that are read with the same credential and trust.
pub(crate) struct Link {
    certificate: Option<String>,
    identity: Option<Identity>,
    named: String,
    patience: Patience,
    clock: Clock,
    /// Made when they are needed. At most one for each way.
    wires: Mutex<HashMap<Way, Wire>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("ways", &self.wires.lock().keys()).finish_non_exhaustive()
    }
}

impl Link {
    fn wire(&self, way: Way) -> Result<Wire, ConfigFault> {
        if let Some(wire) = self.wires.lock().get(&way) {
            return Ok(wire.clone());
        }
        let Way { own, tls, direct } = way;
        let trust = Trust {
            plain: !tls,
            certificate: self.certificate.as_deref().filter(|_| tls),
            // The certificate says whom the entry's own hosts are known by. Where they send us on to may be anywhere.
            public: !own,
            identity: self.identity.as_ref().filter(|_| tls && own).map(|identity| (identity.certificate.as_str(), identity.key.0.as_str())),
            direct,
            metadata: false,
            named: &self.named,
        };
        let wire = Wire::new(trust, self.patience, self.clock.clone())?;
        self.wires.lock().insert(way, wire.clone());
        Ok(wire)
    }
}

/// The addresses under one URL.
#[derive(Debug)]
pub(crate) struct WebRemote {
    settings: WebSettings,
    link: Arc<Link>,
    place: String,
}

/// An answer that is no redirect.
struct Came {
    response: HttpResponse,
    /// How errors name what was asked for, and where that led to.
    what: String,
    /// Whether what the entry holds was shown to whoever answered.
    own: bool,
}

impl WebRemote {
    pub(crate) fn new(settings: WebSettings, link: Arc<Link>) -> Self {
        let place = settings.address().to_owned();
        WebRemote { settings, link, place }
    }

    /// How errors name an object, and its address.
    fn object(&self, key: &str) -> Result<(String, Url), Fault> {
        let what = if key.is_empty() { self.place.clone() } else { format!("object {key:?} of {}", self.place) };
        let mut url = self.settings.url.clone();
        let key = key.strip_prefix('/').unwrap_or(key);
        if key.split('/').any(|segment| matches!(segment, "." | "..")) {
            // URLs are normalised on their way: it would be another address.
            return Err(Fault::new(FaultKind::Config, what, "its path has a segment \".\" or \"..\", which no address can name"));
        }
        if !key.is_empty() {
            let path = format!("{}/{}", url.path().trim_end_matches('/'), encode(key, true));
            url.set_path(&path);
        }
        url.set_query(self.settings.query.as_ref().map(|query| query.0.as_str()));
        Ok((what, url))
    }

    /// Asks, and goes where redirects lead. Once they lead away from the entry's hosts nothing of the entry goes along, even
    /// where they lead back: whoever sent us on would choose what is asked for with it.
    async fn ask(&self, mut url: Url, asked: &HeaderMap, object: &str) -> Result<Came, Fault> {
        let settings = &self.settings;
        let (mut own, mut what) = (true, object.to_owned());
        for _ in 0..=MOST_REDIRECTS {
            let way = Way { own, tls: url.scheme() == "https", direct: is_here(&url) };
            let wire = self.link.wire(way).map_err(|fault| Fault::new(FaultKind::Config, &what, fault.0))?;
            let mut headers = if own { settings.headers.clone() } else { HeaderMap::new() };
            headers.extend(asked.clone());
            let response = wire.send(Wire::request(url.as_str(), headers, &what)?, &what).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Came { response, what, own });
            }
            let wrong = |why: String| Fault::new(FaultKind::Config, &what, why).with_status(status.as_u16());
            let next = next(&url, response.headers()).map_err(wrong)?;
            if way.tls && next.scheme() == "http" && settings.holds_secrets() {
                let why = "with headers, a password or a client certificate no redirect from https to http is followed";
                return Err(wrong(format!("redirect to {}: {why}", shown(&next))));
            }
            // Read to its end, the connection can be used again.
            wire.error_text(response, &what).await;
            own = own && settings.is_own(&next);
            what = format!("{object}, sent on to {}", shown(&next));
            url = next;
        }
        Err(Fault::new(FaultKind::Config, what, format!("redirected more than {MOST_REDIRECTS} times: the server leads in a circle")))
    }

    /// What an answer without success means. Its text is somebody's page, or repeats what it was asked with: it is left out.
    fn judge(&self, came: &Came) -> Fault {
        let status = came.response.status();
        let named = &self.settings.named;
        let (kind, hint) = match status.as_u16() {
            404 | 410 => (FaultKind::Missing, String::new()),
            401 | 403 => (FaultKind::Denied, self.denied(came.own)),
            407 => (FaultKind::Denied, "the proxy on the way wants a credential: give it in the proxy's URL".to_owned()),
            412 => (FaultKind::Changed, CHANGED.to_owned()),
            429 | 503 => (FaultKind::Busy { pause: retry_after(came.response.headers()) }, String::new()),
            501 => (FaultKind::Config, "the server cannot do that".to_owned()),
            408 | 425 | 500..=599 => (FaultKind::Away, String::new()),
            200..=299 => (FaultKind::Config, format!("the answer has no content: check url of {named}")),
            _ => (FaultKind::Config, format!("check url, headers and client certificate of {named}")),
        };
        let said = status.canonical_reason().unwrap_or_default();
        let why = if said.is_empty() || hint.is_empty() { format!("{said}{hint}") } else { format!("{said}: {hint}") };
        Fault::new(kind, &came.what, why).with_status(status.as_u16())
    }

    /// What may help where the server does not let us in.
    fn denied(&self, own: bool) -> String {
        let settings = &self.settings;
        let named = &settings.named;
        match (own, settings.holds_secrets(), settings.query.is_some()) {
            (false, true, _) => format!("{named} shows its headers there only where allowed_hosts names the host"),
            (_, _, true) => format!("check headers of {named}, and whether the signature in its url is still good"),
            (true, true, false) => format!("check headers, user and client certificate of {named}"),
            (_, false, false) => format!("{named} has no headers, user or client certificate"),
        }
    }
}

const CHANGED: &str = "it changed since it was first asked for";

/// Where a redirect leads. A user and password in it are not used.
fn next(at: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(header::LOCATION).ok_or("redirect without a place to go to")?;
    // Servers write other characters than they should; the URL's rules are to encode them.
    let location = std::str::from_utf8(location.as_bytes()).map_err(|_| "redirect to something that is no URL")?;
    let mut next = at.join(location).map_err(|fault| format!("redirect to something that is no URL: {fault}"))?;
    if !matches!(next.scheme(), "http" | "https") {
        return Err(format!("redirect to {}://, which is not http or https", next.scheme()));
    }
    if is_metadata(&next) {
        return Err("redirect to the address of a metadata service, which is no store".to_owned());
    }
    if is_here(&next) && !is_here(at) {
        return Err("redirect to this very machine, where another one may send nobody".to_owned());
    }
    // Both can be set on what has a host.
    let _ = (next.set_username(""), next.set_password(None));
    next.set_fragment(None);
    Ok(next)
}

#[async_trait]
impl Remote for WebRemote {
    fn place(&self) -> &str {
        &self.place
    }

    fn lists(&self) -> bool {
        false
    }

    async fn list(&self, _prefix: &str, _after: Option<&str>) -> Result<Page, Fault> {
        Err(Fault::new(FaultKind::Config, &self.place, "a web server lists nothing: a path names one file"))
    }

    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let (what, url) = self.object(ask.key)?;
        let mut headers = HeaderMap::new();
        // What is packed for the way has another length, and none that is known beforehand.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some((name, value)) = ask.version.and_then(condition) {
            set(&mut headers, name, value);
        }
        let whole = headers.clone();
        if let Some(range) = ask.range {
            set(&mut headers, header::RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let mut came = self.ask(url.clone(), &headers, &what).await?;
        if came.response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let total = refused_total(came.response.headers());
            if total == Some(0) {
                let version = version(came.response.headers(), 0).or_else(|| ask.version.cloned());
                let object = Object { key: ask.key.to_owned(), size: ByteSize::ZERO, version, sums: Sums::default() };
                return Ok(Answer { object, range: 0..0, frames: Box::pin(futures::stream::empty()) });
            }
            if ask.range.is_some_and(|range| range.start > 0) {
                return Err(Fault::new(FaultKind::Changed, came.what, "it is shorter than it was").with_status(416));
            }
            // A file has a first byte or is empty. Who says neither does not know ranges.
            came = self.ask(url, &whole, &what).await?;
        }
        let status = came.response.status();
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            let fault = self.judge(&came);
            // A version that was seen is not missing, it is gone.
            let gone = ask.version.is_some() && fault.kind == FaultKind::Missing;
            return Err(if gone { Fault { kind: FaultKind::Changed, ..fault } } else { fault });
        }
        let (headers, what) = (came.response.headers(), &came.what);
        let fault = |kind, why: &str| Fault::new(kind, what, why).with_status(status.as_u16());
        if status == StatusCode::OK && text(headers, "content-length").is_none() {
            return Err(fault(FaultKind::Config, "the answer has no Content-Length: a broken answer could not be told from a whole one"));
        }
        let (range, total) = answered(status, headers).map_err(|why| fault(FaultKind::Corrupt, &why))?;
        let version = version(headers, total);
        // Not every server minds a condition.
        if ask.version.is_some_and(|seen| Some(seen) != version.as_ref()) {
            return Err(fault(FaultKind::Changed, CHANGED));
        }
        let object = Object { key: ask.key.to_owned(), size: ByteSize(total), sums: sums(status, headers), version };
        Ok(Answer { object, range, frames: frames(came.response) })
    }
}
