//! The small servers beside the inference ports: metrics, probes, and the hook before the end.

use std::sync::Arc;

use berth_telemetry::{Clock, Host, Listener, Metrics};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use tokio_util::sync::CancellationToken;

use crate::ProxyConfig;
use crate::body::{Answer, Outgoing};
use crate::connections::{self, Handler};
use crate::health::Ready;

/// Serves `GET /metrics` in Prometheus' text format. `refresh` is called before each page, to set gauges that nobody
/// keeps up to date.
pub async fn serve_metrics(
    listener: Listener,
    metrics: Metrics,
    refresh: impl Fn() + Send + Sync + 'static,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let page: Pages = Arc::new(move |path| {
        (path == "/metrics").then(|| {
            refresh();
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.render())
        })
    });
    connections::serve(listener, Small(page), &ProxyConfig::default(), &clock, shutdown).await;
}

/// Serves `GET /live` (200 while this process answers at all) and `GET /ready` (503 with the reason while `ready` has
/// one), and `GET /runtime` in the same way for whether the inference server may go on as it is.
pub async fn serve_probes(listener: Listener, ready: Ready, runtime: Ready, clock: Clock, shutdown: CancellationToken) {
    let stopping = shutdown.clone();
    let page: Pages = Arc::new(move |path| {
        let plain = "text/plain; charset=utf-8";
        match path {
            "/live" => Some((StatusCode::OK, plain, "ok\n".to_owned())),
            "/ready" if stopping.is_cancelled() => Some((StatusCode::SERVICE_UNAVAILABLE, plain, "shutting down\n".to_owned())),
            "/ready" | "/runtime" => Some(match if path == "/ready" { ready() } else { runtime() } {
                Ok(()) => (StatusCode::OK, plain, "ok\n".to_owned()),
                Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, plain, format!("{reason}\n")),
            }),
            _ => None,
        }
    });
    connections::serve(listener, Small(page), &ProxyConfig::default(), &clock, shutdown).await;
}

/// What is done before the process ends, for whoever asks; completes when it is done. `Err` says what was not.
pub type PreStop = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Serves `GET /prestop`, as the containers beside a ModelMesh ask for it before they end: answered when `hook` is done. Pages that
/// a browser shows are refused: they could ask as well.
pub async fn serve_prestop(listener: Listener, hook: PreStop, clock: Clock, shutdown: CancellationToken) {
    connections::serve(listener, Hook(hook), &ProxyConfig::default(), &clock, shutdown).await;
}

#[derive(Clone)]
struct Hook(PreStop);

