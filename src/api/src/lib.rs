//! The resource API: what is desired and what became of it, under the paths and in the JSON of Kubernetes, so that scripts
//! move to a cluster unchanged.
//!
//! ```text
//! let api = Api::new(Deps { store, views, clock, faults, downloads, drifts, memory, access, limits }, address, shutdown)?;
//! serve_http(listener, move |request| { let api = api.clone(); async move { Ok(api.answer(request).await) } }, ...).await
//! ```
//!
//! The server in front of it is somebody else's: it bounds connections and the time that a head may take.
//!
//! | path | what |
//! |---|---|
//! | `/apis/serving.kserve.io/v1beta1/namespaces/NS/inferenceservices` | `GET` a list, `POST` one, `DELETE` those chosen |
//! | `.../inferenceservices/NAME` | `GET`, `PUT`, `PATCH`, `DELETE` |
//! | `.../inferenceservices/NAME/status` | `GET` the resource; only the server writes statuses |
//! | `/apis/serving.kserve.io/v1alpha1/namespaces/NS/{predictors,servingruntimes}` | the same |
//! | `/apis/serving.kserve.io/v1alpha1/clusterservingruntimes` | the same, cluster-wide |
//! | `/apis/serving.kserve.io/{v1beta1,v1alpha1}/PLURAL` | `GET` a list over all namespaces |
//! | `/api`, `/apis`, `/apis/serving.kserve.io[/VERSION]`, `/version`, `/healthz`, `/openapi/v3` | what clients ask first |
//! | `/berth/v1/faults` | what is wrong with the files of the watched folder |
//! | `/berth/v1/view` | number and size of the view that requests are routed by |
//! | `/berth/v1/downloads` | what is being fetched, how far and how fast; with `watch=true` a line whenever that changes |
//! | `/berth/v1/drifts` | which pods serve other bytes than the first good ones of a model |
//! | `/berth/v1/memory` | what memory there is, what models are charged with and where those numbers are from |
//!
//! Lists take `labelSelector`, `fieldSelector` (name, namespace), `limit` and `continue`; with `watch=true` they become one
//! line of JSON per change from `resourceVersion` on, no intermediate state left out, `410 Gone` when that is too long ago.
//! So many watches are open at a time and no more ([`Limits`]); further ones are `429` with `Retry-After`. A watch of tables
//! tells a resource again, in the same version, while its model is being fetched: once a second at most.
//!
//! Reads are JSON, YAML (`Accept: application/yaml`; not watches) or a `Table` (`Accept:
//! application/json;as=Table;v=v1;g=meta.k8s.io`, as kubectl asks, with `includeObject`). Whoever takes none of them gets a
//! `406`. Answers to writes are JSON.
//!
//! Bodies are JSON or YAML, patches are merge patches, JSON patches, strategic merge patches (as merge patches: lists are
//! replaced, directives refused) or applied manifests. Writes take `dryRun=All` and `fieldValidation`; `fieldManager`,
//! `force` and `propagationPolicy` are accepted without effect. Errors are `Status` objects.
//!
//! What differs from a cluster:
//! - Resources of the watched folder answer a write with `409 Conflict` that names the file, those that come with the
//!   program with `403 Forbidden`.
//! - Fields have no owners. An applied manifest replaces the whole `spec` and sets its labels and annotations; it removes no
//!   label and no annotation, and never conflicts with another manager.
//! - A removal takes effect at once: finalizers and owner references are dropped, with a `Warning` header.
//! - Namespaces need not be made first.
//!
//! Who may use it: see [`Access`].

mod accept;
mod access;
mod age;
mod body;
mod discovery;
mod document;
mod drifting;
mod failure;
mod fetching;
mod json_patch;
mod memory;
mod options;
mod patch;
mod print;
mod query;
mod table;
mod target;
mod wanted;
mod watch;
mod write;

