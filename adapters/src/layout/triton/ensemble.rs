//! An ensemble and the models that its steps name: several folders of Triton, one model of ours.
//!
//! Triton knows models by name and an ensemble names its parts, so parts of two ensembles would be mixed up. Each part gets
//! a name made from the model's, and the steps are rewritten to it. What a python model calls by name while it runs cannot
//! be seen here and is not rewritten.

use std::collections::{BTreeMap, BTreeSet};

use super::super::listing::{CONFIG, Node};
use super::super::name::part_name;
use super::super::pbtxt::{Document, Edit, Fields as _, Message};
use super::super::plan::{Entry, Plan};
use super::{Options, Source, config, entries_of, is_ensemble, join, shaped};
use crate::LoadError;

/// Steps of steps of steps: more is a circle or a mistake.
const MOST_PARTS: usize = 256;

/// The steps of an ensemble, wherever and however they are written.
fn steps<'a>(document: &'a Document<'_>) -> impl Iterator<Item = &'a Message> {
    document.messages("ensemble_scheduling").flat_map(|scheduling| scheduling.messages("step"))
}

/// The models that the steps name.
fn named(document: &Document<'_>) -> BTreeSet<String> {
    steps(document).filter_map(|step| Some(step.scalar("model_name")?.text()?.into_owned())).collect()
}

fn document<'a>(source: &'a Source, folder: &str) -> Result<Document<'a>, LoadError> {
    let path = join(folder, CONFIG);
    Document::parse(source.listing.text(&path)?).map_err(|fault| LoadError::bad_model(format!("{path}: {fault}")))
}

/// The models of Triton in a folder. A version's folder is none, whatever somebody has put there.
fn models<'a>(source: &'a Source, folder: &str) -> Result<BTreeMap<&'a String, Document<'a>>, LoadError> {
    let is_model = |node: &Node| node.is_folder() && node.get(CONFIG).is_some_and(|config| !config.is_folder());
    let folders = entries_of(source, folder)?.iter().filter(|(name, node)| super::number(name).is_none() && is_model(node));
    folders.map(|(name, _)| Ok((name, document(source, &join(folder, name))?))).collect()
}

/// Whether the folder is an ensemble: its own configuration says so, or it holds Triton models and has none itself.
pub(super) fn is_one(source: &Source, folder: &str) -> Result<bool, LoadError> {
    if entries_of(source, folder)?.contains_key(CONFIG) {
        return Ok(is_ensemble(&document(source, folder)?));
    }
    Ok(!models(source, folder)?.is_empty())
}

/// Plans an ensemble with its parts.
pub(super) fn plan(source: &Source, options: &Options, folder: &str, plan: &mut Plan, own: &mut Option<Vec<u8>>) -> Result<(), LoadError> {
    let models = models(source, folder)?;
    let bad = |what: String| LoadError::bad_model(format!("{}: {what}", source.name));
    let is_root = entries_of(source, folder)?.contains_key(CONFIG);
    let (main, first) = if is_root { (folder.to_owned(), document(source, folder)?) } else { top(source, folder, &models)? };

    let mut names = BTreeMap::new();
    let mut waiting: Vec<(String, BTreeSet<String>)> = vec![("the ensemble".to_owned(), named(&first))];
    while let Some((by, wanted)) = waiting.pop() {
        for name in wanted {
            let part = models.get_key_value(&name).filter(|(name, _)| join(folder, name) != main);
            let Some((part, document)) = part else {
                let there: Vec<&str> = models.keys().map(|name| name.as_str()).collect();
                return Err(bad(format!("{by} has a step of model {name:?}, which is not in its folder: found [{}]", there.join(", "))));
            };
            if names.insert((*part).clone(), part_name(&source.id, part)).is_none() {
                waiting.push((format!("part {part}"), named(document)));
            }
            if names.len() > MOST_PARTS {
                return Err(bad(format!("more than {MOST_PARTS} parts")));
            }
        }
    }

    for (part, name) in &names {
        let at = join(folder, part);
        let change = config::Change { schema: None, device: options.device, parts: Some(&names) };
        let mut entries = with_version(shaped(source, &Options::default(), &at, &[])?);
        entries.insert(CONFIG.to_owned(), Entry::Text(config::edited(source, &at, &change)?));
        plan.parts.insert(name.clone(), entries);
    }
    for left in models.keys().filter(|name| !names.contains_key(**name) && join(folder, name) != main) {
        plan.notes.push(format!("{left} is named by no step of the ensemble and left out"));
    }
    let change = config::Change { schema: source.schema.as_ref(), device: None, parts: Some(&names) };
    let without: Vec<&String> = if is_root { models.keys().copied().collect() } else { Vec::new() };
    plan.entries = with_version(shaped(source, options, &main, &without)?);
    *own = Some(config::edited(source, &main, &change)?);
    Ok(())
}

/// The ensemble that no other names, and its configuration.
fn top<'a>(source: &'a Source, folder: &str, models: &BTreeMap<&'a String, Document<'a>>) -> Result<(String, Document<'a>), LoadError> {
    let inner: BTreeSet<String> = models.values().flat_map(named).collect();
    let tops: Vec<(&&String, &Document<'_>)> =
        models.iter().filter(|(name, document)| is_ensemble(document) && !inner.contains(name.as_str())).collect();
    match tops.as_slice() {
        [(name, document)] => Ok((join(folder, name), (*document).clone())),
        several => {
            let there: Vec<&str> = models.keys().map(|name| name.as_str()).collect();
            let what = "expected one model, or one ensemble whose steps name the others";
            Err(LoadError::bad_model(format!(
                "{} holds the Triton models [{}], {} of them ensembles that none names: {what}",
                source.name,
                there.join(", "),
                several.len()
            )))
        }
    }
}

/// An ensemble has no files, but Triton wants a version's folder, and stores keep no empty folders.
fn with_version(mut entries: super::Entries) -> super::Entries {
    if !entries.keys().any(|name| super::number(name).is_some_and(|number| number > 0)) {
        entries.insert("1".to_owned(), Entry::Folder);
    }
    entries
}

/// Makes the steps name the parts as they are called now.
pub(super) fn rename_steps(document: &Document<'_>, parts: &BTreeMap<String, String>, edit: &mut Edit<'_, '_>) {
    for step in steps(document) {
        for scalar in step.all("model_name").flat_map(|field| field.value.scalars()) {
            if let Some(name) = scalar.text().and_then(|name| parts.get(name.as_ref())) {
                edit.replace(scalar.span.clone(), &super::super::pbtxt::quote(name));
            }
        }
    }
}
