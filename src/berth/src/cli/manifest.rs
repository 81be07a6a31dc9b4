//! Reading the manifests that `apply -f` and `delete -f` name.
//!
//! Only what must be known to send a document somewhere is looked at: kind, namespace and name. Whether the rest is right
//! is the server's to say.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use berth_registry::Kind;
use serde_json::{Map, Value};

use super::fault::Fault;
use super::resource;

/// Documents nested deeper than this, or with more values than that, are refused.
const DEEPEST: usize = 64;
const MOST_VALUES: usize = 2_000_000;
/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

/// One resource of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// The file, for messages.
    pub(crate) file: String,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its namespace; `default` for kinds that have none.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The document, with the namespace filled in.
    pub(crate) resource: Value,
}

/// All resources of `files` in order, and what could not be read. `namespace` is for those that name none.
///
/// # Errors
/// Nothing: faults are told beside what could be read.
pub(crate) fn read(files: &[String], namespace: Option<&str>) -> (Vec<Document>, Vec<Fault>) {
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    for name in files {
        let texts = match texts(name) {
            Ok(texts) => texts,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        for (file, text) in texts {
            match text {
                Ok(text) => {
                    let (read, wrong) = split(&file, &text, namespace);
                    documents.extend(read);
                    faults.extend(wrong);
                }
                Err(fault) => faults.push(fault),
            }
        }
    }
    if documents.is_empty() && faults.is_empty() {
        faults.push(Fault::local("no objects passed: the files hold no document"));
    }
    (documents, faults)
}

type Text = (String, Result<String, Fault>);

/// The texts behind a word after `-f`.
fn texts(name: &str) -> Result<Vec<Text>, Fault> {
    if name == "-" {
        return Ok(vec![("STDIN".to_owned(), limited("STDIN", std::io::stdin().lock()))]);
    }
    let path = Path::new(name);
    let kind = fs::metadata(path).map_err(|fault| match fault.kind() {
        std::io::ErrorKind::NotFound => Fault::local(format!("the path {name:?} does not exist")),
        _ => Fault::local(format!("cannot read {name:?}: {fault}")),
    })?;
    if !kind.is_dir() {
        return Ok(vec![file(path)]);
    }
    let cannot = |fault: std::io::Error| Fault::local(format!("cannot list {name:?}: {fault}"));
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(path).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        if path.is_file() && ending.is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known)) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Fault::local(format!("no manifests in {name:?}: expected files *.yaml, *.yml or *.json in the folder itself")));
    }
    paths.sort();
    Ok(paths.iter().map(|path| file(path)).collect())
}

fn file(path: &Path) -> Text {
    let name = path.display().to_string();
    let text = match fs::File::open(path) {
        Ok(file) => limited(&name, file),
        Err(fault) => Err(Fault::local(format!("cannot read {name:?}: {fault}"))),
    };
    (name, text)
}

fn limited(name: &str, from: impl Read) -> Result<String, Fault> {
    let mut text = String::new();
    match from.take(LARGEST + 1).read_to_string(&mut text) {
        Err(fault) => Err(Fault::local(format!("cannot read {name:?}: {fault}"))),
        Ok(size) if size as u64 > LARGEST => Err(Fault::local(format!("{name:?} has more than {} MiB: no manifest is that large", LARGEST >> 20))),
        Ok(_) => Ok(text),
    }
}

/// The resources of one text: YAML documents, JSON values one after the other, and lists of them.
fn split(file: &str, text: &str, namespace: Option<&str>) -> (Vec<Document>, Vec<Fault>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let values = if text.trim_start().starts_with('{') { json(text) } else { yaml(text) };
    let values = match values {
        Ok(values) => values,
        Err(why) => return (Vec::new(), vec![Fault::local(format!("error parsing {file}: {why}"))]),
    };
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    for (number, value) in (1..).zip(values.into_iter().flat_map(items)) {
        match document(file, value, namespace) {
            Ok(document) => documents.push(document),
            Err(why) => faults.push(Fault::local(format!("{file}, resource {number}: {why}"))),
        }
    }
    (documents, faults)
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(|fault| fault.to_string())
}

