//! A thousand random steps of four clients through an agent beside a real Triton that has room for some of their models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::http::{call, get, post};
use berth_testkit::{Found, Triton, TritonModels, eventually};
use berth_types::ByteSize;
use serde_json::json;
use tokio::time::timeout;

use crate::fixture::{Fixture, bytes_below};
use crate::hard::{SERVICES, question};

/// Steps in all, and by how many clients at once; each has models of its own, and so knows what they must answer.
const STEPS: u32 = 1_000;
const CLIENTS: u32 = 4;
const MODELS: u32 = 3;
/// No step takes longer, whatever it waits for.
const STEP: Duration = Duration::from_secs(60);

/// Numbers that look random and are the same in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(most)).unwrap_or(0)
    }
}

/// What a client knows of one of its models.
#[derive(Default)]
struct Known {
    /// The versions that may answer: the one that did last, and those that it was changed to since. Empty: there is no such model.
    versions: Vec<u32>,
    made: u32,
    /// What the files of the newest version are charged with.
    charged: u64,
}

struct Client {
    number: u32,
    models: PathBuf,
    api: String,
    rest: String,
    chance: Chance,
    known: Vec<Known>,
    /// What it did, and how often.
    did: BTreeMap<&'static str, u32>,
}

impl Client {
    fn name(&self, model: u32) -> String {
        format!("client-{}-model-{model}", self.number)
    }

    /// By what the version of a model multiplies. No two have the same.
    fn factor(&self, model: u32, version: u32) -> u32 {
        (self.number * MODELS + model) * 1_000 + version
    }

    fn path(&self, model: u32, version: u32) -> String {
        format!("{}/v{version}", self.name(model))
    }

    fn url(&self, model: u32) -> String {
        format!("{}/{}", self.api, self.name(model))
    }

    async fn step(&mut self) -> Result<()> {
        // The first model is asked for most, so that it stays and the others take turns.
        let model = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2][self.chance.below(10) as usize];
        let exists = !self.known[model as usize].versions.is_empty();
        let (did, step) = match (exists, self.chance.below(100)) {
            (true, 0..92) => ("asked", self.asks(model).await),
            (true, 92..97) => ("changed", self.changes(model).await),
            (true, _) => ("deleted", self.deletes(model).await),
            (false, 0..60) => ("made", self.makes(model).await),
            (false, _) => ("asked in vain", self.asks_in_vain(model).await),
        };
        *self.did.entry(did).or_default() += 1;
        step.with_context(|| format!("{did}: {}, versions {:?}", self.name(model), self.known[model as usize].versions))
    }

    /// Writes the files of the next version.
    fn next_version(&mut self, model: u32) -> Result<u32> {
        self.known[model as usize].made += 1;
        let version = self.known[model as usize].made;
        // Models have different sizes.
        let pad = 100_000 * (1 + (self.number + model) as usize % 3);
        TritonModels::scripted(&self.models.join(self.path(model, version)), self.factor(model, version), &json!({}), pad)?;
        self.known[model as usize].charged = ByteSize(bytes_below(&self.models.join(self.path(model, version)))?).percent(125).0;
        Ok(version)
    }

    async fn makes(&mut self, model: u32) -> Result<()> {
        let version = self.next_version(model)?;
        let document = json!({
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": self.name(model), "annotations": {"serving.kserve.io/deploymentMode": "ModelMesh"}},
            "spec": {"predictor": {"model": {"modelFormat": {"name": "python"}, "storage": {"key": "models", "path": self.path(model, version)}}}},
        });
        let reply = post(&self.api, document.to_string()).await?;
        ensure!(reply.status == 201, "{} {}", reply.status, reply.text());
        self.known[model as usize].versions = vec![version];
        self.asks(model).await
    }

    async fn changes(&mut self, model: u32) -> Result<()> {
        let (version, url) = (self.next_version(model)?, self.url(model));
        let path = self.path(model, version);
        eventually("a change to be taken", STEP, || async {
            let mut resource = get(&url).await?.good()?;
            resource["spec"]["predictor"]["model"]["storage"]["path"] = json!(path);
            let reply = call("PUT", &url, resource.to_string().into()).await?;
            match reply.status {
                200 => Ok(Found::Yes(())),
                409 => Ok(Found::NotYet(reply.text())),
                other => Err(anyhow::anyhow!("{other} {}", reply.text())),
            }
        })
        .await?;
        self.known[model as usize].versions.push(version);
        self.asks(model).await
    }

    async fn deletes(&mut self, model: u32) -> Result<()> {
        call("DELETE", &self.url(model), "".into()).await?.good()?;
        self.known[model as usize].versions.clear();
        self.asks_in_vain(model).await
    }

    async fn asks(&mut self, model: u32) -> Result<()> {
        let reply = post(&format!("{}/{}/infer", self.rest, self.name(model)), question()).await?;
        let answer = reply.good()?["outputs"][0]["data"][0].as_f64().context("a number")?;
        let number = |version: &u32| 2.5 * f64::from(self.factor(model, *version));
        let versions = &self.known[model as usize].versions;
        let at = versions.iter().position(|version| number(version) == answer).with_context(|| format!("{answer} is the answer of none of them"))?;
        // Once a version has answered, none before it does.
        self.known[model as usize].versions.drain(..at);
        Ok(())
    }

    async fn asks_in_vain(&self, model: u32) -> Result<()> {
        let reply = post(&format!("{}/{}/infer", self.rest, self.name(model)), question()).await?;
        ensure!(reply.status == 404, "a model that is not there: {} {}", reply.status, reply.text());
        Ok(())
    }

    async fn carry_out(mut self, steps: u32) -> Result<Self> {
        for step in 0..steps {
            let done = timeout(STEP, self.step()).await.unwrap_or_else(|_| Err(anyhow::anyhow!("it hangs: over {STEP:?}")));
            done.with_context(|| format!("step {step} of client {}", self.number))?;
        }
        Ok(self)
    }
}

