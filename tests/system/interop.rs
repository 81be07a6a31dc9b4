//! Real clients and real servers: what passes between them is the same with Berth in the middle.
//!
//! Each test asks a server through a [`Front`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_proto::inference;
use berth_testkit::message::{field, text};
use berth_testkit::{
    Call, Client, GoEcho, Kind, MlServer, Order, Outcome, Parts, Quickstart, SeenMessage, Triton, TritonModels, examples_for_triton, python, root,
};
use berth_types::ByteSize;
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;

use crate::front::{self, Front, Reloading};

/// Any method: the echo server has them all.
const METHOD: &str = "/test.Anything/Do";
/// The model that calls of the echo server are for; it does not care.
const MODEL: &str = "m";
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
const METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";
const READY: &str = "/inference.GRPCInferenceService/ModelReady";
/// Longer than any call of these tests takes, unless it says how long.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// More than any message of these tests but those that are to be refused.
const LARGEST: ByteSize = ByteSize::mib(64);

async fn front(grpc: &str) -> Result<Front> {
    front::before(grpc, &[], LARGEST).await
}

async fn front_of_echo(server: &GoEcho) -> Result<Front> {
    front(&server.target()).await
}

fn order(kind: Kind) -> Order {
    Order::new(kind, METHOD).timeout(PATIENCE).metadata("mm-model-id", MODEL)
}

/// What the echo server reports of a call in its one answer.
fn reported(outcome: &Outcome) -> Result<Call> {
    Call::of(&outcome.good()?.json()?)
}

fn contents(messages: &[SeenMessage]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| message.bytes.clone().unwrap_or_default()).collect()
}

