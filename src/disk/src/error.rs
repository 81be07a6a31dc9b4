//! What keeps bytes from the disk.

use berth_types::ByteSize;

/// Why the tier cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// There is no room, with the numbers.
    #[error("needs {need} on disk, {free} of {budget} can be freed: raise the disk budget or use a smaller model")]
    Full {
        /// Bytes of the content.
        need: ByteSize,
        /// Bytes that are free, could be freed, or hold what of the content is here already.
        free: ByteSize,
        /// The whole budget.
        budget: ByteSize,
    },
    /// The local disk failed, or what is on it is not what was asked for.
    #[error("{0}")]
    Failed(String),
}
