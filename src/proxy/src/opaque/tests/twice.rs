//! What is sent to a runtime once more, and what is not.

use std::sync::atomic::{AtomicUsize, Ordering};

use berth_telemetry::{Dialed, Peer};

use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use prost::Message as _;

use super::*;
use crate::id::Asked;
use crate::{Fault, Verdict};

const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Does `behaviour`, and counts how often.
fn counted(behaviour: Behaviour) -> (Behaviour, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&count);
    let counting: Behaviour = Arc::new(move |request| {
        told.fetch_add(1, Ordering::SeqCst);
        behaviour(request)
    });
    (counting, count)
}

/// Reads what is sent, as far as it comes at once, and resets the call.
fn resetting() -> Behaviour {
    Arc::new(|request| {
        async move {
            let mut body = request.into_body();
            while let Some(Some(Ok(_))) = body.frame().now_or_never() {}
            reset()
        }
        .boxed()
    })
}

#[tokio::test]
async fn what_is_lost_on_its_way_is_sent_once_more_when_it_is_one_small_message_and_else_not() {
    let one = || message(&naming("digits", 1));
    for (case, path, body, calls) in [
        ("one message", INFER, whole(one()), 2),
        ("one in a stream that has ended", STREAM, whole(one()), 2),
        ("two", STREAM, whole([one(), one()].concat()), 1),
        ("one, and the stream goes on", STREAM, open(one()), 1),
        ("a large one", INFER, whole(message(&naming("digits", 300 * 1024))), 1),
    ] {
        let (behaviour, count) = counted(resetting());
        let runtime = runtime(behaviour).await;
        let mut world = world(runtime.addr).await;
        let (code, said) = world.call(path, &[], body).await.status();
        assert!(code == Code::Unavailable, "{case}: {code:?} {said}");
        assert_eq!(count.load(Ordering::SeqCst), calls, "{case}");
        world.unguarded().await;
    }
}

/// A network on which the runtime can be reached only while a test says so.
struct Gate(tokio::sync::watch::Sender<bool>);

#[async_trait::async_trait]
impl Net for Gate {
    async fn listen(&self, addr: SocketAddr) -> std::io::Result<Listener> {
        HostNet.listen(addr).await
    }

    async fn dial(&self, peer: &Peer) -> std::io::Result<Dialed> {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
        HostNet.dial(peer).await
    }
}

/// Tells that a call has come, and never answers.
fn silent() -> (Behaviour, UnboundedReceiver<()>) {
    let (tell, came) = unbounded();
    let behaviour: Behaviour = Arc::new(move |request| {
        let _ = tell.unbounded_send(());
        async move {
            let _request = request;
            std::future::pending().await
        }
        .boxed()
    });
    (behaviour, came)
}

/// The code and the text of a call without an answer, and whether it says when to try again.
async fn ending(call: impl Future<Output = hyper::Result<Response<Incoming>>>) -> (Code, String, bool) {
    let answer = call.await.unwrap();
    let status = Status::from_header_map(answer.headers()).expect("a status");
    (status.code(), status.message().to_owned(), answer.headers().contains_key("grpc-status-details-bin"))
}

#[tokio::test]
async fn of_what_is_not_here_as_a_whole_nothing_is_sent_again_when_the_runtime_dies() {
    let one = message(&naming("digits", 1000));
    for (case, body) in [
        ("half of a message", open(one.slice(..500))),
        ("a message, and the stream goes on", open(one)),
        ("too large to be kept, and more to come", open(message(&naming("digits", 300 * 1024)))),
        ("too large to be kept", whole(message(&naming("digits", 300 * 1024)))),
    ] {
        let (behaviour, mut came) = silent();
        let (behaviour, count) = counted(behaviour);
        let runtime = runtime(behaviour).await;
        let mut world = world_with(runtime.addr, Methods::default(), ProxyConfig::default()).await;
        let sent = tokio::spawn(world.client.send_request(call(INFER, &[], body)));
        came.next().await.unwrap();
        let since = world.frontend.clock.now();
        drop(runtime);
        let (code, said, again) = ending(async { sent.await.unwrap() }).await;
        assert!(code == Code::Unavailable && again && said.contains("whether the request ran is not known"), "{case}: {code:?} {said}");
        assert!(world.frontend.clock.now() - since < Duration::from_secs(1), "{case}: it waits for no other copy");
        assert_eq!(count.load(Ordering::SeqCst), 1, "{case}");
        world.unguarded().await;
    }
}

