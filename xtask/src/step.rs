//! One command of a lane: run, shown as it goes, and read for what the test runner says.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::group::{End, Group};
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

/// Which tests passed, and in which targets tests ran at all.
///
/// A target is called by its package, `berth-plan`, where it holds unit tests, and `berth-api/it` where it is the
/// integration test `it`; a test by its target and its path there: `berth-plan::status::tests::NAME`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The target whose tests are being told of.
    target: Option<String>,
    /// Targets that were run.
    pub(crate) targets: BTreeSet<String>,
    /// Tests that passed. Neither ignored ones nor examples in docs are among them.
    pub(crate) passed: BTreeSet<String>,
}

impl Seen {
    /// Takes in a line of a runner, or of [`ANNOUNCE`].
    fn take(&mut self, line: &str) {
        if let Some((package, program)) = line.strip_prefix(ANNOUNCED).and_then(|rest| rest.split_once(' ')) {
            // The program is called after the target, in the letters of a crate, and has a hash behind it.
            let name = Path::new(program).file_name().and_then(OsStr::to_str).unwrap_or_default();
            let name = name.rsplit_once('-').map_or(name, |(name, _hash)| name);
            let target = if name == package.replace('-', "_") { package.to_owned() } else { format!("{package}/{name}") };
            self.targets.insert(target.clone());
            self.target = Some(target);
        }
        let passed = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ok"));
        if let (Some(test), Some(target)) = (passed, &self.target) {
            let test = test.strip_suffix(" - should panic").unwrap_or(test);
            self.passed.insert(format!("{target}::{test}"));
        }
    }

    /// Adds what another step has seen.
    pub(crate) fn extend(&mut self, other: &Seen) {
        self.targets.extend(other.targets.iter().cloned());
        self.passed.extend(other.passed.iter().cloned());
    }
}

/// The beginning of a line that tells whose tests follow: the package and the program come behind it.
const ANNOUNCED: &str = "== target: ";

/// Lets cargo run each test program through a shell that tells which one it is. Cargo tells it as well, but elsewhere
/// (on its standard error, so that nothing orders it with what the programs write) and without the package, although
/// two packages may have integration tests of one name.
const ANNOUNCE: &str = r#"target."cfg(all())".runner=["sh", "-c", 'echo "== target: $CARGO_PKG_NAME $0"; exec "$0" "$@"']"#;

/// What became of a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// What went wrong, after the step's name: `failed`. `None`: it did what it should.
    pub(crate) fault: Option<&'static str>,
    /// The runners' summary lines, as they were written.
    pub(crate) summaries: Vec<String>,
    /// Their sum.
    pub(crate) tests: Tests,
    /// The tests by name.
    pub(crate) seen: Seen,
}

/// A command to run.
pub(crate) struct Step {
    name: &'static str,
    command: Command,
}

impl Step {
    /// A cargo command in the root of the repository. What it builds is what Cargo.lock says: one that does not fit
    /// any more is a fault, not something to write anew.
    pub(crate) fn cargo<const N: usize>(name: &'static str, args: [&str; N]) -> Self {
        // cargo fmt resolves nothing and does not know the flag.
        let locked = if args.first() == Some(&"fmt") { None } else { Some("--locked") };
        Step::program(name, cargo()).args(&args[..1]).args(locked).args(&args[1..])
    }

