//! The table of `berth get`: columns by kind, cells from a resource, widths from what there is.

use berth_registry::Kind;
use berth_types::UnixMillis;
use serde_json::Value;

use super::age::age;
use super::downloads::Downloads;
use super::kinds::full_name;
use super::output::plain;
use super::resource::{self, Model, Standing, UNMANAGED, text};

/// What the table shows of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// With URL, RUNTIME and FAILURE.
    pub(crate) wide: bool,
    /// With NAMESPACE.
    pub(crate) namespaces: bool,
    /// Names with their kind, where several kinds are shown.
    pub(crate) kinds: bool,
    /// With PROGRESS, how far downloads are: once there is something to show.
    pub(crate) progress: bool,
}

/// Shown where there is nothing to show.
const NOTHING: &str = "-";
/// The head of how far downloads are.
const PROGRESS: &str = "PROGRESS";
/// Between two columns.
const GAP: &str = "   ";

/// The heads of the columns of `kind`.
fn columns(kind: Kind, look: Look) -> Vec<&'static str> {
    let mut columns = Vec::new();
    if look.namespaces && kind.namespaced() {
        columns.push("NAMESPACE");
    }
    columns.push("NAME");
    match kind {
        Kind::InferenceService | Kind::Predictor => {
            let ready = if kind == Kind::Predictor { "AVAILABLE" } else { "READY" };
            columns.extend(["TYPE", ready, "STATE", "TARGET", "TRANSITION", "COPIES", "AGE"]);
            if look.progress {
                columns.push(PROGRESS);
            }
            if look.wide {
                columns.extend(["URL", "RUNTIME", "FAILURE"]);
            }
        }
        Kind::ServingRuntime | Kind::ClusterServingRuntime => {
            columns.extend(["DISABLED", "MODELTYPE", "CONTAINERS", "AGE"]);
            if look.wide {
                columns.push("PROTOCOLS");
            }
        }
    }
    columns
}

/// How wide a column is at least while changes are awaited: the states that will come must fit.
fn room_for_changes(column: &str) -> usize {
    match column {
        "READY" => "Unknown".len(),
        "STATE" | "TARGET" => "FailedToLoad".len(),
        "TRANSITION" => "BlockedByFailedLoad".len(),
        "AGE" => "59m59s".len(),
        PROGRESS => "99% (999.9 of 999.9 MiB, 999.9 MiB/s, 59s left)".len(),
        _ => 0,
    }
}

/// The cells of `resource`, one for each column. What is gone says so where its state was.
fn cells(kind: Kind, resource: &Value, downloads: &Downloads, look: Look, now: UnixMillis, gone: bool) -> Vec<String> {
    let mut cells = Vec::new();
    if look.namespaces && kind.namespaced() {
        cells.push(resource::namespace(resource).unwrap_or(NOTHING).to_owned());
    }
    let name = resource::name(resource);
    cells.push(if look.kinds { full_name(kind, name) } else { name.to_owned() });
    let age = age(text(resource, &["metadata", "creationTimestamp"]), now);
    match kind {
        Kind::InferenceService | Kind::Predictor => {
            let (standing, model) = (Standing::of(kind, resource), Model::of(kind, resource));
            let managed = resource::is_managed(kind, resource);
            let state = match (gone, managed) {
                (true, _) => "Deleted",
                (false, true) => standing.state.unwrap_or(NOTHING),
                (false, false) => UNMANAGED,
            };
            let ready = match (kind, standing.ready) {
                (Kind::Predictor, "True") => "true",
                (Kind::Predictor, "False") => "false",
                (_, other) => other,
            };
            let or_nothing = |text: Option<&str>| text.unwrap_or(NOTHING).to_owned();
            cells.extend([or_nothing(model.format), ready.to_owned(), state.to_owned(), or_nothing(standing.target)]);
            cells.extend([or_nothing(standing.transition), standing.copies.to_string(), age]);
            if look.progress {
                let download = downloads.of(kind, resource).filter(|_| !gone);
                cells.push(or_nothing(download.map(|download| download.summary.as_str())));
            }
            if look.wide {
                cells.extend([or_nothing(standing.grpc.or(standing.rest)), or_nothing(model.runtime)]);
                cells.push(standing.failure_line().unwrap_or_else(|| NOTHING.to_owned()));
            }
        }
        Kind::ServingRuntime | Kind::ClusterServingRuntime => {
            let spec = &resource["spec"];
            let names = |member: &str| {
                let items = spec[member].as_array().into_iter().flatten();
                let names: Vec<&str> = items.filter_map(|item| item.as_str().or_else(|| text(item, &["name"]))).collect();
                if names.is_empty() { NOTHING.to_owned() } else { names.join(",") }
            };
            let disabled = spec["disabled"].as_bool().unwrap_or(false);
            cells.extend([disabled.to_string(), names("supportedModelFormats"), names("containers"), age]);
            if look.wide {
                cells.push(names("protocolVersions"));
            }
        }
    }
    cells.iter().map(|cell| plain(cell)).collect()
}

