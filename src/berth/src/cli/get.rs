//! `berth get` and `berth describe`: what there is, once or as it changes.

use std::collections::{BTreeMap, HashMap};

use berth_registry::Kind;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Value, json};

use super::args::{self, Format};
use super::client::{Client, Scope};
use super::describe::{Beside, describe};
use super::downloads::{self, Downloads, Following};
use super::drifts::{self, Drifts};
use super::fault::Fault;
use super::kinds::{MODELS, Named, Selection, full_name, selection};
use super::memory;
use super::output::{self, Out, note};
use super::resource;
use super::table::{Look, Table};
use super::watch::{Change, Watch};

/// Resources of one kind.
struct Group {
    kind: Kind,
    resources: Vec<Value>,
}

/// `berth get`.
///
/// # Errors
/// What is not there, and whatever kept the server from answering.
pub(crate) async fn get(client: &Client, args: &args::Get, out: &mut Out) -> Result<(), Fault> {
    let asked = selection(&args.words, MODELS)?;
    let namespace = (!args.all_namespaces).then_some(args.namespace.namespace.as_str());
    if let Selection::Named(_) = asked {
        if args.selector.is_some() {
            return Err(Fault::local("name cannot be provided when a selector is specified"));
        }
        if args.all_namespaces {
            return Err(Fault::local("a resource cannot be retrieved by name across all namespaces"));
        }
    }
    if args.watch {
        return follow(client, args, asked, namespace, out).await;
    }
    let (groups, faults) = match &asked {
        Selection::All(kinds) => (all(client, kinds, namespace, args.selector.as_deref()).await?, Vec::new()),
        Selection::Named(named) => {
            let (groups, mut faults) = by_name(client, named, &args.namespace.namespace).await?;
            faults.retain(|fault| !(args.ignore_not_found && fault.code() == Some(404)));
            (groups, faults)
        }
    };
    let found: usize = groups.iter().map(|group| group.resources.len()).sum();
    match args.output {
        Some(Format::Json | Format::Yaml) if matches!(&asked, Selection::Named(named) if named.len() == 1) => {
            if let Some(one) = groups.first().and_then(|group| group.resources.first()) {
                out.text(&document(args.output, one)?)?;
            }
        }
        Some(Format::Json | Format::Yaml) if found > 0 || faults.is_empty() => {
            let items: Vec<Value> = groups.into_iter().flat_map(|group| group.resources).collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items });
            out.text(&document(args.output, &list)?)?;
        }
        Some(Format::Json | Format::Yaml) => {}
        Some(Format::Name) => {
            let line = |kind, resource| format!("{}\n", full_name(kind, resource::name(resource)));
            let lines = groups.iter().flat_map(|group| group.resources.iter().map(|resource| line(group.kind, resource)));
            out.text(&lines.collect::<String>())?;
        }
        None | Some(Format::Wide) => {
            let groups: Vec<Group> = groups.into_iter().filter(|group| !group.resources.is_empty()).collect();
            let look = look(args, groups.len() > 1);
            let (now, downloads) = (client.clock().wall(), downloads_of(client, &groups).await);
            let table = |group: &Group| Table::of(group.kind, &group.resources, &downloads, look, now, !args.no_headers).1;
            out.text(&groups.iter().map(table).collect::<Vec<_>>().join("\n"))?;
        }
    }
    if found == 0 && faults.is_empty() && !args.ignore_not_found && !matches!(args.output, Some(Format::Json | Format::Yaml)) {
        note(&nothing(&asked, namespace));
    }
    Fault::all(faults)
}

/// `berth describe`.
///
/// # Errors
/// As [`get`].
pub(crate) async fn describe_all(client: &Client, args: &args::Describe, out: &mut Out) -> Result<(), Fault> {
    let asked = selection(&args.words, MODELS)?;
    let namespace = &args.namespace.namespace;
    let (groups, faults) = match &asked {
        Selection::All(kinds) => (all(client, kinds, Some(namespace), None).await?, Vec::new()),
        Selection::Named(named) => by_name(client, named, namespace).await?,
    };
    let (now, downloads) = (client.clock().wall(), downloads_of(client, &groups).await);
    let models = groups.iter().any(|group| !group.resources.is_empty() && MODELS.contains(&group.kind));
    let drifts = if models { drifts::now(client).await } else { Drifts::default() };
    let memory = if models { memory::now(client).await } else { memory::Footprints::default() };
    let beside = Beside { downloads: &downloads, drifts: &drifts, memory: &memory };
    let page = |kind, resource| describe(kind, resource, beside, now);
    let pages: Vec<String> = groups.iter().flat_map(|group| group.resources.iter().map(|resource| page(group.kind, resource))).collect();
    if pages.is_empty() && faults.is_empty() {
        note(&nothing(&asked, Some(namespace)));
    }
    out.text(&pages.join("\n\n"))?;
    Fault::all(faults)
}

