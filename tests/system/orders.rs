//! What a client that watches a resource is told, from creation to deletion: every row of the status table that one pod
//! can show, every reason with its message, every order of states that the documents promise.
//!
//! All of it is seen through `?watch=true`, with real loads and real failures, for both kinds. A status is compared as
//! one line ([`Told::row`]), a life as the list of its lines; what a line leaves out (conditions, URLs, the two spellings)
//! is checked on every event by [`Story::check`].

mod created;
mod deleted;
mod failing;
mod foreign;
mod gate;
mod invalid;
mod names;
mod runtimes;
mod schema;
mod seed_documents;
mod standby;
mod updated;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::http::{self, Reply, call};
use berth_testkit::{Berth, Exit, Found, Process, Told, Watch, eventually};
use serde_json::{Map, Value, json};

use crate::fixture::{Fixture, ROOMY, SOON};

/// A model that is there and answers.
const LOADED: &str = "Loaded, UpToDate, available, 0/1";
/// A model on its way for the first time.
const LOADING: &str = "Loading, UpToDate, available, 0/0";
/// A new version on its way while the old one serves.
const UPDATING: &str = "Loaded -> Loading, InProgress, available, 0/1";
/// A first load that failed.
const FAILED: &str = "FailedToLoad, UpToDate, not available, 1/0, ModelLoadFailed";
/// A new version that failed to load while the old one serves.
const BLOCKED: &str = "Loaded -> FailedToLoad, BlockedByFailedLoad, available, 1/1, ModelLoadFailed";

/// How a resource asks for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An InferenceService.
    Service,
    /// A Predictor with `storage.key` and `storage.path`.
    Predictor,
    /// A Predictor with `path` and `storage.s3`.
    OldPredictor,
}

/// What is asked for, whatever the form.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    format: &'static str,
    version: Option<&'static str>,
    runtime: Option<&'static str>,
    protocol: Option<&'static str>,
    key: Option<&'static str>,
    path: &'static str,
    parameters: Option<Value>,
}

impl Model {
    /// The model at `path` in the store of the examples.
    fn at(path: &'static str) -> Self {
        Model { format: "onnx", version: None, runtime: None, protocol: None, key: Some("quickstart"), path, parameters: None }
    }
}

/// An object of what is set.
fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

impl Form {
    const fn kind(self) -> &'static str {
        match self {
            Form::Service => "InferenceService",
            Form::Predictor | Form::OldPredictor => "Predictor",
        }
    }

    /// As it stands in model ids.
    const fn owner(self) -> &'static str {
        match self {
            Form::Service => "isvc",
            Form::Predictor | Form::OldPredictor => "ksp",
        }
    }

    /// What is there before anybody has looked at the resource: the schema of a Predictor gives it a status at once.
    const fn unseen(self) -> &'static str {
        match self {
            Form::Service => "no status",
            Form::Predictor | Form::OldPredictor => "Pending, UpToDate, not available, 0/0",
        }
    }

    fn collection(self, namespace: &str) -> String {
        let (version, plural) = match self {
            Form::Service => ("v1beta1", "inferenceservices"),
            Form::Predictor | Form::OldPredictor => ("v1alpha1", "predictors"),
        };
        format!("/apis/serving.kserve.io/{version}/namespaces/{namespace}/{plural}")
    }

    fn spec(self, model: &Model) -> Value {
        let Model { format, version, runtime, protocol, key, path, parameters } = model.clone();
        let text = |text: Option<&str>| text.map(Value::from);
        let format = object([("name", text(Some(format))), ("version", text(version))]);
        match self {
            Form::Service => {
                let storage = object([("key", text(key)), ("path", text(Some(path))), ("parameters", parameters)]);
                let model = object([
                    ("modelFormat", Some(format)),
                    ("runtime", text(runtime)),
                    ("protocolVersion", text(protocol)),
                    ("storage", Some(storage)),
                ]);
                json!({"predictor": {"model": model}})
            }
            Form::Predictor => {
                let storage = object([("key", text(key)), ("path", text(Some(path))), ("parameters", parameters)]);
                let runtime = runtime.map(|name| json!({"name": name}));
                object([("modelType", Some(format)), ("runtime", runtime), ("protocolVersion", text(protocol)), ("storage", Some(storage))])
            }
            Form::OldPredictor => {
                let bucket = parameters.map(|parameters| parameters["bucket"].clone());
                let storage = key.map(|key| json!({"s3": object([("secretKey", text(Some(key))), ("bucket", bucket)])}));
                let runtime = runtime.map(|name| json!({"name": name}));
                let (path, protocol) = (text(Some(path)), text(protocol));
                object([("modelType", Some(format)), ("runtime", runtime), ("protocolVersion", protocol), ("path", path), ("storage", storage)])
            }
        }
    }

    fn document(self, name: &str, spec: &Value) -> Value {
        let (version, annotations) = match self {
            Form::Service => ("v1beta1", json!({"serving.kserve.io/deploymentMode": "ModelMesh"})),
            Form::Predictor | Form::OldPredictor => ("v1alpha1", json!({})),
        };
        let metadata = json!({"name": name, "annotations": annotations});
        json!({"apiVersion": format!("serving.kserve.io/{version}"), "kind": self.kind(), "metadata": metadata, "spec": spec})
    }

    /// `lastFailureInfo`; null where there is none.
    fn failure(self, resource: &Value) -> &Value {
        match self {
            Form::Service => &resource["status"]["modelStatus"]["lastFailureInfo"],
            Form::Predictor | Form::OldPredictor => &resource["status"]["lastFailureInfo"],
        }
    }
}