fn yaml(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEEPEST, max_nodes: MOST_VALUES, max_events: 2 * MOST_VALUES, max_reader_input_bytes: None },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|fault| {
        let fault = fault.without_snippet().to_string();
        fault.lines().next().unwrap_or_default().to_owned()
    })
}

/// The items of a list, or the resource itself.
fn items(mut value: Value) -> Vec<Value> {
    let of = match value["kind"].as_str().and_then(|kind| kind.strip_suffix("List")) {
        Some(of) => of.to_owned(),
        None => return vec![value],
    };
    let version = value["apiVersion"].clone();
    let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return vec![value] };
    let whole = |mut item: Value| {
        if let (Value::Object(item), false) = (&mut item, of.is_empty()) {
            item.entry("kind").or_insert_with(|| of.clone().into());
            item.entry("apiVersion").or_insert_with(|| version.clone());
        }
        item
    };
    items.into_iter().map(whole).collect()
}

fn document(file: &str, mut resource: Value, namespace: Option<&str>) -> Result<Document, String> {
    let Value::Object(members) = &mut resource else {
        return Err("expected a resource with apiVersion, kind, metadata and spec".to_owned());
    };
    let word = |member: &str| members.get(member).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let kind = word("kind").ok_or("kind is missing: a resource begins with apiVersion and kind")?;
    let version = word("apiVersion").ok_or("apiVersion is missing: a resource begins with apiVersion and kind")?;
    let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind && known.api_version() == version);
    let known = known.ok_or_else(|| format!("no matches for kind {kind:?} in version {version:?}: {}", known_kinds()))?;
    let metadata = members.entry("metadata").or_insert_with(|| Map::new().into());
    let metadata = metadata.as_object_mut().ok_or("metadata must be a mapping")?;
    let name = match metadata.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(Value::Null | Value::String(_)) | None => return Err("metadata.name is missing: give the resource a name".to_owned()),
        Some(other) => return Err(format!("metadata.name must be text: write it in quotes, \"{other}\"")),
    };
    if !known.namespaced() {
        metadata.remove("namespace");
        return Ok(Document { file: file.to_owned(), kind: known, namespace: "default".to_owned(), name, resource });
    }
    let own = match metadata.get("namespace") {
        Some(Value::String(own)) if !own.is_empty() => Some(own.clone()),
        Some(Value::Null | Value::String(_)) | None => None,
        Some(other) => return Err(format!("metadata.namespace must be text: write it in quotes, \"{other}\"")),
    };
    let namespace = match (own, namespace) {
        (Some(own), Some(asked)) if own != asked => {
            return Err(format!(
                "the namespace from the provided object {own:?} does not match the namespace {asked:?}: pass --namespace={own}, or none"
            ));
        }
        (Some(own), _) => own,
        (None, asked) => asked.unwrap_or("default").to_owned(),
    };
    metadata.insert("namespace".to_owned(), namespace.clone().into());
    Ok(Document { file: file.to_owned(), kind: known, namespace, name, resource })
}

fn known_kinds() -> String {
    let known: Vec<String> = Kind::ALL.iter().map(|kind| format!("{} of {}", kind.as_str(), kind.api_version())).collect();
    format!("the kinds here are {}", known.join(", "))
}

impl Document {
    /// Whether `live` is already as this document wants it: labels, annotations and spec.
    pub(crate) fn is_as(&self, live: &Value) -> bool {
        // What is absent, null or empty is the same wish.
        let wish = |resource: &Value, path: &[&str]| {
            let found = path.iter().try_fold(resource, |value, member| value.get(member)).cloned().unwrap_or_default();
            if found.as_object().is_some_and(Map::is_empty) { Value::Null } else { found }
        };
        [&["metadata", "labels"][..], &["metadata", "annotations"], &["spec"]].iter().all(|path| wish(&self.resource, path) == wish(live, path))
    }

