//! What clients can hold up: nothing beyond their own calls, and no longer than their time.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Buf as _;

use super::*;

/// Fails instead of waiting for ever.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let clock = Clock::system();
    clock.until(clock.deadline_in(Duration::from_secs(30)), future).await.expect(what)
}

/// An answer that never ends, faster than anybody reads it.
fn endless() -> Response<Body> {
    let frames = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024]))));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_with_its_deadline_or_its_copy_and_lets_go_of_both() {
    for revoked in [false, true] {
        let runtime = runtime(Arc::new(|_| async { endless() }.boxed())).await;
        let world = world(runtime.addr).await;
        let mut client = client(world.addr, 0).await;
        let timeout: &[(&'static str, &str)] = if revoked { &[] } else { &[("grpc-timeout", "80m")] };
        let answer = client.send_request(call(INFER, timeout, whole(message(&naming("digits", 1))))).await.unwrap();
        assert_eq!(*world.models.guards.borrow(), 1);
        if revoked {
            world.models.revoked.send_replace(true);
        }
        soon("the guard is let go of", world.unguarded()).await;
        drop(answer);
    }
}

#[tokio::test]
async fn an_answer_that_is_always_ready_ends_with_its_deadline_too() {
    let runtime = runtime(Arc::new(|_| async { endless() }.boxed())).await;
    let mut world = world(runtime.addr).await;
    let request = call(INFER, &[("grpc-timeout", "80m")], whole(message(&naming("digits", 1))));
    let mut answer = world.client.send_request(request).await.unwrap().into_body();
    let trailers = soon("it ends", async {
        loop {
            if let Ok(trailers) = answer.frame().await.unwrap().unwrap().into_trailers() {
                return trailers;
            }
        }
    });
    assert_eq!(Status::from_header_map(&trailers.await).unwrap().code(), Code::DeadlineExceeded);
    world.unguarded().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_for_so_long_is_given_up() {
    let runtime = runtime(Arc::new(|_| async { endless() }.boxed())).await;
    let config = ProxyConfig { unread_timeout: Duration::from_millis(80), ..ProxyConfig::default() };
    let world = world_with(runtime.addr, Methods::default(), config).await;
    let mut client = client(world.addr, 0).await;
    let answer = client.send_request(call(INFER, &[], whole(message(&naming("digits", 1))))).await.unwrap();
    soon("the guard is let go of", world.unguarded()).await;
    drop(answer);
    soon("the call is counted", async {
        loop {
            if world.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "CANCELLED")]) == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_small_answer_lets_go_of_its_copy_before_it_is_read() {
    let (_runtime, world, _seen) = echoing().await;
    let mut client = client(world.addr, 0).await;
    let answer = client.send_request(call(INFER, &[], whole(message(&naming("digits", 10_000))))).await.unwrap();
    soon("the guard is let go of", world.unguarded()).await;
    drop(answer);
}

#[tokio::test]
async fn a_client_who_waits_for_a_slow_runtime_is_not_taken_for_one_who_does_not_read() {
    let behaviour: Behaviour = Arc::new(|_| {
        async {
            let last = futures::stream::once(async {
                Clock::system().sleep(Duration::from_millis(200)).await;
                Ok(Frame::trailers(trailers("0")))
            });
            let first = futures::stream::iter([Ok(Frame::data(message(b"first")))]);
            Response::new(BodyExt::boxed(StreamBody::new(first.chain(last))))
        }
        .boxed()
    });
    let runtime = runtime(behaviour).await;
    let config = ProxyConfig { unread_timeout: Duration::from_millis(20), ..ProxyConfig::default() };
    let mut world = world_with(runtime.addr, Methods::default(), config).await;
    let got = world.call(INFER, &[], whole(message(&naming("digits", 1)))).await;
    assert_eq!((got.status().0, got.body), (Code::Ok, message(b"first")));
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_other_call() {
    let (seen, _got) = unbounded();
    let echo = echo(seen);
    let behaviour: Behaviour = Arc::new(move |request| if request.uri().path() == OTHER { async { endless() }.boxed() } else { echo(request) });
    let runtime = runtime(behaviour).await;
    let mut world = world(runtime.addr).await;
    let mut client = client(world.addr, 0).await;
    let mut unread = Vec::new();
    for _ in 0..30 {
        client.ready().await.unwrap();
        unread.push(client.send_request(call(OTHER, &[("mm-vmodel-id", "digits")], whole(message(b"x")))).await.unwrap());
    }
    // As much as the windows take has come by then: what is asked for afterwards queues behind it.
    for _ in 0..20 {
        let sent = message(&naming("digits", 100_000));
        let got = soon("a call beside them is answered", world.call(INFER, &[], whole(sent))).await;
        assert_eq!(got.status().0, Code::Ok);
    }
    assert_eq!(unread.len(), 30);
}

#[tokio::test]
async fn what_several_models_answer_counts_until_it_is_read() {
    let behaviour: Behaviour = Arc::new(|_| async { well(vec![message(&field(7, &[7; 20_000]))]) }.boxed());
    let runtime = runtime(behaviour).await;
    let world = world(runtime.addr).await;
    let mut client = client(world.addr, 0).await;
    let ids = [("mm-vmodel-id", "digits"); 64];
    let answer = client.send_request(call(INFER, &ids, whole(message(b"")))).await.unwrap();
    world.unguarded().await;
    let held = world.frontend.bodies.taken();
    assert!((64 * 20_000..2 * 64 * 20_000).contains(&held), "{held}");
    drop((answer, client));
    soon("it is given back", async {
        while world.frontend.bodies.taken() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_for_several_models_that_would_swallow_the_id_reaches_no_runtime() {
    let (_runtime, mut world, mut seen) = echoing().await;
    let ids = [("mm-model-id", ID); 2];
    let other = field(1, b"other__isvc-2222222222");
    for (case, end) in [
        ("a cut string", &b"\x3a\x19"[..]),
        ("a cut number", b"\x10\x80"),
        ("a cut fixed number", b"\x11\x00"),
        ("a cut tag", b"\x80"),
        ("a group without an end", b"\x1b"),
    ] {
        let sent = [&other, end].concat();
        let (code, said) = world.call(INFER, &ids, whole(message(&sent))).await.status();
        assert!(code == Code::InvalidArgument && said.contains("no protobuf message"), "{case}: {code:?} {said}");
    }
    world.unguarded().await;
    assert_eq!(world.call(INFER, &ids, whole(message(&other))).await.status().0, Code::Ok);
    let first = message(&[other, field(1, ID.as_bytes())].concat());
    assert_eq!(seen.next().await.unwrap().1, first, "the first that the runtime has seen");
}

#[tokio::test]
async fn where_nothing_is_written_into_a_message_it_names_one_model_only() {
    let (seen, mut got) = unbounded();
    let runtime = runtime(echo(seen)).await;
    let config = r#"{"rpcConfigs": {"some.Service/Method": {"idExtractionPath": [3, 1], "vModelId": true}}}"#;
    let infos = BTreeMap::from([("some.Service/Method".to_owned(), vec![])]);
    let methods = Methods::of_runtime(&infos, false).unwrap().within(&crate::methods::DataPlane::parse(config).unwrap());
    let mut world = world_with(runtime.addr, methods, ProxyConfig::default()).await;
    let named = |names: &[&str]| field(3, &names.iter().flat_map(|name| field(1, name.as_bytes())).collect::<Vec<_>>());
    for (case, sent) in [
        ("in one message", named(&["digits", "other"])),
        ("in two", [named(&["digits"]), field(7, &[7; 100_000]), named(&["other"])].concat()),
        ("none in the end", [named(&["digits"]), named(&[""])].concat()),
    ] {
        let (code, said) = world.call(OTHER, &[], whole(message(&sent))).await.status();
        assert!(code == Code::InvalidArgument && said.contains("another"), "{case}: {code:?} {said}");
    }
    let (code, said) = world.call(OTHER, &[("mm-vmodel-id", "digits")], whole([message(b""), message(&named(&["other"]))].concat())).await.status();
    assert!(code == Code::InvalidArgument && said.contains("other"), "named in the second message alone: {code:?} {said}");
    let fine = message(&[named(&["digits"]), named(&["digits"])].concat());
    assert_eq!(world.call(OTHER, &[], whole(fine.clone())).await.status().0, Code::Ok);
    assert_eq!(got.next().await.unwrap().1, fine, "the first that the runtime has seen whole");
}

/// Passes on what a client sends, in frames of `size` bytes; how often it rested, and what came out.
async fn rests(body: Bytes, size: usize, encoding: berth_splice::Encoding, find: bool) -> (usize, usize) {
    use http_body::Body as _;
    let budget = crate::budget::Budget::of(ByteSize::mib(64));
    let frames: Vec<_> = body.chunks(size).map(|frame| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(frame)))).collect();
    let rests = AtomicUsize::new(0);
    let counted = |waits: bool| {
        rests.fetch_add(usize::from(waits), Ordering::Relaxed);
    };
    let body = StreamBody::new(futures::stream::iter(frames));
    let request = super::super::passing::Request::new(body, &budget, ByteSize::mib(32), Some(encoding));
    let path = berth_splice::FieldPath::new(&[1]).unwrap();
    if find {
        let mut finding = Box::pin(request.find(&path));
        std::future::poll_fn(|cx| {
            let polled = finding.as_mut().poll(cx);
            counted(polled.is_pending());
            polled.map(|found| assert_eq!(found.unwrap().as_deref(), Some("digits")))
        })
        .await;
        drop(finding);
        return (rests.load(Ordering::Relaxed), 0);
    }
    let mut passing = request.body(berth_splice::suffix(&path, ID), None).unwrap();
    let mut out = 0;
    while let Some(frame) = std::future::poll_fn(|cx| {
        let polled = std::pin::Pin::new(&mut passing).poll_frame(cx);
        counted(polled.is_pending());
        polled
    })
    .await
    {
        out += frame.unwrap().into_data().unwrap().remaining();
    }
    (rests.load(Ordering::Relaxed), out)
}

#[tokio::test]
async fn what_inflates_to_much_is_inflated_in_turns_with_others() {
    use std::io::Write as _;
    let plain = [field(7, &vec![7; 16 << 20]), field(1, b"digits")].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut framed = BytesMut::from(&message(&gzip.finish().unwrap())[..]);
    framed[0] = 1;
    let framed = framed.freeze();
    for find in [true, false] {
        let (rests, out) = rests(framed.clone(), 1 << 20, berth_splice::Encoding::Gzip, find).await;
        assert!((16..1000).contains(&rests), "{rests} rests, finding: {find}");
        assert!(find || out == 5 + plain.len() + 2 + ID.len());
    }
    let small = rests(message(&naming("digits", 100_000)), 1000, berth_splice::Encoding::Gzip, false).await;
    assert_eq!(small.0, 0, "what is not compressed is not held up");
}
