//! The resource API from elsewhere: only with its token, from a file that may change, and in the form that kubectl prints.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Exit, Found, Process, curl, eventually, free_port};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON, service};
use crate::refusals::USAGE;

const SECRET: &str = "a-token-of-nobody-5f2c";
const NEXT: &str = "the-token-after-it-77aa";
const ISVCS: &str = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices";
/// Longer than any command here takes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// An address of this machine that others could reach: its own one, or every one where it has none.
fn elsewhere() -> IpAddr {
    // Connecting sends nothing; the system only chooses the address that it would send from.
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    own.map(|own| own.ip()).ok().filter(|own| !own.is_loopback() && !own.is_unspecified()).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
}

/// A server for all the world with the token of a file, and a URL of its resource API.
async fn open_server(fixture: &Fixture) -> Result<(Berth, String)> {
    fs::write(fixture.path("token"), format!("{SECRET}\n"))?;
    fs::set_permissions(fixture.path("token"), fs::Permissions::from_mode(0o600))?;
    let (address, port) = (elsewhere(), free_port());
    let serve = fixture.serve(ROOMY).flag("--api", format!("{address}:{port}")).flag("--api-token-file", fixture.path("token"));
    let reached = if address.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address };
    Ok((serve.start().await?, format!("http://{reached}:{port}")))
}

