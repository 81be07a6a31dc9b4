//! scratch
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]
use berth_adapters::conformance::{Abilities, onnx_suite, outputs_of, raw_request, registration};
use berth_adapters::{Artifacts, Infer, OnnxConfig, OnnxRuntime, Runtime};
use berth_telemetry::Clock;
use berth_types::ByteSize;
use serde_json::Value;
use std::time::{Duration, Instant};
#[global_allocator]
static A: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;

fn flat(v: &Value, out: &mut Vec<Value>) {
    match v { Value::Array(a) => a.iter().for_each(|v| flat(v, out)), other => out.push(other.clone()) }
}
fn raw(datatype: &str, data: &Value) -> Vec<u8> {
    let mut all = vec![]; flat(data, &mut all);
    let mut out = vec![];
    for v in all { match datatype {
        "FP32" => out.extend((v.as_f64().unwrap() as f32).to_le_bytes()),
        "FP64" => out.extend(v.as_f64().unwrap().to_le_bytes()),
        "INT64" => out.extend(v.as_i64().unwrap().to_le_bytes()),
        "BOOL" => out.push(u8::from(v.as_bool().unwrap())),
        "INT32" => out.extend((v.as_i64().unwrap() as i32).to_le_bytes()),
        "UINT8" => out.push(v.as_u64().unwrap() as u8),
        "BYTES" => { let s = v.as_str().unwrap(); out.extend((s.len() as u32).to_le_bytes()); out.extend(s.as_bytes()); }
        o => panic!("{o}"),
    } }
    out
}
fn rss() -> u64 { std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4 }

