//! Tokens of Microsoft's identity service, and who is given one.
//!
//! `object_store` speaks with the token services and keeps tokens until shortly before they end. It is asked over
//! connections of our own and does not retry: whoever fetches does.

use std::sync::Arc;

use object_store::RetryConfig;
use object_store::azure::{AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder};
use parking_lot::Mutex;
use reqwest::Url;
use serde::Deserialize;

use crate::config::Secret;
use crate::wire::{NotLent, Wire, is_here, one_line, root_cause, unusable};
use crate::{ConfigFault, Fault, FaultKind};

/// What proves to a token service who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// A service principal and its secret.
    Principal {
        tenant: String,
        client: String,
        secret: Secret,
        /// The token service's URL; `None` is the public cloud's.
        authority: Option<String>,
    },
    /// The identity of the machine that this runs on, as its metadata service states it.
    Managed {
        /// Which identity, where the machine has several.
        client: Option<String>,
        /// The metadata service's URL; `None` is Azure's.
        service: Option<String>,
    },
    /// The identity of the pod's service account: a projected token, named by the environment that its webhook sets.
    Workload { client: Option<String>, tenant: Option<String>, authority: Option<String> },
}

impl Grant {
    /// The token service's URL, where one is named.
    pub(super) fn authority(&self) -> Option<&str> {
        match self {
            Grant::Principal { authority, .. } | Grant::Workload { authority, .. } => authority.as_deref(),
            Grant::Managed { service, .. } => service.as_deref(),
        }
    }

    /// Whether nothing on the way to the token service is encrypted.
    pub(super) fn plain(&self) -> bool {
        match self {
            Grant::Managed { .. } => true,
            Grant::Principal { .. } | Grant::Workload { .. } => self.authority().is_some_and(|url| url.starts_with("http://")),
        }
    }

    /// Whether the token service is on this machine or next to it, where no proxy leads.
    pub(super) fn is_near(&self) -> bool {
        let here = |url: &str| Url::parse(url).is_ok_and(|url| is_here(&url));
        matches!(self, Grant::Managed { .. }) || self.authority().is_some_and(here)
    }

    /// What tells it from others.
    pub(super) fn fields(&self) -> Vec<&str> {
        fn known(text: &Option<String>) -> &str {
            text.as_deref().unwrap_or_default()
        }
        match self {
            Grant::Principal { tenant, client, secret, authority } => vec!["principal", tenant, client, &secret.0, known(authority)],
            Grant::Managed { client, service } => vec!["managed", known(client), known(service)],
            Grant::Workload { client, tenant, authority } => vec!["workload", known(client), known(tenant), known(authority)],
        }
    }

    fn provider(&self, wire: &Wire) -> Result<AzureCredentialProvider, String> {
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        // The builder wants an account and a container, of which the provider knows nothing.
        let builder = MicrosoftAzureBuilder::new().with_account("a").with_container_name("c").with_retry(retry).with_http_connector(wire.connector());
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let builder = match self {
            Grant::Principal { tenant, client, secret, authority } => {
                let builder = builder.with_client_secret_authorization(client, &secret.0, tenant).with_credential_type("client_secret");
                with_authority(builder, authority.clone())
            }
            Grant::Managed { client, service } => {
                let mut builder = builder.with_credential_type("managed_identity");
                if let Some(client) = client {
                    builder = builder.with_client_id(client);
                }
                if let Some(service) = service {
                    builder = builder.with_msi_endpoint(service);
                }
                builder
            }
            Grant::Workload { client, tenant, authority } => {
                let needed = |given: &Option<String>, name: &str| {
                    let why = || {
                        format!("credentials is workload_identity, but {name} is not set: does the service account have the identity's annotation?")
                    };
                    given.clone().or_else(|| environment(name)).ok_or_else(why)
                };
                let builder = builder
                    .with_credential_type("workload_identity")
                    .with_client_id(needed(client, "AZURE_CLIENT_ID")?)
                    .with_tenant_id(needed(tenant, "AZURE_TENANT_ID")?)
                    .with_federated_token_file(needed(&None, "AZURE_FEDERATED_TOKEN_FILE")?);
                let authority = authority.clone().or_else(|| environment("AZURE_AUTHORITY_HOST"));
                with_authority(builder, authority.map(|url| url.trim_end_matches('/').to_owned()))
            }
        };
        builder.build().map(|store| Arc::clone(store.credentials())).map_err(|fault| root_cause(&fault))
    }
}

fn with_authority(builder: MicrosoftAzureBuilder, authority: Option<String>) -> MicrosoftAzureBuilder {
    match authority {
        Some(url) => builder.with_authority_host(url),
        None => builder,
    }
}

/// The tokens of one grant.
pub(super) struct Tokens {
    grant: Grant,
    wire: Wire,
    named: String,
    provider: Mutex<AzureCredentialProvider>,
}

impl Tokens {
    pub(super) fn new(grant: Grant, wire: Wire, named: String) -> Result<Self, ConfigFault> {
        let provider = grant.provider(&wire).map_err(|why| ConfigFault(format!("{named}: {why}")))?;
        Ok(Tokens { grant, wire, named, provider: Mutex::new(provider) })
    }

