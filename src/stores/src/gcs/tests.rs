//! Against a small imitation in this process, which knows what the real server at hand does not: tokens and refusals.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use berth_telemetry::{Clock, HostNet, Net as _};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::{Value, json};

use super::token::Key;
use super::*;
use crate::config::Secret;
use crate::memory::sums_of;
use crate::suite::{Shelf, conforms};
use crate::{Patience, Verify};

/// A private key that opens nothing anywhere.
pub(super) const KEY: &str = include_str!("nobody.pem");

const PATIENCE: Patience = Patience { connect: Duration::from_secs(20), silence: Duration::from_secs(20) };

struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    puts: u64,
    tokens: u64,
    /// Seconds that a token is said to be good for.
    life: u64,
    /// What the token service answers instead of a token.
    closed: Option<(u16, &'static str)>,
    /// What the store answers to everything.
    broken: Option<(u16, &'static str)>,
    /// That answer tells nothing of whose it is.
    stranger: bool,
    /// The store wants the newest token.
    private: bool,
    /// Stated instead of the right length.
    stored: Option<&'static str>,
    hashes: bool,
    requests: Vec<String>,
    statements: Vec<String>,
}

/// One store with the bucket `b`, a token service and a metadata service.
struct Account {
    addr: SocketAddr,
    state: Mutex<State>,
}

impl Account {
    async fn start() -> Arc<Self> {
        let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let state = State {
            objects: BTreeMap::new(),
            puts: 1_700_000_000_000_000,
            tokens: 0,
            life: 3600,
            closed: None,
            broken: None,
            stranger: false,
            private: true,
            stored: None,
            hashes: true,
            requests: Vec::new(),
            statements: Vec::new(),
        };
        let account = Arc::new(Account { addr: listener.local_addr().expect("bound"), state: Mutex::new(state) });
        let serving = Arc::clone(&account);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let account = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let account = Arc::clone(&account);
                        async move { Ok::<_, Infallible>(account.answer(request).await) }
                    });
                    // A client that hangs up is none of our business.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        account
    }

    fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.addr).parse().expect("a URL")
    }

    fn put(&self, key: &str, bytes: Bytes) {
        let mut state = self.state.lock();
        state.puts += 1;
        let put = state.puts;
        state.objects.insert(key.to_owned(), (bytes, put));
    }

    fn count(&self, part: &str) -> usize {
        self.state.lock().requests.iter().filter(|line| line.contains(part)).count()
    }

    fn settings(&self, credential: Credential) -> GcsSettings {
        GcsSettings {
            endpoint: self.url(""),
            bucket: "b".to_owned(),
            credential,
            certificate: None,
            verify: Verify::Content,
            named: "storage config k".to_owned(),
        }
    }

    fn account(&self) -> Credential {
        Credential::Token(Grant::Account { email: "a@p.example".to_owned(), key: Secret(KEY.to_owned()), service: self.url("/token") })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let header = |name: &str| text(&head.headers, name).unwrap_or_default().to_owned();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut state = self.state.lock();
        state.requests.push(format!("{} {} {}", head.method, head.uri, header("accept-encoding")).trim().to_owned());
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        match path {
            "/token" => {
                state.statements.push(String::from_utf8_lossy(&body).into_owned());
                return token(&mut state);
            }
            "/computeMetadata/v1/instance/service-accounts/default/token" if header("metadata-flavor") == "Google" => return token(&mut state),
            _ => {}
        }
        if let Some((status, text)) = state.broken {
            let answer = Response::builder().status(status).header("retry-after", "3");
            let answer = if state.stranger { answer } else { answer.header("x-goog-hash", "") };
            return answer.body(Full::from(text)).expect("sound");
        }
        if state.private && header("authorization") != format!("Bearer token-{}", state.tokens) {
            return error(401, "authError", "Invalid Credentials");
        }
        let Some(rest) = path.strip_prefix("/storage/v1/b/b/o") else {
            return error(404, "notFound", "The specified bucket does not exist.");
        };
        if rest.is_empty() {
            return listing(&state, query);
        }
        let key = decoded(&rest[1..]);
        assert!(!rest[1..].contains('/'), "a name is one segment: {rest}");
        object(&state, &key, query, &header("range"))
    }
}

