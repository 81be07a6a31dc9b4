//! `mmesh.ModelMesh` on the inference port: models and names that are managed by calls.
//!
//! Only the wire is here: messages become values of [`berth_plan::managed`], [`Management`] carries them out, and what it
//! answers becomes messages again. A call with `sync` waits for the model as an inference would, under the caller's
//! deadline and ahead of loads that nobody waits for.
//!
//! Who may change something is [`Writes`]; reading, and having a model loaded, is as free as inference is.

use std::sync::Arc;
use std::time::Duration;

use berth_plan::managed::{Doing, ModelInfo, ModelStanding, NameDoing, NameStanding, NewModel, Refused, SetName};
use berth_proto::mmesh;
use berth_registry::Management;
use berth_residency::WaitError;
use berth_types::{Deadline, ModelId, Name, Registration, UnixMillis};
use http::request::Parts;
use http::{HeaderMap, Response, header};
use prost::Message;

use crate::body::{Incoming, Outgoing};
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::grpc::SMALL_MESSAGE;
use crate::route::Models;
use crate::wire;

/// The service, and its name of before.
const SERVICES: [&str; 2] = ["/mmesh.ModelMesh/", "/com.ibm.watson.tas.proto.TasRuntime/"];

/// A model counts as last used this long ago when its registration says nothing...
const USED_BEFORE: Duration = Duration::from_secs(6 * 3600);
/// ...and is to be loaded now.
const USED_BEFORE_LOADING: Duration = Duration::from_secs(3600);
/// Keys and paths are stored and kept in memory: a call is refused that brings more.
const LONGEST_TEXT: usize = 16 * 1024;

/// Says whether a text is the token that a change asks for.
pub type IsToken = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Who may change what calls manage.
#[derive(Clone)]
pub enum Writes {
    /// Everybody who reaches the port.
    Open,
    /// Who sends `authorization: Bearer` with the token.
    Token(IsToken),
    /// Nobody.
    Off,
}

impl Writes {
    fn check(&self, headers: &HeaderMap) -> Result<(), Fault> {
        let given = || {
            let value = headers.get(header::AUTHORIZATION)?.as_bytes();
            let (scheme, token) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        };
        match self {
            Writes::Open => Ok(()),
            Writes::Token(is_token) if given().is_some_and(|given| is_token(given)) => Ok(()),
            Writes::Token(_) => Err(Fault::Unauthenticated),
            Writes::Off => Err(Fault::Unimplemented("models are not managed by calls here: the server was started with management off".to_owned())),
        }
    }
}

/// What carries out calls, and who may make them.
pub(crate) struct Managing {
    pub(crate) by: Arc<dyn Management>,
    pub(crate) writes: Writes,
}

/// The method of a path, if it is one of this service.
pub(crate) fn method(path: &str) -> Option<&str> {
    SERVICES.iter().find_map(|service| path.strip_prefix(service))
}

impl<M: Models> Frontend<M> {
    /// Answers calls of `mmesh.ModelMesh` from now on. Before, and without, they are unimplemented. The first one counts.
    pub fn manage(&self, by: Arc<dyn Management>, writes: Writes) {
        let _ = self.managing.set(Managing { by, writes });
    }

    /// Answers one call.
    pub(crate) async fn mesh(&self, method: &str, head: &Parts, body: impl Incoming) -> Response<Outgoing> {
        let answer = match (self.managing.get(), method) {
            (None, _) => Err(unknown(method)),
            (Some(managing), "registerModel" | "addModel") => self.changes(managing, head, body, Self::register_model).await,
            (Some(managing), "unregisterModel" | "deleteModel") => self.changes(managing, head, body, Self::unregister_model).await,
            (Some(managing), "setVModel") => self.changes(managing, head, body, Self::set_vmodel).await,
            (Some(managing), "deleteVModel") => self.changes(managing, head, body, Self::delete_vmodel).await,
            (Some(managing), "getModelStatus") => self.calls(managing, head, body, Self::model_status).await,
            (Some(managing), "ensureLoaded") => self.calls(managing, head, body, Self::ensure_loaded).await,
            (Some(managing), "getVModelStatus") => self.calls(managing, head, body, Self::vmodel_status).await,
            (Some(_), _) => Err(unknown(method)),
        };
        answer.unwrap_or_else(|fault| wire::fault(&fault))
    }

