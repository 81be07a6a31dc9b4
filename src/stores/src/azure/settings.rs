//! What an entry of type `azure` says: container, address and one credential.
//!
//! The first of these that the entry holds is the credential: a connection string, an account key, a SAS token, a service
//! principal; none of them is anonymous. `credentials` names one that needs no secret of the entry. Pure.

use berth_telemetry::Clock;
use object_store::azure::authority_hosts::{AZURE_CHINA, AZURE_GERMANY, AZURE_GOVERNMENT, AZURE_PUBLIC_CLOUD};
use object_store::azure::{AzureAccessKey, AzureCredential};
use reqwest::Url;
use serde_json::{Map, Value};

use super::Link;
use super::token::{Grant, Tokens};
use crate::config::{Secret, endpoint, filled, fingerprint, verify, word};
use crate::wire::{Trust, Wire, in_the_open, is_here};
use crate::{ConfigFault, Patience, Verify};

/// The account that every emulator has, and its key, which is no secret.
const EMULATED: (&str, &str) = ("devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==");
const EMULATOR: &str = "http://127.0.0.1:10000";

/// A container, and how to speak with its store.
#[derive(Clone, Debug)]
pub struct AzureSettings {
    /// Scheme, host, port and a path prefix, which is the account where the host does not name it.
    pub(super) endpoint: Url,
    /// Whose key signs. Empty where nothing says it and nothing is signed.
    pub(super) account: String,
    pub(super) container: String,
    pub(super) credential: Credential,
    /// PEM certificates of the authorities to trust, and no others.
    pub(super) certificate: Option<String>,
    pub(crate) verify: Verify,
    /// How errors name the entry that the credential came from.
    pub(super) named: String,
}

/// As whom the store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// As nobody: the container is public.
    Anonymous,
    /// As the account itself: requests are signed.
    Key(Secret),
    /// As whoever holds the signature, which is part of the URL. Without a question mark.
    Sas(Secret),
    /// As an identity of the tenant: a token service gives tokens.
    Token(Grant),
}

impl AzureSettings {
    /// The settings of an entry, whose errors name it `named`.
    pub(crate) fn parse(config: &Map<String, Value>, named: &str) -> Result<Self, ConfigFault> {
        let mut faults = Vec::new();
        let connection = match filled(config, "connection_string").map(Connection::parse) {
            Some(Ok(connection)) => connection,
            Some(Err(why)) => {
                faults.push(why);
                Connection::default()
            }
            None => Connection::default(),
        };
        let account = connection.account.clone().or_else(|| filled(config, "account_name").map(str::to_owned)).unwrap_or_default();
        if !account.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            faults.push(format!("account_name {account:?} is not the name of an account"));
        }
        let container = filled(config, "container").unwrap_or_default();
        if container.is_empty() {
            faults.push("no container is named: set it in the model's storage parameters or in the entry".to_owned());
        } else if container.len() > 63 || !container.strip_prefix('$').unwrap_or(container).bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            faults.push(format!("container {container:?} is not the name of a container"));
        }
        let address = address(config, &connection, &account, &mut faults);
        let credential = credential(config, connection, &account, &mut faults);
        let certificate = filled(config, "certificate").map(str::to_owned);
        let verify = verify(config, &mut faults);
        if let (Some(address), Credential::Token(_)) = (&address, &credential)
            && in_the_open(address)
        {
            faults.push(format!("a token would travel in the open to {address}: the address must be https"));
        }
        match address {
            Some(endpoint) if faults.is_empty() => {
                Ok(AzureSettings { endpoint, account, container: container.to_owned(), credential, certificate, verify, named: named.to_owned() })
            }
            _ => Err(ConfigFault(format!("{named}: {}", faults.join("; ")))),
        }
    }

    /// The account's address as messages show it.
    pub(super) fn address(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    pub(crate) fn identity(&self) -> String {
        format!("azure {} container {}", self.address(), self.container)
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut fields = vec!["azure", self.address(), &self.account, self.certificate.as_deref().unwrap_or_default()];
        match &self.credential {
            Credential::Anonymous => fields.push("anonymous"),
            Credential::Key(key) => fields.extend(["key", &key.0]),
            Credential::Sas(sas) => fields.extend(["sas", &sas.0]),
            Credential::Token(grant) => fields.extend(grant.fields()),
        }
        fingerprint(&fields)
    }

    pub(crate) fn link(&self, patience: Patience, clock: Clock) -> Result<Link, ConfigFault> {
        let plain = self.endpoint.scheme() == "http";
        let direct = is_here(&self.endpoint);
        let named = self.named.as_str();
        let trust = Trust { plain, certificate: self.certificate.as_deref(), public: false, identity: None, direct, metadata: false, named };
        let wire = Wire::new(trust, patience, clock.clone())?;
        let auth = match &self.credential {
            Credential::Anonymous => super::Auth::None,
            Credential::Key(key) => {
                let key = AzureAccessKey::try_new(&key.0).map_err(|_| ConfigFault(format!("{}: {NO_KEY}", self.named)))?;
                super::Auth::Key(AzureCredential::AccessKey(key))
            }
            Credential::Sas(sas) => super::Auth::Sas(sas.clone()),
            Credential::Token(grant) => {
                // The token service is another host: the store's certificate is its too only where it is not Microsoft's.
                let own = grant.authority().is_some_and(|authority| !PUBLIC_AUTHORITIES.contains(&authority));
                let plain = grant.plain();
                let certificate = self.certificate.as_deref().filter(|_| own);
                let metadata = matches!(grant, Grant::Managed { .. });
                let trust = Trust { plain, certificate, public: false, identity: None, direct: grant.is_near(), metadata, named };
                let wire = Wire::new(trust, patience, clock)?;
                super::Auth::Tokens(Tokens::new(grant.clone(), wire, self.named.clone())?)
            }
        };
        Ok(Link { wire, auth, account: self.account.clone() })
    }
}