    /// `cargo test` with its tests told by name.
    pub(crate) fn tests<const N: usize>(name: &'static str, args: [&str; N]) -> Self {
        Step::cargo(name, ["test", "--config", ANNOUNCE]).args(args)
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

    /// Runs it until `deadline` at most, passing on what it writes.
    pub(crate) fn run(mut self, deadline: Option<Instant>) -> Result<Outcome> {
        let words: Vec<_> = std::iter::once(self.command.get_program()).chain(self.command.get_args()).map(OsStr::to_string_lossy).collect();
        say(&format!("\n== {}: {}", self.name, words.join(" ")));
        let mut outcome = Outcome::default();
        let end = Group::start(self.command.stdout(Stdio::piped()))?.wait(deadline, |out| {
            for line in BufReader::new(out.expect("stdout is piped")).split(b'\n') {
                let line = line.context("cannot read what the command writes")?;
                let line = String::from_utf8_lossy(&line);
                say(&line);
                outcome.seen.take(&line);
                if let Some(tests) = Tests::of(&line) {
                    outcome.tests = outcome.tests.plus(tests);
                    outcome.summaries.push(line.into_owned());
                }
            }
            Ok(())
        })?;
        outcome.fault = match end {
            End::By(status) if status.success() => None,
            End::By(_) => Some("failed"),
            End::OutOfTime => Some("was killed: the time of its lane was over"),
        };
        if let Some(fault) = outcome.fault {
            say(&format!("== {} {fault}", self.name));
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::group::now;

    #[test]
    fn summaries_are_read_and_other_lines_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tests::of(line), Some(Tests { passed: 12, failed: 3, ignored: 1 }));
        for other in ["", "test result: ok", "test a_test ... ok", "test result: ok. many passed; 0 failed; 0 ignored"] {
            assert_eq!(Tests::of(other), None, "{other}");
        }
    }

    #[test]
    fn tests_that_passed_are_known_by_their_target_and_others_are_not_among_them() {
        let mut seen = Seen::default();
        for line in [
            "test nobody_said_whose ... ok",
            "== target: berth-plan /target/release/deps/berth_plan-0123456789abcdef",
            "running 4 tests",
            "test status::tests::a_step ... ok",
            "test status::tests::it_panics - should panic ... ok",
            "test status::tests::another ... FAILED",
            "test status::tests::slow ... ignored, takes an hour",
            "test result: ok. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
            "== target: berth-api /target/release/deps/it-fedcba9876543210",
            "test reading::a_step ... ok",
        ] {
            seen.take(line);
        }
        assert_eq!(Vec::from_iter(&seen.targets), ["berth-api/it", "berth-plan"]);
        let passed = ["berth-api/it::reading::a_step", "berth-plan::status::tests::a_step", "berth-plan::status::tests::it_panics"];
        assert_eq!(Vec::from_iter(&seen.passed), passed);
    }

    #[test]
    fn a_test_program_is_announced_and_then_run_with_its_arguments() {
        let config: toml::Value = toml::from_str(ANNOUNCE).expect("cargo reads it as TOML");
        let runner = config["target"]["cfg(all())"]["runner"].clone().try_into::<Vec<String>>().expect("a list of texts");
        let mut command = Command::new(&runner[0]);
        command.args(&runner[1..]).args(["/bin/echo", "test a::b ... ok"]).env("CARGO_PKG_NAME", "berth-plan");
        let output = command.output().expect("sh runs");
        let mut seen = Seen::default();
        String::from_utf8_lossy(&output.stdout).lines().for_each(|line| seen.take(line));
        assert_eq!(Vec::from_iter(&seen.passed), ["berth-plan/echo::a::b"]);
        let args = Step::tests("tests", ["--release"]).command.get_args().map(OsStr::to_os_string).collect::<Vec<_>>();
        assert_eq!(args, ["test", "--locked", "--config", ANNOUNCE, "--release"]);
    }

    fn shell(script: &str) -> Step {
        Step::program("sh", "sh").args(["-c", script])
    }

    #[test]
    fn a_step_that_fails_says_so_and_its_tests_are_counted() {
        let print = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out'; exit 3";
        let outcome = shell(print).run(None).expect("sh runs");
        assert_eq!(outcome.fault, Some("failed"));
        assert_eq!(outcome.tests, Tests { passed: 1, failed: 2, ignored: 0 });
        assert_eq!(outcome.summaries.len(), 1);
    }

    #[test]
    fn a_step_that_hangs_is_killed_at_its_deadline_and_what_it_told_before_counts() {
        let print = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'; sleep 300";
        let outcome = shell(print).run(Some(now() + Duration::from_millis(300))).expect("sh runs");
        assert!(outcome.fault.is_some_and(|fault| fault.contains("killed")), "{outcome:?}");
        assert_eq!(outcome.tests.passed, 1);
    }

    #[test]
    fn cargo_may_not_write_the_lock_file() {
        let args = |step: Step| step.command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>();
        assert_eq!(args(Step::cargo("tests", ["test", "--release"])), ["test", "--locked", "--release"]);
        assert_eq!(args(Step::cargo("format", ["fmt", "--check"])), ["fmt", "--check"]);
    }
}
