//! The text format of protobuf, read so that it can be changed without losing anything.
//!
//! No message definition is needed: fields newer than this program are fields like any other. What is read are the places
//! of fields and values in the text; an [`Edit`] replaces some of them and leaves every other byte as it is. What a server
//! would refuse for its meaning (an unknown field, a number for a text) passes here: the server says so.

mod edit;
mod json;
#[cfg(test)]
mod tests;
mod tokens;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

pub(crate) use edit::{Edit, quote};
pub(crate) use json::to_json;
use tokens::{Kind, Token, Tokens};

/// Messages and lists within one another.
const DEEPEST: usize = 64;

/// Why a text is not in the format, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub(crate) struct Fault {
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in bytes.
    pub(crate) column: usize,
    /// Expected and found.
    pub(crate) what: String,
}

impl Fault {
    fn at(text: &[u8], place: usize, what: impl Into<String>) -> Self {
        let before = text.get(..place).unwrap_or(text);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Fault { line, column, what: what.into() }
    }
}

/// One field with its value, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// As written; an extension or a type URL with its brackets.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: Value,
    /// From its name to the end of its value, and of the `,` or `;` behind it.
    pub(crate) span: Range<usize>,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A number, a word, or one or several texts that stand for one.
    Scalar(Scalar),
    /// `{ ... }` or `< ... >`.
    Message(Message),
    /// `[ ..., ... ]`.
    List(Vec<Value>),
}

/// A message and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) fields: Vec<Field>,
    /// With its brackets.
    pub(crate) span: Range<usize>,
}

/// A single value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    pub(crate) kind: ScalarKind,
    pub(crate) span: Range<usize>,
}

/// What kind of single value it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScalarKind {
    /// A text with its escapes resolved, its pieces joined.
    Text(Vec<u8>),
    /// A number as written, with its sign.
    Number(String),
    /// A word as written, with its sign: `true`, `TYPE_FP32`, `-inf`.
    Word(String),
}

impl Scalar {
    /// A text; bytes that are not UTF-8 replaced.
    pub(crate) fn text(&self) -> Option<Cow<'_, str>> {
        match &self.kind {
            ScalarKind::Text(text) => Some(String::from_utf8_lossy(text)),
            ScalarKind::Number(_) | ScalarKind::Word(_) => None,
        }
    }

    /// A whole number: decimal, `0x` or octal.
    pub(crate) fn integer(&self) -> Option<i64> {
        let ScalarKind::Number(written) = &self.kind else { return None };
        let (sign, digits) = match written.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, written.as_str()),
        };
        let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
        let value = match (hexadecimal, digits.strip_prefix('0')) {
            (Some(digits), _) => i128::from_str_radix(digits, 16),
            (None, Some(octal)) if !octal.is_empty() => i128::from_str_radix(octal, 8),
            (None, _) => digits.parse(),
        };
        i64::try_from(sign * value.ok()?).ok()
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ScalarKind::Text(text) => write!(f, "{:?}", String::from_utf8_lossy(text)),
            ScalarKind::Number(written) | ScalarKind::Word(written) => f.write_str(written),
        }
    }
}

impl Value {
    /// The values: of a list each, else the one.
    pub(crate) fn each(&self) -> impl Iterator<Item = &Value> {
        match self {
            Value::List(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        }
        .iter()
    }

    /// The messages among the values.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.each().filter_map(|value| match value {
            Value::Message(message) => Some(message),
            Value::Scalar(_) | Value::List(_) => None,
        })
    }

    /// The single values among the values.
    pub(crate) fn scalars(&self) -> impl Iterator<Item = &Scalar> {
        self.each().filter_map(|value| match value {
            Value::Scalar(scalar) => Some(scalar),
            Value::Message(_) | Value::List(_) => None,
        })
    }
}

/// What can be asked of a list of fields.
pub(crate) trait Fields {
    fn fields(&self) -> &[Field];

    /// Every field of this name.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.fields().iter().filter(move |field| field.name == name)
    }

    /// Whether there is one.
    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The messages of every field of this name.
    fn messages<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Message> {
        self.all(name).flat_map(|field| field.value.messages())
    }

    /// The last single value of this name.
    fn scalar<'a>(&'a self, name: &'a str) -> Option<&'a Scalar> {
        self.all(name).flat_map(|field| field.value.scalars()).last()
    }
}

impl Fields for Message {
    fn fields(&self) -> &[Field] {
        &self.fields
    }
}

/// A whole text with the places of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) fields: Vec<Field>,
}

impl Fields for Document<'_> {
    fn fields(&self) -> &[Field] {
        &self.fields
    }
}

impl<'a> Document<'a> {
    /// Reads a text.
    ///
    /// # Errors
    /// [`Fault`] says where it is not in the format, what was expected and what was found.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, Fault> {
        let mut parser = Parser { text, tokens: Tokens::new(text), next: None };
        parser.next = parser.tokens.next_token()?;
        let fields = parser.fields(None, 0)?;
        Ok(Document { text, fields })
    }
}

struct Parser<'a> {
    text: &'a [u8],
    tokens: Tokens<'a>,
    next: Option<Token>,
}

