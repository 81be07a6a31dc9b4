//! Changing fields of a text and nothing else.

use std::fmt::Write as _;
use std::ops::Range;

use super::{Document, Field, Fields as _};

/// A text as the text format writes it, quotes included.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| {
                let _ = write!(out, "\\{byte:03o}");
            }),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Changes to a document, made all at once. Of two that overlap only the first is made.
pub(crate) struct Edit<'a, 'd> {
    document: &'d Document<'a>,
    changes: Vec<(Range<usize>, Vec<u8>)>,
    appended: Vec<u8>,
}

impl<'a, 'd> Edit<'a, 'd> {
    pub(crate) fn new(document: &'d Document<'a>) -> Self {
        Edit { document, changes: Vec::new(), appended: Vec::new() }
    }

    /// Takes every top-level field of this name out.
    pub(crate) fn drop_field(&mut self, name: &str) {
        self.changes.extend(self.document.all(name).map(|field| (field.span.clone(), Vec::new())));
    }

    /// Puts `text`, whole fields, where the first top-level field of this name stands, takes the others out; at the end when
    /// there is none.
    pub(crate) fn replace_field(&mut self, name: &str, text: &str) {
        let document = self.document;
        let mut fields = document.all(name);
        match fields.next() {
            Some(Field { span, .. }) => self.changes.push((span.clone(), text.as_bytes().to_vec())),
            None => self.append(text),
        }
        self.changes.extend(fields.map(|field| (field.span.clone(), Vec::new())));
    }

    /// Puts `text`, whole fields, on lines of their own at the end.
    pub(crate) fn append(&mut self, text: &str) {
        self.appended.extend_from_slice(text.as_bytes());
        self.appended.push(b'\n');
    }

    /// Puts `text` in the place of whatever stands there.
    pub(crate) fn replace(&mut self, span: Range<usize>, text: &str) {
        self.changes.push((span, text.as_bytes().to_vec()));
    }

    /// The changed text. What would run into its neighbour is kept apart by a space.
    pub(crate) fn done(mut self) -> Vec<u8> {
        let text = self.document.text;
        self.changes.sort_by_key(|(span, _)| span.start);
        let mut out = Vec::with_capacity(text.len() + self.appended.len());
        let (mut at, mut seam) = (0, false);
        let mut push = |out: &mut Vec<u8>, piece: &[u8]| {
            let (Some(first), last) = (piece.first(), out.last()) else { return };
            if seam && last.is_some_and(|last| !last.is_ascii_whitespace()) && !first.is_ascii_whitespace() {
                out.push(b' ');
            }
            out.extend_from_slice(piece);
            seam = true;
        };
        for (span, new) in self.changes {
            let Some(kept) = text.get(at..span.start) else { continue };
            push(&mut out, kept);
            push(&mut out, &new);
            at = span.end;
        }
        push(&mut out, &text[at..]);
        if !self.appended.is_empty() {
            // A comment may stand last.
            if out.last().is_some_and(|last| *last != b'\n') {
                out.push(b'\n');
            }
            out.extend_from_slice(&self.appended);
        }
        out
    }
}
