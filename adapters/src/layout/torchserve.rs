//! TorchServe: one archive per model in its model store.

use super::Source;
use super::listing::Node;
use super::plan::Plan;
use crate::LoadError;

/// What an archive's name ends in.
pub(crate) const ENDING: &str = ".mar";

/// How the model is laid out: a link in the store, named after the model. [`Plan::name`] is the file's name, which is also
/// the `url` to register.
///
/// # Errors
/// A bad model when it is a folder.
pub(crate) fn plan(source: &Source) -> Result<Plan, LoadError> {
    if let Node::Folder { entries, .. } = &source.listing.0 {
        let found = super::listing::names(entries);
        return Err(LoadError::bad_model(format!("{} is a folder: TorchServe takes one {ENDING} file; found {found}", source.name)));
    }
    let mut plan = Plan::named(format!("{}{ENDING}", source.server_name()));
    plan.entries.insert(String::new(), source.link(""));
    if source.schema.is_some() {
        plan.notes.push("the schema is not used: TorchServe has no place for one".to_owned());
    }
    Ok(plan)
}
