//! Tells the person who started `berth serve` what happens: follows statuses and downloads and prints what is news.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_adapters::RuntimeInfo;
use berth_plan::resource::is_ours;
use berth_proxy::Tls;
use berth_puller::Progress;
use berth_registry::{Changes, Json, Kind, Object, ObjectKey, Resolved, Views};
use berth_residency::Residency;
use berth_telemetry::Clock;
use berth_telemetry::field::took;
use berth_types::{ByteSize, CopyState, Owner};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Role};
use crate::machine::Budget;
use crate::ports::Addresses;
use crate::serve::shown;
use crate::tls::{self, Reached};
use crate::token::ApiToken;
use crate::ui::{Standing, Ui};

/// What the narrator follows, and what it needs for its line to paste.
pub(crate) struct Sources {
    /// Resources and their statuses.
    pub(crate) changes: Changes,
    /// Steps of downloads.
    pub(crate) downloads: broadcast::Receiver<Progress>,
    /// True once statuses say what is.
    pub(crate) caught_up: watch::Receiver<bool>,
    /// The folder of resources.
    pub(crate) manifests: PathBuf,
    /// How REST is reached, unless it is off.
    pub(crate) rest: Option<Reached>,
}

/// What is said at the end.
const STOPPING: &str = "no new requests; those in flight are answered";

/// Says where a controller listens, and when it knows what is. Completes at the end of `stopping`.
pub(crate) async fn lead(ui: Ui, clock: Clock, config: Config, at: Leads, mut caught_up: watch::Receiver<bool>, stopping: CancellationToken) {
    let started = clock.now();
    ui.line("berth", env!("CARGO_PKG_VERSION"));
    ui.line("models from", &shown(&config.manifests));
    if let Some(file) = &config.file {
        ui.line("settings", &shown(file));
    }
    ui.line("agents", &at.agents.to_string());
    ui.line("calls", &at.grpc.to_string());
    ui.line("resources", &format!("http://{}/apis/serving.kserve.io", at.api));
    ui.line("token", &access(config.api_token.as_ref()));
    ui.line("metrics", &format!("http://{}/metrics", at.metrics));
    ui.line("probes", &format!("http://{}/ready", at.probes));
    let known = async { while !*caught_up.borrow_and_update() && caught_up.changed().await.is_ok() {} };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = known => {
            ui.line("ready", &format!("statuses say what is after {}", took(clock.now().saturating_duration_since(started))));
            stopping.cancelled().await;
        }
    }
    ui.line("stopping", "agents serve on with what they know");
}

/// Where a controller listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leads {
    /// For agents.
    pub(crate) agents: SocketAddr,
    /// For calls that manage models.
    pub(crate) grpc: SocketAddr,
    /// The resource API.
    pub(crate) api: SocketAddr,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
    /// Probes.
    pub(crate) probes: SocketAddr,
}

/// Prints; owns what has been printed.
pub(crate) struct Narrator {
    ui: Ui,
    clock: Clock,
    views: Views,
    residency: Residency,
    started: Instant,
    /// Resources for which something is still on its way; kept until the start is over.
    unsettled: BTreeSet<ObjectKey>,
    sizes: BTreeMap<String, ByteSize>,
    said_ready: bool,
}

impl Narrator {
    /// Prints to `ui`; the time since now is what "after" means in its lines.
    pub(crate) fn new(ui: Ui, clock: Clock, views: Views, residency: Residency) -> Self {
        let started = clock.now();
        Narrator { ui, clock, views, residency, started, unsettled: BTreeSet::new(), sizes: BTreeMap::new(), said_ready: false }
    }

    /// What runs, on what, with which limits.
    pub(crate) fn starting(&self, config: &Config, memory: &Budget, disk: &Budget, runtime: &RuntimeInfo) {
        self.ui.line("berth", env!("CARGO_PKG_VERSION"));
        match &config.role {
            Role::Attends(controller) => self.ui.line("led by", &controller.target.to_string()),
            Role::Alone | Role::Leads(_) => self.ui.line("models from", &shown(&config.manifests)),
        }
        if let Some(file) = &config.file {
            self.ui.line("settings", &shown(file));
        }
        self.ui.line("memory", &format!("{} ({})", memory.bytes, memory.origin));
        self.ui.line("disk", &format!("{} in {} ({})", disk.bytes, shown(&config.data), disk.origin));
        self.ui.line("engine", &runtime.version);
    }