    /// A token that has not ended yet.
    pub(super) async fn token(&self, what: &str) -> Result<Arc<AzureCredential>, Fault> {
        let provider = Arc::clone(&self.provider.lock());
        let patience = self.wire.patience();
        // A connection may have to be made first.
        let within = patience.connect + patience.silence;
        let odd = |why: &str| Fault::new(FaultKind::Config, what, format!("no token for {}: {why}", self.named));
        match self.wire.lent(&*provider, within).await {
            Ok(token) if sendable(&token) => Ok(token),
            Ok(_) => {
                // The provider would give it again until it ends.
                self.replace(&provider);
                Err(odd("what the token service gave has a character that cannot be sent"))
            }
            Err(NotLent::Refused(fault)) => match unusable(&fault) {
                Some(why) => Err(odd(&why)),
                None => Err(self.refused(&root_cause(&fault), what)),
            },
            Err(NotLent::Odd) => Err(odd("the answer is none that such a service gives")),
            Err(NotLent::Silent) => Err(Fault::new(FaultKind::Away, what, format!("the token service did not answer within {within:?}"))),
        }
    }

    /// Forgets `token`, which the store did not take. True where another one may be had.
    pub(super) async fn forget(&self, token: &Arc<AzureCredential>) -> bool {
        let provider = Arc::clone(&self.provider.lock());
        // Somebody else may have been faster: then there is a new one already, and asking for it costs nothing.
        let held = self.wire.lent(&*provider, self.wire.patience().silence).await;
        !held.is_ok_and(|held| Arc::ptr_eq(&held, token)) || self.replace(&provider)
    }

    /// Puts one that holds no token in the place of `provider`, which cannot be told to forget. False where there is none.
    fn replace(&self, provider: &AzureCredentialProvider) -> bool {
        let Ok(renewed) = self.grant.provider(&self.wire) else { return false };
        let mut current = self.provider.lock();
        if Arc::ptr_eq(&current, provider) {
            *current = renewed;
        }
        true
    }

    fn refused(&self, cause: &str, what: &str) -> Fault {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Refusal {
            error: String,
            error_description: String,
        }
        let Some((status, body)) = cause.strip_prefix("Server returned non-2xx status code: ").and_then(|rest| rest.split_once(": ")) else {
            // In the provider's words, which say neither why nor of which file.
            return if cause.starts_with("Error reading federated token file") {
                let why = format!("no token for {}: the file that AZURE_FEDERATED_TOKEN_FILE names cannot be read", self.named);
                Fault::new(FaultKind::Config, what, why)
            } else if cause.starts_with("Received redirect without LOCATION") {
                Fault::new(FaultKind::Config, what, self.elsewhere("a redirect to nowhere"))
            } else {
                Fault::new(FaultKind::Away, what, format!("no token: {}", one_line(cause)))
            };
        };
        let status: u16 = status.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or_default();
        let refusal: Refusal = serde_json::from_str(body).unwrap_or_default();
        let said = if refusal.error_description.is_empty() { refusal.error } else { refusal.error_description };
        let said = one_line(said.lines().next().unwrap_or_default());
        let why = format!("the token service answered HTTP {status} {said}");
        let named = &self.named;
        match status {
            300..=399 => Fault::new(FaultKind::Config, what, self.elsewhere(&format!("HTTP {status}"))),
            429 | 503 => Fault::new(FaultKind::Busy { pause: None }, what, why),
            400..=499 => {
                let check = match &self.grant {
                    Grant::Principal { .. } => "client_id, client_secret and tenant_id",
                    Grant::Managed { .. } => "client_id and the identities of this machine",
                    Grant::Workload { .. } => "client_id, tenant_id and the identity's trust in the service account",
                };
                Fault::new(FaultKind::Denied, what, format!("{why}: check {check} of {named}"))
            }
            _ => Fault::new(FaultKind::Away, what, why),
        }
    }

    fn elsewhere(&self, answered: &str) -> String {
        format!("the token service answered {answered}: it is elsewhere: check authority_host of {}", self.named)
    }
}

/// Whether it can stand in a header: the one that would be made of it is taken for certain.
fn sendable(token: &AzureCredential) -> bool {
    match token {
        AzureCredential::BearerToken(token) => !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()),
        AzureCredential::AccessKey(_) | AzureCredential::SASToken(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_telemetry::Clock;

    use super::*;
    use crate::Patience;
    use crate::wire::Trust;

    #[tokio::test]
    async fn a_token_file_that_is_not_there_is_the_configurations_fault() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("none");
        let trust = Trust { plain: true, certificate: None, public: false, identity: None, direct: true, metadata: false, named: "k" };
        let patience = Patience { connect: Duration::from_secs(20), silence: Duration::from_secs(20) };
        let wire = Wire::new(trust, patience, Clock::system()).expect("sound");
        let builder = MicrosoftAzureBuilder::new().with_account("a").with_container_name("c").with_http_connector(wire.connector());
        let builder = builder.with_credential_type("workload_identity").with_client_id("i").with_tenant_id("t");
        let builder = builder.with_federated_token_file(file.to_str().expect("text"));
        let provider = Arc::clone(builder.build().expect("sound").credentials());
        let grant = Grant::Workload { client: None, tenant: None, authority: None };
        let tokens = Tokens { grant, wire, named: "storage config k".to_owned(), provider: Mutex::new(provider) };
        let fault = tokens.token("x").await.expect_err("no file");
        assert_eq!(fault.kind, FaultKind::Config, "{fault}");
        assert!(fault.why.contains("AZURE_FEDERATED_TOKEN_FILE") && fault.why.contains("storage config k"), "{fault}");
    }
}