/// The copy is withdrawn while the request waits for a connection on which it would be sent again.
#[tokio::test]
async fn a_request_whose_runtime_died_is_routed_again_as_long_as_it_was_not_sent_again_and_not_for_ever() {
    for returns in [true, false] {
        let (behaviour, mut came) = silent();
        let (gate, runtime) = (Arc::new(Gate(tokio::sync::watch::Sender::new(true))), runtime(behaviour).await);
        let addr = runtime.addr;
        let mut world = world_over(Arc::clone(&gate) as Arc<dyn Net>, addr, Methods::default(), ProxyConfig::default()).await;
        let sent = tokio::spawn(world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))));
        came.next().await.unwrap();
        gate.0.send_replace(false);
        drop(runtime);
        // It waits for a connection, and its copy goes.
        let server = &world.frontend.way().unwrap().server;
        let withdrawn = async || {
            while server.state().waiting == 0 {
                tokio::task::yield_now().await;
            }
            world.models.revoked.send_replace(true);
        };
        for _ in 0..2 {
            withdrawn().await;
            world.models.revoked.subscribe().wait_for(|revoked| !revoked).await.unwrap();
        }
        if !returns {
            withdrawn().await;
            let (code, said, again) = ending(async { sent.await.unwrap() }).await;
            assert!(code == Code::Unavailable && again && said.contains("its copy is being unloaded"), "{code:?} {said}");
            world.unguarded().await;
            continue;
        }
        let (seen, mut got) = unbounded();
        let _runtime = runtime_on(HostNet.listen(addr).await.unwrap(), echo(seen));
        gate.0.send_replace(true);
        let answer = sent.await.unwrap().unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), got.next().await.unwrap().1);
        world.unguarded().await;
    }
}

/// A copy that is withdrawn under a request that was sent again ends it: nobody knows what became of that.
#[tokio::test]
async fn a_request_that_was_sent_again_is_not_sent_a_third_time_when_its_copy_goes() {
    let (behaviour, mut came) = silent();
    let (behaviour, count) = counted(behaviour);
    let first = runtime(behaviour.clone()).await;
    let addr = first.addr;
    let gate = Arc::new(Gate(tokio::sync::watch::Sender::new(true)));
    let mut world = world_over(Arc::clone(&gate) as Arc<dyn Net>, addr, Methods::default(), ProxyConfig::default()).await;
    let sent = tokio::spawn(world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))));
    came.next().await.unwrap();
    gate.0.send_replace(false);
    drop(first);
    while world.frontend.way().unwrap().server.state().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let _second = runtime_on(HostNet.listen(addr).await.unwrap(), behaviour);
    gate.0.send_replace(true);
    came.next().await.unwrap();
    world.models.revoked.send_replace(true);
    let (code, said, again) = ending(async { sent.await.unwrap() }).await;
    assert!(code == Code::Unavailable && again && said.contains("its copy is being unloaded"), "{code:?} {said}");
    assert_eq!(count.load(Ordering::SeqCst), 2);
    world.unguarded().await;
}

/// A body that goes on after `begun`.
fn open(begun: Bytes) -> Body {
    let frames = futures::stream::iter([Ok(Frame::data(begun))]).chain(futures::stream::pending());
    BodyExt::boxed(StreamBody::new(frames))
}

