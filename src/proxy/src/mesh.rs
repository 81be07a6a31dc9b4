//! `mmesh.ModelMesh`: models and names that are managed by calls.
//!
//! Only the wire is here: messages become values of [`berth_plan::managed`], [`Management`] carries them out, and what it
//! answers becomes messages again. A call with `sync` waits for the model as an inference would, under the caller's
//! deadline and ahead of loads that nobody waits for.
//!
//! The service is on the inference port of a process that has the models, or ([`port`]) on a port of a controller's own; then
//! the agents pass on what they are asked ([`remote`]).
//!
//! Who may change something is [`Writes`]; reading, and having a model loaded, is as free as inference is.

mod port;
mod remote;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use berth_plan::managed::{Doing, ModelInfo, ModelStanding, NameDoing, NameStanding, NewModel, Refused, SetName};
use berth_proto::mmesh;
use berth_registry::Management;
use berth_residency::WaitError;
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId, Name, Registration, UnixMillis};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, header};
use prost::Message;

use crate::body::{Incoming, Outgoing};
use crate::budget::{Budget, Share};
use crate::codes::{Fault, Quoted};
use crate::frontend::{Frontend, deadline};
use crate::grpc::SMALL_MESSAGE;
use crate::route::Models;
use crate::{ProxyConfig, wire};
pub use port::{ManagementPort, serve_management};
use remote::Remote;
pub use remote::{BearerToken, ControllerServer};

/// The service, and its name of before.
const SERVICES: [&str; 2] = ["/mmesh.ModelMesh/", "/com.ibm.watson.tas.proto.TasRuntime/"];

/// The methods that change something...
const CHANGES: [&str; 6] = ["registerModel", "addModel", "unregisterModel", "deleteModel", "setVModel", "deleteVModel"];
/// ...and those that do not, however often they are called.
const ASKS: [&str; 3] = ["getModelStatus", "ensureLoaded", "getVModelStatus"];

/// A model counts as last used this long ago when its registration says nothing...
const USED_BEFORE: Duration = Duration::from_secs(6 * 3600);
/// ...and is to be loaded now.
const USED_BEFORE_LOADING: Duration = Duration::from_secs(3600);
/// Keys and paths are stored and kept in memory: a call is refused that brings more.
const LONGEST_TEXT: usize = 16 * 1024;
/// How often a load in another process is asked for while somebody waits for it.
const ASK_AGAIN: Duration = Duration::from_secs(10);

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

/// What carries out the calls of a port.
pub(crate) enum Managing {
    /// A part of this process.
    Here(Desk),
    /// The controller of this agent.
    Controller(Remote),
}

/// What carries out calls, and who may make them.
pub(crate) struct Desk {
    pub(crate) by: Arc<dyn Management>,
    pub(crate) writes: Writes,
}

/// What calls need of the port that they come to.
#[derive(Clone, Copy)]
pub(crate) struct Front<'f> {
    pub(crate) bodies: &'f Budget,
    pub(crate) clock: &'f Clock,
    pub(crate) config: &'f ProxyConfig,
}

impl Front<'_> {
    fn deadline(&self, headers: &HeaderMap) -> Result<Deadline, Fault> {
        deadline(headers, self.config, self.clock)
    }

    /// The one message of a call, held by `share`.
    async fn message(&self, head: &Parts, body: impl Incoming, deadline: Deadline, share: &mut Share) -> Result<Bytes, Fault> {
        let messages = wire::Messages::new(&head.headers, body, SMALL_MESSAGE.min(self.config.max_message));
        self.clock.until(deadline, messages.only(share)).await.unwrap_or(Err(Fault::SlowRequest))
    }

    /// What a call asks, and until when.
    async fn read<Q: Message + Default>(&self, head: &Parts, body: impl Incoming) -> Result<(Q, Deadline), Fault> {
        let (deadline, mut share) = (self.deadline(&head.headers)?, self.bodies.share());
        Ok((wire::decode(self.message(head, body, deadline, &mut share).await?)?, deadline))
    }

    async fn answer<A: Message>(&self, deadline: Deadline, answer: impl Future<Output = Result<A, Fault>>) -> Result<Response<Outgoing>, Fault> {
        Ok(wire::answer(&self.clock.until(deadline, answer).await.unwrap_or(Err(Fault::Managed(Refused::Late)))?))
    }
}

/// Where callers wait for models.
pub(crate) trait Loads: Send + Sync {
    /// Keeps a copy loaded while it lives.
    type Guard: Send;

    /// A guarded copy of a model in this process, once it is loaded; `None`: there is no such model here.
    fn loading(&self, id: &ModelId, deadline: Deadline) -> Option<impl Future<Output = Result<Self::Guard, Fault>> + Send>;
}

/// The method of a path, if it is one of this service.
pub(crate) fn method(path: &str) -> Option<&str> {
    SERVICES.iter().find_map(|service| path.strip_prefix(service))
}