    /// Where it listens, and who is answered there.
    pub(crate) fn listening(&self, at: &Addresses, tls: Option<&Tls>, token: Option<&ApiToken>) {
        self.ui.line("gRPC", &at.grpc.to_string());
        match at.rest {
            Some(addr) => self.ui.line("REST", &format!("{}://{addr}", if tls.is_some() { "https" } else { "http" })),
            None => self.ui.line("REST", "off"),
        }
        if let Some(tls) = tls {
            self.ui.line("TLS", &tls::line(tls));
        }
        self.ui.line("resources", &format!("http://{}/apis/serving.kserve.io", at.api));
        self.ui.line("token", &access(token));
        self.ui.line("metrics", &format!("http://{}/metrics", at.metrics));
        self.ui.line("probes", &format!("http://{}/ready", at.probes));
    }

    /// Where nobody here has resources: says when it is known which models there are, and that it stops.
    pub(crate) async fn attend(self, stopping: CancellationToken) {
        let mut numbers = self.views.numbers();
        let known = async { while !self.views.current().is_ready() && numbers.changed().await.is_ok() {} };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = known => {
                let after = took(self.clock.now().saturating_duration_since(self.started));
                self.ui.line("ready", &format!("{} models known after {after}", self.views.current().model_count()));
                stopping.cancelled().await;
            }
        }
        self.ui.line("stopping", STOPPING);
    }

    /// Follows everything until `stopping`, and says so then.
    pub(crate) async fn run(mut self, sources: Sources, stopping: CancellationToken) {
        let Sources { mut changes, mut downloads, mut caught_up, manifests, rest } = sources;
        let mut reports = self.residency.reports();
        // What the store says before the leader has caught up is what was true in an earlier life.
        let mut unsaid: BTreeMap<ObjectKey, Option<Arc<Object>>> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return self.ui.line("stopping", STOPPING),
                Some(reports) = reports.next() => {
                    for report in reports {
                        if let CopyState::Loaded { footprint, .. } = report.state {
                            self.sizes.insert(report.model.as_str().to_owned(), footprint.total());
                        } else if matches!(report.state, CopyState::Absent) {
                            self.sizes.remove(report.model.as_str());
                        }
                    }
                }
                changed = changes.next() => match changed {
                    Some(changed) => unsaid.extend(changed.into_iter().map(|change| (change.key, change.object))),
                    None => return,
                },
                Ok(()) = caught_up.changed() => {}
                step = downloads.recv() => match step {
                    Ok(step) => self.download(&step),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
            if *caught_up.borrow() {
                for (key, object) in std::mem::take(&mut unsaid) {
                    self.resource(&key, object.as_deref());
                }
                self.maybe_ready(&manifests, rest.as_ref());
            }
        }
    }

    fn download(&mut self, step: &Progress) {
        self.ui.download(step.model.as_str(), step.bytes, step.total, step.stage.is_end());
    }

    fn resource(&mut self, key: &ObjectKey, object: Option<&Object>) {
        let owner = match key.kind {
            Kind::InferenceService => Owner::Isvc,
            Kind::Predictor => Owner::Ksp,
            Kind::ServingRuntime | Kind::ClusterServingRuntime => return,
        };
        match object {
            None => {
                self.unsettled.remove(key);
                self.ui.gone(key.kind, &name_of(key));
            }
            Some(object) if !is_ours(owner, &object.annotations.members()) => {
                // Said because the annotation is easily forgotten; nothing waits for it, and no request reaches it.
                self.unsettled.remove(key);
                self.ui.standing(&unmanaged(key));
            }
            Some(object) => {
                let mut standing = standing(key, object.status.as_ref().map(Json::value).as_ref());
                if let Resolved::Model(registration) = self.views.current().resolve(key.name.as_str()) {
                    standing.size = self.sizes.get(registration.id.as_str()).copied();
                }
                if standing.settled() || self.said_ready {
                    self.unsettled.remove(key);
                } else {
                    self.unsettled.insert(key.clone());
                }
                self.ui.standing(&standing);
            }
        }
    }

    /// Says once that everything has been loaded that could be, with a line to paste.
    fn maybe_ready(&mut self, manifests: &Path, rest: Option<&Reached>) {
        if self.said_ready || !self.unsettled.is_empty() {
            return;
        }
        self.said_ready = true;
        self.ui.ready(self.clock.now().saturating_duration_since(self.started));
        if let Some(line) = rest.and_then(|rest| self.try_it(manifests, rest)) {
            self.ui.line("try", &line);
        }
    }

    /// A line that gets a prediction where the folder has a recorded request, else one that shows a model's interface.
    fn try_it(&self, manifests: &Path, rest: &Reached) -> Option<String> {
        let (view, requests) = (self.views.current(), manifests.join("requests"));
        let mut recorded: Vec<String> = std::fs::read_dir(&requests)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .filter(|name| view.name(name).is_some())
            .collect();
        // Digits first: the reader can check the answer against the drawing in the request.
        recorded.sort_by_key(|name| (name != "digits-mlp", name.clone()));
        let Reached { curl, url } = rest;
        match recorded.first() {
            Some(name) => {
                let file = shown(&requests.join(format!("{name}.json")));
                Some(format!("{curl} {url}/v2/models/{name}/infer -d @{file}"))
            }
            None => view.names().map(|(name, _)| name).min().map(|name| format!("{curl} {url}/v2/models/{name}")),
        }
    }
}