fn nothing(asked: &Selection, namespace: Option<&str>) -> String {
    let namespaced = match asked {
        Selection::All(kinds) => kinds.iter().any(|kind| kind.namespaced()),
        Selection::Named(_) => true,
    };
    match namespace.filter(|_| namespaced) {
        Some(namespace) => format!("No resources found in {namespace} namespace."),
        None => "No resources found".to_owned(),
    }
}

fn look(args: &args::Get, kinds: bool) -> Look {
    Look { wide: args.output == Some(Format::Wide), namespaces: args.all_namespaces, kinds, progress: false }
}

/// What is being fetched, if any of these may wait for it.
async fn downloads_of(client: &Client, groups: &[Group]) -> Downloads {
    let waits = groups.iter().any(|group| group.resources.iter().any(|resource| downloads::may_wait(group.kind, resource)));
    if waits { downloads::now(client).await } else { Downloads::default() }
}

fn document(format: Option<Format>, value: &Value) -> Result<String, Fault> {
    if format == Some(Format::Yaml) { output::yaml(value) } else { Ok(output::json(value)) }
}

async fn all(client: &Client, kinds: &[Kind], namespace: Option<&str>, selector: Option<&str>) -> Result<Vec<Group>, Fault> {
    let mut groups = Vec::new();
    for kind in kinds {
        let (resources, _version) = client.list(&scope(*kind, namespace, selector, None)).await?;
        groups.push(Group { kind: *kind, resources });
    }
    Ok(groups)
}

fn scope(kind: Kind, namespace: Option<&str>, selector: Option<&str>, name: Option<&str>) -> Scope {
    let namespace = namespace.filter(|_| kind.namespaced()).map(str::to_owned);
    Scope { kind, namespace, selector: selector.map(str::to_owned), name: name.map(str::to_owned) }
}

/// What there is of these names, grouped by kind, and a fault for each one that is missing.
async fn by_name(client: &Client, named: &[Named], namespace: &str) -> Result<(Vec<Group>, Vec<Fault>), Fault> {
    let (mut groups, mut faults): (Vec<Group>, _) = (Vec::new(), Vec::new());
    for wanted in named {
        match one(client, wanted, namespace).await {
            Ok((kind, resource)) => match groups.iter_mut().find(|group| group.kind == kind) {
                Some(group) => group.resources.push(resource),
                None => groups.push(Group { kind, resources: vec![resource] }),
            },
            Err(fault) if fault.ends_all() => return Err(fault),
            Err(fault) => faults.push(fault),
        }
    }
    Ok((groups, faults))
}

async fn one(client: &Client, wanted: &Named, namespace: &str) -> Result<(Kind, Value), Fault> {
    for kind in wanted.kinds {
        if let Some(resource) = client.get(*kind, namespace, &wanted.name).await? {
            return Ok((*kind, resource));
        }
    }
    Err(Fault::not_found(wanted.kinds[0], &wanted.name))
}

/// What is there now, then every change, until the output or the server ends.
async fn follow(client: &Client, args: &args::Get, asked: Selection, namespace: Option<&str>, out: &mut Out) -> Result<(), Fault> {
    let scopes: Vec<Scope> = match &asked {
        Selection::All(kinds) => kinds.iter().map(|kind| scope(*kind, namespace, args.selector.as_deref(), None)).collect(),
        Selection::Named(named) => {
            let mut scopes = Vec::new();
            for wanted in named {
                let (kind, _resource) = one(client, wanted, &args.namespace.namespace).await?;
                scopes.push(scope(kind, namespace, None, Some(&wanted.name)));
            }
            scopes
        }
    };
    let mut begun = Vec::new();
    let mut news: Vec<BoxStream<'_, News>> = Vec::new();
    for scope in scopes {
        let kind = scope.kind;
        let (resources, watch) = Watch::begin(client, scope).await?;
        begun.push(Group { kind, resources });
        news.push(Box::pin(stream::unfold(watch, move |mut watch| async move { Some((News::Change(kind, watch.next().await), watch)) })));
    }
    let several = begun.iter().any(|group| group.kind != begun[0].kind);
    let mut printer = Printer::new(args, look(args, several), downloads_of(client, &begun).await);
    let models = begun.iter().any(|group| MODELS.contains(&group.kind));
    for group in begun {
        printer.begin(client, &group, out)?;
    }
    if models && !printer.whole_documents() {
        let following = Following::new(client);
        news.push(Box::pin(stream::unfold(following, |mut following| async move { Some((News::Downloads(following.next().await), following)) })));
    }
    let mut news = stream::select_all(news);
    while let Some(news) = news.next().await {
        match news {
            News::Change(kind, change) => printer.change(client, kind, &change?, out)?,
            News::Downloads(downloads) => printer.downloads(client, downloads, out)?,
        }
    }
    Ok(())
}

