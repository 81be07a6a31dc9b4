//! Who signs the requests to an S3 store: keys of the entry, or what the place where we run is lent.
//!
//! `object_store` speaks with the services that lend credentials and keeps what they gave until shortly before it ends.
//! Here is decided which of them is asked, what their failures mean, and that they are asked anew when a store says that
//! a credential ended early. They are spoken with over connections of their own: the certificate in an entry is about the
//! store, not about them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key, AwsCredential, AwsCredentialProvider};
use object_store::client::HttpError;
use parking_lot::Mutex;
use reqwest::Url;

use crate::config::Secret;
use crate::wire::{NotLent, Trust, Wire, is_here, one_line, root_cause, unusable};
use crate::{ConfigFault, Fault, FaultKind, Patience};

/// Where the credentials for a store come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Requests are not signed.
    Anonymous,
    /// Keys of the entry.
    Static { key_id: Secret, secret: Secret, token: Option<Secret> },
    /// The token in a file is traded for keys of a role. What is `None` the environment names.
    WebIdentity { role: Option<String>, token_file: Option<String> },
    /// The first that the environment offers: keys, web identity, container credentials, the instance's role.
    Environment,
    /// The role of the instance.
    Instance,
}

impl Credentials {
    /// What tells them from others. Secrets are in it: for digests only.
    pub(crate) fn fields(&self) -> [&str; 4] {
        match self {
            Credentials::Anonymous => ["anonymous", "", "", ""],
            Credentials::Static { key_id, secret, token } => ["static", &key_id.0, &secret.0, token.as_ref().map_or("", |token| &token.0)],
            Credentials::WebIdentity { role, token_file } => {
                ["web_identity", role.as_deref().unwrap_or_default(), token_file.as_deref().unwrap_or_default(), ""]
            }
            Credentials::Environment => ["environment", "", "", ""],
            Credentials::Instance => ["instance", "", "", ""],
        }
    }

    /// What to look at when a store refuses them.
    pub(crate) fn hint(&self, named: &str) -> String {
        match self {
            Credentials::Anonymous => format!("{named} has no credentials"),
            Credentials::Static { .. } => format!("check access_key_id and secret_access_key of {named} and what they may read"),
            Credentials::WebIdentity { .. } => format!("check what the role of {named} may read"),
            Credentials::Environment => format!("{named} has no keys: check what the credentials of the environment may read"),
            Credentials::Instance => format!("check what the role of this instance may read, which {named} uses"),
        }
    }

    /// Why a lender is asked.
    fn reason(&self, named: &str) -> String {
        match self {
            Credentials::Environment => format!("{named} has no keys of its own"),
            _ => format!("{named} wants them"),
        }
    }

    /// What to do when they ended, and asking anew did not help.
    pub(crate) fn ended(&self, named: &str) -> String {
        match self {
            Credentials::Static { .. } => format!("the session_token of {named} ended: put new keys there"),
            _ => format!("the credentials that {named} is lent ended, and new ones did too: check the clocks and the service that lends them"),
        }
    }
}

/// The variables of the environment that say how credentials are lent (`AWS_...`). Empty ones count as absent.
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(crate) fn of_process() -> Self {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Environment::of(named)
    }

    pub(crate) fn of(variables: impl Iterator<Item = (String, String)>) -> Self {
        Environment(variables.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()).collect())
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// Who is asked for credentials.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Unsigned,
    Keys(AwsCredential),
    Lent(Lender),
}

/// A service that lends credentials. Its addresses come from the operator's environment, never from a model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lender {
    WebIdentity {
        role: String,
        token_file: String,
        session: String,
        service: String,
    },
    /// The path of the container agent's answer.
    Container {
        path: String,
    },
    /// The agent of the cluster, and the file with the token that it wants to see.
    Pod {
        url: String,
        token_file: String,
    },
    Instance {
        url: String,
    },
}