/// A server without resources of its own, over the examples' models, and a form to ask it in.
struct Stage {
    fixture: Fixture,
    berth: Berth,
    form: Form,
}

impl Stage {
    async fn start(form: Form) -> Result<Self> {
        Stage::of(form, bare()?, ROOMY).await
    }

    async fn of(form: Form, fixture: Fixture, memory: &str) -> Result<Self> {
        let berth = fixture.serve(memory).start().await?;
        Ok(Stage { fixture, berth, form })
    }

    fn url(&self, name: &str) -> String {
        self.berth.api(&format!("{}/{name}", self.form.collection("default")))
    }

    /// Makes `name`, watched from before it is there, and returns what the server answered as well.
    async fn make(&self, name: &'static str, spec: &Value) -> Result<(Story, Value)> {
        let story = self.story(self.form, "default", name).await?;
        let document = self.form.document(name, spec);
        Ok((story, made(&self.berth, &self.form.collection("default"), &document).await?))
    }

    async fn create(&self, name: &'static str, model: &Model) -> Result<Story> {
        Ok(self.make(name, &self.form.spec(model)).await?.0)
    }

    /// Makes `name` and waits until it serves. The watch of it begins anew then.
    async fn serving(&self, name: &'static str, example: &'static str) -> Result<Story> {
        self.create(name, &Model::at(example)).await?.reaches(LOADED).await?;
        self.answers(name, example).await?;
        self.story(self.form, "default", name).await
    }

    async fn story(&self, form: Form, namespace: &str, name: &'static str) -> Result<Story> {
        let collection = form.collection(namespace);
        let urls = (format!("grpc://{}", self.berth.grpc()), format!("http://{}", self.berth.rest()));
        Ok(Story { watch: Watch::start(&self.berth, &collection, name).await?, form, name, urls })
    }

    async fn read(&self, name: &str) -> Result<Value> {
        http::get(&self.url(name)).await?.good()
    }

    /// Changes the resource, as a client does that reads, changes and replaces, again where somebody was faster.
    async fn edit(&self, name: &str, change: impl Fn(&mut Value)) -> Result<()> {
        replaced(&self.url(name), change).await
    }

    async fn change(&self, name: &str, model: &Model) -> Result<()> {
        let spec = self.form.spec(model);
        self.edit(name, |resource| resource["spec"] = spec.clone()).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        call("DELETE", &self.url(name), "".into()).await?.good()?;
        Ok(())
    }