/// What a watch is told.
enum News {
    Change(Kind, Result<Change, Fault>),
    Downloads(Downloads),
}

/// A resource that may wait for its model, and how far its download was when it was printed last.
struct Waiting {
    resource: Value,
    told: Option<String>,
}

/// Kind, namespace and name.
type Key = (Kind, Option<String>, String);

/// Prints changes, each kind under its own heads.
struct Printer<'a> {
    args: &'a args::Get,
    look: Look,
    tables: HashMap<Kind, Table>,
    /// Whose heads stand above what is printed next.
    last: Option<Kind>,
    downloads: Downloads,
    /// Those that a download may be told of; gone when they are where they should be.
    waiting: BTreeMap<Key, Waiting>,
}

impl<'a> Printer<'a> {
    fn new(args: &'a args::Get, look: Look, downloads: Downloads) -> Self {
        Printer { args, look, tables: HashMap::new(), last: None, downloads, waiting: BTreeMap::new() }
    }

    /// Remembers what is about to be printed, as far as a download may be told of it. True when one is told now.
    fn remember(&mut self, kind: Kind, resource: &Value, gone: bool) -> bool {
        let key = (kind, resource::namespace(resource).map(str::to_owned), resource::name(resource).to_owned());
        if gone || !downloads::may_wait(kind, resource) {
            self.waiting.remove(&key);
            return false;
        }
        let told = self.downloads.of(kind, resource).map(|download| download.summary.clone());
        let tells = told.is_some();
        self.waiting.insert(key, Waiting { resource: resource.clone(), told });
        tells
    }

    /// Prints a line for each resource whose download got further.
    fn downloads(&mut self, client: &Client, downloads: Downloads, out: &mut Out) -> Result<(), Fault> {
        let further = self.waiting.iter().filter_map(|((kind, ..), waiting)| {
            let now = downloads.of(*kind, &waiting.resource).map(|download| &download.summary);
            // One that ended is followed by a change of the resource, which says how.
            (now.is_some() && now != waiting.told.as_ref()).then(|| (*kind, waiting.resource.clone()))
        });
        let further: Vec<(Kind, Value)> = further.collect();
        self.downloads = downloads;
        further.into_iter().try_for_each(|(kind, resource)| self.change(client, kind, &Change::Is(resource), out))
    }

    fn begin(&mut self, client: &Client, group: &Group, out: &mut Out) -> Result<(), Fault> {
        if self.whole_documents() {
            return group.resources.iter().try_for_each(|resource| self.whole(group.kind, resource, out));
        }
        // Heads alone are printed with the first line, which says how wide their columns are.
        if group.resources.is_empty() {
            return Ok(());
        }
        for resource in &group.resources {
            self.remember(group.kind, resource, false);
        }
        let heads = !self.args.no_headers && self.last != Some(group.kind);
        let (table, text) = Table::growing(group.kind, &group.resources, &self.downloads, self.look, client.clock().wall(), heads);
        self.tables.entry(group.kind).or_insert(table);
        self.last = Some(group.kind);
        out.text(&text)
    }

    fn change(&mut self, client: &Client, kind: Kind, change: &Change, out: &mut Out) -> Result<(), Fault> {
        let (resource, gone) = match change {
            Change::Is(resource) => (resource, false),
            Change::Gone(resource) => (resource, true),
        };
        if self.whole_documents() {
            return self.whole(kind, resource, out);
        }
        let tells = self.remember(kind, resource, gone);
        let (now, look, heads, downloads) = (client.clock().wall(), self.look, !self.args.no_headers, &self.downloads);
        let table = self.tables.entry(kind).or_insert_with(|| Table::growing(kind, std::slice::from_ref(resource), downloads, look, now, heads).0);
        let wider = tells && table.show_progress();
        if (self.last.replace(kind) != Some(kind) || wider) && heads {
            out.text(&table.heads())?;
        }
        out.text(&table.line(resource, downloads, now, gone))
    }

