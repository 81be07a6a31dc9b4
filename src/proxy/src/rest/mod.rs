//! The REST port: the HTTP form of the Open Inference Protocol, with JSON tensors and the binary tensor extension.
//!
//! [`path`] says what a path means; [`coding`] takes the compression off a body, [`json`], [`request`] and [`tensor`] turn it
//! into raw tensors, [`response`] and [`typed`] turn the answer back; [`headers`] says what goes on to the runtime. The model
//! comes from the path only: ids in headers belong to gRPC.

mod coding;
mod headers;
mod json;
mod path;
mod request;
mod response;
mod tensor;
mod typed;

use std::sync::Arc;
use std::time::Duration;

use berth_proto::inference::ModelInferResponse;
use berth_types::ByteSize;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::Instrument as _;

use self::coding::{COMPRESSED_FROM, Coding};
use self::path::Target;
use self::request::{Parsed, Wanted};
use crate::body::{Answer, Incoming, Outgoing, Reader};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::connections::{self, Door, Handler};
use crate::frontend::{Call, Frontend, MODEL_INFER};
use crate::grpc::SMALL_MESSAGE;
use crate::id::Asked;
use crate::route::{self, Models};

/// Length of the JSON part where binary tensors follow it; in requests and in answers.
const JSON_LENGTH: &str = "inference-header-content-length";
/// JSON beyond this is read and written off the async threads: a megabyte keeps one busy for milliseconds.
const OFF_THREAD: usize = 256 * 1024;
/// After a body over the limit so much more is read and thrown away before the answer.
const LINGER: ByteSize = ByteSize::mib(64);

/// Serves REST on `listener` until `shutdown`, then until the last request has been answered.
pub async fn serve_rest<M: Models>(frontend: Arc<Frontend<M>>, door: impl Into<Door>, shutdown: CancellationToken) {
    let (config, clock) = (frontend.config.clone(), frontend.clock.clone());
    connections::serve(door, RestPort(frontend), &config, &clock, shutdown).await;
}

struct RestPort<M>(Arc<Frontend<M>>);

impl<M> Clone for RestPort<M> {
    fn clone(&self) -> Self {
        RestPort(Arc::clone(&self.0))
    }
}

impl<M: Models> Handler for RestPort<M> {
    type Body = Outgoing;
    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let Some(context) = self.0.context(request.headers()) else { return Ok(self.0.rest(request).await) };
        let answer = Box::pin(self.0.rest(request).instrument(context.clone())).await;
        Ok(answer.map(|body| body.within(context)))
    }
}

impl<M: Models> Frontend<M> {
    pub(crate) async fn rest(&self, request: Request<impl Incoming>) -> Response<Outgoing> {
        let (head, body) = request.into_parts();
        let accepted = Coding::accepted(&head.headers);
        compressed(self.rest_answer(head, body).await, accepted).await
    }