    /// A call that changes something, by somebody who may.
    async fn changes<'f, Q: Message + Default, A: Message>(
        &'f self,
        managing: &'f Managing,
        head: &Parts,
        body: impl Incoming,
        answer: impl AsyncFnOnce(&'f Self, &'f Managing, Q, Deadline) -> Result<A, Fault>,
    ) -> Result<Response<Outgoing>, Fault> {
        managing.writes.check(&head.headers)?;
        self.calls(managing, head, body, answer).await
    }

    async fn calls<'f, Q: Message + Default, A: Message>(
        &'f self,
        managing: &'f Managing,
        head: &Parts,
        body: impl Incoming,
        answer: impl AsyncFnOnce(&'f Self, &'f Managing, Q, Deadline) -> Result<A, Fault>,
    ) -> Result<Response<Outgoing>, Fault> {
        let deadline = self.deadline(&head.headers)?;
        let question = {
            let mut share = self.bodies.share();
            let messages = wire::Messages::new(&head.headers, body, SMALL_MESSAGE.min(self.config.max_message));
            let received = self.clock.until(deadline, messages.only(&mut share)).await;
            wire::decode(received.unwrap_or(Err(Fault::SlowRequest))?)?
        };
        let answered = self.clock.until(deadline, answer(self, managing, question, deadline)).await;
        Ok(wire::answer(&answered.unwrap_or(Err(Fault::Managed(Refused::Late)))?))
    }

    async fn register_model(
        &self,
        managing: &Managing,
        asked: mmesh::RegisterModelRequest,
        deadline: Deadline,
    ) -> Result<mmesh::ModelStatusInfo, Fault> {
        let mmesh::RegisterModelRequest { model_id, model_info, load_now, sync, last_used_time } = asked;
        let id = model_id_of("modelId", &model_id)?;
        let info = info(model_info.ok_or_else(|| Fault::BadRequest("modelInfo is missing".to_owned()))?)?;
        let last_used = self.first_use(last_used_time, load_now);
        managing.by.register(NewModel { id: id.clone(), info, last_used }).await.map_err(Fault::Managed)?;
        match load_now {
            true => self.load(managing, &id, Some(last_used), sync, deadline).await,
            false => standing(managing, &model_id),
        }
    }

    async fn unregister_model(
        &self,
        managing: &Managing,
        asked: mmesh::UnregisterModelRequest,
        _deadline: Deadline,
    ) -> Result<mmesh::UnregisterModelResponse, Fault> {
        managing.by.unregister(model_id_of("modelId", &asked.model_id)?).await.map_err(Fault::Managed)?;
        Ok(mmesh::UnregisterModelResponse {})
    }

    async fn model_status(&self, managing: &Managing, asked: mmesh::GetStatusRequest, _deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        filled("modelId", &asked.model_id)?;
        standing(managing, &asked.model_id)
    }

    async fn ensure_loaded(
        &self,
        managing: &Managing,
        asked: mmesh::EnsureLoadedRequest,
        deadline: Deadline,
    ) -> Result<mmesh::ModelStatusInfo, Fault> {
        let mmesh::EnsureLoadedRequest { model_id, last_used_time, sync } = asked;
        filled("modelId", &model_id)?;
        if managing.by.model(&model_id).map_err(Fault::Managed)?.doing == Doing::NotFound {
            return Err(Fault::UnknownModel(Quoted::new(&model_id)));
        }
        let used = (last_used_time != 0).then_some(UnixMillis(last_used_time));
        self.load(managing, &model_id_of("modelId", &model_id)?, used, sync, deadline).await
    }

    async fn set_vmodel(&self, managing: &Managing, asked: mmesh::SetVModelRequest, deadline: Deadline) -> Result<mmesh::VModelStatusInfo, Fault> {
        let mmesh::SetVModelRequest { v_model_id, target_model_id, update_only, model_info, auto_delete_target_model, load_now, force, .. } = asked;
        let (sync, expected, owner) = (asked.sync, asked.expected_target_model_id, asked.owner);
        let (name, target) = (name_of(&v_model_id)?, model_id_of("targetModelId", &target_model_id)?);
        let ask = SetName {
            name,
            target: target.clone(),
            info: model_info.map(info).transpose()?,
            last_used: self.first_use(0, load_now),
            update_only,
            auto_delete: auto_delete_target_model,
            force,
            expected: if expected.is_empty() { None } else { Some(model_id_of("expectedTargetModelId", &expected)?) },
            owner: owner_of(&owner)?,
        };
        managing.by.set_name(ask).await.map_err(Fault::Managed)?;
        let now = name_standing(managing, &v_model_id, "")?;
        // A target that a name is on its way to is loaded anyway.
        let moving = now.status() == mmesh::v_model_status_info::VModelStatus::Transitioning;
        if load_now || (sync && moving) {
            self.load(managing, &target, None, sync, deadline).await?;
        }
        if sync && moving {
            let settles = async {
                tokio::select! {
                    () = managing.by.name_settles(&v_model_id, &target) => {}
                    _ = managing.by.model_is(target.as_str(), &[Doing::LoadingFailed]) => {}
                }
            };
            self.clock.until(deadline, settles).await.ok_or_else(|| late(&v_model_id))?;
        }
        name_standing(managing, &v_model_id, "")
    }

    async fn delete_vmodel(
        &self,
        managing: &Managing,
        asked: mmesh::DeleteVModelRequest,
        _deadline: Deadline,
    ) -> Result<mmesh::DeleteVModelResponse, Fault> {
        managing.by.delete_name(name_of(&asked.v_model_id)?, owner_of(&asked.owner)?).await.map_err(Fault::Managed)?;
        Ok(mmesh::DeleteVModelResponse {})
    }

    async fn vmodel_status(
        &self,
        managing: &Managing,
        asked: mmesh::GetVModelStatusRequest,
        _deadline: Deadline,
    ) -> Result<mmesh::VModelStatusInfo, Fault> {
        filled("vModelId", &asked.v_model_id)?;
        name_standing(managing, &asked.v_model_id, &asked.owner)
    }

    /// When a model that nobody used counts as last used: not in the future.
    fn first_use(&self, given: u64, load_now: bool) -> UnixMillis {
        let now = self.clock.wall();
        let before = if load_now { USED_BEFORE_LOADING } else { USED_BEFORE };
        let usual = now.0.saturating_sub(u64::try_from(before.as_millis()).unwrap_or(u64::MAX));
        UnixMillis(if given == 0 { usual } else { given.min(now.0) })
    }

    /// Has a model loaded. With `sync` it answers when that is so, or when it has failed.
    async fn load(
        &self,
        managing: &Managing,
        id: &ModelId,
        used: Option<UnixMillis>,
        sync: bool,
        deadline: Deadline,
    ) -> Result<mmesh::ModelStatusInfo, Fault> {
        let Some(registration) = self.models.version(id.as_str()).filter(|_| sync) else {
            managing.by.load(id.as_str(), used).await;
            return standing(managing, id.as_str());
        };
        let before = managing.by.model(id.as_str()).map_err(Fault::Managed)?;
        // No runtime takes it: nothing would come of a load.
        if before.doing == Doing::LoadingFailed && before.copies.is_empty() {
            return Ok(model_message(before));
        }
        match self.loaded(&registration, deadline).await {
            Ok(guard) => {
                // While the guard lives the copy stays, so the pod's word that it is loaded is on its way.
                let said = self.clock.until(deadline, managing.by.model_is(id.as_str(), &[Doing::Loaded])).await;
                drop(guard);
                Ok(model_message(said.ok_or_else(|| late(id.as_str()))?))
            }
            Err(Fault::Wait { error: WaitError::Failed(failure), .. }) => {
                let said = self.clock.until(deadline, managing.by.model_is(id.as_str(), &[Doing::Loaded, Doing::LoadingFailed])).await;
                Ok(said.map_or_else(|| failed_message(&failure.message), model_message))
            }
            Err(fault) => Err(fault),
        }
    }

    /// A guarded copy. It takes no turn from those who have a request, and waits for none.
    async fn loaded(&self, registration: &Arc<Registration>, deadline: Deadline) -> Result<M::Guard, Fault> {
        let loading = async {
            match self.models.try_acquire(&registration.id) {
                Some(guard) => Ok(guard),
                None => self.models.ensure_loaded(registration, deadline).await,
            }
        };
        let loaded = self.clock.until(deadline, loading).await.unwrap_or(Err(WaitError::Deadline));
        loaded.map_err(|error| Fault::Wait { model: Quoted::new(registration.id.as_str()), error })
    }
}

