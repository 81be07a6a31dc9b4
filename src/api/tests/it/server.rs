//! A server of the API on a loopback socket, and a client of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_api::{Access, Api, Deps, Limits};
use berth_proxy::{ProxyConfig, serve_http};
use berth_registry::{Desired, Faults, Kind, MemoryStore, ObjectKey, Origin, Store, Views};
use berth_telemetry::{Clock, HostNet, Net};
use berth_types::{Name, Namespace};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) const ISVCS: &str = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices";
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Server {
    pub(super) store: Arc<dyn Store>,
    pub(super) addr: SocketAddr,
    pub(super) client: Client<HttpConnector, Full<Bytes>>,
    pub(super) clock: Clock,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Clock::system()));
        Self::with(store, None, Access::Loopback).await
    }

    pub(super) async fn with(store: Arc<dyn Store>, faults: Option<Faults>, access: Access) -> Self {
        Self::within(&ProxyConfig::default(), Limits::default(), store, faults, access).await
    }

    pub(super) async fn within(config: &ProxyConfig, limits: Limits, store: Arc<dyn Store>, faults: Option<Faults>, access: Access) -> Self {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, clock) = (CancellationToken::new(), Clock::system());
        let deps = Deps {
            store: Arc::clone(&store),
            views: Views::in_epoch(4),
            clock: clock.clone(),
            faults,
            downloads: None,
            drifts: None,
            memory: None,
            led_by: None,
            access,
            limits,
        };
        let api = Api::new(deps, addr, shutdown.clone()).unwrap();
        let answer = move |request| {
            let api = api.clone();
            async move { Ok(api.answer(request).await) }
        };
        let (config, time, stop) = (config.clone(), clock.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { serve_http(listener, answer, &config, &time, stop).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Server { store, addr, client, clock, shutdown, serving }
    }

    /// Sends a request with these headers and this body.
    pub(super) async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.client.request(request.body(Full::new(body.into())).unwrap());
        self.clock.until(self.clock.deadline_in(PATIENCE), answer).await.expect("no answer in time").unwrap()
    }

    pub(super) async fn send(&self, method: Method, path: &str, host: Option<&str>) -> Response<Incoming> {
        let headers: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        self.ask(method, path, &headers, "").await
    }

    /// Sends a document as this media type; gives back the code and the document of the answer.
    pub(super) async fn write(&self, method: Method, path: &str, media_type: &str, body: impl ToString) -> (u16, Value) {
        whole(self.ask(method, path, &[("content-type", media_type)], body.to_string()).await).await
    }

    pub(super) async fn json(&self, method: Method, path: &str) -> (u16, Value) {
        whole(self.send(method, path, None).await).await
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let (code, document) = self.json(Method::GET, path).await;
        assert_eq!(code, 200, "{document}");
        document
    }

    pub(super) async fn names(&self, path: &str) -> Vec<String> {
        let list = self.get(path).await;
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(super) async fn watch(&self, path: &str) -> Watch {
        self.watch_as(path, "application/json").await
    }

    pub(super) async fn watch_as(&self, path: &str, accept: &str) -> Watch {
        let response = self.ask(Method::GET, path, &[("accept", accept)], "").await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), text: Vec::new(), clock: self.clock.clone() }
    }
}

pub(super) struct Watch {
    body: Incoming,
    text: Vec<u8>,
    clock: Clock,
}

impl Watch {
    /// The next line; `None` when the watch has ended.
    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.clock.until(self.clock.deadline_in(PATIENCE), self.body.frame()).await.expect("nothing came in time");
            self.text.extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    /// The next `count` lines as `TYPE name state`.
    pub(super) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..count {
            let line = self.next().await.expect("the watch ended");
            let state = line["object"]["status"]["state"].as_str().unwrap_or("-");
            lines.push(format!("{} {} {state}", line["type"].as_str().unwrap(), line["object"]["metadata"]["name"].as_str().unwrap()));
        }
        lines
    }
}

/// The code and the document of an answer.
pub(super) async fn whole(response: Response<Incoming>) -> (u16, Value) {
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_else(|fault| panic!("{fault} in {body:?}")))
}

pub(super) fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: kind.namespaced().then(|| Namespace::new(namespace).unwrap()), name: Name::new(name).unwrap() }
}

pub(super) fn isvc(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<Desired> {
    let spec = json!({ "predictor": { "model": { "modelFormat": { "name": "onnx" } } } });
    let labels: Map<String, Value> = labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    Arc::new(Desired { labels: labels.into(), ..Desired::new(key(Kind::InferenceService, namespace, name), Origin::Api, &spec) })
}