#[tokio::test]
async fn a_runtime_that_says_it_behind_a_head_of_its_own_is_understood() {
    let late = || {
        let mut response = well(vec![]);
        let mut last = trailers("5");
        last.insert("grpc-message", HeaderValue::from_static("gone"));
        *response.body_mut() = BodyExt::boxed(StreamBody::new(futures::stream::iter([Ok(Frame::trailers(last))])));
        response
    };
    let runtime = runtime(scripted(vec![late(), well(vec![message(b"x")])])).await;
    let mut world = world(runtime.addr).await;
    let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
    assert_eq!((got.status().0, got.body), (Code::Ok, message(b"x")));
    assert_eq!(*world.models.suspects.lock(), [ID]);
    world.unguarded().await;
}

#[tokio::test]
async fn a_head_comes_before_the_first_message_when_the_client_has_more_to_say() {
    let behaviour: Behaviour = Arc::new(|request| async move { Response::new(request.into_body().map_err(std::io::Error::other).boxed()) }.boxed());
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let (send, frames) = unbounded();
    let body = BodyExt::boxed(StreamBody::new(frames.map(|bytes: Bytes| Ok(Frame::data(bytes)))));
    let answer = world.client.send_request(call(INFER, &[("mm-vmodel-id", "digits")], body)).await.unwrap();
    send.unbounded_send(message(&naming("digits", 1))).unwrap();
    drop(send);
    let got = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(got, message(&[naming("digits", 1), field(1, ID.as_bytes())].concat()));
    world.unguarded().await;
}