impl Parser<'_> {
    fn advance(&mut self) -> Result<Option<Token>, Fault> {
        let token = self.next.take();
        self.next = self.tokens.next_token()?;
        Ok(token)
    }

    fn is(&self, sign: u8) -> bool {
        self.next.as_ref().is_some_and(|token| token.kind == Kind::Sign(sign))
    }

    fn fault<T>(&self, expected: &str) -> Result<T, Fault> {
        let (place, found) = match &self.next {
            Some(token) => (token.span.start, tokens::shown(&self.text[token.span.clone()])),
            None => (self.text.len(), "the end".to_owned()),
        };
        Err(Fault::at(self.text, place, format!("expected {expected}, found {found}")))
    }

    /// Fields up to the end, or up to the closing sign.
    fn fields(&mut self, close: Option<u8>, depth: usize) -> Result<Vec<Field>, Fault> {
        let mut fields = Vec::new();
        loop {
            match (&self.next, close) {
                (None, None) => return Ok(fields),
                (Some(token), Some(close)) if token.kind == Kind::Sign(close) => return Ok(fields),
                _ => fields.push(self.field(close, depth)?),
            }
        }
    }

    fn field(&mut self, close: Option<u8>, depth: usize) -> Result<Field, Fault> {
        let start = self.next.as_ref().map_or(self.text.len(), |token| token.span.start);
        let name = self.name(close)?;
        let colon = self.is(b':');
        if colon {
            self.advance()?;
        }
        let (value, mut end) = match &self.next {
            Some(Token { kind: Kind::Sign(b'{' | b'<' | b'['), .. }) => self.value(depth)?,
            _ if colon => self.value(depth)?,
            _ => return self.fault(&format!("':' or '{{' after {name}")),
        };
        if self.is(b',') || self.is(b';') {
            end = self.advance()?.map_or(end, |token| token.span.end);
        }
        Ok(Field { name, value, span: start..end })
    }

    fn name(&mut self, close: Option<u8>) -> Result<String, Fault> {
        let expected = match close {
            None => "a field name".to_owned(),
            Some(close) => format!("a field name or '{}'", char::from(close)),
        };
        match &self.next {
            Some(Token { kind: Kind::Word | Kind::Number, span }) => {
                let name = String::from_utf8_lossy(&self.text[span.clone()]).into_owned();
                self.advance()?;
                Ok(name)
            }
            Some(Token { kind: Kind::Sign(b'['), .. }) => {
                let mut name = "[".to_owned();
                self.advance()?;
                while !self.is(b']') {
                    match &self.next {
                        Some(Token { kind: Kind::Word | Kind::Number | Kind::Sign(b'.' | b'/' | b'-'), span }) => {
                            name.push_str(&String::from_utf8_lossy(&self.text[span.clone()]));
                        }
                        _ => return self.fault("']'"),
                    }
                    self.advance()?;
                }
                self.advance()?;
                name.push(']');
                Ok(name)
            }
            _ => self.fault(&expected),
        }
    }

    /// A value and where it ends.
    fn value(&mut self, depth: usize) -> Result<(Value, usize), Fault> {
        let Some(Token { kind, span }) = self.next.clone() else { return self.fault("a value") };
        if depth == DEEPEST && matches!(kind, Kind::Sign(b'{' | b'<' | b'[')) {
            return self.fault(&format!("at most {DEEPEST} messages and lists within one another"));
        }
        match kind {
            Kind::Sign(open @ (b'{' | b'<')) => {
                let close = if open == b'{' { b'}' } else { b'>' };
                self.advance()?;
                let fields = self.fields(Some(close), depth + 1)?;
                let end = self.advance()?.map_or(self.text.len(), |token| token.span.end);
                Ok((Value::Message(Message { fields, span: span.start..end }), end))
            }
            Kind::Sign(b'[') => {
                self.advance()?;
                let mut values = Vec::new();
                while !self.is(b']') {
                    values.push(self.value(depth + 1)?.0);
                    if self.is(b',') {
                        self.advance()?;
                    } else if !self.is(b']') {
                        return self.fault("',' or ']'");
                    }
                }
                let end = self.advance()?.map_or(self.text.len(), |token| token.span.end);
                Ok((Value::List(values), end))
            }
            Kind::Text => {
                let (mut text, mut end) = (Vec::new(), span.end);
                while let Some(Token { kind: Kind::Text, span }) = self.next.clone() {
                    tokens::unescape(self.text, span.clone(), &mut text)?;
                    end = span.end;
                    self.advance()?;
                }
                Ok((Value::Scalar(Scalar { kind: ScalarKind::Text(text), span: span.start..end }), end))
            }
            Kind::Word | Kind::Number => self.plain(span.start, ""),
            Kind::Sign(b'-') => {
                self.advance()?;
                self.plain(span.start, "-")
            }
            Kind::Sign(_) => self.fault("a value"),
        }
    }

    fn plain(&mut self, start: usize, sign: &str) -> Result<(Value, usize), Fault> {
        let Some(Token { kind: kind @ (Kind::Word | Kind::Number), span }) = self.next.clone() else { return self.fault("a number") };
        let written = format!("{sign}{}", String::from_utf8_lossy(&self.text[span.clone()]));
        self.advance()?;
        let kind = if kind == Kind::Word { ScalarKind::Word(written) } else { ScalarKind::Number(written) };
        Ok((Value::Scalar(Scalar { kind, span: start..span.end }), span.end))
    }
}
