//! TLS on the inference ports: certificates from files that may change, and who the clients are.
//!
//! [`Tls`] is what both ports share. A connection is made with the certificate, the key and the trusted certificates of
//! its own time and keeps them; a new one takes what the files say now ([`follow`](Tls::follow)). Files that cannot be used
//! are told, and the last good ones go on to count. What a handshake failed of is a [`Refusal`]. The deadline of a handshake
//! and its place among the connections of a port belong to `connections`.
//!
//! A key or a passphrase is never part of a message, a log line or a `Debug` output.

mod credentials;
mod files;
mod identity;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::{Clock, Counter, Gauge, Metrics};
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::credentials::{Credentials, ServerConfigs};
use self::files::Content;
pub use self::files::{ClientAuth, Passphrase, TlsFile, TlsSettings};
pub use self::identity::ClientIdentity;

/// How often the files are looked at again. A secret that is mounted changes about a minute after it was written anyway.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// So long before it ends, a certificate is worth a warning.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often that is said.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What a port speaks over TLS: what it agrees to when a client names protocols. One that names none is told apart by its
/// first bytes, as on a plain port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP/2 only.
    Grpc,
    /// HTTP/2 and HTTP/1.1.
    Rest,
}

/// The TLS of the inference ports. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    settings: TlsSettings,
    clock: Clock,
    metrics: Metrics,
    present: RwLock<Arc<Present>>,
    files: Mutex<Files>,
}

/// What counts for new connections.
struct Present {
    configs: ServerConfigs,
    /// When the certificate ends, since the epoch.
    expires: Duration,
    names: Vec<String>,
}

/// What the last looks at the files have shown.
struct Files {
    /// What is in use.
    used: Content,
    /// What cannot be used, and was not said yet: whoever writes one file after the other is given until the next look.
    doubtful: Option<Result<Content, Vec<String>>>,
    /// What cannot be used, and was said.
    wrong: Option<Result<Content, Vec<String>>>,
    /// Which certificate was last warned about, and when: both since the epoch.
    warned: Option<(Duration, Duration)>,
}

