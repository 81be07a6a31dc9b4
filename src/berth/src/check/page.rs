//! What a check prints: a line for each rule, and of one that is broken what came, what the contract says and what to do.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use berth_adapters::conformance::{Outcome, RULES, Report, Rule, Verdict};

use super::example::Example;
use crate::beside::Beside;
use crate::cli::output::plain;

/// Where the rules are explained.
const MORE: &str = "docs/check-runtime.md";

/// Standard output, and how many rules were told so far.
#[derive(Default)]
pub(super) struct Page {
    kept: usize,
    broken: usize,
    unchecked: usize,
}

impl Page {
    /// What is about to be checked.
    pub(super) fn begins(&mut self, beside: &Beside, example: &Example, patience: Duration) {
        let line = format!(
            "checking the {} at {} with {}; its models in {}; waiting {patience:?} for it at most\n",
            beside.kind.word(),
            beside.orders,
            example.shown(),
            beside.repository.display()
        );
        print(&line);
    }

    /// How a rule fared.
    pub(super) fn verdict(&mut self, verdict: &Verdict) {
        match verdict.outcome {
            Outcome::Kept => self.kept += 1,
            Outcome::Broken(_) => self.broken += 1,
            Outcome::Unchecked(_) => self.unchecked += 1,
        }
        print(&told(verdict));
    }

    /// The sum, and what is left to say. `None`: the server was not ready.
    pub(super) fn ends(&mut self, report: Option<&Report>) {
        if report.is_none() {
            self.unchecked += RULES.len();
        }
        print(&sum((self.kept, self.broken, self.unchecked), report));
    }
}

fn told(verdict: &Verdict) -> String {
    let Rule { name, asks, contract, advice, .. } = verdict.rule;
    let line = |word: &str, text: &str| format!("{word:<10} {name:<20} {text}\n");
    match &verdict.outcome {
        Outcome::Kept => line("kept", asks),
        Outcome::Unchecked(why) => line("unchecked", &plain(why)),
        Outcome::Broken(came) => {
            let mut text = line("BROKEN", asks);
            let more = format!("{MORE}#{name}");
            for (label, what) in [("came", plain(came).as_str()), ("contract", contract), ("to do", advice), ("more", &more)] {
                let _ = writeln!(text, "{:<10} {label:<9} {what}", "");
            }
            text
        }
    }
}

fn sum((kept, broken, unchecked): (usize, usize, usize), report: Option<&Report>) -> String {
    let mut text = format!("{} rules: {kept} kept, {broken} broken, {unchecked} unchecked\n", kept + broken + unchecked);
    match report {
        None => text.push_str("the others can be checked when the server is ready\n"),
        Some(report) => {
            if let Some(why) = &report.silent {
                let _ = writeln!(text, "no model was asked anything, so whether they answer is not known: {}", plain(why));
            }
            if !report.left.is_empty() {
                let left: Vec<String> = report.left.iter().map(ToString::to_string).collect();
                let _ = writeln!(text, "the server does not let go of {}: restart it", left.join(", "));
            }
        }
    }
    text
}

/// Somebody who does not read on is no fault: the exit status tells as well.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use berth_adapters::conformance::READY;

    use super::*;

    #[test]
    fn a_rule_is_a_line_and_a_broken_one_says_what_came_and_what_to_do() {
        let text = |outcome| told(&Verdict { rule: &READY, outcome });
        assert_eq!(text(Outcome::Kept), "kept       ready                how does it stand?\n");
        assert_eq!(text(Outcome::Unchecked("why\x1b[0m".to_owned())), "unchecked  ready                why^[[0m\n");
        let broken = text(Outcome::Broken("it is\nstarting".to_owned()));
        let lines: Vec<&str> = broken.lines().map(str::trim_start).collect();
        assert_eq!(lines[..2], ["BROKEN     ready                how does it stand?", "came      it is starting"]);
        assert!(lines[2].starts_with("contract  in time") && lines[3].starts_with("to do     answer READY"), "{broken}");
        assert_eq!(lines[4..], ["more      docs/check-runtime.md#ready"]);
    }

    #[test]
    fn the_sum_says_what_is_not_known_and_what_is_left() {
        assert_eq!(sum((0, 1, 11), None), "12 rules: 0 kept, 1 broken, 11 unchecked\nthe others can be checked when the server is ready\n");
        let left = vec![berth_types::ModelId::new("m").expect("valid")];
        let report = Report { verdicts: vec![], silent: Some("no ModelInfer".to_owned()), left };
        let text = sum((9, 1, 2), Some(&report));
        assert!(text.starts_with("12 rules: 9 kept, 1 broken, 2 unchecked\n") && text.contains("is not known: no ModelInfer\n"), "{text}");
        assert!(text.ends_with("the server does not let go of m: restart it\n"), "{text}");
    }
}
