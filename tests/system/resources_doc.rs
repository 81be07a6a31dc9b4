//! `docs/resources.md`, followed as a reader does: every block of it is run against one server, from top to bottom.
//!
//! A comment of one line before a block says what the block is for, or what must come true:
//!
//! | block | comments |
//! |---|---|
//! | `sh`, the first one | `setup`: its last line is the server's command line |
//! | `yaml` | `then: CLAIM; ...` after it was applied, or `refused: TEXT`; `file: PATH` writes it to that file instead |
//! | `sh` | it succeeds, or ends with `exit: N`; `then: ...` |
//! | `json` | `s3: PATH`: a storage key; a real server's address and account take the place of the page's |
//! | `text` | the output of the `sh` block before, or `watch: KIND/NAME`: the lines that a watch prints during the block before |
//!
//! A claim is `KIND/NAME WORD...` with words of the status, `Type=Status` of a condition, `target=`, `copies=`,
//! `available`, `unavailable`, `unmanaged`, `there`, `gone`, and a part of the failure's message in quotes. In texts `...` stands for
//! anything on a line, alone on a line for any lines; blanks are one blank. What is none of this fails the test.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_testkit::{Berth, Exit, Found, Gateway, Process, Standing, Transport, eventually, http, root};
use berth_types::Reason;
use serde_json::Value;

use crate::fixture::{Fixture, SOON};

const PAGE: &str = include_str!("../../docs/resources.md");

/// Longer than any block takes.
const PATIENCE: Duration = Duration::from_secs(90);

const STATES: [&str; 5] = ["Pending", "Loading", "Loaded", "Standby", "FailedToLoad"];
const TRANSITIONS: [&str; 4] = ["UpToDate", "InProgress", "BlockedByFailedLoad", "InvalidSpec"];
const REASONS: [Reason; 5] =
    [Reason::ModelLoadFailed, Reason::RuntimeUnhealthy, Reason::NoSupportingRuntime, Reason::RuntimeNotRecognized, Reason::InvalidPredictorSpec];
const CONDITIONS: [&str; 4] = ["PredictorReady", "Ready", "TransformerReady", "ExplainerReady"];

/// What a comment before a block says: its first word, and the rest.
type Note = (String, String);

/// One fenced block of the page.
#[derive(Clone, Debug)]
struct Block {
    line: usize,
    language: String,
    notes: Vec<Note>,
    text: String,
}

impl Block {
    fn note(&self, word: &str) -> Option<&str> {
        self.notes.iter().find(|(known, _)| known == word).map(|(_, rest)| rest.as_str())
    }
}

/// A block that does something, and what is printed meanwhile.
#[derive(Debug)]
struct Step {
    block: Block,
    output: Option<String>,
    watched: Option<(String, String)>,
}

fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut notes: Vec<Note> = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ") {
            let comment = comment.strip_suffix(" -->").with_context(|| format!("line {}: a comment has one line", at + 1))?;
            let (word, rest) = comment.split_once(": ").unwrap_or((comment, ""));
            notes.push((word.to_owned(), rest.to_owned()));
        } else if let Some(language) = line.trim_start().strip_prefix("```") {
            ensure!(line.starts_with("```"), "line {}: an indented block", at + 1);
            let mut text = String::new();
            loop {
                let (_, line) = lines.next().with_context(|| format!("line {}: the block has no end", at + 1))?;
                if line == "```" {
                    break;
                }
                text = text + line + "\n";
            }
            found.push(Block { line: at + 1, language: language.to_owned(), notes: std::mem::take(&mut notes), text });
        } else {
            ensure!(notes.is_empty(), "line {}: the comment before belongs to no block", at + 1);
        }
    }
    Ok(found)
}

