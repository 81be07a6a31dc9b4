//! What people see of a download that takes its time: in `berth get -w`, in `berth describe`, in a table as kubectl asks for
//! it, among the metrics and in the log. And what ends one: silence, not slowness.

use std::fs;
use std::num::NonZeroU64;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Found, Gateway, Pace, Process, Relay, Transport, curl, eventually, http};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY};

/// Longer than a store may keep silent, on a busy machine.
const LATER: Duration = Duration::from_secs(90);
/// What the model has beside its few bytes: enough for a download of some time, looked at by nobody.
const BESIDE: usize = 64 << 20;
const SERVICES: &str = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices";

/// A server with a model in a store behind a relay. The resource is still to be made.
struct Far {
    fixture: Fixture,
    _gateway: Gateway,
    relay: Relay,
    berth: Berth,
}

/// As slow as the relay is told to be for a few tests' patience: not one of these downloads is over in 15 seconds.
fn slow() -> Pace {
    Pace { delay: Duration::ZERO, rate: NonZeroU64::new(256 << 10) }
}

async fn far() -> Result<Far> {
    let fixture = Fixture::empty()?;
    let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
    let folder = fixture.path("upload");
    fs::create_dir_all(folder.join("iris"))?;
    fs::copy(fixture.quickstart.models().join("iris/model.onnx"), folder.join("iris/model.onnx"))?;
    fs::write(folder.join("iris/beside.bin"), (0..BESIDE).map(|at| (at % 251) as u8).collect::<Vec<_>>())?;
    gateway.put_folder(&folder).await?;
    let relay = Relay::start(gateway.address()).await?;
    let mut entry = gateway.storage_entry();
    entry["endpoint_url"] = json!(format!("http://{}", relay.address()));
    fixture.storage("far", &entry)?;
    let berth = fixture.serve(ROOMY).flag("--log-format", "json").start().await?;
    Ok(Far { fixture, _gateway: gateway, relay, berth })
}

impl Far {
    fn command(&self, line: &str) -> Result<Process> {
        let mut command = Command::new(&self.fixture.parts.bin);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
            command.env_remove(variable);
        }
        command.env("BERTH_SERVER", self.berth.api("")).args(line.split(' '));
        Process::start(line, command)
    }

    async fn page(&self, line: &str) -> Result<String> {
        let mut process = self.command(line)?;
        process.exit(LATER).await?;
        Ok(process.out())
    }

    /// The downloads as the API tells them.
    async fn downloads(&self) -> Result<Vec<Value>> {
        let document = http::get(&self.berth.api("/berth/v1/downloads")).await?.good()?;
        Ok(document["items"].as_array().context("items")?.clone())
    }

    /// Waits until so many bytes have come.
    async fn has_bytes(&self, wanted: u64) -> Result<Value> {
        eventually("bytes of the model", LATER, || async {
            let downloads = self.downloads().await?;
            let found = downloads.iter().find(|download| download["bytes"].as_u64().is_some_and(|bytes| bytes >= wanted));
            Ok(found.cloned().map_or_else(|| Found::NotYet(format!("{downloads:?}")), Found::Yes))
        })
        .await
    }

    /// The log lines with this message.
    fn logged(&mut self, message: &str) -> Vec<Value> {
        let lines = self.berth.process().errors();
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line: &Value| line["message"] == message).collect()
    }
}

