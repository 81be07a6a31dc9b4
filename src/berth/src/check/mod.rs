//! `berth check-runtime`: the rules that every adapter's tests keep, tried out on a server of the user's.

mod example;
mod page;

use std::ffi::OsString;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use berth_adapters::StartError;
use berth_adapters::conformance::{Outcome, READY, Trial, Verdict, clean_up, examine};
use berth_telemetry::{Clock, log};
use berth_types::ModelFormat;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::example::{Example, Folder};
use self::page::Page;
use crate::beside::{self, Beside, ServerKind};
use crate::config::{ConfigFaults, Reading};
use crate::engine::{Engine, Memory};
use crate::machine;
use crate::serve::ServeError;

/// The flags of `berth check-runtime`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CheckArgs {
    /// Where the server takes orders: HOST:PORT, port:PORT or unix:PATH. It unloads all that it holds: not one that serves
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// Which inference server: triton, mlserver, ovms, torchserve, or modelruntime for one that speaks ModelMesh's runtime contract
    #[arg(long, value_name = "SERVER", default_value = "modelruntime")]
    runtime: String,
    /// Where it takes requests, if elsewhere
    #[arg(long, value_name = "ENDPOINT")]
    runtime_data_endpoint: Option<String>,
    /// The folder that it reads models from, which it sees at the same path; emptied [default: as `berth agent`; for modelruntime a
    /// new folder for temporary files]
    #[arg(long, value_name = "DIR")]
    repository: Option<String>,
    /// OpenVINO Model Server: the configuration file that it was started with [default: as `berth agent`]
    #[arg(long, value_name = "FILE")]
    model_config: Option<String>,
    /// A model that the server loads, a file or a folder, which it sees at the same path [default: a small example in ONNX, for
    /// MLServer one in Python]
    #[arg(long, value_name = "PATH", requires = "model_type")]
    model_path: Option<PathBuf>,
    /// The model's format, such as onnx, with a version as in onnx:1 [default: the example's]
    #[arg(long, value_name = "TYPE")]
    model_type: Option<String>,
    /// How long any one thing may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// How long the server may take until it is ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    start_timeout: Duration,
    /// Log filter, such as info or berth_adapters=debug
    #[arg(long, env = "BERTH_LOG", value_name = "FILTER", default_value = "error")]
    log: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(fault) => Err(format!("expected a duration such as 30s or 2m: {fault}")),
    }
}

impl CheckArgs {
    /// The server, as `berth agent` would be told of it.
    fn beside(&self, repository: &str) -> Result<Beside, ConfigFaults> {
        let (start, name) = (humantime::format_duration(self.start_timeout).to_string(), "check-runtime".to_owned());
        let (off, repository) = ("off".to_owned(), repository.to_owned());
        let mut reading = Reading::of_flags([
            ("runtime", Some(&self.runtime)),
            ("runtime-endpoint", Some(&self.endpoint)),
            ("runtime-data-endpoint", self.runtime_data_endpoint.as_ref()),
            ("repository", Some(&repository).filter(|folder| !folder.is_empty())),
            ("model-config", self.model_config.as_ref()),
            ("serving-runtime", Some(&name)),
            ("start-timeout", Some(&start)),
            ("runtime-process", Some(&off)),
        ]);
        // Nothing but the flags counts: a server is checked the same way in every shell.
        let found = beside::check(&mut reading, &|_variable| None::<OsString>);
        found.filter(|_| reading.faults.is_empty()).ok_or(ConfigFaults(reading.faults))
    }

    fn format(&self) -> Option<ModelFormat> {
        let text = self.model_type.as_deref()?;
        let (name, version) = text.split_once(':').map_or((text, None), |(name, version)| (name, Some(version)));
        Some(ModelFormat { name: name.into(), version: version.map(Into::into) })
    }
}

