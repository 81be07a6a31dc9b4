//! `berth describe`: one resource for a person to read, the spec's essentials, how it stands and why.

use std::fmt::Write as _;

use berth_registry::Kind;
use berth_types::UnixMillis;
use serde_json::Value;

use super::age::age;
use super::downloads::Downloads;
use super::drifts::{Drift, Drifts};
use super::memory::Footprints;
use super::output::plain;
use super::resource::{self, Model, Standing, text};

/// Shown where a resource says nothing.
const NONE: &str = "<none>";

/// What is told of models beside their resources.
#[derive(Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// What is being fetched.
    pub(crate) downloads: &'a Downloads,
    /// Who serves other bytes.
    pub(crate) drifts: &'a Drifts,
    /// Who has which memory.
    pub(crate) memory: &'a Footprints,
}

/// The text about `resource` at `now`.
pub(crate) fn describe(kind: Kind, resource: &Value, beside: Beside<'_>, now: UnixMillis) -> String {
    let mut page = Page::default();
    page.field("Name", resource::name(resource));
    if kind.namespaced() {
        page.field("Namespace", resource::namespace(resource).unwrap_or(NONE));
    }
    page.field("Kind", kind.as_str());
    page.pairs("Labels", &resource["metadata"]["labels"]);
    page.pairs("Annotations", &resource["metadata"]["annotations"]);
    page.time("Created", text(resource, &["metadata", "creationTimestamp"]), now);
    match kind {
        Kind::InferenceService | Kind::Predictor => model(&mut page, kind, resource, beside, now),
        Kind::ServingRuntime | Kind::ClusterServingRuntime => runtime(&mut page, &resource["spec"]),
    }
    page.text
}

fn model(page: &mut Page, kind: Kind, resource: &Value, beside: Beside<'_>, now: UnixMillis) {
    let Beside { downloads, drifts, memory } = beside;
    if !resource::is_managed(kind, resource) {
        page.field(
            "Managed",
            "no, it is left alone: only InferenceServices with the annotation serving.kserve.io/deploymentMode: ModelMesh are served",
        );
    }
    let (asked, standing) = (Model::of(kind, resource), Standing::of(kind, resource));
    page.section("Model", |page| {
        let version = asked.version.map(|version| format!(" {version}")).unwrap_or_default();
        page.field("Format", &format!("{}{version}", asked.format.unwrap_or(NONE)));
        page.field("Runtime", asked.runtime.unwrap_or("any that lists the format"));
        if let Some(protocol) = asked.protocol {
            page.field("Protocol", protocol);
        }
        if asked.storage.is_empty() {
            page.field("Storage", NONE);
        } else {
            page.section("Storage", |page| asked.storage.iter().for_each(|(label, value)| page.field(label, value)));
        }
    });
    page.section("Status", |page| {
        page.field("State", standing.state.unwrap_or(NONE));
        page.field("Target", standing.target.unwrap_or(NONE));
        page.field("Transition", standing.transition.unwrap_or(NONE));
        if let Some(download) = downloads.of(kind, resource) {
            page.field("Download", &format!("{}, {}", download.summary, download.model));
        }
        page.field(if kind == Kind::Predictor { "Available" } else { "Ready" }, standing.ready);
        page.field("Copies", &format!("{} loaded, {} failed", standing.copies, standing.failed));
        for held in memory.of(kind, resource) {
            page.field("Memory", held);
        }
        page.field("gRPC", standing.grpc.unwrap_or(NONE));
        page.field("REST", standing.rest.unwrap_or(NONE));
    });
    let conditions = resource["status"]["conditions"].as_array().into_iter().flatten();
    let lines: Vec<[String; 4]> = conditions
        .map(|condition| {
            let cell = |member| plain(text(condition, &[member]).unwrap_or("-"));
            let since = age(text(condition, &["lastTransitionTime"]), now);
            let why = [text(condition, &["reason"]), text(condition, &["message"])].into_iter().flatten().map(plain).collect::<Vec<_>>().join(": ");
            [cell("type"), cell("status"), since, why]
        })
        .collect();
    if !lines.is_empty() {
        page.lines("Conditions", &["TYPE", "STATUS", "SINCE", "WHY"], &lines);
    }
    let drifts = drifts.of(kind, resource);
    if !drifts.is_empty() {
        page.section("Content drift", |page| drifts.iter().for_each(|drift| drifted(page, drift, now)));
    }
    let Some(failure) = standing.failure else { return page.field("Last failure", NONE) };
    page.section("Last failure", |page| {
        let model = text(failure, &["modelId"]).or_else(|| text(failure, &["modelRevisionName"]));
        for (label, value) in [("Reason", text(failure, &["reason"])), ("Location", text(failure, &["location"])), ("Model", model)] {
            if let Some(value) = value {
                page.field(label, value);
            }
        }
        if let Some(time) = text(failure, &["time"]) {
            page.time("Time", Some(time), now);
        }
        page.field("Message", text(failure, &["message"]).unwrap_or(NONE));
    });
}

