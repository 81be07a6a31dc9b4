//! `config.pbtxt`: made from a schema, or changed where a schema, a device or an ensemble's names ask for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::listing::CONFIG;
use super::super::pbtxt::{Document, Edit, Fields as _, Scalar, quote};
use super::super::schema::TensorSpec;
use super::{Device, Schema, Source, ensemble, instances, is_ensemble, join};
use crate::LoadError;
use crate::tensor::{Datatype, quoted, shape_text};

/// What has to be changed in a configuration that is there.
pub(super) struct Change<'a> {
    pub(super) schema: Option<&'a Schema>,
    pub(super) device: Option<Device>,
    /// Of an ensemble: what the models that its steps name are called now.
    pub(super) parts: Option<&'a BTreeMap<String, String>>,
}

/// What Triton calls a datatype.
const fn data_type(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "TYPE_BOOL",
        Datatype::Int8 => "TYPE_INT8",
        Datatype::Int16 => "TYPE_INT16",
        Datatype::Int32 => "TYPE_INT32",
        Datatype::Int64 => "TYPE_INT64",
        Datatype::Uint8 => "TYPE_UINT8",
        Datatype::Uint16 => "TYPE_UINT16",
        Datatype::Uint32 => "TYPE_UINT32",
        Datatype::Uint64 => "TYPE_UINT64",
        Datatype::Fp16 => "TYPE_FP16",
        Datatype::Bf16 => "TYPE_BF16",
        Datatype::Fp32 => "TYPE_FP32",
        Datatype::Fp64 => "TYPE_FP64",
        Datatype::Bytes => "TYPE_STRING",
    }
}

/// The fields `input` or `output` for a list of tensors. Where the model batches, the first dimension is the batch and not
/// part of the configuration.
fn tensors(field: &str, specs: &[TensorSpec], batches: bool) -> Result<String, LoadError> {
    let mut text = format!("{field} [");
    for (at, TensorSpec { name, datatype, shape }) in specs.iter().enumerate() {
        let dims = match (batches, shape.as_slice()) {
            (false, all) => all,
            (true, [-1, rest @ ..]) => rest,
            (true, other) => {
                let what = "max_batch_size is above 0, so the first dimension must be -1, the batch";
                return Err(LoadError::bad_model(format!("{field} {} has shape {}: {what}", quoted(name), shape_text(other))));
            }
        };
        let dims = match (dims, batches) {
            // Triton wants at least one dimension. A batch of scalars gets one, which is taken away before the backend sees it;
            // without a batch Triton refuses to take it away, and a backend that knows scalars takes one element for one.
            ([], true) => "[ 1 ] reshape { shape: [ ] }".to_owned(),
            ([], false) => "[ 1 ]".to_owned(),
            (dims, _) => list(dims),
        };
        let comma = if at + 1 < specs.len() { "," } else { "" };
        let _ = write!(text, "\n  {{ name: {} data_type: {} dims: {dims} }}{comma}", quote(name), data_type(*datatype));
    }
    text.push_str("\n]");
    Ok(text)
}

fn list(dims: &[i64]) -> String {
    let dims: Vec<String> = dims.iter().map(i64::to_string).collect();
    format!("[ {} ]", dims.join(", "))
}

/// A configuration for a model that has none.
pub(super) fn generated(backend: Option<&str>, default: Option<&str>, schema: Option<&Schema>, device: Option<Device>) -> Result<Vec<u8>, LoadError> {
    let mut text = String::new();
    let mut field = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name}: {}", quote(value));
        }
    };
    field("backend", backend);
    field("default_model_filename", default);
    if let Some(Schema { inputs, outputs }) = schema {
        for (name, specs) in [("input", inputs), ("output", outputs)] {
            if !specs.is_empty() {
                let _ = writeln!(text, "{}", tensors(name, specs, false)?);
            }
        }
    }
    if let Some(device) = device.filter(|_| !instances::is_for_cpu(backend)) {
        let _ = writeln!(text, "{}", instances::group(device));
    }
    Ok(text.into_bytes())
}

/// The configuration of a folder with the changes made and everything else as it is.
pub(super) fn edited(source: &Source, folder: &str, change: &Change<'_>) -> Result<Vec<u8>, LoadError> {
    let path = join(folder, CONFIG);
    let bad = |what: String| LoadError::bad_model(format!("{path}: {what}"));
    let document = Document::parse(source.listing.text(&path)?).map_err(|fault| bad(fault.to_string()))?;
    let mut edit = Edit::new(&document);
    // Triton takes the folder's name; another one it refuses.
    edit.drop_field("name");
    if let Some(Schema { inputs, outputs }) = change.schema {
        let batch = match document.scalar("max_batch_size") {
            None => 0,
            Some(written) => written.integer().ok_or_else(|| bad(format!("max_batch_size is {written}: expected a whole number")))?,
        };
        for (name, specs) in [("input", inputs), ("output", outputs)] {
            if !specs.is_empty() {
                edit.replace_field(name, &tensors(name, specs, batch > 0)?);
            }
        }
    }
    if let Some(parts) = change.parts {
        ensemble::rename_steps(&document, parts, &mut edit);
    }
    let backend = document.scalar("backend").and_then(Scalar::text);
    if let Some(device) = change.device.filter(|_| !is_ensemble(&document) && !instances::is_for_cpu(backend.as_deref())) {
        instances::place(&document, device, &mut edit);
    }
    Ok(edit.done())
}
