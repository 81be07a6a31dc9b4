//! `berth serve` as a process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::http::{Reply, get, post};
use crate::real_time::{Found, eventually};
use crate::{Exit, Parts, Process, Quickstart, free_port};

/// Long enough for a start with every model loaded on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The flags that say where to listen.
const LISTENERS: [&str; 5] = ["--grpc", "--rest", "--api", "--metrics", "--probes"];
/// That of the hook before the end, which only agents have by themselves.
const PRESTOP: &str = "--prestop";
/// Where agents attend, which only a controller has.
const AGENTS: &str = "--agents";

/// How `berth serve` is to be started: every listener on a free port of the loopback address.
pub struct Serve {
    command: Command,
    words: &'static [&'static str],
    flags: BTreeMap<String, OsString>,
}

impl Serve {
    /// Serves `manifests` with its state in `data`, both of the caller, with the engine that is built in.
    #[must_use]
    pub fn new(parts: &Parts, manifests: &Path, data: &Path) -> Self {
        let mut command = Command::new(&parts.bin);
        // The environment of the test run is not the environment of the program.
        let ours = |name: &str| name.starts_with("BERTH_") || name.starts_with("MM_") || name == "ORT_DYLIB_PATH";
        for (variable, _) in std::env::vars_os().filter(|(name, _)| ours(&name.to_string_lossy())) {
            command.env_remove(variable);
        }
        let mut serve = Serve { command, words: &["serve"], flags: BTreeMap::new() }.flag("--manifests", manifests).flag("--data", data);
        for listener in LISTENERS {
            serve = serve.flag(listener, format!("127.0.0.1:{}", free_port()));
        }
        serve
    }

    /// As `berth agent --standalone`, before an inference server of this kind at `endpoint`, which reads models from
    /// `repository`.
    #[must_use]
    pub fn beside(mut self, runtime: &str, endpoint: &str, repository: &Path) -> Self {
        self.words = &["agent", "--standalone"];
        self.flag("--runtime", runtime).flag("--runtime-endpoint", endpoint).flag("--repository", repository).prestop()
    }

    /// As `berth controller` with the same resources.
    #[must_use]
    pub fn leads(mut self) -> Self {
        self.words = &["controller"];
        let not_of_it = ["--rest", PRESTOP, "--host-memory", "--storage-config"];
        self.flags.retain(|flag, _| !not_of_it.contains(&flag.as_str()));
        self.flag(AGENTS, format!("127.0.0.1:{}", free_port()))
    }

    /// As an agent of `controller`, rather than one with resources of its own.
    #[must_use]
    pub fn led_by(mut self, controller: &Berth) -> Self {
        self.words = &["agent"];
        self.unset("--manifests").flag("--controller", controller.agents()).flag("--controller-grpc", controller.grpc())
    }

    /// With a listener for the hook before the end.
    #[must_use]
    pub fn prestop(self) -> Self {
        self.flag(PRESTOP, format!("127.0.0.1:{}", free_port()))
    }

    /// Sets a flag to a value; the last value of a flag counts.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.flags.insert(flag.to_owned(), value.into());
        self
    }

    /// Leaves a flag out again, so that the environment, a file or the default decides.
    #[must_use]
    pub fn unset(mut self, flag: &str) -> Self {
        self.flags.remove(flag);
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, variable: &str, value: &str) -> Self {
        self.command.env(variable, value);
        self
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut self) -> Result<Berth> {
        self.command.args(self.words);
        for (flag, value) in &self.flags {
            self.command.arg(flag).arg(value);
        }
        let given = |listener: &str| self.flags.get(listener).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        let ([grpc, rest, api, metrics, probes], prestop, agents) = (LISTENERS.map(given), given(PRESTOP), given(AGENTS));
        Ok(Berth { process: Process::start("berth", self.command)?, grpc, rest, api, metrics, probes, prestop, agents })
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes longer than a minute.
    pub async fn start(self) -> Result<Berth> {
        let mut berth = self.spawn()?;
        berth.ready().await?;
        Ok(berth)
    }
}

/// A running `berth serve`. Killed when dropped.
pub struct Berth {
    process: Process,
    grpc: String,
    rest: String,
    api: String,
    metrics: String,
    probes: String,
    prestop: String,
    agents: String,
}

