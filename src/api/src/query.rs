//! What a client adds to a path: selectors, pages, and whether to watch.

use std::num::NonZeroUsize;
use std::time::Duration;

use berth_registry::Object;

/// The parameters of a read. Parameters of Kubernetes that change nothing here (`resourceVersionMatch`,
/// `pretty`) are ignored, as a server may.
#[derive(Debug, Default)]
pub(crate) struct Query {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
    /// Objects on a page; `None` for all.
    pub(crate) limit: Option<NonZeroUsize>,
    pub(crate) after: Option<Continue>,
    pub(crate) watch: bool,
    /// The client takes lines of a watch that tell of no change.
    pub(crate) bookmarks: bool,
    /// The version that the client has seen; `None` when it has seen nothing.
    pub(crate) resource_version: Option<u64>,
    /// How long a watch may last.
    pub(crate) timeout: Option<Duration>,
}

impl Query {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// A text that names the parameter and what it may be.
    pub(crate) fn read(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut query = Query::default();
        for (name, value) in parameters {
            let wrong = |expected: &str| format!("{name}={value}: expected {expected}");
            match name.as_str() {
                "labelSelector" => query.labels = requirements(value)?,
                "fieldSelector" => query.fields = field_requirements(value)?,
                "limit" => query.limit = NonZeroUsize::new(value.parse().map_err(|_| wrong("a number, 0 for no limit"))?),
                "continue" if value.is_empty() => {}
                "continue" => query.after = Some(Continue::read(value).ok_or_else(|| wrong("what the page before gave"))?),
                "watch" => query.watch = truth(value).ok_or_else(|| wrong("true or false"))?,
                "allowWatchBookmarks" => query.bookmarks = truth(value).ok_or_else(|| wrong("true or false"))?,
                "resourceVersion" => {
                    let version = if value.is_empty() { 0 } else { value.parse().map_err(|_| wrong("a version that this server gave"))? };
                    query.resource_version = Some(version).filter(|version| *version > 0);
                }
                "timeoutSeconds" => query.timeout = Some(Duration::from_secs(value.parse().map_err(|_| wrong("seconds"))?)),
                _ => {}
            }
        }
        Ok(query)
    }

    /// True when the selectors choose this object.
    pub(crate) fn chooses(&self, object: &Object) -> bool {
        self.labels.iter().all(|requirement| requirement.holds(object)) && self.fields.iter().all(|requirement| requirement.holds(object))
    }
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "true" | "1" | "" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Where a page ended: the version of the first page, and the last object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Continue {
    pub(crate) version: u64,
    /// Namespace (empty for cluster-wide kinds) and name.
    pub(crate) last: (String, String),
}

impl Continue {
    pub(crate) fn write(&self) -> String {
        format!("{}:{}:{}", self.version, self.last.0, self.last.1)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let version = parts.next()?.parse().ok()?;
        Some(Continue { version, last: (parts.next()?.to_owned(), parts.next()?.to_owned()) })
    }
}

/// One requirement of a label selector. As in Kubernetes, those that exclude values hold for objects without the label.
#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    rule: Rule,
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Requirement {
    fn holds(&self, object: &Object) -> bool {
        let labels = object.labels.members();
        let value = labels.get(&self.key).and_then(serde_json::Value::as_str);
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &self.rule {
            Rule::Exists => value.is_some(),
            Rule::Absent => value.is_none(),
            Rule::In(values) => among(values),
            Rule::NotIn(values) => !among(values),
        }
    }
}

/// Cuts at commas that are not inside parentheses.
fn cut_at_commas(selector: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0i32, 0, Vec::new());
    for (at, c) in selector.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&selector[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&selector[begin..]);
    parts
}

fn requirements(selector: &str) -> Result<Vec<Requirement>, String> {
    if selector.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parse = |part: &str| {
        requirement(part.trim()).ok_or_else(|| {
            format!(
                "labelSelector: cannot read {part:?}: write key, !key, key=value, key!=value, key in (a, b) or key notin (a, b), joined by commas"
            )
        })
    };
    cut_at_commas(selector).into_iter().map(parse).collect()
}

fn requirement(part: &str) -> Option<Requirement> {
    let word = |text: &str| {
        let text = text.trim();
        let fine = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        fine.then(|| text.to_owned())
    };
    let key = |text: &str| word(text).filter(|key| !key.is_empty());
    if let Some(absent) = part.strip_prefix('!') {
        return Some(Requirement { key: key(absent)?, rule: Rule::Absent });
    }
    if let Some((left, right)) = part.split_once("!=") {
        return Some(Requirement { key: key(left)?, rule: Rule::NotIn(vec![word(right)?]) });
    }
    if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(Requirement { key: key(left)?, rule: Rule::In(vec![word(right)?]) });
    }
    if let Some((left, values)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let values: Vec<String> = values.split(',').map(word).collect::<Option<_>>()?;
        let (left, rule) = match left.trim().rsplit_once(char::is_whitespace)? {
            (left, "in") => (left, Rule::In(values)),
            (left, "notin") => (left, Rule::NotIn(values)),
            _ => return None,
        };
        return Some(Requirement { key: key(left)?, rule });
    }
    Some(Requirement { key: key(part)?, rule: Rule::Exists })
}