const NO_KEY: &str = "account_key is not a base64 text";

const PUBLIC_AUTHORITIES: [&str; 4] = [AZURE_CHINA, AZURE_GERMANY, AZURE_GOVERNMENT, AZURE_PUBLIC_CLOUD];

/// The account's address: `endpoint_url`, else the connection string's, else Azure's own.
fn address(config: &Map<String, Value>, connection: &Connection, account: &str, faults: &mut Vec<String>) -> Option<Url> {
    let (key, written) = match (filled(config, "endpoint_url"), &connection.endpoint) {
        (Some(url), _) => ("endpoint_url", url.to_owned()),
        (None, Some(url)) => ("BlobEndpoint of connection_string", url.clone()),
        (None, None) if account.is_empty() => {
            faults.push("account_name is missing".to_owned());
            return None;
        }
        (None, None) => {
            let protocol = connection.protocol.as_deref().unwrap_or("https");
            let suffix = connection.suffix.as_deref().unwrap_or("core.windows.net");
            ("the address that connection_string makes", format!("{protocol}://{account}.blob.{suffix}"))
        }
    };
    let mut url = endpoint(key, &written).map_err(|why| faults.push(why)).ok()?;
    // Emulators serve all accounts at one address, which names no account then.
    let bare = matches!(url.path(), "" | "/");
    let one_for_all = url.host_str().is_some_and(|host| host.starts_with('[') || !host.contains('.') || host.parse::<std::net::IpAddr>().is_ok());
    if bare && one_for_all && !account.is_empty() {
        url.set_path(account);
    }
    Some(url)
}