impl Berth {
    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes longer than a minute.
    pub async fn ready(&mut self) -> Result<()> {
        self.process.line("the ready line", START, |line| line.starts_with("ready")).await?;
        Ok(())
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Address of gRPC inference.
    #[must_use]
    pub fn grpc(&self) -> String {
        self.grpc.clone()
    }

    /// Address of REST inference.
    #[must_use]
    pub fn rest(&self) -> String {
        self.rest.clone()
    }

    /// Where agents attend a controller.
    #[must_use]
    pub fn agents(&self) -> String {
        self.agents.clone()
    }

    /// A URL of the resource API.
    #[must_use]
    pub fn api(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// A URL of the metrics listener.
    #[must_use]
    pub fn metrics(&self, path: &str) -> String {
        format!("http://{}{path}", self.metrics)
    }

    /// A URL of the probes listener.
    #[must_use]
    pub fn probes(&self, path: &str) -> String {
        format!("http://{}{path}", self.probes)
    }

    /// A URL of the listener for the hook before the end.
    #[must_use]
    pub fn prestop(&self, path: &str) -> String {
        format!("http://{}{path}", self.prestop)
    }

    /// Sends the body of a REST inference request to `model`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn infer(&self, model: &str, body: impl Into<bytes::Bytes>) -> Result<Reply> {
        post(&format!("http://{}/v2/models/{model}/infer", self.rest()), body).await
    }

    /// Sends `name`'s recorded request and checks the answer.
    ///
    /// # Errors
    /// With what was answered instead.
    pub async fn answers(&self, quickstart: &Quickstart, name: &str) -> Result<()> {
        let reply = self.infer(name, quickstart.request(name)?).await?;
        quickstart.check(name, &reply.good().with_context(|| name.to_owned())?)
    }

    /// Waits until `name` answers this request.
    ///
    /// # Errors
    /// With what was answered last.
    pub async fn comes_to_answer(&self, name: &str, body: impl Into<bytes::Bytes>, within: Duration) -> Result<()> {
        let body = body.into();
        eventually(&format!("an answer of {name}"), within, || async {
            let reply = self.infer(name, body.clone()).await?;
            Ok(if reply.status == 200 { Found::Yes(()) } else { Found::NotYet(format!("{} {}", reply.status, reply.text())) })
        })
        .await
    }

    /// Waits until new requests are refused before they come in.
    ///
    /// # Errors
    /// With what was answered last.
    pub async fn refuses(&self, name: &str, body: impl Into<bytes::Bytes>, within: Duration) -> Result<()> {
        let body = body.into();
        eventually("new requests to be refused", within, || async {
            Ok(match self.infer(name, body.clone()).await {
                Err(fault) if crate::http::is_refused(&fault) => Found::Yes(()),
                Err(fault) => Found::NotYet(format!("{fault:#}")),
                Ok(reply) => Found::NotYet(reply.status.to_string()),
            })
        })
        .await
    }

    /// The resource of that name: an InferenceService, or else a Predictor.
    ///
    /// # Errors
    /// When there is neither.
    pub async fn resource(&self, name: &str) -> Result<Value> {
        let service = get(&self.api(&format!("/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/{name}"))).await?;
        if service.status == 404 {
            return get(&self.api(&format!("/apis/serving.kserve.io/v1alpha1/namespaces/default/predictors/{name}"))).await?.good();
        }
        service.good()
    }

    /// Who every model resource is, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn identities(&self) -> Result<BTreeMap<String, Identity>> {
        let mut found = BTreeMap::new();
        for kind in ["v1beta1/namespaces/default/inferenceservices", "v1alpha1/namespaces/default/predictors"] {
            let list = get(&self.api(&format!("/apis/serving.kserve.io/{kind}"))).await?.good()?;
            for metadata in list["items"].as_array().context("a list has items")?.iter().map(|item| &item["metadata"]) {
                let identity = Identity {
                    uid: metadata["uid"].as_str().filter(|uid| !uid.is_empty()).with_context(|| format!("no uid in {metadata}"))?.to_owned(),
                    generation: metadata["generation"].as_u64().with_context(|| format!("no generation in {metadata}"))?,
                };
                found.insert(metadata["name"].as_str().context("a resource has a name")?.to_owned(), identity);
            }
        }
        Ok(found)
    }

    /// A counter or gauge: the sum over all its labels.
    ///
    /// # Errors
    /// When there is no such family.
    pub async fn metric(&self, family: &str) -> Result<f64> {
        let text = get(&self.metrics("/metrics")).await?.text();
        sum(&text, family).with_context(|| format!("{family} is not among the metrics\n{text}"))
    }

    /// Waits until it has begun to end: the probe says that it takes no more requests.
    ///
    /// # Errors
    /// When it goes on being ready.
    pub async fn drains(&self) -> Result<()> {
        eventually("the begin of the drain", Duration::from_secs(10), || async {
            let reply = get(&self.probes("/ready")).await?;
            Ok(if reply.status == 503 { Found::Yes(()) } else { Found::NotYet(format!("{} {}", reply.status, reply.text())) })
        })
        .await
    }

    /// How that resource stands now.
    ///
    /// # Errors
    /// When there is no such resource.
    pub async fn standing(&self, name: &str) -> Result<Standing> {
        Standing::of(&self.resource(name).await?)
    }