/// The fields that every server can select by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

#[derive(Debug, PartialEq, Eq)]
struct FieldRequirement {
    field: Field,
    equal: bool,
    value: String,
}

impl FieldRequirement {
    fn holds(&self, object: &Object) -> bool {
        let value = match self.field {
            Field::Name => object.key.name.as_str(),
            Field::Namespace => object.key.namespace.as_ref().map_or("", |namespace| namespace.as_str()),
        };
        (value == self.value) == self.equal
    }
}

fn field_requirements(selector: &str) -> Result<Vec<FieldRequirement>, String> {
    let parse = |part: &str| {
        let (left, equal, right) = match (part.split_once("!="), part.split_once("==").or_else(|| part.split_once('='))) {
            (Some((left, right)), _) => (left, false, right),
            (None, Some((left, right))) => (left, true, right),
            (None, None) => return Err(format!("fieldSelector: cannot read {part:?}: write field=value or field!=value")),
        };
        let field = match left.trim() {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            other => return Err(format!("fieldSelector: cannot select by {other:?}, only by metadata.name and metadata.namespace")),
        };
        Ok(FieldRequirement { field, equal, value: right.trim().to_owned() })
    };
    selector.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use berth_registry::{Desired, Kind, ObjectKey, Origin};
    use berth_types::{Name, Namespace};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::json;

    use super::*;

    fn object(labels: &[(&str, &str)]) -> Object {
        let key = ObjectKey { kind: Kind::Predictor, namespace: Some(Namespace::new("team").unwrap()), name: Name::new("a").unwrap() };
        let labels: serde_json::Map<String, serde_json::Value> = labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        Object::unsaved(Desired { labels: labels.into(), ..Desired::new(key, Origin::Api, &json!({})) })
    }

    fn query(parameters: &[(&str, &str)]) -> Result<Query, String> {
        Query::read(&parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn selectors_choose_what_kubernetes_would_choose() {
        let object = object(&[("app.io/tier", "gold"), ("zone", "")]);
        for (selector, chosen) in [
            ("", true),
            ("app.io/tier", true),
            ("tier", false),
            ("!tier", true),
            ("!zone", false),
            ("app.io/tier=gold", true),
            ("app.io/tier == gold , zone", true),
            ("app.io/tier=silver", false),
            ("app.io/tier!=silver", true),
            ("tier!=silver", true),
            ("zone=", true),
            ("app.io/tier in (silver, gold)", true),
            ("app.io/tier in (silver),zone", false),
            ("app.io/tier notin (silver,bronze)", true),
            ("tier notin (gold)", true),
            ("app.io/tier notin (gold)", false),
        ] {
            assert_eq!(query(&[("labelSelector", selector)]).map(|query| query.chooses(&object)), Ok(chosen), "{selector}");
        }
        for (selector, chosen) in [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.name==a,metadata.namespace=team", true),
            ("metadata.namespace=x", false),
            ("", true),
        ] {
            assert_eq!(query(&[("fieldSelector", selector)]).map(|query| query.chooses(&object)), Ok(chosen), "{selector}");
        }
    }

    #[test]
    fn a_parameter_that_cannot_be_read_is_named() {
        for (name, value, expected) in [
            ("labelSelector", "a b", "labelSelector: cannot read \"a b\""),
            ("labelSelector", "a in (b", "labelSelector: cannot read \"a in (b\""),
            ("labelSelector", "a,,b", "labelSelector: cannot read \"\""),
            ("labelSelector", "=b", "labelSelector: cannot read \"=b\""),
            ("fieldSelector", "spec.x=1", "fieldSelector: cannot select by \"spec.x\""),
            ("fieldSelector", "metadata.name", "fieldSelector: cannot read \"metadata.name\""),
            ("limit", "-1", "limit=-1: expected a number"),
            ("continue", "x", "continue=x: expected what the page before gave"),
            ("watch", "maybe", "watch=maybe: expected true or false"),
            ("resourceVersion", "abc", "resourceVersion=abc: expected a version"),
            ("timeoutSeconds", "1h", "timeoutSeconds=1h: expected seconds"),
        ] {
            let fault = query(&[(name, value)]).expect_err(value);
            assert!(fault.starts_with(expected), "{fault}");
        }
    }

    #[test]
    fn what_is_absent_or_unknown_changes_nothing() {
        let query =
            query(&[("pretty", "true"), ("resourceVersion", "0"), ("limit", "0"), ("continue", ""), ("allowWatchBookmarks", "true")]).unwrap();
        assert!(query.limit.is_none() && query.after.is_none() && query.resource_version.is_none() && !query.watch);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Default::default() })]

        #[test]
        fn no_selector_breaks_the_reader(text in "[a-c!=(), in]{0,24}") {
            if let Ok(query) = query(&[("labelSelector", &text)]) {
                let _ = query.chooses(&object(&[("a", "b")]));
            }
        }

        #[test]
        fn where_a_page_ended_is_read_as_it_was_written(version: u64, namespace in "[a-z]{0,5}", name in "[a-z.]{1,5}") {
            let end = Continue { version, last: (namespace, name) };
            prop_assert_eq!(Continue::read(&end.write()), Some(end));
        }
    }
}