fn steps(blocks: Vec<Block>) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for block in blocks {
        let line = block.line;
        let allowed: &[&str] = match block.language.as_str() {
            "yaml" => &["then", "refused", "file"],
            "sh" => &["setup", "exit", "then"],
            "json" => &["s3"],
            "text" => &["watch"],
            other => bail!("line {line}: nobody knows how to run {other:?}"),
        };
        if let Some((word, _)) = block.notes.iter().find(|(word, _)| !allowed.contains(&word.as_str())) {
            bail!("line {line}: {word:?} says nothing about {}", block.language);
        }
        match block.language.as_str() {
            "text" => {
                let before = steps.last_mut().with_context(|| format!("line {line}: a text after nothing"))?;
                match block.note("watch") {
                    Some(name) => ensure!(before.watched.replace((name.to_owned(), block.text)).is_none(), "line {line}: a second watch"),
                    None => {
                        ensure!(before.block.language == "sh", "line {line}: a text that no command printed");
                        ensure!(before.output.replace(block.text).is_none(), "line {line}: a second text");
                    }
                }
                continue;
            }
            "yaml" => ensure!(block.notes.iter().any(|(word, _)| word != "file"), "line {line}: what becomes of this manifest is not said"),
            "json" => ensure!(block.note("s3").is_some(), "line {line}: what this JSON is for is not said"),
            _ => ensure!(block.note("setup").is_some() == steps.is_empty(), "line {line}: the set-up comes first, once"),
        }
        steps.push(Step { block, output: None, watched: None });
    }
    Ok(steps)
}

/// What should become true of one resource.
#[derive(Debug)]
struct Claim<'a> {
    kind: &'a str,
    name: &'a str,
    words: Vec<&'a str>,
    message: Option<&'a str>,
}

impl<'a> Claim<'a> {
    fn read(text: &'a str) -> Result<Self> {
        let (words, message) = match text.split_once('"') {
            Some((words, message)) => (words, Some(message.strip_suffix('"').context("the quote has no end")?)),
            None => (text, None),
        };
        let mut words = words.split_whitespace();
        let (kind, name) = words.next().and_then(|target| target.split_once('/')).with_context(|| format!("{text:?} names no KIND/NAME"))?;
        let words: Vec<&str> = words.collect();
        ensure!(!words.is_empty(), "{text:?} claims nothing");
        Ok(Claim { kind, name, words, message })
    }

    /// The words that are not true of `resource`.
    fn unmet(&self, resource: Option<&Value>) -> Result<Vec<&'a str>> {
        let Some(resource) = resource else { return Ok(self.words.iter().filter(|word| **word != "gone").copied().collect()) };
        let status = &resource["status"];
        let about_the_spec = status["observedGeneration"] == resource["metadata"]["generation"];
        let standing = Standing::of(resource)?;
        let conditions = || status["conditions"].as_array().into_iter().flatten();
        let mut unmet = Vec::new();
        for word in &self.words {
            let met = match (*word, word.split_once('=')) {
                ("there", _) => true,
                ("gone", _) => false,
                ("unmanaged", _) => status.is_null(),
                ("available", _) => about_the_spec && standing.available,
                ("unavailable", _) => about_the_spec && !standing.available,
                (_, Some(("target", state))) => about_the_spec && standing.target == state,
                (_, Some(("copies", copies))) => about_the_spec && standing.copies.to_string() == copies,
                (_, Some((kind, value))) => about_the_spec && conditions().any(|one| one["type"] == kind && one["status"] == value),
                (word, None) if STATES.contains(&word) => about_the_spec && standing.active == word,
                (word, None) if TRANSITIONS.contains(&word) => about_the_spec && standing.transition == word,
                (word, None) if REASONS.iter().any(|reason| reason.as_str() == word) => about_the_spec && standing.reason == word,
                (other, None) => bail!("{other:?} is no word for a claim"),
            };
            if !met {
                unmet.push(*word);
            }
        }
        unmet.extend(self.message.filter(|message| !standing.message.contains(message)));
        Ok(unmet)
    }
}

/// True when `written` is what the page says is printed.
fn fits(page: &str, written: &str) -> bool {
    let lines = |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    lines_fit(&lines(page), &lines(written))
}

fn lines_fit(page: &[String], written: &[String]) -> bool {
    match page {
        [] => written.is_empty(),
        [any, rest @ ..] if any == "..." => (0..=written.len()).any(|from| lines_fit(rest, &written[from..])),
        [line, rest @ ..] => written.split_first().is_some_and(|(first, others)| line_fits(line, first) && lines_fit(rest, others)),
    }
}

