//! `tests/seeds.toml`: which test shows which sentence of the two documents that Berth comes from.
//!
//! The file is worth something only while it is whole and true, so three things are checked: every sentence that it
//! counts in a document is stated by somebody or said to state nothing, every test that it names exists, and each of them
//! passed in the lane that it belongs to. The documents lie outside of the repository and are not read here; the file
//! says how many sentences stand on which line. Whether a test shows what its statement says is for people to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::lane::{Lane, SYSTEM};
use crate::say;
use crate::step::{Outcome, Seen, root};
use crate::workspace::{Member, members};

/// Where the file lies.
const FILE: &str = "tests/seeds.toml";

/// The package of the whole-system tests, which are called `system::...` for short.
const SYSTEM_PACKAGE: &str = "berth-tests";

/// All of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seeds {
    /// By the short name that references use.
    documents: BTreeMap<String, Document>,
    statement: Vec<Statement>,
    #[serde(default)]
    states_nothing: Vec<StatesNothing>,
}

/// One of the two documents.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// What it is called.
    #[expect(dead_code, reason = "for the reader of the file")]
    title: String,
    /// Line of a paragraph, bullet, example or heading, and how many sentences stand there.
    sentences: Vec<[u32; 2]>,
}

impl Document {
    fn sentences_on(&self, line: u32) -> Option<u32> {
        self.sentences.iter().find(|[at, _]| *at == line).map(|[_, count]| *count)
    }
}

/// Behaviour that a document promises.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    /// Stable: other texts may refer to it.
    id: String,
    /// `DOCUMENT:LINE.SENTENCE`, see [`places`].
    at: String,
    /// The behaviour, in our words.
    says: String,
    level: Level,
    /// Called as [`Test`] says.
    #[serde(default)]
    tests: Vec<String>,
    /// What an open one needs before it can be shown.
    waits_for: Option<String>,
}

/// Where behaviour shows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// In a decision, or in parts that a test holds in its own process.
    Pure,
    /// In the built binary, through its public interfaces.
    Process,
    /// In a Kubernetes cluster.
    Cluster,
    /// Nowhere yet.
    Open,
}

/// Sentences that promise nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatesNothing {
    /// As in [`Statement`].
    at: Vec<String>,
    /// Why not.
    why: String,
}

/// A test as the file names it: `PACKAGE::PATH` for a unit test, `PACKAGE/TARGET::PATH` for an integration test and
/// `system::PATH` for a whole-system test.
struct Test<'a> {
    package: &'a str,
    /// `None`: among the unit tests.
    target: Option<&'a str>,
    /// Modules, then the function.
    path: &'a str,
}

impl<'a> Test<'a> {
    fn of(named: &'a str) -> Option<Self> {
        let (target, path) = named.split_once("::")?;
        let (package, target) = match target.split_once('/') {
            Some((package, target)) => (package, Some(target)),
            None if target == SYSTEM => (SYSTEM_PACKAGE, Some(SYSTEM)),
            None => (target, None),
        };
        Some(Test { package, target, path })
    }

    /// Its target as [`Seen`] calls it.
    fn seen_in(&self) -> String {
        self.target.map_or_else(|| self.package.to_owned(), |target| format!("{}/{target}", self.package))
    }

    fn lane(&self) -> Lane {
        if self.target == Some(SYSTEM) { Lane::Real } else { Lane::Quick }
    }

    /// The files in which it may stand: that of its module, or of one around it.
    fn files(&self, members: &[Member]) -> Vec<PathBuf> {
        let Some(member) = members.iter().find(|member| member.package == self.package) else { return Vec::new() };
        let (folder, mut files) = match self.target {
            None => {
                let src = member.folder.join("src");
                (src.clone(), vec![src.join("lib.rs"), src.join("main.rs")])
            }
            Some(name) => {
                let Some(target) = member.tests.iter().find(|target| target.name == name) else { return Vec::new() };
                (target.path.parent().map(Path::to_owned).unwrap_or_default(), vec![target.path.clone()])
            }
        };
        let mut module = folder;
        for part in self.path.rsplit_once("::").map_or("", |(modules, _)| modules).split("::").filter(|part| !part.is_empty()) {
            module.push(part);
            files.extend([module.with_extension("rs"), module.join("mod.rs")]);
        }
        files
    }

