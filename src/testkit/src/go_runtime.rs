//! An inference server in Go that takes its orders by ModelMesh's runtime contract, and tells of each.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Process;
use crate::parts::part;

/// Long enough for what an order brings about on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The server. Killed when dropped.
pub struct GoRuntime {
    process: Process,
    target: String,
    flags: Vec<String>,
}

impl GoRuntime {
    /// Starts it on a port of its choice. `flags` are its own, such as `-capacity=1048576`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        GoRuntime::listening("127.0.0.1:0", flags).await
    }

    /// Starts it on a Unix socket.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_at(socket: &Path, flags: &[&str]) -> Result<Self> {
        GoRuntime::listening(&format!("unix:{}", socket.display()), flags).await
    }

    async fn listening(listen: &str, flags: &[&str]) -> Result<Self> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (process, target) = launch(listen, &flags).await?;
        Ok(GoRuntime { process, target, flags })
    }

    /// Where it takes orders and requests.
    #[must_use]
    pub fn target(&self) -> String {
        self.target.clone()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// When it had ended already.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Starts it anew where it was, after its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn again(&mut self) -> Result<()> {
        (self.process, self.target) = launch(&self.target, &self.flags).await?;
        Ok(())
    }

    /// Waits for an order to have begun or ended, for the server: what it was.
    ///
    /// # Errors
    /// When there is none.
    pub async fn told(&mut self, call: &str, event: &str, model: &str) -> Result<Value> {
        let start = format!("{{\"call\":\"{call}\",\"event\":\"{event}\",\"model\":\"{model}");
        let line = self.process.line(&format!("{call} of {model} to have {event}"), PATIENCE, |line| line.starts_with(&start)).await?;
        Ok(serde_json::from_str(&line)?)
    }

    /// How many orders of a kind have begun so far.
    #[must_use]
    pub fn count(&self, call: &str) -> usize {
        let start = format!("{{\"call\":\"{call}\",\"event\":\"begun\"");
        self.process.out().lines().filter(|line| line.starts_with(&start)).count()
    }
}

async fn launch(listen: &str, flags: &[String]) -> Result<(Process, String)> {
    let program = part("BERTH_GO_ECHO")?.with_file_name("runtime");
    ensure!(program.is_file(), "{} is no file: run through cargo xtask test", program.display());
    let mut command = Command::new(program);
    command.args(["-listen", listen]).args(flags);
    let mut process = Process::start("the model runtime", command)?;
    let line = process.line("its address", PATIENCE, |line| line.starts_with("listening on ")).await?;
    let address = line.strip_prefix("listening on ").context("it says where it listens")?;
    let target = if listen.starts_with("unix:") { listen.to_owned() } else { address.to_owned() };
    Ok((process, target))
}
