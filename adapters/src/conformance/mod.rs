//! What every runtime must do: the real ones and the fake keep the same rules.
//!
//! [`RULES`] are values: what is asked, what must come, what to do about it. [`examine`] tries them out on any [`Runtime`] that
//! also answers inference and says which are kept; `berth check-runtime` prints that. [`runtime_suite`] is the same for tests, and
//! [`onnx_suite`] what the embedded runtime must do beyond, with whichever engine: they panic, with the case in the message, so
//! that tests of other crates and of real servers can call them too.

#![allow(clippy::missing_panics_doc, reason = "panicking is how the suites report")]

mod onnx;
mod rules;
mod trial;

use std::fmt;
use std::time::Duration;

use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse};
use berth_telemetry::Clock;
use berth_types::{ModelFormat, ModelId, Registration};
use bytes::Bytes;

pub use onnx::{Abilities, onnx_suite};
pub use rules::{READY, RULES, Rule};
pub use trial::{Examined, Output, Question, Trial};

use crate::{Artifacts, Infer, Runtime};
use trial::{Bench, Short};

/// How long anything may take that a runtime promises to do at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many of these a whole rule may take: it asks for a few things in a row.
const PATIENCES: u32 = 12;

/// A runtime with something to load.
pub struct Subject<R> {
    /// The runtime; holds nothing yet.
    pub runtime: R,
    /// Its clock.
    pub clock: Clock,
    /// The format of the files.
    pub format: &'static str,
    /// Files that it can load under any id.
    pub good: Artifacts,
    /// Files that are no model, under the id [`BROKEN`].
    pub bad: Artifacts,
    /// A request that the good model answers.
    pub request: ModelInferRequest,
    /// The outputs of the answer, in order: name, datatype, shape, bytes.
    pub answer: Vec<Output>,
}

/// A registration of an ONNX model under this id.
#[must_use]
pub fn registration(id: &str) -> Registration {
    trial::registered(id, ModelFormat { name: "onnx".into(), version: None }, "")
}

/// The id under which [`Subject::bad`] is loaded, for runtimes that fail by script.
pub const BROKEN: &str = "broken__isvc-0000000000";

/// A request with raw contents: name, datatype, shape and bytes of each input.
#[must_use]
pub fn raw_request(inputs: &[(&str, &str, &[i64], &[u8])]) -> ModelInferRequest {
    let (tensors, raw) = inputs
        .iter()
        .map(|(name, datatype, shape, raw)| {
            let tensor =
                InferInputTensor { name: (*name).to_owned(), datatype: (*datatype).to_owned(), shape: shape.to_vec(), ..InferInputTensor::default() };
            (tensor, Bytes::copy_from_slice(raw))
        })
        .unzip();
    ModelInferRequest { inputs: tensors, raw_input_contents: raw, ..ModelInferRequest::default() }
}

/// Name, datatype, shape and bytes of each output.
#[must_use]
pub fn outputs_of(response: &ModelInferResponse) -> Vec<(String, String, Vec<i64>, Bytes)> {
    assert_eq!(response.outputs.len(), response.raw_output_contents.len(), "one raw content per output");
    let outputs = response.outputs.iter().zip(&response.raw_output_contents);
    outputs.map(|(output, raw)| (output.name.clone(), output.datatype.clone(), output.shape.clone(), raw.clone())).collect()
}

/// How a rule fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it must be.
    Kept,
    /// What came instead.
    Broken(String),
    /// It cannot be told here, and why.
    Unchecked(String),
}

/// One rule, and how it fared.
pub struct Verdict {
    /// Which.
    pub rule: &'static Rule,
    /// How.
    pub outcome: Outcome,
}

/// What an examination has found.
pub struct Report {
    /// Every rule, in order.
    pub verdicts: Vec<Verdict>,
    /// Why no model was asked anything, if so: then rules about answers were looked at only as far as orders tell.
    pub silent: Option<String>,
    /// Models that could not be unloaded.
    pub left: Vec<ModelId>,
}

