//! Runtimes that are not there, do not fit, or have no pod.
//!
//! The only pod runs the embedded engine, whose runtime is `berth-onnx`. A ServingRuntime of that name replaces it for its
//! namespace, so runtimes appear and vanish at will; a ServingRuntime of any other name never has a pod.

use anyhow::Result;
use serde_json::{Value, json};

use super::gate::{Gated, behind};
use super::{Form, LOADED, LOADING, Model, Stage, UPDATING, bare};
use crate::fixture::ROOMY;

/// The runtime of the only pod.
const EMBEDDED: &str = "berth-onnx";
/// A runtime fits, none of its pods lives.
const WAITING: &str = "Loading, UpToDate, not available, 0/0, RuntimeUnhealthy";
/// Evicted, and one request away.
const STANDBY: &str = "Standby, UpToDate, available, 0/0";
const UNSUPPORTED: &str = "FailedToLoad, UpToDate, not available, 0/0, NoSupportingRuntime";
const UNRECOGNIZED: &str = "FailedToLoad, UpToDate, not available, 0/0, RuntimeNotRecognized";
/// A version without a runtime is being replaced.
const REPLACING: &str = "FailedToLoad -> Loading, InProgress, not available, 0/0";
/// The same while an older version serves.
const TARGET_WAITING: &str = "Loaded -> Loading, BlockedByFailedLoad, available, 0/1, RuntimeUnhealthy";
const TARGET_UNSUPPORTED: &str = "Loaded -> FailedToLoad, BlockedByFailedLoad, available, 0/1, NoSupportingRuntime";
const TARGET_UNRECOGNIZED: &str = "Loaded -> FailedToLoad, BlockedByFailedLoad, available, 0/1, RuntimeNotRecognized";

const NO_POD: &str = "Waiting for supporting runtime Pod to become available";
const NO_SUPPORT: &str = "No ServingRuntime supports specified model type and/or protocol";
const NO_SUCH: &str = "Specified runtime name not recognized";

/// A runtime that takes `format` by itself.
fn lists(format: &str) -> Value {
    json!({"supportedModelFormats": [{"name": format, "autoSelect": true}], "multiModel": true, "protocolVersions": ["grpc-v2"], "containers": []})
}

fn with(mut spec: Value, member: &str, value: Value) -> Value {
    spec[member] = value;
    spec
}

/// A model that no runtime takes.
struct Homeless {
    name: &'static str,
    model: Model,
    why: Why,
    parts: Vec<&'static str>,
}

fn without_runtime() -> Vec<Homeless> {
    let iris = || Model::at("iris");
    let homeless = |name, model, why: Why, parts: &[&'static str]| Homeless { name, model, why, parts: parts.to_vec() };
    vec![
        homeless("format", Model { format: "sklearn", ..iris() }, Why::Unsupported, &["sklearn", "berth-onnx lists onnx:1"]),
        homeless("version", Model { version: Some("2"), ..iris() }, Why::Unsupported, &["onnx:2", "onnx:1"]),
        homeless("protocol", Model { protocol: Some("grpc-v1"), ..iris() }, Why::Unsupported, &["onnx", "grpc-v1"]),
        homeless(
            "unlisted",
            Model { format: "sklearn", runtime: Some(EMBEDDED), ..iris() },
            Why::Unsupported,
            &["berth-onnx lists onnx:1, not sklearn"],
        ),
        homeless("name", Model { runtime: Some("triton-2.x"), ..iris() }, Why::Unrecognized, &["triton-2.x", "there are berth-onnx"]),
        homeless("disabled", Model { runtime: Some("off"), ..iris() }, Why::Unrecognized, &["off is disabled"]),
        homeless("single", Model { runtime: Some("single"), ..iris() }, Why::Unrecognized, &["single is not multiModel"]),
    ]
}

/// Why no runtime takes it.
#[derive(Clone, Copy)]
enum Why {
    Unsupported,
    Unrecognized,
}

impl Why {
    /// How a new resource stands that asks for it, and how one that serves something else.
    const fn rows(self) -> [&'static str; 2] {
        match self {
            Why::Unsupported => [UNSUPPORTED, TARGET_UNSUPPORTED],
            Why::Unrecognized => [UNRECOGNIZED, TARGET_UNRECOGNIZED],
        }
    }

    const fn literal(self) -> &'static str {
        match self {
            Why::Unsupported => NO_SUPPORT,
            Why::Unrecognized => NO_SUCH,
        }
    }
}

