//! The client side of the resource API: plain HTTP, a deadline on every request, faults in words.
//!
//! The API has no TLS yet: it listens on a loopback address or behind something that ends TLS. REST endpoints may have it.

use std::time::Duration;

use berth_registry::Kind;
use berth_telemetry::Clock;
use berth_types::Deadline;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT, WARNING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::fault::Fault;
use super::output::{note, plain};
use super::tls::TlsArgs;

/// How long a request of the resource API may take, its answer included.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that carries nothing is asked so often whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The longest answer that is read.
pub(crate) const LONGEST: usize = 512 << 20;
/// Resources in a page of a list, as kubectl asks for them.
const PAGE: usize = 500;
/// How often a list begins again because it changed faster than it was read.
const LISTINGS: usize = 3;

/// Where a server is.
#[derive(Clone)]
pub(crate) struct Server {
    /// `http://host:port`, with the path below which everything lies, without a slash at the end.
    base: String,
    /// `host:port`, for messages.
    shown: String,
    token: Option<HeaderValue>,
}

impl Server {
    /// Reads `http://host:port` or `host:port`, given by `option`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(url: &str, option: &str) -> Result<Self, Fault> {
        let server = Server::parse_any(url, option)?;
        match server.is_secured() {
            false => Ok(server),
            true => {
                Err(Fault::local(format!("{option}: {url:?} is https, which is not spoken yet: use http, through something local that ends TLS")))
            }
        }
    }

    /// The same, with https as well.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse_any(url: &str, option: &str) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::local(format!("{option}: {url:?} {why}"));
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let whole = whole.trim_end_matches('/');
        let uri: Uri = whole.parse().map_err(|fault| bad(&format!("is no URL: {fault}")))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            _ => return Err(bad("is no URL such as http://127.0.0.1:8088")),
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(Fault::local(format!("{option}: a user in the URL is not understood, give a token with --token-file or BERTH_TOKEN")));
        }
        if uri.query().is_some() {
            return Err(bad("has a query: give host and port only"));
        }
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let shown = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(usual));
        Ok(Server { base: whole.to_owned(), shown, token: None })
    }

    /// The same, with a token sent along.
    ///
    /// # Errors
    /// The token cannot be sent in a header. It is not part of the message.
    pub(crate) fn with_token(mut self, token: Option<&str>) -> Result<Self, Fault> {
        if let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_fault| Fault::local("--token or --token-file: the token holds characters that no header can carry"))?;
            value.set_sensitive(true);
            self.token = Some(value);
        }
        Ok(self)
    }

    /// True when it speaks https.
    pub(crate) fn is_secured(&self) -> bool {
        self.base.starts_with("https:")
    }

    /// `host:port`.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }
}

/// Which resources a list or a watch is about.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Their kind.
    pub(crate) kind: Kind,
    /// Their namespace; `None` for all of them, and for kinds without.
    pub(crate) namespace: Option<String>,
    /// A label selector.
    pub(crate) selector: Option<String>,
    /// Only the one of this name.
    pub(crate) name: Option<String>,
}

impl Scope {
    fn query(&self) -> String {
        let mut query = String::new();
        if let Some(selector) = &self.selector {
            query += &format!("&labelSelector={}", encoded(selector));
        }
        if let Some(name) = &self.name {
            query += &format!("&fieldSelector={}", encoded(&format!("metadata.name={name}")));
        }
        query
    }
}

/// The path of a kind's resources, or of one of them.
pub(crate) fn path(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> String {
    let namespace = namespace.filter(|_| kind.namespaced()).map(|namespace| format!("/namespaces/{}", encoded(namespace))).unwrap_or_default();
    let name = name.map(|name| format!("/{}", encoded(name))).unwrap_or_default();
    format!("/apis/{}{namespace}/{}{name}", kind.api_version(), kind.plural())
}

/// `text` as part of a path or a query.
pub(crate) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// A whole answer.
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_nodelay(true);
    connector
}

/// Talks to servers.
pub(crate) struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    /// Where https is spoken too.
    secured: Option<Http<HttpsConnector<HttpConnector>, Full<Bytes>>>,
    api: Server,
    clock: Clock,
}

impl Client {
    /// A client of the resource API at `api`.
    pub(crate) fn new(api: Server, clock: Clock) -> Self {
        Client { http: Http::builder(TokioExecutor::new()).build(connector()), secured: None, api, clock }
    }

