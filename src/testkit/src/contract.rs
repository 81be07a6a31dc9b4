//! `berth runtime` as a process: the embedded engine, driven by ModelMesh's runtime contract.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::{Parts, Process};

/// A start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The server. Killed when dropped.
pub struct Contract {
    process: Process,
    parts: Parts,
    endpoint: String,
    models: PathBuf,
}

impl Contract {
    /// Starts it at `endpoint`, with models below `models`.
    ///
    /// # Errors
    /// When it cannot be started or does not say within a minute that it takes orders.
    pub async fn start(parts: &Parts, endpoint: &str, models: &Path) -> Result<Self> {
        let process = launch(parts, endpoint, models).await?;
        Ok(Contract { process, parts: parts.clone(), endpoint: endpoint.to_owned(), models: models.to_owned() })
    }

    /// Where it takes orders and requests.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it anew where it was, after its end.
    ///
    /// # Errors
    /// When it cannot be started or does not say within a minute that it takes orders.
    pub async fn again(&mut self) -> Result<()> {
        self.process = launch(&self.parts, &self.endpoint, &self.models).await?;
        Ok(())
    }
}

async fn launch(parts: &Parts, endpoint: &str, models: &Path) -> Result<Process> {
    let mut command = Command::new(&parts.bin);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
        command.env_remove(variable);
    }
    command.args(["runtime", "--host-memory", "256MiB", "--listen", endpoint, "--models"]).arg(models);
    let mut process = Process::start("berth runtime", command)?;
    process.line("that it takes orders", START, |line| line.contains("takes orders of mmesh.ModelRuntime")).await?;
    Ok(process)
}
