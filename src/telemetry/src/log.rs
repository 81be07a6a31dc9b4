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

/// Whether `filter` can be read.
///
/// # Errors
/// A text that says which part of it cannot.
pub fn check(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|fault| format!("{filter:?} is no log filter such as info or warn,berth_residency=debug: {fault}"))
}

/// Starts logging to standard error. `filter` is in the usual form (`info`, `warn,berth_residency=debug`).
///
/// # Errors
/// A text that says which part of `filter` cannot be read.
pub fn start(format: Format, filter: &str, color: bool) -> Result<(), String> {
    check(filter)?;
    let filter = EnvFilter::new(filter);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_timer(SystemTime);
    let started = match format {
        Format::Text => lines.with_ansi(color).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|fault| format!("logging is already set up: {fault}"))
}
