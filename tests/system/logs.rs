//! What the log tells a machine that reads it.

use anyhow::{Context, Result};
use berth_testkit::Transport;
use serde_json::Value;

use crate::eviction::TIGHT;
use crate::fixture::{Fixture, SOON};

/// The log so far, a JSON object each line.
fn read(errors: &str) -> Result<Vec<Value>> {
    errors.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line:?}"))).collect()
}

#[tokio::test]
async fn each_step_of_a_model_is_a_line_with_model_step_size_and_time() -> Result<()> {
    let fixture = Fixture::of_s3(Transport::Plain).await?;
    let mut berth = fixture.serve(TIGHT).flag("--log-format", "json").start().await?;
    let names = fixture.quickstart.names()?;
    fixture.all_answer(&berth).await?;
    // All do not fit at once, so that at least one was evicted by now.
    berth.process().line("an eviction", SOON, |line| line.contains("model evicted")).await?;
    berth.interrupt().await?;
    let lines = read(&berth.process().errors())?;
    let of = |message: &str| lines.iter().filter(|line| line["message"] == message).cloned().collect::<Vec<_>>();
    let has = |line: &Value, fields: &[&str]| {
        for field in fields {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field} is missing in {line}");
        }
        assert!(line["model"].as_str().is_some_and(|id| names.iter().any(|name| id.starts_with(&format!("{name}__")))), "{line}");
    };
    for (message, step) in [("model fetched", "fetch"), ("model loaded", "load")] {
        let lines = of(message);
        for line in &lines {
            has(line, &["timestamp", "level", "model", "step", "size", "took"]);
            assert_eq!(line["step"], step, "{line}");
        }
        for name in &names {
            let start = format!("{name}__");
            assert!(lines.iter().any(|line| line["model"].as_str().is_some_and(|id| id.starts_with(&start))), "{name}: no {message:?}");
        }
    }
    for line in of("model evicted") {
        has(&line, &["model", "size", "reason", "for_model"]);
        assert_ne!(line["model"], line["for_model"], "{line}");
    }
    Ok(())
}
