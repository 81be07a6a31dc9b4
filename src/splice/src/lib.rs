//! gRPC messages as they pass: reads an id out of a message, appends one to a message, and holds next to nothing meanwhile.
//!
//! Sans-IO: the bytes of an HTTP/2 body come in frame by frame, cut anywhere, and go out as slices of what came in. Nothing
//! here waits, reads a clock or opens a socket; a caller that wants to bound memory over many bodies hands in a [`Budget`].
//!
//! A field is set by *appending* it ([`suffix`]): of several occurrences of a string every protobuf parser takes the last,
//! and messages merge, so order, duplicates, absence and unknown fields need no care, and a message grows by a length that
//! is known before its first byte. What does need care is that a message ends where its last field ends, or else a cut
//! field could swallow what is appended: [`Injector`] follows the fields of the top message and refuses one that does not.
//!
//! Not here: which methods have which path, what an id means, which status a caller is told.

mod budget;
mod error;
mod extract;
mod finder;
mod inflate;
mod inject;
mod messages;
mod pace;
mod path;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;
mod walk;

pub use budget::{Budget, Pool};
pub use error::{InflateError, SpliceError, WireError};
pub use extract::Extract;
pub use finder::{Finder, Progress};
pub use inflate::{Encoding, inflate};
pub use inject::{Injector, Watch};
pub use messages::{Messages, Meter, Part, Prefix};
pub use path::{FieldPath, PathError, suffix};
pub use walk::Limits;