    async fn rest_answer(&self, head: Parts, body: impl Incoming) -> Response<Outgoing> {
        let target = match path::target(&head.method, head.uri.path(), head.uri.query()) {
            Ok(target) => target,
            Err(fault) => return error(&fault),
        };
        let answer = match target {
            Target::Infer { model, version } => return self.rest_infer(&head, body, &model, version).await,
            Target::Live => Ok(json_answer(&json!({ "live": true }))),
            Target::Ready => (self.ready)().map(|()| json_answer(&json!({ "ready": true }))).map_err(Fault::ServerNotReady),
            Target::Server => {
                let about = self.server_metadata();
                Ok(json_answer(&json!({ "name": about.name, "version": about.version, "extensions": about.extensions })))
            }
            Target::ModelReady { model, version } => {
                let ready = self.model_ready(&Asked::Name(model.as_str().into()), version.as_deref().unwrap_or(""));
                ready.map(|()| json_answer(&json!({ "name": model, "ready": true })))
            }
            Target::Model { model, version } => self.rest_metadata(&head.headers, &model, version.as_deref().unwrap_or("")).await,
            Target::Index => self.index(&head, body).await,
            Target::Options(allow) => {
                let mut response = Response::new(Outgoing::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert(header::ALLOW, allow_header(allow));
                Ok(response)
            }
        };
        answer.unwrap_or_else(|fault| error(&fault))
    }

    async fn rest_infer(&self, head: &Parts, body: impl Incoming, model: &str, version: Option<String>) -> Response<Outgoing> {
        let measured = self.meters.rest.started(&self.clock);
        match self.rest_inferred(head, body, model, version).await {
            Ok(response) => {
                measured.ended(Code::Ok);
                response
            }
            Err(fault) => {
                measured.ended(fault.verdict().code);
                error(&fault)
            }
        }
    }

    async fn rest_inferred(&self, head: &Parts, body: impl Incoming, model: &str, version: Option<String>) -> Result<Response<Outgoing>, Fault> {
        let deadline = self.deadline(&head.headers)?;
        let json_length = json_length(&head.headers)?;
        let coding = Coding::of_body(&head.headers)?;
        let (mut share, limit) = (self.bodies.share(), self.config.max_message);
        let read = self.clock.until(deadline, self.read_body(&head.headers, body, limit, &mut share)).await;
        let body = read.unwrap_or(Err(Fault::SlowRequest))?;
        // A little that is compressed can become much.
        let size = if coding == Coding::Identity { body.len() } else { usize::MAX };
        // The share goes with the body, which may outlive its caller on another thread, and stays until the answer.
        let reading = move || {
            let body = coding.decoded(body, limit, &mut share)?;
            request::read(&body, json_length, &mut share).map(|parsed| (parsed, share))
        };
        let (Parsed { mut request, wanted, timeout_micros }, share) =
            off_thread(size, reading).await.map_err(|fault| with_content_type(fault, &head.headers))?;
        let deadline = timeout_micros.map_or(deadline, |micros| deadline.min(self.clock.deadline_in(Duration::from_micros(micros))));
        model.clone_into(&mut request.model_name);
        request.model_version = version.unwrap_or_default();
        let metadata = headers::passed_on(&head.headers);
        let call = Call { path: MODEL_INFER, metadata: &metadata };
        let answer = self.infer_with(&Asked::Name(model.into()), request, call, deadline).await?;
        drop(share);
        let size = answer.raw_output_contents.iter().map(Bytes::len).sum();
        off_thread(size, move || written(answer, &wanted)).await
    }

    async fn read_body(&self, headers: &HeaderMap, body: impl Incoming, limit: ByteSize, share: &mut Share) -> Result<Bytes, Fault> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        let mut reader = Reader::new(body, share);
        let read = reader.rest(announced, limit).await;
        let sends_on = match read {
            // A client that asked first, and has sent nothing yet, reads the answer at once.
            Err(Fault::TooLarge { .. }) => {
                !headers.contains_key(header::EXPECT) && announced.is_none_or(|size| size <= limit.0.saturating_add(LINGER.0))
            }
            Err(Fault::TooHeavy { .. } | Fault::NoBuffer { .. }) => true,
            _ => false,
        };
        if sends_on {
            reader.discard(LINGER).await;
        }
        read
    }

