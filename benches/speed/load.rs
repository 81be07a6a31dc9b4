//! A load beside a real Triton, through the agent against the same calls of Triton's own repository.
//!
//! Both sides swap two models of 5 MiB of which everything is known: the agent because it has room for one, which makes a
//! swap an unload, its confirmation and a load; the other side by those calls. Each has a Triton of its own, started alike,
//! and they take turns. What is added is what the agent decides, lays out, asks and waits. Then a hundred loads are asked for
//! at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use berth_benches::{Comparison, Cost, Median};
use berth_proto::mmesh::model_mesh_client::ModelMeshClient;
use berth_proto::mmesh::model_status_info::ModelStatus;
use berth_proto::mmesh::{EnsureLoadedRequest, ModelInfo, RegisterModelRequest};
use berth_telemetry::Clock;
use berth_testkit::http::post;
use berth_testkit::{Berth, Parts, Serve, Triton, TritonModels};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const BYTES: usize = 5 << 20;
/// Swaps of one block.
const SWAPS: u32 = 4;
/// Loads at once, and how many of them a Triton begins at a time by itself.
const MANY: usize = 100;
const THREADS: &str = "4";
/// Between two looks whether a model is gone.
const LOOK: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_secs(120);
/// Parts of a second that Linux counts what a process spends in.
const TICKS: u32 = 100;

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    swaps(&clock, blocks.min(20)).await?;
    at_once(&clock).await
}

async fn swaps(clock: &Clock, blocks: usize) -> anyhow::Result<()> {
    let world = World::of(2).await?;
    // What a model takes is measured when it is loaded for the first time. Room for one and a half.
    let taken = {
        let mut agent = world.agent("4GiB", "1").await?;
        agent.load(0).await?;
        let taken = agent.berth.metric("berth_memory_leased_bytes").await?;
        agent.berth.interrupt().await?; // its folder is the next one's
        taken
    };
    let agent = world.agent(&format!("{:.0}", taken * 1.5), "1").await?;
    // Both contents are known from here on.
    agent.load(0).await?;
    world.call(0, "load").await?;
    for model in [1, 0] {
        agent.load(model).await?;
        world.swap(clock, model, 1 - model).await?;
    }
    let evictions = agent.berth.metric("berth_evictions_total").await?;
    let (mut costs, mut own) = (Vec::new(), Vec::new());
    for block in 0..=blocks {
        let direct = async {
            let since = clock.now();
            for swap in 0..SWAPS as usize {
                world.swap(clock, (swap + 1) % 2, swap % 2).await?;
            }
            anyhow::Ok(Cost { wall: clock.now() - since, cpu: Duration::ZERO })
        };
        let through = async {
            let (since, before) = (clock.now(), agent.cpu()?);
            for swap in 0..SWAPS as usize {
                agent.load((swap + 1) % 2).await?;
            }
            anyhow::Ok(Cost { wall: clock.now() - since, cpu: agent.cpu()?.saturating_sub(before) })
        };
        let pair = if block % 2 == 0 {
            (direct.await?, through.await?)
        } else {
            let through = through.await?;
            (direct.await?, through)
        };
        if block > 0 {
            own.push(pair.1.cpu.as_secs_f64() * 1e3 / f64::from(SWAPS));
            costs.push(pair);
        }
    }
    let swapped = agent.berth.metric("berth_evictions_total").await? - evictions;
    ensure!(swapped >= (blocks + 1) as f64 * f64::from(SWAPS), "{swapped} evictions: not every load was a swap");
    let Comparison { wall, per_operation, added_micros, .. } = Comparison::of("load", SWAPS, &costs);
    println!(
        "unload and load a model of 5 MiB beside Triton: {:?} through the agent against {:?} direct; wall ratio {wall}; added {added_micros} us\n  agent CPU per load: {} ms\n  promise: at most 1.1 or 10 ms more",
        per_operation.1,
        per_operation.0,
        Median::of(own),
    );
    Ok(())
}

async fn at_once(clock: &Clock) -> anyhow::Result<()> {
    let world = World::of(MANY).await?;
    let agent = world.agent("16GiB", THREADS).await?;
    let since = clock.now();
    world.load_all().await?;
    let direct = clock.now() - since;
    drop(world.direct);
    let (since, before) = (clock.now(), agent.cpu()?);
    agent.load_all().await?;
    let (through, spent) = (clock.now() - since, agent.cpu()?.saturating_sub(before));
    println!(
        "{MANY} loads asked for at once: {through:?} through the agent against {direct:?} direct, ratio {:.3}; agent CPU per load {:?}",
        through.as_secs_f64() / direct.as_secs_f64(),
        spent / u32::try_from(MANY)?,
    );
    Ok(())
}