fn unknown(method: &str) -> Fault {
    Fault::Unimplemented(format!("method {} of mmesh.ModelMesh is not implemented", Quoted::new(method)))
}

fn late(id: &str) -> Fault {
    Fault::Wait { model: Quoted::new(id), error: WaitError::Deadline }
}

fn filled(field: &str, text: &str) -> Result<(), Fault> {
    if text.is_empty() { Err(Fault::BadRequest(format!("{field} is empty"))) } else { Ok(()) }
}

fn model_id_of(field: &str, text: &str) -> Result<ModelId, Fault> {
    ModelId::new(text).map_err(|fault| Fault::BadRequest(format!("{field}: {fault}: at most 1024 bytes, no control characters")))
}

fn name_of(text: &str) -> Result<Name, Fault> {
    Name::new(text).map_err(|fault| Fault::BadRequest(format!("vModelId: {fault}: at most 253 bytes, no control characters")))
}

fn owner_of(text: &str) -> Result<Option<Arc<str>>, Fault> {
    match text {
        "" => Ok(None),
        long if long.len() > 253 => Err(Fault::BadRequest("owner is longer than 253 bytes".to_owned())),
        owner => Ok(Some(owner.into())),
    }
}

fn info(info: mmesh::ModelInfo) -> Result<ModelInfo, Fault> {
    let mmesh::ModelInfo { r#type, path, key } = info;
    filled("modelInfo.type", &r#type)?;
    for (field, text) in [("type", &r#type), ("path", &path), ("key", &key)] {
        if text.len() > LONGEST_TEXT {
            return Err(Fault::BadRequest(format!("modelInfo.{field} has {} bytes, at most {LONGEST_TEXT} are kept", text.len())));
        }
    }
    Ok(ModelInfo { kind: r#type, path, key })
}

fn standing(managing: &Managing, id: &str) -> Result<mmesh::ModelStatusInfo, Fault> {
    managing.by.model(id).map(model_message).map_err(Fault::Managed)
}

fn status_of(doing: Doing) -> mmesh::model_status_info::ModelStatus {
    use mmesh::model_status_info::ModelStatus;
    match doing {
        Doing::NotFound => ModelStatus::NotFound,
        Doing::NotLoaded => ModelStatus::NotLoaded,
        Doing::Loading => ModelStatus::Loading,
        Doing::Loaded => ModelStatus::Loaded,
        Doing::LoadingFailed => ModelStatus::LoadingFailed,
    }
}

fn model_message(standing: ModelStanding) -> mmesh::ModelStatusInfo {
    let copies = standing.copies.into_iter().map(|copy| mmesh::model_status_info::ModelCopyInfo {
        location: copy.location.to_string(),
        copy_status: status_of(copy.doing).into(),
        time: copy.time.0,
    });
    mmesh::ModelStatusInfo { status: status_of(standing.doing).into(), errors: standing.errors, model_copy_infos: copies.collect() }
}

fn failed_message(message: &str) -> mmesh::ModelStatusInfo {
    model_message(ModelStanding { doing: Doing::LoadingFailed, errors: vec![message.to_owned()], copies: Vec::new() })
}

fn name_standing(managing: &Managing, name: &str, owner: &str) -> Result<mmesh::VModelStatusInfo, Fault> {
    let owner = Some(owner).filter(|owner| !owner.is_empty());
    Ok(managing.by.name(name, owner).map_err(Fault::Managed)?.map(name_message).unwrap_or_default())
}

fn name_message(standing: NameStanding) -> mmesh::VModelStatusInfo {
    use mmesh::v_model_status_info::VModelStatus;
    let status = match standing.doing {
        NameDoing::Defined => VModelStatus::Defined,
        NameDoing::Transitioning => VModelStatus::Transitioning,
        NameDoing::TransitionFailed => VModelStatus::TransitionFailed,
    };
    let split = |version: Option<(ModelId, ModelStanding)>| version.map(|(id, standing)| (id.to_string(), model_message(standing))).unzip();
    let (active, active_status): (Option<String>, _) = split(standing.active);
    let (target, target_status): (Option<String>, _) = split(standing.target);
    mmesh::VModelStatusInfo {
        status: status.into(),
        target_model_id: target.or_else(|| active.clone()).unwrap_or_default(),
        active_model_id: active.unwrap_or_default(),
        active_model_status: active_status,
        target_model_status: target_status,
        owner: standing.owner.as_deref().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use berth_registry::Resolved;
    use berth_telemetry::{Clock, Metrics};

    use super::*;
    use crate::ProxyConfig;
    use crate::id::asked;
    use crate::scripted::{FakeInfer, FakeModels, Load, registration, rig};

    /// A loaded copy that has as many requests as it takes.
    struct Busy(FakeModels);

    impl Models for Busy {
        type Guard = <FakeModels as Models>::Guard;

        fn resolve(&self, id: &str) -> Resolved {
            self.0.resolve(id)
        }

        fn version(&self, id: &str) -> Option<Arc<Registration>> {
            self.0.version(id)
        }

        fn try_acquire(&self, model: &ModelId) -> Option<Self::Guard> {
            self.0.try_acquire(model)
        }

        async fn ensure_loaded(&self, model: &Arc<Registration>, deadline: Deadline) -> Result<Self::Guard, WaitError> {
            self.0.ensure_loaded(model, deadline).await
        }

        async fn turn(_guard: &mut Self::Guard) -> Result<(), WaitError> {
            Err(WaitError::TooManyWaiting { waiting: 16 })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_a_model_loaded_takes_no_turn_from_requests_and_waits_for_no_longer_than_it_said() {
        let models = FakeModels::new();
        let (infer, metrics) = (Arc::new(FakeInfer::default()), Metrics::default());
        let front = Frontend::new(Busy(models.clone()), infer, Clock::system(), &metrics, ProxyConfig::default(), Arc::new(|| Ok(())));
        let (digits, deadline) = (registration("digits__isvc-1111111111"), front.clock.deadline_in(Duration::from_secs(7)));
        let headers = HeaderMap::new();
        let fault =
            front.infer(&asked(&headers, "digits").unwrap(), berth_proto::inference::ModelInferRequest::default(), deadline).await.unwrap_err();
        assert!(matches!(fault, Fault::Wait { error: WaitError::TooManyWaiting { waiting: 16 }, .. }), "{fault}");
        assert!(front.loaded(&digits, deadline).await.is_ok(), "it is loaded, however busy it is");
        models.load.lock().push_back(Load::Never);
        let fault = front.loaded(&digits, deadline).await.err();
        assert_eq!(fault, Some(late("digits__isvc-1111111111")));
        assert_eq!((front.clock.now(), *models.guards.borrow()), (deadline.instant(), 0));
    }

    #[test]
    fn the_service_has_two_names_and_nothing_else_is_one_of_its_methods() {
        for (path, expected) in [
            ("/mmesh.ModelMesh/setVModel", Some("setVModel")),
            ("/com.ibm.watson.tas.proto.TasRuntime/addModel", Some("addModel")),
            ("/mmesh.ModelMesh", None),
            ("/mmesh.ModelMeshes/setVModel", None),
            ("/mmesh.ModelRuntime/loadModel", None),
        ] {
            assert_eq!(method(path), expected, "{path}");
        }
    }

    #[test]
    fn who_may_change_something_is_told_by_mode_and_token() {
        let token = Writes::Token(Arc::new(|given| given == b"s3cret"));
        for (writes, given, code) in [
            (&Writes::Open, None, None),
            (&Writes::Open, Some("Bearer other"), None),
            (&token, None, Some(tonic::Code::Unauthenticated)),
            (&token, Some("Bearer other"), Some(tonic::Code::Unauthenticated)),
            (&token, Some("s3cret"), Some(tonic::Code::Unauthenticated)),
            (&token, Some("Bearer"), Some(tonic::Code::Unauthenticated)),
            (&token, Some("Basic s3cret"), Some(tonic::Code::Unauthenticated)),
            (&token, Some("Bearer s3cret"), None),
            (&token, Some("bearer s3cret"), None),
            (&Writes::Off, Some("Bearer s3cret"), Some(tonic::Code::Unimplemented)),
        ] {
            let headers = given.map(|given| (header::AUTHORIZATION, given.parse().unwrap()));
            let refused = writes.check(&headers.into_iter().collect()).err().map(|fault| fault.verdict().code);
            assert_eq!(refused, code, "{given:?}");
        }
    }

    #[test]
    fn a_model_counts_as_used_when_its_registration_says_and_never_in_the_future() {
        let rig = rig();
        let now = rig.frontend.clock.wall();
        let hour = 3_600_000;
        for (given, load_now, expected) in [(0, false, now.0 - 6 * hour), (0, true, now.0 - hour), (7, true, 7), (now.0 + hour * 1000, false, now.0)]
        {
            let used = rig.frontend.first_use(given, load_now).0;
            assert!(used.abs_diff(expected) < hour / 60, "{given} {load_now}: {used}, not {expected}");
        }
    }
}
