//! TLS of the inference ports, as it is configured: by our own names or by ModelMesh's, and what a user is shown of it.
//!
//! What the files hold is checked by `berth-proxy`; here is only where they come from.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use berth_proxy::{ClientAuth, Passphrase, Tls, TlsFile, TlsSettings};

use crate::serve::shown;

/// ModelMesh's variables for our keys: the present name, then the old one.
pub(crate) const UPSTREAM: [(&str, &[&str]); 4] = [
    ("tls-cert", &["MM_TLS_KEY_CERT_PATH", "MM_SVC_GRPC_CA_CERT_PATH"]),
    ("tls-key", &["MM_TLS_PRIVATE_KEY_PATH", "MM_SVC_GRPC_PRIVATE_KEY_PATH"]),
    ("tls-client-auth", &["MM_TLS_CLIENT_AUTH"]),
    ("tls-client-ca", &["MM_TLS_TRUST_CERT_PATH"]),
];

/// A passphrase is a variable only: a command line can be seen by everybody on the machine, and a file of settings is no
/// place for secrets.
const PASSPHRASES: [&str; 3] = ["BERTH_TLS_KEY_PASSPHRASE", "MM_TLS_PRIVATE_KEY_PASSPHRASE", "MM_SVC_GRPC_PRIVATE_KEY_PASSPHRASE"];

/// One setting as it was given: what it says, and what said it.
pub(crate) type Setting = Option<(String, String)>;

/// The settings as they were given.
pub(crate) struct Given {
    pub(crate) certificate: Setting,
    pub(crate) key: Setting,
    pub(crate) client_auth: Setting,
    pub(crate) client_ca: Setting,
}

/// The first of the passphrases that is given.
pub(crate) fn passphrase(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<Passphrase> {
    let mut given = PASSPHRASES.into_iter().filter_map(|name| Some((name, variable(name).filter(|text| !text.is_empty())?)));
    given.next().map(|(name, text)| Passphrase::new(name, text.to_string_lossy()))
}

/// What the ports are told, the files read and checked. `None` is plain text.
///
/// # Errors
/// All faults, each with the setting that it comes from.
pub(crate) fn settings(given: Given, passphrase: Option<Passphrase>) -> Result<Option<TlsSettings>, Vec<String>> {
    let mut faults = Vec::new();
    let client_auth = match &given.client_auth {
        None => ClientAuth::None,
        Some((text, setting)) => text.parse().unwrap_or_else(|fault| {
            faults.push(format!("{setting}: {fault}"));
            ClientAuth::None
        }),
    };
    let trust: Vec<TlsFile> = given.client_ca.iter().flat_map(|(list, setting)| files(list, setting)).collect();
    let asks = given.client_auth.as_ref().filter(|_| client_auth != ClientAuth::None);
    if let Some((_, setting)) = asks.filter(|_| trust.is_empty()) {
        let what = "clients are asked for certificates, and none is trusted: list files of trusted ones";
        faults.push(format!("{setting}: {what} with --tls-client-ca or MM_TLS_TRUST_CERT_PATH"));
    }
    let (certificate, key) = match (given.certificate, given.key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (Some((_, setting)), None) => {
            faults.push(format!("{setting}: there is no private key for it: give one with --tls-key or MM_TLS_PRIVATE_KEY_PATH"));
            return Err(faults);
        }
        (None, Some((_, setting))) => {
            faults.push(format!("{setting}: there is no certificate for it: give one with --tls-cert or MM_TLS_KEY_CERT_PATH"));
            return Err(faults);
        }
        (None, None) => {
            if let Some((_, setting)) = asks {
                let what = "clients can show certificates over TLS only, and the server has none";
                faults.push(format!(
                    "{setting}: {what}: give it one with --tls-cert and --tls-key, or with MM_TLS_KEY_CERT_PATH and MM_TLS_PRIVATE_KEY_PATH"
                ));
            }
            return if faults.is_empty() { Ok(None) } else { Err(faults) };
        }
    };
    let file = |(path, setting): (String, String)| TlsFile { setting, path: PathBuf::from(path) };
    let settings = TlsSettings { certificate: file(certificate), key: file(key), passphrase, client_auth, trust };
    faults.extend(settings.faults());
    if faults.is_empty() { Ok(Some(settings)) } else { Err(faults) }
}

fn files(list: &str, setting: &str) -> Vec<TlsFile> {
    let paths = list.split(',').map(str::trim).filter(|path| !path.is_empty());
    paths.map(|path| TlsFile { setting: setting.to_owned(), path: PathBuf::from(path) }).collect()
}

/// What the start says of it.
pub(crate) fn line(tls: &Tls) -> String {
    let settings = tls.settings();
    let names = tls.names();
    let names = if names.is_empty() { "nobody in particular".to_owned() } else { names.join(", ") };
    let clients = match settings.client_auth {
        ClientAuth::None => "clients show none",
        ClientAuth::Optional => "clients may show one",
        ClientAuth::Require => "clients must show one",
    };
    format!("the certificate in {} for {names}; {clients}", shown(&settings.certificate.path))
}

/// How REST is reached from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// `curl` with the options that it needs.
    pub(crate) curl: String,
    /// Scheme, host and port.
    pub(crate) url: String,
}

