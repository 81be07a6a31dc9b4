//! A gRPC server in Go that has every service and method, does with a call what the call asks for, and tells what it saw.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Process;
use crate::calls::{Metadata, Seen, metadata};
use crate::parts::part;

/// Long enough for what a call brings about on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server. Killed when dropped.
pub struct GoEcho {
    process: Process,
    target: String,
}

/// What the server saw of a call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `/package.Service/Method`.
    pub method: String,
    /// How long its caller still waited when it began; `None` when for ever.
    pub deadline: Option<Duration>,
    /// What came with it; names that begin with a colon are HTTP's.
    pub metadata: Metadata,
    /// The messages that came.
    pub messages: Vec<Seen>,
    /// How many were sent.
    pub sent: u64,
    /// Why its caller gave it up: `canceled`, `deadline` or empty.
    pub given_up: String,
}

impl Call {
    /// Reads what the server tells in a line or in an answer.
    ///
    /// # Errors
    /// When it is something else.
    pub fn of(told: &Value) -> Result<Self> {
        Ok(Call {
            method: told["method"].as_str().with_context(|| format!("no method in {told}"))?.to_owned(),
            deadline: told["deadline_ms"].as_i64().map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0))),
            metadata: metadata(&told["metadata"]),
            messages: told["messages"].as_array().into_iter().flatten().map(Seen::of).collect::<Result<_>>()?,
            sent: told["sent"].as_u64().unwrap_or_default(),
            given_up: told["given_up"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

impl GoEcho {
    /// Starts it on a port of its choice. `flags` are its own, such as `-max-receive=1024`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(flags: &[&str]) -> Result<Self> {
        GoEcho::listening("127.0.0.1:0", flags).await
    }

    /// Starts it on a Unix socket.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_at(socket: &Path, flags: &[&str]) -> Result<Self> {
        GoEcho::listening(&format!("unix:{}", socket.display()), flags).await
    }

    async fn listening(listen: &str, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new(part("BERTH_GO_ECHO")?);
        command.args(["-listen", listen]).args(flags);
        let mut process = Process::start("the echo server", command)?;
        let line = process.line("its address", PATIENCE, |line| line.starts_with("listening on ")).await?;
        let address = line.trim_start_matches("listening on ");
        let target = if listen.starts_with("unix:") { listen.to_owned() } else { address.to_owned() };
        Ok(GoEcho { process, target })
    }

    /// Where it listens, as [`crate::Client`] takes it.
    #[must_use]
    pub fn target(&self) -> String {
        self.target.clone()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until the call of that name has begun.
    ///
    /// # Errors
    /// When it does not begin.
    pub async fn begun(&mut self, name: &str) -> Result<Call> {
        self.told(name, "begun").await
    }

    /// Waits until the call of that name has ended, for the server.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&mut self, name: &str) -> Result<Call> {
        self.told(name, "ended").await
    }

    async fn told(&mut self, name: &str, event: &str) -> Result<Call> {
        let start = format!("{{\"call\":{},\"event\":\"{event}\"", serde_json::json!(name));
        let line = self.process.line(&format!("{name} to have {event}"), PATIENCE, |line| line.starts_with(&start)).await?;
        Call::of(&serde_json::from_str(&line)?)
    }
}
