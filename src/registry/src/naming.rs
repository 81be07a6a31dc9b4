//! The rules of Kubernetes for names, the same for manifests and for the resource API.

use std::sync::LazyLock;

use berth_types::{Name, Namespace};

/// Reads the name of a resource: labels of a DNS name joined by dots, at most 253 characters.
///
/// # Errors
/// What is wrong with the text, to be written after it.
pub fn resource_name(text: &str) -> Result<Name, String> {
    check_dns(text, 253, true)?;
    Name::new(text).map_err(|fault| fault.fault.to_owned())
}

/// Reads the name of a namespace: one label of a DNS name, at most 63 characters.
///
/// # Errors
/// What is wrong with the text, to be written after it.
pub fn namespace_name(text: &str) -> Result<Namespace, String> {
    check_dns(text, 63, false)?;
    Namespace::new(text).map(shared).map_err(|fault| fault.fault.to_owned())
}

/// The same namespace; the one that most resources of one machine are in has its text only once.
pub(crate) fn shared(namespace: Namespace) -> Namespace {
    static DEFAULT: LazyLock<Namespace> = LazyLock::new(|| Namespace::new("default").expect("a constant that is a namespace"));
    if namespace == *DEFAULT { DEFAULT.clone() } else { namespace }
}

/// Labels (63 characters) and, with `dots`, labels joined by dots.
fn check_dns(text: &str, longest: usize, dots: bool) -> Result<(), String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > longest {
        return Err(format!("has {} characters, at most {longest} are allowed", text.len()));
    }
    let fine = if dots { text.split('.').all(label) } else { label(text) };
    let dot = if dots { ", dots" } else { "" };
    if fine {
        Ok(())
    } else {
        Err(format!("is not a DNS name: use lower-case letters, digits{dot} and dashes, beginning and ending with a letter or digit"))
    }
}