impl Report {
    /// The rules that are broken.
    pub fn broken(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| matches!(verdict.outcome, Outcome::Broken(_)))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { name, asks, contract, .. } = self.rule;
        match &self.outcome {
            Outcome::Kept => write!(f, "{name} is kept"),
            Outcome::Broken(came) => write!(f, "{name} is broken: asked: {asks}; it must be: {contract}; it is: {came}"),
            Outcome::Unchecked(why) => write!(f, "{name} cannot be told: {why}"),
        }
    }
}

/// Tries out every rule, tells each verdict as it comes, and leaves nothing behind. Needs a tokio runtime; works with paused time
/// where the runtime allows it.
pub async fn examine(trial: &Trial<'_>, told: &mut (dyn FnMut(&Verdict) + Send)) -> Report {
    let mut bench = Bench::prepared(trial).await;
    let (models, mut verdicts, mut gone) = (rules::models(), Vec::new(), None);
    for rule in &RULES {
        let outcome = match &gone {
            Some(why) => Outcome::Unchecked(format!("the server is gone: {why}")),
            None => tried(&mut bench, rule, trial).await,
        };
        if matches!(outcome, Outcome::Broken(_))
            && gone.is_none()
            && let Err(Short::Broken(why)) = bench.index().await
        {
            gone = Some(why);
        }
        let verdict = Verdict { rule, outcome };
        if gone.is_none() && verdict.outcome != Outcome::Kept {
            bench.tidy(&models).await;
        }
        told(&verdict);
        verdicts.push(verdict);
    }
    Report { verdicts, silent: bench.is_silent().map(str::to_owned), left: if gone.is_none() { bench.tidy(&models).await } else { models } }
}

/// Unloads what an examination that was broken off may have left, and removes its files. The models that could not be unloaded.
pub async fn clean_up(trial: &Trial<'_>) -> Vec<ModelId> {
    Bench::unprepared(trial).tidy(&rules::models()).await
}

async fn tried(bench: &mut Bench<'_>, rule: &Rule, trial: &Trial<'_>) -> Outcome {
    let limit = trial.patience.saturating_mul(PATIENCES);
    let tried = match bench.begin().await {
        Ok(()) => trial.clock.until(trial.clock.deadline_in(limit), (rule.run)(bench)).await,
        Err(short) => Some(Err(short)),
    };
    match tried {
        Some(Ok(())) => Outcome::Kept,
        Some(Err(Short::Broken(came))) => Outcome::Broken(came),
        Some(Err(Short::Unchecked(why))) => Outcome::Unchecked(why),
        None => Outcome::Broken(format!("it took longer than {limit:?} in all")),
    }
}

/// Every rule must be kept; those that cannot be told are not among them. Needs a tokio runtime; passes with paused time where
/// the runtime allows it.
pub async fn runtime_suite<R: Runtime + Infer>(subject: &Subject<R>) {
    let report = verdicts_on(subject).await;
    let broken: Vec<String> = report.broken().map(Verdict::to_string).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert_eq!((report.silent, report.left), (None, vec![]), "all models were asked, and all are gone");
}

/// The same, with the verdicts for the caller to judge.
pub async fn verdicts_on<R: Runtime + Infer>(subject: &Subject<R>) -> Report {
    let trial = Trial {
        runtime: &subject.runtime,
        clock: &subject.clock,
        format: ModelFormat { name: subject.format.into(), version: None },
        path: String::new(),
        good: &subject.good,
        bad: &subject.bad,
        question: Question::Known { request: Box::new(subject.request.clone()), answer: subject.answer.clone() },
        patience: PATIENCE,
    };
    examine(&trial, &mut |_verdict| {}).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_name_of_its_own_and_a_section_in_the_docs() {
        let page = include_str!("../../../docs/check-runtime.md");
        for rule in std::iter::once(&READY).chain(&RULES) {
            assert_eq!(RULES.iter().filter(|other| other.name == rule.name).count(), usize::from(rule.name != READY.name), "{}", rule.name);
            assert!(page.contains(&format!("\n### {}\n", rule.name)), "docs/check-runtime.md has no section {}", rule.name);
        }
    }
}