pub use access::{Access, InvalidToken, Token, Unprotected};
pub use age::short_duration;
pub use drifting::{Drift, Drifts};
pub use fetching::{Download, DownloadStage, Downloads};
pub use memory::{Books, CopyUse, Memory, PoolUse};

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::extract::Query as Parameters;
use axum::response::Response;
use berth_registry::{Fault, Faults, Kind, Object, ObjectKey, Store, Views};
use berth_telemetry::Clock;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, VARY, WARNING, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::accept::Form;
use crate::document::Resource;
use crate::failure::Failure;
use crate::fetching::Picture;
use crate::options::{DeleteOptions, Options};
use crate::patch::Patch;
use crate::print::Printer;
use crate::query::{Continue, Query};
use crate::table::Include;
use crate::target::{Target, target};
use crate::watch::Scope;
use crate::write::{Done, Writer};

/// How long the body of a write may take, and how long a write waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the answer to a write waits until requests are routed by it.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Writes under way at a time: each may hold a body of 3 MiB.
const WRITES_AT_ONCE: usize = 64;

/// What the API works on.
#[derive(Clone)]
pub struct Deps {
    /// Resources and their statuses.
    pub store: Arc<dyn Store>,
    /// The view that requests are routed by.
    pub views: Views,
    /// Time, for how long a watch lasts.
    pub clock: Clock,
    /// The faults of the watched folder, where there is one.
    pub faults: Option<Faults>,
    /// What is being fetched, where anything is fetched.
    pub downloads: Option<Arc<dyn Downloads>>,
    /// Which pods serve other bytes, where somebody knows.
    pub drifts: Option<Arc<dyn Drifts>>,
    /// Who has which memory, where somebody knows.
    pub memory: Option<Arc<dyn Books>>,
    /// The controller, as people know it, that has the resources: `store` is empty, and nobody may read or write it.
    pub led_by: Option<Arc<str>>,
    /// Who may use it.
    pub access: Access,
    /// How much of it may be used at a time.
    pub limits: Limits,
}

/// How much of the API may be used at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Watches that are open; each holds its connection, or a stream of one.
    pub watches: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { watches: 1024 }
    }
}

/// The API, as something that answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<App>);

struct App {
    deps: Deps,
    /// A permit per write under way.
    writes: Semaphore,
    /// A permit per open watch.
    watches: Arc<Semaphore>,
    /// Numbers the writes.
    numbers: AtomicU64,
    shutdown: CancellationToken,
}

impl Api {
    /// The API for a server that listens on `addr`. Watches end with `shutdown`, other requests under way are finished.
    ///
    /// # Errors
    /// It can be reached from elsewhere there and [`Access`] asks for no token.
    pub fn new(deps: Deps, addr: SocketAddr, shutdown: CancellationToken) -> Result<Self, Unprotected> {
        deps.access.check_socket(addr)?;
        let (writes, watches) = (Semaphore::new(WRITES_AT_ONCE), Arc::new(Semaphore::new(deps.limits.watches)));
        Ok(Api(Arc::new(App { deps, writes, watches, numbers: AtomicU64::new(0), shutdown })))
    }

    /// The answer to a request; refusals are answers too.
    pub async fn answer<B>(&self, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut response = self.0.answer(request.map(Body::new)).await.unwrap_or_else(|failure| refusal(&failure));
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        // The same path has several forms.
        headers.insert(VARY, HeaderValue::from_static("accept"));
        response
    }
}

fn answer(code: StatusCode, form: Form, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    response
}

fn json_answer(code: StatusCode, document: &Value) -> Response {
    answer(code, Form::Json, Body::from(document::text(document)))
}

