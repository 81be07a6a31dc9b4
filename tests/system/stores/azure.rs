//! Azure Blob Storage: every credential, and what a refusal tells.

use anyhow::Result;
use berth_testkit::{Access, Azure, Endpoint, Relay, Transport};
use serde_json::{Value, json};

use super::{MODEL, answers_in_the_end, fails_with, folder_with_model, serves, tells_no};
use crate::fixture::{Fixture, ROOMY};

const CONTAINER: &str = "private";

/// `entry` with a member more.
fn with(entry: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut entry = entry.clone();
    entry[name] = value.into();
    entry
}

#[tokio::test]
async fn every_kind_of_credential_opens_a_container() -> Result<()> {
    let fixture = Fixture::empty()?;
    let folder = folder_with_model(&fixture, "upload")?;
    for transport in [Transport::Plain, Transport::Tls] {
        let azure = Azure::start(transport).await?;
        let signature = azure.container(&fixture.parts, CONTAINER, Access::Private, &folder).await?;
        azure.container(&fixture.parts, "public", Access::Public, &folder).await?;
        let entry = azure.storage_entry(CONTAINER);
        let mut of_string = with(&entry, "connection_string", azure.connection_string());
        // Account and address are in the string.
        for name in ["account_name", "endpoint_url"] {
            of_string.as_object_mut().and_then(|entry| entry.remove(name));
        }
        let ways = [
            ("string", of_string),
            ("account-key", with(&entry, "account_key", Azure::KEY)),
            ("signature", with(&entry, "sas_token", signature.clone())),
            ("question-mark", with(&entry, "sas_token", format!("?{signature}"))),
            ("anonymous", azure.storage_entry("public")),
        ];
        for (way, entry) in &ways {
            fixture.storage(way, entry)?;
            fixture.service(way, way, MODEL)?;
        }
        let mut berth = fixture.serve(ROOMY).start().await?;
        for (way, _) in &ways {
            serves(&fixture, &berth, way).await?;
        }
        let names: Vec<&str> = ways.iter().map(|(way, _)| *way).collect();
        let secret = signature.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).unwrap_or_default();
        assert!(secret.len() > 20, "{}", secret.len());
        tells_no(&mut berth, &names, &[Azure::KEY, secret]).await?;
        berth.interrupt().await?;
        std::fs::remove_dir_all(fixture.data())?;
    }
    Ok(())
}

#[tokio::test]
async fn the_emulator_is_meant_by_its_own_connection_string() -> Result<()> {
    let fixture = Fixture::empty()?;
    let azure = Azure::start_at(Azure::EMULATOR_PORT, Transport::Plain).await?;
    azure.container(&fixture.parts, CONTAINER, Access::Private, &folder_with_model(&fixture, "upload")?).await?;
    fixture.storage("emulator", &json!({"type": "azure", "container": CONTAINER, "connection_string": "UseDevelopmentStorage=true"}))?;
    fixture.service("emulator", "emulator", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "emulator").await
}

#[tokio::test]
async fn a_service_principal_gets_a_token_and_opens_a_container_with_it() -> Result<()> {
    const TENANT: &str = "11111111-2222-3333-4444-555555555555";
    const SECRET: &str = "the-secret-of-a-service-principal";
    let fixture = Fixture::empty()?;
    let azure = Azure::start(Transport::Tls).await?;
    azure.container(&fixture.parts, CONTAINER, Access::Private, &folder_with_model(&fixture, "upload")?).await?;
    let tokens = Endpoint::start(|asked| match asked.body.contains(&format!("client_secret={SECRET}")) {
        true => (200, json!({"token_type": "Bearer", "expires_in": 3600, "access_token": Azure::token(TENANT)}).to_string()),
        false => (401, json!({"error": "invalid_client"}).to_string()),
    })
    .await?;
    let mut entry = azure.storage_entry(CONTAINER);
    for (name, value) in [("client_id", "an-application"), ("client_secret", SECRET), ("tenant_id", TENANT), ("authority_host", &tokens.url(""))] {
        entry[name] = json!(value);
    }
    fixture.storage("principal", &entry)?;
    fixture.storage("impostor", &with(&entry, "client_secret", "another-secret-of-nobody"))?;
    fixture.service("principal", "principal", MODEL)?;
    fixture.service("impostor", "impostor", MODEL)?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "principal").await?;
    fails_with(&berth, "impostor", &["HTTP 401"]).await?;
    let asked = tokens.asked();
    assert!(asked.iter().all(|asked| asked.method == "POST" && asked.target.starts_with(&format!("/{TENANT}/oauth2/v2.0/token"))), "{}", asked.len());
    tells_no(&mut berth, &["principal", "impostor"], &[SECRET, "another-secret-of-nobody", &Azure::token(TENANT)]).await
}

#[tokio::test]
async fn what_azure_refuses_is_told_with_account_container_and_status() -> Result<()> {
    let fixture = Fixture::empty()?;
    let folder = folder_with_model(&fixture, "upload")?;
    let azure = Azure::start(Transport::Plain).await?;
    azure.container(&fixture.parts, CONTAINER, Access::Private, &folder).await?;
    let reads_only = azure.signature(&fixture.parts, CONTAINER, "r").await?;
    let (entry, address) = (azure.storage_entry(CONTAINER), azure.address().to_string());
    let wrong = "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc=";
    let cases = [
        ("wrong-key", with(&entry, "account_key", wrong), MODEL, vec!["HTTP 403", CONTAINER]),
        ("may-not-list", with(&entry, "sas_token", reads_only), MODEL, vec!["HTTP 403", CONTAINER]),
        ("no-container", with(&azure.storage_entry("nowhere"), "account_key", Azure::KEY), MODEL, vec!["HTTP 404", "nowhere"]),
        ("no-path", with(&entry, "account_key", Azure::KEY), "tulips/v1", vec![CONTAINER, "tulips/v1"]),
        ("nobody", entry.clone(), MODEL, vec!["HTTP 4", CONTAINER]),
    ];
    for (name, entry, path, _) in &cases {
        fixture.storage(name, entry)?;
        fixture.service(name, name, path)?;
    }
    let mut berth = fixture.serve(ROOMY).start().await?;
    for (name, _, _, parts) in &cases {
        fails_with(&berth, name, &[parts.as_slice(), &[&address]].concat()).await?;
    }
    // Mended while it runs.
    fixture.storage("wrong-key", &with(&entry, "account_key", Azure::KEY))?;
    answers_in_the_end(&fixture, &berth, "wrong-key").await?;
    let names: Vec<&str> = cases.iter().map(|(name, ..)| *name).collect();
    tells_no(&mut berth, &names, &[wrong, Azure::KEY]).await
}

#[tokio::test]
async fn a_burst_of_503_from_azure_is_waited_out() -> Result<()> {
    let fixture = Fixture::empty()?;
    let azure = Azure::start(Transport::Plain).await?;
    azure.container(&fixture.parts, CONTAINER, Access::Private, &folder_with_model(&fixture, "upload")?).await?;
    let relay = Relay::start(azure.address()).await?;
    relay.refuse(3, 503);
    let mut entry = with(&azure.storage_entry(CONTAINER), "account_key", Azure::KEY);
    entry["endpoint_url"] = json!(azure.endpoint_at(relay.address()));
    fixture.storage("busy", &entry)?;
    fixture.service("busy", "busy", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "busy").await?;
    assert_eq!(relay.traffic().refused, 3);
    Ok(())
}