/// A table of one kind, which can go on growing line by line.
pub(crate) struct Table {
    kind: Kind,
    look: Look,
    widths: Vec<usize>,
}

impl Table {
    /// A table of resources that are all there, and its text; without `heads` only the lines.
    pub(crate) fn of(kind: Kind, resources: &[Value], downloads: &Downloads, look: Look, now: UnixMillis, heads: bool) -> (Self, String) {
        Table::with(kind, resources, downloads, look, now, heads, |_column| 0)
    }

    /// The same, with room for the states that are awaited.
    pub(crate) fn growing(kind: Kind, resources: &[Value], downloads: &Downloads, look: Look, now: UnixMillis, heads: bool) -> (Self, String) {
        Table::with(kind, resources, downloads, look, now, heads, room_for_changes)
    }

    fn with(
        kind: Kind,
        resources: &[Value],
        downloads: &Downloads,
        look: Look,
        now: UnixMillis,
        heads: bool,
        least: fn(&str) -> usize,
    ) -> (Self, String) {
        let look = Look { progress: look.progress || resources.iter().any(|resource| downloads.of(kind, resource).is_some()), ..look };
        let columns = columns(kind, look);
        let rows: Vec<Vec<String>> = resources.iter().map(|resource| cells(kind, resource, downloads, look, now, false)).collect();
        let head = |column: &str| if heads { column.len() } else { 0 };
        let mut widths: Vec<usize> = columns.iter().map(|column| least(column).max(head(column))).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let table = Table { kind, look, widths };
        let mut text = String::new();
        if heads {
            text += &table.row(&columns);
        }
        for row in &rows {
            text += &table.row(row);
        }
        (table, text)
    }

    /// Makes room for how far downloads are. True when there was none before: then the heads are due again.
    pub(crate) fn show_progress(&mut self) -> bool {
        if std::mem::replace(&mut self.look.progress, true) {
            return false;
        }
        let at = columns(self.kind, self.look).iter().position(|column| *column == PROGRESS);
        if let Some(at) = at {
            self.widths.insert(at, room_for_changes(PROGRESS));
        }
        at.is_some()
    }

    /// The line of a resource that changed, or is gone.
    pub(crate) fn line(&self, resource: &Value, downloads: &Downloads, now: UnixMillis, gone: bool) -> String {
        self.row(&cells(self.kind, resource, downloads, self.look, now, gone))
    }

    /// The line of heads, where it is due again.
    pub(crate) fn heads(&self) -> String {
        self.row(&columns(self.kind, self.look))
    }

