use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Document<'_> {
    Document::parse(text.as_bytes()).unwrap_or_else(|fault| panic!("{text}: {fault}"))
}

/// The document without places: what it means.
fn meaning(fields: &[Field]) -> String {
    fn value(of: &Value, out: &mut String) {
        match of {
            Value::Scalar(scalar) => drop(write!(out, "{:?}", scalar.kind)),
            Value::List(values) => {
                out.push('[');
                values.iter().for_each(|one| value(one, out));
                out.push(']');
            }
            Value::Message(message) => drop(write!(out, "{{{}}}", meaning(&message.fields))),
        }
    }
    fields.iter().fold(String::new(), |mut out, field| {
        let _ = write!(out, "{}=", field.name);
        value(&field.value, &mut out);
        out.push(';');
        out
    })
}

#[test]
fn every_form_of_the_format_is_read() {
    for (case, text, expected) in [
        ("nothing", "", ""),
        ("comments and space", "# a\n \t\r\n#b", ""),
        ("a byte order mark", "\u{feff}a: 1", "a=Number(\"1\");"),
        (
            "a number",
            "a: 1 b: -2 c: 0x1F d: 1.5e-3f e: .5 f: - 7",
            "a=Number(\"1\");b=Number(\"-2\");c=Number(\"0x1F\");d=Number(\"1.5e-3f\");e=Number(\".5\");f=Number(\"-7\");",
        ),
        ("words", "a: true b: TYPE_X c: -inf", "a=Word(\"true\");b=Word(\"TYPE_X\");c=Word(\"-inf\");"),
        ("separators", "a: 1, b: 2; c: 3", "a=Number(\"1\");b=Number(\"2\");c=Number(\"3\");"),
        ("messages", "a { b: 1 } c: { } d < e < > > f: < g: 1; >", "a={b=Number(\"1\");};c={};d={e={};};f={g=Number(\"1\");};"),
        ("lists", "a: [ 1, -2 ] b: [] c [ { d: 1 }, < > ]", "a=[Number(\"1\")Number(\"-2\")];b=[];c=[{d=Number(\"1\");}{}];"),
        ("names of extensions and types", "[a.b/c-d]: 1 [ x . y ] { } 12: 3", "[a.b/c-d]=Number(\"1\");[x.y]={};12=Number(\"3\");"),
        ("a comment anywhere", "a # {\n : # \"\n 1 # }\n, # '\n b {#\n}", "a=Number(\"1\");b={};"),
    ] {
        assert_eq!(meaning(&parse(text).fields), expected, "{case}");
    }
    for (text, expected) in [
        (
            r#"a: "x" 'y"' # c
            "z""#,
            "xy\"z",
        ),
        (r#"a: "\n\t\\\"\'\?\a\b\f\v\r""#, "\n\t\\\"'?\u{7}\u{8}\u{c}\u{b}\r"),
        (r#"a: "\101\7\0x\x41\X4a\u00fc\U0001F600""#, "A\u{7}\0xAJü😀"),
        (r#"a: "ü""#, "ü"),
        (r#"a: "" "#, ""),
    ] {
        assert_eq!(parse(text).scalar("a").and_then(Scalar::text).as_deref(), Some(expected), "{text}");
    }
    for (text, expected) in [
        ("a: 010", Some(8)),
        ("a: -0x10", Some(-16)),
        ("a: 9223372036854775808", None),
        ("a: -9223372036854775808", Some(i64::MIN)),
        ("a: 1.0", None),
        ("a: x", None),
        ("a: 0", Some(0)),
    ] {
        assert_eq!(parse(text).scalar("a").and_then(Scalar::integer), expected, "{text}");
    }
}

#[test]
fn a_text_that_is_not_in_the_format_says_where() {
    for (text, line, column, says) in [
        ("a", 1, 2, "expected ':' or '{' after a, found the end"),
        ("a 1", 1, 3, "expected ':' or '{' after a, found \"1\""),
        ("a:", 1, 3, "expected a value, found the end"),
        ("a: }", 1, 4, "expected a value, found \"}\""),
        ("a: - \"x\"", 1, 6, "expected a number, found \"\\\"x\\\"\""),
        ("\n  a {\n b: 1", 3, 6, "expected a field name or '}', found the end"),
        ("a < }", 1, 5, "expected a field name or '>', found \"}\""),
        ("a: [1 2]", 1, 7, "expected ',' or ']', found \"2\""),
        ("a: 1,,", 1, 6, "expected a field name, found \",\""),
        ("[a: 1", 1, 3, "expected ']', found \":\""),
        ("a: \"x", 1, 4, "this text is not closed on its line"),
        ("a: 'x\n'", 1, 4, "this text is not closed on its line"),
        ("a: 'x\\\n'", 1, 4, "this text is not closed on its line"),
        ("# ü\na: \"\\q\"", 2, 5, "\"\\\\q\" is not an escape"),
        ("a: \"\\x\"", 1, 5, "\"\\\\x\" is not an escape"),
        ("a: \"\\400\"", 1, 5, "\"\\\\4\" is not an escape"),
        ("a: \"\\u12\"", 1, 5, "\"\\\\u\" is not an escape"),
        ("a: $", 1, 4, "\"$\" has no meaning here"),
        ("}", 1, 1, "expected a field name, found \"}\""),
    ] {
        let fault = Document::parse(text.as_bytes()).expect_err(text);
        assert_eq!((fault.line, fault.column, fault.what.as_str()), (line, column, says), "{text}");
    }
    let deep = "a {".repeat(10_000);
    assert!(Document::parse(deep.as_bytes()).expect_err("deep").what.starts_with("expected at most 64 messages"));
    let lists = format!("a: {}", "[".repeat(10_000));
    assert!(Document::parse(lists.as_bytes()).expect_err("deep").what.starts_with("expected at most 64 messages"));
}

#[test]
fn an_edit_changes_what_it_means_and_nothing_else() {
    type Change = fn(&mut Edit<'_, '_>);
    let cases: [(&str, &str, Change, &str); 10] = [
        ("drop", "a: 1\nname: \"x\" # c\nb: 2", |edit| edit.drop_field("name"), "a: 1\n # c\nb: 2"),
        ("drop with its separator", "a: 1; name: \"x\" 'y' , b: 2", |edit| edit.drop_field("name"), "a: 1;  b: 2"),
        ("drop all", "name:'1'name:'2'", |edit| edit.drop_field("name"), ""),
        ("drop only at the top", "s { name: 1 } name: 2", |edit| edit.drop_field("name"), "s { name: 1 } "),
        ("neighbours do not run together", "a:\"x\"name:'y'b:1", |edit| edit.drop_field("name"), "a:\"x\" b:1"),
        ("replace the first, drop the others", "i {} b: 1 i [ {} ]; c: 1", |edit| edit.replace_field("i", "i [ 9 ]"), "i [ 9 ] b: 1  c: 1"),
        ("append where there is none", "a: 1 # c", |edit| edit.replace_field("i", "i: 1"), "a: 1 # c\ni: 1\n"),
        ("append to nothing", "", |edit| edit.replace_field("i", "i: 1"), "i: 1\n"),
        (
            "of two that overlap the first",
            "a: 1 b: 2",
            |edit| {
                edit.drop_field("a");
                edit.replace(3..4, "x");
            },
            " b: 2",
        ),
        ("nothing", "\u{feff}a: 1 # c\r\n", |_| {}, "\u{feff}a: 1 # c\r\n"),
    ];
    for (case, text, change, expected) in cases {
        let document = parse(text);
        let mut edit = Edit::new(&document);
        change(&mut edit);
        assert_eq!(String::from_utf8(edit.done()).expect("UTF-8"), expected, "{case}");
    }
    let latin: &[u8] = b"# caf\xe9\nname: 'a' s: \"\xff\"\n";
    let document = Document::parse(latin).expect("bytes outside of names do not matter");
    let mut edit = Edit::new(&document);
    edit.drop_field("name");
    assert_eq!(edit.done(), b"# caf\xe9\n s: \"\xff\"\n");
}

#[test]
fn a_quoted_text_is_read_back() {
    for text in ["", "a", "\"", "\\", "a\nb", "\t\u{7f}\u{85}", "üé😀", "'"] {
        let written = format!("a: {}", quote(text));
        assert_eq!(parse(&written).scalar("a").and_then(Scalar::text).as_deref(), Some(text), "{written}");
    }
}

/// Space, comments or both.
fn space(required: bool) -> impl Strategy<Value = String> {
    let piece = prop_oneof![Just(" "), Just("\n"), Just("\t"), Just(" # { name: \"x\" }\n"), Just("#'\n")];
    proptest::collection::vec(piece, usize::from(required)..3).prop_map(|pieces| pieces.concat())
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof!["-?[0-9]{1,4}", "[0-9]\\.[0-9]e-?[0-9]f?", "[A-Z_]{1,6}", Just("\"name: \\\"\\x41 {\" '\\'#'".to_owned()), Just("'üx\\n'".to_owned()),]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("name".to_owned()),
        3 => Just("input".to_owned()),
        2 => Just("output".to_owned()),
        4 => "[a-z_][a-z0-9_]{0,5}",
        1 => Just("[ext.of/x]".to_owned()),
    ]
}

/// One field as somebody may write it.
fn field() -> impl Strategy<Value = String> {
    let leaf = (name(), space(false), space(false), scalar()).prop_map(|(name, a, b, value)| format!("{name}{a}:{b}{value}"));
    leaf.prop_recursive(4, 24, 4, |inner| {
        let fields = proptest::collection::vec((inner, space(true), prop_oneof![Just(""), Just(","), Just(";")]), 0..4)
            .prop_map(|fields| fields.into_iter().map(|(field, space, separator)| format!("{field}{separator}{space}")).collect::<String>());
        let message = (fields, any::<bool>(), space(false))
            .prop_map(|(fields, curly, space)| if curly { format!("{{{space}{fields}}}") } else { format!("<{space}{fields}>") })
            .boxed();
        let list = proptest::collection::vec(prop_oneof![message.clone(), scalar()], 0..3).prop_map(|values| format!("[ {} ]", values.join(" , ")));
        (name(), space(false), any::<bool>(), prop_oneof![message, list])
            .prop_map(|(name, space, colon, value)| format!("{name}{space}{}{value}", if colon { ":" } else { "" }))
    })
}

fn config() -> impl Strategy<Value = String> {
    let fields = proptest::collection::vec((field(), prop_oneof![Just(""), Just(","), Just(";")], space(true)), 0..8);
    (space(false), fields)
        .prop_map(|(start, fields)| fields.into_iter().fold(start, |text, (field, separator, space)| text + &field + separator + &space))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn an_edit_of_any_config_changes_exactly_the_fields_meant(text in config()) {
        let before = Document::parse(text.as_bytes()).map_err(|fault| TestCaseError::fail(format!("{fault}\n{text}")))?;
        let mut edit = Edit::new(&before);
        edit.drop_field("name");
        edit.replace_field("input", "input [ { name: \"new\" } ]");
        let changed = edit.done();
        let after = Document::parse(&changed).map_err(|fault| TestCaseError::fail(format!("{fault}\n{}", String::from_utf8_lossy(&changed))))?;
        let others = |document: &Document<'_>| meaning(&document.fields.iter().filter(|field| !matches!(field.name.as_str(), "name" | "input")).cloned().collect::<Vec<_>>());
        prop_assert_eq!(others(&before), others(&after));
        prop_assert!(!after.has("name"));
        let inputs: Vec<Field> = after.all("input").cloned().collect();
        prop_assert_eq!(meaning(&inputs), "input=[{name=Text([110, 101, 119]);}];");
        // Fields keep their places in the order; what was added stands last.
        let order = |document: &Document<'_>| document.fields.iter().map(|field| field.name.clone()).filter(|name| name != "name").collect::<Vec<_>>();
        let mut wanted = order(&before);
        match wanted.iter().position(|name| name == "input") {
            Some(first) => {
                let mut at = 0;
                wanted.retain(|name| { at += 1; name != "input" || at == first + 1 });
            }
            None => wanted.push("input".to_owned()),
        }
        prop_assert_eq!(order(&after), wanted);
        // Every byte of the other fields is there, in order.
        let mut rest: &[u8] = &changed;
        for field in before.fields.iter().filter(|field| !matches!(field.name.as_str(), "name" | "input")) {
            let written = &text.as_bytes()[field.span.clone()];
            let at = rest.windows(written.len()).position(|window| window == written);
            prop_assert!(at.is_some(), "{}", String::from_utf8_lossy(written));
            rest = &rest[at.unwrap_or_default() + written.len()..];
        }
        // Nothing to change is no change.
        prop_assert_eq!(Edit::new(&before).done(), text.as_bytes());
        let json: Result<serde_json::Value, _> = serde_json::from_str(&to_json(&before));
        prop_assert!(json.is_ok());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(document) = Document::parse(&bytes) {
            let _ = to_json(&document);
        }
    }

    #[test]
    fn no_text_that_looks_like_a_config_makes_the_reader_panic(text in r#"[\[\]{}<>:,;.#"'\\/\n ax0e+-]{0,40}"#) {
        if let Ok(document) = Document::parse(text.as_bytes()) {
            let mut edit = Edit::new(&document);
            edit.drop_field("a");
            let _ = (to_json(&document), edit.done());
        }
    }
}
