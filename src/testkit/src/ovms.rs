//! What stands in for OpenVINO Model Server, which comes in a container only: a program in Python that keeps to its adapter's
//! contract.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Parts, Process, free_port};

/// A start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stand-in, with a configuration file and a folder of models of its own. Killed when dropped.
pub struct Ovms {
    process: Process,
    parts: Parts,
    folder: TempDir,
    grpc: u16,
    rest: u16,
}

impl Ovms {
    /// Starts it without a model.
    ///
    /// # Errors
    /// When it cannot be started or does not serve within a minute.
    pub async fn start(parts: &Parts) -> Result<Self> {
        let folder = TempDir::new()?;
        fs::create_dir(folder.path().join("models"))?;
        fs::write(folder.path().join("config.json"), r#"{"model_config_list":[]}"#)?;
        let (grpc, rest) = (free_port(), free_port());
        let process = spawn(parts, folder.path(), grpc, rest).await?;
        Ok(Ovms { process, parts: parts.clone(), folder, grpc, rest })
    }

    /// Kills it as the kernel does when memory has run out.
    ///
    /// # Errors
    /// When it had ended already.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it anew where it was: it loads what its configuration file lists.
    ///
    /// # Errors
    /// When it cannot be started or does not serve within a minute.
    pub async fn again(&mut self) -> Result<()> {
        self.process = spawn(&self.parts, self.folder.path(), self.grpc, self.rest).await?;
        Ok(())
    }

    /// Makes it misbehave from the next reload on: what its program says.
    ///
    /// # Errors
    /// What the file system says.
    pub fn switch(&self, switches: &Value) -> Result<()> {
        Ok(fs::write(self.folder.path().join("switches.json"), switches.to_string())?)
    }

    /// Where it takes gRPC.
    #[must_use]
    pub fn grpc(&self) -> String {
        format!("127.0.0.1:{}", self.grpc)
    }

    /// Where it takes orders.
    #[must_use]
    pub fn rest(&self) -> String {
        format!("127.0.0.1:{}", self.rest)
    }

    /// The folder for models.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.json")
    }

    /// How often it has read its configuration and found it changed, since it was started.
    #[must_use]
    pub fn reloads(&self) -> usize {
        self.process.out().lines().filter(|line| line.starts_with("reloaded")).count()
    }
}

async fn spawn(parts: &Parts, folder: &Path, grpc: u16, rest: u16) -> Result<Process> {
    let program = folder.join("ovms.py");
    fs::write(&program, include_str!("models/ovms_stand_in.py"))?;
    let mut command = Command::new(&parts.python);
    command.arg("-B").arg(program).args([format!("--port={grpc}"), format!("--rest_port={rest}")]);
    command.arg("--config_path").arg(folder.join("config.json")).arg("--switches").arg(folder.join("switches.json"));
    command.env("OMP_NUM_THREADS", "1").env("PYTHONUNBUFFERED", "1").current_dir(folder);
    let mut process = Process::start("the stand-in for OpenVINO Model Server", command)?;
    process.line("that it serves", PATIENCE, |line| line == "serving").await.context("it does not start")?;
    Ok(process)
}