fn credential(config: &Map<String, Value>, connection: Connection, account: &str, faults: &mut Vec<String>) -> Credential {
    let authority = filled(config, "authority_host").and_then(|host| authority(host, faults));
    let id = |key: &str, faults: &mut Vec<String>| {
        let id = filled(config, key)?;
        // They become parts of an address.
        if id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            return Some(id.to_owned());
        }
        faults.push(format!("{key} is no id"));
        None
    };
    let (client, tenant) = (id("client_id", faults), id("tenant_id", faults));
    match filled(config, "credentials") {
        None => {}
        Some("anonymous") => return Credential::Anonymous,
        Some("managed_identity") => return Credential::Token(Grant::Managed { client, service: None }),
        Some("workload_identity") => return Credential::Token(Grant::Workload { client, tenant, authority }),
        Some(other) => {
            faults.push(format!("credentials is {}, it can be managed_identity, workload_identity or anonymous", word(other)));
            return Credential::Anonymous;
        }
    }
    let key = connection.key.or_else(|| filled(config, "account_key").filter(|_| connection.sas.is_none()).map(str::to_owned));
    let sas = connection.sas.or_else(|| filled(config, "sas_token").map(str::to_owned));
    let secret = filled(config, "client_secret");
    if let Some(key) = key {
        if AzureAccessKey::try_new(&key).is_err() {
            faults.push(NO_KEY.to_owned());
        }
        if account.is_empty() {
            faults.push("account_name is missing, whose key it is".to_owned());
        }
        return Credential::Key(Secret(key));
    }
    if let Some(sas) = sas {
        let sas = sas.trim_start_matches('?');
        if !sas.split('&').any(|part| part.starts_with("sig=")) || !sas.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            faults.push("sas_token is not a shared access signature (sv=...&sig=...)".to_owned());
        }
        return Credential::Sas(Secret(sas.to_owned()));
    }
    match (client, secret, tenant) {
        (Some(client), Some(secret), Some(tenant)) => {
            Credential::Token(Grant::Principal { tenant, client, secret: Secret(secret.to_owned()), authority })
        }
        (None, None, None) => Credential::Anonymous,
        _ => {
            faults.push("client_id, client_secret and tenant_id must be given together".to_owned());
            Credential::Anonymous
        }
    }
}

/// The token service of a cloud: a host, or its URL.
fn authority(written: &str, faults: &mut Vec<String>) -> Option<String> {
    let url = if written.contains("://") { written.to_owned() } else { format!("https://{written}") };
    match endpoint("authority_host", &url) {
        Ok(url) if in_the_open(&url) => {
            faults.push("authority_host must be https: the secret would travel in the open".to_owned());
            None
        }
        Ok(url) => Some(url.as_str().trim_end_matches('/').to_owned()),
        Err(why) => {
            faults.push(why);
            None
        }
    }
}

/// What a connection string says. Holds secrets.
#[derive(Default)]
struct Connection {
    account: Option<String>,
    key: Option<String>,
    sas: Option<String>,
    endpoint: Option<String>,
    protocol: Option<String>,
    suffix: Option<String>,
}