    /// Waits until `wanted` holds of that resource.
    ///
    /// # Errors
    /// After `within`, with how it stood last.
    pub async fn stands(&self, name: &str, within: Duration, wanted: impl Fn(&Standing) -> bool) -> Result<Standing> {
        eventually(&format!("{name} to stand as wanted"), within, || async {
            Ok(match self.standing(name).await {
                Ok(standing) if wanted(&standing) => Found::Yes(standing),
                Ok(standing) => Found::NotYet(format!("{standing:?}")),
                // The resource may be on its way in from the folder.
                Err(fault) => Found::NotYet(format!("{fault:#}")),
            })
        })
        .await
    }

    /// Asks it to end as Ctrl-C does.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn ctrl_c(&self) -> Result<()> {
        self.process.signal(Signal::INT)
    }

    /// Asks it to end as Ctrl-C does, and waits for its end.
    ///
    /// # Errors
    /// When it takes longer than the tests allow.
    pub async fn interrupt(&mut self) -> Result<Exit> {
        self.ctrl_c()?;
        self.process.exit(Duration::from_secs(40)).await
    }
}

/// The samples of `family` in a page of metrics, added up; `None` when there is none.
fn sum(page: &str, family: &str) -> Option<f64> {
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(family).filter(|rest| rest.starts_with([' ', '{']))?;
        rest.rsplit(' ').next()?.parse().ok()
    });
    samples.reduce(|sum: f64, sample| sum + sample)
}

/// What stays the same about a resource as long as its store and its spec do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Given by the store when it first saw the resource.
    pub uid: String,
    /// Counts changes of the spec, from 1.
    pub generation: u64,
}

/// What a resource's status says, in the same words for both kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// State of the active model.
    pub active: String,
    /// State of the target model, empty when it is the active one.
    pub target: String,
    /// How the active model relates to the spec.
    pub transition: String,
    /// Whether requests may be sent.
    pub available: bool,
    /// Copies that are loaded.
    pub copies: u64,
    /// Reason of the last failure.
    pub reason: String,
    /// Message of the last failure.
    pub message: String,
}

impl Standing {
    /// Reads it from a whole resource.
    ///
    /// # Errors
    /// When it is not a resource.
    pub fn of(resource: &Value) -> Result<Self> {
        let status = &resource["status"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let failure = |status: &Value| (text(&status["lastFailureInfo"]["reason"]), text(&status["lastFailureInfo"]["message"]));
        match resource["kind"].as_str().context("a resource has a kind")? {
            "Predictor" => {
                let (reason, message) = failure(status);
                Ok(Standing {
                    active: text(&status["activeModelState"]),
                    target: text(&status["targetModelState"]),
                    transition: text(&status["transitionStatus"]),
                    available: status["available"] == true,
                    copies: status["totalCopies"].as_u64().unwrap_or(0),
                    reason,
                    message,
                })
            }
            _ => {
                let model = &status["modelStatus"];
                let (reason, message) = failure(model);
                let ready = status["conditions"].as_array().into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
                Ok(Standing {
                    active: text(&model["states"]["activeModelState"]),
                    target: text(&model["states"]["targetModelState"]),
                    transition: text(&model["transitionStatus"]),
                    available: ready,
                    copies: model["copies"]["totalCopies"].as_u64().unwrap_or(0),
                    reason,
                    message,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_of_a_family_are_added_up_and_no_others() {
        let page = "# TYPE a_total counter\na_total{x=\"1 2\"} 2\na_total{x=\"3\"} 3.5\na_total_more 7\nb 0\n";
        assert_eq!((sum(page, "a_total"), sum(page, "b"), sum(page, "c")), (Some(5.5), Some(0.0), None));
    }

    #[test]
    fn both_kinds_of_resource_are_read_into_the_same_words() {
        let service = json!({"kind": "InferenceService", "status": {
            "conditions": [{"type": "PredictorReady", "status": "True"}, {"type": "Ready", "status": "True"}],
            "modelStatus": {
                "transitionStatus": "UpToDate",
                "states": {"activeModelState": "Loaded", "targetModelState": ""},
                "copies": {"failedCopies": 0, "totalCopies": 1},
                "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "why"},
            },
        }});
        let predictor = json!({"kind": "Predictor", "status": {
            "available": true, "transitionStatus": "UpToDate", "activeModelState": "Loaded", "targetModelState": "",
            "failedCopies": 0, "totalCopies": 1, "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "why"},
        }});
        let standing = Standing::of(&service).expect("a service");
        assert_eq!(standing, Standing::of(&predictor).expect("a predictor"));
        assert!(standing.available && standing.copies == 1 && standing.active == "Loaded" && standing.message == "why");
    }
}