    async fn rest_metadata(&self, headers: &HeaderMap, model: &str, version: &str) -> Result<Response<Outgoing>, Fault> {
        let deadline = self.deadline(headers)?;
        let metadata = self.metadata_with(&Asked::Name(model.into()), version, &headers::passed_on(headers), deadline).await?;
        let tensors = |tensors: &[berth_proto::inference::model_metadata_response::TensorMetadata]| {
            tensors.iter().map(|tensor| json!({ "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape })).collect::<Vec<_>>()
        };
        Ok(json_answer(&json!({
            "name": metadata.name,
            "versions": metadata.versions,
            "platform": metadata.platform,
            "inputs": tensors(&metadata.inputs),
            "outputs": tensors(&metadata.outputs),
        })))
    }

    /// Every name: READY, or UNAVAILABLE with the reason. The body may say `{"ready": true}` to see only the former.
    async fn index(&self, head: &Parts, body: impl Incoming) -> Result<Response<Outgoing>, Fault> {
        #[derive(serde::Deserialize)]
        struct Filter {
            #[serde(default)]
            ready: bool,
        }
        let deadline = self.deadline(&head.headers)?;
        let coding = Coding::of_body(&head.headers)?;
        let (mut share, limit) = (self.bodies.share(), SMALL_MESSAGE.min(self.config.max_message));
        let read = self.clock.until(deadline, self.read_body(&head.headers, body, limit, &mut share)).await;
        let body = coding.decoded(read.unwrap_or(Err(Fault::SlowRequest))?, limit, &mut share)?;
        let only_ready = match body.trim_ascii() {
            [] => head.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "ready=true")),
            text => serde_json::from_slice::<Filter>(text).map_err(|fault| Fault::BadRequest(format!("the body is not a filter: {fault}")))?.ready,
        };
        let rows = self.models.names().into_iter().filter_map(|name| {
            let asked = Asked::Name(name.as_str().into());
            let version = route::registration(&self.models, &asked).map_or_else(|_| String::new(), |registration| registration.id.to_string());
            match self.model_ready(&asked, "") {
                Ok(()) => Some(json!({ "name": name, "version": version, "state": "READY", "reason": "" })),
                Err(_) if only_ready => None,
                Err(fault) => Some(json!({ "name": name, "version": version, "state": "UNAVAILABLE", "reason": fault.to_string() })),
            }
        });
        Ok(json_answer(&rows.collect()))
    }
}

/// A body that cannot be read, and says that it is something else, gets that said.
fn with_content_type(fault: Fault, headers: &HeaderMap) -> Fault {
    /// What others send for JSON: the first is what `curl -d` says.
    const USUAL: [&str; 5] = ["application/x-www-form-urlencoded", "application/octet-stream", "application/json", "text/json", "text/plain"];
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return fault };
    let kind = String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase();
    let bare = kind.split(';').next().unwrap_or_default().trim();
    match fault {
        Fault::BadRequest(text) if !USUAL.contains(&bare) && !bare.ends_with("+json") => {
            Fault::BadRequest(format!("{text}; content-type is {}, inference takes application/json", Quoted::new(&kind)))
        }
        other => other,
    }
}

/// Compresses an answer that is large enough for it. Its client has been asked.
async fn compressed(response: Response<Outgoing>, coding: Coding) -> Response<Outgoing> {
    let Outgoing::Ready { pieces, .. } = response.body() else { return response };
    let size = pieces.iter().map(Bytes::len).sum();
    if coding == Coding::Identity || size < COMPRESSED_FROM {
        return response;
    }
    let pieces: Vec<Bytes> = pieces.iter().cloned().collect();
    let encoded = off_thread(OFF_THREAD.max(size) + 1, move || coding.encoded(&pieces).map_err(|fault| Fault::Internal(fault.to_string()))).await;
    let Ok(encoded) = encoded else { return response };
    let mut response = response.map(|_| Outgoing::of([encoded]));
    let headers = response.headers_mut();
    headers.extend(coding.header().map(|name| (header::CONTENT_ENCODING, name)));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}

fn allow_header(allow: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("{allow}, OPTIONS")).unwrap_or_else(|_| HeaderValue::from_static("OPTIONS"))
}

/// Does `work` here when it is small, else on a thread that may block.
async fn off_thread<T: Send + 'static>(size: usize, work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    if size <= OFF_THREAD {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(Fault::Internal(format!("a conversion of JSON ended early: {ended}"))))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Fault> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(length) => Ok(Some(length)),
        None => {
            let shown = Quoted::new(&String::from_utf8_lossy(value.as_bytes()));
            Err(Fault::BadRequest(format!("Inference-Header-Content-Length is {shown}, it must be the number of bytes of the JSON part")))
        }
    }
}