fn line_fits(page: &str, written: &str) -> bool {
    match page.split_once("...") {
        None => page == written,
        Some((begin, rest)) => written
            .strip_prefix(begin)
            .is_some_and(|written| written.char_indices().map(|(at, _)| at).chain([written.len()]).any(|at| line_fits(rest, &written[at..]))),
    }
}

/// A reader with a server, a folder to work in, and an S3 server.
struct Reader {
    fixture: Fixture,
    berth: Berth,
    gateway: Gateway,
    folder: PathBuf,
    /// The members of all statuses that were looked at.
    members: BTreeSet<String>,
}

impl Reader {
    async fn set_up(block: &Block) -> Result<Self> {
        let fixture = Fixture::empty()?;
        let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
        gateway.put_folder(&fixture.quickstart.models()).await?;
        let folder = fixture.path("reader");
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::symlink(root().join("examples"), folder.join("examples"))?;

        let (before, server) = block.text.trim_end().rsplit_once('\n').context("commands, then the server")?;
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(before).current_dir(&folder);
        let mut shell = Process::start("the set-up", shell)?;
        ensure!(shell.exit(PATIENCE).await? == Exit::Code(0), "{}", shell.written());
        let mut serve = fixture.serve("256MiB").unset("--host-memory");
        let mut words = server.strip_prefix("berth serve ").context("the set-up ends with the server")?.split(' ');
        while let (Some(flag), Some(value)) = (words.next(), words.next()) {
            let is_path = ["--manifests", "--storage-config", "--pvc-mounts"].contains(&flag);
            serve = serve.flag(flag, if is_path { folder.join(value).into_os_string() } else { value.into() });
        }
        Ok(Reader { berth: serve.start().await?, fixture, gateway, folder, members: BTreeSet::new() })
    }

