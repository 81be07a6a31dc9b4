//! Fills object stores through their makers' own Python clients: see `uploads.py`.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Parts, python};

/// Has `order` carried out and returns the answer.
pub(crate) async fn upload(parts: &Parts, order: &Value) -> Result<Value> {
    let script = crate::root().join("src/testkit/src/uploads.py");
    let answer = python(parts, &script, [order.to_string()]).await?;
    serde_json::from_str(&answer).with_context(|| format!("what {} printed is no JSON: {answer}", script.display()))
}
