//! `berth apply` and `berth delete`: making the server's resources those of files, and removing them.
//!
//! A manifest is the whole wish: labels, annotations and spec become what it says, also what it no longer says. An update
//! carries the version that it was made from, so a change by somebody else in between is seen and built upon.

use berth_registry::Kind;
use http::Method;
use serde_json::Value;

use super::args::{self, DryRun, Validate};
use super::client::{Client, Scope, path};
use super::fault::Fault;
use super::kinds::{Named, Selection, full_kind, named, selection};
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
        match apply_one(client, document, args).await {
            Ok(applied) => out.line(&format!("{} {}{}", document.full_name(), applied.as_str(), args.dry_run.remark()))?,
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

async fn apply_one(client: &Client, document: &Document, args: &args::Apply) -> Result<Applied, Fault> {
    let Document { kind, namespace, name, .. } = document;
    let options = options(args);
    let mut tries = 1..=TRIES;
    loop {
        tries.next();
        let tried = match (client.get(*kind, namespace, name).await?, args.dry_run) {
            // What is to be checked strictly is checked by the server, unchanged or not.
            (Some(live), dry_run) if document.is_as(&live) && (args.validate != Validate::Strict || dry_run == DryRun::Client) => {
                return Ok(Applied::Unchanged);
            }
            (None, DryRun::Client) => return Ok(Applied::Created),
            (Some(_live), DryRun::Client) => return Ok(Applied::Configured),
            (None, DryRun::None | DryRun::Server) => {
                let path = path(*kind, Some(namespace), None) + &options;
                client.json(Method::POST, &path, Some(&document.fresh())).await.map(|_made| Applied::Created)
            }
            (Some(live), dry_run @ (DryRun::None | DryRun::Server)) => {
                let before = resource::version(&live).to_owned();
                let path = path(*kind, Some(namespace), Some(name)) + &options;
                let put = client.json(Method::PUT, &path, Some(&document.onto(live))).await;
                // A server may fill in what a manifest leaves out; then nothing has changed after all. What was only tried
                // keeps its version.
                let unchanged = |after: &Value| dry_run == DryRun::None && resource::version(after) == before;
                put.map(|after| if unchanged(&after) { Applied::Unchanged } else { Applied::Configured })
            }
        };
        match tried {
            // Somebody else made, changed or removed it in between.
            Err(fault) if matches!(fault.code(), Some(404 | 409)) && !tries.is_empty() && is_a_race(&fault) => {}
            other => return other,
        }
    }
}

/// The query of a write.
fn options(args: &args::Apply) -> String {
    let dry_run = if args.dry_run == DryRun::Server { "&dryRun=All" } else { "" };
    let validation = match args.validate {
        Validate::Strict => "Strict",
        Validate::Warn => "Warn",
        Validate::Ignore => "Ignore",
    };
    format!("?fieldValidation={validation}{dry_run}")
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
        (chosen(client, args).await?, Vec::new())
    } else {
        let (documents, faults) = manifest::read(&args.file, args.namespace.as_deref());
        (documents.into_iter().map(|document| (document.kind, document.namespace, document.name)).collect(), faults)
    };
    if wanted.is_empty() && faults.is_empty() {
        return out.line("No resources found");
    }
    for (kind, namespace, name) in wanted {
        match delete_one(client, kind, &namespace, &name, args.dry_run).await {
            Ok(()) => out.line(&format!("{} {name:?} deleted{}", full_kind(kind), args.dry_run.remark()))?,
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

type Chosen = (Kind, String, String);

/// What the words of the command line choose: kind, namespace and name of each.
async fn chosen(client: &Client, args: &args::Delete) -> Result<Vec<Chosen>, Fault> {
    let namespace = args.namespace.as_deref().unwrap_or("default");
    if !args.all && args.selector.is_none() {
        let one = |named: Named| Ok((named.only_kind()?, namespace.to_owned(), named.name));
        return named(&args.words)?.into_iter().map(one).collect();
    }
    let Selection::All(kinds) = selection(&args.words, &[])? else {
        let flag = if args.all { "--all" } else { "a selector" };
        return Err(Fault::local(format!("name cannot be provided when {flag} is specified")));
    };
    let mut chosen = Vec::new();
    for kind in kinds {
        let namespaced = kind.namespaced().then(|| namespace.to_owned());
        let scope = Scope { kind, namespace: namespaced, selector: args.selector.clone(), name: None };
        let (resources, _version) = client.list(&scope).await?;
        chosen.extend(resources.iter().map(|resource| (kind, namespace.to_owned(), resource::name(resource).to_owned())));
    }
    Ok(chosen)
}

async fn delete_one(client: &Client, kind: Kind, namespace: &str, name: &str, dry_run: DryRun) -> Result<(), Fault> {
    let path = path(kind, Some(namespace), Some(name));
    match dry_run {
        DryRun::None => client.json(Method::DELETE, &path, None).await.map(drop),
        DryRun::Server => client.json(Method::DELETE, &format!("{path}?dryRun=All"), None).await.map(drop),
        DryRun::Client => match client.get(kind, namespace, name).await? {
            Some(_there) => Ok(()),
            None => Err(Fault::not_found(kind, name)),
        },
    }
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