/// Whether the resource API asks for a token, and which one: never what it is.
fn access(token: Option<&ApiToken>) -> String {
    match token {
        None => "none: the resource API answers everybody on this machine, and nobody else".to_owned(),
        Some(ApiToken { file: Some(file), .. }) => format!("the resource API asks for the one in {}", shown(file)),
        Some(ApiToken { file: None, .. }) => "the resource API asks for the one in BERTH_API_TOKEN".to_owned(),
    }
}

fn name_of(key: &ObjectKey) -> String {
    match &key.namespace {
        Some(namespace) if namespace.as_str() != "default" => format!("{namespace}/{}", key.name),
        _ => key.name.to_string(),
    }
}

/// A resource that is somebody else's.
fn unmanaged(key: &ObjectKey) -> Standing {
    let why = "left alone: the annotation serving.kserve.io/deploymentMode: ModelMesh makes it ours";
    Standing { kind: key.kind, name: name_of(key), state: "Unmanaged".to_owned(), failure: Some(why.to_owned()), size: None }
}

fn standing(key: &ObjectKey, status: Option<&Value>) -> Standing {
    let nothing = Value::Null;
    let status = status.unwrap_or(&nothing);
    let (model, states) = match key.kind {
        Kind::Predictor => (status, status),
        _ => (&status["modelStatus"], &status["modelStatus"]["states"]),
    };
    let invalid = model["transitionStatus"] == "InvalidSpec";
    let state = if invalid { "InvalidSpec" } else { states["activeModelState"].as_str().filter(|state| !state.is_empty()).unwrap_or("Pending") };
    let failure = &model["lastFailureInfo"];
    let failure = failure["reason"].as_str().map(|reason| match failure["message"].as_str() {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    });
    Standing { kind: key.kind, name: name_of(key), state: state.to_owned(), failure, size: None }
}

#[cfg(test)]
mod tests {
    use berth_api::Token;
    use berth_types::{Name, Namespace};
    use serde_json::json;

    use super::*;

    fn key(kind: Kind, namespace: &str) -> ObjectKey {
        ObjectKey { kind, namespace: Namespace::new(namespace).ok(), name: Name::new("m").expect("a name") }
    }

    #[test]
    fn the_standing_is_read_from_the_status_of_either_kind() {
        let failure = json!({"reason": "ModelLoadFailed", "message": "no such file"});
        for (case, kind, status, state, why) in [
            ("nothing written yet", Kind::InferenceService, None, "Pending", None),
            (
                "an InferenceService",
                Kind::InferenceService,
                Some(json!({"modelStatus": {"transitionStatus": "UpToDate", "states": {"activeModelState": "Standby"}}})),
                "Standby",
                None,
            ),
            (
                "an InferenceService that fails",
                Kind::InferenceService,
                Some(json!({"modelStatus": {"states": {"activeModelState": "FailedToLoad"}, "lastFailureInfo": failure}})),
                "FailedToLoad",
                Some("ModelLoadFailed: no such file"),
            ),
            ("a Predictor", Kind::Predictor, Some(json!({"transitionStatus": "UpToDate", "activeModelState": "Loaded"})), "Loaded", None),
            ("an invalid one", Kind::Predictor, Some(json!({"transitionStatus": "InvalidSpec", "activeModelState": "Pending"})), "InvalidSpec", None),
        ] {
            let standing = standing(&key(kind, "default"), status.as_ref());
            assert_eq!((standing.state.as_str(), standing.failure.as_deref()), (state, why), "{case}");
        }
    }

    #[test]
    fn who_is_answered_is_told_without_the_token() {
        let token = |file: Option<&str>| ApiToken { token: Token::new("s3cret").expect("a token"), file: file.map(PathBuf::from) };
        for (token, expected) in [
            (None, "none: the resource API answers everybody on this machine, and nobody else"),
            (Some(token(Some("/run/berth.token"))), "the resource API asks for the one in /run/berth.token"),
            (Some(token(None)), "the resource API asks for the one in BERTH_API_TOKEN"),
        ] {
            assert_eq!(access(token.as_ref()), expected);
        }
    }

    #[test]
    fn a_namespace_is_shown_unless_it_is_the_default_one() {
        assert_eq!(name_of(&key(Kind::Predictor, "default")), "m");
        assert_eq!(name_of(&key(Kind::Predictor, "tenant")), "tenant/m");
    }
}
