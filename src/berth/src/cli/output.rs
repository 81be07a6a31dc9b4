//! What commands print: lines, JSON and YAML, to somebody who may stop reading at any time.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Serializer, Value};

use super::fault::Fault;

/// Standard output, or what stands for it in a test.
pub(crate) struct Out {
    to: Box<dyn Write>,
    terminal: bool,
}

impl Out {
    /// This process's standard output.
    pub(crate) fn stdout() -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal();
        Out { to: Box::new(out), terminal }
    }

    /// Somewhere else, for tests.
    #[cfg(test)]
    pub(crate) fn onto(to: impl Write + 'static) -> Self {
        Out { to: Box::new(to), terminal: false }
    }

    /// True when a person looks at it.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes `bytes` as they are; they are on their way when this returns.
    ///
    /// # Errors
    /// [`Fault::PipeClosed`] when nobody reads any more.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.to.write_all(bytes)?;
        Ok(self.to.flush()?)
    }

    /// Writes `text` as it is.
    ///
    /// # Errors
    /// As [`Out::bytes`].
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Fault> {
        self.bytes(text.as_bytes())
    }

    /// Writes a line.
    ///
    /// # Errors
    /// As [`Out::bytes`].
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Fault> {
        self.text(&format!("{text}\n"))
    }
}

/// Tells the person something beside the output.
pub(crate) fn note(text: &str) {
    // There is nobody left to tell when this fails.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `text` on one line and without anything that a terminal would act on: messages come from servers and models.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\x1b' => plain.push_str("^["),
            other if other.is_control() => plain.push(' '),
            other => plain.push(other),
        }
    }
    plain
}

/// JSON as kubectl prints it: members in order of their names, four spaces a level.
pub(crate) fn json(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).expect("a JSON value always prints");
    text.push(b'\n');
    String::from_utf8(text).expect("JSON is text")
}

/// YAML that any reader of YAML reads back as the same values.
pub(crate) fn yaml(value: &Value) -> Result<String, Fault> {
    // Folded texts are for essays; here a long message stays on one line, where it can be searched for.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).map_err(|fault| Fault::local(format!("cannot write YAML: {fault}")))
}

/// JSON for a person: objects unfolded, lists of plain values on one line, as tensors are read.
pub(crate) fn readable(value: &Value) -> String {
    let mut text = String::new();
    unfold(value, 0, &mut text);
    text.push('\n');
    text
}

fn unfold(value: &Value, depth: usize, text: &mut String) {
    let (open, close, members): (char, char, Vec<(Option<&String>, &Value)>) = match value {
        Value::Object(members) if !members.is_empty() => ('{', '}', members.iter().map(|(name, value)| (Some(name), value)).collect()),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            ('[', ']', items.iter().map(|item| (None, item)).collect())
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(Value::to_string).collect();
            text.push_str(&format!("[{}]", items.join(", ")));
            return;
        }
        plain => {
            text.push_str(&plain.to_string());
            return;
        }
    };
    text.push(open);
    for (at, (name, value)) in members.into_iter().enumerate() {
        text.push_str(if at > 0 { ",\n" } else { "\n" });
        text.push_str(&"  ".repeat(depth + 1));
        if let Some(name) = name {
            text.push_str(&format!("{}: ", Value::from(name.as_str())));
        }
        unfold(value, depth + 1, text);
    }
    text.push('\n');
    text.push_str(&"  ".repeat(depth));
    text.push(close);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A reader that has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_a_fault_and_no_panic() {
        let mut out = Out { to: Box::new(Closed), terminal: false };
        assert!(matches!(out.line("x"), Err(Fault::PipeClosed)));
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left_in_a_message() {
        assert_eq!(plain("a\x1b[31mred\nb\tc\u{9b}d\u{fc}"), "a^[[31mred b c d\u{fc}");
    }

    #[test]
    fn json_is_sorted_and_indented_by_four() {
        assert_eq!(json(&json!({ "b": [1], "a": {} })), "{\n    \"a\": {},\n    \"b\": [\n        1\n    ]\n}\n");
    }

    #[test]
    fn yaml_keeps_texts_texts_and_long_messages_on_a_line() {
        let long = "no such object: ".repeat(10);
        let value = json!({ "version": "1.15", "yes": "yes", "n": 1, "none": null, "list": [{ "a": "1", "b": true }], "long": long, "two": "a\nb" });
        let text = yaml(&value).expect("YAML");
        assert_eq!(serde_saphyr::from_str::<Value>(&text).expect("readable"), value, "{text}");
        assert!(text.contains("list:\n- a: \"1\"\n  b: true\n"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("long:") && line.contains(&long)), "{text}");
    }

    #[test]
    fn tensors_are_read_on_one_line() {
        let value = json!({ "outputs": [{ "name": "y", "shape": [1, 2], "data": [0.5, "x"] }], "none": {}, "nested": [[1], []] });
        let expected = "{\n  \"nested\": [\n    [1],\n    []\n  ],\n  \"none\": {},\n  \"outputs\": [\n    {\n      \"data\": [0.5, \"x\"],\n      \
                        \"name\": \"y\",\n      \"shape\": [1, 2]\n    }\n  ]\n}\n";
        assert_eq!(readable(&value), expected);
        assert_eq!(serde_json::from_str::<Value>(&readable(&value)).expect("JSON"), value);
    }
}
