//! Payload processors and the log context of requests, as they are configured: by our own names or by ModelMesh's.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use berth_proxy::payloads::{self, Deps, Payloads, Processor, Senders, Settings};
use berth_telemetry::{Clock, HostNet, Metrics};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

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
    pub(crate) ca: Vec<PathBuf>,
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
/// What is wrong with the files of the authorities.
pub(crate) fn start(configured: &Configured, host: &str, clock: &Clock, metrics: &Metrics) -> Result<Option<(Payloads, Senders)>, String> {
    let Configured { processors, settings, ca } = configured.clone();
    if processors.is_empty() {
        return Ok(None);
    }
    let tls = processors.iter().any(Processor::is_https).then(|| trusting(&ca)).transpose()?;
    let source = format!("{host}-{:x}-{:x}", clock.wall().0, std::process::id());
    let (clock, metrics) = (clock.clone(), metrics.clone());
    Ok(Some(payloads::Payloads::new(Deps { processors, settings, tls, net: HostNet::shared(), clock, metrics, source })))
}

fn trusting(ca: &[PathBuf]) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in ca {
        let told = |why: &dyn std::fmt::Display| format!("{}: {why}", shown(path));
        let pem = std::fs::read(path).map_err(|fault| told(&fault))?;
        let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap_or_default();
        if found.is_empty() {
            return Err(told(&"holds no certificate in PEM"));
        }
        for certificate in found {
            roots.add(certificate).map_err(|fault| told(&fault))?;
        }
    }
    if roots.is_empty() {
        return Err("this machine has no authorities for https: name a file of them".to_owned());
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
}
