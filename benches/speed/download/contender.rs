//! Who fetches: how each client is called, with the settings that make it fastest here, and what one call cost.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use berth_benches::Median;
use serde_json::{Value, json};
use tokio::process::Command;

use super::set::Set;

/// The one account.
pub(super) const ACCESS_KEY: &str = "bench";
pub(super) const SECRET_KEY: &str = "not-a-secret-of-anybody";
/// The one bucket.
pub(super) const BUCKET: &str = "models";
/// The storage key of our own side.
pub(super) const STORAGE_KEY: &str = "store";

/// What makes rclone fastest here: many at once, large ones in parts, and no question that a download does not need: no
/// HEAD before a GET, no look for files that are there already, no times from the store's metadata.
pub(super) const RCLONE_TUNED: [&str; 7] = [
    "--transfers=64",
    "--multi-thread-streams=8",
    "--multi-thread-cutoff=64M",
    "--s3-no-head",
    "--s3-no-head-object",
    "--use-server-modtime",
    "--no-check-dest",
];

/// What the CRT client aims at, in gigabits per second: from that it decides how many requests are under way. Less makes it
/// slower with many objects, more with a single one, whose parts pile up before its one writer.
pub(super) const CRT_GBPS: &str = "50";
pub(super) const CRT_GBPS_SINGLE: &str = "5";

/// How often a program is started to see what starting costs.
const STARTS: usize = 7;

/// Programs that are not ours.
pub(super) struct Tools {
    /// The S3 server.
    pub(super) versitygw: PathBuf,
    rclone: PathBuf,
    /// A Python that has the AWS CRT client. It measures, too.
    python: PathBuf,
}

impl Tools {
    pub(super) fn from_env() -> anyhow::Result<Self> {
        let path = |variable: &str| {
            let path = PathBuf::from(std::env::var_os(variable).with_context(|| format!("{variable} is not set: run through cargo xtask bench"))?);
            ensure!(path.is_file(), "{variable} is {}, which is no file: run through cargo xtask bench", path.display());
            anyhow::Ok(path)
        };
        Ok(Tools { versitygw: path("BERTH_VERSITYGW")?, rclone: path("BERTH_RCLONE")?, python: path("BERTH_PYTHON_CRT")? })
    }

    /// Fills `set` of the server at `endpoint` from `folder`, with a CRC-64/NVME for each object.
    pub(super) async fn upload(&self, endpoint: &str, set: Set, folder: &Path) -> anyhow::Result<()> {
        let words = [own("crt_client.py"), "put".into(), endpoint.into(), BUCKET.into(), set.prefix().into(), folder.into()];
        let uploaded = clean(&self.python).args(words).output().await.context("cannot start the upload")?;
        ensure!(uploaded.status.success(), "the upload of {set} failed: {}", String::from_utf8_lossy(&uploaded.stderr));
        Ok(())
    }

    /// Runs a command to its end.
    async fn measure(&self, words: &[OsString]) -> anyhow::Result<(Sample, String)> {
        let run = clean(&self.python).arg(own("measure.py")).args(words).output().await.context("cannot measure")?;
        let errors = String::from_utf8_lossy(&run.stderr);
        let told: Value = serde_json::from_slice(&run.stdout).with_context(|| format!("{words:?} was not measured: {errors}"))?;
        ensure!(told["code"] == 0, "{words:?} ended with code {}: {errors}", told["code"]);
        let number = |field: &str| told[field].as_f64().with_context(|| format!("no {field} in {told}"));
        let sample = Sample { wall: number("wall")?, cpu: number("cpu")?, peak: number("peak")? };
        Ok((sample, told["said"].as_str().unwrap_or_default().to_owned()))
    }
}

/// A file beside this one.
fn own(name: &str) -> OsString {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("speed/download").join(name).into()
}

/// A command that knows the account and nothing of whoever runs the bench: proxies, authorities, settings.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent");
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What one download cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Wall time, seconds.
    pub(super) wall: f64,
    /// User plus system time, seconds.
    pub(super) cpu: f64,
    /// The most memory resident at once, bytes.
    pub(super) peak: f64,
}

impl Sample {
    /// Takes time off.
    pub(super) fn less(&mut self, start: &Sample) {
        self.wall -= start.wall;
        self.cpu -= start.cpu;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Berth,
    Rclone,
    /// As it comes: four transfers at once.
    RcloneAsItComes,
    Crt,
}

impl Client {
    pub(super) const ALL: [Client; 4] = [Client::Berth, Client::Rclone, Client::RcloneAsItComes, Client::Crt];
}

/// A client, and whether it holds what comes against the store's checksums where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contender {
    pub(super) client: Client,
    pub(super) verifies: bool,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Client::Berth => "berth",
            Client::Rclone => "rclone, tuned",
            Client::RcloneAsItComes => "rclone as it comes",
            Client::Crt => "AWS CRT",
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.client, if self.verifies { "" } else { ", unverified" })
    }
}

