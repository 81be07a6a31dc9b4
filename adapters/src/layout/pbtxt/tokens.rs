//! Words, numbers, texts and signs of the text format.

use std::ops::Range;

use super::Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    /// With its quotes.
    Text,
    Sign(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
}

pub(super) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

/// A piece of the text for a message.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 40;
    let more = if bytes.len() > MOST { "..." } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]))
}

const fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        // Some editors put a byte order mark first; protobuf's reader passes over it too.
        let at = if text.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        Tokens { text, at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_while(&mut self, of: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&of) {
            self.at += 1;
        }
    }

    pub(super) fn next_token(&mut self) -> Result<Option<Token>, Fault> {
        loop {
            self.skip_while(|byte| byte.is_ascii_whitespace() || byte == 0x0B);
            if self.peek() != Some(b'#') {
                break;
            }
            self.skip_while(|byte| byte != b'\n');
        }
        let start = self.at;
        let Some(first) = self.peek() else { return Ok(None) };
        let second = self.text.get(start + 1).copied().unwrap_or_default();
        let kind = match first {
            _ if starts_word(first) => {
                self.skip_while(|byte| starts_word(byte) || byte.is_ascii_digit());
                Kind::Word
            }
            b'0'..=b'9' => self.number(),
            b'.' if second.is_ascii_digit() => self.number(),
            b'"' | b'\'' => self.quoted(first)?,
            b'{' | b'}' | b'[' | b']' | b'<' | b'>' | b':' | b',' | b';' | b'-' | b'.' | b'/' => {
                self.at += 1;
                Kind::Sign(first)
            }
            _ => return Err(Fault::at(self.text, start, format!("{} has no meaning here", shown(&self.text[start..=start])))),
        };
        Ok(Some(Token { kind, span: start..self.at }))
    }

    /// Digits, letters and dots, and a sign behind an exponent.
    fn number(&mut self) -> Kind {
        let start = self.at;
        let hexadecimal = matches!(self.text.get(start..start + 2), Some(b"0x" | b"0X"));
        while let Some(byte) = self.peek() {
            let sign = matches!(byte, b'+' | b'-') && !hexadecimal && self.at > start && matches!(self.text[self.at - 1], b'e' | b'E');
            if !(byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || sign) {
                break;
            }
            self.at += 1;
        }
        Kind::Number
    }

    fn quoted(&mut self, quote: u8) -> Result<Kind, Fault> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None | Some(b'\n') => return Err(Fault::at(self.text, start, "this text is not closed on its line")),
                Some(b'\\') if self.text.get(self.at + 1).is_some_and(|byte| *byte != b'\n') => self.at += 2,
                Some(byte) => {
                    self.at += 1;
                    if byte == quote {
                        return Ok(Kind::Text);
                    }
                }
            }
        }
    }
}

/// Appends what a quoted text stands for.
pub(super) fn unescape(text: &[u8], span: Range<usize>, out: &mut Vec<u8>) -> Result<(), Fault> {
    let (start, end) = (span.start + 1, span.end - 1);
    let mut at = start;
    while at < end {
        if text[at] != b'\\' {
            out.push(text[at]);
            at += 1;
            continue;
        }
        let escape = at;
        let bad = || Fault::at(text, escape, format!("{} is not an escape", shown(&text[escape..end.min(escape + 2)])));
        let kind = *text[..end].get(at + 1).ok_or_else(bad)?;
        at += 2;
        let digits = |from: usize, most: usize, radix: u32| -> Option<(u32, usize)> {
            let of = |byte: &&u8| char::from(**byte).is_digit(radix);
            let count = text[from..end].iter().take(most).take_while(of).count();
            let digits = std::str::from_utf8(&text[from..from + count]).ok()?;
            Some((u32::from_str_radix(digits, radix).ok()?, from + count))
        };
        match kind {
            b'a' => out.push(0x07),
            b'b' => out.push(0x08),
            b'f' => out.push(0x0C),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(0x0B),
            b'\\' | b'\'' | b'"' | b'?' => out.push(kind),
            b'0'..=b'7' => {
                let (value, next) = digits(at - 1, 3, 8).ok_or_else(bad)?;
                out.push(u8::try_from(value).map_err(|_| bad())?);
                at = next;
            }
            b'x' | b'X' => {
                let (value, next) = digits(at, 2, 16).ok_or_else(bad)?;
                out.push(u8::try_from(value).map_err(|_| bad())?);
                at = next;
            }
            b'u' | b'U' => {
                let length = if kind == b'u' { 4 } else { 8 };
                let (value, next) = digits(at, length, 16).filter(|(_, next)| *next == at + length).ok_or_else(bad)?;
                let c = char::from_u32(value).ok_or_else(bad)?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                at = next;
            }
            _ => return Err(bad()),
        }
    }
    Ok(())
}