fn token(state: &mut State) -> Response<Full<Bytes>> {
    if let Some((status, body)) = state.closed {
        return Response::builder().status(status).body(Full::from(body)).expect("sound");
    }
    state.tokens += 1;
    let body = json!({"access_token": format!("token-{}", state.tokens), "expires_in": state.life, "token_type": "Bearer"});
    Response::new(Full::from(body.to_string()))
}

fn error(status: u16, reason: &str, message: &str) -> Response<Full<Bytes>> {
    let body = json!({"error": {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}});
    Response::builder().status(status).body(Full::from(body.to_string())).expect("sound")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("hexadecimal")
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(decoded)
}

fn md5(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(sums_of(bytes).md5.expect("computed"))
}

fn crc32c(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(sums_of(bytes).crc32c.expect("computed").to_be_bytes())
}

fn listing(state: &State, query: &str) -> Response<Full<Bytes>> {
    let (prefix, after) = (parameter(query, "prefix").expect("given"), parameter(query, "pageToken").unwrap_or_default());
    let mut objects = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key >= after);
    let items: Vec<Value> = objects
        .by_ref()
        .take(3)
        .map(|(key, (bytes, put))| {
            let (size, generation) = (bytes.len().to_string(), put.to_string());
            json!({"name": key, "size": size, "generation": generation, "crc32c": crc32c(bytes), "md5Hash": md5(bytes)})
        })
        .collect();
    let mut page = json!({"kind": "storage#objects"});
    if !items.is_empty() {
        page["items"] = items.into();
    }
    if let Some((key, _)) = objects.next() {
        page["nextPageToken"] = json!(key);
    }
    Response::new(Full::from(page.to_string()))
}

fn object(state: &State, key: &str, query: &str, range: &str) -> Response<Full<Bytes>> {
    let found = state.objects.get(key).filter(|(_, put)| parameter(query, "generation").is_none_or(|wanted| wanted == put.to_string()));
    let Some((bytes, put)) = found else {
        // Where bytes are asked for, an error is one line.
        let line = Full::from(format!("No such object: b/{key}"));
        return Response::builder().status(404).header("x-guploader-uploadid", "u").body(line).expect("sound");
    };
    if parameter(query, "alt").as_deref() != Some("media") {
        return Response::new(Full::from(json!({"crc32c": crc32c(bytes), "md5Hash": md5(bytes)}).to_string()));
    }
    let mut answer = Response::builder().header("x-goog-generation", put.to_string());
    answer = answer.header("x-goog-stored-content-length", state.stored.map_or(bytes.len().to_string(), str::to_owned));
    if state.hashes {
        answer = answer.header("x-goog-hash", format!("crc32c={}", crc32c(bytes))).header("x-goog-hash", format!("md5={}", md5(bytes)));
    }
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return answer.body(Full::from(bytes.clone())).expect("sound");
    };
    let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
    if first >= bytes.len() {
        return answer.status(416).header("content-range", format!("bytes */{}", bytes.len())).body(Full::default()).expect("sound");
    }
    let end = bytes.len().min(last.saturating_add(1));
    let answer = answer.status(206).header("content-range", format!("bytes {first}-{}/{}", end - 1, bytes.len()));
    answer.body(Full::from(bytes.slice(first..end))).expect("sound")
}

fn remote(settings: GcsSettings) -> Arc<dyn Remote> {
    let link = settings.link(PATIENCE, Clock::system()).expect("sound");
    Arc::new(GcsRemote::new(settings, Arc::new(link)))
}

fn whole(key: &str) -> Ask<'_> {
    Ask { key, range: None, version: None }
}

async fn fault(remote: &Arc<dyn Remote>, key: &str) -> Fault {
    remote.get(whole(key)).await.map(|_| ()).expect_err("refused")
}

