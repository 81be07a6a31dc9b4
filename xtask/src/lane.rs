//! The lanes of the test run: what each does, how long it may take, and the table at the end.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::group::now;
use crate::parts::Parts;
use crate::step::{Outcome, Seen, Step, Tests};
use crate::workspace::members;
use crate::{check, say, seeds};

/// A group of checks that is run and timed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Needs nothing but Rust.
    Quick,
    /// Talks to real servers through real clients.
    Real,
}

impl Lane {
    /// Every lane, in the order in which they run.
    pub(crate) const ALL: [Lane; 2] = [Lane::Quick, Lane::Real];

    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Lane::Quick => "quick",
            Lane::Real => "real",
        }
    }

    /// How long it may take on two cores, everything compiled anew. What still runs then is killed and has failed.
    const fn budget(self) -> Duration {
        match self {
            Lane::Quick => Duration::from_mins(40),
            Lane::Real => Duration::from_mins(20),
        }
    }
}

/// What became of one lane.
struct Row {
    lane: Lane,
    took: Duration,
    tests: Tests,
    faults: Vec<String>,
}

/// The parts, being installed while other things run.
type Installing = JoinHandle<Result<Parts>>;

/// Runs `lanes`; true when all is well.
pub(crate) fn run(lanes: &[Lane]) -> Result<bool> {
    let mut installing = None;
    if lanes.contains(&Lane::Real) {
        crate::parts::require_tools()?;
        installing = Some(std::thread::spawn(Parts::install));
    }
    let mut rows = Vec::new();
    let mut summaries = Vec::new();
    for lane in lanes {
        let start = now();
        let deadline = start + lane.budget();
        let mut outcomes = match lane {
            Lane::Quick => quick(deadline),
            Lane::Real => real(installing.take(), deadline),
        };
        outcomes.push(("seeds", seeds::check(*lane, &seen(&outcomes))));
        let mut row = Row { lane: *lane, took: start.elapsed(), tests: Tests::default(), faults: Vec::new() };
        for (name, outcome) in outcomes {
            match outcome {
                Ok(outcome) => {
                    row.faults.extend(outcome.fault.map(|fault| format!("{name} {fault}")));
                    row.tests = row.tests.plus(outcome.tests);
                    summaries.extend(outcome.summaries);
                }
                Err(fault) => row.faults.push(format!("{name}: {fault:#}")),
            }
        }
        if row.took > lane.budget() {
            row.faults.push(format!("over its budget of {} min", lane.budget().as_secs() / 60));
        }
        rows.push(row);
    }
    say(&table(&rows));
    summaries.iter().for_each(|line| say(line));
    let tests = rows.iter().fold(Tests::default(), |sum, row| sum.plus(row.tests));
    // A step that fails before it counts its tests must not look like none failed.
    let faults: usize = rows.iter().map(|row| row.faults.len()).sum();
    let failed = tests.failed.max(u64::try_from(faults).unwrap_or(u64::MAX));
    say(&format!("{} passed, {failed} failed", tests.passed));
    Ok(faults == 0 && tests.failed == 0)
}

type Outcomes = Vec<(&'static str, Result<Outcome>)>;

/// What all steps of a lane have seen.
fn seen(outcomes: &Outcomes) -> Seen {
    let mut seen = Seen::default();
    outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).for_each(|outcome| seen.extend(&outcome.seen));
    seen
}

/// The whole-system tests.
pub(crate) const SYSTEM: &str = "system";

/// The tests of the real lane: all that the quick lane leaves out. One after the other, each in a process of its own.
const REAL: [&str; 2] = [SYSTEM, "onnx_runtime"];

/// Everything that needs Rust alone. All of it runs even when a part fails, so that one run tells everything.
///
/// Each test command names the whole workspace and chooses targets: another choice of packages would be another choice
/// of features, and cargo would compile half the tree again.
fn quick(deadline: Instant) -> Outcomes {
    let by = Some(deadline);
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    vec![
        ("tree", check::tree()),
        ("format", Step::cargo("format", ["fmt", "--all", "--check"]).run(by)),
        ("clippy", Step::cargo("clippy", clippy).run(by)),
        ("tests", tests(by)),
        ("examples in docs", Step::cargo("examples in docs", ["test", "--release", "--workspace", "--doc", "--no-fail-fast"]).run(by)),
    ]
}

/// Unit and integration tests of every crate, but for the whole-system tests.
fn tests(by: Option<Instant>) -> Result<Outcome> {
    let mut command = Step::tests("tests", ["--release", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    for test in members()?.into_iter().flat_map(|member| member.tests).filter(|test| !REAL.contains(&test.name.as_str())) {
        command = command.args(["--test".to_owned(), test.name]);
    }
    command.run(by)
}

/// What needs the parts: licences and sources of dependencies, and the whole-system tests.
fn real(installing: Option<Installing>, deadline: Instant) -> Outcomes {
    let by = Some(deadline);
    // The binary is built while the last parts are being installed.
    let build = Step::cargo("build", ["build", "--release", "-p", "berth"]).run(by);
    let built = build.as_ref().is_ok_and(|outcome| outcome.fault.is_none());
    let mut outcomes = vec![("build", build)];
    let parts = match installing.map_or_else(Parts::install, |installing| installing.join().expect("installing does not panic")) {
        Ok(parts) => parts,
        Err(fault) => {
            outcomes.push(("parts", Err(fault)));
            return outcomes;
        }
    };
    say(&parts.to_string());
    outcomes.push(("deny", parts.deny(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]).run(by)));
    if parts.have_advisories() {
        outcomes.push(("advisories", parts.deny(&["check", "--disable-fetch", "advisories"]).run(by)));
    } else {
        say("\n== advisories: NOT CHECKED, the advisory database could not be fetched");
    }
    // Vetted before they are tested: the servers and clients of ours that the whole-system tests use.
    outcomes.push(("go", Step::program("go", "go").args(["test", "-C", "tests/go", "-mod=readonly", "./..."]).run(by)));
    if !built {
        // The binary that lies there is another one than these sources make.
        outcomes.push((SYSTEM, Err(anyhow!("not run, there is no binary to test"))));
        return outcomes;
    }
    let mut system = Step::tests(SYSTEM, ["--release", "--workspace", "--no-fail-fast"]);
    for test in REAL {
        system = system.args(["--test", test]);
    }
    outcomes.push((SYSTEM, system.args(["--", "--test-threads=3"]).envs(parts.environment()).run(by)));
    outcomes
}

/// Times, budgets, counts and what failed, one row a lane.
fn table(rows: &[Row]) -> String {
    let mut text = format!("\n{:<8} {:>8} {:>8} {:>8} {:>8} {:>8}  what failed\n", "lane", "took", "budget", "passed", "failed", "ignored");
    for row in rows {
        let seconds = row.took.as_secs();
        let faults = if row.faults.is_empty() { "nothing".to_owned() } else { row.faults.join("; ") };
        text += &format!(
            "{:<8} {:>8} {:>8} {:>8} {:>8} {:>8}  {faults}\n",
            row.lane.name(),
            format!("{}:{:02}", seconds / 60, seconds % 60),
            format!("{}:00", row.lane.budget().as_secs() / 60),
            row.tests.passed,
            row.tests.failed,
            row.tests.ignored,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_lane_with_its_time_and_faults() {
        let tests = Tests { passed: 5, failed: 1, ignored: 0 };
        let rows = [Row { lane: Lane::Real, took: Duration::from_secs(125), tests, faults: vec!["system failed".to_owned()] }];
        let text = table(&rows);
        for part in ["real", "2:05", "20:00", "system failed"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