    /// The same, which speaks https as `tls` says.
    ///
    /// # Errors
    /// What is wrong with what `tls` names.
    pub(crate) fn with_tls(&self, tls: &TlsArgs) -> Result<Self, Fault> {
        let mut connector = connector();
        connector.enforce_http(false);
        let secured = Http::builder(TokioExecutor::new()).build(tls.connector(connector)?);
        Ok(Client { http: self.http.clone(), secured: Some(secured), api: self.api.clone(), clock: self.clock.clone() })
    }

    /// Time.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The server of the resource API, for messages.
    pub(crate) fn server(&self) -> &str {
        self.api.shown()
    }

    /// One resource; `None` when there is none of that name.
    ///
    /// # Errors
    /// Any other answer, or none.
    pub(crate) async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>, Fault> {
        match self.json(Method::GET, &path(kind, Some(namespace), Some(name)), None).await {
            Ok(resource) if resource["metadata"].is_object() => Ok(Some(resource)),
            Ok(_other) => Err(Fault::local(format!("{} answered what is no resource: is it the resource API?", self.server()))),
            Err(fault) if fault.code() == Some(404) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The resources of `scope`, and the version of the whole, from which a watch goes on.
    ///
    /// # Errors
    /// Any other answer, or none.
    pub(crate) async fn list(&self, scope: &Scope) -> Result<(Vec<Value>, String), Fault> {
        for _again in 1..LISTINGS {
            match self.list_once(scope, Some(PAGE)).await {
                Err(fault) if fault.code() == Some(410) => {}
                other => return other,
            }
        }
        // Pages expire faster than they are read: everything at once.
        self.list_once(scope, None).await
    }

    async fn list_once(&self, scope: &Scope, page: Option<usize>) -> Result<(Vec<Value>, String), Fault> {
        let (mut items, mut next) = (Vec::new(), String::new());
        loop {
            let limit = page.map(|page| format!("limit={page}")).unwrap_or_default();
            let at = if next.is_empty() { String::new() } else { format!("&continue={}", encoded(&next)) };
            let path = format!("{}?{limit}{at}{}", path(scope.kind, scope.namespace.as_deref(), None), scope.query());
            let mut list = self.json(Method::GET, &path, None).await?;
            let Some(Value::Array(page)) = list.get_mut("items").map(Value::take) else {
                return Err(Fault::local(format!("{} answered a list without items: is it the resource API?", self.server())));
            };
            items.extend(page.into_iter().map(|item| complete(scope.kind, item)));
            let metadata = &list["metadata"];
            match metadata["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => token.clone_into(&mut next),
                None => return Ok((items, metadata["resourceVersion"].as_str().unwrap_or_default().to_owned())),
            }
        }
    }

    /// A request of the resource API and its answer.
    ///
    /// # Errors
    /// Refusals, and everything that kept an answer from coming.
    pub(crate) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Fault> {
        let body = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
        let answer = self.whole(&self.api, method, path, body, REQUEST).await?;
        if !answer.status.is_success() {
            return Err(self.refused(answer.status, &answer.body));
        }
        warnings(&answer.headers).iter().for_each(|warning| note(&format!("Warning: {warning}")));
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body)
            .map_err(|fault| Fault::local(format!("{} answered what is no JSON ({fault}): is it the resource API?", self.server())))
    }

    /// Begins a watch of `scope` after `version`; the server ends it after `lasts`.
    ///
    /// # Errors
    /// Refusals (410 when the version is too old), and everything that kept an answer from coming.
    pub(crate) async fn watch(&self, scope: &Scope, version: &str, lasts: Duration) -> Result<Incoming, Fault> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}{}",
            path(scope.kind, scope.namespace.as_deref(), None),
            lasts.as_secs(),
            encoded(version),
            scope.query()
        );
        self.stream(&path).await
    }

    /// An answer of the resource API that goes on for as long as it likes.
    ///
    /// # Errors
    /// Refusals, and everything that kept an answer from beginning.
    pub(crate) async fn stream(&self, path: &str) -> Result<Incoming, Fault> {
        let deadline = self.clock.deadline_in(REQUEST);
        let response = self.begin(&self.api, Method::GET, path, Bytes::new(), deadline, REQUEST).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = self.body(&self.api, response.into_body(), deadline, REQUEST).await?;
        Err(self.refused(status, &body))
    }

    /// The refusal in an answer; where a token is missing or wrong, with what to do about it.
    fn refused(&self, status: StatusCode, body: &[u8]) -> Fault {
        let fault = Fault::of_answer(self.server(), status, body);
        match (status, &self.api.token) {
            (StatusCode::UNAUTHORIZED, None) => fault.with_advice("give it with --token-file or BERTH_TOKEN_FILE, or in BERTH_TOKEN"),
            (StatusCode::UNAUTHORIZED, Some(_)) => fault.with_advice("look at what --token, --token-file, BERTH_TOKEN or BERTH_TOKEN_FILE holds"),
            (_, _) => fault,
        }
    }

    /// A request to any server and its whole answer, whatever its status.
    ///
    /// # Errors
    /// Everything that kept an answer from coming.
    pub(crate) async fn whole(&self, server: &Server, method: Method, path: &str, body: Bytes, within: Duration) -> Result<Answer, Fault> {
        let deadline = self.clock.deadline_in(within);
        let response = self.begin(server, method, path, body, deadline, within).await?;
        let (head, body) = response.into_parts();
        let body = self.body(server, body, deadline, within).await?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn begin(
        &self,
        server: &Server,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Deadline,
        within: Duration,
    ) -> Result<Response<Incoming>, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", server.base))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("berth/", env!("CARGO_PKG_VERSION")));
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &server.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        let request = request.body(Full::new(body)).map_err(|fault| Fault::local(format!("cannot ask {}: {fault}", server.shown)))?;
        let sent = match &self.secured {
            Some(secured) => secured.request(request),
            None => self.http.request(request),
        };
        match self.clock.until(deadline, sent).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(fault)) => Err(Fault::of_connection(&server.shown, &fault)),
            None => Err(Fault::Silent { server: server.shown.clone(), after: within }),
        }
    }

    async fn body(&self, server: &Server, body: Incoming, deadline: Deadline, within: Duration) -> Result<Bytes, Fault> {
        match self.clock.until(deadline, Limited::new(body, LONGEST).collect()).await {
            Some(Ok(whole)) => Ok(whole.to_bytes()),
            Some(Err(fault)) => Err(Fault::of_connection(&server.shown, fault.as_ref())),
            None => Err(Fault::Silent { server: server.shown.clone(), after: within }),
        }
    }
}