fn refusal(failure: &Failure) -> Response {
    let mut response = json_answer(failure.code, &failure.document());
    if let Some((name, value)) = failure.header {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if failure.code == StatusCode::UNAUTHORIZED {
        // Who does not know the token keeps no connection.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The answer to a write, with what of it was not kept as warnings.
fn written(done: &Done) -> Response {
    let code = if done.made { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = answer(code, Form::Json, Body::from(document::text(&Resource::of(&done.object))));
    for remark in &done.remarks {
        // 299: a warning of no other kind, which stays. Escaped, it is printable ASCII.
        if let Ok(warning) = HeaderValue::from_str(&format!("299 - \"{}\"", remark.escape_default())) {
            response.headers_mut().append(WARNING, warning);
        }
    }
    response
}

fn list_answer(printer: Printer, kind: Kind, metadata: &Value, objects: Vec<Arc<Object>>) -> Response {
    let form = printer.form;
    let pieces = printer.list(kind, metadata, objects).map(Ok::<Bytes, Infallible>);
    answer(StatusCode::OK, form, Body::from_stream(futures::stream::iter(pieces)))
}

fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, Failure> {
    let parameters = Parameters::<Vec<(String, String)>>::try_from_uri(uri);
    parameters.map(|Parameters(parameters)| parameters).map_err(|fault| Failure::bad_request(format!("cannot read the query: {fault}")))
}

/// The objects of a scope, and where in all of them they stand.
struct Page {
    metadata: Value,
    objects: Vec<Arc<Object>>,
}

impl App {
    async fn answer(&self, request: Request<Body>) -> Result<Response, Failure> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        self.deps.access.check(request.uri(), request.headers(), !reads)?;
        let target = target(request.uri().path()).ok_or_else(Failure::no_such_path)?;
        if let Some(controller) = self.deps.led_by.as_deref().filter(|_| target.is_of_resources()) {
            return Err(Failure::led_elsewhere(controller));
        }
        let allowed = target.methods();
        if !allowed.split(", ").any(|method| method == request.method().as_str()) {
            return Err(Failure::method_not_allowed(allowed, why_not(request.method(), &target, allowed)));
        }
        let memory = if matches!(target, Target::Memory) { memory::document(self.deps.memory.as_deref()).await } else { Value::Null };
        if reads { self.read(request.uri(), request.headers(), target, memory) } else { self.write(request, target).await }
    }

    /// `memory`: the document of that target, which takes a while to come.
    fn read(&self, uri: &Uri, headers: &HeaderMap, target: Target, memory: Value) -> Result<Response, Failure> {
        let document = match target {
            Target::Health => {
                let mut response = Response::new(Body::from("ok"));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                return Ok(response);
            }
            Target::Version => discovery::version(),
            Target::Core => discovery::core(),
            Target::CoreResources => discovery::core_resources(),
            Target::Groups => discovery::groups(),
            Target::Group => discovery::group(),
            Target::Resources(version) => discovery::resources(version),
            Target::OpenApi => discovery::open_api(),
            Target::OpenApiOf(version) => discovery::open_api_of(version),
            Target::Faults => self.faults(),
            Target::View => self.view(),
            Target::Memory => memory,
            Target::Downloads => {
                let query = Query::read(&parameters(uri)?).map_err(Failure::bad_request)?;
                if query.watch {
                    return self.watch_downloads(headers, &query);
                }
                fetching::document(self.deps.downloads.as_deref())
            }
            Target::Drifts => drifting::document(self.deps.drifts.as_deref()),
            Target::One(key) | Target::Status(key) => {
                let printer = self.printer(headers, Form::READS, &parameters(uri)?)?;
                return self.one(&printer, &key);
            }
            Target::Collection { kind, namespace } => {
                let parameters = parameters(uri)?;
                let query = Query::read(&parameters).map_err(Failure::bad_request)?;
                let printer = self.printer(headers, if query.watch { Form::WATCHES } else { Form::READS }, &parameters)?;
                let scope = Scope { kind, namespace, query };
                return if scope.query.watch { self.watch(printer, scope) } else { self.list(printer, &scope) };
            }
        };
        // Clients that look around ask for forms of their own; what they find is JSON unless they want YAML.
        match Form::wanted(headers, Form::DOCUMENTS).unwrap_or_default() {
            Form::Yaml => Ok(answer(StatusCode::OK, Form::Yaml, Body::from(print::yaml(&document)))),
            Form::Json | Form::Table => Ok(json_answer(StatusCode::OK, &document)),
        }
    }

    fn printer(&self, headers: &HeaderMap, possible: &[Form], parameters: &[(String, String)]) -> Result<Printer, Failure> {
        let form = Form::wanted(headers, possible)?;
        let include = Include::read(parameters).map_err(Failure::bad_request)?;
        let downloads = self.deps.downloads.as_deref().filter(|_| form == Form::Table);
        Ok(Printer { form, include, clock: self.deps.clock.clone(), fetching: downloads.map(Picture::of).unwrap_or_default() })
    }

    async fn write(&self, request: Request<Body>, target: Target) -> Result<Response, Failure> {
        let Deps { store, clock, .. } = &self.deps;
        let deadline = clock.deadline_in(PATIENCE);
        let turn = clock.until(deadline, self.writes.acquire()).await;
        let Some(Ok(_turn)) = turn else { return Err(Failure::too_many_writes()) };
        let (head, body) = request.into_parts();
        let body = body::read(&head.headers, body, clock, deadline).await?;
        let parameters = parameters(&head.uri)?;
        let options = Options::read(&parameters).map_err(Failure::bad_request)?;
        let writer = Writer {
            store: &**store,
            now: clock.wall(),
            dry_run: options.dry_run,
            unknown: options.unknown,
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        let done = match (target, &head.method) {
            (Target::Collection { kind, namespace }, &Method::POST) => writer.create(kind, namespace, body::document(&head.headers, &body)?).await?,
            (Target::Collection { kind, namespace }, _) => {
                let query = Query::read(&parameters).map_err(Failure::bad_request)?;
                let Page { metadata, objects } = self.page(&Scope { kind, namespace, query })?;
                let removed = writer.delete_all(objects, &delete_options(&head.headers, &body)?).await?;
                self.covered(removed.iter().map(|object| object.resource_version).max()).await;
                let printer = Printer { form: Form::Json, include: Include::default(), clock: clock.clone(), fetching: Picture::default() };
                return Ok(list_answer(printer, kind, &metadata, removed));
            }
            (Target::One(key), &Method::PUT) => writer.replace(&key, body::document(&head.headers, &body)?).await?,
            (Target::One(key), &Method::PATCH) => match Patch::read(&head.headers, &body)? {
                Patch::Changes(changes) => writer.patch(&key, &changes).await?,
                Patch::Apply(document) => writer.apply(&key, document).await?,
            },
            (Target::One(key), _) => {
                let removed = writer.delete(&key, &delete_options(&head.headers, &body)?).await?;
                self.covered(Some(removed.resource_version)).await;
                return Ok(json_answer(StatusCode::OK, &failure::deleted(&key, removed.uid)));
            }
            (_, _) => return Err(Failure::no_such_path()),
        };
        self.covered(Some(done.object.resource_version)).await;
        Ok(written(&done))
    }

    /// Waits until requests are routed by what was written, so that a client can use a name as soon as it has made it. Not
    /// for long: the write itself is done.
    async fn covered(&self, version: Option<u64>) {
        let Deps { views, clock, .. } = &self.deps;
        if let Some(version) = version
            && clock.until(clock.deadline_in(CATCH_UP), views.covered(version)).await.is_none()
        {
            tracing::warn!(version, "written, but requests are not routed by it yet");
        }
    }

    fn one(&self, printer: &Printer, key: &ObjectKey) -> Result<Response, Failure> {
        let object = self.deps.store.get(key).ok_or_else(|| Failure::not_found(key))?;
        Ok(answer(StatusCode::OK, printer.form, Body::from(printer.one(&object))))
    }

    fn list(&self, printer: Printer, scope: &Scope) -> Result<Response, Failure> {
        let Page { metadata, objects } = self.page(scope)?;
        Ok(list_answer(printer, scope.kind, &metadata, objects))
    }

    fn page(&self, scope: &Scope) -> Result<Page, Failure> {
        let snapshot = self.deps.store.snapshot();
        let mut version = snapshot.version;
        let mut objects: Vec<Arc<Object>> = snapshot.objects.into_iter().filter(|object| scope.covers(object)).collect();
        if let Some(Continue { version: first, last }) = &scope.query.after {
            // Every page carries the version of the first one, so that a watch from there misses nothing that changed
            // between the pages.
            self.deps.store.events_after(*first).map_err(|expired| Failure::expired(expired.to_string()))?;
            version = *first;
            objects.retain(|object| place(object) > (last.0.as_str(), last.1.as_str()));
        }
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if let Some(limit) = scope.query.limit.map(usize::from)
            && objects.len() > limit
        {
            let rest = objects.len() - limit;
            objects.truncate(limit);
            if let Some((namespace, name)) = objects.last().map(|object| place(object)) {
                metadata["continue"] = Continue { version, last: (namespace.to_owned(), name.to_owned()) }.write().into();
                metadata["remainingItemCount"] = rest.into();
            }
        }
        Ok(Page { metadata, objects })
    }

    fn watch(&self, printer: Printer, scope: Scope) -> Result<Response, Failure> {
        let (place, form) = (self.place_for_a_watch()?, printer.form);
        let lines = watch::watch(Arc::clone(&self.deps.store), self.deps.downloads.clone(), scope, printer, place, self.shutdown.clone())?;
        Ok(answer(StatusCode::OK, form, Body::from_stream(lines)))
    }

    fn place_for_a_watch(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let place = Arc::clone(&self.watches).try_acquire_owned();
        place.map_err(|_full| Failure::too_many_watches(self.deps.limits.watches))
    }

    fn watch_downloads(&self, headers: &HeaderMap, query: &Query) -> Result<Response, Failure> {
        let form = Form::wanted(headers, &[Form::Json])?;
        let (place, clock) = (self.place_for_a_watch()?, self.deps.clock.clone());
        let until = clock.deadline_in(watch::lasts(query));
        let lines = fetching::watch(self.deps.downloads.clone(), clock, until, self.shutdown.clone(), place);
        Ok(answer(StatusCode::OK, form, Body::from_stream(lines)))
    }

    fn faults(&self) -> Value {
        let faults = self.deps.faults.as_ref().map(Faults::list).unwrap_or_default();
        let items: Vec<Value> = faults.iter().map(fault).collect();
        json!({ "items": items })
    }

    fn view(&self) -> Value {
        let view = self.deps.views.current();
        let (epoch, sequence) = view.number();
        json!({ "epoch": epoch, "sequence": sequence, "ready": view.is_ready(), "names": view.name_count(), "models": view.model_count() })
    }
}

/// Why a method is not possible, and what is.
fn why_not(method: &Method, target: &Target, allowed: &str) -> String {
    match target {
        Target::Status(key) => format!("the status of {key} is written by this server alone: change the spec of the resource"),
        Target::Collection { kind, .. } if allowed == "GET, HEAD" => {
            format!("{method} of {plural} needs a namespace: use .../namespaces/NAMESPACE/{plural}", plural = kind.plural())
        }
        Target::Collection { .. }
        | Target::One(_)
        | Target::Health
        | Target::Version
        | Target::Core
        | Target::CoreResources
        | Target::Groups
        | Target::Group
        | Target::Resources(_)
        | Target::OpenApi
        | Target::OpenApiOf(_)
        | Target::Faults
        | Target::View
        | Target::Memory
        | Target::Downloads
        | Target::Drifts => format!("{method} is not possible here: use one of {allowed}"),
    }
}

fn delete_options(headers: &HeaderMap, body: &[u8]) -> Result<DeleteOptions, Failure> {
    if body.is_empty() { Ok(DeleteOptions::default()) } else { DeleteOptions::read(&body::document(headers, body)?) }
}

/// Where an object stands in a list of its kind.
fn place(object: &Object) -> (&str, &str) {
    (object.key.namespace.as_ref().map_or("", |namespace| namespace.as_str()), object.key.name.as_str())
}

fn fault(fault: &Fault) -> Value {
    json!({
        "file": fault.file.display().to_string(),
        "line": fault.line,
        "column": fault.column,
        "kind": fault.kind,
        "message": fault.message,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use berth_registry::{Desired, MemoryStore, Origin};
    use berth_types::{ByteSize, ModelId, Name, Namespace};
    use http_body_util::BodyExt;
    use tokio::task::yield_now;

    use super::*;

    const RUNTIMES: &str = "http://localhost/apis/serving.kserve.io/v1alpha1/clusterservingruntimes";

    fn app(limits: Limits) -> App {
        let clock = Clock::system();
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let deps = Deps {
            store,
            views: Views::in_epoch(1),
            clock,
            faults: None,
            downloads: None,
            drifts: None,
            memory: None,
            led_by: None,
            access: Access::Loopback,
            limits,
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let Api(app) = Api::new(deps, addr, CancellationToken::new()).expect("a loopback address");
        Arc::into_inner(app).expect("the only one")
    }

    async fn ask(api: &Api, method: Method, query: &str) -> Response {
        let request = Request::builder().method(method).uri(format!("{RUNTIMES}{query}")).body(Body::empty());
        api.answer(request.expect("a request")).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_gets_no_turn_in_time_is_told_to_come_again() {
        let api = Api(Arc::new(App { writes: Semaphore::new(0), ..app(Limits::default()) }));
        let refused = ask(&api, Method::POST, "").await;
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &HeaderValue::from_static("1")));
        assert_eq!(ask(&api, Method::GET, "").await.status(), 200, "reads need no turn");
    }

    #[tokio::test]
    async fn an_agent_whose_controller_has_the_resources_says_so_and_tells_of_itself() {
        let mut app = app(Limits::default());
        app.deps.led_by = Some("leader:8034".into());
        let api = Api(Arc::new(app));
        for (method, path, code) in [
            (Method::GET, RUNTIMES, 421),
            (Method::POST, RUNTIMES, 421),
            (Method::GET, "http://localhost/berth/v1/drifts", 421),
            (Method::GET, "http://localhost/berth/v1/downloads", 200),
            (Method::GET, "http://localhost/berth/v1/memory", 200),
            (Method::GET, "http://localhost/healthz", 200),
        ] {
            let request = Request::builder().method(method).uri(path).body(Body::empty());
            let answer = api.answer(request.expect("a request")).await;
            assert_eq!(answer.status().as_u16(), code, "{path}");
            if code == 421 {
                let body = answer.into_body().collect().await.expect("it is short").to_bytes();
                assert!(String::from_utf8_lossy(&body).contains("leader:8034"), "{body:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_watch_too_many_is_told_to_come_again_and_one_that_ends_makes_room() {
        let api = Api(Arc::new(app(Limits { watches: 2 })));
        let (first, second) = (ask(&api, Method::GET, "?watch=1").await, ask(&api, Method::GET, "?watch=1").await);
        assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
        let refused = ask(&api, Method::GET, "?watch=1").await;
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &HeaderValue::from_static("5")));
        let status: Value = serde_json::from_slice(&refused.into_body().collect().await.expect("a body").to_bytes()).expect("JSON");
        assert_eq!((&status["reason"], &status["details"]["retryAfterSeconds"]), (&json!("TooManyRequests"), &json!(5)));
        assert_eq!(ask(&api, Method::GET, "").await.status(), 200, "a list needs no place");
        drop(first);
        assert_eq!(ask(&api, Method::GET, "?watch=1").await.status(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_watch_stays_open_and_tells_bookmarks_to_those_who_take_them() {
        let api = Api(Arc::new(app(Limits::default())));
        let clock = api.0.deps.clock.clone();
        let start = clock.now();
        let mut quiet = ask(&api, Method::GET, "?watch=1&timeoutSeconds=7200").await.into_body();
        let mut marked = ask(&api, Method::GET, "?watch=1&timeoutSeconds=7200&allowWatchBookmarks=true").await.into_body();
        let line = marked.frame().await.expect("a line").expect("no fault").into_data().expect("data");
        let line: Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!((clock.now() - start).as_secs(), 60);
        let expected = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterServingRuntime", "metadata": { "resourceVersion": "0" } });
        assert_eq!(line, json!({ "type": "BOOKMARK", "object": expected }));
        // Nothing to tell for an hour, then something.
        let store = Arc::clone(&api.0.deps.store);
        let later = clock.clone();
        let change = tokio::spawn(async move {
            later.sleep(Duration::from_secs(3600)).await;
            let [object, ..] = &berth_registry::bundled()[..] else { panic!("something is bundled") };
            store.apply(object.clone(), None).await.expect("kept");
            yield_now().await;
        });
        let line = quiet.frame().await.expect("a line").expect("no fault").into_data().expect("data");
        assert!(line.starts_with(br#"{"type":"ADDED""#), "{line:?}");
        change.await.expect("no panic");
        assert_eq!((clock.now() - start).as_secs(), 3660);
        assert!(quiet.frame().await.is_none(), "its time is over");
        assert_eq!((clock.now() - start).as_secs(), 7200);
    }

    #[tokio::test(start_paused = true)]
    async fn every_watch_ends_with_the_server() {
        let app = app(Limits::default());
        let shutdown = app.shutdown.clone();
        let api = Api(Arc::new(app));
        let mut body = ask(&api, Method::GET, "?watch=1").await.into_body();
        let mut downloads = get(&api, "/berth/v1/downloads?watch=1", "*/*").await;
        assert!(downloads.next().await.is_some(), "what there is now");
        shutdown.cancel();
        assert!(body.frame().await.is_none() && downloads.next().await.is_none());
    }

    /// Downloads as a test wants them.
    struct Scripted {
        now: Mutex<Vec<Download>>,
        changed: tokio::sync::watch::Sender<u64>,
    }

    impl Downloads for Scripted {
        fn under_way(&self) -> Vec<Download> {
            self.now.lock().expect("no panic").clone()
        }

        fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
            self.changed.subscribe()
        }
    }

    impl Scripted {
        fn new() -> Arc<Self> {
            Arc::new(Scripted { now: Mutex::default(), changed: tokio::sync::watch::Sender::new(0) })
        }

        /// From now on this percent of these models are there.
        fn set(&self, models: &[(&str, u64)]) {
            let download = |(model, percent): &(&str, u64)| Download {
                model: ModelId::new(model).expect("an id"),
                stage: DownloadStage::Fetching,
                bytes: ByteSize(*percent),
                total: ByteSize(100),
                resumed: ByteSize(1),
                rate: Some(ByteSize(10)),
                eta: Some(Duration::from_secs(7)),
            };
            *self.now.lock().expect("no panic") = models.iter().map(download).collect();
            self.changed.send_modify(|number| *number += 1);
        }
    }

    /// The lines of an answer, one at a time.
    struct Lines(Body, Vec<u8>);

    impl Lines {
        async fn next(&mut self) -> Option<Value> {
            loop {
                if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.1.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).expect("JSON"));
                }
                self.1.extend_from_slice(&self.0.frame().await?.expect("no fault").into_data().expect("data"));
            }
        }

        /// The next line of a watch of tables: type, name, version and progress.
        async fn row(&mut self) -> String {
            let line = self.next().await.expect("a line");
            let (row, version) = (&line["object"]["rows"][0], &line["object"]["metadata"]["resourceVersion"]);
            let cells = row["cells"].as_array().expect("cells");
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            format!("{} {} {} {}", text(&line["type"]), text(&cells[0]), text(version), cells.last().expect("a cell"))
        }
    }

    async fn get(api: &Api, path: &str, accept: &str) -> Lines {
        let request = Request::builder().uri(format!("http://localhost{path}")).header("accept", accept).body(Body::empty());
        let response = api.answer(request.expect("a request")).await;
        assert_eq!(response.status(), 200, "{path}");
        Lines(response.into_body(), Vec::new())
    }

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
    const PREDICTORS: &str = "/apis/serving.kserve.io/v1alpha1/predictors";
    const OF_TEAM: &str = "/apis/serving.kserve.io/v1alpha1/namespaces/team/predictors";

    async fn predictor(store: &dyn Store, namespace: &str, name: &str) -> Arc<Object> {
        let (namespace, name) = (Namespace::new(namespace).ok(), Name::new(name).expect("a name"));
        let wanted = Desired::new(ObjectKey { kind: Kind::Predictor, namespace, name }, Origin::Api, &json!({}));
        store.apply(wanted.into(), None).await.expect("kept")
    }

    /// An API over two predictors, `a` in `team` and `b` in `default`, with downloads of a test.
    async fn fetching() -> (Api, Arc<Scripted>, Arc<dyn Store>, Clock) {
        let (mut app, downloads) = (app(Limits::default()), Scripted::new());
        app.deps.downloads = Some(Arc::clone(&downloads) as Arc<dyn Downloads>);
        let (store, clock) = (Arc::clone(&app.deps.store), app.deps.clock.clone());
        predictor(&*store, "team", "a").await;
        predictor(&*store, "default", "b").await;
        (Api(Arc::new(app)), downloads, store, clock)
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_of_tables_tells_how_far_a_download_is_at_most_once_a_second_and_never_what_is_past() {
        let (api, downloads, store, clock) = fetching().await;
        let a = "ADDED a 1 \"3% (3 of 100 B, 10 B/s, 7s left)\"";
        for (path, first) in [(PREDICTORS, &["ADDED b 2 \"\"", a][..]), (OF_TEAM, &[a])] {
            downloads.set(&[("a__ksp-1", 3)]);
            let mut watch = get(&api, &format!("{path}?watch=1"), TABLE).await;
            for row in first {
                assert_eq!(watch.row().await, *row);
            }
            let start = clock.now();
            let teller = Arc::clone(&downloads);
            let moves = async {
                for percent in 4..=40 {
                    teller.set(&[("a__ksp-1", percent), ("unknown__ksp-1", percent), ("b__isvc-1", percent)]);
                    clock.sleep(Duration::from_millis(100)).await;
                }
                teller.set(&[]);
            };
            let mut rows = Vec::new();
            let read = async {
                while rows.last().is_none_or(|row: &String| row != "MODIFIED a 1 \"\"") {
                    rows.push(watch.row().await);
                }
            };
            tokio::join!(moves, read);
            let percents: Vec<&str> =
                rows.iter().map(|row| row.split('"').nth(1).unwrap_or_default().split('%').next().unwrap_or_default()).collect();
            assert!((3..=6).contains(&rows.len()), "{rows:?} in {:?}", clock.now() - start);
            assert!(percents.windows(2).all(|pair| pair[1].is_empty() || pair[0].parse::<u64>().ok() < pair[1].parse().ok()), "{rows:?}");
            assert!(rows.iter().all(|row| row.starts_with("MODIFIED a 1 ")), "{rows:?}");
        }
        // A reader that slept is told the present, once; what changed meanwhile is told by its event with the same cell.
        let mut slow = get(&api, &format!("{PREDICTORS}?watch=1&resourceVersion=2"), TABLE).await;
        for percent in 1..=90 {
            downloads.set(&[("b__ksp-1", percent)]);
            clock.sleep(Duration::from_secs(1)).await;
        }
        let made = store.get(&predictor(&*store, "default", "b").await.key).expect("there");
        store.set_status(&made.key, made.uid, json!({ "activeModelState": "Loading" })).await.expect("kept");
        assert_eq!(slow.row().await, "MODIFIED b 3 \"\"", "the event, before the first look");
        assert_eq!(slow.row().await, "MODIFIED b 3 \"90% (90 of 100 B, 10 B/s, 7s left)\"");
        let mut plain = get(&api, &format!("{PREDICTORS}?watch=1&resourceVersion=3&timeoutSeconds=30"), "application/json").await;
        downloads.set(&[("b__ksp-1", 91)]);
        assert!(plain.next().await.is_none(), "resources have no state for each percent");
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_are_a_document_that_can_be_watched() {
        let (api, downloads, _store, clock) = fetching().await;
        let mut watch = get(&api, "/berth/v1/downloads?watch=1&timeoutSeconds=100", "*/*").await;
        assert_eq!(watch.next().await, Some(json!({ "items": [] })));
        let begin = clock.now();
        for percent in 0..50 {
            downloads.set(&[("a__ksp-1", percent)]);
        }
        let a = json!({
            "model": "a__ksp-1", "kind": "Predictor", "name": "a", "stage": "Fetching", "bytes": 49, "totalBytes": 100, "resumedBytes": 1,
            "bytesPerSecond": 10, "secondsLeft": 7, "summary": "49% (49 of 100 B, 10 B/s, 7s left)",
        });
        assert_eq!(watch.next().await, Some(json!({ "items": [a] })));
        assert_eq!((clock.now() - begin).as_secs(), 1);
        assert_eq!(watch.next().await, Some(json!({ "items": [a] })), "told again after a minute of silence");
        assert_eq!((clock.now() - begin).as_secs(), 61);
        downloads.set(&[]);
        assert_eq!(watch.next().await, Some(json!({ "items": [] })));
        assert!(watch.next().await.is_none(), "its time is over");
        let request = Request::builder().uri("http://localhost/berth/v1/downloads").body(Body::empty()).expect("a request");
        let body = api.answer(request).await.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), json!({ "items": [] }));
    }
}
