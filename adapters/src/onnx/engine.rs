//! The seam between the embedded runtime and what computes.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use berth_types::ByteSize;

use super::files::ModelFile;
use super::interface::Interface;
use crate::tensor::Tensor;
use crate::{InferError, LoadError};

/// Something that runs ONNX models in this process.
pub(super) trait Engine: Send + Sync + 'static {
    /// As in model metadata: `onnx_tract`, `onnxruntime`.
    fn platform(&self) -> &'static str;

    /// Name and version, for `ServerMetadata` and logs.
    fn version(&self) -> String;

    /// What a model whose files have this size will take.
    fn estimate(&self, files: ByteSize) -> ByteSize;

    /// Loads a model whose file has been inspected. Takes as long as it takes; called off the async threads.
    fn load(&self, file: &ModelFile) -> Result<Opened, LoadError>;
}

/// A model that an engine holds.
pub(super) struct Opened {
    pub(super) session: Box<dyn Session>,
    pub(super) interface: Interface,
    /// Bytes of memory that the load took and kept, where they could be measured.
    pub(super) measured: Option<ByteSize>,
}

/// Runs one model. Dropping it gives its memory back.
pub(super) trait Session: Send + Sync + 'static {
    /// Computes the outputs at the positions `wanted`, in that order, from inputs that were checked and arranged.
    /// Called off the async threads.
    fn run(&self, inputs: Vec<Tensor>, wanted: &[usize]) -> Result<Vec<Tensor>, InferError>;

    /// Whether several runs may go on at a time. Where not, the caller lets one in after the other, so that the others
    /// do not wait on a thread.
    fn parallel(&self) -> bool;
}

/// Calls an engine. A panic inside it (both have code that panics on models of a certain shape) ends the call, not the
/// process.
///
/// # Errors
/// The text of the panic.
pub(super) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // What the closure had in hand is dropped or never used again after a panic: a half-made model is thrown away, and
    // sessions keep no state between runs.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| text_of(&*panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").to_owned()
}

/// Cuts an engine's message: some print whole tensors or graphs.
pub(super) fn brief(message: &str) -> String {
    const LONGEST: usize = 1000;
    let flat = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", &flat[..at]),
        None => flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(contained(|| -> u8 { panic!("no entry {}", 3) }), Err("no entry 3".to_owned()));
        assert_eq!(contained(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(brief("a\n  b"), "a b");
        assert_eq!(brief(&"ä".repeat(2000)), format!("{} ...", "ä".repeat(1000)));
    }
}
