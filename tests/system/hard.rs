//! `berth agent` beside a real Triton that is killed while it works, and beside models that are broken, swell or kill it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_proto::mmesh::model_mesh_client::ModelMeshClient;
use berth_proto::mmesh::{ModelInfo, RegisterModelRequest};
use berth_testkit::http::Reply;
use berth_testkit::{Berth, Exit, Process, Triton, TritonModels, Watch};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::beside::LOADS;
use crate::fixture::{Fixture, ROOMY, SOON, service};

pub(crate) const SERVICES: &str = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices";

/// A FIFO. Who reads it waits until it is opened, and from then on nobody does.
struct Gate(PathBuf);

impl Gate {
    async fn shut(path: PathBuf) -> Result<Self> {
        let mut command = Command::new("mkfifo");
        command.arg(&path);
        let exit = Process::start("mkfifo", command)?.exit(SOON).await?;
        ensure!(exit == Exit::Code(0), "mkfifo {}: {exit:?}", path.display());
        Ok(Gate(path))
    }

    /// For all who come from now on: the server that those who wait belong to is gone.
    fn open(&self) -> Result<()> {
        fs::remove_file(&self.0)?;
        Ok(fs::write(&self.0, "")?)
    }

    fn waits(&self) -> Value {
        json!({"waits": self.0})
    }
}

/// `name` multiplies by `factor` and does what `script` says.
fn scripted(fixture: &Fixture, name: &str, factor: u32, script: &Value) -> Result<()> {
    TritonModels::scripted(&fixture.path("models").join(name), factor, script, 0)?;
    fixture.manifest(&format!("{name}.yaml"), &python_service(name, name))
}

/// An InferenceService for a model of Triton's Python backend in the storage `models`.
fn python_service(name: &str, path: &str) -> String {
    service(name, "models", path).replace("name: onnx", "name: python")
}

fn fixture() -> Result<Fixture> {
    let fixture = Fixture::empty()?;
    fixture.models_storage()?;
    Ok(fixture)
}

async fn ask(berth: &Berth, name: &str) -> Result<Reply> {
    berth.infer(name, question()).await
}

/// Two and a half.
pub(crate) fn question() -> String {
    json!({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1], "data": [2.5]}]}).to_string()
}

/// What the model with this factor answers.
fn is_right(reply: &Reply, factor: u32) -> Result<()> {
    let answer = reply.good()?;
    ensure!(answer["outputs"][0]["data"][0].as_f64() == Some(2.5 * f64::from(factor)), "{answer} is not 2.5 times {factor}");
    Ok(())
}

/// Not now, and worth another try.
fn is_not_now(reply: &Reply) -> bool {
    reply.status == 503 && reply.retry_after.is_some()
}

async fn beside(fixture: &Fixture, triton: &Triton, repository: &Path, host_memory: &str) -> Result<Berth> {
    let serve = fixture.serve(host_memory).beside("triton", &triton.grpc(), repository);
    serve.flag("--runtime-process", "off").start().await
}

