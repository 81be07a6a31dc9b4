//! Against a small imitation in this process, which knows what the real servers at hand do not: refusals, tokens and odd listings.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::{Clock, HostNet, Net as _};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::token::Grant;
use super::*;
use crate::memory::sums_of;
use crate::suite::{Shelf, conforms};
use crate::{Patience, Verify};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, (Bytes, u64)>,
    puts: u64,
    tokens: u64,
    /// The token service says no.
    closed: bool,
    /// What the token service answers instead.
    said: Option<(u16, String)>,
    requests: Vec<String>,
}

/// One account with the container `c`, and a token service.
struct Account {
    addr: SocketAddr,
    state: Mutex<State>,
}

impl Account {
    async fn start() -> Arc<Self> {
        let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let account = Arc::new(Account { addr: listener.local_addr().expect("bound"), state: Mutex::default() });
        let serving = Arc::clone(&account);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let account = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let answer = account.answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    // A client that hangs up is none of our business.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        account
    }

    fn put(&self, key: &str, bytes: Bytes) {
        let mut state = self.state.lock();
        state.puts += 1;
        let put = state.puts;
        state.blobs.insert(key.to_owned(), (bytes, put));
    }

    fn count(&self, part: &str) -> usize {
        self.state.lock().requests.iter().filter(|line| line.contains(part)).count()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut state = self.state.lock();
        state.requests.push(format!("{} {}", request.method(), request.uri()));
        let path = percent_decoded(request.uri().path()).expect("encoded");
        let query = request.uri().query().unwrap_or_default();
        if path.ends_with("/token") {
            return token(&mut state, request.method(), query);
        }
        let headers = request.headers();
        if let Some((status, code)) = refusal(&state, headers, query) {
            return error(status, code);
        }
        if text(headers, "x-ms-version").is_none() {
            return error(400, "MissingRequiredHeader");
        }
        match path.strip_prefix("/acc/").expect("of the account").split_once('/') {
            None if path == "/acc/c" && query.contains("comp=list") => listing(&state, query),
            Some(("c", key)) => blob(&state, key, headers),
            _ => error(404, "ContainerNotFound"),
        }
    }

    fn settings(&self, credential: Credential) -> AzureSettings {
        AzureSettings {
            endpoint: format!("http://{}/acc", self.addr).parse().expect("a URL"),
            account: "acc".to_owned(),
            container: "c".to_owned(),
            credential,
            certificate: None,
            verify: Verify::Content,
            named: "storage config k".to_owned(),
        }
    }

    fn principal(&self, secret: &str) -> Credential {
        let authority = Some(format!("http://{}", self.addr));
        let secret = Secret(secret.to_owned());
        Credential::Token(Grant::Principal { tenant: "t".to_owned(), client: "i".to_owned(), secret, authority })
    }
}

/// How the imitation is asked is told by what comes with the request: tokens must be the newest, signatures must be right.
fn refusal(state: &State, headers: &HeaderMap, query: &str) -> Option<(u16, &'static str)> {
    match text(headers, "authorization") {
        Some(header) if header.starts_with("Bearer ") => {
            (header != format!("Bearer token-{}", state.tokens)).then_some((401, "InvalidAuthenticationInfo"))
        }
        Some(header) => (!header.starts_with("SharedKey acc:")).then_some((403, "AuthenticationFailed")),
        None => (query.contains("sig=") && !query.contains("sig=s%2Bg")).then_some((403, "AuthenticationFailed")),
    }
}