impl Handler for Hook {
    type Body = Outgoing;
    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let is_page = is_of_a_page(request.uri(), request.headers());
        let (status, text) = match (request.method() == Method::GET, request.uri().path()) {
            (_, path) if path != "/prestop" => (StatusCode::NOT_FOUND, "no such path\n".to_owned()),
            (false, _) => (StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here\n".to_owned()),
            (true, _) if is_page => (StatusCode::FORBIDDEN, "not for pages\n".to_owned()),
            (true, _) => match (self.0)().await {
                Ok(()) => (StatusCode::OK, "drained\n".to_owned()),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
        };
        let mut response = Response::new(Outgoing::text(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Ok(response)
    }
}

/// Whether a browser may have sent it for a page: it says so, or it was led here by a name, which a page can point anywhere,
/// or by what is no name. Whoever runs the containers asks an address.
fn is_of_a_page(uri: &Uri, headers: &HeaderMap) -> bool {
    let said = [header::ORIGIN.as_str(), header::REFERER.as_str(), "sec-fetch-site"].iter().any(|name| headers.contains_key(*name));
    // HTTP/2 has the authority of the target instead of the header.
    let header = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let host = uri.authority().map(http::uri::Authority::as_str).or(header);
    said || host.is_some_and(|host| !matches!(Host::of(host), Some(Host::Localhost | Host::Address(_))))
}

/// Status, content type and text of a path; `None` for paths that there are not.
type Pages = Arc<dyn Fn(&str) -> Option<(StatusCode, &'static str, String)> + Send + Sync>;

#[derive(Clone)]
struct Small(Pages);

impl Small {
    fn page<B>(&self, request: &Request<B>) -> Response<Outgoing> {
        let (mut status, mut kind, mut text) = (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "no such path\n".to_owned());
        if request.method() != Method::GET && request.method() != Method::HEAD {
            (status, text) = (StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here\n".to_owned());
        } else if let Some(page) = (self.0)(request.uri().path()) {
            (status, kind, text) = page;
        }
        let mut response = Response::new(Outgoing::text(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl Handler for Small {
    type Body = Outgoing;
    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        Ok(self.page(&request))
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::{Gauge, HostNet, Net};
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(addr: std::net::SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{line} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_of_metrics_is_refreshed_before_it_is_shown() {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, shutdown, metrics) = (listener.local_addr().unwrap(), CancellationToken::new(), Metrics::default());
        let refresh = {
            let metrics = metrics.clone();
            move || metrics.set(Gauge::RegisteredModels, &[], 7)
        };
        let server = tokio::spawn(serve_metrics(listener, metrics, refresh, Clock::system(), shutdown.clone()));
        let page = get(addr, "GET /metrics").await;
        assert!(
            page.starts_with("HTTP/1.1 200") && page.contains("text/plain; version=0.0.4") && page.contains("berth_registered_models 7\n"),
            "{page}"
        );
        assert!(get(addr, "GET /").await.starts_with("HTTP/1.1 404"));
        let wrong = get(addr, "POST /metrics").await;
        assert!(wrong.starts_with("HTTP/1.1 405") && wrong.contains("allow: GET, HEAD"), "{wrong}");
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn the_hook_before_the_end_is_answered_when_it_is_done_and_not_for_pages() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, shutdown, asked) = (listener.local_addr().unwrap(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let (done, count) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::clone(&asked));
        let hook: PreStop = {
            let done = Arc::clone(&done);
            Arc::new(move || {
                let (done, nth) = (Arc::clone(&done), count.fetch_add(1, Ordering::Relaxed));
                Box::pin(async move {
                    let _ = done.acquire().await;
                    if nth == 0 { Ok(()) } else { Err("a request was still open".to_owned()) }
                })
            })
        };
        let server = tokio::spawn(serve_prestop(listener, hook, Clock::system(), shutdown.clone()));
        for (line, status) in [
            ("GET /ready", 404),
            ("POST /prestop", 405),
            ("HEAD /prestop", 405),
            ("GET /prestop HTTP/1.1\r\norigin: http://elsewhere\r\nx: y", 403),
            ("GET /prestop HTTP/1.1\r\nsec-fetch-site: none\r\nx: y", 403),
            ("GET /prestop HTTP/1.1\r\nreferer: http://elsewhere/\r\nx: y", 403),
        ] {
            let answer = get(addr, line).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        }
        // By a name, which may be led here from anywhere; by an address, as pods are asked.
        let of_host =
            |host: &'static str| is_of_a_page(&Uri::from_static("/prestop"), &[(header::HOST, HeaderValue::from_static(host))].into_iter().collect());
        let hosts = ["elsewhere:8090", "127.0.0.1.elsewhere", "[::1", "", "10.1.2.3:8090", "[2001:db8::1]:8090", "localhost:8090", "LOCALHOST"];
        assert_eq!(hosts.map(of_host), [true, true, true, true, false, false, false, false]);
        let of_target = |target: &'static str| is_of_a_page(&Uri::from_static(target), &HeaderMap::new());
        let targets = ["/prestop", "http://10.1.2.3:8090/prestop", "http://elsewhere:8090/prestop"];
        assert_eq!(targets.map(of_target), [false, false, true], "over HTTP/2");
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let first = tokio::spawn(get(addr, "GET /prestop"));
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished());
        done.add_permits(2);
        let answer = first.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("drained\n"), "{answer}");
        let answer = get(addr, "GET /prestop").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("a request was still open\n"), "{answer}");
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn the_probes_of_readiness_and_of_the_runtime_say_why_not() {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let state = Arc::new(Mutex::new(Err("resources are being read".to_owned())));
        let ready: Ready = Arc::new({
            let state = Arc::clone(&state);
            move || state.lock().clone()
        });
        let bloated: Ready = Arc::new(|| Err("it keeps 5 GiB".to_owned()));
        let server = tokio::spawn(serve_probes(listener, ready, bloated, Clock::system(), shutdown.clone()));
        assert!(get(addr, "GET /live").await.starts_with("HTTP/1.1 200"));
        let answer = get(addr, "GET /ready").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("resources are being read\n"), "{answer}");
        let answer = get(addr, "GET /runtime").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("it keeps 5 GiB\n"), "{answer}");
        *state.lock() = Ok(());
        assert!(get(addr, "HEAD /ready").await.starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        server.await.unwrap();
    }
}
