//! Scripts that use the public Python client.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{Exit, Parts, Process};

/// Runs `script` with the tests' Python and returns what it prints.
///
/// # Errors
/// When it fails or takes longer than two minutes, with what it wrote.
pub async fn python(parts: &Parts, script: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    let mut command = std::process::Command::new(&parts.python);
    command.arg("-B").arg(script).args(args).env("PYTHONUNBUFFERED", "1");
    let mut python = Process::start(script.display().to_string(), command)?;
    match python.exit(Duration::from_secs(120)).await? {
        Exit::Code(0) => Ok(python.out()),
        other => bail!("{} ended with {other:?}\n{}", script.display(), python.written()),
    }
}
