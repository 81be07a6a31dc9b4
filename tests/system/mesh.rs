//! Models and names that are managed by calls of `mmesh.ModelMesh`, as clients of ModelMesh make them.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_proto::mmesh::model_mesh_client::ModelMeshClient;
use berth_proto::mmesh::model_status_info::ModelStatus;
use berth_proto::mmesh::v_model_status_info::VModelStatus;
use berth_proto::mmesh::{
    DeleteVModelRequest, EnsureLoadedRequest, GetStatusRequest, GetVModelStatusRequest, ModelInfo, ModelStatusInfo, RegisterModelRequest,
    SetVModelRequest, UnregisterModelRequest, VModelStatusInfo,
};
use berth_testkit::{Berth, Found, eventually, python, root};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::fixture::{Fixture, ROOMY, SOON};

/// Calls, and what they answer.
#[derive(Clone)]
struct Mesh {
    client: ModelMeshClient<Channel>,
    channel: Channel,
    token: Option<String>,
}

fn digits(path: &str) -> Option<ModelInfo> {
    Some(ModelInfo { r#type: "mt:onnx".to_owned(), path: path.to_owned(), key: r#"{"storage_key":"quickstart"}"#.to_owned() })
}

impl Mesh {
    async fn of(berth: &Berth) -> Result<Self> {
        let channel = Channel::from_shared(format!("http://{}", berth.grpc()))?.connect().await?;
        Ok(Mesh { client: ModelMeshClient::new(channel.clone()), channel, token: None })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(SOON);
        if let Some(token) = self.token.as_ref().and_then(|token| format!("Bearer {token}").parse().ok()) {
            request.metadata_mut().insert("authorization", token);
        }
        request
    }

    async fn register(&self, id: &str, info: Option<ModelInfo>) -> Result<ModelStatusInfo, Status> {
        let asked = RegisterModelRequest { model_id: id.to_owned(), model_info: info, ..RegisterModelRequest::default() };
        Ok(self.client.clone().register_model(self.request(asked)).await?.into_inner())
    }

    async fn unregister(&self, id: &str) -> Result<(), Status> {
        let asked = UnregisterModelRequest { model_id: id.to_owned() };
        self.client.clone().unregister_model(self.request(asked)).await.map(drop)
    }

    async fn status(&self, id: &str) -> Result<ModelStatusInfo, Status> {
        Ok(self.client.clone().get_model_status(self.request(GetStatusRequest { model_id: id.to_owned() })).await?.into_inner())
    }

    async fn load(&self, id: &str, sync: bool) -> Result<ModelStatusInfo, Status> {
        let asked = EnsureLoadedRequest { model_id: id.to_owned(), last_used_time: 0, sync };
        Ok(self.client.clone().ensure_loaded(self.request(asked)).await?.into_inner())
    }

    async fn set(&self, asked: SetVModelRequest) -> Result<VModelStatusInfo, Status> {
        Ok(self.client.clone().set_v_model(self.request(asked)).await?.into_inner())
    }

    async fn delete(&self, name: &str, owner: &str) -> Result<(), Status> {
        let asked = DeleteVModelRequest { v_model_id: name.to_owned(), owner: owner.to_owned() };
        self.client.clone().delete_v_model(self.request(asked)).await.map(drop)
    }

    async fn name(&self, name: &str, owner: &str) -> Result<VModelStatusInfo, Status> {
        let asked = GetVModelStatusRequest { v_model_id: name.to_owned(), owner: owner.to_owned() };
        Ok(self.client.clone().get_v_model_status(self.request(asked)).await?.into_inner())
    }

    /// Waits until a name stands as wanted.
    async fn stands(&self, name: &str, wanted: impl Fn(&VModelStatusInfo) -> bool) -> Result<VModelStatusInfo> {
        eventually(&format!("vmodel {name} to stand as wanted"), SOON, || async {
            let standing = self.name(name, "").await?;
            Ok(if wanted(&standing) { Found::Yes(standing) } else { Found::NotYet(format!("{standing:?}")) })
        })
        .await
    }
}

fn set(name: &str, target: &str) -> SetVModelRequest {
    SetVModelRequest { v_model_id: name.to_owned(), target_model_id: target.to_owned(), ..SetVModelRequest::default() }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    match answer {
        Ok(answer) => (Code::Ok, format!("{answer:?}")),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

/// The models of the quickstart and no resource.
fn of_models() -> Result<Fixture> {
    let fixture = Fixture::of_folder()?;
    for entry in fs::read_dir(fixture.manifests())? {
        fs::remove_file(entry?.path())?;
    }
    Ok(fixture)
}

#[tokio::test]
async fn a_model_is_registered_loaded_used_and_removed_by_calls() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    let id = "team a/digits: mü";

    assert_eq!(mesh.register(id, digits("digits-mlp")).await?.status(), ModelStatus::NotLoaded);
    assert_eq!(mesh.register(id, digits("digits-mlp")).await?.status(), ModelStatus::NotLoaded, "the same again is no fault");
    for (asked, info, code, text) in [
        (id, digits("iris"), Code::AlreadyExists, "another type, path or key"),
        ("", digits("iris"), Code::InvalidArgument, "modelId"),
        ("x", None, Code::InvalidArgument, "modelInfo is missing"),
        ("x", Some(ModelInfo::default()), Code::InvalidArgument, "modelInfo.type is empty"),
        ("x", Some(ModelInfo { r#type: "mt:tensorrt".to_owned(), ..ModelInfo::default() }), Code::FailedPrecondition, "berth-onnx lists onnx"),
        (
            "x",
            Some(ModelInfo { r#type: "rt:gone".to_owned(), key: r#"{"model_type":"onnx"}"#.to_owned(), ..ModelInfo::default() }),
            Code::FailedPrecondition,
            "there are berth-onnx",
        ),
        (
            "x",
            Some(ModelInfo { r#type: "mt:onnx".to_owned(), key: "nonsense".to_owned(), ..ModelInfo::default() }),
            Code::InvalidArgument,
            "modelInfo.key is no JSON",
        ),
        ("a\nb", digits("iris"), Code::InvalidArgument, "control character"),
        (&"x".repeat(1025), digits("iris"), Code::InvalidArgument, "at most 1024 bytes"),
    ] {
        let (got, message) = refusal(mesh.register(asked, info).await);
        assert!(got == code && message.contains(text), "{asked:?}: {got:?} {message}");
    }
    for unknown in ["x", "***GETSTATE***", "***LOGCACHE***"] {
        assert_eq!(mesh.status(unknown).await?, ModelStatusInfo::default(), "no such model, and nothing is told");
        assert_eq!(refusal(mesh.load(unknown, false).await).0, Code::NotFound);
    }
    assert!(matches!(mesh.load(id, false).await?.status(), ModelStatus::Loading | ModelStatus::Loaded | ModelStatus::NotLoaded));
    let loaded = mesh.load(id, true).await?;
    assert_eq!((loaded.status(), loaded.model_copy_infos.len(), loaded.errors.len()), (ModelStatus::Loaded, 1, 0));
    let copy = &loaded.model_copy_infos[0];
    assert!(copy.copy_status() == ModelStatus::Loaded && !copy.location.is_empty() && copy.location.chars().count() <= 12, "{copy:?}");
    assert!(copy.time > 1_700_000_000_000, "milliseconds since the epoch, not {}", copy.time);

    assert_eq!(mesh.register("plain", digits("digits-mlp")).await?.status(), ModelStatus::NotLoaded);
    berth
        .infer("plain", fixture.quickstart.request("digits-mlp")?)
        .await?
        .good()
        .and_then(|answer| fixture.quickstart.check("digits-mlp", &answer))?;
    assert_eq!(mesh.status("plain").await?.status(), ModelStatus::Loaded, "a request had it loaded");

    for gone in [id, "plain", "x"] {
        mesh.unregister(gone).await?;
        assert_eq!(mesh.status(gone).await?, ModelStatusInfo::default());
    }
    assert_eq!(berth.infer("plain", fixture.quickstart.request("digits-mlp")?).await?.status, 404);

    // The same id anew never serves what it stood for before.
    assert_eq!(mesh.register("plain", digits("iris")).await?.status(), ModelStatus::NotLoaded);
    berth.infer("plain", fixture.quickstart.request("iris")?).await?.good().and_then(|answer| fixture.quickstart.check("iris", &answer))
}

#[tokio::test]
async fn a_registration_that_is_to_load_now_is_answered_when_it_has_loaded_or_failed() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    let now = |id: &str, path: &str, sync| RegisterModelRequest {
        model_id: id.to_owned(),
        model_info: digits(path),
        load_now: true,
        sync,
        last_used_time: 0,
    };
    let loaded = mesh.client.clone().register_model(mesh.request(now("good", "iris", true))).await?.into_inner();
    assert_eq!(loaded.status(), ModelStatus::Loaded);
    let failed = mesh.client.clone().register_model(mesh.request(now("bad", "no-such-folder", true))).await?.into_inner();
    assert_eq!(failed.status(), ModelStatus::LoadingFailed);
    ensure!(failed.errors.len() == 1 && failed.errors[0].contains("no-such-folder"), "{failed:?}");
    let copy = &failed.model_copy_infos[0];
    assert_eq!((copy.copy_status(), copy.location.is_empty()), (ModelStatus::LoadingFailed, false));
    assert_eq!(copy.location, loaded.model_copy_infos[0].location, "one place, one name");
    let again = mesh.load("bad", true).await?;
    assert_eq!(again.status(), ModelStatus::LoadingFailed, "a load that fails is an answer, not an error");

    mesh.client.clone().register_model(mesh.request(now("later", "digits-mlp", false))).await?;
    eventually("the load that nobody waits for", SOON, || async {
        let standing = mesh.status("later").await?;
        Ok(if standing.status() == ModelStatus::Loaded { Found::Yes(()) } else { Found::NotYet(format!("{standing:?}")) })
    })
    .await
}

#[tokio::test]
async fn a_name_moves_from_model_to_model_and_never_to_one_that_does_not_load() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    let answers = async |example: &str| -> Result<()> {
        let answer = berth.infer("v", fixture.quickstart.request(example)?).await?.good()?;
        fixture.quickstart.check(example, &answer)
    };
    assert_eq!(refusal(mesh.set(set("v", "v1")).await).0, Code::NotFound, "the target must exist");
    let first = SetVModelRequest { model_info: digits("iris"), auto_delete_target_model: true, load_now: true, sync: true, ..set("v", "v1") };
    let made = mesh.set(first.clone()).await?;
    assert_eq!((made.status(), made.active_model_id.as_str(), made.target_model_id.as_str()), (VModelStatus::Defined, "v1", "v1"));
    assert_eq!(made.active_model_status.context("it stands for a model")?.status(), ModelStatus::Loaded);
    answers("iris").await?;
    assert_eq!(refusal(mesh.unregister("v1").await).0, Code::FailedPrecondition, "a name refers to it");

    // On its way to what cannot be loaded it serves what it had.
    let bad = SetVModelRequest { model_info: digits("no-such-folder"), auto_delete_target_model: true, sync: true, ..set("v", "v2") };
    let stuck = mesh.set(bad).await?;
    assert_eq!((stuck.status(), stuck.active_model_id.as_str(), stuck.target_model_id.as_str()), (VModelStatus::TransitionFailed, "v1", "v2"));
    ensure!(stuck.target_model_status.as_ref().is_some_and(|target| target.errors[0].contains("no-such-folder")), "{stuck:?}");
    answers("iris").await?;

    // Another target: what was made for the name and never served goes, and the switch is done when the call returns.
    let good = SetVModelRequest { model_info: digits("digits-mlp"), auto_delete_target_model: true, sync: true, ..set("v", "v3") };
    let moved = mesh.set(good).await?;
    assert_eq!((moved.status(), moved.active_model_id.as_str()), (VModelStatus::Defined, "v3"));
    answers("digits-mlp").await?;
    for gone in ["v1", "v2"] {
        assert_eq!(mesh.status(gone).await?.status(), ModelStatus::NotFound, "{gone}");
    }

    // A switch that nobody waits for happens as well.
    mesh.set(SetVModelRequest { sync: false, ..first }).await?;
    mesh.stands("v", |standing| standing.status() == VModelStatus::Defined && standing.active_model_id == "v1").await?;
    answers("iris").await?;
    // By force, to what is not loaded.
    let forced = SetVModelRequest { model_info: digits("digits-mlp"), force: true, ..set("v", "v4") };
    assert_eq!(mesh.set(forced).await?.active_model_id, "v4");
    answers("digits-mlp").await?;

    for (case, asked, code, text) in [
        ("only an update", SetVModelRequest { update_only: true, ..set("none", "v4") }, Code::NotFound, "does not exist"),
        ("another owner", SetVModelRequest { owner: "isvc".to_owned(), ..set("v", "v4") }, Code::AlreadyExists, "belongs to"),
        ("another target", SetVModelRequest { expected_target_model_id: "v3".to_owned(), ..set("v", "v4") }, Code::FailedPrecondition, "\"v4\""),
        ("other attributes", SetVModelRequest { model_info: digits("iris"), ..set("w", "v4") }, Code::AlreadyExists, "another type, path or key"),
        ("no name", set("", "v4"), Code::InvalidArgument, "vModelId"),
        ("no target", set("v", ""), Code::InvalidArgument, "targetModelId"),
    ] {
        let (got, message) = refusal(mesh.set(asked).await);
        assert!(got == code && message.contains(text), "{case}: {got:?} {message}");
    }
    assert_eq!(mesh.name("v", "isvc").await?, VModelStatusInfo::default(), "somebody else's is none");
    assert_eq!(mesh.name("none", "").await?, VModelStatusInfo::default());
    mesh.delete("v", "isvc").await?;
    assert_eq!(mesh.name("v", "").await?.status(), VModelStatus::Defined, "somebody else's is left alone");
    mesh.delete("v", "").await?;
    mesh.delete("v", "").await?;
    assert_eq!(mesh.name("v", "").await?, VModelStatusInfo::default());
    assert_eq!(mesh.status("v4").await?.status(), ModelStatus::Loaded, "it was not made for the name only");
    assert_eq!(berth.infer("v", fixture.quickstart.request("digits-mlp")?).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn of_ten_callers_who_expect_the_same_target_one_wins() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    for round in 0..5 {
        let name = format!("race-{round}");
        mesh.set(SetVModelRequest { model_info: digits("iris"), ..set(&name, "from") }).await?;
        let mut callers = JoinSet::new();
        for caller in 0..10 {
            let (mesh, name) = (mesh.clone(), name.clone());
            let asked =
                SetVModelRequest { model_info: digits("iris"), expected_target_model_id: "from".to_owned(), ..set(&name, &format!("to-{caller}")) };
            callers.spawn(async move { mesh.set(asked).await.map(|standing| standing.target_model_id) });
        }
        let answers = callers.join_all().await;
        let won: Vec<String> = answers.iter().filter_map(|answer| answer.as_ref().ok().cloned()).collect();
        let lost = answers.iter().filter(|answer| answer.as_ref().is_err_and(|status| status.code() == Code::FailedPrecondition)).count();
        assert_eq!((won.len(), lost), (1, 9), "{answers:?}");
        assert_eq!(vec![mesh.name(&name, "").await?.target_model_id], won);
    }
    Ok(())
}

#[tokio::test]
async fn what_calls_have_made_is_there_after_kill_and_restart() -> Result<()> {
    let fixture = of_models()?;
    let mut berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    mesh.register("alone", digits("iris")).await?;
    mesh.set(SetVModelRequest { model_info: digits("iris"), load_now: true, sync: true, owner: "me".to_owned(), ..set("v", "v1") }).await?;
    let bad = SetVModelRequest { model_info: digits("no-such-folder"), sync: true, owner: "me".to_owned(), ..set("v", "v2") };
    assert_eq!(mesh.set(bad).await?.status(), VModelStatus::TransitionFailed);
    // Answered is durable: the very next thing is the end.
    mesh.register("last", digits("digits-mlp")).await?;
    berth.process().kill().await?;

    let mut berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    for id in ["alone", "last"] {
        assert_eq!(mesh.status(id).await?.status(), ModelStatus::NotLoaded, "{id}");
    }
    let standing = mesh.name("v", "me").await?;
    assert_eq!((standing.active_model_id.as_str(), standing.target_model_id.as_str(), standing.owner.as_str()), ("v1", "v2", "me"));
    berth.infer("v", fixture.quickstart.request("iris")?).await?.good().and_then(|answer| fixture.quickstart.check("iris", &answer))?;
    assert_eq!(refusal(mesh.unregister("v1").await).0, Code::FailedPrecondition);
    assert_eq!(refusal(mesh.register("alone", digits("digits-mlp")).await).0, Code::AlreadyExists);
    mesh.stands("v", |standing| standing.status() == VModelStatus::TransitionFailed).await?;
    mesh.delete("v", "me").await?;
    mesh.unregister("alone").await?;
    berth.interrupt().await?;

    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    assert_eq!(mesh.name("v", "").await?, VModelStatusInfo::default());
    assert_eq!(mesh.status("alone").await?.status(), ModelStatus::NotFound);
    assert_eq!(mesh.status("last").await?.status(), ModelStatus::NotLoaded);
    Ok(())
}

#[tokio::test]
async fn what_resources_have_made_is_read_here_and_changed_there() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let mesh = Mesh::of(&berth).await?;
    berth.stands("iris", SOON, |standing| standing.active == "Loaded").await?;
    let standing = mesh.name("iris", "isvc").await?;
    assert_eq!((standing.status(), standing.owner.as_str()), (VModelStatus::Defined, "isvc"));
    let id = standing.active_model_id;
    assert_eq!(mesh.status(&id).await?.status(), ModelStatus::Loaded);
    assert_eq!(mesh.load(&id, true).await?.status(), ModelStatus::Loaded);
    assert_eq!(mesh.name("iris", "ksp").await?, VModelStatusInfo::default());
    let where_to = "InferenceService default/iris: change it there";
    for (case, answer, code) in [
        ("set", refusal(mesh.set(SetVModelRequest { model_info: digits("iris"), ..set("iris", "x") }).await), Code::AlreadyExists),
        ("register", refusal(mesh.register(&id, digits("digits-mlp")).await), Code::AlreadyExists),
        ("unregister", refusal(mesh.unregister(&id).await), Code::FailedPrecondition),
        ("delete", refusal(mesh.delete("iris", "isvc").await), Code::FailedPrecondition),
        ("refer", refusal(mesh.set(set("mine", &id)).await), Code::FailedPrecondition),
    ] {
        assert!(answer.0 == code && answer.1.contains(where_to), "{case}: {answer:?}");
    }
    assert_eq!(mesh.register(&id, digits("iris")).await?.status(), ModelStatus::Loaded, "the same as it is");
    mesh.delete("iris", "ksp").await?;
    assert_eq!(mesh.name("iris", "").await?.status(), VModelStatus::Defined, "somebody else's is left alone");

    // A name that a call has is nobody else's, and free again when the call lets go of it.
    mesh.set(SetVModelRequest { model_info: digits("digits-mlp"), ..set("mine", "m1") }).await?;
    fixture.service("mine", "quickstart", "iris")?;
    let taken = berth.stands("mine", SOON, |standing| standing.reason == "InvalidPredictorSpec").await?;
    ensure!(taken.message.contains("vmodel mine"), "{taken:?}");
    berth.infer("mine", fixture.quickstart.request("digits-mlp")?).await?.good()?;
    mesh.delete("mine", "").await?;
    berth.stands("mine", SOON, |standing| standing.active == "Loaded").await?;
    berth.infer("mine", fixture.quickstart.request("iris")?).await?.good()?;
    Ok(())
}

#[tokio::test]
async fn changes_need_the_token_or_are_off_where_that_was_asked_for_and_reads_are_free() -> Result<()> {
    let fixture = Fixture::of_folder()?;
    let token = fixture.path("token");
    fs::write(&token, "s3cret")?;
    let serve = |mode: &str| fixture.serve(ROOMY).flag("--management", mode).flag("--api-token-file", token.clone());
    for (mode, given, code) in [
        ("token", None, Code::Unauthenticated),
        ("token", Some("other"), Code::Unauthenticated),
        ("token", Some("s3cret"), Code::Ok),
        ("off", Some("s3cret"), Code::Unimplemented),
        ("open", None, Code::Ok),
    ] {
        let mut berth = serve(mode).start().await?;
        let mesh = Mesh { token: given.map(str::to_owned), ..Mesh::of(&berth).await? };
        let id = mesh.name("iris", "").await?.active_model_id;
        ensure!(id.starts_with("iris__isvc-"), "{mode}: reading is free, not {id:?}");
        assert_eq!(mesh.load(&id, true).await?.status(), ModelStatus::Loaded, "{mode}: as free as inference");
        for (call, answer) in [
            ("set", refusal(mesh.set(SetVModelRequest { model_info: digits("iris"), ..set("v", "v1") }).await)),
            ("delete", refusal(mesh.delete("v", "").await)),
            ("register", refusal(mesh.register("m", digits("iris")).await)),
            ("unregister", refusal(mesh.unregister("m").await)),
        ] {
            assert_eq!(answer.0, code, "{mode} {given:?} {call}: {}", answer.1);
        }
        berth.process().kill().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_names_of_before_are_answered_as_well() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).env("MM_DEFAULT_VMODEL_OWNER", "ksp").start().await?;
    let mesh = Mesh::of(&berth).await?;
    let call = async |path: &'static str, message: RegisterModelRequest| -> Result<ModelStatusInfo, Status> {
        let mut grpc = tonic::client::Grpc::new(mesh.channel.clone());
        grpc.ready().await.map_err(|fault| Status::unavailable(fault.to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let codec: ProstCodec<RegisterModelRequest, ModelStatusInfo> = ProstCodec::default();
        Ok(grpc.unary(mesh.request(message), path, codec).await?.into_inner())
    };
    let message = |id: &str| RegisterModelRequest { model_id: id.to_owned(), model_info: digits("iris"), ..RegisterModelRequest::default() };
    for (path, id) in [
        ("/mmesh.ModelMesh/addModel", "a"),
        ("/com.ibm.watson.tas.proto.TasRuntime/addModel", "b"),
        ("/com.ibm.watson.tas.proto.TasRuntime/registerModel", "c"),
    ] {
        assert_eq!(call(path, message(id)).await?.status(), ModelStatus::NotLoaded, "{path}");
        assert_eq!(mesh.status(id).await?.status(), ModelStatus::NotLoaded, "{path}");
    }
    // The answer of a removal is empty, which every message can be read from; so can its question.
    let gone = RegisterModelRequest { model_id: "a".to_owned(), ..RegisterModelRequest::default() };
    call("/com.ibm.watson.tas.proto.TasRuntime/deleteModel", gone).await?;
    assert_eq!(mesh.status("a").await?.status(), ModelStatus::NotFound);
    assert_eq!(refusal(call("/mmesh.ModelMesh/dumpState", message("a")).await).0, Code::Unimplemented);

    // The owner of names whose call says none.
    let set = mesh.set(set("v", "b")).await?;
    assert_eq!(set.owner, "ksp");
    assert_eq!(mesh.name("v", "ksp").await?.status(), VModelStatus::Defined);
    Ok(())
}

#[tokio::test]
async fn a_python_client_made_from_the_published_fields_is_understood() -> Result<()> {
    let fixture = of_models()?;
    let berth = fixture.serve(ROOMY).start().await?;
    let said = python(&fixture.parts, &root().join("tests/system/mesh_client.py"), ["--grpc".to_owned(), berth.grpc()]).await?;
    let expected = [
        "reflected: True True",
        "registered: LOADED LOADED True True",
        "set: DEFINED by/hand by/hand python LOADED",
        "unregister: FAILED_PRECONDITION",
        "moved: TRANSITION_FAILED by/hand bad LOADING_FAILED 1",
        "hidden: NOT_FOUND 0",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    Ok(())
}