impl<M: Models> Frontend<M> {
    /// Answers calls of `mmesh.ModelMesh` from now on. Before, and without, they are unimplemented. The first one counts, here or
    /// by [`Frontend::forward_management`].
    pub fn manage(&self, by: Arc<dyn Management>, writes: Writes) {
        let _ = self.managing.set(Managing::Here(Desk { by, writes }));
    }

    /// Has a controller answer calls of `mmesh.ModelMesh` from now on. `writes`: who may change something, which is asked here
    /// first; where this agent shows a token of its own, that is all that is asked of its callers.
    pub fn forward_management(&self, controller: ControllerServer, writes: Writes) {
        let _ = self.managing.set(Managing::Controller(Remote::new(controller, writes, &self.clock)));
    }

    /// Answers one call.
    pub(crate) async fn mesh(&self, method: &str, head: &Parts, body: impl Incoming) -> Response<Outgoing> {
        let front = Front { bodies: &self.bodies, clock: &self.clock, config: &self.config };
        let answer = match self.managing.get() {
            None => Err(unknown(method)),
            Some(Managing::Here(desk)) => desk.answer(front, self, method, head, body).await,
            Some(Managing::Controller(remote)) => remote.pass(front, method, head, body).await,
        };
        answer.unwrap_or_else(|fault| wire::fault(&fault))
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

impl<M: Models> Loads for Frontend<M> {
    type Guard = M::Guard;

    fn loading(&self, id: &ModelId, deadline: Deadline) -> Option<impl Future<Output = Result<M::Guard, Fault>> + Send> {
        let registration = self.models.version(id.as_str())?;
        Some(async move { self.loaded(&registration, deadline).await })
    }
}

impl Desk {
    /// Answers one call.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn answer<L: Loads>(
        &self,
        front: Front<'_>,
        loads: &L,
        method: &str,
        head: &Parts,
        body: impl Incoming,
    ) -> Result<Response<Outgoing>, Fault> {
        let service = Service { by: &*self.by, loads, front };
        if CHANGES.contains(&method) {
            self.writes.check(&head.headers)?;
        }
        match method {
            "registerModel" | "addModel" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.register_model(asked, deadline)).await
            }
            "unregisterModel" | "deleteModel" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.unregister_model(asked, deadline)).await
            }
            "setVModel" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.set_vmodel(asked, deadline)).await
            }
            "deleteVModel" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.delete_vmodel(asked, deadline)).await
            }
            "getModelStatus" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.model_status(asked, deadline)).await
            }
            "ensureLoaded" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.ensure_loaded(asked, deadline)).await
            }
            "getVModelStatus" => {
                let (asked, deadline) = front.read(head, body).await?;
                front.answer(deadline, service.vmodel_status(asked, deadline)).await
            }
            _ => Err(unknown(method)),
        }
    }
}

/// What carries out one call.
struct Service<'s, L> {
    by: &'s dyn Management,
    loads: &'s L,
    front: Front<'s>,
}

