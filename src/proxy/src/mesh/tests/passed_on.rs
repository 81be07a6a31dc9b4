//! What a controller says is what an agent's caller hears; and what that hears when the controller says nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use berth_proto::mmesh::model_status_info::ModelStatus;
use berth_telemetry::{Dialed, HostNet, Listener, Net, Peer};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::world::{Said, Served, agent, agent_of, controller, framed, manager, said};
use crate::mesh::port::Elsewhere;
use crate::mesh::*;
use crate::scripted::Nobody;

fn info(path: &str) -> Option<mmesh::ModelInfo> {
    Some(mmesh::ModelInfo { r#type: "mt:onnx".to_owned(), path: path.to_owned(), key: String::new() })
}

fn register(id: &str, path: &str) -> mmesh::RegisterModelRequest {
    mmesh::RegisterModelRequest { model_id: id.to_owned(), model_info: info(path), ..Default::default() }
}

fn set(name: &str, target: &str) -> mmesh::SetVModelRequest {
    mmesh::SetVModelRequest { v_model_id: name.to_owned(), target_model_id: target.to_owned(), ..Default::default() }
}

fn status_of(id: &str) -> mmesh::GetStatusRequest {
    mmesh::GetStatusRequest { model_id: id.to_owned() }
}

/// A life of some models and names, call by call: the method, its message and the code that is expected.
fn life() -> Vec<(&'static str, Vec<u8>, Code)> {
    let loaded = |id: &str| mmesh::EnsureLoadedRequest { model_id: id.to_owned(), sync: true, ..Default::default() };
    let name = |name: &str, owner: &str| mmesh::GetVModelStatusRequest { v_model_id: name.to_owned(), owner: owner.to_owned() };
    let no_runtime = Some(mmesh::ModelInfo { r#type: "mt:unheard-of".to_owned(), ..info("a").unwrap() });
    let long = Some(mmesh::ModelInfo { key: "x".repeat(LONGEST_TEXT + 1), ..info("a").unwrap() });
    let unregister = |id: &str| mmesh::UnregisterModelRequest { model_id: id.to_owned() };
    let delete = |name: &str| mmesh::DeleteVModelRequest { v_model_id: name.to_owned(), owner: String::new() };
    vec![
        ("getModelStatus", status_of("a").encode_to_vec(), Code::Ok),
        ("getModelStatus", status_of("").encode_to_vec(), Code::InvalidArgument),
        ("getModelStatus", vec![0xff, 0xff], Code::InvalidArgument),
        ("registerModel", mmesh::RegisterModelRequest { model_info: None, ..register("a", "a") }.encode_to_vec(), Code::InvalidArgument),
        ("registerModel", mmesh::RegisterModelRequest { model_info: long, ..register("a", "a") }.encode_to_vec(), Code::InvalidArgument),
        ("registerModel", vec![0; 65 * 1024], Code::ResourceExhausted),
        ("registerModel", mmesh::RegisterModelRequest { model_info: no_runtime, ..register("a", "a") }.encode_to_vec(), Code::FailedPrecondition),
        ("registerModel", register("a", "a").encode_to_vec(), Code::Ok),
        ("registerModel", register("a", "a").encode_to_vec(), Code::Ok),
        ("addModel", register("a", "b").encode_to_vec(), Code::AlreadyExists),
        ("ensureLoaded", loaded("a").encode_to_vec(), Code::Ok),
        ("ensureLoaded", loaded("unheard-of").encode_to_vec(), Code::NotFound),
        ("registerModel", mmesh::RegisterModelRequest { load_now: true, sync: true, ..register("bad", "bad") }.encode_to_vec(), Code::Ok),
        ("setVModel", set("n", "unheard-of").encode_to_vec(), Code::NotFound),
        ("setVModel", set("n", "a").encode_to_vec(), Code::Ok),
        (
            "setVModel",
            mmesh::SetVModelRequest { expected_target_model_id: "z".to_owned(), ..set("n", "a") }.encode_to_vec(),
            Code::FailedPrecondition,
        ),
        ("setVModel", mmesh::SetVModelRequest { owner: "other".to_owned(), ..set("n", "a") }.encode_to_vec(), Code::AlreadyExists),
        (
            "setVModel",
            mmesh::SetVModelRequest { model_info: info("b"), auto_delete_target_model: true, load_now: true, sync: true, ..set("n", "b") }
                .encode_to_vec(),
            Code::Ok,
        ),
        ("getVModelStatus", name("n", "").encode_to_vec(), Code::Ok),
        ("getVModelStatus", name("n", "other").encode_to_vec(), Code::Ok),
        ("unregisterModel", unregister("b").encode_to_vec(), Code::FailedPrecondition),
        ("deleteVModel", delete("n").encode_to_vec(), Code::Ok),
        ("getModelStatus", status_of("b").encode_to_vec(), Code::Ok),
        ("deleteModel", unregister("a").encode_to_vec(), Code::Ok),
        ("getModelStatus", status_of("a").encode_to_vec(), Code::Ok),
        ("dumpState", Vec::new(), Code::Unimplemented),
    ]
}

async fn lived(served: &Served) -> Vec<Said> {
    let mut all = Vec::new();
    for (method, message, code) in life() {
        let said = served.send(&format!("/mmesh.ModelMesh/{method}"), framed(&message), &[]).await;
        assert_eq!(said.code, code, "{method} {message:?}: {}", said.text);
        all.push(said);
    }
    all
}

#[tokio::test]
async fn calls_that_an_agent_passes_on_are_answered_as_the_controller_answers_them() {
    let stop = CancellationToken::new();
    let direct = controller(Arc::new(manager(&stop).await), Writes::Open).await;
    let behind = controller(Arc::new(manager(&stop).await), Writes::Open).await;
    let agent = agent(behind.addr, None, Writes::Open).await;
    let (directly, through) = (lived(&direct).await, lived(&agent).await);
    for ((direct, through), (method, message, _)) in directly.iter().zip(&through).zip(life()) {
        assert_eq!(through, direct, "{method} {message:?}");
    }
    // And it is the world that the calls meant.
    let statuses = |calls: &[usize]| calls.iter().map(|at| through[*at].message::<mmesh::ModelStatusInfo>().status()).collect::<Vec<_>>();
    let expected = [ModelStatus::NotFound, ModelStatus::NotLoaded, ModelStatus::Loaded, ModelStatus::LoadingFailed, ModelStatus::NotFound];
    assert_eq!(statuses(&[0, 7, 10, 12, 22]), expected);
    assert_eq!(through[12].message::<mmesh::ModelStatusInfo>().errors, ["no such object"]);
    let name: mmesh::VModelStatusInfo = through[17].message();
    assert_eq!((name.status(), name.active_model_id.as_str()), (mmesh::v_model_status_info::VModelStatus::Defined, "b"));
    stop.cancel();
}

/// Refuses whatever it is asked, in one way.
struct Refuses(Refused);

#[async_trait]
impl Management for Refuses {
    async fn register(&self, _model: NewModel) -> Result<(), Refused> {
        Err(self.0.clone())
    }
    async fn unregister(&self, _id: ModelId) -> Result<(), Refused> {
        Err(self.0.clone())
    }
    fn model(&self, _id: &str) -> Result<ModelStanding, Refused> {
        Err(self.0.clone())
    }
    async fn model_is(&self, _id: &str, _wanted: &[Doing]) -> ModelStanding {
        std::future::pending().await
    }
    async fn load(&self, _id: &str, _used: Option<UnixMillis>) {}
    async fn set_name(&self, _ask: SetName) -> Result<(), Refused> {
        Err(self.0.clone())
    }
    async fn delete_name(&self, _name: Name, _owner: Option<Arc<str>>) -> Result<(), Refused> {
        Err(self.0.clone())
    }
    fn name(&self, _name: &str, _owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        Err(self.0.clone())
    }
    async fn name_settles(&self, _name: &str, _target: &ModelId) {}
}

#[tokio::test]
async fn every_refusal_keeps_its_code_its_words_and_when_to_try_again() {
    let words = || "this, \"that\" and ü".to_owned();
    for (refused, again) in [
        (Refused::Invalid(words()), false),
        (Refused::NotFound(words()), false),
        (Refused::Exists(words()), false),
        (Refused::Blocked(words()), false),
        (Refused::NotReady(words()), true),
        (Refused::Late, false),
        (Refused::Unkept(words()), true),
    ] {
        let expected = Fault::Managed(refused.clone()).to_status();
        let direct = controller(Arc::new(Refuses(refused)), Writes::Open).await;
        let agent = agent(direct.addr, None, Writes::Open).await;
        for (method, message) in [("registerModel", register("a", "a").encode_to_vec()), ("getModelStatus", status_of("a").encode_to_vec())] {
            let path = format!("/mmesh.ModelMesh/{method}");
            let (through, directly) = (agent.send(&path, framed(&message), &[]).await, direct.send(&path, framed(&message), &[]).await);
            assert_eq!(through, directly);
            assert_eq!((through.code, through.text.as_str(), &through.details[..]), (expected.code(), expected.message(), expected.details()));
            assert_eq!(!through.details.is_empty(), again, "{expected}");
        }
    }
}

/// A network on which nobody answers, or nobody listens.
struct Silent;

#[async_trait]
impl Net for Silent {
    async fn listen(&self, _addr: SocketAddr) -> std::io::Result<Listener> {
        Err(std::io::Error::other("nobody listens here"))
    }
    async fn dial(&self, _peer: &Peer) -> std::io::Result<Dialed> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_away_is_unavailable_within_the_callers_time_and_named() {
    let addr: SocketAddr = "127.0.0.1:9".parse().unwrap();
    for (timeout, within) in [(Some("1S"), Duration::from_secs(1)), (Some("1H"), Duration::from_secs(2)), (None, Duration::from_secs(2))] {
        for method in ["getModelStatus", "setVModel", "unheardOf"] {
            let rig = agent_of(addr, Arc::new(Silent), None, Writes::Open);
            let since = rig.frontend.clock.now();
            let mut head = Request::post(format!("/mmesh.ModelMesh/{method}"));
            if let Some(timeout) = timeout {
                head = head.header("grpc-timeout", timeout);
            }
            let (head, ()) = head.body(()).unwrap().into_parts();
            let body = Full::new(framed(&[]));
            let said = said(rig.frontend.mesh(method, &head, body).await).await;
            assert_eq!((said.code, rig.frontend.clock.now() - since), (Code::Unavailable, within), "{method}: {}", said.text);
            assert!(said.text.starts_with("controller: cannot reach 127.0.0.1:9: "), "{}", said.text);
            assert!(!said.details.is_empty(), "it says when to try again");
        }
    }
}

#[tokio::test]
async fn where_nobody_listens_that_is_said_at_once() {
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let agent = agent(addr, None, Writes::Open).await;
    let said = agent.ask("registerModel", &register("a", "a"), &[]).await;
    assert_eq!((said.code, said.details.is_empty()), (Code::Unavailable, false));
    assert!(said.text.contains(&addr.to_string()) && said.text.contains("refused"), "{}", said.text);
}

/// What a controller of a test does with a call; `None`: it breaks the connection.
type Behaviour = Arc<dyn Fn(Request<hyper::body::Incoming>) -> BoxFuture<'static, Option<Response<Full<Bytes>>>> + Send + Sync>;

/// A server that is no Berth.
struct Odd {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn odd(behaviour: Behaviour) -> Odd {
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (behaviour, broken) = (Arc::clone(&behaviour), CancellationToken::new());
            let breaks = broken.clone();
            let service = hyper::service::service_fn(move |request| {
                let (answer, breaks) = (behaviour(request), breaks.clone());
                async move {
                    let Some(answer) = answer.await else {
                        breaks.cancel();
                        return std::future::pending().await;
                    };
                    Ok::<_, std::io::Error>(answer)
                }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                tokio::select! {
                    _ = serving => {}
                    () = broken.cancelled() => {}
                }
            });
        }
    });
    Odd { addr, task }
}

#[tokio::test]
async fn only_what_changes_nothing_is_asked_again_when_the_connection_breaks() {
    for (method, calls) in [("getModelStatus", 2), ("getVModelStatus", 2), ("ensureLoaded", 2), ("registerModel", 1), ("setVModel", 1), ("later", 1)]
    {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let odd = odd(Arc::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { None }.boxed()
        }))
        .await;
        let agent = agent(odd.addr, None, Writes::Open).await;
        let said = agent.send(&format!("/mmesh.ModelMesh/{method}"), framed(&[]), &[]).await;
        assert_eq!((said.code, count.load(Ordering::SeqCst)), (Code::Unavailable, calls), "{method}: {}", said.text);
        assert!(said.text.contains("whether the request ran is not known") && said.text.contains(&odd.addr.to_string()), "{}", said.text);
        assert!(!said.details.is_empty());
    }
}

#[tokio::test]
async fn what_goes_to_the_controller_is_the_callers_but_for_the_token_the_time_that_is_left_and_the_encoding() {
    let seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>> = Arc::default();
    let told = Arc::clone(&seen);
    let odd = odd(Arc::new(move |request| {
        let told = Arc::clone(&told);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            told.lock().push((head.headers, body));
            let mut answer = Response::new(Full::new(framed(&[0x08, 3])));
            for (name, value) in [("content-type", "application/grpc"), ("x-theirs", "kept"), ("grpc-status", "0")] {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            Some(answer)
        }
        .boxed()
    }))
    .await;
    let message = status_of("a").encode_to_vec();
    for (token, own, expected) in [(Some("s3cret"), "Bearer mine", "Bearer s3cret"), (None, "Bearer mine", "Bearer mine")] {
        let agent = agent(odd.addr, token, Writes::Open).await;
        let headers = [("authorization", own), ("x-mine", "kept"), ("grpc-timeout", "5S"), ("grpc-encoding", "gzip")];
        let said = agent.send("/mmesh.ModelMesh/getModelStatus", framed(&message), &headers).await;
        assert_eq!(said.message::<mmesh::ModelStatusInfo>().status(), ModelStatus::Loaded);
        assert_eq!(said.headers["x-theirs"], "kept");
        let (headers, body) = seen.lock().pop().unwrap();
        assert_eq!(
            (&headers["authorization"], &headers["x-mine"], headers.get("grpc-encoding")),
            (&expected.parse().unwrap(), &"kept".parse().unwrap(), None)
        );
        assert_eq!(body, framed(&message));
        let left = deadline(&headers, &ProxyConfig::default(), &Clock::system()).unwrap().left(Clock::system().now());
        assert!(left > Duration::from_secs(3) && left <= Duration::from_secs(5), "{left:?}");
    }
}

#[tokio::test]
async fn the_controllers_word_that_time_is_over_reaches_the_caller() {
    let stop = CancellationToken::new();
    let direct = controller(Arc::new(Waits(manager(&stop).await)), Writes::Open).await;
    let agent = agent(direct.addr, None, Writes::Open).await;
    assert_eq!(agent.ask("registerModel", &register("a", "a"), &[]).await.code, Code::Ok);
    let ask = mmesh::EnsureLoadedRequest { model_id: "a".to_owned(), sync: true, ..Default::default() };
    let said = agent.ask("ensureLoaded", &ask, &[("grpc-timeout", "200m")]).await;
    assert_eq!((said.code, said.text.as_str()), (Code::DeadlineExceeded, "model \"a\": the deadline passed while the model was loading"));
    stop.cancel();
}

/// Has everything but loads.
struct Waits(berth_controller::Manager);

#[async_trait]
impl Management for Waits {
    async fn register(&self, model: NewModel) -> Result<(), Refused> {
        self.0.register(model).await
    }
    async fn unregister(&self, id: ModelId) -> Result<(), Refused> {
        self.0.unregister(id).await
    }
    fn model(&self, id: &str) -> Result<ModelStanding, Refused> {
        self.0.model(id)
    }
    async fn model_is(&self, id: &str, wanted: &[Doing]) -> ModelStanding {
        self.0.model_is(id, wanted).await
    }
    async fn load(&self, _id: &str, _used: Option<UnixMillis>) {}
    async fn set_name(&self, ask: SetName) -> Result<(), Refused> {
        self.0.set_name(ask).await
    }
    async fn delete_name(&self, name: Name, owner: Option<Arc<str>>) -> Result<(), Refused> {
        self.0.delete_name(name, owner).await
    }
    fn name(&self, name: &str, owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        self.0.name(name, owner)
    }
    async fn name_settles(&self, name: &str, target: &ModelId) {
        self.0.name_settles(name, target).await;
    }
}

#[tokio::test]
async fn who_may_change_something_is_asked_at_the_agent_before_its_token_opens_the_controller() {
    let is = |token: &'static str| Writes::Token(Arc::new(move |given| given == token.as_bytes()));
    let stop = CancellationToken::new();
    let far = controller(Arc::new(manager(&stop).await), is("far")).await;
    let ask = async |agent: &Served, method: &str, token: &str| {
        let message = register("a", "a").encode_to_vec();
        agent.send(&format!("/mmesh.ModelMesh/{method}"), framed(&message), &[("authorization", token)]).await.code
    };
    let near = agent(far.addr, Some("far"), is("near")).await;
    assert_eq!(ask(&near, "registerModel", "Bearer far").await, Code::Unauthenticated);
    assert_eq!(ask(&near, "inventedLater", "Bearer far").await, Code::Unauthenticated, "what is not known may change something");
    assert_eq!(ask(&near, "getModelStatus", "Bearer none").await, Code::Ok, "who only asks needs no token");
    assert_eq!(ask(&near, "registerModel", "Bearer near").await, Code::Ok);
    let open = agent(far.addr, None, Writes::Open).await;
    assert_eq!(ask(&open, "registerModel", "Bearer near").await, Code::Unauthenticated, "then the controller asks itself");
    assert_eq!(ask(&open, "registerModel", "Bearer far").await, Code::Ok);
    let off = agent(far.addr, Some("far"), Writes::Off).await;
    assert_eq!(ask(&off, "registerModel", "Bearer far").await, Code::Unimplemented);
    stop.cancel();
}

#[tokio::test]
async fn agents_that_take_each_other_for_the_controller_say_so_and_a_page_is_no_controller() {
    let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let of_itself = agent_of(addr, HostNet::shared(), None, Writes::Open);
    tokio::spawn(crate::serve_grpc(of_itself.frontend, listener, stop.clone()));
    let said = agent(addr, None, Writes::Open).await.ask("getModelStatus", &status_of("a"), &[]).await;
    assert_eq!(said.code, Code::Unavailable);
    assert!(said.text.starts_with("controller: another agent passed this call on to here"), "{}", said.text);
    stop.cancel();

    let page = odd(Arc::new(|_| {
        let mut page = Response::new(Full::new(Bytes::from_static(b"<html>")));
        *page.status_mut() = http::StatusCode::NOT_FOUND;
        async { Some(page) }.boxed()
    }))
    .await;
    let said = agent(page.addr, None, Writes::Open).await.ask("getModelStatus", &status_of("a"), &[]).await;
    assert_eq!(
        (said.code, said.text),
        (Code::Unavailable, format!("controller: {} answered with HTTP status 404: is that the controller?", page.addr))
    );
}

#[tokio::test]
async fn a_controllers_port_has_no_inference_and_says_where_that_is() {
    let served = controller(Arc::new(Nobody), Writes::Open).await;
    let said = served.send("/inference.GRPCInferenceService/ModelInfer", framed(&[]), &[]).await;
    assert_eq!(said.code, Code::Unimplemented);
    assert!(said.text.ends_with("this is a controller: inference goes to the agents"), "{}", said.text);
    let health = tonic_health::pb::HealthCheckRequest { service: "mmesh.ModelMesh".to_owned() };
    let said = served.send("/grpc.health.v1.Health/Check", framed(&health.encode_to_vec()), &[]).await;
    assert_eq!(said.message::<tonic_health::pb::HealthCheckResponse>().status, 1);
}

/// A model that some pod loads when it has been asked for often enough.
struct AtLast {
    asked: AtomicUsize,
    after: usize,
    there: tokio::sync::Notify,
}

#[async_trait]
impl Management for AtLast {
    async fn register(&self, _model: NewModel) -> Result<(), Refused> {
        Ok(())
    }
    async fn unregister(&self, _id: ModelId) -> Result<(), Refused> {
        Ok(())
    }
    fn model(&self, _id: &str) -> Result<ModelStanding, Refused> {
        Ok(ModelStanding { doing: Doing::NotLoaded, ..ModelStanding::not_found() })
    }
    async fn model_is(&self, _id: &str, wanted: &[Doing]) -> ModelStanding {
        assert!(wanted.contains(&Doing::Loaded));
        self.there.notified().await;
        ModelStanding { doing: Doing::Loaded, ..ModelStanding::not_found() }
    }
    async fn load(&self, _id: &str, _used: Option<UnixMillis>) {
        if self.asked.fetch_add(1, Ordering::SeqCst) + 1 == self.after {
            self.there.notify_one();
        }
    }
    async fn set_name(&self, _ask: SetName) -> Result<(), Refused> {
        Ok(())
    }
    async fn delete_name(&self, _name: Name, _owner: Option<Arc<str>>) -> Result<(), Refused> {
        Ok(())
    }
    fn name(&self, _name: &str, _owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        Ok(None)
    }
    async fn name_settles(&self, _name: &str, _target: &ModelId) {}
}

#[tokio::test(start_paused = true)]
async fn a_load_that_found_no_room_in_any_pod_is_asked_for_again_while_somebody_waits() {
    for (after, code, took) in [(1, Code::Ok, 0), (3, Code::Ok, 20), (9, Code::DeadlineExceeded, 45)] {
        let by = Arc::new(AtLast { asked: AtomicUsize::new(0), after, there: tokio::sync::Notify::new() });
        let (desk, clock) = (Desk { by: by.clone(), writes: Writes::Open }, Clock::system());
        let (bodies, config) = (Budget::of(berth_types::ByteSize::mib(1)), ProxyConfig::default());
        let front = Front { bodies: &bodies, clock: &clock, config: &config };
        let (head, ()) = Request::post("/").header("grpc-timeout", "45S").body(()).unwrap().into_parts();
        let message = mmesh::EnsureLoadedRequest { model_id: "a".to_owned(), sync: true, ..Default::default() };
        let since = clock.now();
        let body = StreamBody::new(futures::stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(framed(&message.encode_to_vec())))]));
        let answer = desk.answer(front, &Elsewhere, "ensureLoaded", &head, body).await;
        let got = answer.map_or_else(|fault| fault.verdict().code, |_| Code::Ok);
        assert_eq!((got, (clock.now() - since).as_secs()), (code, took), "asked {} times", by.asked.load(Ordering::SeqCst));
    }
}