async fn runtimes_that_do_not_count(stage: &Stage) -> Result<()> {
    stage.runtime("off", &with(lists("onnx"), "disabled", json!(true))).await?;
    stage.runtime("single", &with(lists("onnx"), "multiModel", json!(false))).await
}

async fn a_new_one_is_told_why(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    runtimes_that_do_not_count(&stage).await?;
    for Homeless { name, model, why, parts } in without_runtime() {
        let ([row, _], literal) = (why.rows(), why.literal());
        let mut story = stage.create(name, &model).await?;
        let failed = story.reaches(row).await?;
        story.went(&[form.unseen(), row])?;
        let version = story.failure_without_pod(&failed, literal, &parts)?;
        stage.refuses(name, "iris", &parts).await?;

        stage.change(name, &Model::at("iris")).await?;
        let loaded = story.reaches(LOADED).await?;
        // The new version may take over before it is loaded: nothing else serves.
        story.went_perhaps_through(LOADING, &[form.unseen(), row, REPLACING, LOADED])?;
        assert!(form.failure(&loaded).is_null(), "{loaded}");
        assert_ne!(stage.answers(name, "iris").await?, version);
    }
    Ok(())
}

#[tokio::test]
async fn a_new_inference_service_that_no_runtime_takes_is_told_why() -> Result<()> {
    a_new_one_is_told_why(Form::Service).await
}

#[tokio::test]
async fn a_new_predictor_that_no_runtime_takes_is_told_why() -> Result<()> {
    a_new_one_is_told_why(Form::Predictor).await
}

#[tokio::test]
async fn a_new_predictor_of_the_older_form_that_no_runtime_takes_is_told_why() -> Result<()> {
    a_new_one_is_told_why(Form::OldPredictor).await
}

async fn an_update_is_blocked(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    runtimes_that_do_not_count(&stage).await?;
    let mut story = stage.serving("m", "iris").await?;
    let version = stage.answers("m", "iris").await?;
    let mut went = vec![LOADED];
    for Homeless { name, model, why, parts } in without_runtime() {
        let ([_, row], literal) = (why.rows(), why.literal());
        stage.change("m", &model).await?;
        story.reaches(UPDATING).await?;
        let blocked = story.reaches(row).await?;
        assert_ne!(story.failure_without_pod(&blocked, literal, &parts)?, version, "{name}");
        assert_eq!(stage.answers("m", "iris").await?, version, "{name}");
        stage.change("m", &Model::at("iris")).await?;
        let repaired = story.reaches(LOADED).await?;
        assert!(form.failure(&repaired).is_null(), "{repaired}");
        went.extend([UPDATING, row, LOADED]);
    }
    story.went(&went)?;

    // From one to another and then to one that can be loaded: each is shown on its way first.
    let mut story = stage.story(form, "default", "m").await?;
    let mut went = vec![LOADED];
    for Homeless { name, model, why, parts } in without_runtime() {
        let ([_, row], literal) = (why.rows(), why.literal());
        stage.change("m", &model).await?;
        story.reaches(UPDATING).await?;
        let blocked = story.reaches(row).await?;
        story.failure_without_pod(&blocked, literal, &parts)?;
        assert_eq!(stage.answers("m", "iris").await?, version, "{name}");
        went.extend([UPDATING, row]);
    }
    stage.change("m", &Model::at("diabetes")).await?;
    story.reaches(UPDATING).await?;
    story.reaches(LOADED).await?;
    stage.answers("m", "diabetes").await?;
    went.extend([UPDATING, LOADED]);
    story.went(&went)
}

#[tokio::test]
async fn an_update_of_an_inference_service_that_no_runtime_takes_is_blocked_while_the_old_version_serves() -> Result<()> {
    an_update_is_blocked(Form::Service).await
}

#[tokio::test]
async fn an_update_of_a_predictor_that_no_runtime_takes_is_blocked_while_the_old_version_serves() -> Result<()> {
    an_update_is_blocked(Form::Predictor).await
}

