//! An agent and its controller in two processes: who the agent is, where the controller is, and who may attend there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::{Access, Limits, Token};
use berth_attendance::{Admits, Attendant, Hub, Settings, Shows, Wire};
use berth_proxy::{ControllerServer, ProxyConfig};
use berth_registry::{MemoryStore, Views};
use berth_residency::Residency;
use berth_telemetry::{Clock, HostNet, Listener, Metrics};
use berth_types::{Footprint, Location, PodId};
use berth_upstream::Target;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Role};
use crate::leading::Here;
use crate::token::ApiToken;

/// An agent has noticed within this that its stream is dead, and has come back.
pub(crate) const BACK_WITHIN: Duration = Duration::from_secs(30);

/// The controller that an agent attends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Controller {
    /// Its port for agents.
    pub(crate) target: Target,
    /// Its port for calls that manage models; `None`: they are not passed on.
    pub(crate) calls: Option<Target>,
    /// What it asks for.
    pub(crate) token: Option<ApiToken>,
}

/// This agent.
pub(crate) struct Who {
    pub(crate) location: Location,
    pub(crate) runtime: Arc<str>,
    pub(crate) budget: Footprint,
    pub(crate) loads_at_a_time: u32,
}

/// The agent's end of the stream.
///
/// # Errors
/// The data folder cannot be used, or the token cannot be sent.
pub(crate) fn attendant(
    config: &Config,
    token: Option<watch::Receiver<Token>>,
    who: Who,
    residency: &Residency,
    views: &Views,
    clock: &Clock,
    metrics: &Metrics,
) -> anyhow::Result<Attendant> {
    let Role::Attends(Controller { target, .. }) = &config.role else {
        anyhow::bail!("there is no controller to attend: this is a bug");
    };
    let state = config.data.join("agent");
    std::fs::create_dir_all(&state).with_context(|| format!("--data: {}", state.display()))?;
    let pod = identity(&state.join("id")).with_context(|| format!("--data: {}", state.join("id").display()))?;
    let wire = Wire::new(target.to_string(), target.peer().clone(), token.map(shows), HostNet::shared());
    let Who { location, runtime, budget, loads_at_a_time } = who;
    let who = berth_attendance::Who { pod, location, runtime, budget, loads_at_a_time };
    let file = Some(state.join("view"));
    Ok(Attendant::new(Arc::new(wire), who, residency.clone(), views.clone(), clock.clone(), metrics.clone(), file))
}

/// What an agent that attends tells at the port of its resource API: of itself, and that the resources are elsewhere.
pub(crate) fn api(config: &Config, views: &Views, here: Here, access: Access, clock: &Clock) -> berth_api::Deps {
    let led_by = match &config.role {
        Role::Attends(controller) => Some(controller.target.to_string().into()),
        Role::Alone | Role::Leads(_) => None,
    };
    berth_api::Deps {
        store: Arc::new(MemoryStore::new(clock.clone())),
        views: views.clone(),
        clock: clock.clone(),
        faults: None,
        downloads: here.downloads,
        drifts: None,
        memory: here.memory,
        led_by,
        access,
        limits: Limits::default(),
    }
}

/// Where calls that manage models are passed on to, if they are.
pub(crate) fn management(config: &Config, token: Option<watch::Receiver<Token>>) -> Option<ControllerServer> {
    let Role::Attends(Controller { calls, .. }) = &config.role else { return None };
    Some(ControllerServer { target: calls.clone()?, net: HostNet::shared(), token: token.map(shows) })
}

/// The token as it is at each call.
fn shows(token: watch::Receiver<Token>) -> Shows {
    Arc::new(move || token.borrow().secret().to_owned())
}

/// Who this agent is, for as long as its data folder lives: made when it is asked for first.
fn identity(file: &Path) -> anyhow::Result<PodId> {
    match std::fs::read_to_string(file) {
        Ok(text) => PodId::new(text.trim()).context("this is no identity: remove the file, and the agent is a new one"),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
            let made = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            // Whole or not at all.
            let beside = file.with_extension("new");
            std::fs::write(&beside, &made)?;
            std::fs::rename(&beside, file)?;
            Ok(PodId::new(made.trim())?)
        }
        Err(fault) => Err(fault.into()),
    }
}

/// The controller's end: agents of before are remembered in the data folder.
pub(crate) fn hub(config: &Config, views: &Views, clock: &Clock, metrics: &Metrics) -> Hub {
    let settings = Settings { remembered: Some(config.data.join("agents.json")), ..Settings::default() };
    Hub::open(views.clone(), settings, clock.clone(), metrics.clone())
}

/// Lets agents attend at this port until `stop`: those that bring the token, where there is one. The port has the limits of the others:
/// heads have their time, connections their number.
pub(crate) async fn serve(hub: Hub, listener: Listener, token: Option<watch::Receiver<Token>>, clock: Clock, stop: CancellationToken) {
    let admits: Admits = Arc::new(move |given| match (&token, given) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(token), Some(given)) => {
            std::str::from_utf8(given).ok().and_then(|given| Token::new(given).ok()).is_some_and(|given| given == *token.borrow())
        }
    });
    let service = berth_attendance::service(hub.clone(), admits);
    let answer = move |request| {
        let mut service = service.clone();
        async move { tower::Service::call(&mut service, request).await }
    };
    let config = ProxyConfig::default();
    let ends = async {
        stop.cancelled().await;
        // Streams last: they end, so that connections can.
        hub.end();
    };
    tokio::join!(berth_proxy::serve_http(listener, answer, &config, &clock, stop.clone()), ends);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_the_same_for_as_long_as_its_folder_lives_and_no_two_are() {
        let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let of = |folder: &tempfile::TempDir| identity(&folder.path().join("id")).expect("it is made");
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other));
        std::fs::write(one.path().join("id"), "").expect("written");
        let fault = identity(&one.path().join("id")).expect_err("it is empty");
        assert!(fault.to_string().contains("remove the file"), "{fault}");
    }
}