/// Models in a folder, and two servers: one for the agent and one for calls of ours, which has them in its repository.
struct World {
    parts: Parts,
    folder: TempDir,
    beside: Triton,
    direct: Triton,
    models: usize,
}

fn name(model: usize) -> String {
    format!("model-{model}")
}

impl World {
    async fn of(models: usize) -> anyhow::Result<Self> {
        let (parts, folder) = (Parts::from_env()?, TempDir::new()?);
        let path = |name: &str| folder.path().join(name);
        for place in ["manifests", "storage", "models", "direct", "repository"] {
            fs::create_dir_all(path(place))?;
        }
        for model in 0..models {
            // Each has content of its own.
            for place in ["models", "direct"] {
                TritonModels::scripted(&path(place).join(name(model)), u32::try_from(model)? + 1, &json!({}), BYTES)?;
            }
        }
        fs::write(path("storage").join("models"), json!({"type": "folder", "path": path("models")}).to_string())?;
        let (beside, direct) = (Triton::start(&parts, &path("repository")).await?, Triton::start(&parts, &path("direct")).await?);
        Ok(World { parts, folder, beside, direct, models })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The agent with all models registered and none loaded.
    async fn agent(&self, memory: &str, loads: &str) -> anyhow::Result<Agent> {
        let serve = Serve::new(&self.parts, &self.path("manifests"), &self.path("data")).flag("--storage-config", self.path("storage"));
        let serve = serve.beside("triton", &self.beside.grpc(), &self.path("repository")).flag("--host-memory", memory);
        let mut berth = serve.flag("--load-concurrency", loads).start().await?;
        let stat = Path::new("/proc").join(berth.process().id().to_string()).join("stat");
        let channel = Channel::from_shared(format!("http://{}", berth.grpc()))?.connect().await?;
        let agent = Agent { berth, client: ModelMeshClient::new(channel), stat, models: self.models };
        for model in 0..self.models {
            let info = ModelInfo { r#type: "mt:python".to_owned(), path: name(model), key: r#"{"storage_key":"models"}"#.to_owned() };
            let asked = RegisterModelRequest { model_id: name(model), model_info: Some(info), ..RegisterModelRequest::default() };
            agent.client.clone().register_model(asked).await?;
        }
        Ok(agent)
    }

    /// Loads one model directly after the other one is gone.
    async fn swap(&self, clock: &Clock, load: usize, unload: usize) -> anyhow::Result<()> {
        self.call(unload, "unload").await?;
        while !self.direct.listed("UNAVAILABLE").await?.contains(&name(unload)) {
            clock.sleep(LOOK).await;
        }
        self.call(load, "load").await
    }

    async fn call(&self, model: usize, order: &str) -> anyhow::Result<()> {
        carried_out(&self.direct.http(), model, order).await
    }

    async fn load_all(&self) -> anyhow::Result<()> {
        let mut calls = JoinSet::new();
        for model in 0..self.models {
            let server = self.direct.http();
            calls.spawn(async move { carried_out(&server, model, "load").await });
        }
        while let Some(call) = calls.join_next().await {
            call??;
        }
        Ok(())
    }
}

async fn carried_out(server: &str, model: usize, order: &str) -> anyhow::Result<()> {
    let reply = post(&format!("http://{server}/v2/repository/models/{}/{order}", name(model)), "").await?;
    ensure!(reply.status == 200, "{order} of {}: {} {}", name(model), reply.status, reply.text());
    Ok(())
}

struct Agent {
    berth: Berth,
    client: ModelMeshClient<Channel>,
    stat: PathBuf,
    models: usize,
}

impl Agent {
    async fn load(&self, model: usize) -> anyhow::Result<()> {
        loaded(self.client.clone(), model).await
    }

    async fn load_all(&self) -> anyhow::Result<()> {
        let mut calls = JoinSet::new();
        for model in 0..self.models {
            calls.spawn(loaded(self.client.clone(), model));
        }
        while let Some(call) = calls.join_next().await {
            call??;
        }
        Ok(())
    }

    /// What the agent has spent so far, to a hundredth of a second.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let text = fs::read_to_string(&self.stat)?;
        // The name of the program, which stands in parentheses, may hold anything.
        let (_, fields) = text.rsplit_once(')').context("a line of a process")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_secs(ticks) / TICKS)
    }
}

async fn loaded(mut client: ModelMeshClient<Channel>, model: usize) -> anyhow::Result<()> {
    let mut asked = tonic::Request::new(EnsureLoadedRequest { model_id: name(model), last_used_time: 0, sync: true });
    asked.set_timeout(LONG);
    let status = client.ensure_loaded(asked).await?.into_inner();
    ensure!(status.status() == ModelStatus::Loaded, "{} is not loaded: {status:?}", name(model));
    Ok(())
}