    fn exists(&self, members: &[Member]) -> bool {
        let function = format!("fn {}(", self.path.rsplit("::").next().unwrap_or(self.path));
        self.files(members).iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&function)))
    }
}

/// A sentence: its document, its line and its number there, from 1.
type Place<'a> = (&'a str, u32, u32);

/// The sentences that `at` means: `isvc:74.2` is the second one on line 74, `isvc:74.2-3` also the next one, and
/// `isvc:74` every one on that line. `None` when it cannot be read or means a sentence that the document does not have.
fn places<'a>(at: &'a str, documents: &BTreeMap<String, Document>) -> Option<Vec<Place<'a>>> {
    let (document, rest) = at.split_once(':')?;
    let (line, which) = rest.split_once('.').map_or((rest, None), |(line, which)| (line, Some(which)));
    let line = line.parse().ok()?;
    let last = documents.get(document)?.sentences_on(line)?;
    let (from, to) = match which {
        None => (1, last),
        Some(which) => {
            let (from, to) = which.split_once('-').unwrap_or((which, which));
            (from.parse().ok()?, to.parse().ok()?)
        }
    };
    (1 <= from && from <= to && to <= last).then(|| (from..=to).map(|sentence| (document, line, sentence)).collect())
}

impl Seeds {
    /// What is wrong with the file itself.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut ids = BTreeSet::new();
        let mut stated: BTreeSet<Place<'_>> = BTreeSet::new();
        for statement in &self.statement {
            let id = &statement.id;
            let mut fault = |text: &str| faults.push(format!("{id}: {text}"));
            if !ids.insert(id) {
                fault("there is another statement with this id");
            }
            if statement.says.trim().is_empty() {
                fault("says nothing");
            }
            match places(&statement.at, &self.documents) {
                Some(places) => stated.extend(places),
                None => fault(&format!("there is no sentence {:?}: write DOCUMENT:LINE.SENTENCE", statement.at)),
            }
            let tests: Vec<Option<Test<'_>>> = statement.tests.iter().map(|named| Test::of(named)).collect();
            match (statement.level, &statement.waits_for) {
                (Level::Open, None) => fault("is open: say in waits_for what it needs"),
                (Level::Open, Some(_)) => {}
                (Level::Pure | Level::Process | Level::Cluster, Some(_)) => fault("waits for something: make it open, or leave waits_for out"),
                (Level::Pure | Level::Process | Level::Cluster, None) if tests.is_empty() => fault("has no test"),
                (Level::Process, None) if !tests.iter().flatten().any(|test| test.lane() == Lane::Real) => {
                    fault("is of level process, but none of its tests is a system test");
                }
                (Level::Pure | Level::Process | Level::Cluster, None) => {}
            }
        }
        let mut silent = BTreeSet::new();
        for nothing in &self.states_nothing {
            for at in &nothing.at {
                match places(at, &self.documents) {
                    Some(places) => silent.extend(places),
                    None => faults.push(format!("states_nothing: there is no sentence {at:?}: write DOCUMENT:LINE.SENTENCE")),
                }
            }
            if nothing.why.trim().is_empty() {
                faults.push(format!("states_nothing: say why {:?} state nothing", nothing.at));
            }
        }
        for (name, document) in &self.documents {
            if !document.sentences.is_sorted_by(|[before, _], [after, _]| before < after) {
                faults.push(format!("documents.{name}: the lines are not in order, each once"));
            }
            for [line, count] in &document.sentences {
                for place in (1..=*count).map(|sentence| (name.as_str(), *line, sentence)) {
                    let shown = format!("{}:{}.{}", place.0, place.1, place.2);
                    match (stated.contains(&place), silent.contains(&place)) {
                        (true, true) => faults.push(format!("{shown} is stated and said to state nothing")),
                        (false, false) => {
                            faults.push(format!("{shown} is not accounted for: write a [[statement]] or add it to a [[states_nothing]]"))
                        }
                        (true, false) | (false, true) => {}
                    }
                }
            }
        }
        faults
    }

    /// Tests that are named and are not there.
    fn missing(&self, exists: impl Fn(&Test<'_>) -> bool) -> Vec<String> {
        let mut faults = Vec::new();
        for (id, named) in self.named() {
            match Test::of(named) {
                None => faults.push(format!("{id}: {named} cannot be read: write PACKAGE::PATH, PACKAGE/TARGET::PATH or system::PATH")),
                Some(test) if !exists(&test) => faults.push(format!("{id}: there is no test {named}")),
                Some(_) => {}
            }
        }
        faults
    }

    /// Tests of `lane` that did not pass in it.
    fn unseen(&self, lane: Lane, seen: &Seen) -> Vec<String> {
        let (mut faults, mut idle) = (Vec::new(), BTreeSet::new());
        for (id, named) in self.named() {
            let Some(test) = Test::of(named).filter(|test| test.lane() == lane) else { continue };
            let target = test.seen_in();
            if seen.passed.contains(&format!("{target}::{}", test.path)) {
            } else if seen.targets.contains(&target) {
                faults.push(format!("{id}: {named} did not pass: it failed, was ignored, or is not called so"));
            } else {
                idle.insert(target);
            }
        }
        faults.extend(idle.into_iter().map(|target| format!("no test of {target} was run, although statements name some")));
        faults
    }

    /// Each named test with the statement that names it.
    fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.statement.iter().flat_map(|statement| statement.tests.iter().map(|named| (statement.id.as_str(), named.as_str())))
    }

    /// How much there is of what.
    fn summary(&self) -> String {
        let sentences: u32 = self.documents.values().flat_map(|document| &document.sentences).map(|[_, count]| count).sum();
        let of = |level| self.statement.iter().filter(|statement| statement.level == level).count();
        let tests: BTreeSet<&str> = self.named().map(|(_, named)| named).collect();
        format!(
            "{sentences} sentences, {} statements ({} pure, {} process, {} cluster, {} open), {} tests",
            self.statement.len(),
            of(Level::Pure),
            of(Level::Process),
            of(Level::Cluster),
            of(Level::Open),
            tests.len()
        )
    }
}

