//! One command of a lane: run, shown as it goes, and read for what the test runner says.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::say;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// What test runners reported, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that were not run.
    pub(crate) ignored: u64,
}

impl Tests {
    /// Reads a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`.
    fn of(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
        Some(Tests { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
    }

    /// Both together.
    pub(crate) fn plus(self, other: Tests) -> Tests {
        Tests { passed: self.passed + other.passed, failed: self.failed + other.failed, ignored: self.ignored + other.ignored }
    }
}

/// How a step ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Whether it did what it should.
    pub(crate) good: bool,
    /// The runners' summary lines, as they were written.
    pub(crate) summaries: Vec<String>,
    /// Their sum.
    pub(crate) tests: Tests,
}

/// A command to run.
pub(crate) struct Step {
    name: &'static str,
    command: Command,
}

impl Step {
    /// A cargo command in the root of the repository.
    pub(crate) fn cargo<const N: usize>(name: &'static str, args: [&str; N]) -> Self {
        Step::program(name, cargo()).args(args)
    }

    /// Any program, in the root of the repository, with nothing to read.
    pub(crate) fn program(name: &'static str, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root()).stdin(Stdio::null());
        Step { name, command }
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds variables to the environment.
    pub(crate) fn envs(mut self, variables: impl IntoIterator<Item = (&'static str, PathBuf)>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Runs it, passing on what it writes.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        let words: Vec<_> = std::iter::once(self.command.get_program()).chain(self.command.get_args()).map(OsStr::to_string_lossy).collect();
        let line = words.join(" ");
        say(&format!("\n== {}: {line}", self.name));
        let mut child = self.command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {line}"))?;
        let mut outcome = Outcome::default();
        let out = child.stdout.take().expect("stdout is piped");
        for line in BufReader::new(out).split(b'\n') {
            let line = line.context("cannot read what the command writes")?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            if let Some(tests) = Tests::of(&line) {
                outcome.tests = outcome.tests.plus(tests);
                outcome.summaries.push(line.into_owned());
            }
        }
        outcome.good = child.wait().context("cannot wait for the command")?.success();
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_read_and_other_lines_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tests::of(line), Some(Tests { passed: 12, failed: 3, ignored: 1 }));
        for other in ["", "test result: ok", "test a_test ... ok", "test result: ok. many passed; 0 failed; 0 ignored"] {
            assert_eq!(Tests::of(other), None, "{other}");
        }
    }

    #[test]
    fn a_step_that_fails_is_not_good_and_its_tests_are_counted() {
        let print = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out'; exit 3";
        let outcome = Step::program("sh", "sh").args(["-c", print]).run().expect("sh runs");
        assert!(!outcome.good);
        assert_eq!(outcome.tests, Tests { passed: 1, failed: 2, ignored: 0 });
        assert_eq!(outcome.summaries.len(), 1);
    }
}
