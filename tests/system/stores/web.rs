//! Plain web servers: headers, certificates, redirects, and what their refusals tell.

use std::fs;

use anyhow::Result;
use berth_testkit::{Relay, Web};
use serde_json::{Value, json};

use super::{answers_in_the_end, bytes, fails_with, folder_with_model, holds, serves, tells_no};
use crate::fixture::{Fixture, ROOMY};

const PATH: &str = "iris/model.onnx";

fn entry(url: &str, more: &Value) -> Value {
    let mut entry = json!({"type": "http", "url": url});
    for (name, value) in more.as_object().into_iter().flatten() {
        entry[name] = value.clone();
    }
    entry
}

async fn with_model() -> Result<(Fixture, Web)> {
    let fixture = Fixture::empty()?;
    let web = Web::start(&folder_with_model(&fixture, "files")?).await?;
    Ok((fixture, web))
}

#[tokio::test]
async fn a_file_is_served_from_every_kind_of_web_server() -> Result<()> {
    let (fixture, web) = with_model().await?;
    let (authority, client) = (web.authority(), web.client());
    let known = json!({"certificate": authority, "client_certificate": client.certificate, "client_key": client.key});
    let (plain, tls) = (web.plain(), web.tls());
    let ways = [
        ("plain", entry(&plain, &json!({})), PATH),
        ("path-in-url", entry(&format!("{plain}/iris"), &json!({})), "model.onnx"),
        ("tls", entry(&tls, &json!({"certificate": authority})), PATH),
        ("known-client", entry(&web.mutual(), &known), PATH),
        ("moved", entry(&plain, &json!({})), "moved/iris/model.onnx"),
        ("moved-tls", entry(&tls, &json!({"certificate": authority})), "moved/iris/model.onnx"),
        ("away", entry(&plain, &json!({})), "away/iris/model.onnx"),
        ("simple", entry(&plain, &json!({})), "simple/iris/model.onnx"),
        ("header", entry(&plain, &json!({"headers": {"x-model-key": Web::KEY}})), "guarded/iris/model.onnx"),
        ("header-list", entry(&plain, &json!({"headers": {"x-model-key": [Web::KEY]}})), "guarded/iris/model.onnx"),
    ];
    for (way, entry, path) in &ways {
        fixture.storage(way, entry)?;
        fixture.service(way, way, path)?;
    }
    let mut berth = fixture.serve(ROOMY).start().await?;
    for (way, ..) in &ways {
        serves(&fixture, &berth, way).await?;
    }
    let names: Vec<&str> = ways.iter().map(|(way, ..)| *way).collect();
    let line = client.key.lines().nth(1).unwrap_or_default();
    assert!(line.len() > 40);
    tells_no(&mut berth, &names, &[Web::KEY, line]).await
}

#[tokio::test]
async fn headers_stay_with_the_host_that_they_are_for() -> Result<()> {
    let (fixture, web) = with_model().await?;
    let secret = json!({"headers": {"x-model-key": Web::KEY, "Authorization": "Bearer of-the-entry"}});
    let mut shared = secret.clone();
    shared["allowed_hosts"] = json!(["localhost"]);
    fixture.storage("strict", &entry(&web.plain(), &secret))?;
    fixture.storage("shared", &entry(&web.plain(), &shared))?;
    fixture.service("strict", "strict", "away/iris/model.onnx")?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "strict").await?;
    // The web server writes a line when an answer is through, which the reader of the answer may know first.
    let told = |host: &str| -> Result<Vec<_>> { Ok(web.seen()?.into_iter().filter(|seen| seen.host.starts_with(host)).collect()) };
    let (at_home, elsewhere) = (told("127.0.0.1:")?, told("localhost:")?);
    assert!(!at_home.is_empty() && at_home.iter().all(|seen| seen.key == Web::KEY && seen.authorization == "Bearer of-the-entry"), "{at_home:?}");
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|seen| seen.key.is_empty() && seen.authorization.is_empty()), "{elsewhere:?}");

    fixture.service("shared", "shared", "away/iris/model.onnx")?;
    serves(&fixture, &berth, "shared").await?;
    assert!(told("localhost:")?.iter().any(|seen| seen.key == Web::KEY), "a host that is allowed gets them");
    tells_no(&mut berth, &["strict", "shared"], &[Web::KEY, "of-the-entry"]).await
}