fn token(state: &mut State, method: &Method, query: &str) -> Response<Full<Bytes>> {
    if state.closed {
        let body = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.\r\nTrace ID: x"}"#;
        return Response::builder().status(401).body(Full::from(body)).expect("sound");
    }
    if let Some((status, body)) = state.said.clone() {
        return Response::builder().status(status).body(Full::from(body)).expect("sound");
    }
    state.tokens += 1;
    let token = format!("token-{}", state.tokens);
    let body = if method == Method::POST {
        format!(r#"{{"access_token":"{token}","expires_in":3600}}"#)
    } else {
        assert!(query.contains("resource=https"), "{query}");
        format!(r#"{{"access_token":"{token}","expires_on":"{}"}}"#, Clock::system().wall().0 / 1000 + 3600)
    };
    Response::new(Full::from(body))
}

fn error(status: u16, code: &str) -> Response<Full<Bytes>> {
    let body =
        format!("\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>As told.\nRequestId:1</Message></Error>");
    Response::builder().status(status).header("x-ms-error-code", code).body(Full::from(body)).expect("sound")
}

fn parameter(query: &str, name: &str) -> String {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    percent_decoded(value.unwrap_or_default()).expect("encoded")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn listing(state: &State, query: &str) -> Response<Full<Bytes>> {
    let (prefix, marker) = (parameter(query, "prefix"), parameter(query, "marker"));
    let mut blobs = state.blobs.iter().filter(|(key, _)| key.starts_with(&prefix) && **key >= marker);
    let mut xml = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>".to_owned();
    for (key, (bytes, put)) in blobs.by_ref().take(3) {
        let md5 = BASE64_STANDARD.encode(sums_of(bytes).md5.expect("computed"));
        let length = bytes.len();
        let key = escaped(key);
        xml += &format!(
            "<Blob><Name>{key}</Name><Properties><Etag>0x{put}</Etag><Content-Length>{length}</Content-Length><Content-MD5>{md5}</Content-MD5><BlobType>BlockBlob</BlobType></Properties><OrMetadata /><Metadata /></Blob>"
        );
    }
    let next = blobs.next().map_or("<NextMarker />".to_owned(), |(key, _)| format!("<NextMarker>{}</NextMarker>", escaped(key)));
    Response::new(Full::from(format!("{xml}</Blobs>{next}</EnumerationResults>")))
}

fn blob(state: &State, key: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let Some((bytes, put)) = state.blobs.get(key) else { return error(404, "BlobNotFound") };
    let etag = format!("\"0x{put}\"");
    if text(headers, "if-match").is_some_and(|wanted| wanted != etag) {
        return error(412, "ConditionNotMet");
    }
    let md5 = BASE64_STANDARD.encode(sums_of(bytes).md5.expect("computed"));
    let answer = Response::builder().header("etag", etag).header("x-ms-blob-type", "BlockBlob");
    let Some(range) = text(headers, "range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return answer.header("content-md5", md5).body(Full::from(bytes.clone())).expect("sound");
    };
    let (first, last): (usize, usize) = (range.0.parse().expect("a number"), range.1.parse().expect("a number"));
    if first >= bytes.len() {
        return error(416, "InvalidRange");
    }
    let end = bytes.len().min(last.saturating_add(1));
    answer
        .status(206)
        .header("content-range", format!("bytes {first}-{}/{}", end - 1, bytes.len()))
        .header("x-ms-blob-content-md5", md5)
        .header("content-md5", BASE64_STANDARD.encode([0; 16]))
        .body(Full::from(bytes.slice(first..end)))
        .expect("sound")
}

fn remote(settings: AzureSettings) -> Arc<dyn Remote> {
    let link = settings.link(Patience { connect: PATIENCE, silence: PATIENCE }, Clock::system()).expect("sound");
    Arc::new(AzureRemote::new(settings, Arc::new(link)))
}

struct Container {
    account: Arc<Account>,
    credential: Credential,
    wrong: Option<AzureSettings>,
}

#[async_trait]
impl Shelf for Container {
    fn remote(&self) -> Arc<dyn Remote> {
        remote(self.account.settings(self.credential.clone()))
    }
    fn elsewhere(&self) -> Option<Arc<dyn Remote>> {
        Some(remote(AzureSettings { container: "none".to_owned(), ..self.account.settings(self.credential.clone()) }))
    }
    fn denied(&self) -> Option<Arc<dyn Remote>> {
        self.wrong.clone().map(remote)
    }
    fn page(&self) -> Option<usize> {
        Some(3)
    }
    async fn put(&self, key: &str, bytes: Bytes) {
        self.account.put(key, bytes);
    }
    async fn remove(&self, key: &str) {
        self.account.state.lock().blobs.remove(key);
    }
}

#[tokio::test]
async fn a_container_conforms_with_every_credential() {
    let key = Credential::Key(Secret("c0VjUmVU".to_owned()));
    let sas = |sig: &str| Credential::Sas(Secret(format!("sv=2023-11-03&sig={sig}")));
    for kind in ["anonymous", "key", "sas", "principal", "managed"] {
        let account = Account::start().await;
        let (credential, wrong) = match kind {
            "anonymous" => (Credential::Anonymous, None),
            "key" => (key.clone(), Some(AzureSettings { account: "other".to_owned(), ..account.settings(key.clone()) })),
            "sas" => (sas("s%2Bg"), Some(account.settings(sas("old")))),
            "principal" => (account.principal("sEcReT"), None),
            _ => {
                let service = Some(format!("http://{}/metadata/identity/oauth2/token", account.addr));
                (Credential::Token(Grant::Managed { client: None, service }), None)
            }
        };
        conforms(&Container { account, credential, wrong }).await;
    }
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_anew_when_the_store_does_not_take_it() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let remote = remote(account.settings(account.principal("sEcReT")));
    let ask = || Ask { key: "m", range: None, version: None };
    for _ in 0..3 {
        assert!(remote.get(ask()).await.is_ok());
    }
    assert_eq!(account.count("POST /t/oauth2/v2.0/token"), 1);
    // What the store took before is taken no more.
    account.state.lock().tokens += 1;
    for _ in 0..3 {
        assert!(remote.get(ask()).await.is_ok());
    }
    assert_eq!((account.count("POST /t/oauth2/v2.0/token"), account.count("GET /acc/c/m")), (2, 7));
    account.state.lock().tokens += 1;
    account.state.lock().closed = true;
    let fault = remote.get(ask()).await.map(|_| ()).expect_err("no token");
    assert_eq!(fault.kind, FaultKind::Denied);
    let text = fault.to_string();
    for part in
        ["object \"m\" of container c at http://", "HTTP 401 AADSTS7000215: Invalid client secret provided.: check client_id", "storage config k"]
    {
        assert!(text.contains(part), "{text}");
    }
    for text in [text, format!("{fault:?} {remote:?}")] {
        assert!(!text.contains("sEcReT") && !text.contains("token-"), "{text}");
    }
}

#[tokio::test]
async fn a_signature_in_the_url_is_in_no_text() {
    let account = Account::start().await;
    let settings = account.settings(Credential::Sas(Secret("sv=1&sig=sEcReT".to_owned())));
    let mut texts = vec![format!("{settings:?}")];
    let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let nobody = format!("http://{}/acc", listener.local_addr().expect("bound")).parse().expect("a URL");
    drop(listener);
    for settings in [settings.clone(), AzureSettings { endpoint: nobody, ..settings }] {
        let remote = remote(settings);
        texts.push(format!("{remote:?} {}", remote.place()));
        let fault = remote.list("m", None).await.map(|_| ()).expect_err("refused or away");
        texts.push(format!("{fault} {fault:?}"));
        let fault = remote.get(Ask { key: "m", range: None, version: None }).await.map(|_| ()).expect_err("refused or away");
        texts.push(format!("{fault} {fault:?}"));
    }
    for text in texts {
        assert!(!text.contains("sEcReT") && !text.contains("sig="), "{text}");
    }
}

#[tokio::test]
async fn a_key_that_leads_out_of_the_container_is_not_asked_for() {
    let account = Account::start().await;
    let remote = remote(account.settings(Credential::Anonymous));
    for key in ["", "..", "m/../../other/x", "./x", "m/."] {
        let fault = remote.get(Ask { key, range: None, version: None }).await.map(|_| ()).expect_err(key);
        assert_eq!(fault.kind, FaultKind::Config, "{key}");
    }
    assert!(account.state.lock().requests.is_empty());
}

fn judged(credential: Credential, status: u16, code: &str, message: &str, detail: &str) -> Fault {
    judged_of(Of::Other, credential, status, code, message, detail)
}

fn judged_of(of: Of, credential: Credential, status: u16, code: &str, message: &str, detail: &str) -> Fault {
    let settings = AzureSettings {
        endpoint: "https://acc.blob.core.windows.net".parse().expect("a URL"),
        account: "acc".to_owned(),
        container: "c".to_owned(),
        credential,
        certificate: None,
        verify: Verify::Content,
        named: "storage config k".to_owned(),
    };
    let link = settings.link(Patience { connect: PATIENCE, silence: PATIENCE }, Clock::system()).expect("sound");
    let remote = AzureRemote::new(settings, Arc::new(link));
    let error = ErrorBody { code: code.to_owned(), message: message.to_owned(), authentication_error_detail: detail.to_owned() };
    remote.judge(StatusCode::from_u16(status).expect("a status"), Some(Duration::from_secs(3)), &error, of, "listing")
}

#[test]
fn an_answer_is_judged_by_what_the_caller_can_do_about_it() {
    use FaultKind::{Away, Changed, Config, Denied, Missing};
    let busy = FaultKind::Busy { pause: Some(Duration::from_secs(3)) };
    for (status, code, expected) in [
        (404, "ContainerNotFound", Missing),
        (409, "ContainerBeingDeleted", Missing),
        (404, "BlobNotFound", Missing),
        (404, "ResourceNotFound", Missing),
        (404, "", Missing),
        (403, "AuthenticationFailed", Denied),
        (403, "AuthorizationFailure", Denied),
        (403, "AuthorizationPermissionMismatch", Denied),
        (403, "KeyBasedAuthenticationNotPermitted", Denied),
        (401, "NoAuthenticationInformation", Denied),
        (400, "InvalidAuthenticationInfo", Denied),
        (409, "PublicAccessNotPermitted", Denied),
        (503, "ServerBusy", busy),
        (429, "TooManyRequests", busy),
        (500, "OperationTimedOut", Away),
        (500, "InternalError", Away),
        (502, "", Away),
        (412, "ConditionNotMet", Changed),
        (409, "BlobModifiedWhileReading", Changed),
        (409, "BlobArchived", Config),
        (400, "InvalidHeaderValue", Config),
        (400, "InvalidUri", Config),
        (302, "", Config),
    ] {
        let fault = judged(Credential::Anonymous, status, code, "why not", "");
        assert_eq!((fault.kind, fault.status), (expected, Some(status)), "{status} {code}: {fault:?}");
        assert!(!fault.to_string().ends_with(": "), "{fault}");
    }
    // Names of others are in these texts.
    let named = "no blob \"it does not exist\"";
    for (code, expected) in [("BlobNotFound", Changed), ("", Changed), ("ContainerNotFound", Missing), ("ResourceNotFound", Missing)] {
        let fault = judged_of(Of::Version, Credential::Anonymous, 404, code, named, "");
        assert_eq!(fault.kind, expected, "{code}: {fault}");
    }
}

/// A digest that is out of date is none.
#[test]
fn only_a_blob_that_is_written_once_states_the_digest_of_its_content() {
    let headers = |kind: Option<&'static str>| {
        let digest = ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==");
        let list = std::iter::once(digest).chain(kind.map(|kind| ("x-ms-blob-type", kind)));
        list.map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))).collect::<HeaderMap>()
    };
    for (kind, stated) in [(Some("BlockBlob"), true), (Some("AppendBlob"), false), (Some("PageBlob"), false), (None, false)] {
        assert_eq!(sums(StatusCode::OK, &headers(kind)).md5.is_some(), stated, "{kind:?}");
        let kind = kind.map_or(String::new(), |kind| format!("<BlobType>{kind}</BlobType>"));
        let body = format!(
            "<EnumerationResults><Blobs><Blob><Name>m</Name><Properties><Etag>W/\"0x1\"</Etag><Content-Length>0</Content-Length>\
             <Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5>{kind}</Properties></Blob></Blobs></EnumerationResults>"
        );
        let object = page(body.as_bytes()).expect("a listing").objects.remove(0);
        assert_eq!(object.sums.md5.is_some(), stated, "{kind}");
        assert_eq!(object.version, Some(Version("\"0x1\"".to_owned())), "a condition with a weak one never holds");
    }
}