    /// Makes a ServingRuntime of the namespace, or gives it another spec.
    async fn runtime(&self, name: &str, spec: &Value) -> Result<()> {
        let collection = "/apis/serving.kserve.io/v1alpha1/namespaces/default/servingruntimes";
        let document = json!({"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": name}, "spec": spec});
        let url = self.berth.api(&format!("{collection}/{name}"));
        if http::get(&url).await?.status == 404 {
            made(&self.berth, collection, &document).await?;
            return Ok(());
        }
        replaced(&url, |runtime| runtime["spec"] = spec.clone()).await
    }

    async fn no_runtime(&self, name: &str) -> Result<()> {
        let url = format!("/apis/serving.kserve.io/v1alpha1/namespaces/default/servingruntimes/{name}");
        call("DELETE", &self.berth.api(&url), "".into()).await?.good()?;
        Ok(())
    }

    /// Sends `example`'s recorded request to `name`.
    async fn ask(&self, name: &str, example: &str) -> Result<Reply> {
        self.berth.infer(name, self.fixture.quickstart.request(example)?).await
    }

    /// Checks that `name` answers as `example` does, and returns the model id in the answer.
    async fn answers(&self, name: &str, example: &str) -> Result<String> {
        let answer = self.ask(name, example).await?.good().with_context(|| format!("{name}, asked as {example}"))?;
        self.fixture.quickstart.check(example, &answer)?;
        let id = answer["model_name"].as_str().unwrap_or_default().to_owned();
        self.is_id(&id, name)?;
        Ok(id)
    }

    /// As [`Stage::answers`], of a model whose store was away: that is the answer for some seconds, with the advice to ask
    /// again.
    async fn answers_again(&self, name: &str, example: &str) -> Result<String> {
        let asked = || async {
            let reply = self.ask(name, example).await?;
            match (reply.status, reply.retry_after.is_some()) {
                (503, true) => Ok(Found::NotYet(reply.text())),
                _ => Ok(Found::Yes(())),
            }
        };
        eventually(&format!("an answer of {name}"), Duration::from_secs(60), asked).await?;
        self.answers(name, example).await
    }

    /// `<name>__<owner>-<ten hex digits>`.
    fn is_id(&self, id: &str, name: &str) -> Result<()> {
        let hash = id.strip_prefix(&format!("{name}__{}-", self.form.owner())).with_context(|| format!("{id:?} is no version of {name}"))?;
        ensure!(hash.len() == 10 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "the hash of {id:?}");
        Ok(())
    }

    /// Checks that `name` refuses a request for good, with every one of `parts` in the message.
    async fn refuses(&self, name: &str, example: &str, parts: &[&str]) -> Result<()> {
        let reply = self.ask(name, example).await?;
        ensure!(reply.status == 400 && reply.retry_after.is_none(), "{name}: {} {:?} {}", reply.status, reply.retry_after, reply.text());
        holds(reply.json()?["error"].as_str().unwrap_or_default(), parts)
    }

    /// Waits until the server's clock shows another second than it did.
    async fn a_second_passes(&self) -> Result<()> {
        let url = self.berth.api(&format!("{}?dryRun=All", self.form.collection("default")));
        let document = self.form.document("never-made", &self.form.spec(&Model::at("iris")));
        let now = async || -> Result<Value> {
            let reply = call("POST", &url, document.to_string().into()).await?;
            ensure!(reply.status == 201, "{} {}", reply.status, reply.text());
            Ok(reply.json()?["metadata"]["creationTimestamp"].clone())
        };
        let first = now().await?;
        eventually("a second to pass", SOON, || async {
            let now = now().await?;
            Ok(if now != first { Found::Yes(()) } else { Found::NotYet(now.to_string()) })
        })
        .await
    }
}

/// A fixture with the examples' models and no resource.
fn bare() -> Result<Fixture> {
    let fixture = Fixture::empty()?;
    fixture.storage("quickstart", &json!({"type": "folder", "path": fixture.quickstart.models()}))?;
    Ok(fixture)
}

async fn made(berth: &Berth, collection: &str, document: &Value) -> Result<Value> {
    let reply = http::post(&berth.api(collection), document.to_string()).await?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.text());
    reply.json()
}

async fn replaced(url: &str, change: impl Fn(&mut Value)) -> Result<()> {
    eventually("a change to be taken", SOON, || async {
        let mut resource = http::get(url).await?.good()?;
        change(&mut resource);
        let reply = call("PUT", url, resource.to_string().into()).await?;
        Ok(match reply.status {
            200 => Found::Yes(()),
            409 => Found::NotYet(reply.text()),
            other => anyhow::bail!("{other} {}", reply.text()),
        })
    })
    .await
}

fn holds(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is missing in: {text}");
    }
    Ok(())
}