    /// `live` with labels, annotations and spec as this document wants them. Everything else stays: what the server
    /// keeps there, and the version, so that a change by somebody else in between is a conflict.
    pub(crate) fn onto(&self, mut live: Value) -> Value {
        let wanted = &self.resource;
        let metadata = &wanted["metadata"];
        for (member, value) in [("labels", metadata.get("labels")), ("annotations", metadata.get("annotations"))] {
            match value.filter(|value| !value.is_null()) {
                Some(value) => live["metadata"][member] = value.clone(),
                None => drop(live["metadata"].as_object_mut().and_then(|metadata| metadata.remove(member))),
            }
        }
        live["apiVersion"] = wanted["apiVersion"].clone();
        live["kind"] = wanted["kind"].clone();
        live["spec"] = wanted.get("spec").filter(|spec| !spec.is_null()).cloned().unwrap_or_else(|| Map::new().into());
        live
    }

    /// What is sent to make it: the document without what only a server may say.
    pub(crate) fn fresh(&self) -> Value {
        let mut fresh = self.resource.clone();
        if let Some(members) = fresh.as_object_mut() {
            members.remove("status");
        }
        if let Some(metadata) = fresh["metadata"].as_object_mut() {
            for member in ["resourceVersion", "uid", "generation", "creationTimestamp", "managedFields"] {
                metadata.remove(member);
            }
        }
        fresh
    }