/// A pod that serves other bytes than the first good ones.
fn drifted(page: &mut Page, drift: &Drift, now: UnixMillis) {
    page.field("Pod", &drift.pod);
    page.field("Model", &drift.model);
    page.time("Since", drift.since.as_deref(), now);
    page.field("Message", &drift.summary);
}

fn runtime(page: &mut Page, spec: &Value) {
    let flag = |member: &str| if spec[member].as_bool().unwrap_or(false) { "yes" } else { "no" };
    page.field("Disabled", flag("disabled"));
    page.field("Multi-model", flag("multiModel"));
    let names = |member: &str| {
        let items = spec[member].as_array().into_iter().flatten();
        let names: Vec<&str> = items.filter_map(|item| item.as_str().or_else(|| text(item, &["name"]))).collect();
        if names.is_empty() { NONE.to_owned() } else { names.join(", ") }
    };
    page.field("Protocols", &names("protocolVersions"));
    page.field("Containers", &names("containers"));
    let formats: Vec<[String; 3]> = spec["supportedModelFormats"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|format| {
            let cell = |member| plain(text(format, &[member]).unwrap_or("-"));
            let chosen = if format["autoSelect"].as_bool().unwrap_or(false) { "yes" } else { "only by name" };
            [cell("name"), cell("version"), chosen.to_owned()]
        })
        .collect();
    if formats.is_empty() {
        page.field("Formats", NONE);
    } else {
        page.lines("Formats", &["NAME", "VERSION", "SELECTED"], &formats);
    }
}

/// Text with labels in one column and values in another, sections indented.
#[derive(Default)]
struct Page {
    text: String,
    depth: usize,
}

impl Page {
    /// Where values begin, on every level.
    const VALUES: usize = 16;

    fn field(&mut self, label: &str, value: &str) {
        let label = format!("{}{label}:", "  ".repeat(self.depth));
        let _ = writeln!(self.text, "{}", format!("{label:<width$}{}", plain(value), width = Self::VALUES).trim_end());
    }

    fn time(&mut self, label: &str, time: Option<&str>, now: UnixMillis) {
        match time {
            Some(time) => self.field(label, &format!("{time} ({} ago)", age(Some(time), now))),
            None => self.field(label, NONE),
        }
    }

    /// The members of a map of texts, one below the other.
    fn pairs(&mut self, label: &str, map: &Value) {
        let pairs: Vec<String> =
            map.as_object().into_iter().flatten().map(|(name, value)| format!("{name}: {}", value.as_str().unwrap_or_default())).collect();
        if pairs.is_empty() {
            return self.field(label, NONE);
        }
        for (at, pair) in pairs.iter().enumerate() {
            match at {
                0 => self.field(label, pair),
                _ => {
                    let _ = writeln!(self.text, "{:width$}{}", "", plain(pair), width = Self::VALUES);
                }
            }
        }
    }

    fn section(&mut self, label: &str, inside: impl FnOnce(&mut Self)) {
        let _ = writeln!(self.text, "{}{label}:", "  ".repeat(self.depth));
        self.depth += 1;
        inside(self);
        self.depth -= 1;
    }

