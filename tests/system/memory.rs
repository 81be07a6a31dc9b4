//! `berth agent` beside a server whose memory is bounded: nothing is killed, and the books are true.

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Bounds, Triton, TritonModels};
use serde_json::json;

use crate::fixture::{Fixture, service};

const MIB: u64 = 1 << 20;
/// All that the server may have.
const LIMIT: u64 = 700 * MIB;
/// What models may take of it by the ledger.
const BUDGET: &str = "560MiB";
/// What a model's files have, and what it takes of that: from half to twenty times.
const WEIGHTS: usize = 4 << 20;
const PERCENT: [u32; 6] = [50, 100, 200, 500, 1000, 2000];
/// Requests to models in random order; each beyond the first few is a load. More by the variable BERTH_TEST_LOADS.
const REQUESTS: u64 = 60;

struct World {
    fixture: Fixture,
    triton: Triton,
    berth: Berth,
    bounds: Option<Bounds>,
    names: Vec<String>,
}

async fn world(flags: &[(&str, &str)]) -> Result<World> {
    let fixture = Fixture::empty()?;
    fixture.storage("models", &json!({"type": "folder", "path": fixture.path("models")}))?;
    let mut names = Vec::new();
    for (at, percent) in (0_u8..).zip(PERCENT.into_iter().chain(PERCENT)) {
        let name = format!("hungry-{at}");
        TritonModels::hungry(&fixture.path("models").join(&name), &vec![at; WEIGHTS], percent)?;
        fixture.manifest(&format!("{name}.yaml"), &service(&name, "models", &name).replace("name: onnx", "name: python"))?;
        names.push(name);
    }
    let repository = fixture.path("repository");
    std::fs::create_dir_all(&repository)?;
    let mut triton = Triton::start(&fixture.parts, &repository).await?;
    let bounds = Bounds::of(LIMIT);
    if let Some(bounds) = &bounds {
        bounds.hold(triton.process().id())?;
    }
    let mut serve = fixture.serve(BUDGET).beside("triton", &triton.grpc(), &repository);
    for (flag, value) in flags {
        serve = serve.flag(flag, *value);
    }
    let berth = serve.start().await?;
    Ok(World { fixture, triton, berth, bounds, names })
}

impl World {
    async fn ask(&self, name: &str) -> Result<()> {
        let body = json!({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1], "data": [1.5]}]});
        let reply = self.berth.infer(name, body.to_string().into_bytes()).await?;
        ensure!(reply.status == 200 && reply.text().contains("2.5"), "{name}: {} {}", reply.status, reply.text());
        Ok(())
    }
}

#[tokio::test]
async fn models_of_half_to_twenty_times_their_files_are_loaded_over_and_over_in_a_bounded_server_and_nothing_is_killed() -> Result<()> {
    let mut world = world(&[]).await?;
    let requests = std::env::var("BERTH_TEST_LOADS").ok().and_then(|text| text.parse().ok()).unwrap_or(REQUESTS);
    let (mut chance, mut worst) = (7_u64, 0.0_f64);
    for request in 0..requests {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = &world.names[usize::try_from(chance >> 33)? % world.names.len()];
        world.ask(name).await?;
        if request % 10 == 9 {
            let leased = world.berth.metric("berth_memory_leased_bytes{pool=\"host\"}").await?;
            let base = world.berth.metric("berth_runtime_base_bytes{pool=\"host\"}").await?;
            let held = world.berth.metric("berth_runtime_memory_bytes{pool=\"host\"}").await?;
            println!(
                "request {request}: leased {:.0} MiB, held {:.0} MiB, base {:.0} MiB, in use {:?}",
                leased / 1048576.0,
                held / 1048576.0,
                base / 1048576.0,
                world.bounds.as_ref().map(|bounds| bounds.in_use().map(|bytes| bytes / MIB))
            );
            worst = worst.max(((held - base) / leased - 1.0).abs());
        }
    }
    let failed = world.berth.metric("berth_loads_total{step=\"load\",outcome=\"failed\"}").await.unwrap_or(0.0);
    ensure!(failed == 0.0, "{failed} loads failed");
    ensure!(world.berth.metric("berth_evictions_total").await? > 0.0, "they do not fit together in truth");
    if let Some(bounds) = &world.bounds {
        ensure!(bounds.kills()? == 0, "{} processes were killed", bounds.kills()?);
    }
    println!("worst drift {worst:.3}");
    Ok(())
}
