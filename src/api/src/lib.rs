//! The resource API: what is desired and what became of it, under the paths and in the JSON of Kubernetes, so that scripts
//! move to a cluster unchanged.
//!
//! ```text
//! serve(listener, Deps { store, views, clock, faults }, shutdown).await
//! ```
//!
//! | path | what |
//! |---|---|
//! | `/apis/serving.kserve.io/v1beta1[/namespaces/NS]/inferenceservices` | a list; `/NAME` after a namespace: one |
//! | `/apis/serving.kserve.io/v1alpha1[/namespaces/NS]/{predictors,servingruntimes}` | the same |
//! | `/apis/serving.kserve.io/v1alpha1/clusterservingruntimes[/NAME]` | the same, cluster-wide |
//! | `/api`, `/apis`, `/apis/serving.kserve.io[/VERSION]`, `/version`, `/healthz` | what clients ask first |
//! | `/berth/v1/faults` | what is wrong with the files of the watched folder |
//! | `/berth/v1/view` | number and size of the view that requests are routed by |
//!
//! Lists take `labelSelector`, `fieldSelector` (name, namespace), `limit` and `continue`; with `watch=true` they become one
//! line of JSON per change from `resourceVersion` on, no intermediate state left out, `410 Gone` when that is too long ago.
//! Errors are `Status` objects. Writes are refused with 405 for now: resources come from the watched folder.
//!
//! On a loopback address only requests for a name of this machine are answered (see [`host`]).

mod discovery;
mod document;
mod host;
mod query;
mod target;
mod watch;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query as Parameters, Request, State};
use axum::response::Response;
use axum::serve::ListenerExt;
use berth_registry::{Fault, Faults, Object, ObjectKey, Origin, Store, Views};
use berth_telemetry::{Clock, Listener};
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::document::{Failure, Resource};
use crate::query::{Continue, Query};
use crate::target::{Target, target};
use crate::watch::Scope;

/// What the API reads from.
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
}

/// Serves the API on `listener` until `shutdown`; watches end then, other requests under way are finished.
///
/// # Errors
/// What the system says about the socket.
pub async fn serve(listener: Listener, deps: Deps, shutdown: CancellationToken) -> io::Result<()> {
    let only_local = listener.local_addr()?.ip().is_loopback();
    let app = Arc::new(App { deps, only_local, shutdown: shutdown.clone() });
    let router = Router::new().fallback(handle).with_state(app);
    let listener = listener.into_tokio().tap_io(|connection| {
        // A connection that is already gone says so when it is read.
        let _ = connection.set_nodelay(true);
    });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

struct App {
    deps: Deps,
    /// Only names of this machine are accepted as Host.
    only_local: bool,
    shutdown: CancellationToken,
}

async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut response = app.answer(&request).unwrap_or_else(|failure| refusal(&failure));
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn answer(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn json_answer(code: StatusCode, document: &Value) -> Response {
    answer(code, Body::from(document::text(document)))
}

fn refusal(failure: &Failure) -> Response {
    let mut response = json_answer(failure.code, &failure.document());
    if failure.code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

impl App {
    fn answer(&self, request: &Request) -> Result<Response, Failure> {
        self.check_host(request)?;
        let target = target(request.uri().path()).ok_or_else(Failure::no_such_path)?;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Failure::read_only(self.why_read_only(&target)));
        }
        let document = match target {
            Target::Health => return Ok(answer(StatusCode::OK, Body::from("ok"))),
            Target::Version => discovery::version(),
            Target::Core => discovery::core(),
            Target::CoreResources => discovery::core_resources(),
            Target::Groups => discovery::groups(),
            Target::Group => discovery::group(),
            Target::Resources(version) => discovery::resources(version),
            Target::Faults => self.faults(),
            Target::View => self.view(),
            Target::One(key) => return self.one(&key),
            Target::Collection { kind, namespace } => {
                let parameters = Parameters::<Vec<(String, String)>>::try_from_uri(request.uri())
                    .map_err(|fault| Failure::bad_request(format!("cannot read the query: {fault}")))?;
                let query = Query::read(&parameters.0).map_err(Failure::bad_request)?;
                let scope = Scope { kind, namespace, query };
                return if scope.query.watch { self.watch(scope) } else { self.list(&scope) };
            }
        };
        Ok(json_answer(StatusCode::OK, &document))
    }

    fn check_host(&self, request: &Request) -> Result<(), Failure> {
        if !self.only_local {
            return Ok(());
        }
        // HTTP/2 has the authority of the target instead of the header.
        let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = request.uri().authority().map(http::uri::Authority::as_str).or(header).unwrap_or_default();
        if host::is_local(host) {
            return Ok(());
        }
        let host: String = host.chars().take(80).collect();
        Err(Failure::forbidden(format!("this server listens on a loopback address and answers for localhost only, not for {host:?}")))
    }

    fn why_read_only(&self, target: &Target) -> String {
        let file = match target {
            Target::One(key) => self.deps.store.get(key).and_then(|object| match &object.origin {
                Origin::Folder(file) => Some(format!("{key} comes from {}: change it there", file.display())),
                Origin::Api | Origin::Bundled => None,
            }),
            Target::Collection { .. }
            | Target::Health
            | Target::Version
            | Target::Core
            | Target::CoreResources
            | Target::Groups
            | Target::Group
            | Target::Resources(_)
            | Target::Faults
            | Target::View => None,
        };
        file.unwrap_or_else(|| "resources come from the folder of manifests: write files there, this API only reads".to_owned())
    }

    fn one(&self, key: &ObjectKey) -> Result<Response, Failure> {
        let object = self.deps.store.get(key).ok_or_else(|| Failure::not_found(key))?;
        Ok(answer(StatusCode::OK, Body::from(document::text(&Resource::of(&object)))))
    }

    fn list(&self, scope: &Scope) -> Result<Response, Failure> {
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
        let pieces = document::list(scope.kind, &metadata, objects).map(Ok::<Bytes, Infallible>);
        Ok(answer(StatusCode::OK, Body::from_stream(futures::stream::iter(pieces))))
    }

    fn watch(&self, scope: Scope) -> Result<Response, Failure> {
        let Deps { store, clock, .. } = &self.deps;
        let lines = watch::watch(Arc::clone(store), scope, clock.clone(), self.shutdown.clone())?;
        Ok(answer(StatusCode::OK, Body::from_stream(lines)))
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