struct Bucket {
    account: Arc<Account>,
    credential: Credential,
}

#[async_trait]
impl Shelf for Bucket {
    fn remote(&self) -> Arc<dyn Remote> {
        remote(self.account.settings(self.credential.clone()))
    }
    fn elsewhere(&self) -> Option<Arc<dyn Remote>> {
        Some(remote(GcsSettings { bucket: "none".to_owned(), ..self.account.settings(self.credential.clone()) }))
    }
    fn denied(&self) -> Option<Arc<dyn Remote>> {
        self.account.state.lock().private.then(|| remote(self.account.settings(Credential::Anonymous)))
    }
    fn page(&self) -> Option<usize> {
        Some(3)
    }
    async fn put(&self, key: &str, bytes: Bytes) {
        self.account.put(key, bytes);
    }
    async fn remove(&self, key: &str) {
        self.account.state.lock().objects.remove(key);
    }
}

#[tokio::test]
async fn a_bucket_conforms_with_every_credential() {
    for kind in ["anonymous", "account", "instance"] {
        let account = Account::start().await;
        let credential = match kind {
            "anonymous" => {
                account.state.lock().private = false;
                Credential::Anonymous
            }
            "account" => account.account(),
            _ => Credential::Token(Grant::Instance { service: Some(account.url("/")) }),
        };
        conforms(&Bucket { account, credential }).await;
    }
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_anew_when_the_store_does_not_take_it() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let remote = remote(account.settings(account.account()));
    let all = futures::future::join_all((0..20).map(|_| remote.get(whole("m")))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(account.count("POST /token"), 1, "twenty at once share one question");
    // What the store took before is taken no more.
    account.state.lock().tokens += 1;
    for _ in 0..3 {
        assert!(remote.get(whole("m")).await.is_ok());
    }
    assert_eq!(account.count("POST /token"), 2);
    // A store that takes none is asked twice, not for ever.
    account.state.lock().broken = Some((401, ""));
    let fault = fault(&remote, "m").await;
    assert_eq!((fault.kind, fault.status, account.count("POST /token")), (FaultKind::Denied, Some(401), 3));
    assert!(fault.to_string().contains("the store does not take the token of storage config k"), "{fault}");
}

#[tokio::test]
async fn a_token_at_its_end_is_replaced() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    account.state.lock().life = 0;
    let remote = remote(account.settings(account.account()));
    for _ in 0..3 {
        assert!(remote.get(whole("m")).await.is_ok());
    }
    assert_eq!(account.count("POST /token"), 3);
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let remote = remote(account.settings(account.account()));
    for (closed, kind, text) in [
        ((500, "oops"), FaultKind::Away, "the token service http://127.0.0.1"),
        ((503, ""), FaultKind::Busy { pause: None }, "answered HTTP 503"),
        ((200, "<html>"), FaultKind::Config, "holds no access_token"),
        ((200, r#"{"access_token":"a\nb"}"#), FaultKind::Config, "holds no access_token"),
        ((302, ""), FaultKind::Config, "check token_uri of storage config k"),
        (
            (400, r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#),
            FaultKind::Denied,
            "HTTP 400 Invalid JWT Signature.: check private_key, client_email and token_uri of storage config k",
        ),
        (
            (400, r#"{"error":"invalid_grant","error_description":"Check your iat and exp values in the JWT claim."}"#),
            FaultKind::Denied,
            "set this machine's clock",
        ),
        ((401, r#"{"error":"invalid_client"}"#), FaultKind::Denied, "HTTP 401 invalid_client"),
    ] {
        account.state.lock().closed = Some(closed);
        let fault = fault(&remote, "m").await;
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.to_string().contains(text) && fault.to_string().starts_with("object \"m\" of bucket b at http://127.0.0.1"), "{fault}");
        for text in [fault.to_string(), format!("{fault:?} {remote:?}")] {
            assert!(!text.contains("assertion") && !text.contains(&KEY[40..80]) && !text.contains("eyJ"), "{text}");
        }
    }
    account.state.lock().closed = None;
    assert!(remote.get(whole("m")).await.is_ok(), "the next request asks anew");
    account.state.lock().broken = Some((500, "oops"));
    assert_eq!(fault(&remote, "m").await.kind, FaultKind::Away);
    account.state.lock().broken = None;
    assert!(remote.get(whole("m")).await.is_ok());
}

#[tokio::test]
async fn an_account_states_who_it_is_to_its_token_service_and_no_more_than_reading() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let before = Clock::system().wall().0 / 1000;
    assert!(remote(account.settings(account.account())).get(whole("m")).await.is_ok());
    let body = account.state.lock().statements.concat();
    assert_eq!(parameter(&body, "grant_type").as_deref(), Some("urn:ietf:params:oauth:grant-type:jwt-bearer"));
    let statement = parameter(&body, "assertion").expect("given");
    let parts: Vec<Vec<u8>> = statement.split('.').map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64")).collect();
    assert_eq!(serde_json::from_slice::<Value>(&parts[0]).expect("JSON"), json!({"alg": "RS256", "typ": "JWT"}));
    let claims: Value = serde_json::from_slice(&parts[1]).expect("JSON");
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!("a@p.example"), &json!(account.url("/token").as_str())));
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/devstorage.read_only");
    let (from, to) = (claims["iat"].as_u64().expect("a number"), claims["exp"].as_u64().expect("a number"));
    assert!(from < before && to == from + 3600, "{claims}");
    assert_eq!((parts.len(), parts[2].len()), (3, 256));
}

#[test]
fn a_statement_is_signed_as_others_would_sign_it() {
    // openssl dgst -sha256 -sign nobody.pem
    const EXPECTED: &str = "Wuj6KF_L8lB9Pr29zVKO8SYChybCv5JsfZIhHCgAm36qGTd94PC7vfOfTk9dCBcxxv-9Qth2BcRiHN6Qi9yXa23dMSJ6JeVFPJhMUZYYmUEiOM1Pzkei0O3XCg-Ww4HQtOfLHMMjgIZFoJ12FtnQVPKIx1G-PNQiE-OM47VM8RkRwAYfQUiCCsIftrb-hk1G80LkDsjMAEw4tLwCkYn2XN3LULBtD_mRWPuomlnDjIMV126G0Twoq5o23so0jPdwLigwGSp3HjU5FnJQkurGbx2BjK3m-oKdLaQiZcqthSEYZ5L3YNVr1dPwewsxm7VyLYqBKwmoCqxhLMDgXiZILw";
    for pem in [KEY.to_owned(), KEY.replace('\n', "\\n"), format!("{KEY}\n\n")] {
        let signature = Key::parse(&pem).expect("a key").sign(b"message").expect("signed");
        assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(signature), EXPECTED);
    }
    for pem in ["", "sEcReT", "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----"] {
        assert_eq!(Key::parse(pem).map(|_| ()), Err("private_key is not the PEM text of an RSA key".to_owned()));
    }
}

#[tokio::test]
async fn an_answer_that_was_unpacked_on_its_way_is_not_taken() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    let remote = remote(account.settings(account.account()));
    assert!(remote.get(whole("m")).await.is_ok());
    assert_eq!(account.count("alt=media gzip"), 1, "what is stored packed is asked for packed");
    account.state.lock().stored = Some("3");
    let fault = fault(&remote, "m").await;
    assert_eq!(fault.kind, FaultKind::Corrupt, "{fault}");
    assert!(fault.to_string().contains("it comes with 5 bytes, 3 are stored"), "{fault}");
}