#[tokio::test]
async fn an_answer_of_the_token_service_that_is_none_ends_the_question_only() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let remote = remote(account.settings(account.principal("sEcReT")));
    let ask = || Ask { key: "m", range: None, version: None };
    let long = format!(r#"{{"access_token":"{}","expires_in":3600}}"#, "x".repeat(70 << 10));
    for (case, status, body, text) in [
        ("a token that no header can hold", 200, r#"{"access_token":"to\u0001ken","expires_in":3600}"#, "a character that cannot be sent"),
        ("no token", 200, r#"{"access_token":"","expires_in":3600}"#, "a character that cannot be sent"),
        ("for ever", 200, r#"{"access_token":"token","expires_in":18446744073709551615}"#, "the answer is none that such a service gives"),
        ("a number as text", 200, r#"{"access_token":"token","expires_in":"to-x"}"#, "the answer is none that such a service gives"),
        ("a page", 200, "<html>token</html>", "the answer is none that such a service gives"),
        ("too long", 200, long.as_str(), "the answer is larger than 64"),
        ("an error too long", 400, long.as_str(), "the answer is larger than 64"),
        ("elsewhere", 302, "", "check authority_host of storage config k"),
    ] {
        account.state.lock().said = Some((status, body.to_owned()));
        let fault = remote.get(ask()).await.map(|_| ()).expect_err(case);
        assert_eq!(fault.kind, FaultKind::Config, "{case}: {fault}");
        assert!(fault.to_string().contains(text) && fault.to_string().contains("storage config k"), "{case}: {fault}");
        assert!(!fault.to_string().contains("to-x") && !fault.to_string().contains("sEcReT"), "{fault}");
    }
    account.state.lock().said = None;
    assert!(remote.get(ask()).await.is_ok(), "the next request asks anew");
}

/// What hyper would not send: lengths that are not true, bodies without an end.
#[tokio::test]
async fn an_answer_of_the_token_service_takes_no_more_room_than_a_short_one() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    for (head, chunk, kind) in [
        (format!("{HEAD}content-length: 1125899906842624\r\n\r\n"), Vec::new(), FaultKind::Away),
        (format!("{HEAD}content-length: 1125899906842624\r\n\r\n"), vec![b'x'; 4096], FaultKind::Config),
        (format!("{HEAD}transfer-encoding: chunked\r\n\r\n"), [b"1000\r\n", &[b'x'; 4096][..], b"\r\n"].concat(), FaultKind::Config),
    ] {
        let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let authority = Some(format!("http://{}", listener.local_addr().expect("bound")));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut question = [0; 4096];
            let _ = stream.read(&mut question).await;
            let _ = stream.write_all(head.as_bytes()).await;
            // Until the client has had enough.
            while !chunk.is_empty() && stream.write_all(&chunk).await.is_ok() {}
        });
        let account = Account::start().await;
        let secret = Secret("sEcReT".to_owned());
        let grant = Grant::Principal { tenant: "t".to_owned(), client: "i".to_owned(), secret, authority };
        let fault = remote(account.settings(Credential::Token(grant))).get(Ask { key: "m", range: None, version: None }).await;
        assert_eq!(fault.map(|_| ()).expect_err("no token").kind, kind);
    }
}

#[test]
fn errors_say_what_to_do_and_repeat_no_signature() {
    let key = Credential::Key(Secret("c0VjUmVU".to_owned()));
    let sas = Credential::Sas(Secret("sig=x".to_owned()));
    let mac = "The MAC signature found in the HTTP request 'sIgNaTuRe' is not the same as any computed signature.";
    let late = "Signature not valid in the specified time frame: Start [a] - Expiry [b] - Current [c]";
    for (credential, code, detail, expected) in [
        (Credential::Anonymous, "NoAuthenticationInformation", "", "storage config k has no credentials"),
        (key.clone(), "AuthorizationFailure", "", "check the credential of storage config k, what it may do and the account's network rules"),
        (Credential::Anonymous, "AuthorizationFailure", "", "storage config k has no credentials"),
        (key.clone(), "AuthenticationFailed", mac, "HTTP 403 AuthenticationFailed: why not: check account_name and account_key"),
        (sas.clone(), "AuthorizationFailure", "", "check that the sas_token of storage config k is valid now, lets read and list"),
        (key, "KeyBasedAuthenticationNotPermitted", "", "give storage config k an identity instead"),
        (sas, "AuthenticationFailed", late, "AuthenticationFailed: Signature not valid in the specified time frame: Start [a] - Expiry [b]"),
    ] {
        let text = judged(credential, 403, code, "why not", detail).to_string();
        assert!(text.contains(expected) && !text.contains("sIgNaTuRe"), "{text}");
    }
    let text = judged(Credential::Anonymous, 404, "ResourceNotFound", "", "").to_string();
    assert!(text.contains("does not exist, or is private"), "{text}");
    for body in [&b"<html>no XML<br></html>"[..], b"\xff\xfe", b""] {
        assert_eq!(ErrorBody::parse(body), ErrorBody::default());
    }
}

#[test]
fn a_listing_is_read_without_its_folders_and_with_its_odd_names() {
    let body = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"https://a/\" ContainerName=\"c\"><Prefix>m</Prefix><Blobs>\
        <Blob><Name>m/a &amp; b+%20.txt</Name><Properties><Etag>0x1</Etag><Content-Length>5</Content-Length><Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5>\
        <BlobType>BlockBlob</BlobType></Properties><Metadata><any>x</any></Metadata></Blob>\
        <Blob><Name>m/dir</Name><Properties><Etag>0x2</Etag><ResourceType>directory</ResourceType><Content-Length>0</Content-Length></Properties></Blob>\
        <Blob><Name>m/old</Name><Properties><Etag>0x3</Etag><Content-Length>0</Content-Length></Properties><Metadata><hdi_isfolder>true</hdi_isfolder></Metadata></Blob>\
        <Blob><Name>m/f</Name><Properties><Etag>0x4</Etag><ResourceType>file</ResourceType><Content-Length>0</Content-Length><Content-MD5 /></Properties><Metadata /></Blob>\
        <Blob><Name Encoded=\"true\">m/%EF%BF%BE%20x</Name><Properties><Content-Length>1</Content-Length><Content-MD5>odd</Content-MD5></Properties></Blob>\
        <Blob><Name>m/sub/</Name><Properties><Etag>0x5</Etag><Content-Length>0</Content-Length></Properties></Blob>\
        </Blobs><NextMarker>2!8!x-</NextMarker></EnumerationResults>";
    let empty = md5("1B2M2Y8AsgTpgAmY7PhCfg==");
    assert!(empty.is_some());
    let listed = |key: &str, size, etag: Option<&str>, md5| Object {
        key: key.to_owned(),
        size: ByteSize(size),
        version: etag.map(|etag| Version(etag.to_owned())),
        sums: Sums { md5, ..Sums::default() },
    };
    let objects = vec![
        listed("m/a & b+%20.txt", 5, Some("\"0x1\""), empty),
        listed("m/f", 0, Some("\"0x4\""), None),
        listed("m/\u{fffe} x", 1, None, None),
        listed("m/sub/", 0, Some("\"0x5\""), None),
    ];
    assert_eq!(page(body.as_bytes()), Ok(Page { objects, next: Some("2!8!x-".to_owned()) }));
    assert_eq!(page(b"<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>"), Ok(Page::default()));
    for body in [&b"<html><body>hello</body></html>"[..], b"", b"{}", b"<EnumerationResults><Blobs><Blob>", b"<ListBucketResult></ListBucketResult>"]
    {
        assert!(page(body).is_err(), "{}", String::from_utf8_lossy(body));
    }
}

#[tokio::test]
async fn an_identity_that_the_pod_does_not_have_is_the_configurations_fault() {
    let account = Account::start().await;
    let grant = Grant::Workload { client: Some("i".to_owned()), tenant: Some("t".to_owned()), authority: None };
    let settings = account.settings(Credential::Token(grant));
    let fault = settings.link(Patience { connect: PATIENCE, silence: PATIENCE }, Clock::system()).expect_err("no token file").to_string();
    assert!(fault.starts_with("storage config k: credentials is workload_identity, but AZURE_FEDERATED_TOKEN_FILE is not set"), "{fault}");
}