async fn waits_for_a_pod(form: Form) -> Result<()> {
    let fixture = bare()?;
    let gated = Gated::closed(&fixture).await?;
    let stage = Stage::of(form, fixture, ROOMY).await?;
    // The pod's own runtime takes nothing here, another one would take it and has no pod.
    stage.runtime(EMBEDDED, &lists("nothing-here")).await?;
    stage.runtime("elsewhere", &lists("onnx")).await?;
    let mut story = stage.create("m", &behind("iris")).await?;
    let waiting = story.reaches(WAITING).await?;
    let version = story.failure_without_pod(&waiting, NO_POD, &[])?;
    let reply = stage.ask("m", "iris").await?;
    assert_eq!((reply.status, reply.retry_after.is_some()), (503, true), "{}", reply.text());
    super::holds(&reply.text(), &[NO_POD])?;

    // The bundled runtime is what it was once nobody hides it. While the model loads, the wait is still what there is to tell.
    stage.a_second_passes().await?;
    stage.no_runtime(EMBEDDED).await?;
    gated.is_asked().await?;
    assert_eq!(stage.read("m").await?["status"], waiting["status"]);
    let told = async {
        gated.open();
        story.reaches(LOADED).await
    };
    let (answered, loaded) = tokio::join!(stage.answers("m", "iris"), told);
    assert_eq!(answered?, version, "a request that came while it loaded");
    let loaded = loaded?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    story.went(&[form.unseen(), WAITING, LOADED])
}

#[tokio::test]
async fn an_inference_service_waits_for_a_pod_of_its_runtime_and_loads_when_there_is_one() -> Result<()> {
    waits_for_a_pod(Form::Service).await
}

#[tokio::test]
async fn a_predictor_waits_for_a_pod_of_its_runtime_and_loads_when_there_is_one() -> Result<()> {
    waits_for_a_pod(Form::Predictor).await
}

#[tokio::test]
async fn a_predictor_of_the_older_form_waits_for_a_pod_of_its_runtime_and_loads_when_there_is_one() -> Result<()> {
    waits_for_a_pod(Form::OldPredictor).await
}

async fn follows_the_runtimes(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    let named = Model { runtime: Some("mine"), ..Model::at("iris") };
    let mut story = stage.create("m", &named).await?;
    story.reaches(UNRECOGNIZED).await?;
    stage.runtime("mine", &lists("sklearn")).await?;
    story.reaches(UNSUPPORTED).await?;
    stage.runtime("mine", &lists("onnx")).await?;
    story.reaches(WAITING).await?;
    stage.runtime("mine", &with(lists("onnx"), "disabled", json!(true))).await?;
    story.reaches(UNRECOGNIZED).await?;
    stage.no_runtime("mine").await?;
    story.went(&[form.unseen(), UNRECOGNIZED, UNSUPPORTED, WAITING, UNRECOGNIZED])?;

    // The same of the runtime that has a pod: hidden, not listing the format, there again.
    stage.runtime(EMBEDDED, &with(lists("onnx"), "disabled", json!(true))).await?;
    let mut story = stage.create("n", &Model { runtime: Some(EMBEDDED), ..Model::at("iris") }).await?;
    let disabled = story.reaches(UNRECOGNIZED).await?;
    story.failure_without_pod(&disabled, NO_SUCH, &["berth-onnx is disabled"])?;
    stage.runtime(EMBEDDED, &lists("sklearn")).await?;
    story.reaches(UNSUPPORTED).await?;
    stage.no_runtime(EMBEDDED).await?;
    let loaded = story.reaches(LOADED).await?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    stage.answers("n", "iris").await?;
    story.went(&[form.unseen(), UNRECOGNIZED, UNSUPPORTED, LOADING, LOADED])
}

#[tokio::test]
async fn the_status_of_an_inference_service_follows_the_runtimes_as_they_come_and_go() -> Result<()> {
    follows_the_runtimes(Form::Service).await
}

#[tokio::test]
async fn the_status_of_a_predictor_follows_the_runtimes_as_they_come_and_go() -> Result<()> {
    follows_the_runtimes(Form::Predictor).await
}

async fn a_waiting_target_leaves_the_old_version_available(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    stage.runtime("elsewhere", &lists("sklearn")).await?;
    let mut story = stage.serving("m", "iris").await?;
    let version = stage.answers("m", "iris").await?;
    stage.change("m", &Model { format: "sklearn", ..Model::at("diabetes") }).await?;
    story.reaches(UPDATING).await?;
    let waiting = story.reaches(TARGET_WAITING).await?;
    assert_ne!(story.failure_without_pod(&waiting, NO_POD, &[])?, version);
    assert_eq!(stage.answers("m", "iris").await?, version);
    // Without that runtime there is nothing to wait for.
    stage.no_runtime("elsewhere").await?;
    story.reaches(TARGET_UNSUPPORTED).await?;
    assert_eq!(stage.answers("m", "iris").await?, version);
    stage.change("m", &Model::at("diabetes")).await?;
    story.reaches(LOADED).await?;
    stage.answers("m", "diabetes").await?;
    story.went(&[LOADED, UPDATING, TARGET_WAITING, TARGET_UNSUPPORTED, UPDATING, LOADED])
}