    /// The name as answers print it.
    pub(crate) fn full_name(&self) -> String {
        super::kinds::full_name(self.kind, resource::name(&self.resource))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::resource::recorded;

    const ISVC: &str = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n";

    fn names(documents: &[Document]) -> Vec<String> {
        documents.iter().map(|document| format!("{} {}/{}", document.kind.as_str(), document.namespace, document.name)).collect()
    }

    fn split_well(text: &str) -> Vec<String> {
        let (documents, faults) = split("f", text, None);
        assert!(faults.is_empty(), "{faults:?}");
        names(&documents)
    }

    #[test]
    fn every_document_of_yaml_json_and_lists_is_found_in_order() {
        let yaml = format!("# models\n---\n{ISVC}metadata: {{name: a}}\n---\n# nothing\n---\n{ISVC}metadata: {{name: b, namespace: team}}\n");
        assert_eq!(split_well(&yaml), ["InferenceService default/a", "InferenceService team/b"]);
        let one = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": { "name": "p" } });
        assert_eq!(split_well(&format!("{one}\n{one}")), ["Predictor default/p", "Predictor default/p"]);
        let typed = json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "PredictorList", "items": [{ "metadata": { "name": "q" } }] });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [one] });
        assert_eq!(split_well(&format!("\u{feff} {typed}{list}")), ["Predictor default/q", "Predictor default/p"]);
        let runtime =
            "apiVersion: serving.kserve.io/v1alpha1\nkind: ClusterServingRuntime\nmetadata: {name: r, namespace: x}\nspec: {text: \"1\", n: 1}\n";
        let (documents, _) = split("f", runtime, None);
        assert_eq!(documents[0].resource["metadata"], json!({ "name": "r" }));
        assert_eq!(documents[0].resource["spec"], json!({ "text": "1", "n": 1 }));
    }

    #[test]
    fn what_cannot_be_sent_anywhere_is_told_and_the_rest_is_read() {
        for (document, why) in [
            ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}", "f, resource 1: no matches for kind \"Secret\" in version \"v1\""),
            ("kind: Predictor", "f, resource 1: apiVersion is missing"),
            ("apiVersion: v1", "f, resource 1: kind is missing"),
            ("just text", "f, resource 1: expected a resource with apiVersion, kind, metadata and spec"),
            ("ISVC", "f, resource 1: metadata.name is missing"),
            ("ISVCmetadata: 3", "f, resource 1: metadata must be a mapping"),
            ("ISVCmetadata: {name: 7}", "f, resource 1: metadata.name must be text: write it in quotes, \"7\""),
            ("ISVCmetadata: {name: a, namespace: 7}", "f, resource 1: metadata.namespace must be text: write it in quotes, \"7\""),
            (
                "ISVCmetadata: {name: a, namespace: other}",
                "f, resource 1: the namespace from the provided object \"other\" does not match the namespace \"team\"",
            ),
        ] {
            let text = format!("{}\n---\n{ISVC}metadata: {{name: good}}\n", document.replace("ISVC", ISVC));
            let (documents, faults) = split("f", &text, Some("team"));
            assert_eq!(names(&documents), ["InferenceService team/good"], "{document}");
            let [fault] = &faults[..] else { panic!("{document}: {faults:?}") };
            assert!(fault.to_string().starts_with(&format!("error: {why}")), "{document}: {fault}");
        }
    }

    #[test]
    fn a_text_that_is_neither_yaml_nor_json_is_told_with_its_place() {
        for text in ["a: b\n  c: [", "{\"kind\": }", "a: b\na: c"] {
            let (documents, faults) = split("f.yaml", text, None);
            assert!(documents.is_empty());
            let [fault] = &faults[..] else { panic!("{text}: {faults:?}") };
            let fault = fault.to_string();
            assert!(fault.starts_with("error: error parsing f.yaml: ") && fault.contains("line") && !fault.contains('\n'), "{fault}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(split("f", &deep, None).1.len(), 1);
    }

    #[test]
    fn files_folders_and_what_is_missing_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
        write("b.yaml", format!("{ISVC}metadata: {{name: b}}\n"));
        write("a.yml", format!("{ISVC}metadata: {{name: a}}\n"));
        write("c.JSON", json!({ "apiVersion": "serving.kserve.io/v1alpha1", "kind": "Predictor", "metadata": { "name": "c" } }).to_string());
        write("notes.txt", "not for us".to_owned());
        fs::create_dir(folder.path().join("empty")).expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (documents, faults) = read(&[path(""), path("b.yaml")], Some("team"));
        assert!(faults.is_empty(), "{faults:?}");
        let expected = ["InferenceService team/a", "InferenceService team/b", "Predictor team/c", "InferenceService team/b"];
        assert_eq!(names(&documents), expected);
        let (documents, faults) = read(&[path("x.yaml"), path("empty"), path("a.yml")], None);
        assert_eq!((documents.len(), faults.len()), (1, 2));
        assert!(faults[0].to_string().ends_with("x.yaml\" does not exist"), "{}", faults[0]);
        assert!(faults[1].to_string().starts_with("error: no manifests in"), "{}", faults[1]);
        write("none.yaml", "# nothing\n".to_owned());
        assert!(read(&[path("none.yaml")], None).1[0].to_string().contains("no objects passed"));
    }

    #[test]
    fn an_update_takes_labels_annotations_and_spec_and_keeps_what_is_the_servers() {
        let live = recorded::loaded("iris");
        let of = |resource: &Value| document("f", resource.clone(), None).expect("a document");
        let same = of(&live);
        assert!(same.is_as(&live));
        let mut wanted = live.clone();
        wanted["metadata"] = json!({ "name": "iris", "labels": { "tier": "gold" } });
        wanted["spec"]["predictor"]["model"]["storage"]["path"] = "other".into();
        let wanted = of(&wanted);
        assert!(!wanted.is_as(&live));
        let put = wanted.onto(live.clone());
        assert!(wanted.is_as(&put));
        assert_eq!(put["metadata"]["resourceVersion"], "12");
        assert_eq!(put["metadata"].get("annotations"), None);
        let fresh = same.fresh();
        assert_eq!((fresh.get("status"), fresh["metadata"].get("uid")), (None, None));
        // No spec at all is the same wish as an empty one.
        let bare = of(&json!({ "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": { "name": "x" } }));
        assert!(bare.is_as(&json!({ "metadata": { "name": "x", "labels": {} }, "spec": {} })));
    }
}