impl fmt::Display for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lender::WebIdentity { role, token_file, service, .. } => write!(f, "{service} for role {role} and the token in {token_file}"),
            Lender::Container { path } => write!(f, "the container's credential service at {path}"),
            Lender::Pod { url, token_file } => write!(f, "the credential service at {url} for the token in {token_file}"),
            Lender::Instance { url } => write!(f, "the instance metadata service at {url}"),
        }
    }
}

const METADATA: &str = "http://169.254.169.254";

impl Lender {
    fn plain(&self) -> bool {
        match self {
            Lender::WebIdentity { service: url, .. } | Lender::Pod { url, .. } | Lender::Instance { url } => url.starts_with("http://"),
            Lender::Container { .. } => true,
        }
    }

    /// Whether it is on this machine or next to it, where no proxy leads.
    fn is_near(&self) -> bool {
        match self {
            Lender::Container { .. } | Lender::Instance { .. } => true,
            // What speaks without TLS is an agent beside us.
            Lender::Pod { url, .. } => url.starts_with("http://"),
            Lender::WebIdentity { service, .. } => Url::parse(service).is_ok_and(|url| is_here(&url)),
        }
    }

    /// A provider that holds no credential yet.
    fn provider(&self, region: &str, wire: &Wire) -> object_store::Result<AwsCredentialProvider> {
        // One question per question: whoever asks us tries again when it is time to.
        let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        // The bucket is not looked at: the builder only wants one.
        let builder = AmazonS3Builder::new().with_bucket_name("none").with_region(region).with_retry(retry).with_http_connector(wire.connector());
        let builder = match self {
            Lender::WebIdentity { role, token_file, session, service } => builder
                .with_config(Key::RoleArn, role)
                .with_config(Key::WebIdentityTokenFile, token_file)
                .with_config(Key::RoleSessionName, session)
                .with_config(Key::StsEndpoint, service),
            Lender::Container { path } => builder.with_config(Key::ContainerCredentialsRelativeUri, path),
            Lender::Pod { url, token_file } => {
                builder.with_config(Key::ContainerCredentialsFullUri, url).with_config(Key::ContainerAuthorizationTokenFile, token_file)
            }
            Lender::Instance { url } => builder.with_metadata_endpoint(url),
        };
        Ok(Arc::clone(builder.build()?.credentials()))
    }
}

/// Who is asked, or why nobody can be.
fn way(credentials: &Credentials, environment: &Environment, region: &str, domain: &str) -> Result<Way, String> {
    let web_identity = |role: Option<String>, token_file: Option<String>| {
        let session = environment.get("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "berth".to_owned());
        let service = environment.get("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://sts.{region}.{domain}"));
        match (role.or_else(|| environment.get("AWS_ROLE_ARN")), token_file.or_else(|| environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"))) {
            (Some(role), Some(token_file)) => Ok(Some(Lender::WebIdentity { role, token_file, session, service })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err("there is a token file, but no role_arn nor AWS_ROLE_ARN".to_owned()),
            (Some(_), None) => Err("there is a role, but no web_identity_token_file nor AWS_WEB_IDENTITY_TOKEN_FILE".to_owned()),
        }
    };
    let instance = || {
        if environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let url = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| METADATA.to_owned());
        Some(Lender::Instance { url: url.trim_end_matches('/').to_owned() })
    };
    let lender = match credentials {
        Credentials::Anonymous => return Ok(Way::Unsigned),
        Credentials::Static { key_id, secret, token } => {
            return Ok(Way::Keys(AwsCredential {
                key_id: key_id.0.clone(),
                secret_key: secret.0.clone(),
                token: token.as_ref().map(|token| token.0.clone()),
            }));
        }
        Credentials::WebIdentity { role, token_file } => web_identity(role.clone(), token_file.clone())?
            .ok_or("no role is named: give role_arn and web_identity_token_file, or AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE")?,
        Credentials::Instance => instance().ok_or("AWS_EC2_METADATA_DISABLED forbids to ask for the instance's role")?,
        Credentials::Environment => {
            if let (Some(key_id), Some(secret_key)) = (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
                return Ok(Way::Keys(AwsCredential { key_id, secret_key, token: environment.get("AWS_SESSION_TOKEN") }));
            }
            let agent = (environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"), environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"));
            match (web_identity(None, None).ok().flatten(), environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), agent) {
                (Some(web_identity), ..) => web_identity,
                (None, Some(path), _) => Lender::Container { path },
                (None, None, (Some(url), Some(token_file))) => Lender::Pod { url, token_file },
                (None, None, _) => instance().ok_or(
                    "it has no keys, and the environment offers none: give access_key_id and secret_access_key (both empty for a public bucket)",
                )?,
            }
        }
    };
    Ok(Way::Lent(lender))
}