#[tokio::test]
async fn an_inference_service_stays_available_while_its_update_waits_for_a_runtime() -> Result<()> {
    a_waiting_target_leaves_the_old_version_available(Form::Service).await
}

#[tokio::test]
async fn a_predictor_stays_available_while_its_update_waits_for_a_runtime() -> Result<()> {
    a_waiting_target_leaves_the_old_version_available(Form::Predictor).await
}

/// A target that waits for a runtime becomes loadable and takes over.
async fn a_waiting_target_takes_over(form: Form) -> Result<()> {
    let stage = Stage::start(form).await?;
    stage.runtime("later", &lists("onnx")).await?;
    let mut story = stage.serving("m", "iris").await?;
    stage.change("m", &Model { runtime: Some("later"), ..Model::at("diabetes") }).await?;
    story.reaches(TARGET_WAITING).await?;
    stage.answers("m", "iris").await?;
    // Format `onnx` of version 1 is taken by the pod's runtime; the update now says so.
    stage.change("m", &Model { runtime: Some(EMBEDDED), ..Model::at("diabetes") }).await?;
    story.reaches(UPDATING).await?;
    let loaded = story.reaches(LOADED).await?;
    assert!(form.failure(&loaded).is_null(), "{loaded}");
    stage.answers("m", "diabetes").await?;
    story.went(&[LOADED, UPDATING, TARGET_WAITING, UPDATING, LOADED])
}

#[tokio::test]
async fn an_update_of_an_inference_service_that_waited_for_a_runtime_takes_over_with_another_one() -> Result<()> {
    a_waiting_target_takes_over(Form::Service).await
}

#[tokio::test]
async fn an_update_of_a_predictor_that_waited_for_a_runtime_takes_over_with_another_one() -> Result<()> {
    a_waiting_target_takes_over(Form::Predictor).await
}

/// What is in memory serves on without its runtime. What was evicted then is not loaded again until a runtime takes it.
async fn a_loaded_copy_outlives_its_runtime(form: Form) -> Result<()> {
    let stage = Stage::of(form, bare()?, "64MiB").await?;
    let mut story = stage.serving("m", "iris").await?;
    let version = stage.answers("m", "iris").await?;
    let before = stage.read("m").await?;
    stage.runtime(EMBEDDED, &with(lists("onnx"), "disabled", json!(true))).await?;
    // The leader takes things in order: it has looked at both when it has told the second one.
    stage.create("later", &Model::at("iris")).await?.reaches(UNSUPPORTED).await?;
    assert_eq!(stage.read("m").await?, before, "it was written to");
    assert_eq!(stage.answers("m", "iris").await?, version);

    // In another namespace the bundled runtime is what it was; one there that needs all the memory makes this one leave.
    let mut large = form.document("large", &form.spec(&Model::at("diabetes")));
    large["metadata"]["annotations"]["berth/model-size"] = "64Mi".into();
    super::made(&stage.berth, &form.collection("elsewhere"), &large).await?;
    stage.fixture.quickstart.check("diabetes", &stage.ask("large", "diabetes").await?.good()?)?;
    let gone = story.reaches(UNSUPPORTED).await?;
    assert_eq!(story.failure_without_pod(&gone, NO_SUPPORT, &["onnx", "there is no runtime"])?, version);
    stage.refuses("m", "iris", &[NO_SUPPORT]).await?;

    // With the runtime it is one request away again, by the same version.
    stage.no_runtime(EMBEDDED).await?;
    let back = story.reaches(STANDBY).await?;
    assert!(form.failure(&back).is_null(), "{back}");
    assert_eq!(stage.answers("m", "iris").await?, version);
    story.reaches(LOADED).await?;
    story.went(&[UNSUPPORTED, STANDBY, LOADING, LOADED])
}

#[tokio::test]
async fn an_inference_service_that_is_loaded_serves_on_when_its_runtime_vanishes_until_it_is_evicted() -> Result<()> {
    a_loaded_copy_outlives_its_runtime(Form::Service).await
}

#[tokio::test]
async fn a_predictor_that_is_loaded_serves_on_when_its_runtime_vanishes_until_it_is_evicted() -> Result<()> {
    a_loaded_copy_outlives_its_runtime(Form::Predictor).await
}
