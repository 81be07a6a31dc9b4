//! `berth infer`: one request of the V2 protocol to a model, with the endpoint taken from the model's own status.

use std::fs;
use std::io::Read;

use bytes::Bytes;
use http::Method;
use http::header::RETRY_AFTER;
use serde_json::Value;

use super::args;
use super::client::{Answer, Client, Server, encoded};
use super::fault::Fault;
use super::kinds::MODELS;
use super::output::{Out, plain, readable};
use super::resource::{Standing, is_managed, text};

/// `berth infer`.
///
/// # Errors
/// The request cannot be read or sent, or was refused.
pub(crate) async fn infer(client: &Client, args: &args::Infer, out: &mut Out) -> Result<(), Fault> {
    let request = request(&args.input)?;
    let rest = match &args.rest {
        Some(url) => Server::parse_any(url, "--rest")?,
        None => endpoint(client, &args.name, &args.namespace.namespace).await?,
    };
    let path = format!("/v2/models/{}/infer", encoded(&args.name));
    let secured = if rest.is_secured() { Some(client.with_tls(&args.tls)?) } else { None };
    let answer = secured.as_ref().unwrap_or(client).whole(&rest, Method::POST, &path, request, args.timeout).await;
    let answer = answer.map_err(|fault| match fault {
        Fault::Unreachable { server, why } if why.contains("invalid peer certificate") => {
            Fault::Unreachable { server, why: format!("{why}: name the file that it is trusted by with --cacert") }
        }
        other => other,
    })?;
    if !answer.status.is_success() {
        return Err(Fault::local(refusal(&args.name, &answer)));
    }
    if out.is_terminal()
        && let Ok(value) = serde_json::from_slice::<Value>(&answer.body)
    {
        return out.text(&readable(&value));
    }
    out.bytes(&answer.body)
}

fn request(input: &str) -> Result<Bytes, Fault> {
    let cannot = |fault: std::io::Error| Fault::local(format!("--input: cannot read {input:?}: {fault}"));
    let body = if input == "-" {
        let mut body = Vec::new();
        std::io::stdin().lock().read_to_end(&mut body).map_err(cannot)?;
        body
    } else {
        fs::read(input).map_err(cannot)?
    };
    if body.is_empty() {
        return Err(Fault::local(format!("--input: {input:?} is empty, expected a request such as {{\"inputs\": [...]}}")));
    }
    Ok(body.into())
}

/// Where the model of that name answers over REST.
async fn endpoint(client: &Client, name: &str, namespace: &str) -> Result<Server, Fault> {
    for kind in MODELS {
        let Some(resource) = client.get(*kind, namespace, name).await? else { continue };
        if !is_managed(*kind, &resource) {
            continue;
        }
        let standing = Standing::of(*kind, &resource);
        if let Some(url) = standing.rest {
            return Server::parse_any(url, "the REST endpoint in the status");
        }
        let why = standing.failure_line().map(|failure| format!(", {}", plain(&failure))).unwrap_or_default();
        let state = standing.state.unwrap_or("not looked at yet");
        let kind = kind.as_str();
        return Err(Fault::local(format!("{kind} {name:?} has no REST endpoint ({state}{why}): wait until it is ready, or give one with --rest")));
    }
    Err(Fault::local(format!("no InferenceService or Predictor {name:?} in namespace {namespace}: see berth get, or give --rest")))
}

/// What a refused request tells.
fn refusal(name: &str, answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let told = text(&body, &["error"]).or_else(|| text(&body, &["message"])).map(plain);
    let told = told.unwrap_or_else(|| plain(&String::from_utf8_lossy(&answer.body).chars().take(500).collect::<String>()));
    let told = if told.is_empty() { String::new() } else { format!(": {told}") };
    let later = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let later = later.map(|after| format!(" (try again after {}s)", plain(after))).unwrap_or_default();
    format!("{name}: {}{told}{later}", answer.status)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_status_its_text_and_when_to_come_again() {
        let answer = |status, body: &'static str, after: Option<&'static str>| Answer {
            status,
            headers: after.map(|after| (RETRY_AFTER, HeaderValue::from_static(after))).into_iter().collect::<HeaderMap>(),
            body: Bytes::from_static(body.as_bytes()),
        };
        for (answer, text) in [
            (answer(StatusCode::NOT_FOUND, r#"{"code":5,"error":"no model m","message":"no model m"}"#, None), "m: 404 Not Found: no model m"),
            (answer(StatusCode::SERVICE_UNAVAILABLE, r#"{"message":"away"}"#, Some("2")), "m: 503 Service Unavailable: away (try again after 2s)"),
            (answer(StatusCode::BAD_GATEWAY, "<html>\n\x1b[1m", None), "m: 502 Bad Gateway: <html> ^[[1m"),
            (answer(StatusCode::INTERNAL_SERVER_ERROR, "", None), "m: 500 Internal Server Error"),
        ] {
            assert_eq!(refusal("m", &answer), text);
        }
    }

    #[test]
    fn a_request_that_cannot_be_read_or_is_empty_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("r.json");
        let name = path.display().to_string();
        assert!(request(&name).expect_err("nothing there").to_string().starts_with("error: --input: cannot read"));
        fs::write(&path, "").expect("written");
        assert!(request(&name).expect_err("empty").to_string().contains("is empty"));
        fs::write(&path, "{}").expect("written");
        assert_eq!(request(&name).expect("a request"), "{}");
    }
}
