//! What a content is to consist of.

use berth_types::ByteSize;

use crate::BlobId;

/// The files of one model, as they were listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where they come from, without secrets. Content of another source is not handed out in its place.
    pub source: String,
    /// Name of the model's file or folder.
    pub entry: String,
    /// Name of the schema, where there is one.
    pub schema: Option<String>,
    /// Bytes of the model, without the schema.
    pub size: ByteSize,
    /// All files, the schema included.
    pub files: Vec<Wanted>,
}

/// One file of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it belongs, below the content's folder: relative, without `.`, `..` and empty parts, which the caller has seen to.
    pub path: String,
    /// Which bytes these are. Files with the same id have the same bytes, also across plans.
    pub blob: BlobId,
    /// How many.
    pub bytes: ByteSize,
    /// What the store calls this version of them; kept for whoever reads the manifest.
    pub version: Option<String>,
}