    fn row(&self, cells: &[impl AsRef<str>]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().map(AsRef::as_ref).zip(&self.widths) {
            line.push_str(cell);
            let missing = width.saturating_sub(cell.chars().count());
            line.extend(std::iter::repeat_n(' ', missing));
            line.push_str(GAP);
        }
        format!("{}\n", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::resource::recorded;

    /// Half a minute after the youngest thing in the recorded answers.
    const NOW: UnixMillis = UnixMillis(1_795_333_424_000);
    const WIDE: Look = Look { wide: true, namespaces: false, kinds: false, progress: false };

    fn of(kind: Kind, resources: &[Value], look: Look) -> String {
        Table::of(kind, resources, &Downloads::default(), look, NOW, true).1
    }

    #[test]
    fn a_table_has_the_columns_of_its_kind() {
        let mut pending = recorded::loaded("a-longer-name");
        pending["status"] = Value::Null;
        assert_eq!(
            of(Kind::InferenceService, &[recorded::loaded("iris"), pending], Look::default()),
            "\
NAME            TYPE   READY     STATE    TARGET   TRANSITION   COPIES   AGE
iris            onnx   True      Loaded   -        UpToDate     1        3m10s
a-longer-name   onnx   Unknown   -        -        -            0        3m10s
"
        );
        assert_eq!(
            of(Kind::Predictor, &[recorded::blocked()], Look { namespaces: true, kinds: true, ..Look::default() }),
            "\
NAMESPACE   NAME                                TYPE         AVAILABLE   STATE    TARGET         TRANSITION            COPIES   AGE
team        predictor.serving.kserve.io/mnist   tensorflow   true        Loaded   FailedToLoad   BlockedByFailedLoad   2        2d
"
        );
        assert_eq!(
            of(Kind::ClusterServingRuntime, &[recorded::runtime()], Look { namespaces: true, ..WIDE }),
            "\
NAME         DISABLED   MODELTYPE   CONTAINERS   AGE   PROTOCOLS
berth-onnx   false      onnx        embedded     5s    grpc-v2,v2
"
        );
    }

    #[test]
    fn a_wide_table_tells_the_failure_on_one_line() {
        assert_eq!(
            of(Kind::Predictor, &[recorded::blocked()], WIDE),
            "\
NAME    TYPE         AVAILABLE   STATE    TARGET         TRANSITION            COPIES   AGE   URL                     RUNTIME      FAILURE
mnist   tensorflow   true        Loaded   FailedToLoad   BlockedByFailedLoad   2        2d    grpc://127.0.0.1:8033   triton-2.x   ModelLoadFailed at d4f-abcdefgh: no such object
"
        );
    }

    #[test]
    fn lines_of_changes_stand_under_the_heads_that_were_printed_before() {
        let mut standby = recorded::loaded("iris");
        standby["status"]["modelStatus"]["states"]["activeModelState"] = "Standby".into();
        let nothing = Downloads::default();
        let (table, text) = Table::growing(Kind::InferenceService, &[standby], &nothing, Look::default(), NOW, true);
        let mut failed = recorded::loaded("iris");
        failed["status"]["modelStatus"]["states"]["activeModelState"] = "FailedToLoad".into();
        let text = text + &table.line(&failed, &nothing, NOW, false) + &table.line(&failed, &nothing, NOW, true);
        assert_eq!(
            text,
            "\
NAME   TYPE   READY     STATE          TARGET         TRANSITION            COPIES   AGE
iris   onnx   True      Standby        -              UpToDate              1        3m10s
iris   onnx   True      FailedToLoad   -              UpToDate              1        3m10s
iris   onnx   True      Deleted        -              UpToDate              1        3m10s
"
        );
        assert_eq!(table.heads(), text.lines().next().expect("heads").to_owned() + "\n");
    }

    #[test]
    fn how_far_a_download_is_stands_behind_the_age_once_there_is_one() {
        let (mut loading, loaded) = (recorded::loaded("iris"), recorded::loaded("digits"));
        loading["status"]["modelStatus"]["states"]["activeModelState"] = "Loading".into();
        let downloads = |summary: &str| {
            let item = json!({ "model": "iris__isvc-1", "kind": "InferenceService", "name": "iris", "summary": summary });
            Downloads::read(&json!({ "items": [item] }))
        };
        let both = [loading.clone(), loaded.clone()];
        assert_eq!(
            Table::of(Kind::InferenceService, &both, &downloads("45% (1.2 of 2.6 GiB)"), Look::default(), NOW, true).1,
            "\
NAME     TYPE   READY   STATE     TARGET   TRANSITION   COPIES   AGE     PROGRESS
iris     onnx   True    Loading   -        UpToDate     1        3m10s   45% (1.2 of 2.6 GiB)
digits   onnx   True    Loaded    -        UpToDate     1        3m10s   -
"
        );
        let (mut table, text) = Table::growing(Kind::InferenceService, &both, &Downloads::default(), WIDE, NOW, true);
        assert!(!text.contains(PROGRESS));
        assert!(table.show_progress() && !table.show_progress());
        let text = table.heads() + &table.line(&loading, &downloads("45%"), NOW, false) + &table.line(&loading, &downloads("45%"), NOW, true);
        let lines: Vec<&str> = text.lines().collect();
        let (at, url) = (lines[0].find(PROGRESS).expect("a head"), lines[0].find("URL").expect("a head"));
        assert!(lines[1][at..].starts_with("45% ") && lines[2][at..].starts_with("-  ") && lines[1][url..].starts_with("grpc://"), "{text}");
        let mut runtimes = Table::of(Kind::ClusterServingRuntime, &[recorded::runtime()], &Downloads::default(), WIDE, NOW, true).0;
        assert!(!runtimes.show_progress(), "runtimes are not fetched");
    }

    #[test]
    fn a_service_that_is_not_for_us_is_listed_as_such() {
        let mut other = recorded::loaded("iris");
        other["metadata"]["annotations"] = json!({});
        assert!(of(Kind::InferenceService, &[other], Look::default()).contains("Unmanaged"));
    }

    #[test]
    fn without_heads_only_lines_are_printed() {
        let (_, text) = Table::of(Kind::ClusterServingRuntime, &[recorded::runtime()], &Downloads::default(), Look::default(), NOW, false);
        assert_eq!(text, "berth-onnx   false   onnx   embedded   5s\n");
    }
}