impl Connection {
    /// No error repeats any of the text: all of it may be secret.
    fn parse(text: &str) -> Result<Self, String> {
        let mut connection = Connection::default();
        let (mut emulator, mut proxy) = (false, None);
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or("connection_string is not a list of name=value; with semicolons between them")?;
            let value = Some(value.to_owned()).filter(|value| !value.is_empty());
            match name.trim().to_ascii_lowercase().as_str() {
                "accountname" => connection.account = value,
                "accountkey" => connection.key = value,
                "sharedaccesssignature" => connection.sas = value,
                "blobendpoint" => connection.endpoint = value,
                "endpointsuffix" => connection.suffix = value,
                "defaultendpointsprotocol" => connection.protocol = value,
                "usedevelopmentstorage" => emulator = value.is_some_and(|value| value.eq_ignore_ascii_case("true")),
                "developmentstorageproxyuri" => proxy = value,
                _ => {} // of the account's queues, tables and files
            }
        }
        if connection.protocol.as_deref().is_some_and(|protocol| !matches!(protocol, "http" | "https")) {
            return Err("DefaultEndpointsProtocol of connection_string can be http or https".to_owned());
        }
        let host = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
        if connection.suffix.as_ref().is_some_and(|suffix| !suffix.bytes().all(host)) {
            return Err("EndpointSuffix of connection_string is not a host name".to_owned());
        }
        if emulator {
            let (account, key) = EMULATED;
            let host = proxy.unwrap_or_else(|| EMULATOR.to_owned());
            // The proxy is named without a port: the emulator's is meant.
            let port = host.rsplit_once(':').is_some_and(|(_, port)| port.trim_end_matches('/').parse::<u16>().is_ok());
            let host = if port { host } else { format!("{}:10000", host.trim_end_matches('/')) };
            connection.endpoint.get_or_insert_with(|| format!("{}/{account}", host.trim_end_matches('/')));
            connection.account.get_or_insert_with(|| account.to_owned());
            connection.key.get_or_insert_with(|| key.to_owned());
        }
        if connection.account.is_none() && connection.endpoint.is_none() {
            return Err("connection_string names neither AccountName nor BlobEndpoint".to_owned());
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c0VjUmVU";

    fn parsed(entry: &str) -> Result<AzureSettings, String> {
        let Ok(Value::Object(entry)) = serde_json::from_str(entry) else { panic!("{entry}") };
        AzureSettings::parse(&entry, "storage config k").map_err(|fault| fault.to_string())
    }

    fn grant(client: &str) -> Credential {
        let (tenant, client, secret) = ("t-1".to_owned(), client.to_owned(), Secret("sEcReT".to_owned()));
        Credential::Token(Grant::Principal { tenant, client, secret, authority: None })
    }

    #[test]
    fn the_first_credential_in_order_and_the_nearest_address_are_taken() {
        let key = || Credential::Key(Secret(KEY.to_owned()));
        let sas = || Credential::Sas(Secret("sv=1&sig=a%2B".to_owned()));
        let emulated = || Credential::Key(Secret(EMULATED.1.to_owned()));
        let managed = |client: Option<&str>| Credential::Token(Grant::Managed { client: client.map(str::to_owned), service: None });
        for (entry, address, credential) in [
            (r#""account_name":"acc""#, "https://acc.blob.core.windows.net", Credential::Anonymous),
            (r#""account_name":"acc","account_key":"c0VjUmVU","sas_token":"sig=1""#, "https://acc.blob.core.windows.net", key()),
            (r#""account_name":"acc","sas_token":"?sv=1&sig=a%2B","client_id":"c"#, "", sas()),
            (r#""account_name":"acc","client_id":"c-1","client_secret":"sEcReT","tenant_id":"t-1""#, "", grant("c-1")),
            (
                r#""connection_string":"AccountName=a2;AccountKey=c0VjUmVU","account_name":"acc","client_id":"c"#,
                "https://a2.blob.core.windows.net",
                key(),
            ),
            (
                r#""connection_string":"DefaultEndpointsProtocol=http;accountname=a2;SharedAccessSignature=sv=1&sig=a%2B;EndpointSuffix=core.chinacloudapi.cn","account_key":"c0VjUmVU"#,
                "http://a2.blob.core.chinacloudapi.cn",
                sas(),
            ),
            (
                r#""connection_string":"BlobEndpoint=https://x.example/p/;AccountName=a2;AccountKey=c0VjUmVU;QueueEndpoint=https://q"#,
                "https://x.example/p",
                key(),
            ),
            (
                r#""connection_string":"AccountName=a2;BlobEndpoint=https://x.example","endpoint_url":"https://y.example"#,
                "https://y.example",
                Credential::Anonymous,
            ),
            (r#""connection_string":"UseDevelopmentStorage=true"#, "http://127.0.0.1:10000/devstoreaccount1", emulated()),
            (
                r#""connection_string":"UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://azurite"#,
                "http://azurite:10000/devstoreaccount1",
                emulated(),
            ),
            (r#""account_name":"acc","endpoint_url":"http://127.0.0.1:7"#, "http://127.0.0.1:7/acc", Credential::Anonymous),
            (r#""account_name":"acc","endpoint_url":"http://azurite:7"#, "http://azurite:7/acc", Credential::Anonymous),
            (r#""account_name":"acc","endpoint_url":"http://[::1]:7/other/"#, "http://[::1]:7/other", Credential::Anonymous),
            (r#""account_name":"acc","endpoint_url":"https://models.example"#, "https://models.example", Credential::Anonymous),
            (r#""account_name":"acc","credentials":"managed_identity"#, "", managed(None)),
            (r#""account_name":"acc","credentials":"managed_identity","client_id":"c"#, "", managed(Some("c"))),
            (r#""account_name":"acc","credentials":"anonymous","account_key":"c0VjUmVU"#, "", Credential::Anonymous),
        ] {
            let closed = if entry.ends_with('"') { entry.to_owned() } else { format!("{entry}\"") };
            let settings = parsed(&format!(r#"{{"type":"azure","container":"c",{closed}}}"#)).unwrap_or_else(|why| panic!("{entry}: {why}"));
            assert_eq!(settings.credential, credential, "{entry}");
            assert_eq!(settings.address(), if address.is_empty() { "https://acc.blob.core.windows.net" } else { address }, "{entry}");
        }
    }

    #[test]
    fn an_entry_that_cannot_work_says_why_without_its_secrets() {
        for (entry, expected) in [
            ("{}", "storage config k: no container is named: set it in the model's storage parameters or in the entry; account_name is missing"),
            (r#"{"account_name":"a.evil.example/","container":"c"}"#, "account_name \"a.evil.example/\" is not the name of an account"),
            (r#"{"account_name":"a","container":"../x"}"#, "container \"../x\" is not the name of a container"),
            (r#"{"account_name":"a","container":"c","account_key":"sEcReT!"}"#, "account_key is not a base64 text"),
            (r#"{"account_name":"a","container":"c","sas_token":"sEcReT"}"#, "sas_token is not a shared access signature"),
            (r#"{"account_name":"a","container":"c","sas_token":"sig=sEcReT\n"}"#, "sas_token is not a shared access signature"),
            (r#"{"account_name":"a","container":"c","client_id":"i","client_secret":"sEcReT"}"#, "must be given together"),
            (r#"{"account_name":"a","container":"c","client_id":"i","client_secret":"sEcReT","tenant_id":"sEcReT/"}"#, "tenant_id is no id"),
            (r#"{"account_name":"a","container":"c","credentials":"static"}"#, "it can be managed_identity, workload_identity or anonymous"),
            (r#"{"account_name":"a","container":"c","credentials":"sEcReT"}"#, "credentials is something else, it can be managed_identity"),
            (
                r#"{"container":"c","connection_string":"AccountName=a;BlobEndpoint=ftp://x/?sig=sEcReT"}"#,
                "BlobEndpoint of connection_string is not an http or https URL",
            ),
            (r#"{"container":"c","connection_string":"sEcReT"}"#, "connection_string is not a list"),
            (r#"{"container":"c","connection_string":"AccountKey=sEcReT"}"#, "names neither AccountName nor BlobEndpoint"),
            (
                r#"{"container":"c","connection_string":"AccountName=a;EndpointSuffix=x@sEcReT"}"#,
                "EndpointSuffix of connection_string is not a host name",
            ),
            (r#"{"container":"c","connection_string":"BlobEndpoint=https://u:sEcReT@x;AccountName=a"}"#, "holds a user or password"),
            (
                r#"{"account_name":"a","container":"c","credentials":"managed_identity","endpoint_url":"http://x.example"}"#,
                "a token would travel in the open to http://x.example/",
            ),
            (
                r#"{"account_name":"a","container":"c","client_id":"i","client_secret":"sEcReT","tenant_id":"t","authority_host":"http://x.example"}"#,
                "authority_host must be https",
            ),
            (r#"{"account_name":"a","container":"c","verify":"sometimes"}"#, "verify is \"sometimes\""),
        ] {
            let fault = parsed(entry).map(|_| ()).expect_err(entry);
            assert!(fault.starts_with("storage config k: ") && fault.contains(expected), "{entry}: {fault}");
            assert!(!fault.contains("sEcReT"), "{fault}");
        }
    }

    #[test]
    fn settings_print_without_secrets_and_differ_by_them() {
        let with = |more: &str| parsed(&format!(r#"{{"account_name":"acc","container":"c",{more}}}"#)).expect("sound");
        let all = [
            with(r#""verify":"length""#),
            with(r#""account_key":"c0VjUmVU""#),
            with(r#""account_key":"c0VjUmVV""#),
            with(r#""sas_token":"sig=c0VjUmVU""#),
            with(r#""client_id":"c0VjUmVU","client_secret":"c0VjUmVU","tenant_id":"t""#),
            with(r#""client_id":"c0VjUmVU","client_secret":"c0VjUmVU","tenant_id":"t","authority_host":"login.microsoftonline.us""#),
            with(r#""credentials":"managed_identity""#),
            with(r#""credentials":"workload_identity""#),
            with(r#""certificate":"pem""#),
        ];
        for (i, settings) in all.iter().enumerate() {
            let text = format!("{settings:?} {}", settings.identity());
            assert!(!text.replace("client: \"c0VjUmVU\"", "").contains("c0VjUmVU"), "{text}");
            assert_eq!(settings.identity(), all[0].identity());
            for other in &all[..i] {
                assert_ne!(settings.fingerprint(), other.fingerprint(), "{settings:?} and {other:?}");
            }
        }
        assert_eq!(all[0].verify, Verify::Length);
        assert_eq!(all[0].fingerprint(), with(r#""verify":"content""#).fingerprint(), "what is held against the bytes is not a connection's");
    }
}