/// What a look at the files has shown that was not known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    None,
    Replaced,
    Wrong(Vec<String>),
    RightAgain,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong: each line names the setting, the file and what to do.
    pub fn open(settings: TlsSettings, clock: &Clock, metrics: &Metrics) -> Result<Tls, Vec<String>> {
        let used = Content::read(&settings)?;
        let present = Present::of(&Credentials::of(&settings, &used)?, clock)?;
        metrics.set(Gauge::TlsFilesFaulty, &[], 0);
        metrics.set(Gauge::TlsCertificateExpiry, &[], present.expires.as_secs());
        let files = Files { used, doubtful: None, wrong: None, warned: None };
        let (clock, metrics) = (clock.clone(), metrics.clone());
        Ok(Tls(Arc::new(Inner { settings, clock, metrics, present: RwLock::new(Arc::new(present)), files: Mutex::new(files) })))
    }

    /// What it was told.
    #[must_use]
    pub fn settings(&self) -> &TlsSettings {
        &self.0.settings
    }

    /// The names and addresses that the certificate is for, as it lists them.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.present.read().names.clone()
    }

    /// Looks at the files again and again until `stop`, and takes over what they say.
    pub async fn follow(self, stop: CancellationToken) {
        loop {
            let looking = self.clone();
            // A file system may hang; then so does this one thread, and what was read last counts.
            let news = tokio::task::spawn_blocking(move || looking.look()).await.unwrap_or(News::None);
            let path = &self.0.settings.certificate.path;
            match news {
                News::None => {}
                News::Replaced => {
                    info!(path = %path.display(), "certificates, key or trusted certificates were replaced: new connections use the new ones")
                }
                News::Wrong(faults) => {
                    warn!(error = %faults.join("; "), "the TLS files cannot be used as they are now: the last ones go on to count")
                }
                News::RightAgain => info!(path = %path.display(), "the TLS files can be used again: they are the same"),
            }
            if let Some(left) = self.ends_soon() {
                let path = path.display();
                match left {
                    Duration::ZERO => {
                        warn!(%path, "the certificate of the inference ports has expired: clients refuse it; put a new one in its place")
                    }
                    left => warn!(%path, left = %days(left), "the certificate of the inference ports expires soon: put a new one in its place"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.clock.sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Reads the files and takes over what can be used.
    fn look(&self) -> News {
        let Inner { settings, clock, metrics, present, files } = &*self.0;
        let mut files = files.lock();
        let found = Content::read(settings);
        if found.as_ref() == Ok(&files.used) {
            let was_wrong = files.wrong.take().is_some();
            files.doubtful = None;
            metrics.set(Gauge::TlsFilesFaulty, &[], 0);
            return if was_wrong { News::RightAgain } else { News::None };
        }
        if files.wrong.as_ref() == Some(&found) {
            return News::None;
        }
        let made = found.as_ref().map_err(Clone::clone).and_then(|content| Present::of(&Credentials::of(settings, content)?, clock));
        let made = made.and_then(|made| made.no_worse_than(&present.read(), settings, clock));
        match (made, found) {
            (Ok(made), Ok(content)) => {
                metrics.set(Gauge::TlsFilesFaulty, &[], 0);
                metrics.set(Gauge::TlsCertificateExpiry, &[], made.expires.as_secs());
                metrics.add(Counter::TlsReloads, &[("outcome", "replaced")], 1);
                *present.write() = Arc::new(made);
                *files = Files { used: content, doubtful: None, wrong: None, warned: files.warned };
                News::Replaced
            }
            (Err(_), found) if files.doubtful.as_ref() != Some(&found) => {
                files.doubtful = Some(found);
                News::None
            }
            (Err(faults), found) => {
                metrics.set(Gauge::TlsFilesFaulty, &[], 1);
                metrics.add(Counter::TlsReloads, &[("outcome", "refused")], 1);
                (files.doubtful, files.wrong) = (None, Some(found));
                News::Wrong(faults)
            }
            (Ok(_), Err(_)) => News::None, // nothing is made of nothing
        }
    }

    /// How long the certificate still counts, when that is little and it is time to say so.
    fn ends_soon(&self) -> Option<Duration> {
        let (expires, now) = (self.0.present.read().expires, wall(&self.0.clock));
        let left = expires.saturating_sub(now);
        let mut files = self.0.files.lock();
        let said = files.warned.is_some_and(|(about, when)| about == expires && now < when + WARN_EVERY && (now < expires || when >= expires));
        if left >= SOON || said {
            return None;
        }
        files.warned = Some((expires, now));
        Some(left)
    }

    /// Agrees on TLS with the client at the other end of `stream`, and learns who it is.
    pub(crate) async fn accept<S>(&self, stream: S, speaks: Speaks) -> Result<(TlsStream<S>, Option<ClientIdentity>), Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let present = Arc::clone(&self.0.present.read());
        let accepted = TlsAcceptor::from(present.configs.of(speaks)).accept(stream).await.map_err(|fault| Refusal::of(&fault))?;
        let identity = accepted.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|own| ClientIdentity::of(own));
        Ok((accepted, identity))
    }

    /// Counts a client with which no TLS came about.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.0.metrics.add(Counter::TlsRefused, &[("reason", refusal.label())], 1);
    }
}

impl Present {
    fn of(credentials: &Credentials, clock: &Clock) -> Result<Self, Vec<String>> {
        let configs = credentials.configs(clock).map_err(|fault| vec![format!("TLS cannot be set up: {fault}")])?;
        Ok(Present { configs, expires: credentials.expires, names: credentials.names.clone() })
    }

    /// Nothing that has expired takes the place of what has not.
    fn no_worse_than(self, present: &Present, settings: &TlsSettings, clock: &Clock) -> Result<Self, Vec<String>> {
        if self.expires <= wall(clock) && present.expires > self.expires {
            return Err(vec![settings.certificate.fault("has expired: put one in its place that has not")]);
        }
        Ok(self)
    }
}

/// Wall time since the epoch.
fn wall(clock: &Clock) -> Duration {
    Duration::from_millis(clock.wall().0)
}

fn days(left: Duration) -> String {
    let hours = left.as_secs() / 3600;
    if hours < 48 { format!("{hours} hours") } else { format!("{} days", hours / 24) }
}

/// Why no TLS came about with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It spoke HTTP without TLS.
    PlainText,
    /// What it sent is neither TLS nor HTTP, or broken TLS.
    Garbage(String),
    /// It took too long.
    Slow,
    /// It had to show a certificate, and has shown none.
    NoCertificate,
    /// It has shown one that is not trusted.
    NotTrusted(String),
    /// It broke off, telling why: mostly that it does not trust our certificate.
    Declined(String),
    /// The two have no protocol, version or cipher in common.
    Incompatible(String),
    /// It went away.
    Gone,
}

impl Refusal {
    fn of(fault: &io::Error) -> Self {
        use rustls::Error as Tls;
        let Some(told) = fault.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else { return Refusal::Gone };
        match told {
            Tls::NoCertificatesPresented => Refusal::NoCertificate,
            Tls::InvalidCertificate(_) => Refusal::NotTrusted(told.to_string()),
            Tls::AlertReceived(_) => Refusal::Declined(told.to_string()),
            Tls::NoApplicationProtocol | Tls::PeerIncompatible(_) => Refusal::Incompatible(told.to_string()),
            other => Refusal::Garbage(other.to_string()),
        }
    }

    /// For the metric.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Refusal::PlainText => "plain_text",
            Refusal::Garbage(_) => "garbage",
            Refusal::Slow => "slow",
            Refusal::NoCertificate => "no_certificate",
            Refusal::NotTrusted(_) => "not_trusted",
            Refusal::Declined(_) => "declined",
            Refusal::Incompatible(_) => "incompatible",
            Refusal::Gone => "gone",
        }
    }

    /// For people; `None` where there is nothing that anybody could do.
    pub(crate) fn why(&self) -> Option<String> {
        Some(match self {
            Refusal::PlainText => "it spoke HTTP without TLS to a port that speaks TLS".to_owned(),
            Refusal::Garbage(what) => format!("what it sent is no TLS: {what}"),
            Refusal::Slow => "its handshake took too long".to_owned(),
            Refusal::NoCertificate => "it has shown no certificate, and must".to_owned(),
            Refusal::NotTrusted(what) => format!("its certificate is not trusted: {what}"),
            Refusal::Declined(what) => format!("it broke off, perhaps as it does not trust the certificate here: {what}"),
            Refusal::Incompatible(what) => format!("it has no protocol in common with this port: {what}"),
            Refusal::Gone => return None,
        })
    }
}