    fn lines<const N: usize>(&mut self, label: &str, heads: &[&str; N], lines: &[[String; N]]) {
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).chain([heads[at].len()]).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        self.section(label, |page| {
            let heads = heads.map(str::to_owned);
            for line in std::iter::once(&heads).chain(lines) {
                let cells: String = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
                let _ = writeln!(page.text, "{}{}", "  ".repeat(page.depth), cells.trim_end());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::resource::recorded;

    const NOW: UnixMillis = UnixMillis(1_795_333_424_000);

    fn beside<'a>(downloads: &'a Downloads, drifts: &'a Drifts, memory: &'a Footprints) -> Beside<'a> {
        Beside { downloads, drifts, memory }
    }

    fn describe(kind: Kind, resource: &Value, now: UnixMillis) -> String {
        super::describe(kind, resource, beside(&Downloads::default(), &Drifts::default(), &Footprints::default()), now)
    }

    #[test]
    fn a_service_is_told_with_its_conditions() {
        assert_eq!(
            describe(Kind::InferenceService, &recorded::loaded("iris"), NOW),
            "\
Name:           iris
Namespace:      default
Kind:           InferenceService
Labels:         <none>
Annotations:    serving.kserve.io/deploymentMode: ModelMesh
Created:        2026-11-22T07:40:34Z (3m10s ago)
Model:
  Format:       onnx 1
  Runtime:      any that lists the format
  Storage:
    Key:        quickstart
    Path:       iris
Status:
  State:        Loaded
  Target:       <none>
  Transition:   UpToDate
  Ready:        True
  Copies:       1 loaded, 0 failed
  gRPC:         grpc://127.0.0.1:8033
  REST:         http://127.0.0.1:8008
Conditions:
  TYPE            STATUS  SINCE  WHY
  PredictorReady  True    2m
  Ready           True    2m
Last failure:   <none>
"
        );
    }

    #[test]
    fn a_download_is_told_with_the_version_that_is_fetched() {
        let mut service = recorded::loaded("iris");
        service["status"]["modelStatus"]["states"]["targetModelState"] = "Loading".into();
        let item = json!({ "model": "iris__isvc-2", "kind": "InferenceService", "name": "iris", "summary": "45% (1.2 of 2.6 GiB)" });
        let downloads = Downloads::read(&json!({ "items": [item] }));
        let text = super::describe(Kind::InferenceService, &service, beside(&downloads, &Drifts::default(), &Footprints::default()), NOW);
        let status =
            "\n  Target:       Loading\n  Transition:   UpToDate\n  Download:     45% (1.2 of 2.6 GiB), iris__isvc-2\n  Ready:        True\n";
        assert!(text.contains(status), "{text}");
    }

    #[test]
    fn content_drift_is_told_with_the_pods_that_serve_other_bytes() {
        let item = |kind: &str, pod: &str| json!({ "model": "iris__isvc-2", "kind": kind, "name": "iris", "pod": pod, "since": "2026-11-22T07:43:14Z", "summary": "serves b" });
        let drifts = Drifts::read(&json!({ "items": [item("InferenceService", "p2"), item("Predictor", "p3"), { "pod": "strange" }] }));
        let text =
            super::describe(Kind::InferenceService, &recorded::loaded("iris"), beside(&Downloads::default(), &drifts, &Footprints::default()), NOW);
        let drift = "
Content drift:
  Pod:          p2
  Model:        iris__isvc-2
  Since:        2026-11-22T07:43:14Z (30s ago)
  Message:      serves b
Last failure:   <none>
";
        assert!(text.ends_with(drift), "{text}");
    }

    #[test]
    fn what_a_model_takes_is_told_with_its_memory_and_where_the_number_is_from() {
        let item = json!({ "model": "iris__isvc-2", "kind": "InferenceService", "name": "iris", "summary": "3 GiB gpu:0 (measured)" });
        let memory = Footprints::read(&json!({ "items": [item] }));
        let text =
            super::describe(Kind::InferenceService, &recorded::loaded("iris"), beside(&Downloads::default(), &Drifts::default(), &memory), NOW);
        assert!(text.contains("\n  Copies:       1 loaded, 0 failed\n  Memory:       3 GiB gpu:0 (measured), iris__isvc-2\n"), "{text}");
    }

    #[test]
    fn a_failure_is_told_with_where_when_and_why() {
        let text = describe(Kind::Predictor, &recorded::blocked(), NOW);
        let failure = "\
Last failure:
  Reason:       ModelLoadFailed
  Location:     d4f-abcdefgh
  Model:        mnist__ksp-0123456789
  Time:         2026-11-22T07:43:14Z (30s ago)
  Message:      no such object
";
        assert!(text.ends_with(failure), "{text}");
        assert!(text.contains("\n  Format:       tensorflow 1.15\n  Runtime:      triton-2.x\n"), "{text}");
        assert!(text.contains("\n  Available:    True\n  Copies:       2 loaded, 1 failed\n"), "{text}");
    }

    #[test]
    fn a_runtime_is_told_with_what_it_loads() {
        let text = describe(Kind::ClusterServingRuntime, &recorded::runtime(), NOW);
        let formats = "\
Disabled:       no
Multi-model:    yes
Protocols:      grpc-v2, v2
Containers:     embedded
Formats:
  NAME  VERSION  SELECTED
  onnx  1        yes
";
        assert!(text.ends_with(formats), "{text}");
        assert!(!text.contains("Namespace"), "{text}");
    }

    #[test]
    fn a_service_that_is_not_for_us_says_why() {
        let mut other = recorded::loaded("iris");
        other["metadata"]["annotations"] = Value::Null;
        assert!(
            describe(Kind::InferenceService, &other, NOW)
                .contains("Managed:        no, it is left alone: only InferenceServices with the annotation")
        );
    }
}
