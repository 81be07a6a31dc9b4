//! Google Cloud Storage: without a credential, with a service account, and what a refusal tells.

use anyhow::Result;
use berth_testkit::{Endpoint, Gcs, Relay};
use serde_json::{Value, json};

use super::{MODEL, bytes, fails_with, folder_with_model, holds, serves, tells_no};
use crate::fixture::{Fixture, ROOMY};

/// A server with the example in it, and larger objects beside it.
async fn with_model(fixture: &Fixture) -> Result<Gcs> {
    let gcs = Gcs::start().await?;
    gcs.put_folder(&folder_with_model(fixture, "upload")?).await?;
    Ok(gcs)
}

#[tokio::test]
async fn a_bucket_that_is_open_to_everybody_is_read_without_a_credential() -> Result<()> {
    let fixture = Fixture::empty()?;
    let gcs = with_model(&fixture).await?;
    gcs.put("iris/ballast.bin", bytes(20 << 20, 1)).await?;
    gcs.put("iris/ümläut a+b%.txt", b"odd".to_vec()).await?;
    gcs.put("iris/empty.txt", Vec::new()).await?;
    let relay = Relay::start(gcs.address()).await?;
    let mut entry = gcs.storage_entry();
    entry["endpoint_url"] = json!(format!("http://{}", relay.address()));
    fixture.storage("open", &entry)?;
    fixture.service("open", "open", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "open").await?;
    holds(&fixture, "ballast.bin", &bytes(20 << 20, 1))?;
    holds(&fixture, "ümläut a+b%.txt", b"odd")?;
    holds(&fixture, "empty.txt", b"")?;
    let heads = relay.heads();
    assert!(!heads.is_empty() && heads.iter().all(|head| !head.to_ascii_lowercase().contains("\nauthorization:")), "{heads:?}");
    Ok(())
}

/// An entry with a service account whose tokens come from `tokens`.
fn of_account(entry: &Value, key: &str, tokens: &Endpoint) -> Value {
    let mut entry = entry.clone();
    for (name, value) in [("private_key", key), ("client_email", "berth@tests.example"), ("token_uri", &tokens.url("/token"))] {
        entry[name] = json!(value);
    }
    entry
}

#[tokio::test]
async fn a_service_account_gets_a_token_where_its_entry_says_and_shows_it_to_the_store() -> Result<()> {
    const TOKEN: &str = "a-token-that-nobody-may-read";
    let fixture = Fixture::empty()?;
    let gcs = with_model(&fixture).await?;
    let relay = Relay::start(gcs.address()).await?;
    let mut entry = gcs.storage_entry();
    entry["endpoint_url"] = json!(format!("http://{}", relay.address()));
    let good = Endpoint::start(|_| (200, json!({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600}).to_string())).await?;
    let bad = Endpoint::start(|_| (401, json!({"error": "invalid_grant"}).to_string())).await?;
    let key = Gcs::private_key(&fixture.parts).await?;
    fixture.storage("account", &of_account(&entry, &key, &good))?;
    fixture.storage("impostor", &of_account(&entry, &key, &bad))?;
    fixture.service("account", "account", MODEL)?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "account").await?;
    let heads = relay.heads();
    assert!(!heads.is_empty() && heads.iter().all(|head| head.contains(&format!("Bearer {TOKEN}"))), "{} requests", heads.len());
    let asked = good.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.method == "POST" && asked.body.contains("assertion=")), "{}", asked.len());
    // One token is good for all requests until it ends.
    assert_eq!(asked.len(), 1);

    fixture.service("impostor", "impostor", MODEL)?;
    fails_with(&berth, "impostor", &["HTTP 401", Gcs::BUCKET]).await?;
    // A line in the middle of the key.
    let line = key.lines().nth(5).unwrap_or_default();
    assert!(line.len() > 40);
    tells_no(&mut berth, &["account", "impostor"], &[TOKEN, line]).await
}

#[tokio::test]
async fn what_gcs_refuses_is_told_with_store_bucket_and_status() -> Result<()> {
    let fixture = Fixture::empty()?;
    let gcs = with_model(&fixture).await?;
    let mut elsewhere = gcs.storage_entry();
    elsewhere["bucket"] = json!("no-such-bucket");
    let half = {
        let mut entry = gcs.storage_entry();
        entry["client_email"] = json!("berth@tests.example");
        entry
    };
    let address = gcs.address().to_string();
    let cases = [
        ("no-bucket", &elsewhere, MODEL, vec!["HTTP 404", "no-such-bucket", &address]),
        ("no-path", &gcs.storage_entry(), "tulips/v1", vec!["tulips/v1", Gcs::BUCKET, &address]),
        ("half-an-account", &half, MODEL, vec!["private_key"]),
    ];
    for (name, entry, path, _) in &cases {
        fixture.storage(name, entry)?;
        fixture.service(name, name, path)?;
    }
    let berth = fixture.serve(ROOMY).start().await?;
    for (name, _, _, parts) in &cases {
        fails_with(&berth, name, parts).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_burst_of_503_from_gcs_is_waited_out() -> Result<()> {
    let fixture = Fixture::empty()?;
    let gcs = with_model(&fixture).await?;
    let relay = Relay::start(gcs.address()).await?;
    relay.refuse(3, 503);
    let mut entry = gcs.storage_entry();
    entry["endpoint_url"] = json!(format!("http://{}", relay.address()));
    fixture.storage("busy", &entry)?;
    fixture.service("busy", "busy", MODEL)?;
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "busy").await?;
    assert_eq!(relay.traffic().refused, 3);
    Ok(())
}