/// Gives each request a credential.
pub(crate) enum Signer {
    Unsigned,
    Fixed(Arc<AwsCredential>),
    Lent(Box<Lent>),
}

/// Credentials that a service lends for a while.
pub(crate) struct Lent {
    lender: Lender,
    /// Why it is asked, in words.
    reason: String,
    region: String,
    /// Connections to the service.
    wire: Wire,
    current: Mutex<Current>,
}

/// Who keeps the credential that is used now. Replaced as a whole: a provider cannot be told to forget.
struct Current {
    provider: AwsCredentialProvider,
    /// Which one this is, counted from 0.
    turn: u64,
}

/// A credential, and which turn of the service's it came from.
pub(crate) struct Held {
    pub(crate) credential: Arc<AwsCredential>,
    turn: u64,
}

impl Signer {
    pub(crate) fn new(
        credentials: &Credentials,
        environment: &Environment,
        (region, domain): (&str, &str),
        named: &str,
        patience: Patience,
        clock: Clock,
    ) -> Result<Self, ConfigFault> {
        let unusable = |why: String| ConfigFault(format!("{named}: {why}"));
        match way(credentials, environment, region, domain).map_err(unusable)? {
            Way::Unsigned => Ok(Signer::Unsigned),
            Way::Keys(keys) if sendable(&keys) => Ok(Signer::Fixed(Arc::new(keys))),
            Way::Keys(_) => Err(unusable("the keys have a character that cannot be sent (a space or line end?)".to_owned())),
            Way::Lent(lender) => {
                let (plain, direct) = (lender.plain(), lender.is_near());
                let trust = Trust { plain, certificate: None, public: false, identity: None, direct, metadata: true, named };
                let wire = Wire::new(trust, patience, clock)?;
                let provider = lender.provider(region, &wire).map_err(|fault| unusable(one_line(&root_cause(&fault))))?;
                let current = Mutex::new(Current { provider, turn: 0 });
                Ok(Signer::Lent(Box::new(Lent { lender, reason: credentials.reason(named), region: region.to_owned(), wire, current })))
            }
        }
    }

    /// The credential to sign with now; `None` where requests are not signed.
    pub(crate) async fn credential(&self, what: &str) -> Result<Option<Held>, Fault> {
        match self {
            Signer::Unsigned => Ok(None),
            Signer::Fixed(keys) => Ok(Some(Held { credential: Arc::clone(keys), turn: 0 })),
            Signer::Lent(lent) => lent.credential(what).await.map(Some),
        }
    }

    /// Forgets a credential that a store calls ended. False where there is no other to be had.
    pub(crate) fn renew(&self, ended: &Held) -> bool {
        match self {
            Signer::Unsigned | Signer::Fixed(_) => false,
            Signer::Lent(lent) => lent.renew(ended.turn),
        }
    }
}