/// The last 12 characters of the name that this machine, the only pod, has.
async fn here() -> Result<String> {
    let mut uname = Command::new("uname");
    uname.arg("-n");
    let mut uname = Process::start("uname", uname)?;
    ensure!(uname.exit(SOON).await? == Exit::Code(0), "{}", uname.written());
    let name: Vec<char> = uname.out().trim().chars().collect();
    Ok(name[name.len().saturating_sub(12)..].iter().collect())
}

/// What a watch of one resource told so far.
struct Story {
    watch: Watch,
    form: Form,
    name: &'static str,
    /// Of gRPC and REST.
    urls: (String, String),
}

impl Story {
    /// Waits until the resource stands like `row` and its status is about its present spec, checking every event on the way.
    async fn reaches(&mut self, row: &str) -> Result<Value> {
        self.reaches_within(SOON, row).await
    }

    async fn reaches_within(&mut self, within: Duration, row: &str) -> Result<Value> {
        let from = self.watch.told().len();
        let present =
            |told: &Told| told.event == "DELETED" || told.resource["status"]["observedGeneration"] == told.resource["metadata"]["generation"];
        let told = self.watch.until(row, within, |told| told.row() == row && present(told)).await?;
        self.check(from)?;
        Ok(told.resource)
    }

    /// Checks that the resource stood like `rows`, one after the other and in no other way.
    fn went(&self, rows: &[&str]) -> Result<()> {
        ensure!(self.watch.rows() == rows, "{} {} went\n  {}", self.form.kind(), self.name, self.watch.rows().join("\n  "));
        Ok(())
    }

    /// The same, where it may have stood like `optional` before any of `rows`.
    fn went_perhaps_through(&self, optional: &str, rows: &[&str]) -> Result<()> {
        let all = self.watch.rows();
        let mut wanted = rows.iter();
        let mut next = wanted.next();
        for row in &all {
            if next == Some(&row.as_str()) {
                next = wanted.next();
            } else {
                ensure!(row == optional, "{} {} went\n  {}", self.form.kind(), self.name, all.join("\n  "));
            }
        }
        ensure!(next.is_none(), "{} {} went\n  {}", self.form.kind(), self.name, all.join("\n  "));
        Ok(())
    }

    /// Checks what holds of every status, in the events from the one at `from` on.
    fn check(&self, from: usize) -> Result<()> {
        let mut before = from.checked_sub(1).map(|at| &self.watch.told()[at]);
        for told in &self.watch.told()[from..] {
            let now = &told.resource;
            let checked = match self.form {
                _ if now["status"].is_null() => Ok(()),
                Form::Service => self.check_service(now, before.map(|told| &told.resource)),
                Form::Predictor | Form::OldPredictor => self.check_predictor(now),
            };
            checked.with_context(|| format!("{} {} was told {}", self.form.kind(), self.name, now["status"]))?;
            before = Some(told);
        }
        Ok(())
    }

    fn check_service(&self, now: &Value, before: Option<&Value>) -> Result<()> {
        let (status, (grpc, rest)) = (&now["status"], &self.urls);
        let conditions = |resource: &Value| resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ours = conditions(now);
        let types: Vec<_> = ours.iter().map(|condition| &condition["type"]).collect();
        ensure!(types == ["PredictorReady", "Ready"], "conditions");
        let ready = ours[0]["status"] == "True";
        ensure!(ours.iter().all(|condition| condition["status"] == if ready { "True" } else { "False" }), "the conditions differ");
        ensure!(ours.iter().all(|condition| is_time(&condition["lastTransitionTime"])), "lastTransitionTime");
        if let Some(before) = before.map(conditions).filter(|before| !before.is_empty()) {
            ensure!(before[0]["status"] != ours[0]["status"] || before == ours, "lastTransitionTime moved and nothing else: it was {before:?}");
        }
        let url = if ready { json!(grpc) } else { Value::Null };
        ensure!(status["url"] == url, "url");
        let predictor = if ready { json!({"url": grpc, "grpcUrl": grpc, "restUrl": rest}) } else { Value::Null };
        ensure!(status["components"]["predictor"] == predictor, "components.predictor");
        let model = &status["modelStatus"];
        ensure!(model["copies"] == model["modelCopies"] && model["copies"]["failedCopies"].is_u64(), "the two spellings of copies");
        let failure = &model["lastFailureInfo"];
        ensure!(failure["modelId"] == failure["modelRevisionName"], "the two spellings of the model id");
        check_words(&model["states"]["activeModelState"], &model["states"]["targetModelState"], &model["transitionStatus"])
    }

