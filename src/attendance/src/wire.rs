//! Our values as messages, and back.

use std::time::Duration;

use berth_plan::MayEvict;
use berth_proto::attendance::{Load, ModelChange, NameChange, Number, ViewPart, load};
use berth_registry::{ChangedName, Difference, View};
use berth_types::{ModelId, Name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

/// About so many bytes of changes are one part of a view.
const PART: usize = 256 << 10;

/// A value as its reader gets it.
pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(value).map_err(|fault| Status::internal(format!("a value cannot be written: {fault}")))
}

/// What the other side wrote; `what` is what it should be.
pub(crate) fn read<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|fault| Status::invalid_argument(format!("{what} cannot be read: {fault}")))
}

pub(crate) fn permission(may: Option<load::MayEvict>) -> MayEvict {
    match may {
        None | Some(load::MayEvict::Nothing(_)) => MayEvict::Nothing,
        Some(load::MayEvict::UnusedFor(millis)) => MayEvict::UnusedFor(Duration::from_millis(millis)),
        Some(load::MayEvict::AnyIdle(_)) => MayEvict::AnyIdle,
    }
}

pub(crate) fn load(registration: Vec<u8>, may: MayEvict) -> Load {
    let may = match may {
        MayEvict::Nothing => load::MayEvict::Nothing(true),
        MayEvict::UnusedFor(time) => load::MayEvict::UnusedFor(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        MayEvict::AnyIdle => load::MayEvict::AnyIdle(true),
    };
    Load { registration, may_evict: Some(may) }
}

pub(crate) fn number((epoch, sequence): (u64, u64)) -> Number {
    Number { epoch, sequence }
}

/// What makes `view` of `before` (of nothing: `None`), part by part. None where nothing has changed but the number.
pub(crate) struct Parts {
    names: std::vec::IntoIter<ChangedName>,
    models: std::vec::IntoIter<(ModelId, Option<std::sync::Arc<berth_types::Registration>>)>,
    anew: bool,
    complete: Option<(Number, bool)>,
}

impl Parts {
    pub(crate) fn of(view: &View, before: Option<&View>) -> Parts {
        let Difference { names, models } = view.since(before.unwrap_or(&View::default()));
        let complete = Some((number(view.number()), view.is_ready()));
        Parts { names: names.into_iter(), models: models.into_iter(), anew: before.is_none(), complete }
    }

    /// The next one; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<ViewPart>, Status> {
        if self.complete.is_none() {
            return Ok(None);
        }
        let mut part = ViewPart { anew: std::mem::take(&mut self.anew), ..ViewPart::default() };
        let mut bytes = 0;
        while bytes < PART {
            if let Some((id, registration)) = self.models.next() {
                let registration = registration.map_or(Ok(Vec::new()), |registration| json(&registration))?;
                bytes += registration.len() + id.as_str().len();
                part.models.push(ModelChange { id: id.to_string(), registration });
            } else if let Some(ChangedName { name, managed, entry }) = self.names.next() {
                let entry = entry.map_or(Ok(Vec::new()), |entry| json(&entry))?;
                bytes += entry.len() + name.as_str().len();
                part.names.push(NameChange { name: name.to_string(), managed, entry });
            } else {
                break;
            }
        }
        if self.models.as_slice().is_empty()
            && self.names.as_slice().is_empty()
            && let Some((number, ready)) = self.complete.take()
        {
            (part.complete, part.ready) = (Some(number), ready);
        }
        Ok(Some(part))
    }
}

/// A view as its parts come.
#[derive(Default)]
pub(crate) struct Building(Option<View>);

impl Building {
    /// The view, with its last part. `present` is the one before it.
    pub(crate) fn take(&mut self, part: ViewPart, present: &View) -> Result<Option<View>, Status> {
        let ViewPart { anew, names, models, complete, ready } = part;
        let view = match self.0.take() {
            _ if anew => View::default(),
            Some(view) => view,
            None => present.clone(),
        };
        let invalid = |fault: berth_types::InvalidId| Status::invalid_argument(fault.to_string());
        let mut difference = Difference::default();
        for NameChange { name, managed, entry } in names {
            let entry = if entry.is_empty() { None } else { Some(read("what a name stands for", &entry)?) };
            difference.names.push(ChangedName { name: Name::new(&name).map_err(invalid)?, managed, entry });
        }
        for ModelChange { id, registration } in models {
            let registration = if registration.is_empty() { None } else { Some(read("a registration", &registration)?) };
            difference.models.push((ModelId::new(&id).map_err(invalid)?, registration));
        }
        let view = view.with(difference);
        match complete {
            Some(Number { epoch, sequence }) => Ok(Some(view.numbered((epoch, sequence), ready))),
            None => {
                self.0 = Some(view);
                Ok(None)
            }
        }
    }
}
