//! Sets logging up.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One readable line each.
    Text,
    /// One JSON object each.
    Json,
}

/// Starts logging to standard error. `filter` is in the usual form (`info`, `warn,berth_residency=debug`).
///
/// # Errors
/// A text that says which part of `filter` cannot be read.
pub fn start(format: Format, filter: &str, color: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|fault| format!("log filter {filter:?}: {fault}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_timer(SystemTime);
    let started = match format {
        Format::Text => lines.with_ansi(color).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|fault| format!("logging is already set up: {fault}"))
}