/// Asks for a path with these headers: status and body.
async fn ask(url: &str, headers: &[&str]) -> Result<(String, Value)> {
    let headers = headers.iter().flat_map(|header| ["--header", header]);
    let args: Vec<&str> = ["--write-out", "\n%{http_code}"].into_iter().chain(headers).chain([url]).collect();
    let said = curl(&args).await?;
    let (body, code) = said.rsplit_once('\n').with_context(|| format!("no status in {said:?}"))?;
    Ok((code.to_owned(), serde_json::from_str(body).with_context(|| format!("{code} {body}"))?))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Runs `berth LINE` against `server` with these variables.
async fn berth(fixture: &Fixture, server: &str, line: &str, variables: &[(&str, &str)]) -> Result<(Exit, String, String)> {
    let mut command = Command::new(&fixture.parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.env("BERTH_SERVER", server).envs(variables.iter().copied()).args(line.split(' '));
    let mut process = Process::start(line, command)?;
    let exit = process.exit(PATIENCE).await?;
    Ok((exit, process.out(), process.errors()))
}

#[tokio::test]
async fn from_elsewhere_the_api_answers_those_who_know_the_token_and_nobody_else() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let (mut server, url) = open_server(&fixture).await?;
    for path in [ISVCS, "/version", "/healthz"] {
        for headers in [&[][..], &["Authorization: Bearer not-it"], &["Authorization: Basic eA=="]] {
            let (code, status) = ask(&format!("{url}{path}"), headers).await?;
            assert_eq!((code.as_str(), &status["reason"]), ("401", &json!("Unauthorized")), "{path} {headers:?}: {status}");
        }
    }
    let (code, list) = ask(&format!("{url}{ISVCS}"), &[&bearer(SECRET), "Host: berth.example"]).await?;
    assert_eq!((code.as_str(), &list["kind"]), ("200", &json!("InferenceServiceList")), "{list}");

    // What kubectl asks for, which it prints without knowing the kind.
    eventually("iris to be loaded", SOON, || async {
        let accept = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let (code, table) = ask(&format!("{url}{ISVCS}/iris"), &[&bearer(SECRET), accept]).await?;
        ensure!((code.as_str(), &table["kind"]) == ("200", &json!("Table")), "{code} {table}");
        let heads = table["columnDefinitions"].as_array().context("columns")?.iter().map(|column| column["name"].as_str().unwrap_or_default());
        let row = heads.zip(table["rows"][0]["cells"].as_array().context("cells")?).collect::<Vec<_>>();
        let loaded =
            row.contains(&("Name", &json!("iris"))) && row.contains(&("Ready", &json!("True"))) && row.contains(&("ActiveModel", &json!("Loaded")));
        Ok(if loaded { Found::Yes(()) } else { Found::NotYet(format!("{row:?}")) })
    })
    .await?;

    assert_eq!(server.interrupt().await?, Exit::Code(0));
    let written = server.process().written();
    assert!(!written.contains(SECRET), "the token is in what it wrote");
    assert!(!written.contains("others may read"), "{written}");
    Ok(())
}

#[tokio::test]
async fn the_command_line_sends_the_token_and_says_what_to_do_without_it() -> Result<()> {
    let fixture = Fixture::empty()?;
    fixture.storage("quickstart", &json!({"type": "folder", "path": fixture.quickstart.models()}))?;
    let (_server, url) = open_server(&fixture).await?;
    let file = fixture.path("token").display().to_string();
    fs::write(fixture.path("wrong"), NEXT)?;
    let wrong = fixture.path("wrong").display().to_string();
    fs::write(fixture.path("iris.yaml"), service("iris", "quickstart", "iris"))?;
    let manifest = fixture.path("iris.yaml").display().to_string();

    let without = "Error from server (Unauthorized): this server wants a token: send it as Authorization: Bearer TOKEN: \
                   give it with --token-file or BERTH_TOKEN_FILE, or in BERTH_TOKEN";
    let not_it = "Error from server (Unauthorized): this is not the token of this server: it may have been replaced: \
                  look at what --token, --token-file, BERTH_TOKEN or BERTH_TOKEN_FILE holds";
    for (line, variables, told) in [
        ("get isvc".to_owned(), vec![], without.to_owned()),
        ("get isvc -w".to_owned(), vec![], without.to_owned()),
        (format!("get isvc --token-file {wrong}"), vec![], not_it.to_owned()),
        ("delete isvc x".to_owned(), vec![("BERTH_TOKEN", NEXT)], not_it.to_owned()),
        (
            "get isvc --token-file no-such-file".to_owned(),
            vec![],
            "error: --token-file: no-such-file: No such file or directory (os error 2)".to_owned(),
        ),
    ] {
        let (exit, out, errors) = berth(&fixture, &url, &line, &variables).await?;
        assert_eq!((exit, out.as_str(), errors.as_str()), (Exit::Code(1), "", told.as_str()), "{line}");
    }
    let (exit, _, errors) = berth(&fixture, &url, &format!("apply -f {manifest}"), &[]).await?;
    assert!(exit == Exit::Code(1) && errors.ends_with("or in BERTH_TOKEN"), "{errors}");

    for (line, variables, told) in [
        (format!("apply -f {manifest} --token-file {file}"), vec![], "inferenceservice.serving.kserve.io/iris created"),
        (format!("wait isvc/iris --for=loaded --token-file {file}"), vec![], "inferenceservice.serving.kserve.io/iris condition met"),
        ("get isvc iris -o name".to_owned(), vec![("BERTH_TOKEN_FILE", file.as_str())], "inferenceservice.serving.kserve.io/iris"),
        ("delete isvc iris".to_owned(), vec![("BERTH_TOKEN", SECRET)], "inferenceservice.serving.kserve.io \"iris\" deleted"),
    ] {
        let (exit, out, errors) = berth(&fixture, &url, &line, &variables).await?;
        assert_eq!((exit, out.as_str(), errors.as_str()), (Exit::Code(0), told, ""), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_counts_without_a_restart() -> Result<()> {
    let fixture = Fixture::empty()?;
    let (mut server, url) = open_server(&fixture).await?;
    let list = format!("{url}{ISVCS}");
    assert_eq!(ask(&list, &[&bearer(SECRET)]).await?.0, "200");
    // An empty file is no token: the last one goes on to count.
    fs::write(fixture.path("token"), "")?;
    server.process().line("the word that there is no token", SOON, |line| line.contains("the API token cannot be read again")).await?;
    assert_eq!(ask(&list, &[&bearer(SECRET)]).await?.0, "200");
    // As Kubernetes replaces a secret: another file under the same name.
    fs::write(fixture.path("next"), NEXT)?;
    fs::rename(fixture.path("next"), fixture.path("token"))?;
    server.process().line("the word that it was replaced", SOON, |line| line.contains("the API token was replaced")).await?;
    assert_eq!((ask(&list, &[&bearer(SECRET)]).await?.0.as_str(), ask(&list, &[&bearer(NEXT)]).await?.0.as_str()), ("401", "200"));
    let written = server.process().written();
    assert!(!written.contains(SECRET) && !written.contains(NEXT), "a token is in what it wrote");
    Ok(())
}

#[tokio::test]
async fn a_token_is_asked_for_on_loopback_too_and_may_come_from_a_variable() -> Result<()> {
    let fixture = Fixture::empty()?;
    let server = fixture.serve(ROOMY).env("BERTH_API_TOKEN", SECRET).start().await?;
    let list = server.api(ISVCS);
    assert_eq!((ask(&list, &[]).await?.0.as_str(), ask(&list, &[&bearer(SECRET)]).await?.0.as_str()), ("401", "200"));
    Ok(())
}

#[tokio::test]
async fn a_token_file_that_others_may_read_is_warned_about_and_served() -> Result<()> {
    let fixture = Fixture::empty()?;
    fs::write(fixture.path("open"), SECRET)?;
    fs::set_permissions(fixture.path("open"), fs::Permissions::from_mode(0o644))?;
    let mut server = fixture.serve(ROOMY).flag("--api-token-file", fixture.path("open")).start().await?;
    let line = server.process().line("the warning", SOON, |line| line.contains("others may read the file of the API token")).await?;
    assert!(line.contains("0644"), "{line}");
    assert_eq!(ask(&server.api(ISVCS), &[&bearer(SECRET)]).await?.0, "200");
    Ok(())
}

#[tokio::test]
async fn a_server_without_a_usable_token_does_not_start_and_says_why() -> Result<()> {
    let fixture = Fixture::empty()?;
    fs::write(fixture.path("empty"), "\n")?;
    fs::write(fixture.path("words"), format!("{SECRET} {NEXT}"))?;
    fs::write(fixture.path("good"), SECRET)?;
    let path = |name: &str| fixture.path(name).display().to_string();
    for (api, file, variable, told) in [
        (
            "0.0.0.0:0",
            None,
            None,
            "--api: 0.0.0.0:0 can be reached from elsewhere: give the resource API a token with --api-token-file FILE, or use a loopback address"
                .to_owned(),
        ),
        ("0.0.0.0:0", Some("empty"), None, format!("--api-token-file: {}: is empty", path("empty"))),
        ("127.0.0.1:0", Some("words"), None, format!("--api-token-file: {}: the token must be visible ASCII", path("words"))),
        ("127.0.0.1:0", Some("none"), None, format!("--api-token-file: {}: No such file", path("none"))),
        ("127.0.0.1:0", Some("good"), Some(SECRET), "--api-token-file: BERTH_API_TOKEN is set as well".to_owned()),
        ("0.0.0.0:0", None, Some(""), "BERTH_API_TOKEN: the token must be visible ASCII".to_owned()),
    ] {
        let serve = fixture.serve(ROOMY).flag("--api", api);
        let serve = file.into_iter().fold(serve, |serve, file| serve.flag("--api-token-file", fixture.path(file)));
        let mut server = variable.into_iter().fold(serve, |serve, token| serve.env("BERTH_API_TOKEN", token)).spawn()?;
        let exit = server.process().exit(SOON).await?;
        let errors = server.process().errors();
        assert_eq!(exit, USAGE, "{errors}");
        assert!(errors.starts_with(&format!("berth: {told}")), "{errors}");
        assert!(!server.process().written().contains(SECRET), "a token is in what it wrote");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_that_is_open_when_the_server_stops_ends_whole() -> Result<()> {
    let fixture = Fixture::empty()?;
    let (mut server, url) = open_server(&fixture).await?;
    let mut watch = Command::new("curl");
    // Without a buffer, so that the line of the beginning is seen when it comes; curl fails when a body is cut short.
    let header = bearer(SECRET);
    watch.args(["--silent", "--show-error", "--no-buffer", "--header", &header, &format!("{url}{ISVCS}?watch=true")]);
    let mut watch = Process::start("a watch", watch)?;
    fixture.manifest("iris.yaml", &service("iris", "no-such-key", "iris"))?;
    watch.line("iris", SOON, |line| line.contains("\"ADDED\"")).await?;
    assert_eq!(server.interrupt().await?, Exit::Code(0));
    assert_eq!(watch.exit(SOON).await?, Exit::Code(0), "{}", watch.written());
    Ok(())
}