fn written(answer: ModelInferResponse, wanted: &Wanted) -> Result<Response<Outgoing>, Fault> {
    let response::Written { json, binary } = response::write(answer, wanted)?;
    let length = json.len();
    let mut response = Response::new(Outgoing::of(std::iter::once(Bytes::from(json)).chain(binary.iter().flatten().cloned())));
    let kind = if binary.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if binary.is_some() {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

fn json_answer(value: &serde_json::Value) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::text(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The protocol's `error`, and `code` and `message` as gRPC gateways have them.
fn error(fault: &Fault) -> Response<Outgoing> {
    let verdict = fault.verdict();
    let text = fault.to_string();
    tracing::debug!(code = crate::codes::name(verdict.code), error = %text, "a request gets an error");
    let mut response = json_answer(&json!({ "error": text, "code": verdict.code as i32, "message": text }));
    *response.status_mut() = verdict.http;
    if let Some(after) = verdict.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    if let Fault::WrongMethod { allow, .. } = fault {
        response.headers_mut().insert(header::ALLOW, allow_header(allow));
    }
    if let Fault::Encoded(_) = fault {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
    }
    if verdict.http == StatusCode::PAYLOAD_TOO_LARGE {
        // What the client still sends must not be read as the next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_adapters::InferError;
    use berth_registry::Resolved;
    use berth_telemetry::{Counter, HostNet, Net};
    use berth_types::{Reason, Retry};
    use http_body_util::{BodyExt as _, Full};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::ProxyConfig;
    use crate::scripted::{Load, Rig, failure, rig, rig_with};

    const INPUT: &str = r#"{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[[0.5,1e-7]]}]}"#;

    struct Got {
        status: u16,
        headers: HeaderMap,
        body: Bytes,
    }

    impl Got {
        fn json(&self) -> Value {
            serde_json::from_slice(&self.body).unwrap()
        }
    }

    async fn ask(rig: &Rig, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Got {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, body) = rig.frontend.rest(request.body(Full::new(body.into())).unwrap()).await.into_parts();
        Got { status: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    #[tokio::test]
    async fn an_inference_comes_back_as_json_with_the_concrete_id() {
        let rig = rig();
        let got = ask(&rig, "POST", "/v2/models/digits/infer", &[], INPUT).await;
        assert_eq!((got.status, &got.headers[header::CONTENT_TYPE]), (200, &HeaderValue::from_static("application/json")));
        let expected = concat!(
            r#"{"model_name":"digits__isvc-1111111111","id":"7","outputs":["#,
            r#"{"name":"x","datatype":"FP32","shape":[1,2],"data":[0.5,1e-7]}]}"#
        );
        assert_eq!(std::str::from_utf8(&got.body).unwrap(), expected);
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "rest"), ("code", "OK")]), 1);
        let versioned = ask(&rig, "POST", "/v2/models/digits/versions/1/infer", &[], INPUT).await;
        assert_eq!(versioned.status, 200, "{:?}", versioned.body);
        assert_eq!(rig.infer.requests.lock()[1].model_version, "1");
    }

    #[tokio::test]
    async fn binary_tensors_go_both_ways() {
        let rig = rig();
        let json =
            r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}],"parameters":{"binary_data_output":true}}"#;
        let raw = [1.5f32.to_le_bytes(), 2.5f32.to_le_bytes()].concat();
        let length = json.len().to_string();
        let body = [json.as_bytes(), &raw].concat();
        let got = ask(&rig, "POST", "/v2/models/digits/infer", &[("Inference-Header-Content-Length", length.as_str())], body).await;
        assert_eq!(got.status, 200, "{:?}", got.body);
        let split: usize = got.headers[JSON_LENGTH].to_str().unwrap().parse().unwrap();
        let answer: Value = serde_json::from_slice(&got.body[..split]).unwrap();
        assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(&got.body[split..], &raw);
        let wrong = ask(&rig, "POST", "/v2/models/digits/infer", &[("Inference-Header-Content-Length", "x")], "{}").await;
        assert_eq!(wrong.status, 400);
    }

    #[tokio::test]
    async fn a_large_body_is_converted_off_the_async_threads_with_the_same_result() {
        let rig = rig();
        let data = vec!["1"; OFF_THREAD].join(",");
        let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"INT64","shape":[{OFF_THREAD}],"data":[{data}]}}]}}"#);
        let got = ask(&rig, "POST", "/v2/models/digits/infer", &[], body).await;
        assert_eq!(got.status, 200);
        assert_eq!(got.json()["outputs"][0]["data"].as_array().map(Vec::len), Some(OFF_THREAD));
    }

    #[tokio::test]
    async fn errors_have_both_forms_the_status_of_the_table_and_hints() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize(200), ..ProxyConfig::default() });
        rig.models.names.lock().insert("bad".to_owned(), Resolved::Unservable(failure(Reason::ModelLoadFailed, Retry::AfterChange)));
        rig.models.names.lock().insert("away".to_owned(), Resolved::Unservable(failure(Reason::RuntimeUnhealthy, Retry::Later)));
        let long = "x".repeat(201);
        let infer = "/v2/models/digits/infer";
        for (method, path, headers, body, status, code, text) in [
            ("POST", "/v2/models/other/infer", &[][..], INPUT, 404, 5, "model \"other\" is not registered"),
            ("POST", "/v2/models/bad/infer", &[], INPUT, 400, 9, "not a model"),
            ("POST", "/v2/models/away/infer", &[], INPUT, 503, 14, "RuntimeUnhealthy"),
            ("POST", infer, &[], "{", 400, 3, "the body cannot be read"),
            ("POST", infer, &[], long.as_str(), 413, 8, "the request is larger than the limit of 200 bytes (200 B)"),
            ("POST", infer, &[("content-length", "201")], long.as_str(), 413, 8, "the request has 201 bytes, the limit is 200 (200 B)"),
            ("POST", infer, &[("content-encoding", "br")], INPUT, 415, 12, "content-encoding \"br\" is not supported"),
            ("POST", infer, &[("content-encoding", "gzip")], INPUT, 400, 3, "the body is not the gzip that content-encoding says"),
            ("POST", infer, &[("content-type", "image/png")], "PNG", 400, 3, "; content-type is \"image/png\", inference takes application/json"),
            ("PUT", "/v2/repository/index", &[], "", 405, 12, "PUT is not allowed here, GET, HEAD, POST is"),
            ("POST", infer, &[("grpc-timeout", "soon")], INPUT, 400, 3, "grpc-timeout is \"soon\""),
            ("POST", "/v2/models/digits/versions/9/infer", &[], INPUT, 404, 5, "no version \"9\""),
            ("GET", infer, &[], "", 405, 12, "GET is not allowed here"),
            ("GET", "/v1/models", &[], "", 404, 5, "no such path: \"/v1/models\""),
            ("GET", "/v2/models/other", &[], "", 404, 5, "not registered"),
            ("GET", "/v2/models/bad/ready", &[], "", 400, 9, "not a model"),
            ("GET", "/v2/models/digits/versions/99/ready", &[], "", 404, 5, "model \"digits\" has no version \"99\", it has 1"),
        ] {
            let got = ask(&rig, method, path, headers, body.to_owned()).await;
            let json = got.json();
            assert_eq!((got.status, json["code"].as_i64()), (status, Some(code)), "{method} {path}: {json}");
            assert!(json["error"].as_str().unwrap().contains(text), "{method} {path}: {json}");
            assert_eq!(json["error"], json["message"]);
            assert_eq!(got.headers.contains_key(header::RETRY_AFTER), status == 503, "{method} {path}");
            assert_eq!(got.headers.get(header::ALLOW).is_some(), status == 405, "{method} {path}");
            assert_eq!(got.headers.get(header::ACCEPT_ENCODING).is_some(), status == 415, "{method} {path}");
        }
        assert_eq!(ask(&rig, "POST", infer, &[("content-encoding", "identity")], INPUT).await.status, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_count_as_what_they_are_decoded_to_until_they_are_answered() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize::kib(64), body_budget: ByteSize::kib(64), ..ProxyConfig::default() });
        let infer = "/v2/models/digits/infer";
        let body = |datatype: &str, count: usize| {
            let data = vec!["1"; count].join(",");
            format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[{count}],"data":[{data}]}}]}}"#)
        };
        rig.models.load.lock().push_back(Load::Never);
        let mut waiting = Box::pin(ask(&rig, "POST", infer, &[], body("FP64", 5000)));
        assert!(futures::poll!(&mut waiting).is_pending());
        let held = rig.frontend.bodies.taken();
        assert!((40_000..41_000).contains(&held), "{held}: the decoded tensor, no more the text");

        let got = ask(&rig, "POST", infer, &[], body("INT8", 14_000)).await;
        assert_eq!((got.status, got.headers.get(header::RETRY_AFTER)), (429, Some(&HeaderValue::from(1))), "{:?}", got.body);
        let text = got.json()["error"].as_str().unwrap().to_owned();
        assert!(text.starts_with("requests hold ") && text.contains(" of 64 KiB, and this one needs "), "{text}");
        drop(waiting);
        assert_eq!(rig.frontend.bodies.taken(), 0);
        assert_eq!(ask(&rig, "POST", infer, &[], body("INT8", 14_000)).await.status, 200);

        let got = ask(&rig, "POST", infer, &[], body("FP64", 20_000)).await;
        assert_eq!((got.status, got.headers.get(header::RETRY_AFTER)), (413, None), "it alone is more than there is");
        assert!(got.json()["error"].as_str().unwrap().ends_with("when it is decoded, all requests together have 64 KiB"), "{:?}", got.body);
        assert_eq!(rig.frontend.bodies.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_grpc_timeout_header_bounds_the_wait_for_a_cold_model() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Never);
        let start = rig.frontend.clock.now();
        let got = ask(&rig, "POST", "/v2/models/digits/infer", &[("Grpc-Timeout", "9S")], INPUT).await;
        assert_eq!((got.status, rig.frontend.clock.now() - start), (504, Duration::from_secs(9)));
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "rest"), ("code", "DEADLINE_EXCEEDED")]), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_timeout_and_grpc_timeout_counts() {
        for (parameter, wanted) in [(2_500_000, Duration::from_millis(2500)), (60_000_000, Duration::from_secs(9)), (0, Duration::from_secs(9))] {
            let rig = rig();
            rig.models.load.lock().push_back(Load::Never);
            let start = rig.frontend.clock.now();
            let body = format!(r#"{{"parameters":{{"timeout":{parameter}}},"inputs":[]}}"#);
            let got = ask(&rig, "POST", "/v2/models/digits/infer", &[("Grpc-Timeout", "9S")], body).await;
            assert_eq!((got.status, rig.frontend.clock.now() - start), (504, wanted), "{parameter}");
        }
    }

    #[tokio::test]
    async fn compressed_requests_are_read_and_large_answers_compressed_where_the_client_takes_them() {
        let rig = rig();
        let infer = "/v2/models/digits/infer";
        let raw = vec![7u8; COMPRESSED_FROM];
        let json = format!(
            r#"{{"inputs":[{{"name":"x","datatype":"UINT8","shape":[{0}],"parameters":{{"binary_data_size":{0}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
            raw.len()
        );
        let length = json.len().to_string();
        let body = [Bytes::from(json), Bytes::from(raw.clone())];
        for (coding, name) in [(Coding::Gzip, "gzip"), (Coding::Deflate, "deflate")] {
            let headers = [("content-encoding", name), ("accept-encoding", name), (JSON_LENGTH, length.as_str())];
            let got = ask(&rig, "POST", infer, &headers, coding.encoded(&body).unwrap()).await;
            assert_eq!(
                (got.status, &got.headers[header::CONTENT_ENCODING], &got.headers[header::VARY]),
                (200, &HeaderValue::from_static(name), &HeaderValue::from_static("accept-encoding")),
                "{:?}",
                got.body
            );
            let split: usize = got.headers[JSON_LENGTH].to_str().unwrap().parse().unwrap();
            let mut share = rig.frontend.bodies.share();
            let plain = coding.decoded(got.body, ByteSize::mib(1), &mut share).unwrap();
            assert_eq!(&plain[split..], &raw, "the length of the JSON is that without compression");
        }
        let small = ask(&rig, "POST", infer, &[("accept-encoding", "gzip")], INPUT).await;
        assert!(!small.headers.contains_key(header::CONTENT_ENCODING));
        let plain = ask(&rig, "POST", infer, &[(JSON_LENGTH, length.as_str())], body.concat()).await;
        assert!(!plain.headers.contains_key(header::CONTENT_ENCODING) && plain.body.len() > raw.len());
        assert_eq!(rig.frontend.bodies.taken(), 0);
    }

    #[tokio::test]
    async fn options_say_what_a_path_takes() {
        let rig = rig();
        for (path, allow) in
            [("/v2/models/digits/infer", "POST, OPTIONS"), ("/v2", "GET, HEAD, OPTIONS"), ("/v2/repository/index", "GET, HEAD, POST, OPTIONS")]
        {
            let got = ask(&rig, "OPTIONS", path, &[], "").await;
            assert_eq!((got.status, got.headers[header::ALLOW].to_str().unwrap(), got.body.len()), (204, allow, 0), "{path}");
        }
        assert_eq!(ask(&rig, "OPTIONS", "/v1", &[], "").await.status, 404);
    }

    #[tokio::test]
    async fn parameters_of_every_kind_go_both_ways() {
        let rig = rig();
        let given = json!({ "i": -1, "u": u64::MAX, "d": 0.5, "b": true, "s": "é" });
        let body = json!({ "parameters": given, "inputs": [{ "name": "x", "datatype": "INT8", "shape": [1], "data": [1], "parameters": given }] });
        ask(&rig, "POST", "/v2/models/digits/infer", &[], body.to_string()).await;
        let request = rig.infer.requests.lock()[0].clone();
        let echo = berth_proto::inference::model_infer_response::InferOutputTensor {
            name: "y".to_owned(),
            datatype: "INT8".to_owned(),
            shape: vec![1],
            parameters: request.inputs[0].parameters.clone(),
            contents: None,
        };
        let answer = ModelInferResponse {
            parameters: request.parameters,
            outputs: vec![echo],
            raw_output_contents: request.raw_input_contents,
            ..ModelInferResponse::default()
        };
        rig.infer.answers.lock().push_back(Ok(answer));
        let got = ask(&rig, "POST", "/v2/models/digits/infer", &[], body.to_string()).await.json();
        assert_eq!((&got["parameters"], &got["outputs"][0]["parameters"]), (&given, &given));
    }

    #[tokio::test]
    async fn server_and_models_describe_themselves() {
        let rig = rig();
        let bad = failure(Reason::ModelLoadFailed, Retry::AfterChange);
        rig.models.names.lock().insert("bad".to_owned(), Resolved::Unservable(bad));
        assert_eq!(ask(&rig, "GET", "/v2", &[], "").await.json()["name"], "berth");
        assert_eq!(ask(&rig, "GET", "/v2/health/live", &[], "").await.json(), json!({ "live": true }));
        assert_eq!(ask(&rig, "GET", "/v2/models/digits/ready", &[], "").await.json(), json!({ "name": "digits", "ready": true }));
        for path in ["/v2/models/digits", "/v2/models/digits/versions/1", "/v2/models/digits?version=1"] {
            let about = ask(&rig, "GET", path, &[], "").await.json();
            assert_eq!(about["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 64] }]), "{path}");
            assert_eq!((&about["name"], &about["versions"]), (&json!("digits__isvc-1111111111"), &json!(["1"])));
        }
        assert_eq!(ask(&rig, "GET", "/v2/models/digits/versions/2", &[], "").await.status, 404);
        let ready = json!({ "name": "digits", "version": "digits__isvc-1111111111", "state": "READY", "reason": "" });
        let index = ask(&rig, "POST", "/v2/repository/index", &[], "").await.json();
        assert_eq!((&index[1], &index[0]["state"]), (&ready, &json!("UNAVAILABLE")));
        assert_eq!(ask(&rig, "POST", "/v2/repository/index", &[], r#"{"ready":true}"#).await.json(), json!([ready]));
        assert_eq!(ask(&rig, "GET", "/v2/repository/index", &[], "").await.json(), index);
        assert_eq!(ask(&rig, "GET", "/v2/repository/index?ready=true", &[], "").await.json(), json!([ready]));
        assert_eq!(ask(&rig, "GET", "/v2/health/ready", &[], "").await.status, 200);
        *rig.down.lock() = Some("resources are being read".to_owned());
        let down = ask(&rig, "GET", "/v2/health/ready", &[], "").await;
        assert_eq!((down.status, down.json()["error"].as_str()), (503, Some("not ready: resources are being read")));
    }

    #[tokio::test]
    async fn a_runtime_that_answers_nonsense_is_our_fault_and_a_failing_model_its_own() {
        let rig = rig();
        rig.infer.answers.lock().push_back(Ok(ModelInferResponse { raw_output_contents: vec![Bytes::new()], ..Default::default() }));
        rig.infer.answers.lock().push_back(Err(InferError::Failed("division by zero in node 7".to_owned())));
        for (code, text) in [(13, "0 outputs with 1 contents"), (2, "division by zero in node 7")] {
            let got = ask(&rig, "POST", "/v2/models/digits/infer", &[], INPUT).await;
            assert_eq!((got.status, got.json()["code"].as_i64()), (500, Some(code)));
            assert!(got.json()["error"].as_str().unwrap().contains(text));
        }
    }

    async fn talk(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn over_a_socket_requests_are_answered_large_ones_refused_and_a_shutdown_waits_for_the_last_answer() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize(1000), ..ProxyConfig::default() });
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve_rest(Arc::clone(&rig.frontend), listener, shutdown.clone()));
        let head = |length: usize| format!("POST /v2/models/digits/infer HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n");

        let mut stream = TcpStream::connect(addr).await.unwrap();
        let answer = talk(&mut stream, &format!("{}connection: close\r\n\r\n{INPUT}", head(INPUT.len()))).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\"data\":[0.5,1e-7]}]}"), "{answer}");

        let mut stream = TcpStream::connect(addr).await.unwrap();
        let answer = talk(&mut stream, "HEAD /v2 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\ncontent-length: ") && answer.ends_with("\r\n\r\n"), "{answer}");

        // The whole of a body far over the limit is sent before the answer is read.
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let answer = talk(&mut stream, &format!("{}\r\n{}", head(8 << 20), " ".repeat(8 << 20))).await;
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n") && answer.contains("8388608 bytes, the limit is 1000"), "{answer}");

        // So is a body for which there is no room; its client may try again on the same connection.
        let full = rig.frontend.bodies.fill();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let asking = format!("{}connection: close\r\n\r\n{INPUT}", head(INPUT.len()));
        stream.write_all(format!("{}\r\n{INPUT}", head(INPUT.len())).as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
        drop(full);
        let answer = talk(&mut stream, &asking).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

        // A client that hangs up while its model loads is not waited for.
        rig.models.load.lock().extend([Load::Never, Load::Never]);
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{}\r\n{INPUT}", head(INPUT.len())).as_bytes()).await.unwrap();
        rig.models.waiting.subscribe().wait_for(|waiting| *waiting == 1).await.unwrap();
        drop(stream);
        rig.models.waiting.subscribe().wait_for(|waiting| *waiting == 0).await.unwrap();
        rig.models.load.lock().clear();

        rig.infer.held.send_replace(true);
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("{}\r\n{INPUT}", head(INPUT.len())).as_bytes()).await.unwrap();
        rig.infer.running.subscribe().wait_for(|running| *running == 1).await.unwrap();
        shutdown.cancel();
        rig.infer.held.send_replace(false);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        server.await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err(), "the port is closed");
    }
}