#[tokio::test]
async fn every_kind_of_call_passes_with_its_messages_in_order() -> Result<()> {
    let (parts, sockets) = (Parts::from_env()?, TempDir::new()?);
    for server in [GoEcho::start(&[]).await?, GoEcho::start_at(&sockets.path().join("echo"), &[]).await?] {
        let front = front_of_echo(&server).await?;
        let sent = [text(1, "m"), [text(1, "m"), text(2, "two")].concat(), Vec::new(), field(7, &[0xff; 300])];
        for client in Client::ALL {
            for kind in Kind::ALL {
                let many = matches!(kind, Kind::Client | Kind::Bidi);
                let sent = if many { &sent[..] } else { &sent[..1] };
                let whole = sent.iter().fold(order(kind), |order, message| order.message(message));
                let seen = reported(&client.call(&parts, &front.grpc, whole).await?).with_context(|| format!("{client:?} {kind:?}"))?;
                assert_eq!((seen.method.as_str(), contents(&seen.messages)), (METHOD, sent.to_vec()), "{client:?} {kind:?}");
                let answers = if matches!(kind, Kind::Server | Kind::Bidi) { 5 } else { 1 };
                let ask = order(kind).message(&sent[0]).echo(&json!({"answer": "none", "answers": answers, "answer_bytes": 70_000}));
                let outcome = client.call(&parts, &front.grpc, ask).await?;
                let sizes: Vec<usize> = outcome.answers.iter().map(|answer| answer.size).collect();
                assert_eq!((outcome.code, sizes), (0, vec![70_000; answers]), "{client:?} {kind:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn messages_pass_while_the_call_goes_on() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let sent: Vec<Vec<u8>> = ["a", "b", "c"].iter().map(|value| [text(1, "m"), text(2, value)].concat()).collect();
    for client in Client::ALL {
        // Each message is sent when the one before it has come back, so nobody on the way can have waited for the end.
        let turns = sent.iter().fold(order(Kind::Bidi), |order, message| order.message(message));
        let outcome = client.call(&parts, &front_of_echo(&server).await?.grpc, turns.in_turns().echo(&json!({"answer": "echo"}))).await?;
        assert_eq!((outcome.code, contents(&outcome.answers)), (0, sent.clone()), "{client:?}: {}", outcome.message);
    }
    Ok(())
}

#[tokio::test]
async fn metadata_passes_both_ways_with_bytes_and_repeated_names() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let wanted = json!({
        "header": {"h-text": ["one", "two"], "h-bytes-bin": ["AP8BAg=="]},
        "trailer": {"t-text": ["last"], "t-bytes-bin": ["/wD+"]},
    });
    for client in Client::ALL {
        for kind in Kind::ALL {
            let ask = order(kind).message(text(1, "m")).echo(&wanted).metadata("x-text", "one").metadata("x-text", "two, three");
            let ask = ask.metadata("x-bytes-bin", [0, 255, 10, 13]).metadata("authorization", "Bearer nobody");
            let outcome = client.call(&parts, &front_of_echo(&server).await?.grpc, ask).await?;
            let seen = reported(&outcome)?;
            for (name, values) in [("x-text", vec!["one", "two, three"]), ("x-bytes-bin", vec!["AP8KDQ=="]), ("authorization", vec!["Bearer nobody"])]
            {
                // One name with several values may become one value, separated by commas: both are the same to HTTP.
                assert_eq!(seen.metadata.get(name).map(|seen| seen.join(", ")), Some(values.join(", ")), "{client:?} {kind:?}");
            }
            for (given, place) in [(&outcome.header, "header"), (&outcome.trailer, "trailer")] {
                for (name, values) in wanted[place].as_object().context("an object")? {
                    assert_eq!(json!(given.get(name)), *values, "{client:?} {kind:?}: {place} {name}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_code_passes_unchanged_with_its_words_and_details() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    // A google.rpc.Status: code 9, a message, and one detail of a type that nobody knows.
    let detail = [text(1, "type.test/Unknown"), field(2, &[1, 2, 3, 0xff])].concat();
    let status = [vec![0x08, 9], text(2, "not now"), field(3, &detail)].concat();
    for client in Client::ALL {
        let mut orders = Vec::new();
        for code in 1..=16 {
            for kind in [Kind::Unary, Kind::Bidi] {
                let wanted = json!({"answer": "none", "code": code, "message": format!("code {code}: 100% \u{e9}\n"), "trailer": {"t": ["kept"]}});
                orders.push(order(kind).message(text(1, "m")).echo(&wanted));
            }
        }
        let outcomes = client.calls(&parts, &front_of_echo(&server).await?.grpc, &orders).await?;
        for (at, outcome) in outcomes.iter().enumerate() {
            let code = i64::try_from(at / 2)? + 1;
            assert_eq!((outcome.code, &outcome.message), (code, &format!("code {code}: 100% \u{e9}\n")), "{client:?}");
            assert_eq!(outcome.trailer.get("t").map(Vec::as_slice), Some(&["kept".to_owned()][..]), "{client:?} {code}");
        }
        for answers in [0, 2] {
            let wanted = json!({"answer": "none", "answers": answers, "answer_bytes": 10, "status": STANDARD.encode(&status)});
            let outcome = client.call(&parts, &front_of_echo(&server).await?.grpc, order(Kind::Server).message(text(1, "m")).echo(&wanted)).await?;
            assert_eq!((outcome.code, outcome.message.as_str(), outcome.answers.len()), (9, "not now", answers), "{client:?}");
            assert_eq!(outcome.status, status, "{client:?}: the details are the same bytes");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_server_sees_what_is_left_of_the_deadline_and_that_it_has_passed() -> Result<()> {
    let (parts, mut server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let front = front_of_echo(&server).await?;
    let target = &front.grpc;
    for client in Client::ALL {
        let within = Duration::from_secs(50);
        let seen = reported(&client.call(&parts, target, order(Kind::Unary).message(text(1, "m")).timeout(within)).await?)?;
        let left = seen.deadline.context("the server knows a deadline")?;
        assert!(left <= within && left > within / 2, "{client:?}: {left:?} are left of {within:?}");
        let endless = Order::new(Kind::Unary, METHOD).metadata("mm-model-id", MODEL).message(text(1, "m"));
        // Nobody may make a deadline longer; one where there was none is allowed.
        reported(&client.call(&parts, target, endless).await?)?;

        for kind in Kind::ALL {
            let name = format!("late {client:?} {kind:?}");
            let short = order(kind).message(text(1, "m")).timeout(Duration::from_millis(400)).named(&name);
            let outcome = client.call(&parts, target, short.echo(&json!({"answer": "none", "hold": true}))).await?;
            assert_eq!(outcome.code, 4, "{name}: {}", outcome.message);
            let seen = server.ended(&name).await?;
            assert!(["deadline", "canceled"].contains(&seen.given_up.as_str()), "{name}: {seen:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_server_sees_that_a_caller_gives_up() -> Result<()> {
    let (parts, mut server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let front = front_of_echo(&server).await?;
    let target = &front.grpc;
    for client in Client::ALL {
        for kind in Kind::ALL {
            for after in [0, 2] {
                if after > 0 && matches!(kind, Kind::Unary | Kind::Client) {
                    continue; // there is one answer, and then nothing is left to give up
                }
                // Without a deadline, so that nothing but the caller can end it.
                let name = format!("given up {client:?} {kind:?} {after}");
                let ask = Order::new(kind, METHOD).metadata("mm-model-id", MODEL).message(text(1, "m")).named(&name).cancelled_after(after);
                let outcome =
                    client.call(&parts, target, ask.echo(&json!({"answer": "none", "answers": after, "answer_bytes": 9, "hold": true}))).await?;
                assert_eq!((outcome.code, outcome.answers.len()), (1, after), "{name}: {}", outcome.message);
                assert_eq!(server.ended(&name).await?.given_up, "canceled", "{name}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_killed_is_seen_to_give_up() -> Result<()> {
    let (parts, mut server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let front = front_of_echo(&server).await?;
    let target = &front.grpc;
    let held = order(Kind::Bidi).message(text(1, "m")).named("killed").stays_open().echo(&json!({"answer": "none", "hold": true}));
    let mut client = Client::Go.start(&parts, target, &[held])?;
    server.begun("killed").await?;
    client.kill().await?;
    assert_eq!(server.ended("killed").await?.given_up, "canceled");
    Ok(())
}

#[tokio::test]
async fn compressed_messages_pass_both_ways() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let front = front_of_echo(&server).await?;
    let target = &front.grpc;
    for client in Client::ALL {
        for kind in Kind::ALL {
            let message = [text(1, "m"), field(9, &[7; 100_000])].concat();
            let ask = order(kind).message(&message).compressed("gzip").echo(&json!({"answer": "echo"}));
            let outcome = client.call(&parts, target, ask).await?;
            let answer = outcome.good().with_context(|| format!("{client:?} {kind:?}"))?;
            assert_eq!(answer.size, message.len(), "{client:?} {kind:?}");
        }
    }
    Ok(())
}

/// Ways to put an id into a message: whatever is there, the server is to read the one that the call was for.
fn ids() -> Vec<(&'static str, Vec<u8>)> {
    let payload = field(7, &[1; 5000]);
    vec![
        ("first", [text(1, "m"), payload.clone()].concat()),
        ("last", [payload.clone(), text(1, "m")].concat()),
        ("twice", [text(1, "other"), payload.clone(), text(1, "m")].concat()),
        ("many times", [vec![text(1, "other"); 50].concat(), text(1, "m")].concat()),
        ("absent", payload),
        ("empty message", Vec::new()),
    ]
}

#[tokio::test]
async fn the_id_is_where_the_server_reads_it() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&[]).await?);
    let method = METHOD.trim_start_matches('/');
    let plain = front::before(&server.target(), &[(method, &[1])], LARGEST).await?;
    let inner = front::before(&server.target(), &[(method, &[3, 1])], LARGEST).await?;
    for client in Client::ALL {
        for compression in ["", "gzip"] {
            for (case, message) in ids() {
                let nested = if message.is_empty() { Vec::new() } else { [field(3, &message), text(4, "after")].concat() };
                for (front, path, message) in [(&plain, json!([1]), message), (&inner, json!([3, 1]), nested)] {
                    let ask = order(Kind::Unary).message(&message).compressed(compression);
                    let seen = reported(&client.call(&parts, &front.grpc, ask.echo(&json!({"id_path": path}))).await?)?;
                    let read = seen.messages[0].id.as_deref();
                    assert_eq!(read, Some(MODEL), "{client:?}: id {case} at {path}, compression {compression:?}");
                    let kept = seen.messages[0].bytes.as_deref().context("it is small")?;
                    assert!(kept.starts_with(&message), "{client:?}: id {case} at {path}: what was sent is kept");
                }
            }
        }
    }
    // In a nested message that occurs twice the id counts wherever it is: parsers merge them.
    let split = [field(3, &text(2, "x")), field(3, &text(1, "m")), field(3, &text(2, "y"))].concat();
    let ask = order(Kind::Unary).message(&split).echo(&json!({"id_path": [3, 1]}));
    let seen = reported(&Client::Go.call(&parts, &inner.grpc, ask).await?)?;
    assert_eq!(seen.messages[0].id.as_deref(), Some("m"));
    Ok(())
}

#[tokio::test]
async fn a_message_of_16_mib_passes_and_what_is_too_large_is_told_apart() -> Result<()> {
    let (parts, server) = (Parts::from_env()?, GoEcho::start(&["-max-receive=17000000"]).await?);
    let front = front_of_echo(&server).await?;
    let target = &front.grpc;
    // The largest that the port takes by default, the id included.
    let (head, tail, room) = (text(1, "m"), text(1, "m"), 16 * MIB - 32);
    for client in Client::ALL {
        for compression in ["", "gzip"] {
            let ask = order(Kind::Unary).padded(&head, room, &tail).compressed(compression);
            let seen = reported(&client.call(&parts, target, ask).await?).with_context(|| format!("{client:?} {compression:?}"))?;
            assert!(seen.messages[0].size >= room && seen.messages[0].id.as_deref() == Some("m"), "{client:?} {compression:?}: {seen:?}");
        }
        let large = json!({"answer": "none", "answers": 1, "answer_bytes": 16 * MIB});
        let outcome = client.call(&parts, target, order(Kind::Unary).message(&head).echo(&large)).await?;
        assert_eq!((outcome.code, outcome.answers.first().map(|answer| answer.size)), (0, Some(16 * MIB)), "{client:?}: {}", outcome.message);

        let too_large = order(Kind::Unary).padded(&head, 17 * MIB, []);
        let outcome = client.call(&parts, target, too_large).await?;
        assert_eq!(outcome.code, 8, "{client:?}: the receiver refuses it: {}", outcome.message);
        let refusing = order(Kind::Unary).message(&head).takes_at_most(MIB).echo(&large);
        let outcome = client.call(&parts, target, refusing).await?;
        assert_eq!(outcome.code, 8, "{client:?}: the client refuses it: {}", outcome.message);
    }
    Ok(())
}

/// A whole Triton with the three models of the testkit.
async fn triton(parts: &Parts) -> Result<(Triton, TritonModels)> {
    let models = TritonModels::new()?;
    models.echo("echo")?;
    models.repeat("repeat")?;
    models.slow("slow")?;
    let triton = Triton::start(parts, models.folder()).await?;
    for name in ["echo", "repeat", "slow"] {
        triton.load(name).await?;
    }
    Ok((triton, models))
}

fn script(name: &str) -> PathBuf {
    root().join("tests/system").join(name)
}

#[tokio::test]
async fn tritonclient_gets_from_triton_what_it_should() -> Result<()> {
    let parts = Parts::from_env()?;
    let (mut triton, _models) = triton(&parts).await?;
    let front = front(&triton.grpc()).await?;
    let said = python(&parts, &script("triton.py"), ["--grpc", &front.grpc, "--http", &front.http]).await;
    let said = said.with_context(|| triton.process().written())?;
    let right = said.lines().filter(|line| line.starts_with("right: ")).count();
    assert_eq!(right, 19, "{said}");
    // The client that gave up after half a second is known to the model.
    triton.process().line("the end of the late call", PATIENCE, |line| line.contains("slow: cancelled timed-out")).await?;
    Ok(())
}

#[tokio::test]
async fn triton_sees_that_a_caller_gives_up() -> Result<()> {
    let parts = Parts::from_env()?;
    let (mut triton, _models) = triton(&parts).await?;
    let front = front(&triton.grpc()).await?;
    let request = inference::ModelInferRequest {
        model_name: "slow".to_owned(),
        id: "unary".to_owned(),
        inputs: vec![inference::model_infer_request::InferInputTensor {
            name: "SECONDS".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1],
            ..Default::default()
        }],
        raw_input_contents: vec![60f32.to_le_bytes().to_vec().into()],
        ..Default::default()
    };
    let mut client = Client::Go.start(&parts, &front.grpc, &[Order::new(Kind::Unary, INFER).message(request.encode_to_vec())])?;
    triton.process().line("its begin", PATIENCE, |line| line.contains("slow: begun unary")).await?;
    client.kill().await?;
    triton.process().line("its end", PATIENCE, |line| line.contains("slow: cancelled unary")).await?;
    Ok(())
}

#[tokio::test]
async fn every_example_that_triton_serves_answers_rightly_through_tritonclient() -> Result<()> {
    let (parts, quickstart) = (Parts::from_env()?, Quickstart::committed());
    let names = ["diabetes", "digits-conv", "digits-even", "iris"];
    let models = examples_for_triton(&quickstart, &names)?;
    let triton = Triton::start(&parts, models.folder()).await?;
    for name in names {
        triton.load(name).await?;
    }
    let front = front(&triton.grpc()).await?;
    let folder = quickstart.folder().display().to_string();
    let args = ["--grpc", &front.grpc, "--http", &front.http, "--folder", &folder, "--more"].into_iter().chain(names);
    let said = python(&parts, &script("clients.py"), args).await?;
    assert_eq!(said.lines().filter(|line| line.starts_with("right: ")).count(), 12 * names.len(), "{said}");
    triton.unload("iris").await
}

fn infer(model: &str, id: &str) -> Vec<u8> {
    let tensor = inference::model_infer_request::InferInputTensor {
        name: "IN_FP32".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 4],
        contents: Some(inference::InferTensorContents { fp32_contents: vec![5.9, 3.0, 5.1, 1.8], ..Default::default() }),
        ..Default::default()
    };
    inference::ModelInferRequest { model_name: model.to_owned(), id: id.to_owned(), inputs: vec![tensor], ..Default::default() }.encode_to_vec()
}

/// A request for `model` whose name is given in several ways.
fn namings(model: &str) -> Vec<(&'static str, Vec<u8>)> {
    let rest = infer("", "an-id");
    vec![
        ("first", infer(model, "an-id")),
        ("last", [rest.clone(), text(1, model)].concat()),
        // The first counts: it is what the call is for, and what the server reads last.
        ("twice", [text(1, model), rest, text(1, "nobody")].concat()),
    ]
}

#[tokio::test]
async fn mlserver_answers_both_clients_however_the_model_is_named() -> Result<()> {
    let parts = Parts::from_env()?;
    let server = MlServer::start(&parts).await?;
    server.load_iris("iris").await?;
    server.load_echo("echo").await?;
    let front = front(&server.grpc()).await?;
    for client in Client::ALL {
        for compression in ["", "gzip"] {
            for (case, request) in namings("iris") {
                let ask = Order::new(Kind::Unary, INFER).message(request).timeout(PATIENCE).compressed(compression);
                let outcome = client.call(&parts, &front.grpc, ask).await?;
                let answer = outcome.good().with_context(|| format!("{client:?} {case} {compression:?}"))?;
                let answer = inference::ModelInferResponse::decode(answer.bytes.as_deref().unwrap_or_default())?;
                assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("iris", "an-id"), "{client:?} {case}");
                let label = answer.outputs[0].contents.as_ref().map(|contents| contents.int64_contents.clone());
                assert_eq!(label, Some(vec![2]), "{client:?} {case}: {answer:?}");
            }
        }
        // MLServer's stream holds plain answers, not Triton's.
        let talk = (0..3).fold(Order::new(Kind::Bidi, STREAM_INFER).timeout(PATIENCE), |order, at| order.message(infer("echo", &at.to_string())));
        let outcome = client.call(&parts, &front.grpc, talk).await?;
        assert_eq!((outcome.code, outcome.answers.len()), (0, 3), "{client:?}: {}", outcome.message);
        for answer in &outcome.answers {
            // Each has the first request's id: that is how MLServer answers.
            let answer = inference::ModelInferResponse::decode(answer.bytes.as_deref().unwrap_or_default())?;
            assert_eq!((answer.id.as_str(), answer.model_name.as_str()), ("0", "echo"), "{client:?}");
            assert_eq!(answer.outputs[0].contents.as_ref().map(|contents| contents.fp32_contents.len()), Some(4), "{client:?}: {answer:?}");
        }
    }
    server.unload("iris").await?;
    Ok(())
}

#[tokio::test]
async fn triton_answers_both_clients_however_the_model_is_named() -> Result<()> {
    let parts = Parts::from_env()?;
    let (triton, _models) = triton(&parts).await?;
    let front = front(&triton.grpc()).await?;
    let request = |model: &str| {
        let mut request = inference::ModelInferRequest::decode(&*infer(model, "an-id")).unwrap_or_default();
        request.inputs[0].shape = vec![4];
        request.encode_to_vec()
    };
    for client in Client::ALL {
        let named = [
            ("first", request("echo")),
            ("last", [request(""), text(1, "echo")].concat()),
            ("twice", [text(1, "echo"), request(""), text(1, "nobody")].concat()),
        ];
        for (case, request) in named {
            let outcome = client.call(&parts, &front.grpc, Order::new(Kind::Unary, INFER).message(&request).timeout(PATIENCE)).await?;
            let answer = outcome.good().with_context(|| format!("{client:?} {case}"))?;
            let answer = inference::ModelInferResponse::decode(answer.bytes.as_deref().unwrap_or_default())?;
            assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("echo", "an-id"), "{client:?} {case}");
            let talk = Order::new(Kind::Bidi, STREAM_INFER).message(&request).message(&request).timeout(PATIENCE);
            let outcome = client.call(&parts, &front.grpc, talk).await?;
            assert_eq!((outcome.code, outcome.answers.len()), (0, 2), "{client:?} {case}: {}", outcome.message);
        }
    }
    Ok(())
}

/// How servers say that a model is not there, which whoever stands before them has to know: code, words and answers. Over a
/// stream Triton says it in a message of a call that goes well.
#[tokio::test]
async fn servers_say_that_they_do_not_know_a_model_as_recorded() -> Result<()> {
    let parts = Parts::from_env()?;
    let (triton, models) = triton(&parts).await?;
    models.slow("unloaded")?;
    let mlserver = MlServer::start(&parts).await?;
    mlserver.load_echo("unloaded").await?;
    mlserver.unload("unloaded").await?;
    triton.load("unloaded").await?;
    triton.unload("unloaded").await?;
    let service = "/inference.GRPCInferenceService/";
    let mut told = Vec::new();
    for (server, target) in [("Triton", triton.grpc()), ("MLServer", mlserver.grpc())] {
        for model in ["unknown", "unloaded"] {
            for (method, kind, message) in [
                ("ModelInfer", Kind::Unary, infer(model, "")),
                ("ModelStreamInfer", Kind::Bidi, infer(model, "")),
                ("ModelReady", Kind::Unary, text(1, model)),
                ("ModelMetadata", Kind::Unary, text(1, model)),
            ] {
                let ask = Order::new(kind, &format!("{service}{method}")).message(message).timeout(PATIENCE);
                let outcome = Client::Go.call(&parts, &target, ask).await?;
                let answers: Vec<String> = outcome.answers.iter().map(|answer| readable(answer.bytes.as_deref().unwrap_or_default())).collect();
                told.push(format!("{server} {model} {method}: {} {:?} {answers:?}", outcome.code, outcome.message));
            }
        }
    }
    assert_eq!(told.join("\n"), include_str!("unknown_models.txt").trim_end());
    Ok(())
}

/// The printable characters of a message.
fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|character| character.is_ascii_graphic() || *character == ' ').collect()
}

/// The models of a server are unloaded behind Berth's back; whatever the server says of them then, a call finds them.
#[tokio::test]
async fn what_triton_has_lost_is_loaded_again_whichever_way_it_is_asked_for() -> Result<()> {
    let parts = Parts::from_env()?;
    let (triton, _models) = triton(&parts).await?;
    let triton = Arc::new(triton);
    let reloading = {
        let triton = Arc::clone(&triton);
        Reloading::by(move |model| {
            let triton = Arc::clone(&triton);
            Box::pin(async move { triton.load(model.as_str()).await })
        })
    };
    let front = front::of_models(reloading.clone(), &triton.grpc(), &[], LARGEST).await?;
    let mut request = inference::ModelInferRequest::decode(&*infer("echo", "an-id"))?;
    request.inputs[0].shape = vec![4];
    let request = request.encode_to_vec();
    let mut loads = 0;
    for client in Client::ALL {
        for (method, kind, message) in [
            (INFER, Kind::Unary, &request),
            (STREAM_INFER, Kind::Bidi, &request),
            (METADATA, Kind::Unary, &text(1, "echo")),
            (READY, Kind::Unary, &text(1, "echo")),
        ] {
            triton.unload("echo").await?;
            let talk = Order::new(kind, method).message(message).timeout(PATIENCE);
            let talk = if kind == Kind::Bidi { talk.message(message) } else { talk };
            let outcome = client.call(&parts, &front.grpc, talk).await?;
            assert_eq!(outcome.code, 0, "{client:?} {method}: {}", outcome.message);
            loads += usize::from(method != READY); // which is answered for a model that a request would load: it can serve
            assert_eq!(reloading.loads(), loads, "{client:?} {method}");
            for answer in &outcome.answers {
                let bytes = answer.bytes.as_deref().unwrap_or_default();
                if method == STREAM_INFER {
                    let answer = inference::ModelStreamInferResponse::decode(bytes)?;
                    let id = answer.infer_response.map(|answer| answer.id);
                    assert_eq!((answer.error_message.as_str(), id.as_deref()), ("", Some("an-id")), "{client:?}");
                } else if method == READY {
                    assert!(inference::ModelReadyResponse::decode(bytes)?.ready, "{client:?}");
                }
            }
            assert_eq!(outcome.answers.len(), if kind == Kind::Bidi { 2 } else { 1 }, "{client:?} {method}");
        }
        triton.load("echo").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_mlserver_has_lost_is_loaded_again_whichever_way_it_is_asked_for() -> Result<()> {
    let parts = Parts::from_env()?;
    let server = Arc::new(MlServer::start(&parts).await?);
    server.load_echo("echo").await?;
    let reloading = {
        let server = Arc::clone(&server);
        Reloading::by(move |model| {
            let server = Arc::clone(&server);
            Box::pin(async move { server.load_echo(model.as_str()).await })
        })
    };
    let front = front::of_models(reloading.clone(), &server.grpc(), &[], LARGEST).await?;
    let mut loads = 0;
    for client in Client::ALL {
        for (method, kind, message) in [
            (INFER, Kind::Unary, infer("echo", "")),
            (STREAM_INFER, Kind::Bidi, infer("echo", "")),
            (METADATA, Kind::Unary, text(1, "echo")),
            (READY, Kind::Unary, text(1, "echo")),
        ] {
            server.unload("echo").await?;
            let outcome = client.call(&parts, &front.grpc, Order::new(kind, method).message(&message).timeout(PATIENCE)).await?;
            outcome.good().with_context(|| format!("{client:?} {method}"))?;
            loads += usize::from(method != READY);
            assert_eq!(reloading.loads(), loads, "{client:?} {method}");
        }
        server.load_echo("echo").await?;
    }
    Ok(())
}
