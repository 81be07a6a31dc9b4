//! `berth agent` beside a server whose memory is bounded: nothing is killed, and the books are true.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_testkit::{Berth, Bounds, Found, Triton, TritonModels, eventually};
use serde_json::json;

use crate::fixture::{Fixture, service};

const MIB: u64 = 1 << 20;
/// All that the server may have.
const LIMIT: u64 = 480 * MIB;
/// What models may take of it by the ledger.
const BUDGET: &str = "320MiB";
/// What a model's files have, and what it takes of that: from half to twenty times.
const WEIGHTS: usize = 4 << 20;
const PERCENT: [u32; 6] = [50, 100, 200, 500, 1000, 2000];
/// Loads, by requests to models in random order. The variable BERTH_MEMORY_LOADS says otherwise.
const LOADS: f64 = 40.0;

struct World {
    _fixture: Fixture,
    _triton: Triton,
    berth: Berth,
    /// Where the server runs, and what was in use there before the first model. `None` where no such group can be made.
    bounds: Option<(Bounds, u64)>,
    names: Vec<String>,
}

async fn world() -> Result<World> {
    let fixture = Fixture::empty()?;
    fixture.models_storage()?;
    let mut names = Vec::new();
    for (at, percent) in (0_u8..).zip(PERCENT.into_iter().chain(PERCENT)) {
        let name = format!("hungry-{at}");
        TritonModels::hungry(&fixture.path("models").join(&name), &vec![at; WEIGHTS], percent)?;
        fixture.manifest(&format!("{name}.yaml"), &service(&name, "models", &name).replace("name: onnx", "name: python"))?;
        names.push(name);
    }
    let repository = fixture.repository()?;
    let mut triton = Triton::start(&fixture.parts, &repository).await?;
    let bounds = match Bounds::of(LIMIT) {
        Some(bounds) => {
            bounds.hold(triton.process().id())?;
            let before = bounds.in_use()?;
            Some((bounds, before))
        }
        None => None,
    };
    let berth = fixture.serve(BUDGET).beside("triton", &triton.grpc(), &repository).start().await?;
    Ok(World { _fixture: fixture, _triton: triton, berth, bounds, names })
}

impl World {
    async fn ask(&self, name: &str) -> Result<()> {
        let body = json!({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1], "data": [1.5]}]});
        let reply = self.berth.infer(name, body.to_string().into_bytes()).await?;
        ensure!(reply.status == 200 && reply.text().contains("2.5"), "{name}: {} {}", reply.status, reply.text());
        Ok(())
    }

    /// How far the ledger's sum is from what models really take, as a share of that, when nothing comes or goes.
    async fn drift(&self) -> Result<f64> {
        eventually("nothing to come or go", Duration::from_secs(60), || async {
            let mut moving = 0.0;
            for state in ["Loading", "Unloading"] {
                moving += self.berth.metric(&format!("berth_models{{state=\"{state}\"}}")).await?;
            }
            Ok(if moving == 0.0 { Found::Yes(()) } else { Found::NotYet(format!("{moving} models on their way")) })
        })
        .await?;
        let leased = self.berth.metric("berth_memory_leased_bytes").await?;
        let taken = match &self.bounds {
            #[allow(clippy::cast_precision_loss, reason = "some hundred megabytes")]
            Some((bounds, before)) => bounds.in_use()?.saturating_sub(*before) as f64,
            None => self.berth.metric("berth_runtime_memory_bytes").await? - self.berth.metric("berth_runtime_base_bytes").await?,
        };
        println!("models are charged with {:.1} MiB and take {:.1} MiB", leased / 1_048_576.0, taken / 1_048_576.0);
        Ok((leased / taken - 1.0).abs())
    }
}

#[tokio::test]
async fn models_of_half_to_twenty_times_their_files_come_and_go_in_a_bounded_server_and_nothing_is_killed() -> Result<()> {
    let world = world().await?;
    let loads = match std::env::var("BERTH_MEMORY_LOADS") {
        Ok(text) => text.parse()?,
        Err(_unset) => LOADS,
    };
    let (mut chance, mut worst, mut loaded, mut request) = (7_u64, 0.0_f64, 0.0, 0_u32);
    while loaded < loads {
        request += 1;
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = &world.names[usize::try_from(chance >> 33)? % world.names.len()];
        world.ask(name).await?;
        if request % 20 == 0 {
            worst = worst.max(world.drift().await?);
        }
        loaded = world.berth.metric("berth_loads_total{step=\"load\",outcome=\"loaded\"}").await?;
    }
    let last = world.drift().await?;
    worst = worst.max(last);
    println!("{loaded} loads for {request} requests, the books were {:.1} % off at most and {:.1} % in the end", worst * 100.0, last * 100.0);
    ensure!(worst < 0.15, "the books were {:.1} % off", worst * 100.0);
    let failed = world.berth.metric("berth_loads_total{step=\"load\",outcome=\"failed\"}").await.unwrap_or(0.0);
    ensure!(failed == 0.0, "{failed} loads failed");
    ensure!(world.berth.metric("berth_evictions_total").await? > 0.0, "they do not fit together in truth");
    if let Some((bounds, _)) = &world.bounds {
        ensure!(bounds.kills()? == 0, "{} processes were killed", bounds.kills()?);
    }
    Ok(())
}
