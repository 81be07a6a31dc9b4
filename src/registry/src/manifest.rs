//! Reads the text of one manifest file. Pure: no file is touched here.
//!
//! A file is cut into its documents before anything is parsed, so that a document that cannot be read takes no other one
//! with it. Values are typed as Kubernetes types them: quoted is text, unquoted `1` is a number and `yes` is true; what a
//! spec makes of them is decided where specs are read, nothing is bent here.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::naming::{namespace_name, resource_name};
use crate::{Desired, Fault, FaultKind, Kind, ObjectKey, Origin};

/// Documents nested deeper than this, or with more values than that, are refused.
const DEEPEST: usize = 64;
const MOST_VALUES: usize = 2_000_000;

/// What one file says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifests {
    /// Its resources in the order of the file, each with the line on which its document begins.
    pub(crate) objects: Vec<(u64, Arc<Desired>)>,
    /// What is wrong with it.
    pub(crate) faults: Vec<Fault>,
}

impl Manifests {
    /// True when something in the file could not be read, so that a resource missing here may still be meant to be there.
    pub(crate) fn may_hide_objects(&self) -> bool {
        self.faults.iter().any(|fault| fault.kind == FaultKind::Broken)
    }
}

/// Reads `text`, the content of `file`; the ending of the file's name says whether it is JSON or YAML.
pub(crate) fn read(file: &Path, text: &str) -> Manifests {
    let file: &Arc<Path> = &file.into();
    let mut found = Manifests::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
        match serde_json::from_str(text) {
            Ok(value) => found.take(file, 1, value),
            Err(fault) => {
                let (line, column) = (fault.line() as u64, fault.column() as u64);
                found.faults.push(broken(file, Some(line), Some(column), without_position(&fault.to_string())));
            }
        }
        return found;
    }
    for document in documents(text) {
        match yaml(document.text) {
            Ok(value) => found.take(file, document.content_line, value),
            Err(fault) => {
                // Lines in the text of the fault count from where the parsed text begins; a second reading with the lines
                // before the document left empty makes them those of the file.
                let padded = "\n".repeat(document.first_line as usize - 1) + document.text;
                let fault = yaml(&padded).err().unwrap_or(fault);
                let place = fault.location();
                let text = without_position(&fault.without_snippet().to_string());
                found.faults.push(broken(file, place.map(|place| place.line()), place.map(|place| place.column()), text));
            }
        }
    }
    found
}

fn broken(file: &Path, line: Option<u64>, column: Option<u64>, what: String) -> Fault {
    let message = format!("{what}: correct it here, what was last read from this file stays as it was until then");
    Fault { file: file.to_path_buf(), line, column, kind: FaultKind::Broken, message }
}

/// The text of a parser's fault without the position that [`Fault`] has in fields of its own.
fn without_position(text: &str) -> String {
    let first_line = text.lines().next().unwrap_or(text);
    let cut = [" at line ", ": line ", " (line "].iter().filter_map(|mark| first_line.rfind(mark)).min().unwrap_or(first_line.len());
    let start = first_line.strip_prefix("error: ").map_or(0, |rest| first_line.len() - rest.len());
    first_line.get(start..cut).unwrap_or(first_line).trim_end_matches([':', ',', ' ']).to_owned()
}

/// Reads one YAML document that is not in a file, with the limits and the types of manifests.
///
/// # Errors
/// What is wrong and where, as text.
pub fn yaml_document(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match documents(text).len() {
        0 => Err("the document is empty".to_owned()),
        1 => yaml(text).map_err(|fault| {
            let place = fault.location().map(|place| format!("line {}, column {}: ", place.line(), place.column())).unwrap_or_default();
            format!("{place}{}", without_position(&fault.without_snippet().to_string()))
        }),
        many => Err(format!("{many} documents at once: send one at a time")),
    }
}

fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEEPEST, max_nodes: MOST_VALUES, max_events: 2 * MOST_VALUES, max_reader_input_bytes: None },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// One document of a YAML file.
struct Document<'t> {
    text: &'t str,
    /// The line of the file on which the text begins, from 1.
    first_line: u64,
    /// The first line that says something.
    content_line: u64,
}

/// Cuts a YAML file at its `---` lines, which cannot be part of any value. Empty documents are left out.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let mut begin = (0, 1);
    let mut content = None;
    // Directives (`%YAML 1.2`) belong to the document that the next `---` begins.
    let mut directives = false;
    let mut at = 0;
    for (number, line) in (1u64..).zip(text.split_inclusive('\n')) {
        let rest = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if rest.is_some() && !directives {
            found.extend(content.map(|content_line| Document { text: &text[begin.0..at], first_line: begin.1, content_line }));
            begin = (at, number);
            content = None;
        }
        directives &= rest.is_none();
        let says = rest.unwrap_or(line).trim();
        if content.is_none() && line.starts_with('%') {
            directives = true;
        } else if content.is_none() && !says.is_empty() && !says.starts_with('#') && says != "..." {
            content = Some(number);
        }
        at += line.len();
    }
    found.extend(content.map(|content_line| Document { text: &text[begin.0..], first_line: begin.1, content_line }));
    found
}