/// Kills Triton while the model `busy` is at `stage`, with a caller who waits for it; it is back `soon`, or when the caller has
/// been refused. Then everything is as before, by itself, and nothing was ever blamed.
async fn killed_during(stage: &str, soon: bool) -> Result<()> {
    let fixture = fixture()?;
    let repository = fixture.repository()?;
    let mut triton = Triton::start(&fixture.parts, &repository).await?;
    scripted(&fixture, "steady", 2, &json!({}))?;
    let berth = beside(&fixture, &triton, &repository, ROOMY).await?;
    is_right(&ask(&berth, "steady").await?, 2)?;
    let mut told = Watch::start(&berth, SERVICES, "busy").await?;
    let gate = Gate::shut(fixture.path("gate")).await?;
    scripted(&fixture, "busy", 3, &json!({stage: gate.waits()}))?;
    // It is known when it loads by itself.
    berth.stands("busy", SOON, |standing| ["Loading", "Loaded"].contains(&standing.active.as_str())).await?;
    let url = format!("http://{}/v2/models/busy/infer", berth.rest());
    let caller = tokio::spawn(async move { berth_testkit::http::post(&url, question()).await });
    let begins = format!("begins to {stage}");
    triton.process().line(&begins, LOADS, |line| line.contains("scripted: busy") && line.ends_with(&begins)).await?;

    triton.kill().await?;
    gate.open()?;
    if soon {
        triton.again().await?;
        let mut reply = caller.await??;
        if stage == "infer" && is_not_now(&reply) {
            // It was sent again, to a server that had not come back: whoever does as the answer says is answered.
            reply = ask(&berth, "busy").await?;
        }
        is_right(&reply, 3).with_context(|| format!("killed while busy with its {stage} and back at once"))?;
    } else {
        let reply = caller.await??;
        ensure!(is_not_now(&reply), "the caller under way: {} {:?} {}", reply.status, reply.retry_after, reply.text());
        let reply = ask(&berth, "steady").await?;
        ensure!(is_not_now(&reply), "another caller: {} {:?} {}", reply.status, reply.retry_after, reply.text());
        triton.again().await?;
    }
    for (name, factor) in [("steady", 2), ("busy", 3)] {
        let standing = berth.stands(name, LOADS, |standing| standing.active == "Loaded" && standing.copies == 1).await?;
        ensure!(standing.reason.is_empty() && standing.transition == "UpToDate" && standing.available, "{name} is not to blame: {standing:?}");
        is_right(&ask(&berth, name).await?, factor)?;
    }
    told.until("busy to be loaded", SOON, |told| told.row().starts_with("Loaded")).await?;
    let rows = told.rows();
    ensure!(!rows.iter().any(|row| row.contains("FailedToLoad") || row.contains(" 1/")), "a model was blamed: {rows:#?}");
    let books = [berth.metric("berth_models{state=\"Loaded\"}").await?, berth.metric("berth_memory_unconfirmed_bytes").await?];
    ensure!(books == [2.0, 0.0] && berth.metric("berth_runtime_up").await? == 1.0, "two are loaded and nothing else is charged: {books:?}");
    ensure!(triton.listed("READY").await?.len() == 2, "{:?}", triton.listed("READY").await?);
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_load_when_the_server_is_killed_is_answered_when_it_is_soon_back() -> Result<()> {
    killed_during("load", true).await
}

#[tokio::test]
async fn who_waits_for_a_load_when_the_server_is_killed_is_told_to_come_again_and_the_models_are_back_by_themselves() -> Result<()> {
    killed_during("load", false).await
}

#[tokio::test]
async fn a_request_that_the_end_of_the_server_broke_off_is_answered_when_it_is_soon_back_or_told_to_come_again() -> Result<()> {
    killed_during("infer", true).await
}

#[tokio::test]
async fn a_request_that_the_end_of_the_server_broke_off_is_to_come_again_and_the_models_are_back_by_themselves() -> Result<()> {
    killed_during("infer", false).await
}

/// A Triton that is started anew whenever it ends, as a kubelet would.
struct Supervised {
    deaths: watch::Receiver<u32>,
    grpc: String,
    _task: AbortOnDropHandle<Result<()>>,
}

impl Supervised {
    fn of(mut triton: Triton) -> Self {
        let (told, deaths) = watch::channel(0);
        let grpc = triton.grpc();
        let task = tokio::spawn(async move {
            loop {
                triton.ended().await?;
                told.send_modify(|deaths| *deaths += 1);
                triton.kill().await?;
                triton.again().await?;
            }
        });
        Supervised { deaths, grpc, _task: AbortOnDropHandle::new(task) }
    }

    fn deaths(&self) -> u32 {
        *self.deaths.borrow()
    }
}

/// An agent with its own Triton, data and model repository; models and resources are those of the fixture, or of its controller.
async fn pod(fixture: &Fixture, number: usize, host_memory: &str, controller: Option<&Berth>) -> Result<(Supervised, Berth)> {
    let repository = fixture.path(&format!("repository-{number}"));
    fs::create_dir_all(&repository)?;
    let triton = Supervised::of(Triton::start(&fixture.parts, &repository).await?);
    let mut serve = fixture.serve(host_memory).beside("triton", &triton.grpc, &repository);
    if let Some(controller) = controller {
        serve = serve.led_by(controller).flag("--pod-name", format!("pod-{number}"));
    }
    let berth = serve.flag("--runtime-process", "off").flag("--data", fixture.path(&format!("data-{number}"))).start().await?;
    Ok((triton, berth))
}

/// Three of them with one controller.
async fn three(fixture: &Fixture) -> Result<(Berth, Vec<(Supervised, Berth)>)> {
    let controller = fixture.serve(ROOMY).leads().start().await?;
    let mut pods = Vec::new();
    for number in 0..3 {
        pods.push(pod(fixture, number, ROOM_FOR_EIGHT, Some(&controller)).await?);
    }
    Ok((controller, pods))
}

fn deaths(pods: &[(Supervised, Berth)]) -> u32 {
    pods.iter().map(|(triton, _)| triton.deaths()).sum()
}

const GOOD: u32 = 50;

/// Bytes that let a model count as an eighth of [`ROOM_FOR_EIGHT`].
const PAD: usize = 100_000;
const ROOM_FOR_EIGHT: &str = "1MiB";

/// Fifty models that are good, and `killer`, which ends the server at `stage`; a pod has room for some of them at a time.
fn fifty_and_one(stage: &str) -> Result<Fixture> {
    let fixture = fixture()?;
    for number in 0..GOOD {
        TritonModels::scripted(&fixture.path("models").join(format!("good-{number}")), number + 1, &json!({}), PAD)?;
    }
    TritonModels::scripted(&fixture.path("models/killer"), 1, &json!({stage: {"kills": true}}), PAD)?;
    Ok(fixture)
}

/// Makes the good ones known by calls of one of them, so that they are loaded when they are asked for, and then the killer as a
/// resource.
async fn made_known(fixture: &Fixture, pods: &[(Supervised, Berth)]) -> Result<()> {
    let (_, first) = pods.first().context("there is one")?;
    let mut client = ModelMeshClient::connect(format!("http://{}", first.grpc())).await?;
    for number in 0..GOOD {
        let name = format!("good-{number}");
        let info = ModelInfo { r#type: "mt:python".to_owned(), path: name.clone(), key: r#"{"storage_key":"models"}"#.to_owned() };
        client.register_model(RegisterModelRequest { model_id: name, model_info: Some(info), ..RegisterModelRequest::default() }).await?;
    }
    // Some are there before it comes.
    for number in 0..6 {
        let (_, berth) = &pods[number as usize % pods.len()];
        is_right(&ask(berth, &format!("good-{number}")).await?, number + 1)?;
    }
    fixture.manifest("killer.yaml", &python_service("killer", "killer"))
}

/// Asks for every good model at one of `pods`, in turns, and before each of them for the killer. Good models are answered.
async fn all_serve(pods: &[(Supervised, Berth)]) -> Result<BTreeMap<u16, u32>> {
    let mut refused = BTreeMap::new();
    for number in 0..GOOD {
        let (_, berth) = &pods[number as usize % pods.len()];
        let reply = ask(berth, "killer").await?;
        *refused.entry(reply.status).or_default() += 1;
        let name = format!("good-{number}");
        let reply = ask(berth, &name).await?;
        is_right(&reply, number + 1).with_context(|| format!("{name}, {:?}", pods.iter().map(|(triton, _)| triton.deaths()).collect::<Vec<_>>()))?;
    }
    Ok(refused)
}

#[tokio::test]
async fn a_model_that_kills_servers_as_it_loads_does_so_twice_in_all_beside_three_and_fifty_others_serve_on() -> Result<()> {
    let fixture = fifty_and_one("load")?;
    let (controller, pods) = three(&fixture).await?;
    made_known(&fixture, &pods).await?;
    let standing = controller.stands("killer", LOADS, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.reason == "ModelLoadFailed" && standing.message.contains("runtime exited while loading it"), "{standing:?}");
    ensure!(deaths(&pods) == 2, "{}", deaths(&pods));
    let refused = all_serve(&pods).await?;
    ensure!(refused.keys().all(|status| *status >= 400) && deaths(&pods) == 2, "{refused:?}, {} deaths", deaths(&pods));
    ensure!(controller.standing("killer").await?.active == "FailedToLoad", "it stays so");
    Ok(())
}

#[tokio::test]
async fn a_model_that_kills_servers_as_it_computes_does_so_twice_in_all_beside_three_and_fifty_others_serve_on() -> Result<()> {
    let fixture = fifty_and_one("infer")?;
    let (controller, pods) = three(&fixture).await?;
    made_known(&fixture, &pods).await?;
    controller.stands("killer", LOADS, |standing| standing.active == "Loaded").await?;
    let reply = ask(&pods[0].1, "killer").await?;
    ensure!(reply.status >= 400, "{} {}", reply.status, reply.text());
    let standing = controller.stands("killer", SOON, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.message.contains("runtime exited while computing with it"), "{standing:?}");
    let refused = all_serve(&pods).await?;
    ensure!(refused.keys().all(|status| *status >= 400) && deaths(&pods) == 2, "{refused:?}, {} deaths", deaths(&pods));
    Ok(())
}

#[tokio::test]
async fn a_model_that_kills_its_server_as_it_computes_does_so_twice_and_fifty_others_serve_on() -> Result<()> {
    let fixture = fifty_and_one("infer")?;
    let pods = [pod(&fixture, 0, ROOM_FOR_EIGHT, None).await?];
    let [(triton, berth)] = &pods;
    made_known(&fixture, &pods).await?;
    berth.stands("killer", LOADS, |standing| standing.active == "Loaded").await?;
    // A request that broke off is sent once more if the server is soon back; so one alone may end it twice, and two do.
    for _request in 0..2 {
        let reply = ask(berth, "killer").await?;
        ensure!(reply.status >= 400, "{} {}", reply.status, reply.text());
    }
    let standing = berth.stands("killer", SOON, |standing| standing.active == "FailedToLoad").await?;
    ensure!(standing.message.contains("runtime exited while computing with it"), "{standing:?}");
    let refused = all_serve(&pods).await?;
    ensure!(refused.keys().all(|status| *status >= 400) && triton.deaths() == 2, "{refused:?}, {} deaths", triton.deaths());
    Ok(())
}

/// The model `name` as a resource with this format and, where it has one, this schema.
fn registered(fixture: &Fixture, name: &str, format: &str, schema: Option<&str>) -> Result<()> {
    let schema = schema.map(|path| format!("        schemaPath: {path}\n")).unwrap_or_default();
    fixture.manifest(&format!("{name}.yaml"), &(service(name, "models", name).replace("name: onnx", &format!("name: {format}")) + &schema))
}

#[tokio::test]
async fn models_that_cannot_be_served_say_what_is_wrong_and_the_others_serve_on() -> Result<()> {
    let fixture = fixture()?;
    let models = fixture.path("models");
    let onnx = fs::read(fixture.quickstart.models().join("digits-mlp/model.onnx"))?;
    let place = |name: &str, content: &[u8]| -> Result<()> {
        fs::create_dir_all(models.join(name))?;
        Ok(fs::write(models.join(name).join("model.onnx"), content)?)
    };
    for name in ["good", "odd-schema", "no-schema", "wrong-format", "nobodys-format"] {
        place(name, &onnx)?;
    }
    place("truncated", &onnx[..onnx.len() / 2])?;
    fs::create_dir_all(models.join("empty"))?;
    fs::write(models.join("odd.json"), "this is no schema")?;
    TritonModels::hungry(&models.join("swells"), &vec![1; 4 << 20], 5000)?;
    let repository = fixture.repository()?;
    let triton = Triton::with_onnx(&fixture.parts, &repository).await?;
    // 200 MiB of 4 MiB of files do not fit, as is seen when they are there.
    let berth = fixture.serve("160MiB").beside("triton", &triton.grpc(), &repository).start().await?;
    registered(&fixture, "good", "onnx", None)?;
    berth.stands("good", LOADS, |standing| standing.active == "Loaded").await?;
    let cases = [
        ("truncated", "onnx", None, "ModelLoadFailed", &["Triton did not load it", "model.onnx"][..]),
        ("empty", "onnx", None, "ModelLoadFailed", &["empty"]),
        ("no-schema", "onnx", Some("nowhere.json"), "ModelLoadFailed", &["nowhere.json"]),
        ("odd-schema", "onnx", Some("odd.json"), "ModelLoadFailed", &["schema"]),
        ("wrong-format", "pytorch", None, "ModelLoadFailed", &["Triton did not load it", "pytorch"]),
        ("nobodys-format", "sklearn", None, "NoSupportingRuntime", &["sklearn"]),
        ("swells", "python", None, "ModelLoadFailed", &["160", "MiB"]),
    ];
    for (name, format, schema, ..) in cases {
        registered(&fixture, name, format, schema)?;
    }
    let mut faults = Vec::new();
    for (name, _, _, reason, words) in cases {
        match berth.stands(name, LOADS, |standing| standing.active == "FailedToLoad" || standing.transition == "InvalidSpec").await {
            Ok(standing) => {
                println!("{name}: {} {}", standing.reason, standing.message);
                if standing.reason != reason || !words.iter().all(|word| standing.message.contains(word)) {
                    faults.push(format!("{name}: {words:?} are to be in {standing:?}"));
                }
            }
            Err(fault) => faults.push(format!("{name}: {fault:#}")),
        }
        let answer = berth.infer("good", fixture.quickstart.request("digits-mlp")?).await?.good()?;
        fixture.quickstart.check("digits-mlp", &answer).with_context(|| format!("beside {name}"))?;
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
