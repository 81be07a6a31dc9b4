//! What payload processors and the log see of calls that pass, and the trace that goes on with them.

use berth_proto::inference::{ModelInferRequest, ModelInferResponse};
use http::StatusCode;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::LogHeaders;
use crate::payloads::tests::{Lines, Received, data, logging};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// As a client sends them, one of them twice.
const TRACE: [(&str, &str); 3] = [("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")];

fn told(post: &Value) -> (&str, &str, Vec<u8>) {
    (post["kind"].as_str().unwrap(), post["status"].as_str().unwrap(), data(post))
}

/// Sends frames one by one.
fn frames(frames: Vec<Bytes>) -> Body {
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames.into_iter().map(|bytes| Ok(Frame::data(bytes))))))
}

#[tokio::test]
async fn each_message_that_passes_is_a_payload_as_its_sender_wrote_it() {
    let (_runtime, mut world, _seen) = echoing().await;
    let mut received = Received::new();
    world.frontend.show_payloads(received.processors(&format!("http://a?digits#{INFER}"), &world.metrics));
    let (first, second) = (naming("digits", 3), naming("digits", 20_000));
    let body = [message(&first), message(&second)].concat();
    let cut = vec![Bytes::copy_from_slice(&body[..7]), Bytes::copy_from_slice(&body[7..400]), Bytes::copy_from_slice(&body[400..])];
    let got = world.call(INFER, &[("authorization", "Bearer s3cret"), ("x-mine", "a"), TRACE[0]], frames(cut)).await;
    assert_eq!(got.status().0, Code::Ok);
    let with_id = |sent: &[u8]| [sent, &field(1, ID.as_bytes())].concat();
    let posts = [received.next().await, received.next().await, received.next().await, received.next().await];
    let (requests, answers): (Vec<_>, Vec<_>) = posts.iter().partition(|post| post["kind"] == "request");
    assert_eq!(requests.iter().map(|post| told(post)).collect::<Vec<_>>(), [("request", "", first.clone()), ("request", "", second.clone())]);
    let expected = [("response", "OK", with_id(&first)), ("response", "OK", with_id(&second))];
    assert_eq!(answers.iter().map(|post| told(post)).collect::<Vec<_>>(), expected);
    for post in &posts {
        assert_eq!((&post["id"], &post["modelid"], &post["vModelId"]), (&posts[0]["id"], &json!(ID), &json!("digits")));
    }
    let metadata = &requests[0]["metadata"];
    assert_eq!((&metadata["x-mine"], &metadata["traceparent"], &metadata["authorization"]), (&json!("a"), &json!(TRACEPARENT), &Value::Null));
    assert_eq!(answers[0]["metadata"]["x-first"], "kept");
    // Another method is nobody's.
    assert_eq!(world.call(OTHER, &[("mm-vmodel-id", "digits")], whole(message(b"x"))).await.status().0, Code::Ok);
    // Nor is what names the version itself: the filter has the name.
    assert_eq!(world.call(INFER, &[("mm-model-id", ID)], whole(message(b""))).await.status().0, Code::Ok);
    assert_eq!(world.call(INFER, &[("mm-vmodel-id", "digits")], whole(message(b""))).await.status().0, Code::Ok);
    let post = received.next().await;
    assert_eq!(told(&post), ("request", "", vec![]));
    assert_ne!(post["id"], posts[0]["id"]);
}

#[tokio::test]
async fn a_call_that_is_sent_again_or_fails_is_told_once() {
    let answers = vec![badly("5", "not here"), well(vec![message(b"a")]), badly("3", "no")];
    let runtime = runtime(scripted(answers)).await;
    let mut world = world(runtime.addr).await;
    let mut received = Received::new();
    world.frontend.show_payloads(received.processors("http://a", &world.metrics));
    let sent = naming("digits", 1);
    for (code, expected) in [(Code::Ok, ("response", "OK", b"a".to_vec())), (Code::InvalidArgument, ("response", "INVALID_ARGUMENT", vec![]))] {
        assert_eq!(world.call(INFER, &[], whole(message(&sent))).await.status().0, code);
        assert_eq!(told(&received.next().await), ("request", "", sent.clone()));
        assert_eq!(told(&received.next().await), expected);
    }
    drop(runtime);
    assert_eq!(world.call(INFER, &[], whole(message(&sent))).await.status().0, Code::Unavailable);
    let last = received.next().await;
    assert_eq!(told(&last), ("response", "UNAVAILABLE", vec![]), "nobody took a byte of the request");
    assert!(received.is_empty());
}

