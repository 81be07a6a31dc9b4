//! A real TorchServe and the archives that tests have it serve.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::http::get;
use crate::parts::part;
use crate::real_time::{Found, eventually};
use crate::{Exit, Process, free_port};

/// A start on a busy machine: a Java machine, and workers that import torch.
const PATIENCE: Duration = Duration::from_secs(90);

/// The server, with a model store of its own. Ends with all its workers when dropped.
pub struct TorchServe {
    process: Process,
    folder: TempDir,
    ports: [u16; 5],
}

impl TorchServe {
    /// Starts it without a model.
    ///
    /// # Errors
    /// When it cannot be started or is not healthy within 90 seconds.
    pub async fn start() -> Result<Self> {
        let (folder, ports) = (TempDir::new()?, [(); 5].map(|()| free_port()));
        fs::create_dir(folder.path().join("store"))?;
        let process = spawn(folder.path(), ports)?;
        let server = TorchServe { process, folder, ports };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&self) -> Result<()> {
        let [http, ..] = self.ports;
        eventually("TorchServe to be healthy", PATIENCE, || async {
            Ok(match get(&format!("http://127.0.0.1:{http}/ping")).await {
                Ok(reply) if reply.status == 200 => Found::Yes(()),
                other => Found::NotYet(format!("{:?}", other.map(|reply| reply.status))),
            })
        })
        .await
        .with_context(|| self.process.written())
    }

    /// Kills it with all its workers, as the kernel does when memory has run out.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.end();
        self.process.exit(PATIENCE).await.map(drop)
    }

    /// Starts it anew where it was, after [`TorchServe::kill`].
    ///
    /// # Errors
    /// When it cannot be started or is not healthy within 90 seconds.
    pub async fn again(&mut self) -> Result<()> {
        self.process = spawn(self.folder.path(), self.ports)?;
        self.ready().await
    }

    fn end(&self) {
        // The Java machine and the workers are in its group, and nobody else is.
        if let Some(group) = Pid::from_raw(self.process.id()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Where it takes requests.
    #[must_use]
    pub fn inference(&self) -> String {
        format!("127.0.0.1:{}", self.ports[3])
    }

    /// Where it takes orders.
    #[must_use]
    pub fn management(&self) -> String {
        format!("127.0.0.1:{}", self.ports[4])
    }

    /// Its model store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Writes `double.mar`, which doubles the numbers of `x`, and `refuses.mar`, which cannot be loaded, into `folder`.
    ///
    /// # Errors
    /// What writing them says.
    pub async fn archives(folder: &Path) -> Result<()> {
        let (handler, program) = (folder.join("handler.py"), folder.join("archive.py"));
        fs::write(&handler, include_str!("models/torchserve_handler.py"))?;
        fs::write(&program, include_str!("models/torchserve_archive.py"))?;
        let mut command = Command::new(python()?);
        command.arg("-B").arg(&program).arg(folder).arg(&handler).envs(environment()?);
        let mut writing = Process::start("writing archives", command)?;
        let exit = writing.exit(PATIENCE).await?;
        ensure!(exit == Exit::Code(0), "{exit:?}\n{}", writing.written());
        fs::remove_file(handler)?;
        Ok(fs::remove_file(program)?)
    }
}

impl Drop for TorchServe {
    fn drop(&mut self) {
        self.end();
    }
}

/// The Python that has it, and torch.
fn python() -> Result<PathBuf> {
    Ok(part("BERTH_TORCHSERVE")?.with_file_name("python"))
}

/// What lets it find torch's libraries, which were unpacked beside it and not installed.
fn environment() -> Result<Vec<(&'static str, OsString)>> {
    let program = part("BERTH_TORCHSERVE")?;
    let place = program.ancestors().nth(3).context("it lies in a part's venv/bin")?;
    let folders = fs::read_to_string(place.join("libraries")).context("the part says where its libraries are")?;
    let libraries = std::env::join_paths(folders.lines().map(|folder| place.join(folder)))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bin = program.parent().context("a program lies in a folder")?.to_owned();
    let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)))?;
    Ok(vec![("LD_LIBRARY_PATH", libraries), ("PATH", path), ("OMP_NUM_THREADS", "1".into()), ("PYTHONDONTWRITEBYTECODE", "1".into())])
}

fn spawn(folder: &Path, [http, management, metrics, grpc, orders]: [u16; 5]) -> Result<Process> {
    let settings = folder.join("config.properties");
    let text = format!(
        "inference_address=http://127.0.0.1:{http}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
grpc_inference_port={grpc}
grpc_management_port={orders}
number_of_netty_threads=2
metric_time_interval=2
vmargs=-Xmx256m
enable_model_api=true
disable_token_authorization=true
"
    );
    fs::write(&settings, text)?;
    let mut command = Command::new(python()?);
    // By name: its first line names the folder that it was installed in.
    command.arg(part("BERTH_TORCHSERVE")?).args(["--foreground", "--ncs", "--disable-token-auth", "--enable-model-api", "--model-store"]);
    command.arg(folder.join("store")).arg("--ts-config").arg(&settings).envs(environment()?);
    command.env("LOG_LOCATION", folder.join("logs")).env("METRICS_LOCATION", folder.join("logs")).env("TEMP", folder).env("TMPDIR", folder);
    command.current_dir(folder).process_group(0);
    Process::start("torchserve", command)
}
