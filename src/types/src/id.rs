//! Names that clients use and ids that name one version of a model.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} {fault}")]
pub struct InvalidId {
    /// Which kind of id was asked for.
    pub what: &'static str,
    /// The text as given, cut to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub fault: &'static str,
}

fn checked(what: &'static str, text: &str, longest: usize) -> Result<Arc<str>, InvalidId> {
    let fault = if text.is_empty() {
        "is empty"
    } else if text.len() > longest {
        "is too long"
    } else if text.chars().any(char::is_control) {
        "holds a control character"
    } else {
        return Ok(Arc::from(text));
    };
    Err(InvalidId { what, text: text.chars().take(80).collect(), fault })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text`: not empty, no control characters, not longer than the limit.
            ///
            /// # Errors
            /// [`InvalidId`] names the text and its fault.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                checked($what, text.as_ref(), $longest).map(Self)
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        // Lets maps keyed by the id be asked with a `&str` from a request, without building an id first.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// What clients ask for: the name of an InferenceService or a Predictor. At most 253 bytes, as in Kubernetes.
    Name,
    "name",
    253
);
id!(
    /// A Kubernetes namespace.
    Namespace,
    "namespace",
    63
);
id!(
    /// One immutable version of a model: `<name>__<owner>-<hash10>`. At most 1,024 bytes (ids made by other
    /// controllers may have another form).
    ModelId,
    "model id",
    1024
);
id!(
    /// The identity of one agent. In a cluster the pod's UID; on one machine an id kept in the data folder.
    PodId,
    "pod id",
    253
);

/// Which kind of resource a registration came from; part of the model id (`isvc`, `ksp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// `InferenceService`.
    Isvc,
    /// `Predictor`.
    Ksp,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Owner::Isvc => "isvc",
            Owner::Ksp => "ksp",
        })
    }
}