    /// Runs a script with `berth` on its path; all that it prints, and how it ended.
    async fn shell(&self, script: &str) -> Result<(Exit, String)> {
        let mut process = Process::start("sh", self.command("sh", &["-ec", &format!("exec 2>&1\n{script}")])?)?;
        let exit = process.exit(PATIENCE).await?;
        Ok((exit, process.out()))
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
            command.env_remove(variable);
        }
        let bin = self.fixture.parts.bin.parent().context("the program lies in a folder")?;
        let path = std::env::var("PATH")?;
        command.env("PATH", format!("{}:{path}", bin.display())).env("BERTH_SERVER", self.berth.api(""));
        command.args(args).current_dir(&self.folder);
        Ok(command)
    }

    async fn follow(&mut self, step: &Step) -> Result<()> {
        let Step { block, output, watched } = step;
        let watch = match watched {
            Some((target, _)) => {
                let (kind, _) = target.split_once('/').context("KIND/NAME is watched")?;
                let mut watch = Process::start("the watch", self.command("berth", &["get", kind, "-w"])?)?;
                // The heads come with what is there; every later change is printed.
                watch.line("the heads", SOON, |line| line.starts_with("NAME")).await?;
                Some(watch)
            }
            None => None,
        };
        match block.language.as_str() {
            "yaml" => self.apply(block).await?,
            "json" => self.storage_key(block)?,
            _ => {
                let wanted = block.note("exit").map_or(Ok(0), str::parse)?;
                let (exit, printed) = self.shell(&block.text).await?;
                ensure!(exit == Exit::Code(wanted), "it ended with {exit:?} and printed\n{printed}");
                let fits = output.as_ref().is_none_or(|page| fits(page, &printed));
                ensure!(fits && (output.is_some() || printed.is_empty()), "it printed\n{printed}");
            }
        }
        for claim in block.note("then").into_iter().flat_map(|claims| claims.split("; ")) {
            self.comes_true(claim).await?;
        }
        let (Some((target, page)), Some(watch)) = (watched, watch) else { return Ok(()) };
        let (_, name) = target.split_once('/').context("KIND/NAME is watched")?;
        eventually(&format!("the watch of {target} to print what the page shows"), SOON, || async {
            let of_name = |line: &&str| ["NAME", name].iter().any(|first| line.split_whitespace().next() == Some(first));
            let printed: Vec<String> = watch.out().lines().filter(of_name).map(str::to_owned).collect();
            let printed = printed.join("\n");
            ensure!(printed.lines().count() <= page.lines().count(), "it printed more:\n{printed}");
            Ok(if fits(page, &printed) { Found::Yes(()) } else { Found::NotYet(printed) })
        })
        .await
    }

    async fn apply(&self, block: &Block) -> Result<()> {
        if let Some(file) = block.note("file") {
            let unseen = self.folder.join("being-written");
            std::fs::write(&unseen, &block.text)?;
            return Ok(std::fs::rename(unseen, self.folder.join(file))?);
        }
        std::fs::write(self.folder.join("block.yaml"), &block.text)?;
        let (exit, printed) = self.shell("berth apply -f - < block.yaml").await?;
        match block.note("refused") {
            Some(why) => ensure!(exit == Exit::Code(1) && printed.contains(why), "{exit:?}: {printed}"),
            None => ensure!(exit == Exit::Code(0), "{exit:?}: {printed}"),
        }
        Ok(())
    }

    /// Writes a storage key of the page with the address and the account of the S3 server that is there.
    fn storage_key(&self, block: &Block) -> Result<()> {
        let file = block.note("s3").context("a storage key has a file")?;
        let mut entry: Value = serde_json::from_str(&block.text)?;
        for (name, value) in self.gateway.storage_entry().as_object().context("an entry is an object")? {
            let member = entry.get_mut(name).with_context(|| format!("the page's key has no {name}"))?;
            if name != "default_bucket" {
                *member = value.clone();
            }
        }
        Ok(std::fs::write(self.folder.join(file), entry.to_string())?)
    }

    async fn resource(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let (version, plural) = match kind {
            "isvc" => ("v1beta1", "inferenceservices"),
            "predictor" => ("v1alpha1", "predictors"),
            "servingruntime" => ("v1alpha1", "servingruntimes"),
            other => bail!("{other:?} is no kind"),
        };
        let url = self.berth.api(&format!("/apis/serving.kserve.io/{version}/namespaces/default/{plural}/{name}"));
        let reply = http::get(&url).await?;
        if reply.status == 404 { Ok(None) } else { reply.good().map(Some) }
    }

    async fn comes_true(&mut self, text: &str) -> Result<()> {
        let claim = Claim::read(text)?;
        let resource = eventually(&format!("{text:?} to come true"), SOON, || async {
            let resource = self.resource(claim.kind, claim.name).await?;
            let unmet = claim.unmet(resource.as_ref())?;
            Ok(if unmet.is_empty() { Found::Yes(resource) } else { Found::NotYet(format!("not {unmet:?}: {resource:?}")) })
        })
        .await?;
        names_of_members(&resource.unwrap_or_default()["status"], &mut self.members);
        Ok(())
    }
}

fn names_of_members(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            into.insert(name.clone());
            names_of_members(value, into);
        }),
        Value::Array(items) => items.iter().for_each(|item| names_of_members(item, into)),
        _ => {}
    }
}

#[tokio::test]
async fn every_example_of_the_page_about_resources_does_what_the_page_says() -> Result<()> {
    let steps = steps(blocks(PAGE)?)?;
    let (first, others) = steps.split_first().context("the page has examples")?;
    let mut reader = Reader::set_up(&first.block).await?;
    for step in others {
        reader.follow(step).await.with_context(|| format!("docs/resources.md, line {}", step.block.line))?;
    }
    let unknown: Vec<&String> = reader.members.iter().filter(|name| !is_named(PAGE, name)).collect();
    assert!(unknown.is_empty(), "members of statuses that the page does not name: {unknown:?}");
    assert!(reader.members.len() > 20, "{:?}", reader.members);
    Ok(())
}

/// True when the page explains `name`: outside of examples, as a whole word between backticks.
fn is_named(page: &str, name: &str) -> bool {
    let mut in_example = false;
    let mut lines = page.lines().filter(|line| {
        let fence = line.starts_with("```");
        in_example ^= fence;
        !fence && !in_example
    });
    lines.any(|line| line.split('`').skip(1).step_by(2).any(|code| code.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name)))
}