/// One download: of what, from where, to where.
pub(super) struct Job<'a> {
    pub(super) set: Set,
    pub(super) endpoint: &'a str,
    /// An empty folder.
    pub(super) folder: &'a Path,
}

/// Where a download left its files.
pub(super) struct Fetched {
    pub(super) sample: Sample,
    pub(super) files: PathBuf,
    /// The client's own last word.
    pub(super) said: String,
}

impl Contender {
    /// Runs one download.
    pub(super) async fn fetch(self, tools: &Tools, job: &Job<'_>) -> anyhow::Result<Fetched> {
        let words = match self.client {
            Client::Berth => self.berth(job)?,
            Client::Rclone => self.rclone(tools, job),
            Client::RcloneAsItComes => self.rclone_as_it_comes(tools, job),
            Client::Crt => self.crt(tools, job),
        };
        let (sample, said) = tools.measure(&words).await.with_context(|| format!("{self}, {}", job.set))?;
        if self.client == Client::Crt {
            let checked = if self.verifies { job.set.objects() } else { 0 };
            let expected = format!("done: {} objects, {checked} held against a checksum", job.set.objects());
            ensure!(said == expected, "{self} said {said:?}, not {expected:?}");
        }
        let files = match self.client {
            Client::Berth => PathBuf::from(said.strip_prefix("done: ").context("our side says where its files are")?),
            Client::Rclone | Client::RcloneAsItComes | Client::Crt => job.folder.to_owned(),
        };
        Ok(Fetched { sample, files, said })
    }

    /// This program again, with nothing to do but one fetch.
    fn berth(self, job: &Job<'_>) -> anyhow::Result<Vec<OsString>> {
        let (storage, cache) = (job.folder.join("storage"), job.folder.join("cache"));
        std::fs::create_dir(&storage)?;
        let mut entry = json!({
            "type": "s3",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "endpoint_url": job.endpoint,
            "region": "us-east-1",
            "default_bucket": BUCKET,
        });
        if !self.verifies {
            entry["verify"] = json!("length");
        }
        std::fs::write(storage.join(STORAGE_KEY), entry.to_string())?;
        Ok(vec![std::env::current_exe()?.into(), super::AS_PULLER.into(), storage.into(), cache.into(), job.set.prefix().into()])
    }

    fn rclone(self, tools: &Tools, job: &Job<'_>) -> Vec<OsString> {
        let mut words = self.rclone_as_it_comes(tools, job);
        words.extend(RCLONE_TUNED.map(OsString::from));
        words
    }

    fn rclone_as_it_comes(self, tools: &Tools, job: &Job<'_>) -> Vec<OsString> {
        let from = format!(":s3:{BUCKET}/{}", job.set.prefix());
        let mut words: Vec<OsString> = vec![tools.rclone.clone().into(), "copy".into(), from.into(), job.folder.into(), "--config=".into()];
        words.extend(["--s3-provider=Other", "--s3-env-auth", "--s3-region=us-east-1"].map(OsString::from));
        words.push(format!("--s3-endpoint={}", job.endpoint).into());
        words.extend((!self.verifies).then(|| "--ignore-checksum".into()));
        words
    }

    fn crt(self, tools: &Tools, job: &Job<'_>) -> Vec<OsString> {
        // Objects of the other sets come in one answer each, so that the cheaper check is as good.
        let (gbps, check) = if job.set.objects() == 1 { (CRT_GBPS_SINGLE, "object") } else { (CRT_GBPS, "answers") };
        let check = if self.verifies { check } else { "nothing" };
        let mut words: Vec<OsString> = vec![tools.python.clone().into(), own("crt_client.py"), "get".into(), job.endpoint.into()];
        words.extend([BUCKET.into(), job.set.prefix().into(), job.folder.into(), gbps.into(), check.into()]);
        words
    }
}

impl Client {
    /// What this client's program costs without a download: an interpreter and its modules, say. It is taken off each
    /// download, so that clients are compared and not how they are started.
    pub(super) async fn start(self, tools: &Tools) -> anyhow::Result<Sample> {
        let words: Vec<OsString> = match self {
            Client::Berth => vec![std::env::current_exe()?.into(), super::AS_PULLER.into()],
            Client::Rclone | Client::RcloneAsItComes => vec![tools.rclone.clone().into(), "version".into()],
            Client::Crt => vec![tools.python.clone().into(), own("crt_client.py")],
        };
        let mut starts = Vec::new();
        for _ in 0..STARTS {
            starts.push(tools.measure(&words).await?.0);
        }
        let median = |pick: fn(&Sample) -> f64| Median::of(starts.iter().map(pick).collect()).value;
        Ok(Sample { wall: median(|sample| sample.wall), cpu: median(|sample| sample.cpu), peak: median(|sample| sample.peak) })
    }
}