#[tokio::test]
async fn headers_and_certificates_of_clients_never_go_from_https_to_http() -> Result<()> {
    let (fixture, web) = with_model().await?;
    let client = web.client();
    let trusting = json!({"certificate": web.authority()});
    let with_headers = json!({"certificate": web.authority(), "headers": {"x-model-key": Web::KEY}, "allowed_hosts": ["localhost"]});
    let with_identity = json!({"certificate": web.authority(), "client_certificate": client.certificate, "client_key": client.key});
    // Without either there is nothing to lose.
    for (name, url, more) in [("bare", web.tls(), trusting), ("headers", web.tls(), with_headers), ("identity", web.mutual(), with_identity)] {
        fixture.storage(name, &entry(&url, &more))?;
        fixture.service(name, name, "away/iris/model.onnx")?;
    }
    let berth = fixture.serve(ROOMY).start().await?;
    serves(&fixture, &berth, "bare").await?;
    for name in ["headers", "identity"] {
        fails_with(&berth, name, &["http", "away/iris/model.onnx"]).await?;
    }
    assert!(web.seen()?.iter().all(|seen| !seen.host.starts_with("localhost:") || seen.key.is_empty()), "{:?}", web.seen()?);
    Ok(())
}

#[tokio::test]
async fn what_a_web_server_refuses_is_told_with_address_and_status() -> Result<()> {
    let (fixture, web) = with_model().await?;
    let (plain, tls) = (web.plain(), web.tls());
    let host = |url: &str| url.split("//").nth(1).unwrap_or_default().to_owned();
    let trusting = json!({"certificate": web.authority()});
    let wrong = "another-key-of-nobody";
    let cases = [
        ("no-file", entry(&plain, &json!({})), "tulips.onnx", vec!["HTTP 404", "tulips.onnx"], host(&plain)),
        ("no-header", entry(&plain, &json!({})), "guarded/iris/model.onnx", vec!["HTTP 403", "guarded/iris/model.onnx"], host(&plain)),
        ("wrong-header", entry(&plain, &json!({"headers": {"x-model-key": wrong}})), "guarded/iris/model.onnx", vec!["HTTP 403"], host(&plain)),
        ("round", entry(&plain, &json!({})), "round/iris/model.onnx", vec!["redirect", "round/iris/model.onnx"], host(&plain)),
        ("stranger", entry(&tls, &json!({})), PATH, vec!["certificate"], host(&tls)),
        ("unknown-client", entry(&web.mutual(), &trusting), PATH, vec!["HTTP 400"], host(&web.mutual())),
        ("down", entry(&plain, &json!({})), "down/iris/model.onnx", vec!["HTTP 503", "down/iris/model.onnx"], host(&plain)),
    ];
    for (name, entry, path, ..) in &cases {
        fixture.storage(name, entry)?;
        fixture.service(name, name, path)?;
    }
    let mut berth = fixture.serve(ROOMY).start().await?;
    for (name, _, _, parts, host) in &cases {
        fails_with(&berth, name, &[parts.as_slice(), &[host]].concat()).await?;
    }
    // Mended while it runs.
    fixture.storage("wrong-header", &entry(&plain, &json!({"headers": {"x-model-key": Web::KEY}})))?;
    answers_in_the_end(&fixture, &berth, "wrong-header").await?;
    let names: Vec<&str> = cases.iter().map(|(name, ..)| *name).collect();
    tells_no(&mut berth, &names, &[wrong, Web::KEY]).await
}

#[tokio::test]
async fn half_a_client_certificate_is_a_fault_of_the_entry() -> Result<()> {
    let (fixture, web) = with_model().await?;
    let client = web.client();
    fixture.storage("half", &entry(&web.mutual(), &json!({"certificate": web.authority(), "client_certificate": client.certificate})))?;
    fixture.service("half", "half", PATH)?;
    let berth = fixture.serve(ROOMY).start().await?;
    fails_with(&berth, "half", &["client_key"]).await.map(drop)
}

#[tokio::test]
async fn a_download_from_a_web_server_goes_on_where_the_connection_broke() -> Result<()> {
    const SIZE: usize = 24 << 20;
    let (fixture, web) = with_model().await?;
    // What is served is the large file: the runtime refuses it, but not before it is there and checked.
    fs::write(fixture.path("files").join("large.onnx"), bytes(SIZE, 3))?;
    let relay = Relay::start(web.address()).await?;
    relay.cut_each_after(Some(5 << 20));
    fixture.storage("cut", &entry(&format!("http://{}", relay.address()), &json!({})))?;
    fixture.service("cut", "cut", "large.onnx")?;
    let berth = fixture.serve(ROOMY).start().await?;
    fails_with(&berth, "cut", &["large.onnx"]).await?;
    holds(&fixture, "large.onnx", &bytes(SIZE, 3))?;
    let passed = relay.traffic().to_clients;
    assert!(passed < 2 * SIZE as u64, "{passed} bytes for {SIZE}");
    Ok(())
}
