//! Resources, lists and events in the form that a client asked for.

use std::sync::Arc;

use berth_registry::{Kind, Object};
use berth_telemetry::Clock;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::accept::Form;
use crate::document::{Resource, text};
use crate::fetching::Picture;
use crate::table::{Include, Row, columns};

/// Objects printed into one piece of a list's text.
const OBJECTS_PER_PIECE: usize = 128;

/// What one answer looks like.
#[derive(Clone)]
pub(crate) struct Printer {
    pub(crate) form: Form,
    /// For tables.
    pub(crate) include: Include,
    /// Time, for ages in tables.
    pub(crate) clock: Clock,
    /// How far downloads are, for tables.
    pub(crate) fetching: Picture,
}

#[derive(Serialize)]
struct Line<'o, T> {
    r#type: &'static str,
    object: &'o T,
}

/// A line of a watch.
pub(crate) fn line<T: Serialize>(kind: &'static str, object: &T) -> Vec<u8> {
    let mut line = text(&Line { r#type: kind, object });
    line.push(b'\n');
    line
}

/// YAML of something that has a JSON form.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    // Texts stay on their lines, so that they can be searched for.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let value = serde_json::to_value(value).expect("what is printed here has a JSON form");
    serde_saphyr::to_string_with_options(&value, options).expect("maps with text keys and plain values always print")
}

impl Printer {
    /// One object.
    pub(crate) fn one(&self, object: &Object) -> Vec<u8> {
        match self.form {
            Form::Json => text(&Resource::of(object)),
            Form::Yaml => yaml(&Resource::of(object)).into(),
            Form::Table => {
                let metadata = json!({ "resourceVersion": object.resource_version.to_string() });
                let mut whole = table_head(object.key.kind, &metadata, true).into_bytes();
                whole.extend(text(&self.row(object)));
                whole.extend_from_slice(b"]}");
                whole
            }
        }
    }

    fn row<'o>(&self, object: &'o Object) -> Row<'o> {
        Row::of(object, self.include, self.clock.wall(), self.fetching.cell(object))
    }

    /// The text of a list, piece by piece, so that a long one is never whole in memory.
    pub(crate) fn list(self, kind: Kind, metadata: &Value, objects: Vec<Arc<Object>>) -> impl Iterator<Item = Bytes> + Send + 'static {
        let (api_version, list) = (kind.api_version(), format!("{}List", kind.as_str()));
        let (head, tail) = match self.form {
            Form::Json => (format!(r#"{{"apiVersion":"{api_version}","kind":"{list}","metadata":{metadata},"items":["#), "]}\n"),
            Form::Table => (table_head(kind, metadata, true), "]}\n"),
            Form::Yaml => {
                let head = yaml(&json!({ "apiVersion": api_version, "kind": list, "metadata": metadata }));
                (format!("{}\nitems:{}", head.trim_end(), if objects.is_empty() { " []\n" } else { "\n" }), "")
            }
        };
        let pieces = objects.len().div_ceil(OBJECTS_PER_PIECE);
        let body = (0..pieces).map(move |piece| {
            let from = piece * OBJECTS_PER_PIECE;
            let mut text = Vec::new();
            for (at, object) in objects.iter().enumerate().skip(from).take(OBJECTS_PER_PIECE) {
                self.item(at, object, &mut text);
            }
            Bytes::from(text)
        });
        std::iter::once(Bytes::from(head)).chain(body).chain(std::iter::once(Bytes::from_static(tail.as_bytes())))
    }

    /// Adds the object at this place of a list to its text.
    fn item(&self, at: usize, object: &Object, to: &mut Vec<u8>) {
        if at > 0 && self.form != Form::Yaml {
            to.push(b',');
        }
        match self.form {
            Form::Json => to.extend(text(&Resource::of(object))),
            Form::Table => to.extend(text(&self.row(object))),
            Form::Yaml => {
                // All lines of an item stand equally far to the right, which leaves their meaning as it is.
                for (number, line) in yaml(&Resource::of(object)).lines().enumerate() {
                    let indent = if number == 0 { "- " } else { "  " };
                    to.extend_from_slice(if line.is_empty() { b"" } else { indent.as_bytes() });
                    to.extend_from_slice(line.as_bytes());
                    to.push(b'\n');
                }
            }
        }
    }

    /// The line of a watch that tells of `object`; the `first` one of a table says what its columns are.
    pub(crate) fn event(&self, kind: &'static str, object: &Object, first: bool) -> Vec<u8> {
        match self.form {
            Form::Json | Form::Yaml => line(kind, &Resource::of(object)),
            Form::Table => {
                let metadata = json!({ "resourceVersion": object.resource_version.to_string() });
                let head = table_head(object.key.kind, &metadata, first);
                let mut line = format!(r#"{{"type":"{kind}","object":{head}"#).into_bytes();
                line.extend(text(&self.row(object)));
                line.extend_from_slice(b"]}}\n");
                line
            }
        }
    }

    /// The line of a quiet watch that tells up to which version there is nothing to tell.
    pub(crate) fn bookmark(&self, kind: Kind, version: u64) -> Vec<u8> {
        let metadata = json!({ "resourceVersion": version.to_string() });
        let object = match self.form {
            Form::Json | Form::Yaml => json!({ "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": metadata }),
            Form::Table => json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": [] }),
        };
        line("BOOKMARK", &object)
    }
}

fn table_head(kind: Kind, metadata: &Value, with_columns: bool) -> String {
    let columns = if with_columns { columns(kind) } else { &[] };
    let columns = String::from_utf8(text(&columns)).expect("JSON is text");
    format!(r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"columnDefinitions":{columns},"rows":["#)
}