impl Manifests {
    fn take(&mut self, file: &Arc<Path>, line: u64, value: Value) {
        if value.is_null() {
            return;
        }
        let fault = |kind, message| Fault { file: file.to_path_buf(), line: Some(line), column: None, kind, message };
        let fields = match value {
            Value::Object(fields) => fields,
            other => {
                let message = format!("expected a resource with apiVersion, kind, metadata and spec, found {}", what(&other));
                return self.faults.push(fault(FaultKind::Broken, message));
            }
        };
        if let Some(of) = fields.get("kind").and_then(Value::as_str).and_then(|kind| kind.strip_suffix("List"))
            && fields.contains_key("items")
        {
            return self.take_list(file, line, of.to_owned(), fields);
        }
        match resource(file, fields) {
            Ok(object) => self.objects.push((line, Arc::new(object))),
            Err((kind, message)) => self.faults.push(fault(kind, message)),
        }
    }

    /// The items of a `List`, or of an `InferenceServiceList` and the like, whose items may leave their kind out.
    fn take_list(&mut self, file: &Arc<Path>, line: u64, of: String, mut fields: Map<String, Value>) {
        match fields.remove("items") {
            Some(Value::Array(items)) => {
                for mut item in items {
                    if let (Value::Object(item), false) = (&mut item, of.is_empty()) {
                        item.entry("kind").or_insert_with(|| of.clone().into());
                        if let Some(version) = fields.get("apiVersion") {
                            item.entry("apiVersion").or_insert_with(|| version.clone());
                        }
                    }
                    self.take(file, line, item);
                }
            }
            Some(Value::Null) | None => {}
            Some(other) => self.faults.push(Fault {
                file: file.to_path_buf(),
                line: Some(line),
                column: None,
                kind: FaultKind::Broken,
                message: format!("items must be a list, not {}", what(&other)),
            }),
        }
    }
}

type Refused = (FaultKind, String);

fn resource(file: &Arc<Path>, mut fields: Map<String, Value>) -> Result<Desired, Refused> {
    let bad = |message: String| (FaultKind::Broken, message);
    let kind = kind(&fields)?;
    let mut metadata = match fields.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return Err(bad(format!("metadata must be a mapping, not {}", what(&other)))),
        None => return Err(bad("metadata.name is missing: give the resource a name".to_owned())),
    };
    let name = text(&metadata, "metadata.", "name").map_err(bad)?;
    let name = name.ok_or_else(|| bad("metadata.name is missing: give the resource a name".to_owned()))?;
    let name = resource_name(name).map_err(|fault| bad(format!("metadata.name {name:?} {fault}")))?;
    let namespace = text(&metadata, "metadata.", "namespace").map_err(bad)?.filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let namespace = namespace_name(namespace).map_err(|fault| bad(format!("metadata.namespace {namespace:?} {fault}")))?;
    let labels = texts(&mut metadata, "labels").map_err(bad)?;
    let annotations = texts(&mut metadata, "annotations").map_err(bad)?;
    let spec = match fields.remove("spec") {
        Some(Value::Null) | None => Value::Object(Map::new()),
        Some(spec @ Value::Object(_)) => spec,
        Some(other) => return Err(bad(format!("spec must be a mapping, not {}", what(&other)))),
    };
    let key = ObjectKey { kind, namespace: kind.namespaced().then_some(namespace), name };
    let origin = Origin::Folder(Arc::clone(file));
    Ok(Desired { labels: labels.into(), annotations: annotations.into(), ..Desired::new(key, origin, &spec) })
}

fn kind(fields: &Map<String, Value>) -> Result<Kind, Refused> {
    let bad = |message: String| (FaultKind::Broken, message);
    let missing = |field: &str| bad(format!("{field} is missing: a resource begins with apiVersion and kind"));
    let kind = text(fields, "", "kind").map_err(bad)?.ok_or_else(|| missing("kind"))?;
    let version = text(fields, "", "apiVersion").map_err(bad)?.ok_or_else(|| missing("apiVersion"))?;
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match Kind::ALL.into_iter().find(|known| known.as_str() == kind && group == Kind::GROUP) {
        Some(known) if known.api_version() == version => Ok(known),
        Some(known) => Err(bad(format!("{kind} has apiVersion {}, not {version}", known.api_version()))),
        None => {
            let known = Kind::ALL.map(|kind| kind.as_str()).join(", ");
            Err((FaultKind::Ignored, format!("kind {kind} of {version} is ignored: the kinds read here are {known} of {}", Kind::GROUP)))
        }
    }
}