impl Reached {
    /// Over `tls`, with a name that its certificate is for where it has one.
    pub(crate) fn at(addr: SocketAddr, tls: Option<&Tls>) -> Self {
        match tls {
            None => Reached { curl: "curl -s".to_owned(), url: format!("http://{addr}") },
            Some(tls) => Reached::secured(addr, tls.settings(), &tls.names()),
        }
    }

    fn secured(addr: SocketAddr, settings: &TlsSettings, names: &[String]) -> Self {
        let mut addr = addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let is_for = |name: &str| names.iter().any(|own| own.eq_ignore_ascii_case(name));
        let is_host = |name: &&String| !name.contains(['*', '@', '/', ':', '\'']) && name.parse::<IpAddr>().is_err();
        let name = names.iter().find(is_host);
        let file = shown(&settings.certificate.path);
        let (curl, url) = match name {
            _ if is_for(&addr.ip().to_string()) => (format!("curl -s --cacert {file}"), format!("https://{addr}")),
            Some(_) if addr.ip().is_loopback() && is_for("localhost") => {
                (format!("curl -s --cacert {file}"), format!("https://localhost:{}", addr.port()))
            }
            Some(name) => (format!("curl -s --cacert {file} --connect-to ::{addr}"), format!("https://{name}:{}", addr.port())),
            None => ("curl -sk".to_owned(), format!("https://{addr}")),
        };
        let own = if settings.client_auth == ClientAuth::Require { " --cert CLIENT.crt --key CLIENT.key" } else { "" };
        Reached { curl: format!("{curl}{own}"), url }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(settings: [Option<&str>; 4]) -> Given {
        let [certificate, key, client_auth, client_ca] = ["C", "K", "A", "T"].map(str::to_owned);
        let setting = |at: usize, name| settings[at].map(|text| (text.to_owned(), name));
        Given { certificate: setting(0, certificate), key: setting(1, key), client_auth: setting(2, client_auth), client_ca: setting(3, client_ca) }
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        for (settings_given, expected) in [
            ([None, None, None, None], &[][..]),
            ([None, None, Some("NONE"), None], &[]),
            ([None, None, None, Some("/ca")], &[]),
            ([Some("/c"), None, None, None], &["C: there is no private key for it: give one with --tls-key or MM_TLS_PRIVATE_KEY_PATH"]),
            ([None, Some("/k"), None, None], &["K: there is no certificate for it: give one with --tls-cert or MM_TLS_KEY_CERT_PATH"]),
            (
                [Some("/no/c"), Some("/no/k"), Some("sometimes"), None],
                &["A: \"sometimes\" is none of NONE, OPTIONAL and REQUIRE", "C: /no/c: No such file", "K: /no/k: No such file"],
            ),
            (
                [None, None, Some("require"), None],
                &["A: clients are asked for certificates, and none is trusted: list", "A: clients can show certificates over TLS only"],
            ),
            (
                [Some("/no/c"), Some("/no/k"), Some("OPTIONAL"), Some("/no/a, /no/b,")],
                &["C: /no/c: No such", "K: /no/k: No such", "T: /no/a: No such", "T: /no/b: No such"],
            ),
        ] {
            let faults = settings(given(settings_given), None).err().unwrap_or_default();
            let as_expected = faults.len() == expected.len() && faults.iter().zip(expected).all(|(fault, start)| fault.starts_with(start));
            assert!(as_expected, "{settings_given:?}: {faults:?}");
        }
    }

    #[test]
    fn the_first_passphrase_that_says_something_counts() {
        let of = |given: &'static [(&str, &str)]| passphrase(&|name| given.iter().find(|(own, _)| *own == name).map(|(_, text)| text.into()));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("MM_TLS_PRIVATE_KEY_PASSPHRASE", "")]), None);
        let old = ("MM_SVC_GRPC_PRIVATE_KEY_PASSPHRASE", "old");
        assert_eq!(of(&[("MM_SVC_GRPC_PRIVATE_KEY_PASSPHRASE", "old")]), Some(Passphrase::new(old.0, old.1)));
        let both = of(&[("MM_SVC_GRPC_PRIVATE_KEY_PASSPHRASE", "old"), ("MM_TLS_PRIVATE_KEY_PASSPHRASE", "new")]);
        assert_eq!(both, Some(Passphrase::new("MM_TLS_PRIVATE_KEY_PASSPHRASE", "new")));
        assert!(!format!("{both:?}").contains("new"));
    }

    #[test]
    fn a_server_is_reached_by_a_name_of_its_certificate() {
        let file = |path: &str| TlsFile { setting: String::new(), path: PathBuf::from(path) };
        let settings =
            |client_auth| TlsSettings { certificate: file("/t/tls.crt"), key: file("/t/k"), passphrase: None, client_auth, trust: Vec::new() };
        let cacert = "curl -s --cacert /t/tls.crt";
        for (addr, names, curl, url) in [
            ("127.0.0.1:8008", &["localhost", "127.0.0.1"][..], cacert.to_owned(), "https://127.0.0.1:8008"),
            ("0.0.0.0:8008", &["127.0.0.1"], cacert.to_owned(), "https://127.0.0.1:8008"),
            ("127.0.0.1:8008", &["m.ns.svc", "localhost"], cacert.to_owned(), "https://localhost:8008"),
            ("127.0.0.1:8008", &["*.ns", "m.ns.svc"], format!("{cacert} --connect-to ::127.0.0.1:8008"), "https://m.ns.svc:8008"),
            ("[::1]:8008", &["m"], format!("{cacert} --connect-to ::[::1]:8008"), "https://m:8008"),
            ("127.0.0.1:8008", &["10.0.0.1"], "curl -sk".to_owned(), "https://127.0.0.1:8008"),
            ("127.0.0.1:8008", &[], "curl -sk".to_owned(), "https://127.0.0.1:8008"),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let addr: SocketAddr = addr.parse().expect("an address");
            let expected = Reached { curl: curl.clone(), url: url.to_owned() };
            assert_eq!(Reached::secured(addr, &settings(ClientAuth::Optional), &names), expected);
            let with_own = Reached { curl: format!("{curl} --cert CLIENT.crt --key CLIENT.key"), ..expected };
            assert_eq!(Reached::secured(addr, &settings(ClientAuth::Require), &names), with_own);
        }
        let plain = Reached { curl: "curl -s".to_owned(), url: "http://127.0.0.1:1".to_owned() };
        assert_eq!(Reached::at("127.0.0.1:1".parse().expect("an address"), None), plain);
    }
}