/// How many folders below this one have that name.
fn folders_below(folder: &Path, name: &str) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()? {
        if entry.file_type()?.is_dir() {
            found += usize::from(entry.file_name() == name) + folders_below(&entry.path(), name)?;
        }
    }
    Ok(found)
}

#[tokio::test]
async fn after_a_thousand_random_steps_every_answer_was_right_and_the_books_are_those_of_the_server() -> Result<()> {
    let fixture = Fixture::empty()?;
    fixture.models_storage()?;
    let repository = fixture.repository()?;
    let triton = Triton::start(&fixture.parts, &repository).await?;
    // A model counts as its files take, times 1.25: room for about two thirds of twelve.
    let serve = fixture.serve("2MiB").beside("triton", &triton.grpc(), &repository);
    let berth = serve.flag("--runtime-process", "off").flag("--load-concurrency", "2").start().await?;
    let clients = (0..CLIENTS).map(|number| {
        let client = Client {
            number,
            models: fixture.path("models"),
            api: berth.api(SERVICES),
            rest: format!("http://{}/v2/models", berth.rest()),
            chance: Chance(u64::from(number) + 77),
            known: (0..MODELS).map(|_| Known::default()).collect(),
            did: BTreeMap::new(),
        };
        tokio::spawn(client.carry_out(STEPS / CLIENTS))
    });
    let (mut ended, mut did) = (Vec::new(), BTreeMap::<_, u32>::new());
    for client in clients.collect::<Vec<_>>() {
        let client = client.await??;
        client.did.iter().for_each(|(what, times)| *did.entry(*what).or_default() += times);
        ended.push(client);
    }
    let loads = berth.metric("berth_loads_total{step=\"load\",outcome=\"loaded\"}").await?;
    let evictions = berth.metric("berth_evictions_total").await?;
    println!("{did:?}, {loads} loads, {evictions} evictions");
    ensure!(did.len() == 5 && loads > 50.0 && evictions > 10.0, "the steps are of all kinds: {did:?}, {loads} loads, {evictions} evictions");

    // Whatever is to be exchanged or loaded by itself gets there, half a minute later where there was no room, and then ledger and
    // server say the same.
    for client in &mut ended {
        for model in (0..MODELS).filter(|model| !client.known[*model as usize].versions.is_empty()).collect::<Vec<_>>() {
            let standing = berth.stands(&client.name(model), STEP, |standing| standing.transition == "UpToDate").await?;
            ensure!(standing.active != "FailedToLoad" && standing.reason.is_empty(), "{}: {standing:?}", client.name(model));
        }
    }
    let charged = |client: &Client| (0..MODELS).map(|model| (client.name(model), client.known[model as usize].charged)).collect::<Vec<_>>();
    let sizes: BTreeMap<String, u64> = ended.iter().flat_map(charged).collect();
    eventually("the books to be those of the server", STEP, || async {
        let gauge = |name: &'static str| berth.metric(name);
        let [moving, stuck] = ["Loading", "Unloading"].map(|state| format!("berth_models{{state=\"{state}\"}}"));
        let moving = berth.metric(&moving).await? + berth.metric(&stuck).await?;
        let (leased, unconfirmed) = (gauge("berth_memory_leased_bytes").await?, gauge("berth_memory_unconfirmed_bytes").await?);
        let loaded = berth.metric("berth_models{state=\"Loaded\"}").await?;
        let listed = triton.listed("READY").await?;
        let names: Vec<&str> = listed.iter().filter_map(|id| Some(id.split_once("__")?.0)).collect();
        let sum: Option<u64> = names.iter().map(|name| sizes.get(*name).copied()).sum();
        #[allow(clippy::cast_precision_loss, reason = "some megabytes")]
        let same = sum.map(|sum| sum as f64) == Some(leased) && loaded == names.len() as f64;
        let seen =
            format!("{moving} moving, {leased} charged for {loaded}, {unconfirmed} unconfirmed; the server has {listed:?}, which take {sum:?}");
        Ok(if same && moving == 0.0 && unconfirmed == 0.0 { Found::Yes(()) } else { Found::NotYet(seen) })
    })
    .await?;
    // Python has kept what it compiled of them, and not among their files.
    ensure!(folders_below(&repository, "__pycache__")? > 0 && folders_below(&fixture.path("models"), "__pycache__")? == 0);
    for client in &mut ended {
        for model in 0..MODELS {
            match client.known[model as usize].versions.len() {
                0 => client.asks_in_vain(model).await?,
                _ => client.asks(model).await?,
            }
            ensure!(client.known[model as usize].versions.len() <= 1, "{} answers as it was before its last change", client.name(model));
        }
    }
    Ok(())
}