/// The text of a field; `None` when it is absent.
fn text<'f>(fields: &'f Map<String, Value>, parent: &str, field: &str) -> Result<Option<&'f str>, String> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(must_be_text(&format!("{parent}{field}"), other)),
    }
}

/// The mapping of texts in a field of the metadata, taken out; empty when it is absent.
fn texts(metadata: &mut Map<String, Value>, field: &str) -> Result<Map<String, Value>, String> {
    match metadata.remove(field) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(entries)) => match entries.iter().find(|(_, value)| !value.is_string()) {
            None => Ok(entries),
            Some((key, value)) => Err(must_be_text(&format!("metadata.{field}.{key}"), value)),
        },
        Some(other) => Err(format!("metadata.{field} must be a mapping, not {}", what(&other))),
    }
}

fn must_be_text(path: &str, value: &Value) -> String {
    match value {
        Value::Number(_) | Value::Bool(_) => format!("{path} must be text, not {}: write it in quotes, \"{value}\"", what(value)),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => format!("{path} must be text, not {}", what(value)),
    }
}

fn what(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::json;

    use super::*;

    fn keys(found: &Manifests) -> Vec<String> {
        found.objects.iter().map(|(line, object)| format!("{line} {}", object.key)).collect()
    }

    fn faults(found: &Manifests) -> Vec<String> {
        found.faults.iter().map(Fault::to_string).collect()
    }

    const ISVC: &str = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n";

    #[test]
    fn documents_lists_and_json_give_their_resources_in_order() {
        let yaml = format!(
            "# models\n---\n{ISVC}metadata: {{name: a}}\nspec: {{x: 1}}\n--- # second\n\n{ISVC}metadata: {{name: b.c, namespace: team}}\n\
             ---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: serving.kserve.io/v1alpha1\n  kind: Predictor\n  metadata: {{name: p}}\n\
             - apiVersion: serving.kserve.io/v1alpha1\n  kind: ClusterServingRuntime\n  metadata: {{name: r, namespace: ignored}}\n...\n"
        );
        let found = read(Path::new("m.yaml"), &yaml);
        assert_eq!(faults(&found), Vec::<String>::new());
        assert_eq!(
            keys(&found),
            ["3 InferenceService default/a", "9 InferenceService team/b.c", "14 Predictor default/p", "14 ClusterServingRuntime r"]
        );
        let json = json!({"apiVersion": "serving.kserve.io/v1alpha1", "kind": "PredictorList", "items": [{"metadata": {"name": "j"}}]});
        assert_eq!(keys(&read(Path::new("m.JSON"), &json.to_string())), ["1 Predictor default/j"]);
        assert_eq!(
            keys(&read(Path::new("m.yml"), &format!("\u{feff}%YAML 1.2\n---\n{ISVC}metadata: {{name: d}}\n"))),
            ["3 InferenceService default/d"]
        );
    }

    #[test]
    fn values_are_typed_as_kubernetes_types_them_and_status_is_left_out() {
        let yaml = format!(
            "{ISVC}metadata:\n  name: a\n  labels: {{tier: \"1\"}}\n  annotations: {{on: \"true\"}}\nstatus: {{x: 1}}\n\
             spec:\n  text: \"1\"\n  one: 1\n  half: 0.5\n  octal: 0755\n  yes: yes\n  none: ~\n  big: 18446744073709551615\n  block: |\n    --- no cut\n    end\n"
        );
        let found = read(Path::new("m.yaml"), &yaml);
        assert_eq!(faults(&found), Vec::<String>::new());
        let object = &found.objects[0].1;
        let expected =
            json!({"text": "1", "one": 1, "half": 0.5, "octal": 493, "yes": true, "none": null, "big": u64::MAX, "block": "--- no cut\nend\n"});
        assert_eq!(object.spec, expected);
        assert_eq!(object.labels, json!({"tier": "1"}));
        assert_eq!(object.origin, Origin::Folder(Path::new("m.yaml").into()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_what_to_do_and_the_rest_is_read() {
        let good = format!("---\n{ISVC}metadata: {{name: good}}\n");
        for (document, expected) in [
            ("kind: X\n  bad: [", "m.yaml:2:6: "),
            ("a: b\na: c", "m.yaml:2:1: "),
            ("just text", "m.yaml:1: expected a resource with apiVersion, kind, metadata and spec, found a text"),
            ("- 1", "m.yaml:1: expected a resource with apiVersion, kind, metadata and spec, found a list"),
            ("kind: InferenceService", "m.yaml:1: apiVersion is missing: a resource begins with apiVersion and kind"),
            ("apiVersion: v1", "m.yaml:1: kind is missing: a resource begins with apiVersion and kind"),
            (
                "apiVersion: v1\nkind: Secret",
                "m.yaml:1: kind Secret of v1 is ignored: the kinds read here are InferenceService, Predictor, ServingRuntime, ClusterServingRuntime of serving.kserve.io",
            ),
            (
                "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceService",
                "m.yaml:1: InferenceService has apiVersion serving.kserve.io/v1beta1, not serving.kserve.io/v1alpha1",
            ),
            ("ISVC", "m.yaml:1: metadata.name is missing: give the resource a name"),
            ("ISVCmetadata: []", "m.yaml:1: metadata must be a mapping, not a list"),
            ("ISVCmetadata: {name: 7}", "m.yaml:1: metadata.name must be text, not a number: write it in quotes, \"7\""),
            (
                "ISVCmetadata: {name: Bad_Name}",
                "m.yaml:1: metadata.name \"Bad_Name\" is not a DNS name: use lower-case letters, digits, dots and dashes, beginning and ending with a letter or digit",
            ),
            (
                "ISVCmetadata: {name: a, namespace: a.b}",
                "m.yaml:1: metadata.namespace \"a.b\" is not a DNS name: use lower-case letters, digits and dashes, beginning and ending with a letter or digit",
            ),
            (
                "ISVCmetadata: {name: a, labels: {tier: true}}",
                "m.yaml:1: metadata.labels.tier must be text, not a truth value: write it in quotes, \"true\"",
            ),
            ("ISVCmetadata: {name: a}\nspec: 3", "m.yaml:1: spec must be a mapping, not a number"),
            ("apiVersion: v1\nkind: List\nitems: 3", "m.yaml:1: items must be a list, not a number"),
        ] {
            let found = read(Path::new("m.yaml"), &format!("{}\n{good}", document.replace("ISVC", ISVC)));
            let [fault] = &faults(&found)[..] else { panic!("{document:?} gave {:?}", faults(&found)) };
            assert!(fault.starts_with(expected), "{document:?} gave {fault:?}, expected {expected:?}");
            assert!(!fault.contains('\n') && !fault.contains(" at line"), "{fault:?}");
            assert_eq!(found.objects.len(), 1, "{document:?}");
            assert_eq!(found.may_hide_objects(), !expected.contains("ignored"), "{document:?}");
        }
        let second = read(Path::new("m.yaml"), &format!("{good}---\nkind: X\n  bad: ["));
        assert!(faults(&second)[0].starts_with("m.yaml:7:6: "), "{:?}", faults(&second));
        let json = read(Path::new("m.json"), "{\n  \"kind\": }");
        assert_eq!(faults(&json), ["m.json:2:11: expected value: correct it here, what was last read from this file stays as it was until then"]);
    }

    #[test]
    fn a_document_of_its_own_is_read_as_in_a_file() {
        assert_eq!(yaml_document("# one\n---\na: yes\nb: 0755\n"), Ok(json!({"a": true, "b": 493})));
        assert_eq!(yaml_document(&json!({"a": [1, "x"]}).to_string()), Ok(json!({"a": [1, "x"]})));
        for (text, expected) in [
            ("", "the document is empty"),
            ("# nothing\n---\n", "the document is empty"),
            ("a: 1\n---\nb: 2\n", "2 documents at once: send one at a time"),
            ("# one\na: [\n", "line "),
        ] {
            let fault = yaml_document(text).expect_err(text);
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn a_document_that_unfolds_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let before = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb += &format!("a{n}: &a{n} [{before}]\n");
        }
        assert!(read(Path::new("m.yaml"), &bomb).may_hide_objects());
        let deep = "[".repeat(100_000);
        assert!(read(Path::new("m.yaml"), &deep).may_hide_objects());
        assert!(read(Path::new("m.json"), &deep).may_hide_objects());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn no_text_breaks_the_reader(text in "[-a-z{}\\[\\]:#&*!|>'\" \n%.]{0,60}") {
            let found = read(Path::new("m.yaml"), &text);
            prop_assert!(found.objects.is_empty());
        }

        #[test]
        fn every_resource_of_a_file_is_found_on_its_line(names in prop::collection::vec("[a-z]{1,8}", 1..8)) {
            let yaml: String = names.iter().map(|name| format!("---\n{ISVC}metadata: {{name: \"{name}\"}}\n")).collect();
            let found = read(Path::new("m.yaml"), &yaml);
            let expected: Vec<String> = (0..).zip(&names).map(|(n, name)| format!("{} InferenceService default/{name}", 4 * n + 2)).collect();
            prop_assert_eq!(keys(&found), expected);
        }
    }
}
