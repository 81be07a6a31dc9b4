//! Payload processors and the log context of requests, as they are configured: by our own names or by ModelMesh's.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use berth_proxy::payloads::{self, Deps, Payloads, Processor, Senders, Settings};
use berth_telemetry::{Clock, HostNet, Metrics};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tracing::info;

use crate::serve::shown;

/// ModelMesh's variables for our keys.
pub(crate) const UPSTREAM: [(&str, &[&str]); 4] = [
    ("payload-processors", &["MM_PAYLOAD_PROCESSORS"]),
    ("payload-threads", &["MM_PAYLOAD_PROCESSORS_THREADS"]),
    ("payload-capacity", &["MM_PAYLOAD_PROCESSORS_CAPACITY"]),
    ("log-request-headers", &["MM_LOG_REQUEST_HEADERS"]),
];

/// What was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Configured {
    /// Where payloads go; mostly nowhere.
    pub(crate) processors: Vec<Processor>,
    /// How much may wait.
    pub(crate) settings: Settings,
    /// Authorities that `https` processors are trusted by, besides those of this machine.
    pub(crate) ca: Vec<CertificateDer<'static>>,
}

/// A number of senders or of payloads.
///
/// # Errors
/// It is none.
pub(crate) fn count(text: &str) -> Result<NonZeroUsize, String> {
    const MOST: usize = 65_536;
    let count = text.trim().parse::<NonZeroUsize>().ok().filter(|count| count.get() <= MOST);
    count.ok_or_else(|| format!("{text:?} is no whole number from 1 to {MOST}"))
}

/// Sets the processors up; `None` where there are none.
///
/// # Errors
/// There is nobody to trust `https` ones by.
pub(crate) fn start(configured: &Configured, host: &str, clock: &Clock, metrics: &Metrics) -> Result<Option<(Payloads, Senders)>, String> {
    let Configured { processors, settings, ca } = configured.clone();
    if processors.is_empty() {
        return Ok(None);
    }
    let tls = processors.iter().any(Processor::is_https).then(|| trusting(ca)).transpose()?;
    let source = format!("{host}-{:x}-{:x}", clock.wall().0, std::process::id());
    let (clock, metrics) = (clock.clone(), metrics.clone());
    let labels: Vec<&str> = processors.iter().map(Processor::label).collect();
    info!(processors = labels.join(" "), "requests and answers are shown to payload processors");
    Ok(Some(payloads::Payloads::new(Deps { processors, settings, tls, net: HostNet::shared(), clock, metrics, source })))
}

/// The certificates in `list`, files with commas between them.
///
/// # Errors
/// The first file that holds none.
pub(crate) fn authorities(list: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = Vec::new();
    for path in list.split(',').map(str::trim).filter(|path| !path.is_empty()) {
        let told = |why: &dyn std::fmt::Display| format!("{}: {why}", shown(Path::new(path)));
        let pem = std::fs::read(path).map_err(|fault| told(&fault))?;
        let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap_or_default();
        let usable = |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
        if found.is_empty() || !found.iter().all(usable) {
            return Err(told(&"holds no certificates of authorities in PEM"));
        }
        all.extend(found);
    }
    Ok(all)
}

fn trusting(ca: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(ca);
    if roots.is_empty() {
        return Err("there are no authorities to trust https payload processors by: name a file of them with --payload-ca".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|fault| fault.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_and_bounded() {
        for (text, expected) in [("1", Some(1)), (" 64 ", Some(64)), ("65536", Some(65_536)), ("65537", None), ("0", None), ("-1", None), ("", None)]
        {
            assert_eq!(count(text).ok().map(NonZeroUsize::get), expected, "{text:?}");
        }
    }

    #[test]
    fn authorities_come_from_files_that_hold_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("none.pem");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
        let list = |path: &Path| format!(" {} ,", path.display());
        assert_eq!(authorities(" , "), Ok(vec![]));
        let why = "holds no certificates of authorities in PEM";
        assert_eq!(authorities(&list(&file)), Err(format!("{}: {why}", file.display())));
        assert!(authorities(&list(&folder.path().join("missing"))).expect_err("missing").contains("No such file"));
    }
}