impl<L: Loads> Service<'_, L> {
    async fn register_model(&self, asked: mmesh::RegisterModelRequest, deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        let mmesh::RegisterModelRequest { model_id, model_info, load_now, sync, last_used_time } = asked;
        let id = model_id_of("modelId", &model_id)?;
        let info = info(model_info.ok_or_else(|| Fault::BadRequest("modelInfo is missing".to_owned()))?)?;
        let last_used = first_use(self.front.clock, last_used_time, load_now);
        self.by.register(NewModel { id: id.clone(), info, last_used }).await.map_err(Fault::Managed)?;
        match load_now {
            true => self.load(&id, Some(last_used), sync, deadline).await,
            false => self.standing(&model_id),
        }
    }

    async fn unregister_model(&self, asked: mmesh::UnregisterModelRequest, _deadline: Deadline) -> Result<mmesh::UnregisterModelResponse, Fault> {
        self.by.unregister(model_id_of("modelId", &asked.model_id)?).await.map_err(Fault::Managed)?;
        Ok(mmesh::UnregisterModelResponse {})
    }

    async fn model_status(&self, asked: mmesh::GetStatusRequest, _deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        filled("modelId", &asked.model_id)?;
        self.standing(&asked.model_id)
    }

    async fn ensure_loaded(&self, asked: mmesh::EnsureLoadedRequest, deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        let mmesh::EnsureLoadedRequest { model_id, last_used_time, sync } = asked;
        filled("modelId", &model_id)?;
        if self.by.model(&model_id).map_err(Fault::Managed)?.doing == Doing::NotFound {
            return Err(Fault::UnknownModel(Quoted::new(&model_id)));
        }
        let used = (last_used_time != 0).then_some(UnixMillis(last_used_time));
        self.load(&model_id_of("modelId", &model_id)?, used, sync, deadline).await
    }

    async fn set_vmodel(&self, asked: mmesh::SetVModelRequest, deadline: Deadline) -> Result<mmesh::VModelStatusInfo, Fault> {
        let mmesh::SetVModelRequest { v_model_id, target_model_id, update_only, model_info, auto_delete_target_model, load_now, force, .. } = asked;
        let (sync, expected, owner) = (asked.sync, asked.expected_target_model_id, asked.owner);
        let (name, target) = (name_of(&v_model_id)?, model_id_of("targetModelId", &target_model_id)?);
        let ask = SetName {
            name,
            target: target.clone(),
            info: model_info.map(info).transpose()?,
            last_used: first_use(self.front.clock, 0, load_now),
            update_only,
            auto_delete: auto_delete_target_model,
            force,
            expected: if expected.is_empty() { None } else { Some(model_id_of("expectedTargetModelId", &expected)?) },
            owner: owner_of(&owner)?,
        };
        self.by.set_name(ask).await.map_err(Fault::Managed)?;
        let now = self.name_standing(&v_model_id, "")?;
        // A target that a name is on its way to is loaded anyway.
        let moving = now.status() == mmesh::v_model_status_info::VModelStatus::Transitioning;
        if load_now || (sync && moving) {
            self.load(&target, None, sync, deadline).await?;
        }
        if sync && moving {
            let settles = async {
                tokio::select! {
                    () = self.by.name_settles(&v_model_id, &target) => {}
                    _ = self.by.model_is(target.as_str(), &[Doing::LoadingFailed]) => {}
                }
            };
            self.front.clock.until(deadline, settles).await.ok_or_else(|| late(&v_model_id))?;
        }
        self.name_standing(&v_model_id, "")
    }

    async fn delete_vmodel(&self, asked: mmesh::DeleteVModelRequest, _deadline: Deadline) -> Result<mmesh::DeleteVModelResponse, Fault> {
        self.by.delete_name(name_of(&asked.v_model_id)?, owner_of(&asked.owner)?).await.map_err(Fault::Managed)?;
        Ok(mmesh::DeleteVModelResponse {})
    }

    async fn vmodel_status(&self, asked: mmesh::GetVModelStatusRequest, _deadline: Deadline) -> Result<mmesh::VModelStatusInfo, Fault> {
        filled("vModelId", &asked.v_model_id)?;
        self.name_standing(&asked.v_model_id, &asked.owner)
    }

    /// Has a model loaded. With `sync` it answers when that is so, or when it has failed.
    async fn load(&self, id: &ModelId, used: Option<UnixMillis>, sync: bool, deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        if !sync {
            self.by.load(id.as_str(), used).await;
            return self.standing(id.as_str());
        }
        let before = self.by.model(id.as_str()).map_err(Fault::Managed)?;
        // No runtime takes it: nothing would come of a load.
        if before.doing == Doing::LoadingFailed && before.copies.is_empty() {
            return Ok(model_message(before));
        }
        let clock = self.front.clock;
        let Some(loading) = self.loads.loading(id, deadline) else { return self.loaded_elsewhere(id, used, deadline).await };
        match loading.await {
            Ok(guard) => {
                // While the guard lives the copy stays, so the pod's word that it is loaded is on its way.
                let said = clock.until(deadline, self.by.model_is(id.as_str(), &[Doing::Loaded])).await;
                drop(guard);
                Ok(model_message(said.ok_or_else(|| late(id.as_str()))?))
            }
            Err(Fault::Wait { error: WaitError::Failed(failure), .. }) => {
                let said = clock.until(deadline, self.by.model_is(id.as_str(), &[Doing::Loaded, Doing::LoadingFailed])).await;
                Ok(said.map_or_else(|| failed_message(&failure.message), model_message))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Has a model loaded in another process, and waits for what its pod says. Asked again now and then: there may have been no
    /// room, or no pod.
    async fn loaded_elsewhere(&self, id: &ModelId, used: Option<UnixMillis>, deadline: Deadline) -> Result<mmesh::ModelStatusInfo, Fault> {
        let clock = self.front.clock;
        let asking = async {
            loop {
                self.by.load(id.as_str(), used).await;
                let ends = self.by.model_is(id.as_str(), &[Doing::Loaded, Doing::LoadingFailed]);
                if let Some(said) = clock.until(clock.deadline_in(ASK_AGAIN), ends).await {
                    return said;
                }
            }
        };
        Ok(model_message(clock.until(deadline, asking).await.ok_or_else(|| late(id.as_str()))?))
    }

    fn standing(&self, id: &str) -> Result<mmesh::ModelStatusInfo, Fault> {
        self.by.model(id).map(model_message).map_err(Fault::Managed)
    }

    fn name_standing(&self, name: &str, owner: &str) -> Result<mmesh::VModelStatusInfo, Fault> {
        let owner = Some(owner).filter(|owner| !owner.is_empty());
        Ok(self.by.name(name, owner).map_err(Fault::Managed)?.map(name_message).unwrap_or_default())
    }
}

/// When a model that nobody used counts as last used: not in the future.
fn first_use(clock: &Clock, given: u64, load_now: bool) -> UnixMillis {
    let now = clock.wall();
    let before = if load_now { USED_BEFORE_LOADING } else { USED_BEFORE };
    let usual = now.0.saturating_sub(u64::try_from(before.as_millis()).unwrap_or(u64::MAX));
    UnixMillis(if given == 0 { usual } else { given.min(now.0) })
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
