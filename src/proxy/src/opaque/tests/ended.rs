//! What is told of a copy whose model may have ended the runtime: whether it has computed and answered well.

use berth_residency::Ended;

use super::*;

const METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";

/// A message, and then this status.
fn ends(code: &str) -> Response<Body> {
    let mut answer = well(vec![]);
    let frames = [Frame::data(message(b"x")), Frame::trailers(trailers(code))].map(Ok);
    *answer.body_mut() = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
    answer
}

/// A message, and the rest when it comes.
fn pending() -> (UnboundedSender<Frame<Bytes>>, Response<Body>) {
    let (more, rest) = unbounded();
    let _ = more.unbounded_send(Frame::data(message(b"x")));
    let mut answer = well(vec![]);
    *answer.body_mut() = BodyExt::boxed(StreamBody::new(rest.map(Ok)));
    (more, answer)
}

#[tokio::test]
async fn only_an_answer_for_which_the_model_computed_and_that_the_runtime_calls_good_is_one() {
    const TWO: &[(&str, &str)] = &[("mm-vmodel-id", "digits"), ("mm-vmodel-id", "digits")];
    for (case, path, headers, answer, expected) in [
        ("an answer", INFER, &[][..], ends("0"), &[Ended::Well][..]),
        ("a method that nobody knows", OTHER, &TWO[..1], ends("0"), &[Ended::Well]),
        ("a question about the model", METADATA, &[], ends("0"), &[]),
        ("an error behind a message", INFER, &[], ends("13"), &[]),
        ("an error", INFER, &[], badly("13", "no"), &[]),
        ("an error of several models", INFER, TWO, ends("13"), &[]),
    ] {
        let runtime = runtime(scripted(vec![answer])).await;
        let mut world = world(runtime.addr).await;
        world.call(path, headers, whole(message(&naming("digits", 1)))).await;
        assert_eq!(*world.models.ended.lock(), expected, "{case}");
    }
    let (_runtime, mut world, _seen) = echoing().await;
    world.call(INFER, TWO, whole(message(&naming("digits", 1)))).await;
    let ended = world.models.ended.lock().clone();
    assert!(!ended.is_empty() && ended.iter().all(|ended| *ended == Ended::Well), "several models: {ended:?}");
}

#[tokio::test]
async fn an_answer_that_lasts_is_good_when_its_end_says_so_and_not_when_its_client_leaves() {
    for stays in [true, false] {
        let (more, answer) = pending();
        let runtime = runtime(scripted(vec![answer])).await;
        let mut world = world(runtime.addr).await;
        world.client.ready().await.unwrap();
        let mut response = world.client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(*world.models.ended.lock(), []);
        if stays {
            more.unbounded_send(Frame::trailers(trailers("0"))).unwrap();
            response.body_mut().frame().await.unwrap().unwrap();
        } else {
            drop(response);
        }
        world.unguarded().await;
        assert_eq!(world.models.ended.lock().len(), usize::from(stays));
    }
}