impl Lent {
    async fn credential(&self, what: &str) -> Result<Held, Fault> {
        let (provider, turn) = {
            let current = self.current.lock();
            (Arc::clone(&current.provider), current.turn)
        };
        let silence = self.wire.patience().silence;
        let no_credentials = |kind, why: String| Fault::new(kind, what, format!("no credentials from {} ({}): {why}", self.lender, self.reason));
        match self.wire.lent(&*provider, silence).await {
            // What cannot be sent would end the process where the request is signed.
            Ok(credential) if sendable(&credential) => Ok(Held { credential, turn }),
            Ok(_) => Err(no_credentials(FaultKind::Denied, "they have a character that cannot be sent".to_owned())),
            Err(NotLent::Refused(fault)) => {
                let (kind, why) = refusal(&fault);
                Err(no_credentials(kind, why))
            }
            Err(NotLent::Odd) => Err(no_credentials(FaultKind::Config, "the answer is none that such a service gives".to_owned())),
            Err(NotLent::Silent) => Err(no_credentials(FaultKind::Away, format!("no answer within {silence:?}"))),
        }
    }

    fn renew(&self, ended: u64) -> bool {
        let mut current = self.current.lock();
        if current.turn == ended {
            // The same builder succeeded before.
            let Ok(provider) = self.lender.provider(&self.region, &self.wire) else { return false };
            *current = Current { provider, turn: ended + 1 };
        }
        true
    }
}

/// What a lender's failure means, and its words as one short line.
fn refusal(fault: &object_store::Error) -> (FaultKind, String) {
    let mut causes = std::iter::successors(Some(fault as &dyn std::error::Error), |cause| cause.source());
    let text = root_cause(fault);
    if let Some(why) = unusable(fault) {
        return (FaultKind::Config, why);
    }
    if causes.any(|cause| cause.is::<HttpError>()) {
        return (FaultKind::Away, one_line(&text));
    }
    // The status is in its text only.
    let status = text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    let tag = |name: &str| Some(text.split_once(&format!("<{name}>"))?.1.split_once(&format!("</{name}>"))?.0.trim());
    let said = match (status, tag("Code"), tag("Message")) {
        (Some(status), Some(code), Some(message)) => format!("HTTP {status} {code}: {message}"),
        _ => text.clone(),
    };
    let kind = if matches!(status, Some(429 | 500..=599)) { FaultKind::Away } else { FaultKind::Denied };
    (kind, one_line(&said))
}

/// Whether all of it can stand in a header.
pub(crate) fn sendable(keys: &AwsCredential) -> bool {
    let AwsCredential { key_id, secret_key, token } = keys;
    [key_id, secret_key].into_iter().chain(token).all(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_the_lender_and_its_address() {
        let role = [("AWS_ROLE_ARN", "r"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")];
        let web_identity = |session: &str, service: &str| Lender::WebIdentity {
            role: "r".to_owned(),
            token_file: "/t".to_owned(),
            session: session.to_owned(),
            service: service.to_owned(),
        };
        let instance = |url: &str| Lender::Instance { url: url.to_owned() };
        for (case, variables, expected) in [
            ("the service of the region", role.to_vec(), web_identity("berth", "https://sts.cn-1.amazonaws.com.cn")),
            (
                "its own service and name",
                [&role[..], &[("AWS_ENDPOINT_URL_STS", "http://sts"), ("AWS_ROLE_SESSION_NAME", "n")]].concat(),
                web_identity("n", "http://sts"),
            ),
            ("the container's agent", vec![("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x")], Lender::Container { path: "/v2/x".to_owned() }),
            ("an agent without a token file", vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://x")], instance(METADATA)),
            ("empty ones are none", vec![("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "s")], instance(METADATA)),
            ("another metadata service", vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[fd00:ec2::254]/")], instance("http://[fd00:ec2::254]")),
        ] {
            let environment = Environment::of(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
            assert_eq!(way(&Credentials::Environment, &environment, "cn-1", "amazonaws.com.cn"), Ok(Way::Lent(expected)), "{case}");
        }
    }
}