/// The first cells of the rows of the table under a heading.
fn rows(page: &str, heading: &str) -> Vec<String> {
    let section = page.split_once(&format!("\n### {heading}\n")).map(|(_, after)| after).unwrap_or_default();
    let section = section.split("\n#").next().unwrap_or_default();
    section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn the_page_explains_every_word_of_a_status_and_no_other() {
    let reasons = REASONS.map(Reason::as_str);
    for (heading, words) in [("States", &STATES[..]), ("Transitions", &TRANSITIONS), ("Reasons of failure", &reasons), ("Conditions", &CONDITIONS)] {
        assert_eq!(rows(PAGE, heading), words, "{heading}");
    }
}

#[test]
fn a_block_that_nothing_is_claimed_of_is_a_fault() {
    let setup = "<!-- setup -->\n```sh\nberth serve\n```\n";
    for (case, rest, told) in [
        ("a manifest that nothing is said of", "```yaml\na: 1\n```\n", "what becomes of this manifest is not said"),
        ("only where it is written to", "<!-- file: a -->\n```yaml\na: 1\n```\n", "what becomes of this manifest is not said"),
        ("a language that is not run", "```rust\n```\n", "nobody knows how to run"),
        ("a block without a language", "```\n```\n", "nobody knows how to run"),
        ("JSON without a use", "```json\n{}\n```\n", "what this JSON is for is not said"),
        ("a text that nothing printed", "<!-- then: isvc/a Loaded -->\n```yaml\na: 1\n```\n```text\na\n```\n", "no command printed"),
        ("a misspelt comment", "<!-- than: isvc/a Loaded -->\n```yaml\na: 1\n```\n", "says nothing about yaml"),
        ("a comment that is too far away", "<!-- then: isvc/a Loaded -->\n\n```yaml\na: 1\n```\n", "belongs to no block"),
        ("a block without an end", "```sh\necho\n", "has no end"),
    ] {
        let fault = blocks(&format!("{setup}{rest}")).and_then(steps).expect_err(case).to_string();
        assert!(fault.contains(told), "{case}: {fault}");
    }
    assert!(blocks(&format!("{setup}```sh\necho a\n```\n\n```text\na\n```\n")).and_then(steps).is_ok());
}

#[test]
fn dots_stand_for_anything_and_nothing_else_does() {
    for (page, written, fit) in [
        ("a  b", "a b", true),
        ("a b", "a c", false),
        ("a ... c", "a b b c", true),
        ("a ...", "a", false),
        ("{...}", "{}", true),
        ("a...", "ab\nc", false),
        ("a\n...\nc", "a\nb\nb\nc", true),
        ("a\n...\nc", "a\nb", false),
        ("a", "a\nb", false),
        ("", "a", false),
    ] {
        assert_eq!(fits(page, written), fit, "{page:?} {written:?}");
    }
}

#[test]
fn a_claim_holds_only_of_the_present_spec() {
    let resource = |seen: u64| {
        serde_json::json!({ "kind": "InferenceService", "metadata": { "generation": 2 }, "status": {
            "observedGeneration": seen, "conditions": [{ "type": "Ready", "status": "True" }],
            "modelStatus": { "transitionStatus": "UpToDate", "states": { "activeModelState": "Loaded" }, "lastFailureInfo": { "message": "no file" } },
        } })
    };
    let claim = Claim::read("isvc/a Loaded UpToDate Ready=True \"no file\"").expect("a claim");
    assert_eq!(claim.unmet(Some(&resource(2))).expect("words"), Vec::<&str>::new());
    assert_eq!(claim.unmet(Some(&resource(1))).expect("words"), ["Loaded", "UpToDate", "Ready=True"]);
    let claim = Claim::read("isvc/a Standby \"another\"").expect("a claim");
    assert_eq!(claim.unmet(Some(&resource(2))).expect("words"), ["Standby", "another"]);
    assert!(Claim::read("isvc/a").is_err() && Claim::read("isvc Loaded").is_err());
    assert!(Claim::read("isvc/a Laoded").expect("a claim").unmet(Some(&resource(2))).is_err());
}