#[tokio::test]
async fn one_message_for_several_models_is_a_call_of_each() {
    let (_runtime, mut world, _seen) = echoing().await;
    let mut received = Received::new();
    world.frontend.show_payloads(received.processors("http://a", &world.metrics));
    let got = world.call(OTHER, &[("mm-model-id", ID), ("mm-model-id", ID)], whole(message(b"x"))).await;
    assert_eq!(got.status().0, Code::Ok);
    let mut posts = Vec::new();
    for _ in 0..4 {
        posts.push(received.next().await);
    }
    for kind in ["request", "response"] {
        let mut ids: Vec<_> = posts.iter().filter(|post| post["kind"] == kind && data(post) == b"x").map(|post| post["id"].to_string()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 2, "{posts:?}");
    }
}

fn rest_request(headers: &[(&'static str, &str)], model: &str) -> Request<Full<Bytes>> {
    let body = r#"{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [2], "data": [1, 2]}]}"#;
    let mut request = Request::post(format!("/v2/models/{model}/infer")).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    request
}

/// Answers every call with one that has an output.
fn inferring(seen: UnboundedSender<(HeaderMap, Bytes)>) -> Behaviour {
    Arc::new(move |request| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let _ = seen.unbounded_send((head.headers, body.collect().await.unwrap().to_bytes()));
            well(vec![message(&ModelInferResponse { model_name: ID.to_owned(), ..ModelInferResponse::default() }.encode_to_vec())])
        }
        .boxed()
    })
}

#[tokio::test]
async fn the_trace_of_a_request_goes_on_unchanged_over_grpc_and_rest_and_rest_is_shown_in_the_messages_of_grpc() {
    let (seen, mut got) = unbounded();
    let runtime = runtime(inferring(seen)).await;
    let mut world = world(runtime.addr).await;
    let mut received = Received::new();
    world.frontend.show_payloads(received.processors("http://a", &world.metrics));
    assert_eq!(world.call(INFER, &TRACE, whole(message(&naming("digits", 1)))).await.status().0, Code::Ok);
    let answer = world.frontend.rest(rest_request(&TRACE, "digits")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    for port in ["gRPC", "REST"] {
        let (headers, _) = got.next().await.unwrap();
        assert_eq!(headers.get_all("traceparent").iter().collect::<Vec<_>>(), [TRACEPARENT], "{port}");
        assert_eq!(headers.get_all("tracestate").iter().collect::<Vec<_>>(), ["a=1,b=2", "c=3"], "{port}");
        let (sent, answered) = (received.next().await, received.next().await);
        assert_eq!((&sent["kind"], &sent["metadata"]["traceparent"], &sent["vModelId"]), (&json!("request"), &json!(TRACEPARENT), &json!("digits")));
        assert_eq!(ModelInferRequest::decode(&*data(&sent)).unwrap().model_name, "digits", "{port}: as it was asked for");
        assert_eq!((told(&answered).1, ModelInferResponse::decode(&*data(&answered)).unwrap().model_name), ("OK", ID.to_owned()), "{port}");
    }
}

#[tokio::test]
async fn lines_about_a_request_carry_its_trace_and_the_headers_that_were_asked_for() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone()).finish();
    let _logging = logging(subscriber);
    let (seen, _got) = unbounded();
    let runtime = runtime(echo(seen)).await;
    // Lines of this thread are kept, so nothing may run on others.
    let mut world = world_with(runtime.addr, Methods::default(), ProxyConfig::default()).await;
    world.frontend.log_headers(LogHeaders::parse(r#"{"x-tenant": "tenant"}"#).unwrap());
    let headers = [TRACE[0], ("x-tenant", "a"), ("authorization", "Bearer s3cret")];
    let got = world.call(INFER, &headers, whole(message(&naming("unheard-of", 1)))).await;
    assert_eq!(got.status().0, Code::NotFound);
    assert_eq!(world.call(INFER, &[], whole(message(&naming("unheard-of", 1)))).await.status().0, Code::NotFound);
    let text = lines.text();
    let about: Vec<Value> =
        text.lines().filter(|line| line.contains("a request gets an error")).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(about.len(), 2, "{text}");
    assert_eq!(about[0]["span"], json!({"name": "request", "trace_id": "0af7651916cd43dd8448eb211c80319c", "tenant": "a"}));
    assert_eq!(about[1]["span"], Value::Null);
    assert!(!text.contains("s3cret"), "{text}");
}