    fn whole_documents(&self) -> bool {
        matches!(self.args.output, Some(Format::Json | Format::Yaml | Format::Name))
    }

    fn whole(&self, kind: Kind, resource: &Value, out: &mut Out) -> Result<(), Fault> {
        match self.args.output {
            Some(Format::Name) => out.line(&full_name(kind, resource::name(resource))),
            Some(Format::Yaml) => out.text(&format!("---\n{}", output::yaml(resource)?)),
            Some(Format::Json | Format::Wide) | None => out.text(&output::json(resource)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use berth_telemetry::Clock;
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::cli::client::Server;
    use crate::cli::resource::recorded;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_heads_of_a_watch_that_begins_with_nothing_stand_above_what_comes_first() {
        let matches = args::Get::augment_args(Command::new("get")).get_matches_from(["get", "-w"]);
        let args = args::Get::from_arg_matches(&matches).expect("right");
        let client = Client::new(Server::parse("h:1", "--server").expect("a server"), Clock::system());
        let kept = Kept::default();
        let mut out = Out::onto(kept.clone());
        let mut printer = Printer::new(&args, look(&args, false), Downloads::default());
        let kind = Kind::InferenceService;
        printer.begin(&client, &Group { kind, resources: Vec::new() }, &mut out).expect("written");
        assert!(kept.0.lock().expect("no panic").is_empty());
        for _ in 0..2 {
            printer.change(&client, kind, &Change::Is(recorded::loaded("a-name-longer-than-its-head")), &mut out).expect("written");
        }
        let text = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0].find("TYPE"), lines[1]), (3, lines[1].find("onnx"), lines[2]), "{text}");
    }

    #[test]
    fn a_download_that_gets_further_is_a_line_for_its_resource_until_that_is_where_it_should_be() {
        let matches = args::Get::augment_args(Command::new("get")).get_matches_from(["get", "-w"]);
        let args = args::Get::from_arg_matches(&matches).expect("right");
        let client = Client::new(Server::parse("h:1", "--server").expect("a server"), Clock::system());
        let (kept, kind) = (Kept::default(), Kind::InferenceService);
        let mut out = Out::onto(kept.clone());
        let mut printer = Printer::new(&args, look(&args, false), Downloads::default());
        let state = |state: &str| {
            let mut service = recorded::loaded("iris");
            service["status"]["modelStatus"]["states"]["activeModelState"] = state.into();
            service
        };
        let downloads = |summaries: &[(&str, &str)]| {
            let items = summaries.iter().map(|(name, summary)| json!({ "model": "m", "kind": kind.as_str(), "name": name, "summary": summary }));
            Downloads::read(&json!({ "items": items.collect::<Vec<_>>() }))
        };
        printer.begin(&client, &Group { kind, resources: vec![recorded::loaded("other"), state("Loading")] }, &mut out).expect("written");
        for percent in ["1%", "1%", "2%"] {
            printer.downloads(&client, downloads(&[("iris", percent), ("other", percent), ("strange", percent)]), &mut out).expect("written");
        }
        printer.downloads(&client, downloads(&[]), &mut out).expect("written");
        printer.downloads(&client, downloads(&[("iris", "99%")]), &mut out).expect("written");
        printer.change(&client, kind, &Change::Is(state("Loaded")), &mut out).expect("written");
        printer.downloads(&client, downloads(&[("iris", "100%")]), &mut out).expect("written");
        let text = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("text");
        let told = |line: &str| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            format!("{} {} {}", cells[0], cells[3], cells.get(8).unwrap_or(&""))
        };
        assert_eq!(
            text.lines().map(told).collect::<Vec<_>>(),
            [
                "NAME STATE ",
                "other Loaded ",
                "iris Loading ",
                "NAME STATE PROGRESS",
                "iris Loading 1%",
                "iris Loading 2%",
                "iris Loading 99%",
                "iris Loaded -",
            ],
            "{text}"
        );
        assert!(printer.waiting.is_empty());
    }

    #[test]
    fn nothing_is_told_with_the_namespace_that_was_looked_at() {
        let models = Selection::All(MODELS.to_vec());
        assert_eq!(nothing(&models, Some("default")), "No resources found in default namespace.");
        assert_eq!(nothing(&models, None), "No resources found");
        assert_eq!(nothing(&Selection::All(vec![Kind::ClusterServingRuntime]), Some("default")), "No resources found");
    }
}