    fn check_predictor(&self, now: &Value) -> Result<()> {
        let (status, (grpc, rest)) = (&now["status"], &self.urls);
        ensure!(status["available"].is_boolean() && status["failedCopies"].is_u64() && status["totalCopies"].is_u64(), "what is required");
        ensure!(status["targetModelState"].is_string(), "targetModelState");
        // The one that the schema gives knows of no endpoints.
        if now["status"]["observedGeneration"].is_u64() {
            ensure!(status["grpcEndpoint"] == **grpc && status["httpEndpoint"] == **rest, "endpoints");
        }
        check_words(&status["activeModelState"], &status["targetModelState"], &status["transitionStatus"])
    }

    /// The failure of a load in this pod: says where, when and of which version. Returns the version.
    async fn failure_in_pod(&self, resource: &Value, parts: &[&str]) -> Result<String> {
        let failure = self.form.failure(resource);
        ensure!(failure["reason"] == "ModelLoadFailed", "{failure}");
        ensure!(failure["location"] == here().await?, "location in {failure}");
        self.time_of(failure, resource)?;
        holds(failure["message"].as_str().unwrap_or_default(), parts)?;
        self.version_of(failure)
    }

    /// A failure to find a runtime: in no pod. Returns the version.
    fn failure_without_pod(&self, resource: &Value, literal: &str, parts: &[&str]) -> Result<String> {
        let failure = self.form.failure(resource);
        ensure!(failure["location"].is_null(), "location in {failure}");
        self.time_of(failure, resource)?;
        begins(failure, literal)?;
        holds(failure["message"].as_str().unwrap_or_default(), parts)?;
        self.version_of(failure)
    }

    /// A fault of the resource itself: nowhere, and as long as the resource stays as it is.
    fn fault_of_spec(&self, resource: &Value, parts: &[&str]) -> Result<()> {
        let failure = self.form.failure(resource);
        ensure!(failure["reason"] == "InvalidPredictorSpec" && failure["location"].is_null() && failure["time"].is_null(), "{failure}");
        holds(failure["message"].as_str().unwrap_or_default(), parts)
    }

    fn time_of(&self, failure: &Value, resource: &Value) -> Result<()> {
        ensure!(is_time(&failure["time"]), "time in {failure}");
        // Both are texts of one shape from one clock.
        ensure!(failure["time"].as_str() >= resource["metadata"]["creationTimestamp"].as_str(), "{failure} is older than the resource");
        Ok(())
    }

    fn version_of(&self, failure: &Value) -> Result<String> {
        let id = failure["modelId"].as_str().unwrap_or_default();
        ensure!(id.starts_with(&format!("{}__{}-", self.name, self.form.owner())), "modelId in {failure}");
        Ok(id.to_owned())
    }
}

/// The message is `literal`, or that and details after a colon.
fn begins(failure: &Value, literal: &str) -> Result<()> {
    let rest = failure["message"].as_str().and_then(|message| message.strip_prefix(literal));
    ensure!(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": ")), "{literal:?} does not begin {failure}");
    Ok(())
}

/// `2026-11-22T07:43:44Z`.
fn is_time(value: &Value) -> bool {
    let shape = |text: &str| text.chars().map(|c| if c.is_ascii_digit() { 'd' } else { c }).collect::<String>();
    value.as_str().is_some_and(|text| shape(text) == "dddd-dd-ddTdd:dd:ddZ")
}

/// The words are those of the documents, and there is a target only where the spec is not what serves.
fn check_words(active: &Value, target: &Value, transition: &Value) -> Result<()> {
    let known = |word: &Value| ["Pending", "Standby", "Loading", "Loaded", "FailedToLoad"].iter().any(|state| word == state);
    ensure!(known(active), "activeModelState");
    let has_target = !target.is_null() && target != "";
    ensure!(!has_target || known(target), "targetModelState");
    ensure!(["UpToDate", "InProgress", "BlockedByFailedLoad", "InvalidSpec"].iter().any(|word| transition == word), "transitionStatus");
    ensure!(!has_target || transition != "UpToDate", "a target though it is up to date");
    ensure!(has_target || (transition != "InProgress" && transition != "BlockedByFailedLoad"), "no target though it is not up to date");
    Ok(())
}
