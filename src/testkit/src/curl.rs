//! `curl`, as a user types it.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{Exit, Process};

/// Runs `curl` quietly with `args` and returns what it prints.
///
/// # Errors
/// When curl fails, with what it wrote.
pub async fn curl(args: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(args);
    let mut curl = Process::start("curl", command)?;
    match curl.exit(Duration::from_secs(70)).await? {
        Exit::Code(0) => Ok(curl.out()),
        other => bail!("curl {args:?} ended with {other:?}\n{}", curl.written()),
    }
}
