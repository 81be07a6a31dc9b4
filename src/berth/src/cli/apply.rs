//! `berth apply` and `berth delete`: making the server's resources those of files, and removing them.
//!
//! A manifest is the whole wish: labels, annotations and spec become what it says, also what it no longer says. An update
//! carries the version that it was made from, so a change by somebody else in between is seen and built upon.

use http::Method;

use super::args;
use super::client::{Client, path};
use super::fault::Fault;
use super::kinds::{Named, full_kind, named};
use super::manifest::{self, Document};
use super::output::Out;
use super::resource;

/// How often an update is tried while others change the same resource.
const TRIES: usize = 5;

/// What became of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Created,
    Configured,
    Unchanged,
}

impl Applied {
    const fn as_str(self) -> &'static str {
        match self {
            Applied::Created => "created",
            Applied::Configured => "configured",
            Applied::Unchanged => "unchanged",
        }
    }
}

/// `berth apply`.
///
/// # Errors
/// All that could not be read or applied; the rest has been.
pub(crate) async fn apply(client: &Client, args: &args::Apply, out: &mut Out) -> Result<(), Fault> {
    let (documents, mut faults) = manifest::read(&args.file, args.namespace.as_deref());
    for document in &documents {
        match apply_one(client, document).await {
            Ok(applied) => out.line(&format!("{} {}", document.full_name(), applied.as_str()))?,
            Err(fault) => {
                let ends_all = fault.ends_all();
                faults.push(fault.when(&format!("applying {:?}", document.file)));
                if ends_all {
                    break;
                }
            }
        }
    }
    Fault::all(faults)
}

async fn apply_one(client: &Client, document: &Document) -> Result<Applied, Fault> {
    let Document { kind, namespace, name, .. } = document;
    let mut tries = 1..=TRIES;
    loop {
        tries.next();
        let tried = match client.get(*kind, namespace, name).await? {
            None => {
                let made = client.json(Method::POST, &path(*kind, Some(namespace), None), Some(&document.fresh())).await;
                made.map(|_made| Applied::Created)
            }
            Some(live) if document.is_as(&live) => return Ok(Applied::Unchanged),
            Some(live) => {
                let before = resource::version(&live).to_owned();
                let put = client.json(Method::PUT, &path(*kind, Some(namespace), Some(name)), Some(&document.onto(live))).await;
                // A server may fill in what a manifest leaves out; then nothing has changed after all.
                put.map(|after| if resource::version(&after) == before { Applied::Unchanged } else { Applied::Configured })
            }
        };
        match tried {
            // Somebody else made, changed or removed it in between.
            Err(fault) if matches!(fault.code(), Some(404 | 409)) && !tries.is_empty() && is_a_race(&fault) => {}
            other => return other,
        }
    }
}

/// Not every conflict passes: one that names the file which a resource belongs to stays.
fn is_a_race(fault: &Fault) -> bool {
    match fault {
        Fault::Status { code: 404, message, .. } => message.ends_with("not found"),
        Fault::Status { code: 409, reason, message, .. } => reason == "AlreadyExists" || message.contains("the object has been modified"),
        _ => false,
    }
}

/// `berth delete`.
///
/// # Errors
/// All that could not be deleted; the rest has been.
pub(crate) async fn delete(client: &Client, args: &args::Delete, out: &mut Out) -> Result<(), Fault> {
    let (wanted, mut faults) = if args.file.is_empty() {
        let namespace = args.namespace.as_deref().unwrap_or("default");
        let one = |named: Named| Ok((named.only_kind()?, namespace.to_owned(), named.name));
        (named(&args.words)?.into_iter().map(one).collect::<Result<Vec<_>, Fault>>()?, Vec::new())
    } else {
        let (documents, faults) = manifest::read(&args.file, args.namespace.as_deref());
        (documents.into_iter().map(|document| (document.kind, document.namespace, document.name)).collect(), faults)
    };
    for (kind, namespace, name) in wanted {
        match client.json(Method::DELETE, &path(kind, Some(&namespace), Some(&name)), None).await {
            Ok(_last) => out.line(&format!("{} {name:?} deleted", full_kind(kind)))?,
            Err(fault) if fault.code() == Some(404) && args.ignore_not_found => {}
            Err(fault) if fault.ends_all() => {
                faults.push(fault);
                break;
            }
            Err(fault) => faults.push(fault),
        }
    }
    Fault::all(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_conflicts_that_can_pass_are_tried_again() {
        let status = |code, reason: &str, message: &str| Fault::Status { code, reason: reason.to_owned(), message: message.to_owned() };
        for (fault, race) in [
            (status(409, "AlreadyExists", "predictors.serving.kserve.io \"a\" already exists"), true),
            (status(409, "Conflict", "Operation cannot be fulfilled: the object has been modified; please apply your changes"), true),
            (status(409, "Conflict", "Predictor default/a comes from /models/a.yaml: change it there"), false),
            (status(404, "NotFound", "predictors.serving.kserve.io \"a\" not found"), true),
            (status(404, "NotFound", "the server could not find the requested resource"), false),
            (status(403, "Forbidden", "no"), false),
            (Fault::local("the object has been modified"), false),
        ] {
            assert_eq!(is_a_race(&fault), race, "{fault}");
        }
    }
}