/// Checks the file, and that every test of `lane` that it names is among what was `seen` to pass there.
pub(crate) fn check(lane: Lane, seen: &Seen) -> Result<Outcome> {
    say(&format!("\n== seeds: {FILE} and the tests of lane {}", lane.name()));
    let text = fs::read_to_string(root().join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
    let seeds: Seeds = toml::from_str(&text).with_context(|| format!("cannot understand {FILE}"))?;
    let members = members()?;
    let mut faults = seeds.faults();
    faults.extend(seeds.missing(|test| test.exists(&members)));
    faults.extend(seeds.unseen(lane, seen));
    faults.iter().for_each(|fault| say(&format!("   {fault}")));
    say(&format!("   {}", seeds.summary()));
    Ok(Outcome { fault: (!faults.is_empty()).then_some("failed"), ..Outcome::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        [documents.isvc]
        title = "A document"
        sentences = [[1, 1], [74, 3]]

        [[states_nothing]]
        at = ["isvc:1", "isvc:74.3"]
        why = "a heading and an aside"

        [[statement]]
        id = "isvc.url"
        at = "isvc:74.1"
        says = "there is a URL"
        level = "process"
        tests = ["system::lifecycle::a_url_is_there", "berth-plan::status::tests::a_url_is_written"]

        [[statement]]
        id = "isvc.url.shared"
        at = "isvc:74.2"
        says = "several pods share it"
        level = "open"
        waits_for = "several pods"
    "#;

    fn seeds(text: &str) -> Seeds {
        toml::from_str(text).expect("well-formed")
    }

    #[test]
    fn a_whole_file_has_no_fault_and_is_counted() {
        let seeds = seeds(WHOLE);
        assert_eq!(seeds.faults(), Vec::<String>::new());
        assert_eq!(seeds.summary(), "4 sentences, 2 statements (0 pure, 1 process, 0 cluster, 1 open), 2 tests");
    }

    #[test]
    fn every_fault_of_the_file_is_named_with_its_statement() {
        for (from, to, expected) in [
            ("isvc.url.shared", "isvc.url", "isvc.url: there is another statement with this id"),
            ("there is a URL", " ", "isvc.url: says nothing"),
            ("\"isvc:74.1\"", "\"isvc:74.4\"", "isvc.url: there is no sentence \"isvc:74.4\""),
            ("\"isvc:74.1\"", "\"isvc:74.2\"", "isvc:74.1 is not accounted for"),
            ("\"isvc:74.1\"", "\"isvc:74\"", "isvc:74.3 is stated and said to state nothing"),
            ("\"isvc:74.3\"", "\"isvc:75\"", "states_nothing: there is no sentence \"isvc:75\""),
            ("a heading and an aside", "", "states_nothing: say why"),
            ("waits_for = \"several pods\"", "", "isvc.url.shared: is open: say in waits_for"),
            ("\"open\"", "\"cluster\"", "isvc.url.shared: waits for something"),
            ("level = \"open\"\n        waits_for = \"several pods\"", "level = \"pure\"", "isvc.url.shared: has no test"),
            ("\"system::lifecycle::a_url_is_there\", ", "", "isvc.url: is of level process, but none of its tests is a system test"),
            ("[1, 1]", "[74, 3], [1, 1]", "documents.isvc: the lines are not in order"),
            ("[74, 3]", "[74, 4]", "isvc:74.4 is not accounted for"),
        ] {
            let faults = seeds(&WHOLE.replacen(from, to, 1)).faults();
            assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{from} -> {to}: {faults:?}");
        }
        for (from, to) in [("\"open\"", "\"later\""), ("says = \"there", "say = \"there"), ("title", "name")] {
            assert!(toml::from_str::<Seeds>(&WHOLE.replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_test_that_did_not_pass_in_its_lane_is_told_and_those_of_other_lanes_are_not() {
        let seeds = seeds(WHOLE);
        let seen = |targets: &[&str], passed: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
            let mut seen = Seen::default();
            (seen.targets, seen.passed) = (owned(targets), owned(passed));
            seen
        };
        let all = seen(&["berth-plan"], &["berth-plan::status::tests::a_url_is_written"]);
        assert_eq!(seeds.unseen(Lane::Quick, &all), Vec::<String>::new());
        let other = seen(&["berth-plan"], &["berth-plan::status::tests::another"]);
        let faults = seeds.unseen(Lane::Quick, &other);
        assert!(faults.len() == 1 && faults[0].starts_with("isvc.url: berth-plan::status::tests::a_url_is_written did not pass"), "{faults:?}");
        let faults = seeds.unseen(Lane::Real, &all);
        assert_eq!(faults, ["no test of berth-tests/system was run, although statements name some"]);
        let real = seen(&["berth-tests/system"], &["berth-tests/system::lifecycle::a_url_is_there"]);
        assert_eq!(seeds.unseen(Lane::Real, &real), Vec::<String>::new());
    }

    #[test]
    fn tests_are_found_by_their_path_in_this_workspace_and_others_are_not() {
        let members = members().expect("cargo knows this workspace");
        for (named, expected) in [
            ("xtask::seeds::tests::tests_are_found_by_their_path_in_this_workspace_and_others_are_not", true),
            ("xtask::tests::options_choose_lanes_once_and_in_order", true),
            ("xtask::step::tests::options_choose_lanes_once_and_in_order_", false),
            ("xtask::step::tests::a_whole_file_has_no_fault_and_is_counted", false),
            ("xtask/it::a_whole_file_has_no_fault_and_is_counted", false),
            ("nobody::tests::a", false),
            ("berth-tests/system::fixture::service", true),
            ("system::fixture::service", true),
            ("system::cli::service", false),
        ] {
            assert_eq!(Test::of(named).expect("readable").exists(&members), expected, "{named}");
        }
        let told = seeds(&WHOLE.replacen("system::lifecycle::a_url_is_there", "a_url_is_there", 1)).missing(|_| true);
        assert!(told.len() == 1 && told[0].contains("cannot be read"), "{told:?}");
        assert_eq!(seeds(WHOLE).missing(|test| test.target.is_none()), ["isvc.url: there is no test system::lifecycle::a_url_is_there"]);
    }

    #[test]
    fn the_file_of_this_repository_is_whole_and_names_tests_that_exist() {
        let text = fs::read_to_string(root().join(FILE)).expect("there");
        let (seeds, members) = (seeds(&text), members().expect("cargo knows this workspace"));
        let mut faults = seeds.faults();
        faults.extend(seeds.missing(|test| test.exists(&members)));
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