#[tokio::test]
async fn a_head_does_not_wait_for_a_message_that_may_never_come() {
    let behaviour: Behaviour = Arc::new(|request| {
        async move {
            // All of the request has come, and the answer has begun: that is all, for as long as the call lasts.
            let _ = request.into_body().collect().await;
            Response::new(BodyExt::boxed(StreamBody::new(futures::stream::pending())))
        }
        .boxed()
    });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let answer = world.client.send_request(call(INFER, &[("mm-vmodel-id", "digits")], whole(message(&naming("digits", 1))))).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::OK);
    drop(answer);
    world.unguarded().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_runtime_does_not_find_of_a_model_that_it_holds_is_its_own_answer() {
    for size in [1, 300 * 1024] {
        let (behaviour, count) = counted(scripted(vec![badly("5", "no%20such%20version")]));
        let runtime = runtime(behaviour).await;
        let mut world = world(runtime.addr).await;
        *world.models.keeps.lock() = true;
        let got = world.call(INFER, &[], whole(message(&naming("digits", size)))).await;
        assert_eq!(got.status(), (Code::NotFound, "no such version".to_owned()));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        world.unguarded().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_look_at_a_model_takes_nobodys_turn() {
    let wrong = |request: &Request<Incoming>| request.headers().contains_key("x-wrong");
    let (seen, _got) = unbounded();
    let echo = echo(seen);
    let behaviour: Behaviour = Arc::new(move |request| if wrong(&request) { async { badly("5", "no") }.boxed() } else { echo(request) });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    *world.models.keeps.lock() = true;
    *world.models.turns.lock() = Some(Arc::new(tokio::sync::Semaphore::new(1)));
    let body = || whole(message(&naming("digits", 1)));
    world.call(INFER, &[], body()).await; // connects
    let since = world.frontend.clock.now();
    let wrong = tokio::spawn(world.client.send_request(call(INFER, &[("x-wrong", "1")], body())));
    while world.models.suspects.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.call(INFER, &[], body()).await.status().0, Code::Ok);
    let took = world.frontend.clock.now().saturating_duration_since(since);
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(wrong.await.unwrap().unwrap().headers()["grpc-status"], "5");
}

#[tokio::test]
async fn each_of_several_models_is_asked_by_the_rules_for_one() {
    let ids = [("mm-vmodel-id", "digits"), ("mm-vmodel-id", "digits")];
    for (case, first) in [("gone", badly("5", "gone")), ("reset", reset())] {
        let well = || well(vec![message(&field(7, b"x"))]);
        let runtime = runtime(scripted(vec![first, well(), well()])).await;
        let mut world = world(runtime.addr).await;
        let got = world.call(INFER, &ids, whole(message(b""))).await;
        assert_eq!((got.status().0, got.body), (Code::Ok, message(&[field(7, b"x"), field(7, b"x")].concat())), "{case}");
        world.unguarded().await;
    }
    let (_runtime, mut world, _seen) = echoing().await;
    world.models.load.lock().extend([Load::Fails(berth_residency::WaitError::Retired), Load::After(Duration::ZERO), Load::After(Duration::ZERO)]);
    assert_eq!(world.call(INFER, &ids, whole(message(b""))).await.status().0, Code::Ok, "one that went away in between");
}

#[tokio::test]
async fn a_request_of_the_rest_port_is_sent_by_the_same_rules() {
    let well = || {
        let answer = ModelInferResponse { model_name: ID.to_owned(), ..ModelInferResponse::default() };
        well(vec![message(&answer.encode_to_vec())])
    };
    for (case, first, suspects) in [("gone", badly("5", "gone"), 1), ("reset", reset(), 0)] {
        let runtime = runtime(scripted(vec![first, well()])).await;
        let world = world(runtime.addr).await;
        let deadline = world.frontend.clock.deadline_in(Duration::from_secs(20));
        let answer = world.frontend.infer(&Asked::Name("digits".into()), ModelInferRequest::default(), deadline).await;
        assert_eq!(answer.map(|answer| answer.model_name), Ok(ID.to_owned()), "{case}");
        assert_eq!(world.models.suspects.lock().len(), suspects, "{case}");
        world.unguarded().await;
    }

    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let world = world(addr).await;
    let deadline = world.frontend.clock.deadline_in(Duration::from_secs(20));
    let fault = world.frontend.infer(&Asked::Name("digits".into()), ModelInferRequest::default(), deadline).await.unwrap_err();
    assert!(matches!(&fault, Fault::RuntimeAway { .. }), "{fault}");
    assert!(matches!(fault.verdict(), Verdict { code: Code::Unavailable, retry_after: Some(_), .. }), "{fault}");
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_itself_says_to_a_request_of_the_rest_port_reaches_its_caller() {
    for (answer, code) in [(badly("5", "no%20such%20version"), Code::NotFound), (badly("9", "not%20now"), Code::FailedPrecondition)] {
        let said = answer.headers()["grpc-message"].to_str().unwrap().replace("%20", " ");
        let runtime = runtime(scripted(vec![answer])).await;
        let world = world(runtime.addr).await;
        *world.models.keeps.lock() = true;
        let deadline = world.frontend.clock.deadline_in(Duration::from_secs(20));
        let fault = world.frontend.infer(&Asked::Name("digits".into()), ModelInferRequest::default(), deadline).await.unwrap_err();
        assert_eq!(fault.verdict().code, code);
        assert!(fault.to_string().contains(&said), "{fault}");
        world.unguarded().await;
    }
}

#[tokio::test]
async fn a_runtime_hears_who_asks_for_metadata() {
    let (seen, mut got) = unbounded();
    let behaviour: Behaviour = Arc::new(move |request: Request<Incoming>| {
        let _ = seen.unbounded_send((request.uri().path().to_owned(), request.headers().clone()));
        async { well(vec![message(&ModelMetadataResponse { name: ID.to_owned(), ..ModelMetadataResponse::default() }.encode_to_vec())]) }.boxed()
    });
    let runtime = runtime(behaviour).await;
    let world = world(runtime.addr).await;
    let headers: HeaderMap = [(HeaderName::from_static("authorization"), HeaderValue::from_static("Bearer x"))].into_iter().collect();
    let deadline = world.frontend.clock.deadline_in(Duration::from_secs(20));
    let metadata = world.frontend.metadata_with(&Asked::Name("digits".into()), "", &headers, deadline).await.unwrap();
    assert_eq!(metadata.name, ID);
    let (path, passed) = got.next().await.unwrap();
    assert_eq!((path.as_str(), &passed["authorization"]), ("/inference.GRPCInferenceService/ModelMetadata", &HeaderValue::from_static("Bearer x")));
    assert_eq!(passed["mm-model-id"], ID);
}
