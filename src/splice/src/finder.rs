//! The id in one message, found as early as it comes.

use crate::error::WireError;
use crate::path::FieldPath;
use crate::walk::{Limits, Walk};

/// How far a search is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not found yet.
    More,
    /// The first value at the path that is not empty.
    Found(String),
    /// The message is over and does not have it.
    Absent,
}

/// Finds the first value at a path in one message, as its bytes arrive.
///
/// Empty values count as absent, as they do in proto3: a later one that is not empty is found. Where a message on the path
/// is there several times, the first that holds the field counts. Once something is found the rest is not looked at.
#[derive(Clone, Debug)]
pub struct Finder {
    walk: Walk,
    found: Option<String>,
}

impl Finder {
    /// For one message.
    #[must_use]
    pub fn new(path: FieldPath, limits: Limits) -> Finder {
        Finder { walk: Walk::new(Some(path), limits), found: None }
    }

    /// Takes the next bytes of the message: `More` or `Found`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, WireError> {
        if self.found.is_none() {
            self.found = self.walk.push(bytes)?;
        }
        Ok(self.found.clone().map_or(Progress::More, Progress::Found))
    }

    /// The message is over: `Absent` or `Found`.
    pub fn end(&self) -> Result<Progress, WireError> {
        match &self.found {
            Some(value) => Ok(Progress::Found(value.clone())),
            None => self.walk.end().map(|()| Progress::Absent),
        }
    }
}