/// Checks the server, prints what was found, and leaves nothing behind. Success: every rule is kept.
///
/// # Errors
/// [`ServeError`]: the server was not reached, or was not checked to the end.
pub(crate) async fn run(args: CheckArgs) -> Result<ExitCode, ServeError> {
    let usage = |why: String| ServeError::Usage(ConfigFaults(vec![why]));
    log::start(log::Format::Text, &args.log, false).map_err(|fault| usage(format!("--log: {fault}")))?;
    let clock = Clock::system();
    let given = args.repository.clone().unwrap_or_default();
    let mut beside = args.beside(&given).map_err(ServeError::Usage)?;
    if given.is_empty() && beside.kind == ServerKind::ModelRuntime {
        beside.repository = std::env::temp_dir().join(format!("berth-check-runtime-{}", std::process::id()));
    }
    let example = Example::of(beside.kind, args.model_path.clone(), args.format()).map_err(usage)?;
    let folder = Folder::at(&beside.repository);
    let mut page = Page::default();
    page.begins(&beside, &example, args.start_timeout);
    let on = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let checked = check(&beside, &args, &example, &clock, &mut page, std::pin::pin!(interrupted)).await;
    folder.leave().with_context(|| format!("{} cannot be tidied up", beside.repository.display()))?;
    checked.map(|kept| if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every rule is kept.
async fn check(
    beside: &Beside,
    args: &CheckArgs,
    example: &Example,
    clock: &Clock,
    page: &mut Page,
    mut interrupted: Pin<&mut (impl Future<Output = ()> + Send)>,
) -> Result<bool, ServeError> {
    let memory = Memory { bytes: machine::host_memory().map_err(anyhow::Error::msg)?.bytes, given: false };
    let started = tokio::select! {
        started = Engine::server(beside, memory, clock) => started,
        () = &mut interrupted => return Err(anyhow!("interrupted before the server was ready").into()),
    };
    let server = match started {
        Ok((server, _methods)) => server,
        Err(fault @ (StartError::NotReady { .. } | StartError::Unfit { .. })) => {
            page.verdict(&Verdict { rule: &READY, outcome: Outcome::Broken(fault.to_string()) });
            page.ends(None);
            return Ok(false);
        }
        Err(StartError::Repository { path, why }) => return Err(ServeError::Usage(ConfigFaults(vec![format!("--repository: {path}: {why}")]))),
        Err(away @ StartError::Away { .. }) => return Err(ServeError::Failed(away.into())),
    };
    page.verdict(&Verdict { rule: &READY, outcome: Outcome::Kept });
    let files = example.laid_down(&beside.repository).context("the example's files cannot be written")?;
    let trial = Trial {
        runtime: &*server,
        clock,
        format: example.format.clone(),
        path: files.name.clone(),
        good: &files.good,
        bad: &files.bad,
        question: example.question(),
        patience: args.timeout,
    };
    let mut told = |verdict: &Verdict| page.verdict(verdict);
    let examined = tokio::select! {
        report = examine(&trial, &mut told) => Some(report),
        () = &mut interrupted => None,
    };
    match examined {
        Some(report) => {
            page.ends(Some(&report));
            Ok(report.broken().next().is_none() && report.left.is_empty())
        }
        None => {
            let left: Vec<String> = clean_up(&trial).await.iter().map(ToString::to_string).collect();
            let left = if left.is_empty() { String::new() } else { format!("; the server may still hold {}", left.join(", ")) };
            Err(anyhow!("interrupted{left}").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches as _};

    use super::*;

    fn args(words: &[&str]) -> Result<CheckArgs, clap::Error> {
        let command = CheckArgs::augment_args(Command::new("check-runtime"));
        let matches = command.try_get_matches_from(std::iter::once(&"check-runtime").chain(words))?;
        CheckArgs::from_arg_matches(&matches)
    }

    #[test]
    fn a_server_is_told_as_to_an_agent_and_what_is_wrong_is_told_together() {
        let beside = args(&["unix:/tmp/s"]).expect("right").beside("/r").expect("right");
        assert_eq!((beside.kind, beside.orders.to_string().as_str(), &*beside.name), (ServerKind::ModelRuntime, "unix:/tmp/s", "check-runtime"));
        assert_eq!((beside.start_timeout, beside.repository.as_path()), (Duration::from_secs(30), std::path::Path::new("/r")));
        let beside = args(&["port:8888", "--runtime", "ovms"]).expect("right").beside("").expect("right");
        assert_eq!((beside.requests.to_string().as_str(), beside.repository.to_string_lossy()), ("localhost:8001", "/models/_ovms_models".into()));
        let faults = args(&["nowhere", "--runtime-data-endpoint", "https://a:1"]).expect("words").beside("").expect_err("two faults").0;
        assert!(faults.len() == 2 && faults[0].contains("names no server") && faults[1].contains("plain text only"), "{faults:?}");
        for (wrong, says) in
            [(&[][..], "ENDPOINT"), (&["port:1", "--model-path", "/m"], "--model-type"), (&["port:1", "--timeout", "0s"], "more than nothing")]
        {
            let told = args(wrong).expect_err(says).to_string();
            assert!(told.contains(says), "{told}");
        }
    }

    #[test]
    fn a_format_may_have_a_version() {
        for (text, name, version) in [("onnx", "onnx", None), ("onnx:1.15", "onnx", Some("1.15"))] {
            let format = args(&["port:1", "--model-type", text]).expect("right").format().expect("given");
            assert_eq!((&*format.name, format.version.as_deref()), (name, version));
        }
    }
}