/// The percentage in a cell or line such as `45% (1.2 of 2.6 GiB, 310 MiB/s, 5s left)`.
fn percent(text: &str) -> Option<u64> {
    let before = text.split_once('%')?.0;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The percentages that a watch printed for the model, in order.
fn percents(watch: &Process) -> Vec<u64> {
    watch.out().lines().filter(|line| line.starts_with("far ")).filter_map(percent).collect()
}

#[tokio::test]
async fn a_slow_download_is_seen_growing_everywhere_and_takes_as_long_as_it_takes() -> Result<()> {
    let mut far = far().await?;
    far.relay.pace(slow());
    let mut watch = far.command("get isvc -w")?;
    far.fixture.service("far", "far", "iris")?;

    // Where people look. Each look is later than the one before and sees more.
    watch
        .line("a first percentage with its time", LATER, |line| line.starts_with("far ") && percent(line) > Some(0) && line.ends_with(" left)"))
        .await?;
    assert!(watch.out().lines().any(|line| line.starts_with("NAME ") && line.ends_with("PROGRESS")), "{}", watch.written());
    let page = far.page("describe isvc far").await?;
    let line = page.lines().find(|line| line.starts_with("  Download: ")).with_context(|| format!("no download in\n{page}"))?;
    ensure!(percent(line) > Some(0) && line.contains(" of 64 MiB, ") && line.contains("/s, ") && line.contains(", far__isvc-"), "{line}");
    let table = far.page("get isvc far").await?;
    ensure!(table.contains("PROGRESS") && table.contains(" of 64 MiB, "), "{table}");
    let accept = "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table: Value = serde_json::from_str(&curl(&["--header", accept, &far.berth.api(&format!("{SERVICES}/far"))]).await?)?;
    let heads = table["columnDefinitions"].as_array().context("columns")?.iter().map(|column| &column["name"]);
    let row: Vec<(&Value, &Value)> = heads.zip(table["rows"][0]["cells"].as_array().context("cells")?).collect();
    ensure!(row.iter().any(|(head, cell)| **head == "Progress" && cell.as_str().and_then(percent) > Some(0)), "{row:?}");
    let before = far.berth.metric("berth_download_bytes").await?;
    ensure!(far.berth.metric("berth_downloads").await? == 1.0 && far.berth.metric("berth_download_size_bytes").await? > BESIDE as f64);

    // Longer than a store may keep silent: two lines of the log, each ten seconds after the one before.
    eventually("two lines of the log", LATER, || {
        let lines = far.logged("download goes on");
        async move { Ok(if lines.len() >= 2 { Found::Yes(()) } else { Found::NotYet(format!("{lines:?}")) }) }
    })
    .await?;
    ensure!(far.berth.metric("berth_download_bytes").await? > before);
    let lines = far.logged("download goes on");
    let shown: Vec<u64> = lines.iter().filter_map(|line| line["percent"].as_u64()).collect();
    ensure!(shown.is_sorted() && shown.first() < shown.last(), "{lines:?}");
    for field in ["model", "step", "stage", "bytes", "size", "rate", "eta"] {
        ensure!(lines[1][field].as_str().is_some_and(|text| !text.is_empty()), "{field} is missing in {}", lines[1]);
    }
    let begin = far.logged("download begins");
    ensure!(begin.len() == 1 && begin[0]["objects"] == 2 && begin[0]["resumed"] == "0 B" && begin[0]["size"].is_string(), "{begin:?}");

    far.relay.pace(Pace::default());
    watch.line("the model to be loaded", LATER, |line| line.starts_with("far ") && line.split_whitespace().nth(3) == Some("Loaded")).await?;
    let seen = percents(&watch);
    ensure!(seen.len() >= 5 && seen.is_sorted(), "{seen:?}");
    let last = watch.out();
    ensure!(last.lines().last().is_some_and(|line| percent(line).is_none()), "{last}");
    let reply = far.berth.infer("far", far.fixture.quickstart.request("iris")?).await?;
    far.fixture.quickstart.check("iris", &reply.good()?)?;
    let end = far.logged("model fetched");
    ensure!(end.len() == 1 && end[0]["rate"].as_str().is_some_and(|rate| rate.ends_with("/s")), "{end:?}");
    ensure!(far.downloads().await?.is_empty());
    let page = http::get(&far.berth.metrics("/metrics")).await?.text();
    for line in ["berth_downloads 0\n", "berth_download_seconds_count{outcome=\"done\"} 1\n"] {
        ensure!(page.contains(line), "{line:?} is not in\n{page}");
    }
    ensure!(!page.contains("model=\"far__"), "a download that ended is still in\n{page}");
    Ok(())
}

#[tokio::test]
async fn a_download_ends_when_nothing_comes_any_more_and_goes_on_from_there() -> Result<()> {
    let mut far = far().await?;
    far.relay.pace(slow());
    far.fixture.service("far", "far", "iris")?;
    far.has_bytes(4 << 20).await?;
    far.relay.hold();
    let failed = far.berth.stands("far", LATER, |standing| standing.active == "FailedToLoad").await?;
    ensure!(failed.message.contains("no byte came for") || failed.message.contains("no answer"), "{failed:?}");
    let retries = far.logged("the store fails, it is tried again");
    ensure!((1..=3).contains(&retries.len()), "one line for all that stall together: {retries:?}");
    ensure!(retries[0]["error"].as_str().is_some_and(|why| why.contains("beside.bin")), "{retries:?}");

    // Nothing of it is shown any more, and what came is there.
    far.relay.release();
    far.relay.pace(Pace::default());
    eventually("the model", LATER, || async {
        let reply = far.berth.infer("far", far.fixture.quickstart.request("iris")?).await?;
        Ok(if reply.status == 200 { Found::Yes(()) } else { Found::NotYet(reply.text()) })
    })
    .await?;
    let page = far.page("describe isvc far").await?;
    ensure!(!page.contains("Download:"), "{page}");
    let begins = far.logged("download begins");
    let resumed = begins.last().and_then(|line| line["resumed"].as_str()).unwrap_or_default();
    ensure!(begins.len() >= 2 && resumed.ends_with("MiB"), "{begins:?}");
    ensure!(far.berth.metric("berth_resumed_bytes_total").await? >= f64::from(1 << 20));
    Ok(())
}