#[tokio::main]
async fn main() {
    let clock = Clock::system();
    let lib = std::env::args().nth(1).filter(|a| a != "tract");
    let config = OnnxConfig { library: lib.clone().map(Into::into), ..Default::default() };
    let started = Instant::now();
    let runtime = if lib.is_some() { OnnxRuntime::start(&config, clock.clone()).unwrap() } else { OnnxRuntime::built_in(&config, clock.clone()).unwrap() };
    println!("{} started in {:?}, rss {} KiB", runtime.info().version, started.elapsed(), rss());
    let dir = "examples/quickstart/models";
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        let model = registration(&name);
        let path = format!("{dir}/{name}");
        let size = std::fs::metadata(format!("{path}/model.onnx")).unwrap().len();
        let artifacts = Artifacts { model: path.into(), schema: None, size: ByteSize(size) };
        let laid = runtime.lay_out(&model, &artifacts).await.unwrap();
        let before = rss();
        let t = Instant::now();
        let loaded = match runtime.load(&model, &laid).await { Ok(l) => l, Err(e) => { println!("{name}: {e}"); continue } };
        let load = t.elapsed();
        let after = rss();
        let req: Value = serde_json::from_str(&std::fs::read_to_string(format!("examples/quickstart/requests/{name}.json")).unwrap()).unwrap();
        let exp: Value = serde_json::from_str(&std::fs::read_to_string(format!("examples/quickstart/expected/{name}.json")).unwrap()).unwrap();
        let inputs: Vec<(String, String, Vec<i64>, Vec<u8>)> = req["inputs"].as_array().unwrap().iter().map(|i| {
            let dt = i["datatype"].as_str().unwrap().to_owned();
            (i["name"].as_str().unwrap().to_owned(), dt.clone(), i["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect(), raw(&dt, &i["data"]))
        }).collect();
        let refs: Vec<_> = inputs.iter().map(|(a, b, c, d)| (a.as_str(), b.as_str(), &c[..], &d[..])).collect();
        let mut request = raw_request(&refs);
        if let Some(outs) = req["outputs"].as_array() { for o in outs { request.outputs.push(berth_proto::inference::model_infer_request::InferRequestedOutputTensor { name: o["name"].as_str().unwrap().to_owned(), ..Default::default() }); } }
        let deadline = || clock.deadline_in(Duration::from_secs(100));
        let t = Instant::now();
        let answer = runtime.infer(&model.id, request.clone(), deadline()).await;
        let first = t.elapsed();
        let answer = match answer { Ok(a) => a, Err(e) => { println!("{name}: {e}"); continue } };
        let mut worst = 0.0_f64; let mut wrong = vec![];
        for want in exp["outputs"].as_array().unwrap() {
            let n = want["name"].as_str().unwrap(); let dt = want["datatype"].as_str().unwrap();
            let Some(got) = outputs_of(&answer).into_iter().find(|o| o.0 == n) else { wrong.push(format!("no {n}")); continue };
            let shape: Vec<i64> = want["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect();
            if got.1 != dt || got.2 != shape { wrong.push(format!("{n}: {} {:?} not {dt} {shape:?}", got.1, got.2)); continue }
            let w = raw(dt, &want["data"]);
            if dt == "FP32" { for (a, b) in got.3.chunks(4).zip(w.chunks(4)) { worst = worst.max(f64::from((f32::from_le_bytes(a.try_into().unwrap()) - f32::from_le_bytes(b.try_into().unwrap())).abs())); } }
            else if got.3[..] != w[..] { wrong.push(format!("{n} differs")); }
        }
        let mut times = vec![];
        let tt = Instant::now();
        while times.len() < 2000 && tt.elapsed() < Duration::from_secs(2) {
            let t = Instant::now(); runtime.infer(&model.id, request.clone(), deadline()).await.unwrap(); times.push(t.elapsed());
        }
        times.sort();
        let meta = runtime.metadata(&model.id).await.unwrap();
        println!("{name}: file {size} load {:.1}ms first {}us p50 {}us measured {:?} estimate {} rss+{}K worst {worst:.1e} wrong {wrong:?} in {:?} out {:?}", load.as_secs_f64()*1e3, first.as_micros(), times[times.len()/2].as_micros(), loaded.measured.map(|m| m.total().0), runtime.estimate(&artifacts).unwrap().total().0, after.saturating_sub(before),
          meta.inputs.iter().map(|i| format!("{} {} {:?}", i.name, i.datatype, i.shape)).collect::<Vec<_>>(), meta.outputs.iter().map(|i| format!("{} {} {:?}", i.name, i.datatype, i.shape)).collect::<Vec<_>>());
        runtime.unload(&model.id).await.unwrap();
        while runtime.index().await.unwrap().unloaded(&model.id).is_none() { runtime.index_changed().await; }
    }
    for name in ["conv", "dense"] {
        let model = registration(name);
        let path = format!("/tmp/big/{name}");
        let size = std::fs::metadata(format!("{path}/model.onnx")).unwrap().len();
        let artifacts = Artifacts { model: path.into(), schema: None, size: ByteSize(size) };
        let laid = runtime.lay_out(&model, &artifacts).await.unwrap();
        let before = rss();
        let t = Instant::now();
        let loaded = runtime.load(&model, &laid).await.unwrap();
        let load = t.elapsed();
        let after = rss();
        println!("{name}: file {size} load {load:?} measured {:?} estimate {} rss+{}K", loaded.measured.map(|m| m.total().0), runtime.estimate(&artifacts).unwrap().total().0, after.saturating_sub(before));
        let dims: Vec<i64> = if name == "conv" { vec![4, 3, 64, 64] } else { vec![4, 2048] };
        let n = dims.iter().product::<i64>() as usize * 4;
        let data = vec![0_u8; n];
        for _ in 0..3 { let t = Instant::now(); let _ = runtime.infer(&model.id, raw_request(&[("x", "FP32", &dims, &data)]), clock.deadline_in(Duration::from_secs(60))).await.unwrap(); println!("   infer {:?} rss {}", t.elapsed(), rss()); }
        runtime.unload(&model.id).await.unwrap();
        while runtime.index().await.unwrap().unloaded(&model.id).is_none() { runtime.index_changed().await; }
        println!("   after unload rss {}", rss());
    }
    println!("rss at the end {} KiB", rss());
    let folder = tempfile::tempdir().unwrap();
    let ort = lib.is_some();
    onnx_suite(&runtime, &clock, folder.path(), Abilities { bf16: ort, any_rank: ort, measures: true }).await;
    println!("suite passed");
}