#[tokio::test]
async fn checksums_that_an_answer_left_out_are_asked_for() {
    let account = Account::start().await;
    account.put("m", Bytes::from_static(b"model"));
    account.state.lock().hashes = false;
    let remote = remote(account.settings(account.account()));
    let object = remote.get(whole("m")).await.expect("answered").object;
    assert!(object.sums.is_empty());
    let sums = remote.sums(&object).await.expect("known");
    assert_eq!((sums.crc32c, sums.md5), (sums_of(b"model").crc32c, sums_of(b"model").md5));
    account.put("m", Bytes::from_static(b"other"));
    assert_eq!(remote.sums(&object).await.expect_err("another version").kind, FaultKind::Changed);
}

#[tokio::test]
async fn a_name_that_no_object_can_have_is_not_asked_for() {
    let account = Account::start().await;
    let remote = remote(account.settings(Credential::Anonymous));
    for key in ["", ".", ".."] {
        assert_eq!(fault(&remote, key).await.kind, FaultKind::Config, "{key}");
    }
    assert!(account.state.lock().requests.is_empty());
}

#[tokio::test]
async fn an_answer_is_judged_by_what_the_caller_can_do_about_it() {
    use FaultKind::{Away, Config, Denied, Missing};
    let busy = FaultKind::Busy { pause: Some(Duration::from_secs(3)) };
    let account = Account::start().await;
    let nobody = remote(account.settings(Credential::Anonymous));
    let somebody = remote(account.settings(account.account()));
    let limited = r#"{"error":{"code":403,"message":"slow down","errors":[{"reason":"userRateLimitExceeded"}]}}"#;
    let payer =
        r#"{"error":{"code":400,"message":"Bucket is a requester pays bucket but no user project provided.","errors":[{"reason":"required"}]}}"#;
    for (status, body, expected, text) in [
        (404, "No such object: b/m", Missing, "HTTP 404 No such object: b/m"),
        (404, "The specified bucket does not exist.", Missing, "bucket b does not exist"),
        (404, "<html>not found</html>", Missing, "HTTP 404"),
        (401, "Anonymous caller does not have storage.objects.get access.", Denied, "storage config k has no credentials"),
        (403, "forbidden", Denied, "HTTP 403 forbidden: "),
        (403, limited, busy, "slow down"),
        (429, "", busy, "HTTP 429"),
        (503, "<html>", busy, "HTTP 503"),
        (500, "", Away, "HTTP 500"),
        (504, "", Away, "HTTP 504"),
        (408, "", Away, "HTTP 408"),
        (400, payer, Config, "it makes its readers pay, which is not supported"),
        (400, "odd", Config, "HTTP 400 odd"),
        (301, "", Config, "check endpoint_url of storage config k"),
        (501, "", Config, "the store cannot do that"),
        (412, "", FaultKind::Changed, "it changed after it was listed"),
    ] {
        account.state.lock().broken = Some((status, body));
        let fault = fault(&nobody, "m").await;
        assert_eq!((fault.kind, fault.status), (expected, Some(status)), "{status} {body}: {fault}");
        assert!(fault.to_string().contains(text) && !fault.to_string().ends_with(": "), "{fault}");
    }
    // Names of others are in these texts.
    let version = Version("1".to_owned());
    for (body, expected) in [("No such object: b/it does not exist", FaultKind::Changed), ("The specified bucket does not exist.", Missing)] {
        account.state.lock().broken = Some((404, body));
        let fault = nobody.get(Ask { key: "m", range: None, version: Some(&version) }).await.map(|_| ()).expect_err("gone");
        assert_eq!(fault.kind, expected, "{fault}");
    }
    account.state.lock().stranger = true;
    account.state.lock().broken = Some((403, "sEcReT of the proxy"));
    let text = fault(&nobody, "m").await.to_string();
    assert!(text.ends_with("HTTP 403 storage config k has no credentials"), "{text}");
    account.state.lock().stranger = false;
    account.state.lock().broken = Some((403, "forbidden"));
    let text = fault(&somebody, "m").await.to_string();
    assert!(text.contains("the service account of storage config k needs the role Storage Object Viewer"), "{text}");
    account.state.lock().broken = Some((200, "<html>hello</html>"));
    let fault = nobody.list("m", None).await.expect_err("no listing");
    assert!(fault.kind == Config && fault.to_string().contains("is endpoint_url the address of a store"), "{fault}");
}