/// What a server has to say about a request that it carried out: `299 - "text"`.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let texts = headers.get_all(WARNING).iter().filter_map(|value| value.to_str().ok());
    let unwrapped = texts.filter_map(|value| Some(value.split_once('"')?.1.rsplit_once('"')?.0));
    unwrapped.map(|text| plain(&text.replace("\\\"", "\"").replace("\\'", "'"))).collect()
}

/// An item of a list with its kind, which a cluster leaves out there.
fn complete(kind: Kind, mut item: Value) -> Value {
    if let Value::Object(members) = &mut item {
        members.entry("apiVersion").or_insert_with(|| kind.api_version().into());
        members.entry("kind").or_insert_with(|| kind.as_str().into());
    }
    item
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{scripted, whole};

    #[test]
    fn servers_are_read_with_and_without_scheme_port_and_path() {
        for (text, base, shown) in [
            ("http://127.0.0.1:8088", "http://127.0.0.1:8088", "127.0.0.1:8088"),
            ("127.0.0.1:8088", "http://127.0.0.1:8088", "127.0.0.1:8088"),
            ("localhost", "http://localhost", "localhost:80"),
            ("http://[::1]:9/", "http://[::1]:9", "[::1]:9"),
            ("http://h:1/proxy/", "http://h:1/proxy", "h:1"),
        ] {
            let server = Server::parse(text, "--server").unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!((server.base.as_str(), server.shown.as_str()), (base, shown), "{text}");
        }
    }

    #[test]
    fn a_rest_endpoint_may_be_https() {
        let server = Server::parse_any("https://h/", "--rest").expect("a server");
        assert_eq!((server.base.as_str(), server.shown(), server.is_secured()), ("https://h", "h:443", true));
        assert!(Server::parse_any("h:8008", "--rest").is_ok_and(|server| !server.is_secured()));
    }

    #[test]
    fn what_is_no_server_is_told_and_no_secret_with_it() {
        for (text, why) in [
            ("https://h:1", "error: --server: \"https://h:1\" is https, which is not spoken yet"),
            ("ftp://h", "error: --server: \"ftp://h\" is no URL such as http://127.0.0.1:8088"),
            ("h:1?x=1", "error: --server: \"h:1?x=1\" has a query"),
            ("", "error: --server: \"\" is no URL"),
            ("http://me:secret@h:1", "error: --server: a user in the URL is not understood"),
        ] {
            let fault = Server::parse(text, "--server").err().unwrap_or_else(|| panic!("{text} was taken")).to_string();
            assert!(fault.starts_with(why) && !fault.contains("secret"), "{text}: {fault}");
        }
        let server = Server::parse("h:1", "--server").expect("a server");
        assert!(server.clone().with_token(Some("a b")).is_ok_and(|server| server.token.is_some()));
        assert!(server.clone().with_token(Some(" ")).is_ok_and(|server| server.token.is_none()));
        let fault = server.with_token(Some("sec\nret")).err().expect("refused").to_string();
        assert!(!fault.contains("ret\"") && fault.starts_with("error: --token"), "{fault}");
    }

    #[test]
    fn paths_and_queries_are_those_of_kubernetes() {
        assert_eq!(
            path(Kind::InferenceService, Some("team"), Some("a/b")),
            "/apis/serving.kserve.io/v1beta1/namespaces/team/inferenceservices/a%2Fb"
        );
        assert_eq!(path(Kind::Predictor, None, None), "/apis/serving.kserve.io/v1alpha1/predictors");
        assert_eq!(path(Kind::ClusterServingRuntime, Some("default"), Some("r")), "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/r");
        let scope = Scope { kind: Kind::Predictor, namespace: None, selector: Some("tier in (a,b)".to_owned()), name: Some("m".to_owned()) };
        assert_eq!(scope.query(), "&labelSelector=tier%20in%20%28a%2Cb%29&fieldSelector=metadata.name%3Dm");
    }

    #[tokio::test]
    async fn the_token_goes_to_the_resource_api_and_nowhere_else() {
        let (addr, mut asks) = scripted(vec![whole(200, &json!({})), whole(200, &json!({}))]).await;
        let here = Server::parse(&addr.to_string(), "--server").expect("a server");
        let client = Client::new(here.clone().with_token(Some("t0k3n")).expect("a token"), Clock::system());
        client.json(Method::GET, "/version", None).await.expect("an answer");
        assert!(asks.recv().await.is_some_and(|head| head.contains("\r\nauthorization: Bearer t0k3n\r\n")));
        client.whole(&here, Method::POST, "/v2/models/m/infer", Bytes::from_static(b"{}"), REQUEST).await.expect("an answer");
        assert!(asks.recv().await.is_some_and(|head| !head.contains("t0k3n")));
    }

    #[tokio::test]
    async fn a_server_that_keeps_quiet_is_left_when_the_time_is_over() {
        let (addr, _asks) = scripted(Vec::new()).await;
        let here = Server::parse(&addr.to_string(), "--server").expect("a server");
        let client = Client::new(here.clone(), Clock::system());
        let asked = client.whole(&here, Method::GET, "/version", Bytes::new(), Duration::from_millis(50)).await;
        let fault = asked.err().expect("no answer").to_string();
        assert_eq!(fault, format!("Unable to connect to the server {addr}: no answer within 50ms"));
    }

    #[tokio::test]
    async fn pages_are_read_to_the_last_and_again_from_the_first_when_they_expire() {
        let page = |names: &[&str], next: &str| {
            let items: Vec<Value> = names.iter().map(|name| json!({ "metadata": { "name": name } })).collect();
            whole(200, &json!({ "metadata": { "resourceVersion": "7", "continue": next }, "items": items }))
        };
        let expired = whole(410, &json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" }));
        let (addr, mut asks) = scripted(vec![page(&["a"], "a b"), expired, page(&["b", "c"], "x"), page(&["d"], "")]).await;
        let client = Client::new(Server::parse(&addr.to_string(), "--server").expect("a server"), Clock::system());
        let scope = Scope { kind: Kind::Predictor, namespace: None, selector: None, name: None };
        let (items, version) = client.list(&scope).await.expect("a list");
        let names: Vec<&str> = items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
        assert_eq!((names, version.as_str()), (vec!["b", "c", "d"], "7"));
        asks.recv().await.expect("asked");
        assert!(asks.recv().await.is_some_and(|head| head.starts_with("GET /apis/serving.kserve.io/v1alpha1/predictors?limit=500&continue=a%20b ")));
    }

    #[test]
    fn warnings_are_read_without_their_wrapping() {
        let headers = [(WARNING, HeaderValue::from_static("299 - \"unknown field \\\"sepc\\\"\"")), (WARNING, HeaderValue::from_static("299"))];
        assert_eq!(warnings(&headers.into_iter().collect()), ["unknown field \"sepc\""]);
    }

    #[test]
    fn items_of_a_list_know_their_kind() {
        assert_eq!(
            complete(Kind::Predictor, json!({ "metadata": {} })),
            json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": {} })
        );
    }
}
